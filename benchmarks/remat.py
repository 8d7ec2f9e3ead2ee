"""Order, recomputation and offsets under a limit: what a lower limit costs on training graphs of seven models, beside torch's planners.

    python benchmarks/remat.py [--models encoder,unet] [--evaluations 400000] [--seeds 3] [--repeat 15] [--quick]

Peers, each as a sequence of the same captured graph, laid out by the same packer and executed by the same arena: save everything, recompute
everything, √n segments, each block (as torch.utils.checkpoint), each block with the results of contractions saved (torch's selective policy), and
torch's min-cut partitioner at several values of its activation_memory_budget. `ours` is the default technique (`rematerialise/descent`) at the peer's
own peak.

Seconds are measured op by op on this machine and planned with; where a program cannot run in the arena they are the roofline's. Measured overheads
are CPU seconds of whole runs in the arena, interleaved, against saving everything; with 90 % bootstrap intervals. Peaks are of the arena: planned,
and touched while running. Every plan passed the problem's validator.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import branchy_models
import numpy as np
import provenance
from training_models import MODELS, made

from fourfold.decisions.rematerialise import descent, recompute_all, reorder
from fourfold.decisions.rematerialise._lives import INVALID, measure, own_order
from fourfold.decisions.rematerialise._plans import PricedPlan, candidate
from fourfold.decisions.rematerialise._segments import blocks, segmented
from fourfold.decisions.rematerialise.problem import Rematerialise
from fourfold.errors import FourfoldError
from fourfold.frontends.capture import capture
from fourfold.graph import BACKWARD, CONTRACTION
from fourfold.problem import Budget, solve

HERE = Path(__file__).parent
SHARES = (0.9, 0.75, 0.5, 0.35, 0.25)
_LONGEST = 4.0                                                          # plans of more than so many times the seconds are not executed
BUDGETS = (1.0, 0.7, 0.5, 0.3, 0.1, 0.05)


# ---- peers

def min_cut(captured: Any, problem: Rematerialise, budget: float) -> np.ndarray:
    """The sequence of core nodes that torch's partitioner makes of the captured program: its forward graph, then its backward graph, in its order.

    The partitioner wants inputs called primals and tangents: the gradient of the loss becomes one.
    """
    import torch
    from torch._functorch import config, partitioners

    program, number = captured.program, {node.name: i for i, node in enumerate(captured.program.nodes)}
    joint, seed = _joint(program, captured.graph)
    with config.patch(activation_memory_budget=budget, cse=False), torch.no_grad():
        forward, backward = partitioners.min_cut_rematerialization_partition(joint, None, num_fwd_outputs=1)
    sequence = [number[node.name] for part in (forward, backward) for node in part.graph.nodes if node.op == "call_function" and node.name in number]
    at = next((i for i, n in enumerate(sequence) if captured.graph.phase[n] == BACKWARD), len(sequence))
    return _completed(problem, problem.collapse([*sequence[:at], number[seed], *sequence[at:]]))


def _joint(program: Any, graph: Any) -> tuple[Any, str]:
    """(a copy of the fx module with primals and a tangent, name of the node that the tangent stands for)."""
    import torch

    first = next(node for i, node in enumerate(program.nodes) if graph.phase[i] == BACKWARD)
    new, env, count = torch.fx.Graph(), {}, 0
    for node in program.module.graph.nodes:
        if node.op == "placeholder":
            count += 1
            env[node] = new.placeholder(f"primals_{count}")
            env[node].meta = dict(node.meta)
    env[first] = new.placeholder("tangents_1")
    env[first].meta = dict(first.meta)
    for node in program.module.graph.nodes:
        if node not in env:
            env[node] = new.node_copy(node, lambda n: env[n])
            env[node].meta = {k: v for k, v in node.meta.items() if k in ("val", "tensor_meta", "desc")}
    return torch.fx.GraphModule(program.module, new), first.name


def _completed(problem: Rematerialise, sequence: np.ndarray) -> np.ndarray:
    """What a planner left out because nobody reads it, put where its inputs are there."""
    core, steps = problem.core, sequence.tolist()
    for m in sorted(set(range(len(core.node))) - set(steps)):
        makers = {int(core.producer[v]) for v in core.in_val[core.in_ptr[m] : core.in_ptr[m + 1]].tolist()}
        steps.insert(max((steps.index(p) for p in makers), default=-1) + 1, m)
    return np.array(steps, np.int32)


def peers(captured: Any, problem: Rematerialise) -> Iterator[tuple[str, np.ndarray | str]]:
    """(name, sequence of core nodes, or why there is none)."""
    core = problem.core
    _, count = blocks(problem)
    kept = problem.graph.fusion[core.node][core.producer] == CONTRACTION
    yield "√n segments", segmented(problem, int(np.ceil(np.sqrt(count))))
    yield "each block", segmented(problem, count)
    yield "each block, contractions saved", segmented(problem, count, kept)
    solver = recompute_all.RecomputeAll()
    why = solver.declines(problem)
    yield "recompute all", why or problem.collapse(solver.solve(problem.within(None), Budget(60, 1)).answer.sequence)
    for budget in BUDGETS:
        try:
            yield f"min-cut {budget:g}", min_cut(captured, problem, budget)
        except Exception as error:  # noqa: BLE001 — torch's own trouble is a result here
            yield f"min-cut {budget:g}", f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


# ---- one model

def flops(problem: Rematerialise, sequence: np.ndarray) -> float:
    return float(problem.graph.flops[problem.core.node[sequence]].sum())


def row(problem: Rematerialise, one: PricedPlan, top: int) -> dict[str, Any]:
    """A plan as plain data; shares are of saving everything."""
    if wrong := problem.violations(one.answer):
        raise SystemExit(f"a plan is not valid: {wrong[0]}")
    return {"peak": one.peak, "share": one.peak / top, "overhead": one.price / problem.price.sum() - 1,
            "flops": flops(problem, one.sequence) / max(1.0, problem.graph.flops.sum()) - 1, "repeated": problem.repeated(one.answer)}


def at_most(problem: Rematerialise, way: list[descent.Stage], limit: float, args: argparse.Namespace, seed: int) -> PricedPlan | None:
    """What `rematerialise/descent` answers for a limit: the first stage that fits, polished."""
    stage = next((one for one in way if one.plan.peak <= limit), None)
    if stage is None or stage is way[0]:
        return None if stage is None else stage.plan
    return descent.polish(problem, stage, Budget(3600, args.evaluations // 2), seed)


def planned(captured: Any, problem: Rematerialise, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, PricedPlan]]:
    """(figures of a model, plans to execute by name)."""
    whole, core = problem.within(None), problem.core
    began = time.process_time()
    ways = [list(descent.descend(whole, Budget(3600, args.evaluations), seed)) for seed in range(args.seeds)]
    took = (time.process_time() - began) / args.seeds
    base, top = ways[0][0].plan, ways[0][0].plan.peak
    order = solve(whole, reorder.Reorder(), Budget(60, min(args.evaluations, 60_000)))
    falls = all(b.plan.peak <= a.plan.peak for way in ways for a, b in zip(way, way[1:], strict=False))
    found: dict[str, Any] = {"nodes": len(problem.graph), "computing": len(core.node), "stored": top, "least": problem.least_peak(),
                             "order": whole.peak(order.answer) / top, "smallest": [min(p.plan.peak for p in way) / top for way in ways],
                             "monotone": falls, "seconds": took, "limits": [], "peers": []}
    plans = {"stored": base}
    for share in SHARES:
        picked = [one for seed, way in enumerate(ways) if (one := at_most(whole, way, share * top, args, seed)) is not None]
        if len(picked) == args.seeds:
            plans[f"ours {share:g}"] = picked[0]
            rows = [row(whole, one, top) for one in picked]
            floor = (whole.within(int(share * top)).bound() or 0.0) / whole.price.sum() - 1
            found["limits"].append({"limit": share, "bound": floor, **rows[0],
                                    "overheads": [r["overhead"] for r in rows], "flops_all": [r["flops"] for r in rows]})
    for name, sequence in peers(captured, whole):
        if isinstance(sequence, str) or measure(core, sequence)[0] == INVALID:
            found["peers"].append({"name": name, "why": sequence if isinstance(sequence, str) else "it reads what it has not made"})
            continue
        one = candidate(whole, sequence)
        ours = [p for seed, way in enumerate(ways) if (p := at_most(whole, way, one.peak, args, seed)) is not None]
        plans[name] = one
        if ours:
            plans[f"ours at {name}"] = ours[0]
        found["peers"].append({"name": name, **row(whole, one, top), "ours": [p.price / whole.price.sum() - 1 for p in ours]})
    return found, plans


# ---- execution

def measured(captured: Any, problem: Rematerialise, dry: Any, inputs: Any, plans: dict[str, PricedPlan], repeat: int) -> dict[str, Any]:
    """Per plan: CPU seconds of runs in the arena, rounds interleaved in random order; overhead against saving everything, paired by round, with its
    interval; bytes planned and touched; whether the answers are bit for bit those of the plan that saves everything.
    """
    from fourfold.measure import bootstrap
    from fourfold.runtime.arena.execute import ProgramArena
    from fourfold.runtime.arena.layout import laid_out
    from fourfold.runtime.arena.ready import ready

    program, dice = ready(captured), np.random.default_rng(0)
    layouts = {name: laid_out(problem.graph, one.answer.sequence, one.answer.offset) for name, one in plans.items()}
    found: dict[str, Any] = {}
    answers: list[Any] = []
    for name, layout in layouts.items():                               # once, poisoned: bytes touched, and what it answers
        arena = ProgramArena(program, inputs, layout, dry, poison=True)
        outputs = {v: out.clone() for v, out in arena.run().outputs.items()}
        answers = answers or [outputs]
        equal = all(bool((out == answers[0][v]).all()) for v, out in outputs.items())
        found[name] = {"planned": plans[name].peak, "touched": int(ProgramArena(program, inputs, layout, dry).touched()), "equal": equal}
    arenas = {name: ProgramArena(program, inputs, layout, dry) for name, layout in layouts.items()}
    seconds = np.zeros((repeat, len(arenas)))
    for turn in range(-1, repeat):
        for k in dice.permutation(len(arenas)).tolist():
            took = list(arenas.values())[k].run(time.process_time).seconds
            if turn >= 0:
                seconds[turn, k] = took
    for k, name in enumerate(arenas):
        ratio = seconds[:, k] / seconds[:, 0] - 1
        low, high = bootstrap.interval(bootstrap.resampled(bootstrap.medians, ratio))
        found[name] |= {"seconds": float(np.median(seconds[:, k])), "overhead": float(np.median(ratio)), "low": low, "high": high}
    return found


def orders(evaluations: int) -> dict[str, Any]:
    """Per branchy model: bytes alive at most in the captured order (no offsets can take less there), and the arena of the best order found."""
    found = {}
    for name in branchy_models.MODELS:
        module, inputs = branchy_models.made(name)
        problem = Rematerialise.of(capture(module, inputs).graph)
        fixed = measure(problem.core, own_order(problem.core))[0]
        one = solve(problem, reorder.Reorder(), Budget(600, min(evaluations, 60_000)))
        found[name] = {"computing": len(problem.core.node), "fixed": fixed, "arena": problem.peak(one.answer), "least": problem.least_peak()}
        print(f"{name}: order and offsets {found[name]['arena'] / fixed:.3f} of the captured order's bound", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--evaluations", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--modelled", action="store_true", help="seconds by the roofline; nothing is executed")
    parser.add_argument("--quick", action="store_true", help="one model, few evaluations; nothing is published")
    args = parser.parse_args()
    if args.quick:
        args.models, args.evaluations, args.seeds, args.repeat = "unet", 20_000, 1, 2
    results: dict[str, Any] = {}
    branchy = {} if args.quick else orders(args.evaluations)
    for name in args.models.split(","):
        module, inputs = made(name)
        captured = capture(module, inputs, train=True)
        problem, dry = Rematerialise.of(captured.graph), None
        if not args.modelled:
            try:
                problem, dry = timed(captured, inputs)
            except (FourfoldError, ImportError) as error:
                print(f"{name}: seconds by the roofline, since {str(error).splitlines()[0]}")
        results[name], plans = planned(captured, problem, args)
        results[name]["priced"] = "roofline" if dry is None else "measured"
        if dry is not None:
            run = {plan: one for plan, one in plans.items() if one.price < _LONGEST * problem.price.sum()}
            results[name]["executed"] = measured(captured, problem, dry, inputs, run, args.repeat)
        tell(name, results[name])
        if not args.quick:                                             # what was measured is kept where a later model fails
            about = provenance.facts(args, list(range(args.seeds)))
            provenance.publish(HERE / "results" / "remat.json", {"about": about, "models": results, "orders": branchy})


def timed(captured: Any, inputs: Any) -> tuple[Rematerialise, Any]:
    """(the problem priced in measured CPU seconds, how each node runs in an arena)."""
    from fourfold.runtime.arena.dry_run import dry_run
    from fourfold.runtime.arena.ready import ready

    dry = dry_run(ready(captured), inputs, repeat=7, clock=time.process_time)
    return Rematerialise.of(captured.graph, price=dry.seconds), dry


def tell(name: str, found: dict[str, Any]) -> None:
    ran = found.get("executed", {})
    print(f"{name}: {found['nodes']} nodes, {found['stored']:,} B stored, order alone {found['order']:.3f}, smallest "
          f"{statistics.median(found['smallest']):.3f}, peaks fall {found['monotone']}, {found['seconds']:.1f} CPU-s a descent")
    for one in found["limits"]:
        print(f"  limit {one['limit']:.2f}: peak {one['share']:.3f}, {100 * one['overhead']:.1f} % more seconds, "
              f"proven {100 * one['bound']:.1f} %, {100 * one['flops']:.1f} % more flops{_took(ran, 'ours ' + format(one['limit'], 'g'))}")
    for one in found["peers"]:
        if "why" in one:
            print(f"  {one['name']}: {one['why']}")
        else:
            ours = f"ours {100 * statistics.median(one['ours']):.1f} %" if one["ours"] else "ours: none"
            print(f"  {one['name']}: peak {one['share']:.3f}, {100 * one['overhead']:.1f} % more seconds{_took(ran, one['name'])}; {ours}"
                  f"{_took(ran, 'ours at ' + one['name'])}", flush=True)


def _took(ran: dict[str, Any], name: str) -> str:
    one = ran.get(name)
    return "" if one is None else f" (executed {100 * one['overhead']:.1f} % [{100 * one['low']:.1f}, {100 * one['high']:.1f}])"


if __name__ == "__main__":
    main()
