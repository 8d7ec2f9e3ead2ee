"""Sparse MLP activations: few hidden units of a token are not zero, and decoding reads the weights of those alone.

    ReLU-fication   h = relu(x W₁ + b₁), gated h = relu(x W_g) ⊙ (x W₁)          Mirzadeh et al. 2023, §4
    Top-k           h keeps the k units of largest magnitude of a token           Li et al. 2023 ("lazy neuron"), §4
    both            y = h W₂ + b₂ = b₂ + Σ over h_j ≠ 0 of h_j · W₂[j]

A gated MLP (SwiGLU) chooses by its gate, as CATS does (Lee et al. 2024), so that the rows of W₁ of units that are zero are skipped as well. W₂ is
stored neuron-major, one contiguous row a unit. Calls of one to four rows without gradients take a compiled loop over the active units where a race on
this machine, run once a layer and number of rows, says that it is faster; all others compute as torch does. For ReLU the loop can also leave out rows
of W₁: an int8 sketch of W₁ bounds every pre-activation, and only rows that may be active are read in full, which is exact.

It pays in decoding of one to four sequences and nowhere else: in a batch the rows of a call have few zero units in common.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import InputError, ModelError
from fourfold.rewrite import Context, Conversion, Edit, Proposal, Rewrite
from fourfold.structure.cores import ACTIVATIONS, mlp_weights, put_activation, put_mlp

if TYPE_CHECKING:
    import numpy as np
    from torch.types import Device

    from fourfold.structure.sites import MLPSite, Sites
    from fourfold.torch_types import Factory

MOST_ROWS = 4
"""Rows of a call (sequences × positions) up to which units are skipped."""
SHARE = 0.1
"""Share of units that Top-k keeps where nothing else is said."""
WAYS = ("dense", "sparse", "screened")
_GROWN = 1.5                                                            # times as many active units as were raced: computed as torch does
_ZERO_BELOW = ("relu", "relu_squared")                                  # activations that are zero for every negative


class TopK(nn.Module):
    """Keeps the `k` entries of largest magnitude along the last axis, and zeros in place of the others: float [..., H] → [..., H].

    `k`: entries (an int ≥ 1; k ≥ H keeps all), or a share of H (a float in (0, 1], rounded up). Exactly k positions are kept, whichever of equal
    ones; of an input with fewer non-zeros all stay. Gradients pass unchanged through what is kept and are zero elsewhere. NaN counts as largest, so
    it is never dropped. `approximate`: outside of training what exceeds `threshold` in magnitude is kept, which needs no sorting and keeps k on
    average; `calibrate` sets it. Source: Li et al. 2023, §4. Raises InputError for another k or a tensor of integers.
    """

    threshold: Tensor

    def __init__(self, k: int | float, approximate: bool = False) -> None:
        super().__init__()
        whole = isinstance(k, int) and not isinstance(k, bool)
        if not (whole and k >= 1 or isinstance(k, float) and 0 < k <= 1):
            raise InputError(f"Top-k cannot keep {k!r} units.", "Give a number of units of at least 1, or a share such as 0.1.")
        self.k, self.approximate = k, approximate
        self.register_buffer("threshold", torch.zeros(()))

    def count(self, width: int) -> int:
        """How many of `width` entries are kept."""
        return min(width, self.k) if isinstance(self.k, int) else min(width, math.ceil(self.k * width - 1e-9))

    def calibrate(self, hidden: Tensor) -> float:
        """Set `threshold` so that of `hidden` [..., H] k entries a row exceed it on average; the share that does. Raises InputError where there are
        none."""
        size = hidden.detach().abs().flatten().float()
        if not len(size):
            raise InputError("Top-k cannot be calibrated on no activations.", "Give at least one row.")
        kept = self.count(hidden.shape[-1]) * (len(size) // hidden.shape[-1])
        edge = size.kthvalue(len(size) - kept).values if kept < len(size) else size.new_tensor(-1.0)  # kept: what is strictly above
        self.threshold.copy_(edge)
        return float((size > edge).float().mean())

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise InputError(f"Top-k takes activations, not a tensor of {x.dtype}.", "Give floating-point numbers.")
        if self.approximate and not self.training:
            return torch.where(~(x.abs() <= self.threshold), x, 0.0)  # written so that NaN stays
        k = self.count(x.shape[-1])
        if k >= x.shape[-1]:
            return x
        kept = x.detach().abs().topk(k, -1, sorted=False).indices
        return torch.where(torch.zeros_like(x, dtype=torch.bool).scatter(-1, kept, True), x, 0.0)

    def extra_repr(self) -> str:
        return f"{self.k}" + (", approximate" if self.approximate else "")


@dataclass(frozen=True)
class DecodeRace:
    """What a race of a layer said: `way` of `WAYS` for calls of `rows` rows; wall and processor time of the chosen way relative to torch's (1.0:
    torch's own); the `share` of units that were active in some row."""

    rows: int
    way: str
    wall: float
    cpu: float
    share: float


