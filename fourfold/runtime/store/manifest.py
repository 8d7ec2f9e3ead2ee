"""What was committed: every tensor's boxes and chunks, every chunk's size, crc32c and place, the plain values, sealed by a sha256 of it all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fourfold.documents import StrictDocument, decode
from fourfold.errors import ArtefactError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.encode import grid
from fourfold.runtime.store.pieces import Value

_MEND = "`fourfold store verify` tells which steps are whole; load another."


class StoredBox(StrictDocument):
    """A part of a tensor, an array of its own: `objects` are the sha256 of its chunks of shape `chunk`, row by row."""

    offset: list[int]
    shape: list[int]
    chunk: list[int]
    objects: list[str]


class StoredTensor(StrictDocument):
    """A tensor: type of its elements, shape, and the boxes that cover it, each element once."""

    dtype: str
    shape: list[int]
    boxes: list[StoredBox]


class StoredObject(StrictDocument):
    """A chunk: bytes, the crc32c that ends them (8 hexadecimal digits), and the pack it is in (None: it is a value of its own)."""

    size: int
    crc32c: str
    pack: str | None = None


class StoredFile(StrictDocument):
    """A file of a pack."""

    size: int
    sha256: str


class Contents(StrictDocument):
    """Tensors, chunks and packs; what parts of processes and the whole manifest have in common."""

    tensors: dict[str, StoredTensor]
    objects: dict[str, StoredObject]
    packs: dict[str, dict[str, StoredFile]]


class PreparedPart(Contents, kw_only=True):
    """What one process wrote, and its vote: `rank` of `world` says yes to `step` in `generation`."""

    rank: int
    world: int
    step: int
    generation: int
    values: dict[str, Value]
    sha256: str = ""


class StepManifest(Contents, kw_only=True):
    """A committed step. `values`: the plain values of each process, by its rank. `written`: bytes that were new to the store."""

    format: int
    step: int
    generation: int
    world: int
    values: dict[str, dict[str, Value]]
    sha256: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of all its chunks, each counted once."""
        return sum(one.size for one in self.objects.values())


def seal(document: PreparedPart | StepManifest) -> bytes:
    """Its text, with its own sha256 in it, which is set on the document too."""
    content = document.to_json()
    del content["sha256"]
    document.sha256 = layout.digest(layout.canonical(content))
    return layout.sealed(content)


def opened(data: bytes, kind: type[StepManifest], key: str) -> StepManifest:
    """The manifest in `data`. Raises ArtefactError for a damaged one and for one that a newer version wrote."""
    whole = checked(data, key)
    number = whole.get("format")
    if isinstance(number, int) and number > layout.FORMAT:
        raise ArtefactError(f"{key} is of format {number}, written by a newer version; this one knows up to {layout.FORMAT}.", "Update fourfold.")
    return decode(data, kind, key, _MEND)


def part_of(data: bytes, key: str) -> PreparedPart:
    """The part in `data`. Raises ArtefactError for a damaged one."""
    checked(data, key)
    return decode(data, PreparedPart, key, "Save again.")


def checked(data: bytes, key: str) -> dict[str, object]:
    """The sealed document in `data`. Raises ArtefactError where a byte of it is not as it was sealed."""
    try:
        whole = json.loads(data)
        seal = whole.pop("sha256")
        good = isinstance(seal, str) and layout.digest(layout.canonical(whole)) == seal and layout.sealed(whole) == data
    except (ValueError, KeyError, TypeError, AttributeError):
        good, whole = False, {}
    if not good:
        raise ArtefactError(f"{key} is damaged: its text is not the one that its sha256 was taken of.", _MEND)
    return whole


