"""The shape of manifest.json: what is where, of which type, and that no path leaves the folder. Checked before anything it names is looked at."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.errors import ArtefactError
from fourfold.registry import owner

_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+ -]*")  # of a file or a folder: no separator, nothing hidden, not ".."
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.I)
_ORIGINS = {"transformers": ("class", "config"), "tree": ("tree",), "factory": ("entry",), "opaque": ("class", "why"), "static": ("shape",),
            "onnx": ("class", "graph")}
_DTYPES = {"int64", "int32", "int16", "int8", "uint8", "bool", "float64", "float32", "float16"}
_MOST = 1 << 24  # elements of the example batch, threads and rows of a batch are far fewer


def check(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises ArtefactError naming the first entry of `path` that is missing, of another type or out of bounds."""
    files = _held(path, manifest, "files", dict)
    for name, digest in files.items():
        _inside(path, name, "files")
        _need(path, isinstance(digest, str), f"files[{name[:80]!r}] is no sha256")
    parts = _held(path, manifest, "parts", list)
    _need(path, 0 < len(parts) <= 16, "parts are none or too many")
    names = [_part(path, part, files) for part in parts]
    _need(path, len(set(names)) == len(names), "two parts have one name")
    gates = _held(path, manifest, "gates", list)
    _need(path, len(gates) == len(parts) - 1, "there is not a gate between each part and the next")
    for gate in gates:
        for key in ("temperature", "threshold"):
            _need(path, isinstance(gate, dict) and set(gate) == {"temperature", "threshold"} and _number(gate[key]), f"a gate has no {key}")
    _held(path, manifest, "name", str)
    most = manifest.get("max_length")
    _need(path, most is None or (type(most) is int and 0 < most < 1 << 40), "max_length is no positive number")
    task = _held(path, manifest, "task", dict)
    _held(path, task, "kind", str, "task.")
    _held(path, task, "metric", str, "task.")
    classes = task.get("classes", 0)
    _need(path, classes is None or isinstance(classes, int | list), "task.classes is no list")


def _part(path: Path, part: Any, files: Mapping[str, Any]) -> str:
    _need(path, isinstance(part, dict), "a part is no mapping")
    name = _held(path, part, "name", str)
    _need(path, "/" not in name, f"the part {name[:80]!r} is no plain name")
    _inside(path, name, "parts")
    kind = _held(path, part, "kind", str)
    _need(path, isinstance(part.get("engine_by", ""), str), f"{name}.engine_by is no module")
    _setting(path, _held(path, part, "setting", dict), name, kind, "engine_by" in part)
    if kind != "network":
        technique = None if "by" in part else owner(kind)              # somebody else's technique is looked at when it is trusted
        _need(path, "by" in part or getattr(technique, "member", "") == kind, f"the kind of {name} is {kind[:40]!r}")
        _need(path, isinstance(part.get("by", ""), str), f"{name}.by is no module")
        wanted = {f"{name}/{file}" for file in getattr(technique, "files", ())}
        _need(path, wanted <= set(files) and any(file.startswith(f"{name}/") for file in files), f"files of {name} are not listed")
        return name
    origin = _held(path, part, "origin", dict)
    _need(path, str(origin.get("kind")) in _ORIGINS, f"the origin of {name} is of an unknown kind")
    for key in _ORIGINS[origin["kind"]]:
        _held(path, origin, key, str if key in ("class", "why", "entry", "graph") else dict, f"{name}.origin.")
    if origin["kind"] == "static":
        for key in ("vocabulary", "width", "outputs", "window", "hidden", "pair"):
            size = origin["shape"].get(key)
            _need(path, isinstance(size, int) and 0 <= size <= _MOST, f"{name}.origin.shape.{key} is absurd")
    if origin["kind"] == "onnx":
        _words(path, _held(path, origin, "inputs", list, f"{name}.origin."), f"{name}.origin.inputs")
        config = origin.get("config")
        _need(path, config is None or isinstance(config, dict), f"{name}.origin.config is no mapping")
    recipe = _held(path, part, "recipe", dict)
    edits = _held(path, recipe, "edits", list, f"{name}.recipe.")
    _need(path, all(isinstance(edit, dict) for edit in edits), f"{name}.recipe.edits holds what is no edit")
    _words(path, _held(path, part, "inputs", list), f"{name}.inputs")
    engine_files = _held(path, part, "engine_files", list)
    _words(path, engine_files, f"{name}.engine_files")
    place = part.get("engine_folder")
    _need(path, place is None or (isinstance(place, str) and "/" not in place), f"{name}.engine_folder is no plain name")
    home = name if not place else f"{name}/{place}"
    _inside(path, home, "engine_folder")
    for file in engine_files:
        _need(path, "/" not in file and f"{home}/{file}" in files, f"the engine file {file[:80]!r} is not one of the listed files")
    _need(path, origin["kind"] == "opaque" or f"{name}/model.safetensors" in files, f"the weights of {name} are not listed")
    reading = part.get("reading")
    _need(path, reading is None or isinstance(reading, dict), f"{name}.reading is no mapping")
    _signature(path, _held(path, part, "signature", dict), name)
    return name


