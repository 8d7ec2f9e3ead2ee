"""The answer and what is told of it: the pipeline that was found, what people would have done, every tensor's place, bytes of each collective."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fourfold import plans
from fourfold.cost.pipeline import play
from fourfold.decisions.stages.instance import StageTable
from fourfold.decisions.stages.problem import StageConstruction, Stages
from fourfold.errors import Infeasible, InputError
from fourfold.graph import INPUT, PARAMETER
from fourfold.jobs import planning
from fourfold.jobs.devices.layouts import Configuration, Layouts
from fourfold.jobs.devices.source import DevicesAsked
from fourfold.problem import solve
from fourfold.registry import technique
from fourfold.report.format import size
from fourfold.sharding.collectives import KEEP, SLICE, reshard
from fourfold.sharding.spec import Spec
from fourfold.sharding.stored import DevicePlan, StagePlan
from fourfold.sharding.strategies import itemsize, local_bytes

if TYPE_CHECKING:
    from fourfold.rewrites.compress._bench import ProgressCallback

QUESTION = "stages"
_BESIDE = ("equal_split", "data_parallel")
_BY_HAND = {"data": "data parallelism", "fsdp": "FSDP", "megatron": "Megatron: tensor parallel, equal stages"}
_SHOWN = 256                                                            # microbatches that the timeline plays


def document_of(asked: DevicesAsked, layouts: Layouts, solver: str, budget: float, seed: int, listener: ProgressCallback,
                folder: Path) -> plans.Document:
    """Decide, and tell all of it as a plan's document."""
    table = layouts.table
    problem = StageConstruction(table, asked.devices, asked.microbatches, asked.limit, asked.schedule)
    name = "alpa" if solver == "auto" else solver.removeprefix(f"{QUESTION}/")
    found = planning.decide(problem, name, budget=budget, seed=seed, listener=listener, question=QUESTION,
                            compared=[one for one in _BESIDE if one != name], best=solver == "auto")
    best = found.solution
    if best.solver != name and solver == "auto" and (own := solve(problem, technique(f"{QUESTION}/{name}")())).cost <= best.cost:
        best = own                                                      # of equal ones, the answer that is proven
    stages = told_stages(asked, layouts, problem, best.answer)
    plan = DevicePlan(asked.devices, asked.microbatches, asked.schedule, asked.train, tuple(stage for stage, _ in stages))
    rows = [row for _, row in stages]
    from fourfold.report import devices as report

    by_hand = baselines(asked, layouts, problem)
    proven = problem.bound()
    facts: dict[str, object] = {
        "hosts": asked.hosts, "each": asked.each, "microbatches": asked.microbatches, "train": asked.train, "schedule": asked.schedule,
        "limit": asked.limit if np.isfinite(asked.limit) else None, "layers": asked.count, "configurations": len(table.configs),
        "meshes": layouts.meshes, "exact": layouts.exact, "relaxation": proven, "stages": rows, "by_hand": by_hand,
        "timeline": _timeline(asked, layouts, problem, best.answer),
    }  # fmt: skip
    answer = {"first": best.answer.first.tolist(), "config": best.answer.config.tolist()}
    solution = {"objective": "latency", "solver": best.solver, "cost": best.cost, "unit": best.unit, "before": best.before, "why": best.why,
                "saving": best.saving, "bound": best.bound, "gap": best.gap, "seconds": best.seconds, "evaluations": best.evaluations, "seed": seed,
                "interrupted": found.interrupted, "table": found.table, **facts, "plan": plan.to_json(), "answer": answer,
                "sentences": report.sentences(facts, best.cost, best.before), "notes": [*asked.notes, *([best.note] if best.note else [])],
                "hash": plans.identify(asked.graph.hash, asked.system.hash, asked.devices, asked.microbatches, facts["limit"], plan.to_json())}
    about = {"kind": "graph", "name": asked.graph.name, "hash": asked.graph.hash, "nodes": len(asked.graph), "unknown": list(asked.graph.unknown),
             "model": dict(asked.model), "capture": dict(asked.capture)}
    machine = {"name": asked.system.name, "hash": asked.system.hash, "fingerprint": asked.system.fingerprint}
    return plans.Document(folder, about, machine, {QUESTION: solution})


def files_of(asked: DevicesAsked, layouts: Layouts) -> Mapping[str, Callable[[Path], object]]:
    """What a plan's folder keeps besides: the graph, the machine, and the table that the answer is checked against."""
    text = json.dumps(layouts.table.to_json())
    return {"graph.npz": asked.graph.save, "system.toml": asked.system.write, "stages.json": lambda file: file.write_text(text, encoding="utf-8")}


