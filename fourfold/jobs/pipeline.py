"""`fourfold plan --question pipeline`: which device holds which part of a network, from a public placement file or from a captured model.

`pipeline` reads the workload, asks the solvers in turn, and hands back a plan's document (`fourfold.plans`); one part a step, as `jobs/plan.py` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold import plans
from fourfold.decisions.pipeline._graph import of_graph
from fourfold.decisions.pipeline.problem import Latency, MaxLoad, Split
from fourfold.decisions.pipeline.stored import FILE, problem
from fourfold.errors import InputError
from fourfold.frontends.placement import PipelineWorkload, read_placement, read_split
from fourfold.jobs import planning
from fourfold.jobs.booking import book, may_book
from fourfold.registry import technique

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.rewrites.compress._bench import ProgressCallback

QUESTION = "pipeline"
OBJECTIVES = ("throughput", "latency")
_FIRST = {"throughput": "lns", "contiguous": "ideals", "latency": "latency_annealing"}       # what `auto` gives most of the time
_BESIDE = {"throughput": ("load_fill", "pipedream", "ideals", "throughput_ip"), "contiguous": ("load_fill", "pipedream", "throughput_ip"),
           "latency": ("latency_fill",)}


@dataclass(frozen=True)
class _Asked:
    """What is split over what: the workload, the devices' names, and what a plan keeps of both. `files`: name → what writes it."""

    workload: PipelineWorkload
    devices: tuple[str, ...]
    about: dict[str, Any]
    machine: dict[str, Any]
    files: Mapping[str, Callable[[Path], object]]
    notes: tuple[str, ...] = ()


def pipeline(
    model: object,
    data_or_inputs: object = None,
    *,
    machine: object = "here",
    objective: str = "throughput",
    solver: str = "auto",
    contiguous: bool = False,
    expert: str | Path | None = None,
    train: bool = False,
    budget: float | str = 60.0,
    evaluations: int | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    out: str | Path | None = None,
    ledger: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: ProgressCallback | None = None,
) -> plans.Document:
    """Split a network over the devices of a machine.

    model: a placement file (.json, `fourfold/frontends/placement.py`), a plan's folder (its question is added to the plan), or whatever `plan` takes,
    captured and priced for `machine`. objective: throughput (ms of the fullest device) or latency (ms of one sample). contiguous: no path leaves an
    accelerator and returns to it. expert: a split made by hand, for the table. The rest as of `plan`. out: folder that the plan is written to.
    ledger: file that what the decision saves is booked in (Machine lever). trust: packages whose code an artefact given as `model` may run.

    Ctrl-C while it searches hands back the best so far (`interrupted`). Raises InputError, ModelError or MissingExtra for what cannot be read,
    Infeasible where nothing fits.
    """
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.workload import seconds

    listener, patience = progress or NullProgress(), seconds(budget)
    kind = "contiguous" if contiguous and objective == "throughput" else objective
    planning.check(solver, objective, QUESTION, ["auto", *planning.names(QUESTION)], OBJECTIVES)
    if ledger is not None:
        may_book(ledger, objective)
    there = Path(model) if isinstance(model, str | Path) and plans.holds_plan(model) else None
    out = there if out is None else Path(out)
    if out is not None and out != there:
        plans.may_save(out, [model, data_or_inputs, machine], [FILE])
    listener.stage("capture")
    asked = _asked(model, data_or_inputs, machine, train, dims, seed, trust)
    split = None if expert is None else Split(read_split(expert, asked.workload))
    question = problem(asked.workload, objective, contiguous, split)
    first = _FIRST[kind] if solver == "auto" else solver.removeprefix(f"{QUESTION}/")
    _answers(first, question)
    beside = [name for name in ("handmade", *_BESIDE[kind]) if name != first and (name != "handmade" or split is not None) and _installed(name)]
    if solver != "auto":
        beside = [name for name in beside if name in ("handmade", "load_fill", "pipedream", "latency_fill")]
    found = planning.decide(question, first, budget=patience, evaluations=evaluations, seed=seed, listener=listener, question=QUESTION,
                            compared=beside, best=solver == "auto")
    solution = _solution(question, asked, found, objective, contiguous, seed)
    document = plans.Document(Path(out or "."), asked.about, asked.machine, {QUESTION: solution})
    if out is not None:
        plans.store(out, QUESTION, solution, asked.about, asked.machine, asked.files if out != there else None, add=out == there)
    if ledger is not None:
        book(ledger, QUESTION, solution, asked.about, asked.machine["name"])
    return document


def _answers(name: str, question: MaxLoad | Latency) -> None:
    """Raises InputError where the technique answers the other objective."""
    kind: object = technique(f"{QUESTION}/{name}")
    if kind.answers != question.question:
        known = [one for one in planning.names(QUESTION) if _class(one).answers == question.question]
        raise InputError(f"{name} does not answer this objective.", f"Solvers that do: auto, {', '.join(known)}.")


