"""A plan: a captured graph, the system it is for, and who runs what where and when; a folder of plain files that another process or machine reads.

    plan.save("plan/")                         # plan.json, graph.npz, system.toml: no pickles
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import ArtefactError, InputError, unwritable
from fourfold.folder import may_fill
from fourfold.graph import Graph
from fourfold.machine import Machine

if TYPE_CHECKING:
    from fourfold.cost.simulate import Tasks, Timeline

FORMAT, SCHEMA = "fourfold plan", 1
FILES = ("graph.npz", "system.toml")                                    # beside plan.json, which is written last and holds their digests
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
    model: Mapping[str, Any] = field(default_factory=dict)
    capture: Mapping[str, Any] = field(default_factory=dict)
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
        digest = hashlib.sha256(f"{FORMAT} {SCHEMA} {self.graph.hash} {self.system.hash}".encode())
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

    def replace(self, **changes: Any) -> Plan:
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

        Other files there are left alone. Raises InputError where the folder cannot be written or holds the plan.json of something else.
        """
        root = Path(folder)
        may_save(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".plan-", dir=root) as aside:
                temp = Path(aside)
                self.graph.save(temp / "graph.npz")
                self.system.write(temp / "system.toml")
                head = {"format": FORMAT, "schema": SCHEMA, "files": {name: _digest(temp / name) for name in FILES}}
                arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
                text = json.dumps(_finite(head | self.to_json() | arrays), ensure_ascii=False, allow_nan=False, indent=None)
                (temp / "plan.json").write_text(text, encoding="utf-8")
                for name in (*FILES, "plan.json"):                      # the head last: what is between does not pass `load`
                    _flush(temp / name)
                    os.replace(temp / name, root / name)
        except OSError as error:
            raise unwritable(root, error, "the plan") from error
        return [root / name for name in ("plan.json", *FILES)]

    @classmethod
    def load(cls, folder: str | Path) -> Plan:
        """What `save` wrote. Raises ArtefactError where it is missing, damaged, altered, of another program or of a newer version."""
        root = Path(folder)
        root = root.parent if root.name == "plan.json" else root
        if not root.exists():
            raise ArtefactError(f"There is no plan in {root}: no such folder.", _AGAIN)
        if not (root / "plan.json").is_file():
            raise ArtefactError(f"{root} holds no plan: plan.json is missing.", "Name the folder that `fourfold plan --out` wrote.")
        data = _head(root / "plan.json")
        for name in FILES:
            if not (root / name).is_file():
                raise ArtefactError(f"The plan in {root} is not whole: {name} is missing.", _AGAIN)
            if _digest(root / name) != data.get("files", {}).get(name):
                raise ArtefactError(f"The plan in {root} is damaged: {name} is not the file that was written with its plan.json.", _AGAIN)
        try:
            graph, system = Graph.load(root / "graph.npz"), Machine.read(root / "system.toml")
        except InputError as error:
            raise ArtefactError(error.message, _AGAIN) from error
        try:
            names = {f.name for f in dataclasses.fields(cls)} - {"graph", "system"}
            given = {name: data[name] for name in names}
            for name in ("table", "sentences", "notes"):
                given[name] = tuple(given[name])
            plan = cls(graph=graph, system=system, **given)
            same = (data["graph"]["hash"], data["hash"]) == (graph.hash, plan.hash)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            told = error.message if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise ArtefactError(f"{root / 'plan.json'} is damaged: {' '.join(told.split())[:160]}", _AGAIN) from error
        if not same:
            raise ArtefactError(f"{root / 'plan.json'} does not hold what was saved: its hash differs.", _AGAIN)
        return plan


def may_save(root: str | Path, inputs: Iterable[Any] = ()) -> Path:
    """The folder, where a plan may be written into it: one that has none of a plan's files, or an earlier plan. Raises InputError otherwise."""
    return may_fill(root, ("plan.json", *FILES, "plan.html", "trace.json", "trace.json.gz"), _ours, inputs=inputs)


def _ours(root: Path) -> bool:
    """Whether the folder holds a plan of ours, of whatever version."""
    try:
        _head(root / "plan.json")
    except ArtefactError as error:
        return "newer" in error.message or "schema" in error.message
    return True


def _head(file: Path) -> dict[str, Any]:
    """plan.json as a mapping of this format and version."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{file} is damaged: {' '.join(str(error).split())[:120]}.", _AGAIN) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtefactError(f"{file} is no plan of fourfold plan.", "Name the folder that `fourfold plan --out` wrote.")
    if data.get("schema") != SCHEMA:
        newer = isinstance(data.get("schema"), int) and data["schema"] > SCHEMA
        raise ArtefactError(f"{file} has schema {data.get('schema')!r}{', of a newer fourfold' * newer}; this one reads {SCHEMA}.",
                            "Install the fourfold that wrote it." if newer else _AGAIN)
    return data


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _finite(value: Any) -> Any:
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
    steps = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")) if unit == "B" else ((1.0, ""), (1e-3, "m"), (1e-6, "µ"))
    scale, prefix = next(((scale, prefix) for scale, prefix in steps if abs(value) >= scale), steps[-1] if value else (1.0, ""))
    return f"{value / scale:.4g} {prefix}{unit}"
