"""A technique that changes *what* is computed. It owes a quality figure; `fourfold.optimize` measures it.

A technique is one file in a folder of `fourfold/rewrites/`, holding exactly one final subclass of `Rewrite`. Its facts are class attributes,
so that lists, docs, `fourfold cite` and the contract suite are derived and never typed twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn

    from fourfold.recipe import Recipe


@dataclass(frozen=True)
class Option:
    """One thing a technique could do to a model.

    `site` names where ("encoder.3.ffn"); `size` is what stays there (heads, neurons, rows; 0 = all gone), `full` what was there.
    `harm` is the predicted increase of the calibration loss (nats per example; comparable between options of one model), `detail` is JSON-able data
    for `Rewrite.recipe`.
    """

    site: str
    size: int
    full: int
    harm: float
    detail: dict[str, Any] = field(default_factory=dict)


class Rewrite(ABC):
    """Abstract or final: a technique overrides these and nothing else.

    `lever` is always "model" for rewrites. `cites` are keys of `fourfold.cite.BIBLIOGRAPHY`. `needs` are importable module names;
    `default`: used unless told otherwise.
    """

    title: ClassVar[str]
    default: ClassVar[bool] = False
    lever: ClassVar[str] = "model"
    cites: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def declines(self, model: nn.Module) -> str | None:
        """Why this technique can do nothing for `model` (a sentence naming the module), or None if it can."""

    @abstractmethod
    def options(self, anatomy: Any, sensitivities: Any) -> list[Option]:
        """What could be done, each with its predicted harm. Searching over them is `combine`'s job."""

    @abstractmethod
    def apply(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """Carry out this technique's steps of `recipe` on `model` (in place where it can) and return the model."""
