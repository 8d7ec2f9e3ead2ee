"""Loading: what can be read is read right, what cannot is refused in two lines; any tree survives JSON."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import strangers
import torch
from safetensors.torch import save_file
from table import SMALL, Encoder
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.frontends.model import load_model, load_state, rebuild, state
from fourfold.frontends.subject import answer
from fourfold.recipe import Recipe, apply, pack, unpack
from fourfold.structure.discover import Keep, anatomize, recipe_for
from fourfold.structure.serialize import describe


def bert(**options: object) -> nn.Module:
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL | options))


def factory() -> tuple[nn.Module, None]:
    return Encoder(), None


def wrong() -> str:
    return "not a model"


def broken() -> nn.Module:
    raise RuntimeError("no weights here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bert().save_pretrained(tmp_path)
    return tmp_path


IDS = torch.arange(5, 21).reshape(2, 8)


def test_folder(folder: Path) -> None:
    subject = load_model(folder)
    assert subject.inputs == ("input_ids", "attention_mask", "token_type_ids") and subject.folder == folder
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    again = load_state(rebuild(json.loads(json.dumps(subject.origin))), state(subject.module))
    with torch.no_grad():
        assert torch.equal(subject.logits(again, inputs), subject.logits(subject.module, inputs))
        assert torch.equal(subject.wrap(again)(*inputs.values(), torch.zeros_like(IDS)), subject.logits(again, inputs))


def test_shards(tmp_path: Path) -> None:
    module = bert()
    module.save_pretrained(tmp_path, max_shard_size="50KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    inputs = {"input_ids": IDS}
    subject = load_model(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(subject.logits(subject.module, inputs), subject.logits(module.eval(), inputs))


def refused(ref: object, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(ref)
    assert len(str(caught.value).splitlines()) <= 2
    assert all(word in str(caught.value) for word in words), caught.value


def test_refusals_of_folders(folder: Path, tmp_path: Path) -> None:
    refused("/no/such/folder", "no folder")
    refused(3, "int")
    refused(folder / "config.json", "is a file")
    weights, config = folder / "model.safetensors", folder / "config.json"
    good = json.loads(config.read_text())
    config.write_text(json.dumps(good | {"architectures": ["NobodysModel"]}))
    refused(folder, "NobodysModel")
    config.write_text(json.dumps(good | {"intermediate_size": 77}))
    refused(folder, "BertForSequenceClassification")
    config.write_text("{")
    refused(folder, "config.json")
    config.write_text(json.dumps(good))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, "model.safetensors")
    weights.rename(folder / "pytorch_model.bin")
    refused(folder, "pickle", "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "safetensors")
    config.unlink()
    refused(folder, "config.json")


def test_missing_head(folder: Path) -> None:
    """Weights without the head that config.json promises would be random there."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "classifier")


def test_factories() -> None:
    subject = load_model("test_model:factory")
    assert subject.inputs == ("input_ids", "attention_mask") and subject.tokenizer is None and not subject.module.training
    refused("test_model:wrong", "str")
    refused("test_model:broken", "no weights here")
    refused("test_model:nothing", "nothing")
    refused("no_such_module:f", "no_such_module")
    refused("test_model:IDS", "Tensor")


def test_answers() -> None:
    x, y = torch.zeros(2, 3), torch.ones(2)
    assert answer(x) is x and answer((x, y)) is x and answer({"loss": y, "logits": x}) is x
    assert answer({"last_hidden_state": x, "pooler_output": y}) is x and answer([None, [x]]) is x
    assert answer({"start_logits": x, "end_logits": x}).shape == (2, 3, 2)
    with pytest.raises(ModelError):
        answer({"text": "hello"})


