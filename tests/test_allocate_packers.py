"""The packers of `allocate`: what is packed is valid, what is refuted has no packing, and neither names nor order of the buffers matter."""

from __future__ import annotations

import contextlib
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.allocate import _backtrack as backtrack
from fourfold.decisions.allocate import _canonical as canonical
from fourfold.decisions.allocate import _learn, _ranked, local_search, telamalloc
from fourfold.decisions.allocate._form import packing
from fourfold.decisions.allocate._place import place
from fourfold.decisions.allocate._restarts import Restarts, luby
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.problem import Allocate
from fourfold.decisions.allocate.telamalloc import TelaMalloc
from fourfold.errors import Infeasible
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.packings import carved, perfect, scattered

PACKERS = ("minimalloc", "exact", "portfolio")


def buffers(lives: tuple[np.ndarray, np.ndarray, np.ndarray, int], capacity: int | None = None) -> Buffers:
    lower, upper, size, room = lives
    return Buffers(tuple(f"b{i}" for i in range(len(lower))), lower, upper, size, banks=np.array([capacity or room]))


def ask(name: str, problem: Allocate, seconds: float = 60.0, evaluations: int = 2000, seed: int = 0) -> np.ndarray:
    return solve(problem, technique(f"allocate/{name}")(), Budget(seconds, evaluations), seed).answer


def least(lower: np.ndarray, upper: np.ndarray, size: np.ndarray) -> int:
    """The least height by every order of first fit: some order of an optimal packing's offsets gives it."""
    best = int(size.sum())
    for order in itertools.permutations(range(len(size))):
        at = np.zeros(len(size), np.int64)
        for rank, i in enumerate(order):
            near = [j for j in order[:rank] if lower[j] < upper[i] and lower[i] < upper[j]]
            for low in sorted({0, *(int(at[j] + size[j]) for j in near)}):
                if all(at[j] + size[j] <= low or low + size[i] <= at[j] for j in near):
                    at[i] = low
                    break
        best = min(best, int((at + size).max()))
    return best


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("seed", range(4))
def test_perfect_packings_are_packed_without_waste(name: str, seed: int) -> None:
    problem = Allocate(buffers(perfect(seed, 20 + 5 * seed)))
    assert problem.violations(ask(name, problem)) == []


@pytest.mark.parametrize("name", PACKERS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_least_height_is_found_and_one_byte_less_is_never_packed(name: str, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 6))
    lower = np.array(data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count)))
    upper = lower + np.array(data.draw(st.lists(st.integers(1, 5), min_size=count, max_size=count)))
    size = np.array(data.draw(st.lists(st.integers(1, 7), min_size=count, max_size=count)))
    best = least(lower, upper, size)
    problem = Allocate(Buffers(tuple(map(str, range(count))), lower, upper, size), decide=False)
    assert problem.cost(ask(name, problem)) == best
    with pytest.raises(Infeasible):
        ask(name, Allocate(buffers((lower, upper, size, best - 1))) if best > 1 else Allocate(buffers((lower, upper, size + 1, 1))))


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("kind", [carved, scattered])
def test_order_and_names_of_the_buffers_do_not_matter_for_what_is_found(name: str, kind: object) -> None:
    lower, upper, size, room = kind(3, 40)                              # type: ignore[operator]
    first = Allocate(buffers((lower, upper, size, room)), decide=False)
    turn = np.random.default_rng(0).permutation(len(lower))
    second = Allocate(buffers((3 * lower[turn] + 7, 3 * upper[turn] + 7, size[turn], room)), decide=False)
    heights = [problem.cost(ask(name, problem)) for problem in (first, second)]
    assert heights[0] == heights[1]


@pytest.mark.parametrize("name", PACKERS)
def test_alike_for_a_seed_and_the_clock_is_respected(name: str) -> None:
    problem = Allocate(buffers(perfect(5, 60)))
    assert (ask(name, problem, seed=3) == ask(name, problem, seed=3)).all()
    hard = Allocate(buffers(perfect(11, 400)))
    ask(name, problem, seed=3)
    try:
        found = solve(hard, technique(f"allocate/{name}")(), Budget(0.5, 10**9))
        assert hard.violations(found.answer) == []
    except Infeasible as none:
        assert "unknown" in str(none) and none.front is not None


def test_the_search_stops_when_told_and_at_its_limit() -> None:
    form, _ = packing(buffers(perfect(1, 120)).parts())
    runs = Restarts(form)
    assert runs.run(int(form.size.sum()), 10**6, np.ones(1, np.int64)) == canonical.STOPPED
    rank = np.arange(len(form.size))
    assert canonical.search(form, runs.state, rank, 1024, 50, np.zeros(1, np.int64)) in (canonical.LIMIT, canonical.PACKED)
    assert runs.state.at[canonical.VISITED] <= 51


@pytest.mark.parametrize("seed", range(8))
def test_a_search_that_ends_empty_is_right(seed: int) -> None:
    """A perfect packing of one unit less fails; of what is there, every capacity from the peak on is packed (300 small ones)."""
    for case in range(40 * seed, 40 * seed + 40):
        lives = perfect(case, 6 + case % 20, 4 + case % 9, 1 << 14)
        form, _ = packing(buffers(lives).parts())
        runs, stop = Restarts(form, case), np.zeros(1, np.int64)
        full = int(buffers(lives).parts().room[0])
        assert runs.run(full, 10**6, stop) == canonical.PACKED
        assert runs.run(full - 1, 10**6, stop) == canonical.EXHAUSTED


