"""No figure of the documents is typed: every table is what its results file makes of it, and every results file says where it comes from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import script

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
BEFORE = "measured before provenance was written"
WITHOUT: dict[str, tuple[set[str], str]] = {                            # results file → what it lacks, and why; a new measurement needs no entry
    "decoder": ({"commit"}, BEFORE),
    "demo": ({"commit"}, BEFORE),
    "demo-front": ({"commit"}, "of the same runs as demo"),
    "execute": ({"commit", "load", "seeds", "options"}, BEFORE),
    "meters": ({"commit", "options"}, BEFORE),
    "partition": ({"date", "commit", "versions", "machine", "load", "options"}, BEFORE),
    "place": ({"commit", "seeds", "options"}, BEFORE),
    "predict": ({"commit", "versions", "seeds", "options"}, BEFORE),
    "scale": ({"date", "commit", "versions", "load", "seeds", "options"}, BEFORE),
    "schedule": ({"date", "commit", "versions", "machine", "load", "seeds", "options"}, BEFORE),
    "simulate": ({"date", "commit", "versions", "load", "seeds", "options"}, BEFORE),
    "t5": ({"commit"}, BEFORE),
}


REFRESH = script("docs/refresh.py")
TABLES = sys.modules["tables"]


def test_every_table_is_what_its_results_make_of_it() -> None:
    wrong = REFRESH.differing(REFRESH.pages().items())
    assert not wrong, f"run `make tables`: {[path.relative_to(ROOT).as_posix() for path in wrong]}"


def test_every_picture_is_what_its_results_make_of_it() -> None:
    assert not REFRESH.differing(REFRESH.pictures().items()), "run `make tables`"


def test_every_pair_of_marks_has_a_generator() -> None:
    known = {(table.page, table.mark) for table in TABLES.TABLES}
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")):
        text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
        assert {(name, mark) for mark in re.findall("<!-- /([a-z0-9]+) -->", text)} == {one for one in known if one[0] == name}, name


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_results_file_says_where_it_comes_from(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    lacks, (allowed, why) = set(TABLES.lacks(document)), WITHOUT.get(path.stem, (set(), ""))
    assert lacks <= allowed, f"{path.name} does not say its {', '.join(sorted(lacks - allowed))}; write it by benchmarks/provenance.py"
    assert not allowed or why


def test_exceptions_are_of_files_that_exist() -> None:
    assert set(WITHOUT) <= {path.stem for path in RESULTS}


def test_every_benchmark_writes_its_provenance(tmp_path: Path) -> None:
    import provenance

    assert provenance.FIELDS == TABLES.FIELDS
    for path in (ROOT / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        # the one writes claims alone, the other calls its parts; a name that begins with _ is a part that a benchmark runs
        if "__main__" in text and path.name not in ("footprint.py", "layers.py") and not path.name.startswith("_"):
            assert re.search(r"\b(provenance|harness)\.publish\(", text), f"{path.name} writes its results by itself"
    with pytest.raises(ValueError, match="does not say its date, commit"):
        provenance.publish(tmp_path / "x.json", {"rows": []})
    import argparse

    about = provenance.facts(argparse.Namespace(seconds=1, folder=tmp_path), [0, 1], more={"other": "1.2"})
    written = json.loads(provenance.publish(tmp_path / "x.json", {"about": about, "rows": []}).read_text(encoding="utf-8"))
    assert TABLES.lacks(written) == [] and written["about"]["seeds"] == [0, 1] and written["about"]["versions"]["other"] == "1.2"
    assert not list(tmp_path.glob("*.part"))


def test_a_measurement_older_than_its_code_says_so() -> None:
    words = ["git", "rev-list", "--max-count=2", "HEAD", "--", "fourfold"]
    try:
        commits = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    if len(commits) < 2:
        pytest.skip("a clone without history")
    assert TABLES.old({"about": {"commit": commits[0]}}, ["fourfold"]) is False
    assert TABLES.old({"about": {"commit": commits[1]}}, ["fourfold"]) is True
    assert TABLES.old({"date": "2020-01-01"}, ["fourfold"]) is True and TABLES.old({"date": "2999-01-01"}, ["fourfold"]) is False


def test_the_picture_is_of_a_run_in_the_table() -> None:
    runs, front = (json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")) for name in ("demo", "demo-front"))
    best = front["report"]["candidates"][front["report"]["best"]]
    assert best["relative_energy"] in [row["stated"]["relative_energy"] for row in runs["runs"] if row["stated"]], \
        "run `python docs/refresh.py FOLDER/cheap/report.json` with a run of demo.json"


def test_numbers_are_said_as_they_are() -> None:
    assert TABLES.share(0.403) == "40.3 %" and TABLES.share(-0.14) == "−14.0 %" and TABLES.share(None) == "–"
    assert TABLES.spread({"median": 0.04, "least": 0.03, "most": 0.05}, "%") == "4.0 % (3.0 to 5.0 %)"
    assert TABLES.error(0.0024) == "+0.24 %" and TABLES.error(12.1) == "+1,210 %" and TABLES.error(-0.48) == "−48 %"
    assert TABLES.grid(("", "b"), [["1", "2"]]) == "| | b |\n|---|---|\n| 1 | 2 |"
