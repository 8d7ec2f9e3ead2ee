"""Speed is raced, never looked up: interleaved runs in random order, wall and processor time, and an interval on the ratio.

Neighbours, temperature and frequency drift over minutes, so only timings of the same round are compared. A difference counts when a 99 % bootstrap
interval of the median per-round ratio excludes 1 (with few rounds the usual 90 % one is too hopeful: it would call one A/A race in eight), and an
exact test agrees (of nine rounds the bootstrap of a median alone would call one A/A race in fifty); the 90 % interval is what is reported.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: meters need the clocks and nothing else


class Clock(Protocol):
    """Anything that tells both times, in seconds."""

    def wall(self) -> float: ...

    def cpu(self) -> float: ...


class SystemClock:
    """Wall time from the monotonic clock; processor time of all threads of this process and of its finished children."""

    def wall(self) -> float:
        return time.perf_counter()

    def boot(self) -> float:
        """Seconds that passed, those in which the computer slept included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.perf_counter()

    def utc(self) -> float:
        """Seconds since 1970, as the calendar's clock has it: it may be set while work runs."""
        return time.time()

    def cpu(self) -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of (runner / baseline), dimensionless; `low`–`high` is its 90 % bootstrap interval.

    `verdict`: -1 cheaper, 0 no difference that can be told, 1 dearer.
    """

    value: float
    low: float
    high: float
    verdict: int


@dataclass(frozen=True)
class RaceResult:
    """One runner's race. Times are seconds for one call; `dropped` is the round it was given up in as hopeless, or None."""

    name: str
    baseline: str
    rounds: int
    repeats: int
    wall_min: float
    wall_median: float
    cpu_min: float
    cpu_median: float
    wall: Ratio
    cpu: Ratio
    dropped: int | None = None

    def faster(self, by: str = "cpu") -> bool:
        """Cheaper than the baseline beyond doubt, in "cpu" or "wall" time."""
        return getattr(self, by).verdict < 0

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RaceResult:
        """The reverse of `to_json`."""
        return cls(**{**data, "wall": Ratio(**data["wall"]), "cpu": Ratio(**data["cpu"])})


def median_ratio(ours: np.ndarray, theirs: np.ndarray, *, seed: int = 0, resamples: int = 2000) -> Ratio:
    """Interval of the median per-round ratio by bootstrap over rounds (Efron, 1979). Inputs: seconds per round, equally long, 1-D."""
    import numpy as np

    from fourfold.measure.bootstrap import SURE, interval, medians, resampled

    ratios = ours / np.maximum(theirs, 1e-12)
    drawn = resampled(medians, ratios, seed=seed, resamples=resamples)
    low, high = interval(drawn)
    surely_low, surely_high = interval(drawn, SURE)
    # Under five rounds even "all rounds agree" happens by chance too often to call it.
    verdict = 0 if len(ratios) < 5 else -1 if surely_high < 1 else 1 if surely_low > 1 else 0
    sure = verdict and _agreed(verdict * np.log(np.maximum(ratios, 1e-12)), (1 - SURE) / 2)
    return Ratio(float(np.median(ratios)), low, high, verdict if sure else 0)


def _agreed(logs: np.ndarray, chance: float) -> bool:
    """Whether logarithms that are rather positive are so beyond `chance`, by the sign test or by the trimmed t test (Tukey and McLaughlin 1963).

    The sign test holds whatever the noise; it needs eight rounds. The t test can tell from five, and a ninth of the rounds at either end, where
    neighbours show, is not looked at.
    """
    import numpy as np
    from scipy.special import stdtr

    count, above = len(logs), int((logs > 0).sum())
    if sum(math.comb(count, k) for k in range(above, count + 1)) <= chance * 2**count:
        return True
    ordered, cut = np.sort(logs), count // 9
    kept, held = count - 2 * cut, np.clip(logs, ordered[cut], ordered[count - 1 - cut])
    mean, error = float(ordered[cut: count - cut].mean()), float(held.std(ddof=1)) * math.sqrt(count) / kept
    return mean > 0 and (error == 0 or float(stdtr(kept - 1, -mean / error)) <= chance)


