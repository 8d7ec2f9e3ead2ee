"""The combination: layer removal, matrix pruning and distillation searched together, under one budget, with one teacher.

What is searched is a *shape*: how many units each removable site keeps. Three rungs, each dearer and truer than the one before (successive halving,
Jamieson & Talwalkar 2016):
  0 sketch   prune + least-squares repair, no training; the divergence from the original's answers
  1 short    a few dozen steps of distillation
  2 full     all steps, continued from rung 1
Shapes come from a knapsack over (measured harm, measured cost) — a whole front at once (ZipLM) — and from a multi-objective TPE that moves depth,
the share of attention against feed-forward and the cost target; both are judged by the same rungs. Full recoveries run from the largest shape to
the smallest, each child starting from its recovered parent and re-calibrated on it (prune → distil → prune), because weights that were never
trained small are far from small.

Everything that decides is a pure function of (seed, data, what the journal recorded), so a killed run resumes into the same answer.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.measure.quality import relative
from fourfold.recipe import Recipe
from fourfold.recipe import apply as apply_recipe
from fourfold.rewrite import Context, Option, Proposal, Rewrite
from fourfold.rewrites.calibration import Sensitivities, bulky, calibrate, divergence
from fourfold.rewrites.compress._bench import Candidate, ProgressCallback, SearchContext, SearchJournal, SearchPlan, Training, evaluate_with
from fourfold.rewrites.compress._shape import Node, Shape, cheapest, cost_sites, original, prune, signature, site_ids
from fourfold.rewrites.compress._single import single
from fourfold.rewrites.compress.distil import TrainingSchedule, all_cores, autocast, fast_bf16, layer_map, tensors
from fourfold.rewrites.compress.layer_removal import LayerRemoval, block_order
from fourfold.rewrites.compress.matrix_pruning import MatrixPruning
from fourfold.solvers import bayes, knapsack
from fourfold.structure.discover import Anatomy, anatomize

__all__ = [
    "Candidate", "Combine", "Node", "ProgressCallback", "SearchContext", "SearchJournal", "SearchPlan", "Searcher", "Shape", "cheapest", "cost_sites",
    "evaluate_with", "original", "prune", "signature", "site_ids",
]  # fmt: skip


class Searcher:
    """The search itself; one instance per run, all lasting state in the diary."""

    def __init__(self, bench: SearchContext, root: Node, plan: SearchPlan) -> None:
        self.bench, self.root, self.plan = bench, root, plan
        self.ids = site_ids(root.anatomy)
        self.counts = {s.name: len(s.blocks) for s in root.anatomy.stacks}
        self.candidates: list[Candidate] = []
        self.tick: Callable[[], None] = lambda: None  # tells the listener how far the running stage is
        self.probe = self._probe()

    # ---- rung 0 -------------------------------------------------------------------------------------------------------------------

    def _probe(self) -> list[tuple[dict[str, Tensor], Tensor]]:
        """A few search batches with the original's answers: the yardstick of sketches."""
        many = not bulky(self.bench.task, self.bench.splits.search)
        sample = self.bench.splits.search.take(np.arange(min(192 if many else 12, len(self.bench.splits.search))))
        batches = [tensors(sample.collate(at)) for at in sample.batches(32 if many else 4, bucket=True)]
        return [(b, self.bench.teacher.logits(b)) for b in batches]

    @torch.no_grad()
    def harm(self, module: nn.Module) -> float:
        """Mean divergence from the original on the probe, nats per example."""
        all_cores()
        module.eval()
        parts = []
        for inputs, answer in self.probe:
            with autocast(fast_bf16()):
                z = self.bench.subject.logits(module, inputs).float()
            parts.append(divergence(z, answer, self.bench.task.kind))
        return float(torch.cat(parts).mean())

    def options(self) -> dict[str, list[Option]]:
        """All options of layer removal and matrix pruning on the original, by site id."""
        assert self.root.sensitivities is not None
        back = {name: ident for ident, (name, _) in self.ids.items()}
        found: dict[str, list[Option]] = {}
        for technique in (MatrixPruning(), LayerRemoval()):
            for option in technique.options(self.root.anatomy, self.root.sensitivities):
                found.setdefault(back[option.site], []).append(option)
        for ident, those in found.items():
            if all(o.size != o.full for o in those):
                those.append(Option(those[0].site, those[0].full, those[0].full, 0.0))
            found[ident] = sorted(those, key=lambda o: -o.size)
        return found

    def shapes(self, targets: list[float], depth: dict[str, int], tilt: float, options: dict[str, list[Option]]) -> list[Shape | None]:
        """The knapsack's shapes for cost targets, with `depth` blocks left per stack and attention harm weighed by e^tilt against feed-forward."""
        assert self.root.sensitivities is not None
        dead = {
            s: set(order[: max(0, self.counts[s] - depth.get(s, self.counts[s]))])
            for s, order in block_order(self.root.anatomy, self.root.sensitivities).items()
        }
        by_name = {s.name: s for s in self.bench.sites}
        idents, costs, harms, offered = [], [], [], []
        for ident, those in options.items():
            stack, number, kind = ident.rsplit(".", 2)
            if int(number) in dead.get(stack, ()):
                those = [o for o in those if o.size == 0] or [Option(those[0].site, 0, those[0].full, 0.0)]
            weight = math.exp(tilt if "attention" in kind else -tilt)
            idents.append(ident)
            offered.append([o.size for o in those])
            costs.append(np.array([self.bench.table.price(by_name[ident], o.size) for o in those]))
            harms.append(np.array([o.harm * weight if o.size else max(o.harm * weight, 1e-9) for o in those]))
        picks = knapsack.solve(costs, harms, [max(0.0, max(t, 1.02 * self.reach) - self.bench.table.fixed) for t in targets])
        return [None if p is None else self.hearing({i: s[k] for i, s, k in zip(idents, offered, p, strict=True)}) for p in picks]

    def hearing(self, shape: Shape) -> Shape:
        """A decoder keeps at least one cross-attention, the one it would miss most: without any, its answer no longer depends on the input, which
        harms added up one by one do not show."""
        assert self.root.sensitivities is not None
        harm = self.root.sensitivities.ablation
        full = {s.name: s.full for s in self.bench.sites}
        for stack in self.counts:
            crossing = [i for i in self.ids if i.startswith(f"{stack}.") and "cross_attention" in i]
            if crossing and all(shape.get(i, 1) == 0 for i in crossing):
                kept = max(crossing, key=lambda i: harm.get(self.ids[i][0], 0.0))
                shape = {**shape, kept: max(1, full[kept] // 4)}
        return shape

    @property
    def reach(self) -> float:
        """Predicted cost of the smallest shape there is."""
        return cheapest(self.root.anatomy, self.bench.table, self.bench.sites)

    def cost(self, shape: Shape) -> float:
        """Predicted cost relative to the original."""
        return self.bench.table.total(self.bench.sites, shape)

    def sketch(self, shape: Shape) -> dict[str, Any]:
        """Rung 0 of one shape, remembered."""
        key = "sketch:" + signature(shape)

        def run() -> dict[str, object]:
            module, _, _ = prune(self.root, shape)
            return {"harm": self.harm(module), "cost": self.cost(shape)}

        return self.bench.diary.once(key, run)

    def propose(self) -> list[tuple[Shape, float, float]]:
        """Rung 0: (shape, harm, cost) of knapsack seeds at several depths, then of TPE's variations around them."""
        options, levels = self.options(), self.plan.levels
        if not levels or not options:                                   # blocks may be known and nothing in them be cut safely
            return []
        deep = {s: n for s, n in self.counts.items()}
        space: dict[str, Any] = {"cost": bayes.Span(min(levels) * 0.8, max(0.9, max(levels)), log=True), "tilt": bayes.Span(-1.5, 1.5)}
        space |= {f"depth:{s}": bayes.Span(1, n, whole=True) for s, n in deep.items() if n > 1}
        search = bayes.Search(space, 2, self.bench.seed)
        for level in levels:
            for share in (1.0, min(1.0, max(level * 1.6, 0.0))):
                search.seed({"cost": level, "tilt": 0.0} | {f"depth:{s}": max(1, round(n * share)) for s, n in deep.items() if n > 1})
        found: dict[str, tuple[Shape, float, float]] = {}
        self.bench.listener.stage("sketching shapes", self.plan.sketches)
        key, diary, made = "budget:sketches", self.bench.diary, 0
        count = diary.once(key, int) if key in diary else self.plan.sketches
        end = time.monotonic() + SKETCHING * self.bench.left()
        while made < count and (key in diary or made < LEAST_SKETCHES or time.monotonic() < end):
            made += 1
            ticket, p = search.ask()
            shape = self.shapes([p["cost"]], {s: int(p.get(f"depth:{s}", n)) for s, n in deep.items()}, p["tilt"], options)[0]
            if shape is None:
                search.tell(ticket, [50.0, 1.0], violation=1.0)
            else:
                sketch = self.sketch(shape)
                found[signature(shape)] = (shape, sketch["harm"], sketch["cost"])
                search.tell(ticket, [sketch["harm"], sketch["cost"]])
            self.bench.listener.advance()
        diary.once(key, lambda: made)
        return list(found.values())

    def rivals(self, sketches: list[tuple[Shape, float, float]], level: float) -> list[Shape]:
        """The shapes worth a rung-1 trial at a level: within reach of its cost, least harm first, no two of the same depth."""
        if not sketches:
            return []
        near = [s for s in sketches if s[2] <= level * 1.08] or sorted(sketches, key=lambda s: s[2])[:1]
        near = [s for s in near if s[2] >= 0.6 * max(n[2] for n in near)]
        picked: list[Shape] = []
        depths: set[int] = set()
        for shape, _, _ in sorted(near, key=lambda s: s[1]):
            depth = self.depth(shape)
            if depth not in depths and len(picked) < self.plan.rivals:
                picked.append(shape)
                depths.add(depth)
        return picked

    def depth(self, shape: Shape) -> int:
        """Blocks with anything left in them."""
        alive = {ident.rsplit(".", 1)[0] for ident in self.ids if shape.get(ident, 1) > 0}
        return len(alive)

    # ---- rungs 1 and 2 ------------------------------------------------------------------------------------------------------------

    def training(
        self, name: str, node: Node, shape: Shape, steps: int, seconds: Callable[[], float],
        finish: Callable[[nn.Module, Recipe, dict[str, list[int]], dict[str, object]], list[Training]], *, seed: int,
    ) -> Training:  # fmt: skip
        """`node` pruned to `shape` and distilled for at most `steps` and about `seconds`."""
        bench = self.bench

        def begin() -> tuple[nn.Module, dict[str, object]]:
            if signature(shape) == signature(node.shape) and node is not self.root:  # trained further as it is
                return copy.deepcopy(node.module), {"recipe": node.recipe.to_json(), "kept": node.kept}
            if node.sensitivities is None:
                node.sensitivities = calibrate(
                    bench.subject, node.module, bench.task, bench.splits.train, node.anatomy, examples=bench.calibration, ablated=0, seed=bench.seed
                )
            module, recipe, kept = prune(node, shape)
            return module, {"recipe": recipe.to_json(), "kept": kept}

        def ended(module: nn.Module | None, state: dict[str, Tensor], facts: dict[str, Any]) -> list[Training]:
            recipe = Recipe.from_json(facts["recipe"])
            if module is None:
                module = apply_recipe(copy.deepcopy(self.root.module), Recipe(recipe.edits[len(self.root.recipe.edits) :]))
                module.load_state_dict(state)
                module.eval()
            return finish(module, recipe, facts["kept"], facts)

        schedule = TrainingSchedule(
            steps, bench.batch, bench.lr, seed=seed, hidden_weight=bench.hidden_weight, label_weight=bench.label_weight, dropout=False,
            bf16=fast_bf16() and self.cost(shape) >= bench.bf16_from,
        )  # fmt: skip
        return Training(
            name, f"train:{name}:{node.name}:{signature(shape)}:{steps}:{seed}", begin, bench.subject, schedule, seconds, ended,
            lambda facts: layer_map(self.root.anatomy, facts["kept"]) if bench.hidden_weight > 0 else None,
        )  # fmt: skip

    def judge(self, candidate: Candidate) -> Candidate:
        """Search-split quality of a trained candidate, remembered."""
        bench = self.bench
        assert candidate.module is not None
        module = candidate.module

        def run() -> dict[str, Tensor]:
            return {"records": torch.from_numpy(evaluate_with(bench.subject, bench.task, module, bench.splits.search))}

        candidate.records = bench.diary.tensors(f"judge:{candidate.name}:{candidate.steps}", run)["records"].numpy()
        candidate.quality = relative(
            bench.task.metric, bench.base_records, candidate.records, bench.splits.search.targets, seed=bench.seed, groups=bench.splits.search.groups
        )
        return candidate

    def descend(self, sketches: list[tuple[Shape, float, float]], beside: Callable[[Callable[[float], float]], list[Training]]) -> list[Candidate]:
        """Rungs 1 and 2 from the largest level to the smallest, each starting from the last one recovered. `beside` (told how to get a share of this
        phase's seconds) gives trainings of other kinds, which fill the other lanes; then one level is trained once more, straight from the original
        and of another depth: the largest where cascades want one good cheap member, the smallest elsewhere.

        Two thirds of the time that the search has are spent here; less only where no refinement follows.
        """
        bench = self.bench
        phase = bench.left() * (PHASE if self.plan.refine else 1.0)
        end = time.monotonic() + phase
        lanes = bench.crew.lanes
        trials = bool(bench.diary.once("budget:trials", lambda: TRIAL * phase >= 25))
        shares = _shares([self.cost(s[0]) if s else v for v in self.plan.levels for s in [self.rivals(sketches, v)]])
        clock = self._clock("pruning and distilling", phase)
        others = beside(lambda share: share * phase if lanes > 1 else 0.5 * share * phase)

        def rest(share: float) -> float:
            return max(0.0, share * (end - time.monotonic()))

        def level(number: int, node: Node) -> list[Training]:
            while number < len(self.plan.levels) and not self.rivals(sketches, self.plan.levels[number]):
                number += 1  # what cannot be removed already costs more than this level asks for
            if number == len(self.plan.levels):
                return []
            shapes, steps = self.rivals(sketches, self.plan.levels[number]), self.plan.steps[number]
            if number or len(shapes) < 2 or not trials:
                fitting = [s for s in shapes if self.fit(node, s) is node] or shapes
                return full(number, node, fitting[0], steps)
            harms: dict[int, float] = {}

            def tried(r: int, module: nn.Module) -> list[Training]:
                harms[r] = self.remember_harm(f"short-{number}-{r}", shapes[r], module)
                if len(harms) < len(shapes):
                    return []
                return full(number, node, shapes[min(harms, key=lambda k: (harms[k], k))], steps)

            return [
                self.training(
                    f"short-{number}-{r}", self.fit(node, shape), shape, self.plan.short, lambda: TRIAL * phase,
                    lambda module, _recipe, _kept, _facts, r=r: tried(r, module), seed=bench.seed + 100 + number,
                )
                for r, shape in enumerate(shapes)
            ]  # fmt: skip

        def full(number: int, node: Node, shape: Shape, steps: int) -> list[Training]:
            def ended(candidate: Candidate) -> list[Training]:
                return level(number + 1, self.node(candidate)) if number + 1 < len(self.plan.levels) else []

            weight = shares[number] / sum(shares[number:])
            return [self.finish(f"level-{number}", self.fit(node, shape), shape, steps, bench.seed + number, lambda: rest(weight), ended)]

        waiting = level(0, self.root) if self.plan.levels else []
        waiting = [*waiting, *others] if lanes > 1 else [*others, *waiting]
        if lanes > 1 and self.plan.levels and self.plan.refine:
            number = 0 if self.cascading else len(self.plan.levels) - 1
            shapes = self.rivals(sketches, self.plan.levels[number])
            if shapes:
                waiting.append(self.finish("side", self.root, shapes[-1], self.plan.steps[number], bench.seed + 30, lambda: rest(1.0), lambda _: []))
        bench.carry_out(waiting, clock)
        return self._sorted()

    def _clock(self, stage: str, seconds: float) -> Callable[[], None]:
        """Progress of a stage in seconds."""
        self.bench.listener.stage(stage, max(1, round(seconds)))
        begun, told = time.monotonic(), 0

        def tick() -> None:
            nonlocal told
            now = min(round(seconds), int(time.monotonic() - begun))
            if now > told:
                self.bench.listener.advance(now - told)
                told = now

        self.tick = tick
        return tick

    def _sorted(self) -> list[Candidate]:
        """In the order of their names, not in that in which they happened to end."""
        self.candidates.sort(key=lambda c: (c.kind, c.name))
        return self.candidates

    def remember_harm(self, name: str, shape: Shape, module: nn.Module) -> float:
        return float(self.bench.diary.once(f"harm:{name}:{signature(shape)}", lambda: self.harm(module)))

    def fit(self, node: Node, shape: Shape) -> Node:
        """`node` if `shape` can be cut from it, the original otherwise."""
        return node if all(shape.get(i, self._full(i)) <= node.shape.get(i, self._full(i)) for i in self.ids) else self.root

    def _full(self, ident: str) -> int:
        return next(s.full for s in self.bench.sites if s.name == ident)

    def finish(
        self, name: str, node: Node, shape: Shape, steps: int, seed: int, seconds: Callable[[], float],
        then: Callable[[Candidate], list[Training]],
    ) -> Training:  # fmt: skip
        """Rung 2 of one shape: trained, it is a candidate with its search-split quality."""

        def ended(module: nn.Module, recipe: Recipe, kept: dict[str, list[int]], facts: dict[str, Any]) -> list[Training]:
            candidate = Candidate(
                name, "network", recipe, shape, self.cost(shape), 2, steps, node.name, kept, module=module,
                extra={"curve": facts["curve"], "seconds": facts["wall"], "made": facts.get("made", steps)},
                structured=True, technique="compress/combine", techniques=MADE_BY,
            )  # fmt: skip
            self.judge(candidate)
            found = candidate.quality
            assert found is not None
            told = f"{name}: cost {candidate.cost:.0%} of the original, quality {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
            self.bench.listener.note(told)
            if found.high < self.bench.floor - 0.15 and not self.cascading:
                candidate.status, candidate.reason = "stopped", "its upper bound misses the floor by more than 15 points"
            if 0 < facts.get("made", 0) < min(8, steps):
                candidate.status, candidate.reason = "stopped", "there was no time to train it"
            self.candidates.append(candidate)
            return then(candidate)

        return self.training(name, node, shape, steps, seconds, ended, seed=seed)

    @property
    def cascading(self) -> bool:
        """Whether candidates may be joined: then a weak one may still answer what it is sure of."""
        return self.bench.task.kind == "classification"

    def node(self, candidate: Candidate) -> Node:
        """A finished candidate as the start of a further descent."""
        assert candidate.module is not None
        module = candidate.module
        return Node(candidate.name, module, anatomize(module, self.bench.sample), candidate.kept, candidate.recipe, candidate.shape)

    def refine(self) -> list[Candidate]:
        """The rest of the time goes where the decision is: to a new shape between the cheapest candidate above the floor and the dearest below it,
        and to the candidate that is likeliest to carry a cascade, trained further. Nothing that would cost more than half is refined where cascades
        or cheaper shapes are in reach."""
        bench = self.bench
        seconds = bench.left()
        if not self.plan.refine or not bench.diary.once("budget:refine", lambda: seconds >= 5):
            return self.candidates
        end = time.monotonic() + seconds
        lanes = bench.crew.lanes
        clock = self._clock("refining near the floor", seconds)
        made = [t for t in (self._longer(lambda: self._part(end, lanes)), self._between(lambda: end - time.monotonic())) if t is not None]
        bench.carry_out(made[: max(1, min(self.plan.refine, 2))], clock)
        return self._sorted()

    @staticmethod
    def _part(end: float, lanes: int) -> float:
        return (end - time.monotonic()) * (1.0 if lanes > 1 else 0.5)

    def _networks(self) -> list[Candidate]:
        return sorted((c for c in self.candidates if c.structured and c.quality), key=lambda c: (c.cost, c.name))

    def _promising(self) -> Candidate | None:
        """The network to go on with. Where a cascade may hand its doubts on, the one with the least cost and doubts together, a doubt taken at
        `DOUBT`; elsewhere the cheapest within a point and a half of the floor, else the best."""
        done = [c for c in self._networks() if c.cost < 0.5 and c.quality]
        if self.cascading:
            return min(done, key=lambda c: c.cost + DOUBT * max(0.0, 1.0 - c.quality.value), default=None)  # type: ignore[union-attr]
        near = [c for c in done if c.quality and c.quality.value >= self.bench.floor - 0.015]
        return near[0] if near else max(done, key=lambda c: c.quality.value if c.quality else 0.0, default=None)

    def _longer(self, seconds: Callable[[], float]) -> Training | None:
        """The most promising network, trained further; it takes the place of its former self where it has become better."""
        best = self._promising()
        if best is None:
            return None

        def then(candidate: Candidate) -> list[Training]:
            if candidate.quality and best.quality and candidate.quality.value > best.quality.value:
                best.status, best.reason = "stopped", f"trained further as {candidate.name}"
            return []

        steps = max(self.plan.steps)
        return self.finish("longer", self.node(best), best.shape, steps, self.bench.seed + 70, seconds, then)

    def _between(self, seconds: Callable[[], float]) -> Training | None:
        """A new shape: near the floor, pruned from the nearest larger one; where cascades are in reach, a cheaper one than the most promising."""
        bench, done = self.bench, self._networks()
        passing = [c for c in done if c.quality and c.quality.low >= bench.floor]
        failing = [c for c in done if c.quality and c.quality.low < bench.floor]
        above = passing[0] if passing else None
        below = max((c for c in failing if above is None or c.cost < above.cost), key=lambda c: c.cost, default=None)
        high = above.cost if above else 0.85
        low = below.cost if below else high * 0.5
        target = math.sqrt(high * low)
        if above is None and below is not None:
            target = min(0.9, below.cost + 0.5 * (0.9 - below.cost))
        best = self._promising() if self.cascading else None
        if best is not None:
            target = 0.6 * best.cost if best.cost > 1.8 * self.reach else 1.5 * best.cost
        elif high / low < 1.12:
            return None
        larger = [best] if best is not None and target < best.cost else [c for c in done if c.cost > 1.05 * target]
        start = larger[0] if larger else None
        node = self.node(start) if start else self.root
        depth = {s: len(k) for s, k in node.kept.items()}
        shape = self.shapes([target], depth, 0.0, self.options())[0]
        if shape is None:
            return None
        shape = {i: min(v, node.shape.get(i, v)) for i, v in shape.items()}
        if signature(shape) in {signature(c.shape) for c in done}:
            return None
        return self.finish("refine-0", node, shape, max(self.plan.steps), bench.seed + 50, seconds, lambda _: [])


MADE_BY = ("layer_removal", "matrix_pruning", "distil", "combine")
DOUBT = 3.0
"""Cost of a point of quality that a cascade's cheap member lacks, relative to the original's: about three rows are handed on for one set right."""
SKETCHING = 0.05
"""Share of the search's time after which no further shape is sketched; what an earlier run had time for is sketched again."""
LEAST_SKETCHES = 4
PHASE = 0.68
"""Share of the search's time that descends; the rest refines."""
TRIAL = 0.07
"""Share of that for one short trial."""


def _shares(costs: list[float]) -> list[float]:
    """What each level of a descent gets of its time: a dear one more, but less than its steps cost more."""
    return [math.sqrt(max(c, 0.02)) for c in costs]


class Combine(Rewrite):
    """Layer removal, matrix pruning and distillation in one constrained, multi-fidelity, multi-objective search (Kurtic et al. 2023; Ozaki et al.
    2022; Jamieson & Talwalkar 2016)."""

    default = True
    title = "all of these in one constrained, multi-fidelity, multi-objective search"
    cites = ("kurtic2023ziplm", "ozaki2022motpe", "jamieson2016", "akiba2019optuna")
    needs = ("torch", "optuna")
    combined = True

    def declines(self, model: nn.Module) -> str | None:
        reasons = [t.declines(model) for t in (MatrixPruning(), LayerRemoval())]
        return None if None in reasons else "; ".join(r for r in reasons if r)

    def propose(self, context: Context) -> Iterator[Proposal]:
        yield from single(self.options(context.anatomy, context.sensitivities), context)

    def options(self, anatomy: Anatomy, sensitivities: Sensitivities) -> list[Option]:
        return [o for t in (MatrixPruning(), LayerRemoval()) for o in t.options(anatomy, sensitivities)]
