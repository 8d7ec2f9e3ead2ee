"""Fewer token rows: pieces that the user's texts never use leave the embedding table, the output head and the tokenizer (Abdaoui et al. 2020).

What stays: special tokens, single characters and bytes (so that any text still encodes), pieces seen in the corpus, and what these are built of. A
text made of kept pieces gets the same pieces as before, hence the same answers:

- WordPiece takes the longest piece that matches; the one it took is still there, and nothing longer is new.
- BPE joins the pair of lowest rank; every join that led to a kept piece stays, and joins that were not made before cannot appear.
- Unigram takes the likeliest path; the old path is still there, and its rivals are a subset.

A text with other words falls into smaller kept pieces. The saving is memory (half of a small encoder is its table) and, for language models, the
output head.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from fourfold.errors import ModelError
from fourfold.recipe import Recipe
from fourfold.rewrite import Context, Extension, Rewrite
from fourfold.structure.anatomy import Vocabulary, rows_for
from fourfold.structure.token_tables import own_table, settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fourfold.datasets.examples import Examples
    from fourfold.frontends.subject import Subject

MODELS = ("WordPiece", "BPE", "Unigram", "WordLevel")
ALIGN = 8  # rows are kept in multiples of this: matrix products like round sizes


@dataclass(frozen=True)
class Pruned:
    """`recipe` cuts the model; `tokenizer` is the smaller one; `kept[new]` is the old id of each row, `new_of[old]` its inverse (−1: gone)."""

    recipe: Recipe
    tokenizer: Any
    kept: np.ndarray
    new_of: np.ndarray


class VocabularyPruning(Rewrite):
    """Which rows stay is decided by the corpus; the recipe holds their numbers."""

    title: ClassVar[str] = "Vocabulary pruning"
    cites: ClassVar[tuple[str, ...]] = ("abdaoui2020", "yang2022textpruner")
    needs: ClassVar[tuple[str, ...]] = ("torch", "tokenizers", "transformers")
    objectives: ClassVar[tuple[str, ...]] = ("memory",)

    def declines(self, model: nn.Module) -> str | None:
        return None if table_of(model) else f"{type(model).__name__} has no table of token embeddings"

    def extend(self, context: Context, candidate: nn.Module) -> Extension | None:
        subject, train = context.subject, context.examples
        if subject.tokenizer is None or "input_ids" not in train.columns or train.raw is None:
            return None
        if context.task.kind not in ("classification", "regression"):
            return None
        pruned = plan(candidate, subject.tokenizer, list(train.columns["input_ids"]))
        told = f"{len(pruned.kept):,} of {len(pruned.new_of):,} token rows"

        def reencode(examples: Examples) -> Examples:
            return reencoded(examples, subject, pruned, context.max_length)

        return Extension("fewer rows", pruned.recipe.edits, told, pruned.tokenizer, reencode)


def plan(model: nn.Module, tokenizer: PreTrainedTokenizerBase, corpus: Iterable[object], *, rarest: int = 1, align: int = ALIGN) -> Pruned:
    """What to cut, given the token ids that occur.

    corpus: arrays of token ids (inputs and label tokens of the texts to serve; negative ones are padding). rarest: a piece must occur that many
    times. Raises ModelError where the model has no token table, the tokenizer is not of the fast kind, or the two do not fit.
    """
    found = tables_of(model)
    size, where = found.size, found.paths[0]
    data = _json(tokenizer)
    counts = np.zeros(size, dtype=np.int64)
    for ids in corpus:
        ids = np.asarray(ids).ravel()
        if len(ids) and ids.max() >= size:
            raise ModelError(
                f"the tokenizer gives id {ids.max()}, the table {where} has {size} rows", "Check that tokenizer and model belong together."
            )
        counts += np.bincount(ids[ids >= 0], minlength=size)
    kept = _kept(data, np.flatnonzero(counts >= max(rarest, 1)), _special_ids(found, tokenizer), size, align)
    new_of = np.full(size, -1, dtype=np.int64)
    new_of[kept] = np.arange(len(kept))
    edits = tuple(edit | {"of": "vocabulary"} for edit in rows_for(found, kept.tolist()).edits)
    return Pruned(Recipe(edits), _rewritten(tokenizer, data, new_of), kept, new_of)


# ------------------------------------------------------------------------------------------------------------- the pieces


def _json(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{type(tokenizer).__name__} is not a fast tokenizer", "Vocabulary pruning needs tokenizer.json.")
    data = json.loads(backend.to_str())
    kind = data["model"].get("type") or _kind(data["model"])
    if kind not in MODELS:
        raise ModelError(f"the tokenizer is of the kind {kind}", f"Vocabulary pruning knows {', '.join(MODELS)}.")
    data["model"]["type"] = kind
    return data


def _kind(model: dict[str, object]) -> str:
    """Old files do not name it."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _pieces(data: dict[str, Any]) -> dict[str, int]:
    """Piece → id of the model itself, without added tokens."""
    vocabulary = data["model"]["vocab"]
    return {piece: i for i, (piece, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else dict(vocabulary)


def _special_ids(found: Vocabulary, tokenizer: Any) -> set[int]:
    """Tokens that stay whether they occur or not: the tokenizer's own and those that the configuration names."""
    named = [value for _, name, value in found.sets if name.endswith(("_token_id", "_token_ids"))]
    return {int(i) for i in tokenizer.all_special_ids} | {i for value in named for i in (value if isinstance(value, list | tuple) else [value])}


def _kept(data: dict[str, Any], seen: np.ndarray, special: set[int], size: int, align: int) -> np.ndarray:
    """Old ids that stay, ascending."""
    pieces = _pieces(data)
    model = data["model"]
    keep = set(seen.tolist()) | special | {token["id"] for token in data.get("added_tokens", [])}
    keep |= {i for piece, i in pieces.items() if _atom(piece, model)}
    if isinstance(model.get("unk_id"), int):
        keep.add(model["unk_id"])
    if isinstance(model.get("unk_token"), str) and model["unk_token"] in pieces:
        keep.add(pieces[model["unk_token"]])
    if model["type"] == "BPE":
        keep |= _built_of(model, pieces, keep)
    known = set(pieces.values()) | {token["id"] for token in data.get("added_tokens", [])}
    keep = {i for i in keep if 0 <= i < size and i in known}
    spare = (i for i in sorted(known) if i not in keep and i < size and model["type"] != "BPE")  # a BPE piece without its joins is never used
    for i in spare:
        if len(keep) % align == 0:
            break
        keep.add(i)
    return np.array(sorted(keep), dtype=np.int64)


def _atom(piece: str, model: dict[str, Any]) -> bool:
    """A single character or byte: what every text can fall back on."""
    for prefix in (model.get("continuing_subword_prefix"), "▁"):
        if prefix and piece.startswith(prefix) and len(piece) > len(prefix):
            piece = piece[len(prefix) :]
    suffix = model.get("end_of_word_suffix")
    if suffix and piece.endswith(suffix) and len(piece) > len(suffix):
        piece = piece[: -len(suffix)]
    return len(piece) == 1 or len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _merges(model: dict[str, object]) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else (merge[0], merge[1]) for merge in model["merges"]]  # type: ignore[misc]


def _joined(left: str, right: str, model: dict[str, Any]) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return left + (right[len(prefix) :] if prefix and right.startswith(prefix) else right)


def _derivations(piece: str, model: dict[str, Any], rank: dict[tuple[str, str], int]) -> Iterator[tuple[str, str]]:
    """The joins by which BPE arrives at `piece`, from its characters."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    continues = bool(prefix) and piece.startswith(prefix)
    body = piece[len(prefix) :] if continues else piece
    ends = bool(suffix) and body.endswith(suffix)
    body = body[: -len(suffix)] if ends else body
    parts = [(prefix if prefix and (continues or i) else "") + letter for i, letter in enumerate(body)]
    if ends and parts:
        parts[-1] += suffix
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), 1 << 60))
        pair = (parts[best], parts[best + 1])
        if pair not in rank:
            return
        yield pair
        parts[best : best + 2] = [_joined(*pair, model)]


def _built_of(model: dict[str, object], pieces: dict[str, int], keep: set[int]) -> set[int]:
    """Ids of all pieces on the way to the kept ones."""
    rank = {pair: i for i, pair in enumerate(_merges(model))}
    name_of = {i: piece for piece, i in pieces.items()}
    found: set[int] = set()
    for i in keep:
        for left, right in _derivations(name_of.get(i, ""), model, rank):
            found.update(pieces[part] for part in (left, right, _joined(left, right, model)) if part in pieces)
    return found


def _used(model: dict[str, Any], pieces: dict[str, int], kept: set[str]) -> list[object]:
    """The joins that lead to kept pieces, in their old order and form."""
    pairs = _merges(model)
    rank = {pair: i for i, pair in enumerate(pairs)}
    needed = {pair for piece in kept for pair in _derivations(piece, model, rank)}
    return [merge for merge, pair in zip(model["merges"], pairs, strict=True) if pair in needed]


# ---------------------------------------------------------------------------------------------------------- the tokenizer


def _rewritten(tokenizer: PreTrainedTokenizerBase, data: dict[str, Any], new_of: np.ndarray) -> object:
    """The tokenizer with the kept pieces only, under their new ids."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    data = json.loads(json.dumps(data))
    model, pieces = data["model"], _pieces(data)
    kept = {piece: int(new_of[i]) for piece, i in pieces.items() if i < len(new_of) and new_of[i] >= 0}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i < len(new_of) and new_of[i] >= 0]
        if model.get("unk_id") is not None:
            model["unk_id"] = int(new_of[model["unk_id"]])
    else:
        model["vocab"] = dict(sorted(kept.items(), key=lambda item: item[1]))
    if model["type"] == "BPE":
        model["merges"] = _used(model, pieces, set(kept))
    for token in data.get("added_tokens", []):
        token["id"] = int(new_of[token["id"]])
    if isinstance(data.get("padding"), dict):
        data["padding"]["pad_id"] = int(new_of[data["padding"]["pad_id"]])
    _renumber(data.get("post_processor"), new_of)
    backend = Tokenizer.from_str(json.dumps(data))
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    given = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name, None) is not None}
    extra = {"chat_template": tokenizer.chat_template} if getattr(tokenizer, "chat_template", None) else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=tokenizer.model_max_length, padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side, model_input_names=list(tokenizer.model_input_names),
        clean_up_tokenization_spaces=getattr(tokenizer, "clean_up_tokenization_spaces", False), **given, **extra,
    )  # fmt: skip
    old, new = tokenizer.get_vocab(), made.get_vocab()
    wrong = next((piece for piece, i in new.items() if piece in old and (old[piece] >= len(new_of) or new_of[old[piece]] != i)), None)
    if wrong is not None or len(new) != int((new_of >= 0).sum()):
        raise ModelError(f"the smaller tokenizer would number {wrong!r} otherwise than the model", "Leave the vocabulary as it is.")
    return made


