"""What every technique owes, whoever wrote it: facts that are true, a refusal in words, proposals that can be carried out here and made again
in a fresh process, nothing changed unasked.

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
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from zygote import freshly

import fourfold
from fourfold.cite import BIBLIOGRAPHY
from fourfold.datasets.examples import Examples, Ragged
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.task import Task
from fourfold.errors import InputError
from fourfold.frontends.model import Subject, origin_of, state
from fourfold.gate import Members, Proof
from fourfold.registry import facts, technique, techniques
from fourfold.rewrite import Context, Proposal, Rewrite
from fourfold.rewrites.calibration import Sensitivities
from fourfold.structure.discover import Anatomy, anatomize

NAMES = [id for id, module in techniques(prototypes=True).items() if ".rewrites." in module]   # decisions: test_decisions.py
REQUIRED = {f"compress/{name}" for name in (
    "layer_removal", "matrix_pruning", "vocabulary", "distil", "static", "quantise", "cascade", "bag_of_words", "combine")}


def logits(found: Any) -> torch.Tensor:
    return getattr(found, "logits", found)


def bert() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    config = BertConfig(vocab_size=120, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, max_position_embeddings=40,
                        num_labels=3, attn_implementation="eager")
    ids = torch.randint(5, 120, (4, 9), generator=torch.Generator().manual_seed(1))
    return BertForSequenceClassification(config), lambda model: logits(model(input_ids=ids, attention_mask=torch.ones_like(ids)))


def plain() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(12, 64), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(64, 2))
    x = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(1))
    return model, lambda model: model(x)


def wide() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    model = nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(4, 96, generator=torch.Generator().manual_seed(1))
    return model, lambda model: model(x)


SHAPES = {"plain": (64, 7, 12), "wide": (64, 96)}
MODELS = {"bert": bert, "plain": plain, "wide": wide}
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


def context(kind: str) -> tuple[Context, Callable[[nn.Module], torch.Tensor]]:
    """What proposals are made from, for a tiny model: rows of token ids where it reads them, else of numbers."""
    model, call, anatomy = subject(kind)
    rng = np.random.default_rng(2)
    ids = Ragged.of([rng.integers(5, 120, int(n)) for n in rng.integers(4, 9, 64)], np.int64)
    columns = {"input_ids": ids, "attention_mask": Ragged(np.ones(len(ids.values), np.int64), ids.offsets)} if kind == "bert" else {
        "x": rng.normal(size=SHAPES[kind]).astype(np.float32)}
    task = Task("classification", ["a", "b", "c"] if kind == "bert" else ["a", "b"], METRICS["accuracy"])
    held = Subject(model, origin_of(model), tuple(columns), None, None)
    answers = torch.randn(64, 3 if kind == "bert" else 2, generator=torch.Generator().manual_seed(3))
    examples = Examples(columns, None, None, {name: 0 for name in columns})
    return Context(held, task, examples, answers, anatomy, sensitivities(anatomy), 0.97, 0, call=call), call


def offered(name: str, kind: str, most: int = 6) -> list[Proposal]:
    rewrite = technique(name)()
    found, _ = context(kind)
    return [] if rewrite.declines(found.subject.module) else list(islice(rewrite.propose(found), most))


ASIDE = {"distil": "wins back what others lost", "quantise": "a precision is raced, never predicted",
         "round_to_nearest": "a precision is raced, never predicted", "gptq": "a precision is raced, never predicted",
         "awq": "a precision is raced, never predicted", "token_rows": "only models that write have rows to spare: tests/test_token_rows.py"}
WORDS = ["[PAD]", "[UNK]", *(f"w{i}" for i in range(118))]


def texts(kind: str) -> Context:
    """The same with raw texts, labels, and a tokenizer for them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found, _ = context(kind)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    labels = np.arange(64) % len(found.task.classes or [])
    raw = [f"w{label} w{5 + i % 7} common" for i, label in enumerate(labels)]
    columns = found.examples.columns
    if "input_ids" in columns:
        ids = Ragged.of([np.array(row) for row in tokenizer(raw)["input_ids"]], np.int64)
        columns = {"input_ids": ids, "attention_mask": Ragged(np.ones(len(ids.values), np.int64), ids.offsets)}
    examples = replace(found.examples, columns=columns, raw=raw, targets=labels)
    return replace(found, subject=replace(found.subject, tokenizer=tokenizer), examples=examples, outputs=len(found.task.classes or []))


def ways(name: str) -> list[str]:
    """In which ways a technique takes part on the samples."""
    rewrite, found = technique(name)(), []
    for kind in MODELS:
        ours = texts(kind)
        found += ["propose"] if offered(name, kind) else []
        found += ["alone"] if rewrite.alone(ours) is not None else []
        if rewrite.declines(ours.subject.module) is None and rewrite.extend(ours, ours.subject.module) is not None:
            found.append("extend")
    logits, targets = joinable()
    members = Members([0.05, 1.0], logits, targets, lambda z: float((z.argmax(1) == targets).mean()), [True, True])
    found += ["join"] if rewrite.join(members, Proof(0.8, lambda z: (0.005, 0.005))) else []
    return sorted(set(found))


