"""Tree attention beside torch's fused attention in time, and beside dense attention and Linformer in a classification of long texts.

    python benchmarks/layers.py treeformer [--seeds 3] [--only speed|quality]

Time: processor seconds of one call of inference, 8 heads of 64, interleaved. Quality: which of ten packages of the standard library a window of 4,096
bytes of source (1,024 positions) is from, on files that no training window is from. Dense attention is trained; `bootstrap` turns it into trees layer
by layer; trees and Linformer (Wang et al. 2020; 32 projected keys, about the operations of leaves of 32) begin at random and get all of the steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import sysconfig
import time
from pathlib import Path
from typing import Any

import _lm  # noqa: F401  (sets how threads wait before torch is imported)
import numpy as np
import provenance
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RESULTS = Path(__file__).parent / "results" / "layers_treeformer.json"
PACKAGES = ("asyncio", "distutils", "email", "idlelib", "importlib", "lib2to3", "multiprocessing", "tkinter", "unittest", "xml")
LENGTH, WIDTH, HEADS, LAYERS, BATCH, PATCH = 1024, 64, 4, 2, 4, 4
BYTES = LENGTH * PATCH
HEIGHT = 5


# ---- time ----------------------------------------------------------------------------------------------------------------------------------------


def speed(lengths: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """One row a length: race against `scaled_dot_product_attention`, and counted operations."""
    from fourfold.measure.race import race
    from fourfold.rewrites.attend.treeformer import TreeAttention, counted, height_for

    rows = []
    for length in lengths:
        torch.manual_seed(length)
        q, k, v = (torch.randn(1, 8, length, 64) for _ in range(3))
        runners: dict[str, Any] = {"softmax": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)}
        ratio = {}
        for mode in ("tf", "tc"):
            core = TreeAttention(8, 64, height_for(length), mode).train()  # type: ignore[arg-type]
            with torch.no_grad():
                core(q, k, v)
            core.eval()
            ours, theirs = counted(core, q, k)
            ratio[mode] = theirs / ours
            runners[mode] = lambda core=core, q=q, k=k, v=v: core(q, k, v)
        with torch.no_grad():
            found = race(runners, baseline="softmax", rounds=rounds, at_least=3, warmup=1, min_time=0.02, deadline=120)
        rows.append({"length": length, "height": height_for(length), "operations": ratio, "races": {n: r.to_json() for n, r in found.items()}})
        print(f"{length:6} tokens: " + ", ".join(f"{n} {1 / found[n].cpu.value:.1f}x ({ratio[n]:.0f}x fewer operations)" for n in ratio), flush=True)
    return rows


# ---- quality -------------------------------------------------------------------------------------------------------------------------------------


class Softmax(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Linformer(nn.Module):
    """Keys and values projected along time to 32: Wang et al. 2020, equation 7, the projection shared by heads and by keys and values."""

    def __init__(self, length: int, kept: int = 32) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(kept, length) * length**-0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, self.projection @ k, self.projection @ v)


class Attention(nn.Module):
    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core, self.qkv, self.out = core, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.out(self.core(q, k, v).transpose(1, 2).flatten(2))


class Classifier(nn.Module):
    """Bytes int64 [B, 4 T] → logits [B, 10]: patches of 8 bytes every 4, two pre-norm layers, mean and maximum of the positions."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(256, WIDTH // 2), nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.patches = nn.Conv1d(WIDTH // 2, WIDTH, 8, PATCH, padding=2)
        self.attention = nn.ModuleList(Attention(core()) for _ in range(LAYERS))
        self.mlp = nn.ModuleList(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
                                 for _ in range(LAYERS))
        self.norm = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.head = nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, len(PACKAGES)))

    def forward(self, ids: Tensor) -> Tensor:
        x = F.gelu(self.patches(self.embedding(ids).transpose(1, 2)).transpose(1, 2)) + self.position
        for norm, attention, mlp in zip(self.norm, self.attention, self.mlp, strict=True):
            x = x + attention(norm(x))
            x = x + mlp(x)
        return self.head(torch.cat([x.mean(1), x.amax(1)], -1))


