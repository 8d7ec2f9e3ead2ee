"""A report with INVENTED numbers: plausible in shape, measured by nobody. It lets the readers (terminal, HTML, CLI) be tested without a run."""

from __future__ import annotations

import math
import random
from typing import Any


def span(value: float, half: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, **more}


def stack(
    name: str, blocks: int, heads: list[int], neurons: list[int], removed: tuple[int, ...] = (), full: tuple[int, int] = (12, 1536)
) -> dict[str, Any]:
    rows = []
    for i in range(blocks):
        gone = i in removed
        units = [
            {"name": "attention", "what": "heads", "kept": 0 if gone else heads[i], "total": full[0], "absent": gone or heads[i] == 0},
            {"name": "ffn", "what": "neurons", "kept": 0 if gone else neurons[i], "total": full[1], "absent": gone or neurons[i] == 0},
        ]
        rows.append({"name": str(i), "removed": gone, "units": units})
    return {"name": name, "blocks": rows}


def setting(engine: str = "torch", precision: str = "fp32", threads: int = 1, batch: int = 32, bucketing: bool = True) -> dict[str, Any]:
    return {"engine": engine, "precision": precision, "threads": threads, "batch": batch, "bucketing": bucketing}


def candidate(i: int, energy: float, quality: float, status: str, *, tested: bool, rng: random.Random, how: str, reason: str = "") -> dict[str, Any]:
    heads = [rng.choice([0, 2, 4, 6, 12]) for _ in range(6)]
    neurons = [rng.choice([0, 128, 256, 512, 1024, 1536]) for _ in range(6)]
    removed = tuple(rng.sample(range(6), k=rng.choice([0, 1, 2, 3])))
    techniques = ["layer_removal", "matrix_pruning", "distil"] + (["quantise"] if i % 2 else [])
    return {
        "name": f"c{i:03d}",
        "how": how,
        "stage": "test" if tested else rng.choice(["proxy", "short", "full"]),
        "status": status,
        "reason": reason,
        "techniques": techniques,
        "levers": ["model", "machine"] if i % 2 else ["model"],
        "structure": [stack("encoder", 6, heads, neurons, removed)],
        "vocabulary": {"kept": 9_214, "total": 30_522},
        "parameters": int(22_713_216 * (0.15 + energy * 0.8)),
        "bytes": int(90_800_000 * (0.1 + energy * 0.8)),
        "search_quality": span(quality + 0.004, 0.015, n=1_000),
        "test_quality": span(quality, 0.009, n=2_145) if tested else None,
        "relative_energy": span(energy, energy * 0.05),
        "relative_latency": span(energy * 1.05, energy * 0.07),
        "relative_memory": 0.2 + 0.6 * energy,
        "setting": setting("openvino", "bf16") if i % 2 else setting(),
        "cascade": None,
    }


def _candidates(rng: random.Random) -> list[dict[str, Any]]:
    front = [(0.41, 1.003), (0.24, 0.997), (0.137, 0.992), (0.062, 0.981), (0.034, 0.958), (0.019, 0.931), (0.004, 0.862)]
    rows = [
        candidate(i, e, q, "front", tested=True, rng=rng, how=f"{6 - i} of 6 blocks, distilled" + (", bf16" if i % 2 else ""))
        for i, (e, q) in enumerate(front)
    ]
    rows[6]["structure"], rows[6]["how"], rows[6]["techniques"] = [], "static student: pooled word vectors, no attention", ["static"]
    rows[2]["cascade"] = {"members": ["c006", "c003", "original"], "thresholds": [0.97, 0.91], "shares": [0.61, 0.28, 0.11]}
    rows[2]["techniques"], rows[2]["how"] = ["static", "distil", "cascade"], "cascade of c006, c003 and the original"
    for i in range(len(front), 40):
        energy = math.exp(rng.uniform(math.log(0.01), math.log(1.1)))
        quality = min(1.0, 1.0 - 0.02 / energy**0.5 * rng.uniform(0.9, 2.5))
        status = rng.choice(["dominated", "stopped", "infeasible"])
        why = {
            "dominated": "dominated by c003",
            "stopped": "stopped early: upper bound misses the floor",
            "infeasible": "lower bound below the floor",
        }[status]
        rows.append(candidate(i, energy, quality, status, tested=False, rng=rng, how="5 of 6 blocks, 40 of 72 heads, distilled", reason=why))
    return rows


