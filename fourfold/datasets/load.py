"""The user's data read, encoded and split, so that what proves the result was never seen by the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets import split
from fourfold.datasets.encode import encode
from fourfold.datasets.examples import Examples, Ragged, Splits
from fourfold.datasets.generation import GenerationAsked, prompted, writes
from fourfold.datasets.metrics import probe
from fourfold.datasets.parts import joined
from fourfold.datasets.sources import read
from fourfold.datasets.task import Task
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.datasets.metrics import Metric
    from fourfold.datasets.table import Table
    from fourfold.frontends.subject import Subject


def load_data(
    ref: object,
    task_hint: str | None,
    subject: Subject,
    *,
    columns: Mapping[str, str] | None = None,
    splits: object = None,
    seed: int = 0,
    max_length: int | None = None,
    metric: str | Metric | Callable[[object, object], float] | None = None,
    generation: GenerationAsked | None = None,
) -> tuple[Splits, Task]:
    """Read, encode and split the user's data.

    ref: see `fourfold.datasets.sources.read`. task_hint: a kind of task, or None to infer it from model and data. columns: {"text": …, "pair": …,
    "label": …, "split": …} where names do not tell. splits: shares of train, search and test, or the name of a column that says which. max_length:
    tokens (samples) per example; by default what the model can read, and at most 256 for language modelling. metric: a name, a `Metric` or a
    function (predictions, targets) -> float; the default suits the task. generation: the rows are prompts of a model that generates
    (`fourfold.datasets.generation`).

    Raises InputError naming file and line wherever the data cannot be used, MissingExtra where a reader is not installed.
    """
    found = read(ref)
    parts = found if isinstance(found, dict) else {"all": found}
    table, side = joined(parts)
    given = dict(columns or {})
    if isinstance(splits, str):
        given["split"], splits = splits, None
    part_shares = split.fractions(splits)
    if generation is not None and _prompts(table, task_hint, subject):
        side = roles.sides_of(table, given["split"]) if "split" in given else side
        examples, task, origin, notes = prompted(table, given, subject, generation, max_length, own=metric == "agreement")
        return _split(examples, task, side[origin], part_shares, seed, table, notes, metric)
    role = roles.roles_of(table, given, subject, task_hint, labelled=metric != "agreement")
    if metric == "agreement":  # judged by the original's own answers, whatever the labels say
        role = replace(role, label=None)
    kind = roles.kind_of(task_hint, subject, table, None if role.label is None else table.columns[role.label])
    if kind in ("classification", "regression") and role.label is None and metric != "agreement":
        raise roles.unlabelled(table, role)
    if role.side:
        side = roles.sides_of(table, role.side)
    examples, task, origin, notes = encode(table, role, kind, subject, max_length)
    if generation is not None:
        task = writes(examples, task, generation, subject)
    return _split(examples, task, side[origin], part_shares, seed, table, notes, metric)


def _prompts(table: Table, hint: str | None, subject: Subject) -> bool:
    """Whether the rows of a generating workload are prompts to be continued; False: an encoder reads them. InputError where the model does
    neither."""
    kind = roles.kind_of(hint, subject, table, None)
    if kind not in ("causal_lm", "seq2seq"):
        raise InputError(f"--workload generate is for models that generate, and {type(subject.module).__name__} is for {kind}.",
                         "Leave --workload out, or give a causal language model or an encoder–decoder.")
    return kind == "causal_lm"


def _split(examples: Examples, task: Task, side: np.ndarray, part_shares: dict[str, float] | None, seed: int, table: Table, notes: list[str],
           metric: str | Metric | Callable[[object, object], float] | None) -> tuple[Splits, Task]:
    """The examples dealt into splits, and the task with the user's metric."""
    if metric is not None:
        task = task.with_metric(metric)
    where, how = _divide(examples, side, part_shares, seed, table.source)
    made = {name: examples.take(rows) for name, rows in where.items()}
    _check_sides(made, task, table.source)
    if callable(metric) or isinstance(metric, str) and ":" in metric:
        rehearse(task, made["search"])
    note = " ".join([how, *table.notes, *notes])
    return Splits(made["train"], made["search"], made["test"], note, table.nature), task


