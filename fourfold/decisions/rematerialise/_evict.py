"""An order run within a limit: what does not fit is dropped, and computed again before its next reader (compiled).

The value dropped is the one of least price to make again, with what of its making is not alive, per byte and per step until its next use: the h of
dynamic tensor rematerialisation (Kirisame et al. 2021), with the next use known (Belady 1966) in place of the last.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import measure
from fourfold.decisions.rematerialise.instance import CoreGraph
from fourfold.problem import Budget

EXPONENTS = ((1.0, 1.0), (1.0, 0.0), (0.5, 0.5), (1.0, 0.5), (0.5, 0.0), (0.0, 0.0), (1.5, 1.0), (0.7, 0.3))
_NEAR = 64                                                              # nodes looked at to price what a value would take to make again


@njit(cache=True)
def _missing(core, n, alive, away, stamp, tick, stack, closure):  # type: ignore[no-untyped-def]
    """Nodes in running order that must run again before node n can, values that are `away` b1[R] fetched; their number, or -1 where one of them must
    not or there are too many."""
    depth, made = 1, 0
    stack[0] = n
    while depth > 0:                                                   # in postorder; a node may stand in the stack twice, the later one counts
        m = stack[depth - 1]
        if m < 0:
            depth -= 1
            if -m - 1 != n:
                closure[made] = -m - 1
                made += 1
            continue
        if stamp[m] == tick:
            depth -= 1
            continue
        stamp[m] = tick
        stack[depth - 1] = -m - 1
        for e in range(core.in_ptr[m], core.in_ptr[m + 1]):
            u = core.in_val[e]
            p = core.fetch[u] if away[u] else core.producer[u]
            if not alive[u] and stamp[p] != tick:
                if core.once[p]:
                    return -1
                stack[depth] = p
                depth += 1
    return made


@njit(cache=True)
def _price(core, v, alive, stamp, tick, stack):  # type: ignore[no-untyped-def]
    """What it takes to compute v again: its producer, and what is not alive of its making, up to _NEAR nodes."""
    depth, price, looked = 1, 0.0, 0
    stack[0] = core.producer[v]
    stamp[core.producer[v]] = tick
    while depth > 0:
        depth -= 1
        m = stack[depth]
        price += core.price[m]
        looked += 1
        for e in range(core.in_ptr[m], core.in_ptr[m + 1]):
            p = core.producer[core.in_val[e]]
            if not alive[core.in_val[e]] and stamp[p] != tick:
                if core.once[p]:
                    return np.inf
                if looked + depth >= _NEAR:
                    return price * 4.0
                stamp[p] = tick
                stack[depth] = p
                depth += 1
    return price


@njit(cache=True)
def _cheapest(core, v, carry, there, alive, stamp, tick, stack):  # type: ignore[no-untyped-def]
    """(the least price of having v again, whether that is a fetch). `carry`: it may be fetched; `there`: its copy is made, once for all fetches."""
    again = np.inf if core.once[core.producer[v]] else _price(core, v, alive, stamp, tick, stack)
    if not carry:
        return again, False
    link = core.price[core.fetch[v]] + (0.0 if there else core.store[v])
    return min(again, link), link < again


@njit(cache=True)
def _evict(core, order, limit, by_size, by_gap, least, use_ptr, use_at, out):  # type: ignore[no-untyped-def]
    """(length, whether the limit held) of `order` within `limit`, into `out`. `use_at`: positions in `order` at which each root is read, ascending.

    A long chain may need what was dropped for it: more than len(out) steps end the attempt.
    """
    nodes, roots = len(core.once), len(core.size)
    alive, lock, at = np.zeros(roots, np.bool_), np.zeros(roots, np.int32), use_ptr[:-1].copy()
    away, far = np.zeros(roots, np.bool_), core.far                     # values with a copy in the second memory; bytes free there
    stamp, closure = np.full(nodes, -1, np.int64), np.zeros(nodes + 1, np.int32)
    stack = np.zeros(nodes + len(core.in_val) + 1, np.int32)
    now, length, tick, fits = 0, 0, 0, True
    for t in range(len(order) + roots):
        n = -1
        if t < len(order):
            n = order[t]
        elif core.pinned[t - len(order)] and not alive[t - len(order)]:
            n = core.fetch[t - len(order)] if away[t - len(order)] else core.producer[t - len(order)]
        if n < 0:
            continue
        tick += 1
        made = _missing(core, n, alive, away, stamp, tick, stack, closure)
        if made < 0:
            return length, False
        closure[made] = n
        for k in range(made + 1):
            for e in range(core.in_ptr[closure[k]], core.in_ptr[closure[k] + 1]):
                lock[core.in_val[e]] += 1
        for k in range(made + 1):
            m = closure[k]
            need = core.workspace[m]
            for e in range(core.out_ptr[m], core.out_ptr[m + 1]):
                if not alive[core.out_val[e]]:
                    need += core.size[core.out_val[e]]
            while now + need > limit:
                victim, lowest, carried = -1, np.inf, False
                for v in range(roots):
                    carry = away[v] or (core.fetch[v] >= 0 and core.size[v] <= far)
                    if not alive[v] or lock[v] > 0 or core.size[v] == 0 or (core.once[core.producer[v]] and not carry):
                        continue
                    if t >= len(order) and core.pinned[v]:                # nobody would make it again
                        continue
                    following = use_at[at[v]] if at[v] < use_ptr[v + 1] else len(order)
                    tick += 1
                    again, linked = _cheapest(core, v, carry, away[v], alive, stamp, tick, stack)
                    score = (again + least) / (core.size[v] ** by_size * max(1, following - t) ** by_gap)
                    if score < lowest:
                        victim, lowest, carried = v, score, linked
                if victim < 0:
                    fits = False
                    break
                alive[victim] = False
                now -= core.size[victim]
                if carried and not away[victim]:
                    away[victim] = True
                    far -= core.size[victim]
            if length >= len(out):
                return length, False
            out[length] = m
            length += 1
            for e in range(core.out_ptr[m], core.out_ptr[m + 1]):
                if not alive[core.out_val[e]]:
                    alive[core.out_val[e]] = True
                    now += core.size[core.out_val[e]]
            for e in range(core.in_ptr[m], core.in_ptr[m + 1]):
                v = core.in_val[e]
                lock[v] -= 1
                if k == made and t < len(order):
                    while at[v] < use_ptr[v + 1] and use_at[at[v]] <= t:
                        at[v] += 1
            for e in range(core.in_ptr[m], core.in_ptr[m + 1]):
                v = core.in_val[e]
                if alive[v] and lock[v] == 0 and at[v] >= use_ptr[v + 1] and not core.pinned[v]:
                    alive[v] = False
                    now -= core.size[v]
            for e in range(core.out_ptr[m], core.out_ptr[m + 1]):
                v = core.out_val[e]
                if alive[v] and lock[v] == 0 and at[v] >= use_ptr[v + 1] and not core.pinned[v]:
                    alive[v] = False
                    now -= core.size[v]
    return length, fits


def evicted(core: CoreGraph, order: NDArray[np.int32], limit: int, by_size: float, by_gap: float) -> NDArray[np.int32] | None:
    """`order` (each node once) within `limit`, with `by_size` and `by_gap` the exponents of bytes and of steps until the next use; None where it does
    not fit, or only in more than eight times as many steps."""
    position = np.zeros(len(order), np.int64)
    position[order] = np.arange(len(order))
    reader = position[np.repeat(np.arange(len(order)), np.diff(core.in_ptr[: len(order) + 1]))]
    by_value = np.lexsort((reader, core.in_val))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(core.in_val, minlength=len(core.size)))]).astype(np.int64)
    out = np.zeros(8 * len(order) + 64, np.int32)
    least = float(core.price.sum()) / max(1, len(order)) * 1e-3
    length, fits = _evict(core, order, limit, by_size, by_gap, least, pointer, reader[by_value], out)
    return out[:length].copy() if fits else None


def evictions(core: CoreGraph, limit: int, orders: list[NDArray[np.int32]], budget: Budget) -> Iterator[tuple[float, NDArray[np.int32]]]:
    """(price, sequence of core nodes) of each order and pair of exponents that fits `limit` bytes alive; the first pair of each even without
    budget."""
    for order in orders:
        for k, (by_size, by_gap) in enumerate(EXPONENTS):
            if k and budget.exhausted:
                break
            budget.spend()
            if (found := evicted(core, order, limit, by_size, by_gap)) is not None:
                peak, price, kept, _ = measure(core, found)
                if peak <= limit:
                    yield price, kept
