"""Who drafts: the text so far (copied), or a smaller model with a cache of its own. A drafter serves one batch at a time; `begin` starts another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError
from fourfold.runtime.drafting.acceptance import Shares, drawn
from fourfold.runtime.drafting.lookup import LONGEST, Tokens, lookup
from fourfold.runtime.generate import Sampling, probabilities

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding, DecodingState

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class DraftTokens:
    """Tokens [m] that may come next in a row, and what each was drawn from, `shares` [m, V] (None: they are certain, as copies are)."""

    tokens: Tokens
    shares: Shares | None = None


NOTHING = DraftTokens(np.empty(0, np.int64))


class Drafter(ABC):
    """Proposes what comes next. Whatever it proposes, what is generated stays the same; a bad one only costs time."""

    @abstractmethod
    def begin(self, inputs: Batch, room: int) -> None:
        """Another batch: inputs as for `Decoding.start`; `room` tokens will be the most in all."""

    @abstractmethod
    def draft(self, made: Sequence[Tokens], most: Sequence[int], sampling: Sampling, randoms: Sequence[np.random.Generator]) -> list[DraftTokens]:
        """For each row up to `most` tokens after `made` (its new tokens so far, one at least). Rows of which none are wanted get none."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows of the batch go on, in this order."""


class CopyDrafter(Drafter):
    """Copies from prompt and new tokens by `lookup`: matches of at least `shortest` tokens. Of an encoder–decoder whose two texts share a vocabulary
    the encoder's text is looked in (`field` names it); None: the new tokens alone."""

    def __init__(self, shortest: int = 2, field: str | None = "input_ids", longest: int = LONGEST) -> None:
        if not 1 <= shortest <= longest:
            raise InputError(f"A match of {shortest} to {longest} tokens is none.", "Give 1 <= shortest <= longest.")
        self.shortest, self.longest, self.field = shortest, longest, field
        self._texts: list[np.ndarray] = []
        self._sizes: list[int] = []                                     # tokens of the prompt in each text

    def begin(self, inputs: Batch, room: int) -> None:
        rows = len(next(iter(inputs.values())))
        prompts = [np.empty(0, np.int64)] * rows
        if self.field is not None and self.field in inputs:
            ids, mask = np.asarray(inputs[self.field], np.int64), inputs.get("attention_mask")
            prompts = [row[np.asarray(mask[r], bool)] if mask is not None else row for r, row in enumerate(ids)]
        self._sizes = [len(prompt) for prompt in prompts]
        self._texts = [np.concatenate([prompt, np.zeros(room + 1, np.int64)]) for prompt in prompts]

    def draft(self, made: Sequence[Tokens], most: Sequence[int], sampling: Sampling, randoms: Sequence[np.random.Generator]) -> list[DraftTokens]:
        found = []
        for text, size, new, wanted in zip(self._texts, self._sizes, made, most, strict=True):
            if wanted < 1:
                found.append(NOTHING)
                continue
            text[size : size + len(new)] = new
            found.append(DraftTokens(lookup(text[: size + len(new)], wanted, self.shortest, self.longest)))
        return found

    def keep(self, rows: Sequence[int]) -> None:
        self._texts, self._sizes = [self._texts[r] for r in rows], [self._sizes[r] for r in rows]


class ModelDrafter(Drafter):
    """A smaller model with the same vocabulary drafts token by token. Its cache follows the text: what was drafted and refused is forgotten."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self._state: DecodingState | None = None
        self._base = 0
        self._fed = np.empty((0, 0), np.int64)                          # what its cache holds of new tokens, [rows, columns]

    def begin(self, inputs: Batch, room: int) -> None:
        self._base = base_of(inputs)
        self._state, logits = self.decoding.start(inputs, room)
        self._fed = np.empty((len(logits), 0), np.int64)

    def draft(self, made: Sequence[Tokens], most: Sequence[int], sampling: Sampling, randoms: Sequence[np.random.Generator]) -> list[DraftTokens]:
        assert self._state is not None, "begin comes first"
        if max(most) < 1:
            return [NOTHING] * len(made)
        self._follow(made)
        known, held = min(len(new) for new in made), self._fed.shape[1]
        feed = np.stack([new[held:known] for new in made])              # a step for what all rows are sure of
        tokens: list[list[int]] = [[] for _ in made]
        shares: list[list[Shares]] = [[] for _ in made]
        for column in range(known, max(len(new) + wanted for new, wanted in zip(made, most, strict=True))):
            logits = self.decoding.step(self._state, feed)[:, -1]
            self._fed = np.concatenate([self._fed, feed], axis=1)
            feed = np.empty((len(made), 1), np.int64)
            for r, new in enumerate(made):
                if column < len(new):                                   # this row is further than others
                    feed[r] = new[column]
                    continue
                share = probabilities(logits[r : r + 1], sampling)[0]
                token = int(logits[r].argmax()) if sampling.temperature == 0 else drawn(share, randoms[r])
                feed[r] = token
                if len(tokens[r]) < most[r]:
                    tokens[r].append(token)
                    shares[r].append(share)
        certain = sampling.temperature == 0
        return [DraftTokens(np.asarray(row, np.int64), None if certain else np.stack(share)) if row else NOTHING
                for row, share in zip(tokens, shares, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        assert self._state is not None
        self.decoding.rows(self._state, np.asarray(rows, np.int64))
        self._fed = self._fed[list(rows)]

    def _follow(self, made: Sequence[Tokens]) -> None:
        """Forget from the first column on in which the cache has another token than the text, or that the last step has to make anew."""
        agreed = self._fed.shape[1]
        for fed, new in zip(self._fed, made, strict=True):
            size = min(len(fed), len(new) - 1)
            differ = np.flatnonzero(fed[:size] != new[:size])
            agreed = min(agreed, int(differ[0]) if len(differ) else size)
        if agreed < self._fed.shape[1]:
            assert self._state is not None
            self.decoding.crop(self._state, self._base + agreed)
            self._fed = self._fed[:, :agreed]


def base_of(inputs: Batch) -> int:
    """Columns of a cache that the prompt takes: of the decoder's own tokens where there is an encoder."""
    ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    if ids is None:
        raise InputError(f"There are no tokens to go on from; the inputs are {', '.join(inputs) or 'none'}.", "Give input_ids or decoder_input_ids.")
    return int(ids.shape[1])
