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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.cost.table import CostTable, Site
from fourfold.ingest.anatomy import Anatomy, Block, Bundle, Keep, anatomize, hidden, recipe_for
from fourfold.measure.quality import Relative, relative
from fourfold.recipe import Recipe
from fourfold.recipe import apply as apply_recipe
from fourfold.rewrite import Option, Rewrite
from fourfold.rewrites.calibration import Sensitivities, bulky, calibrate, divergence
from fourfold.rewrites.compress.distil import Schedule, Teacher, all_cores, autocast, fast_bf16, layer_map, recover, tensors
from fourfold.rewrites.compress.layer_removal import LayerRemoval, block_order
from fourfold.rewrites.compress.matrix_pruning import MatrixPruning, kept_units, order_of, repair, sizes
from fourfold.solvers import bayes, knapsack

if TYPE_CHECKING:
    from fourfold.ingest.data import Examples, Splits
    from fourfold.ingest.model import Subject
    from fourfold.ingest.task import Task


class Diary(Protocol):
    """What the search needs of a journal: remembered steps."""

    def once(self, key: str, fn: Callable[[], Any]) -> Any: ...
    def tensors(self, key: str, fn: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]: ...


class Listener(Protocol):
    """Where progress goes."""

    def plan(self, stages: dict[str, float]) -> None: ...
    def stage(self, name: str, total: int) -> None: ...
    def advance(self, n: int = 1) -> None: ...
    def best(self, text: str) -> None: ...
    def note(self, text: str) -> None: ...


Shape = dict[str, int]
"""Units kept by site id ("encoder.3.ffn"); a missing id keeps everything, 0 removes the sub-layer."""


@dataclass
class Node:
    """A model on the way down: its module, its anatomy, the original numbers of its blocks, and the recipe that led to it from the original."""

    name: str
    module: nn.Module
    anatomy: Anatomy
    kept: dict[str, list[int]]
    recipe: Recipe
    shape: Shape
    sensitivities: Sensitivities | None = None


@dataclass
class Candidate:
    """One structure, trained as far as `rung` says. `records` are its answers on the search split, `cost` its predicted cost relative to the
    original."""

    name: str
    kind: str
    recipe: Recipe
    shape: Shape
    cost: float
    rung: int = 0
    steps: int = 0
    parent: str = "original"
    kept: dict[str, list[int]] = field(default_factory=dict)
    records: np.ndarray | None = None
    quality: Relative | None = None
    status: str = "open"
    reason: str = ""
    module: nn.Module | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """What the time allows, decided once from measured step times and then journalled: no later decision looks at a clock.

    `levels` cost targets from large to small · `steps` of full recovery per level · `short` steps of rung 1 · `sketches` shapes tried at rung 0 ·
    `rivals` at rung 1 per level.
    """

    levels: list[float]
    steps: list[int]
    short: int
    sketches: int
    rivals: int
    refine: int
    hidden: float = 0.0


@dataclass
class Bench:
    """Everything the search works on, handed over by `fourfold.optimize` so that no room reaches for another."""

    subject: Subject
    task: Task
    splits: Splits
    pool: Examples
    teacher: Teacher
    answers: Tensor | None
    sample: Callable[[nn.Module], Tensor]
    table: CostTable
    sites: list[Site]
    diary: Diary
    listener: Listener
    folder: Path
    floor: float
    seed: int
    base_records: np.ndarray
    batch: int = 32
    lr: float = 2e-4
    hidden_weight: float = 1.0
    label_weight: float = 0.0
    calibration: int = 384


def site_ids(anatomy: Anatomy, kept: dict[str, list[int]] | None = None) -> dict[str, tuple[str, str | None]]:
    """Site id → (sub-layer or block name, bundle name or None) of `anatomy`, numbered as in the original model."""
    found: dict[str, tuple[str, str | None]] = {}
    for stack in anatomy.stacks:
        numbers = (kept or {}).get(stack.name, list(range(len(stack.blocks))))
        for number, block in zip(numbers, stack.blocks, strict=True):
            seen: dict[str, int] = {}
            for sub in block.sublayers:
                seen[sub.kind] = seen.get(sub.kind, 0) + 1
                tail = sub.kind if seen[sub.kind] == 1 else f"{sub.kind}{seen[sub.kind]}"
                found[f"{stack.name}.{number}.{tail}"] = (sub.name, sub.bundle.name if sub.bundle else None)
            if not block.sublayers and block.removable:
                found[f"{stack.name}.{number}.block"] = (block.path, None)
    return found


