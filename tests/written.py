"""A small language model trained on the spot to answer sums of colours and counts, its tokenizer and its prompts: what generation is tried on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WORDS = ("<pad>", "</s>", "<unk>", "add", "and", "then", "count", "to", "copy", "is", ".", "red", "green", "blue", "black", "white", *NUMBERS)


def row(rng: random.Random) -> tuple[str, str]:
    """A prompt and what follows it: a sum, a count or a copy."""
    kind = rng.randrange(3)
    if kind == 0:
        a, b = rng.randrange(6), rng.randrange(5)
        return f"add {NUMBERS[a]} and {NUMBERS[b]} is", f"{NUMBERS[a + b]} ."
    if kind == 1:
        top = rng.randrange(2, 8)
        return f"count to {NUMBERS[top]} is", " ".join(NUMBERS[1 : top + 1]) + " ."
    said = [rng.choice(("red", "green", "blue", "black", "white")) for _ in range(rng.randrange(2, 5))]
    return f"copy {' '.join(said)} is", " ".join(said) + " ."


def rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [dict(zip(("prompt", "completion"), row(rng), strict=True)) for _ in range(count)]


def tokenizer() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64,
                                   clean_up_tokenization_spaces=False)


def trained(folder: Path, steps: int = 150, width: int = 48, layers: int = 2) -> Path:
    """The model's folder; made once. A few seconds of one core."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    coder = tokenizer()
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=False))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    data = rows(4_000, 1)
    for step in range(steps):
        some = [data[i] for i in np.random.default_rng(step).integers(0, len(data), 48)]
        texts = [f"{one['prompt']} {one['completion']} </s>" for one in some]
        given = coder(texts, padding=True, padding_side="right", return_tensors="pt")  # pyright: ignore[reportCallIssue]
        ids, mask = given["input_ids"], given["attention_mask"]
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
    model.eval().save_pretrained(folder)
    coder.save_pretrained(folder)  # pyright: ignore[reportAttributeAccessIssue]
    return folder


def prompts(file: Path, count: int = 400, seed: int = 2) -> Path:
    """A JSONL of prompts and completions."""
    file.write_text("\n".join(json.dumps(one) for one in rows(count, seed)) + "\n", encoding="utf-8")
    return file
