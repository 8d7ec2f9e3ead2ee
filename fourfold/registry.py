"""What techniques there are: a folder listing that imports nothing. A new technique is a new file; nothing else has to be told of it."""

from __future__ import annotations

import ast
import difflib
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fourfold.errors import InputError

_ROOT = Path(__file__).parent
_ROOMS = ("rewrites", "decisions")                                      # what is computed; only how, on what, where or when


@dataclass(frozen=True)
class Facts:
    """A technique's class attributes, and the first sentence of its file. `question` is its folder ("compress"), `module` its import path."""

    name: str
    module: str
    question: str
    title: str
    lever: str
    cites: tuple[str, ...]
    needs: tuple[str, ...]
    summary: str


def techniques() -> dict[str, str]:
    """Name → module path of every technique, by question, then name."""
    files = [file for room in _ROOMS for file in sorted((_ROOT / room).glob("*/*.py")) if not file.name.startswith("_") and _classes(file)]
    return {file.stem: ".".join(["fourfold", *file.relative_to(_ROOT).with_suffix("").parts]) for file in files}


def facts(name: str) -> Facts:
    """The facts of technique `name`, read from its source without running it. Raises InputError with the nearest names where there is none."""
    module = _module(name)
    file = _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = _parse(file)
    cls = _classes(file)[0]
    values = {}
    for line in cls.body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            target, value = line.targets[0].id, line.value
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
            target, value = line.target.id, line.value
        else:
            continue
        if target in ("title", "lever", "cites", "needs"):
            values[target] = ast.literal_eval(value)
    text = (ast.get_docstring(tree) or "").split("\n\n")[0]
    lever = values.get("lever", "model" if module.split(".")[1] == "rewrites" else "machine")
    return Facts(name, module, module.split(".")[2], values.get("title", name), lever, tuple(values.get("cites", ())), tuple(values.get("needs", ())),
                 " ".join(text.split()))


def technique(name: str) -> type:
    """The technique's class; imports its file only. Raises InputError as `facts` does."""
    module = _module(name)
    file = _ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return getattr(importlib.import_module(module), _classes(file)[0].name)


def _module(name: str) -> str:
    known = techniques()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        raise InputError(f"There is no technique {name!r}.", f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(known)}.")
    return known[name]


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _classes(file: Path) -> list[ast.ClassDef]:
    """The technique classes that a file holds: those deriving from Rewrite or Solver by name."""
    return [node for node in _parse(file).body if isinstance(node, ast.ClassDef)
            and any(isinstance(base, ast.Name) and base.id in ("Rewrite", "Solver") for base in node.bases)]
