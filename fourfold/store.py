"""Checkpoints: `fourfold.store.Checkpointer`, and what is saved, read and found by it. The protocol stands in docs/store.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fourfold.lazy import imported

if TYPE_CHECKING:
    from fourfold.runtime.store.check import Verdict
    from fourfold.runtime.store.checkpointer import Checkpointer, SavedStep, Saving
    from fourfold.runtime.store.collect import Collected
    from fourfold.runtime.store.dcp import StoreReader, StoreWriter
    from fourfold.runtime.store.pieces import Shard
    from fourfold.runtime.store.replica import PeerMemory, Replica
    from fourfold.runtime.store.view import LazyTensor, StoredStep
    from fourfold.runtime.store.weights import export, save_weights

_HOMES = {
    "Verdict": "runtime.store.check", "Checkpointer": "runtime.store.checkpointer", "SavedStep": "runtime.store.checkpointer",
    "Saving": "runtime.store.checkpointer", "Collected": "runtime.store.collect", "StoreReader": "runtime.store.dcp",
    "StoreWriter": "runtime.store.dcp", "Shard": "runtime.store.pieces", "PeerMemory": "runtime.store.replica", "Replica": "runtime.store.replica",
    "LazyTensor": "runtime.store.view", "StoredStep": "runtime.store.view", "export": "runtime.store.weights",
    "save_weights": "runtime.store.weights",
}                                                                      # public name → the module that holds it

__all__ = ["Checkpointer", "Collected", "LazyTensor", "PeerMemory", "Replica", "SavedStep", "Saving", "Shard", "StoreReader", "StoreWriter",
           "StoredStep", "Verdict", "export", "save_weights"]


def __getattr__(name: str) -> object:
    return imported(globals(), _HOMES, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
