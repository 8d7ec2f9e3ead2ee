"""From a sequence of core nodes to a checked candidate, and the words of a limit that nothing met."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import INVALID, measure
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.errors import Infeasible

SHRINK = (1.0, 0.99, 0.97, 0.94, 0.9)                                   # shares of the limit aimed at where offsets take more than what is alive


class PricedPlan(NamedTuple):
    """A sequence of core nodes, the answer it makes, the arena's bytes and the price."""

    sequence: NDArray[np.int32]
    answer: Rematerialisation
    peak: int
    price: float


def candidate(problem: Rematerialise, sequence: NDArray[np.int32]) -> PricedPlan:
    """The plan of a valid sequence of core nodes, useless steps dropped. It takes INVALID bytes where its copies do not fit the second memory."""
    _, _, kept, _ = measure(problem.linked, sequence)
    answer = problem.plan(problem.expand(kept))
    held = problem.far is None or problem.far_peak(answer) <= problem.far.room
    return PricedPlan(kept, answer, problem.peak(answer) if held else INVALID, problem.cost(answer))


def fits(problem: Rematerialise, bytes_: int) -> bool:
    return bytes_ < INVALID and (problem.limit is None or bytes_ <= problem.limit)


def first_fitting(problem: Rematerialise, ranked: Iterable[tuple[float, NDArray[np.int32]]]) -> PricedPlan | None:
    """Of sequences with their prices, the cheapest whose offsets fit the limit too."""
    for _, sequence in sorted(ranked, key=lambda one: one[0]):
        if measure(problem.linked, sequence)[0] == INVALID:
            continue
        one = candidate(problem, sequence)
        if fits(problem, one.peak):
            return one
    return None


def shrinking(problem: Rematerialise, limit: int, search: Callable[[int], Iterable[tuple[float, NDArray[np.int32]]]]) -> PricedPlan | None:
    """What `search(bytes alive at most)` finds for the limit, or for a little less where its offsets do not fit; None where nothing does."""
    for share in SHRINK:
        found = list(search(int(limit * share)))
        if not found and share == 1.0:
            return None
        if (one := first_fitting(problem, found)) is not None:
            return one
    return None


def target(problem: Rematerialise) -> int:
    """The limit; without one, what the graph's own order takes."""
    return problem.limit if problem.limit is not None else problem.peak(problem.baseline())


def refusal(problem: Rematerialise, least: int | None = None) -> Infeasible:
    """Why there is no answer: proven where the bound says so, else what was found instead."""
    floor, limit = problem.least_peak(), problem.limit or 0
    if limit < floor:
        return Infeasible(f"No plan of {problem.graph.name or 'this graph'} fits {limit:,} bytes: any takes at least {floor:,}.",
                          f"Give at least {floor:,} bytes, or a smaller batch.")
    known = f"; the least found is {least:,}" if least is not None else ""
    return Infeasible(f"No plan within {limit:,} bytes was found{known}. Whether there is one is unknown (at least {floor:,} are needed).",
                      "Give more bytes or more time, or another technique.")
