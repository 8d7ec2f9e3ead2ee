"""Which back end and precision each member runs on is a choice, and an artefact keeps all that were made: `choices`, and `choice`, the one that runs.

Files of a new choice lie in a folder of their own (`raced-1`, `raced-2` …) inside the member's. Files are added first, then the manifest is replaced
in one step, so that whoever loads the artefact at any moment finds one choice, whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.errors import InputError
from fourfold.folder import write
from fourfold.runtime.artefact import digest
from fourfold.trust import option

FIELDS = ("setting", "signature", "engine_files", "engine_folder", "engine_by")  # of a member, that a choice decides
MANIFEST, REPORT = "manifest.json", "report.json"


def current(manifest: Mapping[str, Any], why: str) -> dict[str, object]:
    """The choice that the manifest's members now show."""
    parts = {spec["name"]: {key: spec[key] for key in FIELDS if key in spec} for spec in manifest["parts"]}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"parts": parts, "hardware": manifest.get("hardware"), "fingerprint": manifest.get("fingerprint"), "at": now, "why": why}


def keep(root: Path, manifest: dict[str, Any], changed: Mapping[str, Mapping[str, Any]], why: str) -> None:
    """Make `changed` the choice that runs. By member: "setting", "signature", and "files", pairs of (path, name) to be copied, or None where the
    files stay. `why`: a sentence for the manifest and the report."""
    from fourfold.engines import stranger
    from fourfold.host import here

    manifest.setdefault("choices", [current(manifest, "As it was saved.")])
    manifest.setdefault("choice", 0)
    number = len(manifest["choices"])
    for spec in manifest["parts"]:
        new = changed.get(spec["name"])
        if new is None:
            continue
        spec["setting"], spec["signature"] = dict(new["setting"]), dict(new["signature"])
        spec.pop("engine_by", None)
        if where := stranger(spec["setting"]["engine"]):
            spec["engine_by"] = where
            manifest["trust"] = sorted({*manifest.get("trust", []), where.partition(".")[0]})
        if new["files"] is None:
            continue
        spec["engine_files"], spec["engine_folder"] = [name for _, name in new["files"]], f"raced-{number}"
        place = root / spec["name"] / spec["engine_folder"]
        _copied(new["files"], place)
        manifest["files"] |= {str((place / name).relative_to(root)): digest(place / name) for _, name in new["files"]}
    manifest["hardware"], manifest["fingerprint"] = here().to_json(), here().fingerprint
    manifest["choices"].append(current(manifest, why))
    manifest["choice"] = number
    _write(root, manifest, why)


def undo(folder: Path | str, *, dry_run: bool = False) -> dict[str, object]:
    """Put back the choice that ran before the one that runs now; later ones stay recorded. Raises InputError where there is none."""
    from fourfold.runtime.loading import read_manifest, verify

    root = Path(folder)
    manifest = read_manifest(root)
    verify(root, manifest)
    number = int(manifest.get("choice", 0)) - 1
    if number < 0 or number >= len(manifest.get("choices", [])):
        how = f"Race it: fourfold race {root}{option(manifest.get('trust') or [])}"
        raise InputError(f"{root} runs as it was saved: no race has changed it.", how)
    before = {spec["name"]: spec["setting"] for spec in manifest["parts"]}
    back = manifest["choices"][number]
    for spec in manifest["parts"]:
        for key in FIELDS:
            spec.pop(key, None)
        spec |= back["parts"][spec["name"]]
    manifest |= {"hardware": back["hardware"], "fingerprint": back["fingerprint"], "choice": number}
    parts = [{"part": spec["name"], "before": before[spec["name"]], "after": spec["setting"]} for spec in manifest["parts"]]
    if not dry_run:
        _write(root, manifest, None)
    return {"folder": str(root), "parts": parts, "why": back["why"], "stored": not dry_run, "dry_run": dry_run}


def _copied(files: list[tuple[Path, str]], place: Path) -> None:
    """The files in a new folder that is there only when they all are. One that no manifest knows is left from a race that was killed."""
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as aside:
        made = Path(aside) / place.name
        made.mkdir()
        for path, name in files:
            shutil.copyfile(path, made / name)
        os.rename(made, place)


def _write(root: Path, manifest: dict[str, Any], why: str | None) -> None:
    """Manifest and report say what runs. The manifest does not answer for the report while that is written, so that every moment can be loaded."""
    report = _report(root, manifest, why)
    answered = manifest["files"].pop(REPORT, None)
    write(root / MANIFEST, json.dumps(manifest, indent=1))
    if report is not None:
        write(root / REPORT, report)
    if answered is not None and (root / REPORT).is_file():
        manifest["files"][REPORT] = digest(root / REPORT)
        write(root / MANIFEST, json.dumps(manifest, indent=1))


def _report(root: Path, manifest: Mapping[str, Any], why: str | None) -> str | None:
    """The report's text with the setting that now runs, and why; None where there is no report that has a winner."""
    try:
        report = json.loads((root / REPORT).read_text(encoding="utf-8"))
        best = report["candidates"][report["best"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    best["setting"] = dict(manifest["parts"][0]["setting"])
    said = [entry["why"] for entry in manifest.get("choices", [])]
    report["notes"] = [note for note in report["notes"] if note not in said] + ([said[manifest["choice"]]] if manifest.get("choice") else [])
    return json.dumps(report, indent=1)
