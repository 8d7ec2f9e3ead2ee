"""The propagator: which chips each op may still be on, once some ops are fixed. Sets of chips are bits of one word; all steps can be undone.

What it removes is in no valid partition that agrees with what is fixed (a test compares with brute force):
  one direction       domains are intervals [lo, hi] with holes; lo grows along edges, hi shrinks against them
  triangle rule       connections between chips whose ends are fixed, and for each chip the set of chips that can be reached from it, as bits; a chip
                      is taken out where the connection that it would make closes a triangle
  between             on an edge (u, v), an op between u and v shares its chip with u or with v: else a third chip lies between theirs
  no skipped chip     a chip below the highest in use needs an op that may be on it; if there is one such op, it is there
  memory              weights of the ops on a chip, each once, and the largest op's inputs and outputs

Xie et al., MLSys 2022, section on the constraint solver; the sets of chips as intervals and bits, and the rule "between", are ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.chiplets.problem import ChipletPartition

_MOST_BETWEEN = 4_000_000                                               # entries of the rule "between"; what is beyond is left to later checks

ONE = np.uint64(1)
ZERO = np.uint64(0)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


class Net(NamedTuple):
    """What a propagator reads of a problem: N ops, C chips; neighbours, edges with ops between their ends (`end` u and v [B, 2], members in CSR, for
    each op the edges that it is between and those that it ends), descendants as bits, weights in CSR and bytes."""

    count: int
    chips: int
    pred_ptr: NDArray[np.int64]
    pred: NDArray[np.int64]
    succ_ptr: NDArray[np.int64]
    succ: NDArray[np.int64]
    end: NDArray[np.int64]
    member_ptr: NDArray[np.int64]
    member: NDArray[np.int64]
    inside_ptr: NDArray[np.int64]
    inside: NDArray[np.int64]
    ends_ptr: NDArray[np.int64]
    ends: NDArray[np.int64]
    later: NDArray[np.uint64]
    weight_ptr: NDArray[np.int64]
    weight: NDArray[np.int64]
    bytes: NDArray[np.float64]
    work: NDArray[np.float64]
    base: float
    limit: float


class PropagatorState(NamedTuple):
    """What changes: domains `dom` u8[N], ops that are `fixed` and accounted for, ops on each chip, bytes and largest op of each chip, how many
    readers a weight has on a chip; connections `joined` u8[C], chips `reached` from a chip and those that `reach` it; a trail to undo all of it by;
    `now`: 0 height of the trail, 1 of the kept connections, 2 head and 3 tail of the queue, 4 a stamp of the connections, 5 the source of chance, 6
    failures."""

    dom: NDArray[np.uint64]
    fixed: NDArray[np.bool_]
    open: NDArray[np.uint64]
    used: NDArray[np.int64]
    held: NDArray[np.float64]
    top: NDArray[np.float64]
    readers: NDArray[np.int32]
    joined: NDArray[np.uint64]
    reached: NDArray[np.uint64]
    reach: NDArray[np.uint64]
    kept: NDArray[np.uint64]
    trail_kind: NDArray[np.int8]
    trail_op: NDArray[np.int64]
    trail_word: NDArray[np.uint64]
    trail_size: NDArray[np.float64]
    queue: NDArray[np.int64]
    queued: NDArray[np.bool_]
    outward: NDArray[np.uint64]
    inward: NDArray[np.uint64]
    outward_at: NDArray[np.int64]
    inward_at: NDArray[np.int64]
    now: NDArray[np.int64]


def net_of(problem: ChipletPartition) -> Net:
    """The arrays of a problem."""
    w = problem.workload
    end, ptr, member = _between(w.source, w.target, w.descendants, w.ancestors, _MOST_BETWEEN)
    edge = np.repeat(np.arange(len(end)), np.diff(ptr))
    inside = _rows(len(w), member, edge)
    ends = _rows(len(w), end.reshape(-1), np.repeat(np.arange(len(end)), 2))
    return Net(len(w), problem.package.chips, w.before.ptr, w.before.item, w.after.ptr, w.after.item, end, ptr, member, *inside, *ends,
               w.descendants, w.weights.ptr, w.weights.item, w.weight, w.work, w.base_bytes, problem.package.memory)


def _rows(rows: int, row: np.ndarray, item: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(row, kind="stable")
    return np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int64), np.asarray(item, np.int64)[order]


def state_of(net: Net) -> PropagatorState:
    """A fresh state: every op may be anywhere."""
    n, c = net.count, net.chips
    high = n * (c + 2) + c * c + 16
    whole = ALL if c == 64 else (ONE << np.uint64(c)) - ONE
    words = (n + 63) // 64
    opened = np.full(words, ALL)
    if n % 64:
        opened[-1] = (ONE << np.uint64(n % 64)) - ONE
    return PropagatorState(np.full(n, whole), np.zeros(n, bool), opened, np.zeros(c, np.int64), np.full(c, net.base), np.zeros(c),
                 np.zeros((len(net.bytes), c), np.int32), np.zeros(c, np.uint64), np.zeros(c, np.uint64), np.zeros(c, np.uint64),
                 np.zeros((c * c + 1, 3, c), np.uint64), np.zeros(high, np.int8), np.zeros(high, np.int64), np.zeros(high, np.uint64),
                 np.zeros(high), np.zeros(n + 1, np.int64), np.zeros(n, bool), np.zeros(c, np.uint64), np.zeros(c, np.uint64),
                 np.full(c, -1, np.int64), np.full(c, -1, np.int64), np.zeros(8, np.int64))


@njit(cache=True)
def _between(source, target, later, earlier, most):  # type: ignore[no-untyped-def]
    """(ends, ptr, members) of the edges that have ops between their ends."""
    words = later.shape[1]
    total, edges = 0, 0
    sizes = np.zeros(len(source), np.int64)
    for e in range(len(source)):
        u, v = source[e], target[e]
        for i in range(words):
            bits = later[u, i] & earlier[v, i]
            while bits:
                bits &= bits - ONE
                sizes[e] += 1
        if total + sizes[e] > most:
            sizes[e] = 0
        total += sizes[e]
        edges += sizes[e] > 0
    end, ptr, member = np.zeros((edges, 2), np.int64), np.zeros(edges + 1, np.int64), np.zeros(total, np.int64)
    row, at = 0, 0
    for e in range(len(source)):
        if sizes[e] == 0:
            continue
        u, v = source[e], target[e]
        end[row, 0], end[row, 1] = u, v
        for i in range(words):
            bits, w = later[u, i] & earlier[v, i], 64 * i
            while bits:
                if bits & ONE:
                    member[at] = w
                    at += 1
                bits >>= ONE
                w += 1
        row += 1
        ptr[row] = at
    return end, ptr, member


# ---- words of bits

@njit(cache=True)
def low(word):  # type: ignore[no-untyped-def]
    """Number of the lowest bit; 64 of an empty word."""
    if word == ZERO:
        return 64
    k = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word & ((ONE << np.uint64(step)) - ONE) == ZERO:
            word >>= np.uint64(step)
            k += step
    return k


@njit(cache=True)
def high(word):  # type: ignore[no-untyped-def]
    """Number of the highest bit; -1 of an empty word."""
    if word == ZERO:
        return -1
    k = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(step):
            word >>= np.uint64(step)
            k += step
    return k


@njit(cache=True)
def _upto(k):  # type: ignore[no-untyped-def]
    """Bits 0 to k."""
    return ALL if k >= 63 else (ONE << np.uint64(k + 1)) - ONE


# ---- the trail

@njit(cache=True)
def _note(st, kind, op, word, size):  # type: ignore[no-untyped-def]
    at = st.now[0]
    st.trail_kind[at], st.trail_op[at], st.trail_word[at], st.trail_size[at] = kind, op, word, size
    st.now[0] = at + 1


@njit(cache=True)
def undo(net, st, height):  # type: ignore[no-untyped-def]
    """Take back all that happened since the trail had that height."""
    while st.now[0] > height:
        st.now[0] -= 1
        at = st.now[0]
        op = st.trail_op[at]
        if st.trail_kind[at] == 0:
            st.dom[op] = st.trail_word[at]
        elif st.trail_kind[at] == 1:
            c = low(st.dom[op])
            st.fixed[op] = False
            st.open[op >> 6] |= ONE << np.uint64(op & 63)
            st.used[c] -= 1
            st.top[c] = st.trail_size[at]
            for e in range(net.weight_ptr[op], net.weight_ptr[op + 1]):
                p = net.weight[e]
                st.readers[p, c] -= 1
                if st.readers[p, c] == 0:
                    st.held[c] -= net.bytes[p]
        else:
            st.now[1] -= 1
            k = st.now[1]
            for c in range(net.chips):
                st.joined[c], st.reached[c], st.reach[c] = st.kept[k, 0, c], st.kept[k, 1, c], st.kept[k, 2, c]
            st.now[4] += 1


# ---- chips

@njit(cache=True)
def _legal(st, a, c):  # type: ignore[no-untyped-def]
    """Whether chips a < c may be joined, as the connections stand."""
    bit = ONE << np.uint64(c)
    if st.joined[a] & bit:
        return True
    if st.reached[a] & bit:
        return False
    beyond = st.reached[c] | bit
    before = st.reach[a] | (ONE << np.uint64(a))
    while before:
        p = low(before)
        before &= before - ONE
        if st.joined[p] & beyond:
            return False
    return True


@njit(cache=True)
def _join(net, st, a, c):  # type: ignore[no-untyped-def]
    """Join chips a < c; False where that closes a triangle."""
    bit = ONE << np.uint64(c)
    if st.joined[a] & bit:
        return True
    if not _legal(st, a, c):
        return False
    k = st.now[1]
    for x in range(net.chips):
        st.kept[k, 0, x], st.kept[k, 1, x], st.kept[k, 2, x] = st.joined[x], st.reached[x], st.reach[x]
    st.now[1] = k + 1
    _note(st, 2, 0, ZERO, 0.0)
    st.now[4] += 1
    st.joined[a] |= bit
    before, beyond = st.reach[a] | (ONE << np.uint64(a)), st.reached[c] | bit
    for x in range(net.chips):
        if before & (ONE << np.uint64(x)):
            st.reached[x] |= beyond
        if beyond & (ONE << np.uint64(x)):
            st.reach[x] |= before
    return True


@njit(cache=True)
def _outward(net, st, a):  # type: ignore[no-untyped-def]
    """Chips that an op may be on which reads from chip a."""
    if st.outward_at[a] != st.now[4]:
        mask = ONE << np.uint64(a)
        for c in range(a + 1, net.chips):
            if _legal(st, a, c):
                mask |= ONE << np.uint64(c)
        st.outward[a], st.outward_at[a] = mask, st.now[4]
    return st.outward[a]


@njit(cache=True)
def _inward(net, st, c):  # type: ignore[no-untyped-def]
    """Chips that an op may be on which chip c reads from."""
    if st.inward_at[c] != st.now[4]:
        mask = ONE << np.uint64(c)
        for a in range(c):
            if _legal(st, a, c):
                mask |= ONE << np.uint64(a)
        st.inward[c], st.inward_at[c] = mask, st.now[4]
    return st.inward[c]


@njit(cache=True)
def _more(net, st, v, c):  # type: ignore[no-untyped-def]
    """Bytes of weights that op v would bring to chip c."""
    more = 0.0
    for e in range(net.weight_ptr[v], net.weight_ptr[v + 1]):
        if st.readers[net.weight[e], c] == 0:
            more += net.bytes[net.weight[e]]
    return more


# ---- propagation

@njit(cache=True)
def narrow(st, v, mask):  # type: ignore[no-untyped-def]
    """Keep of op v's chips those of `mask`; False where none is left."""
    old = st.dom[v]
    new = old & mask
    if new == old:
        return True
    if new == ZERO:
        return False
    _note(st, 0, v, old, 0.0)
    st.dom[v] = new
    if not st.queued[v]:
        st.queued[v] = True
        st.queue[st.now[3]] = v
        st.now[3] = (st.now[3] + 1) % len(st.queue)
    return True


