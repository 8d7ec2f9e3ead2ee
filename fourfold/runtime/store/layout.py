"""The keys of a store and the canonical text of its documents.

    fourfold-store.json               what this is, and in which format
    chunks/AA/SHA256                  a chunk as zarr 3 has it (little-endian elements, then their crc32c), named by its own sha256; never changed
    packs/NAME/                       an OCDBT database of the small chunks that one process wrote in one save; keys are their sha256; never changed
    pending/STEP/GENERATION/…         intents, parts and votes of a save that is not committed
    steps/STEP.json                   a committed manifest; making it is the commit; never changed
    LATEST                            the newest committed step and its manifest's sha256: where to look first
    collecting.json                   the lease of a garbage collection that is under way
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

FORMAT = 1
MARKER, LATEST, LEASE = "fourfold-store.json", "LATEST", "collecting.json"
CHUNKS, PACKS, PENDING, STEPS = "chunks/", "packs/", "pending/", "steps/"
SMALL = 1 << 18                                                        # bytes; a chunk below goes into a pack, since a file and its fsync cost more


def canonical(document: object) -> bytes:
    """One text a document: keys sorted, no spaces, UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes) -> str:
    """sha256 in hexadecimal digits."""
    return sha256(data).hexdigest()


def sealed(document: Mapping[str, object]) -> bytes:
    """The canonical text of `document` with the sha256 of its text without it."""
    return canonical({**document, "sha256": digest(canonical(document))})


def chunk_key(name: str) -> str:
    return f"{CHUNKS}{name[:2]}/{name}"


def pack_prefix(pack: str) -> str:
    return f"{PACKS}{pack}/"


def step_key(step: int) -> str:
    return f"{STEPS}{step:012d}.json"


def step_of(key: str) -> int | None:
    """The step that a key under `steps/` commits; None for anything else that lies there."""
    name = key.removeprefix(STEPS).removesuffix(".json")
    return int(name) if key == f"{STEPS}{name}.json" and len(name) >= 12 and name.isascii() and name.isdigit() else None


def marker() -> bytes:
    return canonical({"format": FORMAT, "kind": "fourfold.store"})