def _renumber(processor: object, new_of: np.ndarray) -> None:
    """New ids inside post-processors: templates, and the older pairs [token, id]."""
    if isinstance(processor, list):
        for part in processor:
            _renumber(part, new_of)
    elif isinstance(processor, dict):
        for name, value in processor.items():
            if name in ("sep", "cls") and isinstance(value, list) and len(value) == 2 and isinstance(value[1], int):
                value[1] = int(new_of[value[1]])
            elif name == "ids" and isinstance(value, list):
                value[:] = [int(new_of[i]) for i in value]
            else:
                _renumber(value, new_of)


# -------------------------------------------------------------------------------------------------------------- the model


def table_of(model: nn.Module) -> str | None:
    """Path of the token embedding: what the model itself names, else its largest embedding."""
    found = own_table(model)
    if found is None and not hasattr(model, "config"):
        found = max((m for m in model.modules() if isinstance(m, nn.Embedding)), key=lambda table: table.num_embeddings, default=None)
    return next((path for path, module in model.named_modules() if module is found), None) if found is not None else None


def tables_of(model: nn.Module) -> Vocabulary:
    """Where the rows of tokens are, the token table first, by the names that models give: nothing is run, so nothing but a name says which bias is
    the head's. `Anatomy.vocabulary` finds the same by watching a batch, and proves it. Raises ModelError where there is no table."""
    path = table_of(model)
    if path is None:
        raise ModelError(f"{type(model).__name__} has no table of token embeddings", "Only models that read token ids have a vocabulary to prune.")
    size = int(model.get_submodule(path).num_embeddings)  # type: ignore[arg-type]
    paths = _tables(model, path, size)
    tensors = [
        (f"{owner}.{name}" if owner else name, value.ndim - 1)
        for owner, module in model.named_modules()
        for name, value in [*module._parameters.items(), *module._buffers.items()]
        if owner not in paths and value is not None and _beside_head(name, owner) and 1 <= value.ndim <= 2 and value.shape[-1] == size
    ]
    return Vocabulary(tuple(paths), size, tuple(tensors), tuple(settings(model, paths, size)))


