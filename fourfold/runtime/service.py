"""What serving costs: text in, answer out, as `predict` runs it. Tokenising, counting words, collating, the engine, the gates and un-batching count.

Rows are dealt at random into calls. Every runner answers every call, interleaved in random order with the original's own service, so resampling
calls resamples rows and rounds together. Short calls are answered several in a row, after one that is not timed: a service has the caches to itself,
and what another runner left in them, or took from them, is no part of its cost. The cost is Σ time / Σ time of the original: a mean, because a
rare dear row is part of the bill. Where a call is but a sample, a cascade's cost is corrected to the shares that all rows have (a control variate,
Owen 2013, §8.9).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.unread import Unread
from fourfold.measure.bootstrap import resampled
from fourfold.measure.race import Clock, RaceResult, Ratio, SystemClock

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.engines.decode.base import Decoding
    from fourfold.runtime.artefact import Assembly

ORIGINAL = "original"
CALLS = 12  # calls that the rows are dealt into where there are enough of them
MOST_ROWS = 256  # rows of one call
ALONE = 0.1  # seconds that a runner has the machine to itself before another takes its turn
# Standard deviation of a ratio from one process to the next on one host: relative, and of the fixed cost of a call in seconds, which memory and
# modules lying elsewhere make another (never more than so much of the call). benchmarks/verify.py measures both.
PROCESS, FIXED, MOST_FIXED = 0.02, 1.5e-4, 0.05


@dataclass(frozen=True)
class Served:
    """The cost of a service. `result`: the race's ratios to the original's service, its times seconds of one call. `wall`, `cpu`: seconds of a row.
    rows: that were answered; `call`: rows of a call; `corrected`: by how much the shares of all rows moved the ratio of CPU time."""

    result: RaceResult
    rows: int
    call: int
    wall: float
    cpu: float
    corrected: float = 0.0
    #: Of generating workloads, by batch size: prefill and decoding told apart (`fourfold.runtime.generating.Phases.told`).
    generation: dict[str, Any] | None = None

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {**asdict(self), "result": self.result.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Served:
        """The reverse of `to_json`."""
        return cls(**{**data, "result": RaceResult.from_json(data["result"])})


@dataclass(frozen=True)
class Runner:
    """Who answers: an assembly. `owners` int64 [N], where it is a cascade: which member answers each row of the whole split; `parts`: the names of
    the runners that are its members alone."""

    assembly: Assembly
    owners: np.ndarray | None = None
    parts: tuple[str, ...] = ()


@dataclass
class Timed:
    """Seconds of every (runner, call): lists of (wall, cpu), one entry a round."""

    calls: list[np.ndarray]
    times: dict[str, list[list[tuple[float, float]]]] = field(default_factory=dict)

    def seconds(self, name: str) -> np.ndarray:
        """[calls, 2]: the median over rounds, wall and CPU."""
        return np.array([np.median(np.array(one), axis=0) for one in self.times[name]])


def requests(assembly: Assembly, examples: Examples, rows: np.ndarray, task: Task, max_length: int | None) -> Callable[[], Examples | Unread]:
    """One call of `rows` as a service would get it: raw texts where there are any, each time anew, else the arrays."""
    part = examples.take(rows)
    if task.kind in ("classification", "regression") and part.raw is not None and len(part.raw) and isinstance(part.raw[0], str | tuple):
        raw, subject = part.raw, assembly.reader()
        return lambda: Unread(raw, subject, max_length)
    if task.kind not in ("causal_lm",):
        part = part.with_targets(None)
    return lambda: part


def runner(assembly: Assembly, examples: Examples, rows: np.ndarray, task: Task, max_length: int | None, single: bool) -> Callable[[], None]:
    """Answers `rows`: in one call, or (`single`) in a call each."""
    if task.generation is not None:
        from fourfold.runtime.generating import call, workload

        return lambda: call(decoding(assembly), examples.take(rows), task, workload(examples.take(rows), task, 0, 1)[0])
    asks = [requests(assembly, examples, one, task, max_length) for one in (np.split(rows, len(rows)) if single else [rows])]

    def run() -> None:
        for ask in asks:
            assembly.answers(ask(), task)

    return run


def dealt(count: int, single: bool = False, calls: int = CALLS) -> int:
    """Calls that `count` rows are dealt into: of at least 32 rows (`single`: 4) where there are enough, of at most `MOST_ROWS`."""
    number = int(np.clip(count // (4 if single else 32), min(count, 5), calls))
    return max(number, math.ceil(count / MOST_ROWS))


def race_services(
    runners: Mapping[str, Runner],
    examples: Examples,
    task: Task,
    *,
    seconds: float,
    seed: int = 0,
    objective: str = "energy",
    max_length: int | None = None,
    calls: int = CALLS,
    call: int | None = None,
    least: int = 96,
    clock: Clock | None = None,
) -> dict[str, Served]:
    """Cost of every runner relative to `runners["original"]`.

    seconds: wall time for all of it; as many rows are answered as fit in (`least` in any case), all of `examples` at most, and further rounds are
    run while time is left. objective "latency" asks for one row at a time. call: rows of a call, where costs are to be compared with those of an
    earlier race; None: as many as deal all rows into `calls`. Raises KeyError without an original.
    """
    clock = clock or SystemClock()
    runners[ORIGINAL]
    began = clock.wall()
    if task.generation is not None:
        return _race_generation(runners, examples, task, seconds, seed, clock)
    single, least = objective == "latency", 24 if objective == "latency" else least
    order = np.random.default_rng([seed, 17]).permutation(len(examples))
    first = order[: min(len(order), 8 if single else 32)]
    each = 0.0  # seconds that all runners together take for a row
    for one in runners.values():
        run = runner(one.assembly, examples, first, task, max_length, single)
        run()
        at = clock.wall()
        run()
        each += (clock.wall() - at) / len(first)
    left = max(0.0, seconds - (clock.wall() - began))
    count = int(np.clip(0.9 * left / max(each, 1e-9), min(least, len(order)), len(order)))
    number = dealt(count, single, calls) if call is None or single else max(min(count, 5), round(count / call))
    timed = Timed([np.sort(part) for part in np.array_split(order[:count], number)])
    rng = np.random.default_rng([seed, 18])
    doing = {
        name: [runner(one.assembly, examples, rows, task, max_length, single) for rows in timed.calls] for name, one in runners.items()
    }
    timed.times = {name: [[] for _ in timed.calls] for name in runners}
    rows_each = max(len(rows) for rows in timed.calls) * each / len(runners)  # seconds of a call, roughly
    turn = int(np.clip(math.ceil(ALONE / max(rows_each, 1e-9)), 1, number))
    for round_ in range(8):
        at, order_ = clock.wall(), rng.permutation(number)
        for some in (order_[k : k + turn] for k in range(0, number, turn)):
            for name in rng.permutation(np.array(list(runners), dtype=object)):
                if turn > 1:
                    doing[name][some[-1]]()
                for k in some:
                    wall, cpu = clock.wall(), clock.cpu()
                    doing[name][k]()
                    timed.times[name][k].append((clock.wall() - wall, clock.cpu() - cpu))
        took = clock.wall() - at
        if round_ >= (0 if count < len(order) else 1) and clock.wall() - began + took > seconds or clock.wall() - began + took > 1.5 * seconds:
            break
    return {name: _served(name, one, timed, runners, seed) for name, one in runners.items()}


def decoding(assembly: Assembly) -> Decoding:
    """What generates in an assembly of one part."""
    from fourfold.runtime.generating import GeneratingSession

    session = assembly.parts[-1].open()
    assert isinstance(session, GeneratingSession)
    return session.decoding


def _race_generation(runners: Mapping[str, Runner], examples: Examples, task: Task, seconds: float, seed: int, clock: Clock) -> dict[str, Served]:
    """`race_services` of models that generate: every call is one batch of each size served, at the workload's prompt and new tokens."""
    from fourfold.runtime.generating import Phases, call, workload

    assert task.generation is not None
    began, phases = clock.wall(), {name: Phases() for name in runners}
    planned = workload(examples, task, seed, CALLS)
    each = 0.0
    for one in runners.values():
        at = clock.wall()
        call(decoding(one.assembly), examples, task, planned[0])
        each += clock.wall() - at
    number = int(np.clip(0.9 * max(0.0, seconds - (clock.wall() - began)) / max(each, 1e-9), 5, CALLS))
    timed, rng = Timed([np.concatenate(rows) for rows in planned[:number]]), np.random.default_rng([seed, 18])
    timed.times = {name: [[] for _ in timed.calls] for name in runners}
    for _ in range(8):
        at = clock.wall()
        for k in rng.permutation(number):
            for name in rng.permutation(np.array(list(runners), dtype=object)):
                wall, cpu = clock.wall(), clock.cpu()
                call(decoding(runners[name].assembly), examples, task, planned[k], phases[name])
                timed.times[name][k].append((clock.wall() - wall, clock.cpu() - cpu))
        if clock.wall() - began + (clock.wall() - at) > seconds:
            break
    prompt, new = task.generation.prompt, task.generation.new
    return {name: replace(_served(name, one, timed, runners, seed), generation=phases[name].told(prompt, new)) for name, one in runners.items()}


