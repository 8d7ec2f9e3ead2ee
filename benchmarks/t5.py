"""An encoder–decoder of T5's kind, trained here on real text, then made cheaper by structure alone.

    python benchmarks/t5.py [--budget 10min] [--train 9min] [--quick]

No T5 weights come in any package, so one is made, as deep as T5-small and as wide as MiniLM: an 8,000-piece Unigram vocabulary learnt from the
snippets (and the novels, where Debian's package can be had), token embeddings started from MiniLM's (means of pieces), then text → "positive" /
"negative" on the training snippets and on unlabelled variants of them (spans, halves joined) that the fine-tuned MiniLM is sure of. The search and
test splits are unseen by both.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np

FLOORS = (0.97, 0.93, 0.92)
TARGETS = {0.93: 0.35, 0.92: 0.19}
WORDS = ("negative", "positive")
PAD, END, UNKNOWN = 0, 1, 2
WIDTH = 384


def main() -> int:
    parser = harness.arguments("t5", "10min")
    parser.add_argument("--train", default="9min", help="time for training the original, once a fine-tuned MiniLM is there")
    parser.add_argument("--epochs", type=float, default=2.0, help="of fine-tuning MiniLM, which labels the variants")
    parser.add_argument("--variants", type=int, default=24_000, help="unlabelled variants of the training snippets")
    parser.add_argument("--seconds", type=float, default=90.0, help="most that the final race may take")
    args = parser.parse_args()
    if args.quick:
        args.budget, args.train, args.epochs, args.variants, args.seconds = "30s", "15s", 0.5, 300, 10.0
    from fourfold.jobs import demo
    from fourfold.jobs.optimize import optimize
    from fourfold.report.terminal import Progress

    work: Path = args.work
    base, train, test = harness.reviews(args)
    with Progress() as progress:
        judge = demo.teacher(train.parent, base, train, test, epochs=args.epochs, seed=args.seed, progress=progress)
        data, model, made = original(work / ("quick-t5" if args.quick else "t5"), judge, {"train": train, "test": test}, args, progress)
        front = optimize(
            model,
            data,
            floor=0.93,
            budget=args.budget,
            out=None,  # beside an artefact only the front's engine files are kept
            task="seq2seq",
            metric="exact_match",
            max_length=64,
            seed=args.seed,
            engines=["torch"],
            progress=progress,
        )
        job = front.job
        ours = harness.front_of(job, [p for p in job.points if harness.structural(p)], 14)
        progress.stage(f"final race of {len(ours)} points", 0)
        harness.final(job, ours, args.seconds)
    rows = [harness.row(p, "fourfold") for p in ours]
    about = harness.facts(args, {"original": model / "model.safetensors", **data})
    report(job, rows, about, made, args)
    return 0


def report(job: Any, rows: harness.Rows, about: dict[str, Any], made: dict[str, Any], args: Any) -> None:
    print(f"\nThe original: exact match {job.quality:.4f} on {len(job.base_test):,} unseen rows "
          f"(its judge MiniLM {made['judge']:.4f}, majority {made['majority']:.4f}); "
          f"{made['parameters'] / 1e6:.1f} M parameters, {1e3 * job.base_cpu:.2f} ms CPU per example at its best ({job.base_setting})")  # fmt: skip
    harness.show_points("Structure only (PyTorch fp32): our front", harness.undominated(rows))
    floors = [harness.at_floor(rows, f, TARGETS.get(f)) for f in FLOORS]
    harness.show_floors("Structure only, at the floors", floors)
    data = {
        "about": about,
        "original": {"quality": job.quality, "cpu_ms": 1e3 * job.base_cpu, "setting": str(job.base_setting), **made},
        "plan": {"levels": job.plan.levels, "steps": job.plan.steps} if job.plan else None,
        "floors": floors,
        "points": rows,
        "refusals": job.refusals,
    }
    harness.publish("t5", data, harness.results(args))
    if not args.quick:
        harness.claim("ntt-t5-93", harness.claimed(rows, 0.93, 0.35), about)
        harness.claim("ntt-t5-92", harness.claimed(rows, 0.92, 0.19), about)


def original(folder: Path, judge: Path, files: dict[str, Path], args: Any, progress: Any) -> tuple[dict[str, Path], Path, dict[str, Any]]:
    """Data files, model folder and facts of the trained encoder–decoder; kept, and keyed by data and recipe."""
    from fourfold.datasets.load import load_data
    from fourfold.frontends.model import load_model

    teacher = load_model(judge)
    splits, task = load_data(files, None, teacher, max_length=64, seed=args.seed)
    teacher.inputs = tuple(n for n in teacher.inputs if n in splits.train.columns)
    texts = {n: [str(t) for t in getattr(splits, n).raw] for n in ("train", "search", "test")}
    labels = {n: [int(v) for v in getattr(splits, n).targets] for n in texts}
    data = {
        n: harness.write_csv(folder / f"{n}.csv", ["text", "target"], [(t, WORDS[y]) for t, y in zip(texts[n], labels[n], strict=True)])
        for n in texts
    }
    target, stamp = folder / "model", folder / "made.json"
    key = {
        "data": {n: harness.sha256(p) for n, p in data.items()},
        "train": args.train,
        "variants": args.variants,
        "seed": args.seed,
        "judge": harness.sha256(judge / "model.safetensors"),
        "version": 3,
    }
    if stamp.exists() and json.loads(stamp.read_text())["key"] == key:
        return data, target, json.loads(stamp.read_text())["facts"]
    tokenizer, novels = vocabulary(texts["train"], folder.parent)
    net = network(tokenizer, teacher)
    variants = unlabelled(texts["train"], args.variants, args.seed)
    progress.stage(f"asking MiniLM about {len(variants)} variants", len(variants))
    sure, said = answered(teacher, variants, progress)
    right = judged(teacher, splits.test)
    pool = [*[(t, y, False) for t, y in zip(texts["train"], labels["train"], strict=True)], *[(t, y, True) for t, y in zip(sure, said, strict=True)]]
    facts = train(net, tokenizer, pool, args, progress)
    target.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(target)
    tokenizer.save_pretrained(target)
    share = sum(labels["test"]) / len(labels["test"])
    facts |= {
        "majority": max(share, 1 - share),
        "judge": right,
        "labelled": len(texts["train"]),
        "variants": len(sure),
        "novels_in_vocabulary": novels,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    stamp.write_text(json.dumps({"key": key, "facts": facts}))
    return data, target, facts


def vocabulary(texts: list[str], work: Path) -> tuple[Any, bool]:
    """A Unigram tokenizer of 8,000 pieces in T5's manner (</s> at the end, no token at the beginning), and whether the novels were read too."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from fourfold.errors import FourfoldError

    corpus = list(texts)
    try:
        from sources import novels

        corpus += [line for text in novels(work).values() for line in text.splitlines()]
    except FourfoldError as error:
        print(f"The vocabulary is learnt from the snippets alone: {error.message}", file=sys.stderr)
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(
        corpus,
        trainers.UnigramTrainer(
            vocab_size=8000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", initial_alphabet=list("abcdefghijklmnopqrstuvwxyz")
        ),
    )
    from tokenizers import decoders

    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512)
    return made, len(corpus) > len(texts)


