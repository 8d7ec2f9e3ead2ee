"""What `fourfold plan --serve` is asked, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.cli._print import emit, table
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.plans import Document

Serve = Annotated[bool, typer.Option("--serve", help="With --devices: layouts of a decoder that is served, a phase each. MODEL is a config "
                                                     "folder or a shipped decoder: palm-540b …")]
Phase = Annotated[str, typer.Option(help="With --serve: prefill or decode. [both]")]
Batch = Annotated[int, typer.Option(min=1, help="With --serve: sequences at once.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="With --serve: tokens of each prompt.")]
Context = Annotated[int | None, typer.Option(min=0, help="With --serve: tokens in the cache when decoding begins. [the prompt's]")]
Tokens = Annotated[int, typer.Option(min=1, help="With --serve: tokens decoded of each sequence.")]
Weights = Annotated[str, typer.Option(help="With --serve: bfloat16 or int8.")]


def served(model: str, devices: str | None, out: Path | None, as_json: bool, *, machine: str, phase: str, batch: int, prompt_tokens: int,
           context: int | None, tokens: int, weights: str, solver: str, budget: str, ledger: Path | None) -> int:
    """Choose, write, tell; the exit code."""
    from fourfold.jobs.serving_layout import QUESTION, serve

    if devices is None:
        raise InputError("--serve needs the grid of chips.", "Add it: --devices 8x8")
    out = out or Path("plan")
    document = serve(model, devices, machine=machine, phase=phase, batch=batch, prompt_tokens=prompt_tokens, context=context, tokens=tokens,
                     weights=weights, solver=solver, budget=budget, out=out, ledger=ledger)
    if as_json:
        emit({**document.solutions[QUESTION], "question": QUESTION, "workload": dict(document.workload), "machine": dict(document.machine),
              "out": str(out)})
        return 0
    _told(document)
    print(f"Wrote {', '.join(sorted(file.name for file in out.iterdir() if file.is_file()))} to {out}. Check it with: fourfold plan verify {out}")
    return 0


def _told(document: Document) -> None:
    from fourfold.report.format import percent, span

    solution = document.solutions["layout"]
    print(f"{document.workload['name']} ({document.workload['parameters'] / 1e9:,.1f} billion parameters) on "
          f"{'x'.join(map(str, solution['chips']['shape']))} of {document.machine['name']}.")
    for row in solution["rows"]:
        phase, cost = row["phase"], row["cost"]
        print(f"\n{phase['kind'].capitalize()}: {row['title']}, attention by {row['layout']['attention']}: {span(cost['seconds'])}"
              + (f", {span(cost['step'])} a token" if phase["kind"] == "decode" else "")
              + f", {percent(cost['mfu'])} of peak; event by event {span(row['events_step'])} a pass.")
        table([{"batch": f"{one['batch']:,}", "layout": one["title"], "attention": one["layout"]["attention"] if one["layout"] else "–",
                "latency": "–" if one["latency"] is None else span(one["latency"]),
                "chip-seconds a token": "–" if one["chip_seconds"] is None else f"{one['chip_seconds']:.3g}",
                "of peak": "–" if one["mfu"] is None else percent(one["mfu"]), "": "front" if one["front"] else one["why"]} for one in row["front"]])
    print("\nTechniques, all phases")
    table([{"technique": row["solver"], "time": "–" if row["cost"] is None else span(row["cost"]), "": row["note"]}
           for row in sorted(solution["table"], key=lambda row: (row["cost"] is None, row["cost"] or 0.0))])
    print("\n".join(["Why", *(f" · {line}" for line in solution["sentences"])]))
    for note in solution["notes"]:
        print(f"Note: {note}")
