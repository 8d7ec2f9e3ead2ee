"""Energy meters side by side: fourfold, CodeCarbon (machine and process mode) and carbontracker on the same loops, and on known power curves.

    python benchmarks/meters.py [--rounds 7] [--seconds 4] [--work DIR] [--quick]

Each tool runs in a virtual environment of its own under --work (made there with pip where missing), inside the process that does the work, as its
manual shows. Rounds are interleaved, tools in random order.

Loops: most machines have no meter, so what a tool's processor figure is held against is its own statement: the CPU seconds that the loop counted
for itself × the watts per busy core that the same tool assumes. That asks "does it charge the work that was done?", not "are its watts right?".

Curves: with root and `unshare`, a folder of files driven by a known power is mounted over /sys/class in a private namespace, where all tools,
unchanged, look for RAPL. The truth is the integral of the curve between the end of a tool's start and the beginning of its stop.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent
TOOLS = {"fourfold": None, "codecarbon machine": "codecarbon", "codecarbon process": "codecarbon", "carbontracker": "carbontracker"}
LOOPS = ("idle", "one core", "two cores", "memory-bound", "short", "children", "noisy neighbour")
CURVES: dict[str, tuple[Callable[[float], float], str]] = {
    "constant 80 W": (lambda t: 80.0, ""),
    "square 20/140 W": (lambda t: 140.0 if t % 1.7 < 0.85 else 20.0, ""),
    "bursts of 0.3 s": (lambda t: 210.0 if t % 2.0 < 0.3 else 10.0, ""),
    "wraps every 3 s": (lambda t: 100.0, "wrap"),
    "set back midway": (lambda t: 80.0, "reset"),
    "dies midway": (lambda t: 80.0, "death"),
}
STEP = 0.002                                                           # s between writes of the fed counter
JOULES = 3.6e6                                                         # in a kWh


# ---- inside each tool's environment: standard library, and the tool --------------------------------------------------------------------------------


class Fourfold:
    def start(self) -> None:
        from fourfold import Meter

        self.meter = Meter("benchmark").start()

    def stop(self) -> dict[str, Any]:
        use = self.meter.stop()
        model = next(row for row in use.readings if row["kind"] == "model")
        parts = {name: part.value if part else None for name, part in use.energy.items()}
        low, high = use.total.bounds if use.total else (None, None)
        return {"joules": use.total.value if use.total else None, "low": low, "high": high, "parts": parts, "watts": model["busy"]["value"],
                "cpu_joules": sum(parts[name] or 0.0 for name in ("cpu_dynamic", "cpu_idle")), "grade": use.total.grade if use.total else None,
                "host": use.host.value if use.host else None, "why": use.why, "counted": use.cpu}


class CodeCarbon:
    def __init__(self, mode: str) -> None:
        self.mode = mode

    def start(self) -> None:
        from codecarbon import OfflineEmissionsTracker  # type: ignore[import-not-found]

        self.tracker = OfflineEmissionsTracker(country_iso_code="FRA", tracking_mode=self.mode, save_to_file=False, log_level="critical")
        self.tracker.start()

    def stop(self) -> dict[str, Any]:
        self.tracker.stop()
        data = self.tracker.final_emissions_data
        parts = {name: getattr(data, f"{name}_energy") * JOULES for name in ("cpu", "ram", "gpu")}
        tdp = next((getattr(part, "_tdp", None) for part in self.tracker._hardware if type(part).__name__ == "CPU"), None)
        return {"joules": data.energy_consumed * JOULES, "parts": parts, "cpu_joules": parts["cpu"], "host": parts["cpu"],
                "watts": tdp / (os.cpu_count() or 1) if tdp else None, "grade": None}


class CarbonTracker:
    def start(self) -> None:
        from carbontracker.tracker import CarbonTracker as Tracker  # type: ignore[import-not-found]

        self.tracker = Tracker(epochs=3, epochs_before_pred=2, monitor_epochs=2, verbose=0, ignore_errors=True)
        self.tracker.epoch_start()

    def stop(self) -> dict[str, Any]:
        thread = self.tracker.tracker
        tdp = next((getattr(part.handler, "tdp", None) for part in thread.components if part.name == "cpu"), None)
        self.tracker.epoch_end()
        from carbontracker import constants  # type: ignore[import-not-found]

        joules = float(sum(thread.total_energy_per_epoch())) * JOULES
        self.tracker.stop()
        bare = joules / constants.PUE_2023
        return {"joules": joules, "parts": {"cpu": bare, "PUE": joules - bare}, "cpu_joules": bare, "host": bare,
                "watts": 2 * tdp / (os.cpu_count() or 1) if tdp else None, "grade": None}


class Nothing:
    def start(self) -> None:
        pass

    def stop(self) -> dict[str, Any]:
        return {"joules": None}


def tool(name: str) -> Any:
    made = {"fourfold": Fourfold, "codecarbon machine": lambda: CodeCarbon("machine"), "codecarbon process": lambda: CodeCarbon("process"),
            "carbontracker": CarbonTracker, "nothing": Nothing}
    return made[name]()


def burn(seconds: float) -> float:
    """Keep a core busy; the CPU seconds that this thread got."""
    began, end = time.thread_time(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(500))
    return time.thread_time() - began


def threads(seconds: float) -> float:
    block, got = bytes(1 << 20), []

    def hashing() -> None:
        began, end = time.thread_time(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            hashlib.sha256(block)                                          # lets the other thread run
        got.append(time.thread_time() - began)

    workers = [threading.Thread(target=hashing) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(got)


def copying(seconds: float) -> float:
    began, end = time.thread_time(), time.perf_counter() + seconds
    source, target = bytearray(256 << 20), bytearray(256 << 20)
    while time.perf_counter() < end:
        target[:] = source
    del source, target                                                 # giving half a gigabyte back takes time too
    return time.thread_time() - began


def children(seconds: float) -> float:
    def ended() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = ended()
    for _ in range(2):
        code = f"import time\nend = time.perf_counter() + {seconds / 2}\nwhile time.perf_counter() < end: sum(range(500))"
        subprocess.run([sys.executable, "-c", code], check=True)
    return ended() - before


def loop(name: str, seconds: float) -> float:
    """Do the work; the CPU seconds that it counted for itself."""
    if name == "idle":
        time.sleep(seconds)
        return 0.0
    if name == "short":
        return burn(min(0.5, seconds))
    return {"two cores": threads, "memory-bound": copying, "children": children}.get(name, burn)(seconds)


def drive(name: str, work: str, seconds: float, announce: bool) -> None:
    """One run of one tool on one loop, in this process; prints one JSON line."""
    chosen, marks = tool(name), [time.perf_counter()]
    chosen.start()
    if announce:
        print("\nstarted", flush=True)
    marks.append(time.perf_counter())
    own = time.process_time()
    counted = loop(work, seconds)
    own = time.process_time() - own
    marks.append(time.perf_counter())
    found = chosen.stop()
    marks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("\n" + json.dumps({**found, "tool": name, "loop": work, "cpu_s": counted, "wall_s": marks[2] - marks[1], "start_s": marks[1] - marks[0],
                             "stop_s": marks[3] - marks[2], "own_cpu_s": own, "peak_bytes": peak, "marks": marks,
                             "numpy": "numpy" in sys.modules}), flush=True)


# ---- a known curve -------------------------------------------------------------------------------------------------------------------------------


def integral(curve: Callable[[float], float], start: float, end: float) -> float:
    """Joules between two moments, by the midpoint rule at the feed's own step."""
    pieces = max(1, math.ceil((end - start) / STEP))
    width = (end - start) / pieces
    return sum(curve(start + (piece + 0.5) * width) for piece in range(pieces)) * width


