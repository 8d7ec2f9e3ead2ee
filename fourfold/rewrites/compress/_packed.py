"""Weights of 8 and 4 bits in groups: the grids, the packing, and the layers that hold them. What the techniques of weight precision share.

A group of `group` neighbouring inputs of one output shares a step s and an offset z: w ≈ s·(q − z), q in 0 … 2^bits − 1. Three kinds of offset:
"symmetric" (z = 2^(bits−1)), "integer" (z a whole number that fits the bits, so that 0 stays 0) and "fractional" (z any number, so that both ends of
the group are met exactly; weights that were on such a grid once, as GGUF's Q4_1 ones are, come back unchanged). Activations stay floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fourfold.errors import ModelError
from fourfold.recipe import is_conv1d, put
from fourfold.rewrites.compress._plain import plain

OFFSETS = ("symmetric", "integer", "fractional")
GROUPS = (32, 64, 128)  #: sizes of groups that are searched; 0 is one group a row
TINY = 1e-8
SMALLEST = 1 << 12  #: weights of a layer below which nothing is gained


@dataclass(frozen=True)
class Grid:
    """How a layer's weights are stored: bits (4 or 8), inputs per group (0: the whole row) and the kind of offset."""

    bits: int = 4
    group: int = 32
    offset: str = "integer"

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.offset not in OFFSETS or self.group < 0 or self.group % 2:
            raise ModelError(f"weights of {self.bits} bits in groups of {self.group} with {self.offset} offsets cannot be stored.",
                             f"Choose 4 or 8 bits, an even group or 0 for whole rows, and an offset of {', '.join(OFFSETS)}.")

    def groups(self, inputs: int) -> int:
        """Groups of a row of `inputs` weights. Raises ModelError where they do not divide it."""
        size = self.group or inputs
        if inputs % size or (self.bits == 4 and inputs % 2):
            raise ModelError(f"a row of {inputs} weights has no groups of {size}.", "Choose a group size that divides it, or 0 for whole rows.")
        return inputs // size

    def fits(self, inputs: int) -> Grid:
        """This grid, or the one with the largest searched group that divides `inputs`, or whole rows."""
        if self.group and inputs % self.group:
            size = max((g for g in GROUPS if g < self.group and inputs % g == 0), default=0)
            return Grid(self.bits, size, self.offset)
        return self

    def stored(self, outputs: int, inputs: int) -> int:
        """Bytes of a weight [outputs, inputs] with 16-bit steps and offsets as wide as they must be."""
        groups = outputs * self.groups(inputs)
        offsets = {"symmetric": 0, "integer": groups * self.bits // 8, "fractional": groups * 4}[self.offset]
        return outputs * inputs * self.bits // 8 + groups * 2 + offsets

    def edit(self) -> dict[str, object]:
        return {"bits": self.bits, "group": self.group, "offset": self.offset}


def grid_of(edit: Mapping[str, object]) -> Grid:
    """The grid that an edit tells."""
    return Grid(int(str(edit["bits"])), int(str(edit["group"])), str(edit["offset"]))


def fit(weight: Tensor, grid: Grid, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """(step, offset), float32 [out, groups] each, of a weight [out, in]: the grid spans the group's extremes times `shrink` (broadcast over groups).

    Steps are rounded to 16-bit floats where these hold them, since engines store them so. A group of zeros gets the smallest step."""
    x = weight.detach().float().reshape(len(weight), grid.groups(weight.shape[1]), -1)
    top = 2**grid.bits - 1
    if grid.offset == "symmetric":
        # One code more on the negative side: the larger end is put there, so that none is wasted.
        low, high = x.amin(2) * shrink, x.amax(2) * shrink
        signed = torch.where(high > -low, -high, low) if grid.bits == 4 else torch.maximum(high, -low)
        step = _half(signed / -(2 ** (grid.bits - 1)) if grid.bits == 4 else signed / (2 ** (grid.bits - 1) - 1))
        step = torch.where(step.abs() < TINY, torch.full_like(step, TINY), step)
        return step, torch.full_like(step, float(2 ** (grid.bits - 1)))
    low, high = x.amin(2) * shrink, x.amax(2) * shrink
    if grid.offset == "integer":
        low, high = low.clamp_max(0), high.clamp_min(0)
    step = _half((high - low) / top).clamp_min(TINY)
    offset = -low / step
    return step, offset.round().clamp_(0, top) if grid.offset == "integer" else offset


def _half(step: Tensor) -> Tensor:
    small = step.to(torch.float16).float()
    kept = (small.abs() >= 6.2e-5) & torch.isfinite(small)
    return torch.where(kept, small, step)


def encode(weight: Tensor, step: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Codes uint8 [out, in] of the nearest points of the grid."""
    x = weight.detach().float().reshape(*step.shape, -1)
    return (x / step[..., None] + offset[..., None]).round_().clamp_(0, 2**bits - 1).to(torch.uint8).reshape(weight.shape)


def decode(codes: Tensor, step: Tensor, offset: Tensor) -> Tensor:
    """Codes [out, in] back to float32 weights."""
    x = codes.float().reshape(*step.shape, -1)
    return ((x - offset[..., None]) * step[..., None]).reshape(codes.shape)


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [out, in] codes as they are stored: 8 bits as they are, of 4 bits two a byte, the even input in the low half."""
    return codes.contiguous() if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(stored: Tensor, bits: int) -> Tensor:
    """The reverse of `pack`."""
    return stored if bits == 8 else torch.stack([stored & 15, stored >> 4], 2).reshape(len(stored), -1)


def least_squares(weight: Tensor, grid: Grid, importance: Tensor | None = None, steps: int = 9) -> tuple[Tensor, Tensor]:
    """(step, offset) whose range is shrunk, group by group, to the least squared error Σ h·(w − ŵ)² over factors 1 … 0.6; `importance` h [in] weighs
    inputs (their mean square). Never worse than `fit` in that measure."""
    best_step, best_offset = fit(weight, grid)
    x = weight.detach().float().reshape(*best_step.shape, -1)
    h = torch.ones(1, 1, 1) if importance is None else importance.float().reshape(1, best_step.shape[1], -1)
    top = 2**grid.bits - 1

    def error(step: Tensor, offset: Tensor) -> Tensor:
        q = (x / step[..., None] + offset[..., None]).round_().clamp_(0, top)
        return (q.sub_(offset[..., None]).mul_(step[..., None]).sub_(x).square_() * h).sum(2)

    best = error(best_step, best_offset)
    for shrink in torch.linspace(1.0, 0.6, steps).tolist()[1:]:
        step, offset = fit(weight, grid, shrink)
        found = error(step, offset)
        better = found < best
        best, best_step, best_offset = (torch.where(better, a, b) for a, b in ((found, best), (step, best_step), (offset, best_offset)))
    return best_step, best_offset


def output_error(weight: Tensor, other: Tensor, gram: Tensor) -> Tensor:
    """Σ over inputs of the squared error of each output [out]: diag((W − Ŵ)·XᵀX·(W − Ŵ)ᵀ)."""
    difference = (weight - other).float()
    return ((difference @ gram.float()) * difference).sum(1)


class PackedWeight(nn.Module):
    """A weight [out, in] of few bits. Buffers: `codes` uint8 [out, in·bits/8], `step` and `offset` float32 [out, groups]."""

    codes: Tensor
    step: Tensor
    offset: Tensor

    def __init__(self, outputs: int, inputs: int, grid: Grid) -> None:
        super().__init__()
        self.outputs, self.inputs, self.grid = outputs, inputs, grid
        groups = grid.groups(inputs)
        self.register_buffer("codes", torch.zeros(outputs, inputs * grid.bits // 8, dtype=torch.uint8))
        self.register_buffer("step", torch.ones(outputs, groups))
        self.register_buffer("offset", torch.zeros(outputs, groups))

    def fill(self, codes: Tensor, step: Tensor, offset: Tensor) -> None:
        """Take over codes uint8 [out, in], steps and offsets."""
        self.codes, self.step, self.offset = pack(codes, self.grid.bits), step.float().contiguous(), offset.float().contiguous()

    def dense(self) -> Tensor:
        """float32 [out, in]."""
        return decode(unpack(self.codes, self.grid.bits), self.step, self.offset)

    @property
    def nbytes(self) -> int:
        return self.grid.stored(self.outputs, self.inputs)


class PackedLinear(nn.Module):
    """y = (x / scaled)·Wᵀ + b with a packed W: [..., in] float → [..., out] of the same dtype. For inference: no gradient passes to W.

    `scaled`: a buffer [in] by which inputs are divided first (activation-aware scaling that no earlier layer could take over), or None. `packed` may
    be shared with an embedding (tied tables).
    """

    scaled: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None, scaled: Tensor | None = None) -> None:
        super().__init__()
        self.packed, (self.out_features, self.in_features) = packed, (packed.outputs, packed.inputs)
        self.register_buffer("bias", bias)
        self.register_buffer("scaled", scaled)

    def forward(self, x: Tensor) -> Tensor:
        if self.scaled is not None:
            x = x / self.scaled.to(x.dtype)
        return F.linear(x, self.packed.dense().to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @property
    def weight(self) -> Tensor:
        """Dense, for readers of shapes and values; made anew each time."""
        return self.packed.dense()

    def extra_repr(self) -> str:
        grid = self.packed.grid
        return f"{self.in_features}, {self.out_features}, {grid.bits} bits, groups of {grid.group or self.in_features}, {grid.offset}"


class PackedEmbedding(nn.Module):
    """Rows of a packed table: ids [...] → float32 [..., width]; only rows that are asked for are widened. `scale`: a factor that some models' tables
    carry."""

    def __init__(self, packed: PackedWeight, padding_idx: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.packed, self.padding_idx, self.scale = packed, padding_idx, scale
        self.num_embeddings, self.embedding_dim = packed.outputs, packed.inputs

    def forward(self, ids: Tensor) -> Tensor:
        rows = ids.reshape(-1)
        held = self.packed
        found = decode(unpack(held.codes[rows], held.grid.bits), held.step[rows], held.offset[rows])
        return found.reshape(*ids.shape, self.embedding_dim) * self.scale

    @property
    def weight(self) -> Tensor:
        return self.packed.dense()


def stored_weight(layer: nn.Module) -> Tensor:
    """The weight [out, in] of a linear layer, GPT-2's Conv1D too, or of an embedding."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().t() if is_conv1d(layer) else weight.detach()


def packable(layer: nn.Module) -> bool:
    """A linear layer (GPT-2's Conv1D too) of 4,096 float weights or more and an even number of inputs, that computes no more than its base class."""
    if not (isinstance(layer, nn.Linear) or is_conv1d(layer)):
        return False
    weight = layer.weight
    if not (isinstance(weight, Tensor) and weight.is_floating_point() and weight.numel() >= SMALLEST and plain(layer)):
        return False
    return stored_weight(layer).shape[1] % 2 == 0


def table_of(module: nn.Module, path: str) -> str | None:
    """Path of the embedding that shares its weights with the linear layer at `path`; None where none does."""
    weight = module.get_submodule(path).weight
    return next((name for name, m in module.named_modules() if isinstance(m, nn.Embedding) and m.weight is weight), None)


def targets(module: nn.Module) -> list[str]:
    """Paths of the layers whose weights may be packed, in order of definition. A head that is tied stands for its table too. Attentions of torch's
    own kind read their weights directly and are left alone."""
    owned = {f"{path}.out_proj" for path, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)}
    return [path for path, m in module.named_modules() if path not in owned and packable(m)]


def install(module: nn.Module, path: str, grid: Grid, values: tuple[Tensor, Tensor, Tensor] | None = None,
            scaled: Tensor | None = None) -> PackedLinear:  # fmt: skip
    """Put a `PackedLinear` in the place of the layer at `path`, and a `PackedEmbedding` in that of the table it is tied to. `values`: (codes, step,
    offset); None rounds to nearest. The layer that was put in.

    Raises ModelError where the grid does not fit the layer."""
    layer = module.get_submodule(path)
    tied = table_of(module, path)
    weight = stored_weight(layer).float()
    grid = grid.fits(weight.shape[1])
    packed = PackedWeight(weight.shape[0], weight.shape[1], grid)
    if values is None and not weight.is_meta:
        step, offset = fit(weight, grid)
        values = encode(weight, step, offset, grid.bits), step, offset
    if values is not None:
        packed.fill(*values)
    bias = layer.bias.detach().float().clone() if isinstance(layer.bias, Tensor) else None
    made = PackedLinear(packed, bias, scaled)
    if tied is not None:
        table = module.get_submodule(tied)
        scale = getattr(table, "embed_scale", 1.0)
        put(module, tied, PackedEmbedding(packed, getattr(table, "padding_idx", None), float(scale)))
        _untie(module)
    put(module, path, made)
    return made


def _untie(module: nn.Module) -> None:
    """transformers ties by the name of `weight`, which is no parameter any more; the layers share their packed weights themselves."""
    for part in module.modules():
        if getattr(part, "_tied_weights_keys", None):
            part._tied_weights_keys = None  # type: ignore[assignment]
        if getattr(part, "all_tied_weights_keys", None):
            part.all_tied_weights_keys = {}  # type: ignore[assignment]


@contextmanager
def unpacked(module: nn.Module) -> Iterator[dict[int, PackedWeight]]:
    """Within, packed layers are plain ones with the same weights in float32, for tracers; yields {address of a weight's numbers: what it is packed
    as}. A layer with scaled inputs divides them first, as before."""
    found: dict[int, PackedWeight] = {}
    dense: dict[int, nn.Parameter] = {}
    layers = [(path, m) for path, m in module.named_modules() if isinstance(m, PackedLinear | PackedEmbedding)]
    try:
        for path, layer in layers:
            if id(layer.packed) not in dense:
                dense[id(layer.packed)] = nn.Parameter(layer.packed.dense(), requires_grad=False)
                found[dense[id(layer.packed)].data_ptr()] = layer.packed
            put(module, path, _plain(layer, dense[id(layer.packed)]))
        yield found
    finally:
        for path, layer in layers:
            put(module, path, layer)


class _Divided(nn.Module):
    def __init__(self, linear: nn.Linear, scaled: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("inverse", 1.0 / scaled)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.inverse)  # type: ignore[operator]


class _Scaled(nn.Module):
    def __init__(self, table: nn.Embedding, scale: float) -> None:
        super().__init__()
        self.table, self.scale = table, scale

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).mul(self.scale)


def _plain(layer: PackedLinear | PackedEmbedding, weight: nn.Parameter) -> nn.Module:
    if isinstance(layer, PackedEmbedding):
        table = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight.data, _freeze=True)
        table.weight = weight
        return table if layer.scale == 1.0 else _Scaled(table, layer.scale)
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    linear.weight = weight
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias, requires_grad=False)
    return linear if layer.scaled is None else _Divided(linear, layer.scaled)


def inputs_of(module: nn.Module, paths: Sequence[str], run: Callable[[], object]) -> dict[str, list[Tensor]]:
    """What each of these layers is given while `run` calls the module: float32 [rows, in] a call."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def look(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[path].append(given[0].detach().float().reshape(-1, given[0].shape[-1]))
        return hook

    hooks = [module.get_submodule(path).register_forward_pre_hook(look(path)) for path in paths]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def weight_bits(module: nn.Module) -> dict[str, float]:
    """Bits per weight of each packed layer, steps and offsets counted, and of plain linear layers (16 or 32); a tied table once."""
    found: dict[str, float] = {}
    for path, m in module.named_modules():
        if isinstance(m, PackedLinear):
            found[path] = 8 * m.packed.nbytes / (m.packed.outputs * m.packed.inputs)
        elif isinstance(m, nn.Linear) or is_conv1d(m):
            weight = m.weight
            assert isinstance(weight, Tensor)
            found[path] = 8.0 * weight.element_size()
    return found


def nothing_to_pack(model: nn.Module) -> str | None:
    """Why no weight of a model can be stored in fewer bits, or None."""
    if any(packable(module) for _, module in model.named_modules()):
        return None
    return f"{type(model).__name__} has no plain linear layer of {SMALLEST:,} weights or more with an even number of inputs"


def told(edits: Sequence[Mapping[str, object]], how: str) -> str:
    """What edits of one kind do, in a few words."""
    kinds = sorted({f"{edit['bits']} bits" + (f" in groups of {edit['group']}" if edit["group"] else "") for edit in edits})
    return f"weights of {' and '.join(kinds)}, {how}"
