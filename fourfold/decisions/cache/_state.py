"""What every policy works on: doubly linked queues of objects in arrays, so that a request costs a few array reads and allocates nothing.

Objects are numbers 0 … N−1. An object stands in at most one of eight queues: 0 … 4 hold what is in the cache, 5 … 7 what is only remembered (ghosts).
Node 0 … 7 of the links are the queues' own ends, object o is node o + 8, so that arrays grow at their end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

QUEUES, RESIDENT, NOWHERE = 8, 5, -1
CAPACITY, USED, CLOCK, HAND, TARGET, FLAG, KIND, WIDTH, FILLED = range(9)   # registers; WIDTH: candidates that a model ranks, 0 for none
LRU, FIFO, SIEVE, SLRU, TWOQ, S3FIFO, CLOCK2QPLUS, ARC, LIRS, LFU, GDSF, BELADY = range(12)
HEAPS = (LFU, GDSF, BELADY)


class QueueArrays(NamedTuple):
    """Arrays of one cache; see `new`. `next`, `prev` i4[8+N] links; `where` i1[N] queue; `size` i8[N] bytes held; `tag` i4[N] what the policy counts;
    `stamp` i8[N] when (in the policy's own time); `key` f8, `heap`, `pos` i4: a heap by (key, stamp); `worth` f4[N]: what
    fetching it again costs; `above`, `below` i4: LIRS's stack; `used`
    i8[8] bytes and `number` i8[8] objects of each queue; `reg` i8[16] registers; `real` f8[2]: priority of what left last."""

    next: NDArray[np.int32]
    prev: NDArray[np.int32]
    where: NDArray[np.int8]
    size: NDArray[np.int64]
    tag: NDArray[np.int32]
    stamp: NDArray[np.int64]
    key: NDArray[np.float64]
    heap: NDArray[np.int32]
    pos: NDArray[np.int32]
    worth: NDArray[np.float32]
    above: NDArray[np.int32]
    below: NDArray[np.int32]
    used: NDArray[np.int64]
    number: NDArray[np.int64]
    reg: NDArray[np.int64]
    real: NDArray[np.float64]


def new(kind: int, capacity: int, objects: int, width: int = 0, every: bool = False) -> QueueArrays:
    """An empty cache of `capacity` bytes for objects 0 … `objects` − 1. `every`: with arrays for any kind, so that it may become another."""
    heap = objects if every or kind in HEAPS else 0
    stack = objects + 1 if every or kind == LIRS else 1
    ends = np.arange(QUEUES, dtype=np.int32)
    links = np.zeros(QUEUES + objects, np.int32)
    links[:QUEUES] = ends
    reg = np.zeros(16, np.int64)
    reg[CAPACITY], reg[KIND], reg[WIDTH] = capacity, kind, width
    return QueueArrays(links, links.copy(), np.full(objects, NOWHERE, np.int8), np.zeros(objects, np.int64), np.zeros(objects, np.int32),
                 np.zeros(objects, np.int64), np.zeros(heap, np.float64), np.zeros(heap, np.int32),
                 np.full(heap, -1, np.int32), np.ones(heap, np.float32),
                 _stack(stack), _stack(stack), np.zeros(QUEUES, np.int64), np.zeros(QUEUES, np.int64), reg, np.zeros(2))


def _stack(length: int) -> NDArray[np.int32]:
    """Links of a stack of which nothing is part: −1, and its end (node 0) tied to itself."""
    links = np.full(length, -1, np.int32)
    links[0] = 0
    return links


def grown(s: QueueArrays, objects: int) -> QueueArrays:
    """The same cache with room for more objects."""
    def wider(array: NDArray, length: int, fill: int) -> NDArray:
        out = np.full(length, fill, array.dtype)
        out[: len(array)] = array
        return out

    heap, stack = (objects if len(s.key) else 0), (objects + 1 if len(s.above) > 1 else 1)
    return s._replace(
        next=wider(s.next, QUEUES + objects, 0), prev=wider(s.prev, QUEUES + objects, 0), where=wider(s.where, objects, NOWHERE),
        size=wider(s.size, objects, 0), tag=wider(s.tag, objects, 0), stamp=wider(s.stamp, objects, 0), key=wider(s.key, heap, 0),
        heap=wider(s.heap, heap, 0), pos=wider(s.pos, heap, -1), worth=wider(s.worth, heap, 1), above=wider(s.above, stack, -1),
        below=wider(s.below, stack, -1))


@njit(cache=True, inline="always")
def _between(s, q, o, before, after):  # type: ignore[no-untyped-def]
    node = o + QUEUES
    s.next[node], s.prev[node] = after, before
    s.next[before], s.prev[after] = node, node
    s.where[o] = q
    s.used[q] += s.size[o]
    s.number[q] += 1
    if q < RESIDENT:
        s.reg[USED] += s.size[o]


@njit(cache=True)
def push(s, q, o):  # type: ignore[no-untyped-def]
    """Object `o`, which is nowhere, enters queue `q` as its newest."""
    _between(s, q, o, q, s.next[q])


@njit(cache=True)
def push_oldest(s, q, o):  # type: ignore[no-untyped-def]
    """Object `o`, which is nowhere, enters queue `q` as its oldest."""
    _between(s, q, o, s.prev[q], q)


@njit(cache=True)
def unlink(s, o):  # type: ignore[no-untyped-def]
    """Object `o` leaves its queue."""
    node, q = o + QUEUES, s.where[o]
    before, after = s.prev[node], s.next[node]
    s.next[before], s.prev[after] = after, before
    s.where[o] = NOWHERE
    s.used[q] -= s.size[o]
    s.number[q] -= 1
    if q < RESIDENT:
        s.reg[USED] -= s.size[o]


@njit(cache=True, inline="always")
def oldest(s, q):  # type: ignore[no-untyped-def]
    """The oldest object of queue `q`; negative where it is empty."""
    node = s.prev[q]
    return node - QUEUES if node >= QUEUES else -1


@njit(cache=True, inline="always")
def resident(s, o):  # type: ignore[no-untyped-def]
    return 0 <= s.where[o] < RESIDENT


@njit(cache=True)
def trim(s, q, limit):  # type: ignore[no-untyped-def]
    """Forget the oldest ghosts of queue `q` until they stand for at most `limit` bytes."""
    while s.used[q] > limit:
        unlink(s, oldest(s, q))


# ---- a heap by (key, stamp), the least on top

@njit(cache=True, inline="always")
def _less(s, a, b):  # type: ignore[no-untyped-def]
    return s.key[a] < s.key[b] or (s.key[a] == s.key[b] and s.stamp[a] < s.stamp[b])


@njit(cache=True)
def settle(s, o, length):  # type: ignore[no-untyped-def]
    """Move object `o`, whose key changed, to where it belongs in the heap of `length` objects."""
    i = s.pos[o]
    while i > 0 and _less(s, o, s.heap[(i - 1) // 2]):
        up = s.heap[(i - 1) // 2]
        s.heap[i], s.pos[up] = up, i
        i = (i - 1) // 2
    while True:
        child = 2 * i + 1
        if child >= length:
            break
        if child + 1 < length and _less(s, s.heap[child + 1], s.heap[child]):
            child += 1
        down = s.heap[child]
        if not _less(s, down, o):
            break
        s.heap[i], s.pos[down] = down, i
        i = child
    s.heap[i], s.pos[o] = o, i


@njit(cache=True)
def heap_in(s, o):  # type: ignore[no-untyped-def]
    """Object `o` enters the heap; its queue (0) counts how many are in it, so `push` comes first."""
    s.heap[s.number[0] - 1], s.pos[o] = o, s.number[0] - 1
    settle(s, o, s.number[0])


@njit(cache=True)
def heap_out(s, o):  # type: ignore[no-untyped-def]
    """Object `o` leaves the heap; `unlink` comes first."""
    i, length = s.pos[o], s.number[0]
    last = s.heap[length]
    s.pos[o] = -1
    if last != o:
        s.heap[i], s.pos[last] = last, i
        settle(s, last, length)
