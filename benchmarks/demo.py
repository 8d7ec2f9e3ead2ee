"""`fourfold demo` as a newcomer gets it: several seeds, on an idle machine and beside a busy neighbour, each run verified in a fresh process.

    python benchmarks/demo.py [--seeds 0,1,2,3,4] [--conditions idle,busy] [--runs idle-0,busy-0] [--work DIR]

Writes benchmarks/results/demo.json: of every run the stated and the verified relative energy of the answer, quality, agreement, wall seconds in all
and to the first measured figure, host and load; medians and ranges over the runs; and demo-front.json, the front of the first run that README's
picture shows. A finished run is kept: the same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

import provenance  # noqa: E402

BARS = {"energy_median": 0.05, "energy_worst": 0.09, "wall_s": 600.0, "first_s": 120.0}


def main() -> int:
    """Run what is missing, write the results, print the table."""
    import harness

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--conditions", default="idle,busy")
    parser.add_argument("--runs", help="condition-seed, …: these alone, in this order, in place of all seeds under all conditions")
    parser.add_argument("--work", type=Path, default=Path("fourfold-bench/demo"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "demo.json")
    args = parser.parse_args()
    rows = []
    wanted = args.runs or ",".join(f"{condition}-{seed}" for condition in args.conditions.split(",") for seed in args.seeds.split(","))
    for condition, seed in (one.split("-") for one in wanted.split(",")):
        rows.append(once(args.work.resolve(), int(seed), condition))
        print(line(rows[-1]), flush=True)
    data = {"bars": BARS, "summary": summary(rows), "runs": rows}
    seeds = ",".join(sorted({str(row["seed"]) for row in rows}))
    about = harness.facts(argparse.Namespace(**{**vars(args), "budget": "8min", "quick": False, "seed": seeds}), {})
    harness.publish(args.out.stem, {"about": about, **data}, args.out.parent)
    reports = {run: args.work.resolve() / run / "cheap" / "report.json" for run in wanted.split(",")}
    first = next((run for run, path in reports.items() if path.is_file()), None)     # a run kept from elsewhere may be its row alone
    if first is not None:
        report = json.loads(reports[first].read_text())
        harness.publish(f"{args.out.stem}-front", {"about": about, "run": first, "report": front(report)}, args.out.parent)
    print(json.dumps(data["summary"], indent=1))
    return 0


def once(work: Path, seed: int, condition: str) -> dict[str, Any]:
    """One run of the demo from nothing but the downloaded packages, and its verification; read back where it was done before."""
    folder = work / f"{condition}-{seed}"
    done = folder / "row.json"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    shared = work / "packages"
    shared.mkdir(parents=True, exist_ok=True)
    if not (folder / "packages").exists():
        (folder / "packages").symlink_to(shared)      # the download is the installation's, not the demo's
    with neighbour(condition == "busy"):
        began, first, lines = time.monotonic(), None, []
        with subprocess.Popen(
            [sys.executable, "-m", "fourfold", "demo", "--out", str(folder), "--seed", str(seed), "--progress", "plain"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as run:
            assert run.stdout is not None
            for text in run.stdout:
                lines.append(text)
                if first is None and "best so far" in text:
                    first = time.monotonic() - began
        wall = time.monotonic() - began
        (folder / "log.txt").write_text("".join(lines))
        if run.returncode not in (0, 3):
            raise SystemExit(f"the demo failed with {run.returncode}; see {folder / 'log.txt'}")
        checked = verified(folder) if run.returncode == 0 else {}
    from fourfold.host import here

    row = {"seed": seed, "condition": condition, "host": here().name, "load": provenance.load(), "wall_s": wall, "first_s": first, **read(folder),
           "verified": checked}
    done.write_text(json.dumps(row))
    return row


def front(report: dict[str, Any]) -> dict[str, Any]:
    """What README's picture and table need of a report: the front, without paths and commands of the machine that it was made on."""
    kept = ("schema", "created", "versions", "machine", "energy", "objective", "floor", "front", "best", "knee", "simple")
    whole = {key: report[key] for key in kept}
    keys = ("name", "how", "stage", "status", "search_quality", "test_quality", "agreement", "relative_energy", "relative_latency", "relative_memory")
    few = [{key: candidate[key] for key in keys} for candidate in report["candidates"]]
    return whole | {"data": {"test": report["data"]["test"], "metric": report["data"]["metric"]}, "candidates": few}


def read(folder: Path) -> dict[str, Any]:
    """What the report states of the answer."""
    report = json.loads((folder / "cheap" / "report.json").read_text())
    best = None if report["best"] is None else report["candidates"][report["best"]]
    keys = ("name", "how", "relative_energy", "test_quality", "agreement")
    return {"stated": None if best is None else {key: best[key] for key in keys}, "search_s": report["cost"]["wall_s"]}


def verified(folder: Path) -> dict[str, Any]:
    """`fourfold verify` on the unseen rows, in a process of its own: {name: measured interval}, and what it said."""
    told = subprocess.run(
        [sys.executable, "-m", "fourfold", "verify", str(folder / "cheap"), "--data", str(folder / "test.csv"), "--original",
         str(folder / "teacher"), "--json"],
        capture_output=True, text=True, check=False,
    )
    found = json.loads(told.stdout)
    return {"exit_code": told.returncode, "checks": found.get("checks", found)}


def energy(row: dict[str, Any]) -> float:
    """Relative energy of a run's answer as verified; 1 where nothing was chosen (the original stays)."""
    checks = row["verified"].get("checks", [])
    measured = next((c["measured"] for c in checks if isinstance(c, dict) and c["name"] == "energy" and c["measured"]), None)
    return float(measured["value"]) if measured else float(row["stated"]["relative_energy"]["value"]) if row["stated"] else 1.0


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of each figure, by condition and over all."""
    found: dict[str, Any] = {}
    for condition in [*dict.fromkeys(row["condition"] for row in rows), "all"]:
        some = [row for row in rows if condition in ("all", row["condition"])]
        figures = {
            "energy": [energy(row) for row in some], "wall_s": [row["wall_s"] for row in some], "first_s": [row["first_s"] or np.nan for row in some],
            "quality": [row["stated"]["test_quality"]["value"] for row in some if row["stated"]],
            "agreement": [row["stated"]["agreement"]["value"] for row in some if row["stated"] and row["stated"]["agreement"]],
        }
        found[condition] = {
            name: {"median": float(np.median(v)), "least": float(np.min(v)), "most": float(np.max(v)), "n": len(v)}
            for name, v in figures.items() if v
        }
    return found


def line(row: dict[str, Any]) -> str:
    """One run in words."""
    stated = row["stated"]["relative_energy"]["value"] if row["stated"] else float("nan")
    times = f"{row['wall_s']:.0f} s, first figure after {row['first_s'] or 0:.0f} s"
    who = row["stated"]["name"] if row["stated"] else "nothing chosen"
    return f"{row['condition']} seed {row['seed']}: stated {stated:.2%}, verified {energy(row):.2%}, {times} · {who}"


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """One process that keeps one core busy while the body runs, or none."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


if __name__ == "__main__":
    sys.exit(main())
