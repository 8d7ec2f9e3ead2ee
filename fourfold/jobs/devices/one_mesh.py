"""`fourfold shard MODEL --mesh 2x4`: the layouts of a whole program on one mesh, as the question `shard`, within a limit of memory, with a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from fourfold import plans
from fourfold.decisions.shard._contest import written
from fourfold.decisions.shard.bound import DualCertificate
from fourfold.decisions.shard.instance import StrategyGraph
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.decisions.shard.stored import CHOICE, FILE
from fourfold.decisions.shard.stored import sentences as told
from fourfold.decisions.shard.validate import loads
from fourfold.jobs import planning
from fourfold.jobs.devices.layouts import Configuration
from fourfold.jobs.devices.source import DevicesAsked, asked_of
from fourfold.jobs.devices.told import collectives_of, stage_plan, tensors_of
from fourfold.problem import Solution
from fourfold.registry import technique
from fourfold.report.format import size, span
from fourfold.sharding.customs import CUSTOMS, allowed, origins, roles_of
from fourfold.sharding.intra import account, lay_out
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.stored import DevicePlan
from fourfold.sharding.strategies import Regime, Strategies, build

if TYPE_CHECKING:
    from fourfold.rewrites.compress._bench import ProgressCallback

QUESTION = "shard"
_EXACT = "bucket_elimination"
_SAME = 1e-9                                                            # share that sums in another order may differ by
_STORED = 20_000_000                                                    # entries of edge tables that a plan's folder keeps
_TITLES = {"data": "Data parallelism", "fsdp": "FSDP", "megatron": "Megatron's tensor parallelism"}


def shard_model(
    model: object,
    data_or_inputs: object = None,
    *,
    mesh: str = "1x2",
    machine: object = "here",
    memory: int | str | None = None,
    train: bool = False,
    microbatches: int = 1,
    solver: str = "auto",
    budget: float | str = 60.0,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    out: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: ProgressCallback | None = None,
) -> plans.Document:
    """Lay `model` out on `mesh` ("2x4", "dp=2,tp=4"): a layout for every tensor, a split for every operation, the least seconds a microbatch.

    The rest as of `plan_devices`; memory: limit of bytes a device for parameters, their state and what a step keeps; None: none. Raises InputError,
    ModelError or MissingExtra for what cannot be read, Infeasible where nothing fits.
    """
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.workload import seconds

    listener, patience, grid = progress or NullProgress(), seconds(budget), Mesh.parse(mesh)
    planning.check(solver, "cost", QUESTION, ["auto", *planning.names(QUESTION)], ["cost"])
    if out is not None:
        plans.may_save(out, [model, data_or_inputs, machine], [FILE, CHOICE], questions=(QUESTION,))
    listener.stage("capture")
    asked = asked_of(model, data_or_inputs, devices=str(grid.size), machine=machine, memory=memory, train=train, microbatches=microbatches,
                     schedule="1f1b", layers=1, dims=dims, seed=seed, trust=trust)
    made = build(asked.graph, asked.rules, asked.mesh(mesh), Regime(train, False, microbatches), asked.seconds, asked.layer)
    problem = ShardProblem(strategy_graph(made, None if memory is None else int(asked.limit)), "s")
    first = solver.removeprefix(f"{QUESTION}/")
    if first == "auto":
        first = "auto" if technique(f"{QUESTION}/{_EXACT}")().declines(problem) else _EXACT
    beside = [] if first == "auto" else ["greedy"]
    found = planning.decide(problem, first, budget=patience, seed=seed, listener=listener, question=QUESTION, compared=beside, best=solver == "auto")
    document = _document(asked, made, problem, found, mesh, seed, Path(out or "."))
    if out is not None:
        files: dict[str, Callable[[Path], object]] = {"graph.npz": asked.graph.save, "system.toml": asked.system.write}
        files[FILE] = lambda path: path.write_bytes(written(problem.graph))
        if isinstance(proof := found.solution.evidence.get("certificate"), DualCertificate):
            files[CHOICE] = proof.save
        if len(problem.graph.table) > _STORED:
            from fourfold.errors import InputError

            raise InputError(f"The instance has {len(problem.graph.table):,} costs of edges, more than a plan keeps ({_STORED:,}).",
                             "Leave --out away, or use fourfold plan --devices, which keeps the answer alone.")
        plans.store(out, QUESTION, document.solutions[QUESTION], document.workload, document.machine, files)
        document = plans.read(out)
    return document


def strategy_graph(made: Strategies, limit: int | None) -> StrategyGraph:
    """The contest's pairwise problem of a program's strategies: seconds, bytes with their lives, parallel edges as they are.

    A stored tensor lives all the time. In training what an operation makes is kept till the end, else till its last reader.
    """
    graph, end = made.graph, len(made.graph) + 1
    lives, usages = [], []
    for v in made.variables:
        if v.node < 0:
            lives.append((0, end))
            usages.append(np.ceil(v.held).astype(np.int64).tolist())
        else:
            last = max((int(graph.readers_of(value).max(initial=v.node)) for value in made.rules[v.node].makes), default=v.node)
            lives.append((v.node, end if made.regime.train else last + 1))
            usages.append(np.ceil(v.kept).astype(np.int64).tolist())
    return StrategyGraph.of([v.seconds.tolist() for v in made.variables], usages, [(e.a, e.b) for e in made.edges],
                            [e.table.reshape(-1) for e in made.edges], lives, limit, [v.name for v in made.variables], graph.name)


def _document(asked: DevicesAsked, made: Strategies, problem: ShardProblem, found: planning.Decided, mesh: str, seed: int,
              folder: Path) -> plans.Document:
    best: Solution[NDArray[np.int64]] = found.solution
    g, laid = problem.graph, account(made, best.answer, 1)
    config = Configuration(mesh, made.mesh, "", False, made, laid)
    inside = list(range(len(asked.graph)))
    tags = origins(asked.graph, made.rules)
    by_hand = []
    for custom in CUSTOMS:
        other = lay_out(made, 1, allowed=allowed(made, roles_of(custom, made.mesh), tags))
        fits = not problem.violations(other.assignment)
        by_hand.append({"plan": _TITLES[custom], "cost": other.value if fits else None,
                        "why": "" if fits else f"takes {size(float(loads(g, other.assignment)[1].max()))} a device"})
    proven = best.gap is not None and best.gap < _SAME
    plan = DevicePlan(made.mesh.size, asked.microbatches, asked.schedule, asked.train,
                      (stage_plan(asked, config, tuple(range(made.mesh.size)), (0, 0), inside),))
    peak = int(loads(g, best.answer)[1].max(initial=0))
    facts: dict[str, object] = {
        "solver": best.solver, "cost": best.cost, "total": best.cost, "unit": "s", "before": best.before, "why": best.why, "saving": best.saving,
        "bound": best.cost if proven else best.bound, "gap": 0.0 if proven else best.gap, "optimal": proven,
        "nodes": len(g), "edges": g.edges, "choices": len(g.cost), "limit": g.limit, "peak": peak, "seconds": best.seconds,
        "evaluations": best.evaluations, "seed": seed, "interrupted": found.interrupted, "table": found.table,
        "searched": any(row["solver"] == _EXACT for row in found.table),
        "mesh": str(made.mesh), "microbatches": asked.microbatches, "train": asked.train, "tensors": tensors_of(asked, config, (0, 0)),
        "collectives": collectives_of(asked, config, (0, 0)), "by_hand": by_hand, "plan": plan.to_json(),
        "answer": {"strategies": best.answer.tolist()}, "notes": [*asked.notes, *([best.note] if best.note else [])],
    }  # fmt: skip
    said = told({**facts, "before": None, "why": best.why or "dearer"})[:-1] if best.before is None else told(facts)
    facts["sentences"] = [*said, *_sentences(facts, by_hand, best.cost)]
    facts["hash"] = plans.identify(g.hash, best.answer.tolist())
    about = {"kind": "graph", "name": asked.graph.name, "hash": asked.graph.hash, "nodes": len(asked.graph), "unknown": list(asked.graph.unknown),
             "model": dict(asked.model), "capture": dict(asked.capture)}
    machine = {"name": asked.system.name, "hash": asked.system.hash, "fingerprint": asked.system.fingerprint}
    return plans.Document(folder, about, machine, {QUESTION: facts})


def _sentences(facts: Mapping[str, object], by_hand: list[dict[str, object]], cost: float) -> list[str]:
    said = []
    for row in by_hand:
        value = row["cost"]
        more = f"{value / cost:.3g}" if isinstance(value, float) and cost > 0 else "1"
        said.append(f"{row['plan']} does not fit: it {row['why']}." if value is None else f"{row['plan']} takes as long." if more == "1" else
                    f"{row['plan']} takes {span(cast(float, value))} a microbatch, {more} times as long.")
    return said


__all__ = ["shard_model", "strategy_graph"]
