"""The hall around the servers: the kilowatts that cooling, power delivery and lighting take on top of an IT load, by load and outside temperature.

Structure: power delivery loses a fixed, a proportional and a square-law part of the IT load (Rasmussen 2007); heat leaves as chilled air, through
fans, pumps, a chiller and a cooling tower whose performance follows the outside temperature (Lei & Masanet 2020, equations and ranges of their
supplement's program). A hall whose PUE is known scales the model's overhead to it. Every coefficient is a row of `COEFFICIENTS` with its range,
grade and source; results carry the 90 % interval that drawing all of them from their ranges leaves.

Left out, in words: humidity (outside air counts by its dry bulb alone, so free-cooling hours are an upper bound in humid places, and the chiller is
priced by the dry bulb, an upper bound too), warm-up of the building, and water.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from fourfold.errors import InputError
from fourfold.units import Quantity

PARTS = ("cooling", "power delivery", "lighting and other")
COOLINGS = ("chiller", "economiser", "immersion")
DRAWS = 96                                                             # of the coefficients; their 5 % and 95 % quantiles settle within 2 %

_LEI = "Lei & Masanet 2020, input ranges of the published model program"
_RASMUSSEN = "Rasmussen 2007 (white paper 113): three-part loss; the split is remembered, not seen"


@dataclass(frozen=True)
class Coefficient:
    """A number of the model with its range. `grade` as in fourfold.units; `unit` is text, because temperatures are no unit there."""

    value: float
    low: float
    high: float
    unit: str
    grade: str
    source: str
    what: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


COEFFICIENTS: dict[str, Coefficient] = {
    "ups_loss": Coefficient(0.058, 0.010, 0.111, "of rated IT load", "published", _LEI, "loss of the UPS at full load (efficiency 90 to 99 %)"),
    "wire_loss": Coefficient(0.010, 0.0, 0.020, "of rated IT load", "published", _LEI, "loss of transformers and distribution at full load"),
    "loss_fixed": Coefficient(0.40, 0.25, 0.55, "of the full-load loss", "assumed", _RASMUSSEN, "part of the loss that no load still takes"),
    "loss_square": Coefficient(0.20, 0.10, 0.35, "of the full-load loss", "assumed", _RASMUSSEN, "part that grows with the square of the load"),
    "lighting": Coefficient(0.001, 0.0, 0.002, "of rated IT load", "published", _LEI, "lighting and other, whatever the load"),
    "air_rise": Coefficient(16.7, 13.9, 19.4, "K", "published", _LEI, "warming of the air across the servers"),
    "fan_pressure": Coefficient(750.0, 500.0, 1000.0, "Pa", "published", _LEI, "pressure that the hall's fans overcome"),
    "fan_efficiency": Coefficient(0.78, 0.65, 0.90, "1", "published", _LEI, "efficiency of the hall's fans"),
    "fan_fixed": Coefficient(0.5, 0.0, 1.0, "of full-load fan power", "assumed", "fans run anywhere from constant speed to proportional air flow",
                             "part of the fans' power that no load still takes"),
    "chiller": Coefficient(1.0, 0.89, 1.11, "of the regression", "published", _LEI, "chiller's coefficient of performance against the regression"),
    "approach": Coefficient(4.8, 2.8, 6.7, "K", "published", _LEI, "condenser water above outside air"),
    "water_side": Coefficient(0.032, 0.024, 0.042, "kW per kW of heat", "published", _LEI + ": pumps and tower fans, from their pressures and rises",
                              "pumps and tower fans"),
    "lift": Coefficient(0.75, 0.5, 1.0, "exponent", "assumed", "Carnot: performance falls with temperature lift; real chillers follow it in part",
                        "how far the chiller follows Carnot's limit when the set point moves"),
    "margin": Coefficient(1.5, 0.0, 3.0, "K", "assumed", "fan heat and sensor tolerance",
                          "outside air must be this much below the set point to cool alone"),
    "filter": Coefficient(1.15, 1.0, 1.3, "of fan pressure", "assumed", "filters and dampers of an outside-air path", "fan pressure on outside air"),
    "server_fans": Coefficient(0.005, 0.0, 0.010, "of IT power per K above 25 °C", "assumed", "server fans speed up in warm air; no common curve",
                               "IT power that a warmer set point adds"),
}

SHIFT = 11.0                                                           # K between supply air and chilled water
REFERENCE = 18.0                                                       # °C of supply air at which the chiller regression is taken
RECOMMENDED = (18.0, 27.0)                                             # °C, ASHRAE's recommended range of inlet air (quoted by Khankari 2011)
Drawn = Mapping[str, float]                                            # one value for every coefficient


@dataclass(frozen=True)
class Hall:
    """A hall as it stands. `it_kw` now, of `rated_kw` that it is built for; `pue` known (a figure with an interval) or None to take the model's;
    `set_point` of the supply air in °C; `cooling` one of chiller, economiser, immersion.

    Raises InputError for what no hall can be: PUE below 1, load above the rating, a set point outside 5 to 45 °C.
    """

    it_kw: float = 1000.0
    rated_kw: float | None = None
    pue: Quantity | None = None
    set_point: float = REFERENCE
    cooling: str = "chiller"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.it_kw) and self.it_kw > 0):
            raise InputError(f"An IT load of {self.it_kw:g} kW is not a load.", "Give kilowatts above zero.")
        rated = self.it_kw if self.rated_kw is None else self.rated_kw
        if not (np.isfinite(rated) and rated >= self.it_kw * (1 - 1e-9)):
            raise InputError(f"The hall is rated {rated:g} kW and carries {self.it_kw:g} kW: a utilisation above 1.",
                             "Give a rating of at least the load.")
        object.__setattr__(self, "rated_kw", float(rated))
        if self.pue is not None and (self.pue.value < 1 or self.pue.unit != "1"):
            raise InputError(f"A PUE of {self.pue.value:g} cannot be: the hall uses what its servers use, and more.",
                             "PUE = energy of the hall / energy of its IT, a plain number of 1.0 or more.")
        if not 5 <= self.set_point <= 45:
            raise InputError(f"A set point of {self.set_point:g} °C is not supply air for servers.", "Give 5 to 45 °C; ASHRAE recommends 18 to 27.")
        if self.cooling not in COOLINGS:
            raise InputError(f"{self.cooling!r} is not a way of cooling that fourfold knows.", f"Choose from: {', '.join(COOLINGS)}.")

    @property
    def utilisation(self) -> float:
        """IT load over rating, 0 to 1."""
        return self.it_kw / float(self.rated_kw or self.it_kw)


def central() -> dict[str, float]:
    """The middle value of every coefficient."""
    return {name: row.value for name, row in COEFFICIENTS.items()}


def draws(seed: int = 0, count: int = DRAWS) -> Iterator[dict[str, float]]:
    """The middle values first, then `count` draws, each coefficient uniform in its range, stratified (a Latin hypercube). "pue" is a position in the
    known PUE's interval, 0 to 1."""
    rows = COEFFICIENTS | REDUCTIONS | SERVER
    yield {**{name: row.value for name, row in rows.items()}, "pue": 0.5}
    rng = np.random.default_rng(seed)
    spots = {name: (rng.permutation(count) + rng.random(count)) / count for name in [*rows, "pue"]}
    for i in range(count):
        drawn = {name: row.low + (row.high - row.low) * float(spots[name][i]) for name, row in rows.items()}
        yield {**drawn, "pue": float(spots["pue"][i])}


