"""MiniLM-L6 fine-tuned on rated movie-review snippets, made cheaper; all points, ours and the peers', in one interleaved race.

    python benchmarks/compress.py [--budget 20min] [--structure-only] [--no-peers] [--quick]

One search (floor 97 %) gives the front that all floors are read from. Cascades for every floor are formed from its points by the product's own
rule, on the search split, and proved by its own rule on the unseen one. Every figure printed is of the final race and of the unseen split (2,145
snippets).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness

FLOORS = (0.99, 0.97, 0.94)
STRUCTURE = {0.97: 0.25, 0.94: 0.11}
EVERYTHING = {0.99: 0.10, 0.97: 0.05, 0.94: 0.02}


def main() -> int:
    parser = harness.arguments("compress", "20min")
    parser.add_argument("--epochs", type=float, default=2.0, help="of fine-tuning the original")
    parser.add_argument("--structure-only", action="store_true", help="no change of precision or back end, no rows for it")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="train and race the peers too")
    parser.add_argument("--seconds", type=float, default=240.0, help="most that the final race may take")
    args = parser.parse_args()
    if args.quick:
        args.budget, args.epochs, args.seconds = "45s", 0.5, 20.0
    from fourfold.jobs import demo
    from fourfold.jobs.optimize import optimize
    from fourfold.report.terminal import Progress

    work: Path = args.work
    base, train, test = harness.reviews(args)
    with Progress() as progress:
        model = demo.teacher(train.parent, base, train, test, epochs=args.epochs, seed=args.seed, progress=progress)
        front = optimize(
            model,
            {"train": train, "test": test},
            floor=0.97,
            budget=args.budget,
            out=None,  # beside an artefact only the front's engine files are kept
            max_length=64,
            seed=args.seed,
            engines=["torch"] if args.structure_only else None,
            progress=progress,
        )
        job = front.job
        ours = chosen(job, args.structure_only)
        theirs, refused = peers(job, work, args, progress) if args.peers else ([], {})
        progress.stage(f"final race of {len(ours.points) + len(theirs)} points", 0)
        harness.final(job, [*ours.points, *theirs], args.seconds)
    mine = [harness.row(p, "fourfold") for p in ours.points]
    others = [harness.row(p, "peer") for p in theirs]
    about = harness.facts(args, {"minilm": base / "model.safetensors", "original": model / "model.safetensors", "train": train, "test": test})
    report(job, mine, others, refused, about, ours, args)
    return 0


@dataclass
class Chosen:
    """Our points for the final race, and which of them were proved for which floor: by structure alone, and by everything."""

    points: list[Any]
    bare: dict[float, list[str]]
    whole: dict[float, list[str]]


def chosen(job: Any, structure_only: bool) -> Chosen:
    """The structural front and, unless told otherwise, the whole one, each with the cheapest points that are proved for every floor, and their
    members."""
    from fourfold.jobs.optimize.build_and_race import race_points

    harness.reopened(job)
    start = harness.original(job)
    singles = [p for p in job.points if p.candidate.kind != "cascade" and p.status != "rejected" and p.search is not None]
    if unraced := [p for p in singles if p.timing is None]:  # networks as they were trained, which the search had no use for
        race_points(job, unraced)
    pools = {"structure": [start, *(p for p in singles if harness.structural(p) and p.candidate.kind != "original")]}
    if not structure_only:
        pools["everything"] = singles
    points: list[Any] = []
    safe: dict[str, dict[float, list[str]]] = {name: {} for name in ("structure", "everything")}
    for label, pool in pools.items():
        for floor in FLOORS:
            winners = harness.proved(job, pool, floor, label)[:2]
            safe[label][floor] = [p.name for p in winners]
            points += [*(m for p in winners for m in p.candidate.extra.get("members", ())), *winners]
        points += harness.front_of(job, pool, 10)
    points += [p for p in singles if p.candidate.kind == "original"]
    return Chosen(list({p.name: p for p in points}.values()), safe["structure"], safe["everything"])


def peers(job: Any, work: Path, args: Any, progress: Any) -> tuple[list[Any], dict[str, str]]:
    """All peers: quantisers on the original (unless structure only), structural ones down the search's own levels."""
    if job.searcher is None or job.plan is None:
        return [], {"structural peers": "the search did not finish"}
    import peers as room

    from fourfold.journal import Journal

    folder = work / ("quick-peers" if args.quick else "peers")
    levels, made = list(job.plan.levels), {c.name: int(c.extra.get("made", c.steps)) for c in job.candidates}
    steps = [made.get(f"level-{k}", most) for k, most in enumerate(job.plan.steps)]  # those that the clock left to the search itself
    if args.quick:
        levels, steps = levels[:2], [4] * len(levels[:2])
    fingerprint = {
        "weights": harness.sha256(job.subject.folder / "model.safetensors"),
        "pool": job.searcher.bench.pool.digest(),
        "levels": levels,
        "steps": steps,
        "seed": args.seed,
        "hidden": job.searcher.bench.hidden_weight,
        "lr": job.searcher.bench.lr,
        "version": 1,
    }
    with Journal(folder, fingerprint) as journal:
        points, refused = room.structural(job, journal, folder, levels, steps, progress)
    if not args.structure_only:
        quick, why = room.quantised(job, folder / "engines")
        points, refused = [*points, *quick], refused | why
    return points, refused


