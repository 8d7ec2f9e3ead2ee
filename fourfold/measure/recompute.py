"""From raw readings to joules: a pure function, so that a stored run can be worked out again and a later model can restate it.

With a host meter      dynamic = (E_host − P_idle · t) · cpu_job / cpu_all        idle = P_idle · t · reserved share
Without one            dynamic = cpu_job · (W_busy − W_idle)                      idle = W_idle · (reserved cores · t, or cpu_job)
Memory                 bytes held · t · W/GB, or the job's part of a memory counter by bytes held
Disk                   bytes moved · J/GB
GPU                    the counters of the GPUs that the job's processes were on

A job that is confined to some cores (affinity, control group, `reserve`) has reserved them and is charged their idle power all the time, as SCI
(ISO/IEC 21031) counts it; any other job is charged the idle power of the cores while it keeps them busy, so that shares never add up to more
than the host. A component that neither a meter nor a model can tell is None with a reason, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fourfold.errors import InputError
from fourfold.measure.counter import COMPONENTS
from fourfold.measure.meters import disk, memory
from fourfold.units import Quantity, total

_SHARE_ERROR = 0.15                                                    # half-width of the 90 % interval of a share by CPU time, relative
_HELD_ERROR = 0.5                                                      # and of a share of memory power by bytes held
_MOST_GAPS = 0.2                                                       # of a window without samples: a sampled meter has not seen the work


@dataclass
class Charge:
    """What a window is charged. `energy`: component → joules or None; `why`: why not, and of each meter why it was not used; `host`: the whole
    host's joules (None unless a meter read them and this process is the one to report them); `devices`: joules of all GPUs, whoever was on
    them; `notes`: what a reader should know, in sentences.
    """

    wall: float = 0.0
    cpu: Quantity | None = None
    energy: dict[str, Quantity | None] = field(default_factory=lambda: dict.fromkeys(COMPONENTS))
    why: dict[str, str] = field(default_factory=dict)
    host: Quantity | None = None
    devices: Quantity | None = None
    total: Quantity | None = None
    co2e: Quantity | None = None
    cost: Quantity | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The figures of a ledger row."""
        def plain(figure: Quantity | None) -> dict[str, object] | None:
            return figure.to_json() if figure else None

        return {"wall_s": self.wall, "cpu": plain(self.cpu), "energy": {name: plain(self.energy[name]) for name in COMPONENTS}, "why": self.why,
                "host_j": plain(self.host), "total_j": plain(self.total), "co2e": plain(self.co2e), "cost_usd": plain(self.cost), "notes": self.notes}


def recompute(readings: Sequence[Mapping[str, object]]) -> Charge:
    """The figures that follow from a window's raw readings. The same readings give the same figures, anywhere and at any time.

    Raises InputError where the readings of a window, its CPU time or its model are missing.
    """
    read = _Readings(readings)
    charge = Charge(read.window["wall_s"], notes=_notes(read))
    charge.cpu = _cpu(read, charge)
    gpus = _gpus(read, charge)
    host = _host(read, charge)
    if host is not None:
        _from_host(read, charge, host, gpus)
    else:
        _from_model(read, charge)
    _memory(read, charge, host)
    _disk(read, charge, host)
    _totals(read, charge)
    return charge


def differences(row: Mapping[str, Any], tolerance: float = 1e-9) -> list[str]:
    """Where a ledger row's figures are not what its own readings give, in sentences; [] = they agree to `tolerance`, relative."""
    if row.get("kind") != "run" or not row.get("readings"):
        return []
    made, found = recompute(row["readings"]).to_json(), []
    pairs = [(name, row.get(name), made[name]) for name in ("total_j", "co2e", "cost_usd")]
    pairs += [(name, (row.get("energy") or {}).get(name), made["energy"][name]) for name in COMPONENTS]
    for name, stored, ours in pairs:
        if (stored is None) != (ours is None):
            words = ["none" if figure is None else f"{figure['value']:.10g}" for figure in (stored, ours)]
            found.append(f"{name} is {words[0]}, and its readings give {words[1]}")
        elif stored is not None and ours is not None:
            for end in ("value", "low", "high"):
                if abs(stored[end] - ours[end]) > tolerance * max(abs(ours[end]), 1e-12):
                    found.append(f"{name}: {end} is {stored[end]:.10g} {stored['unit']}, and its readings give {ours[end]:.10g}")
                    break
    return found