def cost_sites(anatomy: Anatomy) -> list[Site]:
    """The sites of the original model as the cost table wants them: kind = stack, sub-layer kind and full size."""
    found = []
    bundles, subs = anatomy.bundles, anatomy.sublayers
    varied = len({b.count for b in bundles.values()}) > 12
    for ident, (name, bundle) in site_ids(anatomy).items():
        full = bundles[bundle].count if bundle else 1
        stack, _, kind = ident.rsplit(".", 2)
        least = 0 if name not in subs or subs[name].absent else _least(bundles[bundle]) if bundle else 1
        found.append(Site(ident, f"{stack}:{kind}" if varied else f"{stack}:{kind}:{full}", full, least))
    return found


def _least(bundle: Bundle) -> int:
    """The smallest size of a bundle that may not go whole."""
    return [n for n in sizes(bundle.count, bundle.kind) if n][-1]


def cheapest(anatomy: Anatomy, table: CostTable, sites: list[Site]) -> float:
    """Predicted cost of the smallest shape: every block gone that may go (one stays in a stack), elsewhere the least of each sub-layer."""
    total = table.fixed
    for stack in anatomy.stacks:
        prices = []
        for number in range(len(stack.blocks)):
            own = [s for s in sites if s.name.rsplit(".", 2)[0] == stack.name and s.name.rsplit(".", 2)[1] == str(number)]
            prices.append(sum(table.price(s, s.least) for s in own))
        gone = [p for p, b in zip(prices, stack.blocks, strict=True) if b.removable]
        total += sum(prices) - sum(gone) + (min(gone) if len(gone) == len(prices) and gone else 0.0)
    return total


def original(module: nn.Module, anatomy: Anatomy) -> Node:
    """The root node."""
    return Node("original", anatomy.prepared(module), anatomy, {s.name: list(range(len(s.blocks))) for s in anatomy.stacks}, anatomy.preparation, {})


def prune(node: Node, shape: Shape, *, mend: bool = True) -> tuple[nn.Module, Recipe, dict[str, list[int]]]:
    """A smaller copy of `node` with at most the units `shape` allows, repaired; the recipe from the original to it; the original numbers of its
    blocks."""
    assert node.sensitivities is not None
    module = copy.deepcopy(node.module)
    bundles = node.anatomy.bundles
    units: dict[str, list[int]] = {}
    absent: list[str] = []
    blocks: dict[str, list[int]] = {}
    kept: dict[str, list[int]] = {}
    idents = {name: ident for ident, (name, _) in site_ids(node.anatomy, node.kept).items()}
    for stack in node.anatomy.stacks:
        gone = [i for i, b in enumerate(stack.blocks) if b.removable and _empty(b, idents, shape)]
        if len(gone) == len(stack.blocks):
            gone = gone[1:]  # a stack keeps one block, so that its norms and hooks stay meaningful
        blocks[stack.name] = [i for i in range(len(stack.blocks)) if i not in gone]
        kept[stack.name] = [node.kept[stack.name][i] for i in blocks[stack.name]]
        for i in blocks[stack.name]:
            for sub in stack.blocks[i].sublayers:
                full = sub.bundle.count if sub.bundle else 1
                want = min(full, shape.get(idents[sub.name], full))
                if want == 0 and sub.absent:
                    absent.append(sub.name)
                elif sub.bundle and want < full and sub.bundle.name in node.sensitivities.gradients:
                    units[sub.bundle.name] = kept_units(order_of(node.sensitivities, sub.bundle.name)[0], want or min(full, _least(sub.bundle)))
    if mend:
        for name, keep in units.items():
            repair(module, bundles[name], keep, node.sensitivities.gram.get(name))
    edits = recipe_for(node.anatomy, Keep(blocks=blocks, absent=absent, units=units)).edits
    step = Recipe(edits[len(node.anatomy.preparation.edits):])  # the node's module is prepared already
    return apply_recipe(module, step), node.recipe + step, kept


