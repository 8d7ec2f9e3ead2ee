"""`fourfold serve` under load, beside the same server without batches, FastAPI with transformers on the original, and LitServe, BentoML and FastAPI
on the same cheaper model. Closed loops of a load generator in its own process; CPU seconds are those of a server's whole process tree.

The original is a BERT of MiniLM-L6's size with random weights; the cheaper model a stand-in for what a search finds: half of its layers, 8-bit linear
layers by ONNX Runtime. No answer comes from memory: every text is new, and the cache is off.

    python benchmarks/serve.py --peers PYTHON [--seconds 10] [--rounds 2] [--soak MINUTES]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import provenance

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
LEVELS = (8, 16, 32, 64)                                               # connections that ask at once
BODIES = {"ours": "inputs", "unbatched": "inputs"}


# ---- the load ------------------------------------------------------------------------------------------------------------------------------------


async def _client(port: int, key: str, number: int, until: float, found: list[float], errors: list[str]) -> None:
    """One connection that asks, waits, asks again; a plain stream, so that the generator takes little of the machine."""
    import numpy as np
    import served

    rng = np.random.default_rng([number, time.time_ns() % 2**32])
    reader, writer = None, None
    while time.monotonic() < until:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            text = " ".join(rng.choice(served.WORDS, size=rng.integers(8, 40)))
            body = json.dumps({key: [text] if key == "inputs" or key == "texts" else text}).encode()
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            at = time.monotonic()
            writer.write(head + body)
            assert reader is not None
            answer = await reader.readuntil(b"\r\n\r\n")
            lower = answer.lower()
            if b"content-length:" in lower:
                await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
            else:                                                      # chunked
                while (size := int((await reader.readline()).strip() or b"0", 16)):
                    await reader.readexactly(size + 2)
                await reader.readline()
            status = answer.split(b" ", 2)[1]
            if status == b"200":
                found.append(time.monotonic() - at)
            else:
                errors.append(status.decode())
            if b"connection: close" in lower:
                writer.close()
                writer = None
        except (OSError, asyncio.IncompleteReadError) as error:
            errors.append(type(error).__name__)
            if writer is not None:
                writer.close()
            writer = None
            await asyncio.sleep(0.05)


def generate(port: int, key: str, connections: int, seconds: float) -> dict[str, Any]:
    """Latencies and failures of a closed loop (run in this process)."""
    found: list[float] = []
    errors: list[str] = []

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_client(port, key, number, until, found, errors) for number in range(connections)))

    began = time.monotonic()
    asyncio.run(run())
    took = time.monotonic() - began
    found.sort()
    return {"requests": len(found), "errors": sorted(set(errors)), "failed": len(errors), "per_second": len(found) / took,
            "p50_ms": 1e3 * found[len(found) // 2] if found else None, "p99_ms": 1e3 * found[int(0.99 * (len(found) - 1))] if found else None}


def loaded(port: int, key: str, connections: int, seconds: float) -> dict[str, Any]:
    """`generate` in a process of its own."""
    words = [sys.executable, __file__, "--generate", str(port), key, str(connections), str(seconds)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=seconds + 120).stdout)


# ---- servers -------------------------------------------------------------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found


def cpu(pid: int) -> float:
    """CPU seconds of a process tree, of children that ended too."""
    total = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Resident bytes of a process tree."""
    total = 0
    for one in tree(pid):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except OSError:
            pass
    return total * os.sysconf("SC_PAGE_SIZE")


