"""Plans by the clock: a valid schedule and an honest bound whatever the time, better ones with more of it, and a Ctrl-C that is heard."""

import csv
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourfold.decisions.carbon_aware import _apart, validate
from fourfold.decisions.carbon_aware._passes import Passes
from fourfold.decisions.carbon_aware._pricing import FREE, kinds, separate
from fourfold.decisions.carbon_aware.lagrangean import Lagrangean
from fourfold.decisions.carbon_aware.milp import Milp
from fourfold.decisions.carbon_aware.problem import Place
from fourfold.decisions.carbon_aware.successive_shortest_paths import SuccessiveShortestPaths
from fourfold.jobs.map import study
from fourfold.problem import Budget, solve

ROOT = Path(__file__).parent.parent


def crowd(jobs: int, sites: int = 4, total: int = 240, seed: int = 0, capacity: float = 2, **changes: Any) -> Place:
    """Jobs of a day at most with slack of some days, at sites whose cheap hours are too few for all."""
    dice = np.random.default_rng(seed)
    hours = dice.integers(1, 13, jobs)
    release = dice.integers(0, total - 60, jobs)
    made = Place(tuple(f"site{r}" for r in range(sites)), dice.uniform(20, 600, (sites, total)), tuple(f"job{j}" for j in range(jobs)),
                 dice.uniform(1, 40, jobs), hours, release, np.minimum(release + hours + dice.integers(0, 48, jobs), total),
                 home=dice.integers(0, sites, jobs), capacity=capacity, pue=dice.uniform(1.1, 1.6, sites))
    return made.replace(**changes)


def mixed(seed: int) -> Place:
    """Jobs that may pause, that may not, and that pay for it; several widths, hours that are unknown, sites that are not allowed."""
    dice = np.random.default_rng(seed)
    plain = crowd(24, seed=seed, capacity=4)
    intensity = np.where(dice.random(plain.intensity.shape) < 0.02, np.nan, plain.intensity)
    allowed = dice.random((24, 4)) < 0.8
    allowed[np.arange(24), dice.integers(0, 4, 24)] = True
    pays = dice.random(24) < 0.3
    return plain.replace(intensity=intensity, allowed=allowed, interruptible=dice.random(24) < 0.7, width=dice.integers(1, 3, 24),
                         startup_kwh=np.where(pays, 2.0, 0.0), checkpoint_kwh=np.where(pays, 1.0, 0.0), data_gb=np.where(pays, 50.0, 0.0))


@pytest.mark.parametrize("seed", range(4))
def test_a_compiled_pass_is_what_each_job_costs_alone(seed: int) -> None:
    problem = mixed(seed)
    simple = np.flatnonzero(kinds(problem) <= 1)                        # those that pause at a price are bounded from below instead
    problem = problem.only(simple)
    mu = np.random.default_rng(seed).uniform(0, 5, problem.intensity.shape)
    cost, alone = separate(problem, mu)
    found = Passes(problem).price(mu, lambda: True)
    assert found is not None and found[0] == pytest.approx(cost.sum() - (mu * problem.room).sum(), rel=1e-12)
    np.testing.assert_array_equal(found[2].job, alone.job)
    np.testing.assert_array_equal(found[2].hour, alone.hour)
    assert Passes(problem).price(mu, lambda: False) is None


@pytest.mark.parametrize("kind", ["free", "mixed", "pieces", "wide"])
def test_what_it_finds_is_valid_and_its_bound_is_proved_and_true(kind: str) -> None:
    problem = {"free": crowd(80), "mixed": mixed(1), "pieces": crowd(60, capacity=3, interruptible=False),
               "wide": crowd(60, width=2, capacity=5)}[kind]
    found = solve(problem, Lagrangean(), Budget(1e6, 60))
    exact = solve(problem, Milp() if SuccessiveShortestPaths().declines(problem) else SuccessiveShortestPaths(), Budget(20.0))
    assert found.bound is not None and exact.bound is not None and found.bound <= exact.cost * (1 + 1e-9) and found.cost >= exact.bound * (1 - 1e-9)
    assert found.gap is not None and found.gap < 0.35
    given = found.evidence
    proof = validate.certify(problem, found.answer, given["mu"], proof=(given["lam"], given["low"], given["loose"]))
    assert validate.verify(problem, found.answer, proof) == [] and proof.loose == bool((kinds(problem) > 1).any())
    wrong = validate.verify(problem, found.answer, validate.certify(problem, found.answer, given["mu"],
                                                                          proof=(given["lam"], given["low"] * 1.2, given["loose"])))
    assert given["low"] * 1.2 > found.cost or wrong


