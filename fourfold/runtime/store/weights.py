"""safetensors files into a store and out of it, so that a model of any library is a step, and a step is a model's weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import InputError, unwritable
from fourfold.runtime.store.checkpointer import Checkpointer, SavedStep
from fourfold.runtime.store.pieces import TensorPiece, plain
from fourfold.runtime.store.view import StoredStep

if TYPE_CHECKING:
    from torch import Tensor

SHARD = 5 << 30                                                        # bytes of a file of many


def files_of(source: str | Path) -> list[Path]:
    """The .safetensors files that `source`, a file or a model's folder, is. Raises InputError where there are none."""
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise InputError(f"{path} holds no .safetensors files.", "Give a file, or the folder of a model that was saved as safetensors.")
        return found
    if not path.is_file():
        raise InputError(f"{path} is not there.", "Give a .safetensors file or a folder of them.")
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no .safetensors file.", "Pickled checkpoints are not opened: save yours with safetensors.torch.save_file.")
    return [path]


def weights_of(source: str | Path) -> dict[str, Tensor]:
    """All tensors of the files, mapped from them. Raises InputError for a file that is damaged and for names that stand in two."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for file in files_of(source):
        try:
            with safe_open(str(file), "pt") as opened:
                for name in opened.keys():
                    if name in found:
                        raise InputError(f"{name} stands in {file} and in another file beside it.", "Remove the files of an older save.")
                    found[name] = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read as safetensors: {error}.", "Save it again.") from None
    return found


def save_weights(store: Checkpointer, step: int, source: str | Path) -> SavedStep:
    """Save the tensors of a .safetensors file or of a model's folder as `step`; committed when this returns."""
    return store.save(step, weights_of(source)).result()


def resharded(store: Checkpointer, step: int, to: int, shards: int, axis: int) -> SavedStep:
    """Step `step` again as step `to`, each tensor in `shards` boxes along `axis` where it is long enough, whole otherwise.

    Any step can be read by any shards without this; it makes reads by just these boxes touch no chunk twice. Raises InputError for impossible counts.
    """
    if shards < 1:
        raise InputError(f"{shards} shards cannot be made.", "Give a number of at least 1.")
    found = store.open(step)
    pieces: list[TensorPiece] = []
    for name, whole in found.read().items():
        splits = -whole.ndim <= axis < whole.ndim and whole.shape[axis] >= shards
        at = [round(whole.shape[axis] * index / shards) for index in range(shards + 1)] if splits else []
        for low, high in zip(at, at[1:], strict=False):
            offset = [0] * whole.ndim
            offset[axis] = low
            pieces.append(TensorPiece(name, whole.narrow(axis, low, high - low), tuple(whole.shape), tuple(offset)))
        if not splits:
            pieces.append(TensorPiece(name, whole, tuple(whole.shape), (0,) * whole.ndim))
    return store.save_pieces(to, pieces, {name: plain(value, name) for name, value in found.values().items()}).result()


def export(step: StoredStep, out: str | Path, *, names: Iterable[str] | None = None, shard: int = SHARD) -> list[Path]:
    """The tensors of a step as safetensors: one file `out`, or, beyond `shard` bytes or where `out` is a folder, several and their index as
    transformers reads them. What is written. Raises InputError for a place that cannot be written to, FourfoldError for a full disk."""
    from safetensors.torch import save_file

    out = Path(out)
    wanted = list(step) if names is None else list(names)
    groups = list(_grouped(step, wanted, shard))
    single = len(groups) <= 1 and out.suffix == ".safetensors"
    if not single and out.suffix == ".safetensors":
        raise InputError(f"The step's tensors are larger than {shard:,} bytes, the most for one file.", "Name a folder: several files are written.")
    written: list[Path] = []
    try:
        (out.parent if single else out).mkdir(parents=True, exist_ok=True)
        index: dict[str, str] = {}
        for number, group in enumerate(groups or [[]], 1):
            name = out.name if single else "model.safetensors" if len(groups) <= 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            path = (out.parent if single else out) / name
            aside = path.with_name(f".{name}.{os.getpid()}")
            try:
                save_file(step.read(group), str(aside), metadata={"format": "pt"})
                with open(aside, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(aside, path)
            finally:
                aside.unlink(missing_ok=True)
            index |= dict.fromkeys(group, name)
            written.append(path)
        if len(groups) > 1:
            total = sum(_bytes(step, name) for name in wanted)
            path = out / "model.safetensors.index.json"
            path.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n", encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise unwritable(out, error, "the weights") from None
    return written


def _bytes(step: StoredStep, name: str) -> int:
    import torch

    size = 1
    for side in step[name].shape:
        size *= side
    return size * torch.empty(0, dtype=getattr(torch, step[name].dtype)).element_size()


def _grouped(step: StoredStep, names: Sequence[str], most: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for name in names:
        one = _bytes(step, name)
        if group and size + one > most:
            yield group
            group, size = [], 0
        group.append(name)
        size += one
    if group:
        yield group
