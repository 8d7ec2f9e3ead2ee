"""How the chiplet policy answers and learns: FIX of its likeliest partitions, then groups of SAMPLEs, each followed by a step of PPO; and
imitation."""

from __future__ import annotations

import math

import numpy as np
import torch

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._network import REACH, ChipletNetwork, ChipletPolicy, ChipletTensors, SplitAction, base, chances
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.solvers.ppo import Ppo, Rates, Rollout

GROUP = 20                                                              # rollouts a step, as published
RATES = Rates(step=5e-4, clip=0.2, epochs=4, entropy=1e-3, norm=1.0)


def likeliest(network: ChipletNetwork, t: ChipletTensors, sampler: Sampler, found: PartitionEvaluator, most: int) -> None:
    """Price FIX of the likeliest partition for each number of stages, the likeliest first."""
    with torch.no_grad():
        h = network.encode(t)
        for share in network.first(t, h).argsort(descending=True).tolist()[:most]:
            if found.over:
                return
            wanted = base(t.features, share) + network.offsets(t, h, share).argmax(1).numpy() - REACH
            found.price(sampler.fix(wanted.clip(0, t.features.chips - 1)))


def group(network: ChipletNetwork, t: ChipletTensors, sampler: Sampler, found: PartitionEvaluator, rng: np.random.Generator, size: int = GROUP,
          heat: float = 1.0) -> Rollout | None:
    """Sample, make valid and price `size` partitions; the best that is known stands among them at no price. None where fewer than two are valid."""
    with torch.no_grad():
        h = network.encode(t)
        first = network.first(t, h)
        places: dict[int, np.ndarray] = {}
        shares: list[int] = []
        chips: list[np.ndarray] = []
        rewards: list[float] = []
        for _ in range(size):
            if found.over:
                break
            share = int(rng.choice(len(first), p=_normal(np.exp(first.numpy().astype(np.float64)))))
            if share not in places:
                places[share] = chances(t.features, share, torch.log_softmax(network.offsets(t, h, share) / heat, 1).numpy())
            chip = sampler.sample(places[share], int(rng.integers(1 << 30)))
            cost = found.price(chip)
            if chip is not None:
                shares.append(share)
                chips.append(chip.astype(np.int64))
                rewards.append(-math.log(cost) if math.isfinite(cost) else math.nan)
        if len(chips) < 2:
            return None
        if found.best is not None:
            mine = found.best.astype(np.int64)
            shares.append(min(range(len(first)), key=lambda k: int(np.abs(mine - base(t.features, k)).sum())))
            chips.append(mine)
            rewards.append(-math.log(found.cost))
        action = SplitAction(np.array(shares), np.stack(chips))
        log, _ = ChipletPolicy(network).score(t, action)
    return Rollout(t, action, log, np.array(rewards))


def tune(network: ChipletNetwork, t: ChipletTensors, sampler: Sampler, found: PartitionEvaluator, seed: int, fixes: int = 4) -> None:
    """Answer until the evaluations are spent, learning from every group."""
    rng = np.random.default_rng(seed)
    policy, ppo = ChipletPolicy(network), Ppo(network.parameters(), RATES)
    while not found.over:
        likeliest(network, t, sampler, found, fixes)
        fixes = 1
        if (rollout := group(network, t, sampler, found, rng)) is not None and not found.over:
            ppo.update(policy, [rollout])


def imitation(network: ChipletNetwork, t: ChipletTensors, chip: np.ndarray, weight: np.ndarray) -> torch.Tensor:
    """Cross-entropy of a partition under the policy, a mean over its ops; the number of stages that lies nearest counts as its first choice."""
    share = nearest(t, chip)
    first, place = network(t, share)
    offset = torch.from_numpy((chip - base(t.features, share)).clip(-REACH, REACH) + REACH)
    each = -place.gather(1, offset[:, None])[:, 0]
    scale = torch.from_numpy(weight.astype(np.float32))
    return (each * scale).sum() / scale.sum() - 0.1 * first[share]


def nearest(t: ChipletTensors, chip: np.ndarray) -> int:
    """The first choice under which the places lie nearest to a partition."""
    from fourfold.decisions.chiplets._features import SHARES

    return min(range(len(SHARES)), key=lambda k: float(np.abs(chip - base(t.features, k)).mean()))


def _normal(p: np.ndarray) -> np.ndarray:
    return p / p.sum()
