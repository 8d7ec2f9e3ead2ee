"""What an artefact may name when it is loaded: what is harmless in torch, transformers and fourfold; the rest only where its reader says so.

A manifest comes from whoever made it. It names classes to make empty and fill with data, configurations to read, and functions that a module calls on
tensors. Each has a role here, each role a list of places; a name must be the thing's own (no way through a module's imports), and be of the role's
kind. Anything else needs its package in `trust`. See docs/threats.md.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import BuiltinFunctionType, FunctionType
from typing import Any

from fourfold.errors import ArtefactError, ModelError

_PLACES = re.compile(
    r"torch\.nn\.modules\.\w+|torch\.nn\.functional|torch"
    r"|transformers\.(activations|pytorch_utils|modeling_(utils|layers|rope_utils|outputs)|configuration_utils|cache_utils"
    r"|generation\.configuration_utils|models(\.\w+)+\.(modeling|configuration)_\w+)"
    r"|fourfold\.(recipe|frontends\.(model|subject)|structure\.cores|rewrites\.(compress\.(static|quantise)|(attend|route|select|teach)\.\w+))"
)
_MOVED = {"fourfold.ingest.model": "fourfold.frontends.subject"}        # what artefacts of earlier versions call modules of ours
_MATHS = frozenset(  # of torch itself: functions of tensors alone, which read and write nothing else
    "relu relu_ tanh tanh_ sigmoid sigmoid_ softmax log_softmax selu selu_ celu celu_ rrelu prelu sin cos exp log log1p sqrt rsqrt square abs"
    " neg sign erf clamp floor ceil round add sub mul div matmul bmm mm cat stack sum mean prod max min amax amin cumsum flatten squeeze unsqueeze"
    " transpose permute reshape where tril triu zeros_like ones_like nan_to_num maximum minimum hardshrink".split()
)
_DAMAGED = "It is damaged; copy it again."
_LAYERS = re.compile(r"(layers?|blocks?|depths?|experts?|heads?|stages?|repeats?)s?$")
_MOST_LAYERS, _MOST = 4096, 1 << 31  # what a configuration may say of how many there are of something, and of anything
ATTENTION = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "fourfold_core"})
"""Ways of computing attention that a configuration may name; others are names of code on a hub."""


class Trust:
    """Whose code may run: `packages` (top-level names) and the list above. `memory`: bytes that a bare architecture may take."""

    def __init__(self, packages: Iterable[str] = (), memory: int | None = None) -> None:
        self.packages = frozenset([packages] if isinstance(packages, str) else packages)
        self.memory = memory if memory is not None else _memory() * 3 // 4

    def thing(self, ref: Any, role: str) -> Any:
        """What "module:name" names, for a role: module, enum, tuple, data, config or value. Raises ArtefactError, before anything is imported that
        may not be."""
        where, name = _parts(ref)
        if _package(where) in self.packages:
            return imported(ref)
        if not _PLACES.fullmatch(where) or not fits(found := imported(ref), where, name, role):
            raise ArtefactError(*refused(ref, _package(where)))
        return found

    def called(self, ref: object, what: str = "artefact") -> None:
        """Raises ArtefactError where a factory that an artefact (or a plan: `what`) names may not be called."""
        where, name = _parts(ref)
        if _package(where) not in self.packages:
            raise ArtefactError(*refused(f"{where}:{name}", _package(where), what))

    def room(self, taken: int) -> None:
        """Raises ArtefactError where an architecture of so many bytes is absurd here."""
        if taken > self.memory:
            raise ArtefactError(
                f"the artefact's architecture takes {taken / 2**30:,.1f} GiB, more than this machine can hold.",
                "It is damaged, or was made for a larger machine.",
            )


class _Everyone(Trust):
    """The user's own process, making again what it was given a moment ago."""

    def thing(self, ref: Any, role: str) -> object:
        return imported(ref)

    def called(self, ref: object, what: str = "artefact") -> None:
        pass

    def room(self, taken: int) -> None:
        pass


EVERYONE: Trust = _Everyone((), 1 << 62)


def refused(ref: str, package: str, what: str = "artefact") -> tuple[str, str]:
    """The two lines. what: "artefact", or "plan"."""
    how, python = ("loading", "fourfold.load(folder, trust=[{!r}])") if what == "artefact" else ("opening", "trust=[{!r}]")
    return (
        f"the {what} names {ref}, and {how} it would run code of the package {package!r}, which is not trusted.",
        f"Where you know who made it: --trust {package}, or in Python {python.format(package)}.",
    )


def named(ref: object) -> tuple[str, ...]:
    """The package whose code is run by a reference to a model or to data: ("package",) of "[jax:]package.module:name", none of a path."""
    said = ref.removeprefix("jax:") if isinstance(ref, str) else ""
    module, colon, _ = said.partition(":")
    if not colon or "/" in module or "\\" in module or os.path.exists(str(ref)):
        return ()
    return (_package(module),)