def report(job: Any, mine: harness.Rows, others: harness.Rows, refused: dict[str, str], about: dict[str, Any], ours: Chosen, args: Any) -> None:
    """Print, judge, write."""
    bare = [r for r in mine if r["structure_only"]]
    print(f"\nThe original: {job.task.metric.name} {job.quality:.4f} on {len(job.base_test):,} unseen rows;", end=" ")
    print(f"{1e3 * job.base_cpu:.2f} ms CPU per example at its best ({job.base_setting})")
    words = [s for s in job.simple]
    for simple in words:
        print(f"  {simple.name}: {job.task.metric.score(simple.test, job.splits.test.targets) / job.quality:.1%} of it")
    harness.show_points("Structure only (PyTorch fp32): our front", harness.undominated(bare))
    structure = [harness.at_floor(bare, f, STRUCTURE.get(f), ours.bare[f]) for f in FLOORS]
    harness.show_floors("Structure only, at the floors", structure)
    everything: list[dict[str, Any]] = []
    if ours.whole:
        harness.show_points("Everything: our front", harness.undominated(mine))
        everything = [harness.at_floor(mine, f, EVERYTHING.get(f), ours.whole[f]) for f in FLOORS]
        harness.show_floors("Everything, at the floors", everything)
    verdicts = []
    if others:
        harness.show_points("Peers, same race", others)
        verdicts = [harness.outside(r, bare if r["structure_only"] else mine) for r in others]
        print("\nDoes a peer's point lie outside our front by more than its interval? (structural peers against our structural front)")
        for v in verdicts:
            print(
                f"  {v['peer']}: {'YES' if v['surely'] else 'no'}"
                + ("; by the bare estimates it does" if v["by_estimate"] and not v["surely"] else "")
            )
    for name, why in refused.items():
        print(f"  {name}: not raced ({why})")
    print("\nEstimates and bounds at a floor are the best of several points on the same unseen rows, so a little hopeful; `proved` is what a search")
    print("at that floor would have chosen, with 5 % error in all.")
    quantisation = halving(job, bare) if ours.whole else None
    data = {
        "about": about,
        "metric": job.task.metric.name,
        "original": {"quality": job.quality, "cpu_ms": 1e3 * job.base_cpu, "setting": str(job.base_setting)},
        "simple": {s.name: job.task.metric.score(s.test, job.splits.test.targets) / job.quality for s in words},
        "plan": {"levels": job.plan.levels, "steps": job.plan.steps, "refine": job.plan.refine, "hidden": job.plan.hidden} if job.plan else None,
        "structure": structure,
        "everything": everything,
        "points": mine,
        "peers": others,
        "refused": refused,
        "outside": verdicts,
        "quantisation": quantisation,
    }
    harness.publish("compress-structure" if args.structure_only else "compress", data, harness.results(args))
    if not args.quick:
        harness.claim("ntt-bert-97", harness.claimed(bare, 0.97, 0.25), about)
        harness.claim("ntt-bert-94", harness.claimed(bare, 0.94, 0.11), about)
        harness.claim("ntt-quantisation", quantisation, about, energy_only=True)


def halving(job: Any, bare: harness.Rows) -> dict[str, Any] | None:
    """The cheapest structural network that keeps 97 %: its best other precision and back end against its own fp32, raced by themselves."""
    from fourfold.jobs.optimize.final_race import runner, sample_for
    from fourfold.measure.race import race
    from fourfold.runtime.artefact import Assembly

    networks = [r for r in bare if r["kind"] == "network"]
    row = harness.claimed(networks, 0.97, 1.0)
    if row is None:
        return None
    plain = next((p for p in job.points if p.name == row["name"]), None)
    same = [
        p
        for p in job.points
        if plain is not None
        and p.candidate is plain.candidate
        and p is not plain
        and p.status != "rejected"
        and p.timing
        and p.setting.precision != "fp32"
    ]
    if plain is None or not same:
        return None
    best = min(same, key=lambda p: p.timing.cpu.value)
    sample = sample_for(plain.assembly.parts[0], job.splits.test, 0.5, job.work.seed, "energy")
    runners = {p.name: runner(Assembly(p.name, p.assembly.parts), sample, job.task) for p in (plain, best)}
    found = race(runners, baseline=plain.name, rounds=15, seed=job.work.seed, deadline=30.0)[best.name]
    print(
        f"\nThe best precision and back end against fp32, same structure: {best.name}, relative CPU time {harness.percent(harness.span(found.cpu))}"
    )
    return {"name": best.name, "against": plain.name, "energy": harness.span(found.cpu), "latency": harness.span(found.wall)}


if __name__ == "__main__":
    sys.exit(main())