class Served:
    """A server that was started, and answers."""

    def __init__(self, kind: str, python: str, folder: Path, work: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.kind, self.key = kind, BODIES.get(kind, "text")
        ours = [python, "-m", "fourfold", "serve", str(folder), "--port", str(self.port), "--cache", "0", "--workers", "2"]
        words = {"ours": ours, "unbatched": [*ours, "--no-batching"]}.get(kind, [python, str(HERE / "_serve_peers.py"), kind, str(folder),
                                                                                 str(self.port)])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(HERE.parent),
               "BENTOML_DO_NOT_TRACK": "true", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        self.log = (work / f"{kind}.log").open("w")
        self.process = subprocess.Popen(words, env=env, stdout=self.log, stderr=self.log, start_new_session=True)
        if kind == "bentoml":
            self.key = "texts"
        end = time.monotonic() + 300
        while True:
            try:
                self.ask("word1 word2")
                return
            except Exception:
                if time.monotonic() > end or self.process.poll() is not None:
                    self.stop()
                    raise RuntimeError(f"{kind} did not start; see {self.log.name}") from None
                time.sleep(0.3)

    def ask(self, text: str) -> bytes:
        """One answer."""
        body = json.dumps({self.key: [text] if self.key != "text" else text}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/predict", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    def measured(self, connections: int, seconds: float) -> dict[str, Any]:
        """A closed loop of so many connections, with the CPU that the server took."""
        before = cpu(self.process.pid)
        found = loaded(self.port, self.key, connections, seconds)
        used = cpu(self.process.pid) - before
        return {"server": self.kind, "connections": connections, **found, "cpu_ms": 1e3 * used / max(1, found["requests"])}

    def stop(self) -> None:
        """End it and all that it started."""
        pids = tree(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                pass
        for pid in pids:                                               # the server's own tree, as it was before it was told to end
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()


def models(work: Path) -> tuple[Path, Path]:
    """(the original's folder, the cheaper artefact), made once."""
    import served
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    original, cheap = work / "original", work / "cheap"
    if not cheap.exists():
        def net(layers: int) -> Any:
            torch.manual_seed(0)
            size = BertConfig(vocab_size=len(served.tokenizer()), hidden_size=384, num_hidden_layers=layers, num_attention_heads=12,
                              intermediate_size=1536, max_position_embeddings=128, num_labels=3, id2label={i: f"class {i}" for i in range(3)})
            return BertForSequenceClassification(size).eval()

        net(6).save_pretrained(original)
        served.tokenizer(128).save_pretrained(original)
        served.saved(cheap, [served.part(work / "files", "onnxruntime", "int8", net=net(3), read=served.tokenizer(128))])
    return original, cheap


# ---- what is asked -------------------------------------------------------------------------------------------------------------------------------


def race(args: argparse.Namespace, original: Path, cheap: Path) -> dict[str, Any]:
    """Every server at every level, one at a time, `rounds` times in turn; then the highest level of each that keeps the original's p99."""
    rows, failures = [], {}
    kinds = [kind for kind in args.servers.split(",") if kind in ("ours", "unbatched") or args.peers]
    for number in range(args.rounds):
        for kind in kinds:
            python = str(args.peers or sys.executable)
            try:
                server = Served(kind, python, original if kind == "original" else cheap, args.work)
            except RuntimeError as error:
                failures[kind] = str(error)
                continue
            try:
                loaded(server.port, server.key, 8, min(2.0, args.seconds))
                for level in LEVELS:
                    rows.append({"round": number, **server.measured(level, args.seconds)})
                    print({key: round(value, 2) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
            finally:
                server.stop()
    return {"rows": rows, "failures": failures, "summary": summary(rows)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At the p99 of the original with 8 connections (its least): the best level of each server, medians over rounds."""
    def median(kind: str, level: int, name: str) -> float:
        values = [row[name] for row in rows if row["server"] == kind and row["connections"] == level and row[name] is not None]
        return statistics.median(values) if values else float("inf")

    kinds = list(dict.fromkeys(row["server"] for row in rows))
    base = "original" if "original" in kinds else kinds[0]
    bound = median(base, LEVELS[0], "p99_ms")
    found = []
    for kind in kinds:
        level = max((level for level in LEVELS if median(kind, level, "p99_ms") <= bound), key=lambda level: median(kind, level, "per_second"),
                    default=LEVELS[0])
        found.append({"server": kind, "connections": level,
                      **{name: median(kind, level, name) for name in ("per_second", "p50_ms", "p99_ms", "cpu_ms")},
                      "within": median(kind, level, "p99_ms") <= bound})
    reference = {row["server"]: row for row in found}
    for row in found:
        row["times_original"] = row["per_second"] / reference[base]["per_second"]
        row["cpu_share"] = row["cpu_ms"] / reference[base]["cpu_ms"]
    return found


def killed(args: argparse.Namespace, cheap: Path) -> dict[str, Any]:
    """kill -9 of a worker, three times, under 32 connections: what failed and how."""
    server = Served("ours", str(args.peers or sys.executable), cheap, args.work)
    try:
        load = subprocess.Popen([sys.executable, __file__, "--generate", str(server.port), server.key, "32", "12"], stdout=subprocess.PIPE, text=True)
        kills = 0
        for _ in range(3):
            time.sleep(3)
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/model", timeout=30) as answer:
                workers = json.load(answer)["workers"]
            with contextlib.suppress(ProcessLookupError):              # gone since it was asked: ended by the server itself
                os.kill(next((one["pid"] for one in workers if one["busy"]), workers[0]["pid"]), signal.SIGKILL)
                kills += 1
        found = json.loads(load.communicate(timeout=120)[0])
    finally:
        server.stop()
    return {"kills": kills, **found}


def soaked(args: argparse.Namespace, cheap: Path) -> dict[str, Any]:
    """Minutes at about 70 % of what 32 connections reach: memory every tenth, failures."""
    server = Served("ours", str(args.peers or sys.executable), cheap, args.work)
    try:
        whole = server.measured(32, args.seconds)
        each = max(1.0, 6.0 * args.soak)
        rows = []
        for _ in range(10):
            found = server.measured(max(1, round(0.35 * LEVELS[1])), each)
            rows.append({"minutes": len(rows) * each / 60, "bytes": memory(server.process.pid), "failed": found["failed"],
                         "share": found["per_second"] / whole["per_second"]})
            print(rows[-1], flush=True)
    finally:
        server.stop()
    return {"minutes": args.soak, "rows": rows, "growth": rows[-1]["bytes"] / rows[1]["bytes"] - 1, "failed": sum(row["failed"] for row in rows)}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peers", type=Path, help="Python with fastapi, httptools, litserve and bentoml; ours runs in it too")
    parser.add_argument("--servers", default="original,ours,unbatched,fastapi,litserve,bentoml")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each loop")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--soak", type=float, default=0.0, help="minutes")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "serve")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serve.json")
    parser.add_argument("--generate", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate:
        port, key, connections, seconds = args.generate
        print(json.dumps(generate(int(port), key, int(connections), float(seconds))))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    original, cheap = models(args.work)
    results: dict[str, Any] = {"race": race(args, original, cheap), "killed": killed(args, cheap)}
    if args.soak:
        results["soak"] = soaked(args, cheap)
    print(json.dumps({"summary": results["race"]["summary"], "killed": results["killed"], "failures": results["race"]["failures"]}, indent=1))
    files = {"cheap": cheap / "manifest.json", "original": original / "config.json"}
    provenance.publish(args.out, {**results, "about": provenance.facts(args, [0], files)})


if __name__ == "__main__":
    main()
