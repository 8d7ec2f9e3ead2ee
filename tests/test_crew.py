"""Trainings beside one another: the same weights as here, whatever happens to a child; no child outlives its parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fourfold.datasets.examples import Examples
from fourfold.datasets.task import Task, metric_named
from fourfold.frontends.subject import Subject
from fourfold.jobs.optimize.crew import Crew, train
from fourfold.rewrites.compress._bench import TrainingTask
from fourfold.rewrites.compress.distil import Limit, Teacher, TrainingSchedule, recover, snapshot, use_threads


def material() -> tuple[Task, Examples, Subject, torch.Tensor]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)).astype(np.float32)
    pool = Examples({"x": x}, None, np.ones(400, np.int64), {"x": 0}, None, np.arange(400))
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return Task("classification", None, metric_named("accuracy", "classification")), pool, Subject(net, {}, ("x",)), torch.from_numpy(x[:, :2] * 3)


def student(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def work(name: str, subject: Subject, steps: int = 40, limit: Limit | None = None) -> TrainingTask:
    return TrainingTask(name, student(len(name)), subject, TrainingSchedule(steps, 16, hidden_weight=0, bf16=False), limit, None)


@pytest.fixture
def one_thread():
    use_threads(1)
    yield
    use_threads(None)


def crew_of(lanes: int) -> tuple[Crew, Subject]:
    task, pool, subject, answers = material()
    return Crew(lanes, task, pool, Teacher(subject, subject.module, task), answers, lambda _: None), subject


def trained_here(name: str) -> dict[str, torch.Tensor]:
    task, pool, subject, answers = material()
    return train(work(name, subject), task, pool, Teacher(subject, subject.module, task), answers, None).state


class Unsendable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.call = nn.Linear(6, 2), lambda x: x  # no child can be sent a lambda

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.inner(x))


@pytest.mark.whole
def test_children_train_to_the_same_weights_and_a_killed_child_costs_nothing(one_thread: None) -> None:
    crew, subject = crew_of(2)
    crew.open()
    try:
        crew.start(replace(work("c", subject), student=Unsendable()))       # what cannot be sent is trained here
        assert not crew.running and crew.next().recovery.steps == 40
        assert crew.lanes == 2 and crew.free == 2
        crew.start(work("a", subject))
        crew.start(work("bb", subject, 100_000, Limit(60.0)))
        crew.running["bb"][1].process.kill()  # its training is done here in its stead
        crew.running["bb"][0].limit = None
        crew.running["bb"][0].schedule = replace(crew.running["bb"][0].schedule, steps=40)
        done = {d.name: d.state for d in (crew.next(), crew.next())}
        assert crew.free == 1
    finally:
        pids = [c.process.pid for c in crew.children]
        crew.close()
    for name in ("a", "bb"):
        assert all(torch.equal(v, done[name][k]) for k, v in trained_here(name).items())
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.whole
def test_engine_files_made_by_children_are_those_made_here(tmp_path: Path) -> None:
    from fourfold.engines import engine
    from fourfold.engines.base import Signature
    from fourfold.jobs.optimize.builds import Build, build

    _, _, subject, _ = material()
    few = [{"x": np.random.default_rng(k).normal(size=(size, 6)).astype(np.float32)} for k, size in enumerate((4, 3))]
    signature = Signature.of(("x",), few)

    def of(name: str, module: nn.Module, folder: Path) -> Build:
        return Build(name, module, replace(subject, module=module), signature, few, engine("onnxruntime"), ["fp32", "no such precision"], folder)

    told: list[int] = []
    crew = Crew.of(2)
    try:
        works = [of("a", student(1), tmp_path / "a"), of("b", student(2), tmp_path / "b"), of("c", Unsendable(), tmp_path / "c")]
        made = crew.build(works, told.append)
    finally:
        crew.close()
    here = build(of("a", student(1), tmp_path / "here"))
    assert told == [2, 2, 2] and set(made) == {"a", "b", "c"}
    assert made["a"].made["fp32"].files == here.made["fp32"].files and made["a"].made["no such precision"].reason
    for name in made["a"].made["fp32"].files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
        assert (tmp_path / "c" / name).is_file()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc")
def test_children_end_with_a_killed_parent() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_crew as t; c, s = t.crew_of(2); c.open()\n"
        "c.start(t.work('a', s, 10_000_000)); print(*[k.process.pid for k in c.children], flush=True); c.next()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(p) for p in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    end = time.monotonic() + 600
    while any(_runs(p) for p in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(_runs(p) for p in pids)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_clock_cuts_a_training_and_its_record_repeats_it(one_thread: None) -> None:
    task, pool, subject, answers = material()
    teacher = Teacher(subject, subject.module, task)
    first, again = student(1), student(1)
    limit = Limit(1.5)
    schedule = TrainingSchedule(1_000_000, 16, hidden_weight=0, bf16=False)
    done = recover(first, subject, task, pool, schedule, teacher=teacher, answers=answers, limit=limit)
    assert 4 < done.steps < 1_000_000 and limit.changes
    repeat = recover(again, subject, task, pool, schedule, teacher=teacher, answers=answers, limit=Limit(0.0, limit.changes, True))
    assert repeat.steps == done.steps
    assert all(torch.equal(v, snapshot(again)[k]) for k, v in snapshot(first).items())
