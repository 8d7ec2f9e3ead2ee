"""What all benchmarks share: where things lie, the final race, verdicts on it, tables, and the JSON beside them.

Import this first: it settles how threads wait, before any library that starts them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import argparse
import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import provenance

if TYPE_CHECKING:
    from fourfold.jobs.optimize.final_race import Point
    from fourfold.jobs.optimize.state import Job

HOME = Path(__file__).parent
CLAIMS = HOME.parent / "claims" / "results"

Rows = list[dict[str, Any]]


def arguments(name: str, budget: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"benchmarks/{name}.py", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--budget", default=budget, help="time of the search")
    parser.add_argument("--work", type=Path, default=HOME / "work", help="where weights, data and the diary are kept; a second call resumes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="little data and few steps, only to see that it runs; writes no published figure")
    return parser


def results(args: argparse.Namespace) -> Path:
    """Where the JSON goes: beside the benchmarks, or with --quick into the work folder, because those figures mean nothing."""
    return args.work / "quick-results" if args.quick else HOME / "results"


# ----------------------------------------------------------------------------------------------------------------- facts


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def facts(args: argparse.Namespace, files: Mapping[str, Path]) -> dict[str, Any]:
    """Date, commit, host, versions, seeds, options, load, and the sha256 of what was read."""
    seeds = [int(word) for word in str(args.seed).split(",")]
    return provenance.facts(args, seeds, files) | {"seed": args.seed}


def sample_csv(source: Path, target: Path, rows: int, seed: int = 0) -> Path:
    """A seeded sample of the rows of a CSV file with a header."""
    with source.open(newline="", encoding="utf-8") as file:
        head, *body = list(csv.reader(file))
    picked = np.random.default_rng(seed).permutation(len(body))[:rows]
    write_csv(target, head, [body[i] for i in picked])
    return target


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Written aside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    aside.replace(path)
    return path


def reviews(args: argparse.Namespace) -> tuple[Path, Path, Path]:
    """Folder of MiniLM's weights, and the CSV files of the rated snippets to train and to test on; small samples of these with --quick."""
    from fourfold.jobs import demo

    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    base = demo.encoder(work)
    train, test = demo.snippets(work)
    if args.quick:
        train, test = sample_csv(train, work / "quick" / "train.csv", 1200), sample_csv(test, work / "quick" / "test.csv", 300)
    return base, train, test


# ---------------------------------------------------------------------------------------------------------------- points


def structural(point: Point) -> bool:
    """Whether nothing but the structure differs from the original: every network in it is PyTorch fp32, and there is nothing but networks."""
    return all((p.setting.engine, p.setting.precision) == ("torch", "fp32") and p.words is None for p in point.assembly.parts)


def front_of(job: Job, points: Sequence[Point], most: int) -> list[Point]:
    """The points that no other beats in raced cost and search quality; thinned evenly in log cost where they are more than `most`."""
    from fourfold.solvers.bayes import dominated

    known = [p for p in points if p.status != "rejected" and p.search is not None]
    gone = dominated([(job.cost(p), -p.search.value) for p in known])  # type: ignore[union-attr]
    kept = sorted((p for p, lost in zip(known, gone, strict=True) if not lost), key=job.cost)
    while len(kept) > most:
        gaps = [np.log(job.cost(kept[i + 1]) / max(1e-9, job.cost(kept[i - 1]))) for i in range(1, len(kept) - 1)]
        kept.pop(1 + int(np.argmin(gaps)))
    return kept


def original(job: Job) -> Point:
    """The original at its own best settings, as a point."""
    from fourfold.jobs.optimize.final_race import Point
    from fourfold.measure.quality import Relative
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.combine import Candidate
    from fourfold.runtime.artefact import Assembly, Part

    part = Part("original", job.subject, job.subject.module, None, job.base_setting, signature=signature(job))
    candidate = Candidate("original", "original", Recipe(()), {}, 1.0, 2, module=job.subject.module, root=True)
    one = Relative(1.0, 1.0, 1.0, len(job.base_search))
    return Point("original · torch fp32", candidate, Assembly("original", [part]), job.base_search, search=one)


def signature(job: Job) -> Any:
    """How the original is called, read off the search split."""
    from fourfold.engines.base import Signature
    from fourfold.engines.select import sample_batches

    return Signature.of(job.subject.inputs, sample_batches(few(job, job.splits.search), job.work.seed))


def few(job: Job, examples: Any) -> Any:
    """All rows, or a few where each answer is tokens × vocabulary."""
    return examples.take(np.arange(min(16, len(examples)))) if job.task.kind == "causal_lm" else examples


