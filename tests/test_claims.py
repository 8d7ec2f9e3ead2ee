"""Published beside ours: every claim readable, nothing claimed that was not run, a miss said so."""

import csv
import json
import tomllib
from pathlib import Path

import pytest

from fourfold.cost.footprint import footprint
from fourfold.cost.whatif import whatif
from fourfold.errors import ArtefactError
from fourfold.report.claims import KINDS, claims, counted, judge, tables

FOLDER = Path(__file__).parent.parent / "claims"
LAYOUTS = {file.stem for file in FOLDER.glob("*.toml") if {"[layout]", "[overlap]"} & set(file.read_text(encoding="utf-8").split())}
RUNS = sorted(file.stem for file in FOLDER.glob("*.toml") if "[run]" in file.read_text(encoding="utf-8"))
SHARED = Path(__file__).parents[2] / "shared" / "data" / "energy" / "reference_rows.csv"


def span(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def test_every_claim_names_its_source_and_command() -> None:
    found = claims()
    assert {"ntt-bert-97", "ntt-bert-94", "ntt-t5-93", "ntt-t5-92", "ntt-quantisation"} <= {claim.name for claim in found}
    for claim in found:
        assert claim.who and claim.what and claim.where and claim.command and claim.published
        assert (claim.measured is None) == (claim.verdict == "not run yet") == (claim.met is None)
        assert json.dumps(claim.to_json()) and set(claim.row()) == {"claim", "published", "ours", "verdict", "work", "command"}
        assert claim.kind in KINDS and claim.same_work == (claim.kind == "reproduction") == claim.to_json()["same_work"]
        if not claim.same_work:
            assert claim.kind in claim.row()["work"] and claim.ours
        assert (claim.kind == "arithmetic") == (claim.name in {*RUNS, *LAYOUTS}), "what is computed from published inputs reproduces nothing"


def test_kinds_are_counted_apart(tmp_path) -> None:
    claim = 'who="a"\nwhat="b"\nwhere="c"\nours="d"\nkind="KIND"\ncommand="e"\n[published]\nenergy_mwh=100\n'
    (tmp_path / "results").mkdir()
    for name, kind in (("x", "arithmetic"), ("y", "arithmetic"), ("z", "reproduction")):
        (tmp_path / f"{name}.toml").write_text(claim.replace("KIND", kind))
    for name, value in (("x", 100.0), ("z", 120.0)):
        (tmp_path / f"results/{name}.json").write_text(json.dumps({"energy_mwh": span(value)}))
    told = counted(claims(tmp_path))
    assert told == ("3 published figures: 1 reproductions (0 met, 1 missed, 0 not run), 0 stand-ins, "
                    "2 arithmetic on published inputs (1 met, 0 missed, 1 not run).")
    assert [heading for heading, _ in tables(claims(tmp_path))] == ["e   (the same work: d)", "e   (arithmetic on the published inputs)"]
    (tmp_path / "x.toml").write_text(claim.replace("KIND", "guess"))
    with pytest.raises(ArtefactError, match="guess"):
        claims(tmp_path)


@pytest.mark.parametrize("quality, energy, met, words", [
    (span(0.99), span(0.20), True, "met"),
    (span(0.975), span(0.20), True, "met; quality within the interval"),
    (span(0.975), span(0.245), True, "met; quality and energy within the interval"),
    (span(0.96), span(0.20), False, "missed: quality 96 % instead of 97 %"),
    (span(0.99), span(0.40), False, "missed: energy 40 % instead of 25 %"),
])
def test_verdicts(quality, energy, met, words) -> None:
    published = {"relative_quality": 0.97, "relative_energy": 0.25}
    verdict = judge(published, {"relative_quality": {**quality, "low": quality["low"] - (0.005 if met else 0)}, "relative_energy": energy})
    assert verdict == (met, words)


def test_results_are_read_from_what_the_benchmark_wrote(tmp_path) -> None:
    claim = 'who="a"\nwhat="b"\nwhere="c"\nours="d"\nsame_work=false\ncommand="e"\n[published]\nrelative_energy=0.5\n'
    (tmp_path / "x.toml").write_text(claim)
    assert claims(tmp_path)[0].verdict == "not run yet"
    (tmp_path / "results").mkdir()
    (tmp_path / "results/x.json").write_text(json.dumps({"relative_energy": span(0.3), "machine": "any"}))
    assert claims(tmp_path)[0].met is True and claims(tmp_path)[0].row()["ours"] == "energy 30 %"
    (tmp_path / "results/x.json").write_text("{}")
    assert claims(tmp_path)[0].verdict == "not run yet"
    (tmp_path / "results/x.json").write_text('{"relative_energy": 3}')
    with pytest.raises(ArtefactError, match="x cannot be read"):
        claims(tmp_path)


def test_absolute_figures_are_met_within_a_tolerance_either_way() -> None:
    assert judge({"energy_mwh": 100}, {"energy_mwh": span(101.5)}) == (True, "met within 1.5 %")
    for value in (97.0, 103.0):
        met, verdict = judge({"energy_mwh": 100, "carbon_gross_t": 50}, {"energy_mwh": span(value), "carbon_gross_t": span(50)})
        assert met is False and verdict == f"missed: energy {value:g} MWh instead of 100, 3.0 % apart".replace("3.0", "3")
    assert judge({"factor_net": 57}, {"factor_net": span(56)}, tolerance=0.01)[0] is False


@pytest.mark.parametrize("name", RUNS)
def test_every_published_run_is_recomputed_within_two_per_cent(name: str) -> None:
    """The claim's own figures, the result on disk, and a fresh computation agree; nobody typed the result."""
    facts = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    if "after" in facts or "changes" in facts:
        found = {f"factor_{account}": one.total.value
                 for account, one in whatif(facts["run"], facts.get("after"), **facts.get("changes", {})).splits.items()}
    else:
        one = footprint(**facts["run"])
        found = {"energy_mwh": one.energy.to("MWh").value, "carbon_gross_t": one.gross.to("tCO2e").value if one.gross else None,
                 "carbon_net_t": one.net.to("tCO2e").value if one.net else None}
    claim = next(claim for claim in claims() if claim.name == name)
    assert claim.published and claim.met is True, claim.verdict
    for key, value in claim.published.items():
        assert claim.measured and claim.measured[key]["value"] == pytest.approx(found[key], rel=1e-12)
        assert found[key] == pytest.approx(value, rel=0.02)
    assert bool(claim.remembered) == ("as remembered" in claim.verdict) and (facts["run"].get("grade") == "published") <= (not claim.remembered)


@pytest.mark.skipif(not SHARED.exists(), reason="the project's data folder is not here")
def test_every_reference_row_has_its_claim_and_its_evidence_is_kept() -> None:
    by_name = {claim.name: claim for claim in claims()}
    for row in csv.DictReader(SHARED.open()):
        claim = by_name[f"footprint-{row['id'].replace('_', '-')}"]
        assert ("remembered" in row["evidence"]) == bool(claim.remembered), row["id"]
        for key, column in (("energy_mwh", "reported_mwh"), ("carbon_gross_t", "reported_t_gross"), ("carbon_net_t", "reported_t_net")):
            assert key not in claim.published or claim.published[key] == float(row[column])
