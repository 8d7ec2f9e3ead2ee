"""What every conversion owes: sites that it names, plain edits, an exactness that is true, a gradient, and the same answers when it is made again in
a fresh process from its edits and its weights.

The registry is the list of parameters: a technique with `converts` is tested by being there. It must convert at least one of the samples.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zygote import freshly

from fourfold import registry
from fourfold.errors import ModelError
from fourfold.frontends.model import origin_of, state
from fourfold.recipe import Recipe, apply
from fourfold.rewrite import Conversion
from fourfold.structure.sites import Sites, sites

NAMES = sorted(registry.conversions())
Call = Callable[[nn.Module], Tensor]
IDS = torch.randint(5, 120, (3, 12), generator=torch.Generator().manual_seed(1))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(
        vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, max_position_embeddings=40, num_labels=3,
    ))  # fmt: skip


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=64, n_layer=2, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=2))


def plain() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Embedding(120, 64), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 2))


def relu() -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(vocab_size=120, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, word_embed_proj_dim=64,
                                    max_position_embeddings=40))


SAMPLES = {"bert": bert, "gpt2": gpt2, "plain": plain, "opt": relu}


def call(model: nn.Module) -> Tensor:
    if not hasattr(model, "config"):
        return model(IDS)
    return model(input_ids=IDS, **({"use_cache": False} if hasattr(model, "generate") else {})).logits


@functools.cache
def _sample(kind: str) -> tuple[nn.Module, Sites]:
    torch.manual_seed(0)
    model = SAMPLES[kind]().eval()
    return model, sites(model, call)


def sample(kind: str) -> tuple[nn.Module, Sites]:
    """A copy of the model, and the sites found in it (once)."""
    model, found = _sample(kind)
    return copy.deepcopy(model), found


def converted(name: str, found: Sites) -> list[Conversion]:
    """What the technique does here; [] where it refuses in words."""
    try:
        return registry.technique(registry.conversions()[name])().conversions(found, name)
    except ModelError as error:
        assert len(str(error).splitlines()) == 2 and len(str(error).split()) > 6, "a refusal says what was found and how to mend it"
        return []


@pytest.mark.parametrize("name", NAMES)
def test_it_converts_some_sample_and_the_others_are_refused_in_words(name: str) -> None:
    assert any(converted(name, sample(kind)[1]) for kind in SAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_convert_is_said_in_words(name: str) -> None:
    assert converted(name, Sites((), (), {})) == []


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("name", NAMES)
def test_conversions_are_plain_say_what_they_do_and_are_as_exact_as_they_say(name: str, kind: str) -> None:
    model, found = sample(kind)
    many = converted(name, found)
    known = {site.name for site in (*found.attentions, *found.mlps)}
    if not many:
        return
    for one in many:
        assert one.site in known and one.edits and json.loads(json.dumps(one.edits)) == list(one.edits) and len(one.note.split()) > 3
    edits = Recipe(tuple(edit for one in many for edit in one.edits))
    with torch.no_grad():
        before = call(model)
        made = apply(copy.deepcopy(model), edits).eval()
        after = call(made)
        assert after.shape == before.shape and torch.isfinite(after).all() and torch.equal(call(model), before)
    if all(one.exact for one in many):
        assert float((after - before).abs().max()) < 2e-4 * float(before.abs().max())
    made.train()
    torch.manual_seed(0)
    call(made).square().mean().backward()
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)


CHILD = """
import json, sys
from pathlib import Path
import torch
from fourfold.recipe import Recipe
from fourfold.runtime.loading import restore
from fourfold.trust import Trust
for folder in map(Path, sys.argv[1:]):
    said = json.loads((folder / "it.json").read_text())
    ids = torch.tensor(said["ids"])
    made = restore(said["origin"], Recipe.from_json(said["recipe"]), folder / "it.safetensors", Trust())
    with torch.no_grad():
        found = made(ids) if said["plain"] else made(input_ids=ids).logits
    torch.save(found, folder / "it.found")
"""


@pytest.mark.parametrize("name", NAMES)
def test_it_is_made_again_equal_in_a_fresh_process_without_trust(name: str, tmp_path: Path) -> None:
    """From the original's shape and the edits; and, as when a converted model is optimised, from its own shape. One process makes all samples."""
    from safetensors.torch import save_file

    wanted: dict[Path, Tensor] = {}
    for kind in SAMPLES:
        model, found = sample(kind)
        edits = Recipe(tuple(edit for one in converted(name, found) for edit in one.edits))
        if not edits.edits:
            continue
        made = apply(copy.deepcopy(model), edits).eval()
        for whole in (False, True) if kind in ("bert", "gpt2") else (False,):
            folder = tmp_path / f"{kind} from {'itself' if whole else 'the original'}"
            folder.mkdir()
            origin: Any = origin_of(made if whole else model)
            recipe = {"edits": [] if whole else list(edits.edits)}
            said = {"origin": origin, "recipe": recipe, "ids": IDS.tolist(), "plain": not hasattr(model, "config")}
            (folder / "it.json").write_text(json.dumps(said))
            save_file(state(made), str(folder / "it.safetensors"))
            with torch.no_grad():
                wanted[folder] = call(made)
    assert wanted and freshly(CHILD, *wanted) == ""
    for folder, answer in wanted.items():
        assert torch.allclose(torch.load(folder / "it.found", weights_only=True), answer, atol=1e-6), folder.name


def test_names_are_unique_and_say_nothing_odd() -> None:
    known = [name for id in registry.techniques() for name in registry.facts(id).converts]
    assert len(known) == len(set(known)) and all(name == name.lower() and " " not in name for name in known)
