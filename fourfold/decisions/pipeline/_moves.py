"""Annealing of any split of groups over machines in numba: single moves, swaps, regions. Shared by lns and throughput_ip."""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups, counts, loads, move
from fourfold.problem import Budget

_ROUND = 400_000


def groups_first(groups: Groups) -> np.ndarray:
    """A node of each group."""
    return np.unique(groups.of, return_index=True)[1]


def improve(groups: Groups, starts: list[np.ndarray], bound: float, budget: Budget, seed: int) -> tuple[np.ndarray, float, int]:
    """(machine of each group i8[G], its greatest load, rounds) from valid `starts`."""
    pool = [(start.astype(np.int64), _value(groups, start.astype(np.int64))) for start in starts]
    pool.sort(key=lambda entry: entry[1])
    best, value = pool[0]
    length, rounds = _ROUND, 0
    while not budget.exhausted and value > bound * (1 + 1e-9) and groups.machines > 1:
        origin = best if rounds % 2 else pool[(rounds // 2) % len(pool)][0]
        heat = (1.0, 0.02, 0.2, 0.004)[rounds % 4]
        tries = int(min(length, budget.evaluations - budget.spent))
        step = 50_000
        state = origin.copy()
        for first in range(0, tries, step):                            # in pieces, so that the clock is looked at
            got = _anneal(state, min(step, tries - first), seed * 1_000_003 + rounds * 7919 + first, heat * (1e-3 ** (first / tries)),
                          heat * (1e-3 ** (min(first + step, tries) / tries)), bound, *_arrays(groups))
            if got[1] < value - 1e-12:
                best, value = got[0], got[1]
            if not budget.spend(min(step, tries - first)):
                break
        rounds += 1
        length = min(length * 5 // 4, 20 * _ROUND)
    return best, value, rounds


def _arrays(g: Groups):  # type: ignore[no-untyped-def]
    return (g.fast, g.slow, g.size, g.net_ptr, g.net_pin, g.net_cost, g.own_ptr, g.own_net, g.accelerators, g.machines, g.limit)


def _value(g: Groups, machine: np.ndarray) -> float:
    count = counts(machine, g.machines, g.net_ptr, g.net_pin)
    return float(loads(machine, count, g.fast, g.slow, g.size, g.net_ptr, g.net_cost, g.accelerators, g.machines)[0].max())


@njit(cache=True)
def _energy(load, scale):  # type: ignore[no-untyped-def]
    total = 0.0
    for value in load:
        x = value / scale
        x *= x
        x *= x
        total += x * x
    return total


@njit(cache=True)
def _anneal(machine, tries, seed, hot, cold, scale, fast, slow, size, net_ptr, net_pin, net_cost, own_ptr, own_net,  # type: ignore[no-untyped-def]
            accelerators, machines, limit):
    """(best state of this run, its greatest load); `machine` is left where the run ended."""
    np.random.seed(seed % 4294967291)
    many = len(machine)
    count = counts(machine, machines, net_ptr, net_pin)
    load, held = loads(machine, count, fast, slow, size, net_ptr, net_cost, accelerators, machines)
    energy = _energy(load, scale)
    best, value = machine.copy(), load.max()
    moved = np.empty(many, np.int64)
    whence = np.empty(many, np.int64)
    mark = np.zeros(many, np.int64)
    for t in range(tries):
        temperature = hot * (cold / hot) ** (t / tries)
        g = np.random.randint(many)
        if np.random.random() < 0.3:                                    # from the fullest machine
            top = np.argmax(load)
            for _ in range(20):
                if machine[g] == top:
                    break
                g = np.random.randint(many)
        a = machine[g]
        b = np.random.randint(machines)
        if np.random.random() < 0.6 and own_ptr[g] < own_ptr[g + 1]:    # where a neighbour is
            h = own_net[np.random.randint(own_ptr[g], own_ptr[g + 1])]
            b = machine[net_pin[np.random.randint(net_ptr[h], net_ptr[h + 1])]]
        if a == b:
            continue
        n = 0
        kind = np.random.random()
        if kind < 0.5:
            moved[0], n = g, 1
        elif kind < 0.7:                                                # exchange with one of b
            other = -1
            for _ in range(12):
                o = np.random.randint(many)
                if machine[o] == b:
                    other = o
                    break
            if other < 0:
                continue
            moved[0], moved[1], n = g, other, 2
        else:                                                           # a region around g
            want = int(np.exp(np.random.random() * np.log(many / 2 + 1))) + 1
            moved[0], n = g, 1
            mark[g] = t + 1
            head = 0
            while head < n and n < want:
                u = moved[head]
                head += 1
                for p in range(own_ptr[u], own_ptr[u + 1]):
                    h = own_net[p]
                    for q in range(net_ptr[h], net_ptr[h + 1]):
                        v = net_pin[q]
                        if machine[v] == a and mark[v] != t + 1 and n < want:
                            mark[v] = t + 1
                            moved[n] = v
                            n += 1
        fits = True
        for i in range(n):
            u = moved[i]
            whence[i] = machine[u]
            to = b if machine[u] == a else a
            if not np.isfinite(fast[u] if to < accelerators else slow[u]):
                fits = False
        for i in range(n):
            mark[moved[i]] = 0
        if not fits:
            continue
        for i in range(n):
            to = b if whence[i] == a else a
            move(moved[i], to, machine, count, load, held, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, accelerators)
        after = _energy(load, scale)
        full = (b < accelerators and held[b] > limit) or (a < accelerators and held[a] > limit)
        if full or \
                (after > energy and np.random.random() >= np.exp((energy - after) / temperature)):
            for i in range(n - 1, -1, -1):
                move(moved[i], whence[i], machine, count, load, held, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, accelerators)
            continue
        energy = after
        top = load.max()
        if top < value - 1e-12:
            value = top
            best[:] = machine
    return best, value
