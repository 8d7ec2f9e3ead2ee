"""Weights in fewer bits, whichever technique rounds them: what can be asked of a model, and the model so packed.

A plan names a grid for each layer. Uniform plans give one to all but the output head, which gets 8 bits: in small models it is up to two thirds of
the bytes read for a token, and its errors reach the answer directly. Mixed plans give each layer the bits that its sensitivity earns: the loss on
calibration rows is measured with one group of layers packed at a time, and a multiple-choice knapsack takes the least total harm at each size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold import registry
from fourfold.rewrites.compress._packed import (
    Grid,
    PackedLinear,
    decode,
    encode,
    grid_of,
    install,
    least_squares,
    output_error,
    stored_weight,
    targets,
    weight_bits,
)
from fourfold.rewrites.compress._walk import grams as output_grams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.rewrite import Edit

__all__ = ["Grid", "WeightPlan", "grid_of", "mixed", "packed", "plans", "predicted", "sensitivities", "weight_bits"]

INT8 = Grid(8, 0, "symmetric")


@dataclass(frozen=True)
class WeightPlan:
    """How a model's weights are stored: `technique` (id of one that packs), and a grid for each path; what is not named stays as it is."""

    name: str
    technique: str
    grids: Mapping[str, Grid]

    @property
    def bits(self) -> int:
        """The fewest bits of a layer."""
        return min((grid.bits for grid in self.grids.values()), default=32)

    @property
    def precision(self) -> str:
        """What engines and reports call it."""
        return f"int{self.bits}-weights"

    def edits(self) -> tuple[Edit, ...]:
        """The plan as edits of its technique's own kind."""
        kind = registry.facts(self.technique).edits[0]
        return tuple({"kind": kind, "path": path, **grid.edit()} for path, grid in self.grids.items())


