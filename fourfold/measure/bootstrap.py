"""The bootstrap: how far a statistic of rows that belong together would spread (Efron 1979; Efron and Tibshirani 1993, chapters 6, 13 and 16).

Rows (rounds of a race, calls, examples) are drawn with replacement, all columns alike, so what is paired stays so. Percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np  # imported where it is used: a race needs the clocks and nothing else before its end

LEVEL = 0.90  # of the intervals that are reported everywhere; the lower end is a one-sided 95 % bound
SURE = 0.99  # of the interval by which something is called faster, or slower
RESAMPLES = 2000


def resampled(statistic: Callable[..., np.ndarray], *columns: object, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """The statistic of `resamples` resamples [R] of the rows of `columns`, each [N]; it is given them as arrays [R, N]."""
    import numpy as np

    arrays = [np.asarray(column) for column in columns]
    picks = np.random.default_rng(seed).integers(0, len(arrays[0]), (resamples, len(arrays[0])))
    return np.asarray(statistic(*(array[picks] for array in arrays)))


def weights(units: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each unit was drawn in each resample, [R, units]: for statistics that are functions of weighted sums."""
    import numpy as np

    picked = rng.integers(0, units, size=(resamples, units)) + np.arange(resamples)[:, None] * units
    return np.bincount(picked.ravel(), minlength=resamples * units).reshape(resamples, units)


def interval(drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of resampled values [R]: what lies between their (1 − level) / 2 and (1 + level) / 2 quantiles."""
    import numpy as np

    tail = round((1 - level) / 2, 9)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def medians(values: np.ndarray) -> np.ndarray:
    """The median of each resample."""
    import numpy as np

    return np.median(values, axis=1)
