"""Which file format a table is read from for the least processor time and energy, measured on the table itself; and its conversion."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import InputError, MissingExtra, unwritable
from fourfold.ledger import decisions
from fourfold.measure.power import modelled
from fourfold.units import Quantity

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = {"csv": ".csv", "jsonl": ".jsonl", "parquet": ".parquet", "arrow": ".arrow", "safetensors": ".safetensors", "npz": ".npz"}
_ARRAYS = ("safetensors", "npz")                                       # hold columns of numbers alone
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


@dataclass(frozen=True)
class FormatCost:
    """One format: bytes, CPU seconds to read the whole table and a part of its columns (median of repeats, all threads), and the whole's joules."""

    kind: str
    bytes: int
    whole: float
    part: float
    joules: Quantity

    def to_json(self) -> dict[str, object]:
        return {"format": self.kind, "bytes": self.bytes, "cpu_s": self.whole, "cpu_s_columns": self.part, "joules": self.joules.to_json()}


@dataclass(frozen=True)
class FormatAdvice:
    """Formats, the cheapest to read first; what the file is in now; the columns of the partial read; where it was converted to."""

    source: str
    now: str
    rows: int
    columns: tuple[str, ...]
    costs: tuple[FormatCost, ...]
    written: str | None = None

    def of(self, kind: str) -> FormatCost:
        return next(one for one in self.costs if one.kind == kind)

    @property
    def sentences(self) -> tuple[str, ...]:
        best, now = self.costs[0], self.of(self.now)
        if best.kind == self.now:
            return (f"{self.source} is in the format that is read for the least here: {self.now}.",)
        times = f"{now.whole / best.whole:.1f}" if best.whole > 0 else "many"
        part = f"{now.part / best.part:.0f}" if best.part > 0 else "many"
        return (f"As {best.kind} it is read whole for {times} times less processor time than as {self.now}, {part} times less for "
                f"{len(self.columns)} of its columns, from {best.bytes / now.bytes:.0%} of the bytes.",)

    def to_json(self) -> dict[str, object]:
        return {"source": self.source, "format": self.now, "rows": self.rows, "columns": list(self.columns), "written": self.written,
                "formats": [one.to_json() for one in self.costs], "sentences": list(self.sentences)}


def formats(data: str | Path, *, to: str | None = None, out: str | Path | None = None, columns: Sequence[str] = (), repeats: int = 3,
            ledger: str | Path | None = None) -> FormatAdvice:
    """Write the table in every format beside one another, read each whole and by `columns` (default: the first two), and rank by processor time.

    `to` converts to `out` (default: beside `data`), in one step, after the values were read back and found equal; what is there is not replaced.
    Raises InputError for a file that is no table, of pickled objects (never opened), or an unknown format; MissingExtra without pyarrow.
    """
    path = Path(data)
    now = _kind(path)
    if to is not None and to not in KINDS:
        raise InputError(f"--to {to!r} is not known.", f"Choose from: {', '.join(KINDS)}.")
    if ledger is not None:
        decisions.may_book(ledger)
    table = _read(path, now)
    if not table.num_columns or not table.num_rows:
        raise InputError(f"{path.name} has {table.num_columns} columns and {table.num_rows} rows.", "Give a table with rows.")
    chosen = tuple(columns) or tuple(table.column_names[:2])
    for name in chosen:
        if name not in table.column_names:
            raise InputError(f"{path.name} has no column {name!r}.", f"It has: {', '.join(table.column_names[:8])}.")
    costs = []
    with tempfile.TemporaryDirectory(prefix="fourfold-formats-") as folder:
        for kind, suffix in KINDS.items():
            try:
                file = path if kind == now else _write(table, Path(folder) / f"table{suffix}", kind)
            except (InputError, ValueError, NotImplementedError, OSError):
                continue                                               # nested columns have no CSV, words and gaps no place among arrays
            whole = _cpu(lambda file=file, kind=kind: _read(file, kind), repeats)
            part = _cpu(lambda file=file, kind=kind: _read(file, kind, chosen), repeats)
            costs.append(FormatCost(kind, file.stat().st_size, whole, part, modelled(whole)))
    costs.sort(key=lambda one: (one.whole, one.bytes))
    written = None if to is None else str(_converted(table, path, Path(out) if out is not None else path.with_suffix(KINDS[to]), to))
    advice = FormatAdvice(path.name, now, table.num_rows, chosen, tuple(costs), written)
    if ledger is not None:
        _book(ledger, advice, to or costs[0].kind, path)
    return advice


def _kind(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path} is not there.", f"Give a table: {', '.join(KINDS.values())}.")
    if path.suffix.lower() in _PICKLED:
        raise InputError(f"{path.name} holds pickled objects, which may run code when they are read; it was not opened.",
                         "Write it as Parquet (tables) or safetensors (weights) where it was made.")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra("Comparing formats needs the package pyarrow.", "pip install 'fourfold[data]'") from None
    found = {**{suffix: kind for kind, suffix in KINDS.items()}, ".feather": "arrow", ".ndjson": "jsonl"}.get(path.suffix.lower())
    if found is None:
        raise InputError(f"{path.name} is no table that is known here.", f"Give one of: {', '.join(KINDS.values())}.")
    return found


