"""Reading the file that CodeCarbon's tracker writes: its columns, its rows as entries, and what cannot be read of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fourfold.carbon.audit import Findings
from fourfold.carbon.codecarbon import ENERGIES, Entry
from fourfold.errors import InputError
from fourfold.text import shown
from fourfold.text import text as decoded

COLUMNS = (
    "timestamp project_name run_id experiment_id duration emissions emissions_rate cpu_power gpu_power ram_power cpu_energy gpu_energy ram_energy "
    "energy_consumed water_consumed country_name country_iso_code region cloud_provider cloud_region os python_version codecarbon_version cpu_count "
    "cpu_model gpu_count gpu_model longitude latitude ram_total_size tracking_mode cpu_utilization_percent gpu_utilization_percent "
    "ram_utilization_percent ram_used_gb on_cloud pue wue"
).split()
NUMBERS = (
    "duration emissions emissions_rate cpu_power gpu_power ram_power cpu_energy gpu_energy ram_energy energy_consumed water_consumed cpu_count "
    "gpu_count ram_total_size cpu_utilization_percent gpu_utilization_percent ram_utilization_percent ram_used_gb pue wue"
).split()


@dataclass(frozen=True)
class TrackerRow:
    """One row of the file: its line, its cells, and the header that it stands under (a file may hold several, one after the other)."""

    line: int
    header: tuple[str, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """The file's bytes, its headers with their lines, its rows, and whether commas may be decimal points."""

    data: bytes
    headers: tuple[tuple[int, tuple[str, ...]], ...]
    rows: tuple[TrackerRow, ...]
    comma: bool

    def lacks(self, name: str) -> bool:
        """Whether some row stands under a header without that column."""
        return any(name not in header for header in {row.header for row in self.rows})


def table_of(path: Path) -> Sheet:
    """The file as it stands, each row under the last header before it. Raises InputError where it is not CodeCarbon's, naming the line of a header
    that is not."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Name CodeCarbon's emissions.csv.") from None
    text = decoded(data, str(path))
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    headers: list[tuple[int, tuple[str, ...]]] = []
    rows: list[TrackerRow] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) and headers:
                continue
            named = tuple(cell.strip().lower().removeprefix("\ufeff") for cell in cells)
            if not headers or _is_header(named, headers[0][1]):
                headers.append((reader.line_num, named))
                _fit(path, named, reader.line_num if len(headers) > 1 else 0)
            else:
                rows.append(TrackerRow(reader.line_num, headers[-1][1], tuple(cells)))
    except csv.Error as error:
        raise InputError(f"{path} is not a readable CSV file (line {reader.line_num}: {error}).", "Write it again from the run.") from None
    if not headers:
        _fit(path, (), 0)
    if not rows:
        raise InputError(f"{path} has a header and no rows.", "Let a tracked run finish first.")
    return Sheet(data, tuple(headers), tuple(rows), delimiter != ",")


def _is_header(named: Sequence[str], first: Sequence[str]) -> bool:
    """Whether a row is a header once more: most of its cells are names of columns, which no row of figures has."""
    known = {*COLUMNS, *(name for name in first if name)}
    return sum(name in known for name in named) > len(named) / 2


def _fit(path: Path, header: Sequence[str], line: int) -> None:
    """Raises InputError for a header under which no energy can be read, or not for certain."""
    place = f", line {line}: a second header there" if line else ""
    energies = [name for name in (*ENERGIES.values(), "energy_consumed") if name in header]
    if "duration" not in header or not energies:
        lacking = "duration" if "duration" not in header else "energy_consumed, cpu_energy, gpu_energy and ram_energy"
        if line:
            raise InputError(f"{path}{place} lacks {lacking}.", "Split the file there.")
        raise InputError(f"{path} is not CodeCarbon's emissions.csv: {lacking} missing.", "Give the file that its tracker writes.")
    doubled = [name for name in header if name and header.count(name) > 1]
    if doubled:
        raise InputError(f"{path}{place} has the column {doubled[0]} twice.", "Rename or drop one of them.")


def entry_of(row: TrackerRow, comma: bool, findings: Findings) -> Entry | None:
    """The row, or None where its figures cannot be used. `comma`: 0,5 is a half."""
    line, header, cells = row.line, row.header, row.cells
    if len(cells) != len(header):
        findings.fault(line, "", f"{len(cells)} cells under {len(header)} columns: the row is left out.")
        return None
    given = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    numbers: dict[str, float] = {}
    usable = True
    for name in NUMBERS:
        text = given.get(name, "")
        if not text or text.lower() in ("nan", "none"):
            continue
        vital = name in ("duration", "energy_consumed", *ENERGIES.values())
        try:
            value = float(text.replace(",", ".") if comma and text.count(",") == 1 and "." not in text else text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            findings.fault(line, name, f"{name} is {shown(text)}, not a number{': the row is left out' if vital else ''}.")
            usable = usable and not vital
        elif value < 0:
            findings.fault(line, name, f"{name} is negative: {text}{': the row is left out' if vital else ''}.")
            usable = usable and not vital
        else:
            numbers[name] = value
    if usable and not numbers.get("duration"):
        findings.fault(line, "duration", "the duration is not above 0: the row is left out.")
        usable = False
    entry = Entry(line, given, numbers)
    entry.stated = {part: 3.6e6 * numbers[name] for part, name in ENERGIES.items() if name in numbers}
    if usable and not entry.stated and "energy_consumed" not in numbers:
        findings.fault(line, "energy_consumed", "it states no energy: the row is left out.")
        usable = False
    return entry if usable else None
