"""A technique that changes *what* is computed. It owes a quality figure; `fourfold.optimize` measures it.

A technique is one file in a folder of `fourfold/rewrites/`, holding exactly one final subclass of `Rewrite`, its `nn.Module` where it has one, and
the kinds of edits that it owns. Its facts are class attributes, so that lists, docs, `fourfold cite` and the contract suite are derived and never
typed twice. The job names no technique: it asks each one that does not decline for proposals, and builds, trains, judges, races and proves them.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

Edit = Mapping[str, Any]
"""One change as JSON-able data with a "kind"; see `fourfold.recipe`."""


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


@dataclass(frozen=True)
class Proposal:
    """What a technique would do: `edits` in order, under a `name` that no other proposal of the run has.

    `cost` is the predicted cost relative to the original, `harm` the predicted increase of the calibration loss in nats per example, each as (value,
    low, high); `harm` is None where nothing was measured. `quantises`: fewer bits may make it cheaper still.
    """

    name: str
    edits: tuple[dict[str, Any], ...]
    cost: tuple[float, float, float]
    harm: tuple[float, float, float] | None = None
    quantises: bool = True


@dataclass(frozen=True)
class Context:
    """What proposals are made from. `subject` holds the original (`subject.module`) and how it is called; `examples` are rows to train on and
    `answers` the original's outputs to them [N, C] (None where they are too large to keep); `anatomy` and `sensitivities` say what the original is
    made of and what each part matters (None where nothing was found)."""

    subject: Any
    task: Any
    examples: Any
    answers: Tensor | None
    anatomy: Any
    sensitivities: Any
    floor: float
    seed: int


class Rewrite(ABC):
    """Abstract or final: a technique overrides these and nothing else.

    `lever` is always "model" for rewrites. `cites` are keys of `fourfold.cite.BIBLIOGRAPHY`. `needs` are importable module names;
    `default`: used unless told otherwise. `edits`: the kinds of edits that are this technique's own. `step`: title of its step in the breakdown.
    `combined`: what it proposes is searched together with others by `compress/combine`, which the job runs in its place.
    """

    title: ClassVar[str]
    default: ClassVar[bool] = False
    lever: ClassVar[str] = "model"
    cites: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    edits: ClassVar[tuple[str, ...]] = ()
    step: ClassVar[str] = ""
    combined: ClassVar[bool] = False

    @abstractmethod
    def declines(self, model: nn.Module) -> str | None:
        """Why this technique can do nothing for `model` (a sentence naming the module), or None if it can."""

    def propose(self, context: Context) -> Iterator[Proposal]:
        """What could be done as a whole, best first, lazily. Default: nothing; what is offered as `options` is combined by `compress/combine`."""
        yield from ()

    def options(self, anatomy: Any, sensitivities: Any) -> list[Option]:
        """What could be done part by part, each with its predicted harm. Searching over them is `combine`'s job."""
        return []

    def apply(self, model: nn.Module, edit: Edit) -> nn.Module:
        """Carry out one of this technique's own edits on the bare architecture (its shape) or on the trained model (its values too), in place where
        it can, and return the module. Raises ModelError where it does not fit."""
        from fourfold.recipe import Recipe, apply

        if edit.get("kind") in self.edits:
            raise NotImplementedError(f"{type(self).__name__} must carry out its own edits")
        return apply(model, Recipe((dict(edit),)))

    def build(self, context: Context, proposal: Proposal) -> nn.Module:
        """The student as its training begins. Default: the edits carried out on a copy of the original."""
        from fourfold.recipe import Recipe, apply

        return apply(copy.deepcopy(context.subject.module), Recipe(proposal.edits))

    def origin(self, context: Context, proposal: Proposal) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]] | None:
        """(origin, edits) from which an artefact makes the shape again, where the edits do not begin from the original. Default: None."""
        return None

    def begin(self, origin: Mapping[str, Any], room: Callable[[int], None]) -> nn.Module:
        """The bare architecture of an `origin` of this technique. `room` is told its bytes first, and raises where that is absurd."""
        raise NotImplementedError(f"{type(self).__name__} begins from the original")

    def recover(self, context: Context, proposal: Proposal) -> dict[str, Any] | None:
        """How quality is won back: options of distillation from the original ("steps", "batch", "lr", "bf16"), {} for the job's own, None for no
        training at all."""
        return {}

    def describe(self, edits: Sequence[Edit]) -> str:
        """What these edits do, in a few words, for report and explanation."""
        return self.title
