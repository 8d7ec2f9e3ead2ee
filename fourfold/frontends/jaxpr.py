"""A JAX function → Graph through its jaxpr; executed equation by equation.

Calls (jit, remat, custom derivatives) are inlined. A scan is unrolled where it is short, else one node whose flops are its body's times its length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fourfold.errors import InputError, MissingExtra, ModelError
from fourfold.frontends import flops as ops
from fourfold.graph import BACKWARD, CONTRACTION, ELEMENTWISE, FORWARD, GATHER, OPAQUE, REDUCTION, VIEW, Builder
from fourfold.letters import Piece, ShardingRule
from fourfold.program import Captured, Program
from fourfold.text import headline

UNROLL = 64  # the longest scan that is unrolled
_CALLS = ("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
          "custom_lin", "named_call", "xla_call")  # fmt: skip

CLASSES: dict[str, int] = (
    dict.fromkeys("dot_general conv_general_dilated ragged_dot ragged_dot_general".split(), CONTRACTION)
    | dict.fromkeys(
        """abs add add_any and acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type broadcast_in_dim cbrt ceil clamp
        clz complex concatenate conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt
        igamma imag integer_pow iota is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg nextafter not or pad
        population_count pow random_bits random_unwrap random_wrap random_seed random_fold_in real reduce_precision rem rev round rsqrt
        select_and_scatter_add select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh slice split sqrt square
        stop_gradient sub tan tanh threefry2x32 transpose xor mulhi tile dynamic_slice dynamic_update_slice
        optimization_barrier""".split(), ELEMENTWISE)
    | dict.fromkeys(
        """argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
        reduce_xor reduce_window reduce_window_max reduce_window_min reduce_window_sum""".split(), REDUCTION)
    | dict.fromkeys("reshape squeeze expand_dims".split(), VIEW)
    | {"gather": GATHER}
    | dict.fromkeys("sort top_k scatter scatter_add scatter_mul scatter_min scatter_max scatter-add scatter-mul scatter-min scatter-max "
                    "cholesky lu qr "
                    "eigh svd triangular_solve fft approx_top_k".split(), OPAQUE)
)  # fmt: skip
_MOVES = frozenset(
    "broadcast_in_dim concatenate convert_element_type copy copy_p iota pad rev slice split transpose dynamic_slice dynamic_update_slice "
    "stop_gradient tile bitcast_convert_type optimization_barrier scatter gather".split()
)
_STEPS = {"logistic": 4, "erf_inv": 1, "integer_pow": 2, "threefry2x32": 20}


def _import() -> Any:
    try:
        import jax  # pyright: ignore[reportMissingImports]

        return jax
    except ImportError as error:
        raise MissingExtra("Capturing a JAX function needs the package jax.", "Install it: pip install 'fourfold[jax]'.") from error


def capture(function: Callable[..., object], inputs: object, *, train: bool = False, name: str = "") -> Captured:
    """Capture `function` on `inputs` (a tuple of arrays or trees of arrays). Arrays that the function closes over are its parameters; so is the first
    argument where it is a tree (the usual "params"). `train`: the function returns a scalar loss, and the program returns it with its gradient by
    the first argument.

    Raises MissingExtra without jax, InputError without inputs, ModelError where tracing fails.
    """
    jax = _import()
    if inputs is None:
        raise InputError("A JAX function was given without example inputs.", "Give a tuple of arrays: their shapes are captured.")
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    title = name or getattr(function, "__name__", "function")
    target = jax.value_and_grad(function) if train else function
    try:
        closed, shape = jax.make_jaxpr(target, return_shape=True)(*args)
    except Exception as error:
        why = f"{title} cannot be traced by jax {jax.__version__}: {headline(error).rstrip('.')}"
        raise ModelError(why, "Does it take these inputs, without `if` on values?") from error
    leaves, tree = jax.tree_util.tree_flatten(args)
    first = len(jax.tree_util.tree_leaves(args[0])) if args and not hasattr(args[0], "shape") else 0
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(args)[0]]
    build = _Build(jax, title)
    values = []
    for index, (var, leaf) in enumerate(zip(closed.jaxpr.invars, leaves, strict=True)):
        make = build.builder.parameter if index < first else build.builder.input
        values.append(make(*_spec(var.aval), paths[index]))
        if index < first:
            build.bound[values[-1]] = leaf
    consts = [build.constant(c, learned=True) for c in closed.consts]
    outs = build.equations(closed.jaxpr, [*consts], values, "")
    if train:
        build.backward(outs[0])
    for out in outs:
        build.builder.output(out)
    graph = build.builder.build()
    program = JaxProgram(jax, build.calls, build.bound, values[first:], values[:first], outs, tree, jax.tree_util.tree_structure(shape), first,
                         build.makes)
    return Captured(graph, program, tuple(build.note), inputs=args)


def _flat(jaxpr: Any) -> list[object]:
    """All equations with calls inlined."""
    found = []
    for eqn in jaxpr.eqns:
        inner = _body(eqn)
        found += _flat(inner[0]) if inner is not None else [eqn]
    return found


def _body(eqn: Any) -> tuple[object, list[object]] | None:
    """Jaxpr and constants of a call that can be inlined."""
    if eqn.primitive.name not in _CALLS:
        return None
    inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None)
    if inner is None:
        return None
    return (inner.jaxpr, list(inner.consts)) if hasattr(inner, "consts") and hasattr(inner, "jaxpr") else (inner, [])


def _spec(aval: Any) -> tuple[tuple[int, ...], str]:
    shape = tuple(aval.shape)
    if bad := [d for d in shape if not isinstance(d, int)]:
        raise ModelError(f"a dimension of the function is {bad[0]}, which has no value", "Trace it on arrays of fixed shape.")
    return shape, str(aval.dtype)


class _Build:
    def __init__(self, jax: Any, title: str) -> None:
        self.jax, self.builder, self.layers = jax, Builder(title), ops.Layers()
        self.bound: dict[int, object] = {}
        self.calls: list[tuple[object, list[int]]] = []  # graph node → equation and the values it reads, repeats kept
        self.makes: list[tuple[int, ...]] = []  # graph node → the values it makes
        self.note: list[str] = []
        self._shared: dict[int, int] = {}
        self._made: dict[int, int] = {}  # value → graph node

    def constant(self, array: object, learned: bool = False) -> int:
        key = id(array)
        if key not in self._shared:
            shape, dtype = tuple(getattr(array, "shape", ())), str(getattr(array, "dtype", type(array).__name__))
            value = (self.builder.parameter if learned and shape else self.builder.constant)(shape, dtype, "")
            self.bound[value] = array
            self._shared[key] = value
        return self._shared[key]

    def equations(self, jaxpr: Any, consts: Sequence[int], given: Sequence[int], module: str) -> list[int]:
        """Add the equations of `jaxpr`; the values of its outputs."""
        have: dict[Any, int] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *given], strict=True))

        def read(atom: Any) -> int:
            return self.constant(atom.val) if hasattr(atom, "val") else have[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(a) for a in eqn.invars]
            inner = _body(eqn)
            scope = _scope(module, eqn)
            if inner is not None:
                made = self.equations(inner[0], [self.constant(c) for c in inner[1]], inputs, scope)
            elif eqn.primitive.name == "scan" and int(eqn.params["length"]) * len(_flat(eqn.params["jaxpr"].jaxpr)) <= UNROLL * 8:
                made = self.unrolled(eqn, inputs, scope)
            else:
                made = self.call(eqn, inputs, scope)
            have |= dict(zip(eqn.outvars, made, strict=True))
        return [read(a) for a in jaxpr.outvars]

    def call(self, eqn: Any, inputs: list[int], module: str) -> list[int]:
        op = eqn.primitive.name
        outputs = [_spec(v.aval) for v in eqn.outvars]
        shapes = [tuple(getattr(a.aval, "shape", ())) for a in eqn.invars]
        fusion, known = CLASSES.get(op, OPAQUE), op in CLASSES
        flops = flops_of(eqn)
        if op in ("scan", "cond", "while"):
            known = op == "scan"
        largest = max((prod(s) for s in (*shapes, *(s for s, _ in outputs))), default=0)
        steps = 0.0
        if fusion in (ELEMENTWISE, REDUCTION, OPAQUE) and op not in _MOVES:
            steps = float(largest * (_STEPS.get(op, 1) if known else ops.ASSUMED_STEPS))
        if op.startswith("reduce_window"):
            steps = float(prod(outputs[0][0]) * prod(eqn.params.get("window_dimensions", (1,))))
        traffic: dict[str, Any] = {}
        if fusion == GATHER or op == "dynamic_slice":
            picked = min(sum(_bytes(s, d) for s, d in outputs), self.builder.size_of(inputs[0]))
            rest = sum(self.builder.size_of(v) for v in dict.fromkeys(inputs[1:]))
            traffic = {"reads": picked + rest, "params": picked if inputs[0] in self.bound else 0}
        made = self.builder.node(
            op, inputs, outputs, name=op, module=module, flops=flops, steps=steps, fusion=fusion, known=known, layer=self.layers.of(module),
            alias=[inputs[0]] if fusion == VIEW else [], phase=FORWARD, **traffic,
        )  # fmt: skip
        self._made |= dict.fromkeys(made, len(self.calls))
        self.makes.append(tuple(made))
        self.calls.append((eqn, inputs))
        return list(made)

    def unrolled(self, eqn: Any, inputs: list[int], module: str) -> list[int]:
        """A short scan, iteration by iteration: slices of the inputs, the body, the outputs stacked."""
        p = eqn.params
        consts, carry, length = int(p["num_consts"]), int(p["num_carry"]), int(p["length"])
        body, state, stacked = p["jaxpr"], inputs[consts : consts + carry], []
        fixed = [self.constant(c) for c in body.consts]
        order = range(length - 1, -1, -1) if p["reverse"] else range(length)
        lax = self.jax.lax
        for i in order:
            rows = [self.traced(lambda x, i=i: lax.index_in_dim(x, i, 0, keepdims=False), [v], module) for v in inputs[consts + carry :]]
            outs = self.equations(body.jaxpr, fixed, [*inputs[:consts], *state, *(r for row in rows for r in row)], module)
            state, rest = outs[:carry], outs[carry:]
            stacked.append(rest)
        stacked = stacked[::-1] if p["reverse"] else stacked
        columns = [self.traced(lambda *xs: self.jax.numpy.stack(xs), list(column), module)[0] for column in zip(*stacked, strict=True)]
        return [*state, *columns]

    def traced(self, function: Callable[..., object], inputs: list[int], module: str) -> list[int]:
        avals = [self.jax.ShapeDtypeStruct(self.shape(v), self.dtype(v)) for v in inputs]
        closed = self.jax.make_jaxpr(function)(*avals)
        return self.equations(closed.jaxpr, [self.constant(c) for c in closed.consts], inputs, module)

    def shape(self, value: int) -> tuple[int, ...]:
        return self.builder.spec_of(value)[0]

    def dtype(self, value: int) -> str:
        return self.builder.spec_of(value)[1]

    def backward(self, loss: int) -> None:
        """Whatever the loss does not depend on is backward."""
        ahead, stack = set(), [loss]
        while stack:
            node = self._made.get(stack.pop())
            if node is not None and node not in ahead:
                ahead.add(node)
                stack += self.calls[node][1]
        self.builder.phases([FORWARD if i in ahead else BACKWARD for i in range(len(self.calls))])


def _scope(module: str, eqn: object) -> str:
    """Module path from jax.named_scope and the names of jitted functions."""
    stack = str(getattr(getattr(eqn, "source_info", None), "name_stack", "") or "").replace("/", ".")
    return stack or module


def _bytes(shape: ops.Shape, dtype: str) -> int:
    from fourfold.graph import bytes_of

    return bytes_of(shape, dtype)


def flops_of(eqn: Any) -> float:
    """Flops of the contractions in an equation, those of its bodies included; a cond counts its most expensive branch, a while loop one iteration."""
    op, p = eqn.primitive.name, eqn.params
    shapes: list[Any] = [tuple(getattr(a.aval, "shape", ())) for a in eqn.invars]
    if op == "dot_general":
        (left, _), _ = p["dimension_numbers"]
        return float(2 * prod(eqn.outvars[0].aval.shape) * prod(shapes[0][d] for d in left))
    if op == "conv_general_dilated":
        kernel = p["dimension_numbers"].rhs_spec
        fan_in = prod(shapes[1][d] for d in kernel[1:])
        return float(2 * prod(eqn.outvars[0].aval.shape) * fan_in / max(1, prod(p["lhs_dilation"])))
    if op in ("ragged_dot", "ragged_dot_general"):
        return float(2 * prod(eqn.outvars[0].aval.shape) * shapes[0][-1])

    def inside(jaxpr: Any) -> float:
        return sum(flops_of(e) for e in getattr(jaxpr, "jaxpr", jaxpr).eqns)

    if op == "scan":
        return float(p["length"]) * inside(p["jaxpr"])
    if op == "cond":
        return max((inside(branch) for branch in p["branches"]), default=0.0)
    if op == "while":
        return inside(p["body_jaxpr"]) + inside(p["cond_jaxpr"])
    body = _body(eqn)
    return inside(body[0]) if body is not None else 0.0


@dataclass
class JaxProgram(Program):
    """Executes one equation at a time. `calls[i]` is the equation behind graph node i and the values it reads, in its own order."""

    jax: Any
    calls: list[tuple[Any, list[int]]]
    bound: dict[int, object]
    fed: list[int]
    learned: list[int]
    outputs: list[int]
    tree: object
    answer: object
    first: int
    makes: Sequence[tuple[int, ...]] = ()

    dialect = "jax"

    def weights(self) -> dict[int, object]:
        return dict(self.bound)

    def feed(self, *inputs: object, **named: object) -> dict[int, object]:
        """All arguments of the function, its parameters included; or all but the first, and the captured parameters stay."""
        if named:
            raise InputError("A JAX function takes its inputs by position.", "Give a tuple.")
        leaves, tree = self.jax.tree_util.tree_flatten(tuple(inputs))
        if tree == self.tree:
            return dict(zip([*self.learned, *self.fed], leaves, strict=True))
        if len(leaves) == len(self.fed):
            return dict(zip(self.fed, leaves, strict=True))
        raise InputError(f"{len(leaves)} arrays were given, the function was captured with {len(self.fed)}.", "Give those it was captured with.")

    def step(self, node: int, values: Mapping[int, object]) -> tuple[object, ...]:
        eqn, reads = self.calls[node]
        bound = eqn.primitive.get_bind_params(eqn.params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)  # before jax 0.9 the functions stood apart
        made = eqn.primitive.bind(*functions, *(values[v] for v in reads), **params)
        return tuple(made) if eqn.primitive.multiple_results else (made,)

    def letters(self, node: int) -> ShardingRule | None:
        from fourfold.frontends.jaxpr_letters import rule_of

        eqn, reads = self.calls[node]
        return rule_of(eqn, reads, self.makes[node]) if self.makes else None

    def piece(self, node: int, rule: ShardingRule, operands: Sequence[Any], piece: Piece) -> tuple[Any, ...]:
        from fourfold.frontends.jaxpr_letters import local

        eqn, _ = self.calls[node]
        bound = eqn.primitive.get_bind_params(eqn.params)
        functions, params = bound if isinstance(bound, tuple) else ((), bound)
        made = eqn.primitive.bind(*functions, *operands, **local(eqn.primitive.name, params, rule, operands, piece))
        made = tuple(made) if eqn.primitive.multiple_results else (made,)
        if eqn.primitive.name == "iota":
            first = next((piece.offsets.get(letter, 0) for letter in rule.outputs[0][eqn.params["dimension"]]), 0)
            made = (made[0] + self.jax.numpy.asarray(first, made[0].dtype),)
        return made

    def collect(self, values: Mapping[int, object]) -> object:
        return self.jax.tree_util.tree_unflatten(self.answer, [values[v] for v in self.outputs])
