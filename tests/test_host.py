"""The hall: its model's behaviour, its techniques against brute force, its validators against broken answers, its bad input."""

from __future__ import annotations

import csv
import itertools
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fourfold.cite import BIBLIOGRAPHY
from fourfold.cli.main import app
from fourfold.cost import datacenter
from fourfold.cost.datacenter import ANYWHERE, Hall, Weather, stated_pue
from fourfold.decisions.datacenter._weather import read
from fourfold.decisions.datacenter.batching import Batching
from fourfold.decisions.datacenter.consolidation import Consolidation
from fourfold.decisions.datacenter.economiser import Economiser
from fourfold.decisions.datacenter.immersion import Immersion
from fourfold.decisions.datacenter.overcooling import Overcooling
from fourfold.decisions.datacenter.problem import Cool, Fleet, Serve
from fourfold.decisions.datacenter.set_point import SetPoint
from fourfold.errors import InputError
from fourfold.jobs.datacenter import pue_after, study
from fourfold.problem import solve
from fourfold.registry import facts, names, techniques
from fourfold.units import GRADES, Quantity

COOLERS = (Economiser, SetPoint, Immersion, Overcooling)


def year(path: Path, hours: int = 8760, mean: float = 12.0, skip: range = range(0)) -> Path:
    """A year that is cold in winter and at night."""
    start = datetime(2022, 1, 1, tzinfo=UTC)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["time", "temperature"])
        for t in range(hours):
            if t not in skip:
                warm = mean + 9 * math.sin((t / 8760 - 0.3) * 2 * math.pi) + 5 * math.sin((t % 24 - 9) / 24 * 2 * math.pi)
                rows.writerow([(start + timedelta(hours=t)).isoformat(), f"{warm:.2f}"])
    return path


# ---- the model ----


def test_every_coefficient_says_where_it_is_from_and_lies_in_its_range() -> None:
    for rows in (datacenter.COEFFICIENTS, datacenter.REDUCTIONS, datacenter.SERVER):
        for name, row in rows.items():
            assert row.low <= row.value <= row.high and row.source and row.what and row.grade in GRADES, name
            assert row.grade != "measured", "nothing of a hall was measured here"


@settings(max_examples=60, deadline=None)
@given(load=st.floats(0.05, 1.0), outside=st.floats(-20, 45), point=st.floats(15, 30), draw=st.integers(0, 20))
def test_pue_is_above_one_and_falls_with_load_and_cold(load: float, outside: float, point: float, draw: int) -> None:
    drawn = next(itertools.islice(datacenter.draws(0, 20), draw, None))

    def pue(load: float, outside: float, point: float) -> float:
        hall = Hall(it_kw=1000 * load, rated_kw=1000.0, set_point=point)
        parts = datacenter.overhead(hall, np.array([hall.it_kw]), np.array([outside]), drawn)
        assert set(parts) == set(datacenter.PARTS) and all((part >= 0).all() for part in parts.values())
        return 1 + float(sum(part.sum() for part in parts.values())) / hall.it_kw

    here = pue(load, outside, point)
    assert here > 1
    assert pue(load, outside - 5, point) <= here + 1e-9
    assert pue(load, outside, point + 2) <= here + 1e-9


def test_losses_have_a_fixed_a_proportional_and_a_square_part() -> None:
    drawn = datacenter.central()
    x = np.array([0.0, 0.5, 1.0])
    lost = datacenter.power_loss(1000 * x, 1000.0, drawn)
    full = 1000 * (drawn["ups_loss"] + drawn["wire_loss"])
    assert lost[0] == pytest.approx(full * drawn["loss_fixed"]) and lost[2] == pytest.approx(full)
    assert lost[2] - 2 * lost[1] + lost[0] == pytest.approx(full * drawn["loss_square"] / 2), "the second difference is the square part"


def test_a_known_pue_is_kept_and_its_parts_sum_to_it() -> None:
    found = study(it_kw=800, pue=1.58)
    assert found["pue"]["value"] == 1.58 and found["pue"]["grade"] == "assumed"
    assert 1 + sum(part["value"] for part in found["parts"].values()) == pytest.approx(1.58, abs=1e-9)
    assert all(part["low"] <= part["value"] <= part["high"] for part in found["parts"].values())


def test_a_pue_may_be_a_quantity_with_its_own_evidence() -> None:
    known = Quantity(1.11, "1", "published", low=1.08, high=1.14, source="an operator's page")
    assert study(pue=known)["pue"]["grade"] == "published"


# ---- cooling ----


@pytest.mark.parametrize("seed", range(30))
def test_every_cooling_technique_gives_a_valid_answer_not_dearer_than_the_hall_as_it_stands(seed: int) -> None:
    problem = Cool.sample(seed)
    for solver in COOLERS:
        if not solver().declines(problem):
            found = solve(problem, solver())
            assert found.before is not None and found.bound is not None
            assert found.bound <= found.cost <= found.before * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(25))
