"""Is what the manifest says still so? Quality, agreement and cost of an artefact measured again, on data that the user brings, against the original.

Two measurements of one thing differ by the errors of both, so a stated figure is held against the interval in which a second measurement falls nine
times of ten: half widths of both intervals added in quadrature (for costs on a log scale). Quality and agreement may be better than stated, never
worse; a cost must be neither: cheaper than stated is as untrue as dearer. The floor is held by the new estimate; `strict` wants its lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fourfold.errors import InputError
from fourfold.measure.quality import Relative, relative, wilson

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.datasets.unread import Unread
    from fourfold.frontends.subject import Subject
    from fourfold.report.schema import Interval
    from fourfold.runtime.artefact import Model

FEWEST = 8  # rows below which no interval means anything
FLOOR, STATED = 3, 4  # exit codes

Span: TypeAlias = "Interval"


@dataclass(frozen=True)
class FigureCheck:
    """One figure. `verdict`: "holds", "fails" or "not checked"; `by`: how far it lies outside of what a second measurement may be, a share of the
    original's (below it negative, 0 where it holds); `why`: in words, which interval was violated and by how much."""

    name: str
    stated: Span | float | None
    measured: Span | None
    verdict: str
    why: str = ""
    by: float = 0.0


@dataclass(frozen=True)
class Verification:
    """What was found. `exit_code`: 3 where the floor does not hold, 4 where a stated figure does not, 0 where all that could be checked holds."""

    folder: str
    data: str
    rows: int
    original: str
    same_machine: bool
    checks: list[FigureCheck]
    warnings: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[FigureCheck]:
        """The figures that do not hold."""
        return [check for check in self.checks if check.verdict == "fails"]

    @property
    def holds(self) -> bool:
        """Whether all that was checked holds."""
        return not self.failed

    @property
    def exit_code(self) -> int:
        """0, 3 or 4."""
        return FLOOR if any(check.name == "floor" for check in self.failed) else STATED if self.failed else 0

    def __getitem__(self, name: str) -> FigureCheck:
        """The check of that name: "floor", "quality", "agreement", "energy" or "latency". Raises KeyError."""
        found = next((check for check in self.checks if check.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def to_json(self) -> dict[str, object]:
        """Plain data, as `--json` prints it."""
        return {
            "folder": self.folder, "data": self.data, "rows": self.rows, "original": self.original, "same_machine": self.same_machine,
            "holds": self.holds, "exit_code": self.exit_code, "checks": [dict(check.__dict__) for check in self.checks], "warnings": self.warnings,
        }  # fmt: skip


def verify(
    folder: str | Path,
    data: object,
    *,
    floor: float | str | None = None,
    original: object = None,
    columns: Mapping[str, str] | None = None,
    budget: float | str = 20.0,
    cost: bool = True,
    strict: bool = False,
    seed: int = 0,
    trust: Sequence[str] = (),
) -> Verification:
    """Measure the artefact in `folder` again on `data` (labelled as for `optimize`; a "test" part is used alone) and compare with its manifest.

    floor: relative quality, by default the manifest's. original: folder, package.module:factory or module; by default the folder that the manifest
    names, else its stored answers (quality and agreement only, on the rows they are of). budget: seconds that the race of both services may take;
    cost False leaves it out. strict: the floor must be cleared by the lower 95 % bound, not by the estimate alone.

    Raises InputError, ModelError, ArtefactError; a figure that does not hold raises nothing: see `Verification.exit_code`.
    """
    from fourfold.datasets.encode import load_labelled
    from fourfold.host import here
    from fourfold.runtime.loading import load
    from fourfold.runtime.original import find, remembered
    from fourfold.workload import fraction, seconds

    allowed = seconds(budget)
    wanted = None if floor is None else fraction(floor)
    model = load(folder, trust=trust)
    try:
        manifest = model.manifest
        subject, told = find(manifest, original)
        reader = model.assembly.reader()
        examples = load_labelled(data, model.task, subject or reader, columns=columns, max_length=manifest.get("max_length"), needed=True)
        warnings = list(model.warnings)
        if subject is None:
            index, base = remembered(Path(folder), examples)
            if len(index) < len(examples):
                lost = len(examples) - len(index)
            warnings.append(f"{lost:,} rows were left out: the original is not at hand, and its answers to them are not stored.")
            examples, part, told = examples.take(index), None, "stored answers"
        else:
            part = _part(subject, manifest, examples, model.task)
            base = part.outputs(examples, model.task)
        if len(examples) < FEWEST:
            raise InputError(f"{len(examples)} rows are too few to verify anything; at least {FEWEST} are needed.", "Bring more rows.")
        own = _own(model, data, examples, subject, columns)
        records = model.assembly.outputs(own, model.task)
        task = model.task.with_metric("agreement") if examples.targets is None and model.task.kind == "classification" else model.task
        targets = base.argmax(1) if task.metric.name == "agreement" else examples.targets
        found = relative(task.metric, base, records, targets, seed=seed, groups=examples.groups)
        same = manifest.get("fingerprint") == here().fingerprint
        stated = manifest["candidate"]
        checks = [_floor(manifest["floor"] if wanted is None else wanted, found, strict)]
        if task.metric.name == manifest["data"]["metric"]:
            checks.append(_least("quality", stated.get("test_quality"), found))
        else:
            warnings.append(f"The rows have no labels, so quality is agreement with the original; the manifest's is {manifest['data']['metric']}.")
        checks.append(_least("agreement", stated.get("agreement"), agreement(task, base, records, examples.groups, seed)))
        checks += _costs(model, part, examples, own, allowed if cost else 0.0, same, seed)
        return Verification(str(folder), _words(data), len(examples), told, same, checks, warnings)
    finally:
        model.close()


def agreement(task: Task, base: np.ndarray, records: np.ndarray, groups: np.ndarray, seed: int = 0) -> Relative | None:
    """How often the answers are the original's own: a share with its Wilson interval for classes and texts, the rank correlation for values; None
    where a task's records hold no answers. base, records: [N, k]."""
    from fourfold.datasets.metrics import METRICS

    if task.kind == "regression":
        return relative(METRICS["spearman"], base, records, base[:, 0], seed=seed, groups=groups) if base[:, 0].std() > 0 else None
    if task.kind == "classification":
        same = records.argmax(1) == base.argmax(1)
    elif task.generation is not None and not task.generates:
        return None
    elif task.width and (task.kind in ("seq2seq", "ctc") or task.generation is not None):
        same = (records[:, task.first :] == base[:, task.first :]).all(1)
    else:
        return None
    low, high = wilson(float(same.sum()), len(same))
    return Relative(float(same.mean()), low, high, len(same))


def outside(stated: Span, measured: Span, *, log: bool = False) -> float:
    """How far `measured` lies outside what a second measurement of `stated` may be: 0 inside, else the signed distance from the nearer end, in the
    figure's own unit (below it negative). `log`: errors are relative, as those of costs are."""
    turn = (lambda x: math.log(max(x, 1e-12))) if log else (lambda x: x)
    back = math.exp if log else (lambda x: x)
    value, new = turn(stated["value"]), turn(measured["value"])
    low = value - math.hypot(value - turn(_end(stated, "low")), turn(_end(measured, "high")) - new)
    high = value + math.hypot(turn(_end(stated, "high")) - value, new - turn(_end(measured, "low")))
    if new < low:
        return measured["value"] - back(low)
    return measured["value"] - back(high) if new > high else 0.0


def _end(span: Span, which: Literal["low", "high"]) -> float:
    found = span.get(which)
    return span["value"] if found is None else found


def _span(found: Any) -> Span:
    made: Span = {"value": found.value, "low": found.low, "high": found.high}
    if hasattr(found, "n"):
        made["n"] = found.n
    return made


def _floor(floor: float, found: Relative, strict: bool) -> FigureCheck:
    reached = found.low if strict else found.value
    if reached < floor:
        what = "the lower 95 % bound" if strict else "the estimate"
        return FigureCheck("floor", floor, _span(found), "fails", f"{what} is {100 * (floor - reached):.1f} points below it", reached - floor)
    why = "" if found.low >= floor else f"by the estimate; {found.n:,} rows leave its lower bound {100 * (floor - found.low):.1f} points below"
    return FigureCheck("floor", floor, _span(found), "holds", why)


def _least(name: str, stated: Span | None, found: Relative | None) -> FigureCheck:
    """A figure that may be better than stated, never worse."""
    if found is None:
        return FigureCheck(name, stated, None, "not checked", "such answers cannot be compared")
    if stated is None:
        return FigureCheck(name, None, _span(found), "not checked", "the manifest states none")
    by = outside(stated, _span(found))
    if by < 0:
        below = f"{100 * (_end(stated, 'low') - found.value):.1f} points below the stated interval"
        return FigureCheck(name, stated, _span(found), "fails", below, by)
    return FigureCheck(name, stated, _span(found), "holds", "better than stated" if by > 0 else "")


def _costs(model: Model, part: Any, examples: Examples, own: Examples | Unread, allowed: float, same: bool, seed: int) -> list[FigureCheck]:
    """The figure that the objective minimised, raced as whole services. On another processor than the manifest's it is told and not judged."""
    from fourfold.runtime.artefact import Assembly
    from fourfold.runtime.service import ORIGINAL, Runner, race_services

    manifest = model.manifest
    objective = manifest.get("objective", "energy")
    name = "latency" if objective == "latency" else "energy"
    stated = manifest["candidate"].get(f"relative_{name}")
    if allowed <= 0:
        return []
    if part is None:
        return [FigureCheck(name, stated, None, "not checked", "the original is not at hand to be raced")]
    if model.warnings:
        return [FigureCheck(name, stated, None, "not checked", "another back end stands in for the stored one")]
    call = (manifest.get("baseline") or {}).get("rows_per_call")
    if not hasattr(own, "columns") or own is examples or _vocabulary(part.subject) == _vocabulary(model.assembly.reader()):
        runners = {ORIGINAL: Runner(Assembly(ORIGINAL, [part])), model.assembly.name: Runner(model.assembly)}
        race = race_services(
            runners, examples, model.task, seconds=allowed, seed=seed, objective=objective, max_length=manifest.get("max_length"), call=call
        )[model.assembly.name].result
        found = _span(race.wall if name == "latency" else race.cpu)
    else:
        return [FigureCheck(name, stated, None, "not checked", "the two read different vocabularies")]
    if stated is None:
        return [FigureCheck(name, None, found, "not checked", "the manifest states none")]
    if not same:
        return [FigureCheck(name, stated, found, "not checked", "stated for another processor; `fourfold race` decides anew on this one")]
    by = outside(stated, found, log=True)
    if by:
        side, end = ("above", "high") if by > 0 else ("below", "low")
        apart = f"{abs(100 * (found['value'] - _end(stated, end))):.2g} points {side} the stated interval"
        return [FigureCheck(name, stated, found, "fails", apart, by)]
    return [FigureCheck(name, stated, found, "holds")]


def _part(subject: Subject, manifest: Mapping[str, Any], examples: Examples, task: Task) -> Any:
    """The original at its own best setting, as it was when the manifest was written."""
    from fourfold.engines.base import Signature
    from fourfold.engines.select import sample_batches
    from fourfold.runtime.artefact import Part, Setting

    subject.inputs = tuple(name for name in subject.inputs if name in examples.columns)
    part = Part("original", subject, subject.module, None, Setting(**manifest["baseline"]["setting"]),
                generating=task if task.generation is not None else None)
    part.signature = Signature.of(subject.inputs, sample_batches(examples, 0))
    return part


def _own(model: Model, data: object, examples: Examples, subject: Subject | None, columns: Mapping[str, str] | None) -> Examples | Unread:
    """The same rows as the artefact reads them: texts by its own tokenizers, arrays as they are."""
    from fourfold.datasets.encode import load_labelled
    from fourfold.datasets.unread import Unread

    raw, reader, longest = examples.raw, model.assembly.reader(), model.manifest.get("max_length")
    if model.task.kind in ("classification", "regression") and raw and isinstance(raw[0], str | tuple):
        return Unread(raw, reader, longest)
    if subject is None or _vocabulary(subject) == _vocabulary(reader):
        return examples
    return load_labelled(data, model.task, reader, columns=columns, max_length=longest, needed=True)


def _vocabulary(subject: Subject | None) -> int:
    tokenizer = getattr(subject, "tokenizer", None)
    return len(tokenizer) if tokenizer is not None else 0


def _words(data: object) -> str:
    return str(data) if isinstance(data, str | Path) else type(data).__name__


__all__ = ["FigureCheck", "Verification", "agreement", "outside", "verify"]
