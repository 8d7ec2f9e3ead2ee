"""The best layout of a whole program on one mesh, exactly, and what each of its layers then costs: the intra-operator half of Alpa's plan.

Strategies are chosen by bucket elimination (`solvers.elimination`): the pairwise choice of a network is thin, so that its optimum is exact, and
equal blocks are worked out once. Memory is priced, not limited: Σ seconds + λ · bytes, so that a few λ give a few layouts from quick to lean; what
each costs and holds goes into the table of stages, and the limit is kept there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fourfold.graph import PARAMETER, Graph
from fourfold.sharding.strategies import Strategies, itemsize, local_bytes
from fourfold.solvers.elimination import TooWide, eliminate

F64 = NDArray[np.float64]
_SWEEPS = 40


@dataclass(frozen=True, eq=False)
class LaidOut:
    """An assignment and its seconds a microbatch; `bound`: what no assignment goes below (None: not proven). By layer, f8[L]: `seconds`, `held`
    bytes kept whatever runs, `kept` bytes of results for the backward pass, `entering` bytes that come from earlier layers, `peak` bytes of results
    alive at once. `made`, `again`: tables worked out, and taken again for equal blocks."""

    assignment: NDArray[np.int64]
    value: float
    bound: float | None
    seconds: F64
    held: F64
    kept: F64
    entering: F64
    peak: F64
    made: int = 0
    again: int = 0


def lay_out(made: Strategies, layers: int, price: float = 0.0, allowed: list[NDArray[np.bool_]] | None = None) -> LaidOut:
    """The assignment of least seconds + `price` · (bytes held), among strategies `allowed`."""
    unary = _priced(made, price, allowed)
    tables = [((v,), own) for v, own in enumerate(unary)] + [((e.a, e.b), e.table) for e in made.edges if e.a != e.b]
    tables += [((e.a,), np.ascontiguousarray(np.diagonal(e.table))) for e in made.edges if e.a == e.b]
    try:
        found = eliminate([len(v) for v in made.variables], tables, _groups(made))
        assignment, bound, counts = found.choice, found.value if not price and allowed is None else None, (found.made, found.again)
    except TooWide:
        assignment, bound, counts = _descend(made, unary), None, (0, 0)
    return replace(account(made, assignment, layers), bound=bound, made=counts[0], again=counts[1])


def _priced(made: Strategies, price: float, allowed: list[NDArray[np.bool_]] | None) -> list[F64]:
    """A table a variable, the same object for equal ones, so that equal blocks are known as such."""
    seen: dict[tuple[int, int, bytes], F64] = {}
    found: list[F64] = []
    for i, v in enumerate(made.variables):
        mask = b"" if allowed is None else allowed[i].tobytes()
        key = (id(v.seconds), id(v.held), mask)
        if key not in seen:
            own = v.seconds + price * v.held if price else v.seconds
            seen[key] = own if allowed is None else np.where(allowed[i], own, np.inf)
        found.append(seen[key])
    return found


def _groups(made: Strategies) -> list[int]:
    """The repeated block of each variable; a stored value belongs to the block of its first reader."""
    groups = [int(made.graph.layer[v.node]) if v.node >= 0 else -2 for v in made.variables]
    for e in made.edges:
        if groups[e.a] == -2:
            groups[e.a] = groups[e.b]
    return groups


def _descend(made: Strategies, unary: list[F64]) -> NDArray[np.int64]:
    """Coordinate descent from each variable's own best: what is left where the program is too dense to eliminate."""
    around: list[list[tuple[int, F64]]] = [[] for _ in made.variables]
    for e in made.edges:
        if e.a != e.b:
            around[e.a].append((e.b, e.table.T))
            around[e.b].append((e.a, e.table))
    choice = np.array([int(np.argmin(own)) for own in unary])
    for sweep in range(_SWEEPS):
        changed = False
        for v in range(len(unary)) if sweep % 2 == 0 else reversed(range(len(unary))):
            total = unary[v] + sum((table[choice[other]] for other, table in around[v]), np.zeros(len(unary[v])))
            best = int(np.argmin(total))
            if total[best] < total[choice[v]] - 1e-15:
                choice[v], changed = best, True
        if not changed:
            break
    return choice


def account(made: Strategies, assignment: NDArray[np.int64], layers: int) -> LaidOut:
    """What an assignment costs and holds, layer by layer."""
    graph, mesh = made.graph, made.mesh
    seconds, held, kept, entering = (np.zeros(layers) for _ in range(4))
    for v, s in zip(made.variables, assignment, strict=True):
        seconds[v.layer] += v.seconds[s]
        held[v.layer] += v.held[s]
        kept[v.layer] += v.kept[s]
    gathered = np.zeros(layers)
    for e in made.edges:
        reader = made.variables[e.b]
        seconds[reader.layer] += e.table[assignment[e.a], assignment[e.b]]
        if graph.role[e.value] == PARAMETER:
            want, have = reader.into[assignment[e.b]][e.operand], made.variables[e.a].out[assignment[e.a]][0]
            if want != have:
                gathered[reader.layer] = max(gathered[reader.layer], local_bytes(graph, e.value, want, mesh))
    layer_of = np.array([v.layer for v in made.variables if v.node >= 0])
    for value in range(len(graph.producer)):
        maker = int(graph.producer[value])
        if maker < 0 or not len(graph.readers_of(value)):
            continue
        size = local_bytes(graph, value, made.spec(value, assignment), mesh)
        later = {int(layer_of[n]) for n in graph.readers_of(value).tolist()} - {int(layer_of[maker])}
        for layer in later:
            entering[layer] += size
    value_seconds = made.cost(assignment)
    return LaidOut(assignment, value_seconds, None, seconds, held, kept, entering, _peaks(made, assignment, layers) + gathered)


def _peaks(made: Strategies, assignment: NDArray[np.int64], layers: int) -> F64:
    """Most bytes of results alive at once in each layer of the forward pass, a device's pieces."""
    graph, found = made.graph, np.zeros(layers)
    size: dict[int, float] = {}
    last = {v: int(graph.readers_of(v).max(initial=int(graph.producer[v]))) for v in range(len(graph.producer)) if graph.producer[v] >= 0}
    ending: dict[int, list[int]] = {}
    for v, node in last.items():
        ending.setdefault(node, []).append(v)
    alive = 0.0
    for node in range(len(graph)):
        for v in graph.outputs_of(node).tolist():
            size[v] = local_bytes(graph, v, made.spec(v, assignment), made.mesh) if graph.alias[v] == v and itemsize(graph, v) else 0.0
            alive += size[v]
        layer = made.variables[made.of_node[node]].layer
        found[layer] = max(found[layer], alive)
        for v in ending.get(node, ()):
            alive -= size[v]
    return found


def boundaries(graph: Graph, layer: NDArray[np.int64], layers: int) -> F64:
    """f8[L]: bytes, whole, that leave layer l for later ones."""
    found = np.zeros(layers)
    for value in range(len(graph.producer)):
        maker = int(graph.producer[value])
        if maker >= 0 and len(readers := graph.readers_of(value)):
            found[int(layer[maker]) : int(layer[readers].max())] += graph.size[value]
    return found


__all__ = ["LaidOut", "account", "boundaries", "lay_out"]