class SparseMLP(nn.Module):
    """x float [..., width] → [..., width]: down(topk(activation(up(x)))), or gated down(topk(activation(gate(x))) ⊙ up(x)).

    `activation` is a name of `fourfold.structure.cores.ACTIVATIONS`; `k` as for `TopK`, None: all units that are not zero. `down` is a parameter
    [hidden, width], a row a unit. `decode`: "auto" races the ways at the first call of each number of rows ≤ 4 in which no gradients are asked for
    (in eval mode, float32, CPU, not compiled or exported, no hooks on its parts), and skips units only where that takes less processor time beyond
    doubt and no more wall time; "dense", "sparse" or "screened" settle it. Where a weight of an inactive unit is infinite or NaN, skipping gives a
    number and torch NaN. `forget` makes it race and read its weights anew, which weights written through `.data` need. Sources: Li et al. 2023;
    Mirzadeh et al. 2023. Raises InputError for sizes, names or k that cannot be.
    """

    down_bias: nn.Parameter | None

    def __init__(self, width: int, hidden: int, *, activation: str = "relu", k: int | float | None = None, gated: bool = False, bias: bool = True,
                 approximate: bool = False, decode: str = "auto", device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if width < 1 or hidden < 1:
            raise InputError(f"A sparse MLP of width {width} with {hidden} hidden units has nothing to compute.", "Both must be at least 1.")
        if activation not in ACTIVATIONS:
            raise InputError(f"The activation {activation!r} is not known.", f"Choose from: {', '.join(ACTIVATIONS)}.")
        if decode not in ("auto", *WAYS):
            raise InputError(f"decode={decode!r} is not known.", f"Choose from: auto, {', '.join(WAYS)}.")
        if decode == "screened" and activation not in _ZERO_BELOW:
            raise InputError(f"Units cannot be screened under {activation}, which is not zero below zero.", f"Choose from: {', '.join(_ZERO_BELOW)}.")
        made: Factory = {"device": device, "dtype": dtype}
        self.width, self.hidden, self.activation, self.decode = width, hidden, activation, decode
        self.up = nn.Linear(width, hidden, bias=bias, **made)
        self.gate = nn.Linear(width, hidden, bias=bias, **made) if gated else None
        self.topk = None if k is None else TopK(k, approximate)
        self.active = nn.Identity()                                     # its input is what `down` reads: where hooks can count
        self.down = nn.Parameter(torch.empty(hidden, width, **made))
        self.register_parameter("down_bias", nn.Parameter(torch.empty(width, **made)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, as nn.Linear draws them."""
        bound = self.hidden**-0.5
        for part in (self.up, self.gate):
            if part is not None:
                part.reset_parameters()
        for own in (self.down, self.down_bias):
            if own is not None:
                nn.init.uniform_(own, -bound, bound)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor | None], **settings: Any) -> SparseMLP:
        """From copies of the weights of another MLP, out × in, as `cores.mlp_weights` gives them; `settings` as for the class."""
        up, down = weights["up"], weights["down"]
        assert up is not None and down is not None
        new = cls(up.shape[1], up.shape[0], gated=weights["gate"] is not None, device="meta", **settings)

        def own(value: Tensor | None) -> nn.Parameter | None:
            return None if value is None else nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), value.requires_grad)

        for name in ("up", "gate"):
            part = getattr(new, name)
            if part is not None:
                part.register_parameter("weight", own(weights[name]))
                part.register_parameter("bias", own(weights[f"{name}_bias"]))
        new.register_parameter("down", own(down.detach().t()))
        new.register_parameter("down_bias", own(weights["down_bias"]))
        if new.topk is not None:
            new.topk.threshold = torch.zeros((), device=up.device)
        new.requires_grad_(up.requires_grad)
        return new

    def forward(self, x: Tensor) -> Tensor:
        if self._decodes(x):
            rows = x.reshape(-1, self.width)
            way = self.decode if self.decode != "auto" else self._raced(rows).way
            out = None if way == "dense" else _Decoder(self, rows, way, self._most(len(rows))).run()
            if out is not None:
                return out.view(x.shape)
        return self._dense(x)

    def _dense(self, x: Tensor) -> Tensor:
        """The same by torch's own operators, with gradients."""
        return F.linear(self.active(self._hidden(x)), self.down.t(), self.down_bias)

    def _hidden(self, x: Tensor) -> Tensor:
        function = ACTIVATIONS[self.activation]
        h = function(self.up(x) if self.gate is None else self.gate(x))
        h = h if self.topk is None else self.topk(h)
        return h if self.gate is None else h * self.up(x)

    def _decodes(self, x: Tensor) -> bool:
        """Whether this call may skip units."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or torch.is_grad_enabled() or self.training or self.decode == "dense":
            return False
        if type(x) is not Tensor or x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if not 0 < x.numel() <= MOST_ROWS * self.width or x.shape[-1] != self.width:
            return False
        linears = [self.up] if self.gate is None else [self.up, self.gate]
        weights = [self.down, *(part.weight for part in linears)]
        return (all(type(part) is nn.Linear for part in linears) and all(w.dtype == x.dtype and w.is_contiguous() and w.device == x.device
                                                                         for w in weights)
                and not any(part._forward_hooks or part._forward_pre_hooks for part in self.children()))

    def races(self) -> dict[int, DecodeRace]:
        """What was raced so far, by number of rows."""
        return dict(_memory(self)["races"])

    def forget(self) -> None:
        """Race anew at the next call, and read the weights anew."""
        _CACHES.pop(self, None)

    def _raced(self, rows: Tensor) -> DecodeRace:
        found = _memory(self)["races"]
        if len(rows) not in found:
            found[len(rows)] = race_ways(self, rows)
            if not any(one.way == "screened" for one in found.values()):
                _memory(self).pop("sketch", None)                       # a quarter of `up` that nobody reads
        return found[len(rows)]

    def _most(self, rows: int) -> int:
        """Active units above which a call is computed as torch does: what was raced is no evidence for much more."""
        one = _memory(self)["races"].get(rows)
        return self.hidden if one is None else min(self.hidden, math.ceil(_GROWN * one.share * self.hidden) + 8)

    def extra_repr(self) -> str:
        return f"{self.width}, {self.hidden}, {self.activation}, decode={self.decode}"


_CACHES: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()


def _memory(layer: SparseMLP) -> dict[str, Any]:
    """What a layer was told by races, and its sketch: of this process, never copied or saved with the layer."""
    return _CACHES.setdefault(layer, {"races": {}})


def race_ways(layer: SparseMLP, rows: Tensor, *, rounds: int = 9, min_time: float = 0.002) -> DecodeRace:
    """Race the ways of computing `layer` on `rows` float32 [B ≤ 4, width], interleaved, by the rule of `measure.race`. A way that is not faster than
    torch's in processor time beyond doubt, or is slower by the wall clock, is not taken."""
    from fourfold.measure.race import race

    ways = [way for way in WAYS if way != "screened" or layer.activation in _ZERO_BELOW]
    first = _Decoder(layer, rows, "sparse", layer.hidden)
    first.run()
    runners: dict[str, Callable[[], object]] = {
        way: (lambda: layer._dense(rows)) if way == "dense" else (lambda way=way: _Decoder(layer, rows, way, layer.hidden).run()) for way in ways}
    found = race(runners, baseline="dense", rounds=rounds, min_time=min_time)
    good = [way for way in ways if way != "dense" and found[way].faster("cpu") and found[way].wall.verdict <= 0]
    best = min(good, key=lambda way: found[way].cpu.value, default="dense")
    return DecodeRace(len(rows), best, found[best].wall.value, found[best].cpu.value, first.units / layer.hidden)


class _Decoder:
    """One call that skips units; `units` that were active in it."""

    def __init__(self, layer: SparseMLP, rows: Tensor, way: str, most: int) -> None:
        self.layer, self.rows, self.way, self.most, self.units = layer, rows.contiguous(), way, most, 0

    def run(self) -> Tensor | None:
        """The answer [B, width]; None where more than `most` units are active, or numbers are not finite, and torch is to compute it."""
        import numpy as np

        from fourfold.rewrites.route._sparse_kernels import active, gather, scatter

        layer = self.layer
        h = self._screened() if self.way == "screened" else self._selected()
        if h is None:
            return None
        if layer.activation == "relu_squared" and self.way == "screened":
            np.square(h, out=h)
        units = np.empty(layer.hidden, np.int64)
        self.units = active(h, units)
        if self.units > self.most:
            return None
        units = units[: self.units]
        if layer.gate is not None:
            gather(self.rows.numpy(), units, _array(layer.up.weight), _bias(layer.up.bias, layer.hidden), h)
        out = torch.empty(len(h), layer.width)
        scatter(h, units, _array(layer.down), _bias(layer.down_bias, layer.width), out.numpy())
        return out

    def _selected(self) -> np.ndarray:
        """Activations by which units are chosen [B, hidden], the others zero."""
        from fourfold.rewrites.route._sparse_kernels import keep_largest

        layer, topk = self.layer, self.layer.topk
        h = ACTIVATIONS[layer.activation]((layer.up if layer.gate is None else layer.gate)(self.rows))
        if topk is not None and topk.approximate:
            h = topk(h)
        found = h.numpy()
        if topk is not None and not topk.approximate and (k := topk.count(layer.hidden)) < layer.hidden:
            for row in found:
                keep_largest(row, k)
        return found

    def _screened(self) -> np.ndarray | None:
        """The same before squaring, the rows of weights that cannot matter unread."""
        import numpy as np

        from fourfold.rewrites.route._sparse_kernels import screen

        layer, topk = self.layer, self.layer.topk
        linear = layer.up if layer.gate is None else layer.gate
        weight, bias = _array(linear.weight), _bias(linear.bias, layer.hidden)
        k, least = layer.hidden, np.float32(0)
        if topk is not None and topk.approximate:
            edge = max(0.0, float(topk.threshold))
            least = np.float32(math.sqrt(edge) if layer.activation == "relu_squared" else edge)
        elif topk is not None:
            k = topk.count(layer.hidden)
        h = np.empty((len(self.rows), layer.hidden), np.float32)
        codes, scale, error, norm = _sketch(layer, linear)
        read = screen(self.rows.numpy(), weight, bias, codes, scale, error, norm, k, least, h)
        return None if read < 0 else h


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def _bias(bias: Tensor | None, width: int) -> np.ndarray:
    import numpy as np

    return np.zeros(width, np.float32) if bias is None else _array(bias)


def _sketch(layer: SparseMLP, linear: nn.Linear) -> tuple[np.ndarray, ...]:
    """int8 rows of `linear`, their scales, errors and norms; made again where its weight has changed."""
    import numpy as np

    from fourfold.rewrites.route._sparse_kernels import sketch

    weight = linear.weight
    version = None if weight.is_inference() else weight._version
    held = _memory(layer).get("sketch")
    if held is None or held[0].data_ptr() != weight.data_ptr() or held[1] != version:
        codes, (scale, error, norm) = np.empty(weight.shape, np.int8), np.empty((3, len(weight)), np.float32)
        sketch(_array(weight), codes, scale, error, norm)
        held = _memory(layer)["sketch"] = (weight.detach(), version, (codes, scale, error, norm))  # held, so that its address is nobody else's
    return held[2]


class SparseActivations(Rewrite):
    """ReLU-fication (Mirzadeh et al. 2023) and Top-k activations (Li et al. 2023) of MLPs, with a decoding path that skips what is zero."""

    title = "MLPs whose hidden units are mostly zero: ReLU or Top-k, skipped in decoding"
    cites = ("li2023lazy", "mirzadeh2023", "lee2024cats")
    needs = ("torch", "numba")
    edits = ("sparse_mlp",)
    step = "MLPs with few active units"
    converts = ("topk-mlp", "relu-mlp")
    objectives = ("latency",)

    def declines(self, model: nn.Module) -> str | None:
        dense = sum(isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D" for part in model.modules())
        return None if dense > 1 else f"{type(model).__name__} has no two linear layers in a row that would be an MLP"

    def propose(self, context: Context) -> Iterator[Proposal]:
        """One student, where a call of one example is at most four rows to an MLP wide enough that reading its weights is what takes time."""
        if context.call is None:
            return
        from fourfold.structure.sites import sites

        try:
            found = sites(context.subject.module, context.call)
        except ModelError:
            return
        wide = [site for site in found.mlps if site.width * site.hidden >= _WIDE and _replaceable(site) and not site.causal]
        if not wide or found.attentions:                                # an attention reads whole sequences, whose calls are no decoding
            return
        edits = [edit for site in wide for edit in _conversion(site, "topk-mlp").edits]
        yield Proposal(f"Top-k of {len(wide)} MLPs", tuple(edits), (0.6, 0.2, 1.0))

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        found = [_conversion(site, to) for site in sites.mlps if _replaceable(site)]
        if not found:
            said = ("activation is not one that is known", "forward leaves no place for another layer")
            why = [f"{site.name}: its {said[bool(site.function)]}." for site in sites.mlps] or [*sites.refusals.values()]
            raise ModelError(f"No MLP of the model can be converted to {to}. {[*why, 'No linear layer feeds another through an activation.'][0]}",
                             "Write the MLP as a module with its activation as a submodule.")
        return found

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        name, k = str(edit["becomes"]), edit["k"]
        if not edit["whole"] and edit["gate"]:
            new: nn.Module = _Named(name) if k is None else nn.Sequential(_Named(name), TopK(k))
            return put_activation(model, edit, new)
        return put_mlp(model, edit, SparseMLP.of(mlp_weights(model, edit), activation=name, k=k))

    def recover(self, context: Context, proposal: Proposal) -> dict[str, object] | None:
        return {}

    def describe(self, edits: Sequence[Edit]) -> str:
        ours = [edit for edit in edits if edit.get("kind") in self.edits]
        kept = sorted({edit["k"] for edit in ours if edit["k"] is not None})
        what = f"Top-k of {kept[0]} units" if kept else "ReLU"
        return f"{len(ours)} MLP{'s' * (len(ours) != 1)} with {what}" + (" and others" if len(kept) > 1 else "")


_WIDE = 1 << 20                                                         # weights of a matrix: below 4 MiB all stays in a cache, and calls cost more


class _Named(nn.Module):
    """An activation by its name: what takes an activation's place where the MLP stays as it is written."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.function](x)

    def extra_repr(self) -> str:
        return self.function


def _replaceable(site: MLPSite) -> bool:
    return bool(site.function and (site.replaceable or site.activation))


def _conversion(site: MLPSite, to: str) -> Conversion:
    """What becomes of one MLP."""
    becomes = "relu" if to == "relu-mlp" and site.function not in _ZERO_BELOW else site.function
    k = max(1, round(SHARE * site.hidden)) if to == "topk-mlp" else None
    exact = becomes == site.function and (k is None or k >= site.hidden)
    note = f"The activation {site.function} " + ("stays" if becomes == site.function else f"becomes {becomes}")
    note += "" if k is None else f", the {k:,} units of largest magnitude of {site.hidden:,} are kept"
    if site.gate:
        note += ", chosen by the gate" if k is not None else ", at the gate"
    if not site.replaceable:
        note += "; its forward stays as it is, so that nothing can be skipped in decoding"
    return Conversion(site.name, site.path, site.edits("sparse_mlp", becomes=becomes, k=k), exact, note + ".")
