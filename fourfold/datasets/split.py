"""Which rows train, which steer the search, which are never seen: seeded, stratified, duplicates together, whatever the order of the rows."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sized
from typing import Any

import numpy as np

from fourfold.errors import InputError

SHARES = {"train": 0.60, "search": 0.15, "test": 0.25}
FEWEST = 24  # rows (after duplicates are merged) below which no honest split exists
TEST_AIM = 200  # a smaller test set borrows from the others …
TEST_CAP = 0.4  # … up to this share
STABLE = 400  # from this many units in a stratum on, each unit's side depends on its own content only


def content(value: object) -> bytes:
    """Bytes that are equal for inputs that are the same to a reader: case, accents' encoding and white space do not count in texts."""
    if isinstance(value, str):
        return " ".join(unicodedata.normalize("NFKC", value).casefold().split()).encode()
    if isinstance(value, bytes):
        return value
    if isinstance(value, tuple | list) and value and isinstance(value[0], str):
        return b"\x1f".join(content(part) for part in value)
    if isinstance(value, dict):
        return b"\x1e".join(key.encode() + b"\x1f" + content(value[key]) for key in sorted(value))
    array = np.ascontiguousarray(value)
    return str(array.shape).encode() + array.tobytes()


def group_of(value: object) -> int:
    """63-bit number of the content: equal for duplicates, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(content(value), digest_size=8).digest(), "big") >> 1


def position(groups: np.ndarray, seed: int) -> np.ndarray:
    """Where each group falls in [0, 1), from its content and the seed alone. groups: int64 [N] → float64 [N]."""
    z = groups.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & 0xFFFFFFFFFFFFFFFF)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of SplitMix64 (Steele, Lea and Flood 2014)
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def strata(targets: Sized | None) -> np.ndarray:
    """One small number per row: its class, or the tenth of the data in which its value lies; 0 where targets are neither."""
    if not isinstance(targets, np.ndarray) or targets.ndim != 1:
        return np.zeros(0 if targets is None else len(targets), dtype=np.int64)
    if targets.dtype.kind in "iu":
        return targets.astype(np.int64)
    edges = np.unique(np.quantile(targets, np.linspace(0.1, 0.9, 9)))
    return np.searchsorted(edges, targets, side="right")


def shares_for(units: int, wanted: dict[str, float] | None) -> dict[str, float]:
    """Shares of train, search and test for `units` distinct rows. A small data set gives more of itself to the test, whose noise decides what can be
    claimed."""
    if wanted:
        return wanted
    test = max(SHARES["test"], min(TEST_AIM / units, TEST_CAP))
    rest = (1 - test) / (1 - SHARES["test"])
    return {"train": SHARES["train"] * rest, "search": SHARES["search"] * rest, "test": test}


def sides(groups: np.ndarray, stratum: np.ndarray, shares: dict[str, float], seed: int) -> dict[str, np.ndarray]:
    """Row numbers by side. Rows of one group stay together; within each stratum the sides get their shares; the order of the rows plays no part.

    groups, stratum: int64 [N]. In a stratum of at least 400 groups a group's side depends on its own content and the seed only, so that rows added
    later move nothing; in smaller ones the groups are ranked, which keeps the shares exact.
    """
    order = np.lexsort((stratum, groups))
    first = order[np.flatnonzero(np.r_[True, np.diff(groups[order]) != 0])]  # a group counts in its lowest stratum
    unit_groups, unit_strata = groups[first], stratum[first]
    place = position(unit_groups, seed)
    for which in np.unique(unit_strata):
        here = np.flatnonzero(unit_strata == which)
        if len(here) < STABLE:
            place[here[np.argsort(place[here], kind="stable")]] = (np.arange(len(here)) + 0.5) / len(here)
    names = list(shares)
    total = sum(shares.values())
    edges = np.cumsum([shares[name] / total for name in names])[:-1]
    side = np.searchsorted(edges, place, side="right")
    of_row = side[np.searchsorted(unit_groups, groups)]
    return {name: np.flatnonzero(of_row == number) for number, name in enumerate(names)}


def fractions(splits: Any) -> dict[str, float] | None:
    """The user's own shares, checked: a dict with train, search and test, or three numbers in that order."""
    if splits is None:
        return None
    given = dict(zip(SHARES, splits, strict=False)) if isinstance(splits, tuple | list) else splits
    try:
        shares = {name: float(given[name]) for name in SHARES}
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"splits={splits!r} is not three shares.",
            'Give {"train": 0.6, "search": 0.15, "test": 0.25}, or the name of a column that says train, search or test.',
        ) from None
    if min(shares.values()) <= 0:
        raise InputError(
            f"splits={splits!r}: every share must be above 0.", "All three sides are needed: train recovers, search steers, test proves."
        )
    return shares
