"""The first proved answer: the original itself, run better. It stands minutes before the search ends, so that a kill leaves something to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.runtime.artefact import Setting

if TYPE_CHECKING:
    from fourfold.jobs.optimize.state import Job

def early(job: Job) -> None:
    """Build the original in its cheapest precision and back end, race it, and test it on the unseen split at a small share of the error. Where it is
    safe and pays, it is `job.best` until `prove` decides anew; what was built is used again by the contest."""
    from fourfold.jobs.optimize.points import build_point, original
    from fourfold.jobs.optimize.significance import EARLY, error, final_race, test
    from fourfold.measure.sequence import LEVEL

    pairs = [w for w in job.pairs if (w[0], w[1]) != ("torch", "fp32")][:1]
    if not pairs or job.deadline.until("search") <= 0:
        return
    engine, precision, how = pairs[0]
    job.listener.stage("proving a first answer: the original, run better", 1)
    found = build_point(job, original(job), Setting(engine, precision, **how))
    job.built[found.name] = found
    if found.status != "open" or found.search is None or found.search.value < job.work.floor:
        return
    test(job, found)
    if error(job, found) > LEVEL * EARLY:
        return
    final_race(job, [found], 0.02)    # told again, longer, with the others
    if job.pays(found):
        job.points, job.best, found.status = [found], found, "front"
        assert found.test is not None
        kept = f"quality {found.test.value:.1%} [{found.test.low:.1%}, {found.test.high:.1%}]"
        job.listener.best(f"{job.cost(found):.1%} of the original's cost, {kept}, proved")
