"""Weights of 8 or 4 bits after activation-aware scaling: inputs that carry large activations get finer steps.

A layer's inputs are divided by s and its weights multiplied by it, which changes nothing but how the weights round (Lin et al. 2024, AWQ):
s_i = a_i^α, a_i the mean magnitude of input i on calibration data, α from a grid on [0, 1] (0: no scaling), chosen by the output error on these data,
Σ (Ŵ(sW)·x/s − W·x)². Layers that read the same tensor share s. The division is taken over by what makes that tensor, where it is a normalisation
with a weight of its own; that the answers stay as they were is checked, else the layer divides its inputs itself, when it runs.

Recipe edits of kind "awq": {path, bits, group, offset, scaled}; `scaled`: whether the layer divides its inputs itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fourfold.rewrite import Edit, Rewrite
from fourfold.rewrites.compress._packed import Grid, decode, encode, grid_of, install, least_squares, nothing_to_pack, stored_weight, told
from fourfold.rewrites.compress._walk import grams

ALPHAS = tuple(i / 10 for i in range(11))
SAME = 1e-3  #: largest change of an answer, as a share of the largest, that is rounding in another order


class Awq(Rewrite):
    """Scales that are searched on calibration data; never worse there than without scaling, since α = 0 is among the choices."""

    title: ClassVar[str] = "AWQ: weights scaled by activations, then rounded (8 or 4 bits)"
    cites: ClassVar[tuple[str, ...]] = ("lin2024",)
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    edits: ClassVar[tuple[str, ...]] = ("awq",)
    packs: ClassVar[bool] = True

    def declines(self, model: nn.Module) -> str | None:
        return nothing_to_pack(model)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        path = str(edit["path"])
        inputs = stored_weight(model.get_submodule(path)).shape[1]
        install(model, path, grid_of(edit), scaled=torch.ones(inputs) if edit.get("scaled") else None)
        return model

    def pack(self, model: nn.Module, edits: Sequence[Edit], run: Callable[[nn.Module], object]) -> nn.Module:
        """Scales from one pass over the unrounded model; then every layer is rounded. Only scales that a normalisation takes over are used, so that
        the recipe's edits tell the shape."""
        made = copy.deepcopy(model)
        grids = {str(edit["path"]): grid_of(edit) for edit in edits}
        sites, norms = sharing(made, list(grids), run)
        found = grams(made, list(grids), lambda: run(made))
        folded: set[str] = set()
        for paths, norm in zip(sites, norms, strict=True):
            if norm is None or any(path not in found for path in paths):
                continue
            weights = {path: stored_weight(made.get_submodule(path)).float() for path in paths}
            scale = searched(weights, {p: grids[p].fits(weights[p].shape[1]) for p in paths}, found[paths[0]])
            if scale is not None and _taken_over(made, norm, paths, scale):
                folded.update(paths)
                for path in paths:
                    found[path] = found[path] / torch.outer(scale, scale)
        for path, grid in grids.items():
            weight = stored_weight(made.get_submodule(path)).float()
            grid = grid.fits(weight.shape[1])
            step, offset = least_squares(weight, grid, found[path].diagonal() if path in found else None)
            install(made, path, grid, (encode(weight, step, offset, grid.bits), step, offset))
        return made

    def describe(self, edits: Sequence[Edit]) -> str:
        return told(edits, "scaled by activations first (AWQ)")


def searched(weights: Mapping[str, Tensor], grids: Mapping[str, Grid], gram: Tensor) -> Tensor | None:
    """The best scale [in] of layers that read the same inputs, with XᵀX = `gram`; None where no scaling is best. Magnitudes are root mean squares."""
    size = gram.diagonal().clamp_min(1e-12).sqrt()
    best, kept = None, None
    for alpha in ALPHAS:
        scale = size**alpha
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for path, weight in weights.items():
            wide = weight * scale
            step, offset = least_squares(wide, grids[path], gram.diagonal() / scale**2, steps=3)
            difference = decode(encode(wide, step, offset, grids[path].bits), step, offset) / scale - weight
            error += float(((difference @ gram) * difference).sum())
        if best is None or error < best:
            best, kept = error, None if alpha == 0 else scale
    return kept


def sharing(model: nn.Module, paths: Sequence[str], run: Callable[[nn.Module], object]) -> tuple[list[list[str]], list[str | None]]:
    """(paths of layers that read one tensor, a list each; path of the normalisation that makes that tensor, or None)."""
    made: dict[int, str] = {}
    groups: dict[tuple[int, str | None], list[str]] = {}
    held: list[Tensor] = []
    seen: set[str] = set()

    def made_by(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_: nn.Module, __: object, result: object) -> None:
            if isinstance(result, Tensor):
                held.append(result)  # alive, so that no later tensor gets its number
                made[id(result)] = path
        return hook

    def read_by(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if path not in seen:
                seen.add(path)
                held.append(given[0])
                groups.setdefault((id(given[0]), made.get(id(given[0]))), []).append(path)
        return hook

    hooks = [m.register_forward_hook(made_by(path)) for path, m in model.named_modules() if _normalises(m)]
    hooks += [model.get_submodule(path).register_forward_pre_hook(read_by(path)) for path in paths]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return list(groups.values()), [norm for _, norm in groups]


def _normalises(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and "norm" in type(module).__name__.lower()


def _taken_over(model: nn.Module, norm: str, paths: Sequence[str], scale: Tensor) -> bool:
    """In place: the normalisation's weight (and bias) over `scale`, the layers' weights times it. False, and everything as before, where what the
    layers make of a normalised sample is then another."""
    module = model.get_submodule(norm)
    layers = [model.get_submodule(path) for path in paths]
    sample = torch.randn(4, len(scale), generator=torch.Generator().manual_seed(0))
    store = [t for t in (module.weight, getattr(module, "bias", None)) if isinstance(t, Tensor)]
    kept = [t.detach().clone() for t in store]
    weights = [layer.weight.detach().clone() for layer in layers]  # type: ignore[operator]
    with torch.no_grad():
        before = [layer(module(sample)) for layer in layers]
        for tensor in store:
            tensor.div_(scale)
        for layer in layers:
            layer.weight.mul_(scale if isinstance(layer, nn.Linear) else scale[:, None])  # type: ignore[operator]
        after = [layer(module(sample)) for layer in layers]
        if all(float((a - b).abs().max()) <= SAME * float(b.abs().max()) for a, b in zip(after, before, strict=True)):
            return True
        for tensor, old in zip([*store, *(layer.weight for layer in layers)], [*kept, *weights], strict=True):
            tensor.copy_(old)  # type: ignore[union-attr]
    return False
