"""Workloads made by code for the chiplet policy to learn from: blocks of the usual forms in random sizes. No graph that it is ranked on is among
them."""

from __future__ import annotations

import numpy as np

from fourfold.decisions.chiplets.instance import ChipletWorkload, Csr, Package
from fourfold.decisions.chiplets.problem import ChipletPartition, chain


class _Tape:
    """Ops as they are added: seconds, what they read, bytes that they send, bytes of their weights."""

    def __init__(self, rng: np.random.Generator, size: float) -> None:
        self.rng, self.size = rng, size
        self.seconds: list[float] = []
        self.reads: list[tuple[int, ...]] = []
        self.sends: list[float] = []
        self.weights: list[float] = []

    def op(self, *reads: int, heavy: float = 0.0, sends: float = 1.0) -> int:
        """An op; `heavy` its compute in units, 0 for one that only moves bytes."""
        moved = self.size * sends
        self.seconds.append(heavy if heavy else moved / 1e12 * float(self.rng.uniform(1, 3)) * (self.rng.random() < 0.8))
        self.reads.append(tuple(dict.fromkeys(reads)))
        self.sends.append(moved)
        self.weights.append(heavy * 1e11 if heavy else 0.0)
        return len(self.seconds) - 1

    def few(self, x: int, count: int) -> int:
        for _ in range(count):
            x = self.op(x)
        return x


def _norm(tape: _Tape, x: int, fine: bool) -> int:
    if not fine:
        return tape.op(x)
    mean = tape.op(x, sends=0.01)
    centred = tape.op(x, mean)
    variance = tape.op(tape.op(centred), sends=0.01)
    return tape.op(tape.op(centred, tape.op(variance, sends=0.01)))


def _attention(tape: _Tape, x: int, unit: float, fine: bool, pre: bool) -> int:
    y = _norm(tape, x, fine) if pre else x
    q, k, v = (tape.few(tape.op(y, heavy=unit), 1 + 2 * fine) for _ in range(3))
    scores = tape.op(tape.op(q, k, heavy=0.1 * unit), sends=0.5)
    out = tape.op(tape.few(tape.op(tape.few(scores, 3 * fine), v, heavy=0.1 * unit), 2), heavy=unit)
    joined = tape.op(x, out)
    return joined if pre else _norm(tape, joined, fine)


def _feed(tape: _Tape, x: int, unit: float, fine: bool, pre: bool) -> int:
    y = _norm(tape, x, fine) if pre else x
    up = tape.op(y, heavy=4 * unit, sends=4)
    for _ in range(1 + 4 * fine):
        up = tape.op(up, sends=4)
    joined = tape.op(x, tape.op(up, heavy=4 * unit))
    return joined if pre else _norm(tape, joined, fine)


def _bottleneck(tape: _Tape, x: int, unit: float, fine: bool) -> int:
    y = x
    for part in tape.rng.uniform(0.3, 2.0, int(tape.rng.integers(2, 4))):
        y = tape.few(tape.op(y, heavy=float(part) * unit), 1 + fine)
    return tape.op(tape.op(x if tape.rng.random() < 0.7 else tape.op(x, heavy=0.5 * unit), y))


def _branches(tape: _Tape, x: int, unit: float) -> int:
    ends = []
    for _ in range(int(tape.rng.integers(2, 5))):
        y = x
        for part in tape.rng.uniform(0.2, 1.5, int(tape.rng.integers(1, 4))):
            y = tape.op(tape.op(y, heavy=float(part) * unit))
        ends.append(y)
    return tape.op(*ends)


def _cells(tape: _Tape, x: int, unit: float) -> int:
    """Steps of a recurrent layer or two: each reads the step before it and the layer below."""
    steps, below = int(tape.rng.integers(3, 9)), []
    for _ in range(steps):
        x = tape.op(x)
        below.append(x)
    for _ in range(int(tape.rng.integers(1, 4))):
        state, row = below[0], []
        for y in below:
            state = tape.few(tape.op(state, y, heavy=unit), 2)
            row.append(state)
        below = row
    return tape.op(*below)


def invented(rng: np.random.Generator, low: int = 60, high: int = 500) -> ChipletPartition:
    """A workload of `low` to `high` ops on 4 to 36 chips."""
    tape = _Tape(rng, float(np.exp(rng.uniform(np.log(2e4), np.log(2e6)))))
    unit, fine, pre = 1e-5 * float(rng.uniform(0.3, 3)), bool(rng.random() < 0.6), bool(rng.random() < 0.5)
    form, count = int(rng.integers(6)), int(rng.integers(low, high))
    x = tape.op()
    if rng.random() < 0.5:
        x = tape.op(x, heavy=unit * float(rng.uniform(0.5, 5)))
    grow = float(rng.uniform(0.9, 1.12))
    while len(tape.seconds) < count:
        if form <= 2:
            x = _feed(tape, _attention(tape, x, unit, fine, pre), unit * float(rng.choice((1.0, 0.75, 0.5))), fine, pre)
        elif form == 3:
            x = _bottleneck(tape, x, unit, fine)
        elif form == 4:
            x = _branches(tape, x, unit)
        else:
            x = _cells(tape, x, unit)
        unit *= grow if form in (3, 4) else 1.0
    if rng.random() < 0.5:
        x = tape.op(x, heavy=unit * float(rng.uniform(0.5, 8)))
    return _made(tape, chain(int(rng.choice((4, 8, 12, 16, 24, 36, 36)))))


def _made(tape: _Tape, package: Package) -> ChipletPartition:
    count = len(tape.seconds)
    pairs = [(u, v) for v, reads in enumerate(tape.reads) for u in reads]
    source, target = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    maker, back = np.unique(source, return_inverse=True)
    heavy = np.flatnonzero(np.array(tape.weights) > 0)
    workload = ChipletWorkload("invented", np.array(tape.seconds), np.array(tape.sends), source, target, maker, np.array(tape.sends)[maker],
                               Csr.of(len(maker), back, target), Csr.of(count, heavy, np.arange(len(heavy))), np.array(tape.weights)[heavy],
                               np.arange(count))
    return ChipletPartition(workload, package)
