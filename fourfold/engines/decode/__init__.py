"""Ways to generate: one file a way, each a `Decoding` (see `base`) that answers equal to `eager` within its stated tolerance.

This folder's listing is the registry: look names up with `names()`, which imports nothing heavy, and classes with `decoder(name)`.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding


@cache
def _files() -> dict[str, str]:
    """Name → the module that holds it: files with a class that derives from `Decoding` and has a literal `name`."""
    found: dict[str, str] = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if file.stem in ("base", "__init__") or "ClassVar[str]" not in text:
            continue
        for node in ast.parse(text, str(file)).body:
            for line in node.body if isinstance(node, ast.ClassDef) else []:
                if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == "name"):
                    continue
                if isinstance(line.value, ast.Constant) and isinstance(line.value.value, str) and line.value.value:
                    found[line.value.value] = f"{__name__}.{file.stem}"
    return found


def names() -> list[str]:
    """Every engine that generates, sorted; whether it can here is `Decoding.declines`'s to say."""
    return sorted(_files())


def decoder(name: str) -> type[Decoding]:
    """The class of that name. Raises InputError where no file has it."""
    if name not in _files():
        raise InputError(f"no back end called {name!r} generates.", f"Choose from: {', '.join(names())}.")
    from fourfold.engines.decode.base import Decoding

    room = importlib.import_module(_files()[name])
    kinds = (kind for kind in vars(room).values() if isinstance(kind, type) and issubclass(kind, Decoding))
    return next(kind for kind in kinds if kind.__module__ == room.__name__ and kind.name == name)
