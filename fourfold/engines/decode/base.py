"""What every way to generate owes: take a prompt in (prefill), then token after token (decode), with a cache that can be cropped and reordered.

Prompts are padded on the left, so that the last column is the last token of every row; positions count from the first token that is no padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fourfold.engines.base import missing, slow_bf16
from fourfold.errors import Declined, InputError

if TYPE_CHECKING:
    from torch import nn

#: Precision → largest difference of a logit from the eager fp32 module's, as a share of that module's largest logit, that counts as the same answer.
TOLERANCE: Mapping[str, float] = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.1, "int8-weights": 0.05, "int4-weights": 0.5}


@dataclass
class DecodingState:
    """What a model remembers of the rows it generates for.

    `seen`: tokens of each row that the cache holds, padding counted; `room`: tokens it can hold; `mask` bool [B, seen]: which are no padding;
    `encoded`: rows have an encoder's memory beside their own tokens.
    """

    seen: int
    room: int
    mask: np.ndarray
    encoded: bool = False
    held: object = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        return int(self.mask.shape[0])


class Decoding(ABC):
    """A model that generates, opened on one engine in one precision. It belongs to the process that opened it and answers one caller at a time.

    Decoder-only models read `input_ids` [B, T], left-padded, and `attention_mask` [B, T]; encoder–decoders read their encoder's inputs and
    `decoder_input_ids` [B, P], the tokens that generation begins with.
    """

    #: The engine's name, as settings and `--engines` have it, and for people.
    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    #: Packages that it needs, the extra of this package that brings them, and the precisions that it answers in.
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    precisions: ClassVar[tuple[str, ...]] = ()
    #: Those of them whose arithmetic pays with packed weights alone; and all that packed weights are worth running in (none: it has no kernels).
    narrow: ClassVar[tuple[str, ...]] = ()
    packs: ClassVar[tuple[str, ...]] = ()
    #: Whether `open` works from the files alone, without the torch module.
    standalone: ClassVar[bool] = False
    #: Place in the order in which ways are prepared, the likeliest winner first, by precision.
    likely: ClassVar[Mapping[str, int]] = {}
    precision: str = "fp32"
    threads: int = 1
    #: Bytes of weights as they are held.
    bytes: int = 0
    #: Tokens that a logit is answered for.
    vocabulary: int = 0
    #: Tokens that prompt and answer may have together; None where the model has no limit.
    positions: int | None = None
    #: Whether it reads with an encoder and writes with a decoder.
    encodes: bool = False

    #: Seconds of budget below which it is not worth starting; where above 0, one number of threads must do.
    slow: ClassVar[float] = 0.0

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        """Why it cannot answer in this precision on this machine (`fourfold.host.here()`), or None."""
        if precision not in cls.precisions:
            return f"{cls.title} generates in no {precision} (it has {', '.join(cls.precisions)})"
        return missing(cls.needs, cls.extra) or (slow_bf16(machine) if precision == "bf16" else None)

    @classmethod
    def export(cls, module: nn.Module, precision: str, folder: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
        """Write what `open` needs into `folder`; the names of the files. `calibration`: batches as `start` reads them. Raises Declined."""
        return []

    @classmethod
    def open(cls, folder: Path, module: nn.Module | None, precision: str, threads: int) -> Decoding:
        """Ready to generate, from what `export` wrote and, where it is not `standalone`, the torch module. Raises Declined."""
        raise Declined(f"{cls.title or cls.__name__} is opened by whoever made it")

    @abstractmethod
    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        """Read the prompts (prefill). Returns the state, and the logits float32 [B, V] of what follows the last position. `room`: tokens that the
        cache must hold in all, prompt included (for an encoder–decoder: the decoder's).

        Raises InputError where `room` is more than the model has positions for.
        """

    @abstractmethod
    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        """Read `tokens` int64 [B, n], n ≥ 1, after what is remembered. Returns logits float32 [B, n, V]: row i's j-th are of what follows its token
        j. Several at once is how a draft is checked."""

    @abstractmethod
    def crop(self, state: DecodingState, length: int) -> None:
        """Forget, in every row, what lies behind the first `length` tokens (padding counted), as after drafts that were rejected."""

    @abstractmethod
    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        """Keep the rows `index`, in that order; a row may be kept twice."""

    def copied(self, state: DecodingState, length: int | None = None, room: int | None = None) -> DecodingState:
        """A state of its own with the first `length` tokens (all) of `state`, which goes on; `room`: as in `start`, else just enough for those.

        Raises Declined where the engine keeps what it remembers to itself.
        """
        raise Declined(f"{self.name or type(self).__name__} cannot copy what it remembers")

    def joined(self, states: Sequence[DecodingState]) -> DecodingState:
        """One state with the rows of all `states`, which are used up: shorter ones are padded on the left, and each may go on as it might have.

        Raises Declined where the engine keeps what it remembers to itself.
        """
        raise Declined(f"{self.name or type(self).__name__} cannot join what it remembers of several batches")

    def state_bytes(self, state: DecodingState) -> int:
        """Bytes of what is remembered. Raises Declined where the engine does not tell."""
        raise Declined(f"{self.name or type(self).__name__} does not tell how much it remembers")

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """What really runs, read back from the engine (JSON-able)."""

    def close(self) -> None:  # noqa: B027
        """Give the memory back; twice is once."""

    def fits(self, room: int) -> None:
        """Raises InputError where prompt and answer together are longer than the model has positions for."""
        if self.positions is not None and room > self.positions:
            raise InputError(f"prompt and answer have {room:,} tokens together, and the model has positions for {self.positions:,}.",
                             f"Give fewer: --max-length for prompts, --max-new-tokens for answers, {self.positions:,} in all.")


def prompt_mask(inputs: Mapping[str, np.ndarray], name: str = "input_ids") -> np.ndarray:
    """Which tokens of a batch of prompts are no padding, bool [B, T]. InputError where a row ends in padding: prompts are padded on the left."""
    ids = np.asarray(inputs[name])
    given = inputs.get("attention_mask" if name == "input_ids" else "decoder_attention_mask")
    mask = np.ones(ids.shape, bool) if given is None else np.asarray(given).astype(bool)
    if ids.ndim != 2 or mask.shape != ids.shape or not ids.shape[1]:
        raise InputError(f"prompts of shape {list(ids.shape)} with a mask of shape {list(mask.shape)} cannot be read.",
                         "Give input_ids [rows, tokens] with at least one token, and a mask of the same shape.")
    if not mask[:, -1].all():
        raise InputError("a prompt is padded on the right, so what follows it would follow padding.", "Pad prompts on the left.")
    return mask
