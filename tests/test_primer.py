"""Primer's parts against their formulas: relu², the depthwise convolution, attention and block, decoding step by step, and models converted to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sited import model as family
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from fourfold.errors import InputError, ModelError
from fourfold.nn import CausalDepthwiseConv, PrimerAttention, PrimerBlock, ReLUSquared, decoding
from fourfold.recipe import Recipe, apply
from fourfold.rewrites.attend.primer import ConvolvedProjection, Primer, relu_squared
from fourfold.structure.sites import sites


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def convolution(channels: int = 5, width: int = 3, **options: Any) -> CausalDepthwiseConv:
    made = CausalDepthwiseConv(channels, width, dtype=torch.float64, **options)
    with torch.no_grad():
        made.weight.copy_(drawn(width, channels, seed=9))
    return made


# ---- relu² -----------------------------------------------------------------------------------------------------------------------------------------

def test_relu_squared_is_its_formula_twice_differentiable_and_finite_in_half_precision() -> None:
    x = drawn(4, 6).requires_grad_()
    assert torch.equal(relu_squared(x), F.relu(x) ** 2) and torch.equal(ReLUSquared()(x.detach().t()), F.relu(x.detach().t()) ** 2)
    assert gradcheck(relu_squared, (x,)) and gradgradcheck(relu_squared, (x,))
    large = torch.tensor([300.0, -300.0, 6e4], dtype=torch.float16).requires_grad_()
    found = relu_squared(large)
    found.sum().backward()
    assert torch.isfinite(found).all() and found[1] == 0 and large.grad is not None and torch.isfinite(large.grad).all()
    assert torch.isfinite(relu_squared(torch.tensor([1e9], dtype=torch.bfloat16))).all()
    assert relu_squared(torch.tensor([torch.nan])).isnan().all(), "not a number is not hidden"


# ---- the convolution -------------------------------------------------------------------------------------------------------------------------------

def toeplitz(x: Tensor, conv: CausalDepthwiseConv) -> Tensor:
    """y by a banded matrix over time for each channel."""
    length = x.shape[1]
    out = torch.zeros_like(x)
    for channel in range(x.shape[2]):
        matrix = torch.zeros(length, length, dtype=x.dtype)
        for k in range(conv.width):
            lag = k - conv.width // 2 if conv.bidirectional else k
            for t in range(length):
                if 0 <= t - lag < length:
                    matrix[t, t - lag] = conv.weight[k, channel]
        out[:, :, channel] = x[:, :, channel] @ matrix.t()
    return out


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("width, length", [(3, 7), (3, 2), (3, 1), (3, 0), (5, 2), (1, 4), (5, 9)])
def test_the_convolution_is_a_banded_matrix_over_time(width: int, length: int, bidirectional: bool) -> None:
    conv, x = convolution(5, width, bidirectional=bidirectional), drawn(2, length, 5)
    want = toeplitz(x, conv)
    assert torch.allclose(conv(x), want)
    with torch.no_grad():
        assert torch.allclose(conv(x), want) and torch.allclose(conv(drawn(length, 2, 5).transpose(0, 1)), toeplitz(
            drawn(length, 2, 5).transpose(0, 1), conv))
    if length:
        x.requires_grad_()
        assert gradcheck(lambda a, w: torch.func.functional_call(conv, {"weight": w}, (a,)), (x, conv.weight.detach().clone().requires_grad_()))


def test_its_gradient_can_be_differentiated_and_compiled_code_is_the_same() -> None:
    from fourfold.rewrites.attend.primer import _DepthwiseTaps, _lagged

    x, w = drawn(2, 4, 3).requires_grad_(), drawn(3, 3, seed=1).requires_grad_()
    for lags in ((0, 1, 2), (-1, 0, 1)):
        assert gradgradcheck(lambda a, b, lags=lags: _DepthwiseTaps.apply(a, b, lags), (x, w))
        assert torch.allclose(_lagged(x, w, lags), _DepthwiseTaps.apply(x, w, lags))  # type: ignore[arg-type]


def test_it_begins_as_the_paper_or_as_the_identity() -> None:
    conv = CausalDepthwiseConv(4)
    assert torch.equal(conv.weight, torch.tensor([[0.5] * 4, [0.5 / 3] * 4, [0.5 / 3] * 4]))
    x = drawn(2, 6, 4).float()
    for options in ({}, {"bidirectional": True}):
        assert torch.equal(CausalDepthwiseConv(4, identity=True, **options)(x), x)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6), width=st.integers(1, 4))
def test_steps_of_any_lengths_are_one_run(cuts: list[int], width: int) -> None:
    conv, x = convolution(3, width), drawn(2, sum(cuts), 3)
    tail, parts = conv.tail(2), []
    for part in x.split(cuts, 1):
        y, tail = conv.step(part, tail)
        parts.append(y)
    assert torch.allclose(torch.cat(parts, 1), conv(x)) and tail.shape == (2, width - 1, 3)


def test_nothing_crosses_from_one_document_to_another() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4, 3, 3, 3]])
    for options in ({}, {"bidirectional": True}):
        conv, x = convolution(**options), drawn(2, 9, 5).requires_grad_()
        found = conv(x, documents)
        for row in range(2):
            for number in documents[row].unique():
                own = documents[row] == number
                assert torch.allclose(found[row][own], conv(x[row][own].unsqueeze(0))[0])
        assert gradcheck(lambda a, conv=conv: conv(a, documents), (x,))


def test_what_does_not_fit_is_said_in_two_lines() -> None:
    for call in (lambda: CausalDepthwiseConv(4, 0), lambda: CausalDepthwiseConv(4, 2, bidirectional=True),
                 lambda: CausalDepthwiseConv(4)(drawn(2, 3, 5)), lambda: PrimerAttention(10, 3), lambda: CausalDepthwiseConv(4)(drawn(3, 4)),
                 lambda: PrimerAttention(8, 2, causal=False).step(drawn(1, 1, 8).float(), PrimerAttention(8, 2).state(1)),
                 lambda: CausalDepthwiseConv(4, bidirectional=True).step(drawn(1, 1, 4), drawn(1, 2, 4))):
        with pytest.raises(InputError) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 2


# ---- attention and block ---------------------------------------------------------------------------------------------------------------------------

def block(**options: Any) -> PrimerBlock:
    torch.manual_seed(0)
    made = PrimerBlock(12, 3, **options).double().eval()
    with torch.no_grad():
        conv: Any = made.self_attn.conv
        if conv is not None:
            conv.weight.add_(0.3 * torch.randn(conv.weight.shape))
    return made


def dense(made: PrimerBlock, x: Tensor, look: Tensor) -> Tensor:
    """The block by its formula, with a matrix of scores; `look` bool [T, T]."""
    attention = made.self_attn
    y = attention.qkv_proj(made.norm1(x))
    y = y if attention.conv is None else toeplitz(y, attention.conv)
    q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in y.chunk(3, -1))
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~look, -torch.inf)
    x = x + attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return x + made.linear2(F.relu(made.linear1(made.norm2(x))) ** 2)


@pytest.mark.parametrize("causal", [True, False])
def test_the_block_is_its_formula_and_has_its_gradient(causal: bool) -> None:
    made, x = block(causal=causal), drawn(2, 5, 12).requires_grad_()
    look = torch.ones(5, 5, dtype=torch.bool).tril() if causal else torch.ones(5, 5, dtype=torch.bool)
    found, want = made(x), dense(made, x, look)
    assert torch.allclose(found, want)
    weights = [x, *made.parameters()]
    for a, b in zip(torch.autograd.grad(found.square().sum(), weights), torch.autograd.grad(want.square().sum(), weights), strict=True):
        assert torch.allclose(a, b)


def test_no_position_sees_a_later_one() -> None:
    made, x = block(), drawn(2, 8, 12)
    stack = nn.TransformerEncoder(made, 2, enable_nested_tensor=False).eval()
    for at in range(1, 8):
        other = x.clone()
        other[:, at:] = drawn(2, 8 - at, 12, seed=at)
        for run in (made, stack):
            assert torch.equal(run(x)[:, :at], run(other)[:, :at]) or torch.allclose(run(x)[:, :at], run(other)[:, :at], atol=1e-12)
            assert not torch.allclose(run(x)[:, at], run(other)[:, at])


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_decoding_step_by_step_is_one_run(cuts: list[int]) -> None:
    for made in (block(), block(taps=1, activation=nn.GELU())):
        x, state, parts = drawn(2, sum(cuts), 12), made.state(2), []
        for part in x.split(cuts, 1):
            y, state = made.step(part, state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, 1), made(x)) and state.keys.shape == (2, 3, sum(cuts), 4)


def test_it_takes_the_place_of_torchs_layer() -> None:
    torch.manual_seed(1)
    plain, ours = nn.TransformerEncoderLayer(12, 3, 48, 0.0, F.gelu, batch_first=True, norm_first=True).eval(), PrimerBlock(
        12, 3, taps=1, activation=nn.GELU(), causal=False).eval()
    names = {"self_attn.qkv_proj.weight": "self_attn.in_proj_weight", "self_attn.qkv_proj.bias": "self_attn.in_proj_bias"}
    ours.load_state_dict({key: plain.state_dict()[str(names.get(key, key))] for key in ours.state_dict()})
    x, padding = drawn(2, 6, 12).float(), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for options in ({}, {"src_mask": mask}, {"src_mask": mask < 0}, {"src_key_padding_mask": padding},
                        {"src_mask": mask, "src_key_padding_mask": padding}, {"src_mask": (mask < 0).expand(6, 6, 6)}):
            assert torch.allclose(ours(x, **options), plain(x, **options), atol=1e-5), options
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_documents_in_a_row_are_documents_alone_and_rows_without_sight_are_numbers() -> None:
    made, documents = block(), torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    x = drawn(1, 7, 12)
    found = made(x, documents=documents)
    assert torch.allclose(found[:, :3], made(x[:, :3])) and torch.allclose(found[:, 3:], made(x[:, 3:]))
    for padding in (torch.ones(1, 7, dtype=torch.bool), torch.full((1, 7), -torch.inf, dtype=torch.float64)):
        blind = x.clone().requires_grad_()
        answer = made(blind, src_key_padding_mask=padding)
        answer.sum().backward()
        assert torch.isfinite(answer).all() and blind.grad is not None and torch.isfinite(blind.grad).all()
    assert made(drawn(2, 0, 12)).shape == (2, 0, 12)


def test_weights_go_round_by_state_dict_and_strides_do_not_matter() -> None:
    made, again = block(), PrimerBlock(12, 3).double().eval()
    again.load_state_dict(made.state_dict())
    x = drawn(5, 2, 12).transpose(0, 1)
    assert torch.equal(made(x), again(x)) and torch.allclose(made(x), made(x.contiguous()))
    assert "width=3" in repr(made) and copy.deepcopy(made)(x).equal(made(x))


@pytest.mark.slow
def test_compiled_and_exported_blocks_answer_alike(tmp_path: Any) -> None:
    import numpy as np
    import onnxruntime

    made, x = block().float(), drawn(2, 6, 12).float()
    want = made(x)
    assert torch.allclose(torch.compile(made)(x), want, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(torch.export.export(made, (x,)).module()(x), want, atol=1e-5)
        torch.onnx.export(made, (x,), tmp_path / "it.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.abs(np.asarray(found) - want.detach().numpy()).max() < 1e-4


# ---- conversions -----------------------------------------------------------------------------------------------------------------------------------

def converted(name: str, *, trained: bool) -> tuple[nn.Module, nn.Module, Any]:
    """(original, converted, call): with convolutions that are the identity, or as training might leave them."""
    torch.manual_seed(0)
    made, call = family(name)
    edits = [edit for one in Primer().conversions(sites(made.eval(), call), "primer") if one.exact or trained for edit in one.edits]
    again = apply(copy.deepcopy(made), Recipe(tuple(edits))).eval()
    if trained:
        for conv in [part for part in again.modules() if isinstance(part, CausalDepthwiseConv)]:
            with torch.no_grad():
                conv.weight.add_(0.3 * torch.randn(conv.weight.shape))
    return made, again, call


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert", "encoder", "own"])
def test_a_converted_attention_answers_as_before_until_it_is_trained(name: str) -> None:
    made, again, call = converted(name, trained=False)
    parts = [part for part in again.modules() if isinstance(part, ConvolvedProjection)]
    with torch.no_grad():
        before, after = call(made), call(again)
    assert parts and float((after - before).abs().max()) < 1e-5 * float(before.abs().max())
    assert all(part.conv.bidirectional == (name in ("bert", "encoder")) for part in parts if name != "t5")
    if name == "t5":
        assert {part.conv.bidirectional for part in parts} == {True, False}


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_converted_model_generates_with_its_cache_what_it_generates_without(name: str) -> None:
    _, again, _ = converted(name, trained=True)
    ids = torch.randint(5, 90, (3, 5), generator=torch.Generator().manual_seed(2))
    model: Any = again
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
    for more in ({}, {"num_beams": 3}):
        whole = model.generate(ids, **options, **more)
        with decoding(model):
            cached = model.generate(ids, **options, **more)
            assert model.config.use_cache
        assert torch.equal(whole, cached), more
    assert not model.config.use_cache
    if name != "t5":
        with pytest.raises(ModelError, match="use_cache=False"):
            model.generate(ids, use_cache=True, **options)
        with decoding(model), torch.no_grad():
            made = model(input_ids=ids)
            one = model(input_ids=ids[:, -1:], past_key_values=made.past_key_values)
            assert torch.allclose(one.logits[:, 0], model(input_ids=torch.cat([ids, ids[:, -1:]], 1)).logits[:, -1], atol=1e-5)
            with pytest.raises(ModelError, match="speculative"):
                made.past_key_values.crop(3)


def test_converted_decoders_see_nothing_later() -> None:
    _, again, _ = converted("gpt2", trained=True)
    model: Any = again
    ids = torch.randint(5, 90, (1, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for at in (3, 8):
            other = ids.clone()
            other[:, at:] = 7
            assert torch.allclose(model(input_ids=ids).logits[:, :at], model(input_ids=other).logits[:, :at], atol=1e-6)


def test_what_is_converted_and_what_stays() -> None:
    made, call = family("llama")
    many = Primer().conversions(sites(made.eval(), call), "primer")
    assert len(many) == 2 and all(one.exact for one in many), "a gated MLP keeps its activation"
    made, call = family("t5")
    many = Primer().conversions(sites(made.eval(), call), "primer")
    assert len(many) == 4 + 4 and not any("cross" in one.site for one in many)
    assert Primer().describe([edit for one in many for edit in one.edits]).count("4") == 2
