"""Where the work runs: grams of CO2e per kWh, PUE, price, position, time zone. Frozen data from the tables in `sites/`; docs/intensity.md says whose.

The figure of a place is one row, never a mixture: the newest location-based average that a source gives. The other sources' newest rows, together
with a default uncertainty, make the 90 % interval; `Site.rows` lists them all and says which part each played.
"""

from __future__ import annotations

import csv
import functools
import math
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.units import Quantity

RECENT = 3                                                             # years: a source's figure older than this beside the newest is history
_Z90 = 1.6448536269514722
_KINDS = ("world", "country", "state", "area", "city", "cloud")
_PROVIDERS = {"gcp": "Google Cloud", "aws": "AWS", "azure": "Azure"}
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "ı": "i", "þ": "th", "’": "'", "_": " ", "-": " "})
_NO_PRICE = "no electricity price with a licence fit to ship is known; give one (USD/kWh)"


@dataclass(frozen=True)
class SourcedFigure:
    """One sourced figure. `use`: value (it is the figure), interval (it widens it), history (an older edition) or market (not location-based).

    `value` is in gCO2e/kWh for `signal` "average"; a "market" row is a share and never enters an intensity. `year` None: the source states none.
    `site` is the place the source speaks of, `basis` what it counts: life-cycle or direct.
    """

    value: float
    unit: str
    year: int | None
    source: str
    title: str
    licence: str
    basis: str
    site: str
    signal: str = "average"
    use: str = "history"
    note: str = ""


