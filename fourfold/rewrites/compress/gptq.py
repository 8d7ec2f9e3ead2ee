"""Weights of 8 or 4 bits, rounded one input after the other; each rounding's error is made good by the inputs that are still to come.

For a layer with inputs X [rows, in] the error of its output is tr((W − Ŵ)·H·(W − Ŵ)ᵀ), H = 2·XᵀX (Frantar et al. 2023, GPTQ; after optimal brain
surgeon). With H⁻¹ = UᵀU, U upper triangular, input j's rounding error e = (w_j − ŵ_j) / U_jj is taken off the later ones, w_k −= e·U_jk,
in blocks of inputs so that most of it is one product. Inputs go in the order of falling diagonal of H ("act-order"), on grids that were
fixed before, so that groups stay where they are and nothing is reordered when the model runs. Blocks of layers are calibrated in turn, each on what
the already rounded ones before it make.

Recipe edits of kind "gptq": {path, bits, group, offset}; carried out without calibration they round to nearest, which gives the same shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fourfold.rewrite import Edit, Rewrite
from fourfold.rewrites.compress._packed import (
    Grid,
    decode,
    encode,
    grid_of,
    install,
    least_squares,
    nothing_to_pack,
    output_error,
    stored_weight,
    told,
)
from fourfold.rewrites.compress._walk import walk

DAMPING = 0.01  #: share of H's mean diagonal that is added to it
BLOCK = 128  #: inputs whose corrections are gathered into one product


class Gptq(Rewrite):
    """Second-order rounding; its output error on the calibration inputs is never above that of rounding to nearest, which is kept where it is."""

    title: ClassVar[str] = "GPTQ: weights rounded with correction (8 or 4 bits)"
    cites: ClassVar[tuple[str, ...]] = ("frantar2023",)
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    edits: ClassVar[tuple[str, ...]] = ("gptq",)
    packs: ClassVar[bool] = True

    def declines(self, model: nn.Module) -> str | None:
        return nothing_to_pack(model)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        install(model, str(edit["path"]), grid_of(edit))
        return model

    def pack(self, model: nn.Module, edits: Sequence[Edit], run: Callable[[nn.Module], object]) -> nn.Module:
        """Blocks in turn, each on the inputs that the rounded blocks before it make; layers that no input reaches are rounded to nearest."""
        made = copy.deepcopy(model)
        grids = {str(edit["path"]): grid_of(edit) for edit in edits}

        def settle(grams: dict[str, Tensor]) -> None:
            for path, gram in grams.items():
                weight = stored_weight(made.get_submodule(path)).float()
                grid = grids[path].fits(weight.shape[1])
                install(made, path, grid, corrected(weight, gram, grid))

        walk(made, list(grids), run, settle)
        for path, grid in grids.items():
            if isinstance(made.get_submodule(path), nn.Linear):
                install(made, path, grid)
        return made

    def describe(self, edits: Sequence[Edit]) -> str:
        return told(edits, "rounded with correction (GPTQ)")


def corrected(weight: Tensor, gram: Tensor, grid: Grid, order: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """(codes uint8 [out, in], step, offset [out, groups]) of a weight [out, in] for inputs with XᵀX = `gram` [in, in].

    `order`: inputs that matter most first. Rounding to nearest is kept for rows whose output error it makes smaller."""
    diagonal = gram.diagonal()
    step, offset = least_squares(weight, grid, diagonal)
    nearest = encode(weight, step, offset, grid.bits)
    factor = _factor(gram)
    if factor is None:
        return nearest, step, offset
    places = torch.argsort(diagonal, descending=True) if order else torch.arange(len(diagonal))
    codes = _in_turn(weight, _factor(gram[places][:, places]), places, step, offset, grid.bits)  # type: ignore[arg-type]
    errors = [output_error(weight, decode(c, step, offset), gram) for c in (codes, nearest)]
    return torch.where((errors[0] <= errors[1])[:, None], codes, nearest), step, offset


def _factor(gram: Tensor) -> Tensor | None:
    """U of H⁻¹ = UᵀU; None where H has no inverse however much is added to its diagonal. An input that is always 0 corrects nothing."""
    h = gram.double().clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1.0
    mean = float(h.diagonal().mean())
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = h + damping * mean * torch.eye(len(h), dtype=h.dtype)
        lower, bad = torch.linalg.cholesky_ex(damped)
        if not bad:
            upper, bad = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bad:
                return upper.float()
    return None


def _in_turn(weight: Tensor, factor: Tensor, places: Tensor, step: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Codes, inputs rounded in the order `places`; `factor` is U in that order."""
    left = weight[:, places].clone()
    size = weight.shape[1] // step.shape[1]
    group = torch.div(places, size, rounding_mode="floor")
    top = 2**bits - 1
    codes = torch.empty_like(left)
    for begin in range(0, len(places), BLOCK):
        end = min(begin + BLOCK, len(places))
        errors = torch.empty(len(weight), end - begin)
        for j in range(begin, end):
            s, z = step[:, group[j]], offset[:, group[j]]
            q = (left[:, j] / s + z).round_().clamp_(0, top)
            codes[:, j] = q
            error = (left[:, j] - (q - z) * s) / factor[j, j]
            errors[:, j - begin] = error
            left[:, j + 1 : end] -= error[:, None] * factor[j, j + 1 : end]
        left[:, end:] -= errors @ factor[begin:end, end:]
    found = torch.empty_like(codes)
    found[:, places] = codes
    return found.to(torch.uint8)
