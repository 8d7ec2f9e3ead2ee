"""Calibrate: measure this machine into a Machine, in minutes. What a device reaches by kind and size of op, what a call and a hand-over cost.

Every op is called as the eager engine calls it, on tensors of its own, so allocation is part of it (`jobs/kernels.py` lists them; no model is among
them). Ops are timed amid others of about their size, in random company that changes every round: up to eight of them (fewer if they move much: few
values live at a time in a program) are called in turn, three times or more, and the first third of the turns does not count. So kinds of ops recur
every few calls, as in a program: a loop of equal calls would find code, data and freed memory hot as no program does, a first call colder. What an op
reads was written right before, as the op before it would; its weights were read a turn ago. The lower quartile over all calls counts; a worker of one
thread is timed by its processor time where calls are long, which neighbours do not stretch.

Ops that move bytes are inverted point by point: share(bytes) = bytes / ((time − launch) · bandwidth). Contractions are fitted (robust log residuals,
a penalty on curvature between knots): a share of peak by FLOPs, a factor by least side, a share of bandwidth by the bytes that pass until the same
ones are used again, and a bandwidth at which convolutions lay their weights out anew. All of it is what `cost.roofline` reads back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import InputError, Missing
from fourfold.host import here, power
from fourfold.jobs.kernels import KB, MB, WIDE, Sample, TimedCall, samples
from fourfold.machine import Device, Efficiency, Link, Machine
from fourfold.runtime.local import malloc
from fourfold.units import Quantity

if TYPE_CHECKING:
    from torch import Tensor

QUICK = "quickly"                                                       # stands in the source of figures that were measured without large sizes
_LONG = 3e-4                                                            # s: calls longer than this may be timed by processor time
_SLOW = 5e-3                                                            # s: calls longer than this are timed once a round
_COMPANY, _LIVE = 8, 8 * MB
_TURNS, _MOST, _LEAST = 3, 12, 2e-3                                     # turns of a company: more, up to _MOST, if they take less than _LEAST s
_ROUNDS = 60                                                            # more than this many rounds tell nothing new
_FLOOR = 0.02                                                           # a time less launch is at least this share of the time
_TOLD = 10.0                                                            # s between two words on how far it is
_HOPS = 16
_FITTED = ("matmul", "strided", "batched", "conv", "conv1d", "pointwise", "depthwise", "attention", "recurrent")
_RELAID = ("conv", "conv1d", "pointwise", "depthwise")                  # these lay their weights out anew at every call
_NARROW = (1.0, 4.0, 16.0, 64.0, 256.0)


def calibrate(workers: int | None = None, seconds: float = 150.0, say: Callable[[str], None] = lambda text: None) -> Machine:
    """This machine as `workers` processes (default: one per two cores, at least one) that share its cores, measured in about `seconds` (10 at least).

    With fewer than 30 s large sizes are left out, which widens errors beyond caches. `say` is told how far it is. Raises InputError for workers or
    seconds out of range, Missing where torch is not there.
    """
    machine = here()
    workers = max(1, machine.cores // 2) if workers is None else workers
    if workers < 1:
        raise InputError(f"A system of {workers} workers cannot run anything.", "Give at least one worker.")
    if not seconds > 0:
        raise InputError(f"{seconds!r} seconds are no time to measure in.", "Give 10 or more.")
    try:
        import torch
    except ImportError:
        raise Missing("Calibration times torch's operations, and torch is not installed.", "pip install torch") from None
    malloc.keep()
    threads, began = max(1, machine.cores // workers), time.monotonic()
    large = 1.0 if seconds >= 30 else 1 / 16
    with _threads(threads), torch.inference_mode():
        timed = list(samples(large, machine.has("amx_bf16") or machine.has("avx512_bf16")))
        say(f"{len(timed)} operators on {threads} thread{'s' * (threads > 1)}, for about {seconds:.0f} s")
        rounds = time_all(timed, threads == 1, began + 0.75 * seconds, say)
        say(f"{rounds} rounds; what a call costs after a large one, and of a compiled region")
        cold = _chills()
        fused = _fused(threads == 1) if seconds - (time.monotonic() - began) > 15 else None
    peaks, bandwidth, curves = fit(timed)
    if fused is not None:
        curves["fused"] = Efficiency(fused, bandwidth=curves["elementwise"].bandwidth)
    told = f" in {time.monotonic() - began:.0f} s, {QUICK}" if large < 1.0 else ""
    if workers > 1:
        say("transfers between processes")
    provisional = _assembled(workers, threads, peaks, bandwidth, curves, cold, ((1e-5, 1e-5, 1e-5), (1e10, 1e10, 1e10)), timed,
                             told)
    return _assembled(workers, threads, peaks, bandwidth, curves, cold, transfers(provisional), timed, told) if workers > 1 else provisional


# ---- timing --------------------------------------------------------------------------------------------------------------------------------------

def time_all(timed: Sequence[Sample], single: bool, until: float = 0.0, say: Callable[[str], None] = lambda text: None, *, least: int = 4,
             seed: int = 0, clock: Callable[[], float] | None = None) -> int:
    """Call every sample in rounds until the monotonic clock says `until`, `least` rounds at least; how many rounds it were.

    `single`: one thread works, so processor time may count. `clock` replaces every other one.
    """
    dice, rounds, began = np.random.default_rng(seed), 0, time.monotonic()
    told, size = began, np.log([max(sample.moved, KB) for sample in timed])
    while rounds < least or (rounds < _ROUNDS and time.monotonic() + (time.monotonic() - began) / rounds < until):
        order = np.argsort(size + dice.standard_normal(len(timed)))
        for first, company in _companies([timed[k] for k in order]):
            _turns(company, single, clock)
            now, part = time.monotonic(), rounds + (first + 1) / len(order)
            if now - told > _TOLD:
                told, needed = now, (now - began) * (1 + max(0.0, least - part) / part)
                say(f"round {rounds + 1}: {now - began:.0f} s of about {max(until - began, needed):.0f}")
        rounds += 1
    return rounds


def _companies(timed: Sequence[Sample]) -> Iterator[tuple[int, list[Sample]]]:
    """(position of the first, samples that are called in turn): at most _COMPANY, and no more bytes than the few values that live in a program."""
    company: list[Sample] = []
    for k, sample in enumerate(timed):
        if company and (len(company) == _COMPANY or sum(one.moved for one in company) + sample.moved > _LIVE):
            yield k - len(company), company
            company = []
        company.append(sample)
    if company:
        yield len(timed) - len(company), company


def _turns(company: Sequence[Sample], single: bool, clock: Callable[[], float] | None = None) -> None:
    """Call these in turn, on tensors made anew; the first third of the turns does not count."""
    calls = [sample.make() for sample in company]
    reach = sum(sample.moved + call.written for sample, call in zip(company, calls, strict=True))
    turn, turns, entered = 0, _TURNS, time.perf_counter()
    while turn < turns:
        for sample, call in zip(company, calls, strict=True):
            known = sample.seconds if turn == turns - 1 and sample.times else 0.0
            if known > _SLOW:
                continue
            read = clock or (time.thread_time if single and sample.long else time.perf_counter)
            call.write()
            began = read()
            call.run()
            took = read() - began
            if turn >= turns // 3:
                sample.times.append(max(took, 1e-8))
                sample.reach.append(reach)
                sample.written = call.written
                sample.long = took > _LONG
        if turn == 0:
            turns = int(np.clip(_LEAST / (time.perf_counter() - entered), _TURNS, _MOST))
        turn += 1


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chills(rounds: int = 15) -> tuple[tuple[float, float], ...]:
    """Points (B, s): how much more a small call costs right after an op that moved so many bytes; the mean over a few kinds of call."""
    import torch
    import torch.nn.functional as F

    a, w = torch.randn(4, 64), torch.randn(64, 64)
    ones, zeros = torch.ones(64), torch.zeros(64)
    calls: list[Callable[[], object]] = [
        lambda: torch.add(a, a), lambda: a.view(2, 2, 64), lambda: F.gelu(a), lambda: F.layer_norm(a, (64,), ones, zeros),
        lambda: torch.softmax(a, -1), lambda: F.linear(a, w), lambda: a.transpose(0, 1),
    ]

    def once(call: Callable[[], object], before: Callable[[], object]) -> float:
        took = []
        for _ in range(rounds):
            before()
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        return float(np.quantile(took, 0.25))

    points: list[tuple[float, float]] = []
    for size in (128 * KB, 512 * KB, 2 * MB, 8 * MB, 32 * MB):
        x, large = torch.randn(1, 512), torch.randn(int(size / 2048), 512)      # weights read once, as a linear layer does
        mean = float(np.mean([once(call, lambda x=x, large=large: F.linear(x, large)) for call in calls]))
        points.append((size, mean))
    calm = points[0][1]
    return tuple((size, max(0.0, *(seconds - calm for _, seconds in points[: k + 1]))) for k, (size, _) in enumerate(points))


def _fused(single: bool) -> float | None:
    """What one call of a region compiled by Inductor costs besides its work, s; None where it cannot compile here (no C++ compiler, say)."""
    import torch

    def region(x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x + y) * x

    try:
        traced = torch.fx.symbolic_trace(region)
        a, b = torch.randn(256), torch.randn(256)
        compiled: Any = torch._inductor.compile(traced, [a, b])         # type: ignore[attr-defined]  # no guards of Dynamo: the executor has none
        sample = Sample("fused", 0.0, 0.0, WIDE, lambda: TimedCall(lambda: compiled(a, b), lambda: None, 0.0))
        for _ in range(20):
            _turns([sample], single)
        return sample.seconds
    except Exception:  # noqa: BLE001 — whatever keeps Inductor from compiling, the rest of the calibration stands
        return None


# ---- from times to curves ------------------------------------------------------------------------------------------------------------------------

def fit(timed: Sequence[Sample]) -> tuple[dict[str, float], float, dict[str, Efficiency]]:
    """(peak FLOP/s by dtype, bandwidth B/s, family → its curves)."""
    grouped: dict[str, list[Sample]] = {}
    for sample in timed:
        grouped.setdefault(sample.family, []).append(sample)
    peaks = {"float32": 1.02 * max(s.work / s.seconds for family in ("matmul", "conv") for s in grouped.get(family, []))}
    peaks |= {s.dtype: s.work / s.seconds for s in grouped.get("peak", [])}
    bandwidth = max((s.moved / s.seconds for s in _largest(grouped)), default=1e9)
    curves = {}
    for family, mine in grouped.items():
        if family in _FITTED:
            curves[family] = fit_contraction(mine, peaks["float32"], bandwidth)
        elif len(mine) > 1 and family != "peak":
            curves[family] = fit_moving(mine, bandwidth)
        elif family != "peak":
            curves[family] = Efficiency(mine[0].seconds)
    plain = curves["elementwise"].bandwidth if "elementwise" in curves else Efficiency().bandwidth
    lone = {family: replace(curve, bandwidth=plain) for family, curve in curves.items() if family in grouped and len(grouped[family]) == 1}
    return peaks, bandwidth, curves | lone                              # of these only the call was timed


def _largest(grouped: dict[str, list[Sample]]) -> list[Sample]:
    """The largest samples of plain moves: what memory, not a cache, gives."""
    plain = [s for family in ("elementwise", "relu", "opaque") for s in grouped.get(family, [])]
    top = max((s.moved for s in plain), default=0.0)
    return [s for s in plain if s.moved > 0.9 * top]


def fit_moving(timed: Sequence[Sample], bandwidth: float) -> Efficiency:
    """Curves of a family that moves bytes: exact at every size that was timed."""
    mine = sorted(timed, key=lambda s: s.moved)
    launch = min(s.seconds for s in mine[:2]) * 0.98
    points: dict[float, float] = {}
    for sample in mine[1:]:
        left = max(sample.seconds - launch, _FLOOR * sample.seconds)
        points[sample.moved + sample.written] = float(np.clip(sample.moved / (left * bandwidth), 1e-4, 900.0))
    return Efficiency(launch, bandwidth=tuple(points.items()))


def fit_contraction(timed: Sequence[Sample], peak: float, bandwidth: float) -> Efficiency:
    """Curves of a contraction's family, by least squares of log(predicted / timed) with a penalty on curvature; launch: the quickest call's time."""
    from scipy.optimize import least_squares

    work, moved, narrow, params, written, reach, took = (
        np.array([getattr(s, name) for s in timed]) for name in ("work", "moved", "narrow", "params", "written", "distance", "seconds"))
    launch = 0.98 * float(took.min())
    near, far = np.log(np.maximum(moved + written, 1.0)), np.log(reach)
    ends = [math.log10(float(size)) for size in (work.min(), work.max())]
    knots = np.linspace(ends[0], ends[1], max(2, min(8, round(ends[1] - ends[0]) + 1, len(timed) // 2 + 1))) * math.log(10)
    sides = np.log([side for side in _NARROW if side < narrow.max()] or [1.0])
    top = max(float(np.exp(near.max())), float(reach.max()) if params.any() else 0.0, 128 * KB)
    sizes = np.log(np.geomspace(64 * KB, top, 4))
    parts = np.cumsum([len(knots), len(sides), len(sizes)])
    relaid = params if timed[0].family in _RELAID else np.zeros(len(timed))

    def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return x[: parts[0]], np.append(x[parts[0]: parts[1]], 0.0), x[parts[1]: parts[2]]

    edge = np.append(sides, math.log(max(float(narrow.max()), 2.0)))

    def residual(x: np.ndarray) -> np.ndarray:
        share, factor, band = split(x)
        speed = np.exp(np.minimum(np.interp(np.log(work), knots, share), 0.0) + np.minimum(np.interp(np.log(narrow), edge, factor), 0.0))
        warm, cold = (part / (bandwidth * np.exp(np.interp(size, sizes, band))) for part, size in ((moved - params, near), (params, far)))
        error = np.log((launch + np.maximum(work / (peak * speed), warm + cold) + relaid / np.exp(x[-1])) / took)
        bend = np.concatenate([0.15 * np.diff(part, 2) for part in (share, factor, band)])
        return np.concatenate([error, bend, 0.02 * x[: parts[1]], 0.05 * (band - 1.0), [0.01 * (x[-1] - math.log(bandwidth))]])

    start = np.concatenate([np.linspace(-2.0, -0.3, len(knots)), np.linspace(-1.0, -0.1, len(sides)), np.full(len(sizes), 1.0),
                            [math.log(bandwidth)]])
    low = np.concatenate([np.full(parts[1], -12.0), np.full(len(sizes), -4.0), [math.log(1e6)]])
    high = np.concatenate([np.zeros(parts[1]) + 1e-9, np.full(len(sizes), 6.0), [math.log(1e15)]])
    found = min((least_squares(residual, np.clip(start + shift, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=0.2)
                 for shift in (0.0, -1.0, 0.5)), key=lambda one: one.cost)
    share, factor, band = split(found.x)
    relay = float(np.exp(found.x[-1])) if relaid.any() else math.inf
    return Efficiency(launch, _pairs(knots, np.minimum(share, 0.0)), _pairs(sizes, band), _pairs(edge, np.minimum(factor, 0.0)), relay)


def _pairs(sizes: np.ndarray, shares: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((float(np.exp(x)), float(np.exp(y))) for x, y in zip(sizes, shares, strict=True))


def predicted(sample: Sample, peak: float, bandwidth: float, curve: Efficiency) -> float:
    """s that the roofline gives this op in the company in which it was timed."""
    speed = peak * float(Efficiency.at(curve.peak, sample.work)) * float(Efficiency.at(curve.narrow, sample.narrow))
    compute = sample.work / speed if sample.work else 0.0
    warm = (sample.moved - sample.params) / float(Efficiency.at(curve.bandwidth, max(sample.moved + sample.written, 1.0)))
    cold = sample.params / float(Efficiency.at(curve.bandwidth, sample.distance))
    return (curve.launch or 0.0) + max(compute, (warm + cold) / bandwidth) + sample.params / curve.relay


# ---- transfers -----------------------------------------------------------------------------------------------------------------------------------

Ends = tuple[float, float, float]                                       # a figure and the ends of its interval


def transfers(system: Machine, sizes: Sequence[tuple[int, int]] = ((8, 1024), (2048, 256)), rounds: int = 30) -> tuple[Ends, Ends]:
    """(latency s, bandwidth B/s) of handing a tensor from one worker of `system` to the next, each with the ends of its 90 % interval.

    A chain of linear layers on tensors of `sizes` (rows, width) is carried out by the executor itself, once with two hops, there and back, and once
    with every op on the other worker than the op before; the difference over the number of further hops is what a hop costs. Ops take as long as
    those of models do, so that the switch between regions, the waking of a worker that has waited and what it finds cold are part of it. What it
    costs to use a second worker at all, once a run, is not.
    """
    chains = [_hops(system, rows, width, rounds) for rows, width in sizes]
    moved = [4.0 * rows * width for rows, width in sizes]
    dice = np.random.default_rng(0)
    drawn = [[dice.choice(times, (200, len(times))) for times in chain] for chain in chains]

    def hop(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.maximum(np.quantile(two, 0.25, axis=-1) - np.quantile(one, 0.25, axis=-1), 1e-7) / (_HOPS - 2)

    def told(small: Any, large: Any) -> tuple[Any, Any]:
        more = moved[-1] - moved[0]
        rate = more / np.maximum(large - small, more / system.devices[0].bandwidth)     # noise must not make a copy quicker than memory
        return np.maximum(small - moved[0] / rate, 1e-7), rate

    latency, bandwidth = told(hop(*chains[0]), hop(*chains[-1]))
    latencies, bandwidths = told(hop(*drawn[0]), hop(*drawn[-1]))
    ends = [(min(float(value), float(np.quantile(many, 0.05))), max(float(value), float(np.quantile(many, 0.95))))
            for value, many in ((latency, latencies), (bandwidth, bandwidths))]
    return (float(latency), ends[0][0], ends[0][1]), (float(bandwidth), ends[1][0], ends[1][1])


def _hops(system: Machine, rows: int, width: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """s of runs of the chain with two hops, and of runs with a hop after every op."""
    import torch

    from fourfold.frontends.capture import capture
    from fourfold.plans import Plan
    from fourfold.runtime.local.executor import PLANNED, Local

    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(_HOPS + 1):
                x = self.layer(x)
            return x

    found = capture(Chain(), (torch.randn(1, rows, width),))
    count = len(found.graph)

    def plan(place: np.ndarray) -> Plan:
        return Plan(found.graph, system, "latency", np.full(count, -1), place, -np.arange(count, dtype=float), "by hand", 0.0, "s")

    took: tuple[list[float], list[float]] = ([], [])
    with Local(plan(np.arange(count) * 3 // count % 2), found.program, found.inputs, engines="eager", placement=PLANNED, stamps=False) as one, \
            Local(plan(np.arange(count) % 2), found.program, found.inputs, engines="eager", placement=PLANNED, stamps=False) as two:
        for round_ in range(rounds + 3):
            for runner, times in zip((one, two), took, strict=True):
                seconds = runner.run()[1]
                if round_ >= 3:
                    times.append(seconds)
    return np.array(took[0]), np.array(took[1])


# ---- the system ----------------------------------------------------------------------------------------------------------------------------------

def _assembled(workers: int, threads: int, peaks: dict[str, float], bandwidth: float, curves: dict[str, Efficiency],
               cold: tuple[tuple[float, float], ...], wire: tuple[Ends, Ends],
               timed: Sequence[Sample], told: str = "") -> Machine:
    machine = here()
    watts, share = power(machine), machine.cores / workers
    source = f"fourfold calibrate on {machine.name}, {threads} thread{'s' * (threads > 1)}{told}"
    figures: dict[str, Quantity] = {}

    def keep(name: str, value: float, unit: str, spread: tuple[float, float] = (1.0, 1.0), note: str = "") -> float:
        figures[name] = Quantity(value, unit, "measured", value * spread[0], value * spread[1], source=source + note)
        return value

    by = {family: sorted((s for s in timed if s.family == family), key=lambda s: s.work + s.moved) for family in {s.family for s in timed}}
    quick = {family: _spread(mine[0]) for family, mine in by.items()}
    rate = {dtype: _spread(max(by["matmul"] if dtype == "float32" else by["peak"], key=lambda s: (s.dtype == dtype, s.work / s.seconds)))
            for dtype in peaks}

    devices = []
    for k in range(workers):
        name = f"cpu{k}"
        figures[f"{name}.idle"], figures[f"{name}.busy"] = watts.idle * share, watts.busy * share
        keep(f"{name}.memory", float((machine.memory or 8 * 2**30) // workers), "B")
        for family, curve in curves.items():
            errors = [abs(math.log(predicted(s, peaks["float32"], bandwidth, curve) / s.seconds)) for s in timed if s.family == family and s.work]
            note = f"; {len(errors)} shapes, median error {math.expm1(float(np.median(errors))):.1%}" if errors else ""
            keep(f"{name}.efficiency.{family}.launch", curve.launch or 0.0, "s", quick.get(family, (1.0, 1.0)), note)
        devices.append(Device(name, "cpu", {dtype: keep(f"{name}.peak.{dtype}", value, "FLOP/s", (1 / rate[dtype][1], 1 / rate[dtype][0]))
                                            for dtype, value in peaks.items()},
                              keep(f"{name}.bandwidth", bandwidth, "B/s"),
                              keep(f"{name}.launch", curves["elementwise"].launch or 0.0, "s", quick["elementwise"]),
                              figures[f"{name}.memory"].value, figures[f"{name}.idle"].value, figures[f"{name}.busy"].value, dict(curves),
                              cold=cold))
    links = []
    for a in range(workers):
        for b in range(a + 1, workers):
            latency, rate_of = (keep(f"cpu{a}-cpu{b}.{name}", value, unit, (low / value, high / value))
                                for (value, low, high), name, unit in zip(wire, ("latency", "bandwidth"), ("s", "B/s"), strict=True))
            links.append(Link(f"cpu{a}", f"cpu{b}", latency, rate_of, overlap=False))
    title = f"{machine.name} as {workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}"
    return replace(Machine(title, tuple(devices), tuple(links), machine.fingerprint), figures=figures)


def _spread(sample: Sample) -> tuple[float, float]:
    """The ends of the interval of a sample's time as shares of it."""
    low, high = sample.interval()
    return min(1.0, low / sample.seconds), max(1.0, high / sample.seconds)
