"""What one server allows: sizes, times, numbers. Everything that a stranger can make large is in this list."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fourfold.errors import InputError

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h)?")
_SECONDS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class ServingLimits:
    """body: bytes of a request's body; rows: inputs of one request; queue: rows that wait while every worker is at work.

    deadline: seconds in which a row should be answered: what batches are gathered by. timeout: seconds after which a request is given up (504), and
    in which its body must have come (408); idle: seconds that a connection may say nothing; drain: seconds that requests get to finish at the end.
    tokens: most new tokens of a generated text.
    """

    body: int = 1 << 20
    rows: int = 256
    queue: int = 2048
    deadline: float = 0.05
    timeout: float = 30.0
    idle: float = 15.0
    drain: float = 30.0
    tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("body", "rows", "queue", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"The limit {name} is {getattr(self, name)}.", "Give at least 1.")
        for name in ("deadline", "timeout", "idle", "drain"):
            if not 0 < getattr(self, name) <= 86_400:
                raise InputError(f"The limit {name} is {getattr(self, name):g} s.", "Give more than 0, at most a day: 50ms, 30s, 2min.")
        if self.deadline > self.timeout:
            raise InputError(f"The deadline of {self.deadline:g} s lies after the timeout of {self.timeout:g} s.",
                             "Give a shorter --deadline or a longer --timeout.")


def seconds_of(text: str, option: str) -> float:
    """Seconds of "50ms", "2s", "1min" or a bare number of seconds. Raises InputError naming the option."""
    found = _TIME.fullmatch(text.strip())
    if not found:
        raise InputError(f"{option} {text!r} is no time.", f"Write {option} 50ms, 2s or 1min.")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def bytes_of(text: str, option: str) -> int:
    """Bytes of "256MiB", "1GB", "0" or a bare number. Raises InputError naming the option."""
    found = _BYTES.fullmatch(text.strip())
    if not found:
        raise InputError(f"{option} {text!r} is no size.", f"Write {option} 256MiB, 1GB, or 0 for none.")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])
