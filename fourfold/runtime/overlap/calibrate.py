"""What a gate must know of the ranks of a group, measured here and now: messages, collectives, products, and what they cost each other.

Wall seconds, medians over a few calls, the slowest rank's figure for all, so that every rank decides alike. It takes a second or two on a fast link.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.cost.overlap import MARGIN, OverlapGate
from fourfold.runtime.overlap.looped_einsum import _Ring

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

SMALL, LARGE = 1 << 10, 1 << 18                                         # elements of the two messages that α and β are fitted to
_SIDE = 384                                                             # of the square product that is timed


def calibrate(group: ProcessGroup | None = None, *, repeat: int = 5, margin: float = MARGIN) -> OverlapGate:
    """The gate of a group; every rank of it must call this at the same time. A group of one rank gets a gate that never loops."""
    ring = _Ring.of(group)
    if ring.size == 1:
        return OverlapGate(1, 0.0, 0.0, 1e9)

    def timed(call: Callable[[], object]) -> float:
        found = list[float]()
        for _ in range(repeat + 1):
            dist.barrier(group=group)
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
        return statistics.median(found[1:])

    def permuted(tensor: Tensor, ways: tuple[int, ...] = (-1,)) -> None:
        works = [work for tag, step in enumerate(ways) for work in ring.pass_on(tensor, step, tag)[1]]
        for work in works:
            work.wait()

    def gathered(tensor: Tensor) -> None:
        dist.all_gather([torch.empty_like(tensor) for _ in range(ring.size)], tensor, group=group)

    small, large, side = torch.ones(SMALL), torch.ones(LARGE), torch.ones(_SIDE, _SIDE)
    alpha, beta = _line(timed(lambda: permuted(small)), timed(lambda: permuted(large)))
    both = timed(lambda: permuted(large, (-1, 1)))
    gather_alpha, gather_beta = _line(timed(lambda: gathered(small)), timed(lambda: gathered(large)))
    product = timed(lambda: side @ side)
    held: list[tuple[Tensor, list[dist.Work]]] = []                    # a message must live until it has arrived
    posting = timed(lambda: held.append(ring.pass_on(small, -1, 2)))
    for _, works in held:
        for work in works:
            work.wait()
    many = max(1, round((alpha + 4 * beta * LARGE) / product))

    def crowded() -> None:
        _, works = ring.pass_on(large, -1, 0)
        for _ in range(many):
            torch.mm(side, side)
        for work in works:
            work.wait()

    drag = max(0.0, timed(crowded) / max(many * product, alpha + 4 * beta * LARGE) - 1)
    found = torch.tensor([alpha, beta, product, posting, drag, both / (alpha + 4 * beta * LARGE), gather_alpha, gather_beta / (ring.size - 1)],
                         dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    ring.kept.clear()
    a, b, seconds, start, slower, twofold, ga, gb = (float(x) for x in found)
    return OverlapGate(ring.size, a, b, 2 * _SIDE**3 / seconds, start, slower, max(1.0, twofold), ga, gb, margin)


def _line(small: float, large: float) -> tuple[float, float]:
    """(α s, β s a byte) through two messages of float32."""
    beta = max(0.0, large - small) / (4 * (LARGE - SMALL))
    return max(0.0, small - 4 * SMALL * beta), beta


__all__ = ["calibrate"]
