"""Networks of every kind of origin, tiny: what an artefact must make again, or carry in its engine's files."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.datasets.examples import Examples

WIDTH, CLASSES = 6, 3
KINDS = ("tree", "class", "factory", "onnx", "opaque")


class Net(nn.Module):
    """A class of a module of one's own."""

    def __init__(self, hidden: int = 8, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(WIDTH, hidden), nn.Linear(hidden, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(input)))


class Fickle(Net):
    """One that answers otherwise in the process that is asked before anything is called saved."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (1.0 if "fourfold.runtime.afresh" in sys.orig_argv else 0.0)


def make() -> nn.Module:
    """A network that only its factory can make again: one of its attributes is no data."""
    net = Net()
    net.of_no_use = lambda: 0
    return net


def fickle() -> nn.Module:
    net = Fickle()
    net.of_no_use = lambda: 0
    return net


def subject(kind: str, folder: Path, seed: int = 0) -> Any:
    """The model as it is loaded for a search."""
    from fourfold.frontends.model import load_model

    if kind == "tree":
        torch.manual_seed(seed)
        found = load_model(nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES)))
    elif kind == "class":
        found = load_model(Net(seed=seed))
    elif kind in ("factory", "fickle"):
        found = load_model(f"origins:{'make' if kind == 'factory' else 'fickle'}")
    elif kind == "onnx":
        file = folder / f"model-{seed}.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        torch.onnx.export(Net(seed=seed).eval(), (torch.zeros(2, WIDTH),), str(file), input_names=["input"], output_names=["y"], dynamo=False,
                          dynamic_axes={"input": {0: "n"}, "y": {0: "n"}})  # fmt: skip
        found = load_model(str(file))
    else:
        net = Net(seed=seed)
        net.reading = partial(print)
        found = load_model(net)
    found.module.eval()
    return found


def rows(count: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def part(kind: str, engine: str, folder: Path, *, name: str = "net", seed: int = 0) -> Any:
    """A member of that origin that runs in `engine`, exported into `folder`."""
    from fourfold import engines
    from fourfold.engines.base import Signature
    from fourfold.runtime.artefact import Part, Setting

    model = subject(kind, folder, seed)
    examples = Examples({model.inputs[0]: rows()})
    batches = [examples.collate(index) for index in examples.batches(8)]
    signature = Signature.of(model.inputs, batches)
    folder.mkdir(parents=True, exist_ok=True)
    files = engines.engine(engine).export(model.wrap(model.module).eval(), signature, batches, "fp32", folder)
    return Part(name, model, model.module, None, Setting(engine, "fp32", 1, 8), signature, folder, files)
