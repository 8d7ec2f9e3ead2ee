"""`SequentialAttention`: feature selection as a scikit-learn transformer, learnt in one training run (Yasuda et al., ICLR 2023).

A small network is trained once; an attention over the features not chosen yet is trained with it, and at the end of each phase the features of the
largest logits are chosen (`fourfold/rewrites/select/_greedy.py`). So a feature is chosen for what it adds to those that are there, which no criterion
of single features sees, at the price of one training run instead of one for each feature. With a linear model under least squares the order is that
of orthogonal matching pursuit (`_linear.py`).

Needs scikit-learn: pip install fourfold[select].
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError, MissingExtra
from fourfold.rewrites.select._greedy import LEAST_UPDATES, Attended, FeatureAttention, SelectingMLP, SelectionSchedule, select
from fourfold.rewrites.select._linear import linear_order
from fourfold.rewrites.select._rows import Rows

try:
    from sklearn.base import BaseEstimator
    from sklearn.feature_selection import SelectorMixin
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:  # the package works without it; this module is nothing but its interface
    raise MissingExtra("fourfold.select needs scikit-learn, which is not installed.", "pip install fourfold[select]") from error

__all__ = ["SequentialAttention"]

_TASKS = ("auto", "classification", "regression")


class SequentialAttention(SelectorMixin, BaseEstimator):
    """Select features by attention, greedily, in one training run.

    Parameters
    ----------
    n_features_to_select : int, float or None, default=None
        How many to keep; a float between 0 and 1 is a share; None keeps half.
    step : int or "auto", default="auto"
        Features chosen at the end of a phase. "auto": one, or as many as leave each phase 20 updates.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto" reads it off y: floats with a fraction are regression. Columns of 0 and 1 are labels that may hold together.
    hidden_layer_sizes : tuple of int, default=(67,)
        Hidden layers of ReLUs. () is a linear model; under regression its order is that of orthogonal matching pursuit, exactly, with no training
        by batches, and `step`, `epochs`, `batch_size` and the learning rate do nothing.
    network : nn.Module or None, default=None
        Your own network in place of that: x float32 [B, n_features] to logits [B, classes] or values [B, outputs]. A copy is trained.
    epochs : int, default=60
        Passes over the rows; more where `least_updates` asks for them.
    least_updates : int, default=600
        Small data are passed over more often, until there are so many updates.
    batch_size : int, default=64
        Rows of an update.
    learning_rate : float, default=0.003
        Of Adam, for network and attention.
    dropout : float, default=0.0
        Share of the features that each batch does without, so that wide tables of few rows are not learnt by heart; try 0.3 there.
    warmup : float, default=0.1
        Share of the training without a mask.
    random_state : int, RandomState instance or None, default=None
        Seed of weights, logits and the order of rows.

    Attributes
    ----------
    support_ : bool array [n_features]. What is kept.
    order_ : int array [n_features_to_select]. What was chosen, the first first: a prefix is a selection of its own.
    ranking_ : int array [n_features]. 1 for what was chosen first; what was not chosen comes last, all alike.
    scores_ : float array [n_features]. The attention by which each was chosen, relative to an even one; for the rest, that of the last phase.
    n_features_in_, feature_names_in_, classes_ (classification).

    Constant columns are chosen last. Sparse matrices are read a batch at a time. Raises ValueError for NaN or infinity, for one class, and for a
    number of features or updates that cannot be.
    """

    def __init__(
        self, n_features_to_select: int | float | None = None, *, step: int | str = "auto", task: str = "auto",
        hidden_layer_sizes: tuple[int, ...] = (67,), network: nn.Module | None = None, epochs: int = 60, least_updates: int = 600,
        batch_size: int = 64, learning_rate: float = 3e-3, dropout: float = 0.0, warmup: float = 0.1, random_state: Any = None,
    ) -> None:  # fmt: skip
        self.n_features_to_select = n_features_to_select
        self.step = step
        self.task = task
        self.hidden_layer_sizes = hidden_layer_sizes
        self.network = network
        self.epochs = epochs
        self.least_updates = least_updates
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.warmup = warmup
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, progress: Callable[[int, int], None] | None = None) -> SequentialAttention:
        """Select from X [n, n_features], array, data frame or sparse matrix, by what y [n] or [n, outputs] needs.

        `sample_weight` [n] weighs rows; `progress(done, all)` is called after each update.
        """
        checked: Any = validate_data(
            self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_min_samples=2, multi_output=True, y_numeric=False
        )
        X, y = checked
        self._check()
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        count = self._count(X.shape[1])
        target = self._target(np.asarray(y), weight)
        rows = Rows.of(X, weight)
        if count > (varying := int(rows.varies.sum())):
            warnings.warn(f"only {varying} of {X.shape[1]} features vary; constant ones are selected too, last.", UserWarning, stacklevel=2)
        order, scores = self._order(rows, target, weight, min(count, varying), progress)
        constant = np.flatnonzero(~rows.varies)[: count - len(order)]
        self.order_ = np.concatenate([np.asarray(order, np.int64), constant]).astype(np.int64)
        self.support_ = np.zeros(X.shape[1], dtype=bool)
        self.support_[self.order_] = True
        self.ranking_ = np.full(X.shape[1], count + 1)
        self.ranking_[self.order_] = np.arange(1, count + 1)
        self.scores_ = scores
        return self

    def _get_support_mask(self) -> np.ndarray:
        check_is_fitted(self)
        return self.support_

    def __sklearn_tags__(self) -> object:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = False
        return tags

    # ---- parameters

    def _check(self) -> None:
        """Raises InputError for parameters that cannot be."""
        for name in ("epochs", "batch_size", "least_updates"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < (0 if name == "least_updates" else 1):
                raise InputError(f"{name}={value!r} is not a number of {name.replace('_', ' ')}.", "Give a whole number of at least 1.")
        if not isinstance(self.learning_rate, Real) or not 0 < self.learning_rate < np.inf:
            raise InputError(f"learning_rate={self.learning_rate!r} is not a learning rate.", "Give a number above 0, such as 0.003.")
        if not isinstance(self.dropout, Real) or not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout!r} is not a share of the features.", "Give a number of at least 0 and less than 1.")
        if self.task not in _TASKS:
            raise InputError(f"task={self.task!r} is not known.", f"Choose from: {', '.join(_TASKS)}.")
        if self.step != "auto" and (not isinstance(self.step, int | np.integer) or isinstance(self.step, bool) or self.step < 1):
            raise InputError(f"step={self.step!r} is not a number of features.", 'Give a whole number of at least 1, or "auto".')
        if self.network is not None and not isinstance(self.network, nn.Module):
            raise InputError(f"network={type(self.network).__name__} is no torch module.", "Give an nn.Module, or None for a small MLP.")
        if any(not isinstance(size, Integral) or size < 1 for size in self.hidden_layer_sizes):
            raise InputError(f"hidden_layer_sizes={self.hidden_layer_sizes!r} are not sizes.", "Give whole numbers of at least 1, such as (67,).")

    def _count(self, width: int) -> int:
        """Features to keep of `width`."""
        asked = self.n_features_to_select
        if asked is None:
            return max(1, width // 2)
        if isinstance(asked, Integral) and not isinstance(asked, bool) and 1 <= asked <= width:
            return int(asked)
        if isinstance(asked, Real) and not isinstance(asked, Integral) and 0 < asked < 1:
            return max(1, round(float(asked) * width))
        raise InputError(
            f"n_features_to_select={asked!r} cannot be selected from {width} feature{'s' * (width != 1)}.",
            f"Give a whole number from 1 to {width}, a share between 0 and 1, or None for half.",
        )

    def _target(self, y: np.ndarray, weight: np.ndarray | None) -> _Target:
        """y as tensors with a loss. Sets `classes_` under classification."""
        kind: str = type_of_target(y, input_name="y", raise_unknown=True)
        values: Any
        if self.task == "regression" or (self.task == "auto" and kind.startswith("continuous")) or kind == "multiclass-multioutput":
            if self.task == "classification" or kind == "multiclass-multioutput" and self.task == "auto":
                mend = 'Give one column of classes or columns of 0 and 1, or task="regression".'
                raise InputError(f"Unknown label type: {kind}, where classes are expected.", mend)
            try:
                values = y.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(f"y holds {y.dtype} values, which are no numbers.", 'Give numbers, or task="classification".') from error
            values = values.reshape(len(y), -1)
            mean = np.average(values, axis=0, weights=weight)
            scale = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
            values = (values - mean) / np.where(scale > 0, scale, 1.0)
            return _Target(torch.from_numpy(values).float(), values.shape[1], _squared, values)
        if self.task == "classification" and kind.startswith("continuous"):
            raise InputError(f"Unknown label type: {kind}, where classes are expected.", 'Give classes, or task="regression".')
        if kind == "multilabel-indicator":
            self.classes_ = np.arange(y.shape[1])
            return _Target(torch.from_numpy(y.astype(np.float32)), y.shape[1], _binary)
        encoder = LabelEncoder().fit(y.ravel())
        self.classes_: np.ndarray = np.asarray(encoder.classes_)
        if len(self.classes_) < 2:
            raise InputError(
                f"y has one class, {self.classes_[0]!r}: classes cannot be told apart.", "Give rows of two classes or more."
            )
        return _Target(torch.from_numpy(np.asarray(encoder.transform(y.ravel()), np.int64)), len(self.classes_), _cross_entropy)

    # ---- the search

    def _order(
        self, rows: Rows, target: _Target, weight: np.ndarray | None, count: int, progress: Callable[[int, int], None] | None
    ) -> tuple[list[int], np.ndarray]:
        """What is chosen of what varies, and scores [n_features]."""
        if count == 0:
            return [], np.zeros(len(rows.mean))
        if self.network is None and not self.hidden_layer_sizes and target.values is not None:
            root = None if weight is None else np.sqrt(weight)[:, None]
            y = target.values if root is None else target.values * root
            advance = _counter(count, progress)
            return linear_order(lambda index: rows.unit(index, root), lambda r: rows.products(r, root), y, rows.varies, count, advance)
        per = -(-rows.count // self.batch_size)
        updates = max(self.epochs * per, self.least_updates)
        usable = updates - int(float(self.warmup) * updates)
        step = int(self.step) if self.step != "auto" else max(1, -(-count // max(1, usable // 20)))
        if self.step == "auto" and usable < LEAST_UPDATES:
            updates = max(updates, 2 * LEAST_UPDATES + int(2 * LEAST_UPDATES * float(self.warmup) / max(1e-9, 1 - float(self.warmup))))
        schedule = SelectionSchedule(count, min(step, count), updates, float(self.warmup))
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as they would have
            torch.manual_seed(seed)
            attention = FeatureAttention(len(rows.mean), torch.from_numpy(rows.varies), generator, float(self.dropout))
            network: nn.Module = (
                SelectingMLP(attention, self.hidden_layer_sizes, target.outputs)
                if self.network is None
                else Attended(attention, _shaped(copy.deepcopy(self.network), target.outputs))
            )
            batch = rows.batches(target.tensor, weight, self.batch_size, generator)
            scores = select(network, attention, schedule, batch, target.loss, lr=self.learning_rate, advance=_counter(updates, progress))
        return attention.order, scores.numpy().astype(np.float64)


# ---- targets


@dataclass(frozen=True)
class _Target:
    """Targets as the loss takes them; `values` float64 [n, outputs], standardised, under regression."""

    tensor: Tensor
    outputs: int
    loss: Callable[[Tensor, Tensor], Tensor]
    values: np.ndarray | None = None


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.view(targets.shape) - targets).square().mean(1)


def _binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _shaped(network: nn.Module, outputs: int) -> nn.Module:
    """The network, which is told in words when its answers have another width."""

    def checked(_module: nn.Module, _inputs: object, answer: object) -> None:
        if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[1] != outputs:
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise InputError(f"the network answers {shape}, where [rows, {outputs}] is expected.", "Give it one output a class or target column.")

    network.register_forward_hook(checked)
    return network


def _counter(whole: int, progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """What is called after each update."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, whole)

    return advance