def network(tokenizer: Any, teacher: Any) -> Any:
    """T5, 6 + 6 layers of width 384; embeddings from MiniLM's, the rest as transformers starts it."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=64, d_ff=4 * WIDTH, num_layers=6, num_decoder_layers=6, num_heads=6, dropout_rate=0.1,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END,
    )  # fmt: skip
    net = T5ForConditionalGeneration(config)
    table = teacher.module.get_input_embeddings().weight.detach().float()
    pieces = [t.replace("▁", "") or "," for t in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    rows = teacher.tokenizer(pieces, add_special_tokens=False)["input_ids"]
    means = torch.stack([table[r].mean(0) if r else table.mean(0) for r in rows])
    means = means - means.mean(0)
    _, _, axes = torch.linalg.svd(means, full_matrices=False)
    started = means @ axes[:WIDTH].T  # turned to principal axes, which a narrower width would cut
    with torch.no_grad():
        net.shared.weight.copy_(started / started.std())
    return net


def unlabelled(texts: list[str], count: int, seed: int) -> list[str]:
    """Variants of the texts by words: a span of one, or the first half of one before the second of another."""
    rng = np.random.default_rng([seed, 41])
    found = []
    for _ in range(count):
        words = texts[int(rng.integers(len(texts)))].split()
        if rng.random() < 0.5 and len(words) > 6:
            size = int(rng.integers(4, len(words) + 1))
            start = int(rng.integers(0, len(words) - size + 1))
            found.append(" ".join(words[start : start + size]))
        else:
            other = texts[int(rng.integers(len(texts)))].split()
            found.append(" ".join(words[: int(rng.integers(1, len(words) + 1))] + other[int(rng.integers(0, len(other))) :]))
    return found


def answered(teacher: Any, texts: list[str], progress: Any, least: float = 0.8) -> tuple[list[str], list[int]]:
    """The texts that the judge is sure of (probability at least `least`), and what it says of them."""
    import torch

    from fourfold.rewrites.compress.distil import autocast, fast_bf16

    kept, said = [], []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode(), autocast(fast_bf16()):
        for start in range(0, len(order), 64):
            some = [texts[i] for i in order[start : start + 64]]
            batch = teacher.tokenizer(some, truncation=True, max_length=64, padding=True, return_tensors="pt")
            p = torch.softmax(teacher.logits(teacher.module, dict(batch)).float(), -1)
            for text, row in zip(some, p, strict=True):
                if float(row.max()) >= least:
                    kept.append(text)
                    said.append(int(row.argmax()))
            progress.advance(len(some))
    return kept, said


def judged(teacher: Any, examples: Any) -> float:
    """The judge's own accuracy on the unseen snippets."""
    import torch

    from fourfold.rewrites.compress.distil import tensors

    right = 0
    with torch.inference_mode():
        for index in examples.batches(64):
            z = teacher.logits(teacher.module, tensors(examples.collate(index)))
            right += int((z.argmax(-1).numpy() == np.asarray(examples.targets)[index]).sum())
    return right / len(examples)


