"""A small network on arrays, by a factory of the user's own: what is printed at the end can be done, and a result that cannot be kept is an error."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FACTORY = """
import sys, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 2))

    def forward(self, x):
        return self.layers(x)

def make():
    torch.manual_seed(0)
    return Net()

def once():
    if "fourfold.runtime.afresh" in sys.orig_argv:
        raise RuntimeError("made once, and never again")
    net = make()
    net.of_no_use = lambda: 0   # not data: only the factory can make it again
    return net
"""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the factory's module and rows of numbers that its network labels itself."""
    import torch

    place = tmp_path_factory.mktemp("arrays")
    (place / "tiny_factory.py").write_text(FACTORY)
    found: dict[str, object] = {"__name__": "tiny_factory"}
    exec(FACTORY, found)
    x = np.random.default_rng(0).normal(size=(1200, 16)).astype(np.float32)
    with torch.no_grad():
        y = found["make"]()(torch.from_numpy(x)).argmax(1).numpy()  # type: ignore[operator]
    np.savez(place / "rows.npz", x=x, y=y)
    np.savez(place / "new.npz", x=x[:7])
    return place


ASKED = "--data rows.npz --floor 60% --objective memory --budget 12s --engines torch --progress none"


def fourfold(room: Path, line: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(room), *sys.path]), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "fourfold", *shlex.split(line)], cwd=room, env=env, capture_output=True, text=True, check=False)


@pytest.mark.whole
def test_what_is_printed_after_saving_fits_arrays_and_the_users_own_code(room: Path) -> None:
    done = fourfold(room, f"optimize tiny_factory:make {ASKED} --out cheap")
    assert done.returncode == 0 and "Saved in cheap" in done.stdout, done.stderr
    told = dict(line.strip().split(": ", 1) for line in done.stdout.split("Saved in cheap. Next:")[1].strip().splitlines())
    assert told["use"] == "fourfold predict cheap --data new.npz --trust tiny_factory"
    used = fourfold(room, told["use"].removeprefix("fourfold "))
    assert used.returncode == 0 and len(used.stdout.split()) == 7, used.stderr
    assert all(told[key].endswith(" --trust tiny_factory") for key in ("check on new data", "export", "on another machine"))
    assert "trust=['tiny_factory']" in told["in Python"] and "fourfold race cheap --trust tiny_factory" in done.stdout
    checked = fourfold(room, told["check on new data"].removeprefix("fourfold ").replace("labelled.npz", "rows.npz") + " --budget 3s")
    assert checked.returncode in (0, 3, 4) and "floor" in checked.stdout, checked.stderr


@pytest.mark.whole
def test_a_result_that_could_not_be_saved_is_an_error_in_two_lines(room: Path) -> None:
    done = fourfold(room, f"optimize tiny_factory:once {ASKED} --out lost")
    assert done.returncode == 1 and "aved in" not in done.stdout
    assert len(done.stderr.strip().splitlines()) == 2 and "made once" in done.stderr and "not written to lost" in done.stderr
    assert (room / "lost" / "report.json").exists() and not (room / "lost" / "manifest.json").exists()


@pytest.mark.slow
def test_the_journal_is_bounded_and_a_rerun_goes_straight_to_saving(room: Path) -> None:
    def asked(budget: int) -> subprocess.CompletedProcess[str]:
        done = fourfold(room, f"optimize tiny_factory:make {ASKED.replace('12s', f'{budget}s')} --out again")
        assert done.returncode == 0, done.stderr
        return done

    def trained() -> int:
        lines = [json.loads(line) for path in folder.glob("journal-*.jsonl") for line in path.read_text().splitlines()]
        return sum(str(line.get("key", "")).startswith("train:") for line in lines)

    folder = room / ".again.fourfold"
    for number in range(4):                                            # earlier searches of the same name, and what they left
        (folder / "engines" / f"c{number}").mkdir(parents=True, exist_ok=True)
        (folder / f"journal-{number:016x}.jsonl").write_text('{"event": "started"}\n')
        (folder / f"{number:016x}-{number:016x}.safetensors").write_bytes(b"x" * 100)
    asked(11)
    assert not list((folder / "engines").glob("c?"))
    asked(12)
    assert len(list(folder.glob("journal-*.jsonl"))) == 3              # this one and two before
    before, steps = {path.name for path in folder.iterdir()}, trained()
    asked(12)
    assert trained() == steps and {path.name for path in folder.iterdir()} == before
