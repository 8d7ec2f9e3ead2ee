"""Every byte of a store, proved: sizes, crc32c and sha256 of chunks, sha256 of pack files, seals of manifests, whole tensors, LATEST, the marker.

Written without the code that writes: crc32c is taken by TensorStore, the boxes are covered as `manifest.violations` counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fourfold.errors import ArtefactError, FourfoldError
from fourfold.runtime.store import layout
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.commit import manifest_of, steps
from fourfold.runtime.store.manifest import StepManifest, live, violations


@dataclass(frozen=True)
class Verdict:
    """What `check` found: `steps` that are whole, `faults` in words (none: every byte is as it was committed), bytes read, and notes."""

    steps: tuple[int, ...]
    faults: tuple[str, ...]
    broken: tuple[int, ...]
    chunks: int
    bytes: int
    orphans: int                                                       # chunks and packs that no step needs; not read
    notes: tuple[str, ...] = field(default=())

    @property
    def good(self) -> bool:
        return not self.faults

    def to_json(self) -> dict[str, object]:
        return {"good": self.good, "steps": list(self.steps), "broken": list(self.broken), "faults": list(self.faults), "chunks": self.chunks,
                "bytes": self.bytes, "orphans": self.orphans, "notes": list(self.notes)}


def check(backend: Backend, only: Sequence[int] | None = None) -> Verdict:
    """Read everything that the steps (`only` these; None: all) need and compare. Changes nothing."""
    faults: list[str] = []
    try:
        backend.prepared(make=False)
    except ArtefactError as error:
        faults.append(error.message)
    known = steps(backend)
    manifests: dict[int, StepManifest] = {}
    broken: set[int] = set()
    for step in known:
        if only is None or step in only:
            try:
                manifests[step] = manifest_of(backend, step)
                faults += [f"step {step}: {words}" for words in violations(manifests[step])]
            except ArtefactError as error:
                broken.add(step)
                faults.append(error.message)
    wrong, read = _contents(backend, manifests)
    for step, manifest in manifests.items():
        if hit := [key for key in wrong if key in manifest.objects or key in manifest.packs]:
            broken.add(step)
            faults.append(f"step {step}: {wrong[hit[0]]}" + (f" (and {len(hit) - 1} more)" if hit[1:] else ""))
    if only is None:
        faults += _latest(backend, known, manifests)
        strange = [key for key in backend.keys() if not _ours(key)]
        faults += [f"{key} is damaged" for key in backend.keys("generations/") if backend.get(key) != b"claimed"]
        faults += [f"{key} is not the store's" for key in strange]
    chunks, packs = live(manifests.values())
    there = backend.keys(layout.CHUNKS)
    lost = {key.split("/")[1] for key in backend.keys(layout.PACKS)} - packs
    orphans = sum(key.rsplit("/", 1)[1] not in chunks for key in there) + len(lost) if only is None else 0
    tries = len({key.split("/")[1] for key in backend.keys(layout.PENDING)})
    notes = [f"{tries} saves are under way or died"] * bool(tries) + [f"{orphans} chunks or packs are needed by no step"] * bool(orphans)
    return Verdict(tuple(step for step in manifests if step not in broken), tuple(faults), tuple(sorted(broken)),
                   len({key for one in manifests.values() for key in one.objects}), read, orphans, tuple(notes))


def _contents(backend: Backend, manifests: dict[int, StepManifest]) -> tuple[dict[str, str], int]:
    """(faults of chunks and packs by their name, bytes read)."""
    wrong: dict[str, str] = {}
    read, seen = 0, set()
    for manifest in manifests.values():
        for name, one in manifest.objects.items():
            if one.pack is not None or name in seen:
                continue
            seen.add(name)
            data = backend.get(layout.chunk_key(name))
            read += len(data or b"")
            if data is None:
                wrong[name] = f"chunk {name} is missing"
            elif len(data) != one.size or layout.digest(data) != name or data[-4:][::-1].hex() != one.crc32c:
                wrong[name] = f"chunk {name} is damaged"
        for pack, files in manifest.packs.items():
            if pack in seen:
                continue
            seen.add(pack)
            prefix = layout.pack_prefix(pack)
            extra = [key for key in backend.keys(prefix) if key.removeprefix(prefix) not in files]
            for file, stored in files.items():
                data = backend.get(prefix + file)
                read += len(data or b"")
                if data is None or len(data) != stored.size or layout.digest(data) != stored.sha256:
                    wrong[pack] = f"{prefix}{file} is {'missing' if data is None else 'damaged'}"
            if extra:
                wrong.setdefault(pack, f"{extra[0]} was added to a pack")
            if pack not in wrong:
                wrong |= _packed(backend, manifest, pack)
    return wrong, read


def _packed(backend: Backend, manifest: StepManifest, pack: str) -> dict[str, str]:
    """Faults of the chunks of a pack whose files are whole."""
    try:
        store = backend.pack(pack)
        return {name: f"chunk {name} is not in its pack" for name, one in manifest.objects.items()
                if one.pack == pack and layout.digest(bytes(store.read(name).result().value)) != name}
    except (ValueError, OSError) as error:
        return {pack: backend.fault(error, "read").message}


def _latest(backend: Backend, known: list[int], manifests: dict[int, StepManifest]) -> list[str]:
    found = backend.get(layout.LATEST)
    if found is None:
        return [f"{layout.LATEST} is missing"] if known else []
    try:
        step, digest = found.decode().split()
        number = int(step)
        good = found == f"{number} {digest}\n".encode() and number in known and (number not in manifests or manifests[number].sha256 == digest)
    except (ValueError, UnicodeDecodeError):
        good = False
    return [] if good else [f"{layout.LATEST} names no committed step as it is"]


def _ours(key: str) -> bool:
    head = key.split("/", 1)[0] + "/"
    return key in (layout.MARKER, layout.LATEST, layout.LEASE) or head in (layout.CHUNKS, layout.PACKS, layout.PENDING, "generations/") or (
        head == layout.STEPS and layout.step_of(key) is not None)


def repair(backend: Backend) -> str | None:
    """LATEST again, where it is missing or wrong and a step is whole; what was done. Chunks cannot be repaired: they are what was saved."""
    from fourfold.runtime.store.commit import newest

    try:
        found = newest(backend)
    except FourfoldError:
        return None
    if found is None or not _latest(backend, steps(backend), {found.step: found}):
        return None
    backend.put(layout.LATEST, f"{found.step} {found.sha256}\n".encode())
    return f"{layout.LATEST} names step {found.step} again"
