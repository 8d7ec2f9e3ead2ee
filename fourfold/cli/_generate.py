"""`fourfold predict` of a model that generates: answers as they grow, or whole."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fourfold.cli._print import emit, say

if TYPE_CHECKING:
    from fourfold.runtime.artefact import Model


def told(model: Model, texts: Sequence[str], stream: bool, as_json: bool, *, max_new_tokens: int | None, temperature: float, seed: int) -> None:
    """Print what follows each text. InputError where the model does not generate."""
    for warning in [] if as_json else model.warnings:
        say(f"warning: {warning}")
    if not stream:
        found = model.generate(texts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        emit({"predictions": found, "warnings": model.warnings}) if as_json else print("\n".join(found))
        return

    def heard(_: int, piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    for text in texts:  # one after the other: several at once could not be told apart
        model.generate(text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, heard=heard)
        print()
