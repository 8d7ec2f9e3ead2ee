"""The four levers of a result: how many times less Model and Machine take (from its race), and the hall and the place (as given, modelled or
tabled).

Patterson et al. 2022: CO2e = energy of the work on the machine × PUE × gCO2e/kWh, so the factors Model, Machine, Mechanization and Map multiply to
the whole. Every factor keeps its own grade and interval; the total carries the weakest grade among them and the interval that all of them leave. A
lever that was not given stands at 1 and lends no grade. """

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

from fourfold.errors import InputError
from fourfold.ledger.attribution import logs, product, shares, split
from fourfold.ledger.book import LEVERS
from fourfold.site import Site
from fourfold.units import Quantity, weakest

if TYPE_CHECKING:
    from fourfold.report.schema import Carbon, Factor, FigureRow, Grade, Lever, Levers, Report


class Location(TypedDict, total=False):
    """Where a result runs and will run, as `levers` takes it."""

    site: str | Site | None
    to_site: str | Site | None
    hall: str | None
    pue: float | str | None


RUN = "1,000 examples"
RACE = "ratio of CPU time in the interleaved race on this machine"
SENTENCE = ("Average intensity says what share of a grid's emissions is this work's; moving load does not change what the grids emit one for one.")
_HALL = "economiser, set_point, overcooling, immersion"


def levers(report: Report, *, site: str | Site | None = None, to_site: str | Site | None = None, hall: str | None = None,
           pue: float | str | None = None) -> Levers:
    """The `levers` of a report document (`fourfold.report.schema.Levers`), from what it measured and from where it runs.

    `site` is where it runs now, `to_site` where it will; `hall` the PUE before and after ("1.58:1.10"), or the PUE now and means of the hall model
    ("1.58:immersion", "1.58:set_point+overcooling"); `pue` the one PUE of both. Without `hall` and `pue` the sites' own PUEs count.
    Raises InputError for unknown sites, PUEs below 1, and options that contradict each other.
    """
    home, away = _places(site, to_site)
    before, after, words = _halls(hall, pue, home, away)
    factors, titles = _race(report), _titles(report)
    if before is not None and after is not None and after is not before:
        factors["mechanization"] = logs({"pue": before}, {"pue": after})["pue"]
        titles["mechanization"] = words
    elif before is not None:
        titles["mechanization"] = f"the hall stays at a PUE of {before.value:.3g}"
    if home is not None and away is not None:
        factors["map"] = logs({"map": home.intensity}, {"map": away.intensity})["map"]
        titles["map"] = f"{home.title} to {away.title}, {home.intensity.value:.0f} to {away.intensity.value:.0f} gCO2e/kWh"
    elif home is not None:
        titles["map"] = f"it stays in {home.title}, {home.intensity.value:.0f} gCO2e/kWh"
    total = product(factors)
    carbon, amounts = _carbon(report, factors, home, before)
    parts = shares({lever: factors[lever] for lever in factors}) if factors else {}
    rows: list[Lever] = [{"lever": lever, "title": titles[lever], "given": lever in factors, "factor": _figure(factors.get(lever)),
                          "share": parts.get(lever), "amount": amounts.get(lever)} for lever in LEVERS]
    energy = {lever: factors[lever] for lever in LEVERS[:3] if lever in factors}
    return {"rows": rows, "total": _together(total, factors), "energy": _together(product(energy), energy), "carbon": carbon,
            "signal": "average" if home is not None else "", "site": home.id if home else None, "to_site": away.id if away else None,
            "notes": _notes(report, factors, home, before)}


def examine(**place: Unpack[Location]) -> Location:
    """The `site`, `to_site`, `hall` and `pue` of `levers`, the sites found. Raises InputError as it would, so that a typing error costs nothing."""
    home, away = _places(place.get("site"), place.get("to_site"))
    _halls(place.get("hall"), place.get("pue"), home, away)
    return {"site": home, "to_site": away, "hall": place.get("hall"), "pue": place.get("pue")}


# ---- Model and Machine: what the race measured -----------------------------------------------------------------------------------------------------


def _race(report: Report) -> dict[str, Quantity]:
    """Factors of the levers that have steps in the ladder. A step's cost has the interval of the candidate that was raced there, where one was."""
    costs = [Quantity(1.0, "1", _grade(report), method=RACE)]
    costs += [_cost(report, row) for row in report["factors"]]
    found: dict[str, Quantity] = {}
    for row, before, after in zip(report["factors"], costs, costs[1:], strict=False):
        step = before / after
        found[row["lever"]] = found[row["lever"]] * step if row["lever"] in found else step
    return found


