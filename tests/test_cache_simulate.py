"""Traces from files, whole and damaged, and `fourfold cache simulate` on them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cli import main
from fourfold.datasets.traces import FORMATS, read, write_oracle
from fourfold.decisions.cache.instance import RequestTrace
from fourfold.errors import FourfoldError, InputError
from fourfold.jobs.cache import simulate

KEYS = np.array([7, 3, 7, 7, 9, 3, 1 << 60, 7], np.uint64)
SIZES = np.array([10, 20, 10, 10, 30, 20, 5, 10])


def _trace(folder: Path) -> Path:
    return write_oracle(folder / "t.oracleGeneral.bin", KEYS, SIZES)


def test_every_format_gives_the_same_requests(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(f"k{key}\n" for key in KEYS))
    (tmp_path / "t.csv").write_text("time,obj_id,size\r\n" + "".join(f"0,{key},{size}\r\n" for key, size in zip(KEYS, SIZES, strict=True)))
    (tmp_path / "t.bin").write_bytes(_trace(tmp_path).read_bytes())
    (tmp_path / "u.trace").write_bytes((KEYS % 1000).astype(">u4").tobytes())
    whole = RequestTrace.of(KEYS, SIZES)
    for name, format in (("t.oracleGeneral.bin", "oracle"), ("t.bin", "oracle"), ("t.csv", "csv"), ("t.txt", "keys"), ("u.trace", "u32")):
        found = read(tmp_path / name)
        assert found.format == format
        made = RequestTrace.of(found.keys, found.sizes)
        assert (made.following == whole.following).all()                # who comes again, and when
        assert found.sizes is None if format in ("keys", "u32") else (made.sizes == SIZES).all()


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_packed_traces(suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    packed, file = pack(_trace(tmp_path).read_bytes()), tmp_path / f"t.bin{suffix}"
    file.write_bytes(packed)
    assert read(file).keys.tolist() == KEYS.tolist()
    file.write_bytes(packed[:-9])
    with pytest.raises(InputError, match="cannot be read behind byte"):
        read(file)


def test_zstandard(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    file = tmp_path / "t.bin.zst"
    with pa.CompressedOutputStream(str(file), "zstd") as out:
        out.write(_trace(tmp_path).read_bytes())
    assert read(file).keys.tolist() == KEYS.tolist()
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot be read"):
        read(file)


@pytest.mark.parametrize(("name", "data", "said"), [
    ("a.csv", b"key,size\na,1\nb,-4\n", "Line 3"), ("a.csv", b"key,size\na\n", "Line 2"), ("a.csv", b"x,y\n1,2\n", "Line 1"),
    ("a.csv", b"key\n", "no request"), ("a.txt", b"a\n\nb\n", "Line 2"), ("a.txt", b"", "no request"), ("a.oracleGeneral", b"\0" * 30, "Record 2"),
    ("a.oracleGeneral", b"\1" + b"\0" * 23, "Record 1"), ("a.bin", b"\0" * 7, "no format"), ("a.csv", b"key,size\na,0\n", "zero bytes"),
    ("a.csv", b"key\n\xff\n", "Line 2"), ("a.csv", b"key,size\n" + b"a,1\n" + b"b,99999999999999999999\n", "Line 3")])
def test_what_is_damaged_is_named(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path / name)
    assert str(caught.value).count("\n") == 1


@settings(max_examples=150, deadline=None)
@given(base=st.integers(0, 3), cut=st.integers(0, 200), at=st.integers(0, 199), by=st.integers(1, 255), format=st.sampled_from([None, *FORMATS]),
       junk=st.binary(max_size=40))
def test_no_bytes_break_a_reader(base: int, cut: int, at: int, by: int, format: str | None, junk: bytes,
                                 tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    oracle = _trace(folder).read_bytes()
    data = bytearray((oracle, b"key,size\na,1\nb,2\n" * 3, lzma.compress(oracle), junk)[base])
    if len(data) > at:
        data[at] ^= by
    file = folder / ("t.bin", "t.csv", "t.bin.xz", "t")[base]
    file.write_bytes(bytes(data[: cut or None]))
    try:
        found = read(file, format)
        made = RequestTrace.of(found.keys, found.sizes)
    except FourfoldError as error:
        assert len(str(error).splitlines()) == 2
    else:
        assert 1 <= made.objects <= len(made)


def test_zero_bytes_are_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("key,size\na,1\nb,0\na,1\n")
    found = read(tmp_path / "a.csv")
    assert len(found.keys) == 2 and "1 requests of zero bytes" in found.notes[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    keys = rng.zipf(1.3, 3000) % 300
    file, html = write_oracle(tmp_path / "t.oracleGeneral", keys, 100 + keys), tmp_path / "page.html"
    words = ["cache", "simulate", str(file), "--sizes", "5%,8KiB", "--policies", "lru,s3fifo,belady"]
    assert main.run([*words, "--json", "--html", str(html)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["rows"]) == 6 and set(document["least_byte_miss"]) == {"5%", "8KiB"}
    for row in document["rows"]:
        assert document["least_byte_miss"][row["size"]] <= row["byte_miss"] <= 1 and row["requests_per_cpu_s"] > 0
        assert row["policy"] != "lru" or row["against_lru"] == 0
    assert "://" not in html.read_text() and html.read_text().count("<svg") == 2
    assert main.run(words) == 0 and "(bound)" in capsys.readouterr().out


def test_the_future_is_not_asked_unless_named(tmp_path: Path) -> None:
    named = {row.policy for row in simulate(_trace(tmp_path), sizes=["50%"]).rows}
    assert {"lru", "s3fifo"} <= named and "belady" not in named
    assert [row.policy for row in simulate(_trace(tmp_path), sizes=["50%"], policies=["belady"]).rows] == ["belady"]


@pytest.mark.parametrize("words", [["--sizes", "0%"], ["--sizes", "x%"], ["--sizes", "nan%"], ["--sizes", ","], ["--policies", "nothing"],
                                   ["--format", "x"], ["--sizes", "-4"]])
def test_what_cannot_be_asked(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["cache", "simulate", str(_trace(tmp_path)), *words]) == 2
    assert 1 <= len(capsys.readouterr().err.strip().splitlines()) <= 2
