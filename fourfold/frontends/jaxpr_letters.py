"""Letters of JAX's primitives. What is not here is whole on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fourfold.letters import NONE, Dim, Letters, Naming, Piece, Shape, ShardingRule, factors

LIKE = frozenset(
    """abs add add_any and acos acosh asin asinh atan atan2 atanh cbrt ceil clamp complex conj convert_element_type copy copy_p cos cosh digamma div
    eq erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or
    population_count pow real reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
    square stop_gradient sub tan tanh xor optimization_barrier""".split()
)
JOINT = frozenset("add add_any sub neg convert_element_type copy copy_p real imag conj reduce_precision".split())


class EquationLetters(Naming):
    """An equation while its letters are found: `params`, shapes of what it reads (literals included) and makes."""

    def __init__(self, eqn: Any, reads: Sequence[int], makes: Sequence[int]) -> None:
        super().__init__()
        self.op, self.params = str(eqn.primitive.name), dict(eqn.params)
        self.reads, self.makes = tuple(reads), tuple(makes)
        self.shapes: list[Shape] = [tuple(getattr(a.aval, "shape", ())) for a in eqn.invars]
        self.results: list[Shape] = [tuple(v.aval.shape) for v in eqn.outvars]
        self.floating = all("float" in str(getattr(a.aval, "dtype", "")) for a in (*eqn.invars, *eqn.outvars))

    def rule(self, inputs: Sequence[Letters], outputs: Sequence[Letters], fixed: Iterable[str] = (), sums: Sequence[Iterable[str]] = (),
             linear: Iterable[Iterable[int]] = (), addends: Iterable[int] = (), extremes: Mapping[int, str] | None = None) -> ShardingRule:
        totals = tuple(frozenset(s) for s in sums) or (frozenset[str](),) * len(outputs)
        return ShardingRule(self.op, self.reads, self.makes, tuple(inputs), tuple(outputs), tuple(self.sizes.items()),
                            frozenset(self.sizes) - set(fixed), totals, frozenset(addends), tuple(frozenset(s) for s in linear),
                            extremes=tuple(sorted((extremes or {}).items())))


def flat(dims: Iterable[Dim]) -> set[str]:
    return {letter for dim in dims for letter in dim}


def elementwise(e: EquationLetters) -> ShardingRule | None:
    result = e.results[0] if len(set(e.results)) == 1 else None
    if e.op not in LIKE or result is None or any(s and (len(s) != len(result) or any(n not in (1, m) for n, m in zip(s, result, strict=True)))
                                                 for s in e.shapes):
        return None
    letters = e.named(result)
    every = range(len(e.shapes))
    linear: list[list[int]] = []
    if e.op == "select_n":
        linear = [list(every[1:])]
    elif e.floating and e.op in JOINT:
        linear = [list(every)]
    elif e.floating and e.op == "mul":
        linear = [[i] for i in every]
    elif e.floating and e.op == "div":
        linear = [[0]]
    return e.rule([e.broadcast(s, letters, result) for s in e.shapes], [letters] * len(e.results), linear=linear)


def dot(e: EquationLetters) -> ShardingRule | None:
    """dot_general: batch, then what only the left has, then what only the right has."""
    if e.op != "dot_general":
        return None
    (lc, rc), (lb, rb) = e.params["dimension_numbers"]
    left: list[Dim] = list(e.named(e.shapes[0]))
    right: list[Dim] = [NONE] * len(e.shapes[1])
    for a, b in (*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)):
        right[b] = left[a]
    for d, n in enumerate(e.shapes[1]):
        if d not in rc and d not in rb:
            right[d] = e.fresh(n)
    made = [left[d] for d in lb] + [left[d] for d in range(len(left)) if d not in lc and d not in lb]
    made += [right[d] for d in range(len(right)) if d not in rc and d not in rb]
    return e.rule([tuple(left), tuple(right)], [tuple(made)], sums=[flat(left[d] for d in lc)], linear=[[0], [1]])


def convolution(e: EquationLetters) -> ShardingRule | None:
    """Examples and channels; what it slides over stays whole."""
    if e.op != "conv_general_dilated" or e.params["batch_group_count"] != 1 or e.params["feature_group_count"] != 1:
        return None
    numbers = e.params["dimension_numbers"]
    x, w, y = list(e.named(e.shapes[0])), list(e.named(e.shapes[1])), list(e.named(e.results[0]))
    fixed = flat([*(x[d] for d in numbers.lhs_spec[2:]), *(w[d] for d in numbers.rhs_spec[2:]), *(y[d] for d in numbers.out_spec[2:])])
    y[numbers.out_spec[0]], y[numbers.out_spec[1]] = x[numbers.lhs_spec[0]], w[numbers.rhs_spec[0]]
    w[numbers.rhs_spec[1]] = x[numbers.lhs_spec[1]]
    return e.rule([tuple(x), tuple(w)], [tuple(y)], fixed, [x[numbers.lhs_spec[1]]], [[0], [1]])


def movement(e: EquationLetters) -> ShardingRule | None:
    p = e.params
    if e.op in ("reshape", "squeeze", "expand_dims"):
        before, after = factors(e, e.shapes[0], e.results[0])
        return e.rule([before], [after], flat(before) ^ flat(after), linear=[[0]])
    if e.op == "transpose":
        letters = e.named(e.shapes[0])
        return e.rule([letters], [tuple(letters[d] for d in p["permutation"])], linear=[[0]])
    if e.op == "broadcast_in_dim":
        made = e.named(e.results[0])
        given = tuple(made[d] if n == e.results[0][d] else NONE for d, n in zip(p["broadcast_dimensions"], e.shapes[0], strict=True))
        return e.rule([given], [made], linear=[[0]])
    if e.op in ("slice", "rev", "pad", "dynamic_slice", "split", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort", "top_k"):
        letters, n = e.named(e.shapes[0]), len(e.shapes[0])
        held = {"rev": p.get("dimensions", ()), "split": (p.get("axis"),), "sort": (p.get("dimension"),), "top_k": (n - 1,),
                }.get(e.op, (p["axis"],) if e.op.startswith("cum") else tuple(d for d in range(n) if e.shapes[0][d] != e.results[0][d]))
        outputs = [tuple(e.fresh(m) if d in held else letters[d] for d, m in enumerate(shape)) for shape in e.results]
        fixed = flat(letters[d] for d in held) | flat(out[d] for out in outputs for d in held)
        if e.op == "sort" and len(set(e.shapes)) > 1:
            return None
        rest: list[Letters] = [letters if e.op == "sort" else (NONE,) * len(s) for s in e.shapes[1:]]
        return e.rule([letters, *rest], outputs, fixed, linear=[[0]] if e.op in ("slice", "rev", "dynamic_slice", "split", "cumsum") else [])
    if e.op == "concatenate":
        made, d = e.named(e.results[0]), int(p["dimension"])
        given = [(*made[:d], e.fresh(s[d]), *made[d + 1 :]) for s in e.shapes]
        return e.rule(given, [made], flat(one[d] for one in given) | set(made[d]), linear=[range(len(given))])
    if e.op in ("iota",):
        return e.rule([], [e.named(e.results[0])])
    return None


def reduction(e: EquationLetters) -> ShardingRule | None:
    if not e.op.startswith(("reduce_", "arg")) or "axes" not in e.params or len(e.shapes) != 1:
        return None
    letters = e.named(e.shapes[0])
    gone = flat(letters[d] for d in e.params["axes"])
    made = tuple(dim for d, dim in enumerate(letters) if d not in e.params["axes"])
    if e.op == "reduce_sum":
        return e.rule([letters], [made], sums=[gone], linear=[[0]])
    if e.op in ("reduce_max", "reduce_min"):
        return e.rule([letters], [made], sums=[gone], extremes={0: e.op.removeprefix("reduce_")})
    return e.rule([letters], [made], gone)


def gather(e: EquationLetters) -> ShardingRule | None:
    """Dimensions that are picked whole pass, and so do places; what indices point into stays whole. Of a scatter-add, places are summed over."""
    if e.op not in ("gather", "scatter-add", "scatter_add"):
        return None
    numbers = e.params["dimension_numbers"]
    if getattr(numbers, "operand_batching_dims", ()):
        return None
    back = e.op != "gather"
    window = numbers.update_window_dims if back else numbers.offset_dims
    gone = numbers.inserted_window_dims if back else numbers.collapsed_slice_dims
    pointed = numbers.scatter_dims_to_operand_dims if back else numbers.start_index_map
    picked = e.shapes[2] if back else e.results[0]
    operand, index = e.named(e.shapes[0]), e.named(e.shapes[1])
    rest = [d for d in range(len(operand)) if d not in gone]
    made: list[Dim] = [NONE] * len(picked)
    fixed = flat(operand[d] for d in pointed) | flat(operand[d] for d in gone) | set(index[-1])
    for d, o in zip(rest, window, strict=True):
        made[o] = operand[d] if picked[o] == e.shapes[0][d] and d not in pointed else e.fresh(picked[o])
        fixed |= set() if made[o] == operand[d] and d not in pointed else {*made[o], *operand[d]}
    for place, o in zip(index[:-1], (o for o in range(len(picked)) if o not in window), strict=True):
        made[o] = place
    if back:
        return e.rule([operand, index, tuple(made)], [operand], fixed, [flat(index[:-1])], [[0, 2]], [0])
    return e.rule([operand, index], [tuple(made)], fixed, linear=[[0]])


def local(op: str, params: Mapping[str, object], rule: ShardingRule, operands: Sequence[Any], piece: Piece) -> dict[str, object]:
    """Parameters of an equation on one device's pieces."""
    made = dict(params)
    if op == "reshape":
        made["new_sizes"] = piece.shapes[0]
    elif op in ("broadcast_in_dim", "iota"):
        made["shape"] = piece.shapes[0]
    elif op == "slice":
        ends: Any = params["limit_indices"]
        made["limit_indices"] = tuple(n if r == m else e for n, m, r, e in zip(operands[0].shape, _sizes(rule, 0), _sizes(rule, None), ends,
                                                                             strict=True))
    elif op == "dynamic_slice":
        made["slice_sizes"] = piece.shapes[0]
    elif op == "gather":
        sizes: Any = params["slice_sizes"]
        made["slice_sizes"] = tuple(n if s == m else s for n, m, s in zip(operands[0].shape, _sizes(rule, 0), sizes, strict=True))
    return made


def _sizes(rule: ShardingRule, operand: int | None) -> tuple[int, ...]:
    letters = rule.outputs[0] if operand is None else rule.inputs[operand]
    return tuple(rule.size[dim[0]] if dim else 1 for dim in letters)


TABLES: tuple[Callable[[EquationLetters], ShardingRule | None], ...] = (elementwise, dot, convolution, movement, reduction, gather)


def rule_of(eqn: object, reads: Sequence[int], makes: Sequence[int]) -> ShardingRule | None:
    """The rule of an equation that reads values `reads` and makes `makes` of the graph; None where no table knows it."""
    for table in TABLES:
        if (found := table(EquationLetters(eqn, reads, makes))) is not None:
            return found
    return None


__all__ = ["EquationLetters", "rule_of"]