@dataclass(frozen=True)
class Site:
    """A place: a country, state, balancing area, city or cloud region.

    `intensity` in gCO2e/kWh (signal average), `pue` dimensionless, `price` in USD/kWh or None, `zone` an IANA time zone or None, `latitude` and
    `longitude` in degrees to 0.1 or None. `grid` is the place whose intensity is used; `why` says why a field is None, and what was assumed.
    """

    id: str
    title: str
    country: str
    intensity: Quantity
    pue: Quantity
    price: Quantity | None = None
    rows: tuple[SourcedFigure, ...] = ()
    aliases: tuple[str, ...] = ()
    latitude: float | None = None
    longitude: float | None = None
    zone: str | None = None
    kind: str = ""
    grid: str = ""
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def value_row(self) -> SourcedFigure | None:
        """The row that `intensity.value` is taken from; None where the user gave the figure."""
        return next((row for row in self.rows if row.use == "value"), None)

    def given(self, *, intensity: float | Quantity | None = None, pue: float | Quantity | None = None, price: float | Quantity | None = None) -> Site:
        """The same place with figures of your own: gCO2e/kWh, PUE, USD/kWh. A bare number is graded assumed.

        Raises InputError for a negative or absurd intensity, a PUE under 1, or an absurd price.
        """
        changed: dict[str, object] = {}
        if intensity is not None:
            changed["intensity"] = _given("carbon intensity", intensity, "gCO2e/kWh", 0.0, 5000.0, "average")
            changed["rows"] = tuple(replace(row, use="history") if row.use in ("value", "interval") else row for row in self.rows)
        if pue is not None:
            changed["pue"] = _given("PUE", pue, "1", 1.0, 10.0)
        if price is not None:
            changed["price"] = _given("electricity price", price, "USD/kWh", -10.0, 100.0)
            changed["why"] = {name: words for name, words in self.why.items() if name != "price"}
        return replace(self, **changed)

    def to_json(self) -> dict[str, object]:
        """Plain data: all fields, quantities as theirs."""
        shown = {"intensity": self.intensity.to_json(), "pue": self.pue.to_json(), "price": self.price and self.price.to_json()}
        plain = {name: getattr(self, name) for name in ("id", "title", "country", "kind", "grid", "latitude", "longitude", "zone")}
        return {**plain, **shown, "aliases": list(self.aliases), "why": dict(self.why), "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        return f"{self.title} ({self.id}): {self.intensity}, PUE {self.pue.value:g}"


def site(name: str | Site, *, intensity: float | None = None, pue: float | None = None, price: float | None = None) -> Site:
    """The place called `name`: an id ("FR", "US-CA", "CISO", "gcp:us-central1", "aws:eu-west-1"), an ISO 3166 code, a name or a city.

    Capitals and accents do not matter. `intensity` (gCO2e/kWh), `pue` and `price` (USD/kWh) override the tables. Raises InputError for a name that is
    unknown (the nearest are offered), that several places share, or that no shipped source has a figure for.
    """
    found = name if isinstance(name, Site) else _made(_resolve(name))
    return found.given(intensity=intensity, pue=pue, price=price) if (intensity, pue, price) != (None, None, None) else found


def sites(kind: str | None = None) -> tuple[Site, ...]:
    """Every place with a figure, or those of one kind: world, country, state, area, city or cloud. Raises InputError for another kind."""
    if kind is not None and kind not in _KINDS:
        raise InputError(f"There is no kind of site called {kind!r}.", f"Known: {', '.join(_KINDS)}.")
    return tuple(_made(id) for id, place in _places().items() if kind in (None, place["kind"]) and _rows_of(place))


def search(query: str) -> tuple[Site, ...]:
    """The place called `query`, or else every place with `query` in its id, name or aliases. Raises InputError where there is none."""
    try:
        return (_made(_resolve(query)),)
    except InputError:
        words = fold(query)
        found = [id for id, place in _places().items() if words and any(words in fold(text) for text in (id, place["title"], *place["names"]))]
        made = tuple(_made(id) for id in found if _rows_of(_places()[id]))
        if not made:
            raise
        return made


def fold(name: str) -> str:
    """`name` without accents, capitals, hyphens and doubled spaces, for comparison."""
    letters = unicodedata.normalize("NFKD", name.casefold().translate(_LETTERS))
    return " ".join("".join(letter for letter in letters if not unicodedata.combining(letter) and letter not in ".,()").split())


def sigma(value: float) -> float:
    """Log-standard deviation of an annual intensity in g/kWh: 12 % from 200 up, 25 % below 100, linear between. Our choice, as tables differ."""
    return 0.12 + 0.13 * min(1.0, max(0.0, (200.0 - value) / 100.0))


def sources() -> dict[str, dict[str, Any]]:
    """What stands in `sites/sources.toml` under `sources`: id → title, licence, basis, order."""
    return _registry()["sources"]


def files() -> dict[str, dict[str, str]]:
    """What stands in `sites/sources.toml` under `files`: name → sha256, source."""
    return _registry()["files"]


def data(name: str) -> bytes:
    """A file of `sites/`, as it lies there."""
    return (Path(__file__).parent / "sites" / name).read_bytes()       # importlib.resources takes longer to load than all of this module


def pue(provider: str = "unknown") -> Quantity:
    """PUE of a hall: of "gcp", "aws" or "azure" as published; of any other, 1.56 in [1.1, 2.0], assumed."""
    known = _registry()["pue"]
    return Quantity(unit="1", method="stated PUE", boundary="", **known.get(provider, known["unknown"]))


# ---- inside --------------------------------------------------------------------------------------------------------------------------------------


def _text(name: str) -> str:
    return data(name).decode()


def _table(name: str) -> Iterable[dict[str, str]]:
    return csv.DictReader(_text(name).splitlines())


@functools.cache
def _registry() -> dict[str, Any]:
    return tomllib.loads(_text("sources.toml"))


@functools.cache
def _places() -> dict[str, dict[str, Any]]:
    """Every place by id: kind, title, country, grid, latitude, longitude, zone, names (aliases of the first rank), towns (of the last)."""
    places: dict[str, dict[str, object]] = {}
    for row in _table("places.csv"):
        places[row["id"]] = {**row, "grid": row["id"], "names": [name for name in (row["alpha3"], *row["aliases"].split("|")) if name],
                             "towns": [name for name in row["towns"].split("|") if name]}
    for row in _table("cities.csv"):
        places[row["id"]] = {**row, "kind": "city", "names": [row["title"].split(",")[0], *filter(None, row["aliases"].split("|"))], "towns": []}
    for row in _table("clouds.csv"):
        provider, region = row["id"].split(":")
        city = places[row["city"]]
        title = f"{_PROVIDERS[provider]} {region}, {city['title']}"
        towns = [region, f"{provider} {region}", f"{provider}/{region}"]
        places[row["id"]] = {**city, "id": row["id"], "kind": "cloud", "title": title, "grid": row["grid"] or row["id"], "names": [], "towns": towns}
    return places


@functools.cache
def _index() -> tuple[dict[str, list[str]], ...]:
    """Folded names → ids, in the order of their rank: ids, names of lands and states, of cities, and names of towns and regions."""
    ranks: tuple[dict[str, list[str]], ...] = ({}, {}, {}, {})
    for id, place in _places().items():
        land = place["kind"] not in ("city", "cloud")
        entries = [(0, id), *((1 if land else 2, name) for name in (place["title"], *place["names"])), *((3, name) for name in place["towns"])]
        for rank, name in entries:
            held = ranks[rank].setdefault(fold(name), [])
            if id not in held:
                held.append(id)
    return ranks


@functools.cache
def _squashed() -> dict[str, list[str]]:
    """Names without their spaces → ids, for "East US", which is eastus."""
    found: dict[str, list[str]] = {}
    for rank in _index():
        for key, ids in rank.items():
            held = found.setdefault(key.replace(" ", ""), [])
            held += [id for id in ids if id not in held]
    return found


def _resolve(name: str) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"A site is a name or an id, got {name!r}.", "Try: fourfold sites")
    exact = name.strip()
    if exact in _places():                                             # aws:us-east-1 and gcp:us-east1 differ by a hyphen only, which folding drops
        return exact
    key = fold(name)
    for held in (*(rank.get(key, []) for rank in _index()), _squashed().get(key.replace(" ", ""), [])):
        near = [id for id in held if id.rpartition(":")[2] == exact.casefold()]
        held = near or held
        if len(held) == 1:
            return held[0]
        if held:
            raise InputError(f"{name!r} is the name of several sites: {_named(held)}.", "Give the id.")
    raise InputError(f"There is no site called {name!r}.{_nearest(key)}", "List them with: fourfold sites; or give your own intensity in g/kWh.")


