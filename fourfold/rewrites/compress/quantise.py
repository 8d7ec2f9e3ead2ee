"""Fewer bits: bf16, int8 with scales found at run time or by calibration, int8 weights. Plain PyTorch, so it loads without any extra.

A symmetric int8 weight is w ≈ s·q with one s per output row, s = max|w| / 127. Activations take one scale per token (dynamic) or one range per layer
chosen for the least squared error on calibration data (static). The product runs in integers (`torch._int_mm`) and is scaled back once:
y = (q_x · q_wᵀ) · s_x · s_w + b. Scheme: Jacob et al. 2018 (integer-only arithmetic), per-token × per-channel as in Yao et al. 2022 (ZeroQuant).

Recipe edits, all of kind "quantise": {path, as: "linear" | "embedding", mode: "dynamic" | "static" | "weights", [step, zero], [tied]},
{path: "", mode: "bf16"}, and {path, mode: "skip", reason} for what is left alone on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.recipe import Recipe, is_conv1d, put
from fourfold.rewrite import Edit, Rewrite
from fourfold.rewrites.compress._plain import plain

SMALLEST = 1 << 12  #: weights; below this, quantising the input costs more than the smaller product saves
MODES = {"int8": "dynamic", "int8-static": "static", "int8-weights": "weights"}
SAMPLE = 1 << 15  #: input values per layer and batch that the static range is fitted on


class Quantise(Rewrite):
    """Which modules, in which mode, and what is left alone, is data in the recipe; whether it pays is for the race to say."""

    default = True
    title: ClassVar[str] = "Quantisation"
    cites: ClassVar[tuple[str, ...]] = ("jacob2018", "yao2022")
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    edits: ClassVar[tuple[str, ...]] = ("quantise",)
    precision: ClassVar[bool] = True

    def declines(self, model: nn.Module) -> str | None:
        if any(quantisable(module) for _, module in model.named_modules()):
            return None
        return f"{type(model).__name__} has no linear layer or embedding of {SMALLEST} weights or more"

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        """In place. On a trained model the weights are rounded; on a bare one the buffers get the right shapes for a state dict to fill."""
        if edit["mode"] == "skip":
            return model
        if edit["mode"] == "bf16":
            to_bf16(model.get_submodule(edit["path"]))
        elif edit["as"] == "embedding":
            put(model, edit["path"], Int8Embedding.of(model.get_submodule(edit["path"])))
        else:
            linear = Int8Linear.of(model.get_submodule(edit["path"]), edit["mode"], edit.get("step"), edit.get("zero"))
            put(model, edit["path"], linear)
            if edit.get("tied"):
                table = model.get_submodule(edit["tied"])
                linear.register_buffer("weight", table.weight)  # type: ignore[arg-type]
                linear.register_buffer("scale", table.scale)  # type: ignore[arg-type]
            for module in model.modules():
                if isinstance(module, nn.TransformerEncoderLayer) and any(part is linear for part in module.modules()):
                    module.activation_relu_or_gelu = 0  # its fused path would hand the raw int8 weights to a float kernel
        return model

    def describe(self, edits: Sequence[Edit]) -> str:
        kinds = sorted({str(edit["mode"]) for edit in edits} - {"skip"})
        return f"weights in {', '.join(kinds)}"


def plan(module: nn.Module, precision: str, batches: Sequence[tuple[Tensor, ...]]) -> Recipe:
    """The recipe that brings `module` to `precision` ("bf16", "int8", "int8-static", "int8-weights").

    `batches` are positional inputs of `module`: the first shows which layer makes the output, all of them set the ranges of static quantisation.
    Raises ValueError for static quantisation without batches.
    """
    if precision == "bf16":
        return Recipe(({"kind": "quantise", "path": "", "mode": "bf16"},))
    mode = MODES[precision]
    if mode == "static" and not batches:
        raise ValueError("static quantisation needs calibration batches")
    ran, heads = watch(module, batches[0]) if batches else (None, set())
    owned = {f"{path}.out_proj" for path, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)}
    tables = {id(m.weight): path for path, m in module.named_modules() if isinstance(m, nn.Embedding) and quantisable(m)}
    edits: list[dict[str, Any]] = []
    for path, layer in list(module.named_modules()):
        kind = "embedding" if isinstance(layer, nn.Embedding) else "linear" if isinstance(layer, nn.Linear) or is_conv1d(layer) else None
        if kind is None or (kind == "embedding" and mode != "weights"):
            continue
        edit: dict[str, Any] = {"kind": "quantise", "path": path}
        count = sum(p.numel() for name, p in layer.named_parameters() if name == "weight")
        tied = tables.get(id(layer.weight)) if kind == "linear" else None
        if path in owned:
            edit |= {"mode": "skip", "reason": "nn.MultiheadAttention reads these weights directly"}
        elif not quantisable(layer):
            edit |= {"mode": "skip", "reason": f"only {count} weights, or a {type(layer).__name__} that works in its own way"}
        elif ran is not None and path not in ran:
            edit |= {"mode": "skip", "reason": "never called: unused, or its owner reads the weights directly"}
        elif tied and mode == "weights":
            edit |= {"as": kind, "mode": mode, "tied": tied}
        elif path in heads:
            edit |= {"mode": "skip", "reason": "makes the model's output, where rounding is not averaged out by later layers"}
        else:
            edit |= {"as": kind, "mode": mode}
        edits.append(edit)
    # Tables first: a head that shares one takes over its rounded rows.
    edits.sort(key=lambda edit: "tied" in edit)
    if mode == "static":
        ranges = calibrate(module, [edit["path"] for edit in edits if edit["mode"] == "static"], batches)
        for edit in edits:
            if edit["mode"] == "static":
                edit["step"], edit["zero"] = ranges[edit["path"]]
    return Recipe(tuple(edits)) if any(edit["mode"] != "skip" for edit in edits) else Recipe()


def quantisable(module: nn.Module) -> bool:
    """A linear layer (GPT-2's Conv1D too) or embedding with float weights and enough of them."""
    if not (isinstance(module, nn.Linear | nn.Embedding) or is_conv1d(module)):
        return False
    weight = module.weight
    return isinstance(weight, Tensor) and weight.is_floating_point() and weight.numel() >= SMALLEST and plain(module)


def watch(module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[set[str], set[str]]:
    """(paths of the layers that are called, paths of the linear layers whose result is the model's output itself, reshaped or cut at most)."""
    made: dict[int, str] = {}
    ran: set[str] = set()

    def look(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, result: Tensor) -> None:
            ran.add(path)
            # A later layer that is given freed memory again overwrites the note, as it should.
            made[result.untyped_storage().data_ptr()] = path

        return hook

    hooks = [layer.register_forward_hook(look(path)) for path, layer in module.named_modules() if quantisable(layer)]
    try:
        with torch.inference_mode():
            output = module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    last = made.get(output.untyped_storage().data_ptr())
    return ran, {last} if last is not None else set()


def calibrate(module: nn.Module, paths: Sequence[str], batches: Sequence[tuple[Tensor, ...]]) -> dict[str, tuple[float, int]]:
    """{path: (step, zero)} of each layer's input: the range, shrunk from its extremes, with the least squared rounding and clipping error."""
    seen: dict[str, list[Tensor]] = {}
    ends: dict[str, tuple[float, float]] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().float().flatten()
            low, high = ends.get(path, (0.0, 0.0))
            ends[path] = (min(low, float(values.min())), max(high, float(values.max())))
            seen.setdefault(path, []).append(values[:: max(1, len(values) // SAMPLE)].clone())

        return hook

    hooks = [module.get_submodule(path).register_forward_pre_hook(look(path)) for path in paths]
    try:
        with torch.inference_mode():
            for batch in batches:
                module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: fit_range(torch.cat(values), *ends[path]) for path, values in seen.items()}


def fit_range(values: Tensor, low: float, high: float) -> tuple[float, int]:
    """(step, zero) with x ≈ (q − zero)·step, q in −128…127, minimising Σ(x − x̂)² over shrunk ranges [αl, αh], α = 1 … 0.3."""
    best: tuple[float, float, int] | None = None
    for shrink in torch.linspace(1.0, 0.3, 29).tolist():
        step = max((high - low) * shrink / 255, 1e-12)
        zero = int(max(-128, min(127, round(-128 - low * shrink / step))))
        error = float((((values / step).round() + zero).clamp_(-128, 127).sub_(zero).mul_(step) - values).square().sum())
        if best is None or error < best[0]:
            best = (error, step, zero)
    assert best is not None
    return best[1], best[2]


def round_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [rows, columns] → int8 [rows, columns] and fp32 scale [rows], symmetric. All-zero rows get scale 1e-12."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1).clamp_min(1e-12) / 127
    return (weight / scale[:, None]).round().clamp_(-127, 127).to(torch.int8), scale


def product(left: Tensor, right: Tensor) -> Tensor:
    """int8 [m, k] × int8 [n, k]ᵀ → fp32 [m, n], exact in integers.

    The integer kernel is passed over where it is wrong (k = 1: it leaves its result unwritten; processors without VNNI may saturate: `trusted`),
    where CUDA's does not take the sizes, and on other devices; these multiply in floating point.
    """
    m, (n, k) = left.shape[0], right.shape
    if k > 1 and (trusted() if left.device.type == "cpu" else left.device.type == "cuda" and m > 16 and not (n | k) & 7):
        return torch.ops.aten._int_mm(left, right.t()).float()
    # fp32 holds the sum exactly while k·127² < 2²⁴.
    wide = torch.float32 if k < 1040 or left.device.type == "mps" else torch.float64
    return (left.to(wide) @ right.to(wide).t()).float()


@cache
def trusted() -> bool:
    """Whether this processor's integer kernel gives the exact sum of the largest products there are."""
    ends = torch.tensor([-128, 127, 127, -128], dtype=torch.int8).repeat(8, 48)
    ends[1::2] = 127
    return torch.equal(torch.ops.aten._int_mm(ends, ends.t()).double(), ends.double() @ ends.double().t())


class Int8Linear(nn.Module):
    """y = x·Wᵀ + b with an int8 W: input [..., in] float → output [..., out] of the same dtype. For inference: no gradient passes.

    Buffers: weight int8 [out, in], scale fp32 [out], bias fp32 [out] (zeros where there was none); static mode adds step and zero, fp32 scalars.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    step: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor, mode: str, step: float | None = None, zero: int | None = None) -> None:
        super().__init__()
        self.mode, (self.out_features, self.in_features) = mode, weight.shape
        for name, tensor in (("weight", weight), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor)
        if mode == "static":
            self.register_buffer("step", torch.tensor(1.0 if step is None else step))
            self.register_buffer("zero", torch.tensor(float(zero or 0)))

    @classmethod
    def of(cls, layer: nn.Module, mode: str, step: float | None = None, zero: int | None = None) -> Int8Linear:
        """Round a linear layer, or GPT-2's Conv1D, whose weight is stored transposed."""
        stored: Tensor = layer.weight  # type: ignore[assignment]
        dense = stored.t() if is_conv1d(layer) else stored
        weight, scale = round_rows(dense)
        bias = layer.bias.detach().float().clone() if isinstance(layer.bias, Tensor) else torch.zeros_like(scale)
        return cls(weight.contiguous(), scale, bias, mode, step, zero)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features)
        if self.mode == "weights":
            y = F.linear(flat, self.weight.to(x.dtype) * self.scale[:, None].to(x.dtype), self.bias.to(x.dtype))
        elif self.mode == "dynamic":
            flat = flat.float()
            # abs().amax() is several times faster than aminmax() on processors.
            steps = flat.abs().amax(1, keepdim=True).clamp_min_(1e-12).div_(127)
            y = product(torch.div(flat, steps).round_().to(torch.int8), self.weight).mul_(steps)
            y = torch.addcmul(self.bias, y, self.scale)
        else:
            q = torch.div(flat.float(), self.step).round_().add_(self.zero).clamp_(-128, 127).to(torch.int8)
            # (q − zero)·Wᵀ = q·Wᵀ − zero·Σ_k W
            shift = self.bias - self.zero * self.step * self.scale * self.weight.sum(1, dtype=torch.int32)
            y = torch.addcmul(shift, product(q, self.weight), self.scale * self.step)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.mode}"


class Int8Embedding(nn.Module):
    """Rows of an embedding in int8 with one scale each: ids [...] → fp32 [..., width]. A quarter of the memory; only rows asked for are widened."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    @classmethod
    def of(cls, table: nn.Module) -> Int8Embedding:
        """Round a plain nn.Embedding."""
        return cls(*round_rows(table.weight), padding_idx=table.padding_idx)  # type: ignore[arg-type]

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight).float() * F.embedding(ids, self.scale[:, None])


def to_bf16(module: nn.Module) -> nn.Module:
    """In place, every floating tensor to bf16. Finite fp32 values that bf16 would round to infinity (masks filled with the most negative number)
    become its largest finite ones."""
    for holder in module.modules():
        for store in (holder._parameters, holder._buffers):
            for tensor in store.values():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = narrow(tensor.data)
    return module


def narrow(tensor: Tensor) -> Tensor:
    """fp32 → bf16 without new infinities."""
    small = tensor.to(torch.bfloat16)
    if torch.isinf(small).any():
        limit = torch.finfo(torch.bfloat16).max
        small = torch.where(torch.isinf(small) & torch.isfinite(tensor), torch.sign(small) * limit, small)
    return small
