"""What the reader sees in a terminal: the decision first, then the front, then where the evidence lies; and progress while it runs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from fourfold.errors import InputError
from fourfold.report import advice, format, summary
from fourfold.report.generation import sentences
from fourfold.report.waterfall import NAMES

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.panel import Panel
    from rich.progress import Task
    from rich.table import Table
    from rich.text import Text

    from fourfold.documents import Json
    from fourfold.report.schema import Ends, Levers, Report

Mode = Literal["auto", "notebook", "bars", "plain", "json", "silent"]
_CLOSEST = 3  # nearest candidates shown when the floor is missed


# ---- the report ----------------------------------------------------------------------------------------------------------------------------------


def show(report: Report, console: Console | None = None) -> None:
    """Print `report` (a dict of fourfold.report.schema.Report): decision, front, what it cost, where the files are."""
    from rich.console import Console

    console = console or Console(highlight=False)
    console.print(_verdict(report))
    console.print(_front(report, console.width))
    if pulled := report.get("levers"):
        console.print(levers(pulled, console.width))
    for line in _facts(report):
        console.print(line, soft_wrap=False)


def _verdict(report: Report) -> Panel:
    from rich.panel import Panel
    from rich.text import Text

    met = report["best"] is not None
    text = Text(summary.headline(report), style="bold")
    text.append("\n" + summary.decision(report), style="not bold")
    title = f" {format.clip(report['model']['name'], 40)} · {format.clip(report['data']['name'], 40)} "
    return Panel(text, title=title, title_align="left", border_style="green" if met else "yellow", padding=(0, 1))


def _front(report: Report, width: int) -> Table:
    from rich import box
    from rich.table import Table

    wide = width >= 100
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    table.add_column("", no_wrap=True, max_width=max(18, width // 4))      # a cascade's long name must not push the figures out
    table.add_column("quality, %", justify="right", no_wrap=True)
    told = wide and any(report["candidates"][index].get("agreement") for index in _ordered(report))
    if told:
        table.add_column("agrees, %" if report["data"]["task"] != "regression" else "correlation", justify="right", no_wrap=True)
    table.add_column("energy, %", justify="right", no_wrap=True)
    if wide:
        table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("how", overflow="fold", ratio=1)

    def row(name: str, quality: str, cost: str, parameters: float | None, how: str, style: str = "", agreed: str = "–") -> None:
        table.add_row(name, quality, *([agreed] if told else []), cost, *([format.count(parameters)] if wide else []), how, style=style)

    row("  original", "100", "100", report["model"]["parameters"], format.setting(report["baseline"]["setting"]), agreed="100")
    for index in _ordered(report):
        row(*_candidate(report, index), agreed=advice.agrees(report, report["candidates"][index]).replace(" %", "") or "–")
    for simple in report["simple"]:
        quality, cost = format.interval(simple["relative_quality"], False), format.interval(simple["relative_energy"], False)
        row(f"  {simple['name']}", quality, cost, simple.get("parameters"), "no network", "dim")
    return table


def _ordered(report: Report) -> list[int]:
    """Front members, dearest first; where the floor is missed, the nearest candidates too."""
    rows = list(report["front"])
    if report["infeasible"]:
        rows += [near["candidate"] for near in report["infeasible"]["nearest"][:_CLOSEST] if near["candidate"] not in rows]
    return sorted(rows, key=lambda i: -(report["candidates"][i]["relative_energy"] or {"value": 0})["value"])


def _candidate(report: Report, index: int) -> tuple[str, str, str, int, str, str]:
    """A front row's cells and style."""
    from rich.markup import escape

    candidate = report["candidates"][index]
    best = index == report["best"]
    quality, run = summary.quality_of(candidate), candidate["setting"]
    met = quality is not None and quality["low"] is not None and quality["low"] >= report["floor"]
    mark = "►" if best else "◆" if index == report["knee"] else " "
    engine = f"{run['engine']} {run['precision']}" if run else ""
    how = candidate["how"] if engine in candidate["how"] else f"{candidate['how']} · {engine}"
    shown = format.interval(quality, False) + ("" if candidate["test_quality"] else "*")
    name = candidate["name"].removesuffix(f" · {engine}")  # told under "how"
    cells = (f"{mark} {escape(name)}", shown, format.interval(candidate["relative_energy"], False), candidate["parameters"])
    return *cells, escape(how), "bold green" if best else "" if met else "dim"


