"""What a finished search leaves beside its artefact: the journal that makes it resume, and what killed processes did not tidy away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.folder import journal_of, leftovers
from fourfold.journal import Journal, alive, holder_of

RUNS, SIZE = 2, 1 << 30  # earlier searches that a journal's folder keeps beside the last one, and the bytes that they may take together
_MADE, _FOR = ("engines", "race-original"), "made-for"  # folders of engine files, and the file that says for which search they were made


def bound(journal: Journal, used: Iterable[Path] | None = None) -> None:
    """Keep a journal's folder small: what earlier searches left goes beyond `RUNS` of them or `SIZE` bytes, and engine files that another search made
    go at once, since names of candidates repeat. `used`: the folders of engine files that are still asked for once a search is done; the others go
    too, with the half-trained. A rerun makes engine files anew and finds all else in the journal."""
    journal.trim(RUNS, SIZE)
    note = journal.folder / _FOR
    if not note.is_file() or note.read_text(encoding="utf-8") != journal.id:
        _remove([*(journal.folder / name for name in _MADE), *journal.folder.glob("*.ckpt.safetensors")])
        note.write_text(journal.id, encoding="utf-8")
    if used is not None:
        kept = {path.resolve() for path in used}
        left = [path for path in (journal.folder / "engines").glob("*") if path.resolve() not in kept]
        _remove([*left, *journal.folder.glob("*.ckpt.safetensors")])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def clean(folder: str | Path, dry_run: bool = False) -> dict[str, Any]:
    """Remove the journal of the search whose result went to `folder`, and unfinished neighbours that killed processes left. The artefact stays.

    Returns {"removed": paths, "bytes": freed}. Raises InputError where there is nothing to remove, where a process is still at work in the journal,
    or where the folder of that name holds no journal of ours.
    """
    found = list(leftovers(Path(folder)))
    journal = journal_of(folder)
    if journal.is_dir() and not journal.is_symlink():
        lines = [_first(path) for path in journal.glob("journal-*.jsonl*")]
        if not any(lines):
            raise InputError(f"{journal} holds no journal of a search.", "It is left alone; remove it by hand if it is yours.")
        holder = holder_of(journal / "lock")
        if holder is not None and alive(holder):
            raise InputError(f"Process {holder.pid} is at work in {journal}.", "Wait for it, or stop it first.")
        found.append(journal)
    if not found:
        raise InputError(f"There is nothing to remove beside {folder}.", f"A search that writes to {folder} keeps its journal in {journal}.")
    freed = sum(path.lstat().st_size for one in found for path in one.rglob("*") if path.is_file())
    for one in [] if dry_run else found:
        shutil.rmtree(one)
    return {"removed": [str(one) for one in found], "bytes": freed}


def _first(path: Path) -> bool:
    """Whether a file begins with a line of a journal."""
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(line, dict) and ("event" in line or "key" in line or "fingerprint" in line)
