"""The local search that Tarnawski et al. (2020) compare with: from a random split, the best move of one node at a time, until none helps; ten
restarts.

A move is judged by the greatest load, then by the sum of squares of the loads (so that a machine that is not the fullest may also be relieved).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups, Loads, Nets, loads, move, supported
from fourfold.decisions.pipeline._stages import stages
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.problem import Budget, Solver, SolverAnswer
from fourfold.solvers.local_search import descend, restarts

_RESTARTS, _PIECE = 10, 20


class LocalSearch(Solver):
    title = "Local search: the best single move, ten random restarts"
    lever = "machine"
    answers = "partition"
    cites = ("tarnawski2020",)
    needs = ("numba", "scipy")
    counts = "moves looked at"

    def declines(self, problem: MaxLoad) -> str | None:
        return "it keeps no device contiguous, and this problem asks for that" if problem.contiguous else None

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        g = Groups.of_workload(problem.workload)
        rng, nets = np.random.default_rng(seed), g.nets

        def start() -> np.ndarray:
            machine = _random(g, rng)
            if machine is None:                                         # nothing random fits: begin with stages
                machine = stages(problem.workload, seed, 1)[0][np.unique(g.of, return_index=True)[1]].astype(np.int64)
            return machine

        best, _, descents = restarts(start, lambda machine: _descend(nets, machine, _PIECE), np.copy, budget, most=_RESTARTS,
                                     cost=_PIECE * len(g) * (g.machines - 1))
        return SolverAnswer(Split(best[g.of].astype(np.int16)), note=f"{descents} restarts")


def _random(g: Groups, rng: np.random.Generator) -> np.ndarray | None:
    """Groups on random machines that can take them, large ones first; None where that does not come out."""
    for _ in range(20):
        held, machine = np.zeros(g.machines), np.zeros(len(g), np.int64)
        for group in np.argsort(-g.size, kind="stable"):
            on = np.arange(g.machines) < g.accelerators
            fits = np.flatnonzero(np.where(on, np.isfinite(g.fast[group]) & (held + g.size[group] <= g.limit), np.isfinite(g.slow[group])))
            if not fits.size:
                break
            machine[group] = rng.choice(fits)
            held[machine[group]] += g.size[group]
        else:
            return machine
    return None


class _State(NamedTuple):
    """Groups on machines, and in `whence` i8[1] the machine that the group moved last came from."""

    nets: Nets
    at: Loads
    whence: np.ndarray


@njit(cache=True)
def _descend(nets, machine, most):  # type: ignore[no-untyped-def]
    """Up to `most` best single moves; (whether the last one helped, greatest load)."""
    state = _State(nets, loads(nets, machine), np.zeros(1, np.int64))
    return descend(_shift, _back, _judge, state, len(machine), nets.machines, most, 1e-9)


@njit(inline="always")
def _shift(s, g, b):  # type: ignore[no-untyped-def]
    a = s.at.machine[g]
    if a == b or (b < s.nets.accelerators and s.at.held[b] + s.nets.size[g] > s.nets.limit) or not supported(s.nets, g, b):
        return False
    s.whence[0] = a
    move(s.nets, s.at, g, b)
    return True


@njit(inline="always")
def _back(s, g):  # type: ignore[no-untyped-def]
    move(s.nets, s.at, g, s.whence[0])


@njit(inline="always")
def _judge(s):  # type: ignore[no-untyped-def]
    load = s.at.load
    return load.max(), (load * load).sum()
