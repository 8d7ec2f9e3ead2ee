"""Every family that generates: structure and token rows cut → saved → loaded in a fresh process → the same tokens with a cache as without."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from table import FAMILIES, GROUPED, Family, _hf, made, text
from test_families import halves, shorter
from torch import nn

from fourfold.engines.decode.eager import EagerDecoding
from fourfold.frontends.model import load_model, state
from fourfold.recipe import Recipe, apply, pack
from fourfold.runtime.generate import generate
from fourfold.structure.discover import Keep, anatomize, recipe_for

HERE = Path(__file__).parent
NEWER = [
    Family("gemma3", _hf("Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=16, sliding_window=8, **GROUPED), text, generates=True),
    Family("mixtral", _hf("MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2, **GROUPED), text, generates=True),
]
QUICK = ("opt", "gpt2", "llama-grouped", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "t5", "whisper")
ALL = [f for f in FAMILIES + NEWER if f.generates]
each = pytest.mark.parametrize("family", [pytest.param(f, id=f.name, marks=() if f.name in QUICK else pytest.mark.slow) for f in ALL])


def cut(family: Family) -> tuple[nn.Module, dict[str, object], Recipe]:
    """The family's model, its origin, and the recipe: blocks where they can go, half of the heads and neurons, 40 whole token rows."""
    subject, inputs = load_model(made(family)), family.inputs()
    anatomy = anatomize(subject.module, lambda m: subject.logits(m, inputs))
    vocabulary = anatomy.vocabulary
    assert vocabulary is not None and anatomy.bundles, anatomy.refusals
    kinds = [subject.module.get_submodule(p) for p in vocabulary.paths]
    rows = {"kind": "token_rows", "heads": [p for p, m in zip(vocabulary.paths, kinds, strict=True) if isinstance(m, nn.Linear)],
            "tables": [p for p, m in zip(vocabulary.paths, kinds, strict=True) if isinstance(m, nn.Embedding)], "index": pack(range(40)), "rank": 6,
            "size": vocabulary.size}
    assert rows["heads"] and rows["tables"]
    recipe = recipe_for(anatomy, Keep(units=halves(anatomy, empty=False), blocks=shorter(anatomy)))
    return subject.module, subject.origin, Recipe((*recipe.edits, rows))


def prompt(family: Family) -> dict[str, np.ndarray]:
    inputs = {name: value.numpy() for name, value in family.inputs().items()}
    if "decoder_input_ids" in inputs:
        return inputs | {"decoder_input_ids": inputs["decoder_input_ids"][:, :2]}
    mask = np.ones_like(inputs["input_ids"])
    mask[1, :5] = 0
    return {"input_ids": inputs["input_ids"], "attention_mask": mask}


@pytest.fixture(scope="module")
def elsewhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[list[int]], list[list[list[int]]]]]:
    """Of every family asked for: what the cut model writes here, and with and without a cache in a process that knows nothing but the files."""
    root, here = tmp_path_factory.mktemp("generation"), {}
    mine = [item for item in request.session.items if item.path == request.path]
    names = {f.name for f in ALL for item in mine if item.name.endswith(f"[{f.name}]")}
    for family in (f for f in ALL if f.name in names):
        module, origin, recipe = cut(family)
        small = apply(copy.deepcopy(module), recipe)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
        folder = root / family.name
        folder.mkdir()
        (folder / "told.json").write_text(json.dumps({"origin": origin, "recipe": recipe.to_json()}))
        save_file(state(small), folder / "model.safetensors")
        np.savez(folder / "inputs.npz", **prompt(family))  # type: ignore[arg-type]
        here[family.name] = generate(EagerDecoding(small), prompt(family), 10).tokens
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
    subprocess.run([sys.executable, "-W", "ignore", str(HERE / "writing.py"), str(root)], check=True, env=environment, timeout=900)
    return {name: (tokens, json.loads((root / name / "found.json").read_text())) for name, tokens in here.items()}


@each
def test_generates_elsewhere_with_a_cache_as_without(family: Family, elsewhere: dict[str, tuple[list[list[int]], list[list[list[int]]]]]) -> None:
    here, (cached, uncached) = elsewhere[family.name]
    assert cached == uncached == here
    assert [len(row) for row in here] == [10, 10]
