"""Checkpoints: `fourfold.store` beside torch DCP and Orbax, in time, in bytes, under flipped bytes and under kill -9.

    python benchmarks/store.py --work DIR [--orbax PYTHON] [--kills 1000] [--control 50] [--quick]

Parts are kept in DIR as they end; a second call measures what is missing. DIR on /dev/shm measures the software, not a disk. PYTHON: an interpreter
that has orbax-checkpoint. One thread each.

speed     four ranks over gloo, rows saved, columns loaded; the tensors are changed the moment the save returns, and the load has to give what they
          were before. `dcp` is async_save as it is; `dcp copied` clones the state first, as its caller has to where it keeps no copy itself.
one       one process, beside Orbax.
changed   bytes that a second save writes where 2 of 20 tensors changed.
flips     one bit flipped anywhere in a store: does `verify` see it, and does a load give what was saved or refuse?
kills     store_kills.py, in batches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import provenance
import store_kills
import torch
from _store_orbax import COLUMNS, ROWS
from store_kills import WORLD, ended, forked

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fourfold.store import Checkpointer

RESULTS = Path(__file__).parent / "results" / "store.json"
BATCH = 50
Row = dict[str, float]


def medians(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure."""
    return {key: {"median": statistics.median(row[key] for row in rows), "least": min(row[key] for row in rows),
                  "most": max(row[key] for row in rows)} for key in rows[0]}


def state(tensors: int, seed: int, rows: int = ROWS) -> dict[str, torch.Tensor]:
    """`tensors` matrices of rows × COLUMNS float32."""
    drawn = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.randn(rows, COLUMNS, generator=drawn) for i in range(tensors)}


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# ---- four ranks -----------------------------------------------------------------------------------------------------------------------------------

def save_of(way: str, folder: Path, mine: Mapping[str, torch.Tensor], mesh: DeviceMesh, rank: int, store: Checkpointer,
            step: int) -> tuple[float, Callable[[], object]]:
    """Begin a save of this rank's rows; (seconds until the caller may go on, what waits for the end)."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Split

    if way == "ours":
        from fourfold.store import Shard

        given = {name: Shard(one, (WORLD * len(one), COLUMNS), (rank * len(one), 0)) for name, one in mine.items()}
        begin = time.perf_counter()
        saving = store.save(step, given)                                # its snapshot memory is kept between saves, as in training
        blocked = time.perf_counter() - begin

        def end() -> None:
            saving.result()

        return blocked, end
    begin = time.perf_counter()
    held = {name: one.clone() for name, one in mine.items()} if way == "dcp copied" else mine
    future = dcp.async_save({name: DTensor.from_local(one, mesh, [Split(0)]) for name, one in held.items()}, checkpoint_id=folder)
    blocked = time.perf_counter() - begin
    return blocked, cast("Callable[[], object]", future.result)


def load_of(way: str, folder: Path, tensors: int, mesh: DeviceMesh, rank: int) -> dict[str, torch.Tensor]:
    """This rank's columns of every tensor."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Split

    width = COLUMNS // WORLD
    mine = {f"w{i}": torch.empty(ROWS, width) for i in range(tensors)}
    if way == "ours":
        from fourfold.store import Checkpointer, Shard

        Checkpointer(folder).load({name: Shard(one, (ROWS, COLUMNS), (0, rank * width)) for name, one in mine.items()})
    else:
        dcp.load({name: DTensor.from_local(one, mesh, [Split(1)]) for name, one in mine.items()}, checkpoint_id=folder)
    return mine


