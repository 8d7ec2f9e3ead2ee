"""Lower bounds: bytes that no sequence can do without, and a price that none can beat.

Peak: while a node runs, all that it reads and makes is there; and in the last step that makes an output, or fetches it from a second memory, all
other outputs are there too.
Price: every node runs once, and across the first run of any node d stands a cut. What d is made of ran before; what is made of d runs after. A value
made before and read after is either there while d runs, beside what d itself reads and makes, or made again, or copied to a second memory and back.
Which ones are cheapest to keep in what the limit leaves is a knapsack, whose fractional optimum (Dantzig 1957) bounds what is paid for the others, in
any order of the steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fourfold.decisions.rematerialise.instance import CoreGraph, RematerialiseInstance

_CUTS = 64                                                              # nodes looked at


def least_peak(instance: RematerialiseInstance) -> int:
    """Bytes of the arena that every valid plan of the graph takes."""
    core = instance.core
    if not len(core.node):
        return 0
    around = node_bytes(core)
    if (instance.linked.fetch[core.pinned] >= 0).any():                 # the last of them may be fetched, beside which nothing else is needed
        return int(max(around.max(), core.size[core.pinned].sum()))
    return int(max(around.max(), _last_step(core)))


def node_bytes(core: CoreGraph) -> np.ndarray:
    """i8[M] bytes that must be there while each node runs: what it reads, what it makes, its workspace."""
    reader = np.repeat(np.arange(len(core.node)), np.diff(core.in_ptr))
    maker = np.repeat(np.arange(len(core.node)), np.diff(core.out_ptr))
    need = core.workspace.copy()
    np.add.at(need, reader, core.size[core.in_val])
    np.add.at(need, maker, core.size[core.out_val])
    return need


def _last_step(core: CoreGraph) -> int:
    """All pinned values, and what the cheapest node that makes one of them needs beside them: steps behind the last that makes one can be left
    out."""
    total = int(core.size[core.pinned].sum())
    makers = np.unique(core.producer[core.pinned])
    if not len(makers):
        return 0
    beside = np.where(core.pinned, 0, core.size)
    reader = np.repeat(np.arange(len(core.node)), np.diff(core.in_ptr))
    maker = np.repeat(np.arange(len(core.node)), np.diff(core.out_ptr))
    more = core.workspace.copy()
    np.add.at(more, reader, beside[core.in_val])
    np.add.at(more, maker, beside[core.out_val])
    return total + int(more[makers].min())


def least_price(instance: RematerialiseInstance) -> float:
    """What one run of every node costs, and what the dearest cut adds to it."""
    total = float(instance.price.sum())
    if instance.limit is None or not len(instance.core.node):
        return total
    core, linked = instance.core, instance.linked
    link = np.full(len(core.size), np.inf)                              # of a value that is not kept: stored once, and fetched
    some = linked.fetch >= 0
    link[some] = linked.store[some] + linked.price[linked.fetch[some]]
    return total + max((_paid(core, link, instance.limit, *cut) for cut in _cuts(core)), default=0.0)


def _cuts(core: CoreGraph) -> Iterator[tuple[int, list[int]]]:
    """(node d, values that are made before its first run and read after it in any order), for the nodes with most alive in the graph's order."""
    nodes = len(core.node)
    producer, reader = core.producer.tolist(), np.repeat(np.arange(nodes), np.diff(core.in_ptr)).tolist()
    above, below, readers = [1 << n for n in range(nodes)], [0] * nodes, [0] * len(core.size)
    for n, v in zip(reader, core.in_val.tolist(), strict=True):        # in the graph's order
        above[n] |= above[producer[v]]
        readers[v] |= 1 << n
    for n in range(nodes - 1, -1, -1):
        for v in core.out_val[core.out_ptr[n] : core.out_ptr[n + 1]].tolist():
            below[n] |= readers[v]
            for m in _members(readers[v]):
                below[n] |= below[m]
    order = np.argsort(-_levels(core), kind="stable")[:_CUTS].tolist()
    for d in order:
        yield d, [v for v in range(len(core.size)) if core.size[v] and above[d] >> producer[v] & 1 and readers[v] & below[d]]


def _members(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _levels(core: CoreGraph) -> np.ndarray:
    """i8[M] bytes alive at each step of the graph's own order."""
    nodes = len(core.node)
    last = np.where(core.pinned, nodes - 1, core.producer).astype(np.int64)
    np.maximum.at(last, core.in_val, np.repeat(np.arange(nodes), np.diff(core.in_ptr)))
    change = np.zeros(nodes + 1, np.int64)
    np.add.at(change, core.producer, core.size)
    np.add.at(change, last + 1, -core.size)
    return np.cumsum(change)[:nodes]


def _paid(core: CoreGraph, link: np.ndarray, limit: int, d: int, values: list[int]) -> float:
    """The least price of making again, or of fetching at the price `link` f8[R], what is not kept across d."""
    here = {*core.in_val[core.in_ptr[d] : core.in_ptr[d + 1]].tolist(), *core.out_val[core.out_ptr[d] : core.out_ptr[d + 1]].tolist()}
    room = limit - int(core.workspace[d]) - sum(int(core.size[v]) for v in here)
    kept = [v for v in values if v not in here]
    parts: dict[int, int] = {}                                         # a node is paid once, however many of its values are lost
    for v in kept:
        parts[int(core.producer[v])] = parts.get(int(core.producer[v]), 0) + int(core.size[v])
    made = {v: np.inf if core.once[core.producer[v]] else float(core.price[core.producer[v]]) * int(core.size[v]) / parts[int(core.producer[v])]
            for v in kept}
    price = {v: min(made[v], float(link[v])) for v in kept}
    paid = 0.0
    for v in sorted(kept, key=lambda v: -price[v] / int(core.size[v])):
        share = min(1.0, max(0, room) / int(core.size[v]))
        room -= int(core.size[v])
        paid += price[v] * (1 - share) if share < 1 else 0.0
    return paid if np.isfinite(paid) else 0.0
