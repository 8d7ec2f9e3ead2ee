"""Rare tokens by low rank: the fit is the best one, tables stay tied, exact greedy answers are exact, artefacts load elsewhere, families generate."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from fourfold.datasets.examples import Examples, Ragged
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import ModelError
from fourfold.frontends.model import load_model, load_state, rebuild, state
from fourfold.recipe import Recipe, apply, pack
from fourfold.rewrite import Context
from fourfold.rewrites.compress.token_rows import SplitHead, TokenRows, low_rank, rows_kept, second_moment, split, token_counts
from fourfold.runtime.generate import generate
from fourfold.structure.discover import anatomize

SIZE = 640
IDS = torch.randint(5, SIZE, (3, 9), generator=torch.Generator().manual_seed(1))


def llama(tied: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
                                        vocab_size=SIZE, tie_word_embeddings=tied)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=SIZE, n_positions=64)).eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(d_model=48, d_ff=64, d_kv=12, num_layers=2, num_heads=4, vocab_size=SIZE,
                                               decoder_start_token_id=0)).eval()


def edit(model: nn.Module, *, tables: bool, kept: int = 120, rank: int = 8, exact: bool = False) -> dict[str, object]:
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS[:, :4]} if hasattr(model.config, "d_kv") else {})
    vocabulary = anatomize(model, lambda m: m(**inputs).logits).vocabulary
    assert vocabulary is not None
    heads = [p for p in vocabulary.paths if isinstance(model.get_submodule(p), nn.Linear)]
    reads = [p for p in vocabulary.paths if isinstance(model.get_submodule(p), nn.Embedding)]
    return {"kind": "token_rows", "heads": heads, "tables": reads if tables else [], "index": pack(range(kept)), "rank": rank, "size": SIZE,
            "exact": exact}


def test_the_fit_is_the_singular_value_decomposition_under_the_inputs() -> None:
    rng = torch.Generator().manual_seed(0)
    rows, seen = torch.randn(90, 12, generator=rng), torch.randn(400, 12, generator=rng) * torch.linspace(0.05, 3, 12)
    moment = (seen.T @ seen / 400).double()
    fit = low_rank(rows, 5, moment)
    ridge = moment + 0.02 * moment.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    half = torch.linalg.cholesky(ridge)
    gap = ((rows - fit.numbers @ fit.basis).double() @ half).norm() ** 2
    least = torch.linalg.svdvals((rows - rows.mean(0)).double() @ half)[4:].square().sum()
    assert float(gap) == pytest.approx(float(least), rel=1e-4)
    off = (seen @ (rows - fit.numbers @ fit.basis).T).abs()
    assert (off <= fit.slack * (seen @ fit.root).norm(dim=1, keepdim=True) * 1.001 + 1e-5).all()
    assert (low_rank(rows, 12).numbers @ low_rank(rows, 12).basis - rows).abs().max() < 1.0 < rows.abs().max()
    with pytest.raises(ModelError, match="rank"):
        low_rank(rows, 13)


@pytest.mark.parametrize("make", [llama, lambda: llama(False), gpt2, t5], ids=["llama", "untied", "gpt2", "t5"])
@pytest.mark.parametrize("tables", [False, True], ids=["head", "both"])
def test_kept_tokens_are_as_before_and_what_was_tied_is(make, tables: bool) -> None:
    model = make()
    cut = split(copy.deepcopy(model), edit(model, tables=tables))
    inputs = {"input_ids": IDS % 120} | ({"decoder_input_ids": IDS[:, :4] % 120} if hasattr(model.config, "d_kv") else {})
    with torch.no_grad():
        want, have = model(**inputs).logits, cut(**inputs).logits
    assert have.shape == want.shape
    torch.testing.assert_close(have[..., :120], want[..., :120], rtol=1e-4, atol=1e-4)
    assert (have[..., 120:] - want[..., 120:]).norm() < want[..., 120:].norm()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if tables:
        head, table = cut.get_output_embeddings(), cut.get_input_embeddings()
        assert (head.common.weight is table.common.weight) == (head.rare.weight is table.rare.weight) == tied
        assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in model.parameters())


def test_exact_greedy_answers_are_the_original_s() -> None:
    model = llama()
    cut = split(copy.deepcopy(model), edit(model, tables=False, exact=True))
    prompts = {"input_ids": IDS.numpy()}
    want, have = generate(EagerDecoding(model), prompts, 12), generate(EagerDecoding(cut), prompts, 12)
    assert have.tokens == want.tokens
    loose = split(copy.deepcopy(model), edit(model, tables=False))
    assert generate(EagerDecoding(loose), prompts, 12).tokens != want.tokens, "random weights: most tokens said are rare ones"


FRESH = """
import json, sys
import numpy as np
from safetensors.torch import load_file
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.frontends.model import load_state, rebuild
from fourfold.recipe import Recipe, apply
from fourfold.runtime.generate import generate
for folder in sys.argv[1:]:
    told = json.load(open(folder + "/told.json"))
    module = load_state(apply(rebuild(told["origin"]), Recipe.from_json(told["recipe"])), load_file(folder + "/model.safetensors")).eval()
    inputs = {name: np.array(value) for name, value in told["inputs"].items()}
    found = [generate(EagerDecoding(module, cached=cached), inputs, 8).tokens for cached in (True, False)]
    print(json.dumps(found))
