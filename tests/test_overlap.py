"""Communication behind products: the gate's formula against events, looped einsums against plain ones on real ranks, what is refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cost.overlap import (
    BOTH_WAYS,
    GATHER,
    ONE_WAY,
    PLAIN,
    SCATTER,
    OverlapGate,
    gather_both_seconds,
    loop_seconds,
    play_loop,
)
from fourfold.errors import InputError
from fourfold.machine import Machine
from fourfold.runtime.overlap.looped_einsum import EinsumLetters
from fourfold.sharding.mesh import Mesh

RANKS = Path(__file__).parent / "looped_ranks.py"
times = st.floats(1e-6, 1.0)


# ---- seconds

@settings(max_examples=200, deadline=None)
@given(st.integers(2, 8), times, times, times, st.sampled_from([GATHER, SCATTER]))
def test_the_loop_played_event_by_event_takes_what_the_formula_says(n: int, einsum: float, alpha: float, wire: float, kind: str) -> None:
    played, events = play_loop(kind, n, einsum, alpha, wire)
    assert played == pytest.approx(loop_seconds(n, einsum, alpha + wire), rel=1e-9)
    assert sum(event.what == "send" for event in events) == n * (n - 1) and sum(event.what == "compute" for event in events) == n * n
    both, _ = play_loop(kind, n, einsum, alpha, wire, way=BOTH_WAYS)
    if kind == GATHER:                                                  # events do not wait for a step's second block, nor join halves
        formula = gather_both_seconds(n, einsum, alpha + wire, alpha + wire / 2)
        assert 0.6 * formula <= both <= formula * (1 + 1e-9)
    else:                                                               # the second half of a step's part is computed while the first one travels
        formula = loop_seconds(n, einsum, alpha + wire / 2)
        assert formula * 0.75 <= both <= formula * 1.3
    assert both >= max(einsum, (alpha + wire / 2) * (n - 1) if kind == SCATTER else 0.0) * (1 - 1e-9)


def test_two_ranks_by_hand() -> None:
    """e = 2, p = 1: the first half while the block travels, then the other. Both ways: half of the block each way, in half of the time."""
    assert play_loop(GATHER, 2, 2.0, 0.0, 1.0)[0] == 2.0 and play_loop(GATHER, 2, 2.0, 0.0, 3.0)[0] == 4.0
    assert play_loop(GATHER, 2, 2.0, 0.0, 3.0, way=BOTH_WAYS)[0] == 2.5
    slow, _ = play_loop(GATHER, 2, 2.0, 0.0, 1.0, slower=(1.0, 3.0))
    assert slow == 6.0


def test_the_gate_takes_the_quickest_and_leaves_small_products_alone() -> None:
    gate = OverlapGate(8, 1e-5, 1e-9, 1e12, start=5e-6)
    large = gate.decide(GATHER, 8e10, 1e7)
    assert large.way in (ONE_WAY, BOTH_WAYS) and large.seconds[large.way] == min(large.seconds.values()) and large.speed_up > 1.3
    assert gate.decide(GATHER, 1e6, 1e3).way == PLAIN and OverlapGate(1, 0, 0, 1e9).decide(SCATTER, 1e9, 1e9).way == PLAIN
    assert OverlapGate(2, 0.0, 1e-9, 1e12, drag=9.0).decide(GATHER, 1e10, 1e7).way == PLAIN       # the same cores compute and copy
    of = OverlapGate.of(Mesh.of(Machine.read("v100x4"), "4"), "x", 1e14)
    assert of.ranks == 4 and of.beta == pytest.approx(1 / 47.9e9)
    with pytest.raises(InputError, match="0 ranks") as caught:
        OverlapGate(0, 0.0, 0.0, 1e9)
    assert len(str(caught.value).splitlines()) == 2


@given(st.integers(2, 8), st.floats(1e6, 1e13), st.floats(1e2, 1e9), st.floats(0.0, 1e-3), st.floats(1e-11, 1e-6))
def test_what_the_gate_chooses_is_never_slower_by_its_own_account(n: int, flops: float, moved: float, alpha: float, beta: float) -> None:
    for kind in (GATHER, SCATTER):
        found = OverlapGate(n, alpha, beta, 1e12).decide(kind, flops, moved)
        assert found.speed_up >= 1.0 and found.speed_up < 2.0 + (found.way == BOTH_WAYS)


# ---- equations

@pytest.mark.parametrize(("equation", "letter", "split", "said"), [
    ("ab,bc", "a", "first", "no einsum"), ("ab->a", "a", "first", "no einsum"), ("aa,ab->ab", "a", "first", "no einsum"),
    ("ab,bc->ac", "c", "first", "no such letter"), ("ab,bc->ac", "b", "output", "no such letter"), ("ab,bc->a", "a", "first", "summed"),
])
def test_equations_that_cannot_be_looped_are_refused(equation: str, letter: str, split: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        EinsumLetters.parse(equation, letter, split)
    assert len(str(caught.value).splitlines()) == 2


# ---- real ranks

def ranks(script: Path, world: int, *options: str, timeout: float = 240) -> list[dict[str, float]]:
    """What each rank of a script printed, as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [subprocess.Popen([sys.executable, str(script), str(rank), str(world), str(port), *options], stdout=subprocess.PIPE, text=True)
                for rank in range(world)]
    try:
        told = [child.communicate(timeout=timeout)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * world
    return [json.loads(text.strip().splitlines()[-1]) for text in told]


def test_values_and_gradients_equal_the_plain_einsum_on_two_three_and_four_ranks() -> None:
    """fp32, 1e-6 of the largest magnitude; sums over ranks are made in another order."""
    for found in ranks(RANKS, 4):
        assert found.pop("refused") == 1.0
        assert all(found.pop(f"looped {n}") == 1.0 for n in (2, 3, 4) if f"looped {n}" in found)
        wrong = {name: value for name, value in found.items() if not value <= 1e-6}
        assert len(found) >= 30 and not wrong


SHAPED = Path(__file__).parent.parent / "benchmarks" / "partition_overlap.py"


@pytest.mark.bench
@pytest.mark.apart
def test_loops_gain_on_a_shaped_link(tmp_path: Path) -> None:
    """Two namespaces, 100 Mbit/s: the better loop of an all-gather–einsum beats the plain form, and what the gate chose is no slower than it."""
    done = subprocess.run([sys.executable, str(SHAPED), "--quick", "--rates", "100", "--rounds", "7", "--out", str(tmp_path / "found.json")],
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    if found["not_shaped"]:
        pytest.skip(f"links cannot be shaped here: {found['not_shaped']}")
    row = found["links"][0]["rows"][0]
    assert row["kind"] == GATHER and max(row["speed_up"][way]["median"] for way in (ONE_WAY, BOTH_WAYS)) > 1.1
    assert row["speed_up"][row["chosen"]]["median"] > 0.98
