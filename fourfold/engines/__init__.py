"""One file an engine; this folder's listing is the registry, so nothing else has to be told of a new one. A file without an engine's class is
what engines share: `base` (the contract), `select` (which of them runs a module best), `regions` (parts of a program).

Look names up with `names()` (imports nothing heavy) and classes with `engine(name)` (imports that file only).
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.engines.base import Engine

ROOM = Path(__file__).parent


_CLASS = re.compile(r"^class \w+\(Engine\):", re.MULTILINE)


@cache
def _names() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in ROOM.glob("[a-z]*.py") if _CLASS.search(file.read_text(encoding="utf-8"))))


def names() -> list[str]:
    """Every engine there is a file for, sorted; whether it can run here is `Engine.declines`'s to say."""
    return list(_names())


def engine(name: str) -> type[Engine]:
    """The engine class of that name. Raises `InputError` for a name without a file."""
    if name not in names():
        raise InputError(f"there is no back end called {name!r}", f"Choose from: {', '.join(names())}.")
    from fourfold.engines.base import Engine

    room = importlib.import_module(f"{__name__}.{name}")
    return next(kind for kind in vars(room).values() if isinstance(kind, type) and issubclass(kind, Engine) and kind.__module__ == room.__name__)


def engines() -> list[type[Engine]]:
    """All engine classes, by name."""
    return [engine(name) for name in names()]
