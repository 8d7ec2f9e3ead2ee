"""What `fourfold plan --devices` and `fourfold shard MODEL --mesh` print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fourfold.cli._print import emit, progress_mode, table

_INTERRUPTED = 130


def planned(model: str, data: Any, out: Path, as_json: bool, **asked: Any) -> int:
    """Plan, write, tell; the exit code."""
    from fourfold.jobs.devices import QUESTION, plan_devices
    from fourfold.report.format import percent, size, span

    document = plan_devices(model, data, out=out, **asked)
    solution = document.solutions[QUESTION]
    if as_json:
        emit({name: value for name, value in solution.items() if name not in ("answer",)}
             | {"question": QUESTION, "workload": dict(document.workload), "machine": dict(document.machine), "out": str(out)})
        return _INTERRUPTED if solution["interrupted"] else 0
    about = document.workload
    print(f"{about['name']}: {about['nodes']:,} ops in {solution['layers']} layers on {solution['hosts']} × {solution['each']} devices of "
          f"{document.machine['name']}.")
    print(f"Plan of {solution['solver']}: {span(solution['cost'])} a step"
          + (f", at most {percent(solution['gap'])} above the best pipeline of its table." if solution["gap"] else
             ", the best pipeline of its table." if solution["gap"] == 0 else "."))
    if solution["interrupted"]:
        print("Interrupted; this is the best so far.")
    print("\nStages")
    table([{"stage": s, "layers": "–".join(map(str, dict.fromkeys(row["layers"]))), "layout": row["config"], "devices": _ranks(row["devices"]),
            "microbatch": span(row["seconds"]), "a device": size(row["bytes"])} for s, row in enumerate(solution["stages"])])
    print("By hand")
    table([{"plan": row["plan"], "step": "–" if row["cost"] is None else span(row["cost"]),
            "": row["why"] if row["cost"] is None else f"{row['cost'] / solution['cost']:.3g} × this plan"} for row in solution["by_hand"]])
    print("\n".join(["Why", *(f" · {line}" for line in solution["sentences"])]))
    for note in solution["notes"]:
        print(f"Note: {note}")
    print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))} to {out}. Check it with: fourfold plan verify {out}")
    return _INTERRUPTED if solution["interrupted"] else 0


def sharded(model: str, out: Path | None, as_json: bool, progress: str, **asked: Any) -> int:
    """Lay a model out on one mesh, tell; the exit code."""
    from fourfold.jobs.devices.one_mesh import QUESTION, shard_model
    from fourfold.report.format import size, span
    from fourfold.report.terminal import Progress

    mode = progress_mode(progress, as_json)
    with Progress(mode) as shown:
        document = shard_model(model, out=out, progress=shown, **asked)
    solution = document.solutions[QUESTION]
    if as_json:
        emit({name: value for name, value in solution.items() if name != "answer"}
             | {"question": QUESTION, "workload": dict(document.workload), "machine": dict(document.machine)})
        return _INTERRUPTED if solution["interrupted"] else 0
    print(f"{document.workload['name']}: {document.workload['nodes']:,} ops on a mesh {solution['mesh']} of {document.machine['name']}.")
    print("\n".join(solution["sentences"]))
    print("\nLargest tensors")
    table([{"tensor": row["name"], "shape": "×".join(map(str, row["shape"])), "layout": row["spec"] + " + split state" * row["state"],
            "a device": size(row["bytes"])} for row in solution["tensors"][:12]])
    print("Collectives of a forward pass")
    table([{"collective": row["collective"], "axis": row["axis"], "number": f"{row['count']:,}", "bytes": size(row["bytes"]),
            "time": span(row["seconds"])} for row in solution["collectives"]] or [{"": "none"}])
    for note in solution["notes"]:
        print(f"Note: {note}")
    if out is not None:
        print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))} to {out}. Check it with: fourfold plan verify {out}")
    return _INTERRUPTED if solution["interrupted"] else 0


def _ranks(ranks: list[int]) -> str:
    """"0–3" for those that follow one another."""
    whole = list(range(ranks[0], ranks[-1] + 1)) == ranks if ranks else False
    return f"{ranks[0]}–{ranks[-1]}" if whole and len(ranks) > 1 else ", ".join(map(str, ranks))
