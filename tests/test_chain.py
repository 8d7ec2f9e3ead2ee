"""The hash chain: every alteration is found and named; writers, crashes and full disks lose at most the unwritten row."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import ArtefactError, FourfoldError, InputError
from fourfold.ledger import hash_chain

WRITER = """
import sys
from fourfold.ledger import hash_chain as chain
for i in range(int(sys.argv[3])):
    chain.append(sys.argv[1], {"writer": sys.argv[2], "i": i, "pad": "x" * int(sys.argv[4])})
"""


def book(path: Path, count: int) -> list[bytes]:
    for i in range(count):
        hash_chain.append(path, {"kind": "run", "name": f"run {i}", "joules": i / 3, "note": "ü" * (i % 3)})
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("chain") / "ledger.jsonl"
    book(path, 6)
    return path.read_bytes()


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda inner:
                      st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text().filter(lambda key: key not in hash_chain.OURS), values, max_size=4), min_size=1, max_size=4))
def test_what_is_appended_is_read_back_and_sound(tmp_path_factory, given_rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("chain") / "deep" / "ledger.jsonl"
    back = [hash_chain.append(path, row) for row in given_rows]
    assert hash_chain.rows(path) == back and hash_chain.verify(path) == [] and [row["n"] for row in back] == list(range(len(back)))
    assert [hash_chain.plain(row) for row in back] == given_rows and len({row["id"] for row in back}) == len(back)
    assert [line.encode() for line in hash_chain.lines(given_rows)] == path.read_bytes().split(b"\n")[:-1]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_changed_byte_is_found_and_its_row_named(tmp_path_factory, stored: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(stored) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != stored[place]))
    path = tmp_path_factory.getbasetemp() / "flipped.jsonl"
    path.write_bytes(stored[:place] + bytes([other]) + stored[place + 1:])
    row = stored[:place].count(b"\n")
    assert any(sentence.startswith((f"Row {row} ", f"Line {row + 1}")) for sentence in hash_chain.verify(path)), hash_chain.verify(path)


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(6)))
def test_reordered_rows_are_found(tmp_path_factory, stored: bytes, order: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "swapped.jsonl"
    lines = stored.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    found = hash_chain.verify(path)
    assert bool(found) == (order != sorted(order)) and all("reordered" in sentence for sentence in found)
    early = [i for place, i in enumerate(order) if any(j > i for j in order[:place])]
    assert all(any(sentence.startswith(f"Row {i} ") for sentence in found) for i in early)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 5), min_size=1, max_size=5))
def test_dropped_rows_are_found_and_at_the_end_by_the_seal(tmp_path_factory, stored: bytes, gone: set[int]) -> None:
    folder = tmp_path_factory.mktemp("dropped")
    path = folder / "ledger.jsonl"
    path.write_bytes(stored)
    head = hash_chain.seal(path)["head"]
    lines = stored.splitlines(keepends=True)
    path.write_bytes(b"".join(line for i, line in enumerate(lines) if i not in gone))
    found = hash_chain.verify(path)
    named = {i for sentence in found if "missing" in sentence for i in range(6)
             if f"Row {i} is" in sentence or any(f"Rows {a} to {b} " in sentence for a in range(i + 1) for b in range(i, 6))}
    assert named == gone, found
    path.with_name("ledger.jsonl.seal").unlink()
    assert bool(hash_chain.verify(path)) == (min(gone) != 6 - len(gone))    # without a seal a clean end is an end
    assert bool(hash_chain.verify(path, head)) or 5 not in gone


def test_a_duplicate_an_insert_and_an_exchange_are_named(tmp_path: Path, stored: bytes) -> None:
    lines, path = stored.splitlines(keepends=True), tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join([*lines[:3], lines[1], *lines[3:]]))
    assert hash_chain.verify(path) == ["Row 1 (line 4, run run 1) is a duplicate of line 2."]
    path.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[3:]]))
    assert any("line 4" in sentence for sentence in hash_chain.verify(path))
    row = json.loads(lines[2])
    forged = hash_chain.canonical({**(body := {**row, "joules": 0.0}), "hash": hash_chain.digest(body)}) + b"\n"
    path.write_bytes(b"".join([*lines[:2], forged, *lines[3:]]))
    assert hash_chain.verify(path) == ["Row 3 (line 4, run run 3) does not continue row 2: one of the two was exchanged."]
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b",", b", ", 1), *lines[3:]]))
    assert "spelt otherwise" in hash_chain.verify(path)[0]
    path.write_bytes(b"")
    assert hash_chain.verify(path) == [] and hash_chain.rows(path) == []


@pytest.mark.parametrize("cut", [1, 2, 40, 100])
def test_a_cut_line_is_reported_skipped_and_gone_on_from(tmp_path: Path, stored: bytes, cut: int) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(stored[:-cut])
    found = hash_chain.verify(path)
    assert len(found) == 1 and ("Line 6, after row 4, is cut off" in found[0] if cut > 1 else "Row 5 (line 6" in found[0])
    hash_chain.append(path, {"kind": "run", "name": "later"})
    assert hash_chain.verify(path) == [] and len(hash_chain.rows(path)) == (6 if cut > 1 else 7)
    assert bool(hash_chain.check(path).notes) == (cut > 1)


def test_a_damaged_last_row_stays_for_the_auditor(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    for damaged in (stored[:-2] + b"]\n", stored[:-1] + b"x", stored[:-60] + b"?" + stored[-59:]):
        path.write_bytes(damaged)
        hash_chain.append(path, {"kind": "run", "name": "later"})
        assert any("Row 5 (line 6" in sentence and "altered" in sentence for sentence in hash_chain.verify(path))
        assert hash_chain.rows(path)[-1]["name"] == "later"


def test_a_sealed_ledger_may_grow(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = book(path, 3)
    made = hash_chain.seal(path)
    assert made["rows"] == 3
    hash_chain.append(path, {"kind": "run"})
    assert hash_chain.verify(path, made["head"]) == []
    path.write_bytes(b"".join(lines[:2]))
    assert any("Row 2 is missing at the end: the seal of" in sentence for sentence in hash_chain.verify(path))
    with pytest.raises(ArtefactError, match="not sound"):
        hash_chain.seal(path)
    path.with_name("ledger.jsonl.seal").write_text("?")
    assert any("cannot be read" in sentence for sentence in hash_chain.verify(path))


def test_two_processes_write_two_thousand_rows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, "1000", "10"]) for name in ("a", "b")]
    assert [writer.wait(timeout=1200) for writer in writers] == [0, 0]
    rows = hash_chain.rows(path)
    assert hash_chain.verify(path) == [] and len(rows) == 2000
    for name in ("a", "b"):
        assert [row["i"] for row in rows if row["writer"] == name] == list(range(1000))


def test_threads_and_the_lock_file_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_chain, "fcntl", None)                          # as on a system without flock
    path = tmp_path / "ledger.jsonl"
    threads = [threading.Thread(target=lambda: [hash_chain.append(path, {"i": i}) for i in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hash_chain.verify(path) == [] and len(hash_chain.rows(path)) == 200
    lock = path.with_name("ledger.jsonl.lock")
    lock.touch()
    os.utime(lock, (time.time() - 100, time.time() - 100))             # left over from a process that died
    hash_chain.append(path, {"i": 0})
    assert len(hash_chain.rows(path)) == 201


@pytest.mark.parametrize("wait", [0.05, 0.2, 0.4])
def test_a_killed_writer_loses_at_most_the_unwritten_row(tmp_path: Path, wait: float) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), "a", "100000", "300000"])
    until = time.monotonic() + 600
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(wait)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert all("cut off" in sentence or "end of its line" in sentence for sentence in hash_chain.verify(path)) and len(hash_chain.verify(path)) <= 1
    before = len(hash_chain.rows(path))
    hash_chain.append(path, {"after": "the crash"})
    assert hash_chain.verify(path) == [] and len(hash_chain.rows(path)) in (before + 1, before + 2)


def test_a_full_disk_leaves_the_file_sound(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = """
import resource, sys
from fourfold.ledger import hash_chain as chain
from fourfold.errors import FourfoldError
for i in range(3):
    chain.append(sys.argv[1], {"i": i})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    chain.append(sys.argv[1], {"pad": "x" * 5000})
