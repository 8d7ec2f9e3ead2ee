"""`fourfold pretrain`: train a learned solver over graphs: GO's policy, or the chiplet policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, emit, say


def register(app: typer.Typer) -> None:
    app.command("pretrain", epilog="Example: fourfold pretrain --minutes 30 --hold-out wavenet,moe --out policy/")(pretrain)


def pretrain(
    out: Annotated[Path, typer.Option(help="Folder of the run; one that holds a run is gone on with.")] = Path("policy"),
    seed: Annotated[int, typer.Option(help="Same seed, same weights (where the run is told its updates).")] = 0,
    updates: Annotated[int, typer.Option(min=0, help="Stop after so many updates. 0: by --minutes.")] = 0,
    minutes: Annotated[str, typer.Option(help="Stop after so long (30, 2h), the annealing of lessons not counted. 0: by --updates.")] = "0",
    hold_out: Annotated[str, typer.Option(help="Families not to learn from, separated by commas: wavenet,moe.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Graphs to learn from.")] = 400,
    nodes: Annotated[str, typer.Option(help="Smallest and largest of them: 40-600.")] = "40-600",
    imitation: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the run that imitates annealed plans before PPO.")] = 0.6,
    evaluations: Annotated[int, typer.Option(min=1, help="Simulations that annealing spends on each of those plans.")] = 8000,
    graph: Annotated[list[Path] | None, typer.Option(help="A captured graph (.npz) to learn from too; may be repeated.")] = None,
    start: Annotated[str, typer.Option(help="Weights to begin with: a .safetensors file.")] = "",
    question: Annotated[str, typer.Option(help="schedule (GO), or chiplets, which takes --seed, --updates and --out alone.")] = "schedule",
    as_json: AsJson = False,
) -> None:
    """Train GO's policy: imitation of annealed plans, then PPO with the simulator as reward. Stops and resumes without loss."""
    from fourfold.errors import InputError

    if question == "chiplets":
        from dataclasses import replace

        from fourfold.jobs.pretrain_chiplets import ChipletTraining
        from fourfold.jobs.pretrain_chiplets import pretrain as train_chiplets

        asked = ChipletTraining(seed=seed)
        file = train_chiplets(out, replace(asked, steps=updates) if updates else asked, say)
        if as_json:
            emit({"weights": str(file)})
        return
    if question != "schedule":
        raise InputError(f"There is no learned solver for the question {question!r}.", "Known: schedule, chiplets.")
    from fourfold.jobs.pretrain import Settings
    from fourfold.jobs.pretrain import pretrain as train
    from fourfold.units.parse import duration

    try:
        low, high = (int(part) for part in nodes.split("-"))
    except ValueError:
        raise InputError(f"--nodes {nodes} is no range.", "Give two numbers: --nodes 40-600") from None
    limit = duration(minutes, "--minutes", bare="min", to="min")
    held = tuple(name.strip() for name in hold_out.split(",") if name.strip())
    settings = Settings(seed=seed, updates=updates, minutes=limit, hold_out=held, count=count, low=low, high=high, imitation=imitation,
                        evaluations=evaluations, graphs=tuple(str(path) for path in graph or ()), start=start)
    done = train(out, settings, say)
    if as_json:
        emit(done.to_json())
        return
    say(f"{done.updates} updates in {done.seconds / 60:.1f} min: {done.best:.3f} of annealing's cost on graphs it had not seen → {done.weights}")
