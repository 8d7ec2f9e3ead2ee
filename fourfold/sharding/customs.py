"""How people lay a model out by hand, as limits on its strategies: data parallelism, FSDP, Megatron's tensor parallelism.

Which letters are the batch and which the sequence is read off the program: dimension 0 and 1 of its inputs, followed through every rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fourfold.graph import INPUT, PARAMETER, Graph
from fourfold.letters import Choice, ShardingRule
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.strategies import Strategies, StrategyVariable

BATCH, SEQUENCE = "batch", "sequence"
CUSTOMS = ("data", "fsdp", "megatron")


def origins(graph: Graph, rules: Sequence[ShardingRule]) -> list[dict[str, str]]:
    """For every node, the letters that are the batch or the sequence."""
    of: dict[int, list[str]] = {}
    for v in np.flatnonzero(graph.role == INPUT).tolist():
        shape = graph.shape_of(v)
        of[v] = [BATCH, SEQUENCE, *[""] * len(shape)][: len(shape)] if len(shape) < 4 else [BATCH, *[""] * (len(shape) - 1)]
    found: list[dict[str, str]] = []
    for rule in rules:
        letters: dict[str, str] = {}
        for i, value in enumerate(rule.reads):
            for dim, names in enumerate(rule.inputs[i]):
                if names and (said := of.get(value, [""] * (dim + 1))[dim]):
                    letters.setdefault(names[0], said)                  # of a joined dimension the major letter
                    if said == BATCH and len(names) > 1 and dim == 0:
                        letters.setdefault(names[1], SEQUENCE)          # rows and positions that were flattened into one
        for o, value in enumerate(rule.makes):
            of[value] = [next((letters[a] for a in names if a in letters), "") for names in rule.outputs[o]]
        found.append(letters)
    return found


def allowed(made: Strategies, custom: str, tags: list[dict[str, str]]) -> list[NDArray[np.bool_]]:
    """For every variable, the strategies that a custom allows (at least one):

    data        operations split the batch; parameters are whole on every device
    fsdp        operations split the batch; parameters are kept in as many pieces as they can be, and gathered when used (Zhao et al. 2023)
    megatron    the last axis splits heads, columns and rows of weights, never batch or sequence; other axes split the batch (Shoeybi et al. 2019)
    """
    return [_stored(made, v, custom) if v.node < 0 else _operation(v, custom, tags[v.node], made.mesh) for v in made.variables]


def _operation(v: StrategyVariable, custom: str, tags: dict[str, str], mesh: Mesh) -> NDArray[np.bool_]:
    inner = mesh.names[-1] if custom == "megatron" else ""

    def fits(axis: str, choice: Choice) -> bool:
        if not isinstance(choice, str):
            return True
        return tags.get(choice, "") == "" if axis == inner else tags.get(choice) == BATCH

    kept = np.array([all(fits(axis, choice) for axis, choice in one.items()) for one in v.choices])
    return kept if kept.any() else np.ones(len(v), np.bool_)


def _stored(made: Strategies, v: StrategyVariable, custom: str) -> NDArray[np.bool_]:
    role = int(made.graph.role[v.value])
    if role != PARAMETER:
        return np.ones(len(v), np.bool_)
    many = np.array([made.mesh.lengths(sorted(specs[0].axes)) for specs in v.out])
    outer = np.array([any(axis in specs[0].axes for axis in made.mesh.names[:-1]) for specs in v.out])
    kept = ~v.split_state & {"data": many == 1, "fsdp": many == many.max(), "megatron": ~outer}[custom]
    return kept if kept.any() else many == 1


__all__ = ["BATCH", "CUSTOMS", "SEQUENCE", "allowed", "origins"]
