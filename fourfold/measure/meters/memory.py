"""Energy of memory: watts per gigabyte held, for as long as it is held.

0.3725 W/GB is Green Algorithms' rate (Lannelongue et al., 2021, doi:10.1002/advs.202100707, version 3 of the calculator); Cloud Carbon Footprint's is
0.392. Modules differ by generation, size and traffic, so the interval is 0.2 to 0.7 W/GB. Charged is what the job holds, never what is built in.
"""

from __future__ import annotations

from pathlib import Path

from fourfold.units import Quantity

WATTS, LOW, HIGH = 0.3725, 0.2, 0.7                                    # W per 1e9 bytes
_SOURCE = "Green Algorithms 0.3725 W/GB; the interval spans published rates and module sizes"


def modelled(byte_seconds: float) -> Quantity:
    """Joules of memory held: bytes × seconds × W/GB."""
    held = byte_seconds / 1e9
    return Quantity(held * WATTS, "J", "modelled", low=held * LOW, high=held * HIGH, boundary="process", source=_SOURCE,
                    method=f"bytes held × time × {WATTS} W/GB [{LOW}, {HIGH}]")


def in_use(proc: Path = Path("/proc")) -> int | None:
    """Bytes of memory that the whole host has in use; None where unreadable."""
    try:
        with open(proc / "meminfo", "rb") as file:
            sizes = dict(line.split(b":", 1) for line in file.read(4096).splitlines() if b":" in line)
        return (int(sizes[b"MemTotal"].split()[0]) - int(sizes[b"MemAvailable"].split()[0])) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return None
