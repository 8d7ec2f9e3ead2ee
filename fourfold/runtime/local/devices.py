"""Devices of a plan on this machine: whether the plan is for it, and the threads and cores that each device has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import InputError
from fourfold.host import here

if TYPE_CHECKING:
    from fourfold.plans import Plan

GPU = ("cuda", "gpu")


def local(plan: Plan) -> None:
    """Raises InputError where the plan's system is not this machine, saying which is which; or names a GPU that is not here."""
    system, machine = plan.system, here()
    if not system.fingerprint:
        raise InputError(f"The plan is for {system.name!r}, a description of no particular machine; this is {machine.name}.",
                         "Plan for this one: fourfold plan MODEL --machine here")
    if system.fingerprint != machine.fingerprint:
        raise InputError(f"The plan is for {system.name!r} (fingerprint {system.fingerprint}); "
                         f"this machine is {machine.name} ({machine.fingerprint}).",
                         "Run it there, or plan for this one: fourfold plan MODEL --machine here")
    gpus = [d for d in np.unique(plan.place).tolist() if system.devices[d].kind in GPU]
    if gpus:
        import torch

        if (there := torch.cuda.device_count()) <= max(ordinal(plan, d) for d in gpus):
            raise InputError(f"The plan uses {system.devices[gpus[-1]].name}, a GPU; torch sees {there} of them here.",
                             "Install a torch with CUDA, or plan without the GPU.")


def ordinal(plan: Plan, device: int) -> int:
    """Number of a GPU among the GPUs."""
    return sum(plan.system.devices[d].kind in GPU for d in range(device))


def shares(plan: Plan, one: bool = False) -> dict[int, int]:
    """Device → threads: CPU devices share the cores evenly; in one process it has all."""
    cores = here().cores
    if one:
        return dict.fromkeys(range(len(plan.system)), cores)
    count = sum(device.kind not in GPU for device in plan.system.devices)
    return {d: 1 if device.kind in GPU else max(1, cores // max(1, count)) for d, device in enumerate(plan.system.devices)}


def allotted(plan: Plan, used: Sequence[int], threads: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """Device → cores, where several CPU devices are in use and there are enough; else nobody is pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return {}
    cores = sorted(os.sched_getaffinity(0))
    mine = [d for d in used if plan.system.devices[d].kind not in GPU]
    if len(mine) < 2 or sum(threads[d] for d in mine) > len(cores):
        return {}
    found, at = {}, 0
    for d in mine:
        found[d] = tuple(cores[at: at + threads[d]])
        at += threads[d]
    return found
