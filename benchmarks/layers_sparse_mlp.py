"""Sparse MLP activations: what they cost in quality, and what skipping zero units saves in decoding.

    python benchmarks/layers.py sparse_mlp [--seeds 3] [--widths 512,1024,2048,4096] [--quick] [--only quality|decode]

Quality: the small language model of `_lm.py` with GELU, ReLU and Top-k of a tenth of the units, trained from the same first weights on
the same windows; then the trained GELU model converted by `topk-mlp` and `relu-mlp` and trained on for half as many steps, beside the GELU model that
is trained on as long. Loss in nats per byte on unseen windows; the share of non-zero units is counted there too.

Decoding: one MLP, hidden units four times its width, random weights, biases such that a given share of units is active, one to eight rows of a call;
torch's own two linears and ReLU against ours, interleaved, by `measure.race`. Gated MLPs besides, and Top-k of units half of which are active.
Weights are those of as many layers as fill 96 MiB, taken in turn, with another input each time, so that what stays in a cache is what would stay
there while a model decodes. One thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import _lm
import provenance
import torch
from torch import Tensor, nn

from fourfold.measure.race import race
from fourfold.recipe import Recipe, apply
from fourfold.rewrites.route import sparse_mlp
from fourfold.structure.sites import sites

RESULTS = Path(__file__).parent / "results" / "layers_sparse_mlp.json"
VARIANTS: dict[str, dict[str, Any]] = {
    "GELU": {"activation": "gelu"}, "ReLU": {"activation": "relu"}, "Top-k 10 %": {"activation": "relu", "k": 38},
}
CONVERSIONS = {"GELU, trained on": None, "topk-mlp": "topk-mlp", "relu-mlp": "relu-mlp"}
SHARES, ROWS = (0.02, 0.1, 0.3), (1, 2, 4, 8)
FILL = 96 << 20                                                         # bytes of weights that no cache here holds


# ---- quality

def nonzeros(model: _lm.LM) -> list[float]:
    """Per layer, the share of units that are not zero on the validation windows."""
    found: list[float] = []
    handles = [part.active.register_forward_pre_hook(lambda _m, args: found.append(float((args[0] != 0).float().mean())))
               for part in model.modules() if isinstance(part, sparse_mlp.SparseMLP)]
    _lm.validation(model, model.shape)
    for handle in handles:
        handle.remove()
    return found


def trained(seed: int, training: _lm.Training, settings: Mapping[str, Any]) -> tuple[_lm.LM, dict[str, Any]]:
    model, curve = _lm.fresh(seed, training, mlp=lambda s: sparse_mlp.SparseMLP(s.width, s.hidden, **settings))
    return model, row(model, curve)


def row(model: _lm.LM, curve: _lm.Curve) -> dict[str, Any]:
    return {"seed": curve.seed, "loss": curve.losses[-1], "nonzeros": nonzeros(model), "steps": curve.steps, "losses": curve.losses,
            "seconds": curve.seconds[-1]}


def converted(seed: int, state: Mapping[str, Tensor], to: str | None, training: _lm.Training) -> dict[str, Any]:
    """A plain GELU model of these weights, converted, and trained on."""
    model = _lm.made(seed)
    for block, ours in zip(model.blocks, range(model.shape.layers), strict=True):
        part = {key: state[f"blocks.{ours}.mlp.{name}"] for key, name in
                (("up.weight", "up.weight"), ("up.bias", "up.bias"), ("down.weight", "down"), ("down.bias", "down_bias"))}
        block.mlp.load_state_dict({**part, "down.weight": part["down.weight"].t()})  # type: ignore[union-attr]
    model.load_state_dict({key: value for key, value in state.items() if ".mlp." not in key}, strict=False)
    before = _lm.validation(model, model.shape)
    if to is not None:
        inputs = _lm.windows(_lm.corpus()[1], [0, 500], model.shape.length)[0]
        found = sparse_mlp.SparseActivations().conversions(sites(model.eval(), lambda m: m(inputs)), to)
        apply(model, Recipe(tuple(edit for one in found for edit in one.edits)))
    after = _lm.validation(model, model.shape)
    curve = _lm.train(model, seed + 1000, training)
    return {**row(model, curve), "seed": seed, "before": before, "converted": after}


def quality(seeds: range, steps: int, names: list[str], keep: Callable[[dict[str, Any], int], object]) -> dict[str, Any]:
    """Rows by variant, a row a seed; what is there after each seed is kept. Conversions only where all variants are asked for."""
    training, more = _lm.Training(steps=steps), _lm.Training(steps=max(1, steps // 2), rate=1e-3)
    found: dict[str, Any] = {"variants": {name: [] for name in VARIANTS}, "conversions": {name: [] for name in CONVERSIONS}}
    for seed in seeds:
        weights: dict[str, Tensor] = {}
        for name, settings in ((name, VARIANTS[name]) for name in names):
            model, one = trained(seed, training, settings)
            weights = weights or {key: value.clone() for key, value in model.state_dict().items()}  # of GELU, which comes first
            found["variants"][name].append(one)
            print(f"seed {seed} {name}: {one['loss']:.4f}, non-zero {', '.join(f'{x:.3f}' for x in one['nonzeros'])}", flush=True)
        for name, to in CONVERSIONS.items() if len(names) == len(VARIANTS) else ():
            one = converted(seed, weights, to, more)
            found["conversions"][name].append(one)
            print(f"seed {seed} {name}: {one['before']:.4f} → {one['converted']:.4f} → {one['loss']:.4f}", flush=True)
        keep(found, seed)
    return found


# ---- decoding

class Turn:
    """Layers and inputs that are taken in turn, so that each call reads other weights."""

    def __init__(self, layers: list[nn.Module], inputs: list[Tensor]) -> None:
        self.layers, self.inputs, self.count = layers, inputs, 0

    def __call__(self, run: Callable[[Any, Tensor], object]) -> object:
        self.count += 1
        return run(self.layers[self.count % len(self.layers)], self.inputs[self.count % len(self.inputs)])


def layers(width: int, share: float, kind: str, seed: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """(torch's, ours): MLPs of which `share` of the units is active for inputs drawn from the normal distribution; of Top-k, is kept."""
    torch.manual_seed(seed)
    hidden, gated, k = 4 * width, kind == "gated", round(4 * width * share) if kind == "top-k" else None
    count = max(1, math.ceil(FILL / (4 * width * hidden * (3 if gated else 2))))
    edge = -math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share, dtype=torch.float64))) if k is None else 0.0
    ours, theirs = [], []
    for _ in range(count):
        one = sparse_mlp.SparseMLP(width, hidden, gated=gated, k=k).eval()
        chosen = one.up if one.gate is None else one.gate
        nn.init.normal_(chosen.weight, std=width**-0.5)
        nn.init.constant_(chosen.bias, edge)
        ours.append(one)
        theirs.append(Plain(one))
    return theirs, ours


