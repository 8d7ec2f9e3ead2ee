"""The validator's kernels: which groups break a rule, whether groups wait in a circle, and the simulator's rules once more. They share no code with a
solver, nor with `cost/simulate`; the tests compare them with plain Python on small graphs.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (kernels: the types are numba's)
from __future__ import annotations

import heapq

import numpy as np
from numba import njit

from fourfold.graph import CONTRACTION, OPAQUE, REDUCTION, VIEW

_END, _ARRIVAL, _DEPARTURE, _WAKING = 0, 1, 2, 3                        # what happens at one instant, in this order


@njit(cache=True)
def unsound(task, count, fusion, space, in_ptr, in_val, out_ptr, out_val, use_ptr, use_node, producer, returned, most, streams):  # type: ignore[no-untyped-def]
    """bool [T]: whether a task of several nodes breaks a rule of fusion; task i8[N], count T, the rest as in Graph and Schedule."""
    nodes, values = len(task), len(producer)
    size, largest = np.zeros(count, np.int64), np.ones(count, np.int64)
    heavy, reduces, wrong = np.zeros(count, np.int64), np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    start = np.zeros(count + 1, np.int64)
    for n in range(nodes):
        t = task[n]
        size[t] += 1
        start[t + 1] += 1
        heavy[t] += fusion[n] == CONTRACTION
        reduces[t] |= fusion[n] == REDUCTION
        if fusion[n] != VIEW:
            largest[t] = max(largest[t], space[n])
    for t in range(count):
        start[t + 1] += start[t]
    member, filled = np.empty(nodes, np.int64), start[:-1].copy()
    fed = np.zeros(nodes, np.bool_)                                     # reads, perhaps through views, what its task computes
    for n in range(nodes):
        t = task[n]
        member[filled[t]] = n
        filled[t] += 1
        if size[t] == 1:
            continue
        for e in range(in_ptr[n], in_ptr[n + 1]):
            p = producer[in_val[e]]
            if p >= 0 and task[p] == t and (fusion[p] != VIEW or fed[p]):
                fed[n] = True
        if (fusion[n] == OPAQUE or (fusion[n] == CONTRACTION and fed[n])
                or (fusion[n] != VIEW and space[n] != 0 and largest[t] % space[n] != 0)):
            wrong[t] = True
    seen, parent, first = np.full(values, -1), np.empty(nodes, np.int64), np.empty(values, np.int64)
    for t in range(count):
        if size[t] == 1:
            continue
        if size[t] > most or heavy[t] > 1 or (heavy[t] and reduces[t]):
            wrong[t] = True
        if wrong[t]:
            continue
        outside, pieces = 0, size[t]
        for i in range(start[t], start[t + 1]):
            parent[member[i]] = member[i]
        for i in range(start[t], start[t + 1]):
            n = member[i]
            for side in range(2):
                ptr, val = (in_ptr, in_val) if side == 0 else (out_ptr, out_val)
                for e in range(ptr[n], ptr[n + 1]):
                    v = val[e]
                    if seen[v] == t:                                    # another member reads or makes it: they hang together
                        a, b = n, first[v]
                        while parent[a] != a:
                            parent[a] = parent[parent[a]]
                            a = parent[a]
                        while parent[b] != b:
                            parent[b] = parent[parent[b]]
                            b = parent[b]
                        if a != b:
                            parent[a] = b
                            pieces -= 1
                        continue
                    seen[v], first[v] = t, n
                    p = producer[v]
                    if p < 0 or task[p] != t:
                        outside += 1
                    else:
                        leaves = returned[v]
                        for k in range(use_ptr[v], use_ptr[v + 1]):
                            leaves |= task[use_node[k]] != t
                        outside += leaves
        wrong[t] = outside > streams or pieces > 1
    return wrong


@njit(cache=True)
def waits(task, count, src, dst):  # type: ignore[no-untyped-def]
    """bool [T]: tasks that can never start because they wait, directly or not, for themselves; edges src → dst between nodes."""
    waiting, start = np.zeros(count, np.int64), np.zeros(count + 1, np.int64)
    for e in range(len(src)):
        a, b = task[src[e]], task[dst[e]]
        if a != b:
            waiting[b] += 1
            start[a + 1] += 1
    for t in range(count):
        start[t + 1] += start[t]
    after, filled = np.empty(start[count], np.int64), start[:-1].copy()
    for e in range(len(src)):
        a, b = task[src[e]], task[dst[e]]
        if a != b:
            after[filled[a]] = b
            filled[a] += 1
    ready, height = np.empty(count, np.int64), 0
    for t in range(count):
        if waiting[t] == 0:
            ready[height] = t
            height += 1
    while height:
        height -= 1
        t = ready[height]
        for e in range(start[t], start[t + 1]):
            waiting[after[e]] -= 1
            if waiting[after[e]] == 0:
                ready[height] = after[e]
                height += 1
    return waiting > 0


@njit(cache=True)
def times(place, priority, seconds, made_ptr, read_ptr, use_ptr, use_task, size, lane_ptr, lane, latency, bandwidth, copies, lanes):  # type: ignore[no-untyped-def]
    """When everything happens. Tasks' own seconds f8[T], values made by task t: made_ptr[t] … made_ptr[t + 1]; routes from a to b: row a·D + b.

    Returns (started, ended f8[T]; their steps i8[T]; per transfer value, from, to, step of departure and of arrival; when each step was). A step is
    one thing that happens, counted from 1; 0 is before all of them, and -1 never.
    Long: one compiled loop over kinds of events that all change the same queues; it shares no line with the simulator, whose answers it judges.
    """
    tasks, devices = len(place), len(latency)
    missing = np.zeros(tasks, np.int64)
    started, ended = np.full(tasks, np.nan), np.full(tasks, np.nan)
    start_step, end_step = np.full(tasks, -1), np.full(tasks, -1)
    queues = [[(0.0, 0)] for _ in range(devices)]
    for d in range(devices):
        queues[d].clear()
    events = [(0.0, 0, 0)]
    events.clear()
    value, source, target = [0], [0], [0]
    leave, arrive = [0.0], [0.0]
    leave_step, arrive_step, moments = [-1], [-1], [0.0]
    for part in (value, source, target, leave_step, arrive_step):
        part.clear()
    leave.clear()
    arrive.clear()
    busy, copying, lane_free = np.zeros(devices, np.bool_), np.zeros(devices), np.zeros(lanes)
    goes = np.full(devices, -1)
    for t in range(tasks):
        missing[t] = read_ptr[t + 1] - read_ptr[t]
        if missing[t] == 0:
            heapq.heappush(queues[place[t]], (-priority[t], t))
    now = 0.0
    while True:
        for d in range(devices):
            if not busy[d] and copying[d] <= now and len(queues[d]):
                t = heapq.heappop(queues[d])[1]
                busy[d], started[t], start_step[t] = True, now, len(moments)
                moments.append(now)
                heapq.heappush(events, (now + seconds[t], _END, t))
        if not len(events):
            break
        now = events[0][0]
        while len(events) and events[0][0] == now:
            _, kind, item = heapq.heappop(events)
            step = len(moments)
            moments.append(now)
            if kind == _END:
                home = np.int64(place[item])
                busy[home], ended[item], end_step[item] = False, now, step
                for v in range(made_ptr[item], made_ptr[item + 1]):
                    for k in range(use_ptr[v], use_ptr[v + 1]):
                        goes[place[use_task[k]]] = v
                    for to in range(devices):
                        if goes[to] != v or to == home:
                            continue
                        row = home * devices + to
                        begin = max(now, copying[home]) if copies[row] else now
                        for e in range(lane_ptr[row], lane_ptr[row + 1]):
                            begin = max(begin, lane_free[lane[e]])
                        over = begin + size[v] / bandwidth[home, to]
                        for e in range(lane_ptr[row], lane_ptr[row + 1]):
                            lane_free[lane[e]] = over
                        if copies[row]:
                            copying[home] = over
                            heapq.heappush(events, (over, _WAKING, home))
                        heapq.heappush(events, (begin, _DEPARTURE, len(value)))
                        value.append(v)
                        source.append(home)
                        target.append(to)
                        leave.append(begin)
                        arrive.append(over + latency[home, to])
                        leave_step.append(-1)
                        arrive_step.append(-1)
                    if goes[home] == v:
                        for k in range(use_ptr[v], use_ptr[v + 1]):
                            t = np.int64(use_task[k])
                            if place[t] == home:
                                missing[t] -= 1
                                if missing[t] == 0:
                                    heapq.heappush(queues[home], (-priority[t], t))
            elif kind == _DEPARTURE:
                leave_step[item] = step
                heapq.heappush(events, (arrive[item], _ARRIVAL, item))
            elif kind == _ARRIVAL:
                arrive_step[item] = step
                to, v = target[item], value[item]
                for k in range(use_ptr[v], use_ptr[v + 1]):
                    t = np.int64(use_task[k])
                    if place[t] == to:
                        missing[t] -= 1
                        if missing[t] == 0:
                            heapq.heappush(queues[to], (-priority[t], t))
    return (started, ended, start_step, end_step, np.array(value), np.array(source), np.array(target), np.array(leave_step), np.array(arrive_step),
            np.array(moments))


@njit(cache=True)
def last_needs(place, made_ptr, read_ptr, read_val, producer, base, keep, start_step, end_step, value, source, arrive_step, devices):  # type: ignore[no-untyped-def]
    """i8[V, D] the step after which nobody needs value v on device d; -1: never there, a huge number: to the end."""
    never = np.int64(2**62)
    until = np.full((len(producer), devices), -1)
    for v in range(len(producer)):
        home = place[producer[v]]
        until[v, home] = never if keep[v] else end_step[producer[v]]
    for t in range(len(place)):
        for e in range(read_ptr[t], read_ptr[t + 1]):
            v = read_val[e]
            until[v, place[t]] = max(until[v, place[t]], end_step[t])
    for x in range(len(value)):
        until[value[x], source[x]] = max(until[value[x], source[x]], arrive_step[x])
    for t in np.argsort(start_step)[::-1]:                              # a view keeps what it views: those made last first
        changed = True
        while changed:
            changed = False
            for v in range(made_ptr[t], made_ptr[t + 1]):
                if base[v] >= 0 and until[base[v], place[t]] < until[v, place[t]]:
                    until[base[v], place[t]] = until[v, place[t]]
                    changed = True
    return until
