"""Runs a program on tensors, equation by equation; what nobody reads any more is let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fourfold.differentiate._attention import attention_tangent
from fourfold.differentiate.equations import Argument, Equation, Function, Variable, operator_of, substituted, torch_dtype
from fourfold.errors import InputError


def evaluate(function: Function, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None] = ()) -> tuple[list[Tensor], list[Tensor | None]]:
    """(outputs, results) of `function`. Raises InputError where shapes or types are not those of its inputs, or their number differs."""
    given = [*inputs]
    if len(given) != len(function.inputs) or len(tangents) != len(function.tangents):
        raise InputError(f"{function.name} was given {len(given)} values and {len(tangents)} tangents.",
                         f"It takes {len(function.inputs)} and {len(function.tangents)}.")
    wants: list[Variable] = [*function.inputs]
    for want, tangent in zip(function.tangents, tangents, strict=True):
        if want is not None:
            wants.append(want)
            given.append(torch.zeros(want.shape, dtype=torch_dtype(want.dtype)) if tangent is None else tangent)
    values: dict[Variable, Argument] = {}
    for want, tensor in zip(wants, given, strict=True):
        if tuple(tensor.shape) != want.shape or str(tensor.dtype) != f"torch.{want.dtype}":
            raise InputError(f"{want.name or 'a value'} is {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}.",
                             f"{function.name} takes {want.dtype}{list(want.shape)} there.")
        values[want] = tensor
    ends = {*function.outputs, *function.linear_outputs}
    last = {v: i for i, eq in enumerate(function.equations) for v in (*eq.inputs, *eq.outs)}
    for i, eq in enumerate(function.equations):
        made = step(eq, values)
        values.update({o: m for o, m in zip(eq.outputs, made, strict=True) if o is not None})
        for v in {*eq.inputs, *eq.outs}:
            if last[v] == i and v not in ends:
                values.pop(v, None)
    return [values[v] for v in function.outputs], [None if v is None else values[v] for v in function.results]


def step(eq: Equation, values: Mapping[Variable, Argument]) -> Sequence[Argument]:
    """What one equation makes of the tensors of its inputs."""
    if eq.op == "dup":
        return (values[eq.inputs[0]],) * 2
    if eq.op == "drop":
        return ()
    if eq.op == "zero":
        return (torch.zeros(eq.outs[0].shape, dtype=torch_dtype(eq.outs[0].dtype)),)
    if eq.function is not None:
        given = [values[v] for v in eq.inputs]
        split = len(eq.function.inputs)
        linear = iter(given[split:])
        outputs, results = evaluate(eq.function, given[:split], [None if v is None else next(linear) for v in eq.function.tangents])
        return [*outputs, *(r for r in results if r is not None)]
    args = substituted(eq.args, values)
    if eq.op in OWN:
        return (OWN[eq.op](*args),)
    made = operator_of(eq.op)(*args, **{k: substituted(v, values) for k, v in eq.kwargs.items()})
    return made if isinstance(made, tuple | list) else (made,)


def uniform(key: Tensor | int, index: int, shape: Sequence[int], dtype: str) -> Tensor:
    """Numbers from [0, 1), the same for the same key and index: splitmix64 of the key picks the generator's seed."""
    mixed = (int(key) + 0x9E3779B97F4A7C15 * (index + 1)) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    generator = torch.Generator().manual_seed((mixed ^ (mixed >> 31)) & 0x7FFFFFFFFFFFFFFF)
    return torch.rand(list(shape), generator=generator, dtype=torch_dtype(dtype))


OWN: dict[str, Callable[..., Tensor]] = {"uniform": uniform, "attention_tangent": attention_tangent}     # operators that torch does not have
