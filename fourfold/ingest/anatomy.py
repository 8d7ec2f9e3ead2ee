"""A module as stacks of residual blocks with removable units, found by watching it run and proved by removing them.

No table of model families: one forward pass on a sample shows which layers run in which order on which tensors (`_Trace`); from that, candidates are
read off (`_propose`): an attention is the linears before a softmax and the one after it, a feed-forward is a linear whose outputs are another's inputs.
Every candidate is then *carried out* on the module (and rolled back) and compared with the module in which the consumer's columns are masked to zero:
what differs by more than rounding is refused, in words, never silently mispruned. So an unseen architecture costs nothing but the sample pass.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fourfold.errors import ModelError
from fourfold.recipe import Absent, Recipe, apply, axis_of, channels, is_conv, is_conv1d, is_depthwise, pack

TOLERANCE = 1e-4  # relative to the largest output: float32 rounding of re-blocked products stays below, a wrong cut is far above
COUNTS = re.compile(r"^((num_)?(hidden|encoder|decoder)?_?layers|n_layers?|(n|num)_blocks|depth|(encoder|decoder)_num_hidden_layers|num_(en|de)coder_blocks)$")
HEADS = re.compile(r"^(num|n)_?.*heads?$|^heads?$|^h$|^nhead$")
WIDTHS = re.compile("dim|size|width|d_model|n_embd|features|channels")
POSITIONS = ("layer_idx", "layer_index", "layer_id", "layer_number", "block_idx")
Call = Callable[[nn.Module], Tensor]


# --- what is found ---------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where the units of a bundle sit in one module. Unit u holds, for each segment (start, width), entries start + u·width … + width − 1.

    `axis`: "out" | "in" of a parameter module; a number for a bare parameter (`path` then names the parameter). `fixed`: ranges that always stay.
    """

    path: str
    axis: str | int
    segments: tuple[tuple[int, int], ...]
    fixed: tuple[tuple[int, int], ...] = ()

    def index(self, units: Sequence[int]) -> np.ndarray:
        """Entries of these units along the axis, int64, segment by segment."""
        u = np.asarray(units, dtype=np.int64).reshape(-1, 1)
        return np.concatenate([(start + u * width + np.arange(width)).ravel() for start, width in self.segments]).astype(np.int64)

    def edit(self, units: Sequence[int]) -> dict[str, Any]:
        index = [*self.index(units), *(i for start, stop in self.fixed for i in range(start, stop))]
        return {"kind": "slice", "path": self.path, "axis": self.axis, "index": pack(index)}


@dataclass(frozen=True)
class Bundle:
    """`count` removable units that share producers (their "out" side), followers (both sides) and consumers ("in"; the last one writes to the residual).

    kind: "heads" (a unit is one key-value head with all its queries) | "neurons" | "channels". `group`: the last consumer's columns per unit.
    `counts`: attributes (path, name, amount per unit) to be set with the sizes. `selects`: (path, argument, axis) of arguments with an axis of heads.
    """

    name: str
    kind: str
    count: int
    group: int
    producers: tuple[Site, ...]
    followers: tuple[Site, ...]
    consumers: tuple[Site, ...]
    counts: tuple[tuple[str, str, int], ...] = ()
    selects: tuple[tuple[str, int | str, int], ...] = ()
    queries: int = 1  # query heads per unit (more than one in grouped-query attention)

    @property
    def consumer(self) -> Site:
        return self.consumers[-1]

    def columns(self, units: Sequence[int]) -> np.ndarray:
        """Input columns of the last consumer that belong to these units, int64."""
        return self.consumer.index(units)

    def edits(self, kept: Sequence[int]) -> list[dict[str, Any]]:
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
    """A residual branch. kind: "attention" | "cross_attention" | "ffn" | "conv". `absent`: the edits that take it out; empty if that was not verified."""

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
    lists: tuple[tuple[str, str, tuple[Any, ...]], ...] = ()  # attributes with one entry per block, and these entries
    biases: tuple[dict[str, Any], ...] = ()  # edits that give each attention its own position bias; first of all others
    children: tuple[int, ...] = ()  # index of each block among the container's children
    indices: tuple[tuple[int, str, str, str], ...] = ()  # (block, sub-layer name or "", module path, attribute) of positions in the cache


@dataclass(frozen=True)
class Vocabulary:
    """Where token rows are: `paths` of embeddings and output heads that are cut together; `size` rows."""

    paths: tuple[str, ...]
    size: int
    sets: tuple[tuple[str, str, str], ...] = ()  # (module path, attribute, "size" | "id" | "ids")


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


def hidden(output: Any) -> Tensor:
    """The hidden state in what a block returned: the tensor itself, or the first floating tensor of a tuple, list or mapping."""
    found = next(_tensors(output), None)
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
        prefix = f"{stack.container}." if stack.container else ""
        if kept is None or not stack.container or not path.startswith(prefix):
            continue
        child, _, rest = path[len(prefix) :].partition(".")
        order = _kept_children(stack, kept)
        if not child.isdigit():
            continue
        if int(child) not in order:
            return None
        path = f"{prefix}{order.index(int(child))}" + (f".{rest}" if rest else "")
    return path


def _kept_children(stack: Stack, kept: Sequence[int]) -> list[int]:
    """Container children that stay: kept blocks, and those that are no blocks."""
    gone = {stack.children[i] for i in range(len(stack.blocks)) if i not in set(kept)}
    total = max(stack.children) + 1
    return [i for i in range(total) if i not in gone]


