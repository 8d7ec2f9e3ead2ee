"""Every job that decides books what its decision saves: a row of a ledger (`fourfold/ledger/decisions.py`) with before, after, lever and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold import plans
from fourfold.errors import InputError
from fourfold.ledger import decisions
from fourfold.units import Quantity

if TYPE_CHECKING:
    from fourfold.jobs.map import ShiftingPlan

_SCALE = {"ms": (1e-3, "s"), "s": (1.0, "s"), "J": (1.0, "J")}
_METHOD = "predicted: roofline and simulator"


def may_book(path: str | Path, objective: str = "") -> Path:
    """The path, where a decision may be booked. Raises InputError or ArtefactError otherwise (`ledger.decisions.may_book`), and for memory, whose
    bytes are no cost of a run."""
    if objective == "memory":
        raise InputError("--ledger books time or energy of a run; bytes of memory are neither.", "Leave it out, or choose another objective.")
    return decisions.may_book(path)


def book(path: str | Path, question: str, solution: Mapping[str, Any], workload: Mapping[str, object], machine: str) -> dict[str, object]:
    """Book a plan's solution on the Machine lever: its cost and the default's, predicted, in seconds (or joules). Evidence is the solution's id."""
    scale, unit = _SCALE[solution["unit"]]
    before, after = (None if value is None else Quantity(scale * value, unit, "modelled", method=_METHOD)
                     for value in (solution["before"], solution["cost"]))
    return decisions.book(path, "machine", f"{question} by {solution['solver']} on {machine}", job="plan", question=question,
                          subject=str(workload["hash"]), name=str(workload["name"]), evidence=solution["hash"], before=before, after=after,
                          why=f"the default is {solution['why']}" if before is None else "")


def book_memory(path: str | Path, solution: Mapping[str, Any], workload: Mapping[str, object], machine: str) -> dict[str, object]:
    """Book where buffers stand on the Machine lever: bytes needed, and by the baseline before. Bytes are no cost of a run, so there is no factor."""
    before, after = (None if value is None else Quantity(value, "B", "counted", method="highest address in use")
                     for value in (solution["before"], solution["cost"]))
    return decisions.book(path, "machine", f"allocate by {solution['solver']} in {machine}", job="allocate", question="allocate",
                          subject=str(workload["hash"]), name=str(workload["name"]), evidence=solution["hash"], before=before, after=after,
                          why="bytes of memory are no cost of a run", counts=False)


def book_arena(path: str | Path, solution: Mapping[str, Any], workload: Mapping[str, object], machine: str) -> dict[str, object]:
    """Book order, recomputation and offsets together on the Machine lever: the peak of storing all values before, the plan's after. Bytes are no cost
    of a run, so there is no factor; what the plan costs beyond running each op once is in the words."""
    peaks, once = solution["peaks"], solution["once"] * solution.get("watts", 1.0)
    more = solution["cost"] / once - 1 if once else 0.0
    before, after = (None if value is None else Quantity(value, "B", "counted", method="highest address in use, and the largest temporary")
                     for value in (None if peaks["offsets"] is None else peaks["offsets"] + solution["outside"], solution["peak"]))
    return decisions.book(path, "machine", f"rematerialise by {solution['solver']} on {machine}", job="plan", question="rematerialise",
                          subject=str(workload["hash"]), name=str(workload["name"]), evidence=solution["hash"], before=before, after=after,
                          why=f"bytes of memory are no cost of a run; the plan's ops cost {100 * max(0.0, more):.1f} % more "
                              f"{'energy' if solution['unit'] == 'J' else 'time'}", counts=False)


def book_jobs(path: str | Path, plan: ShiftingPlan) -> dict[str, object]:
    """Book where and when jobs run on the Map lever: kg of CO2e against running at home at once. Evidence is the plan's id."""
    problem, found = plan.problem, plan.solution
    known = found.before is not None
    kg = problem.bill(problem.baseline())["kg"] if known else 0.0
    signal = problem.signal
    before = Quantity(kg, "kgCO2e", "modelled", signal=signal, method="energy × hourly intensity, at home at once") if known and kg == kg else None
    after = Quantity(problem.bill(found.answer)["kg"], "kgCO2e", "modelled", signal=signal, method="energy × hourly intensity, as planned")
    return decisions.book(path, "map", f"{found.solver} over {len(problem.sites)} sites", job="map", question="carbon_aware",
                          subject=plan.subject, name=f"{len(problem.names):,} jobs", evidence=plan.id, before=before, after=after,
                          why=f"running now is {found.why}" if before is None else "")


def book_hall(path: str | Path, document: Mapping[str, Any]) -> dict[str, object]:
    """Book what the best means of a hall study come to on the Mechanization lever: energy of the hall before / after. Evidence: the study's id."""
    best = document["together"]
    hall = document["hall"]
    return decisions.book(path, "mechanization", ", ".join(best["means"]) if best else "nothing", job="hall", question="datacenter",
                          subject=plans.identify(hall), name=f"hall of {hall['it_kw']:g} kW", evidence=plans.identify(document),
                          factor=Quantity.from_json(best["factor"]) if best else None, why="" if best else "no means saves anything")
