"""`fourfold plan` as a user meets it: what it prints and writes, and every mistake in two lines with its exit code."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fourfold
from fourfold.cli import main
from fourfold.decisions.schedule.problem import Answer, Schedule
from fourfold.jobs.planning import names
from fourfold.plans import Plan

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs" / "plan.md"
QUICK = ("--solver", "expert", "--evaluations", "50", "--progress", "none")


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.run(["plan", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    """Exit code and message of a mistake: one or two lines, no traceback, nothing on stdout."""
    code, out, err = ran(capsys, "--progress", "none", *arguments)
    assert code in (2, 3) and out == "", (code, out, err)
    assert 1 <= len(err.strip().splitlines()) <= 2 and "Traceback" not in err and err.startswith("error: ")
    return code, err


def net(path: Path, *, opset: int = 17, batch: Any = 2, nodes: Any = None, width: int = 4) -> Path:
    """x → MatMul → Relu → y, in a file."""
    made = nodes or [helper.make_node("MatMul", ["x", "w"], ["a"], "first"), helper.make_node("Relu", ["a"], ["y"], "second")]
    weight = onnx.numpy_helper.from_array(np.ones((width, width), np.float32), "w")
    graph = helper.make_graph(made, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def valid(folder: Path) -> Plan:
    plan = Plan.load(folder)
    problem = Schedule(plan.graph, plan.system, plan.objective)
    answer = Answer(plan.group, plan.place, plan.priority)
    assert problem.violations(answer) == [] and problem.cost(answer) == pytest.approx(plan.cost)
    return plan


# ---- what it does

def test_text_and_files(capsys, folder):
    code, out, err = ran(capsys, net(folder / "net.onnx"), "--machine", "p100x2", *QUICK)
    assert code == 0 and err == "" and "net: 2 ops in 1 task (" in out and "No plan can take less than" in out
    assert "Solvers" in out and "default" in out and "heft" in out and "gpu1" in out and "Wrote" in out and "fourfold run" not in out
    assert valid(folder / "plan").solver == "expert"
    assert {"plan.json", "graph.npz", "system.toml", "trace.json", "plan.html"} <= {file.name for file in (folder / "plan").iterdir()}


@pytest.mark.parametrize("objective, unit", [("latency", "s"), ("throughput", "s"), ("energy", "J"), ("memory", "B")])
def test_json_is_one_document(capsys, folder, objective, unit):
    code, out, err = ran(capsys, net(folder / "net.onnx"), "--machine", "p100x2", *QUICK, "--json", "--objective", objective, "--out", "deep/plan")
    document = json.loads(out)
    assert code == 0 and err == "" and document["unit"] == unit and document["objective"] == objective and document["bound"] <= document["cost"]
    assert {row["solver"] for row in document["table"]} == {"default", "expert", "heft"} and document["out"] == "deep/plan"
    assert document["saving"] == pytest.approx(1 - document["cost"] / document["before"])
    assert valid(folder / "deep" / "plan").hash == document["hash"]


@pytest.mark.parametrize("solver", names())
def test_every_solver(capsys, folder, solver):
    for need in {"metis": ["pymetis"], "exact": ["ortools"]}.get(solver, []):
        pytest.importorskip(need)
    code, out, _ = ran(capsys, net(folder / "net.onnx"), "--machine", "p100x2", "--solver", solver, "--evaluations", 200, "--json")
    document = json.loads(out)
    assert code == 0, out
    assert solver == "auto" or document["solver"] == solver
    valid(folder / "plan")


def test_this_machine_uncalibrated_is_said(capsys, folder):
    code, out, _ = ran(capsys, net(folder / "net.onnx"), *QUICK)
    assert code == 0 and "not calibrated" in out and "fourfold calibrate" in out


def test_a_machine_file_of_this_machine_is_used(capsys, folder):
    from fourfold.machine import Machine

    (folder / ".fourfold").mkdir()
    text = (Path(fourfold.__file__).parent / "systems" / "cpux2.toml").read_text()
    Machine.here(workers=2).write(folder / ".fourfold" / "machine.toml")
    code, out, _ = ran(capsys, net(folder / "net.onnx"), *QUICK, "--json")
    assert code == 0 and len(json.loads(out)["devices"]) == 2
    (folder / "mine.toml").write_text(text)
    code, out, _ = ran(capsys, net(folder / "net.onnx"), "--machine", "mine.toml", *QUICK, "--json")
    assert code == 0 and json.loads(out)["system"]["fingerprint"] == ""


def test_inputs_and_sizes(capsys, folder):
    file = net(folder / "net.onnx", batch="batch")
    assert ran(capsys, file, "--dims", "batch=3", *QUICK, "--out", "a")[0] == 0
    np.savez(folder / "in.npz", x=np.zeros((5, 4), np.float32))
    assert ran(capsys, file, "--inputs", "in.npz", *QUICK, "--out", "b")[0] == 0
    shapes = [Plan.load(folder / name).capture["inputs"] for name in "ab"]
    assert [row["shape"] for rows in shapes for row in rows] == [[3, 4], [5, 4]]
    np.savez(folder / "unnamed.npz", np.zeros((6, 4), np.float32))
    assert ran(capsys, file, "--inputs", "unnamed.npz", *QUICK, "--out", "c")[0] == 0
    assert Plan.load(folder / "c").capture["inputs"][0]["shape"] == [6, 4]


@pytest.mark.apart                                                      # a signal too many would end all that this process still has to test
def test_ctrl_c_writes_the_best_so_far(capsys, folder, monkeypatch):
    import signal

    from fourfold.decisions.schedule.heft import Heft

    def interrupted(self, problem, budget, seed=0):
        signal.raise_signal(signal.SIGINT)
        assert budget.exhausted
        return inner(self, problem, budget, seed)

    inner = Heft.solve
    monkeypatch.setattr(Heft, "solve", interrupted)
    code, out, _ = ran(capsys, net(folder / "net.onnx"), "--machine", "p100x2", "--solver", "anneal", "--budget", "10min", "--progress", "none")
    assert code == 130 and "Interrupted" in out and valid(folder / "plan").interrupted


def test_the_page_s_code_runs(capsys, folder):
    text = PAGE.read_text(encoding="utf-8")
    net(folder / "net.onnx")
    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.ones(2, 3),)), folder / "net.pt2")
    np.savez(folder / "example.npz", input=np.ones((2, 3), np.float32))
    blocks = re.findall(r"^<!-- runs -->\n```(\w+)\n(.*?)^```", text, re.M | re.S)
    assert sorted(language for language, _ in blocks) == ["python", "sh"]
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "plan.md", "exec"), {})
        else:
            for line in code.splitlines():
                assert main.run(shlex.split(line)[1:]) == 0, capsys.readouterr()


# ---- what can be wrong: the model

def test_no_such_model(capsys, folder):
    assert "nothing.onnx" in refused(capsys, "nothing.onnx")[1]
    assert "nothing.pt2" in refused(capsys, "nothing.pt2")[1]
    assert "there is no folder nowhere" in refused(capsys, "nowhere")[1]
    assert "cannot be imported" in refused(capsys, "no.such.module:factory")[1]
    (folder / "model.pt").write_bytes(b"\x80\x02.")
    assert "pickle" in refused(capsys, "model.pt")[1]


def test_a_cyclic_file(capsys, folder):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Relu", ["a"], ["b"], "two"),
             helper.make_node("MatMul", ["a", "w"], ["y"], "three")]
    code, told = refused(capsys, net(folder / "net.onnx", nodes=nodes))
    assert code == 2 and "cycle" in told and "one" in told and "two" in told


def test_malformed_files(capsys, folder):
    net(folder / "net.onnx")
    (folder / "short.onnx").write_bytes((folder / "net.onnx").read_bytes()[:-40])
    (folder / "text.onnx").write_text("hello")
    (folder / "empty.onnx").write_bytes(b"")
    for name in ("short", "text", "empty"):
        assert f"{name}.onnx" in refused(capsys, f"{name}.onnx")[1]
    stray = [helper.make_node("MatMul", ["x", "nobody"], ["a"], "first"), helper.make_node("Relu", ["a"], ["y"], "second")]
    assert "nobody" in refused(capsys, net(folder / "net.onnx", nodes=stray))[1]
    unknown = [helper.make_node("Frobnicate", ["x"], ["y"], "first")]
    assert "Frobnicate" in refused(capsys, net(folder / "net.onnx", nodes=unknown))[1]


@pytest.mark.parametrize("opset", [3, 999])
def test_an_opset_out_of_range(capsys, folder, opset):
    code, told = refused(capsys, net(folder / "net.onnx", opset=opset))
    assert code == 2 and f"opset {opset}" in told


def test_a_missing_weights_file(capsys, folder):
    model = onnx.load(net(folder / "net.onnx", width=64))
    onnx.save_model(model, folder / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert ran(capsys, "net.onnx", *QUICK)[0] == 0
    (folder / "weights.bin").unlink()
    code, told = refused(capsys, "net.onnx")
    assert code == 2 and "weights.bin" in told and "'w'" in told


def test_sizes_are_asked_for_by_name(capsys, folder):
    file = net(folder / "net.onnx", batch="batch")
    assert "--dims batch=" in refused(capsys, file)[1]
    assert "'bach'" in refused(capsys, file, "--dims", "batch=2,bach=3")[1]
    for wrong in ("batch", "batch=0", "batch=x", "=3", "batch=-1"):
        assert "--dims" in refused(capsys, file, "--dims", wrong)[1]


def test_inputs_that_do_not_fit(capsys, folder):
    file = net(folder / "net.onnx")
    assert "There is no file" in refused(capsys, file, "--inputs", "no.npz")[1]
    (folder / "bad.npz").write_bytes(b"PK\x03\x04broken")
    assert "bad.npz" in refused(capsys, file, "--inputs", "bad.npz")[1]
    np.savez(folder / "object.npz", x=np.array([{}], dtype=object))
    assert "object.npz" in refused(capsys, file, "--inputs", "object.npz")[1]
    np.savez(folder / "other.npz", z=np.zeros(3))
    assert "'z'" in refused(capsys, file, "--inputs", "other.npz")[1]
    np.savez(folder / "shape.npz", x=np.zeros((2, 7), np.float32))
    assert "input x is float32[2, 7]" in refused(capsys, file, "--inputs", "shape.npz")[1]
    np.savez(folder / "rank.npz", x=np.zeros(3, np.float32))
    assert "1 dimensions" in refused(capsys, file, "--inputs", "rank.npz")[1]
    assert "one of them" in refused(capsys, file, "--inputs", "object.npz", "--data", "d.csv")[1]
    assert "training" in refused(capsys, file, "--train")[1]


def test_a_pt2_file_that_would_run_code_is_not_opened(capsys, folder):
    import zipfile

    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.ones(2, 3),)), folder / "net.pt2")
    assert ran(capsys, "net.pt2", *QUICK)[0] == 0
    bomb = b"cbuiltins\nopen\n(Vpwned\nVw\ntR."                       # opens a file for writing when it is unpickled
    with zipfile.ZipFile(folder / "net.pt2") as old, zipfile.ZipFile(folder / "bomb.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, bomb if name.endswith("sample_inputs/model.pt") else old.read(name))
    code, told = refused(capsys, "bomb.pt2")
    assert code == 2 and "would run when opened" in told and not (folder / "pwned").exists()
    (folder / "text.pt2").write_text("hello")
    assert "damaged" in refused(capsys, "text.pt2")[1]


# ---- what can be wrong: the machine, the size, the words

MACHINE = '[[device]]\nnames = ["a", "b"]\npeak = { float32 = "1 TFLOP/s" }\nbandwidth = "100 GB/s"\nmemory = "MEMORY"\nlaunch = "5 us"\n'
LINK = '[[link]]\na = "a"\nb = "b"\nlatency = "5 us"\nbandwidth = "10 GB/s"\n'


@pytest.mark.parametrize("change, told", [
    (("100 GB/s", "100 GB"), "unit of size, not of rate"), (('"100 GB/s"', "100"), "has no unit"), (("5 us", "5 parsecs"), "not a unit"),
    (('a = "a"', 'a = "c"'), "no such device"), ((LINK, ""), "no links lead from 'a' to 'b'"), (("[[device]]", "[[device"), "not TOML"),
    (("launch", "lunch"), "unknown key 'lunch'"),
])
def test_machine_files(capsys, folder, change, told):
    file = folder / "machine.toml"
    text = (MACHINE + LINK).replace("MEMORY", "1 GB")
    file.write_text(text)
    net(folder / "net.onnx")
    assert ran(capsys, "net.onnx", "--machine", file, *QUICK)[0] == 0
    file.write_text(text.replace(*change))
    code, message = refused(capsys, "net.onnx", "--machine", file)
    assert code == 2 and told in message


def test_no_such_machine(capsys, folder):
    code, told = refused(capsys, net(folder / "net.onnx"), "--machine", "p100x3")
    assert code == 2 and "p100x3" in told and "p100x4" in told


def test_a_model_that_fits_no_device(capsys, folder):
    file = folder / "machine.toml"
    file.write_text((MACHINE + LINK).replace("MEMORY", "3 kB"))
    code, told = refused(capsys, net(folder / "net.onnx", width=32), "--machine", file)          # 4 kB of weights and 256 bytes of input
    assert code == 3 and "first needs 4,352 bytes" in told and "1,352 more" in told
    file.write_text((MACHINE + LINK).replace("MEMORY", "1 kB"))
    code, told = refused(capsys, "net.onnx", "--machine", file)
    assert code == 3 and "2,352 more" in told and "together" in told


def test_words_that_are_not_known(capsys, folder):
    net(folder / "net.onnx")
    code, told = refused(capsys, "net.onnx", "--solver", "heff")
    assert code == 2 and "There is no solver 'heff'" in told and "Did you mean 'heft'" in told and "anneal" in told
    code, told = refused(capsys, "net.onnx", "--objective", "speed")
    assert code == 2 and "There is no objective 'speed'" in told and "latency" in told
    assert refused(capsys, "net.onnx", "--budget", "soon")[0] == 2
    assert refused(capsys, "net.onnx", "--progress", "loud")[0] == 2
    assert refused(capsys, "net.onnx", "--frob")[0] == 2


def test_a_folder_of_something_else_is_not_written_to(capsys, folder):
    (folder / "plan").mkdir()
    (folder / "plan" / "plan.json").write_text('{"sites": []}')
    code, told = refused(capsys, net(folder / "net.onnx"), *QUICK)
    assert code == 2 and "written by something else" in told


def test_errors_are_one_document_too(capsys, folder):
    code, out, err = ran(capsys, "nothing.onnx", "--json")
    assert code == 2 and err == "" and json.loads(out)["error"]["exit_code"] == 2


# ---- functions named by the user

def test_functions_of_a_module(capsys, folder, monkeypatch):
    (folder / "mine_of_plan.py").write_text("import torch\n\ndef net():\n    return torch.nn.Linear(4, 4)\n\ndef three():\n    return 3\n\n"
                                            "def bad():\n    raise OSError('no weights')\n\nvalue = 1\n\ndef needs(x, y):\n    return x\n")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("mine_of_plan", None)
    assert "input" in refused(capsys, "mine_of_plan:net")[1]
    assert ran(capsys, "mine_of_plan:net", "--dims", "input.0=2,input.1=4", *QUICK)[0] == 0
    assert "returned int" in refused(capsys, "mine_of_plan:three")[1]
    assert "no weights" in refused(capsys, "mine_of_plan:bad")[1]
    assert "not a function" in refused(capsys, "mine_of_plan:value")[1]
    assert "--inputs" in refused(capsys, "mine_of_plan:needs")[1]
    assert "has no 'nobody'" in refused(capsys, "mine_of_plan:nobody")[1]
