"""Files of carbon intensity as others export them, known by their headers: which column is the figure, in which unit, of which grid.

Nothing here is guessed from numbers. A header that names its maker settles what its columns are; any other table must state its unit itself, and a
column that names a quantity (a version, a forecast, an index, a fuel) is never taken for a site.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.errors import InputError

_REGIONS = {"north scotland", "south scotland", "north west england", "north east england", "yorkshire", "north wales", "north wales and merseyside",
            "north wales & merseyside", "south wales", "west midlands", "east midlands", "east england", "south west england", "south england",
            "london", "south east england", "england", "scotland", "wales", "gb"}   # of Great Britain's regional service
_EACH = re.compile(r"^(co2_)?([ma]oer)(_lbs?.*mwh)?$")                  # WattTime: marginal and average operating emissions rate
_ACTUAL, _FORECAST = (re.compile(rf"^({word}|{word}_(carbon_)?intensity.*|(carbon_)?intensity_{word})$") for word in ("actual", "forecast"))
_FUELS = {"gas", "coal"}
_MAPS = {"emissionfactortype", "isestimated", "estimationmethod", "zone_id", "zone_name", "data_estimated"}
_RATES = {"moer": "marginal", "co2_moer": "marginal", "marginal": "marginal", "aoer": "average", "co2_aoer": "average", "average": "average"}
_NO_SITE = set("""
    version frequency freq forecast actual index percent percentage perc pct rating price prices cost load demand generation mw kw gw mwh
    kwh gwh temperature temp wind solar gas coal nuclear hydro oil biomass geothermal imports exports import export lower upper min max mean
    median std average avg marginal quality estimated isestimated estimation method source data updated updatedat createdat created
    generated at moer aoer co2 renewable renewables fossil low carbon free cfe total health damage unnamed row id no number lat lon latitude
    longitude year month day hour weekday weekend minute intensity value emissions emission factor type share other count status unit signal
    signal_type
""".split())
_OTHER = re.compile(r"%|\b(eur|usd|gbp|£|€|\$)\s*/|\[?\(?\b(mw|kw|gw|mwh|gwh|twh|eur/mwh)\b\)?\]?$", re.IGNORECASE)


@dataclass(frozen=True)
class Export:
    """What a file of a known maker holds: its `columns` to read (indices), their `unit` and `signal`; `site` where all of it is one grid's; `said`
    a column that names the signal row by row, `words` what it may hold; `least` the g/kWh that some value must exceed; `note` for the reader.
    """

    maker: str
    columns: tuple[int, ...]
    unit: str
    signal: str = "average"
    site: str = ""
    place: int | None = None
    said: int | None = None
    note: str = ""
    least: float = 0.0                                                  # in the file's unit
    mend: str = ""


def recognised(header: Sequence[str], keys: Sequence[str], name: str, signal: str = "") -> Export | None:
    """The maker of a file by its header (`keys`: the same in lower case with underscores), None where no maker is known by it.

    Raises InputError for files of known makers that hold no carbon intensity, or two kinds of it.
    """
    if any(key == "mtu" or key.startswith("mtu_") or "actual_aggregated" in key for key in keys):
        raise InputError(f"{name} is ENTSO-E's: generation, load or prices, not carbon intensity; its columns are {', '.join(header[:6])} ….",
                         "Work intensities out of it first (generation times emission factors), and write time,site,g_per_kwh.")
    return _watttime(keys, name, signal) or _britain(header, keys) or _maps(keys)


def _watttime(keys: Sequence[str], name: str, signal: str) -> Export | None:
    rates = {index: _RATES[found[2]] for index, key in enumerate(keys) if (found := _EACH.match(key))}
    chosen = [index for index, kind in rates.items() if not signal or kind == signal]
    place = next((keys.index(key) for key in ("region", "ba", "balancing_authority") if key in keys), None)
    if rates and len(chosen) != 1:
        raise InputError(f"{name} has {', '.join(keys[index] for index in rates)}: marginal and average rates answer different questions.",
                         "Say which: --signal marginal or --signal average.")
    if rates:
        note = f"WattTime's file: {keys[chosen[0]].upper()} in lb/MWh."
        return Export("WattTime", (chosen[0],), "lb/MWh", rates[chosen[0]], place=place, note=note)
    if "point_time" in keys and "value" in keys:
        said = next((keys.index(key) for key in ("signal_type", "datatype") if key in keys), None)
        note = "WattTime's file: value is read as its CO2 MOER in lb/MWh, marginal; another signal of theirs has another unit (--unit, --signal)."
        return Export("WattTime", (keys.index("value"),), "lb/MWh", "marginal", place=place, said=said, note=note, least=100.0,
                      mend="If it is CO2 all the same, say --unit lb/MWh.")
    return None


def _britain(header: Sequence[str], keys: Sequence[str]) -> Export | None:
    actual, forecast = ([index for index, key in enumerate(keys) if form.match(key)] for form in (_ACTUAL, _FORECAST))
    found = actual or forecast
    others = [key for index, key in enumerate(keys) if index not in (*actual, *forecast) and key not in ("", "index", "from", "to", "datetime")]
    if len(found) == 1 and not [key for key in others if not key.startswith(("datetime", "time", "date"))] and (actual or "index" in keys):
        which = "actual" if actual else "forecast"
        return Export("carbonintensity.org.uk", tuple(found), "g/kWh", site="GB",
                      note=f"Great Britain's file (carbonintensity.org.uk): the {which} intensity, in g/kWh.")
    if "carbon_intensity" in keys and set(keys) >= _FUELS:
        note = "Great Britain's generation mix: its carbon intensity, in g/kWh."
        return Export("NESO", (keys.index("carbon_intensity"),), "g/kWh", site="GB", note=note)
    regions = [index for index, title in enumerate(header) if title.strip().lower() in _REGIONS]
    if len(regions) > 1 and len(regions) == len(header) - 1:
        return Export("carbonintensity.org.uk", tuple(regions), "g/kWh", note="Great Britain's regions (carbonintensity.org.uk), in g/kWh.")
    return None


def _maps(keys: Sequence[str]) -> Export | None:
    figures = [index for index, key in enumerate(keys) if key.startswith(("carbonintensity", "carbon_intensity"))]
    if not figures or not _MAPS & set(keys):
        return None
    cycle = [index for index in figures if re.search(r"life_?cycle|lca", keys[index])]
    note = "Of the columns of intensity the life-cycle one was read." if len(cycle) == 1 < len(figures) else ""
    return Export("Electricity Maps", tuple(cycle if len(cycle) == 1 else figures), "g/kWh", note=note)


def rate(word: str) -> str | None:
    """average or marginal for what WattTime calls a signal; None for one that is no rate of CO2."""
    return _RATES.get(word.strip().lower())


def no_site(title: str, key: str) -> bool:
    """Whether a column's name is that of a quantity, and so of no site. Two capitals are a country (AT, ID, NO), but for MW and GW."""
    if re.fullmatch(r"[A-Z]{2}", title.strip()) and title.strip() not in ("MW", "GW"):
        return False
    words = [word for word in re.split(r"[^a-z]+", key) if word]
    return bool(_OTHER.search(title)) or bool(words) and all(word in _NO_SITE for word in words)
