"""Do the stated 90 % intervals hold? Artefacts of all kinds, each measured again by `fourfold verify`, a process each, on rows nobody has seen.

    python benchmarks/verify.py [--budget 4min] [--case NAME MODEL DATA ...] [--fresh 2] [--out benchmarks/results/verify.json]

For every case (a model and its labelled rows; three small ones are made where none is given) two fifths of the rows are put aside. The search runs
on the others, and points of all kinds are saved: single networks by back end and precision, cascades of two and three, static students, bags
of words, the original in other precisions. Each is verified on every fresh part. A stated interval counts as covering where the second measurement
lies in the 90 % interval that both errors leave (`fourfold.jobs.verify.outside`); below 85 % the exit code is 1.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import provenance

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).parent.parent
FIGURES = ("quality", "agreement", "energy", "latency")
BAR = 0.85


def kind(point: Any) -> str:
    """What an artefact is: how many members, of what sort, run by what."""
    parts = point.assembly.parts
    if len(parts) > 1:
        return f"cascade of {len(parts)}"
    return f"{point.candidate.kind.replace('_', ' ')}, {point.setting.engine} {point.setting.precision}"


def made(folder: Path) -> list[tuple[str, str, Path]]:
    """Three small cases, (name, model, data): short texts, long ones, and few rows. Trained here; see docs/tour.py."""
    sys.path.insert(0, str(ROOT / "docs"))
    import tour

    model = tour.trained(folder / "model")
    cases = []
    for name, rows, joined in (("short", 4000, 1), ("long", 3000, 3), ("few", 1500, 1)):
        file = folder / f"{name}.csv"
        texts = tour.reviews(rows * joined, seed=20 + rows)
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["text", "label"])
            for at in range(0, len(texts), joined):                      # the label is that of most reviews of a row
                some = texts[at : at + joined]
                writer.writerow([" ".join(text for text, _ in some), ["bad", "good"][2 * sum(label for _, label in some) > len(some)]])
        cases.append((name, str(model), file))
    return cases


def parted(data: Path, folder: Path, fresh: int, seed: int) -> tuple[Path, list[Path]]:
    """(rows to optimise on, `fresh` parts that it never sees)."""
    with data.open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    order = np.random.default_rng(seed).permutation(len(rows))
    aside, files = int(0.4 * len(rows)), []
    for name, some in [("known", order[aside:]), *((f"fresh-{k}", part) for k, part in enumerate(np.array_split(order[:aside], fresh)))]:
        path = folder / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([head, *(rows[i] for i in some)])
        files.append(path)
    return files[0], files[1:]


def artefacts(model: str, data: Path, folder: Path, budget: str, seed: int, most: int) -> list[dict[str, Any]]:
    """Saves at most `most` proved points, one of each kind first; {"kind", "name", "folder"} of each."""
    import fourfold
    from fourfold.jobs.optimize.front import Choice

    # without `out`: beside an artefact only the front's engine files are kept
    front = fourfold.optimize(model, data, floor=0.9, budget=budget, seed=seed, progress="plain")
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for point in front.job.points:
        if point.test is not None and point.timing is not None and any(row["name"] == point.name for row in front.report_data["candidates"]):
            by_kind[kind(point)].append(point)
    queue = [point for rank in range(most) for points in by_kind.values() for point in points[rank : rank + 1]][:most]
    saved = []
    for number, point in enumerate(queue):
        path = Choice(point, front.job, front.report_data).save(folder / f"artefact-{number}")
        saved.append({"kind": kind(point), "name": point.name, "folder": str(path)})
    return saved


def verified(folder: str, data: Path, model: str, seconds: float) -> dict[str, Any]:
    """What `fourfold verify --json` says in a fresh process. Raises RuntimeError where it could not."""
    command = [sys.executable, "-m", "fourfold", "verify", folder, "--data", str(data), "--original", model, "--budget", f"{seconds}s", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in (0, 3, 4):
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(done.stdout)


def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Coverage by figure and in all, and the standard deviation of log(measured / stated) of the costs."""
    held: dict[str, list[bool]] = defaultdict(list)
    apart = []
    for check in (check for row in rows for check in row["checks"] if check["name"] in FIGURES and check["verdict"] != "not checked"):
        held[check["name"]].append(check["by"] == 0)
        if check["name"] in ("energy", "latency"):
            apart.append(math.log(check["measured"]["value"] / check["stated"]["value"]))
    every = [one for some in held.values() for one in some]
    return {
        "coverage": {name: {"held": sum(some), "of": len(some), "share": sum(some) / len(some)} for name, some in held.items()},
        "all": {"held": sum(every), "of": len(every), "share": sum(every) / len(every) if every else None},
        "spread_of_costs": float(np.std(apart)) if apart else None, "bias_of_costs": float(np.mean(apart)) if apart else None,
    }  # fmt: skip


def main() -> int:
    """Run the cases, print and write what was counted; 1 where coverage is below the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, action="append", metavar=("NAME", "MODEL", "DATA"))
    parser.add_argument("--budget", default="4min")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each race")
    parser.add_argument("--fresh", type=int, default=2, help="parts of fresh rows a case")
    parser.add_argument("--most", type=int, default=10, help="artefacts a case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "verify.json")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="fourfold-verify-"))
    work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, model, data in [(n, m, Path(d)) for n, m, d in given.case] if given.case else made(work):
        folder = work / name
        folder.mkdir(exist_ok=True)
        known, fresh = parted(data, folder, given.fresh, given.seed)
        for one in artefacts(model, known, folder, given.budget, given.seed, given.most):
            for part in fresh:
                found = verified(one["folder"], part, model, given.seconds)
                what = {"case": name, "kind": one["kind"], "name": one["name"], "part": part.stem}
                rows.append({**what, "rows": found["rows"], "checks": found["checks"]})
                wrong = ", ".join(f"{c['name']} {c['by']:+.3f}" for c in found["checks"] if c["name"] in FIGURES and c["by"])
                print(f"{name:8} {part.stem:8} {one['kind']:34} {wrong or 'holds'}", flush=True)
    told = counted(rows)
    document = {
        "about": provenance.facts(given, [given.seed]), "budget": given.budget, "seed": given.seed,
        "kinds": sorted({row["kind"] for row in rows}), **told, "runs": rows,
    }  # fmt: skip
    provenance.publish(given.out, document)
    print(json.dumps({key: told[key] for key in ("coverage", "all", "spread_of_costs", "bias_of_costs")}, indent=1))
    return 0 if rows and told["all"]["share"] >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
