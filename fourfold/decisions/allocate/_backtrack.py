"""Backtracking over proposals, the compiled part of `telamalloc`: feasible ranges kept by propagation, and where to go back to.

A level places one buffer at the lowest offset of its range. The propagator then keeps, for each unplaced buffer, the lowest and highest offset that
what is placed leaves it, and looks whether in each section of the placed one the holes hold what is still to come. Where a buffer has no offset left,
or a section no room, that is a dead end: some earlier level is undone, chosen by policy, and the buffer in trouble is tried there first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from fourfold.decisions.allocate._form import Packing, heights

PACKED, LIMIT, STOPPED = 1, 2, 3
FIXED, RANDOM, LEARNED, ASKED = range(4)                                # policies of the choice; ASKED stops at each dead end for whoever trains
TARGETS, FEATURES = 12, 14                                              # candidates looked at; figures of each
_TRIES = 6                                                              # proposals at one level before it is undone too


class Trees(NamedTuple):
    """Boosted regression trees as arrays over all nodes; `root` [t] the first node of each; leaves have left -1."""

    root: np.ndarray
    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray                                               # f8: to the left where the figure is at most this
    value: np.ndarray                                                   # f8 of leaves


class Levels(NamedTuple):
    """The state of one search; i8 but where noted."""

    least: np.ndarray                                                   # [n] the feasible range
    most: np.ndarray
    offset: np.ndarray
    depth: np.ndarray                                                   # [n] level at which it stands, or -1
    placed: np.ndarray                                                  # [levels] buffer
    tried: np.ndarray                                                   # [levels, _TRIES]
    tries: np.ndarray                                                   # [levels]
    mark: np.ndarray                                                    # [levels] length of the trail before
    trail: np.ndarray                                                   # [·, 3] buffer, least, most
    stack: np.ndarray                                                   # [sections, live] placed buffers of a section, by offset
    count: np.ndarray                                                   # [sections]
    rest: np.ndarray                                                    # [sections] unplaced size
    trouble: np.ndarray                                                 # [n] f8: how often in trouble, fading
    at: np.ndarray                                                      # [8] level, trail, steps, dead ends, deepest, culprit, minor steps, promoted
    figures: np.ndarray                                                 # [TARGETS, FEATURES] f8 of the last dead end
    targets: np.ndarray                                                 # [TARGETS] their levels
    found: np.ndarray                                                   # [1] how many


class Guide(NamedTuple):
    """What orders the proposals: phase of each buffer, keys (life, size, area), and for each section its buffers by size."""

    phase: np.ndarray                                                   # [n] i8, 0 is asked first: the most contended
    keys: np.ndarray                                                    # [3, n] f8
    peak: np.ndarray                                                    # [n] f8 contention, 1 = full
    back: np.ndarray                                                    # [edges] row of the pair the other way round
    order: np.ndarray                                                   # buffers of each section by size
    first: np.ndarray                                                   # [sections + 1] rows of `order`


LEVEL, TRAIL, STEPS, DEAD, DEEPEST, CULPRIT, MINOR, PROMOTED = range(8)


def guide(p: Packing, cap: int) -> Guide:
    """Phases in tenths of the contention, keys and tables of a packing within `cap`."""
    n = len(p.size)
    _, peak = heights(p)
    load = peak / max(1, cap)
    phase = np.clip(np.floor((load.max(initial=0.0) - load) * 10), 0, 9).astype(np.int64)
    life = p.life.astype(float)
    keys = np.stack([life, p.size.astype(float), life * p.size])
    who = np.repeat(np.arange(n), np.diff(p.first))
    order = np.lexsort((p.near, who))
    other = np.lexsort((who, p.near))
    back = np.empty(len(p.near), np.int64)
    back[order] = other
    rows = [np.flatnonzero((p.low <= s) & (p.high > s)) for s in range(p.sections)]
    rows = [row[np.argsort(p.size[row], kind="stable")] for row in rows]
    first = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Guide(phase, keys, load, back, np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64), first)


def levels(p: Packing, g: Guide) -> Levels:
    n, live = len(p.size), int(np.diff(g.first).max(initial=1))
    zeros = np.zeros
    return Levels(zeros(n, np.int64), zeros(n, np.int64), zeros(n, np.int64), zeros(n, np.int64), zeros(n + 1, np.int64),
                  zeros((n + 1, _TRIES), np.int64), zeros(n + 1, np.int64), zeros(n + 1, np.int64), zeros((2 * len(p.near) + n + 2, 3), np.int64),
                  zeros((p.sections + 1, live + 1), np.int64), zeros(p.sections + 1, np.int64), zeros(p.sections + 1, np.int64), zeros(n),
                  zeros(8, np.int64), zeros((TARGETS, FEATURES)), zeros(TARGETS, np.int64), zeros(1, np.int64))


@njit(cache=True, nogil=True)
def reset(p, g, s, cap):  # type: ignore[no-untyped-def]
    """Nothing placed."""
    s.at[:] = 0
    s.at[CULPRIT] = s.at[PROMOTED] = -1
    s.count[:] = 0
    s.rest[:] = 0
    s.tries[:] = 0
    s.depth[:] = -1
    for b in range(len(p.size)):
        s.least[b] = max(0, p.fixed[b])
        s.most[b] = p.fixed[b] if p.fixed[b] >= 0 else (cap - p.size[b]) // p.align[b] * p.align[b]
        for q in range(p.piece[b], p.piece[b + 1]):
            for k in range(p.plo[q], p.phi[q]):
                s.rest[k] += p.top[q] - p.bottom[q]


@njit(cache=True, nogil=True)
def _lift(p, g, s, o):  # type: ignore[no-untyped-def]
    """The lowest offset of `o` from `least[o]` on that meets nothing placed; may pass `most[o]`."""
    x, moved = s.least[o], True
    while moved and x <= s.most[o]:
        moved = False
        for e in range(p.first[o], p.first[o + 1]):
            b = p.near[e]
            if s.depth[b] >= 0:
                above = s.offset[b] + p.apart[g.back[e]]
                if x < above and x > s.offset[b] - p.apart[e]:
                    x, moved = -(-above // p.align[o]) * p.align[o], True
    return x


@njit(cache=True, nogil=True)
def _sink(p, g, s, o):  # type: ignore[no-untyped-def]
    """The highest offset of `o` from `most[o]` down that meets nothing placed; may pass `least[o]`."""
    x, moved = s.most[o], True
    while moved and x >= s.least[o]:
        moved = False
        for e in range(p.first[o], p.first[o + 1]):
            b = p.near[e]
            if s.depth[b] >= 0:
                below = s.offset[b] - p.apart[e]
                if x > below and x < s.offset[b] + p.apart[g.back[e]]:
                    x, moved = below // p.align[o] * p.align[o], True
    return x


@njit(cache=True, nogil=True)
def _holds(p, g, s, k, cap):  # type: ignore[no-untyped-def]
    """Whether the holes of section `k` that hold its smallest unplaced buffer hold all of them in sum."""
    small = np.int64(-1)
    for i in range(g.first[k], g.first[k + 1]):
        if s.depth[g.order[i]] < 0:
            small = p.size[g.order[i]]
            break
    if small < 0:
        return True
    at, room = np.int64(0), np.int64(0)
    for j in range(s.count[k]):
        b = s.stack[k, j]
        if s.offset[b] - at >= small:
            room += s.offset[b] - at
        at = max(at, s.offset[b] + p.size[b])
    if cap - at >= small:
        room += cap - at
    return room >= s.rest[k]


@njit(cache=True, nogil=True)
def put(p, g, s, b, cap):  # type: ignore[no-untyped-def]
    """Place `b` at the lowest offset of its range, on a new level. False at a dead end: the culprit is in `at`, and the level is to be undone."""
    level = s.at[LEVEL]
    s.mark[level], s.placed[level] = s.at[TRAIL], b
    s.offset[b], s.depth[b] = s.least[b], level
    s.at[LEVEL] = level + 1
    s.tries[level + 1] = 0
    for q in range(p.piece[b], p.piece[b + 1]):
        for k in range(p.plo[q], p.phi[q]):
            s.rest[k] -= p.top[q] - p.bottom[q]
    for k in range(p.low[b], p.high[b]):
        j = s.count[k]
        while j > 0 and s.offset[s.stack[k, j - 1]] > s.offset[b]:
            s.stack[k, j] = s.stack[k, j - 1]
            j -= 1
        s.stack[k, j] = b
        s.count[k] += 1
    for e in range(p.first[b], p.first[b + 1]):
        o = p.near[e]
        if s.depth[o] >= 0:
            continue
        below, above = s.offset[b] - p.apart[g.back[e]], s.offset[b] + p.apart[e]
        if (below < s.least[o] < above) or (below < s.most[o] < above):
            t = s.at[TRAIL]
            s.trail[t, 0], s.trail[t, 1], s.trail[t, 2] = o, s.least[o], s.most[o]
            s.at[TRAIL] = t + 1
            s.least[o] = _lift(p, g, s, o)
            s.most[o] = _sink(p, g, s, o)
            if s.least[o] > s.most[o]:
                s.at[CULPRIT] = o
                return False
    if p.plain:
        for k in range(p.low[b], p.high[b]):
            if not _holds(p, g, s, k, cap):
                for i in range(g.first[k + 1] - 1, g.first[k] - 1, -1):
                    if s.depth[g.order[i]] < 0:
                        s.at[CULPRIT] = g.order[i]                      # the largest that is still to come
                        return False
    return True


@njit(cache=True, nogil=True)
def back_to(p, s, level):  # type: ignore[no-untyped-def]
    """Undo the levels from `level` on."""
    for here in range(s.at[LEVEL] - 1, level - 1, -1):
        b = s.placed[here]
        s.depth[b] = -1
        for q in range(p.piece[b], p.piece[b + 1]):
            for k in range(p.plo[q], p.phi[q]):
                s.rest[k] += p.top[q] - p.bottom[q]
        for k in range(p.low[b], p.high[b]):
            j = 0
            while s.stack[k, j] != b:
                j += 1
            s.count[k] -= 1
            for i in range(j, s.count[k]):
                s.stack[k, i] = s.stack[k, i + 1]
        for t in range(s.at[TRAIL] - 1, s.mark[here] - 1, -1):
            o = s.trail[t, 0]
            s.least[o], s.most[o] = s.trail[t, 1], s.trail[t, 2]
        s.at[TRAIL] = s.mark[here]
    s.at[LEVEL] = min(level, s.at[LEVEL])


@njit(cache=True, nogil=True)
def _propose(p, g, s, noise):  # type: ignore[no-untyped-def]
    """The next proposal at this level, or -1: who was in trouble, then of the most contended phase the longest life, largest size, largest area."""
    level, n = s.at[LEVEL], len(p.size)
    if s.tries[level] >= _TRIES:
        return -1
    culprit = s.at[PROMOTED]
    s.at[PROMOTED] = -1
    if culprit >= 0 and s.depth[culprit] < 0 and not _tried(s, level, culprit):
        return culprit
    phase = np.int64(99)
    for b in range(n):
        if s.depth[b] < 0:
            phase = min(phase, g.phase[b])
    for j in range(3):
        best, most = -1, -1.0
        for b in range(n):
            if s.depth[b] < 0 and g.phase[b] == phase:
                key = g.keys[j, b] * (1.0 + s.trouble[b]) * noise[b]
                if key > most:
                    best, most = b, key
        if not _tried(s, level, best):
            return best
    return -1


@njit(cache=True, nogil=True)
def _tried(s, level, b):  # type: ignore[no-untyped-def]
    for i in range(s.tries[level]):
        if s.tried[level, i] == b:
            return True
    return False


@njit(cache=True, nogil=True)
def _conflict(p, g, s, cap):  # type: ignore[no-untyped-def]
    """List the levels that hold the culprit's placed neighbours, the latest first, and the figures of each."""
    o, deep, count = s.at[CULPRIT], s.at[LEVEL], 0
    for level in range(deep - 1, -1, -1):
        b = s.placed[level]
        if count == TARGETS:
            break
        meets = p.low[b] < p.high[o] and p.low[o] < p.high[b]
        if not meets and level != deep - 1:
            continue
        f = s.figures[count]
        f[0] = (deep - level) / len(p.size)
        f[1] = level / max(1, deep)
        f[2] = count
        f[3] = p.size[b] / max(1, p.size[o])
        f[4] = (p.high[b] - p.low[b]) / max(1, p.high[o] - p.low[o])
        f[5] = g.peak[b]
        f[6] = g.peak[o]
        f[7] = g.phase[o] - g.phase[b]
        f[8] = p.size[o] / cap
        f[9] = s.tries[level]
        f[10] = s.trouble[o]
        f[11] = min(20, s.at[MINOR])
        f[12] = deep / len(p.size)
        f[13] = s.offset[b] / cap
        s.targets[count] = level
        count += 1
    s.found[0] = count


