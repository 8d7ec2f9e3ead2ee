"""Generation in which a draft of several tokens is checked a step (Leviathan et al. 2023; Chen et al. 2023), with one text or several side by side.

Greedy: the tokens are those of one step a token. A step that takes in several tokens multiplies matrices of another shape, which rounds otherwise, so
its logits may be off by `tie`, which is measured. Where the two likeliest tokens are nearer than twice that, the step is not believed: the cache is
taken back to where it was last filled one token at a time, and from there filled so again. Then the decision is made from the very same numbers.

Sampled: a drafted token is taken with probability min(1, p / q), else another is drawn from what is left of p, so tokens are distributed as without
drafts (Leviathan et al. 2023, theorem A.1).

Rows of a batch are right to different lengths, and a cache has one length for all. It is cut to what the shortest row is sure of; a row that was
further feeds what it knows again, which costs no step of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from fourfold.decisions.drafting.instance import LONGEST_PAUSE
from fourfold.decisions.drafting.problem import DraftChoice
from fourfold.errors import InputError
from fourfold.runtime.drafting.acceptance import drawn, verdict
from fourfold.runtime.drafting.drafters import NOTHING, Batch, Drafter, DraftTokens, base_of
from fourfold.runtime.generate import Sampling, draws, probabilities

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding


@njit(cache=True)
def leaders(logits):  # type: ignore[no-untyped-def]
    """(the likeliest token, by how much it leads the next) of logits [V]; of equal ones the first."""
    best, first, second = 0, logits[0], -np.inf
    for v in range(1, len(logits)):
        if logits[v] > first:
            best, second, first = v, first, logits[v]
        elif logits[v] > second:
            second = logits[v]
    return best, first - second


@dataclass
class DraftedTokens:
    """`tokens`: new tokens of each row, the stop token included. `steps`: of the model; `wide`: those that checked a draft; `offered`, `accepted`:
    drafted tokens; `replayed`: steps run again one token at a time, near ties; `first`, `seconds`: CPU seconds to the first tokens, and in all."""

    tokens: list[np.ndarray]
    steps: int = 0
    wide: int = 0
    offered: int = 0
    accepted: int = 0
    replayed: int = 0
    first: float = 0.0
    seconds: float = 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were taken; None where none was drafted."""
        return self.accepted / self.offered if self.offered else None


@dataclass(eq=False)
class _Row:
    """A text being made: where it stands in the answer, its new tokens, its dice, the most it drafts next, and steps to wait before."""

    place: int
    made: np.ndarray
    count: int
    random: np.random.Generator
    length: int
    wait: int = 0
    patience: int = 0
    draft: DraftTokens = field(default_factory=lambda: NOTHING)

    @property
    def new(self) -> np.ndarray:
        return self.made[: self.count]

    def add(self, token: int) -> None:
        self.made[self.count] = token
        self.count += 1


def generate(decoding: Decoding, inputs: Batch, new_tokens: int, drafter: Drafter | None = None, choice: DraftChoice | None = None, *,
             sampling: Sampling | None = None, stop: Collection[int] = (), tie: float = 0.0,
             told: Callable[[int, np.ndarray], None] | None = None) -> DraftedTokens:
    """Up to `new_tokens` tokens after each row of `inputs` (as for `Decoding.start`), drafts of `drafter` checked as `choice` says.

    Without a drafter it is one step a token. A row ends with the first token of `stop`. `tie`: how far logits of a step with drafts may be from those
    of a step without (`widths.error`). `told(row, tokens)` hears new tokens as they come. Each row draws from a generator of its own
    (`generate.draws`), so that what it says does not hang on its neighbours. Raises InputError for no new tokens.
    """
    if new_tokens < 1:
        raise InputError(f"{new_tokens} new tokens are none.", "Ask for one at least.")
    return _Generation(decoding, inputs, new_tokens, drafter, choice or DraftChoice(), sampling or Sampling(), frozenset(stop), tie, told).run()


