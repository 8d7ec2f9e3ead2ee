"""`fourfold.select`: the estimator protocol, the order of the linear case against orthogonal matching pursuit, the schedule, and bad input."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from fourfold.errors import InputError
from fourfold.rewrites.select._greedy import LEAST_UPDATES, FeatureAttention, SelectingMLP, SelectionSchedule, select
from fourfold.select import SequentialAttention

QUICK: dict[str, Any] = {"epochs": 4, "least_updates": 200, "random_state": 0}


def planted(rows: int = 300, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which features 3 and 7 alone, and together, tell the class."""
    X = np.random.default_rng(seed).normal(size=(rows, width))
    return X, ((X[:, 3] > 0) ^ (X[:, 7] > 0)).astype(int)


# ---- the protocol


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_pass() -> None:
    done = check_estimator(SequentialAttention(epochs=2, least_updates=40, random_state=0), on_skip=None)
    assert {row["status"] for row in done} <= {"passed", "skipped"} and sum(row["status"] == "passed" for row in done) > 40
    assert [row["check_name"] for row in done if row["status"] == "skipped"] in ([], ["check_array_api_input"])


def test_in_a_pipeline_cloned_and_with_a_data_frame() -> None:
    X, y = planted()
    frame = pandas.DataFrame(X, columns=[f"c{i}" for i in range(12)])
    model = SequentialAttention(2, epochs=40, random_state=1).set_output(transform="pandas")
    out = clone(model).set_output(transform="pandas").fit(frame, y).transform(frame)
    assert list(out.columns) == ["c3", "c7"] and out.equals(frame[["c3", "c7"]])
    model.fit(frame, y)
    assert list(model.get_feature_names_out()) == ["c3", "c7"] and list(model.feature_names_in_) == list(frame.columns)
    assert model.get_support(indices=True).tolist() == [3, 7] and set(model.order_) == {3, 7} and model.n_features_in_ == 12
    assert model.ranking_[model.order_].tolist() == [1, 2] and (np.delete(model.ranking_, [3, 7]) == 3).all()
    assert model.inverse_transform(out).shape == X.shape
    scored = make_pipeline(SequentialAttention(2, epochs=40, random_state=1), LogisticRegression()).fit(X, y)
    assert scored.named_steps["sequentialattention"].support_.sum() == 2


def test_features_that_tell_only_together_are_found_where_each_alone_tells_nothing() -> None:
    X, y = planted(400)
    alone = mutual_info_classif(X, y, random_state=0)
    assert set(np.argsort(-alone)[:2]) != {3, 7}, "else this would prove nothing"
    for seed in range(3):
        assert set(SequentialAttention(2, random_state=seed).fit(X, y).order_) == {3, 7}


def test_equal_seeds_give_equal_orders_and_the_callers_random_numbers_go_on() -> None:
    X, y = planted()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (SequentialAttention(4, **QUICK).fit(X, y) for _ in range(2))
    assert first.order_.tolist() == second.order_.tolist() and np.array_equal(first.scores_, second.scores_)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sparse_matrices_are_selected_from_as_dense_ones() -> None:
    X, y = planted()
    X[np.abs(X) < 0.5] = 0.0
    dense = SequentialAttention(4, **QUICK).fit(X, y)
    found = SequentialAttention(4, **QUICK).fit(scipy.sparse.csr_array(X), y)
    assert found.order_.tolist() == dense.order_.tolist()
    assert (found.transform(scipy.sparse.csr_array(X)).toarray() == dense.transform(X)).all()


@pytest.mark.parametrize("hidden", [(16,), ()])
def test_rows_of_weight_zero_are_not_there(hidden: tuple[int, ...]) -> None:
    X, y = planted()
    weight = np.ones(len(X))
    weight[200:] = 0
    values = X[:, 3] + 0.1 * X[:, 5]
    X[200:] = 1000.0
    target = values if not hidden else y
    some = SequentialAttention(3, hidden_layer_sizes=hidden, **QUICK).fit(X, target, sample_weight=weight)
    less = SequentialAttention(3, hidden_layer_sizes=hidden, **QUICK).fit(X[:200], target[:200])
    assert some.order_.tolist() == less.order_.tolist()
    with pytest.raises(ValueError, match="at least one non-zero"):
        SequentialAttention(3, **QUICK).fit(X, y, sample_weight=np.zeros(len(X)))


def test_progress_is_told_to_the_end() -> None:
    X, y = planted()
    seen: list[tuple[int, int]] = []
    SequentialAttention(3, **QUICK).fit(X, y, progress=lambda done, whole: seen.append((done, whole)))
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1)) and len({whole for _, whole in seen}) == 1


# ---- the linear case