def _read(path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table, or these columns of it. Raises InputError where it cannot be read."""
    import pyarrow as pa
    from pyarrow import csv, feather, json, parquet

    names = None if columns is None else list(columns)
    if kind in _ARRAYS:
        return _read_arrays(path, kind, names)
    try:
        if kind == "csv":
            return csv.read_csv(path, convert_options=csv.ConvertOptions(include_columns=names or []))
        if kind == "jsonl":
            table = json.read_json(path)
            return table if names is None else table.select(names)
        return parquet.read_table(path, columns=names) if kind == "parquet" else feather.read_table(path, columns=names, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path.name} cannot be read as {kind}: {why}.", "Write it again, or give another file.") from None


def _write(table: pa.Table, path: Path, kind: str) -> Path:
    from pyarrow import csv, feather, parquet

    if kind == "csv":
        csv.write_csv(table, path)
    elif kind == "jsonl":
        import json

        try:
            with open(path, "w", encoding="utf-8") as file:
                for batch in table.to_batches(10_000):
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
        except TypeError as error:
            raise InputError(f"JSON lines cannot hold this table: {error}.", "Convert to parquet or arrow.") from None
    elif kind in _ARRAYS:
        _write_arrays(table, path, kind)
    elif kind == "parquet":
        parquet.write_table(table, path, compression="zstd")
    else:
        feather.write_feather(table, path, compression="uncompressed")
    return path


def _read_arrays(path: Path, kind: str, names: list[str] | None) -> pa.Table:
    """Vectors of one length as columns, matrices as columns of lists. Pickled arrays are refused by numpy unopened. Raises InputError."""
    import numpy as np
    import pyarrow as pa

    try:
        if kind == "npz":
            with np.load(path, allow_pickle=False) as held:
                found = {name: held[name] for name in (held.files if names is None else names)}
        else:
            from safetensors import safe_open

            with safe_open(path, framework="np") as held:
                found = {name: held.get_tensor(name) for name in (sorted(held.keys()) if names is None else names)}
    except KeyError as error:
        raise InputError(f"{path.name} has no column {error}.", "Name one that it has.") from None
    except Exception as error:                                         # zip, header and type errors, each of its package
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{path.name} cannot be read as {kind}: {why}.", "Write it again, or give another file.") from None
    if len({one.shape[:1] for one in found.values()}) > 1 or any(one.ndim not in (1, 2) for one in found.values()):
        raise InputError(f"{path.name} holds arrays of shapes {', '.join(str(list(one.shape)) for one in list(found.values())[:4])}: no table.",
                         "A table has arrays of one length, of one or two axes. fourfold store reads weights.")
    try:
        return pa.table({name: pa.array(one) if one.ndim == 1 else pa.FixedSizeListArray.from_arrays(pa.array(one.reshape(-1)), one.shape[1])
                         for name, one in found.items()})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"{path.name} holds numbers that tables lack: {error}.", "Convert them to float32 first.") from None


def _write_arrays(table: pa.Table, path: Path, kind: str) -> None:
    """Numbers alone, without gaps. Raises InputError for other columns, or where safetensors is not installed."""
    import numpy as np
    import pyarrow as pa

    for field in table.schema:
        plain = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        if not plain or table.column(field.name).null_count:
            raise InputError(f"{kind} cannot hold column {field.name!r} ({field.type}): arrays hold numbers without gaps.",
                             "Convert to parquet or arrow.")
    if len(set(table.column_names)) < table.num_columns or "file" in table.column_names and kind == "npz":
        raise InputError(f"{kind} cannot hold these column names.", "Convert to parquet or arrow.")
    arrays = {name: np.ascontiguousarray(table.column(name).to_numpy()) for name in table.column_names}
    if kind == "npz":
        with open(path, "wb") as file:                                 # numpy adds a suffix to names
            np.savez(file, **arrays)                                   # type: ignore[arg-type]
    else:
        if find_spec("safetensors") is None:
            raise InputError("safetensors is not installed.", "pip install safetensors")
        from safetensors.numpy import save_file

        save_file(arrays, path)


def _cpu(read: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of all threads."""
    found = []
    for _ in range(max(1, repeats)):
        begin = time.process_time()
        read()
        found.append(time.process_time() - begin)
    return statistics.median(found)


def _converted(table: pa.Table, source: Path, out: Path, kind: str) -> Path:
    if out.exists():
        raise InputError(f"{out} is there already.", "Name another file with --out; nothing is replaced.")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _write(table, aside, kind)
        back = _read(aside, kind)
        if sorted(back.column_names) != sorted(table.column_names) or not back.select(table.column_names).equals(table):
            raise InputError(f"{kind} does not hold {source.name} as it is: what was read back differs.", "Convert to parquet or arrow.")
        os.link(aside, out)
    except OSError as error:
        raise unwritable(out, error, "the converted table") from None
    finally:
        aside.unlink(missing_ok=True)
    return out


def _book(ledger: str | Path, advice: FormatAdvice, kind: str, path: Path) -> None:
    with open(path, "rb") as file:
        subject = sha256(file.read(1 << 20)).hexdigest()[:16]

    def taken(one: FormatCost) -> Quantity:
        return Quantity(one.whole, "s", "measured", method="CPU time of one read, median")

    before, after = advice.of(advice.now), advice.of(kind)
    known = before.whole > 0 and after.whole > 0
    decisions.book(ledger, "machine", f"read as {kind}", job="formats", question="formats", subject=subject, name=path.name, evidence=subject,
                   before=taken(before) if known else None, after=taken(after) if known else None, why="" if known else "too short to measure")
