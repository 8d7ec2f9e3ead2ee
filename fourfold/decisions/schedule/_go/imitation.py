"""What GO learns from: instances drawn from the corpus on many systems, and the plans that annealing finds for them (for imitation).

An instance is plain data, so that a training run is told by its seed. Systems are those that ship, with their devices made unequal, their links
faster or slower and their memory scarcer in a part of the draws: a policy that has seen one machine only learns that machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import FourfoldError, Infeasible, InputError
from fourfold.graph import Graph
from fourfold.machine import Machine
from fourfold.problem import Budget

_SYSTEMS = ("p100x2", "p100x4", "p100x8", "v100x4", "cpux2", "cpux4", "cpux8")
_WEIGHT = (6, 6, 6, 2, 1, 1, 1)


@dataclass(frozen=True)
class Instance:
    """A graph of the corpus (or `file`, a captured graph) on a system. `speed` factors on each device's peak and bandwidth, () all 1; `wire` a factor
    on the links' bandwidth; `room` device memory as a multiple of an equal share of what is resident, 0 as the system says."""

    family: str
    nodes: int
    seed: int
    train: bool
    system: str
    speed: tuple[float, ...] = ()
    wire: float = 1.0
    room: float = 0.0
    file: str = ""

    @property
    def name(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def graph(self) -> Graph:
        from fourfold.zoo.graphs import make

        return Graph.load(self.file) if self.file else make(self.family, self.nodes, self.seed, self.train)

    def problem(self) -> Schedule:
        """Raises Infeasible where the graph does not fit."""
        graph, system = self.graph(), Machine.read(self.system)
        devices = list(system.devices)
        for d, factor in enumerate(self.speed[:len(devices)]):
            one = devices[d]
            devices[d] = replace(one, peak={name: value * factor for name, value in one.peak.items()}, bandwidth=one.bandwidth * factor)
        links = tuple(replace(link, bandwidth=link.bandwidth * self.wire) for link in system.links)
        if self.room:
            loose = Schedule(graph, system, bounded=False)
            largest = max(loose.standing(nodes) for nodes in loose.classes)
            memory = max(self.room * float(loose.resident.sum()) / len(devices), 1.5 * largest) + 2.0 * float(graph.size.max())
            devices = [replace(one, memory=memory) for one in devices]
        return Schedule(graph, replace(system, devices=tuple(devices), links=links))


def draw(count: int, families: Sequence[str], seed: int, low: int = 40, high: int = 600, files: Sequence[str] = ()) -> list[Instance]:
    """`count` instances, the same for the same arguments; sizes spread evenly in their logarithm. Raises InputError where there is nothing to
    draw.
    """
    if not families and not files:
        raise InputError("There is no family left to learn from.", "Hold out fewer.")
    dice, found = random.Random(f"go {seed}"), []
    for number in range(count):
        system = dice.choices(_SYSTEMS, _WEIGHT)[0]
        devices = int(system.rsplit("x", 1)[1])
        speed = tuple(dice.choice((0.5, 1.0, 1.0, 2.0)) for _ in range(devices)) if dice.random() < 0.2 else ()
        wire = math.exp(dice.uniform(math.log(0.25), math.log(8.0))) if dice.random() < 0.4 else 1.0
        room = dice.uniform(1.6, 4.0) if dice.random() < 0.12 else 0.0
        nodes = round(math.exp(dice.uniform(math.log(low), math.log(high))))
        if files and dice.random() < 0.15 or not families:
            found.append(Instance("captured", 0, 0, False, system, speed, wire, room, dice.choice(list(files))))
        else:
            chance, train = dice.randrange(10**6), dice.random() < 0.5
            # of a training graph activations are what fills a device, so that a multiple of its parameters says nothing
            found.append(Instance(families[number % len(families)], nodes, chance, train, system, speed, wire, 0.0 if train else room))
    return found


def teach(instance: Instance, folder: Path, evaluations: int, seed: int = 0) -> tuple[Schedule, Answer, float] | None:
    """(problem, the plan that annealing finds in so many simulations, its cost), kept in `folder`; None where the instance has no plan."""
    from fourfold.decisions.schedule.anneal import Anneal

    try:
        problem = instance.problem()
    except Infeasible:
        return None
    path = folder / f"{instance.name}-{problem.graph.hash[:12]}-{evaluations}.npz"
    if path.exists():
        with np.load(path) as kept:
            return problem, Answer(kept["group"], kept["place"], kept["priority"]), float(kept["cost"])
    try:
        budget = Budget(3600.0, evaluations)
        answer = Anneal().solve(problem, budget, seed).answer
    except FourfoldError:
        return None
    cost = problem.cost(answer)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part.npz")
    np.savez(scratch, group=answer.group, place=answer.place, priority=answer.priority, cost=np.float64(cost))
    scratch.replace(path)
    return problem, answer, cost
