"""Fusion, placement and order: every solver at equal wall time on graphs of eight families and 2, 4 and 8 devices, with the gap to the proven bound.

    python benchmarks/schedule.py [--quick] [--seconds 20] [--nodes 300 1000 5000] [--system p100] [--out benchmarks/results/schedule.json]

Prints a table (step time as a share of the default's; gap to the bound) and writes every figure as JSON. Times are the simulator's on the machine
description, seconds are wall time of the solver here. A solver that declines or finds nothing that fits says why.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fourfold.decide import Budget, appraise, solve
from fourfold.decisions.schedule.corpus import FAMILIES, make
from fourfold.decisions.schedule.problem import Schedule
from fourfold.errors import FourfoldError
from fourfold.system import System
from fourfold.techniques import technique, techniques

HERE = Path(__file__).parent
SOLVERS = ("default", "expert", "heft", "peft", "cpop", "metis", "anneal", "exact", "go")


def one(problem: Schedule, name: str, seconds: float, seed: int) -> dict[str, Any]:
    """What a solver reaches within `seconds`."""
    start = time.perf_counter()
    try:
        found = solve(problem, technique(name)(), Budget(seconds, 10**9), seed)
    except (FourfoldError, ImportError) as error:
        return {"solver": name, "cost": None, "why": str(error).splitlines()[0], "wall_s": time.perf_counter() - start}
    return {"solver": name, "cost": found.cost, "bound": found.bound, "gap": found.gap, "before": found.before, "why": found.why,
            "wall_s": found.seconds, "evaluations": found.evaluations, "note": found.note}


def case(family: str, nodes: int, devices: int, train: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    problem = Schedule(make(family, nodes, arguments.seed, train), System.read(f"{arguments.system}x{devices}"))
    known = [name for name in SOLVERS if name in techniques()]
    cost, why = appraise(problem, problem.baseline())
    rows = [one(problem, name, arguments.seconds, arguments.seed) for name in known]
    # what one solver proves holds for all
    bound = max(row["bound"] for row in rows if row.get("bound") is not None)
    return {"family": family, "nodes": len(problem.graph), "devices": devices, "train": train, "baseline": cost, "baseline_why": why, "bound": bound,
            "graph": problem.graph.hash[:16], "system": problem.system.hash, "solvers": rows}


def table(cases: list[dict[str, Any]]) -> str:
    names = [row["solver"] for row in cases[0]["solvers"]]
    lines = [f"{'graph':26}{'nodes':>7}{'dev':>4}{'default ms':>12}{'bound':>8}" + "".join(f"{name:>9}" for name in names[1:])]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for one in cases:
        base = next(row["cost"] for row in one["solvers"] if row["solver"] == "default")
        cells = []
        for row in one["solvers"]:
            if base and row["cost"]:
                ratios[row["solver"]].append(row["cost"] / base)
            cells.append(f"{row['cost'] / base:9.3f}" if base and row["cost"] else f"{'–':>9}")
        label = one["family"] + (" train" if one["train"] else "")
        scale = base or math.nan
        lines.append(f"{label:26}{one['nodes']:7}{one['devices']:4}{1e3 * scale:12.3f}{one['bound'] / scale:8.3f}" + "".join(cells[1:]))
    mean = {name: math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan for name, values in ratios.items()}
    lines.append(f"{'geometric mean':57}" + "".join(f"{mean[name]:9.3f}" for name in names[1:]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, 2 s a solver")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--nodes", type=int, nargs="*", default=[300, 1000, 5000])
    parser.add_argument("--devices", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--system", default="p100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "schedule.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.nodes = 2.0, arguments.nodes[:1]
    cases = []
    for devices in arguments.devices:
        for nodes in arguments.nodes:
            for family in arguments.families:
                for train in (False, True):
                    cases.append(case(family, nodes, devices, train, arguments))
                    print(table(cases[-1:]).splitlines()[1], flush=True)
    print(table(cases))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    head = {"seconds": arguments.seconds, "system": arguments.system, "seed": arguments.seed}
    arguments.out.write_text(json.dumps({**head, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
