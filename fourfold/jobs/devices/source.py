"""What is planned over several devices: the captured program with its letters, the devices and their meshes, limits, and what a node takes on one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError
from fourfold.graph import Graph
from fourfold.jobs import planning
from fourfold.letters import ShardingRule
from fourfold.machine import Machine
from fourfold.program import Captured
from fourfold.sharding.mesh import Mesh


@dataclass(frozen=True, eq=False)
class DevicesAsked:
    """The question. `count` layers, `layer` i8[N] of each node; `limit` bytes a device; `seconds` f8[N] of each node's forward work on one device."""

    captured: Captured
    rules: tuple[ShardingRule, ...]
    system: Machine
    hosts: int
    each: int
    microbatches: int
    schedule: str
    train: bool
    limit: float
    count: int
    layer: NDArray[np.int64]
    seconds: NDArray[np.float64]
    model: Mapping[str, object]
    capture: Mapping[str, object]
    notes: tuple[str, ...] = ()
    linked: bool = True                                                 # links are the machine's; False: assumed
    meshes: dict[str, Mesh] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.captured.graph

    @property
    def devices(self) -> int:
        return self.hosts * self.each

    def mesh(self, text: str) -> Mesh:
        """The mesh of the first devices, with the machine's links where it has so many devices."""
        if text not in self.meshes:
            self.meshes[text] = Mesh.of(self.system, text) if self.linked else Mesh.parse(text)
        return self.meshes[text]


def parsed(devices: str) -> tuple[int, int]:
    """(hosts, devices a host) of "2x4" or "8". Raises InputError for other text."""
    if not re.fullmatch(r"\s*[1-9]\d*\s*([x×]\s*[1-9]\d*\s*)?", devices):
        raise InputError(f"--devices {devices!r} is not hosts × devices.", "Write 2x4 for two hosts of four devices, or 4 for one host of four.")
    sizes = [int(part) for part in re.split("[x×]", devices)]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else (1, sizes[0])


def asked_of(model: object, inputs: object, *, devices: str, machine: object, memory: int | str | None, train: bool, microbatches: int, schedule: str,
             layers: int | None, dims: Mapping[str, int] | None, seed: int, trust: Iterable[str]) -> DevicesAsked:
    """Read all that was given. Raises InputError where it does not fit together."""
    from fourfold.cost.roofline import seconds
    from fourfold.decisions.stages.problem import SCHEDULES
    from fourfold.sharding.layers import default_layers
    from fourfold.sharding.layers import layers as cut
    from fourfold.sharding.rules import rules

    hosts, each = parsed(devices)
    if microbatches < 1:
        raise InputError(f"--microbatches {microbatches} is no number of microbatches.", "Give 1 or more.")
    if schedule not in SCHEDULES:
        raise InputError(f"There is no pipeline schedule {schedule!r}.", f"Known: {', '.join(SCHEDULES)}.")
    system, notes = planning.machine(machine)
    linked = len(system) >= hosts * each
    if not linked and str(machine) != "here":
        raise InputError(f"{devices} are {hosts * each} devices, and {system.name!r} has {len(system)}.",
                         "Ask for as many as it has, or name another machine.")
    if linked and len(system) % (hosts * each):
        raise InputError(f"The mesh {devices} takes {hosts * each} devices, and {system.name!r} has {len(system)}, which it does not divide.",
                         f"Choose sizes whose product divides {len(system)}.")
    if not linked:
        notes = [*notes, f"This machine has {len(system)} device{'s' * (len(system) != 1)}; {hosts * each} like it are planned for, with links of "
                         "10 GB/s and 10 µs assumed. Give --machine for real ones."]
    captured, told, how = captured_of(model, inputs, train, dims, seed, trust)
    graph = captured.graph
    count = default_layers(graph) if layers is None else layers
    if not 1 <= count <= len(graph):
        raise InputError(f"--layers {count}: {graph.name} has {len(graph)} operations.", f"Give 1 to {len(graph)}.")
    limit = _limit(memory, system)
    one = Machine(system.name, system.devices[:1])
    return DevicesAsked(captured, rules(captured), system, hosts, each, microbatches, schedule, train, limit, count, cut(graph, count),
                 np.minimum(seconds(graph, one)[:, 0], 1e6), told, how, (*notes, *captured.note), linked)


def captured_of(model: object, inputs: object, train: bool, dims: Mapping[str, int] | None, seed: int,
                trust: Iterable[str]) -> tuple[Captured, dict[str, object], dict[str, object]]:
    """The forward program, and how it is captured again. Large models by name have no weights."""
    from fourfold.frontends.torch_export import capture
    from fourfold.runtime.source import read
    from fourfold.zoo.giants import giant, is_giant

    if isinstance(model, str) and is_giant(model) and not Path(model).exists():
        sizes = dict(dims or {})
        batch, length = sizes.pop("batch", 1), sizes.pop("sequence", sizes.pop("length", 1024))
        if sizes:
            raise InputError(f"{model} has no dimension {min(sizes)!r}.", "It has batch and sequence.")
        found = capture(*giant(model, batch, length), name=model)
        how: dict[str, object] = {"train": False, "level": "ops", "dims": dict(dims or {}), "seed": seed}
        return found, {"ref": model, "kind": "giant", "path": "", "weights": ""}, how
    source = read(model, inputs, train=False, dims=dims, seed=seed, trust=trust)
    return source.captured, source.model, source.capture


def _limit(memory: int | str | None, system: Machine) -> float:
    """Bytes of a device. Raises InputError where the text is no size."""
    from fourfold.units.parse import quantity

    if memory is None:
        return float(system.devices[0].memory)
    return float(quantity(memory, "size", "--memory", bare="B", least=1.0))


def meshes_of(hosts: int, each: int) -> list[str]:
    """Logical meshes of all submeshes, by text: within a host 2^k devices (or all), or whole hosts; each as one axis, or two factors of it."""
    within = sorted({2**k for k in range(each.bit_length()) if 2**k <= each and each % 2**k == 0} | {each})
    found = []
    for n in within:
        found.append(f"{n}")
        found += [f"{a}x{n // a}" for a in range(2, n) if n % a == 0 and a * a <= n]
    whole = sorted({2**k for k in range(1, hosts.bit_length()) if 2**k <= hosts} | ({hosts} if hosts > 1 else set()))
    for n in whole:
        found.append(f"{n}x{each}" if each > 1 else f"{n}")
        if each >= 4 and each % 2 == 0:
            found.append(f"{2 * n}x{each // 2}")
    return list(dict.fromkeys(found))



__all__ = ["DevicesAsked", "asked_of", "captured_of", "meshes_of", "parsed"]
