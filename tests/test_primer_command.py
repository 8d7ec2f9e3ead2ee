"""`fourfold primer`: two models on the bytes of a text, told apart by their blocks alone."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest

from fourfold.cli import main
from fourfold.jobs.primer import PairedRun, primer

SMALL = ["--steps", "4", "--width", "16", "--layers", "1", "--heads", "2", "--length", "12", "--batch", "2"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_bytes((Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()[:20_000])
    return file


def test_both_are_trained_and_told_of(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["primer", str(text), *SMALL, "--seeds", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "20,000 bytes" in said[0] and said[1].startswith("Seed 0: plain ") and "Primer" in said[2]
    assert main.run(["primer", str(text), *SMALL, "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["steps"] == [1, 2, 3, 4] and len(run["primer"]) == 4 and all(5 < loss < 6 for loss in (*run["plain"], *run["primer"]))
    assert sorted(run["plain_seconds"]) == run["plain_seconds"] and run["plain"] != run["primer"]


def test_a_seed_says_the_same_losses_again(text: Path) -> None:
    options = {"steps": 3, "width": 16, "layers": 1, "heads": 2, "length": 12, "batch": 2}
    first, second = (primer(text, seed=5, **options).runs[0] for _ in range(2))
    assert (first.plain, first.primer) == (second.plain, second.primer) != primer(text, seed=6, **options).runs[0].plain


def test_when_a_loss_was_reached_is_interpolated() -> None:
    run = PairedRun(0, (10, 20, 30), (3.0, 2.5, 2.0), (2.8, 2.2, 1.8), (1.0, 2.0, 3.0), (1.1, 2.2, 3.3))
    assert run.reached == pytest.approx((25, 2.75)) and run.ratios == pytest.approx((30 / 25, 3 / 2.75))
    assert PairedRun(0, (10,), (1.0,), (2.0,), (1.0,), (1.0,)).ratios is None


def test_what_cannot_be_done_is_said_in_two_lines(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text.with_name("short.txt").write_text("too short")
    for arguments in ([str(text.with_name("none.txt"))], [str(text.with_name("short.txt"))], [str(text), "--heads", "5"], [str(text), "--rate", "0"]):
        assert main.run(["primer", *arguments]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 2
