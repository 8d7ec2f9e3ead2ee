"""A process's share of a save: write what the store does not hold yet, then vote. Nothing here can change what is committed."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourfold.errors import FourfoldError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.encode import CHUNK, array, chunk_shape, dtype_name, encoded
from fourfold.runtime.store.manifest import PreparedPart, StepManifest, StoredBox, StoredFile, StoredObject, StoredTensor, part_of, seal, share
from fourfold.runtime.store.pieces import Value
from fourfold.runtime.store.snapshot import HeldPiece

_BATCH = 64 << 20                                                      # bytes of chunks that are in flight at most
_POLL = 0.02


@dataclass(frozen=True)
class Attempt:
    """One try of one step: `number` counts the tries of this incarnation of the processes, which `generation` numbers."""

    step: int
    generation: int
    number: int
    rank: int
    world: int
    deadline: float = 3600.0
    chunk: int = CHUNK

    @property
    def prefix(self) -> str:
        return f"{layout.PENDING}{self.step:012d}/{self.generation:06d}.{self.number:03d}/"


@dataclass
class Written:
    """What a share of a save came to: bytes of all chunks, bytes that were new, and the chunks themselves where a replica wants them."""

    bytes: int = 0
    new: int = 0
    chunks: int = 0
    objects: dict[str, StoredObject] = field(default_factory=dict)


def prepare(backend: Backend, held: Sequence[HeldPiece], values: dict[str, Value], attempt: Attempt, base: StepManifest | None,
            mirror: Callable[[str, bytes], None] | None = None) -> Written:
    """Write the chunks and packs of `held` and this process's part, which is its vote. `base`: the newest committed step, whose chunks are used
    again; `mirror` is given every chunk. Raises FourfoldError where it cannot; the coordinator is told by `refuse`.

    The intent comes before anything is looked up and every new chunk's name before the chunk, so that a collection sees what is being used.
    """
    pack = f"{attempt.step:012d}-{attempt.generation:06d}-{attempt.rank:05d}-{secrets.token_hex(8)}"
    intent = {"base": None if base is None else base.step, "pack": pack, "started": time.time(), "deadline": attempt.deadline, **_process()}
    backend.put(f"{attempt.prefix}intent-{attempt.rank}.json", layout.canonical(intent))
    unleased(backend, attempt.deadline)
    if base is not None and backend.get(layout.step_key(base.step)) is None:
        base = None                                                    # collected before the intent was there to be seen
    writer = _Writer(backend, attempt, base, pack, mirror)
    tensors: dict[str, StoredTensor] = {}
    for one in held:
        writer.name = one.piece.name
        kind = dtype_name(one.piece.local, one.piece.name)
        entry = tensors.setdefault(one.piece.name, StoredTensor(kind, list(one.piece.shape), []))
        if one.local is not None:
            data = array(one.local)
            chunk = chunk_shape(data.shape, data.dtype.itemsize, attempt.chunk)
            names = [writer.add(found) for found in encoded(data, kind, chunk)]
            entry.boxes.append(StoredBox(list(one.piece.offset), list(data.shape), chunk, names))
    packs = writer.finish()
    part = PreparedPart(tensors, writer.done.objects, packs, rank=attempt.rank, world=attempt.world, step=attempt.step, generation=attempt.generation,
                values=values)
    vote(backend, attempt, seal(part))
    return writer.done


def vote(backend: Backend, attempt: Attempt, text: bytes) -> None:
    """Say yes. Voting the same again changes nothing. Raises InputError where this rank has voted for something else."""
    key = f"{attempt.prefix}part-{attempt.rank}.json"
    if not backend.create(key, text) and (found := backend.get(key)) not in (text, None):
        first, again = part_of(found or b"", key), part_of(text, key)
        if (first.tensors, first.values, first.world, first.rank) == (again.tensors, again.values, again.world, again.rank):
            return                                                     # the same chunks, though in another pack
        raise InputError(f"Process {attempt.rank} has voted for other values of step {attempt.step} in generation {attempt.generation}.",
                         "Give every start of the processes a generation of its own, and every process a rank of its own.")


def refuse(backend: Backend, attempt: Attempt, error: FourfoldError) -> None:
    """Say no, so that nobody waits for the deadline. Where even that cannot be written, the deadline ends the try."""
    try:
        backend.put(f"{attempt.prefix}refused-{attempt.rank}.json", layout.canonical({"message": error.message, "mend": error.mend}))
    except FourfoldError:
        pass


def unleased(backend: Backend, patience: float) -> None:
    """Wait while a garbage collection is under way: one that came before the intent ends before anything is looked up, a later one sees it."""
    import json

    end = time.time() + patience
    while (found := backend.get(layout.LEASE)) is not None:
        try:
            until = float(json.loads(found)["until"])
        except (ValueError, KeyError, TypeError):
            until = 0.0
        if time.time() > min(until, end):
            return
        time.sleep(_POLL)


class _Writer:
    """Chunks on their way into the store, in batches: hash and announce one while the last is written."""

    def __init__(self, backend: Backend, attempt: Attempt, base: StepManifest | None, pack: str,
                 mirror: Callable[[str, bytes], None] | None) -> None:
        self.backend, self.attempt, self.base, self.pack, self.mirror = backend, attempt, base, pack, mirror
        self.done = Written()
        self.name = ""
        self._batch: dict[str, bytes] = {}
        self._small: dict[str, bytes] = {}
        self._flying: list[object] = []
        self._batches = 0

    def add(self, data: bytes) -> str:
        """Take a chunk; its name."""
        name = layout.digest(data)
        if self.mirror is not None:
            self.mirror(name, data)
        self.done.chunks += 1
        self.done.bytes += len(data)
        if name in self.done.objects:
            return name
        known = self.base.objects.get(name) if self.base is not None else None
        small = len(data) < layout.SMALL
        if known is not None and known.pack is None:
            self.done.objects[name] = known
            return name
        self.done.objects[name] = StoredObject(len(data), data[-4:][::-1].hex(), self.pack if small else None)
        (self._small if small else self._batch)[name] = data
        if sum(map(len, self._batch.values())) >= _BATCH:
            self._send()
        return name

    def finish(self) -> dict[str, dict[str, StoredFile]]:
        """Write what is left; the packs that are used, with their files. Durable when this returns."""
        self._send()
        self._land()
        packs: dict[str, dict[str, StoredFile]] = {}
        if self.base is not None:                                      # a pack of which most is used still is kept, any other is written anew
            for pack in self.base.packs:
                if share(self.base, pack, self._small) >= 0.5:
                    packs[pack] = self.base.packs[pack]
            for name in [name for name in self._small if name in self.base.objects and self.base.objects[name].pack in packs]:
                self.done.objects[name] = self.base.objects[name]
                del self._small[name]
        if self._small:
            packs[self.pack] = write_pack(self.backend, self.pack, self._small)
            self.done.new += sum(file.size for file in packs[self.pack].values())
        return packs

    def _send(self) -> None:
        if not self._batch:
            return
        self.backend.put(f"{self.attempt.prefix}names-{self.attempt.rank}-{self._batches}.json", layout.canonical(sorted(self._batch)))
        self._batches += 1
        unleased(self.backend, self.attempt.deadline)
        self._land()
        self._flying = [self.backend.begin(layout.chunk_key(name), data) for name, data in self._batch.items()]
        self.done.new += sum(map(len, self._batch.values()))
        self._batch = {}

    def _land(self) -> None:
        flying, self._flying = self._flying, []
        for write in flying:
            self.backend.wait(write)


def write_pack(backend: Backend, pack: str, values: dict[str, bytes]) -> dict[str, StoredFile]:
    """An OCDBT database of `values`, made by one transaction; its files."""
    import tensorstore as ts

    try:
        store, transaction = backend.pack(pack), ts.Transaction(atomic=True)
        for name, data in values.items():
            store.with_transaction(transaction).write(name, data).result()
        transaction.commit_async().result()
    except (ValueError, OSError) as error:
        raise backend.fault(error, "written") from None
    prefix = layout.pack_prefix(pack)
    found = {key.removeprefix(prefix): backend.get(key) or b"" for key in backend.keys(prefix)}
    return {name: StoredFile(len(data), layout.digest(data)) for name, data in found.items()}


def _process() -> dict[str, object]:
    """This process, so that others of this machine can tell whether it lives."""
    return {"host": _host(), "pid": os.getpid(), "born": born(os.getpid())}


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return " ".join((socket.gethostname(), boot.read_text().strip() if boot.exists() else "", os.readlink(space) if space.exists() else ""))


def born(pid: int) -> int | None:
    """When a process of this machine was started, in its clock's ticks; None where it is not there or cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def gone(intent: dict[str, object]) -> bool:
    """Whether the process that wrote `intent` was on this machine and is not any more."""
    pid, since = intent.get("pid"), intent.get("born")
    return intent.get("host") == _host() and isinstance(pid, int) and since is not None and born(pid) != since
