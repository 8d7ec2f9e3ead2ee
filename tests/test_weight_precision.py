"""Weights in fewer bits: grids and packing, GPTQ and AWQ against dense references, mixed plans, artefacts that load elsewhere."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_model
from torch import Tensor, nn

from fourfold import registry
from fourfold.errors import ModelError
from fourfold.recipe import Recipe
from fourfold.rewrites.compress._packed import OFFSETS, PackedLinear, decode, encode, fit, install, least_squares, output_error, pack, targets, unpack
from fourfold.rewrites.compress._walk import chain, grams, walk
from fourfold.rewrites.compress.awq import searched
from fourfold.rewrites.compress.gptq import corrected
from fourfold.rewrites.weight_precision import Grid, WeightPlan, head_of, mixed, packed, plans, predicted, sensitivities, uniform, weight_bits

VOCABULARY = 96


def llama(seed: int = 0, tied: bool = True) -> nn.Module:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=VOCABULARY, tie_word_embeddings=tied, initializer_range=0.1)  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def ids(rows: int = 6, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def correlated(rows: int, inputs: int, seed: int = 0) -> Tensor:
    """Inputs whose columns move together and differ in size, as activations do."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.randn(inputs // 4, inputs, generator=g)
    return (torch.randn(rows, inputs // 4, generator=g) @ basis + 0.1 * torch.randn(rows, inputs, generator=g)) * torch.rand(inputs, generator=g) ** 3


@given(st.integers(1, 5), st.integers(1, 6), st.sampled_from([4, 8]), st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_codes_come_back_from_their_bytes(outputs: int, pairs: int, bits: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (outputs, 2 * pairs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    stored = pack(codes, bits)
    assert torch.equal(unpack(stored, bits), codes) and stored.numel() * 8 == codes.numel() * bits


@pytest.mark.parametrize("grid", [Grid(b, g, o) for b, g, o in itertools.product((4, 8), (0, 32), OFFSETS)], ids=str)
def test_every_weight_is_at_most_half_a_step_off(grid: Grid) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)) + 0.3
    weight[3] = 0.0
    weight[4, :32] = 0.7
    step, offset = fit(weight, grid)
    codes = encode(weight, step, offset, grid.bits)
    error = (decode(codes, step, offset) - weight).abs().reshape(*step.shape, -1)
    # A step is rounded to 16 bits, a whole offset moves the ends, and signed codes have one more below than above: the outermost may miss by a step.
    slack = 1.01 if grid.offset == "integer" or (grid.bits, grid.offset) == (4, "symmetric") else 0.5 + 2 ** (grid.bits - 11)
    assert bool((error <= slack * step.abs()[..., None] + 1e-6).all())
    assert decode(codes, step, offset)[3].abs().max() < 1e-6
    if grid.offset == "integer":
        assert torch.equal(offset, offset.round()) and 0 <= float(offset.min()) and float(offset.max()) <= 2**grid.bits - 1


def test_weights_that_were_on_a_grid_of_four_bits_come_back_unchanged() -> None:
    g = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 16, (8, 64), generator=g)
    codes[:, ::32], codes[:, 1::32] = 0, 15                           # each group has both ends, as min–max grids do
    step, low = torch.rand(8, 2, generator=g).half().float() + 0.01, -torch.rand(8, 2, generator=g).half().float()
    step = step.half().float()
    weight = (codes.reshape(8, 2, 32) * step[..., None] + low[..., None]).reshape(8, 64)
    found = fit(weight, Grid(4, 32, "fractional"))
    again = encode(weight, *found, 4)
    assert torch.equal(again, codes.to(torch.uint8)) and torch.allclose(decode(again, *found), weight, atol=1e-5)


def test_shrunk_ranges_are_never_worse_in_the_measure_they_are_chosen_by() -> None:
    weight, h = torch.randn(16, 64, generator=torch.Generator().manual_seed(3)) ** 3, torch.rand(64, generator=torch.Generator().manual_seed(4))
    for grid in (Grid(4, 32, "integer"), Grid(4, 0, "symmetric"), Grid(8, 64, "fractional")):
        errors = [(((decode(encode(weight, s, z, grid.bits), s, z) - weight) ** 2) * h).reshape(*s.shape, -1).sum(2)
                  for s, z in (least_squares(weight, grid, h), fit(weight, grid))]  # fmt: skip
        assert bool((errors[0] <= errors[1] * (1 + 1e-5) + 1e-9).all())


def test_what_cannot_be_stored_is_refused_and_odd_widths_get_groups_that_fit() -> None:
    with pytest.raises(ModelError, match="3 bits"):
        Grid(3)
    with pytest.raises(ModelError, match="no groups of 32"):
        Grid(4, 32).groups(48)
    assert Grid(4, 128).fits(192) == Grid(4, 64) and Grid(4, 64).fits(72).group == 0 and Grid(4, 32).fits(96) == Grid(4, 32)


def test_gptq_errs_less_than_rounding_on_correlated_inputs_for_every_row_and_much_less_in_all() -> None:
    x, weight = correlated(512, 128), torch.randn(48, 128, generator=torch.Generator().manual_seed(5))
    gram = x.t() @ x
    for grid in (Grid(4, 32, "integer"), Grid(4, 0, "symmetric")):
        step, offset = least_squares(weight, grid, gram.diagonal())
        nearest = output_error(weight, decode(encode(weight, step, offset, 4), step, offset), gram)
        codes, step, offset = corrected(weight, gram, grid)
        error = output_error(weight, decode(codes, step, offset), gram)
        assert bool((error <= nearest * (1 + 1e-4) + 1e-6).all()) and float(error.sum()) < 0.5 * float(nearest.sum())
        dense = ((x @ (weight - decode(codes, step, offset)).t()) ** 2).sum(0)  # the error by its definition
        assert torch.allclose(dense, error, rtol=1e-2)


def test_gptq_equals_the_update_by_the_inverse_of_what_is_left() -> None:
    """Against the textbook: after each input, the others move by −e·H⁻¹[j, k] / H⁻¹[j, j], and row and column j leave H."""
    x, weight, grid = correlated(256, 16, seed=6), torch.randn(5, 16, generator=torch.Generator().manual_seed(7)), Grid(4, 0, "integer")
    gram = x.t() @ x + 0.05 * torch.eye(16) * (x**2).sum() / 16
    step, offset = least_squares(weight, grid, gram.diagonal())
    h = gram.double() + 0.01 * gram.diagonal().double().mean() * torch.eye(16, dtype=torch.float64)
    left, codes, places = weight.double().clone(), torch.zeros(5, 16), list(range(16))
    for j in torch.argsort(gram.diagonal(), descending=True).tolist():
        inverse = torch.linalg.inv(h[places][:, places])
        at = places.index(j)
        q = (left[:, j] / step[:, 0] + offset[:, 0]).round().clamp(0, 15)
        codes[:, j] = q
        error = (left[:, j] - (q - offset[:, 0]) * step[:, 0]) / inverse[at, at]
        for k, column in enumerate(places):
            left[:, column] -= error * inverse[at, k]
        places.remove(j)
    mine, _, _ = corrected(weight, gram, grid)
    nearest = encode(weight, step, offset, 4)
    gained = output_error(weight, decode(codes.to(torch.uint8), step, offset), gram) <= output_error(weight, decode(nearest, step, offset), gram)
    assert float((mine[gained].float() == codes[gained]).float().mean()) > 0.98 and bool(gained.any())


def test_gptq_rounds_where_no_input_ever_comes() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(8))
    codes, step, offset = corrected(weight, torch.zeros(32, 32), Grid(4, 32))
    assert (decode(codes, step, offset) - weight).abs().max() <= 1.01 * step.abs().max()


def test_scaling_is_chosen_where_a_few_inputs_are_large_and_never_harms_the_calibration() -> None:
    g = torch.Generator().manual_seed(9)
    x, weight = torch.randn(256, 64, generator=g), torch.randn(32, 64, generator=g)
    x[:, :2] *= 30
    gram, grid = x.t() @ x, Grid(4, 64, "integer")
    scale = searched({"a": weight}, {"a": grid}, gram)
    assert scale is not None and float(scale[:2].min()) > 1.1 * float(scale[2:].max())

    def error(w: Tensor, s: Tensor | float) -> float:
        step, offset = least_squares(w * s, grid, gram.diagonal() / torch.as_tensor(s) ** 2 if isinstance(s, Tensor) else gram.diagonal())
        return float(output_error(w, decode(encode(w * s, step, offset, 4), step, offset) / s, gram).sum())

    assert error(weight, scale) < 0.9 * error(weight, 1.0)


@pytest.mark.parametrize("id", registry.packers())
def test_each_technique_packs_a_decoder_and_leaves_the_original_alone(id: str) -> None:
    model, tokens = llama(), ids(seed=3)
    before, whole = copy.deepcopy(model.state_dict()), logits(model, tokens)
    plan = WeightPlan("p", id, uniform(model, Grid(4, 32, "integer")))
    made = packed(model, plan, lambda m: m(input_ids=ids()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    off = float((logits(made, tokens) - whole).norm() / whole.norm())
    assert off < 0.3, off
    bits = weight_bits(made)
    assert bits["lm_head"] < 8.6 and bits["model.layers.0.mlp.up_proj"] < 5.2 and plan.precision == "int4-weights"
    assert made.lm_head.packed is made.model.embed_tokens.packed


def test_what_was_packed_is_saved_and_made_again_in_a_fresh_process(tmp_path: Path) -> None:
    for place, id in enumerate(registry.packers()):
        model, folder = llama(tied=id.endswith("gptq")), tmp_path / str(place)
        folder.mkdir()
        plan = WeightPlan("p", id, uniform(model, Grid(4, 32, OFFSETS[place % 3])))
        made = packed(model, plan, lambda m: m(input_ids=ids()))
        save_model(made, str(folder / "model.safetensors"))
        model.config.save_pretrained(folder)
        (folder / "recipe.json").write_text(Recipe(tuple(dict(e) for e in plan.edits())).to_json())
        np.save(folder / "right.npy", logits(made, ids(seed=5)).numpy())
        dense = sum({p.data_ptr(): p.numel() for p in model.parameters()}.values()) * 4
        assert (folder / "model.safetensors").stat().st_size < 0.55 * dense
    np.save(tmp_path / "ids.npy", ids(seed=5).numpy())
    script = """
import sys, numpy as np, torch
from pathlib import Path
from safetensors.torch import load_model
from transformers import AutoConfig, AutoModelForCausalLM
from fourfold.recipe import Recipe, apply
for folder in sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir()):
    model = apply(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), Recipe.from_json((folder / "recipe.json").read_text())).eval()
    missing, unexpected = load_model(model, str(folder / "model.safetensors"))
    with torch.no_grad():
        found = model(input_ids=torch.from_numpy(np.load(folder.parent / "ids.npy"))).logits.numpy()
    print(np.abs(found - np.load(folder / "right.npy")).max(), len(missing), len(unexpected))
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-600:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(registry.packers()) and all(float(off) < 1e-5 and missing == unexpected == "0" for off, missing, unexpected in rows)


def test_blocks_are_calibrated_on_what_the_changed_ones_before_them_make() -> None:
    model, tokens = llama(tied=False), ids()
    paths = targets(model)
    assert chain(model, paths) == "model.layers"
    seen: list[str] = []

    def settle(found: dict[str, Tensor]) -> None:
        seen.extend(found)
        reference = grams(model, list(found), lambda: model(input_ids=tokens))
        for path, gram in found.items():
            assert torch.allclose(gram, reference[path], rtol=1e-3, atol=1e-3 * float(gram.abs().max())), path
        for path in found:
            model.get_submodule(path).weight.data.mul_(0.9)

    walk(model, paths, lambda m: m(input_ids=tokens), settle)
    assert sorted(seen) == sorted(paths) and seen[-1] == "lm_head"


def test_mixed_plans_spend_bits_where_they_matter_as_brute_force_does() -> None:
    model, tokens = llama(tied=False), ids(seed=4)
    target = logits(model, tokens).argmax(-1)

    def loss(m: nn.Module) -> float:
        return float(nn.functional.cross_entropy(logits(m, tokens).flatten(0, 1), target.flatten()))

    choices = [Grid(4, 32, "integer"), Grid(8, 0, "symmetric")]
    harms = sensitivities(model, loss, choices)
    assert set(harms) == set(targets(model)) and all((h >= 0).all() for h in harms.values())
    few = dict(itertools.islice(harms.items(), 6))
    found = mixed(model, few, choices, [4.0, 6.0, 9.0])
    assert len(found) == 2                                               # 4 bits a weight do not hold the steps too
    assert sum(few[path][choices.index(grid)] for path, grid in found[-1].grids.items()) == sum(h.min() for h in few.values())
    shapes = {path: (model.get_submodule(path).out_features, model.get_submodule(path).in_features) for path in few}
    count = sum(a * b for a, b in shapes.values())

    def cost(picks: tuple[int, ...]) -> float:
        return sum(choices[k].stored(*shapes[path]) for k, path in zip(picks, few, strict=True))

    best = min(sum(few[path][k] for k, path in zip(picks, few, strict=True)) for picks in itertools.product((0, 1), repeat=6)
               if cost(picks) <= 6.0 * count / 8)
    plan = found[0]
    mine = tuple(choices.index(plan.grids[path]) for path in few)
    assert cost(mine) <= 6.0 * count / 8 * 1.001
    assert sum(few[path][k] for k, path in zip(mine, few, strict=True)) == pytest.approx(best, abs=1e-4)


def test_predicted_harm_ranks_layers_as_trying_them_does() -> None:
    model, tokens = llama(tied=False), ids(rows=12, seed=4)
    labels = logits(model, tokens).argmax(-1)

    def loss(m: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(m(input_ids=tokens).logits.flatten(0, 1), labels.flatten())

    choices = [Grid(4, 32, "integer"), Grid(8, 0, "symmetric")]
    guess = predicted(model, loss, choices)
    assert all(h[1] < 0.1 * h[0] for h in guess.values())                # 16 times finer steps, 256 times smaller squares
    # Against its definition, for one layer: the error of each output on these inputs, weighed by the square of its gradient.
    path = "model.layers.1.mlp.down_proj"
    layer, kept = model.get_submodule(path), []
    handle = layer.register_forward_hook(lambda _, given, result: kept.append((given[0].detach(), result)))
    total = loss(model)
    handle.remove()
    (x, y), = kept
    gradient, = torch.autograd.grad(total, y)
    step, offset = least_squares(layer.weight, choices[0], (x.reshape(-1, x.shape[-1]) ** 2).sum(0))
    off = x @ (layer.weight - decode(encode(layer.weight, step, offset, 4), step, offset)).t().detach()
    right = 0.5 * ((gradient**2).sum((0, 1)) * (off**2).sum((0, 1))).sum()
    assert guess[path][0] == pytest.approx(float(right), rel=1e-3)
    assert not any(p.grad is not None for p in model.parameters())


def test_plans_name_every_technique_and_a_model_without_layers_has_none() -> None:
    found = plans(llama())
    assert {p.technique for p in found} == set(registry.packers()) and len({p.name for p in found}) == len(found)
    assert plans(nn.Sequential(nn.ReLU())) == [] and head_of(nn.Linear(2, 2)) is None
    assert json.dumps([dict(e) for e in found[0].edits()])


def test_gpt2_layers_that_are_stored_transposed_are_packed_too() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=VOCABULARY, n_positions=64)).eval()
    made = packed(model, WeightPlan("p", "compress/gptq", uniform(model, Grid(8, 0, "symmetric"))), lambda m: m(input_ids=ids()))
    assert isinstance(made.transformer.h[0].attn.c_attn, PackedLinear)
    whole = logits(model, ids(seed=6))
    assert float((logits(made, ids(seed=6)) - whole).norm() / whole.norm()) < 0.02


def test_a_layer_that_divides_its_inputs_itself_answers_as_before() -> None:
    layer = nn.Sequential(nn.Linear(64, 64))
    with torch.no_grad():
        whole = layer(x := torch.randn(3, 64, generator=torch.Generator().manual_seed(1)))
        scale = torch.rand(64, generator=torch.Generator().manual_seed(2)) + 0.5
        layer[0].weight.mul_(scale)
        install(layer, "0", Grid(8, 32, "fractional"), scaled=scale)
        assert float((layer(x) - whole).norm() / whole.norm()) < 0.01
