"""Precision and back end of the original alone, raced on this machine; and how long the command takes to start.

    python benchmarks/race.py [--budget 3min] [--quick]

The model is MiniLM-L6 fine-tuned on the movie snippets (made by benchmarks/compress.py or here). Nothing is pruned.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np


def main() -> int:
    parser = harness.arguments("race", "3min")
    parser.add_argument("--epochs", type=float, default=2.0, help="of fine-tuning the original")
    parser.add_argument("--rows", type=int, default=512, help="unseen rows that each contender's predictions are compared on")
    args = parser.parse_args()
    if args.quick:
        args.budget, args.epochs, args.rows = "20s", 0.5, 64
    from fourfold.datasets.load import load_data
    from fourfold.engines.select import race_model
    from fourfold.frontends.model import load_model
    from fourfold.jobs import demo
    from fourfold.workload import seconds

    work: Path = args.work
    base = demo.encoder(work)
    train, test = demo.snippets(work)
    if args.quick:
        train, test = harness.sample_csv(train, work / "quick" / "train.csv", 1200), harness.sample_csv(test, work / "quick" / "test.csv", 300)
    model = demo.teacher(train.parent, base, train, test, epochs=args.epochs, seed=args.seed)
    subject = load_model(model)
    splits, task = load_data({"train": train, "test": test}, None, subject, max_length=64, seed=args.seed)
    subject.inputs = tuple(n for n in subject.inputs if n in splits.train.columns)
    few = splits.test.take(np.arange(min(args.rows, len(splits.test))))
    answers = reference(subject, few)
    agreement: dict[str, dict[str, float]] = {}

    def note(session: Any, choice: Any) -> None:
        rows = [(index, session.run(few.collate(index))) for index in few.batches(choice.batch, bucket=choice.bucket)]
        got = np.zeros_like(answers)
        for index, z in rows:
            got[index] = z
        agreement[choice.pair] = {
            "same_answer": float((got.argmax(1) == answers.argmax(1)).mean()),
            "accuracy": float((got.argmax(1) == np.asarray(few.targets)).mean()),
        }

    outcome = race_model(subject, subject.module, splits.test, objective="energy", budget_s=seconds(args.budget), accept=note, seed=args.seed)
    best = {}
    for r in outcome.table:
        if r["stage"] == "final" or f"{r['engine']}/{r['precision']}" not in best:
            best.setdefault(f"{r['engine']}/{r['precision']}", r)
    cells = []
    for pair, r in sorted(best.items(), key=lambda kv: kv[1]["cpu"]["value"]):
        a = agreement.get(pair, {})
        cells.append((
            pair, f"{r['threads']} thr, batch {r['batch']}{', by length' if r['bucket'] else ''}", harness.percent(r["cpu"]),
            harness.percent(r["wall"]), f"{1 / r['cpu']['value']:.2f}×", f"{a['same_answer']:.1%}" if a else "–", f"{r['noise']:.2g}", r["verdict"],
        ))  # fmt: skip
    base_accuracy = float((answers.argmax(1) == np.asarray(few.targets)).mean())
    print(f"Baseline: {outcome.baseline}; accuracy {base_accuracy:.4f} on {len(few)} unseen rows; mean length {outcome.mean_length:.1f} tokens")
    harness.show(
        "Precision and back end, the original",
        ("engine/precision", "its best settings", "relative CPU", "relative wall", "speed-up", "same answer", "noise", "verdict"),
        cells,
    )
    for r in outcome.rejected:
        print(f"  {r['engine']}/{r['precision']}: left out, {r['reason']}")
    start = startup(3 if args.quick else 9)
    print(
        f"\nfourfold --help: {start['cpu_s']['median']:.3f} s CPU, {start['wall_s']['median']:.3f} s wall (medians of {start['runs']}; target 0.5 s)"
    )
    about = harness.facts(args, {"minilm": base / "model.safetensors", "original": model / "model.safetensors", "train": train, "test": test})
    harness.publish(
        "race",
        {"about": about, "outcome": outcome.to_json(), "agreement": agreement, "accuracy": base_accuracy, "startup": start},
        harness.results(args),
    )
    return 0


def reference(subject: Any, examples: Any) -> np.ndarray:
    """The original's logits [N, C] in fp32."""
    import torch

    from fourfold.rewrites.compress.distil import tensors

    found = None
    with torch.inference_mode():
        for index in examples.batches(64):
            z = subject.logits(subject.module, tensors(examples.collate(index))).float().numpy()
            found = np.zeros((len(examples), z.shape[1]), np.float32) if found is None else found
            found[index] = z
    assert found is not None
    return found


def startup(runs: int) -> dict[str, Any]:
    """Seconds of `fourfold --help` in fresh processes, after one to warm the disk."""
    command = [sys.executable, "-c", "from fourfold.cli.main import main; main()", "--help"]
    wall, cpu = [], []
    for _ in range(runs + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        wall.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"runs": runs, **{n: {"median": float(np.median(v[1:])), "min": min(v[1:])} for n, v in (("wall_s", wall), ("cpu_s", cpu))}}


if __name__ == "__main__":
    sys.exit(main())
