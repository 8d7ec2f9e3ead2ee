"""Asking a service over HTTPS (httpx, extra `live`): a cache on disk, time-outs, back-off, and secrets that are never shown or stored.

Back-off doubles from one second with full jitter (Brooker, "Exponential Backoff And Jitter", 2015) and honours Retry-After (RFC 9110, 10.2.3).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import os
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from fourfold.errors import InputError, Missing, MissingExtra
from fourfold.folder import write

if TYPE_CHECKING:
    import httpx

_PASSING = (408, 425, 429, 500, 502, 503, 504)                         # worth another try
_MOST = 64 << 20                                                       # bytes of an answer


class ClientLimits(TypedDict, total=False):
    """What callers may say of how a `Client` asks."""

    timeout: float
    tries: int
    patience: float
    wait: Callable[[float], None]
    clock: Callable[[], float]


class ClientOptions(ClientLimits, total=False):
    """The same, and where it answers from."""

    online: bool
    cache: Path | None


@dataclass(frozen=True)
class Reply:
    """An answer: the JSON document, when it was fetched, and why it is not fresh ("" if it is)."""

    document: Any
    fetched: datetime
    stale: str = ""


@dataclass
class Client:
    """One service. `base` is its address, `sign` makes the headers that go with a request, `secrets` are struck out of every message.

    `timeout` bounds one answer in seconds, `tries` the attempts, `patience` the waiting between them; `cache` is a folder, None for none. With
    `online` false nothing is sent and only the cache answers. `wait` and `clock` are for tests. Raises InputError for an address that would send a
    secret in the clear.
    """

    name: str
    base: str
    sign: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)   # called only when something is sent: the cache needs no login
    secrets: tuple[str, ...] = field(default=(), repr=False)
    mend: str = ""                                                     # what to do where the service refuses the credentials
    online: bool = True
    cache: Path | None = None
    timeout: float = 10.0
    tries: int = 4
    patience: float = 60.0
    wait: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise InputError(f"{scrubbed(self.base, self.secrets)!r} is not the address of a service.", "Expected https://host/path.")
        if self.secrets and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise InputError(f"{parts.hostname} would get your credentials in the clear.", "Use https.")

    def get(self, path: str, params: Mapping[str, str] | None = None, *, ttl: float) -> Reply:
        """The JSON document at `path`: from the cache while it is younger than `ttl` seconds, else asked for, else from the cache however old.

        Raises InputError where the service refuses the request (400, 401, 403, 404, 422), and Missing where neither it nor the cache answers.
        """
        query = urllib.parse.urlencode(sorted((params or {}).items()))
        url = f"{self.base.rstrip('/')}/{path.lstrip('/')}" + (f"?{query}" if query else "")
        held = self._held(url)
        if held and self.clock() - held.fetched.timestamp() < ttl:
            return held
        if not self.online:
            why = "the network was not asked for"
        else:
            try:
                return self._keep(url, self._ask(url))
            except Missing as error:
                why = error.message
        if held is None:
            raise Missing(f"{self.name}: {why}, and nothing is cached.", "Try again later, or use a file or the annual table.")
        age = (self.clock() - held.fetched.timestamp()) / 3600
        return Reply(held.document, held.fetched, f"{why}; the answer of {age:.1f} h ago is used")

    def _ask(self, url: str) -> object:
        """Raises InputError for a refusal, Missing when the tries are used up."""
        waited, why = 0.0, ""
        for attempt in range(self.tries):
            try:
                return self._once(url)
            except _Passing as error:
                why, least = str(error), error.wait
            delay = max(least, random.uniform(0.0, min(30.0, 2.0**attempt)))
            if attempt + 1 == self.tries or waited + delay > self.patience:
                break
            self.wait(delay)
            waited += delay
        raise Missing(f"{self.name} did not answer ({why})", "")

    def _once(self, url: str) -> object:
        try:
            import httpx
        except ImportError:
            raise MissingExtra("Asking a live service needs httpx.", "Install it: pip install 'fourfold[live]'") from None
        headers = {"Accept": "application/json", "User-Agent": "fourfold", **self.sign()}
        try:                                                           # no redirection is followed: the credentials would go with it
            with httpx.stream("GET", url, headers=headers, timeout=self.timeout, follow_redirects=False) as answer:
                if answer.is_success:
                    body = _read(answer, self.timeout)
                else:
                    body = b""
                    with contextlib.suppress(httpx.HTTPError, _Passing):
                        body = _read(answer, self.timeout)
                    raise self._refusal(answer.status_code, body, answer.headers.get("Retry-After"))
        except httpx.TimeoutException:
            raise _Passing(f"no answer within {self.timeout:g} s") from None
        except httpx.ConnectError as error:
            raise _Passing(scrubbed(str(error), self.secrets)) from None
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Passing(f"the connection broke: {type(error).__name__}") from None
        try:
            return json.loads(body)
        except ValueError:
            raise _Passing("the answer is not JSON") from None

    def _refusal(self, code: int, body: bytes, after: str | None) -> Exception:
        words = scrubbed(_words(body), self.secrets)
        said = f": {words}" if words else ""
        if code in _PASSING:
            return _Passing(f"{code} {HTTPStatus(code).phrase}", _seconds(after, self.clock()))
        if code in (401, 403):
            return InputError(f"{self.name} refuses the credentials ({code}){said}.", self.mend or "Check them.")
        if code == 404:
            return InputError(f"{self.name} has no data for that (404){said}.", "Check the zone and the time.")
        if 300 <= code < 400:
            return Missing(f"{self.name} answered with a redirection ({code}), which is not followed", "")
        return InputError(f"{self.name} does not accept the request ({code}){said}.", "Check the zone and the time.")

    # the cache

    def _file(self, url: str) -> Path | None:
        return self.cache and self.cache / f"{self.name}-{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"

    def _held(self, url: str) -> Reply | None:
        file = self._file(url)
        try:
            data = json.loads(file.read_text(encoding="utf-8")) if file else None
            return Reply(data["document"], datetime.fromtimestamp(float(data["fetched"]), UTC)) if data and data["url"] == url else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None                                                # absent or damaged: asked for again

    def _keep(self, url: str, document: object) -> Reply:
        """Put an answer into the cache, whole or not at all; a full or read-only disk costs the cache, not the answer."""
        reply = Reply(document, datetime.fromtimestamp(self.clock(), UTC))
        file = self._file(url)
        if file:
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                write(file, json.dumps({"url": url, "fetched": reply.fetched.timestamp(), "document": document}))
        return reply


class _Passing(Exception):
    """A failure that another try may mend; `wait` is what Retry-After asks for, in seconds."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def scrubbed(text: str, secrets: tuple[str, ...]) -> str:
    """`text` with every secret, plain, quoted or in base64, struck out."""
    for secret in filter(None, secrets):
        for form in {secret, urllib.parse.quote(secret), urllib.parse.quote_plus(secret), base64.b64encode(secret.encode()).decode()}:
            text = text.replace(form, "***")
    return text


