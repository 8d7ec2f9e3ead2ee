"""Precision × back end × threads × batch size × length bucketing, raced on this machine for one model; nothing is assumed.

The baseline (the original in fp32 under PyTorch) is tuned like every candidate, and only then are the two compared. A pass over a fixed set of
examples, collation included, is the unit that is timed. Heats find the fastest pairs of engine and precision, coordinate descent their best settings,
and a final race against the baseline's best decides; what is not faster beyond doubt is rejected with its ratio.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fourfold import engines as registry
from fourfold.engines.base import PRECISIONS, Batch, Engine, ModuleJob, Session, Signature, first_line
from fourfold.engines.parity import parity, references
from fourfold.errors import Declined, InputError
from fourfold.measure.race import RaceResult, race

if TYPE_CHECKING:
    from torch import nn

OBJECTIVES = {"energy": "cpu", "latency": "wall", "memory": "cpu"}

#: Place of a pair that no engine names in `likely` (`fourfold.engines.base.Engine`).
UNNAMED = 11

BASELINE = "baseline"

#: About how many passes of the baseline a race takes after its own tuning (heats 25, tuning 30, final 25); the subset is sized by it.
PASSES = 80

#: Share of the budget in which the baseline is tuned, before anything is built to race it: it is never the worse for engines that are slow to build.
TUNING = 0.2

#: About how many passes that takes.
TUNINGS = 40


class Data(Protocol):
    """What a race needs of the examples (see `fourfold.datasets.examples.Examples`)."""

    lengths: np.ndarray

    def __len__(self) -> int: ...

    def take(self, index: np.ndarray) -> Any: ...

    def collate(self, index: np.ndarray, multiple: int = 1) -> Batch: ...

    def batches(self, size: int, bucket: bool = True, seed: int | None = None) -> list[np.ndarray]: ...


class RacedModel(Protocol):
    """What a race needs of the subject (see `fourfold.frontends.subject.Subject`)."""

    inputs: tuple[str, ...]

    def wrap(self, module: nn.Module) -> nn.Module: ...


@dataclass(frozen=True)
class EngineChoice:
    """One way to run a model. `bucket`: batches are made of examples of like length."""

    engine: str
    precision: str
    threads: int
    batch: int
    bucket: bool

    @property
    def pair(self) -> str:
        return f"{self.engine}/{self.precision}"

    def __str__(self) -> str:
        plural, sorted_ = "s" if self.threads > 1 else "", ", by length" if self.bucket else ""
        return f"{self.engine} {self.precision}, {self.threads} thread{plural}, batch {self.batch}{sorted_}"


@dataclass
class Outcome:
    """All that was found, as plain data. Ratios are to the baseline's own best configuration; `files` lie in `folder`."""

    objective: str
    best: EngineChoice
    baseline: EngineChoice
    result: RaceResult | None
    table: list[dict[str, Any]]
    rejected: list[dict[str, str]]
    processor: dict[str, Any]
    signature: dict[str, Any]
    examples: int
    mean_length: float
    seconds: float
    files: list[str] = field(default_factory=list)
    folder: str = ""

    @property
    def improved(self) -> bool:
        """Whether anything beat the baseline's best beyond doubt."""
        return self.result is not None

    def to_json(self) -> dict[str, object]:
        """Plain data for manifest and report; the folder's place on this disk is left out."""
        data = {key: value for key, value in asdict(self).items() if key != "folder"}
        return json.loads(json.dumps(data))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The reverse of `to_json`."""
        result = data["result"] and RaceResult.from_json(data["result"])
        return cls(**{**data, "best": EngineChoice(**data["best"]), "baseline": EngineChoice(**data["baseline"]), "result": result})


@dataclass
class Contender:
    """A pair of engine and precision that is ready to run; sessions are opened once per thread count. `call`: rows that come at once (None: all)."""

    engine: type[Engine]
    precision: str
    wrapped: Any
    signature: Signature
    data: Data
    folder: Path
    files: list[str]
    noise: float = 0.0
    prepared: float = 0.0
    sessions: dict[int, Session] = field(default_factory=dict)
    call: int | None = None

    def session(self, threads: int) -> Session:
        if threads not in self.sessions:
            wrapped = None if self.engine.standalone else self.wrapped
            self.sessions[threads] = self.engine.open(self.folder, wrapped, self.signature, self.precision, threads)
        return self.sessions[threads]

    def runner(self, choice: EngineChoice) -> Callable[[], None]:
        """One pass over the examples in this configuration, collation included; batches are made within each call."""
        session, order = self.session(choice.threads), np.random.default_rng(0).permutation(len(self.data))
        calls = [np.arange(len(self.data))] if self.call is None else np.array_split(order, max(1, round(len(order) / self.call)))
        batches = [rows[index] for rows in calls for index in self.data.take(rows).batches(choice.batch, choice.bucket)]

        def run() -> None:
            for index in batches:
                session.run(self.data.collate(index, session.multiple))

        return run

    def like(self, choice: EngineChoice) -> EngineChoice:
        """The same settings for this pair."""
        return replace(choice, engine=self.engine.name, precision=self.precision)

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()


def race_model(
    subject: RacedModel,
    module: nn.Module,
    examples: Data,
    *,
    objective: str = "energy",
    precisions: Sequence[str] | None = None,
    engines: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    batch_sizes: Sequence[int] | None = None,
    budget_s: float = 60.0,
    calibration: Data | None = None,
    reference: nn.Module | None = None,
    reference_examples: Data | None = None,
    accept: Callable[[Session, EngineChoice], str | None] | None = None,
    folder: Path | None = None,
    seed: int = 0,
    call: int | None = None,
    log: Callable[[str], None] | None = None,
) -> Outcome:
    """Find the cheapest way to run `module` on this machine.

    `objective`: "energy" (processor time per example), "latency" (wall time of single examples) or "memory" (bytes of weights). `reference` is the
    original whose best fp32 configuration every ratio is to (default: `module` itself), with its own rows in `reference_examples` where its inputs
    differ. `call`: rows that a service gets at once, within which batches are made; None: all. `calibration` sets int8 ranges (default: `examples`).
    `accept` may reject a ready session for the caller's reasons, in words.
    Engine files are left in `folder` (a new temporary one by default). Raises `InputError` for an unknown objective, engine or precision.
    """
    from fourfold.host import here

    if objective not in OBJECTIVES:
        raise InputError(f"there is no objective {objective!r}", f"Choose from: {', '.join(OBJECTIVES)}.")
    started, machine, say = time.perf_counter(), here(), log or (lambda text: None)
    folder = Path(folder or tempfile.mkdtemp(prefix="fourfold-race-"))
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    sizes = [1] if objective == "latency" else sorted(set(batch_sizes or (4, 8, 16, 32, 64)))
    counts = sorted(set(threads or powers(machine.cores)))
    first = EngineChoice("torch", "fp32", counts[0], middle(sizes), len(set(map(int, examples.lengths))) > 1)

    few = sample_batches(calibration or examples, seed)
    signature, wrapped = Signature.of(subject.inputs, few), subject.wrap(module).eval()
    theirs = reference_examples or examples
    base = Contender(registry.engine("torch"), "fp32", wrapped, signature, theirs, folder, [])
    if reference is not None:
        base = replace(base, wrapped=subject.wrap(reference).eval(), signature=Signature.of(subject.inputs, sample_batches(theirs, seed)))
    course = Field(objective, base, counts, sizes, seed, say, budget_s)
    pairs = entries(engines, precisions, objective, own=reference is not None)
    contenders: dict[str, Contender] = {}
    try:
        course.each = price(base.session(counts[0]), [theirs.collate(index) for index in theirs.batches(32, True, seed)[:6]], base.signature)
        base.data, base.call = theirs.take(representative(len(theirs), course.each, TUNING * budget_s, objective, seed, TUNINGS)), call
        first = course.begin(first)
        contenders, rejected = prepare(pairs, wrapped, signature, few, examples, folder, machine, course, accept, first)
        rows = representative(len(examples), course.each, course.left(), objective, seed)
        base.data = theirs.take(rows)
        for contender in contenders.values():
            contender.data, contender.call = examples.take(rows), call
        best, result, table = course.run(contenders, first)
    finally:
        for contender in [base, *contenders.values()]:
            contender.close()
    files = contenders[best.pair].files if result is not None else []
    for path in set(folder.iterdir()) - before:
        if path.name not in files:
            path.unlink()
    return Outcome(
        objective, best, course.best_baseline, result, table, rejected, machine.to_json(), signature.to_json(), len(base.data),
        float(np.mean(base.data.lengths)), time.perf_counter() - started, files, str(folder),
    )  # fmt: skip


def entries(engines: Sequence[str] | None, precisions: Sequence[str] | None, objective: str, own: bool) -> list[tuple[type[Engine], str]]:
    """Pairs to try, likeliest first. The baseline's own pair is among them only where the baseline is another model (`own`)."""
    wanted = precisions or [p for p in PRECISIONS if p != "int8-weights" or objective == "memory"]
    for name in wanted:
        if name not in PRECISIONS:
            raise InputError(f"there is no precision {name!r}", f"Choose from: {', '.join(PRECISIONS)}.")
    pairs = [(registry.engine(name), p) for name in engines or registry.names() for p in wanted]
    pairs = [(kind, p) for kind, p in pairs if p in kind.precisions and (own or (kind.name, p) != ("torch", "fp32"))]

    return sorted(pairs, key=lambda pair: pair[0].likely.get(pair[1], UNNAMED))


