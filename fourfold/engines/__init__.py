"""One file an engine; this folder's listing is the registry, so nothing else has to be told of a new one. A file without an engine's class is what
engines share: `base` (the contract), `select` (which of them runs a module best), `region` (parts of a program), `onnx`, `parity`.

Look names up with `names()` and `of_regions()` (which import nothing heavy) and classes with `engine(name)` and `region_engine(name)` (which import
that file only). Engines of other packages are adopted as techniques are: `fourfold.registry.including`.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold import registry
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.engines.base import Engine

ROOM = "engines"
EAGER = "eager"                                                         # the engine of regions that every other is raced against: plain calls
_adopted: dict[str, EngineFacts] = {}                                   # of somebody else, named by an artefact that was trusted
_FACTS = ("precisions", "regions", "region_name", "reads_onnx", "versions", "format")


@dataclass(frozen=True)
class EngineFacts:
    """Class attributes of an engine, read from its source (see `fourfold.engines.base.Engine`); `name` is its file's, `module` its import path."""

    name: str
    module: str
    precisions: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    region_name: str = ""
    reads_onnx: bool = False
    versions: tuple[str, ...] = ()
    format: str = ""

    @property
    def in_plans(self) -> str:
        """What plans call it."""
        return self.region_name or self.name


@cache
def _read(file: Path, module: str) -> EngineFacts | None:
    """The facts of the engine that a file holds; None where it holds none."""
    text = file.read_text(encoding="utf-8")
    if "Engine)" not in text:
        return None
    for node in ast.parse(text, str(file)).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Engine" for base in node.bases):
            values: dict[str, Any] = {}
            for line in node.body:
                target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0] if isinstance(line, ast.Assign) else None
                if isinstance(target, ast.Name) and target.id in _FACTS and isinstance(line, ast.AnnAssign | ast.Assign) and line.value is not None:
                    values[target.id] = ast.literal_eval(line.value)
            return EngineFacts(file.stem, module, **values)
    return None


def facts() -> list[EngineFacts]:
    """Of every engine, by name. Raises InputError where two have one name."""
    found: dict[str, EngineFacts] = {}
    for file, module in registry.room(ROOM):
        one = _read(file, module)
        if one is None:
            continue
        if one.name in found:
            raise InputError(f"Two engines are called {one.name}: {found[one.name].module} and {module}.", "Rename one of the files.")
        found[one.name] = one
    return sorted({**_adopted, **found}.values(), key=lambda one: one.name)


def names() -> list[str]:
    """Every engine of whole modules that there is a file for, sorted; whether it can run here is `Engine.declines`'s to say."""
    return [one.name for one in facts() if one.precisions]


def of_regions(dialect: str) -> list[str]:
    """What plans call the engines that are raced against `EAGER` in regions of a program of that dialect ("torch", "onnx", "jax"), sorted."""
    return sorted(one.in_plans for one in facts() if dialect in one.regions and one.in_plans != EAGER)


def versions() -> list[str]:
    """Packages whose versions decide what engines answer, and how fast."""
    return list(dict.fromkeys(package for one in facts() for package in one.versions))


def formats() -> dict[str, str]:
    """Name after `fourfold export --to` → the engine whose files they are, which others open without this package."""
    return {one.format: one.name for one in facts() if one.format}


def engine(name: str) -> type[Engine]:
    """The class of the engine of whole modules of that name. Raises `InputError` for a name without a file."""
    found = next((one for one in facts() if one.name == name and one.precisions), None)
    if found is None:
        raise InputError(f"there is no back end called {name!r}", f"Choose from: {', '.join(names())}.")
    return _loaded(found)


def region_engine(name: str) -> type[Engine]:
    """The class of the engine that plans call `name`. Raises `InputError` where there is none."""
    able = [one for one in facts() if one.regions]
    found = next((one for one in able if one.in_plans == name), None)
    if found is None:
        raise InputError(f"No engine of regions is called {name!r}.", f"Choose from: {', '.join(sorted(one.in_plans for one in able))}.")
    return _loaded(found)


def engines() -> list[type[Engine]]:
    """The classes of all engines of whole modules, by name."""
    return [engine(name) for name in names()]


def stranger(name: str) -> str | None:
    """The module of an engine that is none of ours, which an artefact names; None of ours."""
    module = next((one.module for one in facts() if one.name == name), "")
    return None if module.startswith("fourfold.") else module or None


def adopt(module: str) -> None:
    """Make the engine in `module`, which is somebody else's, known by its file's name. The caller has asked whether it may run.

    Raises InputError where it holds none, or where another engine has its name.
    """
    room = importlib.import_module(module)
    one = _read(Path(str(room.__file__)), module)
    if one is None:
        raise InputError(f"{module} holds no engine.", "Install the version of its package that the artefact was made with.")
    held = next((other for other in facts() if other.name == one.name), None)
    if held is None:
        _adopted[one.name] = one
    elif held.module != module:
        raise InputError(f"The engine {one.name} is {held.module}'s here, and {module}'s in the artefact.", "Rename one of the files.")


def _loaded(found: EngineFacts) -> type[Engine]:
    from fourfold.engines.base import Engine

    room = importlib.import_module(found.module)
    return next(kind for kind in vars(room).values() if isinstance(kind, type) and issubclass(kind, Engine) and kind.__module__ == room.__name__)
