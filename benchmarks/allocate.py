"""Packers of `allocate`: the public instances, generated and perfect packings at equal time, large ones, and the ablation of learned backtracking.

python benchmarks/allocate.py DATA [--quick] [--parts instances,generated,perfect,large,ablation] [--seconds 10] [--seeds 3]
                              [--solvers a,b] [--omni PYTHON] [--instances 1000] [--peers 1000] [--minutes N] [--work DIR]

DATA: folder with NAME.CAPACITY.csv and large/NAME.csv. A part that is measured replaces that part of results/allocate.json. Seconds are CPU
seconds of the process, all threads, after a first call that compiles, so that other work on the machine does not count. --omni: an interpreter
that has omnimalloc 1.0.0. The part `generated` can be cut short (--minutes) and goes on when it is called again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import allocate_generated
import numpy as np
import provenance
from allocate_generated import CpuBudget

from fourfold.decisions.allocate import _backtrack as backtrack
from fourfold.decisions.allocate import telamalloc
from fourfold.decisions.allocate._form import packing
from fourfold.decisions.allocate._sources import of_file
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.problem import Allocate
from fourfold.errors import Infeasible
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.packings import Lives, carved, perfect, scattered

RESULTS = Path(__file__).parent / "results" / "allocate.json"
PARTS = ("instances", "generated", "perfect", "large", "ablation")
_NODES = 1 << 40                                                        # evaluations: the clock ends a run


def buffers(lives: Lives) -> Buffers:
    lower, upper, size, capacity = lives
    return Buffers(tuple(map(str, range(len(size)))), lower, upper, size, banks=np.array([capacity]))


def ask(name: str, problem: Allocate, seconds: float, seed: int) -> dict[str, Any]:
    """One run: whether it packed within the capacity, or proved that nothing does; height over capacity (or bound), CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    state, scale = "packed", problem.capacity or problem.bound()
    try:
        found = solve(problem, technique(f"allocate/{name}")(), CpuBudget(seconds, _NODES), seed)
        height, evaluations = found.cost, found.evaluations
    except Infeasible as none:
        state = "refuted" if "No packing exists" in str(none) else "unknown"
        front = getattr(none, "front", None)
        height, evaluations = (problem.cost(np.asarray(front)) if front is not None else None), None
    return {"solver": name, "seed": seed, "state": state, "ratio": height / scale if height is not None else None, "evaluations": evaluations,
            "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _named(options: argparse.Namespace, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if options.solvers is None or name in options.solvers.split(","))


def warm(names: tuple[str, ...]) -> dict[str, float]:
    """CPU seconds of each packer's first call on a small instance in this process: compiling, or reading the compiled code."""
    problem = Allocate(buffers(perfect(0, 40)))
    return {name: ask(name, problem, 60.0, 0)["cpu"] for name in names}


def cold(names: tuple[str, ...]) -> dict[str, float]:
    """CPU seconds of a fresh process with an empty cache of compiled code that packs one small instance."""
    script = ("import sys, time; sys.path.insert(0, %r); import allocate; t = time.process_time(); "
              "allocate.warm((%r,)); print(time.process_time() - t)")
    found = {}
    for name in names:
        import tempfile

        with tempfile.TemporaryDirectory() as empty:
            import os

            made = subprocess.run([sys.executable, "-c", script % (str(Path(__file__).parent), name)], capture_output=True, text=True, check=True,
                                  env={**os.environ, "NUMBA_CACHE_DIR": empty})
        found[name] = float(made.stdout.split()[-1])
    return found


def instances(options: argparse.Namespace) -> dict[str, Any]:
    names = _named(options, ("minimalloc", "exact", "portfolio"))
    files = sorted(options.data.glob("*.csv"))
    first, rows = warm(names), []
    for path in files[: 2 if options.quick else None]:
        label, capacity = path.name.split(".")[:2]
        problem = Allocate(of_file(path, [int(capacity)]))
        for name in names:
            for seed in range(options.seeds if name == "minimalloc" else 1):
                rows.append({"instance": label, "buffers": len(problem.buffers), **ask(name, problem, options.seconds, seed)})
                print(rows[-1], flush=True)
    return {"warm": first, "cold": cold(names[:1]), "rows": rows, "sha": {path.name: path for path in files}}


def generated(options: argparse.Namespace) -> dict[str, Any]:
    """1,000 generated instances, ours beside CP-SAT and omnimalloc (`allocate_generated.py`)."""
    if options.quick:
        options.instances, options.peers, options.seconds = 8, 4, 2.0
    return allocate_generated.measured(options)


def perfects(options: argparse.Namespace) -> dict[str, Any]:
    """Rectangles cut at random: without slack. Cut times on a coarse grid (two for three buffers) or anywhere."""
    names = _named(options, ("minimalloc", "portfolio"))
    first, rows = warm(names), []
    for i in range(2 if options.quick else options.count):
        count, fine = (100, 150, 200, 300, 400)[i % 5], i // 5 % 2 == 1
        problem = Allocate(buffers(perfect(i, count, 1 << 20 if fine else 0)))
        for name in names:
            rows.append({"instance": f"perfect-{count}-{'anywhere' if fine else 'grid'}-{i}", "buffers": count,
                         **ask(name, problem, options.seconds, 0)})
        print(rows[-2:], flush=True)
    return {"warm": first, "rows": rows}


def large(options: argparse.Namespace) -> dict[str, Any]:
    names = _named(options, ("greedy", "local_search", "portfolio"))
    first, rows = warm(names), []
    for path in sorted((options.data / "large").glob("*.csv")):
        problem = Allocate(of_file(path))
        if options.quick and len(problem.buffers) > 5000:
            continue
        for name in names:
            rows.append({"instance": path.stem, "buffers": len(problem.buffers), **ask(name, problem, options.seconds, 0)})
            print(rows[-1], flush=True)
    return {"warm": first, "rows": rows}


def ablation(options: argparse.Namespace) -> dict[str, Any]:
    """The backtrack target by the fixed rule, at random, and learned: steps and seconds on packings that training did not see, by seed."""
    cases = [carved(1000 + i, 100 + 20 * (i % 6), 0.97 + 0.01 * (i % 3)) for i in range(6)] + [scattered(1000 + i, 150, 1.0) for i in range(3)]
    cases += [perfect(1000 + i, 40) for i in range(3)]
    rows, stop = [], np.zeros(1, np.int64)
    for policy, name in ((backtrack.FIXED, "fixed rule"), (backtrack.RANDOM, "random"), (backtrack.LEARNED, "learned")):
        telamalloc.pack(telamalloc.PackingRounds(*_form(perfect(0, 20)), 0), Budget(60, 20), stop, policy)
        for seed in range(2 if options.quick else max(10, options.seeds)):
            for i, lives in enumerate(cases):
                rounds, cpu = telamalloc.PackingRounds(*_form(lives), seed), time.process_time()
                found = telamalloc.pack(rounds, Budget(120, 30_000), stop, policy)
                rows.append({"instance": i, "seed": seed, "policy": name, "state": "unknown" if found is None else "packed", "steps": rounds.steps,
                             "dead_ends": rounds.dead, "cpu": time.process_time() - cpu})
        mine = [row for row in rows if row["policy"] == name]
        print(name, f"packed {sum(row['state'] == 'packed' for row in mine)} of {len(mine)}, median steps",
              statistics.median(row["steps"] for row in mine), "mean", round(statistics.mean(row["steps"] for row in mine)), flush=True)
    return {"limit": 30_000, "rows": rows}


def _form(lives: Lives) -> tuple[Any, int]:
    rectangles = buffers(lives).parts()
    return packing(rectangles)[0], int(rectangles.room[0])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("data", type=Path)
    words.add_argument("--parts", default=",".join(PARTS))
    words.add_argument("--seconds", type=float, default=10.0)
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--count", type=int, default=30, help="perfect packings")
    words.add_argument("--solvers", help="of those that a part asks, only these")
    words.add_argument("--omni", type=Path)
    words.add_argument("--instances", type=int, default=allocate_generated.COUNT, help="generated ones, for ours")
    words.add_argument("--peers", type=int, default=allocate_generated.COUNT, help="the first so many of them, for the peers")
    words.add_argument("--minutes", type=float, help="end the part `generated` after so many")
    words.add_argument("--work", type=Path, default=Path(__file__).parent / "work" / "allocate")
    words.add_argument("--quick", action="store_true")
    words.add_argument("--ablation", action="store_true", help="only the ablation")
    words.add_argument("--out", type=Path, default=RESULTS)
    options = words.parse_args()
    asked = ["ablation"] if options.ablation else options.parts.split(",")
    known = {"instances": instances, "generated": generated, "perfect": perfects, "large": large, "ablation": ablation}
    out = options.out.with_suffix(".quick.json") if options.quick else options.out
    data = json.loads(out.read_text()) if out.exists() else {"parts": {}}
    for part in asked:
        measured = known[part](options)
        files = measured.pop("sha", {})
        measured["about"] = provenance.facts(options, list(range(options.seeds)), files)
        data["parts"][part] = measured
        data["about"] = measured["about"]
        provenance.publish(out, data)


if __name__ == "__main__":
    main()
