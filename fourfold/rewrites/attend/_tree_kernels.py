"""Compiled loops of tree attention in inference: where a token falls, and who falls beside it. Arrays are contiguous; P is batch × heads.

Only what torch has no operator for: a descent touches one node a level, and tokens are put in order of their leaf by counting, not by comparing.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, fastmath={"contract", "reassoc"})
def descend(x, centre, weight, threshold, height, leaf):  # type: ignore[no-untyped-def]
    """leaf int64 [P, N] of tokens x float32 [P, N, D]: at node i of level l the next is 2i + [w · (x − centre) > threshold]. centre [H, D],
    weight [H, nodes, D], threshold [H, nodes], nodes level by level; head of p is p mod H."""
    heads, width = centre.shape[0], x.shape[2]
    for p in range(x.shape[0]):
        h = p % heads
        shift = np.empty(weight.shape[1], np.float32)                   # w · (x − c) > t  ⇔  w · x > t + w · c
        for n in range(weight.shape[1]):
            total = threshold[h, n]
            for d in range(width):
                total += weight[h, n, d] * centre[h, d]
            shift[n] = total
        for t in range(x.shape[1]):
            node, first = 0, 0
            for level in range(height):
                total = np.float32(0)
                for d in range(width):
                    total += weight[h, first + node, d] * x[p, t, d]
                right = total > shift[first + node]
                first += 1 << level
                node = 2 * node + right
            leaf[p, t] = node


@njit(cache=True)
def arrange(leaf, leaves, order, starts):  # type: ignore[no-untyped-def]
    """Positions of each row of leaf int64 [P, N] by leaf and, within one, by position: order int64 [P, N], starts int64 [P, leaves + 1]. A leaf
    of −1 or less is nobody's and comes last, outside of every start."""
    for p in range(leaf.shape[0]):
        for i in range(leaves + 1):
            starts[p, i] = 0
        for t in range(leaf.shape[1]):
            if leaf[p, t] >= 0:
                starts[p, leaf[p, t] + 1] += 1
        for i in range(leaves):
            starts[p, i + 1] += starts[p, i]
        at = starts[p, :leaves].copy()
        last = starts[p, leaves]
        for t in range(leaf.shape[1]):
            if leaf[p, t] >= 0:
                order[p, at[leaf[p, t]]] = t
                at[leaf[p, t]] += 1
            else:
                order[p, last] = t
                last += 1


@njit(cache=True, fastmath={"contract", "reassoc"})
def along(v, own, theirs, seen, share, height, causal, deepest, out):  # type: ignore[no-untyped-def]
    """out float32 [P, T, D] = Σ over levels of share · mean of the values v float32 [P, S, D] whose keys pass the query's node, levels without a key
    left out and the others' shares scaled up; `deepest`: the mean of the deepest level that has one. own int64 [P, T] and theirs [P, S] are leaves,
    seen bool [B, S], share float32 [H, height + 1]; `causal`: keys up to the query's own position. Zeros where no key may be seen."""
    heads, width = share.shape[0], v.shape[2]
    sums = np.empty(((2 << height) - 1, width), np.float32)
    counts = np.empty((2 << height) - 1, np.int64)
    for p in range(v.shape[0]):
        b, h = p // heads, p % heads
        sums[:] = 0
        counts[:] = 0
        if not causal:
            for s in range(v.shape[1]):
                if seen[b, s]:
                    at = (1 << height) - 1 + theirs[p, s]
                    counts[at] += 1
                    for d in range(width):
                        sums[at, d] += v[p, s, d]
            for at in range((1 << height) - 2, -1, -1):
                counts[at] = counts[2 * at + 1] + counts[2 * at + 2]
                for d in range(width):
                    sums[at, d] = sums[2 * at + 1, d] + sums[2 * at + 2, d]
        for t in range(own.shape[1]):
            if causal and t < v.shape[1] and seen[b, t]:
                for level in range(height + 1):
                    at = (1 << level) - 1 + (theirs[p, t] >> (height - level))
                    counts[at] += 1
                    for d in range(width):
                        sums[at, d] += v[p, t, d]
            total = np.float32(0)
            for level in range(height, -1, -1):
                at = (1 << level) - 1 + (own[p, t] >> (height - level))
                if counts[at] > 0:
                    total += share[h, level]
            for level in range(height, -1, -1):
                at = (1 << level) - 1 + (own[p, t] >> (height - level))
                if counts[at] > 0:
                    part = np.float32(1) / counts[at] if deepest else share[h, level] / (total * counts[at])
                    for d in range(width):
                        out[p, t, d] += part * sums[at, d]
                    if deepest:
                        break


@njit(cache=True, fastmath={"contract", "reassoc"})
def within(q, k, v, asks, ask_starts, keys, key_starts, scale, causal, out, empty):  # type: ignore[no-untyped-def]
    """out float32 [P, T, E] = softmax attention of each query q [P, T, D] over the keys k [P, S, D] of its leaf, values v [P, S, E]. asks, keys and
    their starts are those of `arrange`; `causal`: keys up to the query's own position. empty bool [P, T]: queries that saw none, whose row stays.

    A leaf's keys are laid down entry by entry, so that the products of four queries with all of them are four rows summed up side by side.
    """
    width, values = q.shape[2], v.shape[2]
    leaves = key_starts.shape[1] - 1
    most = 1
    for p in range(q.shape[0]):
        for leaf in range(leaves):
            most = max(most, key_starts[p, leaf + 1] - key_starts[p, leaf])
    turned, score = np.empty((width, most), np.float32), np.empty((4, most), np.float32)
    for p in range(q.shape[0]):
        for leaf in range(leaves):
            first, count = key_starts[p, leaf], key_starts[p, leaf + 1] - key_starts[p, leaf]
            if ask_starts[p, leaf] == ask_starts[p, leaf + 1]:
                continue
            for j in range(count):
                for d in range(width):
                    turned[d, j] = k[p, keys[p, first + j], d]
            for begin in range(ask_starts[p, leaf], ask_starts[p, leaf + 1], 4):
                some = min(4, ask_starts[p, leaf + 1] - begin)
                a, b = asks[p, begin], asks[p, begin + min(1, some - 1)]
                c, e = asks[p, begin + min(2, some - 1)], asks[p, begin + min(3, some - 1)]
                score[:, :count] = 0
                for d in range(width):
                    wa, wb, wc, we = scale * q[p, a, d], scale * q[p, b, d], scale * q[p, c, d], scale * q[p, e, d]
                    for j in range(count):
                        score[0, j] += wa * turned[d, j]
                        score[1, j] += wb * turned[d, j]
                        score[2, j] += wc * turned[d, j]
                        score[3, j] += we * turned[d, j]
                for r in range(some):
                    t = asks[p, begin + r]
                    seen = count
                    if causal:                                          # a leaf's keys are in the order of time
                        while seen > 0 and keys[p, first + seen - 1] > t:
                            seen -= 1
                    if seen == 0:
                        empty[p, t] = True
                        continue
                    high = score[r, 0]
                    for j in range(1, seen):
                        high = max(high, score[r, j])
                    total = np.float32(0)
                    for j in range(seen):
                        score[r, j] = np.exp(score[r, j] - high)
                        total += score[r, j]
                    for i in range(values):
                        out[p, t, i] = 0
                    for j in range(seen):
                        part = score[r, j] / total
                        s = keys[p, first + j]
                        for i in range(values):
                            out[p, t, i] += part * v[p, s, i]
