"""A converted model written as an artefact, and its saving booked in a ledger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject
    from fourfold.jobs.convert import Converted

RECORD = "conversion.json"
"""The artefact's file with the whole account."""


def save(
    result: Converted, subject: Subject, task: Task, splits: Any, few: Mapping[str, Tensor], edits: tuple[dict[str, object], ...], target: Path, *,
    force: bool, longest: int | None,
) -> Path:  # fmt: skip
    """Write the artefact once a fresh process has loaded it and answers alike; see `runtime.saving.save`. Returns its folder."""
    from fourfold.engines.base import Signature
    from fourfold.engines.select import sample_batches
    from fourfold.recipe import Recipe
    from fourfold.runtime.artefact import Assembly, Part, Setting
    from fourfold.runtime.saving import save as write

    examples = splits.test if splits is not None else _made_up(few, task)
    setting = Setting(**result.found["cost"]["setting"]) if result.found else Setting()
    part = Part("network", subject, result.module, Recipe(edits), setting)
    part.signature = Signature.of(subject.inputs, sample_batches(examples, 0))
    book = _account(result)
    extra = {RECORD: json.dumps(result.to_json(), indent=1), **({"ledger.jsonl": book} if book else {})}
    return write(Assembly(result.to, [part]), task, target, _facts(result, subject, task, examples), extra=extra, max_length=longest,
                 examples=None if task.generates or task.kind in ("seq2seq", "ctc") else examples, force=force)


def _made_up(few: Mapping[str, Tensor], task: Task) -> Examples:
    """The random sample as examples: what a fresh process must answer alike."""
    from fourfold.datasets.examples import Examples, Ragged

    columns = {name: value.numpy() for name, value in few.items()}
    first = next(iter(columns.values()))
    return Examples(columns, Ragged.of(list(first)) if task.kind == "causal_lm" else None, None, dict.fromkeys(columns, 0.0))


def _facts(result: Converted, subject: Subject, task: Task, examples: Examples) -> dict[str, object]:
    """What the manifest says besides the structure; the keys are those of an optimised model, so that `verify` and `race` read both."""
    from importlib.metadata import version

    from fourfold.host import here
    from fourfold.registry import facts
    from fourfold.runtime.original import digest

    found, name = result.found, result.model
    kind = "folder" if Path(name).is_dir() else "factory" if ":" in name else "memory"
    candidate: dict[str, object] = {"name": result.to, "how": f"{len(result.sites)} parts converted to {result.to}"}
    if found is not None:
        cost = found["cost"]
        candidate |= {"test_quality": found["quality"]["recovered"], "relative_energy": cost["cpu"], "relative_latency": cost["wall"]}
    return {
        "conversion": {"to": result.to, "technique": result.technique, "sites": list(result.sites), "exact": result.exact, "moved": result.moved},
        "candidate": candidate,
        "floor": result.floor or 0.0,
        "objective": "energy",
        "baseline": {"setting": found["cost"]["setting"], "rows_per_call": found["cost"]["call"]} if found else None,
        "data": {"metric": task.metric.name},
        "model": {"name": name},
        "original": {"kind": kind, "reference": str(Path(name).resolve()) if kind == "folder" else name, "sha256": digest(subject.module)},
        "hardware": here().to_json(),
        "fingerprint": here().fingerprint,
        "methods": list(facts(result.technique).cites),
        "versions": {package: version(package) for package in ("torch", "numpy")},
        "lengths": [int(v) for v in np.quantile(examples.lengths, np.linspace(0, 1, 64), method="nearest")],
    }


def _joules(cost: Mapping[str, Any], which: str) -> Any:
    from fourfold.units import Quantity

    row = cost["joules"]
    ends = {"low": row["low"], "high": row["high"]} if which == "after" else {}
    return Quantity(row[which], "J", row["grade"], method=row["method"], boundary=row["boundary"] or "process", **ends)


def _account(result: Converted) -> str:
    """The artefact's own account book: joules of 1,000 rows before and after, and what the conversion itself used; "" without data."""
    from fourfold.ledger.book import Ledger

    if result.found is None:
        return ""
    cost = result.found["cost"]
    book = Ledger(_joules(cost, "before"), "1,000 rows")
    book.book("model", result.title, _joules(cost, "after"), result.technique)
    book.spend(_joules(cost, "spent"))
    return "".join(f"{line}\n" for line in book.lines())


def book(path: str | Path, result: Converted, subject: Subject) -> dict[str, object]:
    """Book the conversion on the Model lever: joules of 1,000 rows against the original's; without data there is no factor, and why is said."""
    from fourfold import plans
    from fourfold.ledger import decisions
    from fourfold.runtime.original import digest

    known = result.found["cost"] if result.found else None
    figures = {name: _joules(known, name) for name in ("before", "after")} if known else {}
    return decisions.book(
        path, "model", f"{len(result.sites)} parts converted to {result.to}", job="convert", question=result.technique.split("/")[0],
        subject=digest(subject.module), name=result.model, evidence=plans.identify({"sites": list(result.sites), "found": result.found}),
        why="" if known else "converted without data, so that nothing was raced", **figures,
    )  # fmt: skip
