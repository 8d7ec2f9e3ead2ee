"""Audit of CodeCarbon's emissions.csv: what is constant in it, what each part holds, what is wrong, what it would be (`ingest/codecarbon.py`)."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.ingest.codecarbon import ENERGIES, UNKNOWN_THREAD, Entry, annual, cpu_watts, guessed_modules, ram_watts, restate
from fourfold.ingest.text import text as decoded
from fourfold.units import Quantity, total

POWERS = {"cpu": "cpu_power", "gpu": "gpu_power", "memory": "ram_power"}
TITLES = {"cpu": "CPU", "gpu": "GPU", "memory": "RAM"}
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
_MISSED = {
    "tracking_mode": "whether the whole machine or the process was charged is not said (the default is the machine)",
    "pue": "the hall's overhead is not in it, and not named",
    "ram_total_size": "the RAM figure cannot be held against its formula",
    "cpu_energy": "the processors' part is not told apart",
    "ram_energy": "the RAM's part is not told apart",
    "run_id": "rows of one run cannot be told from rows of several",
    "emissions": "no CO2e is stated",
    "cpu_utilization_percent": "the load that the processor model used is not on record",
    "country_iso_code": "the place is not on record",
}
_KINDS = ("fault", "warning", "note")
_WORLD = (475.0, 445.0)  # g/kWh that tools fall back on for the world


@dataclass(frozen=True)
class Finding:
    """What the auditor has to say of `line` (0: the file) and `column`. `kind`: fault (a figure that is wrong), warning (misleading), note."""

    kind: str
    line: int
    column: str
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "line": self.line, "column": self.column, "text": self.text}

    def __str__(self) -> str:
        return f"{self.kind}: {f'line {self.line}: ' if self.line else ''}{self.text}"


@dataclass(frozen=True)
class Audit:
    """The file's rows and all that was found."""

    path: Path
    sha256: str
    entries: list[Entry]
    findings: list[Finding]
    rows: int  # of the file, those that were left out too

    @property
    def counted(self) -> list[Entry]:
        """Rows without duplicates and intermediate ones."""
        return [entry for entry in self.entries if entry.counts]

    @property
    def shares(self) -> dict[str, float]:
        """Component → its share of the energy as stated, over all rows that count."""
        sums = {name: math.fsum(entry.stated.get(name, 0.0) for entry in self.counted) for name in ENERGIES}
        whole = math.fsum(sums.values())
        return {name: part / whole for name, part in sums.items()} if whole > 0 else {}

    @property
    def energy(self) -> Quantity | None:
        """Joules of the machines, worked out anew with intervals; None where no row allows it."""
        found = [entry.energy for entry in self.counted if entry.energy is not None]
        return total(found) if found else None

    @property
    def carbon(self) -> Quantity | None:
        """gCO2e, worked out anew with intervals; None where a row has no place."""
        found = [entry.carbon for entry in self.counted if entry.carbon is not None]
        return total(found) if found and len(found) == len(self.counted) else None

    def to_json(self) -> dict[str, Any]:
        def plain(figure: Quantity | None) -> dict[str, Any] | None:
            return figure.to_json() if figure else None

        rows = [
            {
                "line": entry.line,
                "name": entry.name,
                "mode": entry.mode,
                "counts": entry.counts,
                "stated_j": entry.joules,
                "stated_g": entry.grams,
                "shares": _shares(entry.stated),
                "recomputed": plain(entry.energy),
                "co2e": plain(entry.carbon),
                "components": {name: plain(part) for name, part in entry.restated.items()},
                "why": entry.why,
            }
            for entry in self.entries
        ]
        stated = math.fsum(entry.joules for entry in self.counted)
        grams = [entry.grams for entry in self.counted]
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "rows": rows,
            "stated_j": stated,
            "shares": self.shares,
            "stated_g": math.fsum(one for one in grams if one is not None) if None not in grams else None,
            "recomputed": plain(self.energy),
            "co2e": plain(self.carbon),
            "findings": [finding.to_json() for finding in self.findings],
            "faults": sum(finding.kind == "fault" for finding in self.findings),
        }

    def table(self) -> list[dict[str, str]]:
        """A row of text for each row of the file."""
        return [
            {
                "line": str(entry.line),
                "project": entry.name[:24],
                "mode": entry.mode,
                "stated": f"{entry.joules:.4g} J",
                **{TITLES[name]: f"{share:.0%}" for name, share in {**dict.fromkeys(ENERGIES, 0.0), **_shares(entry.stated)}.items()},
                "recomputed": _short(entry.energy),
                "": "" if entry.counts else "not counted",
            }
            for entry in self.entries
        ]

    def lines(self) -> list[str]:
        """The audit in sentences, faults first."""
        said = []
        if self.counted:
            said.append(
                f"{len(self.counted)} of {self.rows} rows count: {math.fsum(entry.joules for entry in self.counted):.4g} J as stated."
            )
        else:
            said.append(f"None of {self.rows} rows can be used.")
        if self.shares:
            parts = ", ".join(f"{share:.0%} {TITLES[name]}" for name, share in sorted(self.shares.items(), key=lambda pair: -pair[1]))
            said.append(f"Of the stated energy: {parts}.")
        if self.energy is not None:
            known = sum(entry.energy is not None for entry in self.counted)
            left = f" ({known} of {len(self.counted)} rows)" if known < len(self.counted) else ""
            said.append(f"Worked out anew, of the machines alone: {self.energy}{left}.")
        if self.carbon is not None:
            said.append(f"And with the place's intensity and its interval: {self.carbon}.")
        return said + [str(finding) for kind in _KINDS for finding in self.findings if finding.kind == kind]

    def ledger_rows(self) -> list[dict[str, Any]]:
        """Rows for a ledger, kind "import": the figures worked out anew, and the file's own cells as they are."""
        found = []
        for entry in self.counted:
            figures = {name: part.to_json() if part else None for name, part in entry.restated.items()}
            place = (
                {
                    "id": entry.cells.get("country_iso_code", ""),
                    "intensity": entry.intensity.to_json(),
                    "pue": Quantity(entry.pue, "1", "assumed", method="as the file states").to_json(),
                }
                if entry.intensity
                else None
            )
            found.append(
                {
                    "kind": "import",
                    "run": entry.cells.get("run_id") or f"{self.sha256[:12]}-{entry.line}",
                    "parent": None,
                    "name": entry.name,
                    "place": place["id"] if place else None,
                    "start_utc": None,
                    "end_utc": None,
                    "wall_s": entry.numbers["duration"],
                    "energy": figures,
                    "why": entry.why,
                    "total_j": entry.energy.to_json() if entry.energy else None,
                    "co2e": entry.carbon.to_json() if entry.carbon else None,
                    "cost_usd": None,
                    "embodied": None,
                    "site": place,
                    "work": {},
                    "machine": {"name": entry.cells.get("cpu_model", ""), "cores": int(entry.numbers.get("cpu_count", 0)) or None},
                    "stated": entry.cells,
                    "source": {
                        "tool": f"CodeCarbon {entry.cells.get('codecarbon_version', '')}".strip(),
                        "file": self.path.name,
                        "sha256": self.sha256,
                        "line": entry.line,
                    },
                    "data_hashes": {self.path.name: self.sha256},
                }
            )
        return found


