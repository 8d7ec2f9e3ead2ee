"""Stage construction: the dynamic programme against every pipeline there is, its monotony, the bound, memory, and errors in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.decisions.stages import _kernel as kernel
from fourfold.decisions.stages.alpa import Alpa
from fourfold.decisions.stages.bound import lower_bound
from fourfold.decisions.stages.data_parallel import DataParallel
from fourfold.decisions.stages.enumeration import Enumeration
from fourfold.decisions.stages.equal_split import EqualSplit
from fourfold.decisions.stages.instance import StageTable, invented
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.errors import Infeasible, InputError
from fourfold.problem import Budget, solve


@pytest.mark.parametrize("seed", range(24))
def test_the_dynamic_programme_equals_enumeration_and_no_bound_is_above_it(seed: int) -> None:
    problem = StageConstruction.sample(seed)
    found, all_ = solve(problem, Alpa()), solve(problem, Enumeration())
    assert found.cost == pytest.approx(all_.cost, rel=1e-12) and found.bound == pytest.approx(found.cost)
    assert lower_bound(problem) <= all_.cost * (1 + 1e-12)
    assert solve(problem, EqualSplit()).cost >= found.cost * (1 - 1e-12)


def test_the_bound_is_no_formality() -> None:
    """Over samples, it proves on average more than nine tenths of the optimum, and is not merely the dynamic programme's own number."""
    shares = [lower_bound(problem) / solve(problem, Alpa()).cost for problem in map(StageConstruction.sample, range(40))]
    assert np.mean(shares) > 0.9 and min(shares) > 0.5 and min(shares) < 1 - 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 30.0))
def test_f_is_monotone_in_devices_and_in_the_largest_stage(seed: int, t_max: float) -> None:
    table, devices, microbatches, limit = invented(seed)
    most = StageConstruction(table, devices, microbatches, limit).most_flights
    count = len(table.layers)
    tables = []
    for bar in (t_max, 2 * t_max):
        value = np.full((count + 1, count + 1, devices + 1), np.inf)
        kernel.fill(np.array(table.seconds), np.array(table.devices), most, devices, count, bar, value, np.zeros(value.shape, np.int32),
                    np.zeros(value.shape, np.int32))
        assert (value[:, :, 1:] <= value[:, :, :-1]).all(), "more devices never cost more"
        tables.append(value)
    assert (tables[1] <= tables[0]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_the_validator_agrees_with_a_recount_by_hand(seed: int, data: st.DataObject) -> None:
    problem = StageConstruction.sample(seed)
    table, count = problem.table, len(problem.table.layers)
    stages = data.draw(st.integers(1, count))
    first = sorted(data.draw(st.lists(st.integers(0, count - 1), min_size=stages, max_size=stages)))
    config = data.draw(st.lists(st.integers(0, len(table.configs) - 1), min_size=stages, max_size=stages))
    answer = Stages(np.array(first), np.array(config))
    cuts = [*first, count]
    fine = first[0] == 0 and len(set(first)) == stages and sum(int(table.devices[c]) for c in config) <= problem.devices
    for s in range(stages) if fine else ():
        flights = problem.microbatches if problem.schedule == "gpipe" else min(problem.microbatches, stages - s)
        i, k, c = cuts[s], cuts[s + 1] - 1, config[s]
        fine &= table.held[c, i, k] + flights * table.active[c, i, k] <= problem.limit * (1 + 1e-9)
    assert (problem.violations(answer) == []) == fine
    if fine:
        times = [table.seconds[c, a, b - 1] for c, a, b in zip(config, cuts, cuts[1:], strict=False)]
        assert problem.cost(answer) == pytest.approx(sum(times) + (problem.microbatches - 1) * max(times))


def chain(layers: int = 4, held: float = 4.0, active: float = 1.0) -> StageTable:
    first, last = np.arange(layers)[:, None], np.arange(layers)[None, :]
    runs = np.where(first <= last, last - first + 1.0, np.inf)
    return StageTable(tuple(f"layer {i}" for i in range(layers)), ("1x1", "1x2", "1x4"), np.array([1, 2, 4]), np.array([True, True, True]),
                      np.stack([runs, runs / 2 * 1.2, runs / 4 * 1.4]), np.stack([held * runs] * 3), np.stack([active * runs] * 3))


def test_memory_decides_where_stages_are_cut() -> None:
    """Without a limit one data-parallel stage waits for nobody; with one, its weights must be spread over stages, and early stages keep more."""
    free = solve(StageConstruction(chain(), 4, 1), Alpa())
    assert free.answer.first.tolist() == [0]
    tight = StageConstruction(chain(), 4, 8, 8.0)                       # a layer holds 4, each microbatch 1: the first of four stages keeps four
    answer = solve(tight, Alpa()).answer
    assert answer.first.tolist() == [0, 1, 2, 3] and tight.bytes(answer).tolist() == [8.0, 7.0, 6.0, 5.0]
    with pytest.raises(Infeasible, match="No plan of 4 layers fits"):
        solve(StageConstruction(chain(), 4, 8, 7.5), Alpa())
    with pytest.raises(Infeasible, match=r"needs 5 B, 0 B more"):
        solve(StageConstruction(chain(), 4, 8, 4.5), Alpa())
    with pytest.raises(Infeasible, match="data parallelism cannot be"):
        solve(tight, DataParallel())


def test_all_microbatches_are_held_under_gpipe() -> None:
    assert solve(StageConstruction(chain(), 4, 4, 9.0, "1f1b"), Alpa()).answer.first.tolist() == [0, 1, 2, 3]
    with pytest.raises(Infeasible):
        solve(StageConstruction(chain(), 4, 6, 9.0, "gpipe"), Alpa())


def test_a_table_and_its_json_are_one_and_odd_ones_are_refused() -> None:
    table = StageConstruction.sample(3).table
    again = StageTable.from_json(json.loads(json.dumps(table.to_json())))
    assert all(np.array_equal(getattr(table, name), getattr(again, name)) for name in ("seconds", "devices", "data"))
    for odd in (np.nan, -1.0):
        with pytest.raises(InputError, match="negative or not a number"):
            StageTable(("a",), ("x",), np.array([1]), np.array([True]), np.full((1, 1, 1), odd), np.ones((1, 1, 1)), np.ones((1, 1, 1)))
    with pytest.raises(InputError, match="schedule 'zigzag'"):
        StageConstruction(table, 4, 1, schedule="zigzag")


def test_a_budget_ends_the_sweep_with_an_answer_and_without_a_bound() -> None:
    layers = 24
    rng = np.random.default_rng(0)
    first, last = np.arange(layers)[:, None], np.arange(layers)[None, :]
    runs = np.where(first <= last, np.cumsum(rng.uniform(1, 2, layers))[None, :] - np.cumsum(rng.uniform(0, 1, layers))[:, None] + 1, np.inf)
    runs = np.where(first <= last, np.abs(runs) + 0.1, np.inf)
    table = StageTable(tuple(map(str, range(layers))), ("1x1", "1x2"), np.array([1, 2]), np.array([True, True]), np.stack([runs, runs * 0.6]),
                       np.where(np.isinf(runs), np.inf, 1.0) * np.ones((2, 1, 1)), np.zeros((2, layers, layers)))
    problem = StageConstruction(table, 16, 64)
    short = solve(problem, Alpa(), Budget(evaluations=1))
    whole = solve(problem, Alpa())
    assert short.cost >= whole.cost and whole.gap == 0.0
