"""Calibrate: measure this machine into a System, in minutes. What a device reaches by kind and size of op, what a call and a hand-over cost.

Every op is called as torch's eager mode calls it, on tensors of its own, so allocation is part of it. Ops that move bytes are inverted point by
point: share(bytes) = bytes / ((time − launch) · bandwidth). Contractions are fitted (robust log residuals, a penalty on curvature between knots): a
share of peak by FLOPs, a factor by least side, a share of bandwidth by bytes. All of it is what `cost.roofline` reads back.

An op is timed amid others of about its size, right after its inputs were written: a loop of equal calls finds code, data and freed memory hot as no
program does (seen: a third of the time that a GELU of 800 kB takes inside a model), a first call finds them colder than a program does, where kinds
of ops recur every few calls; the geometric mean of a first and a second call stands between. The lower quartile over rounds counts; a worker of one
thread is timed by its processor time where calls are long, which neighbours do not stretch.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import shared_memory
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import InputError, Missing
from fourfold.machine import here, power
from fourfold.system import Device, Efficiency, Link, System
from fourfold.units import Quantity

if TYPE_CHECKING:
    from torch import Tensor

_KB, _MB = 2.0**10, 2.0**20
_LONG = 3e-4                                                            # s: calls longer than this may be timed by processor time
_ROUNDS = 60                                                            # more than this many rounds tell nothing new
_FLOOR = 0.02                                                           # a time less launch is at least this share of the time
_ECHO = "import os\nwhile os.read(0, 1): os.write(1, b'x')"              # the other side: answers every byte with one until the pipe closes
_FITTED = ("matmul", "batched", "conv", "pointwise", "depthwise", "attention", "recurrent")
_NARROW = (1.0, 4.0, 16.0, 64.0, 256.0)


@dataclass
class Sample:
    """One op to time: its family, what it does (`work` FLOP, `moved` B, `narrow` least side), how to call it. `times` s a call, one a round."""

    family: str
    work: float
    moved: float
    narrow: float
    make: Callable[[], Callable[[], Any]]
    dtype: str = "float32"
    times: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return float(np.quantile(self.times, 0.25))


def calibrate(workers: int | None = None, seconds: float = 150.0, say: Callable[[str], None] = lambda text: None) -> System:
    """This machine as `workers` processes (default: one per two cores, at least one) that share its cores, measured in about `seconds` (10 at least).

    With fewer than 30 s large sizes are left out, which widens errors beyond caches. Raises InputError for workers or seconds out of range, Missing
    where torch is not there.
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
    threads, began = max(1, machine.cores // workers), time.monotonic()
    large = 1.0 if seconds >= 30 else 1 / 16
    with _threads(threads), torch.inference_mode():
        samples = list(_samples(large, machine.has("amx_bf16") or machine.has("avx512_bf16")))
        say(f"{len(samples)} ops")
        dice, rounds = np.random.default_rng(0), 0
        size = np.log([max(sample.moved, _KB) for sample in samples])
        while rounds < 4 or (rounds < _ROUNDS and (time.monotonic() - began) * (rounds + 1) / rounds < 0.7 * seconds):
            rounds += 1
            for k in np.argsort(size + dice.standard_normal(len(samples))):     # among ops of about its size, as in a program
                _time(samples[k], threads == 1)
        for sample in samples:
            del sample.times[0]                                         # the first call of all prepares kernels
        say(f"{rounds} rounds")
        cold = _chills()
        fused = _fused(threads == 1) if seconds - (time.monotonic() - began) > 15 else None
    peaks, bandwidth, curves = _fit(samples)
    if fused is not None:
        curves["fused"] = Efficiency(fused, bandwidth=curves["elementwise"].bandwidth)
    say("transfers")
    wire = _transfers() if workers > 1 else None
    return _assembled(workers, threads, peaks, bandwidth, curves, cold, wire, samples)


# ---- what is timed -------------------------------------------------------------------------------------------------------------------------------

def _samples(large: float, bfloat: bool) -> Iterator[Sample]:
    """The ops to time. `large` scales the largest sizes."""
    import torch
    import torch.nn.functional as F

    def rand(*shape: int, dtype: Any = torch.float32) -> Tensor:
        return torch.full(shape, 0.37, dtype=dtype)                    # quick to write

    # bytes: family, a call on n float32, bytes moved per element
    def pair(call: Callable[..., Any]) -> Callable[[int], Callable[[], Any]]:
        def make(n: int) -> Callable[[], Any]:
            a, b = rand(n), rand(n)
            return lambda: call(a, b)
        return make

    def one(call: Callable[..., Any], width: int = 0) -> Callable[[int], Callable[[], Any]]:
        def make(n: int) -> Callable[[], Any]:
            a = rand(max(1, n // width), width) if width else rand(n)
            return lambda: call(a)
        return make

    def positive(call: Callable[..., Any]) -> Callable[[int], Callable[[], Any]]:
        def make(n: int) -> Callable[[], Any]:
            a = rand(n).abs() + 0.5
            return lambda: call(a)
        return make

    def image(call: Callable[..., Any], channels: int = 16) -> Callable[[int], Callable[[], Any]]:
        def make(n: int) -> Callable[[], Any]:
            side = max(2, int(math.sqrt(n / channels)))
            a = torch.randn(1, channels, side, side)                    # pooling is quicker over equal values
            return lambda: call(a)
        return make

    def rows(n: int) -> Callable[[], Any]:
        table, index = rand(max(4 * n // 256, 4), 256), torch.randint(0, max(4 * n // 256, 4), (max(1, n // 256),))
        return lambda: F.embedding(index, table)

    def joined(n: int) -> Callable[[], Any]:
        a, b = rand(max(1, n // 128), 64), rand(max(1, n // 128), 64)
        return lambda: torch.cat((a, b), 1)

    def selected(n: int) -> Callable[[], Any]:
        a, b, mask = rand(n), rand(n), torch.rand(n) > 0.5
        return lambda: torch.where(mask, a, b)

    weight, bias = torch.ones(256), torch.zeros(256)
    channel = torch.ones(16)
    moving: list[tuple[str, Callable[[int], Callable[[], Any]], float]] = [
        ("elementwise", pair(torch.add), 12), ("relu", one(torch.relu), 8), ("gelu", one(F.gelu), 8), ("tanh", one(torch.tanh), 8),
        ("exp", one(torch.exp), 8), ("sigmoid", one(torch.sigmoid), 8), ("silu", one(F.silu), 8), ("erf", one(torch.erf), 8),
        ("sqrt", positive(torch.sqrt), 8), ("log", positive(torch.log), 8), ("where", selected, 13),
        ("softmax", one(lambda a: torch.softmax(a, -1), 256), 8), ("layer_norm", one(lambda a: F.layer_norm(a, (256,), weight, bias), 256), 8),
        ("batch_norm", image(lambda a: F.batch_norm(a, channel, channel, channel, channel)), 8), ("reduction", one(lambda a: a.sum(-1), 256), 4),
        ("mean", one(lambda a: a.mean(-1, keepdim=True), 256), 4),
        ("pool", image(lambda a: F.max_pool2d(a, 3, 2, 1)), 5), ("cat", joined, 8),
        ("copy", one(lambda a: a.view(-1, 4, 64).transpose(0, 1).contiguous(), 256), 8),
        ("gather", rows, 8), ("opaque", one(torch.clone), 8),
    ]
    for family, make, each in moving:
        for size in (_KB, 16 * _KB, 128 * _KB, 512 * _KB, 2 * _MB, 8 * _MB, 64 * _MB):
            if size > 64 * _MB * large:
                continue
            n = int(size / each)
            yield Sample(family, 0.0, n * each, 1e9, lambda make=make, n=n: make(n))

    def viewed() -> Callable[[], Any]:
        a = rand(16, 64)
        return lambda: a.view(4, 4, 64).transpose(0, 1)                 # two views

    yield Sample("view", 0.0, 0.0, 1e9, viewed)

    def product(m: int, n: int, k: int, dtype: Any) -> Callable[[], Any]:
        x, w, b = rand(m, k, dtype=dtype), rand(n, k, dtype=dtype), rand(n, dtype=dtype)
        return lambda: F.linear(x, w, b)

    most = 4.4e9 * large
    sides = ((16, 16), (64, 64), (256, 256), (768, 768), (3072, 768), (768, 3072), (1000, 2048))
    shapes = [(m, n, k) for m in (1, 4, 16, 64, 128, 512) for n, k in sides]
    shapes += [(8, 8, 8), (1024, 1024, 1024), (2048, 64, 64), (3136, 64, 64), (4096, 16, 16), (128, 2, 768), (1, 30000, 256)]
    for m, n, k in shapes:
        if 2.0 * m * n * k <= most:
            yield Sample("matmul", 2.0 * m * n * k, 4.0 * (m * k + n * k + m * n), min(m, n, k),
                         lambda m=m, n=n, k=k: product(m, n, k, torch.float32))
    side = 1024 if large == 1 else 384
    for name, dtype in (("float64", torch.float64), *((("bfloat16", torch.bfloat16),) if bfloat else ())):
        yield Sample("peak", 2.0 * side**3, 0.0, side, lambda dtype=dtype: product(side, side, side, dtype), name)

    def batched(b: int, m: int, n: int, k: int) -> Callable[[], Any]:
        x, y = rand(b, m, k), rand(b, k, n)
        return lambda: torch.bmm(x, y)

    for b, m, n, k in ((1, 4, 4, 4), (4, 16, 16, 16), (12, 16, 16, 64), (12, 128, 128, 64), (12, 128, 64, 128), (96, 64, 64, 64), (8, 384, 384, 64),
                       (8, 384, 64, 384), (12, 1, 128, 64), (96, 1, 256, 64), (64, 32, 32, 32), (512, 16, 16, 16), (4, 512, 512, 32)):
        if 2.0 * b * m * n * k <= most:
            yield Sample("batched", 2.0 * b * m * n * k, 4.0 * b * (m * k + k * n + m * n), min(m, n, k), lambda s=(b, m, n, k): batched(*s))

    def convolved(c: int, s: int, o: int, k: int, stride: int, groups: int, batch: int) -> Callable[[], Any]:
        x, w = rand(batch, c, s, s), rand(o, c // groups, k, k)
        return lambda: F.conv2d(x, w, None, stride, k // 2, 1, groups)

    full = [(3, 224, 64, 7, 2, 1), (3, 224, 32, 3, 2, 1), (3, 32, 16, 3, 1, 1), (16, 8, 16, 3, 1, 1), (16, 32, 16, 3, 1, 1), (64, 56, 64, 3, 1, 1),
            (64, 56, 256, 1, 1, 1), (256, 56, 64, 1, 1, 1), (128, 28, 128, 3, 1, 1), (512, 28, 128, 1, 1, 1), (256, 14, 256, 3, 1, 1),
            (1024, 14, 256, 1, 1, 1), (512, 7, 512, 3, 1, 1), (2048, 7, 512, 1, 1, 1), (24, 56, 144, 1, 1, 1), (96, 14, 576, 1, 1, 1),
            (256, 56, 128, 3, 2, 1), (240, 28, 240, 1, 1, 3), (192, 28, 32, 5, 1, 1), (64, 112, 64, 3, 1, 1), (16, 8, 16, 1, 1, 1),
            (32, 112, 16, 1, 1, 1), (16, 112, 96, 1, 1, 1), (576, 14, 96, 1, 1, 1), (960, 7, 160, 1, 1, 1), (256, 14, 1024, 1, 1, 1),
            (3, 224, 192, 16, 16, 1), (32, 56, 32, 3, 1, 1), (128, 56, 128, 3, 2, 1), (512, 14, 512, 3, 2, 1), (256, 28, 512, 1, 2, 1)]
    deep = [(32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (384, 14, 3, 1), (576, 14, 5, 1), (960, 7, 3, 1), (16, 16, 3, 1)]
    for c, s, o, k, stride, groups in full + [(c, s, c, k, t, c) for c, s, k, t in deep]:
        points = (-(-s // stride)) ** 2
        work = 2.0 * points * o * (c // groups) * k * k
        if work <= most:
            family = "depthwise" if groups == c else "pointwise" if k == 1 else "conv"
            yield Sample(family, work, 4.0 * (c * s * s + o * (c // groups) * k * k + points * o),
                         min((c // groups) * k * k, o, points), lambda a=(c, s, o, k, stride, groups, 1): convolved(*a))

    def attended(b: int, h: int, n: int, e: int) -> Callable[[], Any]:
        q, k, v = (rand(b, h, n, e) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    for b, h, n, e in ((1, 2, 16, 16), (1, 12, 32, 64), (1, 12, 128, 64), (1, 12, 512, 64), (8, 12, 128, 64), (1, 4, 128, 32), (8, 4, 64, 32)):
        if 4.0 * b * h * n * n * e <= most:
            yield Sample("attention", 4.0 * b * h * n * n * e, 16.0 * b * h * n * e, min(n, e), lambda a=(b, h, n, e): attended(*a))

    def recurred(length: int, batch: int, width: int) -> Callable[[], Any]:
        net, x = torch.nn.LSTM(width, width), rand(length, batch, width)
        return lambda: net(x)

    for length, batch, width in ((4, 1, 32), (16, 1, 128), (32, 8, 128), (16, 1, 512), (32, 16, 512)):
        work = 16.0 * length * batch * width * width
        if work <= most:
            yield Sample("recurrent", work, 32.0 * width * width * length, min(batch, width), lambda a=(length, batch, width): recurred(*a))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time(sample: Sample, single: bool) -> None:
    """One round: inputs are written anew, then two calls are timed, one that finds its code cold and one that finds it hot.

    `single`: one thread, whose processor time is the work's own; it is read for calls that are long beside the reading.
    """
    call = sample.make()
    clock = time.process_time if single and sample.times and sample.seconds > _LONG else time.perf_counter
    began = clock()
    call()
    between = clock()
    call()
    sample.times.append(math.sqrt(max(between - began, 1e-8) * max(clock() - between, 1e-8)))


def _chills(rounds: int = 15) -> tuple[tuple[float, float], ...]:
    """Points (B, s): how much more a small call costs right after an op that moved so many bytes; the mean over a few kinds of call."""
    import torch
    import torch.nn.functional as F

    a, w = torch.randn(4, 64), torch.randn(64, 64)
    ones, zeros = torch.ones(64), torch.zeros(64)
    calls: list[Callable[[], Any]] = [
        lambda: torch.add(a, a), lambda: a.view(2, 2, 64), lambda: F.gelu(a), lambda: F.layer_norm(a, (64,), ones, zeros),
        lambda: torch.softmax(a, -1), lambda: F.linear(a, w), lambda: a.transpose(0, 1),
    ]

    def once(call: Callable[[], Any], before: Callable[[], Any]) -> float:
        took = []
        for _ in range(rounds):
            before()
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        return float(np.quantile(took, 0.25))

    points: list[tuple[float, float]] = []
    for size in (128 * _KB, 512 * _KB, 2 * _MB, 8 * _MB, 32 * _MB):
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
        sample = Sample("fused", 0.0, 0.0, 1e9, lambda: lambda: compiled(torch.randn(256), b))
        for _ in range(20):
            _time(sample, single)
        return sample.seconds
    except Exception:  # noqa: BLE001 — whatever keeps Inductor from compiling, the rest of the calibration stands
        return None


# ---- from times to curves ------------------------------------------------------------------------------------------------------------------------

def _fit(samples: Sequence[Sample]) -> tuple[dict[str, float], float, dict[str, Efficiency]]:
    """(peak FLOP/s by dtype, bandwidth B/s, family → its curves)."""
    grouped: dict[str, list[Sample]] = {}
    for sample in samples:
        grouped.setdefault(sample.family, []).append(sample)
    peaks = {"float32": 1.02 * max(s.work / s.seconds for family in ("matmul", "conv") for s in grouped.get(family, []))}
    peaks |= {s.dtype: s.work / s.seconds for s in grouped.get("peak", [])}
    bandwidth = max((s.moved / s.seconds for s in _largest(grouped)), default=1e9)
    curves = {}
    for family, mine in grouped.items():
        if family == "view":
            curves[family] = Efficiency(mine[0].seconds / 2)
        elif family in _FITTED:
            curves[family] = fit_contraction(mine, peaks["float32"], bandwidth)
        elif family != "peak":
            curves[family] = fit_moving(mine, bandwidth)
    return peaks, bandwidth, curves


def _largest(grouped: dict[str, list[Sample]]) -> list[Sample]:
    """The largest samples of plain moves: what memory, not a cache, gives."""
    plain = [s for family in ("elementwise", "relu", "opaque") for s in grouped.get(family, [])]
    top = max((s.moved for s in plain), default=0.0)
    return [s for s in plain if s.moved > 0.9 * top]


def fit_moving(samples: Sequence[Sample], bandwidth: float) -> Efficiency:
    """Curves of a family that moves bytes: exact at every size that was timed."""
    mine = sorted(samples, key=lambda s: s.moved)
    launch = min(s.seconds for s in mine[:2]) * 0.98
    points: dict[float, float] = {}
    for sample in mine[1:]:
        left = max(sample.seconds - launch, _FLOOR * sample.seconds)
        points[sample.moved] = float(np.clip(sample.moved / (left * bandwidth), 1e-4, 900.0))
    return Efficiency(launch, bandwidth=tuple(points.items()))


def fit_contraction(samples: Sequence[Sample], peak: float, bandwidth: float) -> Efficiency:
    """Curves of a contraction's family, by least squares of log(predicted / timed) with a penalty on curvature; launch: the quickest call's time."""
    from scipy.optimize import least_squares

    work, moved, narrow, took = (np.array([getattr(s, name) for s in samples]) for name in ("work", "moved", "narrow", "seconds"))
    launch = 0.98 * float(took.min())
    ends = [math.log10(float(size)) for size in (work.min(), work.max())]
    knots = np.linspace(ends[0], ends[1], max(2, min(8, round(ends[1] - ends[0]) + 1, len(samples) // 2 + 1))) * math.log(10)
    sides = np.log([side for side in _NARROW if side < narrow.max()] or [1.0])
    sizes = np.log(np.geomspace(64 * _KB, max(float(moved.max()), 128 * _KB), 4))
    parts = np.cumsum([len(knots), len(sides), len(sizes)])

    def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return x[: parts[0]], np.append(x[parts[0]: parts[1]], 0.0), x[parts[1]: parts[2]]

    edge = np.append(sides, math.log(max(float(narrow.max()), 2.0)))

    def residual(x: np.ndarray) -> np.ndarray:
        share, factor, band = split(x)
        speed = np.exp(np.minimum(np.interp(np.log(work), knots, share), 0.0) + np.minimum(np.interp(np.log(narrow), edge, factor), 0.0))
        memory = moved / (bandwidth * np.exp(np.interp(np.log(moved), sizes, band)))
        error = np.log((launch + np.maximum(work / (peak * speed), memory)) / took)
        bend = np.concatenate([0.15 * np.diff(part, 2) for part in (share, factor, band)])
        return np.concatenate([error, bend, 0.02 * x[: parts[1]], 0.05 * (band - 1.0)])

    start = np.concatenate([np.linspace(-2.0, -0.3, len(knots)), np.linspace(-1.0, -0.1, len(sides)), np.full(len(sizes), 1.0)])
    low = np.concatenate([np.full(parts[1], -12.0), np.full(len(sizes), -4.0)])
    high = np.concatenate([np.zeros(parts[1]) + 1e-9, np.full(len(sizes), 6.0)])
    found = min((least_squares(residual, np.clip(start + shift, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=0.2)
                 for shift in (0.0, -1.0, 0.5)), key=lambda fit: fit.cost)
    share, factor, band = split(found.x)
    return Efficiency(launch, _pairs(knots, np.minimum(share, 0.0)), _pairs(sizes, band), _pairs(edge, np.minimum(factor, 0.0)))


def _pairs(sizes: np.ndarray, shares: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((float(np.exp(x)), float(np.exp(y))) for x, y in zip(sizes, shares, strict=True))


def predicted(sample: Sample, peak: float, bandwidth: float, curve: Efficiency) -> float:
    """s that the roofline gives this op when it is called in a loop."""
    speed = peak * float(Efficiency.at(curve.peak, sample.work)) * float(Efficiency.at(curve.narrow, sample.narrow))
    compute = sample.work / speed if sample.work else 0.0
    memory = sample.moved / (bandwidth * float(Efficiency.at(curve.bandwidth, max(sample.moved, 1.0))))
    return (curve.launch or 0.0) + max(compute, memory)


# ---- transfers -----------------------------------------------------------------------------------------------------------------------------------

def _transfers(sizes: Sequence[int] = (1024, 2**20, 2**24), rounds: int = 12) -> tuple[float, float]:
    """(latency s, bandwidth B/s) of handing bytes to another process: copied into shared memory by the sender, announced through a pipe. The reader
    maps the memory and copies nothing."""
    memory = shared_memory.SharedMemory(create=True, size=max(sizes))
    child = None
    try:
        child = subprocess.Popen([sys.executable, "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert child.stdin is not None and child.stdout is not None and memory.buf is not None
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for round_ in range(rounds + 2):
            for size in sizes:
                data = np.zeros(size, np.uint8)
                into = np.frombuffer(memory.buf, np.uint8, size)
                began = time.perf_counter()
                into[:] = data
                copied = time.perf_counter() - began
                began = time.perf_counter()
                child.stdin.write(b"x")
                if child.stdout.read(1) != b"x":
                    raise Missing("The other process of the transfer test ended early.", "Run it again; see its message above.")
                told = (time.perf_counter() - began) / 2
                if round_ >= 2:                                         # the first rounds touch pages for the first time
                    times[size].append(copied + told)
                del into
        small, large = (float(np.quantile(times[size], 0.25)) for size in (sizes[0], sizes[-1]))
        return small, (sizes[-1] - sizes[0]) / max(large - small, 1e-9)
    finally:
        if child is not None:
            if child.stdin is not None:
                child.stdin.close()
            child.wait(10)
            if child.stdout is not None:
                child.stdout.close()
        memory.close()
        memory.unlink()


# ---- the system ----------------------------------------------------------------------------------------------------------------------------------

def _assembled(workers: int, threads: int, peaks: dict[str, float], bandwidth: float, curves: dict[str, Efficiency],
               cold: tuple[tuple[float, float], ...], wire: tuple[float, float] | None,
               samples: Sequence[Sample]) -> System:
    machine = here()
    watts, share = power(machine), machine.cores / workers
    source = f"fourfold calibrate on {machine.name}, {threads} thread{'s' * (threads > 1)}"
    figures: dict[str, Quantity] = {}

    def keep(name: str, value: float, unit: str) -> float:
        figures[name] = Quantity(value, unit, "measured", source=source)
        return value

    devices = []
    for k in range(workers):
        name = f"cpu{k}"
        figures[f"{name}.idle"], figures[f"{name}.busy"] = watts.idle * share, watts.busy * share
        keep(f"{name}.memory", float((machine.memory or 8 * 2**30) // workers), "B")
        for family, curve in curves.items():
            errors = [abs(math.log(predicted(s, peaks["float32"], bandwidth, curve) / s.seconds)) for s in samples if s.family == family and s.work]
            note = f"; {len(errors)} shapes, median error {math.expm1(float(np.median(errors))):.1%}" if errors else ""
            figures[f"{name}.efficiency.{family}.launch"] = Quantity(curve.launch or 0.0, "s", "measured", source=source + note)
        devices.append(Device(name, "cpu", {dtype: keep(f"{name}.peak.{dtype}", value, "FLOP/s") for dtype, value in peaks.items()},
                              keep(f"{name}.bandwidth", bandwidth, "B/s"), keep(f"{name}.launch", curves["elementwise"].launch or 0.0, "s"),
                              figures[f"{name}.memory"].value, figures[f"{name}.idle"].value, figures[f"{name}.busy"].value, dict(curves),
                              cold=cold))
    links = []
    for a in range(workers if wire else 0):
        for b in range(a + 1, workers):
            links.append(Link(f"cpu{a}", f"cpu{b}", keep(f"cpu{a}-cpu{b}.latency", wire[0] if wire else 0.0, "s"),
                              keep(f"cpu{a}-cpu{b}.bandwidth", wire[1] if wire else 1.0, "B/s"), overlap=False))
    title = f"{machine.name} as {workers} worker{'s' * (workers > 1)} of {threads} thread{'s' * (threads > 1)}"
    return replace(System(title, tuple(devices), tuple(links), machine.fingerprint), figures=figures)
