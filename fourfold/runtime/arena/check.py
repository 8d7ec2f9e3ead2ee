"""A plan of memory carried out in one arena and compared: outputs with the eager program's, peak bytes planned beside measured, time against eager.

    found = check("plan/")
    found.equal, found.planned, found.measured, found.within, found.ratio
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fourfold import plans
from fourfold.decisions.rematerialise._far import FarMemory
from fourfold.decisions.rematerialise.problem import Rematerialisation
from fourfold.decisions.rematerialise.stored import QUESTION, NodeCosts
from fourfold.engines.call import Region
from fourfold.engines.region import printed
from fourfold.errors import ArtefactError, InputError
from fourfold.graph import Graph
from fourfold.measure.race import median_ratio
from fourfold.program import Captured
from fourfold.runtime.arena.dry_run import DryRun, allocations, span
from fourfold.runtime.arena.execute import ProgramArena
from fourfold.runtime.arena.layout import laid_out
from fourfold.runtime.arena.ready import Eager, Ready, ready
from fourfold.runtime.local.check import inputs_of, paths
from fourfold.runtime.local.compare import Compared, compared
from fourfold.runtime.source import recapture


@dataclass(frozen=True)
class MemoryPlan:
    """A plan of memory from a folder: the graph, what was captured and how, the answer, what nodes do by themselves, `limit` bytes (None: as few as
    were found) for `arena` bytes and what is allocated beside them.
    """

    graph: Graph
    model: Mapping[str, object]
    capture: Mapping[str, object]
    answer: Rematerialisation
    nodes: NodeCosts
    limit: int | None
    arena: int
    far: FarMemory | None = None

    @classmethod
    def load(cls, folder: str | Path) -> MemoryPlan:
        """Raises ArtefactError where there is none, or it is damaged."""
        document = plans.read(folder)
        solution = document.solutions.get(QUESTION)
        if solution is None:
            raise ArtefactError(f"The plan in {document.folder} answers {', '.join(document.solutions)}, and holds no plan of memory.",
                                "Make one: fourfold plan MODEL --memory 4MiB")
        about = solution.get("workload", document.workload)
        try:
            return cls(document.graph, about["model"], about["capture"], Rematerialisation.from_json(dict(solution["answer"])),
                       NodeCosts.from_json(solution["nodes"]), solution["limit"], int(solution["arena"]),
                       FarMemory.from_json(solution["far"]["memory"]) if solution.get("far") else None)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ArtefactError):
                raise
            raise ArtefactError(f"{document.folder / 'plan.json'} is damaged: {QUESTION}: {type(error).__name__}: {str(error)[:120]}",
                                "Make the plan again: fourfold plan MODEL --memory 4MiB --out DIR") from error


@dataclass(frozen=True)
class ArenaCheck:
    """`outputs` compared with the eager program's. Bytes: `planned`, `measured` (pairs of the arena's highest byte that is used and the largest
    temporary beside it), `limit` (None: none was given), `eager` (most that ATen's allocator held in an eager run). Seconds of a run in the arena
    (medians) and of eager ones in turns with it; the `ratio` of both by the wall clock, and `cpu` by processor time (median, low, high of 90 %).
    `straight` of `computing` ops write straight into the arena. Where there is a second memory: `fetches` steps, `copied` bytes both ways, bytes of
    `far` used and given, and the `link`'s seconds for all copies, planned and measured one by one.
    """

    outputs: tuple[Compared, ...]
    planned: tuple[int, int]
    measured: tuple[int, int]
    limit: int | None
    eager: int
    seconds: float
    eager_seconds: float
    ratio: tuple[float, float, float]
    cpu: tuple[float, float, float]
    predicted: float
    steps: int
    repeated: int
    straight: int
    computing: int
    worst: str
    notes: tuple[str, ...] = ()
    fetches: int = 0
    copied: int = 0
    far: tuple[int, int] = (0, 0)
    link: tuple[float, float] = (0.0, 0.0)

    @property
    def equal(self) -> bool:
        """Whether every output is the eager program's, within rounding of its type."""
        return all(one.equal for one in self.outputs)

    def _second(self) -> dict[str, object]:
        if not self.far[1]:
            return {}
        return {"far": {"fetches": self.fetches, "copied": self.copied, "used": self.far[0], "room": self.far[1],
                        "planned_seconds": self.link[0], "measured_seconds": self.link[1]}}

    @property
    def within(self) -> bool:
        """Whether what was measured stays below the limit, or without one below what was planned."""
        return sum(self.measured) <= (sum(self.planned) if self.limit is None else self.limit)

    def to_json(self) -> dict[str, object]:
        return {"equal": self.equal, "within": self.within, "limit": self.limit,
                "planned": {"arena": self.planned[0], "outside": self.planned[1], "peak": sum(self.planned)},
                "measured": {"arena": self.measured[0], "outside": self.measured[1], "peak": sum(self.measured)},
                "eager": {"peak": self.eager, "seconds": self.eager_seconds}, "seconds": self.seconds, "predicted": self.predicted,
                "ratio": dict(zip(("median", "low", "high"), self.ratio, strict=True)),
                "cpu": dict(zip(("median", "low", "high"), self.cpu, strict=True)), "steps": self.steps, "repeated": self.repeated,
                **self._second(), "straight": self.straight, "computing": self.computing, "worst": self.worst,
                "outputs": [{"name": o.name, "dtype": o.dtype, "absolute": o.absolute, "relative": o.relative, "tolerance": o.tolerance,
                             "equal": o.equal} for o in self.outputs], "notes": list(self.notes)}


def check(plan: MemoryPlan | str | Path, *, model: object = None, inputs: object = None, repeat: int = 15, seed: int = 0,
          trust: Iterable[str] = ()) -> ArenaCheck:
    """Carry out a plan of memory (or the one in a folder) in one arena, and compare. `repeat` runs are timed, in turns with eager ones.

    The model is captured again from the plan's own reference, or is `model` (all that can be captured, or what was captured). Random ops draw by
    `seed`, alike in both. Raises ArtefactError where the model is no longer the one that was planned for, or names code of a package that is not in
    `trust`; InputError where nothing here can run it.
    """
    found = plan if isinstance(plan, MemoryPlan) else MemoryPlan.load(plan)
    if not found.nodes.measured:
        raise InputError("The plan was made for another machine or for JAX, and nothing here runs it in one arena.",
                         "Plan it on this machine, from a torch module or an .onnx file: fourfold plan MODEL --memory 4MiB")
    captured = model if isinstance(model, Captured) else recapture(found, model, inputs, trust)
    given = inputs_of(captured) if inputs is None or isinstance(inputs, str | Path) else inputs
    program = ready(captured)
    arena, eager = arena_of(found, program, given, seed=seed), Eager(program, given, seed)
    original = {v: _kept(one) for v, one in eager.outputs()[0].items()}
    values = arena.run().outputs
    names = paths(found, captured)
    outputs = tuple(compared(names.get(v) or found.graph.labels[v] or f"output {k}", values[v], original[v]) for k, v in enumerate(original))
    ours, theirs = _raced(arena, program, given, repeat)
    highest, beside = arena.touched(), int(arena.outside().max(initial=0)) + arena.stray
    ratio, cpu = (median_ratio(ours[clock], theirs[clock]) for clock in (0, 1))
    facts = found.nodes.straight(found.graph)
    answer, nodes = found.answer, len(found.graph)
    ran, fetched = answer.sequence[answer.sequence < nodes], answer.sequence[answer.sequence >= nodes] - nodes
    copies = np.concatenate([fetched, answer.away])
    link = float(found.far.seconds(found.graph.size[copies]).sum()) if found.far is not None and len(copies) else 0.0
    runs, predicted = len(np.unique(ran)), float(found.nodes.seconds[ran].sum()) + link
    notes = [f"The program draws random numbers ({len(program.random)} ops); each draws by a seed of its own, here and in the eager run."
             ] if program.random else []
    notes += [f"{len(arena.strays)} views can only be copied here; they take {arena.stray:,} bytes outside."] if arena.strays else []
    return ArenaCheck(outputs, (arena.layout.top, int(found.nodes.workspace.max(initial=0))), (highest, beside), found.limit,
                      _peak(program, given), float(np.median(ours[0])), float(np.median(theirs[0])), (ratio.value, ratio.low, ratio.high),
                      (cpu.value, cpu.low, cpu.high), predicted, len(answer), len(ran) - runs, int(facts["straight"] or 0),
                      int(facts["computing"]), facts["worst"], tuple(notes), len(fetched), int(found.graph.size[copies].sum()),
                      (arena.layout.far_top, 0 if found.far is None else found.far.room), (link, arena.transfers() if len(copies) else 0.0))


def arena_of(plan: MemoryPlan, program: Ready, inputs: object, *, poison: bool = False, seed: int = 0) -> ProgramArena:
    """The arena of a plan, of as many bytes as it takes."""
    layout = laid_out(program.graph, plan.answer.sequence, plan.answer.offset, dict(zip(plan.answer.away.tolist(), plan.answer.place.tolist(),
                                                                                        strict=True)))
    nodes = plan.nodes
    return ProgramArena(program, inputs, layout, DryRun(nodes.way, nodes.workspace, nodes.seconds), capacity=plan.arena, poison=poison, seed=seed)


def _kept(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _raced(arena: ProgramArena, program: Ready, inputs: object, repeat: int) -> tuple[np.ndarray, np.ndarray]:
    """(runs in the arena, eager runs): f8[2, repeat] s by the wall clock and of processor time, in turns, after one of each."""
    eager = _plainly(program, inputs)
    found = np.zeros((2, 2, repeat + 1))
    for turn in range(repeat + 1):
        for who, run in enumerate((arena.run, eager)):
            with torch.no_grad():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                found[who, :, turn] = time.perf_counter() - wall, time.process_time() - cpu
    return found[0, :, 1:], found[1, :, 1:]


def _plainly(program: Ready, inputs: object) -> Callable[[], object]:
    """The program as one Python function, a call a line, values dropped after their last reader: as fast as eager torch is."""
    graph, given = program.graph, program.feed(inputs)
    reads = tuple(v for v in given if v not in program.weights)
    nodes = tuple((n, n) for n in range(len(graph)))
    made = tuple(dict.fromkeys(v for v in graph.outputs.tolist() if graph.producer[v] >= 0))
    function = printed(Region(0, 0, (), nodes, reads, tuple(program.weights), made), program.calls, program.weights)
    arguments = [given[v] for v in reads]
    return lambda: function(*arguments)


def _peak(program: Ready, inputs: object) -> int:
    """Most bytes that ATen's allocator holds at a time while the program runs eagerly."""
    function = _plainly(program, inputs)
    with torch.no_grad(), allocations() as seen, span(0):
        function()
    return seen(1)[0]