@njit(cache=True)
def _register(net, st, v):  # type: ignore[no-untyped-def]
    """Account for op v, whose chip is settled: bytes, connections, what its neighbours may do."""
    c = low(st.dom[v])
    more = _more(net, st, v, c)
    if st.held[c] + more + max(st.top[c], net.work[v]) > net.limit:
        return False
    _note(st, 1, v, ZERO, st.top[c])
    st.fixed[v] = True
    st.open[v >> 6] &= ~(ONE << np.uint64(v & 63))
    st.used[c] += 1
    st.held[c] += more
    st.top[c] = max(st.top[c], net.work[v])
    for e in range(net.weight_ptr[v], net.weight_ptr[v + 1]):
        st.readers[net.weight[e], c] += 1
    for e in range(net.pred_ptr[v], net.pred_ptr[v + 1]):
        p = net.pred[e]
        if st.fixed[p] and low(st.dom[p]) != c and not _join(net, st, low(st.dom[p]), c):
            return False
    for e in range(net.succ_ptr[v], net.succ_ptr[v + 1]):
        s = net.succ[e]
        if st.fixed[s] and low(st.dom[s]) != c and not _join(net, st, c, low(st.dom[s])):
            return False
    mask = _inward(net, st, c)
    for e in range(net.pred_ptr[v], net.pred_ptr[v + 1]):
        if not narrow(st, net.pred[e], mask):
            return False
    mask = _outward(net, st, c)
    for e in range(net.succ_ptr[v], net.succ_ptr[v + 1]):
        if not narrow(st, net.succ[e], mask):
            return False
    return True


