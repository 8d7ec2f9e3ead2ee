"""`fourfold plan`: which ops of a model run as one, on which device, in which order; written as a folder that `fourfold run` carries out.

`--question pipeline` asks which device holds which part; `fourfold plan verify DIR` checks what a plan's folder claims.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fourfold.cli import _serve
from fourfold.cli._print import AsJson, Trust, emit, progress_mode, table
from fourfold.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERIFY_FAILED, _INTERRUPTED = 4, 130
QUESTIONS = ("schedule", "pipeline")


def register(app: typer.Typer) -> None:
    app.command("plan", epilog="Example: fourfold plan model/ --dims batch=8,sequence=128 --machine p100x4 --out plan/")(plan)


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face style folder, package.module:factory (or :function of JAX), "
                                                               ".onnx or .pt2 file; with --question pipeline a placement file (.json), with it "
                                                               "or --memory a plan's folder too; or `verify`, to check the plan that follows.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[PLAN]", help="With `verify`: the folder of the plan.")] = None,
    question: Annotated[str, typer.Option(help="schedule (fusion, device and order of each op) or pipeline (device of each part).")] = "schedule",
    machine: Annotated[str, typer.Option(help="here (measured by `fourfold calibrate`), a machine file, or a shipped system: p100x4 …")] = "here",
    objective: Annotated[str, typer.Option(help="latency, throughput, energy or memory; pipeline: throughput or latency. "
                                                "[latency; pipeline: throughput]")] = "",
    solver: Annotated[str, typer.Option(help="auto, go, heft, peft, cpop, metis, expert, default, anneal or exact; pipeline: auto, ideals, lns, "
                                             "local_search, pipedream, throughput_ip, load_fill, handmade, latency_annealing or latency_fill."
                                        )] = "auto",
    contiguous: Annotated[bool, typer.Option("--contiguous", help="Pipeline: no path may leave an accelerator and return to it.")] = False,
    expert: Annotated[Path | None, typer.Option(help="Pipeline: a split of the placement file made by hand, for the table.")] = None,
    train: Annotated[bool, typer.Option("--train", help="Plan the forward and the backward pass together.")] = False,
    dims: Annotated[list[str] | None, typer.Option("--dims", "--dim", help="Sizes by name: batch=8,sequence=128. May be repeated.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="Example inputs: an .npz file with an array for each.")] = None,
    data: Annotated[str | None, typer.Option(help="Data as `optimize` reads it; its first batch is the example.")] = None,
    budget: Annotated[str, typer.Option(help="Time for the solver: 60s, 10min.")] = "60s",
    memory: Annotated[str | None, typer.Option(help="Plan order, recomputation and offsets of all values into one arena: 4MiB, or min for the least "
                                                    "that can be found. `fourfold run PLAN --check` carries it out.")] = None,
    devices: Annotated[str | None, typer.Option(help="Plan over several devices, hosts × devices: 2x4. Layouts of all tensors, pipeline stages; "
                                                     "--memory is then the limit of a device, --solver one of stages. MODEL may be a size: "
                                                     "gpt:8192x48x64. With --serve: the grid of chips.")] = None,
    microbatches: Annotated[int, typer.Option(min=1, help="With --devices: microbatches a step; the inputs are one of them.")] = 1,
    pipeline_schedule: Annotated[str, typer.Option("--schedule", help="With --devices: 1f1b or gpipe.")] = "1f1b",
    layers: Annotated[int | None, typer.Option(min=1, help="With --devices: how many layers stages are made of. [the model's blocks, at most "
                                                           "16]")] = None,
    far: Annotated[str | None, typer.Option(help="With --memory: a second memory that values may be copied to and fetched from: 64MiB@8GB/s, with a "
                                                 "latency 64MiB@8GB/s,10us, or another device of the machine.")] = None,
    evaluations: Annotated[int | None, typer.Option(min=1, help="Stop after so many plans priced; answers alike on every machine.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    serve: _serve.Serve = False,
    phase: _serve.Phase = "",
    batch: _serve.Batch = 64,
    prompt_tokens: _serve.PromptTokens = 2048,
    context: _serve.Context = None,
    tokens: _serve.Tokens = 64,
    weights: _serve.Weights = "bfloat16",
    finetune: Annotated[bool, typer.Option("--finetune", help="Let the learned solver train on this one graph first.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the plan, its trace and its page. [plan; where MODEL is a plan, that plan]")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger that what the decision saves is booked in, as `fourfold ledger show` tells it.")] = None,
    trust: Trust = None,
    progress: Annotated[str, typer.Option(help="auto, plain, json (lines on stderr) or none.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """Choose groups of ops that run as one, their devices and their order, with a bound that says how good the choice is.

    Long: one option a line.
    """
    if model == "verify" or folder is not None:
        return _verify(model, folder, as_json)
    if serve:
        return _serve.served(model, devices, out, as_json, machine=machine, phase=phase, batch=batch, prompt_tokens=prompt_tokens, context=context,
                             tokens=tokens, weights=weights, solver=solver, budget=budget, ledger=ledger)
    mode = progress_mode(progress, as_json)
    if inputs is not None and data is not None:
        raise InputError("Both --inputs and --data were given.", "Give one of them.")
    if question not in QUESTIONS:
        raise InputError(f"There is no question {question!r}.", f"Known: {', '.join(QUESTIONS)}.")
    if question == "schedule" and (contiguous or expert is not None):
        raise InputError("--contiguous and --expert are of the question pipeline.", "Add --question pipeline.")
    if devices is None and (microbatches > 1 or layers is not None or pipeline_schedule != "1f1b"):
        raise InputError("--microbatches, --schedule and --layers are of a plan over several devices.", "Add --devices 2x4, or leave them out.")
    if devices is not None and (question != "schedule" or objective not in ("", "latency") or finetune or far is not None):
        raise InputError("--devices is a question of its own: it takes no --question, --objective, --finetune or --far.", "Leave them out.")
    if devices is None and memory is not None and (question != "schedule" or objective not in ("", "latency", "energy") or finetune):
        raise InputError("--memory is a question of its own: it takes no --question and no --finetune, and as --objective latency or energy.",
                         "Leave them out.")
    if far is not None and memory is None:
        raise InputError("--far is a second memory for --memory.", "Add --memory 4MiB, or leave it out.")
    import fourfold
    from fourfold.report.terminal import Progress
    from fourfold.trust import named, option

    more = option(dict.fromkeys([*(trust or ()), *named(model), *named(data)]))                    # what `run` of the plan needs to be told
    given: dict[str, Any] = {"machine": machine, "solver": solver, "train": train, "budget": budget, "evaluations": evaluations, "seed": seed,
                             "dims": sizes(dims), "ledger": ledger, "trust": trust or ()}
    if devices is not None:
        from fourfold.cli._devices import planned as over_devices

        del given["evaluations"]
        with Progress(mode) as shown:
            return over_devices(model, inputs or data, out or Path("plan"), as_json, devices=devices, memory=memory, microbatches=microbatches,
                                schedule=pipeline_schedule, layers=layers, progress=shown, **given)
    if memory is not None:
        from fourfold.cli._memory import planned

        with Progress(mode) as shown:
            return planned(model, inputs or data, memory, out, as_json, more, progress=shown, far=far, objective=objective or "latency", **given)
    if question == "pipeline":
        with Progress(mode) as shown:
            return _pipeline(model, inputs or data, out, as_json, objective=objective or "throughput", contiguous=contiguous, expert=expert,
                             progress=shown, **given)
    out = out or Path("plan")
    with Progress(mode) as shown:
        made = fourfold.plan(model, inputs or data, objective=objective or "latency", finetune=finetune, out=out, progress=shown, **given)
    document = made.to_json()
    if as_json:
        emit(document | {"out": str(out)})
    else:
        for heading, rows in _told(document):
            print(heading)
            if rows:
                table(rows)
        print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))} to {out}."
              + (f" Carry it out with: fourfold run {out}{more}" if made.system.local else ""))
    return _INTERRUPTED if made.interrupted else 0


def _verify(word: str, folder: Path | None, as_json: bool) -> int:
    """Check what a plan claims; exit code 4 where something does not hold."""
    if word != "verify":
        raise InputError(f"{folder} is one argument too many.", "Give one model, or: fourfold plan verify DIR")
    if folder is None:
        raise InputError("Which plan?", "Give the folder that `fourfold plan --out` wrote.")
    from fourfold import plans

    wrong, solutions = plans.verify(folder), plans.read(folder).solutions
    if as_json:
        emit({"verified": not any(wrong.values()), "questions": {question: {"wrong": said, **{name: solutions[question].get(name) for name in (
            "solver", "cost", "unit", "before", "bound", "gap", "hash")}} for question, said in wrong.items()}})
    else:
        for question, said in wrong.items():
            cost, unit = solutions[question]["cost"], solutions[question]["unit"]
            print("\n".join([f"{question} does not hold:", *(f"  {sentence}" for sentence in said)]) if said else
                  f"{question}: sound. The answer breaks no rule and costs {cost:.6g} {unit}, counted again.")
    return _VERIFY_FAILED if any(wrong.values()) else 0


def _pipeline(model: str, data: object, out: Path | None, as_json: bool, **asked: Any) -> int:
    """Ask the question pipeline and tell the answer."""
    from fourfold.jobs.pipeline import QUESTION, pipeline
    from fourfold.plans import holds_plan

    out = out or (Path(model) if holds_plan(model) else Path("plan"))
    document = pipeline(model, data, out=out, **asked)
    solution = dict(document.solutions[QUESTION])
    if as_json:
        answer = solution | {"question": QUESTION, "workload": dict(document.workload), "machine": dict(document.machine), "out": str(out)}
        emit(answer)
    else:
        _told_pipeline(document.to_json(), solution)
        print(f"Wrote the plan to {out}. Check it with: fourfold plan verify {out}")
    return _INTERRUPTED if solution["interrupted"] else 0


def _told_pipeline(document: dict[str, Any], solution: dict[str, Any]) -> None:
    from fourfold.report.format import percent, size

    def ms(value: float | None) -> str:
        return "–" if value is None else f"{value:.6g} ms"

    workload, contiguous = document["workload"], ", contiguous" * solution["contiguous"]
    print(f"{workload['name']}: {_counted(workload['nodes'], 'node')} on {document['machine']['name']}{contiguous}.")
    what = "a sample" if solution["objective"] == "throughput" else "for one sample"
    before = ms(solution["before"]) if solution["before"] is not None else solution["why"]
    start = "all on one accelerator" if solution["objective"] == "throughput" else "all on the cores"
    saved = f"; {percent(solution['saving'])} saved" if solution["saving"] is not None else ""
    print(f"Split of {solution['solver']}: {ms(solution['cost'])} {what}; {start} {before}{saved}.")
    if solution["bound"] is not None:
        gap = f"{percent(solution['gap'])} above it at most" if solution["gap"] else "the split is optimal"
        print(f"No split can take less than {ms(solution['bound'])}: {gap}.")
    if solution["interrupted"]:
        print("Interrupted; this is the best so far.")
    print("\nSolvers")
    table([{"solver": row["solver"], "cost": ms(row["cost"]), "gap": "–" if row["cost"] is None or not solution["bound"] else
            percent(max(0.0, row["cost"] / solution["bound"] - 1)), "solving": f"{row['seconds']:.2f} s", "": row["note"]}
           for row in sorted(solution["table"], key=lambda row: (row["cost"] is None, row["cost"] or 0.0))])
    print("Devices")
    table([{"device": row["name"], "load": ms(row["load_ms"]), "of the fullest": percent(row["share"]), "transfers": ms(row["transfers_ms"]),
            "nodes": f"{row['nodes']:,}", "memory": size(row["bytes"]), "limit": size(row["limit_bytes"])} for row in solution["devices"]])
    print("\n".join(["Why", *(f" · {line}" for line in solution["sentences"])]))
    for note in solution["notes"]:
        print(f"Note: {note}")


def sizes(given: list[str] | None) -> dict[str, int] | None:
    """Sizes by name. Raises InputError for what is not name=number."""
    found: dict[str, int] = {}
    for text in [part.strip() for each in given or [] for part in each.split(",") if part.strip()]:
        name, _, size = text.partition("=")
        if not name or not size.strip().isdecimal() or int(size) < 1:
            raise InputError(f"--dims {text!r} is not name=number.", "Example: --dims batch=8,sequence=128")
        found[name.strip()] = int(size)
    return found or None


def _told(document: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Headings, each with the rows of its table."""
    from fourfold.plans import amount
    from fourfold.report.format import percent, size

    graph, unit = document["graph"], document["unit"]
    fused = f"{_counted(graph['fused_groups'], 'fused group')} of up to {graph['largest_group']} ops" if graph["fused_groups"] else "nothing fused"
    yield f"{graph['name']}: {_counted(graph['nodes'], 'op')} in {_counted(graph['tasks'], 'task')} ({fused}) on {document['system']['name']}.", []
    before = f"default {amount(document['before'], unit)}" if document["before"] is not None else f"default {document['why']}"
    saved = f"; {percent(document['saving'])} saved" if document["saving"] is not None else ""
    what = {"latency": " a step", "throughput": " between steps", "energy": " a step", "memory": " on the fullest device"}[document["objective"]]
    yield f"Plan of {document['solver']}: {amount(document['cost'], unit)}{what}; {before}{saved}.", []
    if document["bound"] is not None:
        gap = f"{percent(document['gap'])} above it at most" if document["gap"] else "the plan is optimal"
        yield f"No plan can take less than {amount(document['bound'], unit)}: {gap}.", []
    if document["interrupted"]:
        yield "Interrupted; this is the best so far.", []
    yield "\nSolvers", [{"solver": row["solver"], "cost": amount(row["cost"], unit), "solving": amount(row["seconds"], "s"),
                         "plans tried": f"{row['evaluations']:,}", "": row["note"]}
                        for row in sorted(document["table"], key=lambda row: (row["cost"] is None, row["cost"] or 0.0))]
    yield "Devices", [{"device": row["name"], "busy": percent(row["share"]), "tasks": f"{row['tasks']:,}", "memory": size(row["peak_bytes"]),
                       "limit": size(row["limit_bytes"])} for row in document["devices"]]
    if document["sentences"]:
        yield "\n".join(["Why", *(f" · {line}" for line in document["sentences"])]), []
    if graph["unknown"]:
        yield f"Assumed costs of unknown kinds of op: {', '.join(graph['unknown'])}.", []
    for note in document["notes"]:
        yield f"Note: {note}", []


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
