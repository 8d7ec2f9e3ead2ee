"""How the canonical searches are asked again and again: orders in turn, nodes limited, capacities between the bound and the best height.

Half of the nodes go to the static orders of Moffitt (2023), round robin under limits that double; half to the same orders with their keys disturbed,
under limits that follow Luby, Sinclair and Zuckerman (1993), since the time of such a search has a heavy tail (Gomes et al. 2000). Plain packings
are asked of two searches, one with cheap nodes (`_ranked`) and one with strong inference (`_canonical`), more than half of the time the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fourfold.decisions.allocate import _canonical as canonical
from fourfold.decisions.allocate import _ranked
from fourfold.decisions.allocate._form import Packing, heights, ranks
from fourfold.decisions.allocate.instance import I64
from fourfold.problem import Budget

NODES = 1000                                                            # of the search in one evaluation
_NOISE, _SHORT, _FIRST = 0.3, 10, 2                                     # spread of keys; nodes a buffer in the shortest, first static run
_CHEAP = 8                                                              # nodes of `_ranked` for one of `_canonical`, which takes as long as 4 or 5
_MOST = 4000                                                            # buffers for `_ranked`: its trail is an array of buffers × sections
_LONGEST = 400_000                                                      # nodes of one run with disturbed keys


def luby(i: int) -> int:
    """The i-th term, from 1, of 1 1 2 1 1 2 4 …"""
    k = i.bit_length()
    return 1 << (k - 1) if i == (1 << k) - 1 else luby(i - (1 << (k - 1)) + 1)


class _Kind:
    """What one of the two searches was asked so far: `turns` and `nodes`, of static orders and of disturbed ones."""

    def __init__(self, orders: int, short: int, longest: int, seed: int) -> None:
        self.rng, self.orders, self.short, self.longest = np.random.default_rng(seed), orders, short, longest
        self.turns, self.nodes = [0, 0], [0, 0]

    def next(self, n: int) -> tuple[bool, int, int]:
        """(whether the keys are disturbed, which order, how many nodes at most) of the run that is due."""
        noisy = self.nodes[0] > self.nodes[1]
        turn = self.turns[noisy]
        self.turns[noisy] += 1
        return noisy, turn % self.orders, min(self.longest, n * self.short * luby(turn + 1)) if noisy else n * _FIRST << min(40, turn // self.orders)


class Restarts:
    """Runs of the canonical searches on one bank. `nodes`: looked at so far; `offset`: of the last packing found."""

    def __init__(self, form: Packing, seed: int = 0) -> None:
        self.form, self.nodes, self.seed = form, 0, seed
        self.offset = np.zeros(0, np.int64)
        life, (_, peak) = form.life.astype(float), heights(form)
        area = life * form.size
        self.keys = ((life, area, peak), (peak, area, life), (peak, life, area))
        self.strong, self.cheap = _Kind(3, _SHORT, _LONGEST, seed), _Kind(5, 2 * _SHORT, _CHEAP * _LONGEST, seed)

    @cached_property
    def state(self) -> canonical._State:
        return canonical.state(self.form, self.seed)

    @cached_property
    def stack(self) -> _ranked.RankedStack:
        return _ranked.stack(self.form)

    @cached_property
    def ranked(self) -> list[_ranked.RankedPacking]:
        """The three static orders, then the two that begin with the load, ranked again in each component."""
        return [self._ranked(self.keys[i % 3 + i // 3], i >= 3) for i in range(5)]

    def _ranked(self, keys: tuple[np.ndarray, ...], loaded: bool) -> _ranked.RankedPacking:
        return _ranked.ranked(self.form, np.argsort(ranks(keys), kind="stable"), loaded)

    def run(self, cap: int, nodes: int, stop: np.ndarray) -> int:
        """Search for a packing within `cap` for about `nodes` nodes: a status of `_canonical`."""
        begun = self.nodes
        while self.nodes - begun < nodes:
            status = self._once(cap, begun + nodes - self.nodes, stop)
            if status != canonical.LIMIT:
                return status
        return canonical.LIMIT

    def _once(self, cap: int, most: int, stop: np.ndarray) -> int:
        cheap = self.form.plain and len(self.form.size) <= _MOST and sum(self.cheap.nodes) <= _CHEAP * sum(self.strong.nodes)
        kind = self.cheap if cheap else self.strong
        noisy, which, limit = kind.next(len(self.form.size))
        keys = self.keys[which % 3 + (which // 3 if cheap else 0)]
        if noisy:
            spread = np.exp(kind.rng.normal(0.0, _NOISE, len(self.form.size)))
            keys = tuple(key * spread for key in keys)
        if cheap:
            made = self._ranked(keys, which >= 3) if noisy else self.ranked[which]
            status = int(_ranked.search(made, self.stack, cap, min(limit, most), stop))
            visited = int(self.stack.at[_ranked.VISITED])
            if status == canonical.PACKED:
                self.offset = np.empty(len(keys[0]), np.int64)
                self.offset[made.order] = self.stack.offset
        else:
            status = int(canonical.search(self.form, self.state, ranks(keys), cap, min(limit, most), stop))
            visited = int(self.state.at[canonical.VISITED])
            if status == canonical.PACKED:
                self.offset = self.state.offset.copy()
        done = min(visited, limit)
        self.nodes += done
        kind.nodes[noisy] += done
        return status


@dataclass
class Height:
    """What is known of one bank's height: `found` is a packing of height `least`, or None; nothing is below `bound`."""

    found: I64 | None
    least: int
    bound: int


