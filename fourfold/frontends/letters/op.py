"""One call of an operator while its letters are found: its arguments by the schema's names, tensors in them as operands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx

from fourfold.letters import NONE, Dim, Letters, Naming, Shape, ShardingRule


@dataclass(frozen=True)
class Operand:
    """A tensor argument: its position among the operands, value of the graph, shape, and whether it holds floating-point numbers."""

    position: int
    value: int
    shape: Shape
    floating: bool

    @property
    def ndim(self) -> int:
        return len(self.shape)


class OpLetters(Naming):
    """A call: `args` by name (tensors as `Operand`, lists of them as lists), `operands` in the order of the arguments, shapes of `results`; `rule`
    makes the answer. Letters are made with `fresh` and `named`.
    """

    def __init__(self, kind: str, node: fx.Node, values: Mapping[fx.Node, tuple[int, ...]], makes: Sequence[int], results: Sequence[Shape]) -> None:
        self.kind, self.makes, self.results = kind, tuple(makes), tuple(results)
        self.op = kind.rpartition(".")[2].rstrip("_") if not kind.endswith("__") else kind.rpartition(".")[2].strip("_")
        super().__init__()
        self.values, self.operands = values, list[Operand]()
        made = node.meta.get("val")
        leaves = [one for one in (made if isinstance(made, list | tuple) else [made]) if isinstance(one, Tensor)]
        self.floating = all(one.is_floating_point() for one in leaves)    # whether every result is
        self.tags = frozenset(getattr(node.target, "tags", ()))
        schema = getattr(node.target, "_schema", None)
        names = [a.name for a in schema.arguments] if schema is not None else [f"arg{i}" for i in range(len(node.args))]
        given: Mapping[str, object] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()} if schema is not None else {}
        self.args = {name: self._taken(given[name]) if name in given else defaults.get(name) for name in names}

    def _taken(self, value: object) -> object:
        if isinstance(value, fx.Node):
            tensors, found = value.meta.get("val"), self.values.get(value, ())
            if isinstance(tensors, list | tuple):
                return [self._operand(v, t) for v, t in zip(found, (t for t in tensors if isinstance(t, Tensor)), strict=True)]
            return self._operand(found[0], tensors) if found and isinstance(tensors, Tensor) else tensors
        return [self._taken(part) for part in value] if isinstance(value, list | tuple) else value

    def _operand(self, value: int, tensor: Tensor) -> Operand:
        self.operands.append(Operand(len(self.operands), value, tuple(int(n) for n in tensor.shape), tensor.is_floating_point()))
        return self.operands[-1]

    # ---- arguments

    def tensor(self, name: str) -> Operand | None:
        """The operand given as `name`; None where none is."""
        found = self.args.get(name)
        return found if isinstance(found, Operand) else None

    def needed(self, name: str) -> Operand:
        found = self.args[name]
        assert isinstance(found, Operand)
        return found

    def integer(self, name: str, default: int = 0) -> int:
        found = self.args.get(name)
        return int(found) if isinstance(found, int) else default

    def flag(self, name: str) -> bool:
        return bool(self.args.get(name))

    def numbers(self, name: str) -> list[int]:
        """A list of numbers, one where a single one stands for it, [] for None."""
        found = self.args.get(name)
        return [] if found is None else [int(cast(int, n)) for n in found] if isinstance(found, list | tuple) else [int(cast(int, found))]

    def axes(self, name: str, ndim: int) -> frozenset[int]:
        """Dimensions, counted from the front; all where none are named."""
        found = self.args.get(name)
        if found is None or found == []:
            return frozenset(range(ndim))
        return frozenset(n % max(ndim, 1) for n in self.numbers(name))

    # ---- the answer

    def rule(
        self,
        inputs: Mapping[int, Letters],
        outputs: Sequence[Letters],
        fixed: Iterable[str] = (),
        sums: Sequence[Iterable[str]] = (),
        addends: Iterable[int] = (),
        linear: Iterable[Iterable[int]] = (),
        means: Iterable[int] = (),
        indexed: Iterable[str] = (),
        unread: Iterable[int] = (),
        extremes: Mapping[int, str] | None = None,
    ) -> ShardingRule:
        """The rule with letters of operands by position; operands left out get letters of their own, that stay whole."""
        held = set(fixed)
        every: list[Letters] = []
        for operand in self.operands:
            letters = inputs.get(operand.position)
            if letters is None:
                letters = self.named(operand.shape)
                held |= {a for dim in letters for a in dim}
            every.append(letters)
        if not self.floating and self.op != "native_dropout":           # partial values are floating-point numbers
            linear = ()
        totals = tuple(frozenset(s) for s in sums) or (frozenset[str](),) * len(self.results)
        return ShardingRule(
            self.kind, tuple(o.value for o in self.operands), self.makes, tuple(every), tuple(outputs), tuple(self.sizes.items()),
            frozenset(self.sizes) - held, totals, frozenset(addends), tuple(frozenset(s) for s in linear), frozenset(means),
            tuple(sorted((extremes or {}).items())), frozenset(indexed), frozenset(unread),
        )  # fmt: skip


def flat(letters: Iterable[Dim]) -> Iterator[str]:
    """All letters of some dimensions."""
    for dim in letters:
        yield from dim


def is_pointwise(op: OpLetters) -> bool:
    """Whether torch itself says that the operator works element by element."""
    return torch.Tag.pointwise in op.tags


__all__ = ["NONE", "Dim", "Letters", "OpLetters", "Operand", "Shape", "flat", "is_pointwise"]
