"""What the chiplet policy reads of a problem: numbers of each op that know no names, no units of time and no number of chips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fourfold.decisions.chiplets._sampler import Sampler, walk
from fourfold.decisions.chiplets.problem import ChipletPartition

F4 = NDArray[np.float32]
SHARES = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.5, 0.4, 0.3, 0.2)         # of the stages that there can be: the policy's first choice
_WAVES = (1, 2, 4)


@dataclass(frozen=True, eq=False)
class ChipletFeatures:
    """`node` f4[N, F], `whole` f4[G]; edges `source`, `target` i8[E]; `along` f8[N], the share of all compute that comes before an op's middle, in
    the order of the ops; `most`: stages that there can be at all; `mean`, the seconds of a stage of the most, against which an op's own `size` f4[N]
    counts."""

    node: F4
    whole: F4
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    along: NDArray[np.float64]
    size: F4
    most: int
    chips: int

    @classmethod
    def of(cls, problem: ChipletPartition, sampler: Sampler) -> ChipletFeatures:
        w, package = problem.workload, problem.package
        n, total = len(w), max(float(w.seconds.sum()), 1e-30)
        reach = walk(sampler.net, sampler.ahead, np.zeros((0, 0), np.float32), np.full(n, package.chips), 0)
        parts = problem.parts
        needed = int(np.ceil(total / max(parts["op"], parts["pair"], total / package.chips)))
        most = max(1, min(package.chips, int(reach.max(initial=0)) + 1 if len(reach) else package.chips, needed + 1))
        mean = total / most
        along = (np.cumsum(w.seconds) - w.seconds / 2) / total
        before = np.concatenate([[0.0], np.cumsum(w.seconds)])
        step = (min(1, package.chips - 1),) * 1
        latency = float(package.latency[0, step[0]])
        rate = float(package.rate[0, step[0]])
        last = np.zeros(len(w.maker), np.int64)
        np.maximum.at(last, np.repeat(np.arange(len(w.maker)), np.diff(w.readers.ptr)), w.readers.item)
        change = np.zeros(n + 2)
        time = latency + w.size / rate
        np.add.at(change, w.maker + 1, time)
        np.subtract.at(change, last + 1, time)
        send = np.maximum(np.cumsum(change)[:n], 0.0)                   # of a cut before each op
        own = np.bincount(w.maker, time, n)
        ahead = sampler.ahead
        until = before[np.minimum(ahead[:n] + 1, n)] - before[:n]       # compute until the next cut after a cut here
        back = np.searchsorted(ahead[:n], np.arange(n), side="left")    # a cut here may follow one at this place or earlier
        since = before[:n] - before[np.minimum(np.maximum(back - 1, 0), np.arange(n))]
        weigh = np.bincount(np.repeat(np.arange(n), np.diff(w.weights.ptr)), w.weight[w.weights.item], n)
        inside = np.diff(sampler.net.inside_ptr)
        waves = [wave(2 * np.pi * k * along) for k in _WAVES for wave in (np.cos, np.sin)]
        node = np.stack([
            _log(w.seconds / mean), np.minimum(w.seconds / mean, 3.0), _log(w.seconds * n / total), _log(own / mean), _log(send / mean),
            np.minimum(send / mean, 3.0), np.clip(until / mean, 0, 4), np.clip(since / mean, 0, 4), (ahead[:n] < np.arange(n)).astype(float),
            _log(weigh / package.memory), np.log1p(np.diff(w.before.ptr)) / 2, np.log1p(np.diff(w.after.ptr)) / 2, np.log1p(inside) / 3,
            (w.seconds == 0).astype(float), along, *waves], 1)
        whole = np.array([np.log(n) / 8, package.chips / 64, most / package.chips, parts["op"] / mean, parts["pair"] / mean,
                          float(np.clip(np.mean(send) / mean, 0, 3)), float(np.clip(since.max(initial=0) / mean / 4, 0, 8)), len(w.source) / n])
        return cls(node.astype(np.float32), whole.astype(np.float32), w.source, w.target, along, (w.seconds / mean).astype(np.float32), most,
                   package.chips)

    def stages(self, share: int) -> float:
        """Stages that an op's place is counted in, under the policy's first choice."""
        return max(1.0, SHARES[share] * self.most)


def _log(x: np.ndarray) -> np.ndarray:
    return np.clip(np.log(np.maximum(x, 1e-6)) / 3, -3.0, 3.0)


NODE, WHOLE = 15 + 2 * len(_WAVES), 8
