"""Carry a change out on the real module, compare, and take it back: what differs from masking by more than rounding is refused, in words."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.recipe import Absent, Recipe, apply, is_conv
from fourfold.structure.anatomy import Bundle, Stack, channel_last, consumer_module, hidden, shorten, tensors
from fourfold.structure.patterns import PatternMatcher, SubLayerMatch
from fourfold.structure.trace import Call

TOLERANCE = 1e-4  # relative to the largest output: float32 rounding of re-blocked products stays below, a wrong cut is far above


@contextmanager
def rollback(module: nn.Module) -> Iterator[None]:
    """Whatever edits do to the module inside is undone: edits replace parameters and children, so shallow copies are enough."""
    stores = ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    saved = [(part, dict(part.__dict__), {s: part.__dict__[s].copy() for s in stores}) for part in set(module.modules())]
    configs = {
        id(c): (c, copy.deepcopy(c.__dict__)) for part, _, _ in saved if (c := getattr(part, "config", None)) is not None and hasattr(c, "__dict__")
    }
    try:
        yield
    finally:
        for part, attributes, dicts in saved:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, store in dicts.items():
                target = part.__dict__[name]
                target.clear()
                target.update(store)
        for config, attributes in configs.values():
            config.__dict__.clear()
            config.__dict__.update(attributes)


@contextmanager
def masked(module: nn.Module, bundles: Sequence[tuple[Bundle, Sequence[int]]]) -> Iterator[None]:
    """Inside, consumers see zeros in the columns of all units that are not kept."""
    handles = []
    try:
        for bundle, kept in bundles:
            for site in bundle.consumers:
                part = module.get_submodule(site.path)
                handles.append(part.register_forward_pre_hook(_mask_hook(part, site.index(kept))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mask_hook(part: nn.Module, index: np.ndarray) -> Callable[..., object]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> object:
        x = args[0]
        axis = 1 if is_conv(part) else x.ndim - 1
        mask = torch.zeros(x.shape[axis], dtype=x.dtype, device=x.device)
        mask[torch.from_numpy(index).to(x.device)] = 1
        shape = [1] * x.ndim
        shape[axis] = -1
        return (x * mask.view(shape), *args[1:])

    return hook


@contextmanager
def muted(module: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """Inside, these modules answer zeros (their biases too); where they answer tuples, the first tensor is zero."""

    def mute(part: nn.Module, args: object, out: Tensor) -> object:
        if isinstance(out, Tensor):
            return torch.zeros_like(out)
        place = next(i for i, value in enumerate(out) if isinstance(value, Tensor))
        return (*out[:place], torch.zeros_like(out[place]), *out[place + 1 :])

    handles = [module.get_submodule(p).register_forward_hook(mute) for p in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Prover:
    """Compares the module after edits with a reference, both run by `call`."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.module, self.call = module, call
        self.rng = np.random.default_rng(0)

    def run(self) -> Tensor:
        with torch.no_grad():
            return self.call(self.module).detach().float()

    def same(self, reference: Tensor, edits: Sequence[dict[str, object]]) -> str | None:
        """None if the module after `edits` answers `reference`; else why not."""
        with rollback(self.module):
            try:
                apply(self.module, Recipe(tuple(edits)))
                answer = self.run()
            except Exception as error:  # whatever a foreign forward raises is the finding
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        if answer.shape != reference.shape:
            return f"the output's shape became {tuple(answer.shape)} instead of {tuple(reference.shape)}"
        if not torch.isfinite(answer).all():
            return "the output is no longer finite"
        finite = torch.nan_to_num(reference, posinf=0.0, neginf=0.0)
        error = float((answer - finite).abs().max() / finite.abs().max().clamp_min(1e-12))
        return None if error <= TOLERANCE else f"the output changed by {error:.1e} of its size"

    def kept(self, bundle: Bundle) -> list[int]:
        """A random half of the units, at least one of them gone and one kept."""
        n = int(np.clip(bundle.count // 2, 1, bundle.count - 1))
        return sorted(self.rng.permutation(bundle.count)[:n].tolist())

    def bundles(self, trial: Sequence[Bundle], first: Sequence[dict[str, object]] = ()) -> str | None:
        """None if removing random halves of all these bundles equals masking them, seen at every consumer's input and at the output."""
        trial = [b for b in trial if b.count > 1]  # a single unit stays or goes with its sub-layer
        if not trial:
            return None
        kept = [(b, self.kept(b)) for b in trial]
        try:
            with masked(self.module, kept):
                reference, seen = self._inputs(trial)
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:160]
        with rollback(self.module):
            try:
                apply(self.module, Recipe((*first, *(e for b, k in kept for e in b.edits(k)))))
                answer, got = self._inputs(trial)
            except Exception as error:
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
        pairs = [(reference, answer, "the output")]
        for bundle, units in kept:
            full, part, site = seen.get(bundle.name), got.get(bundle.name), bundle.consumer
            if full is None or part is None:
                return "its consumer did not run"
            pairs.append((full[:, torch.from_numpy(site.index(units))], part, f"the input of {site.path}"))
        for want, have, what in pairs:
            if want.shape != have.shape:
                return f"{what} has shape {tuple(have.shape)} instead of {tuple(want.shape)}"
            error = float((want - have).abs().nan_to_num().max() / want.abs().nan_to_num().max().clamp_min(1e-12)) if want.numel() else 0.0
            if error > TOLERANCE:
                return f"{what} changed by {error:.1e} of its size"
        return None

    def _inputs(self, trial: Sequence[Bundle]) -> tuple[Tensor, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}
        handles = []
        for bundle in trial:
            part = consumer_module(self.module, bundle)

            def hook(module: nn.Module, args: tuple[Any, ...], name: str = bundle.name) -> None:
                seen.setdefault(name, channel_last(module, args[0]).detach().float())

            handles.append(part.register_forward_pre_hook(hook))
        try:
            return self.run(), seen
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def shaken(module: nn.Module) -> Iterator[None]:
    """Inside, biases, norm scales and all-zero weights carry noise: a fresh norm after a norm does nothing, and a zero weight hides any cut."""
    generator, saved = torch.Generator().manual_seed(0), []
    for parameter in module.parameters():
        if parameter.is_floating_point() and (parameter.ndim <= 1 or not parameter.any()):
            saved.append((parameter, parameter.data))
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
            parameter.data = parameter.data + 0.1 * noise * parameter.data.abs().mean().clamp_min(0.1)
    try:
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


def carrying(module: nn.Module, paths: list[str], reader: PatternMatcher) -> set[str]:
    """Which of these modules carry their input to their output when all their dense layers answer zero: what makes a block residual (He et al. 2015).

    The correlation of input and output is taken after removing each channel's mean, so that norms pass and constants do not.
    """
    found: set[str] = set()
    for path in paths:
        run = reader.first[path]
        try:
            with torch.no_grad(), muted(module, [r.path for r in reader.dense(path)]):
                x, y = run.input, hidden(run.module(*run.args, **run.kwargs))
        except Exception:  # a forward that cannot bear zeros tells nothing
            continue
        if x is None or x.shape != y.shape:
            continue
        x, y = (_centred(t.detach().float()) for t in (x, y))
        if float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-12)) > 0.3:
            found.add(path)
    return found