except FourfoldError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "disk is full" in done.stdout and len(done.stdout.splitlines()) == 2
    assert hash_chain.verify(path) == [] and len(hash_chain.rows(path)) == 3
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


@pytest.mark.parametrize("row", [{"x": math.nan}, {"x": math.inf}, {"x": object()}, {"hash": "a"}, {"n": 1}, {1: 2, "a": 3}, {2: 3}])
def test_what_a_ledger_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, row: dict) -> None:
    path = tmp_path / "ledger.jsonl"
    hash_chain.append(path, {"ok": 1})
    before = path.read_bytes()
    with pytest.raises(InputError):
        hash_chain.append(path, row)
    assert path.read_bytes() == before


def test_undecodable_text_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    hash_chain.append(path, {"command": ["cat", b"\xff.txt".decode("utf-8", "surrogateescape")]})
    assert hash_chain.verify(path) == [] and hash_chain.rows(path)[0]["command"][1] == "\udcff.txt"


def test_places_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "file" / "ledger.jsonl"):
        (tmp_path / "file").write_text("")
        with pytest.raises(FourfoldError, match="Cannot write"):
            hash_chain.append(wrong, {})
        with pytest.raises(InputError, match="Cannot read"):
            hash_chain.verify(wrong)


def test_it_starts_fast() -> None:
    code = "import sys; import fourfold.ledger.hash_chain, fourfold.units; print(sorted({'numpy', 'scipy', 'torch', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_rows_cut_off_the_end_are_found_by_the_head_beside_the_file(tmp_path: Path) -> None:
    path, head = tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.head"
    lines = book(path, 4)
    assert hash_chain.check(path).faults == [] and hash_chain.check(path).notes == [] and json.loads(head.read_text())["rows"] == 4
    whole, kept = path.read_bytes(), head.read_text()
    path.write_bytes(b"".join(lines[:3]))
    assert hash_chain.verify(path) == ["Row 3 is missing at the end: ledger.jsonl.head counts 4 rows, the file holds 3."]
    path.write_bytes(b"".join(lines[:2]))
    hash_chain.append(path, {"kind": "run", "name": "goes on as if nothing were"})
    assert any("Rows 2 to 3 are missing: ledger.jsonl.head knew 4 rows" in sentence for sentence in hash_chain.verify(path))
    hash_chain.append(path, {"kind": "run"})
    assert any("Rows 2 to 3 are missing" in sentence for sentence in hash_chain.verify(path)), "and that is not forgotten"
    path.write_bytes(b"")
    head.write_text(kept)
    assert "Rows 0 to 3 are missing at the end" in hash_chain.verify(path)[0]
    path.write_bytes(whole)
    head.write_text(kept.replace('"rows":4', '"rows":3'))
    assert any("Row 2 is not the one" in sentence for sentence in hash_chain.verify(path))
    head.write_text("?")
    assert "cannot be read" in hash_chain.verify(path)[0]
    head.unlink()
    assert hash_chain.verify(path) == [] and any("no ledger.jsonl.head" in note for note in hash_chain.check(path).notes)


def test_a_head_that_is_a_row_behind_is_no_fault(tmp_path: Path) -> None:
    """Killed between the row and its head."""
    path, head = tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.head"
    book(path, 3)
    kept = head.read_text()
    hash_chain.append(path, {"kind": "run"})
    head.write_text(kept)
    assert hash_chain.verify(path) == []
    hash_chain.append(path, {"kind": "run"})
    assert hash_chain.verify(path) == [] and json.loads(head.read_text())["rows"] == 5 and "lost" not in json.loads(head.read_text())
