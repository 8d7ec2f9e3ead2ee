"""Simulate: when each task starts and ends, what waits for what, how much memory each device holds and what it all costs. Event-driven, in numba.

    tasks = tasks_of(graph, group, system)
    timeline = simulate(tasks, place, priority, system)

Rules
 1. A task runs on its device `place[t]` for `seconds[t, place[t]]`, without a break; a device runs one task at a time.
 2. A task is *ready* when every value it reads is on its device. An idle device takes the ready task of largest priority (ties: the lower number), at
    once: no device idles while a task of its own is ready (work conservation). With `strict`, a device takes its tasks in falling priority whether or
    not they are ready, and waits for the next one, as an executor with a fixed order does.
 3. A value read on another device than the one that made it is sent there once, however many tasks read it, as soon as its producer ends.
    Transfers are asked for in the order in which producers end (ties: task, value, destination, each by number).
 4. A transfer takes every lane of its route together, for bytes / (least bandwidth of the route); each lane serves its transfers in the order in
    which they were asked for. It arrives the route's latency after that. A duplex link has a lane each way, any other one lane. Zero bytes still pay
    latency.
 5. Compute and transfers overlap, unless a link of the route says `overlap = false`: then the sender copies the bytes itself, its transfers begin one
    after the other, and it starts no task while it copies.
 6. Memory of a device = resident bytes (parameters, inputs, constants, each once, of all tasks placed there, all the time) + live values + workspace
    of the task that runs. A value is live on the device that makes it from the start of its producer until its last reader there has ended and its
    last copy has arrived elsewhere; a copy, from the start of its transfer until its last reader there has ended; outputs of the program to the end,
    where they were made. A view holds no bytes and keeps what it views alive. At one instant, what ends frees its bytes before what begins takes its
    own. More than the limit is reported, not prevented.
 7. Joules = idle watts × idle time and busy watts × busy time of every device until the makespan + joules per byte of every transfer.

Everything is a function of its arguments: same input, same output, to the bit.

What follows from the rules (each is a test)
 · makespan ≥ the longest path through seconds and uncontended transfers, ≥ the load of the busiest device, ≥ the load of the busiest lane;
 · more bandwidth never hurts where orders cannot change: with `strict`, where each lane carries what one device sends (a duplex link for each
   pair) and all links overlap; also without `strict` where moreover the tasks of each device form a chain. Start times are then maxima of sums of
   task and transfer times. Otherwise it can hurt (Graham 1969: a list schedule may get longer when a task gets shorter; `tests/test_simulate.py`
   holds an instance of five tasks); what always holds is that `bound`, the makespan's lower bound above, does not rise.

An event is one entry of the event queue: the end of a task, the start of a transfer, the arrival of a transfer, the end of a sender's copying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fourfold.cost.simulate.kernel import Arrays, Played, Scratch, arrays, fluid_bound, play, play_many, quick
from fourfold.cost.simulate.tasks import Tasks, tasks_of
from fourfold.cost.simulate.timeline import Timeline, Transfers, chain_of
from fourfold.errors import InputError

if TYPE_CHECKING:
    from fourfold.machine import Machine

__all__ = ["Arrays", "Played", "Scratch", "Tasks", "Timeline", "Transfers", "arrays", "bound", "chain_of", "play", "play_many", "quick", "simulate",
           "simulate_many", "tasks_of"]


def simulate(tasks: Tasks, place: ArrayLike, priority: ArrayLike, system: Machine, *, strict: bool = False, memory: bool = False) -> Timeline:
    """Run `tasks` with device `place` i2[T] and `priority` f8[T] each (larger first) on `system`, by the rules above.

    `strict`: devices keep to the order of priorities and wait. `memory`: keep the memory curve. Raises InputError where arrays have another length, a
    place is no device, a priority is NaN, tasks wait for one another in a circle, or (`strict`) an order can never finish.
    """
    plain = arrays(tasks, system)
    where, wanted = np.asarray(place).astype(np.int64), np.asarray(priority, np.float64)
    if where.shape != (len(tasks),) or wanted.shape != (len(tasks),):
        raise InputError(f"There are {len(tasks)} tasks, {where.size} places and {wanted.size} priorities.", "Give one of each per task.")
    if len(tasks) and (where.min() < 0 or where.max() >= len(system)):
        raise InputError(f"A task is placed on device {int(where.max() if where.max() >= len(system) else where.min())}.",
                         f"{system.name!r} has devices 0 to {len(system) - 1}.")
    if np.isnan(wanted).any():
        raise InputError(f"{tasks.name(int(np.argmax(np.isnan(wanted))))} has no priority (NaN).", "Give a number for each task.")
    run = play(plain, where.astype(np.int16), wanted, strict, memory)
    if run.done < len(tasks):
        stuck = np.flatnonzero(np.isnan(run.finish))
        told = ", ".join(tasks.name(int(t)) for t in stuck[:4]) + (", …" if len(stuck) > 4 else "")
        raise InputError(f"{len(stuck)} tasks wait for one another for ever: {told}.",
                         "Give an order that follows the dataflow on every device." if strict else "Choose groups whose graph has no cycle.")
    cannot = np.flatnonzero(np.isinf(tasks.seconds[np.arange(len(tasks)), where]))
    lanes = run.lane_busy.reshape(-1, 2).sum(axis=1) if plain.lanes else np.zeros(0)
    curve = tuple((run.log_at[run.log_device == d], run.log_bytes[run.log_device == d]) for d in range(len(system))) if memory else ()
    return Timeline(run.start, run.finish, run.ready, run.makespan, run.busy, lanes, run.peak, run.peak_at, run.over_at, run.joules,
                    Transfers(run.value, run.source, run.target, run.asked, run.begun, run.arrived), run.events,
                    tuple((device.name, device.memory) for device in system.devices),
                    tuple(f"{tasks.name(int(t))} cannot run on {system.devices[where[t]].name}." for t in cannot), curve)


def bound(tasks: Tasks, place: ArrayLike, system: Machine) -> float:
    """The fluid bound, s: no schedule of these tasks at these places is shorter, whatever the order. The largest of the longest path (transfers
    without contention included), the load of each device and the load of each lane."""
    plain = arrays(tasks, system)
    return float(fluid_bound(plain, np.asarray(place, np.int16)))


def simulate_many(tasks: Tasks, places: ArrayLike, priorities: ArrayLike, system: Machine, *, strict: bool = False,
                  ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """(makespan f8[B] s, peak bytes i8[B, D], joules f8[B]) of B plans: places [B, T], priorities [B, T]. A plan that cannot finish takes inf."""
    where = np.ascontiguousarray(places, np.int16)
    return play_many(arrays(tasks, system), where, np.ascontiguousarray(np.broadcast_to(np.asarray(priorities, np.float64), where.shape)), strict)
