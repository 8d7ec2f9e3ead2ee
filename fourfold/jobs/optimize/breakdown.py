"""The account: joules of the original by the best meter there is, and what each rung from it to the chosen point saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold.jobs.optimize.final_race import Point, prepare
from fourfold.jobs.optimize.points import home, named
from fourfold.registry import of_precision
from fourfold.runtime.artefact import Assembly
from fourfold.runtime.service import ORIGINAL, Runner, race_services, runner

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrites.compress.combine import Candidate


SEARCHED, UNSEEN = "raced on the search split", "raced on the unseen split"     # what a step's cost rests on


def ladder(job: Job, measure: bool = True) -> None:
    """Joules of the original by the best meter there is, and the ladder of measured whole-run costs from the original to the chosen point. `measure`:
    race what stands between two steps and was not raced; without it, such steps are told together."""
    job.listener.stage("keeping the account", 0)
    job.energy = job.journal.once("energy", lambda: _energy(job))
    if job.best is not None:
        end = job.best.timing.cpu.value if job.best.timing else 0.0      # an early answer may be timed again, and then ends elsewhere
        key = f"ladder:{job.best.name}:{end!r}"
        job.ladder = job.journal.once(f"{key}:steps" if measure else key, lambda: _climb(job, measure))


def _energy(job: Job) -> dict[str, object]:
    """Joules per example of the original, over about two seconds of unseen rows; with interval, grade, method, boundary, and why no better meter."""
    from fourfold.measure.power import window

    whole, examples = Assembly("original", [job.signed("original", job.subject.module)]), job.served_rows(job.splits.test)
    rows = np.random.default_rng(job.work.seed).permutation(len(examples))
    calls = [np.sort(part) for part in np.array_split(rows, max(1, len(rows) // 128))]
    ready = [runner(whole, examples, part, job.task, job.options.max_length, job.work.objective == "latency") for part in calls]
    ready[0]()
    seen, began = 0, time.perf_counter()
    with window() as used:
        for run, part in zip(ready, calls, strict=True):
            run()
            seen += len(part)
            if time.perf_counter() - began > 2.0:
                break
    joules = used.joules
    assert joules is not None
    per = {"value": joules.value / seen, "low": (joules.low or joules.value) / seen, "high": (joules.high or joules.value) / seen}
    return {
        "per_example": per["value"],
        "per_cpu_second": joules.value / max(used.cpu, 1e-9),
        "grade": joules.grade,
        "method": joules.method,
        "boundary": joules.boundary,
        **per,
        "why": used.why,
    }


def _climb(job: Job, measure: bool) -> list[dict[str, object]]:
    """Steps (lever, technique, title, before, after, evidence, point) whose costs are all relative to the original at its best, and end at the chosen
    point's.

    Order: structure removed, matrices shrunk (or what else the candidate's technique did), engine in fp32, precision in that engine, cascade. So the
    engine's part is what the same numbers cost elsewhere (Machine), and the precision's what fewer bits save in one engine (Model). A state between
    two steps that did not race with the points is raced here; one that cannot be built leaves its two steps together, with the reason.
    """
    best = job.best
    assert best is not None
    first = best.candidate.members[0] if best.candidate.members else best
    candidate = first.candidate
    states = _states(job, first, measure)
    steps: list[BreakdownStep] = []
    trained = states.get(TRAINED)
    if "packed" in candidate.extra:
        steps = _packed(job, first)
    elif candidate.structured and trained is not None:
        if (removed := states.get(REMOVED)) is not None:
            steps.append(BreakdownStep("model", "layer_removal", "blocks and sub-layers removed", removed))
        steps.append(BreakdownStep("model", "matrix_pruning", "heads and neurons removed", trained))
    elif candidate.step and (trained is not None or not candidate.alone):
        steps.append(BreakdownStep("model", candidate.techniques[0], candidate.step, trained or _raced(first)))
    if candidate.alone and "packed" not in candidate.extra and (first.setting.engine, first.setting.precision) != BASE:
        steps += _run_otherwise(first, states.get(CARRIED))
    if best is not first:
        steps.append(BreakdownStep("model", best.candidate.techniques[0], "unsure answers handed to a dearer member", _raced(best)))
    if steps:
        steps[-1] = replace(steps[-1], state=_raced(best))               # in energy, whatever the objective was
    rows, before = [], 1.0
    for step in steps:
        state = step.state
        rows.append({"lever": step.lever, "technique": step.technique, "title": step.title, "before": before, "after": state.cost,
                     "low": state.low, "high": state.high, "evidence": "; ".join(filter(None, (state.evidence, step.note))), "point": state.point})
        before = state.cost
    return rows


def _packed(job: Job, first: Point) -> list[BreakdownStep]:
    """Of packed weights: their parent's structure, its engine with the weights as they were, then the fewer bits; what did not race is left out."""
    candidate, parent, engine = first.candidate, first.candidate.extra["packed"], first.setting.engine
    raced = {(p.setting.engine, p.setting.precision): p for p in job.points if p.candidate is parent and p.timing is not None}
    steps = []
    if parent.structured and BASE in raced:
        steps.append(BreakdownStep("model", "matrix_pruning", "blocks, heads and neurons removed", _raced(raced[BASE])))
    carried = _raced(raced[engine, "fp32"]) if (engine, "fp32") in raced else _alone(job, (engine, "fp32")) if parent.root else None
    if carried is not None and engine != BASE[0]:
        steps.append(BreakdownStep("machine", "engine", f"{engine} fp32", carried))
    note = "" if carried is not None else f"with the engine: {engine} fp32 was not raced"
    return [*steps, BreakdownStep("model", candidate.techniques[-1], candidate.step, _raced(first), note)]


def _run_otherwise(first: Point, carried: CostState | None) -> list[BreakdownStep]:
    """From PyTorch in fp32 to the point's engine and precision: two steps where `carried`, the state of its engine in fp32, is known."""
    engine, precision = first.setting.engine, first.setting.precision
    end = _raced(first)
    if precision == "fp32":
        return [BreakdownStep("machine", "engine", f"{engine} fp32", end)]
    if engine == BASE[0]:
        return [BreakdownStep("model", of_precision(), f"{engine} {precision}", end)]
    if carried is None or carried.why:
        why = carried.why if carried is not None else "not raced yet"
        return [BreakdownStep("model", of_precision(), f"{engine} {precision}", end, f"engine and precision together: {engine} fp32 was {why}")]
    return [BreakdownStep("machine", "engine", f"{engine} fp32", carried), BreakdownStep("model", of_precision(), f"{precision} in {engine}", end)]


@dataclass(frozen=True)
class CostState:
    """A whole-run cost (processor time relative to the original at its best) with its 90 % interval, what it rests on, and the raced point that has
    it (None where it raced for this account alone); or why it is not known."""

    cost: float
    low: float | None = None
    high: float | None = None
    evidence: str = ""
    point: str | None = None
    why: str = ""


@dataclass(frozen=True)
class BreakdownStep:
    """One step of the ladder, and the state that it ends in."""

    lever: str
    technique: str
    title: str
    state: CostState
    note: str = ""


BASE = ("torch", "fp32")
PATIENCE = 10.0                                                         # s that a build for this account alone may take beyond the budget
REMOVED, TRAINED, CARRIED = "removal", "trained", "carried"              # states: sub-layers gone; the structure in PyTorch fp32; in its engine, fp32


def _raced(point: Point) -> CostState:
    """Its processor time, whatever the objective is."""
    if point.timing is None:
        return CostState(point.predicted, evidence="predicted", point=point.name)
    cpu = point.timing.cpu
    return CostState(cpu.value, cpu.low, cpu.high, SEARCHED if point.test is None else UNSEEN, point.name)


def _states(job: Job, first: Point, measure: bool) -> dict[str, CostState]:
    """The states between the original and `first`: those that raced as points, and (`measure`) the others, raced here."""
    candidate, engine, precision = first.candidate, first.setting.engine, first.setting.precision
    wanted: dict[str, tuple[str, str]] = {}
    if "packed" in candidate.extra:
        return {}
    if not candidate.root and candidate.alone:
        wanted[TRAINED] = BASE
    if candidate.alone and engine != BASE[0] and precision != "fp32":
        wanted[CARRIED] = (engine, "fp32")
    found = {state: _raced(p) for state, pair in wanted.items() for p in job.points
             if p.candidate is candidate and (p.setting.engine, p.setting.precision) == pair and p.timing}
    if CARRIED in wanted and CARRIED not in found and candidate.root and not measure and (alone := _alone(job, wanted[CARRIED])) is not None:
        found[CARRIED] = alone
    if not measure:
        return found
    extra: dict[str, Assembly] = {}
    for state in wanted.keys() - found.keys():
        built = _built(job, first, wanted[state])
        if isinstance(built, str):
            found[state] = CostState(0.0, why=built)
        else:
            extra[state] = built
    if candidate.structured and (removal := _removal(job, candidate)) is not None:
        extra[REMOVED] = removal
    found |= _race(job, extra)
    return {state: one for state, one in found.items() if state == CARRIED or not one.why}


def _alone(job: Job, pair: tuple[str, str]) -> CostState | None:
    """The original's cost at an engine and precision in the race of its back ends, which had no service around them; None where it did not run."""
    rows = {r["stage"]: r["cpu"] for r in job.race_rows if r["who"] == "candidate" and (r["engine"], r["precision"]) == pair}
    cpu = rows.get("final") or rows.get("heat")
    if cpu is None:
        return None
    return CostState(float(cpu["value"]), float(cpu["low"]), float(cpu["high"]), "raced as a back end, without the service around it")


def _built(job: Job, first: Point, pair: tuple[str, str]) -> Assembly | str:
    """The point's structure with another engine and precision, at the settings of its own; or why that cannot be built, in words."""
    candidate = first.candidate
    seconds = {(r["engine"], r["precision"]): float(r["prepared_s"]) for r in job.race_rows}.get(pair, 0.0 if pair == BASE else PATIENCE / 2)
    if job.deadline.over or seconds > max(job.left(), PATIENCE):
        return "not built for lack of time"
    setting = replace(first.setting if pair != BASE else job.base_setting, engine=pair[0], precision=pair[1])
    part = job.part(named(candidate, setting), candidate.module, candidate, setting)
    _, reason = prepare(part, job.raced(job.splits.search), home(job, candidate), job.work.seed)
    return f"not built ({reason})" if reason else Assembly(part.name, [part])


def _removal(job: Job, candidate: Candidate) -> Assembly | None:
    """The original with the candidate's missing blocks and sub-layers gone and everything else at full size; None where none is missing."""
    from fourfold.rewrites.compress.combine import Candidate, prune

    assert job.root is not None
    shape = {i: 0 for i, n in candidate.shape.items() if n == 0}
    if not shape:
        return None
    module, recipe, kept = prune(job.root, shape, mend=False)
    variant = Candidate(REMOVED, "network", recipe, shape, 1.0, kept=kept, module=module, structured=True)
    return Assembly(REMOVED, [job.signed(REMOVED, module, variant)])


def _race(job: Job, extra: Mapping[str, Assembly]) -> dict[str, CostState]:
    """Each assembly's cost relative to the original's, from one race on the unseen split."""
    if not extra:
        return {}
    whole = Assembly(ORIGINAL, [job.signed(ORIGINAL, job.subject.module)])
    try:
        found = race_services(
            {ORIGINAL: Runner(whole), **{state: Runner(one) for state, one in sorted(extra.items())}}, job.served_rows(job.splits.test), job.task,
            seconds=max(3.0, 0.02 * job.work.budget) * (1 + len(extra)) / 2, seed=job.work.seed, max_length=job.options.max_length,
        )  # fmt: skip
    finally:
        for assembly in (whole, *extra.values()):
            for part in assembly.parts:
                part.close()
    costs = {state: found[state].result.cpu for state in extra}
    return {state: CostState(cpu.value, cpu.low, cpu.high, f"{UNSEEN}, for this account") for state, cpu in costs.items()}
