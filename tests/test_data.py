"""Reading, encoding and splitting the user's data: real files, tiny real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourfold.datasets.encode import load_inputs
from fourfold.datasets.examples import Examples, Ragged
from fourfold.datasets.load import load_data
from fourfold.datasets.split import group_of, sides, strata
from fourfold.datasets.task import Writing
from fourfold.errors import InputError, MetricError
from fourfold.frontends.subject import Subject

WORDS = "good bad fine poor great awful film plot actor scene slow quick dull bright story end".split()
NAMES = {0: "NEGATIVE", 1: "POSITIVE"}


def subject(module: Any, inputs: tuple[str, ...], tokenizer: Any = None, processor: Any = None) -> Subject:
    return Subject(module, {}, inputs, tokenizer, processor)


def wordpiece(extra: tuple[str, ...] = ()) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *extra, *"abcdefghijklmnopqrstuvwxyz0123456789.,"])
    }
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


def bert(**config: Any) -> Subject:
    from transformers import BertConfig, BertForSequenceClassification

    shape = dict(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32)
    module = BertForSequenceClassification(BertConfig(**shape, **config))
    return subject(module, ("input_ids", "attention_mask", "token_type_ids"), wordpiece())


@pytest.fixture(scope="module")
def model() -> Subject:
    return bert()


def phrases(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(2, 9))) + f" {i}" for i in range(count)]


def rows(count: int = 80, seed: int = 0) -> list[tuple[str, int]]:
    return [(text, i % 2) for i, text in enumerate(phrases(count, seed))]


def csv_file(path: Path, lines: list[tuple[Any, ...]], header: str = "text,label", mark: str = ",") -> Path:
    path.write_text("\n".join([header, *(mark.join(map(str, line)) for line in lines)]) + "\n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------------ formats


def test_the_same_rows_give_the_same_examples_in_every_format(tmp_path: Path, model: Subject) -> None:
    import pandas as pd
    import pyarrow
    from pyarrow import parquet

    data = rows()
    texts, labels = [text for text, _ in data], [label for _, label in data]
    csv_file(tmp_path / "a.csv", data)
    csv_file(tmp_path / "b.tsv", data, "text\tlabel", "\t")
    csv_file(tmp_path / "c.csv", data, "text;label", ";")
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "d.jsonl").write_text("\n\n".join(json.dumps({"text": text, "label": label}) for text, label in data))
    (tmp_path / "e.json").write_text(json.dumps([{"text": text, "label": label} for text, label in data]))
    parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / "f.parquet")
    refs: list[Any] = [tmp_path / name for name in ("a.csv", "b.tsv", "c.csv", "bom.csv", "d.jsonl", "e.json", "f.parquet")]
    refs += [
        str(tmp_path / "a.csv"),
        pd.DataFrame({"text": texts, "label": labels}),
        data,
        iter(data),
        {"text": texts, "label": labels},
        (texts, labels),
    ]
    found = [load_data(ref, None, model) for ref in refs]
    for ref, (splits, task) in zip(refs, found, strict=True):
        assert task.kind == "classification" and task.classes == ["0", "1"], ref
        assert splits.test.digest() == found[0][0].test.digest(), ref
        assert splits.train.raw == found[0][0].train.raw, ref
    assert sum(map(len, (found[0][0].train, found[0][0].search, found[0][0].test))) == 80


def test_columns_are_found_by_name_then_by_content(tmp_path: Path, model: Subject) -> None:
    lines = [(i, text, "blue" if label else "red", 0.5 * i) for i, (text, label) in enumerate(rows())]
    path = csv_file(tmp_path / "odd.csv", lines, "id,words said,colour,weight")
    splits, task = load_data(path, None, model)
    assert task.classes == ["blue", "red"] and splits.train.raw and " " in splits.train.raw[0]
    splits, task = load_data(path, "regression", model, columns={"text": "words said", "label": "weight"})
    assert task.kind == "regression" and splits.train.targets.dtype == np.float64
    with pytest.raises(InputError, match="no column 'colr'.*\n.*colour"):
        load_data(path, None, model, columns={"label": "colr"})
    with pytest.raises(InputError, match="means nothing"):
        load_data(path, None, model, columns={"txt": "colour"})


def test_no_header_is_noticed(tmp_path: Path, model: Subject) -> None:
    data = rows()
    path = csv_file(tmp_path / "bare.csv", data[1:], f"{data[0][0]},0")
    splits, _ = load_data(path, None, model)
    assert "no header" in splits.note and sum(map(len, (splits.train, splits.search, splits.test))) == 80


def test_text_pairs_get_token_types(tmp_path: Path, model: Subject) -> None:
    path = csv_file(tmp_path / "pairs.csv", [(text, text[::-1], label) for text, label in rows()], "premise,hypothesis,label")
    splits, task = load_data(path, None, model)
    batch = splits.train.collate([0, 1])
    assert set(np.unique(batch["token_type_ids"])) == {0, 1} and isinstance(splits.train.raw[0], tuple)  # type: ignore[index]
    assert task.kind == "classification"


def test_regression_by_config_and_by_targets(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "scores.csv", [(text, i / 7) for i, (text, _) in enumerate(rows())], "sentence,score")
    splits, task = load_data(path, None, bert(num_labels=1))
    assert task.kind == "regression" and task.metric.name == "spearman"
    assert splits.train.collate_targets([0]).dtype == np.float32
    spread = [float(np.median(part.targets)) for part in (splits.train, splits.search, splits.test)]
    assert max(spread) - min(spread) < 4  # stratified by value


def test_string_labels_follow_the_model_or_the_alphabet(tmp_path: Path, model: Subject) -> None:
    words = [(text, ("negative", "Positive")[label]) for text, label in rows()]
    path = csv_file(tmp_path / "a.csv", words)
    splits, task = load_data(path, None, bert(id2label=NAMES, label2id={v: k for k, v in NAMES.items()}))
    assert task.classes == ["NEGATIVE", "POSITIVE"] and task.named
    by_text = dict(words)
    assert all(task.classes[target].lower() == by_text[text].lower() for text, target in zip(splits.train.raw, splits.train.targets, strict=True))  # type: ignore[arg-type]
    splits, task = load_data(csv_file(tmp_path / "b.csv", [(text, ("yes", "no")[label]) for text, label in rows()]), None, model)
    assert task.classes == ["no", "yes"] and "alphabetical" in splits.note


def test_parts_given_and_rows_of_test_seen_in_train_are_dropped(tmp_path: Path, model: Subject) -> None:
    data = rows(100)
    csv_file(tmp_path / "train.csv", data[:80])
    csv_file(tmp_path / "test.csv", data[75:])
    for ref in (tmp_path, {"train": tmp_path / "train.csv", "test": tmp_path / "test.csv"}, (tmp_path / "train.csv", tmp_path / "test.csv")):
        splits, _ = load_data(ref, None, model)
        assert len(splits.test) == 20 and "5 test rows that also occur in train" in splits.note
        assert len(splits.search) == 16 and len(splits.train) == 64
        assert not set(splits.test.groups) & (set(splits.train.groups) | set(splits.search.groups))
    csv_file(tmp_path / "side.csv", [(*row, "train" if i < 60 else "dev" if i < 70 else "test") for i, row in enumerate(data)], "text,label,part")
    splits, _ = load_data(tmp_path / "side.csv", None, model, splits="part")
    assert (len(splits.train), len(splits.search), len(splits.test)) == (60, 10, 30)


def test_arrays_in_every_dress(tmp_path: Path) -> None:
    from torch import nn

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(90, 3, 4)).astype(np.float64), np.arange(90) % 3
    model = subject(nn.Linear(4, 3), ("x",))
    np.savez(tmp_path / "d.npz", X=x, y=y)
    found = [
        load_data(ref, None, model)
        for ref in (
            (x, y),
            {"x": x, "y": y},
            tmp_path / "d.npz",
            [(a, b) for a, b in zip(x, y, strict=True)],
            [({"x": a}, b) for a, b in zip(x, y, strict=True)],
        )
    ]
    for splits, task in found:
        assert task.kind == "classification" and splits.train.columns["x"].dtype == np.float32
        assert splits.train.digest() == found[0][0].train.digest()
    assert load_data((x, y * 0.5), None, model)[1].kind == "regression"
    with pytest.raises(InputError, match="row 8.*NaN or inf"):
        broken = x.copy()
        broken[7, 1, 1] = np.inf
        load_data((broken, y), None, model)
    with pytest.raises(InputError, match="X has 90 rows, y has 89|x has 90 rows, y has 89"):
        load_data((x, y[:-1]), None, model)
    with pytest.raises(InputError, match="no input called"):
        load_data({"x": x, "mask": x, "y": y}, None, model)


def test_a_torch_loader_is_taken_apart() -> None:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    x, y = torch.randn(64, 5), torch.arange(64) % 2
    model = subject(torch.nn.Linear(5, 2), ("x",))
    whole, _ = load_data(TensorDataset(x, y), None, model)
    loader, _ = load_data(DataLoader(TensorDataset(x, y), batch_size=10), None, model)
    assert whole.test.digest() == loader.test.digest()


def test_pictures_by_class(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4)
    model = subject(ViTForImageClassification(config), ("pixel_values",))
    splits, task = load_data(tmp_path, None, model)
    assert task.classes == ["cat", "dog"] and splits.train.collate([0, 1])["pixel_values"].shape == (2, 3, 8, 8)
    (tmp_path / "cat" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match="1.png is not a readable image"):
        load_data(tmp_path, None, model)


def test_sounds_by_class_and_by_manifest(tmp_path: Path) -> None:
    import torch
    from scipy.io import wavfile
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    rng = np.random.default_rng(0)
    for name in ("low", "high"):
        (tmp_path / name).mkdir()
        for i in range(16):
            wavfile.write(tmp_path / name / f"{i}.wav", 8000, (rng.normal(size=(400 + 10 * i)) * 8000).astype(np.int16))
    model = subject(torch.nn.Linear(4, 2), ("input_values",), processor=Wav2Vec2FeatureExtractor(sampling_rate=16000))
    splits, task = load_data(tmp_path, None, model)
    assert task.classes == ["high", "low"] and splits.train.lengths.min() >= 800  # resampled to twice the rate
    assert abs(float(splits.train.columns["input_values"][0].mean())) < 1e-3

    letters = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    model.tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    (tmp_path / "vocab.json").unlink()
    csv_file(tmp_path / "said.csv", [(f"{name}/{i}.wav", f"{name} tone") for name in ("low", "high") for i in range(16)], "file,text")
    splits, task = load_data(tmp_path, "ctc", model)
    assert task.kind == "ctc" and task.metric.name == "wer" and task.speech is not None
    assert task.answers(splits.train.targets)[0] in ("LOW TONE", "HIGH TONE")
    named, _ = load_data(tmp_path / "said.csv", "ctc", model)  # the table by itself is as good as its folder
    assert np.array_equal(named.train.columns["input_values"][0], splits.train.columns["input_values"][0])
    (tmp_path / "other").mkdir()
    csv_file(tmp_path / "other" / "texts.csv", [(f"a tone {i}", "high") for i in range(16)], "text,label")
    with pytest.raises(InputError, match="The model reads sounds .input_values., and the rows hold none"):
        load_data(tmp_path / "other" / "texts.csv", None, model)
    (tmp_path / "low" / "0.wav").write_bytes(b"RIFF....")
    with pytest.raises(InputError, match="0.wav is not a readable WAV"):
        load_data(tmp_path, "ctc", model)


def forward(module: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return module(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()


def test_text_to_text_gets_shifted_decoder_inputs(tmp_path: Path) -> None:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    module = T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8, decoder_start_token_id=0))
    model = subject(module, ("input_ids", "attention_mask", "decoder_input_ids"), wordpiece())
    path = csv_file(tmp_path / "t.csv", [(text, text.split()[0]) for text, _ in rows()], "source,target")
    splits, task = load_data(path, None, model)
    batch, labels = splits.train.collate([0, 1, 2]), splits.train.collate_targets([0, 1, 2])
    assert task.kind == "seq2seq" and (batch["decoder_input_ids"][:, 0] == 0).all()
    assert (batch["decoder_input_ids"][:, 1:][labels[:, 1:] >= 0] == labels[:, :-1][labels[:, 1:] >= 0]).all()
    assert task.answers(splits.train.targets)[0] in WORDS
    told: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    by_hand = module.eval().generate(**{name: torch.from_numpy(value) for name, value in told.items()}, max_new_tokens=5, do_sample=False)
    found = replace(task, writing=Writing(0, 1, 5)).write(lambda inputs: forward(module, inputs), told)
    assert found == [text.strip() for text in model.tokenizer.batch_decode(by_hand, skip_special_tokens=True)]


def test_language_modelling_keeps_passages_whole(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = subject(
        GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2, n_positions=64)), ("input_ids", "attention_mask"), wordpiece()
    )
    (tmp_path / "book.txt").write_text("\n\n".join(" ".join(phrases(12, seed)) for seed in range(60)))
    splits, task = load_data(tmp_path / "book.txt", None, model, max_length=16)
    assert task.kind == "causal_lm" and task.metric.name == "perplexity" and splits.train.lengths.max() == 16
    assert len(np.unique(splits.test.groups)) < len(splits.test)
    assert not set(splits.train.groups) & set(splits.test.groups)
    assert (splits.test.collate_targets([0]) == splits.test.collate([0])["input_ids"]).all()
    many, _ = load_data([(text, None) for text, _ in rows()], "causal_lm", model)
    assert len(many.train) > 20


def test_a_data_set_object_with_column_names(model: Subject) -> None:
    class Set:
        column_names = ["text", "label"]

        def __getitem__(self, name: str) -> list[Any]:
            return [row[self.column_names.index(name)] for row in rows()]

    assert load_data(Set(), None, model)[1].kind == "classification"


def test_without_labels_the_originals_answers_judge_if_told_to(tmp_path: Path, model: Subject) -> None:
    path = csv_file(tmp_path / "t.csv", [(text,) for text, _ in rows()], "text")
    with pytest.raises(InputError, match="no column 'label'.*\n.*metric agreement"):
        load_data(path, None, model)
    for ref in (path, csv_file(tmp_path / "u.csv", rows())):
        splits, task = load_data(ref, None, model, metric="agreement")
        assert task.metric.name == "agreement" and splits.test.targets is None and "agreement" in splits.note
    csv_file(tmp_path / "v.csv", [(text, i) for i, (text, _) in enumerate(rows())], "text,lable")
    with pytest.raises(InputError, match="no column 'label'.*\n.*Nearest: lable"):
        load_data(tmp_path / "v.csv", None, model)


# ------------------------------------------------------------------------------------------------------------- errors

BAD: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "empty.csv is empty"),
    "blank.csv": (b"\n \n", "blank.csv is empty"),
    "header.csv": (b"text,label\n", "a header and no rows"),
    "latin.csv": ("text,label\ngood,1\nna\xefve,0\n".encode("latin-1"), r"not UTF-8: byte 20 \(0xef\), line 3"),
    "wide.csv": (b"text,label\ngood,1\nbad, really,0\n", r"wide.csv, line 3: 3 cells where the header has 2"),
    "quote.csv": (b'text,label\ngood,1\n"never closed,0\n', "quote.csv, line 3"),
    "broken.jsonl": (b'{"text": "a", "label": 1}\n{"text": "b"\n', "broken.jsonl, line 2: not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: list, not an object"),
    "broken.json": (b'[{"text": "a",]', "broken.json, line 1: not JSON"),
    "broken.parquet": (b"PAR1 nothing", "not a readable Parquet"),
    "broken.npz": (b"PK nothing", "not a readable NPZ"),
    "sheet.xlsx": (b"PK", r"files ending in '.xlsx' are not read"),
    "one.csv": (b"text,label\n" + b"".join(b"good %d,1\n" % i for i in range(60)), "every row has the same label in column 'label'"),
    "few.csv": (b"text,label\ngood,1\nbad,0\n", "2 different rows to learn from; at least 24"),
    "hole.csv": (b"text,label\ngood,1\n,0\nfine,0\n ,1\n", r"hole.csv, lines 3 and 5: no text in column 'text' \(2 rows\)"),
    "nolabel.csv": (b"text,label\ngood,1\nbad,\nfine,nan\n", r"nolabel.csv, lines 3 and 4: no label"),
    "mixed.csv": (b"text,label\ngood,1\nbad,negative\n", "line 2: the label in column 'label' is a number, while in line 3 it is a word"),
    "range.csv": (b"text,label\ngood,1\nbad,2\n", "line 3: label 2 in column 'label', but the model has classes 0 to 1"),
    "half.csv": (b"text,label\ngood,1\nbad,0.5\n", "line 3: the label 0.5 is not a class number"),
    "twice.csv": (b"text,text\na,b\n", "columns of the same name: 1 and 2"),
    "numbers.csv": (b"a,b\n1,2\n3,4\n", "no column that looks like 'text'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_two_lines(tmp_path: Path, model: Subject, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_data(tmp_path / name, None, model)
    assert len(str(caught.value).splitlines()) <= 2 and caught.value.mend


def test_infinite_targets_and_words_in_regression(tmp_path: Path) -> None:
    regressor = bert(num_labels=1)
    with pytest.raises(InputError, match="line 3: column 'label' is infinite"):
        load_data(csv_file(tmp_path / "a.csv", [("good", 1.5), ("bad", "inf")]), None, regressor)
    with pytest.raises(InputError, match="line 3: column 'label' holds a word, not a number"):
        load_data(csv_file(tmp_path / "a.csv", [("good", 1.5), ("bad", "very")]), None, regressor)


def test_missing_things(tmp_path: Path, model: Subject) -> None:
    csv_file(tmp_path / "here.csv", rows())
    with pytest.raises(InputError, match="no file or folder.*\n.*here.csv"):
        load_data(tmp_path / "there.csv", None, model)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no data"):
        load_data(tmp_path / "nothing", None, model)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "loose.png").write_bytes(b"x")
    with pytest.raises(InputError, match="outside class folders"):
        load_data(tmp_path / "pictures", None, model)
    with pytest.raises(InputError, match="no task called 'clasification'.*'classification'"):
        load_data(tmp_path / "here.csv", "clasification", model)
    with pytest.raises(InputError, match="without a tokenizer"):
        load_data(tmp_path / "here.csv", None, subject(model.module, model.inputs))
    with pytest.raises(InputError, match="test.csv has no column 'label'"):
        load_data({"train": tmp_path / "here.csv", "test": csv_file(tmp_path / "test.csv", [("good",)], "text")}, None, model)


WRONG: list[tuple[Any, str]] = [
    ([1, 2, 3], "item 0 is a int"),
    ([("a", 1), ("b",)], "item 1 is a tuple of 1"),
    ([], "no examples"),
    (7, "type int cannot be read"),
    ([("a", 1), ({"x": 1}, 0)], "different types"),
    ([(object(), 1)] * 30, "neither texts nor arrays"),
]


@pytest.mark.parametrize(("ref", "message"), WRONG)
def test_iterables_that_yield_the_wrong_thing(model: Subject, ref: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(ref, None, model)


def test_long_texts_are_cut_with_a_note(tmp_path: Path, model: Subject) -> None:
    data = [(" ".join(WORDS * 3) + f" {i}" if i < 3 else text, label) for i, (text, label) in enumerate(rows())]
    splits, _ = load_data(csv_file(tmp_path / "a.csv", data), None, model)
    assert "3 of 80 texts are longer than 32 tokens" in splits.note
    assert max(part.lengths.max() for part in (splits.train, splits.search, splits.test)) == 32


def test_a_tab_separated_file_with_bare_quotes(tmp_path: Path, model: Subject) -> None:
    data = [(f'"{text}' if i % 9 == 0 else text, label) for i, (text, label) in enumerate(rows())]
    splits, _ = load_data(csv_file(tmp_path / "a.tsv", data, "text\tlabel", "\t"), None, model)
    assert sum(map(len, (splits.train, splits.search, splits.test))) == 80


# -------------------------------------------------------------------------------------------------------------- splits


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(60, 1500))
def test_sides_ignore_order_keep_duplicates_together_and_the_classes_in_proportion(seed: int, salt: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.array([group_of(f"{salt} {i}") for i in rng.integers(0, count, count)])
    stratum = (groups % 3).astype(np.int64)
    shares = {"train": 0.6, "search": 0.15, "test": 0.25}
    made = sides(groups, stratum, shares, salt)
    assert sorted(np.concatenate(list(made.values())).tolist()) == list(range(count))
    of_group = {name: set(groups[index].tolist()) for name, index in made.items()}
    assert not of_group["train"] & of_group["test"] and not of_group["train"] & of_group["search"] and not of_group["search"] & of_group["test"]
    shuffle = rng.permutation(count)
    again = sides(groups[shuffle], stratum[shuffle], shares, salt)
    assert {name: set(groups[shuffle][index].tolist()) for name, index in again.items()} == of_group
    for which in range(3):
        members = {group for group in groups.tolist() if group % 3 == which}
        share = len(members & of_group["test"]) / max(len(members), 1)
        assert abs(share - 0.25) < max(0.11, 1.0 / max(len(members), 1))


def test_the_seed_matters_and_rows_added_later_move_nothing() -> None:
    groups = np.array([group_of(str(i)) for i in range(5000)])
    stratum, shares = np.zeros(5000, dtype=np.int64), {"train": 0.6, "test": 0.4}
    whole, part = sides(groups, stratum, shares, 0), sides(groups[:3000], stratum[:3000], shares, 0)
    assert set(part["test"]) <= set(whole["test"]) and set(part["train"]) <= set(whole["train"])
    assert set(sides(groups, stratum, shares, 1)["test"]) != set(whole["test"])


def test_duplicates_are_the_same_to_a_reader() -> None:
    assert group_of("Good  film ") == group_of("good film") != group_of("good films")
    assert group_of(np.ones(3)) == group_of(np.ones(3)) != group_of(np.ones((3, 1)))
    assert len(np.unique(strata(np.linspace(0, 1, 100)))) == 10


# ------------------------------------------------------------------------------------------------------------ examples


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), max_size=12), min_size=1, max_size=30), st.data())
def test_padding_and_taking_equal_the_plain_way(lists: list[list[int]], data: st.DataObject) -> None:
    examples = Examples({"input_ids": [np.array(row, dtype=np.int64) for row in lists]}, np.arange(len(lists)), pad={"input_ids": 7})
    index = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1, max_size=9)))
    width = max([len(lists[i]) for i in index] + [1])
    plain = np.array([lists[i] + [7] * (width - len(lists[i])) for i in index])
    assert (examples.collate(index)["input_ids"] == plain).all()
    some = examples.take(index)
    assert (some.collate(np.arange(len(index)))["input_ids"] == plain).all() and (some.targets == index).all()
    assert some.digest() == examples.take(index).digest()


def test_batches_cover_every_row_once_and_bucket() -> None:
    rng = np.random.default_rng(0)
    examples = Examples({"x": [np.ones(n, dtype=np.int64) for n in rng.integers(1, 60, 1000)]})
    for seed in (None, 0, 1):
        found = examples.batches(16, seed=seed)
        assert sorted(np.concatenate(found).tolist()) == list(range(1000))
        waste = sum(len(b) * examples.lengths[b].max() for b in found) / examples.lengths.sum()
        assert waste < 1.15
    assert not all((a == b).all() for a, b in zip(examples.batches(16, seed=0), examples.batches(16, seed=1), strict=True) if len(a) == len(b))
    assert [b.tolist() for b in examples.batches(400, bucket=False)][0] == list(range(400))


def test_equal_rows_share_a_group_and_targets_pad_with_minus_100() -> None:
    examples = Examples({"x": np.array([[1.0, 2], [3, 4], [1, 2]])}, Ragged.of([[1, 2], [3], []]))
    assert examples.groups[0] == examples.groups[2] != examples.groups[1]
    assert examples.collate_targets([0, 1]).tolist() == [[1, 2], [3, -100]]


def test_new_inputs_without_labels_encode_alike(tmp_path: Path, model: Subject) -> None:
    splits, task = load_data(csv_file(tmp_path / "a.csv", rows()), None, model)
    texts = splits.test.raw
    assert texts is not None
    again = load_inputs(texts, task, model)
    assert (again.collate([0])["input_ids"] == splits.test.collate([0])["input_ids"]).all() and again.targets is None
    assert len(load_inputs("a good film", task, model)) == 1 and load_inputs(texts, task, None).raw == texts
    csv_file(tmp_path / "new.csv", [(text,) for text in texts], "text")
    assert load_inputs(tmp_path / "new.csv", task, model).digest() == again.digest()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet", "npz", "txt"]),
    st.binary(max_size=200) | st.text(',"\t\n;{}[]:01ab.-| ', max_size=200).map(str.encode),
)
def test_whatever_is_in_the_file_the_answer_is_data_or_two_lines(tmp_path: Path, model: Subject, ending: str, content: bytes) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    try:
        load_data(path, None, model)
    except InputError as error:
        assert len(str(error).splitlines()) <= 2, error


LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text("ab ", max_size=4)
KEYS = st.sampled_from(["text", "label", "train", "x", "y"])
THINGS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner, inner), max_leaves=12
)


@settings(max_examples=80, deadline=None)
@given(THINGS)
def test_whatever_is_handed_over_the_answer_is_data_or_two_lines(ref: Any) -> None:
    model = subject(torch_linear(), ("x",))
    try:
        load_data(ref, None, model)
    except InputError as error:
        assert len(str(error).splitlines()) <= 2, error


def torch_linear() -> Any:
    from torch import nn

    return nn.Linear(2, 2)


def test_the_users_metric_is_rehearsed_before_anything_dear(tmp_path: Path, model: Subject) -> None:
    path = csv_file(tmp_path / "a.csv", rows())
    calls: list[int] = []

    def picky(predictions: Any, targets: Any) -> float:
        calls.append(len(targets))
        raise ValueError("I want\nnumbers")

    with pytest.raises(MetricError, match="'picky' raised ValueError: I want"):
        load_data(path, None, model, metric=picky)
    assert load_data(path, None, model, metric="operator:eq")[1].metric.name == "eq"
    with pytest.raises(InputError, match="cannot be imported"):
        load_data(path, None, model, metric="no.such:thing")
    with pytest.raises(InputError, match="Did you mean 'accuracy'"):
        load_data(path, None, model, metric="acuracy")


def test_pictures_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from fourfold.datasets import media

    (tmp_path / "a").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / f"{i}.png")
    monkeypatch.setattr(media, "ROOM", 1000)
    with pytest.raises(InputError, match="3 images of 3 × 8 × 8 need 0.0 GB"):
        load_data(tmp_path, "custom", subject(torch_linear(), ("x",)))


def test_a_factory_of_data_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def rows():\n    return [('a good film', 1), ('a bad one', 0)]\n\ndef worse():\n    raise KeyError('secret')\n"
    (tmp_path / "rows_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    from fourfold.datasets.sources import read

    assert read("rows_of_mine:rows").columns["label"] == [1, 0]  # type: ignore[union-attr]
    for ref, words in (("rows_of_mine:none", "be imported"), ("no_such_module:x", "be imported"), ("rows_of_mine:worse", "raised KeyError")):
        with pytest.raises(InputError, match=words) as told:
            read(ref)
        assert "secret" not in str(told.value) and len(str(told.value).splitlines()) == 2
