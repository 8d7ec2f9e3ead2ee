"""torch.compile: one decoding step of a decoder-only model as compiled code, with a static cache whose buffers never move or grow.

The prompt is read eagerly (its length is another each time). A step has one shape for a batch size and a room, which is rounded up, so that little is
compiled again; rows that have left the batch are computed on and not answered.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.engines.base import TimeIsUp, first_line, limit, no_compiler
from fourfold.engines.decode.base import DecodingState
from fourfold.engines.decode.eager import EagerDecoding, LayerMemory, Memory
from fourfold.errors import Declined

LIMIT = 240.0
"""Seconds that a compilation may take. Overridden by the environment variable FOURFOLD_COMPILE_LIMIT."""
GRAIN = 128
"""Rooms are multiples of it."""


class StaticLayerMemory(LayerMemory):
    """Buffers [B, heads, room, width] written at the places that its memory names, and read whole: the mask hides what is not written yet."""

    def __init__(self, memory: StaticMemory) -> None:
        super().__init__(memory.room)
        self.memory = memory

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (x.new_zeros(*x.shape[:2], self.room, x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.memory.places, key_states)
        self.values.index_copy_(2, self.memory.places, value_states)
        return self.keys, self.values


class StaticMemory(Memory):
    """`places` int64 [n]: where the tokens of the call that runs now are written."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.places = torch.zeros(1, dtype=torch.int64)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(StaticLayerMemory(self))
        layer = self.layers[layer_idx]
        assert isinstance(layer, StaticLayerMemory)
        return layer.update(key_states, value_states)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.room, 0


class HeldStatic:
    """Of a state: the memory, the mask of the whole room bool [B, room] (padding is False for ever), and which rows of the batch are still asked
    for."""

    def __init__(self, room: int, mask: np.ndarray) -> None:
        self.memory = StaticMemory(room)
        self.shown = np.zeros((len(mask), room), bool)
        self.shown[:, : mask.shape[1]] = mask
        self.kept = np.arange(len(mask))
        self.counts = mask.sum(1).astype(np.int64)


