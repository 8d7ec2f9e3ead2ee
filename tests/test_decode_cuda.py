"""PyTorch on a card, by a card that is this processor with a counter of its own: what is refused, what fits, what wins. Not run on a GPU yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import decoder, furthest, prompts
from torch import nn

from fourfold.engines.decode.base import TOLERANCE
from fourfold.engines.decode.cuda import LARGEST, CudaDecoding, Fp8Linear, NvidiaCard
from fourfold.engines.decode.eager import EagerDecoding
from fourfold.engines.decode.phases import raced
from fourfold.errors import Declined, InputError


@dataclass
class FakeCard:
    """A card whose tensors lie in this computer's memory. Its counter moves by `each` joules every time it is read."""

    had: tuple[int, int] = (9, 0)
    memory: int = 1 << 30
    each: float | None = 1.0
    why: str | None = None
    device: str = "cpu"
    read: list[float] = field(default_factory=list)

    def reason(self) -> str | None:
        return self.why

    def capability(self) -> tuple[int, int]:
        return self.had

    def free(self) -> int:
        return self.memory

    def joules(self) -> float | None:
        if self.each is None:
            return None
        self.read.append((self.read[-1] if self.read else 0.0) + self.each)
        return self.read[-1]

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_it_answers_as_the_processor_does(precision: str) -> None:
    module = decoder("llama")
    found = CudaDecoding(module, precision=precision, card=FakeCard())
    assert furthest(found, EagerDecoding(module)) < (0.25 if precision == "fp8" else TOLERANCE[precision])
    assert found.describe()["capability"] == "9.0" and found.describe()["precision"] == precision
    assert not any(isinstance(part, Fp8Linear) for part in module.modules())                 # the original is left alone


def test_fp8_rounds_to_three_bits_behind_the_first() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(5, 64)
    made = Fp8Linear(layer)
    dense = made.weight.float() * made.scale[:, None]
    assert bool(((dense - layer.weight).abs() <= layer.weight.abs() / 16 + made.scale[:, None] * 2**-9).all())
    assert float(made.weight.float().abs().max()) == LARGEST
    assert float(((made(x) - layer(x)).norm() / layer(x).norm()).detach()) < 0.05


def test_this_computer_says_why_it_has_none_and_older_cards_what_they_lack() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    why = NvidiaCard().reason()
    assert why is not None and CudaDecoding.declines("bf16", object()) == why
    with pytest.raises(Declined, match="PyTorch|card"):
        CudaDecoding(decoder("llama"))
    with pytest.raises(Declined, match=r"no fp8 products \(its compute capability is 8\.0, and they began with 8\.9\)"):
        CudaDecoding(decoder("llama"), precision="fp8", card=FakeCard((8, 0)))
    with pytest.raises(Declined, match="no bf16"):
        CudaDecoding(decoder("llama"), precision="bf16", card=FakeCard((7, 5)))
    assert "no int4" in str(CudaDecoding.declines("int4", object()))


def test_ways_that_are_declined_say_why_and_all_are_listed() -> None:
    from fourfold.engines.decode import decoder as way
    from fourfold.engines.decode import names
    from fourfold.host import here

    assert {"torch", "torch-cuda", "openvino", "onnxruntime", "ctranslate2", "torchao", "llama.cpp"} <= set(names())
    for name in ("ctranslate2", "torchao", "llama.cpp"):
        kind = way(name)
        why = kind.declines(kind.precisions[0], here())
        assert kind.name == name and why is not None and len(why.split()) > 8
        with pytest.raises(Declined, match="is opened by"):
            kind.open(Path(), None, "int8", 1)


def test_what_does_not_fit_on_the_card_is_refused_before_it_is_read() -> None:
    module = decoder("llama")
    with pytest.raises(Declined, match="GB are free on the card"):
        CudaDecoding(module, card=FakeCard(memory=100_000))
    found = CudaDecoding(module, card=FakeCard(memory=1_000_000))
    token = 2 * 2 * 2 * 16 * 4
    assert found.memory_of_a_token() == token
    with pytest.raises(InputError, match="3 rows of 1,000 tokens") as error:
        found.start(prompts(), 1000)
    assert f"{int(0.9 * 1_000_000 // (1000 * token))} row" in error.value.mend
    state, _ = found.start(prompts(), 20)
    assert found.state_bytes(state) == 3 * 7 * token


def test_the_least_energy_wins_by_phase_and_in_all_and_what_is_not_measured_is_not_raced() -> None:
    module, ids = decoder("llama"), prompts()["input_ids"]
    free = {"cpu": lambda: EagerDecoding(module), "frugal card": lambda: CudaDecoding(module, card=FakeCard(each=1e-6)),
            "hungry card": lambda: CudaDecoding(module, card=FakeCard(each=1e6)), "unread": lambda: CudaDecoding(module, card=FakeCard(each=None)),
            "absent": lambda: CudaDecoding(module, card=FakeCard(why="there is no card"))}  # fmt: skip
    found = raced(free, ids, 4, rounds=3)
    assert set(found.ways) == {"cpu", "frugal card", "hungry card"} and found.best != "hungry card"
    assert "cannot be measured" in found.declined["unread"] and found.declined["absent"] == "there is no card"
    assert found.by_phase["decode"] != "hungry card" and found.ways["hungry card"].median("prefill") > 1e5
    cpu = found.ways["cpu"]
    assert len(cpu.cpu["decode"]) == 3 and cpu.total == pytest.approx(5.0 * np.median(np.add(cpu.cpu["prefill"], cpu.cpu["decode"])))
    with pytest.raises(Declined, match="no way to generate is left: absent: there is no card"):
        raced({"absent": free["absent"]}, ids, 4)
