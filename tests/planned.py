"""Plans for tests of reports: a generated graph, a shipped system, a solver's answer, without the planner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fourfold.decisions.schedule.expert import Expert
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.graph import Graph
from fourfold.machine import Machine
from fourfold.plans import Plan
from fourfold.problem import Budget, Solver, solve
from fourfold.runtime.local.executor import Execution, Ran, Sent
from fourfold.zoo.graphs import make


def problem(family: str = "encoder_decoder", nodes: int = 300, seed: int = 0, system: str = "p100x4", train: bool = False, **fields: Any) -> Schedule:
    return Schedule(make(family, nodes, seed, train), Machine.read(system), **fields)


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


def executed(plan: Plan, compiled: bool = False) -> Execution:
    """What an executor would hand back that takes twice as long as predicted; `compiled`: each device's tasks are one region with one span."""
    timeline, place = plan.timeline(), plan.of_tasks[0]
    start, finish = 2 * timeline.start, 2 * timeline.finish
    rows = []
    for d in range(len(plan.system)):
        tasks = tuple(np.flatnonzero(place == d).tolist())
        if tasks and compiled:
            start[list(tasks)], finish[list(tasks)] = start[list(tasks)].min(), finish[list(tasks)].max()
        if tasks:
            rows.append(Ran(d, d, "inductor" if compiled else "eager", tasks, start[list(tasks)].min(), finish[list(tasks)].max(), 0.1))
    value = {}                                                          # value of the tasks → value of the graph: the first that its task hands on
    for v, maker in enumerate(plan.tasks.producer.tolist()):
        value[v] = next(x for n in np.flatnonzero(plan.tasks.group == maker).tolist() for x in plan.graph.outputs_of(n).tolist())
    sent = timeline.transfers
    moved = tuple(Sent(value[v], a, b, 2 * s, 2 * f, 8) for v, a, b, s, f in zip(*(getattr(sent, name).tolist() for name in (
        "value", "source", "target", "start", "finish")), strict=True))
    total = 2 * timeline.makespan
    return Execution(None, total, total, total, (total,) * 3, start, finish, total, tuple(rows), moved, {}, "planned")