def _cost(report: Report, row: Factor) -> Quantity:
    """The relative energy after a step, with the interval of its race."""
    cost = float(row["after"])
    if "point" not in row:
        return _raced(report, cost, last=row is report["factors"][-1])
    low, high = row.get("low"), row.get("high")
    if low is None or high is None or min(low, cost) <= 0:
        return Quantity(cost, "1", _grade(report), method=RACE)
    source = f"race of {row['point'] or row['title']}"
    return Quantity(cost, "1", _grade(report), low=min(low, cost), high=max(high, cost), method=RACE, source=source)


def _raced(report: Report, cost: float, last: bool) -> Quantity:
    """Of documents whose steps do not name their points: the relative energy `cost` with the interval of the candidate that has it (the chosen one
    for the last step)."""
    rows = [report["candidates"][report["best"]]] if last and report["best"] is not None else report["candidates"]
    for row in rows:
        figure = row["relative_energy"]
        if figure and figure["low"] is not None and figure["high"] is not None and math.isclose(figure["value"], cost, rel_tol=1e-6):
            low, high = min(figure["low"], cost), max(figure["high"], cost)
            if low > 0:
                return Quantity(cost, "1", _grade(report), low=low, high=high, method=RACE, source=f"race of {row['name']}")
    return Quantity(cost, "1", _grade(report), method=RACE)


def _grade(report: Report) -> Grade:
    """A ratio of raced times stands for a ratio of joules, so it is no better than they are: modelled where joules are processor time × watts."""
    return _weakest(["measured", report["energy"]["grade"]])


def _weakest(grades: Iterable[str]) -> Grade:
    return cast("Grade", weakest(grades))


def _titles(report: Report) -> dict[str, str]:
    titles = {lever: "not given" for lever in LEVERS}
    for lever in LEVERS[:2]:
        steps = [row["title"] for row in report["factors"] if row["lever"] == lever]
        titles[lever] = "; ".join(steps) if steps else "nothing changed" if report["best"] is not None else "nothing chosen"
    return titles


# ---- Mechanization and Map: what was given ---------------------------------------------------------------------------------------------------------


def _places(site: str | Site | None, to_site: str | Site | None) -> tuple[Site | None, Site | None]:
    from fourfold.site import site as known

    if to_site is not None and site is None:
        raise InputError("--to-site says where the work will run, and nothing says where it runs now.", "Add --site NAME.")
    return (None if site is None else known(site)), (None if to_site is None else known(to_site))


def _halls(hall: str | None, pue: float | str | None, home: Site | None, away: Site | None) -> tuple[Quantity | None, Quantity | None, str]:
    """PUE before and after, and what changed in words. The same object twice: the hall stays."""
    if hall is not None and pue is not None:
        raise InputError("--hall gives the PUE before and after, and --pue another.", "Give one of them.")
    if hall is not None:
        return _changed(hall)
    if pue is not None:
        known = _stated(str(pue), "PUE as given")
        return known, known, ""
    if home is None:
        return None, None, ""
    if away is None or away.pue == home.pue:
        return home.pue, home.pue, ""
    return home.pue, away.pue, f"the sites' halls, PUE {home.pue.value:.3g} to {away.pue.value:.3g}"


def _changed(hall: str) -> tuple[Quantity, Quantity, str]:
    if hall.endswith(".json"):
        return _studied(Path(hall))
    now, colon, then = hall.partition(":")
    if not colon or not then.strip():
        raise InputError(f"--hall {hall!r} is not a change.", f"Write the PUE before and after, 1.58:1.10, or 1.58: and means of {_HALL}.")
    before = _stated(now, "PUE before, as given")
    if then.strip()[0].isdigit() or then.strip()[0] in ".-+":
        after = _stated(then, "PUE after, as given")
        same = after.value == before.value
        return before, before if same else after, f"PUE {before.value:.4g} to {after.value:.4g}, as given"
    from fourfold.jobs.datacenter import pue_after

    names = [name.strip().replace("-", "_") for name in then.split("+")]
    after = pue_after(before, names)
    return before, after, f"PUE {before.value:.4g} to {after.value:.3g} by {' and '.join(name.replace('_', ' ') for name in names)}"