def _empty(block: Block, idents: dict[str, str], shape: Shape) -> bool:
    """Whether a shape leaves nothing of a block."""
    if not block.sublayers:
        return shape.get(idents.get(block.path, ""), 1) == 0
    return all(shape.get(idents[sub.name], 1) == 0 for sub in block.sublayers)


def evaluate(bench: Bench, module: nn.Module, examples: Examples) -> np.ndarray:
    """Records [N, k] of `module` over `examples`, in their order."""
    return evaluate_with(bench.subject, bench.task, module, examples)


@torch.no_grad()
def evaluate_with(subject: Subject, task: Task, module: nn.Module, examples: Examples, *, exact: bool = False) -> np.ndarray:
    """Records of a torch module; in bf16 where that is fast, in its own precision when `exact`."""
    all_cores()
    module.eval()
    rows: np.ndarray | None = None
    for index in examples.batches(4 if bulky(task, examples) else 64, bucket=True):
        batch = examples.collate(index)
        with autocast(fast_bf16() and not exact):
            z = subject.logits(module, tensors(batch)).float().numpy()
        part = task.records(z, batch, examples.collate_targets(index) if examples.targets is not None else None)
        if rows is None:
            rows = np.zeros((len(examples), part.shape[1]))
        rows[index] = part
    assert rows is not None
    return rows


