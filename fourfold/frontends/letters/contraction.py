"""Letters of products: matrices, einsums, convolutions, attention, recurrent layers."""

from __future__ import annotations

from fourfold.frontends.letters.op import NONE, Dim, Letters, Operand, OpLetters, flat
from fourfold.letters import ShardingRule

_FLASH = "_scaled_dot_product_"


def _product(op: OpLetters, a: Operand, b: Operand, bias: Operand | None, turned: bool = False) -> ShardingRule:
    """a [..., m, k] @ b [..., k, n] (`turned`: b [n, k]), vectors included, plus a bias that broadcasts."""
    result = op.results[0]
    k = op.fresh(a.shape[-1])
    rows = op.fresh(a.shape[-2]) if a.ndim > 1 else NONE
    columns = op.fresh(b.shape[0] if turned else b.shape[-1]) if b.ndim > 1 else NONE
    ends = ((rows,) if a.ndim > 1 else ()) + ((columns,) if b.ndim > 1 else ())
    outer = result[: len(result) - len(ends)]
    batch = op.named(outer)
    left = op.broadcast(a.shape[:-2], batch, outer) + ((rows, k) if a.ndim > 1 else (k,))
    if b.ndim > 1:
        right = op.broadcast(b.shape[:-2], batch, outer) + ((columns, k) if turned else (k, columns))
    else:
        right = (k,)
    made = batch + ends
    inputs = {a.position: left, b.position: right}
    linear = [{a.position}, {b.position}]
    if bias is not None:
        inputs[bias.position] = op.broadcast(bias.shape, made, result)
        linear = [s | {bias.position} for s in linear]
    return op.rule(inputs, [made], sums=[k], addends=[bias.position] if bias is not None else [], linear=linear)


def product(op: OpLetters) -> ShardingRule | None:
    match op.op:
        case "mm" | "bmm":
            return _product(op, op.needed("self"), op.needed("mat2"), None)
        case "matmul":
            return _product(op, op.needed("self"), op.needed("other"), None)
        case "mv":
            return _product(op, op.needed("self"), op.needed("vec"), None)
        case "dot" | "vdot":
            return _product(op, op.needed("self"), op.needed("tensor" if op.op == "dot" else "other"), None)
        case "addmm":
            return _product(op, op.needed("mat1"), op.needed("mat2"), op.needed("self"))
        case "baddbmm":
            return _product(op, op.needed("batch1"), op.needed("batch2"), op.needed("self"))
        case "linear":
            weight = op.needed("weight")
            return _product(op, op.needed("input"), weight, op.tensor("bias"), True)
        case "outer" | "ger":
            letters = op.named(op.results[0])
            return op.rule({0: letters[:1], 1: letters[1:]}, [letters], linear=[{0}, {1}])
        case "einsum":
            return einsum(op)
        case "_grouped_mm" | "grouped_mm_fallback" | "grouped_mm_fallback_backward":
            return _grouped(op)
    return None


def einsum(op: OpLetters) -> ShardingRule | None:
    """Its letters are those of the equation; "..." stands for dimensions that broadcast."""
    text, _, right = str(op.args["equation"]).replace(" ", "").partition("->")
    terms = text.split(",")
    if "->" not in str(op.args["equation"]):
        right = "".join(sorted(c for c in set(text) if c.isalpha() and text.count(c) == 1))
        right = ("..." if "..." in text else "") + right
    hidden = max((o.ndim - len(t) + 3 for t, o in zip(terms, op.operands, strict=True) if "..." in t), default=0)

    def spelt(term: str, ndim: int) -> list[str]:
        own = ndim - len(term) + 3
        dots = [f".{i}" for i in range(hidden - own, hidden)]
        head, found, tail = term.partition("...")
        return [*head, *(dots if found else []), *tail]

    rows = [spelt(t, o.ndim) for t, o in zip(terms, op.operands, strict=True)]
    last = spelt(right, len(op.results[0]))
    sizes: dict[str, int] = {}
    for row, operand in zip(rows, op.operands, strict=True):
        if len(set(row)) < len(row):
            return None                                                 # a diagonal
        for name, n in zip(row, operand.shape, strict=True):
            sizes[name] = max(sizes.get(name, 1), n)
    letter = {name: op.fresh(n) for name, n in sizes.items()}
    inputs = {o.position: tuple(letter[c] if n > 1 else NONE for c, n in zip(row, o.shape, strict=True))
              for row, o in zip(rows, op.operands, strict=True)}
    sums = set(flat(letter[c] for c in sizes if c not in last))
    return op.rule(inputs, [tuple(letter[c] for c in last)], sums=[sums], linear=[{o.position} for o in op.operands])


