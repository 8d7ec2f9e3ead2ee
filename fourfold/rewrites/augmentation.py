"""Unlabelled variants of the user's own inputs, for a teacher to answer and a student to read (Tang et al. 2019, §3.2; mixup of inputs: Zhang et
al. 2018).

Texts, as token ids between their special tokens: a span of the text (n-gram sampling), two texts joined in the middle, tokens masked or replaced
by others of the corpus at its own frequencies. Pairs keep their structure: only single tokens change. Dense float inputs (images, audio, arrays):
convex mixtures of two examples. Other inputs are left as they are. Everything is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.examples import Examples, Ragged

if TYPE_CHECKING:
    from fourfold.datasets.task import Task


def augment(examples: Examples, factor: float, task: Task, *, special: Iterable[int] = (), mask: int | None = None, seed: int = 0) -> Examples:
    """`examples` (without targets) followed by `factor` times as many variants. `special` token ids stay where they are; `mask` is the mask
    token's id.

    Only for classification, regression and custom outputs; sequence tasks come back unchanged, since a variant would need new target tokens.
    """
    count = int(round(factor * len(examples)))
    bare = replace(examples, targets=None, raw=None)
    if count == 0 or task.kind not in ("classification", "regression", "custom"):
        return examples if count == 0 else bare if task.kind in ("classification", "regression") else examples
    rng = np.random.default_rng([seed, 77])
    ids = examples.columns.get("input_ids")
    made: dict[str, Any]
    if isinstance(ids, Ragged):
        made = _texts(examples, ids, count, rng, np.asarray(sorted(set(special)), np.int64), mask)
    elif all(isinstance(c, np.ndarray) and c.dtype.kind == "f" for c in examples.columns.values()):
        a, b, share = rng.integers(len(examples), size=count), rng.integers(len(examples), size=count), rng.beta(0.4, 0.4, size=count)
        made = {n: _mixed(c, a, b, share) for n, c in examples.columns.items()}  # type: ignore[arg-type]
    else:
        return bare
    columns = {n: _joined(c, made[n]) for n, c in examples.columns.items()}
    lengths = np.concatenate([examples.lengths, made["input_ids"].sizes() if isinstance(ids, Ragged) else np.resize(examples.lengths, count)])
    return Examples(columns, None, lengths, dict(examples.pad), None, np.arange(len(examples) + count, dtype=np.int64), left=examples.left)


def _mixed(column: np.ndarray, a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    weight = share.reshape(-1, *[1] * (column.ndim - 1)).astype(column.dtype)
    return weight * column[a] + (1 - weight) * column[b]


def _joined(old: np.ndarray | Ragged, new: np.ndarray | Ragged) -> np.ndarray | Ragged:
    if isinstance(old, Ragged) and isinstance(new, Ragged):
        return Ragged(
            np.concatenate([old.values, new.values.astype(old.values.dtype)]), np.concatenate([old.offsets, old.offsets[-1] + new.offsets[1:]])
        )
    assert isinstance(old, np.ndarray) and isinstance(new, np.ndarray)
    return np.concatenate([old, new])


def _texts(examples: Examples, ids: Ragged, count: int, rng: np.random.Generator, special: np.ndarray, mask: int | None) -> dict[str, Ragged]:
    corpus = ids.values[~np.isin(ids.values, special)]
    kinds = examples.columns.get("token_type_ids")
    pairs = isinstance(kinds, Ragged) and bool(kinds.values.any())
    longest = int(ids.sizes().max(initial=1))
    rows: list[np.ndarray] = []
    sides: list[np.ndarray] = []
    for number in rng.integers(len(ids), size=count):
        row = ids[number].copy()
        fixed = np.isin(row, special)
        if not pairs:
            head = int(np.argmin(fixed)) if not fixed.all() else len(row)
            tail = int(np.argmin(fixed[::-1])) if not fixed.all() else 0
            body = row[head : len(row) - tail]
            body = _respan(body, ids[int(rng.integers(len(ids)))], special, rng, longest - head - tail)
            row = np.concatenate([row[:head], body, row[len(row) - tail :]])
            fixed = np.isin(row, special)
        hit = (rng.random(len(row)) < rng.choice([0.0, 0.1, 0.2])) & ~fixed
        if hit.any() and len(corpus):
            fresh = corpus[rng.integers(len(corpus), size=len(row))]
            if mask is not None:
                fresh = np.where(rng.random(len(row)) < 0.5, mask, fresh)
            row = np.where(hit, fresh, row)
        rows.append(row)
        if isinstance(kinds, Ragged):
            sides.append(kinds[number] if pairs else np.zeros(len(row), np.int64))
    made = {"input_ids": Ragged.of(rows, np.int64)}
    for name, column in examples.columns.items():
        if name == "token_type_ids":
            made[name] = Ragged.of(sides, np.int64)
        elif name != "input_ids" and isinstance(column, Ragged):
            made[name] = Ragged.of([np.ones(len(r), np.int64) for r in rows], np.int64)
    return made


def _respan(body: np.ndarray, other: np.ndarray, special: np.ndarray, rng: np.random.Generator, room: int) -> np.ndarray:
    """A span of `body`, or its beginning joined to the end of `other`, or `body` itself."""
    draw = rng.random()
    if draw < 0.35 and len(body) > 6:
        size = int(rng.integers(3, len(body) + 1))
        start = int(rng.integers(0, len(body) - size + 1))
        return body[start : start + size]
    if draw < 0.6 and len(body) > 2:
        end = other[~np.isin(other, special)]
        start = int(rng.integers(0, max(1, len(end))))
        return np.concatenate([body[: int(rng.integers(1, len(body) + 1))], end[start:]])[: max(1, room)]
    return body