class CompiledDecoding(EagerDecoding):
    """Steps of one token are compiled, with their cache in place; several at once (drafts) run the same way, eagerly."""

    name: ClassVar[str] = "inductor"
    title: ClassVar[str] = "torch.compile"
    likely: ClassVar[Mapping[str, int]] = {"bf16": 8, "fp32": 9}
    slow: ClassVar[float] = 20.0

    def __init__(self, module: nn.Module, threads: int = 1, precision: str = "fp32") -> None:
        super().__init__(module, threads, precision)
        if self.encodes:
            raise Declined("torch.compile takes decoder-only models here")
        if windowed(self.module.config):
            raise Declined("torch.compile with a static cache has no sliding windows here")
        if "position_ids" not in self.takes:
            raise Declined(f"{type(module).__name__} takes no position_ids, which a static cache needs")
        self.step_once = torch.compile(self._once, dynamic=False, fullgraph=False)

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        return super().declines(precision, machine) or no_compiler()

    @classmethod
    def open(cls, folder: Path, module: nn.Module | None, precision: str, threads: int) -> CompiledDecoding:
        if module is None:
            raise Declined("torch.compile needs the module itself, not only files")
        made = cls(module, threads, precision)
        try:
            with limit(float(os.environ.get("FOURFOLD_COMPILE_LIMIT", LIMIT))):
                inputs = {"input_ids": np.ones((1, 2), np.int64)}
                state, _ = made.start(inputs, min(GRAIN, made.positions or GRAIN))
                made.step(state, np.ones((1, 1), np.int64))
        except TimeIsUp:
            torch._dynamo.reset()
            raise Declined(f"compiling took longer than {LIMIT:.0f} s") from None
        except Exception as error:  # a compiler's own failure
            raise Declined(f"torch.compile: {first_line(error)}") from None
        return made

    def _once(self, ids: Tensor, mask: Tensor, positions: Tensor, memory: StaticMemory) -> Tensor:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": True, self.keyword: memory}
        return self.module(**given, return_dict=True).logits

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        from fourfold.engines.decode.base import prompt_mask

        self.fits(room)
        mask = prompt_mask(inputs)
        held = HeldStatic(-(-max(room, mask.shape[1]) // GRAIN) * GRAIN, mask)
        state = DecodingState(0, room, mask, held=held)
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
        logits = self._run(held, np.asarray(inputs["input_ids"], np.int64), positions, 0, False)
        state.seen = mask.shape[1]
        return state, logits[:, -1]

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        held = state.held
        assert isinstance(held, HeldStatic)
        tokens = np.asarray(tokens, np.int64).reshape(state.rows, -1)
        count = tokens.shape[1]
        if state.seen + count > held.memory.room:
            raise ValueError(f"a room of {held.memory.room} tokens is full")
        whole = np.zeros((len(held.shown), count), np.int64)
        whole[held.kept] = tokens
        held.shown[:, state.seen : state.seen + count] = True
        positions = held.counts[:, None] + np.arange(count)
        logits = self._run(held, whole, positions, state.seen, count == 1)
        held.counts = held.counts + count
        state.seen += count
        state.mask = np.concatenate([state.mask, np.ones(tokens.shape, bool)], 1)
        return logits[held.kept]

    def _run(self, held: HeldStatic, ids: np.ndarray, positions: np.ndarray, begin: int, compiled: bool) -> np.ndarray:
        """Logits float32 [B, n, V] of tokens [B, n] written from place `begin` on."""
        count, room = ids.shape[1], held.memory.room
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        seen = held.shown[:, None, :] & (np.arange(room) <= (begin + np.arange(count))[:, None])[None]
        seen |= ~seen.any(-1, keepdims=True)  # a query of padding looks everywhere, so that its softmax is a number
        kind = next(self.module.parameters()).dtype
        shade = torch.zeros(seen.shape, dtype=kind).masked_fill_(torch.from_numpy(~seen), torch.finfo(kind).min)[:, None]
        held.memory.places = torch.arange(begin, begin + count)
        held.memory.seen = begin
        with torch.inference_mode():
            run = self.step_once if compiled else self._once
            return run(torch.from_numpy(ids), shade, torch.from_numpy(positions), held.memory).float().numpy()

    def crop(self, state: DecodingState, length: int) -> None:
        held = state.held
        assert isinstance(held, HeldStatic)
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens cannot be cropped to {length}")
        held.counts = held.counts - held.shown[:, length : state.seen].sum(1)
        held.shown[:, length:] = False
        state.seen, state.mask = length, state.mask[:, :length]

    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        held = state.held
        assert isinstance(held, HeldStatic)
        chosen = np.asarray(index, np.int64)
        state.mask, places = state.mask[chosen], held.kept[chosen]
        if len(set(places.tolist())) == len(places):
            held.kept = places
            return
        held.shown, held.counts, held.kept = held.shown[places], held.counts[places], np.arange(len(places))
        for layer in held.memory.memories():
            layer.select(torch.from_numpy(places))

    def copied(self, state: DecodingState, length: int | None = None, room: int | None = None) -> DecodingState:
        raise Declined("torch.compile's static cache is not copied")

    def joined(self, states: Sequence[DecodingState]) -> DecodingState:
        raise Declined("torch.compile's static caches are not joined")

    def state_bytes(self, state: DecodingState) -> int:
        held = state.held
        assert isinstance(held, HeldStatic)
        return sum(x.nbytes for layer in held.memory.memories() for x in (layer.keys, layer.values) if x is not None)

    def describe(self) -> dict[str, object]:
        return {**super().describe(), "engine": "torch.compile", "cache": f"static, in steps of {GRAIN} tokens"}


def windowed(config: object) -> bool:
    """Whether some layers attend to a window only."""
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return any("sliding" in str(kind) or "chunk" in str(kind) for kind in kinds)
    return bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True) is not False
