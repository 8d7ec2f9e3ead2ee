"""Typed code: how often `Any` stands in the package, and what a document that breaks its struct is told."""

from __future__ import annotations

import io
import math
import tokenize
from pathlib import Path
from typing import Literal

import pytest

from fourfold.documents import Finite, StrictDocument, TypedDocument, convert, decode
from fourfold.errors import ArtefactError

ROOT = Path(__file__).parent.parent
MOST = 12.0                                                            # words `Any` per 1,000 lines of package code, imports counted


def anys(text: str) -> int:
    """Words `Any` in code: comments and strings apart, imports counted."""
    return sum(token.type == tokenize.NAME and token.string == "Any" for token in tokenize.generate_tokens(io.StringIO(text).readline))


def test_any_is_rare() -> None:
    texts = {file: file.read_text(encoding="utf-8") for file in sorted((ROOT / "fourfold").rglob("*.py"))}
    found = {file: anys(text) for file, text in texts.items()}
    lines = sum(len(text.splitlines()) for text in texts.values())
    worst = ", ".join(f"{file.relative_to(ROOT)} {count}" for file, count in sorted(found.items(), key=lambda item: -item[1])[:8])
    rate = 1000 * sum(found.values()) / lines
    assert rate <= MOST, f"{rate:.1f} Any per 1,000 lines; most in {worst}"


def test_words_in_comments_and_strings_are_not_code() -> None:
    assert anys('from typing import Any  # Any\nx: Any = "Any"\ny: "Any" = Anything\n') == 2


class Gate(StrictDocument):
    threshold: Finite
    members: int
    kind: Literal["cautious", "bold"] = "bold"
    note: str | None = None


class Gates(TypedDocument):
    gates: list[Gate]
    named: dict[str, Gate] = {}


@pytest.mark.parametrize(
    "value, said",
    [
        ({}, "gates is missing"),
        ({"gates": 3}, "gates is a whole number; a list was expected"),
        ({"gates": [{"members": 1}]}, "gates[0].threshold is missing"),
        ({"gates": [{"threshold": "high", "members": 1}]}, "gates[0].threshold is text; a number was expected"),
        ({"gates": [{"threshold": math.nan, "members": 1}]}, "gates[0].threshold is not finite"),
        ({"gates": [{"threshold": 0.5, "members": True}]}, "gates[0].members is true or false; a whole number was expected"),
        ({"gates": [{"threshold": 0.5, "members": 1.5}]}, "gates[0].members is a number; a whole number was expected"),
        ({"gates": [{"threshold": 0.5, "members": 1, "kind": "timid"}]}, "gates[0].kind is 'timid'; expected one of bold, cautious"),
        ({"gates": [{"threshold": 0.5, "members": 1, "note": 3}]}, "gates[0].note is a whole number; text or null was expected"),
        ({"gates": [{"threshold": 0.5, "members": 1, "extra": 3}]}, "gates[0].extra is not part of the schema"),
        ({"gates": [], "named": {3: {}}}, "a key of named is a whole number; text was expected"),
        (None, "the document is null; an object was expected"),
    ],
)
def test_a_fault_names_file_and_field(value: object, said: str) -> None:
    with pytest.raises(ArtefactError) as error:
        convert(value, Gates, "gates.json", "Write it anew.")
    first, second = str(error.value).split("\n")
    assert first.startswith("gates.json is damaged: ") and said in first and second == "Write it anew."


def test_json_is_decoded_or_refused() -> None:
    made = decode('{"gates": [{"threshold": 1, "members": 2, "kind": "bold"}], "later": 1}', Gates, "gates.json")
    assert made.to_json() == {"gates": [{"threshold": 1.0, "members": 2, "kind": "bold", "note": None}], "named": {}}
    for broken in ("{", b"\xff\xfe", "[" * 100_000):
        with pytest.raises(ArtefactError, match="gates.json is damaged"):
            decode(broken, Gates, "gates.json")
