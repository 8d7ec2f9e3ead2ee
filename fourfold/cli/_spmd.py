"""What `fourfold run` of a plan over several devices prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.cli._print import emit, table

if TYPE_CHECKING:
    from fourfold.runtime.spmd.plan import PlanRun

_DIFFERS = 4


def carried_out(plan: Path, model: str | None, inputs: object, repeat: int, whole: bool, as_json: bool, trust: Sequence[str] = (), *,
                nproc: int | None = None, nodes: int = 1, node_rank: int = 0, address: str | None = None, patience: float = 30.0) -> int:
    """Carry a plan out on several processes, compare, tell; the exit code: 4 with --check where outputs or gradients differ."""
    from fourfold.runtime.spmd.launch import RankFailure
    from fourfold.runtime.spmd.plan import check

    try:
        done = check(plan, nproc=nproc, model=model, inputs=inputs, compare=whole, repeat=repeat, nodes=nodes, node_rank=node_rank, address=address,
                     patience=patience, trust=trust)
    except RankFailure as failure:
        if failure.log and not as_json:
            print(f"The last lines of rank {failure.ranks[0]}'s log:\n" + "\n".join(f"  {line}" for line in failure.log.splitlines()))
        raise
    code = _DIFFERS if whole and not done.run.equal else 0
    if as_json:
        emit(done.to_json())
    else:
        _tell(done, whole)
    return code


def _tell(done: PlanRun, compared: bool) -> None:
    from fourfold.report.format import size

    run = done.run
    print(f"{run.program.name} on {run.ranks} processes: {len(run.stages)} stage{'s' * (len(run.stages) != 1)}, {done.plan.microbatches} "
          f"microbatch{'es' * (done.plan.microbatches != 1)}, {'forward and backward' if run.learn else 'forward'}.")
    table([{"stage": str(s), "mesh": str(stage.mesh), "steps": f"{len(stage.steps):,}", "collectives": f"{sum(n for n, _ in traffic.values()):,}",
            "bytes": size(sum(b for _, b in traffic.values()))} for s, stage in enumerate(run.stages) for traffic in [stage.traffic(run.learn)]])
    rows = [{"a step": "measured", "wall": _ms(run.seconds), "processor": _ms(run.busy)}]
    if run.predicted is not None:
        told = run.predicted
        rows.insert(0, {"a step": "predicted", "wall": _ms(told.wall), "processor": _ms(told.cpu)})
        rows.append({"a step": "prediction off by", "wall": f"{100 * (told.wall / run.seconds - 1):+.0f} %",
                     "processor": f"{100 * (told.cpu / run.busy - 1):+.0f} %"})
    table(rows)
    if compared:
        worst = max(run.outputs.values(), default=0.0)
        told_of = f"outputs differ by {worst:.1e} at most"
        if run.learn:
            told_of += f", {len(run.gradients)} gradients by {max(run.gradients.values(), default=0.0):.1e}"
        print(f"{'Equal to' if run.equal else 'NOT equal to'} one process: {told_of} (relative).")
    for note in done.notes:
        print(note)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"
