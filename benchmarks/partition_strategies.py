"""Layouts of large models on meshes of V100: the exact optimum, how long it takes, and what people would have done on the same prices.

    python benchmarks/partition_strategies.py [--models gpt:1024x32x16,…] [--quick]

Every model is captured without weights, on 8 rows (64 pictures); a step is forward and backward with gradients summed over 16 microbatches. Seconds
of a row are CPU time of one thread, without the capture: tables of strategies and edges, and the elimination. A second, independent check counts
brute-force optima of tiny programs.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import provenance

from fourfold.cost.roofline import seconds as alone
from fourfold.frontends.torch_export import capture
from fourfold.machine import Machine
from fourfold.program import Captured
from fourfold.sharding.customs import CUSTOMS, allowed, origins, roles_of, uniform
from fourfold.sharding.intra import LaidOut, lay_out
from fourfold.sharding.layers import layers
from fourfold.sharding.mesh import Mesh
from fourfold.sharding.rules import rules
from fourfold.sharding.strategies import Regime, Strategies, build
from fourfold.zoo.giants import giant

HERE = Path(__file__).parent
MODELS = ("gpt:1024x32x16@2x4", "gpt:1024x32x16@8x8", "gpt:2048x96x16@2x4x8", "gpt:8192x48x64@8x8", "moe:1024x32x16x16@2x4", "moe:1024x32x16x64@8x8",
          "wresnet:2x50@2x4", "wresnet:4x101@8x8")
BATCH, PICTURES, MICROBATCHES, COPIES = 8, 64, 16, 5                    # few rows: data parallelism alone cannot use 64 devices


def asked(name: str) -> tuple[Captured, Mesh, np.ndarray]:
    model, _, mesh = name.partition("@")
    machine = Machine.read("v100x64")
    captured = capture(*giant(model, PICTURES if model.startswith("wresnet") else BATCH))
    return captured, Mesh.of(machine, mesh), alone(captured.graph, Machine(machine.name, machine.devices[:1]))[:, 0]


def solved(captured: Captured, mesh: Mesh, seconds: np.ndarray) -> tuple[Strategies, LaidOut, float]:
    """(strategies, the best layout, CPU seconds of both)."""
    letters = rules(captured)
    began = time.process_time()
    made = build(captured.graph, letters, mesh, Regime(True, False, MICROBATCHES), seconds, layers(captured.graph, 1))
    best = lay_out(made, 1)
    return made, best, time.process_time() - began


def row(name: str) -> dict[str, Any]:
    captured, mesh, seconds = asked(name)
    solved(captured, mesh, seconds)                                     # numba compiles
    runs = [solved(captured, mesh, seconds) for _ in range(COPIES)]
    made, best, _ = runs[0]
    tags = origins(captured.graph, made.rules)
    by_hand = {custom: lay_out(made, 1, allowed=allowed(made, roles_of(custom, mesh), tags)).value for custom in CUSTOMS}
    by_hand["uniform"] = min(lay_out(made, 1, allowed=allowed(made, roles, tags)).value for roles in uniform(mesh))
    return {"name": name, "ops": len(captured.graph), "variables": len(made.variables), "strategies": sum(map(len, made.variables)),
            "value": best.value, "bound": best.bound, "cpu": sorted(took for _, _, took in runs), "made": best.made, "again": best.again,
            "by_hand": by_hand}


def brute(count: int) -> dict[str, int]:
    """Programs of a few operations on two devices, each solved by trying all assignments: how many, and how many equal elimination's."""
    import torch
    from torch import nn

    equal = 0
    for seed in range(count):
        rng = np.random.default_rng(seed)
        sizes = (4 * rng.integers(1, 9, 4)).tolist()
        parts: list[nn.Module] = [nn.Linear(sizes[0], sizes[1], bias=False), nn.GELU(), nn.Linear(sizes[1], sizes[2], bias=bool(seed % 2))]
        captured = capture(nn.Sequential(*parts[: 2 + seed % 2]), (torch.zeros(int(2 * rng.integers(1, 9)), sizes[0]),))
        mesh = Mesh(("x",), (2,), (float(rng.uniform(1e-6, 1e-4)),), (float(10 ** rng.uniform(-10, -7)),))
        made = build(captured.graph, rules(captured), mesh, Regime(bool(seed % 3), False, 1 + seed % 5), captured.graph.flops / 1e9,
                     layers(captured.graph, 1))
        least = min(made.cost(np.array(choice)) for choice in itertools.product(*[range(len(v)) for v in made.variables]))
        equal += abs(least - lay_out(made, 1).value) <= 1e-12 + 1e-9 * least
    return {"programs": count, "equal": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--brute", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="one small model; nothing is published")
    args = parser.parse_args()
    if args.quick:
        args.models, args.brute = "gpt:256x4x4@2x2", 5
    rows = []
    for name in args.models.split(","):
        rows.append(row(name))
        print(rows[-1], flush=True)
    document = {"about": provenance.facts(args, [0]), "rows": rows, "brute": brute(args.brute)}
    print(document["brute"])
    if not args.quick:
        provenance.publish(HERE / "results" / "partition_strategies.json", document)


if __name__ == "__main__":
    main()
