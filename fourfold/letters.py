"""Which dimensions of what an operation reads and makes go together: letters, as in an einsum, for every operation.

A letter stands for an index. Where it is split over devices, every dimension that bears it is split alike and each device does its part of the
operation alone. `frontends` say the letters of their dialect's operators (factor mappings in the words of Shardy); `fourfold.sharding` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Letters = tuple[tuple[str, ...], ...]                                   # for each dimension its letters, major first; () where it has one element
Choice = str | int | None                                               # along one mesh axis: a letter, the number of a linear set, or nothing


@dataclass(frozen=True)
class ShardingRule:
    """The letters of one operation. Operand i is value `reads[i]` of the graph, result o value `makes[o]`; what is read twice is two operands.

    inputs, outputs   the letters of every dimension of operands and results; a dimension of several letters is their product (reshapes)
    sizes       (letter, elements), in order of appearance
    splits      letters that may be split; all others must be whole on every device (a softmax's dimension, what a convolution slides over)
    sums        for each result the letters over which it is a sum: split, the result is partial. A result that neither bears a letter nor sums
                over it comes out whole on every device
    addends     operands that are added to the sum (a bias): where a summed letter is split, they must be partial as well, or they would count twice
    linear      sets of operands in which the operation is linear together, the others held: where all of a set are partial, so is every result
    means       results that are means rather than sums over the letters of `sums`: each device's part weighs as its share of the elements
    indexed     letters whose position is data (rows of an embedding table): a device shifts and masks the indices by the offset of its piece
    unread      operands of which only the type matters (`new_zeros`): they may lie anyhow
    known       False: no table knows the operation; `why` says so. Everything is whole on every device
    """

    kind: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    inputs: tuple[Letters, ...]
    outputs: tuple[Letters, ...]
    sizes: tuple[tuple[str, int], ...]
    splits: frozenset[str]
    sums: tuple[frozenset[str], ...]
    addends: frozenset[int] = frozenset()
    linear: tuple[frozenset[int], ...] = ()
    means: frozenset[int] = frozenset()
    indexed: frozenset[str] = frozenset()
    unread: frozenset[int] = frozenset()
    known: bool = True
    why: str = ""

    @cached_property
    def size(self) -> dict[str, int]:
        """Letter → elements."""
        return dict(self.sizes)

    @cached_property
    def even(self) -> frozenset[str]:
        """Letters that must be split evenly, since other letters share a dimension with them."""
        return frozenset(a for dims in (*self.inputs, *self.outputs) for letters in dims if len(letters) > 1 for a in letters)

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """What can be done along a mesh axis: nothing, split a letter (in order of appearance), keep a linear set of operands partial."""
        return (None, *(a for a, n in self.sizes if a in self.splits and n > 1), *range(len(self.linear)))

    def allows(self, axes: Mapping[str, int], taken: Sequence[tuple[str, Choice]]) -> bool:
        """Whether `taken`, (mesh axis, choice) in order of majority, is possible together; `axes` gives the devices along each axis.

        A letter must have an element for each device, be split evenly where `even`, and stand behind none that is split by less than its size.
        """
        split: dict[str, int] = {}
        for axis, choice in taken:
            if isinstance(choice, str):
                if choice not in self.splits:
                    return False
                split[choice] = split.get(choice, 1) * axes[axis]
        for letter, parts in split.items():
            if parts > self.size[letter] or letter in self.even and self.size[letter] % parts:
                return False
        for dims in (*self.inputs, *self.outputs):
            for letters in dims:
                for i, letter in enumerate(letters):
                    if split.get(letter, 1) > 1 and any(split.get(a, 1) < self.size[a] for a in letters[:i]):
                        return False
        return True


@dataclass(frozen=True)
class Piece:
    """Which part of an operation a device does: local `shapes` of its results, for every split letter the `offsets` at which its piece begins and the
    `parts` into which it is split, and its `share` of the elements that a mean is taken over.
    """

    shapes: tuple[tuple[int, ...], ...]
    offsets: Mapping[str, int]
    parts: Mapping[str, int]
    share: float = 1.0


def whole(kind: str, reads: Sequence[int], makes: Sequence[int], shapes: Sequence[Sequence[int]], results: Sequence[Sequence[int]],
          why: str = "") -> ShardingRule:
    """The rule of an operation that no table knows: every operand and result whole on every device."""
    sizes: list[tuple[str, int]] = []

    def letters(shape: Sequence[int]) -> Letters:
        dims: list[tuple[str, ...]] = []
        for n in shape:
            if n > 1:
                sizes.append((f"_{len(sizes)}", n))
            dims.append((sizes[-1][0],) if n > 1 else ())
        return tuple(dims)

    inputs, outputs = tuple(letters(shape) for shape in shapes), tuple(letters(shape) for shape in results)
    return ShardingRule(kind, tuple(reads), tuple(makes), inputs, outputs, tuple(sizes), frozenset(), (frozenset(),) * len(results),
                        known=False, why=why or f"no letters are known for {kind}: it is whole on every device")


__all__ = ["Choice", "Letters", "Piece", "ShardingRule", "whole"]
