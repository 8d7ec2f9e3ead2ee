"""A small real model, trained here in seconds: a three-layer BERT that tells texts about fire from texts about water by their words and word
order."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import fourfold

FIRE = ["ember", "flame", "smoke", "burn", "ash", "spark", "torch", "blaze"]
WATER = ["river", "rain", "wave", "swim", "lake", "drop", "flood", "mist"]
REST = [f"word{i}" for i in range(60)]


def texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts and labels. A theme word counts unless `not` stands before it, so that counting words alone is not enough."""
    rng = np.random.default_rng(seed)
    found, labels = [], []
    for _ in range(count):
        label = int(rng.integers(2))
        words = list(rng.choice(REST, size=rng.integers(4, 14)))
        for _ in range(int(rng.integers(1, 3))):
            theme = [WATER, FIRE][label]
            at = int(rng.integers(len(words) + 1))
            words[at:at] = ["not", str(rng.choice([FIRE, WATER][label]))] if rng.random() < 0.3 else [str(rng.choice(theme))]
        found.append(" ".join(words))
        labels.append(["water", "fire"][label])
    return found, labels


def write_csv(path: Path, rows: tuple[list[str], list[str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(*rows, strict=True))
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", texts(1600, 0))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this run see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "flow-shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One worker at a time; where there are no such locks, none waits (and each makes its own)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def model(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned tiny BERT as a Hugging Face style directory: trained by the first worker that asks, the same files for all."""
    folder, whole = tmp_path_factory.mktemp("model"), shared / "model"
    with alone(shared):
        if not whole.exists():
            train(shared / "model.part")
            (shared / "model.part").rename(whole)
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    return folder


def train(folder: Path) -> None:
    """Train the model and save it with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "not", *FIRE, *WATER, *REST])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, max_position_embeddings=64,
        num_labels=2, id2label={0: "water", 1: "fire"}, label2id={"water": 0, "fire": 1}, hidden_dropout_prob=0.0,
    )
    net = BertForSequenceClassification(config)
    found, labels = texts(3000, 7)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net.train()
    for start in range(0, len(found), 50):
        batch = tokenizer(found[start : start + 50], padding=True, return_tensors="pt", return_token_type_ids=False)
        loss = net(**batch, labels=torch.tensor([int(x == "fire") for x in labels[start : start + 50]])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def front(model: Path, reviews: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> fourfold.Front:
    """The whole job, searched by the first worker that asks; another goes on from a copy of its journal, as a killed run would."""
    out, whole = tmp_path_factory.mktemp("out") / "cheap", shared / "journal"
    journal = out.parent / f".{out.name}.fourfold"
    with alone(shared):
        if whole.exists():
            shutil.copytree(whole, journal)
        found = fourfold.optimize(model, reviews, floor=0.9, budget="40s", out=out, engines=["torch"], seed=1)
        if not whole.exists():
            shutil.copytree(journal, shared / "journal.part")
            (shared / "journal.part").rename(whole)
    return found