class Plain(nn.Module):
    """What a model without us computes: linears of torch, weights out × in."""

    def __init__(self, one: sparse_mlp.SparseMLP) -> None:
        super().__init__()
        self.up, self.gate, self.down = one.up, one.gate, nn.Linear(one.hidden, one.width)
        self.down.weight = nn.Parameter(one.down.detach().t().contiguous())
        assert one.down_bias is not None
        self.down.bias = one.down_bias

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(torch.relu(self.up(x)))
        return self.down(torch.relu(self.gate(x)) * self.up(x))


def decoding(widths: list[int], shares: tuple[float, ...], rounds: int, seed: int) -> Iterator[dict[str, Any]]:
    """A row for each width, share, number of rows and kind."""
    for width in widths:
        for kind, some in (("plain", shares), ("gated", (0.1,)), ("top-k", (0.1,))):
            for share in some:
                theirs, ours = layers(width, share, kind, seed)
                for rows in ROWS if kind == "plain" and share == 0.1 else (1, 4):
                    yield raced(width, share, kind, rows, theirs, ours, rounds)


def raced(width: int, share: float, kind: str, rows: int, theirs: list[nn.Module], ours: list[nn.Module], rounds: int) -> dict[str, Any]:
    """Our ways against torch's own layer, all on the same weights and inputs; and the down projection alone."""
    inputs = [torch.randn(rows, width) for _ in range(13)]
    units: list[int] = []

    def decode(way: str) -> Callable[[Any, Tensor], object]:
        def run(layer: sparse_mlp.SparseMLP, x: Tensor) -> object:
            one = sparse_mlp._Decoder(layer, x, way, layer.hidden)
            out = one.run()
            units.append(one.units)
            return out
        return run

    with torch.no_grad():
        for layer, plain, x in zip(ours, theirs, inputs, strict=False):
            want = plain(x) if kind != "top-k" else layer._dense(x)  # type: ignore[operator]
            for way in ("sparse", "screened"):
                gap = (sparse_mlp._Decoder(layer, x, way, layer.hidden).run() - want).abs().max()  # type: ignore[operator,arg-type]
                assert float(gap) < (0.05 if kind == "top-k" else 1e-3), f"{way} is off by {float(gap)}"  # two units may be equal up to rounding
        turns = {name: Turn(theirs if name == "torch" else ours, inputs) for name in ("torch", "dense", "sparse", "screened")}
        runs: dict[str, Callable[[Any, Tensor], object]] = {"torch": lambda m, x: m(x), "dense": lambda m, x: m._dense(x),
                                                            "sparse": decode("sparse"), "screened": decode("screened")}
        found = race({name: (lambda name=name: turns[name](runs[name])) for name in runs}, baseline="torch", rounds=rounds, min_time=0.02)
    active = statistics.fmean(units) / (4 * width)
    best = min(("sparse", "screened"), key=lambda way: found[way].cpu.value)
    taken = best if found[best].faster("cpu") and found[best].wall.verdict <= 0 else "dense"
    one = {"width": width, "kind": kind, "share": share, "rows": rows, "active": active, "way": taken, "best": best,
           "races": {name: result.to_json() for name, result in found.items()}}
    print(f"width {width} {kind} share {share} rows {rows}: " + ", ".join(
        f"{name} {1 / result.cpu.value:.2f}x cpu {1 / result.wall.value:.2f}x wall" for name, result in found.items() if name != "torch"), flush=True)
    return one


