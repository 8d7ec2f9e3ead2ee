"""Public names that are imported where they are first asked for, so that `import fourfold` loads no technique (PEP 562)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module


def imported(module: dict[str, object], homes: Mapping[str, str], name: str) -> object:
    """`name` from the module that `homes` says holds it, kept in `module` (the globals of the one that was asked) from then on.

    Raises AttributeError, as modules do, for a name that has no home.
    """
    if name not in homes:
        raise AttributeError(f"module {str(module['__name__'])!r} has no attribute {name!r}")
    module[name] = found = getattr(import_module(f"fourfold.{homes[name]}"), name)
    return found
