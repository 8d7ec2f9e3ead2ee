"""The question allocate: the validator against a quadratic brute force, bounds that hold, and answers that do not depend on how one counts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.allocate._place import born, place
from fourfold.decisions.allocate._sources import of_graph
from fourfold.decisions.allocate.bound import bound, contradiction, impossible, peak
from fourfold.decisions.allocate.greedy import Greedy
from fourfold.decisions.allocate.instance import FREE, Buffers
from fourfold.decisions.allocate.problem import Allocate, invented
from fourfold.decisions.allocate.validate import violations
from fourfold.errors import Infeasible, InputError
from fourfold.graph import ELEMENTWISE, VIEW, Builder, Graph
from fourfold.problem import Budget, solve


def buffers(rows: list[tuple[int, int, int]], **more: Any) -> Buffers:
    """Buffers b0, b1 … from (lower, upper, size)."""
    lower, upper, size = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return Buffers(tuple(f"b{i}" for i in range(len(rows))), lower, upper, size, **more)


@st.composite
def asked(draw: st.DrawFn) -> Buffers:
    """Up to 7 buffers with everything that there is: alignments, fixed offsets, gaps with windows, aliases, one or two banks or none."""
    n = draw(st.integers(1, 7))
    lower = np.array(draw(st.lists(st.integers(0, 8), min_size=n, max_size=n)))
    upper = lower + np.array(draw(st.lists(st.integers(1, 7), min_size=n, max_size=n)))
    size = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)))
    alignment = np.array(draw(st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=n, max_size=n)))
    alias = np.arange(n)
    for i in range(1, n):
        if draw(st.integers(0, 4)) == 0:
            alias[i] = alias[draw(st.integers(0, i - 1))]
    fixed = np.full(n, FREE)
    for i in range(n):
        if draw(st.integers(0, 5)) == 0 and (alias == i).sum() == 1 and alias[i] == i:
            fixed[i] = alignment[i] * draw(st.integers(0, 4))
    ptr, gaps = [0], []
    for i in range(n):
        if draw(st.integers(0, 2)) == 0 and upper[i] - lower[i] >= 3:
            a = draw(st.integers(int(lower[i]), int(upper[i]) - 1))
            z = draw(st.integers(a + 1, int(upper[i])))
            window = (0, draw(st.integers(1, int(size[i])))) if size[i] and draw(st.booleans()) else (FREE, FREE)
            gaps.append((a, z, *window))
        ptr.append(len(gaps))
    table = np.array(gaps, np.int64).reshape(-1, 4)
    banks = draw(st.sampled_from([[], [30], [16, 20]]))
    return Buffers(tuple(f"b{i}" for i in range(n)), lower, upper, size, alignment, fixed, gap_ptr=np.array(ptr, np.int32), gap_lower=table[:, 0],
                   gap_upper=table[:, 1], gap_from=table[:, 2], gap_to=table[:, 3], alias=alias.astype(np.int32), banks=np.array(banks, np.int64))


def bytes_at(b: Buffers, i: int, time: int) -> set[int]:
    """Bytes of buffer i that stand at a time, counted from its offset."""
    if not b.lower[i] <= time < b.upper[i]:
        return set()
    for g in range(b.gap_ptr[i], b.gap_ptr[i + 1]):
        if b.gap_lower[g] <= time < b.gap_upper[g]:
            return set(range(int(b.gap_from[g]), int(b.gap_to[g]))) if b.gap_from[g] != FREE else set()
    return set(range(int(b.size[i])))


def sound(b: Buffers, offsets: np.ndarray) -> bool:
    """Whether a packing is valid, byte by byte and instant by instant, each pair by itself."""
    for i in range(len(b)):
        at, end = int(offsets[i]), int(offsets[i] + b.size[i])
        if at < 0 or at % b.alignment[i] or (b.fixed[i] != FREE and at != b.fixed[i]) or at != offsets[b.alias[i]]:
            return False
        inside = [k for k in range(len(b.banks)) if b.base[k] <= at and end <= b.base[k] + b.banks[k]]
        if len(b.banks) and (not inside or (b.bank[i] != FREE and b.bank[i] not in inside)):
            return False
        for j in range(i):
            if b.alias[i] != b.alias[j]:
                for time in range(int(max(b.lower[i], b.lower[j])), int(min(b.upper[i], b.upper[j]))):
                    if {at + x for x in bytes_at(b, i, time)} & {int(offsets[j]) + x for x in bytes_at(b, j, time)}:
                        return False
    return True


@settings(max_examples=250, deadline=None)
@given(asked(), st.data())
def test_the_sweep_says_what_brute_force_says(b: Buffers, data: st.DataObject) -> None:
    offsets = np.array(data.draw(st.lists(st.integers(-1, 34), min_size=len(b), max_size=len(b))))
    offsets -= offsets % b.alignment * np.array(data.draw(st.lists(st.booleans(), min_size=len(b), max_size=len(b))))
    offsets = offsets[b.alias] if data.draw(st.booleans()) else offsets
    assert (violations(b, offsets) == []) == sound(b, offsets)


@settings(max_examples=100, deadline=None)
@given(asked(), st.booleans())
def test_what_is_placed_is_valid_but_for_room_and_bounds_hold(b: Buffers, best: bool) -> None:
    free = replace(b, banks=np.zeros(0, np.int64), bank_names=())
    p = free.parts()
    offsets = p.offsets(place(p, born(p), best=best))
    clash = impossible(free)
    assert sound(free, offsets) == (violations(free, offsets) == []) == (clash is None), (clash, violations(free, offsets))
    if clash is None:
        assert peak(free) <= bound(free) <= Allocate(free).cost(offsets)
    if sound(b, offsets):
        assert impossible(b) is None, "a packing is there"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(1, 9), st.sampled_from([1, 1, 2, 4, 8]),
                          st.sampled_from([-1, -1, -1, 0, 8])), min_size=1, max_size=5))
def test_bounds_are_below_the_optimum_and_impossible_is_never_said_of_it(rows: list[tuple[int, int, int, int, int]]) -> None:
    """Sorted by offset and pushed down one after another, an optimal packing stays one: so the best of all orders is the optimum."""
    b = buffers([(a, a + width, size) for a, width, size, _, _ in rows], alignment=np.array([row[3] for row in rows]),
                fixed=np.array([row[4] for row in rows]))
    if contradiction(b):
        return
    p = b.parts()
    least = min(Allocate(b).cost(p.offsets(place(p, np.array(order)))) for order in itertools.permutations(range(len(b))))
    assert peak(b) <= bound(b) <= least <= solve(Allocate(b), Greedy(), Budget(600, 300)).cost
    assert impossible(b.limited(int(least))) is None
    if bound(b) > 1:
        assert impossible(b.limited(bound(b) - 1)) is not None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(-50, 50), st.integers(1, 5), st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_the_clock_matters(seed: int, shift: int, stretch: int, random: Any) -> None:
    b = replace(invented(seed), banks=np.zeros(0, np.int64), bank_names=())
    turn = np.array(random.sample(range(len(b)), len(b)))
    place_of = np.argsort(turn)
    count = np.diff(b.gap_ptr)[turn]
    gaps = np.array([g for i in turn for g in range(int(b.gap_ptr[i]), int(b.gap_ptr[i + 1]))], int)
    other = Buffers(tuple(b.ids[i] for i in turn), b.lower[turn] * stretch + shift, b.upper[turn] * stretch + shift, b.size[turn], b.alignment[turn],
                    b.fixed[turn], gap_ptr=np.concatenate([[0], np.cumsum(count)]).astype(np.int32), gap_lower=b.gap_lower[gaps] * stretch + shift,
                    gap_upper=b.gap_upper[gaps] * stretch + shift, gap_from=b.gap_from[gaps], gap_to=b.gap_to[gaps],
                    alias=place_of[b.alias[turn]].astype(np.int32))
    p, q = b.parts(), other.parts()
    assert (p.unit, p.sections, sorted(p.load.tolist())) == (q.unit, q.sections, sorted(q.load.tolist()))
    assert (peak(b), bound(b)) == (peak(other), bound(other))
    found = p.offsets(place(p, born(p)))
    assert violations(b, found) == violations(other, found[turn]) == []
    assert Allocate(b).cost(found) == Allocate(other).cost(found[turn])


def test_lives_are_half_open() -> None:
    b = buffers([(0, 3, 4), (3, 5, 4)])
    assert violations(b, np.array([0, 0])) == []
    assert peak(b) == 4
    assert "share memory at 2" in violations(buffers([(0, 4, 4), (3, 5, 4)]), np.array([0, 2]))[0]


def test_aliases_share_and_strangers_do_not() -> None:
    b = buffers([(0, 4, 8), (3, 6, 8), (0, 6, 8)], alias=np.array([0, 0, 2], np.int32))
    assert violations(b, np.array([8, 8, 0])) == [] and peak(b) == 16
    assert "whose memory it shares" in violations(b, np.array([8, 0, 16]))[0]
    assert "share memory" in violations(b, np.array([4, 4, 0]))[0]


def test_a_gap_lends_memory_and_its_window_stays() -> None:
    gap: dict[str, Any] = {"gap_ptr": np.array([0, 1, 1], np.int32), "gap_lower": np.array([2]), "gap_upper": np.array([6])}
    b = buffers([(0, 8, 10), (3, 5, 10)], **gap)
    assert violations(b, np.array([0, 0])) == [] and bound(b) == 10
    windowed = buffers([(0, 8, 10), (3, 5, 6)], **gap, gap_from=np.array([6]), gap_to=np.array([10]))
    assert violations(windowed, np.array([0, 0])) == [] and "share memory at 6" in violations(windowed, np.array([0, 4]))[0]


@pytest.mark.parametrize(("b", "least"), [
    (buffers([(0, 2, 5), (0, 2, 5), (0, 2, 5)], alignment=np.array([8, 8, 8])), 21),
    (buffers([(0, 2, 4), (0, 2, 4)], fixed=np.array([3, FREE])), 11),                                       # the hole below holds none of it
    (buffers([(0, 2, 4), (0, 2, 3)], fixed=np.array([3, FREE])), 7),
    (buffers([(0, 2, 4)], fixed=np.array([12])), 16),
    (buffers([(0, 2, 4), (1, 3, 4), (2, 4, 4)]), 8),
])
def test_bounds_beyond_the_peak(b: Buffers, least: int) -> None:
    assert bound(b) == least == solve(Allocate(b), Greedy(), Budget(evaluations=50)).cost


@pytest.mark.parametrize(("b", "why"), [
    (buffers([(0, 2, 12)], banks=np.array([10])), "b0 has 12 bytes, 2 more than the capacity of 10"),
    (buffers([(0, 2, 6), (1, 3, 6)], banks=np.array([10])), "12 bytes are alive, 2 more"),
    (buffers([(0, 2, 6), (1, 3, 6)], fixed=np.array([0, 5])), "b0 and b1 are fixed at places that overlap while both live"),
    (buffers([(0, 2, 6)], fixed=np.array([6]), banks=np.array([10])), "ends 2 bytes beyond the capacity"),
    (buffers([(0, 2, 6)] * 3, banks=np.array([10, 10])), "need 3 banks"),
    (buffers([(0, 2, 6), (0, 2, 5)], bank=np.array([1, 1], np.int32), banks=np.array([10, 10])), "bank 1 need 1 bytes more"),
    (buffers([(0, 2, 5), (0, 2, 5)], alignment=np.array([8, 8]), banks=np.array([12])), "needs 13 bytes"),
])
def test_impossible_is_proven_with_a_reason(b: Buffers, why: str) -> None:
    assert why in str(impossible(b))
    with pytest.raises(Infeasible, match="No packing exists"):
        solve(Allocate(b), Greedy())


def test_unknown_is_not_called_impossible() -> None:
    """A 2-D packing puzzle of peak 8 that the orders miss within one try each: infeasible so far, and said to be unknown."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        rows = [(int(a), int(a + w), int(s)) for a, w, s in zip(rng.integers(0, 9, 12), rng.integers(1, 6, 12), rng.integers(1, 6, 12), strict=True)]
        b = buffers(rows)
        tight = b.limited(bound(b))
        try:
            solve(Allocate(tight), Greedy(), Budget(evaluations=1))
        except Infeasible as none:
            assert "unknown" in none.mend and "more than the capacity" in none.message and impossible(tight) is None
            assert none.front is not None and violations(b, none.front) == []
            return
    raise AssertionError("no such instance was met")


