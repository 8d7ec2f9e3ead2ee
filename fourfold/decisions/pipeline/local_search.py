"""The local search that Tarnawski et al. (2020) compare with: from a random split, the best move of one node at a time, until none helps; ten
restarts.

A move is judged by the greatest load, then by the sum of squares of the loads (so that a machine that is not the fullest may also be relieved).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups, counts, loads, move
from fourfold.decisions.pipeline._stages import stages
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.problem import Budget, Solver, SolverAnswer

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
        rng = np.random.default_rng(seed)
        best, value, restarts = None, np.inf, 0
        while restarts < _RESTARTS and (best is None or not budget.exhausted):
            machine = _random(g, rng)
            if machine is None:                                         # nothing random fits: begin with stages
                machine = stages(problem.workload, seed, 1)[0][np.unique(g.of, return_index=True)[1]].astype(np.int64)
            going = True
            while going and not budget.exhausted:
                going, cost = _descend(machine, _PIECE, g.fast, g.slow, g.size, g.net_ptr, g.net_pin, g.net_cost, g.own_ptr, g.own_net,
                                       g.accelerators, g.machines, g.limit)
                budget.spend(_PIECE * len(g) * (g.machines - 1))
                if cost < value:
                    best, value = machine.copy(), cost
            if best is None:
                best = machine
            restarts += 1
        assert best is not None
        return SolverAnswer(Split(best[g.of].astype(np.int16)), note=f"{restarts} restarts")


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


@njit(cache=True)
def _descend(machine, moves, fast, slow, size, net_ptr, net_pin, net_cost, own_ptr, own_net, accelerators, machines, limit):  # type: ignore[no-untyped-def]
    """Up to `moves` best single moves; (whether the last one helped, greatest load)."""
    count = counts(machine, machines, net_ptr, net_pin)
    load, held = loads(machine, count, fast, slow, size, net_ptr, net_cost, accelerators, machines)
    for _ in range(moves):
        top, square = load.max(), (load * load).sum()
        best_g, best_m, best_top, best_square = -1, -1, top, square
        for g in range(len(machine)):
            a = machine[g]
            for b in range(machines):
                if b == a or (b < accelerators and held[b] + size[g] > limit) or not np.isfinite(fast[g] if b < accelerators else slow[g]):
                    continue
                move(g, b, machine, count, load, held, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, accelerators)
                value, spread = load.max(), (load * load).sum()
                move(g, a, machine, count, load, held, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, accelerators)
                if value < best_top - 1e-9 or (value < best_top + 1e-9 and spread < best_square * (1 - 1e-9)):
                    best_g, best_m, best_top, best_square = g, b, value, spread
        if best_g < 0:
            return False, load.max()
        move(best_g, best_m, machine, count, load, held, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, accelerators)
    return True, load.max()
