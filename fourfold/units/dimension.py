"""Units of what is counted here, by size and exponents; ratios of known units are units too."""

from __future__ import annotations

import functools

from fourfold.errors import InputError

NAMES = ("J", "s", "B", "gCO2e", "USD", "FLOP")
_SCALES: dict[str, tuple[float, dict[str, int]]] = {
    "1": (1.0, {}), "%": (0.01, {}),
    "mJ": (1e-3, {"J": 1}), "J": (1.0, {"J": 1}), "kJ": (1e3, {"J": 1}), "Wh": (3600.0, {"J": 1}), "kWh": (3.6e6, {"J": 1}), "MWh": (3.6e9, {"J": 1}),
    "s": (1.0, {"s": 1}), "ms": (1e-3, {"s": 1}), "us": (1e-6, {"s": 1}), "min": (60.0, {"s": 1}), "h": (3600.0, {"s": 1}),
    "d": (86400.0, {"s": 1}), "yr": (31536000.0, {"s": 1}),             # a year of 365 days, as the SCI specification's own example counts
    "W": (1.0, {"J": 1, "s": -1}), "mW": (1e-3, {"J": 1, "s": -1}), "kW": (1e3, {"J": 1, "s": -1}), "MW": (1e6, {"J": 1, "s": -1}),
    "B": (1.0, {"B": 1}), "kB": (1e3, {"B": 1}), "MB": (1e6, {"B": 1}), "GB": (1e9, {"B": 1}), "TB": (1e12, {"B": 1}),
    "KiB": (2.0**10, {"B": 1}), "MiB": (2.0**20, {"B": 1}), "GiB": (2.0**30, {"B": 1}), "B/s": (1.0, {"B": 1, "s": -1}),
    "mgCO2e": (1e-3, {"gCO2e": 1}), "gCO2e": (1.0, {"gCO2e": 1}), "kgCO2e": (1e3, {"gCO2e": 1}), "tCO2e": (1e6, {"gCO2e": 1}),
    "gCO2e/J": (1.0, {"gCO2e": 1, "J": -1}), "gCO2e/kWh": (1 / 3.6e6, {"gCO2e": 1, "J": -1}),
    "USD": (1.0, {"USD": 1}), "USD/J": (1.0, {"USD": 1, "J": -1}), "USD/kWh": (1 / 3.6e6, {"USD": 1, "J": -1}),
    "FLOP": (1.0, {"FLOP": 1}), "GFLOP": (1e9, {"FLOP": 1}), "FLOP/s": (1.0, {"FLOP": 1, "s": -1}), "FLOP/J": (1.0, {"FLOP": 1, "J": -1}),
}
UNITS: dict[str, tuple[float, tuple[int, ...]]] = {
    unit: (scale, tuple(powers.get(name, 0) for name in NAMES)) for unit, (scale, powers) in _SCALES.items()
}                                                                      # unit → (size in base units, exponents of J s B gCO2e USD FLOP)


@functools.lru_cache(maxsize=512)
def sized(name: str) -> tuple[float, tuple[int, ...]]:
    """Size in base units and exponents; ratios of known units ("W/GB", "USD/h") are units too."""
    if name in UNITS:
        return UNITS[name]
    parts = name.split("/") if isinstance(name, str) else []
    if len(parts) < 2 or any(part not in UNITS for part in parts):
        raise InputError(f"{name!r} is not a unit that fourfold knows.", f"Use one of: {', '.join(UNITS)}; or a ratio of them, such as W/GB.")
    scale, powers = UNITS[parts[0]]
    for part in parts[1:]:
        scale, powers = scale / UNITS[part][0], tuple(a - b for a, b in zip(powers, UNITS[part][1], strict=True))
    return scale, powers


def based(dimension: tuple[int, ...]) -> str:
    for name, (scale, powers) in UNITS.items():
        if powers == dimension and scale == 1.0:
            return name
    above = [name for name, power in zip(NAMES, dimension, strict=True) if power == 1]
    below = [name for name, power in zip(NAMES, dimension, strict=True) if power == -1]
    if len(above) <= 1 and len(above) + len(below) == sum(map(abs, dimension)):
        return "/".join([*(above or ["1"]), *below])
    parts = " ".join(f"{name}^{power}" for name, power in zip(NAMES, dimension, strict=True) if power)
    raise InputError(f"The result would have the unit {parts}, which has no name here.", "Convert or divide the parts first.")
