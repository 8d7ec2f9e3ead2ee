"""What a model is made of, as far as it can be taken apart: stacks of blocks, their sub-layers, bundles of units; and the recipe that keeps some.

Plain frozen data, found by `ingest.anatomy`; nothing here looks at a model except the few functions that read or write a consumer's weight.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.recipe import Recipe, apply, axis_of, is_conv, pack

# --- what is found ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnitSlice:
    """Where the units of a bundle sit in one module. Unit u holds, for each segment (start, width), entries start + u·width … + width − 1.

    `axis`: "out" | "in" of a parameter module; a number for a bare parameter (`path` then names the parameter). `fixed`: ranges that stay.
    """

    path: str
    axis: str | int
    segments: tuple[tuple[int, int], ...]
    fixed: tuple[tuple[int, int], ...] = ()

    def index(self, units: Sequence[int]) -> np.ndarray:
        """Entries of these units along the axis, int64, segment by segment."""
        u = np.asarray(units, dtype=np.int64).reshape(-1, 1)
        return np.concatenate([(start + u * width + np.arange(width)).ravel() for start, width in self.segments]).astype(np.int64)

    def edit(self, units: Sequence[int]) -> dict[str, object]:
        index = [*self.index(units), *(i for start, stop in self.fixed for i in range(start, stop))]
        return {"kind": "slice", "path": self.path, "axis": self.axis, "index": pack(index)}


@dataclass(frozen=True)
class Bundle:
    """`count` removable units that share producers ("out" side), followers (both sides) and consumers ("in"; the last writes to the residual).

    kind: "heads" (a unit is one key-value head with all its queries) | "neurons" | "channels". `group`: the last consumer's columns per unit.
    `counts`: attributes (path, name, amount per unit) to be set with the sizes. `selects`: (path, argument, axis) of arguments with an axis of heads.
    """

    name: str
    kind: str
    count: int
    group: int
    producers: tuple[UnitSlice, ...]
    followers: tuple[UnitSlice, ...]
    consumers: tuple[UnitSlice, ...]
    counts: tuple[tuple[str, str, int], ...] = ()
    selects: tuple[tuple[str, int | str, int], ...] = ()
    queries: int = 1  # query heads per unit (more than one in grouped-query attention)

    @property
    def consumer(self) -> UnitSlice:
        return self.consumers[-1]

    def columns(self, units: Sequence[int]) -> np.ndarray:
        """Input columns of the last consumer that belong to these units, int64."""
        return self.consumer.index(units)

    def edits(self, kept: Sequence[int]) -> list[dict[str, object]]:
        sites = [*self.producers, *self.followers, *self.consumers]
        out = [site.edit(kept) for site in sites]
        for path, name, per in self.counts:  # a configuration is shared with other layers, so this one gets its own
            own = {"own": True} if "." in name else {}
            out.append({"kind": "set", "path": path, "name": name, "value": per * len(kept), **own})
        index = pack(u * self.queries + i for u in kept for i in range(self.queries))
        out += [{"kind": "select", "path": path, "argument": argument, "axis": axis, "index": index} for path, argument, axis in self.selects]
        return out


@dataclass(frozen=True)
class SubLayer:
    """A residual branch. kind: "attention" | "cross_attention" | "ffn" | "conv". `absent`: the edits that take it out; empty if unproved."""

    name: str
    kind: str
    path: str
    bundle: Bundle | None
    absent: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Block:
    """One residual block; hook `model.get_submodule(path)` and read its output with `hidden`."""

    path: str
    sublayers: tuple[SubLayer, ...]
    removable: bool


@dataclass(frozen=True)
class Stack:
    """Blocks in the order in which they run. `container` is the path of their ModuleList or Sequential ("" where they are attributes)."""

    name: str
    container: str
    blocks: tuple[Block, ...]
    counts: tuple[tuple[str, str], ...] = ()  # (module path, attribute) that hold the number of blocks
    lists: tuple[tuple[str, str, tuple[object, ...]], ...] = ()  # attributes with one entry per block, and these entries
    biases: tuple[dict[str, object], ...] = ()  # edits that give each attention its own position bias; first of all others
    children: tuple[int, ...] = ()  # index of each block among the container's children
    size: int = 0  # number of the container's children
    passes: tuple[dict[str, object], ...] = ()  # without a container: for each block the edit that lets its input pass instead
    indices: tuple[tuple[int, str, str, str], ...] = ()  # (block, sub-layer name or "", module path, attribute) of positions in the cache


@dataclass(frozen=True)
class Vocabulary:
    """Where token rows are: `paths` of embeddings and output heads that are cut together, `size` rows; bare `tensors` (path, axis) beside them.

    `sets`: (module path, attribute, value) of all that counts tokens or names one, to be renumbered.
    """

    paths: tuple[str, ...]
    size: int
    tensors: tuple[tuple[str, int], ...] = ()
    sets: tuple[tuple[str, str, Any], ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """What may be removed, and why other parts may not (`refusals`: module name → sentence).

    `preparation` replaces modules that run as one piece (`nn.MultiheadAttention`) by equals with separate layers; paths below are those after it.
    """

    stacks: tuple[Stack, ...]
    refusals: dict[str, str]
    vocabulary: Vocabulary | None = None
    preparation: Recipe = field(default_factory=Recipe)

    def prepared(self, module: nn.Module) -> nn.Module:
        """The module that the paths refer to: itself, or a prepared copy that computes the same."""
        return apply(copy.deepcopy(module), self.preparation) if self.preparation.edits else module

    @property
    def sublayers(self) -> dict[str, SubLayer]:
        return {s.name: s for stack in self.stacks for block in stack.blocks for s in block.sublayers}

    @property
    def bundles(self) -> dict[str, Bundle]:
        return {s.bundle.name: s.bundle for s in self.sublayers.values() if s.bundle}


@dataclass
class Keep:
    """What stays. Stacks and bundles that are not named stay whole; `absent` names sub-layers to take out. Units of removed blocks are ignored."""

    blocks: dict[str, list[int]] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    units: dict[str, list[int]] = field(default_factory=dict)


# --- using it --------------------------------------------------------------------------------------------------------------------------------------


def hidden(output: Tensor) -> Tensor:
    """The hidden state in what a block returned: the tensor itself, or the first floating tensor of a tuple, list or mapping."""
    found = next(tensors(output), None)
    if found is None:
        raise ModelError(f"a block answered {type(output).__name__} without a tensor", "Blocks must return a tensor or a tuple that starts with one.")
    return found


def consumer_module(model: nn.Module, bundle: Bundle) -> nn.Module:
    """The module whose input columns are the bundle's units; its input can be hooked."""
    return model.get_submodule(bundle.consumer.path)