def race(
    runners: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 9,
    seed: int = 0,
    min_time: float = 0.025,
    warmup: int = 2,
    eliminate: str | None = None,
    hopeless: float = 1.5,
    deadline: float | None = None,
    at_least: int = 5,
    clock: Clock | None = None,
) -> dict[str, RaceResult]:
    """Time `runners` against one another.

    Each is called `warmup` times (at least once), then once per round in random order (seeded), repeated inside one timing until that lasts
    `min_time` seconds.
    `eliminate` ("cpu" or "wall") drops a runner, from the third round on, whose ratio to the best so far is above `hopeless` with its whole interval.
    `deadline` is a number of wall seconds: no new round starts after it, but `at_least` are always made. The baseline is never dropped.
    Raises KeyError where `baseline` is not among the runners, and whatever a runner raises.
    """
    import numpy as np

    clock = clock or SystemClock()
    runners[baseline]
    started = clock.wall()
    rng = np.random.default_rng(seed)
    repeats = {name: warm(run, warmup, min_time, clock) for name, run in runners.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    dropped: dict[str, int] = {}
    for number in range(rounds):
        if number >= at_least and deadline is not None and clock.wall() - started > deadline:
            break
        running = [name for name in runners if name not in dropped]
        for name in rng.permutation(np.array(running, dtype=object)):
            times[name].append(timing(runners[name], repeats[name], clock))
        if eliminate and number >= 2:
            dropped |= {name: number for name in losers(times, running, baseline, eliminate, hopeless)}
    return {name: result(name, baseline, times, repeats[name], dropped.get(name), seed) for name in runners}


def warm(run: Callable[[], object], warmup: int, min_time: float, clock: Clock) -> int:
    """Call until steady; how many calls make one timing long enough for the clock."""
    for _ in range(warmup - 1):
        run()
    before = clock.wall()
    run()
    once = clock.wall() - before
    return max(1, min(10_000, math.ceil(min_time / max(once, 1e-7))))


def timing(run: Callable[[], object], repeats: int, clock: Clock) -> tuple[float, float]:
    """(wall, processor) seconds of one call, averaged over `repeats` in one go."""
    wall, cpu = clock.wall(), clock.cpu()
    for _ in range(repeats):
        run()
    return (clock.wall() - wall) / repeats, (clock.cpu() - cpu) / repeats


def losers(times: dict[str, list[tuple[float, float]]], running: list[str], baseline: str, by: str, hopeless: float) -> list[str]:
    """Runners whose every interval endpoint against the best one lies above `hopeless`."""
    import numpy as np

    column = {"wall": 0, "cpu": 1}[by]
    taken = {name: np.array(times[name])[:, column] for name in running}
    best = min(running, key=lambda name: float(np.median(taken[name])))
    return [n for n in running if n not in (best, baseline) and median_ratio(taken[n], taken[best], resamples=200).low > hopeless]


def result(name: str, baseline: str, times: dict[str, list[tuple[float, float]]], repeats: int, dropped: int | None, seed: int) -> RaceResult:
    """Sum up one runner; a dropped one is compared over the rounds that it ran."""
    import numpy as np

    ours = np.array(times[name])
    theirs = np.array(times[baseline])[: len(ours)]
    wall, cpu = (median_ratio(ours[:, column], theirs[:, column], seed=seed) for column in (0, 1))
    (wall_min, cpu_min), (wall_median, cpu_median) = ours.min(0).tolist(), np.median(ours, axis=0).tolist()
    return RaceResult(name, baseline, len(ours), repeats, wall_min, wall_median, cpu_min, cpu_median, wall, cpu, dropped)
