"""Whether an engine answers as it should: one table of tolerances, and the comparison of a whole module's outputs with those of PyTorch in fp32.

Regions of a plan, which owe the same answer as eager calls, are compared value by value (`fourfold/runtime/local/compare.py`), by the same table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold.engines.base import Batch, Session, Signature, first_line

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Tolerance:
    """How far off answers may be. `noise`: noise-to-signal ratio of a module's outputs over several batches (`parity`); it catches broken exports,
    whether the task still works is measured apart. `largest`: largest difference in one tensor of that type, as a share of its largest magnitude; it
    admits rounding in another order, no more. None: answers in it are not compared in that way."""

    noise: float | None = None
    largest: float | None = None


#: By precision of the engine, or type of the tensor.
TOLERANCES = {
    "fp64": Tolerance(largest=1e-9), "fp32": Tolerance(noise=2e-3, largest=1e-3), "fp16": Tolerance(largest=2e-2),
    "bf16": Tolerance(noise=0.25, largest=5e-2), "int8": Tolerance(noise=0.7), "int8-static": Tolerance(noise=0.7),
    "int8-weights": Tolerance(noise=0.25),
}  # fmt: skip
_TYPES = {"float64": "fp64", "complex128": "fp64", "float32": "fp32", "complex64": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def largest_difference(dtype: str) -> float:
    """Largest accepted difference in a tensor of a dtype ("float32"), as a share of its largest magnitude; 0 of whole numbers."""
    return TOLERANCES[_TYPES[dtype]].largest or 0.0 if dtype in _TYPES else 0.0


def relevant(inputs: Mapping[str, np.ndarray], output: np.ndarray) -> np.ndarray:
    """The output rows that mean something: padded positions of a [batch, length, …] output are left out where a mask of that shape says so."""
    mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
    if mask is not None and output.ndim >= 3 and mask.shape == output.shape[:2]:
        return output[mask.astype(bool)]
    return output.reshape(-1, output.shape[-1]) if output.ndim > 1 else output.reshape(-1, 1)


def parity(session: Session, batches: Sequence[Batch], reference: Sequence[np.ndarray], precision: str) -> tuple[float, str | None]:
    """(noise-to-signal ratio, reason to reject or None) of `session` against fp32 outputs on the same batches.

    The ratio is |y − r|₂ / max(|r − mean(r)|₂, |r|₂ / 10) over all meaningful outputs, with the mean per output column; 0 is identical.
    """
    noise: list[np.ndarray] = []
    signal: list[np.ndarray] = []
    for batch, wanted in zip(batches, reference, strict=True):
        try:
            got = session.run(batch)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items())
            return float("inf"), f"fails on a batch of another shape ({shapes}): {first_line(error)}"
        if got.shape != wanted.shape:
            return float("inf"), f"answers with shape {list(got.shape)} where {list(wanted.shape)} is right"
        got, right = relevant(batch, got), relevant(batch, wanted)
        if not np.isfinite(got[np.isfinite(right)]).all():
            return float("inf"), "answers with NaN or infinity"
        noise.append(np.where(np.isfinite(right), got - right, 0.0).astype(np.float64))
        signal.append(np.where(np.isfinite(right), right, 0.0).astype(np.float64))
    if len({part.shape[1] for part in signal}) > 1:  # an output as wide as the batch (image × text) has no columns to take means of
        noise, signal = [part.reshape(-1, 1) for part in noise], [part.reshape(-1, 1) for part in signal]
    right = np.concatenate(signal)
    # Outputs that hardly depend on the input (an untrained model's) have next to no spread to be off by.
    scale = max(float(np.linalg.norm(right - right.mean(0, keepdims=True))), 0.1 * float(np.linalg.norm(right)))
    ratio = float(np.linalg.norm(np.concatenate(noise))) / max(scale, 1e-12)
    limit = TOLERANCES[precision].noise or 0.0
    return ratio, None if ratio <= limit else f"its outputs are off by {ratio:.2g} of their spread in {precision} (at most {limit:g} is allowed)"


def references(wrapped: nn.Module, signature: Signature, batches: Sequence[Batch]) -> list[np.ndarray]:
    """fp32 outputs of the torch module: what every engine is compared with."""
    import torch

    with torch.inference_mode():
        return [wrapped(*signature.tensors(batch)).float().numpy() for batch in batches]
