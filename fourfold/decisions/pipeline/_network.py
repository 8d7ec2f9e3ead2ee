"""Latency of a split in numba, node by node, and what moves it: shared by the latency techniques of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from fourfold.decisions.pipeline._groups import Groups
from fourfold.frontends.placement import PipelineWorkload


@dataclass(frozen=True)
class Network:
    """Nodes in CSR and their groups. A state is `block` i8[G]: machine · parts + part on an accelerator, k · parts on the pool."""

    groups: Groups
    parts: int
    arrays: tuple[np.ndarray, ...]

    @classmethod
    def of_workload(cls, w: PipelineWorkload, parts: int) -> Network:
        groups = Groups.of_workload(w)
        by = np.argsort(w.source, kind="stable")
        after = w.target[by].astype(np.int64)
        after_ptr = np.concatenate([[0], np.cumsum(np.bincount(w.source, minlength=len(w)))]).astype(np.int64)
        back = np.argsort(w.target, kind="stable")
        before = w.source[back].astype(np.int64)
        before_ptr = np.concatenate([[0], np.cumsum(np.bincount(w.target, minlength=len(w)))]).astype(np.int64)
        member = np.argsort(groups.of, kind="stable").astype(np.int64)
        member_ptr = np.concatenate([[0], np.cumsum(np.bincount(groups.of, minlength=len(groups)))]).astype(np.int64)
        return cls(groups, parts, (groups.of, member_ptr, member, after_ptr, after, before_ptr, before, w.accelerator, w.core, w.cost))

    @property
    def pool(self) -> int:
        return self.groups.accelerators * self.parts

    def latency(self, block: np.ndarray) -> float:
        """Latency of a state; inf where devices wait for ever. Memory is not looked at."""
        return float(latency(block, self.pool, self.parts, *self.arrays))

    def fits(self, block: np.ndarray) -> bool:
        g = self.groups
        held = np.bincount(block // self.parts, g.size, g.accelerators + 1)[: g.accelerators]
        on = block < self.pool
        return bool((held <= g.limit).all() and np.isfinite(np.where(on, g.fast, g.slow)).all())


@njit(cache=True)
def latency(block, pool, parts, of, member_ptr, member, after_ptr, after, before_ptr, before, accelerator, core, cost):  # type: ignore[no-untyped-def]
    """problem.Latency.cost of a state: Kahn's algorithm over the accelerators' parts and the single nodes of the pool.

    Long: annealing calls this compiled function for every move; its parts would share ten arrays.
    """
    nodes = len(of)
    total = pool + nodes
    time, start = np.zeros(total), np.zeros(total)
    waits = np.zeros(total, np.int64)
    ptr = np.zeros(pool + 1, np.int64)
    for g in range(len(block)):
        if block[g] < pool:
            ptr[block[g] + 1] += member_ptr[g + 1] - member_ptr[g]
    for b in range(pool):
        ptr[b + 1] += ptr[b]
    content = np.empty(ptr[pool], np.int64)
    fill = ptr[:pool].copy()
    for g in range(len(block)):
        if block[g] < pool:
            for p in range(member_ptr[g], member_ptr[g + 1]):
                content[fill[block[g]]] = member[p]
                fill[block[g]] += 1
    stamp = np.full(pool, -1, np.int64)
    for u in range(nodes):
        a = block[of[u]]
        x = a if a < pool else pool + u
        time[x] += accelerator[u] if a < pool else core[u]
        out = False
        for e in range(after_ptr[u], after_ptr[u + 1]):
            v = after[e]
            b = block[of[v]]
            if b == a and a < pool:
                continue
            out = True
            waits[b if b < pool else pool + v] += 1
            if b < pool and stamp[b] != u:
                stamp[b] = u
                time[b] += cost[u]
        if out and a < pool:
            time[a] += cost[u]
    for b in range(pool):
        if b % parts:
            waits[b] += 1
    ready = np.empty(total, np.int64)
    head, tail, todo = 0, 0, pool
    for b in range(pool):
        if waits[b] == 0:
            ready[tail] = b
            tail += 1
    for u in range(nodes):
        if block[of[u]] >= pool:
            todo += 1
            if waits[pool + u] == 0:
                ready[tail] = pool + u
                tail += 1
    last = 0.0
    while head < tail:
        x = ready[head]
        head += 1
        end = start[x] + time[x]
        if end > last:
            last = end
        many = ptr[x + 1] - ptr[x] if x < pool else 1
        for i in range(many):
            u = content[ptr[x] + i] if x < pool else x - pool
            for e in range(after_ptr[u], after_ptr[u + 1]):
                v = after[e]
                b = block[of[v]]
                y = b if b < pool else pool + v
                if y == x:
                    continue
                if end > start[y]:
                    start[y] = end
                waits[y] -= 1
                if waits[y] == 0:
                    ready[tail] = y
                    tail += 1
        if x < pool and (x + 1) % parts and x + 1 < pool:
            y = x + 1
            if end > start[y]:
                start[y] = end
            waits[y] -= 1
            if waits[y] == 0:
                ready[tail] = y
                tail += 1
    return last if tail == todo else np.inf


@njit(cache=True)
def chain(order, fast, slow, size, net_ptr, net_cost, own_ptr, own_net, devices, limit):  # type: ignore[no-untyped-def]
    """Block of each group (`devices` = the pool) that ends a topological order soonest if its stages, on accelerators or the pool, ran one after
    the other."""
    many = len(order)
    end = np.full((many + 1, devices + 1), np.inf)
    back = np.full((many + 1, devices + 1), -1, np.int64)
    end[0, 0] = 0.0
    count = np.zeros(len(net_cost), np.int64)
    for first in range(many):
        g = order[first]
        for a in range(devices + 1):
            if end[first, a] + slow[g] < end[first + 1, a]:
                end[first + 1, a], back[first + 1, a] = end[first, a] + slow[g], -2
        count[:] = 0
        time, border, held = 0.0, 0.0, 0.0
        for last in range(first, many):
            g = order[last]
            time, held = time + fast[g], held + size[g]
            if held > limit or not np.isfinite(time):
                break
            for p in range(own_ptr[g], own_ptr[g + 1]):
                h = own_net[p]
                if count[h] == 0:
                    border += net_cost[h]
                count[h] += 1
                if count[h] == net_ptr[h + 1] - net_ptr[h]:
                    border -= net_cost[h]
            for a in range(devices):
                if end[first, a] + time + border < end[last + 1, a + 1]:
                    end[last + 1, a + 1], back[last + 1, a + 1] = end[first, a] + time + border, first
    block = np.full(many, devices, np.int64)
    a = np.argmin(end[many])
    at = many
    while at > 0:
        b = back[at, a]
        if b == -1:
            return block
        if b == -2:
            at -= 1
            continue
        a -= 1
        for i in range(b, at):
            block[order[i]] = a
        at = b
    return block
