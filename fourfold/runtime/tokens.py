"""The tokenizer of a saved member, for several threads at once, and without transformers where its file alone gives the same tokens.

A tokenizer of transformers sets how it truncates on every call, so that two threads disturb each other. Here the file `tokenizer.json` is opened
once for each length and never changed afterwards. Whether that gives what transformers gives was tried when the artefact was saved (`facts`); where
it does not, or nobody tried, each caller at a time gets a tokenizer of transformers of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fourfold.engines._pool import OneAtATime, Pool

FILE = "tokenizer.json"
#: What is asked of a tokenizer beside its tokens.
ASKED = (
    "pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "pad_token_type_id",
    "model_max_length", "padding_side", "truncation_side", "split_special_tokens", "is_fast",
)  # fmt: skip
#: Texts that tokenizers differ about: cases, accents, scripts, white space, control and joining characters, special tokens written out, length.
TRIED = (
    "A joy from start to end.", "Two hours I won't get back!", "", " ", "  two  blanks ", "Ünïcödé — naïve café", "ＦＵＬＬ ｗｉｄｔｈ",
    "東京タワー 서울", "Привет, мир", "مرحبا بالعالم", "नमस्ते", "👩‍👩‍👧 🎉", "tab\tand\nnew line\r\n", "\u200bzero\u00a0width", "e\u0301 é",
    "$3.50, 1,000.00 (50%)",
    "[CLS] [SEP] <s> </s> <pad> [MASK] <mask> <|endoftext|>", "a" * 300, "snake_case camelCase http://x.org/?q=1&r=2", "control \x07 \x00 end",
    " ".join(f"word{i}" for i in range(900)),
)  # fmt: skip


class Tokenised(dict[str, object]):
    """Lists by name, as transformers gives them. `encodings`: what the file's own tokenizer gave, one per text."""

    encodings: list[object]


class Tokens:
    """Stands in for a tokenizer of transformers, with the attributes `ASKED`; anything else is asked of the real one, which is then loaded.

    folder: its files. facts: what `facts` found, or None. whole: how to load the real one.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any] | None, whole: Callable[[], object]) -> None:
        self.folder, self.facts, self.load_whole = folder, dict(facts or {}), whole
        self.direct = bool(self.facts.get("direct"))
        self.by_length: dict[int | None, Any] = {}
        self.locks = OneAtATime()
        self.pattern: object = None
        self.pool: Pool[Any] = Pool(lambda: copy.deepcopy(self.whole()))

    def whole(self) -> Any:
        """The tokenizer of transformers; not for use while others may be using it."""
        with self.locks:
            if self.pattern is None:
                self.pattern = self.load_whole()
            return self.pattern

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "facts":
            raise AttributeError(name)
        asked: Mapping[str, object] = self.facts.get("asked", {})
        return asked[name] if name in asked else getattr(self.whole(), name)

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.whole())

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None, **how: Any) -> Any:
        """Token ids of texts, as transformers gives them."""
        plain = how.keys() <= {"truncation", "max_length", "padding", "return_token_type_ids", "return_attention_mask", "verbose"}
        if not (self.direct and plain) or isinstance(texts, str) or how.get("padding") or how.get("truncation") not in (None, True, False):
            with self.pool.one() as tokenizer:
                return tokenizer(texts, pairs, **how)
        core = self._cut_at(int(how["max_length"]) if how.get("truncation") else None)
        rows = core.encode_batch(list(texts) if pairs is None else list(zip(texts, pairs, strict=True)))
        found = Tokenised(input_ids=[row.ids for row in rows], token_type_ids=[row.type_ids for row in rows])
        found.encodings = rows
        return found

    def _cut_at(self, length: int | None) -> Any:
        core = self.by_length.get(length)
        if core is None:
            from tokenizers import Tokenizer

            with self.locks:
                core = self.by_length.get(length)
                if core is None:
                    core = Tokenizer.from_file(str(self.folder / FILE))
                    core.no_padding()
                    core.no_truncation()
                    core.encode_special_tokens = bool(self.split_special_tokens)
                    if length is not None:
                        core.enable_truncation(length, strategy="longest_first", direction=self.truncation_side)
                    self.by_length[length] = core
        return core

    def batch_decode(self, ids: Sequence[Sequence[int]], **how: Any) -> list[str]:
        """Token ids as texts."""
        with self.pool.one() as tokenizer:
            return tokenizer.batch_decode(ids, **how)

    def save_pretrained(self, folder: Path | str) -> object:
        """Write its files."""
        return self.whole().save_pretrained(folder)


def facts(tokenizer: object, folder: Path) -> dict[str, object] | None:
    """What a loader must know of `tokenizer`, whose files are in `folder`: its attributes, and whether the file alone gives the same tokens (tried).

    None where there is no tokenizer.
    """
    if tokenizer is None:
        return None
    found = {name: getattr(tokenizer, name, None) for name in ASKED}
    asked = {name: value for name, value in found.items() if value is None or isinstance(value, int | float | str | bool)}
    said: dict[str, object] = {"asked": asked, "direct": True}
    return said | {"direct": _alike(tokenizer, Tokens(folder, said, lambda: tokenizer))}


def _alike(tokenizer: Any, alone: Tokens) -> bool:
    """Whether the file gives the same token ids and types, for texts and pairs, cut and whole."""
    if not (alone.folder / FILE).is_file() or not getattr(tokenizer, "is_fast", False):
        return False
    others = [*TRIED[1:], TRIED[0]]
    try:
        for length in (16, 128):
            for pairs in (None, others):
                how: dict[str, Any] = {"truncation": True, "max_length": length, "padding": False, "return_token_type_ids": True}
                told, given = tokenizer(list(TRIED), pairs, **how), alone(list(TRIED), pairs, **how)
                if told["input_ids"] != given["input_ids"] or told.get("token_type_ids", given["token_type_ids"]) != given["token_type_ids"]:
                    return False
    except Exception:  # whatever the tokenizer cannot do, the file is not asked to
        return False
    return True
