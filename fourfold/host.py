"""What the work runs on: the processor, what it can do, and how much of it this process may use. Frozen data; files beside it hold stated figures.

`machines/*.toml`: one file a family, each figure with its source and grade: stated power of a core (`powers`), and chips with their peaks, memory and
watts (`chips`). `published` means that the source was looked up, `assumed` that the figure is remembered.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.units import Quantity
from fourfold.units.parse import DIMENSIONS, size_of

_FLAGS = re.compile(r"^(sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|sme(?!p)\w*|bf16|i8mm|neon|FEAT_\w+)$")   # those that kernels choose by
_LIMITS = {                                                            # ONEDNN_MAX_CPU_ISA → what oneDNN may no longer use
    "AVX512_CORE_AMX": (),
    "AVX512_CORE_BF16": ("amx_",),
    "AVX512_CORE_VNNI": ("amx_", "avx512_bf16", "avx512_fp16"),
    "AVX512_CORE": ("amx_", "avx512_bf16", "avx512_fp16", "avx512_vnni"),
    "AVX2_VNNI": ("amx_", "avx512"),
    "AVX2": ("amx_", "avx512", "avx_vnni"),
}


@dataclass(frozen=True)
class Host:
    """One computer as this process sees it.

    `name` is the processor's own; `model` "vendor family/model/stepping"; `flags` the instruction sets that kernels choose by (Linux names: avx2,
    avx512_vnni, avx512_bf16, amx_bf16, amx_int8 …); `cores` the logical cores that this process may use (affinity and cgroup quota respected);
    `memory` the bytes it may use, 0 where the system does not tell.
    """

    name: str
    model: str
    arch: str
    os: str
    cores: int
    memory: int
    flags: frozenset[str]

    def has(self, *flags: str) -> bool:
        """Whether every one of `flags` is there."""
        return self.flags.issuperset(flags)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of all that decides which kernel is fastest; a race stored with another fingerprint is void. Memory is not part of it."""
        facts = [self.name, self.model, self.arch, self.os.split()[0], self.cores, sorted(self.flags)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "flags": sorted(self.flags), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Host:
        """Raises InputError where a field is missing."""
        try:
            fields = {name: data[name] for name in ("name", "model", "arch", "os", "cores", "memory")}
            return cls(**fields, flags=frozenset(data["flags"]))
        except KeyError as error:
            raise InputError(f"A stored machine lacks the field {error}.", "Race it again on this machine: fourfold race FOLDER") from None

    def __str__(self) -> str:
        return f"{self.name}, {self.cores} cores, {self.memory / 2**30:.1f} GiB, {self.os}"


@functools.cache
def here() -> Host:
    """The machine this process runs on, read once."""
    return read(Path("/proc"), Path("/sys/fs/cgroup"))


def read(proc: Path, cgroup: Path) -> Host:
    """The machine that a `/proc` and a cgroup tree describe; where there is none, what the operating system's own tools tell."""
    facts = _cpuinfo(proc / "cpuinfo")
    if not facts and platform.system() == "Darwin":
        facts = _darwin()
    name = facts.get("model name") or facts.get("name") or platform.processor() or platform.machine() or "unknown processor"
    ids = [facts.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping")]
    model = f"{ids[0]} {ids[1]}/{ids[2]}/{ids[3]}" if ids[0] else ":".join(facts.get(key, "") for key in ("CPU implementer", "CPU part")).strip(":")
    words = (facts.get("flags") or facts.get("Features") or "").split()
    hidden = _LIMITS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), ())
    flags = frozenset(word for word in words if _FLAGS.match(word) and not word.startswith(tuple(hidden)))
    return Host(" ".join(name.split()), model, platform.machine() or "unknown", f"{platform.system()} {platform.release()}",
                _cores(proc, cgroup), _memory(proc, cgroup), flags)


