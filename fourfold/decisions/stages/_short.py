"""Why no pipeline fits, in words: by how many bytes, and what would help."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.stages.problem import StageConstruction
from fourfold.errors import Infeasible


def nothing_fits(problem: StageConstruction) -> Infeasible:
    """The error of a problem without an answer: the least limit under which the layer that needs most would fit, and what to ask for instead."""
    table = problem.table
    own = table.devices <= problem.devices
    count = len(table.layers)
    diagonal = np.arange(count)
    flights = problem.microbatches if problem.schedule == "gpipe" else 1
    need = np.where(table.possible[own], table.held[own] + table.active[own] * flights, np.inf)
    if not own.any() or not np.isfinite(need[:, diagonal, diagonal]).any(axis=0).all():
        return Infeasible(f"No submesh of {problem.devices} devices can run every layer.",
                          "Give more devices, or a mesh whose axes divide the sizes.")
    each = need[:, diagonal, diagonal].min(axis=0)
    worst = int(each.argmax())
    limit = problem.limit
    if each[worst] > limit:
        return Infeasible(f"No plan fits {_bytes(limit)} a device: {table.layers[worst]} alone needs {_bytes(each[worst])}, "
                          f"{_bytes(each[worst] - limit)} more, on its best submesh.",
                          f"Give --memory {_asked(each[worst])}, more devices, or smaller microbatches (more of them).")
    total = float((need[:, diagonal, diagonal] * table.devices[own][:, None]).min(axis=0).sum())
    return Infeasible(f"No plan of {count} layers fits {_bytes(limit)} on each of {problem.devices} devices: layers need at least {_bytes(total)} "
                      f"of the {_bytes(limit * problem.devices)} in all, and no cut of them into stages fits.",
                      f"Give more devices, --memory {_asked(max(2 * limit, total / problem.devices))}, smaller microbatches (more of them), or "
                      "--schedule 1f1b.")


def _bytes(value: float) -> str:
    """"14.9 GiB"."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _asked(value: float) -> str:
    """As --memory takes it, rounded up: "15GiB"."""
    unit, size = next(((unit, size) for unit, size in (("GiB", 2**30), ("MiB", 2**20)) if value >= size), ("KiB", 2**10))
    return f"{-(-value * 10 // size) / 10:g}{unit}"
