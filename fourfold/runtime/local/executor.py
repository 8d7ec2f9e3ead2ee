"""Local: a plan carried out on this machine, region by region, in its order, on its devices; timed, and compared with what was predicted.

    execution = execute(plan, program, inputs)              # outputs, seconds with interval, spans of tasks, regions and transfers
    plan = plan.replace(engines=race(plan, program, inputs).engines)
    found = check("plan/")                                  # captured again, run, outputs compared, predicted beside measured

A device of kind "cpu" is a process with its share of cores and threads (the first one is this process), one of kind "cuda" or "gpu" a process
that feeds that GPU. Each runs its tasks in the order in which the simulator starts them. Values that another device reads are copied into shared
memory by the sender as soon as their producer's region ends. `engines`: region → engine, "placement" → "planned" or "one process", "fingerprint" →
the processor that they were raced on; another processor's race is void.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines import EAGER, region_engine
from fourfold.engines.base import TensorSpec, spec_of
from fourfold.engines.call import Call, Ref, Region, mapped
from fourfold.engines.region import calls, regions
from fourfold.errors import FourfoldError, InputError
from fourfold.host import here
from fourfold.measure import bootstrap
from fourfold.runtime.local.devices import GPU, allotted, local, ordinal, shares
from fourfold.runtime.local.malloc import keep
from fourfold.runtime.local.tensors import feed, natives, tensors
from fourfold.runtime.local.workers import EAGERLY, Arena, Duty, Layout, Record, WorkerPool

if TYPE_CHECKING:
    from fourfold.plans import Plan
    from fourfold.program import Program

PLANNED, ONE = "planned", "one process"                                 # placements
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")                     # read when torch is loaded: threads that spin beside others burn minutes


# ---- what comes out ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """One region in one run: s since the run began; `predicted` s is the sum over its tasks."""

    number: int
    device: int
    engine: str
    tasks: tuple[int, ...]
    start: float
    finish: float
    predicted: float

    @property
    def seconds(self) -> float:
        return self.finish - self.start


@dataclass(frozen=True)
class Sent:
    """One transfer: a value copied for another device; s since the run began, bytes."""

    value: int
    source: int
    target: int
    start: float
    finish: float
    bytes: int


@dataclass(frozen=True)
class Execution:
    """What was measured. `seconds`: median of `runs` (warm; from the call to outputs in hand), `low`–`high` its 90 % interval. `start`, `finish`
    f8[T]: s since the run began, of the median run; tasks of a compiled region share its span. `makespan`: to the last task's end. `regions`,
    `transfers` of that run. `outputs` as the model returns them. `placement` "planned" or "one process"; `ready` s that building and compiling took.
    """

    outputs: object
    seconds: float
    low: float
    high: float
    runs: tuple[float, ...]
    start: np.ndarray
    finish: np.ndarray
    makespan: float
    regions: tuple[Ran, ...]
    transfers: tuple[Sent, ...]
    engines: Mapping[str, str]
    placement: str
    ready: float = 0.0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """All but outputs and spans of tasks."""
        return {"seconds": self.seconds, "low": self.low, "high": self.high, "runs": list(self.runs), "makespan": self.makespan,
                "placement": self.placement, "engines": dict(self.engines), "ready": self.ready, "notes": list(self.notes),
                "regions": [{"region": r.number, "device": r.device, "engine": r.engine, "tasks": len(r.tasks), "start": r.start, "finish": r.finish,
                             "seconds": r.seconds, "predicted": r.predicted} for r in self.regions],
                "transfers": [{"value": t.value, "source": t.source, "target": t.target, "start": t.start, "finish": t.finish, "bytes": t.bytes}
                              for t in self.transfers]}


# ---- a plan made ready ---------------------------------------------------------------------------------------------------------------------------


class Local:
    """A plan made ready to run; a context manager that ends its workers. `placement` and `engines` (region → engine, default eager) as in the plan's
    own mapping, which is used where they are None and the processor is the same.

    Raises InputError where the plan's system is not this machine, a device does not exist here, or the program is not the plan's.
    """

    def __init__(self, plan: Plan, program: Any, inputs: Any, *, engines: Mapping[str, str] | str | None = None, placement: str | None = None,
                 stamps: bool = True, folder: Path | None = None, limit: float = 120.0) -> None:
        local(plan)
        self.plan, self.program, self.notes = plan, program, list[str]()
        self.given = feed(program, inputs)
        stored = dict(plan.engines)
        if stored and stored.get("fingerprint") not in ("", None, here().fingerprint):
            self.notes.append("The engines of this plan were raced on another processor, which makes that race void; regions run eagerly.")
            stored = {}
        chosen = stored if engines is None else dict.fromkeys(["*"], engines) if isinstance(engines, str) else dict(engines)
        self.placement = placement or chosen.get("placement", PLANNED)
        self.timeline = plan.timeline()
        self.place, _ = plan.of_tasks
        self.task = np.asarray(plan.tasks.group)
        one = self.placement == ONE
        self.regions = regions(plan.graph, self.task, self.place, self.timeline.start, whole=one)
        self.engines = {str(r.number): chosen.get(str(r.number), chosen.get("*", EAGER)) for r in self.regions}
        self.weights = program.weights()
        self.calls: dict[int, list[Call]] = {}
        self.specs: dict[int, TensorSpec | None] = {}
        self.kept: dict[int, object] = {}
        self.stamps, self.folder, self.limit = stamps, folder, limit
        self.home: int | None = None
        self._threads, self._cores = 0, tuple[int, ...]()
        self._stack = contextlib.ExitStack()
        self.ready = 0.0

    # ---- preparing

    def __enter__(self) -> Local:
        began = time.perf_counter()
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise
        self.ready = time.perf_counter() - began
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        keep()
        plan, graph = self.plan, self.plan.graph
        used = sorted({region.device for region in self.regions})
        several = len(used) > 1
        if several and self.program.dialect == "jax":
            raise InputError("A JAX program runs on one device here, and this plan uses several.", "Let it run in one process: --one-process.")
        if several or any(engine != EAGER for engine in self.engines.values()):
            self.inspect()
        else:
            for region in self.regions:
                self.calls[region.number] = calls(self.program, graph, region)
            self.weights = tensors(self.program, self.weights)
        one = self.placement == ONE
        threads = shares(plan, one)
        self.home = next((d for d in used if one or plan.system.devices[d].kind not in GPU), None)
        duties, arena = self._duties(used, threads, self.specs, several or self.home is None)
        if arena is not None:
            self._stack.callback(arena.close)
        mine = next((duty for duty in duties if duty.device == self.home), None)
        self._threads, self._cores = (mine.threads, mine.cores) if mine is not None else (0, ())
        with self._here():
            self.pool = self._stack.enter_context(WorkerPool(duties, self.home, arena, self.weights, self.limit))

    def inspect(self, keep: bool = False) -> None:
        """Shapes, strides and dtypes of all values, from one run in this process; `keep`: and what passes between regions, in `kept`."""
        import torch

        graph = self.plan.graph
        for region in self.regions:
            self.calls[region.number] = calls(self.program, graph, region)
        self.weights = tensors(self.program, self.weights)
        have = {**self.weights, **self.given}
        self.specs |= {v: spec_of(t) for v, t in have.items()}
        if self.program.dialect == "jax":
            return
        left = {v: len(graph.readers_of(v)) for v in range(len(graph.producer))}
        wanted = {v for region in self.regions for v in region.reads} if keep else set()
        done: set[int] = set()
        with torch.inference_mode():
            for region in self.regions:
                for call in self.calls[region.number]:
                    if call.node in done:
                        continue
                    done.add(call.node)
                    args, kwargs = (mapped(part, lambda x: have[x.value] if isinstance(x, Ref) else x) for part in (call.args, call.kwargs))
                    try:
                        made = call.target(*args, **kwargs)
                    except Exception as error:
                        where = f"{self.plan.system.devices[region.device].name} failed at {graph.names[call.node]}"
                        raise FourfoldError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", EAGERLY) from error
                    _spread(call.outs, made, have, self.specs)
                    for v in dict.fromkeys(graph.inputs_of(call.node).tolist()):
                        left[v] -= 1
                        if not left[v] and v not in wanted:
                            have.pop(v, None)
        self.kept = {v: have[v] for v in wanted}

    def _duties(self, used: list[int], threads: dict[int, int], specs: dict[int, TensorSpec | None], shared: bool) -> tuple[list[Duty], Arena | None]:
        import torch

        from fourfold.runtime.local.workers import dense

        plan, graph = self.plan, self.plan.graph
        layout = Layout(len(plan.system))
        names = {t: graph.names[n] for n, t in reversed(list(enumerate(self.task.tolist())))}
        outputs = {int(v) for v in graph.outputs}
        given_slots: dict[int, Any] = {}
        passed: dict[int, Any] = {}
        wide: dict[int, Any] = {}

        def slot(v: int) -> Any:
            spec = specs.get(v)
            return layout.slot(spec) if spec is not None else layout.slot(TensorSpec((), (), torch.float64), True)

        for region in self.regions if shared else []:
            for v, _ in region.sends:
                passed.setdefault(v, slot(v) if v not in passed else None)
        cores, duties = allotted(plan, used, threads), []
        for d in used:
            mine = [region for region in self.regions if region.device == d]
            away = shared and d != self.home
            weights = {v for region in mine for v in region.weights}
            inputs = {v for region in mine for v in region.reads if graph.producer[v] < 0}
            made = {v for region in mine for v in region.makes} & outputs
            own = {v: wide.setdefault(v, slot(v)) for v in weights} if away else {}
            fed = {v: given_slots.setdefault(v, slot(v)) for v in inputs} if away else {}
            back = {v: slot(v) for v in made} if away else {}
            seen = dict(specs)
            for region in mine:
                for v in (*region.needs, *(inputs if away else ()), *(weights if away else ())):
                    spec = seen.get(v)
                    seen[v] = dense(spec) if spec is not None else None
            jobs = [(region, region_engine(engine), self.calls[region.number], self.file(region, engine))
                    for region in mine for engine in [self.engines[str(region.number)]]]
            device = plan.system.devices[d]
            target = "cpu" if self.placement == ONE or device.kind not in GPU else f"cuda:{ordinal(plan, d)}"
            duties.append(Duty(d, device.name, target, threads[d], cores.get(d, ()), jobs, seen, own, fed, passed, back, self.stamps,
                               str(self.folder) if self.folder else None, names if shared else names))
        if not shared:
            return duties, None
        arena = Arena(layout.size)
        with torch.inference_mode():
            for v, one in wide.items():
                arena.tensor(one).copy_(self.weights[v])
        return duties, arena

    def file(self, region: Region, engine: str) -> bytes | None:
        """The region as an ONNX model, where it comes from one and the engine reads such."""
        if self.program.dialect != "onnx" or not region_engine(engine).reads_onnx:
            return None
        from fourfold.engines.onnx import model

        return model(self.program, self.plan.graph, region)

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """This process with the threads and cores of its own device."""
        import torch

        before, cores = torch.get_num_threads(), os.sched_getaffinity(0) if self._cores else None
        try:
            if self._threads and self._threads != before:
                torch.set_num_threads(self._threads)
            if cores is not None:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, self._cores)
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)
            if cores is not None:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, cores)

    # ---- running

    def run(self, record: bool = False) -> tuple[float, float, Any, list[tuple[int, Record]]]:
        """One run: (start on the shared clock, seconds, outputs by value, records)."""
        import torch

        with self._here(), torch.inference_mode():
            return self.pool.run(self.given, record)

    def outputs(self, have: Mapping[int, Any]) -> object:
        """Values as the model returns them."""
        import torch

        wanted = {int(v) for v in self.plan.graph.outputs}
        found = {v: t.clone() if isinstance(t, torch.Tensor) else t for v, t in {**self.weights, **self.given, **have}.items() if v in wanted}
        return self.program.collect(natives(self.program, found))

    def measured(self, began: float, records: Sequence[tuple[int, Record]]) -> tuple[np.ndarray, np.ndarray, tuple[Ran, ...], tuple[Sent, ...]]:
        """(start f8[T], finish f8[T], regions, transfers) of one run, s since it began."""
        count = len(self.plan.tasks)
        start, finish = np.full(count, np.nan), np.full(count, np.nan)
        by = {region.number: region for region in self.regions}
        ran, sent = [], []
        for device, record in records:
            for number, a, b in record.regions:
                region = by[number]
                tasks = np.array(region.tasks)
                start[tasks], finish[tasks] = a - began, b - began
                predicted = float(self.plan.tasks.seconds[tasks, self.place[tasks]].sum())
                ran.append(Ran(number, device, self.engines[str(number)], region.tasks, a - began, b - began, predicted))
            seen: set[int] = set()
            for task, a, b in record.tasks:
                start[task] = a - began if task not in seen else start[task]
                finish[task] = b - began
                seen.add(task)
            sent += [Sent(v, device, to, a - began, b - began, int(self.plan.graph.size[v])) for v, to, a, b in record.sent]
        return start, finish, tuple(sorted(ran, key=lambda r: r.start)), tuple(sorted(sent, key=lambda t: t.start))


def _spread(outs: Any, made: Any, have: dict[int, Any], specs: dict[int, Any]) -> None:
    if isinstance(outs, list):
        for part, one in zip(outs, made, strict=True):
            _spread(part, one, have, specs)
    elif outs is not None:
        have[outs], specs[outs] = made, spec_of(made)


def execute(plan: Plan, program: Program, inputs: object, *, engines: Mapping[str, str] | str | None = None, placement: str | None = None,
            repeat: int = 9, folder: Path | None = None, limit: float = 120.0) -> Execution:
    """Carry out `plan` on this machine: `repeat` warm runs after two that are not counted, and one more with every span recorded.

    `inputs` as `program.feed` takes them (a tuple, or a mapping by name). `engines` region → engine, or one engine for all; default: the plan's own,
    else eager. `folder`: where compiled regions are kept between calls. `limit` s: how long one run may take.

    Raises InputError where the plan is not for this machine; FourfoldError naming device and task where a worker dies, raises or hangs.
    """
    return executions(plan, program, inputs, [(engines, placement)], repeat=repeat, folder=folder, limit=limit)[0]


def executions(plan: Plan, program: Program, inputs: object, ways: Sequence[tuple[Mapping[str, str] | str | None, str | None]], *, repeat: int = 9,
               folder: Path | None = None, limit: float = 120.0, seed: int = 0) -> list[Execution]:
    """`execute` in several ways (engines, placement), whose runs take turns in random order, so that run k of each is of the same time."""
    dice = np.random.default_rng(seed)
    with contextlib.ExitStack() as stack:
        ready = [stack.enter_context(Local(plan, program, inputs, engines=e, placement=p, folder=folder, limit=limit)) for e, p in ways]
        for one in ready:
            for _ in range(2):
                one.run()
        runs: list[list[tuple[float, float, Any]]] = [[] for _ in ways]
        last: dict[int, Any] = {}
        for _ in range(max(1, repeat)):
            for k in dice.permutation(len(ways)).tolist():
                began, seconds, last[k], records = ready[k].run(record=True)
                runs[k].append((seconds, began, records))
        return [_execution(one, runs[k], one.outputs(last[k])) for k, one in enumerate(ready)]


def _execution(ready: Local, runs: list[tuple[float, float, Any]], outputs: object) -> Execution:
    taken = [seconds for seconds, _, _ in runs]
    median = float(np.median(taken))
    low, high = bootstrap.interval(bootstrap.resampled(bootstrap.medians, taken))
    _, began, records = min(runs, key=lambda one: abs(one[0] - median))
    start, finish, ran, sent = ready.measured(began, records)
    return Execution(outputs, median, low, high, tuple(taken), start, finish, max((r.finish for r in ran), default=0.0), ran, sent, ready.engines,
                     ready.placement, ready.ready, tuple(ready.notes))
