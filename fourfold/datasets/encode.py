"""A table becomes columns of model inputs: texts tokenised once in one batch, pictures and sounds through the model's own processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets import split
from fourfold.datasets.examples import Examples, Ragged
from fourfold.datasets.media import pictures, sounds
from fourfold.datasets.metrics import METRICS
from fourfold.datasets.parts import joined
from fourfold.datasets.sources import read
from fourfold.datasets.table import Table
from fourfold.datasets.task import Speech, Task, Writing, default_metric, text_of
from fourfold.datasets.tokenise import longest, padded_left, paddings, rows_of, tokenised, tokenizer_of, tokens_in
from fourfold.datasets.unread import Unread
from fourfold.errors import InputError

if TYPE_CHECKING:

    from fourfold.frontends.subject import Subject

BLOCK = 256  # tokens per block of language modelling, where the model can read as many
PASSAGES = 200  # a single long text is cut into about this many passages, the units that are split and resampled
FLOATS = ("pixel_values", "input_values", "input_features")  # inputs that are real numbers whatever the data's type
SHORT = 8  # mean tokens of a target up to which exact match is the default metric of text-to-text tasks
Encoded = tuple[Examples, Task, np.ndarray, list[str]]  # …, table row of each example, notes


def encode(table: Table, role: roles.Roles, kind: str, subject: Subject, max_length: int | None) -> Encoded:
    """Inputs and targets of every row, the task they make, the row that each example came from, and what was noticed."""
    notes: list[str] = []
    if kind == "causal_lm" and table.nature in ("table", "text"):
        return _language(table, role, subject, max_length)
    examples = _inputs(table, role, subject, max_length, notes)
    if kind == "causal_lm":
        examples.left = ()  # every position is judged as if its text stood alone, which padding behind it never changes
    task = _targets(examples, table, role, kind, subject, notes)
    _decoder(examples, task, subject)
    _check_inputs(examples, subject)
    return examples, task, np.arange(len(table)), notes


def load_inputs(
    ref: object, task: Task, subject: Subject | None, *, columns: dict[str, str] | None = None, max_length: int | None = None, later: bool = False
) -> Examples | Unread:
    """New inputs to predict, without targets. ref: a path or anything that `load_data` reads, one text, or a list of texts (pairs of texts, arrays).
    `later`: texts to classify or to value are tokenised only when a network asks for them.

    Language models get their own inputs as targets, so that records and perplexity can be had. Without a subject (a bag of words) only `raw`
    matters: texts stay texts. Raises InputError as `load_data` does.
    """
    table = _given(ref)
    head = "causal_lm" if task.kind in ("causal_lm", "seq2seq") and table.nature in ("table", "text") else task.kind
    role = roles.roles_of(table, columns, subject, head, labelled=False)
    if subject is None:
        texts = roles.texts_of(table, role.text or "text")
        raw = list(zip(texts, roles.texts_of(table, role.pair), strict=True)) if role.pair else texts
        return Examples({"row": np.arange(len(raw))}, raw=list(raw))
    if later and task.kind in ("classification", "regression") and table.nature in ("table", "text") and role.text is not None:
        texts = roles.texts_of(table, role.text)
        return Unread(list(zip(texts, roles.texts_of(table, role.pair), strict=True)) if role.pair else texts, subject, max_length)
    if task.generation is not None and task.kind == "causal_lm":
        from fourfold.datasets.generation import asked_for

        return asked_for(roles.texts_of(table, role.text or "text"), task, subject, max_length)
    examples = _inputs(table, role, subject, max_length, [])
    if task.kind == "causal_lm":
        examples.left = ()
        examples.targets = examples.columns[tokens_in(subject)]
    _decoder(examples, task, subject)
    _check_inputs(examples, subject)
    return examples


def load_labelled(
    ref: object, task: Task, subject: Subject | None, *, columns: Mapping[str, str] | None = None, max_length: int | None = None, needed: bool = False
) -> Examples:
    """New rows with their targets as `task` numbers them, encoded for `subject` (without one, texts stay texts); a "test" part is used alone.

    Targets are None where a classifier's rows have no labels, or where the metric asks for none. `needed`: values must be there. Raises InputError as
    `load_data` does.
    """
    found = read(ref)
    parts = found if isinstance(found, dict) else {"all": found}
    table = parts["test"] if "test" in parts else joined(parts)[0]
    if len(table) == 0:
        raise InputError(f"{table.source} holds no rows.", "Bring rows with labels.")
    if task.generation is not None and task.kind == "causal_lm":
        from fourfold.datasets.generation import GenerationAsked, prompted

        assert subject is not None
        asked = GenerationAsked(task.generation.prompt, task.generation.limit, task.generation.batch)
        examples = prompted(table, columns or {}, subject, asked, max_length)[0]
        if examples.targets is None and needed:
            raise InputError(f"{table.source} holds prompts without what follows them.", "Give rows with a prompt and a completion.")
        return examples
    role = roles.roles_of(table, columns, subject, task.kind)
    label = None if task.metric.name == "agreement" else role.label
    if task.kind not in ("classification", "regression"):
        assert subject is not None
        return encode(table, role, task.kind, subject, max_length)[0]
    if subject is None:
        texts = roles.texts_of(table, role.text or "text")
        raw: list[Any] = list(zip(texts, roles.texts_of(table, role.pair), strict=True)) if role.pair else list(texts)
        examples = Examples({"row": np.arange(len(raw))}, raw=raw, groups=np.array([split.group_of(one) for one in raw], dtype=np.int64))
    else:
        inputs = replace(table, columns={name: value for name, value in table.columns.items() if name != role.label})
        examples = encode(inputs, replace(role, label=None), task.kind, subject, max_length)[0]
    if label is None and needed and task.kind == "regression":
        raise roles.unlabelled(table, role)
    if label is not None and task.kind == "classification":
        names = SimpleNamespace(id2label=dict(enumerate(task.classes))) if task.classes else None
        examples.targets = roles.labels_of(table, label, names).targets
    elif label is not None:
        examples.targets = roles.values_of(table, label)
    return examples


def _given(ref: object) -> Table:
    if isinstance(ref, str) and not Path(ref).exists() and (" " in ref or not Path(ref).suffix):
        ref = [ref]
    if isinstance(ref, list | tuple) and ref and isinstance(ref[0], str):
        return Table({"text": list(ref)}, "the texts")
    if isinstance(ref, list) and ref and isinstance(ref[0], tuple) and len(ref[0]) == 2 and all(isinstance(part, str) for part in ref[0]):
        return Table({"text_a": [pair[0] for pair in ref], "text_b": [pair[1] for pair in ref]}, "the texts")
    if isinstance(ref, np.ndarray) or isinstance(ref, list) and ref and isinstance(ref[0], np.ndarray):
        return Table({"x": ref}, "the array", "arrays")
    table = read(ref)
    if isinstance(table, dict):
        return joined(table)[0]
    return table


# ----------------------------------------------------------------------------------------------------------------- inputs


def _inputs(table: Table, role: roles.Roles, subject: Subject, max_length: int | None, notes: list[str]) -> Examples:
    if table.nature == "arrays":
        return _arrays(table, role, subject)
    if table.nature == "images":
        return pictures(table, subject, notes)
    if table.nature == "audio":
        return sounds(table, subject, max_length, notes)
    reads = {"pixel_values": "images", "input_values": "sounds", "input_features": "sounds"}.get(subject.inputs[0] if subject.inputs else "")
    if reads is not None:
        raise InputError(
            f"The model reads {reads} ({subject.inputs[0]}), and the rows hold none: the columns are {table.listed()}.",
            "Give a folder of files by class, or a table whose column 'file' names each row's file, relative to the table.",
        )
    assert role.text is not None
    texts = roles.texts_of(table, role.text)
    pairs = roles.texts_of(table, role.pair) if role.pair else None
    raw: list[object] = list(zip(texts, pairs, strict=True)) if pairs else list(texts)
    columns, cut = tokenised(texts, pairs, subject, max_length)
    pads = paddings(subject)
    pads.setdefault(tokens_in(subject), pads["input_ids"])
    groups = np.array([split.group_of(one) for one in raw], dtype=np.int64)
    examples = Examples(columns, None, None, pads, raw, groups, cut, padded_left(subject), limit=longest(subject, max_length))
    if cut:
        notes.append(f"{cut:,} of {len(texts):,} texts are longer than {longest(subject, max_length)} tokens and were cut.")
    return examples


def _arrays(table: Table, role: roles.Roles, subject: Subject) -> Examples:
    names = [name for name in table.columns if name not in (role.label, role.side)]
    wanted = list(subject.inputs)
    renamed = {name: name for name in names}
    if not set(names) <= set(wanted):
        if len(names) > len(wanted):
            extra = [name for name in names if name not in wanted]
            raise InputError(
                f"{table.source}: the model has no input called {extra[0]!r} (it takes {', '.join(wanted)}).",
                "Name the arrays like the model's inputs, and the targets 'y'.",
            )
        free = iter(name for name in wanted if name not in names)
        renamed = {name: name if name in wanted else next(free) for name in names}
    if not names:
        raise InputError(f"{table.source} holds targets and no inputs.", f"Give arrays for {', '.join(wanted) or 'the model'}.")
    columns = {renamed[name]: _numbers(table, name, renamed[name]) for name in names}
    first = next(iter(columns.values()))
    if "attention_mask" in wanted and "attention_mask" not in columns and isinstance(first, Ragged):
        columns["attention_mask"] = Ragged(np.ones(len(first.values), dtype=np.int64), first.offsets)
    made = {name: columns[name] for name in sorted(columns, key=wanted.index)}
    return Examples(made, None, None, paddings(subject), left=padded_left(subject))


def _numbers(table: Table, name: str, model_input: str) -> object:
    value = table.columns[name]
    if isinstance(value, list):
        value = Ragged.of(value) if value and all(isinstance(row, np.ndarray) and row.dtype.kind in "iufb" for row in value) else _same_shape(value)
    flat = value.values if isinstance(value, Ragged) else value
    if flat.dtype.kind not in "iufb":
        raise InputError(f"{table.source}: the array {name!r} holds {flat.dtype}, not numbers of one shape.", "Give numbers, or a table of texts.")
    with np.errstate(over="ignore"):  # a number too large for single precision is found to be infinite below
        flat = flat.astype(np.float32 if flat.dtype.kind == "f" or model_input in FLOATS or flat.ndim > 2 else np.int64, copy=False)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        broken = np.flatnonzero(~np.isfinite(flat.reshape(len(flat), -1)).all(axis=1))
        rows = broken if not isinstance(value, Ragged) else np.unique(np.searchsorted(value.offsets, broken, side="right") - 1)
        raise InputError(f"{table.where(rows)}: NaN or infinite numbers in {name!r} ({len(rows):,} rows).", "Replace or delete them.")
    return Ragged(flat, value.offsets) if isinstance(value, Ragged) else flat


def _same_shape(rows: list[object]) -> np.ndarray:
    try:
        return np.asarray(rows)
    except ValueError:  # rows of different shapes
        return np.array([None])


# ---------------------------------------------------------------------------------------------------------------- targets


def _targets(examples: Examples, table: Table, role: roles.Roles, kind: str, subject: Subject, notes: list[str]) -> Task:
    """Sets `examples.targets` and says what they mean."""
    config = roles.config_of(subject)
    if kind in ("classification", "regression") and role.label is None:
        notes.append("The original's own answers are taken as right (agreement).")
        known = [str(name) for _, name in sorted(getattr(config, "id2label", {}).items())] if kind == "classification" else []
        return Task(kind, known or None, METRICS["agreement"] if kind == "classification" else default_metric(kind))
    if kind == "classification":
        labels = roles.labels_of(table, str(role.label), config)
        examples.targets = labels.targets
        notes.extend([labels.note] if labels.note else [])
        return Task(kind, labels.classes, default_metric(kind), labels.named)
    if kind == "regression":
        examples.targets = roles.values_of(table, str(role.label))
        return Task(kind, None, default_metric(kind))
    if kind == "custom":
        examples.targets = None if role.label is None else _as_given(table.columns[role.label])
        return Task(kind, None, default_metric(kind))
    return _text_targets(examples, table, role, kind, subject)


def _as_given(values: Any) -> object:
    if isinstance(values, np.ndarray):
        return values if values.ndim == 1 and values.dtype.kind in "iuf" else list(values)
    numbers = [roles.number(value) for value in values]
    return list(values) if any(number is None for number in numbers) else np.array(numbers)


def _text_targets(examples: Examples, table: Table, role: roles.Roles, kind: str, subject: Subject) -> Task:
    """Token targets of seq2seq, CTC and (from arrays) causal language models."""
    tokenizer = subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    speech = _speech(tokenizer, roles.config_of(subject)) if kind == "ctc" else None
    raw = table.columns[role.label] if role.label else None
    if kind == "causal_lm" and raw is None:
        ids = next(iter(examples.columns.values()))
        examples.targets = ids if isinstance(ids, Ragged) else Ragged.of(list(ids))
    elif raw is None:
        raise InputError(
            f"{table.source} has no column of target texts; it has {table.listed()}.", 'Say which one it is: columns={"target": "…"}.'
        )
    elif len(raw) and isinstance(raw[0], list | np.ndarray):
        examples.targets = Ragged.of(list(raw), np.int64)
    else:
        texts = roles.texts_of(table, str(role.label))
        if kind == "ctc":
            texts = [_spoken(text, speech) for text in texts]
        examples.targets = rows_of(tokenizer_of(subject)(text_target=texts, truncation=True, max_length=longest(subject))["input_ids"])
    start, prefix = _start(subject), ()
    if kind == "seq2seq":
        examples.targets, start, prefix = _begun(examples.targets, subject, tokenizer)
    metric = default_metric(kind)
    if kind == "seq2seq" and examples.targets.sizes().mean() > SHORT + 1:
        metric = METRICS["wer" if {"input_features", "input_values"} & set(subject.inputs) else "token_accuracy"]
    width = int(examples.targets.sizes().max(initial=1)) * (2 if kind == "ctc" else 1) if kind in ("seq2seq", "ctc") else 0
    writing = None
    if kind == "seq2seq":
        room = _room(subject) - len(prefix) - 1
        writing = Writing(start, _stop(subject), max(1, min(2 * width + 8, room)), prefix)
        width = max(width, writing.limit)  # records hold all that was written
    return Task(kind, None, metric, speech=speech, width=width, decoder=text_of(tokenizer) if kind != "ctc" else None, writing=writing)


def _begun(targets: Ragged, subject: Subject, tokenizer: object) -> tuple[Ragged, int, tuple[int, ...]]:
    """Targets without the decoder's first token, that token, and the special tokens that follow it in every text.

    Tokenizers differ: some put the first token before the target themselves (Whisper), some a token that the decoder is told to begin with (BART's
    <s>, the language of mBART-50), the old mBART the language behind the end, and some nothing (T5, Marian).
    """
    start, stop = _start(subject), _stop(subject)
    rows = [targets[i].tolist() for i in range(len(targets))]
    special = set(getattr(tokenizer, "all_special_ids", ()) or ()) - {stop}
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    special |= {i for i, token in added.items() if getattr(token, "special", False)} - {stop}
    last = {row[-1] for row in rows if row}
    told = getattr(roles.config_of(subject), "decoder_start_token_id", None)
    if len(last) == 1 and last <= special and all(stop in row for row in rows if row) and (told is None or last == {told}):
        start = last.pop()
        rows = [row[:-1] for row in rows]
    if rows and all(row[:1] == [start] for row in rows):
        rows = [row[1:] for row in rows]
    prefix: list[int] = []
    while rows and all(len(row) > len(prefix) for row in rows):
        one = {row[len(prefix)] for row in rows}
        if len(one) != 1 or not one <= special:
            break
        prefix.extend(one)
    if not prefix and (forced := _forced(subject)):
        prefix = forced
        rows = [[*forced, *row] for row in rows]
    return rows_of(rows), start, tuple(prefix)


def _forced(subject: Subject) -> list[int]:
    """Tokens that the model's own generation settings put after the first."""
    settings = getattr(getattr(subject, "module", None), "generation_config", None)
    pairs = getattr(settings, "forced_decoder_ids", None) or getattr(roles.config_of(subject), "forced_decoder_ids", None) or []
    found = [token for _, token in sorted(pairs) if isinstance(token, int)]
    one = getattr(settings, "forced_bos_token_id", None)
    one = getattr(roles.config_of(subject), "forced_bos_token_id", None) if one is None else one
    return found or ([one] if isinstance(one, int) else [])


