"""Small artefacts for tests of serving: a two-layer BERT with random weights (its answers differ from text to text), saved in any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fourfold.datasets.examples import Examples
from fourfold.datasets.task import Task, default_metric

WORDS = [f"word{i}" for i in range(60)]


def tokenizer(length: int = 48) -> Any:
    """Whole words, lower-cased, with the special tokens of BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"0123456789nan"])}
    vocabulary = {w: i for i, w in enumerate(vocabulary)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=length, **names)


def network(layers: int = 2, width: int = 32, classes: int = 3, seed: int = 0) -> Any:
    """A BERT classifier whose embeddings are large enough for its answers to depend on the text."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer()), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=64, num_labels=classes, id2label={i: f"class {i}" for i in range(classes)}, type_vocab_size=2,
    )  # fmt: skip
    net = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        net.bert.embeddings.word_embeddings.weight.mul_(20.0)
        net.classifier.weight.mul_(20.0)
        some = tokenizer()(texts(64, 99), truncation=True, padding=True, return_tensors="pt")
        net.classifier.bias.sub_(net(**some).logits.median(0).values)  # so that every class is somebody's answer
    return net


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 known words, some longer than the tokenizer reads."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 60))) for _ in range(count)]


def task(classes: int = 3) -> Task:
    return Task("classification", [f"class {i}" for i in range(classes)], default_metric("classification"))


def part(folder: Path, engine: str, precision: str = "fp32", *, name: str = "net", net: Any = None, threads: int = 1, read: Any = None) -> Any:
    """A member that runs in `engine`, exported into `folder`."""
    from fourfold import engines
    from fourfold.datasets.tokenise import tokenised
    from fourfold.engines.base import Signature
    from fourfold.engines.onnx import export_onnx
    from fourfold.frontends.model import load_model
    from fourfold.runtime.artefact import Part, Setting

    subject = load_model(network() if net is None else net)
    subject.tokenizer = read or tokenizer()
    columns, _ = tokenised(texts(24, 3), None, subject, None)
    examples = Examples(columns)
    batches = [examples.collate(index) for index in examples.batches(8)]
    signature = Signature.of(subject.inputs, batches)
    folder.mkdir(parents=True, exist_ok=True)
    wrapped = subject.wrap(subject.module).eval()
    if (engine, precision) == ("onnxruntime", "fp32"):  # by one exporter: racing two takes long
        export_onnx(wrapped, signature, folder / "onnxruntime-fp32.onnx", "torchscript")
        files = ["onnxruntime-fp32.onnx"]
    else:
        files = engines.engine(engine).export(wrapped, signature, batches, precision, folder)
    return Part(name, subject, subject.module, None, Setting(engine, precision, threads, 8), signature, folder, files)


def words(name: str = "bag-of-words", seed: int = 0) -> Any:
    """A bag of words that has learnt from random labels."""
    from fourfold.rewrites.compress.bag_of_words import fit
    from fourfold.runtime.artefact import Part, Setting

    given = texts(80, 9)
    labels = np.random.default_rng(seed).integers(0, 3, len(given))
    model = fit(given, labels, [f"class {i}" for i in range(3)], strength=4.0)
    return Part(name, None, None, None, Setting("numpy", "fp32", 1, 256, False), words=model)  # type: ignore[arg-type]


def saved(folder: Path, parts: list[Any], shares: list[float] | None = None) -> Path:
    """The artefact of these members; `shares[i]` of the texts is about what member i hands on."""
    from fourfold.gate import Gate, confidence
    from fourfold.runtime.artefact import Assembly
    from fourfold.runtime.saving import save

    gates = []
    for one, share in zip(parts, shares or [], strict=False):
        from fourfold.datasets.unread import Unread

        sure = confidence(one.outputs(Unread(texts(60, 5), parts[-1].subject), task()), 1.0)
        gates.append(Gate(1.0, float(np.quantile(sure, share))))
    assembly = Assembly("small", parts, gates)
    save(assembly, task(), folder, {"fingerprint": "", "lengths": [8, 20, 40]})
    assembly.close()
    return folder
