"""Multinomial naive Bayes over words (Maron 1961): a technique of somebody else's that answers texts without a network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from fourfold.rewrite import Context, Rewrite


@dataclass
class NaiveBayes:
    """`odds`: word → log probability given each class [C]; `prior` [C]."""

    odds: dict[str, list[float]]
    prior: list[float]
    kind: ClassVar[str] = "naive_bayes"

    @property
    def parameters(self) -> int:
        return len(self.prior) * (1 + len(self.odds))

    @property
    def nbytes(self) -> int:
        return 8 * self.parameters + sum(map(len, self.odds))

    def records(self, texts: Sequence[str]) -> np.ndarray:
        none = np.zeros(len(self.prior))
        return np.array([sum((self.odds.get(word, none) for word in text.lower().split()), np.array(self.prior)) for text in texts])

    def save(self, folder: Path) -> list[str]:
        (folder / "odds.json").write_text(json.dumps([self.odds, self.prior]))
        return ["odds.json"]


class WordOdds(Rewrite):
    """Counts of words by class, one added to each."""

    default = True
    title: ClassVar[str] = "Naive Bayes"
    needs: ClassVar[tuple[str, ...]] = ("numpy",)
    member: ClassVar[str] = "naive_bayes"
    files: ClassVar[tuple[str, ...]] = ("odds.json",)

    def declines(self, model: nn.Module) -> str | None:
        return None

    def alone(self, context: Context) -> NaiveBayes | None:
        examples = context.examples
        if context.task.kind != "classification" or examples.raw is None:
            return None
        counts = [Counter[str]() for _ in range(context.outputs)]
        for text, label in zip(examples.raw, examples.targets, strict=True):
            counts[int(label)].update(text.lower().split())
        words = sorted(set().union(*counts))
        sums = [sum(one.values()) + len(words) for one in counts]
        odds = {word: [float(np.log((one[word] + 1) / total)) for one, total in zip(counts, sums, strict=True)] for word in words}
        shares = np.bincount(examples.targets, minlength=context.outputs) + 1
        return NaiveBayes(odds, np.log(shares / shares.sum()).tolist())

    def opened(self, folder: Path) -> NaiveBayes:
        return NaiveBayes(*json.loads((folder / "odds.json").read_text()))
