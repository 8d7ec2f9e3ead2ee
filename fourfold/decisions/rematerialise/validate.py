"""Whether a sequence with offsets is a valid plan, examined step by step with sets, without looking at any solver or kernel."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

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
    are not there at the end, offsets missing, negative or not aligned, and instances that share bytes while both are alive.
    """
    g = instance.graph
    if bad := [n for n in sequence.tolist() if not 0 <= n < len(g)]:
        return [f"the sequence holds node {bad[0]}, but there are {len(g)}"]
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


def peak(instance: RematerialiseInstance, sequence: NDArray[np.int32], offset: NDArray[np.int64]) -> int:
    """Bytes of the arena that a sound plan takes: the highest end of any instance, workspaces above what is alive in their step."""
    instances, _ = _replay(instance, sequence)
    sizes = [_aligned(instance, one.value) for one in instances]
    tops = [int(o) + size for o, size in zip(offset.tolist(), sizes, strict=True)]
    highest = max((top for top, size in zip(tops, sizes, strict=True) if size), default=0)
    need = {s: int(instance.workspace[n]) for s, n in enumerate(sequence.tolist()) if instance.workspace[n]}
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
    return wrong + [f"{names[n]} runs {times} times, but must not be repeated" for n, times in sorted(seen.items()) if times > 1 and instance.once[n]]


def _replay(instance: RematerialiseInstance, sequence: NDArray[np.int32]) -> tuple[list[_Instance], list[str]]:
    """Every piece of memory in the order in which it is made, and what was read without being there."""
    g = instance.graph
    where: dict[int, _Instance | None] = {v: None for v in range(len(g.role)) if g.role[v] != INTERMEDIATE}
    instances: list[_Instance] = []
    faults: list[str] = []
    for s, n in enumerate(sequence.tolist()):
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
