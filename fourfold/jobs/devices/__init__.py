"""`fourfold plan --devices 2x4`: a model over several devices, told on one page: capture, the meshes that stages may have, the best layout of the
program on each, the table of stages, the pipeline, what people would have done, save.

Operators inside of a stage and stages against each other are two questions with one cost model (Zheng et al., OSDI 2022). The first is answered
exactly on every mesh (`sharding.intra`), the second exactly for the table that comes of it (`decisions/stages`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold import plans

if TYPE_CHECKING:
    from fourfold.rewrites.compress._bench import ProgressCallback

QUESTION = "stages"


def plan_devices(
    model: object,
    data_or_inputs: object = None,
    *,
    devices: str = "1x2",
    machine: object = "here",
    memory: int | str | None = None,
    train: bool = False,
    microbatches: int = 1,
    schedule: str = "1f1b",
    layers: int | None = None,
    solver: str = "auto",
    budget: float | str = 60.0,
    seed: int = 0,
    dims: Mapping[str, int] | None = None,
    out: str | Path | None = None,
    ledger: str | Path | None = None,
    trust: Iterable[str] = (),
    progress: ProgressCallback | None = None,
) -> plans.Document:
    """Plan `model` over `devices`, "HxM": H hosts of M devices of the machine (or "M": one host).

    model, data_or_inputs, machine, dims, trust: as of `plan`; a model of `zoo.giants` by name too ("gpt:8192x48x64"), without weights. The inputs are
    one microbatch. memory: limit of bytes a device, or "16GiB"; default: the machine's. train: forward and backward, gradients summed over
    `microbatches`, state of Adam. schedule: "1f1b" or "gpipe". layers: how many runs of operations stages are made of. solver: of `stages`, or auto.
    out: folder of the plan. ledger: file that what the plan saves against data parallelism alone is booked in.

    Raises InputError, ModelError or MissingExtra for what cannot be read, Infeasible where nothing fits: the error says by how much.
    """
    from fourfold.jobs.booking import book, may_book
    from fourfold.jobs.devices.layouts import laid_out
    from fourfold.jobs.devices.source import asked_of
    from fourfold.jobs.devices.told import document_of, files_of
    from fourfold.jobs.optimize.state import NullProgress
    from fourfold.jobs.planning import check, names
    from fourfold.workload import seconds

    listener, patience = progress or NullProgress(), seconds(budget)
    check(solver, "latency", QUESTION, ["auto", *names(QUESTION)])
    if ledger is not None:
        may_book(ledger)
    if out is not None:
        plans.may_save(out, [model, data_or_inputs, machine], ["stages.json"], (plans.SCHEDULE, "pipeline", QUESTION))
    listener.stage("capture")
    asked = asked_of(model, data_or_inputs, devices=devices, machine=machine, memory=memory, train=train, microbatches=microbatches,
                     schedule=schedule, layers=layers, dims=dims, seed=seed, trust=trust)
    listener.note(f"{asked.graph.name}: {len(asked.graph):,} ops in {asked.count} layers on {asked.hosts} × {asked.each} devices")
    listener.stage("layouts")
    table = laid_out(asked)
    listener.stage("plan", max(1, int(patience)))
    document = document_of(asked, table, solver, patience, seed, listener, Path(out or "."))
    if out is not None:
        from fourfold.report.devices import write

        plans.store(out, QUESTION, document.solutions[QUESTION], document.workload, document.machine, files_of(asked, table))
        document = plans.read(out)
        write(document, Path(out))
    if ledger is not None:
        book(ledger, QUESTION, document.solutions[QUESTION], document.workload, str(document.machine["name"]))
    return document


__all__ = ["QUESTION", "plan_devices"]
