"""What the parts of this room need to know of a figure, so that none of them has to import the class that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self


class QuantityLike(Protocol):
    """A value with its evidence, as `Quantity` has it; its fields say what each is."""

    @property
    def value(self) -> float: ...

    @property
    def unit(self) -> str: ...

    @property
    def grade(self) -> str: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...

    @property
    def errors(self) -> Mapping[str, float]: ...

    @property
    def inputs(self) -> tuple[Self, ...]: ...

    @property
    def op(self) -> str: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    def _name(self) -> str: ...
