"""Which dimensions of what an operation reads and makes go together: letters, as in an einsum, for every operation.

A letter stands for an index. Where it is split over devices, every dimension that bears it is split alike and each device does its part of the
operation alone. `frontends` say the letters of their dialect's operators (factor mappings in the words of Shardy); `fourfold.sharding` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Letters = tuple[tuple[str, ...], ...]                                   # for each dimension its letters, major first; () where it has one element
Dim = tuple[str, ...]
Shape = tuple[int, ...]
NONE: Dim = ()
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
    extremes    (result, "max" or "min"): results that are the extreme over the letters of `sums` instead; devices combine them at once
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
    extremes: tuple[tuple[int, str], ...] = ()
    indexed: frozenset[str] = frozenset()
    unread: frozenset[int] = frozenset()
    known: bool = True
    why: str = ""

    @cached_property
    def size(self) -> dict[str, int]:
        """Letter → elements."""
        return dict(self.sizes)

    @cached_property
    def extreme(self) -> dict[int, str]:
        """Result → "max" or "min"."""
        return dict(self.extremes)

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


class Naming:
    """Makes letters while a rule is found; `sizes`: letter → elements."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def fresh(self, size: int) -> Dim:
        """A new letter for a dimension of `size`; none where it has one element or is empty."""
        if size <= 1:
            return NONE
        n = len(self.sizes)
        letter = chr(97 + n % 26) + (str(n // 26) if n >= 26 else "")
        self.sizes[letter] = size
        return (letter,)

    def named(self, shape: Iterable[int]) -> Letters:
        """New letters for all dimensions."""
        return tuple(self.fresh(n) for n in shape)

    def broadcast(self, shape: Shape, letters: Letters, result: Shape) -> Letters:
        """Of an operand of `shape` that broadcasts against a result of those `letters`: a dimension of one element has none."""
        tail = letters[len(result) - len(shape):]
        return tuple(dim if n == m else NONE for n, m, dim in zip(shape, result[len(result) - len(shape):], tail, strict=True))


def factors(names: Naming, before: Shape, after: Shape) -> tuple[Letters, Letters]:
    """Common letters of two shapes of one row-major sequence: from the major side, the greatest common factor of what is left of two dimensions.
    Where neither divides the other, what remains up to the next common border gets letters of its own.
    """
    if 0 in before:
        return names.named(before), names.named(after)
    rest = (list(before), list(after))
    given = ([list[str]() for _ in before], [list[str]() for _ in after])
    at = [0, 0]

    def advance() -> bool:
        for side in (0, 1):
            while at[side] < len(rest[side]) and rest[side][at[side]] == 1:
                at[side] += 1
        return at[0] < len(before) and at[1] < len(after)

    def own(side: int) -> int:
        left, rest[side][at[side]] = rest[side][at[side]], 1
        given[side][at[side]].extend(names.fresh(left))
        return left

    while advance():
        common = math.gcd(rest[0][at[0]], rest[1][at[1]])
        letter = names.fresh(common)
        for side in (0, 1):
            given[side][at[side]].extend(letter)
            rest[side][at[side]] //= common
        if rest[0][at[0]] == 1 or rest[1][at[1]] == 1:
            continue
        passed = [own(0), own(1)]
        while passed[0] != passed[1]:
            advance()
            side = int(passed[0] > passed[1])
            passed[side] *= own(side)
    return tuple(tuple(dim) for dim in given[0]), tuple(tuple(dim) for dim in given[1])


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


__all__ = ["NONE", "Choice", "Dim", "Letters", "Naming", "Piece", "Shape", "ShardingRule", "factors", "whole"]
