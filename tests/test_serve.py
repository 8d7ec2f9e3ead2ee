"""`fourfold serve` as a process: answers as `predict` gives them, statuses of what cannot be answered, workers that die, swaps, and the end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served

import fourfold
from fourfold.cli.main import run
from fourfold.datasets.task import Task, default_metric
from fourfold.rewrites.compress.bag_of_words import fit
from fourfold.runtime.artefact import Assembly, Part, Setting
from fourfold.runtime.saving import save

ROOT = Path(__file__).parent.parent
TOKEN = "a-token"
QUEUE = 24


class Server:
    """A server process, what it printed, and requests to it."""

    def __init__(self, folder: Path, home: Path, *options: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.log = (home / "log").open("w")
        words = [sys.executable, "-m", "fourfold", "serve", str(folder), "--port", "0", "--json", *options]
        env = {**os.environ, "FOURFOLD_SERVE_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env, cwd=home)
        self.url = self.event("ready")["url"]

    def event(self, name: str) -> dict[str, Any]:
        """The next line of that name."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if self.lines[-1].get("event") == name:
                return self.lines[-1]
        raise AssertionError(f"the server ended without {name}: {self.lines}\n{Path(self.log.name).read_text()[-2000:]}")

    def ask(self, path: str, body: object = None, *, method: str | None = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or text, headers)."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        head = {"content-type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        request = urllib.request.Request(self.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as found:
                text, status, told = found.read(), found.status, found.headers
        except urllib.error.HTTPError as error:
            text, status, told = error.read(), error.code, error.headers
        plain = told.get("content-type", "").startswith("application/json")
        return status, json.loads(text) if plain else text.decode(), {key.lower(): value for key, value in told.items()}

    def predict(self, inputs: object, **options: object) -> tuple[int, Any]:
        status, found, _ = self.ask("/predict", {"inputs": inputs, **options})
        return status, found

    def admin(self, path: str, body: object) -> tuple[int, Any]:
        status, found, _ = self.ask(f"/admin/{path}", body, authorization=f"Bearer {TOKEN}")
        return status, found

    def pids(self) -> list[int]:
        return [one["pid"] for one in self.ask("/model")[1]["workers"]]


def until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def counted(folder: Path, classes: int, seed: int) -> Path:
    """An artefact that only counts words."""
    names = [f"class {i}" for i in range(classes)]
    given = served.texts(60, 9)
    words = fit(given, np.random.default_rng(seed).integers(0, classes, len(given)), names, strength=4.0)
    part = Part("words", None, None, None, Setting("numpy", "fp32", 1, 256, False), words=words)  # type: ignore[arg-type]
    return save(Assembly(folder.name, [part]), Task("classification", names, default_metric("classification")), folder, {"lengths": [8, 20, 40]})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts beside each other: a cascade of words and a network, another of the same classes, one of other classes, a damaged one."""
    at = tmp_path_factory.mktemp("serve")
    network = served.part(at.parent / "serve-files", "onnxruntime")
    served.saved(at / "cheap", [served.words(), network], [0.6])
    counted(at / "cheaper", 3, 1)
    counted(at / "others", 2, 1)
    damaged = counted(at / "damaged", 3, 2)
    next(file for file in sorted((damaged / "words").iterdir()) if file.is_file()).write_bytes(b"no")
    return at


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    one = Server(home / "cheap", home, "--workers", "2", "--queue", str(QUEUE), "--max-inputs", "64", "--max-body", "64KiB", "--ledger", "book.jsonl",
                 "--site", "tokyo")
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.process.wait()


def test_answers_are_those_of_predict_and_known_the_second_time(server: Server, home: Path) -> None:
    texts = served.texts(60, 21)
    model = fourfold.load(home / "cheap")
    with contextlib.closing(model):
        wanted, records = list(model.predict(texts)), model.records(texts)
        shares = model.assembly.routed(model.inputs(texts), model.task)[1]
    assert min(shares) > 0.1                                           # some texts are handed on, some are not
    status, found = server.predict(texts, scores=True, probabilities=True)
    assert status == 200 and found["predictions"] == wanted and found["usage"]["cpu_seconds"] > 0
    scores = np.array([[row[f"class {i}"] for i in range(3)] for row in found["scores"]])
    np.testing.assert_allclose(scores, records, rtol=1e-4, atol=1e-4)
    chances = np.array([list(row.values()) for row in found["probabilities"]])
    np.testing.assert_allclose(chances.sum(1), 1.0)
    status, again = server.predict(texts, scores=True)
    assert status == 200 and again["scores"] == found["scores"] and again["usage"]["cached"] == len(set(texts)) == 60
    assert again["usage"]["cpu_seconds"] == again["usage"]["joules"] == 0 and found["usage"]["joules"] > 0
    long = " ".join(f"word{i % 60}" for i in range(5000))
    assert server.predict(long)[1]["predictions"] == list(fourfold.load(home / "cheap").predict([long]))


@pytest.mark.parametrize("path, body, method, headers, status, code", [
    ("/predict", b"{", None, {}, 400, "not_json"),
    ("/predict", {"inputs": [1]}, None, {}, 422, "invalid"),
    ("/predict", {"inputs": ["a"]}, None, {"content_type": "text/plain"}, 415, "not_json"),
    ("/predict", {"inputs": ["a " * 40_000]}, None, {}, 413, "too_large"),
    ("/predict", {"inputs": ["a"] * 65}, None, {}, 413, "too_many"),
    ("/predict", None, "GET", {}, 405, "method"),
    ("/../../etc/passwd", None, "GET", {}, 404, "not_found"),
    ("/generate", {"prompt": "a"}, None, {}, 404, "writes_nothing"),
    ("/admin/swap", {"artefact": "cheaper"}, None, {}, 401, "token"),
    ("/admin/swap", {"artefact": "cheaper"}, None, {"authorization": "Bearer a-toke"}, 401, "token"),
])
def test_what_cannot_be_answered_has_a_status(server: Server, path: str, body: object, method: str | None, headers: dict[str, str], status: int,
                                              code: str) -> None:
    found, told, _ = server.ask(path, body, method=method, **headers)
    assert (found, told["error"]["code"]) == (status, code) and told["error"]["mend"]


def test_pages(server: Server) -> None:
    assert server.ask("/ready")[:2] == (200, {"status": "ready", "workers": 2}) and server.ask("/health")[0] == 200
    assert server.ask("/openapi.json")[1]["openapi"] == "3.1.0" and "<script" not in server.ask("/docs")[1]
    for _ in range(2):
        server.predict(served.texts(60, 71))
    lines = dict(line.rsplit(" ", 1) for line in server.ask("/metrics")[1].splitlines() if not line.startswith("#"))
    assert float(lines["fourfold_cache_hits"]) >= 60 and float(lines['fourfold_rows_total{by="net"}']) > 0
    assert float(lines["fourfold_joules_per_cpu_second"]) > 0


def test_a_killed_worker_costs_only_what_it_held(server: Server) -> None:
    first, second = pids = server.pids()
    os.kill(first, signal.SIGSTOP)                                     # whatever it is given now, it holds
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.predict, [text]) for text in served.texts(12, 31)]
        until(lambda: server.ask("/model")[1]["workers"][pids.index(first)]["busy"])
        time.sleep(0.3)
        os.kill(first, signal.SIGKILL)
        found = [one.result() for one in asked]
    failed = [told for status, told in found if status != 200]
    assert 1 <= len(failed) < 12 and {told["error"]["code"] for told in failed} == {"worker_died"}
    assert {status for status, _ in found} == {200, 502} and "signal 9" in failed[0]["error"]["message"]
    assert server.event("worker_died")["pid"] == first
    server.event("worker_ready")
    assert second in server.pids() and first not in server.pids() and server.ask("/ready")[1]["workers"] == 2
    assert server.predict(served.texts(12, 31))[0] == 200              # what failed was not kept


def test_rows_are_refused_only_while_all_work(server: Server) -> None:
    pids = server.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    texts = served.texts(200, 41)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = []
            for busy in (1, 2):                                        # a row for each worker, the second when the first is held
                asked.append(pool.submit(server.predict, texts[busy:busy + 1]))
                until(lambda busy=busy: sum(one["busy"] for one in server.ask("/model")[1]["workers"]) == busy)
            asked.append(pool.submit(server.predict, texts[80:100]))   # fits into the queue
            time.sleep(0.3)
            status, told, head = server.ask("/predict", {"inputs": texts[120:150]})
            assert (status, told["error"]["code"]) == (503, "overloaded") and int(head["retry-after"]) >= 1
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert [one.result()[0] for one in asked] == [200] * 3
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert server.predict(texts[120:150])[0] == 200                    # more rows than may wait, taken by who is free


def test_another_artefact_takes_over_and_gives_way(server: Server, home: Path) -> None:
    texts = served.texts(20, 51)
    before = server.predict(texts)[1]
    status, told = server.admin("swap", {"artefact": "others"})
    assert (status, told["error"]["code"]) == (409, "not_swapped") and "other classes" in told["error"]["message"]
    status, told = server.admin("swap", {"artefact": "damaged"})
    assert status == 409 and "altered" in told["error"]["message"]
    assert server.admin("swap", {"artefact": "../cheaper"})[0] == 422 and server.admin("swap", {"artefact": "nothing"})[0] == 409
    assert server.predict(texts)[1]["model"] == before["model"]        # all of these changed nothing
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        status, told = server.admin("swap", {"artefact": "cheaper"})
        assert status == 200, told
        found = [one.result() for one in [pool.submit(server.predict, [text]) for text in texts]]
    assert {status for status, _ in found} == {200} and {one["model"] for _, one in found} == {told["digest"][:12]} != {before["model"]}
    assert [one["predictions"][0] for _, one in found] == list(fourfold.load(home / "cheaper").predict(texts))
    status, told = server.admin("rollback", {})
    assert status == 200 and told["digest"][:12] == before["model"]
    assert server.predict(texts)[1]["predictions"] == before["predictions"]
    assert server.admin("rollback", {})[0] == 409


def test_the_end_answers_what_is_there_and_books(server: Server, home: Path) -> None:
    pids = server.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = pool.submit(server.predict, served.texts(10, 61))
        until(lambda: any(one["busy"] for one in server.ask("/model")[1]["workers"]))
        server.process.send_signal(signal.SIGTERM)
        server.event("draining")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert asked.result()[0] == 200
    ended = server.event("ended")
    assert server.process.wait(60) == 0 and ended["rows"] > 100 and ended["joules"] > 0 and ended["gco2e"] > 0
    for pid in pids:
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 30)
    row = json.loads((home / "book.jsonl").read_text().splitlines()[-1])
    assert row["lever"] == "mechanization" and row["question"] == "serve" and row["before"]["value"] > row["after"]["value"] > 0
    for line in (home / "log").read_text().splitlines():
        assert {"time", "event"} <= set(json.loads(line))


def test_errors_are_two_lines(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from fourfold.runtime.serve.server import listening

    with listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for words, said in ((["serve", str(home / "cheaper"), "--port", port], "in use"),
                            (["serve", str(tmp_path), "--port", "0"], "no manifest.json"),
                            (["serve", str(home / "damaged"), "--port", "0"], "altered"), (["serve", str(home), "--workers", "0"], "0 workers"),
                            (["serve", str(home), "--deadline", "soon"], "no time")):
            assert run(words) == 2
            lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("{")]
            assert len(lines) == 2 and said in lines[0], lines
    assert run(["serve", str(home / "cheaper"), "--write", str(tmp_path / "files")]) == 0
    assert sorted(file.name for file in (tmp_path / "files").iterdir()) == ["Dockerfile", "fourfold-serve.service"]


def test_the_page_serve_md_runs_as_printed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(home / "cheaper", tmp_path / "cheap")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    ran = 0
    for language, code in re.findall(r"^<!-- runs -->\n```(\w+)\n(.*?)^```", (ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), re.M | re.S):
        if language == "python":
            exec(compile(code, "serve.md", "exec"), {})
        else:
            assert run(shlex.split(code)[1:]) == 0 and capsys.readouterr().out.strip()
        ran += 1
    assert ran == 2 and (tmp_path / "deploy" / "Dockerfile").is_file()
