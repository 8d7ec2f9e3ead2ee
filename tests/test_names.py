"""One meaning a name: no public class name in two files, and no module that a public function of the package would hide."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import fourfold

ROOT = Path(fourfold.__file__).parent
SHARED: dict[str, str] = {                                             # class name → why two files may have it; three at most
}


def classes() -> dict[str, list[str]]:
    """Public class name → the files that define it at their top, conditional definitions included."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(ROOT.rglob("*.py")):
        for statement in ast.parse(file.read_text()).body:
            inner = ast.walk(statement) if isinstance(statement, ast.If | ast.Try) else [statement]
            names = {node.name for node in inner if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
            for name in names:
                found[name].append(str(file.relative_to(ROOT)))
    return found


def test_no_class_name_stands_in_two_files() -> None:
    twice = {name: files for name, files in classes().items() if len(files) > 1 and name not in SHARED}
    assert not twice, "; ".join(f"{name}: {', '.join(files)}" for name, files in twice.items())


def test_exceptions_are_few_and_needed() -> None:
    found = classes()
    assert len(SHARED) <= 3 and all(len(found.get(name, ())) > 1 for name in SHARED)


@pytest.mark.parametrize("name", [name for name in fourfold.__all__ if not name[0].isupper()])
def test_no_module_is_named_as_a_public_function(name: str) -> None:
    assert not (ROOT / f"{name}.py").exists() and not (ROOT / name).exists(), f"`import fourfold.{name}` would hide fourfold.{name}()"
    assert callable(getattr(fourfold, name))
