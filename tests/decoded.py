"""A model that generates, small enough to be checked by hand: the next token hangs on the last two through a table of logits. Its cache is the
tokens, and it rounds a wide step otherwise than a narrow one, as real engines do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourfold.engines.decode.base import Decoding, DecodingState, prompt_mask


@dataclass
class Columns:
    """Tokens [B, T] that the cache holds; `wide` [B, T]: those that a wide step brought."""

    tokens: np.ndarray
    wide: np.ndarray


def columns(state: DecodingState) -> Columns:
    assert isinstance(state.held, Columns)
    return state.held


class TableDecoding(Decoding):
    """`table` float32 [V, V, V]: logits of the next token after two; `noise`: how far a wide step, or one that follows such columns, is off."""

    def __init__(self, vocabulary: int, seed: int, noise: float = 0.0, sharp: float = 1.0) -> None:
        self.table = (sharp * np.random.default_rng(seed).normal(size=(vocabulary,) * 3)).astype(np.float32)
        self.noise, self.steps, self.widest, self.vocabulary, self.bytes = noise, 0, 0, vocabulary, self.table.nbytes

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        tokens, mask = np.asarray(inputs["input_ids"]), prompt_mask(inputs)
        state = DecodingState(tokens.shape[1], room, mask, held=Columns(tokens.copy(), np.zeros(tokens.shape, bool)))
        return state, self.table[tokens[:, -2], tokens[:, -1]].copy()

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        held, size, width = columns(state), state.seen, tokens.shape[1]
        assert size + width <= state.room, "the cache is full"
        self.steps, self.widest = self.steps + 1, max(self.widest, width)
        held.tokens = np.concatenate([held.tokens, tokens], axis=1)
        held.wide = np.concatenate([held.wide, np.full(tokens.shape, width > 1)], axis=1)
        state.seen, state.mask = size + width, np.concatenate([state.mask, np.ones(tokens.shape, bool)], axis=1)
        logits = self.table[held.tokens[:, size - 1 : -1], held.tokens[:, size:]].copy()
        off = np.cumsum(held.wide, axis=1)[:, size:] > 0
        sign = 1.0 - 2.0 * (np.arange(self.vocabulary) % 2)
        return logits + np.float32(self.noise) * off[..., None] * sign.astype(np.float32)

    def crop(self, state: DecodingState, length: int) -> None:
        held = columns(state)
        assert 0 < length <= state.seen
        state.seen, state.mask = length, state.mask[:, :length]
        held.tokens, held.wide = held.tokens[:, :length], held.wide[:, :length]

    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        held = columns(state)
        state.mask, held.tokens, held.wide = state.mask[index], held.tokens[index], held.wide[index]

    def copied(self, state: DecodingState, length: int | None = None, room: int | None = None) -> DecodingState:
        held, length = columns(state), state.seen if length is None else length
        return DecodingState(length, room or length, state.mask[:, :length].copy(), held=Columns(held.tokens[:, :length].copy(),
                                                                                                  held.wide[:, :length].copy()))

    def joined(self, states: Sequence[DecodingState]) -> DecodingState:
        longest, room = max(state.seen for state in states), max(state.room - state.seen for state in states)
        pads = [((0, 0), (longest - state.seen, 0)) for state in states]
        mask = np.concatenate([np.pad(state.mask, pad) for state, pad in zip(states, pads, strict=True)])
        tokens, wide = (np.concatenate([np.pad(getattr(columns(state), name), pad) for state, pad in zip(states, pads, strict=True)])
                        for name in ("tokens", "wide"))
        return DecodingState(longest, longest + room, mask, held=Columns(tokens, wide))

    def state_bytes(self, state: DecodingState) -> int:
        return columns(state).tokens.nbytes

    def describe(self) -> dict[str, object]:
        return {"engine": "a table"}