def test_more_passes_only_improve() -> None:
    problem = crowd(150, sites=5)
    found = [solve(problem, Lagrangean(), Budget(1e6, passes)) for passes in (4, 20, 120)]
    costs, bounds = [each.cost for each in found], [each.bound or 0.0 for each in found]
    assert costs == sorted(costs, reverse=True) and bounds == sorted(bounds)


def test_jobs_without_room_go_first_in_the_next_round() -> None:
    """Two jobs with one hour between them, where the first in order would take the other's only one."""
    problem = Place(("a",), np.array([[10.0, 20.0, 30.0]]), ("loose", "tight"), np.array([1.0, 9.0]), np.array([1, 1]), np.array([0, 0]),
                    np.array([3, 1]), capacity=1)
    assert solve(problem, Lagrangean(), Budget(1e6, 50)).cost == pytest.approx((9 * 10 + 20) / 1000)


def test_by_the_clock_there_is_a_plan_and_with_time_the_exact_one() -> None:
    problem = crowd(120, sites=5, capacity=1)
    best = solve(problem, SuccessiveShortestPaths())
    found, proof = _apart.within(problem, 900.0, 900.0, 0)
    assert found.cost == pytest.approx(best.cost) and proof.gap <= 1e-9 and validate.verify(problem, found.answer, proof) == []


def test_a_budget_that_is_gone_still_gives_a_plan_with_what_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_apart, "light", lambda problem: False)
    monkeypatch.setattr(_apart, "_MAIN", "import time; time.sleep(600)")   # an exact technique that does not end
    monkeypatch.setattr(_apart, "_LEAST", 1.0)
    problem = crowd(60)
    made = study(problem, budget=0.5)
    assert problem.violations(made.solution.answer) == [] and made.solution.solver == "lagrangean" and not made.stopped
    assert validate.verify(problem, made.solution.answer, made.certificate) == [] and 0 <= made.certificate.bound <= made.solution.cost
    assert any("no time" in note for note in made.notes) and made.to_json()["verified"] in (None, [])


def test_what_is_impossible_is_still_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    from fourfold.errors import Infeasible

    problem = crowd(30, capacity=1).replace(capacity=0.0)
    with pytest.raises(Infeasible):
        _apart.within(problem, 900.0, 900.0, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_ctrl_c_ends_a_plan_with_the_best_so_far(tmp_path: Path) -> None:
    problem, start = crowd(1500, sites=8, total=2000, capacity=3), datetime(2022, 1, 1, tzinfo=UTC)
    with open(tmp_path / "jobs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "hours", "kw", "release", "slack"))
        for j, name in enumerate(problem.names):
            slack = int(problem.deadline[j] - problem.release[j] - problem.hours[j]) + 120
            release = start + timedelta(hours=int(problem.release[j]))
            writer.writerow((name, problem.hours[j], problem.kw[j], f"{release:%Y-%m-%dT%H:00Z}", f"{slack}h"))
    with open(tmp_path / "hours.csv", "w", newline="") as file:
        file.write("# unit: g/kWh\n")
        writer = csv.writer(file)
        writer.writerow(("time_utc", *problem.sites))
        writer.writerows((f"{start + timedelta(hours=t):%Y-%m-%dT%H:00Z}", *problem.intensity[:, t]) for t in range(problem.intensity.shape[1]))
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler); from fourfold.cli.main import main; main()",
               "map", "jobs.csv", "--intensity", "hours.csv", "--capacity", "3", "--budget", "600", "--out", "plan"]
    running = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        for _ in range(2400):                                           # until the plan is under way: the process beside it has worked for a while
            beside = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in beside]
            if any(int(words[11]) + int(words[12]) > 4 * ticks for words in stats) or running.poll() is not None:
                break
            time.sleep(0.05)
        assert running.poll() is None
        os.kill(running.pid, signal.SIGINT)
        out, _ = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 130 and "Interrupted: this is the best plan so far" in out
    planned, answer, proof = validate.load(tmp_path / "plan")
    assert validate.verify(planned, answer, proof) == [] and (kinds(planned) == FREE).all()
