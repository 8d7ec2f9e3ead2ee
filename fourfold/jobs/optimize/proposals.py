"""What every technique proposes as a whole, trained beside the descent and judged like any candidate. The registry is the list of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fourfold.jobs.optimize.state import Job
    from fourfold.rewrite import Context, Proposal, Rewrite
    from fourfold.rewrites.compress._bench import SearchContext, Training

SLOT = 0.2
"""Share of the descent's time that one proposal's training may take; with more than `MOST` proposals in all, less."""
MOST = 4
"""Proposals taken of one technique."""


def proposals(job: Job, bench: SearchContext, seconds: Callable[[float], float]) -> list[Training]:
    """The trainings of all proposals of all techniques that are used by default or asked for; they end as candidates of the search. `seconds` gives a
    share of the time there is. A technique that declines is noted with its reason."""
    from fourfold.errors import ModelError
    from fourfold.rewrite import Rewrite
    from fourfold.rewrites.compress._bench import LEAST_SECONDS

    ours, found = context(job, bench), []
    for id, rewrite in asked(job, Rewrite.propose):
        why, offered = rewrite.declines(job.subject.module), []
        if why is None:
            try:
                offered = list(islice(rewrite.propose(ours), MOST))
            except ModelError as error:
                why = error.message
        if not offered and why is None and rewrite.converts:
            why = "by what was found of this model and these rows it cannot pay on this machine"
        if why is not None:
            _refused(job, id, rewrite, why)
        found += [(id, rewrite, one) for one in offered]
    while len(found) > MOST and seconds(SLOT * MOST / len(found)) < 2 * LEAST_SECONDS:
        found.pop()  # better a few that are trained than many that are not
    slot = SLOT * min(1.0, MOST / max(1, len(found)))
    return [_training(job, bench, ours, id, rewrite, one, lambda: seconds(slot)) for id, rewrite, one in found]


def _refused(job: Job, id: str, rewrite: Rewrite, why: str) -> None:
    """Keep why a technique was not tried; of conversions, and of what was asked for by name, the report tells it."""
    job.refusals[id] = why
    if rewrite.converts or id in job.options.techniques:
        job.notes.append(f"{id} was considered and not tried: {why}.")


def untried(job: Job) -> None:
    """Say of each technique that was asked for by name, and neither tried nor refused, that there was no time for it."""
    from fourfold.registry import technique
    from fourfold.rewrite import Rewrite

    found = {candidate.technique for candidate in job.candidates} | set(job.refusals)
    for id in job.options.techniques:
        if id not in found and issubclass(technique(id), Rewrite) and technique(id).propose is not Rewrite.propose:
            job.notes.append(f"{id} was asked for and not tried: the budget left no time for it.")


def context(job: Job, bench: SearchContext | None = None) -> Context:
    """What techniques work from: the search's own inputs with the original's answers to them, or the rows as they were given."""
    from fourfold.rewrite import Context

    found = (job.root.anatomy, job.root.sensitivities) if job.root is not None else (None, None)
    examples, answers = (job.splits.train, None) if bench is None else (bench.pool, bench.answers)
    outputs = int(job.base_test.shape[1])
    return Context(job.subject, job.task, examples, answers, *found, job.work.floor, job.work.seed, outputs, job.options.max_length, job.sample)


def asked(job: Job, way: Callable[..., object]) -> Iterator[tuple[str, Rewrite]]:
    """Techniques that take part in this `way` (a method of `Rewrite` that they have made their own): ours that are on by default, for this objective
    or asked for by name, and all that the user's own packages add."""
    from fourfold.registry import facts, technique, techniques
    from fourfold.rewrite import Rewrite

    for id, module in sorted(techniques().items(), key=lambda item: item[1].startswith("fourfold.")):  # what the user adds is trained first
        kind = technique(id) if ".rewrites." in f".{module}." else None
        if kind is None or not issubclass(kind, Rewrite) or kind.combined or getattr(kind, way.__name__) is way:
            continue
        wanted = facts(id).status == "default" or job.work.objective in kind.objectives or id in job.options.techniques
        if wanted or not module.startswith("fourfold."):
            yield id, kind()


def _training(
    job: Job, bench: SearchContext, ours: Context, id: str, rewrite: Rewrite, proposal: Proposal, seconds: Callable[[], float]
) -> Training:
    """One proposal, built, trained unless the technique wants none, then judged on the search split; all journalled."""
    from dataclasses import replace

    from torch import nn

    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress._bench import Candidate, Training, evaluate_with
    from fourfold.rewrites.compress.distil import TrainingSchedule

    assert job.plan is not None
    options = rewrite.recover(ours, proposal)
    # without training the one step that the loop owes changes nothing
    options = {"steps": 1, "lr": 0.0} if options is None else {"steps": max(job.plan.steps), "batch": bench.batch, "lr": bench.lr, **options}
    steps = options["steps"]
    name, edits = proposal.name, signed(rewrite, proposal.edits)
    own = rewrite.origin(ours, proposal)
    inputs = [n for n in job.subject.inputs if n in bench.pool.columns] if own is not None else job.subject.inputs
    bare = replace(job.subject, module=nn.Identity(), inputs=tuple(inputs), tokenizer=None, processor=None, folder=None)

    def finish(module: torch.nn.Module | None, state: dict[str, torch.Tensor], facts: dict[str, object]) -> list[Training]:
        assert job.searcher is not None
        if module is None:
            module = rewrite.build(ours, proposal)
            module.load_state_dict(state)
            module.eval()
        origin, recipe = own if own is not None else (job.subject.origin, edits)
        subject = replace(job.subject, module=module, origin=origin, inputs=tuple(inputs), folder=None if own is not None else job.subject.folder)
        candidate = Candidate(
            name, "rewrite", Recipe(tuple(recipe)), {}, proposal.cost[0], 2, steps, module=module,
            extra={"subject": subject, "curve": facts["curve"], "seconds": facts["wall"]},
            technique=id, techniques=_names(id, trained=options["lr"] > 0), how=rewrite.describe(proposal.edits),
            step=rewrite.step or rewrite.title, quantises=proposal.quantises,
        )  # fmt: skip
        candidate.records = job.array(f"judge:{name}", lambda: evaluate_with(subject, job.task, module, job.splits.search))
        candidate.quality = job.relative(candidate.records, "search")
        job.searcher.candidates.append(candidate)
        return []

    schedule = TrainingSchedule(
        steps, options.get("batch", bench.batch), options["lr"], seed=job.work.seed, hidden_weight=0, bf16=bool(options.get("bf16", False))
    )
    return Training(name, f"train:{name}:{steps}", lambda: (rewrite.build(ours, proposal), {}), bare, schedule, seconds, finish)


def _names(id: str, trained: bool) -> tuple[str, ...]:
    """The names under which a report tells of the techniques: bare for those of compress."""
    return (id.removeprefix("compress/"), *(("distil",) if trained else ()))


def signed(rewrite: Rewrite, edits: tuple[dict[str, object], ...]) -> tuple[dict[str, object], ...]:
    """The edits; those of a technique from elsewhere say which module carries them out, so that an artefact can be loaded where it is trusted."""
    module = type(rewrite).__module__
    if module.startswith("fourfold."):
        return edits
    return tuple({**edit, "by": module} if edit.get("kind") in type(rewrite).edits else edit for edit in edits)
