"""Simulated annealing over sequences of core nodes: what is computed again where, and in what order; every sequence profiled in full.

Moves: an extra run (with some beside it) is left out; a value that is idle at a step of high level is made again just before its next reader, with as
much of what it is made of as is not alive there (or with those lives made longer), or fetched from the second memory; a step moves within what its
readers and what it reads allow; an extra run is left out and, where the limit breaks then, another value is made again instead. Bytes above the limit
are a penalty, so that the search may pass through sequences that do not fit; only those that fit are answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import INVALID, measure, profile
from fourfold.decisions.rematerialise.instance import CoreGraph
from fourfold.problem import Budget
from fourfold.solvers.anneal import Cooling, anneal, piecewise

_OVER = 4.0                                                             # penalty of a peak twice the limit, in prices of running everything once
_MEAN = 4.0                                                             # the same of bytes above the limit, in the mean over all steps
_CLOSURE = 256                                                          # most nodes computed again for one value
PEAK, PRICE = 0, 1                                                      # what is minimised
_LENGTH, _TRIAL, _BEST, _TOP, _TRIAL_TOP, _AT = range(6)                # of _State.number


class _State(NamedTuple):
    """Three sequences with their lengths in `number`: the current one, the one that is tried, the best; levels of the first two; scratch. `scale`:
    bytes of the limit (or of the first peak), price of running all once, target; `flags`: what is minimised, whether nodes may run again.
    """

    core: CoreGraph
    sequence: NDArray[np.int32]
    trial: NDArray[np.int32]
    best: NDArray[np.int32]
    level: NDArray[np.int64]
    trial_level: NDArray[np.int64]
    spare: NDArray[np.int32]
    number: NDArray[np.int64]
    scale: NDArray[np.float64]
    flags: NDArray[np.int64]
    alive: NDArray[np.bool_]
    count: NDArray[np.int32]
    times: NDArray[np.int32]
    mark: NDArray[np.int8]
    first: NDArray[np.int8]
    seen: NDArray[np.int32]
    stack: NDArray[np.int32]
    closure: NDArray[np.int32]


@njit(cache=True)
def _delete(state):  # type: ignore[no-untyped-def]
    """Leave out an extra run, and now and then those that follow it; False where there is none."""
    length, computing = state.number[_LENGTH], state.core.computing
    if length <= computing:
        return False
    at = -1
    for _ in range(32):
        p = np.random.randint(length)
        if state.times[state.sequence[p]] > 1 or state.sequence[p] >= computing:
            at = p
            break
    if at < 0:
        return False
    end = at + 1
    more = np.random.randint(1, 12) if np.random.random() < 0.4 else 0
    while more > 0 and end < length and (state.times[state.sequence[end]] > 1 or state.sequence[end] >= computing):
        end += 1
        more -= 1
    for s in range(at):
        state.trial[s] = state.sequence[s]
    for s in range(end, length):
        state.trial[s - end + at] = state.sequence[s]
    state.number[_TRIAL] = length - end + at
    return True


@njit(cache=True)
def _idle(core, sequence, length, t, mark):  # type: ignore[no-untyped-def]
    """(value, step of its next reader) drawn by size among the values alive across step t that it neither reads nor makes; (-1, -1) where none is."""
    mark[:] = 0
    n = sequence[t]
    for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
        mark[core.in_val[e]] = 1
    for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
        mark[core.out_val[e]] = 1
    total, value, reader = 0.0, -1, -1
    for q in range(t + 1, length):
        n = sequence[q]
        for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
            v = core.in_val[e]
            if mark[v] == 0:
                mark[v] = 1
                if core.size[v] > 0 and (core.fetch[v] >= 0 or not core.once[core.producer[v]]):
                    weight = float(core.size[v])
                    total += weight
                    if np.random.random() * total < weight:
                        value, reader = v, q
        for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
            mark[core.out_val[e]] = 1
    return value, reader


@njit(cache=True)
def _source(core, v):  # type: ignore[no-untyped-def]
    """The node that makes v again: what made it first, or a fetch from the second memory."""
    if core.fetch[v] >= 0 and (core.once[core.producer[v]] or np.random.random() < 0.5):
        return core.fetch[v]
    return core.producer[v]


@njit(cache=True)
def _insert(core, source, length, t, target, mark, first, seen, stack, closure):  # type: ignore[no-untyped-def]
    """`source` with a value that is idle at step t made again before its next reader, into `target`; the new length, or -1."""
    value, q = _idle(core, source, length, t, mark)
    if value < 0:
        return -1
    first[:] = 0                                                       # 1 read next from q on, 2 made next
    for s in range(q, length):
        n = source[s]
        for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
            if first[core.in_val[e]] == 0:
                first[core.in_val[e]] = 1
        for e in range(core.out_ptr[n], core.out_ptr[n + 1]):
            if first[core.out_val[e]] == 0:
                first[core.out_val[e]] = 2
    dice = np.random.random()
    share = 1.0 if dice < 0.6 else 0.0 if dice < 0.75 else np.random.random()
    seen[:] = 0
    depth, made = 1, 0
    stack[0] = _source(core, value)
    while depth > 0:                                                   # in postorder: what a node reads before the node
        n = stack[depth - 1]
        if seen[n] == 2:
            depth -= 1
            continue
        if seen[n] == 1:
            seen[n] = 2
            closure[made] = n
            made += 1
            depth -= 1
            continue
        seen[n] = 1
        for e in range(core.in_ptr[n], core.in_ptr[n + 1]):
            u = core.in_val[e]
            there = first[u] == 1 or (first[u] == 0 and core.pinned[u])
            m = _source(core, u)
            if there or seen[m] or core.once[m] or np.random.random() >= share:
                continue
            if depth + made + 2 >= len(closure):
                return -1
            stack[depth] = m
            depth += 1
    if length + made > len(target):
        return -1
    for s in range(q):
        target[s] = source[s]
    for k in range(made):
        target[q + k] = closure[k]
    for s in range(q, length):
        target[s + made] = source[s]
    return length + made


@njit(cache=True)
def _high(level, length, limit):  # type: ignore[no-untyped-def]
    """A step drawn among those above the limit, -1 where none is."""
    many, at = 0, -1
    for s in range(length):
        if level[s] > limit:
            many += 1
            if np.random.randint(many) == 0:
                at = s
    return at


@njit(cache=True)
def _again(state):  # type: ignore[no-untyped-def]
    """Make a value again that is idle where the level is too high, or anywhere where it is not."""
    length = state.number[_LENGTH]
    t = _high(state.level, length, state.scale[0]) if state.number[_TOP] > state.scale[0] else np.random.randint(length)
    made = _insert(state.core, state.sequence, length, t, state.trial, state.mark, state.first, state.seen, state.stack, state.closure)
    state.number[_TRIAL] = made
    return made > 0


@njit(cache=True)
def _instead(state):  # type: ignore[no-untyped-def]
    """Leave out an extra run, and make other values again where the limit breaks then."""
    if not _delete(state):
        return False
    for _ in range(3):
        length = state.number[_TRIAL]
        peak, at, _, kept = profile(state.core, state.trial, length, state.alive, state.count, state.trial_level)
        state.number[_TRIAL] = kept
        if peak == INVALID:
            return False
        if peak <= state.scale[0]:
            return True
        made = _insert(state.core, state.trial, kept, at, state.spare, state.mark, state.first, state.seen, state.stack, state.closure)
        if made < 0:
            return True
        for s in range(made):
            state.trial[s] = state.spare[s]
        state.number[_TRIAL] = made
    return True


@njit(cache=True)
def _touches(core, a, b):  # type: ignore[no-untyped-def]
    """Whether step a must stay before step b behind it: b reads or makes again what a makes, or makes what a reads."""
    if a == b:
        return True
    for e in range(core.out_ptr[a], core.out_ptr[a + 1]):
        for f in range(core.in_ptr[b], core.in_ptr[b + 1]):
            if core.out_val[e] == core.in_val[f]:
                return True
    return False


@njit(cache=True)
def _shift(state):  # type: ignore[no-untyped-def]
    """Move a step, half of the time near the peak, to a place that what it reads and its readers allow."""
    length, core = state.number[_LENGTH], state.core
    p = np.random.randint(length)
    if np.random.random() < 0.5:
        p = min(length - 1, max(0, state.number[_AT] + np.random.randint(-12, 13)))
    n = state.sequence[p]
    low, high = p, p
    while low > 0 and not _touches(core, state.sequence[low - 1], n):
        low -= 1
    while high < length - 1 and not _touches(core, n, state.sequence[high + 1]):
        high += 1
    if low == high:
        return False
    dice = np.random.random()
    to = low if dice < 0.25 else high if dice < 0.5 else np.random.randint(low, high + 1)
    if to == p:
        return False
    for s in range(length):
        state.trial[s] = state.sequence[s]
    if to < p:
        for s in range(p, to, -1):
            state.trial[s] = state.sequence[s - 1]
    else:
        for s in range(p, to):
            state.trial[s] = state.sequence[s + 1]
    state.trial[to] = n
    state.number[_TRIAL] = length
    return True


@njit(inline="always")
def _propose(state, step):  # type: ignore[no-untyped-def]
    dice = np.random.random()
    if state.flags[1] == 0 or dice < 0.25:
        return _shift(state)
    if state.number[_TOP] > state.scale[0]:
        return _again(state) if dice < 0.85 else _instead(state)
    if dice < 0.5:
        return _delete(state)
    return _instead(state) if dice < 0.9 else _again(state)


@njit(inline="always")
def _energy(state, best, ceiling):  # type: ignore[no-untyped-def]
    peak, at, price, length = profile(state.core, state.trial, state.number[_TRIAL], state.alive, state.count, state.trial_level)
    state.number[_TRIAL] = length
    state.number[_TRIAL_TOP] = peak
    state.number[_AT + 1] = at
    if peak == INVALID:
        return np.inf
    state.scale[3] = price / state.scale[1]
    limit = state.scale[0]
    if state.flags[0] == 0:
        mean = 0.0
        for s in range(length):
            mean += state.trial_level[s]
        return peak / limit + 0.05 * mean / length / limit
    if peak <= limit:
        return state.scale[3]
    over = 0.0
    for s in range(length):
        over += max(0.0, state.trial_level[s] - limit)
    return state.scale[3] + _OVER * (peak - limit) / limit + _MEAN * over / length / limit


@njit(inline="always")
def _commit(state, energy):  # type: ignore[no-untyped-def]
    length = state.number[_TRIAL]
    state.times[:] = 0
    for s in range(length):
        state.sequence[s] = state.trial[s]
        state.level[s] = state.trial_level[s]
        state.times[state.trial[s]] += 1
    state.number[_LENGTH], state.number[_TOP], state.number[_AT] = length, state.number[_TRIAL_TOP], state.number[_AT + 1]
    if state.flags[0] == 0:
        return state.number[_TOP] / state.scale[0]
    return state.scale[3] if state.number[_TOP] <= state.scale[0] else np.inf


@njit(inline="always")
def _undo(state):  # type: ignore[no-untyped-def]
    pass


@njit(inline="always")
def _keep(state):  # type: ignore[no-untyped-def]
    length = state.number[_LENGTH]
    for s in range(length):
        state.best[s] = state.sequence[s]
    state.number[_BEST] = length


@njit(cache=True)
def _run(state, now, best, cooling):  # type: ignore[no-untyped-def]
    return anneal(_propose, _energy, _commit, _undo, _keep, state, now, best, cooling, 1e-12, False, False)


@njit(cache=True)
def _start(state):  # type: ignore[no-untyped-def]
    """(energy, objective) of the sequence that stands in `trial`; it becomes the current one."""
    energy = _energy(state, np.inf, np.inf)
    return energy, _commit(state, energy)


def improve(core: CoreGraph, sequence: NDArray[np.int32], goal: int, limit: int, budget: Budget, seed: int, *, tries: int, heat: float = 2e-3,
            again: bool = True) -> tuple[NDArray[np.int32], bool]:
    """(best sequence, whether it fits `limit`) of a round of `tries` moves from a valid `sequence`; that itself where none is better.

    `goal` PEAK: the least peak (the limit is only a scale); PRICE: the least price within the limit. `again` False: no node runs twice.
    """
    nodes, room = len(core.node), len(sequence) + max(len(core.node), 64)
    empty, levels = (lambda: np.zeros(room, np.int32)), (lambda: np.zeros(room, np.int64))
    state = _State(core, empty(), empty(), empty(), levels(), levels(), empty(), np.zeros(8, np.int64),
                   np.array([max(1, limit), max(float(core.price.sum()), 1e-30), 0.0, 0.0]), np.array([goal, int(again)], np.int64),
                   np.zeros(len(core.size), np.bool_), np.zeros(nodes, np.int32), np.zeros(nodes, np.int32), np.zeros(len(core.size), np.int8),
                   np.zeros(len(core.size), np.int8), np.zeros(nodes, np.int32), np.zeros(_CLOSURE * 4, np.int32), np.zeros(_CLOSURE, np.int32))
    state.trial[: len(sequence)] = sequence
    state.number[_TRIAL] = len(sequence)
    now, best = _start(state)
    fits = bool(np.isfinite(best))
    state.best[: state.number[_LENGTH]] = state.sequence[: state.number[_LENGTH]]
    state.number[_BEST] = state.number[_LENGTH]

    def piece(cooling: Cooling) -> None:
        nonlocal now, best
        now, best = _run(state, now, best, cooling._replace(seed=cooling.seed % 2**31))

    most = int(min(tries, max(0, budget.evaluations - budget.spent)))
    if most and len(sequence) > 1:
        piecewise(piece, heat, heat * 1e-2, most, max(16, int(2e7 / (40 * room))), budget, seed * 1_000_003, hurry=True)
    found = state.best[: state.number[_BEST]].copy()
    return found, fits or bool(np.isfinite(best)) or measure(core, found)[0] <= limit
