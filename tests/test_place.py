"""Where and when: exact against brute force, certified, and not to be fooled. The reference figures are those of the project's planning notes."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.carbon.hourly import bundled
from fourfold.decisions.carbon_aware import _forecasts, _pricing, validate
from fourfold.decisions.carbon_aware.flow import Flow
from fourfold.decisions.carbon_aware.forecast import Forecast
from fourfold.decisions.carbon_aware.greenest import Greenest
from fourfold.decisions.carbon_aware.home import Home
from fourfold.decisions.carbon_aware.milp import IntegerProgram, Milp, construct
from fourfold.decisions.carbon_aware.online import Online
from fourfold.decisions.carbon_aware.oracle import Oracle
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.decisions.carbon_aware.successive_shortest_paths import SuccessiveShortestPaths
from fourfold.decisions.carbon_aware.threshold import Threshold
from fourfold.decisions.carbon_aware.waitawhile import LetsWaitAwhile
from fourfold.errors import Infeasible, InputError
from fourfold.problem import Budget, Rejected, solve

EVER = 1e6                                                               # s: these budgets end by evaluations, alike on every machine
EXACT = (Flow(), SuccessiveShortestPaths())


# ---- brute force ----


def options(problem: Place, j: int) -> list[list[tuple[int, int, int]]]:
    """Every valid schedule of job j alone, as (job, site, hour) triples."""
    need, sites = int(problem.hours[j]), [r for r in range(len(problem.sites)) if problem.allowed[j, r]]
    found = []
    for hours in itertools.combinations(range(problem.release[j], problem.deadline[j]), need):
        for picked in itertools.product(sites, repeat=need):
            if any(np.isnan(problem.intensity[r, t]) for r, t in zip(picked, hours, strict=True)):
                continue
            if not problem.interruptible[j] and (len(set(picked)) > 1 or hours[-1] - hours[0] != need - 1):
                continue
            found.append([(j, r, t) for r, t in zip(picked, hours, strict=True)])
    return found


def schedule(entries: list[tuple[int, int, int]]) -> JobHours:
    return JobHours(*(np.array(column, int) for column in zip(*entries, strict=True)))


def brute(problem: Place) -> float:
    """The least cost of any valid schedule, by looking at all of them; inf where there is none."""
    every = [sorted(((problem.cost(schedule(option)), option) for option in options(problem, j)), key=lambda pair: pair[0])
             for j in range(len(problem.names))]
    best, load = np.inf, np.zeros(problem.intensity.shape)

    def descend(j: int, paid: float) -> None:
        nonlocal best
        if j == len(every):
            best = min(best, paid)
            return
        for cost, option in every[j]:
            if paid + cost + sum(each[0][0] for each in every[j + 1:] if each) >= best:
                return
            cells = tuple(np.array([(r, t) for _, r, t in option]).T)
            load[cells] += problem.width[j]
            if (load[cells] <= problem.capacity[cells]).all():
                descend(j + 1, paid + cost)
            load[cells] -= problem.width[j]

    if all(every):
        descend(0, 0.0)
    return float(best)


def tiny(seed: int, **changes: Any) -> Place:
    """At most 5 jobs, 3 sites and 6 hours; capacities that may or may not suffice."""
    dice = np.random.default_rng(seed)
    jobs, sites, total = int(dice.integers(1, 5)), int(dice.integers(1, 4)), int(dice.integers(2, 7))
    hours = dice.integers(1, min(3, total) + 1, jobs)
    release = np.array([dice.integers(0, total - d + 1) for d in hours])
    deadline = np.array([dice.integers(r + d, total + 1) for r, d in zip(release, hours, strict=True)])
    intensity = dice.integers(1, 50, (sites, total)) * 10.0              # ties on purpose
    intensity[dice.random((sites, total)) < 0.05] = np.nan
    allowed = dice.random((jobs, sites)) < 0.8
    allowed[np.arange(jobs), dice.integers(0, sites, jobs)] = True
    given: dict[str, Any] = dict(
        sites=tuple("abc"[:sites]), intensity=intensity, names=tuple(f"j{j}" for j in range(jobs)), kw=dice.choice([1.0, 2.0, 2.6], jobs),
        hours=hours, release=release, deadline=deadline, home=dice.integers(0, sites, jobs), pue=dice.uniform(1.0, 1.6, sites), allowed=allowed,
        capacity=dice.integers(0, 3, (sites, total)) + (dice.random() < 0.5))
    return Place(**{**given, **changes})


def answered(problem: Place, solver: Any) -> float:
    try:
        return solve(problem, solver, Budget(EVER, 5_000)).cost
    except Infeasible:
        return np.inf


@pytest.mark.parametrize("seed", range(220))
def test_flow_equals_brute_force(seed: int) -> None:
    problem = tiny(seed, interruptible=True)
    best = brute(problem)
    for solver in EXACT:
        assert answered(problem, solver) == pytest.approx(best, rel=1e-12, abs=1e-12)
    if np.isfinite(best):
        found = solve(problem, SuccessiveShortestPaths())
        assert found.bound == pytest.approx(found.cost, rel=1e-9, abs=1e-12), "a flow has no gap"


@pytest.mark.parametrize("seed", range(220))
def test_pieces_equal_brute_force(seed: int) -> None:
    problem = tiny(seed, interruptible=False)
    assert answered(problem, Milp()) == pytest.approx(brute(problem), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(120))
def test_widths_starts_checkpoints_and_moves_equal_brute_force(seed: int) -> None:
    dice = np.random.default_rng(seed)
    jobs = len(tiny(seed).names)
    problem = tiny(seed, interruptible=dice.random(jobs) < 0.6, width=dice.integers(1, 3, jobs), startup_kwh=dice.choice([0, 0.3], jobs),
                   checkpoint_kwh=dice.choice([0, 0.2], jobs), data_gb=dice.choice([0, 5.0], jobs), kwh_per_gb=0.05, egress=0.01,
                   price=0.1, money=float(dice.random() < 0.5) * 2.0)
    best = brute(problem)
    assert answered(problem, Milp()) == pytest.approx(best, rel=1e-9, abs=1e-12)
    if np.isfinite(best):
        found = solve(problem, Milp(), Budget(EVER, 5_000))
        proof = validate.certify(problem, found.answer, found.evidence["mu"])
        assert validate.verify(problem, found.answer, proof) == [] and proof.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_each_job_alone_is_priced_exactly(seed: int) -> None:
    """The pricing of free, whole and paying jobs against all their schedules, and the checker's own arithmetic against both."""
    dice = np.random.default_rng(seed)
    jobs = len(tiny(seed).names)
    problem = tiny(seed, interruptible=dice.random(jobs) < 0.6, startup_kwh=dice.choice([0, 0.3], jobs), checkpoint_kwh=dice.choice([0, 0.2], jobs),
                   data_gb=dice.choice([0, 5.0], jobs), kwh_per_gb=0.05, capacity=np.inf)
    alone = [min((problem.cost(schedule(option)) for option in options(problem, j)), default=np.inf) for j in range(jobs)]
    if not np.isfinite(alone).all():
        with pytest.raises(Infeasible, match="finds no"):
            _pricing.separate(problem)
        return
    cost, found = _pricing.separate(problem)
    assert cost == pytest.approx(alone, rel=1e-12, abs=1e-12) and not problem.violations(found)
    zero = np.zeros(problem.intensity.shape)
    lam = np.array([validate._price(problem, j, zero) for j in range(jobs)])
    assert validate.lower(problem, lam, zero) == pytest.approx(sum(alone), rel=1e-12, abs=1e-12)


