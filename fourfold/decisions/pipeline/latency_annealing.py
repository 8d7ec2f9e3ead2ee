"""Latency by annealing: a group moves alone, or with all that follows or precedes it on its device, so that subgraphs stay contiguous.

It starts from the best of stages along topological orders and of all on the cores, and evaluates the split exactly in numba (a few microseconds a
hundred nodes); worse splits are kept with probability exp(-Δ/temperature) (Kirkpatrick et al. 1983), ones that wait for ever or hold too much
never. The baseline that the notes of Tarnawski et al. (2020) start from, all on the cores, is always among the starts, so the answer is never
worse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline._network import Network, chain, latency
from fourfold.decisions.pipeline.problem import Latency, Split
from fourfold.problem import Budget, Solver, SolverAnswer

_ROUND = 10_000


class LatencyAnnealing(Solver):
    title = "Latency: stages along topological orders, then annealing of contiguous subgraphs"
    lever = "machine"
    answers = "partition-latency"
    cites = ("tarnawski2020", "kirkpatrick1983")
    needs = ("numba", "scipy")
    counts = "moves tried"

    def solve(self, problem: Latency, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        net = Network.of_workload(problem.workload, problem.parts)
        pool = starts(problem, net, seed)
        best, value = pool[0]
        bound, rounds, length = problem.bound(), 0, _ROUND
        while not budget.exhausted and value > bound * (1 + 1e-9) and net.pool:
            origin = best if rounds % 3 else pool[(rounds // 3) % len(pool)][0]
            heat = value * (0.2, 0.01, 0.04, 0.003)[rounds % 4]
            tries, step, state = int(min(length, budget.evaluations - budget.spent)), 4_000, origin.copy()
            for first in range(0, tries, step):
                size = min(step, tries - first)
                cool = heat * 1e-3 ** ((first + size) / tries)
                kernel: Any = _anneal
                got, cost = kernel(state, size, seed * 1_000_003 + rounds * 7919 + first, heat * 1e-3 ** (first / tries), cool, net.pool, net.parts,
                                   *net.arrays, net.groups.fast, net.groups.slow, net.groups.size, net.groups.limit)
                if cost < value - 1e-12:
                    best, value = got, cost
                if not budget.spend(size):
                    break
            rounds += 1
            length = min(length * 3 // 2, 80 * _ROUND)
        return SolverAnswer(split(problem, net, best), note=f"{rounds} rounds")


def split(problem: Latency, net: Network, block: np.ndarray) -> Split:
    """A state as an answer."""
    own = block[net.groups.of]
    return Split((own // problem.parts).astype(np.int16), np.where(own < net.pool, own % problem.parts, 0).astype(np.int16))


def starts(problem: Latency, net: Network, seed: int) -> list[tuple[np.ndarray, float]]:
    """Valid states with their latency, best first: stages along orders, and all on the pool where there is one."""
    whole = Groups.of_workload(problem.workload, acyclic=True)
    rng = np.random.default_rng(seed)
    first = np.unique(net.groups.of, return_index=True)[1]
    found = []
    for i in range(8):
        order = whole.late() if i == 0 else whole.order() if i == 1 else whole.order(rng)
        block = chain(order, whole.fast, whole.slow, whole.size, whole.net_ptr, whole.net_cost, whole.own_ptr, whole.own_net, net.pool, whole.limit)
        found.append(block[whole.of][first])
    found.append(np.full(len(net.groups), net.pool, np.int64))
    valid = [(block, net.latency(block)) for block in found if net.fits(block)]
    return sorted(((block, cost) for block, cost in valid if np.isfinite(cost)), key=lambda entry: entry[1]) or [(found[-1], np.inf)]


@njit(cache=True)
def _anneal(block, tries, seed, hot, cold, pool, parts, of, member_ptr, member, after_ptr, after, before_ptr, before,  # type: ignore[no-untyped-def]
            accelerator, core, cost, fast, slow, size, limit):
    """(best state of this run, its latency); `block` is left where the run ended."""
    np.random.seed(seed % 4294967291)
    many, nodes = len(block), len(of)
    held = np.zeros(pool // parts + 1)
    for g in range(many):
        held[block[g] // parts] += size[g]
    now = latency(block, pool, parts, of, member_ptr, member, after_ptr, after, before_ptr, before, accelerator, core, cost)
    best, value = block.copy(), now
    moved, mark = np.empty(many, np.int64), np.full(many, -1, np.int64)
    for t in range(tries):
        temperature = hot * (cold / hot) ** (t / tries)
        u = np.random.randint(nodes)
        g = of[u]
        a = block[g]
        b = np.random.randint(pool + 1)
        forward = np.random.random() < 0.5
        if np.random.random() < 0.8:                                    # towards a neighbour's block
            low, high = (after_ptr[u], after_ptr[u + 1]) if forward else (before_ptr[u], before_ptr[u + 1])
            if high > low:
                e = np.random.randint(low, high)
                b = block[of[after[e] if forward else before[e]]]
        if a == b:
            continue
        moved[0], n = g, 1
        mark[g] = t
        kind = np.random.random()
        if kind < 0.55:                                                 # with what follows (precedes) it on its device
            most = many if kind < 0.3 else 1 + int(np.exp(np.random.random() * np.log(many)))
            ahead = forward if kind < 0.45 else not forward
            head = 0
            while head < n and n < most:
                for p in range(member_ptr[moved[head]], member_ptr[moved[head] + 1]):
                    x = member[p]
                    low, high = (after_ptr[x], after_ptr[x + 1]) if ahead else (before_ptr[x], before_ptr[x + 1])
                    for e in range(low, high):
                        h = of[after[e] if ahead else before[e]]
                        if block[h] == a and mark[h] != t and n < most:
                            mark[h] = t
                            moved[n] = h
                            n += 1
                head += 1
            if np.random.random() < 0.7:                                # and the sources that only these read
                whole = n
                for i in range(whole):
                    for p in range(member_ptr[moved[i]], member_ptr[moved[i] + 1]):
                        x = member[p]
                        for e in range(before_ptr[x], before_ptr[x + 1]):
                            y = before[e]
                            h = of[y]
                            if before_ptr[y] == before_ptr[y + 1] and block[h] == a and mark[h] != t and n < many:
                                mark[h] = t
                                moved[n] = h
                                n += 1
        gone = n                                                        # moved[:gone] go from a to b, moved[gone:n] come back
        if kind >= 0.55 and np.random.random() < 0.4:
            for _ in range(8):
                h = np.random.randint(many)
                if block[h] == b:
                    moved[n] = h
                    n += 1
                    break
        extra, able = 0.0, True
        for i in range(n):
            to = b if i < gone else a
            extra += size[moved[i]] if i < gone else -size[moved[i]]
            if not np.isfinite(fast[moved[i]] if to < pool else slow[moved[i]]):
                able = False
        if a // parts != b // parts:
            able &= (b >= pool or held[b // parts] + extra <= limit) and (a >= pool or held[a // parts] - extra <= limit)
        if not able:
            continue
        for i in range(n):
            block[moved[i]] = b if i < gone else a
        after_cost = latency(block, pool, parts, of, member_ptr, member, after_ptr, after, before_ptr, before, accelerator, core, cost)
        if after_cost <= now or np.random.random() < np.exp((now - after_cost) / temperature):
            now = after_cost
            held[a // parts] -= extra
            held[b // parts] += extra
            if now < value - 1e-12:
                value = now
                best[:] = block
        else:
            for i in range(n):
                block[moved[i]] = a if i < gone else b
    return best, value