def _grouped(op: OpLetters) -> ShardingRule | None:
    """Rows [t, k], sorted by expert, meet matrices [e, k, n]: rows and experts stay whole, since offsets say which meet. The backward pass gets the
    gradient [t, n] last and answers with those of rows and matrices.
    """
    a, b, last = op.operands[0], op.operands[1], op.operands[-1]
    if (a.ndim, b.ndim) != (2, 3):
        return None
    t, k, e, n = op.fresh(a.shape[0]), op.fresh(a.shape[1]), op.fresh(b.shape[0]), op.fresh(b.shape[2])
    inputs: dict[int, Letters] = {a.position: (t, k), b.position: (e, k, n)}
    if op.op.endswith("_backward"):
        if len(op.results) != 2 or last.shape != (a.shape[0], b.shape[2]):
            return None
        inputs[last.position] = (t, n)
        return op.rule(inputs, [(t, k), (e, k, n)], {*t, *e}, sums=[n, ()], linear=[{last.position}])
    return op.rule(inputs, [(t, n)], {*t, *e}, sums=[k], linear=[{a.position}, {b.position}])


# ---- convolutions


def _channels(op: OpLetters, weight: Operand, groups: int, transposed: bool) -> tuple[Dim, Dim, Letters]:
    """Letters of input channels, output channels, and the weight's first two dimensions."""
    group = op.fresh(groups)
    first, second = op.fresh(weight.shape[0] // groups), op.fresh(weight.shape[1])
    into, out = (first, second) if transposed else (second, first)
    return group + into, group + out, (group + first, second)


def _points(op: OpLetters, x: Operand, weight: Operand, sizes: tuple[int, ...]) -> tuple[Letters, Letters, Letters, set[str]]:
    """Letters of the points of input, output and kernel, and those that stay whole: all but what a 1×1 kernel passes."""
    kernel = op.named(weight.shape[2:])
    steps = op.numbers("stride") or [1]
    pads = [0] if isinstance(op.args.get("padding"), str) else op.numbers("padding") or [0]
    pointwise = all(n == 1 for n in weight.shape[2:]) and all(n == 1 for n in steps) and all(n == 0 for n in pads)
    here = op.named(x.shape[-len(sizes):])
    if pointwise and x.shape[-len(sizes):] == sizes:
        return here, here, kernel, set()
    there = op.named(sizes)
    return here, there, kernel, {*flat(here), *flat(there), *flat(kernel)}


def convolution(op: OpLetters) -> ShardingRule | None:
    """x [n, c, …], weight [o, c/groups, …]: examples, channels on both sides and groups may be split; points only under a 1×1 kernel."""
    if op.op not in ("convolution", "_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        return None
    x, weight, bias = op.needed("input"), op.needed("weight"), op.tensor("bias")
    transposed = op.flag("transposed") or "transpose" in op.op
    into, out, (w0, w1) = _channels(op, weight, max(op.integer("groups", 1), 1), transposed)
    spatial = weight.ndim - 2
    here, there, kernel, fixed = _points(op, x, weight, op.results[0][-spatial:])
    batch = op.named(x.shape[: x.ndim - spatial - 1])
    inputs: dict[int, Letters] = {x.position: (*batch, into, *here), weight.position: (w0, w1, *kernel)}
    linear = [{x.position}, {weight.position}]
    if bias is not None:
        inputs[bias.position] = (out,)
        linear = [s | {bias.position} for s in linear]
    contracted = set(into) - set(out)
    return op.rule(inputs, [(*batch, out, *there)], fixed, [contracted], [bias.position] if bias is not None else [], linear)


def convolution_backward(op: OpLetters) -> ShardingRule | None:
    """Gradients by input, by weight and by bias; the latter two are sums over the examples, the first over the output channels."""
    if op.op != "convolution_backward":
        return None
    grad, x, weight = op.needed("grad_output"), op.needed("input"), op.needed("weight")
    into, out, (w0, w1) = _channels(op, weight, max(op.integer("groups", 1), 1), op.flag("transposed"))
    here, there, kernel, fixed = _points(op, x, weight, grad.shape[2:])
    batch = op.fresh(x.shape[0])
    points = set(flat(here)) - fixed
    wanted = op.args.get("output_mask")
    mask = [bool(one) for one in wanted] if isinstance(wanted, list | tuple) else [True] * 3
    made: list[tuple[Letters, set[str]]] = [((batch, into, *here), set(out) - set(into)), ((w0, w1, *kernel), {*batch, *points}),
                                            ((out,), {*batch, *points})]
    asked = [one for one, want in zip(made, mask, strict=True) if want]
    inputs: dict[int, Letters] = {grad.position: (batch, out, *there), x.position: (batch, into, *here), weight.position: (w0, w1, *kernel)}
    return op.rule(inputs, [letters for letters, _ in asked], fixed, [sums for _, sums in asked], linear=[{grad.position}])


# ---- attention and recurrent layers


def attention(op: OpLetters) -> ShardingRule | None:
    """q [b, h, l, e], k [b, h', s, e], v [b, h', s, d]: examples and heads may be split, queries too where nothing depends on their position."""
    if op.op != "scaled_dot_product_attention" and not (op.op.startswith(_FLASH) and not op.op.endswith("_backward")):
        return None
    q, k, v = (op.needed(name) for name in ("query", "key", "value"))
    outer, heads, grouped, rows, columns, width, depth = _attended(op, q, k, v)
    queries: Letters = (*outer, heads, rows, width)
    inputs: dict[int, Letters] = {q.position: queries, k.position: (*outer, grouped, columns, width), v.position: (*outer, grouped, columns, depth)}
    full = (*q.shape[:-1], k.shape[-2])
    letters: Letters = (*outer, heads, rows, columns)
    for name in ("attn_mask", "attn_bias"):
        if (mask := op.tensor(name)) is not None:
            inputs[mask.position] = op.broadcast(mask.shape, letters, full)
    fixed = {*columns, *width, *depth, *(rows if op.flag("is_causal") else ())}
    outputs: list[Letters] = [(*outer, heads, rows, depth)]
    for shape in op.results[1:]:                                        # the logarithm of the sum, [b, h, l]; seeds and the like, []
        if len(shape) == q.ndim - 1 and shape == q.shape[:-1]:
            outputs.append((*outer, heads, rows))
        elif len(shape) == 0:
            outputs.append(())
        else:
            return None
    return op.rule(inputs, outputs, fixed)


def _attended(op: OpLetters, q: Operand, k: Operand, v: Operand) -> tuple[Letters, Dim, Dim, Dim, Dim, Dim, Dim]:
    outer = op.named(q.shape[:-3])
    grouped = op.fresh(k.shape[-3])
    heads = grouped + op.fresh(q.shape[-3] // max(k.shape[-3], 1))
    return outer, heads, grouped, op.fresh(q.shape[-2]), op.fresh(k.shape[-2]), op.fresh(q.shape[-1]), op.fresh(v.shape[-1])


def attention_backward(op: OpLetters) -> ShardingRule | None:
    """Gradients by queries, keys and values: examples and heads may be split."""
    if not (op.op.startswith(_FLASH) and op.op.endswith("_backward")):
        return None
    q, k, v = (op.needed(name) for name in ("query", "key", "value"))
    out, grad = op.needed("out"), op.tensor("grad_out") or op.needed("grad_out_")
    outer, heads, grouped, rows, columns, width, depth = _attended(op, q, k, v)
    queries, keys, values = (*outer, heads, rows, width), (*outer, grouped, columns, width), (*outer, grouped, columns, depth)
    made: Letters = (*outer, heads, rows, depth)
    inputs: dict[int, Letters] = {q.position: queries, k.position: keys, v.position: values, out.position: made, grad.position: made}
    lse = op.needed("logsumexp")
    inputs[lse.position] = (*outer, heads, rows)
    for name in ("attn_mask", "attn_bias"):
        if (mask := op.tensor(name)) is not None:
            inputs[mask.position] = op.broadcast(mask.shape, (*outer, heads, rows, columns), (*q.shape[:-1], k.shape[-2]))
    if len(op.results) != 3:
        return None
    return op.rule(inputs, [queries, keys, values], {*rows, *columns, *width, *depth})


def recurrent(op: OpLetters) -> ShardingRule | None:
    """A whole recurrent layer: only the examples may be split."""
    if op.op not in ("lstm", "gru", "rnn_tanh", "rnn_relu") or "input" not in op.args or "batch_first" not in op.args:
        return None
    x = op.needed("input")
    if x.ndim != 3:
        return None
    letters = op.named(x.shape)
    d = 0 if op.flag("batch_first") else 1
    batch = letters[d]
    states = op.args.get("hx")
    inputs: dict[int, Letters] = {x.position: letters}
    fixed = set(flat(letters)) - set(batch)
    for state in states if isinstance(states, list | tuple) else [states]:
        if isinstance(state, Operand):
            own = (op.fresh(state.shape[0]), batch, op.fresh(state.shape[2]))
            fixed |= {*own[0], *own[2]}
            inputs[state.position] = own
    outputs: list[Letters] = []
    for i, shape in enumerate(op.results):
        place = d if i == 0 else 1
        made = tuple(batch if j == place else op.fresh(n) for j, n in enumerate(shape))
        fixed |= set(flat(made)) - set(batch)
        outputs.append(made)
    return op.rule(inputs, outputs, fixed)


__all__ = ["attention", "attention_backward", "convolution", "convolution_backward", "einsum", "product", "recurrent"]
