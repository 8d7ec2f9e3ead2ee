"""The main job names no technique: it asks the registry for proposals, and asks a candidate for its fields, never for its kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourfold import registry

ROOT = Path(registry.__file__).parent
FILES = sorted([*(ROOT / "jobs").rglob("*.py"), *(ROOT / "report").rglob("*.py"), *(ROOT / "runtime").glob("*.py")])
MACHINERY = {
    "combine": "the search over shapes, which the job runs, and what it works on",
    "distil": "the training loop that every candidate is recovered by",
}                                                                       # what these files hold besides a technique


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fourfold.rewrites."):
            parts = (node.module or "").split(".")
            yield from [parts[3]] if len(parts) > 3 else [alias.name for alias in node.names]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_stage_account_or_report_names_a_technique(file: Path) -> None:
    tree = ast.parse(file.read_text())
    known = {id.split("/")[1] for id, module in registry.techniques().items() if ".rewrites." in module}
    own = {file.stem} if file.parent.name == "jobs" else set()         # `fourfold primer` is the command of one technique, by name
    assert set(imported(tree)) & known - own <= set(MACHINERY)
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Attribute) and side.attr == "kind":
                    owner = ast.unparse(side.value)
                    assert not owner.endswith("candidate") and owner not in ("c", "candidate", "first", "p"), ast.unparse(node)


def test_the_machinery_is_still_needed() -> None:
    used = {name for file in FILES for name in imported(ast.parse(file.read_text()))}
    assert set(MACHINERY) <= used, "an exception that nothing needs any more"