def pursuit(X: np.ndarray, y: np.ndarray, count: int) -> list[int]:
    """Orthogonal matching pursuit by refitting: the oracle."""
    X = X - X.mean(0)
    length = np.linalg.norm(X, axis=0)
    X = np.where(length > 1e-9, X / np.where(length > 1e-9, length, 1), 0)
    residual, order = y - y.mean(0), []
    start = residual
    for _ in range(count):
        gain = np.linalg.norm((X.T @ residual).reshape(X.shape[1], -1), axis=1)
        gain[order] = -1
        order.append(int(gain.argmax()))
        residual = start - X[:, order] @ np.linalg.lstsq(X[:, order], start, rcond=None)[0]
    return order


GOLDEN = {
    "diabetes": (load_diabetes, 8, [2, 8, 3, 6, 1, 5, 9, 4]),
    "breast_cancer": (load_breast_cancer, 8, [27, 1, 20, 28, 14, 15, 29, 11]),
    "digits": (load_digits, 10, [42, 5, 27, 18, 3, 37, 53, 12, 43, 22]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_linear_case_is_orthogonal_matching_pursuit(name: str) -> None:
    load, count, order = GOLDEN[name]
    X, y = load(return_X_y=True)
    y = (y % 2 if name == "digits" else y).astype(float)
    model = SequentialAttention(count, hidden_layer_sizes=(), task="regression").fit(X, y)
    assert model.order_.tolist() == order == pursuit(X, y, count)
    assert model.scores_[order[0]] == model.scores_.max()


def test_the_linear_case_of_several_outputs_weighs_them_together() -> None:
    X, y = load_diabetes(return_X_y=True)
    Y = np.stack([(y - y.mean()) / y.std(), X[:, 6] / X[:, 6].std(), np.random.default_rng(0).normal(size=len(y))], 1)
    Y = (Y - Y.mean(0)) / Y.std(0)
    model = SequentialAttention(6, hidden_layer_sizes=()).fit(X, Y)
    assert model.order_.tolist() == pursuit(X, Y, 6)


@given(st.integers(0, 10**6), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_linear_orders_are_permutations_whatever_the_columns(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(20, 12))
    X[:, rng.integers(12)] = X[:, rng.integers(12)]                     # twins, and a target that few columns explain wholly
    y = X[:, 0] * 2
    model = SequentialAttention(count, hidden_layer_sizes=()).fit(X, y)
    assert len(set(model.order_)) == count and np.isfinite(model.scores_).all()
    assert np.allclose(X[:, model.order_[0]], X[:, 0]) or abs(np.corrcoef(X[:, model.order_[0]], y)[0, 1]) > 0.97


# ---- the schedule


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3000), st.floats(0, 0.9))
@settings(max_examples=200, deadline=None)
def test_phases_choose_at_their_end_and_all_in_the_end(features: int, step: int, updates: int, warmup: float) -> None:
    phases = -(-features // step)
    if updates - int(warmup * updates) < LEAST_UPDATES * phases:
        with pytest.raises(InputError, match="too few"):
            SelectionSchedule(features, step, updates, warmup)
        return
    schedule = SelectionSchedule(features, step, updates, warmup)
    due = [schedule.due(done) for done in range(updates + 1)]
    assert due[schedule.first + LEAST_UPDATES - 1] == 0, "nothing is chosen while the logits are noise"
    assert due == sorted(due) and due[-1] == features and due[-2] < features
    assert {b - a for a, b in zip(due, due[1:], strict=False)} <= {0, step, features - step * (phases - 1)}


def test_the_first_choice_is_the_best_feature_and_sizes_are_exact_for_every_step() -> None:
    class Drift(nn.Module):
        """A loss that falls with the mask on better features, of which the first is the best: it shows the schedule and nothing else."""

        def __init__(self, attention: FeatureAttention) -> None:
            super().__init__()
            self.attention, self.scale = attention, nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -(self.attention(x) * torch.eye(16)[0]).sum(1, keepdim=True) + 0 * self.scale

    batch = torch.ones(4, 16), torch.zeros(4, 1), None
    for step in range(1, 8):
        for seed in range(5):
            attention = FeatureAttention(16, generator=torch.Generator().manual_seed(seed))
            select(Drift(attention), attention, SelectionSchedule(7, step, 150), lambda _: batch, lambda z, _: z[:, 0])
            assert attention.order[0] == 0 and len(set(attention.order)) == 7


def test_the_mask_in_the_first_layer_is_the_mask_on_the_inputs() -> None:
    attention = FeatureAttention(9, generator=torch.Generator().manual_seed(0))
    attention.warm = False
    attention.choose(2)
    with torch.no_grad():
        attention.logits.copy_(torch.randn(9, generator=torch.Generator().manual_seed(1)))
    network = SelectingMLP(attention, (5,), 3)
    x = torch.randn(11, 9, generator=torch.Generator().manual_seed(2))
    dense = copy.deepcopy(network)

    def plain(x: torch.Tensor) -> torch.Tensor:
        first, last = dense.layers
        return last(torch.relu(first(dense.attention(x))))

    network(x).square().sum().backward()
    plain(x).square().sum().backward()
    assert torch.allclose(network(x), plain(x), atol=1e-6)
    for a, b in zip(network.parameters(), dense.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-5)
    again = FeatureAttention(9)
    again.load_state_dict(attention.state_dict())
    again.warm = False
    assert torch.equal(again(x), attention(x))
    compiled = torch.compile(attention, backend="eager")
    assert torch.allclose(compiled(x), attention(x))
    assert abs(float(attention.attention().sum()) - 1) < 1e-6 and float(attention.attention()[attention.chosen].sum()) == 0


def test_a_run_that_diverges_says_so() -> None:
    attention = FeatureAttention(4)
    network = SelectingMLP(attention, (), 1)
    batch = torch.full((8, 4), 1e30), torch.zeros(8, 1), None
    with pytest.raises(InputError, match="diverged"):
        select(network, attention, SelectionSchedule(2, 1, 40), lambda _: batch, lambda z, t: (z - t).square().mean(1))


# ---- tasks


def test_regression_multi_output_multilabel_and_a_network_of_ones_own() -> None:
    X, _ = planted()
    values = np.stack([X[:, 3] * X[:, 3], np.abs(X[:, 7])], 1)
    assert set(SequentialAttention(2, random_state=0).fit(X, values).order_) == {3, 7}
    labels = np.stack([X[:, 3] > 0, X[:, 7] > 0], 1).astype(int)
    assert set(SequentialAttention(2, random_state=0).fit(X, labels).order_) == {3, 7}
    network, values = nn.Linear(12, 2), X[:, [3, 7]]
    before = copy.deepcopy(network.state_dict())
    model = SequentialAttention(2, network=network, random_state=0).fit(X, values)
    assert set(model.order_) == {3, 7} and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    with pytest.raises(InputError, match=r"the network answers \(64, 2\), where \[rows, 3\]"):
        SequentialAttention(2, network=network, **QUICK).fit(X, np.arange(300) % 3)


def test_images_of_digits_better_than_by_single_features() -> None:
    X, y = load_digits(return_X_y=True)
    train, test = np.arange(0, 1200), np.arange(1200, len(y))
    ours = SequentialAttention(8, epochs=30, random_state=0).fit(X[train], y[train])
    alone = np.argsort(-mutual_info_classif(X[train], y[train], random_state=0))[:8]

    def accuracy(index: np.ndarray) -> float:
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(5).fit(X[train][:, index], y[train]).score(X[test][:, index], y[test])

    assert accuracy(ours.order_) > accuracy(alone) + 0.03


# ---- bad input


@pytest.mark.parametrize(("settings_", "said"), [
    ({"n_features_to_select": 13}, "from 12 features"), ({"n_features_to_select": 0}, "from 12 features"), ({"n_features_to_select": 1.5}, "share"),
    ({"step": 0}, "step=0"), ({"step": "two"}, "step='two'"), ({"task": "ranking"}, "task='ranking'"), ({"epochs": 0}, "epochs=0"),
    ({"learning_rate": -1}, "learning_rate=-1"), ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes"), ({"network": 3}, "no torch module"),
    ({"warmup": 1.0}, "warm-up"), ({"step": 1, "epochs": 1, "least_updates": 10, "n_features_to_select": 12}, "too few"),
])  # fmt: skip
def test_parameters_that_cannot_be_are_refused_in_two_lines(settings_: dict[str, Any], said: str) -> None:
    X, y = planted()
    with pytest.raises(InputError, match=said) as caught:
        SequentialAttention(**{**QUICK, **settings_}).fit(X, y)
    assert 1 <= str(caught.value).count("\n") <= 1


def test_nan_one_class_and_overflow_are_refused_constants_come_last() -> None:
    X, y = planted()
    hole = X.copy()
    hole[5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        SequentialAttention(3, **QUICK).fit(hole, y)
    with pytest.raises(InputError, match="one class"):
        SequentialAttention(3, task="classification", **QUICK).fit(X, np.zeros(len(X)))
    with pytest.raises(InputError, match="where classes are expected"):
        SequentialAttention(3, task="classification", **QUICK).fit(X, X[:, 0])
    with pytest.raises(InputError, match="squares overflow"):
        SequentialAttention(3, **QUICK).fit(np.where(np.arange(12) == 4, 1e200, 1.0) * X, y)
    flat = X.copy()
    flat[:, [0, 3, 9]] = 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not set(SequentialAttention(9, **QUICK).fit(flat, y).order_) & {0, 3, 9}
    with pytest.warns(UserWarning, match="only 9 of 12 features vary"):
        assert SequentialAttention(11, **QUICK).fit(flat, y).order_[9:].tolist() == [0, 3]
    with pytest.warns(UserWarning, match="only 0 of 12"):
        assert SequentialAttention(2, **QUICK).fit(np.ones((20, 12)), np.arange(20) % 2).order_.tolist() == [0, 1]