def prepare(
    pairs: Iterable[tuple[type[Engine], str]],
    wrapped: nn.Module,
    signature: Signature,
    few: list[Batch],
    data: Data,
    folder: Path,
    machine: object,
    course: Field,
    accept: Callable[[Session, EngineChoice], str | None] | None,
    first: EngineChoice,
) -> tuple[dict[str, Contender], list[dict[str, str]]]:
    """Export, open and check every pair while a little over half of the budget lasts; the rest is rejected with the reason."""
    ready: dict[str, Contender] = {}
    rejected: list[dict[str, str]] = []
    wanted = references(wrapped, signature, few)
    for kind, precision in pairs:
        label, begun = f"{kind.name}/{precision}", time.perf_counter()
        reason = kind.declines(precision, machine)
        if reason is None and ready and (course.spent() > 0.55 or course.left() < kind.slow.get(precision, 0.0)):
            reason = "not tried: the time budget does not allow for it"
        if reason is None:
            course.say(f"preparing {kind.title} {precision}")
            contender = Contender(kind, precision, wrapped, signature, data, folder, [])
            job = ModuleJob(wrapped, signature, few, precision, first.threads, folder)
            try:
                contender.sessions[first.threads] = kind.build(job)
                contender.noise, reason = parity(contender.session(first.threads), few, wanted, precision)
                if reason is None and accept is not None:
                    reason = accept(contender.session(first.threads), replace(first, engine=kind.name, precision=precision))
            except Declined as error:
                reason = error.message
            except Exception as error:
                reason = first_line(error)
            contender.files, contender.prepared = job.files, time.perf_counter() - begun
            if reason is None:
                ready[label] = contender
            else:
                contender.close()
                for file in contender.files:
                    (folder / file).unlink(missing_ok=True)
        if reason is not None:
            course.say(f"{kind.title} {precision}: {reason}")
            rejected.append({"engine": kind.name, "precision": precision, "reason": reason})
    return ready, rejected


