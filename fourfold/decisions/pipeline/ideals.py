"""The dynamic programme over ideals (down-closed sets) of Tarnawski et al. (2020): the best contiguous pipeline split.

dp[a][c][I] = min over ideals J ⊂ I of max(dp of one machine less at J, load(I \\ J)): what runs on the first a accelerators and c cores is an ideal.
Classes, and strongly connected components that they close, are contracted; backward nodes ride with their forward class. Relaxed forwards: from J the
differences I \\ J grow one group at a time, and a difference whose compute alone exceeds the best split known, or which leaves too much
for the machines left, is dropped, which is exact. Where there are too many ideals, those along many topological orders stand for all (a
linearised fall-back, no longer proven).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups
from fourfold.decisions.pipeline._stages import stages
from fourfold.decisions.pipeline.problem import MaxLoad, Split
from fourfold.problem import Budget, Solver, SolverAnswer

_MOST, _CHAINS, _CHUNK = 300_000, 150, 2_000


class Ideals(Solver):
    title = "Dynamic programme over ideals: the best contiguous split"
    lever = "machine"
    answers = "partition"
    cites = ("tarnawski2020",)
    needs = ("numba", "scipy")
    counts = "ideals"

    def solve(self, problem: MaxLoad, budget: Budget, seed: int = 0) -> SolverAnswer[Split]:
        groups = Groups.of_workload(problem.workload, acyclic=True)
        best = stages(problem.workload, seed, 4)[0]
        value = problem.cost(Split(best))
        table = _grow(groups, _MOST)
        everything = table is not None
        if table is None:
            rng = np.random.default_rng(seed)
            table = _along(groups, [groups.late(), groups.order()] + [groups.order(rng) for _ in range(_CHAINS)])
        found, done = _search(groups, *table, value, budget)
        if found is not None:
            best = found[groups.of]
        many = len(table[0]) - 1
        said = f"all {many} ideals" if everything else f"{many} ideals along {_CHAINS + 2} topological orders of too many"
        if not done:
            said += ", stopped by the budget"
        elif everything:
            said += ": the least of the contiguous splits whose stages can be put in order"
        return SolverAnswer(Split(best.astype(np.int16)), note=said)


def _search(g: Groups, up_ptr: np.ndarray, up_group: np.ndarray, up_ideal: np.ndarray, compute: np.ndarray, value: float,
            budget: Budget) -> tuple[np.ndarray | None, bool]:
    """(machine of each group if better than `value`, whether the search came to its end)."""
    many = len(up_ptr) - 1
    dp = np.full((many, g.accelerators + 1, g.cores + 1), np.inf)
    back = np.full((many, g.accelerators + 1, g.cores + 1), -1, np.int32)
    dp[0, 0, 0] = 0.0
    seen = np.full(many, -1, np.int32)
    both = np.isfinite(g.fast) & (g.slow > 0)
    ratio = float((g.fast[both] / g.slow[both]).max(initial=0.0)) if g.cores else 0.0   # accelerator time saved by a core's unit of time
    here, there = (np.where(np.isfinite(time), time, 0.0) for time in (g.fast, g.slow))
    stuck = np.stack([np.isinf(g.fast), np.isinf(g.slow)], 1).astype(np.int64)
    for first in range(0, many, _CHUNK):
        last = min(many, first + _CHUNK)
        _relax(first, last, up_ptr, up_group, up_ideal, compute, dp, back, seen, value, ratio, here, there, stuck, g.size, g.net_ptr, g.net_cost,
               g.own_ptr, g.own_net, g.accelerators, g.cores, g.limit)
        budget.spend(last - first)
        if budget.exhausted and last < many:
            return None, False
    end = dp[many - 1]
    if not end.min() < value:
        return None, True
    a, c = (int(x) for x in np.unravel_index(int(end.argmin()), end.shape))
    member = _members(up_ptr, up_group, up_ideal, len(g))
    machine, at = np.zeros(len(g), np.int64), many - 1
    while at:
        link = int(back[at, a, c])
        below, on_core = link // 2, link % 2
        c, a = (c - 1, a) if on_core else (c, a - 1)
        machine[member(at) & ~member(below)] = g.accelerators + c if on_core else a
        at = below
    return machine, True


def _members(up_ptr: np.ndarray, up_group: np.ndarray, up_ideal: np.ndarray, count: int):  # type: ignore[no-untyped-def]
    """A function from an ideal to its groups, bool[G]."""
    lower = np.repeat(np.arange(len(up_ptr) - 1), np.diff(up_ptr))
    down = {int(i): (int(j), int(v)) for i, j, v in zip(up_ideal, lower, up_group, strict=True)}

    def member(ideal: int) -> np.ndarray:
        found = np.zeros(count, bool)
        while ideal:
            ideal, group = down[ideal]
            found[group] = True
        return found

    return member


def _along(g: Groups, orders: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The ideals that are prefixes of `orders`, with the steps between them."""
    number: dict[bytes, int] = {}
    sets: list[np.ndarray] = []
    steps: set[tuple[int, int, int]] = set()
    for order in orders:
        state = np.zeros(len(g), bool)
        here = number.setdefault(np.packbits(state).tobytes(), len(number))
        if here == len(sets):
            sets.append(state.copy())
        for v in order.tolist():
            state[v] = True
            there = number.setdefault(np.packbits(state).tobytes(), len(number))
            if there == len(sets):
                sets.append(state.copy())
            steps.add((here, v, there))
            here = there
    rank = np.argsort([int(s.sum()) for s in sets], kind="stable")
    new = np.argsort(rank)
    rows = np.array(sorted((int(new[a]), v, int(new[b])) for a, v, b in steps), np.int64).reshape(-1, 3)
    ptr = np.concatenate([[0], np.cumsum(np.bincount(rows[:, 0], minlength=len(sets)))]).astype(np.int64)
    light = _shared(g)
    return ptr, rows[:, 1].astype(np.int32), rows[:, 2].astype(np.int32), np.array([light[sets[i]].sum() for i in rank])


