"""Ways to generate that are declined, each in words: what would have to be there, or why it cannot do what generation here asks of a way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fourfold.engines.base import missing
from fourfold.engines.decode.base import Decoding, DecodingState
from fourfold.errors import Declined


class _Elsewhere(Decoding):
    """Answers nothing: whoever opens it hears why."""

    why: ClassVar[str] = ""

    @classmethod
    def declines(cls, precision: str, machine: object) -> str | None:
        return missing(cls.needs, cls.extra) or cls.why

    def _no(self) -> Declined:
        return Declined(self.why)

    def start(self, inputs: Mapping[str, np.ndarray], room: int) -> tuple[DecodingState, np.ndarray]:
        raise self._no()

    def step(self, state: DecodingState, tokens: np.ndarray) -> np.ndarray:
        raise self._no()

    def crop(self, state: DecodingState, length: int) -> None:
        raise self._no()

    def rows(self, state: DecodingState, index: Sequence[int] | np.ndarray) -> None:
        raise self._no()

    def describe(self) -> dict[str, object]:
        return {"engine": self.name, "declined": self.why}


class CTranslate2Decoding(_Elsewhere):
    """It generates by itself, whole answers at a time, from checkpoints of families that its converter knows."""

    name: ClassVar[str] = "ctranslate2"
    title: ClassVar[str] = "CTranslate2"
    precisions: ClassVar[tuple[str, ...]] = ("int8",)
    likely: ClassVar[Mapping[str, int]] = {"int8": 12}
    why: ClassVar[str] = ("CTranslate2 keeps its memory to itself (no step, no crop), and its converter knows families, not pruned shapes; "
                          "an unpruned model can be converted with ct2-transformers-converter and served by it")


class TorchAoDecoding(_Elsewhere):
    """Its weight-only layers widen weights before each product on processors."""

    name: ClassVar[str] = "torchao"
    title: ClassVar[str] = "torchao"
    needs: ClassVar[tuple[str, ...]] = ("torchao",)
    extra: ClassVar[str] = "torchao"
    precisions: ClassVar[tuple[str, ...]] = ("int8",)
    likely: ClassVar[Mapping[str, int]] = {"int8": 12}
    why: ClassVar[str] = ("torchao's int8 layers, called eagerly, take longer for a token on processors than the plain module does; "
                          "OpenVINO and ONNX Runtime multiply packed weights instead")


class LlamaCppDecoding(_Elsewhere):
    """There is no wheel of its binding, so it must be compiled where it runs."""

    name: ClassVar[str] = "llama.cpp"
    title: ClassVar[str] = "llama.cpp"
    precisions: ClassVar[tuple[str, ...]] = ("int8",)
    likely: ClassVar[Mapping[str, int]] = {"int8": 12}
    why: ClassVar[str] = ("llama.cpp comes without a wheel and keeps to the shapes that a GGUF file can tell, the same for all layers; "
                          "GGUF weights are read, and run by the other engines")
