"""GO's generalisation: zero-shot on families it has not seen against its own fine-tuned result, what fine-tuning needs to reach a from-scratch
result, and the policy beside the other solvers at equal time.

    python benchmarks/go.py [--quick] [--nodes 150] [--updates 40] [--seconds 5] [--out benchmarks/results/go.json]

Costs are the simulator's step times; evaluations are plans priced. "Nothing" is the policy's own first answer, "list" its answer after it has looked
at a list schedule (the default of the solver `go`). From scratch is the same network with fresh weights and the same
learner. Wall time of every solver.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import provenance

from fourfold.decisions.schedule.go import Go
from fourfold.decisions.schedule.problem import Schedule
from fourfold.errors import FourfoldError
from fourfold.machine import Machine
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.graphs import make

HERE = Path(__file__).parent


def reached(trace: list[tuple[int, float]], cost: float) -> int | None:
    """Plans priced until `cost` was reached (within a thousandth)."""
    return next((spent for spent, best in trace if best <= cost * 1.001), None)


def generalise(problem: Schedule, updates: int, seed: int) -> dict[str, Any]:
    """Zero-shot, fine-tuned and from scratch, without polish."""
    import torch

    from fourfold.decisions.schedule._go.network import PolicyNetwork, read
    from fourfold.decisions.schedule._go.policy import Case, plans
    from fourfold.decisions.schedule._go.tune import tune

    network, case, found = read()[0], Case.of(problem), {}
    for name, opening in (("nothing", False), ("list", True)):
        start = time.perf_counter()
        budget = Budget(1e9, 10**9)
        plan = plans(network, case, budget, seed, opening=opening)
        assert plan is not None
        found[name] = {"cost": plan.cost, "plans": budget.spent, "wall_s": time.perf_counter() - start}
    torch.manual_seed(seed)
    for name, begin in (("tuned", network), ("scratch", PolicyNetwork(network.sizes))):
        trace: list[tuple[int, float]] = []
        start = time.perf_counter()
        # neither looks at a list schedule: what is compared is what pre-training is worth
        plan, _ = tune(begin, case, Budget(1e9, 10**9), seed, updates=updates, opening=False, trace=trace)
        assert plan is not None
        found[name] = {"cost": plan.cost, "trace": trace, "wall_s": time.perf_counter() - start}
    goal = found["scratch"]["cost"]
    found["needed"] = {"scratch": reached(found["scratch"]["trace"], goal), "tuned": reached(found["tuned"]["trace"], goal),
                       "zero_shot": found["nothing"]["cost"] <= goal * 1.001}
    return found


def beside(problem: Schedule, seconds: float, seed: int) -> dict[str, Any]:
    """Each solver's cost within `seconds`, and the policy without polish."""
    rows: dict[str, Any] = {}
    solvers = {**{name: technique(f"schedule/{name}")() for name in ("heft", "expert", "anneal")}, "go": Go(polish=False),
               "go + polish": Go()}
    for name, solver in solvers.items():
        try:
            found = solve(problem, solver, Budget(seconds, 10**9), seed)
            rows[name] = {"cost": found.cost, "wall_s": found.seconds, "before": found.before, "bound": found.bound}
        except FourfoldError as error:
            rows[name] = {"cost": None, "why": str(error).splitlines()[0]}
    return rows


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one size, two graphs, few updates")
    parser.add_argument("--families", nargs="*", default=["wavenet", "moe"], help="held out of the training of the weights that ship")
    parser.add_argument("--nodes", type=int, nargs="*", default=[150])
    parser.add_argument("--devices", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "go.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.devices, arguments.updates, arguments.seconds = arguments.devices[:1], 5, 1.0
    from fourfold.decisions.schedule._go.network import read

    facts, cases = read()[1], []
    for family in arguments.families:
        for nodes in arguments.nodes:
            for count in arguments.devices:
                for train in (False, True):
                    problem = Schedule(make(family, nodes, arguments.seed, train), Machine.read(f"p100x{count}"))
                    one = {"family": family, "nodes": len(problem.graph), "devices": count, "train": train, "unseen": family in facts["held_out"],
                           "graph": problem.graph.hash, "policy": generalise(problem, arguments.updates, arguments.seed),
                           "solvers": beside(problem, arguments.seconds, arguments.seed)}
                    cases.append(one)
                    policy, base = one["policy"], one["solvers"]["anneal"]["cost"]
                    print(f"{family:12}{len(problem.graph):6}{count:3}{'  train' if train else '  infer'}  / anneal: "
                          + "  ".join(f"{name} {policy[name]['cost'] / base:.3f}" for name in ("nothing", "list", "tuned", "scratch"))
                          + "  " + "  ".join(f"{name} {row['cost'] / base:.3f}" for name, row in one["solvers"].items() if row["cost"])
                          + f"  needed {policy['needed']}", flush=True)
    ratios = {name: mean([one["policy"][name]["cost"] / min(one["policy"][kind]["cost"] for kind in ("nothing", "list", "tuned")) for one in cases])
              for name in ("nothing", "list")}
    needed = [one["policy"]["needed"]["tuned"] / one["policy"]["needed"]["scratch"] for one in cases if one["policy"]["needed"]["tuned"]]
    equal = {name: mean([one["solvers"][name]["cost"] / one["solvers"]["anneal"]["cost"] for one in cases if one["solvers"][name]["cost"]])
             for name in cases[0]["solvers"]}
    summary = {"zero_shot_over_tuned": ratios, "share_of_evaluations": mean(needed), "reached": len(needed), "cases": len(cases),
               "over_annealing_at_equal_time": equal}
    print(json.dumps(summary, indent=1))
    head = {"about": provenance.facts(arguments, [arguments.seed]), "weights": facts, "seconds": arguments.seconds,
            "updates": arguments.updates, "seed": arguments.seed}
    provenance.publish(arguments.out, {**head, "summary": summary, "cases": cases})


if __name__ == "__main__":
    main()