def test_the_hours_of_outside_air_are_the_best_of_all(seed: int) -> None:
    """Against every sequence of modes; a problem that allows nothing but outside air, so the technique claims the optimum."""
    rng = np.random.default_rng(seed)
    hall = Hall(it_kw=500, rated_kw=1000.0, set_point=18.0)
    problem = Cool(hall, Weather(rng.uniform(5, 40, int(rng.integers(2, 7))), True, "drawn"), hold=int(rng.integers(1, 4)), allowed=("outside air",))
    answers = ({**problem.baseline(), "modes": list(modes)} for modes in itertools.product(range(3), repeat=len(problem.outside)))
    best = min(problem.cost(answer) for answer in answers if not problem.violations(answer))
    found = solve(problem, Economiser())
    assert found.cost == pytest.approx(best, rel=1e-12) and found.gap == pytest.approx(0, abs=1e-12)


def test_free_hours_are_those_below_the_set_point_less_the_margin(tmp_path: Path) -> None:
    weather = read(year(tmp_path / "year.csv"))
    problem = Cool(Hall(set_point=20.0), weather, allowed=("outside air",))
    hours = problem.hours(solve(problem, Economiser()).answer)
    margin, rise = problem.drawn["margin"], problem.drawn["air_rise"]
    assert hours["free"] == int((weather.celsius <= 20.0 - margin).sum()) > 1000
    assert hours["chiller"] == int((weather.celsius >= 20.0 - margin + rise).sum())
    assert sum(hours.values()) == 8760


BREACHES: list[tuple[dict[str, Any], str]] = [
    ({"modes": [2, 0, 0, 0]}, "cannot keep a set point"),
    ({"modes": [1, 0, 0, 0]}, "warmer than the air"),
    ({"modes": [0, 0, 7, 0]}, "does not exist"),
    ({"modes": [0, 0]}, "4 hours and 2 modes"),
    ({"set_point": 35.0}, "above the limit"),
    ({"cooling": "magic"}, "no way to cool"),
    ({"cut": "hope"}, "no published reduction"),
    ({"cooling": "immersion", "modes": [0, 0, 2, 0]}, "meets no outside air"),
    ({"modes": [0, 0, 2, 0]}, "must be held for 2"),
]


@pytest.mark.parametrize("change, said", BREACHES)
def test_a_broken_cooling_answer_is_told_in_words(change: dict[str, Any], said: str) -> None:
    problem = Cool(Hall(set_point=18.0), Weather(np.array([45.0, 20.0, 0.0, 20.0]), True, "made"), hold=2)
    assert problem.violations(problem.baseline()) == []
    broken = problem.violations({**problem.baseline(), **change})
    assert any(said in line for line in broken), broken


def test_what_is_not_allowed_is_refused() -> None:
    problem = Cool(Hall(), Weather(np.zeros(3), True, "made"), allowed=("set point",))
    assert "immersion is not allowed" in problem.violations({**problem.baseline(), "cooling": "immersion"})[0]
    assert Immersion().declines(problem) and Economiser().declines(problem) and not SetPoint().declines(problem)


def test_published_reductions_stay_published_and_hit_cooling_alone() -> None:
    found = study(it_kw=1000, pue=1.58)
    rows = {row["name"]: row for row in found["options"]}
    cooling = found["parts"]["cooling"]["value"]
    for name, cut in (("immersion", 0.97), ("overcooling", 0.35)):
        assert rows[name]["factor"]["grade"] == "published"
        assert rows[name]["factor"]["value"] == pytest.approx(1.58 / (1.58 - cut * cooling), rel=1e-6)
        assert rows[name]["factor"]["low"] < rows[name]["factor"]["value"] <= rows[name]["factor"]["high"]
    assert rows["set_point"]["factor"]["grade"] == "modelled"


def test_without_hours_outside_air_is_unknown_with_a_reason() -> None:
    row = next(row for row in study()["options"] if row["name"] == "economiser")
    assert row["factor"] is None and "hourly" in row["why"]


# ---- servers ----


