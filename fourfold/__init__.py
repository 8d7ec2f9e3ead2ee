"""fourfold makes a trained model cost less energy, time, memory and money on your machine, above a quality floor, and proves each factor.

Nothing is imported until it is asked for: `import fourfold` costs a millisecond.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fourfold._version import __version__ as __version__
from fourfold.lazy import imported

if TYPE_CHECKING:
    from fourfold.cost.footprint import footprint
    from fourfold.cost.whatif import whatif
    from fourfold.errors import ArtefactError, FourfoldError, Infeasible, InputError, MetricError, MissingExtra, ModelError
    from fourfold.host import Host, here
    from fourfold.jobs.allocate import allocate
    from fourfold.jobs.convert import convert
    from fourfold.jobs.differentiate import grad, linearize, transpose, unzip
    from fourfold.jobs.distribute import shard
    from fourfold.jobs.optimize import optimize
    from fourfold.jobs.optimize.front import Choice, Front
    from fourfold.jobs.plan import plan
    from fourfold.jobs.profile import profile
    from fourfold.jobs.verify import verify
    from fourfold.journal import Journal
    from fourfold.ledger.book import Ledger
    from fourfold.machine import Machine
    from fourfold.measure.meter import Meter
    from fourfold.plans import Plan
    from fourfold.recipe import Recipe
    from fourfold.runtime.loading import load
    from fourfold.sharding.mesh import Mesh
    from fourfold.sharding.spec import P
    from fourfold.units import Quantity
    from fourfold.workload import Workload

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")   # read when torch is loaded: threads that spin for one another burn minutes beside other work

_HOMES = {
    "ArtefactError": "errors", "FourfoldError": "errors", "Infeasible": "errors", "InputError": "errors", "MetricError": "errors",
    "MissingExtra": "errors", "ModelError": "errors",
    "Choice": "jobs.optimize.front", "Front": "jobs.optimize.front", "optimize": "jobs.optimize", "load": "runtime.loading", "Recipe": "recipe",
    "verify": "jobs.verify", "Plan": "plans", "plan": "jobs.plan", "allocate": "jobs.allocate", "convert": "jobs.convert",
    "profile": "jobs.profile",
    "Meter": "measure.meter", "Journal": "journal", "Ledger": "ledger.book", "Host": "host", "here": "host", "Machine": "machine",
    "shard": "jobs.distribute", "P": "sharding.spec", "Mesh": "sharding.mesh",
    "linearize": "jobs.differentiate", "unzip": "jobs.differentiate", "transpose": "jobs.differentiate", "grad": "jobs.differentiate",
    "Quantity": "units", "Workload": "workload", "footprint": "cost.footprint", "whatif": "cost.whatif",
}                                                                      # public name → the module that holds it

__all__ = [
    "ArtefactError", "Choice", "FourfoldError", "Front", "Host", "Infeasible", "InputError", "Journal", "Ledger", "Machine", "Mesh", "Meter",
    "MetricError", "MissingExtra", "ModelError", "P", "Plan", "Quantity", "Recipe", "Workload", "allocate", "convert", "footprint", "grad", "here",
    "linearize", "load", "optimize", "plan", "profile", "shard", "transpose", "unzip", "verify", "whatif",
]


def __getattr__(name: str) -> object:
    return imported(globals(), _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

