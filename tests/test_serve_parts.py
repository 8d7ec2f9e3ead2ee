"""Parts of the server without its processes: what a stranger may send, which rows share a batch, texts cut before tokenising, answers kept."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import socket
import threading
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import served
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.datasets.unread import Unread
from fourfold.errors import InputError
from fourfold.frontends.model import load_model
from fourfold.runtime.cache import PER_ENTRY
from fourfold.runtime.serve import deployment, openapi, wire
from fourfold.runtime.serve.app import ServingApp
from fourfold.runtime.serve.batching import BatchPace, MemberQueue, RowAnswer, WaitingRow, chosen
from fourfold.runtime.serve.exchange import beside
from fourfold.runtime.serve.limits import ServingLimits, bytes_of, seconds_of
from fourfold.runtime.serve.metrics import ServingLog, ServingMetrics
from fourfold.runtime.serve.requests import RequestRefused, generate_request, predict_request, swap_request
from fourfold.runtime.serve.responses import ResponseDesk, warmed
from fourfold.runtime.serve.server import listening
from fourfold.runtime.serve.supervision import WorkerDied
from fourfold.runtime.serve.truncation import Shortened, shorten
from fourfold.runtime.serve.worker_main import ArtefactWorker
from fourfold.runtime.serve.worker_main import serve as work_for

LIMITS = ServingLimits(rows=8)
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6), lambda inner: st.lists(inner, max_size=4)
                        | st.dictionaries(st.sampled_from(["inputs", "scores", "probabilities", "x"]), inner, max_size=4), max_leaves=12)


# ---- requests ------------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(ANYTHING, st.sampled_from(["texts", "arrays"]), st.sampled_from(["classification", "regression", "ctc"]))
def test_whatever_is_sent_is_rows_or_is_refused_in_words(body: Any, reads: str, kind: str) -> None:
    try:
        asked = predict_request(json.dumps(body).encode(), reads, kind, LIMITS)
    except RequestRefused as refused:
        assert refused.status in (400, 413, 422) and refused.message and refused.mend and "\n" not in refused.message
        return
    sent = body["inputs"]                                              # accepted: an object with inputs, of which every one became a row
    sent = [sent] if isinstance(sent, str) else sent
    assert len(asked.rows) == len(sent) <= LIMITS.rows and set(body) <= {"inputs", "scores", "probabilities"}
    for row, one in zip(asked.rows, sent, strict=True):
        if reads == "texts":
            assert row == one if isinstance(one, str) else list(row) == one and all(isinstance(side, str) for side in one)
        else:
            array = np.asarray(row, np.float64)
            assert array.ndim >= 1 and array.size and np.array_equal(array, np.asarray(one, np.float64))
    wire.told_worker(wire.packed(wire.RowsJob(1, 0, asked.rows))[wire.LENGTH.size:])


@settings(max_examples=60)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_json_are_refused(body: bytes) -> None:
    try:
        predict_request(body, "texts", "classification", LIMITS)
    except RequestRefused as refused:
        assert refused.status in (400, 422)
    else:
        json.loads(body)


@pytest.mark.parametrize("body, status, code", [
    (b"[" * 100_000, 422, "invalid"), (b"{\"inputs\":" + b"[" * 100_000, 400, "not_json"),
    (b'{"inputs":["\\ud800"]}', 400, "not_json"), (b'{"inputs":[]}', 422, "invalid"),
    (b'{"inputs":["a",["b","c"]]}', 422, "invalid"), (b'{"inputs":["a"],"path":"/etc/passwd"}', 422, "invalid"),
    (json.dumps({"inputs": ["a"] * 9}).encode(), 413, "too_many"), (b'{"inputs":["a"],"probabilities":true}', 422, "no_scores"),
])
def test_refusals_have_a_status(body: bytes, status: int, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        predict_request(body, "texts", "regression", LIMITS)
    assert (refused.value.status, refused.value.code) == (status, code)


def test_arrays_are_even_and_finite() -> None:
    for wrong in ([1, [2]], [[1, 2], [3]], [], [[]], ["/etc/passwd"], [True], [10**400], [[[[[1]]]]]):
        with pytest.raises(RequestRefused, match="numbers in lists|no inputs"):
            predict_request(json.dumps({"inputs": [wrong]}).encode(), "arrays", "custom", LIMITS)
    assert predict_request(b'{"inputs":[[[1,2],[3,4]]]}', "arrays", "custom", LIMITS).rows == [((1, 2), (3, 4))]


@given(st.text(max_size=12))
def test_a_name_never_leads_elsewhere(name: str) -> None:
    try:
        found = swap_request(json.dumps({"artefact": name}).encode())
    except RequestRefused as refused:
        assert refused.status in (400, 422)
    else:
        assert found == name and (Path("/a/b") / found).resolve().parent == (Path("/a/b") if found else Path("/a"))


def test_what_is_beside_is_a_folder_and_no_link(tmp_path: Path) -> None:
    home = tmp_path / "artefacts"
    for name in ("first", "second"):
        (home / name).mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (home / "link").symlink_to(tmp_path / "elsewhere")
    assert beside(home / "first", "second") == home / "second"
    for wrong in ("link", "../elsewhere", "..", ".", "", "third", "second/../../elsewhere"):
        with pytest.raises(InputError):
            beside(home / "first", wrong)


def test_prompts_are_limited() -> None:
    assert generate_request(b'{"prompt":"once","max_new_tokens":3}', LIMITS).max_new_tokens == 3
    for wrong in ({"prompt": ""}, {"prompt": "a", "max_new_tokens": 10**6}, {"prompt": "a", "temperature": -1}, {"prompt": "a", "top_p": 0}):
        with pytest.raises(RequestRefused):
            generate_request(json.dumps(wrong).encode(), LIMITS)


# ---- batches -------------------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(1, 16), st.floats(0, 1e-2), st.floats(0, 1e-4), st.floats(1e-3, 1))
def test_a_batch_holds_the_oldest_row_and_pays(sizes: list[int], most: int, fixed: float, slope: float, allowed: float) -> None:
    pace = BatchPace(fixed, slope)
    rows = chosen(sizes, most, pace, allowed)
    assert rows[0] == 0 and rows == sorted(set(rows)) and len(rows) <= most
    area = len(rows) * max(sizes[i] for i in rows)
    assert len(rows) == 1 or pace.seconds(area) <= allowed
    padding = area - sum(sizes[i] for i in rows)
    assert padding <= len(rows) * pace.worth + 1e-6                    # no row's padding costs more than a call of its own


def test_pace_is_learnt_from_calls() -> None:
    pace = BatchPace.of(wire.Member("m", "s", 8, 1, 2e-3, 9e-3, 100))
    for area in (100, 4000, 900, 2500, 60, 3100) * 20:
        pace.learn(area, 5e-3 + 2e-6 * area)
    assert pace.fixed == pytest.approx(5e-3, rel=0.02) and pace.slope == pytest.approx(2e-6, rel=0.02)


def waiting(text: str, now: float = 0.0, loop: asyncio.AbstractEventLoop | None = None) -> WaitingRow:
    return WaitingRow(text, text.encode(), now, now + 0.05, [(loop or asyncio.new_event_loop()).create_future()], lambda row, answer: None)


def test_like_lengths_share_a_batch_and_nobody_starves() -> None:
    loop = asyncio.new_event_loop()
    queue = MemberQueue(4, BatchPace(1e-4, 1e-6))
    queue.rows = [waiting(text, 0.0, loop) for text in ("a" * 5, "b" * 900, "c" * 6, "d" * 910, "e" * 7, "f" * 8, "g" * 905)]
    batches = []
    while queue.rows:
        batches.append([str(row.row)[0] for row in queue.take(1.0)])
    assert batches == [["a", "c", "e", "f"], ["b", "d", "g"]]
    gone = waiting("h", 0.0, loop)
    gone.waiters[0].cancel()
    queue.rows = [gone, waiting("i", 0.0, loop)]
    assert [row.row for row in queue.take(1.0)] == ["i"]
    loop.close()


# ---- answers kept --------------------------------------------------------------------------------------------------------------------------------


def test_answers_are_kept_exactly_and_failures_are_not() -> None:
    async def run() -> None:
        desk = ResponseDesk(warmed(10_000))
        digest = b"d" * 32
        key = desk.key(digest, "disable 2FA")
        assert key != desk.key(digest, "enable 2FA") and key != desk.key(b"e" * 32, "disable 2FA") and key != desk.key(digest, ("disable", " 2FA"))
        loop = asyncio.get_running_loop()
        row = WaitingRow("disable 2FA", key, 0.0, 1.0, [loop.create_future()], desk.settled)
        desk.begin(row)
        assert desk.flying(key) is row
        row.waiters.append(loop.create_future())                       # a second request joins
        answer = RowAnswer("no", [0.1, 0.30000000000000004], 0.5, 1)
        row.resolve(answer)
        assert [one.result() for one in row.waiters] == [answer] * 2 and desk.flying(key) is None
        again = desk.known(key)
        assert again is not None and again.record == answer.record and again.cpu == 0 and again.cached and desk.saved == pytest.approx(1.0)
        bad = WaitingRow("x", desk.key(digest, "x"), 0.0, 1.0, [loop.create_future(), loop.create_future()], desk.settled)
        desk.begin(bad)
        bad.fail(RuntimeError("gone"))
        assert all(isinstance(one.exception(), RuntimeError) for one in bad.waiters)
        assert desk.known(bad.key) is None and desk.flying(bad.key) is None

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 400)), max_size=60))
def test_memory_of_answers_is_bounded(puts: list[tuple[int, int]]) -> None:
    store, last = warmed(1000), {}
    assert len(store) == store.counts.held == store.counts.misses == 0  # nothing of the trial is left
    for key, size in puts:
        store.put(bytes([key]), b"v" * size, 1.0)
        last[bytes([key])] = size
        assert store.counts.held <= 1000
    for key, size in last.items():
        assert (value := store.get(key)) is None or len(value) == size


def test_what_took_longest_to_compute_stays() -> None:
    store = warmed(4 * (PER_ENTRY + 32))
    store.put(b"dear", bytes(16), 10.0)
    for number in range(50):
        store.put(bytes([number]), bytes(16), 0.001)
    assert store.get(b"dear") == bytes(16) and store.counts.left > 40


# ---- texts cut -----------------------------------------------------------------------------------------------------------------------------------


@functools.cache
def subject() -> Any:
    """A model of texts of at most 48 tokens."""
    found = load_model(served.network(1))
    found.tokenizer = served.tokenizer(48)
    return found


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([" ", "\n", "   "]), st.integers(0, 3000))
def test_a_cut_text_gives_the_same_tokens(seed: int, gap: str, blanks: int) -> None:
    found = subject()
    rng = np.random.default_rng(seed)
    text = " " * blanks + gap.join(rng.choice([*served.WORDS, "unknown", "x" * 150], size=900))
    part = shorten(text, found, 48)
    assert len(part) < len(text)
    whole, cut = Unread([text, ""], found, None).read(), Shortened([text, ""], found, None).read()
    for name, column in whole.columns.items():
        assert np.array_equal(column.values, cut.columns[name].values) and np.array_equal(column.offsets, cut.columns[name].offsets)
    assert whole.cut == cut.cut == 1


def test_pairs_are_cut_alike_and_only_what_is_needed_is_tokenised() -> None:
    model = subject()
    long, short = " ".join(served.texts(60, 1)), "word1 word2"
    pairs = [(long, short), (short, long), (long, long)]
    whole, cut = Unread(pairs, model, None).read(), Shortened(pairs, model, None).take([0, 1, 2]).read()
    assert all(np.array_equal(column.values, cut.columns[name].values) for name, column in whole.columns.items())
    seen: list[int] = []

    class Watching:
        truncation_side = "right"

        def __call__(self, texts: list[str], *given: object, **how: Any) -> Any:
            seen.append(sum(map(len, texts)))
            return model.tokenizer(texts, *given, **how)

    class Watched:
        tokenizer, inputs, processor = Watching(), model.inputs, None

    shorten("word1 " * 1_000_000, Watched(), 48)  # type: ignore[arg-type]
    assert sum(seen) < 10_000                                          # of six million characters


# ---- texts that grow -----------------------------------------------------------------------------------------------------------------------------


class Counting:
    """Stands for an artefact that generates: counts on from the prompt's last number."""

    def __init__(self) -> None:
        self.task = types.SimpleNamespace(kind="causal_lm", classes=None, generation=object())
        self.assembly = types.SimpleNamespace(reader=lambda: None, parts=[], gates=[])
        self.manifest: dict[str, Any] = {"parts": []}
        self.warnings: list[str] = []

    def generate(self, prompts: list[str], *, max_new_tokens: int, heard: Any, **how: object) -> list[str]:
        if not prompts[0].split()[-1].isdigit():
            raise InputError("The prompt ends in no number.", "Write one.")
        for number in range(max_new_tokens):
            heard(0, f" {int(prompts[0].split()[-1]) + number + 1}")
        return []


