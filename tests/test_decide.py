"""The one place that calls a solver: it asks, checks and prices, and believes nobody."""

import math
from typing import Any

import numpy as np
import pytest

from fourfold.decisions.carbon_aware.now import Now
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.errors import InputError
from fourfold.problem import Budget, Rejected, Solver, SolverAnswer, appraise, gap, solve


def small(**changes: Any) -> Place:
    given: dict[str, Any] = dict(sites=("a", "b"), intensity=np.array([[300.0, 100.0, 200.0], [50.0, 400.0, 90.0]]), names=("j", "k"),
                                 kw=np.array([1.0, 2.0]), hours=np.array([2, 1]), release=np.array([0, 0]), deadline=np.array([3, 3]), capacity=1)
    return Place(**{**given, **changes})


class Liar(Solver):
    """Hands back whatever it was made with."""

    title, lever, answers = "Liar", "map", "place"

    def __init__(self, answer: JobHours, bound: float | None = None, why: str | None = None) -> None:
        self.answer, self.bound, self.why = answer, bound, why

    def declines(self, problem: Any) -> str | None:
        return self.why

    def solve(self, problem: Any, budget: Budget, seed: int = 0) -> SolverAnswer[JobHours]:
        budget.spend(3)
        return SolverAnswer(self.answer, self.bound)


def schedule(*entries: tuple[int, int, int]) -> JobHours:
    return JobHours(*(np.array(column) for column in zip(*entries, strict=True)))


GOOD = schedule((0, 0, 1), (0, 0, 2), (1, 1, 0))


def test_a_good_answer_is_priced_and_its_baseline_told() -> None:
    found = solve(small(capacity=2), Liar(GOOD, 0.2))
    assert found.cost == pytest.approx(0.1 + 0.2 + 0.1) and found.before == pytest.approx(0.3 + 0.1 + 0.6)
    assert found.gap == pytest.approx(1.0) and found.evaluations == 3 and found.broken == () and found.saving == pytest.approx(0.6)


def test_an_impossible_baseline_says_why() -> None:
    found = solve(small(), Liar(GOOD))
    assert found.before is None and "impossible, because a holds 2 units in hour 0, 1 more than its capacity" in found.why and found.saving is None


def test_a_lying_solver_is_rejected_in_words() -> None:
    with pytest.raises(Rejected, match="broke 2 rules of Place; first: job j runs at b in hour 0, a second time in that hour"):
        solve(small(), Liar(schedule((0, 0, 0), (0, 1, 0))))
    with pytest.raises(Rejected, match="claims that nothing costs less than 9"):
        solve(small(), Liar(GOOD, 9.0))


def test_what_a_policy_openly_ignores_is_listed_not_hidden() -> None:
    found = solve(small(), Now())
    assert found.broken and "more than its capacity" in found.broken[0]


def test_the_wrong_question_and_a_refusal_are_errors_in_words() -> None:
    other = Liar(GOOD)
    other.answers = "lunch"                                             # type: ignore[misc]
    with pytest.raises(InputError, match="answers 'lunch', not 'place'"):
        solve(small(), other)
    with pytest.raises(InputError, match="declines: it is Sunday."):
        solve(small(), Liar(GOOD, why="it is Sunday."))


def test_budgets_count_evaluations_and_seconds() -> None:
    budget = Budget(10.0, 2)
    assert budget.spend() and not budget.spend() and budget.exhausted and budget.left > 9
    assert Budget(0.0).exhausted
    budget.restart()
    assert not budget.exhausted
    with pytest.raises(InputError, match="cannot be negative"):
        Budget(-1)


def test_gap_and_appraise() -> None:
    assert gap(3.0, None) is None and gap(3.0, 2.0) == 0.5 and gap(0.0, 0.0) == 0.0 and gap(1.0, -1.0) == 2.0 and math.isinf(gap(0.0, -1.0) or 0.0)
    assert appraise(small(capacity=2), GOOD)[1] == ""


@pytest.mark.apart                                                      # signals reach whatever else a process has loaded
def test_an_interrupt_spends_every_budget_and_the_second_one_interrupts() -> None:
    import signal

    from fourfold.problem import Watch

    told: list[float] = []
    budget, before = Budget(1e6), signal.getsignal(signal.SIGINT)
    with Watch(told.append, every=0.0) as watch:
        assert not budget.exhausted and budget.spend() and told
        signal.raise_signal(signal.SIGINT)
        assert watch.stopped and budget.exhausted and budget.left == 0 and Budget(5.0).exhausted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not budget.exhausted and signal.getsignal(signal.SIGINT) is before


@pytest.mark.apart
def test_an_interrupt_that_was_ignored_before_stays_ignored() -> None:
    import signal

    from fourfold.problem import Watch

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)                 # as `nohup fourfold … &` begins
    try:
        with Watch() as watch:
            signal.raise_signal(signal.SIGINT)
            assert not watch.stopped and not Budget(5.0).exhausted
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