class Odd(nn.Module):
    """Plain attributes of every kind that is data, a tied weight, an unsaved buffer, functions by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.act, self.sizes, self.kind, self.limit = torch.nn.functional.gelu, (1, 2), {"a": [1, 2.5], 3: None}, float("inf")
        self.dtype, self.shape, self.twice = torch.float32, torch.Size([2, 2]), self.first
        self.register_buffer("scale", torch.tensor([2.0, 3.0, 4.0, 5.0]), persistent=False)
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.twice(x))) * self.scale + self.steps


def test_tree() -> None:
    module = Odd()
    subject = load_model(module)
    assert subject.origin["kind"] == "tree" and len(state(module)) == 4
    again = load_state(rebuild(json.loads(json.dumps(subject.origin))), state(module))
    assert again.second.weight is again.first.weight and again.twice is again.first
    x = torch.randn(3, 4)
    assert torch.equal(again(x), module(x))
    assert again.sizes == (1, 2) and again.kind == {"a": [1, 2.5], 3: None} and again.limit == float("inf") and again.dtype is torch.float32


def test_tree_refuses_code() -> None:
    """What is not data is named; the model can be worked on all the same, but not be made again."""

    def opaque(module: nn.Module, word: str) -> None:
        with pytest.raises(ModelError, match=word):
            describe(module)
        origin = load_model(module).origin
        assert origin["kind"] == "opaque" and word in origin["why"]
        with pytest.raises(ModelError, match=word):
            rebuild(json.loads(json.dumps(origin)))

    module = nn.Sequential(nn.Linear(2, 2))
    module.reading = open(__file__)
    with module.reading:
        opaque(module, "reading")
    module.reading = partial(print)
    opaque(module, "reading")
    opaque(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))), "parametrised")
    assert load_model("test_model:parametrised").origin == {"kind": "factory", "entry": "test_model:parametrised"}


def parametrised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def test_changed_by_hand() -> None:
    """A transformers model with another head is not what its configuration says, so the tree is stored."""
    module = bert()
    module.classifier = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 2))
    subject = load_model(module)
    assert subject.origin["kind"] == "tree"
    inputs = {"input_ids": IDS}
    again = load_state(rebuild(subject.origin), state(module))
    with torch.no_grad():
        assert torch.equal(subject.logits(again, inputs), subject.logits(module.eval(), inputs))


def test_states_that_do_not_fit() -> None:
    module = nn.Linear(3, 3)
    for tensors in ({"weight": torch.zeros(3, 3)}, state(module) | {"other": torch.zeros(1)}, state(module) | {"weight": torch.zeros(2, 3)}):
        with pytest.raises(ModelError):
            load_state(nn.Linear(3, 3), tensors)


def test_ranges() -> None:
    for index in ([], [3], [0, 1, 2, 7, 9, 10], [5, 4, 3], list(range(1000))):
        assert unpack(pack(index)) == index
    assert pack(range(100)) == "0-99"
    with pytest.raises(ModelError):
        unpack("a-b")


def test_recipes_refuse() -> None:
    with pytest.raises(ModelError):
        Recipe.from_json('{"edits": [{"kind": "explode"}]}')
    with pytest.raises(ModelError):
        Recipe.from_json("{")
    with pytest.raises(ModelError, match="nowhere"):
        apply(nn.Linear(2, 2), Recipe(({"kind": "slice", "path": "nowhere", "axis": "out", "index": "0"},)))


def test_keeps_refuse() -> None:
    module, inputs = bert().eval(), {"input_ids": IDS}
    anatomy = anatomize(module, lambda m: m(**inputs).logits)
    for keep in (
        Keep(blocks={"nobody": [0]}), Keep(blocks={"encoder": [7]}), Keep(units={"encoder.0.ffn": [500]}), Keep(absent=["encoder.9.ffn"]),
    ):  # fmt: skip
        with pytest.raises(ModelError):
            recipe_for(anatomy, keep)


def test_anatomy_leaves_the_model_alone() -> None:
    """Weights, modes and attributes are as before, also where the model is in training."""
    module = bert().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    settings = module.config.to_dict()  # type: ignore[union-attr]
    anatomize(module, lambda m: m(input_ids=IDS).logits)
    assert module.training and all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert module.config.to_dict() == settings and not module._forward_hooks  # type: ignore[union-attr]
    assert all(p.requires_grad for p in module.parameters())


def test_anatomy_refuses_noise() -> None:
    class Noisy(strangers.Plain):
        def forward(self, pixel_values: Tensor) -> Tensor:
            return super().forward(pixel_values + torch.randn_like(pixel_values))

    with pytest.raises(ModelError, match="differently"):
        anatomize(Noisy(), lambda m: m(torch.randn(2, 3, 16, 16)))


def test_dead_weights_prove_nothing() -> None:
    """A consumer of zeros hides every mistake, so proofs are made with noise in its place."""
    module = strangers.Eyes().eval()
    for block in list(module.blocks)[:2]:
        nn.init.zeros_(block.mlp[3].weight)
        nn.init.zeros_(block.attn.proj.weight)
    x = torch.randn(2, 3, 32, 32)
    anatomy = anatomize(module, lambda m: m(x))
    assert {b.count for b in anatomy.bundles.values()} == {4, 128}
    assert not module.blocks[0].mlp[3].weight.any()
