"""Plans in files: a folder holds one document, plan.json, {question: solution}, and the files that its solutions rest on. No pickles.

    {"format": "fourfold.plan/2",
     "workload": {"kind": "graph" | "placement" | "jobs", "name", "hash", …},    # what was asked about
     "machine": {"name", "hash", …},                                             # what it runs on
     "files": {name: sha256},
     "solutions": {"schedule": {…}, "pipeline": {…}, "carbon_aware": {…}}}

A solution has at least solver, cost, unit, before, why, bound, gap, hash (its id), answer, sentences and notes. `read` gives the document of a
folder, `store` adds a solution to it, `verify` runs each question's own validator on what is stored, `explain` says it in sentences. The first
format, which held one question, is read too.

`Plan` is the answer to one of the questions, schedule: a captured graph, the system it is for, and who runs what where and when.

    plan.save("plan/")                         # plan.json, graph.npz, system.toml
    plan = Plan.load("plan/")                  # checks that the three belong together, and that nothing was altered
    plan.timeline()                            # what the simulator says happens
    plan.explain()                             # the big decisions, a sentence each

`fourfold.plan(…)` makes one (`fourfold/jobs/plan.py`); this module knows neither solvers nor reports.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fourfold.documents import Finite, TypedDocument, convert
from fourfold.errors import ArtefactError, InputError, unwritable
from fourfold.folder import may_fill
from fourfold.graph import Graph
from fourfold.machine import Machine
from fourfold.registry import stored

if TYPE_CHECKING:
    from fourfold.cost.simulate import Tasks, Timeline

T = TypeVar("T")
FORMAT = "fourfold.plan/2"
FILES = ("graph.npz", "system.toml")                                    # beside plan.json, which is written last and holds their digests
SCHEDULE = "schedule"                                                   # the question that `Plan` answers
_FIRST, _SCHEMA = "fourfold plan", 1                                    # the first format held a schedule; `fourfold map` wrote one of its own
_TOLERANCE = 1e-6                                                       # share by which a cost counted again may differ: sums in another order
_ARRAYS: dict[str, type[np.generic]] = {"group": np.int32, "place": np.int16, "priority": np.float64}
_AGAIN = "Make the plan again: fourfold plan MODEL --out DIR"


@dataclass(frozen=True, eq=False)
class Plan:
    """Who runs what, where and when.

    `group` i4[N] (nodes of equal number run as one task), `place` i2[N] (device of `system`), `priority` f8[N] (a device takes the ready task of
    largest priority; a task has the largest of its nodes). `cost`, `before` (the default's; None where it is impossible, `why` says why) and `bound`
    (proven; None: none known) in `unit`; `gap` = (cost − bound) / bound. `table`: a row per solver that was asked (solver, title, cost, seconds,
    evaluations, gap, note; cost None where it failed, `note` says why). `model`: `ref` as the user gave it, `kind`, `weights` (sha256 of all).
    `capture`: train, level, dims, inputs (a row per input: name, shape, dtype), `file` they came from. `engines`: region → engine, once raced.
    `sentences`: what `explain` tells; `notes`: what capture and planning assumed.

    Raises InputError where arrays and graph do not fit.
    """

    graph: Graph
    system: Machine
    objective: str
    group: np.ndarray
    place: np.ndarray
    priority: np.ndarray
    solver: str
    cost: float
    unit: str
    before: float | None = None
    why: str = ""
    bound: float | None = None
    gap: float | None = None
    seconds: float = 0.0
    evaluations: int = 0
    seed: int = 0
    table: tuple[Mapping[str, Any], ...] = ()
    model: Mapping[str, object] = field(default_factory=dict)
    capture: Mapping[str, object] = field(default_factory=dict)
    engines: Mapping[str, str] = field(default_factory=dict)
    sentences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: bool = False

    def __post_init__(self) -> None:
        count, devices = len(self.graph), len(self.system)
        for name, kind in _ARRAYS.items():
            value = np.array(getattr(self, name), kind)
            if value.shape != (count,):
                raise InputError(f"The plan's {name} has shape {list(value.shape)} for {count} nodes.", "Give one number per node of the graph.")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if count and not 0 <= int(self.place.min()) <= int(self.place.max()) < devices:
            raise InputError(f"The plan places a node on device {int(self.place.max())}, and {self.system.name!r} has {devices}.",
                             f"Devices are numbered 0 to {devices - 1}.")
        if not np.isfinite(self.priority).all():
            raise InputError("A node of the plan has a priority that is no finite number.", "Give a number for each node.")

    # ---- questions

    @property
    def hash(self) -> str:
        """sha256 of what decides how it runs: graph, system, groups, places, priorities."""
        digest = hashlib.sha256(f"{_FIRST} {_SCHEMA} {self.graph.hash} {self.system.hash}".encode())
        for name, kind in _ARRAYS.items():
            digest.update(getattr(self, name).astype(np.dtype(kind).newbyteorder("<"), copy=False).tobytes())
        return digest.hexdigest()

    @property
    def saving(self) -> float | None:
        """Share of the default's cost that is saved; None where the default is impossible or free."""
        return 1.0 - self.cost / self.before if self.before else None

    @cached_property
    def tasks(self) -> Tasks:
        """The tasks that the groups make, priced for the system; `tasks.group` i4[N] says which task a node is in."""
        from fourfold.cost.simulate import tasks_of

        return tasks_of(self.graph, self.group, self.system)

    @property
    def of_tasks(self) -> tuple[np.ndarray, np.ndarray]:
        """(place i2[T], priority f8[T]) of the tasks: a task has the largest priority of its nodes."""
        place, priority = np.zeros(len(self.tasks), np.int16), np.full(len(self.tasks), -np.inf)
        place[self.tasks.group] = self.place
        np.maximum.at(priority, self.tasks.group, self.priority)
        return place, priority

    def timeline(self, memory: bool = False) -> Timeline:
        """What happens when it is carried out, by the simulator's rules; `memory` keeps the curve of bytes over time."""
        from fourfold.cost.simulate import simulate

        return simulate(self.tasks, *self.of_tasks, self.system, memory=memory)

    def explain(self) -> list[str]:
        """A sentence for each big decision, the notes of the capture after them."""
        return [*self.sentences, *self.notes]

    def replace(self, **changes: object) -> Plan:
        """A copy with other fields; `plan.replace(engines=…)` once regions were raced."""
        return dataclasses.replace(self, **changes)

    # ---- one document

    def to_json(self) -> dict[str, Any]:
        """All but graph and system, which are named by name and hash; with what the timeline says of devices and groups."""
        run = self.timeline()
        place, _ = self.of_tasks
        members = np.bincount(self.tasks.group, minlength=len(self.tasks))
        devices = [{"name": device.name, "kind": device.kind, "busy": float(busy), "share": float(busy / run.makespan) if run.makespan else 0.0,
                    "peak_bytes": int(peak), "limit_bytes": int(device.memory), "tasks": int((place == d).sum())}
                   for d, (device, busy, peak) in enumerate(zip(self.system.devices, run.busy, run.peak_bytes, strict=True))]
        return {"model": dict(self.model), "capture": dict(self.capture), "objective": self.objective, "solver": self.solver, "cost": self.cost,
                "unit": self.unit, "before": self.before, "why": self.why, "saving": self.saving, "bound": self.bound, "gap": self.gap,
                "seconds": self.seconds, "evaluations": self.evaluations, "seed": self.seed, "interrupted": self.interrupted,
                "makespan": float(run.makespan), "joules": float(run.joules), "transfers": len(run.transfers),
                "graph": {"name": self.graph.name, "hash": self.graph.hash, "nodes": len(self.graph), "tasks": len(self.tasks),
                          "fused_groups": int((members > 1).sum()), "largest_group": int(members.max(initial=0)),
                          "unknown": list(self.graph.unknown)},
                "system": {"name": self.system.name, "hash": self.system.hash, "fingerprint": self.system.fingerprint}, "devices": devices,
                "table": [dict(row) for row in self.table], "engines": dict(self.engines), "sentences": list(self.sentences),
                "notes": list(self.notes), "hash": self.hash}

    # ---- files

    def save(self, folder: str | Path) -> list[Path]:
        """Write plan.json, graph.npz and system.toml into `folder`, each whole or not at all; the paths.

        What plan.json there holds of other questions on the same graph and system stays, and other files are left alone. Raises InputError where the
        folder cannot be written or holds the plan.json of something else.
        """
        root = Path(folder)
        there = _readable(root)
        mine = there is not None and (there.workload.get("hash"), there.machine.get("hash")) == (self.graph.hash, self.system.hash)
        may_save(root, questions=there.solutions if there is not None and mine else (SCHEDULE, "pipeline"))
        whole = self.to_json()
        workload = {"kind": "graph", **whole.pop("graph"), "model": whole.pop("model"), "capture": whole.pop("capture")}
        machine = whole.pop("system")
        solution = {**whole, "answer": {name: getattr(self, name).tolist() for name in _ARRAYS}}
        return store(root, SCHEDULE, solution, workload, machine, {"graph.npz": self.graph.save, "system.toml": self.system.write})

    @classmethod
    def load(cls, folder: str | Path) -> Plan:
        """What `save` wrote. Raises ArtefactError where it is missing, damaged, altered, of another program or of a newer version."""
        document = read(folder)
        root = document.folder
        if SCHEDULE not in document.solutions:
            raise ArtefactError(f"The plan in {root} answers {', '.join(document.solutions)}, and holds no schedule.",
                                "Make one: fourfold plan MODEL --question schedule")
        document.whole(FILES)
        try:
            graph, system = Graph.load(root / "graph.npz"), Machine.read(root / "system.toml")
        except InputError as error:
            raise ArtefactError(error.message, _AGAIN) from error
        workload = convert(document.workload, GraphEntry, root / "plan.json", _AGAIN)
        known = convert(document.solutions[SCHEDULE], ScheduleEntry, root / "plan.json", _AGAIN)
        try:
            group, place, priority = (np.array(getattr(known.answer, name), kind) for name, kind in _ARRAYS.items())
            plan = cls(graph, system, known.objective, group, place, priority, known.solver, known.cost, known.unit, before=known.before,
                       why=known.why, bound=known.bound, gap=known.gap, seconds=known.seconds, evaluations=known.evaluations, seed=known.seed,
                       table=tuple(known.table), model=workload.model, capture=workload.capture, engines=known.engines,
                       sentences=tuple(known.sentences), notes=tuple(known.notes), interrupted=known.interrupted)
        except (ValueError, OverflowError) as error:
            told = error.message if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise ArtefactError(f"{root / 'plan.json'} is damaged: {' '.join(told.split())[:160]}", _AGAIN) from error
        if (workload.hash, known.hash) != (graph.hash, plan.hash):
            raise ArtefactError(f"{root / 'plan.json'} does not hold what was saved: its hash differs.", _AGAIN)
        return plan


# ---- the file -----------------------------------------------------------------------------------------------------------------------------------


class PlanFile(TypedDocument):
    """plan.json. What a solution holds beyond `SolutionEntry` is its question's own (`stored.py` in its folder)."""

    workload: dict[str, Any]
    machine: dict[str, Any]
    solutions: dict[str, dict[str, Any]]
    files: dict[str, str]


class SolutionEntry(TypedDocument, kw_only=True):
    """What the solution of any question tells, where it tells it."""

    solver: str | None = None
    cost: Finite | None = None
    unit: str = ""
    before: Finite | None = None
    why: str | None = None
    bound: Finite | None = None
    gap: Finite | None = None
    hash: str = ""
    notes: list[str] | None = None


class ScheduleAnswer(TypedDocument):
    """A number per node of the graph: its task's, its device's, its priority."""

    group: list[int]
    place: list[int]
    priority: list[float]


class ScheduleEntry(TypedDocument, kw_only=True):
    """The solution of `schedule`, as `Plan.save` writes it."""

    objective: str
    solver: str
    cost: Finite
    unit: str
    before: Finite | None
    why: str
    bound: Finite | None
    gap: Finite | None
    seconds: Finite
    evaluations: int
    seed: int
    table: list[dict[str, Any]]
    engines: dict[str, str]
    sentences: list[str]
    notes: list[str]
    interrupted: bool
    answer: ScheduleAnswer
    hash: str


class GraphEntry(TypedDocument):
    """The workload of a schedule: the captured graph, the model that it is of, and how it was captured."""

    hash: str
    model: dict[str, Any]
    capture: dict[str, Any]


# ---- the document ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """What a plan's folder holds: what was asked about, what it runs on, the solution of each question as plain data, sha256 of each file."""

    folder: Path
    workload: Mapping[str, Any]
    machine: Mapping[str, object]
    solutions: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str] = field(default_factory=dict)

    def whole(self, names: Iterable[str] | None = None) -> None:
        """Raises ArtefactError where one of the files `names` (default: all that it lists) is missing or not the one that was written with it."""
        for name in self.files if names is None else names:
            if not (self.folder / name).is_file():
                raise ArtefactError(f"The plan in {self.folder} is not whole: {name} is missing.", _AGAIN)
            if _digest(self.folder / name) != self.files.get(name):
                raise ArtefactError(f"The plan in {self.folder} is damaged: {name} is not the file that was written with its plan.json.", _AGAIN)

    @property
    def graph(self) -> Graph:
        """The captured graph. Raises ArtefactError where the plan is of something else, or the file is damaged."""
        self.whole(("graph.npz",))
        return _opened(Graph.load, self.folder / "graph.npz")

    @property
    def system(self) -> Machine:
        """The machine. Raises ArtefactError as `graph` does."""
        self.whole(("system.toml",))
        return _opened(Machine.read, self.folder / "system.toml")

    def to_json(self) -> dict[str, object]:
        return {"format": FORMAT, "workload": dict(self.workload), "machine": dict(self.machine), "files": dict(self.files),
                "solutions": {question: dict(solution) for question, solution in self.solutions.items()}}


