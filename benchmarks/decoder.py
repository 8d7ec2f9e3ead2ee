"""SmolLM2-135M as it is shipped (4 bits, made float32), made cheaper; perplexity on a novel it is not tuned on, and a task by prompt.

    python benchmarks/decoder.py [--budget 10min] [--quick]

Distilled on a little of three of Jane Austen's novels, judged on the fourth (the Python standard library's source where the novels cannot be had).
The weights were rounded to 4 bits before they came here, so all figures are relative to this model as shipped, not to the one that was trained. On
two cores a model of this size reads only some tens of thousands of tokens in the time given: the front is what so little distillation reaches, and
is published as such.
"""

from __future__ import annotations

import csv
import sys
import textwrap
from pathlib import Path
from typing import Any

import harness
import numpy as np

FLOORS = (0.97, 0.9, 0.8, 0.7)
PROMPT = "Movie review: {}\nIs this review positive or negative? It is"
ANSWERS = (" negative", " positive")


def main() -> int:
    parser = harness.arguments("decoder", "10min")
    parser.add_argument("--floor", default="0.7", help="of relative perplexity; the search refines around it")
    parser.add_argument("--tokens", type=int, default=64, help="per passage")
    parser.add_argument("--passages", type=int, nargs=3, default=[600, 64, 160], metavar=("TRAIN", "SEARCH", "TEST"))
    parser.add_argument("--prompts", type=int, default=200, help="snippets in the task by prompt")
    parser.add_argument("--seconds", type=float, default=90.0, help="most that the final race may take")
    args = parser.parse_args()
    if args.quick:
        args.budget, args.tokens, args.passages, args.prompts, args.seconds = "30s", 24, [60, 24, 24], 16, 10.0
    import sources

    from fourfold.jobs import demo
    from fourfold.jobs.optimize import optimize
    from fourfold.report.terminal import Progress

    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        progress.stage("unpacking SmolLM2 (once; minutes)", 0)
        model = miniature(work) if args.quick else sources.smollm(work)
        data, text = passages(work / ("quick-decoder" if args.quick else "decoder"), work, args)
        front = optimize(
            model,
            data,
            floor=args.floor,
            budget=args.budget,
            out=None,  # beside an artefact only the front's engine files are kept
            task="causal_lm",
            metric="perplexity",
            max_length=args.tokens,
            seed=args.seed,
            progress=progress,
        )
        job = front.job
        ours = harness.front_of(job, job.points, 7)
        ours += [p for p in harness.front_of(job, [p for p in job.points if harness.structural(p)], 4) if p not in ours]
        progress.stage(f"final race of {len(ours)} points", 0)
        harness.final(job, ours, args.seconds)
        _, snippets = demo.snippets(work)
        task = by_prompt(job, ours, snippets, args, progress)
    rows = [harness.row(p, "fourfold") for p in ours]
    files = {"weights": model / "model.safetensors", **data, "snippets": snippets}
    report(job, rows, task, text, harness.facts(args, files), args)
    return 0


def report(job: Any, rows: harness.Rows, task: dict[str, Any], text: str, about: dict[str, Any], args: Any) -> None:
    tokens = {n: int(getattr(job.splits, n).lengths.sum()) for n in ("train", "search", "test")}
    print(f"\n{text}; tokens: {tokens['train']:,} to distil on, {tokens['search']:,} to search on, {tokens['test']:,} unseen")
    print(f"The original as shipped: perplexity {job.quality:.2f}; {1e3 * job.base_cpu:.1f} ms CPU per passage of {args.tokens} tokens", end=" ")
    print(f"at its best ({job.base_setting})")
    print(f"Its accuracy by prompt: {task['accuracy']:.3f} on {task['n']} snippets (majority {task['majority']:.3f})")
    cells = []
    for r in sorted(rows, key=lambda r: r["energy"]["value"]):
        t = task["points"].get(r["name"])
        cells.append(
            (
                r["name"][:60],
                harness.percent(r["quality"]),
                harness.percent(r["energy"]),
                harness.percent(t and t["relative"]),
                f"{r['parameters'] / 1e6:.0f} M",
            )
        )
    harness.show(
        "All raced points",
        ("point", "relative quality (perplexity of the original ÷ its own)", "relative CPU time", "relative accuracy by prompt", "parameters"),
        cells,
    )
    floors = [harness.at_floor(rows, f, None) for f in FLOORS]
    harness.show_floors("At the floors (no target: nobody has published such a front)", floors)
    print(
        f"\nReduced to fit: {args.passages[0]} passages of {args.tokens} tokens to distil on, {sum(c.steps for c in job.candidates)} steps in all."
    )
    data = {
        "about": about,
        "text": text,
        "tokens": tokens,
        "original": {"perplexity": job.quality, "cpu_ms": 1e3 * job.base_cpu, "setting": str(job.base_setting)},
        "plan": {"levels": job.plan.levels, "steps": job.plan.steps} if job.plan else None,
        "points": rows,
        "front": [r["name"] for r in harness.undominated(rows)],
        "floors": floors,
        "by_prompt": task,
        "refusals": job.refusals,
    }
    harness.publish("decoder", data, harness.results(args))


