"""What a job found, as the one document that every reader is drawn from (`fourfold.report.schema`), and the facts of the artefact's manifest.

The factors are a ladder of whole-run costs, each measured on the real model (`breakdown`): original → blocks and sub-layers removed → matrices
shrunk → engine changed (Machine) → precision changed (Model) → cascade. Each step's `before` is the last one's `after`, so their product is the
total exactly.
"""

from __future__ import annotations

import math
import platform
import shlex
import time
from typing import TYPE_CHECKING, Any

from fourfold.cite import BIBLIOGRAPHY
from fourfold.jobs.optimize.final_race import weight_bytes
from fourfold.jobs.optimize.written import summary
from fourfold.ledger.book import Ledger
from fourfold.measure.quality import Relative
from fourfold.registry import of_precision
from fourfold.runtime.saving import trusted
from fourfold.trust import option
from fourfold.units import Quantity

if TYPE_CHECKING:
    from fourfold.jobs.optimize.final_race import Point
    from fourfold.jobs.optimize.state import Job
    from fourfold.measure.race import Ratio
    from fourfold.report.schema import Report
    from fourfold.rewrites.compress.combine import Candidate
    from fourfold.runtime.artefact import Setting
    from fourfold.structure.discover import Anatomy

TITLES = {"heads": "heads", "neurons": "neurons", "channels": "channels"}


def report_data(job: Job) -> dict[str, object]:
    """The report of a finished job, in the terms of `fourfold.report.schema` (whose name `optimize` writes over it).

    Long: one document, a line a field.
    """
    from fourfold._version import __version__
    from fourfold.host import here

    machine = here()
    energy = job.energy
    known = [p for p in job.points if p.search is not None]
    shown = sorted(known, key=job.cost) + [p for p in job.points if p.search is None]
    place = {p.name: i for i, p in enumerate(shown)}
    passes = _passes(job)
    candidates = [_candidate(job, p, passes) for p in shown] + [_unraced(job, c) for c in job.candidates if c.status == "stopped"]
    front = [place[p.name] for p in shown if p.status == "front" and p.test is not None]
    best = None if job.best is None else place[job.best.name]
    ladder = job.ladder if job.best is not None else []
    total = None if job.best is None else 1.0 / candidates[best]["relative_energy"]["value"]  # type: ignore[index]
    features = sorted(
        f
        for f in machine.flags
        if f.startswith(("amx", "avx512_vnni", "avx512_bf16", "avx_vnni")) or f in ("avx2", "avx512f", "asimd", "sve", "bf16")
    )
    keys = _cited(job)
    trust = [] if job.best is None else list(trusted(job.best.assembly))
    versions = {"fourfold": __version__, "python": platform.python_version()} | _versions()
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions,
        "command": job.options.command,
        "model": {
            "name": job.work.model,
            "family": _family(job),
            "parameters": sum(p.numel() for p in job.subject.module.parameters()),
            "bytes": sum(p.numel() * p.element_size() for p in job.subject.module.parameters()),
        },
        "data": {
            "name": job.work.data,
            "task": job.task.kind,
            "metric": job.task.metric.name,
            "greater_is_better": job.task.metric.greater_is_better,
            "train": len(job.splits.train),
            "search": len(job.splits.search),
            "test": len(job.splits.test),
            "note": job.splits.note,
            "inputs": _inputs(job),
        },
        "machine": {
            "name": str(machine),
            "processor": machine.name,
            "threads": machine.cores,
            "features": features,
            "memory_bytes": machine.memory,
            "system": machine.os,
        },
        "valid": f"raced on {machine.name}; on another processor run: fourfold race {shlex.quote(str(job.options.out or 'DIR'))}{option(trust)}",
        "folder": str(job.options.out) if job.options.out and job.best is not None else None,
        "trust": trust,
        "objective": job.work.objective,
        "floor": job.work.floor,
        "budget_s": job.work.budget,
        "seed": job.work.seed,
        "energy": {"grade": energy["grade"], "method": energy["method"], "boundary": energy["boundary"] or "process"},
        "baseline": {
            "quality": _absolute(job),
            "setting": _setting(job.base_setting),
            "cpu_s_per_1000": 1000 * job.base_cpu,
            "wall_s_per_1000": 1000 * job.base_wall,
            "joules_per_1000": _joules(energy["per_example"] * 1000, energy),
            "memory_bytes": sum(p.numel() * p.element_size() for p in job.subject.module.parameters()),
            "rows_per_call": job.served.call if job.served is not None else None,
        },
        "simple": [_simple(job, s) for s in job.simple],
        "candidates": candidates,
        "front": front,
        "best": best,
        "knee": _knee(candidates, front),
        "floor_met": best is not None,
        "infeasible": None if best is not None else _infeasible(job, shown, place),
        "factors": ladder,
        "total": total,
        "race": _race(job, place),
        "timeline": _timeline(job),
        "cost": _cost(job, energy),
        "citations": [{"key": k, "text": str(BIBLIOGRAPHY[k]), "bibtex": BIBLIOGRAPHY[k].bibtex(k)} for k in keys],
        "notes": [*job.notes, *_service(job)],
        "warnings": job.warnings,
        **({"generation": told} if (told := summary(job)) is not None else {}),
    }


