"""Weights that come in few bits already: GGUF files are read (and widened to float32), other formats are refused with what to do."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fourfold.errors import MissingExtra, ModelError
from fourfold.text import headline

READ = ("compressed-tensors",)
"""Methods of `quantization_config` whose weights can be widened where their library is installed."""


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF file of a folder without other weights; None where there is none. ModelError where there are several."""
    found = sorted(folder.glob("*.gguf"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise ModelError(f"{folder} holds {len(found)} GGUF files ({', '.join(file.name for file in found[:4])})", "Name one of them as MODEL.")
    return found[0]


def read_gguf(file: Path) -> tuple[Any, object]:
    """(module in float32, tokenizer) of a GGUF file. What its few bits lost is lost: quality is relative to the file as it is.

    Raises MissingExtra without the package gguf, ModelError where transformers cannot read it.
    """
    if find_spec("gguf") is None:
        raise MissingExtra(f"{file} is a GGUF file, which the package gguf reads.",
                           "pip install gguf accelerate, or give the folder of the original weights.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = {"gguf_file": file.name, "local_files_only": True}
    try:
        module = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **how)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **how)
    except ImportError as error:
        raise MissingExtra(f"{file} cannot be read: {headline(error)}", "pip install gguf accelerate") from error
    except Exception as error:  # a foreign reader's words are the finding
        raise ModelError(f"{file} cannot be read: {headline(error)}", "Give the folder of the weights that it was made from.") from error
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(module.config, name):
            delattr(module.config, name)
    return module, tokenizer


def method_of(folder: Path) -> str | None:
    """The quantisation that config.json names; None where it names none."""
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return None
    return str(told.get("quant_method", "unknown")) if isinstance(told, dict) else None


def widened(folder: Path) -> dict[str, object]:
    """Further arguments of `from_pretrained` that give a folder's quantised weights in floating point; {} where they are not quantised.

    Raises ModelError for methods that no library here widens.
    """
    method = method_of(folder)
    if method is None:
        return {}
    if method in READ and find_spec("compressed_tensors") is not None:
        from transformers.utils.quantization_config import CompressedTensorsConfig

        return {"quantization_config": CompressedTensorsConfig(run_compressed=False)}
    more = " (or pip install compressed-tensors)" if method in READ else ""
    raise ModelError(f"the weights in {folder} are quantised already ({method}), and cannot be widened and trained here",
                     f"Give the folder of the original weights{more}; 8 and 4 bits are then searched anew.")
