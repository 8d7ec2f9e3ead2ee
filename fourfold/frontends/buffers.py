"""Buffers with lives from a CSV file: the columns id, lower, upper, size of the public packing instances, and what else may be known of a buffer.

| column | meaning | empty cell |
|---|---|---|
| id, lower, upper, size | unique name; the half-open life [lower, upper); bytes | not allowed |
| offset (or fixed) | the offset that it must have | free |
| alignment | its offset is a multiple of it | 1 |
| bank | name or number of the bank that it must be in | any |
| hint | an offset to try first | none |
| gaps | stretches in which it takes no memory: `3-5;8-9`; or but for the bytes 0 to 64 of it: `3-5:0-64` | none |
| alias | id of the buffer whose memory it shares (a result written in place) | its own |
| module | where it comes from, for pictures | none |

Reading gives plain columns; `Buffers` of the question allocate makes them whole.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fourfold.errors import InputError
from fourfold.text import shown, text

NEEDED = ("id", "lower", "upper", "size")
KNOWN = (*NEEDED, "offset", "alignment", "bank", "hint", "gaps", "alias", "module")
_OTHER = {"fixed": "offset", "fixed_offset": "offset", "buffer": "id", "buffer_id": "id", "gap": "gaps"}
_GAP = re.compile(r"(-?\d+)\s*-\s*(-?\d+)(?:\s*[:@]\s*(\d+)\s*[-:]\s*(\d+))?")
_LEAST, _MOST = -(2**63), 2**63 - 1
_WRITE = "Write a header such as id,lower,upper,size and a line a buffer."


def read_buffers(path: str | Path, banks: Sequence[str] = ()) -> dict[str, Any]:
    """The file's columns as arrays, by the names of the fields of `Buffers`: ids, lower, upper, size, and those of the others that the file has.

    `banks`: the names that the column bank may use, besides their numbers. Raises InputError for a file that is missing, empty, no text or without
    header, unknown or missing columns (the nearest names), cells that are no whole number or beyond 64 bits, unknown banks and aliases, gaps that
    cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.", "Give a CSV file of buffers, or a model.") from None
    lines = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text(data, path.name)), skipinitialspace=True), 1)
             if any(cell.strip() for cell in row)]
    if not lines:
        raise InputError(f"{path.name} is empty.", _WRITE)
    names = _header(path.name, [cell.strip() for cell in lines[0][1]])
    rows = lines[1:]
    if not rows:
        raise InputError(f"{path.name} has a header and no buffers.", _WRITE)
    for number, row in rows:
        if len(row) != len(names):
            raise InputError(f"{path.name}, line {number}: {len(row)} cells for {len(names)} columns ({', '.join(names)}).",
                             "Write one cell for each column; quote a cell that holds a comma.")
    cells = {name: [row[c].strip() for _, row in rows] for c, name in enumerate(names)}
    where = [f"{path.name}, line {number}" for number, _ in rows]
    found: dict[str, Any] = {"ids": tuple(_named(where, cells["id"]))}
    for name in ("lower", "upper", "size"):
        found[name] = _whole(where, name, cells[name], None)
    for name, field, default in (("offset", "fixed", -1), ("alignment", "alignment", 1), ("hint", "hint", -1)):
        if name in cells:
            found[field] = _whole(where, name, cells[name], default)
    if "module" in cells:
        found["modules"] = tuple(cells["module"])
    if "bank" in cells:
        found["bank"] = _banks(where, cells["bank"], banks)
    if "alias" in cells:
        found["alias"] = _aliases(where, cells["alias"], found["ids"])
    return found | (_gaps(where, cells["gaps"]) if "gaps" in cells else {})


def _header(name: str, cells: list[str]) -> list[str]:
    """The columns' names as `KNOWN` has them."""
    plain = [_OTHER.get(cell.lower(), cell.lower()) for cell in cells]
    if not set(plain) & set(KNOWN) and any(re.fullmatch(r"[-+]?\d+", cell) for cell in cells):
        raise InputError(f"{name} has no header: its first line is {','.join(cells)[:60]}.", _WRITE)
    if unknown := [cell for cell, one in zip(cells, plain, strict=True) if one not in KNOWN]:
        near = difflib.get_close_matches(unknown[0].lower(), [*KNOWN, *_OTHER], n=2, cutoff=0.5)
        raise InputError(f"{name} has a column {unknown[0]!r}, which is not known here.",
                         f"Did you mean {' or '.join(near)}?" if near else f"Columns are: {', '.join(KNOWN)}.")
    if twice := [one for one in plain if plain.count(one) > 1]:
        raise InputError(f"{name} has the column {twice[0]} twice.", "Keep one of them.")
    if lacking := [one for one in NEEDED if one not in plain]:
        raise InputError(f"{name} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; it has {', '.join(cells)}.", _WRITE)
    return plain


