"""Where and when on a year of real grids: every policy, what time and place do alone, forecasts, the rolling horizon; and how the exact methods
scale.

    python benchmarks/place.py [--quick] [--european FILE.csv.gz]

writes results/place.json and prints its tables. Jobs are drawn (seeded), not traced: 2 to 24 h long, slack of 0, 12, 24 or 72 h, homes and powers at
random. Hours are those shipped with the package (8 US balancing areas, 2022); a second hourly file may be given. Times are of this machine.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import provenance

from fourfold.carbon.hourly import Hours, bundled, read_hours
from fourfold.decisions.carbon_aware import _compare, validate
from fourfold.decisions.carbon_aware.flow import Flow, size
from fourfold.decisions.carbon_aware.forecast import Forecast
from fourfold.decisions.carbon_aware.milp import Milp
from fourfold.decisions.carbon_aware.online import Online
from fourfold.decisions.carbon_aware.problem import Place
from fourfold.decisions.carbon_aware.successive_shortest_paths import SuccessiveShortestPaths
from fourfold.problem import Budget, solve
from fourfold.solvers.compare import compare

RESULT = Path(__file__).parent / "results/place.json"
SLACKS = (0, 12, 24, 72)


def year(hours: Hours) -> tuple[tuple[str, ...], np.ndarray]:
    """Sites and intensities [R, T], unlikely values dropped and all gaps filled linearly: a benchmark needs every hour, a plan does not."""
    values = hours.values.copy()
    for row in values:
        gaps = np.isnan(row)
        row[gaps] = np.interp(np.flatnonzero(gaps), np.flatnonzero(~gaps), row[~gaps])
    return hours.names, values


def jobs(sites: tuple[str, ...], values: np.ndarray, count: int, *, capacity: float = np.inf, slacks: tuple[int, ...] = SLACKS,
         interruptible: Any = True, total: int | None = None, seed: int = 0) -> Place:
    """`count` jobs over `total` hours."""
    dice = np.random.default_rng(seed)
    values = values[:, :total]
    length = dice.integers(2, 25, count)
    slack = dice.choice(slacks, count)
    release = (dice.random(count) * (values.shape[1] - length - slack + 1)).astype(int)
    return Place(sites, values, tuple(f"j{j}" for j in range(count)), dice.choice([2.6, 5.2, 10.4], count), length, release, release + length + slack,
                 dice.integers(0, len(sites), count), pue=1.1, capacity=capacity, interruptible=interruptible)


def timed(call: Any) -> tuple[Any, dict[str, float]]:
    """The result, and wall seconds, processor seconds, and the peak of memory so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = call()
    return made, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
                  "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def policies(name: str, sites: tuple[str, ...], values: np.ndarray, count: int, capacity: float, draws: int) -> dict[str, Any]:
    """Every policy with its saving and share of the oracle's, the two ablations, and each region left out."""
    problem = jobs(sites, values, count, capacity=capacity)
    best, took = timed(lambda: solve(problem, SuccessiveShortestPaths()))
    rows = _compare.policies(problem, best, error=0.1, draws=draws, seed=0, budget=60, prices=False)
    mine = {**_compare.row(problem, "plan", "This plan (exact, within capacity)", best.answer, "plan", prices=False), **took, "gap": best.gap}
    cuts = _compare.ablations(problem, budget=60, seed=0, prices=False)
    out = _compare.without(problem, best, limit=300, budget=60, seed=0, prices=False)
    scored = _compare.scored([*rows, mine, *cuts, *out])
    print(f"\n{name}: {count} jobs, {len(sites)} sites, {values.shape[1]} hours, capacity {capacity:g} each; mean g/kWh "
          + ", ".join(f"{site} {mean:.0f}" for site, mean in zip(sites, values.mean(axis=1), strict=True)))
    for row in scored:
        show = "–" if row["value"] is None else f"{row['value']:12.1f} kg {100 * row['saving']:7.2f} % {100 * (row['share'] or 0):7.2f} % of oracle"
        print(f"  {row['title']:<44} {show}  delay {row['delay_h'] or 0:5.1f} h  peak {row['peak'] or 0:4d}  "
              + ("" if row["capacity_kept"] else f"capacity broken {row['why']}"))
    return {"name": name, "jobs": count, "capacity": capacity, "sites": list(sites), "hours": values.shape[1],
            "mean_g_kwh": values.mean(axis=1).tolist(), "rows": scored}


