"""Roofline: how long each op, or each fused group of ops, takes alone on each device, and the joules of it.

    seconds = launch + max( work / (peak · share by work · factor by least side),  bytes / (bandwidth · share by reuse) ) + weights / relay

(Williams, Waterman, Patterson 2009, with a fixed cost per call and shares that depend on size.) Work is FLOPs of contractions and scalar steps of
others. Activations were written by the op before, so they are reused after the bytes that it and the op itself move; parameters come round once
a run, so their reuse distance is the bytes of all parameters of the graph: that is how a curve of bandwidth by size tells the weights of a large
model (from memory) from its activations (from caches). The more bytes have passed since an op of the same kind ran, the more a call itself costs
(`Device.cold`). Only what lays its weights out anew at every call (convolutions of a processor) has a `relay`. Shares are looked up by the op's kind,
then its short name, then its family:

    matmul strided batched conv pointwise depthwise attention recurrent · elementwise (add) and by name what costs more (gelu, tanh, …) · reduction
    and by name (softmax, layer_norm, mean, …) · copy · gather · opaque · view · fused

A fused group reads what it needs from outside once, writes what others need once, and is launched once (`fused`'s launch where the device has that
family, else the dearest of its members'). Its contractions cost what they cost alone; other members only the arithmetic by which they are slower
than an addition of the same size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.graph import BITS, CONTRACTION, ELEMENTWISE, GATHER, INTERMEDIATE, OPAQUE, PARAMETER, REDUCTION, VIEW, Graph, number
from fourfold.machine import Device, Efficiency, Machine

_CLASS = {OPAQUE: "opaque", ELEMENTWISE: "elementwise", REDUCTION: "reduction", CONTRACTION: "matmul", VIEW: "view", GATHER: "gather"}
_ALIKE = {                                                              # family → what costs about the same, under torch's, ONNX's and JAX's names
    "batched": "bmm baddbmm matmul einsum dot_general",
    "conv": "convolution conv conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convtranspose conv_general_dilated convinteger "
            "qlinearconv convolution_backward mkldnn_convolution",
    "attention": "scaled_dot_product_attention scaled_dot_product_flash_attention_for_cpu scaled_dot_product_flash_attention multiheadattention "
                 "scaled_dot_product_efficient_attention attention scaled_dot_product_attention_math",
    "recurrent": "lstm gru rnn rnn_tanh rnn_relu mkldnn_rnn_layer",
    "gelu": "gelu gelu_backward fastgelu", "tanh": "tanh atan asinh", "exp": "exp exp2 expm1", "sigmoid": "sigmoid logistic hardsigmoid",
    "silu": "silu swish mish silu_backward hardswish softplus elu selu celu", "erf": "erf erfc erfinv",
    "log": "log log2 log1p sin cos", "mean": "mean reducemean var std var_mean", "adaptive_avg_pool2d": "globalaveragepool",
    "sqrt": "sqrt rsqrt reciprocal div truediv",
    "relu": "relu relu_ hardtanh clamp clip clamp_min clamp_max leaky_relu leakyrelu prelu threshold neg abs",
    "softmax": "softmax safe_softmax log_softmax logsoftmax logsumexp softmax_backward_data log_softmax_backward_data",
    "layer_norm": "layer_norm native_layer_norm layernormalization rms_norm fused_rms_norm simplifiedlayernormalization group_norm native_group_norm "
                  "groupnormalization instance_norm instancenormalization native_layer_norm_backward native_group_norm_backward",
    "batch_norm": "batch_norm batchnormalization native_batch_norm_legit_no_training native_batch_norm native_batch_norm_legit cudnn_batch_norm "
                  "native_batch_norm_legit_functional native_batch_norm_backward",
    "pool": "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices maxpool avg_pool1d avg_pool2d avg_pool3d averagepool lrn reduce_window_max "
            "reduce_window_sum",
    "copy": "clone copy contiguous to to_copy permute_copy transpose expand tile repeat convert_element_type cast roll flip pixel_shuffle "
            "depthtospace upsample_nearest2d upsample resize tril triu slice_scatter",
    "cat": "cat concat concatenate stack split constant_pad_nd pad", "where": "where masked_fill select_n",
    "gather": "embedding index index_select gather take",
}
_FAMILY = {name: family for family, names in _ALIKE.items() for name in names.split()}


def short(kind: str) -> str:
    """The plain name of a kind of op: "aten._softmax.default" → "softmax", "Conv" → "conv", "prims.convert_element_type" → "convert_element_type"."""
    name = re.sub(r"^(aten|prims|onnx|ai\.onnx|com\.microsoft|torch|jax|quantized)[.:]+", "", kind)
    return name.split(".")[0].strip("_").lower()


def families(kind: str, fusion: int) -> tuple[str, ...]:
    """Under which names the shares of an op are looked up, best first."""
    name = short(kind)
    mapped = _FAMILY.get(name)
    if fusion == VIEW:
        names = (name, "view")
    elif mapped in ("conv", "batched", "attention", "recurrent") or fusion == CONTRACTION:
        names = (*([] if name == "matmul" and mapped else [name]), mapped or "matmul", "matmul")    # the family is linear layers, not aten.matmul
    else:
        names = (name, *([mapped] if mapped else []), _CLASS[fusion], "elementwise")
    return tuple(dict.fromkeys((kind, *names)))


def seconds(graph: Graph, system: Machine) -> NDArray[np.float64]:
    """f8[N, D] s of each node alone on each device; inf where the device cannot run it."""
    return Prices(graph, system).alone


def joules(graph: Graph, system: Machine) -> NDArray[np.float64]:
    """f8[N, D] J of each node alone on each device: busy watts × seconds. Idle watts of the others are the simulator's to add."""
    return seconds(graph, system) * np.array([device.busy for device in system.devices])