def test_units_keep_alignments_whole() -> None:
    p = buffers([(0, 2, 96), (0, 2, 48)], alignment=np.array([32, 16])).parts()
    assert (p.unit, p.alignment.tolist(), p.size.tolist()) == (16, [2, 1], [6, 3])
    assert buffers([(0, 2, 4096), (0, 2, 2048)], alignment=np.array([32, 32])).parts().unit == 2048


def test_hints_are_tried_first() -> None:
    b = buffers([(0, 4, 3), (2, 6, 2), (0, 6, 4), (4, 8, 5)], hint=np.array([6, 4, 0, 6]))
    assert solve(Allocate(b.limited(11)), Greedy(), Budget(evaluations=200)).cost <= 11


def test_two_banks_are_never_straddled_and_both_count() -> None:
    b = buffers([(0, 4, 6)] * 4, banks=np.array([16, 16]))
    found = solve(Allocate(b), Greedy(), Budget(evaluations=50))
    assert sorted(found.answer.tolist()) == [0, 6, 16, 22] and found.cost == 24
    assert "beyond bank 0" in violations(b, np.array([0, 6, 12, 22]))[0]


def test_one_seed_one_answer() -> None:
    first, second = (solve(Allocate(invented(12).limited(), decide=False), Greedy(), Budget(600, 60), seed=4).answer for _ in range(2))
    assert first.tolist() == second.tolist()