def recipe_for(anatomy: Anatomy, keep: Keep) -> Recipe:
    """The edits that leave only what `keep` names. No unit left in a bundle means that its sub-layer is absent.

    Raises `ModelError` for unknown names, indices out of range, and parts that anatomy could not verify.
    """
    _check(anatomy, keep)
    edits: list[dict[str, Any]] = list(anatomy.preparation.edits)
    last: list[dict[str, Any]] = []
    for stack in anatomy.stacks:
        kept = keep.blocks.get(stack.name, list(range(len(stack.blocks))))
        own: list[dict[str, Any]] = []
        gone: set[str] = set()
        for i in kept:
            for sub in stack.blocks[i].sublayers:
                units = keep.units.get(sub.bundle.name) if sub.bundle else None
                if sub.name in keep.absent or (units is not None and not units):
                    own += sub.absent
                    gone.add(sub.name)
                elif sub.bundle and units is not None and sorted(set(units)) != list(range(sub.bundle.count)):
                    own += sub.bundle.edits(sorted(set(units)))
        tail = _shorten(stack, sorted(set(kept)), gone)
        if own or tail:
            edits += stack.biases
        edits += own
        last += tail
    return Recipe(tuple(edits + last))


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
        if not kept and not stacks[name].container:
            raise ModelError(f"stack {name!r} cannot be emptied", "Keep at least one block.")
    for name, units in keep.units.items():
        if any(not 0 <= u < bundles[name].count for u in units):
            raise ModelError(f"bundle {name!r} has units 0 to {bundles[name].count - 1}", "Give indices of existing units.")
    emptied = [s.name for s in subs.values() if s.name in keep.absent or (s.bundle and keep.units.get(s.bundle.name) == [])]
    for name in emptied:
        if not subs[name].absent:
            raise ModelError(f"sub-layer {name!r} cannot be taken out", anatomy.refusals.get(name, "Keep at least one unit."))


def _shorten(stack: Stack, kept: list[int], gone: set[str]) -> list[dict[str, Any]]:
    """Edits that drop blocks and renumber what counts them. Cache positions are dealt out to the attentions that are left, from 0."""
    edits: list[dict[str, Any]] = []
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
        lost = [block.path for i, block in enumerate(stack.blocks) if i not in kept]
        return edits + [{"kind": "absent", "path": path, "argument": 0, "returns": "pass"} for path in lost]
    edits.append({"kind": "keep", "path": stack.container, "index": pack(_kept_children(stack, kept))})
    edits += [{"kind": "set", "path": path, "name": name, "value": len(kept)} for path, name in stack.counts]
    edits += [{"kind": "set", "path": path, "name": name, "value": [entries[i] for i in kept]} for path, name, entries in stack.lists]
    return edits


def _silences(block: Block, owner: str, path: str) -> bool:
    """Whether taking out the sub-layer `owner` also takes out the module at `path`, which would write to the cache."""
    return any(_within(path, e["path"]) for sub in block.sublayers if sub.name == owner for e in sub.absent)


# --- watching one forward pass ---------------------------------------------------------------------------------------------------------------------


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


@dataclass
class _Run:
    """One call of one module: its position in time, and the tensors that went in and came out (kept alive, so that addresses identify them)."""

    path: str
    module: nn.Module
    order: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def input(self) -> Tensor | None:
        return next(_tensors(self.args), None) if next(_tensors(self.args), None) is not None else next(_tensors(self.kwargs), None)

    @property
    def where(self) -> int | str:
        """Position or name of the first tensor argument."""
        for i, value in enumerate(self.args):
            if isinstance(value, Tensor) and value.is_floating_point():
                return i
        return next((name for name, value in self.kwargs.items() if isinstance(value, Tensor) and value.is_floating_point()), 0)


@dataclass
class _Core:
    """A softmax over scores, or a fused attention: `heads` as its operands show them (0: unknown; -1: projections included, nothing inside shows)."""

    path: str
    order: int
    heads: int


