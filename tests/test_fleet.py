"""Gangs on a real Ray cluster: whole slices, a killed rank brings the whole gang back to the same bits, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="needs pip install 'fourfold[fleet]'")
ROOT = Path(__file__).resolve().parent.parent
TRAINING = """
import os, sys, time
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank, world, path = dist.get_rank(), dist.get_world_size(), sys.argv[1]
weights, step = torch.zeros(8), 0
if os.path.exists(path):
    held = torch.load(path)
    weights, step = held["weights"], int(held["step"])
while step < 30:
    gradient = torch.randn(8, generator=torch.Generator().manual_seed(1000 * step + rank))
    dist.all_reduce(gradient)
    weights, step = weights - 0.1 * (gradient / world + weights), step + 1
    if rank == 0:
        torch.save({"weights": weights, "step": torch.tensor(step)}, path + ".part")
        with open(path + ".loss", "a") as file:
            file.write(f"{step} {float(weights.square().sum()).hex()}\\n")
        os.replace(path + ".part", path)
    dist.barrier()
    time.sleep(0.05)
"""


class Fleet:
    """The command line on a fleet of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "FOURFOLD_FLEET": str(folder / "fleet.json"), "PYTHONPATH": str(ROOT)}

    def ask(self, *words: str) -> tuple[int, dict[str, object], str]:
        done = subprocess.run([sys.executable, "-m", "fourfold", "fleet", *words], capture_output=True, text=True, env=self.environment,
                              cwd=self.folder, timeout=300)
        return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr

    def job(self, number: int) -> dict[str, object]:
        jobs = self.ask("status", "--json")[1]["jobs"]
        assert isinstance(jobs, list)
        return next(row for row in jobs if row["job"] == number)

    def curve(self, name: str) -> list[str]:
        """Losses by step; a step that two generations reached must have been the same."""
        lines = (self.folder / f"{name}.loss").read_text().splitlines()
        assert len({line.split()[0] for line in lines}) == len(set(lines))
        return sorted(set(lines), key=lambda line: int(line.split()[0]))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("fleet"))
    (made.folder / "train.py").write_text(TRAINING)
    code, found, errors = made.ask("up", "--devices", "4", "--tenant", "b=3", "--json")
    assert code == 0, errors
    family = psutil.Process(json.loads((made.folder / "fleet.json").read_text())["pid"])
    members = [family, *family.children(recursive=True)]
    yield made
    assert made.ask("down")[0] == 0
    until = time.monotonic() + 20
    while time.monotonic() < until and any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in members):
        time.sleep(0.1)
    assert not [one for one in members if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert made.ask("status")[2].startswith("error: No fleet is up.")


def trained(fleet: Fleet, name: str, kill: int | None) -> dict[str, object]:
    code, found, errors = fleet.ask("submit", "--ranks", "4", "--json", "--", sys.executable, "train.py", name)
    assert code == 0, errors
    number = found["job"]
    assert isinstance(number, int)
    until, killed = time.monotonic() + 240, kill is None
    while time.monotonic() < until:
        row = fleet.job(number)
        if not killed and (fleet.folder / name).exists() and isinstance(row["pids"], list) and row["pids"]:
            os.kill(row["pids"][kill or 0], signal.SIGKILL)
            killed = True
        if row["state"] in ("done", "failed"):
            return row
        time.sleep(0.05)
    raise AssertionError("the gang did not end")


@pytest.mark.parametrize("rank", [2, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (0, 1, 3))])
def test_a_killed_rank_brings_the_whole_gang_back_to_the_same_bits(fleet: Fleet, rank: int) -> None:
    if not (fleet.folder / "whole").exists():
        assert trained(fleet, "whole", None)["restarts"] == 0
    row = trained(fleet, f"killed{rank}", rank)
    assert row["state"] == "done" and row["restarts"] == 1 and row["generation"] == 2, row
    assert fleet.curve(f"killed{rank}") == fleet.curve("whole") and len(fleet.curve("whole")) == 30


def test_a_program_that_fails_is_tried_again_and_told_in_words(fleet: Fleet) -> None:
    code, row, _ = fleet.ask("submit", "--ranks", "2", "--restarts", "1", "--wait", "--json", "--", sys.executable, "-c",
                             "import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)")
    assert code == 5 and row["state"] == "failed" and "rank 1 ended with status 3, after 1 restarts" in str(row["why"])


def test_a_slice_larger_than_the_fleet_is_refused_and_holds_nothing(fleet: Fleet) -> None:
    code, _, errors = fleet.ask("submit", "--ranks", "5", "--", "true")
    assert code == 2 and errors.startswith("error: A gang of 5 ranks on a fleet of 4 places.\nAsk for at most 4")
    assert fleet.ask("status", "--json")[1]["free"] == 4
    assert "A fleet of 4 places is up" in fleet.ask("up")[2]


def test_without_a_fleet_the_words_say_so(tmp_path: Path) -> None:
    alone = Fleet(tmp_path)
    code, _, errors = alone.ask("status")
    assert code == 6 and errors.splitlines() == ["error: No fleet is up.", "Start one: fourfold fleet up --devices 4"]
