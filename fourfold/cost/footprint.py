"""What a training run costs in energy, carbon and money, from chips, hours and watts: the arithmetic of Patterson et al. 2021 (arXiv:2104.10350,
section 2.5), with a grade and a 90 % interval on every figure.

    kWh   = chips × hours × mean W per chip × PUE / 1000
    tCO2e = kWh × kgCO2e per kWh / 1000

W is the power of the system per chip (chip, memory, network, fans, its share of the host), not of the chip alone, and not the TDP. *Gross* uses what
the grid emitted (location-based), *net* what contracts say was bought (market-based): they are never added, never compared. Embodied carbon is what
making the hardware emitted, shared out by chip-hours (`cost/embodied.py`); its parts are known to a factor of three.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fourfold.cost.embodied import per_hour, together
from fourfold.errors import InputError
from fourfold.host import Chip
from fourfold.host import chip as known_chip
from fourfold.units import GRADES, Quantity
from fourfold.units.parse import DAYS, EMBODIED, ENERGY, INTENSITY, POWER, PRICE, PUE, TIME, Kind, count, given


@dataclass(frozen=True)
class Footprint:
    """What one run took. `energy_it` kWh of the machines (boundary host; None where only the hall's was given), `energy` kWh of the hall.

    `gross` and `net` in gCO2e (signals average and market), `embodied` and `total` (= gross + embodied) in gCO2e, `cost` in USD; None where a figure
    is missing, and `why` says which. `runs_paid`: how many such runs the result took, search and repeats included; all figures here are of one run.
    """

    name: str
    energy: Quantity
    pue: Quantity | None = None
    energy_it: Quantity | None = None
    chip_hours: Quantity | None = None
    watts: Quantity | None = None
    chips: int | None = None
    chip: str = ""
    intensity: Quantity | None = None
    net_intensity: Quantity | None = None
    gross: Quantity | None = None
    net: Quantity | None = None
    embodied_rate: Quantity | None = None
    embodied: Quantity | None = None
    total: Quantity | None = None
    price: Quantity | None = None
    cost: Quantity | None = None
    runs_paid: float = 1.0
    site: str = ""
    why: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data, Quantities as theirs, and `paid`: energy, gross, net, embodied and cost of all runs together."""
        def plain(value: object) -> Any:
            return value.to_json() if isinstance(value, Quantity) else dict(value) if isinstance(value, Mapping) else value

        data = {item.name: plain(getattr(self, item.name)) for item in fields(self)}
        parts = ("energy", "gross", "net", "embodied", "total", "cost")
        paid = {name: (figure * self.runs_paid).to_json() if (figure := getattr(self, name)) is not None else None for name in parts}
        return {**data, "warnings": list(self.warnings), "paid": paid}


def footprint(
    *,
    name: str = "run",
    chips: int | str | None = None,
    chip: str | None = None,
    watts: float | str | Quantity | None = None,
    days: float | str | None = None,
    hours: float | str | Quantity | None = None,
    chip_hours: float | str | Quantity | None = None,
    energy: float | str | Quantity | None = None,
    pue: float | str | Quantity | None = None,
    intensity: float | str | Quantity | None = None,
    net_intensity: float | str | Quantity | None = None,
    site: str | None = None,
    embodied: float | str | Quantity | None = None,
    chips_per_server: int | str = 8,
    price: float | str | Quantity | None = None,
    runs_paid: float | str = 1,
    grade: str = "assumed",
    source: str = "",
) -> Footprint:
    """The footprint of one run of `chips` chips for `days` or `hours` (or of `chip_hours` in all; or of a hall's `energy` in kWh, already metered).

    Figures may be numbers or text with units and intervals: `watts` per chip ("330W", "0.33 kW ± 5%"), `intensity` in kg per kWh or with its unit
    ("429g/kWh"), `pue` from 1 up, `price` in USD/kWh. `chip` fills in `watts` ("tdp": its TDP in place of a measured mean), `site` fills in
    intensity, PUE and price. `embodied`: "luccioni", "ecologits" or kg per chip-hour. An unknown PUE is 1.56 [1.1, 2.0], assumed. `grade` and
    `source` are those of the figures given here, where somebody measured or published them.
    Raises InputError for missing, contradicting or impossible figures, and unknown chips and sites (nearest names offered).
    """
    told: list[str] = []
    why: dict[str, str] = {}
    runs = _runs(runs_paid)
    if grade not in GRADES:
        raise InputError(f"{grade!r} is not a grade.", f"Use one of: {', '.join(GRADES)}.")
    teller = _Teller(name, grade, source)
    device = known_chip(chip) if chip else None
    place = _site(site)
    price_ = teller(PRICE, "price", price) if price is not None else place.price if place else None
    factor = _pue(teller, pue, place, told, metered=energy is not None)
    made: dict[str, Any] = {"pue": factor}
    taken = _chip_hours(teller, chips, days, hours, chip_hours) if energy is None or chips or chip_hours else None
    if energy is not None:
        if watts is not None:
            raise InputError("The energy and the watts were both given; either follows from the other.", "Leave out one of them.")
        hall = teller(ENERGY, "energy", energy, boundary="hall")
        made["energy_it"] = (hall / factor).at("host") if factor is not None else None
        why["watts"] = "the hall's energy was given"
    else:
        assert taken is not None and factor is not None
        power = _watts(teller, watts, device, told)
        made["watts"] = power
        made["energy_it"] = (power * taken).to("kWh")
        hall = (made["energy_it"] * factor).at("hall", "× PUE").to("kWh")
    made["energy"], made["chip_hours"] = hall, taken
    made |= _carbon(teller, hall, intensity, net_intensity, place, why)
    made |= _embodied(name, embodied, chips_per_server, taken, made["gross"], why)
    if price_ is not None:
        made["cost"] = hall * price_
    else:
        why["cost"] = place.why.get("price", "the site has no price") if place else "no price was given"
    number = count("chips", chips) if chips is not None else None
    return Footprint(name, chips=number, chip=device.name if device else "", price=price_, runs_paid=runs, site=place.id if place else "",
                     why=why, warnings=tuple(told), **made)


def read(path: str | Path) -> list[Footprint]:
    """The footprints of the runs in a TOML file: one `[run]`, or several `[[run]]`, with the arguments of `footprint` as keys.

    Raises InputError for a file that cannot be read, a key that is not known (nearest offered), and what `footprint` refuses, naming the run.
    """
    found = []
    for number, facts in enumerate(runs(path), 1):
        facts = {"name": f"run {number}", **facts}
        try:
            found.append(footprint(**facts))
        except InputError as error:
            raise InputError(f"{Path(path).name}, {facts['name']}: {error.message}", error.mend) from None
    return found


KEYS = ("name", "chips", "chip", "watts", "days", "hours", "chip_hours", "energy", "pue", "intensity", "net_intensity", "site", "embodied",
        "chips_per_server", "price", "runs_paid", "grade", "source")


def runs(path: str | Path) -> list[dict[str, Any]]:
    """The tables of the runs in a TOML file, keys checked."""
    data = table(path)
    found = data.get("run", data.get("runs"))
    entries: list[Any] = found if isinstance(found, list) else [found]
    if not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} has no table [run].", 'Write [run], then chips = 8, chip = "V100", days = 2, pue = 1.1, intensity = "400 g/kWh".')
    for entry in entries:
        check_keys(entry, KEYS, f"[run] of {Path(path).name}")
    return entries


