"""METIS: cut the graph into parts of equal work that exchange few bytes, then order each part by list scheduling.

Multilevel partitioning (Karypis and Kumar 1998) weighs nodes and edges but ignores direction, time and memory, so parts are matched to devices by
what they
can run, and mended where they hold too much. Needs the extra `place` (pymetis).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np

from fourfold.decisions.schedule._list import heft
from fourfold.decisions.schedule._parts import PartitionTasks, fit, fuse
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.problem import Budget, Solver, SolverAnswer

_SCALE = 10_000                                                        # METIS counts in whole numbers: of the heaviest node, of the largest edge


def partition(work: PartitionTasks, parts: int, seed: int = 0) -> np.ndarray:
    """i8[U] the part of each unit."""
    import pymetis

    units = len(work.unit_able)
    seconds = np.bincount(work.unit, work.dag.mean, units)
    src, dst, value = work.tasks.edges()
    a, b, size = work.unit[src], work.unit[dst], work.tasks.size[value].astype(np.float64)
    low, high = np.minimum(a, b), np.maximum(a, b)
    pairs, inverse = np.unique((low * units + high)[low != high], return_inverse=True)
    weight = np.bincount(inverse, size[low != high], len(pairs))
    weight = np.maximum(1, weight * _SCALE / max(1.0, weight.max(initial=0.0))).astype(np.int64)
    ends, other = np.concatenate([pairs // units, pairs % units]), np.concatenate([pairs % units, pairs // units])
    order = np.argsort(ends, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=units))])
    vertex = np.maximum(1, seconds * _SCALE / max(1e-30, float(seconds.max(initial=0.0)))).astype(np.int64)
    _, found = pymetis.part_graph(parts, xadj=start.tolist(), adjncy=other[order].tolist(), vweights=vertex.tolist(),
                                  eweights=np.tile(weight, 2)[order].tolist(), options=pymetis.Options(seed=seed))
    return np.array(found)


def placed(work: PartitionTasks, factor: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(place, priority) of the parts, each unit where it can run, however much a device then holds."""
    if work.problem.place is not None:
        return work.forced, -heft(work.dag, work.forced)[1]
    devices = len(work.problem.system)
    part = partition(work, devices, seed) if devices > 1 else np.zeros(len(work.unit_able), np.int64)
    device = np.where(work.unit_able[np.arange(len(part)), part], part, work.unit_able.argmax(1))[work.unit]
    _, start, _, _ = heft(replace(work.dag, held=work.held * factor), device)
    return device, -start


class Metis(Solver):
    """METIS' parts on devices, ordered by upward rank."""

    title: ClassVar[str] = "METIS: balanced parts of least cut, then list scheduling"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("karypis1998", "topcuoglu2002")
    needs: ClassVar[tuple[str, ...]] = ("pymetis",)
    counts: ClassVar[str] = "plans"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        work = PartitionTasks.of(problem, fuse(problem))
        budget.spend()
        return SolverAnswer(work.answer(*fit(work, partial(placed, seed=seed), (1.0,))))
