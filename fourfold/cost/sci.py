"""Software carbon intensity: SCI = (O + M) per R, of the Green Software Foundation's SCI specification 1.1 (ISO/IEC 21031:2024).

    O = E × I                             E: energy reserved and used, the hall's overhead with it; I: location-based, average or marginal
    M = TE × (TiR / EL) × (RR / ToR)      what making the hardware emitted, by time and resources reserved (cost/embodied.py)
    R                                     one functional unit: a request, a training, a user

Both parts are owed; market-based figures (certificates, contracts) are barred from both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from fourfold.errors import Infeasible, InputError
from fourfold.units import Quantity


@dataclass(frozen=True)
class Sci:
    """`score` = (`operational` + `embodied`) / `per`, all in gCO2e; one `unit` is what the score is for. `notes`: what its reader must know."""

    operational: Quantity
    embodied: Quantity
    total: Quantity
    score: Quantity
    per: float
    unit: str
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        figures = {name: getattr(self, name).to_json() for name in ("operational", "embodied", "total", "score")}
        return {**figures, "per": self.per, "unit": self.unit, "shares": [share.to_json() for share in self.score.shares()], "notes": self.notes}

    def __str__(self) -> str:
        return f"SCI = {self.score} per {self.unit}"


def operational(energy: Quantity, intensity: Quantity) -> Quantity:
    """O in gCO2e. Raises InputError for negative figures and a market-based intensity."""
    for name, figure, unit in (("energy", energy, "kWh"), ("carbon intensity", intensity, "gCO2e/kWh")):
        if figure.to(unit).value < 0:
            raise InputError(f"The {name} cannot be negative: {figure}.", "Give a figure from 0 up.")
    _located(intensity, "intensity")
    return (energy.at("") * intensity.at("")).to("gCO2e").at(energy.boundary)


def sci(operational: Quantity | None, embodied: Quantity | None, per: float = 1.0, unit: str = "run") -> Sci:
    """The score of work that took `operational` and `embodied` CO2e and gave `per` of the functional `unit`.

    Raises InputError for market-based, negative and unlike figures and for `per` not above 0; Infeasible where O or M is missing: both are mandatory.
    """
    if operational is None or embodied is None:
        name = "operational carbon (E × I)" if operational is None else "embodied carbon (M)"
        mend = "Meter with --site." if operational is None else "Give --embodied, such as luccioni-server, with --life and --share."
        raise Infeasible(f"An SCI score needs {name}, which is missing here.", mend)
    if isinstance(per, bool) or not math.isfinite(per) or per <= 0:
        raise InputError(f"A score per {per!r} {unit} has no meaning.", "Give how many functional units the work gave, above 0.")
    if not unit.strip():
        raise InputError("The functional unit has no name.", "Say what the score is per: request, training, user.")
    for name, figure in (("operational", operational), ("embodied", embodied)):
        _located(figure, name)
        if figure.to("gCO2e").value < 0:
            raise InputError(f"The {name} carbon cannot be negative: {figure}.", "Savings and offsets are no part of a score.")
    whole, made = operational.to("gCO2e"), embodied.to("gCO2e").at(operational.boundary)
    made = made if made.signal == whole.signal else replace(made, signal=whole.signal)   # what was emitted in making has no signal of its own
    summed = whole + made
    notes = [f"Intensity: {whole.signal or 'of unstated signal'}, location-based. Embodied: {embodied.method}."]
    if whole.boundary != "hall":
        notes.append("The hall's overhead (PUE) is not in it: the energy's boundary is " + (whole.boundary or "not stated") + ".")
    if whole.value and made.value > whole.value:
        notes.append(f"Embodied carbon is {made.value / summed.value:.0%} of the score, and known to × or ÷ 3 only.")
    return Sci(whole, made, summed, summed / per, float(per), unit.strip(), notes)


def _located(figure: Quantity, name: str) -> None:
    if figure.signal == "market":
        raise InputError(f"A market-based {name} figure is barred from an SCI score.", "Give the location-based one: what the grid there emits.")
