"""Rows of CodeCarbon's emissions.csv worked out anew: the power models that its figures come from, and the same by stated models with intervals.

Formulas of CodeCarbon 3.3.2 (MIT), read in its source and written anew here, so that a file can be held against them:

    RAM, machine    5 W (ARM: 1.5 W) for each memory module that is guessed from the total size, at least 10 W (3 W): nothing is read
    RAM, process    the same rule for the resident size: the floor of two modules is reached by every process under 16 GB
    CPU, machine    TDP × (0.1 + 0.9 × load³) of the whole machine; an unknown processor has a TDP of 4 W a thread
    CPU, process    TDP × CPU seconds / wall seconds / threads
    all of it       × PUE (default 1.0); energies in kWh, emissions in kg, powers in W, durations in s
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, field

from fourfold.errors import FourfoldError, InputError
from fourfold.host import Power, powers
from fourfold.site import sigma, site
from fourfold.units import Quantity, total

ENERGIES = {"cpu": "cpu_energy", "gpu": "gpu_energy", "memory": "ram_energy"}
UNKNOWN_THREAD = 4.0  # W a thread of a processor that CodeCarbon does not know
_NO_NAME = ("", "none", "nan", "null", "na", "n/a", "-", "<na>")
_GIB = 1.073741824  # its "GB" are 2^30 bytes
_MEMORY = (0.3725, 0.2, 0.7)  # W/GB: Green Algorithms' rate; interval over published rates and module sizes


def ram_watts(gigabytes: float, arm: bool = False) -> float:
    """CodeCarbon's power of that much memory: W by the number of modules it guesses. Raises InputError for a negative size."""
    if not gigabytes >= 0:
        raise InputError(f"Memory of {gigabytes!r} GB cannot be.", "Give gigabytes from 0 up.")
    each, count = (1.5 if arm else 5.0), guessed_modules(gigabytes)
    steps = ((4, 1.0), (8, 0.9), (16, 0.8), (math.inf, 0.7))  # up to this many modules, each of the further ones counts so much
    watts, done = 0.0, 0.0
    for upto, weight in steps:
        watts, done = watts + each * weight * max(0.0, min(count, upto) - done), max(done, min(count, upto))
    return max(watts, 2 * each)


def guessed_modules(gigabytes: float) -> int:
    """How many memory modules CodeCarbon takes that much memory to be."""
    for upto, count in ((2, 1), (16, 2), (64, 4), (128, 8)):
        if gigabytes <= upto:
            return count
    size = max((one for one in (4, 8, 16, 32, 64, 128) if one <= gigabytes / 8), default=0)
    return min(math.ceil(gigabytes / size), 32) if size else 8


def cpu_watts(tdp: float, load: float, mode: str = "machine") -> float:
    """CodeCarbon's power of processors of `tdp` W at `load` (0 to 1 of all threads), by tracking mode; "constant": where nothing is known.

    Raises InputError for a load outside 0 to 1 and an unknown mode.
    """
    if mode not in ("machine", "process", "constant"):
        raise InputError(f"{mode!r} is not a tracking mode.", "Use machine, process or constant.")
    if not 0 <= load <= 1:
        raise InputError(f"A load of {load!r} cannot be.", "Give the share of all threads that is busy, 0 to 1.")
    return {"machine": tdp * (0.1 + 0.9 * load**3), "process": tdp * load, "constant": tdp * 0.5}[mode]


def named(text: str) -> str:
    """A name or an id, "" where the word says that there is none."""
    return "" if text.strip().lower() in _NO_NAME else text.strip()


@dataclass
class Entry:
    """One row. `stated` joules by component as CodeCarbon has them (PUE in them), `restated` ours of the machine alone (None: `why`)."""

    line: int
    cells: dict[str, str]
    numbers: dict[str, float]
    counts: bool = True  # False: a duplicate, or an earlier row of the same run
    unfit: str = ""  # why nothing can be worked out from its figures
    stated: dict[str, float] = field(default_factory=dict)
    restated: dict[str, Quantity | None] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    energy: Quantity | None = None
    carbon: Quantity | None = None
    intensity: Quantity | None = None

    @property
    def run(self) -> str:
        """The run's id; "" where the tracker wrote none, in whatever word ("None", "nan")."""
        return named(self.cells.get("run_id", ""))

    @property
    def digest(self) -> str:
        """Names the row by all that it says, 16 hexadecimal digits: the same under any order of columns and in any file."""
        said = sorted((name, cell) for name, cell in self.cells.items() if cell)
        return hashlib.sha256(repr(said).encode("utf-8", "backslashreplace")).hexdigest()[:16]

    @property
    def name(self) -> str:
        return named(self.cells.get("project_name", "")) or self.run or f"line {self.line}"

    @property
    def mode(self) -> str:
        return self.cells.get("tracking_mode") or "machine"

    @property
    def pue(self) -> float:
        return max(1.0, self.numbers.get("pue", 1.0))

    @property
    def joules(self) -> float:
        """The whole as stated."""
        return 3.6e6 * self.numbers["energy_consumed"] if "energy_consumed" in self.numbers else sum(self.stated.values())

    @property
    def grams(self) -> float | None:
        return 1000 * self.numbers["emissions"] if "emissions" in self.numbers else None


