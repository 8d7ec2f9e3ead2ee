"""The model that a plan is made from: captured, and captured again when the plan is run.

An artefact of `optimize` is captured as it runs: the network of its last part, on the batch that its manifest keeps; a cascade's last part is the
dearest, which answers what the others leave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fourfold.errors import ArtefactError, InputError
from fourfold.graph import INPUT
from fourfold.trust import Trust, named

if TYPE_CHECKING:
    from torch import Tensor

    from fourfold.graph import Graph
    from fourfold.plans import Document
    from fourfold.program import Captured


class Recorded(Protocol):
    """A plan as far as its program goes: the graph, and `model` and `capture`, by which it is captured again."""

    @property
    def graph(self) -> Graph: ...
    @property
    def model(self) -> Mapping[str, Any]: ...
    @property
    def capture(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class RecordedProgram:
    """What a plan's folder says of the program that it is for."""

    graph: Graph
    model: Mapping[str, object]
    capture: Mapping[str, object]

    @classmethod
    def of(cls, document: Document) -> RecordedProgram:
        """Raises InputError where the plan is of something else, ArtefactError where it is damaged."""
        about = document.workload
        if about.get("kind") != "graph" or "model" not in about or "capture" not in about:
            raise InputError(f"The plan in {document.folder} is of {about.get('name') or about.get('kind')}, which is no captured model.",
                             "Name the plan of a model, or the model.")
        return cls(document.graph, about["model"], about["capture"])


@dataclass(frozen=True)
class ModelSource:
    """A captured model and what is needed to capture it again: `model` and `capture` as a Plan keeps them."""

    captured: Captured
    model: dict[str, Any]
    capture: dict[str, Any]


def read(model: Any, data: object = None, *, train: bool = False, dims: Mapping[str, int] | None = None, seed: int = 0,
         gradient: str = "passes", trust: Iterable[str] = ()) -> ModelSource:
    """Capture `model` (all that `fourfold.frontends.capture.capture` takes, or an artefact's folder) on `data`: example inputs (a tensor, a tuple,
    a mapping), an .npz file of them, or data as `optimize` reads it, of which the first batch is taken. None: inputs of the model's configuration,
    in the sizes of `dims`; of an artefact those that its manifest keeps. `gradient`: how the backward pass is made, "passes" or "recorded".
    `trust`: packages whose code an artefact may run, as in `runtime.loading.load`; what `model` and `data` name themselves is the user's own.

    Raises InputError, ModelError or MissingExtra in words, ArtefactError where an artefact is damaged or not trusted.
    """
    from fourfold.frontends.capture import capture

    if is_artefact(model):
        return _read_artefact(Path(model), data, train, dict(dims or {}), seed, gradient, trust)
    sizes, told = dict(dims or {}), {}
    if isinstance(data, str | Path):
        told = {"file": str(data), "path": str(Path(data).resolve()), "sha256": _file_hash(Path(data))}
        if str(data).endswith(".npz"):
            inputs = arrays(data)
        else:
            model, inputs = _batch(model, data, sizes)
    else:
        inputs = data
    found = capture(model, inputs, train=train, dims=sizes, seed=seed, gradient=gradient)
    given = {"train": train, "level": "ops", "dims": dict(dims or {}), "seed": seed, "inputs": _specs(found), **told} | _gradient(train, gradient)
    return ModelSource(found, {"ref": _words(model), "kind": _kind(model), "path": _path(model), "weights": weights_hash(found)}, given)


def _gradient(train: bool, gradient: str) -> dict[str, str]:
    return {"gradient": gradient} if train else {}


def is_artefact(model: object) -> bool:
    """Whether this is the folder of an artefact that `fourfold optimize --out` wrote."""
    return isinstance(model, str | Path) and (Path(model) / "manifest.json").is_file() and not (Path(model) / "config.json").is_file()


def _read_artefact(folder: Path, data: object, train: bool, dims: dict[str, int], seed: int, gradient: str,
                   trust: Iterable[str]) -> ModelSource:
    """The network of an artefact's last part, captured; `data` and `dims` as of `read`, "batch" and "length" (or "sequence") of the kept batch.

    Raises InputError where it holds no network, ArtefactError as `runtime.loading.load` does.
    """
    from dataclasses import replace

    from fourfold.frontends.capture import capture
    from fourfold.frontends.subject import Subject
    from fourfold.runtime.loading import load

    model = load(folder, trust=trust)
    networks = [(part, part.module) for part in model.assembly.parts if part.words is None and part.module is not None]
    if not networks:
        raise InputError(f"{folder} holds no network that PyTorch can run, so there is no program to plan.",
                         "Name the original model, or an artefact of a network.")
    part, module = networks[-1]
    notes = [f"The artefact answers with {part.setting.engine} in {part.setting.precision}; what is planned is its network in PyTorch fp32."]
    if len(model.assembly.parts) > 1:
        notes.append(f"The artefact is a cascade of {len(model.assembly.parts)}: its last and dearest network, {part.name}, is what is planned.")
    subject = Subject(module, part.subject.origin, tuple(part.subject.inputs), part.subject.tokenizer, part.subject.processor, folder)
    told: dict[str, object] = {}
    sizes = dict(dims)
    if isinstance(data, str | Path):
        told = {"file": str(data), "path": str(Path(data).resolve()), "sha256": _file_hash(Path(data))}
        inputs = arrays(data) if str(data).endswith(".npz") else _first_batch(subject, data, sizes)
    else:
        inputs = _sized(part.signature, sizes) if data is None else data
    found = capture(subject, inputs, train=train, dims=sizes, seed=seed, gradient=gradient)
    found = replace(found, note=(*found.note, *notes))
    given = {"train": train, "level": "ops", "dims": dims, "seed": seed, "inputs": _specs(found), **told} | _gradient(train, gradient)
    where = {"ref": str(folder), "kind": "folder", "path": str(folder.resolve()), "part": part.name, "weights": weights_hash(found)}
    return ModelSource(found, where, given)


