"""Models over a package of 36 chips: the learned policy beside random + SAMPLE, annealing + SAMPLE, even shares and contiguous stages.

    python benchmarks/chiplets.py [--budget 200] [--long 1000] [--seeds 0 1 2] [--only NAME …] [--quick] [--cache DIR] [--out results/chiplets.json]

Models are transformers' own, built from configurations with random weights and captured (BERT of 24 layers in core operators: about 2,100), none of
them trained on. Every technique prices `--budget` partitions; every partition passed the checker. "From scratch" is the policy's network with random
weights, the same learner, and `--long` partitions; what the trained policy needs to reach its result is counted on the trace. Times are processor
seconds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import provenance

from fourfold.decisions.chiplets.instance import Package, of_graph
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.errors import FourfoldError
from fourfold.graph import Graph
from fourfold.machine import Machine
from fourfold.problem import Budget, Solver, solve
from fourfold.registry import technique

HERE = Path(__file__).parent
TECHNIQUES = ("random_sample", "anneal_sample", "greedy_balance", "contiguous", "policy", "auto")
_IDS = 128                                                              # tokens of a text


def models() -> dict[str, tuple[Callable[[], object], str, str]]:
    """Name → (what builds it, inputs: "ids" or "pixels SIZE", level of the capture). Embeddings are small: they are no compute."""
    import transformers as t

    def text(kind: str, **sizes: object) -> Callable[[], object]:
        return lambda: getattr(t, kind + "Model")(getattr(t, kind + "Config")(vocab_size=2000, attn_implementation="eager", **sizes))

    def image(kind: str, **sizes: object) -> Callable[[], object]:
        return lambda: getattr(t, kind + "Model")(getattr(t, kind + "Config")(**sizes))

    wide = {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    return {
        "bert-24": (text("Bert", num_hidden_layers=24, **wide), "ids", "core"),
        "bert-12": (text("Bert", num_hidden_layers=12, **wide), "ids", "ops"),
        "roberta-12": (text("Roberta", num_hidden_layers=12, **wide), "ids", "ops"),
        "electra-12": (text("Electra", num_hidden_layers=12, embedding_size=128, **wide), "ids", "ops"),
        "albert-12": (text("Albert", num_hidden_layers=12, embedding_size=128, **wide), "ids", "ops"),
        "distilbert-6": (text("DistilBert", n_layers=6, dim=512, n_heads=8, hidden_dim=2048), "ids", "core"),
        "mobilebert-24": (text("MobileBert", num_hidden_layers=24), "ids", "ops"),
        "squeezebert-12": (text("SqueezeBert", num_hidden_layers=12, hidden_size=512, embedding_size=512, num_attention_heads=8,
                                intermediate_size=2048), "ids", "ops"),
        "gpt2-24": (text("GPT2", n_layer=24, n_embd=512, n_head=8, use_cache=False), "ids", "ops"),
        "opt-24": (text("OPT", num_hidden_layers=24, hidden_size=512, ffn_dim=2048, num_attention_heads=8, word_embed_proj_dim=512, use_cache=False),
                   "ids", "ops"),
        "llama-24": (text("Llama", num_hidden_layers=24, hidden_size=512, num_attention_heads=8, num_key_value_heads=8, intermediate_size=1408,
                          use_cache=False), "ids", "ops"),
        "vit-24": (image("ViT", num_hidden_layers=24, **wide), "pixels 224", "ops"),
        "deit-12": (image("DeiT", num_hidden_layers=12, **wide), "pixels 224", "core"),
        "resnet-50": (image("ResNet"), "pixels 224", "ops"),
        "regnet": (image("RegNet"), "pixels 224", "ops"),
        "convnext": (image("ConvNext"), "pixels 224", "ops"),
        "mobilenet-v2": (image("MobileNetV2"), "pixels 224", "ops"),
        "mobilenet-v1": (image("MobileNetV1"), "pixels 224", "ops"),
    }


def captured(name: str, cache: Path) -> Graph:
    """The graph of a model; captured once and kept."""
    import torch

    from fourfold.frontends.capture import capture

    file = cache / f"{name}.npz"
    if not file.is_file():
        torch.set_num_threads(1)
        torch.manual_seed(0)
        build, inputs, level = models()[name]
        module = build().eval()                                         # type: ignore[attr-defined]
        given = (torch.zeros(1, _IDS, dtype=torch.long),) if inputs == "ids" else (torch.zeros(1, 3, int(inputs.split()[1]), int(inputs.split()[1])),)
        cache.mkdir(parents=True, exist_ok=True)
        capture(module, given, level=level).graph.save(file)
    return Graph.load(file)


def asked(problem: ChipletPartition, solver: Solver, evaluations: int, seed: int) -> dict[str, object]:
    """A row: cost, chips in use, evaluations, processor seconds, trace; or why there is no answer."""
    began = time.process_time()
    try:
        found = solve(problem, solver, Budget(3600.0, evaluations), seed)
    except FourfoldError as error:
        return {"cost": None, "why": error.message, "cpu_s": time.process_time() - began}
    return {"cost": found.cost, "chips": int(found.answer.max()) + 1, "evaluations": found.evaluations, "cpu_s": time.process_time() - began,
            "bound": found.bound, "trace": found.evidence.get("trace", [])}


def reached(row: dict[str, object], cost: float) -> int | None:
    """Partitions priced until `cost` was reached."""
    trace = row.get("trace") or []
    return next((int(spent) for spent, least in trace if least <= cost * (1 + 1e-9)), None)      # type: ignore[attr-defined]


def measured(name: str, args: argparse.Namespace) -> dict[str, object]:
    """All figures of one model."""
    from fourfold.decisions.chiplets.policy import LearnedPartition

    graph, machine = captured(name, args.cache), Machine.read("mcm36")
    problem = ChipletPartition(of_graph(graph, machine), Package.of(machine))
    row: dict[str, object] = {"model": name, "ops": len(graph), "bound": problem.bound(), "bounds": problem.parts, "graph": graph.hash}
    rows = {kind: [asked(problem, technique(f"chiplets/{kind}")(), args.budget, seed) for seed in args.seeds] for kind in TECHNIQUES}
    scratch = [asked(problem, LearnedPartition(fresh=True), args.long, seed) for seed in (args.seeds if name in args.scratch else ())]
    needed = [reached(mine, float(goal["cost"])) for mine, goal in zip(rows["policy"], scratch, strict=False)       # type: ignore[arg-type]
              if goal["cost"] is not None]
    for one in (*(one for each in rows.values() for one in each), *scratch):
        one.pop("trace", None)
    return {**row, "techniques": rows, "scratch": scratch, "needed": needed}


def summary(cases: list[dict[str, object]]) -> dict[str, object]:
    """Medians over models of the medians over seeds: the policy's throughput over the others', and over the bound's."""
    def cost(case: dict[str, object], kind: str) -> float:
        return statistics.median(float(one["cost"]) for one in case["techniques"][kind] if one["cost"] is not None)       # type: ignore[index]

    found: dict[str, object] = {}
    for kind in TECHNIQUES:
        gains = [cost(case, kind) / cost(case, "policy") - 1 for case in cases]
        gaps = [cost(case, kind) / float(case["bound"]) - 1 for case in cases]                  # type: ignore[arg-type]
        found[kind] = {"policy_over": statistics.median(gains), "least": min(gains), "most": max(gains), "gap": statistics.median(gaps)}
    return found


