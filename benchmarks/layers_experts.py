"""Mixtures of experts against the dense MLP of equal active work: `python benchmarks/layers.py experts [--seeds 3] [--steps 400] [--quick]`.

1. Learning: the small model of `_lm`, made bidirectional, fills in masked bytes (30 % of a window; they are shown as byte 0, which the text lacks).
   All MLPs are dense or 8 experts half as wide, of which a token uses two: equal active multiplications. Paired seeds. "narrow": two layers of
   width 64 with MLPs of 64 units, which the text soon fills; "wide": three of width 96 with 384 units, which it does not in so few steps.
2. Recovery: the dense model's MLPs split into 8 experts, a quarter of the neurons active, distilled from it.
3. Time: one layer of experts beside the dense layer of equal active work, interleaved, forwards and forwards with backwards; and the three ways to
   multiply.

All times are processor seconds of one thread. `--parts` measures some of these anew and leaves the others as they stand in the results file.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import _lm
import numpy as np
import provenance
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.nn import DenseMLP, ExpertChoice, TopTwo, loads
from fourfold.rewrites.route import _grouped

EXPERTS, MASKED = 8, 0.3
REGIMES = {"narrow": (_lm.Shape(64, 2, 4, 64, 64), 900), "wide": (_lm.Shape(), 400)}
RESULTS = Path(__file__).parent / "results" / "layers_experts.json"


def looks_both_ways(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def experts(kind: Any, **settings: Any) -> Callable[[_lm.Shape], nn.Module]:
    return lambda shape: kind(shape.width, shape.hidden // 2, EXPERTS, **settings)


VARIANTS: dict[str, Callable[[_lm.Shape], nn.Module]] = {
    "dense": lambda shape: _lm.MLP(shape.width, shape.hidden),
    "top two": experts(TopTwo),
    "expert choice": experts(ExpertChoice),
}


def model(seed: int, shape: _lm.Shape, mlp: Callable[[_lm.Shape], nn.Module]) -> _lm.LM:
    return _lm.made(seed, shape, attention=lambda s: _lm.SelfAttention(s.width, s.heads, core=looks_both_ways), mlp=mlp)


def hidden_bytes(inputs: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """(bytes with the masked ones as 0, which are masked)."""
    mask = torch.rand(inputs.shape, generator=dice) < MASKED
    return inputs.masked_fill(mask, 0), mask


def validation(net: nn.Module, shape: _lm.Shape) -> float:
    """Nats per masked byte on 48 fixed windows, masked alike each time."""
    text = _lm.corpus()[1]
    inputs, _ = _lm.windows(text, np.linspace(0, len(text) - shape.length - 2, 48).astype(int).tolist(), shape.length)
    seen, mask = hidden_bytes(inputs, torch.Generator().manual_seed(99))
    net.eval()
    with torch.no_grad():
        return float(F.cross_entropy(net(seen)[mask], inputs[mask]))


def train(net: _lm.LM, seed: int, steps: int, every: int, teacher: nn.Module | None = None) -> _lm.Curve:
    """Masked bytes, or with a teacher its answers to them (temperature 1)."""
    training = _lm.Training(steps=steps, batch=8)
    optimiser = torch.optim.AdamW(net.parameters(), lr=training.rate, betas=(0.9, 0.95), weight_decay=0.01)
    batch, dice, curve, spent = _lm.batches(seed, net.shape, training), torch.Generator().manual_seed(1000 + seed), _lm.Curve(seed), 0.0
    for step in range(1, steps + 1):
        inputs, _ = batch()
        seen, mask = hidden_bytes(inputs, dice)
        net.train()
        began = time.process_time()
        for group in optimiser.param_groups:
            group["lr"] = training.rate * min(1.0, step / training.warmup)
        if teacher is None:
            loss = F.cross_entropy(net(seen)[mask], inputs[mask])
        else:
            with torch.no_grad():
                wanted = teacher(seen)[mask].log_softmax(-1)
            loss = F.kl_div(net(seen)[mask].log_softmax(-1), wanted, log_target=True, reduction="batchmean")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        spent += time.process_time() - began
        if step % every == 0 or step == steps:
            curve.steps.append(step)
            curve.losses.append(validation(net, net.shape))
            curve.seconds.append(spent)
    return curve


def balance(net: nn.Module) -> dict[str, float]:
    """Of the layers on the validation windows: worst largest load over mean load, and the share of tokens that no expert took."""
    found = list(loads(net).values())
    if not found:
        return {}
    return {"balance": max(one.balance for one in found), "unserved": max(float((one.served == 0).float().mean()) for one in found)}


def learning(seeds: Sequence[int], shape: _lm.Shape, steps: int, every: int) -> tuple[list[dict[str, Any]], dict[int, _lm.LM]]:
    """A row a run, and the dense models."""
    rows, dense = [], {}
    for seed in seeds:
        for name, mlp in VARIANTS.items():
            net = model(seed, shape, mlp)
            curve = train(net, seed, steps, every)
            rows.append({"name": name, "seed": seed, "steps": curve.steps, "losses": curve.losses, "seconds": curve.seconds,
                         "parameters": sum(p.numel() for p in net.parameters()), **balance(net)})
            print(f"{name:22} seed {seed}: {curve.losses[-1]:.4f} after {curve.seconds[-1]:.0f} s of CPU {balance(net)}", flush=True)
            if name == "dense":
                dense[seed] = net
    return rows, dense


def against(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each variant by seed: last loss, steps and seconds to top two's and to the dense one's last loss."""
    def curve(name: str, seed: int) -> _lm.Curve:
        row = next(r for r in rows if r["name"] == name and r["seed"] == seed)
        return _lm.Curve(seed, row["steps"], row["losses"], row["seconds"])

    found: dict[str, Any] = {}
    for name in VARIANTS:
        mine = [row["seed"] for row in rows if row["name"] == name]
        out: dict[str, Any] = {"loss": [curve(name, seed).losses[-1] for seed in mine],
                               "seconds_per_step": [curve(name, seed).seconds[-1] / curve(name, seed).steps[-1] for seed in mine]}
        for other in ("dense", "top two"):
            for what in ("steps", "seconds"):
                goals = [(curve(name, seed).at(curve(other, seed).losses[-1], what), getattr(curve(other, seed), what)[-1]) for seed in mine]
                out[f"{what}_to_{other}"] = [None if reached is None else reached / whole for reached, whole in goals]
        found[name] = out
    return found


