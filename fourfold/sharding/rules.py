"""The rule of every operation of a captured program, and the layouts of operands and results that a choice for each mesh axis means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from fourfold.graph import Graph
from fourfold.letters import Choice, Letters, ShardingRule, whole
from fourfold.program import Captured
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

Placed = tuple[tuple[Spec, ...], tuple[Spec, ...]]                      # layouts of operands, of results


def rules(found: Captured) -> tuple[ShardingRule, ...]:
    """The rule of every node of the graph, in its order; an operation without letters is whole on every device, and its `why` says so."""
    graph = found.graph
    return tuple(found.program.letters(node) or unknown(graph, node) for node in range(len(graph)))


def unknown(graph: Graph, node: int) -> ShardingRule:
    """The rule of a node of which no table knows letters."""
    reads, makes = graph.inputs_of(node).tolist(), graph.outputs_of(node).tolist()
    return whole(graph.kinds[graph.kind[node]], reads, makes, [graph.shape_of(v) for v in reads], [graph.shape_of(v) for v in makes])


def placed(rule: ShardingRule, choices: Mapping[str, Choice], mesh: Mesh) -> Placed | None:
    """Layouts that `choices` (mesh axis → choice; axes left out do nothing) mean; None where they are impossible together.

    Axes that split the same letter nest in the order of `choices`, major first.
    """
    return _placed(rule, tuple(choices.items()), mesh)


@lru_cache(maxsize=1 << 16)
def _placed(rule: ShardingRule, choices: tuple[tuple[str, Choice], ...], mesh: Mesh) -> Placed | None:
    if not rule.allows(mesh.sizes, choices):
        return None
    over: dict[str, list[str]] = {}
    for axis, choice in choices:
        if isinstance(choice, str):
            over.setdefault(choice, []).append(axis)

    def dims(letters: Letters) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(axis for letter in dim for axis in over.get(letter, ())) for dim in letters)

    def operand(i: int) -> Spec:
        partial = [axis for axis, choice in choices if (isinstance(choice, int) and i in rule.linear[choice])
                   or (isinstance(choice, str) and i in rule.addends and any(choice in s for s in rule.sums))]
        return Spec(dims(rule.inputs[i]), tuple(partial))

    def result(o: int) -> Spec:
        partial = [axis for axis, choice in choices
                   if isinstance(choice, int) or (isinstance(choice, str) and choice in rule.sums[o] and o not in rule.extreme)]
        return Spec(dims(rule.outputs[o]), tuple(partial))

    return tuple(operand(i) for i in range(len(rule.inputs))), tuple(result(o) for o in range(len(rule.outputs)))


def combining(rule: ShardingRule, choices: Mapping[str, Choice], o: int) -> list[str]:
    """Axes over which devices combine result `o` at once, since it is a maximum or minimum over what they split: an all-reduce each."""
    return [axis for axis, choice in choices.items() if o in rule.extreme and isinstance(choice, str) and choice in rule.sums[o]]


def options(rule: ShardingRule, mesh: Mesh) -> list[tuple[dict[str, Choice], Placed]]:
    """Every possible choice for all axes at once, with its layouts, the axes nesting in the mesh's order; nothing split is the first."""
    found: list[dict[str, Choice]] = [{}]
    for axis in mesh.names:
        found = [{**one, axis: choice} for one in found for choice in rule.choices]
    placements = [(one, placed(rule, one, mesh)) for one in found]
    return [(one, layouts) for one, layouts in placements if layouts is not None]


__all__ = ["Placed", "combining", "options", "placed", "rules", "unknown"]
