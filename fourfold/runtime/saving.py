"""Writing an artefact: everything aside first, then into place in one step, so that what was there stays whole until the new one is complete."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourfold.errors import FourfoldError, ModelError
from fourfold.folder import MANIFEST, beside, may_replace, swap
from fourfold.runtime.afresh import confirm
from fourfold.runtime.artefact import FORMAT, Assembly, Part, digest
from fourfold.runtime.shelf import reading
from fourfold.trust import strangers

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task


def save(
    assembly: Assembly,
    task: Task,
    folder: Path,
    facts: Mapping[str, object],
    *,
    extra: Mapping[str, str] | None = None,
    pages: Mapping[str, str] | None = None,
    max_length: int | None = None,
    examples: Examples | None = None,
    force: bool = False,
) -> Path:
    """Write the artefact beside `folder` and move it into place when complete; an older artefact there is replaced only then.

    `facts` go into the manifest (metrics, hardware, methods, versions …); `extra` are further text files by name, which the manifest answers for;
    `pages` are written beside it and may be written again. With `examples`, a fresh process first loads the new artefact and must answer some of them
    as `assembly` does, member by member; else ModelError says why, and what was there before stays.

    Raises InputError where the folder holds anything but an artefact (with `force` it moves
    aside), FourfoldError on a full disk.
    """
    from safetensors import SafetensorError

    folder = may_replace(folder, force=force, option="the artefact's folder")
    try:
        with beside(folder) as aside:
            parts = [_save_part(part, aside) for part in assembly.parts]
            for name, text in (extra or {}).items():
                (aside / name).write_text(text, encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "name": assembly.name,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "task": task.to_json(),
                "max_length": max_length,
                "parts": parts,
                "gates": [{"temperature": g.temperature, "threshold": g.threshold} for g in assembly.gates],
                "trust": list(trusted(assembly)),
                **facts,
                "files": {str(p.relative_to(aside)): digest(p) for p in sorted(aside.rglob("*")) if p.is_file()},
            }
            (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for name, text in (pages or {}).items():
                (aside / name).write_text(text, encoding="utf-8")
            if examples is not None and len(examples):
                confirm(aside, assembly, task, examples, trusted(assembly))
            swap(aside, folder, force=force)
    except (OSError, SafetensorError) as error:
        raise FourfoldError(
            f"could not write {folder}: {getattr(error, 'strerror', None) or error}.",
            "Free some space or choose another --out; the search is kept, so a rerun goes straight to saving.",
        ) from error
    return folder


def trusted(assembly: Assembly) -> tuple[str, ...]:
    """The packages that the members' own code comes from: whoever loads the artefact must trust them, as `load(folder, trust=…)` says."""
    from fourfold.engines import stranger

    origins = {name for part in assembly.parts if part.subject is not None for name in strangers(part.subject.origin)}
    edits = {str(edit["by"]).partition(".")[0] for part in assembly.parts if part.recipe for edit in part.recipe.edits if "by" in edit}
    engines = {where.partition(".")[0] for part in assembly.parts if part.words is None and (where := stranger(part.setting.engine))}
    alone = {type(part.words).__module__.partition(".")[0] for part in assembly.parts if part.words is not None} - {"fourfold"}
    return tuple(sorted(origins | edits | alone | engines))


def _save_part(part: Part, root: Path) -> dict[str, Any]:
    home = root / part.name
    home.mkdir()
    if part.words is not None:
        part.words.save(home)
        spec = {"name": part.name, "kind": part.words.kind, "setting": part.setting.to_json()}
        module = type(part.words).__module__
        return spec if module.startswith("fourfold.") else {**spec, "by": module}
    from safetensors.torch import save_file

    from fourfold.engines import engine, stranger
    from fourfold.frontends.model import state

    assert part.module is not None and part.signature is not None
    if part.subject.origin.get("kind") == "opaque" and not engine(part.setting.engine).standalone:
        raise ModelError(
            f"{part.subject.origin['class']} cannot be made again in another process: {part.subject.origin['why']}.",
            "Give the model as package.module:factory, or let ONNX Runtime or OpenVINO run it (their files stand alone).",
        )
    if part.subject.origin.get("kind") != "opaque":  # what stands in where the back end cannot run; an opaque model has nothing to fill them into
        save_file(state(part.module), str(home / "model.safetensors"), metadata={"format": "pt"})
    for name in part.files:
        assert part.folder is not None
        shutil.copyfile(part.folder / name, home / name)
    for encoder in (part.subject.tokenizer, part.subject.processor):
        if encoder is not None and hasattr(encoder, "save_pretrained"):
            encoder.save_pretrained(home / "tokenizer")
    where = stranger(part.setting.engine)
    return {
        **({"engine_by": where} if where else {}),
        "name": part.name,
        "kind": "network",
        "origin": part.subject.origin,
        "recipe": json.loads(part.recipe.to_json()) if part.recipe else {"edits": []},
        "inputs": list(part.subject.inputs),
        "reading": reading(part.subject, part.module, home),
        "setting": part.setting.to_json(),
        "signature": part.signature.to_json(),
        "engine_files": part.files,
        "parameters": sum(p.numel() for p in part.module.parameters()),
        "sizes": {n: list(p.shape) for n, p in part.module.named_parameters()},
    }