def _setting(path: Path, setting: Mapping[str, Any], name: str, kind: str, foreign: bool) -> None:
    """`foreign`: the engine is somebody else's, and is looked at when it is trusted."""
    from fourfold.engines import names

    engines = names() if kind == "network" else ["numpy"]               # what answers without a network needs no back end
    known = {"engine", "precision", "threads", "batch", "bucketing"}
    _need(path, set(setting) == known, f"{name}.setting has other keys than {', '.join(sorted(known))}")
    _need(path, isinstance(setting["engine"], str) and (setting["engine"] in engines or foreign), f"{name}.setting.engine is unknown")
    precision = setting["precision"]
    _need(path, isinstance(precision, str) and re.fullmatch(r"[a-z0-9-]{2,20}", precision) is not None, f"{name}.setting.precision is unknown")
    for key, most in (("threads", 4096), ("batch", 1 << 20)):
        _need(path, type(setting[key]) is int and 0 < setting[key] <= most, f"{name}.setting.{key} is absurd")
    _need(path, isinstance(setting["bucketing"], bool), f"{name}.setting.bucketing is no yes or no")


def _signature(path: Path, signature: Mapping[str, Any], name: str) -> None:
    where = f"{name}.signature."
    names = _held(path, signature, "names", list, where)
    _words(path, names, f"{where}names")
    dtypes, dynamic, shapes = (_held(path, signature, key, dict, where) for key in ("dtypes", "dynamic", "shapes"))
    for one in names:
        _need(path, isinstance(dtypes.get(one), str) and dtypes[one] in _DTYPES, f"{where}dtypes of an input")
        shape, axes = shapes.get(one), dynamic.get(one)
        sizes = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n <= _MOST for n in shape)
        _need(path, sizes and math.prod(shape or []) <= _MOST, f"{where}shapes of an input")
        _need(path, isinstance(axes, dict) and all(str(axis).isdecimal() and isinstance(label, str) for axis, label in axes.items()),
              f"{where}dynamic of an input")
    _need(path, set(dtypes) == set(names) == set(dynamic) == set(shapes), f"{where}names and sizes differ")


def _inside(path: Path, name: Any, where: str) -> None:
    """Raises ArtefactError for what is no relative path of plain names."""
    plain = isinstance(name, str) and len(name) < 1000 and all(_NAME.fullmatch(one) and not _RESERVED.fullmatch(one) for one in name.split("/"))
    _need(path, plain, f"{where} names {str(name)[:80]!r}, which is no path inside the artefact")


def _words(path: Path, found: list[Any], where: str) -> None:
    _need(path, all(isinstance(one, str) for one in found), f"{where} holds what is no text")


def _held(path: Path, data: Mapping[str, Any], key: str, kind: type, where: str = "") -> Any:
    _need(path, key in data, f"{where}{key} is missing")
    _need(path, isinstance(data[key], kind), f"{where}{key} is no {kind.__name__}")
    return data[key]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _need(path: Path, holds: bool, what: str) -> None:
    if not holds:
        raise ArtefactError(f"{path} is damaged: {what}.", "Copy the artefact again; nothing was loaded.")
