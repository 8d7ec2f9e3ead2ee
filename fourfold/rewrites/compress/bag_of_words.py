"""Counted words and a linear model: what a transformer must beat to deserve its energy. Where it clears the floor, it may win.

Term frequencies of words and word pairs, weighted by rarity (Salton and Buckley 1988), then multinomial logistic regression (or ridge regression
for values, Hoerl and Kennard 1970): on short texts hard to beat for its price (Wang and Manning 2012). Trained in seconds with L-BFGS over sparse
matrices; saved as a word list and one table of numbers; answers with numpy and scipy alone.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import sparse

from fourfold.errors import ArtefactError, InputError
from fourfold.rewrite import Context, Edit, Rewrite

if TYPE_CHECKING:
    from torch import nn

WORD = re.compile(r"\w+(?:['’]\w+)*|[!?]")
CORPUS = 30_000  # texts that words are counted in
MOST = 300_000  # word pairs kept at most, the most frequent ones
STRENGTHS = (1.0, 4.0, 16.0)  # inverse regularisation, chosen on a fifth of the training texts
Text = str | tuple[str, str]


def grams(text: Text, letters: bool = False) -> Iterator[str]:
    """Words, pairs of neighbouring words, and (where `letters`) runs of 3 to 5 letters. Of a text pair: the same per side, and the words that both
    share."""
    if isinstance(text, str):
        words = WORD.findall(text.lower())
        yield from words
        for first, second in zip(words, words[1:], strict=False):
            yield f"{first} {second}"
        if letters:
            for word in words:
                padded = f"<{word}>"
                for size in (3, 4, 5):
                    for begin in range(len(padded) - size + 1):
                        yield "\x03" + padded[begin : begin + size]
        return
    first, second = text
    left = list(grams(first, letters))
    right = list(grams(second, letters))
    yield from (f"\x01{gram}" for gram in left)
    yield from right
    yield from (f"\x02{gram}" for gram in set(left).intersection(right))
    yield from ["\x02"] * len(set(left).intersection(right))  # how much they share, whatever it is


@dataclass
class BagOfWords:
    """A trained linear model over word counts.

    words: gram → column. rarity: float64 [V]. weights: float64 [V, C], bias: float64 [C] (C = 1 for regression). `classes` None: regression.
    `letters`: runs of letters count too.
    """

    words: dict[str, int]
    rarity: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    classes: list[str] | None
    letters: bool = False
    kind: ClassVar[str] = "bag_of_words"

    @property
    def parameters(self) -> int:
        """Weights that an answer may use."""
        return self.weights.size

    @property
    def nbytes(self) -> int:
        """Bytes of the tables and the words."""
        return self.weights.nbytes + self.rarity.nbytes + sum(map(len, self.words))

    def features(self, texts: Sequence[Text]) -> sparse.csr_matrix:
        """Term frequency (1 + ln count) × rarity, each row of length 1: sparse [N, V]."""
        return _rows([Counter(grams(text, self.letters)) for text in texts], self.words, self.rarity)

    def records(self, texts: Sequence[Text]) -> np.ndarray:
        """Class scores float64 [N, C] (natural log-odds, as a model's logits), or values [N, 1]."""
        return np.asarray(self.features(texts) @ self.weights) + self.bias

    def save(self, folder: Path | str) -> list[str]:
        """Writes words.json and words.safetensors into `folder`; returns their names."""
        from safetensors.numpy import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = {"format": 1, "classes": self.classes, "letters": self.letters, "words": list(self.words)}
        (folder / "words.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        arrays = {"rarity": self.rarity, "weights": self.weights, "bias": self.bias}
        save_file({name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}, folder / "words.safetensors")
        return ["words.json", "words.safetensors"]

    @classmethod
    def load(cls, folder: Path | str) -> BagOfWords:
        """What `save` wrote. Raises ArtefactError where a file is missing or damaged."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        try:
            data = json.loads((folder / "words.json").read_text(encoding="utf-8"))
            arrays = {name: array.astype(np.float64) for name, array in load_file(folder / "words.safetensors").items()}
            words = {word: i for i, word in enumerate(data["words"])}
            model = cls(words, arrays["rarity"], arrays["weights"], arrays["bias"], data["classes"], data["letters"])
        except Exception as error:  # OS, JSON, key and safetensors errors alike
            raise ArtefactError(f"The bag of words in {folder} cannot be read: {error}.", "Make the artefact again.") from None
        if len(words) != len(model.rarity) or len(words) != len(model.weights):
            raise ArtefactError(f"The bag of words in {folder} has {len(words)} words and {len(model.weights)} weights.", "Make the artefact again.")
        return model


def fit(
    texts: Sequence[Text],
    targets: object,
    classes: list[str] | None,
    seed: int = 0,
    *,
    strength: float | None = None,
    rarest: int | None = None,
    letters: bool = False,
) -> BagOfWords:
    """A bag of words trained on `texts`.

    targets: int64 [N] class numbers, float64 [N, C] class probabilities (a teacher's answers), or float64 [N] values where `classes` is None.
    strength: inverse regularisation; None: chosen on a fifth of the texts. rarest: a gram must occur in that many texts (None: 2 where there are
    1,000 texts or more, which quarters the size and loses nothing). Raises InputError without texts.
    """
    if not len(texts):
        raise InputError("There are no texts to count words in.", "Give training texts.")
    targets = np.asarray(targets)
    rarest = rarest or (2 if len(texts) >= 1000 else 1)
    counted = [Counter(grams(text, letters)) for text in texts]
    if strength is None:
        strength = _chosen(counted, targets, classes, seed, rarest)
    words, rarity = _vocabulary(counted, rarest)
    x = _rows(counted, words, rarity)
    weights, bias = _regress(x, targets, strength) if classes is None else _classify(x, _onehot(targets, len(classes)), strength)
    return BagOfWords(words, rarity, weights, bias, classes, letters)


def _chosen(counted: list[Counter[str]], targets: np.ndarray, classes: list[str] | None, seed: int, rarest: int) -> float:
    """The strength with the least loss on a fifth of the texts."""
    order = np.random.default_rng(seed).permutation(len(counted))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    if len(held) < 5 or classes is not None and targets.ndim == 1 and len(np.unique(targets[rest])) < 2:
        return STRENGTHS[1]
    words, rarity = _vocabulary([counted[i] for i in rest], rarest)
    x, y = _rows([counted[i] for i in rest], words, rarity), _rows([counted[i] for i in held], words, rarity)
    losses = []
    for strength in STRENGTHS:
        if classes is None:
            weights, bias = _regress(x, targets[rest], strength)
            losses.append(float(np.square(np.asarray(y @ weights)[:, 0] + bias[0] - targets[held]).mean()))
        else:
            weights, bias = _classify(x, _onehot(targets[rest], len(classes)), strength)
            losses.append(_entropy(np.asarray(y @ weights) + bias, _onehot(targets[held], len(classes))))
    return STRENGTHS[int(np.argmin(losses))]


def _vocabulary(counted: list[Counter[str]], rarest: int) -> tuple[dict[str, int], np.ndarray]:
    """Columns of the grams that occur in at least `rarest` texts, and ln((1 + N) / (1 + texts with it)) + 1 of each."""
    found: Counter[str] = Counter()
    for one in counted:
        found.update(one.keys())
    kept = sorted(gram for gram, count in found.items() if count >= rarest)
    if len(kept) > MOST:
        kept = sorted(sorted(kept, key=lambda gram: -found[gram])[:MOST])
    rarity = np.array([math.log((1 + len(counted)) / (1 + found[gram])) + 1 for gram in kept])
    return {gram: i for i, gram in enumerate(kept)}, rarity


def _rows(counted: Sequence[Counter[str]], words: dict[str, int], rarity: np.ndarray) -> sparse.csr_matrix:
    columns: list[int] = []
    counts: list[int] = []
    offsets = [0]
    for one in counted:
        for gram, count in one.items():
            column = words.get(gram)
            if column is not None:
                columns.append(column)
                counts.append(count)
        offsets.append(len(columns))
    where, ends = np.array(columns, dtype=np.int64), np.array(offsets)
    values = (1 + np.log(np.array(counts, dtype=np.float64))) * rarity[where] if len(where) else np.zeros(0)
    squares = np.r_[0.0, np.cumsum(values * values)]
    norms = np.sqrt(np.maximum(squares[ends[1:]] - squares[ends[:-1]], 1e-30))
    return sparse.csr_matrix((values / np.repeat(norms, np.diff(ends)), where, ends), shape=(len(counted), len(rarity)))


def _onehot(targets: np.ndarray, classes: int) -> np.ndarray:
    return targets.astype(np.float64) if targets.ndim == 2 else np.eye(classes)[targets.astype(np.int64)]


def _entropy(z: np.ndarray, wanted: np.ndarray) -> float:
    top = z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - (z * wanted).sum(axis=1)).mean())


def _shape(x: sparse.csr_matrix) -> tuple[int, int]:
    rows, columns = x.get_shape()
    return int(rows), int(columns)


def _classify(x: sparse.csr_matrix, wanted: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression: least strength · Σ cross-entropy + ½ ‖W‖², the bias free (L-BFGS, Byrd et al. 1995)."""
    from scipy import optimize  # half a second that answering need not wait for

    (rows, columns), classes = _shape(x), wanted.shape[1]
    flipped = x.T.tocsr()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[: columns * classes].reshape(columns, classes), flat[columns * classes :]
        z = np.asarray(x @ weights) + bias
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        value = float((np.log(total[:, 0]) * wanted.sum(axis=1)).sum() - (z * wanted).sum()) / rows
        slope = (p / total * wanted.sum(axis=1, keepdims=True) - wanted) / rows
        shrink = 1 / (strength * rows)
        gradient = np.asarray(flipped @ slope) + shrink * weights
        return value + 0.5 * shrink * float((weights * weights).sum()), np.concatenate([gradient.ravel(), slope.sum(axis=0)])

    found = optimize.minimize(
        loss, np.zeros((columns + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 300, "ftol": 1e-9, "gtol": 1e-6}
    )
    return found.x[: columns * classes].reshape(columns, classes), found.x[columns * classes :]


def _regress(x: sparse.csr_matrix, targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with a free bias: least ‖Xw + b − y‖² + ‖w‖² / strength, by conjugate gradients on the centred problem."""
    from scipy.sparse.linalg import LinearOperator, lsqr

    y = targets.astype(np.float64).reshape(len(targets))
    middle, mean = np.asarray(x.mean(axis=0)).ravel(), float(y.mean())
    centred = LinearOperator(x.shape, matvec=lambda w: x @ w - middle @ w, rmatvec=lambda r: x.T @ r - middle * r.sum(), dtype=np.float64)  # type: ignore[call-arg]
    weights = lsqr(centred, y - mean, damp=1 / math.sqrt(strength), atol=1e-8, btol=1e-8, iter_lim=300)[0]
    return weights[:, None], np.array([mean - float(middle @ weights)])


class WordCounts(Rewrite):
    """The student that reads no order beyond neighbouring words."""

    default = True
    title: ClassVar[str] = "Bag of words"
    step: ClassVar[str] = "a linear model on counted words"
    member: ClassVar[str] = "bag_of_words"
    files: ClassVar[tuple[str, ...]] = ("words.json", "words.safetensors")
    cites: ClassVar[tuple[str, ...]] = ("salton1988", "wang2012", "hoerl1970")
    needs: ClassVar[tuple[str, ...]] = ("numpy", "scipy", "safetensors")

    def declines(self, model: nn.Module) -> str | None:
        get = getattr(model, "get_input_embeddings", None)
        config = getattr(model, "config", None)
        reads = callable(get) and getattr(config, "vocab_size", None) is not None
        generates = getattr(config, "is_encoder_decoder", False) or type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        if reads and not generates:
            return None
        return f"{type(model).__name__} {'writes texts' if reads else 'reads no texts'}; word counts judge texts"

    def alone(self, context: Context) -> BagOfWords | None:
        examples, task = context.examples, context.task
        if task.kind not in ("classification", "regression") or examples.targets is None:
            return None
        if examples.raw is None or not len(examples.raw) or not isinstance(examples.raw[0], str | tuple):
            return None
        classes = (task.classes or [str(i) for i in range(context.outputs)]) if task.kind == "classification" else None
        return fit(examples.raw[:CORPUS], examples.targets[:CORPUS], classes, seed=context.seed)

    def opened(self, folder: Path) -> BagOfWords:
        return BagOfWords.load(folder)

    def describe(self, edits: Sequence[Edit]) -> str:
        return "counted words and word pairs, a linear model"