def feed(curve: Callable[[float], float], wraps: bool, stop: threading.Event, reset: threading.Event) -> None:
    """Keep a powercap tree under /sys/class up to date until told to stop; set its counter back when told to."""
    root = Path("/sys/class/powercap")
    zone = root / "intel-rapl" / "intel-rapl:0"
    zone.mkdir(parents=True, exist_ok=True)
    for link, target in ((root / "intel-rapl:0", "intel-rapl/intel-rapl:0"), (root / "intel-rapl" / "subsystem", "..")):
        if not link.is_symlink():
            link.symlink_to(target)
    reach = 300_000_000 if wraps else 262_143_328_850
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{reach}\n")
    file = os.open(zone / "energy_uj", os.O_RDWR | os.O_CREAT)
    energy, last = 50e6, time.perf_counter()
    while not stop.is_set():
        now = time.perf_counter()
        energy += integral(curve, last, now) * 1e6
        last = now
        if reset.is_set():
            energy = 0.0
            reset.clear()
        os.pwrite(file, f"{int(energy) % reach:015d}\n".encode(), 0)
        time.sleep(STEP)
    os.close(file)


def curves(pythons: dict[str, str], rounds: int, seconds: float, seed: int) -> None:
    """Inside the private namespace: every tool on every curve; prints a JSON line each."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/class"], check=True)
    order = random.Random(seed)
    for round in range(rounds):
        for name, (curve, fault) in CURVES.items():
            for length in (seconds, 0.5) if not fault else (seconds,):
                for chosen in order.sample(list(pythons), len(pythons)):
                    found = fed(chosen, pythons[chosen], curve, fault, length)
                    print(json.dumps({"round": round, "curve": name, "seconds": length, **found}), flush=True)


def fed(chosen: str, python: str, curve: Callable[[float], float], fault: str, seconds: float) -> dict[str, Any]:
    """One tool on one curve. A fault comes in the middle of its window, which is watched for through the tool's own first line."""
    shutil.rmtree("/sys/class/powercap", ignore_errors=True)
    stop, reset = threading.Event(), threading.Event()
    feeding = threading.Thread(target=feed, args=(curve, fault == "wrap", stop, reset))
    feeding.start()
    time.sleep(0.05)
    child = subprocess.Popen([python, __file__, "--drive", chosen, "idle", str(seconds), "--announce"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True, env=environment(chosen), cwd=tempfile.gettempdir())
    assert child.stdout is not None
    text = ""
    for line in child.stdout:
        text += line
        if line.strip() == "started" and fault in ("reset", "death"):
            time.sleep(seconds / 2)
            if fault == "reset":
                reset.set()
            else:
                Path("/sys/class/powercap/intel-rapl/intel-rapl:0/energy_uj").unlink(missing_ok=True)
    child.wait()
    stop.set()
    feeding.join()
    found = last_json(text)
    if found is None:
        return {"tool": chosen, "failed": f"exit {child.returncode}"}
    truth = integral(curve, found["marks"][1], found["marks"][2])
    return {**{key: found.get(key) for key in ("tool", "host", "joules", "why", "grade", "start_s", "stop_s")}, "truth": truth}


# ---- the race ------------------------------------------------------------------------------------------------------------------------------------


def environment(chosen: str) -> dict[str, str]:
    """No network for anybody, and fourfold from this checkout."""
    extra = {"PYTHONPATH": str(HOME.parent)} if chosen in ("fourfold", "nothing") else {}
    return {**{name: text for name, text in os.environ.items() if name != "PYTHONPATH"}, **extra, "CODECARBON_ALLOW_MULTIPLE_RUNS": "True"}


def last_json(text: str) -> dict[str, Any] | None:
    """The last line of a tool's output that is ours."""
    for line in reversed(text.splitlines()):
        if line.startswith("{") and '"tool"' in line:
            return json.loads(line)
    return None


def interpreters(work: Path) -> dict[str, str]:
    """Tool → its Python; environments that are missing are made, and tools that do not install are left out with a word."""
    found = {}
    for name, package in TOOLS.items():
        folder = work / (package or "fourfold")
        python = folder / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            if package and subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=False).returncode:
                print(f"{package} does not install here; left out", file=sys.stderr)
                shutil.rmtree(folder)
        if python.exists():
            found[name] = str(python)
    return {**found, "nothing": found["fourfold"]}


