"""What a conversion will cost, counted and not measured: multiply-adds of one forward pass as torch's own counter counts them, bytes of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fourfold.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.frontends.subject import Subject


def predicted(subject: Subject, after: nn.Module, sample: Mapping[str, Tensor]) -> dict[str, object]:
    """{"flops", "bytes", "parameters": {"before", "after"}, "on": the sample in words}. Flops are those of contractions, a multiply-add counting two;
    what a kernel of its own does (a table look-up, a gather) is not in them."""
    pairs = {"before": subject.module, "after": after}
    return {
        "flops": {name: _flops(subject, module, sample) for name, module in pairs.items()},
        "bytes": {name: sum(p.numel() * p.element_size() for p in module.parameters()) for name, module in pairs.items()},
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in pairs.items()},
        "on": ", ".join(f"{name} {' × '.join(map(str, value.shape))}" for name, value in sample.items()),
    }


def _flops(subject: Subject, module: nn.Module, sample: Mapping[str, Tensor]) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from fourfold.frontends.fx_ops import counters

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator, which the counter would not see into
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=counters()) as counter:
            subject.logits(module, sample)
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{name} {' × '.join(map(str, value.shape))}" for name, value in sample.items())
        raise InputError(f"The model does not run on {shapes}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                         "Give sizes that fit one another: --dims batch=2,length=12 for a model of transformers, else name.axis=size.") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())
