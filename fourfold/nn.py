"""The layers of the techniques as public names: `from fourfold.nn import …`.

Each is defined in the file of its technique and imported from there when it is asked for; `import fourfold.nn` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES: dict[str, str] = {
    "CausalDepthwiseConv": "rewrites.attend.primer",
    "PrimerAttention": "rewrites.attend.primer",
    "PrimerBlock": "rewrites.attend.primer",
    "ReLUSquared": "rewrites.attend.primer",
    "SoftmaxCore": "structure.cores",
    "SparseMLP": "rewrites.route.sparse_mlp",
    "TopK": "rewrites.route.sparse_mlp",
    "decoding": "rewrites.attend.primer",
}                                                                      # public name → the module that holds it; one line a name

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fourfold.nn' has no attribute {name!r}")
    value = getattr(import_module(f"fourfold.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
