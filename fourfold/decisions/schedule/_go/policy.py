"""GO's policy on one problem: choose, mend, price, look at what came of it, choose again; and what is needed to learn from that."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fourfold.decisions.schedule._go.features import Feedback, GraphFeatures
from fourfold.decisions.schedule._go.network import LEVELS, Action, Batch, PolicyNetwork, Scores
from fourfold.decisions.schedule._go.repair import Mended, mended
from fourfold.decisions.schedule._parts import PartitionTasks, fit, fuse
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.errors import Infeasible
from fourfold.problem import Budget
from fourfold.solvers.ppo import Rollout


def taken(reading: GraphFeatures, answer: Answer) -> Action:
    """The action that would make (nearly) this answer: places, the middle level, and whether each node shares a group with a producer."""
    place, group = answer.place.astype(np.int64)[reading.order], answer.group[reading.order]
    inside = np.zeros(len(reading), bool)
    np.logical_or.at(inside, reading.dst, group[reading.src] == group[reading.dst])
    unit = np.zeros(len(reading.mask), np.int64)
    unit[reading.unit] = place
    t = torch.from_numpy
    return Action(t(unit)[None], torch.full((1, len(reading)), LEVELS // 2), t((inside & (reading.candidate >= 0)).astype(np.int64))[None])


@dataclass
class Case:
    """A problem as the policy sees it."""

    problem: Schedule
    reading: GraphFeatures
    batch: Batch
    kept: dict[bytes, PartitionTasks] = field(default_factory=dict)
    _opened: list[tuple[Feedback, Mended] | None] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Schedule) -> Case:
        reading = GraphFeatures.of(problem)
        return cls(problem, reading, Batch.of(reading))

    def mend(self, action: Action) -> list[Mended | None]:
        """The plans of B actions; None where nothing fits. Equal choices are mended once."""
        found: dict[bytes, Mended | None] = {}
        plans = []
        for place, level, join in zip(*(part.numpy() for part in action), strict=True):
            key = place.tobytes() + level.tobytes() + join.tobytes()
            if key not in found:
                try:
                    found[key] = mended(self.reading, place, level, join, self.kept)
                except Infeasible:
                    found[key] = None
            plans.append(found[key])
        return plans

    def opening(self) -> tuple[Feedback, Mended] | None:
        """The cheaper of a list schedule (HEFT) and of all on one device, fused, to look at before the first answer, and what it did; None where
        neither fits. Made once.
        """
        if not self._opened:
            found = [plan for plan in (self._listed(), *self.mend(self._together())) if plan is not None]
            first = min(found, key=lambda plan: plan.cost, default=None)
            self._opened.append(None if first is None else (self.look(taken(self.reading, first.answer), [first]), first))
        return self._opened[0]

    def _listed(self) -> Mended | None:
        from fourfold.decisions.schedule.heft import plan

        work = PartitionTasks.of(self.problem, fuse(self.problem))
        try:
            place, priority = fit(work, plan)
        except Infeasible:
            return None
        return Mended(work, place, priority, work.over(place, priority)[0])

    def _together(self) -> Action:
        """Everything on the device that runs it soonest, units that it cannot take on the next."""
        reading, count = self.reading, len(self.reading)
        soonest = np.argsort(np.nan_to_num(self.problem.seconds, posinf=1e9).sum(0), kind="stable")
        place = soonest[reading.mask[:, soonest].argmax(1)].astype(np.int64)
        join = (reading.candidate >= 0).astype(np.int64)
        return Action(torch.from_numpy(place)[None], torch.full((1, count), LEVELS // 2), torch.from_numpy(join)[None])

    def look(self, action: Action, plans: list[Mended]) -> Feedback:
        """What the network is told of those plans (of what was mended, not of what it chose)."""
        rows, order = [], self.reading.order
        for level, join, plan in zip(action.level.numpy(), action.join.numpy(), plans, strict=True):
            task, run = plan.work.tasks.group[order], plan.played()
            rows.append((plan.place[task].astype(np.int64), level, join, run.start[task], run.finish[task], run.ready[task],
                         plan.cost / self.reading.scale))
        return self.reading.feedback(rows)


def plans(network: PolicyNetwork, case: Case, budget: Budget, seed: int = 0, rounds: int = 3, samples: int = 8, heat: float = 0.5,
          opening: bool = True) -> Mended | None:
    """The best plan of `rounds` likeliest answers, each made after the last was simulated, and of `samples` drawn in each round. With `opening` the
    first answer is made after a list schedule was looked at, which counts among the plans.
    """
    generator = torch.Generator().manual_seed(seed)
    best: Mended | None = None
    batch = case.batch
    with torch.inference_mode():
        if opening and (opened := case.opening()):
            budget.spend()
            batch, best = batch.after(opened[0]), opened[1]
        for _ in range(rounds):
            action, _ = network(batch)
            tried = [*zip(case.mend(action), [action], strict=True)]
            if samples:
                drawn, _ = network(batch, samples=samples, heat=heat, generator=generator)
                tried += [(plan, Action(*(part[i:i + 1] for part in drawn))) for i, plan in enumerate(case.mend(drawn))]
            budget.spend(len(tried))
            valid = [(plan, one) for plan, one in tried if plan is not None]
            if not valid:
                break
            plan, action = min(valid, key=lambda pair: pair[0].cost)
            best = plan if best is None or plan.cost < best.cost else best
            if budget.exhausted:
                break
            batch = batch.after(case.look(action, [plan]))
    return best


@dataclass(frozen=True)
class State:
    """What an action was chosen in: a graph after last answers (None in the first round)."""

    batch: Batch


class GraphPolicy:
    """The network as `solvers/ppo.py` wants it."""

    def __init__(self, network: PolicyNetwork, linked: bool = True) -> None:
        self.network, self.linked = network, linked

    def score(self, state: State, action: Action) -> tuple[Tensor, Tensor]:
        """(log π, entropy) f4[B, decisions]."""
        scores: Scores = self.network(state.batch, action, linked=self.linked)[1]
        return scores.log, scores.entropy


def rollouts(network: PolicyNetwork, case: Case, samples: int, rounds: int, generator: torch.Generator,
             opening: bool = True) -> tuple[list[Rollout], Mended | None, int]:
    """(for each round what was sampled and its reward, the cheapest plan, plans priced).

    Reward -√(cost / scale), as GO's; each round goes on from the best plan of the last, the likeliest answer among them.
    """
    steps, best, spent, batch = [], None, 0, case.batch
    with torch.no_grad():
        if opening and (opened := case.opening()):
            batch, best, spent = batch.after(opened[0]), opened[1], 1
        for turn in range(rounds):
            likely, _ = network(batch)
            action, scores = network(batch, samples=samples, heat=1.0, generator=generator)
            first, *found = case.mend(Action(*(torch.cat(pair) for pair in zip(likely, action, strict=True))))
            spent += samples + 1
            reward = np.array([np.nan if plan is None else -np.sqrt(plan.cost / case.reading.scale) for plan in found])
            steps.append(Rollout(State(batch), action, scores.log, reward))
            valid = [(plan, i) for i, plan in enumerate([first, *found]) if plan is not None]
            if not valid:
                break
            plan, i = min(valid, key=lambda pair: pair[0].cost)
            best = plan if best is None or plan.cost < best.cost else best
            if turn + 1 < rounds:
                one = likely if i == 0 else Action(*(part[i - 1:i] for part in action))
                batch = batch.after(case.look(one, [plan]))
    return steps, best, spent
