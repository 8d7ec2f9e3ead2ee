"""A core is put into attentions of many families: with a plain softmax in it answers, gradients, padding, decoding with a cache, saving, compiling
and exporting are those of the original; and with a core of its own everything is what that core says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sited import IDS, MASK, MODELS, X, model
from torch import Tensor, nn
from torch.nn import functional

from fourfold.errors import ModelError
from fourfold.recipe import Recipe, apply
from fourfold.structure.cores import NAME, SoftmaxCore, core_of, install, key_padding
from fourfold.structure.sites import sites


class Counting(nn.Module):
    """Softmax written out, with a scale to be learnt; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
    ) -> Tensor:
        assert q.ndim == k.ndim == v.ndim == 4 and q.shape[1] == k.shape[1] == v.shape[1] and k.shape[2] == v.shape[2]
        self.calls += 1
        scores = self.temperature * (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            assert attn_mask is None
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
        return torch.nan_to_num(scores.softmax(-1)) @ v


def converted(name: str, kind: type[nn.Module] = Counting, which: slice = slice(None)) -> tuple[nn.Module, nn.Module, Any]:
    """(original, copy with cores in its attentions, call)."""
    made, call = model(name)
    again = copy.deepcopy(made)
    for site in sites(made, call).attentions[which]:
        *before, own = site.edits("test")
        apply(again, Recipe(tuple(before)))
        install(again, own, kind())
    return made, again, call


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_equal_and_the_core_gives_them(name: str) -> None:
    made, again, call = converted(name)
    with torch.no_grad():
        before, after = call(made), call(again)
    cores = [part for part in again.modules() if isinstance(part, Counting)]
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())
    assert len(cores) >= 2 and all(core.calls == 1 for core in cores)
    with torch.no_grad():
        for core in cores:
            core.temperature.fill_(0.1)
        assert float((call(again) - before).abs().max()) > 1e-4 * float(before.abs().max())


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "encoder", "own"])
def test_gradients_are_the_originals_and_reach_the_core(name: str) -> None:
    made, again, call = converted(name)
    for one in (made, again):
        call(one).square().mean().backward()
    cores = [part for part in again.modules() if isinstance(part, Counting)]
    assert all(core.temperature.grad is not None and core.temperature.grad.abs() > 0 for core in cores)
    theirs = {key: p.grad for key, p in made.named_parameters() if p.grad is not None}
    ours = {key: p.grad for key, p in again.named_parameters() if p.grad is not None}
    shared = theirs.keys() & ours.keys()
    assert len(shared) > len(theirs) // 3
    assert all(torch.allclose(theirs[key], ours[key], rtol=1e-3, atol=1e-5 * float(theirs[key].abs().max()) + 1e-7) for key in shared)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "phi3"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left padding"])
def test_decoding_with_a_cache_is_decoding_the_whole(name: str, padded: bool) -> None:
    made, again, _ = converted(name)
    mask = torch.ones_like(IDS)
    if padded:
        mask[1, :2] = 0
    for one in (made, again):
        one.generation_config.pad_token_id = 0  # type: ignore[union-attr]
        one.generation_config.eos_token_id = None  # type: ignore[union-attr]
    with torch.no_grad():
        theirs, ours = (one.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False) for one in (made, again))  # type: ignore[operator]
        assert torch.equal(theirs, ours)
        if not padded:
            whole = again(input_ids=ours, use_cache=False).logits
            assert torch.equal(whole[:, -2].argmax(-1), ours[:, -1])


def test_other_layers_keep_their_own_attention() -> None:
    _, again, call = converted("bert", which=slice(1, 2))
    names = [part.config._attn_implementation for part in again.modules() if type(part).__name__ == "BertSelfAttention"]  # pyright: ignore[reportAttributeAccessIssue]
    assert names == ["sdpa", NAME] and again.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert [core_of(part) is not None for part in again.modules() if type(part).__name__ == "BertSelfAttention"] == [False, True]
    left = sites(again, call)
    assert [site.name for site in left.attentions] == ["encoder.0.attention"]
    assert [site.name for site in left.mlps] == ["encoder.0.ffn", "encoder.1.ffn"], "query and output of a converted attention are no MLP"


@pytest.mark.parametrize("name", ["bert", pytest.param("llama", marks=pytest.mark.slow), pytest.param("encoder", marks=pytest.mark.slow)])
def test_it_compiles(name: str) -> None:
    made, again, call = converted(name, SoftmaxCore)
    with torch.no_grad():
        compiled = torch.compile(again, backend="aot_eager", fullgraph=name != "encoder")
        assert torch.allclose(call(made), call(compiled), atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bert", "gpt2", "encoder"])
def test_state_goes_round_and_a_copy_is_its_own(name: str) -> None:
    made, again, call = converted(name)
    with torch.no_grad():
        for core in [part for part in again.modules() if isinstance(part, Counting)]:
            core.temperature.fill_(0.5)
        other = converted(name)[1]
        other.load_state_dict(again.state_dict())
        assert torch.equal(call(other), call(again)) and torch.equal(call(copy.deepcopy(again)), call(again))
    assert any(key.endswith("core.temperature") for key in again.state_dict()) and not any("core" in key for key in made.state_dict())


def test_a_converted_model_is_exported() -> None:
    _, again, call = converted("bert", SoftmaxCore)
    program = torch.export.export(again, (), {"input_ids": IDS, "attention_mask": MASK})
    with torch.no_grad():
        found = program.module()(input_ids=IDS, attention_mask=MASK)
        assert torch.allclose(found.logits, call(again), atol=1e-5)


def test_the_wrong_place_is_refused_in_two_lines() -> None:
    made, call = model("own")
    for how, match in (("interface", "AttentionInterface"), ("heads", "core cannot be replaced")):
        with pytest.raises(ModelError, match=match) as caught:
            install(made, {"path": "0.attention", "how": how}, SoftmaxCore())
        assert len(str(caught.value).splitlines()) == 2
    with torch.no_grad():
        assert call(made).shape == (3, 7, 5)


def test_padding_is_read_off_a_mask() -> None:
    keep = MASK.bool()
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    low = torch.finfo(torch.float32).min
    for mask in (keep[:, None, None], keep[:, None, None] & causal, torch.zeros(3, 1, 7, 7).masked_fill(~(keep[:, None, None] & causal), low)):
        found = key_padding(mask)
        assert found is not None and torch.equal(found, keep)
    assert key_padding(None) is None and key_padding(causal) is not None


def test_a_fully_masked_row_is_no_nan() -> None:
    _, again, _ = converted("encoder")
    nothing = torch.ones(3, 7, dtype=torch.bool)
    nothing[0] = False
    with torch.no_grad():
        assert torch.isfinite(again(X, src_key_padding_mask=nothing)).all()


def test_the_plain_core_is_torchs_own() -> None:
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    assert torch.equal(SoftmaxCore()(q, k, v, is_causal=True), functional.scaled_dot_product_attention(q, k, v, is_causal=True))