def _opened(reader: Callable[[Path], T], file: Path) -> T:
    try:
        return reader(file)
    except InputError as error:
        raise ArtefactError(error.message, _AGAIN) from error


def read(folder: str | Path) -> Document:
    """The document in a plan's folder, of this format or the first. Its files are looked at by whoever needs them (`Document.whole`).

    Raises ArtefactError where there is none, or it is damaged, of another program or of a newer version.
    """
    root = Path(folder)
    root = root.parent if root.name == "plan.json" else root
    if not root.exists():
        raise ArtefactError(f"There is no plan in {root}: no such folder.", _AGAIN)
    if not (root / "plan.json").is_file():
        raise ArtefactError(f"{root} holds no plan: plan.json is missing.", "Name the folder that `fourfold plan --out` wrote.")
    made = convert(_head(root / "plan.json"), PlanFile, root / "plan.json", _AGAIN)
    for question, solution in made.solutions.items():
        convert(solution, SolutionEntry, f"{root / 'plan.json'}, {question},", _AGAIN)
    return Document(root, made.workload, made.machine, made.solutions, made.files)


def holds_plan(folder: str | Path) -> bool:
    """Whether a folder (or a plan.json) is a plan's, of whatever format."""
    file = Path(folder)
    file = file if file.name == "plan.json" else file / "plan.json"
    return file.is_file() and _ours(file.parent, None)


