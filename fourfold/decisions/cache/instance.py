"""A trace of requests, and what leaves a cache while it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

NEVER = 1 << 60                                                         # the next request of an object that is not asked for again
LARGEST = 1 << 50                                                       # bytes of one object


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Requests in order. `ids` i4[n]: objects 0 … N−1; `sizes` i8[n]: bytes of each request; `objects`: N.

    Make one by `of`, which numbers whatever keys there are. Raises InputError where arrays do not fit or a size is not above zero.
    """

    ids: NDArray[np.int32]
    sizes: NDArray[np.int64]
    objects: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.ids.shape != self.sizes.shape or self.ids.ndim != 1 or not len(self.ids):
            raise InputError("A trace must hold at least one request, and as many sizes as requests.", "Give a key for every request.")
        if (bad := np.flatnonzero((self.sizes <= 0) | (self.sizes > LARGEST))).size:
            raise InputError(f"Request {bad[0] + 1:,} of the trace {self.name!r} is of {self.sizes[bad[0]]:,} bytes, which no object has.",
                             "Sizes are whole bytes above zero; leave the column out if there are none.")
        if self.ids.min() < 0 or self.ids.max() >= self.objects:
            raise InputError("A trace names an object that it does not have.", "Number objects from 0 to their count less one, or use `of`.")

    @classmethod
    def of(cls, keys: NDArray, sizes: NDArray | None = None, name: str = "") -> RequestTrace:
        """Requests by any keys that sort; without sizes every object is of one byte."""
        if not len(keys):
            raise InputError(f"The trace {name!r} holds no request.", "Give a key for every request.")
        known, ids = np.unique(keys, return_inverse=True)
        whole = np.ones(len(ids), np.int64) if sizes is None else np.asarray(sizes).astype(np.int64)
        return cls(ids.astype(np.int32).reshape(-1), whole, len(known), name)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def following(self) -> NDArray[np.int64]:
        """i8[n]: the next request of the same object, NEVER where there is none."""
        found = np.full(len(self), NEVER, np.int64)
        earlier, later = self._neighbours
        found[earlier] = later
        return found

    @cached_property
    def _neighbours(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Each request that is asked for again, and when."""
        order = np.argsort(self.ids, kind="stable")
        same = self.ids[order[1:]] == self.ids[order[:-1]]
        return order[:-1][same], order[1:][same]

    @cached_property
    def first(self) -> NDArray[np.bool_]:
        """bool[n]: whether the object was never asked for before."""
        found = np.ones(len(self), bool)
        found[self._neighbours[1]] = False
        return found

    @cached_property
    def footprint(self) -> int:
        """Bytes of all objects, each as large as when it was first asked for."""
        return int(self.sizes[self.first].sum())

    @property
    def bytes(self) -> int:
        """Bytes asked for."""
        return int(self.sizes.sum())


@dataclass(frozen=True, eq=False)
class Evictions:
    """What a policy does to a trace: `refused` bool[n], misses after which the object is not taken in; `when` i4[m], `who` i4[m]: before the object
    of request `when` enters, `who` leaves."""

    refused: NDArray[np.bool_]
    when: NDArray[np.int32]
    who: NDArray[np.int32]
