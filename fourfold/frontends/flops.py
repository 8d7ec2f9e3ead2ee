"""What an operation is to a cost model: its flops from shapes alone, its fusion class, its scalar steps per element. No framework is needed here.

Flops are those of contractions, a multiply-add counting two, exactly as torch's FlopCounterMode counts (torch/utils/flop_counter.py, torch 2.13):
padding is not subtracted, a bias is not added, a causal mask saves nothing. All other arithmetic is `steps`: per element of the larger of input and
output, each add, multiply, compare or transcendental counting one (a stated convention, not a measurement).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from typing import Any

from fourfold.graph import CONTRACTION, ELEMENTWISE, GATHER, OPAQUE, REDUCTION, VIEW

Shape = Sequence[int]

ASSUMED_STEPS = 1.0
ASSUMPTION = "no flops, and one scalar step per element of the largest tensor that the op reads or writes"  # of unknown ops


# --- contractions ----------------------------------------------------------------------------------------------------------------------------------


def matmul(a: Shape, b: Shape) -> int:
    """a @ b with numpy's broadcasting, vectors included."""
    rows = a[-2] if len(a) > 1 else 1
    columns = b[-1] if len(b) > 1 else 1
    return 2 * prod(broadcast(a[:-2], b[:-2])) * rows * columns * a[-1]


def linear(x: Shape, weight: Shape) -> int:
    """x [..., i] with weight [o, i]."""
    return 2 * prod(x) * (weight[0] if len(weight) > 1 else 1)


def convolution(x: Shape, weight: Shape, out: Shape, transposed: bool = False) -> int:
    """x [n, c, ...], weight [c_out, c_in / groups, ...] (transposed: [c_in, c_out / groups, ...]), out [n, c_out, ...]."""
    batch = x[0] if len(x) == len(weight) else 1  # torch also takes a single sample without a batch dimension
    points = (x if transposed else out)[-(len(weight) - 2) :]
    return 2 * batch * prod(points) * prod(weight)


def convolution_backward(grad: Shape, x: Shape, weight: Shape, transposed: bool, mask: Sequence[bool]) -> int:
    """Gradients by input and by weight, where `mask` asks for them; groups are ignored in the second, as torch's counter does."""
    flops = convolution(grad, weight, x, not transposed) if mask[0] else 0
    if mask[1]:
        big, small = (grad, x) if transposed else (x, grad)  # weight gradient: a convolution of one with the other over the batch
        flops += 2 * big[1] * prod(weight[2:]) * small[0] * prod(small[1:])
    return flops


def attention(query: Shape, key: Shape, value: Shape) -> int:
    """softmax(q kᵀ) v; query [..., h, l, e], key [..., h', s, e], value [..., h', s, d]; h' may divide h (grouped queries)."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_backward(query: Shape, key: Shape, value: Shape) -> int:
    """Five products: scores again, then the gradients of scores, values, queries and keys."""
    return 2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def recurrent(x: Shape, inputs: int, hidden: int, gates: int, directions: int = 1, projection: int = 0) -> int:
    """One layer of an RNN (gates 1), GRU (3) or LSTM (4) over x [time, batch, inputs] in any order of the first two."""
    state = projection or hidden
    each = gates * hidden * (inputs + state) + hidden * projection
    return 2 * prod(x[:-1]) * each * directions


def einsum(equation: str, *operands: Shape) -> int:
    """Two per point of the joint index space if two operands or more meet, chained from the left for more; "..." broadcasts."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    expanded = []
    for term, shape in zip(terms, operands, strict=True):
        if "..." in term:
            hidden = len(shape) - len(term) + 3
            term = term.replace("...", "".join(chr(0x3B1 + i) for i in range(9 - hidden, 9)))
        expanded.append(term)
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    if "->" not in equation:
        right = "".join(sorted(c for c in sizes if left.count(c) == 1))
    keep = set(right.replace("...", "")) | {c for c in sizes if c > "z"}
    flops, have = 0, set(expanded[0])
    for i, term in enumerate(expanded[1:], 1):
        joint = have | set(term)
        flops += 2 * prod(sizes[c] for c in joint)
        have = {c for c in joint if c in keep or any(c in later for later in expanded[i + 1 :])}
    return flops


def broadcast(*shapes: Shape) -> tuple[int, ...]:
    """numpy's broadcasting of shapes that are known to fit."""
    rank = max((len(s) for s in shapes), default=0)
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(next((d for d in dims if d != 1), 1) for dims in zip(*padded, strict=True))


# --- classes ---------------------------------------------------------------------------------------------------------------------------------------