def _sized(signature: Any, dims: dict[str, int]) -> dict[str, np.ndarray]:
    """The batch that an artefact keeps, its rows and positions repeated or cut to "batch" and "length" (or "sequence"), which go from `dims`."""
    size, length = dims.pop("batch", None), dims.pop("length", dims.pop("sequence", None))
    found = {}
    for name in signature.names:
        array = np.asarray(signature.example[name])
        for axis, wanted in ((0, size), (1, length)):
            if wanted is not None and axis < array.ndim and axis in signature.dynamic.get(name, {}):
                array = np.take(array, np.arange(wanted) % array.shape[axis], axis)
        found[name] = array
    return found


def recapture(plan: Recorded, model: Any = None, inputs: Any = None, trust: Iterable[str] = ()) -> Captured:
    """The program that `plan` was made for, captured again from its own reference, or from `model` where the plan was made of an object in memory.

    trust: packages whose code the plan may run because it names it (a factory of the model or of the data), or the artefact that it names does.
    Raises ArtefactError where that is not trusted, or what is captured now has another graph, InputError where there is no reference and no `model`,
    and what `read` raises.
    """
    trusted = Trust(trust)
    if model is None:
        if plan.model.get("kind") in (None, "object"):
            raise InputError(f"The plan was made of an object in memory ({plan.model.get('ref')}).", "Give the model itself.")
        model = plan.model["ref"]
        if plan.model.get("path") and not Path(model).exists() and Path(plan.model["path"]).exists():
            model = plan.model["path"]
        _may_run(model, trusted)
    how = plan.capture
    sizes = how.get("dims") if inputs is None else None                 # given inputs have their own
    if inputs is None and how.get("file"):
        inputs = how["file"] if Path(how["file"]).exists() else how["path"]
        _may_run(inputs, trusted)
        if Path(inputs).exists() and how.get("sha256") not in (None, _file_hash(Path(inputs))):
            raise ArtefactError(f"{inputs} is not the file that the plan was made with.", "Make the plan again: fourfold plan MODEL --out DIR")
    gradient = str(how.get("gradient", "recorded"))                     # before it was said, it was recorded
    found = read(model, inputs, train=bool(how.get("train")), dims=sizes, seed=int(how.get("seed", 0)), gradient=gradient,
                 trust=trusted.packages).captured
    if found.graph.hash != plan.graph.hash:
        raise ArtefactError(f"{_words(model)} is not the program that the plan is for: {differs(plan.graph, found.graph)}.",
                            "Give the same model and inputs, or make the plan again.")
    return found


def _may_run(ref: object, trust: Trust) -> None:
    """Raises ArtefactError where a plan names a factory, and its package is not trusted."""
    if named(ref):
        trust.called(str(ref).removeprefix("jax:"), "plan")


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


def _batch(model: object, data: str | Path, dims: dict[str, int]) -> tuple[object, dict[str, np.ndarray]]:
    """(subject, the first batch of the user's data as the model reads it). Takes "batch" and "length" out of `dims`."""
    from fourfold.frontends.model import load_model

    if _kind(model) not in ("folder", "factory", "object"):
        raise InputError(f"{data}: examples are encoded for models of a folder or a factory only.", "Give arrays: --inputs FILE.npz")
    subject = load_model(model)
    return subject, _first_batch(subject, data, dims)


def _first_batch(subject: Any, data: str | Path, dims: dict[str, int]) -> dict[str, np.ndarray]:
    """The first batch of the user's data. Takes "batch" and "length" out of `dims`."""
    from fourfold.datasets.load import load_data

    size, length = dims.pop("batch", 1), dims.pop("length", dims.pop("sequence", None))
    splits, _ = load_data(data, None, subject, max_length=length)
    size = min(size, len(splits.train))
    return splits.train.collate(np.arange(size))


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


def _bytes(tensor: Tensor) -> Any:
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


def _words(model: object) -> str:
    if isinstance(model, str | Path):
        return str(model)
    folder = getattr(model, "folder", None)
    if folder is not None:
        return str(folder)
    module = getattr(model, "module", model)
    return str(getattr(module, "__qualname__", None) or type(module).__qualname__)


def _kind(model: object) -> str:
    """file, folder, factory or object (which lives in memory only)."""
    if getattr(model, "folder", None) is not None:
        return "folder"
    if not isinstance(model, str | Path):
        return "object"
    if str(model).endswith((".onnx", ".pt2")):
        return "file"
    return "folder" if Path(model).is_dir() else "factory"


def _path(model: object) -> str | None:
    kind = _kind(model)
    return str(Path(_words(model)).resolve()) if kind in ("file", "folder") else None
