"""The second phase: one process counts the votes and makes the manifest, which is the commit; the others wait to see it. Presumed abort.

Whatever dies, whenever: before the manifest is there nothing of the step is, after it all is. LATEST only says where to look first.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping

from fourfold.errors import ArtefactError, FourfoldError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.manifest import PreparedPart, StepManifest, merged, opened, part_of, seal
from fourfold.runtime.store.pieces import Value
from fourfold.runtime.store.prepare import Attempt

_POLL = (0.005, 0.1)                                                   # seconds between two looks, at first and at most
_GENERATIONS = "generations/"


def claim(backend: Backend) -> int:
    """A generation that nobody had, above all that were: the number of one start of the processes."""
    while True:
        known = [int(name) for key in backend.keys(_GENERATIONS) if (name := key.removeprefix(_GENERATIONS)).isdigit()]
        made = max([*known, -1]) + 1
        if backend.create(f"{_GENERATIONS}{made:06d}", b"claimed"):
            backend.delete(f"{_GENERATIONS}{one:06d}" for one in known if one < made - 8)
            return made


def decide(backend: Backend, attempt: Attempt, values: Mapping[str, Value] | None = None) -> StepManifest:
    """Wait for all votes, then commit; `values`: the coordinator's own. Deciding again changes nothing.

    Raises FourfoldError where a process refused, InputError where the parts do not make whole tensors, where the deadline came first, or where
    another generation has committed this step; the try is over then, and the step before is what stands.
    """
    try:
        manifest = merged(_votes(backend, attempt))
        if values:
            manifest.values.setdefault("0", {}).update(values)
        return committed(backend, manifest)
    except FourfoldError as error:
        if backend.get(layout.step_key(attempt.step)) is None:
            try:
                backend.put(f"{attempt.prefix}aborted.json", layout.canonical({"message": error.message, "mend": error.mend}))
            except FourfoldError:
                pass                                                   # a full disk; the others' deadline ends it
        raise


def committed(backend: Backend, manifest: StepManifest) -> StepManifest:
    """Make the manifest, if no other of this step is there: the commit point. Then LATEST, then the pending try goes."""
    text, key = seal(manifest), layout.step_key(manifest.step)
    try:
        made = backend.create(key, text)
    except FourfoldError:
        if backend.get(key) != text:                                   # written, and only the answer was lost?
            raise
        made = True
    if not made and backend.get(key) != text:
        raise InputError(f"Step {manifest.step} is committed already, with other values.", "Steps are never overwritten: save under a new number.")
    advance(backend, manifest)
    backend.delete_under(f"{layout.PENDING}{manifest.step:012d}/")
    return manifest


def advance(backend: Backend, manifest: StepManifest) -> None:
    """LATEST to this step, unless it names a later one."""
    found = backend.get(layout.LATEST)
    if found is not None:
        word = found.split(b" ")[0]
        if word.isdigit() and int(word) > manifest.step:
            return
    backend.put(layout.LATEST, f"{manifest.step} {manifest.sha256}\n".encode())


def follow(backend: Backend, attempt: Attempt) -> StepManifest:
    """Wait until the coordinator has committed this try. Raises FourfoldError where it was aborted, InputError where the deadline came first."""
    end, pause, key = time.time() + 1.5 * attempt.deadline, _POLL[0], layout.step_key(attempt.step)
    while time.time() < end:
        if (found := backend.get(key)) is not None:
            manifest = opened(found, StepManifest, key)
            if manifest.generation != attempt.generation:
                raise InputError(f"Step {attempt.step} was committed by generation {manifest.generation}, not by {attempt.generation}.",
                                 "Another start of the same job goes on; end this one.")
            return manifest
        if (said := backend.get(f"{attempt.prefix}aborted.json")) is not None:
            raise _said(said, f"The save of step {attempt.step} was given up")
        time.sleep(pause)
        pause = min(_POLL[1], 1.5 * pause)
    raise InputError(f"Step {attempt.step} was not committed within {attempt.deadline:g} s.", "Look whether the process of rank 0 lives; save again.")


def _votes(backend: Backend, attempt: Attempt) -> list[PreparedPart]:
    """The parts of all processes, checked. Raises FourfoldError for a refusal, InputError at the deadline."""
    end, pause = time.time() + attempt.deadline, _POLL[0]
    parts: dict[int, PreparedPart] = {}
    while True:
        there = set(backend.keys(attempt.prefix))
        for rank in range(attempt.world):
            key = f"{attempt.prefix}part-{rank}.json"
            if rank not in parts and key in there and (found := backend.get(key)) is not None:
                part = part_of(found, key)
                if (part.rank, part.world, part.step, part.generation) != (rank, attempt.world, attempt.step, attempt.generation):
                    raise ArtefactError(f"{key} is the vote of process {part.rank} of {part.world} for step {part.step}.",
                                        f"Start all {attempt.world} processes with one world size and one generation.")
                parts[rank] = part
        if len(parts) == attempt.world:
            return list(parts.values())
        refused = sorted(key for key in there if key.startswith(f"{attempt.prefix}refused-"))
        if refused and (said := backend.get(refused[0])) is not None:
            raise _said(said, f"A process could not save its part of step {attempt.step}")
        if time.time() > end:
            missing = [rank for rank in range(attempt.world) if rank not in parts]
            raise InputError(f"Step {attempt.step} is given up: no vote of process {missing[0]} within {attempt.deadline:g} s.",
                             "Look whether it lives; the step before stands.")
        time.sleep(pause)
        pause = min(_POLL[1], 1.5 * pause)


def _said(data: bytes, what: str) -> FourfoldError:
    try:
        found = json.loads(data)
        return FourfoldError(f"{what}: {found['message']}", found["mend"])
    except (ValueError, KeyError, TypeError):
        return FourfoldError(f"{what}.", "Save again.")


def steps(backend: Backend) -> list[int]:
    """All committed steps, in order, damaged ones too."""
    return sorted(step for key in backend.keys(layout.STEPS) if (step := layout.step_of(key)) is not None)


def manifest_of(backend: Backend, step: int) -> StepManifest:
    """A committed step. Raises InputError where it is not there, ArtefactError where it is damaged."""
    key = layout.step_key(step)
    found = backend.get(key)
    if found is None:
        known = steps(backend)
        listed = f"It has: {', '.join(map(str, known[-8:]))}." if known else "Nothing was committed yet."
        raise InputError(f"{backend.root} has no step {step}.", listed)
    manifest = opened(found, StepManifest, key)
    if manifest.step != step:
        raise ArtefactError(f"{key} holds step {manifest.step}.", "A file was moved; take it back.")
    return manifest


def newest(backend: Backend) -> StepManifest | None:
    """The newest committed step whose manifest is whole; None where there is none. One that was committed just before a death counts, though LATEST
    does not name it yet."""
    for step in reversed(steps(backend)):
        try:
            return manifest_of(backend, step)
        except ArtefactError as error:
            if "newer version" in error.message:
                raise
            warnings.warn(f"{backend.root}: step {step} is damaged; an older one is taken.", UserWarning, stacklevel=2)
    return None
