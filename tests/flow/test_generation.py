"""The whole job on a small language model that generates: searched, raced, proved, saved, and answered from by a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import written

import fourfold
from fourfold.errors import InputError


@pytest.fixture(scope="module")
def cheap(tmp_path_factory: pytest.TempPathFactory) -> tuple[fourfold.Front, Path]:
    home = tmp_path_factory.mktemp("generation")
    model = written.trained(home / "model", steps=120, width=64, layers=6)
    data = written.prompts(home / "prompts.jsonl", 700)
    front = fourfold.optimize(model, data, floor=0.2, budget=40, out=home / "cheap", workload="generate", batch="1,4", engines=["torch"], threads=1,
                              progress=False)
    return front, home / "cheap"


@pytest.mark.slow
def test_a_cheaper_writer_is_found_proved_and_told_of(cheap: tuple[fourfold.Front, Path]) -> None:
    front, folder = cheap
    assert front.best is not None and front.best.cost < 0.9 and front.best.quality > 0.2
    report = json.loads((folder / "report.json").read_text())
    found = report["generation"]
    assert found["batches"] == [1, 4] and {row["batch"] for row in found["rows"]} == {1, 4}
    assert {"original", front.best.name} <= {row["name"] for row in found["rows"]} and len(found["examples"]) == 4 and found["bits"]
    assert all(row["prefill_cpu_s"] > 0 and row["decode_cpu_s"] > 0 and row["tokens_per_s"] > 0 for row in found["rows"])
    assert "tokens after a prompt of" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_fresh_process_answers_the_same_and_streams(cheap: tuple[fourfold.Front, Path]) -> None:
    _, folder = cheap
    model = fourfold.load(folder)
    asked = ["add two and three is", "count to four is", "copy red green is"]
    here = model.generate(asked, max_new_tokens=5)
    told: list[tuple[int, str]] = []
    assert model.generate(asked, max_new_tokens=5, heard=lambda row, text: told.append((row, text))) == here
    assert ["".join(text for at, text in told if at == row) for row in range(3)] == here
    assert model.generate(asked, temperature=1.0, seed=3) == model.generate(asked, temperature=1.0, seed=3)
    words = [sys.executable, "-m", "fourfold", "predict", str(folder), *(w for text in asked for w in ("--text", text)), "--max-new-tokens", "5"]
    plain = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(plain.stdout)["predictions"] == here
    stream = subprocess.run([*words, "--stream"], capture_output=True, text=True, check=True, timeout=300)
    assert stream.stdout.splitlines() == here
    assert list(model.predict(asked)) == [text for text in model.generate(asked)]
    with pytest.raises(InputError, match="positions for 64"):
        model.generate("count to four is", max_new_tokens=100)


@pytest.mark.slow
def test_it_is_verified_on_new_rows_and_not_raced_by_itself(cheap: tuple[fourfold.Front, Path], tmp_path: Path) -> None:
    _, folder = cheap
    data = written.prompts(tmp_path / "new.jsonl", 120, seed=9)
    found = fourfold.verify(folder, data, cost=False)
    assert found.rows == 120 and found.checks[0].name == "floor" and found.checks[0].verdict == "holds"
    from fourfold.jobs.race import rerace

    with pytest.raises(InputError, match="not raced anew"):
        rerace(folder)
