"""Texts cut before they are tokenised whole: a stranger's megabyte costs no more tokenising than the model's own limit.

A prefix of a text gives the same first tokens as the whole text where it ends between two words, so a prefix that already fills the limit is all that
has to be read; one that does not fill it (white space, words of no token) is doubled. The work is then at most twice that of the needed prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fourfold.datasets.tokenise import longest, tokenizer_of
from fourfold.datasets.unread import Unread

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.frontends.subject import Subject

CHARACTERS = 12                                                        # of a token, at first; texts below that many a token are not looked at


def shorten(text: str, subject: Subject, limit: int) -> str:
    """The text, or as much of its beginning (end, where the tokenizer cuts at the left) as gives more than `limit` tokens."""
    size = CHARACTERS * (limit + 8)
    if len(text) <= size:
        return text
    tokenizer = tokenizer_of(subject)
    left = getattr(tokenizer, "truncation_side", "right") == "left"
    while size < len(text):
        part = _between_words(text, size, left)
        ids = tokenizer([part], None, truncation=True, max_length=limit + 8, padding=False, return_token_type_ids=True,
                        return_attention_mask=False)["input_ids"][0]
        if len(ids) >= limit + 8:
            return part
        size *= 2
    return text


def _between_words(text: str, size: int, left: bool) -> str:
    """About `size` characters from the beginning (or the end), ending where white space begins in their last quarter; else cut anywhere."""
    if left:
        return _between_words(text[: -size - 1 : -1], size, False)[::-1]
    part = text[:size]
    if len(text) > size and text[size].isspace():
        return part
    words = part.rsplit(None, 1)
    return words[0] if len(words) == 2 and len(words[0]) >= 0.75 * size else part


class Shortened(Unread):
    """Texts that are cut before a network's tokenizer sees them. Members that count words still read them whole."""

    def take(self, index: Iterable[int]) -> Shortened:
        """As `Unread.take`."""
        numbers = np.asarray(list(index), np.int64)
        encoded = None if self._encoded is None else self._encoded.take(numbers)
        return Shortened([self.raw[i] for i in numbers], self.subject, self.max_length, encoded)

    def read(self) -> Examples:
        """As `Unread.read`."""
        if self._encoded is None:
            limit = longest(self.subject, self.max_length)
            self.raw = shortened(self.raw, self.subject, limit)
        return super().read()


def shortened(raw: Sequence[str | tuple[str, str]], subject: Subject, limit: int) -> list[str | tuple[str, str]]:
    """`shorten` of texts or of both sides of pairs."""
    return [shorten(one, subject, limit) if isinstance(one, str) else (shorten(one[0], subject, limit), shorten(one[1], subject, limit))
            for one in raw]