# ---- from programs

def chain() -> Graph:
    """x → a (64 B) → view → b = f(view) → c = b + b' … with an elementwise op over a value that dies there, and one over a value that is a view."""
    g = Builder("chain")
    x = g.input((16,), "float32")
    (a,) = g.node("mm", [x], [((16,), "float32")], name="a", fusion=0)
    (v,) = g.node("view", [a], [((4, 4), "float32")], name="v", fusion=VIEW, alias=[a])
    (b,) = g.node("mm", [v], [((16,), "float32")], name="b", fusion=0)
    (c,) = g.node("relu", [b], [((16,), "float32")], name="c", fusion=ELEMENTWISE)
    (d,) = g.node("add", [c, a], [((16,), "float32")], name="d", fusion=ELEMENTWISE)
    g.output(d)
    return g.build()


def test_lives_of_a_program() -> None:
    b = of_graph(chain())
    assert b.ids == ("a", "b", "c", "d") and b.size.tolist() == [64] * 4
    assert (b.lower.tolist(), b.upper.tolist()) == ([0, 2, 3, 4], [5, 4, 5, 5])    # a lives through its view and its own last reader
    assert peak(b) == int(chain().live().max()) == 192


def test_in_place_shares_what_dies_there() -> None:
    b = of_graph(chain(), in_place=True)
    assert b.alias.tolist() == [0, 1, 1, 1]                             # c over b, d over c (the first of two operands that die)
    assert peak(b) == 128


