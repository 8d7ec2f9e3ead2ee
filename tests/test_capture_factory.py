"""Factories that return example inputs beside their module are captured on those."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fourfold.errors import MissingExtra
from fourfold.frontends.capture import capture

FACTORY = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
    def forward(self, x, y):
        return self.first(x) @ y

def one():
    return nn.Linear(8, 16), torch.randn(3, 8)

def two():
    return Two(), {"x": torch.randn(2, 4), "y": torch.randn(4, 5)}
"""


@pytest.mark.parametrize(("name", "shape"), [("one", (3, 16)), ("two", (2, 5))])
def test_examples_beside_the_module_are_its_inputs(name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_with_inputs.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    found = capture(f"made_with_inputs:{name}").graph
    assert found.shape_of(int(found.outputs[0])) == shape
    sys.modules.pop("made_with_inputs", None)


def test_a_module_that_lacks_jax_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_jax.py").write_text("import jax\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(MissingExtra, match="JAX"):
        capture("needs_jax:function")