def levers(found: Levers, width: int = 100) -> Group:
    """The four levers (`fourfold.report.schema.Levers`) as a table: factor, interval, grade and what was done, then the total and the grams."""
    from rich import box
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True, footer_style="bold")
    total = found["total"]

    printed, whole = format.chain([row["factor"]["value"] for row in found["rows"]], total["value"])

    def said(figure: Ends, text: str) -> str:
        return format.factor(figure, text) if width >= 50 else text

    shown.add_column("lever", footer="together", no_wrap=True)
    shown.add_column("times less" if width >= 50 else "less", footer=said(total, whole), justify="right", no_wrap=True)
    shown.add_column("grade", footer=total["grade"] or "", no_wrap=True)
    if width >= 70:
        shown.add_column("what", footer=f"less {summary.unit_of(found)}", overflow="fold", ratio=1)
    for row, text in zip(found["rows"], printed, strict=True):
        cells = [NAMES[row["lever"]], said(row["factor"], text), row["factor"]["grade"] or "–", *([escape(row["title"])] if width >= 70 else [])]
        shown.add_row(*cells, style="" if row["given"] else "dim")
    carbon, lines = found["carbon"], []
    if carbon:
        lines = [f"{carbon['run']}: {format.grams(carbon['before'])} before, {format.grams(carbon['after'])} after ({carbon['after']['grade']}, "
                 f"{found['signal']} intensity)."]
    return Group(shown, *(Text(line, style="dim") for line in [*lines, *found["notes"]]))


def _facts(report: Report) -> list[Text]:
    from rich.text import Text

    baseline, cost, data = report["baseline"], report["cost"], report["data"]
    lines = ["► chosen  ◆ knee  [90 % interval: its lower end is a 95 % bound]  dim: below the floor"]
    if generation := report.get("generation"):
        chosen = None if report["best"] is None else report["candidates"][report["best"]]["name"]
        lines += sentences(generation, chosen)
    lines += [f"Original: {data['metric']} {format.absolute(baseline['quality'])}, {format.energy(baseline['joules_per_1000'])} and "
             f"{format.span(baseline['cpu_s_per_1000'])} CPU time per 1,000 examples."]  # fmt: skip
    lines += [advice.winner(report)] if report["best"] is not None else []
    if report["total"] is not None and len(report["factors"]) > 1:
        shown, whole = format.chain([row["before"] / row["after"] for row in report["factors"]], report["total"])
        steps = " × ".join(f"{row['technique']} {text.removesuffix('×')}" for row, text in zip(report["factors"], shown, strict=True))
        lines.append(f"Factors: {steps} = {whole} cheaper in energy.")
    lines.append(f"Optimising took {format.span(cost['wall_s'])} and {format.energy(cost['joules'])}. {summary.break_even(report)}".rstrip())
    lines.append(f"Energy: {report['energy']['grade']}, {report['energy']['method']}. {format.sentence(report['valid'])}")
    if any(not report["candidates"][i]["test_quality"] for i in _ordered(report)):
        lines.append("* on the search split, not confirmed on unseen data.")
    lines += [f"Cheaper, and not chosen: {'; '.join(advice.lost(report))}."] if advice.lost(report) else []
    lines += [f"Note: {text}" for text in report["notes"]]
    shown = [Text(line, style="dim") for line in lines] + [Text(f"Warning: {text}", style="yellow") for text in report["warnings"]]
    hint = advice.near_miss(report)
    shown += [Text(hint, style="bold")] if hint else []
    if report["folder"] and report["best"] is not None:
        shown.append(Text(f"Saved in {report['folder']}. Next:"))
        shown += [Text(f"  {what}: {how}") for what, how in advice.steps(report)]
    return shown


