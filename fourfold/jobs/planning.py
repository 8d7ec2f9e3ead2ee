"""How a plan is made: the machine, and the solvers asked in turn.

`fourfold/jobs/plan.py` puts these together with the report into `fourfold.plan`, `fourfold/jobs/pipeline.py` for the question of that name.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.decisions.schedule.problem import OBJECTIVES
from fourfold.errors import FourfoldError, InputError, MissingExtra
from fourfold.machine import Machine
from fourfold.plans import amount
from fourfold.problem import Problem, Solution, Watch, gap
from fourfold.registry import names as known_names
from fourfold.registry import technique
from fourfold.solvers.compare import ENDLESS, SolverRow, entries
from fourfold.units import Quantity

if TYPE_CHECKING:
    from fourfold.program import Captured

COMPARED = ("default", "expert", "heft")                                # asked besides, so that the table says what the answer is worth
QUESTION = "schedule"
_EXTRAS = {"pymetis": "place"}
_GRACE = 5.0                                                            # s that comparisons may take beyond a tenth of the budget


# ---- the machine

ROUGH = ("This machine was calibrated quickly, without large sizes: what is predicted may be 0.4 to 1.5 times what is measured. "
         "For closer figures: fourfold calibrate")
"""What a quick calibration deserves: eager torch took up to 2.4 times what was predicted for models that nothing was fitted to."""


def dispatched(system: Machine, captured: Captured) -> tuple[Machine, list[str]]:
    """(the system as this program finds it, what to know of that). JAX takes far longer than torch to dispatch an op that is not compiled, so on this
    machine its dispatch is timed here and now, and every op costs that much at least.
    """
    if captured.program.dialect != "jax" or not system.local:
        return system, []
    import jax  # type: ignore[import-not-found]

    x, took = jax.numpy.ones(8), []
    for _ in range(60):
        began = time.perf_counter()
        for primitive in (jax.lax.add_p, jax.lax.mul_p, jax.lax.max_p, jax.lax.sub_p):
            primitive.bind(x, x)
        took.append((time.perf_counter() - began) / 4)
    low, call, high = (float(q) for q in np.quantile(took[10:], [0.05, 0.5, 0.95]))
    timed = Quantity(call, "s", "measured", low, high, source="jax's dispatch, timed when the plan was made")
    devices = tuple(replace(device, launch=max(device.launch, call),
                            efficiency={family: replace(one, launch=max(device.launch if one.launch is None else one.launch, call))
                                        for family, one in device.efficiency.items()})
                    for device in system.devices)
    changed = {f"{new.name}.launch": timed for old, new in zip(system.devices, devices, strict=True) if new.launch != old.launch}
    changed |= {f"{new.name}.efficiency.{family}.launch": timed for old, new in zip(system.devices, devices, strict=True)
                for family, one in new.efficiency.items() if one.launch != old.efficiency[family].launch}
    note = f"JAX takes {1e6 * call:.0f} µs to dispatch an op, as timed now: every task is priced so, also those that XLA would join."
    return replace(system, devices=devices, figures={**system.figures, **changed}), [note]


def machine(ref: Any) -> tuple[Machine, list[str]]:
    """(the system, what to know of it): "here", a TOML file, a shipped name, or a Machine. Raises InputError as `Machine.read` does."""
    if isinstance(ref, Machine):
        return ref, []
    system = Machine.read(ref)
    if str(ref) != "here" or system.local and any(figure.grade == "measured" for figure in system.figures.values()):
        from fourfold.jobs.calibrate import QUICK

        rough = str(ref) == "here" and any((figure.source or "").endswith(f", {QUICK}") for figure in system.figures.values())
        return system, [ROUGH] if rough else []
    why = "was measured on another processor" if Path(".fourfold/machine.toml").is_file() else "is not there"
    return system, [f"This machine is not calibrated (.fourfold/machine.toml {why}): its figures are assumed. Measure them: fourfold calibrate"]


# ---- the solvers

def names(question: str = QUESTION) -> list[str]:
    """Solvers that answer the question, by name."""
    return sorted(known_names(question))


def check(solver: str, objective: str, question: str = QUESTION, known_solvers: Sequence[str] = (),
          objectives: Sequence[str] = tuple(OBJECTIVES)) -> None:
    """Raises InputError for a solver or an objective that there is not, MissingExtra where a solver's package is not installed."""
    solver = solver.removeprefix(f"{question}/")
    for what, given, known in (("solver", solver, list(known_solvers) or names(question)), ("objective", objective, list(objectives))):
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            raise InputError(f"There is no {what} {given!r}.", (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}.")
    for need in technique(f"{question}/{solver}").needs if solver in names(question) else ():
        if importlib.util.find_spec(need.split(".")[0]) is None:
            extra = _EXTRAS.get(need)
            raise MissingExtra(f"The solver {solver} needs {need}, which is not installed.",
                               f"Install it: pip install 'fourfold[{extra}]'" if extra else f"Install it: pip install {need}")


@dataclass
class Decided:
    """The best answer, what every solver gave, and whether Ctrl-C cut it short."""

    solution: Solution[Any]
    table: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False


def decide(problem: Problem[Any], solver: str = "auto", *, budget: float = 60.0, evaluations: int | None = None, seed: int = 0,
           finetune: bool = False, listener: Any = None, question: str = QUESTION, compared: Sequence[str] = COMPARED,
           best: bool = False) -> Decided:
    """Ask `solver` with the `budget` (s) for the plan, and before it those `compared` for the table, with a tenth each (`auto` asks those itself).
    `best`: the cheapest answer of all stands, whoever gave it; after a Ctrl-C nobody else is asked.

    What those take beyond a tenth in all is taken off the solver's share, down to a quarter. `decide.solve` examines each. Where `solver` finds no
    plan that fits, the cheapest of the others stands in, and the note says so.

    Raises Infeasible where nobody finds a plan that fits, InputError where `solver` declines, and KeyboardInterrupt on a second Ctrl-C.
    """
    asked: dict[str, SolverRow[object]] = {}
    rows: dict[str, dict[str, object]] = {}
    shown, told = 0, -math.inf

    def tell(elapsed: float) -> None:
        nonlocal shown
        now = min(int(elapsed), int(budget))
        if listener is not None and now > shown:
            listener.advance(now - shown)
            shown = now

    def ask(names: list[str], seconds: float) -> None:
        seconds = seconds if evaluations is None else budget            # evaluations stop it, alike on every machine
        if best and watch.stopped and solutions():
            return
        for one in entries(problem, {name: _made(name, finetune, question) for name in names}, seconds, (seed,),
                           evaluations=ENDLESS if evaluations is None else evaluations):
            asked[one.solver] = one
            if (found := one.solution) is None:
                rows[one.solver] = _row(one.solver, None, note=one.row()["why"], question=question)
                continue
            for row in found.evidence.get("table", ()):
                rows[row["solver"]] = _row(row["solver"], row["cost"], row["seconds"], row["evaluations"], None, row["note"], question)
            rows[one.solver] = _row(one.solver, found.cost, found.seconds, found.evaluations, found.gap, found.note, question)
            if listener is not None:
                least = cheapest()
                listener.best(f"{amount(least.cost, least.unit)} ({least.solver})")
            if best and watch.stopped:
                return

    def solutions() -> list[Solution[object]]:
        return [one.solution for one in asked.values() if one.solution is not None]

    def cheapest() -> Solution[Any]:
        return min(solutions(), key=lambda found: found.cost)

    def better(cost: float) -> None:
        nonlocal told
        if listener is not None and time.monotonic() - told >= 1.0:     # a line a second is enough
            told = time.monotonic()
            listener.best(amount(cost, problem.unit))

    began = time.monotonic()
    if listener is not None:
        listener.stage(question, max(1, int(budget)))
    with Watch(tell, better=better) as watch:
        ask([one for one in compared if solver not in (one, "auto")], 0.1 * budget)
        ask([solver], max(0.25 * budget, min(budget, 1.1 * budget + _GRACE - (time.monotonic() - began))))
        failed = asked[solver].error if solver in asked else None
        if isinstance(failed, FourfoldError) and failed.exit_code == 2 and not (best and solutions()):
            raise failed
        if failed is not None:
            ask([name for name in compared if name not in rows], 0.1 * budget)
    if failed is not None and not solutions():
        raise failed
    chosen = (None if best or solver not in asked else asked[solver].solution) or cheapest()
    if isinstance(failed, FourfoldError) and not best:
        chosen = replace(chosen, note=f"{solver} gave no plan ({failed.message.rstrip('.')}); this is {chosen.solver}'s.")
    bounds = [one.bound for one in solutions() if one.bound is not None]
    bound = min(max(bounds), chosen.cost) if bounds else None
    return Decided(replace(chosen, bound=bound, gap=gap(chosen.cost, bound)), list(rows.values()), watch.stopped)


def _made(name: str, finetune: bool, question: str) -> Any:
    import inspect

    kind = technique(f"{question}/{name}")
    return kind(finetune=True) if finetune and "finetune" in inspect.signature(kind).parameters else kind()


def _row(name: str, cost: float | None, seconds: float = 0.0, evaluations: int = 0, above: float | None = None, note: str = "",
         question: str = QUESTION) -> dict[str, Any]:
    title = technique(f"{question}/{name}").title if name in names(question) else name
    return {"solver": name, "title": title, "cost": cost, "seconds": seconds, "evaluations": evaluations, "gap": above, "note": note}
