"""Outputs compared with the original's: within rounding of their type, or by how much they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines.parity import largest_difference

if TYPE_CHECKING:
    from fourfold.plans import Plan


@dataclass(frozen=True)
class Compared:
    """One output beside the original's: largest difference, and that as a share of the original's largest magnitude."""

    name: str
    dtype: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def equal(self) -> bool:
        return self.relative <= self.tolerance


def compared(name: str, ours: object, theirs: object) -> Compared:
    """`relative` is inf where shapes differ, or where one is finite and the other is not."""
    mine, other = np.asarray(_array(ours)), np.asarray(_array(theirs))
    dtype = str(getattr(theirs, "dtype", other.dtype)).removeprefix("torch.")
    tolerance = largest_difference(dtype)
    if mine.shape != other.shape:
        return Compared(name, dtype, math.inf, math.inf, tolerance)
    if not other.size:
        return Compared(name, dtype, 0.0, 0.0, tolerance)
    if not np.issubdtype(other.dtype, np.inexact):
        wrong = float(np.mean(mine != other))
        return Compared(name, dtype, wrong, wrong, tolerance)
    finite = np.isfinite(other)
    same = bool(np.array_equal(mine[~finite], other[~finite], equal_nan=True)) and bool(np.isfinite(mine[finite]).all())
    if not same:
        return Compared(name, dtype, math.inf, math.inf, tolerance)
    worst = float(np.abs(mine[finite] - other[finite]).max(initial=0.0))
    scale = float(np.abs(other[finite]).max(initial=0.0))
    return Compared(name, dtype, worst, worst / scale if scale else (0.0 if worst == 0 else math.inf), tolerance)


def _array(value: Any) -> object:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return value.double().numpy() if value.is_floating_point() else value.numpy()
    return np.asarray(value)


def unlike(plan: Plan, ours: Mapping[int, object], theirs: Mapping[int, object]) -> str:
    """Why values differ by more than rounding, "" where they do not."""
    for v, other in theirs.items():
        if v in ours and not (found := compared(plan.graph.labels[v] or f"value {v}", ours[v], other)).equal:
            return f"{found.name} differs by {found.relative:.2g} of its largest magnitude"
    return ""
