"""The main job, told on one page: measure the original, find what can go, search, recover, race, prove, save.

`optimize` hands each room what it needs, so that no room reaches for another; the stages themselves are the files of this folder, on a
`fourfold.jobs.optimize.state`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fourfold.errors import FourfoldError, Infeasible, InputError, ModelError
from fourfold.folder import MANIFEST, beside, foreign, journal_of, may_replace, swap
from fourfold.jobs.optimize.front import Choice, Front

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fourfold.datasets.generation import GenerationAsked
    from fourfold.jobs.levers import Location
    from fourfold.jobs.optimize.state import Job
    from fourfold.report.schema import Report
    from fourfold.site import Site


def optimize(
    model: object,
    data: object,
    *,
    floor: float | str = 0.97,
    budget: float | str = "10min",
    objective: str = "energy",
    out: str | Path | None = None,
    metric: object = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    splits: object = None,
    seed: int = 0,
    engines: Sequence[str] | None = None,
    threads: int | Sequence[int] | None = None,
    max_length: int | None = None,
    fresh: bool = False,
    force: bool = False,
    progress: object = None,
    command: str = "",
    site: str | Site | None = None,
    to_site: str | Site | None = None,
    hall: str | None = None,
    pue: float | str | None = None,
    agree: float | str | None = None,
    anyway: bool = False,
    tokenizer: str | Path | None = None,
    techniques: str | Sequence[str] | None = None,
    workload: str | None = None,
    prompt_tokens: int | None = None,
    new_tokens: int | None = None,
    batch: int | Sequence[int] | str | None = None,
) -> Front:
    """Make `model` cheaper and prove it.

    model: a Hugging Face style directory, "package.module:factory", an .onnx file, or an nn.Module. tokenizer: a folder with the tokenizer's files,
    where they do not lie beside the model. data: see `fourfold.datasets.load.load_data`. floor: relative quality to keep (0.97 or "97%"), held by the
    lower 95 % bound on a split that the search never sees. budget: seconds, or "10min". objective: energy (processor time), latency (wall time of one
    example) or memory (bytes of weights). metric: a name or a callable (predictions, targets) -> float. agree: a second floor, the share of answers
    that must be the original's own, held in the same way. anyway: go on though the original is no better than the most frequent class, or its classes
    seem to be in another order.
    With `out`, the artefact and report are written there, and a killed run resumes; Ctrl-C during the search goes on with the best found
    so far. A folder `out` that holds anything but an earlier artefact is refused before any work; with `force` it moves aside, whole. progress: None
    shows it on a terminal and in a notebook, False never; "plain", "json"; or a listener of your own. `site`, `to_site`, `hall` and `pue` put the
    other two levers into the report (`fourfold.jobs.levers`). techniques: further ones to offer to the search, by id, name or question (those that
    are not used by default, such as "attend" or "route/sparse_mlp"); what they refuse is told in the report's notes. workload: "generate" for models
    that continue prompts: the cost is that of reading prompts of `prompt_tokens` and writing `new_tokens` in batches of `batch` (one or several
    sizes, all served alike), and the data hold prompts (`fourfold.datasets.generation`).

    Raises InputError, ModelError, MetricError; an unmet floor raises nothing: `front.best` is None and `front.infeasible` says why.

    Long: a parameter an option, each told here and handed on by name.
    """
    from fourfold import engines as registry
    from fourfold.engines.decode import decoder
    from fourfold.jobs.levers import examine
    from fourfold.jobs.optimize.command import spelled
    from fourfold.jobs.optimize.load import read
    from fourfold.jobs.optimize.state import Job, Options
    from fourfold.registry import chosen
    from fourfold.report.format import percent, span
    from fourfold.report.terminal import listener
    from fourfold.workload import Workload, fraction

    work = Workload(model=_words(model), data=_words(data), floor=floor, objective=objective, budget=budget, seed=seed)  # type: ignore[arg-type]
    for name in engines or ():
        decoder(name) if workload == "generate" else registry.engine(name)
    more = tuple(chosen([name.strip() for name in techniques.split(",")] if isinstance(techniques, str) else techniques or ()))
    place = examine(site=site, to_site=to_site, hall=hall, pue=pue)   # before hours of work, not after
    target = may_replace(out, inputs=[model, data], force=force) if out is not None else None
    folder = _folder(target)
    command = command or spelled(
        model, data, floor=work.floor, budget=work.budget, columns=columns, objective=objective, out=out, metric=metric, task=task, splits=splits,
        seed=seed, engines=engines, threads=threads, max_length=max_length, site=site, to_site=to_site, hall=hall, pue=pue, agree=agree,
        tokenizer=None if tokenizer is None else str(tokenizer), techniques=",".join(more) or None, workload=workload, prompt_tokens=prompt_tokens,
        new_tokens=new_tokens, batch=batch if batch is None or isinstance(batch, str | int) else ",".join(map(str, batch)),
    )
    generation = _generation(workload, prompt_tokens, new_tokens, batch)
    options = Options(target, metric, task, columns, splits, list(engines) if engines else None, _counts(threads), max_length, fresh, command,
                      None if agree is None else fraction(agree), anyway, tokenizer, more, generation)
    shown, ours = listener(progress, work.budget)
    shown.note(f"budget {span(work.budget)}, floor {percent(work.floor)}, {work.objective}")
    job = Job(work, options, shown, folder)
    try:
        read(job, model, data)
    except BaseException:
        if ours:
            shown.close()
        raise
    try:
        return _find(job, target, place, force)
    finally:
        job.close()
        if ours:
            shown.close()


def _find(job: Job, target: Path | None, place: Location, force: bool) -> Front:
    """The stages in order, on a job that has read model and data; a first proved answer is written before the search begins."""
    from fourfold.interrupts import Interrupts
    from fourfold.jobs.clean import bound
    from fourfold.jobs.optimize.baseline import baseline
    from fourfold.jobs.optimize.breakdown import ladder
    from fourfold.jobs.optimize.build_and_race import contest
    from fourfold.jobs.optimize.drafts import ask
    from fourfold.jobs.optimize.early import early
    from fourfold.jobs.optimize.proposals import untried
    from fourfold.jobs.optimize.search import search
    from fourfold.jobs.optimize.sensitivity import measure
    from fourfold.jobs.optimize.significance import prove

    if target is not None:
        bound(job.journal)
    baseline(job)

    def interrupted() -> None:
        job.interrupted = True
        job.deadline.end()
        job.warnings.append("Interrupted: the search ended early, and what it had found was raced and proved.")
        job.listener.note("interrupted: finishing with the best so far (press Ctrl-C again to stop at once)")

    with Interrupts(interrupted) as interrupts:
        try:
            interrupts.at_once = True
            early(job)
            if target is not None and job.best is not None and not (target / "manifest.json").exists():
                ladder(job, measure=False)
                first = _front(job, place)
                _write(first, target, force)
                if first.unsaved is None:
                    job.listener.note(f"a first proved answer is in {target}; the search goes on")
            measure(job)
            search(job)
        except KeyboardInterrupt:
            if interrupts.times != 1:  # asked twice, or raised by another hand
                raise
            job.candidates = job.searcher.candidates if job.searcher else []
        interrupts.at_once = False
        untried(job)
        contest(job)
        prove(job)
        ladder(job)
        ask(job)
        front = _front(job, place)
        if target is not None:
            _write(front, target, force)
            if not job.interrupted:
                asked = [*front.points, *([front.best] if front.best is not None else [])]
                bound(job.journal, [part.folder for choice in asked for part in choice.point.assembly.parts if part.folder is not None])
    return front


def _front(job: Job, place: Location) -> Front:
    """What has been found, with its report."""
    from fourfold.jobs.levers import levers
    from fourfold.jobs.optimize.accounts import report_data
    from fourfold.report.schema import SCHEMA

    found = cast("Report", {"schema": SCHEMA, **report_data(job)})      # whoever writes it has it checked
    found["levers"] = levers(found, **place)
    best = Choice(job.best, job, found) if job.best is not None else None
    front = Front(job, found, best, points=[Choice(p, job, found) for p in job.points if p.status == "front"])
    if best is None:
        why = found["infeasible"]["reason"] if found["infeasible"] else ""
        front.infeasible = Infeasible(why, "Lower the floor, raise the budget, or take one of the nearest candidates.", front)
    return front


def _write(front: Front, target: Path, force: bool) -> None:
    """Artefact with its reports where the floor is met, else the reports alone. Why a model cannot be made again elsewhere stays in `front.unsaved`:
    the front in memory is still good. An earlier artefact stays until a new one is complete; a search without one leaves its reports there as
    attempt.json and attempt.html."""
    if front.best is not None:
        try:
            front.best.save(target, force=force)
            return
        except ModelError as error:
            front.unsaved = error
            front.report_data["folder"] = None
            front.report_data["warnings"] = [*front.report_data["warnings"], f"not saved: {error.message} {error.mend}"]
    try:
        if (target / MANIFEST).exists() and not foreign(target):
            front.report(target / "attempt.json")
            front.report(target / "attempt.html")
            front.report_data["warnings"].append(f"{target} still holds the model of an earlier run; this run's report is attempt.html in it.")
            return
        with beside(target) as made:
            front.report(made / "report.json")
            front.report(made / "report.html")
            swap(made, target, force=force)
    except OSError as error:
        raise FourfoldError(
            f"could not write the report into {target}: {error.strerror or error}.", "Free some space; a rerun goes straight to writing."
        ) from error


def _counts(threads: int | Sequence[int] | None) -> list[int] | None:
    """Numbers of threads to race; None: all that make sense here. Raises InputError where one is below 1."""
    counts = [threads] if isinstance(threads, int) else list(threads) if threads else None
    if counts and min(counts) < 1:
        raise InputError(f"{min(counts)} threads were asked for.", "Give a positive number of threads.")
    return counts


def _generation(workload: str | None, prompt: int | None, new: int | None, batch: int | Sequence[int] | str | None) -> GenerationAsked | None:
    """What was said of a generating workload; None where none was asked for. Raises InputError for what cannot be."""
    from fourfold.datasets.generation import GenerationAsked

    if workload is None and (prompt, new, batch) == (None, None, None):
        return None
    if workload not in (None, "generate"):
        raise InputError(f"There is no workload {workload!r}.", "Give generate, or leave --workload out for one forward pass.")
    try:
        sizes = [int(one) for one in batch.split(",")] if isinstance(batch, str) else [batch] if isinstance(batch, int) else list(batch or [])
    except ValueError:
        raise InputError(f"--batch {batch} is no list of numbers.", "Give one or several, separated by commas: 1,8.") from None
    return GenerationAsked(prompt, new, tuple(sizes) or None)


def _folder(out: Path | None) -> Path:
    """Where the journal lives: beside the artefact, so that replacing the artefact never touches it."""
    if out is None:
        return Path(tempfile.mkdtemp(prefix="fourfold-"))
    return journal_of(out)


def _words(reference: object) -> str:
    """A model or data reference as text for the record."""
    if isinstance(reference, str | Path):
        return str(reference)
    if isinstance(reference, dict):
        return ", ".join(f"{k}={_words(v)}" for k, v in reference.items())
    return f"{type(reference).__module__}.{type(reference).__qualname__}"


