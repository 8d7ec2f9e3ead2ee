"""The plan job, told on one page: capture the program, read the machine, decide groups, devices and order together, say why, save.

`plan` hands each room what it needs, as `optimize` does; its parts are `fourfold.jobs.planning`, and what it returns is `fourfold.plan.Plan`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from fourfold.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fourfold.plans import Document, Plan


@overload
def plan(
    model: object, data_or_inputs: object = None, *, memory: None = None, far: None = None, machine: object = "here", objective: str = "latency",
    solver: str = "auto", train: bool = False, budget: float | str = 60.0, evaluations: int | None = None, seed: int = 0,
    dims: Mapping[str, int] | None = None, finetune: bool = False, out: str | Path | None = None, ledger: str | Path | None = None,
    trust: Iterable[str] = (), progress: object = None,
) -> Plan: ...  # fmt: skip
@overload
def plan(
    model: object, data_or_inputs: object = None, *, memory: int | str, far: str | None = None, machine: object = "here", objective: str = "latency",
    solver: str = "auto", train: bool = False, budget: float | str = 60.0, evaluations: int | None = None, seed: int = 0,
    dims: Mapping[str, int] | None = None, out: str | Path | None = None, ledger: str | Path | None = None, trust: Iterable[str] = (),
    progress: object = None,
) -> Document: ...  # fmt: skip
def plan(
    model: object,
    data_or_inputs: object = None,
    *,
    memory: int | str | None = None,
    far: str | None = None,
    machine: object = "here",
    objective: str = "latency",
    solver: str = "auto",
    train: bool = False,
    budget: float | str = 60.0,
    evaluations: int | None = None,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    finetune: bool = False,
    out: str | Path | None = None,
    ledger: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: Any = None,
) -> Plan | Document:
    """Decide which ops of `model` run as one, on which device, and in which order.

    model: a Hugging Face style folder, "package.module:factory", an nn.Module, an .onnx or .pt2 file, a JAX function or "package.module:function".
    data_or_inputs: example inputs (a tensor, a tuple, a mapping by name), an .npz file of them, or data as `optimize` reads it; None: made from the
    model's configuration. dims: sizes by name ({"batch": 8, "sequence": 128}). machine: "here", a machine file, a shipped system ("p100x4") or a
    Machine. objective: latency (s a step), throughput (s between steps, pipelined), energy (J) or memory (B at the fullest device). train: forward
    and backward together. budget: seconds, or "10min", for `solver`; `evaluations` stops it alike on every machine. finetune: let a learned solver
    train on this one graph. out: folder for the plan, trace.json and plan.html. ledger: file that what the decision saves is booked in (the
    Machine lever). trust: packages whose code an artefact given as `model` may run, as in `load`.
    memory: a limit ("4MiB", bytes, or "min") asks another question: the order of the ops, which of them run again, and where each value stands in one
    arena (`fourfold.jobs.memory.plan_memory`); the answer is the plan's document. far: a second memory for it, "64MiB@8GB/s".

    Ctrl-C while it searches hands back the best so far (`plan.interrupted`). Raises InputError, ModelError or MissingExtra for what cannot be read,
    ArtefactError for what is not trusted, Infeasible where the program fits no device or not all of them (which op, by how many bytes).
    """
    if memory is None and far is not None or memory is not None and finetune:
        raise InputError("memory is a question of its own: it takes no finetune, and far belongs to it.", "Give memory with far, without finetune.")
    if memory is not None:
        from fourfold.jobs.memory import plan_memory

        return plan_memory(model, data_or_inputs, memory=memory, machine=machine, solver=solver, train=train, budget=budget, evaluations=evaluations,
                           seed=seed, dims=dims, far=far, objective=objective, out=out, ledger=ledger, trust=trust, progress=progress)
    from fourfold.decisions.schedule.problem import Schedule
    from fourfold.jobs.booking import book, may_book
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.jobs.planning import QUESTION, check, decide, dispatched
    from fourfold.jobs.planning import machine as system_of
    from fourfold.plans import SCHEDULE, Plan, may_save
    from fourfold.report.graph import write
    from fourfold.report.sentences import sentences
    from fourfold.runtime.source import read
    from fourfold.workload import seconds

    listener, patience, solver = progress or NullProgress(), seconds(budget), solver.removeprefix(f"{QUESTION}/")
    check(solver, objective)
    if ledger is not None:
        may_book(ledger, objective)
    if out is not None:                                                # before hours of work, not after
        may_save(out, [model, data_or_inputs, machine])
    system, notes = system_of(machine)                                 # before the model is captured, which takes longer
    listener.stage("capture")
    source = read(model, data_or_inputs, train=train, dims=dims, seed=seed, trust=trust)
    graph = source.captured.graph
    system, more = dispatched(system, source.captured)
    listener.note(f"{graph.name}: {len(graph):,} ops on {system.name}")
    problem = Schedule(graph, system, objective)
    found = decide(problem, solver, budget=patience, evaluations=evaluations, seed=seed, finetune=finetune, listener=listener)
    best = found.solution
    made = Plan(graph, system, objective, best.answer.group, best.answer.place, best.answer.priority, best.solver, best.cost, best.unit,
                before=best.before, why=best.why, bound=best.bound, gap=best.gap, seconds=best.seconds, evaluations=best.evaluations, seed=seed,
                table=tuple(found.table), model=source.model, capture=source.capture,
                sentences=tuple(sentences(problem, best.answer, problem.baseline())),
                notes=(*notes, *more, *source.captured.note, *([best.note] if best.note else [])), interrupted=found.interrupted)
    if out is not None:
        made.save(out)
        write(made, Path(out))
    if ledger is not None:
        solution = {name: getattr(made, name) for name in ("solver", "cost", "unit", "before", "why", "hash")}
        book(ledger, SCHEDULE, solution, {"name": graph.name, "hash": graph.hash}, system.name)
    return made