@dataclass(frozen=True)
class Step:
    """One race of a contender's settings: `results` are relative to `anchor`, `best` is what it went on with."""

    results: dict[EngineChoice, RaceResult]
    anchor: EngineChoice
    best: EngineChoice


@dataclass
class Field:
    """The racing itself: heats, tuning, final. `left` and `spent` watch the budget (wall seconds, share)."""

    objective: str
    base: Contender
    counts: list[int]
    sizes: list[int]
    seed: int
    say: Callable[[str], None]
    budget: float
    started: float = field(default_factory=time.perf_counter)
    each: float = 0.0  # seconds of the baseline per example, roughly
    best_baseline: EngineChoice = field(init=False)
    steps: dict[str, list[Step]] = field(default_factory=dict)

    def left(self) -> float:
        return max(self.budget - (time.perf_counter() - self.started), 0.0)

    def spent(self) -> float:
        return 1 - self.left() / self.budget

    @property
    def by(self) -> str:
        return OBJECTIVES[self.objective]

    def cost(self, result: RaceResult) -> float:
        return result.cpu_median if self.by == "cpu" else result.wall_median

    def begin(self, first: EngineChoice) -> EngineChoice:
        """Tune the baseline on the rows that `base` holds; its best configuration, in which the others are then tried."""
        self.say("tuning the baseline: batch size, bucketing, threads")
        self.best_baseline = self.tune(self.base, BASELINE, first)
        return self.best_baseline

    def run(self, contenders: dict[str, Contender], first: EngineChoice) -> tuple[EngineChoice, RaceResult | None, list[dict[str, object]]]:
        """(best choice, its final result or None where nothing beat the baseline, table of everything tried)."""
        heats = self.heats(contenders, first)
        tuned: dict[str, EngineChoice] = {}
        for label in self.finalists(contenders, heats):
            self.say(f"tuning {label}")
            tuned[label] = self.tune(contenders[label], label, contenders[label].like(self.best_baseline))
        self.say("final race")
        runners = {BASELINE: self.base.runner(self.best_baseline)} | {label: contenders[label].runner(choice) for label, choice in tuned.items()}
        least = 5 if self.short(len(runners) * 9) else 7
        results = race(runners, baseline=BASELINE, rounds=15, at_least=least, warmup=1, seed=self.seed, deadline=max(0.8 * self.left(), 1.0))
        winners = [label for label in tuned if self.wins(results[label])]
        winner = min(winners, key=lambda label: self.rank(contenders[label], results[label]), default=None)
        table = self.table(contenders, first, heats, tuned, results, winner)
        return (tuned[winner], results[winner], table) if winner else (self.best_baseline, None, table)

    def heats(self, contenders: dict[str, Contender], first: EngineChoice) -> dict[str, RaceResult]:
        """Every pair in the first configuration, hopeless ones given up early."""
        runners = {BASELINE: self.base.runner(first)} | {label: contender.runner(contender.like(first)) for label, contender in contenders.items()}
        self.say(f"racing {len(contenders)} back ends with the baseline")
        few = self.short(len(runners) * 7)
        return race(
            runners, baseline=BASELINE, rounds=6, at_least=3 if few else 5, seed=self.seed, warmup=1, eliminate=self.by, deadline=0.3 * self.left(),
            min_time=0.01 if few else 0.025,
        )  # fmt: skip

    def short(self, passes: int) -> bool:
        """Whether so many passes of the baseline would take more than half of what is left."""
        return passes * self.each * len(self.base.data) > 0.5 * self.left()

    def finalists(self, contenders: dict[str, Contender], heats: dict[str, RaceResult]) -> list[str]:
        """At most three, within a quarter of the best; for memory the smallest two."""
        if self.objective == "memory":
            return sorted(contenders, key=lambda label: contenders[label].session(self.counts[0]).bytes)[:2]
        ranked = sorted(contenders, key=lambda label: self.cost(heats[label]))
        return [label for label in ranked if self.cost(heats[label]) <= 1.25 * self.cost(heats[ranked[0]])][:3]

    def tune(self, contender: Contender, label: str, start: EngineChoice) -> EngineChoice:
        """Coordinate descent: batch size, then bucketing, then threads, keeping what is fastest."""
        best, steps = start, self.steps.setdefault(label, [])
        bucketing = [True, False] if start.bucket and self.sizes != [1] else [start.bucket]
        for name, values in (("batch", self.sizes), ("bucket", bucketing), ("threads", self.counts)):
            options = [replace(best, **{name: value}) for value in values]
            if len(options) < 2:
                continue
            if self.short(len(options) * 2):
                self.say(f"{label}: no time to vary {name}")
                continue
            try:
                runners = {str(option): contender.runner(option) for option in options}
                results = race(runners, baseline=str(best), rounds=3, at_least=1 if self.short(len(options) * 4) else 3, deadline=0.3 * self.left(),
                               seed=self.seed, warmup=1)  # fmt: skip
            except Exception as error:
                # A setting that one engine cannot run (a fixed batch, say) is no setting; the one that ran stays.
                self.say(f"{label} cannot vary {name}: {first_line(error)}")
                continue
            anchor, best = best, min(options, key=lambda option: self.cost(results[str(option)]))
            steps.append(Step({option: results[str(option)] for option in options}, anchor, best))
        return best

    def wins(self, result: RaceResult) -> bool:
        """Faster beyond doubt; for memory (where bytes decide) not dearer beyond doubt."""
        return getattr(result, self.by).verdict <= 0 if self.objective == "memory" else result.faster(self.by)

    def rank(self, contender: Contender, result: RaceResult) -> float:
        return contender.session(self.counts[0]).bytes if self.objective == "memory" else self.cost(result)

    def table(
        self,
        contenders: dict[str, Contender],
        first: EngineChoice,
        heats: dict[str, RaceResult],
        tuned: dict[str, EngineChoice],
        results: dict[str, RaceResult],
        winner: str | None,
    ) -> list[dict[str, Any]]:
        """Every configuration with its ratio to the baseline's best. Those outside the final are chained through configurations that two races share;
        their interval is their own race's."""
        rows: list[dict[str, Any]] = []
        chained: list[dict[str, Any]] = []
        for label, choice in (tuned | {BASELINE: self.best_baseline}).items():
            contender = self.base if label == BASELINE else contenders[label]
            rows.insert(0, self.row("final", label, choice, results[label], contender, {"cpu": 1.0, "wall": 1.0}, label == (winner or BASELINE)))
            scale = {by: getattr(results[label], by).value for by in ("cpu", "wall")}
            for step in reversed(self.steps[label]):
                scale = {by: value / getattr(step.results[step.best], by).value for by, value in scale.items()}
                # an anchor is a row of its own only where nothing else shows it: the configuration that the baseline's tuning began with
                shown = (step.best,) if label == BASELINE and step is self.steps[label][0] else (step.best, step.anchor)
                rest = {option: result for option, result in step.results.items() if option not in shown}
                chained += [self.row("tuning", label, option, result, contender, scale, False) for option, result in rest.items()]
        for label, result in heats.items():                  # relative to the baseline's best, in which they were run
            contender = self.base if label == BASELINE else contenders[label]
            choice = contender.like(first)
            if choice != (tuned | {BASELINE: self.best_baseline}).get(label):
                chained.append(self.row("heat", label, choice, result, contender, {"cpu": 1.0, "wall": 1.0}, False))
        return rows + chained

    def row(
        self, stage: str, label: str, choice: EngineChoice, result: RaceResult, contender: Contender, scale: dict[str, float], chosen: bool
    ) -> dict[str, Any]:
        """One line of the table. Times are seconds per example, bytes those of the weights, noise as in `parity`."""
        ratios = {by: {key: getattr(getattr(result, by), key) * scale[by] for key in ("value", "low", "high")} for by in ("cpu", "wall")}
        mine = ratios[self.by]
        verdict = "cheaper" if mine["high"] < 1 else "dearer" if mine["low"] > 1 else "no difference"
        session = contender.session(choice.threads)
        return {
            "stage": stage,
            "who": BASELINE if label == BASELINE else "candidate",
            **asdict(choice),
            "cpu": ratios["cpu"],
            "wall": ratios["wall"],
            "cpu_per_example": result.cpu_median / len(contender.data),
            "wall_per_example": result.wall_median / len(contender.data),
            "rounds": result.rounds,
            "dropped": result.dropped is not None,
            "verdict": verdict,
            "chosen": chosen,
            "bytes": session.bytes,
            "noise": contender.noise,
            "prepared_s": contender.prepared,
            "ran": session.describe(),
        }


