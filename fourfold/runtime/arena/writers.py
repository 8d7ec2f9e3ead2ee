"""How an op writes its results into tensors that are there already: true `out=` overloads of ATen, a few forms of our own, and the op run and copied.

Many `out=` overloads are generated: they run the op, and copy. Which are true is not listed anywhere, so every way is tried where it is used, and
what it allocates is measured (`dry_run.py`); the one that allocates least, and answers bit for bit as the op does, is taken.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fourfold.engines.call import Call, Outs

OUT, OWN, COPY = "out", "own", "copy"                                   # ways, in the order in which they are preferred
Arguments = Sequence[object]
Named = Mapping[str, object]
Writer = Callable[[Arguments, Named, Sequence[Tensor]], None]
"""Called with (args, kwargs, tensors to be filled, one for each result that the capture foresaw)."""

_aten = torch.ops.aten
_MOVING = ("running_mean", "running_var")                               # statistics that batch normalisation changes as it goes


def writers(call: Call) -> dict[str, Writer]:
    """All ways in which the results of `call` can be written, by name. COPY is always there."""
    found: dict[str, Writer] = {}
    if (out := _overload(call.target)) is not None and _flat(call.outs):
        found[OUT] = _through(*out)
    if (own := _OWN.get(_key(call.target))) is not None and _flat(call.outs):
        found[OWN] = own
    found[COPY] = functools.partial(_copied, call.target, call.outs)
    return found


def prepared(call: Call, way: str, args: Sequence[Any], kwargs: Mapping[str, object], outs: Sequence[Tensor]) -> Callable[[], object]:
    """One call that writes the results of `call` in a way of `writers`, for tensors that stay where they are: all that can be done before is done."""
    op, out = getattr(call.target, "_op", call.target), outs[0] if len(outs) == 1 else None
    if way == OUT and (found := _overload(call.target)) is not None:
        overload, names = found
        return functools.partial(overload._op, *args, **kwargs, **dict(zip(names, outs, strict=True)))
    dense = all(isinstance(part, Tensor) and part.is_contiguous() for part in args[:2])
    if way == OWN and dense and (product := _PRODUCTS.get(_key(call.target))) is not None:
        return product(outs, *args, **kwargs)
    if way == COPY and out is not None and isinstance(call.outs, int):
        return lambda: out.copy_(op(*args, **kwargs))
    return functools.partial(writers(call)[way], args, kwargs, outs)


def draws(call: Call) -> bool:
    """Whether a call draws random numbers from torch's generator. A dropout of probability 0, inside of an attention say, draws none."""
    if torch.Tag.nondeterministic_seeded not in getattr(call.target, "tags", ()):
        return False
    for k, argument in enumerate(call.target._schema.arguments):
        if argument.name == "dropout_p":
            given = call.args[k] if k < len(call.args) else call.kwargs.get(argument.name, argument.default_value)
            return not isinstance(given, int | float) or given > 0
    return True


def key_of(seed: int, node: int) -> int:
    """The seed of a random node: its own, so that the order of a plan does not change what is drawn, and a node that runs again draws the same."""
    return zlib.crc32(f"{seed} {node}".encode())


def still(target: object, args: Arguments, kwargs: Named) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with which a node runs once more and changes nothing: what it would write to (moving statistics) are copies."""
    args, kwargs = tuple(args), dict(kwargs)
    schema = getattr(target, "_schema", None)
    for k, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name not in _MOVING and not (argument.alias_info is not None and argument.alias_info.is_write):
            continue
        if k < len(args):
            args = (*args[:k], _again(args[k]), *args[k + 1:])
        elif argument.name in kwargs:
            kwargs[argument.name] = _again(kwargs[argument.name])
    return args, kwargs


def unset(target: object) -> bool:
    """Whether what an op answers is memory that nobody has set."""
    return _key(target) in _UNSET


def changes(target: object) -> bool:
    """Whether an op may write to one of its arguments."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(a.name in _MOVING or a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def flat(outs: Outs, made: object) -> list[Any]:
    """What a call made, a leaf for each of `values(outs)`."""
    if outs is None:
        return []
    if isinstance(outs, list):
        assert isinstance(made, Sequence)
        return [leaf for part, given in zip(outs, made, strict=True) for leaf in flat(part, given)]
    return [made]


