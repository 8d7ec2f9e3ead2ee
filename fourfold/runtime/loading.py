"""Reading an artefact: verify every file, rebuild the shapes, fill in the weights, open the stored back end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fourfold.datasets.task import Task
from fourfold.errors import ArtefactError, FourfoldError, MissingExtra
from fourfold.runtime.artefact import FORMAT, Assembly, Model, Part, Setting, digest
from fourfold.runtime.later import Later
from fourfold.runtime.shelf import Shelved
from fourfold.trust import EVERYONE, Trust, option

if TYPE_CHECKING:
    from torch import nn

    from fourfold.frontends.subject import Subject
    from fourfold.recipe import Recipe

LARGEST = 1 << 28  # bytes of a manifest, which holds small tensors of a module's tree


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """manifest.json, its shape and its paths checked (`fourfold.runtime.manifest`), or ArtefactError."""
    from fourfold.runtime.manifest import check

    path = Path(folder) / "manifest.json"
    try:
        if path.stat().st_size > LARGEST:
            raise ArtefactError(f"{path} has {path.stat().st_size:,} bytes, which no manifest has.", "Copy the artefact again.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(f"{folder} is not an artefact: it has no manifest.json.", "Give a folder that `fourfold optimize --out` wrote.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}.", "Copy the artefact again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"{path} has format {str(manifest.get('format') if isinstance(manifest, dict) else None)[:60]!r}; this version reads {FORMAT!r}.",
            "Use the version that wrote it.",
        )
    check(path, manifest)
    return manifest


def verify(folder: Path | str, manifest: Mapping[str, Any]) -> None:
    """Compare every file with its recorded sha256; raises ArtefactError naming the first that is missing, altered or a link out of the folder."""
    root = Path(folder)
    for name, wanted in manifest["files"].items():
        path = root / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing.", "Copy the artefact again.")
        if not path.resolve().is_relative_to(root.resolve()):
            raise ArtefactError(f"{path} is a link to a place outside of the artefact.", "Copy the artefact with the files themselves (cp -L).")
        if digest(path) != wanted:
            raise ArtefactError(f"{path} was altered: its sha256 is not the one in the manifest.", "Copy the artefact again; nothing was loaded.")


def load(folder: Path | str, *, trust: Iterable[str] = ()) -> Model:
    """Open an artefact: verifies every file, rebuilds the shapes, opens the stored back end (or PyTorch in its place, with a warning).

    trust: packages whose code may run because the artefact names it, such as the one that defines the model's classes or its factory; torch,
    transformers and fourfold need no mention, and only what is on a list of theirs is used (docs/threats.md).

    Raises ArtefactError for anything damaged, altered or unknown, or that is not trusted. Needs no training code and unpickles nothing.
    """
    root = Path(folder)
    trusted = Trust(trust)
    manifest = read_manifest(root)
    verify(root, manifest)
    warnings: list[str] = []
    with sound(root):
        generates = bool(manifest["task"].get("generation"))
        parts = [_load_part(root / spec["name"], spec, warnings, trusted, generates) for spec in manifest["parts"]]
        _apart(parts, manifest)
        gates = []
        if manifest["gates"]:
            from fourfold.gate import Gate

            gates = [Gate(**g) for g in manifest["gates"]]
        task = Task.from_json(manifest["task"], _tokenizer(parts))
        for part in parts if generates else ():
            part.generating = task
            _open_generating(part, warnings)
        return Model(root, manifest, Assembly(manifest["name"], parts, gates), task, warnings)


@contextmanager
def sound(root: Path) -> Iterator[None]:
    """Whatever goes wrong inside because the artefact's data do not fit together is an ArtefactError."""
    try:
        yield
    except (ArtefactError, MissingExtra):
        raise
    except FourfoldError as error:
        raise ArtefactError(error.message, error.mend) from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ArtefactError(f"{root} does not fit together: {what}", "It is damaged, or made with other versions of its libraries.") from error


def _tokenizer(parts: list[Part]) -> object:
    """The tokenizer that turns answers into text: that of the last part which has one."""
    return next((p.subject.tokenizer for p in reversed(parts) if p.subject is not None and p.subject.tokenizer is not None), None)


def _open_generating(part: Part, warnings: list[str]) -> None:
    """Open what generates; where its back end cannot run here, PyTorch in its place, with a warning."""
    from fourfold.engines.decode import decoder
    from fourfold.host import here

    reason = decoder(part.setting.engine).declines(part.setting.precision, here())
    if reason is None:
        try:
            part.open()
            return
        except FourfoldError as error:
            reason = error.message
    warnings.append(f"{part.setting.engine} {part.setting.precision} cannot run here ({reason}); PyTorch fp32 stands in. "
                    "Run the manifest's command on this machine.")
    part.setting = Setting("torch", "fp32", part.setting.threads, part.setting.batch, part.setting.bucketing)
    part.open()


