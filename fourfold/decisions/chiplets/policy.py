"""A learned policy: GraphSAGE and PPO propose partitions, the propagator makes them valid (Xie et al., MLSys 2022).

The network says a chip for every op in one step; FIX turns its likeliest partition into a valid one, SAMPLE draws others for PPO. It comes trained on
graphs made by code (`fourfold pretrain --question chiplets`, none of those that it is ranked on) and goes on learning on the one graph it is asked
about, 20 partitions a step. Unlike the paper's network it counts chips from an op's place in the order of the ops, so that it knows no number of
chips.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._sampler import Sampler
from fourfold.decisions.chiplets.problem import ChipletPartition
from fourfold.problem import Budget, Solver, SolverAnswer


class LearnedPartition(Solver):
    title = "GraphSAGE and PPO with a constraint solver, trained beforehand"
    lever = "machine"
    answers = "chiplets"
    cites = ("xie2022", "zhou2020go")
    needs = ("torch", "safetensors", "numba")
    counts = "partitions priced"

    def __init__(self, fresh: bool = False) -> None:
        """fresh: begin with random weights (the paper's training from scratch on one graph)."""
        self.fresh = fresh

    def solve(self, problem: ChipletPartition, budget: Budget, seed: int = 0) -> SolverAnswer[np.ndarray]:
        import torch

        from fourfold.decisions.chiplets._features import ChipletFeatures
        from fourfold.decisions.chiplets._learn import tune
        from fourfold.decisions.chiplets._network import ChipletNetwork, ChipletTensors, read

        threads = torch.get_num_threads()
        state = torch.random.get_rng_state()
        torch.set_num_threads(1)
        try:
            torch.manual_seed(seed)
            network = ChipletNetwork() if self.fresh else read()[0]
            sampler, found = Sampler(problem), PartitionEvaluator(problem, budget)
            features = ChipletTensors.of(ChipletFeatures.of(problem, sampler))
            tune(network, features, sampler, found, seed)
        finally:
            torch.set_num_threads(threads)
            torch.random.set_rng_state(state)
        return SolverAnswer(found.answer(), evidence={"trace": found.trace})
