"""HALP's kernel: candidates of a heuristic ranked by a small network that learns online which of two objects is asked for again first; arms, each a
heuristic with or without the network, run in miniature beside the cache on a sample of the objects, and the cache follows the arm that misses least.

All tables are bounded: what is known of an object is forgotten when it was not asked for over `HORIZON` requests, and of the pairs that wait for an
answer the oldest gives way, unanswered: neither object of it came back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.cache._rules import admit, adopt, drop, forget, meet, refuses, touch, victim
from fourfold.decisions.cache._state import (
    CAPACITY,
    CLOCK2QPLUS,
    FLAG,
    HAND,
    KIND,
    LIRS,
    LRU,
    NOWHERE,
    QUEUES,
    RESIDENT,
    S3FIFO,
    USED,
    WIDTH,
    new,
    push,
    push_oldest,
    resident,
    unlink,
)

FEATURES, HIDDEN, MOST = 8, 16, 16                                      # MOST: candidates
_PAIRS = 1 << 14
_HALF = 20_000.0                                                        # requests in which a count fades to half
UNKNOWN = np.float32(0.1 * np.log1p(1e6))                                                          # the gap of an object that has none yet
_RATE, _START = 0.03, 1e-3                                              # Adagrad's rate, and what its sums begin with
_LEAST = 1_000                                                            # objects that a miniature cache is to hold
_AHEAD = 0.97                                                           # of the bytes that the present arm misses, at most, for another to follow
CLOCKS, RNG, NEXT, ARM, SEEN, SAMPLED, CHECKED, SWITCHES, SHARE, HORIZON = range(10)   # of `reg`
SUM, NUMBER, MEAN = range(3)                                                  # of `real`: logarithms of sizes


class PreferenceArrays(NamedTuple):
    """What HALP knows besides its caches.

    Of objects [N]: `last` i8 request, `gap` f4[N, 2] of logarithms, `weight` f4 (log of bytes), `count` i4, `faded` f4, `pair` i4 that waits. The
    network: `w` f4[8, 16], `b`, `v` f4[16], and Adagrad's sums of them. Pairs: `px` f4[P, 2, 8], `pid` i4[P, 2]. `cand`, `queue` i4[16] and `cx`
    f4[16, 8]: candidates of an eviction; `hidden` f4[2, 16]. `logs` f4[256] of counts. `missed` f8[arms]: fading bytes. `reg` i8[16], `real` f8[3].
    """

    last: NDArray[np.int64]
    gap: NDArray[np.float32]
    weight: NDArray[np.float32]
    count: NDArray[np.int32]
    faded: NDArray[np.float32]
    pair: NDArray[np.int32]
    w: NDArray[np.float32]
    b: NDArray[np.float32]
    v: NDArray[np.float32]
    ws: NDArray[np.float32]
    bs: NDArray[np.float32]
    vs: NDArray[np.float32]
    px: NDArray[np.float32]
    pid: NDArray[np.int32]
    cand: NDArray[np.int32]
    queue: NDArray[np.int32]
    cx: NDArray[np.float32]
    hidden: NDArray[np.float32]
    logs: NDArray[np.float32]
    missed: NDArray[np.float64]
    reg: NDArray[np.int64]
    real: NDArray[np.float64]


def fresh(objects: int, arms: int, share: int, horizon: int, seed: int) -> PreferenceArrays:
    """Nothing known yet. The network begins as a rule of recency: one unit falls with age, the others are small and random. `share`: of 65,536 parts
    of the objects, how many the miniatures see."""
    rng = np.random.default_rng(seed)
    w = rng.normal(0, 0.3, (FEATURES, HIDDEN)).astype(np.float32)
    b, v = np.zeros(HIDDEN, np.float32), rng.normal(0, 0.05, HIDDEN).astype(np.float32)
    w[:, 0], b[0], v[0] = 0, 2, 1
    w[0, 0] = -1
    reg = np.zeros(16, np.int64)
    reg[RNG], reg[SHARE], reg[HORIZON] = seed * 2 + 88172645463325252, share, horizon
    f4 = np.float32
    return PreferenceArrays(
        np.full(objects, -1, np.int64), np.full((objects, 2), UNKNOWN, f4), np.zeros(objects, f4),
        np.zeros(objects, np.int32), np.zeros(objects, f4),
        np.full(objects, -1, np.int32), w, b, v, np.full_like(w, _START), np.full_like(b, _START), np.full_like(v, _START),
        np.zeros((_PAIRS, 2, FEATURES), f4), np.full((_PAIRS, 2), -1, np.int32), np.zeros(MOST, np.int32), np.zeros(MOST, np.int32),
        np.zeros((MOST, FEATURES), f4), np.zeros((2, HIDDEN), f4),
        (0.3 * np.log1p(np.arange(256.0))).astype(f4), np.zeros(arms), reg, np.zeros(3))


@njit(cache=True)
def _random(h, below):  # type: ignore[no-untyped-def]
    """A number from 0 to `below` − 1 (xorshift; Marsaglia 2003)."""
    x = np.uint64(h.reg[RNG])
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    h.reg[RNG] = np.int64(x)
    return np.int64((x >> np.uint64(11)) % np.uint64(below))


@njit(cache=True, fastmath=True)
def _describe(h, o, x):  # type: ignore[no-untyped-def]
    """Features of object `o` now, into x f4[8]."""
    now = h.reg[SEEN]
    age, count = float(now - h.last[o]), h.count[o]
    x[0] = np.float32(0.1 * np.log1p(age))
    x[1] = h.gap[o, 0]
    x[2] = h.gap[o, 1]
    x[3] = h.logs[min(count, 255)]
    x[4] = np.float32(0.5 * np.log1p(h.faded[o] * np.exp2(-age / _HALF)))
    x[5] = np.float32(0.2) * (h.weight[o] - np.float32(h.real[MEAN]))
    x[6] = np.float32(1.0) / np.float32(1 + count)
    x[7] = np.float32(1.0 if count == 1 else 0.0)


@njit(cache=True, fastmath=True)
def _score(h, x, hidden):  # type: ignore[no-untyped-def]
    """v · relu(W x + b); `hidden` f4[16] keeps the units."""
    total = np.float32(0.0)
    for i in range(HIDDEN):
        hidden[i] = h.b[i]
    for j in range(FEATURES):                                           # the units side by side, as one vector
        for i in range(HIDDEN):
            hidden[i] += h.w[j, i] * x[j]
    for i in range(HIDDEN):
        hidden[i] = max(hidden[i], np.float32(0.0))
        total += h.v[i] * hidden[i]
    return total


@njit(cache=True, fastmath=True)
def _learn(h, won, lost):  # type: ignore[no-untyped-def]
    """One step of Adagrad (Duchi, Hazan and Singer 2011) on −log sigmoid(score(won) − score(lost))."""
    a, b = h.hidden[0], h.hidden[1]
    margin = _score(h, won, a) - _score(h, lost, b)
    pull = np.float32(-1.0 / (1.0 + np.exp(float(margin))))
    rate, none, one = np.float32(_RATE), np.float32(0.0), np.float32(1.0)
    for j in range(FEATURES):
        for i in range(HIDDEN):
            g = pull * h.v[i] * ((won[j] if a[i] > none else none) - (lost[j] if b[i] > none else none))
            h.ws[j, i] += g * g
            h.w[j, i] -= rate * g / np.sqrt(h.ws[j, i])
    for i in range(HIDDEN):
        g = pull * h.v[i] * ((one if a[i] > none else none) - (one if b[i] > none else none))
        h.bs[i] += g * g
        h.b[i] -= rate * g / np.sqrt(h.bs[i])
        g = pull * (a[i] - b[i])
        h.vs[i] += g * g
        h.v[i] -= rate * g / np.sqrt(h.vs[i])


@njit(cache=True)
def _seen(h, o, size):  # type: ignore[no-untyped-def]
    """Object `o` was asked for: the pair that waited for it is answered, and what is known of it is brought up to date."""
    p = h.pair[o]
    if p >= 0:
        h.pair[o] = -1
        for side in range(2):
            if h.pid[p, side] == o:
                other = h.pid[p, 1 - side]
                _learn(h, h.px[p, side], h.px[p, 1 - side])
                h.pid[p, 0] = h.pid[p, 1] = -1
                if other >= 0 and h.pair[other] == p:
                    h.pair[other] = -1
                break
    now, before = h.reg[SEEN], h.last[o]
    if before < 0 or now - before > h.reg[HORIZON]:
        h.gap[o, 0] = h.gap[o, 1] = UNKNOWN
        h.count[o], h.faded[o] = 1, 1.0
    else:
        age = float(now - before)
        h.gap[o, 1] = h.gap[o, 0]
        h.gap[o, 0] = np.float32(0.1 * np.log1p(age))
        h.count[o] += 1
        h.faded[o] = h.faded[o] * np.exp2(-age / _HALF) + 1.0
    h.last[o] = now
    h.weight[o] = np.float32(np.log(float(size)))
    h.real[SUM] += h.weight[o]
    h.real[NUMBER] += 1.0
    h.real[MEAN] = h.real[SUM] / h.real[NUMBER]


@njit(cache=True)
def ranked_victim(s, kind, width, h):  # type: ignore[no-untyped-def]
    """Who is to leave, of `width` that the heuristic would let go one after another: whom the network puts last. The others begin anew."""
    count, worst, least = 0, 0, np.float32(np.inf)
    while count < width and s.number[0] + s.number[1] > 0:
        o = victim(s, kind)
        h.cand[count], h.queue[count] = o, s.where[o]
        _describe(h, o, h.cx[count])
        score = _score(h, h.cx[count], h.hidden[0])
        if score < least:
            worst, least = count, score
        unlink(s, o)
        count += 1
    for i in range(count):
        if i != worst:
            push(s, 0 if kind == LRU else 1, h.cand[i])
            s.tag[h.cand[i]] = 0
    push_oldest(s, h.queue[worst], h.cand[worst])                       # it leaves from where it stood, so that ghosts are remembered
    if count > 1:
        _wait(h, count)
    return h.cand[worst]


@njit(cache=True)
def _wait(h, count):  # type: ignore[no-untyped-def]
    """Two of the candidates wait for which is asked for first."""
    first = _random(h, count)
    second = (first + 1 + _random(h, count - 1)) % count
    p = h.reg[NEXT] % _PAIRS
    h.reg[NEXT] += 1
    for side in range(2):                                               # whose place it takes waits no longer
        old = h.pid[p, side]
        if old >= 0 and h.pair[old] == p:
            h.pair[old] = -1
    for side in range(2):
        i = first if side == 0 else second
        h.px[p, side] = h.cx[i]
        h.pid[p, side] = h.cand[i]
        h.pair[h.cand[i]] = p


@njit(cache=True)
def _ask(s, o, size, h):  # type: ignore[no-untyped-def]
    """One request of a miniature; whether it hit."""
    kind = s.reg[KIND]
    if resident(s, o):
        touch(s, kind, o, 0)
        return True
    if not refuses(s, kind, size, 0):
        meet(s, kind, o, size)
        while s.reg[USED] + size > s.reg[CAPACITY]:
            drop(s, kind, ranked_victim(s, kind, s.reg[WIDTH], h) if s.reg[WIDTH] > 1 else victim(s, kind))
        admit(s, kind, o, size, 0)
    return False


@njit(cache=True)
def become(s, kind, width, h):  # type: ignore[no-untyped-def]
    """The cache `s` goes on under another rule: what it holds stays, the latest asked for as the newest; ghosts are forgotten."""
    objects = len(s.where)
    inside = np.empty(objects, np.int32)
    count = 0
    for o in range(objects):
        if 0 <= s.where[o] < RESIDENT:
            inside[count] = o
            count += 1
    held = inside[:count]
    order = np.argsort(-h.last[held])
    for q in range(QUEUES):
        s.next[q] = s.prev[q] = q
        s.used[q] = s.number[q] = 0
    s.where[:] = NOWHERE
    s.above[:] = -1
    s.below[:] = -1
    s.above[0] = s.below[0] = 0
    s.tag[:] = 0
    s.reg[USED] = s.reg[HAND] = s.reg[FLAG] = 0
    s.reg[KIND], s.reg[WIDTH] = kind, width
    for i in order:
        adopt(s, kind, held[i], h.count[held[i]])


@njit(cache=True)
def _follow(s, arms, h):  # type: ignore[no-untyped-def]
    """Another arm, where it misses fewer bytes than the present one beyond the margin."""
    best = h.reg[ARM]
    for a in range(len(arms)):
        if h.missed[a] < h.missed[best]:
            best = a
    if best != h.reg[ARM] and h.missed[best] < _AHEAD * h.missed[h.reg[ARM]]:
        h.reg[ARM] = best
        h.reg[SWITCHES] += 1
        kind, width = arms[best].reg[KIND], arms[best].reg[WIDTH]
        if s.reg[KIND] == kind:
            s.reg[WIDTH] = width
        else:
            become(s, kind, width, h)


@njit(cache=True)
def replay_learned(s, arms, h, ids, sizes, outcome, when, who, left):  # type: ignore[no-untyped-def]
    """As `_kernel.replay`, by the arm of `arms` that does best in miniature. `h`: what is known and learnt."""
    for i in range(len(ids)):
        o, size = ids[i], sizes[i]
        h.reg[SEEN] += 1
        if (np.uint64(o + 1) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(48) < np.uint64(h.reg[SHARE]):
            h.reg[SAMPLED] += 1
            held = max(_LEAST, arms[0].number[0])
            fade = np.exp2(-1.0 / (24.0 * held))
            for a in range(len(arms)):
                hit = _ask(arms[a], o, size, h)
                h.missed[a] = h.missed[a] * fade + (0.0 if hit else float(size))
            if h.reg[SAMPLED] - h.reg[CHECKED] >= held:
                h.reg[CHECKED] = h.reg[SAMPLED]
                _follow(s, arms, h)
        kind = s.reg[KIND]
        if resident(s, o):
            touch(s, kind, o, 0)
            outcome[i] = 1
        elif refuses(s, kind, size, 0):
            outcome[i] = 2
        else:
            meet(s, kind, o, size)
            while s.reg[USED] + size > s.reg[CAPACITY]:
                v = ranked_victim(s, kind, s.reg[WIDTH], h) if s.reg[WIDTH] > 1 else victim(s, kind)
                drop(s, kind, v)
                when[left], who[left] = i, v
                left += 1
            admit(s, kind, o, size, 0)
            outcome[i] = 0
        _seen(h, o, size)
    return left


@njit(cache=True)
def unknown(s, arms, h, o):  # type: ignore[no-untyped-def]
    """Object `o` is forgotten by the cache, by its miniatures and by the tables: its number may be given to another."""
    forget(s, s.reg[KIND], o)
    for a in range(len(arms)):
        forget(arms[a], arms[a].reg[KIND], o)
    h.last[o] = -1
    p = h.pair[o]
    h.pair[o] = -1
    if p >= 0:
        for side in range(2):
            if h.pid[p, side] == o:
                h.pid[p, side] = -1


#: What may be followed: a rule, and how many of its candidates the network ranks (0: the rule alone decides). The first is followed first.
ARMS = ((LIRS, 0), (LRU, 0), (S3FIFO, 0), (CLOCK2QPLUS, 0), (LRU, 4), (LRU, 12), (CLOCK2QPLUS, 8))


class LearnedCache:
    """A cache of `capacity` bytes for objects 0 … `objects` − 1, its arms in miniature, and what is learnt. `mean`: bytes of an object, about."""

    def __init__(self, capacity: int, objects: int, mean: float, seed: int = 0, arms: tuple[tuple[int, int], ...] = ARMS,
                 horizon: int = 1 << 20) -> None:
        share = sampled(capacity, mean)
        small = max(1, capacity * share // 65_536)
        self.state = new(arms[0][0], capacity, objects, arms[0][1], every=True)
        self.arms = tuple(new(kind, small, objects, width, every=True) for kind, width in arms)
        self.known = fresh(objects, len(arms), share, horizon, seed)

    def replay(self, ids: NDArray[np.int32], sizes: NDArray[np.int64], outcome: NDArray[np.uint8], when: NDArray[np.int32],
               who: NDArray[np.int32]) -> int:
        """As `_kernel.replay`, from position 0."""
        return int(replay_learned(self.state, self.arms, self.known, ids, sizes, outcome, when, who, 0))


def sampled(capacity: int, mean: float) -> int:
    """Of 65,536 parts of the objects, how many the miniatures see, so that each holds about `_LEAST` of `mean` bytes; half for a small cache."""
    return int(min(32_768, max(1_024, 65_536 * _LEAST * mean / max(1, capacity))))
