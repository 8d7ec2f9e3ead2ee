"""`fourfold ledger`: what a ledger says, what is wrong with it, its score, its exports."""

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.cli.main import run
from fourfold.errors import ArtefactError, Infeasible, InputError
from fourfold.ledger import hash_chain
from fourfold.ledger.book import Ledger
from fourfold.measure.meter import Meter
from fourfold.report import ledger
from fourfold.report.impact_framework import manifest, write
from fourfold.units import Quantity

PUBLISHED = {"model": 4, "machine": 15, "mechanization": 1.4, "map": 9}


def metered(path: Path, count: int = 2, site: str | None = "FR") -> list[str]:
    """Real windows, written by the real meter."""
    ids = []
    for i in range(count):
        with Meter(f"loop {i}", site=site, unit="step", ledger=path) as meter:
            sum(k * k for k in range(200_000 * (i + 1)))
        ids.append(meter.result.id)
    return ids


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run(["ledger", *arguments]) == code
    return capsys.readouterr().out


def altered(path: Path, change: Callable[[dict], None]) -> None:
    """Change the first row and forge all hashes after it, as one would who knows the format."""
    stored = [hash_chain.plain(row) for row in hash_chain.rows(path)]
    change(stored[0])
    path.write_text("".join(line + "\n" for line in hash_chain.lines(stored)))
    path.with_name(path.name + ".head").unlink(missing_ok=True)         # a forger who knows of it


# Which ledger
def test_a_ledger_is_found_by_file_folder_run_and_name(here: Path) -> None:
    ids = metered(ledger.DEFAULT)
    assert len(ledger.find().rows) == len(ledger.find(ledger.DEFAULT).rows) == len(ledger.find(here).rows) == 2
    assert [row["run"] for row in ledger.find(ids[1]).runs] == [ids[1]] == [row["run"] for row in ledger.find("loop 1").runs]
    row = hash_chain.rows(ledger.DEFAULT)[0]
    assert ledger.find(row["id"]).run == ids[0]


def test_what_is_not_there_is_said(here: Path) -> None:
    with pytest.raises(InputError, match="neither a file"):
        ledger.find("nothing")
    with pytest.raises(InputError, match="nope.jsonl does not exist") as caught:
        ledger.find("nope.jsonl")
    assert "fourfold meter" in caught.value.mend
    (here / "runs.jsonl").write_text("")
    with pytest.raises(InputError, match="Did you mean .*runs.jsonl") as caught:
        ledger.find(here / "rums.jsonl")
    (here / "empty").mkdir()
    with pytest.raises(InputError, match="no ledger in"):
        ledger.find(here / "empty")
    ids = metered(ledger.DEFAULT, 2)
    with pytest.raises(InputError, match="no run 'nothing'") as caught:
        ledger.find("nothing")
    assert ids[1] in str(caught.value)
    with pytest.raises(InputError, match="2 runs are meant"):
        ledger.find(os.path.commonprefix(ids))


