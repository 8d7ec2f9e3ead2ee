"""What every provider owes, and how its readings become hours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from fourfold.carbon.hourly import STALE, Hours, from_readings
from fourfold.carbon.live._http import Client, Reply
from fourfold.errors import InputError, Missing
from fourfold.site import Site

LATEST, SOON, SETTLED = 300.0, 900.0, 30 * 86400.0                     # how long an answer is good, in seconds: now, forecast or today, past days
OLD = 3                                                                # hours after which the newest reading of a service is called stale


@dataclass(frozen=True)
class Reading:
    """One reading: the start of its period, g/kWh (NaN where the service has none), and its marks."""

    moment: datetime
    value: float
    mark: int = 0


class Provider:
    """A service with `latest`, `history` and `forecast` of a zone, each giving Hours in gCO2e/kWh with `signal`. One `Client` behind it."""

    name: ClassVar[str]
    title: ClassVar[str]
    base: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()                              # environment variables
    signals: ClassVar[tuple[str, ...]] = ("average",)
    client: Client

    @classmethod
    def ready(cls, environment: Mapping[str, str]) -> bool:
        """Whether the environment holds the credentials."""
        return all(environment.get(name) for name in cls.needs)

    def zone(self, site: Site) -> str:
        """The service's name for a site. Raises InputError where it has none that is known here."""
        raise NotImplementedError

    def latest(self, zone: str) -> Hours:
        """The newest hour."""
        raise NotImplementedError

    def history(self, zone: str, start: datetime, end: datetime) -> Hours:
        """The hours of [start, end), NaN where the service has none."""
        raise NotImplementedError

    def forecast(self, zone: str, horizon: int) -> Hours:
        """The hours from now on, up to `horizon` of them."""
        raise NotImplementedError

    # shared

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.client.clock(), UTC)

    def _ttl(self, end: datetime) -> float:
        return SETTLED if end < self._now() - timedelta(days=2) else SOON

    def _hours(self, zone: str, replies: Iterable[Reply], readings: list[Reading], signal: str, *, start: datetime | None = None,
               end: datetime | None = None, step: int | None = None, notes: Iterable[str] = (), old: bool = False) -> Hours:
        """Hours of `readings`; those that came from an old answer, or (with `old`) are older than OLD hours, are marked stale."""
        said = [*dict.fromkeys([*(reply.stale for reply in replies if reply.stale), *notes])]
        stale = any(reply.stale for reply in replies)
        known = [reading.moment for reading in readings if not math.isnan(reading.value)]
        if not known:
            raise Missing(f"{self.title} has no values for {zone}", "")
        age = (self._now() - max(known)).total_seconds() / 3600
        if old and age > OLD:
            stale = True
            said.append(f"The newest reading of {self.title} is {age:.1f} h old.")
        marks = [reading.mark | (STALE if stale else 0) for reading in readings]
        seconds, values = [reading.moment.timestamp() for reading in readings], [reading.value for reading in readings]
        try:
            return from_readings(zone, seconds, values, signal=signal, source=self.title, marks=marks, start=start, end=end, step=step, notes=said)
        except InputError as error:                                    # what the service sent cannot be: not the user's to mend
            raise Missing(f"{self.title} sent hours that cannot be used: {error.message}", "") from None


def field(data: object, *keys: str) -> object:
    """data[key][key]…; raises Missing where the answer has another shape than documented."""
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            raise Missing(f"the answer lacks {'.'.join(keys)}, which its documentation promises", "")
        data = data[key]
    return data


def entries(data: object, *keys: str) -> list[Mapping[str, object]]:
    """The list of objects at `keys`; raises Missing where it is something else."""
    found = field(data, *keys) if keys else data
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise Missing(f"the answer's {'.'.join(keys) or 'document'} is not the list that its documentation promises", "")
    return found


def moment(text: object) -> datetime:
    """An aware time of an answer, in UTC; one without a zone is UTC, as all three services document. Raises Missing for anything else."""
    try:
        made = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        raise Missing(f"the answer has {str(text)[:40]!r} for a time", "") from None
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).astimezone(UTC)


def number(value: object) -> float:
    """A finite number that is not negative, NaN for null. Raises Missing for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise Missing(f"the answer has {str(value)[:40]!r} for an intensity", "")
    return float(value)


def spans(start: datetime, end: datetime, days: int) -> list[tuple[datetime, datetime]]:
    """[start, end) in pieces of up to `days` days, the most that a service answers at once."""
    pieces = []
    while start < end:
        pieces.append((start, min(end, start + timedelta(days=days))))
        start = pieces[-1][1]
    return pieces
