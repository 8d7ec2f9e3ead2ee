"""Jobs from tables, the plan from jobs, and `fourfold map` as a user runs it."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.carbon.hourly import Hours
from fourfold.carbon.jobs import read_jobs, span
from fourfold.cli.main import run
from fourfold.errors import FourfoldError, Infeasible, InputError
from fourfold.jobs.map import plan

START = datetime(2022, 5, 1, tzinfo=UTC)
JOB: dict[str, Any] = {"name": "a", "hours": 2, "kw": 1.0, "release": "2022-05-01T00:00Z", "slack": "2h"}


def hours(values: Any, names: tuple[str, ...] = ("north", "south"), **more: Any) -> Hours:
    return Hours(names, START, np.asarray(values, float), **more)


def one(**changes: Any) -> Any:
    return read_jobs([{**JOB, **changes}])[0]


def test_a_row_becomes_a_job() -> None:
    job = one(hours=2.5, kw=None, energy_kwh=6.0, sites="x; y", width="2", interruptible="no", release="2022-05-01T08:10-07:00", data_gb=7)
    assert (job.hours, job.kw, job.sites, job.width, job.interruptible, job.data_gb) == (3, 2.0, ("x", "y"), 2, False, 7.0)
    assert job.release == datetime(2022, 5, 1, 16, tzinfo=UTC), "rounded up to a whole hour"
    assert job.deadline == datetime(2022, 5, 1, 21, tzinfo=UTC), "3 h held and 2 h of slack"
    assert one(hours=2.5).kw * 3 == pytest.approx(2.5), "an hour begun is held, the energy stays"
    assert one(slack=None, deadline="2022-05-01T04:59Z").deadline.hour == 4, "rounded down"
    assert read_jobs([JOB], contiguous=True)[0].interruptible is False
    assert read_jobs([{**JOB, "slack": None}], slack="1d")[0].deadline.day == 2


def test_a_file_with_comments_semicolons_and_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "jobs.csv"
    file.write_bytes("\ufeff# my jobs\nName;hours;kw;release;sites\na;2;1;2022-05-01T00:00Z;\"x;y\"\n\nb;1;1;2022-05-01T00:00Z;\n".encode())
    first, second = read_jobs(file)
    assert first.sites == ("x", "y") and second.sites == () and second.deadline == datetime(2022, 5, 1, 1, tzinfo=UTC)
    (tmp_path / "jobs.json").write_text(json.dumps([JOB]))
    assert read_jobs(tmp_path / "jobs.json")[0].name == "a"


@pytest.mark.parametrize("changes, words", [
    ({"kw": -1}, "job 1 \\(a\\): kw is -1"), ({"energy_kwh": -5, "kw": None}, "energy_kwh is -5"), ({"kw": "many"}, "kw is a word, not a number"),
    ({"energy_kwh": 4}, "not both"), ({"kw": None}, "one of them"), ({"hours": 0}, "hours is 0"), ({"hours": "nan"}, "hours is nan"),
    ({"release": "2022-05-01T00:00"}, "has no time zone"),
    ({"release": "yesterday"}, "release is a word, not a time"), ({"width": 1.5}, "width is 1.5"),
    ({"release": "2022-03-13T02:30", "zone": "America/Los_Angeles"}, "does not exist in America/Los_Angeles"),
    ({"release": "2022-11-06T01:30", "zone": "America/Los_Angeles"}, "comes twice in America/Los_Angeles"),
    ({"release": "2022-05-01T02:30", "zone": "Mars/Olympus"}, "the time zone is a word, which is none"),
    ({"deadline": "2022-05-02T00:00Z"}, "not both"),
    ({"interruptible": "maybe"}, "interruptible is a word"), ({"slack": "soon"}, "slack is a word, not a length of time"),
    ({"name": " "}, "name is empty"),
    ({"slack": "-2h"}, "not a length of time"), ({"deadlin": 1}, "Did you mean deadline"),
    ({"colour": "red"}, "called a word, which none of jobs is"),
])
def test_bad_rows_name_the_row_and_the_mend(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        one(**changes)


def test_deadlines_that_cannot_be_met_say_by_how_much() -> None:
    late = {**JOB, "slack": None, "deadline": "2022-05-01T01:00Z"}
    with pytest.raises(Infeasible, match="Job a cannot meet its deadline: it needs 2 h and has 1 h, 1 h too few.") as found:
        read_jobs([late])
    assert found.value.exit_code == 3
    with pytest.raises(Infeasible, match="so are 2 others \\(b: 1 h, c: 1 h\\)"):
        read_jobs([late, {**late, "name": "b"}, {**late, "name": "c"}])


def test_names_given_twice_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="both name a job a"):
        read_jobs([JOB, JOB])
    with pytest.raises(InputError, match="There are no jobs"):
        read_jobs([])
    with pytest.raises(InputError, match="Cannot read jobs"):
        read_jobs(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"name,hours\n\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_jobs(tmp_path / "bad.csv")
    (tmp_path / "wide.csv").write_text("name,hours,release\na,1,2022-05-01T00:00Z,9\n")
    with pytest.raises(InputError, match="Line 2 of wide.csv has 4 cells, and there are 3 columns"):
        read_jobs(tmp_path / "wide.csv")


@given(st.text(max_size=8))
def test_lengths_of_time_parse_or_are_refused(text: str) -> None:
    try:
        assert span(text).total_seconds() >= 0
    except InputError:
        pass
    except OverflowError:
        pass


def test_summer_time_counts_in_true_hours() -> None:
    job = one(release="2022-03-12T20:00", zone="America/Los_Angeles", slack=None, deadline="2022-03-13T06:00")
    assert (job.deadline - job.release).total_seconds() == 9 * 3600, "the night the clocks go forward has an hour less"


# ---- the plan ----


def test_a_plan_takes_the_cheap_hours_and_its_document_is_whole() -> None:
    made = plan([{**JOB, "home": "north"}], intensity=hours([[500, 400, 300, 200], [450, 100, 350, 50]]), pue=1.0)
    assert made.solution.answer.hour.tolist() == [1, 3] and made.solution.cost == pytest.approx(0.15) and made.certificate.gap == 0
    document = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert {"sites", "start_utc", "intensity", "jobs", "schedule", "comparators", "bound", "gap", "signal", "certificate", "unit"} <= document.keys()
    assert document["schedule"] == [{"job": "a", "site": "south", "hours": [1, 3]}] and document["start_utc"] == "2022-05-01T00:00Z"
    assert document["verified"] == [] and document["jobs"][0]["baseline_kg"] == pytest.approx(0.9)
    names = [row["name"] for row in document["comparators"]]
    assert names == ["now", "home", "greenest", "waitawhile", "threshold", "forecast", "oracle", "plan"]
    best = document["comparators"][-1]
    assert best["saving"] == pytest.approx(1 - 0.15 / 0.9) and best["share"] == pytest.approx(1.0)
    assert [row["name"] for row in document["ablations"]] == ["time only", "place only"] and document["without"][0]["name"] == "south"
    assert "attribut" in document["sentence"] or "share" in document["sentence"]


def test_the_page_reads_the_document(tmp_path: Path) -> None:
    page = pytest.importorskip("fourfold.report.place")
    made = plan([{**JOB, "home": "north"}], intensity=hours([[500, 400, 300, 200], [450, 100, 350, 50]]), pue=1.0)
    assert "south" in page.page(made.to_json())


def test_marginal_hours_say_so() -> None:
    made = plan([JOB], intensity=hours(np.full((2, 4), 100.0), signal="marginal"), compare=False)
    assert made.to_json()["signal"] == "marginal" and "Marginal" in made.to_json()["sentence"]


@pytest.mark.parametrize("jobs, options, words", [
    ([{**JOB, "home": "nort"}], {}, "Did you mean north"), ([{**JOB, "sites": "mars"}], {}, "site 'mars'"),
    ([JOB], {"capacity": {"suoth": 1}}, "Did you mean south"), ([JOB], {"sites": ["sauth"]}, "Did you mean SOUTH"),
    ([{**JOB, "hours": 9, "slack": "0h"}], {}, "needs 9 h, and there are 4 h of intensity: 5 h too few"),
    ([{**JOB, "release": "2023-05-01T00:00Z"}], {}, "is released at 2023-05-01 00:00 UTC; the hours run from 2022-05-01"),
    ([{**JOB, "release": "2022-05-01T03:00Z"}], {}, "cannot end before the hours do: it needs 2 h and has 1 h, 1 h too few"),
    ([JOB], {"objective": "speed"}, "'speed' is not an objective"), ([JOB], {"objective": "mixed"}, "needs a price of carbon"),
    ([JOB], {"objective": "cost"}, "No electricity price is known for north, south"), ([JOB], {"pue": 0.5}, "PUE of north"),
    ([JOB], {"capacity": -1}, "capacity of north"), ([JOB], {"objective": "mixed", "carbon_price": -1.0}, "carbon price of -1"),
    ([JOB, {**JOB, "name": "b"}, {**JOB, "name": "c"}], {"capacity": {"north": 1, "south": 0}}, "No schedule meets every deadline"),
])
def test_what_cannot_be_planned_is_said_in_words(jobs: list[dict[str, Any]], options: dict[str, Any], words: str) -> None:
    with pytest.raises(FourfoldError, match=words):
        plan(jobs, intensity=hours(np.full((2, 4), 100.0)), compare=False, **options)


def test_objectives_weigh_carbon_and_money() -> None:
    trace = hours([[100, 100, 900, 900], [900, 900, 100, 100]])
    dear = {"north": 1.0, "south": 0.1}
    carbon = plan([{**JOB, "kw": 1.0}], intensity=trace, price=dear, pue=1.0)
    cost = plan([JOB], intensity=trace, price=dear, pue=1.0, objective="cost")
    mixed = plan([JOB], intensity=trace, price=dear, pue=1.0, objective="mixed", carbon_price=5000.0)
    assert carbon.solution.cost == pytest.approx(0.2) and carbon.solution.unit == "kgCO2e"
    assert cost.solution.cost == pytest.approx(0.2) and cost.solution.unit == "USD"
    assert mixed.solution.cost == pytest.approx(0.2 + 5.0 * 0.2) and mixed.to_json()["kg"] == pytest.approx(0.2)


def test_deadlines_beyond_the_hours_are_cut_and_told() -> None:
    made = plan([{**JOB, "slack": "90d"}], intensity=hours(np.arange(8.0).reshape(2, 4) + 1), compare=False)
    assert any("cut to it" in note for note in made.notes) and made.problem.deadline[0] == 4


def test_another_year_may_stand_in() -> None:
    made = plan([{**JOB, "release": "2026-05-04T00:00Z", "sites": "CISO;BPAT", "home": "CISO"}], intensity="eia-2022", replay=True, compare=False)
    assert made.start.year == 2026 and any("stand in" in note for note in made.notes)


def test_yearly_averages_leave_only_the_place() -> None:
    made = plan([{**JOB, "release": "2026-05-04T00:00Z", "sites": "FR;PL", "home": "PL"}], compare=False)
    assert made.schedule[0]["site"] == "FR" and any("only the place" in note for note in made.notes)


def test_data_weigh_against_moving() -> None:
    trace, job = hours([[200.0] * 4, [100.0] * 4]), {**JOB, "home": "north"}
    assert plan([job], intensity=trace, compare=False).schedule[0]["site"] == "south"
    assert plan([{**job, "data_gb": 10_000}], intensity=trace, compare=False).schedule[0]["site"] == "north"


def test_the_ten_dearest_hours_are_those_that_are_fought_over() -> None:
    jobs = [{**JOB, "name": name, "home": "north"} for name in "abc"]
    made = plan(jobs, intensity=hours([[500, 500, 500, 500], [100, 100, 100, 100]]), capacity=1, pue=1.0, compare=False)
    assert len(made.dearest) == 4 and {row["site"] for row in made.dearest} == {"south"}
    assert made.dearest[0]["price"] == pytest.approx(0.4) and made.to_json()["sites"][1]["peak"] == 1


# ---- the command ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs.csv").write_text("name,hours,kw,release,slack,home\na,2,1,2022-05-01T00:00Z,2h,north\nb,1,2,2022-05-01T00:00Z,3h,north\n")
    (tmp_path / "hours.csv").write_text("# unit: g/kWh\ntime,north,south\n" + "".join(
        f"2022-05-01T0{t}:00Z,{500 - 10 * t},{100 + 50 * t}\n" for t in range(4)))
    return tmp_path


def test_map_prints_one_json_document(folder: Path, capsys: Any) -> None:
    assert run(["map", str(folder / "jobs.csv"), "--intensity", str(folder / "hours.csv"), "--capacity", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "map" and document["gap"] <= 1e-9 and len(document["schedule"]) >= 2


def test_no_title_of_a_comparator_is_broken_in_a_narrow_terminal(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = ["map", str(folder / "jobs.csv"), "--intensity", str(folder / "hours.csv"), "--capacity", "1", "--error", "0.1"]
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    titles = [row["title"] for key in ("comparators", "ablations", "without") for row in document[key]]
    assert len(titles) > 6 and all(any(title in line for line in shown.splitlines()) for title in titles)
    assert max(map(len, shown.split("Sites")[0].split("Against")[1].splitlines())) <= 80


def test_map_writes_a_proof_that_map_verify_accepts_and_a_changed_one_that_it_rejects(folder: Path, capsys: Any) -> None:
    out = folder / "plan"
    command = ["map", str(folder / "jobs.csv"), "--intensity", str(folder / "hours.csv"), "--capacity", "north=1", "--capacity", "south=1"]
    assert run([*command, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "lower bound" in text and "gap" in text and "Dearest capacity" in text and "one for one" in text and "Oracle" in text
    assert {file.name for file in out.iterdir()} >= {"plan.json", "schedule.csv", "schedule.json", "certificate.json", "problem.npz"}
    assert run(["map", "verify", str(out / "certificate.json")]) == 0
    assert "Sound" in capsys.readouterr().out
    rows = (out / "schedule.csv").read_text().splitlines()
    (out / "schedule.csv").write_text("\n".join([rows[0], rows[1].replace("south", "north"), *rows[2:]]))
    assert run(["map", "verify", str(out), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["verified"] is False


@pytest.mark.parametrize("options, code, words", [
    (["--capacity", "many"], 2, "is not a number"), (["--capacity", "1", "--capacity", "south=2"], 2, "stands alone"),
    (["--objective", "cost"], 3, "No electricity price"), (["--capacity", "0"], 3, "schedule"),
    (["--intensity", "nothing.csv"], 2, "Cannot read hours"),
])
def test_map_errors_are_two_lines_and_a_code(folder: Path, capsys: Any, options: list[str], code: int, words: str) -> None:
    arguments = ["map", str(folder / "jobs.csv"), "--intensity", str(folder / "hours.csv"), *options]
    assert run(arguments) == code
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) <= 2


def test_map_online_keeps_the_deadlines(folder: Path, capsys: Any) -> None:
    arguments = ["map", str(folder / "jobs.csv"), "--intensity", str(folder / "hours.csv"), "--capacity", "1", "--online", "--quick", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["technique"] == "online" and document["verified"] == [] and document["bound"] <= document["value"]


@pytest.mark.whole
def test_the_example_is_planned() -> None:
    made = plan(Path(__file__).parent.parent / "examples/jobs.csv", capacity=3, compare=False, budget=900.0)
    assert made.certificate.gap < 1e-3 and made.to_json()["saving"] > 0.8


def test_quarters_of_an_hour_are_rounded_and_said(folder: Path, capsys: Any) -> None:
    """A job of a quarter of an hour in a window of one holds that hour; one that no run of whole hours holds is refused, with the rounding said."""
    jobs = folder / "short.csv"
    head = "name,hours,kw,release,deadline\n"
    jobs.write_text(head + "short,0.25,4,2022-05-01T01:15Z,2022-05-01T01:30Z\n")
    arguments = ["map", str(jobs), "--intensity", str(folder / "hours.csv"), "--pue", "1", "--quick", "--json"]
    assert run(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["jobs"][0]["start_utc"] == "2022-05-01T01:00Z"
    assert document["it_kwh"] == pytest.approx(1.0) and document["kg"] == pytest.approx(0.15)
    assert any("whole hours" in note for note in document["notes"])
    jobs.write_text(head + "astride,0.5,4,2022-05-01T00:45Z,2022-05-01T01:15Z\n")
    assert run(arguments[:-1]) == 3
    assert "in whole hours: release rounded up, deadline down" in capsys.readouterr().err


def test_advice_for_a_date_alone_can_be_followed(folder: Path, capsys: Any) -> None:
    jobs = folder / "dates.csv"
    jobs.write_text("name,hours,kw,release,slack\na,1,1,2022-05-01,2h\n")
    arguments = ["map", str(jobs), "--intensity", str(folder / "hours.csv"), "--quick"]
    assert run(arguments) == 2
    advised = capsys.readouterr().err.split("offset (")[1].split(")")[0]
    jobs.write_text(jobs.read_text().replace("2022-05-01,", f"{advised},"))
    assert run(arguments) == 0
