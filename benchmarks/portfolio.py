"""What `auto` knows of GO before it is asked: GO with polish beside annealing without it, in equal time on one core, on training graphs.

    python benchmarks/portfolio.py [--seconds 4] [--cases "cnn 150 101" …] [--quick] [--out FILE]

The training graphs are made by code (`fourfold/zoo/graphs.py`) with seeds and sizes that no graph of `benchmarks/schedule.py` has, where `auto` is
ranked: half of them training steps, on 2 and 4 devices. No graph by its hash is in both sets; the script refuses to write otherwise, and
`tests/test_schedule_evidence.py` looks again. It writes `fourfold/decisions/schedule/evidence.json`: by class of size the geometric mean of the cost
of GO's polished plan over annealing's, every row, and the provenance.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import provenance
import schedule

from fourfold.decisions.schedule import auto
from fourfold.decisions.schedule.problem import Schedule
from fourfold.machine import Machine
from fourfold.measure import bootstrap
from fourfold.problem import Budget, solve
from fourfold.solvers.compare import ENDLESS
from fourfold.zoo.graphs import FAMILIES, make

SEED = 101                                                             # of the first training graph; benchmarks/schedule.py makes its own with seed 0
SIZES = ((150, 0.375), (700, 0.625), (2000, 1.0))                      # nodes asked for, share of the seconds
PAIR = ("go+polish", "anneal")


class CpuBudget(Budget):
    """A budget whose seconds are this process's processor time, so that what else the machine does costs no solver anything."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds, ENDLESS)
        self._used = time.process_time()

    def restart(self) -> None:
        super().restart()
        self._used = time.process_time()

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - (time.process_time() - self._used))


def training() -> Iterator[tuple[str, int, int, bool, int, float]]:
    """(family, nodes, seed, training step, devices, share of the seconds) of each training graph."""
    for which, (nodes, share) in enumerate(SIZES):
        for number, family in enumerate(FAMILIES):
            if which and number % 2 != which % 2:                      # all families in the smallest class, half of them in each of the others
                continue
            yield family, nodes, SEED + which, (number + which) % 2 == 0, (2, 4)[number // 2 % 2], share


def asked(problem: Schedule, solver: str, seconds: float) -> float | None:
    """The cost of the solver's checked plan after so many seconds of processor time; None where it has none."""
    try:
        return solve(problem, schedule.made(solver), CpuBudget(seconds), SEED).cost
    except schedule.FAULTS:
        return None


def ranked() -> set[str]:
    """Hashes (their first 16 digits) of the graphs on which `benchmarks/schedule.py` ranked the solvers."""
    return {row["graph"] for row in json.loads((Path(schedule.__file__).parent / "results" / "schedule.json").read_text(encoding="utf-8"))["rows"]}


def classes(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Class of size → {"ratio": GO's cost over annealing's, geometric mean, with its 90 % interval "low", "high" over the "cases"}."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["go+polish"] and row["anneal"]:
            found.setdefault(str(auto.size(row["nodes"])), []).append(row["go+polish"] / row["anneal"])
    told: dict[str, dict[str, float]] = {}
    for key, ratios in sorted(found.items(), key=lambda item: int(item[0])):
        logs = [math.log(ratio) for ratio in ratios]
        low, high = bootstrap.interval(bootstrap.resampled(lambda drawn: drawn.mean(axis=1), logs, resamples=10_000), 0.9)
        told[key] = {"ratio": math.exp(statistics.fmean(logs)), "low": math.exp(low), "high": math.exp(high), "cases": len(ratios)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of processor time, of each solver on the largest graphs; a share on others")
    parser.add_argument("--cases", nargs="*", default=[], help='"family nodes seed"; all where left out')
    parser.add_argument("--quick", action="store_true", help="two cases, a second each; writes nothing")
    parser.add_argument("--out", type=Path, default=Path(auto.__file__).with_name("evidence.json"))
    arguments = parser.parse_args()
    seconds = 1.0 if arguments.quick else arguments.seconds
    schedule.warm()
    rows: list[dict[str, Any]] = []
    for family, nodes, seed, train, devices, share in list(training())[: 2 if arguments.quick else None]:
        name = f"{family} {nodes} {seed}"
        if arguments.cases and name not in arguments.cases:
            continue
        problem = Schedule(make(family, nodes, seed, train), Machine.read(f"p100x{devices}"))
        costs = {solver: asked(problem, solver, share * seconds) for solver in PAIR}
        rows.append({"case": name, "graph": problem.graph.hash, "nodes": len(problem.graph), "devices": devices, "train": train,
                     "seconds": share * seconds, **costs})
        print(f"{name:24}{len(problem.graph):7}{devices:3}{'  train' if train else '  infer'}  "
              + "  ".join(f"{solver} {1e3 * cost:.3f} ms" if cost else f"{solver} –" for solver, cost in costs.items()), flush=True)
    found = classes(rows)
    print(*(f"{key}: {cell['ratio']:.4f} [{cell['low']:.4f}, {cell['high']:.4f}] over {cell['cases']}" for key, cell in found.items()), sep="\n")
    both = ranked() & {row["graph"][:16] for row in rows}
    if both:
        raise SystemExit(f"{len(both)} training graphs are among those that auto is ranked on.\nGive them other seeds.")
    if not (arguments.quick or arguments.cases):
        about = provenance.facts(arguments, sorted({seed for _, _, seed, *_ in training()}))
        provenance.publish(arguments.out, {"about": about, "classes": found, "rows": rows})


if __name__ == "__main__":
    main()
