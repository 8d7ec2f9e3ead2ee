"""What this machine can and cannot measure, and why: every meter, every counter and the power model, each with its grade."""

from __future__ import annotations


def survey() -> list[dict[str, object]]:
    """A row each: `name`, `tells` (what), `boundary`, `grade`, `available`, and `why` not, or how where it is."""
    return [*_meters(), *_counters(), *_models()]


def _row(name: str, tells: str, boundary: str, grade: str, missing: str | None, how: str = "") -> dict[str, object]:
    facts = {"name": name, "tells": tells, "boundary": boundary, "grade": grade}
    return {**facts, "available": missing is None, "why": how if missing is None else missing}


def _meters() -> list[dict[str, object]]:
    from fourfold.measure.meter import known
    from fourfold.measure.meters.nvml import NvmlPower

    tells = {"rapl": "joules of processors and memory", "hwmon": "joules of processors or computer", "battery": "joules of the computer",
             "nvml": "joules of GPUs", "nvml-power": "joules of GPUs, by sampled power"}
    meters = {meter.name: meter for meter in known()}
    meters.setdefault("nvml-power", NvmlPower())
    rows = [_row(name, tells.get(name, "joules"), meter.boundary, meter.grade, meter.available(), f"{meter.method}; ±{meter.error:.0%}")
            for name, meter in meters.items()]
    return [*rows, _row("external", "joules of the computer, at the wall", "host", "measured",
                        "only you know whether there is one: give its CSV (fourfold meter --wall FILE)")]


def _counters() -> list[dict[str, object]]:
    from fourfold.measure.meters.cgroup import Cgroup
    from fourfold.measure.meters.memory import in_use
    from fourfold.measure.process_tree import Tree, host_cpu

    used, group = Tree().take(walk=True), Cgroup()
    shown = [("cpu time", "CPU seconds of the process and ended children", "process", None, "process_time and RUSAGE_CHILDREN"),
             ("live children", "CPU seconds of children nobody waited for", "process", used.why.get("children"), "walk of /proc"),
             ("memory held", "bytes held by the process tree", "process", used.why.get("memory"), "/proc/PID/statm, shared pages once"),
             ("disk bytes", "bytes that reached storage", "process", used.why.get("disk"), "/proc/PID/io"),
             ("cgroup cpu", "CPU seconds of the container", "process", group.available("cpu"), "cpu.stat or cpuacct.usage"),
             ("cgroup memory", "bytes held by the container", "process", group.available("memory"), "memory.current or usage_in_bytes"),
             ("host cpu", "CPU seconds of everybody, for shares", "host", None if host_cpu() is not None else "no /proc/stat", "/proc/stat"),
             ("host memory", "bytes in use by everybody, for shares", "host", None if in_use() else "no /proc/meminfo", "/proc/meminfo")]
    return [_row(name, tells, boundary, "counted", missing, how) for name, tells, boundary, missing, how in shown]


def _models() -> list[dict[str, object]]:
    from fourfold.host import here, power
    from fourfold.measure.meters.disk import drive
    from fourfold.measure.meters.memory import HIGH, LOW, WATTS

    row, disk, machine = power(here()), drive(), here()
    busy, idle = (f"{figure.value:g} W [{figure.bounds[0]:g}, {figure.bounds[1]:g}]" for figure in (row.busy, row.idle))
    return [_row("processor model", "joules from CPU seconds", "process", "modelled", None,
                 f"{machine.name}: {busy} a busy core, {idle} at rest; {row.title}, {row.busy.grade}"),
            _row("memory model", "joules from bytes held", "process", "modelled", None, f"{WATTS} W/GB [{LOW}, {HIGH}], published rates"),
            _row("disk model", "joules from bytes moved", "process", "assumed", None,
                 f"{disk.joules:g} J/GB [{disk.low:g}, {disk.high:g}], {disk.kind}")]
