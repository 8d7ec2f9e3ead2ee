"""Times as files and people write them, as aware times in UTC."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from fourfold.errors import InputError

HOUR = 3600


def zoned(name: str) -> tzinfo:
    words = name.strip()
    if words.upper() in ("UTC", "Z", "GMT"):
        return UTC
    offset = re.fullmatch(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})?", words)
    if offset:
        return timezone((1 if offset[1] == "+" else -1) * timedelta(hours=int(offset[2]), minutes=int(offset[3] or 0)))
    try:
        return ZoneInfo(words)
    except (KeyError, ValueError, OSError):
        raise InputError(f"There is no time zone called {name!r}.", "Use an IANA name such as Europe/Berlin, UTC, or an offset: +01:00.") from None


def epoch(moment: datetime) -> int:
    return math.floor(moment.timestamp())


def aware(when: datetime | str) -> datetime:
    """An aware time in UTC. A date alone is its midnight in UTC. Raises InputError for a time of day without a zone."""
    moment: datetime
    if isinstance(when, datetime):
        moment = when
    else:
        try:
            moment = datetime.fromisoformat(re.sub(r"Z$", "+00:00", when.strip()))
        except (ValueError, AttributeError):
            raise InputError(f"{when!r} is not a time.", "Write 2022-05-01T13:00Z.") from None
        if len(when.strip()) == len("2022-05-01"):
            moment = moment.replace(tzinfo=UTC)
    if moment.tzinfo is None:
        raise InputError(f"{when} has no time zone.", "Write 2022-05-01T13:00Z, or with an offset.")
    return moment.astimezone(UTC)