def show_race(outcome: Any, console: Console | None = None) -> None:
    """Print what `jobs.race.rerace` found, or what `jobs.optimize.choices.undo` put back: for each part the choice before and after, all
    times, who could not run, and why it was decided so."""
    from rich.console import Console

    console = console or Console(highlight=False)
    for part in outcome["parts"]:
        before, after = format.setting(part["before"]), format.setting(part["after"])
        console.print(f"{part['part']}: {f'stays on {after}' if before == after else f'{before} → {after}'}", style="bold", markup=False)
        if "race" not in part:
            continue
        rows = [row for row in part["race"]["table"] if row["stage"] != "tuning"]
        console.print(table([_raced(row) for row in rows]))
        for row in part["race"]["rejected"]:
            console.print(f"  not raced: {row['engine']} {row['precision']}: {row['reason']}", style="dim", markup=False)
    if not outcome["parts"]:
        console.print("Nothing to race: no part of this artefact is a network.")
    for text in outcome.get("said", []):
        console.print(text, markup=False)
    if "machine" in outcome:
        console.print(f"Raced on {outcome['machine']}; ratios to the stored choice, below 1 is faster.", markup=False)
    where = outcome["folder"]
    done = f"Saved in {where}. Back again: fourfold race {where} --undo" if outcome["stored"] else "Nothing was written."
    console.print(done, markup=False)


def _raced(row: Any) -> dict[str, object]:
    setting = format.setting({"engine": row["engine"], "precision": row["precision"], "threads": row["threads"], "batch": row["batch"],
                              "bucketing": row["bucket"]})
    verdict = "chosen" if row["chosen"] else row["verdict"]
    return {"": row["who"], "configuration": setting, "CPU time": _ratio(row["cpu"]), "wall time": _ratio(row["wall"]), "verdict": verdict}


def _ratio(figure: Ends | None) -> str:
    return "–" if figure is None else f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def table(rows: Sequence[Mapping[str, object]]) -> Table:
    """Dicts with the same keys as a table: one row each, keys as heads."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = list(dict.fromkeys(key for row in rows for key in row))
    for head in heads:
        widest = max(len(_cell(row.get(head))) for row in rows) if head in ("name", "policy") else 0    # never broken
        shown.add_column(escape(str(head)), overflow="fold", no_wrap=0 < widest <= 40, min_width=widest if widest <= 40 else None)
    for row in rows:
        shown.add_row(*(escape(_cell(row.get(head))) for head in heads))
    return shown


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
        return format.absolute({"value": value["value"], "low": value["low"], "high": value["high"]})
    return (
        "yes" if value is True else "no" if value is False else "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    )


# ---- progress ------------------------------------------------------------------------------------------------------------------------------------


class Estimate:
    """Time left over a whole job: measured step time for this stage, planned seconds for those to come, corrected by how the finished ones went, and
    no more than the budget leaves. What takes longer than foreseen is expected to take longer still: a quarter of the time it has stood.
    """

    def __init__(self) -> None:
        self.planned: dict[str, float] = {}
        self.whole = False  # a plan or a budget was given, so the forecast is for the whole job
        self.spent = 0.0  # seconds of finished stages, …
        self.foreseen = 0.0  # … and what had been planned for them
        self.name, self.steps, self.done, self.began = "", 0, 0, 0.0
        self.moved = 0.0  # when the last step ended
        self.budget, self.opened = 0.0, 0.0

    def bound(self, budget: float, now: float) -> None:
        """The whole job has `budget` seconds from `now` on."""
        self.budget, self.opened, self.whole = budget, now, True

    def plan(self, stages: dict[str, float]) -> None:
        self.planned = dict(stages)
        self.whole = True

    def stage(self, name: str, steps: int, now: float) -> None:
        self.finish(now)
        self.name, self.steps, self.done, self.began, self.moved = name, steps, 0, now, now

    def step(self, n: int, now: float) -> None:
        self.done, self.moved = self.done + n, now

    def finish(self, now: float) -> None:
        if self.name in self.planned:
            self.spent += now - self.began
            self.foreseen += self.planned.pop(self.name)
        self.name = ""

    def left(self, now: float) -> float | None:
        """Seconds left, or None while nothing is known."""
        known = self._planned(now)
        if not self.budget:
            return known
        rest = self.budget - (now - self.opened)
        if rest <= 0:
            return max(known or 0.0, 0.25 * -rest)
        return rest if known is None else min(known, rest)

    def _planned(self, now: float) -> float | None:
        pace = self.spent / self.foreseen if self.foreseen > 0 else 1.0
        pace = min(max(pace, 0.2), 5.0)  # one odd stage must not make the forecast absurd
        rest = sum(seconds for name, seconds in self.planned.items() if name != self.name) * pace
        elapsed, stood = now - self.began, now - self.moved
        if self.done and self.steps:
            each = (self.moved - self.began) / self.done
            to_come = each * max(self.steps - self.done, 0) - stood
            return rest + max(to_come, (each if self.done < self.steps else 0.0) - stood, 0.25 * stood)
        if self.name in self.planned:
            return rest + max(self.planned[self.name] * pace - elapsed, 0.25 * elapsed)
        return rest + 0.25 * elapsed if self.planned else None


def _plain(text: str) -> str:
    """Text that rich shows as it is."""
    from rich.markup import escape

    return escape(text)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which shows HTML."""
    kernel = sys.modules.get("IPython")
    shell = kernel.get_ipython() if kernel is not None and hasattr(kernel, "get_ipython") else None
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")     # Jupyter's, Colab's