def _served(name: str, who: Runner, timed: Timed, runners: Mapping[str, Runner], seed: int) -> Served:
    ours, theirs = timed.seconds(name), timed.seconds(ORIGINAL)
    rows = np.array([len(call) for call in timed.calls])
    ratios, moved = [], 0.0
    for column in (0, 1):
        shift, spread = _correction(who, timed, column, runners)
        moved = shift
        ratios.append(ratio(ours[:, column], theirs[:, column], shift=shift, spread=spread, seed=seed, same=name == ORIGINAL))
    (wall_min, cpu_min), (wall, cpu) = ours.min(0).tolist(), ours.mean(0).tolist()
    total = ours.sum(0) / rows.sum()
    rounds = len(timed.times[name][0])
    result = RaceResult(name, ORIGINAL, rounds * len(rows), 1, wall_min, wall, cpu_min, cpu, ratios[0], ratios[1])
    return Served(result, int(rows.sum()), int(rows.max()), float(total[0]), float(total[1]), moved)


def _correction(who: Runner, timed: Timed, column: int, runners: Mapping[str, Runner]) -> tuple[float, float]:
    """(what the ratio misses because the rows raced were routed otherwise than all rows are; the standard error of all rows' own routing)."""
    if who.owners is None or not all(part in runners for part in who.parts):
        return 0.0, 0.0
    base = timed.seconds(ORIGINAL)[:, column].sum()
    costs = np.cumsum([timed.seconds(part)[:, column].sum() / base for part in who.parts])   # a row answered by member k has paid members 0 … k
    price = costs[who.owners]
    raced = np.concatenate(timed.calls)
    return float(price.mean() - price[raced].mean()), float(price.std() / math.sqrt(len(price)))


