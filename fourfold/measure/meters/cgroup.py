"""What the control group of this process has used: CPU seconds and bytes of memory, versions 2 and 1.

In a container it holds every process of the container and nothing else, those that nobody waited for among them. In the root group it would be the
whole host, so there it is refused. Files: kernel documentation, cgroup-v2 (cpu.stat, memory.current) and cgroup-v1 (cpuacct.usage,
memory.usage_in_bytes).
"""

from __future__ import annotations

import os
from pathlib import Path

from fourfold.errors import InputError
from fourfold.measure.process_tree import Used


class Cgroup:
    """The group's counters; `proc` and `root` stand in for /proc and /sys/fs/cgroup."""

    def __init__(self, proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> None:
        self._cpu = _find(proc, root, "cpu.stat", "cpuacct", "cpuacct.usage")
        self._memory = _find(proc, root, "memory.current", "memory", "memory.usage_in_bytes")

    def available(self, what: str = "cpu") -> str | None:
        """Why the group's "cpu" or "memory" cannot be read here, or None where it can."""
        file = self._cpu if what == "cpu" else self._memory
        if file is None:
            return f"no control group of its own counts the {what} of this process (the root group is the whole host)"
        try:
            value = self.cpu() if what == "cpu" else self.held()
        except (OSError, ValueError) as error:
            return f"{file} cannot be read: {error}"
        return None if value is not None else f"{file} has no counter"

    def cpu(self) -> float | None:
        """CPU seconds of the group since it was made; None where it does not tell. Raises OSError where the file is gone."""
        if self._cpu is None:
            return None
        text = self._cpu.read_text()
        if self._cpu.name == "cpuacct.usage":
            return int(text) / 1e9
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) / 1e6
        return None

    def held(self) -> int | None:
        """Bytes of memory that the group holds now, its page cache included; None where it does not tell. Raises OSError where the file is gone."""
        return int(self._memory.read_text()) if self._memory is not None else None


class Group:
    """The whole group as what a window counts, in place of a process and its children.

    Raises InputError where the group has no CPU counter of its own.
    """

    tick = 0.0
    scope = "control group"

    def __init__(self, group: Cgroup | None = None) -> None:
        self._group = group or Cgroup()
        why = self._group.available("cpu")
        if why is not None:
            raise InputError(f"The control group cannot be metered: {why}.", 'Leave scope at "process".')

    def take(self, walk: bool | None = None, thorough: bool = True) -> Used:
        """What the group used so far."""
        why = {"disk": "the control group's bytes to and from disks are not read"}
        try:
            held = self._group.held()
        except (OSError, ValueError):
            held = None
        if held is None:
            why["memory"] = "the control group does not tell the memory it holds"
        return Used(own=self._group.cpu() or 0.0, read=None, written=None, held=held, why=why)

    def members(self) -> set[int]:
        """The process that asks; the group's others cannot be told from strangers on a GPU."""
        return {os.getpid()}

    def opened(self, prefix: str) -> set[str]:
        """Nothing is known of the files that the group holds open."""
        return set()


def _find(proc: Path, root: Path, second: str, controller: str, first: str) -> Path | None:
    """The counter's file in the group of this process: version 2's name `second`, else version 1's `first` of `controller`."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = None
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        path = path.strip("/")
        if not path or ".." in path.split("/"):
            # "/" is the root group, or a container that cannot see above itself: only there does the group's own folder hold the limits' files.
            inside = root / second if not controllers else root / controller / first
            contained = not controllers and (root / "cgroup.type").exists()
            found = found or (inside if contained and inside.exists() else None)
            continue
        if not controllers:
            file = root / path / second
            found = file if os.path.exists(file) else found
        elif controller in controllers.split(","):
            file = root / controller / path / first
            found = file if os.path.exists(file) else found
    return found