def claim(cases: list[dict[str, object]]) -> None:
    """What `claims/` holds against the paper's abstract: time between samples of BERT, the policy's over that of random search and of annealing."""
    for name, kind in (("random", "random_sample"), ("annealing", "anneal_sample")):
        for case in cases:
            if case["model"] != "bert-24":
                continue
            rows: dict[str, list[dict[str, float]]] = case["techniques"]                        # type: ignore[assignment]
            each = [mine["cost"] / other["cost"] for mine, other in zip(rows["policy"], rows[kind], strict=True)]
            found = {"relative_time": {"value": statistics.median(each), "low": min(each), "high": max(each)}, "interval": "range over seeds",
                     "cases": len(each), "machine": "simulated: mcm36", "date": provenance.now(), "commit": provenance.commit(),
                     "versions": provenance.versions()}
            (HERE.parent / "claims" / "results" / f"chiplets-{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--long", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--scratch", nargs="*", default=["bert-12", "resnet-50", "vit-24"], help="models to train the policy on from scratch besides")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--join", type=Path, nargs="*", default=[], help="results of runs over some of the models (--only), to be made one")
    parser.add_argument("--cache", type=Path, default=Path("fourfold-bench/chiplets"))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "chiplets.json")
    args = parser.parse_args()
    if args.quick:
        args.budget, args.long, args.seeds, args.only = 20, 40, [0], args.only or ["distilbert-6"]
    from fourfold.decisions.chiplets._network import read

    cases: list[dict[str, object]] = []
    if args.join:
        parts = [json.loads(file.read_text(encoding="utf-8")) for file in args.join]
        cases = [case for part in parts for case in part["cases"]]
        about = {**parts[0]["about"], "options": {**parts[0]["about"]["options"], "only": [], "join": [file.name for file in args.join]}}
        provenance.publish(args.out, {**parts[0], "about": about, "summary": summary(cases), "cases": cases})
        return claim(cases)
    for name in args.only or list(models()):
        began = time.process_time()
        try:
            case = measured(name, args)
        except Exception as error:  # noqa: BLE001 — a model that cannot be captured is told and passed over
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:160]}", flush=True)
            continue
        cases.append(case)
        over = {kind: "/".join("–" if one["cost"] is None else f"{one['cost'] / case['bound']:.3f}" for one in rows)      # type: ignore
                for kind, rows in case["techniques"].items()}                                   # type: ignore[attr-defined]
        print(f"{name:15}{case['ops']:6} " + "  ".join(f"{kind} {told}" for kind, told in over.items()),
              f"  needed {case['needed']}  {time.process_time() - began:.0f} s", flush=True)
        if not args.quick:                                              # after every model: what was measured stays
            told = {"about": provenance.facts(args, args.seeds), "weights": read()[1], "budget": args.budget, "summary": summary(cases)}
            provenance.publish(args.out, {**told, "cases": cases})
            claim(cases)


if __name__ == "__main__":
    main()