# ---- the reference instance ----


@cache
def trace() -> tuple[tuple[str, ...], np.ndarray]:
    """The eight balancing areas of 2022, gaps filled linearly."""
    hours = bundled("eia-2022", fill=0)
    names, values = hours.names, hours.values.copy()
    for row in values:
        gaps = np.isnan(row)
        row[gaps] = np.interp(np.flatnonzero(gaps), np.flatnonzero(~gaps), row[~gaps])
    return names, values


def reference(capacity: float = np.inf, interruptible: bool = True) -> Place:
    """150 jobs in May 2022."""
    names, values = trace()
    dice, n = np.random.default_rng(0), 150
    hours, slack, release = dice.integers(2, 25, n), dice.choice([0, 12, 24, 72], n), np.sort(dice.integers(0, 575, n))
    kw, home = dice.choice([2.6, 5.2, 10.4], n), dice.integers(0, 8, n)
    assert hours[:5].tolist() == [21, 16, 13, 8, 9] and hours.sum() == 2017
    return Place(names, values[:, 2880:3552], tuple(f"j{j}" for j in range(n)), kw, hours, release, np.minimum(release + hours + slack, 672), home,
                 pue=1.1, capacity=capacity, interruptible=interruptible)


@pytest.mark.parametrize("solver, interruptible, kg", [
    (None, True, 4796.65202016), (Home(), False, 4564.66061051), (Home(), True, 4440.28022581), (Threshold(), True, 4512.15271507),
    (LetsWaitAwhile(0.0), False, 4564.66061051), (Greenest(), True, 355.01358178), (Oracle(), False, 346.4519344), (Oracle(), True, 344.90877564),
])
def test_policies_of_the_reference_table(solver: Any, interruptible: bool, kg: float) -> None:
    problem = reference(interruptible=interruptible)
    cost = solve(problem, solver).cost if solver else problem.cost(problem.baseline())
    assert cost == pytest.approx(kg, rel=1e-6)


