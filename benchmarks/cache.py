"""Cache policies on open traces: bytes missed at four sizes, learned replacement over several seeds beside every rule and the oracle.

    python benchmarks/cache.py FOLDER [--traces cloudPhysicsIO,orm-busy] [--seeds 5] [--libcachesim PYTHON] [--quick]

FOLDER holds `cloudPhysicsIO.oracleGeneral.bin.xz` and `orm-busy.trace.xz`. Sizes are shares of the bytes of all objects. Every answer is replayed by
the question's validator, which counts the misses again. Requests a second are of CPU time of one thread, of the kernel alone. With --libcachesim, an
interpreter that has libcachesim, 3L-Cache (ThreeLCache) is replayed there on the same files.
"""

from __future__ import annotations

import argparse
import json
import lzma
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import provenance

from fourfold import registry
from fourfold.decisions.cache.instance import RequestTrace
from fourfold.decisions.cache.problem import Cache
from fourfold.decisions.cache.validate import misses
from fourfold.problem import Budget

HERE = Path(__file__).parent
SHARES = (0.01, 0.05, 0.10, 0.30)
FILES = {"cloudPhysicsIO": "cloudPhysicsIO.oracleGeneral.bin.xz", "orm-busy": "orm-busy.trace.xz"}
SLOW = {"belady": 200_000}                                              # a heap of the whole trace: on longer ones the bound stands for it
PEER = """
import json, sys, time, libcachesim as l
path, size, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
cache = l.ThreeLCache(size, hashpower=18)
reader = l.TraceReader(path, l.TraceType.ORACLE_GENERAL_TRACE, l.ReaderInitParam(ignore_obj_size=kind != "sized"))
began = time.process_time()
objects, bytes_ = cache.process_trace(reader)
print(json.dumps({"objects": objects, "bytes": bytes_, "seconds": time.process_time() - began}))
"""


def trace_of(path: Path, most: int | None) -> RequestTrace:
    """The trace of an open file, its first `most` requests."""
    raw = lzma.open(path).read()
    if "oracleGeneral" in path.name:
        rows = np.frombuffer(raw, np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")]))[:most]
        return RequestTrace.of(rows["id"], rows["size"], path.name)
    return RequestTrace.of(np.frombuffer(raw, ">u4")[:most].astype(np.int64), None, path.name)


def measured(problem: Cache, name: str, seed: int) -> dict[str, Any]:
    """One policy on one trace at one size. Raises where the validator finds fault."""
    solver = registry.technique(f"cache/{name}")()
    began = time.process_time()
    answer = solver.solve(problem, Budget(evaluations=10**12), seed)
    seconds = time.process_time() - began
    found, broken = misses(problem.trace, problem.capacity, answer.answer)
    assert not broken, broken
    return {"policy": name, "seed": seed, "objects": float(found.mean()), "bytes": float(problem.trace.sizes[found].sum() / problem.trace.bytes),
            "requests_per_s": len(problem.trace) / seconds, **answer.evidence}


def peer(python: Path, trace: RequestTrace, capacity: int, work: Path) -> dict[str, Any]:
    """3L-Cache of libcachesim on the same requests, written as oracleGeneral."""
    file = work / "trace.bin"
    rows = np.zeros(len(trace), np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")]))
    rows["id"], rows["size"] = trace.ids + 1, trace.sizes
    rows["next"] = np.where(trace.following >= 1 << 59, -1, trace.following + 1)
    rows.tofile(file)
    try:
        done = subprocess.run([python, "-c", PEER, str(file), str(capacity), "sized"], capture_output=True, text=True, timeout=900)
        told = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return {"policy": "3L-Cache (libcachesim)", "why": "no answer"}
    return {"policy": "3L-Cache (libcachesim)", "seed": 0, "objects": told["objects"], "bytes": told["bytes"],
            "requests_per_s": len(trace) / max(told["seconds"], 1e-9)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", default=",".join(FILES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--libcachesim", type=Path, help="an interpreter that has it")
    parser.add_argument("--work", type=Path, default=Path("fourfold-bench/cache"))
    parser.add_argument("--quick", action="store_true", help="the first 50,000 requests; nothing is published")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cache.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    names = sorted(id.split("/")[1] for id in registry.techniques("cache"))
    rows = []
    for name in args.traces.split(","):
        trace = trace_of(args.folder / FILES[name], 50_000 if args.quick else None)
        small = Cache(RequestTrace.of(trace.ids[:2_000], trace.sizes[:2_000]), max(1, trace.footprint // 100))
        for policy in names:
            measured(small, policy, 0)                                  # compiled before the clock runs
        for share in SHARES:
            problem = Cache(trace, int(trace.footprint * share))
            found = [measured(problem, policy, seed) for policy in names if len(trace) <= SLOW.get(policy, len(trace))
                     for seed in range(args.seeds if policy == "halp" else 1)]
            if args.libcachesim:
                found.append(peer(args.libcachesim, trace, problem.capacity, args.work))
            rows += [{"trace": name, "share": share, "requests": len(trace), "bound": problem.bound() / trace.bytes, **row} for row in found]
            told = {policy: statistics.mean(row["bytes"] for row in found if row["policy"] == policy) for policy in ("lru", "s3fifo", "halp")}
            speed = statistics.median(row["requests_per_s"] for row in found if row["policy"] == "halp")
            print(f"{name} {share:4.0%}  " + "  ".join(f"{key} {value:.4f}" for key, value in told.items()) + f"  {speed / 1e3:,.0f} k/s", flush=True)
    if not args.quick:
        files = {file: args.folder / FILES[file] for file in args.traces.split(",")}
        provenance.publish(args.out, {"about": provenance.facts(args, range(args.seeds), files), "rows": rows})
        print(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
