"""Dense MLPs of a model turned into routed layers: the edit, what is offered, and the padding mask that the layers hear.

An edit is what `MLPSite.edits` writes, with `experts`, `capacity_factor` and `how` ("split" | "copies"; see `RoutedMLP.of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.rewrite import Context, Conversion, Proposal
from fourfold.rewrites.route._experts import DenseMLP
from fourfold.rewrites.route._routed import RoutedMLP
from fourfold.structure.cores import PaddingMask, mlp_weights, put_mlp
from fourfold.structure.sites import MLPSite, Sites, sites

EXPERTS, CAPACITY = 8, 2.0


def routed(model: nn.Module, edit: Mapping[str, Any], kind: type[RoutedMLP], **settings: object) -> nn.Module:
    """Puts a layer of `kind` in the place of the MLP that `edit` names, in place, made from its weights. Raises ModelError where it does not fit."""
    weights: dict[str, Any] = {name: None if w is None else w.detach() for name, w in mlp_weights(model, edit).items()}
    activation = edit["function"] or model.get_submodule(edit["activation"])
    dense = DenseMLP(**weights, activation=activation)
    layer = kind.of(dense, edit["experts"], how=edit["how"], capacity_factor=edit["capacity_factor"], **settings)
    layer.padding = PaddingMask.of(model)
    return put_mlp(model, edit, layer)


def offered(found: Sites, kind: str, fit: Callable[[MLPSite], str | None]) -> list[Conversion]:
    """A conversion of each MLP that another layer can replace and that `fit` (site → reason or None) does not refuse.

    Raises ModelError, with the first reasons, where there is none.
    """
    made, reasons = [], list(found.refusals.values())
    for site in found.mlps:
        why = fit(site) or _refused(site)
        if why:
            reasons.append(f"{site.name}: {why}")
            continue
        edits = site.edits(kind, experts=EXPERTS, capacity_factor=CAPACITY, how="split")
        note = f"{site.hidden} neurons in {EXPERTS} experts, of which a token uses {CAPACITY:g} in the mean; wants recovery by distillation"
        made.append(Conversion(site.name, site.path, edits, False, note))
    if not made:
        raise ModelError("none of the model's MLPs can be turned into experts", "; ".join(reasons[:3]) or "It has no MLP.")
    return made


def _refused(site: MLPSite) -> str | None:
    if not site.replaceable:
        return "it is part of a larger forward, which leaves no place for another layer"
    if site.hidden < 8 * EXPERTS:
        return f"{site.hidden} neurons are too few for {EXPERTS} experts of at least 8"
    return None


def proposal(context: Context, name: str, convert: Callable[[Sites, str], list[Conversion]]) -> Iterator[Proposal]:
    """All conversions at once; nothing where none fits or the model cannot be run here. The cost is counted: what share of the weights outside of
    tables the MLPs are, and what of them a token still uses."""
    module: nn.Module = context.subject.module
    try:
        made = convert(sites(module, context.call), name) if context.call else []
    except ModelError:
        return
    if not made:
        return
    tables = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    total = sum(p.numel() for p in module.parameters() if id(p) not in tables)
    mlps = sum(w.numel() for one in made for w in mlp_weights(module, one.edits[-1]).values() if isinstance(w, Tensor))
    saved = (1 - CAPACITY / EXPERTS) * min(1.0, mlps / max(1, total))
    yield Proposal(f"{name}-{EXPERTS}", tuple(edit for one in made for edit in one.edits), (1 - 0.8 * saved, 1 - saved, 1.2))


def told(edits: Sequence[Mapping[str, object]], router: str) -> str:
    """Edits in a few words."""
    if not edits:
        return f"experts by {router}"
    first, many = edits[0], len(edits)
    made = "copies of it" if first["how"] == "copies" else "its neurons"
    whole, each = f"{many} MLP{'s' if many > 1 else ''}", f"{first['capacity_factor']:g} a token"
    return f"{whole} as {first['experts']} experts made from {made}, {router}, {each}; distilled"