@pytest.mark.parametrize("solver", EXACT, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("capacity, kg", [(1000, 344.9088), (10, 344.9942), (5, 346.9331), (3, 388.1103)])
def test_flows_of_the_reference_table(capacity: int, kg: float, solver: Any) -> None:
    problem = reference(capacity)
    found = solve(problem, solver)
    assert round(found.cost, 4) == kg and found.gap is not None and found.gap <= 1e-9
    proof = validate.certify(problem, found.answer, found.evidence["mu"])
    assert proof.gap <= 1e-9 and validate.verify(problem, found.answer, proof) == []


def test_without_the_hydro_region_the_factor_falls_to_about_two() -> None:
    problem = reference()
    others = np.tile(np.array([name != "BPAT" for name in problem.sites]), (150, 1))
    assert solve(problem.replace(allowed=others), Greenest()).cost == pytest.approx(2481.3, rel=1e-4)
    assert solve(problem.replace(allowed=others, interruptible=np.zeros(150, bool)), Oracle()).cost == pytest.approx(2136.0, rel=1e-4)


def test_pieces_of_the_reference_have_a_bound_and_a_gap() -> None:
    problem = reference(3, interruptible=False)
    mu = IntegerProgram(problem).prices(EVER)
    found = construct(problem, mu, Budget(EVER, 300), 0)
    assert found is not None and not problem.violations(found)
    proof = validate.certify(problem, found, mu)
    assert proof.bound == pytest.approx(421.286, rel=1e-5) and 0 < proof.gap < 0.2
    assert validate.verify(problem, found, proof) == []


def test_pieces_of_a_part_of_the_reference_are_planned_alike_every_time() -> None:
    problem = reference(1, interruptible=False).only(np.arange(16))
    found, again = (solve(problem, Milp(), Budget(EVER, 20)) for _ in range(2))
    assert found.gap is not None and found.gap < 0.1 and found.cost == again.cost and found.bound == again.bound
    assert validate.verify(problem, found.answer, validate.certify(problem, found.answer, found.evidence["mu"])) == []


@pytest.mark.slow
def test_pieces_of_the_whole_reference_are_planned_within_two_percent() -> None:
    problem = reference(3, interruptible=False)
    found = solve(problem, Milp(), Budget(EVER, 200))
    assert found.bound == pytest.approx(421.286, rel=1e-5) and found.gap is not None and found.gap < 0.02


@pytest.mark.parametrize("seed", range(6))
def test_what_is_only_compared_with_stops_near_the_bound(seed: int) -> None:
    dice, n, total = np.random.default_rng(seed), 8, 40
    hours, slack = dice.integers(1, 9, n), dice.choice([0, 6, 12, 30], n)
    release = dice.integers(0, total - np.minimum(hours + slack, total) + 1)
    problem = Place(("a", "b", "c"), dice.uniform(20, 600, (3, total)), tuple(map(str, range(n))), dice.uniform(1, 9, n), hours, release,
                    np.minimum(release + hours + slack, total), dice.integers(0, 3, n), pue=1.1, capacity=2, width=dice.integers(1, 3, n),
                    data_gb=dice.choice([0, 400.0], n), startup_kwh=dice.choice([0, 0.3], n), kwh_per_gb=0.01)
    try:
        best = solve(problem, Milp(), Budget(EVER, 20_000))
    except Infeasible:
        with pytest.raises(Infeasible):
            solve(problem, Milp(0.01), Budget(EVER, 20_000))
        return
    rough = solve(problem, Milp(0.01), Budget(EVER, 20_000))
    assert best.cost <= rough.cost * (1 + 1e-9) and rough.cost <= best.cost * 1.0101
    assert best.bound is not None and best.bound <= best.cost * (1 + 1e-9)


def test_on_a_machine_too_slow_for_the_relaxation_there_is_still_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    # as where HiGHS runs out of its seconds
    monkeypatch.setattr(IntegerProgram, "prices", lambda self, seconds: np.zeros(self.problem.intensity.shape))
    problem = reference(1, interruptible=False).only(np.arange(25))
    found = solve(problem, Milp(), Budget(EVER, 400))
    assert found.gap is not None and found.gap < 1 and not problem.violations(found.answer)


@pytest.mark.parametrize("error, most", [(0.2, 0.05), (0.4, 0.30)])
def test_shrinking_keeps_the_regret_of_forecasts_small(error: float, most: float) -> None:
    problem = reference(10)
    best = solve(problem, SuccessiveShortestPaths()).cost
    regret = [solve(problem, Forecast(error), seed=seed).cost / best - 1 for seed in range(5)]
    assert np.mean(regret) < most
    if error == 0.4:
        plain = [solve(problem, Forecast(error, shrink=False), seed=seed).cost / best - 1 for seed in range(2)]
        assert min(plain) > 1, "without shrinking, the winner's curse multiplies the emissions"


def test_forecast_errors_persist_and_have_the_size_asked_for() -> None:
    truth = np.full((2, 20_000), 500.0)
    noise = _forecasts.noisy(truth, 0.1, seed=1) - truth
    assert noise.std() == pytest.approx(50, rel=0.1)
    assert np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1] == pytest.approx(0.95, abs=0.01)
    issued = np.array([_forecasts.noisy(truth[:, :60], 0.1, seed=s, start=10)[:, 10:] - 500 for s in range(200)])
    spread = issued.std(axis=(0, 1))
    assert spread[0] == 0 and spread[1] < spread[10] < spread[45]
    assert (_forecasts.noisy(truth, 2.0, seed=1) >= 1).all()


