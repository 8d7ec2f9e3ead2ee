"""Which of many candidates may be called safe, with at most 5 % chance that any of them is called so wrongly.

Candidates are put into families, each an order fixed before the test data are looked at, from cautious to bold. A family is tested in its order at
its full level until the first failure (fixed-sequence testing: Maurer, Hothorn and Lehmacher 1995; for thresholds: Learn then Test, Angelopoulos et
al. 2021). The families share the 5 % (Bonferroni); one that passes whole hands its level on to the next (the fallback procedure of Wiens 2003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEVEL = 0.05


@dataclass(frozen=True)
class Family:
    """`level`: share of the 5 % error that it may spend, in (0, 0.05]. `names`: candidates from cautious to bold."""

    name: str
    level: float
    names: tuple[str, ...]


def floors(families: Sequence[Family], alone: Callable[[str, float], float]) -> dict[str, float]:
    """The highest floor at which each candidate would have passed in its place: those before it in its order must have passed at it too.

    Counted at the families' own levels, without what one hands on to the next, so that it is never too high. alone(name, level): the highest floor at
    which the candidate's own p-value is at most `level`.
    """
    found: dict[str, float] = {}
    for family in families:
        least = float("inf")
        for name in family.names:
            least = min(least, alone(name, family.level))
            found[name] = max(found.get(name, -float("inf")), least)
    return found


def safe(families: Sequence[Family], error: Callable[[str], float]) -> tuple[list[str], list[str]]:
    """(those that passed, all that were tested in their order). error(name): p-value of "it is below the floor", from the test data.

    Raises ValueError where the levels add up to more than 5 %.
    """
    if sum(family.level for family in families) > LEVEL * (1 + 1e-9):
        raise ValueError("the families' levels add up to more than 5 %")
    passed: dict[str, None] = {}
    tested: dict[str, None] = {}
    carried = 0.0
    for family in families:
        level, whole = family.level + carried, True
        for name in family.names:
            if name in passed:
                continue
            tested[name] = None
            if error(name) > level:
                whole = False
                break
            passed[name] = None
        carried = level if whole else 0.0
    return list(passed), list(tested)

