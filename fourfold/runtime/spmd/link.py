"""What a message costs between the ranks of this run: every collective timed at a few sizes, then α (s) and β (s a byte) fitted by its formula.

The fit minimises relative errors over (α, β ≥ 0), twice: once for the seconds on the wall, once for the processor's, which the neighbours of a busy
host do not stretch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fourfold.sharding.collectives import ALL_GATHER, ALL_REDUCE, ALL_TO_ALL, KEEP, PERMUTE, REDUCE_SCATTER, SLICE, Transfer
from fourfold.sharding.mesh import Mesh

_CACHE = 16 << 20                                                       # bytes that are touched between two calls
SIZES = (256, 16 << 10, 256 << 10, 2 << 20)                             # bytes as the group sees the tensor
Row = tuple[str, int, int, float, float]                                # collective, ranks, bytes, wall s, CPU s


def share(collective: str, n: int) -> float:
    """Bytes on the way per byte of the tensor that the group sees, by the formulas of `sharding.collectives`."""
    return {ALL_GATHER: (n - 1) / n, REDUCE_SCATTER: (n - 1) / n, ALL_REDUCE: 2 * (n - 1) / n, ALL_TO_ALL: (n - 1) / n**2 * max(1.0, n / 2),
            PERMUTE: 1 / n}[collective] if n > 1 else 0.0


def timed(world: int, rank: int, sizes: Sequence[int], repeat: int, tick: Callable[[bool], None]) -> tuple[Row, ...]:
    """In a rank: medians over `repeat` calls of each collective of all ranks at each of `sizes`."""
    import torch
    import torch.distributed as dist

    rows, scratch = list[Row](), torch.zeros(_CACHE // 4)
    for size in sizes:
        count = max(size // 4 // world, 1) * world
        part = max(count // world // world, 1) * world                  # an all-to-all's piece, in equal shares

        def permuted(piece: torch.Tensor) -> None:
            received = torch.empty_like(piece)
            works = dist.batch_isend_irecv([dist.P2POp(dist.isend, piece, (rank + 1) % world), dist.P2POp(dist.irecv, received, (rank - 1) % world)])
            for work in works:
                work.wait()

        calls: dict[str, tuple[int, Callable[[torch.Tensor], object]]] = {
            ALL_GATHER: (count // world, lambda x: dist.all_gather_single(x.new_empty(x.numel() * world), x)),
            REDUCE_SCATTER: (count, lambda x: dist.reduce_scatter_single(x.new_empty(x.numel() // world), x)),
            ALL_REDUCE: (count, lambda x: dist.all_reduce(x.clone())),
            ALL_TO_ALL: (part, lambda x: dist.all_to_all_single(torch.empty_like(x), x)),
            PERMUTE: (count // world, permuted)}
        for name, (length, call) in calls.items():
            walls, cpus = list[float](), list[float]()
            for _ in range(repeat + 1):
                sent = torch.ones(length)
                scratch.add_(1.0)                                       # a program's tensors are not in the cache when their turn comes
                tick(True)
                dist.barrier()
                wall, cpu = time.perf_counter(), time.process_time()
                call(sent)
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
                tick(False)
            rows.append((name, world, count * 4, statistics.median(walls[1:]), statistics.median(cpus[1:])))
    return tuple(rows)


@dataclass(frozen=True)
class LinkPrice:
    """(α s, β s a byte) of each collective among `world` ranks: `wall` by the wall clock, `cpu` of a rank's processor time.
    `handing`: s that the interpreter of pieces adds to an operator; `following`: s that autograd takes to go back over one, its kernels apart.
    `pace`: processor seconds of kernels now, all ranks at work, to those of the machine's calibration.
    """

    world: int
    wall: dict[str, tuple[float, float]]
    cpu: dict[str, tuple[float, float]]
    rows: tuple[Row, ...] = field(default=(), repr=False)
    handing: float = 0.0
    following: float = 0.0
    pace: float = 1.0

    @classmethod
    def fit(cls, rows: Iterable[Row]) -> LinkPrice:
        """Of the rows of all ranks: the median of ranks at each size, then α and β."""
        kept = tuple(rows)
        world = kept[0][1]
        found: list[dict[str, tuple[float, float]]] = []
        for column in (3, 4):
            prices = dict[str, tuple[float, float]]()
            for name in dict.fromkeys(row[0] for row in kept):
                sizes = sorted({row[2] for row in kept if row[0] == name})
                seconds = [statistics.median(float(row[column]) for row in kept if row[0] == name and row[2] == size) for size in sizes]
                prices[name] = _fitted([share(name, world) * size for size in sizes], seconds)
            found.append(prices)
        return cls(world, found[0], found[1], kept)

    def mesh(self, text: str, names: Sequence[str] = ()) -> Mesh:
        """A mesh of these ranks whose α and β are those of an all-reduce, by the wall clock."""
        a, b = self.wall[ALL_REDUCE]
        plain = Mesh.parse(text, names)
        return Mesh(plain.names, plain.shape, (a,) * len(plain.shape), (b,) * len(plain.shape))

    def seconds(self, step: Transfer, mesh: Mesh, clock: str = "wall") -> float:
        """Of one step of a chain; what a rank does alone is part of its own work."""
        if step.collective in (SLICE, KEEP):
            return 0.0
        a, b = (self.wall if clock == "wall" else self.cpu)[step.collective]
        return a + b * share(step.collective, mesh.length(step.axis)) * step.size

    def to_json(self) -> dict[str, object]:
        return {"world": self.world, "wall": {k: list(v) for k, v in self.wall.items()}, "cpu": {k: list(v) for k, v in self.cpu.items()},
                "handing": self.handing, "following": self.following, "pace": self.pace}


def _fitted(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(α, β) of least relative squared error, neither negative."""
    import numpy as np
    from scipy.optimize import nnls

    times = np.maximum(np.array(seconds), 1e-9)
    matrix = np.stack([np.ones(len(times)), np.array(sizes) * 1e-6], 1) / times[:, None]
    (a, b), _ = nnls(matrix, np.ones(len(times)))
    return float(a), float(b) * 1e-6


__all__ = ["SIZES", "LinkPrice", "share", "timed"]
