"""Answers of a loaded artefact, one per row that was asked, as a list or as a table with scores, identities and inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.datasets.asked import Asked
    from fourfold.datasets.task import Task


class Loaded(Protocol):
    """What answers need of a loaded artefact (see `fourfold.runtime.artefact.Model`)."""

    assembly: Any
    task: Task
    manifest: dict[str, Any]


class Answers(list[object]):
    """One answer per row, None where the row could not be read: `errors` says why, by row number from 0.

    `records` [rows read, k] are what the answers were read off (None where texts were written), `rows` the numbers of the rows that were read.
    """

    errors: dict[int, str]
    records: np.ndarray | None
    rows: np.ndarray
    asked: Asked


def answer(model: Loaded, data: object, columns: Mapping[str, str] | None = None) -> Answers:
    """Answer anything that holds rows; see `fourfold.datasets.asked`. Raises InputError for what holds none."""
    from fourfold.datasets.asked import Asked, asked, encoded

    reader, task = model.assembly.reader(), model.task
    what = data if isinstance(data, Asked) else asked(data, reader)
    examples, rows = encoded(what, task, reader, columns, model.manifest.get("max_length"))
    found = Answers([None] * len(what))
    found.errors, found.records, found.rows, found.asked = dict(sorted(what.errors.items())), None, rows, what
    if examples is None:
        return found
    if task.generation is not None or task.kind == "seq2seq" and task.writing is not None:
        said = model.assembly.answers(examples, task)
    else:
        records = found.records = model.assembly.outputs(examples, task)
        said = list(task.predict(records))
    for row, one in zip(rows.tolist(), said, strict=True):
        found[row] = one
    return found


def table(
    model: Loaded, found: Answers, *, scores: bool = False, probabilities: bool = False, identity: str | None = None, inputs: bool = False
) -> list[dict[str, object]]:
    """A dict per row: its identity and inputs where they are asked for, "prediction", "score …" and "probability …" by class, "error" where some row
    has one. Raises InputError for a column that is not there, and for scores that the task does not have."""
    given = found.asked.columns
    if identity is not None and identity not in given:
        raise InputError(f"{found.asked.source} has no column {identity!r}.", f"It has: {found.asked.table([]).listed()}.")
    if (scores or probabilities) and (found.records is None and len(found.rows) or model.task.kind not in ("classification", "regression")):
        raise InputError(f"A {model.task.kind} model has no scores of classes.", "Ask for its predictions.")
    if probabilities and model.task.kind != "classification":
        raise InputError(f"A {model.task.kind} model gives values, which have no probabilities.", "Use --scores.")
    place = {row: i for i, row in enumerate(found.rows.tolist())}
    names = _names(model, found)
    chances = None if not probabilities or found.records is None else _softmax(found.records)
    out = []
    for row, said in enumerate(found):
        one: dict[str, object] = {}
        if identity is not None:
            one[identity] = given[identity][row]
        if inputs:
            one |= {name: values[row] for name, values in given.items() if name != identity}
        one["prediction"] = said
        for wanted, word, values in ((scores, "score", found.records), (probabilities, "probability", chances)):
            if wanted:
                at = place.get(row)
                numbers: Sequence[float | None] = [None] * len(names) if at is None or values is None else [float(x) for x in values[at]]
                one |= {f"{word} {name}".rstrip(): number for name, number in zip(names, numbers, strict=True)}
        if found.errors:
            one["error"] = found.errors.get(row, "")
        out.append(one)
    return out


def _names(model: Loaded, found: Answers) -> list[str]:
    if model.task.kind == "regression":
        return [""]
    count = found.records.shape[1] if found.records is not None else len(model.task.classes or [])
    return list(model.task.classes) if model.task.classes and len(model.task.classes) == count else [str(i) for i in range(count)]


def _softmax(records: np.ndarray) -> np.ndarray:
    powers = np.exp(records - records.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