def consumer_weight(model: nn.Module, bundle: Bundle) -> Tensor:
    """The consumer's weight as out × in (× kernel), whatever its class: a view, no copy."""
    module = consumer_module(model, bundle)
    weight: Any = module.weight
    return weight if axis_of(module, "in") == 1 else weight.transpose(0, 1)


def set_consumer_weight(model: nn.Module, bundle: Bundle, weight: Tensor, bias: Tensor | None = None) -> None:
    """Writes a repaired weight, out × in (× kernel) as `consumer_weight` gives it, and the bias if given and present."""
    module: Any = consumer_module(model, bundle)
    with torch.no_grad():
        module.weight.copy_(weight if axis_of(module, "in") == 1 else weight.transpose(0, 1))
        if bias is not None and module.bias is not None:
            module.bias.copy_(bias)


def channel_last(module: nn.Module, x: Tensor) -> Tensor:
    """A consumer's input as rows × columns: [anything, in features]."""
    return (x.movedim(1, -1) if is_conv(module) else x).reshape(-1, x.shape[1] if is_conv(module) else x.shape[-1])


def path_after(anatomy: Anatomy, keep: Keep, path: str) -> str | None:
    """What a module path of the original is called after `recipe_for(anatomy, keep)`; None if it went with a removed block."""
    for stack in anatomy.stacks:
        kept = keep.blocks.get(stack.name)
        if kept is None:
            continue
        if any(within(path, block.path) for i, block in enumerate(stack.blocks) if i not in kept):
            return None
        prefix = f"{stack.container}." if stack.container else ""
        child, _, rest = path.removeprefix(prefix).partition(".")
        if prefix and path.startswith(prefix) and child.isdigit():
            path = f"{prefix}{_kept_children(stack, kept).index(int(child))}" + (f".{rest}" if rest else "")
    return path


def _kept_children(stack: Stack, kept: Sequence[int]) -> list[int]:
    """Container children that stay: kept blocks, and those that are no blocks."""
    gone = {stack.children[i] for i in range(len(stack.blocks)) if i not in set(kept)}
    return [i for i in range(stack.size) if i not in gone]


def recipe_for(anatomy: Anatomy, keep: Keep) -> Recipe:
    """The edits that leave only what `keep` names. No unit left in a bundle means that its sub-layer is absent.

    Raises `ModelError` for unknown names, indices out of range, and parts that anatomy could not verify.
    """
    _check(anatomy, keep)
    edits: list[dict[str, object]] = list(anatomy.preparation.edits)
    last: list[dict[str, object]] = []
    for stack in anatomy.stacks:
        kept = keep.blocks.get(stack.name, list(range(len(stack.blocks))))
        own: list[dict[str, object]] = []
        gone: set[str] = set()
        for i in kept:
            for sub in stack.blocks[i].sublayers:
                units = keep.units.get(sub.bundle.name) if sub.bundle else None
                if sub.name in keep.absent or (units is not None and not units):
                    own += sub.absent
                    gone.add(sub.name)
                elif sub.bundle and units is not None and sorted(set(units)) != list(range(sub.bundle.count)):
                    own += sub.bundle.edits(sorted(set(units)))
        tail = shorten(stack, sorted(set(kept)), gone)
        if own or tail:
            edits += stack.biases
        edits += own
        last += tail
    return Recipe(tuple(edits + last))


