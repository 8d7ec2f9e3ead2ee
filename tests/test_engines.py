"""Every engine on real tiny models: right answers at other batch sizes and lengths, from files alone where promised, and refusals in words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fourfold import engines
from fourfold.engines.base import PRECISIONS, Batch, Session, Signature, missing, slow_bf16
from fourfold.engines.parity import parity, references, relevant
from fourfold.errors import Declined, InputError
from fourfold.host import here

QUICK = [(kind.name, p) for kind in engines.engines() if kind.name != "inductor" for p in kind.precisions]


@dataclass(frozen=True)
class Case:
    """A wrapped module, how it is called, batches of several shapes and its fp32 answers."""

    module: nn.Module
    signature: Signature
    batches: list[Batch]
    wanted: list[np.ndarray]


def tokens(batch: int, length: int, high: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, high, (batch, length))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        self.model = BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=64, num_labels=5))

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tensors[0], attention_mask=tensors[1]).logits


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import T5Config, T5ForConditionalGeneration

        self.model = T5ForConditionalGeneration(
            T5Config(d_model=64, d_ff=128, d_kv=16, num_layers=2, num_heads=4, vocab_size=120, decoder_start_token_id=0)
        )

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        ids, mask, decoder = tensors
        return self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=decoder, use_cache=False).logits


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixel_values))


def masked(batch: int, length: int, seed: int) -> Batch:
    ids = tokens(batch, length, 120, seed)
    mask = np.ones_like(ids)
    mask[0, max(1, length - 2) :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def build(kind: str) -> Case:
    torch.manual_seed(0)
    shapes = [(6, 12), (3, 9), (1, 5), (4, 17)]
    if kind == "bert":
        module, batches = Bert(), [masked(b, n, i) for i, (b, n) in enumerate(shapes)]
    elif kind == "t5":
        module = T5()
        batches = [masked(b, n, i) | {"decoder_input_ids": tokens(b, 2 + n // 2, 120, i + 9)} for i, (b, n) in enumerate(shapes)]
    else:
        module = Picture()
        batches = [{"pixel_values": np.random.default_rng(i).normal(size=(b, 3, 24, 24)).astype(np.float32)} for i, (b, _) in enumerate(shapes)]
    module.eval()
    signature = Signature.of(tuple(batches[0]), batches)
    return Case(module, signature, batches, references(module, signature, batches))


@pytest.fixture(scope="module", params=["bert", "t5", "picture"])
def case(request: pytest.FixtureRequest) -> Case:
    return build(request.param)


@pytest.fixture(scope="module")
def bert() -> Case:
    return build("bert")


@pytest.mark.parametrize(("name", "precision"), QUICK, ids=lambda value: value)
def test_answers_at_any_batch_size_and_length(case: Case, name: str, precision: str, tmp_path: Path) -> None:
    kind = engines.engine(name)
    if reason := kind.declines(precision, here()):
        pytest.skip(reason)
    if case.signature.names[-1] == "decoder_input_ids" and (name, precision) == ("onnxruntime", "int8"):
        pytest.skip("two exports of an encoder-decoder take half a minute")
    files = kind.export(case.module, case.signature, case.batches[:3], precision, tmp_path)
    assert all((tmp_path / file).is_file() for file in files)
    session = kind.open(tmp_path, None if kind.standalone else case.module, case.signature, precision, 1)
    # The last batch has a shape that neither export nor calibration saw.
    noise, reason = parity(session, case.batches, case.wanted, precision)
    assert reason is None
    assert noise < (1e-4 if precision == "fp32" else 0.25)
    out = session.run(case.batches[0])
    assert out.dtype == np.float32 and session.bytes > 0
    again = session.run(case.batches[1])
    assert again is not out and session.run(case.batches[0]) == pytest.approx(out, abs=1e-6)  # no memory is shared between answers
    told = session.describe()
    assert told["engine"] == name and told["precision"] == precision and told["threads"] == 1
    session.close()
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_compiled(bert: Case, precision: str, tmp_path: Path) -> None:
    kind = engines.engine("inductor")
    if reason := kind.declines(precision, here()):
        pytest.skip(reason)
    session = kind.open(tmp_path, bert.module, bert.signature, precision, 1)
    assert parity(session, bert.batches, bert.wanted, precision)[1] is None
    assert session.describe()["compile_seconds"] > 0 and session.describe()["frozen"] == (precision == "int8")
    session.close()


@pytest.mark.apart
def test_a_compilation_that_takes_too_long_is_a_reason(bert: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = engines.engine("inductor")
    if reason := kind.declines("fp32", here()):
        pytest.skip(reason)
    monkeypatch.setenv("FOURFOLD_COMPILE_LIMIT", "0.2")
    with pytest.raises(Declined, match="took longer"):
        kind.open(tmp_path, bert.module, bert.signature, "fp32", 1)


@pytest.mark.parametrize("name", [kind.name for kind in engines.engines() if kind.standalone])
def test_files_alone_are_enough_in_a_fresh_process(bert: Case, name: str, tmp_path: Path) -> None:
    kind = engines.engine(name)
    if reason := kind.declines("fp32", here()):
        pytest.skip(reason)
    kind.export(bert.module, bert.signature, bert.batches[:2], "fp32", tmp_path)
    import json

    (tmp_path / "signature.json").write_text(json.dumps(bert.signature.to_json()))
    np.savez(tmp_path / "batch.npz", **bert.batches[3])
    code = (
        "import sys, json, numpy as np; from pathlib import Path; from fourfold.engines import engine;"
        "from fourfold.engines.base import Signature; d = Path(sys.argv[1]);"
        "s = engine(sys.argv[2]).open(d, None, Signature.from_json(json.loads((d / 'signature.json').read_text())), 'fp32', 1);"
        "np.save(d / 'out.npy', s.run(dict(np.load(d / 'batch.npz'))))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), name], check=True, cwd=Path(__file__).parents[1])
    assert np.load(tmp_path / "out.npy") == pytest.approx(bert.wanted[3], abs=1e-4)


def test_stale_files_in_the_folder_are_not_taken_for_this_model(bert: Case, tmp_path: Path) -> None:
    kind = engines.engine("openvino")
    if reason := kind.declines("fp32", here()):
        pytest.skip(reason)
    kind.export(bert.module, bert.signature, bert.batches[:3], "fp32", tmp_path)
    torch.manual_seed(5)
    other = Bert().eval()
    kind.export(other, bert.signature, bert.batches[:3], "int8-weights", tmp_path)
    session = kind.open(tmp_path, None, bert.signature, "int8-weights", 1)
    assert parity(session, bert.batches, references(other, bert.signature, bert.batches), "int8-weights")[1] is None


def test_the_registry_is_the_folder() -> None:
    assert engines.names() == ["inductor", "onnxruntime", "openvino", "torch"]
    for kind in engines.engines():
        assert kind.name in engines.names() and kind.title and set(kind.precisions) <= set(PRECISIONS)
    with pytest.raises(InputError, match="abacus"):
        engines.engine("abacus")


def test_refusals_are_sentences() -> None:
    @dataclass
    class Old:
        flags: frozenset[str] = frozenset({"avx2"})

    assert "bf16" in str(engines.engine("torch").declines("bf16", Old())) and engines.engine("torch").declines("fp32", Old()) is None
    assert slow_bf16(Old()) and slow_bf16(Old(frozenset())) is None and slow_bf16(Old(frozenset({"amx_bf16"}))) is None
    assert "int3" in str(engines.engine("torch").declines("int3", Old()))
    assert "fourfold[nothing_of_this_name]" in str(missing(("nothing_of_this_name",))) and missing(("numpy",)) is None
    with pytest.raises(Declined, match="module"):
        engines.engine("torch").open(Path("."), None, build("picture").signature, "fp32", 1)


@pytest.mark.parametrize("name", [kind.name for kind in engines.engines() if kind.standalone])
def test_a_model_seen_at_one_length_only_takes_others(bert: Case, name: str, tmp_path: Path) -> None:
    kind = engines.engine(name)
    if reason := kind.declines("fp32", here()):
        pytest.skip(reason)
    equal = [masked(4, 16, 0), masked(2, 16, 1)]
    signature = Signature.of(tuple(equal[0]), equal)
    kind.export(bert.module, signature, equal, "fp32", tmp_path)
    assert parity(kind.open(tmp_path, None, signature, "fp32", 1), bert.batches, bert.wanted, "fp32")[1] is None


def test_what_is_dynamic_is_read_off_the_batches() -> None:
    signature = build("t5").signature
    assert signature.dynamic["input_ids"] == signature.dynamic["attention_mask"] == {0: "batch", 1: "length"}
    assert signature.dynamic["decoder_input_ids"][1] != "length"
    assert build("picture").signature.dynamic == {"pixel_values": {0: "batch"}}
    equal = [masked(4, 16, 0), masked(2, 16, 1)]
    assert Signature.of(tuple(equal[0]), equal).dynamic["input_ids"] == {0: "batch", 1: "length"}
    again = Signature.from_json(signature.to_json())
    assert again.names == signature.names and again.dynamic == signature.dynamic and again.dtypes == signature.dtypes
    with pytest.raises(InputError, match="pixel_values"):
        Signature.of(("pixel_values",), [masked(2, 4, 0)])
    with pytest.raises(InputError, match="no batch"):
        Signature.of(("pixel_values",), [])


class Wrong(Session):
    """Answers that a broken engine might give."""

    def __init__(self, answer: np.ndarray | Exception) -> None:
        self.answer = answer

    def run(self, inputs: object) -> np.ndarray:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def describe(self) -> dict[str, str]:
        return {}


def test_broken_answers_are_rejected_in_words() -> None:
    batch, right = masked(3, 4, 0), np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    for answer, word in [
        (np.full_like(right, np.nan), "NaN"),
        (right[:2], "shape"),
        (RuntimeError("axis 1"), "fails"),
        (right + np.float32(5) * right[::-1], "off by"),
    ]:
        noise, reason = parity(Wrong(answer), [batch], [right], "fp32")
        assert noise > 0 and word in str(reason)
    assert parity(Wrong(right), [batch], [right], "fp32") == (0.0, None)


def test_padding_is_not_compared() -> None:
    batch, out = masked(2, 6, 0), np.zeros((2, 6, 9), np.float32)
    assert relevant(batch, out).shape == (int(batch["attention_mask"].sum()), 9)
    assert relevant(batch, np.zeros((2, 3), np.float32)).shape == (2, 3)
    assert relevant(batch | {"decoder_input_ids": tokens(2, 6, 9, 0)}, out).shape == (12, 9)