@pytest.mark.parametrize("seed", range(60))
def test_consolidation_is_the_best_over_numbers_of_servers(seed: int) -> None:
    problem = Serve.sample(seed)
    if len(problem.load) > 5 or len(problem.fleet) > 5:                  # too many for every combination
        alike = Fleet([1.0] * 4, [60.0] * 4, [200.0] * 4, start_kwh=0.01 * (seed % 7))
        odd = Fleet([2.0, 1.0, 1.5], [60.0, 70.0, 30.0], [200.0, 150.0, 220.0])
        problem = Serve([1.0, min(0.1 * seed, 4.0), 0.0, 3.0], alike, headroom=1.0, spare=seed % 2) if seed % 3 else Serve([1.0, 3.0, 0.0], odd)
    found = solve(problem, Consolidation())
    every = itertools.product(range(len(problem.fleet) + 1), repeat=len(problem.load))
    costs = [problem.cost(answer) for on in every if not problem.violations(answer := {"on": on, "batch": [1] * len(problem.load)})]
    assert found.cost == pytest.approx(min(costs), rel=1e-12, abs=1e-15)
    assert (problem.bound() or 0) <= min(costs) + 1e-12


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), servers=st.integers(1, 40), headroom=st.floats(0.2, 1.0))
def test_the_bound_of_serving_is_a_bound(seed: int, servers: int, headroom: float) -> None:
    rng = np.random.default_rng(seed)
    idle = rng.uniform(10, 100, servers)
    fleet = Fleet(rng.uniform(0.5, 2, servers), idle, idle + rng.uniform(0, 300, servers), exponent=float(rng.uniform(1, 1.9)))
    problem = Serve(rng.uniform(0, headroom * fleet.capacity.sum(), 6), fleet, headroom=headroom)
    found = solve(problem, Consolidation())
    assert (problem.bound() or 0) <= found.cost * (1 + 1e-12) <= problem.cost(problem.baseline()) * (1 + 1e-9)


def test_fuller_servers_cost_less_per_unit_of_load() -> None:
    fleet = Fleet(np.ones(10), np.full(10, 100.0), np.full(10, 250.0))
    problem = Serve(np.full(24, 2.0), fleet, headroom=0.8)
    found = solve(problem, Consolidation())
    assert found.answer["on"] == [3] * 24
    assert solve(Serve(np.full(24, 2.0), fleet, headroom=0.8, spare=2), Consolidation()).answer["on"] == [5] * 24


def test_a_dear_start_keeps_servers_on_through_a_short_dip() -> None:
    load = [4.0, 1.0, 4.0]
    fleets = (Fleet(np.ones(5), np.full(5, 100.0), np.full(5, 250.0), start_kwh=start) for start in (0.0, 1.0))
    cheap, dear = (solve(Serve(load, fleet, headroom=1.0), Consolidation()).answer["on"] for fleet in fleets)
    assert cheap == [4, 1, 4] and dear == [4, 4, 4]


def test_batches_keep_the_latency_and_save_servers() -> None:
    problem = Serve(np.array([50.0, 400.0, 0.0]), Fleet(np.ones(40), np.full(40, 60.0), np.full(40, 200.0)), call_s=0.04, item_s=0.005, latency_s=0.2)
    found = solve(problem, Batching())
    for rate, size in zip(problem.load, found.answer["batch"], strict=True):
        assert size == 1 or (size - 1) / rate + 0.04 + size * 0.005 <= 0.2 + 1e-12
        assert rate == 0 or size / rate + 0.04 + (size + 1) * 0.005 > 0.2, "one more would not do"
    assert found.cost < solve(problem, Consolidation()).cost
    assert "waits beyond" in problem.violations({"on": [40, 40, 40], "batch": [30, 30, 1]})[0]


@pytest.mark.parametrize("answer, said", [
    ({"on": [0, 3], "batch": [1, 1]}, "does not fit"), ({"on": [9, 3], "batch": [1, 1]}, "of 3"), ({"on": [3], "batch": [1]}, "2 hours"),
    ({"on": [3, 3], "batch": [2, 1]}, "cannot be batched"),
])
def test_a_broken_serving_answer_is_told_in_words(answer: dict[str, Any], said: str) -> None:
    problem = Serve([2.0, 1.0], Fleet([1.0] * 3, [50.0] * 3, [100.0] * 3))
    assert any(said in line for line in problem.violations(answer))


# ---- the study and its command ----


def test_a_study_of_a_year(tmp_path: Path) -> None:
    found = study(it_kw=800, pue=1.58, temperatures=year(tmp_path / "year.csv"), load=0.3, servers=50)
    rows = {row["name"]: row for row in found["options"]}
    assert set(rows) == set(names("datacenter"))
    assert rows["economiser"]["hours"]["free"] > 5000 and rows["economiser"]["factor"]["value"] > rows["set_point"]["factor"]["value"] > 1
    assert rows["consolidation"]["servers_off"]["mean"] == 50 - math.ceil(50 * 0.3 / 0.8)
    assert 1 < rows["consolidation"]["factor"]["value"] < rows["consolidation"]["it_factor"]["value"], "the hall's fixed losses stay"
    together = found["together"]
    assert together["factor"]["value"] > max(row["factor"]["value"] for row in rows.values() if row["factor"])
    assert together["factor"]["grade"] == "published" and "consolidation" in together["means"]
    json.dumps(found, allow_nan=False)


