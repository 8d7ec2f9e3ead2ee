"""The forward pass cut into segments whose insides are computed again in the backward pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise.instance import RematerialiseInstance
from fourfold.graph import FORWARD


def has_backward(instance: RematerialiseInstance) -> bool:
    """Whether the graph trains: it holds nodes behind the forward pass."""
    return bool((instance.graph.phase != FORWARD).any())


def blocks(instance: RematerialiseInstance) -> tuple[NDArray[np.int64], int]:
    """(block i8[M] of each core node, -1 behind the forward pass; their number): the repeated blocks of the model (what stands before one belongs to
    the block before), or, where it has fewer than two, stretches of the forward pass as many as the root of its nodes."""
    core, g = instance.core, instance.graph
    forward = g.phase[core.node] == FORWARD
    layer = g.layer[core.node]
    block = np.full(len(core.node), -1, np.int64)
    if len(np.unique(layer[forward & (layer >= 0)])) >= 2:
        now, last = 0, -1
        for m in np.flatnonzero(forward).tolist():
            if layer[m] >= 0 and layer[m] != last:
                now, last = now + (last >= 0), int(layer[m])
            block[m] = now
        return block, now + 1
    inside = np.flatnonzero(forward)
    pieces = max(1, round(len(inside) ** 0.5))
    block[inside] = np.arange(len(inside)) * pieces // max(1, len(inside))
    return block, pieces


def segmented(instance: RematerialiseInstance, segments: int, kept: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """The sequence of core nodes with the blocks put together into so many segments; as many as there are blocks checkpoints each block. `kept`
    b1[R]: values that are stored all the same, as a policy of selective checkpointing says."""
    block, count = blocks(instance)
    segment = np.where(block >= 0, block * segments // count, -1)
    return checkpointed(instance, segment, kept)


def checkpointed(instance: RematerialiseInstance, segment: NDArray[np.int64], kept: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """The sequence of core nodes that keeps what crosses from one segment to another (and what must not run twice) and runs the inside of a segment
    again when the backward pass first reads it. `segment` i8[M], -1 behind the forward pass; the last segment is kept.
    """
    core = instance.core
    last = int(segment.max(initial=-1))
    inside = _inside(instance, segment, last)
    if kept is not None:
        inside &= ~kept
    again = [_again(instance, segment, inside, s) for s in range(last)]
    ran, sequence = [False] * max(last, 0), list[int]()
    for m in range(len(core.node)):
        if segment[m] < 0:
            reads = core.in_val[core.in_ptr[m] : core.in_ptr[m + 1]]
            for s in sorted({int(segment[core.producer[v]]) for v in reads.tolist() if inside[v]}, reverse=True):
                if not ran[s]:
                    ran[s] = True
                    sequence += again[s]
        sequence.append(m)
    return np.array(sequence, np.int32)


def _inside(instance: RematerialiseInstance, segment: NDArray[np.int64], last: int) -> NDArray[np.bool_]:
    """b1[R] values of a segment that no other segment reads, and that may be made again."""
    core = instance.core
    maker = segment[core.producer] if len(core.producer) else np.zeros(0, np.int64)
    inside = (maker >= 0) & (maker < last) & ~core.pinned & ~core.once[core.producer]
    reader = np.repeat(segment, np.diff(core.in_ptr))
    crosses = (reader >= 0) & (reader != maker[core.in_val])
    inside[core.in_val[crosses]] = False
    return inside


def _again(instance: RematerialiseInstance, segment: NDArray[np.int64], inside: NDArray[np.bool_], s: int) -> list[int]:
    """Nodes of segment s, in order, that make what the backward pass reads of its inside."""
    core = instance.core
    behind = np.repeat(segment < 0, np.diff(core.in_ptr))
    needed = np.zeros(len(core.size), bool)
    needed[core.in_val[behind]] = True
    needed &= inside
    chosen = []
    for m in reversed(np.flatnonzero(segment == s).tolist()):
        if needed[core.out_val[core.out_ptr[m] : core.out_ptr[m + 1]]].any():
            chosen.append(m)
            reads = core.in_val[core.in_ptr[m] : core.in_ptr[m + 1]]
            needed[reads[inside[reads]]] = True
    return chosen[::-1]
