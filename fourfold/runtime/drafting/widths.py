"""What a step costs by its width, and how far its logits are from those of one token at a time: measured on the decoder that will run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError
from fourfold.runtime.drafting.drafters import Batch, base_of

if TYPE_CHECKING:
    from fourfold.engines.decode.base import Decoding

MARGIN = 4.0                                                            # the largest difference seen is taken so many times


@dataclass(frozen=True)
class StepWidths:
    """`seconds` float64 [W]: CPU time of a step with 1 … W tokens a row; `error`: the largest difference of a logit between a wide step and the same
    tokens one at a time, times a margin; `near`: share of the positions whose two likeliest tokens are nearer than twice that."""

    seconds: NDArray[np.float64]
    error: float
    near: float


def measure(decoding: Decoding, inputs: Batch, tokens: np.ndarray, most: int, repeats: int = 3) -> StepWidths:
    """Steps of 1 … `most` + 1 tokens after `inputs`, fed `tokens` [B, T] (the continuation; T > `most`), each width `repeats` times in turn.

    Not all widths are tried: 1 to 4, then every other one, and the last; those between are interpolated. The times are medians of CPU time. Raises
    InputError where the continuation is too short.
    """
    if tokens.shape[1] <= most:
        raise InputError(f"A continuation of {tokens.shape[1]} tokens cannot show a step of {most + 1}.", "Generate more tokens, or draft fewer.")
    base, count = base_of(inputs), tokens.shape[1]
    widths = sorted({*range(1, min(5, most + 2)), *range(5, most + 2, 2), most + 1})
    state, _ = decoding.start(inputs, base + count)
    single = np.concatenate([decoding.step(state, tokens[:, at : at + 1]) for at in range(count)], axis=1)
    spent: Mapping[int, list[float]] = {width: [] for width in widths}
    error = 0.0
    for round in range(repeats):
        for width in widths:
            at = (round * width) % (count - width + 1)
            decoding.crop(state, base)
            if at:
                decoding.step(state, tokens[:, :at])
            began = time.process_time()
            wide = decoding.step(state, tokens[:, at : at + width])
            spent[width].append(time.process_time() - began)
            error = max(error, float(np.abs(wide - single[:, at : at + width]).max()))
    error *= MARGIN
    top = np.partition(single, -2, axis=-1)[..., -2:]
    seconds = np.interp(np.arange(1, most + 2), widths, [float(np.median(spent[width])) for width in widths])
    return StepWidths(np.maximum(seconds, 1e-9), error, float((top[..., 1] - top[..., 0] <= 2 * error).mean()))
