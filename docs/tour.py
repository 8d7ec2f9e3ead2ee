"""The whole of fourfold in one sitting, on a model small enough to train here: run it with `python docs/tour.py`, it takes under a minute.

Chapters: 1 a trained model and data · 2 what can be taken out of it · 3 a recipe · 4 what a part costs and matters · 5 the main job ·
6 the evidence · 7 the artefact in a fresh process · 8 what is refused. Everything below is computed while it runs; nothing is canned.
"""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two OpenMP runtimes that wait actively would burn the time that we measure
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
# ruff: noqa: E402

logging.disable(logging.WARNING)  # other libraries' start-up remarks

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import fourfold

GOOD, BAD = ["lovely", "warm", "witty", "bright", "tender", "brave"], ["dull", "flat", "clumsy", "stale", "noisy", "cold"]
PLAIN = [f"word{i}" for i in range(40)]


def chapter(title: str) -> None:
    print(f"\n== {title}")


def reviews(count: int, seed: int) -> list[tuple[str, int]]:
    """Made-up reviews: one or two judgements among plain words; `not` turns a judgement round, so that counting words is not enough."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(count):
        label = int(rng.integers(2))
        words = [str(w) for w in rng.choice(PLAIN, size=rng.integers(4, 14))]
        for _ in range(int(rng.integers(1, 3))):
            turned = rng.random() < 0.3
            judgement = str(rng.choice(GOOD if label != turned else BAD))
            at = int(rng.integers(len(words) + 1))
            words[at:at] = ["not", judgement] if turned else [judgement]
        rows.append((" ".join(words), label))
    return rows


def trained(folder: Path) -> Path:
    """A three-layer BERT, trained for a few seconds, saved the way everybody saves models."""
    names = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "not", *GOOD, *BAD, *PLAIN])}
    core = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=32
    )
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    words = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(names), max_position_embeddings=32, hidden_dropout_prob=0.0, num_labels=2, **words, **shape)
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = reviews(6000, seed=7)
    for start in range(0, len(rows), 40):
        texts, labels = zip(*rows[start : start + 50], strict=True)
        batch = tokenizer(list(texts), padding=True, return_tensors="pt", return_token_type_ids=False)
        model(**batch, labels=torch.tensor(labels)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def look_inside(model: Path, data: Path) -> None:
    """What `optimize` does first, by hand: anatomy, a recipe, sensitivities."""
    from fourfold.datasets.load import load_data
    from fourfold.frontends.model import load_model
    from fourfold.recipe import apply
    from fourfold.rewrites.calibration import calibrate
    from fourfold.rewrites.compress.distil import tensors
    from fourfold.structure.discover import Keep, anatomize, recipe_for

    subject = load_model(model)
    splits, task = load_data(data, None, subject)
    print(f"{type(subject.module).__name__}: {sum(p.numel() for p in subject.module.parameters()):,} parameters, task {task.kind}")
    print(f"train {len(splits.train)}, search {len(splits.search)}, test {len(splits.test)}; the search never sees the test rows")

    chapter("2  What can be taken out: stacks of residual blocks, and in each the units that may go")
    subject.inputs = tuple(name for name in subject.inputs if name in splits.train.columns)
    few = tensors(splits.train.collate(np.arange(3)))
    anatomy = anatomize(subject.module, lambda module: subject.logits(module, few))
    for stack in anatomy.stacks:
        for block in stack.blocks:
            units = [f"{s.kind}: {s.bundle.count if s.bundle else 0} {s.bundle.kind if s.bundle else ''}" for s in block.sublayers]
            print(f"{block.path}: {', '.join(units)}")

    chapter("3  A recipe: plain data that rebuilds the smaller shape anywhere, and slices the trained weights here")
    stack = anatomy.stacks[0]
    bundle = next(s.bundle for s in stack.blocks[0].sublayers if s.bundle is not None and s.bundle.kind == "heads")
    recipe = recipe_for(anatomy, Keep(blocks={stack.name: [0, 2]}, units={bundle.name: [0, 1]}))
    for edit in recipe.edits[:4]:
        print(edit)
    smaller = apply(load_model(model).module, recipe)
    print(f"{len(recipe.edits)} edits; {sum(p.numel() for p in smaller.parameters()):,} parameters are left, really gone and not masked")

    chapter("4  What each part matters: one calibration pass")
    found = calibrate(subject, subject.module, task, splits.train, anatomy, examples=64)
    for name, harm in sorted(found.ablation.items(), key=lambda item: item[1]):
        print(f"without {name}: the answers move by {harm:.4f} nats an example")


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="fourfold-tour-"))
    chapter("1  A trained model and the data it works on")
    model, data = trained(home / "model"), home / "reviews.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, ["bad", "good"][label]) for text, label in reviews(1200, seed=1))
    look_inside(model, data)

    chapter("5  The main job: measure, search, recover, race, prove, save (a short budget, plain PyTorch only)")
    front = fourfold.optimize(model, data, floor=0.9, budget="12s", out=home / "cheap", engines=["torch"], threads=1, seed=1)
    for point in front:
        print(f"{point.name}: {point.quality:.1%} of the quality for {point.cost:.1%} of the energy")
    if front.best is None:
        print(front.infeasible)
        return

    chapter("6  The evidence")
    proof = front.best.point.test
    assert proof is not None and proof.low >= 0.9
    print(f"{front.best.name}: at least {proof.low:.1%} of the quality, 95 times in 100, on {proof.n} rows that no decision saw")
    report = front.report_data
    for row in report["factors"]:
        print(f"{row['title']}: energy {row['before']:.2f} → {row['after']:.2f}")
    print(f"product of the factors: {report['total']:.2f} times cheaper; energy is {report['energy']['grade']} ({report['energy']['method']})")
    print(f"the optimisation itself paid for after {report['cost']['break_even'] or 'no number of'} inferences")
    print(f"page: {front.report(home / 'report.html')}")

    chapter("7  The artefact: safetensors and JSON, opened in a fresh process without training code")
    code = "import sys, fourfold; print(fourfold.load(sys.argv[1]).predict(sys.argv[2:]))"
    texts = ["word1 lovely word2", "word3 not lovely word4"]
    print(subprocess.run([sys.executable, "-c", code, str(home / "cheap"), *texts], capture_output=True, text=True, check=True).stdout.strip())

    chapter("8  What is refused: a floor over 100 %, in two lines: what was given, what was expected")
    try:
        fourfold.optimize(model, data, floor="970%")
    except fourfold.InputError as error:
        print(error)


if __name__ == "__main__":
    main()
