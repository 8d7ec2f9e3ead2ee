"""Rows of numbers, read a batch at a time: standardised on the way, so that no copy of the table is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourfold.errors import InputError
from fourfold.rewrites.select._greedy import Batch

_ROWS = 1 << 24  # numbers that a pass over the table holds at once


@dataclass(frozen=True)
class Rows:
    """X [n, d] as it was given, dense or CSR, with the mean and scale [d] of its columns, float64; standardised a batch at a time, so that no copy of
    it is made. `varies` bool [d]: columns that are not constant."""

    data: Any
    mean: np.ndarray
    scale: np.ndarray
    varies: np.ndarray

    @property
    def count(self) -> int:
        return self.data.shape[0]

    @classmethod
    def of(cls, X: Any, weight: np.ndarray | None) -> Rows:
        """With mean and scale over rows weighted by `weight`, in two passes. Raises InputError where a column's square overflows."""
        with np.errstate(over="ignore", invalid="ignore"):
            if hasattr(X, "tocsr"):
                from sklearn.utils.sparsefuncs import mean_variance_axis

                found: Any = mean_variance_axis(X.astype(np.float64), axis=0, weights=weight)
                mean, variance = found
            else:
                total = len(X) if weight is None else weight.sum()
                mean, variance = np.zeros(X.shape[1]), np.zeros(X.shape[1])
                for part in _parts(X.shape):
                    mean += _weighted(X[part].astype(np.float64), weight, part) / total
                for part in _parts(X.shape):
                    variance += _weighted((X[part] - mean) ** 2, weight, part) / total
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            column = int(np.flatnonzero(~(np.isfinite(mean) & np.isfinite(variance)))[0])
            raise InputError(f"column {column} of X holds numbers whose squares overflow.", "Scale it first.")
        scale = np.sqrt(np.maximum(variance, 0.0))
        varies = scale > 1e-10 * np.abs(mean)
        return cls(X, np.asarray(mean), np.where(varies, scale, 1.0), varies)

    def batches(self, targets: Tensor, weight: np.ndarray | None, size: int, generator: torch.Generator) -> Callable[[int], Batch]:
        """update → a batch of standardised rows float32; shuffled anew every pass. Rows of weight 0 are left out."""
        rows = torch.arange(self.count) if weight is None else torch.from_numpy(np.flatnonzero(weight))
        with warnings.catch_warnings():  # rows are only read, so an array that may not be written to will do
            warnings.simplefilter("ignore", UserWarning)
            dense = None if hasattr(self.data, "tocsr") else torch.from_numpy(np.ascontiguousarray(self.data))
        mean, inverse = torch.from_numpy(self.mean), torch.from_numpy(np.where(self.varies, 1.0 / self.scale, 0.0)).float()
        weights = None if weight is None else torch.from_numpy(weight).float()
        per = -(-len(rows) // size)
        order = rows

        def batch(update: int) -> Batch:
            nonlocal order
            at = update % per
            if at == 0:
                order = rows[torch.randperm(len(rows), generator=generator)]
            index = order[at * size : (at + 1) * size]
            x = dense[index] if dense is not None else torch.from_numpy(self.data[index.numpy()].toarray())
            x = x.sub_(mean.to(x.dtype)).float().mul_(inverse)
            return x, targets[index], None if weights is None else weights[index]

        return batch

    def unit(self, index: np.ndarray, root: np.ndarray | None) -> np.ndarray:
        """Centred columns of unit length [n, len(index)], rows times `root` [n, 1]."""
        block = self.data[:, index]
        block = (block.toarray() if hasattr(block, "toarray") else block).astype(np.float64) - self.mean[index]
        block = block if root is None else block * root
        return block / np.maximum(np.linalg.norm(block, axis=0), 1e-300)

    def products(self, r: np.ndarray, root: np.ndarray | None) -> np.ndarray:
        """All of `unit`'s columns times r [n, o] → [d, o]."""
        weighted = r if root is None else r * root
        total = self.count if root is None else float((root**2).sum())
        found = self.data.T @ weighted - self.mean[:, None] * weighted.sum(0)
        return np.where(self.varies[:, None], found / (self.scale[:, None] * np.sqrt(total)), 0.0)


def _parts(shape: tuple[int, int]) -> list[slice]:
    """Slices of rows that hold about `_ROWS` numbers each."""
    size = max(1, _ROWS // max(1, shape[1]))
    return [slice(at, at + size) for at in range(0, shape[0], size)]


def _weighted(block: np.ndarray, weight: np.ndarray | None, part: slice) -> np.ndarray:
    return block.sum(0) if weight is None else weight[part] @ block