class _Trace(TorchFunctionMode):
    """Runs `call(module)` once and keeps all module calls and attention cores in order."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.runs: list[_Run] = []
        self.cores: list[_Core] = []
        self._open: list[_Run] = []
        self._clock = 0

    def watch(self, call: Call) -> Tensor:
        handles = []
        for path, part in self.module.named_modules():
            handles.append(part.register_forward_pre_hook(self._enter(path), with_kwargs=True))
            handles.append(part.register_forward_hook(self._leave))
        try:
            with torch.no_grad(), self:
                return call(self.module)
        finally:
            for handle in handles:
                handle.remove()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            run = _Run(path, part, self._tick(), args, kwargs)
            self.runs.append(run)
            self._open.append(run)

        return hook

    def _leave(self, part: nn.Module, args: Any, output: Any) -> None:
        self._open.pop().output = output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention" and args[0].ndim == 4:
            self._note(args[0].shape[1])
        elif name == "multi_head_attention_forward":
            self._note(-1)
        elif name == "softmax" and isinstance(out, Tensor) and out.ndim in (3, 4):
            self._note(out.shape[1] if out.ndim == 4 else 0)
        return out

    def _note(self, heads: int) -> None:
        path = self._open[-1].path if self._open else ""
        last = self.cores[-1] if self.cores else None
        if last is None or last.path != path or any(r.order > last.order for r in self.runs[-1:]):
            self.cores.append(_Core(path, self._tick(), heads))


# --- trying an edit and taking it back -------------------------------------------------------------------------------------------------------------


@contextmanager
def _rollback(module: nn.Module) -> Iterator[None]:
    """Whatever edits do to the module inside is undone: edits replace parameters and children, so shallow copies are enough."""
    stores = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    saved = [(part, dict(part.__dict__), {s: part.__dict__[s].copy() for s in stores}) for part in set(module.modules())]
    configs = {id(c): (c, copy.deepcopy(c.__dict__)) for part, _, _ in saved if (c := getattr(part, "config", None)) is not None and hasattr(c, "__dict__")}
    try:
        yield
    finally:
        for part, attributes, dicts in saved:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, store in dicts.items():
                target = part.__dict__[name]
                target.clear()
                target.update(store)
        for config, attributes in configs.values():
            config.__dict__.clear()
            config.__dict__.update(attributes)


@contextmanager
def _masked(module: nn.Module, bundles: Sequence[tuple[Bundle, Sequence[int]]]) -> Iterator[None]:
    """Inside, consumers see zeros in the columns of all units that are not kept."""
    handles = []
    try:
        for bundle, kept in bundles:
            for site in bundle.consumers:
                part = module.get_submodule(site.path)
                handles.append(part.register_forward_pre_hook(_mask_hook(part, site.index(kept))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask_hook(part: nn.Module, index: np.ndarray) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        x = args[0]
        axis = 1 if is_conv(part) else x.ndim - 1
        mask = torch.zeros(x.shape[axis], dtype=x.dtype, device=x.device)
        mask[torch.from_numpy(index).to(x.device)] = 1
        shape = [1] * x.ndim
        shape[axis] = -1
        return (x * mask.view(shape), *args[1:])

    return hook


@contextmanager
def _muted(module: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Inside, these modules answer zeros (their biases too); where they answer tuples, the first tensor is zero."""

    def mute(part: nn.Module, args: Any, out: Any) -> Any:
        if isinstance(out, Tensor):
            return torch.zeros_like(out)
        place = next(i for i, value in enumerate(out) if isinstance(value, Tensor))
        return (*out[:place], torch.zeros_like(out[place]), *out[place + 1 :])

    handles = [module.get_submodule(p).register_forward_hook(mute) for p in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Prover:
    """Compares the module after edits with a reference, both run by `call`."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.module, self.call = module, call
        self.rng = np.random.default_rng(0)

    def run(self) -> Tensor:
        with torch.no_grad():
            return self.call(self.module).detach().float()

    def same(self, reference: Tensor, edits: Sequence[dict[str, Any]]) -> str | None:
        """None if the module after `edits` answers `reference`; else why not."""
        with _rollback(self.module):
            try:
                apply(self.module, Recipe(tuple(edits)))
                answer = self.run()
            except Exception as error:  # whatever a foreign forward raises is the finding
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        if answer.shape != reference.shape:
            return f"the output's shape became {tuple(answer.shape)} instead of {tuple(reference.shape)}"
        if not torch.isfinite(answer).all():
            return "the output is no longer finite"
        finite = torch.nan_to_num(reference, posinf=0.0, neginf=0.0)
        error = float((answer - finite).abs().max() / finite.abs().max().clamp_min(1e-12))
        return None if error <= TOLERANCE else f"the output changed by {error:.1e} of its size"

    def kept(self, bundle: Bundle) -> list[int]:
        """A random half of the units, at least one of them gone and one kept."""
        n = int(np.clip(bundle.count // 2, 1, bundle.count - 1))
        return sorted(self.rng.permutation(bundle.count)[:n].tolist())

    def bundles(self, trial: Sequence[Bundle], first: Sequence[dict[str, Any]] = ()) -> str | None:
        """None if removing random halves of all these bundles equals masking them, seen at every consumer's input and at the output."""
        kept = [(b, self.kept(b)) for b in trial]
        try:
            with _masked(self.module, kept):
                reference, seen = self._inputs(trial)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:160]
        with _rollback(self.module):
            try:
                apply(self.module, Recipe((*first, *(e for b, k in kept for e in b.edits(k)))))
                answer, got = self._inputs(trial)
            except Exception as error:
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        pairs = [(reference, answer, "the output")]
        for bundle, units in kept:
            full, part, site = seen.get(bundle.name), got.get(bundle.name), bundle.consumer
            if full is None or part is None:
                return "its consumer did not run"
            pairs.append((full[:, torch.from_numpy(site.index(units))], part, f"the input of {site.path}"))
        for want, have, what in pairs:
            if want.shape != have.shape:
                return f"{what} has shape {tuple(have.shape)} instead of {tuple(want.shape)}"
            error = float((want - have).abs().nan_to_num().max() / want.abs().nan_to_num().max().clamp_min(1e-12)) if want.numel() else 0.0
            if error > TOLERANCE:
                return f"{what} changed by {error:.1e} of its size"
        return None

    def _inputs(self, trial: Sequence[Bundle]) -> tuple[Tensor, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}
        handles = []
        for bundle in trial:
            part = consumer_module(self.module, bundle)

            def hook(module: nn.Module, args: tuple[Any, ...], name: str = bundle.name) -> None:
                seen.setdefault(name, channel_last(module, args[0]).detach().float())

            handles.append(part.register_forward_pre_hook(hook))
        try:
            return self.run(), seen
        finally:
            for handle in handles:
                handle.remove()


# --- from the trace to candidates ------------------------------------------------------------------------------------------------------------------


def is_dense(module: nn.Module) -> bool:
    """A layer that mixes channels with a weight matrix: Linear, Conv1D, ungrouped convolution."""
    return isinstance(module, nn.Linear) or is_conv1d(module) or (is_conv(module) and module.groups == 1)  # type: ignore[attr-defined]


def _size(module: nn.Module, axis: str) -> int:
    weight: Any = module.weight
    return weight.shape[axis_of(module, axis)]


def _common(paths: Sequence[str]) -> str:
    """Path of the smallest module that holds all of these (a module holds itself)."""
    parts = [p.split(".") for p in paths]
    same = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        same.append(names[0])
    return ".".join(same)