def report(feasible: bool = True, seed: int = 0) -> dict[str, Any]:
    """A whole invented report; `feasible=False`: nothing clears the floor.

    Long: one document, written out.
    """
    rng = random.Random(seed)
    rows = _candidates(rng)
    joules = {"value": 41.2, "low": 30.9, "high": 51.5, "grade": "modelled", "method": "CPU time × 7.5 W"}
    chain = [
        ("model", "layer_removal", "3 of 6 blocks removed", 1.0, 0.52),
        ("model", "matrix_pruning", "half the heads and neurons", 0.52, 0.27),
        ("model", "vocabulary", "unused words dropped", 0.27, 0.262),
        ("machine", "quantise", "bf16 in OpenVINO", 0.262, 0.062),
    ]
    stages = [
        ("ingest", 3.1),
        ("baseline", 28.4),
        ("sensitivities", 22.0),
        ("cost table", 41.3),
        ("seed front", 1.2),
        ("search", 244.0),
        ("recovery", 131.5),
        ("race", 58.0),
        ("test", 24.6),
        ("artefact", 9.2),
    ]
    t, events = 0.0, []
    for i, (name, took) in enumerate(stages):
        events.append({"t": t, "stage": name, "text": f"{name} done (invented)", "seconds": took, "best": None if i < 5 else 0.3 / (i - 3)})
        t += took
    miss = {
        "reason": "quality is lost as soon as block 4 is narrowed",
        "nearest": [
            {"candidate": 0, "shortfall": 0.012, "reason": "lower bound 98.5 %"},
            {"candidate": 1, "shortfall": 0.021, "reason": "lower bound 97.9 %"},
        ],
    }
    return {
        "schema": "fourfold.report/1",
        "created": "2026-01-02T03:04:05Z",
        "versions": {"fourfold": "0.0", "python": "3.11", "torch": "2.13.0+cpu"},
        "command": "fourfold optimize teacher/ --data reviews.csv --floor 97% --budget 10min --seed 0",
        "model": {"name": "teacher/ (invented numbers)", "family": "bert", "parameters": 22_713_216, "bytes": 90_864_000},
        "data": {
            "name": "reviews.csv",
            "task": "classification",
            "metric": "accuracy",
            "greater_is_better": True,
            "train": 6_000,
            "search": 1_000,
            "test": 2_145,
            "note": "seeded (0), stratified, duplicates kept together",
        },
        "machine": {
            "name": "An invented processor, 2 cores, AMX",
            "processor": "invented",
            "threads": 2,
            "features": ["avx2", "avx512_vnni", "amx_bf16"],
        },
        "valid": "Measured on an invented processor; elsewhere run: fourfold race cheap/",
        "folder": "cheap/",
        "objective": "energy",
        "floor": 0.97 if feasible else 1.0,
        "budget_s": 600.0,
        "seed": 0,
        "energy": {"grade": "modelled", "method": "CPU time × 7.5 W per busy thread", "boundary": "this process's CPU time"},
        "baseline": {
            "quality": span(0.853, 0.0126, n=2_145),
            "setting": setting(),
            "cpu_s_per_1000": 5.49,
            "wall_s_per_1000": 5.61,
            "joules_per_1000": joules,
            "memory_bytes": 412_000_000,
        },
        "simple": [
            {"name": "bag of words", "quality": span(0.768, 0.015), "relative_quality": span(0.900, 0.017), "relative_energy": span(0.0011, 0.0002)},
            {"name": "majority class", "quality": span(0.503, 0.018), "relative_quality": span(0.590, 0.021), "relative_energy": None},
        ],
        "candidates": rows,
        "front": list(range(7)),
        "best": 3 if feasible else None,
        "knee": 4,
        "floor_met": feasible,
        "infeasible": None if feasible else miss,
        "factors": [dict(zip(("lever", "technique", "title", "before", "after"), row, strict=True)) for row in chain] if feasible else [],
        "total": 1 / 0.062 if feasible else None,
        "race": [
            {
                "name": "openvino bf16",
                "candidate": 3,
                "against": "torch fp32",
                "setting": setting("openvino", "bf16"),
                "wall": span(0.24, 0.02),
                "cpu": span(0.23, 0.01),
                "accepted": True,
                "reason": "chosen",
            },
            {
                "name": "onnxruntime int8",
                "candidate": 3,
                "against": "torch fp32",
                "setting": setting("onnxruntime", "int8"),
                "wall": span(0.38, 0.03),
                "cpu": span(0.37, 0.02),
                "accepted": False,
                "reason": "slower than openvino bf16",
            },
            {
                "name": "torchao int8 eager",
                "candidate": 3,
                "against": "torch fp32",
                "setting": setting("torchao", "int8"),
                "wall": span(1.21, 0.05),
                "cpu": span(1.25, 0.04),
                "accepted": False,
                "reason": "slower than fp32",
            },
        ],
        "timeline": events,
        "cost": {"wall_s": t, "cpu_s": 1.7 * t, "joules": {**joules, "value": 7_180.0}, "break_even": 186_000},
        "citations": [
            {
                "key": "shortgpt",
                "text": "Men et al. ShortGPT: layers in large language models are more redundant than you expect. 2024.",
                "bibtex": "@article{shortgpt}",
                "url": "https://arxiv.org/abs/2403.03853",
            }
        ],
        "notes": ["Every number here is invented."],
        "warnings": [],
    }