class Searcher:
    """The search itself; one instance per run, all lasting state in the diary."""

    def __init__(self, bench: Bench, root: Node, plan: Plan) -> None:
        self.bench, self.root, self.plan = bench, root, plan
        self.ids = site_ids(root.anatomy)
        self.counts = {s.name: len(s.blocks) for s in root.anatomy.stacks}
        self.candidates: list[Candidate] = []
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

        def run() -> dict[str, Any]:
            module, _, _ = prune(self.root, shape)
            return {"harm": self.harm(module), "cost": self.cost(shape)}

        return self.bench.diary.once(key, run)

    def propose(self) -> list[tuple[Shape, float, float]]:
        """Rung 0: (shape, harm, cost) of knapsack seeds at several depths, then of TPE's variations around them."""
        options, levels = self.options(), self.plan.levels
        if not levels:
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
        for _ in range(self.plan.sketches):
            ticket, p = search.ask()
            shape = self.shapes([p["cost"]], {s: int(p.get(f"depth:{s}", n)) for s, n in deep.items()}, p["tilt"], options)[0]
            if shape is None:
                search.tell(ticket, [50.0, 1.0], violation=1.0)
            else:
                made = self.sketch(shape)
                found[signature(shape)] = (shape, made["harm"], made["cost"])
                search.tell(ticket, [made["harm"], made["cost"]])
            self.bench.listener.advance()
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

    def train(self, name: str, node: Node, shape: Shape, steps: int, *, seed: int) -> tuple[nn.Module, Recipe, dict[str, list[int]], dict[str, Any]]:
        """Prune `node` to `shape` and distil for `steps`; remembered with its weights."""
        key = f"train:{name}:{node.name}:{signature(shape)}:{steps}:{seed}"
        made: dict[str, Any] = {}

        def start() -> tuple[nn.Module, Recipe, dict[str, list[int]]]:
            if node.sensitivities is None:
                node.sensitivities = calibrate(
                    self.bench.subject,
                    node.module,
                    self.bench.task,
                    self.bench.splits.train,
                    node.anatomy,
                    examples=self.bench.calibration,
                    ablated=0,
                    seed=self.bench.seed,
                )
            return prune(node, shape)

        def run() -> dict[str, Tensor]:
            module, recipe, kept = start()
            done = self.distil(module, kept, steps, seed, self.bench.folder / f"{name}.ckpt.safetensors")
            made.update(module=module, recipe=recipe, kept=kept, wall=done.wall, cpu=done.cpu, curve=list(done.curve))
            return {k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}

        state = self.bench.diary.tensors(key, run)
        facts = self.bench.diary.once(
            f"{key}:facts",
            lambda: (
                {"recipe": made["recipe"].to_json(), "kept": made["kept"], **{k: made[k] for k in ("wall", "cpu", "curve")}}
                if made
                else self._facts(start)
            ),
        )
        recipe, kept = Recipe.from_json(facts["recipe"]), facts["kept"]
        if "module" in made:
            return made["module"], recipe, kept, facts
        module = apply_recipe(copy.deepcopy(self.root.module), Recipe(recipe.edits[len(self.root.recipe.edits):]))
        module.load_state_dict(state)
        return module.eval(), recipe, kept, facts

    @staticmethod
    def _facts(start: Callable[[], tuple[nn.Module, Recipe, dict[str, list[int]]]]) -> dict[str, Any]:
        """The facts of a training whose weights were saved but whose facts a kill lost: pruning is deterministic, so it is done again."""
        _, recipe, kept = start()
        return {"recipe": recipe.to_json(), "kept": kept, "wall": 0.0, "cpu": 0.0, "curve": []}

    def distil(self, module: nn.Module, kept: dict[str, list[int]], steps: int, seed: int, checkpoint: Path | None) -> Any:
        """Recovery of a pruned module from the shared teacher."""
        bench = self.bench
        schedule = Schedule(steps, bench.batch, bench.lr, seed=seed, hidden_weight=bench.hidden_weight, label_weight=bench.label_weight,
                            dropout=False)
        pairs = layer_map(self.root.anatomy, kept) if bench.hidden_weight > 0 else None
        last = 0

        def tick(step: int, _loss: float) -> None:
            nonlocal last
            bench.listener.advance(step - last)
            last = step

        return recover(
            module,
            bench.subject,
            bench.task,
            bench.pool,
            schedule,
            teacher=bench.teacher,
            answers=bench.answers,
            pairs=pairs,
            hidden=hidden,
            checkpoint=checkpoint,
            progress=tick,
        )

    def judge(self, candidate: Candidate) -> Candidate:
        """Search-split quality of a trained candidate, remembered; refuses to go on with one whose upper bound misses the floor by far."""
        bench = self.bench
        assert candidate.module is not None
        module = candidate.module

        def run() -> dict[str, Tensor]:
            return {"records": torch.from_numpy(evaluate(bench, module, bench.splits.search))}

        candidate.records = bench.diary.tensors(f"judge:{candidate.name}:{candidate.steps}", run)["records"].numpy()
        candidate.quality = relative(
            bench.task.metric, bench.base_records, candidate.records, bench.splits.search.targets, seed=bench.seed, groups=bench.splits.search.groups
        )
        return candidate

    def descend(self, sketches: list[tuple[Shape, float, float]]) -> list[Candidate]:
        """Rungs 1 and 2 from the largest level to the smallest, each starting from the last one recovered."""
        bench, node = self.bench, self.root
        total = sum(self.plan.steps) + sum(self.plan.short * max(0, self.plan.rivals) for _ in self.plan.levels)
        bench.listener.stage("pruning and distilling", total)
        for number, (level, steps) in enumerate(zip(self.plan.levels, self.plan.steps, strict=True)):
            shapes = self.rivals(sketches, level)
            if not shapes:  # what cannot be removed already costs more than any level asks for
                continue
            best, start = shapes[0], node
            if len(shapes) > 1:
                trials = []
                for r, shape in enumerate(shapes):
                    module, _, _, _ = self.train(f"short-{number}-{r}", self.fit(node, shape), shape, self.plan.short, seed=bench.seed + 100 + number)
                    trials.append((self.remember_harm(f"short-{number}-{r}", shape, module), r))
                best = shapes[min(trials)[1]]
            start = self.fit(node, best)
            candidate = self.finish(f"level-{number}", start, best, steps, bench.seed + number)
            node = self.node(candidate)
        return self.candidates

    def remember_harm(self, name: str, shape: Shape, module: nn.Module) -> float:
        return float(self.bench.diary.once(f"harm:{name}:{signature(shape)}", lambda: self.harm(module)))

    def fit(self, node: Node, shape: Shape) -> Node:
        """`node` if `shape` can be cut from it, the original otherwise."""
        return node if all(shape.get(i, self._full(i)) <= node.shape.get(i, self._full(i)) for i in self.ids) else self.root

    def _full(self, ident: str) -> int:
        return next(s.full for s in self.bench.sites if s.name == ident)

    def finish(self, name: str, node: Node, shape: Shape, steps: int, seed: int) -> Candidate:
        """Rung 2 of one shape: the trained candidate with its search-split quality."""
        module, recipe, kept, facts = self.train(name, node, shape, steps, seed=seed)
        candidate = Candidate(
            name,
            "network",
            recipe,
            shape,
            self.cost(shape),
            2,
            steps,
            node.name,
            kept,
            module=module,
            extra={"curve": facts["curve"], "seconds": facts["wall"]},
        )
        self.judge(candidate)
        assert candidate.quality is not None
        found = candidate.quality
        self.bench.listener.best(f"{name}: cost {candidate.cost:.0%} of the original, quality {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]")
        if candidate.quality.high < self.bench.floor - 0.15:
            candidate.status, candidate.reason = "stopped", "its upper bound misses the floor by more than 15 points"
        self.candidates.append(candidate)
        return candidate

    def node(self, candidate: Candidate) -> Node:
        """A finished candidate as the start of a further descent."""
        assert candidate.module is not None
        module = candidate.module
        return Node(candidate.name, module, anatomize(module, self.bench.sample), candidate.kept, candidate.recipe, candidate.shape)

    def refine(self) -> list[Candidate]:
        """The rest of the budget goes where the decision is: between the cheapest candidate above the floor and the dearest below it."""
        bench = self.bench
        options = self.options()
        for number in range(self.plan.refine):
            done = sorted((c for c in self.candidates if c.kind == "network" and c.quality), key=lambda c: c.cost)
            passing = [c for c in done if c.quality and c.quality.low >= bench.floor]
            failing = [c for c in done if c.quality and c.quality.low < bench.floor]
            above = passing[0] if passing else None
            below = max((c for c in failing if above is None or c.cost < above.cost), key=lambda c: c.cost, default=None)
            high = above.cost if above else 0.85
            low = below.cost if below else high * 0.5
            target = math.sqrt(high * low)
            if above is None and below is not None:
                target = min(0.9, below.cost + 0.5 * (0.9 - below.cost))
            if high / low < 1.12:
                break
            node = self.node(above) if above else self.root
            depth = {s: sum(1 for i in k) for s, k in (above.kept if above else node.kept).items()}
            shape = self.shapes([target], depth, 0.0, options)[0]
            if shape is None:
                break
            shape = {i: min(v, node.shape.get(i, v)) for i, v in shape.items()}
            if signature(shape) in {signature(c.shape) for c in done}:
                break
            steps = self.plan.steps[min(len(self.plan.steps) - 1, number)]
            bench.listener.stage("refining near the floor", steps)
            self.finish(f"refine-{number}", node, shape, steps, bench.seed + 50 + number)
        return self.candidates


def signature(shape: Shape) -> str:
    """A short name of a shape, equal exactly when the shapes are."""
    import hashlib

    return hashlib.sha256(repr(sorted(shape.items())).encode()).hexdigest()[:16]


class Combine(Rewrite):
    """Layer removal, matrix pruning and distillation in one constrained, multi-fidelity, multi-objective search (Kurtic et al. 2023; Ozaki et al.
    2022; Jamieson & Talwalkar 2016)."""

    title = "all of these in one constrained, multi-fidelity, multi-objective search"
    cites = ("kurtic2023ziplm", "ozaki2022motpe", "jamieson2016", "akiba2019optuna")
    needs = ("torch", "optuna")

    def declines(self, model: nn.Module) -> str | None:
        reasons = [t.declines(model) for t in (MatrixPruning(), LayerRemoval())]
        return None if None in reasons else "; ".join(r for r in reasons if r)

    def options(self, anatomy: Anatomy, sensitivities: Sensitivities) -> list[Option]:
        return [o for t in (MatrixPruning(), LayerRemoval()) for o in t.options(anatomy, sensitivities)]

    def apply(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        return apply_recipe(model, recipe)
