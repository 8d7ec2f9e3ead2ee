"""One calibration pass: how much each block, sub-layer, head and neuron of a model matters, measured on the user's own inputs.

Everything comes from the same batches:
- Block Influence (ShortGPT, Men et al. 2024): 1 − mean cos(state in, state out) of each block; 0 for a block that does nothing.
- Fisher information of a mask on every unit (Kwon et al. 2022, eq. 7): with m = 1 on each head's or neuron's input to its consumer,
  ∂L/∂m_i = Σ over tokens ⟨∂L/∂a_i, a_i⟩ per example, from one backward pass. The predicted loss of removing a set S is ½ 1ᵀ F_S 1 with F = GᵀG/N
  per bundle. L is the model's own sampled answer (true Fisher: no labels needed).
- Gram matrices XᵀX and means of each consumer's input: what least-squares repair needs.
- Ablation: the divergence from the original's answers when a whole sub-layer or block is skipped, by forward passes alone. Fisher is a second-order
  Taylor term and overstates large removals, so `matrix_pruning` rescales its curve to meet the measured ablation at zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.datasets.examples import Ragged
from fourfold.rewrites.compress.distil import all_cores, autocast, fast_bf16, tensors
from fourfold.structure.discover import Anatomy, consumer_module, hidden

if TYPE_CHECKING:
    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.frontends.subject import Subject
    from fourfold.structure.anatomy import Bundle


def bulky(task: Task, examples: Examples) -> bool:
    """Whether every row's output is long (positions × vocabulary), so that rows must be read a few at a time and answers cannot be kept."""
    if task.kind not in ("causal_lm", "seq2seq", "ctc"):
        return False
    targets = examples.targets
    sizes = targets.sizes() if isinstance(targets, Ragged) else examples.lengths
    return task.kind == "ctc" or float(np.mean(sizes)) > 16


@dataclass
class Sensitivities:
    """What the pass found. Units: harm in nats of divergence per example (squared error in units of the output's variance for regression).

    influence[block path] in [0, 2] · ablation[block path or sub-layer name] harm ≥ 0 · gradients[bundle name] float32 [examples, units] ·
    gram[bundle name] float64 [columns+1, columns+1], the last row and column belong to a constant 1 · examples: how many were read.
    """

    influence: dict[str, float] = field(default_factory=dict)
    ablation: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    gram: dict[str, np.ndarray] = field(default_factory=dict)
    examples: int = 0
    orders: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)  # memory of `matrix_pruning.order_of`


def divergence(z: Tensor, reference: Tensor, kind: str) -> Tensor:
    """Per-example harm [B] of answering z instead of `reference`: KL(reference ‖ z) for distributions (summed over positions' mean), scaled
    squared error otherwise."""
    if kind in ("classification", "causal_lm", "seq2seq", "ctc"):
        p, q = torch.log_softmax(reference.float(), -1), torch.log_softmax(z.float(), -1)
        kl = (p.exp() * (p - q)).sum(-1)
        return kl.reshape(len(kl), -1).mean(1)
    scale = reference.float().var().clamp_min(1e-8)
    return 0.5 * ((z.float() - reference.float()).pow(2) / scale).reshape(len(z), -1).mean(1)


