"""Hot swap: another artefact takes over while requests go on, after a trial, and the one of before stays warm for a while as the way back.

The new artefact loads in workers of its own and must answer trial rows, in the same kind of task and with the same classes. Then new rows go to it;
rows that the old one has are finished there. For `keep` seconds the old workers stay: if workers of the new one die meanwhile, or `rollback` is
asked, the old one serves again at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from fourfold.errors import ArtefactError, InputError
from fourfold.runtime.serve.served_artefact import ArtefactIdentity, ServedArtefact

TRIAL_ROWS = ("A joy from start to end.", "", "Two hours that I will not get back.", "word " * 40)
DEATHS = 2                                                             # of new workers after which the old artefact serves again
_TRIAL = 60.0                                                          # seconds that a trial row may take


def identity(folder: Path) -> ArtefactIdentity:
    """What lies in the folder; its manifest is read and its files' hashes are compared. Raises ArtefactError."""
    import hashlib

    from fourfold.runtime.loading import read_manifest, verify

    manifest = read_manifest(folder)
    verify(folder, manifest)
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    return ArtefactIdentity(folder, str(manifest["name"]), digest, str(manifest.get("created", "")))


def beside(served: Path, name: str) -> Path:
    """The artefact of that plain name in the folder in which the served one lies. Raises InputError for anything that leads elsewhere."""
    home = served.resolve().parent
    folder = home / name
    if Path(name).name != name or name in ("", ".", "..") or folder.is_symlink() or not folder.is_dir() or folder.resolve().parent != home:
        raise InputError("There is no artefact of that name beside the one that is served.", f"Put its folder into {home.name}/.")
    return folder


class ArtefactExchange:
    """Which artefact serves, which one served before. `make(identity)` builds a ServedArtefact that is not open yet."""

    def __init__(self, make: Callable[[ArtefactIdentity], ServedArtefact], told: Callable[..., None], keep: float = 30.0) -> None:
        self.make, self.told, self.keep = make, told, keep
        self.current: ServedArtefact | None = None
        self.previous: ServedArtefact | None = None
        self._one = asyncio.Lock()
        self._retiring: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def serving(self) -> ServedArtefact:
        """The artefact that new rows go to."""
        assert self.current is not None
        return self.current

    async def first(self, folder: Path) -> None:
        """Load the first artefact. Raises ArtefactError."""
        new = self.make(identity(folder))
        await new.open()
        self.current = new

    async def swap(self, folder: Path) -> ArtefactIdentity:
        """Serve what lies in `folder` from now on. Raises FourfoldError, and the old artefact goes on, where it does not load or fails its trial."""
        async with self._one:
            began = time.monotonic()
            found = await asyncio.to_thread(identity, folder)
            new = self.make(found)
            self.told("swap_loading", artefact=found.name, digest=found.digest[:12])
            try:
                await new.open()
                await self._tried(new)
            except BaseException as error:
                await new.close()
                self.told("swap_refused", artefact=found.name, why=str(error).splitlines()[0] if str(error) else type(error).__name__)
                raise
            await self._retire_now()
            self.previous, self.current = self.current, new
            self.told("swapped", artefact=found.name, digest=found.digest[:12], seconds=round(time.monotonic() - began, 3))
            self._retiring = asyncio.ensure_future(self._retire_later(new))
            return found

    async def _tried(self, new: ServedArtefact) -> None:
        """Raises ArtefactError where the new artefact answers another question or does not answer."""
        was, now = self.serving.about, new.about
        assert was is not None and now is not None
        if (was.kind, was.reads, was.classes) != (now.kind, now.reads, now.classes):
            raise ArtefactError(f"The new artefact is a {now.kind} model with other classes or inputs than the one that is served.",
                                "Serve it on a port of its own: its answers mean something else.")
        if now.reads != "texts" or now.kind not in ("classification", "regression"):
            return
        for stage in range(len(new.queues)):
            try:
                done = await asyncio.wait_for(new.workers[0].run(stage, list(TRIAL_ROWS)), _TRIAL)
            except Exception as error:
                raise ArtefactError(f"The new artefact did not answer its trial: {error or type(error).__name__}.", "The old one goes on.") from None
            for row in done.records:
                if row is not None and any(number != number for number in row):
                    raise ArtefactError("The new artefact answered its trial with numbers that are none.", "The old one goes on.")

    async def rollback(self, why: str = "asked") -> ArtefactIdentity:
        """Serve the artefact of before again. Raises InputError where it is gone."""
        if self.previous is None or self.current is None:
            raise InputError("There is no artefact to go back to.", f"It is kept for {self.keep:g} s after a swap; swap to it by name.")
        if self._retiring is not None:
            self._retiring.cancel()
            self._retiring = None
        bad, self.current, self.previous = self.current, self.previous, None
        self.told("rolled_back", artefact=self.current.identity.name, digest=self.current.identity.digest[:12], why=why)
        self._finish(bad)
        return self.current.identity

    def _finish(self, old: ServedArtefact) -> None:
        task = asyncio.ensure_future(self._closed(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _closed(self, old: ServedArtefact) -> None:
        await old.drained(old.limits.timeout)
        await old.close()

    async def _retire_later(self, new: ServedArtefact) -> None:
        """After `keep` seconds the old workers end, unless those of the new one die first."""
        until = time.monotonic() + self.keep
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
            if new.deaths >= DEATHS or (new.declined > 3 and new.declined > new.batches / 2):
                self._retiring = None
                await self.rollback("workers of the new artefact died" if new.deaths >= DEATHS else "the new artefact raised on most batches")
                return
        self._retiring = None
        old, self.previous = self.previous, None
        if old is not None:
            await self._closed(old)

    async def _retire_now(self) -> None:
        if self._retiring is not None:
            self._retiring.cancel()
            self._retiring = None
        if self.previous is not None:
            old, self.previous = self.previous, None
            self._finish(old)

    async def close(self, patience: float) -> None:
        """Finish what waits (within `patience` seconds), then end all workers."""
        if self._retiring is not None:
            self._retiring.cancel()
        for one in (self.current, self.previous):
            if one is not None:
                await one.drained(patience)
                await one.close()
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)


def token() -> str:
    """The token of the administration's routes: environment FOURFOLD_SERVE_TOKEN; "" switches them off."""
    return os.environ.get("FOURFOLD_SERVE_TOKEN", "")


