"""Fusion, placement and order together: every solver at equal wall time on the models of GO's table 1 and on graphs of eight families.

    python benchmarks/schedule.py [--solvers go,go+polish,auto] [--seconds 15] [--seeds 3] [--cases gnmt-8 …] [--quick] [--fresh] [--work FOLDER]

The models are training steps on 2, 4 and 8 P100 cards behind PCIe 3.0 (`fourfold/systems/p100x*.toml`); the families are inference graphs. Times are
the simulator's; seconds are wall time of the solver here. Every figure is of a plan that the problem's validator passed; a solver that declines, or
whose plan does not fit, says why. "metis, no repair" is METIS without what mends its plans where they hold too much, as in GO's table.

Each row (case, solver, seed) is written to the journal in the work folder as soon as it is there, so that a run that was cut off goes on where it
stopped, and `--solvers` adds its rows to those that are known; rows of a changed graph or machine are computed anew. `--fresh` forgets the rows of
the named solvers. At the end all rows become `benchmarks/results/schedule.json` and a table. What `auto` knows of GO is learnt elsewhere, from other
graphs (`benchmarks/portfolio.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import provenance

from fourfold.decisions.schedule import metis
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import FourfoldError, Infeasible
from fourfold.machine import Machine
from fourfold.measure import bootstrap
from fourfold.problem import Budget, Solver, SolverAnswer, appraise
from fourfold.registry import names, technique
from fourfold.solvers.compare import ENDLESS, compare
from fourfold.zoo.graphs import FAMILIES, PUBLISHED, make, published

HERE = Path(__file__).parent
CHEAP = ("default", "expert", "metis", "metis, no repair", "heft", "peft")
SLOW = ("anneal", "exact", "go", "go+polish", "auto")
SOLVERS = (*CHEAP, *SLOW)
SEEDED = ("metis", "metis, no repair", "anneal", "go", "go+polish", "auto")
CHEAP_S = 60.0                                                         # more than any of the cheap ones needs
BASES = ("default", "expert", "metis")
FAULTS = (FourfoldError, ImportError, OSError)                         # OSError: a part without its weights


class Bare(Solver):
    """METIS as it is: parts, and list scheduling; the plan is not mended where it holds too much."""

    title = "METIS, no repair"
    lever = "machine"
    answers = "schedule"
    needs = ("pymetis",)
    counts = "plans"

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        from fourfold.decisions.schedule._parts import PartitionTasks, fuse

        work = PartitionTasks.of(problem, fuse(problem))
        budget.spend()
        place, priority = metis.placed(work, 1.0, seed)
        _, over = work.over(place, priority)
        if over.any():
            raise Infeasible(f"out of memory by {over.max() / 1e9:.2f} GB", "Use larger devices.")
        return SolverAnswer(work.answer(place, priority))


def made(name: str) -> Solver:
    if name == "metis, no repair":
        return Bare()
    if name in ("go", "go+polish"):
        return technique("schedule/go")(polish=name != "go")
    return technique(f"schedule/{name}")()


def problems(names: list[str], quick: bool) -> Iterable[tuple[str, int, bool, float, Schedule]]:
    """(case, devices, training, share of the seconds, problem): GO's models as training steps, then each family as inference, small and large."""
    found = [(name, one.devices, True, 1.0) for name, one in PUBLISHED.items()]
    found += [(f"{family} {nodes}", devices, False, share) for nodes, devices, share in ((100, 2, 0.25), (1000, 4, 0.5)) for family in FAMILIES]
    for name, devices, train, share in found:
        if (not names or name in names) and not (quick and name not in ("transformer-xl-2", "resnet", "rnnlm 100", "inception 100")):
            family, _, nodes = name.partition(" ")
            graph = published(name, train) if name in PUBLISHED else make(family, int(nodes), 0, train)
            yield name, devices, train, share, Schedule(graph, Machine.read(f"p100x{devices}"))


def warm() -> None:
    """Compile what is compiled, so that no row pays for it."""
    for train, devices in ((False, 2), (True, 4)):
        problem = Schedule(make("encoder_decoder", 60, 0, train), Machine.read(f"p100x{devices}"))
        for name in SOLVERS:
            if name.split("+")[0] in names("schedule") or name == "metis, no repair":
                compare(problem, {name: made(name)}, 1.0, evaluations=ENDLESS, faults=FAULTS)