def test_a_worker_writes_piece_by_piece_and_goes_on_after_a_refusal() -> None:
    ours, theirs = socket.socketpair()
    worker = ArtefactWorker(Counting())  # type: ignore[arg-type]
    assert worker.ready().generates
    thread = threading.Thread(target=work_for, args=(theirs, worker))
    thread.start()
    said: list[Any] = []
    for number, prompt in ((1, "one 1"), (2, "none"), (3, "two 7")):
        ours.sendall(wire.packed(wire.GenerationJob(number, prompt, 2)))
        while True:
            body = wire.received(ours)
            assert body is not None
            said.append(wire.told_front(body))
            if isinstance(said[-1], wire.BatchRefused) or said[-1].end:
                break
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    told = [one.text if isinstance(one, wire.TextPiece) else one.message for one in said]
    assert told == [" 2", " 3", "", "The prompt ends in no number", " 8", " 9", ""]
    assert [one.number for one in said] == [1, 1, 1, 2, 3, 3, 3]


class Writing:
    """Stands for an artefact at work: writes three pieces, or raises after one."""

    about = types.SimpleNamespace(generates=True)
    waiting, free = 0, ()

    def __init__(self, dies: bool) -> None:
        self.dies = dies

    async def write(self, job: wire.GenerationJob, heard: Any) -> None:
        for number in range(3):
            if number and self.dies:
                raise WorkerDied("it was killed (signal 9)")
            heard(wire.TextPiece(1, f"{number} ", number == 2, 0.5))
            await asyncio.sleep(0)


