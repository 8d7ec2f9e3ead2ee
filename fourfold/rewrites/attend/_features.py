"""Random features of the softmax kernel: exp(xᵀy) as the mean of products of one feature of x and one of y.

With ω ~ N(0, I_d) and A ≤ 0 the features

    f(ω, z) = (1−4A)^{d/4} · exp(A|ω|² + √(1−4A) ωᵀz − ½|z|²)

are positive, bounded and unbiased (Likhosherstov et al. 2022, "OPRF"). A = 0 gives the positive features of FAVOR+ (Choromanski et al. 2021). The
trigonometric ones, e^{½|z|²}(sin ωᵀz, cos ωᵀz), are those of Rahimi and Recht (2007): unbiased, neither positive nor of small variance where the
kernel is small. With orthogonal rows of ω the first is FAVOR++.

Everything is held in the log domain: a feature is a value of magnitude ≤ 1 times e^weight of its token. For a query the weight cancels in
attention; for a key it is kept, and taken against the largest weight *seen so far*, never against that of the whole sequence. The factor
(1−4A)^{d/4} is the same for all, and cancels.

Shapes: B batch, H heads, N tokens, d width of a head, M features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError

Kind = Literal["bounded", "positive", "trigonometric"]
KINDS: tuple[Kind, ...] = ("bounded", "positive", "trigonometric")
Map = Callable[[Tensor, bool], tuple[Tensor, Tensor]]
"""z [B, H, N, d], whether it is of keys → values [B, H, N, M] and log weights [B, H, N]."""
UNSEEN = 1.0  # φ before any sequence was seen; every A ≤ 0 is unbiased, so that this decides the variance alone


def optimal_a(phi: Tensor) -> Tensor:
    """A ≤ 0 of least mean log second moment for φ = mean |x + y|² / d over the pairs (Likhosherstov et al. 2022, theorem 3.3): 0 at φ = 0."""
    return (1 - 2 * phi - torch.sqrt((1 + 2 * phi).square() + 8 * phi)) / 16


def relative_variance(a: float, square: float, d: int) -> float:
    """Variance of one bounded feature's estimate of exp(xᵀy), over its mean's square, for |x + y|² = `square`; a = 0: of a positive feature.

    Exact: (1−4A)^d (1−8A)^{−d/2} exp(2(1−4A)|s|²/(1−8A) − |s|²) − 1; at A = 0 exp(|s|²) − 1.
    """
    return math.expm1(d * math.log1p(-4 * a) - d / 2 * math.log1p(-8 * a) + 2 * (1 - 4 * a) * square / (1 - 8 * a) - square)


def trigonometric_variance(square: float) -> float:
    """The same of one pair of a sine and a cosine, for |x − y|² = `square`: 2 sinh²(|x − y|²/2).

    The pair's estimate is e^{(|x|²+|y|²)/2} cos(ωᵀ(x−y)), and Var cos(ωᵀz) = (1 − e^{−|z|²})²/2.
    """
    return 2 * math.sinh(square / 2) ** 2


def directions(count: int, d: int, generator: torch.Generator, orthogonal: bool = True) -> Tensor:
    """ω [count, d], each row N(0, I_d). With `orthogonal`, rows within each block of d are orthogonal, each row's norm drawn anew (χ_d); rows of
    different blocks are independent. Any d ≥ 1."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    if not orthogonal:
        return draw(count, d).float()
    blocks = -(-count // d)
    q, r = torch.linalg.qr(draw(blocks, d, d))
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)            # uniform over rotations, not only over QR's choice of signs
    return (q.transpose(-1, -2).reshape(blocks * d, d)[:count] * draw(count, d).norm(dim=1, keepdim=True)).float()


