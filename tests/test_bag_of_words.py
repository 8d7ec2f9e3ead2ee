"""Counted words and a linear model, against scikit-learn and against what it must be able to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fourfold.datasets.constant import majority, mean, plain, unigram
from fourfold.datasets.examples import Examples
from fourfold.datasets.task import Task, default_metric
from fourfold.errors import ArtefactError
from fourfold.measure.quality import METRICS
from fourfold.rewrite import Context
from fourfold.rewrites.compress.bag_of_words import BagOfWords, WordCounts, fit, grams

GOOD, BAD = "great moving bright witty superb".split(), "dull slow awful weak tired".split()
FILL = "the film a story and its cast of this that plot with".split()


def reviews(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    texts = [
        " ".join(rng.permutation([*rng.choice(FILL, 8), *rng.choice(GOOD if label else BAD, 2), *rng.choice(GOOD + BAD, 1)])) for label in labels
    ]
    return texts, labels


def test_it_learns_and_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    texts, labels = reviews(600)
    three = labels + (np.char.find(texts, "plot") >= 0)
    model = fit(texts, three, ["0", "1", "2"], strength=3.0)
    x = model.features(texts)
    peer = LogisticRegression(C=3.0, max_iter=1000, tol=1e-8).fit(x, three)
    other, _ = reviews(200, 1)
    ours, theirs = model.records(other), peer.decision_function(model.features(other))
    ours, theirs = ours - ours.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True)
    assert np.abs(ours - theirs).max() < 0.02


def test_features_equal_scikit_learn() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, labels = reviews(50)
    model = fit(texts, labels, ["0", "1"], strength=1.0)
    peer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    expected = peer.fit_transform(texts)
    columns = [model.words[gram] for gram in peer.get_feature_names_out()]
    assert np.abs(model.features(texts)[:, columns] - expected).max() < 1e-12 and len(columns) == len(model.words)


def test_ridge_regression_equals_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    texts, labels = reviews(300)
    values = labels * 2.0 + np.random.default_rng(0).normal(size=300) * 0.1
    model = fit(texts, values, None, strength=2.0)
    peer = Ridge(alpha=0.5, tol=1e-8).fit(model.features(texts), values)
    assert np.abs(model.records(texts)[:, 0] - peer.predict(model.features(texts))).max() < 1e-3


def test_it_beats_chance_on_unseen_texts_pairs_letters_and_soft_targets() -> None:
    texts, labels = reviews(500)
    new, truth = reviews(300, 9)
    for letters in (False, True):
        assert (fit(texts, labels, ["0", "1"], letters=letters).records(new).argmax(1) == truth).mean() > 0.85
    soft = np.eye(2)[labels] * 0.8 + 0.1
    model = fit(texts, soft, ["0", "1"])
    assert (model.records(new).argmax(1) == truth).mean() > 0.85
    rng = np.random.default_rng(0)
    same = rng.integers(0, 2, 500)
    pairs = [(text, text if one else texts[(i + 7) % 500]) for i, (text, one) in enumerate(zip(texts, same, strict=True))]
    paired = fit(pairs[:400], same[:400], ["0", "1"])
    assert (paired.records(pairs[400:]).argmax(1) == same[400:]).mean() > 0.8


def test_it_is_repeatable_and_travels(tmp_path: Path) -> None:
    texts, labels = reviews(200)
    one, two = fit(texts, labels, ["no", "yes"], 3), fit(texts, labels, ["no", "yes"], 3)
    assert (one.weights == two.weights).all()
    one.save(tmp_path)
    again = BagOfWords.load(tmp_path)
    assert again.classes == ["no", "yes"] and np.abs(again.records(texts) - one.records(texts)).max() < 1e-5
    assert again.records(["", "words never seen é 漢字"]).shape == (2, 2)
    (tmp_path / "words.json").write_text("{")
    with pytest.raises(ArtefactError, match="cannot be read"):
        BagOfWords.load(tmp_path)


def test_grams_by_hand() -> None:
    assert list(grams("It isn't Good!")) == ["it", "isn't", "good", "!", "it isn't", "isn't good", "good !"]


def test_plain_answers_without_texts() -> None:
    y = np.array([0, 1, 1, 1, 2])
    assert METRICS["accuracy"].score(majority(y, 3).records(y), y) == 0.6
    assert mean(np.array([1.0, 3.0])).records([0, 0]).tolist() == [[2.0], [2.0]]
    train = test = [np.array([1, 2, 2, 3]), np.array([2, 2])]
    records = unigram(train, test, 0)
    shares = np.array([1, 2, 5, 2]) / 10  # counts with one added
    assert records[0, 0] == pytest.approx(-np.log(shares[[1, 2, 2, 3]]).sum()) and records[1].tolist()[1:] == [2, 1, 2]


def test_every_task_has_its_plain_answer() -> None:
    texts, labels = reviews(100)
    task = Task("classification", ["0", "1"], default_metric("classification"))
    worded = Examples({"x": np.zeros((100, 1))}, labels, raw=list(texts))
    context = Context(None, task, worded, None, None, None, 0.97, 0, outputs=2)
    model = WordCounts().alone(context)
    assert model is not None and model.records(worded.raw or []).shape == (100, 2) and model.parameters == model.weights.size
    assert WordCounts().alone(replace(context, examples=replace(worded, raw=None))) is None
    bare = Examples({"x": np.random.default_rng(0).normal(size=(100, 1))}, labels)
    assert plain(bare, bare, task)[0] == "majority class"
    values = bare.with_targets(labels * 1.0)
    assert plain(values, values, Task("regression", None, default_metric("regression")))[0] == "mean"
    tokens = bare.with_targets([np.array([1, 2, 3])] * 100)
    for kind, columns in (("causal_lm", 4), ("seq2seq", 4), ("ctc", 2)):
        assert plain(tokens, tokens, Task(kind, None, default_metric(kind)))[1].shape == (100, columns)


def test_it_declines_what_reads_no_words() -> None:
    from torch import nn
    from transformers import BertConfig, BertForSequenceClassification

    shape = dict(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    assert WordCounts().declines(BertForSequenceClassification(BertConfig(**shape))) is None
    assert "reads no texts" in (WordCounts().declines(nn.Linear(3, 2)) or "")