def manifest_facts(job: Job, point: Point, report: Report) -> dict[str, object]:
    """What the manifest adds to the structure: metrics with intervals, hardware, methods, versions, where the race was run."""
    from fourfold.host import here
    from fourfold.jobs.optimize import remember

    index = next(i for i, c in enumerate(report["candidates"]) if c["name"] == point.name)
    return {
        "candidate": report["candidates"][index],
        "floor": job.work.floor,
        "objective": job.work.objective,
        "seed": job.work.seed,
        "baseline": report["baseline"],
        "model": report["model"],
        "data": report["data"],
        "hardware": here().to_json(),
        "fingerprint": here().fingerprint,
        "methods": [c["key"] for c in report["citations"]],
        "versions": report["versions"],
        "command": report["command"],
        "energy": report["energy"],
        "lengths": _lengths(job),
        "original": remember.facts(job),
        **({"drafting": {"choice": job.drafts["choice"], "tie": job.drafts["tie"]}} if job.drafts.get("choice") else {}),
    }


def _inputs(job: Job) -> str:
    """What a row of the data is: "texts", "pairs" of them, "images", "sounds" or "arrays"."""
    other = {"images": "images", "audio": "sounds", "arrays": "arrays"}.get(job.splits.nature)
    raw = job.splits.test.raw
    return other or ("pairs" if raw and isinstance(raw[0], tuple) else "texts")


def _lengths(job: Job) -> list[int]:
    """64 quantiles of the inputs' lengths, for racing again where the data are not at hand."""
    import numpy as np

    return [int(v) for v in np.quantile(job.splits.test.lengths, np.linspace(0, 1, 64), method="nearest")]


def ledger_of(job: Job) -> Ledger:
    """The account book of a finished job: joules of 1,000 examples before and after every measured step, and what the optimisation itself used."""
    energy = job.energy
    start = energy["per_example"] * 1000

    def joules(value: float) -> Quantity:
        share = value / energy["value"]
        return Quantity(
            value,
            "J",
            energy["grade"],
            low=energy["low"] * share,
            high=energy["high"] * share,
            method=energy["method"],
            boundary=energy["boundary"] or "process",
        )

    book = Ledger(joules(start), "1,000 examples")
    for rung in job.ladder:
        book.book(rung["lever"], rung["title"], joules(start * rung["after"]), rung["technique"])
    book.spend(joules(max(job.journal.cpu, time.process_time()) * energy["per_cpu_second"]))
    return book


