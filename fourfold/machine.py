"""What the work runs on: the processor, what it can do, and how much of it this process may use. Frozen data; files beside it hold stated power.

`machines/*.toml`: one file a processor family, each figure with its source and grade.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.units import Quantity

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
class Machine:
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

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flags": sorted(self.flags), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Raises InputError where a field is missing."""
        try:
            fields = {name: data[name] for name in ("name", "model", "arch", "os", "cores", "memory")}
            return cls(**fields, flags=frozenset(data["flags"]))
        except KeyError as error:
            raise InputError(f"A stored machine lacks the field {error}.", "Race it again on this machine: fourfold race FOLDER") from None

    def __str__(self) -> str:
        return f"{self.name}, {self.cores} cores, {self.memory / 2**30:.1f} GiB, {self.os}"


@functools.cache
def here() -> Machine:
    """The machine this process runs on, read once."""
    return read(Path("/proc"), Path("/sys/fs/cgroup"))


def read(proc: Path, cgroup: Path) -> Machine:
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
    return Machine(" ".join(name.split()), model, platform.machine() or "unknown", f"{platform.system()} {platform.release()}",
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
    """Every row of `machines/*.toml`, in name order; the generic row last."""
    rows = []
    for file in sorted(resources.files("fourfold").joinpath("machines").iterdir(), key=lambda file: (file.name == "generic.toml", file.name)):
        if file.name.endswith(".toml"):
            data = tomllib.loads(file.read_text(encoding="utf-8"))
            busy, idle = (Quantity(**data[name], unit="W", source=data["source"], method=f"stated power of {data['title']}")
                          for name in ("busy", "idle"))
            rows.append(Power(data["title"], tuple(data["match"]), busy, idle))
    return tuple(rows)


def power(machine: Machine) -> Power:
    """The row whose pattern fits `machine`, or else the generic one."""
    text = f"{machine.model} | {machine.name}"
    return next(row for row in powers() if any(re.search(pattern, text) for pattern in row.match))
