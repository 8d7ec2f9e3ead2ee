"""`fourfold plan --memory`: order, recomputation and offsets of a program's values together, within a limit of bytes.

`plan_memory` captures the program, runs each node by itself (its seconds, and what it allocates besides), asks for a sequence and offsets, says what
they save, and hands back a plan's document (`fourfold.plans`). `fourfold/runtime/arena/check.py` carries it out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold import plans
from fourfold.decisions.rematerialise._far import FarMemory
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.decisions.rematerialise.stored import QUESTION, NodeCosts
from fourfold.errors import Infeasible, InputError
from fourfold.jobs import planning
from fourfold.jobs.booking import book_arena, may_book
from fourfold.problem import Solution, Watch, appraise
from fourfold.registry import technique
from fourfold.solvers.compare import ENDLESS, SolverRow, entries

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.program import Captured
    from fourfold.rewrites.compress._bench import ProgressCallback
    from fourfold.runtime.source import ModelSource

LEAST = "min"                                                           # asks for the least peak that can be found
LADDER = ("eviction", "descent", "pebbling")                            # asked where nothing fits without computing something again
_BESIDE = ("recompute_all", "sqrt_checkpointing", "offload")            # asked for the table
OBJECTIVES = ("latency", "energy")
_ORDERS = 30_000                                                        # orders tried for the one that needs least
_SHARE = 0.1                                                            # of the budget, for each technique of the table
_BISECTIONS = 5


@dataclass(frozen=True)
class _Asked:
    """What is planned, on what, and what its nodes do by themselves; a second memory; busy watts where joules are asked for."""

    source: ModelSource
    system: Machine
    nodes: NodeCosts
    notes: tuple[str, ...]
    far: FarMemory | None = None
    watts: float | None = None

    @property
    def outside(self) -> int:
        """Most bytes that an op allocates beside the arena."""
        return int(self.nodes.workspace.max(initial=0))


@dataclass(frozen=True)
class _Found:
    """The answer that stands (None: nothing fits `room`), a row for each technique, peaks (B) on the way (None: not known), the lowest plan seen."""

    best: Solution[Rematerialisation] | None
    room: int
    table: tuple[dict[str, object], ...]
    peaks: Mapping[str, int | None]
    lowest: Solution[Rematerialisation]
    interrupted: bool


def plan_memory(
    model: object,
    data_or_inputs: object = None,
    *,
    memory: int | str = LEAST,
    machine: object = "here",
    solver: str = "auto",
    train: bool = False,
    budget: float | str = 60.0,
    evaluations: int | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    far: str | None = None,
    objective: str = "latency",
    out: str | Path | None = None,
    ledger: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: ProgressCallback | None = None,
) -> plans.Document:
    """Plan a program's intermediates into one arena: the order of its ops, which of them run again, and an offset for every value.

    model: what `plan` takes, or the folder of a plan, to which the answer is added (for its program and machine).
    memory: the limit in bytes, or "4MiB"; it holds for the arena and the largest temporary that an op allocates beside it. "min": as little as can be
    found. Weights and inputs lie outside. train: loss and gradients in one program. far: a second memory that values may be copied to and fetched
    from, "64MiB@8GB/s" (with a latency: "64MiB@8GB/s,10us") or the name of another device of the machine. objective: "latency" (seconds) or "energy"
    (joules: the device's busy watts over its seconds, and the link's joules a byte). The rest as of `plan`. out: folder that the plan is written to.
    ledger: file that bytes before and after are booked in.
    trust: packages whose code the artefact or the plan may run.

    Seconds of each op are measured on this machine where the program can run here (they are kept in the folder `dry-run` of `out`), else they are the
    roofline's. Raises InputError, ModelError or MissingExtra for what cannot be read, and Infeasible where nothing was found that fits: the error
    names the least that was found, what is proven, and the op that needs most.
    """
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.workload import seconds

    listener, patience, limit = progress or NullProgress(), seconds(budget), limit_of(memory)
    planning.check(solver, "memory", QUESTION, ["auto", *planning.names(QUESTION)])
    if objective not in OBJECTIVES:
        raise InputError(f"A plan of memory has no objective {objective!r}.", f"Choose from: {', '.join(OBJECTIVES)}.")
    if ledger is not None:
        may_book(ledger)
    there = Path(model) if isinstance(model, str | Path) and plans.holds_plan(model) else None
    out = there if out is None else Path(out)
    if out is not None and out != there:
        plans.may_save(out, [model, data_or_inputs, machine], questions=(plans.SCHEDULE, "pipeline", QUESTION))
    listener.stage("capture")
    asked = _priced(_asked(model, data_or_inputs, machine, train, dims, seed, out, trust, listener), far, objective)
    graph = asked.source.captured.graph
    problem = asked.nodes.problem(graph, None, asked.far, asked.watts)
    room = None if limit is None else max(0, limit - asked.outside)
    found = _decided(problem, room, solver, patience, evaluations, seed, listener)
    if found.best is None:
        raise _short(problem, asked, found, limit or 0)
    solution = _solution(problem, asked, found, found.best, limit, seed)
    about = {"kind": "graph", "name": graph.name, "hash": graph.hash, "nodes": len(graph), "unknown": list(graph.unknown),
             "model": asked.source.model, "capture": asked.source.capture}
    told = {"name": asked.system.name, "hash": asked.system.hash, "fingerprint": asked.system.fingerprint}
    if ledger is not None:
        book_arena(ledger, solution, about, asked.system.name)
    if out is None:
        return plans.Document(Path("."), about, told, {QUESTION: solution})
    from fourfold.report.memory import write_page

    plans.store(out, QUESTION, solution, about, told, {"graph.npz": graph.save, "system.toml": asked.system.write})
    document = plans.read(out)
    page = "memory.html" if plans.SCHEDULE in document.solutions else "plan.html"                   # a schedule's page is plan.html
    write_page(problem.within(found.room), found.best.answer, solution, Path(out) / page)
    return document


def limit_of(memory: int | str) -> int | None:
    """Bytes of a limit; None for "min". Raises InputError for what is neither."""
    from fourfold.units.parse import quantity

    if isinstance(memory, str) and memory.strip().lower() == LEAST:
        return None
    return int(quantity(memory, "size", "--memory", bare="B", least=1.0))


# ---- what is asked

def _asked(model: object, inputs: object, machine: object, train: bool, dims: Mapping[str, int] | None, seed: int, out: str | Path | None,
           trust: Iterable[str], listener: ProgressCallback) -> _Asked:
    from fourfold.runtime.source import ModelSource, RecordedProgram, read, recapture

    if isinstance(model, str | Path) and plans.holds_plan(model):
        document = plans.read(model)
        told = RecordedProgram.of(document)
        system, notes = document.system, list[str]()
        source = ModelSource(recapture(told, None, inputs, trust), dict(told.model), dict(told.capture))
    else:
        system, notes = planning.machine(machine)
        source = read(model, inputs, train=train, dims=dims, seed=seed, trust=trust)
    graph = source.captured.graph
    listener.note(f"{graph.name}: {len(graph):,} ops")
    if not system.local:
        said = f"Seconds are those of {system.name} by the roofline; what ops allocate beside the arena is not known, since nothing was run."
        return _Asked(source, system, NodeCosts.modelled(graph, system), (*source.captured.note, said))
    if source.captured.program.dialect == "jax":
        return _Asked(source, system, NodeCosts.modelled(graph, system), (*notes, *source.captured.note,
                      "JAX keeps its own memory: seconds are the roofline's, and the plan can be read but not run here."))
    listener.stage("dry run")
    return _Asked(source, system, dry(source.captured, None if out is None else Path(out) / "dry-run", seed), source.captured.note)


def _priced(asked: _Asked, far: str | None, objective: str) -> _Asked:
    """With a second memory and joules as asked for. Raises InputError where the machine does not say enough for them."""
    watts = asked.system.devices[0].busy if objective == "energy" else None
    if watts is not None and not watts > 0:
        raise InputError(f"The machine {asked.system.name!r} does not say what {asked.system.devices[0].name} draws when it is busy.",
                         "Give a machine file with busy watts, or leave --objective energy out.")
    notes = asked.notes if watts is None else (*asked.notes, f"Joules are {watts:g} W of the busy device over its seconds.")
    return replace(asked, far=None if far is None else FarMemory.read(far, asked.system), watts=watts, notes=notes)


def dry(captured: Captured, folder: Path | None = None, seed: int = 0) -> NodeCosts:
    """What each node of a program does by itself on this machine: run once, and kept in `folder` for the same program, processor and threads."""
    import torch

    from fourfold.host import here
    from fourfold.journal import Journal
    from fourfold.runtime.arena.dry_run import dry_run
    from fourfold.runtime.arena.ready import ready
    from fourfold.runtime.local.check import inputs_of

    program = ready(captured)

    def run() -> dict[str, Any]:
        return dry_run(program, inputs_of(captured), seed=seed).to_json()

    if folder is None:
        found = run()
    else:
        journal = Journal(folder, {"graph": captured.graph.hash, "host": here().fingerprint, "torch": torch.__version__,
                                   "threads": torch.get_num_threads()})
        try:
            found = journal.once("nodes", run)
        finally:
            journal.close()
    return NodeCosts(np.array(found["seconds"]), np.array(found["workspace"], np.int64), tuple(found["way"]), tuple(sorted(program.random)))


# ---- what is decided

def ask(problem: Rematerialise, name: str, seconds: float, evaluations: int | None, seed: int) -> SolverRow[Rematerialisation]:
    """What a technique finds, or why it finds nothing. One that knows no limit may break it (`solution.broken`)."""
    (row,) = entries(problem, {name: technique(f"{QUESTION}/{name}")()}, seconds if evaluations is None else 3600.0, (seed,),
                     evaluations=ENDLESS if evaluations is None else evaluations)
    return row


def _decided(problem: Rematerialise, room: int | None, solver: str, budget: float, evaluations: int | None, seed: int,
             listener: ProgressCallback) -> _Found:
    """Ask for a plan within `room` bytes (None: as few as can be found). The cheapest that fits stands, of equal ones the lowest."""
    asked: dict[str, SolverRow[Rematerialisation]] = {}
    shown = 0

    def tell(elapsed: float) -> None:
        nonlocal shown
        now = min(int(elapsed), int(budget))
        listener.advance(max(0, now - shown))
        shown = max(shown, now)

    def peak(row: SolverRow[Rematerialisation]) -> float:
        return np.inf if row.solution is None else problem.peak(row.solution.answer)

    listener.stage("plan", max(1, int(budget)))
    with Watch(tell) as watch:
        asked["store_all"] = ask(problem, "store_all", _SHARE * budget, None, seed)
        asked["reorder"] = ask(problem, "reorder", _SHARE * budget, min(_ORDERS, evaluations or _ORDERS), seed)
        lowest = min(asked.values(), key=peak).solution
        assert lowest is not None                                       # storing all always answers
        limited = problem.within(room)
        if room is None or solver != "auto" or min(map(peak, asked.values())) > room:
            for name in _BESIDE if solver == "auto" else ():
                asked[name] = ask(limited, name, _SHARE * budget, evaluations, seed)
            names = () if room is None else LADDER if solver == "auto" else (solver.removeprefix(f"{QUESTION}/"),)
            for name in names:
                asked[name] = ask(limited, name, max(0.5, 0.5 * budget), evaluations, seed)
        if room is None:
            found = [row.solution for row in asked.values() if row.solution is not None]
            lowest = least(problem, min(found, key=lambda one: problem.peak(one.answer)), 0.4 * budget, seed)
            room = problem.peak(lowest.answer)
            for name in LADDER if solver == "auto" and lowest.cost > problem.price.sum() else ():      # the same bytes for less, perhaps
                asked[name] = ask(problem.within(room), name, max(0.5, 0.3 * budget), evaluations, seed)
        fitting = [row.solution for row in asked.values() if row.solution is not None and peak(row) <= room]
        fitting += [lowest] if problem.peak(lowest.answer) <= room and solver == "auto" else []
        if not fitting:
            found = [row.solution for row in asked.values() if row.solution is not None]
            lowest = least(problem, min(found, key=lambda one: problem.peak(one.answer)), 0.3 * budget, seed)
    best = min(fitting, key=lambda one: (one.cost, problem.peak(one.answer)), default=None)
    peaks = {"offsets": peak(asked["store_all"]), "ordered": peak(asked["reorder"]), "planned": None if best is None else problem.peak(best.answer)}
    told = {stage: int(value) if value is not None and np.isfinite(value) else None for stage, value in peaks.items()}
    table = tuple(_row(name, row, peak(row), room) for name, row in asked.items() if not row.declined)
    return _Found(best, room, table, told, lowest, watch.stopped)


def least(problem: Rematerialise, found: Solution[Rematerialisation], budget: float, seed: int) -> Solution[Rematerialisation]:
    """The plan of lowest peak that bisection comes to between `found` and what is proven, by eviction and by descent in turn."""
    low, best, began = problem.least_peak(), found, time.monotonic()
    for turn in range(_BISECTIONS):
        high, left = problem.peak(best.answer), budget - (time.monotonic() - began)
        if high - low < 64 or turn > 2 and left <= 0:
            break
        aim = low + (high - low) // 2
        tried = [row.solution for name in LADDER[:2]
                 if (row := ask(problem.within(aim), name, max(0.2, left / (2 * _BISECTIONS)), None, seed)).solution is not None]
        if tried:
            best = min(tried, key=lambda one: (problem.peak(one.answer), one.cost))
        else:
            low = aim
    return best


def _row(name: str, row: SolverRow[Rematerialisation], peak: float, room: int) -> dict[str, object]:
    found, said = row.solution, row.row()
    note = said["why"] or ("more than the limit" if peak > room else said["note"])
    return {"solver": name, "title": row.title, "cost": None if found is None else found.cost, "peak": None if found is None else int(peak),
            "seconds": row.seconds, "evaluations": said["evaluations"], "note": note}


# ---- what is told

def _short(problem: Rematerialise, asked: _Asked, found: _Found, limit: int) -> Infeasible:
    """Nothing fits: what was found, what is proven, and which op needs most."""
    from fourfold.report.allocate import size
    from fourfold.report.memory import needs_most

    beside = f" and {size(asked.outside)} of temporaries" if asked.outside else ""
    lowest, floor, (most, need) = problem.peak(found.lowest.answer), problem.least_peak(), needs_most(problem)
    why = (f"No plan of {problem.graph.name} within {size(limit)} was found: the least found is {size(lowest + asked.outside)} "
           f"({size(lowest)} of arena{beside})")
    proven = f"; nothing fits below {size(floor + asked.outside)}" if floor < lowest else ", and it is proven that nothing takes less"
    return Infeasible(f"{why}{proven}. The op that needs most is {most}: {size(need)}.",
                      f"Ask for --memory {-(-(lowest + asked.outside) // 1024)}KiB, for --memory min with a longer --budget, or for a smaller batch.")


def _solution(problem: Rematerialise, asked: _Asked, found: _Found, best: Solution[Rematerialisation], limit: int | None, seed: int,
              ) -> dict[str, object]:
    """What a plan keeps of the answer."""
    from fourfold.report import memory as report

    limited = problem.within(found.room)
    before, why = appraise(limited, limited.baseline())
    best = replace(best, before=before, why=why)
    nodes, rows = asked.nodes, report.again(problem, best.answer)
    arena = problem.peak(best.answer)
    seconds = best.cost if asked.watts is None else nodes.problem(problem.graph, None, asked.far).cost(best.answer)
    facts = {"peaks": dict(found.peaks), "outside": asked.outside, "seconds": seconds, "once": float(nodes.seconds.sum()),
             "measured": nodes.measured, **nodes.straight(problem.graph), "again": sum(row.runs for row in rows)}
    moved = report.moved(problem, best.answer)
    if asked.far is not None:
        facts["far"] = {"memory": asked.far.to_json(), "used": problem.far_peak(best.answer), "fetches": problem.carried(best.answer),
                        "values": [row.to_json() for row in moved]}
    if asked.watts is not None:
        facts["watts"] = asked.watts
    return {"objective": "memory", "solver": best.solver, "cost": best.cost, "unit": best.unit, "before": before, "why": why, "saving": best.saving,
            "bound": best.bound, "gap": best.gap, "seconds": best.seconds, "evaluations": best.evaluations, "seed": seed,
            "interrupted": found.interrupted, "limit": limit, "room": found.room, "arena": arena, "peak": arena + asked.outside, **facts,
            "runs": [row.to_json() for row in rows], "table": list(found.table), "nodes": nodes.to_json(), "answer": best.answer.to_json(),
            "sentences": report.sentences(problem, facts, rows, moved), "notes": [*asked.notes, *([best.note] if best.note else [])],
            "hash": plans.identify(problem.graph.hash, asked.system.hash, found.room, best.answer.to_json())}