def fused_seconds(graph: Graph, groups: ArrayLike, system: Machine, prices: Prices | None = None) -> NDArray[np.float64]:
    """f8[T, D] s of each group of `groups` i4[N] (equal number = fused, -1 = alone; tasks numbered by their first node, as `tasks_of` does).

    `prices` of this graph on this system, where they are at hand, save most of the work. Raises InputError where `groups` has another length.
    """
    prices = Prices(graph, system) if prices is None else prices
    task, count = number(groups, len(graph))
    inside, outside = _traffic(graph, task, count)
    members = np.bincount(task, minlength=count)
    alone = members[task] == 1
    result = np.zeros((count, len(system)))
    for d, device in enumerate(system.devices):
        result[task[alone], d] = prices.alone[alone, d]
        if alone.all():
            continue
        launch, arithmetic = np.zeros(count), np.zeros(count)
        np.maximum.at(launch, task, np.where(graph.fusion == VIEW, 0.0, prices.launch[:, d]))
        views = np.zeros(count)
        np.maximum.at(views, task, prices.launch[:, d])
        launch = np.where(launch > 0, launch, views)                    # a group of views only
        computing = np.zeros(count, bool)
        computing[task[graph.fusion != VIEW]] = True
        fused = device.efficiency.get("fused")
        if fused is not None and fused.launch is not None:
            contracting = np.zeros(count)
            np.maximum.at(contracting, task, np.where(graph.fusion == CONTRACTION, prices.launch[:, d], 0.0))
            launch = np.where(computing, np.maximum(fused.launch, contracting), launch)
        np.add.at(arithmetic, task, prices.arithmetic[:, d])
        curve = fusing(device)
        total = inside + outside
        moved = total / (device.bandwidth * Efficiency.at(curve.bandwidth, np.maximum(total, 1.0)))
        cold = prices.cold(device, curve, np.bincount(task, weights=graph.params, minlength=count).clip(max=total))
        time = launch + np.maximum(arithmetic, np.maximum(moved, cold))
        unable = np.zeros(count, bool)
        unable[task[np.isinf(prices.alone[:, d])]] = True
        time[unable] = np.inf
        several = members > 1
        result[several, d] = time[several]
    return result


