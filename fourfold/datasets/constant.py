"""Answers that need no input: the most frequent class, the mean, how frequent each token is. What every model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task


@dataclass
class Constant:
    """The answer that needs no input: log shares of the classes, or the mean. scores: float64 [C]."""

    scores: np.ndarray
    name: str

    def records(self, inputs: Sequence[object]) -> np.ndarray:
        """The same scores for every input: float64 [N, C]."""
        return np.tile(self.scores, (len(inputs), 1))


def majority(targets: np.ndarray, classes: int) -> Constant:
    """Always the most frequent class: its scores are ln of each class's share (add-one smoothing)."""
    counts = np.bincount(targets, minlength=classes) + 1.0
    return Constant(np.log(counts / counts.sum()), "majority class")


def mean(targets: np.ndarray) -> Constant:
    """Always the mean target."""
    return Constant(np.array([float(np.mean(targets))]), "mean")


def unigram(train: Sequence[np.ndarray], test: Sequence[np.ndarray], skip: int) -> np.ndarray:
    """Records [nll, tokens, exact, correct] of a model that knows only how frequent each token is. `skip`: tokens at the front that are not
    predicted."""
    size = 1 + max(int(np.max(row, initial=0)) for part in (train, test) for row in part)
    counts = np.ones(size)
    for row in train:
        np.add.at(counts, np.asarray(row)[skip:], 1.0)
    surprise, best = -np.log(counts / counts.sum()), int(counts.argmax())
    asked = [np.asarray(row)[skip:] for row in test]
    return np.array([[surprise[row].sum(), len(row), float((row == best).all()), (row == best).sum()] for row in asked], dtype=np.float64)


def plain(train: Examples, test: Examples, task: Task) -> tuple[str, np.ndarray]:
    """The cheapest honest answer to the task, which reads no input: its name, and its records on `test` [N, k].

    Majority or mean; token frequencies for language models; silence for speech. Raises InputError for custom tasks, and without labels.
    """
    if task.kind in ("classification", "regression"):
        if train.targets is None:
            raise InputError("Without labels there is no most frequent answer.", "Give labels to see the baseline.")
        classes = (task.classes or [str(i) for i in range(int(np.max(train.targets)) + 1)]) if task.kind == "classification" else None
        constant = mean(train.targets) if classes is None else majority(train.targets, len(classes))
        return constant.name, constant.records(range(len(test)))
    if task.kind in ("causal_lm", "seq2seq"):
        if task.generation is not None and task.kind == "causal_lm":  # prompts are not asked for
            asked = [[row[row >= 0] for row in part.targets] for part in (train, test)]
            return "token frequencies", unigram(asked[0], asked[1], 0)
        return "token frequencies", unigram(list(train.targets), list(test.targets), int(task.kind == "causal_lm"))
    if task.kind == "ctc":
        words = np.array([len(text.split()) for text in task.answers(test.targets)], dtype=np.float64)
        return "silence", np.stack([words, words], axis=1)
    raise InputError("A custom task has no plain baseline.", "Compare with the original only.")