class _Readings:
    """The rows of a reading by kind."""

    def __init__(self, readings: Sequence[Mapping[str, object]]) -> None:
        kinds: dict[str, Any] = {}
        self.meters: list[Mapping[str, Any]] = []
        for row in readings:
            if row.get("kind") == "meter":
                self.meters.append(row)
            else:
                kinds[str(row.get("kind"))] = row
        missing = [kind for kind in ("window", "cpu", "model") if kind not in kinds]
        if missing:
            raise InputError(f"These are not the readings of a window: {', '.join(missing)} missing.",
                             "Give the `readings` of a ledger row as stored.")
        self.window, self.work, self.model = kinds["window"], kinds["cpu"], kinds["model"]
        self.memory, self.disk = kinds.get("memory", {"why": "nobody read it"}), kinds.get("disk", {"why": "nobody read it"})
        self.site = kinds.get("site")

    @property
    def share(self) -> float:
        """The part of its time that a window is charged, where others overlapped it."""
        return 1.0 - self.window.get("elsewhere_s", 0.0) / self.window["wall_s"] if self.window["wall_s"] > 0 else 1.0


# ---- parts ---------------------------------------------------------------------------------------------------------------------------------------


def _notes(read: _Readings) -> list[str]:
    window, found = read.window, []
    if window.get("overlap"):
        found.append(f"Overlaps {', '.join(window['overlap'])} in one process: CPU time is the process's, so what ran meanwhile is shared equally.")
    if abs(window.get("step_s", 0.0)) > 0.5:
        found.append(f"The calendar clock was set by {window['step_s']:+.1f} s meanwhile; durations are from the monotonic clock.")
    if window.get("slept_s", 0.0) > 0.5:
        found.append(f"The computer slept for {window['slept_s']:.0f} s, which are not in the wall time.")
    if window.get("gaps_s", 0.0) > 0:
        found.append(f"No sample was taken for {window['gaps_s']:.1f} s in all (stopped, or starved): memory there is interpolated.")
    if count := len(read.work["left"]) if "left" in read.work else read.work.get("living_end"):
        names = Counter(read.work.get("left", ()))
        called = ", ".join(f"{times} × {name}" if times > 1 else name for name, times in names.most_common(5)) + (" …" if len(names) > 5 else "")
        found.append(f"{count} of the processes that it started outlived it{f' ({called})' if names else ''}: "
                     f"what {'it' if count == 1 else 'they'} did after the window's end is not counted. To count all of it, wait for "
                     f"{'it' if count == 1 else 'them'} (in a shell: wait).")
    if read.work.get("unseen", 0) > 0:
        count = read.work["unseen"]
        found.append(f"{count} process{'es' * (count > 1)} ended with nobody waiting for {'them' if count > 1 else 'it'}: what "
                     f"{'they' if count > 1 else 'it'} did after the last sample is unknown.")
    found += [f"{what}: {why}" for what, why in read.work.get("why", {}).items()]
    return found


def _cpu(read: _Readings, charge: Charge) -> Quantity | None:
    work = read.work
    if work.get("start") is None or work.get("end") is None:
        charge.why["cpu"] = work.get("reason", "CPU time could not be read")
        return None
    seconds = max(0.0, sum(work["end"].values()) - sum(work["start"].values()) - work.get("elsewhere_s", 0.0))
    ticks = [2 * work["tick_s"] * work[count] for count in ("living_start", "living_end")]
    missed = max(0, work.get("unseen", 0)) * work.get("period_s", 0.0)
    return Quantity(seconds, "s", "counted", low=max(0.0, seconds - ticks[0]), high=seconds + ticks[1] + missed, boundary="process",
                    method=f"CPU time of the {work['scope']}", source=f"clock ticks of window {read.window['id']}" if any(ticks) or missed else "")


