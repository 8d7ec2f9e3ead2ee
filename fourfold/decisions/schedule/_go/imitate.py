"""Learning from plans that annealing found (behaviour cloning), before PPO: which device, and which nodes were fused.

A plan says nothing about which of several like devices is which, so its devices are renumbered first: in the first round by where in the graph
their work lies, later so that they agree most with the plan that is to be refined.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fourfold.decisions.schedule._go.features import GraphFeatures
from fourfold.decisions.schedule._go.network import Action, Batch, PolicyNetwork
from fourfold.decisions.schedule._go.policy import taken
from fourfold.decisions.schedule.problem import Answer

_PLACES = (5, 8, 9)                                                   # columns of `GraphFeatures.node`: along the longest path, depth first, by layer


def renumbered(reading: GraphFeatures, place: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """`place` i8[N] (in the reading's order) with like devices renumbered: by slot as their work comes, or to agree with `last` i8[N]."""
    from scipy.optimize import linear_sum_assignment

    devices, to = reading.devices, np.arange(reading.devices)
    where = reading.node[:, _PLACES].sum(1) * reading.mean
    work = np.bincount(place, reading.mean, devices)
    centre = np.where(work > 0, np.bincount(place, where, devices) / np.maximum(work, 1e-30), np.inf)
    agree = np.zeros((devices, devices))
    if last is not None:
        np.add.at(agree, (place, last), reading.mean + 1e-3 * reading.mean.mean())
    for kind in np.unique(reading.alike):
        same = np.flatnonzero(reading.alike == kind)
        same = same[np.argsort(reading.slot[same])]
        if last is None:
            to[same[np.argsort(centre[same], kind="stable")]] = same
        else:
            rows, columns = linear_sum_assignment(-agree[np.ix_(same, same)])
            to[same[rows]] = same[columns]
    return to[place]


def labels(reading: GraphFeatures, answer: Answer, last: np.ndarray | None = None) -> Action:
    """The action that would make (nearly) this answer, its devices renumbered."""
    action = taken(reading, answer)
    unit = np.zeros(len(reading.mask), np.int64)
    unit[reading.unit] = renumbered(reading, answer.place.astype(np.int64)[reading.order], last)
    return action._replace(place=torch.from_numpy(unit)[None])


def loss(network: PolicyNetwork, batch: Batch, reading: GraphFeatures, answer: Answer, last: np.ndarray | None) -> Tensor:
    """Cross entropy of the answer's places (half by unit, half by work) and fusions. `batch` holds the plan to be refined, `last` i8[N] its
    places.
    """
    action = labels(reading, answer, last)
    units, nodes = len(reading.mask), len(reading)
    log = network(batch, action)[1].log
    work = torch.from_numpy(np.bincount(reading.unit, reading.mean, units) / reading.mean.sum()).float()
    place = log[:, :units].clamp(min=-20.0)
    free = (reading.candidate >= 0).sum()
    fused = log[:, units + nodes:].sum() / max(1, int(free))
    return -(0.5 * place.mean() + 0.5 * (place * work).sum() + 0.5 * fused)
