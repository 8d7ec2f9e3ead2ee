"""The two questions of Tarnawski et al. (2020) on a workload of their suite, and what makes an answer valid. Written without looking at any solver.

cost(u) is the time to move u's output between an accelerator and the host; border(S) = Σ cost(u) over every u with at least one edge that crosses
the border of S, in or out, each once.
    MaxLoad    a core: Σ core time of its nodes; an accelerator with nodes S: Σ accelerator time + border(S). The greatest of these is the time per
               sample of a full pipeline. `contiguous`: no path leaves an accelerator and returns, forward and backward nodes judged separately.
    Latency    all cores are one pool of unlimited width: a node there ends its own time after its last predecessor. An accelerator runs up to
               `parts` subgraphs one after the other; each starts when all its inputs from outside have ended (and its previous part has), and
               all its nodes end together after Σ accelerator time + border(S). The last end counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from fourfold.errors import InputError
from fourfold.frontends.placement import PipelineWorkload
from fourfold.problem import Problem

_SLACK = 1e-9                                                           # share of the limit by which sums of bytes may differ in rounding


@dataclass(frozen=True)
class Split:
    """`machine` i2[N]: accelerators 0 … k-1, then cores (MaxLoad: one by one; Latency: k is the pool). `part` i2[N]: which of the subgraphs that the
    accelerator runs one after the other (Latency; else 0).
    """

    machine: np.ndarray
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))

    def __post_init__(self) -> None:
        machine = np.asarray(self.machine)
        part = np.asarray(self.part) if len(self.part) else np.zeros(len(machine), np.int16)
        if machine.ndim != 1 or part.shape != machine.shape or not all(np.issubdtype(a.dtype, np.integer) for a in (machine, part)):
            raise InputError(f"A split gives a whole number to each node, got shapes {machine.shape} and {part.shape}.", "Give one machine a node.")
        object.__setattr__(self, "machine", machine.astype(np.int16))
        object.__setattr__(self, "part", part.astype(np.int16))


@dataclass(frozen=True)
class MaxLoad(Problem[Split]):
    """Throughput: the least greatest load. `expert` is a split that somebody made by hand, if there is one."""

    question: ClassVar[str] = "partition"
    lever: ClassVar[str] = "machine"

    workload: PipelineWorkload
    contiguous: bool = False
    expert: Split | None = None
    unit: str = "ms"

    @property
    def machines(self) -> int:
        return self.workload.accelerators + self.workload.cores

    def baseline(self) -> Split:
        """All on one accelerator (on one core where there is no accelerator)."""
        return Split(np.zeros(len(self.workload), np.int16))

    def loads(self, split: Split) -> np.ndarray:
        """Load of each machine, f8[k + cores]."""
        w, k = self.workload, self.workload.accelerators
        time = np.where(split.machine < k, w.accelerator, w.core)
        return np.bincount(split.machine, time, self.machines) + np.concatenate([_border(w, split.machine.astype(np.int64), k), np.zeros(w.cores)])

    def cost(self, answer: Split) -> float:
        return float(self.loads(answer).max())

    def violations(self, answer: Split) -> list[str]:
        w = self.workload
        broken = _common(w, answer.machine, self.machines)
        if broken or not self.contiguous:
            return broken
        for m in range(w.accelerators):
            for phase, mask in (("forward", ~w.backward), ("backward", w.backward)):
                if (back := _returns(w, (answer.machine == m) & mask)) >= 0:
                    broken.append(f"a path leaves the {phase} nodes of accelerator {m} and returns at node {w.called(back)}")
        return broken

    def bound(self) -> float:
        """The larger of the average load (work shared out ideally, transfers free) and the heaviest class on its better device."""
        return max(average(self.workload), heaviest(self.workload))

    @classmethod
    def sample(cls, seed: int) -> MaxLoad:
        return cls(invented(seed), contiguous=seed % 2 == 1)


@dataclass(frozen=True)
class Latency(Problem[Split]):
    """One sample: the earliest end of the last node."""

    question: ClassVar[str] = "partition-latency"
    lever: ClassVar[str] = "machine"

    workload: PipelineWorkload
    parts: int = 1
    unit: str = "ms"

    def baseline(self) -> Split:
        """All on the pool of cores."""
        return Split(np.full(len(self.workload), self.workload.accelerators, np.int16))

    def cost(self, answer: Split) -> float:
        """The last end; inf where devices wait for each other."""
        ends = self.ends(answer)
        return float("inf") if ends is None else float(ends.max(initial=0.0))

    def ends(self, answer: Split) -> np.ndarray | None:
        """End of each node, f8[N]; None where devices wait for each other for ever."""
        w, blocks, count = self.workload, *self.blocks(answer)
        held = answer.machine < w.accelerators
        time = np.bincount(blocks, np.where(held, w.accelerator, w.core), count)
        time += _border(w, np.where(held, blocks, count), count)
        links = {(int(a), int(b)) for a, b in zip(blocks[w.source], blocks[w.target], strict=True) if a != b}
        last: dict[int, list[tuple[int, int]]] = {}
        for block in np.unique(blocks[held]):
            node = int(np.flatnonzero(blocks == block)[0])
            last.setdefault(int(answer.machine[node]), []).append((int(answer.part[node]), int(block)))
        for run in last.values():
            run.sort()
            links |= {(a, b) for (_, a), (_, b) in zip(run, run[1:], strict=False)}
        after: list[list[int]] = [[] for _ in range(count)]
        waits = np.zeros(count, int)
        for a, b in links:
            after[a].append(b)
            waits[b] += 1
        start = np.zeros(count)
        ready = [b for b in range(count) if waits[b] == 0]
        for a in ready:
            for b in after[a]:
                start[b] = max(start[b], start[a] + time[a])
                waits[b] -= 1
                if waits[b] == 0:
                    ready.append(b)
        return (start + time)[blocks] if len(ready) == count else None

    def blocks(self, answer: Split) -> tuple[np.ndarray, int]:
        """(what each node runs with: the accelerator's part, or itself alone on the pool; i8[N], how many)."""
        held = answer.machine < self.workload.accelerators
        key = np.where(held, answer.machine.astype(np.int64) * (self.parts + 1) + answer.part, -1 - np.arange(len(answer.machine)))
        found, block = np.unique(key, return_inverse=True)
        return block.astype(np.int64), len(found)

    def violations(self, answer: Split) -> list[str]:
        w = self.workload
        broken = _common(w, answer.machine, w.accelerators + (w.cores > 0))
        if not broken and ((answer.part < 0) | (answer.part >= self.parts)).any():
            off = int(np.flatnonzero((answer.part < 0) | (answer.part >= self.parts))[0])
            broken.append(f"node {w.called(off)} is in part {answer.part[off]}; there are 0 … {self.parts - 1}")
        if not broken:
            blocks, _ = self.blocks(answer)
            for block in np.unique(blocks[answer.machine < w.accelerators]):
                if (back := _returns(w, blocks == block)) >= 0:
                    broken.append(f"a path leaves accelerator {answer.machine[back]} (part {answer.part[back]}) and returns at node {w.called(back)}")
        if not broken and self.ends(answer) is None:
            broken.append("accelerators wait for each other's outputs for ever")
        return broken

    def bound(self) -> float:
        """The larger of the longest path with each node on its faster device, and of a few paths cut into what fits a device (`_paths.py`)."""
        return self._bound

    @cached_property
    def _bound(self) -> float:
        from fourfold.decisions.pipeline._paths import path_bound

        w = self.workload
        fast = np.where(w.supported & (w.accelerators > 0), w.accelerator, np.inf)
        return max(longest(w, np.minimum(fast, w.core) if w.cores else fast), path_bound(w, self.parts))

    @classmethod
    def sample(cls, seed: int) -> Latency:
        return cls(invented(seed))


def longest(workload: PipelineWorkload, time: np.ndarray) -> float:
    """Length of the longest path, node times f8[N]."""
    end = time.astype(float).copy()
    before: list[list[int]] = [[] for _ in range(len(workload))]
    for u, v in zip(workload.source.tolist(), workload.target.tolist(), strict=True):
        before[v].append(u)
    for v in workload.order.tolist():
        end[v] = time[v] + max((end[u] for u in before[v]), default=0.0)
    return float(end.max(initial=0.0))


def average(workload: PipelineWorkload) -> float:
    """The least T at which k accelerators and the cores have time for all nodes that may be shared out in fractions: the node with the greatest
    ratio of accelerator to core time goes to the cores first.
    """
    w = workload
    if not w.cores:
        return float(w.accelerator.sum() / w.accelerators)
    if not w.accelerators:
        return float(w.core.sum() / w.cores)
    here = np.where(w.supported, w.accelerator, np.inf)                 # inf: only a core can take it
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(w.core > 0, here / w.core, np.inf)
    order = np.argsort(-gain, kind="stable")
    fast, slow = np.where(w.supported, w.accelerator, 0.0)[order], w.core[order]
    must = ~w.supported[order]
    done = np.concatenate([[0.0], np.cumsum(slow)])                     # on the cores: the first i in that order; on accelerators: the rest
    rest = np.concatenate([[0.0], np.cumsum(fast[::-1])])[::-1]
    best = np.inf
    for i in range(len(order) + 1):                                     # one line falls, one rises: the optimum is a corner or a crossing
        if must[i:].any():
            continue
        best = min(best, max(done[i] / w.cores, rest[i] / w.accelerators))
        if i and not must[i - 1] and slow[i - 1] > 0:
            share = (rest[i - 1] / w.accelerators - done[i - 1] / w.cores) / (slow[i - 1] / w.cores + fast[i - 1] / w.accelerators)
            if 0 <= share <= 1:
                best = min(best, (done[i - 1] + share * slow[i - 1]) / w.cores)
    return float(best)


def heaviest(workload: PipelineWorkload) -> float:
    """The class that takes longest on its better device."""
    w = workload
    able = (np.bincount(w.color, ~w.supported) == 0) & (np.bincount(w.color, w.size) <= w.limit) & (w.accelerators > 0)
    here = np.where(able, np.bincount(w.color, w.accelerator), np.inf)
    return float(np.minimum(here, np.bincount(w.color, w.core) if w.cores else np.inf).max(initial=0.0))


def invented(seed: int, most: int = 14) -> PipelineWorkload:
    """A small random workload: 4 to `most` nodes, 1 to 3 accelerators, a core that takes everything; at times a class, or a node for the core
    alone."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(4, most + 1))
    pairs = [(u, v) for v in range(1, count) for u in range(v) if rng.random() < 1.8 / v]
    ends = np.array(pairs, np.int32).reshape(-1, 2)
    fast = np.round(rng.exponential(3.0, count), 3)
    size = rng.integers(0, 100, count).astype(float)
    accelerators = int(rng.integers(1, 4))
    color = np.arange(count, dtype=np.int32)
    if seed % 3 == 1:
        color[rng.integers(count)] = color[rng.integers(count)]
    _, color = np.unique(color, return_inverse=True)
    return PipelineWorkload(f"invented {seed}", accelerators, 1, float(np.ceil(size.sum() / accelerators * 0.8 + 50)), np.arange(count) * 3 + 1,
                    np.round(fast * rng.uniform(2, 12), 3), fast, size, ends[:, 0], ends[:, 1], np.round(rng.exponential(0.8, count), 3),
                    rng.random(count) > 0.08, np.zeros(count, bool), color.astype(np.int32))


def _border(w: PipelineWorkload, owner: np.ndarray, count: int) -> np.ndarray:
    """border(S) of each owner 0 … count-1, f8; owners ≥ count pay nothing."""
    a, b = owner[w.source], owner[w.target]
    cut = a != b
    payer = np.concatenate([a[cut], b[cut]])
    moved = np.concatenate([w.source[cut], w.source[cut]]).astype(np.int64)
    once = np.unique(payer * len(w) + moved)
    payer, moved = once // max(1, len(w)), once % max(1, len(w))
    own = payer < count
    return np.bincount(payer[own], w.cost[moved[own]], count)


def _common(w: PipelineWorkload, machine: np.ndarray, machines: int) -> list[str]:
    """Rules that both questions have: a machine a node, classes whole, memory, support."""
    if len(machine) != len(w):
        return [f"the split is of {len(machine)} nodes, the workload has {len(w)}"]
    if (off := np.flatnonzero((machine < 0) | (machine >= machines))).size:
        return [f"node {w.called(int(off[0]))} is on machine {machine[off[0]]}; there are 0 … {machines - 1}"]
    broken = []
    first = np.full(w.color.max(initial=0) + 1, -1)
    first[w.color[::-1]] = np.arange(len(w))[::-1]
    for v in np.flatnonzero(machine != machine[first[w.color]]):
        mate = int(first[w.color[v]])
        broken.append(f"nodes {w.called(mate)} and {w.called(int(v))} are of one class but on machines {machine[mate]} and {machine[v]}")
    for v in np.flatnonzero((machine < w.accelerators) & ~w.supported):
        broken.append(f"node {w.called(int(v))} cannot run on accelerator {machine[v]}")
    held = np.bincount(machine, w.size, machines)
    for m in np.flatnonzero(held[: w.accelerators] > w.limit * (1 + _SLACK)):
        broken.append(f"accelerator {m} holds {held[m]:,.0f} bytes, {held[m] - w.limit:,.0f} more than its {w.limit:,.0f}")
    return broken


def _returns(w: PipelineWorkload, inside: np.ndarray) -> int:
    """A node of `inside` that a path reaches which has left it before; -1: none."""
    left = np.zeros(len(w), bool)
    after: list[list[int]] = [[] for _ in range(len(w))]
    for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
        after[u].append(v)
    for u in w.order.tolist():
        for v in after[u]:
            if left[u] and not inside[u] and inside[v]:
                return v
            if not inside[v] and (inside[u] or left[u]):
                left[v] = True
    return -1
