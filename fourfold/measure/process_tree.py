"""What a process and all that it started have used: CPU seconds, bytes moved to and from disks, bytes of memory held. Counted, never modelled.

A process that ended and was waited for is in its parent's counters (`cutime`, RUSAGE_CHILDREN); one that is alive is read from /proc; one that ended
without being waited for (its parent ignored SIGCHLD, or died) keeps the last reading. Which of the three it is decides whether a joule is counted
once, twice or never, so every walk of the tree settles it by the parent's counters. Linux; elsewhere psutil reads the living, and `why` says what is
lost.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICK = 1.0 / _TICKS                                                   # s; /proc/PID/stat counts no finer
_PATIENCE = 3                                                          # walks after which a vanished process is surely not going to be waited for
_FORGET = 200                                                          # walks after which every process is looked at anew: numbers are used again
_LIST_SHARE = 0.002                                                    # of elapsed time that may go into listing all processes
_PSS_SHARE = 0.001                                                     # of elapsed time that may go into telling shared pages apart


@dataclass(slots=True)
class Used:
    """Cumulative use of a tree. `own` + `reaped` + `live` + `gone` are its CPU seconds: the root's, of ended and waited-for children, of live
    descendants, of ended ones nobody waited for. `read`, `written`: bytes that reached storage, None with `why` where unreadable. `held`: bytes now.
    """

    own: float = 0.0
    reaped: float = 0.0
    live: float = 0.0
    gone: float = 0.0
    read: int | None = 0
    written: int | None = 0
    held: int | None = 0
    processes: int = 1
    living: int = 0                                                    # descendants that still run; `processes` counts ended ones not yet waited for
    unseen: int = 0                                                    # that ended unwaited for: they may have worked on after the last look
    why: dict[str, str] = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        """CPU seconds in all."""
        return self.own + self.reaped + self.live + self.gone


@dataclass(slots=True)
class _Seen:
    """A descendant as last read."""

    born: int
    parent: int
    own: float
    reaped: float
    held: int
    moved: tuple[int, int] | None
    pss: float = 1.0                                                   # proportional over resident memory, as last found

    @property
    def cpu(self) -> float:
        return self.own + self.reaped


@dataclass(slots=True)
class _Lost:
    """A process that vanished and may yet turn up in its ancestor's counters."""

    cpu: float
    moved: tuple[int, int] | None
    ancestor: int
    age: int = 0