def _centred(x: Tensor) -> Tensor:
    axis = 1 if x.ndim == 4 else x.ndim - 1
    flat = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    return flat - flat.mean(0)


def prove_cuts(prover: Prover, several: list[SubLayerMatch], biases: tuple[dict[str, object], ...], refusals: dict[str, str]) -> dict[str, Bundle]:
    """The first way of cutting that holds for all blocks at once; where none does, block by block."""
    most = max((len(c.cuts) for c in several), default=0)
    whole = [c for c in several if c.cuts]
    for k in range(most):
        trial = [c.cuts[k] for c in whole if len(c.cuts) > k]
        if len(trial) == len(whole) and prover.bundles(trial, biases) is None:
            return {b.name: b for b in trial}
    proved: dict[str, Bundle] = {}
    failed: dict[tuple[int, ...], list[str]] = {}
    for c in several:
        alike = failed.setdefault(_likeness(c), [])
        said = alike[-1] if len(alike) > 1 else _prove_one(prover, c, biases, proved)  # two twins failed: the others would too
        if said is not None:
            alike.append(said)
            units = "heads" if c.kind.endswith("attention") else "units"
            refusals[c.name] = f"{c.path}: removing single {units} is not safe ({said}); it can still be quantised."
    return proved


def _likeness(c: SubLayerMatch) -> tuple[int, ...]:
    return (c.heads, len(c.cuts), *(b.count for b in c.cuts), *(b.group for b in c.cuts))