def _parts(ref: object) -> tuple[str, str]:
    where, colon, name = ref.partition(":") if isinstance(ref, str) and len(ref) < 1000 else ("", "", "")
    where = _MOVED.get(where, where)
    words = [*where.split("."), *name.split(".")]
    if not colon or not all(word.isidentifier() and not (word.startswith("__") and word.endswith("__")) for word in words):
        raise ArtefactError(f"the artefact names {str(ref)[:80]!r}, which is not package.module:name.", "It is damaged; copy it again.")
    return where, name


def _package(where: str) -> str:
    """The package of "package.module" or "package.module:name"."""
    return where.partition(":")[0].partition(".")[0]


def imported(ref: str) -> object:
    """What "module:qualified.name" names. Raises `ModelError` where it cannot be imported."""
    where, _, name = ref.partition(":")
    where = _MOVED.get(where, where)
    if _package(where) not in ("torch", "transformers", "fourfold") and "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the user, as `python -m` finds it
    try:
        thing: object = import_module(where)
        for part in name.split("."):
            thing = getattr(thing, part)
        return thing
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the model needs {where}.{name}, which cannot be imported here", "Install the package that defines it.") from error
    except Exception as error:
        raise ModelError(f"the model needs {where}, whose import raised {type(error).__name__}", "Mend the package that defines it.") from error


def fits(thing: object, where: str, name: str, role: str) -> bool:
    """Whether the thing is of the role's kind and at home under this very name."""
    from torch import nn
    from torch.nn import functional

    if role == "value" and isinstance(thing, BuiltinFunctionType):  # operations written in C++ bear other names
        return name in _MATHS if where == "torch" else where == "torch.nn.functional" and vars(functional).get(name) is thing
    if getattr(thing, "__module__", None) != where or getattr(thing, "__qualname__", None) != name:
        return False
    if role == "value" and isinstance(thing, FunctionType):
        return where != "torch" and not name.rpartition(".")[2].startswith(("load", "from_", "_load", "save"))
    if not isinstance(thing, type):
        return False
    kinds: dict[str, bool] = {
        "module": issubclass(thing, nn.Module),
        "enum": issubclass(thing, enum.Enum),
        "tuple": issubclass(thing, tuple) and hasattr(thing, "_fields"),
        "data": dataclasses.is_dataclass(thing),
        "config": hasattr(thing, "from_dict") and _configures(thing),
    }
    return kinds[role] if role in kinds else kinds["module"] or kinds["enum"] or kinds["data"]


def _configures(kind: type) -> bool:
    from transformers import GenerationConfig, PretrainedConfig

    return issubclass(kind, PretrainedConfig | GenerationConfig)


def strangers(origin: Mapping[str, object]) -> tuple[str, ...]:
    """The packages that must be trusted to make this origin again, sorted."""
    found: set[str] = set()
    if origin.get("kind") == "factory":
        found.add(_package(str(origin["entry"])))
    elif origin.get("kind") == "tree":
        nobody = Trust()
        for ref, role in _named(origin["tree"]):
            try:
                nobody.thing(ref, role)
            except ArtefactError:
                found.add(_package(ref))
            except ModelError:  # not here: for its reader to find out
                pass
    return tuple(sorted(found))


def option(packages: Iterable[str]) -> str:
    """What a command that loads an artefact of these packages needs to be told, with a space before it: " --trust a --trust b"; "" for none."""
    return "".join(f" --trust {shlex.quote(name)}" for name in packages)


_ROLES = {"class": "module", "enum": "enum", "made": "tuple", "data": "data", "config": "config", "name": "value"}


def _named(tree: object) -> Iterable[tuple[str, str]]:
    """(ref, role) of all that a tree names."""
    if isinstance(tree, list):
        for one in tree:
            yield from _named(one)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            if key in _ROLES and isinstance(value, str) and ":" in value and (key != "data" or "fields" in tree):
                yield value, _ROLES[key]
            elif not (key == "data" and "config" in tree):
                yield from _named(value)


def sane(config: object, path: str = "config") -> Any:
    """A configuration's data without what would fetch or run something, its numbers in bounds. Raises ArtefactError for absurd numbers."""
    if isinstance(config, dict):
        out = {}
        for key, value in config.items():
            if key in ("auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "_name_or_path", "name_or_path"):
                continue
            if "implementation" in str(key) and value is not None and not (isinstance(value, str) and value in ATTENTION):
                continue
            if str(key).startswith("use_pretrained") and value:
                value = False
            counts = [number for number in (value if isinstance(value, list) else [value]) if type(number) is int]
            if _LAYERS.search(str(key)) and max(counts, default=0) > _MOST_LAYERS:
                raise ArtefactError(f"the artefact's configuration has {max(counts):,} for {path}.{key}, which is absurd.", _DAMAGED)
            out[key] = sane(value, f"{path}.{key}")
        return out
    if isinstance(config, list):
        return [sane(value, path) for value in config]
    if type(config) is int and not -_MOST <= config <= _MOST:
        raise ArtefactError(f"the artefact's configuration has {config:,} for {path}, which is absurd.", _DAMAGED)
    return config


def _memory() -> int:
    """Bytes of this machine's memory; 64 GiB where it does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 64 << 30
