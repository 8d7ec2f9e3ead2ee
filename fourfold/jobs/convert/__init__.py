"""Convert a model's attentions or MLPs to a cheaper kind: what is swapped where, what that changes, and, on the user's data, what quality and cost
come of it beside the original's.

    convert("model/", "expert-choice", layers="0-3", data="reviews.csv", budget="5min", out="converted/")

The technique is looked up by its name after `--to` (`Rewrite.converts`); the sites are found by watching the model run (`structure.sites`). Without
data nothing is trained: the converted model is saved as it is, and what is known of it is what can be counted and how far its answers moved on a
sample. With data the original teaches it (`rewrites/compress/distil`), both are judged on rows that no training saw, and both are raced.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject
    from fourfold.rewrite import Conversion, Rewrite
    from fourfold.structure.sites import Sites
    from fourfold.structure.trace import Call

MISSED = 3  # exit code where a floor was asked for and is not held


@dataclass(frozen=True)
class Converted:
    """What became of a model. `sites`: one {site, path, exact, note} a conversion; `left`: what stays, and why. `exact`: every conversion leaves the
    answers; `moved`: by how much they moved on a sample before any training, relative to the largest (None in a dry run). `predicted`: {"flops" |
    "bytes" | "parameters": {"before", "after"}, "on": the sample in words}, counted. `found`: quality and cost on data (None without), see
    `jobs.convert.judge`. `folder`: the artefact. `module`: the model itself."""

    model: str
    to: str
    technique: str
    title: str
    sites: tuple[dict[str, object], ...]
    left: dict[str, str]
    exact: bool
    moved: float | None
    predicted: dict[str, object]
    found: dict[str, Any] | None = None
    floor: float | None = None
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    dry_run: bool = False
    module: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def holds(self) -> bool:
        """Whether the floor is held by the lower 95 % bound; True where none was asked for."""
        return self.floor is None or self.found is None or self.found["quality"]["recovered"]["low"] >= self.floor

    @property
    def exit_code(self) -> int:
        """0, or 3 where a floor was asked for and is not held."""
        return 0 if self.holds else MISSED

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        return {
            "model": self.model, "to": self.to, "technique": self.technique, "sites": list(self.sites), "left": self.left, "exact": self.exact,
            "moved": self.moved, "predicted": self.predicted, "found": self.found, "floor": self.floor, "holds": self.holds,
            "folder": None if self.folder is None else str(self.folder), "notes": list(self.notes), "dry_run": self.dry_run,
        }  # fmt: skip

    @property
    def sentences(self) -> list[str]:
        """The result in words."""
        from fourfold.report.convert import sentences

        return sentences(self.to_json() | {"title": self.title})


def convert(
    model: object,
    to: str,
    *,
    layers: str | Sequence[int] = "all",
    data: object = None,
    floor: float | str | None = None,
    budget: float | str = "5min",
    out: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
    metric: object = None,
    splits: object = None,
    max_length: int | None = None,
    dims: Mapping[str, int] | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    seeds: int = 1,
    dry_run: bool = False,
    force: bool = False,
    ledger: str | Path | None = None,
    progress: object = False,
) -> Converted:
    """Convert attentions or MLPs of `model` to `to`, a name of `fourfold.registry.conversions()`.

    model: as for `fourfold.optimize`. layers: block numbers ("0-3,7"), or "all". data: as for `optimize`; floor: relative quality to hold, by its
    lower 95 % bound on rows that the training never saw; budget: time for training, judging and racing; seeds: so many trainings, from `seed` on
    (the first is kept). dims: sizes of the sample inputs where there is no data (batch, length …). dry_run: count only, change and write nothing.
    ledger: a file that the saving is booked in. With `out` the model is written there as an artefact (`fourfold.load`); where a floor is missed, it
    is not.

    Raises InputError for an unknown name, layer or option, ModelError in words where nothing in the model can be converted.
    """
    from fourfold.folder import may_replace
    from fourfold.frontends.model import load_model
    from fourfold.jobs.booking import may_book
    from fourfold.jobs.convert.predict import predicted
    from fourfold.report.terminal import listener
    from fourfold.workload import fraction, seconds

    id, kind = technique_of(to)
    blocks, allowed, wanted = blocks_of(layers), seconds(budget), None if floor is None else fraction(floor)
    if wanted is not None and data is None:
        raise InputError("A floor is held on data, and there is none.", "Add data (--data), or leave the floor out.")
    if seeds < 1:
        raise InputError(f"{seeds} seeds are none.", "Give 1 or more.")
    if ledger is not None:
        may_book(ledger)
    target = may_replace(out, inputs=[model, data], force=force) if out is not None and not dry_run else None
    subject = load_model(model)
    if tokenizer is not None:
        from fourfold.frontends.preprocessors import tokenizer_in

        subject.tokenizer, subject.processor = tokenizer_in(tokenizer)
    subject.module.eval()
    given = _Given(subject, data, columns, task, metric, splits, max_length, dims, seed)
    rewrite, found, conversions = _conversions(kind(), given, blocks, to)
    edits = signed(rewrite, tuple(edit for one in conversions for edit in one.edits))
    shown, ours = listener(progress, allowed)
    try:
        shown.stage(f"converting {len(conversions)} parts", 0)
        built = given.built(rewrite, to, edits)
        said, notes = predicted(subject, built, given.sample), [*given.notes]
        facts: dict[str, Any] = {
            "model": _words(model), "to": to, "technique": id, "title": kind.title, "floor": wanted, "predicted": said,
            "sites": tuple({"site": c.site, "path": c.path, "exact": c.exact, "note": c.note} for c in conversions),
            "left": _left(found, conversions), "exact": all(c.exact for c in conversions),
        }  # fmt: skip
        if dry_run:
            return Converted(**facts, moved=None, notes=tuple(notes), dry_run=True)
        moved = _moved(subject.module, built, given.call)
        result = Converted(**facts, moved=moved, module=built, notes=tuple(notes))
        if data is not None:
            from fourfold.jobs.convert.judge import judge

            result = judge(given, rewrite, result, edits, allowed, seeds, shown)
        return _kept(result, given, edits, target, force, ledger)
    finally:
        if ours:
            shown.close()


def technique_of(to: str) -> tuple[str, type[Rewrite]]:
    """(id, class) of the technique that converts to `to`. Raises InputError with the nearest names."""
    import difflib

    from fourfold import registry

    known = registry.conversions()
    if to not in known:
        near = difflib.get_close_matches(to, known, n=2, cutoff=0.5)
        mend = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(known)) or 'none yet'}."
        raise InputError(f"Nothing converts to {to!r}.", mend)
    return known[to], registry.technique(known[to])


def blocks_of(layers: str | Sequence[int]) -> set[int] | None:
    """Block numbers of "0-3,7" or [0, 1]; None for "all". Raises InputError for anything else."""
    from fourfold.recipe import unpack

    if layers == "all":
        return None
    try:
        found = set(unpack(layers) if isinstance(layers, str) else map(int, layers))
    except (ModelError, TypeError, ValueError):
        found = set()
    if not found or min(found) < 0:
        raise InputError(f"{layers!r} names no layers.", 'Give block numbers, such as "0-3" or "0,2,5", or all.')
    return found


def signed(rewrite: Rewrite, edits: tuple[dict[str, Any], ...]) -> tuple[dict[str, object], ...]:
    """The edits; those of a technique from elsewhere say which module carries them out, so that an artefact can be loaded where it is trusted."""
    module = type(rewrite).__module__
    if module.startswith("fourfold."):
        return edits
    return tuple({**edit, "by": module} if edit.get("kind") in type(rewrite).edits else edit for edit in edits)


class _Given:
    """The model with what it reads: rows of the user's, else random inputs from its configuration."""

    def __init__(self, subject: Subject, data: object, columns: Any, task: str | None, metric: Any, splits: object, longest: int | None, dims: Any,
                 seed: int) -> None:  # fmt: skip
        from fourfold.rewrites.compress.distil import tensors

        self.subject, self.longest, self.seed, self.notes = subject, longest, seed, []
        self.splits: Any = None
        if data is None:
            from fourfold.frontends.samples import samples

            plain = getattr(subject.module, "config", None) is None
            self.task = task_of(subject, task)
            self.few = samples(subject, {**({} if plain else {"batch": 2, "length": 12, "decoder_length": 8}), **(dims or {})}, seed)
            self.sample = samples(subject, dict(dims or {}), seed)
            return
        from fourfold.datasets.load import load_data

        self.splits, self.task = load_data(data, task, subject, columns=columns, splits=splits, seed=seed, max_length=longest, metric=metric)
        subject.inputs = tuple(name for name in subject.inputs if name in self.splits.train.columns)
        self.notes += [self.splits.note] if self.splits.note else []
        rows = self.splits.train
        order = rows.lengths.argsort(kind="stable")
        self.few = tensors(rows.collate(order[[len(rows) // 4, len(rows) // 2, 3 * len(rows) // 4]]))
        self.sample = tensors(rows.collate(order[len(rows) // 2 :][:1]))

    def call(self, module: nn.Module) -> Any:
        import torch

        with torch.no_grad():
            return self.subject.logits(module, self.few)

    def context(self) -> Any:
        """What techniques work from; answers are not at hand here."""
        from fourfold.rewrite import Context

        examples = self.splits.train if self.splits is not None else None
        return Context(self.subject, self.task, examples, None, None, None, 1.0, self.seed, max_length=self.longest, call=self.call)

    def built(self, rewrite: Rewrite, to: str, edits: tuple[dict[str, object], ...]) -> nn.Module:
        """The converted model before any training: as the technique builds it on data, else the edits alone."""
        from fourfold.recipe import Recipe, apply
        from fourfold.rewrite import Proposal

        if self.splits is None:
            return apply(copy.deepcopy(self.subject.module), Recipe(edits)).eval()
        return rewrite.build(self.context(), Proposal(to, edits, (1.0, 0.0, 1.0))).eval()


def task_of(subject: Subject, hint: str | None) -> Task:
    """What the model's outputs mean, by its head alone: classification, regression, causal_lm …; custom where that does not tell."""
    from fourfold.datasets.columns import HEADS, config_of, outputs_of
    from fourfold.datasets.task import KINDS, Task, default_metric

    config, name = config_of(subject), type(subject.module).__name__
    if hint is not None and hint not in KINDS:
        raise InputError(f"There is no task called {hint!r}.", f"Known: {', '.join(KINDS)}.")
    kind = hint or next((kind for head, kind in HEADS.items() if name.endswith(head)), "custom")
    if kind == "classification" and hint is None and (getattr(config, "problem_type", None) == "regression" or outputs_of(config) == 1):
        kind = "regression"
    names = getattr(config, "id2label", None)
    classes = [str(names[i]) for i in sorted(names)] if kind == "classification" and isinstance(names, dict) else None
    return Task(kind, classes, default_metric(kind))


def _conversions(rewrite: Rewrite, given: _Given, blocks: set[int] | None, to: str) -> tuple[Rewrite, Sites, list[Conversion]]:
    """(technique, sites found, what it does to those of `blocks`). Raises where a block is not there, or nothing can be converted."""
    from fourfold.structure.sites import sites

    module = given.subject.module
    if why := rewrite.declines(module):
        raise ModelError(f"{to}: {why}", "Choose another conversion (`fourfold list`), or another model.")
    found = sites(module, given.call)
    there = {site.block for site in (*found.attentions, *found.mlps)}
    if blocks is not None and (lacking := blocks - there):
        known = f"blocks {min(there)} to {max(there)}" if there else "no blocks in which an attention or an MLP was found"
        raise InputError(f"There is no block {min(lacking)} to convert; the model has {known}.", "Give numbers of these (--layers).")
    return rewrite, found, rewrite.conversions(found.within(blocks), to)


def _left(found: Sites, conversions: Sequence[Conversion]) -> dict[str, str]:
    """What could not be taken, and why."""
    done = {one.site for one in conversions}
    return {name: why for name, why in found.refusals.items() if name not in done}


def _moved(before: nn.Module, after: nn.Module, call: Call) -> float:
    """By how much the answers to the sample differ, relative to the largest of the original's."""
    wanted, found = call(before).float(), call(after).float()
    if found.shape != wanted.shape:
        raise ModelError(f"the converted model answers {tuple(found.shape)} where the original answers {tuple(wanted.shape)}",
                         "This is a fault of the conversion; convert other layers.")
    if not found.isfinite().all():
        raise ModelError("the converted model answers NaN or infinity on the sample", "Convert other layers, or another way.")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def _kept(
    result: Converted, given: _Given, edits: tuple[dict[str, object], ...], target: Path | None, force: bool, ledger: str | Path | None
) -> Converted:
    """The result, written and booked where that was asked for and the floor is held."""
    from fourfold.jobs.convert.keep import book, save

    if target is not None and result.holds:
        folder = save(result, given.subject, given.task, given.splits, given.few, edits, target, force=force, longest=given.longest)
        result = replace(result, folder=folder)
    elif target is not None:
        result = replace(result, notes=(*result.notes, f"Not written to {target}: the floor is not held."))
    if ledger is not None:
        book(ledger, result, given.subject)
    return result


def _words(reference: object) -> str:
    if isinstance(reference, str | Path):
        return str(reference)
    return f"{type(reference).__module__}.{type(reference).__qualname__}"


