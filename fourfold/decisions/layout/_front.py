"""Latency against throughput: the best layout of each batch size, and which of them no other beats in both (figure 1 of Pope et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fourfold.cost.serving import ServingChips, ServingCost, ServingLayout, ServingPhase, serving_cost
from fourfold.decisions.layout._candidates import every
from fourfold.decisions.layout.problem import faults
from fourfold.zoo.decoders import DecoderDims

BATCHES = tuple(2**k for k in range(11))


@dataclass(frozen=True)
class FrontRow:
    """The quickest layout of a phase at one batch size. `latency` s: of the prefill, or of a decoded token; `chip_seconds`: of all chips, a token;
    `front`: no other batch is both quicker and cheaper. `layout` is None where none is allowed, and `why` says why."""

    batch: int
    layout: ServingLayout | None
    title: str
    latency: float | None
    chip_seconds: float | None
    tokens_per_second: float | None
    mfu: float | None
    front: bool = False
    why: str = ""


def front(dims: DecoderDims, chips: ServingChips, phase: ServingPhase, batches: Sequence[int] = BATCHES) -> list[FrontRow]:
    """A row a batch size (and the phase's own), smallest first."""
    rows = [_row(dims, chips, replace(phase, batch=batch)) for batch in sorted({*batches, phase.batch})]
    priced = [row for row in rows if row.latency is not None and row.chip_seconds is not None]

    def beaten(one: FrontRow) -> bool:
        assert one.latency is not None and one.chip_seconds is not None
        return any(other.latency <= one.latency and other.chip_seconds <= one.chip_seconds and other is not one  # pyright: ignore[reportOptionalOperand]
                   and (other.latency, other.chip_seconds) != (one.latency, one.chip_seconds) for other in priced)

    return [replace(row, front=row.latency is not None and not beaten(row)) for row in rows]


def _row(dims: DecoderDims, chips: ServingChips, phase: ServingPhase) -> FrontRow:
    best: tuple[float, ServingLayout, ServingCost] | None = None
    refused: list[str] = []
    for layout in every(chips):
        if broken := faults(dims, chips, phase, layout):
            refused.append(broken[-1])
            continue
        found = serving_cost(dims, phase, chips, layout)
        if best is None or found.seconds < best[0]:
            best = (found.seconds, layout, found)
    if best is None:
        return FrontRow(phase.batch, None, "–", None, None, None, None, why=min(refused, key=len))
    _, layout, found = best
    tokens = phase.batch * phase.tokens
    return FrontRow(phase.batch, layout, layout.title(chips), found.step, found.seconds * chips.size / tokens, tokens / found.seconds, found.mfu)
