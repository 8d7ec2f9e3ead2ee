"""Graphs of eight families, from 30 to 80,000 nodes, with the flops and bytes that their layers' sizes give: the instances schedules are compared on.

`make(family, nodes, seed, train)` is deterministic. Sizes (widths, steps, batch) vary with the seed, the depth follows `nodes`. Training graphs carry
a backward node for every forward one that has a gradient (a contraction has two: for its input and for its weight), read the activations that
autodiff saves, and update each weight where it lives (colocation with the first op that reads it).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fourfold.errors import InputError
from fourfold.graph import BACKWARD, CONTRACTION, ELEMENTWISE, FORWARD, GATHER, OPAQUE, OPTIMISER, REDUCTION, VIEW, Builder, Graph

Shape = tuple[int, ...]
Sizes = Mapping[str, int]
_SMALLEST = 30


@dataclass
class _Step:
    """One forward op on the tape: what the backward pass needs to know of it."""

    kind: str
    inputs: tuple[int, ...]
    out: int
    shape: Shape
    flops: float
    fusion: int
    weight: int | None
    layer: int
    module: str
    colocation: int


class _Net:
    """A Builder that knows the usual layers, and a tape for their gradients."""

    def __init__(self, name: str, train: bool, dtype: str = "float32") -> None:
        self.builder, self.train, self.dtype = Builder(name), train, dtype
        self.shapes: dict[int, Shape] = {}
        self.tape: list[_Step] = []
        self.classes: dict[int, int] = {}                              # parameter → colocation class
        self.layer, self.module = -1, ""
        self.results: tuple[int, ...] = ()
        self.made: frozenset[int] = frozenset()                        # values that have a gradient: what the tape made

    # ---- what layers are made of

    def input(self, *shape: int, dtype: str | None = None) -> int:
        return self._know(self.builder.input(shape, dtype or self.dtype), shape)

    def parameter(self, *shape: int) -> int:
        return self._know(self.builder.parameter(shape, self.dtype), shape)

    def op(self, kind: str, inputs: Sequence[int], shape: Shape, flops: float, fusion: int, weight: int | None = None) -> int:
        """Add one forward op; `weight` is the parameter it reads beside `inputs`."""
        colocation = -1
        if weight is not None and self.train:
            colocation = self.classes.setdefault(weight, len(self.classes))
        reads = tuple(inputs) + ((weight,) if weight is not None else ())
        out = self._add(kind, reads, shape, flops, fusion, FORWARD, colocation)
        self.tape.append(_Step(kind, tuple(inputs), out, shape, flops, fusion, weight, self.layer, self.module, colocation))
        return out

    def dense(self, x: int, width: int, weight: int | None = None, bias: bool = True) -> int:
        *lead, inner = self.shapes[x]
        weight = self.parameter(inner, width) if weight is None else weight
        rows = math.prod(lead)
        y = self.op("aten.mm", [x], (*lead, width), 2.0 * rows * inner * width, CONTRACTION, weight)
        return self.op("aten.add", [y], (*lead, width), float(rows * width), ELEMENTWISE, self.parameter(width)) if bias else y

    def conv(self, x: int, channels: int, kernel: tuple[int, int] = (3, 3), stride: int = 1) -> int:
        n, c, h, w = self.shapes[x]
        shape = (n, channels, max(1, h // stride), max(1, w // stride))
        weight = self.parameter(channels, c, *kernel)
        return self.op("aten.convolution", [x], shape, 2.0 * math.prod(shape) * c * math.prod(kernel), CONTRACTION, weight)

    def matmul(self, a: int, b: int) -> int:
        left, right = self.shapes[a], self.shapes[b]
        shape = (*left[:-1], right[-1])
        return self.op("aten.bmm", [a, b], shape, 2.0 * math.prod(shape) * left[-1], CONTRACTION)

    def map(self, kind: str, *inputs: int, cost: float = 1.0) -> int:
        """An elementwise op in the shape of its first input."""
        shape = self.shapes[inputs[0]]
        return self.op(f"aten.{kind}", inputs, shape, cost * math.prod(shape), ELEMENTWISE)

    def view(self, kind: str, x: int, shape: Shape) -> int:
        return self.op(f"aten.{kind}", [x], shape, 0.0, VIEW)

    def norm(self, x: int, kind: str = "native_layer_norm") -> int:
        """Batch normalisation at inference is a scale and a shift: elementwise."""
        shape, batch = self.shapes[x], "batch" in kind
        fixed = batch and not self.train
        return self.op(f"aten.{kind}", [x], shape, (2.0 if fixed else 8.0) * math.prod(shape), ELEMENTWISE if fixed else REDUCTION,
                       self.parameter(2, shape[1 if batch else -1]))

    def reduce(self, kind: str, x: int, shape: Shape, cost: float = 1.0) -> int:
        return self.op(f"aten.{kind}", [x], shape, cost * math.prod(self.shapes[x]), REDUCTION)

    def softmax(self, x: int) -> int:
        return self.reduce("_softmax", x, self.shapes[x], 5.0)

    def concat(self, parts: Sequence[int], axis: int) -> int:
        shape = list(self.shapes[parts[0]])
        shape[axis] = sum(self.shapes[part][axis] for part in parts)
        return self.op("aten.cat", parts, tuple(shape), 0.0, OPAQUE)

    def embed(self, ids: int, rows: int, width: int, table: int | None = None) -> int:
        table = self.parameter(rows, width) if table is None else table
        shape = (*self.shapes[ids], width)
        moved = math.prod(shape) * 4
        (out,) = self._node("aten.embedding", (ids, table), shape, 0.0, GATHER, FORWARD, self.classes.setdefault(table, len(self.classes))
                            if self.train else -1, reads=moved, params=moved)
        self.tape.append(_Step("aten.embedding", (), out, shape, 0.0, GATHER, table, self.layer, self.module, self.classes.get(table, -1)))
        return out

    # ---- closing

    def close(self, *results: int) -> Graph:
        """The graph that returns `results`; of training graphs their gradients' updates instead."""
        if not self.train:
            for value in results:
                self.builder.output(value)
            return self.builder.build()
        grads: dict[int, list[int]] = {}
        for value in results:
            loss = self.op("aten.mean", [value], (1,), float(math.prod(self.shapes[value])), REDUCTION)
            self.builder.output(loss)
            grads[loss] = [self._add("aten.ones_like", (loss,), (1,), 1.0, ELEMENTWISE, BACKWARD, -1)]
        weights: dict[int, list[int]] = {}
        self.made = frozenset(step.out for step in self.tape)
        for step in reversed(self.tape):
            self._differentiate(step, grads, weights)
        for weight, parts in weights.items():
            self._update(weight, parts)
        return self.builder.build()

    def _differentiate(self, step: _Step, grads: dict[int, list[int]], weights: dict[int, list[int]]) -> None:
        self.layer, self.module = step.layer, step.module
        if step.out not in grads:
            return
        g = self._sum(grads.pop(step.out), step.shape, -1)
        name = f"{step.kind}_backward"
        active = [x for x in step.inputs if x in self.made]
        if step.fusion == CONTRACTION:
            partners = {x: [y for y in step.inputs if y != x] or ([step.weight] if step.weight is not None else []) for x in active}
            for x in active:
                other = tuple(v for v in partners[x] if v is not None)
                grads.setdefault(x, []).append(self._add(name, (g, *other), self.shapes[x], step.flops, CONTRACTION, BACKWARD, step.colocation))
        elif step.fusion == VIEW:
            for x in active:
                grads.setdefault(x, []).append(self._add(name, (g,), self.shapes[x], 0.0, ELEMENTWISE if len(active) < len(step.inputs) else VIEW,
                                                         BACKWARD, -1))
        else:
            saved = () if step.kind in ("aten.add", "aten.cat", "aten.mean", "aten.embedding") else step.inputs[:2]
            for x in active:
                fusion = REDUCTION if step.fusion == REDUCTION and len(step.shape) > 1 else ELEMENTWISE
                flops = float(math.prod(self.shapes[x])) * (8 if fusion == REDUCTION else 2)
                grads.setdefault(x, []).append(self._add(name, (g, *saved), self.shapes[x], flops, fusion, BACKWARD, -1))
        if step.weight is not None and step.fusion == GATHER:
            weights.setdefault(step.weight, []).append(g)              # rows, as sparse gradients are
        elif step.weight is not None:
            reads, shape = (g, *step.inputs[:1]), self.shapes[step.weight]
            kind = CONTRACTION if step.fusion == CONTRACTION else REDUCTION
            flops = step.flops if kind == CONTRACTION else float(math.prod(step.shape))
            found = self._add(f"{step.kind}_weight", reads, shape, flops, kind, BACKWARD, step.colocation)
            before = weights.get(step.weight)
            weights[step.weight] = [self._sum([*before, found], shape, step.colocation)] if before else [found]    # added up as they come

    def _update(self, weight: int, parts: list[int]) -> None:
        shape, group = self.shapes[weight], self.classes.get(weight, -1)
        if self.shapes[parts[0]] != shape:
            rows = (sum(math.prod(self.shapes[part][:-1]) for part in parts), shape[-1])
            self.builder.output(self._add("optim.sparse_sgd", parts, rows, 2.0 * math.prod(rows), OPAQUE, OPTIMISER, group))
            return
        (total,) = parts
        self.builder.output(self._add("optim.sgd", (total, weight), shape, 4.0 * math.prod(shape), ELEMENTWISE, OPTIMISER, group))

    def _sum(self, parts: list[int], shape: Shape, group: int) -> int:
        total = parts[0]
        for part in parts[1:]:
            total = self._add("aten.add", (total, part), shape, float(math.prod(shape)), ELEMENTWISE, BACKWARD, group)
        return total

    def _add(self, kind: str, reads: Sequence[int], shape: Shape, flops: float, fusion: int, phase: int, colocation: int) -> int:
        (out,) = self._node(kind, tuple(reads), shape, flops, fusion, phase, colocation)
        return out

    def _node(self, kind: str, inputs: Sequence[int], shape: Shape, flops: float, fusion: int, phase: int, colocation: int, *,
              reads: int | None = None, params: int | None = None) -> tuple[int, ...]:
        alias = [inputs[0]] if fusion == VIEW and math.prod(self.shapes[inputs[0]]) >= math.prod(shape) else []
        made = self.builder.node(kind, inputs, [(shape, self.dtype)], module=self.module, flops=flops, fusion=fusion, phase=phase,
                                 colocation=colocation, layer=self.layer, reads=reads, params=params, alias=alias)
        self._know(made[0], shape)
        return made

    def _know(self, value: int, shape: Shape) -> int:
        self.shapes[value] = shape
        return value

    def enter(self, layer: int, module: str) -> None:
        self.layer, self.module = layer, module