def table(path: str | Path) -> dict[str, Any]:
    """A TOML file. Raises InputError where it cannot be read."""
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.", "Name a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}.", "Mend that line.") from None


def check_keys(entry: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """Raises InputError for a key that is not `known`, with the nearest."""
    import difflib

    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1)
            raise InputError(f"{where} has the key {key!r}, which is not known.",
                             f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}.")


# ---- parts ---------------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Teller:
    """Who gives the figures of a run: names them, so that errors of two runs are two, and grades them."""

    name: str
    grade: str
    source: str

    def __call__(self, kind: Kind, what: str, value: Any, **facts: Any) -> Quantity:
        words = f"{what} of {self.name}" + (f", {self.source}" if self.source else "")
        return given(kind, value, source=words, grade=self.grade, **facts)


def _runs(value: float | str) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number) or number < 1:
        raise InputError(f"The number of runs paid for must be at least 1, got {value!r}.", "Count the run itself, its search and its repeats.")
    return number


def _site(name: str | None) -> Any:
    if name is None:
        return None
    from fourfold.site import site

    return site(name)


def _pue(teller: _Teller, value: object, place: Any, told: list[str], metered: bool) -> Quantity | None:
    if value is not None:
        return teller(PUE, "PUE", value)
    if metered:
        return None                                                    # the hall's own meter has counted it already
    from fourfold.site import pue as stated

    found = place.pue if place else stated()
    if found.grade == "assumed":
        low, high = found.bounds
        told.append(f"the hall's PUE is not known: {found.value:g} [{low:g}, {high:g}] is assumed; give --pue")
    return found