def _traffic(graph: Graph, task: NDArray[np.int64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(read, written) f8[T] bytes that cross each group's border, each value once: what its members read from outside, what others need of it."""
    values = len(graph.producer)
    maker = np.where(graph.producer >= 0, task[graph.producer], -1)
    root_maker = np.where(graph.role[graph.alias] == INTERMEDIATE, maker[graph.alias], -1)
    node = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    value = graph.in_val.astype(np.int64)
    counts = (graph.fusion[node] != VIEW) & (root_maker[value] != task[node])
    node, value = node[counts], value[counts]
    root = graph.alias[value].astype(np.int64)
    size = np.minimum(np.minimum(graph.size[value], graph.size[root]), graph.reads[node])
    read = np.zeros(count)
    if len(node):
        first, inverse = np.unique(task[node] * values + value, return_inverse=True)    # each value once …
        largest = np.zeros(len(first))
        np.maximum.at(largest, inverse.reshape(-1), size)
        storage, back = np.unique((first // values) * values + graph.alias[first % values], return_inverse=True)
        total = np.bincount(back.reshape(-1), weights=largest)                            # … and no storage more than whole
        np.add.at(read, storage // values, np.minimum(total, graph.size[storage % values]))
    reader = np.repeat(np.arange(values), np.diff(graph.use_ptr))
    leaves = np.zeros(values, bool)
    leaves[reader[task[graph.use_node] != maker[reader]]] = True
    leaves[graph.outputs] = True
    out = np.flatnonzero(leaves & (maker >= 0) & (root_maker == maker))
    stored = np.unique(graph.alias[out])
    written = np.zeros(count)
    np.add.at(written, maker[stored], graph.size[stored].astype(np.float64))
    return read, written


class Prices:
    """What every question needs of a graph on a system, priced once.

    `alone`, `launch`, `arithmetic` f8[N, D] s: a node by itself; the fixed part of that; what a node adds to a group that moves its bytes anyway
    (never more than `alone − launch`). `weights` bytes of all parameters.
    """

    def __init__(self, graph: Graph, system: Machine) -> None:
        self.graph, count, devices = graph, len(graph), len(system)
        parameters = (graph.role == PARAMETER) & (graph.alias == np.arange(len(graph.alias)))
        self.weights = float(max(graph.size[parameters].sum(), 1.0))
        self.work, self.moved = graph.flops + graph.steps, (graph.reads + graph.writes).astype(np.float64)
        self.narrow, form = _sides(graph)
        self.before, self.since = _before(graph, self.moved), _since(graph, self.moved)
        self.types = _types(graph)
        kinds, back = np.unique(graph.kind.astype(np.int64) * 8 + graph.fusion, return_inverse=True)
        code = back.reshape(-1) * len(_FORMS) + form
        order = np.argsort(code, kind="stable")
        cuts = np.flatnonzero(np.diff(code[order], prepend=-1))
        self.rows: list[tuple[tuple[str, ...], NDArray[np.int64]]] = []       # names of the shares, the nodes that have them
        for rows in np.split(order, cuts[1:]) if count else []:
            name, special = kinds[code[rows[0]] // len(_FORMS)], _FORMS[code[rows[0]] % len(_FORMS)]
            first, *others = families(graph.kinds[name // 8], int(name % 8))
            self.rows.append(((first, special, *others) if special else (first, *others), rows))
        self.alone, self.launch, self.arithmetic = np.zeros((count, devices)), np.zeros((count, devices)), np.zeros((count, devices))
        done: dict[int, int] = {}
        for d, device in enumerate(system.devices):
            twin = next((e for e in done if _same(system.devices[e], device)), None)
            if twin is not None:
                for table in (self.alone, self.launch, self.arithmetic):
                    table[:, d] = table[:, twin]
                continue
            done[d] = d
            self._price(d, device)

    def cold(self, device: Device, curve: Efficiency, size: np.ndarray) -> NDArray[np.float64]:
        """s to read parameters of `size` bytes, which come round once a run."""
        return size / (device.bandwidth * Efficiency.at(curve.bandwidth, self.weights))

    def _price(self, d: int, device: Device) -> None:
        graph = self.graph
        plain = curve_of(device, ("elementwise",))
        types, coded = self.types
        speeds = np.array([device.speed(dtype) for dtype in types])
        for key, rows in self.rows:
            curve = curve_of(device, key)
            launch = device.launch if curve.launch is None else curve.launch
            fusion = int(graph.fusion[rows[0]])
            speed = speeds[coded[rows]]
            if fusion != CONTRACTION:
                speed = np.where(speed > 0, speed, max(device.peak.values()))   # integer arithmetic beside the main unit
            work, moved, params = self.work[rows], self.moved[rows], graph.params[rows].astype(np.float64)
            share = Efficiency.at(curve.peak, np.maximum(work, 1.0)) * Efficiency.at(curve.narrow, self.narrow[rows])
            with np.errstate(divide="ignore"):
                compute = np.where(work > 0, work / (speed * share), 0.0)
            warm = (moved - params) / (device.bandwidth * Efficiency.at(curve.bandwidth, np.maximum(moved + self.before[rows], 1.0)))
            memory = warm + self.cold(device, curve, params)
            self.launch[rows, d] = launch + device.chill(self.since[rows])
            self.alone[rows, d] = self.launch[rows, d] + np.maximum(compute, memory) + params / curve.relay
            if fusion == CONTRACTION:
                self.arithmetic[rows, d] = compute
            elif fusion in (ELEMENTWISE, REDUCTION):
                best, other = max(share for _, share in curve.bandwidth), max(share for _, share in plain.bandwidth)
                self.arithmetic[rows, d] = np.maximum(compute, moved / device.bandwidth * max(0.0, 1 / best - 1 / other))
            elif fusion != VIEW:
                self.arithmetic[rows, d] = np.maximum(compute, memory)
            kinds = set(np.unique(graph.kind[rows]).tolist())
            banned = [kind for kind in kinds if not device.supports(graph.kinds[kind])]
            if banned:
                self.alone[rows[np.isin(graph.kind[rows], banned)], d] = np.inf


def curve_of(device: Device, names: Sequence[str]) -> Efficiency:
    """The device's shares under the first of these names that it knows; all of peak and bandwidth where it knows none."""
    return next((device.efficiency[name] for name in names if name in device.efficiency), Efficiency())


def fusing(device: Device) -> Efficiency:
    """The shares that a fused group gets on a device."""
    return curve_of(device, ("fused", "elementwise"))


def _same(one: Device, other: Device) -> bool:
    facts = ("peak", "bandwidth", "launch", "efficiency", "unsupported", "cold")
    return all(getattr(one, fact) == getattr(other, fact) for fact in facts)


def _before(graph: Graph, moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """f8[N] bytes that the node before each moved; after a view none, since the view has paid for what its own call found cold."""
    return np.concatenate([[0.0], moved[:-1]]) if len(moved) else moved


def _since(graph: Graph, moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """f8[N] bytes that passed since a node of the same kind ran, in a program that runs again and again: the longer, the colder its code."""
    upto = np.cumsum(moved)
    order = np.argsort(graph.kind, kind="stable")
    kind = graph.kind[order]
    since = np.zeros(len(graph))
    if len(order):
        begins = np.flatnonzero(np.diff(kind, prepend=kind[0] - 1))
        ends = np.append(begins[1:], len(order)) - 1
        last = np.concatenate([[0], order[:-1]])
        since[order] = upto[order] - moved[order] - upto[last]
        first = order[begins]
        since[first] = upto[first] - moved[first] + upto[-1] - upto[order[ends]]
    return since


def _types(graph: Graph) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(dtypes, [N] which of them each node computes in): of a contraction its first input's, of others its first output's; float32 where there is
    none.
    """
    codes: dict[str, int] = {"float32": 0}
    coded = np.array([codes.setdefault(dtype, len(codes)) if dtype in BITS else 0 for dtype in graph.dtype] + [0], np.int64)
    found = np.zeros(len(graph), np.int64)
    heavy = graph.fusion == CONTRACTION
    for mine, ptr, val in ((heavy, graph.in_ptr, graph.in_val), (~heavy, graph.out_ptr, graph.out_val)):
        some = np.flatnonzero(mine & (np.diff(ptr) > 0))
        found[some] = coded[val[ptr[some]]]
    return tuple(codes), found


def elements(graph: Graph) -> NDArray[np.int64]:
    """i8[V] number of elements of each value; 1 of a scalar."""
    count = np.ones(len(graph.producer), np.int64)
    some = np.flatnonzero(np.diff(graph.shape_ptr) > 0)
    if len(some):
        count[some] = np.multiply.reduceat(graph.shape, graph.shape_ptr[some])
    return count


_FORMS = ("", "depthwise", "pointwise", "strided")
_TURNING = ("transpose", "permute", "t", "mt", "movedim", "swapaxes", "swapdims", "moveaxis")


def _sides(graph: Graph) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(least side of the matrix product f8[N], of a convolution its depth; which of _FORMS a contraction has [N]).

    A contraction with O outputs does FLOPs / 2O multiplications for each, its depth; the other sides are its output's columns and rows (the points of
    one matrix). A linear layer is strided where a transposed view of three or more sides reaches it.
    """
    least, form = np.full(len(graph), 1e9), np.zeros(len(graph), np.int64)
    nodes = np.flatnonzero((graph.fusion == CONTRACTION) & (graph.flops > 0) & (np.diff(graph.out_ptr) > 0))
    if not len(nodes):
        return least, form
    made = graph.out_val[graph.out_ptr[nodes]]
    start, rank = graph.shape_ptr[made], np.diff(graph.shape_ptr)[made]
    shape = np.append(graph.shape, 1)

    def side(position: np.ndarray, there: np.ndarray) -> np.ndarray:
        return np.where(there, shape[np.where(there, start + position, 0)], 1)

    families_of = np.array([{"conv": 1, "batched": 2}.get(_FAMILY.get(short(kind), ""), 0) for kind in graph.kinds])[graph.kind[nodes]]
    points = np.maximum(elements(graph)[made], 1)
    conv = (families_of == 1) & (rank > 2)
    channels = np.where(conv, side(np.ones_like(rank), rank > 1), side(rank - 1, rank > 0))
    whole = conv | (families_of != 2) & (rank > 2)                      # linear on [batch, length, width] is one product
    rows = np.where(whole, points / np.maximum(channels, 1), side(rank - 2, rank > 1))
    depth = graph.flops[nodes] / (2 * points)
    least[nodes] = np.maximum(1.0, np.where(conv, depth, np.minimum(np.minimum(depth, channels), rows)))
    turning = np.array([short(kind) in _TURNING for kind in graph.kinds], bool)
    linear = np.array([short(kind) == "linear" for kind in graph.kinds], bool)[graph.kind[nodes]]
    read = graph.in_val[np.minimum(graph.in_ptr[nodes], len(graph.in_val) - 1)]
    maker = graph.producer[read]
    wide = np.array([np.count_nonzero(np.array(graph.shape_of(int(v))) > 1) > 2 for v in read], bool)
    form[nodes[linear & wide & (maker >= 0) & turning[graph.kind[np.maximum(maker, 0)]]]] = _FORMS.index("strided")
    for n, deep, made_of in zip(nodes[conv].tolist(), rank[conv].tolist(), channels[conv].tolist(), strict=True):
        weight = next((graph.shape_of(int(v)) for v in graph.inputs_of(n)[1:] if len(graph.shape_of(int(v))) == deep), ())
        if len(weight) > 1:
            form[n] = 1 if weight[1] == 1 and made_of > 1 else 2 if all(length == 1 for length in weight[2:]) else 0
    return least, form