def baselines(asked: DevicesAsked, layouts: Layouts, problem: StageConstruction) -> list[dict[str, object]]:
    """What people would have done, in the same table: seconds of a step, or None with the reason."""

    def row(name: str, table: StageTable, solver: str, one: bool = False) -> dict[str, object]:
        if one:                                                         # without a pipeline: all devices hold all layers
            seconds = table.seconds.copy()
            seconds[:, 1:, :] = np.inf
            seconds[:, :, :-1] = np.inf
            table = StageTable(table.layers, table.configs, table.devices, table.data, seconds, table.held, table.active)
        try:
            question = StageConstruction(table, asked.devices, asked.microbatches, asked.limit, asked.schedule)
            found = solve(question, technique(f"{QUESTION}/{solver}")())
        except (Infeasible, InputError) as error:
            need = float((table.held + table.active)[:, 0, -1].min())
            why = f"a device would hold {size(need)} at least, and has {size(asked.limit)}." if one else error.message
            return {"plan": name, "cost": None, "why": why, "configs": []}
        return {"plan": name, "cost": found.cost, "why": "", "configs": [table.configs[c] for c in found.answer.config]}

    rows = []
    for custom, title in _BY_HAND.items():
        if (part := layouts.only(custom)) is not None:
            rows.append(row(title, part[0], "equal_split", one=custom != "megatron"))
    return [*rows, row("best uniform plan", layouts.table, "equal_split")]


# ---- stages


def placed_devices(asked: DevicesAsked, sizes: list[int]) -> list[tuple[int, ...]]:
    """Ranks of each stage: whole hosts first, then the largest parts of hosts, each within one host."""
    free = [list(range(h * asked.each, (h + 1) * asked.each)) for h in range(asked.hosts)]
    found: list[tuple[int, ...]] = [()] * len(sizes)
    for s in sorted(range(len(sizes)), key=lambda s: (-sizes[s], s)):
        ranks: list[int] = []
        for host in free:
            if len(ranks) < sizes[s] and (len(host) >= sizes[s] - len(ranks) or len(host) == asked.each):
                take = min(len(host), sizes[s] - len(ranks))
                ranks += host[:take]
                del host[:take]
        found[s] = tuple(ranks)
    return found


def told_stages(asked: DevicesAsked, layouts: Layouts, problem: StageConstruction, answer: Stages) -> list[tuple[StagePlan, dict[str, object]]]:
    """Each stage as `run` carries it out, and as its reader sees it."""
    runs = answer.runs(asked.count)
    ranks = placed_devices(asked, [layouts.configs[c].mesh.size for c in answer.config])
    times, bytes_ = problem.times(answer), problem.bytes(answer)
    found = []
    for s, (c, (i, k)) in enumerate(zip(answer.config.tolist(), runs, strict=True)):
        config = layouts.configs[c]
        inside = [n for n in range(len(asked.graph)) if i <= int(asked.layer[n]) <= k]
        plan = stage_plan(asked, config, ranks[s], (i, k), inside)
        row: dict[str, object] = {
            "config": config.label, "devices": list(ranks[s]), "mesh": str(config.mesh), "shape": list(config.mesh.shape), "layers": [i, k],
            "nodes": len(inside), "modules": _modules(asked, inside), "seconds": float(times[s]), "bytes": float(bytes_[s]),
            "bound": config.laid.bound, "tensors": tensors_of(asked, config, (i, k)), "collectives": collectives_of(asked, config, (i, k)),
        }  # fmt: skip
        found.append((plan, row))
    return found


def stage_plan(asked: DevicesAsked, config: Configuration, ranks: tuple[int, ...], layers: tuple[int, int], inside: list[int]) -> StagePlan:
    """A stage of `layers` with the nodes `inside`, as `run` carries it out."""
    made, choice, graph = config.made, config.laid.assignment, asked.graph
    choices, values, stored, state = {}, {}, {}, []
    for n in inside:
        v = made.of_node[n]
        variable, s = made.variables[v], int(choice[v])
        choices[graph.names[n]] = dict(variable.choices[s])
        values[graph.names[n]] = variable.out[s]
    for v, variable in enumerate(made.variables):
        if variable.node < 0 and layers[0] <= variable.layer <= layers[1]:
            s = int(choice[v])
            stored[variable.name] = variable.out[s][0]
            state += [variable.name] if variable.split_state[s] else []
    return StagePlan(ranks, config.mesh, layers, tuple(graph.names[n] for n in inside), choices, stored, values, tuple(state), config.again)


