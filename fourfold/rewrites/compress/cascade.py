"""The cascade: the cheap model answers when its calibrated confidence allows, a dearer one only otherwise.

Confidence is the largest class probability after temperature scaling (Guo et al. 2017), the temperature fitted on the search split. The threshold is
the least that keeps the cascade's quality there; the price is cost(cheap) + share handed on × cost(dear), which the final race measures for real.
Cascades of this kind: Viola & Jones 2001 for detectors, Chen et al. 2023 (FrugalGPT) for language models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fourfold.gate import Chain, Gate, Members, Path, Proof, confidence, softmax
from fourfold.rewrite import Rewrite

if TYPE_CHECKING:
    from torch import nn


def temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature in [0.05, 20] that minimises the negative log likelihood of int targets [N] (Guo et al. 2017, §4.2)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(targets))

    def loss(log_t: float) -> float:
        return float(-np.log(softmax(logits / np.exp(log_t))[rows, targets] + 1e-12).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded").x))  # type: ignore[union-attr]


def gates(
    cheap: np.ndarray, targets: np.ndarray, shares: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
) -> list[tuple[float, Gate]]:
    """Gates handing on about the given shares of examples, each with the share it really hands on; `cheap` logits [N, C] on the search split."""
    t = temperature(cheap, targets)
    sure = confidence(cheap, t)
    found = []
    for share in shares:
        threshold = float(np.quantile(sure, share))
        found.append((float((sure < threshold).mean()), Gate(t, threshold)))
    return found


def chains(
    costs: Sequence[float],
    logits: Sequence[np.ndarray],
    targets: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    fallback: Sequence[bool] | None = None,
    keep: int = 40,
) -> list[Chain]:
    """All worthwhile cascades of two members, and the best of them with a third between or behind; none that another beats in both cost and score.

    `costs` per example, any unit; `logits` [N, C] per member on the search split; `score` of joint logits, higher is better; `fallback[i]`: may
    member i stand last?
    """
    solo = [score(z) for z in logits]
    last = list(fallback) if fallback is not None else [True] * len(costs)
    pairs: list[Chain] = []
    for i, z in enumerate(logits):
        for _, gate in gates(z, targets):
            kept = gate.keeps(z)
            for j in range(len(costs)):
                if j == i or costs[j] < 1.5 * costs[i] or solo[j] <= solo[i] or not last[j]:
                    continue
                rows = np.where(kept[:, None], z / gate.temperature, logits[j])
                pairs.append(Chain((i, j), (gate,), costs[i] + float((~kept).mean()) * costs[j], score(rows), rows))
    best = _front(pairs, keep)
    triples = [t for pair in best for t in _deeper(pair, costs, logits, targets, solo, last, score)]
    singles = [(c, s) for c, s in zip(costs, solo, strict=True)]
    found = _front(best + triples, keep)
    return [f for f in found if not any(c <= f.cost and s >= f.score for c, s in singles)]


def _deeper(
    pair: Chain,
    costs: Sequence[float],
    logits: Sequence[np.ndarray],
    targets: np.ndarray,
    solo: list[float],
    last: list[bool],
    score: Callable[[np.ndarray], float],
) -> list[Chain]:
    """The pair with a dearer third member behind, gated on the second's confidence where the first was unsure."""
    i, j = pair.members
    first = pair.gates[0]
    open_ = ~first.keeps(logits[i])
    if open_.sum() < 30:
        return []
    found = []
    for _, gate in gates(logits[j][open_], targets[open_], (0.1, 0.2, 0.3, 0.5, 0.7)):
        handed = open_ & ~gate.keeps(logits[j])
        for k in range(len(costs)):
            if k in (i, j) or costs[k] < 1.5 * costs[j] or solo[k] <= solo[j] or not last[k]:
                continue
            middle = np.where(handed[:, None], logits[k], logits[j] / gate.temperature)
            rows = np.where(open_[:, None], middle, logits[i] / first.temperature)
            cost = costs[i] + float(open_.mean()) * costs[j] + float(handed.mean()) * costs[k]
            found.append(Chain((i, j, k), (first, gate), cost, score(rows), rows))
    return found


