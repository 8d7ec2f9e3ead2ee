"""A committed step, read lazily: any box of any tensor, by TensorStore's zarr 3 driver on the chunks where they lie.

TensorStore sees each box of a tensor as a zarr array whose keys a stack maps to content-addressed chunks (`kvstack`), and a tensor as an overlay of
its boxes: what is asked for is read, in parallel, with each chunk's crc32c checked, whatever the shards were that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING

import numpy as np

from fourfold.errors import ArtefactError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.backend import Backend, Spec
from fourfold.runtime.store.encode import array, grid, metadata, zarr_key
from fourfold.runtime.store.manifest import StepManifest, StoredBox, StoredTensor
from fourfold.runtime.store.pieces import unplain

if TYPE_CHECKING:
    import tensorstore as ts
    from torch import Tensor

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]
Nearby = Callable[[str], bytes | None]                                 # a chunk by its name from memory that is near, or None


class StoredStep(Mapping[str, "LazyTensor"]):
    """One committed step: a mapping of names to tensors that are read when they are indexed. `nearby` is asked for chunks first."""

    def __init__(self, backend: Backend, manifest: StepManifest, nearby: Nearby | None = None) -> None:
        self.backend, self.manifest, self.nearby = backend, manifest, nearby
        self._packs: dict[str, ts.KvStore] = {}

    @property
    def step(self) -> int:
        return self.manifest.step

    def values(self, rank: int | None = None) -> dict[str, object]:  # type: ignore[override]
        """The plain values that process `rank` saved (None: of all, the lowest rank's where several saved one). Of another world size there may be
        none of this rank: then the lowest's."""
        known = {int(key): {name: unplain(value) for name, value in values.items()} for key, values in self.manifest.values.items()}
        if rank is not None and rank in known:
            return known[rank]
        return {name: value for key in sorted(known, reverse=True) for name, value in known[key].items()}

    def __getitem__(self, name: str) -> LazyTensor:
        found = self.manifest.tensors.get(name)
        if found is None:
            import difflib

            near = difflib.get_close_matches(name, list(self.manifest.tensors), 3) or list(self.manifest.tensors)[:3]
            raise InputError(f"Step {self.step} of {self.backend.root} has no tensor {name!r}.", f"It has: {', '.join(near)} …")
        return LazyTensor(self, name, found)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.tensors)

    def __len__(self) -> int:
        return len(self.manifest.tensors)

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Whole tensors by name (None: all). Raises InputError for a name that is not there, ArtefactError for a damaged chunk."""
        import torch

        wanted = list(self.manifest.tensors) if names is None else list(names)
        found = {name: torch.empty(self[name].shape, dtype=getattr(torch, self[name].dtype)) for name in wanted}
        self.fill((name, (0,) * one.ndim, one) for name, one in found.items())
        return found

    def fill(self, targets: Iterable[tuple[str, Sequence[int], Tensor]]) -> None:
        """Read into tensors: (name, where the target's first element stands in the named tensor, target). Reads of all go on together.

        Raises InputError where a target does not lie in its tensor, ArtefactError for a chunk that is missing or damaged.
        """
        import torch

        flying: list[tuple[object, Callable[[], None] | None]] = []
        for name, offset, target in targets:
            stored = self[name]
            box = [(int(start), int(start) + size) for start, size in zip(offset, target.shape, strict=True)]
            if len(box) != len(stored.shape) or any(low < 0 or high > size for (low, high), size in zip(box, stored.shape, strict=True)):
                raise InputError(f"{name} has shape {list(stored.shape)}; {list(target.shape)} at {list(offset)} does not lie in it.",
                                 "Give a tensor of its shape, or shards of it.")
            if not target.numel():
                continue
            kind = getattr(torch, stored.dtype)
            direct = target.dtype == kind and target.is_contiguous() and target.device.type == "cpu"
            into = target.detach() if direct else torch.empty(target.shape, dtype=kind)
            values = array(into)
            for begun in stored.begin(box, values):
                flying.append((begun, None))
            if not direct:
                flying.append((None, lambda target=target, into=into: _copied(target, into)))
            if len(flying) > 64:
                flying = self._landed(flying, 32)
        self._landed(flying, 0)

    def packed(self, pack: str, name: str) -> bytes:
        """A chunk of a pack. Raises ArtefactError where it is missing or damaged."""
        try:
            if pack not in self._packs:
                self._packs[pack] = self.backend.pack(pack)
            data = bytes(self._packs[pack][name])
        except KeyError:
            data = b""
        except (ValueError, OSError) as error:
            raise self.backend.fault(error, "read") from None
        if layout.digest(data) != name:
            raise ArtefactError(f"{self.backend.root}: chunk {name} in pack {pack} is missing or damaged.",
                                "`fourfold store verify` tells which steps are whole; load another.")
        return data

    def _landed(self, flying: list[tuple[object, Callable[[], None] | None]], keep: int) -> list[tuple[object, Callable[[], None] | None]]:
        ended, rest = flying[: len(flying) - keep], flying[len(flying) - keep :]
        for begun, after in ended:
            if begun is not None:
                try:
                    begun.result()  # type: ignore[attr-defined]
                except (ValueError, OSError) as error:
                    raise self.backend.fault(error, "read") from None
            if after is not None:
                after()
        return rest


def _copied(target: Tensor, values: Tensor) -> None:
    import torch

    with torch.no_grad():
        target.copy_(values)


class LazyTensor:
    """A tensor of a committed step; `tensor[2:4, :8]` reads these elements and no more chunks than hold them."""

    def __init__(self, owner: StoredStep, name: str, stored: StoredTensor) -> None:
        self._owner, self.name, self._stored = owner, name, stored

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._stored.shape)

    @property
    def dtype(self) -> str:
        """torch's name of the elements' type, such as bfloat16."""
        return self._stored.dtype

    def __getitem__(self, index: Index) -> Tensor:
        """The elements of a basic index: whole numbers and slices of step 1. Raises InputError for any other."""
        given: tuple[object, ...] = index if isinstance(index, tuple) else (index,)
        if any(one is Ellipsis for one in given):
            at = next(place for place, one in enumerate(given) if one is Ellipsis)
            given = (*given[:at], *(slice(None),) * (len(self.shape) - len(given) + 1), *given[at + 1 :])
        given = (*given, *(slice(None),) * (len(self.shape) - len(given)))
        bad = [one for one in given if not isinstance(one, int | slice) or isinstance(one, slice) and one.step not in (None, 1)]
        if len(given) != len(self.shape) or bad:
            raise InputError(f"{self.name}[{index}] cannot be read from a store.", "Index by whole numbers and slices of step 1.")
        box, drop = [], []
        for axis, (one, size) in enumerate(zip(given, self.shape, strict=True)):
            if isinstance(one, int):
                if not -size <= one < size:
                    raise InputError(f"{self.name} has {size} elements along axis {axis}; {one} is not one of them.", "Give a smaller index.")
                box.append((one % size, one % size + 1))
                drop.append(axis)
            elif isinstance(one, slice):
                low, high, _ = one.indices(size)
                box.append((low, max(low, high)))
        import torch

        made = torch.empty([high - low for low, high in box], dtype=getattr(torch, self.dtype))
        self._owner.fill([(self.name, [low for low, _ in box], made)])
        return made[tuple(0 if axis in drop else slice(None) for axis in range(len(box)))]

    def tensorstore(self) -> ts.TensorStore:
        """The tensor as TensorStore sees it: a virtual array of the global shape. Raises InputError for one without elements or axes."""
        import tensorstore as ts

        boxes = [box for box in self._stored.boxes if 0 not in box.shape]
        if not boxes or not self.shape:
            raise InputError(f"{self.name} has shape {list(self.shape)}: there is no view of it.", "Read it: step[name][...].")
        placed = [self._view(box)[ts.d[:].translate_to[tuple(box.offset)]] for box in boxes]
        return placed[0] if len(placed) == 1 else ts.overlay(placed)

    def begin(self, wanted: Sequence[tuple[int, int]], out: np.ndarray) -> Iterator[object]:
        """Begin to read the box `wanted` ((low, high) an axis) into `out`; what has to be waited for."""
        import tensorstore as ts

        for box in self._stored.boxes:
            low = [max(start, at) for (start, _), at in zip(wanted, box.offset, strict=True)]
            high = [min(end, at + size) for (_, end), at, size in zip(wanted, box.offset, box.shape, strict=True)]
            if any(start >= end for start, end in zip(low, high, strict=True)):
                continue
            here = tuple(slice(start - at, end - at) for start, end, at in zip(low, high, box.offset, strict=True))
            there = tuple(slice(start - at, end - at) for start, end, (at, _) in zip(low, high, wanted, strict=True))
            view = out[there] if there else out
            if self._near(box, here, view):
                continue
            source = self._view(box)
            yield ts.array(view).write(source[here] if here else source)

    def _near(self, box: StoredBox, here: tuple[slice, ...], out: np.ndarray) -> bool:
        """Whether all of a box's chunks that are needed were near (or in one pack), and read."""
        if self._owner.nearby is None and not (len(box.objects) == 1 and self._owner.manifest.objects[box.objects[0]].pack):
            return False
        found: list[tuple[tuple[int, ...], bytes]] = []
        for index, name in zip(grid(box.shape, box.chunk), box.objects, strict=True):
            if all(at * side < one.stop and (at + 1) * side > one.start for at, side, one in zip(index, box.chunk, here, strict=True)):
                data = self._chunk(name)
                if data is None:
                    return False
                found.append((index, data))
        for index, data in found:
            values = np.frombuffer(data, dtype=out.dtype, count=(len(data) - 4) // out.dtype.itemsize).reshape(box.chunk)
            low = [max(at * side, one.start) for at, side, one in zip(index, box.chunk, here, strict=True)]
            high = [min((at + 1) * side, one.stop) for at, side, one in zip(index, box.chunk, here, strict=True)]
            own = tuple(slice(start - at * side, end - at * side) for start, end, at, side in zip(low, high, index, box.chunk, strict=True))
            target = tuple(slice(start - one.start, end - one.start) for start, end, one in zip(low, high, here, strict=True))
            out[target] = values[own]
        return True

    def _chunk(self, name: str) -> bytes | None:
        """A chunk from memory that is near or from its pack, with its sha256 checked; None where it has to be read from the store."""
        nearby = self._owner.nearby
        if nearby is not None and (data := nearby(name)) is not None and layout.digest(data) == name:
            return data
        pack = self._owner.manifest.objects[name].pack
        if pack is None:
            return None
        return self._owner.packed(pack, name)

    def _view(self, box: StoredBox) -> ts.TensorStore:
        """The box as a zarr array on its chunks."""
        import tensorstore as ts

        backend, objects = self._owner.backend, self._owner.manifest.objects
        layers: list[Spec] = []
        for index, name in zip(grid(box.shape, box.chunk), box.objects, strict=True):
            pack = objects[name].pack
            base: Spec = backend.under(layout.chunk_key(name)) if pack is None else {**backend.pack_spec(pack), "path": name}
            layers.append({"base": base, "exact": zarr_key(index)})
        spec = {"driver": "zarr3", "kvstore": {"driver": "kvstack", "layers": layers}, "metadata": metadata(self.dtype, box.shape, box.chunk),
                "fill_missing_data_reads": False, "recheck_cached_data": False}
        return ts.open(spec, open=True, assume_metadata=True, context=backend.context).result()
