"""Plans for tests of reports: a generated graph, a shipped system, a solver's answer, without the planner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fourfold.decide import Budget, Solver, solve
from fourfold.decisions.schedule.corpus import make
from fourfold.decisions.schedule.expert import Expert
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.graph import Graph
from fourfold.plan import Plan
from fourfold.system import System


def problem(family: str = "encoder_decoder", nodes: int = 300, seed: int = 0, system: str = "p100x4", train: bool = False, **fields: Any) -> Schedule:
    return Schedule(make(family, nodes, seed, train), System.read(system), **fields)


def solved(asked: Schedule, solver: Solver | None = None, evaluations: int = 40, **fields: Any) -> Plan:
    """A plan of `asked` by one solver; `fields` replace the plan's."""
    found = solve(asked, solver or Expert(), Budget(evaluations=evaluations))
    return of(asked, found.answer, solver=found.solver, before=found.before, why=found.why, bound=found.bound, gap=found.gap,
              evaluations=found.evaluations, **fields)


def of(asked: Schedule, answer: Answer, **fields: Any) -> Plan:
    known: Mapping[str, Any] = {"graph": asked.graph, "system": asked.system, "objective": asked.objective, "group": answer.group,
                                "place": answer.place, "priority": answer.priority, "solver": "expert", "cost": asked.cost(answer),
                                "unit": asked.unit}
    return Plan(**{**known, **fields})


def renamed(graph: Graph, name: str) -> Graph:
    """The same graph with every name and module replaced by something that HTML or JSON could stumble over."""
    import dataclasses

    return dataclasses.replace(graph, name=name, names=tuple(f"{name} {n}" for n in range(len(graph))),
                               modules=tuple(f"{module}.{name}" for module in graph.modules))