def _cpuinfo(path: Path) -> dict[str, str]:
    """The first processor's lines of a Linux cpuinfo, as key → value; empty where there is no such file."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip()}


def _darwin() -> dict[str, str]:
    def ask(*keys: str) -> str:
        done = subprocess.run(["sysctl", "-n", *keys], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    listing = subprocess.run(["sysctl", "hw.optional.arm"], capture_output=True, text=True, check=False).stdout
    features = re.findall(r"hw\.optional\.arm\.(FEAT_\w+): 1", listing)
    intel = ask("machdep.cpu.features", "machdep.cpu.leaf7_features").lower().replace("avx1.0", "avx").split()
    return {"name": ask("machdep.cpu.brand_string"), "flags": " ".join([*features, *intel])}


def _cores(proc: Path, cgroup: Path) -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quotas = []
    for folder in _groups(proc, cgroup, "cpu"):
        words = _words(folder / "cpu.max") or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return max(1, min([allowed, *(int(quota) for quota in quotas)]))   # rounded down: a thread beyond the quota is throttled, not run


def _memory(proc: Path, cgroup: Path) -> int:
    limits = []
    for folder in _groups(proc, cgroup, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdigit()]
    try:
        found = re.search(r"MemTotal:\s+(\d+) kB", (proc / "meminfo").read_text())
        total = int(found[1]) * 1024 if found else 0
    except OSError:
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            total = 0
    return min([total, *limits]) if total else min(limits, default=0)


def _groups(proc: Path, cgroup: Path, controller: str) -> list[Path]:
    """The folders of this process's control group and its parents: version 2, or version 1's for `controller`. A limit anywhere above binds."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    folders = [cgroup, cgroup / controller]
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroup / controller if controllers else cgroup
        parts = [part for part in path.split("/") if part and part != ".."]
        folders += [root.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return folders


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


@dataclass(frozen=True)
class Power:
    """Stated power of one busy logical core of a processor family, as `machines/*.toml` has it. `match` are patterns on "model | name"."""

    title: str
    match: tuple[str, ...]
    busy: Quantity                                                     # W per logical core at full load, its share of idle included
    idle: Quantity                                                     # W per logical core at rest


@functools.cache
def powers() -> tuple[Power, ...]:
    """Every family in `machines/*.toml` with stated power of a core, in name order; the generic row last."""
    rows = []
    for data in _families():
        if "busy" in data:
            busy, idle = (Quantity(**data[name], unit="W", source=data["source"], method=f"stated power of {data['title']}")
                          for name in ("busy", "idle"))
            rows.append(Power(data["title"], tuple(data["match"]), busy, idle))
    return tuple(rows)


def power(machine: Host) -> Power:
    """The row whose pattern fits `machine`, or else the generic one."""
    text = f"{machine.model} | {machine.name}"
    return next(row for row in powers() if any(re.search(pattern, text) for pattern in row.match))


@functools.cache
def _families() -> tuple[dict[str, Any], ...]:
    """The files of `machines/`, in name order; the generic one last."""
    folder = resources.files("fourfold").joinpath("machines")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: (file.name == "generic.toml", file.name))
    return tuple(tomllib.loads(file.read_text(encoding="utf-8")) for file in files)


# ---- chips ---------------------------------------------------------------------------------------------------------------------------------------

_MEASURES = {                                                          # figure → dimension, unit of its Quantity ("": the file's own)
    "tdp": ("power", "W"), "system": ("power", "W"), "chip": ("power", "W"), "memory": ("size", ""), "bandwidth": ("rate", "B/s"),
    "peak": ("speed", "FLOP/s"),
}
_TDP_LOW, _TDP_HIGH = 0.6, 1.15                                        # measured system mean / TDP: TPU v3 0.63, A100 0.7, P100 0.9, V100 1.08
_MAKERS = ("nvidia", "geforce", "tesla", "google", "amd", "instinct", "intel", "habana", "aws", "cloud", "r", "tm")


@dataclass(frozen=True)
class Chip:
    """One processor or accelerator. `peak` and `sparse` are FLOP/s by precision (integers count as FLOP), dense and with 2:4 sparsity apart.

    `bandwidth` B/s of its memory, `memory` its size, `tdp` W, `system` the measured mean W of a system per chip (chip, memory, network, fans, share
    of the host), `chip` the measured mean W of the chip alone. None: no figure; `why` says why not. `cores` of a processor.
    """

    name: str
    title: str
    vendor: str
    kind: str
    year: int
    aliases: tuple[str, ...]
    peak: Mapping[str, Quantity]
    sparse: Mapping[str, Quantity]
    memory: Quantity | None = None
    bandwidth: Quantity | None = None
    tdp: Quantity | None = None
    system: Quantity | None = None
    chip: Quantity | None = None
    cores: int | None = None
    note: str = ""
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def power(self) -> Quantity:
        """Mean W per chip to reckon with: measured system power where published, else the TDP with the interval in which measured means have lain.

        Raises InputError where neither is known.
        """
        if self.system is not None:
            return self.system
        if self.tdp is None:
            raise InputError(f"No power of {self.title} is published: {self.why.get('tdp', 'no figure was found')}.",
                             "Give the mean watts per chip that you measured.")
        return self.stand_in

    @property
    def stand_in(self) -> Quantity:
        """The TDP in place of a measured mean, graded assumed. Raises InputError where it is not known."""
        if self.tdp is None:
            raise InputError(f"{self.title} has no TDP here: {self.why.get('tdp', 'no figure was found')}.", "Give watts instead.")
        watts = self.tdp.value
        return Quantity(watts, "W", "assumed", low=_TDP_LOW * watts, high=_TDP_HIGH * watts, source=f"TDP of {self.title}: {self.tdp.source}",
                        method="TDP in place of a measured mean")

    def to_json(self) -> dict[str, object]:
        data: dict[str, object] = {name: getattr(self, name) for name in ("name", "title", "vendor", "kind", "year", "cores", "note")}
        data |= {"aliases": list(self.aliases), "why": dict(self.why)}
        for name in ("memory", "bandwidth", "tdp", "system", "chip"):
            figure = getattr(self, name)
            data[name] = figure.to_json() if figure is not None else None
        return data | {name: {kind: figure.to_json() for kind, figure in getattr(self, name).items()} for name in ("peak", "sparse")}


