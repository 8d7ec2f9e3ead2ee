"""Live intensity against a local server that speaks the three documented APIs, with their errors, rate limits, stale and missing hours."""

import base64
import json
import math
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from fourfold.carbon import live
from fourfold.carbon.hourly import ANNUAL, ESTIMATED, FILLED, FORECAST, MISSING, PARTIAL, STALE
from fourfold.carbon.live._http import Client, scrubbed
from fourfold.errors import InputError, Missing
from fourfold.site import site

TOKEN, USER, PASSWORD = "em-token-1f8Kz/+=", "someone", "p4ss:w0rd/with+signs"
NOW = datetime(2026, 5, 10, 12, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S.000Z}"


def half(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}"


def level(moment: datetime) -> int:
    """The truth that every service below reports, g/kWh."""
    return 200 + 10 * moment.hour + moment.day


class Grid(ThreadingHTTPServer):
    """The services' side. `trouble` may answer a request in its stead; `seen` is what was asked, with headers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.seen: list[tuple[str, dict[str, list[str]], dict[str, str]]] = []
        self.trouble: Callable[[Answer, str], bool] = lambda answer, path: False
        self.missing: set[datetime] = set()                            # hours without a figure
        self.estimated: set[datetime] = set()
        self.newest = NOW
        self.logins = 0
        self.valid: set[str] = set()
        self.units = "lbs_co2_per_mwh"

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that hung up is what some tests are about
        pass

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, part: str) -> int:
        return sum(part in path for path, _, _ in self.seen)


class Answer(BaseHTTPRequestHandler):
    server: Grid
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        self.server.seen.append((self.path, query, {name.lower(): value for name, value in self.headers.items()}))
        if self.server.trouble(self, parts.path):
            return
        words = parts.path.strip("/").split("/")
        if words[0] == "em":
            self.maps("/".join(words[1:]), query)
        elif words[0] == "wt":
            self.watts("/".join(words[1:]), query)
        else:
            self.britain(words[1:])

    def say(self, document: Any, code: int = 200, **headers: str) -> None:
        self.raw(json.dumps(document).encode(), code, **headers)

    def raw(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    # Electricity Maps v3

    def maps(self, path: str, query: dict[str, list[str]]) -> None:
        if self.headers.get("auth-token") != TOKEN:
            return self.say({"status": "error", "message": f"Invalid auth-token: {self.headers.get('auth-token')}"}, 401)
        zone = query.get("zone", [""])[0]
        if zone not in ("DE", "US-CAL-CISO") and "lat" not in query:
            return self.say({"status": "error", "message": f"Zone '{zone}' does not exist."}, 404)

        def row(moment: datetime) -> dict[str, Any]:
            value = None if moment in self.server.missing else level(moment)
            return {"zone": zone, "carbonIntensity": value, "datetime": stamp(moment), "updatedAt": stamp(NOW), "createdAt": stamp(NOW),
                    "emissionFactorType": "lifecycle", "isEstimated": moment in self.server.estimated, "estimationMethod": None}

        newest = self.server.newest.replace(minute=0)
        if path == "carbon-intensity/latest":
            self.say(row(newest))
        elif path == "carbon-intensity/history":
            self.say({"zone": zone, "history": [row(newest - HOUR * back) for back in range(24)]})
        elif path == "carbon-intensity/past-range":
            start, end = (datetime.fromisoformat(query[key][0]) for key in ("start", "end"))
            if end - start > timedelta(days=10):
                return self.say({"status": "error", "message": "The maximum range is 10 days."}, 400)
            moments = [start + HOUR * index for index in range(int((end - start) / HOUR))]
            self.say({"zone": zone, "data": [row(moment) for moment in moments if moment not in self.server.missing]})
        elif path == "carbon-intensity/forecast":
            horizon = int(query.get("horizonHours", ["24"])[0])
            if horizon not in (6, 24, 48, 72):
                return self.say({"status": "error", "message": "horizonHours must be one of 6, 24, 48, 72"}, 400)
            now = NOW.replace(minute=0)
            points = [{"carbonIntensity": level(now + HOUR * index), "datetime": stamp(now + HOUR * index)} for index in range(horizon + 1)]
            self.say({"zone": zone, "forecast": points, "updatedAt": stamp(NOW)})
        else:
            self.say({"status": "error", "message": "Not found"}, 404)

    # WattTime v3

    def watts(self, path: str, query: dict[str, list[str]]) -> None:
        given = self.headers.get("Authorization", "")
        if path == "login":
            if given != "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode():
                return self.raw(b"Unauthorized", 403)
            self.server.logins += 1
            token = f"bearer-{self.server.logins}-secret"
            self.server.valid = {token}
            return self.say({"token": token})
        if given.removeprefix("Bearer ") not in self.server.valid:
            return self.say({"error": "invalid token"}, 401)
        if path == "v3/region-from-loc":
            return self.say({"region": "CAISO_NORTH", "region_full_name": "California ISO Northern", "signal_type": query["signal_type"][0]})
        region, kind = query["region"][0], query["signal_type"][0]
        if region != "CAISO_NORTH":
            return self.say({"error": "forbidden", "message": f"You do not have access to {region}"}, 403)
        meta = {"region": region, "signal_type": kind, "units": self.server.units, "data_point_period_seconds": 300, "warnings": [],
                "model": {"date": "2023-03-01"}, "generated_at": NOW.isoformat()}

        def point(moment: datetime) -> dict[str, Any]:
            grams = level(moment) * (0.9 if kind == "co2_aoer" else 1.0)
            return {"point_time": moment.isoformat(), "value": grams / 0.45359237}

        if path == "v3/signal-index":
            return self.say({"data": [{"point_time": NOW.isoformat(), "value": 37.0}], "meta": {**meta, "units": "percentile"}})
        if path == "v3/historical":
            start, end = (datetime.fromisoformat(query[key][0]) for key in ("start", "end"))
            if end - start > timedelta(days=32):
                return self.say({"error": "bad_request", "message": "time range too large"}, 400)
            count = int((end - start) / timedelta(minutes=5)) + 1
            moments = [start + timedelta(minutes=5 * index) for index in range(count)]
            return self.say({"data": [point(moment) for moment in moments if moment.replace(minute=0) not in self.server.missing], "meta": meta})
        count = int(query.get("horizon_hours", ["24"])[0]) * 12 + 1
        return self.say({"data": [point(NOW + timedelta(minutes=5 * index)) for index in range(count)], "meta": meta})

    # Carbon Intensity API

    def britain(self, words: list[str]) -> None:
        def row(start: datetime, actual: bool) -> dict[str, Any]:
            gone = start.replace(minute=0) in self.server.missing
            values: dict[str, Any] = {"forecast": None if gone and not actual else level(start) + 3, "index": "moderate"}
            if actual:
                values["actual"] = None if gone or start > self.server.newest - timedelta(minutes=30) else level(start)
            return {"from": half(start), "to": half(start + timedelta(minutes=30)), "intensity": values}

        regional = words[0] == "regional"
        try:
            rest = words[1:] if regional else words
            here = self.server.newest.replace(minute=self.server.newest.minute // 30 * 30)
            if regional and rest[0] == "regionid":
                return self.say({"data": [{"regionid": int(rest[1]), "shortname": "London", "data": [row(here, False)]}]})
            if rest == ["intensity"]:
                return self.say({"data": [row(here - timedelta(minutes=30), True)]})
            start = datetime.fromisoformat(rest[1].replace("Z", "+00:00"))
            end = start + timedelta(hours=48) if rest[2] == "fw48h" else datetime.fromisoformat(rest[2].replace("Z", "+00:00"))
        except (ValueError, IndexError):
            return self.say({"error": {"code": "400 Bad Request", "message": "Please enter a valid date in ISO8601 format"}}, 400)
        if end - start > timedelta(days=14):
            return self.say({"error": {"code": "400 Bad Request", "message": "The date range must be less than 14 days."}}, 400)
        first = start - timedelta(minutes=30)                          # the service begins with the half hour that ends at `from`
        rows = [row(first + timedelta(minutes=30 * index), not regional) for index in range(int((end - first) / timedelta(minutes=30)))]
        self.say({"data": {"regionid": 13, "shortname": "London", "data": rows} if regional else rows})


@pytest.fixture
def grid() -> Iterator[Grid]:
    server = Grid()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Watch:
    """A clock that stands at NOW until someone waits; `waits` is how long, each time."""

    def __init__(self) -> None:
        self.now, self.waits = NOW.timestamp(), []

    def time(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def ask(grid: Grid, watch: Watch, tmp_path: Path) -> Callable[..., live.Provider]:
    """A provider that speaks to the server above, with the right credentials unless told otherwise."""
    folders = {"electricitymaps": "em", "watttime": "wt", "carbonintensity": "gb"}

    def made(name: str, **options: Any) -> live.Provider:
        known = {"ELECTRICITYMAPS_TOKEN": TOKEN, "WATTTIME_USER": USER, "WATTTIME_PASSWORD": PASSWORD}
        options = {"environment": known, "base": f"{grid.address}/{folders[name]}", "online": True, "cache": tmp_path / "cache", "timeout": 30.0,
                   "wait": watch.wait, "clock": watch.time, **options}
        return live.provider(name, **options)

    return made


def truth(start: datetime, count: int) -> list[float]:
    return [float(level(start + HOUR * index)) for index in range(count)]


DAY = datetime(2026, 5, 1, tzinfo=UTC)

# ---- what the services say -----------------------------------------------------------------------------------------------------------------------


def test_electricity_maps(grid: Grid, ask) -> None:
    maps = ask("electricitymaps")
    now = maps.latest("DE")
    assert now.values.tolist() == [[level(NOW)]] and now.start == NOW.replace(minute=0) and now.signal == "average" and not now.marks.any()
    past = maps.history("DE", DAY, DAY + timedelta(days=25))
    np.testing.assert_array_equal(past.values[0], truth(DAY, 600))
    assert grid.asked("past-range") == 3, "ten days at once"
    soon = maps.forecast("US-CAL-CISO", 30)
    assert soon.values[0].tolist() == truth(NOW.replace(minute=0), 30) and (soon.marks & FORECAST).all()
    assert grid.seen[-1][1]["horizonHours"] == ["48"], "the smallest that the service has and that covers 30"
    day = maps.day("DE")
    assert day.values.shape == (1, 24) and any("lifecycle" in note for note in day.notes)
    assert all(headers.get("auth-token") == TOKEN and TOKEN not in path for path, _, headers in grid.seen)


def test_electricity_maps_gaps_and_estimates(grid: Grid, ask) -> None:
    grid.missing = {DAY + HOUR * index for index in (2, 3, 10, 11, 12, 13, 23)}
    grid.estimated = {DAY + HOUR * 5}
    past = ask("electricitymaps").history("DE", DAY, DAY + HOUR * 24)
    assert np.flatnonzero(np.isnan(past.values[0])).tolist() == [10, 11, 12, 13, 23], "two are filled, four and the end are not"
    assert (past.marks[0, [2, 3]] & FILLED).all() and (past.marks[0, [10, 23]] & MISSING).all() and past.marks[0, 5] == ESTIMATED
    assert any("1 of 17 hours are the service's own estimates" in note for note in past.notes)


def test_watttime(grid: Grid, ask) -> None:
    watts = ask("watttime")
    now = watts.latest("CAISO_NORTH")
    assert now.values[0, 0] == pytest.approx(level(NOW)) and now.signal == "marginal", "lb/MWh became g/kWh"
    past = watts.history("CAISO_NORTH", DAY, DAY + timedelta(days=40))
    np.testing.assert_allclose(past.values[0], truth(DAY, 960))
    assert grid.asked("v3/historical") == 2 and past.marks.any() == 0
    soon = watts.forecast("CAISO_NORTH", 24)
    assert soon.values[0, 0] == pytest.approx(level(NOW)) and soon.marks[0, 0] == FORECAST | PARTIAL and soon.values.shape == (1, 24)
    assert soon.values[0, 1:].tolist() == pytest.approx(truth(NOW.replace(minute=0) + HOUR, 23))
    assert watts.index("CAISO_NORTH") == 37.0 and watts.region(37.4, -122.1) == "CAISO_NORTH"
    assert grid.logins == 1, "one login serves them all"
    mean = ask("watttime", signal="average", cache=None).latest("CAISO_NORTH")
    assert mean.signal == "average" and mean.values[0, 0] == pytest.approx(0.9 * level(NOW))


def test_watttime_never_takes_a_percentile_for_grams(grid: Grid, ask) -> None:
    grid.units = "percentile"
    with pytest.raises(Missing, match="percentile"):
        ask("watttime").latest("CAISO_NORTH")


def test_watttime_logs_in_again(grid: Grid, watch: Watch, ask) -> None:
    watts = ask("watttime", cache=None)
    watts.latest("CAISO_NORTH")
    grid.valid = set()                                                 # the service forgot it early
    assert watts.latest("CAISO_NORTH").values.size and grid.logins == 2
    watch.now += 26 * 60
    watts.latest("CAISO_NORTH")
    assert grid.logins == 3, "a token is good for half an hour"
    with pytest.raises(InputError, match="refuses the credentials"):
        ask("watttime", environment={"WATTTIME_TOKEN": "stale-token-000"}).latest("CAISO_NORTH")


def test_great_britain(grid: Grid, ask) -> None:
    britain = ask("carbonintensity")
    now = britain.latest("GB")
    assert now.start == NOW.replace(hour=11, minute=0) and now.values[0, 0] == level(NOW - HOUR), "the last whole half hour"
    past = britain.history("GB", DAY - timedelta(days=20), DAY)
    np.testing.assert_allclose(past.values[0], truth(DAY - timedelta(days=20), 480))
    assert grid.asked("/intensity/20") == 2 and not past.marks.any(), "fourteen days at once"
    soon = britain.forecast("GB", 24)
    assert soon.values[0].tolist() == [value + 3 for value in truth(NOW.replace(minute=0), 24)] and (soon.marks & FORECAST).all()
    london = britain.forecast("london", 6)
    assert "/regionid/13" in grid.seen[-1][0] and london.values.shape == (1, 6)
    assert britain.history("13", DAY, DAY + HOUR * 5).marks.tolist() == [[FORECAST] * 5], "regions have no outturn"
    assert britain.latest("13").values.size
    assert not any("authorization" in headers or "auth-token" in headers for _, _, headers in grid.seen)
    for wrong in ("18", "0", "atlantis", "../admin"):
        with pytest.raises(InputError, match="no region"):
            britain.latest(wrong)


def test_great_britain_without_outturn(grid: Grid, ask) -> None:
    grid.missing = {DAY + HOUR}
    past = ask("carbonintensity").history("GB", DAY, DAY + HOUR * 3)
    assert past.values[0].tolist() == [level(DAY), level(DAY + HOUR) + 3, level(DAY + HOUR * 2)] and past.marks[0].tolist() == [0, FORECAST, 0]
    assert any("2 of 7 half hours have no outturn" in note for note in past.notes)


# ---- places --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service, place, asked", [
    ("electricitymaps", "DE", "zone=DE"), ("electricitymaps", "CISO", "zone=US-CAL-CISO"), ("electricitymaps", "gcp:us-west1", "lat=45.6&lon=-121.2"),
    ("carbonintensity", "uk", "/intensity"), ("carbonintensity", "london", "/regional/regionid/13"),
    ("watttime", "aws:us-west-1", "region=CAISO_NORTH"),
])
def test_places_become_zones(grid: Grid, ask, service: str, place: str, asked: str) -> None:
    hours = live.hours(place, service=ask(service))
    assert hours.names == (site(place).id,) and asked in grid.seen[-1][0]
    figure = hours.at(hours.names[0], hours.start)
    assert figure is not None and figure.unit == "gCO2e/kWh" and figure.signal == hours.signal


def test_places_that_a_service_lacks(ask) -> None:
    with pytest.raises(InputError, match="Great Britain only"):
        live.hours("FR", service=ask("carbonintensity"))
    with pytest.raises(InputError, match="no region known here"):
        live.hours("US", service=ask("watttime"))
    assert live.hours("FR", service=ask("electricitymaps"), zone="DE").names == ("FR",)


def test_the_service_is_chosen_by_what_is_set_up() -> None:
    maps, watts = {"ELECTRICITYMAPS_TOKEN": "x" * 9}, {"WATTTIME_USER": "u", "WATTTIME_PASSWORD": "password"}
    assert live.provider(place=site("GB"), environment={}).name == "carbonintensity"
    assert live.provider(place=site("FR"), environment={**maps, **watts}).name == "electricitymaps"
    assert live.provider(place=site("FR"), environment=watts).name == "watttime"
    assert live.provider(place=site("GB"), environment={**maps, **watts}, signal="marginal").name == "watttime"
    with pytest.raises(InputError, match="ELECTRICITYMAPS_TOKEN"):
        live.provider(place=site("FR"), environment={})
    with pytest.raises(InputError, match="There are: carbonintensity"):
        live.provider("gridstatus", environment={})
    with pytest.raises(InputError, match="no marginal"):
        live.provider("electricitymaps", environment=maps, signal="marginal")
    for name in ("electricitymaps", "watttime"):
        with pytest.raises(InputError, match="Set the environment variable"):
            live.provider(name, environment={}, online=True)


# ---- when things go wrong ------------------------------------------------------------------------------------------------------------------------


def failing(times: int, code: int = 500, after: str = "", body: bytes = b'{"message": "trouble"}') -> Callable[[Answer, str], bool]:
    left = [times]

    def trouble(answer: Answer, path: str) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        answer.raw(body, code, **({"Retry_After": after} if after else {}))
        return True

    return trouble


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_errors_are_tried_again(grid: Grid, watch: Watch, ask, code: int) -> None:
    grid.trouble = failing(2, code)
    assert ask("electricitymaps").latest("DE").values.tolist() == [[level(NOW)]]
    assert len(grid.seen) == 3 and len(watch.waits) == 2 and watch.waits[0] <= 1 and watch.waits[1] <= 2


def test_retry_after_is_honoured(grid: Grid, watch: Watch, ask) -> None:
    grid.trouble = failing(1, 429, "7")
    ask("electricitymaps").latest("DE")
    assert 7 <= watch.waits[0] <= 7.001
    grid.trouble = failing(1, 503, format_datetime(datetime.fromtimestamp(watch.now, UTC) + timedelta(seconds=9), usegmt=True))
    ask("electricitymaps", cache=None).latest("DE")
    assert 8 <= watch.waits[1] <= 10
    for useless in ("soon", "-5", "nan"):
        grid.trouble = failing(1, 429, useless)
        ask("electricitymaps", cache=None).latest("DE")
        assert watch.waits[-1] <= 1


def test_a_wait_beyond_patience_ends_the_tries(grid: Grid, watch: Watch, ask) -> None:
    grid.trouble = failing(99, 429, "3600")
    with pytest.raises(Missing, match="429"):
        ask("electricitymaps").latest("DE")
    assert len(grid.seen) == 1 and watch.waits == []


def test_backoff_doubles_and_ends(grid: Grid, watch: Watch, ask) -> None:
    grid.trouble = failing(99)
    with pytest.raises(Missing, match="did not answer"):
        ask("electricitymaps", tries=6).latest("DE")
    assert len(grid.seen) == 6 and all(wait <= 2**index for index, wait in enumerate(watch.waits)) and len(watch.waits) == 5


@pytest.mark.parametrize("code, words", [
    (400, "does not accept"), (401, "refuses the credentials"), (403, "refuses the credentials"), (404, "has no data"), (422, "does not accept"),
    (418, "does not accept"),
])
def test_refusals_are_not_tried_again_nor_papered_over(grid: Grid, watch: Watch, ask, code: int, words: str) -> None:
    grid.trouble = failing(99, code, body=b'{"error": {"code": "x", "message": "the reason\\nof it."}}')
    with pytest.raises(InputError, match=words) as caught:
        live.hours("DE", service=ask("electricitymaps"))
    assert "the reason of it" in str(caught.value) and len(grid.seen) == 1 and caught.value.mend


def test_unknown_zone_and_wrong_token(ask) -> None:
    with pytest.raises(InputError, match=r"Zone 'XX' does not exist"):
        ask("electricitymaps").latest("XX")
    with pytest.raises(InputError, match="refuses the credentials"):
        ask("electricitymaps", environment={"ELECTRICITYMAPS_TOKEN": "another-token"}).latest("DE")
    with pytest.raises(InputError, match="do not have access to PJM_DC"):
        ask("watttime").latest("PJM_DC")
    with pytest.raises(InputError, match="refuses the credentials"):
        ask("watttime", environment={"WATTTIME_USER": USER, "WATTTIME_PASSWORD": "wrong-password"}).latest("CAISO_NORTH")


def hang(answer: Answer, path: str) -> bool:
    time.sleep(1.5)
    return True


def trickle(answer: Answer, path: str) -> bool:
    answer.send_response(200)
    answer.send_header("Content-Length", "1000")
    answer.end_headers()
    for _ in range(40):
        answer.wfile.write(b" ")
        answer.wfile.flush()
        time.sleep(0.05)
    return True


def cut(answer: Answer, path: str) -> bool:
    answer.send_response(200)
    answer.send_header("Content-Length", "1000")
    answer.end_headers()
    answer.wfile.write(b'{"zone":')
    answer.wfile.flush()
    answer.connection.shutdown(socket.SHUT_RDWR)
    answer.close_connection = True
    return True


def slam(answer: Answer, path: str) -> bool:
    answer.connection.shutdown(socket.SHUT_RDWR)
    answer.close_connection = True
    return True


def answering(body: bytes, code: int = 200, **headers: str) -> Callable[[Answer, str], bool]:
    def trouble(answer: Answer, path: str) -> bool:
        answer.raw(body, code, **headers)
        return True

    return trouble


@pytest.mark.parametrize("trouble, words", [
    (hang, "no answer within 0.3 s"), (trickle, "within 0.3 s"), (cut, "breaks off|broke"), (slam, "broke|Remote"), (answering(b""), "not JSON"),
    (answering(b"<html>"), "not JSON"), (answering(b'{"zone": "DE"'), "not JSON"), (answering(b"\xff\xfe"), "not JSON"),
    (answering(b"[]"), "lacks"), (answering(b"null"), "lacks"), (answering(b"{}"), "lacks"),
    (answering(b'{"carbonIntensity": "many", "datetime": "2026-05-10T12:00Z"}'), "'many' for an intensity"),
    (answering(b'{"carbonIntensity": -4, "datetime": "2026-05-10T12:00Z"}'), "for an intensity"),
    (answering(b'{"carbonIntensity": 4, "datetime": "noon"}'), "for a time"),
    (answering(b'{"carbonIntensity": NaN, "datetime": "2026-05-10T12:00Z"}'), "for an intensity"),
    (answering(b'{"carbonIntensity": null, "datetime": "2026-05-10T12:00Z"}'), "no values"),
    (answering(b'{"carbonIntensity": 1e6, "datetime": "2026-05-10T12:00Z"}'), "cannot be used"),
    (answering(b"", 302, Location="http://127.0.0.1:9/"), "redirection"),
])
def test_outages_are_missing_and_fall_back(grid: Grid, watch: Watch, ask, trouble, words: str) -> None:
    grid.trouble = trouble
    maps = ask("electricitymaps", timeout=0.3, tries=2, cache=None)
    with pytest.raises(Missing, match=words):
        live.hours("DE", service=maps, fallback=False)
    stand = live.hours("DE", "forecast", horizon=5, service=maps)
    assert stand.values.tolist() == [[site("DE").intensity.value] * 5] and (stand.marks & ANNUAL).all() and "annual" in stand.source
    assert "annual average of DE stands in" in stand.notes[0]
    figure = stand.at("DE", stand.start)
    assert figure is not None and figure.grade == "assumed" and "annual average stands in" in figure.method
    low, high = figure.bounds
    assert low < 0.85 * figure.value and high > 1.15 * figure.value, "an hour is less sure than a measured one"


def test_no_server_at_all(ask, watch: Watch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gone = ask("electricitymaps", base=f"http://127.0.0.1:{port}", tries=2)
    assert (live.hours("DE", service=gone).marks & ANNUAL).all()
    with pytest.raises(Missing):
        live.hours("DE", service=gone, fallback=False)


def test_marginal_has_no_annual_stand_in(grid: Grid, ask) -> None:
    grid.trouble = failing(99)
    with pytest.raises(Missing):
        live.hours("CISO", service=ask("watttime"), zone="CAISO_NORTH")


def test_stale_readings_are_marked(grid: Grid, ask) -> None:
    grid.newest = NOW - timedelta(hours=7)
    now = ask("electricitymaps").latest("DE")
    assert (now.marks & STALE).all() and any("7.3 h old" in note for note in now.notes)
    figure = now.at("DE", now.start)
    assert figure is not None and figure.grade == "modelled" and "stale" in figure.method
    grid.newest = NOW - timedelta(hours=2)
    assert not ask("electricitymaps", cache=None).latest("DE").marks.any()


# ---- the cache -----------------------------------------------------------------------------------------------------------------------------------


def test_answers_are_kept_for_their_time(grid: Grid, watch: Watch, ask, tmp_path: Path) -> None:
    maps = ask("electricitymaps")
    maps.latest("DE")
    maps.latest("DE")
    ask("electricitymaps").latest("DE")
    assert len(grid.seen) == 1
    watch.now += 301
    maps.latest("DE")
    assert len(grid.seen) == 2
    old = datetime(2026, 4, 1, tzinfo=UTC)
    maps.history("DE", old, old + HOUR * 5)
    watch.now += 20 * 86400
    maps.history("DE", old, old + HOUR * 5)
    assert grid.asked("past-range") == 1, "what is long past does not change"
    assert not list((tmp_path / "cache").glob(".*")), "no half-written files"


def test_outage_falls_back_to_the_last_answer(grid: Grid, watch: Watch, ask) -> None:
    maps = ask("electricitymaps")
    maps.latest("DE")
    watch.now += 2 * 3600
    grid.trouble = failing(99, 503)
    held = live.hours("DE", service=maps)
    assert held.values.tolist() == [[level(NOW)]] and (held.marks & STALE).all() and not (held.marks & ANNUAL).any()
    assert any("503" in note and "2.0 h ago is used" in note for note in held.notes)
    figure = held.at("DE", held.start)
    assert figure is not None and figure.grade == "modelled"


def test_offline_sends_nothing(grid: Grid, watch: Watch, ask) -> None:
    ask("electricitymaps").latest("DE")
    count = len(grid.seen)
    watch.now += 3600
    offline = ask("electricitymaps", online=False, environment={})
    held = live.hours("DE", service=offline)
    assert (held.marks & STALE).all() and any("network was not asked for" in note for note in held.notes) and len(grid.seen) == count
    assert (live.hours("CISO", service=offline).marks & ANNUAL).all() and len(grid.seen) == count
    assert (live.hours("GB", cache=None, environment={}).marks & ANNUAL).all(), "off unless asked for"


def test_damaged_cache_is_asked_again(grid: Grid, ask, tmp_path: Path) -> None:
    maps = ask("electricitymaps")
    maps.latest("DE")
    (file,) = (tmp_path / "cache").iterdir()
    for damage in (b"", b"{", b"[]", b'{"url": "x"}', b"null", b'{"url": 1, "fetched": "x", "document": 1}', b"\xff"):
        file.write_bytes(damage)
        assert maps.latest("DE").values.tolist() == [[level(NOW)]]
    assert len(grid.seen) == 8


def test_unwritable_cache_costs_only_the_cache(grid: Grid, ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert ask("electricitymaps", cache=tmp_path / "file" / "below").latest("DE").values.size


def test_many_at_once_leave_whole_files(grid: Grid, ask, tmp_path: Path) -> None:
    providers = [ask("electricitymaps") for _ in range(8)]
    threads = [threading.Thread(target=lambda made=made: made.forecast("DE", 24)) for made in providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = (tmp_path / "cache").iterdir()
    assert len(json.loads(file.read_text())["document"]["forecast"]) == 25


# ---- secrets -------------------------------------------------------------------------------------------------------------------------------------


def test_secrets_are_nowhere(grid: Grid, watch: Watch, ask, tmp_path: Path, caplog, capsys) -> None:
    secrets = [TOKEN, PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), "bearer-1-secret", "another-token-xyz"]
    told: list[str] = []

    def collect(call: Callable[[], Any]) -> None:
        try:
            told.append(repr(call()))
        except (InputError, Missing):
            told.append(traceback.format_exc())

    def echo(answer: Answer, path: str) -> bool:                       # a service that repeats what it was sent
        sent = " ".join(f"{name}: {value}" for name, value in answer.headers.items())
        answer.say({"message": sent}, 401)
        return True

    for service, zone in (("electricitymaps", "DE"), ("watttime", "CAISO_NORTH")):
        made = ask(service)
        told.append(repr(made.client) + repr(made.__dict__ if service == "electricitymaps" else made))
        collect(lambda made=made, zone=zone: made.latest(zone))
        grid.trouble = echo
        collect(lambda made=made, zone=zone: made.forecast(zone, 24))
        grid.trouble = failing(99)
        watch.now += 3600
        collect(lambda made=made, zone=zone: made.forecast(zone, 24))
        grid.trouble = lambda answer, path: False
    wrong = ask("electricitymaps", environment={"ELECTRICITYMAPS_TOKEN": "another-token-xyz"}, cache=tmp_path / "other")
    collect(lambda: wrong.latest("DE"))
    everything = "\n".join([*told, caplog.text, *capsys.readouterr(), *(file.read_text() for file in tmp_path.rglob("*.json"))])
    assert everything.count("***") >= 2 and list((tmp_path / "cache").iterdir())
    for secret in secrets:
        assert secret not in everything
    assert not any(secret in path for path, _, _ in grid.seen for secret in secrets)


def test_secrets_do_not_travel_in_the_clear_nor_follow_redirections(grid: Grid, ask) -> None:
    with pytest.raises(InputError, match="in the clear"):
        ask("electricitymaps", base="http://example.org/v3")
    for wrong in ("ftp://example.org", "example.org", "https://me:pass@example.org", ""):
        with pytest.raises(InputError, match="not the address"):
            Client("x", wrong)
    with Grid() as other:
        grid.trouble = answering(b"", 307, Location=f"{other.address}/em/carbon-intensity/latest?zone=DE")
        with pytest.raises(Missing, match="redirection"):
            ask("electricitymaps").latest("DE")
        assert other.seen == []


def test_scrubbing() -> None:
    assert scrubbed("a s3cret%2F and s3cret/ and czNjcmV0Lw==", ("s3cret/", "")) == "a *** and *** and ***"


# ---- what is asked wrongly -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, options", [
    ("yesterday", {}), ("history", {}), ("history", {"start": DAY, "end": DAY}), ("history", {"start": DAY, "end": DAY + timedelta(days=999)}),
    ("history", {"start": DAY.replace(tzinfo=None), "end": DAY}), ("forecast", {"horizon": 0}), ("forecast", {"horizon": 1000}),
])
def test_wrong_questions(grid: Grid, ask, kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        live.hours("DE", kind, service=ask("electricitymaps"), **options)
    assert grid.seen == []


def test_history_by_name(grid: Grid, ask) -> None:
    hours = live.hours("germany", "history", start=DAY + timedelta(minutes=20), end=DAY + HOUR * 3, service=ask("electricitymaps"))
    assert hours.names == ("DE",) and hours.start == DAY and hours.values[0].tolist() == truth(DAY, 3) and not math.isnan(hours.values.sum())
    with pytest.raises(InputError, match="no site called"):
        live.hours("atlantis", service=ask("electricitymaps"))