def _named(where: list[str], cells: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    for i, cell in enumerate(cells):
        if not cell:
            raise InputError(f"{where[i]}: the buffer has no id.", "Give each buffer an id of its own.")
        if cell in seen:
            raise InputError(f"{where[i]}: buffer {cell!r} is there already, on {where[seen[cell]].rpartition(', ')[2]}.",
                             "Give each buffer an id of its own.")
        seen[cell] = i
    return cells


def _whole(where: list[str], name: str, cells: list[str], default: int | None) -> np.ndarray:
    """i8 of a column; an empty cell is the `default` where there is one."""
    values = []
    for at, cell in zip(where, cells, strict=True):
        if not cell and default is not None:
            values.append(default)
            continue
        try:
            value = int(cell)
        except ValueError:
            raise InputError(f"{at}: {name} is {shown(cell)}, not a whole number.", "Write whole numbers, sizes and offsets in bytes.") from None
        if not _LEAST <= value <= _MOST:
            raise InputError(f"{at}: {name} is {shown(cell)}, beyond 64 bits.", "Give the figures in larger units, all of them alike.")
        values.append(value)
    return np.array(values, np.int64)


def _banks(where: list[str], cells: list[str], banks: Sequence[str]) -> np.ndarray:
    index = {str(i): i for i in range(len(banks))} | {name: i for i, name in enumerate(banks)}
    found = []
    for at, cell in zip(where, cells, strict=True):
        if cell and cell not in index:
            near = difflib.get_close_matches(cell, list(banks), n=1, cutoff=0.5)
            known = f"There are: {', '.join(banks)}." if banks else "Name the banks: --banks sram=512K,dram=4M"
            raise InputError(f"{at}: there is no bank {cell!r}.", f"Did you mean {near[0]}? {known}" if near else known)
        found.append(index[cell] if cell else -1)
    return np.array(found, np.int32)


def _aliases(where: list[str], cells: list[str], ids: Sequence[str]) -> np.ndarray:
    """The root of each buffer; an alias of an alias shares its root."""
    index = {id: i for i, id in enumerate(ids)}
    parent = []
    for i, (at, cell) in enumerate(zip(where, cells, strict=True)):
        if cell and cell not in index:
            near = difflib.get_close_matches(cell, list(ids), n=1, cutoff=0.5)
            raise InputError(f"{at}: alias is {cell!r}, and no buffer has this id.",
                             f"Did you mean {near[0]}?" if near else "Name a buffer of the file.")
        parent.append(index[cell] if cell else i)
    root = above = np.array(parent)
    for _ in range(len(ids).bit_length() + 1):
        root = root[root]
    if (loop := np.flatnonzero(above[root] != root)).size:
        raise InputError(f"{where[int(loop[0])]}: aliases go in a circle.", "Let one of them have its own memory: leave its cell empty.")
    return root.astype(np.int32)


def _gaps(where: list[str], cells: list[str]) -> dict[str, np.ndarray]:
    """Gaps in CSR, those of a buffer in order of time."""
    ptr, rows = [0], []
    for at, cell in zip(where, cells, strict=True):
        mine = []
        for part in re.split(r"[;\s]+", re.sub(r"\s*([-:@])\s*", r"\1", cell)) if cell else ():
            if not part:
                continue
            if not (found := _GAP.fullmatch(part)):
                raise InputError(f"{at}: the gap {shown(part)} cannot be read.",
                                 "Write lower-upper, such as 3-5;8-9, or with what stays of it 3-5:0-64.")
            numbers = [-1 if one is None else int(one) for one in found.groups()]
            if max(map(abs, numbers)) > _MOST:
                raise InputError(f"{at}: the gap {shown(part)} is beyond 64 bits.", "Give the figures in larger units, all of them alike.")
            mine.append(numbers)
        rows += sorted(mine)
        ptr.append(len(rows))
    table = np.array(rows, np.int64).reshape(-1, 4)
    return {"gap_ptr": np.array(ptr, np.int32), "gap_lower": table[:, 0], "gap_upper": table[:, 1], "gap_from": table[:, 2], "gap_to": table[:, 3]}
