"""Electricity Maps, version 3 of its API: average intensity of consumption, flow-traced, life-cycle factors. Needs ELECTRICITYMAPS_TOKEN.

Header `auth-token`; GET carbon-intensity/latest, /past-range (10 days at most when hourly) and /forecast, by `zone` or `lat` and `lon`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Unpack, final

from fourfold.carbon.hourly import ESTIMATED, FORECAST, Hours
from fourfold.carbon.live._http import Client, ClientOptions
from fourfold.carbon.live._provider import LATEST, SOON, Provider, Reading, entries, field, moment, number, spans
from fourfold.errors import InputError
from fourfold.site import Site

_HORIZONS = (6, 24, 48, 72)                                            # hours; which of them a token may ask for is its plan's


@final
class ElectricityMaps(Provider):
    name = "electricitymaps"
    title = "Electricity Maps"
    base = "https://api.electricitymaps.com/v3"
    needs = ("ELECTRICITYMAPS_TOKEN",)

    def __init__(self, environment: Mapping[str, str], base: str | None = None, **options: Unpack[ClientOptions]) -> None:
        token = environment.get("ELECTRICITYMAPS_TOKEN", "")
        if not token and options.get("online", True):
            raise InputError("Electricity Maps needs a token.", "Set the environment variable ELECTRICITYMAPS_TOKEN.")
        mend = "Check ELECTRICITYMAPS_TOKEN and its plan."
        self.client = Client(self.name, base or self.base, lambda: {"auth-token": token}, (token,), mend, **options)

    def zone(self, site: Site) -> str:
        if site.kind == "country":
            return site.id
        named = [alias.upper() for alias in site.aliases if alias.startswith("us-")]   # the balancing areas carry this service's names
        if named:
            return named[0]
        if site.latitude is None or site.longitude is None:
            raise InputError(f"Electricity Maps has no zone known here for {site.title}.", "Give its own zone, such as DE or US-CAL-CISO.")
        return f"{site.latitude},{site.longitude}"

    def latest(self, zone: str) -> Hours:
        reply = self.client.get("carbon-intensity/latest", _place(zone), ttl=LATEST)
        return self._hours(zone, [reply], [_reading(reply.document)], "average", old=True, notes=_basis([reply.document]))

    def history(self, zone: str, start: datetime, end: datetime) -> Hours:
        replies = []
        for first, last in spans(start, end, 10):
            asked = {**_place(zone), "start": f"{first:%Y-%m-%dT%H:%M:%SZ}", "end": f"{last:%Y-%m-%dT%H:%M:%SZ}", "temporalGranularity": "hourly"}
            replies.append(self.client.get("carbon-intensity/past-range", asked, ttl=self._ttl(last)))
        rows = [row for reply in replies for row in entries(reply.document, "data")]
        return self._hours(zone, replies, [_reading(row) for row in rows], "average", start=start, end=end, step=3600, notes=_basis(rows))

    def day(self, zone: str) -> Hours:
        """The last 24 hours (carbon-intensity/history), which free tokens may ask for."""
        reply = self.client.get("carbon-intensity/history", _place(zone), ttl=SOON)
        rows = _rows(reply.document, "history")
        return self._hours(zone, [reply], [_reading(row) for row in rows], "average", step=3600, old=True, notes=_basis(rows))

    def forecast(self, zone: str, horizon: int) -> Hours:
        asked = next((hours for hours in _HORIZONS if hours >= horizon), _HORIZONS[-1])
        reply = self.client.get("carbon-intensity/forecast", {**_place(zone), "horizonHours": str(asked)}, ttl=SOON)
        now = self._now()
        readings = [_reading(row, FORECAST) for row in _rows(reply.document, "forecast")]
        return self._hours(zone, [reply], readings, "average", start=now, end=now + timedelta(hours=horizon), step=3600)


def _place(zone: str) -> dict[str, str]:
    latitude, _, longitude = zone.partition(",")
    return {"lat": latitude, "lon": longitude} if longitude else {"zone": zone}


def _reading(row: Any, mark: int = 0) -> Reading:
    value = number(field(row, "carbonIntensity"))
    return Reading(moment(field(row, "datetime")), value, mark | (ESTIMATED if row.get("isEstimated") else 0))


def _rows(document: object, key: str) -> list[Mapping[str, object]]:
    """The list at `key`, which later versions of the service call `data`."""
    return entries(document, "data" if isinstance(document, Mapping) and key not in document and "data" in document else key)


def _basis(rows: list[Mapping[str, object]]) -> list[str]:
    estimated = sum(bool(row.get("isEstimated")) for row in rows)
    kinds = sorted({str(row["emissionFactorType"]) for row in rows if row.get("emissionFactorType")})
    notes = [f"Emission factors: {', '.join(kinds)}."] if kinds else []
    return [*notes, f"{estimated} of {len(rows)} hours are the service's own estimates."] if estimated else notes
