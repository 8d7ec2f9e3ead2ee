"""Sequential Attention of a linear model under least squares: the regularised form, whose order is that of orthogonal matching pursuit.

Minimise ½‖y − X(w ⊙ β)‖² + λ/2 (‖w‖² + ‖β‖²) over w and β, what is chosen unpenalised (Yasuda et al., ICLR 2023, section 3). The penalty of a product
is an absolute value, min over w·β = u of ½(w² + β²) = |u|, so each phase is a step of Sequential LASSO, and with λ just below the largest |xᵢᵀr| the
first feature to become active is that of orthogonal matching pursuit (Pati et al. 1993). Several outputs: β is a row of them, and |u| a norm.

What is chosen is projected out once a phase, and only features that the sequential strong rule (Tibshirani et al. 2012) lets become active are in the
descent, so a phase costs one pass over X.

Shapes: n rows, d features, o outputs, c features in the descent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHARE = 0.98
"""λ as a share of the largest correlation."""
MOST = 64
"""Features in one descent: ties beyond it are broken by their correlation."""


def descent(gram: np.ndarray, correlation: np.ndarray, penalty: float, iterations: int = 8000) -> np.ndarray:
    """u = w ⊙ β [c, o] by gradient descent from small w and β of the correlation's sign. `gram` [c, c] and `correlation` [c, o], float64."""
    length = np.linalg.norm(correlation, axis=1, keepdims=True)
    w = np.full((len(gram), 1), 0.05)
    beta = 0.05 * correlation / np.maximum(length, 1e-300)
    rate = 0.5 / max(float(np.linalg.norm(gram, 2)), penalty)
    u = w * beta
    for _ in range(iterations):
        slope = gram @ u - correlation
        w, beta = w - rate * ((slope * beta).sum(1, keepdims=True) + penalty * w), beta - rate * (slope * w + penalty * beta)
        before, u = u, w * beta
        if float(np.abs(u - before).max()) <= 1e-12 * float(np.abs(u).max()):
            break
    return u


def linear_order(
    columns: Callable[[np.ndarray], np.ndarray], products: Callable[[np.ndarray], np.ndarray], targets: np.ndarray, eligible: np.ndarray, count: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[list[int], np.ndarray]:  # fmt: skip
    """The first `count` features that regularised linear Sequential Attention chooses, and a score [d]: the correlation by which each was chosen.

    `columns(index)` gives centred columns of unit length [n, len(index)] and `products(r)` their products with r [n, o] → [d, o]; `targets` [n, o]
    centred. `eligible` bool [d]: what may be chosen. Where nothing is left to explain, the rest is chosen by the correlation with the targets.
    """
    basis = np.zeros((len(targets), 0))
    residual = targets / max(float(np.linalg.norm(targets)), 1e-300)
    first = np.linalg.norm(products(residual), axis=1)
    open_, order, scores = eligible.copy(), [], np.where(eligible, first, 0.0)
    for _ in range(count):
        correlation = products(residual)
        length = np.where(open_, np.linalg.norm(correlation, axis=1), -1.0)
        largest = float(length.max())
        if largest <= 1e-9:
            pick = int(np.argmax(np.where(open_, first, -1.0)))
        else:
            pick = _step(columns, correlation, length, largest, basis)
            column = columns(np.array([pick]))[:, 0]
            for _ in range(2):  # twice is enough for orthogonality in floating point
                column = column - basis @ (basis.T @ column)
            norm = float(np.linalg.norm(column))
            if norm > 1e-9:
                basis = np.concatenate([basis, column[:, None] / norm], 1)
                residual = residual - basis[:, -1:] @ (basis[:, -1:].T @ residual)
        order.append(pick)
        scores[pick] = max(largest, 0.0)
        open_[pick] = False
        advance()
    return order, scores


def _step(
    columns: Callable[[np.ndarray], np.ndarray], correlation: np.ndarray, length: np.ndarray, largest: float, basis: np.ndarray
) -> int:
    """The feature of the largest |w·β| at the minimum of one phase."""
    near = np.flatnonzero(length >= (2 * SHARE - 1) * largest)
    near = near[np.argsort(-length[near], kind="stable")[:MOST]]
    if len(near) == 1:
        return int(near[0])
    block = columns(near)
    block = block - basis @ (basis.T @ block)
    u = descent(block.T @ block, correlation[near], SHARE * largest)
    return int(near[int(np.argmax(np.linalg.norm(u, axis=1)))])
