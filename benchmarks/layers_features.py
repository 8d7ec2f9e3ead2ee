"""Bounded random features, measured: `python benchmarks/layers.py features [--seeds 3] [--parts variance error time recover]`.

- variance: relative standard deviation of one feature's estimate of exp(xᵀy) by the norm of x and y: closed forms of the three kinds, and sampled
  where sampling can tell, with independent and with orthogonal directions.
- error: of attention's output against the softmax, by the number of features.
- time: processor seconds of attention by length, one and two threads, both directions and causal, in turn with torch's fused softmax attention.
- recover: the small language model (`_lm.py`) is trained with softmax attention, converted, and trained on for a tenth of the steps.

Parts that are not asked for keep what the results file has of them, each with the date and commit of its own; the file is written row by row.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import _lm
import numpy as np
import provenance
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.nn import BoundedFeatures, MaskedLinearAttention, ToeplitzMask
from fourfold.rewrites.attend._features import RandomFeatures, optimal_a, relative_variance, trigonometric_variance

RESULTS = Path(__file__).parent / "results" / "layers_features.json"
NORMS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
HEAD = 64


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


# --- variance --------------------------------------------------------------------------------------------------------------------------------------

def pairs(norm: float, d: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """x and y [count, d] of this norm, in random directions."""
    dice = torch.Generator().manual_seed(seed)
    x, y = (norm * F.normalize(torch.randn(count, d, generator=dice, dtype=torch.float64), dim=1) for _ in range(2))
    return x, y


def sampled(kind: str, x: Tensor, y: Tensor, phi: float, orthogonal: bool, draws: int, seed: int) -> float:
    """Median over pairs of the relative standard deviation of the mean of d features (one block), times √d: comparable with one feature's."""
    d = x.shape[1]
    estimates = []
    maps = RandomFeatures(1, d, 2 * d if kind == "trigonometric" else d, kind, orthogonal=orthogonal, seed=seed).double()  # type: ignore[arg-type]
    maps.phi.fill_(phi)
    a = float(maps.a(torch.float64))
    for _ in range(draws):
        maps.redraw()
        (f_x, _), (f_y, weight) = maps(x[None, None], False), maps(y[None, None], True)
        product = (f_x * f_y)[0, 0].sum(-1) / d * weight[0, 0].exp()
        if kind == "trigonometric":
            product = product * (x.square().sum(-1) / 2).exp()
        else:
            exponent = x @ maps.omega[0].T * math.sqrt(1 - 4 * a) + a * maps.omega[0].square().sum(-1)
            product = product * (exponent.amax(-1) - x.square().sum(-1) / 2).exp() * (1 - 4 * a) ** (d / 2)
        estimates.append(product / (x * y).sum(-1).exp())
    return float((torch.stack(estimates).var(0) * d).sqrt().median())


def variance(seeds: int, draws: int = 500, count: int = 32) -> Iterator[dict[str, Any]]:
    for d in (16, 64):
        for norm in NORMS:
            x, y = pairs(norm, d, count, 0)
            plus, minus = (x + y).square().sum(1), (x - y).square().sum(1)
            phi = float(plus.mean()) / d                                # pooled: one A for all pairs, as in attention
            a = float(optimal_a(torch.tensor(phi, dtype=torch.float64)))
            exact = {
                "bounded": [math.sqrt(relative_variance(a, float(s), d)) for s in plus],
                "positive": [math.sqrt(relative_variance(0, float(s), d)) for s in plus],
                "trigonometric": [math.sqrt(trigonometric_variance(float(s))) for s in minus],
            }
            row: dict[str, Any] = {"width": d, "norm": norm, "phi": phi, "a": a, "exact": {kind: spread(values) for kind, values in exact.items()}}
            if d == 16:
                row["sampled"] = {
                    f"{kind}{', orthogonal' if orthogonal else ''}": spread([sampled(kind, x, y, phi, orthogonal, draws, s) for s in range(seeds)])
                    for kind in ("bounded", "positive", "trigonometric") for orthogonal in (False, True)
                }
            yield row


# --- error -----------------------------------------------------------------------------------------------------------------------------------------

def error(seeds: int, length: int = 256) -> Iterator[dict[str, Any]]:
    """Relative error of the output, for normal queries and keys of this size a coordinate, A from the sequence."""
    for size in (0.5, 1.0):
        for kind in ("bounded", "positive", "trigonometric"):
            for features in (32, 64, 128, 256, 512, 1024):
                found = []
                for seed in range(4 * seeds):
                    dice = torch.Generator().manual_seed(seed)
                    q, k, v = torch.randn(3, 1, 1, length, HEAD, generator=dice).unbind(0)
                    q, k = size * q, size * k
                    layer = BoundedFeatures(1, HEAD, features, kind=kind, seed=seed, adaptive=True).eval()
                    wanted = F.scaled_dot_product_attention(q, k, v)
                    with torch.no_grad():
                        found.append(float((layer(q, k, v) - wanted).norm() / wanted.norm()))
                yield {"size": size, "kind": kind, "features": features, "error": spread(found)}