def one(chosen: str, python: str, work: str, seconds: float) -> dict[str, Any]:
    """One run of a tool, with a neighbour where the loop wants one."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: sum(range(500))"]) if work == "noisy neighbour" else None
    try:
        done = subprocess.run([python, __file__, "--drive", chosen, work, str(seconds)], capture_output=True, text=True, env=environment(chosen),
                              cwd=tempfile.gettempdir(), check=False)
    finally:
        if neighbour:
            neighbour.kill()
            neighbour.wait()
    return last_json(done.stdout) or {"tool": chosen, "loop": work, "failed": (done.stderr or done.stdout)[-300:]}


def interval(values: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median, and a 90 % bootstrap interval of it."""
    from fourfold.measure import bootstrap  # not in the processes of the other meters, which have no fourfold

    return statistics.median(values), *bootstrap.interval(bootstrap.resampled(bootstrap.medians, values, seed=seed))


def shown(values: list[float], form: str = "{:.3g}") -> str:
    middle, low, high = interval(values)
    return f"{form.format(middle)} [{form.format(low)}, {form.format(high)}]"


def reference(row: dict[str, Any]) -> float | None:
    """The CPU seconds that the loop counted × the tool's own watts per busy core; J."""
    return row["cpu_s"] * row["watts"] if row.get("watts") else None