def _front(found: list[Chain], most: int) -> list[Chain]:
    """Those that no other beats in cost and score, by falling cost; thinned to `most`."""
    kept: list[Chain] = []
    top = -np.inf
    for chain in sorted(found, key=lambda c: (c.cost, -c.score)):
        if chain.score > top:
            kept.append(chain)
            top = chain.score
    step = max(1, -(-len(kept) // most))
    return kept[::step]


SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.43, 0.37, 0.32, 0.28, 0.24, 0.2, 0.17, 0.145, 0.12, 0.1, 0.08, 0.06, 0.045, 0.03)
SPLITS = ((1.0,), (0.8, 0.2), (0.6, 0.3, 0.1))
"""How one, two or three families share the error."""
DRAWS = 400
ALIKE = 0.7
"""Correlation of two families' errors: they are judged on the same rows and share members."""


def paths(
    costs: Sequence[float],
    logits: Sequence[np.ndarray],
    targets: np.ndarray,
    score: Callable[[np.ndarray], float],
    proof: Proof,
    *,
    fallback: Sequence[bool] | None = None,
    sets: int = 24,
    steps: int = 16,
    seed: int = 0,
) -> list[Path]:
    """The families, one to three, that are expected to end at the least cost when they are tested from cautious to bold
    (`fourfold.measure.sequence`); [] where none promises less than `proof.otherwise`.

    What is expected is simulated from the rows at hand: scores are drawn around their estimates with the errors of both splits (`ALIKE` of them
    common to all families), each family is walked until its first failure, and the cheapest setting that passed counts. So a family with a strong
    last member, which can be as cautious as it must, comes before one whose best guess is cheaper and whose most cautious setting may fail.
    Other arguments as of `chains`; the `sets` likeliest sets of members are looked at.
    """
    found = chains(costs, logits, targets, score, fallback=fallback, keep=400)
    least: dict[tuple[int, ...], float] = {}
    for slack in (0.0, 1.0, 2.0, 3.0):  # the cheapest sets at several degrees of caution, alternating
        wanted = [(c.cost, c.members) for c in found if c.score >= proof.floor + slack * proof.spread(c.logits)[1]]
        for rank, (_, members) in enumerate(sorted(wanted)):
            least[members] = min(least.get(members, np.inf), rank)
    last = list(fallback) if fallback is not None else [True] * len(costs)
    strong = [j for j in range(len(costs)) if last[j] and costs[j] < proof.otherwise * 1.2]
    strong = sorted(strong, key=lambda j: -score(logits[j]))[:2]
    for members in list(least):  # each also with a strong member behind, where it has none
        if len(members) == 2 and members[-1] not in strong:
            least |= {(*members, j): least[members] + 0.5 for j in strong if costs[j] > 1.2 * costs[members[-1]] and (*members, j) not in least}
    picked = sorted(least, key=lambda m: (least[m], m))[:sets]
    rng = np.random.default_rng([seed, 29])
    common = rng.standard_normal(DRAWS)
    made = [path for m in picked if (path := _path(m, costs, logits, targets, score, proof, steps)).chains]
    noise = [ALIKE**0.5 * common + (1 - ALIKE) ** 0.5 * rng.standard_normal(DRAWS) for _ in made]
    best: tuple[float, list[Path]] = (proof.otherwise * 0.99, [])
    for split in SPLITS[: len(made)]:
        ends, chosen = np.full(DRAWS, proof.otherwise), []
        for share in split:
            walked = {n: np.minimum(ends, _ends(path, proof, share, noise[n])) for n, path in enumerate(made) if n not in chosen}
            number = min(walked, key=lambda n: (float(walked[n].mean()), n))
            chosen.append(number)
            ends = walked[number]
        if float(ends.mean()) < best[0] - 1e-9:
            told = [Path(made[n].members, made[n].chains, share, float(_ends(made[n], proof, share, noise[n]).mean()))
                    for n, share in zip(chosen, split, strict=True)]  # fmt: skip
            best = float(ends.mean()), told
    return best[1]


def _ends(path: Path, proof: Proof, share: float, noise: np.ndarray) -> np.ndarray:
    """The cost [draws] at which a family ends where its scores are off by `noise` standard errors."""
    from scipy.stats import norm

    z = float(norm.isf(proof.level * share))
    alive, ends = np.ones(len(noise), bool), np.full(len(noise), proof.otherwise)
    for chain in path.chains:
        here, there = proof.spread(chain.logits)
        # what was chosen for its estimate is on average a little worse
        alive &= chain.score - 0.25 * here + noise * np.hypot(here, there) - z * there >= proof.floor
        ends = np.where(alive, np.minimum(ends, chain.cost), ends)
    return ends


def _path(
    members: tuple[int, ...],
    costs: Sequence[float],
    logits: Sequence[np.ndarray],
    targets: np.ndarray,
    score: Callable[[np.ndarray], float],
    proof: Proof,
    steps: int,
) -> Path:
    """All gates of one set of members, thinned to those that no other beats on the rows at hand, from dear to cheap: `steps` at most, where the test
    will be decided, which is between one error below the floor and four above it."""
    found: list[Chain] = []
    first = logits[members[0]]
    for _, gate in gates(first, targets, SHARES):
        open_ = ~gate.keeps(first)
        if len(members) == 2:
            rows = np.where(open_[:, None], logits[members[1]], first / gate.temperature)
            found.append(Chain(members, (gate,), costs[members[0]] + float(open_.mean()) * costs[members[1]], score(rows), rows))
            continue
        if open_.sum() < 30:
            continue
        middle, last = logits[members[1]], logits[members[2]]
        for _, second in gates(middle[open_], targets[open_], SHARES[2:]):
            handed = open_ & ~second.keeps(middle)
            rows = np.where(handed[:, None], last, middle / second.temperature)
            rows = np.where(open_[:, None], rows, first / gate.temperature)
            price = costs[members[0]] + float(open_.mean()) * costs[members[1]] + float(handed.mean()) * costs[members[2]]
            found.append(Chain(members, (gate, second), price, score(rows), rows))
    ranked = sorted(_front(found, len(found)), key=lambda c: -c.cost)
    near = [c for c in ranked if -1 <= (c.score - proof.floor) / max(proof.spread(c.logits)[1], 1e-9) <= 4] or ranked[:1]
    before = [c for c in ranked if c.cost > near[0].cost][-1:]  # one that is surely safe to begin with
    kept: list[Chain] = []
    for chain in [*before, *near]:
        if not kept or chain.cost < 0.96 * kept[-1].cost:
            kept.append(chain)
    if len(kept) > steps:
        kept = [kept[i] for i in sorted({round(x) for x in np.linspace(0, len(kept) - 1, steps)})]
    return Path(members, tuple(kept))


class Cascade(Rewrite):
    """The cheap model first, the dear one when unsure; temperature-scaled confidence (Guo et al. 2017; Viola & Jones 2001; Chen et al. 2023)."""

    default = True
    title = "the cheap model answers when its calibrated confidence allows, the original only otherwise"
    cites = ("guo2017", "viola2001", "chen2023frugalgpt")
    needs = ("numpy", "scipy")

    def join(self, members: Members, proof: Proof) -> list[Path]:
        return paths(members.costs, members.logits, members.targets, members.score, proof, fallback=members.fallback, seed=members.seed)

    def declines(self, model: nn.Module) -> str | None:
        heads = [m for m in model.modules() if getattr(m, "out_features", 0) > 1]
        return None if heads else f"{type(model).__name__} gives no class scores, so it has no confidence to gate on"
