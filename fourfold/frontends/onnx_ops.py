"""What is known of each ONNX op, in one table: its class, flops, steps and sizes for capture and cost, and its form in torch for eager runs and
Inductor. An op without a translation runs in a session of ONNX Runtime of its own (`fourfold/engines/onnx.py`).

Shapes are fixed in a capture, so whatever only changes shape is a reshape to what came out of inference. Definitions: the ONNX operator
specification, opset 7 and later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.frontends import flops as formulas
from fourfold.frontends.onnx_file import STANDARD
from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW

if TYPE_CHECKING:
    import torch
    from onnx import NodeProto
    from torch import Tensor

    from fourfold.frontends.onnx import OnnxProgram


class Untranslated(Exception):
    """This form of an op has no translation to torch."""


class OnnxNode:
    """A node with what its translation asks of it. `program`: an OnnxProgram; `proto`: the NodeProto; `made`: its outputs that somebody reads;
    `refer`: value → what stands for its tensor among arguments."""

    def __init__(self, program: OnnxProgram, proto: NodeProto, made: Sequence[str], refer: Callable[[int], object]) -> None:
        self.program, self.proto, self.made, self.refer = program, proto, list(made), refer
        self.attributes: dict[str, object] = {a.name: program.onnx.helper.get_attribute_value(a) for a in proto.attribute}
        self.version = next((o.version for o in program.model.opset_import if o.domain in STANDARD), 0)

    def __len__(self) -> int:
        return sum(1 for name in self.proto.input if name)

    def has(self, k: int) -> bool:
        return k < len(self.proto.input) and bool(self.proto.input[k])

    def ref(self, k: int) -> object:
        return self.refer(self.program.value[self.proto.input[k]]) if self.has(k) else None

    def shape(self, k: int) -> tuple[int, ...]:
        return tuple(self.program.spec[self.proto.input[k]][0])

    def dtype(self, k: int) -> str:
        return self.program.spec[self.proto.input[k]][1]

    def out(self, k: int = 0) -> tuple[list[int], str]:
        shape, dtype = self.program.spec[self.made[k]]
        return list(shape), dtype

    def known(self, k: int) -> Any:
        """A constant input as an array. Raises Untranslated where it is computed."""
        value = self.program.value.get(self.proto.input[k])
        if value not in self.program.bound:
            raise Untranslated
        return np.asarray(self.program.weights()[value])

    def get(self, name: str, default: object = None) -> Any:
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def only(self, condition: bool) -> None:
        if not condition:
            raise Untranslated


# ---- translations to torch -----------------------------------------------------------------------------------------------------------------------

Translation = tuple[Callable[..., object], tuple[object, ...], dict[str, object]]                      # function, arguments, keywords


def _torch(name: str) -> Callable[..., Tensor]:
    import torch

    return getattr(torch, name)


def _plain(name: str) -> Callable[[OnnxNode], Translation]:
    return lambda n: (_torch(name), tuple(n.ref(k) for k in range(len(n))), {})


def _many(name: str) -> Callable[[OnnxNode], Translation]:
    return lambda n: (fold, (name, [n.ref(k) for k in range(len(n))]), {})


def fold(name: str, given: Sequence[Tensor]) -> Tensor:
    found = given[0]
    for other in given[1:]:
        found = _torch(name)(found, other)
    return found


def _reshape(n: OnnxNode) -> Translation:
    n.only(len(n.made) == 1)
    return _torch("reshape"), (n.ref(0), n.out()[0]), {}


def _pads(n: OnnxNode, sides: int, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """Begins, then ends."""
    auto = n.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return list(n.get("pads", [0] * 2 * sides))
    if auto == "VALID":
        return [0] * 2 * sides
    begins, ends = [], []
    for size, k, s, d in zip(n.shape(0)[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        begins.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return begins + ends


def _padded(x: Tensor, pads: list[int], value: float) -> Tensor:
    import torch

    return torch.nn.functional.pad(x, pads, "constant", value)


def _flat(pads: Sequence[int]) -> list[int]:
    """ONNX's begins and ends as torch's pairs from the last side on."""
    sides = len(pads) // 2
    return [p for k in reversed(range(sides)) for p in (pads[k], pads[sides + k])]


def _conv(n: OnnxNode) -> Translation:
    sides = len(n.shape(0)) - 2
    n.only(1 <= sides <= 3 and n.dtype(0).startswith("float"))
    kernel = n.get("kernel_shape", list(n.shape(1)[2:]))
    strides, dilations = n.get("strides", [1] * sides), n.get("dilations", [1] * sides)
    pads = _pads(n, sides, kernel, strides, dilations)
    return conv, (n.ref(0), n.ref(1), n.ref(2), list(strides), list(pads), list(dilations), int(n.get("group", 1))), {}


def conv(x: Tensor, w: Tensor, b: Tensor | None, strides: list[int], pads: list[int], dilations: list[int], groups: int) -> Tensor:
    import torch

    sides = len(strides)
    if pads[:sides] != pads[sides:]:
        x, pads = _padded(x, _flat(pads), 0.0), [0] * 2 * sides
    op = (torch.conv1d, torch.conv2d, torch.conv3d)[sides - 1]
    return op(x, w, b, strides, pads[:sides], dilations, groups)


def _pool(n: OnnxNode, most: bool) -> Translation:
    n.only(len(n.made) == 1)
    kernel = list(n.get("kernel_shape"))
    sides = len(kernel)
    n.only(1 <= sides <= 3 and n.dtype(0).startswith("float") and not n.get("storage_order", 0))
    strides, dilations = list(n.get("strides", [1] * sides)), list(n.get("dilations", [1] * sides))
    ceil, counted = bool(n.get("ceil_mode", 0)), bool(n.get("count_include_pad", 0))
    n.only(most or set(dilations) == {1})
    pads = _pads(n, sides, kernel, strides, dilations)
    if ceil:                                                            # torch leaves out a window that begins in the padding; so more is padded
        n.only(most)
        for k in range(sides):
            size, reach = n.shape(0)[2 + k] + pads[k] + pads[sides + k], (kernel[k] - 1) * dilations[k] + 1
            pads[sides + k] += max(0, (n.out()[0][2 + k] - 1) * strides[k] + reach - size)
    if most:
        return max_pool, (n.ref(0), kernel, strides, pads, dilations), {}
    return average_pool, (n.ref(0), kernel, strides, pads, counted), {}


def max_pool(x: Tensor, kernel: list[int], strides: list[int], pads: list[int], dilations: list[int]) -> Tensor:
    import torch

    sides = len(kernel)
    if pads[:sides] != pads[sides:] or any(2 * p > k for p, k in zip(pads, kernel, strict=False)):
        x, pads = _padded(x, _flat(pads), float("-inf")), [0] * 2 * sides
    op = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[sides - 1]
    return op(x, kernel, strides, pads[:sides], dilations)


def average_pool(x: Tensor, kernel: list[int], strides: list[int], pads: list[int], counted: bool) -> Tensor:
    import torch
    import torch.nn.functional as F

    sides = len(kernel)
    op = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[sides - 1]
    if pads[:sides] == pads[sides:] and all(2 * p <= k for p, k in zip(pads, kernel, strict=False)):
        return op(x, kernel, strides, pads[:sides], False, counted or not any(pads))
    wide = op(_padded(x, _flat(pads), 0.0), kernel, strides)
    if counted:
        return wide
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    return wide / op(_padded(ones, _flat(pads), 0.0), kernel, strides)


def _norm(n: OnnxNode) -> Translation:
    n.only(len(n.made) == 1 and not n.get("training_mode", 0))
    return batch_norm, (*(n.ref(k) for k in range(5)), float(n.get("epsilon", 1e-5))), {}


def batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> Tensor:
    import torch

    return torch.batch_norm(x, scale, bias, mean, variance, False, 0.0, epsilon, False)


def _gemm(n: OnnxNode) -> Translation:
    n.only(n.dtype(0).startswith("float"))
    facts = float(n.get("alpha", 1.0)), float(n.get("beta", 1.0)), bool(n.get("transA", 0)), bool(n.get("transB", 0))
    return gemm, (n.ref(0), n.ref(1), n.ref(2), *facts), {}


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, first: bool, second: bool) -> Tensor:
    import torch

    a, b = a.t() if first else a, b.t() if second else b
    if c is None:
        return alpha * (a @ b) if alpha != 1 else a @ b
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


def _softmax(name: str) -> Callable[[OnnxNode], Translation]:
    def maker(n: OnnxNode) -> Translation:
        axis = int(n.get("axis", -1 if n.version >= 13 else 1))
        shape = n.shape(0)
        if n.version >= 13 or axis in (-1, len(shape) - 1):
            return _torch(name), (n.ref(0), axis), {}
        return flat_softmax, (name, n.ref(0), axis % len(shape)), {}
    return maker


def flat_softmax(name: str, x: Tensor, axis: int) -> Tensor:
    """Before opset 13: over all sides from `axis` on."""
    return _torch(name)(x.flatten(axis), axis).reshape(x.shape)


def _lrn(n: OnnxNode) -> Translation:
    n.only(len(n.shape(0)) == 4)
    return lrn, (n.ref(0), int(n.get("size")), float(n.get("alpha", 1e-4)), float(n.get("beta", 0.75)), float(n.get("bias", 1.0))), {}


def lrn(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> object:
    import torch
    import torch.nn.functional as F

    around = F.pad(x.square().unsqueeze(1), (0, 0, 0, 0, (size - 1) // 2, size // 2))
    total = F.avg_pool3d(around, (size, 1, 1), 1) * size
    return x / torch.pow(bias + alpha / size * total.reshape(x.shape), beta)


def _clip(n: OnnxNode) -> Translation:
    low, high = n.get("min"), n.get("max")
    if n.version >= 11:
        low, high = (n.known(k).item() if n.has(k) else None for k in (1, 2))
    if low is None and high is None:
        return _torch("clone"), (n.ref(0),), {}
    return _torch("clamp"), (n.ref(0), low, high), {}


def _concat(n: OnnxNode) -> Translation:
    return _torch("cat"), ([n.ref(k) for k in range(len(n.proto.input))], int(n.get("axis", 1))), {}


def _transpose(n: OnnxNode) -> Translation:
    return _torch("permute"), (n.ref(0), list(n.get("perm", range(len(n.shape(0)))[::-1]))), {}


def _mean(n: OnnxNode) -> Translation:
    return mean, ([n.ref(k) for k in range(len(n))],), {}


def mean(given: Sequence[Tensor]) -> object:
    return sum(given[1:], given[0]) / len(given)


def _global(most: bool) -> Callable[[OnnxNode], Translation]:
    def maker(n: OnnxNode) -> Translation:
        return _torch("amax" if most else "mean"), (n.ref(0), list(range(2, len(n.shape(0)))), True), {}
    return maker


def _reduce(name: str) -> Callable[[OnnxNode], Translation]:
    def maker(n: OnnxNode) -> Translation:
        axes = n.known(1).tolist() if n.has(1) else n.get("axes")
        n.only(axes is not None or not n.get("noop_with_empty_axes", 0))
        axes = list(axes) if axes else list(range(len(n.shape(0))))
        return _torch(name), (n.ref(0), axes, bool(n.get("keepdims", 1))), {}
    return maker


def _pad(n: OnnxNode) -> Translation:
    n.only(n.get("mode", "constant") == "constant" and not n.has(3))
    pads = n.known(1).tolist() if n.version >= 11 else list(n.get("pads"))
    value = float(n.known(2).item()) if n.version >= 11 and n.has(2) else float(n.get("value", 0.0))
    n.only(n.dtype(0).startswith("float"))
    return _padded, (n.ref(0), _flat(pads), value), {}


def _slice(n: OnnxNode) -> Translation:
    rank = len(n.shape(0))
    if n.version >= 10:
        starts, ends = n.known(1).tolist(), n.known(2).tolist()
        axes = n.known(3).tolist() if n.has(3) else list(range(len(starts)))
        steps = n.known(4).tolist() if n.has(4) else [1] * len(starts)
    else:
        starts, ends = list(n.get("starts")), list(n.get("ends"))
        axes, steps = list(n.get("axes", range(len(starts)))), [1] * len(starts)
    n.only(all(step > 0 for step in steps))
    cuts = [(axis % rank, *slice(a, b, s).indices(n.shape(0)[axis])) for axis, a, b, s in zip(axes, starts, ends, steps, strict=True)]
    return sliced, (n.ref(0), cuts), {}


def sliced(x: Tensor, cuts: Sequence[tuple[int, int, int, int]]) -> Tensor:
    import torch

    for axis, start, end, step in cuts:
        x = torch.ops.aten.slice(x, axis, start, max(start, end), step)
    return x


def _split(n: OnnxNode) -> Translation:
    n.only(len(n.made) == len(n.proto.output))
    axis = int(n.get("axis", 0))
    return _torch("split"), (n.ref(0), [n.out(k)[0][axis] for k in range(len(n.made))], axis), {}


def _gather(n: OnnxNode) -> Translation:
    axis = int(n.get("axis", 0)) % len(n.shape(0))
    return gather, (n.ref(0), n.ref(1), axis), {}


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    import torch

    index = torch.where(index < 0, index + x.shape[axis], index)
    found = torch.index_select(x, axis, index.reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1:]))


def _cast(n: OnnxNode) -> Translation:
    import torch

    dtype = getattr(torch, n.out()[1], None)
    n.only(isinstance(dtype, torch.dtype) and not (n.dtype(0).startswith("float") and not dtype.is_floating_point))
    return cast, (n.ref(0), dtype), {}


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def _layer_norm(n: OnnxNode) -> Translation:
    n.only(len(n.made) == 1 and n.has(1))
    axis = int(n.get("axis", -1)) % len(n.shape(0))
    return _torch("layer_norm"), (n.ref(0), list(n.shape(0)[axis:]), n.ref(1), n.ref(2), float(n.get("epsilon", 1e-5))), {}


def _leaky(n: OnnxNode) -> Translation:
    import torch

    return torch.nn.functional.leaky_relu, (n.ref(0), float(n.get("alpha", 0.01))), {}


def _gelu(n: OnnxNode) -> Translation:
    import torch

    return torch.nn.functional.gelu, (n.ref(0),), {"approximate": n.get("approximate", "none")}


def _arithmetic(name: str) -> Callable[[OnnxNode], Translation]:
    def maker(n: OnnxNode) -> Translation:
        n.only(n.dtype(0).startswith("float"))                          # of integers torch divides otherwise
        return _torch(name), (n.ref(0), n.ref(1)), {}
    return maker


def _identity(n: OnnxNode) -> Translation:
    n.only(len(n.made) == 1 and not (len(n.proto.input) > 2 and n.proto.input[2]))
    return _torch("reshape"), (n.ref(0), n.out()[0]), {}


# ---- flops ---------------------------------------------------------------------------------------------------------------------------------------


def flops_of(op: str, attributes: Mapping[str, Any], shapes: Sequence[formulas.Shape], outs: Sequence[formulas.Shape]) -> float | None:
    """Flops of a contraction, from shapes; None where there is no formula for this form."""
    match op:
        case "Conv" | "ConvInteger" | "FusedConv" | "DeformConv":
            return formulas.convolution(shapes[0], shapes[1], outs[0])
        case "QLinearConv":
            return formulas.convolution(shapes[0], shapes[3], outs[0])
        case "ConvTranspose":
            return formulas.convolution(shapes[0], shapes[1], outs[0], True)
        case "Gemm" | "FusedGemm":
            a, b = (s[::-1] if attributes.get(t) else s for s, t in zip(shapes, ("transA", "transB"), strict=False))
            return formulas.matmul(a, b)
        case "MatMul" | "MatMulInteger":
            return formulas.matmul(shapes[0], shapes[1])
        case "FusedMatMul":
            a, b = ((*s[:-2], s[-1], s[-2]) if attributes.get(t) else s for s, t in zip(shapes, ("transA", "transB"), strict=False))
            return formulas.matmul(a, b)
        case "QLinearMatMul":
            return formulas.matmul(shapes[0], shapes[3])
        case "MatMulNBits":
            return 2 * prod(shapes[0]) * int(attributes["N"])
        case "Einsum":
            return formulas.einsum(attributes["equation"].decode(), *shapes)
        case "LSTM" | "GRU" | "RNN":
            gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
            return formulas.recurrent(shapes[0], shapes[0][-1], int(attributes.get("hidden_size", shapes[2][-1])), gates, shapes[1][0])
        case "Attention" if len(shapes[0]) == 4:
            return formulas.attention(shapes[0], shapes[1], shapes[2])
        case "Attention":  # [batch, length, heads × width]
            heads, own = int(attributes["q_num_heads"]), int(attributes["kv_num_heads"])
            (b, length, width), (_, span, _), (_, _, deep) = shapes[:3]
            return formulas.attention((b, heads, length, width // heads), (b, own, span, width // heads), (b, own, span, deep // own))
    return None


# ---- the table -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnnxOp:
    """`fusion`: its class (`fourfold.graph`), None for what the table names only for its sizes. `steps`: scalar steps per element of the largest
    tensor. `moves`: data are moved, nothing is computed. `draws`: two runs differ. `sizes`: the inputs whose values say how large the output is.
    `measures`: the output's size depends on the values of the data. `torch`: node → its translation; raises Untranslated for a form that has none.
    """

    fusion: int | None = None
    steps: float = 1.0
    moves: bool = False
    draws: bool = False
    sizes: tuple[int, ...] = ()
    measures: bool = False
    torch: Callable[[OnnxNode], Translation] | None = None


_DRAWS = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split())
_CLASSES: dict[Any, int] = (
    dict.fromkeys(
        """Conv ConvTranspose ConvInteger QLinearConv DeformConv Gemm MatMul MatMulInteger QLinearMatMul Einsum LSTM GRU RNN Attention FusedMatMul
        FusedGemm FusedConv MatMulNBits MultiHeadAttention""".split(), CONTRACTION)
    | dict.fromkeys(
        """ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare ArgMax ArgMin Softmax
        LogSoftmax Hardmax LayerNormalization GroupNormalization InstanceNormalization RMSNormalization MeanVarianceNormalization
        LpNormalization MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool LRN CumSum SimplifiedLayerNormalization
        SkipLayerNormalization SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss""".split(), REDUCTION)
    | dict.fromkeys(
        """Abs Acos Acosh Add And Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil
        Celu Clip Concat ConstantOfShape Cos Cosh DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Floor
        Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu
        Pad Pow QuantizeLinear Range Reciprocal Relu Resize ReverseSequence Round Selu Shrink Sigmoid Sign Sin Sinh Slice Softplus Softsign
        SpaceToDepth Split Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Tile Transpose Trilu Upsample Where Xor BiasGelu FastGelu QuickGelu
        CenterCropPad RotaryEmbedding""".split(),
        ELEMENTWISE)
    | dict.fromkeys("Reshape Flatten Squeeze Unsqueeze Identity Dropout Optional OptionalGetElement".split(), VIEW)
    | dict.fromkeys("Gather GatherElements GatherND Compress".split(), GATHER)
    | dict.fromkeys("Shape Size NonZero TopK Unique OneHot Scatter ScatterElements ScatterND RoiAlign MaxRoiPool NonMaxSuppression Det DFT STFT "
                    "MelWeightMatrix HannWindow HammingWindow BlackmanWindow GridSample AffineGrid Col2Im MaxUnpool RandomNormal RandomNormalLike "
                    "RandomUniform RandomUniformLike Multinomial Bernoulli ImageDecoder StringNormalizer TfIdfVectorizer".split(), OPAQUE)
)  # fmt: skip
_STEPS = {
    "Softmax": 5, "LogSoftmax": 5, "LayerNormalization": 8, "GroupNormalization": 8, "InstanceNormalization": 8, "RMSNormalization": 5,
    "MeanVarianceNormalization": 6, "BatchNormalization": 2, "Gelu": 5, "Sigmoid": 4, "Swish": 5, "HardSwish": 5, "HardSigmoid": 4, "Softplus": 4,
    "Mish": 6,
    "Elu": 4, "Selu": 5, "ReduceL2": 2, "ReduceSumSquare": 2, "ReduceLogSumExp": 4,
}  # fmt: skip
_MOVES = frozenset(
    "Cast CastLike Concat ConstantOfShape DepthToSpace Expand EyeLike Pad Slice SpaceToDepth Split Tile Transpose Trilu Shape Size Scatter "
    "ScatterElements ScatterND OneHot ReverseSequence CenterCropPad NonZero Unique".split()
)
_MAKES_SIZES = frozenset("NonZero Unique Compress NonMaxSuppression Loop If Scan StringSplit ImageDecoder SequenceAt SplitToSequence".split())
_TAKES_SIZES = {"Reshape": (1,), "Expand": (1,), "Tile": (1,), "Range": (0, 1, 2), "ConstantOfShape": (0,), "Slice": (1, 2, 3, 4), "Pad": (1, 3),
                "Resize": (2, 3), "Upsample": (1,), "TopK": (1,), "OneHot": (1,), "Split": (1,), "CenterCropPad": (1,), "Unsqueeze": (1,),
                "Squeeze": (1,), "Col2Im": (1, 2), "AffineGrid": (1,), "MaxUnpool": (2,), "DFT": (1,), "STFT": (1,)}
_TORCH: dict[str, Callable[[OnnxNode], Translation]] = {
    "Conv": _conv, "Gemm": _gemm, "MatMul": _plain("matmul"), "BatchNormalization": _norm, "LayerNormalization": _layer_norm, "LRN": _lrn,
    "MaxPool": lambda n: _pool(n, True), "AveragePool": lambda n: _pool(n, False), "GlobalAveragePool": _global(False),
    "GlobalMaxPool": _global(True), "Relu": _plain("relu"), "LeakyRelu": _leaky, "Sigmoid": _plain("sigmoid"), "Tanh": _plain("tanh"),
    "Clip": _clip, "Softmax": _softmax("softmax"), "LogSoftmax": _softmax("log_softmax"), "Gelu": _gelu, "Erf": _plain("erf"), "Exp": _plain("exp"),
    "Log": _plain("log"), "Sqrt": _plain("sqrt"), "Neg": _plain("neg"), "Abs": _plain("abs"), "Reciprocal": _plain("reciprocal"),
    "Floor": _plain("floor"), "Ceil": _plain("ceil"), "Sin": _plain("sin"), "Cos": _plain("cos"), "Not": _plain("logical_not"),
    "Add": _plain("add"), "Sub": _plain("sub"), "Mul": _plain("mul"), "Div": _arithmetic("div"), "Pow": _arithmetic("pow"),
    "And": _plain("logical_and"), "Or": _plain("logical_or"), "Equal": _plain("eq"), "Less": _plain("lt"), "Greater": _plain("gt"),
    "Where": _plain("where"), "Sum": _many("add"), "Max": _many("maximum"), "Min": _many("minimum"), "Mean": _mean,
    "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"), "ReduceMax": _reduce("amax"), "ReduceMin": _reduce("amin"),
    "Concat": _concat, "Transpose": _transpose, "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape,
    "Identity": _identity, "Dropout": _identity, "Pad": _pad, "Slice": _slice, "Split": _split, "Gather": _gather, "Cast": _cast,
}  # fmt: skip

OPS: dict[str, OnnxOp] = {
    op: OnnxOp(_CLASSES.get(op), float(_STEPS.get(op, 1)), op in _MOVES, op in _DRAWS, _TAKES_SIZES.get(op, ()), op in _MAKES_SIZES, _TORCH.get(op))
    for op in dict.fromkeys([*_CLASSES, *_TAKES_SIZES, *_MAKES_SIZES, *_TORCH])
}
UNKNOWN = OnnxOp()                                                      # of an op that the table does not name
