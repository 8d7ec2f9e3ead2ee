"""Latency by annealing: a group moves alone, or with all that follows or precedes it on its device, so that subgraphs stay contiguous.

It starts from the best of stages along topological orders and of all on the cores, and evaluates the split exactly in numba (a few microseconds a
hundred nodes); worse splits are kept with probability exp(-Δ/temperature) (Kirkpatrick et al. 1983), ones that wait for ever or hold too much
never. The baseline that the notes of Tarnawski et al. (2020) start from, all on the cores, is always among the starts, so the answer is never
worse.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline._network import Network, chain, latency
from fourfold.decisions.pipeline.problem import Latency, Split
from fourfold.problem import Budget, Solver, SolverAnswer
from fourfold.solvers.anneal import Cooling, Rounds, anneal, search

_ROUND = 10_000
_ROUNDS = Rounds(heats=(0.2, 0.01, 0.04, 0.003), tries=_ROUND, growth=1.5, most=80 * _ROUND, piece=4_000, restart=3)


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
        if not net.pool:
            return SolverAnswer(split(problem, net, pool[0][0]), note="0 rounds")
        state = _State.of_network(net)

        def run(block: np.ndarray, cooling: Cooling) -> tuple[np.ndarray, float]:
            state.block[:] = block
            value = _run(state, cooling)
            block[:] = state.block
            return state.best.copy(), value

        best, _, rounds = search(run, pool, _ROUNDS, budget, seed, bound=problem.bound(), unit=lambda best: best)
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


class _State(NamedTuple):
    """Groups in blocks (as of `Network`) and the move being tried: moved[: ends[0]] go from block ends[2] to ends[3], moved[ends[0]: ends[1]] come
    back, which makes `extra` bytes more on the second's device; `best` is the best split seen, `held` the bytes on each device.
    """

    of: np.ndarray
    member_ptr: np.ndarray
    member: np.ndarray
    after_ptr: np.ndarray
    after: np.ndarray
    before_ptr: np.ndarray
    before: np.ndarray
    accelerator: np.ndarray
    core: np.ndarray
    cost: np.ndarray
    pool: int
    parts: int
    fast: np.ndarray
    slow: np.ndarray
    size: np.ndarray
    limit: float
    block: np.ndarray
    held: np.ndarray
    best: np.ndarray
    moved: np.ndarray
    mark: np.ndarray
    ends: np.ndarray
    extra: np.ndarray

    @classmethod
    def of_network(cls, net: Network) -> _State:
        g, whole = net.groups, [np.zeros(len(net.groups), np.int64) for _ in range(4)]
        fields: list[Any] = [*net.arrays, net.pool, net.parts, g.fast, g.slow, g.size, g.limit, whole[0], np.zeros(g.accelerators + 1), *whole[1:],
                             np.zeros(4, np.int64), np.zeros(1)]
        return cls(*fields)


@njit(cache=True)
def _run(s, cooling):  # type: ignore[no-untyped-def]
    """Latency of the best split of this run, which is left in `best`; `block` is left where the run ended."""
    s.held[:] = 0.0
    for g in range(len(s.block)):
        s.held[s.block[g] // s.parts] += s.size[g]
    s.best[:] = s.block
    s.mark[:] = -1
    now = _energy(s, 0.0, 0.0)
    return anneal(_propose, _energy, _commit, _undo, _keep, s, now, now, cooling, 1e-12, False, False)[1]


@njit(inline="always")
def _propose(s, step):  # type: ignore[no-untyped-def]
    """Move a group alone or with what follows (precedes) it on its device; or exchange two."""
    block, moved, mark, parts, pool = s.block, s.moved, s.mark, s.parts, s.pool
    of, member_ptr, member, after_ptr, after, before_ptr, before = s.of, s.member_ptr, s.member, s.after_ptr, s.after, s.before_ptr, s.before
    fast, slow, size, held, ends = s.fast, s.slow, s.size, s.held, s.ends
    many = len(block)
    u = np.random.randint(len(of))
    g = of[u]
    a = block[g]
    b = np.random.randint(pool + 1)
    forward = np.random.random() < 0.5
    if np.random.random() < 0.8:                                        # towards a neighbour's block
        low, high = (after_ptr[u], after_ptr[u + 1]) if forward else (before_ptr[u], before_ptr[u + 1])
        if high > low:
            e = np.random.randint(low, high)
            b = block[of[after[e] if forward else before[e]]]
    if a == b:
        return False
    moved[0], count = g, 1
    mark[g] = step
    kind = np.random.random()
    if kind < 0.55:                                                     # with what follows (precedes) it on its device
        most = many if kind < 0.3 else 1 + int(np.exp(np.random.random() * np.log(many)))
        ahead = forward if kind < 0.45 else not forward
        head = 0
        while head < count and count < most:
            for p in range(member_ptr[moved[head]], member_ptr[moved[head] + 1]):
                x = member[p]
                low, high = (after_ptr[x], after_ptr[x + 1]) if ahead else (before_ptr[x], before_ptr[x + 1])
                for e in range(low, high):
                    h = of[after[e] if ahead else before[e]]
                    if block[h] == a and mark[h] != step and count < most:
                        mark[h] = step
                        moved[count] = h
                        count += 1
            head += 1
        if np.random.random() < 0.7:                                    # and the sources that only these read
            whole = count
            for i in range(whole):
                for p in range(member_ptr[moved[i]], member_ptr[moved[i] + 1]):
                    x = member[p]
                    for e in range(before_ptr[x], before_ptr[x + 1]):
                        y = before[e]
                        h = of[y]
                        if before_ptr[y] == before_ptr[y + 1] and block[h] == a and mark[h] != step and count < many:
                            mark[h] = step
                            moved[count] = h
                            count += 1
    gone = count                                                        # moved[:gone] go from a to b, moved[gone:count] come back
    if kind >= 0.55 and np.random.random() < 0.4:
        for _ in range(8):
            h = np.random.randint(many)
            if block[h] == b:
                moved[count] = h
                count += 1
                break
    extra, able = 0.0, True
    for i in range(count):
        to = b if i < gone else a
        extra += size[moved[i]] if i < gone else -size[moved[i]]
        if not np.isfinite(fast[moved[i]] if to < pool else slow[moved[i]]):
            able = False
    if a // parts != b // parts:
        able &= (b >= pool or held[b // parts] + extra <= s.limit) and (a >= pool or held[a // parts] - extra <= s.limit)
    if not able:
        return False
    ends[0], ends[1], ends[2], ends[3], s.extra[0] = gone, count, a, b, extra
    for i in range(count):
        block[moved[i]] = b if i < gone else a
    return True


@njit(inline="always")
def _energy(s, best, ceiling):  # type: ignore[no-untyped-def]
    return latency(s.block, s.pool, s.parts, s.of, s.member_ptr, s.member, s.after_ptr, s.after, s.before_ptr, s.before, s.accelerator, s.core,
                   s.cost)


@njit(inline="always")
def _commit(s, energy):  # type: ignore[no-untyped-def]
    s.held[s.ends[2] // s.parts] -= s.extra[0]
    s.held[s.ends[3] // s.parts] += s.extra[0]
    return energy


@njit(inline="always")
def _undo(s):  # type: ignore[no-untyped-def]
    block, moved = s.block, s.moved
    gone, count, a, b = s.ends[0], s.ends[1], s.ends[2], s.ends[3]
    for i in range(count):
        block[moved[i]] = a if i < gone else b


@njit(inline="always")
def _keep(s):  # type: ignore[no-untyped-def]
    s.best[:] = s.block
