"""The layers of the techniques as public names: `from fourfold.nn import …`.

Each is defined in the file of its technique and imported from there when it is asked for; `import fourfold.nn` costs nothing.
"""

from __future__ import annotations

from fourfold.lazy import imported

_HOMES: dict[str, str] = {
    "BoundedFeatures": "rewrites.attend.bounded_features",
    "CausalDepthwiseConv": "rewrites.attend.primer",
    "DenseMLP": "rewrites.route._experts",
    "ExpertChoice": "rewrites.route.expert_choice",
    "GraphDiffusionMask": "rewrites.attend._masks",
    "GridMask": "rewrites.attend._masks",
    "MaskedLinearAttention": "rewrites.attend.masked",
    "PrimerAttention": "rewrites.attend.primer",
    "PrimerBlock": "rewrites.attend.primer",
    "ReLUSquared": "rewrites.attend.primer",
    "SoftmaxCore": "structure.cores",
    "SparseMLP": "rewrites.route.sparse_mlp",
    "ToeplitzMask": "rewrites.attend._masks",
    "TopK": "rewrites.route.sparse_mlp",
    "TopTwo": "rewrites.route.top_two",
    "TreeAttention": "rewrites.attend.treeformer",
    "TreeMask": "rewrites.attend._masks",
    "decoding": "rewrites.attend.primer",
    "loads": "rewrites.route._routed",
    "routing_loss": "rewrites.route._routed",
    "use_experts": "rewrites.route._registered",
}                                                                      # public name → the module that holds it; one line a name

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    return imported(globals(), _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
