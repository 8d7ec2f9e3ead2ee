"""A key-value store on TensorStore: a folder, `s3://bucket/prefix` or `memory://`; every write is whole or not done, and can be conditional."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import ArtefactError, FourfoldError, InputError, MissingExtra
from fourfold.runtime.store import layout

if TYPE_CHECKING:
    import tensorstore as ts

Spec = dict[str, object]
_LOST = re.compile(r"\.__lock$")                                       # lock files of TensorStore's file driver, left by a killed process


def available() -> None:
    """Raises MissingExtra where TensorStore is not installed."""
    if find_spec("tensorstore") is None:
        raise MissingExtra("Checkpoint stores need the package tensorstore, which is not installed.", "pip install 'fourfold[store]'")


class Backend:
    """The store at `root`. `spec` is TensorStore's description of it, with which other tools open it. Raises InputError for a root that cannot be."""

    def __init__(self, root: str | Path, *, endpoint: str | None = None, region: str | None = None) -> None:
        available()
        import tensorstore as ts

        self.root = str(root)
        self.spec = _spec(self.root, endpoint, region)
        self.context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "cache_pool#packs": {"total_bytes_limit": 16 << 20}})
        try:
            self._store = ts.KvStore.open(self.spec, context=self.context).result()
        except (ValueError, OSError) as error:
            raise self.fault(error, "opened") from None

    @property
    def folder(self) -> Path | None:
        """Where it lies on this machine's disks; None for others."""
        return Path(str(self.spec["path"])) if self.spec["driver"] == "file" else None

    def get(self, key: str) -> bytes | None:
        """The value; None where there is none."""
        try:
            found = self._store.read(key).result()
        except (ValueError, OSError) as error:
            raise self.fault(error, "read") from None
        return bytes(found.value) if found.state == "value" else None

    def put(self, key: str, value: bytes) -> None:
        """Write `value`, durable when this returns. Raises FourfoldError (exit code 1) for a full disk, InputError where it cannot be written."""
        self.wait(self.begin(key, value))

    def begin(self, key: str, value: bytes) -> object:
        """A write that goes on by itself; `wait` ends it."""
        return self._store.write(key, value)

    def wait(self, write: object) -> None:
        """Until a begun write is durable. Raises as `put` does."""
        try:
            write.result()  # type: ignore[attr-defined]
        except (ValueError, OSError) as error:
            raise self.fault(error, "written") from None

    def create(self, key: str, value: bytes) -> bool:
        """Write `value` where `key` has none; whether this did. Of several at once exactly one does."""
        try:
            seen = self._store.read(key).result()
            if seen.state == "value":
                return False
            return self._store.write(key, value, if_equal=seen.stamp.generation).result().generation != b""
        except (ValueError, OSError) as error:
            raise self.fault(error, "written") from None

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; those that are not there are passed over."""
        try:
            for one in [self._store.write(key, None) for key in keys]:
                one.result()
        except (ValueError, OSError) as error:
            raise self.fault(error, "removed") from None

    def delete_under(self, prefix: str) -> None:
        """Remove all keys that begin with `prefix`, which ends in a slash."""
        import tensorstore as ts

        try:
            self._store.delete_range(ts.KvStore.KeyRange(prefix, prefix[:-1] + "0")).result()
        except (ValueError, OSError) as error:
            raise self.fault(error, "removed") from None
        if (folder := self.folder) is not None:
            _prune(folder / prefix)

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin with `prefix` (empty, or ending in a slash), sorted, but for lock files of the file driver."""
        import tensorstore as ts

        try:
            found = self._store.list(ts.KvStore.KeyRange(prefix, prefix[:-1] + "0") if prefix else None).result()
        except (ValueError, OSError) as error:
            raise self.fault(error, "listed") from None
        return sorted(name for one in found if not _LOST.search(name := one.decode("utf-8", "replace")))

    def under(self, path: str) -> Spec:
        """TensorStore's description of the key or, where it ends in a slash, the folder `path`."""
        return {**self.spec, "path": str(self.spec["path"]) + path}

    def pack(self, name: str) -> ts.KvStore:
        """The OCDBT database `name`, in which a transaction commits all its keys or none."""
        import tensorstore as ts

        return ts.KvStore.open(self.pack_spec(name), context=self.context).result()

    def pack_spec(self, name: str) -> Spec:
        """TensorStore's description of the OCDBT database `name`."""
        return {"driver": "ocdbt", "base": self.under(layout.pack_prefix(name)), "config": {"compression": None}, "cache_pool": "cache_pool#packs"}

    def prepared(self, make: bool) -> None:
        """Look at the store's marker. Where there is none, make it (`make`), if nothing else lies there.

        Raises InputError for a place that is no store, ArtefactError for one that a newer version wrote or whose marker is damaged.
        """
        found = self.get(layout.MARKER)
        if found is None:
            if self.keys(layout.STEPS) and self.get(layout.MARKER) is None:
                raise ArtefactError(f"{self.root}/{layout.MARKER} is missing.", f"Its whole text is {layout.marker().decode()}")
            if not make:
                raise InputError(f"{self.root} is no checkpoint store.",
                                 "Give a folder that fourfold.store.Checkpointer or `fourfold store save` wrote.")
            strange = self.keys()
            if strange and self.get(layout.MARKER) is None:            # not made by another process meanwhile
                raise InputError(f"{self.root} holds what is no checkpoint store: {strange[0]}.", "Name a new or empty folder.")
            self.create(layout.MARKER, layout.marker())
            found = self.get(layout.MARKER)
        if found == layout.marker():
            return
        import json

        try:
            number = json.loads(found or b"")["format"]
            newer = isinstance(number, int) and number > layout.FORMAT and layout.canonical(json.loads(found or b"")) == found
        except (ValueError, KeyError, TypeError):
            newer = False
        if newer:
            raise ArtefactError(f"{self.root} is a store of format {number}, written by a newer version; this one knows up to {layout.FORMAT}.",
                                "Update fourfold.")
        raise ArtefactError(f"{self.root}/{layout.MARKER} is damaged.", f"Its whole text is {layout.marker().decode()}")

    def fault(self, error: Exception, done: str) -> FourfoldError:
        words = str(error)
        if "No space left" in words or "Disk quota" in words or "File too large" in words:
            full = FourfoldError(f"The disk is full: {self.root} could not be {done}. Committed steps are whole.", "Make room and save again.")
            full.exit_code = 1
            return full
        if "NOT_FOUND" in words and "chunk" in words:
            return ArtefactError(f"{self.root} is damaged: {_first(words)}.", "`fourfold store verify` tells which steps are whole; load another.")
        if any(sign in words.lower() for sign in ("failed_precondition", "not enough data", "data_loss", "checksum", "crc32c")):
            return ArtefactError(f"{self.root} is damaged: {_first(words)}.", "`fourfold store verify` tells which steps are whole; load another.")
        return InputError(f"{self.root} cannot be {done}: {_first(words)}.", "Give a folder or bucket that is there and that you may use.")


