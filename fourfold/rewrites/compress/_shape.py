"""What the combined search moves through: shapes, the sites that they number, what a shape costs at least, and pruning a model to one."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

from torch import nn

from fourfold.cost.unit_costs import CostTable, PruningSite
from fourfold.recipe import Recipe
from fourfold.recipe import apply as apply_recipe
from fourfold.rewrites.calibration import Sensitivities
from fourfold.rewrites.compress.matrix_pruning import kept_units, order_of, repair, sizes
from fourfold.structure.discover import Anatomy, Block, Bundle, Keep, recipe_for

Shape = dict[str, int]
"""Units kept by site id ("encoder.3.ffn"); a missing id keeps everything, 0 removes the sub-layer."""


def signature(shape: Shape) -> str:
    """A short name of a shape, equal exactly when the shapes are."""
    return hashlib.sha256(repr(sorted(shape.items())).encode()).hexdigest()[:16]


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


def cost_sites(anatomy: Anatomy) -> list[PruningSite]:
    """The sites of the original model as the cost table wants them: kind = stack, sub-layer kind and full size."""
    found = []
    bundles, subs = anatomy.bundles, anatomy.sublayers
    varied = len({b.count for b in bundles.values()}) > 12
    for ident, (name, bundle) in site_ids(anatomy).items():
        full = bundles[bundle].count if bundle else 1
        stack, _, kind = ident.rsplit(".", 2)
        least = 0 if name not in subs or subs[name].absent else _least(bundles[bundle]) if bundle else 1
        found.append(PruningSite(ident, f"{stack}:{kind}" if varied else f"{stack}:{kind}:{full}", full, least))
    return found


def _least(bundle: Bundle) -> int:
    """The smallest size of a bundle that may not go whole."""
    return [n for n in sizes(bundle.count, bundle.kind) if n][-1]


def cheapest(anatomy: Anatomy, table: CostTable, sites: list[PruningSite]) -> float:
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
