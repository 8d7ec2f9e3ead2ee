"""What `fourfold plan --memory` and `fourfold run` of such a plan print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fourfold.cli._print import agreement, emit, table

_DIFFERS, _INTERRUPTED = 4, 130


def planned(model: str, data: object, memory: str, out: Path | None, as_json: bool, options: str = "", **asked: Any) -> int:
    """Plan, write, tell; the exit code. options: what `fourfold run` of the plan needs to be told."""
    from fourfold.jobs.memory import QUESTION, plan_memory
    from fourfold.plans import holds_plan
    from fourfold.report.allocate import size
    from fourfold.report.format import percent, span

    out = out or (Path(model) if holds_plan(model) else Path("plan"))
    document = plan_memory(model, data, memory=memory, out=out, **asked)
    solution = document.solutions[QUESTION]
    if as_json:
        emit({name: value for name, value in solution.items() if name not in ("nodes", "answer")}
             | {"question": QUESTION, "workload": dict(document.workload), "machine": dict(document.machine), "out": str(out)})
        return _INTERRUPTED if solution["interrupted"] else 0
    asked_for = "as little as was found" if solution["limit"] is None else f"of {size(solution['limit'])} asked for"
    print(f"{document.workload['name']}: {document.workload['nodes']:,} ops in {size(solution['peak'])}, {asked_for}: an arena of "
          f"{size(solution['arena'])}" + (f", and {size(solution['outside'])} of temporaries beside it." if solution["outside"] else "."))
    more = solution["seconds"] / solution["once"] - 1 if solution["once"] else 0.0
    price = span if solution["unit"] == "s" else lambda value: f"{value:.4g} J"
    print(f"Plan of {solution['solver']}: {price(solution['cost'])} op by op{f', {percent(more)} more than running each once' if more > 0 else ''}.")
    if solution["interrupted"]:
        print("Interrupted; this is the best so far.")
    print("\nTechniques")
    table([{"technique": row["solver"],
            "arena": "–" if row["peak"] is None else size(row["peak"]),
            "time" if solution["unit"] == "s" else "energy": "–" if row["cost"] is None else price(row["cost"]),
            "solving": f"{row['seconds']:.2f} s", "": row["note"]} for row in solution["table"]])
    print("\n".join(["Why", *(f" · {line}" for line in solution["sentences"])]))
    for note in solution["notes"]:
        print(f"Note: {note}")
    print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))} to {out}."
          + (f" Carry it out with: fourfold run {out} --check{options}" if solution["nodes"]["way"] else ""))
    return _INTERRUPTED if solution["interrupted"] else 0


def carried_out(plan: Path, model: str | None, inputs: object, repeat: int, whole: bool, as_json: bool, trust: Sequence[str] = ()) -> int:
    """Carry a plan of memory out, compare, tell; the exit code: 4 with --check where outputs differ or the limit is not kept."""
    from fourfold.runtime.arena.check import check

    done = check(plan, model=model, inputs=inputs, repeat=repeat, trust=trust)
    code = _DIFFERS if whole and not (done.equal and done.within) else 0
    if as_json:
        emit(done.to_json())
        return code
    from fourfold.report.allocate import size

    print(f"{done.steps:,} steps in one arena, {done.repeated:,} of them ops that ran before.")
    table([{"": "arena", "planned": size(done.planned[0]), "measured": size(done.measured[0])},
           {"": "largest temporary beside it", "planned": size(done.planned[1]), "measured": size(done.measured[1])},
           {"": "peak", "planned": size(sum(done.planned)), "measured": size(sum(done.measured))},
           {"": "limit", "planned": "least" if done.limit is None else size(done.limit), "measured": "kept" if done.within else "NOT kept"},
           {"": "eager", "planned": "", "measured": size(done.eager)}])
    if done.far[1]:
        print(f"{done.fetches:,} fetches from a second memory, of which {size(done.far[0])} of {size(done.far[1])} are used; "
              f"{size(done.copied)} copied both ways in {1e3 * done.link[1]:.3f} ms, {1e3 * done.link[0]:.3f} ms by its stated link.")
    print(f"A run takes {1e3 * done.seconds:.3f} ms, {done.ratio[0]:.3f} [{done.ratio[1]:.3f}, {done.ratio[2]:.3f}] of an eager one "
          f"({1e3 * done.eager_seconds:.3f} ms), by processor time {done.cpu[0]:.3f} [{done.cpu[1]:.3f}, {done.cpu[2]:.3f}]; op by op "
          f"{1e3 * done.predicted:.3f} ms were predicted.")
    beside = f"; the largest temporary outside is {done.worst}'s" if done.worst else ""
    print(f"{done.straight:,} of {done.computing:,} ops write straight into the arena{beside}.")
    agreement(done.outputs, "the eager program's")
    for note in done.notes:
        print(note)
    return code