def _first(words: str) -> str:
    """An error of TensorStore without the places in its source."""
    plain = re.sub(r"\[source locations=.*|\[tensorstore_spec=.*|source location.*", "", words.replace("\n", " "))
    return " ".join(plain.split())[:240].rstrip(" .;[")


def _spec(root: str, endpoint: str | None, region: str | None) -> Spec:
    if root.startswith("memory://"):
        return {"driver": "memory", "path": root.removeprefix("memory://").strip("/") + "/"}
    if root.startswith("s3://"):
        bucket, _, path = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"{root!r} names no bucket.", "Write s3://bucket/prefix.")
        path = path.strip("/") + "/" if path.strip("/") else ""
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return {"driver": "s3", "bucket": bucket, "path": path, **({"endpoint": endpoint, "aws_region": region or "us-east-1"} if endpoint else
                                                                   {"aws_region": region} if region else {})}
    if "://" in root and not root.startswith("file://"):
        raise InputError(f"{root!r} is no place for a store.", "Give a folder, s3://bucket/prefix or memory://name.")
    path = Path(root.removeprefix("file://")).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a store is a folder.", "Name a folder.")
    return {"driver": "file", "path": f"{path}/"}


def _prune(folder: Path) -> None:
    """Remove lock files that killed processes left and empty folders, from below. Others may be writing there: what is not empty stays."""
    for where, _folders, files in os.walk(folder, topdown=False):
        for name in files:
            if _LOST.search(name):
                Path(where, name).unlink(missing_ok=True)
        try:
            os.rmdir(where)
        except OSError:
            continue
