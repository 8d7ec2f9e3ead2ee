"""Good schedules where no exact method is in time: insertion in order of need, then ruin and recreate (Schrimpf et al. 2000).

Every job is put where it costs least in what room the others leave; a few neighbours in time are taken out and put back in another order, and the
change stays if it costs no more. A job without room displaces others, who must find another place.
"""

from __future__ import annotations

import numpy as np

from fourfold.decisions.carbon_aware._pricing import assemble, cheapest, tables
from fourfold.decisions.carbon_aware.problem import JobHours, Place
from fourfold.problem import Budget

_NONE = (np.inf, np.zeros(0, np.int64), np.zeros(0, np.int64))


class PartialSchedule:
    """A schedule under construction. `found[j]` = (cost, sites, hours), cost inf where the job has no place yet."""

    def __init__(self, problem: Place, seed: int = 0, price: np.ndarray | None = None) -> None:
        self.problem, self.p, self.dice = problem, tables(problem), np.random.default_rng(seed)
        self.left = problem.room.copy()                                 # [R, T] units
        self.found = [_NONE] * len(problem.names)
        self.price = np.zeros(problem.intensity.shape) if price is None else price
        self.slack = problem.deadline - problem.release - problem.hours

    @property
    def homeless(self) -> list[int]:
        return [j for j, found in enumerate(self.found) if not np.isfinite(found[0])]

    @property
    def cost(self) -> float:
        return float(sum(found[0] for found in self.found if np.isfinite(found[0])))

    def schedule(self) -> JobHours:
        return assemble(self.found)

    def adopt(self, schedule: JobHours) -> None:
        """Start from a valid schedule."""
        ends = np.searchsorted(schedule.job, np.arange(len(self.found) + 1))
        for j in range(len(self.found)):
            site, hour = (part[ends[j]: ends[j + 1]].astype(np.int64) for part in (schedule.site, schedule.hour))
            self.put(j, (self._cost(j, site, hour), site, hour))

    def _cost(self, j: int, site: np.ndarray, hour: np.ndarray) -> float:
        return self.problem.cost(JobHours(np.full(len(site), j), site, hour))

    def put(self, j: int, found: tuple[float, np.ndarray, np.ndarray]) -> None:
        self.found[j] = found
        self.left[found[1], found[2]] -= self.p.width[j]

    def take(self, j: int) -> tuple[float, np.ndarray, np.ndarray]:
        found, self.found[j] = self.found[j], _NONE
        self.left[found[1], found[2]] += self.p.width[j]
        return found

    def fit(self, j: int, guided: bool = False) -> bool:
        """Put job j where it is cheapest in the room that is left (with prices of capacity added if `guided`); False where it fits nowhere."""
        window = slice(self.p.release[j], self.p.deadline[j])
        price = np.zeros_like(self.left[:, window]) if not guided else self.price[:, window]
        full = self.left[:, window] < self.p.width[j]
        found = cheapest(self.p, j, np.where(full, np.inf, price))
        if not np.isfinite(found[0]):
            return False
        self.put(j, (found[0] if not guided else self._cost(j, found[1], found[2]), found[1], found[2]))
        return True

    def build(self) -> None:
        """Insert all jobs, those with least slack first, wide and long ones before others; then make room for those left over."""
        for j in np.lexsort((-self.p.hours * self.p.width, self.slack)):
            self.fit(int(j), guided=True)

    def settle(self, budget: Budget) -> None:
        """Make room for jobs without a place by displacing others, until all have one or the budget ends."""
        while (waiting := self.homeless) and budget.spend():
            j = int(self.dice.choice(waiting))
            window = slice(self.p.release[j], self.p.deadline[j])
            tired = np.where(self.left[:, window] < self.p.width[j], 0.1 + self.dice.random(self.left[:, window].shape), 0.0)
            scale = float(np.nanmean(self.problem.rate)) * float(self.p.kw[j]) + 1e-12
            small = self.problem.room[:, window] < self.p.width[j]
            found = cheapest(self.p, j, np.where(small, np.inf, 10 * scale * tired))
            if not np.isfinite(found[0]):
                return
            others = self.dice.permutation([i for i in self.near(j) if i != j and np.isfinite(self.found[i][0])])
            cells = {(int(r), int(t)) for r, t in zip(found[1], found[2], strict=True)}
            out = []
            for i in others:
                short = {cell for cell in cells if self.left[cell] < self.p.width[j]}
                if not short:
                    break
                if short & {(int(r), int(t)) for r, t in zip(self.found[i][1], self.found[i][2], strict=True)}:
                    self.take(int(i))
                    out.append(int(i))
            if all(self.left[cell] >= self.p.width[j] for cell in cells):
                self.put(j, (self._cost(j, found[1], found[2]), found[1], found[2]))
            for i in sorted(out, key=lambda i: self.slack[i]):
                self.fit(i)

    def near(self, j: int) -> np.ndarray:
        """Jobs whose windows overlap that of j."""
        return np.flatnonzero((self.p.release < self.p.deadline[j]) & (self.p.deadline > self.p.release[j]))

    def improve(self, budget: Budget, largest: int = 8) -> None:
        """Ruin and recreate until the budget ends, or nothing has come of it for long; the cost never rises."""
        stale = 0
        while self.found and stale < 200 + 5 * len(self.found) and budget.spend():
            j = int(self.dice.integers(len(self.found)))
            near = self.near(j)
            out = np.unique(np.append(self.dice.choice(near, min(len(near), int(self.dice.integers(1, largest + 1))), replace=False), j))
            before = {int(i): self.take(int(i)) for i in out}
            was = sum(found[0] for found in before.values())
            order = self.dice.permutation(out)
            if self.dice.random() < 0.5:
                order = order[np.argsort(-self.p.kw[order] * self.p.hours[order], kind="stable")]
            done = all(self.fit(int(i)) for i in order)
            now = sum(self.found[int(i)][0] for i in out)
            stale = 0 if done and now < was - 1e-9 * abs(was) else stale + 1
            if not done or now > was + 1e-12 * abs(was):
                for i in out:
                    if np.isfinite(self.found[int(i)][0]):
                        self.take(int(i))
                for i, found in before.items():
                    self.put(i, found)
