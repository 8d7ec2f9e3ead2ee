"""The Carbon Intensity API of Great Britain's system operator (NESO): average intensity each half hour, outturn and forecast. No token; CC BY 4.0.

GET /intensity, /intensity/{from}/{to} (14 days at most) and /intensity/{from}/fw48h for the whole; /regional/regionid/{id},
/regional/intensity/{from}/{to}/regionid/{id} and …/fw48h/regionid/{id} for one of 17 regions (a postcode's outward half works alike), which have
forecasts only. An `actual` of null is not there yet: the forecast stands in, marked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Unpack, final

from fourfold.carbon.hourly import FORECAST, Hours
from fourfold.carbon.live._http import Client, ClientOptions
from fourfold.carbon.live._provider import LATEST, SOON, Provider, Reading, entries, field, moment, number, spans
from fourfold.errors import InputError, Missing
from fourfold.site import Site

_REGIONS = {
    "north scotland": 1, "south scotland": 2, "north west england": 3, "north east england": 4, "yorkshire": 5, "north wales": 6, "south wales": 7,
    "west midlands": 8, "east midlands": 9, "east england": 10, "south west england": 11, "south england": 12, "london": 13, "south east england": 14,
    "england": 15, "scotland": 16, "wales": 17,
}
_HALF = 1800                                                           # seconds of a period


@final
class CarbonIntensity(Provider):
    name = "carbonintensity"
    title = "Carbon Intensity API (Great Britain)"
    base = "https://api.carbonintensity.org.uk"

    def __init__(self, environment: Mapping[str, str], base: str | None = None, **options: Unpack[ClientOptions]) -> None:
        del environment                                                # it needs nothing from there
        self.client = Client(self.name, base or self.base, **options)

    def zone(self, site: Site) -> str:
        if site.country != "GB":
            raise InputError(f"The Carbon Intensity API knows Great Britain only, not {site.title}.", "Choose another provider.")
        return "london" if site.title == "London" else "GB"

    def latest(self, zone: str) -> Hours:
        reply = self.client.get(f"regional/{_where(zone)}" if _where(zone) else "intensity", ttl=LATEST)
        return self._hours(zone, [reply], _readings(reply.document)[-1:], "average", step=3600, old=True)

    def history(self, zone: str, start: datetime, end: datetime) -> Hours:
        path, tail = _path(zone), _tail(zone)
        replies = [self.client.get(f"{path}/{_text(first)}/{_text(last)}{tail}", ttl=self._ttl(last)) for first, last in spans(start, end, 14)]
        readings = {reading.moment: reading for reply in replies for reading in _readings(reply.document)}   # pieces share their edges
        missing = sum(reading.mark == FORECAST for reading in readings.values())
        notes = [f"{missing} of {len(readings)} half hours have no outturn; their forecast stands in."] if missing else []
        return self._hours(zone, replies, list(readings.values()), "average", start=start, end=end, step=_HALF, notes=notes)

    def forecast(self, zone: str, horizon: int) -> Hours:
        if horizon > 48:
            raise InputError(f"The Carbon Intensity API forecasts 48 hours, not {horizon}.", "Ask for 48 at most.")
        now = self._now().replace(second=0, microsecond=0)
        start = now.replace(minute=0)
        reply = self.client.get(f"{_path(zone)}/{_text(start)}/fw48h{_tail(zone)}", ttl=SOON)
        return self._hours(zone, [reply], _readings(reply.document, True), "average", start=start, end=start + timedelta(hours=horizon), step=_HALF)


def _where(zone: str) -> str:
    """"" for the whole, else regionid/N or postcode/X. Raises InputError for what is none of these."""
    word = zone.strip().lower()
    if word in ("gb", "national", "great britain", ""):
        return ""
    number = int(word) if word.isdigit() else _REGIONS.get(word)
    if number is not None and 1 <= number <= 17:
        return f"regionid/{number}"
    if re.fullmatch(r"[a-z]{1,2}\d[a-z\d]?", word):
        return f"postcode/{word.upper()}"
    known = ", ".join(_REGIONS)
    raise InputError(f"{zone!r} is no region of the Carbon Intensity API.", f"Use GB, 1 to 17, an outward postcode such as RG10, or {known}.")


def _path(zone: str) -> str:
    return "regional/intensity" if _where(zone) else "intensity"


def _tail(zone: str) -> str:
    return f"/{_where(zone)}" if _where(zone) else ""


def _text(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%MZ}"


def _readings(document: object, ahead: bool = False) -> list[Reading]:
    """Half hours of a national answer (data: list of periods) or a regional one (data: a region, or a list of one, that holds the periods)."""
    found = field(document, "data")
    if isinstance(found, list) and found and isinstance(found[0], Mapping) and "data" in found[0]:
        found = found[0]
    if isinstance(found, Mapping):
        found = field(found, "data")
    readings = []
    for row in entries(found):
        values = field(row, "intensity")
        actual, forecast = (number(values[name]) if isinstance(values, Mapping) and name in values else math.nan for name in ("actual", "forecast"))
        best, mark = (actual, 0) if not (ahead or math.isnan(actual)) else (forecast, FORECAST)
        readings.append(Reading(moment(field(row, "from")), best, mark))
    if not readings:
        raise Missing("the answer holds no half hours", "")
    return readings
