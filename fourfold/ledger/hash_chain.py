"""An append-only file of JSON lines in which every row holds the hash of the row before it, so that no row can be altered, dropped, added or moved
without a trace (a hash chain: Haber and Stornetta 1991, "How to time-stamp a digital document").

A row on disk is its canonical JSON (sorted keys, no spaces, UTF-8, shortest round-trip floats) with four keys of ours: `n` counts rows from 0,
`prev_hash` is the `hash` of row n − 1, `id` names the row, `hash` is the sha256 of the canonical JSON of all the rest. The end of a file can be cut
off without a trace in the file itself, so `append` keeps beside it, in `<file>.head`, how it ends; `seal` writes the same for good.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fourfold.documents import TypedDocument
from fourfold.errors import ArtefactError, FourfoldError, InputError, unwritable

try:
    import fcntl
except ImportError:                                                    # not on Windows: a lock file beside the ledger serves instead
    fcntl = None

GENESIS = "0" * 64                                                     # `prev_hash` of the first row
OURS = ("n", "id", "prev_hash", "hash", "torn")                         # keys that `append` writes; `torn`: the cut-off line dropped before it
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS)}
_BLOCK = 1 << 16


class ChainLink(TypedDocument):
    """What makes a row a link of the chain; all other keys are the row's own."""

    n: Annotated[int, msgspec.Meta(ge=0)]
    id: str
    prev_hash: str
    hash: str


class ChainSeal(TypedDocument):
    """How a file ended when it was sealed: the number of its rows, the hash of the last one, and when."""

    rows: int
    head: str
    sealed_utc: str


def canonical(row: Mapping[str, object]) -> bytes:
    """The one spelling of a row. Raises InputError for what JSON cannot hold (NaN, infinity, objects)."""
    try:
        text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"A ledger row must be plain JSON: {error}.",
                         "Report an unknown figure as None with a reason; store Quantity.to_json().") from None
    return text.encode("utf-8", "backslashreplace")                    # undecodable command-line bytes become JSON escapes, and come back from them


def digest(row: Mapping[str, object]) -> str:
    """sha256 of a row without its hash, hexadecimal."""
    return hashlib.sha256(canonical({key: item for key, item in row.items() if key != "hash"})).hexdigest()


def linked(row: Mapping[str, object], n: int, prev_hash: str, torn: Mapping[str, object] | None = None) -> dict[str, Any]:
    """`row` as the n-th row after the one that hashes to `prev_hash`. Raises InputError where it holds keys of ours."""
    taken = [key for key in OURS if key in row]
    if taken:
        raise InputError(f"A new row may not bring the key {taken[0]!r}: the chain writes it.", "Give the row without it.")
    if not all(isinstance(key, str) for key in row):
        raise InputError("A ledger row has names for keys.", "Give a mapping of text to JSON values.")
    body = json.loads(canonical({**row, "n": n, "prev_hash": prev_hash, **({"torn": dict(torn)} if torn else {})}))
    body["id"] = digest(body)[:16]
    return {**body, "hash": digest(body)}


