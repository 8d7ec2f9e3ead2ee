"""Order and offsets, nothing computed twice: the order in which the fewest bytes are alive at once, and offsets for it.

Scheduling for least peak memory is the register allocation of Sethi (1975), NP-complete; here by dynamic programming over sets of done nodes where
they are few, else by list schedules from both ends and annealing (Kirkpatrick et al. 1983).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.rematerialise._lives import measure
from fourfold.decisions.rematerialise._order import lowest_order
from fourfold.decisions.rematerialise._plans import candidate, refusal
from fourfold.decisions.rematerialise.instance import CoreGraph
from fourfold.decisions.rematerialise.problem import Rematerialisation, Rematerialise
from fourfold.problem import Budget, Solver, SolverAnswer

_FEW = 22                                                               # nodes up to which all sets of done nodes may be looked at
_SETS = 60_000                                                          # sets beyond which that is given up


def exact_order(core: CoreGraph) -> NDArray[np.int32] | None:
    """The order of least peak by dynamic programming over sets of done nodes; None where they are too many."""
    nodes = len(core.node)
    if nodes > _FEW:
        return None
    reads = [core.in_val[core.in_ptr[n] : core.in_ptr[n + 1]].tolist() for n in range(nodes)]
    makes = [core.out_val[core.out_ptr[n] : core.out_ptr[n + 1]].tolist() for n in range(nodes)]
    before = [sum({1 << int(core.producer[v]) for v in row}) for row in reads]
    users = [0] * len(core.size)
    for n, row in enumerate(reads):
        for v in row:
            users[v] |= 1 << n
    size, pinned = core.size.tolist(), core.pinned.tolist()
    layer: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}   # done → (peak, bytes alive, order)
    for _ in range(nodes):
        following: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for done, (peak, alive, order) in layer.items():
            for n in range(nodes):
                if done >> n & 1 or before[n] & ~done:
                    continue
                after = done | 1 << n
                top = alive + sum(size[v] for v in makes[n])
                high = max(peak, top + int(core.workspace[n]))
                if after in following and following[after][0] <= high:
                    continue
                gone = sum(size[v] for v in reads[n] if not users[v] & ~after and not pinned[v])
                gone += sum(size[v] for v in makes[n] if not users[v] and not pinned[v])
                following[after] = high, top - gone, (*order, n)
        layer = following
        if len(layer) > _SETS:
            return None
    return np.array(next(iter(layer.values()))[2], np.int32)


class Reorder(Solver):
    """The order of least peak; seconds stay as they are."""

    title: ClassVar[str] = "Order of least peak memory, nothing recomputed"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "rematerialise"
    cites: ClassVar[tuple[str, ...]] = ("sethi1975", "kirkpatrick1983")
    counts: ClassVar[str] = "orders"

    def solve(self, problem: Rematerialise, budget: Budget, seed: int = 0) -> SolverAnswer[Rematerialisation]:
        core = problem.core
        exact = exact_order(core)
        order = exact if exact is not None else lowest_order(core, seed, min(budget.evaluations, 60_000_000 // max(100, len(core.node))), budget)
        found, own = candidate(problem, order), problem.baseline()
        if problem.peak(own) <= found.peak:
            found = found._replace(answer=own, peak=problem.peak(own))
        if problem.limit is not None and found.peak > problem.limit:
            raise refusal(problem, found.peak)
        return SolverAnswer(found.answer, note=f"{measure(core, order)[0]:,} bytes alive at most." + " Optimal order." * (exact is not None))
