"""The measured cost table: what each removable unit costs on this machine, from a handful of interleaved whole-model timings.

Model of a model: cost = fixed + Σ over sub-layers present of (a_k + b_k · share of units kept), one (a, b) pair for each kind k of sub-layer (same
stack, same kind, same full size). The coefficients are fitted by non-negative least squares to timed variants of the real model, so that framework
overheads, cache effects and memory traffic are in them; FLOPs are not asked. Units: seconds per pass over the timing set, or ratio to the full model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PruningSite:
    """A removable place: `kind` names the coefficient pair it shares, `full` is its number of units, `least` how many must stay (0: it may go
    whole)."""

    name: str
    kind: str
    full: int
    least: int = 0


@dataclass(frozen=True)
class CostTable:
    """Fitted prices relative to the full model (1.0). `coefficients[kind] = (a, b)`; `error` is the largest relative misfit over the timed
    variants."""

    fixed: float
    coefficients: dict[str, tuple[float, float]]
    error: float

    def price(self, site: PruningSite, size: int) -> float:
        """Cost of `site` with `size` units left; an absent sub-layer (0) costs nothing."""
        a, b = self.coefficients[site.kind]
        return 0.0 if size == 0 else a + b * size / site.full

    def total(self, sites: list[PruningSite], sizes: dict[str, int]) -> float:
        """Predicted cost of the whole model, sizes missing from the dict being full."""
        return self.fixed + sum(self.price(s, sizes.get(s.name, s.full)) for s in sites)


def variants(sites: list[PruningSite]) -> dict[str, dict[str, int]]:
    """The shapes to time: the full model, and for each kind its sub-layers at their least (absent, where they may go whole) and, where they have
    units, at half."""
    shapes: dict[str, dict[str, int]] = {"full": {}}
    for kind in dict.fromkeys(s.kind for s in sites):
        those = [s for s in sites if s.kind == kind]
        shapes[f"{kind}:least"] = {s.name: s.least for s in those}
        if those[0].full > 1:
            shapes[f"{kind}:half"] = {s.name: max(1, s.full // 2) for s in those}
    return shapes


def fit(sites: list[PruningSite], shapes: dict[str, dict[str, int]], measured: dict[str, float]) -> CostTable:
    """Fit the coefficients to measured costs (any unit) of `shapes`; prices come out relative to the full model."""
    from scipy.optimize import nnls

    kinds = list(dict.fromkeys(s.kind for s in sites))
    names = [n for n in shapes if n in measured]
    scale = measured["full"]
    rows = np.zeros((len(names), 1 + 2 * len(kinds)))
    for r, name in enumerate(names):
        rows[r, 0] = 1.0
        for s in sites:
            size = shapes[name].get(s.name, s.full)
            if size:
                k = 1 + 2 * kinds.index(s.kind)
                rows[r, k] += 1.0
                rows[r, k + 1] += size / s.full
    target = np.array([measured[n] / scale for n in names])
    # The tiny ridge settles kinds without a half-way timing, whose presence and size columns are the same: it shares the cost between the two.
    ridge = 1e-4 * np.eye(rows.shape[1])
    answer, _ = nnls(np.vstack([rows, ridge]), np.concatenate([target, np.zeros(rows.shape[1])]))
    error = float(np.max(np.abs(rows @ answer - target) / target))
    return CostTable(float(answer[0]), {k: (float(answer[1 + 2 * i]), float(answer[2 + 2 * i])) for i, k in enumerate(kinds)}, error)