def _room(subject: Subject) -> int:
    """Tokens that the decoder has positions for; many where its configuration does not say."""
    config = roles.config_of(subject)
    config = getattr(config, "decoder", None) or config
    limits = (getattr(config, name, None) for name in ("max_target_positions", "max_position_embeddings"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), 1_000_000)


def _start(subject: Subject) -> int:
    config = roles.config_of(subject)
    given = (getattr(config, name, None) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
    return next((value for value in given if isinstance(value, int)), 0)


def _stop(subject: Subject) -> int | None:
    found = getattr(subject.tokenizer, "eos_token_id", None)
    found = getattr(roles.config_of(subject), "eos_token_id", None) if found is None else found
    found = found[0] if isinstance(found, list | tuple) and found else found
    return found if isinstance(found, int) else None


def _speech(tokenizer: Any, config: object) -> Speech | None:
    if tokenizer is None:
        return None
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    delimiter = getattr(tokenizer, "word_delimiter_token", None) or "|"
    special = set(tokenizer.all_special_tokens) - {delimiter}
    blank = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else getattr(config, "pad_token_id", 0)
    return Speech(tuple("" if name in special else name for name in names), blank or 0, delimiter)


def _spoken(text: str, speech: Speech | None) -> str:
    """The case that the model's alphabet is written in."""
    letters = {token for token in speech.tokens if len(token) == 1 and token.isalpha()} if speech else set()
    if letters and all(letter.isupper() for letter in letters):
        return text.upper()
    return text.lower() if letters and all(letter.islower() for letter in letters) else text


def _decoder(examples: Examples, task: Task, subject: Subject) -> None:
    """Inputs of the decoder, made of the targets: shifted right behind the start token (teacher forcing)."""
    if task.kind != "seq2seq":
        return
    start = task.writing.start if task.writing is not None else _start(subject)
    targets = (
        examples.targets if isinstance(examples.targets, Ragged) else Ragged(np.zeros(len(examples), dtype=np.int64), np.arange(len(examples) + 1))
    )
    values = np.r_[start, targets.values[:-1]] if len(targets.values) else targets.values
    values[targets.offsets[:-1][targets.sizes() > 0]] = start
    shifted = Ragged(values.astype(np.int64), targets.offsets)
    if "decoder_input_ids" in subject.inputs:
        examples.columns["decoder_input_ids"] = shifted
    if "labels" in subject.inputs:
        examples.columns["labels"] = targets
        examples.pad["labels"] = -100
    if "decoder_attention_mask" in subject.inputs:
        examples.columns["decoder_attention_mask"] = Ragged(np.ones(len(shifted.values), dtype=np.int64), shifted.offsets)
    examples.pad.setdefault("decoder_input_ids", paddings(subject)["decoder_input_ids"])
    examples.columns = {name: examples.columns[name] for name in subject.inputs if name in examples.columns}
    examples.lengths = examples.lengths + targets.sizes()


def _check_inputs(examples: Examples, subject: Subject) -> None:
    optional = {"attention_mask", "token_type_ids", "position_ids", "decoder_attention_mask", "labels", *_defaulted(subject)}
    lost = [name for name in subject.inputs if name not in examples.columns and name not in optional]
    if lost:
        raise InputError(
            f"The model wants the input {lost[0]!r}, which the data do not give (they give {', '.join(examples.columns)}).",
            f"Give arrays named {', '.join(subject.inputs)}.",
        )


def _defaulted(subject: Subject) -> set[str]:
    """Inputs that forward() can do without: those of a plain module with a default, and what an encoder–decoder makes itself of its input for a
    head that is no language model's (whether it can is seen when the first batch is tried)."""
    import inspect

    module = getattr(subject, "module", None)
    if hasattr(module, "config"):
        writes = any(type(module).__name__.endswith(head) for head, kind in roles.HEADS.items() if kind in ("seq2seq", "causal_lm"))
        return set() if writes else {"decoder_input_ids"}
    try:
        given = inspect.signature(module.forward).parameters  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        return set()
    return {name for name, parameter in given.items() if parameter.default is not inspect.Parameter.empty} - set(subject.inputs[:1])


# ------------------------------------------------------------------------------------------------------ language modelling


def _language(table: Table, role: roles.Roles, subject: Subject, max_length: int | None) -> Encoded:
    """Documents cut into blocks; blocks of one document share its group, so that they are split and resampled together."""
    texts = roles.texts_of(table, role.text or "text")
    documents, rows = _passages(texts)
    tokenizer = tokenizer_of(subject)
    ids = tokenizer(documents, truncation=False, padding=False, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    limit = min(longest(subject, max_length), max_length or BLOCK)
    blocks, origin, groups, raw = [], [], [], []
    for document, row, tokens in zip(documents, rows, ids, strict=True):
        group = split.group_of(document)
        for begin in range(0, len(tokens), limit):
            block = tokens[begin : begin + limit]
            if len(block) >= min(8, limit):  # a shorter rest predicts next to nothing
                blocks.append(block)
                origin.append(row)
                groups.append(group)
                raw.append(document if len(tokens) <= limit else None)
    if not blocks:
        raise InputError(f"{table.source} holds {sum(map(len, ids))} tokens: too few for one block.", "Give a longer text.")
    column = rows_of(blocks)
    columns: dict[str, object] = {tokens_in(subject): column}
    if "attention_mask" in subject.inputs:
        columns["attention_mask"] = Ragged(np.ones(len(column.values), dtype=np.int64), column.offsets)
    if "position_ids" in subject.inputs:
        columns["position_ids"] = Ragged(np.arange(len(column.values)) - np.repeat(column.offsets[:-1], column.sizes()), column.offsets)
    columns = {name: columns[name] for name in subject.inputs if name in columns} or columns
    examples = Examples(columns, column, None, paddings(subject), raw if None not in raw else None, np.array(groups, dtype=np.int64))
    _check_inputs(examples, subject)
    note = f"{len(column.values):,} tokens in {len(blocks):,} blocks of at most {limit}, from {len(documents):,} passages that stay whole."
    return (
        examples,
        Task("causal_lm", None, default_metric("causal_lm"), decoder=text_of(tokenizer)),
        np.array(origin),
        [note],
    )


def _passages(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Documents as they are if there are many; a few long ones cut at blank lines (else line ends, else blanks) into passages. And the text that each
    came from."""
    if len(texts) >= 2 * split.FEWEST:
        return texts, np.arange(len(texts))
    aim = max(200, sum(map(len, texts)) // PASSAGES)
    found: list[str] = []
    rows: list[int] = []
    for row, text in enumerate(texts):
        for mark in ("\n\n", "\n", " "):
            pieces = text.split(mark)
            if len(pieces) > len(text) / (4 * aim) and max(map(len, pieces)) <= 4 * aim:
                break
        passage = ""
        for piece in pieces:
            passage = f"{passage}{mark}{piece}" if passage else piece
            if len(passage) >= aim:
                found.append(passage)
                rows.append(row)
                passage = ""
        if passage.strip():
            found.append(passage)
            rows.append(row)
    return found, np.array(rows, dtype=np.int64)


__all__ = ["Encoded", "encode", "load_inputs", "load_labelled"]