def _class(name: str) -> Any:
    return technique(f"{QUESTION}/{name}")


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(need.split(".")[0]) is not None for need in _class(name).needs)


# ---- what is asked

def _asked(model: object, inputs: object, machine: object, train: bool, dims: Mapping[str, int] | None, seed: int,
           trust: Iterable[str]) -> _Asked:
    """The workload of a placement file, of a plan's folder, or of a model on a machine."""
    if isinstance(model, str | Path) and plans.holds_plan(model):
        return _of_plan(plans.read(model))
    if isinstance(model, str | Path) and str(model).endswith(".json"):
        return _of_file(Path(model))
    from fourfold.runtime.source import read

    system, notes = planning.machine(machine)
    source = read(model, inputs, train=train, dims=dims, seed=seed, trust=trust)
    graph = source.captured.graph
    system, more = planning.dispatched(system, source.captured)
    workload, devices = of_graph(graph, system)
    about = {"kind": "graph", "name": graph.name, "hash": graph.hash, "nodes": len(graph), "unknown": list(graph.unknown), "model": source.model,
             "capture": source.capture}
    return _Asked(workload, tuple(system.devices[d].name for d in devices), about, _told(system),
                  {"graph.npz": graph.save, "system.toml": system.write}, (*notes, *more, *source.captured.note, *_assumed(workload)))


def _told(system: Machine) -> dict[str, object]:
    return {"name": system.name, "hash": system.hash, "fingerprint": system.fingerprint}


def _assumed(workload: PipelineWorkload) -> tuple[str, ...]:
    said = "Every op runs alone; a sample's outputs are all live at once, and inputs and answers move free of charge."
    return (said, "The machine has one device, so there is nothing to split.") if workload.accelerators + workload.cores == 1 else (said,)


def _of_file(path: Path) -> _Asked:
    workload = read_placement(path)
    data = path.read_bytes()
    about = {"kind": "placement", "name": workload.name, "hash": plans.identify(data.decode("utf-8")), "nodes": len(workload), "file": path.name}
    machine = {"name": f"{_counted(workload.accelerators, 'accelerator')} and {_counted(workload.cores, 'core')}",
               "hash": plans.identify(workload.accelerators, workload.cores, workload.limit), "fingerprint": ""}
    return _Asked(workload, _numbered(workload), about, machine, {FILE: lambda place: place.write_bytes(data)}, workload.notes)


def _of_plan(document: plans.Document) -> _Asked:
    """The workload that a plan is of."""
    about = document.solutions.get(QUESTION, {}).get("workload", document.workload)
    if about["kind"] == "placement":
        found = _of_file(document.folder / FILE)
        return _Asked(found.workload, found.devices, {**found.about, "name": about["name"], "file": about["file"]}, found.machine, found.files,
                      found.notes)
    if "graph.npz" not in document.files:
        raise InputError(f"The plan in {document.folder} is of {about.get('name') or about['kind']}, which has no graph to split.",
                         "Name a plan of a model, or a placement file.")
    graph, system = document.graph, document.system
    workload, devices = of_graph(graph, system)
    return _Asked(workload, tuple(system.devices[d].name for d in devices), dict(document.workload), dict(document.machine),
                  {"graph.npz": graph.save, "system.toml": system.write}, _assumed(workload))


def _numbered(w: PipelineWorkload) -> tuple[str, ...]:
    return (*(f"accelerator {m}" for m in range(w.accelerators)), *(f"core {m}" for m in range(w.cores)))


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


# ---- what is told

def _solution(question: MaxLoad | Latency, asked: _Asked, found: planning.Decided, objective: str, contiguous: bool, seed: int) -> dict[str, Any]:
    """What a plan keeps of the answer."""
    from fourfold.report.pipeline import devices, sentences

    best, split = found.solution, found.solution.answer
    rows = devices(question, split, asked.devices)
    answer = {"machine": split.machine.tolist(), "part": split.part.tolist()}
    notes = [*asked.notes, *([best.note] if best.note else [])]
    return {"objective": objective, "contiguous": contiguous, "solver": best.solver, "cost": best.cost, "unit": best.unit, "before": best.before,
            "why": best.why, "saving": best.saving, "bound": best.bound, "gap": best.gap, "seconds": best.seconds,
            "evaluations": best.evaluations, "seed": seed, "interrupted": found.interrupted, "devices": rows, "table": found.table,
            "answer": answer, "sentences": sentences(question, split, rows), "notes": notes,
            "hash": plans.identify(asked.about["hash"], asked.machine["hash"], objective, contiguous, answer)}
