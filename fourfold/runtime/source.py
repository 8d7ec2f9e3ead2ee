"""The model that a plan is made from: captured, and captured again when the plan is run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import ArtefactError, InputError
from fourfold.graph import INPUT

if TYPE_CHECKING:
    from fourfold.plans import Plan
    from fourfold.program import Captured


@dataclass(frozen=True)
class ModelSource:
    """A captured model and what is needed to capture it again: `model` and `capture` as a Plan keeps them."""

    captured: Captured
    model: dict[str, Any]
    capture: dict[str, Any]


def read(model: Any, data: Any = None, *, train: bool = False, dims: Mapping[str, int] | None = None, seed: int = 0) -> ModelSource:
    """Capture `model` (all that `fourfold.frontends.capture.capture` takes) on `data`: example inputs (a tensor, a tuple, a mapping), an .npz file of
    them, or data as `optimize` reads it, of which the first batch is taken. None: inputs of the model's configuration, in the sizes of `dims`.

    Raises InputError, ModelError or MissingExtra in words.
    """
    from fourfold.frontends.capture import capture

    sizes, told = dict(dims or {}), {}
    if isinstance(data, str | Path):
        told = {"file": str(data), "path": str(Path(data).resolve()), "sha256": _file_hash(Path(data))}
        if str(data).endswith(".npz"):
            inputs = arrays(data)
        else:
            model, inputs = _batch(model, data, sizes)
    else:
        inputs = data
    found = capture(model, inputs, train=train, dims=sizes, seed=seed)
    given = {"train": train, "level": "ops", "dims": dict(dims or {}), "seed": seed, "inputs": _specs(found), **told}
    return ModelSource(found, {"ref": _words(model), "kind": _kind(model), "path": _path(model), "weights": weights_hash(found)}, given)


def recapture(plan: Plan, model: Any = None, inputs: Any = None) -> Captured:
    """The program that `plan` was made for, captured again from its own reference, or from `model` where the plan was made of an object in memory.

    Raises ArtefactError where what is captured now has another graph, InputError where there is no reference and no `model`, and what `read` raises.
    """
    if model is None:
        if plan.model.get("kind") in (None, "object"):
            raise InputError(f"The plan was made of an object in memory ({plan.model.get('ref')}).", "Give the model itself.")
        model = plan.model["ref"]
        if plan.model.get("path") and not Path(model).exists() and Path(plan.model["path"]).exists():
            model = plan.model["path"]
    how = plan.capture
    sizes = how.get("dims") if inputs is None else None                 # given inputs have their own
    if inputs is None and how.get("file"):
        inputs = how["file"] if Path(how["file"]).exists() else how["path"]
        if Path(inputs).exists() and how.get("sha256") not in (None, _file_hash(Path(inputs))):
            raise ArtefactError(f"{inputs} is not the file that the plan was made with.", "Make the plan again: fourfold plan MODEL --out DIR")
    found = read(model, inputs, train=bool(how.get("train")), dims=sizes, seed=int(how.get("seed", 0))).captured
    if found.graph.hash != plan.graph.hash:
        raise ArtefactError(f"{_words(model)} is not the program that the plan is for: {differs(plan.graph, found.graph)}.",
                            "Give the same model and inputs, or make the plan again.")
    return found


def differs(planned: Any, found: Any) -> str:
    """In what two graphs differ first, in words."""
    if len(planned) != len(found):
        return f"it has {len(found)} ops, the plan's graph {len(planned)}"
    for n in range(len(planned)):
        one, other = planned.kinds[planned.kind[n]], found.kinds[found.kind[n]]
        if one != other:
            return f"op {n} is {other}, in the plan's graph {one}"
        shapes = [[g.shape_of(int(v)) for v in g.outputs_of(n)] for g in (planned, found)]
        if shapes[0] != shapes[1]:
            return f"{found.names[n]} makes {shapes[1]}, in the plan's graph {shapes[0]}"
    return "names, sizes or edges of its graph are not those of the plan's"


def arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name; nothing pickled is opened. Raises InputError where it cannot be read."""
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.", "Give an .npz file that holds an array for each input.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{path} is damaged or no .npz file of plain arrays.", "Write it with numpy.savez(file, input_ids=…, …).") from error


def _batch(model: Any, data: str | Path, dims: dict[str, int]) -> tuple[Any, dict[str, np.ndarray]]:
    """(subject, the first batch of the user's data as the model reads it). Takes "batch" and "length" out of `dims`."""
    from fourfold.datasets.load import load_data
    from fourfold.frontends.model import load_model

    if _kind(model) not in ("folder", "factory", "object"):
        raise InputError(f"{data}: examples are encoded for models of a folder or a factory only.", "Give arrays: --inputs FILE.npz")
    subject = load_model(model)
    size, length = dims.pop("batch", 1), dims.pop("length", dims.pop("sequence", None))
    splits, _ = load_data(data, None, subject, max_length=length)
    size = min(size, len(splits.train))
    return subject, splits.train.collate(np.arange(size))


def _specs(found: Captured) -> list[dict[str, Any]]:
    g = found.graph
    return [{"name": g.labels[v], "shape": list(g.shape_of(v)), "dtype": g.dtype[v]} for v in np.flatnonzero(g.role == INPUT).tolist()]


def weights_hash(found: Captured) -> str:
    """sha256 of all weights and constants, in the graph's order."""
    digest = hashlib.sha256()
    for value, tensor in sorted(found.program.weights().items()):
        digest.update(f"{value} ".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Any) -> Any:
    if hasattr(tensor, "detach"):
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data if flat.numel() else b""
    try:
        return np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8).data
    except (TypeError, ValueError):                                     # a sequence, a key of random numbers
        return repr(tensor).encode()


def _file_hash(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _words(model: Any) -> str:
    if isinstance(model, str | Path):
        return str(model)
    folder = getattr(model, "folder", None)
    if folder is not None:
        return str(folder)
    module = getattr(model, "module", model)
    return str(getattr(module, "__qualname__", None) or type(module).__qualname__)


def _kind(model: Any) -> str:
    """file, folder, factory or object (which lives in memory only)."""
    if getattr(model, "folder", None) is not None:
        return "folder"
    if not isinstance(model, str | Path):
        return "object"
    if str(model).endswith((".onnx", ".pt2")):
        return "file"
    return "folder" if Path(model).is_dir() else "factory"


def _path(model: Any) -> str | None:
    kind = _kind(model)
    return str(Path(_words(model)).resolve()) if kind in ("file", "folder") else None
