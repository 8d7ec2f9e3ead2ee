"""Carbon intensity as services tell it now: off unless asked for, cached, patient, and with something to fall back on.

    hours = live.hours("GB", "forecast", horizon=24, online=True)

Tokens come from the environment (ELECTRICITYMAPS_TOKEN; WATTTIME_USER and WATTTIME_PASSWORD, or WATTTIME_TOKEN) and are never stored or shown. When a
service does not answer, its last answer stands in; without one, the annual table: both are marked and told in `notes`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Unpack

import numpy as np

from fourfold.carbon.hourly import ANNUAL, FORECAST, Hours
from fourfold.carbon.live._http import ClientLimits, folder
from fourfold.carbon.live._provider import Provider
from fourfold.carbon.live.carbonintensity import CarbonIntensity
from fourfold.carbon.live.electricitymaps import ElectricityMaps
from fourfold.carbon.live.watttime import WattTime
from fourfold.errors import InputError, Missing
from fourfold.site import Site
from fourfold.site import site as located

PROVIDERS: dict[str, type[Provider]] = {kind.name: kind for kind in (CarbonIntensity, ElectricityMaps, WattTime)}
KINDS = ("latest", "history", "forecast")
_YEAR = 8784                                                           # hours that may be asked for at once

__all__ = ["KINDS", "PROVIDERS", "CarbonIntensity", "ElectricityMaps", "Provider", "WattTime", "hours", "provider"]


def provider(name: str | None = None, place: Site | None = None, *, environment: Mapping[str, str] | None = None, base: str | None = None,
             signal: str | None = None, online: bool = False, cache: Path | None | str = "default", **options: Unpack[ClientLimits]) -> Provider:
    """The service called `name`, or the first that serves `place` and has its token in the environment.

    `base` is another address to speak to, `cache` a folder or None, `options` go to the client (timeout, tries, patience). With `online` false it
    only answers from its cache. Raises InputError for an unknown name, a missing token, or a signal that the service does not have.
    """
    known = os.environ if environment is None else environment
    chosen = name or _chosen(place, known, signal)
    if chosen not in PROVIDERS:
        raise InputError(f"There is no provider called {chosen!r}.", f"There are: {', '.join(PROVIDERS)}.")
    kind = PROVIDERS[chosen]
    if signal and signal not in kind.signals:
        raise InputError(f"{kind.title} has no {signal} intensity.", f"It has: {', '.join(kind.signals)}.")
    named = {"signal": signal} if kind is WattTime and signal else {}
    where = folder() if cache == "default" else cache and Path(cache)
    return kind(known, base, online=online, cache=where, **named, **options)   # type: ignore[call-arg]


def hours(place: str | Site, kind: str = "latest", *, start: datetime | None = None, end: datetime | None = None, horizon: int = 24,
          service: str | Provider | None = None, zone: str | None = None, signal: str | None = None, online: bool = False, fallback: bool = True,
          **options: Unpack[ClientLimits]) -> Hours:
    """Hours of one place: the latest, the history of [start, end), or a forecast of `horizon` hours.

    `service` names the provider (one is chosen otherwise), `zone` its own name for the place. The network is used only with `online`. With
    `fallback`, an outage ends in the provider's last answer, else in the annual table, both marked (STALE, ANNUAL) and told; a refusal never does.
    Raises InputError for what cannot be asked, and Missing where nothing stands in.
    """
    site = located(place)
    if kind not in KINDS:
        raise InputError(f"There is no kind of hours called {kind!r}.", f"Use {', '.join(KINDS)}.")
    span = _span(kind, start, end, horizon, options.get("clock", time.time))
    made = service if isinstance(service, Provider) else provider(service, site, signal=signal, online=online, **options)
    try:
        where = zone or made.zone(site)
        found = _asked(made, kind, where, span, horizon)
        return replace(found, names=(site.id,), source=f"{found.source}, {where}")
    except Missing as error:
        wanted = signal or made.signals[0]
        if not fallback or wanted != "average":
            raise
        return _annual(site, kind, span, f"{made.title}: {error.message.rstrip('.')}. The annual average of {site.grid} stands in for every hour.")


def _asked(made: Provider, kind: str, where: str, span: tuple[datetime, datetime], horizon: int) -> Hours:
    if kind == "latest":
        return made.latest(where)
    return made.history(where, *span) if kind == "history" else made.forecast(where, horizon)


def _chosen(place: Site | None, environment: Mapping[str, str], signal: str | None) -> str:
    local = place is None or place.country == "GB"
    ready = [name for name, kind in PROVIDERS.items() if kind.ready(environment) and (not signal or signal in kind.signals)]
    found = next((name for name in ready if name != CarbonIntensity.name or local), None)
    if found is None:
        raise InputError(f"No service is set up for {place.title if place else 'this'}{f' with {signal} intensity' if signal else ''}.",
                         "Set ELECTRICITYMAPS_TOKEN, or WATTTIME_USER and WATTTIME_PASSWORD.")
    return found


def _span(kind: str, start: datetime | None, end: datetime | None, horizon: int, clock: Callable[[], float]) -> tuple[datetime, datetime]:
    """Whole hours [first, last) that are asked for. Raises InputError for an empty, naive or over-long span."""
    now = datetime.fromtimestamp(clock(), UTC).replace(minute=0, second=0, microsecond=0)
    if kind != "history":
        if not isinstance(horizon, int) or not 1 <= horizon <= 72:
            raise InputError(f"A forecast of {horizon!r} hours cannot be asked for.", "Give 1 to 72.")
        return now, now + timedelta(hours=1 if kind == "latest" else horizon)
    if start is None or end is None or start.tzinfo is None or end.tzinfo is None:
        raise InputError("A history needs a start and an end, both with a time zone.", "Example: 2026-05-01T00:00Z")
    first, last = (edge.astimezone(UTC).replace(minute=0, second=0, microsecond=0) for edge in (start, end))
    last += timedelta(hours=1) if last < end else timedelta()
    if last <= first or last - first > timedelta(hours=_YEAR):
        raise InputError(f"A history from {start.isoformat()} to {end.isoformat()} cannot be asked for.",
                         "Give a start before the end, at most a year before.")
    return first, last


def _annual(site: Site, kind: str, span: tuple[datetime, datetime], note: str) -> Hours:
    count = round((span[1] - span[0]).total_seconds() / 3600)
    values = np.full((1, count), site.intensity.value)
    marks = np.full((1, count), ANNUAL | (FORECAST if kind == "forecast" else 0), np.uint8)
    return Hours((site.id,), span[0], values, "average", f"annual table: {site.intensity.source}", marks, (note,))
