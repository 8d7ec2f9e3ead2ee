"""Annealing of any split of groups over machines: single moves, swaps, regions. Shared by lns and throughput_ip."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups, Loads, Nets, loads, move, supported
from fourfold.problem import Budget
from fourfold.solvers.anneal import Rounds, anneal, search

_ROUND = 400_000
_ROUNDS = Rounds(heats=(1.0, 0.02, 0.2, 0.004), tries=_ROUND, growth=1.25, most=20 * _ROUND, piece=50_000, restart=2)


def groups_first(groups: Groups) -> np.ndarray:
    """A node of each group."""
    return np.unique(groups.of, return_index=True)[1]


def improve(groups: Groups, starts: list[np.ndarray], bound: float, budget: Budget, seed: int) -> tuple[np.ndarray, float, int]:
    """(machine of each group i8[G], its greatest load, rounds) from valid `starts`."""
    nets = groups.nets
    pool = [(machine, float(loads(nets, machine).load.max())) for machine in (start.astype(np.int64) for start in starts)]
    pool.sort(key=lambda entry: entry[1])
    if groups.machines == 1:
        return *pool[0], 0
    return search(lambda machine, cooling: _run(nets, machine, bound, cooling), pool, _ROUNDS, budget, seed, bound=bound)


class _State(NamedTuple):
    """Groups on machines and the move being tried: moved[: ends[0]] between machines ends[1] and ends[2]; `best` is the best split seen."""

    nets: Nets
    at: Loads
    scale: float
    best: np.ndarray
    moved: np.ndarray
    whence: np.ndarray
    mark: np.ndarray
    ends: np.ndarray


@njit(cache=True)
def _run(nets, machine, scale, cooling):  # type: ignore[no-untyped-def]
    """(best split of this run, its greatest load); `machine` is left where the run ended."""
    many = len(machine)
    at = loads(nets, machine)
    s = _State(nets, at, scale, machine.copy(), np.empty(many, np.int64), np.empty(many, np.int64), np.zeros(many, np.int64), np.zeros(3, np.int64))
    value = anneal(_propose, _energy, _commit, _undo, _keep, s, _energy(s, 0.0, 0.0), at.load.max(), cooling, 1e-12, False, False)[1]
    return s.best, value


@njit(inline="always")
def _propose(s, step):  # type: ignore[no-untyped-def]
    """Move one group, exchange two, or move the region around one."""
    nets, machine, load, held, moved, whence, mark = s.nets, s.at.machine, s.at.load, s.at.held, s.moved, s.whence, s.mark
    many = len(machine)
    g = np.random.randint(many)
    if np.random.random() < 0.3:                                        # from the fullest machine
        top = np.argmax(load)
        for _ in range(20):
            if machine[g] == top:
                break
            g = np.random.randint(many)
    a = machine[g]
    b = np.random.randint(nets.machines)
    if np.random.random() < 0.6 and nets.own_ptr[g] < nets.own_ptr[g + 1]:   # where a neighbour is
        h = nets.own_net[np.random.randint(nets.own_ptr[g], nets.own_ptr[g + 1])]
        b = machine[nets.net_pin[np.random.randint(nets.net_ptr[h], nets.net_ptr[h + 1])]]
    if a == b:
        return False
    n = 0
    kind = np.random.random()
    if kind < 0.5:
        moved[0], n = g, 1
    elif kind < 0.7:                                                    # exchange with one of b
        other = -1
        for _ in range(12):
            o = np.random.randint(many)
            if machine[o] == b:
                other = o
                break
        if other < 0:
            return False
        moved[0], moved[1], n = g, other, 2
    else:                                                               # a region around g
        want = int(np.exp(np.random.random() * np.log(many / 2 + 1))) + 1
        moved[0], n = g, 1
        mark[g] = step + 1
        head = 0
        while head < n and n < want:
            u = moved[head]
            head += 1
            for p in range(nets.own_ptr[u], nets.own_ptr[u + 1]):
                h = nets.own_net[p]
                for q in range(nets.net_ptr[h], nets.net_ptr[h + 1]):
                    v = nets.net_pin[q]
                    if machine[v] == a and mark[v] != step + 1 and n < want:
                        mark[v] = step + 1
                        moved[n] = v
                        n += 1
    fits = True
    for i in range(n):
        u = moved[i]
        whence[i] = machine[u]
        mark[u] = 0
        fits &= supported(nets, u, b if machine[u] == a else a)
    if not fits:
        return False
    s.ends[0], s.ends[1], s.ends[2] = n, a, b
    for i in range(n):
        move(nets, s.at, moved[i], b if whence[i] == a else a)
    if (b < nets.accelerators and held[b] > nets.limit) or (a < nets.accelerators and held[a] > nets.limit):
        _undo(s)
        return False
    return True


@njit(inline="always")
def _energy(s, best, ceiling):  # type: ignore[no-untyped-def]
    """Σ (load / scale)^8, a smooth stand-in for the greatest load."""
    total = 0.0
    for value in s.at.load:
        x = value / s.scale
        x *= x
        x *= x
        total += x * x
    return total


@njit(inline="always")
def _commit(s, energy):  # type: ignore[no-untyped-def]
    return s.at.load.max()


@njit(inline="always")
def _undo(s):  # type: ignore[no-untyped-def]
    for i in range(s.ends[0] - 1, -1, -1):
        move(s.nets, s.at, s.moved[i], s.whence[i])


@njit(inline="always")
def _keep(s):  # type: ignore[no-untyped-def]
    s.best[:] = s.at.machine
