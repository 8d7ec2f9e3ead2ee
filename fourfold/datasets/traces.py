"""Traces of requests as files: oracleGeneral records, keys one a line or as numbers, and CSV; plain or packed (.gz, .bz2, .xz, .zst).

A reader gives keys and sizes, and counts on nothing: whatever the bytes are, it answers or raises InputError naming the record or line.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import FourfoldError, InputError, MissingExtra, unwritable

FORMATS = ("oracle", "keys", "u32", "csv")
MOST = 1 << 32                                                          # bytes of a trace, unpacked: a small file must not fill the memory
_RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])     # oracleGeneral of libCacheSim, 24 bytes, packed
_KEYS = ("key", "id", "object", "obj", "obj_id", "object_id", "object id")
_SIZES = ("size", "bytes", "obj_size", "object_size", "object size", "length")
_CHUNK = 1 << 22
_SAY = f"Say what it is with --format: {', '.join(FORMATS)}."


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in order. `keys` [n]: any that sort; `sizes` i8[n] bytes, or None where the file says none; `format`: as which it was read."""

    keys: NDArray[np.generic]
    sizes: NDArray[np.int64] | None
    format: str
    notes: tuple[str, ...] = ()


def read(path: str | Path, format: str | None = None) -> Requests:
    """The requests of a file, as `format` (one of FORMATS) or as its name and first bytes look.

    Requests of zero bytes are left out, and said so. Raises InputError for a file that is not there, damaged, empty or of another format;
    MissingExtra for .zst where nothing here can unpack it.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise InputError(f"--format {format!r} is not known.", f"Choose from: {', '.join(FORMATS)}.")
    data = _bytes(path)
    if not data:
        raise InputError(f"{path.name} holds no request.", "Give a trace with at least one request.")
    kind = format or _guess(path, data)
    return {"oracle": _oracle, "keys": _lines, "u32": _numbers, "csv": _table}[kind](path.name, data)


def write_oracle(path: str | Path, keys: NDArray[np.generic], sizes: NDArray[np.generic] | None = None) -> Path:
    """Write requests as oracleGeneral records: `keys` u8[n], `sizes` [n] bytes below 2^32 (None: one each); time is the request's number.

    Raises InputError where the arrays do not fit one another or the file cannot be written.
    """
    keys, path = np.asarray(keys), Path(path)
    whole = np.ones(len(keys), np.int64) if sizes is None else np.asarray(sizes)
    if keys.ndim != 1 or whole.shape != keys.shape or not len(keys) or whole.min() < 1 or whole.max() >= 1 << 32:
        raise InputError("Requests need as many keys as sizes, of 1 to 4,294,967,295 bytes.", "Give a key and a size for every request.")
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    made = np.zeros(len(keys), _RECORD)
    made["time"], made["id"], made["size"], made["next"] = np.arange(len(keys)), keys.astype(np.uint64), whole, -1
    made["next"][order[:-1][same]] = order[1:][same] + 1                # requests are numbered from 1
    try:
        path.write_bytes(made.tobytes())
    except OSError as error:
        raise unwritable(path, error, "the trace") from None
    return path


def _opened(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return _zstd(path)
    openers: dict[str, Callable[[Path], BinaryIO]] = {".gz": lambda p: io.BufferedReader(gzip.open(p)), ".bz2": lambda p: io.BufferedReader(
        bz2.open(p)), ".xz": lambda p: io.BufferedReader(lzma.open(p))}
    return openers[suffix](path) if suffix in openers else path.open("rb")


def _zstd(path: Path) -> BinaryIO:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingExtra(f"Unpacking {path.name} needs the package pyarrow.", "pip install 'fourfold[data]'") from None
    return io.BufferedReader(pa.CompressedInputStream(str(path), "zstd"))


def _bytes(path: Path) -> bytes:
    """The file, unpacked."""
    if not path.is_file():
        raise InputError(f"{path} is not a file.", "Give a trace: oracleGeneral, keys or CSV, plain or packed (.gz, .bz2, .xz, .zst).")
    parts, held = [], 0
    try:
        with _opened(path) as file:
            while part := file.read(_CHUNK):
                parts.append(part)
                held += len(part)
                if held > MOST:
                    raise InputError(f"{path.name} is over {MOST:,} bytes unpacked.", "Give a part of the trace.")
    except FourfoldError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path.name} cannot be read behind byte {held:,} of what it unpacks to: {why}.",
                         "It is damaged or not whole; fetch it again.") from None
    return b"".join(parts)


def _guess(path: Path, data: bytes) -> str:
    names = [one.lower() for one in path.suffixes]
    if "oraclegeneral" in path.name.lower():
        return "oracle"
    if ".csv" in names:
        return "csv"
    head = data[: 1 << 16]
    if all(byte in b"\t\n\r" or byte >= 32 for byte in head) and b"\0" not in head:
        first = head.split(b"\n", 1)[0].decode("utf-8", "replace")
        return "csv" if any(cell.strip().strip('"').lower() in _KEYS for cell in first.split(",")) else "keys"
    if len(data) % _RECORD.itemsize == 0:
        start = np.frombuffer(data, _RECORD, count=min(len(data) // _RECORD.itemsize, 4096))
        later = (start["next"] == -1) | (start["next"] > np.arange(len(start)))
        if later.all() and (np.diff(start["time"].astype(np.int64)) >= 0).all():
            return "oracle"
    if len(data) % 4 == 0:
        return "u32"
    raise InputError(f"{path.name} is of no format that is known here: {len(data):,} bytes that are neither text nor whole records.", _SAY)


def _weighed(name: str, keys: NDArray[np.generic], sizes: NDArray[np.int64], format: str) -> Requests:
    """Without the requests of zero bytes."""
    some = sizes > 0
    if not some.any():
        raise InputError(f"All {len(sizes):,} requests of {name} are of zero bytes.", "Give a trace with sizes, or one of keys only.")
    if some.all():
        return Requests(keys, sizes, format)
    return Requests(keys[some], sizes[some], format, (f"{int((~some).sum()):,} requests of zero bytes were left out.",))


def _oracle(name: str, data: bytes) -> Requests:
    whole, over = divmod(len(data), _RECORD.itemsize)
    if over:
        raise InputError(f"Record {whole + 1:,} of {name} ends after {over} of {_RECORD.itemsize} bytes.",
                         f"The trace is cut off; fetch it again. {_SAY}")
    found = np.frombuffer(data, _RECORD)
    after = found["next"]
    if (bad := np.flatnonzero((after != -1) & (after < np.arange(1, whole + 1)))).size:
        raise InputError(f"Record {bad[0] + 1:,} of {name} says that its object comes next as request {after[bad[0]]:,}, which is not later.",
                         f"The trace is damaged or of another format. {_SAY}")
    return _weighed(name, found["id"].copy(), found["size"].astype(np.int64), "oracle")


def _numbers(name: str, data: bytes) -> Requests:
    whole, over = divmod(len(data), 4)
    if over:
        raise InputError(f"Key {whole + 1:,} of {name} ends after {over} of 4 bytes.", f"The trace is cut off; fetch it again. {_SAY}")
    return Requests(np.frombuffer(data, ">u4").astype(np.uint32), None, "u32")


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"Line {line:,} of {name} is not text in UTF-8.", _SAY) from None


def _lines(name: str, data: bytes) -> Requests:
    lines = _text(name, data).split("\n")
    if lines and not lines[-1].strip():
        lines.pop()
    keys: dict[str, int] = {}                                           # numbered: an array of words would be as wide as the longest
    found = np.empty(len(lines), np.int64)
    for place, line in enumerate(lines):
        key = line.strip()
        if not key or "\0" in key:
            raise InputError(f"Line {place + 1:,} of {name} {'holds no key' if not key else 'is not text'}.", f"Give a key a line. {_SAY}")
        found[place] = keys.setdefault(key, len(keys))
    if not len(found):
        raise InputError(f"{name} holds no request.", "Give a trace with at least one request.")
    return Requests(found, None, "keys")


def _table(name: str, data: bytes) -> Requests:
    """Named columns: the first of _KEYS, and the first of _SIZES if there is one."""
    rows = csv.reader(io.StringIO(_text(name, data), newline=""))
    keys: dict[str, int] = {}
    found: list[int] = []
    sizes: list[int] = []
    try:
        head = [cell.strip().lower() for cell in next(rows, [])]
        column = next((head.index(one) for one in _KEYS if one in head), None)
        weight = next((head.index(one) for one in _SIZES if one in head), None)
        if column is None:
            raise InputError(f"Line 1 of {name} names no column of keys.", f"Name one of: {', '.join(_KEYS[:4])}; and size for the bytes.")
        for row in rows:
            if not row:
                continue
            if len(row) != len(head) or not row[column].strip():
                raise InputError(f"Line {rows.line_num:,} of {name} has {len(row)} cells of {len(head)}, or no key.", "Give every column a value.")
            found.append(keys.setdefault(row[column].strip(), len(keys)))
            if weight is not None:
                cell = row[weight].strip()
                if not (cell.isascii() and cell.isdigit()) or len(cell) > 15:
                    raise InputError(f"Line {rows.line_num:,} of {name}: {cell[:40]!r} is no size in bytes.", "Give whole bytes, such as 4096.")
                sizes.append(int(cell))
    except csv.Error as error:
        raise InputError(f"Line {rows.line_num:,} of {name} is not CSV: {error}.", _SAY) from None
    if not found:
        raise InputError(f"{name} holds no request below its heading.", "Give a trace with at least one request.")
    numbered = np.array(found, np.int64)
    return Requests(numbered, None, "csv") if weight is None else _weighed(name, numbered, np.array(sizes, np.int64), "csv")