def rank_of(work: Path, rank: int, rounds: int, tensors: int, seed: int) -> int:
    """One rank of `speed`; its rows are in WORK/rank-R.json. The first round warms up."""
    import torch.distributed as group
    from torch.distributed.device_mesh import init_device_mesh

    group.init_process_group("gloo", init_method=f"file://{work}/port", rank=rank, world_size=WORLD)
    mesh, rows, drawn = init_device_mesh("cpu", (WORLD,)), [], random.Random(seed)
    from fourfold.store import Checkpointer

    width = COLUMNS // WORLD
    store = Checkpointer(work / "ours")                                # the process group tells rank, world and generation
    for number in range(rounds + 1):
        whole = state(tensors, seed + number)
        ways = ["ours", "dcp", "dcp copied"]
        drawn.shuffle(ways)                                            # alike in all ranks
        for way in ways:
            folder = work / "ours" if way == "ours" else work / f"{way.replace(' ', '-')}-{number}"
            mine = {name: one.chunk(WORLD)[rank].clone() for name, one in whole.items()}
            group.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            blocked, end = save_of(way, folder, mine, mesh, rank, store, number + 1)
            for one in mine.values():
                one.fill_(-1.0)                                        # the next step of training
            end()
            row: dict[str, object] = {"way": way, "blocked": blocked, "save": time.perf_counter() - wall, "save_cpu": time.process_time() - cpu}
            group.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            back = load_of(way, folder, tensors, mesh, rank)
            row |= {"load": time.perf_counter() - wall, "load_cpu": time.process_time() - cpu}
            row["right"] = all(torch.equal(back[name], whole[name][:, rank * width:(rank + 1) * width]) for name in whole)
            group.barrier()
            if rank == 0 and way != "ours":
                shutil.rmtree(folder)
            if number:
                rows.append(row)
    (work / f"rank-{rank}.json").write_text(json.dumps(rows))
    return 0


def speed(given: argparse.Namespace, work: Path) -> dict[str, object]:
    """Of each way: rounds of the slowest rank's seconds and all ranks' CPU seconds, and in how many the old values were found."""
    codes = [ended(pid) for pid in [forked(lambda rank=rank: rank_of(work, rank, given.rounds, given.tensors, given.seed), quiet=False)
                                    for rank in range(WORLD)]]
    if any(codes):
        raise SystemExit(f"speed: ranks ended with {codes}")
    ranks = [json.loads((work / f"rank-{rank}.json").read_text()) for rank in range(WORLD)]
    found: dict[str, object] = {}
    for way in ("ours", "dcp", "dcp copied"):
        joined = [[row for row in rows if row["way"] == way] for rows in ranks]
        rounds = [{key: (sum if key.endswith("cpu") else max)(one[number][key] for one in joined)
                   for key in ("blocked", "save", "save_cpu", "load", "load_cpu")} for number in range(given.rounds)]
        right = sum(all(one[number]["right"] for one in joined) for number in range(given.rounds))
        found[way] = {**medians(rounds), "rounds": given.rounds, "old_values_kept": right}
    return {"bytes": 4 * ROWS * COLUMNS * given.tensors, "ranks": WORLD, "ways": found}


# ---- one process ----------------------------------------------------------------------------------------------------------------------------------

