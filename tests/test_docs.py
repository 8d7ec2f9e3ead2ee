"""Documents that nobody runs go stale: their Python must compile and name what exists, commands must be real, links must lead somewhere."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import fourfold
from fourfold.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The fenced code of `page` in one of `languages` ("" = none named)."""
    for language, code in re.findall(r"^```([\w-]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        if language in languages:
            yield code


def names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that code takes from fourfold."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fourfold":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fourfold":
            yield "fourfold", node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_in_documents_compiles_and_names_what_exists(page: Path) -> None:
    design = page.name == "design.md"                                  # signatures there are sketches
    for code in blocks(page, "python", "py"):
        if design:
            continue
        tree = ast.parse(code)
        for module, name in names(tree):
            there = hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}")
            assert there, f"{page.name} takes {name} from {module}, which has none"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_in_documents_are_real(page: Path) -> None:
    for code in blocks(page, "", "sh", "bash", "shell", "console"):
        for line in re.split(r"\n|&&", code.replace("\\\n", " ")):
            line = line.strip().removeprefix("$ ")
            if re.match(r"make [a-z]", line):
                assert line.split()[1] in TARGETS, f"{page.name}: {line}"
            if re.match(r"(\.venv/bin/)?fourfold [a-z]+", line) and "|" not in line.split("#")[0].split("--")[0]:
                words = shlex.split(line, comments=True)
                assert words[1] in COMMANDS, f"{page.name}: there is no command {words[1]!r}"
                words = words[: words.index("--")] if "--" in words else words      # what follows is another command's
                command = COMMANDS[words[1]]
                command = getattr(command, "commands", {}).get(words[2], command) if len(words) > 2 else command
                known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
                used = {word.strip("[]").split("=")[0] for word in words if word.strip("[]").startswith("--")}
                assert used <= known, f"{page.name}: {line}: no option {used - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"<img[^>]*src=\"([^\"]+)\"", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_documents_name_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:fourfold|tests|docs|benchmarks|examples|claims)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or re.search(r"NAME|QUESTION|results/\w+\.json$", name), f"{page.name} names {name}"
    for name in re.findall(r"`(fourfold(?:\.[a-z_]\w*)+)\b", text):
        parent, last = name.rsplit(".", 1)
        there = last in ("toml", "yml") or hasattr(importlib.import_module(parent), last) or importlib.util.find_spec(name)
        assert there, f"{page.name} names {name}"


def test_the_readme_is_short_and_has_one_result() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert re.findall(r"<!-- (\w+) -->", text) == ["runs", "table", "picture"]
    linked = re.findall(r"\]\(docs/([\w.-]+\.md)", text)
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= set(linked), "README leads to every page of docs"


@pytest.mark.whole
def test_the_tour_runs(tmp_path: Path) -> None:
    tour = ROOT / "docs" / "tour.py"
    assert len(tour.read_text(encoding="utf-8").splitlines()) <= 300
    done = subprocess.run([sys.executable, str(tour)], cwd=tmp_path, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert "== 8" in done.stdout, done.stdout[-1500:]


def test_the_version_is_the_same_everywhere() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fourfold.__version__ and f"## {fourfold.__version__}" in (ROOT / "CHANGELOG.md").read_text()
