"""Techniques that are not used by default are offered where they are asked for; what they refuse is told in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

import fourfold
from fourfold.errors import InputError


@pytest.mark.slow
def test_what_was_asked_for_is_tried_or_refused_in_words(model: Path, reviews: Path) -> None:
    with pytest.raises(InputError, match="Did you mean"):
        fourfold.optimize(model, reviews, techniques="route/sparse_mlq", progress=False)
    front = fourfold.optimize(model, reviews, floor=0.5, budget="60s", engines=["torch"], seed=1, techniques=["route"], progress=False)
    tried = {c.technique for c in front.job.candidates}
    told = [note for note in front.report_data["notes"] if " not tried: " in note]
    for id in front.job.options.techniques:
        assert id in tried or any(note.startswith(id) for note in told), f"{id} was neither tried nor refused in words"
    assert "--techniques route/" in front.report_data["command"]
