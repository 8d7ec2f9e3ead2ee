"""Local search that knows no domain: steepest descent where a move gives one item another choice, compiled, and restarts of it within a budget.

A technique writes three compiled functions of its state (a named tuple of arrays) and, as for `anneal`, a wrapper of one line that numba caches:

    @njit(cache=True)
    def _descend(state, most):
        return descend(_shift, _back, _judge, state, items, choices, most, 1e-9)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from numba import njit

from fourfold.problem import Budget

S = TypeVar("S")


@njit(inline="always")
def descend(shift, back, judge, state, items, choices, most, least):  # type: ignore[no-untyped-def]
    """Make the best move up to `most` times; (whether the last one helped, objective of the state). `state` changes in place.

    shift(state, i, c) → bool: item i of 0 … items − 1 gets choice c of 0 … choices − 1; False (and the state as it was) where that is not allowed or
    no change. back(state, i): take it back.
    judge(state) → (objective, tie): less is better. A move is better if it lowers the objective by more than `least`, or changes it by less and
    lowers the tie by more than the share `least`.
    """
    for _ in range(most):
        best, tie = judge(state)
        item = choice = -1
        for i in range(items):
            for c in range(choices):
                if not shift(state, i, c):
                    continue
                value, second = judge(state)
                back(state, i)
                if value < best - least or (value < best + least and second < tie * (1 - least)):
                    item, choice, best, tie = i, c, value, second
        if item < 0:
            return False, judge(state)[0]
        shift(state, item, choice)
    return True, judge(state)[0]


def restarts(start: Callable[[], S], improve: Callable[[S], tuple[bool, float]], copy: Callable[[S], S], budget: Budget, *, most: int,
             cost: int) -> tuple[S, float, int]:
    """(best state, its objective, descents) of up to `most` descents, each from a new `start()` until `improve` helps no more.

    `improve(state)` → (whether to go on, objective) changes the state in place and counts as `cost` evaluations. The first start is an answer even
    where the budget allows no step.
    """
    best: S | None = None
    value, made = math.inf, 0
    while best is None or (made < most and not budget.exhausted):
        state, going = start(), True
        best = copy(state) if best is None else best
        while going and not budget.exhausted:
            going, objective = improve(state)
            budget.spend(cost)
            if objective < value:
                best, value = copy(state), objective
        made += 1
    return best, value, made
