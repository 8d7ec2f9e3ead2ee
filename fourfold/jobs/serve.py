"""`fourfold serve cheap/`: an artefact behind HTTP until the process is told to end, and what serving it so has saved, booked.

The work is done in `fourfold.runtime.serve`; here the options are checked, files for other places are written, and the Mechanization lever is booked:
the work that one call a row without memory would have taken, by the workers' own trial, beside the work that was measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fourfold.runtime.serve.server import ServingOptions, ServingOutcome


def serve(options: ServingOptions, *, ledger: Path | None = None, told: Callable[..., None] = lambda event, /, **facts: None) -> ServingOutcome:
    """Serve until SIGTERM or SIGINT; what was done. `told(event, **facts)` hears of every event. `ledger`: file that the saving is booked in.

    Raises InputError (port in use, options, ledger), ArtefactError (damaged, or it does not load), MissingExtra.
    """
    from fourfold.jobs.booking import may_book
    from fourfold.runtime.serve.server import run

    if ledger is not None:
        may_book(ledger)
    outcome = run(options, told)
    if ledger is not None:
        book_serving(ledger, options, outcome)
    return outcome


def write(options: ServingOptions, target: Path, words: list[str]) -> list[Path]:
    """Write a Dockerfile and a systemd unit that serve with the same options. Raises ArtefactError, InputError."""
    from fourfold.runtime.loading import read_manifest
    from fourfold.runtime.serve import deployment

    return deployment.write(target, options.folder, read_manifest(options.folder), words, options.limits.drain)


def book_serving(path: Path, options: ServingOptions, outcome: ServingOutcome) -> dict[str, object]:
    """Book what batches and memory saved on the Mechanization lever. What the front itself used stands on both sides; idle power on neither."""
    from fourfold import plans
    from fourfold.ledger import decisions
    from fourfold.units import Quantity

    energy = outcome.energy
    front = max(0.0, energy.cpu - outcome.cpu)
    known = outcome.rows > 0 and outcome.alone > 0 and energy.per_cpu > 0
    method = f"CPU seconds × {energy.per_cpu:.3g} J of work each, {outcome.rows:,} rows"
    before, after = (Quantity((cpu + front) * energy.per_cpu, "J", "modelled", method=f"{method}; {how}") if known else None
                     for cpu, how in ((outcome.alone, "a call a row, as tried at the start"), (outcome.cpu, "as served")))
    facts = {"digest": outcome.identity.digest, "rows": outcome.rows, "cpu": outcome.cpu, "alone": outcome.alone, "hits": outcome.hits,
             "joined": outcome.joined, "seconds": outcome.seconds, "workers": options.workers, "cache": options.cache}
    how = ", in batches" * options.batching + ", answers remembered" * (options.cache > 0)
    step = f"served by {options.workers} worker{'s' * (options.workers > 1)}{how}"
    return decisions.book(path, "mechanization", step, job="serve", question="serve", subject=outcome.identity.digest, name=outcome.identity.name,
                          evidence=plans.identify(facts), before=before, after=after,
                          why="" if known else "no rows were answered whose cost alone was tried")
