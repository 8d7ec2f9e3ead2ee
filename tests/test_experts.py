"""Mixtures of experts: the kernel, both routers against plain loops, capacity, masks, causality, experts from dense MLPs, devices, transformers."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.recipe import Recipe, apply
from fourfold.rewrites.route._experts import DenseMLP, Experts, PlacedExperts, clusters
from fourfold.rewrites.route._grouped import grouped_linear
from fourfold.rewrites.route._registered import use_experts
from fourfold.rewrites.route._routed import Capacity, RoutedMLP, loads, routing_loss
from fourfold.rewrites.route.expert_choice import ExpertChoice, ExpertChoiceRouting
from fourfold.rewrites.route.top_two import TopTwo, TopTwoRouting
from fourfold.structure.sites import sites

D, F, E = 16, 24, 4
Maker = Callable[..., RoutedMLP]
LAYERS: dict[str, Maker] = {
    "expert choice": ExpertChoice, "threshold": lambda *a, **k: ExpertChoice(*a, threshold=True, **k), "top two": TopTwo,
    "top two, capacity": lambda *a, **k: TopTwo(*a, dropless=False, **k),
    "top two, token order": lambda *a, **k: TopTwo(*a, dropless=False, order="token", **k),
}  # fmt: skip


def made(name: str, **options: Any) -> RoutedMLP:
    torch.manual_seed(0)
    layer = LAYERS[name](D, F, E, **options).eval()
    nn.init.normal_(layer.router)                                      # a router that has learnt something: unequal loads
    return layer


def tokens(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- the kernel ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("counts", "rest"), [([3, 0, 5, 2], 0), ([0, 0, 0, 0], 3), ([4, 4, 4, 4], 0), ([1, 7, 0, 0], 5)])
def test_each_expert_multiplies_its_own_rows(counts: list[int], rest: int, biased: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(E, F, D, dtype=dtype), torch.randn(E, F, dtype=dtype) if biased else None
    rows, ends = tokens(sum(counts) + rest, dtype=dtype), torch.tensor(counts).cumsum(0)
    parts = [nn.functional.linear(part, weight[e], None if bias is None else bias[e]) for e, part in enumerate(rows[: ends[-1]].split(counts))]
    wanted = torch.cat([*parts, torch.zeros(rest, F, dtype=dtype)])
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(grouped_linear(rows, weight, bias, ends), wanted, atol=tolerance)
    if len(set(counts)) == 1 and not rest:
        assert torch.allclose(grouped_linear(rows, weight, bias, ends, even=True), wanted, atol=tolerance)


@pytest.mark.parametrize("biased", [True, False])
def test_gradients_of_the_kernel_whatever_the_strides_of_what_comes_in(biased: bool) -> None:
    torch.manual_seed(0)
    ends = torch.tensor([2, 2, 5])
    rows, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 4), (3, 8, 4), (3, 8)))
    given_bias = bias if biased else None
    assert torch.autograd.gradcheck(lambda r, w, b: grouped_linear(r, w, b if biased else None, ends), (rows, weight, bias))
    f32 = [t.detach().float().requires_grad_() for t in (rows, weight)]
    grouped_linear(f32[0], f32[1], None if given_bias is None else given_bias.detach().float(), ends).sum().backward()  # an expanded gradient
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in f32)
    rows, weight = (t.grad for t in f32 if t.grad is not None)
    assert torch.equal(rows[5], torch.zeros(4)) and torch.equal(weight[1], torch.zeros(8, 4)), "nobody's row, nobody's expert"


# --- capacity --------------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 64), st.floats(0.01, 1))
def test_capacity_is_the_mean_number_of_experts_per_token(n: int, experts: int, share: float) -> None:
    capacity = Capacity(round(share * experts * 64) / 64 or 1 / 64, experts)
    room = capacity.slots(n)
    assert (n == 0 and room == 0) or 1 <= room <= n
    assert room <= 1 or abs(room - capacity.factor * n / experts) <= 0.5
    assert capacity.slots(torch.tensor([n])).item() == room, "one definition, for numbers and for tensors"


def test_other_definitions_of_capacity_are_converted() -> None:
    assert Capacity.gshard(1.0, 8).slots(256) == Capacity(2.0, 8).slots(256) == 64
    assert Capacity.flaxformer(1.0, 8).slots(256) == 32, "at k = 2 half of the choices fit"
    with pytest.raises(ModelError, match="mean number of experts per token"):
        Capacity(9.0, 8)


# --- the routers against plain loops ---------------------------------------------------------------------------------------------------------------


def scores_of(layer: RoutedMLP, x: Tensor) -> Tensor:
    return (x @ layer.router.T).softmax(-1)


def summed(layer: RoutedMLP, x: Tensor, gates: Tensor) -> Tensor:
    """All experts on all tokens, weighed: x [n, D], gates [n, E]."""
    return torch.einsum("ne,end->nd", gates, layer.experts.everyone(x))


def chosen_by_experts(scores: Tensor, k: int) -> Tensor:
    gates = torch.zeros_like(scores)
    for e in range(scores.shape[1]):
        for t in sorted(range(len(scores)), key=lambda t: -scores[t, e].item())[:k]:
            gates[t, e] = scores[t, e]
    return gates


def chosen_by_tokens(scores: Tensor, room: int | None, order: str) -> Tensor:
    gates, load = torch.zeros_like(scores), [0] * scores.shape[1]
    best = [sorted(range(scores.shape[1]), key=lambda e: -row[e].item())[:2] for row in scores]
    turns = [(t, c) for c in (0, 1) for t in range(len(scores))] if order == "choice" else [(t, c) for t in range(len(scores)) for c in (0, 1)]
    for t, c in turns:
        e = best[t][c]
        load[e] += 1
        if room is None or load[e] <= room:
            gates[t, e] = scores[t, e] / (scores[t, best[t][0]] + scores[t, best[t][1]])
    return gates


@pytest.mark.parametrize("capacity", [0.5, 1.0, 2.0, 4.0])
def test_experts_choose_and_their_load_is_equal(capacity: float) -> None:
    layer, x = made("expert choice", capacity_factor=capacity), tokens(3, 20)
    got, room = layer(x), math.floor(capacity * 20 / E + 0.5)
    for g in range(3):
        assert torch.allclose(got[g], summed(layer, x[g], chosen_by_experts(scores_of(layer, x[g]), room)), atol=1e-5)
    assert layer.routing is not None
    assert layer.routing.balance == 1.0 and layer.routing.counts.tolist() == [3 * room] * E
    assert sum(k * many for k, many in layer.routing.spread().items()) == int(layer.routing.counts.sum())
    if capacity == E:
        assert torch.allclose(got, summed(layer, x.flatten(0, 1), scores_of(layer, x).flatten(0, 1)).view_as(got), atol=1e-5)


@pytest.mark.parametrize("name", ["top two", "top two, capacity", "top two, token order"])
def test_tokens_choose_two_and_drop_what_finds_no_room(name: str) -> None:
    layer, x = made(name, **({} if name == "top two" else {"capacity_factor": 1.5})), tokens(3, 20)
    got = layer(x)
    room = None if name == "top two" else layer.capacity.slots(20)
    for g in range(3):
        gates = chosen_by_tokens(scores_of(layer, x[g]), room, "token" if "token" in name else "choice")
        assert torch.allclose(got[g], summed(layer, x[g], gates), atol=1e-5)
    assert layer.routing is not None
    assert int(layer.routing.dropped) == 3 * 40 - int(layer.routing.counts.sum())
    assert (int(layer.routing.dropped) == 0) == (room is None)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_equal_those_of_all_experts_weighed(name: str, gated: bool) -> None:
    layer, x = made(name, gated=gated, activation="silu" if gated else "gelu", attach=False), tokens(2, 12).requires_grad_()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    layer(x, mask).square().sum().backward()
    ours = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    gates = layer.gate_matrix(scores_of(layer, x), mask).flatten(0, 1)
    (summed(layer, x.flatten(0, 1), gates).view_as(x) * mask.unsqueeze(-1)).square().sum().backward()
    for mine, plain in zip(ours, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        assert mine is not None and plain is not None and torch.allclose(mine, plain, atol=1e-4)


# --- masks and odd input ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_padding_is_never_routed_and_changes_nothing(name: str) -> None:
    layer, x = made(name), tokens(3, 15)
    mask = torch.zeros(3, 15, dtype=torch.bool)
    mask[0, :9], mask[1, 4:] = True, True                              # on the right, on the left, everything
    x[~mask] = float("nan")
    got = layer(x, mask)
    assert torch.equal(got[~mask], torch.zeros(int((~mask).sum()), D)) and layer.routing is not None
    assert int(layer.routing.tokens) == 20 and not layer.routing.served.view(3, 15)[~mask].any()
    for g in range(2):
        assert torch.allclose(got[g][mask[g]], layer(x[g][mask[g]].unsqueeze(0))[0], atol=1e-6), "batch-mates and padding change nothing"


@pytest.mark.parametrize("name", LAYERS)
def test_odd_inputs_have_defined_results(name: str) -> None:
    layer = made(name)
    assert layer(tokens(2, 0)).shape == (2, 0, D) and layer(tokens(0, 5)).shape == (0, 5, D)
    assert torch.isfinite(layer(tokens(1, 1))).all() and layer(tokens(7)).shape == (7, D) and layer(tokens(2, 3, 5)).shape == (2, 3, 5, D)
    x = tokens(2, 12)
    assert torch.allclose(layer(x.transpose(0, 1).contiguous().transpose(0, 1)), layer(x), atol=1e-6)
    x[0, 3] = float("nan")
    got = layer(x)
    assert torch.isfinite(got[1]).all() and torch.isfinite(got[0][torch.arange(12) != 3]).all(), "stays in its own token"
    if name != "threshold":
        assert torch.isnan(got[0, 3]).any(), "and is not swallowed"
    for wrong in (tokens(2, 3)[..., :5], torch.ones(2, 3, D, dtype=torch.int64), torch.ones(D)):
        with pytest.raises(ModelError, match=r"Give floating point tokens"):
            layer(wrong)
    with pytest.raises(ModelError, match="True where there is a token"):
        layer(tokens(2, 3), torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_routes_in_float32(name: str, dtype: torch.dtype) -> None:
    layer = made(name).to(dtype)
    x = tokens(2, 12, dtype=dtype)
    got = layer(x)
    assert got.dtype == dtype and torch.allclose(got.float(), copy.deepcopy(layer).float()(x.float()), atol=0.03)
    assert torch.isfinite(layer(200 * x)).all(), "logits of thousands are no matter"
    plain = made(name)(tokens(2, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = made(name)(tokens(2, 12))
    assert cast.dtype == torch.bfloat16 and torch.allclose(cast.float(), plain, atol=0.05)


@pytest.mark.parametrize("name", LAYERS)
def test_state_goes_round_and_a_trained_layer_is_copied(name: str) -> None:
    layer, other = made(name), LAYERS[name](D, F, E).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(tokens(2, 12)), layer(tokens(2, 12)))
    layer.train().attach = False
    layer(tokens(2, 12)).sum().backward()
    twin = copy.deepcopy(layer)
    assert layer.routing is not None and twin.routing is None and torch.equal(twin.eval()(tokens(2, 12)), layer.eval()(tokens(2, 12)))


@pytest.mark.parametrize("name", ["expert choice", "top two"])
def test_compiled_it_answers_the_same_and_trains(name: str) -> None:
    layer = made(name).train()
    compiled = torch.compile(layer, backend="aot_eager", dynamic=False)
    x = tokens(2, 12).requires_grad_()
    mask = torch.arange(12).expand(2, 12) < 9
    for given_mask in (None, mask):
        assert torch.allclose(compiled(x, given_mask), layer(x, given_mask), atol=1e-5)
        compiled(x, given_mask).square().sum().backward()
        ours, x.grad = x.grad, None
        layer(x, given_mask).square().sum().backward()
        assert ours is not None and x.grad is not None and torch.allclose(ours, x.grad, atol=1e-4)
        x.grad = None


# --- losses ----------------------------------------------------------------------------------------------------------------------------------------


def test_balance_and_z_loss_are_what_they_say_and_reach_the_router_either_way() -> None:
    layer, x = made("top two", balance=0.5, z_loss=0.25, attach=False).train(), tokens(2, 10)
    mask = torch.arange(10).expand(2, 10) < torch.tensor([[10], [6]])
    layer(x, mask)
    logits = (x @ layer.router.T)[mask]
    p = logits.softmax(-1)
    f = torch.stack([(p.argmax(-1) == e).float().mean() for e in range(E)])
    wanted = 0.5 * E * (f * p.mean(0)).sum() + 0.25 * torch.logsumexp(logits, -1).square().mean()
    assert torch.allclose(routing_loss(nn.Sequential(layer)), wanted)
    (layer(x, mask).sum() + routing_loss(layer)).backward()
    apart = layer.router.grad
    layer.zero_grad()
    layer.attach = True
    layer(x, mask).sum().backward()
    assert apart is not None and layer.router.grad is not None and torch.allclose(apart, layer.router.grad, atol=1e-5)
    assert list(loads(nn.Sequential(layer))) == ["0"] and float(routing_loss(nn.Linear(1, 1))) == 0.0


# --- causality -------------------------------------------------------------------------------------------------------------------------------------


def leaks(layer: nn.Module, length: int = 24, draws: int = 12) -> bool:
    """Black box: two inputs that agree up to a prefix and differ after it must be answered alike up to it."""
    for draw in range(draws):
        for prefix in (1, 3, 7, 15, length - 1):
            a, b = tokens(1, length, seed=2 * draw, dtype=torch.float64), tokens(1, length, seed=2 * draw + 1, dtype=torch.float64)
            b[:, :prefix] = a[:, :prefix]
            if not torch.allclose(layer(a)[:, :prefix], layer(b)[:, :prefix], atol=1e-9):
                return True
    return False


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "leak"), [("expert choice", True), ("threshold", False), ("top two", False), ("top two, capacity", True),
                                            ("top two, token order", False)])
def test_what_reads_the_future(name: str, leak: bool, training: bool) -> None:
    layer = made(name).double().train(training)
    if isinstance(layer, ExpertChoice) and layer.threshold:
        layer.momentum = 1.0                                           # the cutoff of one call depends on no call before it
    assert leaks(layer) == leak


def test_a_causal_layer_that_would_leak_is_refused_unless_told() -> None:
    with pytest.raises(ModelError, match="reads the future") as caught:
        ExpertChoice(D, F, E, causal=True)
    assert "TopTwo" in str(caught.value) and "allow_leak=True" in str(caught.value)
    with pytest.raises(ModelError, match="leaks"):
        TopTwo(D, F, E, causal=True, dropless=False)
    for allowed in (ExpertChoice(D, F, E, causal=True, allow_leak=True), ExpertChoice(D, F, E, causal=True, threshold=True),
                    TopTwo(D, F, E, causal=True), TopTwo(D, F, E, causal=True, dropless=False, order="token")):
        assert allowed(tokens(1, 4)).shape == (1, 4, D)


def test_the_threshold_comes_to_the_load_that_was_asked_for() -> None:
    layer = ExpertChoice(D, F, E, threshold=True, capacity_factor=1.0)
    nn.init.normal_(layer.router)
    for step in range(60):
        layer.train()(tokens(4, 64, seed=step))
    layer.eval()(tokens(8, 64, seed=99))
    assert layer.routing is not None and abs(int(layer.routing.counts.sum()) / 512 - 1.0) < 0.15


# --- from a dense MLP ------------------------------------------------------------------------------------------------------------------------------


def dense(gated: bool, hidden: int = 48, conv: bool = False) -> DenseMLP:
    torch.manual_seed(0)
    if conv:
        from transformers.pytorch_utils import Conv1D

        return DenseMLP.of(Conv1D(hidden, D), Conv1D(D, hidden), activation="gelu_tanh")
    up, gate, down = nn.Linear(D, hidden, bias=not gated), nn.Linear(D, hidden, bias=not gated), nn.Linear(hidden, D, bias=not gated)
    return DenseMLP.of(up, down, gate if gated else None, "silu" if gated else nn.GELU())


KINDS = {"plain": dense(False), "gated": dense(True), "Conv1D": dense(False, conv=True), "no multiple": dense(False, 50)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", [ExpertChoice, TopTwo])
def test_the_sum_of_all_experts_is_the_dense_mlp(cls: Any, kind: str) -> None:
    mlp, x = KINDS[kind], tokens(2, 12)
    layer = cls.of(mlp, E, capacity_factor=float(E))
    whole = layer.experts.everyone(x.flatten(0, 1)).sum(0).view_as(x)
    assert torch.allclose(whole if layer.bias is None else whole + layer.bias, mlp(x), atol=1e-5)
    assert layer.experts.hidden == -(-mlp.hidden // E)
    if cls is ExpertChoice:
        assert torch.allclose(layer(x), mlp(x), atol=1e-5), "all experts for all tokens, gates of one"
    else:
        assert torch.allclose(TopTwo.of(mlp, 2)(x), mlp(x), atol=1e-5), "both of two experts"


@pytest.mark.parametrize("kind", KINDS)
def test_copies_with_normalised_gates_are_the_dense_mlp(kind: str) -> None:
    mlp, x = KINDS[kind], tokens(2, 12)
    assert torch.allclose(TopTwo.of(mlp, E, how="copies")(x), mlp(x), atol=1e-5)
    layer = ExpertChoice.of(mlp, E, how="copies", capacity_factor=1.0)
    got = layer(x)
    assert layer.routing is not None
    served = layer.routing.served.view(2, 12) > 0
    assert 0 < served.sum() < 24 and torch.allclose(got[served], mlp(x)[served], atol=1e-5) and not got[~served].any()


def test_gates_of_one_still_train_the_router() -> None:
    layer = ExpertChoice.of(KINDS["plain"], E, capacity_factor=1.0)
    layer(tokens(2, 12)).square().sum().backward()
    assert layer.router.grad is not None and layer.router.grad.abs().sum() > 0


def test_neurons_that_read_alike_come_together_in_groups_of_one_size() -> None:
    torch.manual_seed(0)
    kinds = torch.arange(40) % 4
    owner = clusters(torch.eye(4).repeat_interleave(4, 1)[kinds] + 0.05 * torch.randn(40, 16), 4)
    assert all(len(set(kinds[owner == e].tolist())) == 1 for e in range(4)) and torch.bincount(owner).tolist() == [10] * 4
    assert torch.bincount(clusters(torch.full((10, 3), float("nan")), 4), minlength=4).max() <= 3, "weights that are not there yet"
    with pytest.raises(ModelError, match="fewer experts"):
        ExpertChoice.of(dense(False, 3), E)


# --- devices ---------------------------------------------------------------------------------------------------------------------------------------


HOLDER = """
import sys, torch
from multiprocessing.connection import Client
from fourfold.rewrites.route._experts import Experts
link = Client(sys.argv[1], authkey=b"experts")
shape, state = link.recv()
shard = Experts(**shape)
shard.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
while (sent := link.recv()) is not None:
    with torch.no_grad():
        link.send(shard(*map(torch.from_numpy, sent)).numpy())
