"""Letters of operators that work element by element, or make tensors of nothing: every dimension of the result is a letter, operands broadcast."""

from __future__ import annotations

from fourfold.frontends.letters.op import NONE, Letters, OpLetters, is_pointwise
from fourfold.letters import ShardingRule

POINTWISE = frozenset(
    """add sub mul div clone _to_copy to contiguous alias detach lift_fresh_copy where masked_fill clamp clamp_min clamp_max dropout native_dropout
    native_dropout_backward gelu gelu_backward silu silu_backward threshold_backward tanh_backward sigmoid_backward hardtanh_backward hardswish
    hardswish_backward hardsigmoid_backward elu_backward leaky_relu_backward full_like zeros_like ones_like empty_like rand_like randn_like
    randint_like bernoulli lerp addcmul addcdiv pow fill convert_element_type and or xor not bitwise_and relu copy prelu_kernel _prelu_kernel
    softplus_backward mish_backward log_sigmoid_backward logit_backward fake_quantize dequantize nan_to_num polar complex
    type_as floor_divide alias_copy detach_copy lift_fresh ceil floor rsub logical_and logical_or logical_not masked_fill maximum minimum""".split()
)
UNREAD = frozenset("full_like zeros_like ones_like empty_like rand_like randn_like randint_like".split())
SCALED = frozenset("clone _to_copy to contiguous alias detach lift_fresh_copy neg convert_element_type positive alias_copy detach_copy".split())
MADE = frozenset("full zeros ones empty rand randn randint scalar_tensor new_zeros new_ones new_full new_empty".split())


def elementwise(op: OpLetters) -> ShardingRule | None:
    """Operands broadcast against the result; further results (a dropout's mask) are laid out as the first."""
    if not op.results or op.op not in POINTWISE and not is_pointwise(op):
        return None
    result = max(op.results, key=len)
    if any(shape not in (result, ()) for shape in op.results):
        return None
    letters = op.named(result)
    inputs: dict[int, Letters] = {}
    for operand in op.operands:
        if op.op == "type_as" and operand.position:
            inputs[operand.position] = (NONE,) * operand.ndim
            continue
        if operand.ndim > len(result) or any(n not in (1, m) for n, m in zip(operand.shape[::-1], result[::-1], strict=False)):
            return None
        inputs[operand.position] = op.broadcast(operand.shape, letters, result)
    unread = [o.position for o in op.operands if op.op in UNREAD or op.op == "type_as" and o.position]
    return op.rule(inputs, [letters if shape else () for shape in op.results], linear=_linear(op), unread=unread)


def _linear(op: OpLetters) -> list[set[int]]:
    """Sets of operands in which the operator is linear together."""
    if any(not o.floating for o in op.operands) and op.op not in ("where", "masked_fill", "native_dropout_backward"):
        return []
    every = {o.position for o in op.operands}
    if op.op in SCALED:
        return [every]
    if op.op in ("add", "sub"):
        return [every] if op.tensor("other") is not None else []
    if op.op == "mul":
        return [{p} for p in sorted(every)]
    if op.op == "div" and op.args.get("rounding_mode") is None:
        return [{op.needed("self").position}]
    if op.op == "where":
        sides = [op.tensor("self"), op.tensor("other")]
        return [{o.position for o in sides if o is not None}] if all(o is not None and o.floating for o in sides) else []
    if op.op == "masked_fill" and op.args.get("value") in (0, 0.0, False):
        return [{op.needed("self").position}]
    if op.op.endswith("_backward"):
        gradient = op.tensor("grad_output") or op.tensor("grad")
        return [{gradient.position}] if gradient is not None else []
    return []


def looked_up(op: OpLetters) -> ShardingRule | None:
    """Each element alone, against a table that stays whole (bucketize), or becomes a row of its own (one_hot)."""
    if op.op not in ("bucketize", "searchsorted", "one_hot", "isin") or not op.operands:
        return None
    x = op.tensor("self") or op.tensor("elements")
    if x is None or op.op == "searchsorted" or op.op == "isin" and x.position:
        return None
    letters = op.named(x.shape)
    if op.op == "one_hot":
        row = op.fresh(op.results[0][-1])
        return op.rule({x.position: letters}, [(*letters, row)], row)
    return op.rule({x.position: letters}, [letters])


def made(op: OpLetters) -> ShardingRule | None:
    """A tensor of nothing: each device makes its own piece. Of a tensor in the arguments only the type is read."""
    if op.op == "arange":
        letters = op.named(op.results[0])
        return op.rule({}, [letters], indexed=[a for dim in letters for a in dim])
    if op.op not in MADE:
        return None
    spare = {o.position: (NONE,) * o.ndim for o in op.operands}
    return op.rule(spare, [op.named(shape) for shape in op.results], unread=list(spare))


__all__ = ["elementwise", "looked_up", "made"]
