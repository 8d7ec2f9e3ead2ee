"""Many prompts through one batch: those of like length together, and rows join and leave between two steps (Yu et al. 2022).

In a batch of prompts as they come, every row is padded to the longest prompt, and a row that has ended waits for the last. Here prompts are taken by
length; a row that ends leaves, and where enough have left, the next prompts are read together and joined to those that are being continued.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError
from fourfold.runtime.generate import Sampling, choose

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding, DecodingState

ARRIVAL, LENGTH, CONTINUOUS = "arrival", "length", "continuous"
ORDERS = (ARRIVAL, LENGTH, CONTINUOUS)


@dataclass(frozen=True)
class RowBatching:
    """How prompts go through: `size` rows at most; `order`: batches as they come, batches of like length, or rows that join; `join`: free rows that
    are waited for before others are read (a join copies what all rows remember). Raises InputError outside of these."""

    size: int = 8
    order: str = CONTINUOUS
    join: int = 2

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.join <= max(1, self.size) or self.order not in ORDERS:
            raise InputError(f"No batch is made {self.order!r} of {self.size} rows, {self.join} joining at once.",
                             f"Choose from {', '.join(ORDERS)}; give at least one row, and 1 <= join <= size.")


@dataclass
class BatchedTokens:
    """`tokens`: new tokens of each prompt, in the prompts' order. `steps`: of decoding; `row_steps`: rows of all steps together; `idle`: of those,
    rows that had ended; `padding`: tokens of padding read with the prompts; `joins`: how often rows were joined."""

    tokens: list[np.ndarray]
    steps: int = 0
    row_steps: int = 0
    idle: int = 0
    padding: int = 0
    joins: int = 0


@dataclass(eq=False)
class _Text:
    place: int
    most: int
    made: list[int]
    random: np.random.Generator
    ended: bool = False


def answer_all(decoding: Decoding, prompts: Sequence[np.ndarray], new_tokens: int | Sequence[int], batching: RowBatching | None = None, *,
               sampling: Sampling | None = None, stop: Collection[int] = (), pad: int = 0,
               told: Callable[[int, int], None] | None = None) -> BatchedTokens:
    """Up to `new_tokens` (one number, or one a prompt) after each of `prompts` (tokens int64 [T] of decoder-only models).

    A row ends with the first token of `stop`. What a prompt is answered does not hang on its neighbours but for rounding: another number of rows
    multiplies matrices of another shape. `told(place, token)` hears every token as it comes. Raises InputError for a prompt without tokens.
    """
    batching = batching or RowBatching()
    most = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    if any(len(prompt) < 1 for prompt in prompts) or any(count < 1 for count in most) or len(most) != len(prompts):
        raise InputError("A prompt is empty, or is to get no new token.", "Give at least one token of each prompt, and one new token or more.")
    return _Batches(decoding, prompts, most, batching, sampling or Sampling(), frozenset(stop), pad, told).run()


class _Batches:
    """One call of `answer_all`."""

    def __init__(self, decoding: Decoding, prompts: Sequence[np.ndarray], most: Sequence[int], batching: RowBatching, sampling: Sampling,
                 stop: frozenset[int], pad: int, told: Callable[[int, int], None] | None) -> None:
        self.decoding, self.prompts, self.batching, self.sampling, self.stop, self.pad, self.told = (
            decoding, prompts, batching, sampling, stop, pad, told)
        self.texts = [_Text(p, count, [], np.random.default_rng((sampling.seed, p))) for p, count in enumerate(most)]
        order = sorted(range(len(prompts)), key=lambda p: (-len(prompts[p]), p)) if batching.order != ARRIVAL else range(len(prompts))
        self.waiting = [self.texts[p] for p in order]
        self.live: list[_Text] = []
        self.state: DecodingState | None = None
        self.found = BatchedTokens([])

    def run(self) -> BatchedTokens:
        while self.waiting or self.live:
            free = self.batching.size - len(self.live)
            if self.waiting and (not self.live or (self.batching.order == CONTINUOUS and free >= min(self.batching.join, len(self.waiting)))):
                self._join(free)
            else:
                self._step()
        self.found.tokens = [np.asarray(text.made, np.int64) for text in self.texts]
        return self.found

    def _join(self, free: int) -> None:
        """Read the next prompts together and put them beside those that are being continued."""
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        state, logits = self.decoding.start(self._inputs(new), self._room(new))
        self._take(new, logits)
        if self.state is None or not self.live:
            self.state = state
        else:
            self.state = self.decoding.joined([self.state, state])
            self.found.joins += 1
        self.live += new
        self._leave()

    def _inputs(self, texts: Sequence[_Text]) -> Mapping[str, np.ndarray]:
        """Prompts side by side, padded on the left."""
        rows = [np.asarray(self.prompts[text.place], np.int64) for text in texts]
        longest = max(map(len, rows))
        ids, mask = np.full((len(rows), longest), self.pad, np.int64), np.zeros((len(rows), longest), np.int64)
        for r, row in enumerate(rows):
            ids[r, longest - len(row) :], mask[r, longest - len(row) :] = row, 1
        self.found.padding += int((mask == 0).sum())
        return {"input_ids": ids, "attention_mask": mask}

    def _room(self, texts: Sequence[_Text]) -> int:
        return max(len(self.prompts[text.place]) for text in texts) + max(text.most for text in texts)

    def _step(self) -> None:
        assert self.state is not None
        logits = self.decoding.step(self.state, np.array([[text.made[-1]] for text in self.live]))[:, -1]
        self.found.steps, self.found.row_steps = self.found.steps + 1, self.found.row_steps + len(self.live)
        self.found.idle += sum(text.ended for text in self.live)
        self._take(self.live, logits)
        self._leave()

    def _take(self, texts: Sequence[_Text], logits: np.ndarray) -> None:
        going = [r for r, text in enumerate(texts) if not text.ended]
        chosen = choose(logits[going], self.sampling, [texts[r].random for r in going])
        for text, token in zip((texts[r] for r in going), chosen.tolist(), strict=True):
            text.made.append(token)
            text.ended = len(text.made) >= text.most or token in self.stop
            if self.told is not None:
                self.told(text.place, token)

    def _leave(self) -> None:
        """Rows that have ended go; in batches as they come they stay until all have."""
        stay = [r for r, text in enumerate(self.live) if not text.ended]
        if len(stay) == len(self.live) or (self.batching.order == ARRIVAL and stay):
            return
        self.live = [self.live[r] for r in stay]
        if not stay:
            self.state = None
        elif self.state is not None:
            self.decoding.rows(self.state, np.asarray(stay, np.int64))
