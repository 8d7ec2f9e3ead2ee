"""Costs of services: sums over calls of other rows, a cascade's share of rows among them, and what cannot be is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fourfold.datasets.examples import Examples
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.task import Task
from fourfold.runtime.service import Runner, Served, disagrees, race_services, ratio


class Ticking:
    """A clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        return self.now

    def cpu(self) -> float:
        return self.now

    def utc(self) -> float:
        return self.now


@dataclass
class Worker:
    """Stands for an assembly: each row takes the seconds that its own column says, and the machine is a little unsteady."""

    clock: Ticking
    column: str
    noise: np.random.Generator

    def answers(self, examples: Examples, task: Task) -> list[Any]:
        self.clock.now += float(np.asarray(examples.columns[self.column]).sum()) * float(self.noise.lognormal(0, 0.01))
        return [0] * len(examples)

    def reader(self) -> None:
        return None


TASK = Task("regression", None, METRICS["spearman"])


def raced(share: float, rows: int, seed: int, seconds: float, owners: bool = True) -> tuple[dict[str, Served], float]:
    """A cascade of a first member at 1 % and a second at 30 % of the original's cost; (what was measured, what is true of all rows)."""
    rng, clock = np.random.default_rng(seed), Ticking()
    handed = rng.random(rows) < share
    columns = {
        "original": rng.gamma(4, 0.25e-2, rows), "first": np.full(rows, 1e-4),
    }
    columns["second"] = 0.3 * columns["original"]
    columns["cascade"] = columns["first"] + np.where(handed, columns["second"], 0.0)
    examples = Examples(columns)
    noise = np.random.default_rng(seed + 1)
    runners = {name: Runner(Worker(clock, name, noise)) for name in ("original", "first", "second")}  # type: ignore[arg-type]
    runners["cascade"] = Runner(Worker(clock, "cascade", noise), handed.astype(np.int64) if owners else None, ("first", "second"))  # type: ignore[arg-type]
    found = race_services(runners, examples, TASK, seconds=seconds, seed=seed, clock=clock)
    return found, float(columns["cascade"].sum() / columns["original"].sum())


def test_the_share_that_is_handed_on_is_in_the_cost() -> None:
    """Of some hundred rows that there is time for, two to eight are handed on; the figure is that of all rows all the same, within its interval."""
    off: dict[bool, list[float]] = {True: [], False: []}
    inside = 0
    for seed in range(20):
        for owners in off:
            found, true = raced(0.04, 3000, seed, seconds=2.0, owners=owners)
            assert found["cascade"].rows < 600
            off[owners].append(abs(found["cascade"].result.cpu.value / true - 1))
        inside += found["cascade"].result.cpu.low <= true <= found["cascade"].result.cpu.high
        assert found["cascade"].result.cpu.value > found["first"].result.cpu.value
    assert np.mean(off[True]) < 0.8 * np.mean(off[False])
    assert inside >= 16


def test_intervals_cover_the_cost_of_the_population() -> None:
    """90 % intervals from a sample of rows cover what the next rows cost at least 85 % of the time."""
    covered = 0
    for seed in range(60):
        found, _ = raced(0.15, 400, seed, seconds=60.0)
        population = (1e-4 + 0.15 * 0.3 * 1e-2) / 1e-2
        covered += found["cascade"].result.cpu.low <= population <= found["cascade"].result.cpu.high
    assert covered >= 0.85 * 60


def test_all_rows_are_answered_where_there_is_time() -> None:
    found, true = raced(0.2, 500, 3, seconds=1000.0)
    assert found["cascade"].rows == 500 and found["cascade"].result.cpu.value == pytest.approx(true, rel=0.02)
    assert found["original"].result.cpu.value == 1.0


def test_a_call_is_as_large_as_it_was_when_the_cost_was_stated() -> None:
    """What a call costs besides its rows is shared by them, so the same service costs another share in calls of another size."""

    class Calling(Worker):
        def answers(self, examples: Examples, task: Task) -> list[Any]:
            self.clock.now += 1e-3                                       # whoever answers, for the call itself
            return super().answers(examples, task)

    def measured(rows: int, call: int | None) -> float:
        clock, noise = Ticking(), np.random.default_rng(1)
        examples = Examples({"original": np.full(rows, 1e-3), "it": np.full(rows, 1e-4)})
        runners = {name: Runner(Calling(clock, name, noise)) for name in ("original", "it")}  # type: ignore[arg-type]
        return race_services(runners, examples, TASK, seconds=1e3, seed=0, call=call, clock=clock)["it"].result.cpu.value

    stated = measured(240, None)                                         # in calls of 34
    assert measured(2400, None) < 0.95 * stated
    assert measured(2400, 34) == pytest.approx(stated, rel=0.01)
    assert measured(20, 34) > 0                                          # fewer rows than a call had: smaller calls


def test_a_short_call_is_not_charged_for_what_another_service_left_in_the_caches() -> None:
    """The first call after another's costs .3 ms more, as cold caches do: too little to be in a service's cost, where it runs alone."""
    last: list[str] = []

    class Cold(Worker):
        def answers(self, examples: Examples, task: Task) -> list[Any]:
            self.clock.now += 3e-4 * (last[-1:] != [self.column])
            last.append(self.column)
            return super().answers(examples, task)

    def measured(others: int) -> float:
        clock, noise = Ticking(), np.random.default_rng(1)
        columns = {"original": np.full(480, 1e-4), "it": np.full(480, 1e-5), **{f"other{k}": np.full(480, 5e-5) for k in range(others)}}
        runners = {name: Runner(Cold(clock, name, noise)) for name in columns}  # type: ignore[arg-type]
        return race_services(runners, Examples(columns), TASK, seconds=1e3, seed=0, clock=clock)["it"].result.cpu.value

    assert measured(0) == pytest.approx(0.1, rel=0.02) and measured(6) == pytest.approx(0.1, rel=0.02)


def test_the_fixed_cost_of_a_call_differs_between_processes() -> None:
    """A service of .5 ms a call is less sure than one of half a second, with the same spread from call to call."""
    some = np.random.default_rng(0).lognormal(0, 0.01, 12)
    short, long = ratio(5e-4 * some, some), ratio(0.5 * some, some)
    assert short.high / short.value > 1.05 + (long.high / long.value - 1)


def test_faster_is_said_only_beyond_doubt() -> None:
    rng = np.random.default_rng(0)
    same = rng.gamma(100, 1e-3, 12)
    assert ratio(same * rng.lognormal(0, 0.02, 12), same).verdict == 0
    assert ratio(0.5 * same, same).verdict == -1 and ratio(2 * same, same).verdict == 1
    assert ratio(0.5 * same[:2], same[:2]).verdict == 0


def test_a_cascade_below_its_own_first_member_is_named() -> None:
    found, _ = raced(0.3, 400, 0, seconds=100.0)
    parts = [found["first"], found["second"]]
    assert disagrees(found["cascade"], parts, [1.0, 0.3]) is None
    assert "first member" in str(disagrees(found["first"], [found["second"], found["first"]], [1.0, 0.3]))
    assert "add up" in str(disagrees(found["original"], parts, [1.0, 0.3]))