"""


def test_experts_on_several_devices_answer_and_save_as_in_one_place() -> None:
    layer, x = made("top two"), tokens(2, 12)
    wanted, state = layer(x), layer.state_dict()
    placed = copy.deepcopy(layer).place(["cpu", "cpu", torch.device("cpu"), "cpu"])
    assert isinstance(placed.experts, PlacedExperts) and len(placed.experts.runs) == 3
    assert torch.allclose(placed(x), wanted, atol=1e-6) and all(torch.equal(placed.state_dict()[k], v) for k, v in state.items())
    placed(x).sum().backward()
    assert all(p.grad is not None for p in placed.experts.parameters())
    other = made("top two").place(["cpu", torch.device("cpu"), "cpu", "cpu"])
    for p in other.parameters():
        nn.init.zeros_(p)
    other.load_state_dict(state)
    assert torch.allclose(other(x), wanted, atol=1e-6)
    far = copy.deepcopy(layer).place(["meta", "meta", "cpu", "cpu"])
    assert {p.device.type for p in far.parameters()} == {"meta", "cpu"}
    with pytest.raises(ModelError, match="one place for each expert"):
        layer.place(["cpu"])


def test_experts_in_another_process() -> None:
    layer, x = made("expert choice"), tokens(2, 12)
    wanted = layer(x)
    with Listener(authkey=b"experts") as listener:
        child = subprocess.Popen([sys.executable, "-c", HOLDER, str(listener.address)])
        link = listener.accept()

        def away(shard: Experts) -> Callable[[Tensor, Tensor], Tensor]:
            shape = {"experts": shard.count, "width": shard.width, "hidden": shard.hidden, "activation": "gelu"}
            link.send((shape, {name: tensor.numpy() for name, tensor in shard.state_dict().items()}))

            def ask(rows: Tensor, ends: Tensor) -> Tensor:
                link.send((rows.numpy(), ends.numpy()))
                return torch.from_numpy(link.recv())

            return ask

        with torch.no_grad():
            assert torch.allclose(layer.place(["cpu", "cpu", away, away])(x), wanted, atol=1e-6)
        link.send(None)
        assert child.wait(600) == 0
    with pytest.raises(ModelError, match="held elsewhere"):
        layer.state_dict()


# --- transformers ----------------------------------------------------------------------------------------------------------------------------------


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=32))  # fmt: skip


def qwen() -> nn.Module:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM(Qwen2MoeConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, shared_expert_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_experts=6, num_experts_per_tok=3, max_position_embeddings=32))  # fmt: skip


@pytest.mark.parametrize("make", [mixtral, qwen])
def test_models_of_transformers_run_their_experts_by_our_kernel(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model: Any = make().eval()
    ids = torch.randint(0, 90, (3, 17))
    model.set_experts_implementation("eager")
    wanted = model(ids).logits
    wanted.square().mean().backward()
    plain = {n: p.grad for n, p in model.named_parameters() if "experts" in n}
    model.zero_grad()
    use_experts(model)
    assert model.config._experts_implementation == "fourfold"
    got = model(ids).logits
    got.square().mean().backward()
    assert torch.allclose(got, wanted, atol=1e-5)
    assert plain and all(torch.allclose(dict(model.named_parameters())[n].grad, grad, atol=1e-5) for n, grad in plain.items())
    assert torch.allclose(model.to(torch.bfloat16)(ids).logits.float(), wanted, atol=0.05)


def test_a_model_without_experts_is_told_so() -> None:
    with pytest.raises(ModelError, match="no experts"):
        use_experts(nn.Linear(2, 2))


# --- in a model ------------------------------------------------------------------------------------------------------------------------------------


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(
        vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=40,
    )).eval()  # fmt: skip


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=120, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40,
    )).eval()  # fmt: skip


IDS = torch.randint(5, 120, (3, 12), generator=torch.Generator().manual_seed(1))


def call(model: Any) -> Tensor:
    return model(input_ids=IDS).logits                                 # type: ignore[no-any-return]


def converted(model: nn.Module, technique: Any, to: str, **changed: Any) -> nn.Module:
    made = technique().conversions(sites(model, call), to)
    return apply(copy.deepcopy(model), Recipe(tuple({**edit, **changed} for one in made for edit in one.edits))).eval()


@pytest.mark.parametrize(("technique", "to"), [(ExpertChoiceRouting, "expert-choice"), (TopTwoRouting, "top-two")])
def test_a_converted_encoder_answers_the_same_whatever_it_is_padded_to(technique: Any, to: str) -> None:
    model: Any = converted(bert(), technique, to)
    assert len(loads(model)) == 0 and sum(isinstance(m, RoutedMLP) for m in model.modules()) == 2
    ids, mask = torch.nn.functional.pad(IDS, (0, 5)), torch.nn.functional.pad(torch.ones_like(IDS), (0, 5))
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids, attention_mask=mask).logits, call(model), atol=1e-5)
        assert [int(load.tokens) for load in loads(model).values()] == [36, 36]
        model(ids, mask)                                               # the mask may stand by position
        assert all(not load.served.view(3, 17)[:, 12:].any() for load in loads(model).values())
    assert model.padding_mask.keep is None, "forgotten after the call"
    with pytest.raises(RuntimeError):
        model(ids, mask, torch.zeros(1, 99))
    assert model.padding_mask.keep is None, "even where it raised"


def test_all_experts_or_copies_leave_the_model_as_it_was() -> None:
    for make in (bert, llama):
        model, before = make(), call(make())
        assert torch.allclose(call(converted(model, TopTwoRouting, "top-two", how="copies")), before, atol=1e-4)
        assert torch.allclose(call(converted(model, TopTwoRouting, "top-two", experts=2)), before, atol=1e-4)
    assert torch.allclose(call(converted(bert(), ExpertChoiceRouting, "expert-choice", capacity_factor=8.0)), call(bert()), atol=1e-4)


def test_a_decoder_is_refused_for_expert_choice_and_stays_causal_with_top_two() -> None:
    model = llama()
    with pytest.raises(ModelError, match="reads the future"):
        ExpertChoiceRouting().conversions(sites(model, call), "expert-choice")
    assert "left to right" in str(ExpertChoiceRouting().declines(model)) and TopTwoRouting().declines(model) is None
    routed: Any = converted(model, TopTwoRouting, "top-two")
    for prefix in (1, 5, 9):
        other = IDS.clone()
        other[:, prefix:] = (other[:, prefix:] + 7) % 120
        with torch.no_grad():
            assert torch.allclose(routed(other).logits[:, :prefix], routed(IDS).logits[:, :prefix], atol=1e-5)


def test_the_page_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "experts.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- runs -->\n```python\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:                                               # each goes on from the one before
        exec(block, names)                                             # noqa: S102
    said = capsys.readouterr().out
    assert "reads the future" in said and "{'encoder.layer.0.intermediate.dense': 1.0, 'encoder.layer.1.intermediate.dense': 1.0}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("technique", "to"), [(ExpertChoiceRouting, "expert-choice"), (TopTwoRouting, "top-two")])
def test_a_converted_encoder_goes_to_onnx_and_back(technique: Any, to: str, tmp_path: Any) -> None:
    import onnxruntime

    model: Any = converted(bert(), technique, to)
    mask = (torch.arange(12) < torch.tensor([[12], [7], [9]])).long()
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=mask).logits
        torch.onnx.export(model, (), tmp_path / "it.onnx", kwargs={"input_ids": IDS, "attention_mask": mask}, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "it.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input_ids": IDS.numpy(), "attention_mask": mask.numpy()})
    assert torch.allclose(torch.from_numpy(found), wanted, atol=1e-4)