"""


def test_saved_and_loaded_elsewhere_it_generates_the_same_with_and_without_a_cache(tmp_path: Path) -> None:
    want, folders = [], []
    for name, model in (("llama", llama()), ("gpt2", gpt2()), ("t5", t5())):
        subject, one = load_model(model), edit(model, tables=True)
        recipe = Recipe((one,))
        cut = apply(copy.deepcopy(model), recipe)
        inputs = {"input_ids": IDS.tolist()} | ({"decoder_input_ids": [[0]] * 3} if name == "t5" else {})
        folder = tmp_path / name
        folder.mkdir()
        (folder / "told.json").write_text(json.dumps({"origin": subject.origin, "recipe": recipe.to_json(), "inputs": inputs}))
        save_file(state(cut), folder / "model.safetensors")
        folders.append(str(folder))
        want.append(generate(EagerDecoding(cut), {k: np.array(v) for k, v in inputs.items()}, 8).tokens)
        assert set(state(load_state(apply(rebuild(subject.origin), recipe), state(cut)))) == set(state(cut))
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH, *folders], check=True, capture_output=True, text=True)
    said = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert said == [[one, one] for one in want]


def test_proposed_where_the_data_need_few_tokens() -> None:
    model = llama()
    anatomy = anatomize(model, lambda m: m(input_ids=IDS).logits)
    rng = np.random.default_rng(0)
    rows = Ragged.of([rng.integers(5, 60, 20) for _ in range(30)], np.int64)
    examples = Examples({"input_ids": rows}, rows, None, {"input_ids": 0}, None, np.arange(30))
    subject, calls = load_model(model), SimpleNamespace(kind="causal_lm")

    def context(kind: str) -> Context:
        return Context(subject, SimpleNamespace(kind=kind), examples, None, anatomy, None, 0.97, 0, call=lambda m: m(input_ids=IDS).logits)

    found = list(TokenRows().propose(context(calls.kind)))
    assert len(found) == 2 and all(0 < one.cost[0] < 1 for one in found)
    built = TokenRows().build(context("causal_lm"), found[0])
    head = built.get_output_embeddings()
    assert isinstance(head, SplitHead) and head.common.out_features < 80
    assert "whole rows" in TokenRows().describe(found[0].edits)
    assert not list(TokenRows().propose(context("classification")))
    moment = second_moment(model, "lm_head", lambda m: m(input_ids=IDS))
    assert moment is not None and torch.linalg.eigvalsh(moment)[0] > -1e-9


def test_rows_are_those_of_the_data() -> None:
    counts = np.array([0, 50, 30, 15, 4, 1, *([0] * 60)])
    kept = rows_kept(counts, 0.95, [0, 40])
    assert {0, 1, 2, 3, 40} <= set(kept.tolist()) and len(kept) % 8 == 0
    rows = Ragged.of([[1, 1, 2], [3]], np.int64)
    examples = Examples({"input_ids": rows}, None, None, {}, None, np.arange(2))
    assert token_counts(examples, 5).tolist() == [0, 2, 1, 1, 0]
    with pytest.raises(ModelError, match="rows to keep"):
        split(llama(), {"heads": ["lm_head"], "tables": [], "index": "0-900", "rank": 8})
