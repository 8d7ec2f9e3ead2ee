"""The intra-operator problem alone: a strategy for each node of an instance, behind `fourfold shard FILE.json`.

`shard_instance` reads the public contest's format (or takes a `StrategyGraph`), refuses what contradicts itself, asks a solver, and hands back a
`ShardingChoice` whose answer the validator has examined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourfold import plans
from fourfold.decisions.shard._contest import read_contest, written
from fourfold.decisions.shard.instance import StrategyGraph
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.decisions.shard.stored import CHOICE, FILE
from fourfold.decisions.shard.stored import sentences as told
from fourfold.errors import Infeasible
from fourfold.jobs import planning
from fourfold.problem import Solution

if TYPE_CHECKING:
    from fourfold.rewrites.compress._bench import ProgressCallback

QUESTION = "shard"
_PLAIN = "greedy"                                                       # what is asked beside a solver that is named
_MOST_LISTED = 200_000                                                  # nodes whose choices a JSON document lists


@dataclass(frozen=True, eq=False)
class ShardingChoice:
    """A strategy for each node. `problem` (its graph and validator), `solution` (cost, before, bound, gap, evidence: the certificate), `table` (a row
    a solver asked), `workload` (what the instance is), `notes`, `interrupted`."""

    problem: ShardProblem
    solution: Solution[np.ndarray]
    table: tuple[Mapping[str, object], ...]
    workload: Mapping[str, object]
    seed: int = 0
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def chosen(self) -> np.ndarray:
        """i8[n]: the strategy of each node, from 0."""
        return self.solution.answer

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        return tuple(told(self._solution(False)))

    def to_json(self) -> dict[str, object]:
        """One document: cost, bound, peak bytes, the choice of each node (left out beyond 200,000), a row a solver, sentences, notes."""
        listed = self.chosen.tolist() if len(self.chosen) <= _MOST_LISTED else None
        return {**self._solution(), "workload": dict(self.workload), "strategies": listed}

    def _solution(self, worded: bool = True) -> dict[str, object]:
        """The solution as a plan keeps it, without its answer."""
        from fourfold.decisions.shard.validate import loads

        g, found = self.problem.graph, self.solution
        peak = int(loads(g, found.answer)[1].max(initial=0))
        sized = {"nodes": len(g), "edges": g.edges, "choices": len(g.cost), "limit": g.limit, "peak": peak}
        return {"solver": found.solver, "cost": found.cost, "total": self.problem.total(found.answer), "unit": found.unit, "before": found.before,
                "why": found.why, "saving": found.saving, "bound": found.bound, "gap": found.gap, "optimal": found.gap == 0, **sized,
                "seconds": found.seconds, "evaluations": found.evaluations, "seed": self.seed, "interrupted": self.interrupted,
                "table": [dict(row) for row in self.table], "notes": list(self.notes), "hash": self.hash,
                "searched": bool(found.evidence.get("searched")),
                **({"sentences": list(self.sentences)} if worded else {})}

    @cached_property
    def hash(self) -> str:
        """sha256 of the instance and the choice."""
        return plans.identify(str(self.workload["hash"]), self.chosen.tolist())

    def save(self, folder: str | Path) -> list[Path]:
        """Write plan.json, the instance and the certificate into `folder`; the paths. Raises InputError where it cannot be written."""
        g, evidence = self.problem.graph, self.solution.evidence
        solution = {**self._solution(), "answer": {"strategies": self.chosen.tolist()}}
        machine = {"name": "devices without a limit of memory" if g.limit is None else f"devices of {g.limit:,} B", "hash": plans.identify(g.limit)}
        files = {FILE: lambda path: path.write_bytes(written(g))}
        if (proof := evidence.get("certificate")) is not None:
            files[CHOICE] = proof.save
        return plans.store(folder, QUESTION, solution, self.workload, machine, files)


def shard_instance(
    source: str | Path | StrategyGraph,
    *,
    solver: str = "auto",
    budget: float | str = 60.0,
    evaluations: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> ShardingChoice:
    """Choose a strategy for each node, so that costs of nodes and edges are least within the memory limit.

    source: a file of the public contest's format (.json, .json.gz), or a `StrategyGraph`. solver: a name, or auto. budget: seconds, or "10min";
    `evaluations` stops it alike on every machine. out: a folder for the plan, with the instance and the certificate of the bound.

    Ctrl-C while it searches hands back the best so far (`interrupted`). Raises InputError for what cannot be read or does not fit together,
    Infeasible where no choice keeps the rules: the message says whether that is proven, and by how much the limit is passed.
    """
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.workload import seconds

    listener, patience = progress or NullProgress(), seconds(budget)
    planning.check(solver, "cost", QUESTION, ["auto", *planning.names(QUESTION)], ["cost"])
    if out is not None:
        plans.may_save(out, [source], [FILE, CHOICE], questions=(QUESTION,))
    listener.stage("capture")
    graph = source if isinstance(source, StrategyGraph) else read_contest(source)
    question = ShardProblem(graph)
    if why := question.impossible():
        raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes at that time.")
    first = solver.removeprefix(f"{QUESTION}/")
    beside = [] if first in ("auto", _PLAIN) else [_PLAIN]
    found = planning.decide(question, first, budget=patience, evaluations=evaluations, seed=seed, listener=listener, question=QUESTION,
                            compared=beside)
    about = {"kind": "strategies", "name": graph.title or "instance", "hash": graph.hash, "nodes": len(graph)}
    notes = (found.solution.note,) if found.solution.note else ()
    made = ShardingChoice(question, found.solution, tuple(found.table), about, seed, notes, found.interrupted)
    if out is not None:
        made.save(out)
    return made
