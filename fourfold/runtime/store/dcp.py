"""torch.distributed.checkpoint on a store: give `StoreWriter` and `StoreReader` to `dcp.save`, `dcp.async_save` and `dcp.load`; nothing else changes.

    dcp.save(state, storage_writer=StoreWriter("checkpoints", step=7))
    dcp.load(state, storage_reader=StoreReader("checkpoints"))        # the newest step

Tensors become tensors of the step, which `Checkpointer.load` reads as well. Objects that DCP pickles are kept as the bytes that it made; reading them
back is DCP's, with pickle's risks, and only for stores that you trust.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from fourfold.errors import FourfoldError, InputError
from fourfold.runtime.store import commit
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.encode import CHUNK
from fourfold.runtime.store.manifest import StepManifest
from fourfold.runtime.store.pieces import TensorPiece, Value, tensor
from fourfold.runtime.store.prepare import Attempt, prepare, refuse
from fourfold.runtime.store.snapshot import HeldPiece
from fourfold.runtime.store.view import StoredStep

if TYPE_CHECKING:
    from torch import Tensor

_BYTES, _PLAN = "dcp.bytes", "dcp.planner_data"                        # plain values: names that hold pickled bytes; DCP's own paths of names
Id = str | os.PathLike[str] | None


class StoreWriter(StorageWriter):
    """Writes one step of the store at `root`. A `checkpoint_id` such as "checkpoints/step-7" names both, where they are left out."""

    def __init__(self, root: str | Path | None = None, step: int | None = None, *, deadline: float = 600.0, chunk: int = CHUNK,
                 endpoint: str | None = None, region: str | None = None) -> None:
        super().__init__()
        self.root, self.step, self.deadline, self.chunk = root, step, deadline, chunk
        self._server = {"endpoint": endpoint, "region": region}
        self._backend: Backend | None = None
        self._ticket: Attempt | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(re.search(r"\d+$", os.fspath(checkpoint_id)))

    def reset(self, checkpoint_id: Id = None) -> None:
        self.root, self.step = _named(checkpoint_id, self.root, self.step)
        self._backend = self._ticket = None

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        self._opened()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: draw a generation, and give every process its ticket with its plan."""
        backend, step = self._opened()
        backend.prepared(make=True)
        if step in commit.steps(backend):
            raise InputError(f"{self.root} has step {step} already; steps are never overwritten.", "Save under a new number.")
        generation = commit.claim(backend)
        return [dataclasses.replace(plan, storage_data=Attempt(step, generation, 0, rank, len(plans), self.deadline, self.chunk))
                for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        backend, _ = self._opened()
        ticket = plan.storage_data
        assert isinstance(ticket, Attempt)
        self._ticket = ticket
        held, results = [], []
        names: list[object] = []
        for item in plan.items:
            data = planner.resolve_data(item)
            name = item.index.fqn
            if item.type == WriteItemType.BYTE_IO:
                assert isinstance(data, io.BytesIO)
                local = torch.frombuffer(bytearray(data.getvalue() or b"\0"), dtype=torch.uint8)
                held.append(HeldPiece(TensorPiece(name, local, tuple(local.shape), (0,)), local))
                names.append(name)
            else:
                assert isinstance(data, torch.Tensor) and item.tensor_data is not None
                local = tensor(data, name).contiguous().cpu()
                offset = tuple(int(at) for at in item.tensor_data.chunk.offsets)
                held.append(HeldPiece(TensorPiece(name, local, tuple(item.tensor_data.size), offset), local))
            results.append(WriteResult(index=item.index, size_in_bytes=local.nbytes, storage_data=ticket.step))
        values: dict[str, Value] = {_BYTES: names} if names else {}
        try:
            prepare(backend, held, values, ticket, commit.newest(backend))
        except FourfoldError as error:
            refuse(backend, ticket, error)
            raise
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: the commit. The votes are there, since DCP has gathered the results."""
        backend, _ = self._opened()
        assert self._ticket is not None
        paths = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
        plain: list[object] = [[name, list(path)] for name, path in paths.items()]
        commit.decide(backend, self._ticket, {_PLAN: plain})

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=f"{self.root}/step-{self.step}")

    def _opened(self) -> tuple[Backend, int]:
        if self.root is None or self.step is None:
            raise InputError("Nothing says where DCP saves, and as which step.",
                             'Give StoreWriter(root, step), or checkpoint_id="checkpoints/step-7".')
        if self._backend is None:
            self._backend = Backend(self.root, endpoint=self._server["endpoint"], region=self._server["region"])
        return self._backend, self.step


class StoreReader(StorageReader):
    """Reads a step (None: the newest) of the store at `root`, whoever saved it."""

    def __init__(self, root: str | Path | None = None, step: int | None = None, *, endpoint: str | None = None, region: str | None = None) -> None:
        super().__init__()
        self.root, self.step = root, step
        self._server = {"endpoint": endpoint, "region": region}
        self._step: StoredStep | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return bool(re.search(r"\d+$", os.fspath(checkpoint_id)))

    def reset(self, checkpoint_id: Id = None) -> None:
        self.root, self.step = _named(checkpoint_id, self.root, self.step)
        self._step = None

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        return metadata_of(self._opened().manifest)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        self._opened()

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        step = self._opened()
        targets: list[tuple[str, Sequence[int], Tensor]] = []
        ended: list[tuple[object, Tensor]] = []
        for item in plan.items:
            name = item.storage_index.fqn
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, io.BytesIO(step[name][...].numpy().tobytes()))
                continue
            target = planner.resolve_tensor(item).detach()
            box = item.storage_index.offset or (0,) * len(step[name].shape)
            targets.append((name, [int(at) + int(more) for at, more in zip(box, item.storage_offsets, strict=True)], target))
            ended.append((item, target))
        step.fill(targets)
        for item, target in ended:
            planner.commit_tensor(item, target)  # type: ignore[arg-type]
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _opened(self) -> StoredStep:
        if self._step is None:
            if self.root is None:
                raise InputError("Nothing says where DCP loads from.", 'Give StoreReader(root), or checkpoint_id="checkpoints/step-7".')
            backend = Backend(self.root, endpoint=self._server["endpoint"], region=self._server["region"])
            backend.prepared(make=False)
            manifest = commit.newest(backend) if self.step is None else commit.manifest_of(backend, self.step)
            if manifest is None:
                raise InputError(f"{self.root} holds no committed step.", "Save one first.")
            self._step = StoredStep(backend, manifest)
        return self._step


def metadata_of(manifest: StepManifest) -> Metadata:
    """A committed step as DCP describes checkpoints."""
    pickled = {name for values in manifest.values.values() for name in cast(list[str], values.get(_BYTES, []))}
    known: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    storage: dict[MetadataIndex, object] = {}
    for name, one in manifest.tensors.items():
        if name in pickled:
            known[name] = BytesStorageMetadata()
            storage[MetadataIndex(name)] = manifest.step
            continue
        chunks = [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)) for box in one.boxes]
        known[name] = TensorStorageMetadata(TensorProperties(dtype=getattr(torch, one.dtype)), torch.Size(one.shape), chunks)
        for index, chunk in enumerate(chunks):
            storage[MetadataIndex(name, chunk.offsets, index)] = manifest.step
    paths = cast(list[tuple[str, list[str | int]]], manifest.values.get("0", {}).get(_PLAN, []))
    return Metadata(state_dict_metadata=known, planner_data={name: tuple(path) for name, path in paths} or {name: (name,) for name in known},
                    storage_data=storage)


def _named(checkpoint_id: Id, root: str | Path | None, step: int | None) -> tuple[str | Path | None, int | None]:
    """Root and step by an id such as "checkpoints/step-7"; what was given otherwise stays."""
    if checkpoint_id is None:
        return root, step
    text = os.fspath(checkpoint_id).rstrip("/")
    found = re.search(r"(\d+)$", text)
    if found is None:
        raise InputError(f"checkpoint_id {text!r} names no step.", 'End it in the number of the step: "checkpoints/step-7".')
    return (root if root is not None else text.rpartition("/")[0] or "."), int(found[1])
