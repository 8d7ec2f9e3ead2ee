"""The shape of manifest.json: what is where, of which type, and that no path leaves the folder. Checked before anything it names is looked at.

The structs are the schema; keys that only readers of a report look at (`candidate`, `hardware`, `versions` …) are passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from fourfold.documents import Finite, StrictDocument, TypedDocument, convert
from fourfold.errors import ArtefactError
from fourfold.registry import owner

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+ -]*")  # of a file or a folder: no separator, nothing hidden, not ".."
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)
_MOST = 1 << 24  # elements of the example batch, threads and rows of a batch are far fewer
_MEND = "Copy the artefact again; nothing was loaded."

Size = Annotated[int, Meta(ge=0, le=_MOST)]
Dtype = Literal["int64", "int32", "int16", "int8", "uint8", "bool", "float64", "float32", "float16"]


class GateEntry(StrictDocument):
    """What lies between a member of a cascade and the next (`fourfold.gate.Gate`)."""

    temperature: Finite
    threshold: Finite


class SettingEntry(StrictDocument):
    """How a part is run."""

    engine: str
    precision: Annotated[str, Meta(pattern=r"^[a-z0-9-]{2,20}$")]
    threads: Annotated[int, Meta(gt=0, le=4096)]
    batch: Annotated[int, Meta(gt=0, le=1 << 20)]
    bucketing: bool


class SignatureEntry(TypedDocument):
    """Inputs of a stored network: `dtypes`, `shapes` of the example batch, `dynamic` axes with a label each."""

    names: list[str]
    dtypes: dict[str, Dtype]
    dynamic: dict[str, dict[Annotated[str, Meta(pattern=r"^\d+$")], str]]
    shapes: dict[str, Annotated[list[Size], Meta(max_length=8)]]


class TransformersOrigin(TypedDocument, tag_field="kind", tag="transformers"):
    class_: str = msgspec.field(name="class")
    config: dict[str, object]


class TreeOrigin(TypedDocument, tag_field="kind", tag="tree"):
    tree: dict[str, object]


class FactoryOrigin(TypedDocument, tag_field="kind", tag="factory"):
    entry: str


class OpaqueOrigin(TypedDocument, tag_field="kind", tag="opaque"):
    class_: str = msgspec.field(name="class")
    why: str


class StaticShape(TypedDocument):
    """Sizes of a network of token embeddings."""

    vocabulary: Size
    width: Size
    outputs: Size
    window: Size
    hidden: Size
    pair: bool | Size


class StaticOrigin(TypedDocument, tag_field="kind", tag="static"):
    shape: StaticShape


class OnnxOrigin(TypedDocument, tag_field="kind", tag="onnx"):
    class_: str = msgspec.field(name="class")
    graph: str
    inputs: list[str]
    config: dict[str, object] | None = None


class RecipeEntry(TypedDocument):
    edits: list[dict[str, object]]


class MemberEntry(TypedDocument):
    """A part of an artefact: a network, or what the technique `kind` made; `by` and `engine_by` are the modules of a technique and of an engine that
    are not ours."""

    name: str
    kind: str
    setting: SettingEntry
    by: str | UnsetType = UNSET
    engine_by: str | UnsetType = UNSET


class NetworkEntry(MemberEntry, kw_only=True):
    """A network: where its architecture comes from, what was done to it, and the files of its back end."""

    origin: TransformersOrigin | TreeOrigin | FactoryOrigin | OpaqueOrigin | StaticOrigin | OnnxOrigin
    recipe: RecipeEntry
    inputs: list[str]
    engine_files: list[str]
    signature: SignatureEntry
    engine_folder: str | None = None
    reading: dict[str, object] | None = None


class TaskEntry(TypedDocument):
    kind: str
    metric: str
    classes: int | list[object] | None = 0


class Manifest(TypedDocument):
    """manifest.json, as far as loading rests on it."""

    format: str
    name: str
    files: dict[str, str]
    parts: Annotated[list[MemberEntry], Meta(min_length=1, max_length=16)]
    gates: list[GateEntry]
    task: TaskEntry
    max_length: Annotated[int, Meta(gt=0, lt=1 << 40)] | None = None


def check(path: Path, manifest: Mapping[str, object]) -> Manifest:
    """manifest.json as a struct. Raises ArtefactError naming the first entry of `path` that is missing, of another type or out of bounds."""
    made = convert(manifest, Manifest, path, _MEND)
    for name in made.files:
        _inside(path, name, "files")
    given = manifest["parts"]
    for index, part in enumerate(made.parts):
        _member(path, part, made.files)
        if part.kind == "network" and isinstance(given, list):
            made.parts[index] = _network(path, given[index], made.files)
    _need(path, len({part.name for part in made.parts}) == len(made.parts), "two parts have one name")
    _need(path, len(made.gates) == len(made.parts) - 1, "there is not a gate between each part and the next")
    return made


def _member(path: Path, part: MemberEntry, files: Mapping[str, str]) -> None:
    from fourfold.engines import names
    from fourfold.engines.decode import names as generators

    name, kind = part.name, part.kind
    _need(path, "/" not in name, f"the part {name[:80]!r} is no plain name")
    _inside(path, name, "parts")
    engines = [*names(), *generators()] if kind == "network" else ["numpy"]     # what is no network needs no back end
    foreign = part.engine_by is not UNSET                               # somebody else's engine is looked at when it is trusted
    _need(path, part.setting.engine in engines or foreign, f"{name}.setting.engine is unknown")
    if kind != "network":
        technique = owner(kind) if part.by is UNSET else None           # somebody else's technique is looked at when it is trusted
        _need(path, part.by is not UNSET or getattr(technique, "member", "") == kind, f"the kind of {name} is {kind[:40]!r}")
        wanted = {f"{name}/{file}" for file in getattr(technique, "files", ())}
        _need(path, wanted <= set(files) and any(file.startswith(f"{name}/") for file in files), f"files of {name} are not listed")


def _network(path: Path, given: object, files: Mapping[str, str]) -> NetworkEntry:
    part = convert(given, NetworkEntry, path, _MEND)
    name, place = part.name, part.engine_folder
    _need(path, place is None or "/" not in place, f"{name}.engine_folder is no plain name")
    home = name if not place else f"{name}/{place}"
    _inside(path, home, "engine_folder")
    for file in part.engine_files:
        _need(path, "/" not in file and f"{home}/{file}" in files, f"the engine file {file[:80]!r} is not one of the listed files")
    _need(path, isinstance(part.origin, OpaqueOrigin) or f"{name}/model.safetensors" in files, f"the weights of {name} are not listed")
    _signature(path, part.signature, name)
    return part


def _signature(path: Path, signature: SignatureEntry, name: str) -> None:
    held: Iterable[Iterable[str]] = (signature.dtypes, signature.dynamic, signature.shapes)
    _need(path, all(set(one) == set(signature.names) for one in held), f"{name}.signature.names and sizes differ")
    _need(path, all(math.prod(shape) <= _MOST for shape in signature.shapes.values()), f"{name}.signature.shapes of an input")


def _inside(path: Path, name: str, where: str) -> None:
    """Raises ArtefactError for what is no relative path of plain names."""
    plain = len(name) < 1000 and all(_NAME.fullmatch(one) and not _RESERVED.fullmatch(one) for one in name.split("/"))
    _need(path, plain, f"{where} names {name[:80]!r}, which is no path inside the artefact")


def _need(path: Path, holds: bool, what: str) -> None:
    if not holds:
        raise ArtefactError(f"{path} is damaged: {what}.", _MEND)
