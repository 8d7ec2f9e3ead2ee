"""Engines raced in every region of a plan, and the placement against one process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines import EAGER, of_regions, region_engine
from fourfold.engines.base import RegionJob
from fourfold.errors import Declined, FourfoldError
from fourfold.host import here
from fourfold.runtime.local.compare import unlike
from fourfold.runtime.local.devices import GPU, shares
from fourfold.runtime.local.executor import ONE, PLANNED, Local

if TYPE_CHECKING:
    from fourfold.measure.race import RaceResult
    from fourfold.plans import Plan
    from fourfold.program import Program

SHORT = 1e-4                                                            # s: a shorter region is not worth compiling, a call costs about as much


@dataclass(frozen=True)
class Race:
    """Which engine runs each region soonest on this processor. `engines`: what a Plan keeps. `rows`: one per region and engine, with seconds, ratio
    to eager and its 90 % interval, or why it declined; regions "plan" and "one process" are whole runs.
    """

    engines: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]


def race(plan: Plan, program: Any, inputs: object, *, engines: Sequence[str] | None = None, rounds: int = 21, seconds: float = 600.0,
         folder: Path | None = None, say: Callable[[str], None] = lambda text: None) -> Race:
    """Race `engines` against eager in every region, the dearest first, and a plan on several devices against one process; interleaved, on the wall
    clock.

    An engine is chosen where it is faster than eager beyond doubt (`measure.race`) and answers alike; of several the quickest. One process is used
    unless the planned placement is faster beyond doubt. Regions of a plan on several devices that were predicted to take less than `SHORT` stay
    eager, and no new one is begun after `seconds`. `engines`: all of the program's dialect. Raises what
    `execute` raises.
    """
    rows: list[dict[str, object]] = []
    engines = of_regions(program.dialect) if engines is None else engines
    several = len({int(d) for d in np.unique(plan.place)}) > 1
    mark = {"fingerprint": here().fingerprint}
    if not several:
        chosen = _raced_whole(plan, program, inputs, PLANNED, "plan", engines, rounds, folder, rows, say)
        return Race({"placement": PLANNED, **chosen, **mark}, tuple(rows))
    until = time.monotonic() + seconds
    single = {"placement": ONE, **_raced_whole(plan, program, inputs, ONE, ONE, engines, rounds, folder, rows, say)}
    if program.dialect == "jax":
        return Race({**single, **mark}, tuple(rows))
    spread = {"placement": PLANNED, **_raced_regions(plan, program, inputs, engines, rounds, until, folder, rows, say)}
    with Local(plan, program, inputs, engines=single, folder=folder) as one, Local(plan, program, inputs, engines=spread, folder=folder) as two:
        found = _timed({ONE: one.run, PLANNED: two.run}, ONE, rounds)
    rows += [_row("plan", name, found[name]) for name in (ONE, PLANNED)]
    return Race({**(spread if found[PLANNED].faster("wall") else single), **mark}, tuple(rows))


def _timed(runners: Mapping[str, Callable[[], object]], baseline: str, rounds: int) -> dict[str, RaceResult]:
    """The race; timings of 6 ms and more, and no round begun after a minute, but five are made."""
    from fourfold.measure import race as measured

    return measured.race(runners, baseline=baseline, rounds=rounds, min_time=0.006, deadline=60.0)


def _row(region: str, engine: str, result: RaceResult) -> dict[str, Any]:
    return {"region": region, "engine": engine, "seconds": result.wall_median, "ratio": result.wall.value, "low": result.wall.low,
            "high": result.wall.high, "faster": result.faster("wall"), "why": ""}


def _declined(region: str, engine: str, why: str) -> dict[str, object]:
    return {"region": region, "engine": engine, "seconds": None, "ratio": None, "low": None, "high": None, "faster": False, "why": why}


def _quickest(results: Mapping[str, RaceResult]) -> str:
    better = [name for name, result in results.items() if name != EAGER and result.faster("wall")]
    return min(better, key=lambda name: results[name].wall.value, default=EAGER)


def _raced_whole(plan: Plan, program: Program, inputs: object, placement: str, title: str, engines: Sequence[str], rounds: int, folder: Path | None,
                 rows: list[dict[str, object]], say: Callable[[str], None]) -> dict[str, str]:
    """Of a plan on one device: {"0": engine}."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Local(plan, program, inputs, engines={"*": EAGER}, placement=placement, stamps=False, folder=folder))
        wanted, runners = base.run()[2], {EAGER: base.run}
        for engine in engines:
            say(f"{title}: {engine}")
            try:
                one = stack.enter_context(Local(plan, program, inputs, engines={"*": engine}, placement=placement, stamps=False, folder=folder))
                if why := unlike(plan, one.run()[2], wanted):
                    raise FourfoldError(why)
            except FourfoldError as error:
                rows.append(_declined(title, engine, error.message))
                continue
            runners[engine] = one.run
        found = _timed(runners, EAGER, rounds)
    rows += [_row(title, name, result) for name, result in found.items()]
    return {"0": _quickest(found)}


def _raced_regions(plan: Plan, program: Program, inputs: object, engines: Sequence[str], rounds: int, until: float, folder: Path | None,
                   rows: list[dict[str, object]], say: Callable[[str], None]) -> dict[str, str]:
    """Region → engine of a plan on several devices; every region alone, here, with the threads of its device."""
    import torch

    ready = Local(plan, program, inputs, engines={"*": EAGER}, placement=PLANNED)
    ready.inspect(keep=True)
    cost = {r.number: float(plan.tasks.seconds[list(r.tasks), ready.place[list(r.tasks)]].sum()) for r in ready.regions}
    chosen, threads = {}, shares(plan)
    before = torch.get_num_threads()
    try:
        for region in sorted(ready.regions, key=lambda r: -cost[r.number]):
            name = str(region.number)
            if time.monotonic() > until or plan.system.devices[region.device].kind in GPU or not region.makes or cost[region.number] < SHORT:
                continue
            torch.set_num_threads(threads[region.device])
            given, runners = [ready.kept[v] for v in region.reads], {}
            wanted: object = None
            for engine in (EAGER, *engines):
                say(f"region {name}: {engine}")
                job = RegionJob(region, ready.calls[region.number], {v: ready.weights[v] for v in region.weights}, ready.specs,
                                threads[region.device], ready.file(region, engine), folder)
                try:
                    call = region_engine(engine).build(job)
                    with torch.inference_mode():
                        made = dict(zip(region.makes, call(*given), strict=True))
                    wanted = wanted or made
                    if why := unlike(plan, made, wanted):
                        raise Declined(why)
                except Declined as error:
                    rows.append(_declined(name, engine, error.message))
                    continue
                runners[engine] = _under(call, given)
            found = _timed(runners, EAGER, rounds)
            rows += [_row(name, engine, result) for engine, result in found.items()]
            chosen[name] = _quickest(found)
    finally:
        torch.set_num_threads(before)
    return chosen


def _under(call: Callable[..., object], given: Sequence[object]) -> Callable[[], object]:
    import torch

    def run() -> object:
        with torch.inference_mode():
            return call(*given)

    return run
