"""Masks of linear attention, measured: `python benchmarks/layers.py masks [--seeds 3] [--largest 16384]`.

For each mask and length: the largest difference between attention through the fast product and through the matrix written out, and processor seconds
of both in turn, the matrix ready beforehand; `writing` is what it takes to write it out, which a mask that learns pays in every step besides. One
thread, one head.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import provenance
import torch
from torch import Tensor

from fourfold.nn import GraphDiffusionMask, GridMask, MaskedLinearAttention, ToeplitzMask, TreeMask
from fourfold.rewrites.attend._masks import AttentionMask

RESULTS = Path(__file__).parent / "results" / "layers_masks.json"
WIDTH = 16                                                             # of a head, and features, as in the published measurements of such masks
LENGTHS = (1024, 2048, 4096, 8192, 16384)
DENSE = 8192                                                           # longest matrix that is written out


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def tree(n: int, seed: int = 0) -> np.ndarray:
    """Parents of a random tree about as deep as texts are nested: each node hangs below one of the 32 before it."""
    dice = np.random.default_rng(seed)
    return np.array([-1, *(int(dice.integers(max(0, i - 32), i)) for i in range(1, n))])


MASKS: dict[str, tuple[Callable[[int], AttentionMask], bool]] = {
    "relative position": (lambda n: ToeplitzMask(1, 512), False),
    "relative position, causal": (lambda n: ToeplitzMask(1, 512), True),
    "grid": (lambda n: GridMask(1 << (n.bit_length() - 1) // 2, n >> (n.bit_length() - 1) // 2), False),
    "tree, decay": (lambda n: TreeMask(tree(n)), False),
    "tree, any function": (lambda n: TreeMask(tree(n), form="table"), False),
    "graph, diffusion": (lambda n: GraphDiffusionMask(np.random.default_rng(0).integers(0, n, (4 * n, 2)), n), False),
}


def clocked(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """(processor seconds, answer)."""
    began = time.process_time()
    answer = call()
    return time.process_time() - began, answer


@torch.no_grad()
def measured(name: str, n: int, seeds: int) -> dict[str, Any]:
    make, causal = MASKS[name]
    torch.manual_seed(0)
    mask = make(n)
    for parameter in mask.parameters():
        torch.nn.init.normal_(parameter)
    layer = MaskedLinearAttention(1, WIDTH, mask, WIDTH, short=0).eval()
    q, k, v = torch.randn(3, 1, 1, n, WIDTH).unbind(0)
    row: dict[str, Any] = {"mask": name, "length": n}
    written = n <= DENSE and (n <= 2048 or "graph" not in name)             # an exponential of a matrix is cubic
    row["writing"], matrix = clocked(lambda: mask.dense(n, None, causal)) if written else (None, None)

    def product() -> Tensor:
        """The dense product with its matrix ready: what is left when a mask is fixed."""
        held, mask.dense = mask.dense, lambda *_: matrix  # type: ignore[assignment, method-assign]
        layer.short = 1 << 30
        try:
            return layer(q, k, v, is_causal=causal)
        finally:
            layer.short, mask.dense = 0, held  # type: ignore[method-assign]

    rounds = [(clocked(lambda: layer(q, k, v, is_causal=causal)), clocked(product) if written else None) for _ in range(seeds + 1)][1:]
    row["fast"] = spread([fast[0] for fast, _ in rounds])
    if written:
        dense = [(fast, slow) for fast, slow in rounds if slow is not None]
        row["dense"] = spread([slow[0] for _, slow in dense])
        row["faster"] = spread([slow[0] / fast[0] for fast, slow in dense])
        row["apart"] = max(float((fast[1] - slow[1]).abs().max()) for fast, slow in dense)
    return row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/layers.py masks", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="rounds of timing")
    parser.add_argument("--largest", type=int, default=LENGTHS[-1])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for n in LENGTHS:
        for name in MASKS if n <= options.largest else ():
            rows.append(measured(name, n, options.seeds))
            print(json.dumps(rows[-1]), flush=True)
            provenance.publish(options.out, {"about": provenance.facts(options, range(options.seeds)), "width": WIDTH, "rows": rows})
    return 0