# ---- what cannot be

@pytest.mark.parametrize(("rows", "more", "words"), [
    ([(2, 2, 4)], {}, "empty life"),
    ([(3, 2, 4)], {}, "ends before it begins"),
    ([(0, 2, -4)], {}, "size -4"),
    ([(0, 2, 4)], {"alignment": np.array([0])}, "alignment 0"),
    ([(0, 2, 4)], {"fixed": np.array([6]), "alignment": np.array([4])}, "no multiple of its alignment"),
    ([(0, 2, 4), (0, 2, 4)], {"fixed": np.array([0, 4]), "alias": np.array([0, 0], np.int32)}, "unlike fixed offsets"),
    ([(0, 2, 4)], {"bank": np.array([2], np.int32), "banks": np.array([8, 8])}, "is to be in bank 2"),
    ([(0, 2, 4)], {"bank": np.array([0], np.int32), "fixed": np.array([8]), "banks": np.array([8, 8])}, "in bank 1, and is to be in bank 0"),
    ([(0, 2, 2**62)], {}, "come to"),
    ([(0, 2, 4)], {"fixed": np.array([0.5])}, "fixed has type float64"),
    ([(0, 2, 4)] * 4, {"alignment": np.full(4, 2**60)}, "come to"),
    ([(0, 2, 4)], {"hint": np.array([2**62])}, "beyond 2"),
    ([(0, 4, 4)], {"gap_ptr": np.array([0, 1], np.int32), "gap_lower": np.array([3]), "gap_upper": np.array([5])}, "not within its life"),
])
def test_bad_buffers_are_told_in_two_lines(rows: list[tuple[int, int, int]], more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        buffers(rows, **more)
    assert len(str(caught.value).splitlines()) == 2