class RandomFeatures(nn.Module):
    """z float [B, H, N, d] → (values [B, H, N, M], |values| ≤ 1, and log weights [B, H, N]): feature m of a token is values · e^weight.

    `heads` H, `width` d, `features` M (even for "trigonometric": sines, then cosines). ω is drawn from `seed` for each head on its own, held in the
    buffer `omega`, and drawn anew by `redraw`; `draws` counts, so that a loaded module goes on where the saved one stopped. `phi` [H] is the running
    mean of |x + y|² / d that A is computed from: `observe` updates it without gradient, nothing else does.
    """

    omega: Tensor
    phi: Tensor
    seen: Tensor
    draws: Tensor

    def __init__(self, heads: int, width: int, features: int, kind: Kind = "bounded", *, orthogonal: bool = True, seed: int = 0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ModelError(f"there are no random features of kind {kind!r}.", f"Kinds: {', '.join(KINDS)}.")
        if min(heads, width, features) < 1 or (kind == "trigonometric" and features % 2):
            raise ModelError(
                f"{features} {kind} features of {heads} heads of width {width} cannot be made.",
                "All three must be at least 1, and trigonometric features come in pairs: give an even number.",
            )
        self.heads, self.width, self.features, self.kind, self.orthogonal, self.seed = heads, width, features, kind, orthogonal, seed
        self.register_buffer("omega", torch.zeros(heads, features // 2 if kind == "trigonometric" else features, width))
        self.register_buffer("phi", torch.full((heads,), UNSEEN))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("draws", torch.zeros((), dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The first draw, and no sequence seen."""
        if self.omega.device.type != "meta":
            self.phi.fill_(UNSEEN)
            self.seen.zero_()
            self.draws.zero_()
            self.redraw()

    @torch.no_grad()
    def redraw(self) -> None:
        """New ω, which depend on `seed` and on how many draws there were."""
        generator = torch.Generator("cpu").manual_seed((self.seed * 1_000_003 + int(self.draws)) % (1 << 63))
        count = self.omega.shape[1]
        self.omega.copy_(torch.stack([directions(count, self.width, generator, self.orthogonal) for _ in range(self.heads)]))
        self.draws += 1

    @torch.no_grad()
    def observe(self, x: Tensor, y: Tensor, keep: Tensor | None = None, rate: float = 0.1) -> None:
        """Update φ by the queries x [B, H, N, d] and keys y [B, H, S, d], both scaled; `keep` bool [B, 1 or H, S]: keys that count (queries too,
        where N = S). A running mean: the first sequences weigh as much as they are many, later ones `rate`."""
        found = _pooled(x, y, keep).mean(0)
        share = torch.clamp(1 / (self.seen + 1).to(found.dtype), min=rate)
        good = torch.isfinite(found)
        self.phi.copy_(torch.where(good, self.phi + share * (found - self.phi), self.phi).to(self.phi.dtype))
        self.seen += 1

    def a(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A of each head, [H]: 0 for positive features."""
        phi = self.phi.to(dtype)
        return optimal_a(phi) if self.kind == "bounded" else torch.zeros_like(phi)

    def prepared(self, dtype: torch.dtype, a: Tensor | None = None) -> Map:
        """What maps z to its features in `dtype`, with all made once that does not depend on z. `a`: A [B or 1, H], in place of that of φ."""
        omega = self.omega.to(dtype)
        if self.kind == "trigonometric":
            across = omega.transpose(-1, -2)

            def waves(z: Tensor, key: bool) -> tuple[Tensor, Tensor]:
                angle = z @ across
                return torch.cat([angle.sin(), angle.cos()], -1), z.square().sum(-1) / 2 if key else z[..., 0].new_zeros(z.shape[:-1])

            return waves
        a = self.a(dtype) if a is None else a.to(dtype)
        across, level = (omega * torch.sqrt(1 - 4 * a)[..., None, None]).transpose(-1, -2), a[..., None, None] * omega.square().sum(-1).unsqueeze(-2)
        least = math.log(torch.finfo(dtype).tiny) / 2 + 3

        def exponentials(z: Tensor, key: bool) -> tuple[Tensor, Tensor]:
            exponent = z @ across
            if self.kind == "bounded":
                exponent = exponent + level if torch.is_grad_enabled() else exponent.add_(level)
            peak = exponent.detach().amax(-1, keepdim=True)
            # no product of two values may be rounded to 0: what is e^−40 of a token's largest feature is below the rounding of any sum with that one
            if torch.is_grad_enabled():
                values = (exponent - peak).clamp_min(least).exp()
            else:
                values = exponent.sub_(peak).clamp_min_(least).exp_()
            peak = peak.squeeze(-1)
            return values, peak - z.square().sum(-1) / 2 if key else torch.zeros_like(peak)

        return exponentials

    def forward(self, z: Tensor, key: bool) -> tuple[Tensor, Tensor]:
        """`key`: as a key, whose weight matters; a query's is 0, since it cancels."""
        return self.prepared(z.dtype)(z, key)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, width={self.width}, features={self.features}, kind={self.kind!r}, orthogonal={self.orthogonal}, seed={self.seed}"


def _pooled(x: Tensor, y: Tensor, keep: Tensor | None = None) -> Tensor:
    """φ [B, H]: the mean of |x_i + y_j|² / d over all pairs, from means alone; keys (and queries, where as many) that `keep` leaves out do not
    count."""
    def mean(z: Tensor, marks: Tensor | None) -> tuple[Tensor, Tensor]:
        if marks is None:
            return z.square().sum(-1).mean(-1), z.mean(-2)
        share = marks.to(z.dtype) / marks.sum(-1, keepdim=True).clamp_min(1)
        z = z.masked_fill(~marks[..., None], 0)
        return (z.square().sum(-1) * share).sum(-1), (z * share[..., None]).sum(-2)

    squares_x, mean_x = mean(x, keep if keep is not None and keep.shape[-1] == x.shape[-2] else None)
    squares_y, mean_y = mean(y, keep)
    return (squares_x + 2 * (mean_x * mean_y).sum(-1) + squares_y) / x.shape[-1]


def per_sequence(x: Tensor, y: Tensor, keep: Tensor | None = None) -> Tensor:
    """A [B, H] of least mean log second moment over the pairs of each sequence, without gradient. It depends on the whole sequence: for
    bidirectional attention only."""
    return optimal_a(_pooled(x.detach(), y.detach(), keep))
