"""A plan carried out and compared: outputs with the original program's, what was predicted with what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.graph import VIEW
from fourfold.program import Captured, arguments
from fourfold.runtime.local.compare import Compared, compared
from fourfold.runtime.local.devices import local
from fourfold.runtime.local.executor import ONE, Execution, Local, executions

if TYPE_CHECKING:
    from fourfold.plans import Plan
    from fourfold.runtime.source import Recorded


@dataclass(frozen=True)
class Check:
    """A plan carried out and compared. `equal`: every output is the original's within its tolerance. `predicted` s of the simulator (of one process:
    the sum on its device) beside `execution`'s seconds; `error` their difference as a share of what was measured. `kinds`: per kind of op of tasks
    that ran one by one (op, tasks, predicted, measured s); `regions` likewise. `eager`: the whole plan with every region run eagerly, in turns with
    the other, and `ratio` of the chosen engines to it (median, low, high). `unfused`: the prediction for that, in which every op is dispatched alone.
    """

    equal: bool
    outputs: tuple[Compared, ...]
    predicted: float
    execution: Execution
    eager: Execution
    ratio: tuple[float, float, float]
    kinds: tuple[Mapping[str, Any], ...]
    regions: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    unfused: float = 0.0

    @property
    def error(self) -> float:
        return self.predicted / self.execution.seconds - 1.0

    def to_json(self) -> dict[str, object]:
        return {"equal": self.equal, "predicted": self.predicted, "measured": self.execution.seconds, "error": self.error,
                "eager": {"seconds": self.eager.seconds, "low": self.eager.low, "high": self.eager.high,
                          "predicted": self.unfused or self.predicted, "error": (self.unfused or self.predicted) / self.eager.seconds - 1.0},
                "ratio": dict(zip(("median", "low", "high"), self.ratio, strict=True)),
                "outputs": [{"name": o.name, "dtype": o.dtype, "absolute": o.absolute, "relative": o.relative, "tolerance": o.tolerance,
                             "equal": o.equal} for o in self.outputs],
                "kinds": [dict(row) for row in self.kinds], "regions": [dict(row) for row in self.regions], "notes": list(self.notes),
                "execution": self.execution.to_json()}


def check(plan: Plan | str | Path, *, model: object = None, inputs: object = None, repeat: int = 9, engines: Mapping[str, str] | str | None = None,
          folder: Path | None = None, trust: Iterable[str] = ()) -> Check:
    """Carry out a plan (or the one in a folder) and compare: outputs with the original program's, node by node; what was predicted with what was
    measured.

    The model is captured again from the plan's own reference, or is `model` (all that can be captured, or what was captured). Raises as `execute`
    does, and ArtefactError where the model is no longer the one that was planned for, or names code of a package that is not in `trust`.
    """
    plan, captured = opened(plan, model, inputs, trust)
    given = inputs_of(captured) if inputs is None or isinstance(inputs, str | Path) else inputs
    first = Local(plan, captured.program, given, engines=engines)
    plain = all(engine == "eager" for engine in first.engines.values())
    ways = [(engines, None), *([] if plain else [("eager", first.placement)])]
    done, slow = (executions(plan, captured.program, given, ways, repeat=repeat, folder=folder) * 2)[:2]
    original, values = original_of(captured, given), flat(plan, captured, done.outputs)
    names = paths(plan, captured)
    outputs = tuple(compared(names.get(v) or plan.graph.labels[v] or f"output {k}", values[v], original[v]) for k, v in enumerate(original))
    notes, predicted = [*done.notes], float(plan.timeline().makespan)
    if done.placement == ONE:
        home = done.regions[0].device
        predicted = float(plan.tasks.seconds[:, home].sum())
        notes.append(f"It ran in one process; the prediction is that of {plan.system.devices[home].name} alone, of the plan as placed it is "
                     f"{1e3 * plan.timeline().makespan:.3f} ms.")
    unfused = _unfused(plan, done)
    if plain and unfused > predicted * 1.01:
        notes.append(f"Eager regions run op by op: the plan's groups, each in one go, would take {1e3 * predicted:.3f} ms.")
        predicted = unfused
    running = np.unique(plan.graph.kind[plan.graph.fusion != VIEW])
    if random := sorted({plan.graph.kinds[k] for k in running.tolist() if _draws(plan.graph.kinds[k])}):
        notes.append(f"The program draws random numbers ({', '.join(random)}), so its outputs need not repeat.")
    return Check(all(o.equal for o in outputs), outputs, predicted, done, slow, _ratio(done.runs, slow.runs), _kinds(plan, slow), _regions(done),
                 tuple(notes), unfused)


def _unfused(plan: Plan, done: Execution) -> float:
    """s predicted for the same placement with every op dispatched alone, which is how regions run eagerly."""
    alone = plan.replace(group=np.full(len(plan.graph), -1))
    return float(alone.tasks.seconds[:, done.regions[0].device].sum() if done.placement == ONE else alone.timeline().makespan)


def opened(plan: Plan | str | Path, model: object = None, inputs: object = None, trust: Iterable[str] = ()) -> tuple[Plan, Captured]:
    """The plan, and its program captured again (`trust`: see `runtime.source.recapture`). The machine is compared first, since capturing takes
    long."""
    from fourfold.plans import Plan as Plans
    from fourfold.runtime.source import recapture

    found = plan if isinstance(plan, Plans) else Plans.load(plan)
    local(found)
    return found, model if isinstance(model, Captured) else recapture(found, model, inputs, trust)


def inputs_of(captured: Captured, seed: int = 0) -> object:
    """What the program was captured with; an .onnx file captured by its shapes alone gets normal numbers, and zeros where it takes integers."""
    if captured.inputs is not None or captured.program.dialect != "onnx":
        return captured.inputs
    program: Any = captured.program
    dice, found = np.random.default_rng(seed), {}
    for name in program.inputs:
        shape, dtype = program.spec[name]
        found[name] = dice.standard_normal(shape).astype(dtype) if dtype.startswith("float") else np.zeros(shape, dtype)
    return found


def original_of(captured: Captured, inputs: object) -> dict[int, object]:
    """Output values of the program run node by node, by its own `step`."""
    import torch

    with torch.no_grad():
        kept = replace(captured, program=_Keeping(captured.program, captured.graph.outputs.tolist()))
        args, kwargs = arguments(inputs)
        return kept.run(*args, **kwargs)


class _Keeping:
    """A program whose answer is its outputs by value."""

    def __init__(self, program: Any, outputs: Sequence[int]) -> None:
        self.weights, self.feed, self.step, self.outputs = program.weights, program.feed, program.step, outputs

    def collect(self, values: Mapping[int, object]) -> dict[int, object]:
        return {v: values[v] for v in self.outputs}


def flat(plan: Plan, captured: Captured, outputs: object) -> dict[int, object]:
    """Outputs by value, of an answer as the model returns it."""
    marks = {v: _Mark(v) for v in plan.graph.outputs.tolist()}
    found: dict[int, object] = {}
    _walk(captured.program.collect(marks), outputs, found)
    return found


def paths(plan: Recorded, captured: Captured) -> dict[int, str]:
    """Where each output stands in the model's answer: "logits", "boxes.0"; of an answer that is one tensor, nothing."""
    found: dict[int, str] = {}

    def walk(form: object, path: tuple[str, ...]) -> None:
        if isinstance(form, _Mark):
            found.setdefault(form.value, ".".join(path))
        elif isinstance(form, Mapping):
            for key, part in form.items():
                walk(part, (*path, str(key)))
        elif isinstance(form, list | tuple):
            for k, part in enumerate(form):
                walk(part, (*path, str(k)))
        elif hasattr(form, "__dict__"):
            for key, part in vars(form).items():
                walk(part, (*path, str(key)))

    walk(captured.program.collect({v: _Mark(v) for v in plan.graph.outputs.tolist()}), ())
    return found


