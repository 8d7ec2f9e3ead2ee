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

from fourfold.engines.call import Call

OUT, OWN, COPY = "out", "own", "copy"                                   # ways, in the order in which they are preferred
Writer = Callable[[Sequence[Any], Mapping[str, Any], Sequence[Tensor]], None]
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


def prepared(call: Call, way: str, args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> Callable[[], object]:
    """One call that writes the results of `call` in a way of `writers`, for tensors that stay where they are: all that can be done before is done."""
    op, out = getattr(call.target, "_op", call.target), outs[0] if len(outs) == 1 else None
    if way == OUT and (found := _overload(call.target)) is not None:
        overload, names = found
        return functools.partial(overload._op, *args, **kwargs, **dict(zip(names, outs, strict=True)))
    if way == OWN and (product := _PRODUCTS.get(_key(call.target))) is not None and all(t.is_contiguous() for t in args[:2]):
        return product(args, kwargs, outs)
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


def still(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
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


def unset(target: Any) -> bool:
    """Whether what an op answers is memory that nobody has set."""
    return _key(target) in _UNSET


def changes(target: Any) -> bool:
    """Whether an op may write to one of its arguments."""
    schema = getattr(target, "_schema", None)
    return schema is not None and any(a.name in _MOVING or a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def flat(outs: Any, made: Any) -> list[Any]:
    """What a call made, a leaf for each of `values(outs)`."""
    if outs is None:
        return []
    if isinstance(outs, list):
        return [leaf for part, given in zip(outs, made, strict=True) for leaf in flat(part, given)]
    return [made]


def _again(part: Any) -> Any:
    return part.clone() if isinstance(part, Tensor) else part


def _flat(outs: Any) -> bool:
    """Whether every result is a tensor of its own: one, or a row of them with none left out."""
    return isinstance(outs, int) or isinstance(outs, list) and bool(outs) and all(isinstance(part, int) for part in outs)


def _key(target: Any) -> str:
    return str(target).removeprefix("aten.") if getattr(target, "namespace", "") == "aten" else ""


@functools.cache
def _overload(target: Any) -> tuple[Any, tuple[str, ...]] | None:
    """(overload, names of its results) of the same op that takes the same arguments and tensors to write to; None where there is none."""
    packet = getattr(target, "_overloadpacket", None)
    if packet is None:
        return None
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


def _through(overload: Any, names: tuple[str, ...]) -> Writer:
    if len(names) == 1:
        name = names[0]

        def one(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
            overload(*args, **kwargs, **{name: outs[0]})

        return one

    def several(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
        overload(*args, **kwargs, **dict(zip(names, outs, strict=True)))

    return several


def _copied(target: Any, structure: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    for out, made in zip(outs, flat(structure, target(*args, **kwargs)), strict=True):
        out.copy_(made)


# ---- forms of our own, each what ATen does for the op but for where the result stands --------------------------------------------------------------


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> Callable[[], object]:
    given: tuple[Any, ...] = (*args, *kwargs.values(), None)
    x, weight, bias = given[:3]
    rows, out = x.reshape(-1, x.shape[-1]), outs[0].view(-1, weight.shape[0])
    if bias is None:
        return functools.partial(torch.mm, rows, weight.t(), out=out)
    return functools.partial(torch.addmm, bias, rows, weight.t(), out=out)


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> Callable[[], object]:
    a, b = args
    if a.ndim > 2 and a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2]:
        many = (t.reshape(-1, *t.shape[-2:]) for t in (a, b))
        return functools.partial(torch.bmm, *many, out=outs[0].view(-1, *outs[0].shape[-2:]))
    if b.ndim == 2 and a.ndim > 1:
        return functools.partial(torch.mm, a.reshape(-1, a.shape[-1]), b, out=outs[0].view(-1, b.shape[-1]))
    return functools.partial(torch.matmul, a, b, out=outs[0])


_PRODUCTS = {"linear.default": _linear, "matmul.default": _matmul}      # of tensors whose rows may be taken together beforehand


def _product(make: Callable[..., Callable[[], object]]) -> Writer:
    def write(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
        make(args, kwargs, outs)()

    return write


def _relu(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    torch.clamp_min(args[0], 0, out=outs[0])


def _embedding(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    weight, index = args[:2]
    torch.index_select(weight, 0, index.reshape(-1), out=outs[0].view(-1, weight.shape[1]))


def _copy(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    outs[0].copy_(args[0])


def _reshape(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    outs[0].view(args[0].shape).copy_(args[0])


def _filled(at: int | None, value: Any = None) -> Writer:
    """Filled with the argument at a position, or with a value."""

    def fill(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
        outs[0].fill_(value if at is None else args[at])

    return fill


def _masked_fill(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    outs[0].copy_(args[0])
    outs[0].masked_fill_(args[1], args[2])


def _slice_backward(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    grad, _, axis, start, end, step = args
    outs[0].zero_()
    _aten.slice.Tensor(outs[0], axis, start, end, step).copy_(grad)


def _select_backward(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    grad, _, axis, index = args
    outs[0].zero_()
    outs[0].select(axis, index).copy_(grad)


def _pad(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    given: tuple[Any, ...] = (*args, *kwargs.values(), 0.0)
    x, pad, value = given[:3]
    inside = outs[0].fill_(value)
    for k in range(len(pad) // 2):
        before, after = pad[2 * k: 2 * k + 2]
        if before < 0 or after < 0:
            raise ValueError("a pad that cuts")
        inside = inside.narrow(x.ndim - 1 - k, before, x.shape[x.ndim - 1 - k])
    inside.copy_(x)


def _index_put(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    outs[0].copy_(args[0])
    outs[0].index_put_(*args[1:], **kwargs)


def _inside(name: str) -> Writer:
    """The op's form in place, on a copy of its first argument."""
    change = getattr(Tensor, name)

    def write(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
        change(outs[0].copy_(args[0]), *args[1:], **kwargs)

    return write


def _bernoulli(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    outs[0].bernoulli_(args[1] if len(args) > 1 else args[0])


def _nothing(args: Sequence[Any], kwargs: Mapping[str, Any], outs: Sequence[Tensor]) -> None:
    """Memory that nobody has set holds whatever it holds."""


_UNSET = {
    "empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default", "new_empty_strided.default",
    "empty_permuted.default",
}  # fmt: skip
_OWN: dict[str, Writer] = dict.fromkeys(_UNSET, _nothing) | {
    "linear.default": _product(_linear), "matmul.default": _product(_matmul), "relu.default": _relu, "embedding.default": _embedding,
    "clone.default": _copy, "_to_copy.default": _copy, "contiguous.default": _copy, "to.dtype": _copy, "to.device": _copy, "to.dtype_layout": _copy,
    "lift_fresh_copy.default": _copy, "alias_copy.default": _copy, "dropout.default": _copy, "reshape.default": _reshape,
    "_unsafe_view.default": _reshape, "flatten.using_ints": _reshape,
    "zeros.default": _filled(None, 0), "zeros_like.default": _filled(None, 0), "new_zeros.default": _filled(None, 0),
    "ones.default": _filled(None, 1), "ones_like.default": _filled(None, 1), "new_ones.default": _filled(None, 1),
    "full.default": _filled(1), "full_like.default": _filled(1), "new_full.default": _filled(2), "scalar_tensor.default": _filled(0),
    "masked_fill.Scalar": _masked_fill, "masked_fill.Tensor": _masked_fill, "slice_backward.default": _slice_backward,
    "mul.Tensor": _inside("mul_"), "div.Tensor": _inside("div_"), "add.Tensor": _inside("add_"), "sub.Tensor": _inside("sub_"),
    "mul.Scalar": _inside("mul_"), "div.Scalar": _inside("div_"), "add.Scalar": _inside("add_"), "sub.Scalar": _inside("sub_"),
    "bernoulli.default": _bernoulli, "bernoulli.p": _bernoulli, "select_backward.default": _select_backward, "constant_pad_nd.default": _pad,
    "index_put.default": _index_put,
}  # fmt: skip
