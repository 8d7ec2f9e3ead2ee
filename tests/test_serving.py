"""A loaded artefact in service: from several threads, in forked children, in asyncio, and without torch where the engine's files stand alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served

import fourfold
from fourfold.engines._pool import Pool, replica

KINDS = ("onnxruntime", "openvino", "torch", "words", "cascade")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An artefact of each kind."""
    at = tmp_path_factory.mktemp("served")
    files = at / "files"
    made = {e: served.part(files / e, e, threads=2) for e in ("onnxruntime", "openvino", "torch")}
    second = served.part(files / "second", "torch", name="second", net=served.network(3, 48, seed=1))
    found = {engine: served.saved(at / engine, [part]) for engine, part in made.items()}
    found["words"] = served.saved(at / "words", [served.words()])
    made["openvino"].name = "first"
    found["cascade"] = served.saved(at / "cascade", [served.words(), made["openvino"], second], [0.7, 0.5])
    return found


def run(code: str, *arguments: Any, seconds: int = 900) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


# ---- threads -------------------------------------------------------------------------------------------------------------------------------------


def alike(model: Any, texts: list[str], threads: int = 8) -> None:
    """Each text alone, from many threads, gives what it gives from one; all threads begin at once."""
    alone = [model.records([text]) for text in texts]
    begin = threading.Barrier(threads)

    def work(number: int) -> list[np.ndarray]:
        begin.wait()
        return [model.records([text]) for text in texts[number:] + texts[:number]]

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(work, range(threads)))
    for number, found in enumerate(answers):
        for wanted, got in zip(alone[number:] + alone[:number], found, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_get_what_one_gets(kind: str, room: dict[str, Path]) -> None:
    model = fourfold.load(room[kind])
    alike(model, served.texts(40, 1))
    model.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_batches_side_by_side_give_what_one_after_another_gives(engine: str, room: dict[str, Path]) -> None:
    model = fourfold.load(room[engine])
    (part,) = model.assembly.parts
    part.setting.threads, part.setting.batch = 1, 4
    part.close()
    examples, told = model.encode(served.texts(50, 3)), []
    wanted = part.outputs(examples, model.task)
    found = part.outputs(examples, model.task, 3, told.append)
    assert sum(told) == 50 and len(told) == 13
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    model.close()


@pytest.mark.parametrize("kind", ["onnxruntime", "torch", "cascade"])
def test_the_first_call_may_come_from_many_threads(kind: str, room: dict[str, Path]) -> None:
    """Sessions, tokenizers and modules are made on demand: once, whoever asks first."""
    texts = served.texts(24, 2)
    wanted = fourfold.load(room[kind]).predict(texts)
    model = fourfold.load(room[kind])
    model.close()
    begin = threading.Barrier(8)

    def work(_: int) -> tuple[list[Any], list[int]]:
        begin.wait()
        return model.predict(texts), [id(part.module) for part in model.assembly.parts]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert all(answers == wanted for answers, _ in found)
    assert len({tuple(modules) for _, modules in found}) == 1


def test_a_tokenizer_that_only_transformers_can_run_serves_threads_too(room: dict[str, Path], tmp_path: Path) -> None:
    """Texts of other lengths set other truncations; two threads in one tokenizer of transformers would raise or cut at the other's length."""
    manifest = json.loads((room["onnxruntime"] / "manifest.json").read_text())
    assert manifest["parts"][0]["reading"]["tokens"]["direct"] is True
    del manifest["parts"][0]["reading"]
    import shutil

    copy = tmp_path / "old"
    shutil.copytree(room["onnxruntime"], copy)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    model, texts = fourfold.load(copy), served.texts(20, 4)
    assert model.assembly.parts[0].subject.tokenizer.direct is False
    np.testing.assert_array_equal(model.records(texts), fourfold.load(room["onnxruntime"]).records(texts))
    alike(model, texts)
    tokenizer = model.assembly.parts[0].subject.tokenizer
    lengths = [4 + i % 8 for i in range(160)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: tokenizer([texts[0] * 3], truncation=True, max_length=n)["input_ids"][0], lengths))
    assert [len(ids) for ids in found] == lengths


def test_a_module_that_keeps_things_between_layers_serves_threads() -> None:
    """What forward leaves in its module is that caller's own, while the weights are shared."""
    import torch
    from torch import nn

    from fourfold.engines.base import Signature
    from fourfold.engines.torch import TorchSession

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = x
            for _ in range(20):
                y = self.inner(self.kept)
            return y + self.kept

    module = Keeps().eval()
    example = {"x": np.zeros((2, 64), np.float32)}
    session = TorchSession(module, Signature.of(["x"], [example]), "fp32", 1)
    given = [np.full((2, 64), float(i), np.float32) for i in range(64)]
    wanted = [session.run({"x": x}) for x in given]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: session.run({"x": x}), given))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    copy = replica(module)
    assert copy.inner is not module.inner and copy.inner.weight is module.inner.weight


