"""One device's part of a call: the same operator on its pieces, with the sizes, groups and indices of the pieces in place of the whole's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, fx

from fourfold.frontends.letters.op import Operand, OpLetters
from fourfold.frontends.letters.shape import RESHAPES
from fourfold.letters import Piece, ShardingRule

SIZES = {"expand": "size", "expand_copy": "size", "broadcast_to": "size", "full": "size", "zeros": "size", "ones": "size", "empty": "size",
         "rand": "size", "randn": "size", "randint": "size", "new_zeros": "size", "new_ones": "size", "new_full": "size", "new_empty": "size",
         "select_backward": "input_sizes", "slice_backward": "input_sizes", "upsample_nearest2d_backward": "input_size",
         "upsample_bilinear2d_backward": "input_size", "upsample_nearest1d_backward": "input_size", "upsample_nearest3d_backward": "input_size"}


def run_piece(node: fx.Node, call: OpLetters, rule: ShardingRule, operands: Sequence[Tensor], piece: Piece) -> tuple[Tensor, ...]:
    """The results of `node` on one device's pieces of its `operands`, in their order."""
    args = {name: _filled(value, operands) for name, value in call.args.items()}
    op, target = call.op, cast(Callable[..., object], node.target)
    if any(piece.offsets[letter] >= rule.size[letter] for letter in piece.offsets):    # nothing of a letter is left for this device: it adds nothing
        made = node.meta["val"]
        leaves = [one for one in (made if isinstance(made, tuple | list) else [made]) if isinstance(one, Tensor)]
        least = {"max": -torch.inf, "min": torch.inf}
        empty = [torch.full(shape, least.get(rule.extreme.get(o, ""), 0.0) if one.is_floating_point() else 0, dtype=one.dtype)
                 for o, (shape, one) in enumerate(zip(piece.shapes, leaves, strict=True))]
        for i in rule.addends:                                          # but what it holds of a bias, that is added
            sizes = dict(zip(rule.inputs[i][-operands[i].ndim:], operands[i].shape, strict=True)) if operands[i].ndim else {}
            shape = [sizes.get(dim, 1) if dim else 1 for dim in rule.outputs[0]]
            empty[0] = empty[0] + operands[i].reshape(shape)
        return tuple(empty)
    if op == "broadcast_tensors":
        return tuple(one.expand(shape) for one, shape in zip(operands, piece.shapes, strict=True))
    if op in RESHAPES:
        return (operands[0].reshape(piece.shapes[0]),)
    if op in SIZES and SIZES[op] in args:
        args[SIZES[op]] = list(piece.shapes[0])
    if op in ("embedding", "embedding_dense_backward") and piece.offsets.keys() & rule.indexed:
        return _rows(op, args, rule, piece, target)
    if op == "arange":
        return (_arange(call, rule, piece),)
    if "groups" in args or op == "_convolution":
        _grouped(op, args, rule, piece)
    if op == "native_group_norm":
        args["N"] = cast(Tensor, args["input"]).shape[0]
    made = _called(target, args)
    results = tuple(one for one in made if one is not None) if isinstance(made, tuple | list) else (cast(Tensor, made),)
    if "batch_norm" in op:                                              # a kernel that keeps no statistics answers with less than it announced
        results = tuple(one if one.numel() else one.new_zeros(shape) for one, shape in zip(results, piece.shapes, strict=True))
    return tuple(one * piece.share if o in rule.means else one for o, one in enumerate(results))


def _filled(value: object, operands: Sequence[Tensor]) -> object:
    if isinstance(value, Operand):
        return operands[value.position]
    return [_filled(part, operands) for part in value] if isinstance(value, list | tuple) else value


def _called(target: Callable[..., object], args: Mapping[str, object]) -> object:
    given, named = _sorted(target, args)
    return target(*given, **named)


def _sorted(target: object, args: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
    schema = getattr(target, "_schema", None)
    only = {a.name for a in schema.arguments if a.kwarg_only} if schema is not None else set[str]()
    return [v for name, v in args.items() if name not in only], {name: v for name, v in args.items() if name in only}


def arguments_of(node: fx.Node, call: OpLetters, operands: Sequence[Tensor]) -> tuple[list[object], dict[str, object]]:
    """(by position, by name) what `node` is called with where its operands are these."""
    return _sorted(node.target, {name: _filled(value, operands) for name, value in call.args.items()})


def _rows(op: str, args: dict[str, object], rule: ShardingRule, piece: Piece, target: Callable[..., object]) -> tuple[Tensor, ...]:
    """Of a table split by rows each device looks up what it holds; other places give zeros, or add nothing to the gradient."""
    (letter,) = rule.indexed
    first = piece.offsets[letter]
    indices = cast(Tensor, args["indices"])
    if op == "embedding":
        weight = cast(Tensor, args["weight"])
        mine = (indices >= first) & (indices < first + weight.shape[0])
        if not weight.shape[0]:
            return (weight.new_zeros((*indices.shape, weight.shape[1])),)
        return (weight[torch.where(mine, indices - first, 0)] * mine[..., None],)
    rows, gradient = piece.shapes[0][0], cast(Tensor, args["grad_output"])
    mine = (indices >= first) & (indices < first + rows)
    padding = cast(int, args["padding_idx"])
    if padding >= 0:
        mine &= indices != padding
    made = gradient.new_zeros(piece.shapes[0])
    return (made.index_put((torch.where(mine, indices - first, 0),), gradient * mine[..., None], accumulate=True) if rows else made,)


def _arange(call: OpLetters, rule: ShardingRule, piece: Piece) -> Tensor:
    start, step = (call.args.get(name) if name in call.args else default for name, default in (("start", 0), ("step", 1)))
    first = next((piece.offsets.get(letter, 0) for dim in rule.outputs[0] for letter in dim), 0)
    count = torch.arange(first, first + piece.shapes[0][0], dtype=cast("torch.dtype | None", call.args.get("dtype")))
    return count * cast(int, step if step is not None else 1) + cast(int, start or 0)


def _grouped(op: str, args: dict[str, object], rule: ShardingRule, piece: Piece) -> None:
    """Groups of a convolution, and the bias's size for its gradient, as the device has them."""
    groups = cast(int, args["groups"])
    if groups > 1:
        at = 0 if op != "convolution_backward" else 1
        channels = rule.inputs[at][-len(cast(Tensor, args["weight"]).shape) + 1]
        args["groups"] = groups // piece.parts.get(channels[0], 1)      # the group is the major letter of the channels
    if op == "convolution_backward" and args.get("bias_sizes") is not None:
        args["bias_sizes"] = [cast(Tensor, args["grad_output"]).shape[1]]


__all__ = ["arguments_of", "run_piece"]
