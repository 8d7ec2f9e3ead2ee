"""The stages of `fourfold.optimize`, one method each; `fourfold/optimize.py` tells their order on one page.

All that is worth keeping goes through the journal, so a killed run resumes at the step it was in. Decisions depend on the seed, the data and
journalled measurements, never on a clock read in passing.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import FourfoldError, InputError, ModelError
from fourfold.measure.clock import RaceResult, race
from fourfold.measure.quality import Relative, relative
from fourfold.run.artefact import Assembly, Part, Setting
from fourfold.run.finals import Point, prepare, race_points, weight_bytes
from fourfold.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fourfold.cost.table import CostTable, Site
    from fourfold.ingest.data import Examples, Splits
    from fourfold.ingest.model import Subject
    from fourfold.ingest.task import Task
    from fourfold.journal import Journal
    from fourfold.rewrites.compress.combine import Bench, Candidate, Listener, Node, Plan, Searcher

SEARCH_ROWS, TEST_ROWS = 3_000, 20_000
"""Rows of the search and test splits that are judged at most; more would cost time and no longer narrow the interval that matters."""


class Silent:
    """A listener that tells nobody."""

    def plan(self, stages: dict[str, float]) -> None: ...
    def stage(self, name: str, total: int = 0) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def best(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Options:
    """What the user asked for beyond model, data and floor."""

    out: Path | None = None
    metric: Any = None
    task: str | None = None
    columns: Mapping[str, str] | None = None
    splits: Any = None
    engines: list[str] | None = None
    threads: list[int] | None = None
    max_length: int | None = None
    fresh: bool = False
    command: str = ""


@dataclass
class Simple:
    """A model without a network: its records on search and test, and the point it makes if it can answer by itself."""

    name: str
    search: np.ndarray
    test: np.ndarray
    words: Any = None


@dataclass
class Job:
    """One run. Fields are filled by the stages in order."""

    work: Workload
    options: Options
    listener: Listener
    folder: Path
    subject: Subject = field(init=False)
    task: Task = field(init=False)
    splits: Splits = field(init=False)
    journal: Journal = field(init=False)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    simple: list[Simple] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    started: float = field(default_factory=time.time)

    # ---- read ----------------------------------------------------------------------------------------------------------------------

    def read(self, model: Any, data: Any) -> None:
        """Load model and data, split, open the journal."""
        from fourfold.ingest.data import load_data
        from fourfold.ingest.model import load_model, state
        from fourfold.journal import Journal
        from fourfold.machine import here

        self.listener.stage("reading model and data", 0)
        self.subject = load_model(model)
        self.subject.module.eval()
        if self.subject.origin.get("kind") == "opaque":
            self.warnings.append(f"{self.subject.origin['why']}: the result can be used here, and saved only where a back end's own files carry it.")
        splits, task = load_data(
            data,
            self.options.task,
            self.subject,
            columns=self.options.columns,
            splits=self.options.splits,
            seed=self.work.seed,
            max_length=self.options.max_length,
            metric=self.options.metric,
        )
        self.task = task
        self.subject.inputs = tuple(n for n in self.subject.inputs if n in splits.train.columns)
        self.splits = replace(
            splits, search=_capped(splits.search, SEARCH_ROWS, self.work.seed), test=_capped(splits.test, TEST_ROWS, self.work.seed)
        )
        if splits.note:
            self.notes.append(splits.note)
        self.batch = 32 if not self.sequences else int(np.clip(1024 // max(1, int(np.mean(splits.train.lengths))), 2, 32))
        fingerprint = {
            "weights": _digest(state(self.subject.module)),
            "train": self.splits.train.digest(),
            "search": self.splits.search.digest(),
            "test": self.splits.test.digest(),
            "floor": self.work.floor,
            "objective": self.work.objective,
            "budget": self.work.budget,
            "seed": self.work.seed,
            "metric": self.task.metric.name,
            "engines": self.options.engines,
            "threads": self.options.threads,
            "machine": here().fingerprint,
            "version": 4,
        }
        self.journal = Journal(self.folder, fingerprint)
        if self.options.fresh and any("key" in e for e in self.journal.events()):
            path = self.journal.path
            self.journal.close()
            os.replace(path, path.with_suffix(f".{int(time.time())}.old"))
            self.journal = Journal(self.folder, fingerprint)

        self._limit()

    batch: int = 32
    each: float = 0.0

    @property
    def sequences(self) -> bool:
        """Whether outputs are tokens × vocabulary per example, far larger than anything else at hand."""
        from fourfold.rewrites.calibration import bulky

        return bulky(self.task, self.splits.train)

    def _limit(self) -> None:
        """Time the original on a few rows, and keep only as many search and test rows as the budget can judge a dozen times over."""
        from fourfold.rewrites.compress.combine import evaluate_with

        few = self.splits.test.take(np.arange(min(16, len(self.splits.test))))

        def run() -> float:
            evaluate_with(self.subject, self.task, self.subject.module, few, exact=True)
            began = time.perf_counter()
            evaluate_with(self.subject, self.task, self.subject.module, few, exact=True)
            return (time.perf_counter() - began) / len(few)

        self.each = float(self.journal.once("rows", run))
        for name, share, least in (("search", 0.04, 100), ("test", 0.15, 300)):
            whole: Examples = getattr(self.splits, name)
            kept = _capped(whole, max(least, int(share * self.work.budget / max(self.each, 1e-9))), self.work.seed)
            if len(kept) < len(whole):
                self.notes.append(
                    f"{len(kept):,} of {len(whole):,} {name} rows are used, which is what the budget of {self.work.budget:.0f} s can judge; "
                    "a larger one uses more."
                )
                self.splits = replace(self.splits, **{name: kept})

    # ---- baseline ------------------------------------------------------------------------------------------------------------------

    def baseline(self) -> None:
        """The original's answers, its own best settings, and the models that need no network."""
        from fourfold.rewrites.compress.combine import evaluate_with

        self.listener.stage("measuring the original", 3)
        for name in ("search", "test"):
            examples: Examples = getattr(self.splits, name)
            rows = self._array(
                f"original:{name}", lambda examples=examples: evaluate_with(self.subject, self.task, self.subject.module, examples, exact=True)
            )
            if not np.isfinite(rows).all():
                bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
                raise ModelError(
                    f"the original answers NaN or infinity on row {bad} of the {name} split.", "Repair the model or remove such inputs first."
                )
            setattr(self, f"base_{name}", rows)
            if examples.targets is None:  # no labels: the original's own answers are the truth, and agreement with them the quality
                self.splits = replace(self.splits, **{name: examples.with_targets(self.task.labelled(rows))})
                self.task = self.task.with_metric("agreement") if self.task.metric.name != "agreement" else self.task
            self.listener.advance()
        self.quality = float(self.task.metric.score(self.base_test, self.splits.test.targets))
        again = float(self.task.metric.score(self.base_test, self.splits.test.targets))
        self._relative(self.base_test, "test")  # raises where a share of the original's own score means nothing
        if not math.isfinite(self.quality) or again != self.quality:
            from fourfold.errors import MetricError

            raise MetricError(
                f"the metric {self.task.metric.name} answered {self.quality} and then {again} for the same predictions.",
                "A metric must be a finite, deterministic number.",
            )
        if self.quality <= 0 and self.task.metric.greater_is_better:
            raise InputError(
                f"the original scores {self.task.metric.name} = {self.quality:.4g}; a share of that means nothing.",
                "Check labels and model, or give a metric that is positive.",
            )
        self.listener.best(f"the original: {self.task.metric.name} {self.quality:.4g} on {len(self.base_test):,} unseen examples")
        self._simple()
        self._tune_original()
        self.listener.advance()

    base_search: np.ndarray = field(init=False)
    base_test: np.ndarray = field(init=False)
    quality: float = field(init=False)
    base_setting: Setting = field(init=False)
    pairs: list[tuple[str, str, dict[str, Any]]] = field(init=False)
    race_rows: list[dict[str, Any]] = field(default_factory=list)
    race_rejected: list[dict[str, str]] = field(default_factory=list)

    def _simple(self) -> None:
        """What needs no network: the majority class or the mean, and a linear model on counted words (counted tokens for language models)."""
        from fourfold.rewrites.compress.bag_of_words import fit, majority, mean, plain

        train, search, test = self.splits.train, self.splits.search, self.splits.test
        if train.targets is None:
            return
        if self.task.kind == "causal_lm":
            name, rows, _ = plain(train, test, self.task, self.work.seed)
            self.simple.append(Simple(name, plain(train, search, self.task, self.work.seed)[1], rows))
        if self.task.kind not in ("classification", "regression"):
            return
        outputs = self.base_test.shape[1]
        constant = majority(train.targets, outputs) if self.task.kind == "classification" else mean(train.targets)
        self.simple.append(Simple(constant.name, constant.records(range(len(search))), constant.records(range(len(test)))))
        if train.raw is not None and len(train.raw) and isinstance(train.raw[0], str | tuple):
            classes = (self.task.classes or [str(i) for i in range(outputs)]) if self.task.kind == "classification" else None
            words = fit(train.raw[:30_000], train.targets[:30_000], classes, seed=self.work.seed)
            self.simple.append(Simple("bag of words", words.records(search.raw or []), words.records(test.raw or []), words))

    def _tune_original(self) -> None:
        from fourfold.run.race import race_model

        folder = self.folder / "race-original"

        def run() -> dict[str, Any]:
            outcome = race_model(
                self.subject,
                self.subject.module,
                self._raced(self.splits.search),
                objective=self.work.objective,
                engines=self.options.engines,
                threads=self.options.threads,
                batch_sizes=[1, 2, 4, 8] if self.sequences else None,
                budget_s=max(12.0, min(90.0, 0.08 * self.work.budget)),
                folder=folder,
                seed=self.work.seed,
                log=self.listener.note if os.environ.get("FOURFOLD_DEBUG") else None,
            )
            return outcome.to_json()

        found = self.journal.once("race:original", run)
        self.race_rows, self.race_rejected = found["table"], found["rejected"]
        base = found["baseline"]
        self.base_setting = Setting("torch", "fp32", base["threads"], base["batch"], base["bucket"])
        self.pairs = _best_pairs(found["table"], self.work.objective, self.base_setting)
        row = next(r for r in found["table"] if r["who"] == "baseline" and r["stage"] == "final")
        self.base_cpu, self.base_wall = row["cpu_per_example"], row["wall_per_example"]
        self.listener.best(
            f"the original: {self.task.metric.name} {self.quality:.4g}; "
            f"{1e3 * self.base_cpu:.2f} ms CPU per example at its best ({self.base_setting})"
        )

    base_cpu: float = field(init=False)
    base_wall: float = field(init=False)

    # ---- measure -------------------------------------------------------------------------------------------------------------------

    root: Node | None = None
    table: CostTable | None = None
    sites: list[Site] = field(default_factory=list)
    plan: Plan | None = None
    searcher: Searcher | None = None

    def _raced(self, examples: Examples) -> Examples:
        """The rows that races, calibration of int8 and parity checks read: few where every row's output is large."""
        return _capped(examples, 8, self.work.seed) if self.sequences else examples

    def sample(self, module: nn.Module) -> torch.Tensor:
        """A forward pass over a few short rows: what anatomy probes the model with."""
        import torch

        from fourfold.rewrites.compress.distil import tensors

        examples = self.splits.train
        few = np.argsort(examples.lengths, kind="stable")[len(examples) // 4 :][:3]
        with torch.no_grad():
            return self.subject.logits(module, tensors(examples.collate(few)))

    def measure(self) -> None:
        """Anatomy, sensitivities in one calibration pass, the cost table, and the plan that the time allows."""
        from fourfold.ingest.anatomy import anatomize
        from fourfold.rewrites.calibration import Sensitivities, calibrate
        from fourfold.rewrites.compress.combine import cost_sites, original

        self.listener.stage("finding what can be removed", 0)
        anatomy = anatomize(self.subject.module, self.sample)
        self.refusals = dict(anatomy.refusals)
        if not any(stack.blocks for stack in anatomy.stacks):
            why = next(iter(self.refusals.items()), (type(self.subject.module).__name__, "no stack of residual blocks was found"))
            self.warnings.append(f"Nothing of {why[0]} can be removed ({why[1]}). It is still quantised, and its back ends are raced.")
            return
        self.root = original(self.subject.module, anatomy)
        root = self.root
        self.sites = cost_sites(anatomy)
        units = sum(1 + len(b.sublayers) for stack in anatomy.stacks for b in stack.blocks)
        count = min(len(self.splits.train), int(np.clip(0.08 * self.work.budget / (4 * max(self.each, 1e-9)), 8, 384)))
        ablated = min(count, int(0.06 * self.work.budget / (units * max(self.each, 1e-9))), 128 if not self.sequences else 16)

        def read() -> dict[str, torch.Tensor]:
            import torch

            self.listener.stage("calibrating: what each unit matters", count + (sum(len(s.blocks) for s in anatomy.stacks) if ablated >= 4 else 0))
            found = calibrate(
                self.subject,
                root.module,
                self.task,
                self.splits.train,
                anatomy,
                examples=count,
                ablated=ablated if ablated >= 4 else 0,
                seed=self.work.seed,
                progress=self.listener.advance,
            )
            flat = {f"gradients|{k}": v for k, v in found.gradients.items()} | {f"gram|{k}": v for k, v in found.gram.items()}
            facts = json.dumps({"influence": found.influence, "ablation": found.ablation, "examples": found.examples})
            flat["facts"] = np.frombuffer(facts.encode(), np.uint8).copy()
            return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in flat.items()}

        stored = self.journal.tensors("calibration", read)
        facts = json.loads(stored["facts"].numpy().tobytes().decode())
        root.sensitivities = Sensitivities(
            facts["influence"], facts["ablation"], {k[10:]: v.numpy() for k, v in stored.items() if k.startswith("gradients|")},
            {k[5:]: v.numpy() for k, v in stored.items() if k.startswith("gram|")}, facts["examples"],
        )
        self.table = self._cost_table(root)
        self.plan = self._plan(root)
        share = max(10.0, self.work.budget - self.journal.elapsed)
        self.listener.plan(
            {
                "asking the original": 0.08 * share,
                "sketching shapes": 0.07 * share,
                "pruning and distilling": 0.45 * share,
                "distilling a static student": 0.08 * share,
                "refining near the floor": 0.08 * share,
                "building precisions and back ends": 0.14 * share,
                "racing": 0.07 * share,
                "proving on the unseen split": 0.03 * share,
            }
        )

    def _cost_table(self, root: Node) -> CostTable:
        from fourfold.cost.table import fit, variants
        from fourfold.rewrites.compress.combine import prune

        shapes = variants(self.sites)
        if len(shapes) > 14:  # many kinds of sites: time the whole-kind removals only, the ridge shares presence and size
            shapes = {n: s for n, s in shapes.items() if not n.endswith(":half")}

        def run() -> dict[str, float]:
            self.listener.stage("timing removable units on this machine", len(shapes))
            from fourfold.run.finals import runner, sample_for

            runners: dict[str, Callable[[], None]] = {}
            sample: Examples | None = None
            for name, shape in shapes.items():
                module = root.module if name == "full" else prune(root, shape, mend=False)[0]
                part = self._part(name, module, None, self.base_setting)
                part.signature = self._signature()
                if sample is None:
                    sample = sample_for(part, self._raced(self.splits.search), min(0.6, self.work.budget / 600), self.work.seed, self.work.objective)
                runners[name] = runner(Assembly(name, [part]), sample, self.task)
                self.listener.advance()
            seconds = max(3.0, min(25.0, 0.06 * self.work.budget))
            results = race(runners, baseline="full", rounds=9, seed=self.work.seed, deadline=seconds, warmup=1, min_time=0.02)
            return {n: (r.wall if self.work.objective == "latency" else r.cpu).value for n, r in results.items()}

        if self.work.objective == "memory":
            measured = {n: self._bytes(root.module if n == "full" else prune(root, s, mend=False)[0]) for n, s in shapes.items()}
        else:
            measured = self.journal.once("cost-table", run)
        return fit(self.sites, shapes, measured)

    @staticmethod
    def _bytes(module: nn.Module) -> float:
        return float(sum(p.numel() * p.element_size() for p in module.parameters()))

    def _plan(self, root: Node) -> Plan:
        """What the budget allows, from the measured time of a training step; journalled, so that a resumed run follows the same plan."""
        from fourfold.rewrites.compress.combine import Plan, cheapest, prune
        from fourfold.rewrites.compress.distil import Schedule, Teacher, recover

        assert self.table is not None
        table = self.table

        def run() -> dict[str, Any]:
            teacher = Teacher(self.subject, root.module, self.task)
            warm, count = (1, 2) if self.sequences else (2, 6)
            quick = Schedule(warm, self.batch, hidden_weight=0, seed=991, dropout=False)
            thin = {s.name: max(s.least, s.full // 4) for s in self.sites}  # as deep as the original: a step costs by depth more than by width
            pace: dict[float, float] = {}
            for shape in ({}, thin, {s.name: s.least for s in self.sites}):
                module = prune(root, shape, mend=False)[0] if shape else copy.deepcopy(root.module)
                recover(module, self.subject, self.task, self.splits.train, quick, teacher=teacher)
                began = time.perf_counter()
                recover(module, self.subject, self.task, self.splits.train, replace(quick, steps=count), teacher=teacher)
                pace[table.total(self.sites, shape)] = (time.perf_counter() - began) / count
            return plan_for(
                pace,
                cheapest(root.anatomy, table, self.sites),
                self.work,
                len(self.splits.train),
                self.journal.elapsed,
                self.batch,
                online=self.sequences,
            )

        found = self.journal.once("plan", run)
        self.augment = float(found.pop("augment"))
        return Plan(**found)

    augment: float = 0.0

    # ---- search --------------------------------------------------------------------------------------------------------------------

    def search(self) -> None:
        """The combined search: sketches, short trials, full recoveries, refinement near the floor; and the static students."""
        from fourfold.rewrites.compress.combine import Searcher

        if self.root is not None and self.plan is not None:
            bench = self._bench()
            self.searcher = Searcher(bench, self.root, self.plan)
            sketches = self.searcher.propose()
            self.searcher.descend(sketches)
            self.candidates = self.searcher.candidates
            self._static(bench)
            self.searcher.refine()
        self.candidates = self.searcher.candidates if self.searcher else self.candidates

    def _bench(self) -> Bench:
        from fourfold.rewrites.augmentation import augment
        from fourfold.rewrites.compress.combine import Bench
        from fourfold.rewrites.compress.distil import Teacher

        assert self.root is not None and self.table is not None and self.plan is not None
        tokenizer = self.subject.tokenizer
        train = self.splits.train
        room = max(1_000, self.batch * (sum(self.plan.steps) + self.plan.short))
        train = _capped(train, room, self.work.seed)
        pool = augment(
            train,
            self.augment,
            self.task,
            special=getattr(tokenizer, "all_special_ids", ()) or (),
            mask=getattr(tokenizer, "mask_token_id", None),
            seed=self.work.seed,
        )
        teacher = Teacher(self.subject, self.root.module, self.task)

        def answer() -> dict[str, torch.Tensor]:
            import torch

            self.listener.stage("asking the original", len(pool))
            found = teacher.answer(pool, self.listener.advance)
            return {"answers": found if found is not None else torch.zeros(0)}

        answers = self.journal.tensors("answers", answer)["answers"]
        return Bench(
            self.subject,
            self.task,
            self.splits,
            pool,
            teacher,
            answers if answers.numel() else None,
            self.sample,
            self.table,
            self.sites,
            self.journal,
            self.listener,
            self.folder,
            self.work.floor,
            self.work.seed,
            self.base_search,
            batch=self.batch,
            lr=5e-5 if self.task.kind == "causal_lm" else 2e-4,
            hidden_weight=self.plan.hidden,
            label_weight=0.0,
            calibration=min(384, self.root.sensitivities.examples if self.root.sensitivities else 384),
        )

    def _static(self, bench: Bench) -> None:
        """Students without attention, for text classification and regression."""

        from fourfold.ingest.model import Subject
        from fourfold.recipe import Recipe
        from fourfold.rewrites.compress.combine import Candidate, evaluate_with
        from fourfold.rewrites.compress.distil import Schedule, recover
        from fourfold.rewrites.compress.static import Static, StaticStudent, student

        if (
            self.task.kind not in ("classification", "regression")
            or Static().declines(self.subject.module)
            or "input_ids" not in bench.pool.columns
            or bench.answers is None
        ):
            return
        outputs = int(bench.answers.shape[1])
        names = tuple(n for n in ("input_ids", "attention_mask", "token_type_ids") if n in bench.pool.columns)
        steps = int(np.clip(4 * len(bench.pool) // 128, 100, 2500 if self.work.budget > 400 else 900))
        for window in (1, 3):
            made = student(self.subject.module, bench.pool, outputs, width=128 if window == 1 else 192, window=window, seed=self.work.seed)
            subject = Subject(made, {"kind": "static", "shape": made.shape}, names, self.subject.tokenizer, None, None)
            name = f"static-{window}"

            def train(made: StaticStudent = made, subject: Subject = subject) -> dict[str, torch.Tensor]:
                self.listener.stage("distilling a static student", steps)
                last = 0

                def tick(step: int, _loss: float) -> None:
                    nonlocal last
                    self.listener.advance(step - last)
                    last = step

                recover(
                    made,
                    subject,
                    self.task,
                    bench.pool,
                    Schedule(steps, 128, 2e-3, seed=self.work.seed, hidden_weight=0),
                    teacher=bench.teacher,
                    answers=bench.answers,
                    progress=tick,
                )
                return {k: v.detach().clone().contiguous() for k, v in made.state_dict().items()}

            made.load_state_dict(self.journal.tensors(f"train:{name}:{steps}", train))
            made.eval()
            share = sum(p.numel() for p in made.parameters() if p.dim() < 3) / max(1, sum(p.numel() for p in self.subject.module.parameters()))
            candidate = Candidate(
                name, "static", Recipe(()), {}, min(0.01, share), 2, steps, module=made, extra={"subject": subject, "window": window}
            )
            candidate.records = self._array(f"judge:{name}", lambda s=subject, m=made: evaluate_with(s, self.task, m, self.splits.search))
            candidate.quality = self._relative(candidate.records, "search")
            assert self.searcher is not None
            self.searcher.candidates.append(candidate)

    # ---- race ----------------------------------------------------------------------------------------------------------------------

    def race(self) -> None:
        """Every candidate in its likeliest precisions and back ends, and cascades of them, raced against the tuned original."""
        from fourfold.recipe import Recipe
        from fourfold.rewrites.compress.combine import Candidate
        from fourfold.solvers.bayes import dominated

        root = Candidate("original", "original", Recipe(()), {}, 1.0, 2, module=self.subject.module)
        root.records, root.quality = self.base_search, Relative(1.0, 1.0, 1.0, len(self.base_search))
        everyone = [root, *[c for c in self.candidates if c.status == "open" and c.module is not None]]
        everyone += self._smaller_vocabularies(everyone)
        beaten = dominated([(c.cost, -c.quality.value) for c in everyone if c.quality])
        worth = {c.name for c, gone in zip([c for c in everyone if c.quality], beaten, strict=True) if not gone}
        ways = self._affordable([(c, w) for c in everyone for w in self._ways(c, c.name in worth)])
        self.listener.stage("building precisions and back ends", len(ways))
        for candidate, (engine, precision, how) in ways:
            self._add_point(candidate, Setting(engine, precision, **how))
            self.listener.advance()
        self._add_words()
        open_ = [p for p in self.points if p.status == "open"]
        self._race("race:points", open_, 0.10)
        self._add_cascades()

    def _smaller_vocabularies(self, everyone: list[Candidate]) -> list[Candidate]:
        """Where memory is what counts, every structure once more without the token rows that no training text uses: as fast, but far smaller."""
        from fourfold.recipe import apply
        from fourfold.rewrites.compress.combine import Candidate, evaluate_with
        from fourfold.rewrites.compress.vocabulary import VocabularyPruning, plan, reencoded

        train = self.splits.train
        if self.work.objective != "memory" or self.subject.tokenizer is None or "input_ids" not in train.columns or train.raw is None:
            return []
        if self.task.kind not in ("classification", "regression") or VocabularyPruning().declines(self.subject.module):
            return []
        made = []
        for c in everyone:
            if c.module is None or c.kind == "static":
                continue
            try:
                pruned = plan(c.module, self.subject.tokenizer, list(train.columns["input_ids"]))
                module = apply(copy.deepcopy(c.module), pruned.recipe)
            except ModelError as error:
                self.refusals["vocabulary"] = error.message
                return []
            subject = replace(self.subject, module=module, tokenizer=pruned.tokenizer)
            smaller = Candidate(
                f"{c.name}, fewer rows", c.kind, c.recipe + pruned.recipe, c.shape, c.cost, c.rung, c.steps, c.parent, c.kept, module=module,
                extra={**c.extra, "subject": subject, "pruned": pruned},
            )
            seen = reencoded(self.splits.search, self.subject, pruned, self.options.max_length)
            smaller.records = self._array(f"judge:{smaller.name}", lambda s=subject, m=module, e=seen: evaluate_with(s, self.task, m, e))
            smaller.quality = self._relative(smaller.records, "search")
            made.append(smaller)
        return made

    def _ways(self, candidate: Candidate, worth: bool) -> list[tuple[str, str, dict[str, Any]]]:
        """Settings to build a candidate in; one that another beats in both cost and quality is only kept for the record, as it was trained."""
        base = ("torch", "fp32", {"threads": self.base_setting.threads, "batch": self.base_setting.batch, "bucketing": self.base_setting.bucketing})
        pairs = [w for w in self.pairs if (w[0], w[1]) != ("torch", "fp32")]
        if candidate.kind == "original":
            return [base, *pairs]
        if candidate.kind == "static":  # a table look-up has nothing to quantise that would pay; only the back end can differ
            return [base, *[w for w in pairs if w[1] == "fp32"][:1]]
        return [base, *pairs] if worth else [base]

    def _affordable(self, ways: list[tuple[Candidate, Any]]) -> list[tuple[Candidate, Any]]:
        """The builds that fit in a sixth of the budget by the original's own building times: plain PyTorch always, then the likeliest first.

        Likely is: the best pair before the second best, and structures near the floor before those far from it; the original's and three
        structures' best pairs are built in any case.
        """
        seconds = {(r["engine"], r["precision"]): float(r["prepared_s"]) for r in self.race_rows}
        ranks = {(e, p): i for i, (e, p, _) in enumerate(self.pairs)}

        def distance(c: Candidate) -> float:
            return abs((c.quality.value if c.quality else 0.0) - self.work.floor - 0.01)

        plain = [w for w in ways if (w[1][0], w[1][1]) == ("torch", "fp32")]
        rest = sorted((w for w in ways if w not in plain), key=lambda w: (ranks[w[1][0], w[1][1]], w[0].kind != "original", distance(w[0])))
        kept, spent = [], 0.0
        for number, way in enumerate(rest):
            cost = seconds.get((way[1][0], way[1][1]), 2.0) * (1.0 if way[0].kind == "original" else 0.7)
            if number < 4 or spent + cost <= self.work.budget / 6:
                kept.append(way)
                spent += cost
        return plain + kept

    def _part(self, name: str, module: nn.Module | None, candidate: Candidate | None, setting: Setting) -> Part:
        subject = candidate.extra.get("subject", self.subject) if candidate is not None else self.subject
        part = Part(name, subject, module, candidate.recipe if candidate is not None else None, setting)
        if candidate is not None and "pruned" in candidate.extra:
            from fourfold.rewrites.compress.vocabulary import reencoded

            pruned = candidate.extra["pruned"]
            part.reencode = lambda examples: reencoded(examples, self.subject, pruned, self.options.max_length)
        return part

    def _signature(self, subject: Subject | None = None) -> Any:
        from fourfold.run.engines.base import Signature
        from fourfold.run.race import sample_batches

        return Signature.of((subject or self.subject).inputs, sample_batches(self._raced(self.splits.search), self.work.seed))

    def _add_point(self, candidate: Candidate, setting: Setting) -> None:
        name = f"{candidate.name} · {setting.engine} {setting.precision}"
        part = self._part(candidate.name, candidate.module, candidate, setting)
        factor = next((h["ratio"] for e, p, h in self.ratios if (e, p) == (setting.engine, setting.precision)), 1.0)
        point = Point(name, candidate, Assembly(name, [part]), predicted=candidate.cost * factor)
        _, reason = prepare(part, self._raced(self.splits.search), self.folder / "engines" / candidate.name.replace(" ", "-"), self.work.seed)
        if reason:
            point.status, point.reason = "rejected", reason
            self.points.append(point)
            return
        try:
            point.search_records = self._array(f"point:{name}:search", lambda: self._answers(part, candidate))
        except FourfoldError as error:
            point.status, point.reason = "rejected", error.message
        if point.search_records is not None and not np.isfinite(point.search_records).all():
            point.status, point.reason = "rejected", "answers with NaN or infinity on the search split"
        if point.status == "open" and point.search_records is not None:
            point.search = self._relative(point.search_records, "search")
        self.points.append(point)

    def _answers(self, part: Part, candidate: Candidate) -> np.ndarray:
        """Records of a part over the search split. Plain PyTorch answers the same whatever its batch and threads, so all cores answer for it."""
        from fourfold.rewrites.compress.combine import evaluate_with

        if (part.setting.engine, part.setting.precision) != ("torch", "fp32") or part.module is None or part.reencode is not None:
            return part.outputs(self.splits.search, self.task)
        if candidate.kind == "original":
            return self.base_search
        return evaluate_with(part.subject, self.task, part.module, self.splits.search, exact=True)

    @property
    def ratios(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(engine, precision, {"ratio": …}) of the original's own race."""
        return [
            (r["engine"], r["precision"], {"ratio": r["cpu"]["value"]}) for r in self.race_rows if r["who"] == "candidate" and r["stage"] == "final"
        ]

    def _add_words(self) -> None:
        from fourfold.recipe import Recipe
        from fourfold.rewrites.compress.combine import Candidate

        for simple in self.simple:
            if simple.words is None or self.splits.search.raw is None:
                continue
            candidate = Candidate("bag of words", "bag_of_words", Recipe(()), {}, 0.01, 2)
            part = Part("bag-of-words", self.subject, None, None, Setting("numpy", "fp32", 1, 256, False), words=simple.words)
            point = Point("bag of words", candidate, Assembly("bag of words", [part]), simple.search, predicted=0.02)
            point.search = self._relative(simple.search, "search")
            self.points.append(point)

    def _race(self, key: str, points: list[Point], share: float) -> None:
        if not points:
            return

        def run() -> dict[str, Any]:
            self.listener.stage("racing", 0)
            base = self._part("original", self.subject.module, None, self.base_setting)
            base.signature = self._signature()
            seconds = max(6.0, min(90.0, share * self.work.budget))
            results = race_points(
                points, base, self._raced(self.splits.test), self.task, seconds=seconds, seed=self.work.seed, objective=self.work.objective
            )
            return {n: r.to_json() for n, r in results.items()}

        results = self.journal.once(f"{key}:{_names(points)}", run)
        for point in points:
            point.timing = RaceResult.from_json(results[point.name])

    def cost(self, point: Point) -> float:
        """What the objective minimises, relative to the original."""
        if self.work.objective == "memory":
            return point.bytes / max(1, weight_bytes(self._part("original", self.subject.module, None, Setting())))
        if point.timing is None:
            return point.predicted
        return point.timing.wall.value if self.work.objective == "latency" else point.timing.cpu.value

    def _add_cascades(self, most: int = 6) -> None:
        """Cascades that, on the search split, promise the floor for less than any single point; their cost is then raced."""
        from fourfold.recipe import Recipe
        from fourfold.rewrites.compress.cascade import chains, expected
        from fourfold.rewrites.compress.combine import Candidate

        if self.task.kind != "classification" or self.work.objective == "memory":
            return
        targets = np.asarray(self.splits.search.targets)
        usable = [p for p in self.points if p.status == "open" and p.search_records is not None and len(p.assembly.parts) == 1]
        rows = [p.search_records for p in usable if p.search_records is not None]
        base = float(self.task.metric.score(self.base_search, targets))
        sign = 1.0 if self.task.metric.greater_is_better else -1.0
        found = chains(
            [self.cost(p) for p in usable], rows, targets, lambda z: sign * float(self.task.metric.score(z, targets)) / base,
            fallback=[p.assembly.parts[0].words is None for p in usable],
        )
        picked: list[Any] = []
        margin = 0.012  # the search's own optimism: about one standard error of a paired ratio at two thousand rows
        for wanted in (
            self.work.floor + 1.5 * margin,
            self.work.floor + 0.7 * margin,
            self.work.floor,
            self.work.floor - 0.02,
            self.work.floor - 0.04,
            min(0.995, self.work.floor + 0.02),
        ):
            fit = [f for f in found if f.score >= wanted and all(f.cost < 0.97 * q.cost or f.cost > 1.03 * q.cost for q in picked)]
            if fit and len(picked) < most:
                picked.append(min(fit, key=lambda f: f.cost))
        made = []
        for number, chain in enumerate(picked):
            members = [usable[i] for i in chain.members]
            name = f"cascade-{number}: {' → '.join(m.name for m in members)}"
            candidate = Candidate(
                f"cascade-{number}", "cascade", Recipe(()), {}, chain.cost, 2, extra={"members": members, "gates": list(chain.gates)}
            )
            parts = [replace(m.assembly.parts[0], name=f"member-{k}") for k, m in enumerate(members)]
            point = Point(name, candidate, Assembly(name, parts, list(chain.gates)), chain.logits, predicted=chain.cost)
            point.search = self._relative(chain.logits, "search")
            point.shares = expected(chain.gates, [m.search_records for m in members if m.search_records is not None])
            made.append(point)
        self.points += made
        self._race("race:cascades", made, 0.05)

    # ---- prove ---------------------------------------------------------------------------------------------------------------------

    best: Point | None = None
    order: list[str] = field(default_factory=list)

    def prove(self) -> None:
        """Quality on the unseen split. Which point wins is settled by the fallback procedure (Wiens 2003): points in the order of their chance to
        pass, as the search split predicts it; the first has four fifths of the 5 % error, the others share the rest, and a point that passes hands
        its level on to the next. The chance that any point passes wrongly stays below 5 %, and one failure does not end the sequence. The answer
        is the cheapest that passed.
        """
        field_ = [p for p in self.points if p.status == "open" and p.search is not None]
        front = self._undominated(field_)
        self.listener.stage("proving on the unseen split", len(front))
        for point in front:
            self._test(point)
            self.listener.advance()
        chance = {p.name: self._chance(p) for p in front}
        sequence = sorted((p for p in front if chance[p.name] >= 0.05 and self._pays(p)), key=lambda p: (-round(chance[p.name], 3), self.cost(p)))
        passed: list[Point] = []
        rest = len(sequence) - 1
        shares, carried = [0.04, *[0.01 / max(1, rest)] * rest], 0.0  # the likeliest first holds most of the level, and hands it on when it passes
        for share, point in zip(shares, sequence, strict=False):
            self.order.append(point.name)
            level = share + carried
            carried = level if self._error(point) <= level else 0.0
            if carried:
                passed.append(point)
        self.best = min(passed, key=self.cost, default=None)
        self._label(field_)

    def _error(self, point: Point) -> float:
        """One-sided p-value of "its relative quality is below the floor": normal, with the standard error that the bootstrap's lower bound
        implies."""
        from scipy.stats import norm

        test = point.test
        assert test is not None
        spread = (test.value - test.low) / 1.6449
        return float(norm.sf((test.value - self.work.floor) / spread)) if spread > 0 else float(test.value < self.work.floor)

    def _pays(self, point: Point) -> bool:
        """Whether the point is cheaper than the original beyond doubt (by bytes for the memory objective)."""
        if self.work.objective == "memory":
            return self.cost(point) < 1.0
        return point.timing is not None and point.timing.faster("wall" if self.work.objective == "latency" else "cpu")

    def _undominated(self, points: list[Point], most: int = 14) -> list[Point]:
        """Points that no other beats in both cost and search quality, thinned evenly when many; those near the floor are always among them."""
        from fourfold.solvers.bayes import dominated

        coordinates = [(self.cost(p), -p.search.value) for p in points]  # type: ignore[union-attr]
        kept = [p for p, gone in zip(points, dominated(coordinates), strict=True) if not gone]
        near = [p for p in points if p not in kept and p.search and abs(p.search.value - self.work.floor) < 0.02 and self.cost(p) < 1.0]
        near.sort(key=self.cost)
        safe = [p for p in points if p not in kept and p not in near[:4] and p.candidate.kind == "original" and self._pays(p)]
        kept = sorted(kept + near[:4] + safe[:2], key=self.cost)  # the original itself, run better, is what is surest to pass
        while len(kept) > most:
            gaps = [math.log(self.cost(kept[i + 1]) / max(1e-9, self.cost(kept[i - 1]))) for i in range(1, len(kept) - 1)]
            kept.pop(1 + int(np.argmin(gaps)))
        return kept

    def _test(self, point: Point) -> None:
        found: list[float] = []

        def run() -> np.ndarray:
            rows, shares = point.assembly.routed(self.splits.test, self.task)
            found.extend(shares)
            return rows

        words = point.candidate.kind == "bag_of_words"
        rows = next(s.test for s in self.simple if s.words is not None) if words else self._array(f"point:{point.name}:test", run)
        if point.shares:
            point.shares = self.journal.once(f"shares:{point.name}", lambda: found or point.shares)
        point.test = self._relative(rows, "test")

    def _chance(self, point: Point) -> float:
        """Probability that the unseen lower bound clears the floor, from the search split: normal, with both splits' errors."""
        from scipy.stats import norm

        assert point.search is not None
        s = max((point.search.high - point.search.low) / (2 * 1.645), 1e-4)
        t = s * math.sqrt(len(self.splits.search) / max(1, len(self.splits.test)))
        return float(norm.cdf((point.search.value - self.work.floor - 1.645 * t) / math.hypot(s, t)))

    def _label(self, points: list[Point]) -> None:
        from fourfold.solvers.bayes import dominated

        def quality(p: Point) -> float:
            return p.test.value if p.test else p.search.value  # type: ignore[union-attr]

        gone = dominated([(self.cost(p), -quality(p)) for p in points])
        for point, lost in zip(points, gone, strict=True):
            point.status = "front" if not lost and point.test is not None else "dominated"
            if point.status == "front" and point is not self.best and point.test is not None and point.test.low < self.work.floor:
                point.status, point.reason = "infeasible", f"its lower bound {point.test.low:.1%} is below the floor"
            if lost:
                point.reason = point.reason or "another point is cheaper and better"
        if self.best is not None:
            self.best.status, self.best.reason = "front", ""

    # ---- account -------------------------------------------------------------------------------------------------------------------

    energy: dict[str, Any] = field(default_factory=dict)
    ladder: list[dict[str, Any]] = field(default_factory=list)

    def account(self) -> None:
        """Joules of the original by the best meter there is, and the ladder of measured whole-run costs from the original to the chosen point."""
        self.listener.stage("keeping the account", 0)
        self.energy = self.journal.once("energy", self._energy)
        if self.best is not None:
            self.ladder = self.journal.once(f"ladder:{self.best.name}", self._climb)

    def _energy(self) -> dict[str, Any]:
        from fourfold.measure.power import window

        part = self._part("original", self.subject.module, None, self.base_setting)
        part.signature = self._signature()
        examples = self.splits.test
        session, batches = part.open(), examples.batches(part.setting.batch, bucket=part.setting.bucketing)
        seen, began = 0, time.perf_counter()
        with window() as used:
            for index in [batches[i] for i in np.random.default_rng(self.work.seed).permutation(len(batches))]:
                session.run(examples.collate(index))
                seen += len(index)
                if time.perf_counter() - began > 2.0:
                    break
        joules = used.joules
        assert joules is not None
        per = {"value": joules.value / seen, "low": (joules.low or joules.value) / seen, "high": (joules.high or joules.value) / seen}
        return {
            "per_example": per["value"],
            "per_cpu_second": joules.value / max(used.cpu, 1e-9),
            "grade": joules.grade,
            "method": joules.method,
            "boundary": joules.boundary,
            **per,
            "why": used.why,
        }

    def _climb(self) -> list[dict[str, Any]]:
        """Rungs (lever, technique, title, before, after, quality) whose costs are all relative to the original at its best, and end at the chosen
        point's."""
        best = self.best
        assert best is not None
        first = best.candidate.extra["members"][0] if best.candidate.kind == "cascade" else best
        rungs: list[tuple[str, str, str, float]] = []
        fp32 = next(
            (p for p in self.points if p.candidate is first.candidate and (p.setting.engine, p.setting.precision) == ("torch", "fp32") and p.timing),
            None,
        )
        if first.candidate.kind == "network" and fp32 is not None:
            removed = self._only_removal(first.candidate)
            if removed is not None:
                rungs.append(("model", "layer_removal", "blocks and sub-layers removed", removed))
            rungs.append(("model", "matrix_pruning", "heads and neurons removed", self.cost(fp32)))
        elif first.candidate.kind == "static" and fp32 is not None:
            rungs.append(("model", "static", "pooled token embeddings in place of the network", self.cost(fp32)))
        elif first.candidate.kind == "bag_of_words":
            rungs.append(("model", "bag_of_words", "a linear model on counted words", self.cost(first)))
        if first is not fp32 and first.candidate.kind != "bag_of_words":
            title = f"{first.setting.engine} {first.setting.precision}"
            technique, lever = ("quantise", "model") if first.setting.precision != "fp32" else ("engine", "machine")
            rungs.append((lever, technique, title, self.cost(first)))
        if best is not first:
            rungs.append(("model", "cascade", "unsure answers handed to a dearer member", self.cost(best)))
        rows, before = [], 1.0
        for lever, technique, title, after in rungs:
            rows.append({"lever": lever, "technique": technique, "title": title, "before": before, "after": after})
            before = after
        end = best.timing.cpu.value if best.timing else before
        if rows:
            rows[-1]["after"] = end  # the ladder speaks of energy whatever the objective was
        return rows

    def _only_removal(self, candidate: Candidate) -> float | None:
        """Cost of the original with the candidate's missing blocks and sub-layers gone and everything else at full size; None where none is
        missing."""
        from fourfold.rewrites.compress.combine import Candidate as Structure
        from fourfold.rewrites.compress.combine import prune

        assert self.root is not None
        shape = {i: 0 for i, n in candidate.shape.items() if n == 0}
        if not shape:
            return None
        module, recipe, kept = prune(self.root, shape, mend=False)
        variant = Structure("removal", "network", recipe, shape, 1.0, kept=kept, module=module)
        part = self._part("removal", module, variant, self.base_setting)
        part.signature = self._signature()
        base = self._part("original", self.subject.module, None, self.base_setting)
        base.signature = self._signature()
        point = Point("removal", variant, Assembly("removal", [part]))
        found = race_points(
            [point],
            base,
            self._raced(self.splits.test),
            self.task,
            seconds=max(3.0, 0.02 * self.work.budget),
            seed=self.work.seed,
            objective="energy",
        )
        return found["removal"].cpu.value

    # ---- odds and ends -------------------------------------------------------------------------------------------------------------

    def _relative(self, records: np.ndarray, split: str) -> Relative:
        """Quality relative to the original's on "search" or "test"; duplicates, and pieces of one document, are resampled together."""
        examples: Examples = getattr(self.splits, split)
        base = self.base_search if split == "search" else self.base_test
        return relative(self.task.metric, base, records, examples.targets, seed=self.work.seed, groups=examples.groups)

    def _array(self, key: str, fn: Callable[[], np.ndarray]) -> np.ndarray:
        import torch

        return self.journal.tensors(key, lambda: {"rows": torch.from_numpy(np.ascontiguousarray(fn()))})["rows"].numpy()

    def close(self) -> None:
        """Give sessions and the journal back. Points of one candidate and the cascades over them share sessions, which are closed once."""
        sessions = {id(part.session): part.session for point in self.points for part in point.assembly.parts if part.session is not None}
        for session in sessions.values():
            session.close()
        for point in self.points:
            for part in point.assembly.parts:
                part.session = None
        self.journal.close()


def plan_for(
    pace: Mapping[float, float], reach: float, work: Workload, rows: int, spent: float, batch: int = 32, online: bool = False
) -> dict[str, Any]:
    """The plan for a budget, from `pace`: seconds of a training step (the teacher's own pass included) by the predicted cost of the shape trained,
    1.0 the original; and from the cost of the smallest shape, `reach`.

    Three fifths of what is left goes to short trials, full recoveries and refinement; the rest is for the teacher's answers, back ends, races and
    the proof. `online`: the teacher answers in every step (its logits are too large to keep).
    """
    costs, seconds = zip(*sorted(pace.items()), strict=True)
    whole = pace[max(pace)]
    teacher = 0.0 if online else 0.22 * whole  # answered once for all steps, not in each of them

    def each(cost: float) -> float:
        return max(0.02 * whole, float(np.interp(cost, costs, seconds)) - teacher)

    left = max(10.0, work.budget - spent)
    share = 0.6 * left
    levels = [v for v in (0.6, 0.35, 0.2, 0.1, 0.05) if v > 1.1 * reach] or [0.5 + 0.5 * reach]
    if reach > 0.93:  # nothing worth having can be removed: precision and back ends are all there is
        return {"levels": [], "steps": [], "short": 0, "sketches": 0, "rivals": 0, "refine": 0, "hidden": 0.0, "augment": 0.0 if online else 1.0}
    if work.floor >= 0.985 or online:
        levels = [0.8, *levels]
    rivals = 2
    refine = 0 if left < 40 else 1 if left < 600 else 2

    def steps_for(chosen: list[float]) -> int:
        """As many per level, with rivals' trials of a sixth as many, and refinements that tend to lie above the middle level."""
        full = sum(each(v) for v in chosen)
        return int(share / (full * (1 + rivals / 6) + refine * each(chosen[len(chosen) // 2] * 1.5)))

    cap = max(150, 8 * rows // batch)
    if steps_for(levels) < min(500, cap):  # better few levels well recovered than many badly
        few = [v for v in levels if v in (0.35, 0.2, 0.1)] if not online else [v for v in levels if v in (0.8, 0.6)]
        levels = few or levels[:2]
    steps = max(20, min(steps_for(levels), cap))
    price = teacher or 0.22 * whole
    augment = 0.0 if online else min(5.0, 0.10 * left / max(1e-9, rows * price / batch), max(0.0, steps * batch * 1.2 / rows - 1.0) + 0.5)
    return {
        "levels": levels,
        "steps": [steps] * len(levels),
        "short": max(8, min(80, steps // 6)),
        "sketches": int(np.clip(left / 12, 4, 40)) if not online else 6,
        "rivals": rivals if steps >= 120 else 1,
        "refine": refine,
        "hidden": 1.0 if steps >= 2500 else 0.0,
        "augment": round(augment, 2),
    }


def _best_pairs(table: list[dict[str, Any]], objective: str, base: Setting) -> list[tuple[str, str, dict[str, Any]]]:
    """(engine, precision, settings) worth building for every candidate: the original's finalists, and the best fp32 back end, cheapest first."""
    by = "wall" if objective == "latency" else "cpu"
    found: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
    for stage in ("final", "heat"):
        for r in table:
            key = (r["engine"], r["precision"])
            if r["who"] == "candidate" and r["stage"] == stage and key not in found:
                how = (
                    {"threads": r["threads"], "batch": r["batch"], "bucketing": r["bucket"]}
                    if stage == "final"
                    else {"threads": base.threads, "batch": base.batch, "bucketing": base.bucketing}
                )
                found[key] = (float(r[by]["value"]), how)
    ranked = sorted(found.items(), key=lambda kv: kv[1][0])
    low = [(e, p, how) for (e, p), (ratio, how) in ranked if p != "fp32" and (ratio < 0.97 or objective == "memory")]
    low = [w for w in low if found[w[0], w[1]][0] < 1.6 * found[low[0][0], low[0][1]][0]][:2] if objective != "memory" else low[:3]
    full = [(e, p, how) for (e, p), (ratio, how) in ranked if p == "fp32" and ratio < 0.97][:1]
    return low + full


def _capped(examples: Examples, most: int, seed: int) -> Examples:
    if len(examples) <= most:
        return examples
    return examples.take(np.sort(np.random.default_rng([seed, 5]).permutation(len(examples))[:most]))


def _digest(values: Mapping[str, Any]) -> str:
    import hashlib

    total = hashlib.sha256()
    for name in sorted(values):
        array = values[name].detach().contiguous()
        total.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.view(-1).view(__import__("torch").uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()


def _names(points: list[Point]) -> str:
    import hashlib

    return hashlib.sha256("|".join(p.name for p in points).encode()).hexdigest()[:12]