def test_what_cannot_be_copied_is_lent_to_one_at_a_time() -> None:
    def never() -> list[int]:
        raise TypeError("cannot be copied")

    pool: Pool[list[int]] = Pool(never, shared=[0])

    def work(_: int) -> None:
        with pool.one() as held:
            before = held[0]
            threading.Event().wait(0.001)
            held[0] = before + 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    with pool.one() as held:
        assert held == [40]


def test_members_see_their_own_examples() -> None:
    """A re-encoding is kept for one set of examples; another thread's must not be taken for it."""
    from fourfold.datasets.examples import Examples
    from fourfold.runtime.artefact import Part, Setting

    def shifted(examples: Examples) -> Examples:
        threading.Event().wait(0.0005)
        return Examples({"x": examples.columns["x"] + 1})

    part = Part("p", None, None, None, Setting(), reencode=shifted)  # type: ignore[arg-type]
    sets = [Examples({"x": np.full((2, 1), i)}) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(part.sees, sets * 3))
    assert [int(e.columns["x"][0, 0]) for e in found] == [i + 1 for i in range(40)] * 3


@pytest.mark.slow
def test_compiled_code_in_eight_threads(tmp_path: Path) -> None:
    from fourfold.engines import engine
    from fourfold.host import here

    if reason := engine("inductor").declines("fp32", here()):
        pytest.skip(reason)
    model = fourfold.load(served.saved(tmp_path / "compiled", [served.part(tmp_path / "files", "inductor")]))
    assert model.warnings == []
    alike(model, served.texts(16, 1))


def test_asyncio(room: dict[str, Path]) -> None:
    model, texts = fourfold.load(room["cascade"]), served.texts(40, 6)
    wanted = [model.predict([text])[0] for text in texts]

    async def serve() -> list[Any]:
        loop = asyncio.get_running_loop()
        return [found[0] for found in await asyncio.gather(*(loop.run_in_executor(None, model.predict, [text]) for text in texts))]

    assert asyncio.run(serve()) == wanted


# ---- forks: each in a process of its own ---------------------------------------------------------------------------------------------------------

FORK = """
import json, os, sys, threading
import numpy as np
import fourfold

texts = json.loads(sys.argv[2])
model = fourfold.load(sys.argv[1])
wanted = model.records(texts)
stop = threading.Event()
busy = [threading.Thread(target=lambda: [model.predict(texts[:2]) for _ in iter(stop.is_set, True)]) for _ in range(2)]
[t.start() for t in busy]                                              # the fork happens while others are at work
children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        close = np.abs(model.records(texts) - wanted).max() < 1e-4     # opened anew here, with no thread of the parent
        os._exit(0 if close and model.predict(texts) else 7)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
[t.join() for t in busy]
assert np.abs(model.records(texts) - wanted).max() < 1e-4
print(json.dumps(codes))
"""


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in ("torch", "cascade") else k for k in KINDS])
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_a_forked_child_answers(kind: str, room: dict[str, Path]) -> None:
    assert run(FORK, room[kind], json.dumps(served.texts(20, 7))) == "[0, 0]"


ASLEEP = """
import json, os, sys, threading
awake = []

def look():
    known = {thread.native_id for thread in threading.enumerate()}
    states = [open(f"/proc/self/task/{n}/stat").read().rpartition(")")[2].split()[0] for n in os.listdir("/proc/self/task") if int(n) not in known]
    awake.append([len(states), sum(state in "RD" for state in states)])

os.register_at_fork(before=look)                                       # what is registered first is called last: it sees what the fork will see
import fourfold

texts = json.loads(sys.argv[2])
model = fourfold.load(sys.argv[1])
model.records(texts)
stop = threading.Event()
busy = [threading.Thread(target=lambda: [model.predict(texts[:2]) for _ in iter(stop.is_set, True)]) for _ in range(2)]
[t.start() for t in busy]
for _ in range(30):
    threading.Event().wait(0.003)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
stop.set()
[t.join() for t in busy]
print(json.dumps(awake))
"""


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_fork_happens_while_the_threads_of_engines_sleep(kind: str, room: dict[str, Path]) -> None:
    """A thread of an engine that is awake may hold a lock, which nobody would release in the child: it would wait for ever."""
    found = json.loads(run(ASLEEP, room[kind], json.dumps(served.texts(20, 7))))
    assert len(found) == 30 and min(threads for threads, _ in found) >= 1 and sum(awake > 0 for _, awake in found) <= 1, found


