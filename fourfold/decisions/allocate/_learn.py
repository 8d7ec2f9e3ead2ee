"""Train the trees of `telamalloc` on generated packings: python -m fourfold.decisions.allocate._learn [--instances 120] [--seed 0] [--out FILE]

At a dead end each candidate level is labelled by the canonical search: can what stands below that level still be completed? The trees (scikit-learn's
histogram boosting; Friedman 2001) learn that from the figures; they are stored as plain arrays, and nothing of scikit-learn is needed to use them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fourfold.decisions.allocate import _backtrack as backtrack
from fourfold.decisions.allocate import _canonical as canonical
from fourfold.decisions.allocate._form import packing
from fourfold.decisions.allocate._restarts import Restarts
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.telamalloc import PackingRounds
from fourfold.zoo.packings import Lives, carved, perfect, scattered

FIRST = 5_000_000                                                       # seeds of training begin here; benchmarks and tests stay below
_PROOF, _PER_INSTANCE, _STEPS = 3000, 30, 20_000                        # nodes of a label; dead ends and steps of an instance


def instances(count: int, seed: int) -> Iterator[Lives]:
    """Generated packings of 30 to 200 buffers, at 94 to 100 % of their capacity, each with a packing that is known or likely."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        one = FIRST + int(rng.integers(1 << 30))
        if i % 3 == 0:
            yield carved(one, int(rng.integers(60, 201)), float(rng.uniform(0.94, 1.0)), float(rng.choice([0.1, 0.3, 0.5])))
        elif i % 3 == 1:
            yield scattered(one, int(rng.integers(60, 201)), float(rng.uniform(0.97, 1.0)))
        else:
            yield perfect(one, int(rng.integers(25, 61)))


def examples(lives: Lives, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(figures f8[targets, FEATURES], labels bool[targets]) of dead ends of one instance."""
    lower, upper, size, capacity = lives
    rectangles = Buffers(tuple(map(str, range(len(size)))), lower, upper, size, banks=np.array([capacity])).parts()
    form, _ = packing(rectangles)
    rounds, stop, rng = PackingRounds(form, int(rectangles.room[0]), seed), np.zeros(1, np.int64), np.random.default_rng(seed)
    made = 0
    while made < _PER_INSTANCE and rounds.steps < _STEPS:
        if rounds.rounds == 0 or rounds.left <= 0:
            rounds.again()
        before, dead = rounds.steps, rounds.dead
        status = rounds.go(rounds.left, backtrack.ASKED, stop)
        if status == backtrack.PACKED or rounds.steps == before:
            rounds.left = 0
            if rounds.rounds > 20:
                return
            continue
        if rounds.dead == dead:
            continue
        s = rounds.state
        count = int(s.found[0])
        targets = s.targets[:count].copy()
        if rng.random() < 0.3:
            made += 1
            yield s.figures[:count].copy(), _labels(form, s, targets, rounds.cap, seed)
        culprit = int(s.at[backtrack.CULPRIT])
        chosen = int(rng.integers(count)) if rng.random() < 0.3 else 0 if s.at[backtrack.MINOR] < rng.integers(2, 16) else count - 1
        if s.at[backtrack.MINOR] > 30:
            s.at[backtrack.DEEPEST], s.at[backtrack.MINOR] = targets[chosen], 0
        backtrack.back_to(form, s, int(targets[chosen]))
        s.at[backtrack.PROMOTED] = culprit


def _labels(form: backtrack.Packing, s: backtrack.Levels, targets: np.ndarray, cap: int, seed: int) -> np.ndarray:
    """Whether the levels below each target can be completed; what is shorter can be if what is longer can."""
    low, high = 0, len(targets)                                         # targets from `high` on can, before `low` cannot
    while low < high:
        middle = (low + high) // 2
        fixed = np.full(len(form.size), -1, np.int64)
        kept = s.placed[: targets[middle]]
        fixed[kept] = s.offset[kept]
        runs = Restarts(form._replace(fixed=fixed, plain=False), seed)
        if runs.run(cap, _PROOF, np.zeros(1, np.int64)) == canonical.PACKED:
            high = middle
        else:
            low = middle + 1
    return np.arange(len(targets)) >= low


def fit(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[backtrack.Trees, float]:
    """(trees whose sum is the log odds, share of labels foretold on a fifth left out) by gradient boosting."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    train = np.random.default_rng(seed).random(len(x)) < 0.8
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=12, learning_rate=0.1, min_samples_leaf=40, random_state=seed)
    model.fit(x[train], y[train])
    nodes = [tree[0].nodes for tree in model._predictors]               # type: ignore[attr-defined]
    begin = np.concatenate([[1], 1 + np.cumsum([len(node) for node in nodes])])
    flat = np.concatenate(nodes)
    shift = np.repeat(begin[:-1], [len(node) for node in nodes])
    leaf = flat["is_leaf"].astype(bool)
    left, right = (np.where(leaf, -1, flat[side].astype(np.int64) + shift) for side in ("left", "right"))
    base = float(np.ravel(model._baseline_prediction)[0])               # type: ignore[attr-defined]
    trees = backtrack.Trees(
        np.concatenate([[0], begin[:-1]]).astype(np.int64), np.concatenate([[-1], left]).astype(np.int64),
        np.concatenate([[-1], right]).astype(np.int64),
        np.concatenate([[0], flat["feature_idx"].astype(np.int64)]), np.concatenate([[0.0], flat["num_threshold"]]),
        np.concatenate([[base], np.where(leaf, flat["value"], 0.0)]))
    raw = np.array([backtrack.score(trees, row) for row in x[~train]])
    if len(raw) and not np.allclose(raw, model.decision_function(x[~train]), atol=1e-6):
        raise AssertionError("The exported trees do not say what the model says.")
    return trees, float(((raw > 0) == y[~train]).mean()) if len(raw) else float("nan")


def main() -> None:
    words = argparse.ArgumentParser(description="Train the choice of the backtrack target on generated packings.")
    words.add_argument("--instances", type=int, default=120)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--out", type=Path, default=Path(__file__).with_name("telamalloc.npz"))
    options = words.parse_args()
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for i, lives in enumerate(instances(options.instances, options.seed)):
        rows.extend(examples(lives, options.seed + i))
    x, y = np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])
    trees, right = fit(x, y, options.seed)
    np.savez_compressed(options.out, **trees._asdict())
    print(f"{len(rows)} dead ends, {len(y)} levels, {100 * y.mean():.1f} % completable; {100 * right:.1f} % foretold; "
          f"{options.out.stat().st_size:,} B")


if __name__ == "__main__":
    main()