def _joules(meter: Mapping[str, Any], covers: Sequence[str]) -> dict[str, float]:
    """Counter name → joules between both ends."""
    ends = {count["name"]: count for count in meter["end"]}
    return {count["name"]: _at(ends[count["name"]]) - _at(count) for count in meter["start"] if count["covers"] in covers and count["name"] in ends}


def _at(count: Mapping[str, Any]) -> float:
    return (count["raw"] + count["wraps"] * count["reach"]) * count["scale"]


def _dead(meter: Mapping[str, Any], read: _Readings, covers: Sequence[str]) -> str | None:
    """Why a meter's reading is not the whole of the window."""
    if meter.get("why"):
        return meter["why"]
    joules = sum(_joules(meter, covers).values())
    if joules < 0:
        return "its counter ran backwards"
    if joules == 0 and read.window["wall_s"] > 0:
        return "its counter did not move: the window is too short for it, or the counter is not real"
    if read.window["wall_s"] > 0 and meter.get("gaps_s", 0.0) > _MOST_GAPS * read.window["wall_s"]:
        return f"it was not sampled for {meter['gaps_s']:.1f} s of {read.window['wall_s']:.1f} s"
    return None


def _measured(meter: Mapping[str, Any], joules: float, of: str = "") -> Quantity:
    doubt, error = meter.get("doubt_j", 0.0), meter["error"]
    spread = (doubt**2 + (error * joules) ** 2) ** 0.5
    return Quantity(joules, "J", meter["grade"], low=max(0.0, joules - spread), high=joules + spread, method=meter["method"] + of,
                    source=f"meter {meter['name']}", boundary=meter["boundary"])


def _host(read: _Readings, charge: Charge) -> Mapping[str, object] | None:
    """The meter that has seen the processors, or the whole computer, from end to end; the first that has."""
    chosen = None
    for meter in read.meters:
        if meter["boundary"] != "host":
            continue
        why = _dead(meter, read, ("cpu", "host"))
        if why is None and chosen is not None:
            why = f"not used: {chosen['name']} counts the same processors, and nothing is added twice"
        if why is not None:
            charge.why[meter["name"]] = why
        else:
            chosen = meter
    return chosen


def _whole(host: Mapping[str, Any] | None) -> bool:
    """Whether a host meter counts the whole computer, memory and disks and GPUs included."""
    return host is not None and any(count["covers"] == "host" for count in host["start"])


def _power(read: _Readings) -> tuple[Quantity, Quantity] | None:
    """(W per busy core, W per core at rest), or None where the model was declined."""
    model = read.model
    return None if model.get("declined") else (Quantity.from_json(model["busy"]), Quantity.from_json(model["idle"]))


