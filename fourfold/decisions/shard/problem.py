"""The question: a strategy for each node, so that costs of nodes and of edges are least and the memory limit holds at every time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from fourfold.decisions.shard import bound as proofs
from fourfold.decisions.shard.instance import FORBIDDEN, I64, StrategyGraph
from fourfold.decisions.shard.validate import total, violations
from fourfold.problem import Problem


@dataclass(frozen=True, eq=False)
class ShardProblem(Problem[np.ndarray]):
    """Intra-operator sharding as a pairwise choice (Zheng et al. 2022; the public contest of 2025): an answer is a strategy i8[n] for each node.

    `cost` is the sum of node and edge costs, in `unit` ("s" where they are seconds; "" where they are the contest's). `total` is the same as an exact
    whole number where costs are whole.
    """

    question: ClassVar[str] = "shard"
    lever: ClassVar[str] = "machine"

    graph: StrategyGraph
    unit: str = ""

    def baseline(self) -> I64:
        """Each node takes the cheapest strategy for itself, and no other is looked at. May break rules."""
        g = self.graph
        node = np.repeat(np.arange(len(g)), g.strategies)
        order = np.lexsort((np.arange(len(node)), g.cost, node))
        return order[g.ptr[:-1]] - g.ptr[:-1]

    def violations(self, answer: np.ndarray) -> list[str]:
        return violations(self.graph, answer)

    def cost(self, answer: np.ndarray) -> float:
        return float(self.total(answer))

    def total(self, answer: np.ndarray) -> float | int:
        return total(self.graph, answer)

    def bound(self) -> float:
        """The least of every node and of every edge, added up; a technique's `DualCertificate` gives more (`bound.py`)."""
        return self._bound

    @cached_property
    def _bound(self) -> float:
        return proofs.bound(self.graph)

    def impossible(self) -> str | None:
        """A sentence that proves that no choice keeps the limit; None: unknown."""
        return proofs.impossible(self.graph)

    @classmethod
    def sample(cls, seed: int) -> ShardProblem:
        return cls(invented(seed))


def invented(seed: int, most: int = 7) -> StrategyGraph:
    """2 to `most` nodes with a choice that keeps every rule: by seed plain, with forbidden pairs, parallel and self edges, no limit, or costs that
    are no whole numbers; the limit is what a drawn choice needs."""
    rng = np.random.default_rng(seed)
    n, kind = int(rng.integers(2, most + 1)), seed % 6
    k = rng.integers(1, 5, n)
    planted = rng.integers(0, k)
    costs = [rng.integers(0, 30, size).tolist() for size in k]
    usages = [rng.integers(0, 20, size).tolist() for size in k]
    lives = [[] if rng.random() < 0.1 else [int(start), int(start + rng.integers(1, 6))] for start in rng.integers(0, 8, n)]
    edges = [(int(i), int(rng.integers(0, i))) if rng.random() < 0.5 else (int(rng.integers(0, i)), int(i)) for i in range(1, n)]
    edges += [(int(x), int(y)) for x, y in rng.integers(0, n, (n, 2)) if x != y or kind == 3]
    edges += edges[:2] if kind == 3 else []
    tables = [rng.integers(0, 25, int(k[a] * k[b])).tolist() for a, b in edges]
    if kind == 2:
        for (a, b), table in zip(edges, tables, strict=True):
            for at in range(len(table)):
                if rng.random() < 0.3 and at != planted[a] * k[b] + planted[b]:
                    table[at] = FORBIDDEN
    if kind == 5:
        costs, tables = ([[0.37 * value for value in row] for row in rows] for rows in (costs, tables))
    drawn = StrategyGraph.of(costs, usages, edges, tables, lives)
    if kind == 4:
        return drawn
    from fourfold.decisions.shard.validate import loads

    load = loads(drawn, planted)[1]
    return StrategyGraph.of(costs, usages, edges, tables, lives, limit=int(load.max(initial=0)))
