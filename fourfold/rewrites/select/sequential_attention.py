"""Sequential Attention for models of wide rows: which input features a network needs, and which of its units.

Features: attention over the inputs of the first layer, trained once beside a small network that learns the original's own answers (Yasuda et al.,
ICLR 2023; `_greedy`). One run orders them, so a prefix is a selection for each size; what stays is a slice of the first layer, and its other inputs
are not read any more. Units (neurons between two layers): Sequential Attention++ (Yasuda et al., NeurIPS 2024; `_blocks`) with the units as blocks,
while the network itself is trained on the original's answers. What it keeps is cut out as matrix pruning does it, which chooses by another criterion.

It pays where rows are wide; short texts and narrow tables are declined, since a first layer of a few columns costs next to nothing.

Shapes: N rows, F features, C outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.recipe import pack, unpack
from fourfold.rewrite import Context, Edit, Proposal, Rewrite
from fourfold.rewrites.select._blocks import AlternatingSchedule, BlockSparsifier
from fourfold.rewrites.select._greedy import FeatureAttention, SelectingMLP, SelectionSchedule, select
from fourfold.rewrites.select._rows import Rows

if TYPE_CHECKING:
    from fourfold.structure.discover import Anatomy

WIDE = 64
"""Features from which selection is tried."""
SIZES = (0.5, 0.25, 0.125)
"""Shares of the features that are proposed."""
PHASES, UPDATES, ROWS, BATCH = 16, 1200, 4096, 64
UNITS = 0.5
"""Share of the units that is proposed to leave."""


def entry(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Path and module of the linear layer that reads the inputs: the first module with weights of its own; None where that is another kind."""
    for path, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            return (path, module) if type(module) is nn.Linear else None
    return None


class SequentialAttentionSelection(Rewrite):
    """Input features by Sequential Attention, units by Sequential Attention++ (Yasuda et al. 2023, 2024)."""

    default = True
    title = "input features by Sequential Attention, units by Sequential Attention++"
    cites = ("yasuda2023", "yasuda2024")
    needs = ("torch",)
    step = "fewer input features"

    def declines(self, model: nn.Module) -> str | None:
        found = entry(model)
        name = type(model).__name__
        if found is None:
            return f"{name} does not begin with a linear layer over features, so there are none to select"
        width = found[1].in_features
        return None if width >= WIDE else f"{name} reads rows of {width} features; selecting some of them pays from {WIDE} on"

    def propose(self, context: Context) -> Iterator[Proposal]:
        """Half, a quarter and an eighth of the features; then a quarter of them with half of the units. Nothing where rows are not plain [N, F]."""
        model: nn.Module = context.subject.module
        found = entry(model)
        if found is None:
            return
        path, layer = found
        rows, answers = _read(context, layer)
        if rows is None:
            return
        order = features(rows, answers, context.task.kind, max(1, round(SIZES[0] * layer.in_features)), context.seed)
        total = max(1, sum(p.numel() for p in model.parameters()))

        def edits(size: int) -> list[dict[str, Any]]:
            index = pack(sorted(order[:size]))
            return [{"kind": "slice", "path": path, "axis": "in", "index": index},
                    {"kind": "select", "path": path, "argument": 0, "axis": 1, "index": index}]

        for share in SIZES:
            size = min(len(order), max(1, round(share * layer.in_features)))
            left = 1.0 - (layer.in_features - size) * layer.out_features / total
            yield Proposal(f"features-{size}", tuple(edits(size)), (left, left / 2, 1.0))
        size = min(len(order), max(1, round(SIZES[1] * layer.in_features)))
        kept = units(context, path) if context.anatomy is not None else {}
        if kept:
            from fourfold.structure.discover import Keep, recipe_for

            anatomy: Any = context.anatomy
            shrunk = tuple(recipe_for(anatomy, Keep(units=kept)).edits)
            left = (1.0 - (layer.in_features - size) * layer.out_features / total) * (1.0 - UNITS)
            yield Proposal(f"features-{size}-units", (*edits(size), *shrunk), (left, left / 2, 1.0))

    def describe(self, edits: Sequence[Edit]) -> str:
        kept = next((len(unpack(edit["index"])) for edit in edits if edit["kind"] == "select"), 0)
        more = ", fewer units by Sequential Attention++" if sum(edit["kind"] == "slice" for edit in edits) > 1 else ""
        return f"reads {kept:,} of its input features, chosen by Sequential Attention{more}"