class Rows:
    """What is known: the rows of the results file, then those of the journal, one line each; the last one of a key counts. With `fresh` those of
    earlier runs are not recalled.
    """

    def __init__(self, folder: Path, results: Path, fresh: bool = False) -> None:
        self.fresh, self.warmed = fresh, False
        self.case: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "rows.jsonl"
        self.known: dict[tuple[Any, ...], dict[str, Any]] = {}
        if results.exists():
            self.known = {self.key(one): one for one in json.loads(results.read_text(encoding="utf-8")).get("rows", [])}
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []:
            try:
                one = json.loads(line)
            except json.JSONDecodeError:                               # the line that was being written when the run was cut off
                continue
            self.known[self.key(one)] = one

    @staticmethod
    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return one["case"], one["graph"], one["system"], one["solver"], one["seed"], one["seconds"]

    def once(self, key: str, fn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of the present case that `key` (…/solver/seed/seconds) names: recalled, or made and written down."""
        _, solver, seed, seconds = key.rsplit("/", 3)
        one = {**self.case, "solver": solver, "seed": int(seed), "seconds": float(seconds)}
        if self.key(one) in self.known and not self.fresh:
            return self.known[self.key(one)]
        if not self.warmed:
            warm()
            self.warmed = True
        found = fn()
        rest = {"bound": found["bound"], "wall_s": found["solver_s"], "evaluations": found["evaluations"], "note": found["note"]}
        rest |= {"table": found["table"]} if "table" in found else {}
        self.add({**one, "cost": found["cost"], **({"why": found["why"], "wall_s": found["seconds"]} if found["cost"] is None else rest)})
        return self.known[self.key(one)]

    def add(self, one: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(one) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self.known[self.key(one)] = one


def run(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], Rows]:
    rows, cases = Rows(arguments.work, arguments.out, arguments.fresh), []
    for name, devices, train, share, problem in problems(arguments.cases, arguments.quick):
        cost, why = appraise(problem, problem.baseline())
        case = {"case": name, "graph": problem.graph.hash[:16], "system": problem.system.hash, "nodes": len(problem.graph), "devices": devices,
                "train": train, "one_device": cost, "one_device_why": why, "seconds": share * arguments.seconds, "bound": problem.bound()}
        cases.append(case)
        rows.case = {key: case[key] for key in ("case", "graph", "system")}
        asked = [solver for solver in arguments.solvers if solver.split(",")[0].split("+")[0] in names("schedule")]

        def tell(row: dict[str, Any], name: str = name, devices: int = devices, nodes: int = len(problem.graph)) -> None:
            print(f"{name:20}{nodes:7}{devices:3}  {row['solver']:18}{row['seed']:2}{1e3 * row['cost']:12.3f} ms" if row["cost"]
                  else f"{name:20} {row['solver']}: {row['why']}", flush=True)

        compare(problem, {solver: made(solver) for solver in asked}, {solver: CHEAP_S if solver in CHEAP else case["seconds"] for solver in asked},
                {solver: range(arguments.seeds if solver in SEEDED else 1) for solver in asked}, rows, key=name, evaluations=ENDLESS, faults=FAULTS,
                tell=tell)
    return cases, rows


def gathered(cases: list[dict[str, Any]], rows: Rows) -> list[dict[str, Any]]:
    """Each case with its solvers: median, least and greatest cost over seeds, median wall time, share of the default's; gap to the best bound."""
    for case in cases:
        mine = [one for one in rows.known.values() if (one["case"], one["graph"], one["system"]) == (case["case"], case["graph"], case["system"])
                and one["seconds"] in (case["seconds"], CHEAP_S)]
        bounds = [one["bound"] for one in mine if one.get("bound") is not None] + [case["bound"]]
        case["bound"] = max(bound for bound in bounds if bound is not None)
        case["solvers"] = []
        for name in SOLVERS:
            found = [one for one in mine if one["solver"] == name]
            costs = [one["cost"] for one in found if one["cost"] is not None]
            if not found:
                continue
            told: dict[str, Any] = {"solver": name, "cost": None, "why": found[0].get("why", ""), "fits": len(costs), "seeds": len(found),
                                    "wall_s": statistics.median(one["wall_s"] for one in found)}
            if costs:
                cost = statistics.median(costs)
                told |= {"cost": cost, "least": min(costs), "greatest": max(costs), "gap": cost / case["bound"] - 1 if case["bound"] else None,
                         "note": found[0].get("note", ""), "evaluations": found[0].get("evaluations")}
            case["solvers"].append(told)
    return cases


def cost(case: dict[str, Any], name: str) -> float | None:
    """Median cost; of the default only what one device holds: a framework spreads nothing by itself."""
    if name == "default":
        return case["one_device"]
    return next((one["cost"] for one in case["solvers"] if one["solver"] == name), None)


def mean(ratios: list[float]) -> dict[str, Any] | None:
    """Geometric mean of ratios with a 95 % interval (10,000 resamples of the cases), as a share of time saved."""
    if not ratios:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    ends = bootstrap.interval(bootstrap.resampled(lambda drawn: drawn.mean(axis=1), logs, resamples=10_000), 0.95)
    saved = [1 - math.exp(x) for x in (statistics.fmean(logs), *ends)]
    return {"saved": saved[0], "low": saved[2], "high": saved[1], "cases": len(ratios), "least": 1 - max(ratios), "most": 1 - min(ratios)}


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Time saved by each solver over each baseline: GO's models, families, all; and gaps to the bound."""
    parts = {"GO's models, training": [c for c in cases if c["train"]], "families, inference": [c for c in cases if not c["train"]], "all": cases}
    told: dict[str, Any] = {}
    for part, chosen in parts.items():
        for name in SOLVERS:
            pairs = {base: [(cost(c, name), cost(c, base)) for c in chosen] for base in BASES}
            gaps = [one["gap"] for c in chosen for one in c["solvers"] if one["solver"] == name and one.get("gap") is not None]
            if any(one["solver"] == name for c in chosen for one in c["solvers"]):
                told.setdefault(part, {})[name] = {
                    **{f"over {base}": mean([a / b for a, b in both if a and b]) for base, both in pairs.items() if base != name},
                    "gap, median": statistics.median(gaps) if gaps else None, "gap at most 5 %": sum(gap <= 0.05 for gap in gaps),
                    "cases": len(gaps)}
    return told


def table(cases: list[dict[str, Any]]) -> str:
    names = [name for name in SOLVERS if any(one["solver"] == name for case in cases for one in case["solvers"]) and name != "default"]
    heads = [{"metis, no repair": "bare metis"}.get(name, name) for name in names]
    lines = [f"{'case':20}{'nodes':>7}{'dev':>4}{'default ms':>12}{'bound':>8}" + "".join(f"{head:>11}" for head in heads)]
    for case in cases:
        whole = case["one_device"]
        scale = whole or cost(case, "expert") or math.nan
        cells = [f"{found / scale:11.3f}" if (found := cost(case, name)) else f"{'–':>11}" for name in names]
        lines.append(f"{case['case']:20}{case['nodes']:7}{case['devices']:4}" + (f"{1e3 * whole:12.2f}" if whole else f"{'OOM':>12}")
                     + f"{(case['bound'] or math.nan) / scale:8.3f}" + "".join(cells))
    for part, told in summary(cases).items():
        for base in BASES:
            cells = [f"{100 * saved['saved']:10.1f}%" if (saved := told.get(name, {}).get(f"over {base}")) else f"{'–':>11}" for name in names]
            lines.append(f"{part + ': saved over ' + base:51}" + "".join(cells))
    return "\n".join([*lines, "", "Shares of the default's time on one device; where one device lacks memory (OOM), of the expert's."])


def claim(cases: list[dict[str, Any]]) -> None:
    """What `claims/` holds against GO's abstract: the portfolio's step time on GO's models."""
    told = summary(cases)["GO's models, training"].get("auto", {})
    for base in ("default", "expert"):
        if saved := told.get(f"over {base}"):
            time = {"value": 1 - saved["saved"], "low": 1 - saved["high"], "high": 1 - saved["low"]}
            found = {"relative_time": time, "interval": 0.95, "cases": saved["cases"], "machine": "simulated: p100x2, p100x4, p100x8",
                     "date": provenance.now(), "commit": provenance.commit(), "versions": provenance.versions()}
            (HERE.parent / "claims" / "results" / f"go-{base}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", type=lambda text: text.split(","), default=None, help="names between commas; metis includes it without repair")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each slow solver")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=[])
    parser.add_argument("--quick", action="store_true", help="four cases, one seed, 2 s")
    parser.add_argument("--fresh", action="store_true", help="compute known rows of these solvers anew")
    parser.add_argument("--work", type=Path, default=HERE / ".fourfold" / "schedule", help="of the journal")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "schedule.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.seeds, arguments.out = 2.0, 1, arguments.work / "quick.json"
    arguments.solvers = [one for name in arguments.solvers or SOLVERS for one in ((name, "metis, no repair") if name == "metis" else (name,))]
    arguments.solvers = list(dict.fromkeys(arguments.solvers))
    cases, rows = run(arguments)
    cases = gathered(cases, rows)
    print(table(cases))
    if not (arguments.quick or arguments.cases):
        claim(cases)
    lean = [{key: value for key, value in one.items() if key != "table"} for one in rows.known.values()]
    seeds = sorted({one["seed"] for one in lean})
    head = {"about": provenance.facts(arguments, seeds), "seconds": arguments.seconds, "seeds": arguments.seeds,
            "machine": "p100x2, p100x4, p100x8 (fourfold/systems)",
            "summary": summary(cases)}
    provenance.publish(arguments.out, {**head, "cases": cases, "rows": lean})


if __name__ == "__main__":
    main()
