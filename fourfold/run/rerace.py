"""`fourfold race`: an artefact's precisions and back ends raced again, on this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.run.artefact import Part, Setting, digest
from fourfold.run.loading import load

if TYPE_CHECKING:
    from fourfold.ingest.data import Examples
    from fourfold.ingest.task import Task
    from fourfold.run.engines.base import Session


def rerace(folder: Path | str, data: Any = None, *, budget: float = 60.0, log: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Race the artefact's precisions and back ends on this machine, store the new choice, and return what was found, per part.

    With `data` (inputs; labels are not needed) every precision may win whose answers agree with the part's own fp32 answers on at least 99 % of
    them. Without, inputs of the recorded lengths are drawn at random: fine for timing, no ground for calibrating, so only fp32, bf16 and the
    stored precision take part.
    """
    from fourfold.machine import here
    from fourfold.run.race import race_model

    root = Path(folder)
    model = load(root)
    manifest, found = model.manifest, []
    for part, spec in zip(model.assembly.parts, manifest["parts"], strict=True):
        if part.module is None:
            continue
        part.close()
        examples = _subset(model.encode(data), 512) if data is not None else drawn(part, manifest.get("lengths") or [32])
        stored = Setting(**spec["setting"])
        sure = ["fp32", "bf16", *(["int8-weights"] if stored.precision == "int8-weights" else [])]
        precisions = None if data is not None else sure
        outcome = race_model(
            part.subject,
            part.module,
            examples,
            objective=manifest.get("objective", "energy"),
            precisions=precisions,
            budget_s=budget / len(model.assembly.parts),
            accept=_agrees(part, examples, model.task) if data is not None else None,
            folder=root / spec["name"] / ".race",
            log=log,
        )
        best = outcome.best
        for name in spec["engine_files"]:
            (root / spec["name"] / name).unlink(missing_ok=True)
        for name in outcome.files:
            shutil.move(str(root / spec["name"] / ".race" / name), str(root / spec["name"] / name))
        shutil.rmtree(root / spec["name"] / ".race", ignore_errors=True)
        spec["setting"] = Setting(best.engine, best.precision, best.threads, best.batch, best.bucket).to_json()
        spec["signature"], spec["engine_files"] = outcome.signature, outcome.files
        found.append({"part": part.name, "before": stored.to_json(), "after": spec["setting"], "race": outcome.to_json()})
    manifest["hardware"], manifest["fingerprint"] = here().to_json(), here().fingerprint
    manifest["files"] = {str(p.relative_to(root)): digest(p) for p in sorted(root.rglob("*")) if p.is_file() and p.name != "manifest.json"}
    aside = root / "manifest.json.part"
    aside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(aside, root / "manifest.json")
    return {"folder": str(root), "machine": str(here()), "parts": found}


def _agrees(part: Part, examples: Examples, task: Task) -> Callable[[Session, Any], str | None]:
    few = _subset(examples, 128)
    index = np.arange(len(few))
    batch = few.collate(index)
    plain = replace(part, setting=Setting(), session=None)
    wanted = plain.open().run(batch)

    def accept(session: Session, _choice: Any) -> str | None:
        got = session.run(batch)
        if task.kind == "regression" or got.ndim < 2:
            off = float(np.abs(got - wanted).mean() / max(1e-9, float(np.abs(wanted - wanted.mean()).mean())))
            return None if off < 0.05 else f"its values are off by {off:.1%} of their spread"
        same = float((got.argmax(-1) == wanted.argmax(-1)).mean())
        return None if same >= 0.99 else f"it agrees with the fp32 answers on {same:.1%} only"

    return accept


def drawn(part: Part, lengths: list[int], count: int = 256) -> Examples:
    """Random inputs of the recorded lengths: token ids below the vocabulary's size, ones for masks, normal numbers for the rest."""
    from fourfold.ingest.data import Examples, Ragged

    assert part.signature is not None and part.module is not None
    rng = np.random.default_rng(0)
    sizes = rng.choice(np.maximum(1, np.asarray(lengths)), size=count)
    tables = [int(getattr(m, "num_embeddings", 0)) for m in part.module.modules() if type(m).__name__ == "Embedding"]
    rows = max(2, max(tables, default=2))
    columns: dict[str, Any] = {}
    for name in part.signature.names:
        shape, whole = part.signature.example[name].shape[1:], part.signature.dtypes[name].startswith("int")
        if 1 in part.signature.dynamic[name] and len(shape) == 1:
            make = (
                (lambda n: np.ones(n, np.int64))
                if "mask" in name
                else (lambda n: np.zeros(n, np.int64))
                if "type" in name
                else (lambda n: rng.integers(1, rows, n))
            )
            columns[name] = Ragged.of([make(int(n)) if whole else rng.normal(size=int(n)).astype(np.float32) for n in sizes])
        else:
            full = (count, *shape)
            columns[name] = (
                (np.ones(full, np.int64) if "mask" in name else rng.integers(0, rows, full)) if whole else rng.normal(size=full).astype(np.float32)
            )
    return Examples(columns)


def _subset(examples: Examples, most: int) -> Examples:
    return examples.take(np.sort(np.random.default_rng(0).permutation(len(examples))[:most]))
