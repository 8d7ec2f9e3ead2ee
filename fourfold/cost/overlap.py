"""Communication hidden behind a product that depends on it: what a looped einsum takes, the gate that chooses it, and the loop played event by event.

Wang et al. (2023): an all-gather before an einsum, or a reduce-scatter after it, over n ranks becomes n steps of a 1/n einsum each, with a permute
between neighbours meanwhile. With e seconds for the whole einsum, p for one permute and c for the collective,

    plain = c + e
    loop  = (n − 1) · max(e/n · (1 + drag), p) + e/n + n · start

`start` s is what a step costs besides; `drag` is the share by which computing slows down while bytes move, which where the same cores do both is not
0. Both ways at once: an all-gather takes in a block from either side a step, so ⌈(n − 1)/2⌉ steps do (for even n the last hands on half a block each
way); a reduce-scatter runs two rings of half blocks. The gate takes the quickest of plain, one way and both ways, and plain where the loop gains less
than `margin`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fourfold.errors import InputError
from fourfold.sharding.collectives import all_gather, reduce_scatter
from fourfold.sharding.mesh import Mesh

PLAIN, ONE_WAY, BOTH_WAYS = "plain", "one_way", "both_ways"
GATHER, SCATTER = "all_gather_einsum", "einsum_reduce_scatter"
MARGIN = 0.03                                                           # share that a loop must gain: what a model of seconds is off by is no gain


@dataclass(frozen=True)
class OverlapDecision:
    """What the gate chose (`way`), and the seconds of every way; `einsum`, `collective`, `permute`: what they were made of."""

    kind: str
    way: str
    seconds: Mapping[str, float]
    einsum: float
    collective: float
    permute: float

    @property
    def speed_up(self) -> float:
        """Plain over chosen."""
        return self.seconds[PLAIN] / self.seconds[self.way]


@dataclass(frozen=True)
class OverlapGate:
    """What `ranks` ranks in a ring pay: `alpha` s a message, `beta` s a byte of a permute; `rate` FLOP/s of a product; `start` s a step of the loop;
    `drag`: share by which a product slows down while bytes move; `twofold`: seconds of two messages at once, one each way, over seconds of one.
    `collective_alpha`, `collective_beta`: of the all-gather, s and s a byte that a rank sends (0: as the permute). Raises InputError for less than
    one rank or a figure below zero.
    """

    ranks: int
    alpha: float
    beta: float
    rate: float
    start: float = 0.0
    drag: float = 0.0
    twofold: float = 1.0
    collective_alpha: float = 0.0
    collective_beta: float = 0.0
    margin: float = MARGIN

    def __post_init__(self) -> None:
        low = min(self.alpha, self.beta, self.start, self.drag, self.twofold, self.collective_alpha, self.collective_beta)
        if self.ranks < 1 or self.rate <= 0 or low < 0:
            raise InputError(f"A gate for {self.ranks} ranks at {self.rate:g} FLOP/s with a figure of {low:g}.",
                             "Give at least one rank, a rate above 0 and nothing below 0.")

    @classmethod
    def of(cls, mesh: Mesh, axis: str, rate: float, start: float = 0.0) -> OverlapGate:
        """For one axis of a mesh, whose α and β price a step between neighbours; wires carry both directions at once."""
        a = mesh.axis(axis)
        return cls(mesh.shape[a], mesh.alpha[a], mesh.beta[a], rate, start)

    def decide(self, kind: str, flops: float, moved: float) -> OverlapDecision:
        """For an einsum of `flops` on this rank whose gathered (or scattered) operand has `moved` bytes on one rank. All ranks decide alike."""
        n = self.ranks
        einsum = flops / self.rate
        permute = self.alpha + self.beta * moved
        collective = self._collective(kind, moved)
        seconds = {PLAIN: collective + einsum}
        if n > 1:
            seconds[ONE_WAY] = loop_seconds(n, einsum, permute, self.start, self.drag)
            half = (self.alpha + self.beta * moved / 2) * self.twofold
            seconds[BOTH_WAYS] = (gather_both_seconds(n, einsum, permute * self.twofold, half, self.start, self.drag) if kind == GATHER else
                                  loop_seconds(n, einsum, half, 2 * self.start, self.drag))
        best = min(seconds, key=lambda way: seconds[way])
        way = best if seconds[best] < seconds[PLAIN] * (1 - self.margin) else PLAIN
        return OverlapDecision(kind, way, seconds, einsum, collective, permute)

    def _collective(self, kind: str, moved: float) -> float:
        if self.ranks < 2:
            return 0.0
        if self.collective_beta:
            return self.collective_alpha + self.collective_beta * (self.ranks - 1) * moved
        line = Mesh(("ring",), (self.ranks,), (self.alpha,), (self.beta,))
        price = all_gather if kind == GATHER else reduce_scatter
        return price(moved * self.ranks, line, "ring")

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def loop_seconds(ranks: int, einsum: float, permute: float, start: float = 0.0, drag: float = 0.0) -> float:
    """Of the loop, by the formula above. An einsum–reduce-scatter takes the same: its first part is computed before anything is sent."""
    return (ranks - 1) * max(einsum / ranks * (1 + drag), permute) + einsum / ranks + ranks * start


def gather_both_seconds(ranks: int, einsum: float, permute: float, half: float, start: float = 0.0, drag: float = 0.0) -> float:
    """Of an all-gather–einsum that takes in a block from either side a step: `permute` s of two messages at once, `half` of two half ones."""
    part, total = einsum / ranks, 0.0
    computing = part
    for _ in range((ranks - 1) // 2):
        total += max(computing * (1 + drag), permute) + start
        computing = 2 * part
    if ranks % 2 == 0:
        total += max(computing * (1 + drag), half) + start
        computing = part
    return total + computing + start


# ---- event by event

@dataclass(frozen=True)
class LoopEvent:
    """A part of the einsum computed, or a message on its way, of `rank`: `what` compute or send, of block `block`, from `start` to `end` (s)."""

    rank: int
    what: str
    block: int
    start: float
    end: float


def play_loop(kind: str, ranks: int, einsum: float, alpha: float, wire: float, *, way: str = ONE_WAY, start: float = 0.0,
              slower: Sequence[float] = ()) -> tuple[float, list[LoopEvent]]:
    """(seconds until the last rank is done, events). `einsum` s of the whole product on one rank, `wire` s that a whole shard takes on a link besides
    `alpha`. `slower[r]`: factor on what rank r computes. Links are one each way between neighbours of the ring; a message holds its link.

    Written apart from `loop_seconds`: messages and parts are events with what they wait for, nothing knows of steps.
    """
    n = ranks
    slow = list(slower) or [1.0] * n
    ways = ((-1, 1.0),) if way == ONE_WAY else ((-1, 0.5), (1, 0.5))   # direction in which a message goes, share of a shard
    computed, linked = [0.0] * n, dict.fromkeys(((r, d) for r in range(n) for d, _ in ways), 0.0)
    events: list[LoopEvent] = []

    def compute(rank: int, block: int, ready: float, part: float) -> float:
        began = max(ready, computed[rank])
        computed[rank] = began + part * einsum / n * slow[rank] + start * part
        events.append(LoopEvent(rank, "compute", block, began, computed[rank]))
        return computed[rank]

    def send(rank: int, direction: int, block: int, ready: float, part: float) -> float:
        began = max(ready, linked[rank, direction])
        linked[rank, direction] = began + alpha + part * wire
        events.append(LoopEvent(rank, "send", block, began, linked[rank, direction]))
        return linked[rank, direction]

    if kind == GATHER:
        far = (n - 1, False) if way == ONE_WAY else ((n - 1) // 2, n % 2 == 0)     # hops of a whole block, and whether halves go one hop further
        waiting = [(0.0, 0, r, r, 0, 1.0) for r in range(n)]            # when a rank has a block, hops so far, rank, block, direction, part
        heapq.heapify(waiting)
        while waiting:
            ready, hops, rank, block, direction, part = heapq.heappop(waiting)
            for d in ((direction,) if hops else [d for d, _ in ways]) if n > 1 else ():
                on = 1.0 if hops < far[0] else 0.5 if hops == far[0] and far[1] else 0.0
                if on:
                    heapq.heappush(waiting, (send(rank, d, block, ready, on), hops + 1, (rank + d) % n, block, d, on))
            compute(rank, block, ready, part)
    else:
        arrived = {(r, d): 0.0 for r in range(n) for d, _ in ways}
        for step in range(n):                                           # what arrives is added after the part of the same block is computed
            sent = {}
            for r in range(n):
                for d, share in ways:
                    block = (r - d * (step + 1)) % n
                    computed[r] = max(compute(r, block, 0.0, share), arrived[r, d])
                    if step < n - 1:
                        sent[(r + d) % n, d] = send(r, d, block, computed[r], share)
            arrived = sent
    return max(max(computed), *(event.end for event in events)), events


__all__ = ["BOTH_WAYS", "GATHER", "MARGIN", "ONE_WAY", "PLAIN", "SCATTER", "LoopEvent", "OverlapDecision", "OverlapGate", "gather_both_seconds",
           "loop_seconds", "play_loop"]
