"""Attentions and MLPs are found in models of many families, with what they are, and nothing of the model is changed by looking."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sited import MODELS, X, model
from torch import nn
from torch.nn import functional

from fourfold.errors import ModelError
from fourfold.recipe import unpack
from fourfold.structure.cores import mlp_weights, put_activation, put_mlp
from fourfold.structure.sites import Sites, sites

# family → attentions, MLPs, causal attentions, cross attentions
WANTED = {
    "bert": (2, 2, 0, 0), "bert, eager": (2, 2, 0, 0), "roberta": (2, 2, 0, 0), "distilbert": (2, 2, 0, 0), "vit": (2, 2, 0, 0),
    "gpt2": (2, 2, 2, 0), "llama": (2, 2, 2, 0), "opt": (2, 2, 2, 0), "phi3": (2, 2, 2, 0), "t5": (6, 4, 2, 2), "t5, gated": (6, 4, 2, 2),
    "encoder": (2, 2, 0, 0), "decoder": (4, 2, 2, 2), "own": (2, 2, 2, 0),
}  # fmt: skip
GATED = {"llama": "silu", "phi3": "silu", "t5, gated": "gelu_tanh"}


@pytest.fixture(scope="module")
def found() -> dict[str, Sites]:
    return {name: sites(*model(name)) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_all_of_a_family_are_found(name: str, found: dict[str, Sites]) -> None:
    here = found[name]
    counts = len(here.attentions), len(here.mlps), sum(a.causal for a in here.attentions), sum(a.cross for a in here.attentions)
    assert counts == WANTED[name] and here.refusals == {}
    assert all((a.heads, a.head_dim, a.width) == (4, 8, 32) for a in here.attentions)
    assert all(a.biased == name.startswith("t5") for a in here.attentions)
    assert all(m.causal == (name in ("gpt2", "llama", "opt", "phi3", "own", "decoder") or (name.startswith("t5") and m.stack == "decoder"))
               for m in here.mlps)
    names = [site.name for site in (*here.attentions, *here.mlps)]
    assert len(set(names)) == len(names) and all(f".{site.block}." in site.name for site in (*here.attentions, *here.mlps))
    assert len(here.within({1}).mlps) == WANTED[name][1] // 2 and here.within(None) is here and here.within(set()).attentions == ()


@pytest.mark.parametrize("name", MODELS)
def test_looking_changes_nothing(name: str) -> None:
    made, call = model(name)
    made.train()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    modules, configs = [type(part) for part in made.modules()], [getattr(part, "config", None) for part in made.modules()]
    names = [getattr(config, "_attn_implementation", None) for config in configs]
    sites(made, call)
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items()) and made.training
    assert [type(part) for part in made.modules()] == modules
    assert all(a is b for a, b in zip(configs, [getattr(part, "config", None) for part in made.modules()], strict=True))
    assert [getattr(config, "_attn_implementation", None) for config in configs] == names


@pytest.mark.parametrize("name", MODELS)
def test_an_mlp_made_again_from_its_weights_takes_its_place(name: str, found: dict[str, Sites]) -> None:
    made, call = model(name)
    with torch.no_grad():
        before = call(made)
        again = copy.deepcopy(made)
        for site in found[name].mlps:
            assert bool(site.gate) == (name in GATED) and site.function and site.activation
            if not site.replaceable:
                continue
            (edit,) = site.edits("again")
            put_mlp(again, edit, Again(mlp_weights(made, edit), site.function))
        assert float((call(again) - before).abs().max()) < 1e-4 * float(before.abs().max())
    assert sum(site.replaceable for site in found[name].mlps) == len(found[name].mlps)
    assert sum(isinstance(part, Again) for part in again.modules()) == len(found[name].mlps)


@pytest.mark.parametrize("name", MODELS)
def test_another_activation_acts_where_the_old_one_did(name: str, found: dict[str, Sites]) -> None:
    made, call = model(name)
    for site in found[name].mlps:
        (edit,) = site.edits("none")
        put_activation(made, edit, Nothing())
    with torch.no_grad():
        call(made)
    seen = [part.seen for part in made.modules() if isinstance(part, Nothing)]
    assert len(seen) == len(found[name].mlps) and all(width == site.hidden for width, site in zip(seen, found[name].mlps, strict=True))


class Again(nn.Module):
    def __init__(self, weights: dict[str, Any], function: str) -> None:
        super().__init__()
        self.weights, self.function = weights, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from fourfold.structure.cores import ACTIVATIONS

        w, act = self.weights, ACTIVATIONS[self.function]
        up = functional.linear(x, w["up"], w["up_bias"])
        hidden = act(up) if w["gate"] is None else act(functional.linear(x, w["gate"], w["gate_bias"])) * up
        return functional.linear(hidden, w["down"], w["down_bias"])


class Nothing(nn.Module):
    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.shape[-1]
        return 0 * x


class Written(nn.Module):
    """A block whose activation is written out in its forward, and whose attention stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(x)))


def test_what_has_no_place_is_refused_in_words() -> None:
    torch.manual_seed(0)
    here = sites(nn.Sequential(Written(), Written()).eval(), lambda m: m(X))
    assert here.attentions == () and len(here.refusals) == 2 and all("AttentionInterface" in said for said in here.refusals.values())
    assert [(m.function, m.activation, m.whole, m.replaceable) for m in here.mlps] == [("gelu", "", "", False)] * 2
    (edit,) = here.mlps[0].edits("x")
    for put in (put_mlp, put_activation):
        with pytest.raises(ModelError) as caught:
            put(nn.Sequential(Written(), Written()), edit, nn.Identity())
        assert len(str(caught.value).splitlines()) == 2


def test_a_model_that_does_not_run_is_said_so() -> None:
    with pytest.raises(ModelError, match="does not run on the sample batch"):
        sites(nn.Linear(3, 3), lambda m: m(torch.zeros(1, 4)))


def test_a_model_without_either_has_no_sites() -> None:
    torch.manual_seed(0)
    here = sites(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), lambda m: m(torch.randn(2, 3, 8, 8)))
    assert here.attentions == () and here.mlps == ()


def test_rows_of_one_linear_are_told_apart(found: dict[str, Sites]) -> None:
    site = found["phi3"].mlps[0]
    assert site.up == site.gate and unpack(site.rows[1]) == list(range(64)) and unpack(site.rows[0]) == list(range(64, 128))