def listener(progress: object = None, budget: float = 0.0) -> tuple[Any, bool]:
    """(who is told of a job of `budget` seconds, whether it is ours to close). None or True: bars on a terminal, a line in a notebook, else nobody;
    False: nobody; a mode of `Progress`: that; anything else is a listener of the caller's own.
    """
    if progress is None or progress is True:
        shown = in_notebook() or sys.stderr is not None and sys.stderr.isatty()
        progress, ours = Progress("auto" if shown else "silent"), True
    elif progress is False or isinstance(progress, str):
        progress, ours = Progress("silent" if progress in (False, "none") else progress), True  # type: ignore[arg-type]
    else:
        ours = False
    if budget and isinstance(progress, Progress):
        progress.budget(budget)
    return progress, ours


class Progress:
    """What `fourfold.optimize` tells while it works; a context manager.

    `mode`: "auto" (one line that is rewritten in a notebook, bars on a terminal, else plain lines), "notebook", "bars", "plain" (a line per stage
    and one every few seconds), "json" (an object a line), "silent". Everything goes to `stream` (stderr), so that stdout stays one document. Errors
    of the stream (a closed pipe) never stop the job. Raises InputError for another mode.
    """

    def __init__(self, mode: Mode = "auto", stream: TextIO | None = None, every: float = 5.0) -> None:
        if mode not in get_args(Mode):
            raise InputError(f"progress {mode!r} is not known.", f"Choose from: {', '.join(get_args(Mode))}.")
        self.stream = stream or sys.stderr
        if mode == "auto":
            mode = "notebook" if stream is None and in_notebook() else "bars" if self.stream.isatty() else "plain"
        self.mode: Mode = mode
        self.page: Any = None  # a notebook's display, rewritten in place
        self.noted = ""
        self.every, self.start, self.last, self.best_text = every, time.monotonic(), 0.0, ""
        self.estimate, self.bars = Estimate(), None
        self.task: Any = None  # rich's id of the stage's bar

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def budget(self, seconds: float) -> None:
        """The whole job may take `seconds` from now on: no forecast says more."""
        self.estimate.bound(seconds, time.monotonic())

    def plan(self, stages: dict[str, float]) -> None:
        """Expected seconds of each stage to come, by name and in order: the forecast rests on it. May be called again when more is known."""
        self.estimate.plan(stages)

    def stage(self, name: str, total: int = 0) -> None:
        """A stage begins (and the one before it ends); `total` = 0: not known."""
        self.estimate.stage(name, total, time.monotonic())
        if self.mode == "bars":
            self._bar(name, total)
        elif self.mode == "plain":
            self._line(f"{name}{self._left()}")
        self._page()
        self._event("stage", name=name, steps=total)

    def advance(self, n: int = 1) -> None:
        """`n` steps of the stage are done."""
        estimate = self.estimate
        estimate.step(n, time.monotonic())
        self._page(0.5)
        if self.bars is not None:
            self.bars.update(self.task, advance=n)
        elif self.mode in ("plain", "json") and time.monotonic() - self.last >= self.every:
            self._line(f"{estimate.name} {estimate.done}{f'/{estimate.steps}' if estimate.steps else ''}{self._left()}")
            self._event("advance", name=estimate.name, done=estimate.done, steps=estimate.steps)

    def best(self, text: str) -> None:
        """A new best so far, in words."""
        if text == self.best_text:
            return
        self.best_text = text
        self._page()
        if self.bars is not None:
            self.bars.update(self.task, best=_plain(text))
        else:
            self._line(f"best so far: {text}")
        self._event("best", text=text)

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        self.noted = text
        self._page()
        if self.bars is not None:
            self.bars.console.print(text, style="dim", markup=False)
        else:
            self._line(text)
        self._event("note", text=text)

    def close(self) -> None:
        """End the last stage and the display."""
        self.estimate.finish(time.monotonic())
        self._page()
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def _left(self) -> str:
        left = self.estimate.left(time.monotonic())
        return "" if left is None else f" · {format.roughly(left)} left{'' if self.estimate.whole else ' of this stage'}"

    def _bar(self, name: str, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.text import Text

        if self.bars is None:
            told = self

            class Left(ProgressColumn):
                """The forecast anew at every refresh, so that it does not stand still while a step takes long."""

                def render(self, task: Task) -> Text:
                    return Text(told._left() if task.id == told.task and not task.finished else "", style="dim")

            line = TextColumn("[dim]{task.fields[best]}", markup=True)
            columns = (
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                Left(),
                line,
            )
            self.bars = Bars(*columns, console=Console(file=self.stream), transient=False)
            self.bars.start()
        elif self.task is not None:
            done = self.bars.tasks[-1]
            self.bars.update(self.task, total=done.completed or 1, completed=done.completed or 1, best="")
        self.task = self.bars.add_task(_plain(name), total=steps or None, best=_plain(self.best_text))

    def _page(self, pause: float = 0.0) -> None:
        """The notebook's line, rewritten; not again within `pause` seconds."""
        if self.mode != "notebook" or time.monotonic() - self.last < pause:
            return
        from html import escape

        from IPython.display import HTML, display  # type: ignore[import-not-found]

        estimate, self.last = self.estimate, time.monotonic()
        steps = f" {estimate.done:,}/{estimate.steps:,}" if estimate.steps and estimate.name else ""
        stage = f"<b>{escape(estimate.name or 'done')}</b>{steps}{escape(self._left()) if estimate.name else ''}"
        told = [f"best so far: {self.best_text}" if self.best_text else "", self.noted]
        lines = [f"{stage} · {format.span(self.last - self.start)}", *(escape(text) for text in told if text)]
        shown = HTML("<br>".join(lines))
        if self.page is None:
            self.page = display(shown, display_id=True)
        else:
            self.page.update(shown)

    def _line(self, text: str) -> None:
        if self.mode == "plain":
            self._write(f"[{time.monotonic() - self.start:6.1f} s] {text}")

    def _event(self, kind: str, **fields: Json) -> None:
        if self.mode == "json":
            left = self.estimate.left(time.monotonic())
            left = None if left is None else round(left, 1)
            self._write(json.dumps({"t": round(time.monotonic() - self.start, 3), "event": kind, **fields, "left": left}))

    def _write(self, text: str) -> None:
        self.last = time.monotonic()
        try:
            print(text, file=self.stream, flush=True)
        except (OSError, ValueError):
            self.mode = "silent"