def cop(outside: np.ndarray, load: float, set_point: float, drawn: Drawn) -> np.ndarray:
    """Coefficient of performance of a water-cooled chiller (heat moved per work), by outside temperature in °C, plant load 0 to 1 and supply air.

    Regression on part load and condenser water of Lei & Masanet (2020), held within the data it was made on (load 0.2 to 0.8, water 12 to 39 °C),
    times how the ideal cycle's performance changes with the set point, to the power `lift` (Carnot 1824).
    """
    x = min(max(load, 0.2), 0.8)
    water = np.clip(outside + drawn["approach"], 12.0, 39.0)
    regression = 16.798751 + 0.008840 * water**2 - 8.528931 * x**2 + 9.885294 * x - 0.760621 * water + 0.084615 * x * water
    return drawn["chiller"] * regression * (_carnot(set_point, water) / _carnot(REFERENCE, water)) ** drawn["lift"]


def _carnot(set_point: float, water: np.ndarray) -> np.ndarray:
    """Ideal performance between chilled and condenser water, the latter of 25 °C at least, with a lift of 6 K at least: compressors need some."""
    chilled = set_point - SHIFT
    return (chilled + 273.15) / np.maximum(np.maximum(water, 25.0) - chilled, 6.0)


def share_by_chiller(outside: np.ndarray, set_point: float, drawn: Drawn) -> np.ndarray:
    """Part of the heat left to the chiller when outside air helps: 0 up to the set point less a margin, 1 from the return air's temperature on."""
    return np.clip((outside - (set_point - drawn["margin"])) / drawn["air_rise"], 0.0, 1.0)