@pytest.mark.parametrize("stream, dies, status, words", [
    (True, False, 200, ['data: {"text":"0 "}', 'data: {"text":"2 "}', "event: end", '"cpu_seconds":0.5']),
    (True, True, 200, ['data: {"text":"0 "}', "event: error", "worker_died"]),
    (False, False, 200, ['"text":"0 1 2 "', '"joules":1.0']), (False, True, 502, ["worker_died", "signal 9"]),
])
def test_texts_are_streamed_or_sent_whole(stream: bool, dies: bool, status: int, words: list[str]) -> None:
    energy = types.SimpleNamespace(totals=types.SimpleNamespace(joules=0.0, grams=None, per_cpu=2.0), charge=lambda cpu: (2 * cpu, None))
    exchange = types.SimpleNamespace(serving=Writing(dies))
    app = ServingApp(exchange, LIMITS, ResponseDesk(None), ServingMetrics(ServingLog(io.StringIO())), energy)  # type: ignore[arg-type]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": json.dumps({"prompt": "a", "max_new_tokens": 3, "stream": stream}).encode(), "more_body": False}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    asyncio.run(app({"type": "http", "path": "/generate", "method": "POST", "headers": []}, receive, send))
    text = b"".join(event.get("body", b"") for event in sent).decode()
    assert sent[0]["status"] == status and not sent[-1].get("more_body") and all(word in text for word in words), text


