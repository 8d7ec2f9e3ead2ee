"""Which column is the text and which the label; what the labels are; what kind of task that makes."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.table import PARTS, Table
from fourfold.datasets.task import KINDS
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.frontends.subject import Subject

TEXT = (
    "text",
    "sentence",
    "review",
    "snippet",
    "content",
    "comment",
    "message",
    "body",
    "document",
    "utterance",
    "tweet",
    "question",
    "query",
    "input",
    "prompt",
    "title",
    "description",
)
LABEL = (
    "label",
    "labels",
    "target",
    "class",
    "category",
    "sentiment",
    "intent",
    "polarity",
    "score",
    "rating",
    "stars",
    "similarity",
    "gold",
    "answer",
    "y",
    "value",
)
TWO = (
    ("text_a", "text_b"), ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_a", "sentence_b"), ("text1", "text2"),
    ("question1", "question2"), ("question", "sentence"), ("question", "context"), ("question", "passage"), ("question", "answer"),
    ("query", "passage"), ("query", "document"), ("text", "text_pair"),
)  # fmt: skip
SOURCE_TARGET = (
    ("source", "target"), ("input", "output"), ("input", "target"), ("inputs", "targets"), ("document", "summary"), ("article", "highlights"),
    ("article", "summary"), ("text", "summary"), ("text", "target"), ("text", "target_text"), ("input_text", "target_text"),
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("question", "answer"), ("src", "tgt"),
)  # fmt: skip
TRANSCRIPT = ("text", "transcript", "transcription", "sentence", "target", "label")
ARRAY_TARGET = ("y", "target", "targets", "label", "labels")
FILL = "Fill them in or delete these rows."
OPTIONS = {"text": "--text-column", "source": "--text-column", "target": "--label-column"}
HEADS = {
    "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm", "ForConditionalGeneration": "seq2seq", "ForSeq2SeqLM": "seq2seq", "ForCTC": "ctc",
    "ForSequenceClassification": "classification", "ForImageClassification": "classification", "ForAudioClassification": "classification",
}  # fmt: skip
UNREAD = {
    "ForTokenClassification": "token classification",
    "ForMaskedLM": "masked language modelling",
    "ForQuestionAnswering": "extractive question answering",
    "ForMultipleChoice": "multiple choice",
}


@dataclass(frozen=True)
class Roles:
    """Names of the columns in their parts. `pair`: the second text; `side`: a column that says train, search or test."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    side: str | None = None


# ------------------------------------------------------------------------------------------------------------------ kinds


def kind_of(hint: str | None, subject: Subject | None, table: Table, label: object) -> str:
    """classification, regression, causal_lm, seq2seq, ctc or custom: as told, else by the model's head and configuration, else by the targets.

    Raises InputError for an unknown hint, or a head whose task is not supported.
    """
    if hint is not None:
        if hint not in KINDS:
            near = difflib.get_close_matches(hint, KINDS, 1, 0.4)
            raise InputError(f"There is no task called {hint!r}." + (f" Did you mean {near[0]!r}?" if near else ""), f"Known: {', '.join(KINDS)}.")
        return hint
    config = config_of(subject)
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        raise InputError(
            "The model classifies into several classes at once (multi_label_classification), which is not supported.",
            "Say task='custom' and give your own metric.",
        )
    for name in [type(getattr(subject, "module", None)).__name__, *(getattr(config, "architectures", None) or [])]:
        for head, meaning in UNREAD.items():
            if name.endswith(head):
                raise InputError(f"{name}: {meaning} is not supported.", "Say task='custom', and give arrays and your own metric.")
        for head, kind in HEADS.items():
            if name.endswith(head):
                single = problem == "regression" or problem is None and outputs_of(config) == 1
                return "regression" if kind == "classification" and single else kind
    return _kind_by_targets(label)


def _kind_by_targets(label: Any) -> str:
    if label is None:
        return "custom"
    if isinstance(label, np.ndarray) and label.ndim > 1 and label.size != len(label):
        return "custom"
    values = label.ravel().tolist() if isinstance(label, np.ndarray) else list(label)
    if any(isinstance(value, list | tuple | np.ndarray) for value in values):
        return "custom"
    numbers = [number(value) for value in values if not absent(value)]
    whole = all(value is None or not math.isfinite(value) or value.is_integer() for value in numbers)
    return "classification" if whole else "regression"


def config_of(subject: Subject | None) -> object:
    """The model's configuration, or None where it has none. A saved member knows its own without making its module."""
    if hasattr(type(subject), "config"):
        return getattr(subject, "config")  # noqa: B009
    return getattr(getattr(subject, "module", None), "config", None)


