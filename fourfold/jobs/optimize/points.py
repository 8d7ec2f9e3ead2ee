"""A candidate and a way to run it, built and asked: what the search, the early proof and the final race share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import FourfoldError
from fourfold.jobs.optimize.builds import Made
from fourfold.jobs.optimize.final_race import Point, prepare
from fourfold.measure.quality import Relative
from fourfold.recipe import Recipe
from fourfold.runtime.artefact import Assembly, Part, Setting

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import Candidate

ROOM = 600 << 20
"""Bytes of weights up to which students are trained beside one another, each in a process of its own."""


def original_bytes(job: Job) -> int:
    """Bytes of the original's weights."""
    return sum(p.numel() * p.element_size() for p in job.subject.module.parameters())


def original(job: Job) -> Candidate:
    """The original as a candidate: run better, it may be all that passes."""
    from fourfold.rewrites.compress.combine import Candidate

    root = Candidate("original", "original", Recipe(()), {}, 1.0, 2, module=job.subject.module, root=True, how="the original's weights")
    root.records, root.quality = job.base_search, Relative(1.0, 1.0, 1.0, len(job.base_search))
    return root


def named(candidate: Candidate, setting: Setting) -> str:
    """A point's name."""
    return f"{candidate.name} · {setting.engine} {setting.precision}"


def home(job: Job, candidate: Candidate) -> Path:
    """The folder of a candidate's engine files."""
    return job.folder / "engines" / candidate.name.replace(" ", "-")


def build_point(job: Job, candidate: Candidate, setting: Setting, ready: Made | None = None) -> Point:
    """A candidate built for a setting, with its answers on the search split; rejected, with the reason, where that fails. `ready`: its engine files,
    where they have been made."""
    name = named(candidate, setting)
    part = job.part(candidate.name, candidate.module, candidate, setting)
    made = Point(name, candidate, Assembly(name, [part]), predicted=candidate.cost * cost_ratio(job, setting))
    folder, (raced, files) = home(job, candidate), job.race_files
    if candidate.root and raced == (setting.engine, setting.precision) and files and all(file.is_file() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        ready = Made([Path(shutil.copy2(file, folder)).name for file in files])
    _, reason = prepare(part, job.raced(job.splits.search), folder, job.work.seed, ready)
    if reason:
        made.status, made.reason = "rejected", reason
        return made
    try:
        made.search_records = job.array(f"point:{name}:search", lambda: _answers(job, part, candidate))
    except FourfoldError as error:
        made.status, made.reason = "rejected", error.message
    if made.search_records is not None and not np.isfinite(made.search_records).all():
        made.status, made.reason = "rejected", "answers with NaN or infinity on the search split"
    if made.status == "open" and made.search_records is not None:
        made.search = job.relative(made.search_records, "search")
    return made


def _answers(job: Job, part: Part, candidate: Candidate) -> np.ndarray:
    """Records of a part over the search split. Plain PyTorch answers the same whatever its batch and threads, so all cores answer for it."""
    from fourfold.rewrites.compress.combine import evaluate_with

    if (part.setting.engine, part.setting.precision) != ("torch", "fp32") or part.module is None or part.reencode is not None:
        return part.outputs(job.splits.search, job.task, job.lanes)
    if candidate.root:
        return job.base_search
    return evaluate_with(part.subject, job.task, part.module, job.splits.search, exact=True)


def cost_ratio(job: Job, setting: Setting) -> float:
    """Cost of the original at an engine and precision, relative to its own best, as the last stage of its race found it; 1 where it did not run."""
    found = {
        r["stage"]: float(r["cpu"]["value"])
        for r in job.race_rows
        if r["who"] == "candidate" and (r["engine"], r["precision"]) == (setting.engine, setting.precision)
    }
    return found.get("final", found.get("heat", 1.0))