# ---- families: each takes the net, its depth, a source of chance, and sizes that are given and not left to chance ---------------------------------

def _sizes(given: Sizes, **chosen: int) -> tuple[int, ...]:
    return tuple(given.get(name, size) for name, size in chosen.items())


def _bottleneck(net: _Net, x: int, channels: int, stride: int) -> int:
    y = x
    for width, kernel, step in ((channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)):
        y = net.norm(net.conv(y, width, (kernel, kernel), step), "native_batch_norm")
        y = net.map("relu", y) if width == channels else y
    if net.shapes[x] != net.shapes[y]:
        x = net.norm(net.conv(x, 4 * channels, (1, 1), stride), "native_batch_norm")
    return net.map("relu", net.map("add", y, x))


def _head(net: _Net, x: int, classes: int) -> int:
    n, c, *_ = net.shapes[x]
    return net.dense(net.reduce("mean.dim", x, (n, c)), classes)


def cnn(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """Residual bottleneck blocks (He et al. 2016) in four stages."""
    batch, base = _sizes(given, batch=dice.choice((16, 32, 64)), base=dice.choice((32, 64)))
    if given.get("cells"):
        return _amoeba(net, depth, batch, base)
    x = net.map("relu", net.norm(net.conv(net.input(batch, 3, 224, 224), base, (7, 7), 4), "native_batch_norm"))
    for block in range(depth):
        stage = min(3, 4 * block // max(depth, 4))
        net.enter(block, f"stage{stage}.block{block}")
        first = block and min(3, 4 * (block - 1) // max(depth, 4)) != stage
        x = _bottleneck(net, x, base << stage, 2 if first else 1)
    net.enter(-1, "head")
    net.results = (_head(net, x, 1000),)


def _amoeba(net: _Net, depth: int, batch: int, base: int) -> None:
    """Cells of five pairwise combinations of what the two cells before gave, in three stages: the space of Zoph et al. (2018), in which AmoebaNet
    (Real et al. 2019) was found."""
    def unit(x: int, channels: int, kernel: tuple[int, int] = (1, 1), stride: int = 1) -> int:
        return net.norm(net.conv(net.map("relu", x), channels, kernel, stride), "native_batch_norm")

    def separable(x: int, kernel: int, stride: int) -> int:
        n, c, h, w = net.shapes[x]
        shape = (n, c, max(1, h // stride), max(1, w // stride))
        deep = net.op("aten.convolution", [net.map("relu", x)], shape, 2.0 * math.prod(shape) * kernel ** 2, CONTRACTION,
                      net.parameter(c, 1, kernel, kernel))
        return net.norm(net.conv(deep, c, (1, 1)), "native_batch_norm")

    def pool(x: int, kind: str, stride: int) -> int:
        n, c, h, w = net.shapes[x]
        return net.reduce(kind, x, (n, c, max(1, h // stride), max(1, w // stride)), 9.0)

    x = before = net.norm(net.conv(net.input(batch, 3, 331, 331), base, (3, 3), 4), "native_batch_norm")
    for cell in range(depth):
        net.enter(cell, f"cell{cell}")
        smaller = cell in (depth // 3, 2 * depth // 3) and cell > 0
        channels, stride = base << min(2, 3 * cell // max(depth, 3)), 2 if smaller else 1
        old = unit(before, channels, stride=max(1, net.shapes[before][2] // net.shapes[x][2]))
        new = unit(x, channels)
        pairs = [net.map("add", separable(new, 3, stride), pool(old, "avg_pool2d", stride)),
                 net.map("add", separable(old, 5, stride), separable(new, 3, stride)),
                 net.map("add", unit(unit(old, channels, (1, 7), stride), channels, (7, 1)), pool(new, "max_pool2d", stride)),
                 net.map("add", separable(old, 3, stride), separable(new, 5, stride))]
        pairs.append(net.map("add", separable(pairs[0], 3, 1), pairs[1]))
        before, x = x, net.concat(pairs[2:], 1)
    net.enter(-1, "head")
    net.results = (_head(net, net.map("relu", x), 1000),)


def inception(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """Parallel branches of convolutions, concatenated (Szegedy et al. 2016)."""
    batch, base = _sizes(given, batch=dice.choice((32, 64)), base=dice.choice((48, 64, 96)))

    def unit(x: int, channels: int, kernel: tuple[int, int], stride: int = 1) -> int:
        return net.map("relu", net.norm(net.conv(x, channels, kernel, stride), "native_batch_norm"))

    x = unit(unit(net.input(batch, 3, 299, 299), 32, (3, 3), 4), 2 * base, (3, 3), 2)
    for block in range(depth):
        net.enter(block, f"mixed{block}")
        wide = base + 32 * min(3, 4 * block // max(depth, 4))
        stride = 2 if depth >= 3 and block in (depth // 3, 2 * depth // 3) else 1
        first = unit(x, wide, (1, 1), stride)
        second = unit(unit(x, wide, (1, 1)), wide, (5, 5), stride)
        third = unit(unit(unit(x, wide, (1, 1)), wide, (1, 7)), wide, (7, 1), stride)
        shape = (*net.shapes[x][:2], *net.shapes[first][2:])
        pool = unit(net.reduce("avg_pool2d", x, shape, 9.0), wide, (1, 1))
        x = net.concat([first, second, third, pool], 1)
    net.enter(-1, "head")
    net.results = (_head(net, x, 1000),)


def _cell(net: _Net, x: int, state: tuple[int, int], weights: tuple[int, int, int], width: int) -> tuple[int, int]:
    """An LSTM step (Hochreiter and Schmidhuber 1997)."""
    h, c = state
    gates = net.map("add", net.dense(x, 4 * width, weights[0], bias=False), net.dense(h, 4 * width, weights[1], bias=False))
    gates = net.op("aten.add", [gates], net.shapes[gates], float(math.prod(net.shapes[gates])), ELEMENTWISE, weights[2])
    shape = (net.shapes[x][0], width)
    i, f, o, g = (net.view("slice", gates, shape) for _ in range(4))
    i, f, o = (net.map("sigmoid", part, cost=4.0) for part in (i, f, o))
    g = net.map("tanh", g, cost=4.0)
    c = net.map("add", net.map("mul", f, c), net.map("mul", i, g))
    return net.map("mul", o, net.map("tanh", c, cost=4.0)), c


def _lstm(net: _Net, steps: Sequence[int], width: int, layer: int, name: str) -> list[int]:
    net.enter(layer, name)
    inner, batch = net.shapes[steps[0]][-1], net.shapes[steps[0]][0]
    weights = net.parameter(inner, 4 * width), net.parameter(width, 4 * width), net.parameter(4 * width)
    state = net.input(batch, width), net.input(batch, width)
    out = []
    for x in steps:
        state = _cell(net, x, state, weights, width)
        out.append(state[0])
    return out


def rnnlm(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """A language model of stacked LSTMs, unrolled (Jozefowicz et al. 2016)."""
    layers = dice.choice((2, 4, 8)) if depth >= 8 else 1 + (depth > 2)
    layers, = _sizes(given, layers=layers)
    steps, width, batch = _sizes(given, steps=max(1, round(depth / layers)), width=dice.choice((512, 1024, 2048)), batch=dice.choice((64, 128)))
    table, classes = net.parameter(10_000, width), net.parameter(width, 10_000)
    xs = [net.embed(net.input(batch, dtype="int64"), 10_000, width, table) for _ in range(steps)]
    for layer in range(layers):
        xs = _lstm(net, xs, width, layer, f"lstm{layer}")
    net.enter(layers, "softmax")
    net.results = tuple(net.softmax(net.dense(x, 10_000, classes, bias=False)) for x in xs)


def gnmt(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """Encoder and decoder of LSTMs with residual links and attention (Wu et al. 2016), unrolled."""
    layers = dice.choice((2, 4, 8)) if depth >= 16 else 1
    layers, = _sizes(given, layers=layers)
    steps, width, batch = _sizes(given, steps=max(1, round(depth / (2 * layers))), width=dice.choice((512, 1024)), batch=dice.choice((64, 128)))
    table, classes = net.parameter(32_000, width), net.parameter(width, 32_000)
    xs = [net.embed(net.input(batch, dtype="int64"), 32_000, width, table) for _ in range(steps)]
    for layer in range(layers):
        ys = _lstm(net, xs, width, layer, f"encoder.{layer}")
        if layer == 0 and layers > 1:
            back = _lstm(net, xs[::-1], width, layer, "encoder.back")[::-1]
            ys = [net.map("add", a, b) for a, b in zip(ys, back, strict=True)]
        xs = [net.map("add", a, b) for a, b in zip(xs, ys, strict=True)] if layer > 1 else ys
    net.enter(layers, "attention")
    memory = net.concat([net.view("unsqueeze", x, (batch, 1, width)) for x in xs], 1)
    keys = net.dense(memory, width, bias=False)
    flipped = net.view("transpose", keys, (batch, width, steps))
    ys = [net.embed(net.input(batch, dtype="int64"), 32_000, width, table) for _ in range(steps)]
    for layer in range(layers):
        zs = _lstm(net, ys, width, layers + 1 + layer, f"decoder.{layer}")
        if layer == 0:
            net.enter(layers, "attention")
            zs = [_attend_step(net, z, flipped, memory) for z in zs]
        ys = [net.map("add", a, b) for a, b in zip(ys, zs, strict=True)] if layer > 1 else zs
    net.enter(2 * layers + 1, "softmax")
    net.results = tuple(net.softmax(net.dense(y, 32_000, classes, bias=False)) for y in ys)


def _attend_step(net: _Net, query: int, keys: int, memory: int) -> int:
    batch, width = net.shapes[query]
    weights = net.softmax(net.matmul(net.view("unsqueeze", query, (batch, 1, width)), keys))
    context = net.view("squeeze", net.matmul(weights, memory), (batch, width))
    return net.map("tanh", net.map("add", query, context), cost=4.0)


def _heads(net: _Net, x: int, heads: int) -> int:
    batch, steps, width = net.shapes[x]
    split = net.view("view", x, (batch, steps, heads, width // heads))
    return net.view("transpose", split, (batch, heads, steps, width // heads))


def _attention(net: _Net, x: int, memory: int, heads: int, relative: bool = False) -> int:
    batch, steps, width = net.shapes[x]
    q, k, v = (_heads(net, net.dense(source, width), heads) for source in (x, memory, memory))
    long = net.shapes[k][2]
    scores = net.matmul(q, net.view("transpose", k, (batch, heads, width // heads, long)))
    if relative:
        place = net.parameter(width // heads, long)
        other = net.op("aten.mm", [q], net.shapes[scores], 2.0 * math.prod(net.shapes[scores]) * width // heads, CONTRACTION, place)
        scores = net.map("add", scores, net.op("aten.roll", [other], net.shapes[scores], 0.0, GATHER))
    mixed = net.matmul(net.softmax(net.map("mul", scores)), v)
    joined = net.view("view", net.view("transpose", mixed, (batch, steps, heads, width // heads)), (batch, steps, width))
    return net.norm(net.map("add", x, net.dense(joined, width)))


def _feed(net: _Net, x: int, times: int = 4) -> int:
    width = net.shapes[x][-1]
    return net.norm(net.map("add", x, net.dense(net.map("gelu", net.dense(x, times * width), cost=8.0), width)))


def transformer_xl(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """Segments that attend to the previous segment's states (Dai et al. 2019)."""
    layers = min(depth, dice.choice((2, 4, 8, 12, 24)))
    layers, = _sizes(given, layers=layers)
    segments = max(1, round(depth / layers))
    width, batch, steps = _sizes(given, width=dice.choice((512, 768, 1024)), batch=dice.choice((8, 16)), steps=dice.choice((64, 128)))
    table, classes = net.parameter(32_000, width), net.parameter(width, 32_000)
    cache = [net.input(batch, steps, width) for _ in range(layers)]
    results = []
    for segment in range(segments):
        net.enter(-1, f"segment{segment}.embed")
        x = net.embed(net.input(batch, steps, dtype="int64"), 32_000, width, table)
        for layer in range(layers):
            net.enter(layer, f"segment{segment}.layer{layer}")
            fresh, x = x, _feed(net, _attention(net, x, net.concat([cache[layer], x], 1), 8, relative=True))
            cache[layer] = fresh
        net.enter(layers, f"segment{segment}.softmax")
        results.append(net.softmax(net.dense(x, 32_000, classes, bias=False)))
    net.results = tuple(results)


def wavenet(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """Gated dilated causal convolutions with skip connections, in stacks (van den Oord et al. 2016)."""
    width, batch, long = _sizes(given, width=dice.choice((128, 256)), batch=dice.choice((4, 8, 16)), long=dice.choice((4096, 8192)))
    x = net.conv(net.input(batch, 1, long, 1), width, (2, 1))
    skips = []
    for layer in range(depth):
        net.enter(layer, f"stack{layer // 18}.layer{layer % 18}")
        gate = net.map("mul", net.map("tanh", net.conv(x, width, (2, 1)), cost=4.0), net.map("sigmoid", net.conv(x, width, (2, 1)), cost=4.0))
        skips.append(net.conv(gate, 2 * width, (1, 1)))
        x = net.map("add", x, net.conv(gate, width, (1, 1)))
    net.enter(depth, "post")
    total = skips[0]
    for skip in skips[1:]:
        total = net.map("add", total, skip)
    out = net.conv(net.map("relu", net.conv(net.map("relu", total), 2 * width, (1, 1))), 256, (1, 1))
    net.results = (net.softmax(out),)


def moe(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """A transformer whose feed-forward is a mixture of experts (Shazeer et al. 2017); each expert gets its capacity of tokens."""
    experts, width, batch, steps = _sizes(given, experts=dice.choice((4, 8, 16)), width=dice.choice((512, 1024)), batch=dice.choice((8, 16)),
                                          steps=128)
    x = net.embed(net.input(batch, steps, dtype="int64"), 32_000, width)
    capacity = 2 * batch * steps // experts
    for layer in range(depth):
        net.enter(layer, f"layer{layer}")
        x = _attention(net, x, x, 8)
        flat = net.view("view", x, (batch * steps, width))
        gate = net.softmax(net.dense(flat, experts, bias=False))
        parts = []
        for _ in range(experts):
            picked = net.op("aten.index_select", [flat, gate], (capacity, width), 0.0, GATHER)
            parts.append(net.dense(net.map("relu", net.dense(picked, 4 * width)), width))
        whole = net.op("aten.index_add", [flat, *parts], (batch * steps, width), float(experts * capacity * width), OPAQUE)
        x = net.norm(net.view("view", whole, (batch, steps, width)))
    net.enter(depth, "softmax")
    net.results = (net.softmax(net.dense(x, 32_000, bias=False)),)


def encoder_decoder(net: _Net, depth: int, dice: random.Random, given: Sizes) -> None:
    """The transformer of translation (Vaswani et al. 2017): the decoder attends to itself and to the encoder."""
    width, batch, steps = _sizes(given, width=dice.choice((512, 768, 1024)), batch=dice.choice((8, 16, 32)), steps=dice.choice((64, 128)))
    x, y = (net.embed(net.input(batch, steps, dtype="int64"), 32_000, width) for _ in range(2))
    for layer in range((depth + 1) // 2):
        net.enter(layer, f"encoder.{layer}")
        x = _feed(net, _attention(net, x, x, 8))
    for layer in range((depth + 1) // 2):
        net.enter((depth + 1) // 2 + layer, f"decoder.{layer}")
        y = _feed(net, _attention(net, _attention(net, y, y, 8), x, 8))
    net.enter(2 * ((depth + 1) // 2), "softmax")
    net.results = (net.softmax(net.dense(y, 32_000, bias=False)),)


FAMILIES: dict[str, Callable[[_Net, int, random.Random, Sizes], None]] = {
    family.__name__: family for family in (cnn, inception, rnnlm, gnmt, transformer_xl, wavenet, moe, encoder_decoder)}


def make(family: str, nodes: int = 1000, seed: int = 0, train: bool = False) -> Graph:
    """A graph of `family` with about `nodes` nodes (as near as whole layers allow). Raises InputError for an unknown family or fewer than 30
    nodes.
    """
    if family not in FAMILIES:
        raise InputError(f"There is no family {family!r}.", f"There are: {', '.join(FAMILIES)}.")
    if nodes < _SMALLEST:
        raise InputError(f"A graph of {nodes} nodes is too small to be one of {family}.", f"Ask for {_SMALLEST} or more.")
    depth, tried = 1, {}
    for _ in range(6):                                                 # depth is nearly proportional to nodes: a few secant steps reach it
        tried[depth] = graph = _made(family, depth, seed, train, nodes)
        better = max(1, round(depth * nodes / len(graph))) if depth > 1 else max(2, nodes // max(8, len(graph)))
        if better in tried:
            break
        depth = better
    return min(tried.values(), key=lambda g: abs(math.log(len(g) / nodes)))


def _made(family: str, depth: int, seed: int, train: bool, nodes: int) -> Graph:
    net = _Net(f"{family}-{nodes}{'-train' if train else ''}-{seed}", train)
    FAMILIES[family](net, depth, random.Random(f"{family} {seed}"), {})
    return net.close(*net.results)


@dataclass(frozen=True)
class Published:
    """A model of the placement literature: its family, depth and sizes, and the number of devices it was placed on."""

    family: str
    depth: int
    devices: int
    sizes: Sizes


# the models of GO's table 1 (Zhou et al. 2020) on its numbers of devices, and two of the families it lacks; layers and batches that it names are its
# own, all other sizes (steps, widths, vocabularies) are the usual ones of those models' papers, since it does not state them
PUBLISHED: dict[str, Published] = {
    **{f"rnnlm-{n}": Published("rnnlm", 35 * n, n, {"layers": n, "steps": 35, "width": 2048, "batch": 128}) for n in (2, 4, 8)},
    **{f"gnmt-{n}": Published("gnmt", 80 * n, n, {"layers": n, "steps": 40, "width": 1024, "batch": 128}) for n in (2, 4, 8)},
    **{f"transformer-xl-{n}": Published("transformer_xl", 4 * n, n, {"layers": n, "width": 1024, "batch": 16, "steps": 128}) for n in (2, 4, 8)},
    **{f"inception-{b}": Published("inception", 11, 2, {"batch": b, "base": 96}) for b in (32, 64)},
    "amoebanet": Published("cnn", 18, 4, {"cells": 1, "batch": 16, "base": 64}),
    "resnet": Published("cnn", 16, 4, {"batch": 64, "base": 64}),
    "wavenet-2x18": Published("wavenet", 36, 2, {"width": 256, "batch": 4, "long": 8192}),
    "wavenet-4x36": Published("wavenet", 144, 4, {"width": 128, "batch": 2, "long": 8192}),
    "moe": Published("moe", 6, 4, {"experts": 16, "width": 1024, "batch": 16}),
    "encoder-decoder": Published("encoder_decoder", 12, 2, {"width": 1024, "batch": 32, "steps": 64}),
}


def published(name: str, train: bool = True) -> Graph:
    """A graph of `PUBLISHED`. Raises InputError for an unknown name."""
    if name not in PUBLISHED:
        raise InputError(f"There is no published model {name!r}.", f"There are: {', '.join(PUBLISHED)}.")
    one = PUBLISHED[name]
    net = _Net(f"{name}{'-train' if train else ''}", train)
    FAMILIES[one.family](net, one.depth, random.Random(name), one.sizes)
    return net.close(*net.results)
