"""Rows of a generating workload asked of a `Decoding`: as taught (the answers given, judged token by token) or as written, and what serving costs.

A call of a race is one batch of every size that is served; every row gets exactly the workload's new tokens, so that all who race do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.generation import prompt_sizes
from fourfold.datasets.metrics import rouge_l
from fourfold.datasets.task import IGNORE, Task, edits
from fourfold.engines.base import Session
from fourfold.runtime.generate import Generated, Sampling, draws, generate

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.engines.decode.base import Decoding


class GeneratingSession(Session):
    """A `Decoding` as a part of an artefact holds it."""

    queues = True

    def __init__(self, decoding: Decoding) -> None:
        self.decoding, self.bytes = decoding, decoding.bytes

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits [B, V] after the prompts."""
        length = int(np.asarray(inputs["decoder_input_ids" if self.decoding.encodes else "input_ids"]).shape[1])
        return self.decoding.start(inputs, length)[1]

    def describe(self) -> dict[str, object]:
        return self.decoding.describe()

    def close(self) -> None:
        self.decoding.close()


def prompts(examples: Examples, index: np.ndarray, task: Task, most: int | None = None) -> dict[str, np.ndarray]:
    """The prompts of a batch as `Decoding.start` reads them: left-padded; with `most`, their last so many tokens. Of encoder–decoders, the encoder's
    inputs and the tokens that every answer begins with."""
    if task.writing is not None and (task.generation is None or task.generation.encodes):
        batch = {name: value for name, value in examples.collate(index).items() if not name.startswith("decoder_")}
        begin = [task.writing.start, *task.writing.prefix]
        return batch | {"decoder_input_ids": np.tile(np.array(begin, np.int64), (len(index), 1))}
    whole, sizes = examples.columns["input_ids"], prompt_sizes(examples)[index]
    return padded([whole[int(i)][:size][-(most or size) :] for i, size in zip(index, sizes, strict=True)], examples.pad.get("input_ids", 0))


