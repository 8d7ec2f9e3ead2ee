"""What `report.json` holds: one plain-JSON document from which every reader (terminal, HTML, picture, `--json`) is drawn.

The TypedDicts below *are* the schema: `validate` reads the document as one, so there is no second copy to keep in step. Conventions, everywhere:

* **Relative** figures are fractions of the original model (1.0 = the same): quality 0.98 is 98 % of the original's, energy 0.06 is 6 % of it.
  Relative quality is always "more is better", whatever the metric's own direction. The original is the fine-tuned model in fp32 at its own best
  thread count, batch and length bucketing.
* **Intervals** are two-sided 90 %, so `low` is a one-sided 95 % lower bound. An end that is not known is null; a figure that was not measured is
  null, never 0.
* **Indices** (`front`, `best`, `knee`, `infeasible.nearest[].candidate`, `race[].candidate`) point into `candidates`.
* **Units**: seconds, joules, bytes, counts; "per_1000" is per 1,000 examples of the test split. Joules are graded: measured (a meter), counted,
  modelled (CPU time × stated power), assumed.
* **Factors** are how many times cheaper: `before / after` in relative energy of the whole run. The first `before` is 1, each `before` is the last
  row's `after`, and the last `after` is the chosen candidate's relative energy, so the factors' product is exactly `total`.
* **Levers** (since version 2; absent from older reports) carry the saving on to the hall and the grid: four rows, Model, Machine, Mechanization,
  Map, in
  that order, whose factors multiply to `levers.total`. A row that was not given is 1 with the grade null. Every row keeps its own grade; the total
  has the weakest of those given. `levers.carbon` is gCO2e of 1,000 examples before and after (null without a site), and a row's `amount` its part
  of it.
* Numbers are finite (JSON has no NaN).

Versions: "fourfold.report/1" has no `levers`; "fourfold.report/2" may have them. Both are read; 2 is written.

A key marked NotRequired may be left out. `validate(report)` returns sentences; an empty list means the document is sound. Source of the picture's
axes: NTT DATA's green-AI model-compression study (relative accuracy against relative emission).
"""

from __future__ import annotations

import math
from typing import Literal, NotRequired, TypedDict

import msgspec

from fourfold.documents import Finite, fault
from fourfold.ledger.book import LEVERS
from fourfold.report.generation import GenerationSummary
from fourfold.units import GRADES

SCHEMA = "fourfold.report/2"
READS = ("fourfold.report/1", SCHEMA)

Grade = Literal["measured", "counted", "modelled", "assumed", "published"]
Status = Literal["front", "dominated", "infeasible", "stopped"]


class Ends(TypedDict):
    """A value and the ends of its interval; None: not known."""

    value: Finite
    low: Finite | None
    high: Finite | None


class Interval(Ends):
    """A value with its two-sided 90 % interval."""

    n: NotRequired[int]  # examples (quality) or rounds (time) that it rests on


class ModelRow(TypedDict):
    name: str  # what the user typed, or the class name
    family: str  # "bert", "t5", "custom" …
    parameters: int
    bytes: int  # size on disk (or of the parameters, for a module in memory)


class DataRow(TypedDict):
    name: str
    task: str  # Task.kind
    metric: str  # Metric.name
    greater_is_better: bool
    train: int
    search: int
    test: int
    note: str  # how the splits were made
    inputs: NotRequired[str]  # what a row is: "texts", "pairs", "images", "sounds" or "arrays"; "rows" in old reports (one of the last three)


class HostRow(TypedDict):
    name: str  # one line a reader recognises: "Intel Xeon …, 2 cores, AMX"
    processor: str
    threads: int  # that the run could use
    features: list[str]  # instruction sets and accelerators that decide the race: "amx_bf16", "avx512_vnni" …
    memory_bytes: NotRequired[int | None]
    system: NotRequired[str]


class EnergyRow(TypedDict):
    """How joules were found, in words a sceptic can check."""

    grade: Grade
    method: str  # "RAPL package counter" or "CPU time × 7.5 W per busy thread (assumed …)"
    boundary: str  # what is counted: "processor package", "this process's CPU time" …