def _from_host(read: _Readings, charge: Charge, host: Mapping[str, Any], gpus: Quantity | None) -> None:
    wall, model = read.window["wall_s"], read.model
    joules = _measured(host, sum(_joules(host, ("cpu", "host")).values()))
    if _whole(host) and gpus is not None:
        rest = joules - gpus.at("host", "all GPUs, in the computer's own figure")
        joules = rest if rest.value > 0 else joules
    if host.get("writer", True):
        charge.host = _measured(host, sum(_joules(host, ("cpu", "host", "memory")).values()))
    else:
        charge.why["host"] = host.get("writer_why", "another process reports the host's energy")
    all_cpu = (read.work["host_end"] - read.work["host_start"]) if read.work.get("host_start") is not None else None
    if charge.cpu is None or all_cpu is None:
        charge.why[host["name"]] = "it counts the whole host, and the job's share of its CPU time cannot be told here"
        _from_model(read, charge)
        return
    power = _power(read)
    resting = _resting(host, joules, wall, power[1] * model["host_cores"] if power else None)
    cpu = charge.cpu.value
    share = min(1.0, cpu / max(all_cpu, cpu)) if cpu > 0 else 0.0
    exact = share > 0.995 or share == 0.0
    portion = Quantity(share, "1", "counted") if exact else Quantity(
        share, "1", "modelled", low=share * (1 - _SHARE_ERROR), high=min(1.0, share * (1 + _SHARE_ERROR)), method="share of the host's CPU time",
        source=f"share by CPU time of window {read.window['id']}")
    dynamic = joules - resting
    if dynamic.value < 0:
        dynamic = Quantity(0.0, "J", "modelled", low=0.0, high=max(0.0, dynamic.bounds[1]), boundary="host", method=dynamic.method)
    charge.energy["cpu_dynamic"] = replace(dynamic * portion, method=f"({joules.method} − idle) × {share:.1%} of the host's CPU time").at("process")
    cores = model["host_cores"]
    part, words = ((model["reserved"] / cores * read.share, f"{model['reserved']:g} of {cores} cores reserved ({model['reserved_why']})")
                   if model.get("reserved") else (min(1.0, cpu / (cores * wall)) if wall else 0.0, "of the cores it kept busy: it has reserved none"))
    charge.energy["cpu_idle"] = replace(resting * part, method=f"idle power × time, {words}").at("process")


def _resting(host: Mapping[str, Any], joules: Quantity, wall: float, stated: Quantity | None) -> Quantity:
    """What the host draws at rest, over the window: as stated, but never more than the least it was seen to draw."""
    mean = joules.value / wall if wall > 0 else 0.0
    least = min(mean, host["lowest_w"]) if host.get("lowest_w") is not None else mean
    time = Quantity(wall, "s", "measured")
    if stated is not None and stated.value <= least:
        return (stated * time).at("host", "stated idle power")
    seen = Quantity(least, "W", "modelled", low=least / 2, high=least, boundary="host", source=f"least power seen by {host['name']}",
                    method="the least power seen in the window; at rest it is at most that")
    return seen * time


def _from_model(read: _Readings, charge: Charge) -> None:
    power = _power(read)
    if power is None:
        reason = "no meter read it from end to end, and the model was declined"
    elif charge.cpu is None:
        reason = charge.why.get("cpu", "CPU time could not be read")
    else:
        busy, idle = power
        title, reserved, wall = read.model["title"], read.model.get("reserved"), read.window["wall_s"]
        above = busy - idle
        charge.energy["cpu_dynamic"] = replace(
            above * charge.cpu, grade="modelled",
            method=f"CPU time × ({busy.value:g} − {idle.value:g}) W per busy core ({title}, {busy.grade})")
        held = Quantity(reserved * wall * read.share, "s", "counted", boundary="process") if reserved else charge.cpu
        words = f"{reserved:g} cores reserved ({read.model['reserved_why']}) × time" if reserved else "CPU time (no cores are reserved)"
        charge.energy["cpu_idle"] = replace(
            idle * held, grade="modelled", method=f"{words} × {idle.value:g} W per core at rest ({title}, {idle.grade})")
        return
    charge.why["cpu_dynamic"] = charge.why["cpu_idle"] = reason


def _gpus(read: _Readings, charge: Charge) -> Quantity | None:
    """Charge the GPUs that the job is on; the joules of all of them, for a meter that counts them too."""
    reason, everything = "there is no GPU meter", None
    for meter in read.meters:
        if meter["boundary"] != "device":
            continue
        dead = _dead(meter, read, ("gpu",))
        if dead is not None:
            charge.why[meter["name"]] = reason = dead
            continue
        joules = _joules(meter, ("gpu",))
        everything = charge.devices = _measured(meter, sum(joules.values()))
        users = meter.get("users")
        if users is None:
            charge.energy["gpu"] = everything.at("process", "every GPU in full: nobody tells whose processes are on them")
        else:
            mine = {name: users[name]["others"] for name in joules if users.get(name, {}).get("ours")}
            left = sorted(set(joules) - set(mine))
            if left:
                idle = sum(joules[name] for name in left)
                charge.notes.append(f"{', '.join(left)}: no process of the job was on it; {idle:.4g} J are not charged.")
            parts = [_shared(meter, name, joules[name], others) for name, others in mine.items()]
            charge.energy["gpu"] = total(parts) if parts else None
            if not parts:
                charge.why["gpu"] = "no process of the job was seen on a GPU"
        return _overlapped(read, charge, everything)
    charge.why["gpu"] = reason
    return None


