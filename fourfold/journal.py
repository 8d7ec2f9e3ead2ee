"""The append-only diary that makes long work resumable: each deterministic step is done once, whatever kills the process between steps.

One folder holds `journal-<id>.jsonl` (one JSON object a line, fsynced), the tensors that steps produced (safetensors, written aside, then renamed)
and a lock. `<id>` comes from the fingerprint of the work, so another job in the same folder starts afresh and an earlier one may be taken up again.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import msgspec

from fourfold.documents import TypedDocument
from fourfold.errors import FourfoldError, InputError

if TYPE_CHECKING:
    from torch import Tensor

_OURS = re.compile(r"journal-([0-9a-f]{16})\..+|([0-9a-f]{16})-[0-9a-f]{16}\.safetensors(?:\.tmp)?")
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class StepRecord(TypedDocument, kw_only=True):
    """A line of the journal that holds a finished step: when it began, what it took, and its JSON value or the file of its tensors."""

    key: str
    at: float
    seconds: float
    cpu: float
    value: object = None
    file: str = ""
    names: list[str] = []
    sha256: str = ""
    bytes: int = 0


class Holder(TypedDocument):
    """Who holds a folder's lock: process id, when it started in kernel ticks ("" where the system does not tell), and its computer."""

    pid: int
    born: str
    host: str