def _modules(asked: DevicesAsked, inside: list[int]) -> list[str]:
    """Outermost module paths, down to the number of a block."""
    paths = []
    for n in inside:
        parts = asked.graph.modules[n].split(".")
        cut = next((i + 1 for i, part in enumerate(parts) if part.isdecimal()), 1)
        paths.append(".".join(parts[:cut]))
    return [path for path in dict.fromkeys(paths) if path]


def tensors_of(asked: DevicesAsked, config: Configuration, layers: tuple[int, int], most: int = 40) -> list[dict[str, object]]:
    """The largest stored tensors of a stage: label, shape, layout, bytes a device."""
    graph, rows = asked.graph, []
    for variable, s in zip(config.made.variables, config.laid.assignment.tolist(), strict=True):
        if variable.node < 0 and layers[0] <= variable.layer <= layers[1] and graph.role[variable.value] in (PARAMETER, INPUT):
            spec: Spec = variable.out[s][0]
            rows.append({"name": variable.name, "shape": list(graph.shape_of(variable.value)), "dtype": graph.dtype[variable.value],
                         "spec": str(spec), "bytes": local_bytes(graph, variable.value, spec, config.mesh), "state": bool(variable.split_state[s]),
                         "parameter": bool(graph.role[variable.value] == PARAMETER)})
    return sorted(rows, key=lambda row: -float(np.prod(row["shape"])))[:most]


def collectives_of(asked: DevicesAsked, config: Configuration, layers: tuple[int, int]) -> list[dict[str, object]]:
    """Forward collectives of a stage by kind and axis: how many, bytes a device's group moves, seconds (of a microbatch)."""
    made, choice, graph = config.made, config.laid.assignment, asked.graph
    totals: dict[tuple[str, str], list[float]] = {}
    for edge in made.edges:
        reader = made.variables[edge.b]
        if not layers[0] <= reader.layer <= layers[1]:
            continue
        source = made.variables[edge.a]
        place = 0 if source.node < 0 else made.rules[source.node].makes.index(edge.value)
        have, want = source.out[choice[edge.a]][place], reader.into[choice[edge.b]][edge.operand]
        for step in reshard(have, want, graph.shape_of(edge.value), itemsize(graph, edge.value), made.mesh) if have != want else ():
            if step.collective not in (KEEP, SLICE):
                total = totals.setdefault((step.collective, step.axis), [0.0, 0.0, 0.0])
                for i, more in enumerate((1.0, step.size, step.seconds)):
                    total[i] += more
    return [{"collective": kind, "axis": axis, "count": int(count), "bytes": moved, "seconds": seconds}
            for (kind, axis), (count, moved, seconds) in sorted(totals.items(), key=lambda item: -item[1][2])]


def _timeline(asked: DevicesAsked, layouts: Layouts, problem: StageConstruction, answer: Stages) -> dict[str, object]:
    """The step played through: seconds, bubble, and the passes of the first microbatches."""
    times = problem.times(answer)
    again = np.array([layouts.configs[c].again for c in answer.config])
    forward = times / (3.0 + again) if asked.train else times
    backward = times - forward
    shown = min(asked.microbatches, _SHOWN)
    active = [layouts.table.active[c, i, k] for c, (i, k) in zip(answer.config, answer.runs(asked.count), strict=True)]
    done = play(forward.tolist(), backward.tolist(), shown, asked.schedule, active=active)
    rows = {schedule: play(forward.tolist(), backward.tolist(), shown, schedule, active=active) for schedule in ("gpipe", "1f1b")}
    if asked.schedule == "1f1b" and shown % len(times) == 0 and len(times) > 1 and min(k - i for i, k in answer.runs(asked.count)) > 0:
        halves = [np.tile(part, 2).tolist() for part in (forward / 2, backward / 2, np.array(active) / 2)]
        rows["interleaved, two chunks"] = play(halves[0], halves[1], shown, "interleaved", chunks=2, active=halves[2])
    compared = [{"schedule": name, "seconds": one.seconds, "bubble": one.bubble, "bytes": one.bytes.tolist()} for name, one in rows.items()]
    return {"microbatches": shown, "seconds": done.seconds, "bubble": done.bubble, "forward": forward.tolist(), "backward": backward.tolist(),
            "schedules": compared}


__all__ = ["baselines", "collectives_of", "document_of", "files_of", "placed_devices", "stage_plan", "tensors_of", "told_stages"]
