"""The command that asks the same question again, spelled so that a shell reads it as it was meant."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, object] = {"objective": "energy", "seed": 0}           # what `fourfold optimize` takes where nothing is said


def spelled(model: object, data: object, *, floor: float, budget: float, columns: Mapping[str, str] | None = None, **options: Any) -> str:
    """`fourfold optimize …` with all that was asked. floor: a share; budget: seconds; options by their names in `fourfold.optimize`, None where
    nothing was said. What only a Python session holds (a module, arrays, a function) makes it a call with a stand-in in angle brackets.
    """
    parts: dict[str, object] = dict(data) if isinstance(data, Mapping) and set(data) <= {"train", "search", "test"} else {"train": data}
    engines, threads, splits = (options.pop(name, None) for name in ("engines", "threads", "splits"))
    given = {name: value for name, value in options.items() if value is not None and value != DEFAULTS.get(name)}
    held = [model, *parts.values(), *given.values()]
    many = threads is not None and not isinstance(threads, int) and len(list(threads)) > 1
    plain = all(isinstance(value, str | Path | int | float) for value in held) and set(columns or {}) <= {"text", "pair", "label", "split"}
    if not plain or splits is not None and not isinstance(splits, str) or many or "train" not in parts:
        said = {"floor": floor, "budget": budget, "columns": columns, "engines": engines, "threads": threads, "splits": splits, **given}
        named = ", ".join(f"{name}={_held(value)}" for name, value in said.items() if value is not None)
        source = _held(data) if not isinstance(data, Mapping) else "{" + ", ".join(f"{k!r}: {_held(v)}" for k, v in data.items()) + "}"
        return f"fourfold.optimize({_held(model)}, {source}, {named})"
    words = ["fourfold", "optimize", str(model), "--data", str(parts["train"])]
    words += [word for name in ("search", "test") if name in parts for word in (f"--{name}-data", str(parts[name]))]
    words += ["--floor", f"{100 * floor:.10g}%", "--budget", f"{budget:.10g}s"]
    roles = dict(columns or {}) | ({"split": splits} if splits else {})
    for role, option in (("text", "--text-column"), ("pair", "--text-column"), ("label", "--label-column"), ("split", "--split-column")):
        words += [option, roles[role]] if role in roles else []
    words += ["--engines", ",".join(engines)] if engines else []
    words += ["--threads", str(threads if isinstance(threads, int) else list(threads)[0])] if threads else []
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _held(value: object) -> str:
    """A value as Python would read it, or a stand-in for what only its session holds."""
    if isinstance(value, str | int | float | bool | list | tuple | dict) or value is None:
        return repr(value) if len(repr(value)) < 200 else f"<{type(value).__name__}>"
    return repr(str(value)) if isinstance(value, Path) else f"<{getattr(value, '__qualname__', type(value).__qualname__)}>"
