"""Whether drafts pay for the chosen model: copied from the prompt, checked several tokens a step; the same tokens, or they are not used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job
    from fourfold.report.generation import DraftRow

PROMPTS, ROUNDS = 8, 5
"""Prompts, one a call, half to choose by and half to race on; rounds of the race."""
CALLS = PROMPTS + (ROUNDS + 2) * PROMPTS
"""Answers that asking takes, about."""
SHARE = 0.1
"""Share of the budget that it may take."""


def ask(job: Job) -> None:
    """Try drafts on rows of the search split with the chosen model, one prompt at a time; journalled. Nothing where the model is an encoder–decoder,
    nothing was chosen, or the budget does not allow for it."""
    generation, best = job.task.generation, job.best
    if generation is None or best is None or generation.encodes or generation.new < 4 or best.served is None or len(best.assembly.parts) > 1:
        return
    told = (best.served.generation or {}).values()
    each = max((generation.new / max(1e-9, one["tokens_per_s"]) for one in told), default=0.0)
    if not job.decide("drafts", lambda: each * CALLS < SHARE * job.work.budget):
        job.notes.append("Drafts were not tried: the budget does not allow for it.")
        return

    def run() -> dict[str, Any]:
        from fourfold.errors import FourfoldError
        from fourfold.runtime.drafting.gate import gate
        from fourfold.runtime.generating import prompts
        from fourfold.runtime.service import decoding

        job.listener.stage("asking whether drafts pay", 0)
        chosen = np.random.default_rng([job.work.seed, 41]).permutation(len(job.splits.search))[:PROMPTS]
        batches = [prompts(job.splits.search, np.array([i]), job.task, generation.prompt) for i in chosen]
        try:
            found = gate(decoding(best.assembly), batches, generation.new, stop=generation.stops, rounds=ROUNDS, seed=job.work.seed)
        except FourfoldError as error:
            return {"why": error.message}
        times = 1 / found.raced.cpu.value if found.raced is not None else None
        return {"why": found.why, "offer": found.offer.draft, "accepted": found.acceptance, "times": times, "tie": found.tie,
                "choice": found.choice.to_json() if found.pays else None}

    job.drafts = job.journal.once(f"drafts:{best.name}", run)
    job.notes.append(f"Drafts, one prompt at a time: {job.drafts['why']}")


def row(job: Job) -> list[DraftRow]:
    """For the report."""
    found = job.drafts
    if not found.get("offer") or found.get("accepted") is None or job.best is None:
        return []
    return [{"name": job.best.name, "draft": found["offer"], "accepted": found["accepted"], "times": found["times"], "used": bool(found["choice"])}]
