"""The bibliography: read from its file, printed as it stands there, and refused by entry where it is not what it should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourfold.cite import BIBLIOGRAPHY, Paper, bibtex, paper, read
from fourfold.errors import InputError

FILE = Path(__file__).parent.parent / "fourfold" / "references.bib"
GOOD = "@article{one1997,\n  author = {Ann One and Bo Two},\n  title = {{On {LSTM} and More}},\n  journal = {A Journal 3},\n  year = {1997}\n}\n"


def test_what_is_printed_is_what_is_read() -> None:
    whole = bibtex(BIBLIOGRAPHY)
    assert read(whole) == BIBLIOGRAPHY and list(read(whole)) == list(BIBLIOGRAPHY)
    bare = "\n\n".join(block.strip() for block in FILE.read_text(encoding="utf-8").split("\n\n") if block.lstrip().startswith("@"))
    assert bare == whole


def test_an_entry_becomes_a_paper() -> None:
    assert read("% said\n\n" + GOOD) == {"one1997": Paper("article", ("Ann One", "Bo Two"), "On {LSTM} and More", "A Journal 3", 1997)}
    assert str(paper("kirkpatrick1983")).startswith("Scott Kirkpatrick et al. (1983). Optimization by Simulated Annealing. Science 220")


@pytest.mark.parametrize(
    "text, named",
    [
        (GOOD + GOOD, "one1997"),
        (GOOD.replace("1997}", "MCM}"), "one1997"),
        (GOOD.replace("journal", "booktitle"), "one1997"),
        (GOOD.replace("author", "authors"), "one1997"),
        (GOOD.replace("  author = {Ann One and Bo Two},\n", ""), "one1997"),
        (GOOD.replace("  year = {1997}", "  year = 1997"), "one1997"),
        (GOOD.replace("\n}\n", "\n"), "@article"),
        ("words", "words"),
    ],
)
def test_what_cannot_be_read_is_refused_by_entry(text: str, named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        read(text)
    assert len(str(error.value).split("\n")) == 2


def test_an_unknown_key_has_a_neighbour() -> None:
    with pytest.raises(InputError, match="Did you mean kirkpatrick1983"):
        paper("kirkpatrick1984")
