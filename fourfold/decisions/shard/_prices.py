"""Prices on bytes: Lagrange multipliers of the limit in every section, moved along averaged excesses (subgradient steps of a bounded length)."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.shard import _memory as memory
from fourfold.decisions.shard._messages import Messages
from fourfold.decisions.shard._model import PairwiseModel
from fourfold.decisions.shard.instance import F64, I64

_AVERAGE = 0.5                                                          # share of the excess before in a step's direction
_PATIENCE, _SHORTER = 15, 0.7                                           # passes without a better bound before steps get shorter, and by how much
_STEP, _LEAST = 0.3, 0.01                                               # of the gap a first step is worth; the gap is at least so much of the bound
_QUIET = 5                                                              # passes before prices move


def by_strategy(m: PairwiseModel, price: F64) -> F64:
    """f8[S]: what each strategy's bytes cost over the node's life."""
    summed = np.concatenate([[0.0], np.cumsum(price)])
    node = np.maximum(0.0, summed[m.last] - summed[m.first])
    return np.repeat(node, np.diff(m.ptr)) * m.usage.astype(np.float64)


def moved(m: PairwiseModel, price: F64, load: F64, worth: float) -> F64:
    """Prices after a step along the excess `load` − limit, so long that the limit's bytes cost about `worth` more or less in all."""
    if not m.limit:
        return np.where(load > 0, price + worth / max(1.0, float(load.sum())), price)
    excess = (load - m.limit) / m.limit
    excess[(price <= 0) & (excess < 0)] = 0.0
    length = float(np.abs(excess).sum())
    return np.maximum(0.0, price + worth / m.limit / length * excess) if length > 0 else price


class DualAscent:
    """Passes of messages and steps of prices in turn; keeps the state of the best bound.

    `bound`: the best so far, in the model's doubles (`certify` proves it); `price` f8[sections] now, `best` those of the best bound; `chosen` the
    choice made on the last pass, `priced` its prices by strategy.
    """

    def __init__(self, m: PairwiseModel) -> None:
        self.m, self.messages = m, Messages(m)
        self.price = np.zeros(m.sections)
        self.priced = np.zeros(len(m.unary))
        self.best, self.bound, self.given = self.price, -np.inf, self.messages.given.copy()
        self.chosen = np.zeros(len(m), np.int64)
        self.passes, self.step = 0, _STEP
        self._average: F64 | None = None
        self._stale = self.since = 0

    def advance(self, above: float = np.inf) -> float:
        """One pass and one step; the bound of the pass. `above`: the cost of the best answer known."""
        m = self.m
        found = self.messages.forward(self.priced, self.chosen) - float(self.price.sum()) * m.limit * (m.sections > 0)
        self.messages.backward()
        self.passes += 1
        if found > self.bound:
            self.since = 0 if found > self.bound + 1e-5 * abs(found) else self.since + 1
            self.bound, self.best, self._stale = found, self.price, 0
            np.copyto(self.given, self.messages.given)
        else:
            self._stale += 1
            self.since += 1
        if self.passes < _QUIET or not m.sections:
            return found
        load = memory.load(m, self.chosen).astype(np.float64)
        if self._stale > _PATIENCE:
            self.step, self._stale, self._average = self.step * _SHORTER, 0, None
            self.price = self.best
        else:
            self._average = load if self._average is None else _AVERAGE * self._average + (1 - _AVERAGE) * load
            scale = abs(self.bound) + 1e-300
            gap = min(max(above - self.bound, _LEAST * scale), 0.5 * scale)
            self.price = moved(m, self.price, self._average, self.step * gap)
        self.priced = by_strategy(m, self.price)
        return found

    def longer(self, step: float = _STEP) -> None:
        """Steps of the first length again, from the best prices."""
        self.step, self._stale, self._average = step, 0, None
        self.price = self.best
        self.priced = by_strategy(self.m, self.price)


def excess(m: PairwiseModel, chosen: I64) -> tuple[F64, int]:
    """(bytes in every section, how many of those pass the limit)."""
    load = memory.load(m, chosen).astype(np.float64)
    return load, int((load > m.limit).sum())