def plan(jobs: int = 40, sites: int = 4, hours: int = 240, seed: int = 0) -> dict[str, Any]:
    """An invented plan of where and when, in the form that `fourfold map --json` prints: shapes are plausible, numbers are nobody's."""
    rng = random.Random(seed)
    names = ["Hydro", "Wind", "Gas", "Coal", *(f"Site {i}" for i in range(5, sites + 1))][:sites]
    intensity = [[round(40 + 150 * r + 30 * math.sin((t + 5 * r) * math.pi / 12) + rng.random(), 1) for t in range(hours)] for r in range(sites)]
    intensity[-1][3] = intensity[-1][4] = None  # hours that nobody knows
    rows, schedule = [], []
    for j in range(jobs):
        length, release = rng.randint(2, 12), rng.randint(0, hours - 40)
        start, site = release + rng.randint(0, 12), min(int(rng.expovariate(1.2)), sites - 1)
        rows.append({"name": f"job-{j:04d}", "kw": rng.choice([2.6, 5.2, 10.4]), "hours": length, "release": release, "deadline": release + 36,
                     "home": names[rng.randrange(sites)], "width": 1})
        schedule.append({"job": j, "site": site, "hours": list(range(start, start + length))})
    value, prices = 812.0, {"site": [0, 0, 1], "hour": [10, 11, 60], "price": [0.4, 0.7, 0.05]}
    policies = [("now", "run now, at home", 4100.0, []), ("home", "at home, the best hour", 3900.0, []), ("threshold", "threshold", 3950.0, []),
                ("greenest", "greenest site, naively", 790.0, ["hour 12 at Hydro holds 14 units, its capacity is 10", "hour 13 at Hydro too"]),
                ("forecast", "on a forecast", 860.0, []), ("oracle", "oracle", 800.0, [])]
    return {
        "sites": [{"id": name.lower(), "name": name, "pue": 1.1} for name in names], "start_utc": "2022-05-01T00:00:00Z", "intensity": intensity,
        "jobs": rows, "schedule": schedule, "value": value, "unit": "kgCO2e", "bound": 804.0, "gap": (value - 804.0) / 804.0, "signal": "average",
        "comparators": [{"name": name, "title": title, "value": cost, "broken": broken} for name, title, cost, broken in policies]
        + [{"name": "contiguous", "title": "in one block", "value": None, "why": "impossible, because job 3 does not fit"}],
        "ablations": [{"name": "time only", "title": "Wait, never move", "value": 3900.0},
                      {"name": "place only", "title": "Move, never wait", "value": 890.0}],
        "without": [{"name": "Hydro", "title": "Without Hydro", "value": 2100.0}],
        "certificate": {"value": value, "bound": 804.0, "gap": (value - 804.0) / 804.0, "mu": prices}, "notes": ["Every number here is invented."],
    }  # fmt: skip
