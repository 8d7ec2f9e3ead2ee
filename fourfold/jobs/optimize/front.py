"""What `fourfold.optimize` gives back: the front of points that can be kept, one screen of text in a console, a picture and a table in a notebook."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, overload

from fourfold.errors import Infeasible, InputError, ModelError

if TYPE_CHECKING:
    from fourfold.jobs.optimize.final_race import Point
    from fourfold.jobs.optimize.state import Job
    from fourfold.report.schema import CandidateRow, Report
    from fourfold.runtime.artefact import Model

_ROWS = 16  # rows of the front in one screen


@dataclass(repr=False)
class Choice:
    """A point of the front that can be kept, and asked at once."""

    point: Point
    job: Job
    report_data: Report
    _model: Model | None = field(default=None, init=False, compare=False)

    @property
    def name(self) -> str:
        """Its name in the report."""
        return self.point.name

    @property
    def quality(self) -> float:
        """Relative quality on the unseen split (1 = as good as the original)."""
        return self.point.test.value if self.point.test else float("nan")

    @property
    def cost(self) -> float:
        """What the objective minimises, relative to the original."""
        return self.job.cost(self.point)

    def predict(self, data: object) -> list[object]:
        """Answers to raw inputs (texts, pairs, arrays, a file), one each, as the saved artefact gives them (`fourfold.load(…).predict`).

        Raises InputError for inputs that cannot be read.
        """
        if self._model is None:
            self._model = _live(self.point, self.job)
        return self._model.predict(data)

    __call__ = predict

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the artefact, once a fresh process has loaded it and answered alike; see `fourfold.runtime.saving.save`.

        `folder` must be absent, empty or an artefact of ours; with `force` whatever else is there moves aside (folder.before-1), whole.
        """
        from fourfold.jobs.optimize.accounts import ledger_of, manifest_facts
        from fourfold.jobs.optimize.remember import answers
        from fourfold.report.html import page
        from fourfold.runtime.original import NAME
        from fourfold.runtime.saving import save

        book = "".join(f"{line}\n" for line in ledger_of(self.job).lines())
        extra = {"report.json": json.dumps(self.report_data, indent=1), "ledger.jsonl": book}
        stored = answers(self.job)
        extra |= {NAME: stored} if stored is not None else {}
        return save(
            self.point.assembly,
            self.job.task,
            Path(folder),
            manifest_facts(self.job, self.point, self.report_data),
            extra=extra,
            pages={"report.html": page(self.report_data)},
            max_length=self.job.options.max_length,
            examples=self.job.splits.test,
            force=force,
        )

    @property
    def _row(self) -> CandidateRow:
        """Its row of the report's candidates."""
        return next(row for row in self.report_data["candidates"] if row["name"] == self.name)

    def __repr__(self) -> str:
        from fourfold.report import format, summary

        row, data = self._row, self.report_data
        quality = format.interval(summary.quality_of(row))
        lines = [f"Choice {self.name}: {row['how']}", f"  quality  {quality} of the original's ({data['data']['metric']})"]
        lines += [f"  agrees   on {format.interval(row.get('agreement'))} of the rows"] if row.get("agreement") else []
        lines += [f"  {data['objective']:8} {format.interval(summary.spent(row, data['objective']))} of the original's",
                  f"  runs on  {format.setting(row['setting'])}; {format.count(row['parameters'])} parameters",
                  "  .predict(inputs) answers, .save(folder) keeps it"]  # fmt: skip
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


@dataclass(repr=False)
class Front:
    """All that was found. `best` is the cheapest point whose lower 95 % bound of relative quality clears the floor on the unseen split, or None.

    `points` are those that nothing beats in both quality and cost, cheapest first; `len(front)`, `front[0]`, `front["name"]` and iteration reach
    them.
    """

    job: Job
    report_data: Report
    best: Choice | None
    infeasible: Infeasible | None = None
    unsaved: ModelError | None = None  # why `best` is not in the folder `out`, where one was asked for
    points: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.points = sorted(self.points, key=lambda choice: choice.cost)

    def report(self, path: str | Path) -> Path:
        """Write the report: .html, .json, .svg or .md by the ending of `path`."""
        from fourfold.report import write

        return write(self.report_data, Path(path))

    def __len__(self) -> int:
        return len(self.points)

    def __bool__(self) -> bool:
        """A front without a point is still a front."""
        return True

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.points)

    @overload
    def __getitem__(self, which: int | str) -> Choice: ...
    @overload
    def __getitem__(self, which: slice) -> list[Choice]: ...
    def __getitem__(self, which: int | str | slice) -> Choice | list[Choice]:
        """By place (cheapest first), by name, or a slice. Raises IndexError, or InputError for a name that is not on the front."""
        if isinstance(which, str):
            found = next((choice for choice in self.points if choice.name == which), None)
            if found is None:
                raise InputError(f"no point of the front is called {which!r}.", f"There are: {', '.join(choice.name for choice in self.points)}.")
            return found
        return self.points[which]

    def __repr__(self) -> str:
        from fourfold.report import format, summary

        data, told = self.report_data, [f"{summary.headline(self.report_data)} {summary.decision(self.report_data)}"]
        rows = self._rows()
        head = ("", "quality", data["objective"], "how")
        wide = [max(len(row[k]) for row in [head, *rows]) for k in range(3)]
        lines = [f"{name:{min(wide[0], 34)}}  {quality:>{wide[1]}}  {cost:>{wide[2]}}  {format.clip_end(how, 48)}".rstrip()
                 for name, quality, cost, how in [head, *rows]]  # fmt: skip
        told += lines if len(lines) <= _ROWS + 1 else [*lines[: _ROWS // 2 + 1], f"… {len(lines) - 1 - _ROWS} more …", *lines[-_ROWS // 2 :]]
        ask = "front.best.predict(inputs) answers; front.best.save(folder) keeps it; " if self.best is not None else ""
        return "\n".join([*told, f"{ask}front.report('report.html') shows all."])

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """(name, quality, cost, how) of each point, cheapest first, the best marked."""
        from fourfold.report import format, summary

        found = []
        for choice in self.points:
            row, mark = choice._row, "► " if self.best is not None and choice.name == self.best.name else "  "
            cost = format.interval(summary.spent(row, self.report_data["objective"]))
            found.append((mark + format.clip_end(choice.name, 32), format.interval(summary.quality_of(row)), cost, row["how"]))
        return found

    def _repr_html_(self) -> str:
        from fourfold.report import plot, summary
        from fourfold.report.html import asset

        data = self.report_data
        picture = plot.draw(data, 720, 400, True, style=asset("plot.css"))
        cells = [("point", "quality", data["objective"], "how"), *self._rows()]
        rows = ["".join(f"<t{'hd'[k > 0]} style='text-align:left'>{escape(cell)}</t{'hd'[k > 0]}>" for cell in row) for k, row in enumerate(cells)]
        return (
            f"<p><b>{escape(summary.headline(data))}</b> {escape(summary.decision(data))}</p><div style='max-width:720px'>{picture}</div>"
            f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
        )


def _live(point: Point, job: Job) -> Model:
    """The point as a model of this process. Inputs are read as the search read them: a member with a smaller vocabulary translates them itself."""
    from fourfold.datasets.examples import Examples
    from fourfold.runtime.artefact import Model

    class Live(Model):
        def inputs(self, data: object) -> Examples:
            from fourfold.datasets.encode import load_inputs

            return load_inputs(data, job.task, job.subject, max_length=job.options.max_length).read()

    return Live(job.folder, {"name": point.name, "max_length": job.options.max_length}, point.assembly, job.task, [])
