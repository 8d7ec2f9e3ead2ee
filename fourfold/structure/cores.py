"""Put an attention *core* into an attention of any model, and a layer in the place of an MLP or of its activation.

A core is an `nn.Module` that computes what `F.scaled_dot_product_attention` computes, or something else in its place:

    core(q, k, v, attn_mask=None, is_causal=False, scale=None) → Tensor

q [B, H, T, D], k and v [B, H, S, D] (key-value heads repeated where queries share them) → [B, H, T, D]. `attn_mask` is None, boolean (True: may look)
or what is added to the scores, broadcastable to [B, H, T, S]. `is_causal` is True only where there is no mask. `scale` None means D^-0.5.

Attentions of transformers (5 and later) are reached by their own interface, `AttentionInterface`, with a configuration of the layer's own that names
`NAME`; `nn.MultiheadAttention` and attentions made again (`recipe.Attention`, `recipe.Heads`) have a core that can be replaced. In either case the
core is the submodule `core` of the attention, so that its weights are in the state_dict and its edit is plain data (see `structure.sites`).
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import ModelError
from fourfold.recipe import Attention, Heads, parent, put, unpack

NAME = "fourfold_core"
"""What transformers calls attentions whose core is ours."""


class SoftmaxCore(nn.Module):
    """Softmax attention as a core (Vaswani et al. 2017, §3.2.1): what every other core is compared with."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, scale: float | None = None
    ) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=is_causal, scale=scale)


# --- attentions ------------------------------------------------------------------------------------------------------------------------------------


def install(model: nn.Module, edit: Mapping[str, Any], core: nn.Module) -> nn.Module:
    """Puts `core` into the attention that `edit` names ("path", "how": see `AttentionSite.edits`), in place, and returns the model. An earlier core
    is replaced. Raises ModelError where the attention is of another kind than the edit says."""
    attention: Any = model.get_submodule(edit["path"])
    if edit["how"] == "interface":
        if not by_interface(attention):
            raise ModelError(f"{edit['path']} is a {type(attention).__name__}, which does not ask transformers' AttentionInterface",
                             "The conversion was made for another version of the model; convert the original again.")
        register()
        attention.config = copy.deepcopy(attention.config)  # the other layers keep theirs
        attention.config._attn_implementation = NAME
    elif not isinstance(attention, Attention | Heads):
        raise ModelError(f"{edit['path']} is a {type(attention).__name__}, whose core cannot be replaced",
                         "Apply the edits of the conversion in their order: the first makes the attention again.")
    core.train(attention.training)
    attention.core = core
    unnested(model, edit["path"])
    return model


def core_of(attention: nn.Module) -> nn.Module | None:
    """The core that was put into an attention; None where it computes as it was written."""
    found = getattr(attention, "core", None)
    return found if isinstance(found, nn.Module) and (by_interface(attention) or isinstance(attention, Attention | Heads)) else None


def by_interface(attention: nn.Module) -> bool:
    """Whether an attention asks transformers' AttentionInterface by its own configuration."""
    config = getattr(attention, "config", None)
    home = sys.modules.get(type(attention).__module__)
    return hasattr(config, "_attn_implementation") and hasattr(home, "ALL_ATTENTION_FUNCTIONS")


def register() -> None:
    """Makes `NAME` known to transformers; again changes nothing."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _asked)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _asked(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    is_causal: bool | None = None, position_bias: Tensor | None = None, **kwargs: object,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls: [B, H, T, D] in, [B, T, H, D] out. A mask that says less than the layer's causality is completed as its own SDPA
    path does; attention dropout is left to the core."""
    if kwargs.get("softcap") is not None:
        raise ModelError(f"{type(module).__name__} caps its scores (softcap), which a core does not know", "Leave this model's attention as it is.")
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (t.repeat_interleave(shared, 1) for t in (key, value))
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and query.shape[2] > 1 and attention_mask is None
    if causal and key.shape[2] > query.shape[2]:  # a static cache, before it is filled
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        position_bias = None if position_bias is None else position_bias[..., : query.shape[2]]
    if position_bias is not None:
        attention_mask, causal = _biased(position_bias, attention_mask, causal), False
    out = module.core(query, key, value, attn_mask=attention_mask, is_causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _biased(bias: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """A bias [1 or B, H, T, S] and a mask as one sum."""
    low = torch.finfo(bias.dtype).min
    if causal:
        return bias.masked_fill(torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1), low)
    if mask is None:
        return bias
    return bias.masked_fill(~mask, low) if mask.dtype == torch.bool else bias + mask


def key_padding(attn_mask: Tensor | None) -> Tensor | None:
    """Which keys may be looked at, bool [B or 1, S], read off the last query's row of a mask of padding, or of padding and causality together; None
    for no mask. For cores that know causality themselves. A bias other than 0 and −∞ is lost: a core that cannot add one must be refused where
    the site has one (`AttentionSite.biased`)."""
    if attn_mask is None:
        return None
    row = attn_mask[..., -1, :]
    row = row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 8
    return row.reshape(row.shape[0], -1, row.shape[-1])[:, 0] if row.ndim > 1 else row.unsqueeze(0)


# --- MLPs ------------------------------------------------------------------------------------------------------------------------------------------


ACTIVATIONS = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu, "tanh": torch.tanh,
    "relu_squared": lambda x: F.relu(x).square(), "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x), "mish": F.mish, "identity": lambda x: x,
}  # fmt: skip
"""Activations by name, as `MLPSite.function` says them."""