class _Findings(list[Finding]):
    """Findings as they are made."""

    def fault(self, line: int, column: str, text: str) -> None:
        self.append(Finding("fault", line, column, text))

    def warn(self, line: int, column: str, text: str) -> None:
        self.append(Finding("warning", line, column, text))

    def note(self, column: str, text: str) -> None:
        self.append(Finding("note", 0, column, text))


def audit(path: str | Path) -> Audit:
    """Read and audit an emissions.csv. What is wrong in a row becomes a finding; the row is left out where its figures cannot be used.

    Raises InputError where the file cannot be read, is empty, or is not such a file.
    """
    path = Path(path)
    data, header, rows, comma = _read(path)
    findings = _Findings()
    for name, why in _MISSED.items():
        if name not in header:
            findings.note(name, f"the column {name} is missing: {why}.")
    entries = [entry for line, cells in rows if (entry := _entry(line, header, cells, comma, findings)) is not None]
    for entry in entries:
        _check(entry, findings)
    _repeated(entries, findings)
    _overlaps([entry for entry in entries if entry.counts], findings)
    for entry in entries:
        restate(entry)
        _disguised(entry, findings)
    _constant(entries, findings)
    if entries:
        _about(entries, header, findings)
    return Audit(path, hashlib.sha256(data).hexdigest(), entries, sorted(findings, key=lambda one: (_KINDS.index(one.kind), one.line)), len(rows))


