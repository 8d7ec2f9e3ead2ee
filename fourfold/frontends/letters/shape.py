"""Letters of operators that move elements and compute nothing: views, reshapes, permutations, slices, concatenations."""

from __future__ import annotations

from collections.abc import Iterable

from fourfold.frontends.letters.op import NONE, Dim, Letters, OpLetters, flat
from fourfold.letters import ShardingRule, factors

RESHAPES = frozenset("view reshape _unsafe_view flatten unflatten squeeze unsqueeze ravel view_as reshape_as _reshape_alias squeeze_copy "
                     "unsqueeze_copy view_copy".split())


def reshape(op: OpLetters) -> ShardingRule | None:
    if op.op not in RESHAPES or not op.operands:
        return None
    x = op.operands[0]
    before, after = factors(op, x.shape, op.results[0])
    inputs = {x.position: before} | {o.position: (NONE,) * o.ndim for o in op.operands[1:]}
    apart = set(flat(before)) ^ set(flat(after))
    return op.rule(inputs, [after], fixed=apart, linear=[{x.position}], unread=[o.position for o in op.operands[1:]])


def permute(op: OpLetters) -> ShardingRule | None:
    if len(op.operands) != 1:
        return None
    x = op.operands[0]
    n = x.ndim
    if op.op in ("t", "numpy_T", "adjoint", "mT", "mH", "matrix_H"):
        order = list(range(n - 2)) + [n - 1, n - 2] if n > 1 and op.op != "numpy_T" else list(range(n))[::-1]
    elif op.op in ("transpose", "swapaxes", "transpose_copy"):
        a, b = (op.integer(name) % max(n, 1) for name in ("dim0", "dim1"))
        order = [b if d == a else a if d == b else d for d in range(n)]
    elif op.op in ("permute", "permute_copy"):
        order = [d % n for d in op.numbers("dims")]
    elif op.op == "movedim":
        source, target = ([d % n for d in op.numbers(name)] for name in ("source", "destination"))
        rest = iter([d for d in range(n) if d not in source])
        order = [source[target.index(d)] if d in target else next(rest) for d in range(n)]
    else:
        return None
    letters = op.named(x.shape)
    return op.rule({x.position: letters}, [tuple(letters[d] for d in order)], linear=[{x.position}])


def expand(op: OpLetters) -> ShardingRule | None:
    """New and repeated dimensions are letters of the result alone: each device repeats what it needs."""
    if op.op == "broadcast_tensors":
        letters = op.named(op.results[0])
        inputs = {o.position: op.broadcast(o.shape, letters, op.results[0]) for o in op.operands}
        return op.rule(inputs, [letters] * len(op.results))
    if op.op not in ("expand", "expand_as", "expand_copy", "broadcast_to") or not op.operands:
        return None
    x, result = op.operands[0], op.results[0]
    letters = op.named(result)
    inputs = {x.position: op.broadcast(x.shape, letters, result)} | {o.position: (NONE,) * o.ndim for o in op.operands[1:]}
    return op.rule(inputs, [letters], linear=[{x.position}], unread=[o.position for o in op.operands[1:]])


def _along(op: OpLetters, dims: Iterable[int], linear: bool = True) -> ShardingRule:
    """All dimensions pass but `dims`, which stay whole (and may differ in size), from the first operand to every result."""
    x = op.operands[0]
    held = {d % max(x.ndim, 1) for d in dims}
    letters = op.named(x.shape)
    outputs: list[Letters] = []
    fixed = set(flat(letters[d] for d in held if d < x.ndim))
    for shape in op.results:
        own = tuple(op.fresh(n) if d in held and n != x.shape[d] else letters[d] for d, n in enumerate(shape))
        fixed |= set(flat(own[d] for d in held))
        outputs.append(own)
    return op.rule({x.position: letters}, outputs, fixed, linear=[{x.position}] if linear else [])


