"""An optimised model as a folder: data only, checked by sha256, loadable in a fresh process without training code.

cheap/
  manifest.json     what it is, how it was made, what was measured where, and the sha256 of every other file
  <part>/           one folder per member (a cascade has several): model.safetensors, tokenizer files, and the winning back end's own files
  report.json …     the evidence

`Model.predict` reads raw inputs (texts, pairs, arrays, files) exactly as the search did. On a processor other than the one it was raced on, the
stored choice still runs, or falls back to plain PyTorch with a warning; `fourfold race` decides anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourfold.datasets.task import Task
from fourfold.datasets.unread import Unread
from fourfold.engines._fork import works
from fourfold.engines._pool import OneAtATime, leave
from fourfold.errors import FourfoldError, InputError
from fourfold.runtime.generate import Sampling
from fourfold.runtime.later import OnDemand

if TYPE_CHECKING:
    from torch import nn

    from fourfold.datasets.examples import Examples
    from fourfold.engines.base import Session, Signature
    from fourfold.frontends.subject import Subject
    from fourfold.gate import Gate
    from fourfold.recipe import Recipe
    from fourfold.rewrite import Standalone
    from fourfold.runtime.answers import Answers
    from fourfold.runtime.generating import GeneratingSession

FORMAT = "fourfold.artefact/1"


@dataclass
class Setting:
    """How a part runs: engine and precision, threads, examples per batch, and whether batches are formed from inputs of like length."""

    engine: str = "torch"
    precision: str = "fp32"
    threads: int = 1
    batch: int = 32
    bucketing: bool = True

    def to_json(self) -> dict[str, object]:
        return dict(self.__dict__)

    def __str__(self) -> str:
        plural, order = "s" if self.threads > 1 else "", ", by length" if self.bucketing else ""
        return f"{self.engine} {self.precision}, {self.threads} thread{plural}, batch {self.batch}{order}"


@dataclass
class Part:
    """One member: a network (structure, weights, engine files) or, in `words`, what answers raw inputs without one.

    `subject` carries the origin and the encoders; `recipe` rebuilds the shape from the origin; `files` are engine files lying in `folder`.
    """

    name: str
    subject: Subject
    module: OnDemand[nn.Module | None] = OnDemand()
    recipe: OnDemand[Recipe | None] = OnDemand()
    setting: Setting  # pyright: ignore[reportGeneralTypeIssues]
    signature: Signature | None = None
    folder: Path | None = None
    files: list[str] = field(default_factory=list)
    words: Standalone | None = None
    session: Session | None = None
    reencode: Callable[[Examples], Examples] | None = None
    generating: Task | None = None  # the task of a generating workload: the part is opened as a `Decoding`

    def sees(self, examples: Examples) -> Examples:
        """The examples as this part reads them: re-encoded once where it has a smaller vocabulary than the original."""
        if self.reencode is None:
            return examples
        seen = self._seen  # another thread may put its own examples there meanwhile
        if seen is None or seen[0] is not examples:
            self._seen = seen = (examples, self.reencode(examples))
        return seen[1]

    def _read(self, given: Unread) -> Examples:
        return given.read() if self.reencode is None else type(given)(given.raw, self.subject, given.max_length).read()

    _seen: tuple[Examples, Examples] | None = field(default=None, repr=False, compare=False)
    _opening: OneAtATime = field(default_factory=OneAtATime, init=False, repr=False, compare=False)

    def open(self) -> Session:
        """The engine session, opened once in each process, whatever threads ask for it."""
        session = self.session
        if session is not None and not session.foreign:
            return session
        with self._opening:
            if self.session is not None and self.session.foreign:
                leave(self.session)
                self.session = None
            if self.session is None:
                if self.generating is not None:
                    self.session = session = self._generating()
                    session.home = os.getpid()
                    return session
                from fourfold.engines import engine

                assert self.signature is not None
                kind = engine(self.setting.engine)
                wrapped = None if kind.standalone or self.module is None else self.subject.wrap(self.module)
                session = kind.open(self.folder or Path("."), wrapped, self.signature, self.setting.precision, self.setting.threads)
                session.home = os.getpid()
                self.session = session
            return self.session

    def _generating(self) -> GeneratingSession:
        from fourfold.engines.decode import decoder
        from fourfold.runtime.generating import GeneratingSession

        kind = decoder(self.setting.engine)
        module = None if kind.standalone else self.module
        return GeneratingSession(kind.open(self.folder or Path("."), module, self.setting.precision, self.setting.threads))

    def outputs(
        self, given: Examples | Unread, task: Task, lanes: int = 1, progress: Callable[[int], None] = lambda rows: None
    ) -> np.ndarray:
        """Records float64 [N, k] of this part over examples, in their order, at its own batch size and bucketing. `lanes`: batches at work at once,
        each with the part's own threads. `progress` is told how many rows were answered."""
        if self.words is not None:
            return self.words.records(given.raw or [])
        if self.generating is not None:
            from fourfold.runtime.generating import GeneratingSession, judged

            decoding = self.open()
            assert isinstance(decoding, GeneratingSession)
            read = self._read(given) if isinstance(given, Unread) else self.sees(given)
            return judged(decoding.decoding, read, task, self.setting.batch, progress)
        session, rows = self.open(), None
        examples = self._read(given) if isinstance(given, Unread) else self.sees(given)
        if lanes > 1 and not task.generates and self.setting.threads == 1:
            return self._side_by_side(session, examples, task, lanes, progress)
        for index in examples.batches(self.setting.batch, bucket=self.setting.bucketing):
            batch = examples.collate(index, session.multiple)
            targets = examples.collate_targets(index) if examples.targets is not None else None
            part = task.written(session.run, batch, targets) if task.generates else task.records(session.run(batch), batch, targets)
            rows = np.zeros((len(examples), part.shape[1])) if rows is None else rows
            rows[index] = part
            progress(len(index))
        if rows is None:
            raise FourfoldError("there is nothing to predict: no examples.", "Give at least one row.")
        return rows

    def _side_by_side(self, session: Session, examples: Examples, task: Task, lanes: int, progress: Callable[[int], None]) -> np.ndarray:
        """`outputs` where whoever is free takes the next batch; a session that queues its calls gets a twin for each lane."""
        from concurrent.futures import ThreadPoolExecutor
        from queue import SimpleQueue

        twins = [replace(self, session=None) for _ in range(lanes - 1)] if session.queues else []
        free: SimpleQueue[Session] = SimpleQueue()
        for one in [session, *(twin.open() for twin in twins), *([session] * (lanes - 1 - len(twins)))]:
            free.put(one)

        def answer(index: np.ndarray) -> np.ndarray:
            mine = free.get()
            try:
                batch = examples.collate(index, mine.multiple)
                targets = examples.collate_targets(index) if examples.targets is not None else None
                return task.records(mine.run(batch), batch, targets)
            finally:
                free.put(mine)

        batches, rows = examples.batches(self.setting.batch, bucket=self.setting.bucketing), None
        try:
            with ThreadPoolExecutor(lanes) as pool:
                for index, part in zip(batches, pool.map(answer, batches), strict=True):
                    rows = np.zeros((len(examples), part.shape[1])) if rows is None else rows
                    rows[index] = part
                    progress(len(index))
        finally:
            for twin in twins:
                twin.close()
        if rows is None:
            raise FourfoldError("there is nothing to predict: no examples.", "Give at least one row.")
        return rows

    def close(self) -> None:
        with self._opening:
            if self.session is not None:
                leave(self.session) if self.session.foreign else self.session.close()
                self.session = None


