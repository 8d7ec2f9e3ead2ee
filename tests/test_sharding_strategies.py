"""Strategies of a program on a mesh: exact against enumeration, equal blocks once, customs within the optimum, prices above none, stored form."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fourfold.frontends.torch_export import capture
from fourfold.program import Captured
from fourfold.sharding import collectives, moves
from fourfold.sharding.customs import CUSTOMS, allowed, origins, roles_of, uniform
from fourfold.sharding.intra import lay_out
from fourfold.sharding.layers import crossings, layers
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import rules
from fourfold.sharding.spec import Spec
from fourfold.sharding.stored import DevicePlan, StagePlan
from fourfold.sharding.strategies import Regime, Strategies, build, layouts
from fourfold.solvers.elimination import TooWide, eliminate
from fourfold.zoo.giants import giant


def on(captured: Captured, mesh: Mesh, count: int = 1, regime: Regime | None = None) -> Strategies:
    graph = captured.graph
    seconds = graph.flops / 1e12 + (graph.reads + graph.writes) / 1e11
    return build(graph, rules(captured), mesh, regime or Regime(train=True, microbatches=4), seconds, layers(graph, count))


@pytest.fixture(scope="module")
def gpt() -> Captured:
    return capture(*giant("gpt:256x8x4", 8, 64))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000))
def test_elimination_equals_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    sizes = rng.integers(1, 4, count).tolist()
    scopes = [tuple(rng.permutation(count)[: int(rng.integers(1, min(3, count) + 1))].tolist()) for _ in range(int(rng.integers(1, 9)))]
    tables = [(scope, rng.uniform(0, 1, [sizes[v] for v in scope])) for scope in scopes]
    tables += [(tables[0][0], tables[0][1])]                            # the same object twice
    found = eliminate(sizes, tables, rng.integers(0, 2, count).tolist())

    def total(choice: tuple[int, ...]) -> float:
        return sum(float(table[tuple(choice[v] for v in scope)]) for scope, table in tables)

    assert found.value == pytest.approx(min(map(total, itertools.product(*map(range, sizes)))))
    assert total(tuple(found.choice.tolist())) == pytest.approx(found.value)


def test_a_dense_question_is_refused_by_its_width() -> None:
    tables = [((i, j), np.ones((10, 10))) for i in range(9) for j in range(i)]
    with pytest.raises(TooWide):
        eliminate([10] * 9, tables, most=10_000)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_price_of_the_table_is_that_of_the_cheapest_chain(data: st.DataObject) -> None:
    mesh = Mesh(("x", "y"), (2, 4), (1e-5, 2e-6), (1e-9, 1e-10))

    def drawn() -> Spec:
        dims = [data.draw(st.sampled_from([-2, -1, 0, 1])) for _ in mesh.names]
        return Spec(tuple(tuple(a for a, d in zip(mesh.names, dims, strict=True) if d == k) for k in range(2)),
                    tuple(a for a, d in zip(mesh.names, dims, strict=True) if d == -2))

    have, want, shape = drawn(), drawn(), (64, 128)
    price = float(moves.seconds(moves.codes([have], mesh), moves.codes([want], mesh), 2, 4.0 * 64 * 128, mesh)[0, 0])
    cheapest = collectives.reshard_seconds(have, want, shape, 4.0, mesh)
    if set(want.partial) <= set(have.partial):                          # nobody asks for a partial value that was whole
        assert price == pytest.approx(cheapest, rel=1e-9)


def test_brute_force_on_a_small_program_equals_elimination() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    made = on(capture(Two(), (torch.zeros(4, 8),)), Mesh(("x",), (2,)))
    every = itertools.product(*[range(len(v)) for v in made.variables])
    least = min(made.cost(np.array(choice)) for choice in every)
    assert lay_out(made, 1).value == pytest.approx(least, rel=1e-12)


def test_equal_blocks_are_worked_out_once_and_customs_never_beat_the_optimum(gpt: Captured) -> None:
    mesh = Mesh(("x", "y"), (2, 4))
    made = on(gpt, mesh)
    best = lay_out(made, 1)
    assert best.bound == pytest.approx(best.value) and best.made < 0.4 * best.again
    tags = origins(gpt.graph, made.rules)
    for custom in CUSTOMS:
        assert lay_out(made, 1, allowed=allowed(made, roles_of(custom, mesh), tags)).value >= best.value * (1 - 1e-9)
    for roles in uniform(mesh):
        assert lay_out(made, 1, allowed=allowed(made, roles, tags)).value >= best.value * (1 - 1e-9)
    assert best.seconds.sum() == pytest.approx(best.value)


def test_customs_are_what_their_names_say(gpt: Captured) -> None:
    mesh = Mesh(("x", "y"), (2, 2))
    made = on(gpt, mesh)
    tags = origins(gpt.graph, made.rules)

    def specs(custom: str) -> dict[str, Spec]:
        found = lay_out(made, 1, allowed=allowed(made, roles_of(custom, mesh), tags))
        return {v.name: v.out[s][0] for v, s in zip(made.variables, found.assignment, strict=True)}

    data, fsdp, megatron = (specs(custom) for custom in CUSTOMS)
    up, down = "blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"
    assert data[up].whole and data["linear_4"].dims[0] == ("x", "y")
    assert fsdp[up].axes == {"x", "y"}
    assert megatron[up] == Spec((("y",), ())) and megatron[down] == Spec(((), ("y",))) and megatron["linear_4"].dims[0] == ("x",)


def test_a_price_for_memory_makes_layouts_leaner(gpt: Captured) -> None:
    made = on(gpt, Mesh(("x", "y"), (2, 2)), 4)
    quick, lean = lay_out(made, 4), lay_out(made, 4, price=1e-3)
    assert lean.held.sum() < 0.5 * quick.held.sum() and lean.value >= quick.value


def test_layers_are_balanced_ascending_and_cut_where_little_crosses() -> None:
    blocks = [nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)) for _ in range(8)]
    graph = capture(nn.Sequential(*blocks), (torch.zeros(16, 64),)).graph
    found = layers(graph, 4)
    assert (np.diff(found) >= 0).all() and set(found.tolist()) == {0, 1, 2, 3}
    work = np.bincount(found, graph.flops)
    assert work.max() == work.min()
    cuts = crossings(graph)[1:-1][np.diff(found) > 0]
    assert (cuts == 16 * 64 * 4).all(), "only the narrow value between two blocks crosses"
    with pytest.raises(ValueError, match="cannot be 0 layers"):
        layers(graph, 0)


def test_stored_values_are_split_evenly_or_not() -> None:
    mesh = Mesh(("x", "y"), (2, 4))
    assert len(layouts((8, 8), mesh)) == 9 and len(layouts((2, 3), mesh)) == 2


def test_a_device_plan_and_its_json_are_one() -> None:
    stage = StagePlan((0, 1), Mesh(("x",), (2,)), (0, 3), ("linear",), {"linear": {"x": "a"}}, {"w": Spec((("x",), ()))},
                      {"linear": (Spec(((), ("x",)), ()),)}, ("w",), True)
    plan = DevicePlan(2, 4, "1f1b", True, (stage,))
    assert DevicePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(ValueError, match="damaged"):
        DevicePlan.from_json({"devices": 2})
