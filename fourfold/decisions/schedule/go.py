"""GO: one learned policy places, orders and fuses all ops at once, and looks at what came of it before it answers again.

Zhou et al. (2020), "Transferable graph optimizers for ML compilers". `_go/network.py` holds the network, `_go/repair.py` what makes any of its
answers valid, `fourfold pretrain` the training. Zero-shot: the likeliest answer and a few samples, priced by the simulator, over three rounds of
refinement. Then, as options: fine-tuning on this one graph by PPO, and annealing from the best plan while the budget lasts (the hybrid, so named in
the note).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.problem import Budget, Solver, SolverAnswer

_LARGE = 30_000                                                        # nodes from which on one round of answers must do
_PRICED = 120_000                                                      # nodes × samples in a round of zero-shot answers


class Go(Solver):
    """A learned policy. `polish`: anneal from its plan while the budget lasts; `finetune`: first learn on this graph, for half of it; `weights`: a
    .safetensors file in place of the one that ships; `rounds` of refinement and `samples` a round (None: as many as the graph's
    size allows); most `updates` of fine-tuning."""

    title: ClassVar[str] = "GO: a learned policy for placement, order and fusion, refined and polished"
    lever: ClassVar[str] = "machine"
    answers: ClassVar[str] = "schedule"
    cites: ClassVar[tuple[str, ...]] = ("zhou2020go",)
    needs: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    counts: ClassVar[str] = "plans priced"

    def __init__(self, polish: bool = True, finetune: bool = False, weights: str | Path | None = None, rounds: int | None = None,
                 samples: int | None = None, updates: int = 10_000) -> None:
        self.polish, self.finetune, self.weights, self.rounds, self.samples = polish, finetune, weights, rounds, samples
        self.updates = updates

    def solve(self, problem: Schedule, budget: Budget, seed: int = 0) -> SolverAnswer[Answer]:
        from fourfold.decisions.schedule._go.network import read
        from fourfold.decisions.schedule._go.policy import Case, plans

        network, facts = read(None if self.weights is None else str(self.weights))
        case = Case.of(problem)
        nodes = len(problem.graph)
        samples = (min(8, _PRICED // nodes) if nodes <= _LARGE else 0) if self.samples is None else self.samples
        rounds = (3 if nodes <= _LARGE else 1) if self.rounds is None else self.rounds
        found = [plans(network, case, budget, seed, rounds, samples)]
        if nodes <= _LARGE and not budget.exhausted:                    # once more, from nothing but the graph
            found.append(plans(network, case, budget, seed, rounds, samples, opening=False))
        best = min((plan for plan in found if plan is not None), key=lambda plan: plan.cost, default=None)
        notes = [f"Policy of {facts['updates']} updates." if "updates" in facts else ""]
        if self.finetune and not budget.exhausted:
            from fourfold.decisions.schedule._go.tune import tune

            tuned, told = tune(network, case, budget, seed, updates=self.updates, share=0.5 if self.polish else 1.0)
            best = tuned if best is None or tuned is not None and tuned.cost < best.cost else best
            notes.append(told)
        if best is None:
            answer, cost = _listed(problem, budget)
            notes = ["No answer of the policy could be mended to fit the devices' memory; the best list schedule stands in."]
        else:
            answer, cost = best.answer, best.cost
        if self.polish and not budget.exhausted:
            from fourfold.decisions.schedule.anneal import improve

            answer = improve(problem, answer, budget, seed)
            notes.append(f"Annealed from the policy's plan ({cost:.4g} {problem.unit}).")
        return SolverAnswer(answer, evidence={"policy": cost} if best else {}, note=" ".join(note for note in notes if note))


def _listed(problem: Schedule, budget: Budget) -> tuple[Answer, float]:
    """The best of the cheap techniques, and its cost. Raises Infeasible where none fits either."""
    from fourfold.decisions.schedule.anneal import starts

    cost, answer = starts(problem, budget)[0]
    return answer, cost