def restate(entry: Entry) -> None:
    """Joules of the machines and gCO2e, by stated models with intervals, from what the row tells."""
    if entry.unfit:
        entry.restated, entry.why = dict.fromkeys(ENERGIES), dict.fromkeys(ENERGIES, entry.unfit)
        return
    seconds = Quantity(entry.numbers["duration"], "s", "measured")
    entry.restated = {"cpu": _cpu(entry, seconds), "memory": _memory(entry, seconds), "gpu": _gpu(entry)}
    known = [part for part in entry.restated.values() if part is not None]
    if not known:
        whole = entry.joules / entry.pue
        known = (
            [Quantity(whole, "J", "modelled", 0.5 * whole, 2 * whole, method="as the file states it; its parts are not told apart")] if whole else []
        )
    entry.energy = total(known) if known else None
    entry.intensity = annual(entry.cells.get("country_iso_code", ""))
    if entry.intensity is None and entry.grams and entry.joules:
        value = entry.grams / (entry.joules / 3.6e6)
        entry.intensity = Quantity(
            value,
            "gCO2e/kWh",
            "assumed",
            errors={f"intensity in line {entry.line}": sigma(value)},
            signal="average",
            method="emissions / energy of the file, with the interval of an annual average",
        )
    if entry.energy is not None and entry.intensity is not None:
        entry.carbon = (entry.energy * entry.pue * entry.intensity).to("gCO2e")


def _cpu(entry: Entry, seconds: Quantity) -> Quantity | None:
    """By the stated power of the processor where the load is known, else as stated ± 40 %, or from CPU seconds where 4 W a thread may be in it."""
    if "cpu" not in entry.stated:
        entry.why["cpu"] = "the file does not tell it apart"
        return None
    joules, threads = entry.stated["cpu"] / entry.pue, entry.numbers.get("cpu_count", 0.0)
    watts = joules / seconds.value
    row = _power(entry.cells.get("cpu_model", ""))
    guessed = bool(threads) and watts <= 1.01 * UNKNOWN_THREAD * threads
    load = entry.numbers.get("cpu_utilization_percent", 0.0) / 100
    if entry.mode == "machine" and threads and 0 < load <= 1:
        inverse = max(0.0, min(1.0, (watts / (UNKNOWN_THREAD * threads) - 0.1) / 0.9)) ** (1 / 3) if guessed else load
        low, high = min(load, inverse), max(load, inverse)
        busy = Quantity(
            high, "1", "modelled", low, high, method="load of all threads, by the file's mean and by its power", source=f"load in line {entry.line}"
        )
        return (row.idle + (row.busy - row.idle) * busy) * threads * seconds
    if not joules:
        entry.why["cpu"] = "the file has 0, which is a run too short for a sample"
        return None
    if guessed:
        return row.busy * Quantity(joules / UNKNOWN_THREAD, "s", "modelled", method=f"CPU seconds, if a thread was {UNKNOWN_THREAD:g} W")
    shared = f"power of {entry.cells.get('cpu_model') or 'the CPU'}"  # one error for all rows: it does not average out
    return Quantity(joules, "J", "modelled", 0.6 * joules, 1.4 * joules, method="TDP × load as stated, ± 40 %", source=shared)


def _memory(entry: Entry, seconds: Quantity) -> Quantity | None:
    if entry.mode != "machine":
        entry.why["memory"] = "what the process held is not in the file; the figure there is a constant"
        return None
    if not entry.numbers.get("ram_total_size"):
        entry.why["memory"] = "the size of the memory is not in the file"
        return None
    value, low, high = _MEMORY
    rate = Quantity(
        value,
        "W/GB",
        "modelled",
        low,
        high,
        source="Green Algorithms 0.3725 W/GB; the interval spans published rates and module sizes",
        method=f"W/GB {value} [{low}, {high}]",
    )
    return rate * Quantity(_GIB * entry.numbers["ram_total_size"], "GB", "counted") * seconds


def _gpu(entry: Entry) -> Quantity | None:
    if not entry.stated.get("gpu"):
        entry.why["gpu"] = "the file has no GPU energy"
        return None
    joules = entry.stated["gpu"] / entry.pue
    return Quantity(
        joules,
        "J",
        "modelled",
        0.7 * joules,
        1.3 * joules,
        source=f"power of {entry.cells.get('gpu_model') or 'the GPU'}",
        method="as the file states it (NVML), ± 30 %: the counter samples a part of the time on some GPUs",
    )


def _power(model: str) -> Power:
    text = f" | {model}"
    return next(row for row in powers() if any(re.search(pattern, text) for pattern in row.match))


def annual(code: str) -> Quantity | None:
    """The annual intensity of a country, with the interval that differing tables span; None where it is unknown."""
    if not code:
        return None
    try:
        return site(code).intensity
    except FourfoldError:
        return None
