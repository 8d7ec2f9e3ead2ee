"""Our kernel as an experts implementation of transformers (5 and later): Mixtral, Qwen-MoE and their like run their experts by it.

transformers keeps the experts of a layer as one module with stacked weights and asks a registry, by the configuration's `experts_implementation`, how
to compute them. Ours sorts the rows by expert once and multiplies each expert's rows alone, with its bias, by `_grouped.grouped_linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fourfold.errors import ModelError
from fourfold.rewrites.route._grouped import grouped_linear

NAME = "fourfold"
"""What `model.set_experts_implementation` calls it."""


def register_experts() -> None:
    """Makes `NAME` known to transformers; again changes nothing."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def use_experts(model: nn.Module) -> nn.Module:
    """Have a transformers model compute its experts by our kernel, and return it. Raises ModelError where it has none that can be told."""
    register_experts()
    told: Any = getattr(model, "set_experts_implementation", None)
    if told is None or not any(hasattr(m, "_is_expert_parallel") for m in model.modules()):
        raise ModelError(f"{type(model).__name__} has no experts that transformers lets others compute", "Mixtral, Qwen-MoE and their like have.")
    told(NAME)
    return model


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What transformers calls: tokens [N, D], experts of each [N, k] (those from `num_experts` on live on other devices), gates [N, k] → [N, D]."""
    many, k = top_k_index.shape
    expert, order = top_k_index.reshape(-1).sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(self.num_experts, device=expert.device), right=True)
    rows = hidden_states[order // k]
    inner = _linear(self, rows, "gate_up_proj" if self.has_gate else "up_proj", expert, ends)
    out = _linear(self, self._apply_gate(inner) if self.has_gate else self.act_fn(inner), "down_proj", expert, ends)
    if getattr(self, "has_post_expert_norm", False):
        out = self.post_expert_norm(out)
    gates = torch.where(expert < self.num_experts, top_k_weights.reshape(-1)[order], 0.0)
    weighed = out * gates.unsqueeze(-1)
    back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return weighed[back].view(many, k, -1).sum(1).to(hidden_states.dtype)


def _linear(self: Any, rows: Tensor, name: str, expert: Tensor, ends: Tensor) -> Tensor:
    weight, bias = getattr(self, name), getattr(self, f"{name}_bias") if self.has_bias else None
    weight = weight.transpose(1, 2) if self.is_transposed else weight
    return grouped_linear(rows.to(weight.dtype), weight, bias, ends)
