"""Ranking losses and metrics beside Rax under JAX: the same scores, labels and lists, one thread each, processor seconds of a call.

    python benchmarks/ranking.py --rax PYTHON [--rounds 15]

PYTHON is an interpreter with rax and jax. Rax runs jitted, in a process of its own that stays; both sides answer by turns, case by case, so that a
busy host is busy for both. Losses: value and gradient by the scores. Metrics: the value. What either says must agree to 1e-4 before it is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LOSSES = ("softmax_loss", "poly1_softmax_loss", "unique_softmax_loss", "listmle_loss", "pairwise_hinge_loss", "pairwise_logistic_loss",
          "pairwise_soft_zero_one_loss", "pairwise_mse_loss", "pairwise_qr_loss", "pointwise_sigmoid_loss", "pointwise_mse_loss")
METRICS = ("mrr_metric", "ndcg_metric", "ap_metric", "precision_metric", "recall_metric", "opa_metric")
SMOOTH = ("approx_ndcg", "approx_mrr", "lambda_logistic")
FORMS = {"padded": (256, 200), "packed": (64, 200)}                    # lists of 120 to 200 items; rows of lists of about 20


def cases() -> list[tuple[str, str]]:
    """(function, form)."""
    padded = [(name, "padded") for name in (*LOSSES, *SMOOTH, *METRICS)]
    packed = [(name, "packed") for name in (*LOSSES, "approx_ndcg", *METRICS) if name not in ("opa_metric", "poly1_softmax_loss")
              and not name.startswith("pointwise")]                    # Rax knows no poly1 with both segments and a mask; pointwise ignores segments
    return padded + packed


def data(form: str) -> dict[str, np.ndarray]:
    """Scores, labels of five grades, and which items count (padded) or whose list they are (packed)."""
    rng = np.random.default_rng(0)
    shape = FORMS[form]
    found: dict[str, np.ndarray] = {"scores": rng.normal(size=shape).astype(np.float32), "labels": rng.integers(0, 5, shape).astype(np.float32)}
    if form == "padded":
        found["where"] = np.arange(shape[1]) < rng.integers(120, shape[1] + 1, (shape[0], 1))
    else:
        found["segments"] = np.sort(rng.integers(0, 10, shape)).astype(np.int32)
        found["where"] = rng.random(shape) < 0.97
    return found


def ours(name: str, form: str) -> Callable[[], float]:
    """One call in torch, its value."""
    import torch

    from fourfold import ranking

    torch.set_num_threads(1)
    given = {key: torch.from_numpy(value) for key, value in data(form).items()}
    scores, labels = given.pop("scores"), given.pop("labels")
    function = chosen(ranking, name)
    if name in METRICS:
        def value() -> float:
            with torch.no_grad():
                return float(function(scores, labels, **given))
        return value
    scores.requires_grad_()

    def step() -> float:
        scores.grad = None
        loss = function(scores, labels, **given)
        loss.backward()
        return float(loss.detach())

    return step


def theirs(name: str, form: str) -> Callable[[], float]:
    """The same in Rax, jitted."""
    import functools
    import types

    import jax

    if not hasattr(jax, "util"):                                       # Rax 0.4.0 asks jax.util.wraps, which later versions of jax lack
        jax.util = types.SimpleNamespace(wraps=lambda f, **_: functools.wraps(f))  # pyright: ignore[reportAttributeAccessIssue]
    import jax.numpy as jnp
    import rax  # pyright: ignore[reportMissingImports]

    given = {key: jnp.asarray(value) for key, value in data(form).items()}
    scores, labels = given.pop("scores"), given.pop("labels")
    function = chosen(rax, name)
    whole = lambda s, y, g: function(s, y, **g)  # noqa: E731
    run = jax.jit(whole if name in METRICS else jax.value_and_grad(whole))

    def step() -> float:
        found = jax.block_until_ready(run(scores, labels, given))
        return float(found if name in METRICS else found[0])

    return step


def chosen(package: Any, name: str) -> Callable[..., Any]:
    """The function of that name in Rax or ours, which have the same names."""
    if name.startswith("approx_"):
        return package.approx_t12n(getattr(package, f"{name.removeprefix('approx_')}_metric"))
    if name == "lambda_logistic":
        return lambda *a, **k: package.pairwise_logistic_loss(*a, **k, lambdaweight_fn=package.dcg_lambdaweight)
    return getattr(package, name)


def timed(call: Callable[[], float], least: float = 0.03) -> float:
    """Processor seconds of one call, over as many calls as take `least`."""
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < least or not count:
        call()
        count += 1
    return spent / count


def serve(side: Callable[[str, str], Callable[[], float]]) -> None:
    """Answer lines "open NAME FORM" and "time" until there are no more."""
    call: Callable[[], float] = float
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "open":
            call = side(rest[0], rest[1])
            print(json.dumps(call()), flush=True)
            call()
        else:
            print(json.dumps(timed(call)), flush=True)


class Side:
    """One side's process."""

    def __init__(self, python: str, word: str) -> None:
        flags = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen([python, __file__, "--serve", word], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **flags})

    def ask(self, line: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/ranking.py")
    parser.add_argument("--rax", default=sys.executable, help="an interpreter with rax")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="cases whose name holds this; writes nothing")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})        # one core for either side
    if args.serve:
        return serve(ours if args.serve == "ours" else theirs)
    import provenance

    version = subprocess.run([args.rax, "-c", "import importlib.metadata as m; print(m.version('rax'))"], capture_output=True, text=True, check=True)
    sides, rows = (Side(sys.executable, "ours"), Side(args.rax, "theirs")), []
    for name, form in cases():
        if args.only not in f"{name} {form}":
            continue
        values = [side.ask(f"open {name} {form}") for side in sides]
        assert abs(values[0] - values[1]) <= 1e-4 * max(1.0, abs(values[1])), (name, form, values)
        times = np.array([[side.ask("time") for side in sides] for _ in range(args.rounds)])
        ratios = np.sort(times[:, 1] / times[:, 0])
        rows.append({"name": name, "form": form, "shape": FORMS[form], "ours": float(np.median(times[:, 0])), "rax": float(np.median(times[:, 1])),
                     "times_faster": float(np.median(ratios)), "low": float(ratios[0]), "high": float(ratios[-1])})
        print(f"{name:28s} {form}  ours {1e3 * rows[-1]['ours']:8.3f} ms  Rax {1e3 * rows[-1]['rax']:8.3f} ms  × {rows[-1]['times_faster']:.2f}"
              f" ({rows[-1]['low']:.2f} to {rows[-1]['high']:.2f})", flush=True)
    if not args.only:
        about = provenance.facts(argparse.Namespace(rounds=args.rounds), [0], more={"rax": version.stdout.strip()})
        provenance.publish(Path(__file__).parent / "results" / "ranking.json", {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