@torch.no_grad()
def _read(context: Context, layer: nn.Linear) -> tuple[Tensor | None, Tensor]:
    """What the first layer reads of the examples [N, F] and the original's answers [N, C]; (None, …) where it reads anything but one row each."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().float().cpu()))
    model, answers, count = context.subject.module, [], min(ROWS, len(context.examples))
    training = model.training
    try:
        model.eval()
        for at in range(0, count, 256):
            inputs = {name: torch.as_tensor(value) for name, value in context.examples.collate(np.arange(at, min(count, at + 256))).items()}
            answers.append(context.subject.logits(model, inputs).detach().float().cpu())
    finally:
        hook.remove()
        model.train(training)
    whole = torch.cat(answers)
    plain = bool(seen) and all(x.ndim == 2 for x in seen) and sum(len(x) for x in seen) == len(whole) and whole.ndim == 2
    rows = torch.cat(seen) if plain else None
    return rows if rows is not None and bool(torch.isfinite(rows).all()) else None, whole


def features(rows: Tensor, answers: Tensor, kind: str, count: int, seed: int) -> list[int]:
    """The first `count` features of rows [N, F] that a small network needs to give the answers [N, C] of a `kind` of task; constants come last."""
    table = Rows.of(rows.numpy(), None)
    varying = int(table.varies.sum())
    targets, loss = _targets(answers, kind)
    order: list[int] = []
    if varying:
        wanted = min(count, varying)
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            attention = FeatureAttention(rows.shape[1], torch.from_numpy(table.varies), generator)
            network = SelectingMLP(attention, (67,), targets.shape[1])
            schedule = SelectionSchedule(wanted, -(-wanted // PHASES), UPDATES)
            with torch.enable_grad():
                select(network, attention, schedule, table.batches(targets, None, BATCH, generator), loss)
        order = attention.order
    return order + np.flatnonzero(~table.varies)[: count - len(order)].tolist()


def _targets(answers: Tensor, kind: str) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """The original's answers as a small network learns them: class probabilities, or values of unit variance; and the loss of each row."""
    if kind == "classification" and answers.shape[1] > 1:
        return torch.softmax(answers, 1), lambda outputs, wanted: F.cross_entropy(outputs, wanted, reduction="none")
    scaled = (answers - answers.mean(0)) / answers.std(0).clamp_min(1e-6)
    return scaled, lambda outputs, wanted: (outputs - wanted).square().mean(1)


def units(context: Context, path: str) -> dict[str, list[int]]:
    """Bundle → units to keep: those on which Sequential Attention++ ends when the network is trained on the original's answers, half of each
    bundle of neurons that a linear layer reads."""
    anatomy: Anatomy = context.anatomy
    model = anatomy.prepared(copy.deepcopy(context.subject.module))
    layers, bundles = {}, {}
    for name, bundle in anatomy.bundles.items():
        consumer = model.get_submodule(bundle.consumer.path)
        if bundle.kind != "neurons" or type(consumer) is not nn.Linear or bundle.count < 2:
            continue
        index = torch.zeros(consumer.in_features, dtype=torch.long)
        for unit in range(bundle.count):
            index[torch.from_numpy(bundle.columns([unit]))] = unit
        layers[bundle.consumer.path], bundles[name] = (index[None, :], bundle.count), bundle.consumer.path
    if not layers:
        return {}
    sparsifier = BlockSparsifier(model, layers, AlternatingSchedule(UPDATES // 4, UNITS))
    rng = np.random.default_rng(context.seed)
    original, logits = context.subject.module, {id(p) for p in sparsifier.parameters()}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in logits]
    optimiser = torch.optim.AdamW([{"params": weights, "lr": 1e-3}, {"params": sparsifier.parameters(), "lr": 1e-2, "weight_decay": 0.0}])
    training = original.training
    original.eval()
    model.eval()  # no dropout: the answers to be learnt had none
    with torch.enable_grad():
        for update in range(UPDATES // 4):
            picked = np.sort(rng.choice(len(context.examples), min(BATCH, len(context.examples)), replace=False))
            inputs = {name: torch.as_tensor(value) for name, value in context.examples.collate(picked).items()}
            with torch.no_grad():
                wanted, loss = _targets(context.subject.logits(original, inputs).float(), context.task.kind)
            sparsifier.before(update)
            optimiser.zero_grad()
            loss(context.subject.logits(model, inputs).float(), wanted).mean().backward()
            optimiser.step()
    original.train(training)
    kept = sparsifier.fold()
    return {name: kept[layer] for name, layer in bundles.items()}