def reopened(job: Job) -> None:
    """A journal for what is judged after the search, which has closed its own."""
    import tempfile

    from fourfold.errors import InputError
    from fourfold.journal import Journal

    try:
        job.journal.note("judged again")
    except InputError:
        job.journal = Journal(tempfile.mkdtemp(prefix="fourfold-judged-"), {"of": job.journal.id})


def proved(job: Job, points: Sequence[Point], floor: float, label: str) -> list[Point]:
    """What a search at `floor` would call safe among `points` (of one model each) and cascades of them, cheapest first by the search split: families
    in orders fixed there, tested on the unseen split with 5 % error in all. Costs are not yet those of the final race."""
    from dataclasses import replace

    from fourfold.jobs.optimize.cascades import cascades
    from fourfold.jobs.optimize.significance import settled

    reopened(job)
    asked = job.work
    job.work = replace(asked, floor=floor)
    try:
        families = cascades(job, points, f"{label}, floor {floor:.0%}, cascade")
        winners, _ = settled(job, list(points), families, [])
    finally:
        job.work = asked
    return sorted(winners, key=job.cost)


def records(job: Job, point: Point) -> np.ndarray:
    """A point's records on the unseen split; of a cascade from its members', since a gate looks at nothing else."""
    from fourfold.gate import assembled, owners
    from fourfold.jobs.optimize.significance import records as own

    members = point.candidate.extra.get("members", ())
    if not members:
        return own(job, point)
    gates, rows = point.candidate.extra["gates"], [own(job, m) for m in members]
    owner = owners(gates, rows)
    point.shares = [float((owner == k).mean()) for k in range(len(rows))]
    return assembled(gates, rows)


def final(job: Job, points: Sequence[Point], seconds: float, rounds: int = 15) -> None:
    """Judge every point on the unseen split and race all their services (text in, answer out), interleaved, against the original's own best."""
    from fourfold.gate import owners
    from fourfold.measure.quality import relative
    from fourfold.runtime.artefact import Assembly
    from fourfold.runtime.service import ORIGINAL, Runner, race_services

    reopened(job)
    for point in points:
        rows = records(job, point)
        point.test = relative(job.task.metric, job.base_test, rows, job.splits.test.targets, seed=job.work.seed)
        point.agreement = job.agreement(rows)
    runners = {ORIGINAL: Runner(Assembly(ORIGINAL, [original(job).assembly.parts[0]]))}
    known = {p.name for p in points}
    for point in points:
        members = point.candidate.extra.get("members", ())
        owner = None
        if members and all(m.name in known for m in members):
            owner = owners(point.candidate.extra["gates"], [records(job, m) for m in members])
        runners[point.name] = Runner(point.assembly, owner, tuple(m.name for m in members))
    found = race_services(
        runners, job.served_rows(job.splits.test), job.task, seconds=seconds, seed=job.work.seed, objective=job.work.objective,
        max_length=job.options.max_length, calls=rounds,
    )
    for point in points:
        point.served = found[point.name]
        point.timing = point.served.result
    job.served = found[ORIGINAL]
    job.base_cpu, job.base_wall = job.served.cpu, job.served.wall


def row(point: Point, who: str) -> dict[str, Any]:
    """A raced, judged point as plain data: relative quality, processor and wall time, each {value, low, high} of a 90 % interval."""
    assert point.test is not None and point.timing is not None
    modules = [p.module for p in point.assembly.parts if p.module is not None]
    return {
        "name": point.name,
        "who": who,
        "kind": point.candidate.kind,
        "structure_only": structural(point),
        "quality": {"value": point.test.value, "low": point.test.low, "high": point.test.high, "n": point.test.n},
        "energy": span(point.timing.cpu),
        "latency": span(point.timing.wall),
        "settings": [str(p.setting) for p in point.assembly.parts],
        "shares": point.shares,
        "parameters": sum(q.numel() for m in modules for q in m.parameters()),
        "steps": point.candidate.steps,
        "rounds": point.timing.rounds,
        "shape": point.candidate.shape,
        "kept_blocks": point.candidate.kept,
        "search_quality": None if point.search is None else point.search.value,
    }


def span(ratio: Any) -> dict[str, float]:
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high}


# -------------------------------------------------------------------------------------------------------------- verdicts


def at_floor(rows: Rows, floor: float, target: float | None, safe: Iterable[str] | None = None) -> dict[str, Any]:
    """At a floor: the cheapest row whose estimate clears it, the cheapest whose lower 95 % bound does, and the cheapest of those that were proved for
    it as a search at that floor would (`proved`, names in `safe`); `target` is the energy aimed for."""

    def cheapest(fit: Rows) -> dict[str, Any] | None:
        return min(fit, key=lambda r: r["energy"]["value"], default=None)

    found = {"by_estimate": cheapest([r for r in rows if r["quality"]["value"] >= floor])}
    found["by_bound"] = cheapest([r for r in rows if r["quality"]["low"] >= floor])
    if safe is not None:
        names = set(safe)
        found["by_proof"] = cheapest([r for r in rows if r["name"] in names])
    met = None if target is None else {k.removeprefix("by_"): bool(r and r["energy"]["value"] <= target) for k, r in found.items()}
    return {"floor": floor, "target": target, **found, "met": met}


