"""Looped einsums against a collective followed by the einsum, over links of several speeds, and the speed-ups that the simulator gives on chips.

    python benchmarks/partition_overlap.py [--rates 100,250,1000] [--ranks 2] [--rounds 15] [--quick]

Ranks are processes, each in a network namespace of its own, joined by virtual links that `tc` shapes (root and iproute2 needed; elsewhere only the
unshaped loopback is measured, and the file says why). Every size runs plain, one way and both ways in turn, round after round; figures are medians of
the slowest rank's wall seconds, speed-ups medians of the rounds' ratios with their range. The gate is calibrated first, on the same ranks, and what
it chooses is raced once; neither sees these rounds. Writes benchmarks/results/partition_overlap.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import provenance

HOME = Path(__file__).parent
WAYS = ("plain", "one_way", "both_ways")
SIZES = ((1024, 1024, 128), (1024, 1024, 512), (1024, 1024, 1024), (2048, 512, 2048), (256, 256, 256), (32, 64, 64))   # rows, inner, columns a rank
QUICK = ((512, 512, 512),)
BRIDGE, PREFIX = "ffbridge", "ffrank"


# ---- a rank

def rank_main(rank: int, world: int, address: str, rounds: int, sizes: list[tuple[int, int, int]]) -> None:
    """Measure, and print a JSON document on rank 0."""
    import torch
    import torch.distributed as dist

    from fourfold.cost.overlap import GATHER, SCATTER
    from fourfold.runtime.overlap.calibrate import calibrate
    from fourfold.runtime.overlap.looped_einsum import all_gather_einsum, einsum_reduce_scatter
    from fourfold.runtime.overlap.race import race

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=world)
    gate = calibrate()
    rows: list[dict[str, object]] = []
    for kind in (GATHER, SCATTER):
        for rows_, inner, columns in sizes:
            if kind == GATHER:
                a, b = torch.randn(rows_ // world, inner), torch.randn(inner, columns)
                run = all_gather_einsum
            else:
                a, b = torch.randn(rows_, columns), torch.randn(columns, inner)
                run = einsum_reduce_scatter
            stands = race(kind, "ab,bc->ac", a, b, "a", None, gate)
            took: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(rounds + 1):
                for i in range(len(WAYS)):
                    way = WAYS[(i + turn) % len(WAYS)]
                    dist.barrier()
                    began = time.perf_counter()
                    run("ab,bc->ac", a, b, "a", way=way)
                    mine = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
                    dist.all_reduce(mine, dist.ReduceOp.MAX)
                    if turn:
                        took[way].append(float(mine))
            rows.append({"kind": kind, "rows": rows_, "inner": inner, "columns": columns, "gate": stands.gate, "chosen": stands.way, "seconds": took})
    if rank == 0:
        print(json.dumps({"gate": gate.to_json(), "rows": rows}))
    dist.barrier()
    dist.destroy_process_group()


# ---- links

def sh(*words: str) -> None:
    """Raises CalledProcessError with what the command said."""
    subprocess.run(words, check=True, capture_output=True, text=True)


def cannot_shape() -> str:
    """Why links cannot be shaped here, or ""."""
    if os.geteuid() != 0:
        return "not root"
    if lacking := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"no {' and no '.join(lacking)}"
    try:
        with links(2, 100):
            return ""
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {str(error.stderr).strip()}"


@contextmanager
def links(ranks: int, mbit: float) -> Iterator[list[list[str]]]:
    """A namespace a rank on one bridge, each end sending at most `mbit`: what goes before each rank's command."""
    try:
        sh("ip", "netns", "add", BRIDGE)
        sh("ip", "-n", BRIDGE, "link", "add", "bridge", "type", "bridge")
        sh("ip", "-n", BRIDGE, "link", "set", "bridge", "up")
        for r in range(ranks):
            name = f"{PREFIX}{r}"
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", name, "link", "add", "wire", "type", "veth", "peer", "name", f"port{r}", "netns", BRIDGE)
            sh("ip", "-n", BRIDGE, "link", "set", f"port{r}", "master", "bridge", "up")
            sh("ip", "-n", name, "addr", "add", f"10.77.0.{r + 1}/24", "dev", "wire")
            sh("ip", "-n", name, "link", "set", "wire", "up")
            sh("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "tbf", "rate", f"{mbit}mbit", "burst", "128kb", "limit", "16mb")
        yield [["ip", "netns", "exec", f"{PREFIX}{r}"] for r in range(ranks)]
    finally:
        for name in [BRIDGE, *(f"{PREFIX}{r}" for r in range(ranks))]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def measured(before: list[list[str]], host: str, device: str, rounds: int, sizes: list[tuple[int, int, int]]) -> dict[str, object]:
    """What rank 0 printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        children = [subprocess.Popen([*words, sys.executable, __file__, "--rank", str(r), "--ranks", str(len(before)), "--address", f"{host}:{port}",
                                      "--rounds", str(rounds), "--sizes", json.dumps(sizes)], stdout=subprocess.PIPE, stderr=errors, text=True,
                                     env=environment) for r, words in enumerate(before)]
        told = [child.communicate(timeout=1800)[0] for child in children]
        if any(child.returncode for child in children):
            errors.seek(0)
            raise RuntimeError(errors.read()[-2000:])
    return json.loads(told[0].strip().splitlines()[-1])


def summed_up(found: dict[str, object], link: str, mbit: float | None) -> dict[str, object]:
    """Medians and speed-ups of each row: of the better loop, of what the gate chose, and of what was best."""
    rows = []
    for row in found["rows"]:                                          # type: ignore[attr-defined]
        took = row["seconds"]
        ratios = {way: [p / w for p, w in zip(took["plain"], took[way], strict=True)] for way in WAYS}
        rows.append({**{key: row[key] for key in ("kind", "rows", "inner", "columns", "gate", "chosen")},
                     "median": {way: statistics.median(took[way]) for way in WAYS},
                     "speed_up": {way: {"median": statistics.median(one), "least": min(one), "most": max(one)} for way, one in ratios.items()},
                     "rounds": len(took["plain"])})
    return {"link": link, "mbit": mbit, "gate": found["gate"], "rows": rows}


# ---- the simulator

def simulated() -> list[dict[str, object]]:
    """Speed-ups of a feed-forward layer's two looped einsums on rings of TPU v4, by the gate's formula and by events.

    The plain all-gather and reduce-scatter use both directions of the ring, as the chip's compiler does.
    """
    from fourfold.cost.overlap import GATHER, PLAIN, SCATTER, OverlapGate, play_loop
    from fourfold.machine import Machine
    from fourfold.zoo.decoders import named

    chip = Machine.read("tpu-v4x64").devices[0]
    wire, hop = 90e9, 2e-6                                             # one axis of the torus, both directions; a ring step
    rows: list[dict[str, object]] = []
    for model in ("palm-8b", "palm-62b", "palm-540b"):
        dims = named(model)
        for ranks in (4, 8, 16):
            for tokens in (1024, 4096, 16384, 65536):
                gate = OverlapGate(ranks, hop, 2 / wire, 0.8 * chip.peak["bfloat16"], start=1e-6, collective_alpha=hop * ranks / 2,
                                   collective_beta=1 / wire)
                plain = looped = events = 0.0
                hidden, out = (dims.matrices - 1) * dims.feed_forward, dims.feed_forward
                for kind, inner, columns in ((GATHER, dims.width, hidden // ranks), (SCATTER, out // ranks, dims.width)):
                    flops = 2.0 * tokens * inner * columns
                    moved = 2.0 * tokens / ranks * dims.width
                    found = gate.decide(kind, flops, moved)
                    plain += found.seconds[PLAIN]
                    looped += found.seconds[found.way]
                    events += found.seconds[PLAIN] if found.way == PLAIN else play_loop(kind, ranks, found.einsum, gate.alpha, gate.beta * moved,
                                                                                      way=found.way, start=gate.start)[0]
                work = 2.0 * tokens * dims.width * dims.matrices * out / ranks / gate.rate
                rows.append({"model": model, "ranks": ranks, "tokens": tokens, "gate": plain / looped, "events": plain / events,
                             "communication": 1 - work / plain})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="50,250,1000", help="Mbit/s of the shaped links")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one size, one rate, no published figure")
    parser.add_argument("--out", type=Path, default=HOME / "results" / "partition_overlap.json")
    for hidden, kind in (("--rank", int), ("--address", str), ("--sizes", str)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        rank_main(args.rank, args.ranks, args.address, args.rounds, [tuple(size) for size in json.loads(args.sizes)])
        return
    sizes, rates = list(QUICK if args.quick else SIZES), [float(word) for word in args.rates.split(",")][: 1 if args.quick else None]
    about, why, found = provenance.facts(args, []), cannot_shape(), []
    for mbit in () if why else rates:
        with links(args.ranks, mbit) as before:
            found.append(summed_up(measured(before, "10.77.0.1", "wire", args.rounds, sizes), f"{mbit:g} Mbit/s", mbit))
    found.append(summed_up(measured([[]] * args.ranks, "127.0.0.1", "lo", args.rounds, sizes), "loopback, not shaped", None))
    document = {"about": {key: value for key, value in about.items() if key != "sizes"}, "ranks": args.ranks, "not_shaped": why, "links": found,
                "simulated": simulated()}
    provenance.publish(args.out, document)
    if not args.quick:
        best = max(float(str(row["events"])) for row in simulated() if row["model"] == "palm-540b")
        claim = {"speed_up": {"value": best, "low": best, "high": best}, "machine": "modelled: tpu-v4x64 (fourfold/systems)",
                 **{key: about[key] for key in ("date", "commit")}}
        (HOME.parent / "claims" / "results" / "overlap-decomposition.json").write_text(json.dumps(claim, indent=1) + "\n", encoding="utf-8")
    for link in found:
        for row in link["rows"]:                                       # type: ignore[attr-defined]
            best = max(row["speed_up"][way]["median"] for way in WAYS)
            print(f"{link['link']}: {row['kind']} {row['rows']}×{row['inner']}×{row['columns']}: gate {row['gate']}, raced {row['chosen']}, "
                  f"{row['speed_up'][row['chosen']]['median']:.2f} ×; best {best:.2f} ×")


if __name__ == "__main__":
    main()