# ---- reading -------------------------------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[bytes, list[str], list[tuple[int, list[str]]], bool]:
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


def _entry(line: int, header: list[str], cells: list[str], comma: bool, findings: _Findings) -> Entry | None:
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


# ---- checks ----------------------------------------------------------------------------------------------------------------------------------------


def _check(entry: Entry, findings: _Findings) -> None:
    """What a row says against itself, and what no computer can do."""
    numbers, line = entry.numbers, entry.line

    def say(kind: str, column: str, text: str) -> None:
        findings.append(Finding(kind, line, column, text))

    parts, whole, seconds = sum(entry.stated.values()), entry.joules, numbers["duration"]
    if len(entry.stated) == 3 and abs(parts - whole) > 0.01 * max(parts, whole):
        say("fault", "energy_consumed", f"energy_consumed is {whole / 3.6e6:.4g} kWh, and its parts add up to {parts / 3.6e6:.4g}.")
    watts = sum(numbers.get(name, 0.0) for name in POWERS.values())
    if watts > 0 and whole > 0:
        ratio = whole / seconds / watts
        if ratio > 30 or ratio < 1 / 30:
            entry.unfit = f"energy, duration and power do not fit: {_factor(ratio)}"
            say(
                "fault",
                "energy_consumed",
                f"energy / duration is {whole / seconds:.3g} W, and the stated powers are {watts:.3g} W: {_factor(ratio)}.",
            )
        elif ratio > 2 or ratio < 0.5:
            say(
                "warning",
                "energy_consumed",
                f"energy / duration is {whole / seconds:.3g} W, and the stated powers are {watts:.3g} W: they are plain "
                "means of samples, not means over time.",
            )
    elif whole / seconds > 1e6:
        entry.unfit = "energy and duration do not fit: not kWh, or not seconds"
        say("fault", "energy_consumed", f"energy / duration is {whole / seconds:.3g} W, which no computer draws: not kWh, or not seconds.")
    if "pue" in numbers and numbers["pue"] < 1:
        say("fault", "pue", f"a PUE of {numbers['pue']:g} cannot be: a hall uses at least what its machines use. 1 is used below.")
    elif numbers.get("pue", 1.0) > 3:
        say("warning", "pue", f"a PUE of {numbers['pue']:g} is that of no hall on record.")
    if entry.grams is not None and whole > 0:
        intensity = entry.grams / (whole / 3.6e6)
        if intensity > 2000 or 0 < intensity < 0.5:
            scale = "grams in a column of kilograms" if intensity > 2000 else "tonnes in a column of kilograms" if intensity < 0.5 else ""
            say("fault", "emissions", f"emissions / energy is {intensity:.3g} g/kWh, which no grid has: {scale}, or an energy in another unit.")
    rate = numbers.get("emissions_rate")
    if rate and numbers.get("emissions") and not 0.98 < rate * seconds / numbers["emissions"] < 1.02:
        say("warning", "emissions_rate", f"emissions_rate is {rate:.3g}, and emissions / duration is {numbers['emissions'] / seconds:.3g} kg/s.")
    if numbers.get("gpu_count", 0) > 0 and not entry.stated.get("gpu"):
        say(
            "warning",
            "gpu_energy",
            f"{numbers['gpu_count']:g} GPU ({entry.cells.get('gpu_model', '')}) and no GPU energy: it was not metered, not idle.",
        )
    if not entry.stated.get("cpu", 1.0):
        say("warning", "cpu_energy", "the CPU energy is 0: the run was too short for a sample, and nothing costs nothing.")
    if entry.mode not in ("machine", "process"):
        say("fault", "tracking_mode", f"{entry.mode!r} is not a tracking mode.")
    for name in ("cpu_utilization_percent", "gpu_utilization_percent", "ram_utilization_percent"):
        if numbers.get(name, 0.0) > 100:
            say("fault", name, f"{name} is {numbers[name]:g}, more than all of it.")


