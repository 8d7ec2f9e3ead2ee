"""Captures of torch programs: aliases, phases, tied weights, unknown ops, sizes without a value, files; families are in tests/families."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fourfold.errors import InputError, ModelError
from fourfold.frontends import flops as ops
from fourfold.frontends.capture import capture
from fourfold.frontends.fx_ops import counters
from fourfold.frontends.samples import samples
from fourfold.frontends.torch_export import capture as torch_capture
from fourfold.graph import BACKWARD, CONTRACTION, ELEMENTWISE, FORWARD, GATHER, PARAMETER, REDUCTION, VIEW


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + F.gelu(block(x)).transpose(0, 1).reshape(x.shape)
        return self.head(x.softmax(-1))


IDS = torch.arange(12).reshape(3, 4)


def test_classes_modules_layers_and_tied_weights():
    found = torch_capture(Small(), IDS)
    g = found.graph
    kind = {name: g.kinds[g.kind[i]] for i, name in enumerate(g.names)}
    of = {kind[name]: g.fusion[i] for i, name in enumerate(g.names)}
    assert of["aten.embedding"] == GATHER and of["aten.linear"] == CONTRACTION and of["aten.transpose"] == VIEW
    assert of["aten.gelu"] == of["aten.add"] == ELEMENTWISE and of["aten.softmax"] == REDUCTION
    assert sorted(set(g.layer.tolist())) == [-1, 0, 1, 2]
    assert {m for m, k in zip(g.modules, g.kind, strict=True) if g.kinds[k] == "aten.linear"} == {"blocks.0", "blocks.1", "blocks.2", "head"}
    assert int((g.role == PARAMETER).sum()) == 1 + 3 * 2                # the table and the head are one value
    row = g.names.index("embedding")
    assert g.reads[row] == 12 * 8 * 4 + 12 * 8 and g.params[row] == 12 * 8 * 4        # rows picked, and the indices
    assert g.name == "Small" and torch_capture(Small(), IDS).graph == g


def test_views_share_the_root_and_copies_do_not():
    class Views(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            a, b = x.exp().split(2, dim=1)
            c = a.t()[1:].unsqueeze(0).expand(5, 1, 4)
            return c, b.reshape(-1), b.permute(1, 0).reshape(-1)

    x = torch.randn(4, 4)
    found = torch_capture(Views(), x)
    g = found.graph
    root = int(g.out_val[g.out_ptr[g.names.index("exp")]])
    shared = [g.kinds[g.kind[g.producer[v]]] for v in range(len(g.producer)) if g.alias[v] == root]
    assert {"aten.exp", "aten.slice", "aten.unsqueeze", "aten.expand"} <= set(shared)
    for got, want in zip(found.run(x), Views()(x), strict=True):
        torch.testing.assert_close(got, want)
    assert int(g.alias[g.outputs[0]]) == root and int(g.alias[g.outputs[2]]) != root
    assert int(g.live().max()) < 6 * 64


def test_copies_without_effect_are_left_out():
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x.relu()).contiguous().float() + 1

    assert [torch_capture(Idle().eval(), torch.randn(3)).graph.names] == [("relu", "add")]


def test_operators_of_the_user_are_listed_with_bytes_and_an_assumption():
    lib = torch.library.Library("fourfoldtest", "FRAGMENT")
    lib.define("odd(Tensor x) -> Tensor")
    lib.impl("odd", lambda x: x * 2, "CompositeExplicitAutograd")
    lib.impl("odd", lambda x: torch.empty_like(x), "Meta")

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.fourfoldtest.odd(x).relu()

    x = torch.randn(3, 5)
    found = torch_capture(Odd(), x)
    g = found.graph
    assert g.unknown == ("fourfoldtest.odd",) and g.flops[0] == 0 and g.steps[0] == 15 and g.reads[0] == g.writes[0] == 60
    assert "no flops" in ops.ASSUMPTION
    torch.testing.assert_close(found.run(x), (x * 2).relu())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_layers_run_and_are_counted(bidirectional: bool):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=bidirectional)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    module, x = Net().eval(), torch.randn(2, 7, 6)
    found = torch_capture(module, x)
    with torch.no_grad():
        torch.testing.assert_close(found.run(x), module(x))
    d = 2 if bidirectional else 1
    assert found.graph.flops.sum() == 2 * 2 * 7 * d * 4 * 5 * ((6 + 5) + (5 * d + 5))


def test_in_place_writes_and_buffers():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            y = x.clone()
            y[:, 0] = 0
            y.relu_()
            return self.norm(y) * self.seen

    module, x = Counting().eval(), torch.randn(6, 4)
    found = torch_capture(module, x)
    torch.testing.assert_close(found.run(x), Counting().eval()(x))
    trained = torch_capture(Counting().train(), x, train=True)
    again = Counting().train()
    loss = again(x).square().mean()
    loss.backward()
    value, gradients = trained.run(x)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(gradients["norm.weight"], again.norm.weight.grad)


def test_training_takes_the_users_loss_and_marks_phases_and_modules():
    module = Small()

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), IDS.flatten())

    found = torch_capture(module, IDS, train=True, loss=loss)
    g = found.graph
    with FlopCounterMode(display=False, custom_mapping=counters()) as counter:
        want = loss(module(IDS))
        want.backward()
    value, gradients = found.run(IDS)
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(gradients["embed.weight"], module.embed.weight.grad)
    assert g.flops.sum() == counter.get_total_flops()
    assert set(g.phase.tolist()) == {FORWARD, BACKWARD}
    assert {"blocks.0", "head"} <= {m for m, p in zip(g.modules, g.phase, strict=True) if p == BACKWARD}
    order = g.phase[g.edges()[0]] <= g.phase[g.edges()[1]]
    assert order.all()                                                 # no forward op waits for a backward one


def test_inputs_by_name_and_structures():
    class Tree(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], scale: Tensor) -> dict[str, Tensor]:
            return {"sum": pair[0] + pair[1], "scaled": pair[0] * scale}

    a, b, s = torch.randn(3), torch.randn(3), torch.randn(())
    found = torch_capture(Tree(), {"pair": (a, b), "scale": s})
    got = found.run(scale=s, pair=(a, b))
    torch.testing.assert_close(got["sum"], a + b)
    with pytest.raises(InputError, match="captured for"):
        found.run(scale=s, pair=(torch.randn(4), b))
    with pytest.raises(InputError):
        found.run(a, b)


def test_a_size_that_depends_on_data_is_that_of_the_inputs_and_said():
    class Nonzero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nonzero() * 2

    found = torch_capture(Nonzero(), torch.tensor([0.0, 1.0, 0.0, 2.0]))
    assert found.run(torch.tensor([0.0, 1.0, 0.0, 2.0])).tolist() == [[2], [6]]
    assert "holds for inputs like them" in found.note[0]


def test_control_flow_by_values_is_followed_and_said():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x) if x.sum() > 0 else x - 1

    module = Branch()
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        found = torch_capture(module, x)
        torch.testing.assert_close(found.run(x), module(x))
        assert "depends on values" in found.note[0]
    x = torch.ones(2, 4)
    value, gradients = torch_capture(module, x, train=True).run(x)
    module(x).square().mean().backward()
    torch.testing.assert_close(gradients["lin.weight"], module.lin.weight.grad)


def test_a_forward_that_fails_is_an_error_in_two_lines():
    with pytest.raises(ModelError) as caught:
        torch_capture(nn.Linear(3, 4), torch.randn(2, 5))
    assert len(str(caught.value).splitlines()) == 2 and "Linear cannot be exported" in str(caught.value)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.lin(x).relu() @ y


def exported(path: Path) -> Path:
    batch = torch.export.Dim("batch")
    program = torch.export.export(Product(), (torch.randn(2, 3, 8), torch.randn(2, 4, 5)), dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, path)
    return path


def test_pt2_files_with_a_dynamic_size(tmp_path: Path):
    path = exported(tmp_path / "m.pt2")
    with pytest.raises(InputError, match=r"without a value: s\d+ \(x.0, y.0\)"):
        capture(path)
    with pytest.raises(InputError, match="no dynamic dimension 'width'"):
        capture(path, dims={"width": 3})
    found = capture(path, dims={"x.0": 7})
    assert found.graph.flops.sum() == 7 * 3 * 2 * (8 * 4 + 4 * 5) and found.graph.name == "m"
    x, y = torch.randn(7, 3, 8), torch.randn(7, 4, 5)
    torch.testing.assert_close(found.run(x, y), torch.export.load(path).module()(x, y))
    assert capture(path, (torch.randn(9, 3, 8), torch.randn(9, 4, 5))).graph.shape_of(0) == capture(path, dims={"x.0": 9}).graph.shape_of(0)


def test_pt2_files_that_are_missing_or_damaged(tmp_path: Path):
    with pytest.raises(InputError, match="no file"):
        capture(tmp_path / "none.pt2")
    path = exported(tmp_path / "m.pt2")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="damaged"):
        capture(path)
    with pytest.raises(InputError, match="no backward pass"):
        capture(exported(tmp_path / "n.pt2"), dims={"x.0": 2}, train=True)


def test_model_folders_get_inputs_of_the_sizes_asked_for(tmp_path: Path):
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99, max_position_embeddings=40
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    found = capture(str(tmp_path), dims={"batch": 3, "length": 12})
    assert found.graph.shape_of(found.graph.outputs[0]) == (3, 2) and {tuple(t.shape) for t in found.inputs} == {(3, 12)}
    assert tuple(capture(tmp_path).inputs[0].shape) == (1, 38)          # as long as the model allows
    for dims, word in (({"depth": 3}, "no dimension 'depth'"), ({"batch": 0}, "cannot be batch=0")):
        with pytest.raises(InputError, match=word):
            capture(tmp_path, dims=dims)


def test_plain_modules_need_inputs_or_sizes():
    with pytest.raises(ModelError, match="'input' cannot be guessed"):
        capture(nn.Linear(3, 4))
    found = capture(nn.Linear(3, 4), dims={"input.0": 5, "input.1": 3})
    assert found.graph.flops.sum() == 2 * 5 * 3 * 4
    assert capture(found) is found


def test_samples_fit_models_of_many_inputs():
    import transformers

    from fourfold.frontends.model import load_model

    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        vocab_size=60, max_source_positions=20, max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    subject = load_model(transformers.WhisperForConditionalGeneration(config))
    made = samples(subject, {"batch": 2})
    assert {k: tuple(v.shape) for k, v in made.items()} == {"input_features": (2, 80, 40), "decoder_input_ids": (2, 16)}
    assert capture(subject, made).graph.validate() == []


@pytest.mark.parametrize(
    ("equation", "shapes", "flops"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)], 2 * 60),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 2 * 120),
        ("...ij,...jk->...ik", [(2, 3, 4), (1, 4, 5)], 2 * 120),
        ("ij,jk", [(3, 4), (4, 5)], 2 * 60),
        ("ij->ji", [(3, 4)], 0),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 2 * (24 + 40)),
    ],
)
def test_einsum_counts(equation: str, shapes: list[tuple[int, ...]], flops: int):
    assert ops.einsum(equation, *shapes) == flops


@pytest.mark.parametrize("case", range(12))
def test_formulas_equal_torchs_counter(case: int):
    rng = np.random.default_rng(case)
    n, c, o, k, groups = (int(v) for v in (*rng.integers(1, 4, 1), 4, 6, *rng.integers(1, 4, 1), rng.choice([1, 2])))
    x = torch.randn(n, c, 9, 8, requires_grad=True)
    transposed = case % 2 == 1
    make = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = make(c, o, k, stride=1 + case % 3, padding=k // 2, groups=groups)
    found = torch_capture(layer, x.detach())
    joint = torch_capture(layer, x.detach(), train=True)
    with FlopCounterMode(display=False) as counter:
        y = layer(x.detach())
    assert found.graph.flops.sum() == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        layer(x.detach()).square().mean().backward()
    assert joint.graph.flops.sum() == counter.get_total_flops()
    assert found.graph.shape_of(found.graph.outputs[0]) == tuple(y.shape)


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS, SIZES = TINY | {"vocab_size": 50}, {"batch": 2, "length": 8}
UNUSUAL = {
    "layoutlm": ("LayoutLMForTokenClassification", "LayoutLMConfig", WORDS | {"max_2d_position_embeddings": 128}, SIZES),
    "choices": ("BertForMultipleChoice", "BertConfig", WORDS, SIZES),
    "spectrum": ("ASTForAudioClassification", "ASTConfig", TINY | {"max_length": 64, "num_mel_bins": 32}, {"batch": 2}),
    "video": ("TimesformerForVideoClassification", "TimesformerConfig", TINY | {"image_size": 16, "patch_size": 8, "num_frames": 2}, {"batch": 2}),
    "experts": ("MixtralForCausalLM", "MixtralConfig", WORDS | {"num_key_value_heads": 2, "num_local_experts": 4}, SIZES),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_inputs_of_unusual_shape_are_guessed(name: str):
    transformers = pytest.importorskip("transformers")
    kind, config, values, dims = UNUSUAL[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**values)).eval()
    model.config.architectures = [kind]
    found = capture(model, dims=dims)
    assert found.graph.validate() == [] and found.graph.unknown == () and found.inputs[0].shape[0] == 2
    with torch.no_grad():
        from fourfold.frontends.model import load_model

        subject = load_model(model)
        torch.testing.assert_close(found.run(*found.inputs), subject.wrap(model)(*found.inputs), rtol=1e-4, atol=1e-5)
    if name == "experts":                                               # 2 × 8 tokens, each to two of four experts: rows by matrix, twice
        flops = [float(f) for f, k in zip(found.graph.flops, found.graph.kind, strict=True) if "grouped" in found.graph.kinds[k]]
        assert flops == [2 * 32 * 32 * 64, 2 * 32 * 32 * 32]
