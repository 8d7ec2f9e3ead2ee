"""Who may import whom: layers.toml, enforced on every import, inside functions too (only those for type checkers are left out); no circles of
files, no file that is too long to read in one go, and no function that is without saying why."""

import ast
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = tomllib.loads((ROOT / "layers.toml").read_text())
LEVEL = {room: int(level) for level, rooms in LAYERS.items() if level.isdigit() for room in rooms}
FILES = sorted((ROOT / "fourfold").rglob("*.py"))
LAZY = {"fourfold/__init__.py"}                                         # the public names, by way of __getattr__

MOST = 600                                                              # lines of a file
FUNCTION = 80                                                           # lines of a function, from its def to its end
LONG: set[str] = set()                                                  # longer for now
CIRCULAR: dict[str, str] = {}                                           # file → one it may import for now, though that imports it


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


def file_of(target: str) -> str | None:
    """The file of the package that an import of the dotted `target` (a module, or a name in one) reads."""
    for parts in (target.split("."), target.split(".")[:-1]):
        for path in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")) if parts else ():
            if (ROOT / path).is_file():
                return path.as_posix()
    return None


def imported() -> dict[str, set[str]]:
    """File → files of the package that it imports, now or when it is called."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        path = file.relative_to(ROOT)
        targets = (file_of(target) for target in imports(ast.parse(file.read_text()), list(path.with_suffix("").parts)))
        found[path.as_posix()] = {target for target in targets if target and target != path.as_posix()}
    return found


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Files that import each other in a circle, the first one named again at the end; none where there is no circle."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_no_circles_of_files() -> None:
    every = imported()
    edges = {file: targets - {CIRCULAR.get(file, "")} for file, targets in every.items()}
    found = circle(edges)
    assert not found, f"imports in a circle, call-time imports counted: {' → '.join(found)}. What both need belongs into a file below them."
    stale = [file for file in CIRCULAR if not circle({**edges, file: every.get(file, set())})]
    assert not stale, f"no longer circular, strike them from the list: {stale}"


def test_circles_are_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])
    assert file_of("fourfold.errors.InputError") == file_of("fourfold.errors") == "fourfold/errors.py"
    assert file_of("fourfold.units.Quantity") == "fourfold/units/__init__.py" and file_of("numpy.array") is None


def test_no_file_is_too_long() -> None:
    lines = {file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines()) for file in FILES}
    found = {file: count for file, count in lines.items() if count > MOST and file not in LONG}
    assert not found, f"more than {MOST} lines: {found}. Split them by what they do."
    assert not (short := [file for file in LONG if lines.get(file, 0) <= MOST]), f"short enough by now, strike them from the list: {short}"


def functions(source: str) -> Iterator[tuple[str, int, str]]:
    """(name, lines from def to end, docstring) of every function, inner ones and methods too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1, ast.get_docstring(node) or ""


def excused(docstring: str) -> bool:
    """Whether a line of the docstring says why the function is long: "Long: " and the reason."""
    return any(line.startswith("Long: ") and len(line.split()) > 3 for line in docstring.splitlines())


def test_no_function_is_too_long_without_a_reason() -> None:
    files = [file for top in ("fourfold", "tests", "benchmarks", "docs") for file in sorted((ROOT / top).rglob("*.py"))]
    found = [f"{file.relative_to(ROOT)}: {name} ({lines})" for file in files for name, lines, words in functions(file.read_text())
             if lines > FUNCTION and not excused(words)]
    assert len(files) > 300 and not found, f"more than {FUNCTION} lines: {found}. Split them, or say why not in a line of the docstring, \"Long: …\"."


def test_reasons_are_asked_of_long_functions_only_and_are_reasons() -> None:
    body = "\n".join(f"    x{i} = {i}" for i in range(FUNCTION))
    (name, lines, words), = functions(f"def f():\n{body}")
    assert (name, lines, words) == ("f", FUNCTION + 1, "") and not excused(words) and not excused("It is long: see above.") and not excused("Long:")
    assert excused("Sum.\n\nLong: one compiled loop.")
    idle = [f"{file.relative_to(ROOT)}: {name}" for file in FILES for name, lines, words in functions(file.read_text())
            if excused(words) and lines <= FUNCTION]
    assert not idle, f"short enough, strike the reason: {idle}"


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
