"""Masks that multiply the kernel of linear attention, each a matrix M ≥ 0 known through its product with a vector (Choromanski et al. 2022).

A mask is a module with `matmul(x, causal)`, x [B, H, F, N] → Σ_j M_ij x_j in less than quadratic time, and `dense(keys, queries, causal)`, the same
matrix [H, L, S] written out for the last L of S positions. What is learnt are logarithms, so that M stays positive. Its largest entry cancels in
attention and is taken out. Transforms are in float64, since sums over the whole sequence are rounded relative to their largest term: float32 would
show a distant large key in every position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError, ModelError
from fourfold.rewrites.attend import _trees
from fourfold.rewrites.attend._linear import exporting

DIRECT = 64  # depths up to which a function of distance is applied by a matrix


class AttentionMask(nn.Module):
    """What masks have in common: `heads` H (1: one mask for all). `ordered`: it can be causal."""

    ordered = False

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def matmul(self, x: Tensor, causal: bool = False) -> Tensor:
        """x [B, H, F, N] → Σ_j M_ij x_j; with `causal` over j ≤ i."""
        return self.prepared(x.shape[-1], causal)(x)

    def prepared(self, n: int, causal: bool = False) -> Callable[[Tensor], Tensor]:
        """`matmul` for this length, with all made once that does not depend on x."""
        raise NotImplementedError

    def dense(self, keys: int, queries: int | None = None, causal: bool = False) -> Tensor:
        """M [H or 1, L, S], row i for position S − L + i."""
        raise NotImplementedError

    def check(self, length: int, causal: bool) -> None:
        """Raises ModelError where the mask has no such length, or no order."""
        if causal and not self.ordered:
            raise ModelError(f"causal attention was asked for with {type(self).__name__}, whose positions have no order.",
                             "Use ToeplitzMask for sequences, or attend in both directions.")  # fmt: skip
        if (mine := self.length()) is not None and mine != length:
            raise ModelError(f"{type(self).__name__} is of {mine} positions, and {length} came.", "Pad to its length, and mask the keys that pad.")

    def length(self) -> int | None:
        """The only number of positions it takes; None: any."""
        return None


class ToeplitzMask(AttentionMask):
    """M_ij = exp(bias[i − j]): a learnt relative position (lag i − j, positive: behind), through Fourier transforms of twice the length, so that
    nothing wraps around. `bias` [H, 2 · reach + 1], lags from −reach to reach; further lags have the value at the end."""

    ordered = True

    def __init__(self, heads: int = 1, reach: int = 512) -> None:
        super().__init__(heads)
        if reach < 1:
            raise ModelError(f"a reach of {reach} positions was asked for.", "Give at least 1.")
        self.reach = reach
        self.bias = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def entries(self, lags: Tensor, dtype: torch.dtype) -> Tensor:
        """M at these lags, [H, len(lags)]."""
        bias = self.bias.to(dtype)
        return (bias - bias.detach().amax(-1, keepdim=True))[:, (lags.clamp(-self.reach, self.reach) + self.reach)].exp()

    def prepared(self, n: int, causal: bool = False) -> Callable[[Tensor], Tensor]:
        lags = torch.arange(-n + 1, n, device=self.bias.device)
        values = self.entries(lags, torch.float64)
        ahead = torch.zeros_like(values[:, : n - 1]) if causal else values[:, : n - 1]
        column = torch.cat([values[:, n - 1 :], torch.zeros_like(values[:, :1]), ahead], -1)   # first column of the circulant of size 2n
        through = torch.fft.rfft(column)[:, None]
        return lambda x: torch.fft.irfft(through * torch.fft.rfft(x.double(), n=2 * n), n=2 * n)[..., :n].to(x.dtype)

    def dense(self, keys: int, queries: int | None = None, causal: bool = False) -> Tensor:
        i = torch.arange(keys - (keys if queries is None else queries), keys, device=self.bias.device)[:, None]
        lags = i - torch.arange(keys, device=self.bias.device)
        found = self.entries(lags.flatten(), self.bias.dtype).unflatten(-1, tuple(lags.shape))
        return found.masked_fill(lags < 0, 0) if causal else found

    def extra_repr(self) -> str:
        return f"heads={self.heads}, reach={self.reach}"


class GridMask(AttentionMask):
    """M between cells of a grid: exp(bias[row lag, column lag]), block-Toeplitz, by two-dimensional transforms of twice the height and width.
    Positions are cells, row by row. `bias` [H, 2 · height − 1, 2 · width − 1], lag 0 in the middle."""

    def __init__(self, height: int, width: int, heads: int = 1) -> None:
        super().__init__(heads)
        if min(height, width) < 1:
            raise ModelError(f"a grid of {height} × {width} cells was asked for.", "Give at least one of each.")
        self.height, self.width = height, width
        self.bias = nn.Parameter(torch.zeros(heads, 2 * height - 1, 2 * width - 1))

    def length(self) -> int:
        return self.height * self.width

    def entries(self, dtype: torch.dtype) -> Tensor:
        bias = self.bias.to(dtype)
        return (bias - bias.detach().amax((-1, -2), keepdim=True)).exp()

    def prepared(self, n: int, causal: bool = False) -> Callable[[Tensor], Tensor]:
        self.check(n, causal)
        h, w = self.height, self.width
        kernel = F.pad(self.entries(torch.float64), (0, 1, 0, 1)).roll((1 - h, 1 - w), (-2, -1))     # lag (p, q) at (p mod 2h, q mod 2w)
        through = torch.fft.rfft2(kernel)[:, None]

        def product(x: Tensor) -> Tensor:
            rows = torch.fft.rfft(x.double().unflatten(-1, (h, w)), n=2 * w)        # of h rows alone: the others hold nothing
            back = torch.fft.ifft(through * torch.fft.fft(rows, n=2 * h, dim=-2), dim=-2)[..., :h, :]
            return torch.fft.irfft(back, n=2 * w)[..., :w].flatten(-2).to(x.dtype)

        return product

    def dense(self, keys: int, queries: int | None = None, causal: bool = False) -> Tensor:
        self.check(keys, causal)
        cell = torch.arange(keys, device=self.bias.device)
        row, column = cell // self.width, cell % self.width
        found = self.entries(self.bias.dtype)[:, row[:, None] - row + self.height - 1, column[:, None] - column + self.width - 1]
        return found if queries is None else found[:, keys - queries :]

    def extra_repr(self) -> str:
        return f"height={self.height}, width={self.width}, heads={self.heads}"


class TreeMask(AttentionMask):
    """M between nodes of a tree as a function of their distance. `parents`: of each node, −1 for the root.

    "decay": e^{−rate · distance}, a learnt rate a head (its softplus), with `weights` as lengths of the edges to the parents: two passes, linear
    time. "table": exp(bias[distance]) for edges of length 1, any function, learnt; distances past `reach` have its last value. By centroids: N log²
    N.
    """

    def __init__(self, parents: Sequence[int] | np.ndarray, heads: int = 1, *, weights: Sequence[float] | np.ndarray | None = None,
                 form: str = "decay", reach: int = 64) -> None:
        super().__init__(heads)
        if form not in ("decay", "table") or (form == "table" and weights is not None) or reach < 1:
            raise ModelError(f"a tree mask of the form {form!r}{' with weights' if weights is not None else ''} and reach {reach} was asked for.",
                             "Forms: decay (edges may have weights), table (edges of length 1, reach at least 1).")  # fmt: skip
        self.parents = np.asarray(parents)
        self.order = _trees.ordered(self.parents)
        self.parents = self.parents.astype(np.int64)
        self.weights = np.ones(len(self.parents)) if weights is None else np.asarray(weights, np.float64)
        if self.weights.shape != self.parents.shape or not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            raise InputError("the lengths of edges are not one finite number ≥ 0 a node.",
                             "Give each node's distance from its parent; the root's counts not.")  # fmt: skip
        self.form, self.reach = form, reach
        if form == "decay":
            self.rate = nn.Parameter(torch.zeros(heads))
        else:
            self.bias = nn.Parameter(torch.zeros(heads, reach + 1))
            self._pieces = _trees.centroids(self.parents, self.order)

    def length(self) -> int:
        return len(self.parents)

    def entries(self, distance: Tensor, dtype: torch.dtype) -> Tensor:
        """M at these distances, [H, …]."""
        if self.form == "decay":
            return (-F.softplus(self.rate.to(dtype)).reshape(-1, *[1] * distance.ndim) * distance).exp()
        bias = self.bias.to(dtype)
        return (bias - bias.detach().amax(-1, keepdim=True))[:, distance.long().clamp(max=self.reach)].exp()

    def prepared(self, n: int, causal: bool = False) -> Callable[[Tensor], Tensor]:
        self.check(n, causal)
        return self._product

    def _product(self, x: Tensor) -> Tensor:
        if self.form == "decay":
            rate = F.softplus(self.rate.double()).expand(x.shape[1])
            found: Tensor = _trees.TreeDecay.apply(x, rate, (self.parents, self.weights, self.order))  # type: ignore[assignment]
            return found
        b, h, f, n = x.shape
        flat = x.double().permute(3, 0, 1, 2).reshape(n, -1)
        total = torch.zeros_like(flat)
        for part in self._pieces:
            at = torch.sparse.mm(part.into.to(x.device), flat).reshape(part.pieces, part.size, b, h, f)
            total = total + torch.sparse.mm(part.back.to(x.device), self._met(at, part.size).reshape(part.pieces * part.size, -1))
        return total.reshape(n, b, h, f).permute(1, 2, 3, 0).to(x.dtype)

    def _met(self, at: Tensor, size: int) -> Tensor:
        """at [pieces, P, B, H, F] → Σ_d′ f(d + d′) at[d′], by a matrix or by transforms of 2P (of a reversed input, so that nothing wraps)."""
        depth = torch.arange(size, device=at.device)
        if size <= DIRECT:
            met = self.entries(depth[:, None] + depth, torch.float64)
            return torch.einsum("hde,pebhf->pdbhf", met.expand(at.shape[3], -1, -1), at)
        values = self.entries(torch.arange(2 * size, device=at.device), torch.float64).expand(at.shape[3], -1)
        seen = torch.fft.rfft(values).T[None, :, None, :, None] * torch.fft.rfft(at.flip(1), n=2 * size, dim=1)
        return torch.fft.irfft(seen, n=2 * size, dim=1)[:, size - 1 : 2 * size - 1]

    def dense(self, keys: int, queries: int | None = None, causal: bool = False) -> Tensor:
        self.check(keys, causal)
        parameter = self.rate if self.form == "decay" else self.bias
        apart = torch.from_numpy(_trees.distances(self.parents, self.weights, self.order)).to(parameter.device, parameter.dtype)
        found = self.entries(apart, parameter.dtype)
        return found if queries is None else found[:, keys - queries :]

    def extra_repr(self) -> str:
        return f"nodes={self.length()}, heads={self.heads}, form={self.form!r}"


class GraphDiffusionMask(AttentionMask):
    """M = e^{−rate · L} of a graph's normalised Laplacian L = I − D^{−½} A D^{−½}, a learnt rate a head (its softplus). `edges` [E, 2] whole numbers
    below `nodes`, undirected; `weights` [E] > 0.

    By uniformisation: the sum of Poisson(k; rate) times powers of D^{−½} A D^{−½}, all terms ≥ 0, as many as leave 1e-12: edges × terms.
    """

    def __init__(self, edges: Sequence[Sequence[int]] | np.ndarray, nodes: int, heads: int = 1,
                 weights: Sequence[float] | np.ndarray | None = None) -> None:
        super().__init__(heads)
        pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
        size = np.ones(len(pairs)) if weights is None else np.asarray(weights, np.float64)
        if nodes < 1 or ((pairs < 0) | (pairs >= nodes)).any() or size.shape != (len(pairs),) or not (np.isfinite(size) & (size > 0)).all():
            raise InputError(f"the edges do not describe a graph of {nodes} nodes.",
                             "Give pairs of numbers from 0, and a finite weight > 0 for each.")  # fmt: skip
        self.nodes = nodes
        both = np.concatenate([pairs, pairs[:, ::-1][pairs[:, 0] != pairs[:, 1]]])
        twice = np.concatenate([size, size[pairs[:, 0] != pairs[:, 1]]])
        degree = np.bincount(both[:, 0], twice, minlength=nodes)
        alone = np.flatnonzero(degree == 0)                            # a node without edges keeps what it has
        scaled = twice / np.sqrt(degree[both[:, 0]] * degree[both[:, 1]])
        index = np.concatenate([both, np.stack([alone, alone], 1)]).T.copy()
        values = np.concatenate([scaled, np.ones(len(alone))])
        self._step = torch.sparse_coo_tensor(torch.from_numpy(index), torch.from_numpy(values), (nodes, nodes), check_invariants=False).coalesce()
        self.rate = nn.Parameter(torch.zeros(heads))

    def length(self) -> int:
        return self.nodes

    def prepared(self, n: int, causal: bool = False) -> Callable[[Tensor], Tensor]:
        self.check(n, causal)
        return self._product

    def _product(self, x: Tensor) -> Tensor:
        b, h, f, n = x.shape
        rate = F.softplus(self.rate.double()).expand(h)
        top = float(rate.detach().max())
        terms = int(top + 8 * top**0.5 + 24)
        step, term = self._step.to(x.device), x.double().permute(3, 0, 1, 2).reshape(n, -1)
        log = -rate
        total = torch.zeros(n, b, h, f, dtype=torch.float64, device=x.device)
        for k in range(terms):
            total = total + log.exp()[:, None] * term.reshape(n, b, h, f)
            term = torch.sparse.mm(step, term)
            log = log + rate.log() - float(np.log(k + 1))
        return total.permute(1, 2, 3, 0).to(x.dtype)

    def dense(self, keys: int, queries: int | None = None, causal: bool = False) -> Tensor:
        self.check(keys, causal)
        if exporting():
            raise ModelError("a mask of graph diffusion cannot be exported: it is an exponential of a sparse matrix.", "Run it in torch.")
        rate = F.softplus(self.rate.double())[:, None, None]
        found = torch.matrix_exp(rate * (self._step.to_dense() - torch.eye(keys, dtype=torch.float64))).to(self.rate.dtype)
        return found if queries is None else found[:, keys - queries :]

    def extra_repr(self) -> str:
        return f"nodes={self.nodes}, heads={self.heads}"