def head_of(module: nn.Module) -> str | None:
    """Path of the layer that makes the logits; None where the module names none."""
    ask = getattr(module, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    return next((path for path, part in module.named_modules() if head is not None and part is head), None)


def uniform(module: nn.Module, grid: Grid, head: Grid = INT8) -> dict[str, Grid]:
    """One grid for all layers that can be packed, another for the output head (and the table that it is tied to)."""
    last = head_of(module)
    return {path: (head if path == last else grid).fits(stored_weight(module.get_submodule(path)).shape[1]) for path in targets(module)}


def plans(module: nn.Module, techniques: Sequence[str] | None = None) -> list[WeightPlan]:
    """What can be asked of a model, least harm first: 8 bits rounded to nearest; then 4 bits by each technique, in groups of 32, 64 and 128 and with
    each kind of offset that engines have fast products for. Empty where nothing can be packed."""
    if not targets(module):
        return []
    plain = "compress/round_to_nearest"
    found = [WeightPlan("int8", plain, uniform(module, INT8))]
    found.append(WeightPlan("int4 exact ends", plain, uniform(module, Grid(4, 32, "fractional"))))
    for id in techniques or registry.packers():
        for group in (32, 64, 128):
            for offset in ("integer", "symmetric"):
                name = f"int4 {id.split('/')[1]} {group} {offset}"
                found.append(WeightPlan(name, id, uniform(module, Grid(4, group, offset))))
    return found


def packed(module: nn.Module, plan: WeightPlan, run: Callable[[nn.Module], object]) -> nn.Module:
    """A copy of the trained module with its weights stored as the plan says; `run` calls a module on calibration batches."""
    return registry.technique(plan.technique)().pack(module, plan.edits(), run).eval()


def sensitivities(module: nn.Module, loss: Callable[[nn.Module], float], choices: Sequence[Grid]) -> dict[str, np.ndarray]:
    """{path: rise of `loss` [choices] when that layer alone is stored on each grid}, never below 0; rounded to nearest, as the cheapest witness."""
    before = loss(module)
    found: dict[str, np.ndarray] = {}
    for path in targets(module):
        inputs = stored_weight(module.get_submodule(path)).shape[1]
        rises = []
        for grid in choices:
            trial = _with(module, path, grid.fits(inputs))
            rises.append(max(0.0, loss(trial) - before))
        found[path] = np.array(rises)
    return found


def predicted(module: nn.Module, loss: Callable[[nn.Module], Tensor], choices: Sequence[Grid]) -> dict[str, np.ndarray]:
    """{path: predicted rise of `loss` [choices]} without trying: ½ Σ_o G_o·E_o, from one pass forth and back.

    G_o is the sum of squared gradients of the loss with respect to output o of the layer (the diagonal of the empirical Fisher information),
    E_o the sum of squared errors of that output when the layer is rounded to nearest. `loss`: a scalar tensor, the
    sum over tokens divided by their number."""
    paths = targets(module)
    squares, grams = _statistics(module, paths, loss)
    found: dict[str, np.ndarray] = {}
    for path in paths:
        weight, rises = stored_weight(module.get_submodule(path)).float(), []
        for grid in choices if path in grams else ():
            grid = grid.fits(weight.shape[1])
            step, offset = least_squares(weight, grid, grams[path].diagonal())
            off = output_error(weight, decode(encode(weight, step, offset, grid.bits), step, offset), grams[path])
            rises.append(0.5 * float((squares[path] * off).sum()))
        found[path] = np.array(rises or [0.0] * len(choices))
    return found


def _statistics(module: nn.Module, paths: Sequence[str], loss: Callable[[nn.Module], Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(Σ g² [out] of each layer's output, XᵀX [in, in] of its input)."""
    import torch

    squares: dict[str, Tensor] = {}
    made: list[tuple[str, Tensor]] = []

    def look(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, result: Tensor) -> None:
            made.append((path, result))
        return hook

    def once() -> None:
        with torch.enable_grad():
            total = loss(module)
        gradients = torch.autograd.grad(total, [result for _, result in made], allow_unused=True)
        for (path, _), g in zip(made, gradients, strict=True):
            if g is not None:
                squares[path] = squares.get(path, 0.0) + g.float().reshape(-1, g.shape[-1]).square().sum(0)

    handles = [module.get_submodule(path).register_forward_hook(look(path)) for path in paths]
    wanted = [p for p in module.parameters() if not p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(True)
    try:
        grams = output_grams(module, paths, once)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(False)
    return squares, {path: gram for path, gram in grams.items() if path in squares}


def _with(module: nn.Module, path: str, grid: Grid) -> nn.Module:
    """A copy that shares all weights but those of one layer."""
    shared = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    trial = copy.deepcopy(module, shared)
    install(trial, path, grid)
    return trial


def mixed(module: nn.Module, harms: Mapping[str, np.ndarray], choices: Sequence[Grid], bits: Sequence[float],
          technique: str = "compress/round_to_nearest") -> list[WeightPlan]:  # fmt: skip
    """For each mean number of bits a weight (steps and offsets counted), the plan with the least summed harm (`sensitivities`), by the knapsack that
    also chooses units. Means that not even the narrowest grids reach are left out."""
    from fourfold.solvers.knapsack import solve

    paths = list(harms)
    shapes = {path: stored_weight(module.get_submodule(path)).shape for path in paths}
    grids = {path: [grid.fits(shapes[path][1]) for grid in choices] for path in paths}
    costs = [np.array([float(grid.stored(*shapes[path])) for grid in grids[path]]) for path in paths]
    count = sum(int(np.prod(shapes[path])) for path in paths)
    chosen = solve(costs, [np.asarray(harms[path], float) for path in paths], [mean * count / 8 for mean in bits])
    found = []
    for mean, picks in zip(bits, chosen, strict=True):
        if picks is not None:
            plan = {path: grids[path][pick] for path, pick in zip(paths, picks, strict=True)}
            found.append(WeightPlan(f"mixed {mean:g} bits {technique.split('/')[1]}", technique, plan))
    return found


def layers(module: nn.Module) -> list[str]:
    """Paths of the packed layers of a model."""
    return [path for path, part in module.named_modules() if isinstance(part, PackedLinear)]
