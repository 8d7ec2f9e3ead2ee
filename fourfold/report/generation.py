"""What the report tells of a model that generates: speed and energy by batch, texts side by side, bits by layer, drafts that were accepted."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from fourfold.documents import Finite


class ServedBatch(TypedDict):
    """One way to run at one batch size. Seconds are CPU seconds of this process, but `first_token_s`, which is wall time."""

    name: str
    batch: int
    first_token_s: Finite
    prefill_cpu_s: Finite  # of a prompt
    decode_cpu_s: Finite  # of a new token
    tokens_per_s: Finite  # new tokens a second of wall time, prefill counted
    joules_per_1000_tokens: Finite | None  # of new tokens, prefill counted


class SideBySide(TypedDict):
    """One unseen prompt and what follows it."""

    prompt: str
    original: str
    cheap: str
    wanted: str | None


class LayerBits(TypedDict):
    """Mean bits of a weight in a block, embeddings and head by their own names."""

    name: str
    bits: Finite


class DraftRow(TypedDict):
    """Drafts of a point: which, the share of drafted tokens that were accepted, times less CPU time in their race, and whether they are used."""

    name: str
    draft: str
    accepted: Finite
    times: Finite | None
    used: bool


class GenerationSummary(TypedDict):
    """A generating workload as it was raced."""

    prompt_tokens: int
    new_tokens: int
    batches: list[int]
    rows: list[ServedBatch]
    examples: list[SideBySide]
    bits: list[LayerBits]
    drafts: NotRequired[list[DraftRow]]


def sentences(found: GenerationSummary, best: str | None) -> list[str]:
    """What a reader wants to know first: tokens a second, energy and first token of the original and of the chosen point, by batch size."""
    lines = []
    for batch in found["batches"]:
        told = []
        for name in ("original", best):
            row = next((one for one in found["rows"] if one["name"] == name and one["batch"] == batch), None)
            if row is not None:
                joules = "" if row["joules_per_1000_tokens"] is None else f", {row['joules_per_1000_tokens']:.3g} J per 1,000 new tokens"
                told.append(f"{'original' if name == 'original' else 'chosen'} {row['tokens_per_s']:.3g} tokens/s{joules}, "
                            f"first token after {1e3 * row['first_token_s']:.3g} ms")
        if told:
            lines.append(f"Generating {found['new_tokens']} tokens after {found['prompt_tokens']}, batch {batch}: {'; '.join(told)}.")
    return lines