def test_the_interval_of_a_factor_is_narrower_than_the_halls_own() -> None:
    found = study(it_kw=800)
    wide = found["pue"]["high"] - found["pue"]["low"]
    row = next(row for row in found["options"] if row["name"] == "set_point")
    assert 0 < row["factor"]["high"] - row["factor"]["low"] < wide, "what both sides share cancels"


def test_the_same_study_twice_is_the_same() -> None:
    assert study(pue=1.4) == study(pue=1.4)


@pytest.mark.parametrize("means, grade", [(["set_point"], "modelled"), (["immersion"], "published"), (["set_point", "overcooling"], "published")])
def test_means_give_a_pue(means: list[str], grade: str) -> None:
    after = pue_after(1.58, means)
    assert 1 < after.value < 1.58 and (Quantity(1.58, "1", "counted") / after).value > 1
    assert (stated_pue(1.58) / after).grade == grade


IMPOSSIBLE: list[tuple[list[str], str]] = [
    (["--pue", "0.9"], "PUE of 0.9"), (["--utilisation", "1.2"], "utilisation of 1.2"), (["--rated-kw", "500", "--it-kw", "800"], "above 1"),
    (["--it-kw", "-3"], "not a load"), (["--set-point", "80"], "set point of 80"), (["--cooling", "ice"], "'ice'"),
    (["--headroom", "1.5"], "above 1"),
    (["--servers", "0"], "0 servers"), (["--idle", "2"], "idle server"), (["--temperatures", "nowhere.csv"], "Cannot read"),
    (["--call-ms", "9", "--item-ms", "5", "--latency-ms", "3"], "latency allowed"), (["--pue", "nan"], "PUE of nan"),
]


@pytest.mark.parametrize("words, said", IMPOSSIBLE)
def test_what_cannot_be_is_refused_in_two_lines(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["datacenter", *words])
    assert isinstance(done.exception, InputError), done.output
    assert said in str(done.exception) and len(str(done.exception).splitlines()) == 2


@pytest.mark.parametrize("text, said", [
    ("", "no hours"), ("time,temperature\n", "no hours"), ("a,b\n1,2\n", "columns a, b"), ("time,temperature\nyesterday,3\n", "not a time"),
    ("time,temperature\n2022-01-01T00:00Z,hot\n", "not a temperature"), ("time,temperature\n2022-01-01T00:00Z,86\n", "Fahrenheit"),
    ("time,temperature\n2022-01-01T00:30Z,8\n", "full hour"), ("time,temperature\n2022-01-01T00:00Z,8\n2022-01-01T00:00Z,9\n", "twice"),
    ("time,temperature\n2022-01-01T00:00Z,8\n2022-01-01T03:00Z,9\n", "2 hours are missing, the first from 2022-01-01T01:00Z to 2022-01-01T02:00Z"),
    ("time,temperature\n2022-01-01T00:00Z\n", "columns"),
])
def test_a_faulty_file_of_temperatures_names_its_fault(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "hours.csv"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read(file)
    assert said in str(caught.value)


def test_the_hour_that_a_clock_repeats_needs_its_offset(tmp_path: Path) -> None:
    file = tmp_path / "autumn.csv"
    rows = ["2022-10-30T01:00+02:00", "2022-10-30T02:00+02:00", "2022-10-30T02:00+01:00", "2022-10-30T03:00+01:00"]
    file.write_text("time,temperature\n" + "".join(f"{row},{i}\n" for i, row in enumerate(rows)))
    assert list(read(file).celsius) == [0, 1, 2, 3]


def test_the_command_prints_one_document_or_a_table(tmp_path: Path) -> None:
    load = tmp_path / "load.csv"
    load.write_text("load\n" + "0.2\n0.6\n" * 12)
    done = CliRunner().invoke(app, ["datacenter", "--load", str(load), "--servers", "10", "--json"])
    assert json.loads(done.stdout)["hours"] == 24
    text = CliRunner().invoke(app, ["datacenter", "--pue", "1.58"]).stdout
    assert "PUE 1.58" in text and "Note: Modelled, not measured" in text


def test_every_technique_of_the_hall_cites_a_paper_and_pulls_mechanization() -> None:
    assert len(techniques("datacenter")) >= 6
    for name in techniques("datacenter"):
        found = facts(name)
        assert found.lever == "mechanization" and found.cites and not set(found.cites) - set(BIBLIOGRAPHY), name


def test_a_single_mean_temperature_is_called_what_it_is() -> None:
    assert not ANYWHERE.hourly and "assumed" in ANYWHERE.source


def test_the_old_name_of_the_command_works_and_says_the_new() -> None:
    done = CliRunner().invoke(app, ["hall", "--pue", "1.58"])
    assert done.exit_code == 0 and "PUE 1.58" in done.stdout and "now `fourfold datacenter`" in done.stderr
