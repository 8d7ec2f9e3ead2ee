"""A worker of the server: loads an artefact, tries each member's pace, then answers batches until the front goes away.

Started by `supervision` as `python -m fourfold.runtime.serve.worker_main FD FOLDER [PACKAGE…]`; FD is its end of the socket pair.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from fourfold.errors import FourfoldError
from fourfold.runtime.serve import wire

if TYPE_CHECKING:
    import numpy as np

    from fourfold.frontends.subject import Subject
    from fourfold.runtime.artefact import Model, Part

TRIAL = 0.15                                                           # seconds that the pace of a member is tried for, each size
WORDS = ("time", "people", "little", "there", "good", "story", "never", "work", "place", "again")


class ArtefactWorker:
    """A loaded artefact and how batches of each member are answered."""

    def __init__(self, model: Model) -> None:
        self.model = model
        assembly = model.assembly
        self.subject = cast("Subject | None", assembly.reader())
        limit = model.manifest.get("max_length")
        self.max_length = limit if isinstance(limit, int) else None
        self.reads = self._reads()
        self.plain = self.reads == "texts" and model.task.kind in ("classification", "regression")

    def _reads(self) -> str:
        """What rows are: texts, or arrays of numbers. Images and sound come as arrays; paths are never opened for a stranger."""
        subject = self.subject
        if subject is None:
            return "texts"
        first = subject.inputs[0] if subject.inputs else ""
        if first in ("pixel_values", "input_values", "input_features"):
            return "arrays"
        return "texts" if subject.tokenizer is not None or getattr(subject.processor, "tokenizer", None) is not None else "arrays"

    def ready(self) -> wire.WorkerReady:
        """What the front must know; the pace of each member is tried where rows are texts."""
        task, assembly = self.model.task, self.model.assembly
        members = [self._member(number, part) for number, part in enumerate(assembly.parts)]
        parameters = sum(int(spec.get("parameters", 0)) for spec in self.model.manifest["parts"])
        return wire.WorkerReady(task.kind, self.reads, list(task.classes) if task.classes else None, members, list(self.model.warnings),
                                self.generates, parameters)

    @property
    def generates(self) -> bool:
        """Whether the artefact was optimised to generate."""
        return getattr(self.model.task, "generation", None) is not None

    def write(self, job: wire.GenerationJob, heard: Callable[[str], None]) -> None:
        """Continue a prompt; `heard` is told the text as it grows. Raises InputError for a prompt that the model has no positions for."""
        from fourfold.datasets.tokenise import longest
        from fourfold.errors import InputError
        from fourfold.runtime.serve.truncation import shorten

        if self.subject is not None and len(shorten(job.prompt, self.subject, longest(self.subject, self.max_length))) < len(job.prompt):
            raise InputError("The prompt is longer than the model reads", "Send a shorter one.")
        self.model.generate([job.prompt], max_new_tokens=job.new, temperature=job.temperature, top_k=job.top_k, top_p=job.top_p, seed=job.seed,
                            heard=lambda row, text: heard(text))

    def _member(self, number: int, part: Part) -> wire.Member:
        setting = part.setting
        member = wire.Member(part.name, "counts words" if part.words is not None else str(setting), max(1, setting.batch), setting.threads)
        if not self.plain:
            return member
        lengths = self.model.manifest.get("lengths") or [20]
        count = int(sorted(lengths)[len(lengths) // 2])
        text = " ".join(WORDS[i % len(WORDS)] for i in range(max(1, count)))
        member.size = len(text)
        member.single, member.full = self._paced(number, [text]), self._paced(number, [text] * member.batch)
        return member

    def _paced(self, stage: int, rows: list[wire.Row]) -> float:
        """Seconds of a call: the least of those that fit into the trial, after one that is not timed."""
        self.answer(stage, rows)
        began, found = time.perf_counter(), []
        while not found or (time.perf_counter() - began < TRIAL and len(found) < 20):
            at = time.perf_counter()
            self.answer(stage, rows)
            found.append(time.perf_counter() - at)
        return min(found)

    def answer(self, stage: int, rows: Sequence[wire.Row]) -> tuple[list[object], list[list[float] | None], list[bool], dict[int, str]]:
        """(answers, records, which rows are answered, reasons) of rows by one member, or (-1) by all that the artefact is."""
        if stage < 0 or not self.plain:
            return self._whole(rows)
        assembly, task = self.model.assembly, self.model.task
        from fourfold.runtime.serve.truncation import Shortened

        given = Shortened(rows, cast("Subject", self.subject), self.max_length)
        records = assembly.parts[stage].outputs(given, task)
        sure = [True] * len(rows)
        if stage < len(assembly.gates):
            keeps: np.ndarray = assembly.gates[stage].keeps(records)
            records = records / assembly.gates[stage].temperature      # handed-on rows are not told, so theirs do not matter
            sure = [bool(one) for one in keeps]
        from fourfold.runtime.artefact import pack

        said = pack(task.predict(records))
        numbers = records.tolist()
        return ([one if kept else None for one, kept in zip(said, sure, strict=True)],
                [row if kept else None for row, kept in zip(numbers, sure, strict=True)], sure, {})

    def _whole(self, rows: Sequence[wire.Row]) -> tuple[list[object], list[list[float] | None], list[bool], dict[int, str]]:
        from fourfold.runtime.artefact import pack

        given: list[object] = list(rows)
        if self.reads == "texts":
            given = self._cut(rows)
        else:
            import numpy as np

            given = [np.asarray(row, np.float32) for row in rows]
        found = self.model.predict(given)
        simple = self.model.task.kind in ("classification", "regression") and found.records is not None
        records: list[list[float] | None] = [None] * len(rows)
        if simple and found.records is not None:
            for at, row in enumerate(found.rows.tolist()):
                records[row] = found.records[at].tolist()
        return pack(found), records, [True] * len(rows), dict(found.errors)

    def _cut(self, rows: Sequence[wire.Row]) -> list[object]:
        from fourfold.datasets.tokenise import longest
        from fourfold.runtime.serve.truncation import shortened

        if self.subject is None or self.model.task.kind == "causal_lm":   # whose long texts are read window by window: the body's limit holds
            return list(rows)
        texts = cast("Sequence[str | tuple[str, str]]", rows)
        return list(shortened(texts, self.subject, longest(self.subject, self.max_length)))


def serve(link: socket.socket, worker: ArtefactWorker) -> None:
    """Answer the front's messages, one after another, until it is gone."""
    while (body := wire.received(link)) is not None:
        job = wire.told_worker(body)
        if isinstance(job, wire.GenerationJob):
            _written(link, worker, job)
            continue
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            said, records, sure, errors = worker.answer(job.stage, job.rows)
        except Exception as error:                                     # whatever a batch does, the worker goes on; the words name no input
            text = error.message if isinstance(error, FourfoldError) else f"{type(error).__name__} in member {job.stage}"
            link.sendall(wire.packed(wire.BatchRefused(job.number, text)))
            continue
        done = wire.BatchDone(job.number, said, records, sure, time.process_time() - cpu, time.perf_counter() - wall, errors)
        link.sendall(wire.packed(done))