def outputs_of(config: object) -> int | None:
    """How many classes the model tells apart; None where it does not say."""
    names = getattr(config, "id2label", None)
    return len(names) if isinstance(names, Mapping) and names else getattr(config, "num_labels", None)


# ------------------------------------------------------------------------------------------------------------------ roles


def roles_of(table: Table, columns: Mapping[str, str] | None, subject: Subject | None, hint: str | None, *, labelled: bool = True) -> Roles:
    """Which column is what: as told, else by name, else by what the columns hold (text: the longest words; label: few distinct values).

    `columns` may name text, pair, label, split (also target, text_a, text_b). `labelled` False: nobody needs the label of a table.
    Raises InputError for a column that does not exist, nearest names
    offered.
    """
    told = _told(table, columns)
    if table.nature == "arrays":
        label = told.get("label") or next((name for name in table.columns if name.lower() in ARRAY_TARGET), None)
        return Roles(label=label, side=told.get("side"))
    if table.nature in ("images", "audio"):
        wanted = TRANSCRIPT if table.nature == "audio" else LABEL
        return Roles(
            text="file",
            label=told.get("label") or next((name for want in wanted for name in table.columns if name.lower() == want), None),
            side=told.get("side"),
        )
    wordy = [name for name, values in table.columns.items() if _wordy(values)]
    head = kind_of(hint, subject, table, [0]) if subject is not None or hint else "classification"
    if head in ("seq2seq", "causal_lm"):
        return _generative(table, told, wordy, head)
    text, pair = told.get("text"), told.get("pair")
    if text is None:
        text, pair = _texts(table, wordy, told)
    label = told.get("label")
    if label is None and labelled:
        label = _label(table, [name for name in table.columns if name not in (text, pair, told.get("side"))], head)
    return Roles(text, pair, label, told.get("side"))


def _told(table: Table, columns: Mapping[str, str] | None) -> dict[str, str]:
    meanings = {
        "text": "text",
        "text_a": "text",
        "source": "text",
        "input": "text",
        "pair": "pair",
        "text_b": "pair",
        "text_pair": "pair",
        "label": "label",
        "target": "label",
        "y": "label",
        "split": "side",
    }
    told = {}
    for key, name in (columns or {}).items():
        if key not in meanings:
            raise InputError(f"columns has {key!r}, which means nothing here.", "It may name text, pair, label and split.")
        if name not in table.columns:
            near = difflib.get_close_matches(name, list(table.columns), 3, 0.4) or list(table.columns)[:6]
            raise InputError(f"{table.source} has no column {name!r}.", f"Nearest: {', '.join(near)}." if table.sure else f"It has {table.listed()}.")
        told[meanings[key]] = name
    return told


def _generative(table: Table, told: dict[str, str], wordy: list[str], head: str) -> Roles:
    lower = {name.lower(): name for name in table.columns}
    side = told.get("side")
    if head == "causal_lm":
        text = told.get("text") or next((lower[name] for name in TEXT if name in lower and lower[name] in wordy), None) or _longest(table, wordy)
        if text is None:
            raise _missing(table, "text", TEXT)
        return Roles(text=text, side=side)
    text, label = told.get("text"), told.get("label")
    for source, target in SOURCE_TARGET:
        if source in lower and target in lower:
            text, label = text or lower[source], label or lower[target]
            break
    rest = [name for name in table.columns if name != side]
    text = text or next((name for name in wordy if name != label), None)
    label = (
        label
        or next((lower[name] for name in LABEL if name in lower and lower[name] != text), None)
        or next((name for name in rest if name != text), None)
    )
    if text is None or label is None:
        raise _missing(table, "source" if text is None else "target", ("source", "target"))
    return Roles(text, None, label, side)


def _texts(table: Table, wordy: list[str], told: dict[str, str]) -> tuple[str, str | None]:
    lower = {name.lower(): name for name in wordy if name != told.get("label")}
    for first, second in TWO:
        if first in lower and second in lower:
            return lower[first], lower[second]
    named = next((lower[name] for name in TEXT if name in lower), None)
    text = named or _longest(table, list(lower.values()))
    if text is None:
        raise _missing(table, "text", TEXT)
    return text, told.get("pair")


def _longest(table: Table, names: list[str]) -> str | None:
    return max(names, key=lambda name: sum(len(str(value)) for value in table.columns[name][:500]), default=None)


