"""Tree attention beside attention written out: the same numbers, the same gradients, no look into the future, and something defined for all that is
odd."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sited import model
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError
from fourfold.recipe import Recipe, apply
from fourfold.rewrites.attend.treeformer import TreeAttention, Treeformer, bootstrap, counted, height_for
from fourfold.structure.cores import core_of
from fourfold.structure.sites import sites


def drawn(batch: int = 2, heads: int = 3, queries: int = 50, keys: int | None = None, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    keys = queries if keys is None else keys
    return tuple(torch.randn(batch, heads, n, width, generator=dice) for n in (queries, keys, keys))  # type: ignore[return-value]


def tree(mode: Any = "tf", height: int = 3, causal: bool = False, fitted: bool = True, heads: int = 3, width: int = 5) -> TreeAttention:
    torch.manual_seed(1)
    core = TreeAttention(heads, width, height, mode, causal)
    if fitted:
        q, k, _ = drawn(4, heads, 60, width=width, seed=9)
        core.fit(q, k)
    return core.eval()


def leaf_of(core: TreeAttention, head: int, x: Tensor, side: int, level: int | None = None) -> int:
    """By walking down the tree, a token at a time."""
    z, node, first = x - core.centre[side, head], 0, 0
    for depth in range(core.height if level is None else level):
        at = first + node
        node = 2 * node + int(float(z @ core.weight[head, at]) > float(core.threshold[head, at]))
        first += 1 << depth
    return node


def by_hand(core: TreeAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """A query at a time, as the paper's formulas say it."""
    out = torch.zeros(*q.shape[:3], v.shape[3])
    add = torch.zeros(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if mask is not None:
        add = add.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else add + mask
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            nodes = [[leaf_of(core, h, x, 1, level) for x in k[b, h]] for level in range(core.height + 1)]
            for t in range(q.shape[2]):
                seen = [s for s in range(k.shape[2]) if add[b, h, t, s] > -1e30 and (not causal or s <= t)]
                levels = []
                for level in range(core.height + 1):
                    mine = leaf_of(core, h, q[b, h, t], 0, level)
                    levels.append([s for s in seen if nodes[level][s] == mine])
                if core.mode == "tc":
                    share = torch.stack([core.levels[h, i] if here else torch.tensor(float("-inf")) for i, here in enumerate(levels)]).softmax(0)  # type: ignore[index]
                    for weight, here in zip(share, levels, strict=True):
                        if here:
                            out[b, h, t] += weight * v[b, h, here].mean(0)
                elif levels[-1]:
                    score = (k[b, h, levels[-1]] @ q[b, h, t]) * q.shape[3] ** -0.5 + add[b, h, t, levels[-1]]
                    out[b, h, t] = score.softmax(0) @ v[b, h, levels[-1]]
                else:
                    deepest = next((here for here in reversed(levels) if here), None)
                    if deepest:
                        out[b, h, t] = v[b, h, deepest].mean(0)
    return out


def padding(keys: int, batch: int = 2) -> Tensor:
    seen = torch.ones(batch, 1, 1, keys, dtype=torch.bool)
    seen[0, ..., keys // 2 :] = False
    return seen


MASKS = {"none": lambda t, s: None, "padding": lambda t, s: padding(s), "both": lambda t, s: padding(s) & torch.ones(t, s, dtype=torch.bool).tril()}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_what_is_computed_is_what_the_formulas_say(mode: Any, causal: bool, mask: str) -> None:
    q, k, v = drawn()
    core = tree(mode, 3, causal)
    if mask == "both" and not causal and mode == "tc":
        with pytest.raises(InputError, match="neither"):                 # means know causality only of a tree that was made causal
            core(q, k, v, attn_mask=MASKS[mask](50, 50))
        return
    if core.levels is not None:
        nn.init.normal_(core.levels)
    given = MASKS[mask](50, 50)
    with torch.no_grad():
        found = core(q, k, v, attn_mask=given)
        assert torch.allclose(found, by_hand(core, q, k, v, given, causal), atol=2e-5)
        assert torch.allclose(core._dense(q, k, v, given, causal, None), found, atol=2e-5)   # what exporters write down


def test_any_bias_is_added_where_the_leaf_is_read() -> None:
    q, k, v = drawn(queries=20, keys=33)
    bias = torch.randn(1, 3, 20, 33, generator=torch.Generator().manual_seed(3))
    bias[..., 5] = float("-inf")
    core = tree()
    with torch.no_grad():
        assert torch.allclose(core(q, k, v, attn_mask=bias), by_hand(core, q, k, v, bias), atol=2e-5)
    with pytest.raises(InputError, match="neither"):
        tree("tc")(q, k, v, attn_mask=bias)


def test_height_zero_is_attention_and_the_mean() -> None:
    q, k, v = drawn()
    with torch.no_grad():
        assert torch.allclose(tree("tf", 0)(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-5)
        assert torch.allclose(tree("tf", 0, True)(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True), atol=1e-5)
        assert torch.allclose(tree("tc", 0)(q, k, v), v.mean(2, keepdim=True).expand_as(v), atol=1e-5)


def test_numbers_of_the_compiled_descent_are_those_of_torch() -> None:
    q, k, _ = drawn(queries=300, width=17)
    core = tree(heads=3, width=17, height=6)
    for side, x in (("query", q), ("key", k)):
        ours = core.leaves(x, side)                                      # type: ignore[arg-type]
        margins, theirs = core._margins(x, core.centre[0 if side == "query" else 1])
        near = torch.stack([m.abs() < 1e-5 for m in margins]).any(0)     # at an edge, rounding decides
        assert bool((near | (ours == theirs)).all()) and float(near.float().mean()) < 0.01


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_gradients_of_values_queries_and_keys(mode: Any) -> None:
    """By finite differences in float64 where no decision is near an edge; the trees' own gradients are the sigmoid's, checked below."""
    q, k, v = (x.double().requires_grad_() for x in drawn(1, 2, 12, width=4))
    core = tree(mode, 2, heads=2, width=4).double().requires_grad_(False)
    if mode == "tc":                                                     # decisions alone depend on q and k: constant nearly everywhere
        assert torch.autograd.gradcheck(lambda x: core(q.detach(), k.detach(), x), (v,))
        return
    core._path = lambda x, side: [torch.ones_like(x[..., 0])] * core.height  # type: ignore[method-assign]   # without what is straight through
    assert torch.autograd.gradcheck(lambda *xs: core(*xs), (q, k, v))


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_the_trees_learn_by_the_sigmoid_of_their_margins(mode: Any) -> None:
    """The gradient of a node's weights is that of the output times Π σ(|margin|) along the path, at the point where the product is 1."""
    q, k, v = drawn(1, 1, 1, 6, width=4)
    core = tree(mode, 1, heads=1, width=4)
    core.threshold.fill_(-1e3)                                           # all to the right: one leaf, so the answer is known
    core(q, k, v).sum().backward()
    grad = core.weight.grad
    assert grad is not None and float(grad.abs().max()) == 0.0           # far from the edge there is nothing to learn
    core.threshold.fill_(-0.5)
    core.weight.data.zero_()
    core.weight.grad = None
    out = core(q, k, v)
    out.sum().backward()
    slope = torch.sigmoid(torch.tensor(0.5)) * (1 - torch.sigmoid(torch.tensor(0.5)))
    z = q[0, 0, 0] - core.centre[0, 0]
    if mode == "tf":
        weight = ((k[0, 0] @ q[0, 0, 0]) * 0.5).softmax(0)
        value = (weight[:, None] * v[0, 0]).sum()
        keys = sum(w * (v[0, 0, s].sum() - value) * (k[0, 0, s] - core.centre[1, 0]) for s, w in enumerate(weight))
        want = slope * (value * z + keys)
    else:
        mean = v[0, 0].mean(0).sum()
        keys = sum(v[0, 0, s].sum() / 6 * (k[0, 0, s] - core.centre[1, 0]) for s in range(6))
        want = slope * 0.5 * (mean * z + keys)                           # the level counts half
    again = core.weight.grad
    assert again is not None and torch.allclose(again[0, 0], want, atol=1e-5)


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_a_causal_tree_does_not_look_ahead(mode: Any) -> None:
    """Whatever comes after changes nothing before, and what comes before does."""
    core = tree(mode, 3, causal=True)
    q, k, v = drawn(1)
    for at in (1, 7, 31, 49):
        other = [x.clone() for x in (q, k, v)]
        for x in other:
            x[:, :, at:] = torch.randn(x[:, :, at:].shape, generator=torch.Generator().manual_seed(at))
        with torch.no_grad():
            one, two = core(q, k, v), core(*other)                       # sizes of leaves, and with them roundings, may differ
            assert torch.allclose(one[:, :, :at], two[:, :, :at], atol=1e-6) and not torch.allclose(one[:, :, at:], two[:, :, at:], atol=1e-2)


def test_decoding_a_token_at_a_time_is_the_whole_run() -> None:
    core = tree("tf", 3, causal=True)
    q, k, v = drawn(1)
    with torch.no_grad():
        whole = core(q, k, v)
        for t in (0, 3, 20, 49):
            assert torch.allclose(core(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1]), whole[:, :, t : t + 1], atol=1e-5)


def test_leaves_stay_even() -> None:
    """Queries and keys of other means and scales, and of a few clusters: no leaf holds four times its share."""
    dice = torch.Generator().manual_seed(0)
    middle = 3 * torch.randn(2, 7, 16, generator=dice)
    k = middle[:, torch.randint(7, (400,), generator=dice)] + torch.randn(2, 400, 16, generator=dice)
    q, k = (5 + 0.5 * k).unsqueeze(0), k.unsqueeze(0)
    core = TreeAttention(2, 16, 4).train()
    for _ in range(3):
        core(q, k, k)
    for x, side in ((q, "query"), (k, "key")):
        leaf = core.leaves(x, side)                                      # type: ignore[arg-type]
        share = torch.stack([(leaf == i).float().mean((0, 2)) for i in range(16)])
        assert float(share.max()) < 4 / 16
    ours, dense = counted(core, q, k)
    assert ours < dense / 6


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_odd_inputs_have_defined_answers(mode: Any) -> None:
    core = tree(mode, 4)
    q, k, v = drawn(queries=3)                                           # fewer tokens than leaves
    with torch.no_grad():
        assert bool(core(q, k, v).isfinite().all())
        assert core(q[:, :, :0], k, v).shape == (2, 3, 0, 5)
        assert torch.equal(core(q, k[:, :, :0], v[:, :, :0]), torch.zeros(2, 3, 3, 5))
        nobody = torch.zeros(2, 1, 1, 3, dtype=torch.bool)
        assert torch.equal(core(q, k, v, attn_mask=nobody), torch.zeros(2, 3, 3, 5))
        flipped = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(core(*flipped), core(q, k, v))                # not contiguous
        for half in (torch.bfloat16, torch.float16):
            low = copy.deepcopy(core).to(half)(*(x.to(half) for x in (q, k, v)))
            assert low.dtype == half and bool(low.isfinite().all())
        large = copy.deepcopy(core).half()(*(200 * x.half() for x in (q, k, v)))
        assert bool(large.isfinite().all())
        same = torch.ones_like(k)
        alike = TreeAttention(3, 5, 3, mode).train()
        assert bool(alike(same, same, v).isfinite().all())               # nothing differs: any direction will do
    bad = q.clone()
    bad[0, 0, 0, 0] = float("nan")
    with torch.no_grad():
        out = core(bad, k, v)
        assert torch.equal(out[1], core(q, k, v)[1])                     # stays with its own text


def test_sizes_that_cannot_be() -> None:
    q, k, v = drawn()
    for wrong in ((0, 5, 3), (3, 0, 3), (3, 5, -1), (3, 5, 99)):
        with pytest.raises(InputError, match="cannot be"):
            TreeAttention(*wrong)
    with pytest.raises(InputError, match='no tree attention "?\'?xx'):
        TreeAttention(3, 5, 2, "xx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got"):
        tree()(q[..., :4], k, v)
    with pytest.raises(InputError, match="numbers"):
        tree()(q.long(), k.long(), v.long())
    assert [height_for(n) for n in (0, 32, 64, 1024, 4096, 1 << 30)] == [1, 1, 1, 5, 7, 12]


def test_a_tree_grows_by_a_level_and_keeps_what_it_has() -> None:
    core = tree(height=2)
    q, k, v = drawn()
    taller = core.grow()
    assert taller.height == 3 and torch.equal(taller.leaves(k, "key") >> 1, core.leaves(k, "key"))
    before = taller.weight[:, 3:].clone()
    taller.train()(q, k, v)
    assert torch.equal(taller.weight[:, :3], core.weight) and not torch.equal(taller.weight[:, 3:], before)
    coarse = tree("tc", 2)
    with torch.no_grad():
        assert torch.allclose(coarse.grow()(q, k, v), coarse(q, k, v), atol=0.1)   # the new level begins with little weight


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_state_compile_and_onnx(mode: Any, tmp_path: Path) -> None:
    core, (q, k, v) = tree(mode, 3), drawn()
    again = TreeAttention(3, 5, 3, mode).eval()
    again.load_state_dict(core.state_dict())
    with torch.no_grad():
        want = core(q, k, v)
        assert torch.equal(again(q, k, v), want)
        assert torch.allclose(torch.compile(again, backend="eager")(q, k, v), want, atol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    file = tmp_path / "tree.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(core, (q, k, v), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(file))
    (out,) = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), (q, k, v), strict=True)})
    assert torch.allclose(torch.from_numpy(out), want, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2", "encoder"])
def test_a_model_is_converted_trained_and_made_again(name: str) -> None:
    made, call = model(name)
    found = Treeformer().conversions(sites(made, call), "treeformer")
    student = copy.deepcopy(made)
    for one in found:
        apply(student, Recipe(one.edits))
    student.train()
    call(student).square().mean().backward()
    cores = [part for part in student.modules() if isinstance(part, TreeAttention)]
    assert len(cores) == len(found) >= 2 and all(core.weight.grad is not None for core in cores) and all(int(core.fitted) == 5 for core in cores)
    student.eval()
    again = copy.deepcopy(made)
    for one in found:
        apply(again, Recipe(one.edits))
    again.eval().load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(call(again), call(student))


def test_bootstrapping_goes_from_the_last_layer_and_up_the_heights() -> None:
    made, call = model("bert")
    found = Treeformer().conversions(sites(made, call), "treeformer")
    said: list[str] = []

    def tune(student: nn.Module, what: str) -> None:
        said.append(what)
        student.train()
        call(student)

    bootstrap(made, found, tune, heights=(1, 3))
    assert said == [f"{one.site}, height {h}" for one in reversed(found) for h in (1, 3)]
    cores = [core_of(made.get_submodule(one.edits[-1]["path"])) for one in found]
    assert [(core.height, int(core.fitted)) for core in cores if isinstance(core, TreeAttention)] == [(3, 3)] * len(found)
