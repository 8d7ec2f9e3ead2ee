"""Rows of models that generate: a prompt and what follows it, as whole sequences whose prompt is not asked for, and the workload that they make.

Columns are read as people keep them: `messages` (a chat: lists of {"role", "content"}), `prompt` with `completion` (or another pair that names source
and target), `prompt` alone, or `text`, of which the beginning is taken as the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets import split
from fourfold.datasets.examples import Examples, Ragged
from fourfold.datasets.task import IGNORE, Generation, Task, default_metric, text_of
from fourfold.datasets.tokenise import longest, paddings, rows_of, tokenizer_of
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.datasets.table import Table
    from fourfold.frontends.subject import Subject

PROMPT, NEW = 128, 64  # most tokens of prompt and answer where the data have longer ones and nobody said
SHORTEST = 12  # tokens of a text below which it is not worth a prompt and an answer
CHATS = ("messages", "conversation", "conversations", "chat")
PROMPTS = ("prompt", "instruction", "question", "query", "input", "source")
Row = tuple[list[int], list[int] | None, str]


@dataclass(frozen=True)
class GenerationAsked:
    """What the user said of the workload; None: read off the data."""

    prompt: int | None = None
    new: int | None = None
    batch: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, value in (("prompt-tokens", self.prompt), ("new-tokens", self.new), *(("batch", one) for one in self.batch or ())):
            if value is not None and value < 1:
                raise InputError(f"--{name} {value} is not a number of {'rows' if name == 'batch' else 'tokens'}.", "Give at least 1.")


def prompted(table: Table, told: Mapping[str, str], subject: Subject, asked: GenerationAsked, max_length: int | None, *,
             own: bool = False) -> tuple[Examples, Task, np.ndarray, list[str]]:
    """Whole sequences (prompt and answer), targets of the answer only, the task, the table row of each example, and what was noticed.

    own: what the data say follows is left aside, because the original's own continuations are to be judged by; targets are None then, and where the
    data hold prompts alone. Raises InputError where no column can be read, a chat has no template, or prompt and answer are longer than the model has
    positions for.
    """
    tokenizer, limit = tokenizer_of(subject), longest(subject, None)
    read, kind = _rows(table, told, tokenizer)
    prompt, new = _lengths(read, kind, asked, limit, max_length)
    room = max([new, *(len(after) + 1 for _, after, _ in read if after is not None)]) if kind in ("pair", "chat") and asked.new is None else new
    room = min(room, max(new, limit - prompt))
    most = min(max_length or limit, limit - room)
    kept, cut, short = [], 0, 0
    for number, (before, after, raw) in enumerate(read):
        if kind == "text":
            if len(before) < SHORTEST:
                short += 1
                continue
            at = min(prompt, 2 * len(before) // 3)
            before, after = before[:at], before[at : at + new]
        if not before or after is not None and not after:
            short += 1
            continue
        cut += len(before) > most
        kept.append((number, before[-most:], None if after is None or own else after[:room], raw if len(before) <= most and kind != "text" else None))
    if not kept:
        raise InputError(f"{table.source} holds no row with a prompt and an answer after it.",
                         f"Give texts of at least {SHORTEST} tokens, or columns prompt and completion that are not empty.")
    notes = [f"{short:,} rows without a prompt and an answer were left out."] if short else []
    notes += [f"{cut:,} prompts are longer than {most:,} tokens and were cut at their beginning."] if cut else []
    stops = stops_of(subject)
    if not stops:
        notes.append(f"Neither model nor tokenizer names an end-of-sequence token: every answer has {room} tokens.")
    whole = rows_of([[*before, *(after or ())] for _, before, after, _ in kept])
    targets = None
    if all(after is not None for _, _, after, _ in kept):
        targets = rows_of([[IGNORE] * len(before) + list(after or ()) for _, before, after, _ in kept])
    columns: dict[str, object] = {"input_ids": whole}
    if "attention_mask" in subject.inputs:
        columns["attention_mask"] = Ragged(np.ones(len(whole.values), np.int64), whole.offsets)
    texts = [raw for _, _, _, raw in kept]
    groups = np.array([split.group_of(before) for _, before, _, _ in kept], np.int64)
    raw = [text for text in texts if text is not None]
    examples = Examples(columns, targets, None, paddings(subject), raw if len(raw) == len(texts) and kind != "chat" else None, groups, cut)
    generation = Generation(prompt, new, room, asked.batch or (1,), stops, chat=kind == "chat")
    task = Task("causal_lm", None, default_metric("causal_lm"), width=room, decoder=text_of(tokenizer), generation=generation)
    if kind == "prompt" or own:
        notes.append("What follows each prompt is the original's own greedy continuation.")
    return examples, task, np.array([number for number, *_ in kept]), notes


def _rows(table: Table, told: Mapping[str, str], tokenizer: Any) -> tuple[list[Row], str]:
    """(prompt tokens, answer tokens or None, the prompt's text) of every row, and which kind of column they came from."""
    lower = {name.lower(): name for name in table.columns}
    text, label = told.get("text"), told.get("label")
    chat = text or next((lower[name] for name in CHATS if name in lower), None)
    if chat is not None and any(isinstance(one, list | np.ndarray) for one in list(table.columns[chat])[:20]):
        return _chats(table, chat, tokenizer), "chat"
    pair = next(((lower[a], lower[b]) for a, b in roles.SOURCE_TARGET if a in lower and b in lower), None)
    text, label = text or (pair[0] if pair else None), label or (pair[1] if pair and text in (None, pair[0]) else None)
    if label is None and text is None:
        text = next((lower[name] for name in PROMPTS if name in lower), None)
        if text is None:
            text = roles.roles_of(table, told, None, "causal_lm").text
            documents = roles.texts_of(table, str(text))
            return [(ids, None, one) for ids, one in zip(_encoded(tokenizer, documents), documents, strict=True)], "text"
    prompts = roles.texts_of(table, str(text))
    before = _encoded(tokenizer, prompts)
    if label is None:
        plain = text is not None and str(text).lower() not in PROMPTS
        return [(ids, None, one) for ids, one in zip(before, prompts, strict=True)], "text" if plain else "prompt"
    answers = [joint(one, after) for one, after in zip(prompts, roles.texts_of(table, label), strict=True)]
    after = tokenizer(answers, add_special_tokens=False, padding=False, truncation=False, verbose=False)["input_ids"]
    return [(ids, list(more), one) for ids, more, one in zip(before, after, prompts, strict=True)], "pair"


def asked_for(texts: Sequence[str], task: Task, subject: Subject, max_length: int | None) -> Examples:
    """Prompts to be answered. Those longer than what the model reads before it answers are cut at their beginning."""
    assert task.generation is not None
    tokenizer, limit = tokenizer_of(subject), longest(subject, None)
    most = min(max_length or limit, max(1, limit - min(task.generation.limit, limit // 2)))
    if task.generation.chat:
        rows = [chat_prompt(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    else:
        rows = _encoded(tokenizer, texts)
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        raise InputError(f"row {empty[0] + 1} has no tokens.", "Give a prompt of at least one word.")
    column = rows_of([row[-most:] for row in rows])
    columns = {"input_ids": column, "attention_mask": Ragged(np.ones(len(column.values), np.int64), column.offsets)}
    return Examples(columns, None, None, paddings(subject), list(texts), np.arange(len(rows)), sum(len(row) > most for row in rows))


def joint(prompt: str, answer: str) -> str:
    """The answer as it continues the prompt: a space between two words that would run together."""
    return f" {answer}" if prompt[-1:].strip() and answer[:1].isalnum() else answer


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]]


def _chats(table: Table, name: str, tokenizer: Any) -> list[Row]:
    found: list[Row] = []
    for row, messages in enumerate(table.columns[name]):
        messages = list(messages) if isinstance(messages, list | np.ndarray) else None
        good = messages and all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages)
        if not good:
            raise InputError(f"{table.where([row])}: {name!r} holds no messages.", 'Give a list of {"role": "user", "content": "…"}.')
        assert messages is not None
        answer = messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
        before = chat_prompt(tokenizer, messages[:-1] if answer is not None else messages)
        after = None if answer is None else list(tokenizer(str(answer), add_special_tokens=False, verbose=False)["input_ids"])
        found.append((before, after, ""))
    return found


def chat_prompt(tokenizer: Any, messages: Sequence[Mapping[str, object]]) -> list[int]:
    """Tokens of a conversation up to where the assistant answers. InputError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("The rows are chats (lists of messages), and the tokenizer has no chat template.",
                         "Save one with it (tokenizer.chat_template = …), or write the prompts out in a column 'prompt'.")
    found = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True)
    return list(found["input_ids"] if isinstance(found, Mapping) or hasattr(found, "keys") else found)


def _lengths(rows: Sequence[Row], kind: str, asked: GenerationAsked, limit: int, max_length: int | None) -> tuple[int, int]:
    """Tokens of prompt and answer: as asked, else medians of the data."""
    befores = np.array([len(before) for before, _, _ in rows] or [1])
    afters = np.array([len(after) for _, after, _ in rows if after is not None] or [0])
    middle = int(np.median(befores))
    new = asked.new or (min(NEW, max(4, middle // 3)) if kind == "text" else int(min(NEW, max(1, np.median(afters)))) if afters.any() else NEW)
    new = new if asked.new else min(new, max(1, limit // 3))
    prompt = asked.prompt or (min(PROMPT, max(8, 2 * middle // 3)) if kind == "text" else middle)
    prompt = prompt if asked.prompt else max(1, min(prompt, max_length or limit, limit - new))
    if prompt + new > limit:
        raise InputError(f"a prompt of {prompt:,} and an answer of {new:,} tokens are longer than the {limit:,} positions that the model has.",
                         f"Give --prompt-tokens and --new-tokens of at most {limit:,} together.")
    return prompt, new


def stops_of(subject: Subject) -> tuple[int, ...]:
    """Tokens that end an answer: those of the model's generation settings, its configuration and its tokenizer."""
    found: set[int] = set()
    tokenizer = subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    settings = getattr(getattr(subject, "module", None), "generation_config", None)
    for holder in (settings, roles.config_of(subject), tokenizer):
        given = getattr(holder, "eos_token_id", None)
        found |= {int(one) for one in (given if isinstance(given, list | tuple) else [given]) if isinstance(one, int) and one >= 0}
    return tuple(sorted(found))


def writes(examples: Examples, task: Task, asked: GenerationAsked, subject: Subject) -> Task:
    """The task of an encoder–decoder as a generating workload: lengths as asked, else medians of the data."""
    assert task.writing is not None
    sizes = examples.targets.sizes() if isinstance(examples.targets, Ragged) else np.array([task.writing.limit])
    new = asked.new or max(1, int(np.median(sizes)))
    if asked.prompt is not None and "input_ids" not in subject.inputs:
        raise InputError("--prompt-tokens was given, and the model reads no text.", "Leave it out: the rows are raced as they are.")
    prompt = asked.prompt or int(np.median(examples.lengths))
    writing = replace(task.writing, limit=max(task.writing.limit, new))
    stops = stops_of(subject) or ((writing.stop,) if writing.stop is not None else ())
    made = Generation(prompt, new, writing.limit, asked.batch or (1,), stops, encodes=True)
    return replace(task, generation=made, writing=writing, width=max(task.width, writing.limit)).with_metric(task.metric.name)


def prompt_sizes(examples: Examples) -> np.ndarray:
    """Tokens of each row's prompt, int64 [N]: those before the first that is asked for; all where nothing is."""
    whole = examples.columns["input_ids"]
    if not isinstance(examples.targets, Ragged):
        return whole.sizes()
    asked = examples.targets.values != IGNORE
    before = np.concatenate([[0], np.cumsum(asked)])
    first = np.searchsorted(before, before[examples.targets.offsets[:-1]], side="right") - 1
    return np.minimum(first - examples.targets.offsets[:-1], whole.sizes())


def continued(examples: Examples, answers: Sequence[Sequence[int]]) -> Examples:
    """The prompts of `examples` with these answers after them, which are asked for."""
    whole, sizes = examples.columns["input_ids"], prompt_sizes(examples)
    befores = [whole[i][: sizes[i]].tolist() for i in range(len(examples))]
    column = rows_of([[*b, *a] for b, a in zip(befores, answers, strict=True)])
    targets = rows_of([[IGNORE] * len(b) + list(a) for b, a in zip(befores, answers, strict=True)])
    columns: dict[str, Any] = dict(examples.columns)
    columns["input_ids"] = column
    if "attention_mask" in columns:
        columns["attention_mask"] = Ragged(np.ones(len(column.values), np.int64), column.offsets)
    return replace(examples, columns=columns, targets=targets, lengths=column.sizes())


def facts(generation: Generation) -> dict[str, object]:
    """As JSON."""
    return asdict(generation)
