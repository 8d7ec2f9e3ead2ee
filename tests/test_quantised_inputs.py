"""Models that come in few bits: GGUF is read as it is, everything else is refused in two lines that say what to do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold.engines.decode.eager import EagerDecoding
from fourfold.errors import ModelError
from fourfold.frontends import hub
from fourfold.frontends.model import load_model, rebuild
from fourfold.runtime.generate import generate

VOCABULARY, WIDTH, HEADS, KEYS, FEED = 40, 32, 4, 2, 64


def written(file: Path) -> dict[str, np.ndarray]:
    """A llama of two layers as a GGUF file; its tensors."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    w, rng, tensors = gguf.GGUFWriter(str(file), "llama"), np.random.default_rng(0), {}
    w.add_context_length(64), w.add_embedding_length(WIDTH), w.add_block_count(2), w.add_feed_forward_length(FEED)
    w.add_head_count(HEADS), w.add_head_count_kv(KEYS), w.add_layer_norm_rms_eps(1e-5), w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(WIDTH // HEADS), w.add_vocab_size(VOCABULARY)
    tokens = ["<unk>", "<s>", "</s>", *(chr(97 + i) for i in range(26)), "Ġ", "ab", "cd"]
    tokens += [f"x{i}" for i in range(VOCABULARY - len(tokens))]
    w.add_tokenizer_model("gpt2"), w.add_token_list(tokens), w.add_token_merges(["a b", "c d"])
    w.add_token_types([3] * 3 + [1] * (VOCABULARY - 3)), w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)

    def tensor(name: str, *shape: int) -> None:
        tensors[name] = (0.1 * rng.normal(size=shape)).astype(np.float32) if len(shape) > 1 else np.ones(shape, np.float32)
        w.add_tensor(name, tensors[name])

    tensor("token_embd.weight", VOCABULARY, WIDTH), tensor("output.weight", VOCABULARY, WIDTH), tensor("output_norm.weight", WIDTH)
    for i in range(2):
        part, keys = f"blk.{i}.", KEYS * WIDTH // HEADS
        tensor(f"{part}attn_norm.weight", WIDTH), tensor(f"{part}ffn_norm.weight", WIDTH)
        tensor(f"{part}attn_q.weight", WIDTH, WIDTH), tensor(f"{part}attn_k.weight", keys, WIDTH), tensor(f"{part}attn_v.weight", keys, WIDTH)
        tensor(f"{part}attn_output.weight", WIDTH, WIDTH), tensor(f"{part}ffn_gate.weight", FEED, WIDTH)
        tensor(f"{part}ffn_up.weight", FEED, WIDTH), tensor(f"{part}ffn_down.weight", WIDTH, FEED)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return tensors


def test_a_gguf_file_or_its_folder_is_a_model_that_generates(tmp_path: Path) -> None:
    tensors = written(tmp_path / "tiny.gguf")
    for place in (tmp_path / "tiny.gguf", tmp_path):
        subject = load_model(place)
        assert subject.origin["kind"] == "transformers" and subject.tokenizer is not None
        assert subject.tokenizer(["ab cd"])["input_ids"] == [[30, 29, 31]]
        weights = subject.module.state_dict()
        assert np.allclose(weights["lm_head.weight"].numpy(), tensors["output.weight"], atol=1e-6)
        assert np.allclose(weights["model.layers.1.mlp.down_proj.weight"].numpy(), tensors["blk.1.ffn_down.weight"], atol=1e-6)
        assert all(t.dtype == torch.float32 for t in weights.values())
    rebuild(subject.origin)
    found = generate(EagerDecoding(subject.module), {"input_ids": np.array([[30, 29, 31]])}, 4)
    assert len(found.tokens[0]) == 4
    (tmp_path / "second.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    with pytest.raises(ModelError, match="2 GGUF files"):
        load_model(tmp_path)


def test_a_damaged_gguf_is_told_of(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_model(tmp_path / "m.gguf")
    assert "made from" in caught.value.mend


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_other_formats_are_refused_with_what_to_do(tmp_path: Path, method: str) -> None:
    told = {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": method, "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=f"quantised already \\({method}\\)") as caught:
        load_model(tmp_path)
    assert "original weights" in caught.value.mend and len(str(caught.value).splitlines()) == 2


def test_weights_behind_a_licence_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface = pytest.importorskip("huggingface_hub")

    class GatedRepoError(Exception):
        """As the hub's own is called."""

    def gated(*args: object, **kwargs: object) -> str:
        raise GatedRepoError("401")

    monkeypatch.setattr(huggingface, "snapshot_download", gated)
    with pytest.raises(ModelError, match="accepted its licence") as caught:
        hub.resolved("owner/gated", online=True)
    assert "log in" in caught.value.mend
