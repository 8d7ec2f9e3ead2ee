"""Lower bounds: bytes that no sequence can do without, and a price that none can beat.

Peak: while a node runs, all that it reads and makes is there; and in the last step that makes an output, all other outputs are there too.
Price: every node runs once. With a limit below what the graph's own order needs, nothing more is proven here: an exact technique claims better
bounds.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.rematerialise.instance import CoreGraph, RematerialiseInstance


def least_peak(instance: RematerialiseInstance) -> int:
    """Bytes of the arena that every valid plan of the graph takes."""
    core = instance.core
    if not len(core.node):
        return 0
    around = node_bytes(core)
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
    """What one run of every node costs."""
    return float(instance.price.sum())