def _shared(g: Groups) -> np.ndarray:
    """Accelerator time of the groups that cost time on both kinds of machine, else 0: what must fit the machines left."""
    return np.where(np.isfinite(g.fast) & (g.slow > 0), g.fast, 0.0)


def _grow(g: Groups, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """All ideals by size with the steps upwards in CSR, and the compute inside each; None if there are more than `most`."""
    many, steps, up_ptr, up_group, up_ideal, inside = _enumerate(g.before_ptr, g.before, _shared(g), most)
    if many < 0:
        return None
    return up_ptr[: many + 1].copy(), up_group[:steps].copy(), up_ideal[:steps].copy(), inside[:many].copy()


@njit(cache=True)
def _enumerate(before_ptr, before, light, most):  # type: ignore[no-untyped-def]
    count = len(before_ptr) - 1
    words = (count + 63) // 64
    sets = np.zeros((most + 1, words), np.uint64)
    slots = 1
    while slots < 3 * most:
        slots *= 2
    table = np.full(slots, -1, np.int32)
    random = np.empty(count, np.uint64)
    x = np.uint64(88172645463325252)
    for v in range(count):
        for _ in range(3):
            x ^= x << np.uint64(13)
            x ^= x >> np.uint64(7)
            x ^= x << np.uint64(17)
        random[v] = x
    keys = np.zeros(most + 1, np.uint64)
    up_ptr = np.zeros(most + 2, np.int64)
    inside = np.zeros(most + 1)
    room = 8 * most
    up_group, up_ideal = np.empty(room, np.int32), np.empty(room, np.int32)
    many, steps = 1, 0
    table[0] = 0
    at = 0
    one = np.uint64(1)
    while at < many:
        up_ptr[at] = steps
        for v in range(count):
            if (sets[at, v >> 6] >> np.uint64(v & 63)) & one:
                continue
            ready = True
            for e in range(before_ptr[v], before_ptr[v + 1]):
                u = before[e]
                if not (sets[at, u >> 6] >> np.uint64(u & 63)) & one:
                    ready = False
                    break
            if not ready:
                continue
            key = keys[at] ^ random[v]
            slot = np.int64(key & np.uint64(slots - 1))
            there = -1
            while table[slot] >= 0:
                i = table[slot]
                if keys[i] == key:
                    same = True
                    for k in range(words):
                        want = sets[at, k]
                        if k == v >> 6:
                            want |= one << np.uint64(v & 63)
                        if sets[i, k] != want:
                            same = False
                            break
                    if same:
                        there = i
                        break
                slot = (slot + 1) & (slots - 1)
            if there < 0:
                if many > most or steps >= room:
                    return -1, 0, up_ptr, up_group, up_ideal, inside
                there = many
                for k in range(words):
                    sets[there, k] = sets[at, k]
                sets[there, v >> 6] |= one << np.uint64(v & 63)
                keys[there] = key
                inside[there] = inside[at] + light[v]
                table[slot] = there
                many += 1
            if steps >= room:
                return -1, 0, up_ptr, up_group, up_ideal, inside
            up_group[steps], up_ideal[steps] = v, there
            steps += 1
        at += 1
    up_ptr[many] = steps
    return many, steps, up_ptr, up_group, up_ideal, inside


@njit(cache=True)
def _relax(first, last, up_ptr, up_group, up_ideal, compute, dp, back, seen, value, ratio, fast, slow, stuck, size, net_ptr, net_cost,  # type: ignore[no-untyped-def]
           own_ptr, own_net, accelerators, cores, limit):
    """Relax all differences above the ideals first … last-1. `stuck` [G, 2] is 1 where a group cannot go to an accelerator, to a core."""
    groups = len(fast)
    pins = np.zeros(len(net_cost), np.int64)
    path = np.empty(groups + 1, np.int64)                               # ideals on the way up, the step to look at next, what was added
    step = np.empty(groups + 1, np.int64)
    added = np.empty(groups + 1, np.int64)
    for low in range(first, last):
        for a in range(accelerators + 1):
            for c in range(cores + 1):
                if a and dp[low, a - 1, c] < dp[low, a, c]:
                    dp[low, a, c], back[low, a, c] = dp[low, a - 1, c], back[low, a - 1, c]
                if c and dp[low, a, c - 1] < dp[low, a, c]:
                    dp[low, a, c], back[low, a, c] = dp[low, a, c - 1], back[low, a, c - 1]
        hope = False
        for a in range(accelerators + 1):
            for c in range(cores + 1):
                if compute[-1] - compute[low] > value * (accelerators - a + (cores - c) * ratio):
                    dp[low, a, c] = np.inf                              # too much is left
                hope |= dp[low, a, c] < value
        if not hope:
            continue
        here, there, held, border = 0.0, 0.0, 0.0, 0.0
        off, out = 0, 0
        depth = 0
        path[0], step[0] = low, up_ptr[low]
        while depth >= 0:
            at = path[depth]
            if step[depth] == up_ptr[at + 1]:                           # all above done: take the last group off again
                if depth:
                    g = added[depth]
                    here, there, held = here - fast[g], there - slow[g], held - size[g]
                    off, out = off - stuck[g, 0], out - stuck[g, 1]
                    for p in range(own_ptr[g], own_ptr[g + 1]):
                        h = own_net[p]
                        if pins[h] == net_ptr[h + 1] - net_ptr[h]:
                            border += net_cost[h]
                        pins[h] -= 1
                        if pins[h] == 0:
                            border -= net_cost[h]
                depth -= 1
                continue
            e = step[depth]
            step[depth] += 1
            high = up_ideal[e]
            if seen[high] == low:
                continue
            g = up_group[e]
            able = here + fast[g] < value and held + size[g] <= limit and off + stuck[g, 0] == 0
            slowly = there + slow[g] < value and out + stuck[g, 1] == 0
            if not able and not slowly:
                continue
            seen[high] = low
            here, there, held = here + fast[g], there + slow[g], held + size[g]
            off, out = off + stuck[g, 0], out + stuck[g, 1]
            for p in range(own_ptr[g], own_ptr[g + 1]):
                h = own_net[p]
                if pins[h] == 0:
                    border += net_cost[h]
                pins[h] += 1
                if pins[h] == net_ptr[h + 1] - net_ptr[h]:
                    border -= net_cost[h]
            load = here + border if able else np.inf
            for a in range(accelerators + 1):
                for c in range(cores + 1):
                    start = dp[low, a, c]
                    if not start < value:
                        continue
                    if a < accelerators:
                        got = max(start, load)
                        if got < value and got < dp[high, a + 1, c]:
                            dp[high, a + 1, c], back[high, a + 1, c] = got, 2 * low
                    if c < cores and slowly:
                        got = max(start, there)
                        if got < value and got < dp[high, a, c + 1]:
                            dp[high, a, c + 1], back[high, a, c + 1] = got, 2 * low + 1
            depth += 1
            path[depth], step[depth], added[depth] = high, up_ptr[high], g