def loops_table(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Loop × tool: what it reports, of which for the processor, and that part's error against its own statement."""
    table = []
    for work in LOOPS:
        for chosen in names:
            mine = [row for row in rows if row["loop"] == work and row["tool"] == chosen and row.get("joules") is not None]
            if not mine:
                continue
            errors = [row["cpu_joules"] / expected - 1 for row in mine if (expected := reference(row)) and row["cpu_s"] > 0.05]
            table.append({
                "loop": work, "tool": chosen, "runs": len(mine), "joules": interval([row["joules"] for row in mine]),
                "watts": interval([row["joules"] / row["wall_s"] for row in mine]), "cpu_joules": interval([row["cpu_joules"] for row in mine]),
                "expected": interval([reference(row) or 0.0 for row in mine]), "watts_a_core": mine[0]["watts"],
                "error": interval(errors) if errors else None, "grade": mine[0].get("grade"),
                "own_interval": [mine[0].get("low"), mine[0].get("high")] if mine[0].get("low") is not None else None})
    return table


def curves_table(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Curve × tool: error of the host's joules against the truth; a refusal is counted as one, not as an error."""
    table = []
    for name in CURVES:
        for seconds in sorted({row["seconds"] for row in rows if row["curve"] == name}, reverse=True):
            for chosen in names:
                mine = [row for row in rows if (row["curve"], row["seconds"], row["tool"]) == (name, seconds, chosen)]
                told = [row for row in mine if row.get("host") is not None]
                if mine:
                    table.append({"curve": name, "seconds": seconds, "tool": chosen, "runs": len(mine), "refused": len(mine) - len(told),
                                  "truth": interval([row["truth"] for row in mine if "truth" in row] or [0.0]),
                                  "error": interval([row["host"] / row["truth"] - 1 for row in told]) if told else None,
                                  "why": next((row["why"].get("rapl") for row in mine if row.get("why") and row["why"].get("rapl")), None)})
    return table


def costs_table(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Start, stop, memory and own CPU time, from the idle loop, beside a bare interpreter."""
    idle = [row for row in rows if row["loop"] == "idle" and "failed" not in row]
    table = []
    for chosen in names:
        mine = [row for row in idle if row["tool"] == chosen]
        if mine:
            table.append({"tool": chosen, "start_s": interval([row["start_s"] for row in mine]), "stop_s": interval([row["stop_s"] for row in mine]),
                          "peak_mb": interval([row["peak_bytes"] / 1e6 for row in mine]), "numpy": mine[0]["numpy"],
                          "cpu_share": interval([row["own_cpu_s"] / row["wall_s"] for row in mine])})
    return table


def tell(document: dict[str, Any]) -> None:
    """The tables, for a reader."""
    def triple(values: Any, form: str = "{:.3g}") -> str:
        return "-" if values is None else f"{form.format(values[0])} [{form.format(values[1])}, {form.format(values[2])}]"

    print("\nLoops: what each reports, and its processor part against counted CPU seconds × its own watts per busy core\n")
    print(f"{'loop':<16}{'tool':<20}{'J':<24}{'W':<22}{'of it processor, J':<24}{'expected':<24}{'error':<24}")
    for row in document["loops"]:
        print(f"{row['loop']:<16}{row['tool']:<20}{triple(row['joules']):<24}{triple(row['watts']):<22}{triple(row['cpu_joules']):<24}"
              f"{triple(row['expected']):<24}{triple(row['error'], '{:+.1%}'):<24}")
    print("\nCurves: error of the host's joules against the truth\n")
    for row in document["curves"] or []:
        said = triple(row["error"], "{:+.2%}") if row["error"] else f"refused: {row['why'] or 'no figure'}"
        print(f"{row['curve']:<18}{row['seconds']:>5g} s  {row['tool']:<20}{said}")
    if not document["curves"]:
        print("not run: it takes root and unshare")
    print("\nCosts: idle loop\n")
    print(f"{'tool':<20}{'start, s':<26}{'stop, s':<26}{'peak memory, MB':<26}{'CPU share of a core':<28}numpy")
    for row in document["costs"]:
        print(f"{row['tool']:<20}{triple(row['start_s']):<26}{triple(row['stop_s']):<26}{triple(row['peak_mb']):<26}"
              f"{triple(row['cpu_share'], '{:.2%}'):<28}{row['numpy']}")


def known_curves(pythons: dict[str, str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The curves, in a private mount namespace; [] where that cannot be had."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        return []
    tools = {name: python for name, python in pythons.items() if name not in ("nothing", "codecarbon process")}
    command = [unshare, "--mount", "--propagation", "private", sys.executable, __file__, "--curves", json.dumps(tools), "--rounds", str(args.rounds),
               "--seconds", str(args.seconds), "--seed", str(args.seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def versions(pythons: dict[str, str]) -> dict[str, str]:
    found = {}
    for package in ("codecarbon", "carbontracker"):
        python = next((pythons[name] for name, needed in TOOLS.items() if needed == package and name in pythons), None)
        if python:
            code = f"from importlib.metadata import version; print(version({package!r}))"
            found[package] = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/meters.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=HOME / "work" / "meters", help="where the tools' environments are")
    parser.add_argument("--quick", action="store_true", help="one short round, only to see that it runs; writes no published figure")
    parser.add_argument("--drive", nargs=3, metavar=("TOOL", "LOOP", "SECONDS"), help=argparse.SUPPRESS)
    parser.add_argument("--announce", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--curves", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(args.drive[0], args.drive[1], float(args.drive[2]), args.announce)
        return 0
    if args.curves:
        curves(args.curves, args.rounds, args.seconds, args.seed)
        return 0
    if args.quick:
        args.rounds, args.seconds = 1, 1.0
    import provenance

    args.work.mkdir(parents=True, exist_ok=True)
    pythons = interpreters(args.work.resolve())
    order, rows = random.Random(args.seed), []
    load = list(os.getloadavg())
    for round in range(args.rounds):
        for work in LOOPS:
            for chosen in order.sample(list(pythons), len(pythons)):
                rows.append({"round": round, **one(chosen, pythons[chosen], work, args.seconds)})
                if "failed" in rows[-1]:
                    print(f"{chosen}, {work}: {rows[-1]['failed']}", file=sys.stderr)
    measured = known_curves(pythons, args)
    names = list(pythons)
    sys.path.insert(0, str(HOME.parent))
    about = provenance.facts(args, [args.seed], more=versions(pythons))
    document = {"about": about | {"load_before": load}, "seed": args.seed, "rounds": args.rounds, "seconds": args.seconds,
                "loops": loops_table(rows, [name for name in names if name != "nothing"]), "curves": curves_table(measured, names),
                "costs": costs_table(rows, names), "runs": rows, "curve_runs": measured}
    tell(document)
    target = (args.work / "quick.json") if args.quick else HOME / "results" / "meters.json"
    provenance.publish(target, document)
    print(f"\n{target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
