"""An SCI score as a manifest of the Green Software Foundation's Impact Framework, so that a third party's program works it out again:

    npm install @grnsft/if && npx if-run -m FILE.yml          prints the tree with carbon and sci of every run and of all together

Every run is a component: energy × PUE, × intensity, + the hardware's part, / functional units. `all` holds the sums, and its sci is the score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.cost.sci import Sci
from fourfold.errors import unwritable
from fourfold.folder import write as replace
from fourfold.report.ledger import Owing

_MULTIPLY, _SUM = "Multiply", "Sum"


def manifest(pieces: Sequence[Owing], score: Sci, name: str = "fourfold") -> dict[str, object]:
    """The manifest as plain data."""
    unit = _slug(score.unit)
    makings = list(dict.fromkeys((piece.whole.value, piece.life.to("s").value) for piece in pieces))
    plugins: dict[str, object] = {
        "hall-energy": _builtin(_MULTIPLY, {"input-parameters": ["energy-machines", "pue"], "output-parameter": "energy"}),
        "operational": _builtin(_MULTIPLY, {"input-parameters": ["energy", "grid-intensity"], "output-parameter": "carbon-operational"}),
        **{f"embodied-{i}": _builtin("SciEmbodied", {"baseline-emissions": whole, "lifespan": life, "output-parameter": "carbon-embodied"})
           for i, (whole, life) in enumerate(makings)},
        "carbon": _builtin(_SUM, {"input-parameters": ["carbon-operational", "carbon-embodied"], "output-parameter": "carbon"}),
        "sci": _builtin("Sci", {"functional-unit": unit}),
    }
    each = score.per / len(pieces)                                      # who gave how many is not told apart; `all` has the score
    children = {f"run-{i}": _run(piece, f"embodied-{makings.index((piece.whole.value, piece.life.to('s').value))}", unit, each)
                for i, piece in enumerate(pieces)}
    whole = {"timestamp": _time(pieces[0].start), "duration": max(1.0, sum(piece.seconds for piece in pieces)),
             "carbon-operational": score.operational.value, "carbon-embodied": score.embodied.value, unit: score.per}
    children["all"] = {"pipeline": {"compute": ["carbon", "sci"]}, "inputs": [whole]}
    notes = " ".join([f"{score}.", *score.notes])
    return {"name": name, "description": notes, "tags": {"kind": "ledger", "category": "software"}, "initialize": {"plugins": plugins},
            "tree": {"children": children}}


def _builtin(method: str, config: dict[str, object]) -> dict[str, object]:
    return {"method": method, "path": "builtin", "config": config}


def _run(piece: Owing, embodied: str, unit: str, each: float) -> dict[str, object]:
    row = {
        "timestamp": _time(piece.start), "duration": max(1.0, piece.seconds),   # the framework takes no observation under a second
        "time": piece.seconds or 1e-9, "energy-machines": piece.energy.value, "pue": piece.pue.value, "grid-intensity": piece.intensity.value,
        "usage-ratio": piece.share.value, unit: each,
    }
    return {"pipeline": {"compute": ["hall-energy", "operational", embodied, "carbon", "sci"]}, "defaults": {"run": piece.run}, "inputs": [row]}


def _time(text: str) -> str:
    return text or "1970-01-01T00:00:00.000Z"


def _slug(unit: str) -> str:
    """A column name for the functional unit; the framework takes bare numbers for amounts."""
    slug = re.sub(r"[^\w-]+", "-", unit).strip("-").lower() or "unit"
    return slug if re.search(r"[a-z]", slug) and slug not in _TAKEN else f"unit-{slug}"


_TAKEN = ("carbon", "sci", "energy", "duration", "time", "timestamp", "pue", "nan", "infinity")


def write(data: Mapping[str, object], path: Path) -> None:
    """Write a manifest as YAML. Raises InputError where the file cannot be written."""
    try:
        replace(path, "\n".join(_yaml(data)) + "\n")
    except OSError as error:
        raise unwritable(path, error, "the manifest") from None


def _yaml(data: Any, depth: int = 0) -> list[str]:
    """Lines of block YAML; texts and numbers as JSON, which YAML holds too."""
    pad = "  " * depth
    lines: list[str] = []
    if isinstance(data, Mapping):
        for key, item in data.items():
            nested = bool(item) and isinstance(item, Mapping | list)
            lines += [f"{pad}{_key(key)}:", *_yaml(item, depth + 1)] if nested else [f"{pad}{_key(key)}: {_scalar(item)}"]
    else:
        for item in data:
            if isinstance(item, Mapping):
                first, *rest = _yaml(item, depth + 1)
                lines += [f"{pad}- {first.strip()}", *rest]
            else:
                lines.append(f"{pad}- {_scalar(item)}")
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z][\w-]*", key) else json.dumps(key)


def _scalar(item: object) -> str:
    text = json.dumps(item, ensure_ascii=True)
    return text.replace("e", ".0e", 1) if isinstance(item, float) and "e" in text and "." not in text else text   # YAML 1.1 wants the point
