"""`fourfold.store.Checkpointer`: save and load the state of a training run that many processes share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fourfold.errors import FourfoldError, InputError
from fourfold.runtime.store import check, collect, commit, layout
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.encode import CHUNK, dtype_name
from fourfold.runtime.store.manifest import StepManifest
from fourfold.runtime.store.pieces import TensorPiece, Value, filled, leaves, pieces_of, split
from fourfold.runtime.store.prepare import Attempt, Written, prepare, refuse
from fourfold.runtime.store.replica import Replica
from fourfold.runtime.store.snapshot import HeldPiece, SnapshotMemory
from fourfold.runtime.store.view import StoredStep


@dataclass(frozen=True)
class SavedStep:
    """A committed save as this process saw it: bytes of its chunks, bytes of them that were new to the store, seconds that the caller waited for the
    snapshot and that the whole took, what collecting removed, and notes."""

    step: int
    bytes: int
    new: int
    blocked: float
    seconds: float
    collected: collect.Collected | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {"step": self.step, "bytes": self.bytes, "new_bytes": self.new, "blocked_s": self.blocked, "seconds": self.seconds,
                "collected": None if self.collected is None else self.collected.to_json(), "notes": list(self.notes)}


class Saving:
    """A save that goes on by itself: `result()` waits until it is committed everywhere, or raises why it is not."""

    def __init__(self, step: int, blocked: float, future: Future[SavedStep]) -> None:
        self.step, self.blocked, self._future = step, blocked, future
        self._asked = False

    def result(self, timeout: float | None = None) -> SavedStep:
        """Raises FourfoldError where the step was not committed, TimeoutError after `timeout` seconds."""
        self._asked = True
        return self._future.result(timeout)

    def done(self) -> bool:
        return self._future.done()

    def settle(self) -> None:
        """Wait for the end. Raises what nobody has heard of yet."""
        if not self._asked:
            self.result()
        else:
            self._future.exception()


class Checkpointer:
    """Checkpoints at `root`: a folder, s3://bucket/prefix (`endpoint`, `region` for servers of one's own), or memory://name.

    `rank` of `world` processes save together, each what it holds; both are torch.distributed's where that is initialised, otherwise 0 of 1.
    `generation` numbers this start of the processes: all give the same number, and no two starts give one. It is drawn where there is one process or
    torch.distributed to tell the others by. `keep`: committed steps to keep (None: all). `deadline`: seconds after which a save without all votes is
    given up. `chunk`: bytes of a chunk at most. `replica`: a peer's memory. Raises InputError for what cannot be, MissingExtra without TensorStore,
    ArtefactError for a store that a newer version wrote.
    """

    def __init__(self, root: str | Path, *, rank: int | None = None, world: int | None = None, generation: int | None = None, keep: int | None = None,
                 deadline: float = 600.0, chunk: int = CHUNK, replica: Replica | None = None, endpoint: str | None = None,
                 region: str | None = None) -> None:
        self.rank, self.world = _place(rank, world)
        if keep is not None and keep < 1:
            raise InputError(f"keep is {keep}.", "Keep at least 1 step, or None for all.")
        if not deadline > 0 or not chunk >= 1024:
            raise InputError(f"deadline is {deadline}, chunk is {chunk}.", "Give seconds above 0 and at least 1,024 bytes.")
        self.backend = Backend(root, endpoint=endpoint, region=region)
        self.keep, self.deadline, self.chunk, self.replica = keep, deadline, chunk, replica
        self._generation = generation if generation is not None or self.world == 1 or not _distributed() else _told(self.backend)
        if self.world > 1 and generation is None and not _distributed():
            raise InputError(f"{self.world} processes save together, and nothing says which start of them this is.",
                             "Give generation=: a number that all of them share and no earlier start had; or initialise torch.distributed.")
        self._arena, self._pool = SnapshotMemory(), ThreadPoolExecutor(1, "fourfold-store")
        self._base: StepManifest | None = None
        self._last: Saving | None = None
        self._tries: dict[int, int] = {}

    # ---- save

    def save(self, step: int, state: Mapping[str, object], *, wait: bool = False) -> Saving:
        """Save a state as `step`: a nested mapping of tensors, arrays, `Shard`s, DTensors, and numbers and texts. All processes call it alike.

        When this returns the state is copied and may be changed at once; hashing, writing and the commit go on in the background (`wait`: until the
        end). A save before it is waited for. Raises InputError for what cannot be saved, and what went wrong in an earlier save that nobody asked.
        """
        begin = time.perf_counter()
        saving = self.save_pieces(step, *split(state), begin=begin)
        if wait:
            saving.result()
        return saving

    def save_pieces(self, step: int, pieces: Sequence[TensorPiece], values: dict[str, Value], *, begin: float | None = None) -> Saving:
        """`save` of pieces that are named already; several may belong to one tensor. Raises as `save` does."""
        begin = time.perf_counter() if begin is None else begin
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 10**12:
            raise InputError(f"step is {step!r}.", "Give a whole number from 0 up.")
        for piece in pieces:
            dtype_name(piece.local, piece.name)
        self.wait()
        held = self._arena.copy(pieces)
        blocked = time.perf_counter() - begin
        number = self._tries[step] = self._tries.get(step, -1) + 1
        saving = Saving(step, blocked, self._pool.submit(self._written, step, number, held, values, blocked, begin))
        self._last = saving
        return saving

    def _written(self, step: int, number: int, held: Sequence[HeldPiece], values: dict[str, Value], blocked: float, begin: float) -> SavedStep:
        self.backend.prepared(make=True)                               # where this fails it fails for every process
        attempt = Attempt(step, self.generation, number, self.rank, self.world, self.deadline, self.chunk)
        try:
            if self.backend.get(layout.step_key(step)) is not None:
                raise InputError(f"{self.backend.root} has step {step} already; steps are never overwritten.", "Save under a new number.")
            written = prepare(self.backend, held, values, attempt, self._newest(), None if self.replica is None else self.replica.put)
        except FourfoldError as error:
            if self.world > 1:
                refuse(self.backend, attempt, error)
            else:
                self._cleared(attempt)
            raise
        self._base = commit.decide(self.backend, attempt) if self.rank == 0 else commit.follow(self.backend, attempt)
        return self._settled(step, written, blocked, begin)

    def _settled(self, step: int, written: Written, blocked: float, begin: float) -> SavedStep:
        notes: list[str] = []
        if self.replica is not None:
            self.replica.settle(written.objects)
            notes += [f"No replica: {self.replica.lost}."] * bool(self.replica.lost)
        seconds, gone = time.perf_counter() - begin, None
        if self.rank == 0 and self.keep is not None:
            try:
                gone = collect.collect(self.backend, self.keep)
            except FourfoldError as error:
                notes.append(f"Nothing was collected: {error.message}")
        return SavedStep(step, written.bytes, written.new, blocked, seconds, gone, tuple(notes))

    def _cleared(self, attempt: Attempt) -> None:
        try:
            self.backend.delete_under(attempt.prefix)
        except FourfoldError:
            pass                                                       # the next collection does

    def _newest(self) -> StepManifest | None:
        """The newest committed step, whose chunks are used again; read once where it is our own last."""
        known = commit.steps(self.backend)
        if self._base is None or not known or known[-1] != self._base.step:
            self._base = commit.newest(self.backend)
        return self._base

    @property
    def generation(self) -> int:
        """The number of this start of the processes, drawn at the first save of a single process."""
        if self._generation is None:
            self._generation = commit.claim(self.backend)
        return self._generation

    def wait(self) -> None:
        """Until no save is under way. Raises what went wrong in one that nobody has asked for its result."""
        last, self._last = self._last, None
        if last is not None:
            last.settle()

    # ---- load

    def steps(self) -> list[int]:
        """Committed steps, in order."""
        return commit.steps(self.backend)

    def latest(self) -> int | None:
        """The newest committed step whose manifest is whole; None where there is none."""
        self.backend.prepared(make=False)
        found = commit.newest(self.backend)
        return None if found is None else found.step

    def open(self, step: int | None = None) -> StoredStep:
        """A committed step (None: the newest) for partial and lazy reads. Raises InputError where there is none, ArtefactError for a damaged one."""
        self.backend.prepared(make=False)
        manifest = commit.newest(self.backend) if step is None else commit.manifest_of(self.backend, step)
        if manifest is None:
            raise InputError(f"{self.backend.root} holds no committed step.", "Save one first.")
        return StoredStep(self.backend, manifest, None if self.replica is None else self.replica.get)

    def load(self, state: Mapping[str, object] | None = None, *, step: int | None = None, names: Iterable[str] | None = None) -> dict[str, object]:
        """The state of a step (None: the newest). Without `state`: whole tensors and values by their dotted names (`names`: only these tensors).

        With `state`, a nested mapping as for `save`: its tensors, shards and DTensors are filled in place, whatever shards were saved, and the same
        nesting is returned with the saved plain values. Raises InputError where a tensor is missing or has another shape, ArtefactError for damage.
        """
        found = self.open(step)
        if state is None:
            return {**found.read(names), **(found.values(self.rank) if names is None else {})}
        pieces: list[TensorPiece] = []
        for name, leaf in leaves(state):
            pieces += pieces_of(name, leaf) or []
        for piece in pieces:
            if found[piece.name].shape != piece.shape:
                raise InputError(f"{piece.name} has shape {list(found[piece.name].shape)} in step {found.step}, and {list(piece.shape)} here.",
                                 "Load it into a tensor of its shape, or leave it out of the state.")
        found.fill((piece.name, piece.offset, piece.local) for piece in pieces if 0 not in tuple(piece.local.shape))
        whole = filled(state, found.values(self.rank))
        assert isinstance(whole, dict)
        return whole

    # ---- care

    def verify(self, steps: Sequence[int] | None = None) -> check.Verdict:
        """Read and compare every byte that the steps (None: all) need."""
        return check.check(self.backend, steps)

    def collect(self, keep: int | None = None, dry: bool = False) -> collect.Collected:
        """Remove steps beyond the newest `keep` (None: the Checkpointer's) and what no kept step and no save under way needs."""
        self.backend.prepared(make=False)
        return collect.collect(self.backend, self.keep if keep is None else keep, dry)

    def close(self) -> None:
        """Wait for the last save and give the memory back. Raises what went wrong in a save that nobody asked."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            self._arena.close()
            if self.replica is not None:
                self.replica.close()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
        else:
            self._pool.shutdown(wait=True)


def _distributed() -> bool:
    import torch.distributed as group

    return group.is_available() and group.is_initialized()


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    if rank is None and world is None and _distributed():
        import torch.distributed as group

        return group.get_rank(), group.get_world_size()
    rank, world = rank or 0, 1 if world is None else world
    if not 0 <= rank < world:
        raise InputError(f"rank is {rank} of a world of {world}.", "Ranks are 0 to world − 1.")
    return rank, world


def _told(backend: Backend) -> int:
    """A new generation, drawn by rank 0 and told to all, now and by the caller's thread. Raises what rank 0 met with."""
    import torch.distributed as group

    told: list[object] = [None]
    if group.get_rank() == 0:
        try:
            backend.prepared(make=True)
            told = [commit.claim(backend)]
        except FourfoldError as error:
            told = [error]
    group.broadcast_object_list(told, src=0)
    if isinstance(told[0], FourfoldError):
        raise told[0]
    return int(str(told[0]))
