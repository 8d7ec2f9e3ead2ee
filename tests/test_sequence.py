"""Fixed-sequence families: what passes is what must, and in simulated searches a point below its floor wins at most one time in twenty."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fourfold.gate import Proof, assembled, owners
from fourfold.jobs.optimize.significance import error, reached
from fourfold.measure.quality import Z95, accuracy_bound
from fourfold.measure.sequence import LEVEL, Family, floors, safe
from fourfold.rewrites.compress.cascade import paths


def test_a_family_stops_at_its_first_failure_and_hands_its_level_on_only_when_whole() -> None:
    errors = {"a": 0.001, "b": 0.2, "c": 0.0, "d": 0.03, "e": 0.02}
    passed, tested = safe([Family("one", 0.03, ("a", "b", "c")), Family("two", 0.02, ("d",))], errors.__getitem__)
    assert (passed, tested) == (["a"], ["a", "b", "d"])
    passed, _ = safe([Family("one", 0.02, ("a",)), Family("two", 0.02, ("d",))], errors.__getitem__)
    assert passed == ["a", "d"]     # 0.02 + 0.02 handed on
    with pytest.raises(ValueError, match="5 %"):
        safe([Family("one", 0.03, ("a",)), Family("two", 0.03, ("d",))], errors.__getitem__)


@given(st.lists(st.tuples(st.floats(0.001, 1), st.lists(st.floats(0, 1), max_size=5)), min_size=1, max_size=4))
def test_nothing_passes_above_the_whole_level(families: list[tuple[float, list[float]]]) -> None:
    total = sum(weight for weight, _ in families)
    errors: dict[str, float] = {}
    made = []
    for n, (weight, values) in enumerate(families):
        names = tuple(f"{n}-{k}" for k in range(len(values)))
        errors |= dict(zip(names, values, strict=True))
        made.append(Family(str(n), LEVEL * weight / total, names))
    passed, tested = safe(made, errors.__getitem__)
    assert all(errors[name] <= LEVEL * 1.0001 for name in passed) and set(passed) <= set(tested)


def world(rng: np.random.Generator, rows: int, skill: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """(targets [N], logits [N, 2] of each member, whether the original is right [N]): members err on the same hard rows, the more so the less
    skilled they are, and are less sure there."""
    targets = rng.integers(0, 2, rows)
    hard = rng.normal(size=rows)
    logits = []
    for one in skill:
        margin = 2.2 * one - 1.3 * hard + rng.normal(size=rows)
        logits.append(np.stack([-1, 1], 0)[:, None].T * (np.where(targets == 1, 1, -1) * margin)[:, None] / 2)
    return targets, logits[:-1], logits[-1].argmax(1) == targets


def proof(floor: float, right: np.ndarray, targets: np.ndarray, otherwise: float = 1.0) -> Proof:
    """Errors of a relative accuracy on as many rows as `targets` has, from how many rows are answered rightly by only one of the two."""

    def spread(z: np.ndarray) -> tuple[float, float]:
        apart = max(float(((z.argmax(1) == targets) != right).mean()), 1 / len(right))
        here = float(np.sqrt(apart / len(right)) / right.mean())
        return here, here

    return Proof(floor, spread, LEVEL, otherwise)


@given(st.integers(0, 10_000))
def test_the_floor_that_is_told_is_one_that_would_have_passed(seed: int) -> None:
    """Random families and figures: at the told floor the whole procedure passes the candidate; whoever failed is told a lower one than was asked."""
    rng = np.random.default_rng(seed)
    names = list("abcdefgh")
    value, spread = dict(zip(names, rng.uniform(0.93, 1.0, 8), strict=True)), dict(zip(names, rng.uniform(0.0, 0.02, 8), strict=True))
    spread["a"] = 0.0
    cuts = sorted(rng.choice(np.arange(1, 8), 2, replace=False).tolist())
    groups = [names[: cuts[0]], names[cuts[0] : cuts[1]], [*names[cuts[1] :], "b"]]
    shares = rng.dirichlet(np.ones(3))
    families = [Family(str(k), LEVEL * share, tuple(group)) for k, (share, group) in enumerate(zip(shares, groups, strict=True))]

    def job(floor: float) -> Any:
        return SimpleNamespace(work=SimpleNamespace(floor=floor), options=SimpleNamespace(agree=None))

    def point(name: str) -> Any:
        return SimpleNamespace(test=SimpleNamespace(value=value[name], low=value[name] - 1.6449 * spread[name]), agreement=None)

    told = floors(families, lambda name, level: reached(job(0.97), point(name), level))
    def found(floor: float) -> tuple[list[str], list[str]]:
        return safe(families, lambda one: error(job(floor), point(one)))

    assert all(name in found(floor - 1e-9)[0] for name, floor in told.items())
    passed, tested = found(0.97)
    assert all(told[name] < 0.97 for name in tested if name not in passed)


def test_no_floor_of_quality_mends_a_lack_of_agreement() -> None:
    job: Any = SimpleNamespace(options=SimpleNamespace(agree=0.95))
    point: Any = SimpleNamespace(test=SimpleNamespace(value=0.99, low=0.98), agreement=SimpleNamespace(value=0.9, n=400))
    assert reached(job, point, 0.05) == -np.inf
    point.agreement.value = 1.0
    assert 0.979 < reached(job, point, 0.05) < 0.981 and reached(job, point, 0.01) < 0.979


def search_once(seed: int, floor: float) -> tuple[bool, bool]:
    """One simulated search on 900 rows, tested on 900: (something won, and it is truly below the floor)."""
    rng = np.random.default_rng(seed)
    skill = np.array([0.42, 0.58, 0.64, 0.7, 0.7]) + rng.normal(0, 0.02, 5)     # four cheaper members, and the original
    costs = [0.004, 0.02, 0.06, 0.2]
    targets, logits, right = world(rng, 900, skill)
    base = right.mean()
    found = paths(costs, logits, targets, lambda z: float((z.argmax(1) == targets).mean()) / base, proof(floor, right, targets), seed=seed)
    unseen, rows, own = world(rng, 900, skill)
    many, large, theirs = world(np.random.default_rng(10**6 + seed), 40_000, skill)
    parts = {f"{n}.{k}": (path.members, chain) for n, path in enumerate(found) for k, chain in enumerate(path.chains)}

    def error(name: str) -> float:
        members, chain = parts[name]
        correct = assembled(chain.gates, [rows[m] for m in members]).argmax(1) == unseen
        ratio = correct.sum() / own.sum()
        spread = (ratio - accuracy_bound(own, correct, pseudo=1.0)) / Z95
        return float(norm.sf((ratio - floor) / spread))

    families = [Family(str(n), LEVEL * path.share, tuple(f"{n}.{k}" for k in range(len(path.chains)))) for n, path in enumerate(found)]
    passed, _ = safe(families, error)
    if not passed:
        return False, False
    members, chain = min((parts[name] for name in passed), key=lambda p: p[1].cost)
    true = (assembled(chain.gates, [large[m] for m in members]).argmax(1) == many).mean() / theirs.mean()
    return True, bool(true < floor)


def false_wins(count: int) -> tuple[int, int]:
    won = [search_once(seed, 0.97) for seed in range(count)]
    return sum(w for w, _ in won), sum(bad for _, bad in won)


def test_false_wins_of_simulated_searches() -> None:
    """Forty searches: wins are common, false ones no more than 5 % allows (binomial, 1 in 1,000)."""
    won, wrong = false_wins(40)
    assert won >= 12 and wrong <= 7


@pytest.mark.slow
def test_false_wins_of_a_thousand_simulated_searches() -> None:
    won, wrong = false_wins(1000)
    assert won >= 300 and wrong <= 50, f"{wrong} of 1,000 searches named a winner that is below its floor"


def test_paths_run_from_cautious_to_bold_and_cost_what_they_route() -> None:
    targets, logits, _ = world(np.random.default_rng(3), 1500, np.array([0.42, 0.55, 0.6, 0.66, 0.7]))
    costs = [0.004, 0.02, 0.06, 0.2]
    right = logits[-1].argmax(1) == targets
    found = paths(costs, logits, targets, lambda z: float((z.argmax(1) == targets).mean()) / right.mean(), proof(0.97, right, targets))
    assert found and sum(path.share for path in found) == pytest.approx(1) and len({p.members for p in found}) == len(found)
    for path in found:
        prices = [chain.cost for chain in path.chains]
        assert prices == sorted(prices, reverse=True) and len(path.chains) <= 16
        for chain in path.chains:
            rows = [logits[m] for m in path.members]
            owner = owners(chain.gates, rows)
            paid = np.cumsum([costs[m] for m in path.members])[owner]
            assert chain.cost == pytest.approx(paid.mean())
            assert np.allclose(assembled(chain.gates, rows), chain.logits)


def test_a_family_with_a_strong_last_member_comes_before_a_cheaper_guess_that_may_fail() -> None:
    """What decides is the cost at which a family is expected to end, not the cheapest setting that the rows at hand like."""
    targets, logits, right = world(np.random.default_rng(5), 1200, np.array([0.42, 0.62, 0.7, 0.7]))
    costs = [0.005, 0.09, 0.3]
    found = paths(costs, logits, targets, lambda z: float((z.argmax(1) == targets).mean()) / right.mean(), proof(0.97, right, targets, 0.3))
    assert found and found[0].members[-1] == 2 and found[0].promise < 0.3
    first = found[0].chains[0]
    assert first.score - 2.5 * proof(0.97, right, targets).spread(first.logits)[1] > 0.97      # it begins where it surely passes


def test_no_family_is_named_where_none_promises_less_than_what_stands() -> None:
    targets, logits, right = world(np.random.default_rng(6), 600, np.array([0.1, 0.2, 0.7, 0.7]))
    score = lambda z: float((z.argmax(1) == targets).mean()) / right.mean()  # noqa: E731
    assert paths([0.2, 0.25, 0.3], logits, targets, score, proof(0.99, right, targets, 0.3)) == []
