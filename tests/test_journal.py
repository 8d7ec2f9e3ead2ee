"""The diary: killed at any moment, a rerun reaches the same result; nothing half-written is ever believed."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold.errors import FourfoldError, InputError
from fourfold.journal import Journal

WORK = '''
import sys, time
from fourfold.journal import Journal

def step(i, x):
    time.sleep(0.004)
    return {"x": (x * 31 + i) % 1000003, "inf": float("inf")}

with Journal(sys.argv[1], {"job": 1}) as journal:
    x = 7
    for i in range(30):
        x = journal.once(f"step {i}", lambda: step(i, x))["x"]
        if i % 10 == 9:
            import torch

            g = torch.Generator().manual_seed(x)
            x += int(journal.tensors(f"weights {i}", lambda: {"w": torch.rand(50, 50, generator=g)})["w"].sum())
    print(x)
'''


def run(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WORK, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def valid_lines(folder: Path) -> list[dict]:
    lines = [line for path in folder.glob("journal-*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return [json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines]


def test_killed_at_random_moments_a_rerun_reaches_the_same_result(tmp_path) -> None:
    out, err = run(tmp_path / "whole").communicate()
    assert out, err
    chance, kills = random.Random(5), 0
    while kills < 8:
        process = run(tmp_path / "killed")
        journal = next(iter((tmp_path / "killed").glob("journal-*")), None)
        size = journal.stat().st_size if journal else 0
        while process.poll() is None:                                  # let it start writing, then a little more
            journal = next(iter((tmp_path / "killed").glob("journal-*")), None)
            if journal and journal.stat().st_size > size:
                break
            time.sleep(0.001)
        time.sleep(chance.random() * 0.03)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        valid_lines(tmp_path / "killed")
    again, err = run(tmp_path / "killed").communicate()
    assert again == out, err
    assert kills >= 3
    keys = [line["key"] for line in valid_lines(tmp_path / "killed") if "key" in line]
    assert len(keys) == len(set(keys)) == 33                           # no step was finished twice


def test_once_computes_once_and_returns_what_json_holds(tmp_path) -> None:
    calls = []

    def work() -> dict:
        calls.append(1)
        return {"a": (1, np.float32(0.5), np.int64(3)), "nan": math.nan, "array": np.arange(3), "path": Path("x"), "flag": np.bool_(True)}

    with Journal(tmp_path, "job") as journal:
        first = journal.once("k", work)
        first["a"].append("spoilt by the caller")
        second = journal.once("k", work)
    with Journal(tmp_path, "job") as journal:
        third = journal.once("k", work)
        assert "k" in journal and "other" not in journal
    assert len(calls) == 1 and second["a"] == third["a"] == [1, 0.5, 3] and math.isnan(third["nan"])
    assert third["array"] == [0, 1, 2] and third["path"] == "x" and third["flag"] is True


def test_tensors_come_back_the_same_and_damage_is_computed_again(tmp_path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    made = []

    def work() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"z": base, "view": base[1], "turned": base.T, "same": base, "half": base.bfloat16()}

    def check(values: dict[str, torch.Tensor]) -> None:
        assert list(values) == ["z", "view", "turned", "same", "half"]
        assert all(torch.equal(values[name], wanted) and values[name].dtype == wanted.dtype for name, wanted in work().items())

    with Journal(tmp_path, "job") as journal:
        check(journal.tensors("t", work))
        check(journal.tensors("t", work))
    count = len(made)
    file = next(tmp_path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with Journal(tmp_path, "job") as journal:
        check(journal.tensors("t", work))
    assert len(made) == count + 2                                      # once to compute it again, once in the check
    file.unlink()
    with Journal(tmp_path, "job") as journal:
        check(journal.tensors("t", work))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("tail", [b'{"key":"b","val', b'{"key":"b","value":2}', b"\0\0\0\0"])
def test_a_torn_last_line_is_forgotten(tmp_path, tail: bytes) -> None:
    with Journal(tmp_path, "job") as journal:
        journal.once("a", lambda: 1)
        path = journal.path
    with open(path, "ab") as file:
        file.write(tail)
    with Journal(tmp_path, "job") as journal:
        assert "a" in journal and "b" not in journal
        assert journal.once("b", lambda: 3) == 3
    assert [line.get("key") for line in valid_lines(tmp_path)] == [None, "a", None, "b"]


def test_a_damaged_line_costs_its_own_step_only(tmp_path) -> None:
    with Journal(tmp_path, "job") as journal:
        for key in "abc":
            journal.once(key, lambda key=key: key)
        path = journal.path
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:5] + b"\xff" + lines[2][6:]
    path.write_bytes(b"\n".join(lines))
    with Journal(tmp_path, "job") as journal:
        assert ["a" in journal, "b" in journal, "c" in journal] == [True, False, True]


def test_another_job_starts_afresh_and_the_first_can_be_taken_up_again(tmp_path) -> None:
    with Journal(tmp_path, {"floor": 0.97}) as journal:
        journal.once("k", lambda: 1)
    with Journal(tmp_path, {"floor": 0.94}) as journal:
        assert journal.once("k", lambda: 2) == 2
    with Journal(tmp_path, {"floor": 0.97}) as journal:
        assert journal.once("k", lambda: 3) == 1


def test_a_step_that_raises_is_not_remembered(tmp_path) -> None:
    with Journal(tmp_path, "job") as journal:
        with pytest.raises(ZeroDivisionError):
            journal.once("k", lambda: 1 / 0)
        assert "k" not in journal and journal.once("k", lambda: 5) == 5
        with pytest.raises(InputError, match="JSON cannot hold"):
            journal.once("object", object)


def test_nested_steps_are_charged_once(tmp_path) -> None:
    with Journal(tmp_path, "job") as journal:
        def outer() -> int:
            time.sleep(0.05)
            return journal.once("inner", lambda: time.sleep(0.1) or 1)

        journal.once("outer", outer)
        seconds = {event["key"]: event["seconds"] for event in journal.events() if "key" in event}
    assert 0.1 <= seconds["inner"] < 0.2 and 0.05 <= seconds["outer"] < 0.1
    assert journal.elapsed == pytest.approx(sum(seconds.values())) and 0 <= journal.cpu < 0.1


def test_notes_make_a_timeline(tmp_path) -> None:
    with Journal(tmp_path, "job") as journal:
        journal.note("best so far", quality=0.97)
        journal.once("k", lambda: 1)
    with Journal(tmp_path, "job") as journal:
        events = journal.events()
    assert [event.get("event") or event["key"] for event in events] == ["started", "best so far", "k", "resumed"]
    assert events[1]["quality"] == 0.97 and [event["at"] for event in events] == sorted(event["at"] for event in events)


def test_two_runs_do_not_share_a_folder(tmp_path) -> None:
    with Journal(tmp_path, "job"), pytest.raises(InputError, match="already working"):
        Journal(tmp_path, "another job")
    Journal(tmp_path, "job").close()
    dead = subprocess.run([sys.executable, "-c", "import os, sys; from fourfold.journal import Journal; Journal(sys.argv[1], 'job'); os._exit(9)",
                           str(tmp_path)], check=False)
    assert dead.returncode == 9
    with Journal(tmp_path, "job") as journal:                          # the dead one's lock is taken over
        with pytest.raises(InputError):
            Journal(tmp_path, "job")
        journal.once("k", lambda: 1)
    with pytest.raises(InputError, match="closed"):
        journal.note("too late")


def test_a_lock_whose_process_id_is_used_again_is_stale(tmp_path) -> None:
    Journal(tmp_path, "job").close()
    import socket

    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "born": "1", "host": socket.gethostname()}))
    Journal(tmp_path, "job").close()
    (tmp_path / "lock").write_text("{torn")
    Journal(tmp_path, "job").close()


FULL = '''
import resource, sys, torch
from fourfold.errors import FourfoldError
from fourfold.journal import Journal

with Journal(sys.argv[1], "job") as journal:
    journal.once("kept", lambda: "x" * 1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    for work in (lambda: journal.once("big", lambda: "y" * 9000), lambda: journal.tensors("big", lambda: {"w": torch.zeros(9000)})):
        try:
            work()
        except FourfoldError as error:
            print(str(error).count("\\n"), "disk is full" in str(error))
    journal.once("small", lambda: "z")
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits on file size, which stand in for a full disk")
def test_a_full_disk_loses_nothing(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["1 True", "1 True"], done.stderr
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.safetensors"))
    valid_lines(tmp_path)
    with Journal(tmp_path, "job") as journal:
        assert journal.once("kept", lambda: 0) == "x" * 1000 and journal.once("small", lambda: 0) == "z" and "big" not in journal


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FourfoldError, match="Cannot make the folder"):
        Journal(tmp_path / "file" / "folder", "job")


def test_a_folder_keeps_its_latest_works_and_no_more_than_so_many_bytes(tmp_path) -> None:
    ids = []
    for number in range(5):
        with Journal(tmp_path, {"budget": number}) as journal:
            journal.tensors("rows", lambda: {"rows": torch.zeros(1000)})
        ids.append(journal.id)
        for path in tmp_path.glob(f"*{journal.id}*"):
            os.utime(path, (1000.0 + number, 1000.0 + number))
    (tmp_path / "thesis.txt").write_text("mine")
    with Journal(tmp_path, {"budget": 4}) as journal:
        (tmp_path / f"{journal.id}-{'0' * 16}.safetensors").write_bytes(b"left by a kill")
        journal.trim(2, 10**6)
        left = {path.name for path in tmp_path.iterdir()}
        assert {name for name in ids if any(name in one for one in left)} == set(ids[2:]) and "thesis.txt" in left
        assert f"{journal.id}-{'0' * 16}.safetensors" not in left
        assert journal.tensors("rows", lambda: pytest.fail("lost"))["rows"].shape == (1000,)
        journal.trim(2, 5000)
        left = {path.name for path in tmp_path.iterdir()}
        assert {name for name in ids if any(name in one for one in left)} == set(ids[3:])
    with Journal(tmp_path, {"budget": 3}) as journal:
        assert "rows" in journal
