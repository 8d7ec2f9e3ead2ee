"""A plan for several devices in plain data: stages in order, and in each the mesh, the nodes, and where every tensor lies. What `run` carries out.

    {"devices": 8, "microbatches": 4, "schedule": "1f1b", "train": true,
     "stages": [{"devices": [0, 1, 2, 3],                     # ranks, in the mesh's row-major order
                 "mesh": {"names": ["x", "y"], "shape": [2, 2], "alpha": […], "beta": […]},
                 "layers": [0, 1],                            # first and last layer
                 "nodes": ["linear", …],                      # names of the graph's nodes, in its order; every node is in one stage
                 "choices": {"linear": {"x": "a", "y": null}},# along each axis: a letter of its rule, a linear set's number, or nothing
                 "stored": {"blocks.0.up.weight": [[], ["y"]], …},     # parameters, constants and inputs by label: axes of each dimension
                 "values": {"linear": [{"dims": [["x"], []], "partial": ["y"]}], …},   # the layouts in which nodes make their results
                 "state": ["blocks.0.up.weight"],             # parameters whose optimiser state is split over the axes that leave them whole
                 "again": false}]}                            # the stage computes its activations again in the backward pass
A node's operands and results lie as `rules.placed(rule, choices, mesh)` says (`values` repeats the results);
between them the cheapest resharding is due.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from fourfold.errors import ArtefactError
from fourfold.letters import Choice
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.spec import Spec

_AGAIN = "Make the plan again: fourfold plan MODEL --devices 2x4 --out DIR"


@dataclass(frozen=True)
class StagePlan:
    """One stage: `devices` ranks in the row-major order of `mesh`, (first, last) of its `layers`, names of its `nodes`, a choice for each axis by
    node, the layout of each `stored` tensor by label and of the results of each node, labels of parameters with split optimiser `state`."""

    devices: tuple[int, ...]
    mesh: Mesh
    layers: tuple[int, int]
    nodes: tuple[str, ...]
    choices: Mapping[str, Mapping[str, Choice]]
    stored: Mapping[str, Spec]
    values: Mapping[str, tuple[Spec, ...]]
    state: tuple[str, ...] = ()
    again: bool = False

    def to_json(self) -> dict[str, object]:
        mesh = {"names": list(self.mesh.names), "shape": list(self.mesh.shape), "alpha": list(self.mesh.alpha), "beta": list(self.mesh.beta)}
        return {"devices": list(self.devices), "mesh": mesh, "layers": list(self.layers), "nodes": list(self.nodes),
                "choices": {name: dict(choice) for name, choice in self.choices.items()},
                "stored": {label: [list(axes) for axes in spec.dims] for label, spec in self.stored.items()},
                "values": {name: [{"dims": [list(axes) for axes in spec.dims], "partial": list(spec.partial)} for spec in specs]
                           for name, specs in self.values.items()},
                "state": list(self.state), "again": self.again}


@dataclass(frozen=True)
class DevicePlan:
    """A program over `devices` ranks: `stages` in order, `microbatches` a step, the pipeline's `schedule`."""

    devices: int
    microbatches: int
    schedule: str
    train: bool
    stages: tuple[StagePlan, ...]

    def to_json(self) -> dict[str, object]:
        return {"devices": self.devices, "microbatches": self.microbatches, "schedule": self.schedule, "train": self.train,
                "stages": [stage.to_json() for stage in self.stages]}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> DevicePlan:
        """What `to_json` gave. Raises ArtefactError where a field is missing or odd."""
        try:
            stages = tuple(_stage(one) for one in cast(Sequence[Mapping[str, object]], data["stages"]))
            return cls(int(cast(int, data["devices"])), int(cast(int, data["microbatches"])), str(data["schedule"]), bool(data["train"]), stages)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"The plan's stages are damaged: {type(error).__name__}: {str(error).splitlines()[0][:100]}.", _AGAIN) from error


def _stage(data: Mapping[str, object]) -> StagePlan:
    mesh = cast(Mapping[str, Sequence[float]], data["mesh"])
    names = tuple(map(str, mesh["names"]))
    first, last = cast(Sequence[int], data["layers"])
    stored = cast(Mapping[str, Sequence[Sequence[str]]], data["stored"])
    values = cast(Mapping[str, Sequence[Mapping[str, Sequence[Sequence[str]]]]], data["values"])
    return StagePlan(
        tuple(cast(Sequence[int], data["devices"])), Mesh(names, tuple(int(n) for n in mesh["shape"]), tuple(mesh["alpha"]), tuple(mesh["beta"])),
        (int(first), int(last)), tuple(cast(Sequence[str], data["nodes"])),
        {name: dict(choice) for name, choice in cast(Mapping[str, Mapping[str, Choice]], data["choices"]).items()},
        {label: Spec(tuple(tuple(axes) for axes in dims)) for label, dims in stored.items()},
        {name: tuple(Spec(tuple(tuple(axes) for axes in one["dims"]), tuple(map(str, one["partial"]))) for one in specs)
         for name, specs in values.items()},
        tuple(cast(Sequence[str], data["state"])), bool(data["again"]),
    )  # fmt: skip


__all__ = ["DevicePlan", "StagePlan"]
