"""Texts that nobody has turned into tokens yet: a cascade whose first member counts words tokenises only what it hands on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.examples import Examples
from fourfold.datasets.tokenise import longest, padded_left, paddings, tokenised, tokens_in

if TYPE_CHECKING:
    from fourfold.frontends.subject import Subject


class Unread:
    """Texts, or pairs of texts, as the user gave them; `read` tokenises them once, when a network asks.

    raw: str or (str, str) per example. subject: whose tokenizer and inputs are meant. It stands in for `Examples` wherever only answers are wanted.
    """

    targets = None

    def __init__(self, raw: Sequence[Any], subject: Subject, max_length: int | None = None, encoded: Examples | None = None) -> None:
        self.raw, self.subject, self.max_length, self._encoded = list(raw), subject, max_length, encoded

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, index: Iterable[int]) -> Unread:
        """The texts at `index` (int array), and their tokens where they have been read already."""
        encoded = None if self._encoded is None else self._encoded.take(index)
        return Unread([self.raw[i] for i in index], self.subject, self.max_length, encoded)

    def read(self) -> Examples:
        """The texts as columns of tokens, without targets. Raises InputError where there is no tokenizer."""
        if self._encoded is None:
            pairs = bool(self.raw) and isinstance(self.raw[0], tuple)
            first = [one[0] for one in self.raw] if pairs else self.raw
            columns, cut = tokenised(first, [one[1] for one in self.raw] if pairs else None, self.subject, self.max_length)
            pads = paddings(self.subject)
            pads.setdefault(tokens_in(self.subject), pads["input_ids"])
            self._encoded = Examples(
                columns, None, None, pads, self.raw, np.zeros(len(self.raw), np.int64), cut, padded_left(self.subject),
                limit=longest(self.subject, self.max_length),
            )
        return self._encoded