def answers(folder: str | Path) -> set[str]:
    """The questions that the plan in a folder answers; none where there is no plan that can be read."""
    document = _readable(Path(folder))
    return set(document.solutions) if document is not None else set()


def store(folder: str | Path, question: str, solution: Mapping[str, object], workload: Mapping[str, object], machine: Mapping[str, object],
          files: Mapping[str, Callable[[Path], object]] | None = None, *, add: bool = False) -> list[Path]:
    """Write `solution` of `question` into the folder's plan.json, and `files` (name → what writes it to a path), each whole or not at all; the paths.

    Solutions of other questions stay where they are of the same workload and machine (by hash), or where it is to `add` to whatever plan is there:
    the solution then says itself what it is of. Raises InputError where the folder cannot be written.
    """
    root = Path(folder)
    document = Document(root, workload, machine, {question: solution})
    if (root / "plan.json").is_file() and (add or _ours(root, None)):
        there = read(root) if add else _readable(root)
        same = there is not None and (there.workload.get("hash"), there.machine.get("hash")) == (workload.get("hash"), machine.get("hash"))
        if there is not None and (add or same):
            mine = solution if same else {**solution, "workload": dict(workload), "machine": dict(machine)}
            document = Document(root, there.workload, there.machine, {**there.solutions, question: mine}, there.files)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".plan-", dir=root) as aside:
            temp = Path(aside)
            for name, written in (files or {}).items():
                written(temp / name)
            document = dataclasses.replace(document, files={**document.files, **{name: _digest(temp / name) for name in files or {}}})
            text = json.dumps(_finite(document.to_json()), ensure_ascii=False, allow_nan=False, indent=None)
            (temp / "plan.json").write_text(text, encoding="utf-8")
            for name in (*(files or {}), "plan.json"):                  # the head last: what is between does not pass `load`
                _flush(temp / name)
                os.replace(temp / name, root / name)
    except OSError as error:
        raise unwritable(root, error, "the plan") from error
    return [root / name for name in ("plan.json", *(files or {}))]


