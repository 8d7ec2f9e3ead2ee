"""What an auditor says of the rows of an emissions.csv: against themselves, against each other, against the models that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fourfold.carbon.codecarbon import UNKNOWN_THREAD, Entry, annual, cpu_watts, guessed_modules, ram_watts

POWERS = {"cpu": "cpu_power", "gpu": "gpu_power", "memory": "ram_power"}
TITLES = {"cpu": "CPU", "gpu": "GPU", "memory": "RAM"}
KINDS = ("fault", "warning", "note")
_WORLD = (475.0, 445.0)  # g/kWh that tools fall back on for the world


@dataclass(frozen=True)
class Finding:
    """What the auditor has to say of `line` (0: the file) and `column`. `kind`: fault (a figure that is wrong), warning (misleading), note."""

    kind: str
    line: int
    column: str
    text: str

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "line": self.line, "column": self.column, "text": self.text}

    def __str__(self) -> str:
        return f"{self.kind}: {f'line {self.line}: ' if self.line else ''}{self.text}"


class Findings(list[Finding]):
    """Findings as they are made."""

    def fault(self, line: int, column: str, text: str) -> None:
        self.append(Finding("fault", line, column, text))

    def warn(self, line: int, column: str, text: str) -> None:
        self.append(Finding("warning", line, column, text))

    def note(self, column: str, text: str) -> None:
        self.append(Finding("note", 0, column, text))


def check(entry: Entry, findings: Findings) -> None:
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


def repeated(entries: list[Entry], findings: Findings) -> None:
    """Rows that stand twice, and earlier rows of one run, whose figures are cumulative: only the last counts.

    A run's id alone proves nothing, for trackers write one id for many runs: rows under it that ran at other times all count, and those that ran at
    the same time are one run only where they began together and the longer one took more.
    """
    seen: dict[str, Entry] = {}
    times: dict[tuple[str, str], list[Entry]] = {}
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        moment = (entry.cells.get("timestamp", ""), entry.cells.get("duration", ""))
        twin = seen.get(entry.digest) or _twin(entry, times.get(moment, ()) if moment[0] else ())
        if twin is not None:
            entry.counts = False
            findings.fault(entry.line, "", f"the same as line {twin.line}: counted once.")
            continue
        seen[entry.digest] = entry
        times.setdefault(moment, []).append(entry)
        if entry.run:
            runs.setdefault(entry.run, []).append(entry)
    for rows in runs.values():
        _one_run(rows, findings)


def _one_run(rows: list[Entry], findings: Findings) -> None:
    """Of the rows under one id those that count."""
    kept: list[Entry] = []
    for entry in sorted(rows, key=_began):
        before = kept[-1] if kept else None
        if before is None or _apart(before, entry):
            kept.append(entry)
            continue
        less, more = sorted((before, entry), key=lambda one: one.numbers["duration"])
        less.counts = False
        kept[-1] = more
        if _began_together(less, more) and less.joules <= 1.001 * more.joules:
            findings.warn(less.line, "run_id", f"an earlier row of the run in line {more.line}: its figures are cumulative, so adding them would "
                                               "count them twice.")
        else:
            why = "its energy is more than that of the longer row" if _began_together(less, more) else "it began at another time"
            findings.fault(less.line, "run_id", f"it has the run_id of line {more.line} and ran beside it, but {why}: which of them is the run "
                                                f"cannot be told, and only line {more.line} counts.")
    if len(kept) > 1:
        lines = sorted(entry.line for entry in kept)
        findings.warn(lines[1], "run_id", f"it has the run_id of line {lines[0]} and ran at another time: both count"
                                          f"{f' (so do {len(lines) - 2} more)' if len(lines) > 2 else ''}.")


def _twin(entry: Entry, others: Iterable[Entry]) -> Entry | None:
    """A row of the same time and length under another header that says the same wherever both say something."""
    for other in others:
        if other.cells.keys() == entry.cells.keys():
            continue
        if all(not cell or other.cells.get(name) in ("", None, cell) for name, cell in entry.cells.items()):
            return other
    return None


def _began(entry: Entry) -> float:
    """Seconds from some moment to the row's beginning; rows without a time come first."""
    end = _ended(entry)
    return (end - datetime(1970, 1, 1)).total_seconds() - entry.numbers["duration"] if end is not None else -math.inf


def _ended(entry: Entry) -> datetime | None:
    try:
        end = datetime.fromisoformat(entry.cells.get("timestamp", ""))
    except ValueError:
        return None
    return end.astimezone(UTC).replace(tzinfo=None) if end.tzinfo is not None else end


def _spans(one: Entry, other: Entry) -> tuple[float, float, float, float] | None:
    """Begin and end of both, in seconds from the end of the first; None where a time is not on record."""
    ends = _ended(one), _ended(other)
    if ends[0] is None or ends[1] is None:
        return None
    later = (ends[1] - ends[0]).total_seconds()
    return -one.numbers["duration"], 0.0, later - other.numbers["duration"], later


def _apart(one: Entry, other: Entry) -> bool:
    """Whether two rows surely ran at different times."""
    spans = _spans(one, other)
    return spans is not None and min(spans[1], spans[3]) - max(spans[0], spans[2]) <= 1.5


def _began_together(one: Entry, other: Entry) -> bool:
    """Whether two rows may be of one run: their beginnings agree within 5 s or 2 % (or are not on record)."""
    spans = _spans(one, other)
    return spans is None or abs(spans[0] - spans[2]) <= max(5.0, 0.02 * max(one.numbers["duration"], other.numbers["duration"]))


def overlaps(entries: list[Entry], findings: Findings) -> None:
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


def disguised(entry: Entry, findings: Findings) -> None:
    """Figures that no meter read: RAM by guessed modules, CPU by a guessed TDP."""
    share = shares_of(entry.stated)
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


def constant(entries: list[Entry], findings: Findings) -> None:
    """Powers that never move, whatever ran."""
    kept = [entry for entry in entries if entry.counts]
    for part, column in POWERS.items():
        values = {entry.numbers[column] / entry.pue for entry in kept if column in entry.numbers}
        if len(kept) >= 3 and len(values) == 1 and 0 not in values and all(column in entry.numbers for entry in kept):
            findings.warn(0, column, f"{TITLES[part]} power is {values.pop():.4g} W in all {len(kept)} rows: a constant, not a reading.")


def about(entries: list[Entry], header: Iterable[str], findings: Findings) -> None:
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


def shares_of(stated: Mapping[str, float]) -> dict[str, float]:
    whole = sum(stated.values())
    return {name: part / whole for name, part in stated.items()} if whole > 0 else {}
