"""Deaths at every point of a save, flipped bytes, two generations, votes twice, lost acknowledgements, collections beside saves: old or new, no mix.

`benchmarks/store_kills.py` kills real processes; a few of its trials run here.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("tensorstore", reason="needs fourfold[store]")

from stored_state import Died, Dying, right, saved, state

from fourfold.errors import ArtefactError, FourfoldError, InputError
from fourfold.runtime.store import layout
from fourfold.runtime.store.backend import Backend
from fourfold.runtime.store.collect import collect
from fourfold.runtime.store.commit import committed, decide, newest, steps
from fourfold.runtime.store.manifest import StepManifest, merged, part_of
from fourfold.runtime.store.pieces import split
from fourfold.runtime.store.prepare import Attempt, prepare
from fourfold.runtime.store.snapshot import SnapshotMemory
from fourfold.store import Checkpointer

ROOT = Path(__file__).parent.parent
WORLD = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with steps 1 and 2 of two processes."""
    root = tmp_path_factory.mktemp("base") / "ck"
    for step in (1, 2):
        saved(root, step, WORLD, 0)
    return root


def whole(root: Path, allowed: tuple[int, ...]) -> int:
    """The newest step, which is one of `allowed`, holds all its own values, and is proved."""
    store = Checkpointer(root)
    step = store.latest()
    assert step in allowed and right(store.load(), step, WORLD)
    assert store.verify().steps == tuple(store.steps())
    return step


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_write_leaves_the_old_or_the_new(base: Path, tmp_path: Path, victim: int, after: bool) -> None:
    seen: set[int] = set()
    for at in range(40):
        root = tmp_path / f"ck{at}"
        shutil.copytree(base, root)
        dying = Dying(root, at, after)
        try:
            saved(root, 3, WORLD, 1, dying, victim)
        except Died:
            pass
        else:
            assert dying.count <= at and whole(root, (3,)) == 3        # a whole save has fewer writes: all points were tried
            break
        step = whole(root, (2, 3))
        seen.add(step)
        store = Checkpointer(root, keep=2)
        if step == 2:                                                  # the next start saves the same step again
            saved(root, 3, WORLD, 2)
        _age(root)
        store.collect()
        assert whole(root, (3,)) == 3 and store.verify().orphans == 0 and not Backend(root).keys(layout.PENDING)
        shutil.rmtree(root)
    assert at >= 4 and seen == ({2, 3} if victim == 0 else {2})


def _age(root: Path) -> None:
    """Tries of processes that are gone: here the test's own process wrote them, which lives."""
    backend = Backend(root)
    for key in backend.keys(layout.PENDING):
        if "/intent-" in key:
            backend.put(key, layout.canonical({**json.loads(backend.get(key) or b""), "started": 0.0, "pid": -1, "born": 0}))