# ---- metamorphic ----


def best(problem: Place) -> float:
    return answered(problem, SuccessiveShortestPaths())


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_more_room_time_or_places_never_costs_more(seed: int) -> None:
    problem = tiny(seed, interruptible=True)
    cost = best(problem)
    total = problem.intensity.shape[1]
    assert best(problem.replace(capacity=problem.capacity + 1)) <= cost + 1e-9
    assert best(problem.replace(deadline=np.minimum(problem.deadline + 1, total))) <= cost + 1e-9
    assert best(problem.replace(allowed=np.ones_like(problem.allowed))) <= cost + 1e-9


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(1, 500))
def test_scaling_shifting_and_renaming(seed: int, factor: float, extra: float) -> None:
    problem = tiny(seed, interruptible=True, pue=1.25)
    cost = best(problem)
    if not np.isfinite(cost):
        return
    assert best(problem.replace(intensity=problem.intensity * factor)) == pytest.approx(cost * factor, rel=1e-9)
    energy = 1.25 * float((problem.kw * problem.hours).sum())
    assert best(problem.replace(intensity=problem.intensity + extra)) == pytest.approx(cost + extra * energy / 1000, rel=1e-9)
    turned = np.random.default_rng(seed).permutation(len(problem.sites))
    moved = problem.replace(sites=tuple(problem.sites[r] for r in turned), intensity=problem.intensity[turned], capacity=problem.capacity[turned],
                            allowed=problem.allowed[:, turned], home=np.argsort(turned)[problem.home])
    assert best(moved) == pytest.approx(cost, rel=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_without_capacity_a_flow_is_the_sum_of_the_least_hours(seed: int) -> None:
    problem = tiny(seed, interruptible=True, capacity=np.inf)
    least = np.where(np.isnan(problem.intensity), np.inf, problem.intensity * problem.pue)
    cost = 0.0
    for j in range(len(problem.names)):
        window = least[problem.allowed[j]][:, problem.release[j]: problem.deadline[j]].min(axis=0)
        cost += problem.kw[j] * np.sort(window)[: problem.hours[j]].sum() / 1000
    assert best(problem) == pytest.approx(float(cost), rel=1e-9)


def test_of_equal_hours_no_more_are_taken_than_asked_for() -> None:
    flat = Place(("a",), np.full((1, 10), 100.0), ("j",), np.array([1.0]), np.array([3]), np.array([0]), np.array([10]))
    assert len(solve(flat, Home()).answer) == 3 and len(solve(flat, Threshold()).answer) == 3


@pytest.mark.parametrize("seed", range(8))
def test_paths_and_simplex_agree_where_it_is_crowded(seed: int) -> None:
    dice, n, total = np.random.default_rng(seed), 60, 120
    hours, slack = dice.integers(1, 9, n), dice.choice([0, 6, 12, 80], n)
    release = dice.integers(0, total - hours - slack + 1)
    problem = Place(("a", "b", "c"), dice.uniform(20, 600, (3, total)), tuple(map(str, range(n))), dice.uniform(1, 9, n), hours, release,
                    release + hours + slack, dice.integers(0, 3, n), pue=1.1, capacity=dice.integers(1, 4, (3, total)), width=2 if seed % 2 else 1)
    costs = [answered(problem, solver) for solver in EXACT]
    assert costs[0] == pytest.approx(costs[1], rel=1e-9)
    if np.isfinite(costs[0]):
        assert solve(problem, SuccessiveShortestPaths()).gap == pytest.approx(0, abs=1e-9)


# ---- validators ----


@settings(max_examples=80)
@given(st.integers(0, 10_000), st.integers(0, 5), st.data())
def test_the_validator_names_every_kind_of_breach(seed: int, kind: int, data: Any) -> None:
    """One breach is put into a valid schedule; the validator must see it."""
    problem = Place.sample(seed)
    good = problem.baseline()
    assert problem.violations(good) == []
    i = data.draw(st.integers(0, len(good) - 1))
    job, site, hour = good.job.copy(), good.site.copy(), good.hour.copy()
    if kind == 0:
        keep = np.arange(len(good)) != i
        job, site, hour, word = job[keep], site[keep], hour[keep], "needs"
    elif kind == 1:
        hour[i], word = problem.deadline[job[i]], "after its deadline"
        if hour[i] >= problem.intensity.shape[1]:
            word = "do not all exist"
    elif kind == 2:
        job, site, hour, word = np.append(job, job[i]), np.append(site, site[i]), np.append(hour, hour[i]), "a second time"
    elif kind == 3:
        closed = problem.allowed.copy()
        closed[job[i], site[i]] = False
        if not closed[job[i]].any():
            return
        problem, word = problem.replace(allowed=closed), "not allowed"
    elif kind == 4:
        room = problem.capacity.copy()
        room[site[i], hour[i]] = 0
        problem, word = problem.replace(capacity=room), "more than its capacity"
    else:
        gone = problem.intensity.copy()
        gone[site[i], hour[i]] = np.nan
        problem, word = problem.replace(intensity=gone), "no intensity is known"
    assert any(word in sentence for sentence in problem.violations(JobHours(job, site, hour)))


def test_a_piece_in_two_is_seen() -> None:
    problem = Place(("a", "b"), np.ones((2, 5)), ("j",), np.array([1.0]), np.array([2]), np.array([0]), np.array([5]), interruptible=False)
    for entries in ([(0, 0, 0), (0, 0, 2)], [(0, 0, 0), (0, 1, 1)]):
        assert problem.violations(schedule(entries)) == ["job j may not pause or move, and runs in 2 pieces"]


@pytest.mark.parametrize("changes, words", [
    ({"pue": 0.9}, "PUE of a in hour 0 is 0.9"), ({"intensity": -np.ones((2, 5))}, "intensity of a in hour 0 is -1"),
    ({"kw": np.array([-1.0])}, "kw of job j is -1"), ({"capacity": -1}, "capacity of a"), ({"hours": np.array([2.5])}, "hours must be whole"),
    ({"hours": np.array([9])}, "needs 9 h, and the horizon has 5 h: 4 h too few"), ({"deadline": np.array([1])}, "has 1 h, 1 h too few"),
    ({"home": 7}, "home of job j"), ({"allowed": np.zeros((1, 2), bool)}, "may run nowhere"), ({"pue": np.ones(3)}, "must have the shape"),
    ({"deadline": np.array([7])}, "outside the horizon"), ({"price": -1.0, "money": 1.0, "carbon": 0.0}, "must not be negative"),
    ({"width": 0}, "width of job j is 0"), ({"intensity": np.ones((3, 5))}, "must be \\[sites, hours\\]"),
])
def test_impossible_problems_are_refused_in_words(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = dict(sites=("a", "b"), intensity=np.ones((2, 5)), names=("j",), kw=np.array([1.0]), hours=np.array([2]),
                                 release=np.array([0]), deadline=np.array([5]))
    with pytest.raises((InputError, Infeasible), match=words):
        Place(**{**given, **changes})


def test_the_crowd_that_cannot_fit_is_named() -> None:
    problem = Place(("a",), np.ones((1, 6)), ("x", "y", "z"), np.ones(3), np.array([2, 2, 1]), np.array([0, 0, 4]), np.array([3, 3, 6]), capacity=1)
    with pytest.raises(Infeasible, match="x, y need 4 job-hours, and in hours 0 to 2 there is room for 3: 1 too few"):
        solve(problem, SuccessiveShortestPaths())


def test_a_schedule_is_three_lists_of_whole_numbers() -> None:
    with pytest.raises(InputError, match="three lists"):
        JobHours(np.zeros(2, int), np.zeros(1, int), np.zeros(2, int))
    with pytest.raises(InputError, match="whole"):
        JobHours(np.zeros(2), np.zeros(2), np.zeros(2))


# ---- the certificate ----


@settings(max_examples=60)
@given(st.integers(0, 3_000), st.data())
def test_any_single_change_voids_the_certificate(tmp_path_factory: Any, seed: int, data: Any) -> None:
    problem = Place.sample(seed)
    found = solve(problem, Milp(), Budget(EVER, 2_000))
    proof = validate.certify(problem, found.answer, found.evidence["mu"])
    assert validate.verify(problem, found.answer, proof) == []
    answer = found.answer
    i = data.draw(st.integers(0, len(answer) - 1))
    for name in ("job", "site", "hour"):
        parts = {part: getattr(answer, part).copy() for part in ("job", "site", "hour")}
        parts[name][i] += data.draw(st.sampled_from([-1, 1]))
        assert validate.verify(problem, JobHours(**parts), proof)
    trace = problem.intensity.copy()
    r, t = data.draw(st.integers(0, trace.shape[0] - 1)), data.draw(st.integers(0, trace.shape[1] - 1))
    trace[r, t] = np.nextafter(trace[r, t], 1e9)
    said = validate.verify(problem.replace(intensity=trace), answer, proof)
    assert any("intensity is not what was certified" in sentence for sentence in said)


def test_false_claims_are_seen_through() -> None:
    problem = reference(3)
    found = solve(problem, SuccessiveShortestPaths())
    proof = validate.certify(problem, found.answer, found.evidence["mu"])

    def wrong(**changes: Any) -> str:
        return " ".join(validate.verify(problem, found.answer, validate.Certificate(**{**vars(proof), **changes})))

    assert "prove a bound of" in wrong(bound=proof.bound * 1.001, value=proof.value)
    assert "costs" in wrong(value=proof.value * 0.999)
    assert "prove a bound of" in wrong(mu=proof.mu * 2)
    assert "negative" in wrong(mu=-proof.mu)
    assert "negative" in wrong(lam=np.full_like(proof.lam, np.nan))
    assert "gap is" in wrong(gap=0.5)
    assert "speaks of marginal" in wrong(signal="marginal")
    assert "shape" in wrong(lam=proof.lam[1:])
    zero = validate.certify(problem, found.answer)
    assert validate.verify(problem, found.answer, zero) == [] and zero.bound < proof.bound, "poor prices prove a poorer bound, honestly"


def test_files_come_back_and_damage_is_named(tmp_path: Path) -> None:
    from fourfold.errors import ArtefactError

    problem = Place.sample(5)
    found = solve(problem, Milp())
    path = validate.save(tmp_path, problem, found.answer, validate.certify(problem, found.answer, found.evidence["mu"]))
    assert validate.verify(*validate.load(path)) == [] == validate.verify(*validate.load(tmp_path))
    text = (tmp_path / "schedule.csv").read_text().splitlines()
    (tmp_path / "schedule.csv").write_text("\n".join(text[:-1]))
    assert validate.verify(*validate.load(path))
    (tmp_path / "schedule.csv").write_text("job,site,hour\nnobody,nowhere,1\n")
    with pytest.raises(ArtefactError, match="schedule.csv"):
        validate.load(path)
    (tmp_path / "problem.npz").write_bytes(b"PK")
    with pytest.raises(ArtefactError, match="problem.npz"):
        validate.load(path)


# ---- the rolling horizon ----


@pytest.mark.parametrize("seed", range(150))
def test_online_keeps_every_deadline_against_an_adversary(seed: int) -> None:
    """Forecasts that flip between nothing, everything and nonsense from hour to hour; `solve` rejects any missed deadline or overfull site."""
    problem = tiny(seed) if seed % 3 else tiny(seed, interruptible=np.random.default_rng(seed).random(len(tiny(seed).names)) < 0.5)
    dice = np.random.default_rng(seed)

    def forecasts(now: int) -> np.ndarray:
        return dice.choice([0.0, 1e9, np.nan, -50.0, np.inf, 300.0], problem.intensity.shape)

    possible = np.isfinite(answered(problem, Milp()))
    if possible:
        assert solve(problem, Online(forecasts), Budget(EVER), seed).cost >= 0
    else:
        with pytest.raises(Infeasible):
            solve(problem, Online(forecasts), Budget(EVER), seed)


def test_online_with_late_news_keeps_what_it_promised() -> None:
    problem = reference(5).only(np.arange(40))
    problem = problem.replace(intensity=problem.intensity[:, :260], pue=1.1, price=0.0, capacity=5)
    found = solve(problem, Online(known=problem.release, every=6, error=0.2))
    assert found.cost / solve(problem, SuccessiveShortestPaths()).cost < 1.3
    assert "replans" in found.note


def test_online_that_knows_the_hours_is_exact() -> None:
    problem = reference(3).only(np.arange(20))
    found = solve(problem, Online(error=0.0, every=5))
    assert found.cost == pytest.approx(solve(problem, SuccessiveShortestPaths()).cost, rel=1e-9)


def test_a_liar_about_pauses_is_caught() -> None:
    problem = Place(("a",), np.array([[100.0, 500.0, 100.0]]), ("j",), np.ones(1), np.array([2]), np.array([0]), np.array([3]), interruptible=False)

    class Pausing(Home):
        def solve(self, problem: Place, budget: Budget, seed: int = 0) -> Any:
            return super().solve(problem.replace(interruptible=True), budget, seed)

    with pytest.raises(Rejected, match="may not pause or move"):
        solve(problem, Pausing())


def test_very_long_windows_are_looked_at_in_part_and_proven_in_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of weeks: a few hours a job, guessed and then added where prices call for them, reach the optimum of all hours."""
    from fourfold.decisions.carbon_aware import successive_shortest_paths

    names, values = trace()
    dice, n = np.random.default_rng(3), 60
    hours, total = dice.integers(1, 20, n), 1500
    release = dice.integers(0, 300, n)
    deadline = np.minimum(release + hours + np.where(dice.random(n) < 0.8, 1100, 24), total)
    problem = Place(names, values[:, :total], tuple(map(str, range(n))), dice.uniform(1, 9, n), hours, release, deadline, capacity=1, pue=1.1)
    whole = solve(problem, SuccessiveShortestPaths())
    monkeypatch.setattr(successive_shortest_paths, "_CELLS", 0)
    few = solve(problem, SuccessiveShortestPaths())
    assert "hours a job" in few.note and few.cost == pytest.approx(whole.cost, rel=1e-9) and few.gap is not None and few.gap <= 1e-9
    proof = validate.certify(problem, few.answer, few.evidence["mu"])
    assert validate.verify(problem, few.answer, proof) == [] and proof.gap <= 1e-9
