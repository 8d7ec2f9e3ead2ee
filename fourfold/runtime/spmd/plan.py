"""A plan over several devices carried out on processes: the stages of `fourfold plan --devices` as an SPMD program, checked and timed.

    done = check("plan/", nproc=8)
    done.run.equal, done.run.seconds, done.run.predicted
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fourfold import plans
from fourfold.errors import ArtefactError, InputError
from fourfold.graph import Graph
from fourfold.program import Captured
from fourfold.runtime.source import RecordedProgram, recapture
from fourfold.runtime.spmd.check import SpmdRun, carried_out, fitting, link_of, pace_of
from fourfold.runtime.spmd.launch import PATIENCE, RankPool
from fourfold.runtime.spmd.lower import lower
from fourfold.runtime.spmd.program import SpmdProgram, StagedProgram
from fourfold.runtime.spmd.stages import StageAsked, staged
from fourfold.sharding.stored import DevicePlan

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.runtime.spmd.link import LinkPrice

QUESTION = "stages"


@dataclass(frozen=True)
class PlanRun:
    """A plan carried out. `link`: α and β between its processes, measured right before; `planned` s of a step by the plan's own machine."""

    plan: DevicePlan
    run: SpmdRun
    link: LinkPrice | None
    planned: float | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return self.run.to_json() | {"planned": self.planned, "link": self.link.to_json() if self.link is not None else None,
                                     "notes": list(self.notes)}


def opened(folder: str | Path, model: object = None, inputs: object = None, trust: Iterable[str] = ()) -> tuple[DevicePlan, Captured, float | None]:
    """(plan, its program captured again, seconds of a step that it foresees). Raises ArtefactError where the folder holds no such plan, or is not of
    this model, and as `runtime.source.recapture` does.
    """
    document = plans.read(folder)
    solution = document.solutions.get(QUESTION)
    if solution is None or "plan" not in solution:
        raise ArtefactError(f"The plan in {document.folder} answers {', '.join(document.solutions)}, and is not for several devices.",
                            "Make one: fourfold plan MODEL --devices 1x2 --out DIR")
    plan = DevicePlan.from_json(cast("Mapping[str, object]", solution["plan"]))
    cost = solution.get("cost")
    return plan, recapture(RecordedProgram.of(document), model, inputs, trust), float(cost) if isinstance(cost, int | float) else None


def program_of(found: Captured, plan: DevicePlan) -> SpmdProgram | StagedProgram:
    """The plan as a program. Raises ArtefactError for names that the graph has not."""
    asked = _asked(found.graph, plan)
    if len(asked) == 1 and plan.microbatches == 1 and asked[0].devices == tuple(range(plan.devices)):
        return lower(found, asked[0].mesh, asked[0].layouts, 0, asked[0].choices)
    return staged(found, asked, plan.microbatches, plan.schedule)


def _asked(graph: Graph, plan: DevicePlan) -> list[StageAsked]:
    number = {name: node for node, name in enumerate(graph.names)}
    leaves: dict[str, list[int]] = {}
    for v, label in enumerate(graph.labels):
        if graph.producer[v] < 0:
            leaves.setdefault(label, []).append(v)
    found = []
    for stage in plan.stages:
        lacking = [name for name in stage.nodes if name not in number]
        if lacking:
            raise ArtefactError(f"The plan places {lacking[0]!r}, which the program does not compute.", "Make the plan again, of this model.")
        layouts = {v: spec for label, spec in stage.stored.items() for v in leaves.get(label, ())}
        choices = {number[name]: dict(choice) for name, choice in stage.choices.items() if name in number}
        found.append(StageAsked(stage.mesh, stage.devices, frozenset(number[name] for name in stage.nodes), layouts, choices))
    return found


def check(folder: str | Path, *, nproc: int | None = None, model: object = None, inputs: object = None, compare: bool = True, repeat: int = 5,
          nodes: int = 1, node_rank: int = 0, address: str | None = None, patience: float = PATIENCE, machine: Machine | None = None,
          trust: Iterable[str] = ()) -> PlanRun:
    """Carry out the plan in `folder` on `nproc` processes (default: as many as it has devices), of which this node starts its share.

    Where the link between the ranks, measured right before, says that collectives hide behind the products that need them, the program is carried out
    with them looped too, and the quicker of the two stands (`runtime.overlap.rewrite`).

    compare: outputs, and of a plan for training gradients, with one process. nodes, node_rank, address, patience: as of `RankPool`. machine: prices
    what a rank computes (default: this one). Raises InputError for another number of processes than the plan's, RankFailure as `RankPool.do` does.
    """
    from fourfold.machine import Machine as Machines
    from fourfold.runtime.overlap.rewrite import gates_of, raced

    plan, found, planned = opened(folder, model, inputs, trust)
    fitting(plan.devices, plan.devices if nproc is None else nproc)
    program = program_of(found, plan)
    given = found.inputs if inputs is None or isinstance(inputs, str | Path) else inputs
    if given is None:
        raise InputError("The plan's inputs are not known.", "Give them: --inputs FILE.npz")
    with RankPool(plan.devices, nodes=nodes, node_rank=node_rank, address=address, patience=patience) as pool:
        link = pace_of(pool, link_of(pool, repeat=3), machine or Machines.here(plan.devices))
        done = carried_out(found, program, given, pool, check=compare, repeat=repeat, learn=plan.train)
        said = ""
        if link is not None and nodes == 1 and isinstance(program, SpmdProgram):                 # nodes would have to agree on what was measured
            rate = (machine or Machines.here(plan.devices)).devices[0].speed("float32")
            done, said = raced(found, done, given, pool, gates_of(link, program.mesh, rate), check=compare, repeat=repeat)
    return PlanRun(plan, predict(found, done, machine, link), link, planned, (*_notes(plan), *([said] if said else [])))


def predict(found: Captured, done: SpmdRun, machine: Machine | None, link: LinkPrice | None) -> SpmdRun:
    """With what was to be expected of its step on this machine."""
    from fourfold.machine import Machine as Machines
    from fourfold.runtime.spmd.predict import predicted

    return replace(done, predicted=predicted(found, done.program, machine or Machines.here(done.ranks), link, done.learn))


def _notes(plan: DevicePlan) -> tuple[str, ...]:
    notes = []
    if any(stage.again for stage in plan.stages):
        notes.append("Activations that the plan computes again are kept here: gradients are the same, the peak is higher.")
    if any(stage.state for stage in plan.stages):
        notes.append("The optimiser's state is not part of a step here, so nothing of it is split.")
    return tuple(notes)


__all__ = ["PlanRun", "check", "opened", "predict", "program_of"]