def structure(anatomy: Anatomy, candidate: Candidate) -> list[dict[str, Any]]:
    """Stack by stack, block by block: what is left of each sub-layer, in the numbering of the original."""
    from fourfold.rewrites.compress.combine import site_ids

    bundles = anatomy.bundles
    names = site_ids(anatomy)
    found = []
    for stack in anatomy.stacks:
        kept = candidate.kept.get(stack.name, list(range(len(stack.blocks))))
        blocks = []
        for number in range(len(stack.blocks)):
            units = []
            for ident, (_, bundle) in names.items():
                head, index, kind = ident.rsplit(".", 2)
                if head != stack.name or int(index) != number or kind == "block":
                    continue
                total = bundles[bundle].count if bundle else 1
                left = min(total, candidate.shape.get(ident, total)) if number in kept else 0
                units.append(
                    {
                        "name": kind,
                        "what": TITLES.get(bundles[bundle].kind, "units") if bundle else "",
                        "kept": left,
                        "total": total,
                        "absent": left == 0,
                    }
                )
            blocks.append({"name": str(number), "removed": number not in kept, "units": units})
        found.append({"name": stack.name, "blocks": blocks})
    return found


def words(job: Job, candidate: Candidate) -> str:
    """One line on what was done to the structure."""
    return "; ".join([_structure_words(job, candidate), *candidate.extra.get("told", ())])


def _structure_words(job: Job, candidate: Candidate) -> str:
    if candidate.how:
        return candidate.how
    if candidate.members:
        first, *others = candidate.members
        return f"{first.name} answers when sure, else {', else '.join(m.name for m in others)}"
    assert job.root is not None
    parts = []
    for stack in structure(job.root.anatomy, candidate):
        alive = [b for b in stack["blocks"] if not b["removed"]]
        text = f"{len(alive)} of {len(stack['blocks'])} {stack['name']} blocks"
        tally: dict[str, list[int]] = {}
        for block in stack["blocks"]:
            for unit in block["units"]:
                if unit["what"]:
                    tally.setdefault(unit["what"], [0, 0])
                    tally[unit["what"]][0] += unit["kept"]
                    tally[unit["what"]][1] += unit["total"]
        parts.append(", ".join([text, *[f"{k} of {n} {what}" for what, (k, n) in tally.items()]]))
    return "; ".join(parts) + "; distilled"


def techniques(point: Point) -> list[str]:
    """The technique files at work in a point."""
    found = list(point.candidate.techniques)
    if point.candidate.members:
        return list(dict.fromkeys([*found, *[t for member in point.candidate.members for t in techniques(member)]]))
    return found + ([of_precision()] if point.setting.precision != "fp32" else [])


def _interval(r: Relative | None) -> dict[str, object] | None:
    return None if r is None else {"value": r.value, "low": r.low, "high": r.high, "n": r.n}


def _setting(s: Setting) -> dict[str, object]:
    return {"engine": s.engine, "precision": s.precision, "threads": s.threads, "batch": s.batch, "bucketing": s.bucketing}


def _ratio(r: Ratio, rounds: int) -> dict[str, object]:
    return {"value": r.value, "low": r.low, "high": r.high, "n": rounds}


def _parameters(point: Point) -> int:
    total = 0
    packed = point.candidate.extra.get("packed")  # whose weights are buffers of codes
    for part in point.assembly.parts if packed is None else ():
        total += (
            sum(p.numel() for p in part.module.parameters()) if part.module is not None else part.words.parameters if part.words is not None else 0
        )
    return int(total) if packed is None else sum(p.numel() for p in packed.module.parameters())


def _passes(job: Job) -> dict[str, float]:
    """The highest floor at which each tested point would have passed, by name, rounded down to a tenth of a per cent."""
    from fourfold.jobs.optimize.significance import reached
    from fourfold.measure.sequence import floors

    named = {p.name: p for p in [*job.points, *(p for family in job.families for p in family.points)]}
    found = floors(job.tests, lambda name, level: reached(job, named[name], level))
    return {name: math.floor(floor * 1000) / 1000 for name, floor in found.items() if floor > 0}


