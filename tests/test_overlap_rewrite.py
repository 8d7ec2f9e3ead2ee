"""The automatic rewrite: pairs of a collective and a product in SPMD programs are found, looped, and equal to one process, with gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from fourfold.cost.overlap import GATHER, PLAIN, SCATTER, OverlapGate
from fourfold.frontends.capture import capture
from fourfold.program import Captured
from fourfold.runtime.overlap.rewrite import gates_of, looped, raced
from fourfold.runtime.spmd import RankPool, SpmdDescription
from fourfold.runtime.spmd.check import carried_out, program_of
from fourfold.runtime.spmd.link import LinkPrice
from fourfold.runtime.spmd.program import Move, OpCall, SpmdProgram
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import P

ALWAYS = {"tp": OverlapGate(2, 0.0, 1e-9, 1e9)}


class Block(nn.Module):
    """A feed-forward layer in tensor parallelism, its input and output split along tokens: the gather and the scatter are what the plan moves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2, threads=1, patience=120.0) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def found() -> Captured:
    return capture(Block().eval(), (torch.randn(16, 24),))


def planned(found: Captured) -> SpmdProgram:
    """Tokens split outside, the hidden dimension inside."""
    graph = found.graph
    last = graph.labels[int(graph.outputs[0])]
    fed = next(label for v, label in enumerate(graph.labels) if graph.role[v] == 1)
    said = {fed: P("tp"), "up.weight": P("tp"), "up.bias": P("tp"), "down.weight": P(None, "tp"), last: P("tp")}
    made = program_of(found, SpmdDescription(Mesh.parse("tp=2"), said))
    assert isinstance(made, SpmdProgram)
    return made


def test_both_pairs_are_found_and_looped(found: Captured) -> None:
    program = planned(found)
    made, told = looped(program, ALWAYS, learn=True)
    assert [pair.kind for pair in made.loops] == [GATHER, SCATTER] and [one.kind for one in told] == [GATHER, SCATTER]
    assert sorted(map(str, made.steps)) == sorted(map(str, program.steps)) and made.digest != program.digest
    for pair in made.loops:
        first, second = made.steps[pair.step], made.steps[pair.step + 1]
        assert isinstance(first, Move if pair.kind == GATHER else OpCall) and isinstance(second, OpCall if pair.kind == GATHER else Move)


def test_a_gate_that_says_no_and_an_axis_without_one_leave_the_program_as_it_is(found: Captured) -> None:
    program = planned(found)
    same, told = looped(program, {"tp": OverlapGate(2, 1.0, 1e-9, 1e15)})
    assert not same.loops and {one.way for one in told} == {PLAIN} and sorted(map(str, same.steps)) == sorted(map(str, program.steps))
    assert looped(program, {})[0].loops == () and looped(program, {})[1] == []


def test_a_gathered_value_that_others_read_is_left_alone(found: Captured) -> None:
    program = planned(found)
    gather = next(step for step in program.steps if isinstance(step, Move))
    assert [pair.kind for pair in looped(replace(program, answers=(*program.answers, gather.target)), ALWAYS)[0].loops] == [SCATTER]


@pytest.mark.parametrize("way", ["one_way", "both_ways"])
def test_looped_programs_equal_one_process_with_gradients(way: str, found: Captured, pool: RankPool) -> None:
    made, _ = looped(planned(found), ALWAYS, learn=True)
    made = replace(made, loops=tuple(replace(pair, way=way) for pair in made.loops))
    done = carried_out(found, made, found.inputs, pool, repeat=1, learn=True)
    assert len(made.loops) == 2 and done.equal and len(done.gradients) == 3 and done.outputs


def test_a_run_with_loops_stands_only_where_it_is_quicker(found: Captured, pool: RankPool) -> None:
    plain = carried_out(found, planned(found), found.inputs, pool, repeat=1)
    kept, said = raced(found, plain, found.inputs, pool, ALWAYS, repeat=1)
    assert kept.equal and said and ("left" in said) == (kept is plain) and (kept is plain or kept.seconds < plain.seconds)
    assert raced(found, plain, found.inputs, pool, {}) == (plain, "")


def test_gates_from_what_collectives_take() -> None:
    price = {name: (1e-4, 1e-9) for name in ("permute", "all-gather", "reduce-scatter", "all-reduce", "all-to-all")}
    gates = gates_of(LinkPrice(4, price, price), Mesh.parse("dp=1,tp=4"), 1e11)
    assert set(gates) == {"tp"} and (gates["tp"].ranks, gates["tp"].alpha, gates["tp"].collective_beta) == (4, 1e-4, 1e-9)
