"""Trees for masks: products with e^{−a·distance} in two passes, and the centroids through which any function of distance goes.

A tree is an array of parents, −1 for the root. Kernels are compiled by numba and walk arrays; nothing is allocated per node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from fourfold.errors import InputError


def ordered(parents: np.ndarray) -> np.ndarray:
    """Nodes so that every parent stands before its children. Raises InputError where `parents` is no tree."""
    parents = np.asarray(parents)
    n = len(parents)
    whole = parents.ndim == 1 and n > 0 and np.issubdtype(parents.dtype, np.integer)
    if not whole or ((parents < -1) | (parents >= n)).any() or (parents == -1).sum() != 1:
        raise InputError("the parents do not describe a tree.", "Give one whole number a node: its parent's number, and −1 for the one root.")
    order = _order(parents.astype(np.int64))
    if len(order) != n:
        raise InputError(f"{n - len(order)} of {n} nodes cannot be reached from the root: the parents go in a circle.", "Give a tree.")
    return order


@numba.njit(cache=True)
def _order(parents: np.ndarray) -> np.ndarray:
    n = len(parents)
    first, count = np.zeros(n + 2, np.int64), np.zeros(n + 1, np.int64)
    for p in parents:
        first[p + 2] += 1
    for i in range(1, n + 2):
        first[i] += first[i - 1]
    children = np.empty(n, np.int64)
    for i in range(n):
        p = parents[i] + 1
        children[first[p] + count[p]] = i
        count[p] += 1
    order, filled = np.empty(n, np.int64), 1
    order[0] = children[0]
    read = 0
    while read < filled:
        p = order[read] + 1
        for j in range(first[p], first[p] + count[p]):
            order[filled] = children[j]
            filled += 1
        read += 1
    return order[:filled]


@numba.njit(cache=True)
def decayed(x: np.ndarray, share: np.ndarray, parents: np.ndarray, order: np.ndarray) -> np.ndarray:
    """x [rows, heads, columns, n] → y of the same shape, y_i = Σ_j (product of the `share` [heads, n] of all edges between i and j) x_j.

    Upwards u_p = x_p + Σ_c share_c u_c, downwards y_c = u_c + share_c (y_p − share_c u_c): 2n multiplications and additions a column.
    """
    y = x.copy()
    n = x.shape[3]
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for f in range(x.shape[2]):
                row = y[b, h, f]
                for t in range(n - 1, 0, -1):
                    c = order[t]
                    row[parents[c]] += share[h, c] * row[c]
                for t in range(1, n):
                    c = order[t]
                    row[c] += share[h, c] * (row[parents[c]] - share[h, c] * row[c])
    return y


@numba.njit(cache=True)
def slope(x: np.ndarray, into: np.ndarray, share: np.ndarray, change: np.ndarray, parents: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Per head Σ `into` · dy, where dy is how y of `decayed` changes when every share changes by `change` [heads, n]."""
    n, heads = x.shape[3], x.shape[1]
    found = np.zeros(heads, x.dtype)
    u, du = np.empty(n, x.dtype), np.empty(n, x.dtype)
    for b in range(x.shape[0]):
        for h in range(heads):
            for f in range(x.shape[2]):
                u[:] = x[b, h, f]
                du[:] = 0
                for t in range(n - 1, 0, -1):
                    c = order[t]
                    p = parents[c]
                    du[p] += change[h, c] * u[c] + share[h, c] * du[c]
                    u[p] += share[h, c] * u[c]
                for t in range(1, n):
                    c = order[t]
                    p = parents[c]
                    rest = u[p] - share[h, c] * u[c]
                    du[c] += change[h, c] * rest + share[h, c] * (du[p] - change[h, c] * u[c] - share[h, c] * du[c])
                    u[c] += share[h, c] * rest
                for i in range(n):
                    found[h] += into[b, h, f, i] * du[i]
    return found