def _tables(model: nn.Module, path: str, size: int) -> list[str]:
    """The token table, everything that shares its weights, and the output head."""
    table = model.get_submodule(path)
    head = None
    get = getattr(model, "get_output_embeddings", None)
    if callable(get):
        try:
            head = get()
        except (NotImplementedError, AttributeError):
            head = None
    found = [path]
    for name, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        shares = weight is not None and weight is table.weight
        copies = isinstance(module, nn.Embedding) and module.num_embeddings == size and name.rsplit(".", 1)[-1] in ("embed_tokens", "shared", "wte")
        if shares or copies or (head is not None and module is head and getattr(module, "out_features", None) == size):
            found.append(name)
    return list(dict.fromkeys(found))


def _beside_head(name: str, owner: str) -> bool:
    """Whether a bare bias belongs to the output head: BERT's predictions.bias, lm_head.bias, final_logits_bias."""
    return name == "final_logits_bias" or name == "bias" and owner.rsplit(".", 1)[-1] in ("predictions", "lm_head", "generator_predictions", "cls")


# ----------------------------------------------------------------------------------------------------------- the examples


def reencoded(examples: Examples, subject: Subject, pruned: Pruned, max_length: int | None = None) -> Examples:
    """The examples as the smaller tokenizer writes them.

    Texts that the examples still hold are tokenised anew; other token columns (language model blocks, decoder inputs, label tokens) are mapped id
    by id, a piece that is gone becoming the kept pieces it falls into. Per-token scores (perplexity) of such texts count more tokens than before:
    compare only where nothing fell apart. `subject` is the original.
    """
    from fourfold.datasets.examples import Ragged
    from fourfold.datasets.tokenise import paddings, tokenised

    smaller = replace(subject, tokenizer=pruned.tokenizer)
    pad = {
        **examples.pad,
        **{name: _padding(value, pruned) for name, value in paddings(subject).items() if name.endswith("_ids") and name in examples.pad},
    }
    columns = dict(examples.columns)
    cut = examples.cut
    named = [name for name in ("input_ids", "decoder_input_ids", "labels") if isinstance(columns.get(name), Ragged)]
    if examples.raw is not None and all(isinstance(one, str | tuple) for one in examples.raw) and "input_ids" in named and not _is_language(examples):
        first = [one if isinstance(one, str) else one[0] for one in examples.raw]
        second = [one[1] for one in examples.raw] if examples.raw and isinstance(examples.raw[0], tuple) else None
        fresh, cut = tokenised(first, second, smaller, max_length)
        columns.update({name: value for name, value in fresh.items() if name in columns})
        named.remove("input_ids")
    pieces = _falls(pruned, subject.tokenizer)
    for name in named:
        columns[name] = _mapped(columns[name], pieces)
        if name == "input_ids" and isinstance(columns.get("attention_mask"), Ragged):
            columns["attention_mask"] = Ragged(np.ones(len(columns[name].values), dtype=np.int64), columns[name].offsets)
    targets = _mapped(examples.targets, pieces) if isinstance(examples.targets, Ragged) else examples.targets
    sizes = [value.sizes() for value in columns.values() if isinstance(value, Ragged)]
    return replace(examples, columns=columns, targets=targets, lengths=np.max(sizes, axis=0) if sizes else examples.lengths, pad=pad, cut=cut)