def merged(parts: Sequence[PreparedPart]) -> StepManifest:
    """All parts of a step as its manifest. Raises InputError where they do not make whole tensors: see `violations`."""
    first = parts[0]
    tensors: dict[str, StoredTensor] = {}
    objects: dict[str, StoredObject] = {}
    packs: dict[str, dict[str, StoredFile]] = {}
    for part in sorted(parts, key=lambda one: one.rank):
        for name, given in part.tensors.items():
            known = tensors.setdefault(name, StoredTensor(given.dtype, given.shape, []))
            if (known.dtype, known.shape) != (given.dtype, given.shape):
                raise InputError(f"{name} is {known.dtype}{known.shape} in one process and {given.dtype}{given.shape} in process {part.rank}.",
                                 "Give one tensor one shape and type in all processes, or another name.")
            for box in given.boxes:
                same = next((one for one in known.boxes if (one.offset, one.shape) == (box.offset, box.shape)), None)
                if same is None:
                    known.boxes.append(box)
                elif same.objects != box.objects or same.chunk != box.chunk:
                    raise InputError(f"{name} at {box.offset} has other values in process {part.rank} than in an earlier one.",
                                     "Save it in one process only, give each a name of its own, or declare shards.")
        for key, value in part.objects.items():
            objects.setdefault(key, value)                             # two processes may have written one content: either serves
    used = {key for one in tensors.values() for box in one.boxes for key in box.objects}
    objects = {key: value for key, value in objects.items() if key in used}
    needed = {one.pack for one in objects.values() if one.pack is not None}
    for part in parts:
        packs |= {name: files for name, files in part.packs.items() if name in needed}
    made = StepManifest(tensors, objects, packs, format=layout.FORMAT, step=first.step, generation=first.generation, world=first.world,
                        values={str(part.rank): part.values for part in parts if part.values})
    if wrong := violations(made):
        raise InputError(f"Step {first.step} is not whole: {wrong[0]}.", "Every element of every tensor is saved by one process; look at its shards.")
    return made


def violations(manifest: Contents) -> list[str]:
    """What is wrong with it, in words: boxes that overlap, leave gaps or stick out, chunks that are missing from the list or too many."""
    wrong = []
    for name, one in manifest.tensors.items():
        boxes = np.array([[box.offset, box.shape] for box in one.boxes], dtype=np.int64).reshape(len(one.boxes), 2, len(one.shape))
        low, high = boxes[:, 0], boxes[:, 0] + boxes[:, 1]
        if (low < 0).any() or (high > np.array(one.shape, dtype=np.int64)).any() or (boxes[:, 1] < 0).any():
            wrong.append(f"a part of {name} sticks out of its shape {one.shape}")
            continue
        full = [index for index in range(len(boxes)) if (boxes[index, 1] > 0).all()]
        if sum(int(np.prod(boxes[index, 1])) for index in full) != int(np.prod(one.shape, dtype=np.int64)):
            wrong.append(f"the parts of {name} do not come to its shape {one.shape}")
        if any((np.maximum(low[index], low[rest]) < np.minimum(high[index], high[rest])).all(axis=1).any()
               for place, index in enumerate(full) if (rest := full[place + 1 :])):
            wrong.append(f"parts of {name} overlap")
        for box in one.boxes:
            if len(box.chunk) != len(box.shape) or min(box.chunk, default=1) < 1 or len(list(grid(box.shape, box.chunk))) != len(box.objects):
                wrong.append(f"{name} at {box.offset} has {len(box.objects)} chunks of {box.chunk} for a shape of {box.shape}")
            wrong += [f"{name} names a chunk that is not listed: {key}" for key in box.objects if key not in manifest.objects][:1]
    return wrong + [f"chunk {key} is in a pack that is not listed" for key, one in manifest.objects.items()
                    if one.pack is not None and one.pack not in manifest.packs]


def live(manifests: Iterable[Contents]) -> tuple[set[str], set[str]]:
    """(chunks of their own, packs) that any of the manifests needs."""
    objects: set[str] = set()
    packs: set[str] = set()
    for one in manifests:
        objects |= {key for key, value in one.objects.items() if value.pack is None}
        packs |= {value.pack for value in one.objects.values() if value.pack is not None}
    return objects, packs


def share(manifest: Contents, pack: str, keys: Mapping[str, object]) -> float:
    """The share of a pack's bytes that the chunks `keys` are."""
    whole = sum(file.size for file in manifest.packs[pack].values())
    return sum(one.size for key, one in manifest.objects.items() if one.pack == pack and key in keys) / max(1, whole)
