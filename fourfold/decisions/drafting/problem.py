"""Which draft to check, and how long it may be, priced on continuations that are known: seconds of processor time per new token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.drafting.instance import LOOKUP, MODEL, MeasuredDraft, starts_of, walk
from fourfold.errors import InputError
from fourfold.problem import Problem


@dataclass(frozen=True)
class DraftChoice:
    """The draft by name ("" for none), the most tokens of it that are checked at once, whether the length follows what was right (`adapt`), and
    whether drafts pause after such of which nothing was (`pause`; both as in `instance.walk`)."""

    draft: str = ""
    length: int = 0
    adapt: bool = False
    pause: bool = False

    def to_json(self) -> dict[str, object]:
        return {"draft": self.draft, "length": self.length, "adapt": self.adapt, "pause": self.pause}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> DraftChoice:
        """The reverse."""
        return cls(str(data["draft"]), int(cast("int", data["length"])), bool(data["adapt"]), bool(data["pause"]))


class Drafting(Problem[DraftChoice]):
    """Draft and length for texts like these, in seconds per new token.

    `lengths` [R]: tokens of the continuations that were made without drafts; `step` float64 [G + 1]: seconds of a step that checks 0 … G tokens of a
    draft beside its own; `drafts`: each tried at every position. Wrong would be: a draft that was not tried, a length below 1 or above G, a length
    without a draft. Raises InputError where counts, times or names do not fit.
    """

    question: ClassVar[str] = "drafting"
    lever: ClassVar[str] = "machine"
    unit = "s"

    def __init__(self, lengths: list[int], step: NDArray[np.floating], drafts: tuple[MeasuredDraft, ...]) -> None:
        self.lengths, self.step, self.drafts = list(lengths), np.asarray(step, np.float64), tuple(drafts)
        self.starts = starts_of(self.lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise InputError("There is no continuation to try drafts on, or one has no token.", "Give at least one text of at least one new token.")
        if self.step.ndim != 1 or not len(self.step) or not np.isfinite(self.step).all() or (self.step <= 0).any():
            raise InputError("Seconds of steps must be finite and above zero, one for each width.", "Measure them again.")
        if len({draft.name for draft in self.drafts} | {""}) <= len(self.drafts):
            raise InputError("Two drafts have one name, or one has none.", "Name them apart.")
        if odd := [draft.name for draft in self.drafts if len(draft.offered) != self.starts[-1]]:
            raise InputError(f"Draft {odd[0]!r} was not tried at all {self.starts[-1]:,} positions.", "Try every draft on all continuations.")

    @property
    def longest(self) -> int:
        """G, the longest draft whose check was measured."""
        return len(self.step) - 1

    def draft(self, name: str) -> MeasuredDraft:
        """The draft of that name. Raises StopIteration where there is none."""
        return next(draft for draft in self.drafts if draft.name == name)

    def of_kind(self, kind: str) -> list[MeasuredDraft]:
        return [draft for draft in self.drafts if draft.kind == kind]

    def baseline(self) -> DraftChoice:
        """No draft: a step a token."""
        return DraftChoice()

    def violations(self, answer: DraftChoice) -> list[str]:
        """Which rules `answer` breaks, in words."""
        if not answer.draft:
            return ["tokens are to be checked, and no draft is named"] if answer.length or answer.adapt or answer.pause else []
        broken = [] if answer.draft in {draft.name for draft in self.drafts} else [f"no draft {answer.draft!r} was tried"]
        if not 1 <= answer.length <= self.longest:
            broken.append(f"{answer.length} tokens are to be checked at once; steps were measured for 1 to {self.longest}")
        return broken

    def cost(self, answer: DraftChoice) -> float:
        """Seconds per new token, all continuations walked."""
        if not answer.draft:
            return float(self.step[0])
        seconds, tokens = walk(self.starts, self.draft(answer.draft), self.step, answer.length, answer.adapt, answer.pause)
        return seconds / tokens

    def bound(self) -> float:
        """A draft that is always right and costs nothing, at the width that is cheapest a token."""
        return float((self.step / np.arange(1, len(self.step) + 1)).min())

    @classmethod
    def sample(cls, seed: int) -> Drafting:
        """A small random instance: drafts right by chance, steps that grow with their width."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 40, int(rng.integers(1, 6))).tolist()
        longest, count = int(rng.integers(1, 10)), sum(lengths)
        step = 0.02 * (1.0 + rng.uniform(0, 0.4) * np.arange(longest + 1))
        drafts = []
        for kind in (LOOKUP, MODEL):
            offered = rng.integers(0, longest + 1, count).astype(np.int32)
            right = np.minimum(rng.geometric(1.0 - rng.uniform(0.1, 0.9), count) - 1, offered).astype(np.int32)
            drafts.append(MeasuredDraft(kind, kind, offered, right, 0.0 if kind == LOOKUP else float(rng.uniform(0, 0.02))))
        return cls(lengths, step, tuple(drafts))
