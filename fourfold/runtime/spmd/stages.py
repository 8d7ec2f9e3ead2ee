"""A captured program cut into the stages of a pipeline, each an SPMD program on a mesh of its own.

What a stage needs of an earlier one comes in and goes on through every stage between. Values that no parameter has a part in (masks, positions) are
computed again where they are needed, so that only values with gradients pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fourfold.errors import InputError
from fourfold.graph import PARAMETER, Graph
from fourfold.letters import Choice
from fourfold.program import Captured
from fourfold.runtime.spmd.lower import StagePart, lower
from fourfold.runtime.spmd.program import StagedProgram, floating
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec


@dataclass(frozen=True)
class StageAsked:
    """One stage: its mesh and ranks, what is decided of its values and nodes."""

    mesh: Mesh
    devices: tuple[int, ...]
    nodes: frozenset[int]
    layouts: Mapping[int, Spec]
    choices: Mapping[int, Mapping[str, Choice]]


def staged(found: Captured, asked: Sequence[StageAsked], microbatches: int = 1, schedule: str = "1f1b") -> StagedProgram:
    """The program of every stage. Raises InputError where a node is in no stage, or reads what only a later one makes, or stages have unlike numbers
    of ranks (a pipeline passes pieces from rank to rank).
    """
    graph = found.graph
    if len({len(one.devices) for one in asked}) > 1:
        sizes = ", ".join(str(len(one.devices)) for one in asked)
        raise InputError(f"The stages have {sizes} ranks; only stages of one size are carried out.", "Plan with stages of equal size.")
    nodes, entries = parts(graph, [one.nodes for one in asked])
    programs, made = [], dict[int, Spec]()
    for s, one in enumerate(asked):
        last = s == len(asked) - 1
        exits = () if last else tuple(entries[s + 1])
        like = not last and (asked[s + 1].mesh.names, asked[s + 1].mesh.shape) == (one.mesh.names, one.mesh.shape)
        wanted = {} if like else {v: Spec.replicated(len(graph.shape_of(v))) for v in exits}
        known = {v: spec for v, spec in one.layouts.items() if graph.producer[v] < 0 or int(graph.producer[v]) in nodes[s]}
        part = StagePart(nodes[s], tuple(entries[s]), exits, wanted, last)
        program = lower(found, one.mesh, {**known, **{v: made[v] for v in entries[s]}}, 0, one.choices, part)
        made = {program.slots[slot].value: program.slots[slot].spec for slot in program.exits}
        programs.append(program)
    held = [{program.slots[slot].value for slot, _ in program.learned} for program in programs]
    tied = sorted(v for v in set().union(*held) if sum(v in one for one in held) > 1)
    for v in tied:
        specs = {program.slots[slot].spec for program in programs for slot, _ in program.learned if program.slots[slot].value == v}
        if len(specs) > 1:
            raise InputError(f"{graph.labels[v]} is held by several stages, as {' and '.join(map(str, specs))}.", "Lay it out alike in all of them.")
    return StagedProgram(tuple(programs), tuple(one.devices for one in asked), microbatches, schedule, tuple(tied))


def parts(graph: Graph, asked: Sequence[frozenset[int]]) -> tuple[list[frozenset[int]], list[list[int]]]:
    """(nodes of each stage with what is computed again, values that come into each)."""
    stage: dict[int, int] = {}
    for s, nodes in enumerate(asked):
        stage.update((node, s) for node in nodes)
    if lacking := [node for node in range(len(graph)) if node not in stage]:
        raise InputError(f"The node {graph.names[lacking[0]]} is in no stage.", "Put every node into one.")
    learning = [bool(role == PARAMETER and floating(dtype)) for role, dtype in zip(graph.role.tolist(), graph.dtype, strict=True)]
    for node in range(len(graph)):
        moving = any(learning[v] for v in graph.inputs_of(node).tolist())
        for v in graph.outputs_of(node).tolist():
            learning[v] = moving and floating(graph.dtype[v])
    kept = [set(nodes) for nodes in asked]
    needed: list[set[int]] = [set() for _ in asked]                     # values of earlier stages, by the stage that reads them
    for s in reversed(range(len(asked))):
        for node in sorted(kept[s], reverse=True):
            _reach(graph, node, s, stage, learning, kept[s], needed[s])
    for v in graph.outputs.tolist():                                    # outputs are the last stage's to give
        if graph.producer[v] >= 0 and stage[int(graph.producer[v])] != len(asked) - 1 and int(graph.producer[v]) not in kept[-1]:
            needed[-1].add(v)
    entries: list[list[int]] = [[] for _ in asked]
    for s in range(1, len(asked)):
        entries[s] = sorted({v for later in range(s, len(asked)) for v in needed[later] if stage[int(graph.producer[v])] < s})
    return [frozenset(one) for one in kept], entries


def _reach(graph: Graph, node: int, s: int, stage: Mapping[int, int], learning: Sequence[bool], kept: set[int], needed: set[int]) -> None:
    stack = [node]
    while stack:
        for v in graph.inputs_of(stack.pop()).tolist():
            maker = int(graph.producer[v])
            if maker < 0 or stage[maker] == s or maker in kept:
                continue
            if stage[maker] > s:
                raise InputError(f"{graph.names[node]} of stage {s} reads {graph.names[maker]} of stage {stage[maker]}.", "Stages go forward only.")
            if learning[v]:
                needed.add(v)
            else:
                kept.add(maker)
                stack.append(maker)


def by_modules(graph: Graph, names: Sequence[str]) -> list[frozenset[int]]:
    """Nodes of each stage: a stage begins with the first node of the module that is named. Raises InputError where a name is no module's, or they are
    not in the program's order."""
    cuts = [0]
    for name in names:
        first = next((n for n, module in enumerate(graph.modules) if module == name or module.startswith(f"{name}.")), None)
        if first is None:
            raise InputError(f"No module that computes anything is called {name!r}.", f"Some are: {', '.join(dict.fromkeys(graph.modules[:400:40]))}")
        if first <= cuts[-1]:
            raise InputError(f"The stage of {name!r} would be empty: it begins where another does, or before.", "Name modules in their order.")
        cuts.append(first)
    return [frozenset(range(a, b)) for a, b in zip(cuts, [*cuts[1:], len(graph)], strict=True)]


__all__ = ["StageAsked", "by_modules", "parts", "staged"]
