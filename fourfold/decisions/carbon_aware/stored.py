"""The schedule of jobs that a plan's folder holds, as a problem and an answer again, for `fourfold.plans.verify` and `explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.decisions.carbon_aware.validate import load, verify

if TYPE_CHECKING:
    from fourfold.plans import Document


def rebuild(document: Document) -> tuple[Place, JobHours]:
    """(problem, answer). Raises ArtefactError naming the file that is missing or damaged."""
    problem, schedule, _ = load(document.folder)
    return problem, schedule


def proof(document: Document) -> list[str]:
    """What is wrong with the certificate, in sentences; [] = it proves its bound."""
    return verify(*load(document.folder))


def sentences(solution: Mapping[str, Any]) -> list[str]:
    """What was decided, from the document of `fourfold map`."""
    unit, gap, saving = solution["unit"], solution["gap"], solution["saving"]
    jobs: dict[str, set[str]] = {}
    for row in solution["schedule"]:
        jobs.setdefault(row["job"], set()).add(row["site"])
    homes = {row["name"]: row["home"] for row in solution["jobs"]}
    moved = sum(1 for name, sites in jobs.items() if sites != {homes.get(name)})
    proof = "no valid schedule takes less" if gap <= 1e-9 else f"at most {100 * gap:.2g} % above the best"
    said = [f"{len(jobs):,} job{'s' * (len(jobs) != 1)} at {len(solution['sites'])} sites take {solution['cost']:.6g} {unit}: {proof}."]
    if solution["before"] is not None:
        share = f", {100 * saving:.1f} % saved" if saving is not None else ""
        said.append(f"Run at once at home they would take {solution['before']:.6g} {unit}{share}.")
    said.append(f"{moved:,} of them run{'s' * (moved == 1)} away from home; the mean delay is {solution['delay_h']:.1f} h.")
    busy = [row for row in solution["sites"] if row["job_hours"]]
    said += [f"{row['name']} runs {row['job_hours']:,} job-hours at {row['mean_g_kwh']:.4g} g/kWh on average." for row in busy[:8]
             if row["mean_g_kwh"] is not None]
    return [*said, solution["sentence"]]
