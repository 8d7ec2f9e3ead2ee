"""The primal search: forests under prices, then repair, then moves within the limit; the prices follow what passes the limit (strategic oscillation).

The idea of the contest's winner, soft penalties for bytes in a cost-function network and greedy repair, with moves of whole forests.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.shard import _memory as memory
from fourfold.decisions.shard._descend import cost, descend, repair
from fourfold.decisions.shard._forest import Forests
from fourfold.decisions.shard._messages import Sweep
from fourfold.decisions.shard._model import BIG, PairwiseModel
from fourfold.decisions.shard._prices import by_strategy, excess, moved
from fourfold.decisions.shard.instance import F64, I64
from fourfold.problem import Budget

_ALLOWED = BIG / 10                                                     # a model's cost of so much holds something forbidden
_STEP, _SHORTEST, _ROUNDS = 0.02, 0.002, 50                             # of prices, as a share of the cost; rounds after which steps get shorter
_LAWFUL, _RISES, _RISE = 8, 8, 0.01                                     # forests against the forbidden; rises of prices; the first


class Incumbent:
    """The best choice that keeps every rule, of a search."""

    def __init__(self, m: PairwiseModel, budget: Budget) -> None:
        self.m, self.budget = m, budget
        self.chosen: I64 | None = None
        self.cost = np.inf

    def take(self, chosen: I64) -> bool:
        """Keep `chosen`, which is within the limit, where it is better."""
        value = cost(self.m, chosen)
        if value >= min(self.cost, _ALLOWED):
            return False
        self.chosen, self.cost = chosen.copy(), value
        self.budget.improve(value)
        return True


class Oscillation:
    """One choice that wanders under its own prices, now above the limit, now below; what it meets is repaired and offered to the incumbent."""

    def __init__(self, m: PairwiseModel, sweep: Sweep, incumbent: Incumbent, seed: int) -> None:
        self.m, self.core, self.peel, self.incumbent = m, sweep.core, sweep.peel, incumbent
        self.rng = np.random.default_rng(seed)
        self.forests = Forests(m)
        self.chosen = np.zeros(len(m), np.int64)
        self.price, self.priced = np.zeros(m.sections), np.zeros(len(m.unary))
        self.step, self.rounds = _STEP, 0

    def begin(self, chosen: I64, price: F64) -> None:
        self.chosen, self.price, self.step, self.rounds = chosen.copy(), price, _STEP, 0
        self.priced = by_strategy(self.m, price)

    def forest(self, chosen: I64, priced: F64, times: int = 1) -> None:
        for _ in range(times):
            self.forests.improve(priced, np.concatenate([self.rng.permutation(self.core), self.peel]), chosen)

    def round(self, times: int = 3) -> bool:
        """Forests under the prices, an offer, a step of the prices. True: the incumbent got better."""
        m = self.m
        self.forest(self.chosen, self.priced, times)
        self.rounds += 1
        load, over = excess(m, self.chosen)
        better = self.offer(self.chosen, over)
        if m.sections:
            scale = min(abs(cost(m, self.chosen)), self.incumbent.cost)
            self.price = moved(m, self.price, load, self.step * (scale if scale < _ALLOWED else 1.0))
            self.priced = by_strategy(m, self.price)
            if self.rounds % _ROUNDS == 0:
                self.step = max(_SHORTEST, 0.7 * self.step)
        return better

    def offer(self, chosen: I64, over: int) -> bool:
        """Repair a copy, improve it within the limit, offer it. What passes the limit is repaired twice: node by node at once, and by forests under
        rising prices first."""
        m, y = self.m, chosen.copy()
        for _ in range(_LAWFUL):                                        # nothing forbidden, first of all
            if cost(m, y) < _ALLOWED:
                break
            self.forest(y, self.priced)
        if not over:
            return self._settle(y)
        better = self._settle(y.copy()) if over <= 0.1 * m.sections else False
        scale = min(self.incumbent.cost, abs(cost(m, y)))
        if scale >= _ALLOWED:
            return self._settle(y) or better
        price, rise = self.price, _RISE * scale / max(1, m.limit) / over
        for _ in range(_RISES):
            load, over = excess(m, y)
            if not over:
                break
            price = price + np.where(load > m.limit, rise, 0.0)
            rise *= 2
            self.forest(y, by_strategy(m, price))
        return self._settle(y) or better

    def _settle(self, y: I64) -> bool:
        """Within the limit node by node, then improved there; offered. `y` changes."""
        m = self.m
        held = memory.tree(m, y)
        if held[0, 1] > m.limit and not repair(m, y, held, self.priced):
            return False
        order = self.rng.permutation(len(m))
        descend(m, y, order, held, rounds=2, prices=self.priced)
        descend(m, y, order, held, rounds=6)
        return self.incumbent.take(y)

    def near(self, times: int = 200) -> bool:
        """Forests in small parts of the incumbent, within the limit. True: it got better."""
        m, best = self.m, self.incumbent.chosen
        if best is None:
            return False
        y = best.copy()
        held = memory.tree(m, y)
        pool = self.core if len(self.core) and self.rng.random() < 0.8 else np.arange(len(m))
        starts = self.rng.choice(pool, times)
        sizes = np.minimum(len(m), np.exp(self.rng.uniform(np.log(5), np.log(1500), times))).astype(np.int64)
        factors = self.rng.choice([0.0, 0.3, 0.6, 1.0, 1.5], times)
        kept, _ = self.forests.neighbourhoods(self.priced, starts, sizes, factors, int(self.rng.integers(2**31)), y, held)
        return bool(kept) and self.incumbent.take(y)
