"""An optimised model as a folder: data only, checked by sha256, loadable in a fresh process without training code.

cheap/
  manifest.json     what it is, how it was made, what was measured where, and the sha256 of every other file
  <part>/           one folder per member (a cascade has several): model.safetensors, tokenizer files, and the winning back end's own files
  report.json …     the evidence

`Model.predict` reads raw inputs (texts, pairs, arrays, files) exactly as the search did. On a processor other than the one it was raced on, the
stored choice still runs, or falls back to plain PyTorch with a warning; `fourfold race` decides anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import ArtefactError, FourfoldError, ModelError
from fourfold.ingest.task import Task

if TYPE_CHECKING:
    from torch import nn

    from fourfold.ingest.data import Examples
    from fourfold.ingest.model import Subject
    from fourfold.recipe import Recipe
    from fourfold.rewrites.compress.bag_of_words import BagOfWords
    from fourfold.rewrites.compress.cascade import Gate
    from fourfold.run.engines.base import Session, Signature

FORMAT = "fourfold.artefact/1"


@dataclass
class Setting:
    """How a part runs: engine and precision, threads, examples per batch, and whether batches are formed from inputs of like length."""

    engine: str = "torch"
    precision: str = "fp32"
    threads: int = 1
    batch: int = 32
    bucketing: bool = True

    def to_json(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __str__(self) -> str:
        plural, order = "s" if self.threads > 1 else "", ", by length" if self.bucketing else ""
        return f"{self.engine} {self.precision}, {self.threads} thread{plural}, batch {self.batch}{order}"


@dataclass
class Part:
    """One member: a network (structure, weights, engine files) or a bag of words.

    `subject` carries the origin and the encoders; `recipe` rebuilds the shape from the origin; `files` are engine files lying in `folder`.
    """

    name: str
    subject: Subject
    module: nn.Module | None
    recipe: Recipe | None
    setting: Setting
    signature: Signature | None = None
    folder: Path | None = None
    files: list[str] = field(default_factory=list)
    words: BagOfWords | None = None
    session: Session | None = None
    reencode: Callable[[Examples], Examples] | None = None

    def sees(self, examples: Examples) -> Examples:
        """The examples as this part reads them: re-encoded once where it has a smaller vocabulary than the original."""
        if self.reencode is None:
            return examples
        if self._seen is None or self._seen[0] is not examples:
            self._seen = (examples, self.reencode(examples))
        return self._seen[1]

    _seen: tuple[Examples, Examples] | None = field(default=None, repr=False)

    def open(self) -> Session:
        """The engine session, opened once."""
        if self.session is None:
            from fourfold.run.engines import engine

            assert self.signature is not None
            wrapped = None if self.module is None else self.subject.wrap(self.module)
            self.session = engine(self.setting.engine).open(
                self.folder or Path("."), wrapped, self.signature, self.setting.precision, self.setting.threads
            )
        return self.session

    def outputs(self, examples: Examples, task: Task) -> np.ndarray:
        """Records float64 [N, k] of this part over encoded examples, in their order, at its own batch size and bucketing."""
        if self.words is not None:
            return self.words.records(examples.raw or [])
        session, rows, examples = self.open(), None, self.sees(examples)
        for index in examples.batches(self.setting.batch, bucket=self.setting.bucketing):
            batch = examples.collate(index)
            targets = examples.collate_targets(index) if examples.targets is not None else None
            part = task.records(session.run(batch), batch, targets)
            rows = np.zeros((len(examples), part.shape[1])) if rows is None else rows
            rows[index] = part
        if rows is None:
            raise FourfoldError("there is nothing to predict: no examples.", "Give at least one row.")
        return rows

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None


@dataclass
class Assembly:
    """What answers: one part, or a cascade of parts with a gate between each and the next."""

    name: str
    parts: list[Part]
    gates: list[Gate] = field(default_factory=list)

    def outputs(self, examples: Examples, task: Task) -> np.ndarray:
        """Records [N, k]; the later, dearer parts only read what the gates hand on."""
        return self.routed(examples, task)[0]

    def routed(self, examples: Examples, task: Task) -> tuple[np.ndarray, list[float]]:
        """Records and the share of examples answered by each part."""
        rows = self.parts[0].outputs(examples, task)
        owner = np.zeros(len(examples), np.int64)
        open_ = np.arange(len(examples))
        for number, (gate, part) in enumerate(zip(self.gates, self.parts[1:], strict=True), 1):
            unsure = ~gate.keeps(rows[open_])
            rows[open_[~unsure]] /= gate.temperature
            open_ = open_[unsure]
            if len(open_) == 0:
                break
            rows[open_] = part.outputs(examples.take(open_), task)
            owner[open_] = number
        return rows, [float((owner == n).mean()) for n in range(len(self.parts))]

    def close(self) -> None:
        for part in self.parts:
            part.close()


def digest(path: Path) -> str:
    """sha256 of a file, hex."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def save(
    assembly: Assembly, task: Task, folder: Path, facts: Mapping[str, Any], *, extra: Mapping[str, str] | None = None, max_length: int | None = None
) -> Path:
    """Write the artefact beside `folder` and move it into place when complete; an older artefact there is replaced only then.

    `facts` go into the manifest (metrics, hardware, methods, versions …); `extra` are further text files by name. Raises FourfoldError on a full
    disk.
    """
    from safetensors import SafetensorError

    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        parts = [_save_part(part, aside) for part in assembly.parts]
        for name, text in (extra or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
        files = {str(p.relative_to(aside)): digest(p) for p in sorted(aside.rglob("*")) if p.is_file()}
        manifest = {
            "format": FORMAT,
            "name": assembly.name,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "task": task.to_json(),
            "max_length": max_length,
            "parts": parts,
            "gates": [{"temperature": g.temperature, "threshold": g.threshold} for g in assembly.gates],
            **facts,
            "files": files,
        }
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        _replace(aside, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise FourfoldError(
            f"could not write {folder}: {getattr(error, 'strerror', None) or error}.",
            "Free some space or choose another --out; the search is kept, so a rerun goes straight to saving.",
        ) from error
    return folder


def _replace(aside: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        keep = [p for p in folder.iterdir() if p.name.startswith(".fourfold")]
        for path in keep:  # the journal lives in the folder it is about
            os.replace(path, aside / path.name)
        os.replace(folder, old)
    os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _save_part(part: Part, root: Path) -> dict[str, Any]:
    home = root / part.name
    home.mkdir()
    if part.words is not None:
        part.words.save(home)
        return {"name": part.name, "kind": "bag_of_words", "setting": part.setting.to_json()}
    from safetensors.torch import save_file

    from fourfold.ingest.model import state
    from fourfold.run.engines import engine

    assert part.module is not None and part.signature is not None
    if part.subject.origin.get("kind") == "opaque" and not engine(part.setting.engine).standalone:
        raise ModelError(
            f"{part.subject.origin['class']} cannot be made again in another process: {part.subject.origin['why']}.",
            "Give the model as package.module:factory, or let ONNX Runtime or OpenVINO run it (their files stand alone).",
        )
    save_file(state(part.module), str(home / "model.safetensors"), metadata={"format": "pt"})
    for name in part.files:
        assert part.folder is not None
        shutil.copy2(part.folder / name, home / name)
    for encoder in (part.subject.tokenizer, part.subject.processor):
        if encoder is not None and hasattr(encoder, "save_pretrained"):
            encoder.save_pretrained(home / "tokenizer")
    return {
        "name": part.name,
        "kind": "network",
        "origin": part.subject.origin,
        "recipe": json.loads(part.recipe.to_json()) if part.recipe else {"edits": []},
        "inputs": list(part.subject.inputs),
        "setting": part.setting.to_json(),
        "signature": part.signature.to_json(),
        "engine_files": part.files,
        "parameters": sum(p.numel() for p in part.module.parameters()),
        "sizes": {n: list(p.shape) for n, p in part.module.named_parameters()},
    }


class Model:
    """A loaded artefact. `predict(inputs)` answers; `manifest` says what it is; `warnings` what differs from where it was made."""

    def __init__(self, folder: Path, manifest: dict[str, Any], assembly: Assembly, task: Task, warnings: list[str]) -> None:
        self.folder, self.manifest, self.assembly, self.task, self.warnings = folder, manifest, assembly, task, warnings

    def encode(self, data: Any) -> Examples:
        """Raw inputs (list of texts or pairs, arrays, a file, rows without labels) as this model reads them."""
        from fourfold.ingest.encode import load_inputs

        return load_inputs(data, self.task, self.assembly.parts[-1].subject, max_length=self.manifest.get("max_length"))

    def records(self, data: Any) -> np.ndarray:
        """What the metric sees: class scores [N, C], values [N, 1] …"""
        return self.assembly.outputs(self.encode(data), self.task)

    def predict(self, data: Any) -> list[Any]:
        """Predictions that a person reads: class names, floats, texts; one per input. Encoder–decoders write their texts greedily."""
        if self.task.kind == "seq2seq" and self.task.writing is not None:
            return self._write(self.encode(data))
        return list(self.task.predict(self.records(data)))

    def _write(self, examples: Examples) -> list[str]:
        part = self.assembly.parts[-1]
        session, texts = part.open(), [""] * len(examples)
        for index in examples.batches(part.setting.batch, bucket=part.setting.bucketing):
            for i, text in zip(index, self.task.write(session.run, examples.collate(index)), strict=True):
                texts[i] = text
        return texts

    __call__ = predict

    @property
    def module(self) -> nn.Module | None:
        """The first part's torch module (None for a bag of words)."""
        return self.assembly.parts[0].module

    def close(self) -> None:
        self.assembly.close()


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """manifest.json, or ArtefactError."""
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{folder} is not an artefact: it has no manifest.json.", "Give a folder that `fourfold optimize --out` wrote.") from None
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}.", "Copy the artefact again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"{path} has format {manifest.get('format') if isinstance(manifest, dict) else None!r}; this version reads {FORMAT!r}.",
            "Use the version that wrote it.",
        )
    return manifest


def verify(folder: Path | str, manifest: Mapping[str, Any]) -> None:
    """Compare every file with its recorded sha256; raises ArtefactError naming the first that is missing or altered."""
    for name, wanted in manifest["files"].items():
        path = Path(folder) / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing.", "Copy the artefact again.")
        if digest(path) != wanted:
            raise ArtefactError(f"{path} was altered: its sha256 is not the one in the manifest.", "Copy the artefact again; nothing was loaded.")


def load(folder: Path | str) -> Model:
    """Open an artefact: verifies every file, rebuilds the shapes, opens the stored back end (or PyTorch in its place, with a warning).

    Raises ArtefactError for anything damaged, altered or unknown. Needs no training code and unpickles nothing.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    verify(root, manifest)
    warnings: list[str] = []
    parts = [_load_part(root / spec["name"], spec, warnings) for spec in manifest["parts"]]
    gates = []
    if manifest["gates"]:
        from fourfold.rewrites.compress.cascade import Gate

        gates = [Gate(**g) for g in manifest["gates"]]
    return Model(root, manifest, Assembly(manifest["name"], parts, gates), Task.from_json(manifest["task"], _tokenizer(parts)), warnings)


def _tokenizer(parts: list[Part]) -> Any:
    """The tokenizer that turns answers into text: that of the last part which has one."""
    return next((p.subject.tokenizer for p in reversed(parts) if p.subject is not None and p.subject.tokenizer is not None), None)


def _load_part(home: Path, spec: Mapping[str, Any], warnings: list[str]) -> Part:
    from fourfold.ingest.model import Subject

    setting = Setting(**spec["setting"])
    if spec["kind"] == "bag_of_words":
        from fourfold.rewrites.compress.bag_of_words import BagOfWords

        return Part(spec["name"], None, None, None, setting, words=BagOfWords.load(home))  # type: ignore[arg-type]
    from fourfold.recipe import Recipe
    from fourfold.run.engines import engine
    from fourfold.run.engines.base import Signature

    recipe = Recipe.from_json(spec["recipe"])
    module = None if spec["origin"]["kind"] == "opaque" else restore(spec["origin"], recipe, home / "model.safetensors")
    tokenizer, processor = encoders(home / "tokenizer")
    subject = Subject(module, spec["origin"], tuple(spec["inputs"]), tokenizer, processor, home)  # type: ignore[arg-type]
    part = Part(spec["name"], subject, module, recipe, setting, Signature.from_json(spec["signature"]), home, list(spec["engine_files"]))
    from fourfold.machine import here

    reason = engine(setting.engine).declines(setting.precision, here())
    if reason is None:
        try:
            part.open()
        except FourfoldError as error:
            reason = error.message
    if reason and module is None:
        raise ArtefactError(f"{home} only runs on {setting.engine}, which cannot run here: {reason}.", "Install that back end.")
    if reason:
        warnings.append(f"{setting.engine} {setting.precision} cannot run here ({reason}); PyTorch fp32 stands in. Run: fourfold race {home.parent}")
        part.setting = Setting("torch", "fp32", setting.threads, setting.batch, setting.bucketing)
        part.session = None
    return part


def bare(origin: Mapping[str, Any]) -> nn.Module:
    """The architecture before any edit: our own static student, or whatever the user's model came from."""
    if origin["kind"] == "static":
        from fourfold.rewrites.compress.static import StaticStudent

        return StaticStudent(**origin["shape"])
    from fourfold.ingest.model import rebuild

    return rebuild(dict(origin))


def restore(origin: Mapping[str, Any], recipe: Recipe, weights: Path) -> nn.Module:
    """Bare architecture → shape → weights, in evaluation mode."""
    from safetensors.torch import load_file

    from fourfold.ingest.model import load_state
    from fourfold.recipe import apply

    return load_state(apply(bare(origin), recipe), load_file(str(weights))).eval()


def encoders(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, processor) saved with a part; None where there is none."""
    if not folder.is_dir():
        return None, None
    from fourfold.ingest.model import companions

    return companions(folder)


def pack(values: Iterable[Any]) -> list[Any]:
    """Predictions as JSON values."""
    return [v.item() if isinstance(v, np.generic) else v.tolist() if isinstance(v, np.ndarray) else v for v in values]