def _studied(path: Path) -> tuple[Quantity, Quantity, str]:
    """What `fourfold datacenter --json` found: the PUE now, and it divided by the factor of its means together (fewer servers among them)."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        before, best = _quantity(document["pue"]), document["together"]
        factor, means = _quantity(best["factor"]), best["means"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not what `fourfold datacenter --json` prints ({type(error).__name__}: {error}).",
                         "Make it: fourfold datacenter … --json > hall.json") from None
    return before, before / factor, f"{', '.join(means)}, as {path.name} has it"


def _quantity(stored: Mapping[str, object]) -> Quantity:
    return Quantity.from_json(stored)


def _stated(text: str, source: str) -> Quantity:
    from fourfold.units.parse import PUE, given

    return given(PUE, text, source=source)


# ---- grams -----------------------------------------------------------------------------------------------------------------------------------------


def _carbon(report: Report, factors: Mapping[str, Quantity], home: Site | None,
            before: Quantity | None) -> tuple[Carbon | None, dict[str, FigureRow]]:
    """CO2e of 1,000 examples before and after, and what each lever took off it in grams (Shapley values); nothing without a site or without
    joules.
    """
    joules = report["baseline"]["joules_per_1000"]
    if home is None or joules is None:
        return None, {}
    low, high = (joules["value"] if joules[end] is None else joules[end] for end in ("low", "high"))
    used = Quantity(joules["value"], "J", joules["grade"], low=low, high=high, method=joules["method"], source=joules["method"])
    start = used * (before or Quantity(1.0, "1", "assumed", method="no PUE: the servers alone")) * home.intensity
    grades = [used.grade, home.intensity.grade, *([before.grade] if before is not None else [])]
    first: FigureRow = {**_figure(start), "grade": _weakest(grades)}
    if not factors:
        return {"run": RUN, "before": first, "after": first}, {}

    def cost(pulled: frozenset[str]) -> Quantity:
        kept = start
        for lever in sorted(pulled):
            kept = kept / factors[lever]
        return kept

    parted = split(cost, list(factors))
    last = _weakest([*grades, *(factor.grade for factor in factors.values())])
    return ({"run": RUN, "before": first, "after": {**_figure(parted.after), "grade": last}},
            {lever: {**_figure(amount), "grade": last} for lever, amount in parted.amounts.items()})


def _figure(quantity: Quantity | None) -> FigureRow:
    """A quantity as the report holds it; a lever that was not given is a plain 1 without a grade."""
    if quantity is None:
        return {"value": 1.0, "low": 1.0, "high": 1.0, "unit": "1", "grade": None, "method": "", "source": ""}
    low, high = quantity.bounds if quantity.errors or quantity.unit != "1" else (None, None)   # a ratio without a stated error: nobody knows it
    return {"value": quantity.value, "low": low, "high": high, "unit": quantity.unit, "grade": _weakest([quantity.grade]), "method": quantity.method,
            "source": quantity.source}


def _together(total: Quantity, factors: Mapping[str, Quantity]) -> FigureRow:
    """The factors multiplied: graded by the weakest of them, however little of the interval it holds."""
    if not factors:
        return _figure(None)
    return {**_figure(total), "grade": _weakest(factor.grade for factor in factors.values()), "method": "product of the levers' factors"}


def _notes(report: Report, factors: Mapping[str, Quantity], home: Site | None, before: Quantity | None) -> list[str]:
    notes = []
    if factors:
        grade = weakest(factor.grade for factor in factors.values())
        holders = [lever.capitalize() for lever in LEVERS if lever in factors and factors[lever].grade == grade]
        notes.append(f"Each factor keeps its grade; the total is no better than its weakest, {grade} ({', '.join(holders)}).")
    if any(not factor.errors for factor in factors.values()):
        notes.append("A factor without an interval was not raced by itself; the interval of the total holds its error too.")
    if home is None and "mechanization" not in factors:
        notes.append("Mechanization and Map were not given: --site, --to-site, --hall or --pue put them in.")
    if home is not None:
        notes.append(SENTENCE)
    if report["baseline"]["joules_per_1000"] is None and home is not None:
        notes.append("The joules of the original are not known, so no grams are told.")
    if home is not None and before is not None and before.grade == "assumed":
        notes.append(f"The PUE of {before.value:.3g} [{before.bounds[0]:.3g}, {before.bounds[1]:.3g}] is assumed.")
    return notes


def with_levers(report: Report, **place: Unpack[Location]) -> Report:
    """A finished report with its four levers put in, or put in anew; what was measured is not touched.

    `site`, `to_site`, `hall`, `pue` and the errors raised as in `levers`.
    """
    from fourfold.report.schema import SCHEMA

    return {**report, "schema": SCHEMA, "levers": levers(report, **place)}