def joinable() -> tuple[list[np.ndarray], np.ndarray]:
    """Logits [N, 2] of a cheap member that is right where it is sure, and of a dear one that is nearly always right; the truth."""
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 2, 1500)
    signs = np.where(truth == 1, 1.0, -1.0)[:, None] * np.array([[-1.0, 1.0]])
    margin = rng.normal(1.0, 1.2, 1500)[:, None]
    return [signs * margin, signs * rng.normal(3.0, 1.0, 1500)[:, None]], truth


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_part_in_one_way_on_some_sample(name: str) -> None:
    aside = name.split("/")[1] in ASIDE
    if technique(name).converts:                                        # proposed where it can pay, converted where it is asked: test_conversions.py
        assert set(ways(name)) <= {"propose"}
        return
    assert len(ways(name)) == (0 if aside else 1), ASIDE.get(name.split("/")[1], f"it does nothing anywhere, or several things: {ways(name)}")


@pytest.mark.parametrize("name", [name for name in NAMES if technique(name).member])
def test_what_answers_alone_is_saved_and_opened_as_it_was(name: str, tmp_path: Path) -> None:
    rewrite, ours = technique(name)(), texts("bert")
    model = rewrite.alone(ours)
    assert model is not None and model.kind == rewrite.member and model.parameters > 0 and model.nbytes > 0
    rows = model.records(ours.examples.raw)
    assert rows.shape == (64, 3) and np.isfinite(rows).all() and (rows.argmax(1) == ours.examples.targets).mean() > 0.9
    assert sorted(model.save(tmp_path)) == sorted(rewrite.files) == sorted(path.name for path in tmp_path.iterdir())
    assert np.abs(rewrite.opened(tmp_path).records(ours.examples.raw) - rows).max() < 1e-4


@pytest.mark.parametrize("name", [name for name in NAMES if technique(name).extend is not Rewrite.extend])
def test_what_extends_a_candidate_leaves_its_answers(name: str) -> None:
    from fourfold.recipe import Recipe, apply

    rewrite, ours = technique(name)(), texts("bert")
    more = rewrite.extend(ours, ours.subject.module)
    assert more is not None and more.edits and more.suffix and more.told and json.loads(json.dumps(more.edits)) == list(more.edits)
    module = apply(copy.deepcopy(ours.subject.module), Recipe(more.edits)).eval()
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in ours.subject.module.parameters())
    seen = more.reencode(ours.examples)
    rows = [{key: torch.as_tensor(value) for key, value in one.collate(np.arange(8)).items()} for one in (ours.examples, seen)]
    with torch.no_grad():
        before, after = ours.subject.module.eval()(**rows[0]), module(**rows[1])
    assert torch.allclose(before.logits, after.logits, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_plain_comparable_and_repeatable(name: str, kind: str) -> None:
    found = offered(name, kind, 40)
    for one in found:
        assert one.edits and json.loads(json.dumps(one.edits)) == list(one.edits) and one.name
        for figure in filter(None, (one.cost, one.harm)):
            value, low, high = figure
            assert all(map(math.isfinite, figure)) and 0 <= low <= value <= high
    assert len({one.name for one in found}) == len(found), "a proposal is offered once"
    assert [(one.name, one.edits) for one in found] == [(one.name, one.edits) for one in offered(name, kind, 40)]


CHILD = """
import json, sys
from pathlib import Path
import torch
from fourfold.recipe import Recipe
from fourfold.runtime.loading import restore
for folder in map(Path, sys.argv[1:]):
    said = json.loads((folder / "it.json").read_text())
    inputs = torch.load(folder / "it.inputs", weights_only=True)
    made = restore(said["origin"], Recipe.from_json(said["recipe"]), folder / "it.safetensors")
    with torch.no_grad():
        found = made(**inputs) if isinstance(inputs, dict) else made(inputs)
    torch.save(found if isinstance(found, torch.Tensor) else found.logits, folder / "it.found")
"""


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_built_and_made_again_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    """Two of each model's proposals; one process makes all of them again."""
    from safetensors.torch import save_file

    wanted: dict[Path, torch.Tensor] = {}
    rewrite = technique(name)()
    for kind in MODELS:
        found, call = context(kind)
        before, many = output(found.subject.module, call), offered(name, kind, 40)
        for number, one in enumerate(many[:: max(1, len(many) // 2)][:2]):
            torch.manual_seed(0)
            built = rewrite.build(found, one).eval()
            assert torch.equal(output(found.subject.module, call), before), "the original stays as it is"
            after = output(built, call)
            assert after.shape == before.shape and torch.isfinite(after).all()
            origin, edits = rewrite.origin(found, one) or (found.subject.origin, one.edits)
            folder = tmp_path / f"{kind} {number}"
            folder.mkdir()
            (folder / "it.json").write_text(json.dumps({"origin": origin, "recipe": {"edits": list(edits)}}))
            held: dict[str, Any] = {}
            hook = built.register_forward_pre_hook(lambda _m, args, kwargs, h=held: h.update(args=args, kwargs=kwargs), with_kwargs=True)
            output(built, call)
            hook.remove()
            torch.save(held["kwargs"] or held["args"][0], folder / "it.inputs")
            save_file(state(built), str(folder / "it.safetensors"))
            wanted[folder] = after
            assert rewrite.describe(one.edits) and "\n" not in rewrite.describe(one.edits)
    assert not wanted or freshly(CHILD, *wanted) == ""
    for folder, after in wanted.items():                                 # another number of threads, another order of sums
        assert torch.allclose(torch.load(folder / "it.found", weights_only=True), after, atol=1e-6), folder.name


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
    importlib.import_module("fourfold.jobs.optimize")
    assert callable(fourfold.optimize) and callable(fourfold.plan), "the functions, whatever was imported"
    with pytest.raises(AttributeError):
        fourfold.nothing  # noqa: B018
