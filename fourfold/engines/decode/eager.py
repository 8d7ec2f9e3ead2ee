"""A transformers model as it is, with a cache of its own: any causal language model, or encoder–decoder with cross-attention (T5, BART, Whisper).

Layers may differ: each has as many heads in the cache as it has itself, and one whose attention is gone has none. How far a row has come is the
cache's own count, never a layer's, so that the first layer may be one that is gone. Windows of sliding attention are kept by the mask: the cache
holds everything, so that it can be cropped.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from fourfold.engines.base import first_line, weigh
from fourfold.engines.decode.base import TOLERANCE, Decoding, DecodingState, prompt_mask
from fourfold.errors import Declined, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODED = ("input_ids", "input_features", "input_values", "pixel_values", "inputs_embeds")  # what an encoder reads, one of them


class LayerMemory(CacheLayerMixin):
    """Keys and values [B, heads, room, width] of one layer, filled from the left; made when the first ones come, in their number of heads."""

    is_sliding = False
    is_compileable = False
    is_croppable = True

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self.room, self.filled = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = (x.new_empty(*x.shape[:2], max(self.room, x.shape[2]), x.shape[3]) for x in (key_states, value_states))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Append; what the layer holds now, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.filled + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys = torch.cat([self.keys[:, :, : self.filled], key_states], 2)
            self.values = torch.cat([self.values[:, :, : self.filled], value_states], 2)
        else:
            self.keys[:, :, self.filled : end] = key_states
            self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.filled

    def get_max_length(self) -> int:
        return -1

    def select(self, index: Tensor) -> None:
        """Keep these rows; a cache without any stays so."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys, self.values = self.keys[index], self.values[index]


