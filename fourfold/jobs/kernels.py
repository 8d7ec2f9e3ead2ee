"""What calibration times: single operators of torch at many sizes, called as the eager engine calls them. No model is among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourfold.measure import bootstrap

if TYPE_CHECKING:
    from torch import Tensor

KB, MB = 2.0**10, 2.0**20
SIZES = (KB, 16 * KB, 128 * KB, 512 * KB, 2 * MB, 8 * MB, 40 * MB)    # results of 32 MB or more are mapped anew by every call
WIDE = 1e9                                                              # the least side of what is no matrix product


class TimedCall(NamedTuple):
    """`run` is timed; `write` writes what the op before would have written, `written` bytes of it."""

    run: Callable[[], object]
    write: Callable[[], None]
    written: float


@dataclass
class Sample:
    """One op to time: its family, what it does (`work` FLOP, `moved` B, `params` B of them weights, `narrow` least side of the product), how to
    make a call of it on tensors of its own. `times` s, one a call; `reach` B that passed before each since its weights were last read."""

    family: str
    work: float
    moved: float
    narrow: float
    make: Callable[[], TimedCall]
    dtype: str = "float32"
    params: float = 0.0
    written: float = 0.0
    long: bool = False
    times: list[float] = field(default_factory=list)
    reach: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The lower quartile."""
        return float(np.quantile(self.times, 0.25))

    @property
    def distance(self) -> float:
        """B until weights come round again, geometric mean over the calls; without any record what it moves itself."""
        return math.exp(float(np.mean(np.log(np.maximum(self.reach, 1.0))))) if self.reach else max(self.moved, 1.0)

    def interval(self, seed: int = 0) -> tuple[float, float]:
        """s: 90 % of the lower quartiles of resampled calls."""
        return bootstrap.interval(bootstrap.resampled(lambda times: np.quantile(times, 0.25, axis=1), self.times, seed=seed, resamples=200))


def _ready(run: Callable[[], object], *inputs: Tensor) -> TimedCall:
    """Activations are written in place before each call: what is positive stays as it is."""
    floats = [x for x in inputs if x.is_floating_point()]

    def write() -> None:
        for x in floats:
            x.abs_()

    return TimedCall(run, write, float(sum(x.numel() * x.element_size() for x in floats)))


