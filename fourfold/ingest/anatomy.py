"""A module as stacks of residual blocks with removable units, found by watching it run and proved by removing them.

No table of model families: one forward pass on a sample shows which layers run in which order on which tensors (`Trace`); from that, candidates are
read off (`_propose`): an attention is the linears before a softmax and the one after it, a feed-forward is a linear whose outputs are another's inputs.
Every candidate is then *carried out* on the module (and rolled back) and compared with the module in which the consumer's columns are masked to zero:
what differs by more than rounding is refused, in words, never silently mispruned. So an unseen architecture costs nothing but the sample pass.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fourfold.errors import ModelError
from fourfold.ingest.candidates import Candidate, Reader, configured, own_biases, owner_of, positions, with_own_bias
from fourfold.ingest.parts import (
    Anatomy,
    Block,
    Bundle,
    Keep,
    Site,
    Stack,
    SubLayer,
    Vocabulary,
    channel_last,
    consumer_module,
    consumer_weight,
    hidden,
    path_after,
    recipe_for,
    set_consumer_weight,
)  # fmt: skip
from fourfold.ingest.proof import Prover, carrying, prove_cuts, prove_outs, prove_removal, shaken
from fourfold.ingest.trace import Call, Trace
from fourfold.recipe import Recipe, apply

__all__ = [
    "Anatomy", "Block", "Bundle", "Keep", "Site", "Stack", "SubLayer", "Vocabulary", "anatomize", "channel_last", "consumer_module", "consumer_weight",
    "hidden", "path_after", "recipe_for", "set_consumer_weight",
]  # fmt: skip


def anatomize(module: nn.Module, call: Call) -> Anatomy:
    """Finds and proves what can be removed from `module`.

    `call(module)` runs it on a small sample batch (two or more examples, several positions) and returns the output tensor that matters, in eval mode
    and without randomness. The module is unchanged afterwards. Raises `ModelError` if `call` fails, is not deterministic, or returns no tensor.
    """
    preparation = Recipe(tuple(
        {"kind": "swap", "path": path, "to": "attention"} for path, part in module.named_modules() if type(part) is nn.MultiheadAttention
    ))  # fmt: skip
    training = module.training
    work = apply(copy.deepcopy(module), preparation) if preparation.edits else module
    work.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path hides the layers from hooks
    try:
        return _anatomize(work, call, preparation)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        work.train(training)


def _anatomize(module: nn.Module, call: Call, preparation: Recipe) -> Anatomy:
    with shaken(module):
        return _read(module, call, preparation)


def _read(module: nn.Module, call: Call, preparation: Recipe) -> Anatomy:
    prover = Prover(module, call)
    trace = Trace(module)
    try:
        reference = trace.watch(call)
        again = prover.run()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the model does not run on the sample batch: {type(error).__name__}: {str(error)[:120]}", "Check data and model inputs."
        ) from error
    if not torch.allclose(reference.float(), again, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ModelError(
            "the model answers the same batch differently each time", "Remove the randomness from its forward (dropout outside eval mode?)."
        )
    reader, refusals = Reader(module, trace), {}
    found = reader.stacks(lambda paths: carrying(module, paths, reader))
    names = stack_names([box or "blocks" for box, _ in found])
    stacks = tuple(_stack(reader, prover, refusals, name, box, blocks) for name, (box, blocks) in zip(names, found, strict=True))
    if not stacks:
        refusals[type(module).__name__] = (
            "no residual blocks were found, so nothing can be removed; it can still be quantised and raced on every back end."
        )
    return Anatomy(stacks, refusals, None, preparation)


def stack_names(boxes: list[str]) -> list[str]:
    """Readable and unique: "encoder" for bert.encoder.layer, the whole path where that is ambiguous."""
    generic = re.compile(r"^(layers?|blocks?|_blocks|h|\d+)$")
    parts = [[p for p in box.split(".") if not generic.match(p)] or [box] for box in boxes]
    short, longer = [p[-1] for p in parts], [".".join(p) for p in parts]
    return [s if short.count(s) == 1 else m if longer.count(m) == 1 else box for s, m, box in zip(short, longer, boxes, strict=True)]


def _stack(reader: Reader, prover: Prover, refusals: dict[str, str], name: str, box: str, paths: list[str]) -> Stack:
    groups: list[list[Candidate]] = [reader.candidates(i, path) for i, path in enumerate(paths)]
    for i, group in enumerate(groups):
        totals: dict[str, int] = {}
        for c in group:
            totals[c.kind] = totals.get(c.kind, 0) + 1
            c.name = f"{name}.{i}.{c.kind}" + (f"{totals[c.kind]}" if totals[c.kind] > 1 else "")
            c.cuts = [replace(cut, name=c.name) for cut in c.cuts]
            c.outs = reader.outs(c, paths[i])
    biases = own_biases(reader, groups)
    for c in [c for group in groups for c in group]:
        c.cuts = [with_own_bias(cut, biases, owner_of(reader, c)) for cut in c.cuts]
    kinds: dict[str, list[Candidate]] = {}
    for c in [c for group in groups for c in group]:
        kinds.setdefault(re.sub(r"^.*\.\d+\.", "", c.name), []).append(c)
    cut: dict[str, Bundle] = {}
    out: dict[str, tuple[dict[str, Any], ...]] = {}
    for several in kinds.values():
        cut.update(prove_cuts(prover, several, biases, refusals))
        out.update(prove_outs(prover, several, biases, refusals))
    blocks = []
    for path, group in zip(paths, groups, strict=True):
        subs = tuple(SubLayer(c.name, c.kind, c.path, cut.get(c.name), out.get(c.name, ())) for c in group if c.name in cut or c.name in out)
        lost = reader.unread(path, group)
        if lost:
            refusals[lost] = "an attention that could not be read off its layers; it stays as it is and can still be quantised."
        if not group:
            refusals[path] = "no attention, feed-forward or convolution pair was recognised inside; the block can only be removed whole or quantised."
        blocks.append(Block(path, subs, False))
    children = tuple(_child(p) for p in paths) if box else ()
    counts, lists = configured(reader.module, box, len(paths)) if box else ((), ())
    stack = Stack(name, box, tuple(blocks), counts, lists, biases, children, positions(reader.module, blocks))
    return replace(stack, blocks=tuple(replace(b, removable=prove_removal(reader, prover, refusals, stack, i)) for i, b in enumerate(blocks)))


def _child(path: str) -> int:
    last = path.rpartition(".")[2]
    return int(last) if last.isdigit() else -1