def texts(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """(training, test): for each package the bytes of its files, three of ten files for the test."""
    root, dice = Path(sysconfig.get_path("stdlib")), np.random.default_rng(seed)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for package in PACKAGES:
        files = [file for file in sorted((root / package).rglob("*.py")) if "test" not in file.parts and file.stat().st_size > 0]
        order = dice.permutation(len(files))
        cut = max(1, round(0.3 * len(files)))
        for part, some in zip(parts, (order[cut:], order[:cut]), strict=True):
            part.append(torch.from_numpy(np.frombuffer(b"".join(files[i].read_bytes() for i in some), np.uint8).copy()))
    return parts


def windows(parts: list[Tensor], count: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """(bytes [count, BYTES], packages [count]), each package as likely."""
    label = torch.randint(len(parts), (count,), generator=dice)
    starts = [int(torch.randint(len(parts[i]) - BYTES, (1,), generator=dice)) for i in label]
    return torch.stack([parts[i][at : at + BYTES] for i, at in zip(label, starts, strict=True)]).long(), label


def trained(model: nn.Module, parts: list[Tensor], steps: int, dice: torch.Generator, rate: float) -> float:
    """Trains in place; processor seconds."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    model.train()
    began = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps) ** 0.5
        ids, label = windows(parts, BATCH, dice)
        optimizer.zero_grad()
        F.cross_entropy(model(ids), label).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.process_time() - began


def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        return float(torch.cat([model(ids).argmax(-1) for ids in test[0].split(16)]).eq(test[1]).float().mean())


def quality(seed: int, steps: int, each: int) -> dict[str, Any]:
    """Accuracies and processor seconds of one seed. `each`: steps after each change of the bootstrap."""
    from fourfold.rewrites.attend.treeformer import TreeAttention, counted

    parts, rest = texts(seed)
    test = windows(rest, 1000, torch.Generator().manual_seed(10_000))
    heights = (2, HEIGHT)
    after = each * LAYERS * len(heights)
    row: dict[str, Any] = {"seed": seed, "steps": steps, "after": after}
    torch.manual_seed(seed)
    dense = Classifier(Softmax)
    dice = torch.Generator().manual_seed(seed)
    seconds = trained(dense, parts, steps, dice, 2e-3)
    tree = copy.deepcopy(dense)
    for name, model in (("dense", dense), ("tree", tree)):
        began = time.process_time()
        if name == "dense":
            trained(model, parts, after, torch.Generator().manual_seed(seed + 1), 1e-3)   # the same steps as the bootstrap gets
        else:
            more = torch.Generator().manual_seed(seed + 1)
            for attention in reversed(list(model.attention)):              # the last layer first, low trees before high ones
                core = TreeAttention(HEADS, WIDTH // HEADS, heights[0])
                for height in heights:
                    while core.height < height:
                        core = core.grow()
                    attention.core = core
                    trained(model, parts, each, more, 1e-3)
        row[name] = {"accuracy": accuracy(model, test), "seconds": seconds + time.process_time() - began}
    for name, core in (("scratch", lambda: TreeAttention(HEADS, WIDTH // HEADS, HEIGHT)), ("linformer", lambda: Linformer(LENGTH))):
        torch.manual_seed(seed)
        model = Classifier(core)
        row[name] = {"seconds": trained(model, parts, steps + after, torch.Generator().manual_seed(seed), 2e-3), "accuracy": accuracy(model, test)}
    ratios = []
    for core in [part for part in tree.modules() if isinstance(part, TreeAttention)]:
        asked: list[Tensor] = []

        def look(_: nn.Module, given: tuple[Tensor, ...], asked: list[Tensor] = asked) -> None:
            asked.extend(given[:2])

        hook = core.register_forward_pre_hook(look)
        with torch.no_grad():
            tree(test[0][:16])
        hook.remove()
        ours, theirs = counted(core, asked[0], asked[1])
        ratios.append(theirs / ours)
    row["operations"] = float(np.mean(ratios))
    print(f"seed {seed}: " + ", ".join(f"{n} {100 * row[n]['accuracy']:.1f} % ({row[n]['seconds']:.0f} s)" for n in ("dense", "tree", "scratch",
          "linformer")) + f", {row['operations']:.1f}x fewer operations", flush=True)
    return row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("benchmarks/layers.py treeformer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--begin", type=int, default=0, help="the first seed to measure; earlier ones are kept")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--each", type=int, default=40, help="steps after each change of the bootstrap")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("speed", "quality"), help="measure this part anew and keep the other")
    parser.add_argument("--quick", action="store_true", help="few steps, one length; nothing is published")
    args = parser.parse_args(arguments)
    if args.quick:
        args.seeds, args.steps, args.each, args.rounds = 1, 5, 2, 3
    torch.set_num_threads(1)
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() and (args.only or args.begin) else {}
    made = {"speed": before.get("speed"), "quality": before.get("quality")}

    def keep() -> None:
        if not args.quick:
            seeds = [run["seed"] for run in made["quality"] or []]
            print(provenance.publish(RESULTS, {"about": provenance.facts(args, seeds or [0]), **made}), flush=True)

    if args.only != "quality":
        made["speed"] = speed((1024,) if args.quick else (1024, 2048, 4096, 8192, 16384), args.rounds)
        keep()
    if args.only != "speed":
        made["quality"] = [run for run in made["quality"] or [] if run["seed"] < args.begin]
        for seed in range(args.begin, args.seeds):
            made["quality"].append(quality(seed, args.steps, args.each))
            keep()
    return 0