@functools.cache
def chips() -> tuple[Chip, ...]:
    """Every chip of `machines/*.toml`, by kind, vendor, year and name."""
    found = [_chip(name, data) for family in _families() for name, data in family.get("chips", {}).items()]
    return tuple(sorted(found, key=lambda chip: (chip.kind, chip.vendor, chip.year, chip.name)))


def chip(name: str) -> Chip:
    """The chip of that name, title or alias: "V100", "TPUv4", "NVIDIA A100-SXM4-80GB" …; case, spaces, dashes and the maker's name do not matter.

    Raises InputError for an unknown one, with the nearest names.
    """
    if not isinstance(name, str):
        raise InputError(f"A chip is a name, got {name!r}.", "Write it as V100 or TPUv4; see: fourfold machines")
    import difflib

    known = _names()
    wanted = _plain(name)
    if wanted in known:
        return known[wanted]
    near = [known[key].name for key in difflib.get_close_matches(wanted, known, n=4, cutoff=0.5)]
    near += [chip.name for key, chip in known.items() if len(wanted) >= 2 and wanted in key]
    offered = ", ".join(list(dict.fromkeys(near))[:6])
    raise InputError(f"There is no chip {name!r} in the table.", (f"Did you mean: {offered}? " if offered else "") + "See: fourfold machines")


@functools.cache
def _names() -> dict[str, Chip]:
    return {_plain(alias): chip for chip in chips() for alias in (chip.name, chip.title, *chip.aliases)}


def _plain(name: str) -> str:
    """Letters and digits of a name, without the maker's: "NVIDIA Tesla V100-SXM2-32GB" → "v100sxm232gb"."""
    words = re.findall(r"[a-z]+|[0-9]+", name.lower())
    return "".join(word for word in words if word not in _MAKERS)


def _chip(name: str, data: Mapping[str, Any]) -> Chip:
    facts: dict[str, Any] = {key: data[key] for key in ("title", "vendor", "kind", "year")}
    facts |= {key: _figure(key, data[key], f"{name}: {key}") for key in ("memory", "bandwidth", "tdp", "system", "chip") if key in data}
    for key in ("peak", "sparse"):
        facts[key] = {kind: _figure("peak", figure, f"{name}: {key} {kind}") for kind, figure in data.get(key, {}).items()}
    return Chip(name=name, **facts, aliases=tuple(data["aliases"]), cores=data.get("cores"), note=data.get("note", ""), why=data.get("why", {}))


def _figure(kind: str, data: Mapping[str, Any], name: str) -> Quantity:
    """A figure of a file. Its error is its own (`name`), not one that all figures of a source share. Raises InputError for another unit."""
    measure, own = _MEASURES[kind]
    unit = own or data["unit"]
    scale = size_of(data["unit"], measure, unit)
    if scale is None:
        raise InputError(f"{name} is in {data['unit']!r}, which is no unit of {measure}.", f"Known: {', '.join(DIMENSIONS[measure].known)}.")
    low, high = (data.get(end, data["value"]) * scale for end in ("low", "high"))
    errors = {name: math.log(high / low) / (2 * 1.6448536269514722)} if low < high else {}
    boundary = {"system": "host", "chip": "device"}.get(kind, "")
    return Quantity(data["value"] * scale, unit, data["grade"], low, high, source=data["source"], boundary=boundary, errors=errors)