def test_every_flipped_byte_is_found(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "ck"
    shutil.copytree(base, root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    store, chosen = Checkpointer(root), random.Random(0)
    assert store.verify().good
    for trial in range(60):
        path = files[trial % len(files)] if trial < 2 * len(files) else chosen.choice(files)
        data = bytearray(path.read_bytes())
        at = chosen.randrange(len(data))
        data[at] ^= 1 << chosen.randrange(8)
        good = path.read_bytes()
        path.write_bytes(data)
        assert not store.verify().good, f"{path.relative_to(root)} byte {at}"
        path.write_bytes(good)
    for path in files:                                                 # shortened, emptied, gone
        good = path.read_bytes()
        for cut in (good[:-1], b""):
            path.write_bytes(cut)
            assert not store.verify().good, path
        path.unlink()
        found = store.verify()                                         # a step that is gone was collected, or leaves orphans
        assert not found.good or found.orphans or path.parent.name == "generations", path
        path.write_bytes(good)
    (root / "chunks" / "stray").write_bytes(b"x")
    assert store.verify().good and store.verify().orphans == 1
    (root / "mine.txt").write_bytes(b"x")
    assert "mine.txt is not the store's" in store.verify().faults


def test_a_damaged_newest_step_is_passed_over_and_latest_mended(base: Path, tmp_path: Path) -> None:
    from fourfold.runtime.store.check import repair

    root = tmp_path / "ck"
    shutil.copytree(base, root)
    key = root / layout.step_key(2)
    key.write_bytes(key.read_bytes()[:-5])
    store = Checkpointer(root, keep=1)
    with pytest.warns(UserWarning, match="step 2 is damaged"):
        assert store.latest() == 1
    with pytest.raises(ArtefactError, match="damaged"):
        store.load(step=2)
    with pytest.raises(ArtefactError, match="damaged"):                # what the damaged one needs is not known: nothing goes
        store.collect()
    assert store.steps() == [1, 2]
    key.unlink()
    assert not store.verify().good and repair(store.backend) and store.verify().good


def test_two_generations_and_votes_twice(tmp_path: Path) -> None:
    root = tmp_path / "ck"
    first = saved(root, 1, WORLD, 0)
    backend = Backend(root)

    def vote(step: int, generation: int, rank: int, value: int) -> Attempt:
        attempt = Attempt(step, generation, 0, rank, WORLD, 0.3, 1 << 20)
        pieces, values = split(state(value, rank, WORLD))
        prepare(backend, SnapshotMemory().copy(pieces), values, attempt, first)
        return attempt

    old, new = [vote(2, 1, rank, 2) for rank in range(WORLD)], [vote(2, 2, rank, 22) for rank in range(WORLD)]
    vote(2, 1, 1, 2)                                                   # the same vote again changes nothing
    with pytest.raises(InputError, match="voted for other values"):
        vote(2, 1, 1, 222)
    made = decide(backend, new[0])
    assert made.generation == 2
    with pytest.raises(FourfoldError):                                 # its votes went with the commit of the other
        decide(backend, old[0])
    assert right(Checkpointer(root).load(step=2), 22, WORLD)
    mixed = vote(3, 3, 0, 3)
    vote(3, 4, 1, 33)
    with pytest.raises(InputError, match="no vote of process 1"):      # a vote of another generation does not count
        decide(backend, mixed)
    assert steps(backend) == [1, 2]


def test_lost_acknowledgements_change_nothing(tmp_path: Path) -> None:
    root = tmp_path / "ck"
    saved(root, 1, WORLD, 0)
    backend, attempts = Backend(root), [Attempt(2, 1, 0, rank, WORLD, 5.0, 1 << 20) for rank in range(WORLD)]
    for attempt in attempts:
        pieces, values = split(state(2, attempt.rank, WORLD))
        prepare(backend, SnapshotMemory().copy(pieces), values, attempt, newest(backend))
    keys = [f"{attempts[0].prefix}part-{rank}.json" for rank in range(WORLD)]
    manifest = merged([part_of(backend.get(key) or b"", key) for key in keys])

    class Deaf(Backend):
        """Writes, and never hears that it did."""

        def create(self, key: str, value: bytes) -> bool:
            super().create(key, value)
            raise InputError("The connection was lost.", "")

    first = committed(Deaf(root), manifest)
    again = committed(backend, manifest)
    assert isinstance(again, StepManifest) and first.sha256 == again.sha256 and right(Checkpointer(root).load(), 2, WORLD)


def test_a_collection_beside_a_save_spares_what_it_announced(base: Path, tmp_path: Path) -> None:
    """A collection is made to happen at every write of a save, keeping one step."""
    class Collecting(Backend):
        def __init__(self, root: Path, at: int) -> None:
            super().__init__(root)
            self.at, self.count = at, 0

        def _now(self) -> None:
            self.count += 1
            if self.count == self.at + 1:
                found = collect(Backend(root), 1)
                assert found.under_way <= 1

        def begin(self, key: str, value: bytes) -> object:
            self._now()
            return super().begin(key, value)

        def create(self, key: str, value: bytes) -> bool:
            self._now()
            return super().create(key, value)

    for at in range(30):
        root = tmp_path / f"ck{at}"
        shutil.copytree(base, root)
        with Checkpointer(root) as other:                              # a leftover that the save will write again, and an orphan
            other.save(9, {"w": torch.full((64 * 1024, 48), 3.0)}, wait=True)
            Backend(root).delete([layout.step_key(9), layout.LATEST])
        collecting = Collecting(root, at)
        pieces, values = split(state(3))
        attempt = Attempt(3, 5, 0, 0, 1, 5.0, 1 << 20)
        prepare(collecting, SnapshotMemory().copy(pieces), values, attempt, newest(collecting))
        decide(collecting, attempt)
        assert right(Checkpointer(root).load(), 3, 1) and Checkpointer(root).verify().steps[-1] == 3
        shutil.rmtree(root)
        if collecting.count <= at:
            break
    assert at >= 5


def test_a_save_waits_for_a_collection(tmp_path: Path) -> None:
    root = tmp_path / "ck"
    with Checkpointer(root) as store:
        store.save(1, {"a": torch.ones(3)}, wait=True)
        store.backend.put(layout.LEASE, layout.canonical({"until": time.time() + 30}))
        with pytest.raises(InputError, match="being collected"):
            store.collect(1)
        saving = store.save(2, {"a": torch.ones(3)})
        time.sleep(0.15)
        assert not saving.done()
        threading.Timer(0.05, lambda: store.backend.delete([layout.LEASE])).start()
        assert saving.result(20).step == 2
        store.backend.put(layout.LEASE, layout.canonical({"until": time.time() - 1}))   # its process died
        assert store.save(3, {"a": torch.ones(3)}).result(20).step == 3 and store.collect(1).kept == (3,)


def test_concurrent_savers_and_collectors_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / "ck"
    Checkpointer(root).save(0, {"w": torch.zeros(1000), "big": torch.zeros(70_000)}, wait=True)
    wrong: list[BaseException] = []

    def runs(number: int) -> None:
        try:
            with Checkpointer(root, keep=2) as store:
                for step in range(number, 40, 3):
                    done = store.save(step, {"w": torch.full((1000,), float(step % 4)), "big": torch.full((70_000,), float(step % 3))}).result(60)
                    assert done.step == step
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=runs, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong, wrong
    store = Checkpointer(root)
    assert store.verify().good and store.steps()[-1] == 39
    for step in store.steps():
        found = store.load(step=step)
        assert found["w"][5] == step % 4 and found["big"][5] == step % 3  # type: ignore[index]


def test_killed_processes(tmp_path: Path) -> None:
    """Four processes, killed at random moments: every time the old or the new step, whole."""
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "store_kills.py"), "--trials", "4", "--work", str(tmp_path), "--json"],
                          capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["ours"]
    assert found["trials"] == 4 and found["mixtures"] == 0 and found["unloadable"] == 0 and found["old"] + found["new"] == 4