def _factor(ratio: float) -> str:
    """What unit was probably meant."""
    known = {
        1000.0: "Wh in a column of kWh (1000 times too much)",
        3.6e6: "J in a column of kWh (3.6 million times too much)",
        1 / 1000: "MWh in a column of kWh, or a duration in ms",
        3600.0: "a duration in hours, or W·s for Wh",
        60.0: "a duration in minutes",
        1 / 3600: "a duration of which most was not tracked, or Wh for W·s",
    }
    size, text = min(known.items(), key=lambda pair: abs(math.log(ratio / pair[0])))
    return text if 1 / 2.5 < ratio / size < 2.5 else f"{ratio:.3g} times apart, one of them is in another unit"


def _repeated(entries: list[Entry], findings: _Findings) -> None:
    """Rows that stand twice, and earlier rows of one run: its figures are cumulative, so only the last counts."""
    seen: dict[tuple[Any, ...], Entry] = {}
    last: dict[str, Entry] = {}
    for entry in entries:
        key = tuple(sorted(entry.cells.items()))
        if key in seen:
            entry.counts = False
            findings.fault(entry.line, "", f"the same as line {seen[key].line}: counted once.")
            continue
        seen[key] = entry
        run = entry.cells.get("run_id", "")
        before = last.get(run) if run else None
        if before is not None:
            less, more = sorted((before, entry), key=lambda one: one.numbers["duration"])
            less.counts = False
            findings.warn(
                less.line,
                "run_id",
                f"an earlier row of the run in line {more.line}: its figures are cumulative, so adding them would count them twice.",
            )
            last[run] = more
        elif run:
            last[run] = entry


def _overlaps(entries: list[Entry], findings: _Findings) -> None:
    """Runs at the same time that each charge the whole machine."""
    spans = []
    for entry in entries:
        text = entry.cells.get("timestamp", "")
        try:
            end = datetime.fromisoformat(text)
        except ValueError:
            if text:
                findings.warn(entry.line, "timestamp", f"{text!r} is no time.")
            continue
        if end.tzinfo is not None:
            end = end.astimezone(UTC).replace(tzinfo=None)
        if entry.mode == "machine":
            spans.append((end - timedelta(seconds=min(entry.numbers["duration"], 1e9)), end, entry))
    spans.sort(key=lambda span: span[0])
    latest: tuple[datetime, Entry] | None = None
    for start, end, entry in spans:
        if latest is not None and (latest[0] - start).total_seconds() > 1.5 and entry.cells.get("cpu_model") == latest[1].cells.get("cpu_model"):
            findings.fault(
                entry.line,
                "tracking_mode",
                f"it overlaps line {latest[1].line} by "
                f"{(min(end, latest[0]) - start).total_seconds():.0f} s, and each charges the whole machine (if it is one machine).",
            )
        latest = (end, entry) if latest is None or end > latest[0] else latest


