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
    most, limit = each[worst] / 2**30, problem.limit / 2**30
    if each[worst] > problem.limit:
        return Infeasible(f"No plan fits {limit:.3g} GiB a device: {table.layers[worst]} alone needs {most:.3g} GiB, {most - limit:.3g} more, "
                          "on its best submesh.", f"Give --memory {most:.3g}GiB, more devices, or smaller microbatches (more of them).")
    total = (need[:, diagonal, diagonal] * table.devices[own][:, None]).min(axis=0).sum() / 2**30
    return Infeasible(f"No plan of {count} layers fits {limit:.3g} GiB on each of {problem.devices} devices: the layers need at least {total:.3g} "
                      f"GiB of the {limit * problem.devices:.3g} in all, and no cut of them into stages fits.",
                      "Give more devices, a higher --memory, smaller microbatches (more of them), or --schedule 1f1b.")
