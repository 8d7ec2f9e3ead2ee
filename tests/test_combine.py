"""The search's own rules on a tiny encoder–decoder: shapes are within reach, monotone in their target, and leave the decoder its hearing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fourfold.cost.unit_costs import CostTable, fit, variants
from fourfold.rewrites.calibration import Sensitivities
from fourfold.rewrites.compress import combine
from fourfold.structure.discover import anatomize


class Bench:
    """What `Searcher.shapes` reads of a bench."""

    def __init__(self, sites: list[Any], table: CostTable) -> None:
        self.sites, self.table = sites, table


@pytest.fixture(scope="module")
def searcher() -> combine.Searcher:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, decoder_start_token_id=0)
    net = T5ForConditionalGeneration(config).eval()
    ids = torch.randint(2, 40, (2, 6))

    def call(module: torch.nn.Module) -> torch.Tensor:
        return module(input_ids=ids, decoder_input_ids=ids[:, :3], use_cache=False).logits

    root = combine.original(net, anatomize(net, call))
    rng = np.random.default_rng(0)
    found = Sensitivities()
    for name, bundle in root.anatomy.bundles.items():
        found.gradients[name] = rng.normal(size=(16, bundle.count)).astype(np.float32)
    for stack in root.anatomy.stacks:
        for block in stack.blocks:
            found.ablation[block.path] = found.influence[block.path] = 0.1
            # the trap: hearing the input looks like the least missed of all
            found.ablation |= {sub.name: 1e-6 if sub.kind == "cross_attention" else 0.1 for sub in block.sublayers}
    root.sensitivities = found
    sites = combine.cost_sites(root.anatomy)
    shapes = variants(sites)
    measured = {n: 0.2 + sum(s.get(x.name, x.full) / x.full * 0.05 for x in sites) for n, s in shapes.items()}
    self = combine.Searcher.__new__(combine.Searcher)
    self.bench, self.root = Bench(sites, fit(sites, shapes, measured)), root  # type: ignore[assignment]
    self.ids, self.counts = combine.site_ids(root.anatomy), {s.name: len(s.blocks) for s in root.anatomy.stacks}
    return self


def test_shapes_keep_the_decoder_hearing(searcher: combine.Searcher) -> None:
    options = searcher.options()
    for shape in searcher.shapes([0.3, 0.45, 0.7], dict(searcher.counts), 0.0, options):
        assert shape is not None
        assert any(size > 0 for ident, size in shape.items() if "cross_attention" in ident)


def test_smaller_targets_give_cheaper_shapes(searcher: combine.Searcher) -> None:
    shapes = searcher.shapes([0.4, 0.6, 0.8], dict(searcher.counts), 0.0, searcher.options())
    costs = [searcher.cost(s) for s in shapes if s is not None]
    assert costs == sorted(costs) and costs[0] < costs[-1]


def test_a_pruned_copy_is_what_its_shape_says(searcher: combine.Searcher) -> None:
    (shape,) = searcher.shapes([0.4], dict(searcher.counts), 0.0, searcher.options())
    assert shape is not None
    module, _, kept = combine.prune(searcher.root, shape, mend=False)
    small, large = (sum(p.numel() for p in m.parameters()) for m in (module, searcher.root.module))
    assert small < large
    alive = {i.rsplit(".", 1)[0] for i, n in shape.items() if n > 0}
    for stack, numbers in kept.items():
        assert {f"{stack}.{n}" for n in numbers} >= {a for a in alive if a.startswith(f"{stack}.")}