class Memory(Cache):
    """One `LayerMemory` a layer number that asks; `seen` is advanced by whoever calls the model, so it is the same for all layers of a call."""

    def __init__(self, room: int = 0) -> None:
        super().__init__(layers=[])
        self.room, self.seen = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(LayerMemory(self.room))
        return self.memories()[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __bool__(self) -> bool:
        return True  # an empty cache is one too

    @property
    def is_compileable(self) -> bool:
        return False

    def copied(self, length: int | None, room: int) -> Memory:
        """Another memory with the first `length` tokens of every layer (all)."""
        found = Memory(room)
        found.seen = self.seen if length is None else length
        for layer in self.memories():
            new = LayerMemory(room)
            if layer.is_initialized and layer.keys is not None and layer.values is not None:
                end = layer.filled if length is None else min(layer.filled, length)
                new.update(layer.keys[:, :, :end], layer.values[:, :, :end])
            found.layers.append(new)
        return found

    @classmethod
    def joined(cls, parts: Sequence[Memory], seen: Sequence[int], sizes: Sequence[int], room: int) -> Memory:
        """The rows of all `parts`, of whose `seen` columns the last `sizes` count; zeros stand before the shorter ones."""
        found, longest = cls(room), max(sizes)
        found.seen = longest
        for layers in zip(*(part.memories() for part in parts), strict=True):
            new = LayerMemory(room)
            if layers[0].is_initialized:
                pairs = []
                for name in ("keys", "values"):
                    rows = [getattr(layer, name)[:, :, count - size : count] for layer, count, size in zip(layers, seen, sizes, strict=True)]
                    pairs.append(torch.cat([nn.functional.pad(x, (0, 0, longest - x.shape[2], 0)) for x in rows]))
                new.update(pairs[0], pairs[1])
            found.layers.append(new)
        return found

    def memories(self) -> list[LayerMemory]:
        return [layer for layer in self.layers if isinstance(layer, LayerMemory)]


class Crossed(EncoderDecoderCache):
    """Both memories of an encoder–decoder; layers whose cross-attention has not read the encoder yet read it now."""

    self_attention_cache: Memory
    cross_attention_cache: Memory

    def __bool__(self) -> bool:
        return True

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.self_attention_cache.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.self_attention_cache.get_mask_sizes(query_length)


class Held:
    """Of a state: the memory, the encoder's answer and its mask, and without a memory all tokens so far."""

    def __init__(self, room: int) -> None:
        self.memory = Memory(room)
        self.crossed: Crossed | None = None
        self.encoded: Tensor | None = None
        self.encoder_mask: Tensor | None = None
        self.tokens: Tensor | None = None

    def copied(self, length: int, room: int) -> Held:
        """Another one with the first `length` tokens of this."""
        found = Held(room)
        found.memory = self.memory.copied(length, room)
        if self.crossed is not None:
            found.crossed = Crossed(found.memory, self.crossed.cross_attention_cache.copied(None, 0))
            found.crossed.is_updated = dict(self.crossed.is_updated)
        found.encoded, found.encoder_mask = self.encoded, self.encoder_mask  # never written to
        found.tokens = None if self.tokens is None else self.tokens[:, :length].clone()
        return found

    @classmethod
    def joined(cls, parts: Sequence[Held], seen: Sequence[int], sizes: Sequence[int], room: int) -> Held:
        """The rows of all `parts`, of whose `seen` tokens the last `sizes` count, with padding before. Raises Declined for encoders' memories of
        different lengths."""
        found, longest = cls(room), max(sizes)
        if parts[0].tokens is not None:
            found.tokens = torch.cat([nn.functional.pad(part.tokens[:, count - size :], (longest - size, 0))
                                      for part, count, size in zip(parts, seen, sizes, strict=True) if part.tokens is not None])
        found.memory = Memory.joined([part.memory for part in parts], seen, sizes, room)
        encoded = [part.encoded for part in parts if part.encoded is not None]
        if encoded:
            if len({tuple(x.shape[1:]) for x in encoded}) > 1 or len({part.encoder_mask is None for part in parts}) > 1:
                raise Declined("rows whose encoders read texts of different lengths are not joined")
            found.encoded = torch.cat(encoded)
            masks = [part.encoder_mask for part in parts if part.encoder_mask is not None]
            found.encoder_mask = torch.cat(masks) if masks else None
            crossed = [part.crossed for part in parts if part.crossed is not None]
            if crossed:
                length = encoded[0].shape[1]
                found.crossed = Crossed(found.memory, Memory.joined([one.cross_attention_cache for one in crossed], [length] * len(crossed),
                                                                    [length] * len(crossed), 0))
                found.crossed.is_updated = dict(crossed[0].is_updated)
        return found


class EagerDecoding(Decoding):
    """PyTorch, one operation after the other. Without `cached`, every step reads everything again: the slow way that the other is compared with, and
    what attentions without a cache leave.

    Raises Declined where the module does not generate, or does not answer the same with a cache as without one.
    """

    name: ClassVar[str] = "torch"
    title: ClassVar[str] = "PyTorch"
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    likely: ClassVar[Mapping[str, int]] = {"fp32": 0, "bf16": 1}

    def __init__(self, module: nn.Module, threads: int = 1, precision: str = "fp32", *, cached: bool = True, device: str = "cpu") -> None:
        config = getattr(module, "config", None)
        if config is None or not hasattr(module, "prepare_inputs_for_generation"):
            raise Declined(f"{type(module).__name__} is no transformers model that generates")
        if precision == "bf16":
            from fourfold.rewrites.compress.quantise import to_bf16

            module = to_bf16(copy.deepcopy(module))
        elif precision != "fp32":
            raise Declined(f"eager PyTorch generates in fp32 and bf16, not {precision}: quantise the module itself")
        self.module: PreTrainedModel = (copy.deepcopy(module) if device != "cpu" else module).to(device).eval()  # pyright: ignore
        self.threads, self.precision, self.cached, self.device = threads, precision, cached, device
        self.encodes = bool(getattr(config, "is_encoder_decoder", False))
        self.bytes = weigh(self.module)
        self.positions = positions(config)
        head = self.module.get_output_embeddings()
        self.vocabulary = int(getattr(head, "out_features", 0) or head.weight.shape[0] if head is not None else config.vocab_size)
        self.takes = set(inspect.signature(module.forward).parameters)
        self.keyword = "cache" if "cache" in self.takes else "past_key_values"

    @classmethod
    def open(cls, folder: Path, module: nn.Module | None, precision: str, threads: int) -> EagerDecoding:
        if module is None:
            raise Declined("PyTorch needs the module itself, not only files")
        return cls(module, threads, precision)

    def _call(self, **given: object) -> Tensor:
        """The module's logits [B, n, V]."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return self.module(**{k: v for k, v in given.items() if v is not None}, return_dict=True).logits

    def _tensor(self, array: np.ndarray) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(array))
        if found.is_floating_point():
            found = found.to(torch.bfloat16 if self.precision == "bf16" else torch.float32)
        return found.to(self.device)

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        self.fits(room)
        name = "decoder_input_ids" if self.encodes else "input_ids"
        mask, held = prompt_mask(inputs, name), Held(room)
        state = DecodingState(0, room, mask[:, :0], self.encodes, held)
        if self.encodes:
            self._encode(inputs, held)
        logits = self._read(state, np.asarray(inputs[name], np.int64), mask, last=True)
        return state, logits[:, -1]

    def _encode(self, inputs: Mapping[str, np.ndarray], held: Held) -> None:
        encoder = self.module.get_encoder()
        given = {n: self._tensor(np.asarray(inputs[n])) for n in ENCODED if n in inputs}
        takes = inspect.signature(encoder.forward).parameters
        if "attention_mask" in inputs and "attention_mask" in takes:
            held.encoder_mask = given["attention_mask"] = self._tensor(np.asarray(inputs["attention_mask"], np.int64))
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            held.encoded = encoder(**given, return_dict=True).last_hidden_state
        if self.cached:
            held.crossed = Crossed(held.memory, Memory())

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        tokens = np.asarray(tokens, np.int64).reshape(state.rows, -1)
        return self._read(state, tokens, np.ones(tokens.shape, bool))

    def _read(self, state: DecodingState, tokens: np.ndarray, mask: np.ndarray, last: bool = False) -> np.ndarray:
        """Logits float32 [B, n, V] of `tokens` [B, n], which the state then holds; with `last` at least those of the last."""
        held: Held = state.held  # pyright: ignore[reportAssignmentType]
        new, whole = self._tensor(tokens), np.concatenate([state.mask, mask], 1)
        count = tokens.shape[1]
        if not self.cached:
            held.tokens = new if held.tokens is None else torch.cat([held.tokens, new], 1)
        ids, memory = (new, held.memory if held.crossed is None else held.crossed) if self.cached else (held.tokens, None)
        given: dict[str, object] = {"use_cache": self.cached}
        if memory is not None:
            given[self.keyword] = memory
        padded = None if whole.all() else self._tensor(whole.astype(np.int64))
        if self.encodes:
            from transformers.modeling_outputs import BaseModelOutput

            given |= {"decoder_input_ids": ids, "encoder_outputs": BaseModelOutput(last_hidden_state=held.encoded),  # pyright: ignore
                      "attention_mask": held.encoder_mask, "decoder_attention_mask": padded}
        else:
            given |= {"input_ids": ids, "attention_mask": padded}
            if "position_ids" in self.takes:
                places = np.maximum(np.cumsum(whole, 1) - 1, 0)
                given["position_ids"] = self._tensor(places[:, -count:] if self.cached else places)
        if last and "logits_to_keep" in self.takes:
            given["logits_to_keep"] = 1
        logits = self._call(**{k: v for k, v in given.items() if k in self.takes or k == self.keyword})
        held.memory.seen += count
        state.seen, state.mask = state.seen + count, whole
        return logits[:, -(1 if last else count) :].float().cpu().numpy()

    def crop(self, state: DecodingState, length: int) -> None:
        held: Held = state.held  # pyright: ignore[reportAssignmentType]
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens cannot be cropped to {length}")
        state.seen, state.mask = length, state.mask[:, :length]
        held.memory.seen = length
        for layer in held.memory.memories():
            layer.filled = min(layer.filled, length)
        if held.tokens is not None:
            held.tokens = held.tokens[:, :length]

    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        held: Held = state.held  # pyright: ignore[reportAssignmentType]
        kept = torch.as_tensor(np.asarray(index, np.int64), device=self.device)
        state.mask = state.mask[np.asarray(index, np.int64)]
        for layer in [*held.memory.memories(), *(held.crossed.cross_attention_cache.memories() if held.crossed else [])]:
            layer.select(kept)
        held.encoded, held.encoder_mask, held.tokens = (None if x is None else x[kept] for x in (held.encoded, held.encoder_mask, held.tokens))

    def copied(self, state: DecodingState, length: int | None = None, room: int | None = None) -> DecodingState:
        length = state.seen if length is None else length
        if not 0 < length <= state.seen:
            raise ValueError(f"a state of {state.seen} tokens has no first {length}")
        held: Held = state.held  # pyright: ignore[reportAssignmentType]
        return DecodingState(length, room or length, state.mask[:, :length].copy(), state.encoded, held.copied(length, room or length))

    def joined(self, states: Sequence[DecodingState]) -> DecodingState:
        seen = [state.seen - int(np.flatnonzero(state.mask.any(axis=0))[0]) for state in states]  # less the columns that pad all rows
        longest = max(seen)
        if self.encodes and self.positions is not None and len(set(seen)) > 1:  # such decoders count positions by the cache, padding too
            raise Declined("rows of an encoder–decoder with learned positions are joined only where they are equally far")
        room = longest + max(state.room - state.seen for state in states)
        mask = np.concatenate([np.pad(state.mask[:, state.seen - size :], ((0, 0), (longest - size, 0))) for state, size in
                               zip(states, seen, strict=True)])
        helds: list[Held] = [state.held for state in states]  # pyright: ignore[reportAssignmentType]
        return DecodingState(longest, room, mask, self.encodes, Held.joined(helds, [state.seen for state in states], seen, room))

    def state_bytes(self, state: DecodingState) -> int:
        held: Held = state.held  # pyright: ignore[reportAssignmentType]
        layers = [*held.memory.memories(), *(held.crossed.cross_attention_cache.memories() if held.crossed else [])]
        tensors = [x[:, :, : layer.filled] for layer in layers if layer.is_initialized for x in (layer.keys, layer.values) if x is not None]
        return sum(x.nbytes for x in [*tensors, *(x for x in (held.encoded, held.encoder_mask, held.tokens) if x is not None)])

    def describe(self) -> dict[str, object]:
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in [*self.module.parameters(), *self.module.buffers()]})
        return {"engine": "torch", "version": torch.__version__, "precision": self.precision, "threads": self.threads, "dtypes": dtypes,
                "device": self.device, "cache": "one size a layer" if self.cached else "none: everything is read again"}

    def close(self) -> None:
        self.module = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]


def positions(config: object) -> int | None:
    """Tokens that a decoder has positions for, where its configuration limits them: learned positions and rotary ones; not those of T5 or ALiBi."""
    if getattr(config, "relative_attention_num_buckets", None) or getattr(config, "alibi", False):
        return None
    for name in ("max_target_positions", "n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        if (found := getattr(config, name, None)) and int(found) > 0:
            return int(found)
    return None


def opened(module: nn.Module, inputs: Mapping[str, np.ndarray], threads: int = 1, precision: str = "fp32", device: str = "cpu") -> EagerDecoding:
    """`EagerDecoding` with a cache, where it answers as without one on `inputs` (a few rows); else the one that reads everything again.

    Raises Declined or ModelError where the module cannot answer at all.
    """
    fast = EagerDecoding(module, threads, precision, device=device)
    slow = EagerDecoding(fast.module, threads, cached=False, device="cpu")
    slow.device, slow.precision, slow.positions = device, precision, fast.positions
    try:
        return fast if agree(fast, slow, inputs, TOLERANCE[precision]) else slow
    except Declined:
        raise
    except Exception as error:  # whatever a foreign forward raises with a cache is the finding, if it answers without
        try:
            slow.start(inputs, _length(slow, inputs))
        except Exception as second:
            raise ModelError(f"the model cannot answer a prompt of its own data: {first_line(second)}",
                             "Check that inputs and model belong together.") from error
        return slow


def agree(one: Decoding, other: Decoding, inputs: Mapping[str, np.ndarray], tolerance: float, steps: int = 3) -> bool:
    """Whether two ways to generate answer the same logits on `inputs`, then on their first way's greedy tokens, `steps` one at a time, two at
    once."""
    room = _length(one, inputs) + steps + 2
    (a, x), (b, y) = one.start(inputs, room), other.start(inputs, room)
    near = _near(x, y, tolerance)
    for _ in range(steps):
        token = x.reshape(len(x), -1, x.shape[-1])[:, -1].argmax(-1)[:, None]
        x, y = one.step(a, token), other.step(b, token)
        near = near and _near(x, y, tolerance)
    pair = np.repeat(x[:, -1].argmax(-1)[:, None], 2, 1)
    return near and _near(one.step(a, pair), other.step(b, pair), tolerance)


def _near(x: np.ndarray, y: np.ndarray, tolerance: float) -> bool:
    return bool(np.isfinite(x).all() and np.abs(x - y).max() <= tolerance * max(1.0, float(np.abs(y).max())))


def _length(one: Decoding, inputs: Mapping[str, np.ndarray]) -> int:
    return int(np.asarray(inputs["decoder_input_ids" if one.encodes else "input_ids"]).shape[1])
