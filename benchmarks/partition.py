"""Every workload of the public placement suite, every technique, at equal wall time: a table with proven gaps, and JSON.

    python benchmarks/partition.py FOLDER [--seconds 60] [--seed 0] [--only gnmt] [--json benchmarks/results/partition.json]

FOLDER is a copy of https://github.com/msr-fiddle/dnn-partitioning (or a part of it: throughput-inputs, latency-inputs, human-experts), files
unchanged. Throughput is asked twice: any split, and contiguous ones. A technique that fails or declines says why; kernels are compiled before the
clock starts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import provenance

from fourfold.decisions.pipeline.problem import Latency, MaxLoad, Split
from fourfold.frontends.placement import read_placement, read_split
from fourfold.problem import Budget, Problem, solve
from fourfold.registry import names as known
from fourfold.registry import technique
from fourfold.solvers.compare import ENDLESS, compare

# Figures of the suite's own programs, built with g++ -O2 and run by us: best contiguous DP, PipeDream, local search of two restarts, greedy fill.
PUBLISHED = {
    "throughput-inputs/LayerGraphs/gnmt_inference": {"pipedream": 33.03, "local search": 31.97, "expert": 46.21},
    "throughput-inputs/LayerGraphs/gnmt_training": {"pipedream": 294.90, "local search": 91.90, "expert": 137.15},
    "throughput-inputs/OperatorGraphs/bert_l-6_inference": {"dp": 29.58, "pipedream": 65.57, "local search": 46.78},
    "latency-inputs/LayerGraphs/gnmt_inference": {"greedy": 268.5, "cores": 1824.4},
    "latency-inputs/OperatorGraphs/bert_l-6_inference": {"greedy": 494.1, "cores": 1724.8},
    "latency-inputs/OperatorGraphs/bert_l-12_inference": {"greedy": 867.8, "cores": 14016.8},
}


def problems(folder: Path, only: str) -> list[tuple[str, str, Problem[Split]]]:
    """(workload, question, problem) of every file."""
    found: list[tuple[str, str, Problem[Split]]] = []
    for path in sorted(folder.glob("*-inputs/**/*.json"), key=lambda path: (path.parts[-3], path.stat().st_size)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if only not in name:
            continue
        workload = read_placement(path)
        if name.startswith("latency"):
            found.append((name, "latency", Latency(workload)))
            continue
        by_hand = folder / "human-experts" / f"{path.stem}_expert.json"
        expert = Split(read_split(by_hand, workload)) if by_hand.exists() and "LayerGraphs" in name else None
        found += [(name, "throughput", MaxLoad(workload, expert=expert)), (name, "contiguous", MaxLoad(workload, True, expert))]
    return found


def rows(folder: Path, seconds: float, seed: int, only: str) -> list[dict[str, Any]]:
    """One row a problem and technique."""
    names = known("pipeline")
    for problem in (MaxLoad.sample(0), MaxLoad.sample(1), Latency.sample(0)):
        for name in names:
            if technique(f"pipeline/{name}").answers == problem.question and not technique(f"pipeline/{name}")().declines(problem):
                solve(problem, technique(f"pipeline/{name}")(), Budget(5, 2_000))
    found = []
    for workload, question, problem in problems(folder, only):
        base = problem.baseline()
        head = {"workload": workload, "question": question, "unit": problem.unit, "published": PUBLISHED.get(workload, {})}
        cost = None if problem.violations(base) else problem.cost(base)
        note = "impossible: memory" if cost is None else ""
        found.append(head | {"technique": "baseline", "cost": cost, "bound": problem.bound(), "seconds": 0.0, "note": note})
        asked = {name: technique(f"pipeline/{name}")() for name in names if technique(f"pipeline/{name}").answers == problem.question}
        table = compare(problem, asked, seconds, (seed,), evaluations=ENDLESS,
                        tell=lambda row, what=f"{workload} {question}": print(what, row["solver"], row["cost"], file=sys.stderr))
        found += [head | {"technique": row["solver"], "cost": row["cost"], "bound": row["bound"], "note": row["note"] or row["why"],
                          "seconds": row["seconds"], "cpu_s": row["cpu_s"]} for row in table.rows]
    for row in found:                                                   # a bound proven by one holds for all of its question
        alike = [other["bound"] for other in found if other["bound"] is not None
                 and (other["workload"], other["question"]) == (row["workload"], row["question"])]
        row["best_bound"] = max(alike)
        row["gap"] = None if row["cost"] is None else max(0.0, row["cost"] / row["best_bound"] - 1.0)
    return found


def table(found: list[dict[str, Any]]) -> str:
    lines = []
    for key in dict.fromkeys((row["workload"], row["question"]) for row in found):
        group = [row for row in found if (row["workload"], row["question"]) == key]
        known = ", ".join(f"{name} {value}" for name, value in group[0]["published"].items())
        lines.append(f"\n{key[0]} · {key[1]} · bound {group[0]['best_bound']:.6g}" + (f" · the suite's: {known}" if known else ""))
        for row in sorted(group, key=lambda row: (row["cost"] is None, row["cost"])):
            cost = "–" if row["cost"] is None else f"{row['cost']:.6g}"
            gap = "" if row["gap"] is None else f"{row['gap']:.1%}"
            lines.append(f"  {row['technique']:20s} {cost:>10s} {gap:>9s} {row['seconds']:7.1f} s  {row['note']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])                # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = rows(asked.folder, asked.seconds, asked.seed, asked.only)
    print(table(found))
    if asked.json:
        provenance.publish(asked.json, {"about": provenance.facts(asked, [asked.seed]), "seconds": asked.seconds, "seed": asked.seed, "rows": found})


if __name__ == "__main__":
    main()