class TreeDecay(torch.autograd.Function):
    """x [B, H, F, N], rates [H] ≥ 0, `tree` (parents, weights of the edges to them, order) → Σ_j e^{−rate · distance(i, j)} x_j."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, rate: Tensor, tree: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Tensor:
        ctx.save_for_backward(x, rate)
        ctx.tree = tree  # type: ignore[attr-defined]
        parents, weights, order = tree
        return torch.from_numpy(decayed(_array(x), np.exp(-_array(rate)[:, None] * weights), parents, order)).to(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, into: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, rate = ctx.saved_tensors  # type: ignore[attr-defined]
        parents, weights, order = ctx.tree  # type: ignore[attr-defined]
        share = np.exp(-_array(rate)[:, None] * weights)
        back = torch.from_numpy(decayed(_array(into), share, parents, order)).to(x)    # the mask is symmetric
        found = slope(_array(x), _array(into), share, -weights * share, parents, order)
        return back, torch.from_numpy(found).to(rate), None


def _array(t: Tensor) -> np.ndarray:
    """float64, whatever it was: one compiled kernel, and sums that are exact for single precision."""
    return t.detach().cpu().double().contiguous().numpy()


@dataclass(frozen=True)
class Centroids:
    """A tree cut at centroids: every pair of nodes meets in one, at the sum of both depths. `size` 2^i: buckets (depths) of each of `pieces` pieces;
    `into` sparse [pieces · size, n]: which nodes stand at which depth; `back` its transpose, with −1 for the pieces that take out what two nodes of
    one branch met in twice. N nodes stand in at most N (1 + log₂ N) places of either sign."""

    size: int
    pieces: int
    into: Tensor
    back: Tensor


def centroids(parents: np.ndarray, order: np.ndarray) -> list[Centroids]:
    """All pieces of a tree with edges of length 1, those of about one depth together."""
    n = len(parents)
    node, piece, depth, sign, deepest = _pieces(parents, order)
    padded = 1 << np.ceil(np.log2(np.maximum(deepest + 1, 1))).astype(np.int64)
    found = []
    for size in np.unique(padded):
        which = np.flatnonzero(padded == size)
        place = np.full(len(padded), -1)
        place[which] = np.arange(len(which))
        mine = place[piece] >= 0
        rows = torch.from_numpy(place[piece[mine]] * size + depth[mine])
        columns = torch.from_numpy(node[mine])
        signs = torch.from_numpy(sign[piece[mine]].astype(np.float64))
        shape = (len(which) * int(size), n)
        into = torch.sparse_coo_tensor(torch.stack([rows, columns]), torch.ones_like(signs), shape, check_invariants=False).coalesce()
        back = torch.sparse_coo_tensor(torch.stack([columns, rows]), signs, shape[::-1], check_invariants=False).coalesce()
        found.append(Centroids(int(size), len(which), into, back))
    return found


@numba.njit(cache=True)
def _pieces(parents: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # noqa: C901
    """(node, piece, depth) of every entry, sign and greatest depth of every piece.

    For each component: nodes breadth first, sizes backwards, the centroid where no branch has more than half; then breadth first from there, once for
    all nodes, and once for each branch with the other sign.

    Long: one compiled walk over arrays that all its parts share.
    """
    n = len(parents)
    first = np.zeros(n + 1, np.int64)
    for i in range(n):
        if parents[i] >= 0:
            first[i + 1] += 1
            first[parents[i] + 1] += 1
    for i in range(n):
        first[i + 1] += first[i]
    beside, filled = np.empty(first[n], np.int64), first[:n].copy()
    for i in range(n):
        p = parents[i]
        if p >= 0:
            beside[filled[i]] = p
            filled[i] += 1
            beside[filled[p]] = i
            filled[p] += 1
    most = 2 * n * (2 + int(np.ceil(np.log2(n + 1))))
    node, piece, depth = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    sign, deepest = np.empty(2 * n, np.int64), np.zeros(2 * n, np.int64)
    gone, size, came = np.zeros(n, np.bool_), np.zeros(n, np.int64), np.empty(n, np.int64)
    queue, level = np.empty(n, np.int64), np.empty(n, np.int64)
    stack, height = np.empty(n, np.int64), 1
    stack[0] = order[0]
    entries, pieces = 0, 0
    while height:
        height -= 1
        root = stack[height]
        queue[0], came[root], end, read = root, -1, 1, 0
        while read < end:
            i = queue[read]
            size[i] = 1
            read += 1
            for e in range(first[i], first[i + 1]):
                j = beside[e]
                if j != came[i] and not gone[j]:
                    came[j] = i
                    queue[end] = j
                    end += 1
        for t in range(end - 1, 0, -1):
            size[came[queue[t]]] += size[queue[t]]
        centre, moved = root, True
        while moved:
            moved = False
            for e in range(first[centre], first[centre + 1]):
                j = beside[e]
                if not gone[j] and came[j] == centre and 2 * size[j] > end:
                    centre, moved = j, True
                    break
        gone[centre] = True
        sign[pieces], deepest[pieces] = 1, 0
        whole = pieces
        node[entries], piece[entries], depth[entries] = centre, whole, 0
        entries += 1
        pieces += 1
        for e in range(first[centre], first[centre + 1]):
            start = beside[e]
            if gone[start]:
                continue
            stack[height] = start
            height += 1
            sign[pieces], deepest[pieces] = -1, 0
            queue[0], came[start], level[start], end, read = start, centre, 1, 1, 0
            while read < end:
                i = queue[read]
                read += 1
                for target in (whole, pieces):
                    node[entries], piece[entries], depth[entries] = i, target, level[i]
                    deepest[target] = max(deepest[target], level[i])
                    entries += 1
                for g in range(first[i], first[i + 1]):
                    j = beside[g]
                    if j != came[i] and not gone[j]:
                        came[j], level[j] = i, level[i] + 1
                        queue[end] = j
                        end += 1
            pieces += 1
    return node[:entries], piece[:entries], depth[:entries], sign[:pieces], deepest[:pieces]


def distances(parents: np.ndarray, weights: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Of every pair of nodes, float64 [n, n]: for small trees and for tests. Quadratic."""
    n = len(parents)
    found = np.zeros((n, n))
    for t, c in enumerate(order):
        if t:
            done = order[:t]
            found[c, done] = found[done, c] = found[parents[c], done] + weights[c]
    return found