def verify(folder: str | Path) -> dict[str, list[str]]:
    """What is wrong with each solution of a plan, by question, in sentences; [] = sound. No solver is asked.

    The question's problem is made again from the files, its validator looks at the answer, the cost is counted again, and a bound must not exceed it.
    Raises ArtefactError where the plan cannot be read or a file of it was altered.
    """
    document = read(folder)
    document.whole()
    return {question: _faults(document, question) for question in document.solutions}


def _faults(document: Document, question: str) -> list[str]:
    checks, solution = stored(question), document.solutions[question]
    if checks is None:
        return [f"nobody here knows how to check the question {question!r}"]
    try:
        problem, answer = checks.rebuild(document)
        wrong = [*problem.violations(answer), *(checks.proof(document) if hasattr(checks, "proof") else ())]
        said, bound = solution["cost"], solution["bound"]
        cost = said if wrong else problem.cost(answer)                  # what breaks a rule may have no cost
        if abs(cost - said) > _TOLERANCE * max(abs(cost), abs(said)):
            wrong.append(f"the plan says that it costs {said:.9g} {problem.unit}, counted again it is {cost:.9g}")
        if bound is not None and bound > said + _TOLERANCE * abs(said):
            wrong.append(f"the plan says that nothing costs less than {bound:.9g} {problem.unit}, and costs {said:.9g} itself")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ArtefactError(f"{document.folder / 'plan.json'} is damaged: {question}: {type(error).__name__}: {str(error)[:120]}", _AGAIN) from error
    return list(dict.fromkeys(wrong))


