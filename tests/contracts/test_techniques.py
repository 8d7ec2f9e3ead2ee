"""What every technique owes, whoever wrote it: facts that are true, a refusal in words, options that can be carried out, nothing changed unasked.

The folder listing is the list of parameters: a new file is tested by being there.
"""

import ast
import copy
import importlib
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import fourfold
from fourfold.cite import BIBLIOGRAPHY
from fourfold.errors import InputError
from fourfold.recipe import Recipe
from fourfold.registry import facts, technique, techniques
from fourfold.rewrite import Option, Rewrite
from fourfold.rewrites.calibration import Sensitivities
from fourfold.structure.discover import Anatomy, Keep, anatomize, recipe_for

NAMES = [id for id, module in techniques(prototypes=True).items() if ".rewrites." in module]   # decisions: test_decisions.py
REQUIRED = {f"compress/{name}" for name in (
    "layer_removal", "matrix_pruning", "vocabulary", "distil", "static", "quantise", "cascade", "bag_of_words", "combine")}


def bert() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    config = BertConfig(vocab_size=120, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, max_position_embeddings=40,
                        num_labels=3, attn_implementation="eager")
    ids = torch.randint(5, 120, (4, 9), generator=torch.Generator().manual_seed(1))
    return BertForSequenceClassification(config), lambda model: model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def plain() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(12, 64), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(64, 2))
    x = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(1))
    return model, lambda model: model(x)


MODELS = {"bert": bert, "plain": plain}
_made: dict[str, tuple[nn.Module, Callable[[nn.Module], torch.Tensor], Anatomy]] = {}


def subject(kind: str) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor], Anatomy]:
    """A copy of a real, tiny, trained-looking model, how to call it, and its anatomy (found once)."""
    if kind not in _made:
        torch.manual_seed(0)
        model, call = MODELS[kind]()
        model.eval()
        _made[kind] = model, call, anatomize(model, call)
    model, call, anatomy = _made[kind]
    return copy.deepcopy(model), call, anatomy


def sensitivities(anatomy: Anatomy) -> Sensitivities:
    """Measured-looking numbers for every part of the anatomy."""
    dice = np.random.default_rng(0)
    found = Sensitivities(examples=8)
    for stack in anatomy.stacks:
        for block in stack.blocks:
            found.influence[block.path], found.ablation[block.path] = float(dice.uniform(0, 1)), float(dice.uniform(0, 1))
    for name in anatomy.sublayers:
        found.ablation[name] = float(dice.uniform(0, 1))
    for name, bundle in anatomy.bundles.items():
        found.gradients[name] = dice.normal(size=(8, bundle.count)).astype(np.float32)
    return found


def output(model: nn.Module, call: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return call(model)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_techniques_of_the_main_job_are_all_here() -> None:
    assert set(NAMES) >= REQUIRED, f"missing: {REQUIRED - set(NAMES)}"


@pytest.mark.parametrize("name", NAMES)
def test_one_final_class_whose_facts_are_true(name: str) -> None:
    module = importlib.import_module(techniques()[name])
    own = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Rewrite) and value.__module__ == module.__name__]
    assert len(own) == 1, f"{name} must hold exactly one Rewrite, it holds {own}"
    cls = own[0]
    assert cls is technique(name) and cls.__bases__ == (Rewrite,) and not cls.__subclasses__(), "abstract or final"
    assert not inspect.isabstract(cls)
    found = facts(name)
    assert (found.title, found.lever, found.cites, found.needs) == (cls.title, cls.lever, tuple(cls.cites), tuple(cls.needs))
    assert cls.lever == "model" and cls.title and len(cls.title) < 110 and found.summary


@pytest.mark.parametrize("name", NAMES)
def test_it_names_papers_that_are_in_the_bibliography_and_says_its_source(name: str) -> None:
    cls = technique(name)
    assert cls.cites and not [key for key in cls.cites if key not in BIBLIOGRAPHY]
    text = f"{inspect.getmodule(cls).__doc__} {cls.__doc__}"
    assert re.search(r"\b(19|20)\d\d\b", text), "the docstring names its source with the year"


