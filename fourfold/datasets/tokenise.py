"""Texts as columns of tokens: the model's own tokenizer, the length that it reads, padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets import columns as roles
from fourfold.datasets.examples import Ragged
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.frontends.subject import Subject


def tokenised(texts: Sequence[str], pairs: Sequence[str] | None, subject: Subject, max_length: int | None) -> tuple[dict[str, Any], int]:
    """Columns that the model wants, and how many texts were cut."""
    tokenizer = tokenizer_of(subject)
    limit = longest(subject, max_length)
    given = tokenizer(
        list(texts),
        list(pairs) if pairs else None,
        truncation=True,
        max_length=limit,
        padding=False,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    ids = rows_of(given["input_ids"])
    fast = getattr(given, "encodings", None)
    cut = sum(bool(one.overflowing) for one in fast) if fast else int((ids.sizes() >= limit).sum())
    columns: dict[str, object] = {}
    first = tokens_in(subject)
    for name in subject.inputs:
        if name == first:
            columns[name] = ids
        elif name == "attention_mask":
            columns[name] = Ragged(np.ones_like(ids.values), ids.offsets)
        elif name == "token_type_ids":
            columns[name] = rows_of(given[name]) if name in given else Ragged(np.zeros_like(ids.values), ids.offsets)
        elif name == "position_ids":
            columns[name] = Ragged(np.arange(len(ids.values)) - np.repeat(ids.offsets[:-1], ids.sizes()), ids.offsets)
    return columns, cut


def tokens_in(subject: Subject) -> str:
    """Which input takes the tokens: a plain module calls it as it likes."""
    return "input_ids" if "input_ids" in subject.inputs or not subject.inputs else subject.inputs[0]


def rows_of(lists: Sequence[Sequence[int]]) -> Ragged:
    """Lists of token ids as one ragged column."""
    sizes = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    offsets = np.r_[0, np.cumsum(sizes)]
    return Ragged(np.fromiter(itertools.chain.from_iterable(lists), dtype=np.int64, count=int(offsets[-1])), offsets)


def tokenizer_of(subject: Subject) -> Any:
    """The tokenizer that came with the model, or with its processor. Raises InputError where there is none."""
    found = subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    if found is None:
        raise InputError(
            "The data are texts, but the model comes without a tokenizer.",
            "Name its folder (--tokenizer FOLDER), put its files into the model's folder, or give arrays.",
        )
    return found


def longest(subject: Subject, max_length: int | None = None) -> int:
    """Tokens that the model can read: its positions, the tokenizer's limit, the user's wish; 512 where none of them says."""
    config = roles.config_of(subject)
    config = getattr(config, "text_config", None) or config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    limits = [limit for limit in limits if isinstance(limit, int) and limit > 0][:1]
    if limits and str(getattr(config, "model_type", "")) in (
        "roberta",
        "xlm-roberta",
        "camembert",
        "xlm-roberta-xl",
        "mpnet",
        "longformer",
        "roberta-prelayernorm",
        "data2vec-text",
    ):
        limits = [limits[0] - (getattr(config, "pad_token_id", None) or 1) - 1]  # positions are counted from after the padding's own
    told = getattr(subject.tokenizer, "model_max_length", None)
    if isinstance(told, int) and 0 < told < 1_000_000:
        limits.append(told)
    limit = min(limits) if limits else 512
    if max_length is not None and max_length < 4:
        raise InputError(f"max_length={max_length} leaves no room for a text.", "Give at least 4 tokens.")
    return min(limit, max_length) if max_length else limit


def paddings(subject: Subject) -> dict[str, float]:
    """What fills up each column. A model without a padding token gets its end token: the mask hides it."""
    config, tokenizer = roles.config_of(subject), subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    rows = _rows(subject)
    found = next(
        (
            value
            for value in (getattr(tokenizer, "pad_token_id", None), getattr(config, "pad_token_id", None), getattr(tokenizer, "eos_token_id", None))
            if isinstance(value, int) and (rows is None or value < rows)
        ),
        0,
    )
    return {
        "input_ids": found,
        "decoder_input_ids": found,
        "attention_mask": 0,
        "token_type_ids": kind if isinstance(kind := getattr(tokenizer, "pad_token_type_id", 0), int) else 0,
        "decoder_attention_mask": 0,
        "position_ids": 0,
        "input_values": 0.0,
    }


def _rows(subject: Subject) -> int | None:
    """How many tokens the model has rows for, where it says; an artefact knows it without making the module (`fourfold.runtime.shelf.Shelved`)."""
    if hasattr(subject, "rows"):
        return subject.rows  # type: ignore[attr-defined]
    from fourfold.frontends.subject import vocabulary

    return vocabulary(subject.module)


def padded_left(subject: Subject) -> tuple[str, ...]:
    """The columns that the model's own tokenizer pads at the left; none where it pads at the right or where there is no tokenizer."""
    tokenizer = subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    if getattr(tokenizer, "padding_side", "right") != "left":
        return ()
    return tuple(dict.fromkeys((tokens_in(subject), "input_ids", "attention_mask", "token_type_ids", "position_ids")))
