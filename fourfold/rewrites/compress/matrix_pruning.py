"""Matrix pruning: rows and columns of the weight matrices (heads with their KV group, feed-forward neurons, conv channels) leave for good.

Which: the mask-Fisher criterion of Kwon et al. (2022). With per-example mask gradients G [N, n] of one bundle, removing the set S is predicted to
cost ½ · 1ᵀ F_S 1, F = GᵀG / N (their eq. 7 with the full block of one layer, eq. 9). Units leave greedily, cheapest next, so one pass orders all
sizes. F has at most N independent rows, so its off-diagonal is shrunk by N/(N+n); without it the greedy search finds sets that only seem to cancel.

What stays is repaired: the consumer's weights are re-fitted by least squares so that its output on the calibration inputs matches the dense one
(the closed form of the Optimal Brain Surgeon update, Hassibi & Stork 1993; ZipLM, Kurtic et al. 2023):
W' = W H[:, K] (H[K, K] + λ)⁻¹ with H = X̃ᵀX̃, X̃ the inputs and a constant 1 that carries the bias.

Sizes are aligned (multiples of 8 and 16 neurons) because matrix units are; tensors become smaller, never masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fourfold.rewrite import Context, Option, Proposal, Rewrite
from fourfold.rewrites.compress._single import single
from fourfold.structure.discover import Anatomy, Bundle, consumer_module, consumer_weight

if TYPE_CHECKING:
    from fourfold.rewrites.calibration import Sensitivities

GRID = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.0625)


def removal_order(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order in which units leave, and the predicted harm of having removed the first k (k = 0 … n; harm[0] = 0).

    `gradients` float [examples, units]. O(n²) after the Gram product. The curve is made non-decreasing: a removal is never credited as a gain.
    """
    count, n = gradients.shape
    fisher = (gradients.T.astype(np.float64) @ gradients.astype(np.float64)) / max(1, count)
    own = np.diag(fisher).copy()
    fisher *= count / (count + n)
    np.fill_diagonal(fisher, 0.0)
    price, harm, order = 0.5 * own, np.zeros(n + 1), np.empty(n, np.int64)
    for k in range(n):
        unit = int(np.argmin(price))
        order[k], harm[k + 1] = unit, harm[k] + price[unit]
        price += fisher[unit]  # ½(F_ij + F_ji) for every later j
        price[unit] = np.inf
    return order, np.maximum.accumulate(np.maximum(harm, 0.0))


def order_of(sensitivities: Sensitivities, bundle: str) -> tuple[np.ndarray, np.ndarray]:
    """`removal_order` of a bundle, computed once per calibration."""
    if bundle not in sensitivities.orders:
        sensitivities.orders[bundle] = removal_order(sensitivities.gradients[bundle])
    return sensitivities.orders[bundle]


def sizes(full: int, kind: str) -> list[int]:
    """Sizes worth offering, largest first, ending at 0 (the whole sub-layer): every head count, aligned neuron and channel counts."""
    if kind == "heads":
        return list(range(full, -1, -1)) if full <= 16 else sorted({round(full * g) for g in GRID} | {0}, reverse=True)
    step = 32 if full >= 512 else 16 if full >= 128 else 8 if full >= 32 else 1
    kept = {min(full, max(step, int(round(full * g / step)) * step)) for g in GRID}
    return sorted(kept | {full, 0}, reverse=True)


def kept_units(order: np.ndarray, size: int) -> list[int]:
    """The `size` units that leave last, in their original order."""
    return sorted(int(u) for u in order[len(order) - size:]) if size else []


def repair(module: nn.Module, bundle: Bundle, keep: list[int], gram: np.ndarray | None, ridge: float = 0.01) -> float:
    """Re-fit the consumer on the units that stay, in place and before slicing; returns the share of output energy still unexplained in [0, 1].

    Only for linear consumers (Linear, Conv1D of GPT-2, 1×1 convolutions); others are left as they are and 0.0 is returned. `gram` float64 [C+1, C+1].
    """
    layer = consumer_module(module, bundle)
    weight = matrix(module, bundle)
    if gram is None or weight is None or not keep or weight.shape[1] != len(gram) - 1:
        return 0.0
    columns = bundle.columns(keep)
    bias = getattr(layer, "bias", None)
    constant = [len(gram) - 1] if bias is not None else []
    rows, every = np.concatenate([columns, constant]).astype(np.int64), np.arange(len(gram) if constant else len(gram) - 1)
    dense = weight.detach().double().numpy()
    if bias is not None:
        dense = np.concatenate([dense, bias.detach().double().numpy()[:, None]], 1)
    h = gram[np.ix_(rows, rows)].copy()
    strength = ridge * np.trace(h) / len(h)
    prior = dense[:, rows]  # ridge pulls towards the weights that were there, not towards zero
    h[np.diag_indices(len(h))] += strength
    fitted = np.linalg.solve(h, gram[np.ix_(rows, every)] @ dense[:, every].T + strength * prior.T).T
    whole = gram[np.ix_(every, every)]
    total = float(((dense @ whole) * dense).sum())
    gap = dense.copy()
    gap[:, rows] -= fitted
    dropped = np.setdiff1d(every, rows)
    lost = float(((gap @ whole) * gap).sum()) if len(dropped) else 0.0
    with torch.no_grad():
        weight[:, torch.from_numpy(columns)] = torch.from_numpy(fitted[:, : len(columns)]).to(weight.dtype)
        if bias is not None:
            bias.copy_(torch.from_numpy(fitted[:, -1]).to(bias.dtype))
    return max(0.0, lost / total) if total > 0 else 0.0


def matrix(module: nn.Module, bundle: Bundle) -> torch.Tensor | None:
    """A view [out, in] of the consumer's weight that can be written through, or None where it is no plain matrix (a convolution wider than 1×1)."""
    weight = consumer_weight(module, bundle).data
    if weight.dim() == 2:
        return weight
    return weight.flatten(1) if weight.dim() > 2 and weight[0, 0].numel() == 1 and weight.is_contiguous() else None


class MatrixPruning(Rewrite):
    """Heads, KV groups, neurons and channels by mask Fisher information, with least-squares repair (Kwon et al. 2022; ZipLM 2023; OBS 1993)."""

    default = True
    title = "rows and columns of the weight matrices, by Fisher information with least-squares repair"
    cites = ("kwon2022", "kurtic2023ziplm", "hassibi1993obs")
    needs = ("torch",)
    combined = True

    def declines(self, model: nn.Module) -> str | None:
        wide = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)) or type(m).__name__ in ("Conv1D", "MultiheadAttention")]
        return None if len(wide) > 1 else f"{type(model).__name__} has no two coupled matrices to shrink; it can still be quantised and raced"

    def options(self, anatomy: Anatomy, sensitivities: Sensitivities) -> list[Option]:
        found = []
        for stack in anatomy.stacks:
            for block in stack.blocks:
                for sub in block.sublayers:
                    if sub.bundle is None or sub.bundle.name not in sensitivities.gradients:
                        continue
                    order, harm = order_of(sensitivities, sub.bundle.name)
                    scale = sensitivities.ablation.get(sub.name, harm[-1]) / max(harm[-1], 1e-12)
                    full = sub.bundle.count
                    for size in sizes(full, sub.bundle.kind):
                        if size:
                            found.append(
                                Option(sub.name, size, full, float(harm[full - size] * scale), {"order": order.tolist()} if size == full else {})
                            )
        return found

    def propose(self, context: Context) -> Iterator[Proposal]:
        """One removal each, least harm first."""
        yield from single(self.options(context.anatomy, context.sensitivities), context)
