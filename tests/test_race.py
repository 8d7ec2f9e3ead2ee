"""The race: no difference where there is none, a known difference found, drift cancelled, and a whole race of a tiny model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fourfold.engines import engine
from fourfold.engines.base import Signature
from fourfold.engines.select import Contender, EngineChoice, Outcome, powers, race_model, representative
from fourfold.errors import InputError
from fourfold.measure.race import RaceResult, SystemClock, median_ratio, race

# --- the race itself, on a clock that is told what time it is ---------------------------------------


@dataclass
class Told:
    """A clock that runners move, with noise and a drift that makes everything slower and slower, as a machine that heats up does."""

    seed: int
    noise: float = 0.05
    drift: float = 0.0
    at: float = 0.0
    used: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def wall(self) -> float:
        return self.at

    def cpu(self) -> float:
        return self.used

    def runner(self, name: str, seconds: float, threads: int = 1) -> Callable[[], None]:
        def run() -> None:
            self.calls[name] = self.calls.get(name, 0) + 1
            took = seconds * float(np.exp(self.rng.normal(0, self.noise))) * (1 + self.drift * self.at)
            self.at += took
            self.used += took * threads

        return run


def test_equals_are_called_equal() -> None:
    verdicts = []
    for seed in range(40):
        clock = Told(seed, noise=0.05, drift=0.05)
        results = race({"a": clock.runner("a", 0.03), "b": clock.runner("b", 0.03)}, baseline="a", rounds=9, seed=seed, clock=clock)
        verdicts.append(results["b"].cpu.verdict)
    assert verdicts.count(0) >= 38


def test_nothing_is_called_faster_that_is_not() -> None:
    """2,000 simulated races of equals, and of runners up to a tenth slower, with few rounds and many, quiet and with neighbours: 1 % at most."""
    wrong = 0
    for number in range(2000):
        rng, rounds = np.random.default_rng(number), (5, 6, 7, 9, 21)[number % 5]
        drift = np.exp(np.cumsum(rng.normal(0, 0.1, rounds)))           # a machine that heats up and cools down
        ours, theirs = (drift * np.exp(rng.normal(0, 0.05, rounds)) * (1 + rng.pareto(2.5, rounds) * (number % 2)) for _ in range(2))
        slower = 1 + 0.1 * (number % 4 == 3) * float(rng.random())
        wrong += median_ratio(slower * ours, theirs, seed=number, resamples=1000).verdict < 0
    assert wrong <= 20, wrong


@pytest.mark.parametrize(("rounds", "factor"), [(5, 0.7), (9, 0.85), (21, 0.93)])
def test_what_is_faster_is_called_so(rounds: int, factor: float) -> None:
    """4 % noise, and in one round a neighbour takes three times the time."""
    found = 0
    for number in range(200):
        rng = np.random.default_rng(number)
        ours, theirs = (np.exp(rng.normal(0, 0.04, rounds)) for _ in range(2))
        if rounds > 5:
            ours[rng.integers(rounds)] *= 3.0
        found += median_ratio(factor * ours, theirs, seed=number).verdict < 0
    assert found >= 180


@pytest.mark.bench
def test_equals_are_called_equal_on_the_real_clock() -> None:
    work = np.random.default_rng(0).normal(size=(120, 120))
    results = race({"a": lambda: work @ work, "b": lambda: work @ work}, baseline="a", rounds=9, min_time=0.005)
    assert not results["b"].faster("cpu") and not results["b"].faster("wall")


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_half_again_is_found_whatever_the_drift(drift: float) -> None:
    for seed in range(20):
        clock = Told(seed, noise=0.05, drift=drift)
        results = race({"base": clock.runner("base", 0.03), "slow": clock.runner("slow", 0.045)}, baseline="base", rounds=9, seed=seed, clock=clock)
        slow = results["slow"]
        assert slow.cpu.verdict == slow.wall.verdict == 1
        assert slow.cpu.low <= slow.cpu.value <= slow.cpu.high
        assert slow.cpu.value == pytest.approx(1.5, rel=0.12)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.2, 0.85), seed=st.integers(0, 10_000))
def test_a_clear_win_is_a_win(factor: float, seed: int) -> None:
    clock = Told(seed, noise=0.02)
    runners = {"base": clock.runner("base", 0.03), "fast": clock.runner("fast", 0.03 * factor)}
    results = race(runners, baseline="base", rounds=9, seed=seed, clock=clock)
    assert results["fast"].faster("cpu") and results["fast"].faster("wall")
    assert results["fast"].cpu.value == pytest.approx(factor, rel=0.06)
    assert not results["base"].faster("cpu") and results["base"].cpu.value == 1


def test_threads_show_in_processor_time_only() -> None:
    clock = Told(0, noise=0.01)
    results = race({"one": clock.runner("one", 0.03), "two": clock.runner("two", 0.02, threads=2)}, baseline="one", rounds=9, clock=clock)
    assert results["two"].faster("wall") and not results["two"].faster("cpu")
    assert results["two"].cpu.value == pytest.approx(4 / 3, rel=0.05)


def test_short_work_is_repeated_until_the_clock_can_see_it() -> None:
    clock = Told(0, noise=0.0)
    result = race({"a": clock.runner("a", 0.001)}, baseline="a", rounds=5, min_time=0.025, warmup=2, clock=clock)["a"]
    assert result.repeats == 25 and clock.calls["a"] == 2 + 5 * 25
    assert result.wall_median == pytest.approx(0.001)


def test_hopeless_runners_are_dropped_and_the_baseline_is_not() -> None:
    clock = Told(3, noise=0.05)
    runners = {"base": clock.runner("base", 0.3), "good": clock.runner("good", 0.05), "bad": clock.runner("bad", 0.2)}
    results = race(runners, baseline="base", rounds=10, eliminate="cpu", clock=clock)
    assert results["bad"].dropped is not None and results["bad"].rounds < 10
    assert results["base"].dropped is None and results["base"].rounds == results["good"].rounds == 10


def test_a_deadline_ends_the_race_but_not_before_a_verdict_is_possible() -> None:
    clock = Told(0)
    result = race({"a": clock.runner("a", 1.0), "b": clock.runner("b", 0.5)}, baseline="a", rounds=50, deadline=0.1, clock=clock)["b"]
    assert result.rounds == 5 and result.faster("cpu")


def test_few_rounds_prove_nothing() -> None:
    assert median_ratio(np.array([0.5, 0.5, 0.5]), np.ones(3)).verdict == 0


def test_results_survive_json() -> None:
    clock = Told(0)
    result = race({"a": clock.runner("a", 0.1), "b": clock.runner("b", 0.2)}, baseline="a", rounds=5, clock=clock)["b"]
    assert RaceResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_same_seed_same_race() -> None:
    def once() -> dict[str, Any]:
        clock = Told(7)
        return race({"a": clock.runner("a", 0.1), "b": clock.runner("b", 0.1)}, baseline="a", rounds=7, seed=5, clock=clock)["b"].to_json()

    assert once() == once()


def test_the_real_clock_moves() -> None:
    clock = SystemClock()
    wall, cpu = clock.wall(), clock.cpu()
    while clock.cpu() - cpu < 0.01:
        sum(range(1000))
    assert clock.wall() - wall > 0.005


def test_unknown_baseline() -> None:
    with pytest.raises(KeyError):
        race({"a": lambda: None}, baseline="b")


# --- a whole race -----------------------------------------------------------------------------------


class Ragged:
    """Token sequences of differing lengths: the part of `Examples` that a race uses."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        self.rows, self.lengths = rows, np.array([len(row) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> Ragged:
        return Ragged([self.rows[i] for i in index])

    def collate(self, index: np.ndarray, multiple: int = 1) -> dict[str, np.ndarray]:
        longest = max(len(self.rows[i]) for i in index)
        ids = np.zeros((len(index), longest), np.int64)
        for row, i in enumerate(index):
            ids[row, : len(self.rows[i])] = self.rows[i]
        return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}

    def batches(self, size: int, bucket: bool = True, seed: int | None = None) -> list[np.ndarray]:
        order = np.argsort(self.lengths, kind="stable") if bucket else np.arange(len(self))
        return [order[i : i + size] for i in range(0, len(order), size)]


