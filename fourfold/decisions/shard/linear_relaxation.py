"""The linear relaxation (local polytope with the limit) by HiGHS (Huangfu and Hall 2018), for small instances: its duals are the certificate.

Alpa's integer program (Zheng et al. 2022) without the whole numbers. Multipliers of the rows that tie pairs to strategies are messages, those of the
limit are prices. The fractions are rounded to the largest of each node, then repaired and improved as every other choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fourfold.decisions.shard._certify import certificate
from fourfold.decisions.shard._messages import sweep_of
from fourfold.decisions.shard._model import BIG, PairwiseModel, model
from fourfold.decisions.shard._prices import excess
from fourfold.decisions.shard._search import Incumbent, Oscillation
from fourfold.decisions.shard.bound import bound
from fourfold.decisions.shard.instance import F64, I64
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.errors import Infeasible
from fourfold.problem import Budget, Solver, SolverAnswer

_ENTRIES = 150_000                                                      # of tables, the most that is tried
_TRIES = 40                                                             # rounds of repair


@dataclass(frozen=True)
class RelaxedChoice:
    """`share` f8[S] of each strategy, messages of the model's edges, prices of its sections."""

    share: F64
    given: F64
    price: F64


class LinearRelaxation(Solver):
    """Lower bound, certificate and a rounded choice of one linear program."""

    title: ClassVar[str] = "Linear relaxation by HiGHS, rounded; its duals prove the bound"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "shard"
    cites: ClassVar[tuple[str, ...]] = ("huangfu2018", "zheng2022alpa")
    needs: ClassVar[tuple[str, ...]] = ("numba", "scipy")
    gives: ClassVar[tuple[str, ...]] = ("bound",)
    counts: ClassVar[str] = "rounds of repair"

    def declines(self, problem: object) -> str | None:
        if not isinstance(problem, ShardProblem) or len(problem.graph.table) <= _ENTRIES:
            return None
        return f"{len(problem.graph.table):,} table entries are too many for a linear program"

    def solve(self, problem: ShardProblem, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        """Raises Infeasible where it is proven that no choice keeps the rules, or where none was found (the message says which)."""
        if why := problem.impossible():
            raise Infeasible(f"Proven impossible: {why}.", "Give more memory, or strategies that take fewer bytes.")
        m = model(problem.graph)
        best, sweep = Incumbent(m, budget), sweep_of(m)
        relaxed = relax(m, max(1.0, 0.7 * budget.left))
        search = Oscillation(m, sweep, best, seed)
        search.begin(_rounded(m, relaxed.share), relaxed.price)
        search.offer(search.chosen, excess(m, search.chosen)[1])
        rounds = 0
        while (budget.spend() and not budget.exhausted and rounds < _TRIES) or (best.chosen is None and rounds < 2 * _TRIES):
            search.round()
            search.near(20)
            rounds += 1
        if best.chosen is None:
            raise Infeasible("No choice was found that keeps the limit and the forbidden pairs.",
                             "Whether there is one is unknown: allow more time, another solver, or more memory.")
        proof = certificate(m, relaxed.given, relaxed.price)
        return SolverAnswer(m.answer(best.chosen), bound(problem.graph, proof), {"certificate": proof})


def relax(m: PairwiseModel, seconds: float) -> RelaxedChoice:
    """Solve the linear program. Raises Infeasible where it proves that there is no choice, or where the time did not suffice."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix, csr_matrix

    strategies, count = len(m.unary), np.diff(m.ptr)
    allowed = np.flatnonzero(m.table < BIG / 10)
    edge = np.searchsorted(m.tptr, allowed, "right") - 1
    kb = count[m.b[edge]]
    row, column = np.divmod(allowed - m.tptr[edge], kb)
    mptr = np.concatenate([[0], np.cumsum(count[m.a] + count[m.b])]).astype(np.int64)
    ties = int(mptr[-1])
    y = strategies + np.arange(len(allowed))
    node = np.repeat(np.arange(len(m)), count)
    ends = [(mptr[:-1], m.a, count[m.a]), (mptr[:-1] + count[m.a], m.b, count[m.b])]
    tie = np.concatenate([np.repeat(at, k) + _within(k) for at, _, k in ends])
    own = np.concatenate([np.repeat(m.ptr[of], k) + _within(k) for _, of, k in ends])
    rows = np.concatenate([mptr[edge] + row, mptr[edge] + count[m.a[edge]] + column, tie, ties + node])
    columns = np.concatenate([y, y, own, np.arange(strategies)])
    values = np.concatenate([np.ones(2 * len(y)), -np.ones(len(own)), np.ones(strategies)])
    equal = coo_matrix((values, (rows, columns)), shape=(ties + len(m), strategies + len(y))).tocsr()
    right = np.concatenate([np.zeros(ties), np.ones(len(m))])
    live = [np.flatnonzero((m.first <= t) & (t < m.last)) for t in range(m.sections)]
    at = [np.concatenate([np.arange(m.ptr[i], m.ptr[i + 1]) for i in some.tolist()]) if len(some) else np.zeros(0, np.int64) for some in live]
    scale = float(max(1, m.limit))
    load = csr_matrix((np.concatenate([m.usage[some] / scale for some in at]) if at else np.zeros(0),
                       (np.repeat(np.arange(m.sections), [len(some) for some in at]), np.concatenate(at) if at else np.zeros(0, np.int64))),
                      shape=(m.sections, strategies + len(y)))
    unit = float(max(np.abs(m.unary[m.unary < BIG / 10]).max(initial=0.0), m.table[allowed].max(initial=0.0))) or 1.0
    costs = np.concatenate([np.minimum(m.unary, BIG / 10), m.table[allowed]]) / unit
    room = np.full(m.sections, m.limit / scale)
    found = linprog(costs, A_ub=load if m.sections else None, b_ub=room if m.sections else None, A_eq=equal, b_eq=right,
                    bounds=(0, None), method="highs", options={"time_limit": seconds})
    if found.status == 2:
        raise Infeasible("Proven impossible: the linear relaxation has no solution.", "Give more memory, or allow more pairs.")
    if found.x is None or found.status != 0:
        raise Infeasible("The linear program was not solved in the time.", "Allow more time, or use --solver auto.")
    price = np.maximum(0.0, -found.ineqlin.marginals) * unit / scale if m.sections else np.zeros(0)
    return RelaxedChoice(found.x[:strategies], found.eqlin.marginals[:ties] * unit, price)


def _within(sizes: I64) -> I64:
    """0 … size − 1 for each of `sizes`, one after another."""
    total = int(sizes.sum())
    return np.arange(total) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _rounded(m: PairwiseModel, share: F64) -> I64:
    node = np.repeat(np.arange(len(m)), np.diff(m.ptr))
    return np.lexsort((np.arange(len(share)), -share, node))[m.ptr[:-1]] - m.ptr[:-1]
