"""Annealing, local search and the comparison of solvers, on a problem that no technique of ours answers: numbers in two heaps of equal weight."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from numba import njit

from fourfold.errors import Infeasible
from fourfold.journal import Journal
from fourfold.problem import Budget, Problem, Solver, SolverAnswer
from fourfold.solvers import anneal as annealing
from fourfold.solvers import local_search
from fourfold.solvers.anneal import Cooling, Rounds
from fourfold.solvers.compare import ENDLESS, compare, entries


class Heaps(NamedTuple):
    """Weights, the side ±1 of each, the weight of all on their side; the last flipped; the best sides seen."""

    weight: np.ndarray
    side: np.ndarray
    total: np.ndarray
    last: np.ndarray
    best: np.ndarray


@njit(inline="always")
def _propose(s, step):  # type: ignore[no-untyped-def]
    k = np.random.randint(len(s.side))
    if k == 0:                                                          # number 0 stays: sides are alike
        return False
    s.last[0] = k
    s.side[k] *= -1
    s.total[0] += 2 * s.side[k] * s.weight[k]
    return True


@njit(inline="always")
def _energy(s, best, ceiling):  # type: ignore[no-untyped-def]
    return np.abs(s.total[0])


@njit(inline="always")
def _commit(s, energy):  # type: ignore[no-untyped-def]
    return energy


@njit(inline="always")
def _undo(s):  # type: ignore[no-untyped-def]
    k = s.last[0]
    s.side[k] *= -1
    s.total[0] += 2 * s.side[k] * s.weight[k]


@njit(inline="always")
def _keep(s):  # type: ignore[no-untyped-def]
    s.best[:] = s.side


@njit
def _late(s, now, best, cooling):  # type: ignore[no-untyped-def]
    return annealing.anneal(_propose, _energy, _commit, _undo, _keep, s, now, best, cooling, 0.0, False, False)


@njit
def _early(s, now, best, cooling):  # type: ignore[no-untyped-def]
    return annealing.anneal(_propose, _energy, _commit, _undo, _keep, s, now, best, cooling, 0.0, True, False)


@njit(inline="always")
def _shift(s, k, choice):  # type: ignore[no-untyped-def]
    if (choice == 1) == (s.side[k] > 0):
        return False
    s.last[0] = k
    _undo(s)                                                            # a flip is its own inverse
    return True


@njit(inline="always")
def _back(s, k):  # type: ignore[no-untyped-def]
    _undo(s)


@njit(inline="always")
def _judge(s):  # type: ignore[no-untyped-def]
    return np.abs(s.total[0]), 0.0


@njit
def _descend(s, most):  # type: ignore[no-untyped-def]
    return local_search.descend(_shift, _back, _judge, s, len(s.side), 2, most, 1e-9)


def heaps(weight: np.ndarray, side: np.ndarray | None = None) -> Heaps:
    side = np.ones(len(weight)) if side is None else side
    return Heaps(weight, side, np.array([float(weight @ side)]), np.zeros(1, np.int64), side.copy())


def least(weight: np.ndarray) -> float:
    return min(abs(float(weight @ np.array([1.0, *rest]))) for rest in itertools.product((1.0, -1.0), repeat=len(weight) - 1))


def weights(seed: int, count: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 1000, count).astype(float)


@pytest.mark.parametrize("run", [_late, _early])
@pytest.mark.parametrize("seed", range(5))
def test_annealing_finds_the_optimum_that_enumeration_finds(run: Any, seed: int) -> None:
    weight = weights(seed)
    s = heaps(weight)
    now, best = run(s, float(weight.sum()), float(weight.sum()), Cooling(200_000, seed, 600.0, 100.0))
    assert best == least(weight) == abs(float(weight @ s.best))
    assert now == abs(float(weight @ s.side)) == pytest.approx(abs(s.total[0])), "the state is the one whose energy is told"


def test_annealing_is_a_function_of_its_seed_and_keeps_the_best_when_it_is_hot() -> None:
    weight = weights(7)
    ends = []
    for seed in (3, 3, 4):
        s = heaps(weight)
        now, best = _late(s, float(weight.sum()), float(weight.sum()), Cooling(2000, seed, 1e9, 1e9))
        assert best <= now and best == abs(float(weight @ s.best))
        ends.append((now, best, s.side.tolist()))
    assert ends[0] == ends[1] != ends[2]


def test_a_cold_annealing_takes_nothing_that_costs_more() -> None:
    weight = weights(1)
    for run in (_late, _early):
        s = heaps(weight)
        energy = float(weight.sum())
        for seed in range(200):
            now, _ = run(s, energy, energy, Cooling(1, seed, 1e-12, 1e-12))
            assert now <= energy
            energy = now


def test_early_and_late_draws_accept_alike() -> None:
    """At one temperature the share of accepted moves that cost Δ more is exp(-Δ/T), whenever the number is drawn."""
    weight = np.array([10.0, 1.0])
    for run in (_late, _early):
        taken = 0
        for seed in range(4000):
            s = heaps(weight, np.array([1.0, -1.0]))                    # 9; flipping number 1 makes 11
            now, _ = run(s, 9.0, 9.0, Cooling(1, seed, 4.0, 4.0))
            taken += now == 11.0
        assert taken / 4000 == pytest.approx(0.5 * np.exp(-2 / 4.0), abs=0.035)    # half the draws pick number 0


def test_a_round_falls_to_its_end_and_stops_with_the_budget() -> None:
    told: list[Cooling] = []
    annealing.piecewise(told.append, 8.0, 0.5, 1000, 300, Budget(60, 10**9), 5)
    assert [one.tries for one in told] == [300, 300, 300, 100] and [one.seed for one in told] == [5, 305, 605, 905]
    assert told[0].hot == 8.0 and told[-1].cold == pytest.approx(0.5)
    assert all(one.cold == pytest.approx(other.hot) for one, other in itertools.pairwise(told))
    told.clear()
    budget = Budget(60, 500)
    annealing.piecewise(told.append, 8.0, 0.5, 1000, 300, budget, 5)
    assert len(told) == 2 and budget.exhausted


def test_rounds_begin_at_the_starts_in_turn_and_end_at_the_bound() -> None:
    starts = [(np.array([2.0]), 2.0), (np.array([7.0]), 7.0)]
    begun: list[float] = []

    def run(state: np.ndarray, cooling: Cooling) -> tuple[np.ndarray, float]:
        begun.append(float(state[0]))
        return np.array([1.0]), 1.0 if len(begun) == 5 else 9.0

    rounds = Rounds(heats=(1.0, 0.1), tries=10, growth=1.5, most=12, piece=100, restart=2)
    best, value, made = annealing.search(run, starts, rounds, Budget(60, 10**6), 0, bound=1.0)
    assert begun == [2.0, 2.0, 7.0, 2.0, 2.0] and (best.tolist(), value, made) == ([1.0], 1.0, 5)


@pytest.mark.parametrize("seed", range(5))
def test_descent_ends_where_no_single_move_helps_and_restarts_keep_the_best(seed: int) -> None:
    weight, rng = weights(seed), np.random.default_rng(seed)

    def start() -> Heaps:
        return heaps(weight, rng.choice((-1.0, 1.0), len(weight)))

    def copy(s: Heaps) -> Heaps:
        return Heaps(s.weight, *(part.copy() for part in s[1:]))

    s = start()
    going, value = True, np.inf
    while going:
        going, value = _descend(s, 3)
    assert value == pytest.approx(abs(float(weight @ s.side)))
    for k in range(len(weight)):
        other = s.side.copy()
        other[k] *= -1
        assert abs(float(weight @ other)) >= value - 1e-6
    values = [local_search.restarts(start, lambda s: _descend(s, 3), copy, Budget(60, 10**9), most=most, cost=1)[1] for most in (1, 200)]
    assert least(weight) <= values[1] <= values[0] or values[1] < 40
    best, value, made = local_search.restarts(start, lambda s: _descend(s, 3), copy, Budget(60, 0), most=5, cost=1)
    assert made == 1 and value == np.inf and len(best.side) == len(weight), "a spent budget still has an answer"


# ---- several solvers, one table

@dataclass(frozen=True)
class Guess(Problem[int]):
    """Name a number of at least `limit`; it costs what it is."""

    limit: int = 3
    question: ClassVar[str] = "guess"
    lever: ClassVar[str] = "machine"
    unit: str = "points"

    def baseline(self) -> int:
        return 100

    def violations(self, answer: int) -> list[str]:
        return [] if answer >= self.limit else [f"{answer} is below {self.limit}"]

    def cost(self, answer: int) -> float:
        return float(answer)

    def bound(self) -> float:
        return float(self.limit)

    @classmethod
    def sample(cls, seed: int) -> Guess:
        return cls(seed)


class Adds(Solver):
    title, lever, answers = "Limit and seed", "machine", "guess"

    def __init__(self, more: int = 0, error: Exception | None = None, why: str | None = None) -> None:
        self.more, self.error, self.why, self.budgets = more, error, why, []                # type: ignore[var-annotated]

    def declines(self, problem: Guess) -> str | None:
        return self.why

    def solve(self, problem: Guess, budget: Budget, seed: int = 0) -> SolverAnswer[int]:
        self.budgets.append((budget.seconds, budget.evaluations))
        if self.error is not None:
            raise self.error
        return SolverAnswer(problem.limit + self.more + seed, note="added")


def test_the_table_has_a_row_a_solver_and_seed_and_checks_every_answer() -> None:
    asked = {"good": Adds(), "dear": Adds(5), "wrong": Adds(-2), "full": Adds(error=Infeasible("No room.", "More room.")),
             "other": Adds(why="it is not for this")}
    heard: list[dict[str, Any]] = []
    table = compare(Guess(), asked, 2.5, (0, 1), tell=heard.append, evaluations=ENDLESS)
    assert [(row["solver"], row["seed"]) for row in table.rows] == [(name, seed) for name in asked for seed in (0, 1)] and heard == list(table.rows)
    assert [row["cost"] for row in table.of("good")] == [3.0, 4.0] and [row["gap"] for row in table.of("good")] == pytest.approx([0.0, 1 / 3])
    assert table.best is not None and table.best.cost == 3.0 and table.bound == 3.0
    assert all("broke 1 rule" in row["why"] and row["cost"] is None for row in table.of("wrong")), "an answer that breaks a rule is none"
    assert table.of("full")[0]["why"] == "No room." and "it is not for this" in table.of("other")[0]["why"]
    assert set(asked["good"].budgets) == {(2.5, ENDLESS)} == set(asked["dear"].budgets), "equal wall time"
    one = next(entries(Guess(), {"other": asked["other"]}))
    assert one.declined == "it is not for this" and one.solution is None


def test_seconds_and_seeds_may_be_by_solver_and_faults_are_chosen() -> None:
    asked = {"good": Adds(), "broken": Adds(error=OSError("no weights"))}
    with pytest.raises(OSError, match="no weights"):
        compare(Guess(), asked)
    table = compare(Guess(), asked, {"good": 1.0, "broken": 2.0}, {"good": range(3), "broken": (7,)}, faults=(OSError,))
    told = [(row["solver"], row["seed"], row["why"]) for row in table.rows]
    assert told == [("good", 0, ""), ("good", 1, ""), ("good", 2, ""), ("broken", 7, "no weights")]
    assert asked["broken"].budgets[-1][0] == 2.0


def test_a_journal_makes_each_row_once(tmp_path: Path) -> None:
    asked = {"good": Adds(), "full": Adds(error=Infeasible("No room.", "More room."))}
    with Journal(tmp_path, "work") as journal:
        first = compare(Guess(), asked, 1.0, (0, 1), journal, key="guess 3")
    with Journal(tmp_path, "work") as journal:
        again = compare(Guess(), asked, 1.0, (0, 1), journal, key="guess 3")
        assert again.rows == first.rows and len(first.entries) == 4 and not again.entries
        longer = compare(Guess(), asked, 2.0, (0,), journal, key="guess 3")
    assert len(longer.entries) == 2, "other seconds are other rows"
    assert len(asked["good"].budgets) == 3