def _candidate(job: Job, p: Point, passes: dict[str, float]) -> dict[str, object]:
    c = p.candidate
    networks = c.structured and job.root is not None
    how = words(job, c)
    if c.alone:
        how += f"; {p.setting.engine} {p.setting.precision}"
    cascade = None
    if c.members:
        cascade = {"members": [m.name for m in c.members], "thresholds": [g.threshold for g in p.assembly.gates], "shares": p.shares}
    status = {"front": "front", "infeasible": "infeasible", "rejected": "stopped"}.get(p.status, "dominated")
    return {
        "name": p.name,
        "how": how,
        "stage": "test" if p.test else "full",
        "status": status,
        "reason": p.reason,
        "techniques": techniques(p),
        "levers": _levers(p),
        "structure": structure(job.root.anatomy, c) if networks else [],  # type: ignore[union-attr]
        "parameters": _parameters(p),
        "bytes": p.bytes,
        "search_quality": _interval(p.search),
        "test_quality": _interval(p.test),
        "passes_at": passes.get(p.name),
        "agreement": _interval(p.agreement),
        "relative_energy": _ratio(p.timing.cpu, p.timing.rounds) if p.timing else None,
        "relative_latency": _ratio(p.timing.wall, p.timing.rounds) if p.timing else None,
        "relative_memory": p.bytes / max(1, weight_bytes(job.part("original", job.subject.module, None, type(p.setting)()))),
        "setting": _setting(p.setting),
        "cascade": cascade,
    }


def _levers(p: Point) -> list[str]:
    """The levers that a point pulls: Model by its structure or its precision, Machine by its engine."""
    model = not p.candidate.root or bool(p.candidate.members) or p.setting.precision != "fp32"
    machine = any(part.setting.engine not in ("torch", "numpy") for part in p.assembly.parts)
    return [lever for lever, pulled in (("model", model), ("machine", machine)) if pulled] or ["model"]


def _unraced(job: Job, c: Candidate) -> dict[str, object]:
    return {
        "name": c.name,
        "how": words(job, c),
        "stage": "full" if c.rung == 2 else "short",
        "status": "stopped",
        "reason": c.reason,
        "techniques": [t for t in c.techniques if t != "combine"],
        "levers": ["model"],
        "structure": structure(job.root.anatomy, c) if job.root and c.structured else [],
        "parameters": sum(p.numel() for p in c.module.parameters()) if c.module else 0,
        "bytes": None,
        "search_quality": _interval(c.quality),
        "test_quality": None,
        "agreement": None,
        "relative_energy": {"value": c.cost, "low": None, "high": None},
        "relative_latency": None,
        "relative_memory": None,
        "setting": None,
        "cascade": None,
    }


def _absolute(job: Job) -> dict[str, object]:
    """The original's own quality with an interval, by bootstrap over the unseen split."""
    import numpy as np

    from fourfold.measure import bootstrap

    rows, targets, metric = job.base_test, job.splits.test.targets, job.task.metric
    n, low, high = len(job.base_test), None, None
    if metric.weighted is not None:
        drawn = bootstrap.weights(n, 400, np.random.default_rng(job.work.seed)).astype(float)
        low, high = bootstrap.interval(metric.weighted(rows, targets, drawn))
    return {"value": job.quality, "low": low, "high": high, "n": n}


def _simple(job: Job, s: Any) -> dict[str, object]:
    found = job.relative(s.test, "test")
    score = float(job.task.metric.score(s.test, job.splits.test.targets))
    point = next((p for p in job.points if s.model is not None and p.assembly.parts[0].words is s.model), None)
    energy = _ratio(point.timing.cpu, point.timing.rounds) if point and point.timing else None
    return {
        "name": s.name,
        "quality": {"value": score, "low": None, "high": None, "n": len(s.test)},
        "relative_quality": _interval(found),
        "relative_energy": energy,
    }


def _knee(candidates: list[dict[str, Any]], front: list[int]) -> int | None:
    """The front member farthest from the chord between its ends, in (log energy, quality), both scaled to [0, 1]."""
    rows = [
        (math.log(candidates[i]["relative_energy"]["value"]), candidates[i]["test_quality"]["value"], i)
        for i in front
        if candidates[i]["relative_energy"] and candidates[i]["test_quality"]
    ]
    if len(rows) < 3:
        return None
    rows.sort()
    (x0, y0, _), (x1, y1, _) = rows[0], rows[-1]
    if x1 == x0 or y1 == y0:
        return None
    heights = [((y - y0) / (y1 - y0) - (x - x0) / (x1 - x0), i) for x, y, i in rows[1:-1]]
    top = max(heights)
    return top[1] if top[0] > 0 else None