def lower(runs: Restarts, now: Height, goal: int, decide: bool, budget: Budget, stop: np.ndarray,
          tell: Callable[[Height], None] = lambda height: None) -> Height:
    """Bring `now.least` down to `goal` or the bound, as far as the budget lasts. `decide`: only `goal` is asked for.

    Otherwise the bound is tried, then capacities halfway to the best height; one that is neither packed nor refuted counts as too low for that round,
    and each round looks at twice the nodes of the one before.
    """
    slice_ = (2000 if decide else 20) * NODES                           # a run that a slice cuts off is lost
    while now.least > max(goal, now.bound) and not stop[0] and not budget.exhausted:
        floor = max(now.bound, goal)
        while floor < now.least and not stop[0] and not budget.exhausted:
            cap = goal if decide else floor + (now.least - floor - 1) // 2 if floor > max(now.bound, goal) else floor
            begun = runs.nodes
            left = max(1, budget.evaluations - budget.spent) * NODES
            status = runs.run(cap, min(slice_, left), stop)
            budget.spend(-(-(runs.nodes - begun) // NODES))
            if status == canonical.PACKED:
                now.found, now.least = runs.offset, int((runs.offset + runs.form.size).max(initial=0))
                tell(now)
                break
            if status == canonical.EXHAUSTED and runs.form.proves:
                now.bound = max(now.bound, cap + 1)
                tell(now)
                if decide:
                    return now
            floor = now.least if decide else cap + 1
        slice_ = min(2 * slice_, (20_000 if decide else 2000) * NODES)
    return now


class StopFlag:
    """`with StopFlag(budget) as stop:` an array i8[1] that turns 1 when the budget's seconds are over or a `Watch` was told to stop."""

    def __init__(self, budget: Budget, stop: np.ndarray | None = None) -> None:
        import contextvars

        self.stop = np.zeros(1, np.int64) if stop is None else stop
        self._over, context = threading.Event(), contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._look, budget), daemon=True)

    def __enter__(self) -> np.ndarray:
        self._thread.start()
        return self.stop

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self, budget: Budget) -> None:
        while not self._over.is_set():
            left = budget.left
            if left <= 0:
                self.stop[0] = 1
                return
            self._over.wait(min(left + 1e-4, 0.1))
