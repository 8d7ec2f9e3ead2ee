"""`fourfold plan MODEL --devices 8x8 --serve`: how a decoder is split over a grid of chips when it is served, one layout for prefill, one for decode.

`serve` reads the decoder's dimensions, asks the techniques of the question `layout`, and hands back a plan's document (`fourfold.plans`). Nothing of
the model is loaded or run: a configuration is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold import plans
from fourfold.cost.serving import ServingChips, ServingPhase
from fourfold.cost.serving_events import play
from fourfold.decisions.layout._candidates import every
from fourfold.decisions.layout._front import front
from fourfold.decisions.layout.problem import Layouts, ServingLayoutProblem, faults
from fourfold.errors import Infeasible, InputError
from fourfold.jobs import planning
from fourfold.jobs.booking import book, may_book
from fourfold.sharding.mesh import Mesh
from fourfold.zoo.decoders import decoder

if TYPE_CHECKING:
    from fourfold.machine import Machine
    from fourfold.zoo.decoders import DecoderDims

QUESTION = "layout"
PHASES = ("prefill", "decode")
WEIGHTS = {"bfloat16": 2, "int8": 1}
_FIRST = "exhaustive"


def serve(
    model: str | DecoderDims,
    devices: str,
    *,
    machine: str | Machine = "here",
    phase: str = "",
    batch: int = 64,
    prompt_tokens: int = 2048,
    context: int | None = None,
    tokens: int = 64,
    weights: str = "bfloat16",
    solver: str = "auto",
    budget: float | str = 60.0,
    out: str | Path | None = None,
    ledger: str | Path | None = None,
) -> plans.Document:
    """Choose a layout for each phase of serving.

    model: a shipped decoder ("palm-540b"), a transformers config folder, or dimensions. devices: the grid ("8x8", "4x4x4"). machine: as of `plan`,
    with as many equal devices. phase: prefill, decode, or both ("", decode then follows the prefill). batch: sequences at once; prompt_tokens: of
    each; context: tokens in the cache when decoding begins (default: the prompt's); tokens: decoded, a sequence. weights: bfloat16 or int8. solver:
    auto (exhaustive) or a technique of `layout`. out: folder of the plan and its page. ledger: file that the decision is booked in.

    Raises InputError for a grid that does not fit the machine and for unknown names, ModelError for what is no dense decoder, Infeasible where no
    layout fits (the rule that the nearest breaks, bytes among them).
    """
    from fourfold.workload import seconds

    solver = solver.removeprefix(f"{QUESTION}/")
    planning.check(solver, "latency", QUESTION, ["auto", *planning.names(QUESTION)], ("latency",))
    if phase not in ("", *PHASES):
        raise InputError(f"--phase {phase!r} is not known.", f"Choose {' or '.join(PHASES)}, or leave it out for both.")
    if weights not in WEIGHTS:
        raise InputError(f"Weights in {weights!r} are not known here.", f"Choose from: {', '.join(WEIGHTS)}.")
    if ledger is not None:
        may_book(ledger)
    if out is not None:
        plans.may_save(Path(out), [])
    dims = decoder(model) if isinstance(model, str) else model
    system, notes = planning.machine(machine)
    chips = ServingChips.of(system, Mesh.parse(devices))
    kinds = (phase,) if phase else PHASES
    size = WEIGHTS[weights]
    asked = {"prefill": ServingPhase("prefill", batch, prompt_tokens, 0, size),
             "decode": ServingPhase("decode", batch, tokens, prompt_tokens if context is None else context, size)}
    problem = ServingLayoutProblem(dims, chips, tuple(asked[kind] for kind in kinds))
    first = _FIRST if solver == "auto" else solver
    _possible(problem)
    found = planning.decide(problem, first, budget=seconds(budget), question=QUESTION,
                            compared=[name for name in planning.names(QUESTION) if name != first])
    solution = _solution(problem, found, system, (*notes, *_assumed(problem)))
    workload = {"kind": "decoder", "name": dims.name, "hash": plans.identify(dims.to_json()), "parameters": dims.parameters}
    about = {"name": system.name, "hash": system.hash, "fingerprint": system.fingerprint}
    document = plans.Document(Path(out or "."), workload, about, {QUESTION: solution})
    if out is not None:
        from fourfold.report.serving_layout import write

        plans.store(out, QUESTION, solution, workload, about)
        write(document, Path(out))
    if ledger is not None:
        book(ledger, QUESTION, solution, workload, system.name)
    return document


def _possible(problem: ServingLayoutProblem) -> None:
    """Raises Infeasible where a phase has no layout, with the rules that the nearest ones break."""
    for phase in problem.phases:
        broken = {layout: faults(problem.dims, problem.chips, phase, layout) for layout in every(problem.chips)}
        if all(broken.values()):
            layout = min(broken, key=lambda one: (len(broken[one]), one.attention == "batch"))
            few = broken[layout]
            raise Infeasible(f"No layout of {problem.dims.name} fits in {phase.kind}; the nearest, {layout.title(problem.chips)} with attention by "
                             f"{layout.attention}, breaks {len(few)} rule{'s' * (len(few) > 1)}: {'; '.join(few)}.", _mend(few))


def _mend(broken: Sequence[str]) -> str:
    said = " ".join(broken)
    if "too much" in said:
        return "Use more chips, int8 weights, a smaller batch or a shorter context."
    return "Choose sizes of --devices that divide them, or give the decoder padded_heads."


def _assumed(problem: ServingLayoutProblem) -> list[str]:
    c = problem.chips
    return [f"Assumed for all layouts alike: products reach {100 * c.compute:.0f} % of peak, weights and cache are read at "
            f"{100 * c.memory_share:.0f} % of the memory's bandwidth, a collective reaches {100 * c.link_share:.0f} % of a chip's links, "
            f"{1e6 * c.hop:.3g} µs a ring step, {1e6 * c.launch:.3g} µs a kernel. Nothing was measured."]


def _solution(problem: ServingLayoutProblem, found: planning.Decided, system: Machine, notes: Sequence[str]) -> dict[str, object]:
    """What a plan keeps of the answer."""
    from fourfold.report.serving_layout import sentences

    best = found.solution
    answer: Layouts = best.answer
    rows = []
    for phase, layout, cost in zip(problem.phases, answer, problem.parts(answer), strict=True):
        events, _ = play(problem.dims, phase, problem.chips, layout)
        rows.append({"phase": asdict(phase), "layout": layout.to_json(), "title": layout.title(problem.chips), "cost": cost.to_json(),
                     "events_step": events,
                     "front": [{**asdict(row), "layout": row.layout and row.layout.to_json()} for row in front(problem.dims, problem.chips, phase)]})
    said = [layout.to_json() for layout in answer]
    chips = asdict(problem.chips)
    return {"objective": "latency", "solver": best.solver, "cost": best.cost, "unit": best.unit, "before": best.before, "why": best.why,
            "saving": best.saving, "bound": best.bound, "gap": best.gap, "seconds": best.seconds, "evaluations": best.evaluations,
            "interrupted": found.interrupted, "table": found.table, "answer": said, "rows": rows, "model": problem.dims.to_json(), "chips": chips,
            "phases": [asdict(phase) for phase in problem.phases], "sentences": sentences(problem, answer), "notes": list(notes),
            "hash": plans.identify(problem.dims.to_json(), system.hash, chips, [asdict(phase) for phase in problem.phases], said)}
