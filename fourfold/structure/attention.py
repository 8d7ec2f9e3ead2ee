"""An attention whose forward ties the width of its heads to the residual width (x.view(B, T, heads, C // heads)) cannot lose heads as it is.

It can be made again as our own class from its own weights, if that computes the same: which rows are query, key and value, whether it is causal, how
it scales and masks is tried out until the answer agrees with the recorded one; if nothing agrees, it stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, permutations, product

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.recipe import Heads, pack
from fourfold.structure.anatomy import hidden, within
from fourfold.structure.patterns import PatternMatcher, SubLayerMatch
from fourfold.structure.trace import Run, size
from fourfold.structure.verify import TOLERANCE, Prover

TRIES = 160  # likeliest first: batch before positions, scaled by the head's width


def remade(reader: PatternMatcher, prover: Prover, c: SubLayerMatch, block: str) -> dict[str, object] | None:
    """The edit that replaces the attention, or None. Tried on the recorded call first, then on the whole model."""
    run = reader.first.get(c.path)
    if run is None or c.path == block or not within(c.path, block) or run.input is None:
        return None
    module, heads = reader.module.get_submodule(c.path), c.heads
    want = hidden(run.output)
    returns = reader.absent(run, "zero")["returns"]
    relative = {p.path: p.path.removeprefix(f"{c.path}.") for p in [*c.producers, c.consumer]}
    norm = _norm(reader, c, run)
    ways = product(_orders(want), _scales(c, heads, want), _masks(run), list(_rows(c, heads)))
    for first, scale, (masked, causal), rows in islice(ways, TRIES):
        edit: dict[str, object] = {
            "kind": "swap", "path": c.path, "to": "heads", "heads": heads, "out": relative[c.consumer.path], "norm": norm, "argument": run.where,
            "context": _context(c, run), "mask": masked, "causal": causal, "scale": scale, "batch_first": first, "returns": returns,
            **{part: [relative[path], pack(index)] for part, (path, index) in zip("qkv", rows, strict=True)},
        }  # fmt: skip
        if _agrees(module, edit, run, want):
            with torch.no_grad():
                return edit if prover.same(prover.run(), [edit]) is None else None
    return None


def _agrees(module: nn.Module, edit: dict[str, object], run: Run, want: Tensor) -> bool:
    try:
        with torch.no_grad():
            have = hidden(Heads.of(module, edit)(*run.args, **run.kwargs))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return have.shape == want.shape and float((have - want).abs().max()) <= TOLERANCE * float(want.abs().max())


def _rows(c: SubLayerMatch, heads: int) -> Iterator[tuple[tuple[str, np.ndarray], ...]]:
    """Ways of reading query, key and value rows off the producers: as they stand, side by side in one, or head by head in one."""
    sizes = [size(p.module, "out") for p in c.producers]
    paths = [p.path for p in c.producers]
    if len(paths) == 3:
        for order in permutations(range(3)):
            yield tuple((paths[i], np.arange(sizes[i])) for i in order)
    elif len(paths) == 2:
        for kv in (1, 0):
            q = 1 - kv
            for key, value in _parts(sizes[kv], heads, 2):
                yield (paths[q], np.arange(sizes[q])), (paths[kv], key), (paths[kv], value)
    elif len(paths) == 1:
        for query, key, value in _parts(sizes[0], heads, 3):
            yield (paths[0], query), (paths[0], key), (paths[0], value)


def _parts(n: int, heads: int, parts: int) -> Iterator[tuple[np.ndarray, ...]]:
    """`n` rows as `parts` equal ranges, or as heads that hold `parts` equal ranges each, or as heads whose entries take turns."""
    if n % (parts * heads):
        return
    width = n // parts // heads
    for shape, axis in (((parts, heads * width), 0), ((heads, parts, width), 1), ((heads * width, parts), 1)):
        grid = np.arange(n).reshape(shape)
        yield tuple(np.take(grid, k, axis).ravel() for k in range(parts))


def _masks(run: Run) -> list[tuple[list[object] | None, bool]]:
    """(mask argument and meaning, causal): none, causal, and every further tensor argument as what to add, keep or drop."""
    options: list[tuple[list[object] | None, bool]] = [(None, False), (None, True)]
    for key, value in [*enumerate(run.args), *run.kwargs.items()]:
        if isinstance(value, Tensor) and key != run.where:
            meanings = ("add",) if value.is_floating_point() else ("keep", "drop")
            options += [([key, meaning], causal) for meaning in meanings for causal in (False, True)]
    return options


def _scales(c: SubLayerMatch, heads: int, want: Tensor) -> list[float]:
    deep = size(c.consumer.module, "in") // heads
    return list(dict.fromkeys([deep**-0.5, want.shape[-1] ** -0.5, 1.0]))


def _orders(want: Tensor) -> tuple[bool, ...]:
    return (True, False) if want.ndim == 3 else (True,)


def _norm(reader: PatternMatcher, c: SubLayerMatch, run: Run) -> str | None:
    """A module inside the attention that its projections read: a norm that belongs to it."""
    x = c.producers[0].input
    for r in reader.first.values():
        if r.path != c.path and within(r.path, c.path) and isinstance(r.output, Tensor) and x is not None and r.output.data_ptr() == x.data_ptr():
            return r.path.removeprefix(f"{c.path}.")
    return None


def _context(c: SubLayerMatch, run: Run) -> int | str | None:
    """The argument that keys and values are read from, where it is not the hidden state."""
    x = c.producers[-1].input
    for key, value in [*enumerate(run.args), *run.kwargs.items()]:
        if isinstance(value, Tensor) and key != run.where and x is not None and value.data_ptr() == x.data_ptr() and value.shape == x.shape:
            return key
    return None
