"""Simulated annealing that knows no domain (Kirkpatrick, Gelatt and Vecchi 1983): the compiled loop, and rounds of it within a budget.

A technique keeps its state in a named tuple of arrays and writes five compiled functions of it, which `anneal` calls: propose, energy, commit, undo,
keep. Its own wrapper of one line compiles the loop with them inside, and numba caches it beside the technique:

    @njit(cache=True)
    def _run(state, now, best, cooling):
        return anneal(_propose, _energy, _commit, _undo, _keep, state, now, best, cooling, 1e-12, False, False)

Write `@njit(inline="always")` above the five: their code becomes part of `_run`, which is compiled as if the loop had been written out in it. (As
calls, with a state of dozens of arrays as their argument, they take twice as long to compile.)
`piecewise` runs a round in pieces, looking at the clock between them; `search` runs rounds of several temperatures from several starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.problem import Budget

_SEED = 4294967291                                                     # the largest prime that a seed of 32 bits can be


class Cooling(NamedTuple):
    """`tries` moves while the temperature falls geometrically from `hot` to `cold`; `seed` of the draws."""

    tries: int
    seed: int
    hot: float
    cold: float


@njit(inline="always")
def anneal(propose, energy, commit, undo, keep, state, now, best, cooling, least, early, relative):  # type: ignore[no-untyped-def]
    """(energy of the state in which the run ends, least objective seen). `state` is changed in place.

    propose(state, step) → bool: change the state a little; False (and the state as it was) where the move drawn is not allowed.
    energy(state, best, ceiling) → float: of the changed state. What is surely above `ceiling` is rejected anyhow, so any greater number will do.
    commit(state, energy) → float: make the change permanent; the objective of the state, inf where it is no answer.
    undo(state): take the change back.
    keep(state): copy the state aside; called whenever the objective is below the best so far by more than `least`.

    `now` and `best` are the energy of the state and the least objective so far. A change is kept if it costs no more, otherwise with probability
    exp(-Δ/temperature). With `early` that number is drawn before the energy is asked for, which gives the ceiling. With `relative` temperatures are
    shares of the best objective.
    """
    np.random.seed(cooling.seed % _SEED)
    for step in range(cooling.tries):
        temperature = cooling.hot * (cooling.cold / cooling.hot) ** (step / cooling.tries)
        if relative:
            temperature *= best
        if not propose(state, step):
            continue
        luck = temperature * np.log(max(1e-300, np.random.random())) if early else -np.inf
        after = energy(state, best, now - luck)
        if early:
            good = now - after >= luck
        else:
            good = after <= now or np.random.random() < np.exp((now - after) / temperature)
        if not good:
            undo(state)
            continue
        now = after
        value = commit(state, after)
        if value < best - least:
            best = value
            keep(state)
    return now, best


def piecewise(run: Callable[[Cooling], None], hot: float, cold: float, tries: int, piece: int, budget: Budget, seed: int, *,
              hurry: bool = False) -> None:
    """One round: `run` with at most `piece` tries at a time from `hot` to `cold`, until `tries` are done or the budget is spent.

    With `hurry` a round that the clock would cut off cools down sooner instead.
    """
    done, began = 0, budget.left                                       # the budget's own clock
    while done < tries:
        count = min(piece, tries - done)
        run(Cooling(count, seed + done, hot * (cold / hot) ** (done / tries), hot * (cold / hot) ** ((done + count) / tries)))
        done += count
        if not budget.spend(count):
            break
        if hurry:
            tries = min(tries, done + int(budget.left * done / max(1e-9, began - budget.left)))


@dataclass(frozen=True)
class Rounds:
    """How the rounds of a search follow one another: temperatures in turn, each falling to `fall` of itself; the tries of the first round, their
    growth from round to round and their greatest number; tries between two looks at the clock; and in one round of `restart` the search begins at the
    next of the starts, in the others at the best so far.
    """

    heats: tuple[float, ...]
    tries: int
    growth: float
    most: int
    piece: int
    restart: int
    fall: float = 1e-3


def search(run: Callable[[np.ndarray, Cooling], tuple[np.ndarray, float]], starts: Sequence[tuple[np.ndarray, float]], rounds: Rounds, budget: Budget,
           seed: int, *, bound: float, unit: Callable[[float], float] = lambda best: 1.0) -> tuple[np.ndarray, float, int]:
    """(best state, its objective, rounds made) from `starts`: states with their objectives, best first.

    `run(state, cooling)` changes `state` in place and returns the best state of that piece with its objective. It ends where the budget is spent or
    the objective reaches `bound`. Temperatures are in units of `unit(best objective at the round's start)`.
    """
    (best, value), made, length = starts[0], 0, rounds.tries

    def piece(cooling: Cooling) -> None:
        nonlocal best, value
        found, cost = run(state, cooling)
        if cost < value - 1e-12:
            best, value = found, cost

    while not budget.exhausted and value > bound * (1 + 1e-9):
        state = (best if made % rounds.restart else starts[(made // rounds.restart) % len(starts)][0]).copy()
        hot = unit(value) * rounds.heats[made % len(rounds.heats)]
        tries = int(min(length, budget.evaluations - budget.spent))
        piecewise(piece, hot, hot * rounds.fall, tries, rounds.piece, budget, seed * 1_000_003 + made * 7919)
        made += 1
        length = min(int(length * rounds.growth), rounds.most)
    return best, value, made