def passages(folder: Path, work: Path, args: Any) -> tuple[dict[str, Path], str]:
    """train.txt, search.txt and test.txt with about the wished number of passages, and what they are taken from, in words."""
    import sources

    from fourfold.errors import FourfoldError

    size = [round(n * args.tokens * 4.1) for n in args.passages]  # characters; English has a little over four to a token
    try:
        texts = sources.novels(work)
        third = size[0] // 3
        parts = {
            "train": "\n".join(texts[n][20_000 : 20_000 + third] for n in ("prideprejudice", "sensesensibility", "mansfieldpark")),
            "search": texts["mansfieldpark"][400_000 : 400_000 + size[1]],
            "test": texts["emma"][40_000 : 40_000 + size[2]],
        }
        parts = {name: "\n".join(textwrap.wrap(text, round(args.tokens * 4.1))) for name, text in parts.items()}  # a passage a line
        said = "Jane Austen: three novels to distil and search on, Emma to judge by"
    except FourfoldError as error:
        print(f"{error.message}; the standard library's source takes their place", file=sys.stderr)
        code = sources.source_code(2 * sum(size) + 200_000)
        parts = {"train": code[: size[0]], "search": code[size[0] + 50_000 :][: size[1]], "test": code[sum(size[:2]) + 100_000 :][: size[2]]}
        said = "The Python standard library's source"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, text in parts.items():
        found[name] = folder / f"{name}.txt"
        found[name].write_text(text, encoding="utf-8")
    return found, said


def by_prompt(job: Any, points: list[Any], snippets: Path, args: Any, progress: Any) -> dict[str, Any]:
    """Accuracy on the snippets where the likelier of two continuations is the answer, less what the prompt alone prefers (Zhao et al. 2021)."""
    from fourfold.measure.quality import METRICS, relative

    with snippets.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    picked = [rows[i] for i in np.random.default_rng(args.seed).permutation(len(rows))[: args.prompts]]
    targets = np.array([int(r["label"]) for r in picked])
    progress.stage("the task by prompt", (len(points) + 1) * len(picked))
    base = scores(harness.original(job).assembly.parts[0], [r["text"] for r in picked], job, progress)
    accuracy = METRICS["accuracy"]
    found = {}
    for point in points:
        if len(point.assembly.parts) > 1 or point.assembly.parts[0].module is None:
            continue
        mine = scores(point.assembly.parts[0], [r["text"] for r in picked], job, progress)
        r = relative(accuracy, base, mine, targets, seed=args.seed)
        found[point.name] = {"accuracy": float(accuracy.score(mine, targets)), "relative": {"value": r.value, "low": r.low, "high": r.high, "n": r.n}}
    share = float(targets.mean())
    return {"accuracy": float(accuracy.score(base, targets)), "n": len(picked), "majority": max(share, 1 - share), "prompt": PROMPT, "points": found}


def scores(part: Any, texts: list[str], job: Any, progress: Any, batch: int = 8) -> np.ndarray:
    """Log-odds rows [N, 2] of the two answers' first tokens after the prompt, less those after a prompt without content."""
    tokenizer, session = part.subject.tokenizer, part.open()
    first = [tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in ANSWERS]
    ids = [tokenizer(PROMPT.format(t))["input_ids"] for t in ["N/A", *texts]]
    rows = np.zeros((len(ids), 2))
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        longest = max(len(ids[i]) for i in some)
        inputs = {"input_ids": np.array([ids[i] + [0] * (longest - len(ids[i])) for i in some], np.int64)}
        inputs["attention_mask"] = np.array([[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in some], np.int64)
        z = session.run({n: inputs[n] for n in job.subject.inputs if n in inputs})
        for at, i in enumerate(some):
            rows[i] = z[at, len(ids[i]) - 1, first]
        progress.advance(len(some))
    return rows[1:] - rows[:1]


def miniature(work: Path) -> Path:
    """For --quick only: a LLaMA of the same kind with random weights and a byte-level vocabulary learnt from this folder's own sources."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    target = work / "quick-decoder-model"
    if (target / "model.safetensors").exists():
        return target
    core = ByteLevelBPETokenizer()
    core.train_from_iterator([p.read_text() for p in harness.HOME.glob("*.py")], vocab_size=600, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=core.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=True, max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(target)
    PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>").save_pretrained(target)
    return target


if __name__ == "__main__":
    sys.exit(main())