def mlp_weights(model: nn.Module, edit: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """Weights of the MLP that `edit` names, out × in as of nn.Linear: "up" [h, w], "gate" [h, w] or None, "down" [w, h], and "up_bias" [h],
    "gate_bias" [h], "down_bias" [w], each None where there is none. Views of the model's where they can be."""
    from fourfold.recipe import is_conv1d

    def part(path: str, rows: str) -> tuple[Tensor, Tensor | None]:
        layer: Any = model.get_submodule(path)
        weight, bias = (layer.weight.t() if is_conv1d(layer) else layer.weight), layer.bias
        if not rows:
            return weight, bias
        index = torch.tensor(unpack(rows), device=weight.device)
        return weight[index], None if bias is None else bias[index]

    up, gate, down = part(edit["up"], edit["rows"][0]), part(edit["gate"], edit["rows"][1]) if edit["gate"] else (None, None), part(edit["down"], "")
    return {"up": up[0], "up_bias": up[1], "gate": gate[0], "gate_bias": gate[1], "down": down[0], "down_bias": down[1]}


def put_mlp(model: nn.Module, edit: Mapping[str, Any], layer: nn.Module) -> nn.Module:
    """Puts `layer` (x [..., w] → [..., w]) in the place of the MLP that `edit` names ("whole", or "up", "activation" and "down"), in place. Raises
    ModelError where the MLP is part of a forward that leaves no place for it (`MLPSite.replaceable`)."""
    if edit["whole"]:
        put(model, edit["whole"], layer)
    elif edit["activation"] and not edit["gate"]:
        put(model, edit["up"], layer)
        place(model, edit["activation"], nn.Identity())
        put(model, edit["down"], nn.Identity())
        _slow(model, edit["up"])
    else:
        raise ModelError(f"the MLP of {edit['up']} is part of a larger forward, which leaves no place for another layer",
                         "Write the MLP as a module of its own.")
    unnested(model, edit["up"])
    return model


def put_activation(model: nn.Module, edit: Mapping[str, Any], activation: nn.Module) -> nn.Module:
    """Puts `activation` (x [..., h] → [..., h]) in the place of the MLP's own, in place. Raises ModelError where that is written out in a forward."""
    if not edit["activation"]:
        raise ModelError(f"the activation between {edit['up']} and {edit['down']} is written out in a forward, where nothing can take its place",
                         "Make it a module (self.activation = nn.GELU()) and convert again.")
    place(model, edit["activation"], activation)
    _slow(model, edit["up"])
    unnested(model, edit["up"])
    return model


class PaddingMask(nn.Module):
    """The padding mask of the call that runs, for layers in the place of an MLP, which are handed none: a child of the model, which hears its
    arguments `attention_mask` [B, T] (1: a token) or `src_key_padding_mask` [B, T] (True: padding). `keep` is bool [B, T], True for tokens; None
    where the call has no such mask, and between calls."""

    keep: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module) -> PaddingMask | None:
        """The one of `model`, made where it has none yet; None where its forward takes no such mask."""
        found = getattr(model, "padding_mask", None)
        if isinstance(found, cls):
            return found
        if not _masks(model):
            return None
        model.padding_mask = made = cls()
        made.listen(model)
        return made

    def listen(self, model: nn.Module) -> None:
        """Hear the arguments of `model` from now on."""
        self.at = _masks(model)
        model.register_forward_pre_hook(self.hear, with_kwargs=True)
        model.register_forward_hook(self.forget, always_call=True)

    def hear(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Before a call."""
        self.keep = None
        for name, at in self.at.items():
            mask = kwargs.get(name, args[at] if at < len(args) else None)
            if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.is_floating_point():
                self.keep = ~mask.bool() if name == "src_key_padding_mask" else mask.bool()

    def forget(self, module: nn.Module, args: object, output: object) -> None:
        """After a call, whatever happened."""
        self.keep = None


def _masks(model: nn.Module) -> dict[str, int]:
    """Name → position of the padding masks that a forward takes."""
    names = list(inspect.signature(model.forward).parameters)
    return {name: names.index(name) for name in ("attention_mask", "src_key_padding_mask") if name in names}


def place(model: nn.Module, path: str, new: nn.Module) -> None:
    """Puts a module in the place of a module or of a plain function that is an attribute."""
    holder, name = parent(model, path)
    new.train(holder.training)
    setattr(holder, name, new)


def _slow(model: nn.Module, path: str) -> None:
    """Turns off the fused path of nn.TransformerEncoderLayer, which would read the original's layers."""
    holder, _ = parent(model, path)
    if hasattr(holder, "activation_relu_or_gelu"):
        holder.activation_relu_or_gelu = 0  # type: ignore[assignment]


def unnested(model: nn.Module, path: str) -> None:
    """Keeps nn.TransformerEncoder from handing nested tensors, which only its own layers read, to what was put in at `path`."""
    names = path.split(".")
    for depth in range(len(names)):
        holder: object = model.get_submodule(".".join(names[:depth]))
        if isinstance(holder, nn.TransformerEncoder):
            holder.enable_nested_tensor = holder.use_nested_tensor = False