@dataclass
class Assembly:
    """What answers: one part, or a cascade of parts with a gate between each and the next."""

    name: str
    parts: list[Part]
    gates: list[Gate] = field(default_factory=list)

    def outputs(self, examples: Examples | Unread, task: Task) -> np.ndarray:
        """Records [N, k]; the later, dearer parts only read what the gates hand on."""
        return self.routed(examples, task)[0]

    def routed(self, examples: Examples | Unread, task: Task) -> tuple[np.ndarray, list[float]]:
        """Records and the share of examples answered by each part."""
        with works.one():
            return self._routed(examples, task)

    def _routed(self, examples: Examples | Unread, task: Task) -> tuple[np.ndarray, list[float]]:
        rows = self.parts[0].outputs(examples, task)
        owner = np.zeros(len(examples), np.int64)
        open_ = np.arange(len(examples))
        for number, (gate, part) in enumerate(zip(self.gates, self.parts[1:], strict=True), 1):
            unsure = ~gate.keeps(rows[open_])
            rows[open_[~unsure]] /= gate.temperature
            open_ = open_[unsure]
            if len(open_) == 0:
                break
            rows[open_] = part.outputs(examples.take(open_), task)
            owner[open_] = number
        return rows, [float((owner == n).mean()) for n in range(len(self.parts))]

    def reader(self) -> Subject:
        """The member whose tokenizer reads what is handed on: the one with the most inputs, the last of them."""
        return max(reversed(self.parts), key=lambda part: len(part.subject.inputs) if part.subject is not None else 0).subject

    def answers(self, examples: Examples | Unread, task: Task) -> list[Any]:
        """What a person reads, one per example: this is what `predict` runs, and what every race of whole services times."""
        if task.generation is not None:
            from fourfold.runtime.generating import GeneratingSession, texts

            with works.one():
                session, part = self.parts[-1].open(), self.parts[-1]
                assert isinstance(session, GeneratingSession)
                return list(texts(session.decoding, part.sees(examples.read()), task, part.setting.batch))
        if task.kind == "seq2seq" and task.writing is not None:
            with works.one():
                return self._written(examples.read(), task)
        return list(task.predict(self.outputs(examples, task)))

    def _written(self, examples: Examples, task: Task) -> list[str]:
        part = self.parts[-1]
        session, texts = part.open(), [""] * len(examples)
        for index in examples.batches(part.setting.batch, bucket=part.setting.bucketing):
            for i, text in zip(index, task.write(session.run, examples.collate(index)), strict=True):
                texts[i] = text
        return texts

    def close(self) -> None:
        for part in self.parts:
            part.close()


