"""A plan of memory carried out: one flat buffer, every intermediate a view into it at its offset, one op after the other in the plan's order. What is
offloaded is copied to a second buffer and back.

    arena = ProgramArena(ready(captured), inputs, layout, dry)
    ran = arena.run()                                   # outputs by value (views into the buffer until the next run) and seconds

All arguments are bound to their places beforehand, so a step is one call; views cost nothing, since they are taken when the arena is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourfold.engines.call import Call, mapped, refs, values
from fourfold.errors import InputError
from fourfold.runtime.arena import writers
from fourfold.runtime.arena.dry_run import PLAIN, VIEW, DryRun, allocations, span
from fourfold.runtime.arena.layout import ArenaLayout
from fourfold.runtime.arena.ready import Ready, bound, dtype_of, keyed, sow

FETCH = -1                                                              # node of a step that fetches from the second memory
POISON = 0xFF                                                           # NaN in every float type, -1 in integers


@dataclass(frozen=True)
class _Held:
    """Stands for a value that is only there while the plan runs: a number, or a view whose place depends on one."""

    value: int


@dataclass
class _Step:
    node: int
    write: writers.Writer
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: list[Any]
    key: int | None = None                                              # seed of a random node
    late: bool = False                                                  # arguments hold `_Held`
    keeps: Call | None = None                                           # results are held instead of written
    go: Callable[[], object] | None = None                              # all of it as one call, where nothing else is to be done
    dies: list[Tensor] = field(default_factory=list)                    # memory that nobody needs any more
    stores: list[tuple[Tensor, Tensor]] = field(default_factory=list)   # copies (to, from) that are made when it has run


@dataclass(frozen=True)
class ArenaRun:
    """What a run gave: outputs by value, s from the first step to the last."""

    outputs: Mapping[int, object]
    seconds: float


class ProgramArena:
    """One buffer of `capacity` bytes (default: as many as the plan takes), and the steps bound to it.

    `poison`: memory that nobody needs is filled with 0xFF bytes, NaN in every float type, before and between lives; a value that is read too late, or
    never written, then shows. `seed`: of random nodes; a node that runs again draws what it drew before.
    Raises InputError where the plan needs more than `capacity`, or is not one of this program.
    """

    def __init__(self, program: Ready, inputs: object, layout: ArenaLayout, dry: DryRun, *, capacity: int | None = None, poison: bool = False,
                 seed: int = 0) -> None:
        if len(dry.way) != len(program.graph) or layout.graph.hash != program.graph.hash:
            raise InputError("The plan is of another program.", "Give the program that was planned.")
        size = layout.top if capacity is None else int(capacity)
        if layout.top > size:
            raise InputError(f"The plan takes {layout.top:,} bytes, and the arena has {size:,}.", "Give it more, or plan for less.")
        self.program, self.layout, self.dry, self.poison, self.seed = program, layout, dry, poison, seed
        self.buffer = torch.empty(size, dtype=torch.uint8)
        self.far = torch.empty(layout.far_top, dtype=torch.uint8)       # the second memory
        self.strays: list[int] = []                                     # views in the graph that torch answers with a copy, outside of the arena
        self.steps: list[_Step] = []
        self._held: dict[int, object] = {}
        self._at: dict[int, object] = {}
        self._bind(inputs)

    @property
    def stray(self) -> int:
        """Bytes of views that torch can only copy; they stay outside until the run ends."""
        return int(sum(self.program.graph.size[v] for v in self.strays))

    # ---- binding

    def _bind(self, inputs: object) -> None:
        layout, program, calls = self.layout, self.program, self.program.calls
        at, first = dict(program.feed(inputs)), np.searchsorted(layout.step, np.arange(len(layout.sequence) + 1))
        with torch.no_grad():
            for s, node in enumerate(layout.sequence.tolist()):
                pieces = {int(layout.value[k]): self._view(int(layout.value[k]), int(layout.offset[k])) for k in range(first[s], first[s + 1])}
                if node >= len(calls):
                    self._fetch(node - len(calls), at, pieces)
                    continue
                self._step(calls[node], at, pieces, bool(layout.again[s]))
                for v in [v for v in pieces if v in layout.place and not layout.again[s]]:
                    self._store(v, at)
        self._at = at
        for k in np.flatnonzero(layout.last < len(self.steps) - 1).tolist():                    # what the program returns is alive at the end
            self.steps[int(layout.last[k])].dies.append(self.buffer[int(layout.offset[k]): int(layout.offset[k] + layout.size[k])])

    def _fetch(self, value: int, at: dict[int, object], pieces: Mapping[int, Tensor]) -> None:
        """Bind a step that copies a value back from the second memory."""
        near, far = pieces[value], self._view(value, self.layout.place[value], self.far)
        self.steps.append(_Step(FETCH, _copied, (far,), {}, [near], go=partial(near.copy_, far)))
        at[value] = near

    def _store(self, value: int, at: dict[int, object]) -> None:
        """Let the last step also copy what it made to the second memory."""
        step, near = self.steps[-1], at[value]
        if not isinstance(near, Tensor):
            raise InputError(f"The plan copies {self.program.graph.labels[value] or f'value {value}'}, which is no tensor in the arena.",
                             "Make the plan again.")
        step.stores.append((self._view(value, self.layout.place[value], self.far), near))
        step.go = None if step.go is None else _stored(step.go, *step.stores[-1])

    def _view(self, value: int, offset: int, buffer: Tensor | None = None) -> Tensor:
        """The tensor of a value at an offset (B) of the buffer."""
        buffer = self.buffer if buffer is None else buffer
        g = self.program.graph
        size, dtype = int(g.size[value]), dtype_of(g.dtype[value])
        if offset % dtype.itemsize:
            raise InputError(f"The plan puts {g.labels[value]} at {offset}, which is no multiple of the {dtype.itemsize} bytes of {g.dtype[value]}.",
                             "Make the plan again.")
        return torch.as_strided(buffer[offset: offset + size].view(dtype), g.shape_of(value), self.program.strides[value])

    def _step(self, call: Call, at: dict[int, object], pieces: Mapping[int, Tensor], again: bool) -> None:
        """Bind one step, and say where what it makes is."""
        args, kwargs = bound(call.args, at), bound(call.kwargs, at)
        reads = [*refs((call.args, dict(call.kwargs)))]
        late = any(isinstance(at[v], _Held) for v in reads)
        way, made = self.dry.way[call.node], values(call.outs)
        key = writers.key_of(self.seed, call.node) if call.node in self.program.random else None
        if way == VIEW and not late:
            found = writers.flat(call.outs, call.target(*args, **kwargs))
            homes = {t.untyped_storage().data_ptr() for t in (at[v] for v in reads) if isinstance(t, Tensor)}
            if all(t.untyped_storage().data_ptr() in homes or not t.numel() for t in found):
                at.update(zip(made, found, strict=True))
                self.steps.append(_Step(call.node, _rest, (), {}, []))
                return
            self.strays += [v for v, t in zip(made, found, strict=True) if t.untyped_storage().data_ptr() not in homes]
        if way in (VIEW, PLAIN):
            self.steps.append(_Step(call.node, _rest, args, kwargs, [], key, late, call))
            at.update({v: _Held(v) for v in made})
            return
        outs: list[Any] = [pieces.get(v) for v in made]
        if any(out is None for out in outs):                            # a view made beside computed values: found by running the op once
            found = writers.flat(call.outs, call.target(*args, **kwargs))
            outs = [one if one is not None else view for one, view in zip(outs, found, strict=True)]
        write = writers.writers(call)[way]
        if again and writers.changes(call.target):
            write = _once_more(call, write)
        plain = not late and key is None and not (again and writers.changes(call.target))
        go = writers.prepared(call, way, args, kwargs, outs) if plain else None
        self.steps.append(_Step(call.node, write, args, kwargs, outs, key, late, go=go))
        at.update(zip(made, outs, strict=True))

    # ---- running

    def run(self, clock: Callable[[], float] = time.perf_counter) -> ArenaRun:
        """Carry the plan out. What it answers are views into the buffer, which the next run overwrites."""
        if self.poison:
            self.buffer.fill_(POISON)
            self.far.fill_(POISON)
        steps = [step for step in self.steps if step.write is not _rest or step.keeps is not None or self.poison]
        with keyed(self.program.random):
            began = clock()
            for step in steps:
                if step.go is None or self.poison:
                    self._do(step)
                else:
                    step.go()
            seconds = clock() - began
        return ArenaRun(self._outputs(), seconds)

    def _do(self, step: _Step) -> None:
        if step.key is not None:
            sow(step.key)
        args, kwargs = step.args, step.kwargs
        if step.late:
            args, kwargs = self._now(args), self._now(kwargs)
        if step.go is not None:
            step.go()
        elif step.keeps is None:
            step.write(args, kwargs, step.outs)
        else:
            found = writers.flat(step.keeps.outs, step.keeps.target(*args, **kwargs))
            self._held.update(zip(values(step.keeps.outs), found, strict=True))
        if step.go is None:
            for far, near in step.stores:
                far.copy_(near)
        if self.poison:
            for memory in step.dies:
                memory.fill_(POISON)

    def _now(self, part: object) -> Any:
        return mapped(part, lambda leaf: self._held[leaf.value] if isinstance(leaf, _Held) else leaf)

    def _outputs(self) -> dict[int, object]:
        found = {v: self._at[v] for v in self.program.graph.outputs.tolist()}
        return {v: self._held[v] if isinstance(one, _Held) else one for v, one in found.items()}

    # ---- measuring

    def touched(self) -> int:
        """Bytes of the buffer up to the highest one that a run writes to. It is found by two runs over buffers filled with different bytes: a byte
        that was written differs from one of them at least.
        """
        highest = 0
        for pattern in (0x00, 0xA5):
            self.buffer.fill_(pattern)
            with keyed():
                for step in self.steps:
                    poison, self.poison = self.poison, False
                    try:
                        self._do(step)
                    finally:
                        self.poison = poison
            changed = torch.nonzero(self.buffer != pattern)
            highest = max(highest, int(changed[-1]) + 1 if len(changed) else 0)
        return highest

    def transfers(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """s of all copies to the second memory and back, one after another, the least of five runs."""
        copies = [pair for step in self.steps for pair in (*step.stores, *([(step.outs[0], step.args[0])] if step.node == FETCH else []))]
        took = []
        for _ in range(5):
            began = clock()
            for to, source in copies:
                to.copy_(source)
            took.append(clock() - began)
        return min(took)

    def outside(self) -> np.ndarray:
        """i8[S] most bytes that ATen's allocator holds at a time beside the arena, while each step runs, as torch's profiler sees it in one run."""
        with keyed(), allocations() as seen:
            for s, step in enumerate(self.steps):
                with span(s):
                    self._do(step)
        return np.array(seen(len(self.steps)), np.int64)


def _rest(args: Sequence[object], kwargs: Mapping[str, object], outs: Sequence[Tensor]) -> None:
    """A step that has nothing to compute."""


def _copied(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    """A step that fetches."""
    outs[0].copy_(args[0])


def _stored(go: Callable[[], object], far: Tensor, near: Tensor) -> Callable[[], object]:
    def both() -> None:
        go()
        far.copy_(near)

    return both


def _once_more(call: Call, write: writers.Writer) -> writers.Writer:
    def again(args: Sequence[object], kwargs: Mapping[str, object], outs: Sequence[Tensor]) -> None:
        write(*writers.still(call.target, args, kwargs), outs)

    return again
