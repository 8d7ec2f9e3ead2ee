"""A dry run: every node of a program by itself, to know how it can write its results, what it allocates besides, and how long it takes.

What ATen's allocator hands out while a node runs is read from torch's profiler. Buffers that oneDNN and MKL keep for themselves are not in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fourfold.engines.call import Call, refs, values
from fourfold.errors import InputError
from fourfold.runtime.arena import writers
from fourfold.runtime.arena.ready import Ready, bound, keyed, sow

VIEW, PLAIN = "view", "plain"                                           # nodes that only look at memory, and those that answer numbers
_SPAN = "fourfold step "


@dataclass(frozen=True)
class DryRun:
    """What each node does when it runs by itself.

    `way` [N]: how it writes its results (`writers.OUT`, OWN or COPY; VIEW: it only looks at memory; PLAIN: it answers numbers); `workspace` i8[N]:
    most bytes that ATen's allocator handed out at a time while it wrote so; `seconds` f8[N]: least of some runs, wall clock.
    """

    way: tuple[str, ...]
    workspace: np.ndarray
    seconds: np.ndarray

    def to_json(self) -> dict[str, object]:
        return {"way": list(self.way), "workspace": self.workspace.tolist(), "seconds": self.seconds.tolist()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DryRun:
        """Raises KeyError or ValueError for something else."""
        return cls(tuple(map(str, data["way"])), np.array(data["workspace"], np.int64), np.array(data["seconds"], np.float64))


def dry_run(program: Ready, inputs: object, *, repeat: int = 5, seed: int = 0, clock: Callable[[], float] = time.perf_counter) -> DryRun:
    """Run each node in every way there is, compare with what it answers, and take the way that allocates least; then time it `repeat` times.

    Every value is held until its last reader, as eagerly. Raises InputError where a node fails, by name.
    """
    nodes = len(program.calls)
    way, workspace, seconds = [""] * nodes, np.zeros(nodes, np.int64), np.zeros(nodes)
    spans: list[tuple[int, str]] = []
    with allocations() as seen:
        for call, at, made in _walk(program, inputs, seed):
            kind = _kind(program, call, made)
            way[call.node] = kind
            if kind:
                continue
            for name, write in writers.writers(call).items():
                if _alike(program, call, at, made, write, seed, f"{_SPAN}{len(spans)}"):
                    spans.append((call.node, name))
                else:
                    spans.append((call.node, ""))
    least: dict[int, int] = {}
    order = (writers.COPY, writers.OUT, writers.OWN)                    # another way than a copy must allocate less to be worth it
    for (node, name), peak in sorted(zip(spans, seen(len(spans)), strict=True), key=lambda one: (one[0][0], order.index(one[0][1] or order[0]))):
        if name and (node not in least or peak < least[node]):
            way[node], least[node] = name, peak
    if lacking := [n for n in range(nodes) if not way[n]]:
        raise InputError(f"{program.graph.names[lacking[0]]} does not answer alike twice, so it cannot be planned.",
                         "Capture the model in eval mode.")
    for node, peak in least.items():
        workspace[node] = peak
    for call, at, made in _walk(program, inputs, seed):
        if way[call.node] not in (VIEW, PLAIN):
            seconds[call.node] = _timed(program, call, at, made, way[call.node], repeat, clock)
    return DryRun(tuple(way), workspace, seconds)


def _walk(program: Ready, inputs: object, seed: int) -> Iterator[tuple[Call, dict[int, object], list[object]]]:
    """(call, values that it reads, what it made), node by node."""
    at = program.feed(inputs)
    last = {v: k for k, call in enumerate(program.calls) for v in (*refs((call.args, dict(call.kwargs))), *values(call.outs))}
    with keyed():
        for k, call in enumerate(program.calls):
            if call.node in program.random:
                sow(writers.key_of(seed, call.node))
            args, kwargs = writers.still(call.target, bound(call.args, at), bound(call.kwargs, at))
            try:
                made = writers.flat(call.outs, call.target(*args, **kwargs))
            except Exception as error:
                raise InputError(f"{program.graph.names[call.node]} fails: {' '.join(str(error).split())[:160]}",
                                 "Give inputs that the model takes.") from error
            yield call, at, made
            at.update(zip(values(call.outs), made, strict=True))
            for v in {*refs((call.args, dict(call.kwargs))), *values(call.outs)}:
                if last[v] == k:
                    at.pop(v, None)


def _kind(program: Ready, call: Call, made: Sequence[object]) -> str:
    """VIEW or PLAIN, "" for a node that computes tensors."""
    if not all(isinstance(one, Tensor) for one in made):
        return PLAIN
    return "" if program.own[call.node] or not made else VIEW


def targets(program: Ready, call: Call, own: Mapping[int, Tensor], made: Sequence[object]) -> list[Any]:
    """What a writer fills, result by result: tensors of `own`; of a result that shares other memory what was made."""
    return [own.get(v, one) for v, one in zip(values(call.outs), made, strict=True)]


def _alike(program: Ready, call: Any, at: Mapping[int, object], made: Sequence[Any], write: writers.Writer, seed: int, span: str) -> bool:
    """Whether a writer fills tensors with the very bits that the node answers."""
    outs = targets(program, call, {v: poisoned(program.empty(v)) for v in program.own[call.node]}, made)
    args, kwargs = writers.still(call.target, bound(call.args, at), bound(call.kwargs, at))
    if call.node in program.random:
        sow(writers.key_of(seed, call.node))
    with torch.profiler.record_function(span):
        try:
            write(args, kwargs, outs)
        except Exception:                                               # noqa: BLE001 — this way does not suit these tensors
            return False
    return writers.unset(call.target) or all(same(one, other) for one, other in zip(outs, made, strict=True))


def _timed(program: Ready, call: Any, at: Mapping[int, object], made: Sequence[object], way: str, repeat: int,
           clock: Callable[[], float]) -> float:
    outs = targets(program, call, {v: program.empty(v) for v in program.own[call.node]}, made)
    args, kwargs = writers.still(call.target, bound(call.args, at), bound(call.kwargs, at))
    best, write = np.inf, writers.prepared(call, way, args, kwargs, outs)
    for _ in range(max(2, repeat)):
        began = clock()
        write()
        best = min(best, clock() - began)
    return float(best)


def poisoned(tensor: Tensor) -> Tensor:
    """The tensor, its memory all ones: NaN in every float type, -1 in integers. It must be dense."""
    if tensor.numel():
        torch.as_strided(tensor, (tensor.numel(),), (1,)).view(torch.uint8).fill_(0xFF)
    return tensor


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, but that every NaN equals every other."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return bool(torch.equal(one, other))
    return bool(torch.equal(one, other)) or bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextlib.contextmanager
def allocations() -> Iterator[Callable[[int], list[int]]]:
    """Inside, ATen's allocator is watched. What it yields is asked afterwards: most bytes held at a time in each of the first n spans
    "fourfold step k".
    """
    watch = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _hushed():
        watch.start()
    try:
        yield lambda count: _peaks(watch, count)
    finally:
        with _hushed():
            watch.stop()


def _peaks(watch: Any, count: int) -> list[int]:
    events = watch.profiler.kineto_results.events()
    spans = {int(e.name().removeprefix(_SPAN)): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith(_SPAN)}
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    when, bytes_ = np.array([t for t, _ in moves], np.int64), np.array([b for _, b in moves], np.int64)
    found = []
    for k in range(count):
        if k not in spans:                                              # the profiler lost it
            found.append(0)
            continue
        first, last = np.searchsorted(when, spans[k][0], "left"), np.searchsorted(when, spans[k][1], "right")
        found.append(int(max(0, np.cumsum(bytes_[first:last]).max(initial=0))))
    return found


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Inside, nothing comes out on stderr: the profiler writes two lines there whenever it starts and stops."""
    import sys

    sys.stderr.flush()
    try:
        held, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
        os.close(nowhere)


def span(step: int) -> Any:
    """The context in which step `step` is watched."""
    return torch.profiler.record_function(f"{_SPAN}{step}")