def outside(peer: dict[str, Any], ours: Rows) -> dict[str, Any]:
    """Whether a peer's point lies outside our front: no point of ours (the original included) costs at most as much and keeps at least as much.

    `surely`: even at the corner of the peer's own intervals that is least in its favour (dearest, least quality).
    """

    def covered(cost: float, quality: float) -> bool:
        return (cost >= 1 and quality <= 1) or any(r["energy"]["value"] <= cost and r["quality"]["value"] >= quality for r in ours)

    by_value = not covered(peer["energy"]["value"], peer["quality"]["value"])
    return {"peer": peer["name"], "by_estimate": by_value, "surely": not covered(peer["energy"]["high"], peer["quality"]["low"])}


def undominated(rows: Rows) -> Rows:
    """Rows that no other beats in both, cheapest first."""
    return sorted(
        (
            r
            for r in rows
            if not any(o is not r and o["energy"]["value"] <= r["energy"]["value"] and o["quality"]["value"] >= r["quality"]["value"] for o in rows)
        ),
        key=lambda r: r["energy"]["value"],
    )


# -------------------------------------------------------------------------------------------------------------- printing


def percent(x: dict[str, float] | None) -> str:
    """88.1 % [87.0, 89.2]"""
    return "–" if x is None else f"{100 * x['value']:.1f} % [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table on standard output."""
    lines = [list(head), *[[str(c) for c in r] for r in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    print(f"\n{title}")
    for number, line in enumerate(lines):
        print("  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * w for w in widths))


def show_points(title: str, rows: Rows) -> None:
    cells = [
        (r["who"], r["name"][:84], percent(r["quality"]), percent(r["energy"]), percent(r["latency"]), f"{r['parameters'] / 1e6:.2f} M") for r in rows
    ]
    show(title, ("who", "point", "relative quality, unseen", "relative CPU time", "relative wall time", "parameters"), cells)


def show_floors(title: str, found: Sequence[dict[str, Any]]) -> None:
    cells = []
    for f in found:
        for key, words in (("by_estimate", "estimate clears"), ("by_bound", "lower bound clears"), ("by_proof", "proved")):
            if key not in f:
                continue
            r = f[key]
            met = "" if f["target"] is None else "met" if f["met"][key.removeprefix("by_")] else "missed"
            aim = "–" if f["target"] is None else f"≤ {100 * f['target']:.4g} %"
            cells.append(
                (
                    f"{100 * f['floor']:.4g} %",
                    words,
                    *(("–", "–", "–") if r is None else (percent(r["quality"]), percent(r["energy"]), r["name"][:70])),
                    aim,
                    met,
                )
            )
    show(title, ("floor", "who counts", "relative quality, unseen", "relative CPU time", "cheapest point", "target", ""), cells)


def publish(name: str, data: dict[str, Any], folder: Path) -> Path:
    """Write `folder`/`name`.json."""
    path = provenance.publish(folder / f"{name}.json", data)
    print(f"\nwritten: {path}")
    return path


def claim(name: str, found: dict[str, Any] | None, about: dict[str, Any], *, energy_only: bool = False) -> None:
    """Write claims/results/`name`.json from a row, as `fourfold.report.claims` reads it. Nothing is written where there is no row."""
    if found is None:
        return
    CLAIMS.mkdir(parents=True, exist_ok=True)
    machine = about["machine"].get("name", "")
    data = {
        "relative_energy": found["energy"],
        "point": found["name"],
        "date": about["date"],
        "commit": about["commit"],
        "machine": machine,
        "versions": about["versions"],
        "seed": about["seed"],
    }
    if not energy_only:
        data["relative_quality"] = {k: found["quality"][k] for k in ("value", "low", "high")}
    (CLAIMS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def claimed(rows: Rows, floor: float, most: float) -> dict[str, Any] | None:
    """The row that a claim (at least `floor` at no more than `most`) stands or falls with: the cheapest above the floor, else the best near it."""
    fit = [r for r in rows if r["quality"]["value"] >= floor]
    if fit:
        return min(fit, key=lambda r: r["energy"]["value"])
    near = [r for r in rows if r["energy"]["value"] <= most]
    return max(near or rows, key=lambda r: r["quality"]["value"], default=None)
