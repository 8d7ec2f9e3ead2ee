"""A model and how to talk to it: the names of its inputs, a call by name, and the one output tensor that matters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError

# inputs that carry data, in the order in which they are passed; all other arguments of a transformers model are switches and caches
CARRIERS = (
    "input_ids", "input_values", "input_features", "pixel_values", "attention_mask", "token_type_ids", "decoder_input_ids", "bbox",
)  # fmt: skip
ANSWERS = ("logits", "logits_per_image", "prediction_logits", "last_hidden_state")  # in order of preference


@dataclass
class Subject:
    """A model and how to talk to it. `origin` is JSON from which `rebuild` makes the bare architecture; `inputs` name forward's tensors, in order."""

    module: nn.Module
    origin: dict[str, Any]
    inputs: tuple[str, ...]
    tokenizer: Any | None = None
    processor: Any | None = None
    folder: Path | None = None

    def logits(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The one output tensor that matters, of `module` (this model or a descendant). Inputs that it does not take are left out."""
        return run(module, inputs, self.inputs)

    def wrap(self, module: nn.Module) -> nn.Module:
        """forward(*tensors in the order of `inputs`) → the output tensor that matters."""
        return Wrapped(module, self.inputs)


class Wrapped(nn.Module):
    """A model seen as tensors in, one tensor out: what exporters and engines take."""

    def __init__(self, module: nn.Module, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        return run(self.module, dict(zip(self.inputs, tensors, strict=False)), self.inputs)


def run(module: nn.Module, inputs: Mapping[str, Tensor], order: tuple[str, ...]) -> Tensor:
    """The one output tensor that matters, of `module` on `inputs` by name. Raises ModelError where there is none."""
    return answer(called(module, inputs, order))


def called(module: nn.Module, inputs: Mapping[str, Tensor], order: tuple[str, ...]) -> Any:
    """What `module` returns, as it returns it."""
    if not hasattr(module, "config"):
        given = [inputs[name] for name in order if name in inputs]
        names = _parameters(module)
        named = bool(names) and all(name in names for name in order)
        return module(**{n: inputs[n] for n in order if n in inputs}) if named else module(*given)
    switches = {"use_cache": False} if "use_cache" in _parameters(module) and _caches(module) else {}
    return module(**{name: inputs[name] for name in order if name in inputs}, **switches)


def _caches(module: nn.Module) -> bool:
    return hasattr(module, "generate") or bool(getattr(module.config, "use_cache", False))


def answer(output: object) -> Tensor:
    """The tensor that matters in a model's output: logits if there are any, else the last hidden state, else the first floating tensor.

    Start and end logits (question answering) are stacked on the last axis. Raises `ModelError` where there is no floating tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if output.get("start_logits") is not None and output.get("end_logits") is not None:
            return torch.stack([output["start_logits"], output["end_logits"]], -1)
        for name in ANSWERS:
            if isinstance(output.get(name), Tensor):
                return output[name]
        output = list(output.values())
    if isinstance(output, list | tuple):
        for part in output:
            if isinstance(part, Tensor) and part.is_floating_point() and part.ndim:
                return part
        for part in output:
            if isinstance(part, list | tuple | Mapping):
                return answer(part)
    raise ModelError(
        f"the model answers {type(output).__name__}, in which there is no tensor of numbers",
        "Let forward return a tensor, a tuple or a mapping of tensors.",
    )


# --- loading ---------------------------------------------------------------------------------------------------------------------------------------


def vocabulary(module: nn.Module) -> int | None:
    """How many tokens a model has rows for, where it says."""
    try:
        return int(module.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None


# --- what goes in ----------------------------------------------------------------------------------------------------------------------------------


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return {}


def inputs_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the tensors that forward() is called with: for transformers models those that carry data, else the arguments without a default."""
    given = _parameters(module)
    config = getattr(module, "config", None)
    if config is not None and hasattr(module, "from_pretrained"):
        names = [name for name in CARRIERS if name in given]
        main = getattr(module, "main_input_name", names[0] if names else "")
        drop = {"bbox"} if not hasattr(config, "max_2d_position_embeddings") else set()
        if not int(getattr(config, "type_vocab_size", 0) or 0) > 1:
            drop.add("token_type_ids")
        sound = main == "input_values" and (getattr(config, "feat_extract_norm", "layer") == "group" or hasattr(config, "frequency_stride"))
        if main in ("input_features", "pixel_values") or sound:
            drop.add("attention_mask")  # the mask is for training noise there, or the model was trained without one
        return tuple(n for n in names if n not in drop)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    plain = [p for p in given.values() if p.kind in kinds]
    needed = [p.name for p in plain if p.default is inspect.Parameter.empty or p.name in CARRIERS]
    return tuple(needed or [p.name for p in plain[:1]] or ["input"])