def ratio(
    ours: np.ndarray, theirs: np.ndarray, *, shift: float = 0.0, spread: float = 0.0, seed: int = 0, resamples: int = 2000, same: bool = False
) -> Ratio:
    """Σ ours / Σ theirs + shift, with its 90 % interval by the bootstrap over calls (Efron 1979), widened by Student's t for few calls, by `spread`
    (a standard error) and by what changes from process to process. ours, theirs: seconds of each call [K]. The verdict is at 99 %."""
    from scipy.stats import t

    value = float(ours.sum() / max(theirs.sum(), 1e-12))
    if same:
        return Ratio(1.0, 1.0, 1.0, 0)
    count = len(ours)
    logs = resampled(lambda a, b: np.log(np.maximum(a.sum(1), 1e-12) / np.maximum(b.sum(1), 1e-12)), ours, theirs, seed=seed, resamples=resamples)
    value = max(value + shift, 0.05 * value)
    fixed = [min(MOST_FIXED, FIXED / max(float(seconds.mean()), 1e-12)) for seconds in (ours, theirs)]
    error = math.sqrt(float(logs.var()) * count / max(1, count - 1) + PROCESS**2 + sum(f**2 for f in fixed) + (spread / max(value, 1e-12)) ** 2)
    at90, at99 = (float(t.ppf(q, max(1, count - 1))) for q in (0.95, 0.995))
    verdict = 0 if count < 3 else -1 if value * math.exp(at99 * error) < 1 else 1 if value * math.exp(-at99 * error) > 1 else 0
    return Ratio(value, value * math.exp(-at90 * error), value * math.exp(at90 * error), verdict)


def disagrees(whole: Served, parts: Sequence[Served], reach: Sequence[float]) -> str | None:
    """A sentence where a cascade's cost cannot be: below its own first member's, or outside the arithmetic of its parts; None where it can.

    reach: share of the rows that reaches each member, the first 1. Members run alone read all rows, handed-on rows are others and come in smaller
    batches, so the arithmetic of what is handed on counts within half and four times of it.
    """
    cost, first = whole.result.cpu, parts[0].result.cpu
    if cost.high < first.low:
        return f"it was measured at {cost.value:.2%} of the original's cost, below its own first member's {first.value:.2%}"
    rest = sum(share * part.result.cpu.value for share, part in zip(reach[1:], parts[1:], strict=True))
    low, high = first.low + 0.5 * rest, first.high + 4.0 * rest
    if cost.high < low or cost.low > high:
        return f"it was measured at {cost.value:.2%} of the original's cost, where its members add up to {first.value + rest:.2%}"
    return None
