"""Annealing over partitions that are repaired by FIX: the moves shift a boundary or one op, the repair makes them valid."""

from __future__ import annotations

import math

import numpy as np

from fourfold.decisions.chiplets._evaluate import PartitionEvaluator
from fourfold.decisions.chiplets._sampler import Sampler


def anneal(found: PartitionEvaluator, sampler: Sampler, chip: np.ndarray, cost: float, rng: np.random.Generator, hot: float = 0.1,
           cold: float = 0.002, evaluations: int | None = None) -> None:
    """Improve `chip`, which costs `cost`, until the budget (or its share of `evaluations`) is spent; the temperature falls from `hot` to `cold`, as
    shares of the cost. What is best is the evaluator's."""
    budget, began = found.budget, found.budget.spent
    total = min(budget.evaluations - began, evaluations or budget.evaluations)
    seconds = max(budget.left, 1e-9)
    while not found.over and budget.spent - began < total:
        share = min(1.0, max((budget.spent - began) / max(1, total), 1.0 - budget.left / seconds))
        temperature = hot * (cold / hot) ** share
        new = sampler.fix(moved(found, chip, rng))
        if new is not None and np.array_equal(new, chip):               # the repair took the move back: nothing to price
            budget.spend(1)
            continue
        price = found.price(new)
        if new is not None and math.log(price / cost) < -temperature * math.log(max(rng.random(), 1e-300)):
            chip, cost = new, price


def moved(found: PartitionEvaluator, chip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A partition that breaks rules perhaps: an op with what comes after it on its chip goes to the next one, an op with what comes before it to the
    one before, or an op alone to a chip beside. Every other time the op is one of the fullest chip."""
    w, chips = found.problem.workload, found.problem.package.chips
    if rng.random() < 0.5:
        compute, sending, _ = found.problem.stages(chip)
        mine = np.flatnonzero(chip == int(np.argmax(compute + sending)))
        op = int(mine[rng.integers(len(mine))])
    else:
        op = int(rng.integers(len(w)))
    c, way = int(chip[op]), rng.integers(3)
    new = chip.astype(np.int64)
    if way == 2:
        new[op] = np.clip(c + rng.choice((-1, 1)), 0, chips - 1)
        return new
    bits = w.descendants[op] if way == 0 else w.ancestors[op]
    there = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")[: len(w)])
    group = np.append(there[chip[there] == c], op)
    new[group] = min(c + 1, chips - 1) if way == 0 else max(c - 1, 0)
    return new
