"""How many joules a piece of work took, in one figure: a meter where there is one, else counted CPU time × a stated power model, and which it was.

    with window() as used:
        work()
    print(used.joules, used.cpu, used.wall)

`fourfold.Meter` tells them by component, and the job's own share of a host; this is the host as its meter reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from fourfold.host import Host, here, power
from fourfold.measure.meter import Meter, known
from fourfold.units import Quantity


def modelled(cpu: float, machine: Host | None = None) -> Quantity:
    """Joules of `cpu` seconds of processor time under the stated power of a busy logical core of `machine` (default: this one).

    J = CPU seconds × W per busy logical core. Linear: a core's share of idle power is in the busy figure and an idle core is charged to nobody, so
    two half-loaded machines cost what one full machine does. The error of the watts is shared, and cancels in ratios on one machine.
    """
    row = power(machine or here())
    joules = row.busy * Quantity(cpu, "s", "counted", boundary="process", method="CPU time of all threads and finished children")
    return replace(joules, grade="modelled", method=f"CPU time × {row.busy.value:g} W per busy core ({row.title}, {row.busy.grade})")


@dataclass
class Energy:
    """What a window saw, filled when it closes: `wall` and `cpu` seconds, `joules` of the processors, `device` joules of the GPUs (None: no meter).

    `why` says of each meter that was not used why not.
    """

    wall: float = 0.0
    cpu: float = 0.0
    joules: Quantity | None = None
    device: Quantity | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """How `joules` was got, in words."""
        return self.joules.method if self.joules else "the window is still open"


@contextmanager
def window(given: Sequence[Any] | None = None, clock: object = None, machine: Host | None = None) -> Iterator[Energy]:
    """Measure what runs inside the `with` block. Its Energy is filled when the block ends, also by an exception.

    `given` meters replace the known ones (tests, a wall meter); `clock` replaces the system's. A meter that dies midway leaves the modelled
    figure and its reason. Joules of a host meter count everything that ran on the host; the model counts this process alone: `boundary` says which.
    """
    meters = known() if given is None else given
    used, meter = Energy(), Meter(meters=given, clock=clock).start()
    try:
        yield used
    finally:
        use = meter.stop()
        used.wall, used.cpu = use.wall, use.cpu or 0.0
        used.joules, used.device = use.host or modelled(used.cpu, machine), use.charge.devices
        used.why = {meter.name: use.why[meter.name] for meter in meters if meter.name in use.why}
