"""Random example inputs of a model from its configuration, and the names of their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fourfold.errors import InputError, ModelError

if TYPE_CHECKING:
    from fourfold.frontends.subject import Subject

SIZES = {"batch": 1, "length": 128, "decoder_length": 128, "samples": 16000}  # of example inputs; a model's configuration may ask for less
ALIKE = {"sequence": "length", "sequence_length": "length", "seq": "length", "batch_size": "batch"}


def samples(subject: Subject, dims: Mapping[str, int], seed: int = 0) -> dict[str, Any]:
    """Random inputs of a transformers model from its configuration, by `dims`: batch, length, decoder_length, image, samples, frames, "input.axis".

    Raises InputError for a dimension that the model does not have, and ModelError where a model's inputs cannot be guessed, naming them.
    """
    import torch

    config = getattr(subject.module, "config", None)
    dims = {ALIKE.get(key, key) if config is not None else key: size for key, size in dims.items()}
    shapes = {} if config is None else _shapes(config, subject.inputs, dims)
    for key, size in dims.items():
        if size < 1:
            raise InputError(f"A dimension cannot be {key}={size}.", "Give a positive whole number.")
        found = re.fullmatch(r"(.+)\.(\d+)", key)
        if found and found.group(1) in subject.inputs:
            shape = shapes.setdefault(found.group(1), [])
            shape += [1] * (int(found.group(2)) + 1 - len(shape))
            shape[int(found.group(2))] = size
        elif key not in (*SIZES, "image", "frames") or config is None:
            raise InputError(f"The model has no dimension {key!r}.", "Known: batch, length, decoder_length, image, samples, frames, or input.axis.")
    if lacking := [n for n in subject.inputs if n not in shapes]:
        raise ModelError(
            f"the shape of the model's input {lacking[0]!r} cannot be guessed",
            f"Give example inputs (--inputs FILE.npz), or --dims {lacking[0]}.0=…,{lacking[0]}.1=…",
        )
    generator = torch.Generator().manual_seed(seed)
    vocabulary = min([m.num_embeddings for m in subject.module.modules() if isinstance(m, torch.nn.Embedding)] or [1000])
    vocabulary = getattr(_part(config, "text_config"), "vocab_size", vocabulary) if config is not None else vocabulary

    def draw(name: str) -> Any:
        if name == "bbox":                                             # left, top, right, bottom, each box of a size
            return torch.tensor([0, 0, 1, 1]).expand(shapes[name]).contiguous()
        if name.endswith("mask"):
            return torch.ones(shapes[name], dtype=torch.long)
        if name == "token_type_ids":
            return torch.zeros(shapes[name], dtype=torch.long)
        if name.endswith("ids"):
            return torch.randint(0, vocabulary, shapes[name], generator=generator)
        return torch.randn(shapes[name], generator=generator)

    made = {name: draw(name) for name in subject.inputs}
    end = getattr(_part(config, "text_config"), "eos_token_id", None) if config is not None else None
    if "pixel_values" in made and "input_ids" in made and isinstance(end, int):
        made["input_ids"][:, -1] = end  # CLIP reads its answer where the text ends
    return made


def _part(config: object, name: str) -> object:
    return getattr(config, name, None) or config


def _shapes(config: Any, names: tuple[str, ...], dims: Mapping[str, int]) -> dict[str, list[int]]:
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    size = SIZES | dict(dims)
    longest = min(
        [v for k in ("max_position_embeddings", "n_positions", "max_seq_len") if isinstance(v := getattr(text, k, None), int) and v > 4] or [10**9]
    )
    length = size["length"] if "length" in dims else min(size["length"], longest - 2)  # RoBERTa's positions begin at 2
    image = getattr(vision, "image_size", 224)
    side = [size["image"]] * 2 if "image" in dims else list(image) if isinstance(image, list | tuple) else [image] * 2
    target = getattr(config, "max_target_positions", None) or 10**9
    frames = size.get("frames", 2 * getattr(config, "max_source_positions", 1500))
    mels = getattr(config, "num_mel_bins", 80)
    wide = getattr(config, "input_feat_per_channel", None) or getattr(config, "feature_projection_input_dim", None)
    spectrum = [size.get("frames", getattr(config, "max_length", 1024)), mels]   # of models that cut a picture of the sound into patches
    moving = [size.get("frames", config.num_frames)] if isinstance(getattr(config, "num_frames", None), int) else []    # of a video
    table = {
        "input_ids": [length], "attention_mask": [size["samples"] if "input_values" in names else length], "token_type_ids": [length],
        "decoder_input_ids": [size["decoder_length"] if "decoder_length" in dims else min(size["decoder_length"], target, longest - 2)],
        "pixel_values": [*moving, getattr(vision, "num_channels", 3), *side],
        "input_values": spectrum if hasattr(config, "frequency_stride") else [size["samples"]],
        "input_features": [size.get("frames", 1000), wide] if wide else [mels, frames], "bbox": [length, 4],
    }  # fmt: skip
    choices = [2] if any("MultipleChoice" in kind for kind in getattr(config, "architectures", None) or ()) else []
    return {name: [size["batch"], *choices, *table[name]] for name in names if name in table}
