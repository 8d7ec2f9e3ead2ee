"""What is made when it is first asked for: once in each process, whatever threads ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

from fourfold.engines._pool import OneAtATime

T = TypeVar("T")


@dataclass
class Later(Generic[T]):
    """How to make a thing that nobody has asked for yet."""

    make: Callable[[], T]


_making = OneAtATime()


class OnDemand(Generic[T]):
    """A field of a dataclass that may be given as `Later`; it then holds what was made from the first reading on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    @overload
    def __get__(self, owner: None, kind: type) -> object: ...

    @overload
    def __get__(self, owner: object, kind: type) -> T: ...

    def __get__(self, owner: object | None, kind: type) -> object:
        if owner is None:
            raise AttributeError(self.name)  # so the field has no default
        held = vars(owner)[self.name]
        if isinstance(held, Later):
            with _making:
                held = vars(owner)[self.name]
                if isinstance(held, Later):
                    held = vars(owner)[self.name] = held.make()
        return held

    def __set__(self, owner: object, value: T | Later[T]) -> None:
        vars(owner)[self.name] = value
