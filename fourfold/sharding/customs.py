"""How people lay a model out by hand, as limits on its strategies: data parallelism, FSDP, Megatron's tensor parallelism.

Which letters are the batch and which the sequence is read off the program: dimension 0 and 1 of its inputs, followed through every rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fourfold.graph import INPUT, PARAMETER, Graph
from fourfold.letters import Choice, ShardingRule
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.strategies import Strategies, StrategyVariable

BATCH, SEQUENCE = "batch", "sequence"
CUSTOMS = ("data", "fsdp", "megatron")
ROLES = ("data", "fsdp", "tensor")                                      # of a mesh axis


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


def roles_of(custom: str, mesh: Mesh) -> dict[str, str]:
    """What each mesh axis does under a custom: Megatron's last axis is its tensor axis."""
    if custom == "megatron":
        return {axis: "tensor" if axis == mesh.names[-1] else "data" for axis in mesh.names}
    return dict.fromkeys(mesh.names, custom)


def uniform(mesh: Mesh) -> list[dict[str, str]]:
    """Every way to give each axis one role for the whole program."""
    return [dict(zip(mesh.names, roles, strict=True)) for roles in itertools.product(ROLES, repeat=len(mesh.names))]


def allowed(made: Strategies, roles: Mapping[str, str], tags: list[dict[str, str]]) -> list[NDArray[np.bool_]]:
    """For every variable, the strategies that the roles of the axes allow (at least one):

    data        operations split the batch; parameters are whole along the axis
    fsdp        operations split the batch; parameters are kept in pieces where they can be, and gathered when used (Zhao et al. 2023)
    tensor      operations split heads, columns and rows of weights, never batch or sequence (Shoeybi et al. 2019)
    """
    return [_stored(made, v, roles) if v.node < 0 else _operation(v, roles, tags[v.node]) for v in made.variables]


def _operation(v: StrategyVariable, roles: Mapping[str, str], tags: dict[str, str]) -> NDArray[np.bool_]:
    def fits(axis: str, choice: Choice) -> bool:
        if not isinstance(choice, str):
            return True
        return tags.get(choice, "") == "" if roles[axis] == "tensor" else tags.get(choice) == BATCH

    kept = np.array([all(fits(axis, choice) for axis, choice in one.items()) for one in v.choices])
    return kept if kept.any() else np.ones(len(v), np.bool_)


def _stored(made: Strategies, v: StrategyVariable, roles: Mapping[str, str]) -> NDArray[np.bool_]:
    if int(made.graph.role[v.value]) != PARAMETER:
        return np.ones(len(v), np.bool_)
    spread = [axis for axis, role in roles.items() if role == "fsdp"]
    whole = [axis for axis, role in roles.items() if role == "data"]
    pieces = np.array([made.mesh.lengths([axis for axis in spread if axis in specs[0].axes]) for specs in v.out])
    fits = ~v.split_state & np.array([not any(axis in specs[0].axes for axis in whole) for specs in v.out])
    kept = fits & (pieces == pieces[fits].max(initial=1))
    return kept if kept.any() else np.ones(len(v), np.bool_)


__all__ = ["BATCH", "CUSTOMS", "ROLES", "SEQUENCE", "allowed", "origins", "roles_of", "uniform"]
