"""The plan of memory that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify`; and what it was priced by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.rematerialise._far import FarMemory
from fourfold.decisions.rematerialise.instance import ALIGNMENT, prices
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.graph import VIEW, Graph

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.plans import Document

QUESTION = "rematerialise"
_HELD = ("view", "plain")                                               # ways whose results the executor holds outside of the arena
_STRAIGHT = ("out", "own")                                              # ways (`runtime/arena/writers.py`) that write where they are told to


@dataclass(frozen=True)
class NodeCosts:
    """What each node does by itself: `seconds` f8[N], `workspace` i8[N] bytes allocated beside the arena, `way` [N] how it writes its results (()
    where it was not run: seconds are modelled), `random` nodes that draw alike whenever they run.
    """

    seconds: np.ndarray
    workspace: np.ndarray
    way: tuple[str, ...] = ()
    random: tuple[int, ...] = ()

    @classmethod
    def modelled(cls, graph: Graph, system: Machine) -> NodeCosts:
        """By the roofline, nothing allocated besides."""
        return cls(prices(graph, system), np.zeros(len(graph), np.int64))

    @property
    def measured(self) -> bool:
        return bool(self.way)

    def problem(self, graph: Graph, room: int | None, far: FarMemory | None = None, watts: float | None = None) -> Rematerialise:
        """The question for an arena of `room` bytes; what is allocated beside it is not in it. `far`: a second memory, for what is a tensor in the
        arena. `watts`: prices in joules, the processor's busy watts over the seconds, and what the link takes a byte besides.
        """
        price, transfer = self.seconds, np.full(len(graph.alias), np.inf)
        if far is not None:
            held = np.array([way in _HELD for way in self.way] or [False] * len(graph))      # results of these are not in the arena
            some = (graph.producer >= 0) & ~held[np.maximum(graph.producer, 0)]
            size = -(-graph.size[some] // ALIGNMENT) * ALIGNMENT
            transfer[some] = far.seconds(size) if watts is None else watts * far.seconds(size) + far.energy * size
        if watts is not None:
            price = watts * self.seconds
        return Rematerialise.of(graph, room, price=price, seeds_kept=self.random, far=far, transfer=transfer, unit="s" if watts is None else "J")

    def straight(self, graph: Graph) -> dict[str, Any]:
        """Of the ops that compute: how many there are, how many write straight into the arena (None: not known), which has the largest temporary."""
        if not self.way:
            return {"computing": int((graph.fusion != VIEW).sum()), "straight": None, "worst": ""}
        computing = [n for n, way in enumerate(self.way) if way in (*_STRAIGHT, "copy")]
        worst = int(np.argmax(self.workspace)) if len(graph) else 0
        return {"computing": len(computing), "straight": sum(self.way[n] in _STRAIGHT for n in computing),
                "worst": self._called(graph, worst) if self.workspace.any() else ""}

    @staticmethod
    def _called(graph: Graph, node: int) -> str:
        from fourfold.cost.roofline import short

        kind, module = short(graph.kinds[graph.kind[node]]), graph.modules[node]
        return f"{kind} of {module}" if module else f"{kind} ({graph.names[node]})"

    def to_json(self) -> dict[str, object]:
        return {"seconds": self.seconds.tolist(), "workspace": self.workspace.tolist(), "way": list(self.way), "random": list(self.random)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NodeCosts:
        """Raises KeyError, TypeError or ValueError for something else."""
        return cls(np.array(data["seconds"], np.float64), np.array(data["workspace"], np.int64), tuple(map(str, data["way"])),
                   tuple(map(int, data["random"])))


def rebuild(document: Document) -> tuple[Rematerialise, Rematerialisation]:
    """(problem, answer). Raises ArtefactError where a file is damaged, KeyError or ValueError where the document lacks something."""
    solution = document.solutions[QUESTION]
    far = FarMemory.from_json(solution["far"]["memory"]) if solution.get("far") else None
    problem = NodeCosts.from_json(solution["nodes"]).problem(document.graph, int(solution["room"]), far, solution.get("watts"))
    return problem, Rematerialisation.from_json(solution["answer"])


def proof(document: Document) -> list[str]:
    """What is wrong with the peaks that a stored plan claims."""
    solution = document.solutions[QUESTION]
    problem, answer = rebuild(document)
    if problem.violations(answer):
        return []
    arena, outside = problem.peak(answer), int(np.array(solution["nodes"]["workspace"], np.int64).max(initial=0))
    wrong = []
    if arena != solution["arena"]:
        wrong.append(f"the plan says that its arena takes {solution['arena']:,} bytes, counted again it is {arena:,}")
    if solution["peak"] != arena + outside:
        wrong.append(f"the plan says that its peak is {solution['peak']:,} bytes, counted again it is {arena + outside:,}")
    if solution["limit"] is not None and arena + outside > solution["limit"]:
        wrong.append(f"its peak of {arena + outside:,} bytes is above its limit of {solution['limit']:,}")
    if solution.get("far") and (used := problem.far_peak(answer)) != solution["far"]["used"]:
        wrong.append(f"the plan says that its copies take {solution['far']['used']:,} bytes of the second memory, counted again it is {used:,}")
    return wrong
