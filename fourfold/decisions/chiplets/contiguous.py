"""Dynamic programming over contiguous stages of an order of the ops: exact for that order among partitions of which each chip sends to the next only.

As PipeDream does (Narayanan et al., SOSP 2019) for layers in a row, here for ops in any topological order and under the triangle rule: a chip that
sends to the next chip alone closes no triangle, so a boundary at q may follow one at p if no edge from before p ends at q or later. What a stage
sends then depends on where it ends and not on where it begins. The least possible largest stage is found by bisection: for a threshold, the fewest
stages up to each boundary. Where ops stand in one chain with short cuts (a transformer, a residual network), no valid partition is of another form;
where branches run side by side it is a restriction, so several orders are tried, an evaluation each.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets.instance import Csr
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.problem import Budget, Solver, SolverAnswer

_ORDERS = 8


class Contiguous(Solver):
    title = "Dynamic programming over contiguous stages"
    lever = "machine"
    answers = "chiplets"
    cites = ("narayanan2019", "xie2022")
    needs = ("numba",)
    counts = "orders of the ops"

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        rng, found = np.random.default_rng(seed), PartitionEvaluator(problem, budget)
        w = problem.workload
        for k in range(_ORDERS):
            order = np.arange(len(w)) if k == 0 else depth_first(w.before, w.after, rng if k > 1 else None)
            found.price(stages(problem, order))
            if found.over:
                break
        return SolverAnswer(found.answer(), evidence={"trace": found.trace})


def stages(problem: ChipletPartition, order: np.ndarray) -> NDArray[np.int16] | None:
    """i2[N]: the contiguous stages of `order` whose largest takes least; None where the chips' memory allows none."""
    w, p = problem.workload, problem.package
    at = np.empty(len(w), np.int64)
    at[order] = np.arange(len(w))
    step = [(a, a + 1) for a in range(p.chips - 1)] or [(0, 0)]
    latency, slow = max(p.latency[pair] for pair in step), min(p.rate[pair] for pair in step)
    copies = any(bool(p.copies[pair]) for pair in step)
    last = np.zeros(len(w.maker), np.int64)
    np.maximum.at(last, np.repeat(np.arange(len(w.maker)), np.diff(w.readers.ptr)), at[w.readers.item])
    change = np.zeros(len(w) + 2)
    np.add.at(change, at[w.maker] + 1, latency + w.size / slow)
    np.subtract.at(change, last + 1, latency + w.size / slow)
    send = np.maximum(np.cumsum(change)[: len(w) + 1], 0.0)
    send[-1] = 0.0                                                      # after the last op nothing is sent; rounding
    reader = np.zeros(len(w) + 1, np.int64)
    np.maximum.at(reader, at[w.source] + 1, at[w.target])
    ahead = np.maximum.accumulate(reader)
    weights = Csr.of(len(w), at[np.repeat(np.arange(len(w)), np.diff(w.weights.ptr))], w.weights.item)
    again = _again(weights.ptr, weights.item, len(w.weight), len(w))
    parts = (w.seconds[order], w.base_seconds, send, copies, ahead, weights.ptr, w.weight[weights.item], again, w.work[order], w.base_bytes, p.memory,
             p.chips)
    best, high, low = np.zeros(0, np.int64), np.inf, problem.bound() * (1 - 1e-12)
    limit = w.base_seconds + float(w.seconds.sum()) + float(send.max(initial=0.0))
    for _ in range(200):
        cuts, worst = _fewest(limit, *parts)
        if len(cuts):
            best, high = cuts, worst
        else:
            low = limit
        if high <= low * (1 + 1e-9) or np.isinf(high):
            break
        limit = (low + high) / 2 if high > low * (1 + 1e-6) else high * (1 - 1e-9)
    if not len(best):
        return None
    chip = np.zeros(len(w), np.int16)
    chip[order] = np.searchsorted(best, np.arange(len(w)), side="right")
    return chip


@njit(cache=True)
def _again(ptr, weight, weights, count):  # type: ignore[no-untyped-def]
    """For each reading of a weight the position that reads it next; `count` where none does."""
    after, found = np.full(weights, count, np.int64), np.zeros(len(weight), np.int64)
    for v in range(count - 1, -1, -1):
        for e in range(ptr[v], ptr[v + 1]):
            found[e] = after[weight[e]]
            after[weight[e]] = v
    return found


@njit(cache=True)
def _fewest(limit, seconds, base, send, copies, ahead, ptr, weight, again, work, held, memory, chips):  # type: ignore[no-untyped-def]
    """(cuts, largest stage) of the fewest stages, none of which takes more than `limit` s; no cuts where more than `chips` are needed. One stage has
    the cut [N], so that an empty array says that there is none."""
    n = len(seconds)
    fewest, before, worst = np.full(n + 1, chips + 1, np.int64), np.zeros(n + 1, np.int64), np.zeros(n + 1)
    fewest[0] = 0
    for q in range(1, n + 1):
        room = limit - base - (send[q] if copies else 0.0)
        if not copies and send[q] > limit:
            continue
        time, bytes, top = 0.0, held, 0.0
        for p in range(q - 1, -1, -1):
            time += seconds[p]
            top = max(top, work[p])
            for e in range(ptr[p], ptr[p + 1]):
                if again[e] >= q:
                    bytes += weight[e]
            if time > room or bytes + top > memory:
                break
            if (q > ahead[p] or p == 0) and fewest[p] + 1 <= chips:
                stage = max(worst[p], time + base + send[q] if copies else max(time + base, send[q]))
                if fewest[p] + 1 < fewest[q] or fewest[p] + 1 == fewest[q] and stage < worst[q]:
                    fewest[q], before[q], worst[q] = fewest[p] + 1, p, stage
    if fewest[n] > chips:
        return np.zeros(0, np.int64), 0.0
    cuts = np.zeros(max(1, fewest[n]), np.int64)
    at = n
    for k in range(fewest[n] - 1, -1, -1):
        cuts[k] = at
        at = before[at]
    return cuts, worst[n]


def depth_first(before: Csr, after: Csr, rng: np.random.Generator | None = None) -> NDArray[np.int64]:
    """A topological order that follows what just became ready; with `rng` branches come in random order."""
    count = len(before.ptr) - 1
    rank = np.arange(count) if rng is None else rng.permutation(count)
    return _depth_first(np.diff(before.ptr), after.ptr, after.item, rank)


@njit(cache=True)
def _depth_first(waits, ptr, item, rank):  # type: ignore[no-untyped-def]
    count = len(waits)
    left, order, stack, high, done = waits.copy(), np.empty(count, np.int64), np.empty(count, np.int64), 0, 0
    first = np.argsort(-rank)
    for v in first:
        if left[v] == 0:
            stack[high] = v
            high += 1
    while high:
        high -= 1
        v = stack[high]
        order[done] = v
        done += 1
        begin = high
        for e in range(ptr[v], ptr[v + 1]):
            s = item[e]
            left[s] -= 1
            if left[s] == 0:
                k = high
                while k > begin and rank[stack[k - 1]] < rank[s]:
                    stack[k] = stack[k - 1]
                    k -= 1
                stack[k] = s
                high += 1
    return order