def _within(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


@dataclass
class _Candidate:
    """A sub-layer that was read off the trace: how its units might be cut (`cuts`, most likely first) and how it might be taken out (`outs`)."""

    kind: str
    path: str
    block: int
    producers: list[_Run]
    consumer: _Run
    cuts: list[Bundle] = field(default_factory=list)
    outs: list[list[dict[str, Any]]] = field(default_factory=list)
    name: str = ""


class _Reader:
    """Reads stacks and candidates off a trace."""

    def __init__(self, module: nn.Module, trace: _Trace) -> None:
        self.module, self.trace = module, trace
        self.first: dict[str, _Run] = {}
        self.calls: dict[str, int] = {}
        self.reached: dict[str, set[str]] = {}
        for run in trace.runs:
            self.first.setdefault(run.path, run)
            self.calls[run.path] = self.calls.get(run.path, 0) + 1

    def dense(self, root: str) -> list[_Run]:
        """First calls of the dense layers inside `root`, in order."""
        return [r for r in self.first.values() if _within(r.path, root) and is_dense(r.module)]

    # stacks

    def stacks(self, residual: Callable[[list[str]], set[str]]) -> list[tuple[str, list[str]]]:
        """(container, block paths) from the outermost in; container "" for blocks that are plain attributes. `residual` says which of some modules
        carry their input through."""
        boxes = {p: m for p, m in self.module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential | nn.ModuleDict)}
        children = {p: [f"{p}.{n}" if p else n for n in m._modules] for p, m in boxes.items()}
        possible = [c for cs in children.values() for c in cs if self._possible(c)]
        loose = [p for p, m in self.module.named_modules() if p and p not in possible and self._possible(p) and len(self.dense(p)) > 1]
        carrying = residual(possible + loose)
        classes = {type(self.module.get_submodule(c)) for c in possible if c in carrying}
        # a stage that carries its input through only because its own blocks do is no block: its blocks have twins beside them
        held = [[type(self.module.get_submodule(c)) for c in cs if c in carrying] for cs in children.values()]
        twins = {kind for kinds in held for kind in kinds if kinds.count(kind) > 1}
        inner = [c for c in possible if type(self.module.get_submodule(c)) in twins]
        stages = {type(self.module.get_submodule(c)) for c in possible if any(i != c and _within(i, c) for i in inner)}
        classes -= stages
        found: list[tuple[str, list[str]]] = []
        taken: list[str] = []
        for box in sorted(boxes, key=lambda p: (p.count("."), p)):
            if any(_within(box, t) for t in taken):
                continue
            blocks = [c for c in children[box] if c in possible and type(self.module.get_submodule(c)) in classes]
            # different residual branches in one list (attention, feed-forward) are the inside of a block, unless nothing encloses them
            if blocks and not any(c in blocks for c in children[box] if c not in possible):
                found.append((box, blocks))
                taken += blocks
        for path in sorted(loose, key=lambda p: (p.count("."), p)):
            if path in carrying and not any(_within(path, t) or _within(t, path) for t in taken):
                found.append(("", [path]))
                taken.append(path)
        singles = [blocks[0] for box, blocks in found if not box]
        found = [f for f in found if f[0]] + ([("", singles)] if singles else [])
        return sorted(found, key=lambda f: self.first[f[1][0]].order)

    def _possible(self, path: str) -> bool:
        run = self.first.get(path)
        if run is None or isinstance(run.module, nn.ModuleList | nn.Sequential | nn.ModuleDict) or is_dense(run.module):
            return False
        x, y = run.input, next(_tensors(run.output), None)
        return x is not None and y is not None and x.ndim > 1 and bool(self.dense(path))

    # sub-layers

    def candidates(self, index: int, block: str) -> list[_Candidate]:
        dense = [r for r in self.dense(block)]
        out: list[_Candidate] = []
        used: set[str] = set()
        for core in [c for c in self.trace.cores if _within(c.path, block)]:
            found = self._attention(index, block, core, [r for r in dense if r.path not in used])
            if found:
                out.append(found)
                used |= {r.path for r in found.producers} | {found.consumer.path}
        pending: list[_Run] = []
        residual = next(_tensors(self.first[block].output), torch.empty(0, 0))
        for run in dense:
            if run.path in used:
                pending = []
                continue
            feeds = [p for p in pending if self._feeds(block, p, run)]
            if feeds and not self._pooled(feeds[0], run):
                out.append(self._chain(index, block, feeds, run))
                pending = [p for p in pending if p not in feeds] if is_conv(run.module) else []
                if not is_conv(run.module) or _size(run.module, "out") == residual.shape[1]:
                    continue  # its outputs are the residual stream's channels, which stay
            pending.append(run)
        out.sort(key=lambda c: c.producers[0].order)
        return out

    def _feeds(self, block: str, producer: _Run, consumer: _Run) -> bool:
        wide, narrow = _size(producer.module, "out"), _size(consumer.module, "in")
        if producer.input is None or consumer.input is None or producer.input.data_ptr() == consumer.input.data_ptr():
            return False
        if is_conv(producer.module) != is_conv(consumer.module):
            return False
        if is_conv(consumer.module):
            return wide == narrow and consumer.path in self._reached(block, producer)
        return wide == narrow or wide == 2 * narrow

    def _reached(self, block: str, producer: _Run) -> set[str]:
        """Dense layers of the block whose input changes when the producer's output is disturbed."""
        if producer.path not in self.reached:
            run, found = self.first[block], set()
            handles = [producer.module.register_forward_hook(lambda m, a, out: out + torch.randn_like(out))]
            for other in self.dense(block):
                def look(m: nn.Module, args: Any, other: _Run = other) -> None:
                    if other.input is not None and (args[0].shape != other.input.shape or not torch.equal(args[0], other.input)):
                        found.add(other.path)

                handles.append(other.module.register_forward_pre_hook(look))
            try:
                with torch.no_grad():
                    run.module(*run.args, **run.kwargs)
            finally:
                for handle in handles:
                    handle.remove()
            self.reached[producer.path] = found
        return self.reached[producer.path]

    def _pooled(self, producer: _Run, consumer: _Run) -> bool:
        """Squeeze-and-excitation: the consumer looks at one value per channel."""
        x, y = consumer.input, producer.output
        return x is not None and isinstance(y, Tensor) and x.ndim == 4 and x.shape[2:].numel() == 1 and y.shape[2:].numel() > 1

    def _attention(self, index: int, block: str, core: _Core, dense: list[_Run]) -> _Candidate | None:
        if core.heads < 0:
            run = self.first.get(core.path)
            return _Candidate("attention", core.path, index, [run], run) if run is not None and core.path != block else None
        before = [r for r in dense if r.order < core.order]
        consumer = next((r for r in dense if r.order > core.order), None)
        owner = core.path
        while owner and owner != block and not any(_within(r.path, owner) for r in before):
            owner = owner.rpartition(".")[0]
        producers = [r for r in before if _within(r.path, owner)]
        if consumer is None or not producers or consumer.input is None:
            return None
        batch = consumer.input.shape[0]
        heads = core.heads or self._declared(owner, HEADS) or max(1, batch)
        width = _size(consumer.module, "in")
        if heads < 1 or width % heads:
            return None
        first = producers[0].input
        crossed = any(r.input is not None and first is not None and self._foreign(r, first, block) for r in producers[1:])
        path = _common([*(r.path for r in producers), consumer.path])
        found = _Candidate("cross_attention" if crossed else "attention", path, index, producers, consumer)
        found.cuts = self._head_cuts(owner, heads, width, producers, consumer, block)
        return found

    def unread(self, block: str, found: list[_Candidate]) -> str | None:
        """An attention of the block that no candidate covers."""
        seen = [c for c in found if c.kind.endswith("attention")]
        cores = [c for c in self.trace.cores if _within(c.path, block)]
        return next((c.path for c in cores if not any(_within(s.path, c.path) or _within(c.path, s.path) for s in seen)), None)

    def _foreign(self, run: _Run, first: Tensor, block: str) -> bool:
        """Whether a linear reads a tensor that was handed to the block beside its hidden state (the encoder's answer)."""
        mine = self.first[block]
        handed = [t.data_ptr() for t in _tensors([*mine.args, mine.kwargs])]
        entry = mine.input.data_ptr() if mine.input is not None else 0
        pointer = run.input.data_ptr() if run.input is not None else 0
        return pointer in handed and pointer != entry and pointer != first.data_ptr()

    def _declared(self, owner: str, pattern: re.Pattern[str]) -> int:
        for name, value in self._integers(owner):
            if pattern.match(name) and "kv" not in name and "key" not in name:
                return value
        return 0

    def _integers(self, path: str) -> list[tuple[str, int]]:
        part = self.module.get_submodule(path)
        return [(n, v) for n, v in part.__dict__.items() if type(v) is int and not n.startswith("__")]

    def _head_cuts(self, owner: str, heads: int, width: int, producers: list[_Run], consumer: _Run, block: str) -> list[Bundle]:
        deep = width // heads  # value width of a head
        sizes = {r.path: _size(r.module, "out") for r in producers}
        groups = {n // deep for n in sizes.values() if n % deep == 0 and n < width and heads % max(1, n // deep) == 0}
        declared = [v for n, v in self._integers(owner) if HEADS.match(n) and ("kv" in n or "key_value" in n)]
        units = {heads, *groups, *(v for v in declared if v and heads % v == 0)}
        shared = 1 in units and heads > 1  # one key-value head for all queries: it stays, and queries go one by one
        own, selects = self._per_head(owner, _common([*(r.path for r in producers), consumer.path]), heads, deep)
        cuts: list[Bundle] = []
        for unit in sorted(units):  # the smallest first: all producers must divide by it
            if unit < 2:
                continue
            for layout in self._layouts(producers, sizes, unit, heads, deep, shared):
                for followers in [own, ()] if own else [()]:
                    for counts in self._counts(owner, heads, unit, deep):
                        cuts.append(Bundle(
                            "", "heads", unit, width // unit, layout, tuple(replace_units(f, heads // unit) for f in followers),
                            (Site(consumer.path, "in", ((0, width // unit),)),), counts, selects, heads // unit,
                        ))  # fmt: skip
        return cuts

    def _layouts(
        self, producers: list[_Run], sizes: dict[str, int], unit: int, heads: int, deep: int, shared: bool
    ) -> list[tuple[Site, ...]]:
        """Ways in which the rows of the producers may belong to units: in one run per unit, or as query, key and value parts behind each other."""
        if shared:
            extra = {r.path: sizes[r.path] - heads * deep for r in producers}
            queries = [r.path for r in producers if extra[r.path] in (0, 2 * deep)]
            return [tuple(Site(p, "out", ((0, deep),), ((heads * deep, heads * deep + extra[p]),) if extra[p] else ()) for p in queries)] if queries else []

        def split(parts: Sequence[int]) -> tuple[tuple[int, int], ...]:
            starts = np.cumsum([0, *parts[:-1]])
            return tuple((int(s), p // unit) for s, p in zip(starts, parts, strict=True))

        def ways(n: int) -> list[tuple[tuple[int, int], ...]]:
            options = [[n], [n // 3] * 3, [n // 2] * 2, [heads * deep, unit * deep, unit * deep]]
            fused = n > heads * deep  # more rows than one projection has
            order = [options[1], options[3], options[2], options[0]] if fused else [options[0]]
            return [split(parts) for parts in order if sum(parts) == n and all(p % unit == 0 for p in parts)]

        several = [ways(sizes[r.path]) for r in producers]
        if not all(several):
            return []
        longest = max(len(w) for w in several)
        return [tuple(Site(r.path, "out", w[min(k, len(w) - 1)]) for r, w in zip(producers, several, strict=True)) for k in range(longest)]

    def _counts(self, owner: str, heads: int, unit: int, deep: int) -> list[tuple[tuple[str, str, int], ...]]:
        """Which attributes to set with the number of units: counts and widths, counts only, none."""
        numbers: list[tuple[str, str, int]] = []
        widths: list[tuple[str, str, int]] = []
        for name, value in self._integers(owner):
            if re.search("group|rep", name) and value == heads and unit == heads and value > 1:
                numbers.append((owner, name, 1))
            elif HEADS.match(name) and not re.search("group|rep|per", name):
                if ("kv" in name or "key_value" in name) and value == unit:
                    numbers.append((owner, name, 1))
                elif value == heads:
                    numbers.append((owner, name, heads // unit))
            elif value == heads * deep and WIDTHS.search(name) and value != deep:
                widths.append((owner, name, value // unit))
        inner = [w for w in widths if re.search("head|inner|split", w[1])]  # never the residual width, which may be equal by chance
        config = getattr(self.module.get_submodule(owner), "config", None)
        shared = []
        for name, value in (vars(config) if hasattr(config, "__dict__") else {}).items():
            if type(value) is int and HEADS.match(name) and value in (heads, unit):
                shared.append((owner, f"config.{name}", 1 if "key_value" in name or "kv" in name else heads // unit))
        last = [tuple(numbers + inner + shared)] if shared else []
        return list(dict.fromkeys([tuple(numbers + inner), tuple(numbers + widths), tuple(numbers), (), *last]))

    def _per_head(self, owner: str, path: str, heads: int, deep: int) -> tuple[tuple[Site, ...], tuple[tuple[str, int | str, int], ...]]:
        """Tables and parameters with one entry (or one width) per head beside the projections, and arguments with an axis of heads."""
        sites: list[Site] = []
        roots = {owner, path} if _within(owner, path) else {owner}
        for place, part in [item for root in sorted(roots) for item in self.module.get_submodule(root).named_modules(prefix=root)]:
            if is_dense(part) or place in self.first and isinstance(part, nn.LayerNorm):
                continue
            if isinstance(part, nn.Embedding):
                if part.embedding_dim == heads:
                    sites.append(Site(place, "out", ((0, 1),)))
                continue
            for name, value in [*part._parameters.items(), *part._buffers.items()]:
                shape = list(value.shape) if value is not None else []
                for size, width in ((heads, 1), *([(heads * deep, deep)] if _within(place, owner) else [])):
                    if shape.count(size) == 1 and size > 1:
                        sites.append(Site(f"{place}.{name}" if place else name, shape.index(size), ((0, width),)))
                        break
        run, selects = self.first.get(owner), []
        for key, value in [*enumerate(run.args), *run.kwargs.items()] if run is not None and heads > 1 else []:
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4):
                batch = run.input.shape[0] if run is not None and run.input is not None else 0
                if value.ndim == 4 and value.shape[1] == heads:
                    selects.append((owner, key, 1))
                elif value.ndim == 3 and value.shape[0] == heads * batch and value is not run.input:
                    selects.append((owner, key, -heads))  # batch and heads in one axis
        return tuple(dict.fromkeys(sites)), tuple(selects)

    def _chain(self, index: int, block: str, feeds: list[_Run], consumer: _Run) -> _Candidate:
        n = _size(consumer.module, "in")
        conv = is_conv(consumer.module)
        latest = feeds[-1]
        producers = [p for p in feeds if p.input is not None and latest.input is not None and (conv or p.input.data_ptr() == latest.input.data_ptr())]
        inside = [r for r in self.first.values() if producers[0].order < r.order < consumer.order and _within(r.path, block)]
        between = [r for r in inside if not any(True for child in r.module.children() for _ in child.parameters())]
        followers = [r for r in between if (is_depthwise(r.module) or not is_dense(r.module)) and channels(r.module) == n]
        others = [r for r in between if is_dense(r.module) and r not in producers and _size(r.module, "in") == n and self._pooled(producers[0], r)]
        unit = ((0, 1),)

        def rows(run: _Run) -> tuple[tuple[int, int], ...]:
            return unit if _size(run.module, "out") == n else ((0, 1), (n, 1))

        bundle = Bundle(
            "", "channels" if conv else "neurons", n, 1, tuple(Site(p.path, "out", rows(p)) for p in producers),
            tuple(Site(f.path, "out", unit) for f in followers), (*(Site(o.path, "in", unit) for o in others), Site(consumer.path, "in", unit)),
        )  # fmt: skip
        cuts = [bundle]
        if any(len(s.segments) == 2 for s in bundle.producers):  # gate and value side by side, or in turns
            cuts.append(replace(bundle, producers=tuple(replace(s, segments=((0, 2),)) if len(s.segments) == 2 else s for s in bundle.producers)))
        path = _common([*(p.path for p in producers), consumer.path])
        return _Candidate("conv" if conv else "ffn", path, index, producers, consumer, cuts)

    # taking a sub-layer out

    def outs(self, c: _Candidate, block: str) -> list[list[dict[str, Any]]]:
        """Edits that might take the candidate out, those that save most first."""
        if c.kind == "conv":
            return []
        if not is_dense(c.consumer.module):
            return [[self._absent(c.consumer, "zero")]]
        options: list[list[dict[str, Any]]] = []
        for path in self._climb(c.path, block):
            run = self.first.get(path)
            if run is not None and run.input is not None:
                options += [[self._absent(run, what)] for what in ("pass", "zero")]
                options += [[{**self._absent(run, "pass"), "argument": key}] for key in self._alike(run)]  # the residual, handed in beside the input
        width = _size(c.consumer.module, "out")
        mute = {**self._absent(c.consumer, "zero"), "width": width}
        feet = _common([p.path for p in c.producers])
        for path in self._climb(feet, block):
            run = self.first.get(path)
            if run is not None and run.input is not None and not _within(c.consumer.path, path):
                options.append([self._absent(run, "zero"), mute])
        if c.kind == "ffn":
            options.append([*(self._absent(p, "pass") for p in c.producers), mute])
        options.append([mute])
        return options

    def _alike(self, run: _Run) -> list[int | str]:
        """Further arguments of the shape of the first tensor."""
        x = run.input
        items = [*enumerate(run.args), *run.kwargs.items()]
        return [k for k, v in items if isinstance(v, Tensor) and x is not None and v.shape == x.shape and v.is_floating_point() and k != run.where]

    def _climb(self, path: str, block: str) -> list[str]:
        """From the block's child down to `path`; empty if `path` is the block."""
        if path == block or not _within(path, block):
            return []
        rest = path[len(block) + 1 :].split(".") if block else path.split(".")
        return [".".join([*([block] if block else []), *rest[: k + 1]]) for k in range(len(rest))]

    def _absent(self, run: _Run, what: str) -> dict[str, Any]:
        x = run.input
        returns: Any = what
        if isinstance(run.output, tuple | list):
            place = next((i for i, part in enumerate(run.output) if isinstance(part, Tensor) and x is not None and part.shape[:-1] == x.shape[:-1]), 0)
            returns = [what if i == place else None for i in range(len(run.output))]
        return {"kind": "absent", "path": run.path, "argument": run.where, "returns": returns}


def replace_units(site: Site, per: int) -> Site:
    """The site of per-head entries, seen by units of `per` heads."""
    return replace(site, segments=tuple((start, width * per) for start, width in site.segments))


# --- putting it together ---------------------------------------------------------------------------------------------------------------------------


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
    with _shaken(module):
        return _read(module, call, preparation)


@contextmanager
def _shaken(module: nn.Module) -> Iterator[None]:
    """Inside, biases, norm scales and all-zero weights carry noise: with fresh weights a norm after a norm does nothing, and a zero weight hides any cut."""
    generator, saved = torch.Generator().manual_seed(0), []
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.device.type == "cpu" and (parameter.ndim <= 1 or not parameter.any()):
            saved.append((parameter, parameter.data))
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            parameter.data = parameter.data + 0.1 * noise * parameter.data.abs().mean().clamp_min(0.1)
    try:
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


def _read(module: nn.Module, call: Call, preparation: Recipe) -> Anatomy:
    prover = _Prover(module, call)
    trace = _Trace(module)
    try:
        reference = trace.watch(call)
        again = prover.run()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"the model does not run on the sample batch: {type(error).__name__}: {str(error)[:120]}", "Check data and model inputs.") from error
    if not torch.allclose(reference.float(), again, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ModelError("the model answers the same batch differently each time", "Remove the randomness from its forward (dropout outside eval mode?).")
    reader, refusals = _Reader(module, trace), {}
    found = reader.stacks(lambda paths: _carrying(module, paths, reader))
    names = _stack_names([box or "blocks" for box, _ in found])
    stacks = tuple(_stack(reader, prover, refusals, name, box, blocks) for name, (box, blocks) in zip(names, found, strict=True))
    if not stacks:
        refusals[type(module).__name__] = "no residual blocks were found, so nothing can be removed; it can still be quantised and raced on every back end."
    return Anatomy(stacks, refusals, None, preparation)


def _carrying(module: nn.Module, paths: list[str], reader: _Reader) -> set[str]:
    """Which of these modules carry their input to their output when all their dense layers answer zero: what makes a block residual (He et al. 2015).

    The correlation of input and output is taken after removing each channel's mean, so that norms pass and constants do not.
    """
    found: set[str] = set()
    for path in paths:
        run = reader.first[path]
        try:
            with torch.no_grad(), _muted(module, [r.path for r in reader.dense(path)]):
                x, y = run.input, hidden(run.module(*run.args, **run.kwargs))
        except Exception:  # a forward that cannot bear zeros tells nothing
            continue
        if x is None or x.shape != y.shape:
            continue
        x, y = (_centred(t.detach().float()) for t in (x, y))
        if float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-12)) > 0.3:
            found.add(path)
    return found


def _centred(x: Tensor) -> Tensor:
    axis = 1 if x.ndim == 4 else x.ndim - 1
    flat = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    return flat - flat.mean(0)


def _stack_names(boxes: list[str]) -> list[str]:
    """Readable and unique: "encoder" for bert.encoder.layer, the whole path where that is ambiguous."""
    generic = re.compile(r"^(layers?|blocks?|_blocks|h|\d+)$")
    parts = [[p for p in box.split(".") if not generic.match(p)] or [box] for box in boxes]
    short, longer = [p[-1] for p in parts], [".".join(p) for p in parts]
    return [s if short.count(s) == 1 else m if longer.count(m) == 1 else box for s, m, box in zip(short, longer, boxes, strict=True)]


def _stack(reader: _Reader, prover: _Prover, refusals: dict[str, str], name: str, box: str, paths: list[str]) -> Stack:
    groups: list[list[_Candidate]] = [reader.candidates(i, path) for i, path in enumerate(paths)]
    for i, group in enumerate(groups):
        totals: dict[str, int] = {}
        for c in group:
            totals[c.kind] = totals.get(c.kind, 0) + 1
            c.name = f"{name}.{i}.{c.kind}" + (f"{totals[c.kind]}" if totals[c.kind] > 1 else "")
            c.cuts = [replace(cut, name=c.name) for cut in c.cuts]
            c.outs = reader.outs(c, paths[i])
    biases = _biases(reader, groups)
    for c in [c for group in groups for c in group]:
        c.cuts = [_with_own_bias(cut, biases, _owner(reader, c)) for cut in c.cuts]
    kinds: dict[str, list[_Candidate]] = {}
    for c in [c for group in groups for c in group]:
        kinds.setdefault(re.sub(r"^.*\.\d+\.", "", c.name), []).append(c)
    cut: dict[str, Bundle] = {}
    out: dict[str, tuple[dict[str, Any], ...]] = {}
    for several in kinds.values():
        cut.update(_prove_cuts(prover, several, biases, refusals))
        out.update(_prove_outs(prover, several, biases, refusals))
    blocks = []
    for i, (path, group) in enumerate(zip(paths, groups, strict=True)):
        subs = tuple(SubLayer(c.name, c.kind, c.path, cut.get(c.name), out.get(c.name, ())) for c in group if c.name in cut or c.name in out)
        lost = reader.unread(path, group)
        if lost:
            refusals[lost] = "an attention that could not be read off its layers; it stays as it is and can still be quantised."
        if not group:
            refusals[path] = "no attention, feed-forward or convolution pair was recognised inside; the block can only be removed whole or quantised."
        blocks.append(Block(path, subs, False))
    children = tuple(_child(p) for p in paths) if box else ()
    counts, lists = _configured(reader.module, box, len(paths)) if box else ((), ())
    stack = Stack(name, box, tuple(blocks), counts, lists, biases, children, _positions(reader.module, blocks))
    return replace(stack, blocks=tuple(replace(b, removable=_prove_removal(reader, prover, refusals, stack, i)) for i, b in enumerate(blocks)))


def _child(path: str) -> int:
    last = path.rpartition(".")[2]
    return int(last) if last.isdigit() else -1


def _prove_cuts(prover: _Prover, several: list[_Candidate], biases: tuple[dict[str, Any], ...], refusals: dict[str, str]) -> dict[str, Bundle]:
    """The first way of cutting that holds for all blocks at once; where none does, block by block."""
    most = max((len(c.cuts) for c in several), default=0)
    whole = [c for c in several if c.cuts]
    for k in range(most):
        trial = [c.cuts[k] for c in whole if len(c.cuts) > k]
        if len(trial) == len(whole) and prover.bundles(trial, biases) is None:
            return {b.name: b for b in trial}
    proved: dict[str, Bundle] = {}
    for c in several:
        reason = "its heads cannot be told apart" if c.kind.endswith("attention") else "no unit was found"
        for cut in c.cuts:
            said = prover.bundles([cut], biases)
            if said is None:
                proved[c.name] = cut
                break
            reason = said if cut is c.cuts[0] else reason
        else:
            refusals[c.name] = f"{c.path}: removing single {'heads' if c.kind.endswith('attention') else 'units'} is not safe ({reason}); it can still be quantised."
    return proved


def _prove_outs(
    prover: _Prover, several: list[_Candidate], biases: tuple[dict[str, Any], ...], refusals: dict[str, str]
) -> dict[str, tuple[dict[str, Any], ...]]:
    """For each sub-layer the most thorough edits that equal muting its consumer."""
    def proves(chosen: list[_Candidate], k: int) -> bool:
        return prover.same(_mute(prover, chosen), [*biases, *(e for c in chosen for e in c.outs[k])]) is None

    able = [c for c in several if c.outs]
    most = max((len(c.outs) for c in able), default=0)
    for k in range(most):
        if all(len(c.outs) > k for c in able) and proves(able, k) and (len(able) == 1 or proves(able[:1], k)):
            return {c.name: tuple(c.outs[k]) for c in able}
    proved = {}
    for c in able:
        for k in range(len(c.outs)):
            if proves([c], k):
                proved[c.name] = tuple(c.outs[k])
                break
        else:
            refusals.setdefault(c.name, f"{c.path}: taking it out whole changes more than its own contribution; it can still be quantised.")
    return proved


def _mute(prover: _Prover, chosen: list[_Candidate]) -> Tensor:
    with _muted(prover.module, [c.consumer.path for c in chosen]):
        return prover.run()


def _prove_removal(reader: _Reader, prover: _Prover, refusals: dict[str, str], stack: Stack, index: int) -> bool:
    path = stack.blocks[index].path
    run = reader.first[path]
    x, y = run.input, next(_tensors(run.output), None)
    if x is None or y is None or x.shape != y.shape:
        refusals[path] = "the block changes the shape of its input, so what follows needs it; units inside it can go."
        return False
    if reader.calls[path] > 1:
        refusals[path] = "the block is called several times with shared weights, so it cannot be removed singly; units inside it can go."
        return False
    absent = Absent(run.where, reader._absent(run, "pass")["returns"])
    with _rollback(prover.module):
        apply(prover.module, Recipe(stack.biases))
        handle = prover.module.get_submodule(path).register_forward_hook(lambda m, args, kwargs, out: absent(*args, **kwargs), with_kwargs=True)
        try:
            reference = prover.run()
        except Exception as error:
            refusals[path] = f"the model does not run without this block ({type(error).__name__}); units inside it can go."
            return False
        finally:
            handle.remove()
    kept = [i for i in range(len(stack.blocks)) if i != index]
    said = prover.same(reference, [*stack.biases, *_shorten(stack, kept, set())])
    if said is not None:
        refusals[path] = f"the model does not run as expected without this block ({said}); units inside it can go."
    return said is None


def _biases(reader: _Reader, groups: list[list[_Candidate]]) -> tuple[dict[str, Any], ...]:
    """Where the first attention's table of position biases serves all (T5, Raffel et al. 2020, §2.1): edits that give each attention its own copy."""
    owners = {c.name: _owner(reader, c) for group in groups for c in group if c.kind.endswith("attention")}
    tables: dict[str, tuple[str, str]] = {}
    for name, owner in owners.items():
        for child, part in reader.module.get_submodule(owner).named_children():
            if isinstance(part, nn.Embedding) and hasattr(reader.module.get_submodule(owner), f"has_{child}"):
                tables[re.sub(r"^.*\.", "", name)] = (owner, child)
    if not tables:
        return ()
    edits: list[dict[str, Any]] = []
    argument = "position_bias"
    for name, owner in owners.items():
        source, child = tables.get(re.sub(r"^.*\.", "", name), ("", ""))
        edit: dict[str, Any] = {"kind": "bias", "path": owner, "argument": argument}
        edits.append({**edit, "table": child, "source": f"{source}.{child}"} if source else edit)
    return tuple(edits)


def _with_own_bias(cut: Bundle, biases: tuple[dict[str, Any], ...], owner: str) -> Bundle:
    """The cut of an attention that gets its own bias table: the table goes along, and nothing is selected from the argument it ignores."""
    edit = next((e for e in biases if e["path"] == owner), None)
    if edit is None:
        return cut
    table = f"{owner}.{edit['table']}" if edit.get("source") else ""
    selects = tuple(s for s in cut.selects if s[:2] != (owner, edit["argument"]))
    if not table or any(f.path == table for f in cut.followers):
        return replace(cut, selects=selects)
    return replace(cut, selects=selects, followers=(*cut.followers, Site(table, "out", ((0, cut.queries),))))


def _owner(reader: _Reader, c: _Candidate) -> str:
    return _common([p.path for p in c.producers]) if len(c.producers) > 1 else c.producers[0].path.rpartition(".")[0]


def _configured(module: nn.Module, box: str, n: int) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str, tuple[Any, ...]], ...]]:
    """Attributes above a container that count its blocks or list something for each."""
    counts: list[tuple[str, str]] = []
    lists: list[tuple[str, str, tuple[Any, ...]]] = []
    seen: set[int] = set()
    side = next((s for s in ("decoder", "encoder") if s in box), "")
    paths = [".".join(box.split(".")[:k]) for k in range(box.count(".") + 1)] if box else [""]
    for path in paths:
        part = module.get_submodule(path)
        counts += [(path, name) for name, value in part.__dict__.items() if type(value) is int and value == n and COUNTS.match(name)]
        config = getattr(part, "config", None)
        if config is None or id(config) in seen or not hasattr(config, "__dict__"):
            continue
        seen.add(id(config))
        names = [k for k, v in config.__dict__.items() if type(v) is int and v == n and COUNTS.match(k)]
        other = {"decoder": "encoder", "encoder": "decoder", "": "\n"}[side]
        names = [k for k in names if other not in k]
        own = side in path if side else True
        special = [k for k in names if side and side in k]
        if special and not own:
            names = special
        elif side == "decoder" and not own and getattr(config, "is_encoder_decoder", False):
            names = []
        counts += [(path, f"config.{k}") for k in names]
        for k, v in config.__dict__.items():
            if isinstance(v, list | tuple) and len(v) == n and re.search("layer|block", k):
                lists.append((path, f"config.{k}", tuple(v)))
    return tuple(counts), tuple(lists)


def _positions(module: nn.Module, blocks: list[Block]) -> tuple[tuple[int, str, str, str], ...]:
    """Attributes that say which entry of the cache a layer uses."""
    found = []
    for i, block in enumerate(blocks):
        for path, part in module.get_submodule(block.path).named_modules(prefix=block.path):
            for name in POSITIONS:
                if type(part.__dict__.get(name)) is int and part.__dict__[name] == i:
                    owner = next((s.name for s in block.sublayers if s.kind.endswith("attention") and (_within(s.path, path) or _within(path, s.path))), "")
                    found.append((i, owner if path != block.path else "", path, name))
    return tuple(found)
