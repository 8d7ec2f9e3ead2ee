"""Layouts of serving: the published shares of peak and context lengths through our cost model, how much they rest on each assumed figure, and the
crossover from weight-stationary to weight-gathered. Nothing is measured: it takes seconds anywhere.

    python benchmarks/partition_layouts.py

Reads the claims `layout-*`, writes benchmarks/results/partition_layouts.json and claims/results/layout-*.json.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import asdict
from pathlib import Path

import provenance

from fourfold.cost.serving import ServingChips, ServingLayout, ServingPhase, crossover, longest_context, scaled, serving_cost
from fourfold.cost.serving_events import play
from fourfold.decisions.layout._candidates import every
from fourfold.decisions.layout.problem import faults
from fourfold.machine import Machine
from fourfold.sharding.mesh import Mesh
from fourfold.zoo.decoders import DecoderDims, named

HOME = Path(__file__).parent
CLAIMS = HOME.parent / "claims"
FIGURES = ("compute", "memory_share", "link_share", "hop", "launch")
FACTORS = (0.75, 1.25)
WEIGHTS = {"bfloat16": 2, "int8": 1}


def chips_of(layout: dict[str, object]) -> ServingChips:
    """The chips that a claim is about."""
    return ServingChips.of(Machine.read(str(layout["machine"])), Mesh.parse(str(layout["devices"])))


def phase_of(layout: dict[str, object]) -> ServingPhase:
    """The phase that a claim is about."""
    return ServingPhase(str(layout["phase"]), int(str(layout["batch"])), int(str(layout["tokens"])), int(str(layout["context"])),
                        WEIGHTS[str(layout["weights"])])


def ranked(dims: DecoderDims, phase: ServingPhase, chips: ServingChips) -> list[tuple[ServingLayout, float]]:
    """(layout, seconds) of all that are allowed, quickest first."""
    allowed = [layout for layout in every(chips) if not faults(dims, chips, phase, layout)]
    return sorted(((layout, serving_cost(dims, phase, chips, layout).seconds) for layout in allowed), key=lambda item: item[1])


def share(name: str, facts: dict[str, dict[str, object]]) -> dict[str, object]:
    """A published share of peak, ours, the runner-up, the events, and what each assumed figure changes."""
    about = facts["layout"]
    dims, phase, chips = named(str(about["model"])), phase_of(about), chips_of(about)
    order = ranked(dims, phase, chips)
    best = order[0][0]
    cost = serving_cost(dims, phase, chips, best)
    other = next(((layout.title(chips), value) for layout, value in order if layout.title(chips) != best.title(chips)), ("–", 0.0))
    moved = {}
    for figure in FIGURES:
        changed = []
        for factor in FACTORS:
            there = scaled(chips, **{figure: factor})
            first = ranked(dims, phase, there)[0][0]
            changed.append({"factor": factor, "mfu": serving_cost(dims, phase, there, first).mfu, "layout": first.title(there)})
        moved[figure] = changed
    return {"claim": name, "phase": asdict(phase), "published": facts["published"]["mfu_percent"], "published_layout": about["best"],
            "layout": best.title(chips), "attention": best.attention, "mfu": cost.mfu, "seconds": cost.seconds, "step": cost.step,
            "events_step": play(dims, phase, chips, best)[0], "second": other[0], "second_ratio": other[1] / cost.seconds, "moved": moved}


def context(name: str, facts: dict[str, dict[str, object]]) -> dict[str, object]:
    """Longest contexts at batch 128 and 512."""
    about = facts["layout"]
    dims, chips = named(str(about["model"])), chips_of(about)
    layout = ServingLayout("ws-1d", (), str(about["attention"]))
    found = {f"context_{batch}": longest_context(dims, batch, chips, layout, float(str(about["share"]))) for batch in (128, 512)}
    return {"claim": name, "published": facts["published"], **found}


def crossing(chips: ServingChips) -> list[dict[str, object]]:
    """The best layout of a prefill of 2,048 tokens by batch, and the best weight-stationary and weight-gathered ones."""
    dims, rows = named("palm-540b"), []
    for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        phase = ServingPhase("prefill", batch, 2048)
        order = ranked(dims, phase, chips)
        best = {scheme: next((value for layout, value in order if layout.scheme.startswith(scheme)), None) for scheme in ("ws", "wg")}
        rows.append({"tokens": batch * 2048, "best": order[0][0].title(chips), "stationary": best["ws"], "gathered": best["wg"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HOME / "results" / "partition_layouts.json")
    args = parser.parse_args()
    files = {file.stem: file for file in sorted(CLAIMS.glob("layout-*.toml"))}
    read = {name: tomllib.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    about = provenance.facts(args, [], files)
    shares = [share(name, facts) for name, facts in read.items() if "mfu_percent" in facts["published"]]
    contexts = [context(name, facts) for name, facts in read.items() if "context_128" in facts["published"]]
    chips = chips_of({"machine": "tpu-v4x64", "devices": "4x4x4"})
    figures = {figure: getattr(chips, figure) for figure in FIGURES}
    provenance.publish(args.out, {"about": about, "figures": figures, "factors": FACTORS, "shares": shares, "contexts": contexts,
                                  "crossover": {"closed_form_tokens": crossover(named("palm-540b").feed_forward), "rows": crossing(chips)}})
    for row in shares:
        _claim(str(row["claim"]), {"mfu_percent": 100 * float(str(row["mfu"]))}, about)
    for row in contexts:
        _claim(str(row["claim"]), {key: float(str(row[key])) for key in ("context_128", "context_512")}, about)
    for row in shares:
        print(f"{row['claim']}: {100 * float(str(row['mfu'])):.1f} % of peak with {row['layout']} (published {row['published']} with "
              f"{row['published_layout']}); {row['second']} takes {float(str(row['second_ratio'])):.2f} times as long")


def _claim(name: str, figures: dict[str, float], about: dict[str, object]) -> None:
    document = {key: {"value": value, "low": value, "high": value} for key, value in figures.items()}
    path = CLAIMS / "results" / f"{name}.json"
    path.write_text(json.dumps({**document, "machine": "modelled: tpu-v4x64 (fourfold/systems)", "date": about["date"], "commit": about["commit"]},
                               indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
