"""Small models of many families, each with a call that runs it: what sites and cores are tried on. Shapes: B 3 examples, T 7 positions, width 32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Call = Callable[[nn.Module], Tensor]
Made = tuple[nn.Module, Call]

IDS = torch.randint(5, 90, (3, 7), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
MASK[2, 3:] = 0
X = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(2))
PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def _words(model: Any) -> Tensor:
    """Logits or hidden states of the real tokens: what padding answers is nobody's business."""
    caches = {"use_cache": False} if hasattr(model, "generate") else {}
    found = model(input_ids=IDS, attention_mask=MASK, **caches)
    found = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return found[MASK.bool()] if found.ndim == 3 else found


def _shape(**more: Any) -> dict[str, Any]:
    return {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 64, **more}


def bert(**more: Any) -> Made:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**_shape(**more))), _words


def roberta() -> Made:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**_shape())), _words


def distilbert() -> Made:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64)), _words


def vit() -> Made:
    from transformers import ViTConfig, ViTModel

    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **shape)), lambda m: m(pixel_values=PIXELS).last_hidden_state


def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)), _words


def llama() -> Made:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_shape(num_key_value_heads=2))), _words


def opt() -> Made:
    from transformers import OPTConfig, OPTForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(vocab_size=100, max_position_embeddings=64, **shape)), _words


def phi3() -> Made:
    from transformers import Phi3Config, Phi3ForCausalLM

    return Phi3ForCausalLM(Phi3Config(**_shape(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2))), _words


def t5(feed: str = "relu") -> Made:
    from transformers import T5Config, T5ForConditionalGeneration

    shape: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": feed}

    def call(model: Any) -> Tensor:
        return model(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS, use_cache=False).logits

    return T5ForConditionalGeneration(T5Config(vocab_size=100, **shape)), call


def encoder() -> Made:
    """torch's own, with padding and nested tensors as it comes."""
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.TransformerEncoder(layer, 2), lambda m: m(X, src_key_padding_mask=MASK == 0)[MASK.bool()]


def decoder() -> Made:
    layer, mask = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True), nn.Transformer.generate_square_subsequent_mask(7)
    return nn.TransformerDecoder(layer, 2), lambda m: m(X, 2 * X.flip(1), tgt_mask=mask)


class OwnAttention(nn.Module):
    """A user's, with query, key and value in one layer and the width of a head tied to the residual width."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class OwnBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.attention = nn.LayerNorm(32), nn.LayerNorm(32), OwnAttention()
        self.feed = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.feed(self.after(x))


def own() -> Made:
    return nn.Sequential(OwnBlock(), OwnBlock(), nn.Linear(32, 5)), lambda m: m(X)


MODELS: dict[str, Callable[[], Made]] = {
    "bert": bert, "bert, eager": lambda: bert(attn_implementation="eager"), "roberta": roberta, "distilbert": distilbert, "vit": vit, "gpt2": gpt2,
    "llama": llama, "opt": opt, "phi3": phi3, "t5": t5, "t5, gated": lambda: t5("gated-gelu"), "encoder": encoder, "decoder": decoder, "own": own,
}  # fmt: skip


def model(name: str) -> Made:
    """A model that is the same each time, in eval mode, and its call."""
    torch.manual_seed(0)
    made, call = MODELS[name]()
    with torch.no_grad():
        for part in made.modules():  # scores of an untrained model are all but equal, and would hide what an attention does
            if isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D":
                part.weight.mul_(3)  # pyright: ignore[reportCallIssue]
    return made.eval(), call
