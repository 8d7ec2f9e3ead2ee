"""A module as stacks of residual blocks with removable units, found by watching it run and proved by removing them.

No table of model families: one forward pass on a sample shows which layers run in which order on which tensors (`ingest.trace`); from that,
candidates are read off (`ingest.candidates`): an attention is the linears before a softmax and the one after it, a feed-forward is a linear whose
outputs are another's inputs. Every candidate is then *carried out* on the module, compared with the module in which the consumer's columns are masked
to zero, and rolled back (`ingest.proof`): what differs by more than rounding is refused, in words, never silently mispruned. An attention that cannot
lose heads as it is written may be made again (`ingest.remake`). So an unseen architecture costs no more than a few passes over the sample.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import torch
from torch import nn

from fourfold.errors import ModelError
from fourfold.recipe import Recipe, apply
from fourfold.structure.anatomy import (  # fmt: skip
    Anatomy,
    Block,
    Bundle,
    Keep,
    Stack,
    SubLayer,
    UnitSlice,
    Vocabulary,
    channel_last,
    consumer_module,
    consumer_weight,
    hidden,
    path_after,
    recipe_for,
    rows_for,
    set_consumer_weight,
)
from fourfold.structure.attention import remade
from fourfold.structure.patterns import PatternMatcher, SubLayerMatch, configured, own_biases, owner_of, positions, with_own_bias
from fourfold.structure.token_tables import find_vocabulary
from fourfold.structure.trace import Call, Trace
from fourfold.structure.verify import Prover, carrying, prove_cuts, prove_outs, prove_removal, shaken

__all__ = [
    "Anatomy", "Block", "Bundle", "Keep", "Stack", "SubLayer", "UnitSlice", "Vocabulary", "anatomize", "channel_last", "consumer_module",
    "consumer_weight", "hidden", "path_after", "recipe_for", "rows_for", "set_consumer_weight",
]  # fmt: skip


def anatomize(module: nn.Module, call: Call) -> Anatomy:
    """Finds and proves what can be removed from `module`.

    `call(module)` runs it on a small sample batch (two or more examples, several positions) and returns the output tensor that matters, in eval mode
    and without randomness. The module is unchanged afterwards. Raises `ModelError` if `call` fails, is not deterministic, or returns no tensor.
    """
    preparation = Recipe(tuple(
        {"kind": "swap", "path": path, "to": "attention"} for path, part in module.named_modules() if type(part) is nn.MultiheadAttention
    ))  # fmt: skip
    found, swaps = _prepared(module, call, preparation)
    if swaps:  # attentions that could not be cut as they are, but can be made again from their own weights
        found, _ = _prepared(module, call, preparation + Recipe(tuple(swaps)))
    return found


def _prepared(module: nn.Module, call: Call, preparation: Recipe) -> tuple[Anatomy, list[dict[str, object]]]:
    """The anatomy after `preparation`, and swaps that would let more of it be cut."""
    work = apply(copy.deepcopy(module), preparation) if preparation.edits else module
    modes = {part: part.training for part in work.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path hides the layers from hooks
    try:
        with shaken(work.eval()):
            return _read(work, call, preparation)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in modes.items():
            part.training = mode


def _read(module: nn.Module, call: Call, preparation: Recipe) -> tuple[Anatomy, list[dict[str, object]]]:
    prover = Prover(module, call)
    trace = Trace(module)
    try:
        reference = trace.watch(call)
        again = prover.run()
    except ModelError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error)[:120]}"
        raise ModelError(f"the model does not run on the sample batch: {said}", "Check data and model inputs.") from error
    if not torch.allclose(reference.float(), again, rtol=1e-4, atol=1e-5, equal_nan=True):
        mend = "Remove the randomness from its forward (dropout outside eval mode?)."
        raise ModelError("the model answers the same batch differently each time", mend)
    reader, refusals = PatternMatcher(module, trace), {}
    swaps: list[dict[str, object]] = []
    found = reader.stacks(lambda paths: carrying(module, paths, reader))
    names = stack_names([box or "blocks" for box, _ in found])
    stacks = tuple(_stack(reader, prover, refusals, swaps, name, box, blocks) for name, (box, blocks) in zip(names, found, strict=True))
    if not any(block.sublayers for stack in stacks for block in stack.blocks) and not any(b.removable for s in stacks for b in s.blocks):
        refusals[type(module).__name__] = "nothing in it can be removed safely; it can still be quantised and raced on every back end."
    vocabulary = find_vocabulary(trace, prover, reference, refusals)
    return Anatomy(stacks, refusals, vocabulary, preparation), swaps


def stack_names(boxes: list[str]) -> list[str]:
    """Readable and unique: "encoder" for bert.encoder.layer, the whole path where that is ambiguous."""
    generic = re.compile(r"^(layers?|blocks?|_blocks|h|\d+)$")
    parts = [[p for p in box.split(".") if not generic.match(p)] or [box] for box in boxes]
    short, longer = [p[-1] for p in parts], [".".join(p) for p in parts]
    return [s if short.count(s) == 1 else m if longer.count(m) == 1 else box for s, m, box in zip(short, longer, boxes, strict=True)]


def _stack(
    reader: PatternMatcher, prover: Prover, refusals: dict[str, str], swaps: list[dict[str, object]], name: str, box: str, paths: list[str]
) -> Stack:  # fmt: skip
    groups: list[list[SubLayerMatch]] = [reader.candidates(i, path) for i, path in enumerate(paths)]
    for i, group in enumerate(groups):
        totals: dict[str, int] = {}
        for c in group:
            totals[c.kind] = totals.get(c.kind, 0) + 1
            c.name = f"{name}.{i}.{c.kind}" + (f"{totals[c.kind]}" if totals[c.kind] > 1 else "")
            c.cuts = [replace(cut, name=c.name) for cut in c.cuts]
            c.outs, c.surely = reader.outs(c, paths[i]), bool(box) or paths[i] in reader.carrying
    biases = own_biases(reader, groups)
    for c in [c for group in groups for c in group]:
        c.cuts = [with_own_bias(cut, biases, owner_of(reader, c)) for cut in c.cuts]
    kinds: dict[str, list[SubLayerMatch]] = {}
    for c in [c for group in groups for c in group]:
        kinds.setdefault(re.sub(r"^.*\.\d+\.", "", c.name), []).append(c)
    cut: dict[str, Bundle] = {}
    out: dict[str, tuple[dict[str, object], ...]] = {}
    for several in kinds.values():
        cut.update(prove_cuts(prover, several, biases, refusals))
        out.update(prove_outs(prover, several, biases, refusals))
    hopeless: set[type] = set()
    for c in [c for group in groups for c in group if c.kind.endswith("attention") and c.heads > 1 and c.name not in cut]:
        kind = type(reader.module.get_submodule(c.path))
        edit = None if kind in hopeless else remade(reader, prover, c, paths[c.block])
        swaps += [edit] if edit else []
        hopeless |= set() if edit else {kind}
    blocks = []
    for path, group in zip(paths, groups, strict=True):
        subs = tuple(SubLayer(c.name, c.kind, c.path, cut.get(c.name), out.get(c.name, ())) for c in group if c.name in cut or c.name in out)
        lost = reader.unread(path, group)
        if lost:
            refusals[lost] = "an attention that could not be read off its layers; it stays as it is and can still be quantised."
        if not group:
            refusals[path] = "no attention, feed-forward or convolution pair was recognised inside; the block can only be removed whole or quantised."
        blocks.append(Block(reader.last_called(path), subs, False))
    held = list(reader.module.get_submodule(box)._modules) if box else []
    children = tuple(held.index(p.rpartition(".")[2]) for p in paths) if box else ()
    single = not box and all(p in reader.carrying for p in paths)
    passes = tuple(reader.absent(reader.first[p], "pass") for p in paths) if single else ()
    counts, lists = configured(reader.module, box, len(paths)) if box else ((), ())
    where = positions(reader.module, blocks)
    stack = Stack(name, box, tuple(blocks), counts, lists, biases, children, len(held), passes, where)
    return replace(stack, blocks=tuple(replace(b, removable=prove_removal(reader, prover, refusals, stack, i)) for i, b in enumerate(blocks)))
