"""PPO without a critic: advantages and the clip by hand, a bandit learnt, rewards that are not allowed, state that goes on to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fourfold.solvers.ppo import Ppo, Rates, Rollout, advantages, clipped


class Table:
    """A policy without a state: `choices` independent choices among `options`."""

    def __init__(self, choices: int = 4, options: int = 3) -> None:
        self.logits = torch.zeros(choices, options, requires_grad=True)

    def score(self, state: None, action: Tensor) -> tuple[Tensor, Tensor]:
        log = torch.log_softmax(self.logits, -1)
        picked = log.expand(len(action), -1, -1).gather(2, action[..., None])[..., 0]
        return picked, (-(log.exp() * log).sum(-1)).expand(len(action), -1)

    def sample(self, count: int, generator: torch.Generator) -> Rollout:
        with torch.no_grad():
            action = torch.multinomial(self.logits.softmax(-1), count, True, generator=generator).T
            log = self.score(None, action)[0]
        return Rollout(None, action, log, np.zeros(count))


def learnt(policy: Table, target: Tensor, learner: Ppo, updates: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        one = policy.sample(16, generator)
        reward = (one.action == target).float().mean(1).double().numpy()
        learner.update(policy, [Rollout(None, one.action, one.log, reward)])


def test_advantages_are_deviations_from_the_group_or_from_the_likeliest() -> None:
    reward = np.array([-1.0, -2.0, -3.0])
    assert advantages(reward) == pytest.approx(np.array([1, 0, -1]) / reward.std())
    assert advantages(reward, baseline=-1.0) == pytest.approx(np.array([0, -1, -2]) / reward.std())
    assert (advantages(np.full(4, -7.0)) == 0).all()
    assert advantages(1e6 * reward) == pytest.approx(advantages(reward))


def test_what_is_not_allowed_counts_less_than_the_worst_and_swamps_nothing() -> None:
    found = advantages(np.array([-1.0, -1.1, np.nan, -1.2]))
    assert found[2] == found.min() and found[0] > found[1] > found[3] > found[2] > -3
    assert (advantages(np.array([np.nan, np.nan])) == 0).all()


def test_the_clip_by_hand() -> None:
    old, advantage = torch.zeros(2, 1), torch.tensor([1.0, -1.0])
    log = torch.tensor([[0.5], [0.5]], requires_grad=True)
    loss = clipped(log, old, advantage, 0.2)
    ratio = float(np.exp(0.5))
    assert float(loss.detach()) == pytest.approx(-(min(ratio, 1.2) + min(-ratio, -1.2)) / 2)
    loss.backward()
    assert log.grad is not None and log.grad[0] == 0 and log.grad[1] > 0        # beyond the clip nothing pulls further; back it may go


def test_a_bandit_is_learnt() -> None:
    policy, target = Table(), torch.tensor([2, 0, 1, 2])
    learnt(policy, target, Ppo([policy.logits], Rates(step=0.1)), 60)
    assert (policy.logits.argmax(-1) == target).all() and policy.logits.softmax(-1).max(-1).values.min() > 0.8


def test_nothing_is_learnt_where_all_answers_are_worth_the_same() -> None:
    policy = Table()
    one = policy.sample(8, torch.Generator().manual_seed(0))
    told = Ppo([policy.logits]).update(policy, [one])
    assert told["loss"] == 0.0 and (policy.logits == 0).all()


def test_a_resumed_learner_goes_on_to_the_bit() -> None:
    target = torch.tensor([2, 0, 1, 2])
    whole, parts = Table(), Table()
    first = Ppo([whole.logits])
    learnt(whole, target, first, 5, 0)
    learnt(whole, target, first, 5, 1)
    begun = Ppo([parts.logits])
    learnt(parts, target, begun, 5, 0)
    resumed = Ppo([parts.logits])
    resumed.resume(begun.state())
    learnt(parts, target, resumed, 5, 1)
    assert torch.equal(whole.logits, parts.logits)
