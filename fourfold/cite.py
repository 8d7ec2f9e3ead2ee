"""The papers that a result rests on, read from references.bib. Techniques name them by key (`Rewrite.cites`); `fourfold cite` prints them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from fourfold.errors import InputError


@dataclass(frozen=True)
class Paper:
    """`kind` is the BibTeX entry type; `venue` the journal, proceedings or publisher; `eprint` the arXiv number where there is one."""

    kind: str
    authors: tuple[str, ...]
    title: str
    venue: str
    year: int
    eprint: str = ""

    def __str__(self) -> str:
        names = self.authors[0] if len(self.authors) == 1 else " & ".join(self.authors) if len(self.authors) == 2 else f"{self.authors[0]} et al."
        return f"{names} ({self.year}). {self.title}. {self.venue}." + (f" arXiv:{self.eprint}" if self.eprint else "")

    def bibtex(self, key: str) -> str:
        """The entry under `key`."""
        place = _PLACES.get(self.kind, "howpublished")
        fields = {"author": " and ".join(self.authors), "title": f"{{{self.title}}}", place: self.venue, "year": self.year, "eprint": self.eprint}
        body = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
        return f"@{self.kind}{{{key},\n{body}\n}}"


_PLACES = {"article": "journal", "inproceedings": "booktitle", "book": "publisher"}   # what names the venue of an entry of that type
_FIELDS = {"author", "title", "year", "eprint", "howpublished", *_PLACES.values()}
_ENTRY = re.compile(r"@(\w+)\{([\w-]+),\n((?:  [^\n]*\n)*)\}")
_FIELD = re.compile(r"  (\w+) = \{(.*)\},?")


def read(text: str, file: str = "references.bib") -> dict[str, Paper]:
    """The entries of a .bib file by key, in its order. It is strict: one field a line, known fields, each key once; lines with % are comments.

    Raises InputError that names the entry.
    """
    found: dict[str, Paper] = {}
    bare = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("%"))
    for kind, key, body in _ENTRY.findall(bare):
        fields = {str(match[1]): str(match[2]) for match in map(_FIELD.fullmatch, body.splitlines()) if match}
        place = fields.get(_PLACES.get(kind, "howpublished"), "")
        wrong = len(fields) != len(body.splitlines()) or set(fields) - _FIELDS
        if wrong or key in found or not place or not fields.get("year", "").isdigit() or not fields.get("author") or not fields.get("title"):
            raise InputError(f"{file}: the entry {key!r} is not one that can be read, or is there twice.",
                             "Write author, title, year and where it appeared, a field a line: `  year = {1997},`")
        title = fields["title"].removeprefix("{").removesuffix("}")
        found[key] = Paper(kind, tuple(fields["author"].split(" and ")), title, place, int(fields["year"]), fields.get("eprint", ""))
    if rest := _ENTRY.sub("", bare).split():
        raise InputError(f"{file}: {' '.join(rest)[:80]!r} is no entry.", "Begin an entry with @article{key, and end it with } on a line of its own.")
    return found


BIBLIOGRAPHY: dict[str, Paper] = read((resources.files("fourfold") / "references.bib").read_text(encoding="utf-8"))


def paper(key: str) -> Paper:
    """The paper under `key`. Raises InputError with the nearest keys where there is none."""
    if key not in BIBLIOGRAPHY:
        near = difflib.get_close_matches(key, BIBLIOGRAPHY, n=3, cutoff=0.4)
        raise InputError(f"{key!r} is not in the bibliography.", f"Did you mean {' or '.join(near)}?" if near else "See `fourfold cite --all`.")
    return BIBLIOGRAPHY[key]


def bibtex(keys: Iterable[str]) -> str:
    """The BibTeX of `keys`, each once, in order."""
    return "\n\n".join(paper(key).bibtex(key) for key in dict.fromkeys(keys))
