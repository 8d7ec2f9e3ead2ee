"""Fine-tuning: PPO on one problem, from whatever the network knows."""

from __future__ import annotations

import copy

import torch

from fourfold.decisions.schedule._go.network import PolicyNetwork
from fourfold.decisions.schedule._go.policy import Case, GraphPolicy, rollouts
from fourfold.decisions.schedule._go.repair import Mended
from fourfold.problem import Budget
from fourfold.solvers.ppo import Ppo, Rates

RATES = Rates(step=5e-4, clip=0.2, epochs=2, entropy=1e-3)


def tune(network: PolicyNetwork, case: Case, budget: Budget, seed: int = 0, updates: int = 10_000, share: float = 1.0, samples: int = 16,
         rounds: int = 2, rates: Rates = RATES, opening: bool = True, trace: list[tuple[int, float]] | None = None) -> tuple[Mended | None, str]:
    """(the best plan seen, what was done) of at most `updates` updates in `share` of what is left of the budget. `trace` gets (plans priced, best
    cost) after each update. The network given is left as it is."""
    network = copy.deepcopy(network).train()
    learner, generator = Ppo(network.parameters(), rates), torch.Generator().manual_seed(seed)
    until, most = budget.left * (1 - share), budget.spent + int((budget.evaluations - budget.spent) * share)
    best: Mended | None = None
    done = spent = 0
    while done < updates and not budget.exhausted and budget.left > until and budget.spent < most:
        steps, found, priced = rollouts(network, case, samples, rounds, generator, opening)
        budget.spend(priced)
        spent += priced
        if found is not None and (best is None or found.cost < best.cost):
            best = found
        if trace is not None:
            trace.append((spent, float("inf") if best is None else best.cost))
        learner.update(GraphPolicy(network), steps)
        done += 1
    return best, f"Fine-tuned on this graph by {done} updates."