def _overlapped(read: _Readings, charge: Charge, everything: Quantity) -> Quantity:
    gpu = charge.energy["gpu"]
    if gpu is not None and read.share < 1.0:
        charge.energy["gpu"] = gpu * read.share
    return everything


def _shared(meter: Mapping[str, object], name: str, joules: float, others: int) -> Quantity:
    if not others:
        return _measured(meter, joules, f", {name} in full").at("process")
    return Quantity(joules / (1 + others), "J", "modelled", low=0.0, high=joules, boundary="process", source=f"equal shares of {name}",
                    method=f"{meter['method']}, {name} in {1 + others} equal shares: so many processes were on it")


def _memory(read: _Readings, charge: Charge, host: Mapping[str, object] | None) -> None:
    held = read.memory
    if _whole(host):
        charge.why["memory"] = f"inside the figure of {host['name'] if host else ''}, which counts the whole computer"
        return
    if held.get("byte_seconds") is None:
        charge.why["memory"] = held.get("why", "the memory held is unknown")
        return
    byte_seconds = max(0.0, held["byte_seconds"] - held.get("elsewhere", 0.0))
    counted = _joules(host, ("memory",)) if host else {}
    if counted and held.get("host_byte_seconds"):
        share = min(1.0, byte_seconds / held["host_byte_seconds"])
        part = Quantity(share, "1", "modelled", low=share * (1 - _HELD_ERROR), high=min(1.0, share * (1 + _HELD_ERROR)),
                        method="share of the memory in use", source=f"share by bytes held of window {read.window['id']}")
        assert host is not None
        charge.energy["memory"] = (_measured(host, sum(counted.values()), ", memory") * part).at("process")
    elif _power(read) is None:
        charge.why["memory"] = "no meter counts it, and the model was declined"
    else:
        charge.energy["memory"] = memory.modelled(byte_seconds)


def _disk(read: _Readings, charge: Charge, host: Mapping[str, object] | None) -> None:
    moved = read.disk
    if _whole(host):
        charge.why["disk"] = f"inside the figure of {host['name'] if host else ''}, which counts the whole computer"
    elif moved.get("start") is None or moved.get("end") is None:
        charge.why["disk"] = moved.get("why", "the bytes moved are unknown")
    elif _power(read) is None:
        charge.why["disk"] = "no meter counts it, and the model was declined"
    else:
        count = max(0.0, sum(moved["end"]) - sum(moved["start"]) - moved.get("elsewhere", 0.0))
        charge.energy["disk"] = disk.Drive(**read.model["drive"]).modelled(count)


def _totals(read: _Readings, charge: Charge) -> None:
    parts = [part for part in charge.energy.values() if part is not None]
    if not parts:
        charge.why["total"] = "no component could be told: " + "; ".join(dict.fromkeys(charge.why.values()))
    else:
        charge.total = total(parts)
    site = read.site
    if site is None:
        charge.why["co2e"] = charge.why["cost"] = "no site was given"
    elif charge.total is None:
        charge.why["co2e"] = charge.why["cost"] = "there are no joules to price"
    else:
        hall = charge.total.at("", "") * Quantity.from_json(site["pue"]).at("")
        charge.co2e = (hall * Quantity.from_json(site["intensity"]).at("")).at("hall", f"joules × PUE × intensity of {site['id']}")
        if site.get("price"):
            charge.cost = (hall * Quantity.from_json(site["price"]).at("")).at("hall", f"joules × PUE × price at {site['id']}")
        else:
            charge.why["cost"] = (site.get("why") or {}).get("price", f"no price is known for {site['id']}")