def recovery(dense: Mapping[int, _lm.LM], steps: int) -> list[dict[str, Any]]:
    """Loss of the dense model, of its experts as they are made, and after distillation."""
    rows = []
    for seed, teacher in dense.items():
        for name, kind in (("top two", TopTwo), ("expert choice", ExpertChoice)):
            net = copy.deepcopy(teacher)
            for block in net.blocks:
                old: Any = block.mlp
                block.mlp = kind.of(DenseMLP.of(old.up, old.down, activation=old.activation), EXPERTS)
            before = validation(net, net.shape)
            curve = train(net, seed + 50, steps, steps, teacher)
            rows.append({"name": name, "seed": seed, "dense": validation(teacher, teacher.shape), "split": before, "distilled": curve.losses[-1],
                         "steps": steps, "active": 2 / EXPERTS, "seconds": curve.seconds[-1]})
            print(f"{name} from dense, seed {seed}: {rows[-1]['dense']:.4f} → {before:.4f} → {curve.losses[-1]:.4f}", flush=True)
    return rows


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Processor seconds of each way against the first, in random order each round: median ratio and its quartiles."""
    dice, spent = np.random.default_rng(seed), {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name in dice.permutation(list(ways)):
            began = time.process_time()
            ways[name]()
            spent[name].append(time.process_time() - began)
    first = np.array(spent[next(iter(ways))])
    out = {}
    for name, seconds in spent.items():
        low, middle, high = np.percentile(np.array(seconds) / first, [25, 50, 75])
        out[name] = {"ratio": float(middle), "low": float(low), "high": float(high), "ms": 1000 * float(np.median(seconds))}
    return out


def races(rounds: int, width: int = 512) -> list[dict[str, Any]]:
    """One layer of 8 experts beside the dense one of equal active work, by tokens (sequences of 128)."""
    rows = []
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"dense": _lm.MLP(width, 4 * width)}
    layers |= {"expert choice": ExpertChoice(width, 2 * width, EXPERTS), "top two": TopTwo(width, 2 * width, EXPERTS)}
    for tokens in (128, 512, 1024):
        x = torch.randn(tokens // 128, 128, width)

        def forwards(layer: nn.Module, x: Tensor = x) -> None:
            with torch.no_grad():
                layer.eval()(x)

        def both(layer: nn.Module, x: Tensor = x) -> None:
            layer.train()(x).square().mean().backward()
            layer.zero_grad(set_to_none=True)

        many = max(5, min(rounds, rounds * 256 // tokens))
        for name, run in (("forwards", forwards), ("forwards and backwards", both)):
            found = interleaved({kind: (lambda layer=layer, run=run: run(layer)) for kind, layer in layers.items()}, many)
            rows.append({"tokens": tokens, "what": name, "width": width, "rounds": many, "times": found})
            told = ", ".join(f"{kind} {one['ratio']:.2f}" for kind, one in found.items())
            print(f"{tokens} tokens, {name}: {told}", flush=True)
    return rows


def kernels(rounds: int, width: int = 512, hidden: int = 1024) -> list[dict[str, Any]]:
    """The three ways to multiply, without a bias, equal shares so that all can: against one product an expert."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (128, 1024):
            x, weight = torch.randn(2 * tokens, width, dtype=dtype), torch.randn(EXPERTS, hidden, width, dtype=dtype)
            ends = torch.arange(1, EXPERTS + 1) * (2 * tokens // EXPERTS)
            bias, dense = torch.randn(EXPERTS, hidden, dtype=dtype), torch.randn(2 * hidden, width, dtype=dtype)
            ways: dict[str, Callable[[], object]] = {
                "dense, equal work": lambda x=x, w=dense: F.linear(x[: len(x) // 2], w),
                "one product an expert": lambda x=x, w=weight, b=bias, e=ends: _grouped.forward(x, w, b, e),
                "grouped_mm": lambda x=x, w=weight, e=ends: _grouped.forward(x, w, None, e),
                "one batched product": lambda x=x, w=weight, b=bias, e=ends: _grouped.grouped_linear(x, w, b, e, even=True),
            }
            with torch.no_grad():
                rows.append({"tokens": tokens, "type": str(dtype).removeprefix("torch."), "times": interleaved(ways, max(5, rounds * 512 // tokens))})
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/layers.py experts", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regime", choices=list(REGIMES), default="narrow", help="of learning")
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: the regime's own")
    parser.add_argument("--distil", type=int, default=100, help="steps of distillation after a split")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--parts", default="race,kernels,learning", help="with commas between")
    parser.add_argument("--quick", action="store_true", help="a few steps, only to see that it runs; writes nothing")
    args = parser.parse_args(arguments)
    if args.quick:
        args.seeds, args.steps, args.distil, args.rounds = 1, 20, 5, 2
    shape, steps = REGIMES[args.regime]
    args.steps = args.steps or steps
    torch.set_num_threads(1)
    seeds, parts = list(range(args.seeds)), args.parts.split(",")
    data: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.quick else {}
    if "race" in parts:
        data["race"] = races(args.rounds)
    if "kernels" in parts:
        data["kernels"] = kernels(args.rounds)
    setting = {"experts": EXPERTS, "capacity_factor": 2.0, "masked": MASKED, "batch": 8, "steps": args.steps, **vars(shape)}

    def publish(done: Sequence[int]) -> None:
        if not args.quick:
            print(f"written: {provenance.publish(RESULTS, data | {'about': provenance.facts(args, done)})}", flush=True)

    if "learning" in parts:
        mine: dict[str, Any] = data.get(args.regime, {})
        if mine.get("setting") != setting:
            mine = {"setting": setting, "learning": [], "recovery": []}
        known = {row["seed"] for row in mine["learning"]}              # a second call goes on where the first ended
        for seed in sorted(set(seeds) - known):
            rows, dense = learning([seed], shape, args.steps, max(10, args.steps // 10))
            mine["learning"] += rows
            mine |= {"against": against(mine["learning"]), "recovery": mine["recovery"] + recovery(dense, args.distil)}
            data[args.regime] = mine
            publish(sorted(known | set(seeds[: seed + 1])))
    else:
        publish(sorted({row["seed"] for regime in REGIMES for row in data.get(regime, {}).get("learning", ())}) or [0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