def passing(op: OpLetters) -> ShardingRule | None:
    """Operators that work along some dimensions of one tensor."""
    x = op.operands[0] if op.operands else None
    if x is None:
        return None
    match op.op:
        case "slice" | "slice_copy" | "narrow" | "flip" | "roll" | "split" | "split_with_sizes" | "chunk" | "unsafe_split" | "unsafe_chunk":
            name = "dims" if op.op in ("flip", "roll") else "dim"
            dims = op.numbers(name) or ([0] if name == "dim" else range(x.ndim))
            return _along(op, [d for d in dims if op.op not in ("slice", "slice_copy") or op.results[0][d] != x.shape[d]])
        case "diff":
            return None if len(op.operands) > 1 else _along(op, [op.integer("dim", -1)])
        case "tril" | "triu":
            return _along(op, [x.ndim - 2, x.ndim - 1])
        case "cumsum" | "cumprod" | "logcumsumexp" | "cummax" | "cummin":
            return _along(op, [op.integer("dim")], op.op == "cumsum")
        case "constant_pad_nd" | "pad":
            dims = [d for d in range(x.ndim) if x.shape[d] != op.results[0][d]]
            return _along(op, dims, op.args.get("value") in (None, 0, 0.0))
        case "sort" | "topk" | "argsort" | "kthvalue" | "mode":
            return _along(op, [op.integer("dim", -1)], False)
    return None


def selected(op: OpLetters) -> ShardingRule | None:
    """One dimension of the operand is gone from the result (select, unbind), or comes in (their gradients)."""
    x = op.operands[0] if op.operands else None
    if x is None:
        return None
    if op.op in ("select", "select_copy", "unbind"):
        d = op.integer("dim") % x.ndim
        letters = op.named(x.shape)
        rest = letters[:d] + letters[d + 1 :]
        return op.rule({x.position: letters}, [rest] * len(op.results), letters[d], linear=[{x.position}])
    if op.op in ("select_backward", "slice_backward"):
        result = op.results[0]
        d = op.integer("dim") % len(result)
        letters = op.named(result)
        if op.op == "select_backward":
            return op.rule({x.position: letters[:d] + letters[d + 1 :]}, [letters], letters[d], linear=[{x.position}])
        own = letters[d] if x.shape[d] == result[d] else op.fresh(x.shape[d])
        return op.rule({x.position: (*letters[:d], own, *letters[d + 1 :])}, [letters], {*own, *letters[d]}, linear=[{x.position}])
    if op.op in ("select_scatter", "slice_scatter"):
        source, d = op.needed("src"), op.integer("dim") % x.ndim
        letters = op.named(x.shape)
        own: Dim = NONE if op.op == "select_scatter" else op.fresh(source.shape[d])
        mine = letters[:d] + ((own,) if op.op == "slice_scatter" else ()) + letters[d + 1 :]
        return op.rule({x.position: letters, source.position: mine}, [letters], {*own, *letters[d]}, linear=[{x.position, source.position}])
    return None


def joined(op: OpLetters) -> ShardingRule | None:
    """cat and stack: what they join along stays whole."""
    result = op.results[0] if op.results else ()
    if op.op not in ("cat", "stack", "concat", "concatenate") or not result:
        return None
    d = op.integer("dim") % len(result)
    letters = op.named(result)
    fixed = set(letters[d])
    inputs: dict[int, Letters] = {}
    for operand in op.operands:
        if op.op == "stack":
            inputs[operand.position] = letters[:d] + letters[d + 1 :]
        elif operand.ndim == len(result):
            own = op.fresh(operand.shape[d])
            fixed |= set(own)
            inputs[operand.position] = (*letters[:d], own, *letters[d + 1 :])
    return op.rule(inputs, [letters], fixed, linear=[{o.position for o in op.operands}])


def repeat(op: OpLetters) -> ShardingRule | None:
    """Dimensions that are not repeated pass."""
    if op.op not in ("repeat", "tile"):
        return None
    x, result = op.operands[0], op.results[0]
    letters, fixed, new = op.named(result), set[str](), len(result) - len(op.operands[0].shape)
    mine: list[Dim] = []
    for d, n in enumerate(x.shape):
        same = result[new + d] == n
        mine.append(letters[new + d] if same else op.fresh(n))
        fixed |= set() if same else {*mine[-1], *letters[new + d]}
    return op.rule({x.position: tuple(mine)}, [letters], fixed, linear=[{x.position}])


__all__ = ["expand", "joined", "passing", "permute", "repeat", "reshape", "selected"]
