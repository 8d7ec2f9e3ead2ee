"""The table of stages: on every mesh the best layouts of the program from quick to lean, and those that people make by hand, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.stages.instance import StageTable
from fourfold.jobs.devices.source import DevicesAsked, meshes_of
from fourfold.sharding.customs import CUSTOMS, allowed, origins, roles_of
from fourfold.sharding.intra import LaidOut, boundaries, lay_out
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.strategies import Regime, Strategies, build

F64 = NDArray[np.float64]
_LEAN = (1.0, 10.0, 100.0)                                              # how much a full memory is made to cost, in times of the program


@dataclass(frozen=True, eq=False)
class Configuration:
    """A layout on a mesh. `custom`: how people would lay it out, or ""; `again`: activations are computed again in the backward pass."""

    text: str
    mesh: Mesh
    custom: str
    again: bool
    made: Strategies
    laid: LaidOut

    @property
    def label(self) -> str:
        return f"{self.text}{f', {self.custom}' * bool(self.custom)}{', recompute' * self.again}"


@dataclass(frozen=True, eq=False)
class Layouts:
    """The table of stages and the layout behind each of its configurations. `exact`: meshes whose best layout is proven, of `meshes`."""

    table: StageTable
    configs: tuple[Configuration, ...]
    exact: int
    meshes: int

    def only(self, custom: str) -> tuple[StageTable, NDArray[np.int64]] | None:
        """The table of the layouts of one custom, and where its rows stand in this one; None where there are none."""
        rows = np.array([i for i, config in enumerate(self.configs) if config.custom == custom], np.int64)
        if not rows.size:
            return None
        t = self.table
        return StageTable(t.layers, tuple(t.configs[i] for i in rows), t.devices[rows], t.data[rows], t.seconds[rows], t.held[rows],
                          t.active[rows]), rows


def laid_out(asked: DevicesAsked) -> Layouts:
    """Lay the program out on every mesh that a stage may have."""
    tags = origins(asked.graph, asked.rules)
    configs: list[Configuration] = []
    exact, texts = 0, meshes_of(asked.hosts, asked.each)
    for text in texts:
        mesh = asked.mesh(text)
        for again in (False, True) if asked.train else (False,):
            regime = Regime(asked.train, again, asked.microbatches)
            made = build(asked.graph, asked.rules, mesh, regime, asked.seconds, asked.layer)
            best = lay_out(made, asked.count)
            exact += best.bound is not None and not again
            found = {best.assignment.tobytes(): Configuration(text, mesh, "", again, made, best)}
            full = best.value / (asked.limit * asked.devices / mesh.size) if np.isfinite(asked.limit) else 0.0
            for share in _LEAN if full and mesh.size > 1 else ():
                lean = lay_out(made, asked.count, share * full)
                found.setdefault(lean.assignment.tobytes(), Configuration(text, mesh, "", again, made, lean))
            configs += found.values()
            for custom in CUSTOMS if mesh.size > 1 else ("data",):
                masks = allowed(made, roles_of(custom, mesh), tags)
                configs.append(Configuration(text, mesh, custom, again, made, lay_out(made, asked.count, full, masks)))
    return Layouts(table_of(asked, configs), tuple(configs), exact, len(texts))


def table_of(asked: DevicesAsked, configs: list[Configuration]) -> StageTable:
    """Seconds and bytes of every run of layers in each configuration."""
    count = asked.count
    leaving = boundaries(asked.graph, asked.layer, count)
    whole = asked.mesh(f"{asked.hosts}x{asked.each}")
    seconds, held, active = (np.full((len(configs), count, count), np.inf) for _ in range(3))
    for c, config in enumerate(configs):
        laid = config.laid
        time, fixed = np.concatenate([[0.0], np.cumsum(laid.seconds)]), np.concatenate([[0.0], np.cumsum(laid.held)])
        kept = np.concatenate([[0.0], np.cumsum(laid.entering if config.again else laid.kept)])
        axis = 0 if config.mesh.size >= asked.each and asked.hosts > 1 else 1
        send = (1 + asked.train) * (whole.alpha[axis] + whole.beta[axis] * leaving / config.mesh.size)
        send[-1] = 0.0
        for i in range(count):
            peak = np.maximum.accumulate((laid.kept if config.again else laid.peak)[i:])
            seconds[c, i, i:] = time[i + 1 :] - time[i] + send[i:]
            held[c, i, i:] = fixed[i + 1 :] - fixed[i] + (peak if config.again or not asked.train else 0.0)
            active[c, i, i:] = kept[i + 1 :] - kept[i] if asked.train else 0.0
    data = np.array([config.custom == "data" for config in configs])
    return StageTable(tuple(f"layer {i}" for i in range(count)), tuple(config.label for config in configs),
                      np.array([config.mesh.size for config in configs]), data, np.maximum(seconds, 0.0), held, active)


__all__ = ["Configuration", "Layouts", "laid_out", "table_of"]
