"""A sentence for each big decision of a plan: what it saves and what it costs, by simulating the plan without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fourfold.graph import VIEW
from fourfold.report import format
from fourfold.report.ablation import PARTS, Simulated, SimulatedPlan
from fourfold.report.modules import Box, label, members, named, span, tree

if TYPE_CHECKING:
    from fourfold.decisions.schedule.problem import Answer, Schedule

_TRIED = 24                                                             # moved modules, and kinds of fused groups, that are taken back
_TOLD = 10                                                              # of which so many are told
_FUSIONS = 4                                                            # for fused groups at least, where there are so many
_LARGE = 20_000                                                         # nodes of a graph whose tasks take their time to make
_NAMED = 3                                                              # decisions of the same effect that are named
_SCATTERED = 4                                                          # more parts than this of one module that go to one device are one decision
_LEAST = 0.001                                                          # share of the cost below which an effect is not worth a sentence


@dataclass(frozen=True)
class Decision:
    """`what` was decided (the beginning of its sentence), the plan `without` it (None: nothing to compare with), what else is to be `noted`, and
    `where`, the name by which a sentence of another decision with the same effect calls this one.
    """

    what: str
    without: SimulatedPlan | None
    noted: str = ""
    where: str = ""


def sentences(problem: Schedule, answer: Answer, base: Answer | None = None) -> list[str]:
    """The big decisions of `answer` against `base` (the problem's baseline where None): those of all ops first, then those that save most.

    Each is found by taking that decision back, all else as in the plan, and simulating again: a module is put where `base` has it, fused ops run one
    after the other, a device takes its ops in `base`'s order. Effects do not add up: decisions lean on one another. About a dozen sentences, from 60
    simulations at most.
    """
    plan = Simulated(problem, answer)
    if not np.isfinite(plan.plan.cost):
        return []
    base = _alike(problem, answer, problem.baseline() if base is None else base)
    whole = [*_placement(plan, base), *_fusion(plan), *_order(plan, base)]
    moves, fusions = _telling(plan, _moves(plan, base)), _telling(plan, _fusions(plan))
    moves = moves[:_TOLD - min(len(fusions), _FUSIONS)]
    told = sorted([*moves, *fusions[:_TOLD - len(moves)]], key=lambda alike: -_gain(plan, alike[0]))
    return [f"{one.what}{_effect(plan, one)}." for one in whole] + [f"{one.what}{_effect(plan, one)}.{_likewise(rest)}" for one, *rest in told]


def _telling(plan: Simulated, decisions: Iterable[Decision]) -> list[list[Decision]]:
    """Those whose effect is worth a sentence, those of the same effect together, those that save most first."""
    worth = [one for one in decisions if abs(_gain(plan, one)) > _LEAST * plan.plan.cost or one.noted]
    same: dict[str, list[Decision]] = {}
    for one in sorted(worth, key=lambda one: -_gain(plan, one)):
        same.setdefault(_effect(plan, one), []).append(one)
    return list(same.values())


def _alike(problem: Schedule, answer: Answer, base: Answer) -> Answer:
    """`base`, where it has all on one device: on that of its equals that holds most of the plan, so that "moved" means away from the others."""
    home = int(base.place[0])
    if (base.place != home).any():
        return base
    devices = problem.system.devices
    load = np.bincount(answer.place, weights=problem.seconds.min(axis=1), minlength=len(devices))
    equal = [d for d, device in enumerate(devices) if dataclasses.replace(device, name="") == dataclasses.replace(devices[home], name="")]
    return dataclasses.replace(base, place=np.full(len(base), max(equal, key=lambda d: load[d]), np.int16))


def _gain(plan: Simulated, one: Decision) -> float:
    return one.without.cost - plan.plan.cost if one.without else 0.0


def _likewise(rest: list[Decision]) -> str:
    """" Likewise layer1, layer2 and 3 more."."""
    names = [one.where for one in rest]
    if len(names) > _NAMED + 1:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    return f" Likewise {_listed(names)}." if names else ""


# ---- placement

def _placement(plan: Simulated, base: Answer) -> Iterator[Decision]:
    problem, answer = plan.problem, plan.answer
    moved = np.flatnonzero(answer.place != base.place)
    devices = len(np.unique(answer.place))
    if not len(moved):
        used = np.unique(answer.place)
        if len(used) == 1 and len(problem.system) > 1:
            yield Decision(f"Everything stays on {problem.system.devices[int(used[0])].name}", None)
        return
    back = _put_back(plan, _tied(plan, moved), base)
    if back is not None:
        home = np.unique(base.place)
        one = f" (all on one, here {problem.system.devices[int(home[0])].name})" if len(home) == 1 else ""
        many = f"{len(moved):,} of {len(answer.place):,} ops run elsewhere than by default{one}"
        yield Decision(f"{many}, on {devices} device{'s' * (devices > 1)} in all", *back)


def _moves(plan: Simulated, base: Answer) -> Iterator[Decision]:
    """The modules that were moved, the heaviest `_TRIED` of them."""
    system, seconds = plan.problem.system, plan.problem.seconds
    place = plan.answer.place
    found = _units(tree(plan.problem.graph), place, base.place)
    weight = np.where(np.isfinite(seconds[np.arange(len(place)), place]), seconds[np.arange(len(place)), place], 0.0)
    found.sort(key=lambda unit: -float(weight[unit[1]].sum()))
    seen: set[bytes] = set()
    for name, nodes, device in found[:_TRIED]:
        tied = _tied(plan, np.array(nodes))
        if len(tied) == int((place != base.place).sum()) or tied.tobytes() in seen:
            continue                                                    # said already, of the whole or of what is colocated
        seen.add(tied.tobytes())
        back = _put_back(plan, tied, base)
        if back is not None:
            yield Decision(f"{name} moved to {system.devices[device].name}", *back, where=f"{name} on {system.devices[device].name}")


Unit = tuple[str, list[int], int]                                       # name, nodes, device


def _units(box: Box, place: np.ndarray, base: np.ndarray) -> list[Unit]:
    """What moved as one: the largest modules that moved to one device with all they hold, neighbours in one; else some ops of a module."""
    nodes = box.all()
    went = set(place[nodes].tolist())
    if len(went) == 1 and bool((place[nodes] != base[nodes]).all()):
        return [(named(box.path) or "everything", nodes, went.pop())]
    found: list[Unit] = []
    run: list[Unit] = []

    def close() -> None:
        if run:
            found.append((span(run[0][0], run[-1][0], len(run)), [n for unit in run for n in unit[1]], run[0][2]))
            run.clear()

    for child in box.children:
        units = _units(child, place, base)
        if len(units) == 1 and units[0][0] == named(child.path):
            if run and run[0][2] != units[0][2]:
                close()
            run.append(units[0])
        else:
            close()
            found += units
    close()
    own = [n for n in box.ops if place[n] != base[n]]
    for device in sorted({int(place[n]) for n in own}):
        part = [n for n in own if place[n] == device]
        found.append((_some(len(part), len(nodes), box), part, device))
    for device in sorted({unit[2] for unit in found}):
        same = [unit for unit in found if unit[2] == device]
        if len(same) > _SCATTERED and box.path:
            part = sorted(n for unit in same for n in unit[1])
            found = [unit for unit in found if unit[2] != device] + [(_spread(part, len(nodes), box), part, device)]
    return found


def _some(part: int, whole: int, box: Box) -> str:
    where = f" of {named(box.path)}" if box.path else ""
    return f"{part:,} of the {whole:,} ops{where}" if part < whole else named(box.path) or "everything"


def _spread(part: list[int], whole: int, box: Box) -> str:
    """What a scattered part of a module is called: by the run of its modules that holds all of it, where that is not the whole of it."""
    inside = set(part)
    touched = [k for k, child in enumerate(box.children) if not inside.isdisjoint(child.all())]
    if not inside.isdisjoint(box.ops) or len(touched) == len(box.children) or touched[-1] - touched[0] + 1 != len(touched):
        return _some(len(part), whole, box)
    first, last = box.children[touched[0]], box.children[touched[-1]]
    return f"{len(part):,} ops of {span(named(first.path), named(last.path), len(touched))}"


def _tied(plan: Simulated, nodes: np.ndarray) -> np.ndarray:
    """These nodes and what must stay with them: ops colocated with them or fused into their tasks, ascending."""
    group, classes = plan.given[0].group, plan.problem.graph.colocation
    while True:
        tied = np.unique(classes[nodes])
        more = np.flatnonzero(np.isin(classes, tied[tied >= 0]) | np.isin(group, group[nodes]))
        if len(more) == len(nodes):
            return more
        nodes = more


def _put_back(plan: Simulated, nodes: np.ndarray, base: Answer) -> tuple[SimulatedPlan, str] | None:
    """The plan with these nodes where `base` has them, None where they cannot run there; with it a note where memory would not hold that."""
    problem, (tasks, place, _, _) = plan.problem, plan.given
    where = place.copy()
    where[tasks.group[nodes]] = base.place[nodes]
    if np.isinf(tasks.seconds[np.arange(len(tasks)), where]).any():
        return None
    without = plan(place=where)
    worst = int(np.argmax(without.over))
    note = ""
    if problem.bounded and without.over[worst] > plan.plan.over[worst]:
        note = f"without it {problem.system.devices[worst].name} would hold {format.size(float(without.over[worst]))} more than it may"
    return without, note


# ---- fusion

def _fusion(plan: Simulated) -> Iterator[Decision]:
    tasks = plan.given[0]
    size = np.bincount(tasks.group, minlength=len(tasks))
    fused = size > 1
    if not fused.any():
        return
    what = f"{int(size[fused].sum()):,} of {len(tasks.group):,} ops fused into {int(fused.sum()):,} group{'s' * int(fused.sum() > 1)}"
    yield _unfused(plan, fused, f"{what}{_spared(plan, fused)}")


def _fusions(plan: Simulated) -> Iterator[Decision]:
    """Fused groups, alike ones (same ops that spare the same time) together, those first that spare most."""
    tasks, place, _, _ = plan.given
    graph = plan.problem.graph
    at = np.arange(len(tasks)), place
    spared = plan.alone[at] - tasks.seconds[at]
    nodes = members(tasks.group, len(tasks))
    alike: dict[tuple[str, str], list[int]] = {}
    for t in np.flatnonzero(np.bincount(tasks.group, minlength=len(tasks)) > 1).tolist():
        alike.setdefault((label(graph, nodes[t]), f"{spared[t]:.3g}"), []).append(t)
    if len(alike) < 2 or plan.problem.objective == "memory" and len(graph) > _LARGE:
        return                                                          # said of all fusion already; or each would take a second
    several = len(np.unique(place)) > 1
    for (name, _), same in sorted(alike.items(), key=lambda item: -float(spared[item[1]].sum()))[:_TRIED // 2]:
        chosen = np.zeros(len(tasks), bool)
        chosen[same] = True
        first = nodes[same[0]]
        devices = np.unique(place[same])
        on = f" on {plan.problem.system.devices[int(devices[0])].name}" * (several and len(devices) == 1)
        where = named(graph.modules[first[0]] or graph.names[first[0]])
        more = f" and {len(same) - 1:,} group{'s' * (len(same) > 2)} like it" if len(same) > 1 else ""
        what = f"{len(first)} ops of {where} ({name}){on}{more} run as one{' each' * bool(more)}{_spared(plan, chosen)}"
        yield _unfused(plan, chosen, what, f"{where} ({name}){on}")


def _unfused(plan: Simulated, chosen: np.ndarray, what: str, where: str = "") -> Decision:
    """Those tasks' ops one after the other instead; for memory each a task of its own, so that what passes between them is held."""
    if plan.problem.objective == "memory":
        answer, task = plan.answer, plan.given[0].group
        apart = np.where(chosen[task], len(task) + np.arange(len(task)), task)
        return Decision(what, where=where, without=Simulated(plan.problem, dataclasses.replace(answer, group=apart.astype(np.int32))).plan)
    return Decision(what, where=where, without=plan(seconds=np.where(chosen[:, None], plan.alone, plan.given[0].seconds)))


def _spared(plan: Simulated, chosen: np.ndarray) -> str:
    """", 12 MB of memory traffic and 6 launches fewer": all but one launch each; values that nobody outside reads are not written, those made or read
    by an op before are not read again. "" where neither is spared.
    """
    graph, task = plan.problem.graph, plan.given[0].group
    working = graph.fusion != VIEW
    launches = np.bincount(task[working], minlength=len(chosen))
    reader = np.repeat(np.arange(len(graph)), np.diff(graph.in_ptr))
    value, inside = graph.in_val, chosen[task[reader]] & working[reader]
    maker = graph.producer[value]
    within = inside & (maker >= 0) & (task[maker] == task[reader])
    again = inside & ~within
    order = np.flatnonzero(again)[np.lexsort((value[again], task[reader[again]]))]
    twice = order[1:][(value[order][1:] == value[order][:-1]) & (task[reader[order]][1:] == task[reader[order]][:-1])]
    left = np.zeros(len(graph.producer), bool)                           # read elsewhere, or returned
    elsewhere = (maker >= 0) & (task[np.maximum(maker, 0)] != task[reader])
    left[graph.alias[value[elsewhere]]] = left[value[elsewhere]] = True
    left[graph.alias[graph.outputs]] = left[graph.outputs] = True
    made = np.flatnonzero((graph.producer >= 0) & ~left & (graph.alias == np.arange(len(graph.alias))))
    unwritten = made[chosen[task[graph.producer[made]]] & working[graph.producer[made]]]
    moved = int(graph.size[value[within]].sum() + graph.size[value[twice]].sum() + graph.size[unwritten].sum())
    count = int(np.maximum(launches[chosen] - 1, 0).sum())
    spared = [f"{format.size(moved)} of memory traffic"] * (moved > 0) + [f"{count:,} launch{'es' * (count != 1)}"] * (count > 0)
    return f", {_listed(spared)} fewer" if spared else ""


# ---- order

def _order(plan: Simulated, base: Answer) -> Iterator[Decision]:
    """The order of all devices, and of each where that says more."""
    tasks, place, priority, _ = plan.given
    before = np.full(len(tasks), -np.inf)
    np.maximum.at(before, tasks.group, base.priority)
    whole = plan(priority=before)
    if whole.cost == plan.plan.cost:
        return
    yield Decision("Ops taken in the plan's order instead of the default's", whole)
    used = np.unique(place).tolist()
    for d in used if len(used) > 1 else []:
        without = plan(priority=np.where(place == d, before, priority))
        if abs(without.cost - plan.plan.cost) > _LEAST * plan.plan.cost and without.cost != whole.cost:
            yield Decision(f"On {plan.problem.system.devices[d].name} alone the plan's order", without)


# ---- words

def _effect(plan: Simulated, one: Decision) -> str:
    """": saves 2.1 ms of queueing, costs 0.3 ms of transfer, 1.8 ms less in all (…)"; nothing where there is nothing to compare with."""
    if one.without is None:
        return ""
    problem, gain = plan.problem, _gain(plan, one)
    noted = f" ({one.noted})" if one.noted else ""
    if problem.objective != "latency":
        return f": {_amount(problem, gain)}{noted}"
    if len(np.unique(plan.given[1])) == 1 and not (one.without.parts[2:] + plan.plan.parts[2:]).any():
        return f": {_amount(problem, gain)}{noted}"                      # on one device all that waits waits for what computes
    change = one.without.parts - plan.plan.parts
    most = float(np.abs(change).max())
    telling = [(name, float(value)) for name, value in zip(PARTS, change, strict=True) if abs(value) > 0.05 * most and abs(value) > 1e-9]
    saved = [f"{format.span(value)} of {name}" for name, value in telling if value > 0]
    spent = [f"{format.span(-value)} of {name}" for name, value in telling if value < 0]
    told = [f"saves {_listed(saved)}"] * bool(saved) + [f"costs {_listed(spent)}"] * bool(spent)
    if len(telling) > 1:
        told.append(f"{format.span(abs(gain))} {'less' if gain >= 0 else 'more'} in all")
    return f": {', '.join(told) or 'makes no difference'}{noted}"


def _amount(problem: Schedule, gain: float) -> str:
    """"saves 1.2 mJ", "costs 3 MB"."""
    size = abs(gain)
    if size == 0:
        return "makes no difference"
    text = {"latency": format.span, "throughput": format.span, "memory": format.size}.get(problem.objective, _joules)(size)
    where = {"throughput": " on the busiest device or link", "memory": " on the fullest device"}.get(problem.objective, "")
    return f"{'saves' if gain > 0 else 'costs'} {text}{where}"


def _joules(value: float) -> str:
    return format.joules(value)


def _listed(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