def power_loss(it_kw: np.ndarray, rated_kw: float, drawn: Drawn) -> np.ndarray:
    """Kilowatts lost between the meter and the servers: fixed + proportional + square-law parts."""
    x = it_kw / rated_kw
    shape = drawn["loss_fixed"] + (1 - drawn["loss_fixed"] - drawn["loss_square"]) * x + drawn["loss_square"] * x**2
    return rated_kw * (drawn["ups_loss"] + drawn["wire_loss"]) * shape


def fan_power(heat_kw: np.ndarray, rated_kw: float, drawn: Drawn, pressure: float = 1.0) -> np.ndarray:
    """Kilowatts of the hall's fans: air flow × pressure / efficiency, of which `fan_fixed` runs whatever the load. `pressure` scales the pressure."""
    per_kw = pressure * drawn["fan_pressure"] / (1.01 * drawn["air_rise"] * 1.2 * drawn["fan_efficiency"] * 1000.0)
    return per_kw * (drawn["fan_fixed"] * rated_kw + (1 - drawn["fan_fixed"]) * heat_kw)


def overhead(hall: Hall, it_kw: np.ndarray, outside: np.ndarray, drawn: Drawn, chilled: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Kilowatts on top of the IT load by part (names of PARTS), for loads `it_kw` [T] and outside temperatures [T] in °C; not yet scaled to a PUE.

    `chilled` [T] is the part of the heat that the chiller moves; by default all of it, or what outside air leaves where the hall has an economiser.
    """
    rated = float(hall.rated_kw or hall.it_kw)
    lost = power_loss(it_kw, rated, drawn)
    light = np.full_like(it_kw, rated * drawn["lighting"])
    heat = it_kw + lost + light
    if chilled is None:
        chilled = share_by_chiller(outside, hall.set_point, drawn) if hall.cooling == "economiser" else np.ones_like(outside)
    pressure = 1.0 + (drawn["filter"] - 1.0) * (chilled < 1)
    fans = fan_power(heat, rated, drawn) * pressure
    chiller = chilled * heat / cop(outside, hall.utilisation, hall.set_point, drawn)
    return {"cooling": fans + chiller + chilled * heat * drawn["water_side"], "power delivery": lost, "lighting and other": light}


@dataclass(frozen=True)
class Weather:
    """Outside dry-bulb temperatures by hour in °C [T], and where from. Without hourly ones there is a single mean, and no free-cooling hours are
    told.
    """

    celsius: np.ndarray
    hourly: bool
    source: str
    start: str = ""


ANYWHERE = Weather(np.array([15.0]), False, "15 °C all year round (assumed: no hourly temperatures were given)")


def scale(hall: Hall, raw: Mapping[str, np.ndarray], it_kw: np.ndarray, pue: float | None) -> float:
    """What the model's overhead must be multiplied by to give the hall's known PUE over these hours; 1 where it is not known."""
    if pue is None:
        return 1.0
    return max(pue - 1.0, 0.0) * float(it_kw.sum()) / float(sum(part.sum() for part in raw.values()))


def known_pue(hall: Hall, position: float) -> float | None:
    """The hall's PUE at `position` (0 to 1) of its interval; 0.5 is the value itself."""
    if hall.pue is None:
        return None
    (low, high), value = hall.pue.bounds, hall.pue.value
    return value + (high - value) * (2 * position - 1) if position >= 0.5 else value - (value - max(low, 1.0)) * (1 - 2 * position)


def changed(hall: Hall, **facts: object) -> Hall:
    """The hall with other facts, its known PUE left to the caller (which scales by the old one)."""
    return replace(hall, **facts)


def figure(values: list[float], unit: str = "1", grade: str = "modelled", method: str = "", source: str = "") -> Quantity:
    """A Quantity of the middle value (the first) with the 5 % and 95 % quantiles of the others."""
    low, high = (float(np.quantile(values[1:], q)) for q in (0.05, 0.95)) if len(values) > 2 else (values[0], values[0])
    return Quantity(values[0], unit, grade, low=min(low, values[0]), high=max(high, values[0]), method=method, source=source)


# ---- what others report ----------------------------------------------------------------------------------------------------------------------------

REDUCTIONS: dict[str, Coefficient] = {
    "immersion": Coefficient(0.97, 0.94, 0.97, "of cooling energy", "published",
                             "operators: up to 97 % (NTT DATA, two-phase; as quoted, primary text not seen), 94 % (KDDI and others 2023, PUE 1.05), "
                             "over 95 % (LiquidStack, Hong Kong, PUE 1.02)", "cut of cooling energy by immersing servers in liquid"),
    "overcooling": Coefficient(0.35, 0.15, 0.40, "of cooling energy", "published",
                               "operators: 35 % (over-cooling control; as quoted, primary text not seen), up to 40 % (DeepMind and Google 2016); "
                               "low end assumed, because 'up to' is the best case", "cut of cooling energy by cooling no more than the servers need"),
}                                                                      # fractions; never measured by this project


# ---- servers ---------------------------------------------------------------------------------------------------------------------------------------

SERVER: dict[str, Coefficient] = {
    "idle": Coefficient(0.30, 0.17, 0.50, "of busy power", "published",
                        "0.17 to 0.32 over eight cloud processor families (Cloud Carbon Footprint); about one half in Barroso & Hölzle 2007",
                        "power of an idle server over that of a busy one"),
    "exponent": Coefficient(1.4, 1.0, 1.8, "1", "published", "Fan, Weber & Barroso 2007: P = idle + (busy - idle)(2u - u^1.4); 1 is a straight line",
                            "curvature of power over utilisation"),
}


def dynamic_share(utilisation: np.ndarray, exponent: float) -> np.ndarray:
    """Part of the idle-to-busy range that a server draws at `utilisation` 0 to 1: 2u - u^r (Fan, Weber & Barroso 2007, r = 1.4); r = 1 is u
    itself.
    """
    return 2 * utilisation - np.power(utilisation, exponent)


def stated_pue(value: float | Quantity) -> Quantity:
    """A PUE as someone states it: a bare number is taken to ±3 %, never below 1. Raises InputError below 1."""
    if isinstance(value, Quantity):
        return value
    if not (np.isfinite(value) and value >= 1):
        raise InputError(f"A PUE of {value:g} cannot be: a hall uses what its servers use, and more.",
                         "PUE = energy of the hall / energy of its IT, 1.0 or more.")
    return Quantity(float(value), "1", "assumed", low=max(1.0, value * 0.97), high=value * 1.03, method="PUE as given, ±3 %",
                    source=f"PUE {value:g} as given")
