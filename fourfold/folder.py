"""Where results are written: nothing that is not ours is replaced, moved without being asked or deleted, and nothing is half written.

A folder may be replaced where it is absent, empty, or holds only what its own manifest lists; `may_replace` is asked before any work, and `swap` asks
again when the result is there. A file may be overwritten where it is of the kind that is written there; `may_overwrite` is asked first, and `write`
puts the whole file in place in one step. Modes follow the umask.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourfold.errors import InputError, unwritable

MANIFEST = "manifest.json"
REPORTS = ("report.json", "report.html", "ledger.jsonl", "attempt.json", "attempt.html")  # what is written beside the files of a manifest
_OLD = 3600.0  # seconds after which an unfinished folder is nobody's; a process of another machine may share the disk
_HEAD = 1 << 16  # bytes of a file that are looked at to tell its kind

# ---- folders -------------------------------------------------------------------------------------------------------------------------------------


def may_replace(folder: str | Path, *, inputs: Iterable[object] = (), force: bool = False, option: str = "--out") -> Path:
    """The folder, where a result may take its place. `inputs`: models and data that are read; what is no path is passed over.

    Raises InputError where it is a link or a file, holds what is not ours (with `force` that moves aside later, see `swap`), is or holds an input or
    the folder that the command runs in, or cannot be made.
    """
    folder = Path(folder)
    _not_linked(folder, option)
    real = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; {option} wants a folder.", "Choose another name.")
    for given in _paths(inputs):
        _apart(folder, real, given, option)
    for where, what in ((Path.cwd(), "the folder that you are in"), (Path.home(), "your home folder")):
        if where.resolve().is_relative_to(real):
            raise InputError(f"{option} {folder} is or holds {what}, and would be replaced whole.", f"Name a folder of its own: {option} cheap")
    if os.path.ismount(folder):
        raise InputError(f"{folder} is a mounted file system, which is not replaced as a whole.", f"Name a folder in it: {option} {folder / 'cheap'}")
    strange = [] if force else foreign(folder)
    if strange:
        shown = ", ".join(strange[:2]) + (f" and {len(strange) - 2:,} more" if strange[2:] else "")
        raise InputError(
            f"{folder} holds what fourfold did not write there: {shown}.",
            f"Name another folder, or add --force: the folder then moves aside to {_aside(folder).name}, when the new one is complete.",
        )
    _writable(folder, option)
    return folder


def foreign(folder: Path) -> list[str]:
    """What lies in the folder and is not ours, as relative paths, sorted: all that neither its manifest lists nor we write beside it.

    Without a manifest of ours only the reports of a search that found nothing to save are ours. An absent or empty folder holds nothing.
    """
    if not folder.is_dir():
        return []
    ours = _listed(folder)
    above = {str(parent) for name in ours for parent in Path(name).parents}
    out: list[str] = []
    for root, folders, files in os.walk(folder):
        at = Path(root).relative_to(folder)
        for name in list(folders):
            if os.path.islink(Path(root, name)) or str(at / name) not in above:
                out.append(f"{at / name}/")
                folders.remove(name)
        out += [str(at / name) for name in files if str(at / name) not in ours or os.path.islink(Path(root, name))]
    return sorted(out)


def _listed(folder: Path) -> set[str]:
    """Names that are ours in this folder."""
    manifest, report = _json(folder / MANIFEST), _json(folder / REPORTS[0])
    if str(manifest.get("format", "")).startswith("fourfold.") and isinstance(manifest.get("files"), dict):
        return {os.path.normpath(name) for name in manifest["files"]} | {MANIFEST, *REPORTS}
    return set(REPORTS) if str(report.get("schema", "")).startswith("fourfold.") else set()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def may_fill(
    folder: str | Path, names: Iterable[str], ours: Callable[[Path], bool], *, inputs: Iterable[object] = (), option: str = "--out"
) -> Path:
    """The folder, where files of these names may be written into it; what else is there stays. `ours`: whether it holds an earlier result.

    Raises InputError where it is a link, a file or an input's folder of data, cannot be written to, or holds such a file of another origin.
    """
    folder = Path(folder)
    _not_linked(folder, option)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; {option} wants a folder.", f"Name a folder: {option} DIR")
    there = [name for name in names if os.path.lexists(folder / name)]
    for given in _paths(inputs):
        for name in there:
            if os.path.exists(folder / name) and os.path.samefile(given, folder / name):
                raise InputError(f"{option} {folder} would overwrite an input of this run ({given}).", "Name another folder.")
    linked = next((name for name in there if os.path.islink(folder / name) or not (folder / name).is_file()), None)
    if linked or (there and not ours(folder)):
        raise InputError(f"{folder / (linked or there[0])} was written by something else, and is not replaced.", f"Name another folder: {option} DIR")
    _writable(folder / "x", option)
    return folder


def swap(made: Path, folder: Path, *, force: bool = False) -> Path | None:
    """Put the finished folder `made`, a neighbour of `folder`, in its place. What is there is kept until then, and is ours: it goes.

    What is not ours stays whole: InputError, or with `force` it moves aside; where to, or None where nothing had to.
    """
    _not_linked(folder, "the folder")
    even(made)
    strange = foreign(folder)
    if strange and not force:
        raise InputError(f"{folder} now holds what fourfold did not write there: {strange[0]}.", "Name another folder; the old one stays as it was.")
    if not os.path.lexists(folder):
        os.rename(made, folder)
        return None
    old = _aside(folder)
    os.rename(folder, old)
    try:
        os.rename(made, folder)
    except OSError:
        os.rename(old, folder)
        raise
    if strange:
        return old
    shutil.rmtree(old, ignore_errors=True)
    return None


def even(made: Path) -> None:
    """Give all that lies in the folder `made` the permissions that the umask left the folder itself: some libraries write files that only their owner
    may read."""
    bits = made.stat().st_mode & 0o777
    for root, folders, files in os.walk(made):
        for name in files:
            if not os.path.islink(os.path.join(root, name)):
                os.chmod(os.path.join(root, name), bits & 0o666)
        for name in folders:
            path = os.path.join(root, name)
            os.chmod(path, os.stat(path).st_mode & ~0o777 | bits)


def _aside(folder: Path) -> Path:
    """The first free name beside `folder` for what is there."""
    number = 1
    while os.path.lexists(folder.with_name(f"{folder.name}.before-{number}")):
        number += 1
    return folder.with_name(f"{folder.name}.before-{number}")


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A new empty folder next to `folder`, to fill and then to `swap`; gone in the end, whatever happens. What killed processes left goes first."""
    parent = Path(os.path.abspath(folder)).parent
    parent.mkdir(parents=True, exist_ok=True)
    for left in leftovers(folder):
        shutil.rmtree(left, ignore_errors=True)
    made = _fresh(parent, f".{folder.name}.part-{os.getpid()}-")
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Unfinished neighbours of `folder` that processes left when they were killed: named as `beside` names them, old, their process gone."""
    parent, stem = Path(os.path.abspath(folder)).parent, f".{folder.name}.part-"
    found = []
    for path in sorted(parent.glob(f"{_literal(stem)}*-*")) if parent.is_dir() else []:
        pid, _, rest = path.name[len(stem) :].partition("-")
        named = pid.isdecimal() and len(rest) == 8 and path.is_dir() and not path.is_symlink()
        if named and time.time() - path.stat().st_mtime > _OLD and not _lives(int(pid)):
            found.append(path)
    return found


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _fresh(parent: Path, stem: str) -> Path:
    while True:
        path = parent / f"{stem}{os.urandom(4).hex()}"
        if not os.path.lexists(path):
            return path


def journal_of(folder: str | Path) -> Path:
    """Where the journal of a search lies whose result goes to `folder`: beside it, as .NAME.fourfold."""
    folder = Path(os.path.abspath(folder))
    return folder.parent / f".{folder.name}.fourfold"


# ---- files ---------------------------------------------------------------------------------------------------------------------------------------

Kind = Callable[[bytes], bool]  # whether the first bytes of a file are of the kind that is written there


def _page(head: bytes) -> bool:
    return head.lstrip()[:15].lower() == b"<!doctype html>" and (b"fourfold" in head or b"content=\"default-src 'none'; style-src" in head)


def _picture(head: bytes) -> bool:
    return head.lstrip().startswith(b"<svg") and b'class="plot"' in head[:4096]


def _object(head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and (b"fourfold" in head or b'"schema"' in head or b'"format"' in head)


KINDS: dict[str, Kind] = {".html": _page, ".svg": _picture, ".json": _object}


def headed(*names: str) -> Kind:
    """The kind of a CSV, TSV or JSON lines file whose first line names one of these columns."""

    def same(head: bytes) -> bool:
        first = head.split(b"\n", 1)[0].decode("utf-8", "replace").strip().lstrip("\ufeff")
        if first.startswith("{"):
            return any(f'"{name}":' in first for name in names)
        return bool({cell.strip().strip('"') for cell in first.replace("\t", ",").split(",")} & set(names))

    return same


def starting(*starts: str) -> Kind:
    """The kind of a file that begins with one of these texts, white space aside."""
    return lambda head: head.lstrip().startswith(tuple(start.encode() for start in starts))


def may_overwrite(path: str | Path, option: str, *, inputs: Iterable[object] = (), kind: Kind | None = None) -> Path:
    """The path, where a file may be written there. `kind`: what an existing file must be (by the name's ending where left out).

    Raises InputError where it is a folder, a link, an input, a file of another kind, or cannot be made. Devices and pipes (/dev/stdout) are let be.
    """
    path = Path(path)
    if _streams(path):
        return path
    _not_linked(path, option)
    if path.is_dir():
        raise InputError(f"{path} is a folder; {option} wants a file.", f"Name a file: {option} {path / ('result' + _ending(option))}")
    for given in _paths(inputs):
        if given.exists() and path.exists() and os.path.samefile(given, path):
            raise InputError(f"{option} {path} is an input, and would be overwritten.", "Name another file.")
    if path.is_file():
        kind = kind or KINDS.get(path.suffix.lower(), lambda _: False)
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except OSError as error:
            raise InputError(f"{path} is there and cannot be read: {error.strerror}.", "Name another file.") from None
        if head.strip() and not kind(head):
            raise InputError(
                f"{path} is there and is not what {option} writes, so it is not overwritten.", "Name another file, or move that one away."
            )
    _writable(path, option)
    return path


def _ending(option: str) -> str:
    return {"--html": ".html", "--report": ".html", "--svg": ".svg", "--csv": ".csv", "--impact": ".yml"}.get(option, "")


def write(path: str | Path, data: str | bytes, parents: bool = False) -> Path:
    """Put `data` (text as UTF-8) at `path` in one step: written beside it, flushed, renamed; a kill or a full disk leaves the old file whole.

    `parents`: folders above it are made. Devices and pipes are written to directly. Raises OSError.
    """
    path, data = Path(path), data.encode("utf-8") if isinstance(data, str) else data
    if _streams(path):
        with path.open("wb") as file:
            file.write(data)
        return path
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    aside = _fresh(path.parent, f".{path.name[:200]}.")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    return path


def _streams(path: Path) -> bool:
    """Whether the path is a device, a pipe or a socket, or lies where the system keeps them."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return True
    return os.path.abspath(path).startswith(("/dev/", "/proc/")) and stat.S_ISREG(mode)


# ---- both ----------------------------------------------------------------------------------------------------------------------------------------


def _paths(inputs: Iterable[object]) -> Iterator[Path]:
    """Those of the inputs that exist as files or folders; mappings and lists of inputs are looked into."""
    for given in inputs:
        if isinstance(given, dict):
            yield from _paths(given.values())
        elif isinstance(given, list | tuple):
            yield from _paths(one for one in given[:16] if isinstance(one, str | Path))
        elif isinstance(given, str | Path) and len(str(given)) < 4096 and "\n" not in str(given) and "\0" not in str(given):
            with contextlib.suppress(OSError):
                if Path(given).exists():
                    yield Path(given)


def _apart(folder: Path, real: Path, given: Path, option: str) -> None:
    """Raises InputError where the folder is or holds the input, or where it would become a part of a folder of data."""
    source = given.resolve()
    if source.is_relative_to(real):
        what = "is" if source == real else "holds"
        raise InputError(
            f"{option} {folder} {what} an input of this run ({given}), and would be replaced whole.", f"Name another folder: {option} cheap"
        )
    if source.is_dir() and real.is_relative_to(source) and not (source / "config.json").exists() and _holds_data(source):
        raise InputError(f"{option} {folder} lies inside the data ({given}) and would become a part of it.", "Name a folder outside of it.")


def _holds_data(folder: Path) -> bool:
    """Whether sub-folders are classes: a folder of images or sounds."""
    endings = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".wav", ".flac", ".mp3", ".ogg"}
    for number, path in enumerate(folder.rglob("*")):
        if path.suffix.lower() in endings:
            return True
        if number > 2000:
            return False
    return False


def _not_linked(path: Path, option: str) -> None:
    if os.path.islink(path):
        raise InputError(f"{path} is a symbolic link, and {option} would replace it.", f"Name what it points to: {os.path.realpath(path)}")


def _writable(path: Path, option: str) -> None:
    """Raises InputError where nothing can be made beside `path`: found out by making an empty file in the nearest folder that is there."""
    parent = Path(os.path.abspath(path)).parent
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path} cannot be made: {parent} is not a folder.", f"Name another place: {option} cheap")
    try:
        handle, name = tempfile.mkstemp(dir=parent, prefix=".fourfold-")
    except OSError as error:
        raise unwritable(parent, error, "the result") from None
    os.close(handle)
    os.unlink(name)
