"""Primer beside the plain block, on the small language model of `_lm.py`: steps and processor seconds to the plain block's loss.

    python benchmarks/layers.py primer [--seeds 3] [--width 96] [--steps 500]

Variants differ in the MLP's activation (GELU, ReLU, ReLU²) and in whether queries, keys and values pass a depthwise convolution. For a seed all begin
from the same weights and see the same windows in the same order. Energy is processor seconds on one thread: of training itself ("trained"), and steps
times the cost of a step as variants take it by turns ("raced"), which a busy host disturbs less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _lm
import provenance
import torch
import torch.nn.functional as F
from torch import nn

from fourfold.rewrites.attend.primer import CausalDepthwiseConv, ReLUSquared

VARIANTS: dict[str, tuple[Callable[[], nn.Module], bool]] = {          # name → (activation, whether there are convolutions)
    "gelu": (nn.GELU, False), "primer": (ReLUSquared, True), "relu2": (ReLUSquared, False), "gelu_conv": (nn.GELU, True), "relu": (nn.ReLU, False),
}


def parts(name: str) -> dict[str, Any]:
    """What `_lm.LM` makes the variant's layers from."""
    activation, convolved = VARIANTS[name]
    return {"attention": lambda s: _lm.SelfAttention(s.width, s.heads, between=CausalDepthwiseConv if convolved else None),
            "mlp": lambda s: _lm.MLP(s.width, s.hidden, activation())}


def raced(names: list[str], shape: _lm.Shape, training: _lm.Training, rounds: int = 25, steps: int = 3) -> dict[str, float]:
    """Processor seconds of a training step of each variant relative to the first, median over rounds in which all take turns."""
    turns: dict[str, Callable[[], None]] = {}
    for name in names:
        model = _lm.made(0, shape, **parts(name)).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=training.rate, betas=(0.9, 0.95), weight_decay=0.01)
        turns[name] = _turn(model, optimiser, _lm.batches(0, shape, training))
    spent: dict[str, list[float]] = {name: [] for name in names}
    for around in range(rounds + 1):
        for name, turn in turns.items():
            began = time.process_time()
            for _ in range(steps):
                turn()
            if around:                                                  # the first warms up
                spent[name].append(time.process_time() - began)
    return {name: statistics.median(a / b for a, b in zip(spent[name], spent[names[0]], strict=True)) for name in names}


def _turn(model: nn.Module, optimiser: torch.optim.Optimizer, batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], None]:
    def turn() -> None:
        inputs, targets = batch()
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return turn


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def row_of(name: str, cost: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A variant's line: medians and ranges over seeds; None where a seed did not reach the plain block's loss."""
    keys = ("fewer_steps", "less_trained", "less_raced")
    ratios = {key: spread([run[key] for run in runs]) if all(key in run for run in runs) else None for key in keys}
    return {"variant": name, "cost": cost, "loss": spread([run["loss"] for run in runs]), **ratios}


def compared(curve: _lm.Curve, base: _lm.Curve, cost: float) -> dict[str, Any]:
    """A run, and what it took to the plain block's last loss."""
    row: dict[str, Any] = {"seed": curve.seed, "steps": curve.steps, "losses": curve.losses, "seconds": curve.seconds, "loss": curve.losses[-1]}
    steps, seconds = curve.at(base.losses[-1], "steps"), curve.at(base.losses[-1], "seconds")
    if steps is not None and seconds is not None:
        fewer = base.steps[-1] / steps
        row |= {"fewer_steps": fewer, "less_trained": base.seconds[-1] / seconds, "less_raced": fewer / cost}
    return row


def measured(width: int, names: list[str], seeds: int, training: _lm.Training, kept: Callable[[dict[str, Any]], None]) -> None:
    """All variants at one width, the plain block first; `kept` is told after each what there is."""
    shape = _lm.Shape(width=width, heads=max(4, width // 32), hidden=4 * width)
    cost = raced(names, shape, training)
    print(f"width {width}: a step costs {', '.join(f'{name} {value:.2f}' for name, value in cost.items())}", flush=True)
    runs: dict[str, list[dict[str, Any]]] = {}
    bases: list[_lm.Curve] = []
    for name in names:
        runs[name] = []
        for seed in range(seeds):
            _, curve = _lm.fresh(seed, training, shape, **parts(name))
            bases += [curve] if len(bases) <= seed else []
            row = compared(curve, bases[seed], cost[name])
            runs[name].append(row)
            said = ", ".join(f"{key} × {row[key]:.2f}" for key in ("fewer_steps", "less_trained", "less_raced") if key in row)
            print(f"  {name:10s} seed {seed}: loss {row['loss']:.4f}, {said or 'did not reach it'}", flush=True)
        kept({"width": width, "rows": [row_of(one, cost[one], found) for one, found in runs.items()], "runs": runs})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/layers.py primer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--width", type=int, default=96, help="residual width; another than 96 has a results file of its own")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs; writes nothing")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = _lm.Training(steps=30 if args.quick else args.steps, every=10 if args.quick else 50)
    names = list(VARIANTS) if args.width == 96 else ["gelu", "primer"]
    path = Path(__file__).parent / "results" / f"layers_primer{f'_{args.width}' * (args.width != 96)}.json"

    def kept(found: dict[str, Any]) -> None:
        if not args.quick:
            provenance.publish(path, {"about": provenance.facts(args, list(range(args.seeds))), **found})

    measured(args.width, names, args.seeds, training, kept)
    return 0
