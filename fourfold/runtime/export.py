"""An artefact's network for others to open: a transformers folder, an ONNX file or an OpenVINO model, with its tokenizer and a page on its inputs.

What is written is opened in a process of its own and must answer as the artefact's member does before the export is called done. Refused with the
reason: cascades (export a member), counted words, and shapes that a transformers configuration cannot express.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.engines import engine, formats
from fourfold.errors import InputError, ModelError
from fourfold.folder import even
from fourfold.runtime.artefact import Model, Part
from fourfold.runtime.loading import load

if TYPE_CHECKING:
    from torch import nn

    from fourfold.engines.base import Batch

TRANSFORMERS = "hf"  # the one format that is no engine's
CLOSE = 2e-3  # largest accepted difference of outputs, relative to their spread


def targets() -> tuple[str, ...]:
    """What `--to` takes: a transformers folder, and the formats of the engines."""
    return (TRANSFORMERS, *formats())


def export(folder: Path | str, to: str, out: Path | str, *, member: str | None = None, trust: Sequence[str] = ()) -> dict[str, Any]:
    """Write the network of the artefact in `folder` into the new folder `out`; what was written, as plain data.

    to: "hf", "onnx" or "openvino". member: which, of a cascade. trust: as in `load`. Raises InputError for what cannot be asked, ModelError for what
    cannot be expressed.
    """
    if to not in (known := targets()):
        raise InputError(f"--to {to!r} is not known.", f"Choose from: {', '.join(known)}.")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already and is not empty.", "Name a new folder.")
    model = load(folder, trust=trust)
    try:
        part = _member(model, member)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            batches = _batches(model, part)
            wrote = _transformers(model, part, made, batches) if to == TRANSFORMERS else _file(part, to, made, Path(scratch), batches)
            _companions(model, part, made)
            off = _checked(made, to, batches, wrote.pop("expected"), Path(scratch), wrote.pop("hint", "f32"))
            (made / "README.md").write_text(_page(model, part, to, wrote), encoding="utf-8")
            even(made)
            if target.exists():
                target.rmdir()
            os.rename(made, target)
        return {"folder": str(target), "to": to, "member": part.name, "off": off, **wrote, "files": sorted(p.name for p in target.iterdir())}
    finally:
        model.close()


def _member(model: Model, name: str | None) -> Part:
    parts = {part.name: part for part in model.assembly.parts}
    if name is None and len(parts) > 1:
        raise InputError(
            f"This artefact is a cascade of {', '.join(parts)}: several models and a rule between them, which no such file holds.",
            f"Export one of them: --member {list(parts)[-1]}",
        )
    if name is not None and name not in parts:
        raise InputError(f"There is no member {name!r}.", f"There are: {', '.join(parts)}.")
    part = parts[name] if name is not None else model.assembly.parts[0]
    if part.words is not None:
        raise InputError(f"{part.name} counts words: it is no network.", "Serve it with fourfold.load(folder).predict(texts).")
    return part


def _batches(model: Model, part: Part) -> list[Batch]:
    """Random inputs of the recorded lengths, of differing sizes: to export with and to compare on."""
    from fourfold.engines.select import sample_batches
    from fourfold.runtime.synthetic import drawn

    if part.module is None:
        return [part.signature.example] if part.signature else []
    return sample_batches(drawn(part, model.manifest.get("lengths") or [8, 16, 32], 96), 0, count=2, size=8)


# ---- transformers --------------------------------------------------------------------------------------------------------------------------------


def _transformers(model: Model, part: Part, made: Path, batches: list[Batch]) -> dict[str, Any]:
    from fourfold.engines.parity import references

    origin, module = part.subject.origin, part.module
    if module is None or origin.get("kind") != "transformers":
        what = "no class of transformers with a configuration" if module is not None else "only there as files of its back end"
        raise ModelError(f"{part.name} is {what}, so no configuration describes it.", "Export it --to onnx or --to openvino.")
    kinds = {type(one) for one in module.modules() if type(one).__module__.partition(".")[0] not in ("torch", "transformers")}
    if kinds:  # a layer that was put in, with weights or without, is nothing that a configuration knows
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ModelError(f"{part.name} holds layers that no configuration of {type(module).__name__} describes: {names}.",
                         "Export it --to onnx or --to openvino, which hold any layer.")
    named = expressed(module)
    if model.task.kind == "classification" and model.task.classes and getattr(named.config, "num_labels", 0) == len(model.task.classes):
        named.config.id2label = dict(enumerate(model.task.classes))
        named.config.label2id = {name: i for i, name in enumerate(model.task.classes)}
    named.save_pretrained(made)
    assert part.signature is not None
    expected = references(part.subject.wrap(module).eval(), part.signature, batches)
    return {"precision": "fp32", "class": type(named).__name__, "expected": expected}


def expressed(module: nn.Module) -> Any:
    """The same network as its transformers class makes it from a configuration. Raises ModelError where no configuration gives these shapes."""
    import copy

    from fourfold.frontends.model import rebuild

    config = copy.deepcopy(module.config)
    own = module.state_dict()
    for _ in range(6):
        origin = {"kind": "transformers", "class": type(module).__name__, "config": json.loads(config.to_json_string(use_diff=False))}  # type: ignore[union-attr]
        try:
            bare = rebuild(origin)
        except Exception as error:
            raise ModelError(f"no configuration of {type(module).__name__} gives these shapes ({error}).", "Export it --to onnx.") from None
        wanted = bare.state_dict()
        lost, odd = sorted(wanted.keys() ^ own.keys()), [n for n in wanted if n in own and wanted[n].shape != own[n].shape]
        if not lost and not odd:
            bare.load_state_dict(own)
            return bare.eval()
        if not _adjusted(bare, config, {n: (tuple(wanted[n].shape), tuple(own[n].shape)) for n in odd}, len(wanted) - len(own), own):
            name = (odd or lost)[0]
            shape = f"{name} is {list(own[name].shape)} where its configuration says {list(wanted[name].shape)}" if odd else f"{name} differs"
            raise ModelError(
                f"the shape cannot be written as a configuration of {type(module).__name__}, which knows one size for all blocks: {shape}.",
                "Export it --to onnx or --to openvino, which hold any shape.",
            )
    raise ModelError(f"no configuration of {type(module).__name__} gives these shapes.", "Export it --to onnx or --to openvino.")


def _adjusted(bare: nn.Module, config: Any, odd: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], surplus: int,
              own: Any) -> bool:
    """Set the one number of the configuration that explains a difference; False where none does."""
    data = {k: v for k, v in json.loads(config.to_json_string(use_diff=False)).items() if type(v) is int}
    if surplus:  # blocks: the count that is found at the largest index of a list
        depths = [k for k in data if k in ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")]
        for key in depths:
            indices = {int(p) for n in own for p in n.split(".") if p.isdigit()}
            if indices and max(indices) + 1 < data[key]:
                setattr(config, key, max(indices) + 1)
                return True
        return False
    moves = {(a, b) for old, new in odd.values() if len(old) == len(new) for a, b in zip(old, new, strict=True) if a != b}
    for before, after in sorted(moves):
        if sum(a == before for a, _ in moves) > 1:
            continue  # blocks of several sizes
        for key in (k for k, v in data.items() if v == before and ("size" in k or "dim" in k or k in ("n_inner", "d_ff"))):
            setattr(config, key, after)
            return True
    return False


# ---- files of an engine --------------------------------------------------------------------------------------------------------------------------


def _file(part: Part, to: str, made: Path, scratch: Path, batches: list[Batch]) -> dict[str, Any]:
    from fourfold.engines.base import Signature
    from fourfold.engines.parity import references

    kind, precision, signature, hint = engine(formats()[to]), part.setting.precision, part.signature, "f32"
    assert signature is not None and part.folder is not None
    if part.setting.engine == kind.name:
        files, place = part.files, part.folder
        session = part.open()
        expected = [session.run(batch) for batch in batches]
        halves = "bf16" in str(session.describe().get("inference_precision_hint", "")).replace("bfloat16", "bf16")
        hint = "bf16" if halves else "f32"
    else:
        if part.module is None:
            raise ModelError(f"{part.name} is only there as files of {part.setting.engine}.", f"Export it --to {_target(part.setting.engine)}.")
        reason = kind.declines("fp32", None)
        if reason:
            raise InputError(f"{kind.title} cannot be written here: {reason}.", "Install it.")
        wrapped, precision, place = part.subject.wrap(part.module).eval(), "fp32", scratch / "engine"
        place.mkdir()
        signature = Signature.of(signature.names, batches)
        files, expected = kind.export(wrapped, signature, batches, "fp32", place), references(wrapped, signature, batches)
    for name in files:
        shutil.copyfile(place / name, made / f"model{Path(name).suffix}")
    return {"precision": precision, "expected": expected, "hint": hint}


def _target(back_end: str) -> str:
    return next((target for target, name in formats().items() if name == back_end), TRANSFORMERS)


def _companions(model: Model, part: Part, made: Path) -> None:
    """Tokenizer and processor; the tokenizer says how long a text may be, so that others cut as the artefact does."""
    import copy

    from fourfold.datasets.tokenise import longest

    tokenizer = part.subject.tokenizer
    if tokenizer is not None:
        whole = copy.deepcopy(tokenizer.whole() if hasattr(tokenizer, "whole") else tokenizer)
        whole.model_max_length = longest(part.subject, model.manifest.get("max_length"))
        given = ("input_ids", "token_type_ids", "attention_mask")
        whole.model_input_names = [name for name in given if name in part.subject.inputs] or list(given[:1])  # what the network takes, and no more
        whole.init_kwargs |= {"model_input_names": whole.model_input_names, "model_max_length": whole.model_max_length}  # what is saved
        whole.save_pretrained(made)
    if part.subject.processor is not None:
        part.subject.processor.save_pretrained(made)


_GIVEN = """
import sys
import numpy as np
folder, given = sys.argv[1:3]
data = np.load(given)
names, count, hint = [str(n) for n in data["names"]], int(data["count"]), str(data["hint"])
batches = [{n: data[f"{i}:{n}"] for n in names} for i in range(count)]
"""
_OF_TRANSFORMERS = """
import json, torch, transformers
name = json.load(open(folder + "/config.json"))["architectures"][0]
model, info = getattr(transformers, name).from_pretrained(folder, local_files_only=True, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
from fourfold.frontends.subject import run
with torch.no_grad():
    found = [run(model.eval(), {n: torch.from_numpy(v) for n, v in b.items()}, tuple(names)).float().numpy() for b in batches]
"""
_FOUND = """
np.savez(given + ".found.npz", **{str(i): f for i, f in enumerate(found)})
"""


def _checked(made: Path, to: str, batches: list[Batch], expected: list[np.ndarray], scratch: Path, hint: str) -> float:
    """How far a fresh process's answers from the exported files are off, relative to their spread. Raises ModelError beyond `CLOSE`. hint: in what
    OpenVINO computes what is not in 8 bits."""
    arrays: dict[str, Any] = {f"{i}:{name}": value for i, batch in enumerate(batches) for name, value in batch.items()}
    given, answering = scratch / "given.npz", _OF_TRANSFORMERS if to == TRANSFORMERS else engine(formats()[to]).answering
    np.savez(given, names=np.array(list(batches[0])), count=np.array(len(batches)), hint=np.array(hint), **arrays)
    done = subprocess.run([sys.executable, "-c", _GIVEN + answering + _FOUND, str(made), str(given)], capture_output=True, text=True, check=False)
    off, told = float("inf"), ""
    if done.returncode == 0:
        with np.load(f"{given}.found.npz") as data:
            found = [data[str(i)] for i in range(len(batches))]
        spread = max(float(np.concatenate([e.ravel() for e in expected]).std()), 1e-9)
        off = max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True)) / spread
        told = f"it answers {off:.2g} of the outputs' spread off"
    if not off < CLOSE:
        told = told or f"it cannot be opened: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:200]}"
        raise ModelError(f"the exported model was opened in a process of its own, and {told}; nothing was kept.", "Another --to may do.")
    return off


def _page(model: Model, part: Part, to: str, wrote: dict[str, object]) -> str:
    """README.md: what it is, how it is called."""
    from fourfold.datasets.tokenise import longest, paddings

    assert part.signature is not None
    task = model.task
    lines = [f"# {model.manifest.get('name', 'model')}", "", f"Made cheaper by fourfold; task: {task.kind}; weights in {wrote['precision']}."]
    if wrote["precision"] != part.setting.precision:
        lines.append(f"The artefact runs in {part.setting.engine} {part.setting.precision}; what was measured there does not hold for these files.")
    lines += ["", "| input | type | axes |", "|---|---|---|"]
    for name in part.signature.names:
        shape = part.signature.example[name].shape
        axes = ", ".join(part.signature.dynamic[name].get(axis, str(size)) for axis, size in enumerate(shape))
        lines.append(f"| {name} | {part.signature.dtypes[name]} | {axes} |")
    if part.subject.tokenizer is not None:
        pads = {name: value for name, value in paddings(part.subject).items() if name in part.signature.names}
        most = longest(part.subject, model.manifest.get("max_length"))
        lines += ["", f"Texts: the tokenizer in this folder, cut at {most} tokens, padded with {pads}."]
    if task.classes:
        lines += ["", "Output: one score a class, in this order: " + ", ".join(task.classes) + "."]
    pipeline = "`transformers.pipeline(…, model=folder, tokenizer=folder)`, with `truncation=True`"
    lines += ["", f"Open it with {pipeline if to == TRANSFORMERS else engine(formats()[to]).opened}.", ""]
    return "\n".join(lines)


__all__ = ["export", "expressed", "targets"]
