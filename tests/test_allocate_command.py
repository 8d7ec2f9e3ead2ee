"""`fourfold allocate` as a user meets it: files, sizes, banks, plans, pages, and every mistake in two lines with its exit code."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fourfold
from fourfold import plans
from fourfold.cli import main
from fourfold.decisions.allocate._sources import of_file, written
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.problem import invented
from fourfold.errors import InputError
from fourfold.frontends.buffers import read_buffers
from fourfold.report.allocate import modules, page, size
from fourfold.units.parse import memory

SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "allocate"
EXAMPLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "buffers.csv").write_text(EXAMPLE)
    return tmp_path


def ran(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main.run(["allocate", "--progress", "none", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 2) -> str:
    """The message of a mistake: two lines, no traceback, nothing on stdout."""
    found, out, err = ran(capsys, *arguments)
    assert (found, out) == (code, "") and len(err.strip().splitlines()) == 2 and err.startswith("error: "), (found, out, err)
    return err


def test_a_file_that_fits(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = ran(capsys, "buffers.csv", "--capacity", "12", "--out", "offsets.csv", "--html", "map.html")
    assert code == 0 and "stand in 12 B" in out and "fills the capacity of 12 B to the last byte" in out and "so this one is optimal" in out
    again = of_file(folder / "offsets.csv")
    assert again.ids == ("b1", "b2", "b3", "b4", "b5") and (again.fixed >= 0).all()
    shown = (folder / "map.html").read_text()
    assert shown.count("<rect ") == 5 and "b3: 4 B at" in shown and "http" not in shown.replace("http-equiv", "")
    assert ran(capsys, "offsets.csv", "--capacity", "12")[0] == 0      # what was written is valid, and read as fixed


def test_without_a_capacity_the_least_is_asked_and_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, "buffers.csv", "--json")
    document = json.loads(out)
    assert code == 0 and (document["cost"], document["bound"], document["gap"], document["optimal"]) == (12, 12, 0, True)
    assert set(document["offsets"]) == {"b1", "b2", "b3", "b4", "b5"} and document["before"] == 12


def test_every_solver_can_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    from fourfold.registry import names

    for name in names("allocate"):
        code, out, err = ran(capsys, "buffers.csv", "--capacity", "12", "--solver", name, "--budget", "5s")
        assert code == 0 and "12 B" in out, (name, err)


def test_the_page_of_docs_names_every_solver() -> None:
    from fourfold.registry import names

    text = (Path(__file__).parent.parent / "docs" / "allocate.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text.partition("## Solvers")[2].partition("\n## ")[0], re.M)) == set(names("allocate"))


def test_alignment_holds_where_the_file_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(capsys, "buffers.csv", "--alignment", "32", "--json", "--solver", "greedy")
    assert code == 0 and {offset % 32 for offset in json.loads(out)["offsets"].values()} == {0} and json.loads(out)["bound"] == 68


def test_banks_by_size_and_by_name(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = ran(capsys, "buffers.csv", "--banks", "8,8", "--json")
    assert code == 0 and all(offset in (0, 4, 8, 12) for offset in json.loads(out)["offsets"].values())
    (folder / "banked.csv").write_text("id,lower,upper,size,bank\na,0,2,4,fast\nb,0,2,4,slow\nc,0,2,4,\n")
    code, out, _ = ran(capsys, "banked.csv", "--banks", "fast=4,slow=1K", "--json")
    assert code == 0 and json.loads(out)["offsets"]["a"] == 0 and json.loads(out)["memory"]["names"] == ["fast", "slow"]
    assert "no bank 'slow'" in refused(capsys, "banked.csv", "--banks", "fast=4,slaw=4")
    assert "no bank 'fast'" in refused(capsys, "banked.csv")
    assert "12 bytes, and the banks have 16" in refused(capsys, "buffers.csv", "--banks", "8,8", "--capacity", "12")


@pytest.mark.parametrize(("text", "words"), [
    ("", "is empty"),
    ("id,lower,upper,size\n", "no buffers"),
    ("b1,0,3,4\nb2,3,9,4\n", "has a column 'b1'|has no header"),
    ("0,0,3,4\n1,3,9,4\n", "has no header: its first line is 0,0,3,4"),
    ("id,lower,uper,size\na,0,3,4\n", "column 'uper'.*\n.*Did you mean upper"),
    ("id,lower,size\na,0,4\n", "lacks the column upper"),
    ("id,lower,upper,size,size\na,0,3,4,4\n", "column size twice"),
    ("id,lower,upper,size\na,0,3\n", "line 2: 3 cells for 4 columns"),
    ("id,lower,upper,size\na,0,3,4\na,0,3,4\n", "line 3: buffer 'a' is there already, on line 2"),
    ("id,lower,upper,size\n,0,3,4\n", "has no id"),
    ("id,lower,upper,size\na,0,3,4.5\n", "size is '4.5', not a whole number"),
    ("id,lower,upper,size\na,0,3,99999999999999999999\n", "beyond 64 bits"),
    ("id,lower,upper,size\na,3,3,4\n", r"empty life: \[3, 3\)"),
    ("id,lower,upper,size\na,3,1,4\n", "ends before it begins"),
    ("id,lower,upper,size\na,0,3,-4\n", "size -4"),
    ("id,lower,upper,size,alignment\na,0,3,4,0\n", "alignment 0"),
    ("id,lower,upper,size,offset,alignment\na,0,3,4,6,4\n", "fixed at 6, which is no multiple of its alignment 4"),
    ("id,lower,upper,size,offset\na,0,3,4,0\nb,2,5,4,2\n", "Buffers a and b are fixed at places that overlap while both live"),
    ("id,lower,upper,size,gaps\na,0,9,4,3+5\n", "gap .* cannot be read"),
    ("id,lower,upper,size,gaps\na,0,9,4,8-12\n", "not within its life"),
    ("id,lower,upper,size,gaps\na,0,9,4,2-4:0-9\n", "keeps its bytes"),
    ("id,lower,upper,size,alias\na,0,9,4,b\nb,0,9,4,a\n", "in a circle"),
    ("id,lower,upper,size,alias\na,0,9,4,zz\n", "no buffer has this id"),
    ("id,lower,upper,size\na,0,9,40\n", "(?s)a has 40 bytes, 28 more than the capacity of 12"),
])
def test_bad_files(capsys: pytest.CaptureFixture[str], folder: Path, text: str, words: str) -> None:
    (folder / "bad.csv").write_text(text)
    assert re.search(words, refused(capsys, "bad.csv", "--capacity", 12))


def test_bad_options(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "cannot be read" in refused(capsys, "missing.csv")
    assert "Did you mean 'greedy'" in refused(capsys, "buffers.csv", "--solver", "greed")
    assert "--capacity is '12 s'" in refused(capsys, "buffers.csv", "--capacity", "12 s")
    assert "below 1 bytes" in refused(capsys, "buffers.csv", "--capacity", "0")
    assert "--banks has a name twice" in refused(capsys, "buffers.csv", "--banks", "a=4,a=4")
    assert "of a model" in refused(capsys, "buffers.csv", "--train")
    assert "an input" in refused(capsys, "buffers.csv", "--out", "buffers.csv")
    (folder / "notes.csv").write_text("my notes\n")
    assert "not overwritten" in refused(capsys, "buffers.csv", "--out", "notes.csv") and (folder / "notes.csv").read_text() == "my notes\n"


def test_no_packing_says_whether_that_is_proven(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "Proven impossible: at time 0 buffers of 12 bytes are alive, 1 more" in refused(capsys, "buffers.csv", "--capacity", 11, code=3)
    if not SHARED.is_dir():
        pytest.skip(f"the public instances are not in {SHARED}")
    told = refused(capsys, SHARED / "A.1048576.csv", "--capacity", "1MiB", "--solver", "greedy", "--evaluations", 3, code=3)
    assert "unknown" in told and "more than the capacity" in told


@pytest.mark.parametrize("name", ["A.1048576.csv", "K.1048576.csv", "large/G_1.csv", "large/resnet50.csv"])
def test_public_instances_are_read_unchanged(name: str) -> None:
    if not (SHARED / name).is_file():
        pytest.skip(f"the public instances are not in {SHARED}")
    made = fourfold.allocate(SHARED / name, solver="greedy", evaluations=15)
    assert made.problem.violations(made.offsets) == [] and made.height >= made.problem.bound()
    if name == "large/G_1.csv":
        assert made.height == made.problem.bound() == 3_030_937_746


@pytest.mark.parametrize("seed", range(6))
def test_what_is_written_is_read_alike(folder: Path, seed: int) -> None:
    b = invented(seed)
    (folder / "one.csv").write_text(written(b))
    again = of_file(folder / "one.csv", b.banks.tolist(), b.bank_names)
    assert written(again) == written(b)
    assert all(np.array_equal(getattr(again, name), getattr(b, name)) for name in ("lower", "upper", "size", "alignment", "fixed", "alias", "gap_ptr",
                                                                                   "gap_lower", "gap_upper", "banks"))


def test_gaps_are_read_in_either_form(folder: Path) -> None:
    (folder / "g.csv").write_text('id,lower,upper,size,gaps\na,0,20,8,"12-14 3-5:2-6"\n')
    found = read_buffers(folder / "g.csv")
    assert found["gap_lower"].tolist() == [3, 12] and found["gap_from"].tolist() == [2, -1] and found["gap_to"].tolist() == [6, -1]


# ---- models and plans

def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.LayerNorm(8))


def test_a_model_its_plan_and_its_ledger(folder: Path) -> None:
    made = fourfold.allocate(net(), torch.zeros(4, 8), capacity="4KiB", plan="plan", ledger="ledger.jsonl", solver="greedy")
    assert made.height == made.problem.bound() == int(made.graph.live().max()) and (made.offsets % 64 == 0).all()   # type: ignore[union-attr]
    assert plans.verify("plan") == {"allocate": []} and plans.explain("plan")[0].startswith("4 buffers")
    row = json.loads((folder / "ledger.jsonl").read_text().splitlines()[-1])
    assert row["question"] == "allocate" and row["factor"] is None and row["after"]["value"] == made.height and row["evidence"] == made.hash
    whole = json.loads((folder / "plan" / "plan.json").read_text())
    whole["solutions"]["allocate"]["answer"]["offsets"][1] = 0
    (folder / "plan" / "plan.json").write_text(json.dumps(whole))
    assert any("share memory" in said for said in plans.verify("plan")["allocate"])


def test_a_plan_of_a_schedule_gets_offsets_in_its_order(folder: Path) -> None:
    fourfold.plan(net(), torch.zeros(4, 8), machine="p100x2", solver="expert", out="plan")
    made = fourfold.allocate("plan", plan="plan", evaluations=50)
    assert "Ops run in the order of the plan's schedule." in made.notes
    assert plans.verify("plan") == {"schedule": [], "allocate": []}
    assert fourfold.Plan.load("plan").solver == "expert"


def test_a_plan_of_a_file_keeps_the_file(folder: Path) -> None:
    fourfold.allocate("buffers.csv", capacity=12, plan="plan", evaluations=50)
    assert plans.verify("plan") == {"allocate": []}
    again = fourfold.allocate("plan", capacity=20, plan="plan", evaluations=50)
    assert again.problem.capacity == 20 and plans.verify("plan") == {"allocate": []}
    (folder / "plan" / "buffers.csv").write_text(EXAMPLE.replace("b1,0,3,4", "b1,0,3,5"))
    with pytest.raises(fourfold.ArtefactError, match="is not the file"):
        plans.verify("plan")


def test_the_page_of_docs_runs_as_printed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """docs/allocate.md."""
    text = (Path(__file__).parent.parent / "docs" / "allocate.md").read_text(encoding="utf-8")
    torch.export.save(torch.export.export(net(), (torch.ones(4, 8),)), folder / "net.pt2")
    blocks = re.findall(r"^<!-- runs -->\n```(\w+)\n(.*?)^```", text, re.M | re.S)
    assert sorted(language for language, _ in blocks) == ["python", "sh"]
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "allocate.md", "exec"), {})
        else:
            for line in code.splitlines():
                assert main.run(shlex.split(line)[1:]) == 0, capsys.readouterr()


# ---- pages

def test_a_page_of_many_rectangles_is_drawn_by_its_script() -> None:
    rng = np.random.default_rng(0)
    lower = np.arange(5200) // 4
    b = Buffers(tuple(f"<b{i}>" for i in range(5200)), lower, lower + 3, rng.integers(1, 99, 5200), modules=("block.0", "block.1") * 2600)
    shown = page(fourfold.allocate(b, solver="greedy", evaluations=2))
    assert "<canvas" in shown and "<rect " not in shown and '"sections"' in shown and "<b1>" not in shown and "block.1" in shown


def test_words_for_sizes_and_modules() -> None:
    assert [size(n) for n in (5120, 2**20, 4609, 12, 1_290_240)] == ["5 KiB", "1 MiB", "4.501 KiB", "12 B", "1.23 MiB"]
    assert modules(("encoder.layer.0.fc", "encoder.layer.1.fc", "encoder.layer.2.fc")) == ["encoder.layer.0", "encoder.layer.1", "encoder.layer.2"]
    layers = [f"bert.encoder.layer.{i}.{part}" for i in range(12) for part in ("attention.self", "output.dense")]
    bert = ("bert.embeddings", *layers, "classifier", "")
    told = modules(bert)
    assert told[0] == "bert.embeddings" and told[-2:] == ["classifier", ""], "what is small keeps its own name"
    assert told[1] == told[2] == told[3] == "bert.encoder.layer.0–2" and told[24] == "bert.encoder.layer.9–11" and len(set(told)) == 7
    assert modules(("a", "b", "c", "")) == ["a", "b", "c", ""] and modules(("", "")) == ["", ""] and modules(("only",) * 3) == ["only"] * 3
    assert [memory(text) for text in ("512K", "4MiB", "1M", "1.5k", "4 MB", 7)] == [524288, 4194304, 1048576, 1536, 4000000, 7]
    for bad in ("0.3K", "-1", "4 s", True):
        with pytest.raises(InputError):
            memory(bad)


def test_ctrl_c_hands_back_the_best_so_far(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The first interrupt spends the budget; the command prints what it has and says so."""
    rng = np.random.default_rng(1)
    drawn = zip(rng.integers(0, 900, 3000), rng.integers(1, 90, 3000), rng.integers(1, 999, 3000), strict=True)
    rows = [f"b{i},{a},{a + w},{s}" for i, (a, w, s) in enumerate(drawn)]
    (folder / "many.csv").write_text("id,lower,upper,size\n" + "\n".join(rows) + "\n")
    command = [sys.executable, "-m", "fourfold", "allocate", "many.csv", "--solver", "greedy", "--budget", "10min", "--progress", "plain"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
                               env={**os.environ, "COLUMNS": "200"})
    assert started.stderr is not None
    for line in started.stderr:
        if "best so far" in line:
            break
    threading.Timer(0.5, lambda: started.send_signal(signal.SIGINT)).start()
    out, _ = started.communicate(timeout=500)                           # the budget is 10 min
    if started.returncode == 0:                                         # it may have been done before the signal came
        assert "Interrupted" not in out
    else:
        assert started.returncode == 130 and "Interrupted; this is the best so far." in out
