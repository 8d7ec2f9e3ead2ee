"""A captured program as plain calls, and the tensors that it is given: what a dry run, an arena and eager execution share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourfold.engines.call import Call, Ref, Region, mapped, refs, values
from fourfold.engines.region import calls
from fourfold.errors import InputError
from fourfold.graph import Graph
from fourfold.program import Captured
from fourfold.runtime.arena import writers
from fourfold.runtime.local.tensors import feed, natives, tensors


@dataclass(frozen=True)
class Ready:
    """A program's calls in the graph's order, its weights as tensors, and strides i of each value that is a tensor of its own."""

    captured: Captured
    calls: tuple[Call, ...]
    weights: Mapping[int, object]

    @property
    def graph(self) -> Graph:
        return self.captured.graph

    @cached_property
    def own(self) -> tuple[tuple[int, ...], ...]:
        """For each node the values that it makes and that share no other's memory."""
        g = self.graph
        return tuple(tuple(v for v in g.outputs_of(n).tolist() if g.alias[v] == v) for n in range(len(g)))

    @cached_property
    def random(self) -> frozenset[int]:
        """Nodes that draw random numbers."""
        return frozenset(call.node for call in self.calls if writers.draws(call))

    def feed(self, inputs: object) -> dict[int, object]:
        """Values of weights and inputs."""
        return {**self.weights, **feed(self.captured.program, inputs)}

    def collect(self, found: Mapping[int, object]) -> object:
        """The program's answer, as the model returns it."""
        return self.captured.program.collect(natives(self.captured.program, found))

    def empty(self, value: int) -> Tensor:
        """A new tensor for a value, laid out as the capture foresaw."""
        return torch.empty_strided(self.graph.shape_of(value), self.strides[value], dtype=dtype_of(self.graph.dtype[value]))

    @cached_property
    def strides(self) -> Mapping[int, tuple[int, ...]]:
        """value → strides of a dense tensor: those that the capture foresaw where they fill the value's memory without a gap, else row by row."""
        g, program, found = self.graph, self.captured.program, {}
        foreseen = _foreseen(program) if program.dialect == "torch" else {}
        for v in np.flatnonzero(g.alias == np.arange(len(g.alias))).tolist():
            shape, strides = g.shape_of(v), foreseen.get(v)
            found[v] = strides if strides is not None and len(strides) == len(shape) and _dense(shape, strides) else _rows(shape)
        return found


def ready(captured: Captured) -> Ready:
    """Raises InputError where the program is not run by torch."""
    program: Any = captured.program
    if program.dialect not in ("torch", "onnx"):
        raise InputError(f"A program of {program.dialect} runs in {program.dialect}'s own memory.",
                         "Give a torch module, an exported program or an .onnx file.")
    graph = captured.graph
    whole = Region(0, 0, (), tuple((n, n) for n in range(len(graph))), (), (), ())
    return Ready(captured, tuple(calls(program, graph, whole)), tensors(program, program.weights()))


def dtype_of(name: str) -> torch.dtype:
    """torch's type of a graph's. Raises InputError where there is none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise InputError(f"torch has no tensors of {name}.", "Plan a program whose values are tensors of torch.")
    return found


def bound(part: object, at: Mapping[int, object]) -> Any:
    """Arguments of a call with tensors in place of references."""
    return mapped(part, lambda leaf: at[leaf.value] if isinstance(leaf, Ref) else leaf)


@contextmanager
def keyed(random: object = True) -> Iterator[None]:
    """Inside, random nodes (if there are any: `random`) seed torch's generator; afterwards it is as it was."""
    state = torch.get_rng_state() if random else None
    try:
        with torch.no_grad():
            yield
    finally:
        if state is not None:
            torch.set_rng_state(state)


def sow(key: int) -> None:
    """Seed the generator that ops on the CPU draw from."""
    torch.default_generator.manual_seed(key)


class Eager:
    """The program node by node in the graph's order, results allocated by torch and dropped after their last reader; random nodes seeded by
    `writers.key_of`, so that what it answers is what a plan must answer.
    """

    def __init__(self, program: Ready, inputs: object, seed: int = 0) -> None:
        self.program, self.given, self.seed = program, program.feed(inputs), seed
        last = {v: k for k, call in enumerate(program.calls) for v in (*refs((call.args, dict(call.kwargs))), *values(call.outs))}
        kept = set(program.graph.outputs.tolist()) | set(self.given)
        self._drops: list[list[int]] = [[] for _ in program.calls]
        for v, k in last.items():
            if v not in kept:
                self._drops[k].append(v)

    def outputs(self, clock: Callable[[], float] = time.perf_counter) -> tuple[dict[int, object], float]:
        """(outputs by value, s)."""
        program, at = self.program, dict(self.given)
        with keyed(program.random):
            began = clock()
            for call, drops in zip(program.calls, self._drops, strict=True):
                if call.node in program.random:
                    sow(writers.key_of(self.seed, call.node))
                made = writers.flat(call.outs, call.target(*bound(call.args, at), **bound(call.kwargs, at)))
                at.update(zip(values(call.outs), made, strict=True))
                for v in drops:
                    del at[v]
            seconds = clock() - began
        return {v: at[v] for v in program.graph.outputs.tolist()}, seconds


def _foreseen(program: Any) -> dict[int, tuple[int, ...]]:
    """value → strides, of the tensors that torch's capture saw."""
    from torch.utils import _pytree

    found: dict[int, tuple[int, ...]] = {}
    for node, made in program.values.items():
        leaves = [leaf for leaf in _pytree.tree_leaves(node.meta.get("val")) if leaf is not None]
        for v, leaf in zip(made, leaves, strict=False):
            if isinstance(leaf, Tensor) and v not in found and not program.same.get(node):
                found[v] = tuple(int(s) for s in leaf.stride())
    return found


def _dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements of a tensor fill its memory, each place once, in whatever order of axes."""
    step = 1
    for size, stride in sorted(((n, s) for n, s in zip(shape, strides, strict=True) if n != 1), key=lambda one: one[1]):
        if stride != step:
            return False
        step *= size
    return True


def _rows(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.cumprod([1, *reversed([max(n, 1) for n in shape[1:]])])[::-1]) if len(shape) else ()
