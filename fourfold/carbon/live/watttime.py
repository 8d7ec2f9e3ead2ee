"""WattTime, version 3 of its API: marginal operating emissions (co2_moer), or average ones (co2_aoer). Needs WATTTIME_USER and WATTTIME_PASSWORD, or
WATTTIME_TOKEN.

GET /login with a basic Authorization header gives a token good for 30 minutes; then GET /v3/forecast, /v3/historical (30 days at once),
/v3/signal-index and /v3/region-from-loc with `Authorization: Bearer`. Values come in lbs_co2_per_mwh and leave in g/kWh. The signal index is a
percentile of the month's forecast, not an intensity, and is never taken for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Unpack, final

from fourfold.carbon.hourly import FORECAST, Hours
from fourfold.carbon.live._http import Client, ClientOptions, Reply, basic
from fourfold.carbon.live._provider import LATEST, SETTLED, SOON, Provider, Reading, entries, field, moment, number, spans
from fourfold.errors import InputError, Missing
from fourfold.site import Site
from fourfold.units.parse import size_of

_TYPES = {"marginal": "co2_moer", "average": "co2_aoer"}
_TOKEN = 25 * 60.0                                                     # seconds a login is used for; it is good for 30 minutes


@final
class WattTime(Provider):
    name = "watttime"
    title = "WattTime"
    base = "https://api.watttime.org"
    needs = ("WATTTIME_USER", "WATTTIME_PASSWORD")
    signals = ("marginal", "average")

    def __init__(self, environment: Mapping[str, str], base: str | None = None, signal: str = "marginal", **options: Unpack[ClientOptions]) -> None:
        if signal not in _TYPES:
            raise InputError(f"{signal!r} is not a carbon signal.", "Use marginal or average.")
        user, password, token = (environment.get(name, "") for name in ("WATTTIME_USER", "WATTTIME_PASSWORD", "WATTTIME_TOKEN"))
        if not (token or user and password) and options.get("online", True):
            raise InputError("WattTime needs a login.", "Set the environment variables WATTTIME_USER and WATTTIME_PASSWORD, or WATTTIME_TOKEN.")
        self.signal = signal
        self._login = basic(user, password) if user and password else ""
        self._token, self._until = token, float("inf") if token else 0.0
        secrets = (token, password, self._login, self._login.removeprefix("Basic "))
        mend = "Check WATTTIME_USER and WATTTIME_PASSWORD, and the plan."
        self.client = Client(self.name, base or self.base, self._bearer, secrets, mend, **options)

    @classmethod
    def ready(cls, environment: Mapping[str, str]) -> bool:
        return bool(environment.get("WATTTIME_TOKEN")) or super().ready(environment)

    def zone(self, site: Site) -> str:
        if site.latitude is None or site.longitude is None:
            raise InputError(f"WattTime has no region known here for {site.title}.", "Give its own region, such as CAISO_NORTH.")
        return self.region(site.latitude, site.longitude)

    def region(self, latitude: float, longitude: float) -> str:
        """The service's region at a place (/v3/region-from-loc), latitude and longitude in degrees."""
        asked = {"latitude": str(latitude), "longitude": str(longitude), "signal_type": _TYPES[self.signal]}
        return str(field(self._get("v3/region-from-loc", asked, SETTLED).document, "region"))

    def index(self, zone: str) -> float:
        """Now as a percentile, 0 (cleanest) to 100, of the service's recent forecast (/v3/signal-index). Not an intensity."""
        document = self._get("v3/signal-index", {"region": zone, "signal_type": _TYPES[self.signal]}, LATEST).document
        rows, units = entries(document, "data"), field(document, "meta", "units")
        if units != "percentile" or not rows:
            raise Missing(f"WattTime's signal index came in {units!r}, not as a percentile", "")
        return number(field(rows[0], "value"))

    def latest(self, zone: str) -> Hours:
        reply = self._get("v3/forecast", {"region": zone, "signal_type": _TYPES[self.signal], "horizon_hours": "0"}, LATEST)
        readings, step = _readings(reply, 0)
        return self._hours(zone, [reply], readings[:1], self.signal, step=3600, old=True, notes=_model(reply))

    def history(self, zone: str, start: datetime, end: datetime) -> Hours:
        replies = []
        for first, last in spans(start, end, 30):
            until = last - timedelta(minutes=5)                        # the service includes the end
            asked = {"region": zone, "signal_type": _TYPES[self.signal], "start": f"{first:%Y-%m-%dT%H:%MZ}", "end": f"{until:%Y-%m-%dT%H:%MZ}"}
            replies.append(self._get("v3/historical", asked, self._ttl(last)))
        parts = [_readings(reply, 0) for reply in replies]
        readings = [reading for part, _ in parts for reading in part]
        step = parts[0][1] if parts else None
        return self._hours(zone, replies, readings, self.signal, start=start, end=end, step=step, notes=_model(*replies))

    def forecast(self, zone: str, horizon: int) -> Hours:
        if horizon > 72:
            raise InputError(f"WattTime forecasts up to 72 hours, not {horizon}.", "Ask for 72 at most.")
        reply = self._get("v3/forecast", {"region": zone, "signal_type": _TYPES[self.signal], "horizon_hours": str(horizon)}, SOON)
        readings, step = _readings(reply, FORECAST)
        now = self._now()
        return self._hours(zone, [reply], readings, self.signal, start=now, end=now + timedelta(hours=horizon), step=step, notes=_model(reply))

    def _get(self, path: str, params: Mapping[str, str], ttl: float) -> Reply:
        """With a bearer token, fetched anew when it is old or was refused."""
        again = bool(self._login)
        while True:
            try:
                return self.client.get(path, params, ttl=ttl)
            except InputError as error:
                if not (again and "(401)" in error.message):
                    raise
                again, self._until = False, 0.0

    def _bearer(self) -> dict[str, str]:
        """The header with the token, logging in where there is none or it is old. It is kept in memory only."""
        if self.client.clock() >= self._until and self._login:
            login = replace(self.client, sign=lambda: {"Authorization": self._login}, cache=None)
            self._token, self._until = str(field(login.get("login", ttl=0.0).document, "token")), self.client.clock() + _TOKEN
            self.client.secrets = (*self.client.secrets, self._token)
        return {"Authorization": f"Bearer {self._token}"}


def _readings(reply: Reply, mark: int) -> tuple[list[Reading], int | None]:
    """Readings in g/kWh and their step in seconds, where the service says it."""
    units = field(reply.document, "meta", "units")
    scale = size_of(units, "carbon intensity") if isinstance(units, str) else None
    if scale is None:
        raise Missing(f"WattTime's values came in {units!r}, which is no intensity known here", "")
    step = reply.document["meta"].get("data_point_period_seconds")
    rows = [Reading(moment(field(row, "point_time")), number(field(row, "value")) * scale, mark) for row in entries(reply.document, "data")]
    return rows, step if isinstance(step, int) and 0 < step <= 3600 and 3600 % step == 0 else None


def _model(*replies: Reply) -> list[str]:
    dates = sorted({str(model["date"]) for reply in replies if isinstance(model := reply.document["meta"].get("model"), Mapping) and "date" in model})
    return [f"Model of {', '.join(dates)}."] if dates else []