def _disguised(entry: Entry, findings: _Findings) -> None:
    """Figures that no meter read: RAM by guessed modules, CPU by a guessed TDP."""
    share = _shares(entry.stated)
    ram, size = entry.numbers.get("ram_power", 0.0) / entry.pue, entry.numbers.get("ram_total_size")
    words = f"{share.get('memory', 0.0):.0%} of the energy"
    if ram > 0:
        arms = [arm for arm in (False, True) if size is not None and _close(ram, ram_watts(size, arm))]
        if entry.mode == "machine" and arms and size is not None:
            modules = f"{guessed_modules(size)} modules × {1.5 if arms[0] else 5:g} W, guessed from {size:.3g} GB"
            findings.warn(entry.line, "ram_power", f"RAM is a constant, {ram:.3g} W ({modules}); nothing was read. It is {words}.")
        elif _close(ram, 10.0) or _close(ram, 3.0):
            findings.warn(
                entry.line,
                "ram_power",
                f"RAM is the floor of the model, {ram:.3g} W, which every process of up to 16 GB is charged; nothing was read. It is {words}.",
            )
        elif size is not None and _close(ram, 0.375 * size):
            findings.warn(entry.line, "ram_power", f"RAM is a constant of older versions, 3 W for 8 GB; nothing was read. It is {words}.")
    cpu, threads = entry.numbers.get("cpu_power", 0.0) / entry.pue, entry.numbers.get("cpu_count")
    part = f"{share.get('cpu', 0.0):.0%} of the energy"
    if _close(cpu, 42.5):
        findings.warn(entry.line, "cpu_power", f"the CPU is a constant: 85 W × 50 %, where nothing was known of it. It is {part}.")
    elif threads and _close(cpu, cpu_watts(UNKNOWN_THREAD * threads, 1.0)):
        findings.warn(
            entry.line,
            "cpu_power",
            f"the CPU is {UNKNOWN_THREAD:g} W × {threads:g} threads at full load, the guess for an "
            f"unknown processor; nothing was read. It is {part}.",
        )
    elif threads and cpu and _close(cpu, cpu_watts(UNKNOWN_THREAD * threads, 0.0)):
        findings.warn(
            entry.line,
            "cpu_power",
            f"the CPU is 10 % of {UNKNOWN_THREAD:g} W × {threads:g} threads, the guess for an unknown "
            f"processor at rest; nothing was read. It is {part}.",
        )


def _constant(entries: list[Entry], findings: _Findings) -> None:
    """Powers that never move, whatever ran."""
    kept = [entry for entry in entries if entry.counts]
    for part, column in POWERS.items():
        values = {entry.numbers[column] / entry.pue for entry in kept if column in entry.numbers}
        if len(kept) >= 3 and len(values) == 1 and 0 not in values and all(column in entry.numbers for entry in kept):
            findings.warn(0, column, f"{TITLES[part]} power is {values.pop():.4g} W in all {len(kept)} rows: a constant, not a reading.")


def _about(entries: list[Entry], header: Iterable[str], findings: _Findings) -> None:
    """What holds for the whole file."""
    say = findings.note
    modes = sorted({entry.mode for entry in entries})
    charged = {"machine": "the whole machine, whoever used it", "process": "the process by CPU time, no idle power, children as long as they live"}
    for mode in modes:
        say("tracking_mode", f"tracking mode {mode}: it charges {charged.get(mode, 'nobody knows what')}.")
    if "machine" in modes:
        say(
            "cpu_power",
            "where the CPU is modelled, its power goes with the cube of the load: two half-loaded machines would cost 42 % of what one full "
            "machine does.",
        )
    say("cpu_energy", "no column says whether the CPU was read (RAPL) or modelled, none has an interval, and embodied carbon is not in it.")
    if "pue" in header and all(entry.pue == 1 for entry in entries):
        say("pue", "PUE is 1.0, the default: the hall's overhead is not in it.")
    intensities = {round(entry.grams / (entry.joules / 3.6e6), 1) for entry in entries if entry.grams and entry.joules}
    for value in sorted(intensities)[:4]:
        places = sorted(
            {
                entry.cells.get("country_iso_code", "")
                for entry in entries
                if entry.grams and entry.joules and round(entry.grams / (entry.joules / 3.6e6), 1) == value
            }
            - {""}
        )
        named = f" ({', '.join(places)})" if places else ""
        text = f"intensity {value:g} g/kWh{named}; the year and source are not on record"
        if any(_close(value, world) for world in _WORLD):
            text += "; it is the figure for the world, where no place was known"
        for place in places:
            known = annual(place)
            if known is not None and not known.bounds[0] <= value <= known.bounds[1]:
                text += f"; annual tables have {known.value:.0f} [{known.bounds[0]:.0f}, {known.bounds[1]:.0f}] for {place}"
        say("emissions", f"{text}.")


def _close(value: float, other: float) -> bool:
    return abs(value - other) <= 0.005 * max(abs(value), abs(other)) and other > 0


def _shares(stated: Mapping[str, float]) -> dict[str, float]:
    whole = sum(stated.values())
    return {name: part / whole for name, part in stated.items()} if whole > 0 else {}


def _short(figure: Quantity | None) -> str:
    return f"{figure.value:.3g} [{figure.bounds[0]:.2g}, {figure.bounds[1]:.2g}] J" if figure else "unknown"
