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
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines.region import Call, Ref, Region, calls, mapped, regions
from fourfold.engines.regions import Declined, Job, Spec, build, spec_of
from fourfold.errors import FourfoldError, InputError
from fourfold.graph import VIEW
from fourfold.host import here
from fourfold.runtime.local.malloc import keep
from fourfold.runtime.local.workers import EAGERLY, Arena, Duty, Layout, Pool, Record

if TYPE_CHECKING:
    from fourfold.measure.race import RaceResult
    from fourfold.plans import Plan
    from fourfold.program import Captured

PLANNED, ONE = "planned", "one process"                                 # placements
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")                     # read when torch is loaded: threads that spin beside others burn minutes

TOLERANCE = {"float64": 1e-9, "float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2, "complex64": 1e-3, "complex128": 1e-9}    # of the largest magnitude
RACED = {"torch": ("inductor", "openvino"), "onnx": ("inductor", "openvino", "onnxruntime"), "jax": ("xla",)}   # against eager, by dialect
SHORT = 1e-4                                                            # s: a shorter region is not worth compiling, a call costs about as much
_GPU = ("cuda", "gpu")


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

    outputs: Any
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

    def to_json(self) -> dict[str, Any]:
        """All but outputs and spans of tasks."""
        return {"seconds": self.seconds, "low": self.low, "high": self.high, "runs": list(self.runs), "makespan": self.makespan,
                "placement": self.placement, "engines": dict(self.engines), "ready": self.ready, "notes": list(self.notes),
                "regions": [{"region": r.number, "device": r.device, "engine": r.engine, "tasks": len(r.tasks), "start": r.start, "finish": r.finish,
                             "seconds": r.seconds, "predicted": r.predicted} for r in self.regions],
                "transfers": [{"value": t.value, "source": t.source, "target": t.target, "start": t.start, "finish": t.finish, "bytes": t.bytes}
                              for t in self.transfers]}


def interval(runs: Sequence[float], seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """(median, low, high): the 90 % interval by bootstrap over runs (Efron 1979)."""
    taken = np.asarray(runs, float)
    picks = np.random.default_rng(seed).integers(0, len(taken), (resamples, len(taken)))
    low, high = np.quantile(np.median(taken[picks], axis=1), [0.05, 0.95])
    return float(np.median(taken)), float(low), float(high)


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
        self.engines = {str(r.number): chosen.get(str(r.number), chosen.get("*", "eager")) for r in self.regions}
        self.weights = program.weights()
        self.calls: dict[int, list[Call]] = {}
        self.specs: dict[int, Spec | None] = {}
        self.kept: dict[int, Any] = {}
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
        if several or any(engine != "eager" for engine in self.engines.values()):
            self.inspect()
        else:
            for region in self.regions:
                self.calls[region.number] = calls(self.program, graph, region)
            self.weights = tensors(self.program, self.weights)
        one = self.placement == ONE
        threads = shares(plan, one)
        self.home = next((d for d in used if one or plan.system.devices[d].kind not in _GPU), None)
        duties, arena = self._duties(used, threads, self.specs, several or self.home is None)
        if arena is not None:
            self._stack.callback(arena.close)
        mine = next((duty for duty in duties if duty.device == self.home), None)
        self._threads, self._cores = (mine.threads, mine.cores) if mine is not None else (0, ())
        with self._here():
            self.pool = self._stack.enter_context(Pool(duties, self.home, arena, self.weights, self.limit))

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

    def _duties(self, used: list[int], threads: dict[int, int], specs: dict[int, Spec | None], shared: bool) -> tuple[list[Duty], Arena | None]:
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
            return layout.slot(spec) if spec is not None else layout.slot(Spec((), (), torch.float64), True)

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
            jobs = [(region, engine, self.calls[region.number], self.file(region, engine))
                    for region in mine for engine in [self.engines[str(region.number)]]]
            device = plan.system.devices[d]
            target = "cpu" if self.placement == ONE or device.kind not in _GPU else f"cuda:{_ordinal(plan, d)}"
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
        if self.program.dialect != "onnx" or engine not in ("onnxruntime", "openvino"):
            return None
        from fourfold.engines.onnx_nodes import model

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

    def outputs(self, have: Mapping[int, Any]) -> Any:
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


def execute(plan: Plan, program: Any, inputs: Any, *, engines: Mapping[str, str] | str | None = None, placement: str | None = None, repeat: int = 9,
            folder: Path | None = None, limit: float = 120.0) -> Execution:
    """Carry out `plan` on this machine: `repeat` warm runs after two that are not counted, and one more with every span recorded.

    `inputs` as `program.feed` takes them (a tuple, or a mapping by name). `engines` region → engine, or one engine for all; default: the plan's own,
    else eager. `folder`: where compiled regions are kept between calls. `limit` s: how long one run may take.

    Raises InputError where the plan is not for this machine; FourfoldError naming device and task where a worker dies, raises or hangs.
    """
    return executions(plan, program, inputs, [(engines, placement)], repeat=repeat, folder=folder, limit=limit)[0]


def executions(plan: Plan, program: Any, inputs: Any, ways: Sequence[tuple[Mapping[str, str] | str | None, str | None]], *, repeat: int = 9,
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


def _execution(ready: Local, runs: list[tuple[float, float, Any]], outputs: Any) -> Execution:
    taken = [seconds for seconds, _, _ in runs]
    median, low, high = interval(taken)
    _, began, records = min(runs, key=lambda one: abs(one[0] - median))
    start, finish, ran, sent = ready.measured(began, records)
    return Execution(outputs, median, low, high, tuple(taken), start, finish, max((r.finish for r in ran), default=0.0), ran, sent, ready.engines,
                     ready.placement, ready.ready, tuple(ready.notes))


# ---- engines raced --------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Race:
    """Which engine runs each region soonest on this processor. `engines`: what a Plan keeps. `rows`: one per region and engine, with seconds, ratio
    to eager and its 90 % interval, or why it declined; regions "plan" and "one process" are whole runs.
    """

    engines: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]


def race(plan: Plan, program: Any, inputs: Any, *, engines: Sequence[str] | None = None, rounds: int = 21, seconds: float = 600.0,
         folder: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Race:
    """Race `engines` against eager in every region, the dearest first, and a plan on several devices against one process; interleaved, on the wall
    clock.

    An engine is chosen where it is faster than eager beyond doubt (the 90 % interval of the median ratio lies below 1) and answers alike; of
    several the quickest. One process is used unless the planned placement is faster beyond doubt. Regions of a plan on several devices that were
    predicted to take less than `SHORT` stay eager, and no new one is begun after `seconds`. `engines`: all of the program's dialect. Raises what
    `execute` raises.
    """
    rows: list[dict[str, Any]] = []
    engines = RACED[program.dialect] if engines is None else engines
    several = len({int(d) for d in np.unique(plan.place)}) > 1
    mark = {"fingerprint": here().fingerprint}
    if not several:
        chosen = _raced_whole(plan, program, inputs, PLANNED, "plan", engines, rounds, folder, rows, say)
        return Race({"placement": PLANNED, **chosen, **mark}, tuple(rows))
    until = time.monotonic() + seconds
    single = {"placement": ONE, **_raced_whole(plan, program, inputs, ONE, ONE, engines, rounds, folder, rows, say)}
    if program.dialect == "jax":
        return Race({**single, **mark}, tuple(rows))
    spread = {"placement": PLANNED, **_raced_regions(plan, program, inputs, engines, rounds, until, folder, rows, say)}
    with Local(plan, program, inputs, engines=single, folder=folder) as one, Local(plan, program, inputs, engines=spread, folder=folder) as two:
        found = timed({ONE: one.run, PLANNED: two.run}, ONE, rounds)
    rows += [_row("plan", name, found[name]) for name in (ONE, PLANNED)]
    return Race({**(spread if sooner(found[PLANNED]) else single), **mark}, tuple(rows))


def timed(runners: Mapping[str, Callable[[], object]], baseline: str, rounds: int, *, tries: int = 3, deadline: float = 60.0, seed: int = 0,
          ) -> dict[str, RaceResult]:
    """Runners in turns, in random order, after two calls each. A timing is the best of `tries`: what neighbours take of the machine only adds to it.

    No round is begun after `deadline` s, but five are made.
    """
    from fourfold.measure.race import SystemClock, result, timing, warm

    clock, dice = SystemClock(), np.random.default_rng(seed)
    repeats = {name: warm(run, 2, 0.002, clock) for name, run in runners.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    began = clock.wall()
    for number in range(rounds):
        if number >= 5 and clock.wall() - began > deadline:
            break
        for name in dice.permutation(np.array(list(runners), dtype=object)):
            times[name].append(min(timing(runners[name], repeats[name], clock) for _ in range(tries)))
    return {name: result(name, baseline, times, repeats[name], None, seed) for name in runners}


def _row(region: str, engine: str, result: RaceResult) -> dict[str, Any]:
    return {"region": region, "engine": engine, "seconds": result.wall_median, "ratio": result.wall.value, "low": result.wall.low,
            "high": result.wall.high, "faster": sooner(result), "why": ""}


def _declined(region: str, engine: str, why: str) -> dict[str, Any]:
    return {"region": region, "engine": engine, "seconds": None, "ratio": None, "low": None, "high": None, "faster": False, "why": why}


def sooner(result: RaceResult) -> bool:
    """Whether the 90 % interval of the ratio lies below 1."""
    return result.wall.high < 1


def _quickest(results: Mapping[str, RaceResult]) -> str:
    better = [name for name, result in results.items() if name != "eager" and sooner(result)]
    return min(better, key=lambda name: results[name].wall.value, default="eager")


def _raced_whole(plan: Plan, program: Any, inputs: Any, placement: str, title: str, engines: Sequence[str], rounds: int, folder: Path | None,
                 rows: list[dict[str, Any]], say: Callable[[str], None]) -> dict[str, str]:
    """Of a plan on one device: {"0": engine}."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Local(plan, program, inputs, engines={"*": "eager"}, placement=placement, stamps=False, folder=folder))
        wanted, runners = base.run()[2], {"eager": base.run}
        for engine in engines:
            say(f"{title}: {engine}")
            try:
                one = stack.enter_context(Local(plan, program, inputs, engines={"*": engine}, placement=placement, stamps=False, folder=folder))
                if why := unlike(plan, one.run()[2], wanted):
                    raise FourfoldError(why)
            except FourfoldError as error:
                rows.append(_declined(title, engine, error.message))
                continue
            runners[engine] = one.run
        found = timed(runners, "eager", rounds)
    rows += [_row(title, name, result) for name, result in found.items()]
    return {"0": _quickest(found)}


def _raced_regions(plan: Plan, program: Any, inputs: Any, engines: Sequence[str], rounds: int, until: float, folder: Path | None,
                   rows: list[dict[str, Any]], say: Callable[[str], None]) -> dict[str, str]:
    """Region → engine of a plan on several devices; every region alone, here, with the threads of its device."""
    import torch

    ready = Local(plan, program, inputs, engines={"*": "eager"}, placement=PLANNED)
    ready.inspect(keep=True)
    cost = {r.number: float(plan.tasks.seconds[list(r.tasks), ready.place[list(r.tasks)]].sum()) for r in ready.regions}
    chosen, threads = {}, shares(plan)
    before = torch.get_num_threads()
    try:
        for region in sorted(ready.regions, key=lambda r: -cost[r.number]):
            name = str(region.number)
            if time.monotonic() > until or plan.system.devices[region.device].kind in _GPU or not region.makes or cost[region.number] < SHORT:
                continue
            torch.set_num_threads(threads[region.device])
            given, runners = [ready.kept[v] for v in region.reads], {}
            wanted: Any = None
            for engine in ("eager", *engines):
                say(f"region {name}: {engine}")
                job = Job(region, ready.calls[region.number], {v: ready.weights[v] for v in region.weights}, ready.specs, threads[region.device],
                          ready.file(region, engine), folder)
                try:
                    call = build(engine, job)
                    with torch.inference_mode():
                        made = dict(zip(region.makes, call(*given), strict=True))
                    wanted = wanted or made
                    if why := unlike(plan, made, wanted):
                        raise Declined(why)
                except Declined as error:
                    rows.append(_declined(name, engine, str(error)))
                    continue
                runners[engine] = _under(call, given)
            found = timed(runners, "eager", rounds)
            rows += [_row(name, engine, result) for engine, result in found.items()]
            chosen[name] = _quickest(found)
    finally:
        torch.set_num_threads(before)
    return chosen


def _under(call: Callable[..., Any], given: Sequence[Any]) -> Callable[[], Any]:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return call(*given)

    return run


# ---- outputs compared ----------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Compared:
    """One output beside the original's: largest difference, and that as a share of the original's largest magnitude."""

    name: str
    dtype: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def equal(self) -> bool:
        return self.relative <= self.tolerance


def compared(name: str, ours: Any, theirs: Any) -> Compared:
    """`relative` is inf where shapes differ, or where one is finite and the other is not."""
    mine, other = np.asarray(_array(ours)), np.asarray(_array(theirs))
    dtype = str(getattr(theirs, "dtype", other.dtype)).removeprefix("torch.")
    tolerance = TOLERANCE.get(dtype, 0.0)
    if mine.shape != other.shape:
        return Compared(name, dtype, math.inf, math.inf, tolerance)
    if not other.size:
        return Compared(name, dtype, 0.0, 0.0, tolerance)
    if not np.issubdtype(other.dtype, np.inexact):
        wrong = float(np.mean(mine != other))
        return Compared(name, dtype, wrong, wrong, tolerance)
    finite = np.isfinite(other)
    same = bool(np.array_equal(mine[~finite], other[~finite], equal_nan=True)) and bool(np.isfinite(mine[finite]).all())
    if not same:
        return Compared(name, dtype, math.inf, math.inf, tolerance)
    worst = float(np.abs(mine[finite] - other[finite]).max(initial=0.0))
    scale = float(np.abs(other[finite]).max(initial=0.0))
    return Compared(name, dtype, worst, worst / scale if scale else (0.0 if worst == 0 else math.inf), tolerance)


def _array(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return value.double().numpy() if value.is_floating_point() else value.numpy()
    return np.asarray(value)


def unlike(plan: Plan, ours: Mapping[int, Any], theirs: Mapping[int, Any]) -> str:
    """Why values differ by more than rounding, "" where they do not."""
    for v, other in theirs.items():
        if v in ours and not (found := compared(plan.graph.labels[v] or f"value {v}", ours[v], other)).equal:
            return f"{found.name} differs by {found.relative:.2g} of its largest magnitude"
    return ""


# ---- a plan checked ------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Check:
    """A plan carried out and compared. `equal`: every output is the original's within `TOLERANCE`. `predicted` s of the simulator (of one process:
    the sum on its device) beside `execution`'s seconds; `error` their difference as a share of what was measured. `kinds`: per kind of op of tasks
    that ran one by one (op, tasks, predicted, measured s); `regions` likewise. `eager`: the whole plan with every region run eagerly, in turns with
    the other, and `ratio` of the chosen engines to it (median, low, high). `unfused`: the prediction for that, in which every op is dispatched alone.
    """

    equal: bool
    outputs: tuple[Compared, ...]
    predicted: float
    execution: Execution
    eager: Execution
    ratio: tuple[float, float, float]
    kinds: tuple[Mapping[str, Any], ...]
    regions: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    unfused: float = 0.0

    @property
    def error(self) -> float:
        return self.predicted / self.execution.seconds - 1.0

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, "predicted": self.predicted, "measured": self.execution.seconds, "error": self.error,
                "eager": {"seconds": self.eager.seconds, "low": self.eager.low, "high": self.eager.high,
                          "predicted": self.unfused or self.predicted, "error": (self.unfused or self.predicted) / self.eager.seconds - 1.0},
                "ratio": dict(zip(("median", "low", "high"), self.ratio, strict=True)),
                "outputs": [{"name": o.name, "dtype": o.dtype, "absolute": o.absolute, "relative": o.relative, "tolerance": o.tolerance,
                             "equal": o.equal} for o in self.outputs],
                "kinds": [dict(row) for row in self.kinds], "regions": [dict(row) for row in self.regions], "notes": list(self.notes),
                "execution": self.execution.to_json()}


def check(plan: Plan | str | Path, *, model: Any = None, inputs: Any = None, repeat: int = 9, engines: Mapping[str, str] | str | None = None,
          folder: Path | None = None) -> Check:
    """Carry out a plan (or the one in a folder) and compare: outputs with the original program's, node by node; what was predicted with what was
    measured.

    The model is captured again from the plan's own reference, or is `model` (all that can be captured, or what was captured). Raises as `execute`
    does, and ArtefactError where the model is no longer the one that was planned for.
    """
    plan, captured = opened(plan, model, inputs)
    given = inputs_of(captured) if inputs is None or isinstance(inputs, str | Path) else inputs
    first = Local(plan, captured.program, given, engines=engines)
    plain = all(engine == "eager" for engine in first.engines.values())
    ways = [(engines, None), *([] if plain else [("eager", first.placement)])]
    done, slow = (executions(plan, captured.program, given, ways, repeat=repeat, folder=folder) * 2)[:2]
    original, values = original_of(captured, given), flat(plan, captured, done.outputs)
    names = paths(plan, captured)
    outputs = tuple(compared(names.get(v) or plan.graph.labels[v] or f"output {k}", values[v], original[v]) for k, v in enumerate(original))
    notes, predicted = [*done.notes], float(plan.timeline().makespan)
    if done.placement == ONE:
        home = done.regions[0].device
        predicted = float(plan.tasks.seconds[:, home].sum())
        notes.append(f"It ran in one process; the prediction is that of {plan.system.devices[home].name} alone, of the plan as placed it is "
                     f"{1e3 * plan.timeline().makespan:.3f} ms.")
    unfused = _unfused(plan, done)
    if plain and unfused > predicted * 1.01:
        notes.append(f"Eager regions run op by op: the plan's groups, each in one go, would take {1e3 * predicted:.3f} ms.")
        predicted = unfused
    running = np.unique(plan.graph.kind[plan.graph.fusion != VIEW])
    if random := sorted({plan.graph.kinds[k] for k in running.tolist() if _draws(plan.graph.kinds[k])}):
        notes.append(f"The program draws random numbers ({', '.join(random)}), so its outputs need not repeat.")
    return Check(all(o.equal for o in outputs), outputs, predicted, done, slow, _ratio(done.runs, slow.runs), _kinds(plan, slow), _regions(done),
                 tuple(notes), unfused)


def _unfused(plan: Plan, done: Execution) -> float:
    """s predicted for the same placement with every op dispatched alone, which is how regions run eagerly."""
    alone = plan.replace(group=np.full(len(plan.graph), -1))
    return float(alone.tasks.seconds[:, done.regions[0].device].sum() if done.placement == ONE else alone.timeline().makespan)


def opened(plan: Plan | str | Path, model: Any = None, inputs: Any = None) -> tuple[Plan, Captured]:
    """The plan, and its program captured again. The machine is compared first, since capturing takes long."""
    from fourfold.plans import Plan as Plans
    from fourfold.program import Captured
    from fourfold.runtime.source import recapture

    found = plan if isinstance(plan, Plans) else Plans.load(plan)
    local(found)
    return found, model if isinstance(model, Captured) else recapture(found, model, inputs)


def inputs_of(captured: Captured, seed: int = 0) -> Any:
    """What the program was captured with; an .onnx file captured by its shapes alone gets normal numbers, and zeros where it takes integers."""
    if captured.inputs is not None or captured.program.dialect != "onnx":
        return captured.inputs
    program: Any = captured.program
    dice, found = np.random.default_rng(seed), {}
    for name in program.inputs:
        shape, dtype = program.spec[name]
        found[name] = dice.standard_normal(shape).astype(dtype) if dtype.startswith("float") else np.zeros(shape, dtype)
    return found


def original_of(captured: Captured, inputs: Any) -> dict[int, Any]:
    """Output values of the program run node by node, by its own `step`."""
    import torch

    from fourfold.program import arguments

    with torch.no_grad():
        kept = replace(captured, program=_Keeping(captured.program, captured.graph.outputs.tolist()))
        args, kwargs = arguments(inputs)
        return kept.run(*args, **kwargs)


class _Keeping:
    """A program whose answer is its outputs by value."""

    def __init__(self, program: Any, outputs: Sequence[int]) -> None:
        self.weights, self.feed, self.step, self.outputs = program.weights, program.feed, program.step, outputs

    def collect(self, values: Mapping[int, Any]) -> dict[int, Any]:
        return {v: values[v] for v in self.outputs}


def flat(plan: Plan, captured: Captured, outputs: Any) -> dict[int, Any]:
    """Outputs by value, of an answer as the model returns it."""
    marks = {v: _Mark(v) for v in plan.graph.outputs.tolist()}
    found: dict[int, Any] = {}
    _walk(captured.program.collect(marks), outputs, found)
    return found


def paths(plan: Plan, captured: Captured) -> dict[int, str]:
    """Where each output stands in the model's answer: "logits", "boxes.0"; of an answer that is one tensor, nothing."""
    found: dict[int, str] = {}

    def walk(form: Any, path: tuple[str, ...]) -> None:
        if isinstance(form, _Mark):
            found.setdefault(form.value, ".".join(path))
        elif isinstance(form, Mapping):
            for key, part in form.items():
                walk(part, (*path, str(key)))
        elif isinstance(form, list | tuple):
            for k, part in enumerate(form):
                walk(part, (*path, str(k)))
        elif hasattr(form, "__dict__"):
            for key, part in vars(form).items():
                walk(part, (*path, str(key)))

    walk(captured.program.collect({v: _Mark(v) for v in plan.graph.outputs.tolist()}), ())
    return found


@dataclass(frozen=True)
class _Mark:
    value: int


def _walk(form: Any, given: Any, found: dict[int, Any]) -> None:
    if isinstance(form, _Mark):
        found[form.value] = given
    elif isinstance(form, Mapping):
        for key, part in form.items():
            _walk(part, given[key], found)
    elif isinstance(form, list | tuple):
        for part, one in zip(form, given, strict=True):
            _walk(part, one, found)
    elif hasattr(form, "__dict__"):
        for key, part in vars(form).items():
            _walk(part, getattr(given, key), found)


def _draws(kind: str) -> bool:
    return any(word in kind.lower() for word in ("dropout", "rand", "bernoulli", "multinomial", "normal_"))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    from fourfold.measure.race import median_ratio

    count = min(len(ours), len(theirs))
    found = median_ratio(np.array(ours[:count]), np.array(theirs[:count]))
    return found.value, found.low, found.high


def _kinds(plan: Plan, done: Execution) -> tuple[dict[str, Any], ...]:
    """Per kind of op (of a fused task: its kinds, views aside), tasks that were timed alone: number, predicted and measured s; dearest first."""
    graph, place = plan.graph, plan.of_tasks[0]
    alone = {t for r in done.regions if r.engine == "eager" for t in r.tasks}
    parts: dict[int, list[str]] = {}
    for n, t in enumerate(np.asarray(plan.tasks.group).tolist()):
        names = parts.setdefault(t, [])
        name = graph.kinds[graph.kind[n]].split(".")[-1]
        if graph.fusion[n] != VIEW and name not in names:
            names.append(name)
    table: dict[str, list[float]] = {}
    for t in sorted(alone):
        names = parts[t] or ["view"]
        row = table.setdefault("+".join(names[:4]) + ("+…" if len(names) > 4 else ""), [0, 0.0, 0.0])
        row[0] += 1
        row[1] += float(plan.tasks.seconds[t, place[t]])
        row[2] += float(np.nan_to_num(done.finish[t] - done.start[t]))
    return tuple({"op": op, "tasks": int(n), "predicted": a, "measured": b} for op, (n, a, b) in sorted(table.items(), key=lambda one: -one[1][2]))


def _regions(done: Execution) -> tuple[dict[str, Any], ...]:
    return tuple({"region": r.number, "device": r.device, "engine": r.engine, "tasks": len(r.tasks), "predicted": r.predicted, "measured": r.seconds}
                 for r in done.regions)


# ---- this machine --------------------------------------------------------------------------------------------------------------------------------

def local(plan: Plan) -> None:
    """Raises InputError where the plan's system is not this machine, saying which is which; or names a GPU that is not here."""
    system, machine = plan.system, here()
    if not system.fingerprint:
        raise InputError(f"The plan is for {system.name!r}, a description of no particular machine; this is {machine.name}.",
                         "Plan for this one: fourfold plan MODEL --machine here")
    if system.fingerprint != machine.fingerprint:
        raise InputError(f"The plan is for {system.name!r} (fingerprint {system.fingerprint}); "
                         f"this machine is {machine.name} ({machine.fingerprint}).",
                         "Run it there, or plan for this one: fourfold plan MODEL --machine here")
    gpus = [d for d in np.unique(plan.place).tolist() if system.devices[d].kind in _GPU]
    if gpus:
        import torch

        if (there := torch.cuda.device_count()) <= max(_ordinal(plan, d) for d in gpus):
            raise InputError(f"The plan uses {system.devices[gpus[-1]].name}, a GPU; torch sees {there} of them here.",
                             "Install a torch with CUDA, or plan without the GPU.")


def _ordinal(plan: Plan, device: int) -> int:
    """Number of a GPU among the GPUs."""
    return sum(plan.system.devices[d].kind in _GPU for d in range(device))


def shares(plan: Plan, one: bool = False) -> dict[int, int]:
    """Device → threads: CPU devices share the cores evenly; in one process it has all."""
    cores = here().cores
    if one:
        return dict.fromkeys(range(len(plan.system)), cores)
    count = sum(device.kind not in _GPU for device in plan.system.devices)
    return {d: 1 if device.kind in _GPU else max(1, cores // max(1, count)) for d, device in enumerate(plan.system.devices)}


def allotted(plan: Plan, used: Sequence[int], threads: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """Device → cores, where several CPU devices are in use and there are enough; else nobody is pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return {}
    cores = sorted(os.sched_getaffinity(0))
    mine = [d for d in used if plan.system.devices[d].kind not in _GPU]
    if len(mine) < 2 or sum(threads[d] for d in mine) > len(cores):
        return {}
    found, at = {}, 0
    for d in mine:
        found[d] = tuple(cores[at: at + threads[d]])
        at += threads[d]
    return found


# ---- between dialects ----------------------------------------------------------------------------------------------------------------------------

def feed(program: Any, inputs: Any) -> dict[int, Any]:
    """Values of the inputs as the executor's tensors."""
    from fourfold.program import arguments

    args, kwargs = arguments(inputs)
    return tensors(program, program.feed(*args, **kwargs))


def tensors(program: Any, found: Mapping[int, Any]) -> dict[int, Any]:
    """numpy arrays of ONNX as torch tensors; others as they are."""
    if program.dialect != "onnx":
        return dict(found)
    import torch

    return {v: a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a)) for v, a in found.items()}


def natives(program: Any, found: Mapping[int, Any]) -> dict[int, Any]:
    """The way back."""
    if program.dialect != "onnx":
        return dict(found)
    return {v: t.numpy() if hasattr(t, "numpy") else t for v, t in found.items()}