def _nearest(key: str) -> str:
    """ Words on the three sites whose names come closest, or nothing."""
    import difflib

    names = {folded: ids[0] for rank in reversed(_index()) for folded, ids in rank.items() if _rows_of(_places()[ids[0]])}
    close = difflib.get_close_matches(key, names, 6, 0.6) or [folded for folded in names if len(key) > 3 and key in folded]
    found = list(dict.fromkeys(names[folded] for folded in close))[:3]
    return f" Nearest: {_named(found)}." if found else ""


def _named(ids: Iterable[str]) -> str:
    return ", ".join(f"{id} ({_places()[id]['title']})" for id in ids)


@functools.cache
def _rows() -> dict[str, list[SourcedFigure]]:
    found: dict[str, list[SourcedFigure]] = {}
    for row in _table("rows.csv"):
        known = sources()[row["source"]]
        unit = "gCO2e/kWh" if row["signal"] == "average" else "1"
        made = SourcedFigure(float(row["value"]), unit, int(row["year"]) if row["year"] else None, row["source"], known["title"], known["licence"],
                   known["basis"], row["site"], row["signal"], "history" if row["signal"] == "average" else "market", row["note"])
        found.setdefault(row["site"], []).append(made)
    return found


def _rows_of(place: Mapping[str, Any]) -> list[SourcedFigure]:
    own, grid = _rows().get(place["id"], []), _rows().get(place["grid"], [])
    return own if place["grid"] == place["id"] else [*own, *grid]


@functools.cache
def _made(id: str) -> Site:
    place = _places()[id]
    rows = _parted(_rows_of(place))
    best = next((row for row in rows if row.use == "value"), None)
    if best is None:
        raise InputError(f"No shipped source has a carbon intensity for {place['title']} ({id}).", "Give your own in g/kWh, or take a neighbour's.")
    why = {"price": _NO_PRICE}
    provider = id.partition(":")[0] if place["kind"] == "cloud" else "unknown"
    if provider == "unknown":
        why["pue"] = "the hall is not known, so its PUE is assumed"
    if best.site != id:
        why["intensity"] = f"no measured figure of its own is published; the average of {_places()[best.site]['title']} is assumed to hold there"
    if not place["zone"]:
        why["zone"] = "no single time zone holds for all of it"
    latitude, longitude = (float(place[name]) if place[name] else None for name in ("latitude", "longitude"))
    return Site(id, place["title"], place["country"], _intensity(id, place["kind"], best, rows), pue(provider), None, rows, tuple(place["names"]),
                latitude, longitude, place["zone"] or None, place["kind"], best.site, why)


def _parted(rows: list[SourcedFigure]) -> tuple[SourcedFigure, ...]:
    """The rows, newest first, each with the part it plays."""
    order = {id: known["order"] for id, known in sources().items()}
    ranked = sorted(rows, key=lambda row: (row.signal != "average", -(row.year or 0), order[row.source]))
    made: list[SourcedFigure] = []
    seen: set[str] = set()
    newest = 0
    for row in ranked:
        use = row.use
        if row.signal == "average" and row.source not in seen:
            seen.add(row.source)
            if len(seen) == 1:
                use, newest = "value", row.year or 0
            elif row.year is None or row.year >= newest - RECENT:
                use = "interval"
        made.append(replace(row, use=use))
    return tuple(made)


def _intensity(id: str, kind: str, best: SourcedFigure, rows: Iterable[SourcedFigure]) -> Quantity:
    """The value row with an interval that holds every other source and the default uncertainty."""
    spread = _Z90 * sigma(best.value)
    counted = [row.value for row in rows if row.use in ("value", "interval")]
    low, high = min(*counted, best.value * math.exp(-spread)), max(*counted, best.value * math.exp(spread))
    borrowed = best.site != id and kind == "cloud"
    grade = "assumed" if borrowed or best.year is None else "published"
    when = f"{best.year}" if best.year else "year not stated"
    words = f"annual average of {best.site}, {when}, {best.basis}" + ("; assumed to hold for the region" if borrowed else "")
    source = f"{best.source}:{best.site}:{best.year or 'undated'}"
    return Quantity(best.value, "gCO2e/kWh", grade, low, high, method=words, source=source, signal="average")


def _given(what: str, value: float | Quantity, unit: str, least: float, most: float, signal: str = "") -> Quantity:
    made = value if isinstance(value, Quantity) else Quantity(float(value), unit, "assumed", method=f"{what} as given", source="given", signal=signal)
    made = made.to(unit)
    if not least <= made.value <= most:
        raise InputError(f"A {what} of {made.value:g}{'' if unit == '1' else ' ' + unit} cannot be.", f"Expected {least:g} to {most:g}.")
    return made
