"""No command touches what it did not write: folders, files, links, inputs; and what is written is whole and readable."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fourfold import folder
from fourfold.cli import main
from fourfold.errors import FourfoldError, InputError
from fourfold.ledger import hash_chain

ROOT = Path(__file__).parent.parent


def tree(root: Path) -> dict[str, bytes]:
    """Every file and link below `root` with what it holds."""
    return {str(p.relative_to(root)): os.readlink(p).encode() if p.is_symlink() else p.read_bytes() if p.is_file() else b"" for p in root.rglob("*")}


def artefact(at: Path, **more: str) -> Path:
    """A folder as we write it, with strange files beside it."""
    (at / "m").mkdir(parents=True)
    (at / "m" / "model.safetensors").write_text("weights")
    (at / "manifest.json").write_text(json.dumps({"format": "fourfold.artefact/1", "files": {"m/model.safetensors": "0"}}))
    for name, text in more.items():
        (at / name).write_text(text)
    return at


def test_a_folder_is_ours_or_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for good in ("new", "a/b/c", "empty", artefact(tmp_path / "old"), artefact(tmp_path / "told", **{"report.html": "x", "ledger.jsonl": ""})):
        assert folder.may_replace(good) == Path(good)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "mixed" / "empty").mkdir(parents=True)
    artefact(tmp_path / "noted", notes="mine")
    (artefact(tmp_path / "deep") / "m" / "mine.py").write_text("")
    os.symlink("old", tmp_path / "linked")
    os.symlink("/etc/hostname", artefact(tmp_path / "linking") / "m" / "report.json")
    (tmp_path / "file").write_text("text")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "manifest.json").write_text(json.dumps({"format": "other/1", "files": {}}))
    before = tree(tmp_path)
    for bad in ("model", "mixed", "noted", "deep", "linked", "linking", "file", "file/x", ".", "..", tmp_path, "fake", "/", str(Path.home())):
        with pytest.raises(InputError) as told:
            folder.may_replace(bad, inputs=["model"])
        assert told.value.mend and len(str(told.value).splitlines()) == 2
    for forced in ("model", ".", "linked", "file"):  # not even so: inputs, where one stands, links, files
        with pytest.raises(InputError):
            folder.may_replace(forced, inputs=[{"train": "model/config.json"}, "model"], force=True)
    assert tree(tmp_path) == before


def test_the_old_stays_until_the_new_is_whole_and_force_moves_aside(tmp_path: Path) -> None:
    out = artefact(tmp_path / "cheap")
    with pytest.raises(ZeroDivisionError), folder.beside(out) as made:
        (made / "half").write_text("")
        raise ZeroDivisionError
    assert tree(tmp_path) == {f"cheap/{k}": v for k, v in tree(out).items()} | {"cheap": b""}
    with folder.beside(out) as made:
        (made / "new").write_text("1")
        assert folder.swap(made, out) is None
    assert tree(tmp_path) == {"cheap": b"", "cheap/new": b"1"}
    for number in (1, 2):  # `new` is foreign: no manifest lists it
        with folder.beside(out) as made, pytest.raises(InputError):
            folder.swap(made, out)
        with folder.beside(out) as made:
            (made / "new").write_text(str(number + 1))
            assert folder.swap(made, out, force=True) == tmp_path / f"cheap.before-{number}"
    assert tree(tmp_path) == {"cheap": b"", "cheap/new": b"3", "cheap.before-1": b"", "cheap.before-1/new": b"1", "cheap.before-2": b"",
                              "cheap.before-2/new": b"2"}


def test_what_a_killed_process_left_goes_when_it_is_old_and_nobodys(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True).stdout.strip()
    names = {f".cheap.part-{dead}-0a1b2c3d": True, f".cheap.part-{os.getpid()}-0a1b2c3d": False, ".cheap.part-notes": False,
             f".cheap.part-{dead}-mine": False, f".other.part-{dead}-0a1b2c3d": False}
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f".cheap.part-{dead}-99999999").mkdir()  # a moment old: perhaps of another machine
    assert [p.name for p in folder.leftovers(tmp_path / "cheap")] == [name for name, goes in names.items() if goes]


def test_a_file_is_overwritten_by_its_own_kind_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {"a.html": "<!doctype html>\n<p>fourfold</p>", "a.svg": '<svg class="plot">', "a.json": '{"schema": "x"}', "a.csv": "prediction\n1\n",
             "e.html": ""}
    others = {"b.html": "<!doctype html><p>thesis</p>", "b.svg": "<svg>", "b.json": "[1]", "b.csv": "text,label\n"}
    for name, text in {**kinds, **others}.items():
        Path(name).write_text(text)
    os.symlink("a.html", "link.html")
    Path("dir.html").mkdir()
    for name in [*kinds, "new.html", "/dev/stdout", "/dev/null"]:
        folder.may_overwrite(name, "--out", kind=folder.headed("prediction") if name.endswith("csv") else None)
    for name in [*others, "link.html", "dir.html", "a.html/x"]:
        with pytest.raises(InputError):
            folder.may_overwrite(name, "--out", kind=folder.headed("prediction") if name.endswith("csv") else None)
    with pytest.raises(InputError, match="input"):
        folder.may_overwrite("a.csv", "--out", inputs=["./a.csv"])


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = folder.write(tmp_path / "file", "text")
        with folder.beside(tmp_path / "made") as made:
            folder.swap(made, tmp_path / "made")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask and stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o777 & ~umask


def test_a_ledger_is_appended_to_ledgers_only(tmp_path: Path) -> None:
    for number, text in enumerate(["a thesis without an end", "line\nline\n", '{"a": 1}', '{"a": 1}\n{"b": 2}\n', '{"text": "cut']):
        path = tmp_path / f"{number}"
        path.write_text(text)
        if number == 4:  # begins as a first row does that a crash cut off
            continue
        with pytest.raises(InputError, match="no ledger"):
            hash_chain.append(path, {"kind": "run"})
        assert path.read_text() == text
    new = tmp_path / "new.jsonl"
    hash_chain.append(new, {"kind": "run"})
    hash_chain.append(new, {"kind": "run"})
    assert len(hash_chain.rows(new)) == 2


WRITERS = (
    ("optimize", "model", "--data", "reviews.csv", "--budget", "1s", "--progress", "none", "--out", "{}"),
    ("optimize", "model", "--data", "reviews.csv", "--budget", "1s", "--progress", "none", "--out", "new", "--report", "{}"),
    ("demo", "--out", "{}"),
    ("plan", "model", "--machine", "none", "--progress", "none", "--out", "{}"),
    ("pretrain", "--minutes", "0", "--updates", "0", "--count", "1", "--out", "{}"),
    ("calibrate", "--quick", "--out", "{}"),
    ("map", "jobs.csv", "--out", "{}"),
    ("map", "jobs.csv", "--html", "{}"),
    ("report", "report.json", "--html", "{}"),
    ("report", "report.json", "--svg", "{}"),
    ("predict", "artefact", "--text", "a", "--out", "{}"),
    ("ledger", "export", "ledger.jsonl", "--csv", "{}"),
    ("ledger", "export", "ledger.jsonl", "--impact", "{}"),
    ("ledger", "import", "emissions.csv", "--to", "{}"),
    ("meter", "--no-ledger", "--out", "{}", "--", "true"),
    ("meter", "--ledger", "{}", "--", "true"),
)


OURS = ["a.py", "train.csv", "plan.json", "graph.npz", "manifest.json", "report.json", "state.json", "teacher", "schedule.csv", "certificate.json",
        "notes.txt", "config.json", "trace.json", "system.toml", "problem.npz"]
FILES = {"page.html": "<!doctype html><p>mine", "rows.csv": "text,label\ngood,1\n", "reviews.csv": "text,label\ngood,1\n", "some.toml": "[a]\n",
         "run.yml": "a: 1\n", "words.json": "[1, 2]", "pic.svg": "<svg/>", "log.jsonl": '{"a": 1}', "jobs.csv": "name\nx\n"}


def strange(rng: random.Random, root: Path) -> list[str]:
    """Places that hold somebody's work, of every sort, below `root`; the names that commands are given."""
    for name in ("thesis", "model", "data.html", "code"):
        (root / name / "src").mkdir(parents=True)
        for file in rng.sample(OURS, 9):
            (root / name / file).write_text(rng.choice(["", "mine", '{"format": "mine"}', "a,b\n1,2\n", '{"files": {"a.py": ""}}']) or "mine")
    (root / "model" / "config.json").write_text("{}")
    for name, text in FILES.items():
        (root / name).write_text(text)
    os.symlink("thesis", root / "linked")
    os.symlink("page.html", root / "linked.html")
    return ["thesis", "model", "code", "data.html", ".", "linked", "linked.html", *FILES, "rows.csv/under", "model/config.json", str(root)]


@pytest.mark.parametrize("words", WRITERS, ids=lambda words: "-".join(w for w in words if w.isalpha() or w.startswith("--"))[:40])
def test_no_command_touches_foreign_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Every writing command is pointed at every sort of place: it fails in two lines, and every file holds what it held."""
    names = strange(random.Random(len(str(words))), tmp_path)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for name in names:
        code = main.run([word.format(name) for word in words])
        told = capfd.readouterr().err.strip().splitlines()
        after = {at: held for at, held in tree(tmp_path).items() if at in before}
        assert after == before, (words, name)
        if words[0] != "meter":
            assert code != 0 and len([line for line in told if line.startswith(("error", "Name", "Choose", "Give"))]) <= 2, (words, name, told)


def test_refusals_come_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and data that do not exist are not even looked at."""
    import fourfold

    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(FourfoldError, match="thesis.txt"):
        fourfold.optimize("no-model", "no-data.csv", out="full")
    for call in (lambda: fourfold.plan("no-model", out="full/thesis.txt"), lambda: fourfold.optimize("no-model", "no.csv", out="full/thesis.txt")):
        with pytest.raises(FourfoldError, match="is a file"):
            call()
