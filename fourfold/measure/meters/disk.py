"""Energy of bytes moved to and from storage, over what the drive draws at rest.

No published figure per byte was at hand, so both are `assumed`, from drive power over throughput: a solid-state drive that draws 2 to 9 W more at
work and moves 0.3 to 3 GB/s spends 1 to 20 J/GB; a spinning one that draws 3 to 5 W more and moves 0.05 to 0.25 GB/s spends 12 to 100 J/GB.
Only bytes that reached the drive count: what the page cache answered moved nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fourfold.units import Quantity


@dataclass(frozen=True)
class Drive:
    """Joules per 1e9 bytes moved."""

    kind: str
    joules: float
    low: float
    high: float

    def modelled(self, moved: float) -> Quantity:
        """Joules of `moved` bytes."""
        gigabytes = moved / 1e9
        return Quantity(gigabytes * self.joules, "J", "assumed", low=gigabytes * self.low, high=gigabytes * self.high, boundary="process",
                        source=f"assumed for a {self.kind}: drive power at work over throughput",
                        method=f"bytes read and written × {self.joules:g} J/GB [{self.low:g}, {self.high:g}]")

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "joules": self.joules, "low": self.low, "high": self.high}


SOLID, SPINNING = Drive("solid-state drive", 5.0, 1.0, 20.0), Drive("spinning drive", 40.0, 12.0, 100.0)
EITHER = Drive("drive of unknown kind", 10.0, 1.0, 100.0)


def drive(sys: Path = Path("/sys")) -> Drive:
    """What this computer's drives are: all solid-state, all spinning, or unknown (a mix; virtual drives, whose word is worth nothing)."""
    kinds = set()
    for block in sorted((sys / "block").glob("*")):
        if block.name.startswith(("loop", "ram", "zram", "dm-", "md", "sr", "fd", "vd", "xvd")):
            continue
        try:
            kinds.add((block / "queue/rotational").read_text().strip())
        except OSError:
            continue
    return {frozenset({"0"}): SOLID, frozenset({"1"}): SPINNING}.get(frozenset(kinds), EITHER)