class Reader(nn.Module):
    """A small encoder with masked mean pooling."""

    def __init__(self, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        weight = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1))


@dataclass
class Plain:
    """The part of `Subject` that a race uses."""

    inputs: tuple[str, ...] = ("input_ids", "attention_mask")

    def wrap(self, module: nn.Module) -> nn.Module:
        return module


def rows(count: int = 96) -> Ragged:
    rng = np.random.default_rng(0)
    return Ragged([rng.integers(1, 200, rng.integers(3, 40)) for _ in range(count)])


@pytest.fixture(scope="module")
def small_against_large() -> Outcome:
    """A model of one eighth of the work, in fp32 and int8 under PyTorch alone, against the original."""
    torch.manual_seed(0)
    large, small = Reader(layers=8).eval(), Reader(layers=1).eval()
    return race_model(
        Plain(), small, rows(), reference=large, engines=["torch"], precisions=["fp32", "int8"], threads=[1], batch_sizes=[8, 32], budget_s=25
    )


@pytest.mark.bench
def test_less_work_wins(small_against_large: Outcome) -> None:
    found = small_against_large
    assert found.improved and found.result is not None and found.result.faster("cpu")
    assert found.result.cpu.value < 0.6
    assert min(row["cpu"]["value"] for row in found.table if row["who"] == "baseline") > 0.8


def test_the_best_is_one_of_those_that_were_asked_for(small_against_large: Outcome) -> None:
    found = small_against_large
    assert found.best.engine == "torch" and found.best.threads == 1 and found.best.batch in (8, 32)


