"""What making the hardware emitted, and the part of it that a run owes.

    owed = total × (time reserved / expected life) × (resources reserved / total resources)          SCI specification 1.1, M = TE × TiR/EL × RR/ToR

Published totals for one accelerator differ tenfold, because they draw different boundaries: the dies alone, the card with its board and cooling, or
the server around it. So a row says its boundary, rows of different boundaries are told apart, and every total is known to × or ÷ 3 only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fourfold.errors import InputError
from fourfold.units import Quantity, total

BOUNDARIES = ("die", "card", "server")                                  # what of the machine a total speaks of
_THREE = math.log(3) / 1.6448536269514722                               # log-sd of × or ÷ 3 as a 90 % interval
_LUCCIONI = "Luccioni et al. 2022, arXiv:2211.02001; inputs as remembered"
_LLMCARBON = "LLMCarbon, data/hardware.csv of SotaroKaneda/MLCarbon: die area × carbon per area"
_ECOLOGITS = "EcoLogits 0.11"


@dataclass(frozen=True)
class EmbodiedCarbon:
    """What making one `title` emitted: `kilograms` CO2e within `boundary`, to be shared out over `years`, of which it is `used` in part."""

    id: str
    title: str
    boundary: str
    kilograms: float
    years: float
    grade: str
    source: str
    used: float = 1.0

    @property
    def total(self) -> Quantity:
        """kgCO2e, × or ÷ 3. Totals of one source share that error, for they rest on the same factors: their sum is no surer."""
        return Quantity(self.kilograms, "kgCO2e", self.grade, errors={f"embodied carbon by {self.source}": _THREE},
                        method=f"embodied carbon, boundary {self.boundary}", source=self.source)

    @property
    def life(self) -> Quantity:
        """Time in use until it is replaced, in hours."""
        return Quantity(self.years * 8760 * self.used, "h", "assumed", method=f"{self.years:g} years of 365 days, {self.used:.0%} of them in use",
                        source=self.source)

    def to_json(self) -> dict[str, object]:
        return {"id": self.id, "title": self.title, "boundary": self.boundary, "total": self.total.to_json(), "years": self.years, "used": self.used,
                "source": self.source}


ROWS = (
    EmbodiedCarbon("luccioni-gpu", "a data-centre GPU", "card", 150.0, 6.0, "assumed", _LUCCIONI, 0.85),
    EmbodiedCarbon("luccioni-server", "a server without its GPUs", "server", 2500.0, 6.0, "assumed", _LUCCIONI, 0.85),
    EmbodiedCarbon("ecologits-h100", "an H100 80 GB", "card", 164.0, 3.0, "published", _ECOLOGITS),
    EmbodiedCarbon("ecologits-server", "a server without its 8 GPUs", "server", 5700.0, 3.0, "published", _ECOLOGITS),
    EmbodiedCarbon("llmcarbon-v100", "the dies of a V100 (8.15 cm² × 1.2 kg)", "die", 9.78, 5.0, "published", _LLMCARBON),
    EmbodiedCarbon("llmcarbon-h100", "the dies of an H100 (8.14 cm² × 1.8 kg)", "die", 14.65, 5.0, "published", _LLMCARBON),
    EmbodiedCarbon("llmcarbon-tpuv3", "the dies of a TPUv3 (7 cm² × 1 kg)", "die", 7.0, 5.0, "published", _LLMCARBON),
    EmbodiedCarbon("llmcarbon-tpuv4", "the dies of a TPUv4 (4 cm² × 1.6 kg)", "die", 6.4, 5.0, "published", _LLMCARBON),
)
PER_GIGABYTE = {"dram": 0.4, "ssd": 0.018}                              # kgCO2e a GB, LLMCarbon
SCHEMES = {                                                             # name → (a module, the server around it)
    "luccioni": ("luccioni-gpu", "luccioni-server"), "ecologits": ("ecologits-h100", "ecologits-server"),
    "llmcarbon-v100": ("llmcarbon-v100", ""), "llmcarbon-h100": ("llmcarbon-h100", ""), "llmcarbon-tpuv3": ("llmcarbon-tpuv3", ""),
    "llmcarbon-tpuv4": ("llmcarbon-tpuv4", ""),
}


def made(name: str) -> EmbodiedCarbon:
    """The row called `name`. Raises InputError for an unknown one."""
    for row in ROWS:
        if row.id == name:
            return row
    raise InputError(f"{name!r} is no embodied total that fourfold knows.", f"Use one of: {', '.join(row.id for row in ROWS)}.")


def owed(whole: Quantity, reserved: Quantity, life: Quantity, share: Quantity | float = 1.0) -> Quantity:
    """The part of `whole` (CO2e) that a reservation of `reserved` time out of `life` owes, for `share` of the machine's resources; in gCO2e.

    Raises InputError for negative or market-based figures, a life that is not positive, a reservation beyond it, and shares outside 0 to 1.
    """
    part = share if isinstance(share, Quantity) else Quantity(share, "1", "counted", method="share of the machine")
    kinds = (("embodied total", whole, "gCO2e"), ("time reserved", reserved, "s"), ("expected life", life, "s"), ("share", part, "1"))
    for name, figure, unit in kinds:
        if figure.to(unit).value < 0:
            raise InputError(f"The {name} cannot be negative: {figure}.", "Give a figure from 0 up.")
    if whole.signal == "market":
        raise InputError("Embodied carbon net of purchased certificates is barred from an SCI score.", "Give what making the hardware emitted.")
    if life.value <= 0 or reserved > life.at(reserved.boundary):
        raise InputError(f"A reservation of {reserved} does not fit into a life of {life}.", "Give an expected life that is longer, such as 4 yr.")
    if part.value > 1:
        raise InputError(f"A share of {part.value:g} is more than the whole machine.", "Give resources reserved / total resources, 0 to 1.")
    return (whole * (reserved.at("") / life) * part).to("gCO2e")


def per_hour(scheme: str, modules_per_server: int = 8) -> dict[str, Quantity]:
    """gCO2e that one module in use owes in an hour, by boundary: its own ("card" or "die"), and its part of the server's where the scheme has one.

    Raises InputError for an unknown scheme and a count that is not positive.
    """
    if scheme not in SCHEMES:
        raise InputError(f"{scheme!r} is no way to count embodied carbon that is known.", f"Use one of: {', '.join(SCHEMES)}.")
    if modules_per_server < 1:
        raise InputError(f"A server holds at least one module, not {modules_per_server}.", "Give how many share one server, such as 8.")
    module, server = SCHEMES[scheme]
    hour = Quantity(1.0, "h", "counted")
    found = {(row := made(module)).boundary: owed(row.total, hour, row.life)}
    if server:
        found["server"] = owed((row := made(server)).total, hour, row.life, 1.0 / modules_per_server)
    return found


def together(parts: Iterable[Quantity]) -> Quantity:
    """The sum of what was made: wide intervals are drawn, not linearised (`units.total`)."""
    return total(parts)


def of_threads(threads: float) -> Quantity:
    """The share of an unknown server that `threads` logical processors are: of 96 [32, 256] (assumed)."""
    if not threads > 0:
        raise InputError(f"A run reserves at least a part of a processor, not {threads:g}.", "Give the logical processors that were reserved.")
    share, low, high = (min(1.0, threads / whole) for whole in (96, 256, 32))
    return Quantity(share, "1", "assumed", low, high, source="a server has 96 [32, 256] threads", method=f"{threads:g} threads of a server's 96")


def of_server(seconds: float, threads: float) -> Quantity:
    """gCO2e that a run of `seconds` on `threads` logical processors owes, where nothing better is known: their share of "luccioni-server"."""
    row = made("luccioni-server")
    return owed(row.total, Quantity(seconds, "s", "measured"), row.life, of_threads(threads))
