"""SAMPLE and FIX: from a distribution, or from a partition that breaks rules, to one that keeps them (Xie et al., MLSys 2022).

SAMPLE visits ops in an order, draws the chip of each from a distribution restricted to what the propagator leaves, and propagates; where nothing is
left it goes back to the latest neighbour that was decided and takes that choice out. FIX visits ops and gives each the chip that is asked for where
it is still possible, skips it where it is not, and completes the skipped ones afterwards with the nearest chip that is left.

Both give up after a number of failures and begin anew, opening chips in order; at last the distribution is followed along the order of the ops in
contiguous stages, of which each sends to the next one only. With uniform chances SAMPLE reaches every valid partition (tested on small graphs).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.chiplets._propagate import ONE, ZERO, Net, PropagatorState, _upto, candidates, low, narrow, net_of, propagate, state_of, undo
from fourfold.decisions.chiplets.problem import ChipletPartition

Chips = NDArray[np.int16]


class Sampler:
    """SAMPLE and FIX for one problem; holds the propagator's arrays and is used again and again."""

    def __init__(self, problem: ChipletPartition) -> None:
        self.net: Net = net_of(problem)
        self.state: PropagatorState = state_of(self.net)
        self.order = np.arange(self.net.count)
        self.ahead = reach(self.net.count, self.net.succ_ptr, self.net.succ)
        self.most = 64 + self.net.count // 16
        self.begun = bool(begin(self.net, self.state))
        self.clean = int(self.state.now[0])

    def sample(self, chances: np.ndarray | None, seed: int, order: np.ndarray | None = None) -> Chips | None:
        """A valid partition drawn from `chances` f4[N, C] (None: uniform), or None where none was found."""
        weights = np.zeros((0, 0), np.float32) if chances is None else chances
        return self._found(weights, np.zeros(0, np.int64), seed, order)

    def fix(self, wanted: np.ndarray, order: np.ndarray | None = None) -> Chips | None:
        """A valid partition near `wanted` i[N]; `wanted` itself where that is valid; None where none was found."""
        return self._found(np.zeros((0, 0), np.float32), np.asarray(wanted, np.int64), 0, order)

    def _found(self, weights: np.ndarray, wanted: np.ndarray, seed: int, order: np.ndarray | None) -> Chips | None:
        if not self.begun:
            return None
        net, state, way = self.net, self.state, self.order if order is None else order
        for attempt in range(3):
            done = visit(net, state, way if attempt == 0 else self.order, weights, wanted, attempt > 0, attempt == 0, self.most,
                         (seed * 3 + attempt) % (1 << 31))
            found = answer(state) if done else None
            undo(net, state, self.clean)
            if found is not None:
                return found
        found = walk(net, self.ahead, weights, wanted, seed % (1 << 31))
        return found.astype(np.int16) if len(found) else None


@njit(cache=True)
def begin(net, st):  # type: ignore[no-untyped-def]
    """What holds before anything is decided: as many ops as the number of an op's chip do not come after it, one on each chip below."""
    for v in range(net.count):
        later = 0
        for i in range(net.later.shape[1]):
            bits = net.later[v, i]
            while bits:
                bits &= bits - ONE
                later += 1
        if not narrow(st, v, _upto(net.count - 1 - later)):
            return False
    return propagate(net, st)


@njit(cache=True)
def answer(st):  # type: ignore[no-untyped-def]
    found = np.empty(len(st.dom), np.int16)
    for v in range(len(found)):
        found[v] = low(st.dom[v])
    return found


@njit(cache=True)
def reach(count, succ_ptr, succ):  # type: ignore[no-untyped-def]
    """i8[N + 1]: the last op that reads any of the ops before op p."""
    ahead = np.zeros(count + 1, np.int64)
    for v in range(count):
        last = ahead[v]
        for e in range(succ_ptr[v], succ_ptr[v + 1]):
            last = max(last, succ[e])
        ahead[v + 1] = last
    return ahead


@njit(cache=True)
def _drawn(weights, v, mask, chips):  # type: ignore[no-untyped-def]
    """A chip of `mask`, by the weights of op v or uniformly."""
    total, count = 0.0, 0
    for c in range(chips):
        if mask & (ONE << np.uint64(c)):
            count += 1
            if len(weights):
                total += weights[v, c]
    if total > 1e-12:
        at = np.random.random() * total
        last = -1
        for c in range(chips):
            if mask & (ONE << np.uint64(c)) and weights[v, c] > 0:
                at -= weights[v, c]
                last = c
                if at <= 0.0:
                    return c
        return last
    pick = np.random.randint(count)
    for c in range(chips):
        if mask & (ONE << np.uint64(c)):
            if pick == 0:
                return c
            pick -= 1
    return -1


