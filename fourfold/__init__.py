"""fourfold makes a trained model cost less energy, time, memory and money on your machine, above a quality floor, and proves each factor.

Nothing is imported until it is asked for: `import fourfold` costs a millisecond.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourfold.cost.footprint import footprint
    from fourfold.cost.whatif import whatif
    from fourfold.errors import ArtefactError, FourfoldError, Infeasible, InputError, MetricError, MissingExtra, ModelError
    from fourfold.journal import Journal
    from fourfold.ledger import Ledger
    from fourfold.machine import Machine, here
    from fourfold.measure.meter import Meter
    from fourfold.optimize import optimize
    from fourfold.plan import Plan
    from fourfold.planner import plan
    from fourfold.recipe import Recipe
    from fourfold.report.front import Choice, Front
    from fourfold.run.loading import load
    from fourfold.run.verify import verify
    from fourfold.units import Quantity
    from fourfold.workload import Workload

__version__ = "0.1.0"

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")   # read when torch is loaded: threads that spin for one another burn minutes beside other work

_HOMES = {
    "ArtefactError": "errors", "FourfoldError": "errors", "Infeasible": "errors", "InputError": "errors", "MetricError": "errors",
    "MissingExtra": "errors", "ModelError": "errors",
    "Choice": "report.front", "Front": "report.front", "optimize": "optimize", "load": "run.loading", "Recipe": "recipe", "verify": "run.verify",
    "Plan": "plan", "plan": "planner",
    "Meter": "measure.meter", "Journal": "journal", "Ledger": "ledger", "Machine": "machine", "here": "machine",
    "Quantity": "units", "Workload": "workload", "footprint": "cost.footprint", "whatif": "cost.whatif",
}                                                                      # public name → the module that holds it

__all__ = [
    "ArtefactError", "Choice", "FourfoldError", "Front", "Infeasible", "InputError", "Journal", "Ledger", "Machine", "Meter", "MetricError",
    "MissingExtra", "ModelError", "Plan", "Quantity", "Recipe", "Workload", "footprint", "here", "load", "optimize", "plan", "verify", "whatif",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fourfold' has no attribute {name!r}")
    value = getattr(import_module(f"fourfold.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Importing a submodule binds it in its package; a function of the module's name (`optimize`, `plan`) is what stays bound."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            if _HOMES[name] != name:                                    # the function lives in another module, and is imported when it is asked for
                return
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
