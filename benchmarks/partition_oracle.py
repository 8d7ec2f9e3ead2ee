"""The plans that Alpa published for GPT on 64 V100, priced in our tables, beside what our planner finds in them.

    python benchmarks/partition_oracle.py [--rows 1,2,4] [--quick]

Source of the plans: alpa-projects/alpa, benchmark/alpa/suite_auto_gpt.py (global batch 1024, sequence 1024, vocabulary 51200, with recomputation). A
published stage says its submesh, its logical mesh and whether axis 0 must be data parallel; the rest of its layout is chosen best for it, from quick
to lean. It is priced as it stands where it fits our model of memory; where not, the bytes that it lacks are told.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import provenance
from numpy.typing import NDArray

from fourfold.decisions.stages.alpa import Alpa
from fourfold.decisions.stages.equal_split import EqualSplit
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.errors import Infeasible
from fourfold.jobs.devices.layouts import Configuration, laid_out, table_of
from fourfold.jobs.devices.source import DevicesAsked, asked_of
from fourfold.problem import solve
from fourfold.sharding.customs import BATCH, origins
from fourfold.sharding.intra import lay_out
from fourfold.sharding.strategies import Regime, Strategies, build

HERE = Path(__file__).parent
GLOBAL_BATCH = 1024


class PublishedPlan(NamedTuple):
    devices: str
    model: str
    microbatches: int
    layers: int
    stages: tuple[tuple[int, ...], ...]                                 # layers of each
    meshes: tuple[str, ...]                                             # logical mesh of each
    forced: tuple[bool, ...]                                            # axis 0 is data parallel


def even(layers: int, stages: int) -> tuple[tuple[int, ...], ...]:
    own = layers // stages
    return tuple(tuple(range(s * own, (s + 1) * own)) for s in range(stages))


PLANS = {
    1: PublishedPlan("1x1", "gpt:1024x24x16", 512, 1, ((0,),), ("1",), (False,)),
    2: PublishedPlan("1x2", "gpt:1536x24x16", 128, 6, even(6, 2), ("1",) * 2, (True,) * 2),
    4: PublishedPlan("1x4", "gpt:2048x24x32", 128, 6, even(6, 2), ("2x1",) * 2, (True,) * 2),
    8: PublishedPlan("1x8", "gpt:2560x32x32", 128, 8, ((0, 1), (2, 3), (4, 5, 6, 7)), ("2x1", "2x1", "4x1"), (True, False, False)),
    16: PublishedPlan("2x8", "gpt:4096x32x32", 64, 8, even(8, 2), ("2x4",) * 2, (True,) * 2),
    32: PublishedPlan("4x8", "gpt:5120x48x40", 128, 16, even(16, 4), ("2x4",) * 4, (True,) * 4),
    64: PublishedPlan("8x8", "gpt:8192x48x64", 1024, 16, even(16, 16), ("1x4",) * 16, (True,) * 16),
}


def forced_masks(made: Strategies, tags: list[dict[str, str]]) -> list[NDArray[np.bool_]]:
    """Strategies in which the first axis splits nothing but the batch."""
    axis, found = made.mesh.names[0], []
    for v in made.variables:
        if v.node < 0:
            found.append(np.ones(len(v), np.bool_))
            continue
        kept = np.array([not isinstance(one.get(axis), str) or tags[v.node].get(str(one[axis])) == BATCH for one in v.choices])
        found.append(kept if kept.any() else np.ones(len(v), np.bool_))
    return found


def oracle(asked: DevicesAsked, plan: PublishedPlan) -> dict[str, Any]:
    """Cost of the published plan, each stage with the quickest layout that fits; or what it lacks."""
    tags = origins(asked.graph, asked.rules)
    configs: list[Configuration] = []
    for text, forced in sorted(set(zip(plan.meshes, plan.forced, strict=True))):
        mesh = asked.mesh(text)
        made = build(asked.graph, asked.rules, mesh, Regime(True, True, asked.microbatches), asked.seconds, asked.layer)
        masks = forced_masks(made, tags) if forced and mesh.shape[0] > 1 else None
        quick = lay_out(made, asked.count, 0.0, masks)
        full = quick.value / (asked.limit * asked.devices / mesh.size)
        for price in (0.0, 0.1 * full, full, 10 * full, 100 * full):
            configs.append(Configuration(text, mesh, "forced" if forced else "free", True, made, lay_out(made, asked.count, price, masks)))
    table = table_of(asked, configs)
    problem = StageConstruction(table, asked.devices, asked.microbatches, asked.limit, asked.schedule)
    flights, chosen, lacks = problem.flights(len(plan.stages)), [], 0.0
    for own, text, forced, flight in zip(plan.stages, plan.meshes, plan.forced, flights, strict=True):
        i, k = own[0], own[-1]
        mine = [c for c, config in enumerate(configs) if config.text == text and (config.custom == "forced") == forced]
        need = {c: table.held[c, i, k] + flight * table.active[c, i, k] for c in mine}
        fits = [c for c in mine if need[c] <= asked.limit]
        lacks = max(lacks, min(need.values()) - asked.limit)
        chosen.append(min(fits or mine, key=lambda c: table.seconds[c, i, k] if fits else need[c]))
    answer = Stages(np.array([own[0] for own in plan.stages]), np.array(chosen))
    return {"cost": problem.cost(answer), "fits": not problem.violations(answer), "lacks": max(0.0, lacks),
            "bytes": float(problem.bytes(answer).max())}


def row(gpus: int) -> dict[str, Any]:
    plan, began = PLANS[gpus], time.process_time()
    asked = asked_of(plan.model, None, devices=plan.devices, machine="v100x64", memory=None, train=True, microbatches=plan.microbatches,
                     schedule="1f1b", layers=plan.layers, dims={"batch": GLOBAL_BATCH // plan.microbatches}, seed=0, trust=())
    captured = time.process_time() - began
    layouts = laid_out(asked)
    tables = time.process_time() - began - captured
    problem = StageConstruction(layouts.table, asked.devices, asked.microbatches, asked.limit, "1f1b")
    found: dict[str, Any] = {"gpus": gpus, "model": plan.model, "published": oracle(asked, plan), "capture_s": captured, "tables_s": tables}
    began = time.process_time()
    try:
        best = solve(problem, Alpa())
    except Infeasible as error:
        return found | {"cost": None, "why": error.message}
    found |= {"cost": best.cost, "gap": best.gap, "relaxation": problem.bound(), "pipeline_s": time.process_time() - began,
              "stages": [[i, k, layouts.table.configs[c]] for c, (i, k) in zip(best.answer.config, best.answer.runs(asked.count), strict=True)]}
    try:
        found["uniform"] = solve(problem, EqualSplit()).cost
    except Infeasible:
        found["uniform"] = None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(map(str, PLANS)))
    parser.add_argument("--quick", action="store_true", help="the smallest row; nothing is published")
    args = parser.parse_args()
    args.rows = "1" if args.quick else args.rows
    rows = []
    for gpus in map(int, args.rows.split(",")):
        rows.append(row(gpus))
        print(rows[-1], flush=True)
    if not args.quick:
        provenance.publish(HERE / "results" / "partition_oracle.json", {"about": provenance.facts(args, [0]), "rows": rows})


if __name__ == "__main__":
    main()