def one(given: argparse.Namespace, work: Path) -> dict[str, object]:
    """A process alone, beside Orbax."""
    from fourfold.store import Checkpointer

    rows, right = [], 0
    with Checkpointer(work / "one", keep=1) as store:
        for number in range(given.rounds + 1):
            made = state(given.tensors, given.seed + number)
            kept = {name: tensor.clone() for name, tensor in made.items()}
            wall, cpu = time.perf_counter(), time.process_time()
            saving = store.save(number + 1, made)
            blocked = time.perf_counter() - wall
            for tensor in made.values():
                tensor.fill_(-1.0)
            saving.result()
            row = {"blocked": blocked, "save": time.perf_counter() - wall, "save_cpu": time.process_time() - cpu}
            wall, cpu = time.perf_counter(), time.process_time()
            back = store.load()
            row |= {"load": time.perf_counter() - wall, "load_cpu": time.process_time() - cpu}
            if number:
                rows.append(row)
                right += all(torch.equal(cast(torch.Tensor, back[name]), kept[name]) for name in kept)
    ways: dict[str, object] = {"ours": {**medians(rows), "rounds": given.rounds, "old_values_kept": right}}
    if given.orbax is not None:
        ran = subprocess.run([given.orbax, str(Path(__file__).with_name("_store_orbax.py")), str(work), str(given.tensors), str(given.rounds)],
                             capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        if ran.returncode:
            ways["orbax"] = {"declined": (ran.stderr.strip().splitlines() or ["no word"])[-1][:160]}
        else:
            told = json.loads(ran.stdout.strip().splitlines()[-1])
            ways["orbax"] = {**medians([{key: row[key] for key in rows[0]} for row in told["rows"]]), "rounds": len(told["rows"]),
                             "old_values_kept": sum(row["right"] for row in told["rows"]), "version": told["version"]}
    return {"bytes": 4 * ROWS * COLUMNS * given.tensors, "ways": ways}


def changed(given: argparse.Namespace, work: Path) -> dict[str, object]:
    """The share of the bytes that a second save writes where 2 of 20 tensors changed."""
    from fourfold.store import Checkpointer

    made = state(20, given.seed, ROWS // 8)
    with Checkpointer(work / "changed") as store:
        first = store.save(1, made).result()
        before = size(work / "changed")
        made["w3"] += 1
        made["w7"] += 1
        second = store.save(2, made).result()
    return {"tensors": 20, "changed": 2, "bytes": second.bytes, "new": second.new, "share": (size(work / "changed") - before) / before,
            "first": first.new}


def flips(given: argparse.Namespace, work: Path) -> dict[str, object]:
    """One flipped bit at a time, anywhere in a store of two steps, mended again after it."""
    from fourfold.errors import FourfoldError
    from fourfold.store import Checkpointer

    drawn, saved = random.Random(given.seed), {}
    found = {"trials": given.flips, "unseen": 0, "loads_refused": 0, "loads_right": 0, "loads_wrong": 0}
    with Checkpointer(work / "flips") as store:
        for step in (1, 2):
            saved[step] = {"a": torch.randn(300, 300, generator=torch.Generator().manual_seed(step)), "b": torch.arange(9)}
            store.save(step, saved[step], wait=True)
        assert store.verify().good
        files = sorted(path for path in (work / "flips").rglob("*") if path.is_file())
        for _ in range(given.flips):
            path = drawn.choice(files)
            whole = path.read_bytes()
            broken = bytearray(whole)
            broken[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
            path.write_bytes(broken)
            found["unseen"] += store.verify().good
            try:
                opened = Checkpointer(work / "flips").open()           # may fall back to the step before, told by its number
                back = opened.read()
                right = all(torch.equal(back[name], wanted) for name, wanted in saved[opened.step].items())
                found["loads_right" if right else "loads_wrong"] += 1
            except FourfoldError:
                found["loads_refused"] += 1
            path.write_bytes(whole)
        assert store.verify().good
    return {**found, "files": len(files)}


def kills(given: argparse.Namespace, work: Path) -> dict[str, object]:
    """Kills in batches, each kept, so that a call goes on where one ended."""
    found: dict[str, object] = {}
    for name, count, run in (("ours", given.kills, store_kills.trials), ("dcp", given.control, store_kills.controls)):
        total: dict[str, float] = {}
        for batch in range(-(-count // BATCH)):
            kept = work / f"{name}-{batch}.json"
            if not kept.is_file():
                kept.write_text(json.dumps(run(min(BATCH, count - batch * BATCH), work, 1000 * given.seed + batch)))
            for key, value in json.loads(kept.read_text()).items():
                total[key] = max(total.get(key, 0.0), value) if key == "span_s" else total.get(key, 0) + value
        found[name] = total
    return found


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, object]]] = {
    "speed": speed, "one": one, "changed": changed, "flips": flips, "kills": kills}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--orbax", default=None, help="interpreter with orbax-checkpoint")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--tensors", type=int, default=64, help="of 4 MiB each")
    options.add_argument("--flips", type=int, default=1000)
    options.add_argument("--kills", type=int, default=1000)
    options.add_argument("--control", type=int, default=50)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="shows that it runs; writes only into DIR")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.tensors, given.flips, given.kills, given.control = 1, 4, 10, 3, 3
    torch.set_num_threads(1)
    given.work = given.work.resolve()
    store_kills._loaded(True)
    found: dict[str, object] = {}
    for name, part in PARTS.items():                                   # what forks comes in a process that opened no store: each part has its own
        kept = given.work / f"{name}.json"
        if not kept.is_file():
            folder = given.work / name
            folder.mkdir(parents=True, exist_ok=True)

            def run(part: Callable[[argparse.Namespace, Path], dict[str, object]] = part, folder: Path = folder, kept: Path = kept) -> int:
                kept.write_text(json.dumps(part(given, folder)))
                return 0

            if name != "kills":
                shutil.rmtree(folder)
                folder.mkdir()
            if code := ended(forked(run, quiet=False)):
                raise SystemExit(f"{name}: ended with {code}")
        found[name] = json.loads(kept.read_text())
        print(name, json.dumps(found[name]), flush=True)
    given.orbax = given.orbax is not None                              # a path of this machine says nothing elsewhere
    out = given.work / "store.json" if given.quick else RESULTS
    provenance.publish(out, {"about": provenance.facts(given, [given.seed]), **found})


if __name__ == "__main__":
    main()