# aten ops by fusion class, where torch's own tags and alias annotations do not say (they are asked second)
ATEN: dict[Any, int] = dict.fromkeys(
    """mm addmm bmm baddbmm addbmm matmul linear mv addmv dot vdot inner outer addr ger einsum tensordot bilinear _scaled_mm _int_mm
    _addmm_activation convolution _convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution_backward
    conv_tbc scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
    _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_attention_math _scaled_dot_product_flash_attention_backward _scaled_dot_product_efficient_attention_backward
    _scaled_dot_product_cudnn_attention_backward lstm gru rnn_tanh rnn_relu mkldnn_rnn_layer lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _trilinear _grouped_mm grouped_mm_fallback grouped_mm_fallback_backward""".split(),
    CONTRACTION,
) | dict.fromkeys(
    """sum mean prod amax amin max min aminmax argmax argmin any all var std var_mean std_mean norm linalg_vector_norm logsumexp nansum
    count_nonzero softmax _softmax log_softmax _log_softmax _safe_softmax _softmax_backward_data _log_softmax_backward_data cumsum cumprod
    logcumsumexp cummax cummin layer_norm native_layer_norm native_layer_norm_backward group_norm native_group_norm native_group_norm_backward
    rms_norm _fused_rms_norm _fused_rms_norm_backward instance_norm native_batch_norm _native_batch_norm_legit
    _native_batch_norm_legit_functional native_batch_norm_backward batch_norm_backward _batch_norm_with_update_functional avg_pool1d avg_pool2d
    avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool2d_backward
    max_pool2d_with_indices_backward _adaptive_avg_pool2d_backward cross_entropy_loss nll_loss nll_loss_forward nll_loss_backward nll_loss_nd
    mse_loss l1_loss smooth_l1_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity""".split(),
    REDUCTION,
) | dict.fromkeys(
    "embedding index index_select gather take take_along_dim _unsafe_index _unsafe_masked_index embedding_bag".split(), GATHER,
) | dict.fromkeys(
    """add sub mul div clone copy cat stack constant_pad_nd pad roll flip repeat repeat_interleave tile full full_like zeros zeros_like ones
    ones_like empty empty_like empty_strided new_zeros new_ones new_full new_empty new_empty_strided arange linspace eye scalar_tensor tril triu
    where masked_fill clamp clamp_min clamp_max _to_copy to contiguous dropout native_dropout native_dropout_backward batch_norm
    _native_batch_norm_legit_no_training gelu gelu_backward silu_backward threshold_backward tanh_backward sigmoid_backward hardtanh_backward
    hardswish_backward elu_backward leaky_relu_backward rand rand_like randn randn_like randint bernoulli normal uniform exponential
    prims.convert_element_type lift_fresh_copy one_hot slice_scatter select_scatter diagonal_scatter as_strided_scatter slice_backward
    select_backward glu prelu rrelu_with_noise_functional pixel_shuffle pixel_unshuffle upsample_nearest2d upsample_bilinear2d
    upsample_nearest1d channel_shuffle polar complex fill""".split(),
    ELEMENTWISE,
) | dict.fromkeys(
    """sort topk nonzero unique unique_consecutive _unique2 masked_select scatter scatter_add scatter_reduce index_put _unsafe_index_put index_add
    index_copy masked_scatter embedding_dense_backward multinomial bucketize searchsorted histc bincount grid_sampler_2d im2col col2im _fft_r2c
    _fft_c2r _fft_c2c _local_scalar_dense item _cdist_forward kthvalue median mode tril_indices triu_indices randperm _ctc_loss isin""".split(),
    OPAQUE,
)  # fmt: skip

MOVES = frozenset(
    """clone copy cat stack constant_pad_nd pad roll flip repeat repeat_interleave tile full full_like zeros zeros_like ones ones_like empty
    empty_like empty_strided new_zeros new_ones new_full new_empty new_empty_strided arange eye scalar_tensor tril triu _to_copy to contiguous
    lift_fresh_copy slice_scatter select_scatter slice_backward select_backward embedding index index_select gather take convert_element_type
    pixel_shuffle fill _unsafe_index one_hot nonzero scatter index_put masked_select channel_shuffle""".split()
)  # data is moved, nothing is computed

STEPS = {
    "gelu": 5, "silu": 5, "sigmoid": 4, "softplus": 4, "mish": 6, "hardswish": 5, "hardsigmoid": 4, "elu": 4, "selu": 5, "logit": 3, "erf": 1,
    "softmax": 5, "_softmax": 5, "_safe_softmax": 5, "log_softmax": 5, "_log_softmax": 5, "logsumexp": 4, "_softmax_backward_data": 4,
    "_log_softmax_backward_data": 4, "layer_norm": 8, "native_layer_norm": 8, "native_layer_norm_backward": 14, "group_norm": 8,
    "native_group_norm": 8,
    "native_group_norm_backward": 14, "rms_norm": 5, "_fused_rms_norm": 5, "_fused_rms_norm_backward": 10, "instance_norm": 8, "batch_norm": 2,
    "_native_batch_norm_legit_no_training": 2, "native_batch_norm": 8, "_native_batch_norm_legit": 8, "_native_batch_norm_legit_functional": 8,
    "native_batch_norm_backward": 14, "var": 3, "std": 4, "var_mean": 4, "norm": 2, "linalg_vector_norm": 2, "gelu_backward": 12, "silu_backward": 7,
    "tanh_backward": 3, "sigmoid_backward": 3, "addcmul": 3, "addcdiv": 3, "lerp": 3, "cosine_similarity": 6, "mse_loss": 3, "native_dropout": 3,
    "dropout": 3, "glu": 5, "pow": 1,
}  # fmt: skip

_BLOCK = re.compile(r"^(.*?(?:^|\.)\d+)(?:\.|$)")


class Layers:
    """Numbers the repeated blocks of a model: the module path up to its first number, in order of appearance; -1 where there is none."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, module: str) -> int:
        found = _BLOCK.match(module)
        return self._seen.setdefault(found.group(1), len(self._seen)) if found else -1


__all__ = [
    "ASSUMED_STEPS", "ASSUMPTION", "ATEN", "CONTRACTION", "ELEMENTWISE", "GATHER", "MOVES", "OPAQUE", "REDUCTION", "STEPS", "VIEW", "Layers", "Shape",
    "attention", "attention_backward", "broadcast", "convolution", "convolution_backward", "einsum", "linear", "matmul", "recurrent",
]  # fmt: skip
