"""Whether a sequence with offsets is a valid plan, examined step by step with sets, without looking at any solver or kernel."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise.instance import ALIGNMENT, RematerialiseInstance
from fourfold.graph import INTERMEDIATE


@dataclass
class _Instance:
    """A piece of memory: the step that made it, the value, the last step that needs it."""

    step: int
    value: int
    last: int


def unsound(instance: RematerialiseInstance, sequence: NDArray[np.int32], offset: NDArray[np.int64]) -> list[str]:
    """Rules broken, a sentence each: nodes that do not exist, never run or run twice though they must not, reads of what was not made, outputs that
    are not there at the end, fetches of what is not in a second memory, offsets missing, negative or not aligned, and instances that share bytes
    while both are alive.
    """
    g = instance.graph
    most = len(g) + (len(g.alias) if instance.far is not None else 0)
    if bad := [n for n in sequence.tolist() if not 0 <= n < most]:
        return [f"the sequence holds node {bad[0]}, but there are {len(g)}"]
    if bad := [n - len(g) for n in sequence.tolist() if n >= len(g) and not isfinite(instance.transfer[n - len(g)])]:
        return [f"value {bad[0]} is fetched, but it cannot be copied to the second memory"]
    wrong = _counts(instance, sequence)
    instances, faults = _replay(instance, sequence)
    if wrong or faults:
        return wrong + faults
    if len(offset) != len(instances):
        return [f"there are {len(offset)} offsets for {len(instances)} values made"]
    for k, one in enumerate(instances):
        if offset[k] < 0 or offset[k] % ALIGNMENT:
            wrong.append(f"the offset of value {one.value} made at step {one.step} is {offset[k]}, no multiple of {ALIGNMENT} of at least 0")
    return wrong or _overlaps(instance, instances, offset.tolist())


def misplaced(instance: RematerialiseInstance, sequence: NDArray[np.int32], away: NDArray[np.int32], place: NDArray[np.int64]) -> list[str]:
    """Rules that the copies in the second memory break: each value that is fetched has one, from the step that first makes it to its last fetch; two
    that are there at once share no byte; all lie within the memory, at multiples of the alignment.
    """
    g, first, last = instance.graph, dict[int, int](), dict[int, int]()
    for s, n in enumerate(sequence.tolist()):
        if n >= len(g):
            last[n - len(g)] = s
        else:
            for v in g.outputs_of(n).tolist():
                first.setdefault(v, s)
    if sorted(last) != away.tolist() or len(place) != len(away):
        return [f"{len(last)} values are fetched, but there are {len(away)} copies with {len(place)} places"]
    room, wrong, copies = instance.far.room if instance.far is not None else 0, list[str](), list[tuple[int, int, int, int, int]]()
    for v, at in zip(away.tolist(), place.tolist(), strict=True):
        size = _aligned(instance, v)
        if at < 0 or at % ALIGNMENT or at + size > room:
            wrong.append(f"the copy of value {v} lies at [{at}, {at + size}) of a second memory of {room:,} bytes, or at no multiple of {ALIGNMENT}")
        for other, begin, end, born, gone in copies:
            if at < end and begin < at + size and first[v] <= gone and born <= last[v]:
                wrong.append(f"the copies of values {other} and {v} share bytes of the second memory")
        copies.append((v, at, at + size, first[v], last[v]))
    return wrong


def peak(instance: RematerialiseInstance, sequence: NDArray[np.int32], offset: NDArray[np.int64]) -> int:
    """Bytes of the arena that a sound plan takes: the highest end of any instance, workspaces above what is alive in their step."""
    instances, _ = _replay(instance, sequence)
    sizes = [_aligned(instance, one.value) for one in instances]
    tops = [int(o) + size for o, size in zip(offset.tolist(), sizes, strict=True)]
    highest = max((top for top, size in zip(tops, sizes, strict=True) if size), default=0)
    need = {s: int(instance.workspace[n]) for s, n in enumerate(sequence.tolist()) if n < len(instance.workspace) and instance.workspace[n]}
    for s, extra in need.items():
        here = max((top for top, one, size in zip(tops, instances, sizes, strict=True) if size and one.step <= s <= one.last), default=0)
        highest = max(highest, here + extra)
    return highest


def _aligned(instance: RematerialiseInstance, value: int) -> int:
    size = int(instance.graph.size[value])
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _counts(instance: RematerialiseInstance, sequence: NDArray[np.int32]) -> list[str]:
    seen: dict[int, int] = {}
    for n in sequence.tolist():
        seen[n] = seen.get(n, 0) + 1
    names = instance.graph.names
    wrong = [f"{names[n]} never runs" for n in range(len(names)) if n not in seen]
    return wrong + [f"{names[n]} runs {times} times, but must not be repeated" for n, times in sorted(seen.items())
                    if n < len(names) and times > 1 and instance.once[n]]


def _replay(instance: RematerialiseInstance, sequence: NDArray[np.int32]) -> tuple[list[_Instance], list[str]]:
    """Every piece of memory in the order in which it is made, and what was read without being there."""
    g = instance.graph
    where: dict[int, _Instance | None] = {v: None for v in range(len(g.role)) if g.role[v] != INTERMEDIATE}
    instances: list[_Instance] = []
    faults: list[str] = []
    for s, n in enumerate(sequence.tolist()):
        if n >= len(g):
            if (v := n - len(g)) not in where:
                faults.append(f"step {s} fetches value {v}, which {g.names[int(g.producer[v])]} has not made")
            instances.append(_Instance(s, v, s))
            where[v] = instances[-1]
            continue
        inputs, outputs = set(g.inputs_of(n).tolist()), g.outputs_of(n).tolist()
        for v in sorted(inputs):
            if v not in where:
                faults.append(f"step {s} ({g.names[n]}) reads value {v}, which {g.names[int(g.producer[v])]} has not made")
            elif (held := where[v]) is not None:
                held.last = s
        for v in outputs:
            if g.alias[v] == v:
                where[v] = _Instance(s, v, s)
                instances.append(where[v])                              # type: ignore[arg-type]
        for v in outputs:
            if (root := int(g.alias[v])) != v:
                over = next((u for u in g.inputs_of(n).tolist() if g.alias[u] == root), root)
                where[v] = where.get(over)
                if (held := where[v]) is not None:
                    held.last = s
    for v in g.outputs.tolist():
        if v not in where:
            faults.append(f"the output {v} is not there at the end")
        elif (held := where[v]) is not None:
            held.last = len(sequence) - 1
    return instances, faults


def _overlaps(instance: RematerialiseInstance, instances: list[_Instance], offset: list[int]) -> list[str]:
    """Pairs alive at once that share bytes: a sweep over the steps with the living sorted by address."""
    names = instance.graph.names
    dying: dict[int, list[int]] = {}
    living: list[tuple[int, int, int]] = []                             # (begin, end, instance)
    done, wrong = -1, list[str]()
    for k, one in enumerate(instances):
        while done < one.step - 1:
            done += 1
            for j in dying.pop(done, ()):
                del living[bisect_left(living, (offset[j], offset[j] + _aligned(instance, instances[j].value), j))]
        size = _aligned(instance, one.value)
        if not size:
            continue
        entry = (offset[k], offset[k] + size, k)
        at = bisect_left(living, entry)
        for other in living[max(0, at - 1) : at + 1]:
            if other[0] < entry[1] and entry[0] < other[1]:
                them = instances[other[2]]
                wrong.append(f"value {one.value} made by {names[int(instance.graph.producer[one.value])]} at step {one.step} lies at "
                             f"[{entry[0]}, {entry[1]}), where value {them.value} of step {them.step} lives in [{other[0]}, {other[1]}) until step "
                             f"{them.last}")
        insort(living, entry)
        dying.setdefault(one.last, []).append(k)
    return wrong
