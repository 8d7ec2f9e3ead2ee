"""`fourfold profile`: time and active units of a model as they are, conversions raced or refused in words, and what the command prints."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fourfold
from fourfold.cli import main
from fourfold.errors import InputError
from fourfold.jobs.profile import ModelProfile, Prospect, Ways
from fourfold.measure.probe import Activity, Probe, TimeShare, _Spans, probe
from fourfold.nn import SparseMLP
from fourfold.report.profile import sentences
from fourfold.structure.sites import sites

WORDS = [f"word{i}" for i in range(40)]


def encoder(width: int = 64, hidden: int = 128) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(width, 4, hidden, batch_first=True, norm_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(3, 9, width)


def test_parts_and_rest_are_the_whole_and_the_module_is_left_alone() -> None:
    model, x = encoder()
    model.train()
    seen = probe(model, lambda m: m(x), sites(model, lambda m: m(x)), rounds=5)
    assert set(seen.parts) == {f"blocks.{i}.{kind}" for i in range(2) for kind in ("attention", "ffn")} or len(seen.parts) == 4
    shares = [one.value for one in seen.parts.values()]
    assert all(0 < share < 1 for share in shares) and sum(shares) < 1 and seen.rounds == 5 and seen.seconds > 0
    assert all(one.low <= one.value <= one.high for one in (*seen.parts.values(), *seen.kinds.values()))
    assert seen.kinds["core"].value <= seen.kinds["attention"].value and seen.share(seen.parts) == pytest.approx(sum(shares))
    assert model.training and not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert json.loads(json.dumps(seen.to_json()))["kinds"].keys() == {"attention", "core", "mlp", "rest"}
    with pytest.raises(ValueError, match="measure nothing"):
        probe(model, lambda m: m(x), sites(model, lambda m: m(x)), rounds=0)


def test_the_wider_part_takes_more() -> None:
    for hidden, wide in ((16, False), (4096, True)):
        model, x = encoder(hidden=hidden)
        found = probe(model, lambda m, x=x: m(x), sites(model, lambda m, x=x: m(x)), rounds=5).kinds
        assert (found["mlp"].value > found["attention"].value) == wide


def test_active_units_are_counted_as_a_loop_counts_them() -> None:
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 6)), torch.randn(40, 6)
    (one,) = probe(model, lambda m: m(x), sites(model, lambda m: m(x)), rounds=1).activities
    h = torch.relu(model[0](x)).detach().numpy()
    needed = []
    for row in h**2:
        ordered, held, count = np.sort(row)[::-1], 0.0, 0
        while held < 0.99 * row.sum():
            held, count = held + ordered[count], count + 1
        needed.append(count / 50)
    assert (one.hidden, one.positions, one.function) == (50, 40, "relu")
    assert one.nonzero == pytest.approx(np.count_nonzero(h) / h.size) and one.needed == pytest.approx(float(np.sort(needed)[19]))
    assert one.near == pytest.approx(((h > 0) & (h <= 0.01 * np.sqrt((h**2).mean()))).mean(), abs=1e-6)
    sparse = nn.Sequential(SparseMLP(6, 50, k=5))
    (ours,) = probe(sparse, lambda m: m(x), sites(sparse, lambda m: m(x)), rounds=1, watched={"0": "0.active"}).activities
    assert ours.nonzero == pytest.approx(0.1) and ours.needed <= 0.1001
    with torch.no_grad():
        model[0].weight.zero_(), model[0].bias.fill_(-1)  # type: ignore[union-attr]
    (none,) = probe(model, lambda m: m(x), sites(model, lambda m: m(x)), rounds=1).activities
    assert (none.nonzero, none.near, none.needed) == (0, 0, 0)


def test_a_part_that_runs_twice_counts_twice() -> None:
    spans = _Spans()
    spans.events = [("a", True, 0.0), ("a", True, 1.0), ("a", False, 2.0), ("a", False, 3.0), ("a", True, 5.0), ("b", True, 5.5), ("a", False, 6.0)]
    assert spans.totals() == {"a": 4.0} and spans.events == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer, and texts beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("profiled")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=42, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                             max_position_embeddings=32)).save_pretrained(path / "model")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path / "model")
    rng = np.random.default_rng(0)
    with (path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([" ".join(rng.choice(WORDS, rng.integers(3, 20)))] for _ in range(60))])
    return path


def test_a_model_on_texts_without_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["profile", str(folder / "model"), "--data", str(folder / "texts.csv"), "--rows", "4", "--rounds", "5"]
    assert main.run([*given, "--to", "topk-mlp", "--to", "relu-mlp", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 4 and 3 <= told["lengths"][0] <= told["lengths"][1] <= told["lengths"][2] < 20
    assert [one["name"] for one in told["probe"]["activities"]] == ["encoder.0.ffn", "encoder.1.ffn"]
    assert {one["to"]: one["sites"] for one in told["prospects"]} == {"topk-mlp": 2, "relu-mlp": 2}
    for one in told["prospects"]:
        assert one["batch"]["cpu"][0] > 0 and one["decode"] is None and one["pays"] == one["batch"]["faster"] and 0 < one["share"] < 1
    assert main.run([*given, "--no-race"]) == 0
    said = capsys.readouterr().out
    assert "Of the" in said and "encoder.1.ffn" in said and "pays" not in said and "Units of 2 MLPs" in said
    assert main.run(["profile", str(folder / "model"), "--data", str(folder / "texts.csv"), "--to", "nothing"]) == 2


def test_decoders_are_raced_on_one_position_and_refusals_are_told(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=42, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1))
    found = fourfold.profile(model, str(folder / "texts.csv"), tokenizer=folder / "model", task="causal_lm", rows=3, rounds=5,
                             conversions=["topk-mlp"])
    assert found.prospects[0].decode is not None and found.prospects[0].sites == 1 and len(found.sentences) > 4
    bare = nn.Sequential(nn.Linear(4, 3))
    rows = [{"x": list(map(float, row)), "label": int(row[0] > 0)} for row in np.random.default_rng(0).normal(size=(60, 4))]
    with pytest.raises(InputError, match="rounds tell nothing"):
        fourfold.profile(bare, rows, rounds=2)
    with pytest.raises(InputError, match="no conversion"):
        fourfold.profile(bare, rows, conversions=["nothing"])


def words(*prospects: Prospect) -> str:
    kinds = {kind: TimeShare(value, value - 0.01, value + 0.01) for kind, value in (("attention", 0.2), ("core", 0.03), ("mlp", 0.5), ("rest", 0.3))}
    seen = Probe(0.004, 7, {"a": TimeShare(0.5, 0.4, 0.6)}, kinds, (Activity("a", "a.down", "relu", 8, 9, 0.1, 0.0, 0.05),))
    return "\n".join(sentences(ModelProfile("m/", "d.csv", 4, (3, 5, 9), 36, 1, "here", seen, prospects, {"b": "it is odd."})))


def test_sentences_say_what_pays_and_why_the_rest_does_not() -> None:
    said = words(Prospect("x-mlp", "route/x", 2, 0.5, Ways((0.8, 0.7, 0.9), (0.8, 0.7, 0.9), True), None),
                 Prospect("y", "attend/y", refused="No attention."),
                 Prospect("z", "attend/z", 1, 0.03, Ways((1.2, 1.1, 1.3), (1.0, 0.9, 1.1), False), None))
    assert "x-mlp: could pay. It takes 2 parts with 50 % of the time; raced, it costs 0.80 [0.70, 0.90] of the processor time" in said
    assert "y: cannot be done here, since no attention." in said and "z: does not pay" in said and "at most that share could be saved" in said
    assert "Could pay here: x-mlp." in said and "Not read: b, since it is odd." in said and "10 %" in said
    assert "No conversion pays on these inputs on this machine." in words(Prospect("y", "attend/y", refused="No attention."))
    assert "pays" not in words()