def _prove_one(prover: Prover, c: SubLayerMatch, biases: tuple[dict[str, object], ...], proved: dict[str, Bundle]) -> str | None:
    """Adds the first way of cutting that holds; else says why the likeliest did not."""
    reason = "its heads cannot be told apart" if c.kind.endswith("attention") else "no unit was found"
    for cut in c.cuts:
        said = prover.bundles([cut], biases)
        if said is None:
            proved[c.name] = cut
            return None
        reason = said if cut is c.cuts[0] else reason
    return reason


def prove_outs(
    prover: Prover, several: list[SubLayerMatch], biases: tuple[dict[str, object], ...], refusals: dict[str, str]
) -> dict[str, tuple[dict[str, object], ...]]:
    """For each sub-layer the most thorough edits that equal muting its consumer."""

    def proves(chosen: list[SubLayerMatch], k: int) -> bool:
        return prover.same(_mute(prover, chosen), [*biases, *(e for c in chosen for e in c.outs[k])]) is None

    able = [c for c in several if c.outs and (c.surely or _alive(prover, c))]
    most = max((len(c.outs) for c in able), default=0)
    for k in range(most):
        if all(len(c.outs) > k for c in able) and proves(able, k) and (len(able) == 1 or proves(able[:1], k)):
            return {c.name: tuple(c.outs[k]) for c in able}
    proved: dict[str, tuple[dict[str, object], ...]] = {}
    failures = 0
    for c in able:
        options = range(len(c.outs)) if failures < 2 or proved else ()
        found = next((k for k in options if proves([c], k)), None)
        if found is not None:
            proved[c.name] = tuple(c.outs[found])
        else:
            failures += 1
            refusals.setdefault(c.name, f"{c.path}: taking it out whole changes more than its own contribution; it can still be quantised.")
    return proved


def _alive(prover: Prover, c: SubLayerMatch) -> bool:
    """Whether the answer still tells the examples apart when the candidate is silent: something carries the input past it."""

    def spread(answer: Tensor) -> float:
        return float((answer - answer.mean(0)).abs().max())

    return spread(_mute(prover, [c])) > 1e-3 * spread(prover.run())


def _mute(prover: Prover, chosen: list[SubLayerMatch]) -> Tensor:
    with muted(prover.module, [c.consumer.path for c in chosen]):
        return prover.run()


def prove_removal(reader: PatternMatcher, prover: Prover, refusals: dict[str, str], stack: Stack, index: int) -> bool:
    path = stack.blocks[index].path
    run = reader.first[path]
    if not stack.container and not stack.passes:
        return False  # parts that the enclosing forward calls one by one, or the whole model
    x, y = run.input, next(tensors(run.output), None)
    if x is None or y is None or x.shape != y.shape:
        refusals[path] = "the block changes the shape of its input, so what follows needs it; units inside it can go."
        return False
    if reader.calls[path] > 1:
        refusals[path] = "the block is called several times with shared weights, so it cannot be removed singly; units inside it can go."
        return False
    absent = Absent(run.where, reader.absent(run, "pass")["returns"])
    with rollback(prover.module):
        apply(prover.module, Recipe(stack.biases))
        handle = prover.module.get_submodule(path).register_forward_hook(lambda m, args, kwargs, out: absent(*args, **kwargs), with_kwargs=True)
        try:
            reference = prover.run()
        except Exception as error:
            refusals[path] = f"the model does not run without this block ({type(error).__name__}); units inside it can go."
            return False
        finally:
            handle.remove()
    kept = [i for i in range(len(stack.blocks)) if i != index]
    said = prover.same(reference, [*stack.biases, *shorten(stack, kept, set())])
    if said is not None:
        refusals[path] = f"the model does not run as expected without this block ({said}); units inside it can go."
    return said is None