def _infeasible(job: Job, shown: list[Point], place: dict[str, int]) -> dict[str, object]:
    """Why nothing was chosen, and the three nearest: cheaper ones by their lower bound first, then those that keep the quality but do not pay."""
    tested = [(p, p.test) for p in shown if p.test is not None]
    near = sorted(tested, key=lambda pt: (not job.pays(pt[0]), -pt[1].low))[:3]
    rows = [
        {
            "candidate": place[p.name],
            "shortfall": max(0.0, job.work.floor - test.low),
            "reason": f"keeps {test.value:.1%} [{test.low:.1%}, {test.high:.1%}] at {job.cost(p):.1%} of the cost"
            + ("" if job.pays(p) else "; not cheaper than the original beyond doubt"),
        }
        for p, test in near
    ]
    if not near:
        return {"reason": "no candidate could be built and raced", "nearest": []}
    best, test = near[0]
    n = len(job.splits.test)
    if not job.pays(best):
        return {
            "reason": f"nothing that was tried is cheaper than the original beyond doubt (the nearest costs {job.cost(best):.1%} of it)",
            "nearest": rows,
        }
    reason = f"no cheaper candidate's lower 95 % bound reaches {job.work.floor:.1%} on {n:,} unseen examples; the nearest has {test.low:.1%}"
    if test.low >= job.work.floor:
        reason = (
            f"{best.name} reaches the floor taken alone, but not after correction for the number of points that were tested; more test rows settle it"
        )
    elif test.value >= job.work.floor:
        reason += f" although its estimate is {test.value:.1%}: more test examples would narrow the interval"
    return {"reason": reason, "nearest": rows}


def _race(job: Job, place: dict[str, int]) -> list[dict[str, object]]:
    rows = []
    for r in job.race_rows:
        setting = {"engine": r["engine"], "precision": r["precision"], "threads": r["threads"], "batch": r["batch"], "bucketing": r["bucket"]}
        plural, order = "s" if r["threads"] > 1 else "", ", by length" if r["bucket"] else ""
        name = f"{r['stage']}: {r['engine']} {r['precision']}, {r['threads']} thread{plural}, batch {r['batch']}{order}"
        rows.append(
            {
                "name": name,
                "candidate": None,
                "against": "the original, fp32",
                "setting": setting,
                "wall": {k: r["wall"][k] for k in ("value", "low", "high")},
                "cpu": {k: r["cpu"][k] for k in ("value", "low", "high")},
                "accepted": bool(r["chosen"]) or r["verdict"] == "cheaper",
                "reason": "chosen" if r["chosen"] else r["verdict"],
            }
        )
    for r in job.race_rejected:
        setting = {
            "engine": r["engine"],
            "precision": r["precision"],
            "threads": job.base_setting.threads,
            "batch": job.base_setting.batch,
            "bucketing": job.base_setting.bucketing,
        }
        rows.append(
            {
                "name": f"{r['engine']} {r['precision']}",
                "candidate": None,
                "against": "the original, fp32",
                "setting": setting,
                "wall": None,
                "cpu": None,
                "accepted": False,
                "reason": r["reason"],
            }
        )
    for p in job.points:
        if p.timing is None:
            continue
        pays = job.pays(p)
        rows.append(
            {
                "name": p.name,
                "candidate": place[p.name],
                "against": "the original, fp32",
                "setting": _setting(p.setting),
                "wall": _ratio(p.timing.wall, p.timing.rounds),
                "cpu": _ratio(p.timing.cpu, p.timing.rounds),
                "accepted": pays,
                "reason": "chosen" if p is job.best else "cheaper" if pays else "not cheaper beyond doubt",
            }
        )
    return rows