@njit(cache=True)
def _nearest(mask, want, chips):  # type: ignore[no-untyped-def]
    for step in range(chips):
        for c in (want - step, want + step):
            if 0 <= c < chips and mask & (ONE << np.uint64(c)):
                return c
    return -1


@njit(cache=True)
def visit(net, st, order, weights, wanted, opened, twice, most, seed):  # type: ignore[no-untyped-def]
    """Decide all ops; False where it gave up. `weights` f4[N, C] or empty, `wanted` i8[N] or empty; `opened`: chips are opened in order where that
    can be; `twice`: first all that is wanted and possible, then the rest (else each op at once gets the nearest)."""
    np.random.seed(seed)
    n, chips = net.count, net.chips
    op, chip, height = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    near = np.zeros(n, np.bool_)
    depth, fails, at = 0, 0, 0
    if twice and len(wanted):
        for i in range(n):
            v = order[i]
            bit = ONE << np.uint64(wanted[v])
            if st.fixed[v] or candidates(net, st, v) & bit == ZERO:
                continue
            mark = st.now[0]
            narrow(st, v, bit)
            if propagate(net, st):
                op[depth], chip[depth], height[depth] = v, wanted[v], mark
                depth += 1
            else:
                undo(net, st, mark)
    while True:
        while at < n and st.fixed[order[at]]:
            at += 1
        if at == n:
            return True
        v = order[at]
        mask = candidates(net, st, v)
        if opened:
            top = 0
            for c in range(chips):
                if st.used[c]:
                    top = c + 1
            if mask & _upto(top):
                mask &= _upto(top)
        dead = mask == ZERO
        if not dead:
            c = _nearest(mask, wanted[v], chips) if len(wanted) else _drawn(weights, v, mask, chips)
            mark = st.now[0]
            narrow(st, v, ONE << np.uint64(c))
            if propagate(net, st):
                op[depth], chip[depth], height[depth] = v, c, mark
                depth += 1
                continue
            undo(net, st, mark)
            fails += 1
            if narrow(st, v, ~(ONE << np.uint64(c))) and propagate(net, st):
                if fails > most:
                    return False
                continue
            undo(net, st, mark)
            dead = True
        while dead:                                                     # back to the latest neighbour that was decided
            fails += 1
            if depth == 0 or fails > most:
                return False
            near[:] = False
            for e in range(net.pred_ptr[v], net.pred_ptr[v + 1]):
                near[net.pred[e]] = True
            for e in range(net.succ_ptr[v], net.succ_ptr[v + 1]):
                near[net.succ[e]] = True
            k = depth - 1
            while k >= 0 and not near[op[k]]:
                k -= 1
            depth = k if k >= 0 else depth - 1
            undo(net, st, height[depth])
            v, at = op[depth], 0
            mark = st.now[0]
            dead = not (narrow(st, v, ~(ONE << np.uint64(chip[depth]))) and propagate(net, st))
            if dead:
                undo(net, st, mark)


@njit(cache=True)
def walk(net, ahead, weights, wanted, seed):  # type: ignore[no-untyped-def]
    """Contiguous stages of the order that follow what is wanted as near as they can; each sends to the next one only. Empty where memory forbids."""
    np.random.seed(seed)
    n, chips = net.count, net.chips
    found = np.zeros(n, np.int64)
    stage, need = 0, -1
    held, top = net.base, 0.0
    last = np.full(len(net.bytes), -1, np.int64)
    everything = _upto(chips - 1)
    for v in range(n):
        want = wanted[v] if len(wanted) else _drawn(weights, v, everything, chips)
        more = 0.0
        for e in range(net.weight_ptr[v], net.weight_ptr[v + 1]):
            if last[net.weight[e]] != stage:
                more += net.bytes[net.weight[e]]
        full = held + more + max(top, net.work[v]) > net.limit
        if v > 0 and (want > stage or full) and v > need and stage + 1 < chips:
            stage, need = stage + 1, ahead[v]
            held, top, more = net.base, 0.0, 0.0
            for e in range(net.weight_ptr[v], net.weight_ptr[v + 1]):
                more += net.bytes[net.weight[e]]
            full = held + more + net.work[v] > net.limit
        if full:
            return np.zeros(0, np.int64)
        held += more
        top = max(top, net.work[v])
        for e in range(net.weight_ptr[v], net.weight_ptr[v + 1]):
            last[net.weight[e]] = stage
        found[v] = stage
    return found
