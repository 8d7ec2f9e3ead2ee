"""Trainings, and engine files, made beside one another: child processes with one thread each, so that every core has a student of its own.

Threads of one training wait for one another after every operation, which beside a busy neighbour costs several times the work itself; processes
of one thread wait for nobody, and a training gives the same weights whatever runs beside it. Where a child cannot be had (one core, a model that
cannot be sent, a child that died), the same training is done here, with one thread too, to the same weights.
The children are plain subprocesses that talk over their pipes, so the caller's script is not run a second time. A child ends when its input does: a
killed parent leaves none behind. Ctrl-C does not reach them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

from fourfold.errors import FourfoldError
from fourfold.jobs.optimize.builds import Build, Built, build
from fourfold.rewrites.compress._bench import Done, TrainingTask

if TYPE_CHECKING:
    from torch import Tensor

    from fourfold.datasets.examples import Examples
    from fourfold.datasets.task import Task
    from fourfold.rewrites.compress.distil import Teacher

SIZE = struct.Struct("<Q")


@dataclass
class Crew:
    """`lanes` children (one: everything here). Task, pool, answers and teacher are what all trainings share."""

    lanes: int
    task: Task
    pool: Examples
    teacher: Teacher
    answers: Tensor | None
    progress: Callable[[int], None]
    hidden: bool = False  # whether the original's hidden states are asked for, besides its answers
    children: list[Child] = field(default_factory=list)
    here: list[TrainingTask | Build] = field(default_factory=list)
    running: dict[str, tuple[TrainingTask | Build, Child]] = field(default_factory=dict)
    messages: queue.Queue[tuple[Child, object]] = field(default_factory=queue.Queue)

    @classmethod
    def of(cls, lanes: int) -> Crew:
        """One that makes engine files only."""
        return cls(lanes, None, None, None, None, lambda _: None)  # type: ignore[arg-type]

    def hire(self) -> None:
        """Start the children, which read their libraries while there is other work to do."""
        if self.lanes > 1 and not self.children:
            try:
                self.children = [Child(self.messages) for _ in range(self.lanes)]
            except OSError:
                self.lanes = 1

    def open(self) -> None:
        """Hand the children what all trainings share. What cannot be sent is trained here."""
        self.hire()
        if self.lanes < 2:
            self.lanes = 1
            self.close()
            return
        from torch import nn

        from fourfold.rewrites.compress.distil import use_threads

        use_threads(1)  # here too, while they work: a training that must be done here after all gives the same weights

        teacher = self.teacher
        bare = replace(teacher.subject, module=nn.Identity(), tokenizer=None, processor=None, folder=None)
        material = {
            "task": _plain(self.task),
            "pool": replace(self.pool, raw=None),
            "answers": self.answers,
            "subject": bare,
            "teacher": teacher.module if self.hidden or self.answers is None else None,
        }
        try:
            data = pickle.dumps(material, protocol=5)
            for child in self.children:
                child.send(data)
        except (pickle.PicklingError, AttributeError, TypeError, OSError):
            self.close()
            self.lanes = 1

    @property
    def free(self) -> int:
        """How many trainings could be started now."""
        return (len([c for c in self.children if c.alive and not c.busy]) or (0 if self.running else 1)) - len(self.here)

    def start(self, work: TrainingTask | Build) -> None:
        """Begin a training, or the making of engine files, in a free child, or keep it for `next` to do here."""
        child = next((c for c in self.children if c.alive and not c.busy), None)
        if child is None:
            self.here.append(work)
            return
        try:
            bare = replace(work.subject, module=None, tokenizer=None, processor=None, folder=None)  # type: ignore[arg-type]
            child.send(pickle.dumps(replace(work, subject=bare), protocol=5))
        except (pickle.PicklingError, AttributeError, TypeError, OSError):
            self.here.append(work)
            return
        child.busy = True
        self.running[work.name] = work, child

    def next(self) -> Done:
        """The next training that ends."""
        done = self._next()
        assert isinstance(done, Done)
        return done

    def _next(self) -> Done | Built:
        if self.here:
            return self._do(self.here.pop(0))
        while True:
            child, message = self.messages.get()
            if isinstance(message, int):
                self.progress(message)
                continue
            name = next((n for n, (_, c) in self.running.items() if c is child), None)
            if isinstance(message, Done | Built):
                child.busy = False
                self.running.pop(message.name, None)
                return message
            child.close()  # it died, or could not do it: whatever it was doing is done here
            if name is not None:
                work, _ = self.running.pop(name)
                return self._do(work)

    def build(self, works: list[Build], progress: Callable[[int], None] = lambda count: None) -> dict[str, Built]:
        """Engine files of many parts, as many at once as there are children; {name: what came of it}."""
        self.hire()
        waiting, made = list(works), {}
        while waiting or self.running or self.here:
            while waiting and self.free > 0:
                self.start(waiting.pop(0))
            done = self._next()
            assert isinstance(done, Built)
            made[done.name] = done
            progress(next(len(w.precisions) for w in works if w.name == done.name))
        return made

    def _do(self, work: TrainingTask | Build) -> Done | Built:
        from fourfold.rewrites.compress.distil import counted

        if isinstance(work, Build):
            return build(work)
        return train(work, self.task, self.pool, self.teacher, self.answers, counted(self.progress))

    def close(self) -> None:
        """End the children. Trainings under way are lost but for their checkpoints."""
        for child in self.children:
            child.close()
        self.children, self.running = [], {}


def train(
    work: TrainingTask, task: Task, pool: Examples, teacher: Teacher, answers: Tensor | None, progress: Callable[[int, float], None] | None
) -> Done:
    """Carry out one training in this process, with the threads that `distil.all_cores` gives."""
    from fourfold.rewrites.compress.distil import recover, snapshot
    from fourfold.structure.discover import hidden

    done = recover(
        work.student, work.subject, task, pool, work.schedule, teacher=teacher, answers=answers, pairs=work.pairs, hidden=hidden,
        checkpoint=work.checkpoint, progress=progress, limit=work.limit,
    )  # fmt: skip
    return Done(work.name, snapshot(work.student), done, work.limit.changes if work.limit else [])


def _plain(task: Task) -> Task:
    """The task without its metric and decoder, which are functions that cannot be sent: a training reads losses only."""
    return replace(task, metric=None, decoder=None)  # type: ignore[arg-type]


class Child:
    """A subprocess and the thread that reads from it."""

    def __init__(self, messages: queue.Queue[tuple[Child, object]]) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p) or env.get("PYTHONPATH", "")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fourfold.jobs.optimize.crew"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env,
            start_new_session=True,
        )  # fmt: skip
        self.alive, self.busy = True, False
        threading.Thread(target=self._read, args=(messages,), daemon=True).start()

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        write(self.process.stdin, data)

    def _read(self, messages: queue.Queue[tuple[Child, object]]) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(Exception):
            while True:
                messages.put((self, pickle.loads(read(self.process.stdout))))
        messages.put((self, None))

    def close(self) -> None:
        if self.alive:
            self.alive = self.busy = False
            with contextlib.suppress(OSError):
                self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError, ValueError):
                    if pipe is not None and pipe is self.process.stdin:
                        pipe.close()


def write(file: IO[bytes], data: bytes) -> None:
    """One message: its length, then its bytes."""
    file.write(SIZE.pack(len(data)))
    file.write(data)
    file.flush()


def read(file: IO[bytes]) -> bytes:
    """The next message. Raises EOFError at the end."""
    head = file.read(SIZE.size)
    if len(head) < SIZE.size:
        raise EOFError
    data = file.read(SIZE.unpack(head)[0])
    if len(data) < SIZE.unpack(head)[0]:
        raise EOFError
    return data


def main() -> None:
    """The child: what all trainings share first, then trainings one by one, until the parent's end of the pipe closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    told: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                told.put(read(sys.stdin.buffer))
        os._exit(0)  # the parent is gone

    threading.Thread(target=listen, daemon=True).start()
    from fourfold.rewrites.compress.distil import Teacher, counted, use_threads

    use_threads(1)
    lock = threading.Lock()

    def say(message: object) -> None:
        with lock:
            write(out, pickle.dumps(message, protocol=5))

    shared: dict[str, Any] = {}
    teacher: Any = None
    while True:
        work = pickle.loads(told.get())
        if isinstance(work, dict):
            shared, subject = work, work["subject"]
            teacher = Teacher(subject, shared["teacher"] if shared["teacher"] is not None else subject.module, shared["task"])
            continue
        try:
            if isinstance(work, Build):
                say(build(work))
            else:
                say(train(work, shared["task"], shared["pool"], teacher, shared["answers"], every(counted(say))))
        except FourfoldError:
            say("failed")  # told by the parent, which meets the same error when it tries


def every(progress: Callable[[int, float], None], seconds: float = 0.3) -> Callable[[int, float], None]:
    """`progress` at most once in so many seconds."""
    import time

    last = time.monotonic()

    def tick(step: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > seconds:
            last = time.monotonic()
            progress(step, loss)

    return tick


if __name__ == "__main__":
    from fourfold.jobs.optimize import crew  # under its own name, so that what is sent is of the same classes there and here

    crew.main()