class Journal:
    """Memory of finished steps in `folder`, for the work that `fingerprint` (text or JSON-able mapping) describes. Used from one process.

    Raises InputError where the folder cannot be made or another live process holds it, FourfoldError where the disk is full.
    """

    def __init__(self, folder: str | Path, fingerprint: str | Mapping[str, object]) -> None:
        self.folder = Path(folder)
        text = fingerprint if isinstance(fingerprint, str) else json.dumps(fingerprint, sort_keys=True, default=_plain)
        self.id = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot make the folder {self.folder}: {error.strerror}.", "Name a folder that you may write to.") from None
        self.path = self.folder / f"journal-{self.id}.jsonl"
        self._lock = self.folder / "lock"
        self._file = -1
        self._nested = [(0.0, 0.0)]                                   # wall and CPU seconds already charged to steps inside the running one
        self._lines: list[dict[str, object]] = []
        self._memory: dict[str, StepRecord] = {}
        self.elapsed = 0.0                                             # wall seconds in finished steps, over all the runs that shared this journal
        self.cpu = 0.0                                                 # CPU seconds of these, all threads and finished children
        self._take_lock()
        try:
            with self._writing(self.path):
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            self._read()
            self._append({"event": "resumed" if self._memory else "started", "at": time.time(), "pid": os.getpid()})
        except BaseException:
            self.close()
            raise

    # Steps
    def once(self, key: str, fn: Callable[[], object]) -> Any:
        """The JSON value of `fn()`, computed at most once for `key`. What is returned has been through JSON (tuples are lists) on every path, so that
        a resumed run continues from the very value that the killed one saw."""
        if key in self._memory and not self._memory[key].file:
            return copy.deepcopy(self._memory[key].value)
        with self._step(key) as line:
            line["value"] = _decode(json.loads(json.dumps(_encode(fn()), default=_plain)))
        return copy.deepcopy(line["value"])

    def tensors(self, key: str, fn: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The named tensors of `fn()` (contiguous, on the CPU), computed at most once for `key`. A missing or damaged file is computed again."""
        stored = self._load(self._memory[key]) if key in self._memory and self._memory[key].file else None
        if stored is not None:
            return stored
        from safetensors.torch import save

        with self._step(key) as line:
            values = _separate(fn())
            name = f"{self.id}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
            data = save(values)
            self._replace(self.folder / name, data)
            line |= {"file": name, "names": list(values), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        return values

    def note(self, event: str, **data: object) -> None:
        """Write down something that happened; it appears in `events()` and is never recalled by `once`."""
        self._append({"event": event, "at": time.time(), **json.loads(json.dumps(_encode(data), default=_plain))})

    def __contains__(self, key: str) -> bool:
        return key in self._memory

    # What was written
    def events(self) -> list[dict[str, Any]]:
        """Every step and note in the order written: `key` or `event`, `at` (Unix time, start), `seconds`, `cpu` (exclusive of steps inside it)."""
        return [{name: copy.deepcopy(value) for name, value in line.items() if name != "value"} for line in self._lines]

    def trim(self, runs: int, size: int) -> None:
        """Remove what other work left in the folder beyond its `runs` latest, or beyond `size` bytes of them together, and files of this work that no
        line names (`--fresh` puts its old lines aside: the latest stay)."""
        named = {str(line["file"]) for line in self._lines if "file" in line}
        works: dict[str, list[Path]] = {}
        aside: list[Path] = []
        for path in self.folder.iterdir():
            found = _OURS.fullmatch(path.name)
            if found is None or not path.is_file():
                continue
            work = found[1] or found[2]
            if work != self.id:
                works.setdefault(work, []).append(path)
            elif path.suffix == ".old":
                aside.append(path)
            elif path.suffix != ".jsonl" and path.name not in named:
                path.unlink(missing_ok=True)
        for path in sorted(aside, key=_age)[1:]:
            path.unlink(missing_ok=True)
        held = 0
        for number, files in enumerate(sorted(works.values(), key=lambda files: min(map(_age, files)))):
            held += sum(path.stat().st_size for path in files)
            if number >= runs or held > size:
                for path in files:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Give the folder back. Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if holder_of(self._lock) == _me():
            with _exclusive(self._lock) as file:                       # emptied, not removed: another process may be waiting on this very file
                file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading
    def _read(self) -> None:
        data = self.path.read_bytes()
        self._end = data.rfind(b"\n") + 1                              # what follows the last newline was torn by a kill: forgotten
        os.ftruncate(self._file, self._end)
        for text in data[: self._end].splitlines():
            try:
                line = _decode(json.loads(text))
            except ValueError:                                         # a damaged line costs its own step, nothing more
                continue
            if isinstance(line, dict):
                self._keep(line)

    def _keep(self, line: dict[str, object]) -> None:
        if "key" in line:
            try:
                step = msgspec.convert(line, StepRecord)
            except msgspec.ValidationError:                            # a damaged line costs its own step, nothing more
                return
            self._memory[step.key] = step
            self.elapsed, self.cpu = self.elapsed + step.seconds, self.cpu + step.cpu
        self._lines.append(line)

    def _load(self, step: StepRecord) -> dict[str, Tensor] | None:
        from safetensors.torch import load

        try:
            data = (self.folder / step.file).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != step.sha256:
            return None
        values = load(data)
        return {name: values[name] for name in step.names}          # in the order that the step gave them

    # Writing
    @contextmanager
    def _step(self, key: str) -> Iterator[dict[str, object]]:
        line: dict[str, object] = {"key": key, "at": time.time()}
        wall, cpu = time.perf_counter(), _cpu()
        self._nested.append((0.0, 0.0))
        try:
            yield line
        finally:
            inner = self._nested.pop()
            spent = time.perf_counter() - wall, _cpu() - cpu
            self._nested[-1] = (self._nested[-1][0] + spent[0], self._nested[-1][1] + spent[1])
        line |= {"seconds": max(0.0, spent[0] - inner[0]), "cpu": max(0.0, spent[1] - inner[1])}
        self._append(line)

    def _append(self, line: dict[str, object]) -> None:
        if self._file < 0:
            raise InputError(f"The journal {self.path} is closed.", "Open it again.")
        data = (json.dumps(_encode(line), separators=(",", ":"), allow_nan=False) + "\n").encode()
        with self._writing(self.path, len(data)):
            os.ftruncate(self._file, self._end)                        # an interrupted write of this process leaves nothing behind
            os.lseek(self._file, self._end, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view):]
            os.fsync(self._file)
        self._end += len(data)
        self._keep(line)

    def _replace(self, path: Path, data: bytes) -> None:
        aside = path.with_name(f"{path.name}.tmp")
        try:
            with self._writing(path, len(data)), open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            _sync_folder(self.folder)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    @contextmanager
    def _writing(self, path: Path, size: int = 0) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise InputError(f"Cannot write {path}: {error.strerror}.", "Name a folder that you may write to.") from error
            if self._file >= 0 and hasattr(self, "_end"):
                os.ftruncate(self._file, self._end)
            full = FourfoldError(f"The disk is full: {size:,} bytes for {path.name} did not fit in {self.folder}.",
                                 "Free some space and run the same command again; every finished step is kept.")
            full.exit_code = 1
            raise full from error

    # The lock: the holder's process id and start time, so that a dead holder is recognised even when its id is used again.
    def _take_lock(self) -> None:
        with self._writing(self._lock), _exclusive(self._lock) as file:
            holder = holder_of(self._lock)
            if holder is not None and alive(holder):
                raise InputError(f"Process {holder.pid} on {holder.host} is already working in {self.folder}.",
                                 f"Wait for it, name another folder, or remove {self._lock} if that process is gone.")
            file.seek(0)
            file.truncate()
            file.write(msgspec.json.encode(_me()))
            file.flush()


@contextmanager
def _exclusive(path: Path) -> Iterator[BinaryIO]:
    """The file open for reading and writing, while no other process is inside this function with it. Held for microseconds."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            import fcntl
        except ImportError:                                            # not POSIX: the holder's identity alone has to do
            yield file
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _me() -> Holder:
    return Holder(os.getpid(), _born(os.getpid()), socket.gethostname())


def _born(pid: int) -> str:
    """When process `pid` started, in kernel ticks, or "" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def holder_of(lock: Path) -> Holder | None:
    """The process that a lock file names; None where it names none."""
    try:
        return msgspec.json.decode(lock.read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def alive(holder: Holder) -> bool:
    """Whether that very process still runs (one on another host is taken to)."""
    if holder.host != socket.gethostname() or os.name != "posix":
        return True                                                    # cannot be asked from here: the message says how to go on
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True                                                    # it exists and belongs to someone else
    try:
        state = Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        state = ""
    return state != "Z" and _born(holder.pid) == holder.born


def _age(path: Path) -> float:
    """What sorts the latest first."""
    return -path.stat().st_mtime


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _cpu() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _separate(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor on its own contiguous storage on the CPU, as safetensors demands."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        value = value.detach().cpu()
        storage = value.untyped_storage()
        if not value.is_contiguous() or storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            value = value.contiguous().clone()
        seen.add(value.untyped_storage().data_ptr())
        result[name] = value
    return result


# Strict JSON has no NaN or infinity; a search may well have them.
def _encode(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if isinstance(value, dict):
        return {str(name): _encode(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(part) for part in value]
    if not isinstance(value, (str, int, float, bool, type(None))):
        return _encode(_plain(value))
    return value


def _decode(value: object) -> object:
    if isinstance(value, dict):
        return float(value["$float"]) if set(value) == {"$float"} else {name: _decode(part) for name, part in value.items()}
    return [_decode(part) for part in value] if isinstance(value, list) else value


def _plain(value: object) -> object:
    """JSON-able form of numpy and torch values, quantities, recipes, paths and sets."""
    for method in ("to_json", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise InputError(f"A journal step returned a {type(value).__name__}, which JSON cannot hold.", "Return numbers, text, lists and mappings.")
