"""A loop is used where it was seen to pay: the ways that a gate chooses are raced against plain, in turn, on operands of the real shapes.

A gate's figures are of other sizes and of another moment, and a short message on a busy host can take many times its share; so a choice that is to be
kept is raced once. All ranks learn the slowest rank's seconds of each round, so they decide alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from fourfold.cost.overlap import GATHER, MARGIN, PLAIN, OverlapGate
from fourfold.runtime.overlap.looped_einsum import EinsumLetters, all_gather_einsum, chosen, einsum_reduce_scatter

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ROUNDS = 7


@dataclass(frozen=True)
class RacedWay:
    """The way that stands, the one that the gate had chosen, and the seconds of both, a figure a round."""

    way: str
    gate: str
    seconds: Mapping[str, tuple[float, ...]]


def race(kind: str, equation: str, a: Tensor, b: Tensor, letter: str, group: ProcessGroup | None, gate: OverlapGate, *, rounds: int = ROUNDS,
         margin: float = MARGIN) -> RacedWay:
    """Whether the gate's loop stands for operands of these shapes: its median ratio to plain gains `margin`, and three rounds in four gain.

    Every rank of `group` must call it at the same time. Nothing runs where the gate chose plain.
    """
    letters = EinsumLetters.parse(equation, letter, "first" if kind == GATHER else "output")
    way = chosen(kind, letters, a, b, gate)
    if way == PLAIN:
        return RacedWay(PLAIN, PLAIN, {})
    run = all_gather_einsum if kind == GATHER else einsum_reduce_scatter
    took: dict[str, list[float]] = {PLAIN: [], way: []}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for one in (PLAIN, way) if turn % 2 else (way, PLAIN):
                dist.barrier(group=group)
                began = time.perf_counter()
                run(equation, a, b, letter, group, way=one)
                took[one].append(time.perf_counter() - began)
    every = torch.tensor([took[PLAIN][1:], took[way][1:]], dtype=torch.float64)
    dist.all_reduce(every, dist.ReduceOp.MAX, group=group)
    plain, looped = every.tolist()
    ratios = [p / w for p, w in zip(plain, looped, strict=True)]
    stands = statistics.median(ratios) > 1 + margin and sum(ratio > 1 for ratio in ratios) >= 0.75 * len(ratios)
    return RacedWay(way if stands else PLAIN, way, {PLAIN: tuple(plain), way: tuple(looped)})


__all__ = ["ROUNDS", "RacedWay", "race"]
