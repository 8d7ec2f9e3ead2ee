"""Who may import whom: layers.toml, enforced on every import, inside functions too (only those for type checkers are left out)."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = tomllib.loads((ROOT / "layers.toml").read_text())
LEVEL = {room: int(level) for level, rooms in LAYERS.items() if level.isdigit() for room in rooms}
FILES = sorted((ROOT / "fourfold").rglob("*.py"))
LAZY = {"fourfold/__init__.py"}                                         # the public names, by way of __getattr__


def imports(node: ast.AST, module: list[str]) -> Iterator[str]:
    """Dotted names of what is imported below `node`, relative ones resolved against `module`'s package."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = ".".join([*(module[: -node.level] if node.level else []), *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, module)


def breaches(module: list[str], target: list[str]) -> Iterator[str]:
    """Why `module` (parts of its dotted name) may not import `target`."""
    mine, theirs = module[1], target[1]
    if theirs not in LEVEL and (ROOT / "fourfold" / theirs).exists() | (ROOT / "fourfold" / f"{theirs}.py").exists():
        yield f"{theirs} has no number in layers.toml"
    elif theirs in LEVEL and mine != theirs and LEVEL[theirs] >= LEVEL[mine]:
        yield f"{'.'.join(module)} ({LEVEL[mine]}) imports {'.'.join(target)} ({LEVEL[theirs]})"
    folder = "/".join(module[1:-1])
    if folder in LAYERS["siblings"]["strangers"] and module[-1] not in LAYERS["siblings"]["may"] and "/".join(target[1:3]) == folder:
        sibling = target[3] if len(target) > 3 else ""
        shared = sibling.startswith("_") and sibling not in LAYERS["siblings"]["may"]
        if sibling and not shared and sibling != module[-1] and (ROOT / "fourfold" / folder / f"{sibling}.py").exists():
            yield f"{module[-1]} imports its sibling {sibling}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    if name in LAZY:
        return
    module = list(file.relative_to(ROOT).with_suffix("").parts)
    assert module[1] in LEVEL, f"{module[1]} has no number in layers.toml"
    targets = [target.split(".") for target in imports(ast.parse(file.read_text()), module)]
    found = [why for target in targets if target[0] == "fourfold" and len(target) > 1 for why in breaches(module, target)]
    assert not found, "; ".join(found)


def test_every_room_that_has_a_number_exists() -> None:
    missing = [room for room in LEVEL if not any((ROOT / "fourfold" / name).exists() for name in (room, f"{room}.py"))]
    assert not missing, f"layers.toml names rooms that do not exist: {missing}"


def test_no_file_names_that_say_nothing() -> None:
    words = ("util", "helper", "common", "misc", "manager")
    found = [str(file.relative_to(ROOT)) for file in FILES if any(word in file.stem for word in words)]
    assert not found


@pytest.mark.parametrize("module, target, breach", [
    ("fourfold.units", "fourfold.ledger.book", True), ("fourfold.ledger.book", "fourfold.units", False),
    ("fourfold.measure.race", "fourfold.measure.quality", False),
    ("fourfold.rewrites.compress.distil", "fourfold.rewrites.compress.static", True), ("fourfold.cost.unit_costs", "fourfold.measure.race", True),
    ("fourfold.rewrites.compress.combine", "fourfold.rewrites.compress.distil", False),
    ("fourfold.rewrites.compress.distil", "fourfold.runtime", True),
    ("fourfold.rewrites.compress._bench", "fourfold.rewrites.compress.distil", False),
    ("fourfold.rewrites.compress.distil", "fourfold.rewrites.compress._bench", True),
])
def test_the_rule_itself(module: str, target: str, breach: bool) -> None:
    assert bool(list(breaches(module.split("."), target.split(".")))) == breach
