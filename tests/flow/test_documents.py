"""The documents' code as it is printed: blocks after `<!-- runs -->` run in a folder with model/ and reviews.csv; and README's table of a run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zygote
from scripts import script

import fourfold

ROOT = Path(__file__).parent.parent.parent
SHORTER = (("budget=\"10min\"", "budget=\"40s\", engines=[\"torch\"], seed=1"), ("floor=0.97", "floor=0.9"))   # the only words changed
PROCESS = ("plan", "run", "meter")                                         # commands that start or measure a process, or its memory

MARKED = [page for page in (ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs").glob("*.md")))
          if re.search("^<!-- runs -->$", page.read_text(encoding="utf-8"), re.M)]
ELSEWHERE = {"plan.md": "tests/test_plan_command.py", "footprint.md": "tests/test_footprint.py",       # they need other files
             "allocate.md": "tests/test_allocate_command.py", "differentiate.md": "tests/test_differentiate.py",
             "experts.md": "tests/test_experts.py", "serve.md": "tests/test_serve.py",
             **{name: "tests/test_docs_blocks.py" for name in (
                 "cli.md", "convert.md", "devices.md", "features.md", "graph.md", "intensity.md", "layouts.md", "map.md", "overlap.md", "primer.md",
                 "propagate.md", "ranking.md", "schedule.md", "select.md", "shard.md", "sparse-mlp.md", "spmd.md", "treeformer.md",
                 "chiplets.md", "store.md", "fleet.md", "generate.md", "formats.md", "cache.md")}}
PAGES = list(dict.fromkeys(page for page in MARKED if page.name not in ELSEWHERE))


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
    """What a fresh process prints; one that is metered gets an interpreter of its own too, for what it holds counts."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": paths}
    if "meter" in arguments:
        done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False, env=env)
    else:
        done = zygote.ran(arguments, folder, env)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.whole
def test_python_of_the_pages_runs(front: fourfold.Front, folder: Path) -> None:
    """README's example first, then the tutorial's same call: both go on from the journal of the same search, made by `front`."""
    out = front.job.options.out
    assert out is not None
    shutil.copytree(out.parent / f".{out.name}.fourfold", folder / ".cheap.fourfold")
    for page in PAGES:
        for code in blocks(page, "python"):
            for old, new in SHORTER:
                code = code.replace(old, new)
            out = ran(["-c", code], folder)
            assert ("of the quality for" in out) == ("optimize(" in code), out
            assert ("water" in out or "fire" in out) == ("predict(" in code), out
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_run(page: Path, front: fourfold.Front, folder: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    from fourfold.cli import main

    assert front.best is not None
    monkeypatch.chdir(folder)
    shutil.copytree(front.job.options.out or "", folder / "cheap", dirs_exist_ok=True)
    for line in (line for block in blocks(page, "sh") for line in block.splitlines()):
        words = shlex.split(line)
        assert words[0] == "fourfold"
        if words[1] in PROCESS:
            assert ran(["-m", "fourfold.cli.main", *words[1:]], folder).strip(), line
        else:
            assert main.run(words[1:]) == 0, f"{line}\n{capsys.readouterr()}"
            assert capsys.readouterr().out.strip(), line


def test_every_block_that_is_marked_is_run() -> None:
    for page in MARKED:
        marks = page.read_text(encoding="utf-8").splitlines().count("<!-- runs -->")
        assert marks == len(blocks(page, "python")) + len(blocks(page, "sh")), f"{page.name}: a mark stands before something else"
        if page not in PAGES:
            assert page.name in (ROOT / ELSEWHERE[page.name]).read_text(encoding="utf-8")
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    commands = {line.split()[1] for line in lines}
    assert len(lines) >= 15 and commands >= {"predict", "explain", "report", "plan", "run", "meter", "ledger", "datacenter"}


def test_a_run_fills_in_the_readme(front: fourfold.Front) -> None:
    refresh, bench = script("docs/refresh.py"), script("benchmarks/demo.py")
    report = bench.front(front.report_data)
    best = report["candidates"][report["best"]]
    stated = {key: best[key] for key in ("name", "how", "relative_energy", "test_quality", "agreement")}
    checks = [{"name": "energy", "measured": best["relative_energy"]}]
    rows = [{"seed": seed, "condition": "idle", "host": host, "wall_s": 400.0 + seed, "first_s": 100.0, "stated": stated,
             "verified": {"checks": checks}} for seed, host in enumerate(("a processor", "another"))]
    runs = {"runs": rows, "summary": bench.summary(rows), "about": {"machine": {"name": "a processor"}, "date": "2026-11-30T10:00:00"}}
    text = sys.modules["tables"].demo(runs, {"report": report})
    assert text.count("| run | energy stated |") == 1 and "idle, seed 1, another" in text
    assert "median and range over 2 runs: 2 seeds, idle, 2 hosts" in text
    picture = refresh.svg(report)
    assert picture.startswith("<svg") and picture == refresh.svg(front.report_data)    # what is kept of a report is all that the picture needs
    page = "a\n<!-- table -->\nold\n<!-- /table -->\nb"
    assert refresh.between(refresh.between(page, "table", "x"), "table", "new") == page.replace("old", "new")
    with pytest.raises(SystemExit, match="exactly once"):
        refresh.between(page, "picture", "new")
