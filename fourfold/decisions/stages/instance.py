"""What a stage costs: a table over configurations (a submesh and how it is used) and runs of consecutive layers, as arrays that numba reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fourfold.errors import InputError

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
MANY = 1 << 30                                                          # "as many microbatches as there are"


@dataclass(frozen=True, eq=False)
class StageTable:
    """L layers, C configurations.

    layers    [L] names, in the order of the chain
    configs   [C] names, such as "1x4 as 2x2, split"
    devices   i8[C] devices of the submesh
    data      bool[C] whether the configuration is data parallelism alone
    seconds   f8[C, L, L] of a microbatch, forward and backward, through layers i … k (both among them); inf where it cannot be or i > k. What is paid
              once a step (gradients summed) is in it by its share of a microbatch
    held      f8[C, L, L] bytes that a device holds whatever is in flight: parameters, gradients, optimiser state, temporaries
    active    f8[C, L, L] bytes that a device holds for each microbatch in flight

    Raises InputError where shapes differ, a size is below 1, or a figure is negative or not a number.
    """

    layers: tuple[str, ...]
    configs: tuple[str, ...]
    devices: I64
    data: NDArray[np.bool_]
    seconds: F64
    held: F64
    active: F64

    def __post_init__(self) -> None:
        count, runs = len(self.configs), (len(self.configs), len(self.layers), len(self.layers))
        for name, shape, dtype in (("devices", (count,), np.int64), ("data", (count,), np.bool_), ("seconds", runs, np.float64),
                                   ("held", runs, np.float64), ("active", runs, np.float64)):
            array = np.array(getattr(self, name), dtype)
            if array.shape != shape:
                raise InputError(f"The table's {name} has shape {array.shape}, expected {shape}: configurations × first layer × last layer.",
                                 "Give one figure for each run of layers on each configuration.")
            if dtype == np.float64 and (np.isnan(array).any() or (array < 0).any()):
                raise InputError(f"The table's {name} has a figure that is negative or not a number.", "Write inf where a run cannot be.")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not self.layers or not count or (self.devices < 1).any():
            raise InputError("A table of stages needs a layer and a configuration of at least one device.", "Give both.")

    def in_flight(self, limit: float, microbatches: int) -> I64:
        """i8[C, L, L]: how many microbatches in flight `limit` bytes allow; -1 where not even none, `MANY` where all of them fit."""
        with np.errstate(invalid="ignore", divide="ignore"):
            free = limit - self.held
            own = np.where(self.active > 0, self.active, 1.0)
            many = np.where(self.active > 0, np.floor(np.where(np.isfinite(free), free, 0.0) / own + 1e-9), MANY)
        many = np.where(free < 0, -1, np.where(np.isinf(limit), MANY, many))
        return np.where(many >= microbatches, MANY, many).astype(np.int64)

    @cached_property
    def possible(self) -> NDArray[np.bool_]:
        """bool[C, L, L]: runs that cost a finite time."""
        return np.isfinite(self.seconds)

    def to_json(self) -> dict[str, object]:
        """Plain data; only runs i ≤ k, inf as None."""
        upper = np.triu_indices(len(self.layers))

        def rows(array: F64) -> list[list[float | None]]:
            return [[float(x) if np.isfinite(x) else None for x in one[upper]] for one in array]

        return {"layers": list(self.layers), "configs": list(self.configs), "devices": self.devices.tolist(), "data": self.data.tolist(),
                "seconds": rows(self.seconds), "held": rows(self.held), "active": rows(self.active)}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[object]]) -> StageTable:
        """What `to_json` gave. Raises KeyError, ValueError or InputError where something is missing or odd."""
        layers = tuple(map(str, data["layers"]))
        upper = np.triu_indices(len(layers))

        def full(name: str) -> F64:
            made = np.full((len(data[name]), len(layers), len(layers)), np.inf)
            for one, row in zip(made, data[name], strict=True):
                one[upper] = np.array(row, np.float64)                  # None becomes nan
            return np.where(np.isnan(made), np.inf, made)

        return cls(layers, tuple(map(str, data["configs"])), np.array(data["devices"], np.int64), np.array(data["data"], np.bool_), full("seconds"),
                   full("held"), full("active"))


def invented(seed: int) -> tuple[StageTable, int, int, float]:
    """(table, devices, microbatches, limit in bytes): a small random chain of 3 to 6 layers on 4 or 8 devices; one stage that holds all always fits
    some configuration."""
    rng = np.random.default_rng(seed)
    count, devices, microbatches = int(rng.integers(3, 7)), int(rng.choice([4, 8])), int(rng.integers(1, 9))
    work, weight = rng.uniform(1, 5, count), rng.uniform(1, 8, count)
    sizes = [n for n in (1, 2, 4, 8) if n <= devices]
    names, owned, data, seconds, held, active = [], [], [], [], [], []
    first, last = np.arange(count)[:, None], np.arange(count)[None, :]
    run = lambda x: np.concatenate([[0.0], np.cumsum(x)])[last + 1] - np.concatenate([[0.0], np.cumsum(x)])[first]  # noqa: E731 — used here alone
    for n in sizes:
        for kind, lost, share in (("data", 0.05, 1), ("split", rng.uniform(0.05, 0.3), n)):
            time = run(work) / n * (1 + lost * np.log2(n)) * rng.uniform(0.6, 1.6, (count, count))
            names.append(f"1x{n}, {kind}")
            owned.append(n)
            data.append(kind == "data")
            seconds.append(np.where(first <= last, time, np.inf))
            held.append(np.where(first <= last, run(weight) / share, np.inf))
            active.append(np.where(first <= last, run(work) / n * 0.5, np.inf))
    table = StageTable(tuple(f"layer {i}" for i in range(count)), tuple(names), np.array(owned), np.array(data), np.array(seconds), np.array(held),
                       np.array(active))
    least = float((table.held + table.active * microbatches)[:, 0, -1].min())
    return table, devices, microbatches, least * float(rng.choice([1.0, 1.3, 4.0]))