def _written(link: socket.socket, worker: ArtefactWorker, job: wire.GenerationJob) -> None:
    """Send a text piece by piece as it is written, or why it could not be."""
    cpu = time.process_time()
    try:
        worker.write(job, lambda text: link.sendall(wire.packed(wire.TextPiece(job.number, text))))
    except OSError:                                                    # the front is gone
        raise
    except Exception as error:
        text = error.message if isinstance(error, FourfoldError) else f"{type(error).__name__} amid the text"
        link.sendall(wire.packed(wire.BatchRefused(job.number, text.rstrip("."))))
        return
    link.sendall(wire.packed(wire.TextPiece(job.number, "", True, time.process_time() - cpu)))


def main(arguments: Sequence[str]) -> int:
    """Run the worker; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                       # a Ctrl-C of the terminal is the front's to answer: it drains
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    link = socket.socket(fileno=int(arguments[0]))
    try:
        from fourfold.runtime.loading import load

        worker = ArtefactWorker(load(arguments[1], trust=arguments[2:]))
        link.sendall(wire.packed(worker.ready()))
    except FourfoldError as error:
        link.sendall(wire.packed(wire.WorkerFailed(error.message, error.mend)))
        return 2
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        what = f"{arguments[1]} could not be opened: {type(error).__name__}: {words}"
        link.sendall(wire.packed(wire.WorkerFailed(what, "Try `fourfold predict`.")))
        return 2
    try:
        serve(link, worker)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)                                                     # engines' threads may take seconds to end, and hold nothing worth it
