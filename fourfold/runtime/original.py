"""The original, remembered: where it lay, what its weights were, and what it answered on the unseen split, so that `verify` can ask again.

The manifest says where; `answers.json` in the artefact holds the answers, each beside a hash of its row, for the day the original is gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import ArtefactError, InputError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from fourfold.datasets.examples import Examples
    from fourfold.frontends.subject import Subject

NAME = "answers.json"


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights: names, shapes, types and bytes."""
    import torch

    from fourfold.frontends.model import state

    total = hashlib.sha256()
    values = state(module)
    for name in sorted(values):
        array = values[name].detach().contiguous()
        total.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()


def find(manifest: Mapping[str, Any], given: object = None) -> tuple[Subject | None, str]:
    """(the original or None, in words which it is). `given` is opened as it is, whatever the manifest says; else the folder in the manifest is, where
    it is still there. A manifest never makes a factory run: that must be given.

    Raises ModelError for another model than the one that was optimised.
    """
    from fourfold.frontends.model import load_model

    noted = manifest.get("original") or {}
    if given is None:
        if noted.get("kind") != "folder" or not Path(noted["reference"]).is_dir():
            return None, ""
        given = noted["reference"]
    subject = load_model(given)
    subject.module.eval()
    if noted.get("sha256") and digest(subject.module) != noted["sha256"]:
        raise ModelError(
            f"{given} is not the model that was optimised: its weights are others.", "Give the original as it was: --original FOLDER."
        )
    return subject, str(given)


def remembered(folder: Path, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """(numbers of the rows whose answers are stored [M], their records [M, k]).

    Raises InputError where none is, ArtefactError for a damaged file.
    """
    try:
        rows = json.loads((folder / NAME).read_text(encoding="utf-8"))["rows"]
        known = [(i, rows[str(row)]) for i, row in enumerate(examples.groups.tolist()) if str(row) in rows]
        records = np.array([record for _, record in known], dtype=np.float64)
    except FileNotFoundError:
        known, records = [], np.zeros((0, 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ArtefactError(f"{folder / NAME} cannot be read.", "Copy the artefact again.") from None
    if not known:
        raise InputError(
            f"{folder} must be compared with its original, which is not at hand, and none of these rows' answers are stored.",
            "Give it: --original FOLDER (or package.module:factory).",
        )
    return np.array([i for i, _ in known]), records
