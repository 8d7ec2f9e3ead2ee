"""A rewrite as plain data: edits that, applied to the bare architecture, rebuild the changed shape; applied to the trained model, slice its weights.

An edit is a JSON object with a `kind` and the `path` of a module. Index lists are text of ranges ("0-3,7"), counted on the model as the edits before
it left it, so recipes compose by concatenation. Kinds:

| kind   | fields                              | does |
|--------|-------------------------------------|------|
| keep   | path, index                         | keeps those children of a container (ModuleList, Sequential), in that order |
| slice  | path, axis, index                   | keeps those indices of a module along "out" or "in", or of a bare parameter along axis number |
| set    | path, name, value, [own]            | sets an attribute; dots in `name` descend ("config.num_layers"), with `own` into copies |
| absent | path, argument, returns, [width]    | replaces a module by one that passes its input on, or zeros, in the recorded output structure |
| swap   | path, to, [how]                     | replaces a module by our own class of the same function: "attention", "heads" (made again) |
| bias   | path, argument, [table, source]     | an attention ignores the shared position bias handed to it and owns a copy of the table instead |
| select | path, argument, axis, index         | keeps those indices of a tensor argument, whenever the module is called |
| rows   | paths, index, [tensors]             | keeps those token rows of embeddings and output heads; shared ones stay shared |

Any other kind belongs to the technique whose class names it (`Rewrite.edits`) and whose `apply` carries it out; where that is none of ours, the
edit's `by` names its module.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import ModelError
from fourfold.registry import owner

LONGEST = 1 << 24  # indices of one edit; the largest axis of a layer is a vocabulary's


def pack(index: Iterable[int]) -> str:
    """Indices as text of ranges: [0, 1, 2, 5] → "0-2,5". Order is kept."""
    runs: list[list[int]] = []
    for i in map(int, index):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def unpack(text: str) -> list[int]:
    """Inverse of `pack`. Raises `ModelError` on anything that is not text of ranges."""
    out: list[int] = []
    try:
        for part in filter(None, text.split(",")):
            first, _, last = part.partition("-")
            span = range(int(first), int(last or first) + 1)
            if len(out) + len(span) > LONGEST:
                raise ValueError(f"more than {LONGEST:,} indices")
            out.extend(span)
    except (ValueError, AttributeError) as error:
        raise ModelError(f"a recipe holds the index list {str(text)[:80]!r}", 'Expected ranges such as "0-3,7".') from error
    return out


@dataclass(frozen=True)
class Recipe:
    """Edits in order. `r1 + r2`: first r1, then r2 on what r1 left."""

    edits: tuple[dict[str, Any], ...] = ()

    def __add__(self, other: Recipe) -> Recipe:
        return Recipe(self.edits + other.edits)

    def to_json(self) -> str:
        return json.dumps({"edits": list(self.edits)}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | dict[str, Any]) -> Recipe:
        """Reads `to_json`'s text, or its parsed object. Raises `ModelError` where an edit has no known kind."""
        try:
            data = json.loads(text) if isinstance(text, str) else text
            edits = tuple(data["edits"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError("the recipe is not JSON with a list of edits", "Save the artefact again.") from error
        for edit in edits:
            if not isinstance(edit, dict) or not (edit.get("kind") in EDITS or owner(str(edit.get("kind")))):
                raise ModelError(f"the recipe holds an unknown edit: {str(edit)[:80]}", f"Known kinds: {', '.join(EDITS)}.")
        return Recipe(edits)


def apply(module: nn.Module, recipe: Recipe) -> nn.Module:
    """Carries out the edits and returns the module: the same one, or what a technique's edit puts in its place (needs no data and runs nothing).

    Raises `ModelError` naming the edit and the module if an edit does not fit the module.
    """
    for edit in recipe.edits:
        try:
            if edit["kind"] in EDITS:
                EDITS[edit["kind"]](module, edit)
            elif (technique := owner(edit["kind"])) is not None:
                module = technique().apply(module, edit)
            else:
                raise ModelError(f"no technique carries out edits of kind {edit['kind']!r}", "Install the package that the recipe was made with.")
        except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
            where = edit.get("path", edit.get("paths", ""))
            raise ModelError(
                f"edit {edit.get('kind')!r} does not fit module {where!r}: {error}", "The recipe was made for another architecture."
            ) from error
    return module


# --- where things are ------------------------------------------------------------------------------------------------------------------------------


def parent(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds `path`, and the name it holds it under."""
    head, _, name = path.rpartition(".")
    return module.get_submodule(head), name


def put(module: nn.Module, path: str, new: nn.Module) -> None:
    """Replaces the module at `path`, in the mode (train or eval) of the replaced one."""
    holder, name = parent(module, path)
    new.train(getattr(holder, name).training)
    holder._modules[name] = new


# --- slicing ---------------------------------------------------------------------------------------------------------------------------------------


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's Conv1D: a linear layer with weight in×out."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)


def is_depthwise(module: nn.Module) -> bool:
    return is_conv(module) and module.groups > 1 and module.groups == module.in_channels == module.out_channels  # type: ignore[attr-defined]


def _cut(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    if len(index) > tensor.shape[axis]:
        raise RuntimeError(f"{len(index):,} indices to keep of {tensor.shape[axis]:,}")
    kept = tensor.detach().index_select(axis, index.to(tensor.device)).clone(memory_format=torch.contiguous_format)
    return nn.Parameter(kept, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept


def _cut_named(module: nn.Module, name: str, axis: int, index: Tensor) -> None:
    store = module._parameters if name in module._parameters else module._buffers
    tensor = store.get(name)
    if tensor is not None:
        store[name] = _cut(tensor, axis, index)  # type: ignore[assignment]


def axis_of(module: nn.Module, axis: str) -> int:
    """Which axis of `module.weight` is its "out" or "in" side."""
    if isinstance(module, nn.Embedding) or is_conv1d(module):
        return 1 if axis == "out" else 0
    return 0 if axis == "out" else 1


def slice_module(module: nn.Module, axis: str, index: list[int]) -> None:
    """Keeps `index` of the outputs ("out": bias goes along) or inputs ("in") of a parameter module, and its size attributes. Norms have one side."""
    at, n = torch.tensor(index, dtype=torch.long), len(index)
    if isinstance(module, nn.Linear) or is_conv1d(module) or isinstance(module, nn.Embedding):
        _cut_named(module, "weight", axis_of(module, axis), at)
        names = {"out": ("out_features", "nf", "embedding_dim"), "in": ("in_features", "nx", "num_embeddings")}[axis]
    elif is_conv(module):
        if module.groups > 1 and not is_depthwise(module):  # type: ignore[attr-defined]
            raise RuntimeError("a grouped convolution that is not depthwise cannot be sliced")
        depthwise = is_depthwise(module)
        _cut_named(module, "weight", 0 if depthwise or axis == "out" else 1, at)
        names = ("in_channels", "out_channels", "groups") if depthwise else ("out_channels",) if axis == "out" else ("in_channels",)
        axis = "out" if depthwise else axis
    else:  # a norm or any other module that scales channels one by one
        size = channels(module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.ndim and tensor.shape[0] == size:
                _cut_named(module, name, 0, at)
        norm: Any = module
        if isinstance(getattr(norm, "normalized_shape", None), tuple):
            norm.normalized_shape = (n,)
        names = ("num_features", "num_channels", "hidden_size")
        axis = "in"
    if axis == "out":
        _cut_named(module, "bias", 0, at)
    for name in names:
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, n)


def channels(module: nn.Module) -> int:
    """Width of a norm-like module: the length of its first parameter or buffer with an axis (0 if none)."""
    return next((t.shape[0] for t in [*module._parameters.values(), *module._buffers.values()] if t is not None and t.ndim), 0)


# --- our own modules -------------------------------------------------------------------------------------------------------------------------------


class Absent(nn.Module):
    """In place of a removed module: hands on zeros or its input, in the structure in which the removed one answered.

    `argument`: which argument is the hidden state (position or name). `returns`: "zero" | "pass" | None, or a list of them for a tuple.
    `width`: size of the last axis of the zeros, where it differs from the argument's.
    """

    def __init__(self, argument: int | str, returns: object, width: int | None = None) -> None:
        super().__init__()
        self.argument, self.returns, self.width = argument, returns, width

    def forward(self, *args: Any, **kwargs: Any) -> object:
        x = args[self.argument] if isinstance(self.argument, int) else kwargs[self.argument]
        return self._answer(x, self.returns)

    def _answer(self, x: Tensor, what: Any) -> object:
        if what is None:
            return None
        if what == "pass":
            return x
        if what == "zero":
            return torch.zeros_like(x) if self.width in (None, x.shape[-1]) else x.new_zeros((*x.shape[:-1], self.width))
        return tuple(self._answer(x, part) for part in what)

    def extra_repr(self) -> str:
        return f"returns={self.returns}"


class Attention(nn.Module):
    """`nn.MultiheadAttention` with separate projections, so that heads can be removed (Vaswani et al. 2017, §3.2.2); same arguments, no weights
    returned. What computes the attention itself can be replaced by a module `core` (see `structure.cores`).

    `width` is the residual width, which stays; each head keeps its `head_dim`. `_qkv_same_embed_dim` is False to turn off the fused path of
    `nn.TransformerEncoderLayer`, which would read the original's packed weights.
    """

    def __init__(self, width: int, heads: int, kdim: int, vdim: int, bias: bool, dropout: float, batch_first: bool) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = width, heads, width // heads
        self.dropout, self.batch_first = dropout, batch_first
        self._qkv_same_embed_dim, self.in_proj_weight, self.in_proj_bias = False, None, None
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=bias), nn.Linear(kdim, width, bias=bias)
        self.v_proj, self.out_proj = nn.Linear(vdim, width, bias=bias), nn.Linear(width, width, bias=bias)

    @classmethod
    def of(cls, old: nn.MultiheadAttention) -> Attention:
        """The same function and the same weights as `old`."""
        if old.bias_k is not None or old.add_zero_attn:
            raise RuntimeError("add_bias_kv and add_zero_attn are not supported")
        new = cls(old.embed_dim, old.num_heads, old.kdim, old.vdim, old.in_proj_bias is not None, old.dropout, old.batch_first)
        weights = old.in_proj_weight.chunk(3) if old._qkv_same_embed_dim else (old.q_proj_weight, old.k_proj_weight, old.v_proj_weight)
        biases = old.in_proj_bias.chunk(3) if old.in_proj_bias is not None else (None, None, None)
        for linear, weight, bias in zip((new.q_proj, new.k_proj, new.v_proj), weights, biases, strict=True):
            linear.weight = nn.Parameter(weight.detach().clone())
            linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        new.out_proj.weight, new.out_proj.bias = old.out_proj.weight, old.out_proj.bias
        return new

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None, need_weights: bool = False,
        attn_mask: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        flat = query.ndim == 2
        if flat:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._heads(self.q_proj(query)), self._heads(self.k_proj(key)), self._heads(self.v_proj(value))
        mask = self._mask(q, key_padding_mask, attn_mask)
        # a causal hint without a mask is taken at its word; with a mask, the mask says it all
        core, causal = getattr(self, "core", None), is_causal and mask is None
        if core is not None:
            out = core(q, k, v, attn_mask=mask, is_causal=causal, scale=None)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0, is_causal=causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if flat:
            return out.squeeze(0), None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, x.shape[-1] // self.num_heads)).transpose(1, 2)

    def _mask(self, q: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """One additive mask, broadcastable to batch × heads × queries × keys. In torch, True in a boolean mask means "do not look"."""
        total = None
        if mask is not None:
            mask = mask.view(q.shape[0], -1, *mask.shape[1:]) if mask.ndim == 3 else mask
            total = _additive(mask, q.dtype)
        if padding is not None:
            extra = _additive(padding, q.dtype)[:, None, None, :]
            total = extra if total is None else total + extra
        return total


class Heads(nn.Module):
    """Multi-head attention made again from another module's projections (see `ingest.remake`, which proves that it computes the same).

    Takes the arguments that the other took: `argument` is the hidden state, `context` what keys and values are read from, `mask` an argument and its
    meaning ("add", or "keep" | "drop" for marks). Answers in the structure `returns`, where "zero" stands for the hidden state. A module
    `core` takes the place of the attention itself (see `structure.cores`).
    """

    def __init__(self, edit: dict[str, Any], norm: nn.Module | None, parts: list[nn.Linear], out: nn.Linear) -> None:
        super().__init__()
        self.argument, self.context, self.mask, self.returns = edit["argument"], edit["context"], edit["mask"], edit["returns"]
        self.num_heads, self.is_causal, self.scale, self.batch_first = edit["heads"], edit["causal"], edit["scale"], edit["batch_first"]
        self.norm = norm
        self.q_proj, self.k_proj, self.v_proj = parts
        self.out_proj = out
        self.layer_idx: int | None = None  # its place in a cache of keys and values

    @classmethod
    def of(cls, old: nn.Module, edit: dict[str, Any]) -> Heads:
        """From the rows that `edit` names in `old`."""
        parts = [_linear(old.get_submodule(path), unpack(index)) for path, index in (edit[part] for part in "qkv")]
        out = old.get_submodule(edit["out"])
        made = cls(edit, old.get_submodule(edit["norm"]) if edit["norm"] else None, parts, _linear(out, None))
        made.layer_idx = getattr(old, "layer_idx", None)
        return made

    def forward(self, *args: object, **kwargs: object) -> object:
        def given(key: int | str) -> Any:
            return args[key] if isinstance(key, int) else kwargs[key]

        x = given(self.argument) if self.norm is None else self.norm(given(self.argument))
        y = x if self.context is None else given(self.context)
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(y)), self._heads(self.v_proj(y))
        memory: Any = kwargs.get("cache", kwargs.get("past_key_values")) if self.context is None and self.layer_idx is not None else None
        if memory is not None:
            k, v = getattr(memory, "self_attention_cache", memory).update(k, v, self.layer_idx)
        padding = None if self.mask is None else given(self.mask[0])
        mask = None if padding is None or self.mask is None else self._spread(padding, self.mask[1], q)
        # A model that hands no mask on, though it has one, leaves causality to the attention.
        causal, past = (self.is_causal or memory is not None and mask is None) and q.shape[2] > 1, k.shape[2] - q.shape[2]
        if causal and (mask is not None or past):
            ahead = _additive(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1 + past), q.dtype)
            mask = ahead if mask is None else mask + ahead
        core = getattr(self, "core", None) or F.scaled_dot_product_attention
        out = core(q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=self.scale)
        out = out.transpose(1, 2) if self.batch_first else out.permute(2, 0, 1, 3)
        return self._answer(self.out_proj(out.flatten(2)), self.returns)

    def _heads(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.num_heads, x.shape[-1] // self.num_heads))
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)

    def _spread(self, mask: Tensor, meaning: str, q: Tensor) -> Tensor:
        """As what is added to scores, broadcastable to batch × heads × queries × keys."""
        if meaning != "add":
            mask = mask.bool() if meaning == "drop" else ~mask.bool()
        mask = _additive(mask, q.dtype)
        if mask.ndim == 2 and mask.shape[0] == q.shape[0] and mask.shape != (q.shape[2], q.shape[2]):
            return mask[:, None, None, :]
        return mask.unsqueeze(1) if mask.ndim == 3 else mask

    def _answer(self, out: Tensor, what: Any) -> object:
        return None if what is None else out if isinstance(what, str) else tuple(self._answer(out, part) for part in what)


def _linear(old: nn.Module, rows: list[int] | None) -> nn.Linear:
    """A Linear with these rows of a Linear or Conv1D (None: all)."""
    weight: Any = old.weight
    weight = weight.t() if is_conv1d(old) else weight
    bias: Any = old.bias
    index = slice(None) if rows is None else torch.tensor(rows, device=weight.device)
    new = nn.Linear(1, 1, bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach()[index].clone(memory_format=torch.contiguous_format), requires_grad=weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach()[index].clone(), requires_grad=bias.requires_grad)
    new.out_features, new.in_features = new.weight.shape
    return new


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: do not look) as what is added to scores; finite, so that a query that may look nowhere gets numbers and not NaN."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, torch.finfo(dtype).min / 4) if mask.dtype == torch.bool else mask.to(dtype)


class Argument:
    """A forward pre-hook that changes one argument: `index` None drops it (the module then makes its own), else keeps those indices along `axis`.

    A negative axis −h says that the first axis is batch × h heads, and the indices count heads.
    """

    def __init__(self, argument: int | str, axis: int = 1, index: list[int] | None = None) -> None:
        self.argument, self.axis, self.index = argument, axis, index

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[tuple[object, ...], dict[str, object]]:
        if isinstance(self.argument, int):
            if self.argument < len(args):
                args = (*args[: self.argument], self._change(args[self.argument]), *args[self.argument + 1 :])
        elif self.argument in kwargs:
            kwargs = {**kwargs, self.argument: self._change(kwargs[self.argument])}
        return args, kwargs

    def _change(self, value: object) -> object:
        if self.index is None or not isinstance(value, Tensor):
            return None
        index = torch.tensor(self.index, device=value.device)
        if self.axis < 0:
            return value.unflatten(0, (-1, -self.axis)).index_select(1, index).flatten(0, 1)
        return value.index_select(self.axis, index)


# --- the edits -------------------------------------------------------------------------------------------------------------------------------------


def _keep(module: nn.Module, edit: dict[str, Any]) -> None:
    container = module.get_submodule(edit["path"])
    children = list(container._modules.items())
    kept = [children[i] for i in unpack(edit["index"])]
    if len(kept) > len(children):
        raise RuntimeError(f"{len(kept):,} indices to keep of {len(children):,}")
    if isinstance(container, nn.ModuleDict):
        container._modules = dict(kept)  # type: ignore[assignment]
    else:
        container._modules = {str(i): child for i, (_, child) in enumerate(kept)}  # type: ignore[assignment]


def _slice(module: nn.Module, edit: dict[str, Any]) -> None:
    index = unpack(edit["index"])
    if isinstance(edit["axis"], int):
        holder, name = parent(module, edit["path"])
        _cut_named(holder, name, edit["axis"], torch.tensor(index, dtype=torch.long))
    else:
        slice_module(module.get_submodule(edit["path"]), edit["axis"], index)


_OWN = frozenset(vars(nn.Module()))  # what every module has of its own


def _set(module: nn.Module, edit: dict[str, Any]) -> None:
    target: object = module.get_submodule(edit["path"])
    *holders, name = edit["name"].split(".")
    if any(part.startswith("__") for part in (*holders, name)) or "implementation" in name or (not holders and name in _OWN):
        raise RuntimeError(f"{edit['name']} is not an attribute that an edit may set")
    for holder in holders:
        if edit.get("own"):
            setattr(target, holder, copy.copy(getattr(target, holder)))
        target = getattr(target, holder)
    if callable(target) and not isinstance(target, nn.Module):  # a function or a class is everybody's
        raise RuntimeError(f"{edit['name']} is an attribute of a {type(target).__name__}")
    setattr(target, name, edit["value"])


def _absent(module: nn.Module, edit: dict[str, Any]) -> None:
    old, new = module.get_submodule(edit["path"]), Absent(edit["argument"], edit["returns"], edit.get("width"))
    for name, value in old.__dict__.items():  # what others read off the module (batch_first, is_causal …) stays readable
        if name not in new.__dict__ and (value is None or isinstance(value, bool | int | float | str)):
            new.__dict__[name] = value
    put(module, edit["path"], new)


def _swap(module: nn.Module, edit: dict[str, Any]) -> None:
    old = module.get_submodule(edit["path"])
    if edit["to"] == "heads" and not isinstance(old, Heads):
        put(module, edit["path"], Heads.of(old, edit))
    elif edit["to"] == "attention" and isinstance(old, nn.MultiheadAttention):  # else swapped already: nothing to do
        put(module, edit["path"], Attention.of(old))


def _bias(module: nn.Module, edit: dict[str, Any]) -> None:
    attention = module.get_submodule(edit["path"])
    if any(isinstance(h, Argument) and h.index is None and h.argument == edit["argument"] for h in attention._forward_pre_hooks.values()):
        return  # owns its bias already
    if edit.get("source"):
        if edit["source"] != f"{edit['path']}.{edit['table']}":
            attention.add_module(edit["table"], copy.deepcopy(module.get_submodule(edit["source"])))
        if hasattr(attention, f"has_{edit['table']}"):
            setattr(attention, f"has_{edit['table']}", True)
    attention.register_forward_pre_hook(Argument(edit["argument"]), with_kwargs=True)


def _select(module: nn.Module, edit: dict[str, Any]) -> None:
    hook = Argument(edit["argument"], edit["axis"], unpack(edit["index"]))
    module.get_submodule(edit["path"]).register_forward_pre_hook(hook, with_kwargs=True)


def _rows(module: nn.Module, edit: dict[str, Any]) -> None:
    index = torch.tensor(unpack(edit["index"]), dtype=torch.long)
    done: dict[int, Tensor] = {}  # a table that several modules share stays shared
    for path in edit["paths"]:
        part = module.get_submodule(path)
        for name in ("weight", "bias"):
            old = part._parameters.get(name)
            if old is None or (name == "bias" and isinstance(part, nn.Embedding)):
                continue
            axis = 1 if name == "weight" and is_conv1d(part) else 0
            if id(old) not in done:
                done[id(old)] = _cut(old, axis, index)
                done[id(done[id(old)])] = done[id(old)]
            part._parameters[name] = done[id(old)]  # type: ignore[assignment]
        for name in ("num_embeddings", "out_features", "nf"):
            if isinstance(getattr(part, name, None), int) and not (name == "nf" and not is_conv1d(part)):
                setattr(part, name, len(index))
    for path, axis in edit.get("tensors", []):
        holder, name = parent(module, path)
        old = holder._parameters.get(name, holder._buffers.get(name))
        if old is not None and id(old) in done:
            holder._parameters[name] = done[id(old)]  # type: ignore[assignment]
        else:
            _cut_named(holder, name, axis, index)


EDITS: dict[str, Callable[[nn.Module, dict[str, object]], None]] = {
    "keep": _keep, "slice": _slice, "set": _set, "absent": _absent, "swap": _swap, "bias": _bias, "select": _select, "rows": _rows,
}  # fmt: skip
