"""Garbage: steps beyond those to keep, and chunks that no kept step and no save under way needs. Safe beside saves of other processes.

A collection announces itself (a lease), then looks. A save announces what it will use (its intent, then the names of each batch of chunks), then
looks whether a collection is under way and waits for its end. So of any two one sees the other: either the save waits and then finds what is gone
gone, or the collection sees what was announced and spares it. No clock is read but for the lease of a collection that died.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from fourfold.errors import ArtefactError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.commit import manifest_of, steps
from fourfold.runtime.store.manifest import live
from fourfold.runtime.store.prepare import gone

_LEASE = 600.0                                                         # seconds; the collection itself stops before


@dataclass(frozen=True)
class Collected:
    """What went: steps, chunks, packs, tries that died, bytes (None: not a folder); and saves that were under way."""

    steps: tuple[int, ...]
    chunks: int
    packs: int
    tries: int
    bytes: int | None
    kept: tuple[int, ...]
    under_way: int

    def to_json(self) -> dict[str, object]:
        return {"steps": list(self.steps), "chunks": self.chunks, "packs": self.packs, "tries": self.tries, "bytes": self.bytes,
                "kept": list(self.kept), "under_way": self.under_way}


def collect(backend: Backend, keep: int | None, dry: bool = False) -> Collected:
    """Keep the newest `keep` steps (None: all) and remove what nothing needs. `dry`: only count.

    Raises InputError for `keep` below 1 and while another collection is under way; ArtefactError where a manifest is damaged: what it needs is not
    known, so nothing is removed.
    """
    if keep is not None and keep < 1:
        raise InputError(f"keep is {keep}.", "Keep at least 1 step.")
    end = time.time() + _LEASE
    if not dry:
        _lease(backend, end)
    try:
        return _swept(backend, keep, dry, end - 0.2 * _LEASE)
    finally:
        if not dry:
            backend.delete([layout.LEASE])


def _lease(backend: Backend, until: float) -> None:
    text = layout.canonical({"until": until})
    if backend.create(layout.LEASE, text):
        return
    found = backend.get(layout.LEASE)
    try:
        other = float(json.loads(found or b"")["until"])
    except (ValueError, KeyError, TypeError):
        other = 0.0
    if time.time() < other:
        raise InputError(f"{backend.root} is being collected by another process.", f"Wait for it, at most {other - time.time():.0f} s.")
    backend.put(layout.LEASE, text)


def _swept(backend: Backend, keep: int | None, dry: bool, end: float) -> Collected:
    known = steps(backend)
    bases = {one["base"] for one in _intents(backend, known)}          # saves that come later wait for the lease, then see what went
    drop = [step for step in (known[:-keep] if keep is not None else []) if step not in bases]
    for step in known:
        if step not in drop:
            manifest_of(backend, step)                                 # readable, before anything goes
    candidates = backend.keys(layout.CHUNKS) + backend.keys(layout.PACKS)
    if not dry:
        backend.delete(layout.step_key(step) for step in drop)
    tries = _tries(backend)                                            # before the steps are listed again: a try ends as one of them
    kept = [step for step in steps(backend) if step not in drop]
    chunks, packs = live(manifest_of(backend, step) for step in kept)
    dead = [prefix for prefix, keys in tries.items() if _dead(backend, prefix, keys, kept)]
    for prefix, keys in tries.items():
        if prefix not in dead:
            named, own = _announced(backend, keys)
            chunks, packs = chunks | named, packs | own
    names = [key for key in candidates if key.startswith(layout.CHUNKS) and key.rsplit("/", 1)[1] not in chunks]
    lost = sorted({key.split("/")[1] for key in candidates if key.startswith(layout.PACKS)} - packs)
    size = _bytes(backend, names + [key for key in candidates if key.startswith(layout.PACKS) and key.split("/")[1] in lost])
    if not dry:
        for at in range(0, len(names), 256):
            if time.time() > end:
                raise InputError(f"Collecting {backend.root} takes longer than {_LEASE:g} s.", "What went was garbage; collect again for the rest.")
            backend.delete(names[at : at + 256])
        for pack in lost:
            backend.delete_under(layout.pack_prefix(pack))
        for prefix in dead:
            backend.delete_under(prefix)
    return Collected(tuple(drop), len(names), len(lost), len(dead), size, tuple(kept), len(tries) - len(dead))


def _tries(backend: Backend) -> dict[str, list[str]]:
    """Keys of every try of every step that is pending, by its prefix."""
    found: dict[str, list[str]] = {}
    for key in backend.keys(layout.PENDING):
        found.setdefault("/".join(key.split("/")[:3]) + "/", []).append(key)
    return found


def _intents(backend: Backend, known: list[int]) -> list[dict[str, object]]:
    """Intents of saves that are under way."""
    return [intent for prefix, keys in _tries(backend).items() if not _dead(backend, prefix, keys, known) for intent in _said(backend, keys)]


def _said(backend: Backend, keys: list[str]) -> list[dict[str, object]]:
    found = []
    for key in keys:
        if key.rsplit("/", 1)[1].startswith("intent-") and (data := backend.get(key)) is not None:
            try:
                one = json.loads(data)
            except ValueError:
                continue
            found += [one] if isinstance(one, dict) else []
    return found


def _dead(backend: Backend, prefix: str, keys: list[str], known: list[int]) -> bool:
    """Whether a try can never be committed: it was given up, its step is committed, its coordinator is gone, or its deadline is long past."""
    step = prefix.split("/")[1]
    if f"{prefix}aborted.json" in keys or step.isdigit() and int(step) in known:
        return True
    coordinator = backend.get(f"{prefix}intent-0.json")
    try:
        if coordinator is not None and gone(json.loads(coordinator)):
            return True
    except ValueError:
        pass
    starts = [float(one["started"]) + 3 * float(one["deadline"]) for one in _said(backend, keys)   # type: ignore[arg-type]
              if isinstance(one.get("started"), int | float) and isinstance(one.get("deadline"), int | float)]
    return bool(starts) and time.time() > max(starts)


def _announced(backend: Backend, keys: list[str]) -> tuple[set[str], set[str]]:
    """(chunks, packs) that a try under way has announced."""
    chunks: set[str] = set()
    for key in keys:
        if key.rsplit("/", 1)[1].startswith("names-") and (data := backend.get(key)) is not None:
            try:
                chunks |= {str(name) for name in json.loads(data)}
            except ValueError:
                raise ArtefactError(f"{key} is damaged.", "End the save that wrote it, then collect again.") from None
    return chunks, {str(one["pack"]) for one in _said(backend, keys) if "pack" in one}


def _bytes(backend: Backend, keys: list[str]) -> int | None:
    folder = backend.folder
    if folder is None:
        return None
    return sum(path.stat().st_size for key in keys if (path := folder / key).exists())