def basic(user: str, password: str) -> str:
    """The value of an Authorization header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def folder() -> Path:
    """Where answers are kept: FOURFOLD_CACHE, else fourfold/ under XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FOURFOLD_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fourfold" / "live"


def _read(answer: httpx.Response, timeout: float) -> bytes:
    """The whole body, within `timeout` seconds even where it only trickles in."""
    until, parts, size = time.monotonic() + timeout, [], 0
    for part in answer.iter_bytes():
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:
            raise _Passing(f"no whole answer within {timeout:g} s")
        if size > _MOST:
            raise _Passing("the answer is too large")
    return b"".join(parts)


def _seconds(after: str | None, now: float) -> float:
    """Retry-After: seconds or a date; 0 where absent or unreadable."""
    if not after:
        return 0.0
    try:
        wait = float(after)
    except ValueError:
        try:
            wait = parsedate_to_datetime(after).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, wait) if math.isfinite(wait) else 0.0


def _words(body: bytes) -> str:
    """What the service says of an error: `message`, `error` or `detail` of its JSON, one line of up to 160 characters."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    for _ in range(3):
        if isinstance(found, dict):
            found = next((found[key] for key in ("message", "error", "detail", "error_description") if found.get(key)), "")
    return " ".join(str(found).split())[:160].rstrip(".") if isinstance(found, str) else ""
