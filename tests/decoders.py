"""Tiny decoders of several families, prompts for them, and how far two ways to generate are from each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fourfold.engines.decode.base import Decoding

GRIDS = [(8, 0, "symmetric"), (8, 0, "integer"), (4, 32, "symmetric"), (4, 32, "integer"), (4, 32, "fractional")]
VOCABULARY = 128


def decoder(kind: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {
        "llama": lambda: LlamaConfig(**common, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1),
        "qwen": lambda: Qwen2Config(**common, num_key_value_heads=1, initializer_range=0.1),
        "gemma": lambda: Gemma3TextConfig(**common, num_key_value_heads=1, head_dim=16, sliding_window=6, initializer_range=0.1,
                                          layer_types=["sliding_attention", "full_attention"]),
        "opt": lambda: OPTConfig(vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4,
                                 max_position_embeddings=64, word_embed_proj_dim=64, init_std=0.1),
        "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=0.1),
    }[kind]()  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def prompts(seed: int = 0) -> dict[str, np.ndarray]:
    ids, mask = np.random.default_rng(seed).integers(3, VOCABULARY, (3, 7)), np.ones((3, 7), np.int64)
    mask[1, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def furthest(one: Decoding, other: Decoding) -> float:
    """Largest difference, as a share of the largest logit: prefill, steps, drafts that are cropped, rows that move, leave and are doubled."""
    tokens, found = np.random.default_rng(1).integers(3, VOCABULARY, (3, 12)), []
    pairs = one.start(prompts(), 40), other.start(prompts(), 40)
    states = pairs[0][0], pairs[1][0]

    def note(a: np.ndarray, b: np.ndarray) -> None:
        assert a.shape == b.shape and a.dtype == np.float32
        found.append(float(np.abs(a - b).max() / np.abs(b).max()))

    def step(rows: slice, columns: slice) -> None:
        note(*(d.step(s, tokens[rows, columns]) for d, s in zip((one, other), states, strict=True)))

    note(pairs[0][1], pairs[1][1])
    whole = slice(0, 3)
    step(whole, slice(0, 1))
    step(whole, slice(1, 5))
    for d, s in zip((one, other), states, strict=True):
        d.crop(s, 9)
    step(whole, slice(5, 7))
    for index in ([2, 0, 1], [1, 2], [1, 1, 0]):
        for d, s in zip((one, other), states, strict=True):
            d.rows(s, index)
        step(slice(0, len(index)), slice(7, 9))
    assert states[0].seen == states[1].seen and np.array_equal(states[0].mask, states[1].mask)
    return max(found)
