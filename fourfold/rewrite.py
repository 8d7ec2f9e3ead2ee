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
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from fourfold.gate import Members, Proof
    from fourfold.gate import Path as GatePath
    from fourfold.structure.sites import Sites

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
    detail: dict[str, object] = field(default_factory=dict)


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
class Conversion:
    """One attention or MLP converted. `site` is its name ("encoder.3.ffn"), `path` its module's, `edits` plain data in order. `exact`: the model's
    answers stay as they are before any training, up to rounding. `note`: what is done and what is lost, in words."""

    site: str
    path: str
    edits: tuple[dict[str, Any], ...]
    exact: bool
    note: str


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
    outputs: int = 0
    """Columns of the original's outputs."""
    max_length: int | None = None
    call: Callable[[nn.Module], Tensor] | None = None
    """Runs a module on a small sample batch and returns the output that matters: what `structure.sites.sites` asks for; None without data."""


class Standalone(Protocol):
    """What answers raw inputs by itself, without a network; a member of an artefact. `kind`: the technique's `member`."""

    @property
    def kind(self) -> str: ...

    @property
    def parameters(self) -> int:
        """Numbers that an answer may use."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes as it is held."""
        ...

    def records(self, texts: Sequence[object]) -> np.ndarray:
        """Class scores float64 [N, C], or values [N, 1], of raw inputs."""
        ...

    def save(self, folder: Path) -> list[str]:
        """Write it into `folder` as plain data; the names of its files, which are the technique's `files`."""
        ...


@dataclass(frozen=True)
class Extension:
    """What is done to a finished candidate besides: `edits` of its module, and how its inputs are read from then on.

    `suffix` is added to its name, `told` to what is said of it. `tokenizer` takes the place of the original's; `reencode` makes examples that the
    original read into such as the extended model reads.
    """

    suffix: str
    edits: tuple[dict[str, object], ...]
    told: str
    tokenizer: Any
    reencode: Callable[[Any], Any]


class Rewrite(ABC):
    """Abstract or final: a technique overrides these and nothing else.

    `lever` is always "model" for rewrites. `cites` are keys of `fourfold.cite.BIBLIOGRAPHY`. `needs` are importable module names;
    `default`: used unless told otherwise. `edits`: the kinds of edits that are this technique's own. `step`: title of its step in the breakdown.
    `combined`: what it proposes is searched together with others by `compress/combine`, which the job runs in its place. `objectives`: of a technique
    that is not used by default, those that it is used for unasked. `converts`: names after `fourfold convert --to` (see `conversions`). `precision`:
    what an engine computes in fewer bits than fp32 is booked as this technique. `packs`: it stores weights in fewer bits, by `pack`.
    `member`: the kind of member of an artefact that `alone` makes, `files` its files.

    Four ways to take part, and a technique has one of them: `propose` students of the original, `extend` finished candidates, answer `alone` without
    a network, or `join` finished points.
    """

    title: ClassVar[str]
    default: ClassVar[bool] = False
    lever: ClassVar[str] = "model"
    cites: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    edits: ClassVar[tuple[str, ...]] = ()
    step: ClassVar[str] = ""
    combined: ClassVar[bool] = False
    objectives: ClassVar[tuple[str, ...]] = ()
    converts: ClassVar[tuple[str, ...]] = ()
    precision: ClassVar[bool] = False
    packs: ClassVar[bool] = False
    member: ClassVar[str] = ""
    files: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def declines(self, model: nn.Module) -> str | None:
        """Why this technique can do nothing for `model` (a sentence naming the module), or None if it can."""

    def propose(self, context: Context) -> Iterator[Proposal]:
        """What could be done as a whole, best first, lazily. Default: nothing; what is offered as `options` is combined by `compress/combine`."""
        yield from ()

    def options(self, anatomy: object, sensitivities: object) -> list[Option]:
        """What could be done part by part, each with its predicted harm. Searching over them is `combine`'s job."""
        return []

    def conversions(self, sites: Sites, to: str) -> list[Conversion]:
        """What `fourfold convert --to TO` does to these attentions and MLPs, `to` one of `converts`. Raises ModelError, in words, where none of
        them can be converted (no causal attention, no MLP with an activation of its own …)."""
        raise NotImplementedError(f"{type(self).__name__} converts nothing")

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

    def origin(self, context: Context, proposal: Proposal) -> tuple[dict[str, object], tuple[dict[str, object], ...]] | None:
        """(origin, edits) from which an artefact makes the shape again, where the edits do not begin from the original. Default: None."""
        return None

    def begin(self, origin: Mapping[str, object], room: Callable[[int], None]) -> nn.Module:
        """The bare architecture of an `origin` of this technique. `room` is told its bytes first, and raises where that is absurd."""
        raise NotImplementedError(f"{type(self).__name__} begins from the original")

    def recover(self, context: Context, proposal: Proposal) -> dict[str, object] | None:
        """How quality is won back: options of distillation from the original ("steps", "batch", "lr", "bf16"), {} for the job's own, None for no
        training at all."""
        return {}

    def extend(self, context: Context, candidate: nn.Module) -> Extension | None:
        """What can be done to a finished candidate besides, whatever made it; None: nothing. Raises ModelError, with the reason, where it does not
        fit the original at all."""
        return None

    def alone(self, context: Context) -> Standalone | None:
        """A model of the task that needs no network, trained on `context.examples`; None where the data are not of its kind. It is asked whatever
        `declines` says of the network, which it does without."""
        return None

    def opened(self, folder: Path) -> Standalone:
        """What `Standalone.save` wrote. Raises ArtefactError where a file is missing or damaged."""
        raise NotImplementedError(f"{type(self).__name__} makes no member of its own")

    def join(self, members: Members, proof: Proof) -> list[GatePath]:
        """Families of gates over finished points, each from cautious to bold, that promise most under `proof`; []: none. Asked whatever `declines`
        says."""
        return []

    def pack(self, model: nn.Module, edits: Sequence[Edit], run: Callable[[nn.Module], object]) -> nn.Module:
        """A copy of the trained `model` whose weights are stored in fewer bits as these edits, of this technique's own kind, say; `apply` makes the
        same shape again for a state dict to fill. `run` calls a module on calibration batches, as often as it is asked."""
        raise NotImplementedError(f"{type(self).__name__} packs nothing")

    def describe(self, edits: Sequence[Edit]) -> str:
        """What these edits do, in a few words, for report and explanation."""
        return self.title