class Tree:
    """The process `root` (default: this one) and all that descends from it.

    `itself` False leaves out the root's own CPU time and memory: what a wrapper charges to the command that it runs. `proc` is where Linux's process
    files are (a folder of plain files stands in for them). Processes are known by number and birth, so that numbers used again are no one's child.
    """

    def __init__(self, root: int | None = None, *, itself: bool = True, proc: Path = Path("/proc")) -> None:
        self.root = os.getpid() if root is None else root
        self.itself = itself
        self.tick = _TICK
        self._proc = str(proc)
        self._mine = root is None or (root == os.getpid() and self._proc == "/proc")
        self._linux = os.path.isdir(f"{self._proc}/{self.root}") or os.path.isdir(f"{self._proc}/self")
        self._seen: dict[int, _Seen] = {}
        self._strangers: set[int] = {self.root}
        self._lost: list[_Lost] = []
        self._gone = 0.0
        self._gone_moved: list[int] | None = [0, 0]                    # None once a part is lost for good
        self._walks = 0
        self._listed: bytes | None = None                              # the newest process when /proc was last listed
        self._list_after = 0.0
        self._unseen = 0
        self._reaped_before: dict[int, float] = {}                     # ancestor → its cutime at the walk before
        self._surplus: dict[int, float] = {}                           # growth of cutime that no vanished process explained, one walk old
        self._lent, self._pss_spent, self._pss_since = 0, 0.0, time.perf_counter()   # bytes of the root that its children's shares hold already
        self._files: dict[str, int] = {}

    # ---- reading files ---------------------------------------------------------------------------------------------------------------------

    def _text(self, path: str) -> bytes:
        file = os.open(f"{self._proc}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, 4096)
        finally:
            os.close(file)

    def _again(self, name: str) -> bytes:
        """A file of the root, kept open: a third of the cost of opening it each time."""
        if name not in self._files:
            self._files[name] = os.open(f"{self._proc}/{self.root}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._files[name], 4096, 0)

    def close(self) -> None:
        """Give the open files back."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, AttributeError):                              # half made, or the interpreter is going down
            pass

    def _stat(self, pid: int) -> tuple[int, int, float, float, int] | None:
        """(parent, birth in ticks, own CPU seconds, waited-for children's, bytes resident), or None where there is no such process any more."""
        try:
            text = self._text(f"{pid}/stat")
        except OSError:
            return None
        words = text[text.rfind(b")") + 2:].split()                    # the command's name may hold spaces and brackets
        if len(words) < 22:
            return None
        own, reaped = (int(words[11]) + int(words[12])) * _TICK, (int(words[13]) + int(words[14])) * _TICK
        return int(words[1]), int(words[19]), own, reaped, 0 if words[0] in (b"Z", b"X") else int(words[21]) * _PAGE

    def _moved(self, pid: int) -> tuple[int, int] | None:
        """(bytes read from, written to storage) by a process and the children it waited for; None where the kernel does not show it."""
        try:
            text = self._again("io") if pid == self.root else self._text(f"{pid}/io")
        except OSError:
            return None
        words = text.split()                                           # rchar: 1 wchar: 2 … read_bytes: 5 write_bytes: 6 …
        try:
            return int(words[words.index(b"read_bytes:") + 1]), int(words[words.index(b"write_bytes:") + 1])
        except (IndexError, ValueError):
            return None

    # ---- the root --------------------------------------------------------------------------------------------------------------------------

    def _root(self) -> tuple[float, float]:
        """The root's own CPU seconds, and its waited-for children's: to the microsecond where it is this process."""
        if self._mine:
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            return time.process_time(), ended.ru_utime + ended.ru_stime
        row = self._stat(self.root)
        return (row[2], row[3]) if row else (0.0, 0.0)

    def _elsewhere(self) -> tuple[float, int]:
        """CPU seconds of the living descendants and their number, where there is no /proc (macOS)."""
        import psutil

        spent, running = 0.0, 0
        try:
            children = psutil.Process(self.root).children(recursive=True)
        except psutil.Error:
            return 0.0, 0
        for child in children:
            try:
                times = child.cpu_times()
            except psutil.Error:                                       # it ended meanwhile: its parent counts it
                continue
            spent, running = spent + times.user + times.system, running + 1
        return spent, running

    def _root_held(self) -> int | None:
        if not self.itself:
            return 0
        try:
            return int(self._again("statm").split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return None

    def childless(self) -> bool:
        """Whether the root surely has no children and none of its descendants is known: then no walk is needed. One system call."""
        if self._seen or not self._mine:
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        except (AttributeError, OSError):
            pass
        return False

    # ---- the tree --------------------------------------------------------------------------------------------------------------------------

    def take(self, walk: bool | None = None, thorough: bool = True) -> Used:
        """What was used so far. `walk` None walks the tree where there may be descendants; False reads the root alone.

        Not `thorough`, new processes are looked for only as often as a five-hundredth of a core allows; known ones are always read.
        """
        why: dict[str, str] = {}
        if walk is None:
            walk = not self.childless()
        elsewhere, running = 0.0, 0
        if not self._linux:
            why["children"] = "this system has no /proc: living children as psutil reads them, one that nobody waits for is lost when it ends"
            elsewhere, running = self._elsewhere()
        elif walk:
            for _ in range(3):                                         # a child that ends between two reads would be seen in both places
                before = self._root()[1]
                self._walk(thorough)
                if self._root()[1] == before:
                    break
        own, reaped = self._root()
        moved = self._moved(self.root) if self._linux else None
        if not self._seen and not self._lost and moved is not None and self._gone_moved is not None and (held := self._root_held()) is not None:
            return Used(own if self.itself else 0.0, reaped, 0.0, self._gone, moved[0] + self._gone_moved[0], moved[1] + self._gone_moved[1], held,
                        int(self.itself), 0, self._unseen, why)                         # nearly always: no live children, everything readable
        parts = [moved, *(seen.moved for seen in self._seen.values()), *(lost.moved for lost in self._lost)]
        if moved is None:
            why["disk"] = f"{self._proc}/{self.root}/io cannot be read: bytes to and from disks are unknown"
        elif None in parts or self._gone_moved is None:
            why["disk"] = "the disk counters of some child processes cannot be read (another user's?): a part is not passed off as the whole"
        known = [part for part in parts if part is not None]
        held = self._root_held() if self._linux else None
        if held is None:
            why["memory"] = f"{self._proc}/{self.root}/statm cannot be read: the memory held is unknown"
        else:
            held = max(0, held - (self._lent if self._seen else 0)) + int(sum(seen.held * seen.pss for seen in self._seen.values()))
        read, written = (None, None) if "disk" in why else (sum(part[end] for part in [*known, self._gone_moved or (0, 0)]) for end in (0, 1))
        living = sum(seen.held > 0 for seen in self._seen.values()) + running
        return Used(own if self.itself else 0.0, reaped, sum(seen.cpu for seen in self._seen.values()) + elsewhere,
                    self._gone + sum(x.cpu for x in self._lost), read, written, held, len(self._seen) + running + self.itself, living,
                    self._unseen + len(self._lost), why)

    def members(self) -> set[int]:
        """Process numbers of the tree as last walked, the root's among them."""
        return {self.root, *self._seen}

    def births(self) -> frozenset[tuple[int, int]]:
        """(process number, birth in ticks) of the descendants as last walked: who was there before a window began."""
        return frozenset((pid, seen.born) for pid, seen in self._seen.items())

    def names(self, before: frozenset[tuple[int, int]] = frozenset()) -> list[str]:
        """What the descendants that still run and are not among `before` are called, as last walked: their programs, not their arguments, which may
        hold secrets."""
        found = []
        for pid, seen in sorted(self._seen.items()):
            if not seen.held or (pid, seen.born) in before:
                continue
            try:
                found.append(self._text(f"{pid}/comm").decode("utf-8", "replace").strip())
            except OSError:                                            # it ended just now
                continue
        return found

    def opened(self, prefix: str) -> set[str]:
        """Files beginning with `prefix` that members of the tree hold open, where they may be looked at."""
        found = set()
        for pid in self.members():
            try:
                files = os.listdir(f"{self._proc}/{pid}/fd")
            except OSError:
                continue
            for file in files:
                try:
                    target = os.readlink(f"{self._proc}/{pid}/fd/{file}")
                except OSError:
                    continue
                if target.startswith(prefix):
                    found.add(target)
        return found

    def _walk(self, thorough: bool) -> None:
        rows = {pid: row for pid in self._candidates(thorough) if (row := self._stat(pid)) is not None}
        vanished: dict[int, _Seen] = {}
        for pid, seen in list(self._seen.items()):
            row = rows.get(pid)
            if row is None or row[1] != seen.born:                     # ended; or ended and its number used again
                vanished[pid] = self._seen.pop(pid)
            else:
                self._keep(pid, row)
        self._adopt({pid: row for pid, row in rows.items() if pid not in self._seen})
        self._settle(vanished)
        self._tell_shared()

    def _candidates(self, thorough: bool) -> list[int]:
        """Processes to read: members, and those never looked at. Listing /proc is what costs, so it is left out while no process was started."""
        began, newest = time.thread_time(), self._newest()
        if newest is not None and newest == self._listed or not thorough and time.monotonic() < self._list_after:
            return list(self._seen)
        try:
            listed = {int(name) for name in os.listdir(self._proc) if name.isdigit()}
        except OSError:
            return list(self._seen)
        self._walks += 1
        self._strangers = {self.root} if self._walks % _FORGET == 0 else self._strangers & listed | {self.root}
        self._listed = newest
        self._list_after = time.monotonic() + (time.thread_time() - began) / _LIST_SHARE
        return [pid for pid in listed if pid not in self._strangers]

    def _newest(self) -> bytes | None:
        """The last process number that was given out, from /proc/loadavg; None where it is not told."""
        try:
            return self._text("loadavg").split()[4]
        except (OSError, IndexError):
            return None

    def _keep(self, pid: int, row: tuple[int, int, float, float, int]) -> None:
        before = self._seen.get(pid)
        parent, born, own, reaped, held = row
        moved = self._moved(pid) if held or before is None else before.moved     # a zombie's counters can no longer be read
        self._seen[pid] = _Seen(born, parent, own, reaped, held, moved if moved is not None or before is None else before.moved,
                                before.pss if before else 1.0)

    def _adopt(self, rows: dict[int, tuple[int, int, float, float, int]]) -> None:
        """New processes whose parents are members join; those with a parent known to be a stranger are never read again."""
        found = True
        while found:
            found = False
            for pid, row in list(rows.items()):
                if row[0] in self._seen or row[0] == self.root:
                    self._keep(pid, row)
                    del rows[pid]
                    found = True
        found = True
        while found:                                                   # one whose parent cannot be placed is looked at again at the next walk
            fresh = {pid for pid, row in rows.items() if row[0] in (0, 1) or row[0] in self._strangers} - self._strangers
            self._strangers |= fresh
            found = bool(fresh)

    def _ancestor(self, seen: _Seen, vanished: dict[int, _Seen]) -> int:
        """The nearest ancestor that still lives."""
        parent = seen.parent
        while parent in vanished:
            parent = vanished[parent].parent
        return parent if parent in self._seen else self.root

    def _settle(self, vanished: dict[int, _Seen]) -> None:
        """Decide of each vanished process whether its CPU time now stands in an ancestor's counter (it was waited for) or only with us."""
        self._lost += [_Lost(seen.cpu, seen.moved, self._ancestor(seen, vanished)) for seen in vanished.values()]
        for lost in self._lost:
            if lost.ancestor in vanished:
                lost.ancestor = self._ancestor(vanished[lost.ancestor], vanished)
        for ancestor, reaped in self._reaping():
            grown = max(0.0, reaped - self._reaped_before.get(ancestor, reaped))
            budget = grown + self._surplus.pop(ancestor, 0.0)
            for lost in sorted((lost for lost in self._lost if lost.ancestor == ancestor), key=lambda lost: -lost.cpu):
                if budget > 0 and budget + 2 * _TICK >= lost.cpu:
                    budget = max(0.0, budget - lost.cpu)
                    self._lost.remove(lost)
            self._surplus[ancestor] = min(budget, grown)               # a child may be counted by its parent a moment before it is seen to be gone
        self._reaped_before = dict(self._reaping())
        for lost in list(self._lost):
            lost.age += 1
            if lost.age > _PATIENCE:
                self._lost.remove(lost)
                self._gone += lost.cpu
                self._unseen += 1
                if self._gone_moved is not None:
                    self._gone_moved = [a + b for a, b in zip(self._gone_moved, lost.moved, strict=True)] if lost.moved else None

    def _reaping(self) -> Iterator[tuple[int, float]]:
        yield self.root, self._root()[1]
        for pid, seen in self._seen.items():
            yield pid, seen.reaped

    def _sizes(self, pid: int) -> tuple[int, int] | None:
        """Bytes that a process holds, and its share of them when each page is divided by how many hold it; None where that cannot be read."""
        try:
            text = self._text(f"{pid}/smaps_rollup")
            sizes = {line[:4]: 1024 * int(line.split()[1]) for line in text.splitlines() if line[:4] in (b"Rss:", b"Pss:")}
            return sizes[b"Rss:"], sizes[b"Pss:"]
        except (OSError, KeyError, IndexError, ValueError):
            return None

    def _tell_shared(self) -> None:
        """Forked processes share pages: now and then read each one's proportional share, which costs milliseconds, within a share of the time."""
        if not self._seen:
            return
        now = time.perf_counter()
        if self._pss_spent > _PSS_SHARE * (now - self._pss_since) + 0.002:
            return
        if self.itself and (rooted := self._sizes(self.root)):
            self._lent = rooted[0] - rooted[1]
        for pid, seen in self._seen.items():
            sizes = self._sizes(pid)
            if sizes is not None:
                seen.pss = sizes[1] / sizes[0] if sizes[0] else 1.0
        self._pss_spent += time.perf_counter() - now


def host_cpu(proc: Path = Path("/proc")) -> float | None:
    """CPU seconds that all processes of the host have worked (neither idle nor stolen time is work); None where unreadable."""
    try:
        with open(proc / "stat", "rb") as file:
            words = file.readline().split()
        return sum(int(words[place]) for place in (1, 2, 3, 6, 7)) * _TICK
    except (OSError, IndexError, ValueError):
        return None