# --- time ------------------------------------------------------------------------------------------------------------------------------------------

def clocked(call: Callable[[], object]) -> tuple[float, float]:
    """(processor seconds, seconds) of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def timing(seeds: int) -> Iterator[dict[str, Any]]:
    """Rounds in turn: softmax, then each number of features; ratios are of one round. One round goes before, to warm up, where rounds are short."""
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for length, causal in ((length, causal) for length in LENGTHS for causal in (False, True)):
            q, k, v = torch.randn(3, 1, 1, length, HEAD, generator=torch.Generator().manual_seed(0)).unbind(0)
            layers = {m: BoundedFeatures(1, HEAD, m).eval() for m in (128, 256)}
            calls: dict[str, Callable[[], object]] = {"softmax": partial(F.scaled_dot_product_attention, q, k, v, is_causal=causal)}
            calls |= {str(m): partial(layer, q, k, v, is_causal=causal) for m, layer in layers.items()}
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
            with torch.no_grad():
                for number in range(seeds + 1):
                    for name, call in calls.items():
                        if number or length <= 8192:
                            seen[name].append(clocked(call))
            seen = {name: many[-seeds:] for name, many in seen.items()}
            row: dict[str, Any] = {"threads": threads, "length": length, "causal": causal}
            for name, many in seen.items():
                row[name] = {"cpu": spread([cpu for cpu, _ in many]), "wall": spread([wall for _, wall in many])}
                if name != "softmax":
                    row[name]["faster"] = spread([a / b for (a, _), (b, _) in zip(seen["softmax"], many, strict=True)])
                    row[name]["faster_wall"] = spread([a / b for (_, a), (_, b) in zip(seen["softmax"], many, strict=True)])
            yield row
    torch.set_num_threads(1)


# --- recover ---------------------------------------------------------------------------------------------------------------------------------------

def core(kind: str, heads: int, width: int, seed: int) -> nn.Module:
    """An attention core of 4 × width features: one of the three kinds, or bounded features under a learnt mask of relative position."""
    if kind == "masked":
        return MaskedLinearAttention(heads, width, ToeplitzMask(heads, 96), 4 * width, seed=seed)
    return BoundedFeatures(heads, width, 4 * width, kind=kind, seed=seed)  # type: ignore[arg-type]


def converted(model: _lm.LM, kind: str) -> _lm.LM:
    """A copy of the model whose attentions are estimated, φ seen on training windows."""
    made = _lm.made(0, model.shape)
    made.load_state_dict(model.state_dict())
    for number, block in enumerate(made.blocks):
        attention: Any = block.attention
        attention.core = core(kind, model.shape.heads, model.shape.width // model.shape.heads, number)
    inputs, _ = _lm.batches(99, model.shape, _lm.Training())()
    with torch.no_grad():
        for _ in range(3):
            made.train()(inputs)
    return made


def recover(seeds: int, steps: int = 500, begin: int = 0) -> Iterator[dict[str, Any]]:
    """Losses in nats a byte: as trained, trained on with softmax for a tenth of the steps, converted, and converted and trained on likewise."""
    for seed in range(begin, seeds):
        training = _lm.Training(steps=steps, every=steps)
        model, curve = _lm.fresh(seed, training)
        more = _lm.Training(steps=steps // 10, warmup=10, rate=1e-3, every=steps // 10)
        softmax = _lm.made(0)
        softmax.load_state_dict(model.state_dict())
        row: dict[str, Any] = {"seed": seed, "steps": steps, "trained": curve.losses[-1], "softmax": _lm.train(softmax, 1000 + seed, more).losses[-1]}
        for kind in ("bounded", "positive", "trigonometric", "masked"):
            student = converted(model, kind)
            before = _lm.validation(student, student.shape)
            try:
                after: float | None = _lm.train(student, 1000 + seed, more).losses[-1]
            except FloatingPointError:
                after = None
            gap = before - row["trained"]
            row[kind] = {"converted": before, "recovered": after, "share": None if after is None else (before - after) / gap}
        yield row


# --- the picture -----------------------------------------------------------------------------------------------------------------------------------

COLOURS = ("#2c5d9e", "#ae2a1f", "#0b6b4c", "#a35200", "#6a4c93", "#5b625f", "#80801a")
Lines = dict[str, list[tuple[float, float]]]


def panel(x: float, title: str, lines: Lines, low: int, high: int) -> list[str]:
    """Processor seconds, 10^low to 10^high, against tokens, 1,024 to 32,768; both axes logarithmic."""
    wide, tall, top = 380.0, 300.0, 60.0

    def at(tokens: float, value: float) -> tuple[float, float]:
        return x + wide * (math.log2(tokens) - 9.8) / 5.4, top + tall * (1 - (math.log10(max(value, 10.0**low)) - low) / (high - low))

    parts = [f'<text x="{x}" y="{top - 22}" class="title">{title}</text>']
    for power in range(low, high + 1):
        y = at(1024, 10.0**power)[1]
        parts.append(f'<line x1="{x}" x2="{x + wide}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                     f'<text x="{x - 6}" y="{y + 4:.1f}" class="tick" text-anchor="end">{10.0**power:g} s</text>')
    for tokens in LENGTHS:
        parts.append(f'<text x="{at(tokens, 1)[0]:.1f}" y="{top + tall + 18}" class="tick" text-anchor="middle">{tokens:,}</text>')
    parts.append(f'<text x="{x + wide / 2}" y="{top + tall + 36}" class="tick" text-anchor="middle">tokens</text>')
    ends = sorted((at(*points[-1])[1], name) for name, points in lines.items())
    shown: dict[str, float] = {}
    for y, name in ends:                                                # labels do not overlap
        shown[name] = max(y, *(other + 13 for other in shown.values())) if shown else y
    for (name, points), colour in zip(lines.items(), COLOURS, strict=False):
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*point) for point in points))
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{colour}"/>' for px, py in (at(*point) for point in points)]
        parts.append(f'<text x="{at(*points[-1])[0] + 8:.1f}" y="{shown[name] + 4:.1f}" class="tick" style="fill:{colour}">{name}</text>')
    return parts


def picture(data: dict[str, Any], masks: dict[str, Any]) -> str:
    """SVG: seconds of one thread against the length, of attention and of masked attention."""
    rows = [row for row in data["parts"]["time"]["rows"] if row["threads"] == 1]
    lines: Lines = {
        f"{'softmax' if name == 'softmax' else f'{name} features'}{', causal' if causal else ''}":
            [(row["length"], row[name]["cpu"]["median"]) for row in rows if row["causal"] == causal]
        for name in ("softmax", "256", "128") for causal in (False, True)
    }
    names = list(dict.fromkeys(row["mask"] for row in masks["rows"]))
    under: Lines = {name: [(row["length"], row["fast"]["median"]) for row in masks["rows"] if row["mask"] == name] for name in names}
    under["written out"] = [(row["length"], row["dense"]["median"]) for row in masks["rows"] if row["mask"] == names[0] and "dense" in row]
    body = [*panel(60, "Attention, one head of width 64", lines, -3, 1), *panel(660, "Under a mask, one head of width 16", under, -3, 1)]
    style = (".title{font:600 14px system-ui,sans-serif;fill:var(--ink)}.tick{font:11px system-ui,sans-serif;fill:var(--soft)}"
             ".grid{stroke:var(--line)}"
             ".plot{--ink:#1c1f1e;--soft:#5b625f;--line:#e4e6e1;background:#fff}"
             "@media(prefers-color-scheme:dark){.plot{--ink:#e9ece9;--soft:#a3aba6;--line:#2b302d;background:#171a19}}")
    label = "Processor seconds of softmax attention, of random features and of masks against the number of tokens"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1220 420" class="plot" role="img" aria-label="{label}"><style>{style}</style>'
            + "".join(body) + "</svg>\n")


PARTS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {"variance": variance, "error": error, "time": timing, "recover": recover}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/layers.py features", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds, and rounds of timing")
    parser.add_argument("--begin", type=int, default=0, help="first seed of recover; rows of earlier ones stay as they are")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for part in options.parts:
        rows: list[dict[str, Any]] = []
        for row in PARTS[part](options.seeds, **({"begin": options.begin} if part == "recover" else {})):
            rows.append(row)
            print(json.dumps(row), flush=True)
            written(options, part, rows)
    return 0


def written(options: argparse.Namespace, part: str, rows: list[dict[str, Any]]) -> None:
    """Put a part's rows into the results file, in which another process may write another part."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        document = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"parts": {}}
        told = provenance.facts(options, range(options.seeds))
        if part == "recover" and part in document["parts"]:
            mine = {row["seed"] for row in rows}
            rows = sorted([*rows, *(row for row in document["parts"][part]["rows"] if row["seed"] not in mine)], key=lambda row: row["seed"])
        document["parts"][part] = {"date": told["date"], "commit": told["commit"], "load": told["load"], "rows": rows}
        provenance.publish(options.out, {"about": told, "parts": document["parts"]})
