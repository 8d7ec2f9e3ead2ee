"""Meshes, layouts and what it costs to change them: shapes of pieces, round trips with DTensor and JAX, the cheapest chain against every chain."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import FourfoldError, InputError
from fourfold.machine import Machine
from fourfold.sharding import collectives
from fourfold.sharding.collectives import ALPA, Constants, reshard, reshard_seconds, reshard_table
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import P, Spec

MESH = Mesh(("dp", "tp"), (2, 4), (1e-5, 1e-6), (1e-9, 1e-10))
CUBE = Mesh(("a", "b", "c"), (2, 2, 3))


@st.composite
def specs(draw: st.DrawFn, mesh: Mesh = CUBE, ndim: int = 3) -> Spec:
    dims: list[list[str]] = [[] for _ in range(ndim)]
    partial = []
    for axis in draw(st.permutations(mesh.names)):
        where = draw(st.integers(-2, ndim - 1))
        if where == -1:
            partial.append(axis)
        elif where >= 0:
            dims[where].append(axis)
    return Spec(tuple(tuple(axes) for axes in dims), tuple(partial))


def test_a_mesh_is_read_and_said() -> None:
    assert Mesh.parse("2x4").names == ("x", "y") and Mesh.parse("dp=2, tp=4").shape == (2, 4) and str(MESH) == "dp=2,tp=4" and MESH.size == 8
    assert Mesh.parse("2x4", ["dp", "tp"]).axis("tp") == 1 and [MESH.rank(MESH.coordinates(r)) for r in range(8)] == list(range(8))
    assert MESH.lines("dp") == [[0, 4], [1, 5], [2, 6], [3, 7]] and MESH.lines("tp") == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_prices_of_a_machine_come_from_its_links() -> None:
    machine = Machine.read("v100x4")
    mesh = Mesh.of(machine, "2x2")
    assert mesh.alpha == (2e-6, 2e-6) and mesh.beta == pytest.approx((1 / 47.9e9,) * 2)
    bus = Machine.read("p100x4")                                        # all steps of a ring share one switch
    alone, together = Mesh.of(bus, "2x1").beta[0], Mesh.of(bus, "4").beta[0]
    assert alone > 0 and together >= alone


@pytest.mark.parametrize("make", [
    lambda: Mesh.parse("2by4"), lambda: Mesh.parse("a=2,a=3"), lambda: Mesh.parse("0x2"), lambda: Mesh.of("v100x4", "3"), lambda: MESH.axis("pp"),
    lambda: Mesh(("a",), (2, 2)), lambda: Mesh.parse("2x2x2x2x2"), lambda: P("tp", "tp"), lambda: P(("tp", "tp")), lambda: P(None, "tp").spec(1),
    lambda: P("pp").spec(1, MESH, "w"), lambda: Spec((("tp",),), ("tp",)), lambda: P(3),  # type: ignore[arg-type]
    lambda: reshard(Spec(((),)), Spec(((), ())), (2,), 4, MESH), lambda: reshard(Spec((("q",),)), Spec(((),)), (2,), 4, MESH),
])  # fmt: skip
def test_what_is_no_mesh_or_layout_is_refused_in_two_lines(make) -> None:
    with pytest.raises(FourfoldError) as told:
        make()
    assert len(str(told.value).splitlines()) == 2


@given(specs(), st.tuples(*[st.integers(1, 9)] * 3))
def test_pieces_tile_the_tensor(spec: Spec, shape: tuple[int, ...]) -> None:
    full = np.zeros(shape, int)
    copies = math.prod(n for name, n in CUBE.sizes.items() if name not in spec.axes)
    for rank in range(CUBE.size):
        piece = full[spec.slices(shape, CUBE, rank)]
        assert all(a <= b for a, b in zip(piece.shape, spec.local_shape(shape, CUBE), strict=True))
        piece += 1
    assert (full == copies).all()


@settings(max_examples=40)
@given(specs())
def test_dtensor_and_back(spec: Spec) -> None:
    assert Spec.of_placements(spec.to_placements(CUBE), 3, CUBE) == spec


@given(specs())
def test_jax_and_back(spec: Spec) -> None:
    assert Spec.of_jax(spec.to_jax(), 3) == spec


def test_jax_open_dimensions_are_left_to_propagation() -> None:
    from jax.sharding import PartitionSpec

    assert P(*PartitionSpec("tp", PartitionSpec.UNCONSTRAINED)).open(3) == (False, True, False)


def test_formulas_are_those_of_the_source() -> None:
    n, a, b, size = 4, 1e-6, 1e-10, 1e6
    assert collectives.all_gather(size, MESH, "tp", ALPA) == pytest.approx(a + b * 3 / 4 * size + 0.1)
    assert collectives.all_reduce(size, MESH, "tp", ALPA) == pytest.approx(a + 2 * b * 3 / 4 * size + 0.01)
    assert collectives.reduce_scatter(size, MESH, "tp", ALPA) == pytest.approx(a + b * 3 / 4 * size + 0.001)
    assert collectives.all_to_all(size, MESH, "tp", ALPA) == pytest.approx(a + b * 3 / 16 * size * n / 2 + 0.001)


NONE = Constants(0, 0, 0, 0, 0)


@pytest.mark.parametrize("have,want,chain", [
    (P("tp").spec(2), P().spec(2), ["all-gather over tp"]),
    (P("tp").spec(2), P(None, "tp").spec(2), ["all-to-all over tp"]),
    (P().spec(2), P("tp").spec(2), ["slice over tp"]),
    (Spec(((), ()), ("tp",)), P("tp").spec(2), ["reduce-scatter over tp"]),
    (P(("dp", "tp")).spec(2), P("dp").spec(2), ["all-gather over tp"]),
    (P().spec(2), Spec(((), ()), ("tp",)), ["keep over tp"]),
    (P().spec(2), P().spec(2), []),
])
def test_simple_changes_are_one_step(have: Spec, want: Spec, chain: list[str]) -> None:
    assert [str(step) for step in reshard(have, want, (64, 64), 4, MESH)] == chain


def test_a_sum_over_a_slow_axis_is_made_of_pieces() -> None:
    """Hierarchical all-reduce: scatter on the fast axis, reduce what is left on the slow one, gather."""
    steps = reshard(Spec(((), ()), ("dp", "tp")), P().spec(2), (1024, 1024), 4, MESH)
    assert [str(step) for step in steps] == ["reduce-scatter over tp", "all-reduce over dp", "all-gather over tp"]


@settings(max_examples=25)
@given(specs(), specs(), specs())
def test_chains_end_where_they_should_and_obey_the_triangle(a: Spec, b: Spec, c: Spec) -> None:
    shape = (6, 12, 5)
    steps = reshard(a, b, shape, 4, CUBE)
    assert (steps[-1].to == b) if a != b else not steps
    direct, via = reshard_seconds(a, c, shape, 4, CUBE), reshard_seconds(a, b, shape, 4, CUBE) + reshard_seconds(b, c, shape, 4, CUBE)
    assert direct <= via + 1e-12


def test_a_table_is_its_entries() -> None:
    every = [Spec((d, e)) for d, e in itertools.product([(), ("dp",), ("tp",), ("dp", "tp")], repeat=2) if not set(d) & set(e)]
    table = reshard_table(every, every, (8, 24), 2, MESH)
    assert table[0].sum() == 0 and (np.diag(table) == 0).all()          # from a whole copy everything is a slice
    assert all(table[i, j] == pytest.approx(reshard_seconds(a, b, (8, 24), 2, MESH)) for i, a in enumerate(every) for j, b in enumerate(every))


def test_an_unknown_axis_is_named() -> None:
    with pytest.raises(InputError, match="'pp'"):
        P("pp").spec(1, MESH, "head.weight")