def _load_part(home: Path, spec: Mapping[str, Any], warnings: list[str], trust: Trust, generates: bool = False) -> Part:
    setting = Setting(**spec["setting"])
    _adopted(spec, trust)
    if spec["kind"] != "network":
        from fourfold.registry import owner

        technique = owner(spec["kind"])
        if technique is None or getattr(technique, "member", "") != spec["kind"]:
            raise ArtefactError(f"no technique here makes members of the kind {spec['kind'][:40]!r}.", "Install the version that the artefact needs.")
        return Part(spec["name"], None, None, None, setting, words=technique().opened(home))  # type: ignore[arg-type]
    from fourfold.engines import adopt, engine
    from fourfold.engines.base import Signature
    from fourfold.host import here

    if "engine_by" in spec:
        _there(str(spec["engine_by"]), "engine", trust)
        adopt(str(spec["engine_by"]))
    opaque = spec["origin"]["kind"] == "opaque"
    # Neither is made before somebody asks for it: ONNX Runtime and OpenVINO need their own files only.
    recipe: Later[Recipe | None] = Later(lambda: _recipe(spec))
    module = Later(lambda: None if opaque else _module(home, spec, trust))
    subject = Shelved(home, spec["origin"], tuple(spec["inputs"]), spec.get("reading"), module)
    part = Part(
        spec["name"],
        cast("Subject", subject),
        Later(lambda: subject.module),
        recipe,
        setting,
        Signature.from_json(spec["signature"]),
        _engine_folder(home, spec),
        list(spec["engine_files"]),
    )
    if generates:  # opened by `load`, once it is known how it writes
        return part
    reason = engine(setting.engine).refuses(setting.precision, here())
    if reason is None:
        try:
            part.open()
        except FourfoldError as error:
            reason = error.message
    if reason and opaque:
        raise ArtefactError(f"{home} only runs on {setting.engine}, which cannot run here: {reason}.", "Install that back end.")
    if reason:
        again = f"fourfold race {home.parent}{option(sorted(trust.packages))}"
        warnings.append(f"{setting.engine} {setting.precision} cannot run here ({reason}); PyTorch fp32 stands in. Run: {again}")
        part.setting = Setting("torch", "fp32", setting.threads, setting.batch, setting.bucketing)
        part.session = None
        part.open()
    return part


def _engine_folder(home: Path, spec: Mapping[str, object]) -> Path:
    """Where the back end's files lie: beside the weights, or in a folder that a later race made there."""
    name = str(spec.get("engine_folder") or "")
    if not name:
        return home
    if not name.startswith("raced-") or not name.removeprefix("raced-").isdigit():
        raise ArtefactError(f"the manifest of {home.parent} names {name!r} as a folder of engine files.", "Copy the artefact again.")
    return home / name


def _adopted(spec: Mapping[str, Any], trust: Trust) -> None:
    """Make the techniques known that are none of ours and whose edits the recipe holds, or who made the member, where they are trusted."""
    from fourfold.registry import adopt

    edits = spec["recipe"]["edits"] if spec["kind"] == "network" else [spec]
    for where in dict.fromkeys(str(edit["by"]) for edit in edits if "by" in edit):
        _there(where, "technique", trust)
        adopt(where)


def _there(where: str, what: str, trust: Trust) -> None:
    """Raises ArtefactError where the module of a technique or an engine is not trusted, or not installed."""
    from importlib.util import find_spec

    trust.called(f"{where}:{what}")
    try:
        there = find_spec(where) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        raise ArtefactError(f"the artefact needs the {what} in {where}, which is not installed here.", "Install its package.")


def _recipe(spec: Mapping[str, Any]) -> Recipe:
    from fourfold.recipe import Recipe

    return Recipe.from_json(spec["recipe"])


def _apart(parts: list[Part], manifest: Mapping[str, Any]) -> None:
    """Members whose tokenizer is not that of the member that reads for all read the texts themselves."""
    from fourfold.datasets.unread import Unread

    reader = Assembly("", parts).reader()
    if reader is None or reader.tokenizer is None:
        return

    def files(part: Part) -> list[tuple[str, str]]:
        begin = f"{part.name}/tokenizer/"
        return sorted((name.removeprefix(begin), digest) for name, digest in manifest["files"].items() if name.startswith(begin))

    most = manifest.get("max_length")
    held = {id(part.subject): files(part) for part in parts if part.subject is not None}
    for part in parts:
        if part.subject is not None and part.subject.tokenizer is not None and held[id(part.subject)] != held[id(reader)]:
            part.reencode = lambda examples, s=part.subject: Unread(examples.raw or [], s, most).read()


def _module(home: Path, spec: Mapping[str, Any], trust: Trust) -> nn.Module:
    with sound(home):
        return restore(spec["origin"], _recipe(spec), home / "model.safetensors", trust)


def bare(origin: Mapping[str, object], trust: Trust = EVERYONE) -> nn.Module:
    """The architecture before any edit: what a technique begins from nothing, or whatever the user's model came from. `trust`: see
    `fourfold.trust`."""
    from fourfold.registry import owner

    technique = owner(str(origin["kind"]))
    if technique is not None:
        return technique().begin(origin, trust.room)
    from fourfold.frontends.model import rebuild

    return rebuild(dict(origin), trust)


def restore(origin: Mapping[str, object], recipe: Recipe, weights: Path, trust: Trust = EVERYONE) -> nn.Module:
    """Bare architecture → shape → weights, in evaluation mode."""
    from safetensors.torch import load_file

    from fourfold.frontends.model import load_state
    from fourfold.recipe import apply

    return load_state(apply(bare(origin, trust), recipe), load_file(str(weights))).eval()


def encoders(folder: Path) -> tuple[object, object]:
    """(tokenizer, processor) saved with a part; None where there is none."""
    if not folder.is_dir():
        return None, None
    from fourfold.frontends.preprocessors import companions

    return companions(folder)
