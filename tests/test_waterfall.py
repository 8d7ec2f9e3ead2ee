"""The four levers of a result: factors, grades, intervals, grams; their picture; old reports without them."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invented import report
from rich.console import Console
from typer.testing import CliRunner

from fourfold.cli.main import app
from fourfold.errors import InputError
from fourfold.jobs.levers import levers, with_levers
from fourfold.report import html, markdown, summary, terminal, waterfall
from fourfold.report import json as files
from fourfold.report.schema import SCHEMA, validate
from fourfold.site import site
from fourfold.units import GRADES

PLACES: list[dict[str, Any]] = [{}, {"site": "tokyo"}, {"site": "PL", "to_site": "FR"}, {"hall": "1.58:1.10"}, {"hall": "1.58:immersion"},
                                {"pue": 1.2}, {"site": "FR", "to_site": "PL", "hall": "1.1:1.58"},
                                {"site": "PL", "to_site": "gcp:us-central1", "hall": "1.58:set-point"}]


def factors(found: Any) -> dict[str, float]:
    return {row["lever"]: row["factor"]["value"] for row in found["rows"]}


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("feasible", [True, False])
def test_the_factors_multiply_to_the_total_and_the_report_is_sound(place: dict[str, Any], feasible: bool) -> None:
    document = with_levers(report(feasible), **place)
    assert validate(document) == [] and document["schema"] == SCHEMA
    found = document["levers"]
    assert math.prod(factors(found).values()) == pytest.approx(found["total"]["value"], rel=1e-12)
    given = [row for row in found["rows"] if row["given"]]
    if given:
        assert found["total"]["grade"] == max((row["factor"]["grade"] for row in given), key=GRADES.index)
        assert sum(row["share"] for row in given) == pytest.approx(1)
    json.dumps(document, allow_nan=False)


def test_model_and_machine_are_what_the_race_measured() -> None:
    document = report()
    found = levers(document)
    rows = {row["lever"]: row for row in found["rows"]}
    assert factors(found)["model"] == pytest.approx(1 / 0.262) and factors(found)["machine"] == pytest.approx(0.262 / 0.062)
    assert found["total"]["value"] == pytest.approx(document["total"]) and found["total"]["grade"] == "modelled"
    document["energy"]["grade"] = "measured"                            # a ratio of times is no better than the joules that it stands for
    assert levers(document)["total"]["grade"] == "measured"
    best = document["candidates"][document["best"]]["relative_energy"]
    assert found["total"]["low"] == pytest.approx(1 / best["high"], rel=5e-3) and found["total"]["high"] == pytest.approx(1 / best["low"], rel=5e-3)
    assert [rows[name]["given"] for name in ("mechanization", "map")] == [False, False]
    assert rows["map"]["factor"]["grade"] is None and rows["map"]["title"] == "not given"


def test_a_step_raced_by_itself_gives_its_interval_to_both_sides_and_cancels_in_the_total() -> None:
    document = report()
    document["candidates"][9]["relative_energy"] = {"value": 0.262, "low": 0.25, "high": 0.275}
    rows = {row["lever"]: row["factor"] for row in levers(document)["rows"]}
    alone = {row["lever"]: row["factor"] for row in levers(report())["rows"]}
    assert rows["model"]["low"] < rows["model"]["value"] < rows["model"]["high"] and alone["model"]["low"] is None
    width = {name: math.log(figure["high"] / figure["low"]) for name, figure in (("with", rows["machine"]), ("without", alone["machine"]))}
    assert width["with"] > width["without"]
    assert levers(document)["total"]["low"] == pytest.approx(levers(report())["total"]["low"])


def test_the_4m_of_the_paper_comes_out_as_756() -> None:
    """4 × 15 × 1.4 × 9 (Patterson et al. 2022, rounded factors)."""
    document = report()
    document["factors"] = [{"lever": "model", "technique": "t", "title": "m", "before": 1.0, "after": 1 / 4},
                           {"lever": "machine", "technique": "t", "title": "c", "before": 1 / 4, "after": 1 / 60}]
    document["candidates"][document["best"]]["relative_energy"] = {"value": 1 / 60, "low": None, "high": None}
    document["total"] = 60.0
    before, after = site("PL").given(intensity=900, pue=1.4), site("FR").given(intensity=100, pue=1.0)
    found = levers(document, site=before, to_site=after)
    assert found["total"]["value"] == pytest.approx(756, rel=1e-12)
    assert found["carbon"]["before"]["value"] / found["carbon"]["after"]["value"] == pytest.approx(756, rel=1e-9)
    amounts = sum(row["amount"]["value"] for row in found["rows"])
    assert amounts == pytest.approx(found["carbon"]["before"]["value"] - found["carbon"]["after"]["value"], rel=1e-9)


def test_grams_are_joules_times_pue_times_intensity() -> None:
    tokyo = site("tokyo")
    carbon = levers(report(), site="tokyo", pue="1.3")["carbon"]
    assert carbon["before"]["value"] == pytest.approx(41.2 / 3.6e6 * 1.3 * tokyo.intensity.value)
    assert carbon["before"]["grade"] == "assumed", "the PUE was only stated"


def test_without_joules_there_are_factors_and_no_grams() -> None:
    document = report()
    document["baseline"]["joules_per_1000"] = None
    found = levers(document, site="PL", to_site="FR")
    assert found["carbon"] is None and any("not known" in note for note in found["notes"]) and factors(found)["map"] > 5
    assert validate(with_levers(document, site="PL", to_site="FR")) == []


@pytest.mark.parametrize("place, said", [
    ({"to_site": "FR"}, "runs now"), ({"site": "Farnce"}, "Nearest"), ({"hall": "1.58"}, "not a change"), ({"hall": "0.9:1.1"}, "PUE of 0.9"),
    ({"hall": "1.58:economiser"}, "hourly temperatures"), ({"hall": "1.58:ice"}, "not a means"), ({"hall": "1.58:immersion+set_point"}, "immersed"),
    ({"hall": "1.58:1.1", "pue": 1.2}, "one of them"), ({"pue": "0.5"}, "PUE of 0.5"), ({"hall": "nowhere.json"}, "datacenter --json"),
    ({"pue": "x"}, "not a figure"),
])
def test_what_cannot_be_is_refused_in_two_lines(place: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        levers(report(), **place)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 2


def test_a_studied_hall_is_modelled_and_keeps_its_factor(tmp_path: Path) -> None:
    file = tmp_path / "hall.json"
    file.write_text(CliRunner().invoke(app, ["hall", "--pue", "1.58", "--json"]).stdout)
    studied = json.loads(file.read_text())["together"]["factor"]
    row = levers(report(), hall=str(file))["rows"][2]
    assert row["factor"]["value"] == pytest.approx(studied["value"]) and row["factor"]["grade"] in ("published", "assumed")


# ---- versions ----


def test_a_report_without_levers_still_reads(tmp_path: Path) -> None:
    document = report()
    assert document["schema"] == "fourfold.report/1" and "levers" not in document
    assert files.read(files.write(document, tmp_path)) == document
    assert "The four levers" not in html.page(document)
    assert validate({**document, "schema": SCHEMA, "levers": None}) == []


@pytest.mark.parametrize("change, said", [
    (lambda f: f["total"].update(value=5.0), "multiply to"), (lambda f: f["total"].update(grade="measured"), "weakest factor"),
    (lambda f: f["rows"].pop(), "expected model, machine"), (lambda f: f["rows"].reverse(), "expected model, machine"),
    (lambda f: f["rows"][3]["factor"].update(grade=None), "is given, yet"), (lambda f: f["rows"][0]["factor"].update(value=-1.0), "positive"),
    (lambda f: f["rows"][0].update(lever="magic"), "expected one of"),
])
def test_faulty_levers_are_named_in_words(change: Any, said: str) -> None:
    document = with_levers(report(), site="PL", to_site="FR", hall="1.58:1.10")
    broken = copy.deepcopy(document)
    change(broken["levers"])
    assert any(said in line for line in validate(broken)), validate(broken)


def test_a_finished_result_takes_its_levers_without_a_run(tmp_path: Path) -> None:
    files.write(report(), tmp_path)
    before = (tmp_path / "report.json").read_bytes()
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--site", "PL", "--to-site", "FR", "--hall", "1.58:1.10", "--json"])
    assert json.loads(done.stdout)["levers"]["to_site"] == "FR" and (tmp_path / "report.json").read_bytes() == before


# ---- readers ----


@settings(max_examples=80, deadline=None)
@given(values=st.lists(st.floats(0.02, 500), min_size=4, max_size=4), spread=st.floats(1, 3))
def test_bars_follow_one_another_within_the_axis(values: list[float], spread: float) -> None:
    rows = [{"lever": lever, "given": True, "title": "", "factor": {"value": v, "low": v / spread, "high": v * spread}}
            for lever, v in zip(waterfall.NAMES, values, strict=True)]
    total = math.prod(values)
    drawn = waterfall.bars({"rows": rows, "total": {"value": total, "low": total / spread, "high": total * spread}})
    at = float(drawn["one"])
    for bar, value in zip(drawn["rows"], values, strict=True):
        left, width, end = float(bar["left"]), float(bar["width"]), float(bar["end"])
        assert -0.01 <= left and left + width <= 100.6 and min(abs(left - at), abs(left + width - at)) < 0.6, "it begins where the last one ended"
        assert bar["back"] == (end < at - 0.011) or abs(math.log(value)) < 1e-3
        at = end
    assert at == pytest.approx(float(drawn["total"]["end"]), abs=0.02)
    assert all(0 <= float(tick["at"]) <= 100 for tick in drawn["ticks"]) and 1 <= len(drawn["ticks"]) <= 7


@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_terminal_shows_the_four_levers(width: int) -> None:
    document = with_levers(report(), site="PL", to_site="FR", hall="1.58:1.10")
    console = Console(file=io.StringIO(), width=width, highlight=False)
    terminal.show(document, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in text for word in ("Mechanization", "published", "modelled", "together", "329×"))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_every_reader_tells_the_levers_with_their_grades() -> None:
    document = with_levers(report(), site="PL", to_site="FR", hall="1.58:1.10")
    page = html.page(document)
    assert "The four levers" in page and page.count('class="grade g-') == 5 and "Average intensity" in page
    sentence = next(line for line in summary.story(document) if "Mechanization" in line)
    assert sentence.startswith("Model 3.817× (modelled) × Machine 4.226× (modelled)") and "329×" in sentence and sentence in markdown.card(document)
    assert "1 × " not in page
    assert "nothing chosen" in html.page(with_levers(report(False)))
