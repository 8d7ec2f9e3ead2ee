"""The benchmark of prediction: what it draws, times and counts, on plans and figures that are known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import kendalltau

from fourfold.graph import ELEMENTWISE, Builder
from fourfold.machine import Machine


@pytest.fixture(scope="module")
def predict() -> ModuleType:
    file = Path(__file__).parent.parent / "benchmarks" / "predict.py"
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))                            # it imports `provenance` beside it
    spec = importlib.util.spec_from_file_location("predict", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["predict"] = module                                     # its dataclass asks for it
    spec.loader.exec_module(module)
    return module


class Found:
    """A captured program of `count` ops in a chain; two of them must share a device."""

    def __init__(self, count: int) -> None:
        build = Builder("chain")
        x = build.input((64,), "float32")
        for k in range(count):
            (x,) = build.node("aten.relu", [x], [((64,), "float32")], fusion=ELEMENTWISE, colocation=7 if k in (3, 20) else -1)
        build.output(x)
        self.graph = build.build()


def test_random_plans_differ_are_valid_and_are_drawn_alike(predict: ModuleType) -> None:
    found, system = Found(40), Machine.read("cpux2")
    plans, again = predict.drawn(found, system, 12), predict.drawn(found, system, 12)
    assert len({plan.place.tobytes() for _, plan in plans}) >= 10
    assert [plan.hash for _, plan in plans] == [plan.hash for _, plan in again]
    for name, plan in plans:
        assert plan.place[3] == plan.place[20] and set(plan.place.tolist()) <= {0, 1}
        assert plan.cost == plan.timeline().makespan > 0
        assert name.startswith("one device") == (len(plan.timeline().transfers) == 0 and not plan.place.any()) or not plan.place.any()


def test_tau_and_its_settled_pairs(predict: ModuleType) -> None:
    dice = np.random.default_rng(0)
    told, took = dice.random(20), dice.random(20)
    assert predict.kendall(told, took) == pytest.approx(kendalltau(told, took).statistic)  # type: ignore[attr-defined]
    rows = [{"predicted": 1.0, "measured": 10.0, "interval": (9.0, 11.0)}, {"predicted": 2.0, "measured": 9.9, "interval": (9.0, 12.0)},
            {"predicted": 3.0, "measured": 20.0, "interval": (19.0, 21.0)}]
    assert predict.settled(rows) == {"settled_pairs": 2, "settled_kendall": 1.0}      # the first two overlap: nobody knows which is quicker
    rows[2]["predicted"] = 1.5
    assert predict.settled(rows)["settled_kendall"] == 0.0


def test_times_are_interleaved_and_quartiles_have_intervals(predict: ModuleType) -> None:
    seen: list[str] = []

    def call(name: str, seconds: float) -> tuple[float, float]:
        seen.append(name)
        return seconds, seconds / 2

    times = predict.interleaved({"a": lambda: call("a", 1.0), "b": lambda: call("b", 2.0)}, 9)
    assert times == {"a": [(1.0, 0.5)] * 9, "b": [(2.0, 1.0)] * 9} and len(seen) == 20
    assert any(seen[k] == seen[k + 1] for k in range(19))               # the order within a round is drawn
    low, high = predict.interval(np.random.default_rng(1).normal(5.0, 0.1, 50))
    assert 4.8 < low < high < 5.05
    row = {"predicted": 1.1}
    predict._measured(row, times["a"], True)
    assert row["error"] == pytest.approx(0.1) and row["busy_error"] == pytest.approx(1.2)


def test_no_model_of_the_benchmark_is_timed_by_calibration(predict: ModuleType) -> None:
    """Calibration makes single calls; what it imports to make them holds no model of the benchmark."""
    source = (Path(__file__).parent.parent / "fourfold" / "jobs" / "kernels.py").read_text()
    assert "transformers" not in source and "light_" not in source
    assert len(predict.MODELS) + len(predict.LIGHT) >= 20