STAGES = {
    "original": ("baseline", "the original answers the {1} split"),
    "race": ("race", "back ends and precisions raced: {1}"),
    "calibration": ("sensitivities", "one calibration pass: influence, Fisher information, Gram matrices"),
    "cost-table": ("cost table", "removable units timed on this machine"),
    "plan": ("plan", "a training step timed, and the budget shared out"),
    "answers": ("teacher", "the original answers the training pool"),
    "sketch": ("sketch", "a shape pruned, repaired and judged without training"),
    "train": ("distil", "{1} distilled"),
    "judge": ("quality", "{1} judged on the search split"),
    "harm": ("quality", "{1} compared after a short trial"),
    "point": ("quality", "{1} answers the {2} split"),
    "energy": ("energy", "joules of the original"),
    "rows": ("plan", "the original timed on a few rows"), "shares": ("quality", "who answered what"),
    "ladder": ("factors", "the factors of the chosen point, measured one by one"),
}  # journal key → stage and sentence; {1}, {2} are the key's own words


def _timeline(job: Job) -> list[dict[str, object]]:
    rows, first = [], None
    for e in job.journal.events():
        first = e["at"] if first is None else first
        at = max(0.0, e["at"] - first)
        if "key" in e and not str(e["key"]).endswith(":facts"):
            words = [*str(e["key"]).split(":"), "", ""]
            stage, sentence = STAGES.get(words[0], ("other", words[0]))
            rows.append({"t": at, "stage": stage, "text": sentence.format(*words), "seconds": float(e.get("seconds", 0.0))})
        elif e.get("event") == "resumed":
            rows.append({"t": at, "stage": "resumed", "text": "taken up again after an interruption", "seconds": 0.0})
    return rows


def _joules(value: float, energy: dict[str, Any]) -> dict[str, object]:
    spread = energy["high"] / energy["value"], energy["low"] / energy["value"]
    return {"value": value, "low": value * spread[1], "high": value * spread[0], "grade": energy["grade"], "method": energy["method"]}


def _cost(job: Job, energy: dict[str, Any]) -> dict[str, object]:
    """Time and energy of the optimisation itself, and after how many inferences it has paid for itself."""
    cpu = max(job.journal.cpu, time.process_time())
    joules = cpu * energy["per_cpu_second"]
    saved = 0.0 if job.best is None or job.best.timing is None else energy["per_example"] * (1 - job.best.timing.cpu.value)
    return {
        "wall_s": max(job.journal.elapsed, time.time() - job.started),
        "cpu_s": cpu,
        "joules": _joules(joules, energy),
        "break_even": int(joules / saved) + 1 if saved > 0 else None,
    }


def _cited(job: Job) -> list[str]:
    from fourfold.registry import facts

    used: dict[str, None] = {}
    point = job.best or next((p for p in job.points if p.status != "rejected"), None)
    for name in techniques(point) if point else []:
        used |= dict.fromkeys(k for k in facts(name if "/" in name else f"compress/{name}").cites if k in BIBLIOGRAPHY)
    return [*used, *[k for k in ("efron1979", "patterson2022") if k in BIBLIOGRAPHY]]


def _service(job: Job) -> list[str]:
    """What the costs are of, and what the members of a cascade read, in sentences."""
    if job.served is None:
        return []
    texts = job.splits.test.raw is not None and job.task.kind in ("classification", "regression")
    what = "text in, answer out: tokenising, counting words, collating, engine and gates" if texts else "arrays in, answer out: collating and engine"
    if (g := job.task.generation) is not None:
        sizes = ", ".join(map(str, g.batch))
        return [f"Costs are of reading prompts of {g.prompt} tokens and writing {g.new} after each, greedily; a call is one batch of each size "
                f"({sizes}), over {job.served.rows:,} unseen prompts."]
    said = [f"Costs are of the whole service, as `predict` runs it ({what}), over {job.served.rows:,} unseen rows in calls of {job.served.call}."]
    cut = job.splits.test.cut
    if cut and any(p.assembly.parts[0].words is not None for p in job.points):
        said.append("Counted words read whole texts, also those that the original cuts to the length it can read.")
    return said


def _family(job: Job) -> str:
    config = getattr(job.subject.module, "config", None)
    return str(getattr(config, "model_type", "") or type(job.subject.module).__name__)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from fourfold.engines import versions

    found = {}
    for name in dict.fromkeys(("torch", "transformers", "numpy", *versions(), "optuna")):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