def _chip_hours(teller: _Teller, chips: Any, days: object, hours: object, whole: object) -> Quantity:
    """Chip-hours of the run, in h. Counted where both factors are whole figures without an interval."""
    if whole is not None:
        if chips is not None or days is not None or hours is not None:
            raise InputError("Chip-hours were given together with chips or a time.", "Give chip-hours alone, or chips and a time.")
        return _time(teller(TIME, "chip-hours", whole))
    if chips is None or (days is None) == (hours is None):
        missing = "the number of chips" if chips is None else "how long it ran" if days is None else "days or hours, not both"
        raise InputError(f"The footprint of {teller.name} needs {missing}.", "Give --chips and --days (or --hours), or --chip-hours, or --energy.")
    number = count("chips", chips)
    time = teller(DAYS, "time", days) if days is not None else teller(TIME, "time", hours)
    return _time(time) * number


def _time(time: Quantity) -> Quantity:
    """A time without an interval is a count of hours, and weakens no grade."""
    return replace(time, grade="counted") if time.grade == "assumed" and not time.errors else time


def _watts(teller: _Teller, value: object, device: Chip | None, told: list[str]) -> Quantity:
    if value is None or (isinstance(value, str) and value.strip().lower() == "tdp"):
        if device is None:
            raise InputError(f"The footprint of {teller.name} needs watts per chip.", "Give --watts 330, or --chip V100 to look them up.")
        power = device.power if value is None else device.stand_in
        if power.method.startswith("TDP"):
            told.append(f"{power.value:g} W is the TDP of {device.title}, not a measured mean" + (
                f": that is {device.system.value:g} W" if device.system else "; the interval says how far means have lain from TDPs")
                + ("; a TPU's TDP is never its average" if device.kind == "tpu" else ""))
        return power.at("host")
    power = teller(POWER, "watts", value, boundary="host")
    if device is not None:
        told += _odd(power.value, device)
    return power


def _odd(watts: float, device: Chip) -> list[str]:
    """What is strange about these watts for that chip."""
    if device.tdp is None:
        return []
    tdp, found = device.tdp.value, []
    if device.system is not None and math.isclose(watts, tdp, rel_tol=0.01):
        found.append(f"{watts:g} W is the TDP of {device.title}; the measured mean is {device.system.value:g} W"
                     + ("; a TPU's TDP is never its average" if device.kind == "tpu" else ""))
    elif watts > 2.5 * tdp:
        found.append(f"{watts:g} W per chip is {watts / tdp:.1f} times the TDP of {device.title}: is it the power of several chips?")
    elif watts < 0.2 * tdp:
        found.append(f"{watts:g} W per chip is {watts / tdp:.0%} of the TDP of {device.title}: is it idle power, or kW?")
    return found


def _carbon(teller: _Teller, hall: Quantity, gross: object, net: object, place: Any, why: dict[str, str]) -> dict[str, object]:
    """Intensities and gCO2e, location-based and market-based apart."""
    from fourfold.site import sigma

    made: dict[str, Any] = {"intensity": place.intensity if place else None, "net_intensity": None, "gross": None, "net": None}
    for key, value, signal in (("intensity", gross, "average"), ("net_intensity", net, "market")):
        if value is not None:
            figure = teller(INTENSITY, "net intensity" if signal == "market" else "intensity", value, signal=signal)
            if signal == "average" and figure.value and figure.method == "given":
                figure = replace(figure, errors={figure.source: sigma(figure.value)}, low=None, high=None,
                                 method="given, with the interval of an annual average")
            made[key] = figure
    for key, figure in (("gross", made["intensity"]), ("net", made["net_intensity"])):
        if figure is not None:
            made[key] = (hall * figure).to("gCO2e")
    if made["gross"] is None:
        why["gross"] = "no carbon intensity of the grid was given"
    if made["net"] is None:
        why["net"] = "no market-based (contract) intensity was given"
    return made


def _embodied(name: str, value: object, per_server: object, taken: Quantity | None, gross: Quantity | None, why: dict[str, str]) -> dict[str, object]:
    if value is None:
        why["embodied"] = "not asked for"
        return {"total": None}
    if taken is None:
        raise InputError("Embodied carbon is shared out by chip-hours, which are not known.", "Give --chips and --days beside the energy.")
    rate = embodied_rate(name, value, per_server)
    made = rate * (taken / Quantity(1.0, "h", "counted"))
    total = None if gross is None else gross + replace(made.at("hall"), signal=gross.signal)
    return {"embodied_rate": rate, "embodied": made, "total": total}


def embodied_rate(name: str, value: Any, per_server: Any = 8) -> Quantity:
    """gCO2e per chip-hour: of a scheme of `cost/embodied.py` by name, or as given in kg per chip-hour, known to × or ÷ 3."""
    if isinstance(value, str) and value.strip()[:1].isalpha():
        return together(per_hour(value.strip().lower(), count("chips per server", per_server)).values())
    return given(EMBODIED, value, source=f"embodied carbon of {name}", spread=2.0)
