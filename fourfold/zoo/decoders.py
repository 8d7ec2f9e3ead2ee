"""Decoders described by their dimensions alone: what a question about serving needs of a model that is not here.

`named` reads the ones that come with the package (decoders.toml), `of_config` a transformers config folder. Letters follow Pope et al. (2022): E is
the width, F the feed-forward width, H the heads, K the key/value heads, d their dimension.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fourfold.errors import InputError, ModelError

_PARALLEL = ("gptj", "gpt_neox", "phi", "palm", "codegen")              # model types whose attention and feed-forward layer read the same input
_GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2", "smollm3", "granite", "cohere",
          "stablelm", "deepseek", "glm", "exaone4", "ministral")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_KEYS = {                                                               # what configurations call each dimension, the common name first
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"), "width": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"), "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class DecoderDims:
    """Dimensions of a dense decoder. `padded_heads`: heads as stored for serving (0: as trained); `gated`: three feed-forward matrices, not two;
    `parallel`: attention and feed-forward layer read the same normalised input and are added together.

    Raises InputError where a dimension is below one or the padded heads are fewer than the heads.
    """

    name: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool = True
    parallel: bool = False
    padded_heads: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        for key in ("layers", "width", "feed_forward", "heads", "kv_heads", "head_dim", "vocabulary"):
            if getattr(self, key) < 1:
                raise InputError(f"{self.name} has {key} = {getattr(self, key)}.", "Every dimension is at least 1.")
        if 0 < self.padded_heads < self.heads:
            raise InputError(f"{self.name} has {self.heads} heads and stores {self.padded_heads}.", "Padding adds heads; give at least as many.")

    # ---- parameters

    @property
    def stored_heads(self) -> int:
        """Query heads as stored, padding included."""
        return self.padded_heads or self.heads

    @property
    def matrices(self) -> int:
        """E × F matrices of a feed-forward layer: gate, up and down, or two."""
        return 3 if self.gated else 2

    def layer_parameters(self, padded: bool = True) -> int:
        """Elements of a layer's matrices: queries, keys, values, outputs and the feed-forward layer; norms and biases are left out."""
        heads = self.stored_heads if padded else self.heads
        attention = 2 * self.width * heads * self.head_dim + 2 * self.width * self.kv_heads * self.head_dim
        return attention + self.matrices * self.width * self.feed_forward

    @property
    def embedding(self) -> int:
        """Elements of the (tied) embedding."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """Elements of the whole model as trained, without padding."""
        return self.layers * self.layer_parameters(padded=False) + self.embedding

    def to_json(self) -> dict[str, object]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> DecoderDims:
        """What `to_json` gave; fields of later versions are dropped."""
        return cls(**{key: value for key, value in data.items() if key in cls.__dataclass_fields__})   # pyright: ignore[reportArgumentType]


def decoder_names() -> tuple[str, ...]:
    """Names of the decoders that come with the package."""
    return tuple(_shipped())


def named(name: str) -> DecoderDims:
    """The shipped decoder of that name. Raises InputError with the nearest names for an unknown one."""
    known = _shipped()
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.4)
        raise InputError(f"There is no decoder {name!r}.", f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(known)}.")
    facts = {key: value for key, value in known[name.lower()].items() if key != "title"}
    return DecoderDims(name=name.lower(), **facts)                     # pyright: ignore[reportArgumentType]


def decoder(ref: str) -> DecoderDims:
    """A shipped decoder by name, or the folder (or config.json) of a transformers model. Raises InputError or ModelError as those do."""
    path = Path(ref)
    if path.is_dir() or path.suffix == ".json":
        return of_config(path)
    return named(ref)


def of_config(path: str | Path) -> DecoderDims:
    """The dimensions that a transformers config.json (or its folder) states; nothing is loaded.

    Raises InputError where it cannot be read, ModelError for an encoder, a mixture of experts, or a configuration that lacks a dimension.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a configuration: {error}.", "Give a folder with a transformers config.json.") from None
    data = {**data, **data.get("text_config", {})}
    kind = str(data.get("model_type", ""))
    if data.get("is_encoder_decoder") or not any("CausalLM" in str(one) or "LMHead" in str(one) for one in data.get("architectures") or ["CausalLM"]):
        raise ModelError(f"{file.parent.name or file} is {kind or 'no decoder'}: layouts of serving are those of a decoder with a key/value cache.",
                         "Give a causal language model.")
    if experts := next((key for key in _EXPERTS if int(data.get(key) or 0) > 1), None):
        raise ModelError(f"{file.parent.name or file} routes tokens to {data[experts]} experts, and the layouts know dense feed-forward layers only.",
                         "Give a dense decoder.")
    found = {key: next((int(data[name]) for name in names if data.get(name)), 0) for key, names in _KEYS.items()}
    if lacking := [_KEYS[key][0] for key, value in found.items() if not value]:
        raise ModelError(f"{file} does not say its {', '.join(lacking)}.", "Add them to the configuration.")
    gated = kind.startswith(_GATED) or "gated" in str(data.get("feed_forward_proj", "")) or "gated" in str(data.get("hidden_act", ""))
    hidden = int(data.get("intermediate_size") or data.get("n_inner") or data.get("ffn_dim") or 4 * found["width"])
    kv = int(data.get("num_key_value_heads") or (1 if data.get("multi_query") else found["heads"]))
    return DecoderDims(file.resolve().parent.name, found["layers"], found["width"], hidden, found["heads"], kv,
                       int(data.get("head_dim") or found["width"] // found["heads"]), found["vocabulary"], gated,
                       kind in _PARALLEL or bool(data.get("parallel_attn") or data.get("use_parallel_residual")), source=f"{file.name} of {kind}")


def _shipped() -> dict[str, dict[str, object]]:
    text = resources.files("fourfold").joinpath("zoo", "decoders.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