def explain(folder: str | Path) -> list[str]:
    """A plan in sentences: what was decided and why, question by question; where there are several, each begins with its name."""
    document = read(folder)
    lines: list[str] = []
    for question, solution in document.solutions.items():
        lines += [f"{question}:"] if len(document.solutions) > 1 else []
        said = solution.get("sentences")
        if said is None and hasattr(checks := stored(question), "sentences"):
            said = checks.sentences(solution)                           # type: ignore[union-attr]
        lines += [*map(str, said or ()), *map(str, solution.get("notes") or ())]
    return lines


def identify(*parts: object) -> str:
    """An id for a solution: 64 hex digits of sha256 over plain data."""
    text = json.dumps(_finite(list(parts)), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def may_save(root: str | Path, inputs: Iterable[object] = (), files: Iterable[str] = (), questions: Iterable[str] = (SCHEDULE, "pipeline")) -> Path:
    """The folder, where a plan may be written into it: one that has none of a plan's files, or an earlier plan that answers nothing but `questions`.

    Raises InputError otherwise.
    """
    known = ("plan.json", *FILES, "plan.html", "trace.json", "trace.json.gz", *files)
    return may_fill(root, known, lambda held: _ours(held, frozenset(questions)), inputs=inputs)


def _ours(root: Path, questions: frozenset[str] | None) -> bool:
    """Whether the folder holds a plan of ours, of whatever version, which answers no other than these `questions` (None: any)."""
    try:
        data = _head(root / "plan.json")
    except ArtefactError as error:
        return "newer" in error.message or "schema" in error.message
    return questions is None or set(data.get("solutions") or ()) <= questions


def _readable(root: Path) -> Document | None:
    try:
        return read(root)
    except ArtefactError:
        return None


def _head(file: Path) -> dict[str, Any]:
    """plan.json as a mapping of this format; an older one is read into it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{file} is damaged: {' '.join(str(error).split())[:120]}.", _AGAIN) from error
    if isinstance(data, dict) and data.get("kind") == "map" and "certificate" in data:
        return _of_map(data)
    kind, _, version = str(data.get("format")).partition("/") if isinstance(data, dict) else ("", "", "")
    if kind not in (_FIRST, "fourfold.plan"):
        raise ArtefactError(f"{file} is no plan of fourfold plan.", "Name the folder that `fourfold plan --out` wrote.")
    if data["format"] == FORMAT:
        return data
    known: object = data.get("schema") if kind == _FIRST else int(version) if version.isdecimal() else version
    if kind == _FIRST and known == _SCHEMA:
        return _of_first(data)
    newer = isinstance(known, int) and known > (_SCHEMA if kind == _FIRST else int(FORMAT.partition("/")[2]))
    raise ArtefactError(f"{file} has schema {known!r}{', of a newer fourfold' * newer}; this one reads {FORMAT.partition('/')[2]}.",
                        "Install the fourfold that wrote it." if newer else _AGAIN)


def _of_first(data: dict[str, object]) -> dict[str, object]:
    """The first format of `fourfold plan` in this one's words; what is missing there stays missing, and is told by whoever needs it."""
    data = dict(data)
    for name in ("format", "schema"):
        data.pop(name)
    given: dict[str, Any] = {name: data.pop(name, {}) for name in ("graph", "system", "files")}
    parts = {name: data.pop(name) for name in ("model", "capture") if name in data}
    answer = {name: data.pop(name) for name in _ARRAYS if name in data}
    return {"format": FORMAT, "workload": {"kind": "graph", **given["graph"], **parts}, "machine": given["system"], "files": given["files"],
            "solutions": {SCHEDULE: {**data, "answer": answer}}}


def _of_map(data: dict[str, object]) -> dict[str, object]:
    """The plan.json that `fourfold map` wrote before there was one format."""
    certificate = data["certificate"]
    facts = {"cost": data.get("value"), "solver": data.get("technique"), "why": data.get("before_why"), "hash": identify(certificate)}
    return {"format": FORMAT, "workload": {"kind": "jobs", "name": "jobs"}, "machine": {"name": "sites"}, "files": {},
            "solutions": {"carbon_aware": {**data, **facts}}}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _finite(value: object) -> object:
    """Plain JSON data; numpy's scalars as numbers, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        return _finite(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def amount(value: float | None, unit: str) -> str:
    """A cost in the unit it deserves: "12.3 ms", "4.56 GB", "µ" below; None → "–"."""
    if value is None:
        return "–"
    value, unit = (value / 1e3, "s") if unit == "ms" else (value, unit)
    steps = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")) if unit == "B" else ((1.0, ""), (1e-3, "m"), (1e-6, "µ"))
    scale, prefix = next(((scale, prefix) for scale, prefix in steps if abs(value) >= scale), steps[-1] if value else (1.0, ""))
    return f"{value / scale:.4g} {prefix}{unit}"
