"""For each operator of the table of `fourfold.differentiate` arguments to try it on; tensors in double precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

F64 = torch.float64


def r(*shape: int, low: float = -2.0, high: float = 2.0) -> Tensor:
    return torch.rand(shape, dtype=F64) * (high - low) + low


def ints(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def mask(*shape: int) -> Tensor:
    return torch.rand(*shape) > 0.4


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(-1, keepdim=True), (x.var(-1, correction=0, keepdim=True) + 1e-5).rsqrt()


def _batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + 1e-5).rsqrt()


def _layer_norm_backward() -> tuple[Any, ...]:
    x = r(3, 5)
    return (r(3, 5), x, [5], *_moments(x), None, None, [True, False, False])


def _batch_norm_backward() -> tuple[Any, ...]:
    x = r(3, 2, 4, 4)
    return (r(3, 2, 4, 4), x, None, None, None, *_batch_moments(x), True, 1e-5, [True, False, False])


Case = Callable[[], tuple[Any, ...]]
_ANY, _POSITIVE, _UNIT = lambda: (r(3, 4),), lambda: (r(3, 4, low=0.3),), lambda: (r(3, 4, low=-0.9, high=0.9),)
_UNARY = {
    _ANY: "exp exp2 expm1 sin cos tan atan sinh cosh asinh erf erfc abs tanh sigmoid relu gelu silu mish hardswish hardsigmoid neg",
    _POSITIVE: "log log2 log10 log1p sqrt rsqrt reciprocal lgamma digamma",
    _UNIT: "asin acos atanh erfinv",
    lambda: (r(3, 4, low=1.2, high=3.0),): "acosh",
}
CASES: dict[str, list[Case]] = {f"aten.{op}.default": [case] for case, ops in _UNARY.items() for op in ops.split()}


def _add(**cases: Case | list[Case]) -> None:
    for name, case in cases.items():
        op = "aten." + name.replace("__", ".") + ("" if "__" in name else ".default")
        CASES.setdefault(op, []).extend(case if isinstance(case, list) else [case])


_add(
    elu=lambda: (r(3, 4), 1.3, 0.9, 1.1), leaky_relu=lambda: (r(3, 4), 0.2), softplus=lambda: (r(3, 4), 1.5, 2.0),
    hardtanh=lambda: (r(3, 4), -1.0, 0.7),
    gelu=lambda: (r(3, 4),), gelu_backward=lambda: (r(3, 4), r(3, 4)), silu_backward=lambda: (r(3, 4), r(3, 4)),
    elu_backward=lambda: (r(3, 4), 1.0, 1.0, 1.0, False, r(3, 4)), leaky_relu_backward=lambda: (r(3, 4), r(3, 4), 0.2, False),
    softplus_backward=lambda: (r(3, 4), r(3, 4), 1.0, 20.0), mish_backward=lambda: (r(3, 4), r(3, 4)),
    hardswish_backward=lambda: (r(3, 4), r(3, 4)), hardsigmoid_backward=lambda: (r(3, 4), r(3, 4)),
    hardtanh_backward=lambda: (r(3, 4), r(3, 4), -1.0, 1.0), tanh_backward=lambda: (r(3, 4), r(3, 4)), sigmoid_backward=lambda: (r(3, 4), r(3, 4)),
    threshold_backward=lambda: (r(3, 4), r(3, 4), 0.0),
    add__Tensor=[lambda: (r(3, 4), r(4)), lambda: (r(1, 4), r(3, 1)), lambda: (r(3, 4), 2.0), lambda: (r(3), torch.rand(3))],
    sub__Tensor=[lambda: (r(3, 4), r(3, 1)), lambda: (r(3), r(2, 3))], mul__Tensor=[lambda: (r(3, 4), r(4)), lambda: (r(3, 4), 2.5),
            lambda: (r(3), torch.rand(3))],
    mul__Scalar=lambda: (r(3), 2.0), div__Scalar=lambda: (r(3), 2.0), add__Scalar=lambda: (r(3), 2.0), sub__Scalar=lambda: (r(3), 2.0),
    rsub__Scalar=lambda: (r(3), 2.0), div__Tensor=[lambda: (r(3, 4), r(4, low=0.5)), lambda: (r(4), r(3, 4, low=0.5)), lambda: (r(4), 3.0)],
    pow__Tensor_Scalar=[lambda: (r(3, 4, low=0.2), 1.7), lambda: (r(3), 2), lambda: (r(3), 3), lambda: (r(3), 0), lambda: (r(3), 1)],
    pow__Tensor_Tensor=lambda: (r(3, 4, low=0.2), r(4)), pow__Scalar=lambda: (1.7, r(3)),
    maximum=[lambda: (r(3, 4), r(4)), lambda: (torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([1.0, 3.0], dtype=F64))],
    minimum=lambda: (r(3, 4), r(3, 4)),
    where__self=[lambda: (mask(3, 4), r(3, 4), r(4)), lambda: (mask(4), r(3, 4), r(3, 1))], where__ScalarOther=lambda: (mask(3, 4), r(4), 0.0),
    where__ScalarSelf=lambda: (mask(3, 4), 0.0, r(3, 4)), clamp=[lambda: (r(3, 4), -1.0, 1.0), lambda: (r(3, 4), None, 0.5)],
    clamp__Tensor=lambda: (r(3, 4), r(4, low=-1.0, high=-0.5), r(3, 4, low=0.5, high=1.0)), atan2=lambda: (r(3, 4), r(4, low=0.3)),
    hypot=lambda: (r(3, 4, low=0.3), r(4, low=0.3)), polygamma=lambda: (1, r(3, low=0.5)), fmod__Tensor=lambda: (r(3, 4), r(4, low=0.4, high=0.7)),
    fmod__Scalar=lambda: (r(3, 4), 0.7), remainder__Tensor=lambda: (r(3, 4), r(4, low=0.4, high=0.7)), remainder__Scalar=lambda: (r(3, 4), 0.7),
    addcmul=lambda: (r(3, 4), r(4), r(3, 4)), addcdiv=lambda: (r(3, 4), r(4), r(3, 4, low=0.5)),
)  # fmt: skip
_add(
    reshape=lambda: (r(3, 4), [2, 6]), expand=[lambda: (r(3, 1), [2, 3, 4]), lambda: (r(1), [3])], permute=lambda: (r(2, 3, 4), [2, 0, 1]),
    slice__Tensor=[lambda: (r(5, 4), 0, 1, 4, 2), lambda: (r(5, 4), 1, -3), lambda: (r(5, 4), 0, 0, 2**63 - 1)],
    slice_backward=lambda: (r(2, 4), [5, 4], 0, 1, 4, 2), select__int=lambda: (r(3, 4), 1, -2), select_backward=lambda: (r(3), [3, 4], 1, 2),
    diagonal=lambda: (r(3, 4), 1, 0, 1), diagonal_backward=lambda: (r(3), [3, 4], 1, 0, 1), unfold=lambda: (r(2, 7), 1, 3, 2),
    unfold_backward=lambda: (r(2, 3, 3), [2, 7], 1, 3, 2), im2col=lambda: (r(1, 2, 5, 5), [2, 2], [1, 1], [1, 1], [2, 2]),
    col2im=lambda: (r(1, 8, 4), [5, 5], [2, 2], [1, 1], [0, 0], [2, 2]), cat=[lambda: ([r(2, 3), r(2, 1)], 1),
            lambda: ([r(2, 3), r(1, 3), r(2, 3)], -2)],
    split_with_sizes=lambda: (r(5, 2), [2, 3], 0), constant_pad_nd=[lambda: (r(2, 3), [1, 2, 0, 1], 0.5), lambda: (r(4, 4), [-1, 1], 0.0)],
    flip=lambda: (r(3, 4), [0, 1]), roll=[lambda: (r(3, 4), [1], [1]), lambda: (r(3, 4), [2], [])], tril=lambda: (r(4, 4), -1),
    triu=lambda: (r(4, 4), 1),
    slice_scatter=lambda: (r(5, 3), r(2, 3), 0, 1, 4, 2), select_scatter=lambda: (r(3, 4), r(3), 1, 2), repeat=lambda: (r(2, 3), [2, 1, 3]),
    copy=lambda: (r(2, 3), r(3)), fill__Scalar=lambda: (r(3), 2.0), fill__Tensor=lambda: (r(3), r()), unbind__int=lambda: (r(3, 2), 0),
    split__Tensor=lambda: (r(5, 2), 2, 0), pixel_shuffle=lambda: (r(1, 8, 2, 3), 2), as_strided=[lambda: (r(12), [3, 2], [4, 1], 1),
            lambda: (r(6), [2, 3], [0, 1])],
    _to_copy=lambda: (r(3),),
)  # fmt: skip
_add(
    sum__dim_IntList=[lambda: (r(2, 3, 4), [0, -1], True), lambda: (r(3, 4), [1])], sum=lambda: (r(3, 4),), mean__dim=lambda: (r(2, 3, 4), [1, 2]),
    mean=lambda: (r(3, 4),), amax=[lambda: (r(3, 4), [1]), lambda: (torch.tensor([1.0, 1.0, 0.0], dtype=F64), [0], True)],
    amin=lambda: (r(3, 4), [0, 1]),
    max=lambda: (r(3, 4),), min=lambda: (r(3, 4),), max__dim=[lambda: (r(3, 4), 1), lambda: (r(3, 4), 0, True)], min__dim=lambda: (r(3, 4), -1),
    sort=lambda: (r(3, 4), 0, True), sort__stable=lambda: (r(3, 4),), topk=lambda: (r(3, 5), 2, -1), kthvalue=lambda: (r(3, 4), 2, 1),
    median__dim=lambda: (r(3, 5), 1), mode=lambda: (r(3, 4), 1), cummax=lambda: (r(3, 4), 1), cummin=lambda: (r(3, 4), 0),
    var__correction=[lambda: (r(3, 4), [1]), lambda: (r(3, 4), None)], var_mean__correction=lambda: (r(3, 4), [0]),
    linalg_vector_norm=[lambda: (r(3, 4),), lambda: (r(3, 4), 1, [1]), lambda: (r(3, 4), 3.0, [0], True), lambda: (r(3, 4), float("inf"), [1])],
    prod=[lambda: (r(7),), lambda: (torch.tensor([2.0, 0.0, 3.0], dtype=F64),)], prod__dim_int=lambda: (r(3, 5), 1, True),
    cumprod=lambda: (r(3, 5), 1),
    cumsum=lambda: (r(3, 4), 1), logsumexp=lambda: (r(3, 4), [1]), _softmax=lambda: (r(3, 4), -1, False), _log_softmax=lambda: (r(3, 4), 1, False),
    _softmax_backward_data=lambda: (r(3, 4), torch.softmax(r(3, 4), 1), 1, F64),
    native_layer_norm=[lambda: (r(3, 5), [5], r(5), r(5), 1e-5), lambda: (r(2, 3, 4), [3, 4], None, None, 1e-5)],
    native_layer_norm_backward=_layer_norm_backward, native_batch_norm_backward=_batch_norm_backward,
    _native_batch_norm_legit_functional=[lambda: (r(3, 2, 4, 4), r(2), r(2), torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64), True, 0.1, 1e-5),
                                         lambda: (r(3, 2, 4), r(2), r(2), torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64), False, 0.1, 1e-5)],
    _native_batch_norm_legit_no_training=lambda: (r(3, 2, 4, 4), r(2), r(2), r(2), r(2, low=0.5), 0.1, 1e-5),
    _native_batch_norm_legit__no_stats=lambda: (r(3, 2, 4), r(2), r(2), True, 0.1, 1e-5),
    native_group_norm=lambda: (r(2, 4, 3), r(4), r(4), 2, 4, 3, 2, 1e-5), _fused_rms_norm=lambda: (r(3, 5), [5], r(5), 1e-5),
)  # fmt: skip
_add(
    linear=[lambda: (r(2, 3, 4), r(5, 4), r(5)), lambda: (r(3, 4), r(5, 4))],
    matmul=[lambda: (r(2, 3, 4), r(4, 5)), lambda: (r(2, 1, 3, 4), r(3, 4, 2)), lambda: (r(3, 4), r(2, 4, 5))],
    mm=lambda: (r(3, 4), r(4, 5)), bmm=lambda: (r(2, 3, 4), r(2, 4, 5)), addmm=[lambda: (r(5), r(3, 4), r(4, 5)),
            lambda: (r(3, 1), r(3, 4), r(4, 5))],
    baddbmm=lambda: (r(2, 3, 5), r(2, 3, 4), r(2, 4, 5)), mv=lambda: (r(3, 4), r(4)), dot=lambda: (r(4), r(4)),
    convolution=[lambda: (r(2, 4, 6, 7), r(6, 2, 3, 2), r(6), [2, 1], [1, 0], [1, 2], False, [0, 0], 2),
                 lambda: (r(2, 4, 5), r(4, 3, 3), None, [2], [1], [1], True, [1], 1),
                 lambda: (r(1, 2, 4, 4, 4), r(3, 2, 2, 2, 2), None, [1], [0], [1], False, [0], 1)],
    convolution_backward=lambda: (r(2, 3, 4, 4), r(2, 2, 6, 6), r(3, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]),
    max_pool2d_with_indices=[lambda: (r(2, 2, 6, 6), [2, 2], [2, 2]), lambda: (r(2, 7, 7), [3, 3], [2, 2], [1, 1])],
    max_pool3d_with_indices=lambda: (r(1, 2, 4, 4, 4), [2, 2, 2], [2, 2, 2]), adaptive_max_pool2d=lambda: (r(1, 2, 5, 5), [2, 3]),
    avg_pool1d=lambda: (r(2, 2, 6), [2], [2]), avg_pool2d=[lambda: (r(1, 2, 6, 6), [2, 2], [2, 2]),
            lambda: (r(1, 2, 7, 7), [3, 3], [2, 2], [1, 1], True, False)],
    avg_pool2d_backward=lambda: (r(1, 2, 3, 3), r(1, 2, 6, 6), [2, 2], [2, 2], [0, 0], False, True, None),
    avg_pool3d=lambda: (r(1, 1, 4, 4, 4), [2, 2, 2]),
    avg_pool3d_backward=lambda: (r(1, 1, 2, 2, 2), r(1, 1, 4, 4, 4), [2, 2, 2], [2, 2, 2], [0, 0, 0], False, True, None),
    _adaptive_avg_pool2d=lambda: (r(1, 2, 5, 6), [2, 3]), _adaptive_avg_pool2d_backward=lambda: (r(1, 2, 2, 3), r(1, 2, 5, 6)),
    _adaptive_avg_pool3d=lambda: (r(1, 2, 4, 5, 6), [2, 2, 3]), _adaptive_avg_pool3d_backward=lambda: (r(1, 2, 2, 2, 3), r(1, 2, 4, 5, 6)),
)  # fmt: skip
def _attended(causal: bool, mask: Tensor | None = None) -> tuple[Any, ...]:
    """(q, k, v, out, lse) of attention, [1, 2, 4, 3] over five keys, or four where it is causal."""
    n = 4 if causal else 5
    q, k, v = r(1, 2, 4, 3), r(1, 2, n, 3), r(1, 2, n, 3)
    return (q, k, v, *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v, 0.0, causal, attn_mask=mask))


_FLASH = "_scaled_dot_product_flash_attention_for_cpu"
_add(**{_FLASH: [lambda: _attended(False)[:3], lambda: (*_attended(True)[:3], 0.0, True)],
        f"{_FLASH}_backward": [lambda: (r(1, 2, 4, 3), *_attended(False), 0.0, False), lambda: (r(1, 2, 4, 3), *_attended(True), 0.0, True)]})
CASES["attention_tangent"] = [lambda: (r(1, 2, 4, 3), r(1, 2, 5, 3), r(1, 2, 5, 3), *_attended(False), False, None, None),
                              lambda: (r(1, 2, 4, 3), r(1, 2, 4, 3), r(1, 2, 4, 3), *_attended(True), True, None, 0.3)]
for _name, _dims, _corners in (("nearest1d", 1, False), ("nearest2d", 2, False), ("nearest3d", 3, False), ("linear1d", 1, True),
                               ("bilinear2d", 2, True), ("trilinear3d", 3, True), ("bicubic2d", 2, True)):
    _small, _large, _middle = [3, 4, 2][:_dims], [6, 8, 4][:_dims], [False] if _corners else []
    _none = [None] * _dims
    CASES |= {
        f"aten.upsample_{_name}.vec": [lambda s=_small, d=_dims, m=_middle: (r(1, 2, *s), None, *m, [2.0] * d)],
        f"aten.upsample_{_name}.default": [lambda s=_small, b=_large, m=_middle, n=_none: (r(1, 2, *s), b, *m, *n)],
        f"aten.upsample_{_name}_backward.default": [lambda s=_small, b=_large, m=_middle, n=_none: (r(1, 2, *b), b, [1, 2, *s], *m, *n)],
    }
_add(
    index__Tensor=[lambda: (r(4, 5), [None, ints(5, 3)]), lambda: (r(4, 5), [ints(4, 2, 1), ints(5, 3)])],
    _unsafe_index__Tensor=lambda: (r(4, 5), [ints(4, 6)]),
    index_put=[lambda: (r(5, 2), [torch.tensor([0, 3])], r(2, 2), False), lambda: (r(4, 3), [ints(4, 6)], r(3), True)],
    _unsafe_index_put=lambda: (r(5, 2), [torch.tensor([1, 4])], r(2, 2), False), gather=lambda: (r(3, 5), 1, ints(5, 3, 2)),
    scatter_add=lambda: (r(3, 5), 1, ints(5, 3, 4), r(3, 4)),
    scatter__src=lambda: (r(3, 5), 1, torch.tensor([[0, 2], [1, 3], [4, 0]]), r(3, 2)), scatter__value=lambda: (r(3, 5), 1, ints(5, 3, 2), 1.5),
    scatter_reduce__two=lambda: (r(3, 5), 1, ints(5, 3, 4), r(3, 4), "sum"), index_select=lambda: (r(4, 5), 1, ints(5, 7)),
    index_add=[lambda: (r(4, 5), 0, ints(4, 6), r(6, 5)), lambda: (r(4), 0, ints(4, 3), r(3))], embedding=[lambda: (r(6, 3), ints(6, 2, 4)),
            lambda: (r(6, 3), ints(6, 8), 2)],
    embedding_dense_backward=[lambda: (r(2, 4, 3), ints(6, 2, 4), 6, -1, False), lambda: (r(8, 3), ints(6, 8), 6, 2, False)],
    masked_fill__Scalar=lambda: (r(3, 4), mask(3, 4), 0.5), masked_fill__Tensor=lambda: (r(3, 4), mask(4), r()),
)  # fmt: skip
KEYWORDS: dict[str, dict[str, Any]] = {"aten.sort.stable": {"stable": True, "dim": 0}, "aten._to_copy.default": {"dtype": torch.float32}}
RANDOM = {"aten.native_dropout.default", "aten.fractional_max_pool2d.default", "aten._batch_norm_with_update_functional.default"}   # tried apart
FIRST = {op for op in CASES if "_norm_legit" in op}
FIRST |= {f"aten.{op}.default" for op in ("native_layer_norm", "native_group_norm", "_fused_rms_norm", _FLASH)}
# torch has no derivative by saved moments, nor of them: their first output is compared, by their first inputs