def rows_for(vocabulary: Vocabulary, kept: Sequence[int]) -> Recipe:
    """The edits that keep these token rows, in this order; ids in configurations are renumbered, those of removed tokens become None."""
    new = {old: i for i, old in enumerate(kept)}
    if len(new) != len(kept) or any(not 0 <= i < vocabulary.size for i in kept):
        raise ModelError(f"rows to keep must be different numbers from 0 to {vocabulary.size - 1}", "Give each token id once.")
    tensors = [list(t) for t in vocabulary.tensors]
    edits: list[dict[str, object]] = [{"kind": "rows", "paths": list(vocabulary.paths), "index": pack(kept), "tensors": tensors}]
    for path, name, value in vocabulary.sets:
        if name.endswith("vocab_size"):
            fresh: object = len(kept)
        else:
            fresh = new.get(value) if isinstance(value, int) else [new[i] for i in value if i in new]
        edits.append({"kind": "set", "path": path, "name": name, "value": fresh})
    return Recipe(tuple(edits))


def _check(anatomy: Anatomy, keep: Keep) -> None:
    stacks, subs, bundles = {s.name: s for s in anatomy.stacks}, anatomy.sublayers, anatomy.bundles
    for given, known, what in ((keep.blocks, stacks, "stack"), (keep.absent, subs, "sub-layer"), (keep.units, bundles, "bundle")):
        for name in given:
            if name not in known:
                raise ModelError(f"the model has no {what} {name!r}", f"It has: {', '.join(list(known)[:12]) or 'none'}.")
    for name, kept in keep.blocks.items():
        n = len(stacks[name].blocks)
        if any(not 0 <= i < n for i in kept):
            raise ModelError(f"stack {name!r} has blocks 0 to {n - 1}, but {kept} were to be kept", "Give indices of existing blocks.")
        stuck = [b.path for i, b in enumerate(stacks[name].blocks) if i not in kept and not b.removable]
        if stuck:
            raise ModelError(f"block {stuck[0]} cannot be removed", anatomy.refusals.get(stuck[0], "Keep it."))
    for name, units in keep.units.items():
        if any(not 0 <= u < bundles[name].count for u in units):
            raise ModelError(f"bundle {name!r} has units 0 to {bundles[name].count - 1}", "Give indices of existing units.")
    emptied = [s.name for s in subs.values() if s.name in keep.absent or (s.bundle and keep.units.get(s.bundle.name) == [])]
    for name in emptied:
        if not subs[name].absent:
            raise ModelError(f"sub-layer {name!r} cannot be taken out", anatomy.refusals.get(name, "Keep at least one unit."))


def shorten(stack: Stack, kept: list[int], gone: set[str]) -> list[dict[str, object]]:
    """Edits that drop blocks and renumber what counts them. Cache positions are dealt out to the attentions that are left, from 0."""
    edits: list[dict[str, object]] = []
    if len(kept) == len(stack.blocks) and not gone:
        return edits
    counters: dict[str, int] = {}
    for block, owner, path, name in sorted(stack.indices):
        if block in kept and not (owner in gone and _silences(stack.blocks[block], owner, path)):
            kind = re.sub(r"^.*\.", "", owner) + path.removeprefix(stack.blocks[block].path)
            counters[kind] = counters.get(kind, -1) + 1
            edits.append({"kind": "set", "path": path, "name": name, "value": counters[kind]})
    if len(kept) == len(stack.blocks):
        return edits
    if not stack.container:
        return edits + [edit for i, edit in enumerate(stack.passes) if i not in kept]
    edits.append({"kind": "keep", "path": stack.container, "index": pack(_kept_children(stack, kept))})
    edits += [{"kind": "set", "path": path, "name": name, "value": len(kept)} for path, name in stack.counts]
    edits += [{"kind": "set", "path": path, "name": name, "value": [entries[i] for i in kept]} for path, name, entries in stack.lists]
    return edits


def _silences(block: Block, owner: str, path: str) -> bool:
    """Whether taking out the sub-layer `owner` also takes out the module at `path`, which would write to the cache."""
    return any(within(path, e["path"]) for sub in block.sublayers if sub.name == owner for e in sub.absent)


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


def within(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")