class _Tensors:
    """Random positive tensors cut from one block, quickly: random, since pooling is quicker over equal values."""

    def __init__(self, large: float) -> None:
        import torch

        self.block = torch.rand(int(2**24 * large)) + 0.1

    def __call__(self, *shape: int, dtype: Any = None) -> Tensor:
        count = math.prod(shape)
        if count <= len(self.block):
            made = self.block[:count].clone()
        else:
            made = self.block.repeat(-(-count // len(self.block)))[:count].clone()
        return made.view(shape) if dtype is None else made.view(shape).to(dtype)


class _Operators:
    """`aten.gelu.default` without the checks in Python that torch puts around it, as the eager engine calls it."""

    def __init__(self, packet: object = None) -> None:
        import torch

        self.packet = torch.ops.aten if packet is None else packet

    def __getattr__(self, name: str) -> object:
        found = getattr(self.packet, name)
        return found._op if hasattr(found, "_overloadname") else _Operators(found)


def samples(large: float, bfloat: bool) -> Iterator[Sample]:
    """Operators of torch. `large` (0 to 1) scales the largest sizes; `bfloat`: time a product in bfloat16 too."""
    rand, aten = _Tensors(large), _Operators()
    for family, make, each in _moving(rand, aten):
        for size in SIZES:
            if size <= max(64 * MB * large, 2 * MB):
                n = 256 * math.ceil(size / each / 256)
                yield Sample(family, 0.0, n * each, WIDE, lambda make=make, n=n: make(n))
    for family, call in _small(rand, aten):
        yield Sample(family, 0.0, 4 * KB, WIDE, lambda call=call: _ready(call))
    yield from _products(rand, aten, large, bfloat)
    yield from _convolutions(rand, aten, large)
    yield from _attentions(rand, aten, large)


def _moving(rand: _Tensors, aten: Any) -> list[tuple[str, Callable[[int], TimedCall], float]]:
    """(family, a call on n float32, bytes moved per element) of what moves bytes."""
    import torch

    from fourfold.frontends.onnx_ops import lrn

    def one(call: Callable[[Any], object], width: int = 0) -> Callable[[int], TimedCall]:
        def make(n: int) -> TimedCall:
            a = rand(max(1, n // width), width) if width else rand(n)
            return _ready(lambda: call(a), a)
        return make

    def two(call: Callable[[object, object], object], width: int = 0) -> Callable[[int], TimedCall]:
        def make(n: int) -> TimedCall:
            a, b = (rand(max(1, n // width), width) if width else rand(n) for _ in range(2))
            return _ready(lambda: call(a, b), a, b)
        return make

    def image(call: Callable[[torch.Tensor], object], channels: int = 16) -> Callable[[int], TimedCall]:
        def make(n: int) -> TimedCall:
            side = max(2, int(math.sqrt(n / channels)))
            a = rand(1, channels, side, side)
            return _ready(lambda: call(a), a)
        return make

    def feature(call: Callable[[object], object]) -> Callable[[int], TimedCall]:
        def make(n: int) -> TimedCall:                                  # smooth and half of it zero, as feature maps are: comparisons are predictable
            side = max(2, int(math.sqrt(n / 16)))
            coarse = rand(1, 16, -(-side // 8), -(-side // 8)) - 0.6
            a = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").relu_()
            return _ready(lambda: call(a), a)
        return make

    def pooled(n: int) -> TimedCall:
        a = rand(1, max(1, n // 49), 7, 7)
        return _ready(lambda: aten.adaptive_avg_pool2d.default(a, [1, 1]), a)

    def looked(n: int) -> TimedCall:
        rows = max(4 * n // 256, 4)
        table, index = rand(rows, 256), torch.randint(0, rows, (1, max(1, n // 256)))
        return _ready(lambda: aten.embedding.default(table, index))

    def chosen(n: int) -> TimedCall:
        a, b = rand(n), rand(n)
        mask = a > 0.6
        return _ready(lambda: aten.where.self(mask, a, b), a, b)

    def turned(n: int) -> TimedCall:
        a = rand(max(1, n // 256), 256).view(1, -1, 4, 64).transpose(1, 2)      # heads of an attention, copied side by side
        return _ready(lambda: aten.clone.default(a, memory_format=torch.contiguous_format), a)

    weight, bias, channel = torch.ones(256), torch.zeros(256), torch.ones(16)
    return [
        ("elementwise", two(aten.add.Tensor), 12), ("relu", one(aten.relu.default), 8), ("gelu", one(aten.gelu.default), 8),
        ("tanh", one(aten.tanh.default), 8), ("exp", one(aten.exp.default), 8), ("sigmoid", one(aten.sigmoid.default), 8),
        ("silu", one(aten.silu.default), 8), ("erf", one(aten.erf.default), 8), ("sqrt", one(aten.rsqrt.default), 8),
        ("log", one(aten.log.default), 8), ("pow", one(lambda a: aten.pow.Tensor_Scalar(a, 3.0)), 8), ("where", chosen, 13),
        ("softmax", one(lambda a: aten.softmax.int(a, -1), 256), 8),
        ("layer_norm", one(lambda a: aten.layer_norm.default(a, [256], weight, bias), 256), 8),
        ("group_norm", image(lambda a: aten.group_norm.default(a, 4, channel, channel)), 8),
        ("batch_norm", image(lambda a: aten._native_batch_norm_legit_no_training.default(a, channel, channel, channel, channel, 0.1, 1e-5)), 8),
        ("reduction", one(lambda a: aten.sum.dim_IntList(a, [-1]), 256), 4), ("mean", one(lambda a: aten.mean.dim(a, [-1], True), 256), 4),
        ("pool", feature(lambda a: aten.max_pool2d.default(a, [3, 3], [2, 2], [1, 1])), 5),
        ("avg_pool2d", image(lambda a: aten.avg_pool2d.default(a, [3, 3], [2, 2], [1, 1])), 5),
        ("adaptive_avg_pool2d", pooled, 4), ("lrn", image(lambda a: lrn(a, 5, 1e-4, 0.75, 1.0)), 8),
        ("cat", two(lambda a, b: aten.cat.default([a, b], 1), 64), 16), ("copy", turned, 8), ("gather", looked, 8),
        ("opaque", one(lambda a: aten.clone.default(a)), 8),
    ]


def _small(rand: _Tensors, aten: Any) -> list[tuple[str, Callable[[], object]]]:
    """(short name, call) of ops of which only the call matters: views, and small arithmetic about masks and positions."""
    import torch

    a, b, x = rand(4, 64), rand(4, 64), rand(1, 4, 4, 64)
    whole, flag = torch.arange(64)[None], torch.ones(4, 64, dtype=torch.bool)
    views: list[tuple[str, Callable[[], object]]] = [
        ("view", lambda: aten.reshape.default(a, [2, 2, 64])), ("transpose", lambda: aten.transpose.int(x, 1, 2)),
        ("permute", lambda: aten.permute.default(x, [0, 2, 1, 3])), ("unsqueeze", lambda: aten.unsqueeze.default(a, 0)),
        ("squeeze", lambda: aten.squeeze.dim(x, 0)), ("expand", lambda: aten.expand.default(x, [4, 4, 4, 64])),
        ("slice", lambda: aten.slice.Tensor(x, 2, 1, 3)), ("select", lambda: aten.select.int(x, 1, 0)),
        ("split", lambda: aten.split.Tensor(a, 32, 1)), ("t", lambda: aten.t.default(a)), ("detach", lambda: aten.detach.default(a)),
    ]
    plain: list[tuple[str, Callable[[], object]]] = [
        ("mul", lambda: aten.mul.Tensor(a, b)), ("sub", lambda: aten.sub.Tensor(a, b)), ("div", lambda: aten.div.Tensor(a, b)),
        ("neg", lambda: aten.neg.default(a)), ("abs", lambda: aten.abs.default(a)), ("eq", lambda: aten.eq.Tensor(whole, whole)),
        ("ge", lambda: aten.ge.Tensor(whole, whole)), ("and", lambda: aten.__and__.Tensor(flag, flag)),
        ("arange", lambda: aten.arange.start(0, 64, device="cpu", pin_memory=False)),
        ("full", lambda: aten.full.default([4, 64], 1.0, dtype=torch.float32, device="cpu", pin_memory=False)),
        ("new_ones", lambda: aten.new_ones.default(a, [4, 64], pin_memory=False)), ("zeros_like", lambda: aten.zeros_like.default(a)),
        ("to_copy", lambda: aten._to_copy.default(whole, dtype=torch.float32)), ("cumsum", lambda: aten.cumsum.default(whole, 1)),
        ("index", lambda: aten.index.Tensor(a, [whole[0, :4]])), ("cos", lambda: aten.cos.default(a)), ("sin", lambda: aten.sin.default(a)),
        ("minimum", lambda: aten.minimum.default(a, b)), ("argmax", lambda: aten.argmax.default(a, -1)),
        ("repeat", lambda: aten.repeat.default(a, [2, 1])), ("unsafe_view", lambda: aten._unsafe_view.default(a, [2, 2, 64])),
    ]
    return views + plain


def _products(rand: _Tensors, aten: Any, large: float, bfloat: bool) -> Iterator[Sample]:
    import torch

    def linear(m: int, n: int, k: int, dtype: object = None) -> TimedCall:
        x, w, b = rand(1, m, k, dtype=dtype), rand(n, k, dtype=dtype), rand(n, dtype=dtype)
        return _ready(lambda: aten.linear.default(x, w, b), x)

    most = 4.4e9 * large
    sides = ((16, 16), (64, 64), (64, 256), (256, 64), (192, 192), (256, 256), (256, 1024), (1024, 256), (384, 384), (768, 768), (3072, 768),
             (768, 3072), (1000, 2048))
    shapes = [(m, n, k) for m in (1, 4, 16, 64, 128, 512) for n, k in sides]
    shapes += [(8, 8, 8), (1024, 1024, 1024), (2048, 64, 64), (3136, 64, 64), (4096, 16, 16), (128, 2, 768), (1, 30000, 256), (1, 4096, 4096),
               (1, 1000, 4096), (64, 8000, 256), (197, 576, 192), (250, 256, 256), (32, 256, 256)]
    for m, n, k in shapes:
        if 2.0 * m * n * k <= most:
            yield Sample("matmul", 2.0 * m * n * k, 4.0 * (m * k + n * k + m * n), min(m, n, k), lambda s=(m, n, k): linear(*s), params=4.0 * n * k)

    def strided(b: int, m: int, n: int, k: int) -> TimedCall:
        x, w, bias = rand(m, b, k).transpose(0, 1), rand(n, k), rand(n)
        return _ready(lambda: aten.linear.default(x, w, bias), x)

    for b, m, n, k in ((2, 4, 16, 16), (2, 16, 64, 64), (4, 16, 256, 64), (16, 8, 192, 192), (32, 4, 768, 256), (8, 32, 256, 256), (2, 128, 512, 512),
                       (64, 4, 256, 1024), (8, 32, 768, 768), (32, 16, 1536, 512)):
        if 2.0 * b * m * n * k <= most:
            yield Sample("strided", 2.0 * b * m * n * k, 4.0 * (b * m * k + n * k + b * m * n), min(b * m, n, k),
                         lambda s=(b, m, n, k): strided(*s), params=4.0 * n * k)
    side = 1024 if large == 1 else 384
    for name, dtype in (("float64", torch.float64), *((("bfloat16", torch.bfloat16),) if bfloat else ())):
        yield Sample("peak", 2.0 * side**3, 0.0, side, lambda dtype=dtype: linear(side, side, side, dtype), name)

    def batched(b: int, m: int, n: int, k: int) -> TimedCall:
        x, y = rand(b, m, k), rand(b, k, n)
        return _ready(lambda: aten.bmm.default(x, y), x, y)

    for b, m, n, k in ((1, 4, 4, 4), (4, 16, 16, 16), (12, 16, 16, 64), (12, 128, 128, 64), (12, 128, 64, 128), (96, 64, 64, 64), (8, 384, 384, 64),
                       (8, 384, 64, 384), (12, 1, 128, 64), (96, 1, 256, 64), (64, 32, 32, 32), (512, 16, 16, 16), (4, 512, 512, 32)):
        if 2.0 * b * m * n * k <= most:
            yield Sample("batched", 2.0 * b * m * n * k, 4.0 * b * (m * k + k * n + m * n), min(m, n, k), lambda s=(b, m, n, k): batched(*s))


FULL = [(3, 224, 64, 7, 2, 1), (3, 224, 32, 3, 2, 1), (3, 32, 16, 3, 1, 1), (16, 8, 16, 3, 1, 1), (16, 32, 16, 3, 1, 1), (64, 56, 64, 3, 1, 1),
        (64, 56, 256, 1, 1, 1), (256, 56, 64, 1, 1, 1), (128, 28, 128, 3, 1, 1), (512, 28, 128, 1, 1, 1), (256, 14, 256, 3, 1, 1),
        (1024, 14, 256, 1, 1, 1), (512, 7, 512, 3, 1, 1), (2048, 7, 512, 1, 1, 1), (24, 56, 144, 1, 1, 1), (96, 14, 576, 1, 1, 1),
        (256, 56, 128, 3, 2, 1), (240, 28, 240, 1, 1, 3), (192, 28, 32, 5, 1, 1), (64, 112, 64, 3, 1, 1), (16, 8, 16, 1, 1, 1),
        (32, 112, 16, 1, 1, 1), (16, 112, 96, 1, 1, 1), (576, 14, 96, 1, 1, 1), (960, 7, 160, 1, 1, 1), (256, 14, 1024, 1, 1, 1),
        (64, 55, 192, 3, 1, 1), (128, 27, 192, 3, 1, 1), (32, 27, 128, 3, 1, 1), (64, 13, 256, 3, 1, 1), (192, 17, 320, 3, 1, 1),
        (16, 55, 64, 1, 1, 1), (3, 224, 192, 16, 16, 1), (32, 56, 32, 3, 1, 1), (128, 56, 128, 3, 2, 1), (512, 14, 512, 3, 2, 1),
        (256, 28, 512, 1, 2, 1), (512, 5, 512, 3, 1, 1), (512, 12, 512, 3, 1, 1), (256, 12, 384, 3, 1, 1), (256, 10, 512, 3, 2, 1),
        (3, 224, 256, 32, 32, 1), (64, 40, 64, 3, 1, 1), (128, 56, 32, 3, 1, 1)]
DEEP = [(32, 112, 3, 1), (96, 112, 3, 2), (144, 56, 3, 1), (384, 14, 3, 1), (576, 14, 5, 1), (960, 7, 3, 1), (16, 16, 3, 1), (96, 28, 7, 1),
        (240, 28, 5, 1)]                                                # channels, side, (outputs,) kernel, stride (, groups)


def _convolution_shapes() -> list[tuple[int, int, int, int, int, int]]:
    return FULL + [(c, s, c, k, t, c) for c, s, k, t in DEEP]


def _convolution(shape: tuple[int, int, int, int, int, int], prefix: str, make: Callable[..., TimedCall]) -> Sample:
    c, s, o, k, stride, groups = shape
    side = (s + 2 * (k // 2) - k) // stride + 1
    points, inner = side * side, (c // groups) * k * k
    family = "depthwise" if groups == c else "pointwise" if k == 1 else "conv"
    return Sample(prefix + family, 2.0 * points * o * inner, 4.0 * (c * s * s + o * inner + points * o), inner,
                  lambda: make(*shape), params=4.0 * o * inner)


def _convolutions(rand: _Tensors, aten: Any, large: float) -> Iterator[Sample]:
    def flat(c: int, s: int, o: int, k: int, stride: int, groups: int) -> TimedCall:
        x, w = rand(1, c, s, s), rand(o, c // groups, k, k)
        return _ready(lambda: aten.conv2d.default(x, w, None, [stride, stride], [k // 2, k // 2], [1, 1], groups), x)

    def line(c: int, n: int, o: int, k: int, stride: int, groups: int) -> TimedCall:
        x, w, b = rand(1, c, n), rand(o, c // groups, k), rand(o)
        return _ready(lambda: aten.conv1d.default(x, w, b, [stride], [k // 2], [1], groups), x)

    for shape in _convolution_shapes():
        sample = _convolution(shape, "", flat)
        if sample.work <= 4.4e9 * large:
            yield sample
    for c, n, o, k, stride, groups in ((1, 16000, 256, 10, 5, 1), (256, 3199, 256, 3, 2, 1), (256, 799, 256, 2, 2, 1), (80, 500, 256, 3, 1, 1),
                                       (256, 49, 256, 64, 1, 16), (16, 100, 16, 3, 1, 1)):
        points, inner = (n + 2 * (k // 2) - k) // stride + 1, (c // groups) * k
        if 2.0 * points * o * inner <= 4.4e9 * large:
            yield Sample("conv1d", 2.0 * points * o * inner, 4.0 * (c * n + o * inner + points * o), inner,
                         lambda s=(c, n, o, k, stride, groups): line(*s), params=4.0 * o * inner)


def _attentions(rand: _Tensors, aten: Any, large: float) -> Iterator[Sample]:
    import torch

    def attended(b: int, h: int, n: int, e: int) -> TimedCall:
        q, k, v = (rand(b, n, h, e).transpose(1, 2) for _ in range(3))   # as a view of the projection leaves them
        mask = torch.zeros(1, 1, n, n) if b == 1 and n < 128 else None
        return _ready(lambda: aten.scaled_dot_product_attention.default(q, k, v, mask), q, k, v)

    for b, h, n, e in ((1, 4, 32, 64), (1, 4, 50, 64), (1, 8, 100, 32), (2, 4, 64, 64), (1, 4, 250, 64), (1, 2, 16, 16), (1, 12, 32, 64),
                       (1, 4, 64, 64), (1, 12, 128, 64), (1, 12, 512, 64), (8, 12, 128, 64), (1, 4, 128, 32), (8, 4, 64, 32), (1, 3, 197, 64)):
        if 4.0 * b * h * n * n * e <= 4.4e9 * large:
            yield Sample("attention", 4.0 * b * h * n * n * e, 16.0 * b * h * n * e, min(n, e), lambda s=(b, h, n, e): attended(*s))

    def recurred(length: int, batch: int, width: int) -> TimedCall:
        net, x = torch.nn.LSTM(width, width), rand(length, batch, width)
        return _ready(lambda: net(x), x)

    for length, batch, width in ((4, 1, 32), (16, 1, 128), (32, 8, 128), (16, 1, 512), (32, 16, 512)):
        work = 16.0 * length * batch * width * width
        if work <= 4.4e9 * large:
            yield Sample("recurrent", work, 32.0 * width * width * length, min(batch, width), lambda s=(length, batch, width): recurred(*s))
