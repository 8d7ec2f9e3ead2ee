"""Proximal policy optimisation for decisions made at once: many choices in one state, one reward for all of them, no critic.

Schulman et al. (2017): each choice's probability ratio is clipped; the advantage is the reward minus a baseline, in standard deviations of its
group (the answers sampled in one state), so that states with large and with small rewards teach alike. The baseline is the group's mean or,
self-critical (Rennie et al. 2017), the reward of the likeliest answer. Knows no domain: a policy scores an action in a state, whatever those are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Policy(Protocol):
    """What is trained."""

    def score(self, state: Any, action: Any) -> tuple[Tensor, Tensor]:
        """(log π of each choice, entropy of each choice) f4[B, choices] of B actions in `state`; 0 where nothing is chosen."""
        ...


@dataclass(frozen=True)
class Rollout:
    """B actions taken in one state: what they were worth `reward` f8[B] (nan: not allowed), log π f4[B, choices] when they were taken, and the
    reward of the likeliest action as a `baseline` (None: the mean of the group)."""

    state: object
    action: object
    log: Tensor
    reward: np.ndarray
    baseline: float | None = None


@dataclass(frozen=True)
class Rates:
    """`step` of Adam, `clip` of the ratio, `epochs` over what was sampled, weight of the `entropy`, largest `norm` of a gradient."""

    step: float = 1e-4
    clip: float = 0.2
    epochs: int = 2
    entropy: float = 1e-3
    norm: float = 1.0


def advantages(reward: np.ndarray, baseline: float | None = None) -> np.ndarray:
    """f8[B]: rewards above the baseline in standard deviations of the group. What was not allowed (nan) counts one deviation below the worst."""
    allowed = np.isfinite(reward)
    if not allowed.any():
        return np.zeros(len(reward))
    spread = float(reward[allowed].std())
    filled = np.where(allowed, reward, reward[allowed].min() - max(spread, 1e-6))
    spread = float(filled.std())
    above = filled - (float(filled.mean()) if baseline is None else baseline)
    return above / spread if spread > 1e-9 else np.zeros(len(reward))


def clipped(log: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 ± c) A), r = π/π_old of each choice, summed over choices and averaged over actions (Schulman et al. 2017, eq. 7)."""
    import torch

    ratio, weight = (log - old).exp(), advantage[:, None]
    return -torch.minimum(ratio * weight, ratio.clamp(1 - clip, 1 + clip) * weight).sum(1).mean()


class Ppo:
    """An optimiser and its state; `update` learns from rollouts of several states at once."""

    def __init__(self, parameters: Iterable[Tensor], rates: Rates | None = None) -> None:
        import torch

        self.parameters, self.rates = list(parameters), rates or Rates()
        self.adam = torch.optim.Adam(self.parameters, self.rates.step)

    def update(self, policy: Policy, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Learn; {"loss", "entropy" per choice, "moved": share of choices beyond the clip}."""
        import torch

        rates, told = self.rates, {"loss": 0.0, "entropy": 0.0, "moved": 0.0}
        taught = [(one, torch.from_numpy(advantages(one.reward, one.baseline)).float()) for one in rollouts]
        taught = [(one, advantage) for one, advantage in taught if bool(advantage.any())]
        for _ in range(rates.epochs if taught else 0):
            self.adam.zero_grad()
            for one, advantage in taught:
                log, entropy = policy.score(one.state, one.action)
                choices = float((one.log != 0).sum(1).float().mean().clamp(min=1.0))
                loss = clipped(log, one.log, advantage, rates.clip) / choices - rates.entropy * entropy.sum(1).mean() / choices
                (loss / len(taught)).backward()
                told["loss"] += float(loss.detach()) / len(taught) / rates.epochs
                told["entropy"] += float(entropy.detach().sum(1).mean()) / choices / len(taught) / rates.epochs
                far = ((log.detach() - one.log).exp() - 1).abs() > rates.clip
                told["moved"] += float(far.float().sum(1).mean()) / choices / len(taught) / rates.epochs
            torch.nn.utils.clip_grad_norm_(self.parameters, rates.norm)
            self.adam.step()
        return told

    def state(self) -> dict[str, object]:
        """All that a resumed run needs to go on to the bit: tensors and numbers."""
        return self.adam.state_dict()

    def resume(self, state: dict[str, object]) -> None:
        self.adam.load_state_dict(state)
