"""Published beside ours: every claim readable, nothing claimed that was not run, a miss said so."""

import json

import pytest

from fourfold.errors import ArtefactError
from fourfold.report.claims import claims, judge


def span(value: float, half: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def test_every_claim_names_its_source_and_command() -> None:
    found = claims()
    assert {"ntt-bert-97", "ntt-bert-94", "ntt-t5-93", "ntt-t5-92", "ntt-quantisation"} <= {claim.name for claim in found}
    for claim in found:
        assert claim.who and claim.what and claim.where and claim.command and claim.published
        assert (claim.measured is None) == (claim.verdict == "not run yet") == (claim.met is None)
        assert json.dumps(claim.to_json()) and set(claim.row()) == {"claim", "published", "ours", "verdict", "work", "command"}
        if not claim.same_work:
            assert "stand-in" in claim.row()["work"] and claim.ours


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
