"""What a finished search leaves beside its artefact: the journal that makes it resume, and what killed processes did not tidy away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.folder import journal_of, leftovers


def clean(folder: str | Path, dry_run: bool = False) -> dict[str, Any]:
    """Remove the journal of the search whose result went to `folder`, and unfinished neighbours that killed processes left. The artefact stays.

    Returns {"removed": paths, "bytes": freed}. Raises InputError where there is nothing to remove, where a process is still at work in the journal,
    or where the folder of that name holds no journal of ours.
    """
    from fourfold.journal import _alive, _holder

    found = list(leftovers(Path(folder)))
    journal = journal_of(folder)
    if journal.is_dir() and not journal.is_symlink():
        lines = [_first(path) for path in journal.glob("journal-*.jsonl*")]
        if not any(lines):
            raise InputError(f"{journal} holds no journal of a search.", "It is left alone; remove it by hand if it is yours.")
        holder = _holder(journal / "lock")
        if holder is not None and _alive(holder):
            raise InputError(f"Process {holder['pid']} is at work in {journal}.", "Wait for it, or stop it first.")
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
