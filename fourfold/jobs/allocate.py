"""Offsets for buffers with known lives: the library call behind `fourfold allocate`.

`allocate` reads buffers (a CSV file, a captured model, a plan's folder), refuses what contradicts itself, asks a solver, and hands back an
`Allocation`, whose offsets the validator has examined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fourfold import plans
from fourfold.decisions.allocate._sources import GRAIN, of_file, of_graph, written
from fourfold.decisions.allocate.bound import contradiction
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.problem import Allocate
from fourfold.decisions.allocate.stored import FILE
from fourfold.decisions.allocate.stored import buffers as kept_buffers
from fourfold.errors import Infeasible, InputError, unwritable
from fourfold.folder import headed, may_overwrite, write
from fourfold.graph import Graph
from fourfold.jobs import planning
from fourfold.problem import Solution

QUESTION = "allocate"
_BEST, _PLAIN = "portfolio", "greedy"                                   # what `auto` asks; what is asked beside a solver that is named
_MOST_LISTED = 200_000                                                  # offsets in a JSON document


@dataclass(frozen=True, eq=False)
class Allocation:
    """Where each buffer stands. `offsets` i8[n] bytes, `problem` (its buffers, capacity and validator), `solution` (cost = height, before, bound,
    gap), `table` (a row per solver asked), `workload` and `source` (what the buffers are of), `sentences`, `notes`, `interrupted`."""

    problem: Allocate
    solution: Solution[np.ndarray]
    table: tuple[Mapping[str, Any], ...]
    workload: Mapping[str, object]
    source: Mapping[str, object]
    seed: int = 0
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    graph: Graph | None = field(default=None, repr=False)

    @property
    def offsets(self) -> np.ndarray:
        return self.solution.answer

    @property
    def height(self) -> int:
        """Bytes used."""
        return int(self.solution.cost)

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        from fourfold.report.allocate import sentences

        return tuple(sentences(self.problem, self.solution))

    def to_json(self) -> dict[str, object]:
        """One document: figures in bytes, `offsets` by buffer (left out beyond 200,000), a row per solver, sentences, notes."""
        b, found = self.problem.buffers, self.solution
        listed = dict(zip(b.ids, found.answer.tolist(), strict=True)) if len(b) <= _MOST_LISTED else None
        return {**self._solution(), "buffers": len(b), "workload": dict(self.workload), "offsets": listed}

    def _solution(self) -> dict[str, object]:
        """The solution as a plan keeps it, without its offsets."""
        b, found = self.problem.buffers, self.solution
        memory = {"capacity": b.capacity, "banks": b.banks.tolist(), "names": list(b.bank_names)}
        return {"solver": found.solver, "cost": found.cost, "unit": found.unit, "before": found.before, "why": found.why, "saving": found.saving,
                "bound": found.bound, "gap": found.gap, "optimal": found.gap == 0, "decide": self.problem.decide, "memory": memory,
                "searched": found.bound is not None and found.bound > self.problem.bound(), "source": dict(self.source),
                "seconds": found.seconds, "evaluations": found.evaluations, "seed": self.seed, "interrupted": self.interrupted,
                "table": [dict(row) for row in self.table], "sentences": list(self.sentences), "notes": list(self.notes), "hash": self.hash}

    @cached_property
    def hash(self) -> str:
        """sha256 of buffers and offsets."""
        return plans.identify(written(self.problem.buffers, self.offsets), self.problem.buffers.banks.tolist())

    def csv(self) -> str:
        """The buffers with their offsets, as a CSV file that `allocate` reads again (and then finds fixed)."""
        return written(self.problem.buffers, self.offsets)

    def save(self, folder: str | Path) -> list[Path]:
        """Add the solution to the plan in `folder`, or begin one there; the paths. Raises InputError where it cannot be written."""
        b = self.problem.buffers
        solution = {**self._solution(), "answer": {"offsets": self.offsets.tolist()}}
        capacity = b.capacity
        machine = {"name": "one memory without limit" if capacity is None else f"{len(b.banks)} banks, {capacity:,} B" if len(b.banks) > 1 else
                   f"memory of {capacity:,} B", "hash": plans.identify(b.banks.tolist())}
        files = {"graph.npz": self.graph.save} if self.graph is not None else {FILE: lambda path: path.write_text(written(b), encoding="utf-8")}
        there = plans.holds_plan(folder)
        if there and self.graph is not None and plans.read(folder).files.get("graph.npz") and plans.read(folder).graph.hash == self.graph.hash:
            files = {}
        return plans.store(folder, QUESTION, solution, self.workload, machine, files, add=there)


def allocate(
    source: object,
    data_or_inputs: object = None,
    *,
    capacity: int | str | None = None,
    banks: Sequence[int | str] | Mapping[str, int | str] | str | None = None,
    alignment: int | str | None = None,
    in_place: bool = False,
    minimise: bool = False,
    solver: str = "auto",
    budget: float | str = 60.0,
    evaluations: int | None = None,
    seed: int = 0,
    train: bool = False,
    dims: Mapping[str, int] | None = None,
    out: str | Path | None = None,
    html: str | Path | None = None,
    plan: str | Path | None = None,
    ledger: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: Any = None,
) -> Allocation:
    """Find an offset for each buffer, so that buffers alive at one time share no byte.

    source: a .csv file of buffers (`fourfold/frontends/buffers.py`), `Buffers`, a `Graph`, a plan's folder (its graph in its order), or a model as
    `fourfold.plan` takes it, captured with `data_or_inputs`, `train` and `dims`. capacity: bytes ("4MiB", 1048576); None: the least memory is asked
    for. banks: sizes instead of one capacity, "512K,512K" or with names "sram=512K,dram=4M"; a buffer lies in one of them. alignment: of buffers
    that have none (64 for a model). in_place: elementwise ops of a model may write over an operand that dies there. minimise: least memory below the
    capacity too, not the first packing that fits. solver: a name, or auto. budget: seconds, or "10min"; `evaluations` stops it alike on every
    machine. out: a CSV file for the offsets; html: a page; plan: a folder whose plan gets the solution; ledger: file that bytes before and after
    are booked in. trust: packages whose code an artefact given as `source` may run, as in `load`.

    Ctrl-C while it searches hands back the best so far (`interrupted`). Raises InputError for what cannot be read or contradicts itself (a buffer
    larger than its memory and by how much, fixed buffers that overlap), ArtefactError for an artefact that is damaged or not trusted, Infeasible
    where no packing was found: the message says whether that is proven, or unknown.
    """
    from fourfold.jobs.booking import book_memory, may_book
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.workload import seconds

    listener, patience = progress or NullProgress(), seconds(budget)
    planning.check(solver, "height", QUESTION, ["auto", *planning.names(QUESTION)], ["height"])
    sizes, names = _memory(capacity, banks)
    grain = _grain(alignment)
    for path, option in ((out, "--out"), (html, "--html")):
        if path is not None:                                            # before a long search, not after
            may_overwrite(path, option, inputs=[source, data_or_inputs], kind=headed("id") if option == "--out" else None)
    if plan is not None:
        plans.may_save(plan, [source, data_or_inputs], [FILE], questions=("schedule", "pipeline", QUESTION))
    if ledger is not None:
        may_book(ledger)
    listener.stage("capture")
    asked = _asked(source, data_or_inputs, sizes, names, grain, in_place, train, dims, seed, trust)
    question = Allocate(asked.buffers, decide=not minimise)
    _sound(question)
    first = _BEST if solver == "auto" else solver.removeprefix(f"{QUESTION}/")
    beside = [] if first in (_BEST, _PLAIN) else [_PLAIN]
    decided = planning.decide(question, first, budget=patience, evaluations=evaluations, seed=seed, listener=listener, question=QUESTION,
                              compared=beside)
    notes = (*asked.notes, *([decided.solution.note] if decided.solution.note else []))
    made = Allocation(question, decided.solution, tuple(decided.table), asked.workload, asked.source, seed, notes, decided.interrupted, asked.graph)
    _write(made, out, html)
    if plan is not None:
        made.save(plan)
    if ledger is not None:
        book_memory(ledger, made._solution(), made.workload, "one memory" if len(sizes) < 2 else f"{len(sizes)} banks")
    return made


def _write(made: Allocation, out: str | Path | None, html: str | Path | None) -> None:
    if out is not None:
        try:
            write(out, made.csv(), parents=True)
        except OSError as error:
            raise unwritable(out, error, "the offsets") from error
    if html is not None:
        from fourfold.report.allocate import write as page

        page(made, html)


def _sound(question: Allocate) -> None:
    """Raises InputError where the buffers contradict themselves, Infeasible where it is proven that they cannot be packed."""
    if why := contradiction(question.buffers):
        raise InputError(f"{why[0].upper()}{why[1:]}.", "No packing exists. Give the memory as many bytes, or change the buffer.")
    if why := question.impossible():
        raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or a program that keeps fewer bytes at that time.")


# ---- what is asked

@dataclass(frozen=True)
class _Asked:
    buffers: Buffers
    workload: dict[str, Any]
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    graph: Graph | None = None


def _grain(alignment: int | str | None) -> int | None:
    from fourfold.units.parse import memory

    return None if alignment is None else memory(alignment, "--alignment")


def _memory(capacity: int | str | None, banks: Any) -> tuple[list[int], tuple[str, ...]]:
    """(bytes of each bank, their names). Raises InputError."""
    from fourfold.units.parse import memory

    if banks is None:
        return ([], ()) if capacity is None else ([memory(capacity, "--capacity")], ())
    if isinstance(banks, Mapping):
        pairs = [(str(name), size) for name, size in banks.items()]
    else:
        parts = [part.strip() for part in banks.split(",")] if isinstance(banks, str) else list(banks)
        pairs = [tuple(part.split("=", 1)) if isinstance(part, str) and "=" in part else ("", part) for part in parts]
    sizes = [memory(size, f"--banks: bank {name.strip() or i}") for i, (name, size) in enumerate(pairs)]
    names = tuple(name.strip() or str(i) for i, (name, _) in enumerate(pairs))
    if not sizes:
        raise InputError("--banks names no bank.", "Give sizes such as --banks 512K,512K")
    if len(set(names)) < len(names):
        raise InputError(f"--banks has a name twice: {', '.join(names)}.", "Give each bank a name of its own.")
    if capacity is not None and (total := memory(capacity, "--capacity")) != sum(sizes):
        raise InputError(f"--capacity is {total:,} bytes, and the banks have {sum(sizes):,} together.", "Give one of the two.")
    return sizes, names


def _asked(source: object, inputs: object, sizes: list[int], names: tuple[str, ...], grain: int | None, in_place: bool, train: bool,
           dims: Mapping[str, int] | None, seed: int, trust: Iterable[str]) -> _Asked:
    """The buffers of whatever was given."""
    if isinstance(source, Buffers):
        return _of_buffers(replace(source, banks=np.array(sizes, np.int64), bank_names=names) if sizes else source, "buffers")
    if isinstance(source, str | Path) and (Path(source).suffix.lower() in (".csv", ".tsv", ".txt") or _looks_like_csv(source)):
        if in_place or train or dims:
            raise InputError("--in-place, --train and --dims are of a model, and a file of buffers was given.", "Leave them out.")
        return _of_buffers(of_file(source, sizes, names, grain or 1), Path(source).stem)
    if isinstance(source, str | Path) and plans.holds_plan(source) and "graph.npz" not in (document := plans.read(source)).files:
        if QUESTION not in document.solutions:
            raise InputError(f"The plan in {source} holds neither a program nor buffers.", "Give a plan of `fourfold plan` or `fourfold allocate`.")
        kept = kept_buffers(document)
        return _of_buffers(replace(kept, banks=np.array(sizes, np.int64), bank_names=names) if sizes else kept, document.workload["name"])
    graph, order, about, notes = _captured(source, inputs, train, dims, seed, trust)
    alignment = grain or GRAIN
    buffers = of_graph(graph, order, banks=sizes, names=names, alignment=alignment, in_place=in_place)
    if not len(buffers):
        raise InputError(f"{graph.name or 'The program'} makes no value with memory of its own, so there is nothing to place.",
                         "Give a program with intermediate results.")
    facts = {"kind": "graph", "order": None if order is None else order.tolist(), "alignment": alignment, "in_place": in_place}
    return _Asked(buffers, about, facts, (*notes, "Parameters, inputs and constants stand outside of this memory."), graph)


def _of_buffers(buffers: Buffers, name: str) -> _Asked:
    return _Asked(buffers, {"kind": "buffers", "name": name, "hash": plans.identify(written(buffers)), "buffers": len(buffers)}, {"kind": "buffers"})


def _looks_like_csv(source: str | Path) -> bool:
    """A plain file of another name whose first line has the columns of a file of buffers."""
    path = Path(source)
    if not path.is_file() or path.suffix.lower() in (".onnx", ".pt2", ".npz", ".json", ".py"):
        return False
    with path.open("rb") as file:
        head = file.readline(200).lower()
    return b"lower" in head and b"upper" in head


def _captured(source: object, inputs: object, train: bool, dims: Mapping[str, int] | None,
              seed: int, trust: Iterable[str]) -> tuple[Graph, np.ndarray | None, dict[str, Any], tuple[str, ...]]:
    """(graph, order of its nodes or None for its own, what a plan says of it, notes)."""
    if isinstance(source, Graph):
        return source, None, {"kind": "graph", "name": source.name, "hash": source.hash, "nodes": len(source)}, ()
    if isinstance(source, str | Path) and plans.holds_plan(source):
        document = plans.read(source)
        graph = document.graph
        order, note = _planned(source, document)
        return graph, order, dict(document.workload), note
    from fourfold.runtime.source import read

    found = read(source, inputs, train=train, dims=dims, seed=seed, trust=trust)
    graph = found.captured.graph
    about = {"kind": "graph", "name": graph.name, "hash": graph.hash, "nodes": len(graph), "unknown": list(graph.unknown), "model": found.model,
             "capture": found.capture}
    return graph, None, about, tuple(found.captured.note)


def _planned(folder: str | Path, document: plans.Document) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The order in which a plan runs its ops, where it is for one device; else the graph's own, with a note."""
    if plans.SCHEDULE not in document.solutions:
        return None, ("The plan holds no schedule; ops run in the graph's order.",)
    made = plans.Plan.load(folder)
    if len(set(made.place.tolist())) > 1:
        return None, ("The plan uses several devices; offsets are for one memory, ops in the graph's order.",)
    start = made.timeline().start[made.tasks.group]
    return np.lexsort((np.arange(len(made.graph)), start)).astype(np.int64), ("Ops run in the order of the plan's schedule.",)
