"""A saved artefact opened by a fresh process, which must answer a few rows as this one does: before that nothing is called saved.

`python -m fourfold.runtime.afresh FOLDER ROWS [PACKAGE …]` loads the folder, answers the rows of ROWS.npz with every member alone and with all
together, and says on its last line, as JSON, what differs. Rows travel as arrays and JSON, never as a pickle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import FourfoldError, ModelError

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.runtime.artefact import Assembly

ROWS = 8
PATIENCE = 900.0  # seconds; torch.compile takes minutes on a busy machine
_NEAR, _ROUGH = 1e-3, 3e-2  # differences over the largest score: of fp32, and of lower precisions, whose kernels may round otherwise


def confirm(folder: Path, assembly: Assembly, task: Task, examples: Examples, trust: Sequence[str]) -> None:
    """Raises ModelError in the fresh process's words where it cannot load `folder` or answers otherwise than `assembly` does here."""
    few = _few(examples)
    wanted = {f"part {i}": part.outputs(few, task) for i, part in enumerate(assembly.parts)} | {"all": assembly.outputs(few, task)}
    with tempfile.TemporaryDirectory(prefix="fourfold-") as scratch:
        rows = Path(scratch) / "rows.npz"
        _write(rows, few, wanted)
        said = _ask(folder, rows, trust)
    if said != "alike":
        raise ModelError(f"a fresh process could not use the artefact: {said}.", _mend(assembly, said))


def _few(examples: Examples) -> Examples:
    """Rows of all the shorter lengths: quick to answer, and still of several shapes."""
    order = np.argsort(examples.lengths, kind="stable")
    order = order[: max(ROWS, len(order) // 2)]
    return examples.take(np.unique(order[np.linspace(0, len(order) - 1, min(ROWS, len(order))).astype(int)]))


def _mend(assembly: Assembly, said: str) -> str:
    kinds = {part.subject.origin.get("kind") for part in assembly.parts if part.subject is not None}
    if kinds & {"factory", "tree"} and "import" in said:
        return "The module that defines the model must be importable from where the artefact is loaded: install it, or work in its folder."
    return "The search is kept: the same command goes straight to saving; front.report(\"report.html\") keeps its report."


def _ask(folder: Path, rows: Path, trust: Sequence[str]) -> str:
    paths = [path or os.getcwd() for path in sys.path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    try:
        done = subprocess.run([sys.executable, "-m", "fourfold.runtime.afresh", str(folder), str(rows), *trust], capture_output=True,
                              text=True, env=env,
                              timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"it had not answered after {PATIENCE:.0f} s"
    except OSError as error:
        return f"it could not be started ({error.strerror})"
    try:
        return str(json.loads(done.stdout.strip().splitlines()[-1])["said"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"it ended with code {done.returncode}: {last[:200]}"


# ---- rows as a file ------------------------------------------------------------------------------------------------------------------------------


def _write(path: Path, few: Examples, wanted: dict[str, np.ndarray]) -> None:
    from fourfold.datasets.examples import Ragged

    arrays: dict[str, Any] = {f"wanted/{name}": value for name, value in wanted.items()}
    targets = few.targets if isinstance(few.targets, np.ndarray | Ragged) else None
    for name, value in {**{f"column/{n}": v for n, v in few.columns.items()}, **({"targets": targets} if targets is not None else {})}.items():
        arrays |= {f"{name}/values": value.values, f"{name}/offsets": value.offsets} if isinstance(value, Ragged) else {name: value}
    raw = few.raw if few.raw is not None and all(_plain(one) for one in few.raw) else None
    words = json.dumps({"raw": raw, "pad": few.pad, "columns": list(few.columns), "listed": _listed(few.targets)})
    np.savez(path, words=np.frombuffer(words.encode(), np.uint8), lengths=few.lengths, **arrays)


def _plain(one: object) -> bool:
    return isinstance(one, str) or (isinstance(one, tuple | list) and all(isinstance(part, str) for part in one))


def _listed(targets: object) -> object:
    """Targets that are a list of plain values."""
    try:
        return json.loads(json.dumps(targets)) if isinstance(targets, list) else None
    except (TypeError, ValueError):
        return None


def _read(path: Path) -> tuple[Examples, dict[str, np.ndarray]]:
    from fourfold.datasets.examples import Examples, Ragged

    with np.load(path, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    words = json.loads(held["words"].tobytes())

    def column(name: str) -> Ragged | np.ndarray | None:
        return Ragged(held[f"{name}/values"], held[f"{name}/offsets"]) if f"{name}/values" in held else held.get(name)

    raw = words["raw"] and [tuple(one) if isinstance(one, list) else one for one in words["raw"]]
    columns = {name: column(f"column/{name}") for name in words["columns"]}
    targets = column("targets") if words["listed"] is None else words["listed"]
    count = len(held["lengths"])
    return (Examples(columns, targets, held["lengths"], words["pad"], raw, np.zeros(count, np.int64)),
            {name.removeprefix("wanted/"): value for name, value in held.items() if name.startswith("wanted/")})


# ---- the fresh process ---------------------------------------------------------------------------------------------------------------------------


def answer(folder: str, rows: str, trust: Sequence[str]) -> str:
    """"alike", or what is wrong in a few words."""
    from fourfold.runtime.loading import load

    examples, wanted = _read(Path(rows))
    model = load(folder, trust=trust)
    if model.warnings:
        return model.warnings[0]
    for number, part in enumerate(model.assembly.parts):
        rough = part.setting.precision != "fp32"
        said = _differs(part.outputs(examples, model.task), wanted[f"part {number}"], rough)
        if said:
            return f"its {part.name} {said}"
        if part.module is None and part.words is None and part.subject.origin.get("kind") != "opaque":
            return f"the network of {part.name} could not be made again"
    said = _differs(model.assembly.outputs(examples, model.task), wanted["all"], any(p.setting.precision != "fp32" for p in model.assembly.parts))
    if not said and examples.raw and model.task.kind != "seq2seq":
        model.predict(examples.raw)                                    # from the texts themselves, as it will be used
    return said or "alike"


def _differs(got: np.ndarray, wanted: np.ndarray, rough: bool) -> str:
    if got.shape != wanted.shape:
        return f"gives scores of shape {got.shape}, and {wanted.shape} here"
    scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
    same = np.isclose(got, wanted, rtol=0, atol=(_ROUGH if rough else _NEAR) * scale, equal_nan=True)
    return "" if same.all() else f"answers otherwise: off by {float(np.nanmax(np.abs(got - wanted))):.3g} where scores reach {scale:.3g}"


def main(arguments: list[str]) -> None:
    """Answer, and say so on the last line of standard output."""
    folder, rows, *trust = arguments
    try:
        said = answer(folder, rows, trust)
    except FourfoldError as error:
        said = error.message.rstrip(".")
    except Exception as error:  # noqa: BLE001 — whatever it is, its words are the answer
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    print("\n" + json.dumps({"said": said}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
