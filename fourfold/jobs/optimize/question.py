"""Before time is spent: can the original answer a batch of its data, does it answer with more than is judged, and do its classes and the labels
belong together?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import InputError, ModelError

if TYPE_CHECKING:
    from fourfold.frontends.subject import Subject
    from fourfold.jobs.optimize.state import Job

ROWS = 8  # rows of the first batch
ASIDE = ("past_key_values", "hidden_states", "attentions", "loss", "encoder_last_hidden_state", "decoder_hidden_states", "cross_attentions",
         "encoder_hidden_states", "encoder_attentions", "decoder_attentions")   # fmt: skip
MUCH = 0.1  # share of the rows by which another order of the classes must be better to be named


def tried(job: Job) -> None:
    """Run the original on its longest and its shortest rows, together and alone. ModelError or InputError in words where it cannot answer them; a
    warning where padding changes answers, or where it answers with more than is judged."""
    import torch

    from fourfold.rewrites.compress.distil import tensors

    examples, module = job.splits.train, job.subject.module
    order = np.argsort(-examples.lengths, kind="stable")
    rows = np.unique(np.r_[order[: ROWS // 2], order[-(ROWS // 2) :]])
    with torch.no_grad():
        try:
            together = job.subject.logits(module, tensors(examples.collate(rows))).float().numpy()
            alone = [job.subject.logits(module, tensors(examples.collate(rows[i : i + 1]))).float().numpy() for i in range(len(rows))]
        except (ModelError, InputError):
            raise
        except Exception as error:  # whatever a foreign forward raises is the finding
            raise _unanswered(error, job.subject) from error
    if job.task.kind == "classification" and together.ndim == 2:
        other = int((together.argmax(1) != np.concatenate(alone).argmax(1)).sum())
        if other:
            side = "left" if examples.left else "right"
            job.warnings.append(
                f"The original answers {other} of {len(rows)} rows otherwise in a padded batch than alone; batches are padded at the {side}, as its "
                "tokenizer says."
            )
    left_out = list(_beside(job, tensors(examples.collate(rows[:1]))))
    if left_out:
        job.warnings.append(f"Of what the model answers only one tensor is judged and kept; left out: {', '.join(left_out)}.")


def _unanswered(error: Exception, subject: Subject) -> InputError | ModelError:
    said = (str(error).strip().splitlines() or [""])[0][:160]
    if "padding token" in said:
        return InputError(
            f"{type(subject.module).__name__} needs a padding token to answer several texts at once, and neither its configuration nor its tokenizer "
            "names one.",
            "Name one that no text holds: tokenizer.pad_token = '<pad>', model.config.pad_token_id = tokenizer.pad_token_id; save both.",
        )
    return ModelError(
        f"the original cannot answer a batch of its own data: {type(error).__name__}: {said}",
        "Check that inputs and model belong together; it is called as model(**batch).",
    )


def _beside(job: Job, inputs: Mapping[str, Any]) -> Iterator[str]:
    """Names and shapes of the floating tensors that the original answers with beside the one that is judged."""
    import torch

    from fourfold.frontends.subject import answer

    kept: list[Any] = []
    handle = job.subject.module.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        with torch.no_grad():
            job.subject.logits(job.subject.module, inputs)
    finally:
        handle.remove()
    output = kept[-1] if kept else None
    if isinstance(output, torch.Tensor) or output is None:
        return
    chosen = answer(output)
    named = output.items() if isinstance(output, Mapping) else [(f"output {i}", part) for i, part in enumerate(output)]
    for name, value in named:
        one = isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim and value is not chosen
        stacked = name in ("start_logits", "end_logits") and isinstance(output, Mapping)
        if one and name not in ASIDE and not stacked:
            yield f"{name} {list(value.shape)}"


def questioned(job: Job) -> None:
    """Compare the original's answers on the search split with the majority class, and with other orders of its classes.

    InputError where it is no better than the majority, or far better under another order of its classes, unless the user said `anyway`: then a
    warning.
    """
    answered = job.splits.search.targets is None or job.splits.train.targets is None or job.task.metric.name == "agreement"
    if job.task.kind != "classification" or answered:
        return
    from fourfold.datasets.constant import majority

    records, targets = job.base_search, np.asarray(job.splits.search.targets)
    metric = job.task.metric
    constant = majority(np.asarray(job.splits.train.targets), records.shape[1]).records(range(len(targets)))
    own, plain = float(metric.score(records, targets)), float(metric.score(constant, targets))
    sign = 1 if metric.greater_is_better else -1
    right = float((records.argmax(1) == targets).mean())
    order = best_order(records, targets)
    other = float((order[records.argmax(1)] == targets).mean())
    swapped = other > right + MUCH and other > float((constant.argmax(1) == targets).mean()) + MUCH
    if not swapped and sign * own > sign * plain:
        return
    said = f"The original's {metric.name} is {own:.3g} on {len(targets):,} rows, where always answering the most frequent class has {plain:.3g}"
    if swapped:
        names = job.task.classes or [str(i) for i in range(records.shape[1])]
        which = ", ".join(f"{names[i]} → {names[int(j)]}" for i, j in enumerate(order) if i != j)
        said = f"The original is right in {right:.0%} of {len(targets):,} rows; with its classes read in another order ({which[:120]}) in {other:.0%}"
    if job.options.anyway:
        job.warnings.append(f"{said}: do labels and model belong together?")
        return
    raise InputError(
        f"{said}: do labels and model belong together?",
        "Write the model's own class names (config.id2label) into the label column; --anyway goes on as it is.",
    )


def best_order(records: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The permutation of the classes under which most answers are right: order[answered class] = class of the labels (Kuhn 1955). records [N, C]."""
    from scipy.optimize import linear_sum_assignment

    count = records.shape[1]
    table = np.zeros((count, count))
    inside = targets < count
    np.add.at(table, (records.argmax(1)[inside], targets[inside]), 1)
    np.fill_diagonal(table, table.diagonal() + 1e-6)  # of equal orders the one that changes least
    return linear_sum_assignment(table, maximize=True)[1]
