"""fourfold makes a trained model cost less energy, time, memory and money on your machine, above a quality floor, and proves each factor.

Nothing is imported until it is asked for: `import fourfold` costs a millisecond.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourfold.errors import ArtefactError, FourfoldError, Infeasible, InputError, MetricError, MissingExtra, ModelError
    from fourfold.journal import Journal
    from fourfold.ledger import Ledger
    from fourfold.machine import Machine, here
    from fourfold.optimize import Front, optimize
    from fourfold.recipe import Recipe
    from fourfold.run import load
    from fourfold.units import Quantity
    from fourfold.workload import Workload

__version__ = "0.1.0"

_HOMES = {
    "ArtefactError": "errors", "FourfoldError": "errors", "Infeasible": "errors", "InputError": "errors", "MetricError": "errors",
    "MissingExtra": "errors", "ModelError": "errors",
    "Front": "optimize", "optimize": "optimize", "load": "run", "Recipe": "recipe",
    "Journal": "journal", "Ledger": "ledger", "Machine": "machine", "here": "machine", "Quantity": "units", "Workload": "workload",
}                                                                      # public name → the module that holds it

__all__ = [
    "ArtefactError", "FourfoldError", "Front", "Infeasible", "InputError", "Journal", "Ledger", "Machine", "MetricError", "MissingExtra",
    "ModelError", "Quantity", "Recipe", "Workload", "here", "load", "optimize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fourfold' has no attribute {name!r}")
    # Bound here afterwards: importing the submodule `optimize` would otherwise leave the module under the function's name.
    value = getattr(import_module(f"fourfold.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