def _divide(examples: Examples, side: np.ndarray, shares: dict[str, float] | None, seed: int, source: str) -> tuple[dict[str, np.ndarray], str]:
    """Row numbers of train, search and test, and how they came about."""
    given = set(side.tolist())
    stratum = split.strata(examples.targets) if not isinstance(examples.targets, Ragged | None) else np.zeros(len(examples), dtype=np.int64)
    rows = {name: np.flatnonzero(side == name) for name in given}
    said = []
    if "train" in rows:
        for name in ("search", "test"):
            before = [rows[other] for other in ("train", "search") if other in rows and other != name]
            if name in rows:
                seen = np.isin(examples.groups[rows[name]], examples.groups[np.concatenate(before)])
                if seen.any():
                    earlier = "train or search" if len(before) == 2 else "train"
                    said.append(f"{int(seen.sum()):,} {name} rows that also occur in {earlier} were dropped.")
                    rows[name] = rows[name][~seen]
    elif given != {"all"}:
        raise InputError(f"{source}: no row belongs to train.", "Give train and test, or one table to be split.")
    whole = rows.pop("all", rows.get("train", np.zeros(0, dtype=np.int64)))
    units = len(np.unique(examples.groups[whole]))
    missing = [name for name in ("search", "test") if name not in rows]
    if units < (split.FEWEST if missing else 8):
        fewest = split.FEWEST if missing else 8
        raise InputError(
            f"{source}: {units} different rows to learn from; at least {fewest} are needed.",
            "Bring more rows: some 2,000 for the test alone let a loss of one point be seen.",
        )
    all_shares = split.shares_for(units, shares)
    wanted = {name: all_shares[name] for name in ("train", *missing)}
    if missing == ["search"] and shares is None:
        wanted = {"train": 0.8, "search": 0.2}
    carved = split.sides(examples.groups[whole], stratum[whole], wanted, seed) if missing else {"train": np.arange(len(whole))}
    rows.update({name: whole[index] for name, index in carved.items()})
    doubles = len(whole) - units
    if missing:
        what = "train, search and test" if len(missing) == 2 else f"{missing[0]} (taken from train)"
        said.insert(
            0, f"Split into {what} by content, seed {seed}, stratified" + (f"; {doubles:,} duplicates stay with their twins." if doubles else ".")
        )
    else:
        said.insert(0, "Split as given.")
    said[0] += f" {len(rows['train']):,} train, {len(rows['search']):,} search, {len(rows['test']):,} test."
    return {name: np.sort(rows[name]) for name in ("train", "search", "test")}, " ".join(said)


def rehearse(task: Task, examples: Examples) -> None:
    """Call the user's metric twice on answers that are mostly right, before anything dear is run. MetricError as `probe` does."""
    targets, spoilt = examples.targets, np.arange(len(examples)) % 5 == 0
    if task.kind == "classification" and task.classes and targets is not None:
        probe(task.metric, np.eye(len(task.classes))[np.where(spoilt, (targets + 1) % len(task.classes), targets)], targets)
    elif task.kind == "regression" and targets is not None:
        probe(task.metric, (targets + spoilt * targets.std())[:, None], targets)


def _check_sides(made: dict[str, Examples], task: Task, source: str) -> None:
    for name, examples in made.items():
        if len(examples) < 4:
            raise InputError(f"{source}: only {len(examples)} rows for {name}; at least 4 are needed.", "Bring more rows, or other shares (splits).")
    if task.kind == "classification" and made["train"].targets is not None:
        only = np.unique(made["train"].targets)
        if len(only) == 1:
            raise InputError(
                f"{source}: all train rows have the label {task.classes[only[0]] if task.classes else only[0]!r}.",
                "Give rows of at least two classes.",
            )
