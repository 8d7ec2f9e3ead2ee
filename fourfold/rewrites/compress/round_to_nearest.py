"""Weights of 8 or 4 bits, each rounded to the nearest point of its group's grid; activations stay as they are.

A group of g inputs of one output shares step s and offset z (Yao et al. 2022, group-wise quantisation of ZeroQuant): w ≈ s·(q − z). Its range may be
shrunk to the least squared error, since one large weight spoils the steps of its whole group. No data are needed. Where the weights came from 4 bits,
fractional offsets return them exactly.

Recipe edits of kind "pack": {path, bits, group, offset, [search]}; a head that shares its table stands for both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import nn

from fourfold.rewrite import Edit, Rewrite
from fourfold.rewrites.compress._packed import encode, grid_of, install, least_squares, nothing_to_pack, stored_weight, told


class RoundToNearest(Rewrite):
    """The plain way, which the others must beat; `search` of an edit asks for shrunk ranges."""

    title: ClassVar[str] = "Weights rounded to nearest (8 or 4 bits)"
    cites: ClassVar[tuple[str, ...]] = ("yao2022",)
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    edits: ClassVar[tuple[str, ...]] = ("pack",)
    packs: ClassVar[bool] = True

    def declines(self, model: nn.Module) -> str | None:
        return nothing_to_pack(model)

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        """In place. A trained layer is rounded; a bare one gets buffers of the right shapes."""
        path = str(edit["path"])
        weight = stored_weight(model.get_submodule(path))
        grid = grid_of(edit).fits(weight.shape[1])
        if edit.get("search") and not weight.is_meta:
            step, offset = least_squares(weight, grid)
            install(model, path, grid, (encode(weight, step, offset, grid.bits), step, offset))
        else:
            install(model, path, grid)
        return model

    def pack(self, model: nn.Module, edits: Sequence[Edit], run: Callable[[nn.Module], object]) -> nn.Module:
        """As `apply`; nothing is calibrated."""
        made = copy.deepcopy(model)
        for edit in edits:
            self.apply(made, edit)
        return made

    def describe(self, edits: Sequence[Edit]) -> str:
        return told(edits, "rounded to nearest")
