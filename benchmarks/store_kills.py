"""Kill -9 of four processes at random moments of a save, again and again: `fourfold.store` and, as a control, torch's DCP overwriting one directory.

    python benchmarks/store_kills.py --trials 1000 --control 50 --work DIR [--json]

A trial forks four ranks that load the newest step, check it, and save the next one (collecting to two steps); one of them, or all, is killed at a
moment drawn evenly over the save itself: from the moment that the last rank enters `save` to a tenth after the usual end, the others a moment later.
Then one process loads: it has to find the old step or the new one, every element of it. The control saves with DCP into one directory, as a training
script that keeps its last checkpoint does, and all ranks are killed at once, at a moment drawn likewise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import provenance
import torch

WORLD, ROWS, COLUMNS = 4, 8192, 64


def state(step: int, rank: int) -> dict[str, torch.Tensor]:
    """A rank's rows: three layers of which two change, and a small tensor."""
    rows = ROWS // WORLD
    return {"changes": torch.full((rows, COLUMNS), float(step)), "stays": torch.full((rows, COLUMNS), 1.0),
            "also": torch.full((rows, COLUMNS), -float(step)), "small": torch.full((8,), float(step))}


def forked(work: Callable[[], int], quiet: bool = True) -> int:
    """Run `work` in a forked process; its pid. The exit code is what `work` returns, 70 where it raises."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        if quiet:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
        code = work()
    except BaseException as error:
        if not quiet:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Exit code of a child; −9 where it was killed."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def ours(root: Path, rank: int, generation: int, told: int) -> int:
    """One rank: load the newest step, save the next; a byte to the pipe `told` before the save and one after it."""
    from fourfold.store import Checkpointer, Shard

    with Checkpointer(root, rank=rank, world=WORLD, generation=generation, keep=2, deadline=20, chunk=1 << 18) as store:
        step = (store.latest() if generation else 0) or 0

        def shards(given: dict[str, torch.Tensor]) -> dict[str, object]:
            return {name: Shard(one, (WORLD * len(one), *one.shape[1:]), (rank * len(one), *[0] * (one.ndim - 1))) for name, one in given.items()}

        if generation:
            mine = state(0, rank)
            store.load(shards(mine), step=step)
            if any(not torch.equal(one, wanted) for one, wanted in zip(mine.values(), state(step, rank).values(), strict=True)):
                return 3
        os.write(told, b"b")
        store.save(step + 1, shards(state(step + 1, rank)), wait=True)
        os.write(told, b"e")
    return 0


def ours_holds(root: Path, full: bool) -> int:
    """What the store holds after a kill: the step, 200 for a mixture, 201 where nothing loads, 202 for a fault that `verify` finds."""
    from fourfold.errors import FourfoldError
    from fourfold.store import Checkpointer

    store = Checkpointer(root)
    try:
        found = store.open()
        read = found.read()
    except FourfoldError:
        return 201
    wanted = {name: torch.cat([state(found.step, rank)[name] for rank in range(WORLD)]) for name in read}
    if len(read) != 4 or any(not torch.equal(read[name], wanted[name]) for name in read):
        return 200
    if full and not store.verify().good:
        return 202
    return found.step % 100


def control(root: Path, rank: int, step: int, port: Path, told: int) -> int:
    """One rank: save with DCP into one directory; a byte to the pipe `told` before the save and one after it."""
    import torch.distributed as group
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    group.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    made = {name: DTensor.from_local(one, mesh, [Shard(0)]) for name, one in state(step, rank).items()}
    os.write(told, b"b")
    dcp.save(made, checkpoint_id=root)
    os.write(told, b"e")
    return 0


def control_holds(root: Path, old: int) -> int:
    """0: the old or the new step, whole; 200: a mixture; 201: nothing loads."""
    import torch.distributed.checkpoint as dcp

    read = {name: torch.empty(WORLD * len(one), *one.shape[1:]) for name, one in state(0, 0).items()}
    try:
        dcp.load(read, checkpoint_id=root, no_dist=True)
    except BaseException:
        return 201
    for step in (old, old + 1):
        if all(torch.equal(read[name], torch.cat([state(step, rank)[name] for rank in range(WORLD)])) for name in read):
            return 0
    return 200


class Ranks:
    """Four forked ranks that tell by a pipe when they enter their save and when they leave it."""

    def __init__(self, work: Callable[[int, int], int]) -> None:
        self._heard, told = os.pipe()
        self.pids = [forked(lambda rank=rank: work(rank, told)) for rank in range(WORLD)]
        os.close(told)

    def _hear(self, letter: bytes) -> bool:
        """Until every rank has said `letter`; False where one ended before it."""
        left = WORLD
        while left:
            said = os.read(self._heard, 1)
            if not said:
                return False
            left -= said == letter
        return True

    def span(self) -> float:
        """Seconds from the last rank's entry into the save to the last one's end. Raises SystemExit where one fails."""
        self._hear(b"b")
        begin = time.perf_counter()
        good = self._hear(b"e")
        took = time.perf_counter() - begin
        os.close(self._heard)
        codes = [ended(pid) for pid in self.pids]
        if not good or any(codes):
            raise SystemExit(f"a save without a kill failed: {codes}")
        return took

    def kill(self, after: float, everyone: bool, chosen: random.Random) -> None:
        """Kill all ranks (or one, the rest a moment later) so many seconds after the last has entered the save; collect them."""
        if self._hear(b"b"):
            time.sleep(after)
        first = list(self.pids) if everyone else [chosen.choice(self.pids)]
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        if not everyone:
            time.sleep(chosen.uniform(0, 0.15))
            for pid in set(self.pids) - set(first):
                os.kill(pid, signal.SIGKILL)
        os.close(self._heard)
        for pid in self.pids:
            os.waitpid(pid, 0)


def trials(count: int, work: Path, seed: int) -> dict[str, object]:
    """`count` kills of our own saves."""
    root, chosen = work / "ours", random.Random(seed)
    shutil.rmtree(root, ignore_errors=True)

    def ranks(generation: int) -> Ranks:
        return Ranks(lambda rank, told: ours(root, rank, generation, told))

    ranks(0).span()
    took = ranks(1).span()
    found = {"trials": count, "old": 0, "new": 0, "mixtures": 0, "unloadable": 0, "faults": 0, "span_s": took}
    step = 2
    for trial in range(count):
        ranks(2 + trial).kill(chosen.uniform(0, 1.1) * took, chosen.random() < 0.4, chosen)
        code = ended(forked(lambda trial=trial: ours_holds(root, trial % 10 == 9 or trial == count - 1)))
        key = {200: "mixtures", 201: "unloadable", 202: "faults", 70: "unloadable"}.get(code)
        if key is None:
            key = "old" if code == step % 100 else "new" if code == (step + 1) % 100 else "mixtures"
        found[key] += 1  # type: ignore[operator]
        step += key == "new"
    return found


def controls(count: int, work: Path, seed: int) -> dict[str, object]:
    """`count` kills of all ranks in DCP's saves into one directory, each beginning from a whole one."""
    chosen = random.Random(seed)

    def ranks(root: Path, step: int, name: str) -> Ranks:
        port = work / f"port-{name}"
        port.unlink(missing_ok=True)
        return Ranks(lambda rank, told: control(root, rank, step, port, told))

    good, took = work / "control", 0.0
    shutil.rmtree(good, ignore_errors=True)
    for _ in range(2):
        took = ranks(good, 1, "first").span()
    found = {"trials": count, "whole": 0, "mixtures": 0, "unloadable": 0, "span_s": took}
    for trial in range(count):
        root = work / "control-trial"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(good, root)
        ranks(root, 2, f"{trial}").kill(chosen.uniform(0, 1.1) * took, True, chosen)
        code = ended(forked(lambda root=root: control_holds(root, 1)))
        found[{0: "whole", 200: "mixtures"}.get(code, "unloadable")] += 1  # type: ignore[operator]
    return found


def _loaded(control: bool) -> None:
    """Import what the ranks need before they are forked; nothing is opened, so that no thread is lost by the fork."""
    import tensorstore  # noqa: F401

    import fourfold.runtime.store.checkpointer  # noqa: F401

    if control:
        import torch.distributed.checkpoint
        import torch.distributed.tensor  # noqa: F401


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=1000)
    options.add_argument("--control", type=int, default=0)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=None, help="results file")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    _loaded(given.control > 0)
    found: dict[str, object] = {"ours": trials(given.trials, given.work, given.seed)} if given.trials else {}
    if given.control:
        found["dcp"] = controls(given.control, given.work, given.seed)
    if given.out is not None:
        provenance.publish(given.out, {"about": provenance.facts(given, [given.seed]), **found})
    print(json.dumps(found) if given.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
