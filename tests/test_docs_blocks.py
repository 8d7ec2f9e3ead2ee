"""Every code block of README and docs is run or says why not, by a mark in the line before it: `<!-- runs -->` or `<!-- not run: the reason -->` (a
file that other blocks read: `<!-- file: NAME -->`). Pages that need no training are run here, in this process; the others in
tests/flow/test_documents.py and in the tests that it names.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from fourfold.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- (runs|not run: (?:\S+ ?){1,}|file: \S+) -->$")
HERE = ("cli.md", "convert.md", "devices.md", "features.md", "graph.md", "intensity.md", "layouts.md", "map.md", "overlap.md", "primer.md",
        "propagate.md", "ranking.md", "schedule.md", "select.md", "shard.md", "sparse-mlp.md", "spmd.md", "treeformer.md",
        "chiplets.md", "store.md", "fleet.md", "generate.md", "formats.md", "cache.md")
RUN = '[run]\nname = "a run"\nchips = 8\nchip = "P100"\nhours = 84\nwatts = 296\npue = 1.58\nintensity = "429 g/kWh"\n'
SHORTER = (("Budget(seconds=20)", "Budget(seconds=2)"),)               # the only words changed


def blocks(text: str) -> list[tuple[str, str, str, int]]:
    """(line before, language, code, line number) of every fenced block."""
    found = []
    for match in re.finditer(r"^```([\w-]*)\n(.*?)^```", text, re.M | re.S):
        before = text[: match.start()].splitlines()
        found.append((before[-1] if before else "", match[1], match[2], len(before) + 1))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(blocks(text))
    silent = [f"{page.name}:{line}" for before, _, _, line in blocks(text) if not MARK.match(before)]
    assert not silent, f"blocks without a mark: {silent}. Write <!-- runs --> or <!-- not run: why --> in the line before."
    strange = [f"{page.name}:{line}" for before, language, _, line in blocks(text) if before == "<!-- runs -->" and language not in ("sh", "python")]
    assert not strange, f"only sh and python are run: {strange}"


def test_tests_that_marks_name_exist() -> None:
    named = {name for page in PAGES for name in re.findall(r"<!-- not run:.*?((?:tests|benchmarks)/[\w/.]+\w)", page.read_text(encoding="utf-8"))}
    assert len(named) > 8 and not [name for name in named if not (ROOT / name).exists()]


def test_a_missing_mark_is_seen() -> None:
    text = "<!-- runs -->\n```sh\na\n```\n\n```\nb\n```\n<!-- not run: takes minutes -->\n```\nc\n```\n"
    assert [bool(MARK.match(before)) for before, *_ in blocks(text)] == [True, False, True]
    assert not MARK.match("<!-- not run:  -->") and not MARK.match("<!-- table -->")


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: the examples, a run of one's own, and an artefact of an earlier version as cheap/ with a search's journal beside it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(ROOT / "tests" / "data" / "artefacts-1" / "network", tmp_path / "cheap")
    (tmp_path / "run.toml").write_text(RUN)
    (tmp_path / ".cheap.fourfold").mkdir()
    (tmp_path / ".cheap.fourfold" / "journal-0000000000000001.jsonl").write_text('{"event": "started"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FOURFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FOURFOLD_LEDGER", str(tmp_path / "ledger.jsonl"))
    return tmp_path


def given(page: str) -> dict[str, Any]:
    """What the reader of a page is said to have."""
    if page == "graph.md":
        import torch

        return {"module": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)), "inputs": (torch.ones(3, 4),)}
    if page == "schedule.md":
        from fourfold.zoo.graphs import make

        return {"graph": make("cnn", 40)}
    return {}


@pytest.mark.parametrize("name", HERE)
def test_the_blocks_of_a_page_run_as_printed(name: str, reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space, ran = given(name), 0
    for before, language, code, line in blocks((ROOT / "docs" / name).read_text(encoding="utf-8")):
        if before.startswith("<!-- file: "):
            Path(before.split()[2]).write_text(code, encoding="utf-8")
        elif before == "<!-- runs -->" and language == "python":
            for old, new in SHORTER:
                code = code.replace(old, new)
            exec(compile(code, f"{name}:{line}", "exec"), space)
            ran += 1
        elif before == "<!-- runs -->":
            for words in (shlex.split(one, comments=True) for one in code.splitlines()):
                assert words[0] == "fourfold" and main.run(words[1:]) == 0, f"{name}:{line}: {words}\n{capsys.readouterr()}"
                assert capsys.readouterr().out.strip(), f"{name}:{line}: {words} says nothing"
            ran += 1
    assert ran > 0
    if name == "intensity.md":
        assert (reader / "may.csv.gz").exists() and "annual table" in str(space["hours"].source) + str(space["hours"].notes)
    if name == "schedule.md":
        assert space["found"].cost <= space["found"].before and space["found"].evidence["table"]
    if name == "graph.md":
        assert len(space["graph"]) == 1 and len(space["found"].graph) == 3
    if name == "map.md":
        assert (reader / "plan").is_dir() and (reader / "page.html").stat().st_size > 10_000