class SettingRow(TypedDict):
    """How a model is run: the configuration that the race chose."""

    engine: str
    precision: str
    threads: int
    batch: int
    bucketing: bool  # examples sorted by length before batching


class Joules(Ends):
    grade: Grade
    method: str


class Baseline(TypedDict):
    quality: Interval  # absolute, in the metric's own unit, on the test split
    setting: SettingRow
    cpu_s_per_1000: Finite
    wall_s_per_1000: Finite
    joules_per_1000: Joules | None
    memory_bytes: int | None
    rows_per_call: NotRequired[int | None]  # of the race of services: what a call costs besides its rows is shared by so many


class SimpleRow(TypedDict):
    """What needs no network: bag of words, the majority class, the mean."""

    name: str  # "bag of words", "majority class", "mean"
    quality: Interval  # absolute, test split
    relative_quality: Interval
    relative_energy: Interval | None
    parameters: NotRequired[int]


class Unit(TypedDict):
    """What is left of one sub-layer."""

    name: str  # "attention", "cross_attention", "ffn", "conv"
    what: str  # "heads", "neurons", "channels", "groups"; "" where the sub-layer has no countable units
    kept: int
    total: int
    absent: bool  # the whole sub-layer was removed


class BlockRow(TypedDict):
    name: str  # "0", "1" … or the module path
    removed: bool
    units: list[Unit]


class StackRow(TypedDict):
    name: str  # "encoder", "decoder", "vision" …
    blocks: list[BlockRow]  # all blocks of the original, removed ones included, in order


class VocabularyRow(TypedDict):
    kept: int
    total: int


class CascadeRow(TypedDict):
    members: list[str]  # cheapest first; the last is the fallback
    thresholds: list[Finite]  # confidence above which member i answers; one fewer than members
    shares: list[Finite]  # of the test split answered by each member; sums to 1


class CandidateRow(TypedDict):
    """One evaluated point."""

    name: str  # short and unique: "c012"
    how: str  # one line in words: "3 of 6 blocks, 24 of 72 heads, distilled, int8"
    stage: str  # furthest rung reached: "proxy", "short", "full", "test"
    status: Status
    reason: str  # why not on the front ("stopped: upper bound 0.94 misses the floor"); "" for front members
    techniques: list[str]  # module names in fourfold/rewrites/compress: "layer_removal", "distil" …
    levers: list[str]  # "model", "machine" …
    structure: list[StackRow]  # [] where the architecture is another one (static student, bag of words)
    vocabulary: NotRequired[VocabularyRow | None]
    parameters: int
    bytes: NotRequired[int | None]  # on disk
    search_quality: Interval | None  # relative, search split
    test_quality: Interval | None  # relative, test split, with n; finalists only
    passes_at: NotRequired[Finite | None]  # highest floor at which it would have passed, corrected for all that was tested; None where it was not
    agreement: NotRequired[Interval | None]  # share of the test split that it answers as the original does (rank correlation for values)
    relative_energy: Interval | None
    relative_latency: Interval | None
    relative_memory: Finite | None
    setting: SettingRow | None
    cascade: CascadeRow | None


class Near(TypedDict):
    candidate: int
    shortfall: Finite  # floor − lower bound of relative quality
    reason: str


class Miss(TypedDict):
    """Why no candidate clears the floor, and the ones that come nearest."""

    reason: str
    nearest: list[Near]


class Factor(TypedDict):
    """A ledger row: one step from the original to the chosen candidate."""

    lever: str
    technique: str
    title: str  # in words: "half the blocks removed"
    before: Finite  # relative energy before the step
    after: Finite
    low: NotRequired[Finite | None]  # 90 % interval of `after`
    high: NotRequired[Finite | None]
    evidence: NotRequired[str]  # in words: which race `after` is from, or why two steps could not be told apart
    point: NotRequired[str | None]  # name of the candidate whose raced cost `after` is; null: raced for this account alone
    quality_before: NotRequired[Finite]
    quality_after: NotRequired[Finite]