# ---- options, files, the port --------------------------------------------------------------------------------------------------------------------


def test_times_and_sizes() -> None:
    assert [seconds_of(text, "--x") for text in ("50ms", "2s", "1.5min", "3")] == [0.05, 2.0, 90.0, 3.0]
    assert [bytes_of(text, "--x") for text in ("256MiB", "1GB", "0", "10k", "7B")] == [256 << 20, 10**9, 0, 10_000, 7]
    for wrong in (lambda: seconds_of("soon", "--deadline"), lambda: bytes_of("much", "--cache"), lambda: ServingLimits(rows=0),
                  lambda: ServingLimits(deadline=0), lambda: ServingLimits(deadline=40.0)):
        with pytest.raises(InputError, match="\n"):
            wrong()


def test_a_port_in_use_is_told() -> None:
    with listening("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use.*\n.*--port 0"):
        listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="\n"):
        listening("127.0.0.1", 70_000)
    with pytest.raises(InputError, match="Cannot listen"):
        listening("192.0.2.1", 0)
    assert isinstance(taken, socket.socket)


def test_files_for_other_places(tmp_path: Path) -> None:
    manifest = {"parts": [{"setting": {"engine": "onnxruntime"}}, {"setting": {"engine": "openvino"}}]}
    assert deployment.extras(manifest) == ["onnx", "openvino", "serve"]
    made = deployment.write(tmp_path / "out", tmp_path / "cheap", manifest, ["--site", "a b%c"], 30.0)
    docker, unit = (path.read_text() for path in made)
    lines = [line for line in docker.splitlines() if line.startswith("CMD")]
    assert json.loads(lines[-1].removeprefix("CMD "))[:3] == ["fourfold", "serve", "/srv/artefact"] and "USER 10001" in docker
    assert "'a b%%c'" in unit and "ExecReload=/bin/kill -HUP" in unit and "NoNewPrivileges=yes" in unit
    deployment.write(tmp_path / "out", tmp_path / "cheap", manifest, [], 30.0)   # ours are replaced
    made[0].write_text("FROM mine\n")
    with pytest.raises(InputError, match="written by something else"):
        deployment.write(tmp_path / "out", tmp_path / "cheap", manifest, [], 30.0)
    with pytest.raises(InputError, match="Dockerfile"):
        deployment.dockerfile(Path('a"b'), manifest, [], "1", 30.0)


def test_the_description_is_whole_and_needs_nothing_from_elsewhere() -> None:
    about: dict[str, object] = {"name": "<i>", "version": "1", "kind": "classification", "reads": "texts", "generates": True}
    described = openapi.document(about, 8, 100, 16, True)
    paths = described["paths"]
    assert isinstance(paths, dict) and {"/predict", "/generate", "/admin/swap", "/metrics"} <= set(paths)
    assert msgspec.json.decode(msgspec.json.encode(described)) == described
    page = openapi.page(described)
    assert "<script" not in page and "http" not in page.replace("http:", "") and "src=" not in page and "<i>" not in page