def sampled_loss(z: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Loss against an answer drawn from the model itself; its squared gradients average to the true Fisher information."""
    if kind in ("classification", "causal_lm", "seq2seq", "ctc"):
        logp = torch.log_softmax(z.float(), -1).reshape(-1, z.shape[-1])
        drawn = torch.multinomial(logp.detach().exp(), 1, generator=generator)
        per = -logp.gather(1, drawn).reshape(z.shape[0], -1)
        return per.mean(1).sum()  # summed over examples: each example's own gradient is what Fisher squares
    noise = torch.randn(z.shape, generator=generator) * z.detach().float().std().clamp_min(1e-4)
    return (0.5 * (z.float() - (z.detach().float() + noise)).pow(2) / z.detach().float().var().clamp_min(1e-8)).reshape(len(z), -1).mean(1).sum()


def per_example(value: Tensor, count: int) -> Tensor:
    """Sum [B, ..., C] (or [T, B, C], [B·T, C]) down to [B, C]: the batch axis is found by its length, so sequence-first models work too."""
    if value.dim() == 2 and value.shape[0] != count and value.shape[0] % count == 0:
        value = value.reshape(count, -1, value.shape[-1])
    if value.dim() == 3 and value.shape[0] != count and value.shape[1] == count:
        value = value.transpose(0, 1)
    return value.reshape(value.shape[0], -1, value.shape[-1]).sum(1)


def channels_last(value: Tensor, module: nn.Module) -> Tensor:
    """Inputs of a convolution [B, C, ...] as [B, ..., C]; anything else unchanged."""
    return value.movedim(1, -1) if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) else value


def calibrate(
    subject: Subject, module: nn.Module, task: Task, pool: Examples, anatomy: Anatomy, *, examples: int = 512, ablated: int = 128, seed: int = 0,
    memory: int = 2 << 30, progress: Callable[[int], None] | None = None,
) -> Sensitivities:
    """Read `examples` rows of `pool` through `module` and return its `Sensitivities`; `ablated` of them measure the ablations (0: none).

    Gram matrices stop being kept above `memory` bytes.
    """
    all_cores()
    index = np.random.default_rng(seed).permutation(len(pool))[:examples]
    sample = pool.take(np.sort(index))
    found = Sensitivities(examples=len(sample))
    _gradients(subject, module, task, sample, anatomy, found, seed, memory, progress)
    if ablated:
        _ablations(subject, module, task, sample.take(np.arange(min(len(sample), ablated))), anatomy, found, progress)
    return found


def _gradients(
    subject: Subject, module: nn.Module, task: Task, sample: Examples, anatomy: Anatomy, found: Sensitivities, seed: int, memory: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Fill gradients, gram and influence of `found`: one backward pass a batch, what each bundle's consumer reads being watched."""
    generator = torch.Generator().manual_seed(seed)
    bundles = {b.name: b for s in anatomy.stacks for block in s.blocks for sub in block.sublayers if (b := sub.bundle) is not None}
    taken: dict[str, list[Tensor]] = {}
    influence: dict[str, list[Tensor]] = {}
    handles = [consumer_module(module, bundle).register_forward_pre_hook(_watch(taken, name)) for name, bundle in bundles.items()]
    handles += [module.get_submodule(block.path).register_forward_hook(_weigh(influence, block.path), with_kwargs=True)
                for stack in anatomy.stacks for block in stack.blocks]
    rows: dict[str, list[np.ndarray]] = {name: [] for name in bundles}
    moments: dict[str, Tensor] = {}
    held = 0
    module.eval()
    was = [p.requires_grad for p in module.parameters()]
    for p in module.parameters():
        p.requires_grad_(False)
    embedding = _first_float_input(module)
    try:
        for at in sample.batches(4 if bulky(task, sample) else 16, bucket=True):
            taken.clear()
            inputs = tensors(sample.collate(at))
            for name in inputs:  # a leaf that requires grad, so that hooks deep inside see a graph although no weight does
                if inputs[name].is_floating_point():
                    inputs[name].requires_grad_(True)
            handle = (
                embedding.register_forward_hook(lambda _m, _i, out: out.requires_grad_(True) if isinstance(out, Tensor) and out.is_leaf else out)
                if embedding
                else None
            )
            with torch.enable_grad():
                z = subject.logits(module, inputs)
                sampled_loss(z, task.kind, generator).backward()
            if handle:
                handle.remove()
            for name, bundle in bundles.items():
                layer = consumer_module(module, bundle)
                total: Tensor | None = None
                for value in taken.get(name, []):
                    a = channels_last(value.detach(), layer)
                    if value.grad is not None:
                        g = per_example(a * channels_last(value.grad, layer), len(at))
                        total = g if total is None else total + g
                    flat = a.reshape(-1, a.shape[-1]).float()
                    if name not in moments and held + 8 * (flat.shape[1] + 1) ** 2 <= memory:
                        moments[name] = torch.zeros(flat.shape[1] + 1, flat.shape[1] + 1, dtype=torch.float64)
                        held += 8 * (flat.shape[1] + 1) ** 2
                    if name in moments:
                        one = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
                        moments[name] += (one.T @ one).double()
                if total is not None:
                    rows[name].append(_of_units(total, bundle))
            if progress:
                progress(len(at))
    finally:
        for handle in handles:
            handle.remove()
        for p, flag in zip(module.parameters(), was, strict=True):
            p.requires_grad_(flag)
    found.gradients = {name: np.concatenate(parts) for name, parts in rows.items() if parts}
    found.gram = {name: value.numpy() for name, value in moments.items()}
    found.influence = {path: float(torch.stack(parts).mean()) for path, parts in influence.items()}


def _watch(taken: dict[str, list[Tensor]], name: str) -> Any:
    """A hook that keeps what a layer reads, with its gradient, in `taken[name]`."""
    def hook(layer: nn.Module, args: tuple[Any, ...]) -> tuple[object, ...]:
        value = args[0].detach().requires_grad_(False) if not args[0].requires_grad else args[0]
        value = value if value.requires_grad else value.clone().requires_grad_(True)
        if value.requires_grad and not value.is_leaf:
            value.retain_grad()
        taken.setdefault(name, []).append(value)
        return (value, *args[1:])
    return hook


def _weigh(influence: dict[str, list[Tensor]], path: str) -> Any:
    """A hook that notes in `influence[path]` how far a block turns its hidden states: 1 − cosine, the mean over positions."""
    def hook(_m: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: Any) -> None:
        before = args[0] if args else kwargs.get("hidden_states")
        after = hidden(out)
        if isinstance(before, Tensor) and after is not None and before.shape == after.shape:
            axis = 1 if after.dim() == 4 else -1
            influence.setdefault(path, []).append(1 - torch.cosine_similarity(before.detach().float(), after.detach().float(), dim=axis).mean())
    return hook


def _of_units(total: Tensor, bundle: Bundle) -> np.ndarray:
    """f4[rows, units] from [rows, columns]: the columns of each unit summed."""
    if bundle.group == 1 and total.shape[1] == bundle.count:
        return total[:, torch.from_numpy(bundle.columns(range(bundle.count)))].float().numpy()
    return torch.stack([total[:, torch.from_numpy(bundle.columns([u]))].sum(1) for u in range(bundle.count)], 1).float().numpy()


def _first_float_input(module: nn.Module) -> nn.Module | None:
    """The first embedding, whose float output is where a gradient graph can begin when all weights are frozen and the inputs are integers."""
    return next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)


