"""The chiplet question: the chip of each op, under the rules of Xie et al. (MLSys 2022), so that the slowest stage of the pipeline takes least.

Rules: data go one way (from a chip to itself or a later one); no chip before the last one in use is skipped; an edge from chip a to chip c allows no
other way from a to c (the triangle rule: the longest way between the ends of a used connection is 1); the weights that a chip's ops read and the
largest op's inputs and outputs fit its memory. What only a compiler knows is a callback: it looks at a partition and says what is wrong, for a price.

A stage's time is a chip's compute and, where the link says that the sender copies (`overlap = false`), the time of all that it sends, one copy of a
value to each chip that reads it; or a link's time, where transfers between several chips pass it. Throughput is 1 / the largest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numba import njit

from fourfold.decisions.chiplets.instance import ChipletWorkload, Csr, Package
from fourfold.problem import Problem

Compiler = Callable[[np.ndarray], str | None]
"""What knows more than the rules: i2[N] chips → why this partition cannot be compiled, or None."""


@dataclass(frozen=True, eq=False)
class ChipletPartition(Problem[np.ndarray]):
    """Ops of `workload` on chips of `package`; an answer is i2[N]. `compiler` (None: the rules are all) is asked once a partition that keeps the
    rules, and each such question counts as `price` evaluations besides the one that every partition costs.
    """

    question: ClassVar[str] = "chiplets"
    lever: ClassVar[str] = "machine"
    unit = "s"

    workload: ChipletWorkload
    package: Package
    compiler: Compiler | None = None
    price: int = 1

    def baseline(self) -> np.ndarray:
        return np.zeros(len(self.workload), np.int16)

    def violations(self, answer: np.ndarray) -> list[str]:
        wrong = self.broken(answer)
        if not wrong and self.compiler is not None and (why := self.compiler(np.array(answer))) is not None:
            wrong.append(f"the compiler refuses it: {why}")
        return wrong

    def broken(self, answer: np.ndarray) -> list[str]:
        """The published rules and memory that `answer` breaks; no compiler is asked. Plain sets and loops, shared with no solver."""
        w, count = self.workload, self.package.chips
        chip = np.asarray(answer)
        if chip.shape != (len(w),) or not np.issubdtype(chip.dtype, np.integer):
            return [f"the answer is {chip.dtype}{list(chip.shape)}, expected one whole number for each of {len(w)} ops"]
        if len(chip) and not 0 <= int(chip.min()) <= int(chip.max()) < count:
            return [f"an op is on chip {int(chip.max()) if chip.max() >= count else int(chip.min())}, and there are {count}"]
        wrong: list[str] = []
        joined: set[tuple[int, int]] = set()
        for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
            a, c = int(chip[u]), int(chip[v])
            if a > c:
                wrong.append(f"op {u} on chip {a} sends back to op {v} on chip {c}")
            elif a < c:
                joined.add((a, c))
        if wrong:
            return wrong[:3]
        skipped = sorted(set(range(int(chip.max(initial=0)) + 1)) - set(chip.tolist()))
        if skipped:
            wrong.append(f"chip {skipped[0]} is skipped")
        wrong += [f"chip {a} sends to chip {c} directly and by way of {b}" for a, c, b in _triangles(joined)][:3]
        for m in range(int(chip.max(initial=0)) + 1):
            if (held := self.held(chip, m)) > self.package.memory:
                wrong.append(f"chip {m} holds {held:,.0f} bytes, more than its {self.package.memory:,.0f}")
        return wrong

    def held(self, answer: np.ndarray, chip: int) -> float:
        """Bytes on a chip: every weight that one of its ops reads, once, what is held everywhere, and the largest op's inputs and outputs."""
        w, mine = self.workload, np.flatnonzero(np.asarray(answer) == chip)
        weights = {int(p) for v in mine for p in w.weights.item[w.weights.ptr[v]: w.weights.ptr[v + 1]]}
        return w.base_bytes + float(w.weight[sorted(weights)].sum()) + float(w.work[mine].max(initial=0.0))

    def stages(self, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(compute, sending f8[C] s of each chip, passing f8[L] s of each lane of the links); a chip without ops does nothing."""
        w, p, chip = self.workload, self.package, np.asarray(answer).astype(np.int64)
        compute = np.bincount(chip, w.seconds, p.chips) + np.where(np.bincount(chip, minlength=p.chips) > 0, w.base_seconds, 0.0)
        value = np.repeat(np.arange(len(w.maker)), np.diff(w.readers.ptr))
        sent = np.unique(np.stack([value, chip[w.readers.item]], 1), axis=0).reshape(-1, 2)
        sent = sent[chip[w.maker[sent[:, 0]]] != sent[:, 1]]
        a, c, size = chip[w.maker[sent[:, 0]]], sent[:, 1], w.size[sent[:, 0]]
        time = p.latency[a, c] + size / p.rate[a, c]
        sending = np.bincount(a, np.where(p.copies[a, c], time, 0.0), p.chips)
        passing = np.zeros(len(p.lane_rate))
        for x, y, b in zip(a.tolist(), c.tolist(), size.tolist(), strict=True):
            row = p.lanes.item[p.lanes.ptr[x * p.chips + y]: p.lanes.ptr[x * p.chips + y + 1]]
            passing[row] += p.lane_latency[row] + b / p.lane_rate[row]
        return compute, sending, passing

    def cost(self, answer: np.ndarray) -> float:
        compute, sending, passing = self.stages(answer)
        return max(float((compute + sending).max(initial=0.0)), float(passing.max(initial=0.0)))

    @cached_property
    def parts(self) -> dict[str, float]:
        """Seconds that no partition beats, by what proves it: `average` (all compute shared out evenly), `op` (the longest), `pair` (an edge and all
        that stands between its ends are on two chips, by the triangle rule: half of that is on one)."""
        w = self.workload
        everywhere = w.base_seconds
        return {"average": everywhere + float(w.seconds.sum()) / min(self.package.chips, max(1, len(w))),
                "op": everywhere + float(w.seconds.max(initial=0.0)),
                "pair": everywhere + _pair(w.seconds, w.source, w.target, w.descendants, w.ancestors)}

    def bound(self) -> float:
        return max(self.parts.values())

    @classmethod
    def sample(cls, seed: int) -> ChipletPartition:
        rng = np.random.default_rng(seed)
        return cls(drawn(rng, int(rng.integers(4, 25)), 0.25), chain(int(rng.integers(2, 7))))


def _triangles(joined: set[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(a, c, b) for connections a → c where another way leads from a over b to c."""
    after: dict[int, set[int]] = {}
    for a, c in joined:
        after.setdefault(a, set()).add(c)
    reached: dict[int, set[int]] = {}
    for a in sorted(after, reverse=True):                               # connections lead to later chips only
        reached[a] = set(after[a]).union(*(reached.get(b, set()) for b in after[a]))
    return [(a, c, b) for a, c in sorted(joined) for b in sorted(after[a]) if b != c and c in reached.get(b, set())]


@njit(cache=True)
def _pair(seconds, source, target, descendants, ancestors):  # type: ignore[no-untyped-def]
    best = 0.0
    for e in range(len(source)):
        u, v = source[e], target[e]
        total = seconds[u] + seconds[v]
        for i in range(descendants.shape[1]):
            bits = descendants[u, i] & ancestors[v, i]
            at = i * 64
            while bits:
                if bits & np.uint64(1):
                    total += seconds[at]
                bits >>= np.uint64(1)
                at += 1
        best = max(best, total / 2)
    return best


def drawn(rng: np.random.Generator, count: int, density: float) -> ChipletWorkload:
    """A random workload: a chain with gaps and further edges of that density, times and bytes log-uniform, some weights shared."""
    pairs = [(u, v) for v in range(1, count) for u in range(v) if rng.random() < (0.8 if v == u + 1 else density / (v - u))]
    source, target = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    maker, back = np.unique(source, return_inverse=True)
    weights = int(rng.integers(1, count + 1))
    op = np.arange(count)[rng.random(count) < 0.7]
    seconds, work, sends = np.exp(rng.uniform(-2, 2, count)) * 1e-6, np.exp(rng.uniform(5, 9, count)), np.exp(rng.uniform(5, 10, len(maker)))
    return ChipletWorkload(f"drawn-{count}", seconds, np.floor(work), source, target, maker, np.floor(sends), Csr.of(len(maker), back, target),
                           Csr.of(count, op, rng.integers(0, weights, len(op))), np.floor(np.exp(rng.uniform(6, 11, weights))), np.arange(count))


def chain(chips: int, memory: float = 2.0**30, latency: float = 2e-8, rate: float = 5e10, copies: bool = True) -> Package:
    """Chips in a row, each joined to the next by one link of a single direction."""
    pair = [(a * chips + c, lane) for a in range(chips) for c in range(a + 1, chips) for lane in range(a, c)]
    far = np.maximum(np.arange(chips)[None, :] - np.arange(chips)[:, None], 0)
    rates = np.where(far > 0, rate, np.inf)
    return Package(chips, latency * far, rates, (far > 0) & copies, Csr.of(chips * chips, np.array([a for a, _ in pair], np.int64),
                   np.array([b for _, b in pair], np.int64)), np.full(max(1, chips - 1), latency), np.full(max(1, chips - 1), rate), memory)