def regrets(sites: tuple[str, ...], values: np.ndarray, count: int, draws: int) -> list[dict[str, Any]]:
    """What not knowing the hours costs, by size of error, with and without shrinking; and the rolling horizon."""
    rows = []
    total = min(672, values.shape[1])
    for capacity in (10, 3):
        problem = jobs(sites, values[:, 2880:], count, capacity=capacity, total=total)
        best = solve(problem, SuccessiveShortestPaths()).cost
        for error in (0.05, 0.1, 0.2, 0.4):
            for shrink in (True, False):
                made = [row["cost"] / best - 1 for row in compare(problem, {"forecast": Forecast(error, shrink=shrink)}, seeds=range(draws)).rows]
                rows.append({"policy": "forecast", "capacity": capacity, "error": error, "shrunk": shrink, "mean": float(np.mean(made)),
                             "low": min(made), "high": max(made), "draws": draws})
        for error in (0.1, 0.2):
            found, took = timed(lambda problem=problem, error=error: solve(problem, Online(error=error, every=6)))
            rows.append({"policy": "online", "capacity": capacity, "error": error, "shrunk": True, "mean": found.cost / best - 1, "low": None,
                         "high": None, "draws": 1, "replans": found.evaluations, **took})
    print(f"\nRegret against knowing all ({count} jobs, {total} hours)")
    for row in rows:
        span = "" if row["low"] is None else f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        kind = "shrunk" if row["shrunk"] else "as it is"
        print(f"  {row['policy']:<9} capacity {row['capacity']:>2}  error {100 * row['error']:>3.0f} %  {kind:<9}"
              f" {100 * row['mean']:8.2f} % {span}")
    return rows


def scaling(sites: tuple[str, ...], values: np.ndarray, quick: bool) -> list[dict[str, Any]]:
    """Solve, certify and verify: sizes up to 10,000 jobs × 8 sites × a year, from no contention to all capacity fought over."""
    solve(jobs(sites, values, 20, capacity=1, total=400), SuccessiveShortestPaths())    # compile
    cases: list[tuple[str, int, float, tuple[int, ...], Any]] = [("paths", 1000, 1, SLACKS, True), ("highs", 300, 1, SLACKS, True)]
    if not quick:
        cases += [("highs", 1000, 1, SLACKS, True), ("highs", 1000, 1000, SLACKS, True), ("paths", 3000, 2, SLACKS, True),
                  ("paths", 10_000, 1000, SLACKS, True), ("paths", 10_000, 20, SLACKS, True), ("paths", 10_000, 10, SLACKS, True),
                  ("paths", 10_000, 5, SLACKS, True), ("paths", 10_000, 3, SLACKS, True), ("paths", 300, 1, (8000,), True),
                  ("paths", 1000, 1, (1000,), True), ("milp", 300, 1, SLACKS, False), ("milp", 1000, 3, SLACKS, False),
                  ("milp", 10_000, 20, SLACKS, False), ("milp", 10_000, 5, SLACKS, False)]
    rows = []
    print("\nScaling, a year of hours" + " " * 20 + "size     gap   solve s (cpu)  certify+verify s  MiB")
    for kind, count, capacity, slacks, interruptible in cases:
        problem = jobs(sites, values, count, capacity=capacity, slacks=slacks, interruptible=interruptible)
        solver = {"paths": SuccessiveShortestPaths, "highs": Flow, "milp": Milp}[kind]()
        row: dict[str, Any] = {"technique": kind, "jobs": count, "sites": len(sites), "hours": values.shape[1], "capacity": capacity, "slack": slacks,
                               "pausing": interruptible, "variables": size(problem)}
        rows.append(row)
        try:
            found, took = timed(lambda solver=solver, problem=problem: solve(problem, solver, Budget(60)))
            proof, checked = timed(lambda found=found, problem=problem: validate.certify(problem, found.answer, found.evidence["mu"]))
            wrong, verified = timed(lambda found=found, proof=proof, problem=problem: validate.verify(problem, found.answer, proof))
        except ValueError as error:
            row["error"] = str(error)
            print(f"  {kind:<6} {count:>6} jobs, capacity {capacity:>5g}: {error}")
            continue
        assert not wrong, wrong
        row |= {"value": found.cost, "bound": found.bound, "gap": found.gap, "certified_gap": proof.gap, "note": found.note, **took,
                "certify_s": checked["wall_s"], "verify_s": verified["wall_s"]}
        print(f"  {kind:<6} {count:>6} jobs, capacity {capacity:>5g}, slack {max(slacks):>4} {row['variables']:>12,} {proof.gap:8.1e}"
              f" {took['wall_s']:8.1f} ({took['cpu_s']:.1f}) {checked['wall_s'] + verified['wall_s']:12.1f} {took['peak_mib']:10.0f}"
              f"  {found.note}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--european", type=Path, help="a second hourly file")
    given = parser.parse_args()
    sites, values = year(bundled("eia-2022", suspects="drop"))
    draws = 2 if given.quick else 5
    tables = [policies("8 US balancing areas, 2022", sites, values, 300 if given.quick else 2000, 10, draws)]
    if not given.quick:
        tables.append(policies("the same, crowded", sites, values, 10_000, 5, 2))
        few = [r for r, name in enumerate(sites) if name != "BPAT"]
        tables.append(policies("without the hydro region", tuple(sites[r] for r in few), values[few], 2000, 10, draws))
    if given.european and given.european.exists():
        others, hours = year(read_hours(given.european, signal="average", suspects="drop"))
        tables.append(policies(given.european.name, others, hours, 300 if given.quick else 2000, 10, draws))
    document = {"about": provenance.facts(given, range(draws)), "what": __doc__, "policies": tables, "regrets": regrets(sites, values, 150, draws),
                "scaling": scaling(sites, values, given.quick)}
    if not given.quick:
        provenance.publish(RESULT, document)
        print(f"\nWrote {RESULT}")


if __name__ == "__main__":
    main()
