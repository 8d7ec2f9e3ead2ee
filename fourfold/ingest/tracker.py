"""Reading the file that CodeCarbon's tracker writes: its columns, its rows as entries, and what cannot be read of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from fourfold.errors import InputError
from fourfold.ingest.codecarbon import ENERGIES, Entry
from fourfold.ingest.findings import Findings
from fourfold.ingest.text import text as decoded

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


def table_of(path: Path) -> tuple[bytes, list[str], list[tuple[int, list[str]]], bool]:
    """The file, its header, its rows with their lines, and whether commas may be decimal points."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Name CodeCarbon's emissions.csv.") from None
    text = decoded(data, str(path))
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise InputError(f"{path} is not a readable CSV file (line {reader.line_num}: {error}).", "Write it again from the run.") from None
    energies = [name for name in (*ENERGIES.values(), "energy_consumed") if name in header]
    if "duration" not in header or not energies:
        lacking = "duration" if "duration" not in header else "energy_consumed, cpu_energy, gpu_energy and ram_energy"
        raise InputError(f"{path} is not CodeCarbon's emissions.csv: {lacking} missing.", "Give the file that its tracker writes.")
    if not rows:
        raise InputError(f"{path} has a header and no rows.", "Let a tracked run finish first.")
    doubled = [name for name in header if name and header.count(name) > 1]
    if doubled:
        raise InputError(f"{path} has the column {doubled[0]} twice.", "Rename or drop one of them.")
    return data, header, rows, delimiter != ","


def entry_of(line: int, header: list[str], cells: list[str], comma: bool, findings: Findings) -> Entry | None:
    """The row, or None where its figures cannot be used. `comma`: 0,5 is a half."""
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
            findings.fault(line, name, f"{name} is {text!r}, not a number{': the row is left out' if vital else ''}.")
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
