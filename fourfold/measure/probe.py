"""Where a model's time goes and how many of its hidden units matter: attention, MLPs and the rest of a pass on the user's own inputs, by hooks.

`probe` watches passes of a module through the attentions and MLPs that `structure.sites` found. Processor time is read where a part begins and ends,
several rounds of whole passes; non-zero units are counted in a pass of their own. What a hook itself takes (under a microsecond a reading) is in the
figures. Fused layers of torch are run unfused, since hooks do not see into them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.structure.sites import Sites

NEAR = 0.01
"""A unit is near zero where its magnitude is at most this share of the root mean square of the layer's units."""
HELD = 0.99
"""Share of the squared magnitude of a position's units that `Activity.needed` units hold."""
_ROWS = 2048                                                            # positions of a layer whose units are sorted


@dataclass(frozen=True)
class TimeShare:
    """A share of the time of a pass: median over rounds, least and most."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Activity:
    """The hidden units of one MLP as its down projection reads them. `nonzero`, `near`: shares of entries that are not zero, and that are near zero
    without being it; `needed`: share of a position's units, median over positions, that hold 99 % of its squared magnitude. `path` of the down
    projection; `hidden` units; `positions` that were seen."""

    name: str
    path: str
    function: str
    hidden: int
    positions: int
    nonzero: float
    near: float
    needed: float


@dataclass(frozen=True)
class Probe:
    """What was seen. `seconds`: processor seconds of a pass, median over `rounds`. `parts`: share of each attention and MLP by name; `kinds`: of
    "attention", "core" (the part of attention between its projections and its output projection, 0 where that cannot be told), "mlp" and "rest".
    `activities`: per MLP."""

    seconds: float
    rounds: int
    parts: dict[str, TimeShare] = field(default_factory=dict)
    kinds: dict[str, TimeShare] = field(default_factory=dict)
    activities: tuple[Activity, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)

    def share(self, names: Iterable[str]) -> float:
        """Share of the time in these parts, those counted that are known."""
        return sum(self.parts[name].value for name in names if name in self.parts)


class _Spans:
    """Processor seconds of parts in one pass: from the first reading that begins a part to the last that ends it before it begins anew."""

    def __init__(self) -> None:
        self.events: list[tuple[str, bool, float]] = []

    def begins(self, part: str) -> Callable[..., None]:
        return lambda *_: self.events.append((part, True, time.process_time()))

    def ends(self, part: str) -> Callable[..., None]:
        return lambda *_: self.events.append((part, False, time.process_time()))

    def totals(self) -> dict[str, float]:
        found: dict[str, float] = {}
        began: dict[str, float] = {}
        last: dict[str, float] = {}
        for part, begin, at in self.events:
            if begin and (part not in began or part in last):
                if part in last:
                    found[part] = found.get(part, 0.0) + last.pop(part) - began[part]
                began[part] = at
            elif not begin and part in began:
                last[part] = at
        for part, at in last.items():
            found[part] = found.get(part, 0.0) + at - began[part]
        self.events.clear()
        return found


def probe(
    module: nn.Module, call: Callable[[nn.Module], Tensor], found: Sites, *, rounds: int = 7, watched: Mapping[str, str] | None = None
) -> Probe:
    """Time `rounds` passes of `call(module)` (in eval mode, without gradients) after one that warms up, and count active units.

    `found`: the module's attentions and MLPs. `watched`: further layers whose input is hidden units, name → path. The module is unchanged afterwards.
    Raises whatever the call raises, and ValueError for fewer than one round.
    """
    import torch

    if rounds < 1:
        raise ValueError(f"{rounds} rounds measure nothing.\nGive at least one.")
    modes = {part: part.training for part in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            module.eval()
            activities = _activities(module, call, found, watched or {})
            times = _times(module, call, found, rounds)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in modes.items():
            part.training = mode
    attentions, mlps = [a.name for a in found.attentions], [m.name for m in found.mlps]
    kinds = {"attention": attentions, "core": [f"{name} core" for name in attentions], "mlp": mlps}
    shares = [{part: seconds / max(1e-12, whole) for part, seconds in parts.items()} for whole, parts in times]
    groups = {kind: [sum(one.get(name, 0.0) for name in names) for one in shares] for kind, names in kinds.items()}
    groups["rest"] = [max(0.0, 1 - a - m) for a, m in zip(groups["attention"], groups["mlp"], strict=True)]
    parts = {name: _share([one.get(name, 0.0) for one in shares]) for kind in ("attention", "mlp") for name in kinds[kind]}
    return Probe(statistics.median(whole for whole, _ in times), rounds, parts, {kind: _share(each) for kind, each in groups.items()}, activities)


def _share(values: list[float]) -> TimeShare:
    return TimeShare(statistics.median(values), min(values), max(values))


def _times(module: nn.Module, call: Callable[[nn.Module], Tensor], found: Sites, rounds: int) -> list[tuple[float, dict[str, float]]]:
    """(processor seconds, seconds by part) of each pass."""
    spans, handles = _Spans(), []
    there = dict(module.named_modules())

    def watch(name: str, first: Iterable[str], last: Iterable[str]) -> None:
        handles.extend(there[path].register_forward_pre_hook(spans.begins(name)) for path in dict.fromkeys(first) if path in there)
        handles.extend(there[path].register_forward_hook(spans.ends(name)) for path in dict.fromkeys(last) if path in there)

    for a in found.attentions:
        watch(a.name, (a.path, *a.projections), (a.path, a.out))
        if a.out in there and all(path in there for path in a.projections):  # between the projections and the output
            handles.extend(there[path].register_forward_hook(spans.begins(f"{a.name} core")) for path in a.projections[-1:])
            handles.append(there[a.out].register_forward_pre_hook(spans.ends(f"{a.name} core")))
    for m in found.mlps:
        watch(m.name, (m.up, *([m.gate] if m.gate else [])), (m.down,))
    times = []
    try:
        for turn in range(rounds + 1):
            spans.events.clear()
            began = time.process_time()
            call(module)
            took = time.process_time() - began
            parts = spans.totals()
            if turn:
                times.append((took, parts))
    finally:
        for handle in handles:
            handle.remove()
    return times


def _activities(module: nn.Module, call: Callable[[nn.Module], Tensor], found: Sites, watched: Mapping[str, str]) -> tuple[Activity, ...]:
    """What the down projections read, in one pass."""
    layers = {m.name: (m.down, m.function) for m in found.mlps} | {name: (path, "") for name, path in watched.items()}
    seen: dict[str, list[Tensor]] = {}

    def keeps(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _module, args: seen.setdefault(name, []).append(args[0].detach())

    handles = [module.get_submodule(path).register_forward_pre_hook(keeps(name)) for name, (path, _) in layers.items()]
    try:
        call(module)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_activity(name, *layers[name], tensors) for name, tensors in seen.items())


def _activity(name: str, path: str, function: str, tensors: list[Tensor]) -> Activity:
    import torch

    h = torch.cat([t.reshape(-1, t.shape[-1]) for t in tensors]).float().abs()
    size = h.square().mean().sqrt()
    zero, near = (h == 0).float().mean(), (h <= NEAR * size).float().mean()
    few = h[:: max(1, len(h) // _ROWS)].square().sort(-1, descending=True).values
    held = few.cumsum(-1) < HELD * few.sum(-1, keepdim=True)
    needed = ((held.sum(-1) + 1).clamp_max(h.shape[-1]) * (few.sum(-1) > 0)).float().median() / h.shape[-1]
    return Activity(name, path, function, h.shape[-1], len(h), float(1 - zero), float(near - zero), float(needed))