@njit(cache=True)
def _share(net, st, b, w):  # type: ignore[no-untyped-def]
    """The rule "between" for edge b and op w between its ends u and v."""
    u, v = net.end[b, 0], net.end[b, 1]
    if not narrow(st, w, st.dom[u] | st.dom[v]):
        return False
    if st.dom[w] & st.dom[u] == ZERO:
        both = st.dom[w] & st.dom[v]
        return narrow(st, w, both) and narrow(st, v, both)
    if st.dom[w] & st.dom[v] == ZERO:
        both = st.dom[w] & st.dom[u]
        return narrow(st, w, both) and narrow(st, u, both)
    return True


@njit(cache=True)
def _step(net, st, x):  # type: ignore[no-untyped-def]
    """All that follows from op x's domain."""
    d = st.dom[x]
    above, below = ~((d & (~d + ONE)) - ONE), _upto(high(d))
    for e in range(net.succ_ptr[x], net.succ_ptr[x + 1]):
        if not narrow(st, net.succ[e], above):
            return False
    for e in range(net.pred_ptr[x], net.pred_ptr[x + 1]):
        if not narrow(st, net.pred[e], below):
            return False
    single = d & (d - ONE) == ZERO
    if single and not st.fixed[x] and not _register(net, st, x):
        return False
    for e in range(net.inside_ptr[x], net.inside_ptr[x + 1]):
        if not _share(net, st, net.inside[e], x):
            return False
    if single:
        for e in range(net.ends_ptr[x], net.ends_ptr[x + 1]):
            b = net.ends[e]
            for k in range(net.member_ptr[b], net.member_ptr[b + 1]):
                if not _share(net, st, b, net.member[k]):
                    return False
    return True