def lines(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The lines of a new file that holds these rows; the same rows give the same lines."""
    made, prev_hash = [], GENESIS
    for n, row in enumerate(rows):
        whole = linked(row, n, prev_hash)
        prev_hash = whole["hash"]
        made.append(canonical(whole).decode())
    return made


def append(path: str | Path, row: Mapping[str, object]) -> dict[str, Any]:
    """Add one row to `path` (made where it is missing, with its folder) and return it as stored, on the disk and flushed.

    Any number of threads and processes may append at once. A last line that a crash cut off was never a row: it goes, and the new row keeps its
    length and sha256 in `torn`. Raises InputError where the file cannot be written or the row is not JSON, FourfoldError where the disk is full: the
    file then holds the rows that it held before.
    """
    path = Path(path)
    canonical(row)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        with _locked(handle, path):
            size = os.fstat(handle).st_size
            last, tail = _end(handle, size)
            if size and last is None:
                _ledger_only(handle, size, path)
            ended = _row(tail)                                          # only the line's end is missing, or an altered row: it stays for `verify`
            torn = {"bytes": len(tail), "sha256": hashlib.sha256(tail).hexdigest()} if tail and not _begins_with_row(tail) else None
            last = ended if ended is not None and not _fault(ended, tail) else last
            whole = linked(row, last["n"] + 1 if last else 0, last["hash"] if last else GENESIS, torn)
            if torn:
                os.ftruncate(handle, size := size - len(tail))
            _write(handle, (b"\n" if tail and not torn else b"") + canonical(whole) + b"\n", size, path)
            _keep_head(path, whole, last)
        if new:
            _flush_folder(path.parent)
        return whole
    finally:
        os.close(handle)


def rows(path: str | Path) -> list[dict[str, Any]]:
    """Every row that can be read, in the file's order, as stored; lines that cannot are skipped, and `verify` names them.

    Raises InputError without a file.
    """
    return [row for _, row in _parsed(_read(Path(path))) if row is not None]


def plain(row: Mapping[str, object]) -> dict[str, object]:
    """A stored row as it was given to `append`."""
    return {key: item for key, item in row.items() if key not in OURS}


@dataclass(frozen=True)
class ChainCheck:
    """What `check` found: the number of `rows` that can be read, the hash of the last one, `faults` and harmless `notes` in sentences."""

    rows: int
    head: str
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(path: str | Path, head: str = "") -> list[str]:
    """What is wrong with the file, in sentences that name the rows; [] = sound. Raises InputError without a file.

    `head` is the hash that an earlier `seal` gave, where it was kept apart from the file; the seal beside the file is looked at anyway.
    """
    return check(path, head).faults


def check(path: str | Path, head: str = "") -> ChainCheck:
    """`verify` with the rows counted, and in `notes` the cut-off lines that were dropped."""
    path = Path(path)
    data = _read(path)
    parsed = _parsed(data)
    faults: list[str] = []
    notes: list[str] = []
    places: dict[int, int] = {}                                        # n → line of its first intact row
    intact: dict[int, dict[str, Any]] = {}
    altered: set[int] = set()
    for line, (raw, row) in enumerate(parsed, 1):
        if row is not None and not _fault(row, raw):
            places.setdefault(row["n"], line)
            intact.setdefault(row["n"], row)
            if isinstance(row.get("torn"), dict):
                notes.append(f"Before row {row['n']} a line of {row['torn'].get('bytes')} bytes was dropped that an interrupted write had left: "
                             "it never was a row.")
    expected = 0
    for line, (raw, row) in enumerate(parsed, 1):
        cut = line == len(parsed) and not data.endswith(b"\n")
        why = _fault(row, raw) if row is not None else ""
        if cut and row is None and not _begins_with_row(raw):
            place = f"Line {line}, after row {expected - 1}," if expected else f"Line {line}"
            faults.append(f"{place} is cut off after {len(raw)} bytes: a write was interrupted, or the file was cut. It is no row, and the next row "
                          "goes on without it.")
        elif row is None or why:
            altered.add(expected)
            faults.append(f"Row {expected} (line {line}{_title(row)}) was altered: {why or 'it is not JSON any more'}.")
            expected += 1
        elif cut:
            faults.append(f"Row {row['n']} (line {line}{_title(row)}) is whole, but the end of its line is missing.")
            expected = row["n"] + 1
        elif places[row["n"]] != line:
            faults.append(f"Row {row['n']} (line {line}{_title(row)}) is a duplicate of line {places[row['n']]}.")
        else:
            faults += _order(row, line, expected, places, altered)
            before = intact.get(row["n"] - 1)
            if (before["hash"] if before else GENESIS) != row["prev_hash"] and (before or row["n"] == 0):
                known = f"row {row['n'] - 1}" if row["n"] else "the start of a ledger"
                faults.append(f"Row {row['n']} (line {line}{_title(row)}) does not continue {known}: one of the two was exchanged.")
            expected = max(expected, row["n"] + 1)
    last = intact[max(intact)] if intact else None
    faults += [*_headed(path, intact, head, notes), *_sealed(path, intact, head)]
    return ChainCheck(len(intact), last["hash"] if last else GENESIS, faults, notes)


def seal(path: str | Path) -> dict[str, object]:
    """Write down how the file ends, in `<path>.seal`, so that a cut-off end is found later; the seal {rows, head, sealed_utc}.

    Whoever can change the file can change its seal: keep `head` somewhere else too. Raises ArtefactError where the file is not sound.
    """
    path = Path(path)
    found = check(path)
    if found.faults:
        raise ArtefactError(f"{path} is not sound, so it is not sealed: {found.faults[0]}", "Look at it with `fourfold ledger verify`.")
    made = {"rows": found.rows, "head": found.head, "sealed_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    aside = path.with_name(path.name + ".seal.new")
    try:
        with open(aside, "wb") as file:
            file.write(canonical(made) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, _seal_of(path))
    except OSError as error:
        raise _unwritable(_seal_of(path), error) from None
    return made


# ---- inside --------------------------------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """The whole file, between two appends."""
    try:
        with open(path, "rb") as file:
            if fcntl is not None:
                with suppress(OSError):
                    fcntl.flock(file.fileno(), fcntl.LOCK_SH)
            return file.read()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Name a ledger file, such as .fourfold/ledger.jsonl.") from None


def _parsed(data: bytes) -> list[tuple[bytes, dict[str, Any] | None]]:
    """Each line with the row in it, or None where there is none."""
    raws = data.split(b"\n")
    if raws and not raws[-1]:
        raws.pop()
    return [(raw, _row(raw)) for raw in raws]


def _row(raw: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _fault(row: dict[str, Any], raw: bytes | None) -> str:
    """Why a row is not what was written; "" where it is. `raw` None: do not compare the spelling."""
    try:
        msgspec.convert(row, ChainLink)
    except msgspec.ValidationError:
        return "its number, id or hash is missing"
    try:
        if digest(row) != row["hash"]:
            return "its contents do not give its hash"
        if raw is not None and canonical(row) != raw:
            return "it is spelt otherwise than it was written"
    except InputError:
        return "it holds what a ledger cannot hold"
    return ""


def _begins_with_row(raw: bytes) -> bool:
    """Whether the line holds a whole row with something after it: then it was not cut off but altered."""
    try:
        row, _ = json.JSONDecoder().raw_decode(raw.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not _fault(row, None)


def _ledger_only(handle: int, size: int, path: Path) -> None:
    """Raises InputError where a file without an intact row was never a ledger: no line of it looks like a row, nor like the begin of a first one."""
    os.lseek(handle, 0, os.SEEK_SET)
    *whole, tail = _exactly(handle, min(size, 1 << 24)).split(b"\n")
    rows = [row for row in map(_row, whole) if row is not None]
    if any({"n", "hash", "prev_hash"} & set(row) for row in rows):
        return
    if any(line.strip() for line in whole) or not tail.startswith(b"{") or _row(tail) is not None and not {"n", "hash"} & set(_row(tail) or {}):
        raise InputError(f"{path} is there and is no ledger, so nothing is appended.", "Name another file.")


def _title(row: dict[str, Any] | None) -> str:
    """What a reader knows the row by."""
    parts = [str(row[key])[:60] for key in ("kind", "name", "run", "step", "start_utc") if isinstance(row.get(key), str) and row[key]] if row else []
    return f", {' '.join(parts)}" if parts else ""


def _order(row: dict[str, Any], line: int, expected: int, places: Mapping[int, int], altered: set[int]) -> list[str]:
    """Sentences on the rows that should have come before this one."""
    n, found = row["n"], []
    missing = [m for m in range(expected, n) if m not in places] if n - expected < 1000 else []
    found += [f"Row {m} stands in line {places[m]}, after row {n}: the rows were reordered." for m in range(expected, n) if m in places]
    if n - expected >= 1000:
        found.append(f"Rows {expected} to {n - 1} are missing: line {line} holds row {n}.")
    elif missing:
        names = f"Row {missing[0]} is" if len(missing) == 1 else f"Rows {missing[0]} to {missing[-1]} are"
        found.append(f"{names} missing: line {line} holds row {n}{_title(row)}.")
    if n < expected and n in altered:
        found.append(f"Row {n} stands in line {line}, where row {expected} belongs: the rows were reordered, or a line was put in.")
    return found


def _head_of(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _keep_head(path: Path, row: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    """Write down how the file ends now, whole or not at all. What an earlier head knew and the file no longer held is kept as `lost`.

    A crash between the row and its head leaves a head that is one row behind, which is no fault; a head that cannot be written leaves the row.
    """
    lost: list[object] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_head_of(path).read_bytes())
        rows = before["n"] + 1 if before else 0
        gone = int(known["rows"]) > rows or (int(known["rows"]) == rows and rows and known["head"] != before["hash"])   # type: ignore[index]
        lost = [*known.get("lost", []), *([{"rows": known["rows"], "head": known["head"], "found": rows}] if gone else [])]
    aside = path.with_name(path.name + ".head.new")
    with suppress(OSError):
        aside.write_bytes(canonical({"rows": row["n"] + 1, "head": row["hash"], **({"lost": lost[-100:]} if lost else {})}) + b"\n")
        os.replace(aside, _head_of(path))


def _headed(path: Path, intact: Mapping[int, dict[str, object]], head: str, notes: list[str]) -> list[str]:
    """What the head file has to say of rows missing at the end."""
    name = _head_of(path).name
    try:
        known = json.loads(_head_of(path).read_bytes())
        count, end, lost = int(known["rows"]), str(known["head"]), [(int(one["rows"]), int(one["found"])) for one in known.get("lost", [])]
    except FileNotFoundError:
        if not head and not _seal_of(path).exists():
            notes.append(f"There is no {name} beside the ledger, so rows cut off its end would not be seen: `fourfold ledger verify --head HASH` "
                         "looks, with the hash of an earlier `fourfold ledger seal`.")
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{name} cannot be read ({type(error).__name__}), so the end of the ledger is not vouched for."]
    found = [f"{_rows_are(had, rows - 1)} missing: {name} knew {rows} rows when the file had {had} left, and it was written on."
             for rows, had in lost]
    have = max(intact, default=-1) + 1
    if have < count:
        found.append(f"{_rows_are(have, count - 1)} missing at the end: {name} counts {count} rows, the file holds {have}.")
    elif count and intact.get(count - 1, {}).get("hash") != end and count - 1 in intact:
        found.append(f"Row {count - 1} is not the one that {name} knows: it was exchanged.")
    return found


def _rows_are(first: int, last: int) -> str:
    return f"Row {first} is" if first >= last else f"Rows {first} to {last} are"


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + ".seal")


def _sealed(path: Path, intact: Mapping[int, dict[str, object]], head: str) -> list[str]:
    """What the seal beside the file, and the head that the reader kept, have to say."""
    found = []
    if head and not any(row["hash"] == head for row in intact.values()) and not (head == GENESIS):
        found.append(f"No row has the hash {head[:16]}… that was kept from this ledger: rows at its end are missing, or were exchanged.")
    try:
        made = msgspec.json.decode(_seal_of(path).read_bytes(), type=ChainSeal)
        count, end, when = made.rows, made.head, made.sealed_utc
    except FileNotFoundError:
        return found
    except (OSError, ValueError) as error:
        return [*found, f"The seal {_seal_of(path).name} cannot be read ({type(error).__name__}), so the end of the ledger is not vouched for."]
    last = max(intact, default=-1)
    if last + 1 < count:
        names = f"Row {count - 1} is" if last + 2 == count else f"Rows {last + 1} to {count - 1} are"
        found.append(f"{names} missing at the end: the seal of {when} counts {count} rows, the file holds {last + 1}.")
    elif count and intact.get(count - 1, {}).get("hash") != end:
        found.append(f"Row {count - 1} is not the one that was sealed on {when}.")
    return found


def _end(handle: int, size: int) -> tuple[dict[str, Any] | None, bytes]:
    """The last intact row of an open file (None: there is none) and the cut-off line after it, read from the end backwards."""
    data, start = b"", size
    while True:
        step = min(_BLOCK if len(data) < 16 * _BLOCK else len(data), start)
        start -= step
        os.lseek(handle, start, os.SEEK_SET)
        data = _exactly(handle, step) + data
        raws = data.split(b"\n")
        tail = raws[-1]
        for raw in reversed(raws[:-1] if start == 0 else raws[1:-1]):
            row = _row(raw)
            if row is not None and not _fault(row, raw):
                return row, tail
        if start == 0:
            return None, tail


def _exactly(handle: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.read(handle, size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(handle: int, data: bytes, size: int, path: Path) -> None:
    """All of `data` at the end and on the disk, or the file as it was."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view):]
        os.fsync(handle)
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(handle, size)
        raise _unwritable(path, error) from None


def _unwritable(path: Path, error: OSError) -> FourfoldError:
    return unwritable(path, error, "a row", "The rows before it are whole.")


def _flush_folder(folder: Path) -> None:
    """Have the new file's name on the disk too, where folders can be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@contextmanager
def _locked(handle: int, path: Path) -> Iterator[None]:
    """Hold the file alone: by flock, or where the system or the file system has none, by a lock file."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)                         # released by closing the file, and by the kernel when the process dies
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _unwritable(path, error) from None
        else:
            yield
            return
    with lock_file(path.with_name(path.name + ".lock")):
        yield


@contextmanager
def lock_file(path: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold a lock file beside the ledger: the system's lock on it, or where there is none, the file itself (one left over is taken after a while).

    Raises FourfoldError after `patience` s.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    for kind in (FileLock, SoftFileLock):
        lock = kind(path, timeout=patience, thread_local=False)
        try:
            lock.acquire(poll_interval=0.002)
            break
        except Timeout:
            raise FourfoldError(f"{path} is held by another process.", "Wait for it, or delete the file if no process uses the ledger.") from None
        except NotImplementedError:                                    # a file system without locks
            continue
        except OSError as error:
            raise _unwritable(path, error) from None
    try:
        yield
    finally:
        lock.release()
