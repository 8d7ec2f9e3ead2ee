"""Killed at any moment, a rerun resumes and reaches the same result; Ctrl-C finishes with the best so far.

Measured times differ from run to run, so the killed run is given the measurements of the whole one (they are journal lines like any other); all else,
training included, it must find again by itself, to the last bit.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fourfold

MEASURED = ("race:", "cost-table", "plan", "energy", "ladder:", "budget:", "rows")
SCRIPT = """
import sys, fourfold
front = fourfold.optimize(sys.argv[1], sys.argv[2], floor=0.9, budget="40s", out=sys.argv[3], engines=["torch"], seed=1)
print("DONE", front.best and front.best.name)
"""


def lines(folder: Path) -> list[dict[str, object]]:
    found = []
    for file in folder.glob("journal-*.jsonl"):
        found += [json.loads(line) for line in file.read_text().splitlines()]
    return found


def start(model: Path, reviews: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(model), str(reviews), str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def seeded(front: fourfold.Front, out: Path) -> Path:
    """A journal beside `out` that holds only the measurements of the finished run."""
    whole = front.job.options.out
    assert whole is not None
    source = next((whole.parent / f".{whole.name}.fourfold").glob("journal-*.jsonl"))
    journal = out.parent / f".{out.name}.fourfold"
    journal.mkdir(parents=True)
    kept = [line for line in source.read_text().splitlines() if str(json.loads(line).get("key", "")).startswith(MEASURED)]
    (journal / source.name).write_text("".join(f"{line}\n" for line in kept))
    return journal


@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.whole), pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_reaches_the_same_result(
    front: fourfold.Front, model: Path, reviews: Path, tmp_path: Path, times: int
) -> None:
    out = tmp_path / "cheap"
    journal = seeded(front, out)
    rng = random.Random(5)
    kills, grown = 0, [len(lines(journal))]
    for _ in range(times):
        process = start(model, reviews, out)
        deadline = time.monotonic() + 600
        # lines that the journal must have gained before the kill: the moment varies, progress is certain
        wanted = grown[-1] + rng.randint(*((2, 4) if times < 9 else (0, 1)))
        while process.poll() is None and len(lines_or_fewer(journal)) < wanted and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.02, 0.2))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        grown.append(len(lines_or_fewer(journal)))
    process = start(model, reviews, out)
    printed, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert kills >= 1
    assert front.best is not None and f"DONE {front.best.name}" in printed
    whole = front.job.options.out
    assert whole is not None
    first = {str(x["key"]): x["sha256"] for x in lines(whole.parent / f".{whole.name}.fourfold") if "sha256" in x}
    again = {str(x["key"]): x["sha256"] for x in lines(journal) if "sha256" in x}
    assert {k: v for k, v in again.items() if k.startswith("train:")} == {k: v for k, v in first.items() if k.startswith("train:")}
    a, b = (json.loads((p / "report.json").read_text()) for p in (whole, out))
    assert a["candidates"][a["best"]]["test_quality"] == b["candidates"][b["best"]]["test_quality"]
    assert a["factors"] == b["factors"]


def lines_or_fewer(folder: Path) -> list[dict[str, object]]:
    """`lines`, while another process may be in the middle of writing one."""
    try:
        return lines(folder)
    except ValueError:
        return []


@pytest.mark.whole
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
@pytest.mark.parametrize("moment", [                                        # `make slow` stops it at the others too
    pytest.param("train:", id="search"), pytest.param("crew", id="contest", marks=pytest.mark.slow),
    pytest.param("point:", id="race", marks=pytest.mark.slow)])
def test_ctrl_c_returns_the_best_so_far(model: Path, reviews: Path, front: fourfold.Front, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "cheap"
    journal = seeded(front, out)
    process = start(model, reviews, out)
    deadline = time.monotonic() + 600

    def reached() -> bool:
        return any(str(x.get("key", "")).startswith(moment) for x in lines_or_fewer(journal))

    while process.poll() is None and time.monotonic() < deadline and not reached():
        time.sleep(0.05)
    if process.poll() is not None and not reached():                    # the budget of 40 s is of wall time
        pytest.skip(f"this machine is too busy: the run was over before it came to {moment!r}")
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, errors
    assert "DONE" in printed
    report = json.loads((out / "report.json").read_text())
    assert sum("Interrupted" in w for w in report["warnings"]) == 1 and report["best"] is not None