class RaceRow(TypedDict):
    """One raced configuration. Ratios are its time ÷ the reference's: below 1 is faster."""

    name: str
    candidate: int | None  # None: the original
    against: str  # name of the reference
    setting: SettingRow
    wall: Interval | None
    cpu: Interval | None
    accepted: bool
    reason: str  # "chosen", "interval includes 1", "needs AMX" …


class Event(TypedDict):
    t: Finite  # seconds since the job started
    stage: str
    text: str
    seconds: Finite  # that it took
    best: NotRequired[Finite | None]  # relative energy of the best feasible candidate so far


class Cost(TypedDict):
    """What the optimisation itself cost."""

    wall_s: Finite
    cpu_s: Finite
    joules: Joules | None
    break_even: int | None  # inferences after which it has paid for itself; None if never


class Citation(TypedDict):
    key: str
    text: str
    bibtex: str
    url: NotRequired[str]


class FigureRow(Ends):
    """A graded value in its unit. `grade` is null, and the value 1, where nothing was given; an end that is not known is null."""

    unit: str  # "1", "gCO2e"
    grade: Grade | None
    method: str
    source: str


class Lever(TypedDict):
    lever: Literal["model", "machine", "mechanization", "map"]
    title: str  # what was done, in words; "not given"
    given: bool
    factor: FigureRow  # times less: 4.0 = a quarter
    share: Finite | None  # ln factor / ln total
    amount: FigureRow | None  # gCO2e of 1,000 examples that this lever takes off (Shapley value)


class Carbon(TypedDict):
    run: str  # "1,000 examples"
    before: FigureRow
    after: FigureRow


class Levers(TypedDict):
    rows: list[Lever]  # all four, in order
    total: FigureRow
    energy: FigureRow  # the product without Map
    carbon: Carbon | None
    signal: str  # "average", or "" without a site
    site: str | None  # id of the place it runs at
    to_site: str | None  # and of the one it moves to
    notes: list[str]


class Report(TypedDict):
    schema: str
    created: str  # ISO 8601, UTC
    versions: dict[str, str]  # "fourfold", "python", "torch" …
    command: str  # that reproduces this report
    model: ModelRow
    data: DataRow
    machine: HostRow
    valid: str  # "measured on …; re-race elsewhere with: fourfold race cheap/"
    folder: str | None  # where the artefact lies
    trust: NotRequired[list[str]]  # packages of the model's own code, which whoever loads the artefact must trust
    objective: Literal["energy", "latency", "memory"]
    floor: Finite
    budget_s: Finite
    seed: int
    energy: EnergyRow
    baseline: Baseline
    simple: list[SimpleRow]
    candidates: list[CandidateRow]
    front: list[int]
    best: int | None
    knee: int | None
    floor_met: bool
    infeasible: Miss | None
    factors: list[Factor]
    total: Finite | None  # product of the factors: 1 / relative energy of the best
    race: list[RaceRow]
    timeline: list[Event]
    cost: Cost
    citations: list[Citation]
    notes: list[str]
    warnings: list[str]
    levers: NotRequired[Levers | None]
    generation: NotRequired[GenerationSummary | None]  # of a model that generates


def _unknown(value: object, known: object, where: str) -> str:
    """The first key of `value` that reading it as the schema (`known`) dropped, in a sentence; "" where there is none."""
    if isinstance(value, dict) and isinstance(known, dict):
        extra = [f"{where}.{key} is not part of the schema" for key in value if key not in known]
        return next(filter(None, [*extra, *(_unknown(value[key], known[key], f"{where}.{key}") for key in known)]), "")
    if isinstance(value, list) and isinstance(known, list):
        return next(filter(None, (_unknown(one, other, f"{where}[{i}]") for i, (one, other) in enumerate(zip(value, known, strict=True)))), "")
    return ""


def _indices(report: Report) -> list[str]:
    count = len(report["candidates"])
    named = [(f"front[{i}]", index) for i, index in enumerate(report["front"])]
    named += [("best", report["best"]), ("knee", report["knee"])]
    named += [(f"race[{i}].candidate", row["candidate"]) for i, row in enumerate(report["race"])]
    if report["infeasible"]:
        named += [(f"infeasible.nearest[{i}].candidate", row["candidate"]) for i, row in enumerate(report["infeasible"]["nearest"])]
    return [f"report.{name} is {index}, but there are {count} candidates" for name, index in named if index is not None and not 0 <= index < count]


