"""PyTorch on an NVIDIA card: fp32, bf16, and fp8 products where the card has them; eager, or its step compiled. Not run on a GPU yet.

An fp8 weight is w ≈ s·q, q in e4m3 (largest 448), one s per output; inputs take one scale per row at run time, and the card multiplies both as they
are (`torch._scaled_mm`; Micikevicius et al. 2022). Before a batch is read its memory is counted against what is free on the card: a batch that does
not fit is refused, and not met by a crash halfway. The card's joules come from its own counter; everything else is `EagerDecoding`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.engines.decode.base import DecodingState
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import Declined, InputError

LARGEST = 448.0  #: of float8_e4m3fn
FP8_SINCE = (8, 9)  #: compute capability of the first cards with fp8 products (Ada)
BF16_SINCE = (8, 0)
SPARE = 0.1  #: share of the free memory that is left to the products' own workspace


class Card(Protocol):
    """What is asked of a card, by name the device of torch on which its tensors lie."""

    device: str

    def reason(self) -> str | None:
        """Why it cannot be used, or None."""
        ...

    def capability(self) -> tuple[int, int]: ...

    def free(self) -> int:
        """Bytes that are free on it."""
        ...

    def joules(self) -> float | None:
        """Its counter, cumulative; None where it has none."""
        ...

    def wait(self) -> None:
        """Until all that was begun on it is done."""
        ...


class NvidiaCard:
    """The card `index` of this computer, by torch and NVML."""

    def __init__(self, index: int = 0) -> None:
        self.index, self.device = index, f"cuda:{index}"

    def reason(self) -> str | None:
        if not torch.backends.cuda.is_built():
            return "this build of PyTorch is for processors only (pip install torch from the CUDA index)"
        if not torch.cuda.is_available():
            return "there is no NVIDIA card, or no driver for it"
        count = torch.cuda.device_count()
        return None if self.index < count else f"there is no card {self.index} (there are {count})"

    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.index)

    def free(self) -> int:
        return int(torch.cuda.mem_get_info(self.index)[0])

    def joules(self) -> float | None:
        from fourfold.measure.counter import MeterError
        from fourfold.measure.meters.nvml import Nvml

        meter = Nvml()
        if meter.available() is not None:
            return None
        try:
            return meter.counts()[self.index].joules
        except (MeterError, IndexError):
            return None

    def wait(self) -> None:
        torch.cuda.synchronize(self.index)


class CudaDecoding(EagerDecoding):
    """A module on a card, in one precision; logits come back to the processor. `card`: another than this computer's first."""

    name: ClassVar[str] = "torch-cuda"
    title: ClassVar[str] = "PyTorch on an NVIDIA card"
    needs: ClassVar[tuple[str, ...]] = ("torch",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp8")
    standalone: ClassVar[bool] = False
    likely: ClassVar[Mapping[str, int]] = {"bf16": 0, "fp8": 1, "fp32": 4}

    def __init__(self, module: nn.Module, threads: int = 1, precision: str = "fp32", *, card: Card | None = None, compiled: bool = False) -> None:
        card = card or NvidiaCard()
        if (reason := unable(card, precision)) is not None:
            raise Declined(reason)
        self.card, self.compiled = card, compiled
        weights = sum(t.numel() * (4 if precision == "fp32" else 2) for t in {id(t): t for t in module.parameters()}.values())
        if weights > (1 - SPARE) * card.free():
            raise Declined(f"the weights need {weights / 1e9:.2f} GB in {precision}, and {card.free() / 1e9:.2f} GB are free on the card")
        if precision == "fp8":
            module = narrow_products(copy.deepcopy(module))
        super().__init__(module, threads, "fp32" if precision == "fp32" else "bf16", device=card.device)
        self.precision = precision
        if compiled:
            self.module.forward = torch.compile(self.module.forward, dynamic=True)

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        """By this computer's first card. Where it has one, the main job still declines it: its race is of processor seconds, which a card's work
        is none of."""
        if precision not in cls.precisions:
            return f"{cls.title} generates in no {precision} (it has {', '.join(cls.precisions)})"
        return unable(NvidiaCard(), precision) or "the race counts processor seconds and the card's joules are not among them; ask `phases.raced`"

    @classmethod
    def open(cls, folder: Path, module: nn.Module | None, precision: str, threads: int) -> CudaDecoding:
        if module is None:
            raise Declined("PyTorch needs the module itself, not only files")
        return cls(module, threads, precision)

    def _tensor(self, array: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(array))
        if found.is_floating_point() and self.precision != "fp32":
            found = found.to(torch.bfloat16)
        return found.to(self.device)

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        """As everywhere; raises InputError where the memory of the batch does not fit on the card."""
        rows = len(next(iter(inputs.values())))
        wanted = rows * room * self.memory_of_a_token()
        if wanted > (1 - SPARE) * self.card.free():
            fit = int((1 - SPARE) * self.card.free() // max(1, room * self.memory_of_a_token()))
            raise InputError(f"{rows} rows of {room:,} tokens need {wanted / 1e9:.2f} GB on the card, and {self.card.free() / 1e9:.2f} GB are free.",
                             f"Ask for {fit} rows at a time." if fit else "Ask for fewer tokens.")
        return super().start(inputs, room)

    def memory_of_a_token(self) -> int:
        """Bytes of keys and values that a token of one row leaves, at most: of the configuration, which a pruned module may fall short of."""
        config = self.module.config.get_text_config(decoder=True)
        heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        return 2 * int(config.num_hidden_layers) * heads * width * (4 if self.precision == "fp32" else 2)

    def joules(self) -> float | None:
        """The card's counter, when all that was begun is done; None where it has none."""
        self.card.wait()
        return self.card.joules()

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "engine": self.name, "precision": self.precision, "compiled": self.compiled,
                "capability": ".".join(map(str, self.card.capability()))}  # fmt: skip


def unable(card: Card, precision: str) -> str | None:
    """Why a card cannot be used in a precision, or None."""
    if (reason := card.reason()) is not None:
        return reason
    least = {"fp8": FP8_SINCE, "bf16": BF16_SINCE}.get(precision)
    if least is not None and card.capability() < least:
        had, wanted = (".".join(map(str, pair)) for pair in (card.capability(), least))
        return f"the card has no {precision} products (its compute capability is {had}, and they began with {wanted})"
    return None


class Fp8Linear(nn.Module):
    """y = x·Wᵀ + b with W and, at run time, x in e4m3: [..., in] → [..., out] of x's dtype. `multiplies`: whether the device has the product; else
    both are widened and multiplied in fp32, which rounds the same.

    Buffers: weight e4m3 [out, in], scale float32 [out]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.weight.shape
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(1e-12) / LARGEST
        self.register_buffer("weight", (weight / scale[:, None]).to(torch.float8_e4m3fn))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features).float()
        steps = flat.abs().amax(1, keepdim=True).clamp_min(1e-12) / LARGEST
        narrow = (flat / steps).to(torch.float8_e4m3fn)
        scale = self.scale.float()
        if x.device.type == "cuda":
            y = torch.ops.aten._scaled_mm(narrow, self.weight.t(), steps, scale[None], out_dtype=torch.bfloat16).float()
        else:
            y = (narrow.float() @ self.weight.float().t()) * steps * scale
        y = y if self.bias is None else y + self.bias.float()
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def narrow_products(module: nn.Module) -> nn.Module:
    """In place, products with weights of 4,096 numbers or more and sizes in sixteens (as the card wants them) in fp8; the output head stays:
    nothing averages its rounding out."""
    from fourfold.recipe import put
    from fourfold.rewrites.weight_precision import head_of

    head = head_of(module)
    for path, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and path != head and layer.weight.numel() >= 1 << 12 and not (layer.in_features | layer.out_features) & 15:
            put(module, path, Fp8Linear(layer))
    return module