def train(net: Any, tokenizer: Any, pool: list[tuple[str, int, bool]], args: Any, progress: Any, batch: int = 32, lr: float = 1e-3) -> dict[str, Any]:
    """AdamW on the target texts, batches of like length, warm-up then linear to zero. As many steps as the time allows, measured on a copy."""
    import copy

    import torch

    from fourfold.rewrites.compress.distil import autocast, fast_bf16
    from fourfold.workload import seconds

    limit = seconds(args.train)
    ids = tokenizer([t for t, _, _ in pool], truncation=True, max_length=64)["input_ids"]
    said = [tokenizer(w)["input_ids"] for w in WORDS]
    rng = np.random.default_rng([args.seed, 43])
    weight = np.array([0.5 if variant else 1.0 for _, _, variant in pool])

    def step(model: Any, optimiser: Any, index: np.ndarray) -> float:
        longest = max(len(ids[i]) for i in index)
        source = torch.tensor([ids[i] + [PAD] * (longest - len(ids[i])) for i in index])
        width = max(map(len, said))
        target = torch.tensor([said[pool[i][1]] + [-100] * (width - len(said[pool[i][1]])) for i in index])
        with autocast(fast_bf16()):
            loss = model(input_ids=source, attention_mask=(source != PAD).long(), labels=target).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def draw() -> list[np.ndarray]:
        block = rng.choice(len(pool), size=batch * 16, p=weight / weight.sum())
        block = block[np.argsort([len(ids[i]) for i in block], kind="stable")]
        return [block[i : i + batch] for i in rng.permutation(16) * batch]

    trial = copy.deepcopy(net).train()
    optimiser = torch.optim.AdamW(trial.parameters(), lr=1e-6)
    few = draw()
    step(trial, optimiser, few[0])
    began = time.perf_counter()
    for index in few[1:9]:
        step(trial, optimiser, index)
    each = (time.perf_counter() - began) / 8
    steps = int(np.clip(limit / each, 30, 30 * len(pool) / batch))
    progress.stage("training the encoder–decoder", steps)
    optimiser = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01)
    net.train()
    waiting: list[np.ndarray] = []
    losses = []
    for number in range(steps):
        waiting = waiting or draw()
        warm = max(1, steps // 20)
        for group in optimiser.param_groups:
            group["lr"] = lr * min((number + 1) / warm, (steps - number) / max(1, steps - warm))
        losses.append(step(net, optimiser, waiting.pop()))
        progress.advance()
    net.eval()
    return {"steps": steps, "batch": batch, "loss": [float(np.mean(c)) for c in np.array_split(losses, min(10, len(losses)))]}


if __name__ == "__main__":
    sys.exit(main())