@pytest.mark.parametrize("name", NAMES)
def test_what_it_needs_can_be_imported_and_is_all_it_imports(name: str) -> None:
    cls = technique(name)
    assert all(importlib.util.find_spec(need) for need in cls.needs)
    tree = ast.parse(Path(inspect.getfile(cls)).read_text())
    heads = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    heads |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {head for head in heads if head and head not in ("fourfold", "__future__") and head not in __import__("sys").stdlib_module_names}
    core = {"torch", "numpy", "scipy", "numba", "optuna", "transformers", "tokenizers", "safetensors"}
    assert foreign <= core | set(cls.needs), f"{name} imports {foreign - core - set(cls.needs)} without saying so in `needs`"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_it_declines_in_a_sentence_or_not_at_all(name: str, kind: str) -> None:
    model, call, _ = subject(kind)
    before = output(model, call)
    why = technique(name)().declines(model)
    assert why is None or (len(why.split()) > 3 and len(why) < 400)
    assert torch.equal(output(model, call), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_with_nothing_in_it_is_declined_by_name_or_left_alone(name: str) -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    why = technique(name)().declines(Nothing())
    assert why is None or "Nothing" in why
    if name.split("/")[1] in ("layer_removal", "matrix_pruning", "quantise", "static", "distil", "combine", "vocabulary"):
        assert why is not None


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_options_are_plain_comparable_and_repeatable(name: str, kind: str) -> None:
    model, call, anatomy = subject(kind)
    options = technique(name)().options(anatomy, sensitivities(anatomy))
    assert isinstance(options, list) and all(isinstance(option, Option) for option in options)
    for option in options:
        assert 0 <= option.size <= option.full and option.site
        assert math.isfinite(option.harm) and option.harm >= 0
        assert json.loads(json.dumps(option.detail)) == option.detail
    assert options == technique(name)().options(anatomy, sensitivities(anatomy))
    assert len({(option.site, option.size) for option in options}) == len(options), "an option is offered once"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_recipe_changes_nothing(name: str, kind: str) -> None:
    model, call, _ = subject(kind)
    before = output(model, call)
    after = technique(name)().apply(model, Recipe(()))
    assert torch.equal(output(after, call), before)


def smaller(options: list[Option], anatomy: Anatomy) -> list[Keep]:
    """One thing to keep for each option that leaves less than everything."""
    blocks = {block.path: (stack.name, number) for stack in anatomy.stacks for number, block in enumerate(stack.blocks)}
    keeps = []
    for option in options:
        sub = anatomy.sublayers.get(option.site)
        if option.size == option.full:
            continue
        if sub is None and option.site in blocks:
            stack, number = blocks[option.site]
            total = len(next(s for s in anatomy.stacks if s.name == stack).blocks)
            keeps.append(Keep(blocks={stack: [i for i in range(total) if i != number]}))
        elif sub is not None and option.size == 0:
            keeps.append(Keep(absent=[option.site]))
        elif sub is not None and sub.bundle is not None:
            keeps.append(Keep(units={sub.bundle.name: list(range(option.size))}))
    return keeps


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_option_makes_the_model_smaller_and_its_recipe_rebuilds_the_shape(name: str, kind: str) -> None:
    _, call, anatomy = subject(kind)
    options = technique(name)().options(anatomy, sensitivities(anatomy))
    keeps = smaller(options, anatomy)
    assert bool(keeps) == any(option.size < option.full for option in options), "an option names no part of the anatomy"
    for keep in keeps[:: max(1, len(keeps) // 6)]:
        model, _, _ = subject(kind)
        full = size(model)
        recipe = Recipe.from_json(json.loads(json.dumps(recipe_for(anatomy, keep).to_json())))
        done = technique(name)().apply(model, recipe)
        assert size(done) < full, "physically smaller, never masked"
        torch.manual_seed(9)
        bare = technique(name)().apply(MODELS[kind]()[0].eval(), recipe)
        bare.load_state_dict(done.state_dict())
        assert torch.equal(output(bare, call), output(done, call)) and torch.isfinite(output(done, call)).all()


def test_an_unknown_technique_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean compress/layer_removal"):
        facts("layer_removals")
    with pytest.raises(InputError, match="There are: "):
        technique("zzz")


def test_listing_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = ("import sys, fourfold\nfrom fourfold.registry import *\n[facts(name) for name in techniques()]\nimport fourfold.cite\n"
            "print([m for m in ('torch', 'transformers', 'numpy', 'optuna', 'plotly') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    for name in fourfold.__all__:
        assert getattr(fourfold, name).__name__ == name
    importlib.reload(importlib.import_module("fourfold.optimize"))
    assert callable(fourfold.optimize), "the function, whatever imported its module"
    with pytest.raises(AttributeError):
        fourfold.nothing  # noqa: B018
