"""How far it goes: simulator and solvers from 10^2 to 10^5 ops on eight P100 over PCIe, written as JSON and drawn as an SVG.

    python benchmarks/scale.py [--family gnmt] [--seconds 15] [--out benchmarks/results/scale.json] [--picture docs/scale.svg] [--only-picture]

A row of "sizes" tells what a graph costs before and after any solver: reading its file, the Schedule (sizes, prices, classes), the validator on the
default's answer, the bound, and the simulator's events a second on that answer and on a random placement. A row of "solvers" is one `decide.solve`
with its own wall seconds, the whole call's (validator, bound and price included), the step time it found and the gap. Seconds are wall and processor
seconds of this process; where others use the machine, only the latter mean anything. Kernels are compiled beforehand, on a small graph.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import provenance

from fourfold.cost.simulate import arrays, play
from fourfold.decisions.schedule._parts import fuse
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import FourfoldError
from fourfold.graph import Graph
from fourfold.machine import Machine
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.graphs import make

ROOT = Path(__file__).resolve().parent
SIZES = (100, 1000, 10_000, 80_000)
SOLVERS = ("default", "expert", "metis", "heft", "peft", "cpop", "anneal", "auto")


def timed(what: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """(result, wall and processor seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = what()
    return found, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def events(problem: Schedule, group: np.ndarray, place: np.ndarray, least: float = 0.5) -> dict[str, float]:
    """The simulator on one plan: events, and events a processor second."""
    tasks, where, order = problem.of_tasks(Answer(group, place, -np.arange(len(group), dtype=float)))
    plain = arrays(tasks, problem.system)
    run, began, runs = play(plain, where, order, False, False), time.process_time(), 0
    while time.process_time() - began < least:
        run, runs = play(plain, where, order, False, False), runs + 1
    return {"tasks": len(tasks), "transfers": len(run.value), "events": int(run.events),
            "events_per_second": run.events * runs / (time.process_time() - began)}


def size_row(graph: Graph, system: Machine) -> tuple[dict[str, Any], Schedule]:
    """What a graph of this size costs without any solver."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.npz"
        graph.save(path)
        loaded, load = timed(lambda: Graph.load(path))
    problem, made = timed(lambda: Schedule(loaded, system))
    first = Answer(np.arange(len(graph)), np.arange(len(graph)) * len(system) // len(graph), -np.arange(len(graph), dtype=float))
    _, check = timed(lambda: problem.violations(first))
    bound, proof = timed(problem.bound)
    dice = np.random.default_rng(0)
    alone = np.arange(len(graph))
    return {"nodes": len(graph), "load": load, "schedule": made, "validator": check, "bound": proof, "bound_s": bound,
            "stretches": events(problem, alone, first.place), "random": events(problem, alone, dice.integers(0, len(system), len(graph))),
            "fused": events(problem, fuse(problem), np.zeros(len(graph), np.int64))}, problem


def solver_row(problem: Schedule, name: str, seconds: float) -> dict[str, Any]:
    """One solver's answer, or why there is none."""
    head = {"nodes": len(problem.graph), "solver": name}
    try:
        found, took = timed(lambda: solve(problem, technique(f"schedule/{name}")(), Budget(seconds, 10**9), 0))
    except FourfoldError as error:
        return head | {"refused": str(error).splitlines()[0]}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return head | {"solver_wall": found.seconds, "whole": took, "cost": found.cost, "before": found.before, "bound": found.bound, "gap": found.gap,
                   "evaluations": found.evaluations, "process_peak_bytes": peak}


def measure(family: str, seconds: float, sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Both tables."""
    system = Machine.read("p100x8")
    small = Schedule(make(family, 60), system)
    for name in SOLVERS:                                                # compile
        solver_row(small, name, 1.0)
    size_row(small.graph, system)
    rows, solved = [], []
    for nodes in sizes:
        graph, made = timed(lambda nodes=nodes: make(family, nodes))
        row, problem = size_row(graph, system)
        rows.append(row | {"generated": made})
        print(f"{len(graph):>6} ops: read {row['load']['cpu']:.2f} s, Schedule {row['schedule']['cpu']:.2f} s, "
              f"validator {row['validator']['cpu']:.2f} s, bound {row['bound']['cpu']:.2f} s, "
              f"simulator {row['random']['events_per_second'] / 1e6:.1f} M events/s", flush=True)
        for name in SOLVERS:
            solved.append(solver_row(problem, name, seconds))
            last = solved[-1]
            told = last.get("refused") or (f"{last['solver_wall']:6.2f} s of {last['whole']['wall']:6.2f} s, step {last['cost'] * 1e3:10.3f} ms, "
                                           f"gap {last['gap']:.1%}, process at most {last['process_peak_bytes'] / 2**30:.2f} GiB")
            print(f"       {name:<8} {told}", flush=True)
    return {"system": system.name, "family": family, "seconds": seconds, "sizes": rows, "solvers": solved}


# ---- the picture

_COLOURS = ("#2c5d9e", "#a35200", "#0b6b4c", "#ae2a1f", "#6a4c93", "#80801a", "#5b625f", "#c2428b")


def panel(x: float, title: str, lines: dict[str, list[tuple[float, float]]], low: int, high: int, unit: str) -> list[str]:
    """One chart on double logarithmic paper, 10^2 to 10^5 ops across, 10^low to 10^high up."""
    wide, tall, top = 330.0, 300.0, 60.0

    def at(nodes: float, value: float) -> tuple[float, float]:
        return (x + wide * (math.log10(nodes) - 1.9) / 3.1, top + tall * (1 - (math.log10(max(value, 10.0**low)) - low) / (high - low)))

    parts = [f'<text x="{x}" y="{top - 22}" class="title">{title}</text>']
    for power in range(low, high + 1):
        _, y = at(100, 10.0**power)
        parts.append(f'<line x1="{x}" x2="{x + wide}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
                     f'<text x="{x - 6}" y="{y + 4:.1f}" class="tick" text-anchor="end">{_number(power)}{unit}</text>')
    for power in (2, 3, 4, 5):
        left, _ = at(10.0**power, 1)
        parts.append(f'<text x="{left:.1f}" y="{top + tall + 18}" class="tick" text-anchor="middle">{10**power:,}</text>')
    parts.append(f'<text x="{x + wide / 2}" y="{top + tall + 36}" class="tick" text-anchor="middle">ops</text>')
    ends = sorted((at(*points[-1])[1], name) for name, points in lines.items() if points)
    shown: dict[str, float] = {}
    for y, name in ends:                                                # labels do not overlap
        shown[name] = max(y, *(other + 13 for other in shown.values())) if shown else y
    for (name, points), colour in zip(lines.items(), _COLOURS * 2, strict=False):
        if not points:
            continue
        way = " ".join(f"{px:.1f},{py:.1f}" for px, py in (at(*point) for point in points))
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{colour}"/>' for px, py in (at(*point) for point in points)]
        right = at(*points[-1])[0] + 8
        parts.append(f'<text x="{right:.1f}" y="{shown[name] + 4:.1f}" class="tick" style="fill:{colour}">{name}</text>')
    return parts


def _number(power: int) -> str:
    return f"{10**power:,}" if 0 <= power < 6 else f"{10**(power - 6):,} M" if power >= 6 else f"{10.0**power:g}"


def picture(data: dict[str, Any]) -> str:
    """SVG: seconds of each whole solve, seconds of the parts around it, events a second."""
    solved = [row for row in data["solvers"] if "whole" in row]
    solvers = {name: [(row["nodes"], row["whole"]["cpu"]) for row in solved if row["solver"] == name] for name in SOLVERS}
    parts = {label: [(row["nodes"], row[key]["cpu"]) for row in data["sizes"]]
             for label, key in (("read", "load"), ("Schedule", "schedule"), ("validator", "validator"), ("bound", "bound"))}
    speed = {label: [(row["nodes"], row[key]["events_per_second"]) for row in data["sizes"]]
             for label, key in (("random places", "random"), ("eight stretches", "stretches"), ("fused, one device", "fused"))}
    body = [*panel(70, "A whole solve, processor seconds", solvers, -3, 2, " s"), *panel(530, "Around it, processor seconds", parts, -4, 2, " s"),
            *panel(1000, "Simulator, events a second", speed, 5, 8, "")]
    style = (".title{font:600 14px system-ui,sans-serif;fill:var(--ink)}.tick{font:11px system-ui,sans-serif;fill:var(--soft)}"
             ".grid{stroke:var(--line)}"
             ".plot{--ink:#1c1f1e;--soft:#5b625f;--line:#e4e6e1;background:#fff}"
             "@media(prefers-color-scheme:dark){.plot{--ink:#e9ece9;--soft:#a3aba6;--line:#2b302d;background:#171a19}}")
    label = f"{data['family']} graphs on {data['system']}: seconds of solvers and their parts, and simulator speed, against the number of ops"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1460 420" class="plot" role="img" aria-label="{label}"><style>{style}</style>'
            + "".join(body) + "</svg>\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="gnmt")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "scale.json")
    parser.add_argument("--picture", type=Path, default=ROOT.parent / "docs" / "scale.svg")
    parser.add_argument("--only-picture", action="store_true", help="draw what --out holds")
    given = parser.parse_args()
    if not given.only_picture:
        provenance.publish(given.out, {"about": provenance.facts(given, [0]), **measure(given.family, given.seconds)})
    given.picture.write_text(picture(json.loads(given.out.read_text())))


if __name__ == "__main__":
    main()