def _again(part: object) -> object:
    return part.clone() if isinstance(part, Tensor) else part


def _flat(outs: Outs) -> bool:
    """Whether every result is a tensor of its own: one, or a row of them with none left out."""
    return isinstance(outs, int) or isinstance(outs, list) and bool(outs) and all(isinstance(part, int) for part in outs)


def _key(target: object) -> str:
    return str(target).removeprefix("aten.") if getattr(target, "namespace", "") == "aten" else ""


@functools.cache
def _overload(target: object) -> tuple[OpOverload, tuple[str, ...]] | None:
    """(overload, names of its results) of the same op that takes the same arguments and tensors to write to; None where there is none."""
    if not isinstance(target, OpOverload):
        return None
    packet = target._overloadpacket
    asked = [(a.name, str(a.type)) for a in target._schema.arguments]
    for name in packet.overloads():
        other = getattr(packet, name)
        filled = [a for a in other._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if not filled or not all(a.kwarg_only and str(a.type) == "Tensor" for a in filled) or len(filled) != len(target._schema.returns):
            continue
        names = {a.name for a in filled}
        if [(a.name, str(a.type)) for a in other._schema.arguments if a.name not in names] == asked:
            return other, tuple(a.name for a in filled)
    return None


def _through(overload: OpOverload, names: tuple[str, ...]) -> Writer:
    if len(names) == 1:
        name = names[0]

        def one(args: Arguments, kwargs: Named, outs: Sequence[Tensor]) -> None:
            overload(*args, **kwargs, **{name: outs[0]})

        return one

    def several(args: Arguments, kwargs: Named, outs: Sequence[Tensor]) -> None:
        overload(*args, **kwargs, **dict(zip(names, outs, strict=True)))

    return several


def _copied(target: Callable[..., object], structure: Outs, args: Arguments, kwargs: Named, outs: Sequence[Tensor]) -> None:
    for out, made in zip(outs, flat(structure, target(*args, **kwargs)), strict=True):
        assert isinstance(made, Tensor)
        out.copy_(made)


# ---- forms of our own, each what ATen does for the op but for where the result stands: they take the tensors to be filled, then its arguments ------


def _form(fill: Callable[..., object]) -> Writer:
    def write(args: Arguments, kwargs: Named, outs: Sequence[Tensor]) -> None:
        fill(outs, *args, **kwargs)

    return write


def _linear(outs: Sequence[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Callable[[], object]:
    rows, out = x.reshape(-1, x.shape[-1]), outs[0].view(-1, weight.shape[0])
    if bias is None:
        return functools.partial(torch.mm, rows, weight.t(), out=out)
    return functools.partial(torch.addmm, bias, rows, weight.t(), out=out)


def _matmul(outs: Sequence[Tensor], a: Tensor, b: Tensor) -> Callable[[], object]:
    if a.ndim > 2 and a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2]:
        many = (t.reshape(-1, *t.shape[-2:]) for t in (a, b))
        return functools.partial(torch.bmm, *many, out=outs[0].view(-1, *outs[0].shape[-2:]))
    if b.ndim == 2 and a.ndim > 1:
        return functools.partial(torch.mm, a.reshape(-1, a.shape[-1]), b, out=outs[0].view(-1, b.shape[-1]))
    return functools.partial(torch.matmul, a, b, out=outs[0])


_PRODUCTS = {"linear.default": _linear, "matmul.default": _matmul}      # of tensors whose rows may be taken together beforehand


def _product(make: Callable[..., Callable[[], object]]) -> Writer:
    return _form(lambda *args, **kwargs: make(*args, **kwargs)())


def _relu(outs: Sequence[Tensor], x: Tensor) -> None:
    torch.clamp_min(x, 0, out=outs[0])


def _embedding(outs: Sequence[Tensor], weight: Tensor, index: Tensor, *rest: object, **named: object) -> None:
    torch.index_select(weight, 0, index.reshape(-1), out=outs[0].view(-1, weight.shape[1]))


def _copy(outs: Sequence[Tensor], x: Tensor, *rest: object, **named: object) -> None:
    outs[0].copy_(x)


def _reshape(outs: Sequence[Tensor], x: Tensor, *rest: object, **named: object) -> None:
    outs[0].view(x.shape).copy_(x)


def _set(value: float) -> Writer:
    """Filled with a value."""
    return _form(lambda outs, *args, **named: outs[0].fill_(value))


def _filled(at: int) -> Writer:
    """Filled with the argument at a position."""
    return _form(lambda outs, *args, **named: outs[0].fill_(args[at]))


def _masked_fill(outs: Sequence[Tensor], x: Tensor, mask: Tensor, value: Tensor) -> None:
    outs[0].copy_(x)
    outs[0].masked_fill_(mask, value)


def _slice_backward(outs: Sequence[Tensor], grad: Tensor, sizes: Sequence[int], axis: int, start: int, end: int, step: int) -> None:
    outs[0].zero_()
    _aten.slice.Tensor(outs[0], axis, start, end, step).copy_(grad)


def _select_backward(outs: Sequence[Tensor], grad: Tensor, sizes: Sequence[int], axis: int, index: int) -> None:
    outs[0].zero_()
    outs[0].select(axis, index).copy_(grad)


def _pad(outs: Sequence[Tensor], x: Tensor, pad: Sequence[int], value: float = 0.0) -> None:
    inside = outs[0].fill_(value)
    for k in range(len(pad) // 2):
        before, after = pad[2 * k: 2 * k + 2]
        if before < 0 or after < 0:
            raise ValueError("a pad that cuts")
        inside = inside.narrow(x.ndim - 1 - k, before, x.shape[x.ndim - 1 - k])
    inside.copy_(x)


def _index_put(outs: Sequence[Tensor], x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> None:
    outs[0].copy_(x)
    _aten.index_put_(outs[0], indices, values, accumulate)


def _inside(name: str) -> Writer:
    """The op's form in place, on a copy of its first argument."""
    change = getattr(Tensor, name)
    return _form(lambda outs, x, *args, **named: change(outs[0].copy_(x), *args, **named))


def _bernoulli(outs: Sequence[Tensor], x: Tensor, p: float | None = None, **named: object) -> None:
    outs[0].bernoulli_(x) if p is None else outs[0].bernoulli_(p)


def _nothing(outs: Sequence[Tensor], *args: object, **named: object) -> None:
    """Memory that nobody has set holds whatever it holds."""


_UNSET = {
    "empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default", "new_empty_strided.default",
    "empty_permuted.default",
}  # fmt: skip
_OWN: dict[str, Writer] = dict.fromkeys(_UNSET, _form(_nothing)) | {
    "linear.default": _product(_linear), "matmul.default": _product(_matmul), "relu.default": _form(_relu), "embedding.default": _form(_embedding),
    "clone.default": _form(_copy), "_to_copy.default": _form(_copy), "contiguous.default": _form(_copy), "to.dtype": _form(_copy),
    "to.device": _form(_copy), "to.dtype_layout": _form(_copy),
    "lift_fresh_copy.default": _form(_copy), "alias_copy.default": _form(_copy), "dropout.default": _form(_copy), "reshape.default": _form(_reshape),
    "_unsafe_view.default": _form(_reshape), "flatten.using_ints": _form(_reshape),
    "zeros.default": _set(0), "zeros_like.default": _set(0), "new_zeros.default": _set(0),
    "ones.default": _set(1), "ones_like.default": _set(1), "new_ones.default": _set(1),
    "full.default": _filled(1), "full_like.default": _filled(1), "new_full.default": _filled(2), "scalar_tensor.default": _filled(0),
    "masked_fill.Scalar": _form(_masked_fill), "masked_fill.Tensor": _form(_masked_fill), "slice_backward.default": _form(_slice_backward),
    "mul.Tensor": _inside("mul_"), "div.Tensor": _inside("div_"), "add.Tensor": _inside("add_"), "sub.Tensor": _inside("sub_"),
    "mul.Scalar": _inside("mul_"), "div.Scalar": _inside("div_"), "add.Scalar": _inside("add_"), "sub.Scalar": _inside("sub_"),
    "bernoulli.default": _form(_bernoulli), "bernoulli.p": _form(_bernoulli), "select_backward.default": _form(_select_backward),
    "constant_pad_nd.default": _form(_pad), "index_put.default": _form(_index_put),
}  # fmt: skip
