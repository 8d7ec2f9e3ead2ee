"""What was measured for the question which draft to check: seconds of a step by its width, and of each draft how far it was right at every position.

A step of a model that generates reads all its weights, whether it takes in one token or several. So guessed tokens (a draft) are checked several at
once, and those that the model would have made itself are kept (Stern et al. 2018; Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fourfold.errors import InputError

LONGEST_PAUSE = 16                                                      # steps without a draft after drafts of which nothing was right
LOOKUP, MODEL = "lookup", "model"                                       # kinds of drafts: copied from the text so far, or made by a smaller model


@dataclass(frozen=True, eq=False)
class MeasuredDraft:
    """One way to draft, tried on texts whose continuation is known.

    `offered` int32 [N]: tokens that it offers at each position of all continuations laid end to end (never above the most that was asked for);
    `right` int32 [N]: how many of those, from the first on, are the continuation's. `seconds`: processor time of one drafted token; `call`: of asking
    once, whatever it offers.
    """

    name: str
    kind: str
    offered: NDArray[np.int32]
    right: NDArray[np.int32]
    seconds: float = 0.0
    call: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in (LOOKUP, MODEL):
            raise InputError(f"{self.kind!r} is no kind of draft.", f"Choose {LOOKUP} or {MODEL}.")
        if self.offered.shape != self.right.shape or (self.right > self.offered).any() or (self.right < 0).any():
            raise InputError(f"Draft {self.name!r} was right more often than it offered tokens, or the two are not of one length.",
                             "Give one count of each a position, 0 <= right <= offered.")
        if self.seconds < 0 or self.call < 0:
            raise InputError(f"Draft {self.name!r} takes less than no time.", "Give seconds of zero or more.")

    @property
    def acceptance(self) -> float:
        """a: the chance that the next drafted token is right where those before it were (Leviathan et al. 2023, definition 3.1), over all positions;
        0 where nothing was ever offered."""
        right = float(self.right.sum())
        tried = right + float((self.right < self.offered).sum())        # each position ends in one wrong token, unless all that it offered was right
        return right / tried if tried else 0.0

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "kind": self.kind, "offered": self.offered.tolist(), "right": self.right.tolist(), "seconds": self.seconds,
                "call": self.call}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> MeasuredDraft:
        """The reverse."""
        offered, right = (np.asarray(data[name], np.int32) for name in ("offered", "right"))
        seconds, call = (float(cast("float", data[name])) for name in ("seconds", "call"))
        return cls(str(data["name"]), str(data["kind"]), offered, right, seconds, call)


def speedup(acceptance: float, ratio: float, length: int) -> float:
    """Steps of the model alone per step with drafts: (1 − a^(g+1)) / ((1 − a)(c g + 1)) (Leviathan et al. 2023, theorem 3.8).

    a: `acceptance`; c: `ratio`, cost of a drafted token / cost of a step; g: `length`. It holds where the tokens are accepted independently, and a
    wide step costs no more than a narrow one; what is chosen is priced without either assumption. Raises InputError outside of 0 <= a <= 1, c >= 0.
    """
    if not 0.0 <= acceptance <= 1.0 or ratio < 0.0 or length < 0:
        raise InputError(f"No speed-up is known for acceptance {acceptance:g}, cost ratio {ratio:g} and length {length}.",
                         "Acceptance lies in 0 … 1, ratio and length at zero or above.")
    made = length + 1.0 if acceptance == 1.0 else (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)
    return made / (ratio * length + 1.0)


@njit(cache=True)
def _walk(starts, offered, right, step, seconds, call, length, adapt, pause):  # type: ignore[no-untyped-def]
    """(seconds, tokens) of all continuations, each walked from its start; see `walk`."""
    total, tokens = 0.0, 0
    for row in range(len(starts) - 1):
        at, end, g, wait, patience = starts[row], starts[row + 1], length, 0, 0
        while at < end:
            asked = min(g, end - at - 1) if wait == 0 else 0            # the step itself makes one token, so no draft reaches beyond the end
            given = min(asked, offered[at])
            good = min(right[at], given)
            total += step[given] + seconds * given + (call if asked > 0 else 0.0)
            wait = max(0, wait - 1)
            if given > 0:
                if adapt:
                    g = min(length, 2 * g) if good == given else max(1, good + 1)
                if pause:
                    patience = min(LONGEST_PAUSE, max(1, 2 * patience)) if good == 0 else 0
                    wait = patience
            at += good + 1
            tokens += good + 1
    return total, tokens


def walk(starts: NDArray[np.int64], draft: MeasuredDraft, step: NDArray[np.float64], length: int, adapt: bool = False,
         pause: bool = False) -> tuple[float, int]:
    """(seconds, tokens) of making every continuation with `draft`: from each position as many tokens further as the draft was right, and one.

    `starts` int64 [R + 1]: where each continuation begins in the draft's arrays; `step` float64 [G + 1]: seconds of a step that checks 0 … G drafted
    tokens. With `adapt` the length doubles, up to `length`, after a draft that was right in whole, and falls to what was right and one after another.
    With `pause` no draft is asked for during 1, 2, 4 … steps after one, two, three … in a row of which no token was right.
    """
    seconds, tokens = _walk(starts, draft.offered, draft.right, step, draft.seconds, draft.call, length, adapt, pause)
    return float(seconds), int(tokens)


def starts_of(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Where continuations of these lengths begin when laid end to end, and where the last ends: int64 [R + 1]."""
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64)))).astype(np.int64)