def test_the_table_tells_everything_tried(small_against_large: Outcome) -> None:
    table = small_against_large.table
    assert sum(row["chosen"] for row in table) == 1
    base = [row for row in table if row["who"] == "baseline"]
    assert {row["batch"] for row in base} == {8, 32} and {row["bucket"] for row in base} == {True, False}
    for row in table:
        assert row["cpu"]["low"] <= row["cpu"]["value"] <= row["cpu"]["high"]
        assert row["cpu_per_example"] > 0 and row["bytes"] > 0 and row["ran"]["engine"] == "torch"


def test_batches_are_made_within_calls() -> None:
    """A service that gets twenty rows at once cannot fill a batch of thirty-two, and never waits for other calls' rows."""
    seen: list[int] = []

    class Watched(Ragged):
        def collate(self, index: np.ndarray, multiple: int = 1) -> dict[str, np.ndarray]:
            seen.append(len(index))
            return super().collate(index, multiple)

        def take(self, index: np.ndarray) -> Watched:
            return Watched([self.rows[i] for i in index])

    data, model = Watched(rows(100).rows), Reader(layers=1).eval()
    signature = Signature.of(("input_ids", "attention_mask"), [rows(4).collate(np.arange(4))])
    contender = Contender(engine("torch"), "fp32", model, signature, data, Path("."), [], call=20)
    contender.runner(EngineChoice("torch", "fp32", 1, 32, True))()
    assert seen == [20] * 5
    seen.clear()
    replace(contender, call=None).runner(EngineChoice("torch", "fp32", 1, 32, True))()
    assert seen == [32, 32, 32, 4]


def test_the_baseline_is_tuned_though_other_engines_take_all_the_time() -> None:
    """Hundreds of rows of little work: a batch of one is many times dearer, and the baseline does not keep it for want of time."""
    torch.manual_seed(0)
    found = race_model(Plain(), Reader(layers=1).eval(), rows(64), engines=["torch"], precisions=["int8"], threads=[1], batch_sizes=[1, 2, 64],
                       budget_s=1.5, accept=lambda *_: time.sleep(1.5))  # fmt: skip
    assert found.baseline.batch == 64


def test_an_outcome_survives_json(small_against_large: Outcome) -> None:
    data = json.loads(json.dumps(small_against_large.to_json()))
    again = Outcome.from_json(data)
    assert again.best == small_against_large.best and again.result == small_against_large.result
    assert data["processor"]["name"] and "flags" in data["processor"]


def test_a_callers_veto_is_a_reason() -> None:
    torch.manual_seed(0)
    model = Reader(layers=1).eval()
    found = race_model(
        Plain(), model, rows(32), engines=["torch"], precisions=["int8"], threads=[1], batch_sizes=[8], budget_s=2, accept=lambda *_: "too coarse"
    )
    assert not found.improved and found.best == found.baseline
    assert found.rejected == [{"engine": "torch", "precision": "int8", "reason": "too coarse"}]


def test_latency_takes_examples_one_by_one() -> None:
    torch.manual_seed(0)
    large, small = Reader(layers=6).eval(), Reader(layers=1).eval()
    found = race_model(
        Plain(), small, rows(32), reference=large, objective="latency", engines=["torch"], precisions=["fp32"], threads=[1], budget_s=8
    )
    assert found.best.batch == found.baseline.batch == 1 and {row["batch"] for row in found.table} == {1}


@pytest.mark.bench
def test_less_work_answers_sooner() -> None:
    torch.manual_seed(0)
    large, small = Reader(layers=6).eval(), Reader(layers=1).eval()
    found = race_model(
        Plain(), small, rows(32), reference=large, objective="latency", engines=["torch"], precisions=["fp32"], threads=[1], budget_s=8
    )
    assert found.result is not None and found.result.faster("wall")


@pytest.mark.bench
def test_memory_prefers_the_smallest_that_is_not_slower() -> None:
    torch.manual_seed(0)
    large, small = Reader(layers=6).eval(), Reader(layers=1).eval()
    found = race_model(
        Plain(), small, rows(32), reference=large, objective="memory", engines=["torch"], precisions=["fp32", "int8-weights"], threads=[1],
        batch_sizes=[8], budget_s=2,
    )  # fmt: skip
    assert found.best.precision == "int8-weights"


@pytest.mark.parametrize("wrong", [{"objective": "beauty"}, {"engines": ["abacus"]}, {"precisions": ["int3"]}])
def test_unknown_words_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="there is no"):
        race_model(Plain(), Reader(layers=1), rows(8), budget_s=1, **wrong)


def test_settings() -> None:
    assert powers(1) == [1] and powers(2) == [1, 2] and powers(6) == [1, 2, 4, 6]
    assert str(EngineChoice("torch", "fp32", 2, 8, True)) == "torch fp32, 2 threads, batch 8, by length"
    index = representative(1000, 0.01, 80.0, "energy", 0)
    assert len(index) == 100 and len(set(index)) == 100 and list(index) == sorted(index)
    assert len(representative(10, 0.01, 1000, "energy", 0)) == 10 and len(representative(1000, 10.0, 1, "latency", 0)) == 4