def _sense(report: Report) -> list[str]:
    """What types cannot say: indices exist, the verdict agrees with itself, factors telescope."""
    lines = _indices(report)
    if report["schema"] not in READS:
        lines.append(f"report.schema is {report['schema']!r}; this version reads {' and '.join(map(repr, READS))}")
    if report["floor_met"] == (report["best"] is None):
        lines.append(f"report.floor_met is {report['floor_met']}, yet best is {report['best']}")
    if not report["floor_met"] and report["infeasible"] is None:
        lines.append("report.infeasible is null although the floor is not met: say why, and the nearest candidates")
    for i, candidate in enumerate(report["candidates"]):
        cascade = candidate["cascade"]
        if cascade and not len(cascade["members"]) == len(cascade["shares"]) == len(cascade["thresholds"]) + 1:
            lines.append(f"report.candidates[{i}].cascade: members and shares must be equally many, thresholds one fewer")
    return lines or _telescope(report) + _product(report.get("levers"))


def _telescope(report: Report) -> list[str]:
    """The factors' chain: 1 → … → relative energy of the best."""
    rows, lines, last = report["factors"], [], 1.0
    for i, row in enumerate(rows):
        if not math.isclose(row["before"], last, rel_tol=1e-6):
            lines.append(f"report.factors[{i}].before is {row['before']:.6g}; the row before it ended at {last:.6g}")
        if row["after"] <= 0:
            lines.append(f"report.factors[{i}].after is {row['after']:.6g}; a positive relative energy was expected")
        last = row["after"]
    if rows and not lines:
        if report["total"] is None or not math.isclose(report["total"] * last, 1.0, rel_tol=1e-6):
            lines.append(f"report.total is {report['total']}; the factors multiply to {1 / last:.6g}")
        best = None if report["best"] is None else report["candidates"][report["best"]]["relative_energy"]
        if best and not math.isclose(best["value"], last, rel_tol=1e-6):
            lines.append(f"report.factors end at {last:.6g}; the best candidate's relative energy is {best['value']:.6g}")
    return lines


def _product(levers: Levers | None) -> list[str]:
    """The levers' factors: all four, positive, multiplying to the total, none better graded in it than by itself."""
    if levers is None:
        return []
    rows = levers["rows"]
    if [row["lever"] for row in rows] != list(LEVERS):
        return [f"report.levers.rows are {', '.join(row['lever'] for row in rows) or 'none'}; expected {', '.join(LEVERS)}"]
    lines = [f"report.levers.rows[{i}] is{'' if row['given'] else ' not'} given, yet its grade is {row['factor']['grade']}"
             for i, row in enumerate(rows) if row["given"] == (row["factor"]["grade"] is None)]
    if any(row["factor"]["value"] <= 0 for row in rows):
        return [*lines, "report.levers: a factor must be positive"]
    total = math.prod(row["factor"]["value"] for row in rows)
    if not math.isclose(total, levers["total"]["value"], rel_tol=1e-6):
        lines.append(f"report.levers.total is {levers['total']['value']:.6g}; the factors multiply to {total:.6g}")
    grades = [row["factor"]["grade"] for row in rows if row["factor"]["grade"]]
    weakest = max(grades, key=GRADES.index, default=None)
    if levers["total"]["grade"] != weakest:
        lines.append(f"report.levers.total is graded {levers['total']['grade']}; its weakest factor is {weakest}")
    return lines


def validate(report: object) -> list[str]:
    """Sentences about what is wrong with `report` (a dict as read from report.json); an empty list if it is sound. Never raises."""
    try:
        known = msgspec.convert(report, Report)
    except msgspec.ValidationError as error:
        return [fault(error, Report, "report")]
    unknown = _unknown(report, known, "report")
    return [unknown] if unknown else _sense(known)
