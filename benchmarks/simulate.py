"""How fast the simulator is: events a second, and seconds a plan, from 10^2 to 10^5 tasks, on one core (processor time).

    python benchmarks/simulate.py [--out benchmarks/results/simulate.json]

An event is one entry of the event queue: the end of a task, the start or arrival of a transfer, the end of a sender's copying. Two placements on
eight P100 over PCIe: at random (almost every value crosses the bus) and in eight stretches (few do). Every task reads two of the fifty before it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import provenance

from fourfold.cost.simulate import Tasks, arrays, play
from fourfold.machine import Machine

SIZES = (100, 1000, 10_000, 100_000)


def graph(count: int, devices: int, seed: int = 0) -> Tasks:
    """A layered random graph of `count` tasks of up to a millisecond, values of up to a megabyte."""
    dice = np.random.default_rng(seed)
    readers: list[list[int]] = [[] for _ in range(count)]
    for t in range(1, count):
        for s in set(dice.integers(max(0, t - 50), t, size=min(2, t)).tolist()):
            readers[s].append(t)
    seconds = dice.random((count, 1)) * 1e-3 * np.ones((1, devices))
    return Tasks.of(seconds, [(t, int(dice.integers(1, 10**6)), readers[t]) for t in range(count)])


def measure(count: int, system: Machine, least: float = 1.0) -> list[dict[str, Any]]:
    """One row a placement: events, seconds a simulation, events a second."""
    tasks = graph(count, len(system))
    plain, order = arrays(tasks, system), -np.arange(count, dtype=float)
    places = {"random": np.random.default_rng(1).integers(0, len(system), count), "stretches": np.arange(count) * len(system) // count}
    rows = []
    for name, place in places.items():
        where = place.astype(np.int16)
        run = play(plain, where, order, False, False)
        began, runs = time.process_time(), 0
        while time.process_time() - began < least:
            run, runs = play(plain, where, order, False, False), runs + 1
        took = (time.process_time() - began) / runs
        rows.append({"tasks": count, "placement": name, "events": int(run.events), "transfers": len(run.value), "seconds": took,
                     "events_per_second": run.events / took, "makespan": float(run.makespan)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "simulate.json")
    given = parser.parse_args()
    system = Machine.read("p100x8")
    rows = [row for count in SIZES for row in measure(count, system)]
    for row in rows:
        print(f"{row['tasks']:>7} tasks, {row['placement']:<9} {row['events']:>7} events  {row['seconds'] * 1e3:9.3f} ms  "
              f"{row['events_per_second'] / 1e6:6.2f} M events/s")
    provenance.publish(given.out, {"about": provenance.facts(given, [0]), "system": system.name, "rows": rows})


if __name__ == "__main__":
    main()