def _is_language(examples: Examples) -> bool:
    from fourfold.datasets.examples import Ragged

    ids, targets = examples.columns.get("input_ids"), examples.targets
    return isinstance(ids, Ragged) and isinstance(targets, Ragged) and ids.values is targets.values or targets is ids


def _padding(old: float, pruned: Pruned) -> float:
    return float(max(pruned.new_of[int(old)], 0)) if 0 <= int(old) < len(pruned.new_of) else 0.0


def _falls(pruned: Pruned, tokenizer: Any) -> list[list[int]]:
    """New ids of each old id: one where it stayed, else the pieces that its own text falls into."""
    backend = pruned.tokenizer.backend_tokenizer.model
    unknown = pruned.tokenizer.unk_token_id
    names = {i: piece for piece, i in tokenizer.get_vocab().items()}
    out: list[list[int]] = []
    for old, new in enumerate(pruned.new_of):
        if new >= 0:
            out.append([int(new)])
            continue
        piece = names.get(old, "")
        try:
            found = [token.id for token in backend.tokenize(piece)] if piece else []
        except Exception:  # a piece that the smaller model cannot write at all
            found = []
        out.append(found or ([unknown] if unknown is not None else [0]))
    return out


def _mapped(column: Any, pieces: list[list[int]]) -> object:
    from fourfold.datasets.examples import Ragged

    return Ragged.of([np.array([new for old in row for new in (pieces[old] if old >= 0 else [old])], dtype=np.int64) for row in column], np.int64)
