"""Calibration block by block: what the layers of a block read, when the blocks before it are already changed.

A decoder is embeddings, a list of blocks, and a head. The first block's arguments are caught once; each block is then run on the caught ones, its
layers' inputs are gathered as XᵀX, it is changed, and run again for what the next block reads. Three passes through each block instead of one through
the whole model a block. Where blocks do not feed one another directly, all layers are calibrated on the unchanged model at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Call = tuple[tuple[object, ...], dict[str, object]]  #: a block's arguments behind the first
Settle = Callable[[dict[str, Tensor]], None]


class _Caught(Exception):
    """The first block's arguments are known; the rest of the pass is not needed."""


def walk(model: nn.Module, paths: Sequence[str], run: Callable[[nn.Module], object], settle: Settle) -> None:
    """Hand XᵀX [in, in] of the layers at `paths` to `settle`, which changes them, block by block; layers outside of blocks last, on what the changed
    model makes. `run` calls a module on calibration batches. Layers that are never called are handed to nobody."""
    blocks = chain(model, paths)
    rest = [p for p in paths if blocks is None or not p.startswith(f"{blocks}.")]
    if blocks is not None:
        stack = model.get_submodule(blocks)
        assert isinstance(stack, nn.ModuleList)
        hidden, calls = _calls(stack, lambda: run(model))
        if hidden and {len(hidden)} == set(map(len, calls)) and _feed_each_other(model, stack, run):
            _in_turn(stack, blocks, paths, hidden, calls, settle)
        else:
            rest = list(paths)
    if rest:
        settle(grams(model, rest, lambda: run(model)))


def chain(model: nn.Module, paths: Sequence[str]) -> str | None:
    """Path of the list of blocks that holds most of the layers; None where no list holds half of them."""
    counts = {name: sum(p.startswith(f"{name}.") for p in paths) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    best = max(counts, key=lambda name: (counts[name], -len(name)), default=None)
    return best if best is not None and 2 * counts[best] >= len(paths) and counts[best] else None


def grams(model: nn.Module, paths: Sequence[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """XᵀX float32 [in, in] of each layer's inputs while `run` calls the model; one that is not called is left out."""
    found: dict[str, Tensor] = {}

    def look(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().float().reshape(-1, given[0].shape[-1])
            found[path] = found[path].addmm_(x.t(), x) if path in found else x.t() @ x
        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(look(path)) for path in paths]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _calls(stack: nn.ModuleList, run: Callable[[], object]) -> tuple[list[Tensor], list[list[Call]]]:
    """What the first block reads in each call, and the other arguments of each call of every block; memories are left out."""
    first: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in stack]

    def look(place: int) -> Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]:
        def hook(_: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
            if given and isinstance(given[0], Tensor):
                calls[place].append((given[1:], {k: v for k, v in named.items() if k not in ("cache", "past_key_values", "use_cache")}))
                if place == 0:
                    first.append(given[0])
        return hook

    hooks = [block.register_forward_pre_hook(look(place), with_kwargs=True) for place, block in enumerate(stack)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return first, calls


def _feed_each_other(model: nn.Module, stack: nn.ModuleList, run: Callable[[nn.Module], object]) -> bool:
    """Whether each block's first argument is what the block before it returned."""
    made: list[tuple[Tensor, Tensor]] = []
    last: list[Tensor] = []

    def before(_: nn.Module, given: tuple[object, ...], __: dict[str, object]) -> None:
        if last and given and isinstance(given[0], Tensor):
            made.append((last[-1], given[0]))

    def after(module: nn.Module, _: object, result: object) -> None:
        last.append(_hidden(result))
        if module is stack[-1]:
            raise _Caught

    if len(stack) == 1:
        return True
    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in stack[1:]]
    hooks += [block.register_forward_hook(after) for block in stack]
    try:
        with torch.no_grad():
            run(model)
    except _Caught:
        pass
    except (TypeError, AttributeError, IndexError):
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return len(made) == len(stack) - 1 and all(a.shape == b.shape and torch.equal(a, b) for a, b in made)


def _in_turn(stack: nn.ModuleList, name: str, paths: Sequence[str], hidden: list[Tensor], calls: Sequence[Sequence[Call]], settle: Settle) -> None:
    for i, block in enumerate(stack):
        own = f"{name}.{i}."

        def through(block: nn.Module = block, hidden: list[Tensor] = hidden, place: int = i) -> list[Tensor]:
            with torch.no_grad():
                return [_hidden(block(x, *given, **named)) for x, (given, named) in zip(hidden, calls[place], strict=True)]

        mine = {p.removeprefix(own): p for p in paths if p.startswith(own)}
        if mine:
            found = grams(block, list(mine), through)
            settle({mine[p]: gram for p, gram in found.items()})
        hidden = through()


def _hidden(result: object) -> Tensor:
    """What a block hands on: its result, or the first of several."""
    first = result[0] if isinstance(result, tuple | list) else result
    assert isinstance(first, Tensor)
    return first
