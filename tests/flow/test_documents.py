"""README's code as it is printed: blocks after `<!-- runs -->` run in a folder with model/ and reviews.csv; and the script that fills in figures."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fourfold

ROOT = Path(__file__).parent.parent.parent
SHORTER = (("budget=\"10min\"", "budget=\"20s\", engines=[\"torch\"], threads=1"), ("floor=0.97", "floor=0.8"))  # the only words changed


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of `language` that are marked to be run."""
    return re.findall(rf"^<!-- runs -->\n```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def folder(model: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("reader")
    shutil.copytree(model, home / "model")
    shutil.copy(reviews, home / "reviews.csv")
    return home


def ran(arguments: list[str], folder: Path) -> str:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_python_of_the_readme_runs(folder: Path) -> None:
    first, second = blocks(ROOT / "README.md", "python")
    for old, new in SHORTER:
        assert old in first
        first = first.replace(old, new)
    assert "of the quality for" in ran(["-c", first], folder) and (folder / "report.html").stat().st_size > 10_000
    answers = ran(["-c", second], folder)
    assert "water" in answers or "fire" in answers


def test_commands_of_the_readme_run(front: fourfold.Front, folder: Path) -> None:
    assert front.best is not None
    shutil.copytree(front.job.options.out or "", folder / "cheap", dirs_exist_ok=True)
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "fourfold"
        assert ran(["-m", "fourfold.cli.main", *words[1:]], folder).strip(), line


def script(path: str) -> Any:
    """A script of the project as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_fills_in_the_readme(front: fourfold.Front, tmp_path: Path) -> None:
    module, bench = script("docs/refresh.py"), script("benchmarks/demo.py")
    report = front.report_data
    best = report["candidates"][report["best"]]
    stated = {key: best[key] for key in ("name", "how", "relative_energy", "test_quality", "agreement")}
    checks = [{"name": "energy", "measured": best["relative_energy"]}]
    rows = [{"seed": seed, "condition": "idle", "wall_s": 400.0 + seed, "first_s": 100.0, "stated": stated, "verified": {"checks": checks}}
            for seed in range(2)]
    runs = {"runs": rows, "summary": bench.summary(rows), "about": {"machine": {"name": "a processor"}, "date": "2026-11-30T10:00:00", "load": [0.1]}}
    readme, picture = tmp_path / "README.md", tmp_path / "docs" / "front.svg"
    shutil.copy(ROOT / "README.md", readme)
    picture.parent.mkdir()
    for _ in range(2):                                                 # a second run replaces the first one's figures
        module.refresh(runs, report, readme, picture)
    text = readme.read_text(encoding="utf-8")
    assert text.count("| run | energy stated |") == 1 and "median and range over 2 runs" in text and "docs/front.svg" in text \
        and "Not measured yet" not in text
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    assert text.split("<!-- /picture -->")[1] == (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- /picture -->")[1]
