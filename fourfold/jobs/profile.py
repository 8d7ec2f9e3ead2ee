"""`fourfold profile`: where a model's time goes on the user's inputs, how many hidden units matter, and which conversion could pay.

Every conversion there is (`fourfold convert --to`) is tried: on the attentions and MLPs that were found, untrained, on a copy. The copy is raced
against the model on the same rows, and for a language model also on one position of one row, as a decoder is called; training changes what it answers
and hardly what it costs. A conversion could pay where the race says so beyond doubt. Nothing is kept, and no quality is judged: `fourfold convert`
does that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.errors import FourfoldError, InputError, ModelError
from fourfold.measure.probe import Probe, probe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fourfold.datasets.examples import Examples
    from fourfold.frontends.subject import Subject
    from fourfold.structure.sites import Sites

ROWS = 16
"""Rows that are watched and raced on where nothing else is said."""


@dataclass(frozen=True)
class Ways:
    """A race of the converted model against the original: median ratio of processor and of wall time with 90 % intervals; `faster`: less processor
    time beyond doubt, and no more wall time."""

    cpu: tuple[float, float, float]
    wall: tuple[float, float, float]
    faster: bool


@dataclass(frozen=True)
class Prospect:
    """What a conversion could save. `sites`: how many attentions and MLPs it takes, `share`: their share of the time of a pass (of attentions, only
    what lies between the projections where that could be told), so that no saving is above it. `batch`, `decode`: races on whole rows and on one
    position of one row (None: not raced). `refused`: why it cannot be done here."""

    to: str
    technique: str
    sites: int = 0
    share: float = 0.0
    batch: Ways | None = None
    decode: Ways | None = None
    refused: str = ""

    @property
    def pays(self) -> bool:
        """Whether a race said that it is faster."""
        return any(one is not None and one.faster for one in (self.batch, self.decode))


@dataclass(frozen=True)
class ModelProfile:
    """`lengths`: least, median and most positions (values for rows without any) of an input; `rows` that were watched together; `positions` of the
    batch with its padding. `refusals`: parts that could not be read."""

    model: str
    data: str
    rows: int
    lengths: tuple[int, int, int]
    positions: int
    threads: int
    machine: str
    probe: Probe
    prospects: tuple[Prospect, ...]
    refusals: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """Plain data, as `--json` prints it."""
        found: dict[str, object] = asdict(self)
        found |= {"probe": self.probe.to_json(), "prospects": [asdict(one) | {"pays": one.pays} for one in self.prospects]}
        return found | {"sentences": self.sentences}

    @property
    def sentences(self) -> list[str]:
        """The result in words."""
        from fourfold.report.profile import sentences

        return sentences(self)


def profile(
    model: object, data: object, *, rows: int = ROWS, rounds: int = 7, conversions: Sequence[str] | None = None, threads: int | None = None,
    columns: Mapping[str, str] | None = None, task: str | None = None, max_length: int | None = None, tokenizer: object = None, seed: int = 0,
) -> ModelProfile:
    """Watch `rows` of `data` pass through `model`, `rounds` times, and race every conversion that fits.

    model, data, columns, task, max_length, tokenizer: as for `fourfold.optimize`; labels are not needed. conversions: names to race (None: all there
    are; []: none). threads: of torch; None leaves them. Raises InputError for data or options that cannot be used, ModelError for a model that does
    not run on them or runs outside of PyTorch.
    """
    import torch

    from fourfold.host import here
    from fourfold.structure.sites import sites

    if rows < 2 or rounds < 5:
        raise InputError(f"{rows} rows and {rounds} rounds tell nothing.", "Watch at least 2 rows for at least 5 rounds.")
    known = _named(conversions)
    subject, examples = _read(model, data, columns, task, max_length, tokenizer, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        batch = _batch(examples, rows, seed)
        call = _call(subject, batch)
        found = sites(subject.module, call)
        seen = probe(subject.module, call, found, rounds=rounds, watched=_active(subject.module))
        decode = _call(subject, one) if (one := _position(batch, examples, found)) else None
        prospects = tuple(_prospect(to, subject.module, call, decode, found, seen, rounds) for to in known)
        sizes = np.sort(examples.lengths)
        first = next(iter(batch.values()))
        return ModelProfile(
            model if isinstance(model, str) else type(subject.module).__name__, data if isinstance(data, str) else "the given rows", len(first),
            (int(sizes[0]), int(np.median(sizes)), int(sizes[-1])), int(first.numel()), torch.get_num_threads(), here().name, seen, prospects,
            found.refusals,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def _named(conversions: Sequence[str] | None) -> list[str]:
    from fourfold import registry

    known = sorted(registry.conversions())
    for to in conversions or ():
        if to not in known:
            raise InputError(f"There is no conversion {to!r}.", f"There are: {', '.join(known)}.")
    return known if conversions is None else list(conversions)


def _read(model: object, data: object, columns: Mapping[str, str] | None, task: str | None, max_length: int | None, tokenizer: Any,
          seed: int) -> tuple[Subject, Examples]:  # fmt: skip
    """(model, its training rows, which are the most). Labels are not asked for."""
    from fourfold.datasets.columns import HEADS
    from fourfold.datasets.load import load_data
    from fourfold.frontends.model import load_model
    from fourfold.frontends.preprocessors import tokenizer_in

    subject = load_model(model)
    if subject.origin.get("kind") == "onnx":
        raise ModelError("the model is an .onnx file, whose layers cannot be watched from here", "Give the PyTorch model that it was made from.")
    if tokenizer is not None:
        subject.tokenizer, subject.processor = tokenizer_in(tokenizer)
    subject.module.eval()
    name = type(subject.module).__name__
    kind = task or next((kind for head, kind in HEADS.items() if name.endswith(head)), "")
    unlabelled = None if kind in ("causal_lm", "seq2seq", "ctc") else "agreement"  # the others' texts are labels of their own
    splits, _ = load_data(data, task, subject, columns=columns, seed=seed, max_length=max_length, metric=unlabelled)
    subject.inputs = tuple(name for name in subject.inputs if name in splits.train.columns)
    return subject, splits.train


def _batch(examples: Examples, rows: int, seed: int) -> dict[str, Tensor]:
    """Rows drawn evenly over the lengths, padded together."""
    import torch

    order = np.argsort(np.asarray(examples.lengths), kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(rows, len(order))).astype(int))]
    picked = np.resize(picked, max(2, len(picked)))
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in examples.collate(picked).items()}


def _position(batch: Mapping[str, Tensor], examples: Examples, found: Sites) -> dict[str, Tensor] | None:
    """One position of one row, where a decoder would be called so; a row of features as it is; None for other models."""
    if any(site.causal for site in found.attentions) and "input_ids" in batch:
        return {name: value[:1, :1] for name, value in batch.items() if value.ndim > 1}
    return {name: value[:1] for name, value in batch.items()} if not found.attentions and all(v.ndim == 2 for v in batch.values()) else None


def _call(subject: Subject, batch: Mapping[str, Tensor]) -> Callable[[nn.Module], Tensor]:
    import torch

    def call(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return subject.logits(module, batch)

    return call


def _active(module: nn.Module) -> dict[str, str]:
    """Layers of ours that say where their hidden units pass: by an identity of the name `active`."""
    from torch import nn

    marked = (path for path, part in module.named_modules() if isinstance(getattr(part, "active", None), nn.Identity))
    return {path: f"{path}.active" if path else "active" for path in marked}


def _prospect(to: str, module: nn.Module, call: Callable[[nn.Module], Tensor], decode: Callable[[nn.Module], Tensor] | None, found: Sites,
              seen: Probe, rounds: int) -> Prospect:  # fmt: skip
    """One conversion tried, and raced where it fits."""
    from fourfold import registry
    from fourfold.recipe import Recipe, apply

    id = registry.conversions()[to]
    technique = registry.technique(id)()
    try:
        if why := technique.declines(module):
            return Prospect(to, id, refused=why)
        many = technique.conversions(found, to)
        made = apply(copy.deepcopy(module), Recipe(tuple(edit for one in many for edit in one.edits))).eval()
        taken = {one.site for one in many}
        attentions, mlps = ([site.name for site in kind if site.name in taken] for kind in (found.attentions, found.mlps))
        cores = seen.kinds["core"].value * len(attentions) / max(1, len(found.attentions))
        share = (cores or seen.share(attentions)) + seen.share(mlps)
        return Prospect(to, id, len(taken), share, _race(module, made, call, rounds), _race(module, made, decode, rounds) if decode else None)
    except (FourfoldError, RuntimeError, NotImplementedError) as error:
        return Prospect(to, id, refused=str(error).splitlines()[0] if str(error) else type(error).__name__)


def _race(before: nn.Module, after: nn.Module, call: Callable[[nn.Module], Tensor], rounds: int) -> Ways:
    from fourfold.measure.race import race

    found = race({"original": lambda: call(before), "converted": lambda: call(after)}, baseline="original", rounds=rounds)["converted"]
    cpu, wall = ((one.value, one.low, one.high) for one in (found.cpu, found.wall))
    return Ways(cpu, wall, found.faster("cpu") and found.wall.verdict <= 0)
