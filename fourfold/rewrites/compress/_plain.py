"""Whether a linear layer or embedding is one whose weights may be stored otherwise."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fourfold.recipe import is_conv1d


def plain(module: nn.Module) -> bool:
    """Whether a layer computes no more than its base class does; subclasses may add offsets or scales of their own."""
    if type(module).forward in (nn.Linear.forward, nn.Embedding.forward) or is_conv1d(module):
        return True
    if not isinstance(module, nn.Linear):
        return False
    x = torch.linspace(-1, 1, 2 * module.in_features, dtype=module.weight.dtype, device=module.weight.device).view(2, -1)
    try:
        with torch.inference_mode():
            return torch.allclose(module(x), F.linear(x, module.weight, module.bias), atol=1e-4, rtol=1e-3)
    except Exception:  # it wants other arguments, so it is no plain layer
        return False