def test_waiting_for_sleep_ends() -> None:
    """A thread that Python did not start and that does not sleep delays a fork by no more than the wait's bound; Python's own do not."""
    code = """
import os
import threading
os.environ.update(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")            # the tests' own processes have one thread each
import torch
from fourfold.engines._fork import settle

def until(stop, work):
    while not stop.is_set():
        work()

def beside(work, ask):
    stop = threading.Event()
    thread = threading.Thread(target=until, args=(stop, work))
    thread.start()
    try:
        return ask()
    finally:
        stop.set()
        thread.join()

assert settle(60.0) and beside(lambda: None, lambda: settle(60.0))
torch.set_num_threads(2)
x = torch.rand(1200, 1200)
assert not beside(lambda: x @ x, lambda: all(settle(0.02) for _ in range(200)))    # one half of each product is the work of such a thread
assert settle(60.0)
print("done")
"""
    assert run(code) == "done"


# ---- what is not loaded --------------------------------------------------------------------------------------------------------------------------

LEAN = """
import json, sys
import fourfold
model = fourfold.load(sys.argv[1])
answers = model.predict(json.loads(sys.argv[2]))
loaded = sorted({"torch", "transformers", "scipy.optimize", "onnx", "nncf"} & set(sys.modules))
print(json.dumps([answers, loaded, model.warnings]))
"""


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino", "words"])
def test_an_engine_that_stands_alone_needs_neither_torch_nor_transformers(kind: str, room: dict[str, Path]) -> None:
    texts = served.texts(12, 8)
    answers, loaded, warnings = json.loads(run(LEAN, room[kind], json.dumps(texts)))
    assert (loaded, warnings) == ([], [])
    model = fourfold.load(room[kind])
    assert answers == model.predict(texts)
    if kind != "words":
        assert type(model.module).__name__ == "BertForSequenceClassification"  # made when it is asked for


def test_the_command_line_is_as_lean(room: dict[str, Path]) -> None:
    code = """
import sys
from fourfold.cli.main import run
code = run(["predict", sys.argv[1], "--text", "word1 word2"])
print(code, sorted({"torch", "transformers", "rich"} & set(sys.modules)))
"""
    assert run(code, room["openvino"]) == "0 []"


def test_tokens_are_those_of_transformers(room: dict[str, Path]) -> None:
    """The tokenizer's file alone, the tokenizer of transformers, and what the manifest says of both."""
    from fourfold.runtime.tokens import ASKED, TRIED, Tokens, facts

    folder = room["onnxruntime"] / "net" / "tokenizer"
    real = served.tokenizer()
    said = facts(real, folder)
    assert said is not None and said["direct"]
    alone = Tokens(folder, said, lambda: pytest.fail("transformers was asked"))
    for name in ASKED:
        assert getattr(alone, name) == getattr(real, name)
    for length in (5, 9, 40):
        for pairs in (None, TRIED[::-1]):
            told = real(list(TRIED), None if pairs is None else list(pairs), truncation=True, max_length=length, return_token_type_ids=True)
            given = alone(list(TRIED), pairs, truncation=True, max_length=length)
            assert told["input_ids"] == given["input_ids"] and told["token_type_ids"] == given["token_type_ids"]
            assert [bool(e.overflowing) for e in told.encodings] == [bool(e.overflowing) for e in given.encodings]


def test_a_tokenizer_that_does_more_than_its_file_is_found_out(tmp_path: Path) -> None:
    from fourfold.runtime.tokens import facts

    real = served.tokenizer()
    real.save_pretrained(tmp_path)
    kind = type(real)

    class Strips(kind):  # type: ignore[misc,valid-type]
        def __call__(self, texts: Any, pairs: Any = None, **how: Any) -> Any:
            return super().__call__([text.replace("joy", "word1") for text in texts], pairs, **how)

    real.__class__ = Strips
    said = facts(real, tmp_path)
    assert said is not None and said["direct"] is False
    (tmp_path / "tokenizer.json").unlink()
    assert (facts(served.tokenizer(), tmp_path) or {})["direct"] is False


def test_members_with_other_tokenizers_read_the_texts_themselves(tmp_path: Path) -> None:
    """The tokens of one vocabulary are not another's."""
    from tokenizers import Tokenizer

    other = served.tokenizer()
    core = json.loads(other.backend_tokenizer.to_str())
    names = [w for w in core["model"]["vocab"] if w.startswith("word")]
    ids = [core["model"]["vocab"][w] for w in names]
    core["model"]["vocab"].update(dict(zip(names, reversed(ids), strict=True)))
    other._tokenizer = Tokenizer.from_str(json.dumps(core))
    first = served.part(tmp_path / "a", "torch", name="first", net=served.network(seed=2), read=other)
    second = served.part(tmp_path / "b", "torch", name="second", net=served.network(seed=3))
    texts = served.texts(30, 11)
    folder = served.saved(tmp_path / "both", [first, second], [0.5])
    gate = fourfold.load(folder).assembly.gates[0]
    alone = [fourfold.load(served.saved(tmp_path / name, [part])).records(texts) for name, part in (("one", first), ("two", second))]
    kept = gate.keeps(alone[0])
    assert kept.any() and not kept.all()
    np.testing.assert_allclose(fourfold.load(folder).records(texts), np.where(kept[:, None], alone[0] / gate.temperature, alone[1]), atol=1e-5)