# What it says
def test_show_tells_figures_grades_shares_and_reasons(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = metered(ledger.DEFAULT)
    text = said(capsys, "show")
    assert "2 runs together" in text and "cpu dynamic" in text and "Uncertainty: " in text and ("modelled" in text or "measured" in text)
    one = json.loads(said(capsys, "show", ids[0], "--json"))
    assert len(one["runs"]) == 1 and sum(one["runs"][0]["shares"].values()) == pytest.approx(1) and one["faults"] == []
    assert sum(part["share"] for part in one["components"].values()) == pytest.approx(1)
    assert sum(part["share"] for part in one["uncertainty"]) == pytest.approx(1)
    assert one["runs"][0]["energy"]["gpu"] is not None or one["runs"][0]["why"]["gpu"]


def test_a_window_inside_another_is_not_counted_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("outer", ledger=True) as outer, Meter("inner", ledger=True):
        sum(k * k for k in range(200_000))
    book = ledger.find()
    assert len(book.rows) == 2 and [row["name"] for row in book.runs] == ["outer"]
    figure = book.figure("total_j")
    assert figure is not None and outer.result.total is not None and figure.value == pytest.approx(outer.result.total.value)
    assert [row["name"] for row in ledger.find("inner").runs] == ["inner"] and len(ledger.find("outer").rows) == 2


def test_an_account_is_shown_and_exported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Ledger(Quantity(756, "MWh", "published"), "one training")
    for lever, factor in PUBLISHED.items():
        book.book(lever, "published", factor=factor)
    book.save(here / "out" / "ledger.jsonl")
    text = said(capsys, "show", "out")
    assert "4 (model) × 15 (machine) × 1.4 (mechanization) × 9 (map) = 756" in text
    assert json.loads(said(capsys, "show", "out", "--json"))["account"]["total"]["value"] == 756
    assert "5 rows, all as they were written" in said(capsys, "verify", "out", "--recompute")
    said(capsys, "export", "out", "--csv", "steps.csv")
    with open("steps.csv", newline="") as file:
        assert [float(row["factor"]) for row in csv.DictReader(file)] == list(PUBLISHED.values())


# What is wrong with it
def test_verify_names_the_altered_row_and_exits_with_four(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metered(ledger.DEFAULT, 3)
    assert "3 rows, all as they were written" in said(capsys, "verify", "--recompute")
    lines = ledger.DEFAULT.read_text().splitlines(keepends=True)
    ledger.DEFAULT.write_text(lines[0] + lines[1].replace('"name":"loop 1"', '"name":"loop 7"') + lines[2])
    text = said(capsys, "verify", code=4)
    assert "Row 1 (line 2" in text and "altered" in text and "1 fault." in text
    found = json.loads(said(capsys, "verify", "--json", code=4))
    assert not found["sound"] and len(found["faults"]) == 1
    assert "NOT SOUND" in said(capsys, "show")
    ledger.DEFAULT.write_text(lines[0] + lines[2])
    assert "Row 1 is missing" in said(capsys, "verify", code=4)


def test_recompute_finds_a_figure_that_its_readings_do_not_give(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metered(ledger.DEFAULT)
    altered(ledger.DEFAULT, lambda row: row["total_j"].update(value=row["total_j"]["value"] * 0.9, low=0.0))
    said(capsys, "verify")                                             # the forged chain holds
    text = said(capsys, "verify", "--recompute", code=4)
    assert "Row 0 (loop 0): total_j" in text and "its readings give" in text
    altered(ledger.DEFAULT, lambda row: row.update(readings=[{"kind": "window"}]))
    assert "cannot be worked out again" in said(capsys, "verify", "--recompute", code=4)


@pytest.mark.parametrize("change, word", [
    (lambda row: row["total_j"].update(value=-1.0, low=-2.0), "negative"), (lambda row: row["total_j"].update(unit="s"), "which is no energy"),
    (lambda row: row["total_j"].update(unit="joule"), "no quantity"), (lambda row: row.update(wall_s=-1.0), "wall time is negative"),
    (lambda row: row["energy"]["cpu_dynamic"].update(value=-3.0, low=-4.0, high=0.0), "energy of cpu_dynamic is negative"),
])
def test_figures_that_cannot_be_are_faults(here: Path, change, word: str) -> None:
    metered(ledger.DEFAULT, 1)
    altered(ledger.DEFAULT, change)
    faults, _ = ledger.audit(ledger.find())
    assert any(word in fault and "Row 0" in fault for fault in faults)


def test_a_seal_finds_what_is_cut_off(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metered(ledger.DEFAULT, 3)
    head = json.loads(said(capsys, "seal", "--json"))["head"]
    lines = ledger.DEFAULT.read_text().splitlines(keepends=True)
    ledger.DEFAULT.write_text("".join(lines[:2]))
    assert "Row 2 is missing at the end" in said(capsys, "verify", code=4)
    ledger.DEFAULT.with_name("ledger.jsonl.seal").unlink()
    assert "ledger.jsonl.head counts 3 rows" in said(capsys, "verify", code=4)
    ledger.DEFAULT.with_name("ledger.jsonl.head").unlink()
    said(capsys, "verify")
    assert "missing, or were exchanged" in said(capsys, "verify", "--head", head, code=4)


# Its score
def test_the_score_of_runs_adds_up(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metered(ledger.DEFAULT)
    book = ledger.find()
    pieces = ledger.owing(book, embodied="1300kg", life=4, share=0.5)
    score = ledger.score(pieces, 1000, "request")
    co2e = book.figure("co2e")
    assert co2e is not None and score.operational.value == pytest.approx(co2e.value)
    seconds = sum(row["wall_s"] for row in book.runs)
    assert score.embodied.value == pytest.approx(1.3e6 * seconds / (4 * 31536000) * 0.5) and score.score.signal == "average"
    assert score.score.value == pytest.approx((score.operational.value + score.embodied.value) / 1000)
    found = json.loads(said(capsys, "export", "--sci", "--per", "1000 requests", "--embodied", "1300kg", "--life", "4", "--share", "0.5", "--json"))
    assert found["sci"]["score"]["value"] == pytest.approx(score.score.value) and found["sci"]["unit"] == "requests"
    assert "SCI = " in said(capsys, "show", "--sci", "--per", "1000requests")


@pytest.mark.parametrize("text, expected", [
    ("1000requests", (1000, "requests")), ("1,000 requests", (1000, "requests")), ("2.5 users", (2.5, "users")), ("", (2, "step")),
    ("run", (2, "run")), ("epoch", (1, "epoch")), ("1e6 tokens", (1e6, "tokens")), ("5", (5, "step")),
])
def test_functional_units(here: Path, text: str, expected: tuple[float, str]) -> None:
    metered(ledger.DEFAULT)
    assert ledger.functional(ledger.find(), text) == expected


def test_what_cannot_be_scored_says_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metered(ledger.DEFAULT, 1, site=None)
    with pytest.raises(Infeasible, match="where loop 0 ran"):
        ledger.owing(ledger.find())
    assert run(["ledger", "export", "--sci"]) == 3
    assert run(["ledger", "export", "--sci", "--site", "FR", "--per", "0 requests"]) == 2
    assert run(["ledger", "export", "--sci", "--site", "FR"]) == 0
    for wrong in (["--share", "1.5"], ["--share", "-1"], ["--life", "0"], ["--embodied", "abacus"], ["--per", "!"], ["--site", "atlantis"]):
        assert run(["ledger", "export", "--sci", "--site", "FR", *wrong]) == 2, wrong
    assert run(["ledger", "export"]) == 2
    altered(ledger.DEFAULT, lambda row: row.update(total_j=None))
    with pytest.raises(Infeasible, match="unknown"):
        ledger.owing(ledger.find(), site="FR")
    Ledger(Quantity(1, "J", "counted")).save(here / "account.jsonl")
    with pytest.raises(Infeasible, match="no metered run"):
        ledger.owing(ledger.find(here / "account.jsonl"))


def test_a_market_based_place_is_refused(here: Path) -> None:
    metered(ledger.DEFAULT, 1)
    altered(ledger.DEFAULT, lambda row: row["site"]["intensity"].update(signal="market"))
    with pytest.raises(InputError, match="market"):
        ledger.score(ledger.owing(ledger.find()), 1, "run")


# Exports
def test_csv_has_intervals_and_leaves_unknown_empty(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metered(ledger.DEFAULT, 2, site=None)
    said(capsys, "export", "--csv", "runs.csv")
    with open("runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    stored = hash_chain.rows(ledger.DEFAULT)
    assert [float(row["energy (J)"]) for row in rows] == [row["total_j"]["value"] for row in stored] and rows[0]["hash"] == stored[0]["hash"]
    assert rows[0]["co2e (gCO2e)"] == "" and float(rows[0]["energy (J) low"]) <= float(rows[0]["energy (J)"]) <= float(rows[0]["energy (J) high"])
    assert run(["ledger", "export", "--csv", "no/such/folder.csv"]) == 2
    with pytest.raises(InputError, match="no run and no account"):
        hash_chain.append("other.jsonl", {"kind": "note"})
        ledger.export(ledger.find("other.jsonl"), here / "x.csv")


def made(folder: Path) -> tuple[Path, float]:
    metered(ledger.DEFAULT, 3)
    pieces = ledger.owing(ledger.find())
    score = ledger.score(pieces, 1234.5, "requests per user")
    write(manifest(pieces, score), folder / "sci.yml")
    return folder / "sci.yml", score.score.value


def test_the_manifest_is_yaml(here: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    path, value = made(here)
    data = yaml.safe_load(path.read_text())
    whole = data["tree"]["children"]["all"]["inputs"][0]
    assert (whole["carbon-operational"] + whole["carbon-embodied"]) / whole["requests-per-user"] == pytest.approx(value, rel=1e-12)
    parts = [child["inputs"][0] for name, child in data["tree"]["children"].items() if name != "all"]
    config = data["initialize"]["plugins"]["embodied-0"]["config"]
    hand = sum(row["energy-machines"] * row["pue"] * row["grid-intensity"]
               + config["baseline-emissions"] * row["usage-ratio"] * row["time"] / config["lifespan"] for row in parts)
    assert hand / sum(row["requests-per-user"] for row in parts) == pytest.approx(value, rel=1e-9)


def test_the_impact_framework_reproduces_the_score(here: Path) -> None:
    program = os.environ.get("FOURFOLD_IF_RUN") or shutil.which("if-run")
    if not program:
        pytest.skip("the Impact Framework is not installed: npm install @grnsft/if, then FOURFOLD_IF_RUN=…/if-run")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    path, value = made(here)
    subprocess.run([program, "-m", str(path), "-o", str(here / "out")], check=True, capture_output=True)
    children = yaml.safe_load((here / "out.yaml").read_text())["tree"]["children"]
    assert children["all"]["outputs"][0]["sci"] == pytest.approx(value, rel=1e-9)
    carbon = sum(child["outputs"][0]["carbon"] for name, child in children.items() if name != "all")
    assert carbon == pytest.approx(children["all"]["outputs"][0]["carbon"], rel=1e-9)


# Imports
def test_an_emissions_file_is_audited_and_imported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = str(Path(__file__).parent / "data" / "emissions.csv")
    text = said(capsys, "import", real, "--to", str(ledger.DEFAULT))
    assert "RAM is a constant, 20 W" in text and "4 rows appended" in text
    found = json.loads(said(capsys, "import", real, "--json"))
    assert found["faults"] == 0 and len(found["rows"]) == 4
    assert "4 rows, all as they were written" in said(capsys, "verify", "--recompute") and "4 runs together" in said(capsys, "show")
    said(capsys, "export", "--csv", "runs.csv", "--impact", "runs.yml", "--per", "10requests")
    ledger.DEFAULT.write_text(ledger.DEFAULT.read_text().replace("busy", "idle", 1))
    with pytest.raises(ArtefactError, match="not sound"):
        ledger.append_rows(ledger.DEFAULT, [])