@pytest.mark.parametrize("policy", [backtrack.FIXED, backtrack.RANDOM, backtrack.LEARNED])
def test_every_policy_of_backtracking_packs_what_is_moderately_tight(policy: int) -> None:
    problem = Allocate(buffers(carved(1, 120, 0.92)))
    found = solve(problem, TelaMalloc(policy), Budget(60, 200_000))
    assert problem.violations(found.answer) == []


def test_ranges_are_those_of_a_count_from_scratch_and_come_back_when_levels_are_undone() -> None:
    """After each of 40 placements: an unplaced buffer's range begins and ends where it first meets nothing that stands."""
    lives = carved(2, 60, 0.95)
    rectangles = buffers(lives).parts()
    form, _ = packing(rectangles)
    cap = int(rectangles.room[0])
    guide = backtrack.guide(form, cap)
    state = backtrack.levels(form, guide)
    backtrack.reset(form, guide, state, cap)
    begun = state.least.copy(), state.most.copy(), state.rest.copy()
    for b in np.random.default_rng(0).permutation(len(form.size))[:40]:
        if state.least[b] > state.most[b] or not backtrack.put(form, guide, state, int(b), cap):
            break
        standing = np.flatnonzero(state.depth >= 0)
        for o in np.flatnonzero(state.depth < 0):
            near = [i for i in standing if form.low[i] < form.high[o] and form.low[o] < form.high[i]]
            free = [x for x in range(cap - int(form.size[o]) + 1)
                    if all(x + form.size[o] <= state.offset[i] or state.offset[i] + form.size[i] <= x for i in near)]
            assert (free[0], free[-1]) == (state.least[o], state.most[o])
    assert state.at[backtrack.LEVEL] > 5
    backtrack.back_to(form, state, 0)
    for now, before in zip((state.least, state.most, state.rest), begun, strict=True):
        assert (now == before).all()


def test_stored_trees_are_small_plain_arrays_and_learning_makes_such() -> None:
    stored = telamalloc.trees()
    assert len(stored.root) > 10 and stored.feature.max() < backtrack.FEATURES
    rows = [row for i, lives in enumerate(_learn.instances(6, 1)) for row in _learn.examples(lives, i)]
    assert rows and all(len(x) == len(y) for x, y in rows)
    assert all((np.diff(y.astype(int)) >= 0).all() for _, y in rows)    # what can be completed can be with less in place


@pytest.mark.parametrize("seed", range(3))
def test_local_search_never_rises_and_lowers_a_poor_packing(seed: int) -> None:
    lower, upper, size, _ = carved(seed, 150, 0.9)
    problem = Allocate(Buffers(tuple(map(str, range(len(size)))), lower, upper, size))
    rectangles = problem.buffers.parts()
    poor = place(rectangles, np.random.default_rng(seed).permutation(len(size)))
    better = local_search.improve(problem, poor, Budget(60, 400), np.zeros(1, np.int64), seed)
    assert problem.violations(rectangles.offsets(better)) == []
    assert rectangles.height(better) < rectangles.height(poor)


def test_luby_series() -> None:
    assert [luby(i) for i in range(1, 16)] == [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]


@pytest.mark.parametrize("name", ["minimalloc", "portfolio", "exact"])
def test_a_hopeless_question_ends_with_its_budget(name: str) -> None:
    """Zero slack and hundreds of buffers: packed or not, it ends soon after the 3 s, on a machine that others share, and not after 10⁹ nodes."""
    begun = time.monotonic()
    with contextlib.suppress(Infeasible):
        solve(Allocate(buffers(perfect(13, 900))), technique(f"allocate/{name}")(), Budget(3.0, 10**9))
    assert time.monotonic() - begun < 120


@pytest.mark.parametrize("loaded", [False, True])
def test_the_search_with_cheap_nodes_is_right(loaded: bool) -> None:
    """Of 200 small perfect packings it packs each, within one unit less none, and it looks at the flag."""
    for case in range(200):
        rectangles = buffers(perfect(case, 6 + case % 20, 4 + case % 9, 1 << 14)).parts()
        form, _ = packing(rectangles)
        made = _ranked.ranked(form, np.random.default_rng(case).permutation(len(form.size)), loaded)
        stack, full, stop = _ranked.stack(form), int(rectangles.room[0]), np.zeros(1, np.int64)
        assert _ranked.search(made, stack, full, 10**7, stop) == canonical.PACKED
        at, owner = stack.offset, made.order
        for i, b in enumerate(owner):
            assert 0 <= at[i] <= full - form.size[b]
            for j in range(i):
                o = owner[j]
                apart = at[i] >= at[j] + form.size[o] or at[j] >= at[i] + form.size[b]
                assert apart or form.low[b] >= form.high[o] or form.low[o] >= form.high[b]
        assert _ranked.search(made, stack, full - 1, 10**7, stop) == canonical.EXHAUSTED
        assert _ranked.search(made, stack, full, 10**7, np.ones(1, np.int64)) == canonical.STOPPED