class _Generation:
    """One call of `generate`. The cache holds the prompt and `fed` new tokens of every row, of which `clean` were filled in one at a time."""

    def __init__(self, decoding: Decoding, inputs: Batch, new_tokens: int, drafter: Drafter | None, choice: DraftChoice, sampling: Sampling,
                 stop: frozenset[int], tie: float, told: Callable[[int, np.ndarray], None] | None) -> None:
        self.decoding, self.most, self.sampling, self.stop, self.tie, self.told = decoding, new_tokens, sampling, stop, tie, told
        self.drafter = drafter if choice.draft else None
        self.choice, self.base = choice, base_of(inputs)
        began = time.process_time()
        room = self.base + new_tokens
        self.state, logits = decoding.start(inputs, room)
        if self.drafter is not None:
            self.drafter.begin(inputs, room)
        self.fed = self.clean = 0
        self.rows = [_Row(r, np.zeros(new_tokens, np.int64), 0, random, choice.length) for r, random in enumerate(draws(len(logits), sampling))]
        self.found = DraftedTokens([row.made for row in self.rows])
        for row, scores in zip(self.rows, logits, strict=True):
            row.add(int(scores.argmax()) if sampling.temperature == 0 else drawn(probabilities(scores[None], sampling)[0], row.random))
            self._tell(row, 0)
        self.began, self.found.first = began, time.process_time() - began
        self._leave()

    def run(self) -> DraftedTokens:
        while self.rows:
            self._step()
            self._leave()
        self.found.seconds = time.process_time() - self.began
        return self.found

    def _step(self) -> None:
        """Feed what the cache lacks and a draft after it; decide as far as the draft was right; forget what was not."""
        self._ask()
        width = min(1 + max(row.count - self.fed - 1 + len(row.draft.tokens) for row in self.rows), self.choice.length + 1)
        feed = self._feed(width)
        logits = self.decoding.step(self.state, feed)
        self.found.steps += 1
        self.found.wide += width > 1
        exact = width == 1 and self.clean == self.fed
        self.clean += exact
        before, near = [row.count for row in self.rows], False
        for r, row in enumerate(self.rows):
            near |= self._greedy(row, feed[r], logits[r], exact) if self.sampling.temperature == 0 else self._sampled(row, logits[r])
        self._tell_all(before)
        if near and all(row.count == count for row, count in zip(self.rows, before, strict=True)):
            self._replay()
            return
        kept = min(row.count for row in self.rows) - 1
        if kept < self.fed + width:
            self.decoding.crop(self.state, self.base + kept)
        self.fed, self.clean = kept, min(self.clean, kept)

    def _ask(self) -> None:
        """Drafts of all rows, none longer than the text may still become: the step itself makes the last token."""
        if self.drafter is None:
            return
        reach = self.fed + self.choice.length + 1                       # so far the widest step goes; a row that is there waits for the others
        most = [max(0, min(row.length, self.most - row.count - 1, reach - row.count)) if not row.wait else 0 for row in self.rows]
        drafts = self.drafter.draft([row.new for row in self.rows], most, self.sampling, [row.random for row in self.rows])
        for row, draft in zip(self.rows, drafts, strict=True):
            row.draft, row.wait = draft, max(0, row.wait - 1)

    def _feed(self, width: int) -> np.ndarray:
        """[rows, width]: new tokens that the cache lacks, then the draft; what is short is filled up with a token that nobody looks at."""
        feed = np.empty((len(self.rows), width), np.int64)
        for r, row in enumerate(self.rows):
            known = np.concatenate([row.new[self.fed :], row.draft.tokens])[:width]
            feed[r, : len(known)], feed[r, len(known) :] = known, known[-1]
        return feed

    def _greedy(self, row: _Row, feed: np.ndarray, logits: np.ndarray, exact: bool) -> bool:
        """Add the tokens of a row that this step is sure of; whether it was stopped by a near tie."""
        ahead, taken, near = row.count - self.fed - 1, 0, False
        for j in range(ahead, min(ahead + len(row.draft.tokens), len(feed) - 1) + 1 if ahead < len(feed) else ahead):
            token, lead = leaders(logits[j])
            if not exact and lead <= 2.0 * self.tie:
                near = True
                break
            row.add(int(token))
            if row.count >= self.most or token in self.stop:
                taken += j - ahead < len(row.draft.tokens) and token == row.draft.tokens[j - ahead]
                break
            if j - ahead >= len(row.draft.tokens) or token != row.draft.tokens[j - ahead]:
                break
            taken += 1
        self._count(row, taken)
        return near

    def _sampled(self, row: _Row, logits: np.ndarray) -> bool:
        ahead, taken = row.count - self.fed - 1, 0
        if ahead >= len(logits):
            return False
        draft, every = row.draft, probabilities(logits, self.sampling)
        for j, token in enumerate(draft.tokens.tolist()):
            shares = every[ahead + j]
            good, token = verdict(shares, token, None if draft.shares is None else draft.shares[j], row.random)
            row.add(token)
            taken += good
            if not good or row.count >= self.most or token in self.stop:
                break
        else:
            row.add(drawn(every[ahead + len(draft.tokens)], row.random))
        self._count(row, taken)
        return False

    def _count(self, row: _Row, taken: int) -> None:
        """Book a draft, and let the next one's length follow it where that is chosen."""
        given = len(row.draft.tokens)
        self.found.offered, self.found.accepted = self.found.offered + given, self.found.accepted + int(taken)
        if self.choice.pause and given:
            row.patience = 0 if taken else min(LONGEST_PAUSE, max(1, 2 * row.patience))
            row.wait = row.patience
        if self.choice.adapt and given:
            row.length = min(self.choice.length, 2 * row.length) if taken == given else max(1, taken + 1)

    def _replay(self) -> None:
        """Nothing was decided, for the likeliest tokens are too near: fill the cache one token at a time from where it last was, and decide then."""
        target = min(row.count for row in self.rows) - 1
        self.decoding.crop(self.state, self.base + self.clean)
        logits = np.empty((0, 0, 0), np.float32)
        for at in range(self.clean, target + 1):
            logits = self.decoding.step(self.state, np.stack([row.made[at : at + 1] for row in self.rows]))
            self.found.steps, self.found.replayed = self.found.steps + 1, self.found.replayed + 1
        before = [row.count for row in self.rows]
        for row, scores in zip(self.rows, logits, strict=True):
            if row.count == target + 1:
                row.add(int(scores[-1].argmax()))
        self._tell_all(before)
        self.fed = self.clean = target + 1

    def _leave(self) -> None:
        """Rows that are at their end go."""
        done = [row for row in self.rows if row.count >= self.most or int(row.made[row.count - 1]) in self.stop]
        if not done:
            return
        for row in done:
            self.found.tokens[row.place] = row.new.copy()
        stay = [r for r, row in enumerate(self.rows) if row not in done]
        self.rows = [self.rows[r] for r in stay]
        if self.rows:
            self.decoding.rows(self.state, np.asarray(stay, np.int64))
            if self.drafter is not None:
                self.drafter.keep(stay)

    def _tell_all(self, before: Sequence[int]) -> None:
        for row, count in zip(self.rows, before, strict=True):
            self._tell(row, count)

    def _tell(self, row: _Row, count: int) -> None:
        if self.told is not None and row.count > count:
            self.told(row.place, row.made[count : row.count].copy())