@torch.no_grad()
def _ablations(
    subject: Subject, module: nn.Module, task: Task, sample: Examples, anatomy: Anatomy, found: Sensitivities, progress: Callable[[int], None] | None
) -> None:
    batches = [tensors(sample.collate(at)) for at in sample.batches(4 if bulky(task, sample) else 32, bucket=True)]
    bf16 = fast_bf16()

    def answers() -> list[Tensor]:
        with autocast(bf16):
            return [subject.logits(module, b).float() for b in batches]

    module.eval()
    reference = answers()

    def harm() -> float:
        return float(torch.cat([divergence(z, r, task.kind) for z, r in zip(answers(), reference, strict=True)]).mean())

    for stack in anatomy.stacks:
        for block in stack.blocks:
            found.ablation[block.path] = _skipping(module.get_submodule(block.path), harm)
            for sub in block.sublayers:
                if sub.bundle is not None:
                    found.ablation[sub.name] = _silencing(consumer_module(module, sub.bundle), harm)
            if progress:
                progress(1)


def _skipping(block: nn.Module, harm: Callable[[], float]) -> float:
    """Harm when the block hands on what it was given."""

    def through(_m: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], out: Tensor) -> object:
        before = args[0] if args else kwargs.get("hidden_states")
        after = hidden(out)
        if not isinstance(before, Tensor) or after is None or before.shape != after.shape:
            return out
        if isinstance(out, Tensor):
            return before
        return type(out)([before, *out[1:]]) if isinstance(out, (tuple, list)) else out

    handle = block.register_forward_hook(through, with_kwargs=True)
    try:
        return harm()
    finally:
        handle.remove()


def _zeros(_module: nn.Module, _inputs: object, out: Tensor) -> object:
    return torch.zeros_like(out)


def _silencing(consumer: nn.Module, harm: Callable[[], float]) -> float:
    """Harm when the sub-layer's output projection answers zero (bias included): exactly what an absent sub-layer does to the residual stream."""
    handle = consumer.register_forward_hook(_zeros)
    try:
        return harm()
    finally:
        handle.remove()