def together(several: list[dict[str, Any] | None]) -> dict[str, Any]:
    """Rows of several runs by variant, one a seed in the order of seeds; of two, the later run's."""
    found: dict[str, Any] = {"variants": {name: [] for name in VARIANTS}, "conversions": {name: [] for name in CONVERSIONS}}
    for part, names in found.items():
        for name in names:
            rows = {row["seed"]: row for one in several if one for row in one[part][name]}
            names[name] = [rows[seed] for seed in sorted(rows)]
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("benchmarks/layers.py sparse_mlp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--begin", type=int, default=0, help="first seed; what the results have of earlier ones stays")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="only these, separated by commas")
    parser.add_argument("--merge", type=Path, nargs="*", help="results of other runs of this file, which take the places of what is lacking here")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--widths", default="512,1024,2048,4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("quality", "decode"), help="measure this part anew and keep the other")
    parser.add_argument("--quick", action="store_true", help="few steps, one width; nothing is published")
    args = parser.parse_args(arguments)
    if args.quick:
        args.seeds, args.steps, args.widths, args.rounds = 1, 20, "128", 5
    torch.set_num_threads(1)
    import json

    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() and args.only else {}
    made: dict[str, Any] = {"quality": before.get("quality"), "decoding": before.get("decoding")}

    def keep(seeds: int) -> None:
        if not args.quick:
            print(provenance.publish(RESULTS, {"about": provenance.facts(args, list(range(seeds))), **made}), flush=True)

    def joined(found: dict[str, Any], seed: int) -> None:
        made["quality"] = together([made["quality"], found])
        keep(seed + 1)

    if args.merge:
        others = [json.loads(path.read_text(encoding="utf-8")) for path in (RESULTS, *args.merge) if path.is_file()]
        made = {"quality": together([one["quality"] for one in others])}
        made["decoding"] = next((one["decoding"] for one in others if one["decoding"]), None)
        made["runs"] = [{key: one["about"][key] for key in ("began", "date", "commit", "load", "options")} for one in others]
        keep(args.seeds)
        return 0
    if args.only != "decode":
        quality(range(args.begin, args.seeds), args.steps, args.variants.split(","), joined)
    if args.only != "quality":
        made["decoding"] = []
        for one in decoding([int(width) for width in args.widths.split(",")], SHARES if not args.quick else (0.1,), args.rounds, 0):
            made["decoding"].append(one)
            keep(args.seeds)                                           # each, so that an end that comes early loses nothing
    return 0
