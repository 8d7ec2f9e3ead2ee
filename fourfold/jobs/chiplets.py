"""`fourfold chiplets`: which chip of a multi-chip module holds which op of a model; the answer is a plan's document (`fourfold.plans`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold import plans
from fourfold.decisions.chiplets.instance import Package, of_graph
from fourfold.decisions.chiplets.problem import ChipletPartition, Compiler
from fourfold.errors import InputError
from fourfold.graph import Graph
from fourfold.jobs import planning
from fourfold.jobs.booking import book, may_book

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.rewrites.compress._bench import ProgressCallback

QUESTION = "chiplets"
_COMPARED = ("greedy_balance", "contiguous")
_ENOUGH = 900.0                                                      # s at most, where evaluations end the search


@dataclass(frozen=True)
class _Subject:
    """The program to split, what a plan keeps of it, and what to know of its capture."""

    graph: Graph
    about: dict[str, object]
    notes: tuple[str, ...]


def chiplets(
    model: object,
    data_or_inputs: object = None,
    *,
    machine: object = "mcm36",
    solver: str = "auto",
    budget: int | str = 200,
    train: bool = False,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    compiler: Compiler | None = None,
    price: int = 1,
    out: str | Path | None = None,
    ledger: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: ProgressCallback | None = None,
) -> plans.Document:
    """Split a model over the chips of a package, for the most samples a second.

    model: what `fourfold.plan` captures, a saved graph (.npz), or a plan's folder, to which the answer is added. machine: a shipped package ("mcm36":
    a ring; "mcm36-mesh"), a machine file of equal devices, or a Machine. budget: partitions priced (200) or seconds ("60s"). compiler: i2[N] chips →
    why a partition cannot be compiled, or None; each question costs `price` evaluations besides. The rest as of `fourfold.plan`. out: folder that the
    plan and its page are written to. ledger: file that what the decision saves is booked in (Machine lever).

    Ctrl-C while it searches hands back the best so far (`interrupted`). Raises InputError, ModelError or MissingExtra for what cannot be read, and
    Infeasible where no valid partition was found.
    """
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.report.chiplets import sentences, stages, write_page

    listener = progress or NullProgress()
    evaluations, patience = limits(budget)
    solver = solver.removeprefix(f"{QUESTION}/")
    planning.check(solver, "throughput", QUESTION, planning.names(QUESTION), ("throughput",))
    if ledger is not None:
        may_book(ledger)
    there = Path(model) if isinstance(model, str | Path) and plans.holds_plan(model) else None
    out = there if out is None else Path(out)
    if out is not None and out != there:
        plans.may_save(out, [model, data_or_inputs, machine], ["chiplets.html"], (plans.SCHEDULE, "pipeline", QUESTION))
    system, notes = planning.machine(machine)
    listener.stage("capture")
    subject = _subject(model, data_or_inputs, train, dims, seed, trust)
    workload = of_graph(subject.graph, system)
    problem = ChipletPartition(workload, Package.of(system), compiler, price)
    found = planning.decide(problem, solver, budget=patience, evaluations=evaluations, seed=seed, listener=listener, question=QUESTION,
                            compared=() if solver == "auto" else _COMPARED)
    best = found.solution
    names = [device.name for device in system.devices]
    answer = {"chip": best.answer.tolist(), "node": workload.node.tolist()}
    told = (*notes, *subject.notes, *([best.note] if best.note else []), *_assumed(problem, system))
    solution: dict[str, object] = {
        "objective": "throughput", "solver": best.solver, "cost": best.cost, "unit": best.unit, "before": best.before, "why": best.why,
        "saving": best.saving, "bound": best.bound, "gap": best.gap, "seconds": best.seconds, "evaluations": best.evaluations, "seed": seed,
        "interrupted": found.interrupted, "chips": int(best.answer.max(initial=0)) + 1, "bounds": problem.parts,
        "stages": stages(problem, best.answer, names), "table": found.table, "answer": answer,
        "sentences": sentences(problem, best.answer, names, len(subject.graph)), "notes": list(told),
        "hash": plans.identify(subject.graph.hash, system.hash, QUESTION, answer["chip"])}
    kept = {"name": system.name, "hash": system.hash, "fingerprint": system.fingerprint}
    document = plans.Document(Path(out or "."), subject.about, kept, {QUESTION: solution})
    if out is not None:
        plans.store(out, QUESTION, solution, subject.about, kept, {"graph.npz": subject.graph.save, "system.toml": system.write})
        write_page(solution, subject.about, kept, Path(out) / "chiplets.html")
    if ledger is not None:
        book(ledger, QUESTION, solution, subject.about, system.name)
    return document


def limits(budget: int | str) -> tuple[int | None, float]:
    """(evaluations or None, seconds) of a budget: 200 or "200" are evaluations, "60s" a time. Raises InputError for what is neither."""
    from fourfold.workload import seconds

    text = str(budget).strip()
    if text.isdecimal():
        if int(text) < 1:
            raise InputError(f"A budget of {text} evaluations is none.", "Give at least 1, or a time: --budget 60s")
        return int(text), _ENOUGH
    return None, seconds(text)


def _subject(model: object, inputs: object, train: bool, dims: Mapping[str, int] | None, seed: int, trust: Iterable[str]) -> _Subject:
    if isinstance(model, str | Path) and plans.holds_plan(model):
        document = plans.read(model)
        return _Subject(document.graph, dict(document.workload), ())
    if isinstance(model, Graph) or isinstance(model, str | Path) and str(model).endswith(".npz"):
        graph = model if isinstance(model, Graph) else Graph.load(model)
        return _Subject(graph, _about(graph), ())
    from fourfold.jobs.devices.source import captured_of
    from fourfold.runtime.source import read
    from fourfold.zoo.giants import is_giant

    if is_giant(model) and not train and not Path(str(model)).exists():
        captured, about, capture = captured_of(model, inputs, train, dims, seed, trust)
        return _Subject(captured.graph, {**_about(captured.graph), "model": about, "capture": capture}, tuple(captured.note))
    source = read(model, inputs, train=train, dims=dims, seed=seed, trust=trust)
    graph = source.captured.graph
    return _Subject(graph, {**_about(graph), "model": source.model, "capture": source.capture}, tuple(source.captured.note))


def _about(graph: Graph) -> dict[str, object]:
    return {"kind": "graph", "name": graph.name, "hash": graph.hash, "nodes": len(graph), "unknown": list(graph.unknown)}


def _assumed(problem: ChipletPartition, system: Machine) -> list[str]:
    """What the figures rest on."""
    said = ["Times are the roofline's; " + ("a chip copies what it sends itself, so sending adds to its stage." if problem.package.copies.any() else
                                            "links move bytes beside the compute, so a stage is the longer of the two.")]
    if any(figure.grade == "assumed" for figure in system.figures.values()):
        said.append(f"Figures of {system.name} are assumed.")
    if problem.compiler is not None:
        said.append("A compiler was asked; `fourfold plan verify` checks the rules and does not ask it again.")
    return said
