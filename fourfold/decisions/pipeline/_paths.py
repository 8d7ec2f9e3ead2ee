"""A bound of latency from one path through the network, and stages of a topological order for latency. Shared by this folder.

Take any path p_0 → p_1 → …. A device is visited once by it (no path leaves a subgraph and returns), so the path falls into segments, each on a core
or on one of k · parts subgraphs. A subgraph that holds p_i … p_j but neither p_{i-1} nor p_{j+1}
    holds all nodes on any path from p_i to p_j (its closure, with classes), holds no ancestor of p_{i-1} and no descendant of p_{j+1}, so it pays
    the outputs that cross there, and for a free-standing source read by the closure either holds its bytes or pays its output: the cheapest choice
    is at least a fractional knapsack.
Segments end one after the other, so the cheapest segmentation, a dynamic programme, is no more than the latency of any valid answer.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fourfold.frontends.placement import PipelineWorkload


def path_bound(w: PipelineWorkload, parts: int = 1) -> float:
    """The bound of the module's docstring, the greatest over a few long paths."""
    k = w.accelerators * parts
    fast = np.where(w.supported, w.accelerator, np.inf) if k else np.full(len(w), np.inf)
    slow = w.core if w.cores else np.full(len(w), np.inf)
    reach = _reach(w)
    best = 0.0
    for path in _paths(w, np.minimum(fast, slow)):
        best = max(best, float(_segments(path, reach, fast, slow, w.size, w.cost, w.source.astype(np.int64), w.target.astype(np.int64),
                                         w.color.astype(np.int64), k, float(w.limit) * (1 + 1e-9))))
    return best


def _reach(w: PipelineWorkload) -> np.ndarray:
    """bool[N, N]: v can be reached from u, itself included."""
    reach = np.eye(len(w), dtype=bool)
    after: list[list[int]] = [[] for _ in range(len(w))]
    for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
        after[u].append(v)
    for u in w.order[::-1].tolist():
        for v in after[u]:
            reach[u] |= reach[v]
    return reach


def _paths(w: PipelineWorkload, time: np.ndarray) -> list[np.ndarray]:
    """Long paths: by time, by time and transfers, by number of nodes."""
    before: list[list[int]] = [[] for _ in range(len(w))]
    for u, v in zip(w.source.tolist(), w.target.tolist(), strict=True):
        before[v].append(u)
    found: dict[bytes, np.ndarray] = {}
    for weight in (time, time + 0.05 * w.cost, time + time.sum() / max(1, len(w)), time * 1e-6 + w.size * (w.cost > 0) * 1e-12 + 1):
        end, from_ = np.zeros(len(w)), np.full(len(w), -1)
        for v in w.order.tolist():
            if before[v]:
                from_[v] = max(before[v], key=lambda u: end[u])
            end[v] = weight[v] + (end[from_[v]] if from_[v] >= 0 else 0.0)
        path = [int(end.argmax())] if len(w) else []
        while path and from_[path[-1]] >= 0:
            path.append(int(from_[path[-1]]))
        array = np.array(path[::-1], np.int64)
        found[array.tobytes()] = array
    return list(found.values())


@njit(cache=True)
def _segments(path, reach, fast, slow, size, cost, source, target, color, devices, limit):  # type: ignore[no-untyped-def]
    length, nodes = len(path), len(fast)
    fed = np.zeros(nodes, np.int64)
    for e in range(len(target)):
        fed[target[e]] += 1
    mates = np.zeros(nodes, np.int64)
    for v in range(nodes):
        mates[color[v]] += 1
    end = np.full((length + 1, devices + 1), np.inf)
    end[0, :] = 0.0
    inside = np.zeros(nodes, np.bool_)
    classes = np.zeros(nodes, np.bool_)
    paid = np.zeros(nodes, np.bool_)
    read = np.zeros(nodes, np.bool_)
    for i in range(length):
        for a in range(devices + 1):
            if end[i, a] + slow[path[i]] < end[i + 1, a]:
                end[i + 1, a] = end[i, a] + slow[path[i]]
        for j in range(i, length):
            low, high = path[i], path[j]
            classes[:] = False
            for v in range(nodes):
                if reach[low, v] and reach[v, high]:
                    classes[color[v]] = True
            time, held = 0.0, 0.0
            for v in range(nodes):
                inside[v] = classes[color[v]]
                if inside[v]:
                    time += fast[v]
                    held += size[v]
            if not np.isfinite(time) or held > limit:
                break                                                   # a longer segment holds more still
            paid[:] = False
            read[:] = False
            for e in range(len(source)):
                u, v = source[e], target[e]
                if i > 0 and inside[v] and not inside[u] and reach[u, path[i - 1]]:
                    paid[u] = True
                elif j + 1 < length and inside[u] and not inside[v] and reach[path[j + 1], v]:
                    paid[u] = True
                elif inside[v] and not inside[u] and fed[u] == 0 and mates[color[u]] == 1 and size[u] > 0:
                    read[u] = True
            sources = 0
            for u in range(nodes):
                if paid[u]:
                    time += cost[u]
                elif read[u]:
                    held += size[u]
                    sources += 1
            if held > limit:                                            # some stay outside: those that are cheapest by the byte
                which, worth = np.empty(sources, np.int64), np.empty(sources)
                n = 0
                for u in range(nodes):
                    if read[u] and not paid[u]:
                        which[n], worth[n] = u, cost[u] / size[u]
                        n += 1
                for at in np.argsort(worth):
                    u = which[at]
                    over = held - limit
                    if over <= 0:
                        break
                    time += cost[u] * min(1.0, over / size[u])
                    held -= size[u]
            for a in range(devices):
                if end[i, a] + time < end[j + 1, a + 1]:
                    end[j + 1, a + 1] = end[i, a] + time
    return end[length].min()
