"""A generating module with its memory as plain inputs and outputs, so that tracers see one step of it: what the exporting engines share.

Attention's mask is made inside, in plain operations, from which slots hold a token (`attention_mask` [B, past + n]) and from the order of slots; it
is handed to transformers as four-dimensional masks, which pass as they are. Layers whose attention slides see a window of `sliding_window` slots.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from fourfold.engines.base import first_line
from fourfold.errors import Declined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOWEST = float(torch.finfo(torch.float32).min)


@dataclass(frozen=True)
class LayerSlot:
    """The memory of one layer: its number in the module, heads in the cache, and widths of keys and values."""

    layer: int
    heads: int
    width: int
    values: int


class _Passed(Cache):
    """Keys and values come in from outside, and what is kept afterwards is read off `layers_out`."""

    def __init__(self, past: Mapping[int, tuple[Tensor, Tensor]], seen: int | Tensor, crossed: bool = False) -> None:
        super().__init__(layers=[])
        self.past, self.seen, self.crossed = past, seen, crossed
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if layer_idx in self.past:
            key, value = self.past[layer_idx]
            key_states, value_states = torch.cat([key, key_states], 2), torch.cat([value, value_states], 2)
        self.kept[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen  # type: ignore[return-value]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0  # type: ignore[return-value]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __bool__(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return False


class OneStep(nn.Module):
    """forward(input_ids [B, n], attention_mask [B, past + n], position_ids [B, n], wanted [k], *past) → (logits [B, k, V], *present).

    `past` and `present` are keys and values [B, heads, slots, width] of each `LayerSlot`, in turn; `wanted`: positions among the n whose logits
    are asked for. Raises Declined where the module does not take what this hands it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
            raise Declined("encoder–decoders are not exported; eager PyTorch runs them")
        self.module: PreTrainedModel = module  # pyright: ignore[reportAttributeAccessIssue]
        self.takes = set(inspect.signature(module.forward).parameters)
        if not {"input_ids", "attention_mask"} <= self.takes or "position_ids" not in self.takes and not _placeless(module):
            raise Declined(f"{type(module).__name__} does not take positions, so its memory cannot be handed in from outside")
        self.keyword = "cache" if "cache" in self.takes else "past_key_values"
        self.windows, self.mixed = windows(module.config)
        self.slots: tuple[LayerSlot, ...] = ()
        self.vocabulary = 0
        self.slots = self._look()

    @property
    def slides(self) -> bool:
        """Whether some layer sees a window of slots, so that slots must stay in order."""
        return any(self.windows.values())

    def _look(self) -> tuple[LayerSlot, ...]:
        memory = _Passed({}, 0)
        ids = torch.ones(2, 3, dtype=torch.long)
        try:
            with torch.inference_mode():
                logits = self._logits(ids, torch.ones(2, 3, dtype=torch.long), torch.arange(3).expand(2, 3), torch.arange(3), memory, 0)
        except Exception as error:  # whatever a foreign forward raises is the reason
            raise Declined(f"{type(self.module).__name__} does not take a memory from outside: {first_line(error)}") from error
        if not memory.kept:
            raise Declined(f"{type(self.module).__name__} keeps no keys and values, so it has no fast way to generate")
        self.vocabulary = int(logits.shape[-1])
        return tuple(LayerSlot(i, k.shape[1], k.shape[3], v.shape[3]) for i, (k, v) in sorted(memory.kept.items()))

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor, wanted: Tensor, memory: _Passed, past: int | Tensor) -> Tensor:
        slots = torch.arange(mask.shape[1])
        now = torch.arange(ids.shape[1]) + past
        behind = slots[None, :] <= now[:, None]
        masks: dict[str, Tensor] = {}
        for kind, window in self.windows.items():
            seen = behind if not window else behind & (slots[None, :] > now[:, None] - window)
            allowed = seen[None, None] & (mask[:, None, None, :] > 0)
            masks[kind] = torch.where(allowed, 0.0, LOWEST)
        given: dict[str, object] = {
            "input_ids": ids, "attention_mask": masks if self.mixed else next(iter(masks.values())), self.keyword: memory, "use_cache": True,
            "return_dict": True}  # fmt: skip
        if "position_ids" in self.takes:
            given["position_ids"] = positions
        if "logits_to_keep" in self.takes:
            given["logits_to_keep"] = wanted
            return self.module(**given).logits
        return self.module(**given).logits[:, wanted]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, wanted: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        held = {slot.layer: (past[2 * i], past[2 * i + 1]) for i, slot in enumerate(self.slots)}
        before = past[0].shape[2]
        memory = _Passed(held, before)
        logits = self._logits(input_ids, attention_mask, position_ids, wanted, memory, before)
        present = [tensor for slot in self.slots for tensor in memory.kept[slot.layer]]
        return logits, *present

    def example(self, rows: int = 2, past: int = 5, new: int = 3) -> tuple[Tensor, ...]:
        """Inputs to trace with; all sizes differ, so that none is mistaken for another."""
        positions = torch.arange(past, past + new).expand(rows, new).contiguous()
        memory = [torch.zeros(rows, s.heads, past, width) for s in self.slots for width in (s.width, s.values)]
        return torch.ones(rows, new, dtype=torch.long), torch.ones(rows, past + new, dtype=torch.long), positions, torch.arange(new), *memory


def _placeless(module: nn.Module) -> bool:
    """Whether it has no positions of its own to be told (none learned, none rotary)."""
    return getattr(getattr(module, "config", None), "max_position_embeddings", None) is None


def windows(config: object) -> tuple[dict[str, int], bool]:
    """({kind of attention: its window, 0 for none}, whether the module wants a mask by kind)."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config  # type: ignore[attr-defined]
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or []))
    width = int(getattr(text, "sliding_window", None) or 0)
    if any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise Declined(f"its layers attend in ways that are not exported: {', '.join(kinds)}")
    if set(kinds) == {"full_attention", "sliding_attention"}:
        return {"full_attention": 0, "sliding_attention": width}, True
    slides = width if kinds == ["sliding_attention"] or (not kinds and width and getattr(text, "use_sliding_window", True)) else 0
    return {"full_attention": slides}, False


@contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Within, attention is torch's scaled dot product, which exporters know; the module's own choice comes back."""
    config = getattr(module, "config", None)
    before = getattr(config, "_attn_implementation", None)
    change = getattr(module, "set_attn_implementation", None)
    if not callable(change) or before not in ("eager", "flash_attention_2", "flex_attention"):
        yield
        return
    # Where it has no such attention it is traced as it is.
    with contextlib.suppress(ValueError, NotImplementedError):
        change("sdpa")
    try:
        yield
    finally:
        change(before)
