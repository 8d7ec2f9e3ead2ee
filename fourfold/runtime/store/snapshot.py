"""The part of a save that the caller waits for: its tensors copied into memory of the store's own, so that training may go on and change them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourfold.runtime.store.pieces import TensorPiece

if TYPE_CHECKING:
    from torch import Tensor

_ALIGN = 64


@dataclass(frozen=True, eq=False)
class HeldPiece:
    """A piece whose `local` is a copy in the arena (None: another process writes it)."""

    piece: TensorPiece
    local: Tensor | None


class SnapshotMemory:
    """One anonymous mapping that is kept between saves: its pages are touched for the first time once, and it is never larger than the largest
    save of this process (the memory overhead of saving: one shard)."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._size = 0

    @property
    def bytes(self) -> int:
        return self._size

    def copy(self, pieces: Sequence[TensorPiece]) -> list[HeldPiece]:
        """Copies of all pieces that this process writes; earlier copies of this arena are overwritten."""
        import torch

        places, at = [], 0
        for piece in pieces:
            places.append(at)
            at += -(-piece.local.nbytes // _ALIGN) * _ALIGN if piece.owned else 0
        memory = self._room(at)
        held, devices = [], set()
        for piece, place in zip(pieces, places, strict=True):
            if not piece.owned:
                held.append(HeldPiece(piece, None))
                continue
            count = piece.local.numel()
            if count:
                flat = torch.frombuffer(memory, dtype=torch.uint8, count=piece.local.nbytes, offset=place)
                copy = flat.view(piece.local.dtype).view(piece.local.shape)
                copy.copy_(piece.local, non_blocking=True)
            else:
                copy = torch.empty(piece.local.shape, dtype=piece.local.dtype)
            if piece.local.is_cuda:
                devices.add(piece.local.device)
            held.append(HeldPiece(piece, copy))
        for device in devices:
            torch.cuda.synchronize(device)
        return held

    def _room(self, size: int) -> mmap.mmap:
        if self._memory is None or size > self._size:
            self._memory = None                                        # the old one goes when no tensor looks at it any more
            self._size = max(size, mmap.PAGESIZE)
            self._memory = mmap.mmap(-1, self._size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                try:
                    self._memory.madvise(mmap.MADV_HUGEPAGE)           # 512 times fewer page faults at the first touch
                except OSError:
                    pass                                               # a kernel without them
        return self._memory

    def close(self) -> None:
        self._memory, self._size = None, 0