@njit(cache=True, nogil=True)
def score(trees, figures):  # type: ignore[no-untyped-def]
    """Sum of the trees' leaves for one row of figures."""
    total = 0.0
    for t in range(len(trees.root)):
        node = trees.root[t]
        while trees.left[node] >= 0:
            node = trees.left[node] if figures[trees.feature[node]] <= trees.threshold[node] else trees.right[node]
        total += trees.value[node]
    return total


@njit(cache=True, nogil=True)
def _choose(s, trees, policy, patience):  # type: ignore[no-untyped-def]
    """Which of the targets to go back to."""
    count = s.found[0]
    if policy == RANDOM:
        return np.random.randint(count)
    if policy == LEARNED:
        for i in range(count):                                          # the latest level whose prefix is likely to be part of a packing
            if score(trees, s.figures[i]) > 0.0:
                return i
        return count - 1
    return 0 if s.at[MINOR] < patience else count - 1                   # minor steps, then past the whole conflicting group


@njit(cache=True, nogil=True)
def run(p, g, s, cap, trees, policy, patience, noise, limit, stop):  # type: ignore[no-untyped-def]
    """Go on from the state: PACKED, LIMIT after `limit` more steps, or STOPPED; with ASKED, LIMIT at a dead end with its figures filled."""
    until = s.at[STEPS] + limit
    while True:
        if s.at[LEVEL] == len(p.size):
            return PACKED
        if stop[0] != 0:
            return STOPPED
        if s.at[STEPS] >= until:
            return LIMIT
        b = _propose(p, g, s, noise)
        if b < 0:                                                       # all proposals failed here: one level up
            if s.at[LEVEL] == 0:
                s.tries[0] = 0
                return LIMIT
            back_to(p, s, s.at[LEVEL] - 1)
            continue
        level = s.at[LEVEL]
        s.tried[level, s.tries[level]] = b
        s.tries[level] += 1
        s.at[STEPS] += 1
        if put(p, g, s, b, cap):
            if s.at[LEVEL] > s.at[DEEPEST]:
                s.at[DEEPEST], s.at[MINOR] = s.at[LEVEL], 0
            continue
        s.at[DEAD] += 1
        s.at[MINOR] += 1
        o = s.at[CULPRIT]
        for i in range(len(p.size)):
            s.trouble[i] *= 0.999
        s.trouble[o] += 0.1
        _conflict(p, g, s, cap)
        if policy == ASKED:
            return LIMIT
        i = _choose(s, trees, policy, patience)
        if s.at[MINOR] > 4 * patience:
            s.at[DEEPEST], s.at[MINOR] = s.targets[i], 0
        back_to(p, s, s.targets[i])
        s.at[PROMOTED] = o


@njit(cache=True, nogil=True)
def sow(seed):  # type: ignore[no-untyped-def]
    """Seed the compiled code's draws."""
    np.random.seed(seed)
