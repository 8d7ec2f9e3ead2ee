"""Bytes of a text file as text, in whichever Unicode form a spreadsheet or a shell wrote it."""

from __future__ import annotations

import codecs
import re

from fourfold.errors import InputError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),   # before UTF-16's, which begins alike
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LOOK = 128                                                            # bytes at the beginning that tell UTF-16 without a mark


def text(data: bytes, name: str, mend: str = "Save it as CSV in UTF-8.") -> str:
    """`data` decoded: UTF-8, or UTF-16 and UTF-32 by their byte order mark or, in UTF-16, by the zero bytes of plain letters; marks are dropped.

    Raises InputError for other encodings (with the line) and for what is no text.
    """
    form = next((form for mark, form in _MARKS if data.startswith(mark)), "") or _unmarked(data)
    try:
        made = data.decode(form)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}, line {line}: not {form.upper().removesuffix('-SIG')} text (byte {error.start}).", mend) from None
    if "\0" in made:
        raise InputError(f"{name} is not a text file.", mend)
    return made


def shown(cell: object) -> str:
    """A cell in the words of an error: as it stands where it is a figure, a time or the like, else what it is; for errors go into logs that others
    read."""
    if cell is None or isinstance(cell, int | float):
        return repr(cell)
    found = str(cell).strip()
    if len(found) <= 40 and not re.search(r"[^\W\d_]{4}", found):
        return repr(found)
    count = len(found.split())
    return "a word" if count == 1 else f"a text of {count} words"


def headline(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; the name of its class where it says nothing."""
    said = str(error).strip()
    return (said.splitlines()[0] if said else type(error).__name__)[:200]


def _unmarked(data: bytes) -> str:
    even, odd = data[:_LOOK:2], data[1:_LOOK:2]
    if len(data) % 2 == 0 and odd and not any(odd) and all(even):
        return "utf-16-le"
    if len(data) % 2 == 0 and even and not any(even) and all(odd):
        return "utf-16-be"
    return "utf-8"
