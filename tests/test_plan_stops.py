"""A search that is told to stop stops: CP-SAT, which hears no signal itself, and what `plan` asks besides."""

from __future__ import annotations

from typing import Any

import pytest

from fourfold.problem import Budget


class Told(Budget):
    """A budget of ten minutes that a Ctrl-C spends at the third look."""

    looks = 0

    @property
    def left(self) -> float:
        self.looks += 1
        return 600.0 if self.looks < 3 else 0.0


def test_cp_sat_stops_when_the_budget_is_spent_by_an_interrupt() -> None:
    cp_model = pytest.importorskip("ortools.sat.python.cp_model")
    from fourfold.decisions.schedule.exact import _solved

    cp = cp_model.CpModel()                                            # 14 pigeons, 13 holes, as pairs: no short proof that propagation finds
    sits = [[cp.new_bool_var("") for _ in range(13)] for _ in range(14)]
    for one in sits:
        cp.add_bool_or(one)
    for hole in range(13):
        for a in range(14):
            for b in range(a):
                cp.add_bool_or([sits[a][hole].negated(), sits[b][hole].negated()])
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds, solver.parameters.num_workers = 600.0, 1
    solver.parameters.cp_model_presolve, solver.parameters.symmetry_level = False, 0
    status = _solved(solver, cp, Told(600.0))
    assert status == cp_model.UNKNOWN                                  # and this test ended


def test_what_is_asked_besides_leaves_the_budget_to_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.decisions.schedule.problem import Schedule
    from fourfold.jobs import planning
    from fourfold.solvers import compare

    given: list[tuple[str, float]] = []
    real = compare.solve

    def noted(problem: Any, solver: Any, budget: Budget, seed: int) -> Any:
        given.append((type(solver).__module__.rsplit(".", 1)[-1], budget.seconds))
        return real(problem, solver, Budget(0.2, 50), seed)

    monkeypatch.setattr(compare, "solve", noted)
    planning.decide(Schedule.sample(0), "anneal", budget=100.0)
    assert sum(seconds for _, seconds in given) <= 1.3 * 100.0 + 10 and dict(given)["anneal"] >= 25.0
    assert [name for name, _ in given[:-1]] == ["default", "expert", "heft"]