def powers(cores: int) -> list[int]:
    """1, 2, 4 … and the number of cores itself."""
    return sorted({1, max(cores, 1), *(1 << k for k in range(cores.bit_length()) if 1 << k <= cores)})


def middle(values: Sequence[int]) -> int:
    """The middle one of a sorted list."""
    return values[len(values) // 2]


def sample_batches(data: Data, seed: int, count: int = 6, size: int = 32) -> list[Batch]:
    """Batches of differing shapes, for calibration, parity and reading the signature: `count` of `size`, and smaller ones down to one example."""
    picks = data.batches(size, True, seed)[:count]
    if not picks:
        raise InputError("there is no example to race with", "Give at least one row of data.")
    whole = max(picks, key=len)
    picks = [whole, whole[: max(1, len(whole) // 2 - 1)], picks[-1][:1], *[p for p in picks if p is not whole]]
    return [data.collate(index) for index in picks]


def price(session: Session, few: list[Batch], signature: Signature) -> float:
    """Wall seconds per example, roughly."""
    for batch in few:
        session.run(batch)
    began = time.perf_counter()
    for batch in few:
        session.run(batch)
    return max((time.perf_counter() - began) / sum(len(batch[signature.names[0]]) for batch in few), 1e-7)


def representative(count: int, each: float, seconds: float, objective: str, seed: int, passes: int = PASSES) -> np.ndarray:
    """Row numbers (sorted) of a seeded random subset, sized so that the `passes` that a race takes fit into `seconds`; `each` is seconds per example.

    Never fewer than 16 rows (4 for latency, which takes one at a time) nor more than 512 (64), nor more than there are (`count`).
    """
    low, high = (4, 64) if objective == "latency" else (16, 512)
    size = min(count, max(low, min(high, int(seconds / passes / each))))
    return np.sort(np.random.default_rng(seed).permutation(count)[:size])
