"""The public intra-operator instances (contest at ASPLOS and EuroSys 2025) within their limits: cost, own bound, certificate counted again.

    python benchmarks/partition_iopddl.py FOLDER [--share 1.0] [--only A,C] [--seed 0] [--solver auto] [--json FILE]

FOLDER holds NAME.json.gz, unchanged, and published.csv (limit, costs of the contest's winner and of XLA's own partitioner, published bound). The
clock of an instance is the CPU time of this process over two threads, reading the file included, so that what else the machine does takes nothing
away: it stops where two cores of its own would have reached the limit (times `--share`). Kernels are compiled before. Each instance runs once; the
score is the sum of min(1, best published cost ÷ ours).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import provenance

from fourfold.decisions.shard._contest import read_contest
from fourfold.decisions.shard.bound import bound
from fourfold.decisions.shard.problem import ShardProblem
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.solvers.compare import ENDLESS

ROOT = Path(__file__).parent
CORES, AFTER = 2, 1.5                                                   # threads that the clock counts; s kept for the check of the answer


class ProcessorBudget(Budget):
    """A budget whose seconds are CPU seconds of this process, divided by the threads that work."""

    def restart(self) -> None:
        self._begun = time.process_time()
        super().restart()

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - (time.process_time() - self._begun) / CORES)


def published(folder: Path) -> dict[str, dict[str, float | None]]:
    """What is known of each instance, by name; None where nothing is."""
    with (folder / "published.csv").open(encoding="utf-8") as file:
        return {row.pop("instance"): {key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)}


def measure(path: Path, known: dict[str, float | None], solver: str, share: float, seed: int) -> dict[str, Any]:
    """One instance, one seed."""
    limit = (known["timeout_s"] or 60.0) * share
    cpu, wall = time.process_time(), time.monotonic()
    problem = ShardProblem(read_contest(path))
    read = (time.process_time() - cpu) / CORES
    found = solve(problem, technique(f"shard/{solver}")(), ProcessorBudget(max(1.0, limit - read - AFTER), ENDLESS), seed)
    cpu, wall = (time.process_time() - cpu) / CORES, time.monotonic() - wall
    costs = [cost for cost in (known["winner_cost"], known["best_team_cost"], known["xla_cost"]) if cost]
    counted = bound(problem.graph, found.evidence["certificate"]) if "certificate" in found.evidence else None
    return {"instance": path.name.split(".")[0], "solver": solver, "seed": seed, "nodes": len(problem.graph), "edges": problem.graph.edges,
            "limit_s": limit, "cpu_s": cpu, "wall_s": wall, "passes": found.evaluations, "cost": int(problem.total(found.answer)),
            "violations": problem.violations(found.answer), "bound": found.bound, "counted_again": counted, "gap": found.gap,
            "best_published": min(costs), "ratio": min(1.0, min(costs) / found.cost), **{f"published_{key}": value for key, value in known.items()}}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The score and what the bars ask, of one seed's rows."""
    return {"score": sum(row["ratio"] for row in rows), "of": len(rows), "valid": sum(not row["violations"] for row in rows),
            "dearer_than_xla": [row["instance"] for row in rows if row["published_xla_cost"] and row["cost"] > row["published_xla_cost"]],
            "below_winner": [row["instance"] for row in rows if row["cost"] < row["published_winner_cost"]],
            "bound_at_least_published": [row["instance"] for row in rows if row["bound"] >= row["published_published_lower_bound"]]}


def claimed(rows: list[dict[str, Any]]) -> None:
    """What `claims/` holds against the contest's winner: our cost over XLA's where that is known, geometric mean."""
    known = [row["cost"] / row["published_xla_cost"] for row in rows if row["published_xla_cost"]]
    if len(known) == 5:
        value = math.exp(sum(map(math.log, known)) / len(known))
        found = {"relative_time": {"value": value, "low": value, "high": value}, "cases": len(known), "seeds": 1, "limit": rows[0]["limit_s"]}
        (ROOT.parent / "claims" / "results" / "iopddl-winner.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def join(parts: list[Path], whole: Path) -> None:
    """One results file of several that ran beside one another; what is said of the first stands, with the options and loads of all."""
    read = [json.loads(path.read_text(encoding="utf-8")) for path in parts]
    rows = sorted((row for one in read for row in one["rows"]), key=lambda row: row["instance"])
    about = read[0]["about"] | {"began": min(one["about"]["began"] for one in read), "parts": [one["about"] for one in read[1:]]}
    about["options"] = about["options"] | {"only": ""}
    about["sha256"] = {name: value for one in read for name, value in one["about"]["sha256"].items()}
    provenance.publish(whole, read[0] | {"about": about, "rows": rows, "summary": summary(rows)})
    claimed(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])                # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the contest's limit")
    parser.add_argument("--only", default="", help="instances, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--join", type=Path, nargs="*", default=[], help="measure nothing: rows of these results files, into one")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "partition_iopddl.json")
    asked = parser.parse_args()
    if asked.join:
        join(asked.join, asked.json)
        return
    known = published(asked.folder)
    wanted = [name for name in known if not asked.only or name in asked.only.split(",")]
    for seed in range(3):                                               # kernels
        solve(ShardProblem.sample(seed), technique(f"shard/{asked.solver}")(), Budget(5, 200))
    rows, paths = [], {name: asked.folder / f"{name}.json.gz" for name in wanted}
    for name, path in paths.items():
        rows.append(row := measure(path, known[name], asked.solver, asked.share, asked.seed))
        print(f"{name}: {row['cost']:,} (best published {row['best_published']:,.0f}, ratio {row['ratio']:.4f}), bound {row['bound']:,.0f}, "
              f"gap {row['gap']:.2%}, {row['cpu_s']:.0f} CPU-s of two threads", file=sys.stderr, flush=True)
        about = provenance.facts(asked, [asked.seed], dict(list(paths.items())[: len(rows)]))
        provenance.publish(asked.json, {"about": about, "cores": CORES, "clock": "CPU seconds of the process over two threads", "rows": rows,
                                        "summary": summary(rows)})
    claimed(rows)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