def digest(path: Path) -> str:
    """sha256 of a file, hex."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


class Model:
    """A loaded artefact. `predict(inputs)` answers; `manifest` says what it is; `warnings` what differs from where it was made."""

    def __init__(self, folder: Path, manifest: dict[str, Any], assembly: Assembly, task: Task, warnings: list[str]) -> None:
        self.folder, self.manifest, self.assembly, self.task, self.warnings = folder, manifest, assembly, task, warnings

    def encode(self, data: object) -> Examples:
        """Raw inputs (list of texts or pairs, arrays, a file, rows without labels) as this model reads them."""
        return self.inputs(data).read()

    def inputs(self, data: object) -> Examples | Unread:
        """The same, except that texts stay texts until a network asks for their tokens. Raises InputError where a row cannot be read."""
        from fourfold.datasets.asked import asked, encoded

        reader = self.assembly.reader()
        what = asked(data, reader)
        examples, _ = encoded(what, self.task, reader, max_length=self.manifest.get("max_length"))
        if what.errors or examples is None:
            row, reason = next(iter(sorted(what.errors.items())), (0, "there are no rows"))
            raise InputError(f"{what.source}, row {row + 1}: {reason}.", "Leave it out, or use predict, which answers the others.")
        return examples

    def records(self, data: object) -> np.ndarray:
        """What the metric sees: class scores [N, C], values [N, 1] …"""
        with works.one():
            return self.assembly.outputs(self.inputs(data), self.task)

    def predict(self, data: object, columns: Mapping[str, str] | None = None) -> Answers:
        """Predictions that a person reads: class names, floats, texts; one per input. Encoder–decoders write their texts greedily.

        data: a text, a list, series, array, dict, generator or data frame of texts, pairs of texts, rows or arrays, or the path of a file. The answer
        of a row that cannot be read is None; `.errors` of what is returned says why. columns: {"text": …, "pair": …} where names do not tell.
        """
        with works.one():  # what is imported here for the first time too: a fork amid an import leaves its lock taken in the child
            from fourfold.runtime.answers import answer

            return answer(self, data, columns)

    __call__ = predict

    def generate(
        self, prompts: str | Sequence[str], *, max_new_tokens: int | None = None, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0,
        seed: int = 0, heard: Callable[[int, str], None] | None = None,
    ) -> list[str]:
        """What follows each prompt: greedily, or sampled at a temperature above 0 (seeded). `max_new_tokens`: as the workload was optimised for,
        where left out. `heard(row, text)` is told the text as it grows, piece by piece.

        Raises InputError where the model does not generate, a prompt is empty, or prompt and answer are longer than the model has positions for.
        """
        from fourfold.runtime.generating import GeneratingSession, replied

        part = self.assembly.parts[-1]
        session = part.open()
        if not isinstance(session, GeneratingSession):
            raise InputError("this artefact was not optimised to generate.", "Use predict, or run `fourfold optimize … --workload generate`.")
        asked = [prompts] if isinstance(prompts, str) else list(prompts)
        how = Sampling(temperature, top_k, top_p, seed)
        with works.one():
            examples = part.sees(self.inputs(asked).read())
            drafts = self.manifest.get("drafting") if how.temperature == 0 and not self.warnings else None
            return replied(session.decoding, examples, self.task, part.setting.batch, max_new_tokens, how, heard, drafts)

    @property
    def module(self) -> nn.Module | None:
        """The first part's torch module (None for a bag of words)."""
        return self.assembly.parts[0].module

    def close(self) -> None:
        self.assembly.close()


def pack(values: Iterable[object]) -> list[object]:
    """Predictions as JSON values."""
    return [v.item() if isinstance(v, np.generic) else v.tolist() if isinstance(v, np.ndarray) else v for v in values]
