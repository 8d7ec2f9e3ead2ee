"""What this machine offers the main job: instructions, back ends, meters, versions; and, for what is missing, why."""

from __future__ import annotations

import platform
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "scipy",
    "optuna",
    "onnx",
    "onnxscript",
    "nvidia-ml-py",
)


def examine() -> dict[str, object]:
    """Plain JSON: machine, engines (name, precision, available, reason), meters (name, available, reason), versions."""
    from fourfold.host import here

    machine = here()
    return {"machine": machine.to_json(), "engines": _engines(machine), "meters": _meters(), "versions": _versions()}


def _engines(machine: object) -> list[dict[str, object]]:
    from fourfold.engines import engines

    rows = []
    for engine in engines():
        for precision in engine.precisions:
            reason = engine.declines(precision, machine)
            rows.append({"name": engine.name, "precision": precision, "available": reason is None, "reason": reason or ""})
    return rows


def _meters() -> list[dict[str, object]]:
    from fourfold.measure import availability

    return [{"name": name, "available": reason is None, "reason": reason or ""} for name, reason in availability().items()]


def _versions() -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    from fourfold._version import __version__
    from fourfold.engines import versions

    found: dict[str, str | None] = {"fourfold": __version__, "python": platform.python_version()}
    for name in dict.fromkeys((*_PACKAGES, *versions())):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def tell(facts: Any) -> list[str]:
    """The same as lines for a reader."""
    machine = facts["machine"]
    memory = f", {machine['memory'] / 2**30:.1f} GiB" if machine["memory"] else ""
    lines = [f"{machine['name']}: {machine['cores']} core{'s' if machine['cores'] != 1 else ''}{memory}, {machine['os']}"]
    lines += [f"  {', '.join(machine['flags']) or 'no vector instructions known'}", "", "Back ends"]
    lines += _back_ends(facts["engines"])
    lines += ["", "Energy meters"]
    lines += [f"  {_mark(row)} {row['name']}{_because(row)}" for row in facts["meters"]]
    if not any(row["available"] for row in facts["meters"]):
        lines.append("  no meter: energy is modelled from CPU time and stated power, and says so")
    return [*lines, "", "Versions", *(f"  {name} {version or '(not installed)'}" for name, version in facts["versions"].items())]


def _back_ends(rows: Any) -> list[str]:
    """An engine a line with the precisions it has here; then those it has not, by reason."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        able = [row["precision"] for row in mine if row["available"]]
        lines += [f"  ✓ {name}: {', '.join(able)}"] if able else []
        for reason in dict.fromkeys(row["reason"] for row in mine if not row["available"]):
            lines.append(f"  – {name} {', '.join(row['precision'] for row in mine if row['reason'] == reason)}: {reason}")
    return lines


def _mark(row: Any) -> str:
    return "✓" if row["available"] else "–"


def _because(row: Any) -> str:
    return f": {row['reason']}" if row["reason"] else ""
