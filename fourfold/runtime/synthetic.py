"""Inputs drawn at random, for timing where no rows are at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.runtime.artefact import Part


def drawn(part: Part, lengths: list[int], count: int = 256) -> Examples:
    """Random inputs of the recorded lengths: token ids below the vocabulary's size, ones for masks, normal numbers for the rest."""
    from fourfold.datasets.examples import Examples, Ragged

    assert part.signature is not None and part.module is not None
    rng = np.random.default_rng(0)
    sizes = rng.choice(np.maximum(1, np.asarray(lengths)), size=count)
    tables = [int(getattr(m, "num_embeddings", 0)) for m in part.module.modules() if type(m).__name__ == "Embedding"]
    rows = max(2, max(tables, default=2))
    columns: dict[str, object] = {}
    for name in part.signature.names:
        shape, whole = part.signature.example[name].shape[1:], part.signature.dtypes[name].startswith("int")
        if 1 in part.signature.dynamic[name] and len(shape) == 1:
            make = (
                (lambda n: np.ones(n, np.int64))
                if "mask" in name
                else (lambda n: np.zeros(n, np.int64))
                if "type" in name
                else (lambda n: rng.integers(1, rows, n))
            )
            columns[name] = Ragged.of([make(int(n)) if whole else rng.normal(size=int(n)).astype(np.float32) for n in sizes])
        else:
            full = (count, *shape)
            columns[name] = (
                (np.ones(full, np.int64) if "mask" in name else rng.integers(0, rows, full)) if whole else rng.normal(size=full).astype(np.float32)
            )
    return Examples(columns)
