"""What an artefact keeps of the original, so that `verify` can ask again: where it lay, its weights' hash, and its answers on the unseen split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.runtime.original import digest

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job

MOST = 200_000  # numbers stored at most: some 2 MB of text


def facts(job: Job) -> dict[str, object]:
    """What the manifest says of the original: {"kind": "folder", "factory" or "memory", "reference": absolute path or module:function, "sha256": of
    its weights}."""
    name = job.work.model
    kind = "folder" if Path(name).is_dir() else "factory" if ":" in name else "memory"
    return {"kind": kind, "reference": str(Path(name).resolve()) if kind == "folder" else name, "sha256": digest(job.subject.module)}


def answers(job: Job) -> str | None:
    """The text of `answers.json`: the original's records on the unseen split by row; None where they are too many or rows are not told apart."""
    if job.task.kind not in ("classification", "regression", "seq2seq", "ctc") or job.base_test.size > MOST:
        return None
    rows = {str(row): [float(f"{x:.7g}") for x in record] for row, record in zip(job.splits.test.groups.tolist(), job.base_test, strict=True)}
    return json.dumps({"rows": rows})