@dataclass(frozen=True)
class _Mark:
    value: int


def _walk(form: object, given: Any, found: dict[int, object]) -> None:
    if isinstance(form, _Mark):
        found[form.value] = given
    elif isinstance(form, Mapping):
        for key, part in form.items():
            _walk(part, given[key], found)
    elif isinstance(form, list | tuple):
        for part, one in zip(form, given, strict=True):
            _walk(part, one, found)
    elif hasattr(form, "__dict__"):
        for key, part in vars(form).items():
            _walk(part, getattr(given, key), found)


def _draws(kind: str) -> bool:
    return any(word in kind.lower() for word in ("dropout", "rand", "bernoulli", "multinomial", "normal_"))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    from fourfold.measure.race import median_ratio

    count = min(len(ours), len(theirs))
    found = median_ratio(np.array(ours[:count]), np.array(theirs[:count]))
    return found.value, found.low, found.high


def _kinds(plan: Plan, done: Execution) -> tuple[dict[str, object], ...]:
    """Per kind of op (of a fused task: its kinds, views aside), tasks that were timed alone: number, predicted and measured s; dearest first."""
    graph, place = plan.graph, plan.of_tasks[0]
    alone = {t for r in done.regions if r.engine == "eager" for t in r.tasks}
    parts: dict[int, list[str]] = {}
    for n, t in enumerate(np.asarray(plan.tasks.group).tolist()):
        names = parts.setdefault(t, [])
        name = graph.kinds[graph.kind[n]].split(".")[-1]
        if graph.fusion[n] != VIEW and name not in names:
            names.append(name)
    table: dict[str, list[float]] = {}
    for t in sorted(alone):
        names = parts[t] or ["view"]
        row = table.setdefault("+".join(names[:4]) + ("+…" if len(names) > 4 else ""), [0, 0.0, 0.0])
        row[0] += 1
        row[1] += float(plan.tasks.seconds[t, place[t]])
        row[2] += float(np.nan_to_num(done.finish[t] - done.start[t]))
    return tuple({"op": op, "tasks": int(n), "predicted": a, "measured": b} for op, (n, a, b) in sorted(table.items(), key=lambda one: -one[1][2]))


def _regions(done: Execution) -> tuple[dict[str, object], ...]:
    return tuple({"region": r.number, "device": r.device, "engine": r.engine, "tasks": len(r.tasks), "predicted": r.predicted, "measured": r.seconds}
                 for r in done.regions)
