"""The passes put together: forward mode is linearize run as it is, reverse mode is transpose ∘ unzip ∘ linearize; both are ordinary programs again,
so that they compose (a gradient linearized is a Hessian-vector product).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fourfold.differentiate.equations import Emitter, Equation, Function, Variable, copied, inlined, plain, pruned
from fourfold.differentiate.linearize import linearize
from fourfold.differentiate.transpose import transpose
from fourfold.differentiate.unzip import Policy, Unzipped, unzip
from fourfold.errors import InputError


@dataclass(frozen=True, eq=False)
class Reverse:
    """What reverse mode made of one program: J f, its two halves, the transposed half, and all of it as one ordinary program
    inputs → (outputs of f, then gradients of its first output by each differentiated input).
    """

    linearized: Function
    unzipped: Unzipped
    transposed: Function
    function: Function


def forward_mode(function: Function, wrt: Sequence[bool] | None = None) -> Function:
    """(x, ẋ) → (y, ẏ) as an ordinary program; ẏ of floating outputs only."""
    return plain(linearize(function, wrt), f"jvp {function.name}")


def reverse_mode(function: Function, wrt: Sequence[bool] | None = None, policy: Policy = "store") -> Reverse:
    """Gradients of the first output, a floating scalar. Calls are inlined in the program that is returned, not in its parts.

    Raises InputError where the first output is no scalar.
    """
    if not function.outputs or function.outputs[0].shape != () or not function.outputs[0].floating:
        told = function.outputs[0] if function.outputs else "nothing"
        raise InputError(f"{function.name} returns {told}, and a gradient is that of a scalar.", "Give a loss that returns one number.")
    linearized = linearize(function, wrt)
    others = [r for r in linearized.results[1:] if r is not None]       # are returned, and have no cotangent
    dropped = tuple(Equation("drop", (r,), ()) for r in others)
    first = replace(linearized, equations=(*linearized.equations, *dropped), results=(linearized.results[0], *(None for _ in function.outputs[1:])))
    unzipped = unzip(first, policy)
    transposed = transpose(unzipped.linear)
    return Reverse(linearized, unzipped, transposed, joined(unzipped, transposed, f"grad {function.name}"))


def joined(unzipped: Unzipped, transposed: Function, name: str) -> Function:
    """Forward half, then transposed half at the cotangent 1 of the first output, as one ordinary program without calls."""
    body, _ = copied(plain(transposed))
    forward = unzipped.forward
    stands: dict[Variable, Variable] = {new_v: v for v, new_v in zip(transposed.inputs, body.inputs, strict=False)}
    e = Emitter()
    given = body.inputs[len(transposed.inputs) :]
    for v in given:
        stands[v] = e.full(v.shape, 1.0, v.dtype)
    equations = [*forward.equations, *e.equations, *(eq.renamed(stands) for eq in body.equations)]
    outputs = (*forward.outputs[: unzipped.outputs], *(stands.get(v, v) for v in body.outputs))
    whole = Function(name, forward.inputs, outputs, tuple(equations))
    flat = inlined(whole)
    return replace(flat, equations=tuple(pruned(flat.equations, flat.outputs)))