def _label(table: Table, rest: list[str], head: str) -> str | None:
    """By name, else a column whose values repeat; a column of which no value repeats is a name, not a label, unless it holds fractions.

    InputError where several columns could be it and say different things: which one is meant is never guessed.
    """
    lower = {name.lower(): name for name in rest}
    plain = next((lower[name] for name in ("label", "labels") if name in lower), None)
    named = [lower[name] for name in LABEL if name in lower]
    parted = [name for name in rest if any(part in LABEL for part in name.lower().replace("-", "_").split("_"))]
    repeated = [name for name in rest if 1 < len(set(map(str, table.columns[name]))) <= max(2, len(table) // 3)]
    real = [name for name in rest if _fractions(table.columns[name])]
    useful = [name for name in rest if name in repeated and name not in real or name in real and head != "classification"] or real
    for found in ([plain] if plain else [], named, parted, useful):
        if found:
            return _sole(table, found)
    return None


def _sole(table: Table, names: list[str]) -> str:
    """The one column, or the first of several that tell the same classes apart under other names."""
    first = [str(value) for value in table.columns[names[0]]]
    others = []
    for name in names[1:]:
        pairs = set(zip(first, map(str, table.columns[name]), strict=True))
        if not len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs):
            others.append(name)
    if others:
        example = names[0] if table.sure else "…"
        raise InputError(
            f"{table.source} has several columns that could be the label: {', '.join(map(table.called, [names[0], *others][:6]))}.",
            f'Say which one it is: --label-column "{example}", or columns={{"label": "{example}"}}.',
        )
    return names[0]


def _fractions(values: Sequence[object]) -> bool:
    numbers = [number(value) for value in values]
    return all(value is not None for value in numbers) and any(
        value is not None and math.isfinite(value) and not value.is_integer() for value in numbers
    )


def _wordy(values: object) -> bool:
    some = [value for value in _some(values) if not absent(value)]
    return sum(isinstance(value, str) and number(value) is None for value in some) > len(some) / 2


def _some(values: Any) -> list[object]:
    """A few hundred entries from the whole column."""
    return list(values[:: max(1, len(values) // 300)]) if hasattr(values, "__len__") else []


def _missing(table: Table, what: str, names: Sequence[str]) -> InputError:
    near = [name for name in table.columns if difflib.get_close_matches(name.lower(), names, 1, 0.6)]
    example = (near or list(table.columns) or ["…"])[0] if table.sure else "…"
    return InputError(
        f"{table.source} has no column that looks like {what!r}; it has {table.listed()}.",
        f'Say which one it is: {OPTIONS[what]} "{example}", or columns={{"{what}": "{example}"}}.',
    )


def unlabelled(table: Table, role: Roles) -> InputError:
    """There is no column that could be the label."""
    near = [name for name in table.columns if difflib.get_close_matches(name.lower(), LABEL, 1, 0.5)] or list(table.columns)
    near = [name for name in near if name not in (role.text, role.pair)] if table.sure else []
    name = "'y'" if table.nature == "arrays" else "'label'"
    there = f"Nearest: {', '.join(near[:4])}; say" if near else "Add one, or say"
    return InputError(
        f"{table.source} has no column {name} (it has {table.listed()}).",
        f"{there} which it is (--label-column), or judge by the original's own answers: --metric agreement.",
    )


def sides_of(table: Table, name: str) -> np.ndarray:
    """The side that each row's split column names. InputError for another word."""
    found = [PARTS.get(str(value).strip().lower()) for value in table.columns[name]]
    bad = [row for row, side in enumerate(found) if side is None]
    if bad:
        raise InputError(
            f"{table.where(bad)}: the split column {table.called(name)} says something else than a part ({_rows(len(bad))}).",
            "It must say train, search (or validation) or test.",
        )
    return np.array(found)


# ----------------------------------------------------------------------------------------------------------------- values


def number(value: Any) -> float | None:
    """The value as a number, or None; NaN counts as a number here."""
    if isinstance(value, bool | np.bool_):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def absent(value: object) -> bool:
    """None, NaN or nothing but white space."""
    return value is None or isinstance(value, str) and not value.strip() or isinstance(value, float | np.floating) and math.isnan(value)


def texts_of(table: Table, name: str) -> list[str]:
    """A column as texts. InputError where it is not there, or some are missing or not texts."""
    if name not in table.columns:
        raise InputError(f"{table.source} has no column of texts; it has {table.listed()}.", "Give a table with a column of texts.")
    values = table.columns[name]
    empty = [row for row, value in enumerate(values) if absent(value)]
    if empty:
        raise InputError(f"{table.where(empty)}: no text in column {table.called(name)} ({_rows(len(empty))}).", FILL)
    odd = [row for row, value in enumerate(values) if not isinstance(value, str | int | float | np.generic)]
    if odd:
        what = type(values[odd[0]]).__name__
        raise InputError(f"{table.where(odd)}: column {table.called(name)} holds {what}, not text.", "Give one text per row.")
    return [str(value) for value in values]


def _rows(count: int) -> str:
    return f"{count:,} row" + "s" * (count != 1)


def _kind(value: object) -> str:
    """What a cell is, without saying what it holds: errors go into logs that others read."""
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return "a word" if len(value.split()) == 1 else f"a text of {len(value.split())} words"


def values_of(table: Table, name: str) -> np.ndarray:
    """A column of real numbers, float64 [N]. InputError for words, NaN, infinities."""
    raw = table.columns[name]
    if isinstance(raw, np.ndarray):
        raw = raw.reshape(len(raw), -1)
        if raw.shape[1] != 1:
            raise InputError(
                f"{table.source}: regression wants one number per row, {table.called(name)} has {raw.shape[1]}.",
                "Say task='custom' and give your own metric.",
            )
        raw = raw[:, 0].tolist()
    empty = [row for row, value in enumerate(raw) if absent(value) or isinstance(value, str) and value.strip().lower() == "nan"]
    if empty:
        raise InputError(f"{table.where(empty)}: no value in column {table.called(name)} ({_rows(len(empty))}).", FILL)
    found = [number(value) for value in raw]
    words = [row for row, value in enumerate(found) if value is None]
    if words:
        raise InputError(
            f"{table.where(words)}: column {table.called(name)} holds {_kind(raw[words[0]])}, not a number, and the task is regression.",
            "Give numbers, or say --task classification.",
        )
    wild = [row for row, value in enumerate(found) if value is not None and not math.isfinite(value)]
    if wild:
        raise InputError(f"{table.where(wild)}: column {table.called(name)} is infinite ({_rows(len(wild))}).", "Replace or delete these values.")
    array = np.array(found, dtype=np.float64)
    if np.ptp(array) == 0:
        raise InputError(f"{table.source}: every row has the same value {array[0]:g} in column {table.called(name)}.", "Give targets that differ.")
    return array


@dataclass(frozen=True)
class Labels:
    """Class numbers int64 [N], the name of each class, whether the data used the names, and what was decided on the way."""

    targets: np.ndarray
    classes: list[str]
    named: bool
    note: str = ""


def labels_of(table: Table, name: str, config: object) -> Labels:
    """A column of classes: whole numbers from 0, or names (mapped through the model's own where they match, else in alphabetical order).

    Raises InputError for missing labels, numbers mixed with words, numbers or names that the model does not know, one class only.
    """
    raw = table.columns[name]
    raw = raw.reshape(len(raw)).tolist() if isinstance(raw, np.ndarray) and raw.size == len(raw) else list(raw)
    empty = [row for row, value in enumerate(raw) if absent(value) or isinstance(value, str) and value.strip().lower() == "nan"]
    if empty:
        raise InputError(f"{table.where(empty)}: no label in column {table.called(name)} ({_rows(len(empty))}).", FILL)
    odd = [row for row, value in enumerate(raw) if not isinstance(value, str | int | float | np.generic)]
    if odd:
        raise InputError(
            f"{table.where(odd)}: the label is {type(raw[odd[0]]).__name__}, and classification wants one class per row.",
            "Give one name or whole number per row.",
        )
    words = [_canonical(value) for value in raw]
    if len(set(words)) == 1:
        raise InputError(f"{table.source}: every row has the same label in column {table.called(name)}.", "Give rows of at least two classes.")
    known, generic = _names(config)
    lookup = {_canonical(label).lower(): i for i, label in enumerate(known)}
    if not generic and all(word.lower() in lookup for word in set(words)):
        return Labels(np.array([lookup[word.lower()] for word in words], dtype=np.int64), known, True)
    numbers = [number(value) for value in raw]
    plain = [row for row, value in enumerate(numbers) if value is not None]
    if plain and len(plain) < len(raw):
        other = next(row for row, value in enumerate(numbers) if value is None)
        there = table.where([other]).rsplit(", ", 1)[-1]
        said = f"the label in column {table.called(name)} is a number, while in {there} it is {_kind(raw[other])}."
        raise InputError(f"{table.where([plain[0]])}: {said}", "Use one kind of label.")
    return _numbered(table, name, numbers, known, generic) if plain else _worded(table, name, words, known, generic, lookup)


def _canonical(value: object) -> str:
    """A label as a word: single blanks, and a whole number however it is written ("1", 1, 1.0, "1.00")."""
    word = " ".join(value.split()) if isinstance(value, str) else str(value)
    as_number = None if isinstance(value, bool | np.bool_) else number(value)
    if as_number is not None and math.isfinite(as_number) and as_number.is_integer():
        return str(int(as_number))
    return word


def _counted(known: list[str]) -> dict[int, int]:
    """Class number by the one whole number that its name holds ("1 star" → 1); empty unless every name holds one and no two the same."""
    found = [re.findall(r"(?<![\d.])\d+(?![\d.])", label) for label in known]
    if not all(len(one) == 1 for one in found):
        return {}
    places = {int(one[0]): i for i, one in enumerate(found)}
    return places if len(places) == len(known) else {}


def _names(config: object) -> tuple[list[str], bool]:
    """The model's class names in order, and whether they say nothing (LABEL_0, LABEL_1 …)."""
    given = getattr(config, "id2label", None)
    if not isinstance(given, Mapping) or not given:
        return [], True
    names = [str(label) for _, label in sorted(given.items(), key=lambda item: int(item[0]))]
    return names, all(label.upper() == f"LABEL_{i}" for i, label in enumerate(names))


def _numbered(table: Table, name: str, numbers: list[float | None], known: list[str], generic: bool) -> Labels:
    values = np.array(numbers, dtype=np.float64)
    broken = np.flatnonzero(~(np.abs(values) < 2**53) | (values != np.floor(values)))
    if len(broken):
        raise InputError(
            f"{table.where(broken)}: the label {values[broken[0]]:g} is not a class number, and the task is classification.",
            "Give whole numbers or names, or say task='regression'.",
        )
    targets, most = values.astype(np.int64), len(known) or None
    counted = {} if generic else _counted(known)
    if counted and any(n != i for n, i in counted.items()) and set(targets.tolist()) <= set(counted):
        if targets.min() >= 0 and targets.max() < len(known):
            first = min(set(targets.tolist()))
            raise InputError(
                f"{table.source}: the label {first} in column {table.called(name)} may be the model's class number {first} ({known[first]!r}) or its "
                f"class {known[counted[first]]!r}.",
                "Write the model's class names into the column.",
            )
        note = f"Labels are the numbers in the model's class names ({', '.join(f'{n} = {known[i]}' for n, i in list(counted.items())[:6])})."
        return Labels(np.array([counted[n] for n in targets.tolist()], dtype=np.int64), known, False, note)
    bad = np.flatnonzero((targets < 0) | (targets >= most if most else False))
    if len(bad):
        expected = f"the model has classes 0 to {most - 1}" if most else "classes are numbered from 0"
        raise InputError(
            f"{table.where(bad)}: label {targets[bad[0]]} in column {table.called(name)}, but {expected}.",
            "Number the classes from 0 as the model does, or use its class names.",
        )
    if most is None and targets.max() >= 10_000:
        raise InputError(
            f"{table.source}: label {targets.max()} in column {table.called(name)} looks like a quantity, not a class.",
            "Say task='regression', or number the classes from 0.",
        )
    classes = known if not generic else [str(i) for i in range(most or int(targets.max()) + 1)]
    note = f"Labels are read as class numbers from 0, and no row of column {table.called(name)} has 0." if targets.min() > 0 else ""
    return Labels(targets, classes, False, note)


def _worded(table: Table, name: str, words: list[str], known: list[str], generic: bool, lookup: dict[str, int]) -> Labels:
    distinct = sorted(set(words))
    matched = [word for word in distinct if word.lower() in lookup]
    if matched and not generic:
        row = next(row for row, word in enumerate(words) if word.lower() not in lookup)
        raise InputError(
            f"{table.where([row])}: the label in column {table.called(name)} ({_kind(words[row])}) is not one of the model's classes "
            f"({', '.join(known[:8])}).",
            "Use the model's names, or whole numbers from 0.",
        )
    if generic and matched and len(matched) == len(distinct):
        return Labels(np.array([lookup[word.lower()] for word in words], dtype=np.int64), known, True)
    if known and len(distinct) > len(known):
        raise InputError(
            f"{table.source}: {len(distinct):,} different labels in column {table.called(name)}, but the model has {len(known)} classes.",
            'Check the label column, or say which it is: --label-column, or columns={"label": …}.',
        )
    place = {word: i for i, word in enumerate(distinct)}
    classes = distinct + [f"class {i}" for i in range(len(distinct), len(known))]
    order = ", ".join(f"{word} = {i}" for word, i in list(place.items())[:6])
    note = (
        f"The model {'does not name its classes' if generic else 'names its classes differently'}: labels taken in alphabetical order ({order})."
        if known
        else ""
    )
    return Labels(np.array([place[word] for word in words], dtype=np.int64), classes, True, note)