@njit(cache=True)
def _skipped(net, st):  # type: ignore[no-untyped-def]
    """Every chip below the highest in use has an op that may be there; one that must be is fixed. (whether all have, whether something was fixed)"""
    holes, top = ZERO, -1
    for c in range(net.chips - 1, -1, -1):
        if st.used[c]:
            top = max(top, c)
        elif c < top:
            holes |= ONE << np.uint64(c)
    if holes == ZERO:
        return True, False
    once, twice = ZERO, ZERO
    for v in range(net.count):
        if not st.fixed[v]:
            twice |= once & st.dom[v]
            once |= st.dom[v]
    if holes & ~once:
        return False, False
    only = holes & once & ~twice
    if only == ZERO:
        return True, False
    for v in range(net.count):
        if not st.fixed[v] and st.dom[v] & only:
            mine = st.dom[v] & only
            if mine & (mine - ONE):                                     # it would have to be on two chips
                return False, False
            narrow(st, v, mine)
    return True, True


@njit(cache=True)
def propagate(net, st):  # type: ignore[no-untyped-def]
    """Follow all consequences of what is queued; False where a contradiction is found (the trail then takes it back)."""
    sound, busy = True, True
    while sound and busy:
        while st.now[2] != st.now[3]:
            x = st.queue[st.now[2]]
            st.now[2] = (st.now[2] + 1) % len(st.queue)
            st.queued[x] = False
            if not _step(net, st, x):
                sound = False
                break
        if sound:
            sound, busy = _skipped(net, st)
    while st.now[2] != st.now[3]:
        st.queued[st.queue[st.now[2]]] = False
        st.now[2] = (st.now[2] + 1) % len(st.queue)
    return sound


@njit(cache=True)
def candidates(net, st, v):  # type: ignore[no-untyped-def]
    """Chips that op v may be on, looked at once more: connections to what is fixed, memory, and chips in between that nobody could fill."""
    mask = st.dom[v]
    for e in range(net.pred_ptr[v], net.pred_ptr[v + 1]):
        if st.fixed[net.pred[e]]:
            mask &= _outward(net, st, low(st.dom[net.pred[e]]))
    for e in range(net.succ_ptr[v], net.succ_ptr[v + 1]):
        if st.fixed[net.succ[e]]:
            mask &= _inward(net, st, low(st.dom[net.succ[e]]))
    filled = ZERO
    for c in range(net.chips):
        if st.used[c]:
            filled |= ONE << np.uint64(c)
    first = low(~filled)
    if high(mask) > first:                                              # chips below v's are filled by ops that do not come after it
        for i in range(len(st.open)):
            others = st.open[i] & ~net.later[v, i]
            if i == v >> 6:
                others &= ~(ONE << np.uint64(v & 63))
            at = 64 * i
            while others:
                step = low(others)
                filled |= st.dom[at + step]
                others &= others - ONE
        mask &= _upto(low(~filled))
    left = mask
    while left:
        c = low(left)
        left &= left - ONE
        if st.held[c] + _more(net, st, v, c) + max(st.top[c], net.work[v]) > net.limit:
            mask &= ~(ONE << np.uint64(c))
    return mask