def padded(rows: Sequence[Sequence[int] | np.ndarray], pad: float = 0) -> dict[str, np.ndarray]:
    """Token rows as a left-padded batch with its mask."""
    length = max(map(len, rows))
    ids, mask = np.full((len(rows), length), int(pad), np.int64), np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :], mask[i, length - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def wanted(examples: Examples, index: np.ndarray, task: Task) -> list[np.ndarray]:
    """The answers that the data give, without the prompt and, of encoder–decoders, without the tokens that every answer begins with."""
    if examples.targets is None:
        return [np.zeros(0, np.int64)] * len(index)
    rows = [np.asarray(examples.targets[int(i)]) for i in index]
    if task.writing is not None:
        return [row[len(task.writing.prefix) :] for row in rows]
    return [row[row != IGNORE] for row in rows]


def taught(model: Decoding, examples: Examples, task: Task, index: np.ndarray) -> np.ndarray:
    """Records [B, 4 + …] of the given answers, every token after those before it (teacher forcing)."""
    given, answers = prompts(examples, index, task), wanted(examples, index, task)
    length = int(given["decoder_input_ids" if model.encodes else "input_ids"].shape[1])
    longest = max(1, *(len(answer) for answer in answers))
    tokens = np.zeros((len(index), longest), np.int64)
    for row, answer in zip(tokens, answers, strict=True):
        row[: len(answer)] = answer
    state, first = model.start(given, length + longest - 1)
    logits = first[:, None] if longest == 1 else np.concatenate([first[:, None], model.step(state, tokens[:, :-1])], 1)
    return np.stack([task.taught(rows[: len(answer)], answer) for rows, answer in zip(logits, answers, strict=True)])


def written(model: Decoding, examples: Examples, task: Task, index: np.ndarray) -> np.ndarray:
    """Records [B, 6 + width] of answers written greedily: word edits, words of the reference, 1 where the texts are equal, ROUGE-L, tokens of the
    longer, tokens equal at their places, and the tokens."""
    found = ask(model, examples, task, index)
    answers = wanted(examples, index, task)
    stops = set(task.generation.stops) if task.generation else set()
    references = [[int(t) for t in answer if int(t) not in stops] for answer in answers]
    rows = []
    for ids, text, reference, want in zip(found.tokens, task.texts(found.tokens), references, task.texts(references), strict=True):
        words, said = want.split(), text.split()
        same = sum(a == b for a, b in zip(ids, reference, strict=False))
        row = np.full(6 + task.width, -1.0)
        row[:6] = (edits(words, said), len(words), text.strip() == want.strip(), rouge_l(words, said), max(1, len(ids), len(reference)), same)
        row[6 : 6 + len(ids)] = ids[: task.width]
        rows.append(row)
    return np.stack(rows)


def ask(model: Decoding, examples: Examples, task: Task, index: np.ndarray, *, new: int | None = None, how: Sampling | None = None,
        stops: Sequence[int] | None = None, most: int | None = None, heard: Callable[[int, int], None] | None = None,
        rng: Sequence[np.random.Generator] | None = None) -> Generated:
    """Rows answered: `new` tokens at most (the task's own limit), until one of `stops` (the task's)."""
    assert task.generation is not None
    given = prompts(examples, index, task, most)
    length = int(given["decoder_input_ids" if model.encodes else "input_ids"].shape[1])
    limit = new or (task.writing.limit if task.writing is not None else task.generation.limit)
    limit = limit if model.positions is None else max(1, min(limit, model.positions - length + 1))
    return generate(model, given, limit, stops=task.generation.stops if stops is None else stops, how=how, rng=rng, heard=heard,
                    scored=False)


def judged(model: Decoding, examples: Examples, task: Task, batch: int, progress: Callable[[int], None] = lambda rows: None) -> np.ndarray:
    """Records [N, k] of all rows, in their order: written where the metric is of texts, else taught."""
    one, rows = written if task.generates else taught, None
    for index in examples.batches(batch):
        part = one(model, examples, task, index)
        rows = np.zeros((len(examples), part.shape[1])) if rows is None else rows
        rows[index] = part
        progress(len(index))
    assert rows is not None
    return rows


def texts(model: Decoding, examples: Examples, task: Task, batch: int) -> list[str]:
    """What is answered to every row, greedily."""
    found = [""] * len(examples)
    for index in examples.batches(batch):
        for i, text in zip(index, task.texts(ask(model, examples, task, index).tokens), strict=True):
            found[int(i)] = text
    return found


def replied(model: Decoding, examples: Examples, task: Task, batch: int, new: int | None, how: Sampling,
            heard: Callable[[int, str], None] | None, drafts: Mapping[str, Any] | None = None) -> list[str]:
    """What follows every row, at most `new` tokens. `heard` is told what each row's text grew by; with it, rows are answered in their order.

    drafts: {"choice", "tie"} as a manifest keeps them where drafts pay; used for rows that are answered alone.
    """
    found, random = [""] * len(examples), draws(len(examples), how)
    order = examples.batches(batch, bucket=heard is None)
    for index in order:
        told, growing = dict.fromkeys(map(int, index), ""), {int(i): [] for i in index}

        def hear(row: int, token: int, index: np.ndarray = index, told: dict[int, str] = told, growing: dict[int, list[int]] = growing) -> None:
            at = int(index[row])
            growing[at].append(token)
            text = task.texts([growing[at]])[0]
            if heard is not None and not text.endswith("\ufffd"):  # half of a character is not told
                heard(at, text[len(told[at]) :])
                told[at] = text

        if new is not None and model.positions is not None:
            model.fits(len(prompts(examples, index, task)["decoder_input_ids" if model.encodes else "input_ids"][0]) + new - 1)
        if drafts is not None and len(index) == 1:
            found[int(index[0])] = task.texts([_drafted(model, examples, task, index, new, drafts, hear if heard is not None else None)])[0]
            continue
        made = ask(model, examples, task, index, new=new, how=how, rng=[random[int(i)] for i in index], heard=hear if heard is not None else None)
        for i, text in zip(index, task.texts(made.tokens), strict=True):
            found[int(i)] = text
    return found


def _drafted(model: Decoding, examples: Examples, task: Task, index: np.ndarray, new: int | None, drafts: Mapping[str, Any],
             hear: Callable[[int, int], None] | None) -> list[int]:
    """One row answered greedily with drafts, which makes the same tokens as without."""
    from fourfold.decisions.drafting.problem import DraftChoice
    from fourfold.runtime.drafting.gate import drafter_of
    from fourfold.runtime.drafting.speculative import generate as speculated

    assert task.generation is not None
    choice, stops, given = DraftChoice.from_json(drafts["choice"]), set(task.generation.stops), prompts(examples, index, task)
    limit = new or task.generation.limit
    limit = limit if model.positions is None else max(1, min(limit, model.positions - given["input_ids"].shape[1] + 1))

    def told(row: int, tokens: np.ndarray) -> None:
        for token in tokens.tolist():
            if hear is not None and token not in stops:
                hear(row, int(token))

    made = speculated(model, given, limit, drafter_of(choice.draft), choice, stop=stops, tie=float(drafts["tie"]), told=told)
    return [int(token) for token in made.tokens[0] if int(token) not in stops]


@dataclass
class Phases:
    """Of a runner's calls, by batch size: lists of (wall seconds to the first token, its CPU seconds, wall of the rest, CPU of the rest, steps)."""

    by_batch: dict[int, list[tuple[float, float, float, float, int]]] = field(default_factory=dict)

    def add(self, batch: int, found: Generated) -> None:
        rest = found.seconds_per_token * max(found.steps, 1)
        self.by_batch.setdefault(batch, []).append((found.seconds_first, found.cpu_first, rest, found.cpu_rest, found.steps))

    def told(self, prompt: int, new: int) -> dict[str, object]:
        """Medians as JSON, by batch size: seconds to the first token, CPU seconds a prompt (prefill) and a new token (decode), tokens a second."""
        found: dict[str, object] = {}
        for batch, rows in sorted(self.by_batch.items()):
            first, cpu_first, rest, cpu_rest, steps = np.median(np.array(rows), axis=0)
            found[str(batch)] = {
                "first_token_s": float(first), "prefill_cpu_s": float(cpu_first / batch), "decode_cpu_s": float(cpu_rest / max(1.0, steps) / batch),
                "tokens_per_s": float(batch * new / max(1e-9, first + rest)), "decode_tokens_per_s": float(batch * steps / max(1e-9, rest)),
                "prompt_tokens": prompt, "new_tokens": new, "calls": len(rows),
            }
        return found


def workload(examples: Examples, task: Task, seed: int, calls: int) -> list[list[np.ndarray]]:
    """Rows of every call: one batch of each size served, drawn anew from rows whose prompts are long enough where there are some."""
    assert task.generation is not None
    rng, sizes = np.random.default_rng([seed, 23]), examples.lengths if task.generation.encodes else prompt_sizes(examples)
    pool = np.flatnonzero(sizes >= task.generation.prompt)
    pool = pool if len(pool) >= max(task.generation.batch) else np.argsort(-sizes, kind="stable")[: max(16, *task.generation.batch)]
    return [[rng.choice(pool, size, replace=len(pool) < size) for size in task.generation.batch] for _ in range(calls)]


def call(model: Decoding, examples: Examples, task: Task, rows: Sequence[np.ndarray], phases: Phases | None = None) -> None:
    """Answer one call's batches: the workload's prompt and new tokens, no stop."""
    assert task.generation is not None
    for index in rows:
        found = ask(model, examples, task, index, new=task.generation.new, stops=(), most=task.generation.prompt)
        if phases is not None:
            phases.add(len(index), found)
