"""Generated instances of `allocate`: buffer lives of real models at a capacity on the lower bound or little above, and random ones at 90 to 100 %
load, 100 to 2,000 buffers each; ours beside CP-SAT and omnimalloc at equal processor time.

`benchmarks/allocate.py DATA --parts generated` runs it; every run of a solver is kept in the work folder, so that a second call goes on. The order of
instances is such that any prefix has all kinds in their shares: peers are asked the first `--peers`, ours all `--instances`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from fourfold.decisions.allocate import exact
from fourfold.decisions.allocate._restarts import StopFlag
from fourfold.decisions.allocate._sources import of_graph
from fourfold.decisions.allocate.instance import Buffers
from fourfold.decisions.allocate.problem import Allocate
from fourfold.errors import FourfoldError, Infeasible
from fourfold.graph import Graph
from fourfold.journal import Journal
from fourfold.problem import Budget, solve
from fourfold.registry import technique
from fourfold.zoo.packings import carved, perfect, scattered

COUNT = 1000
FEWEST, MOST = 100, 2000                                                # buffers
OURS, PEERS = ("minimalloc", "portfolio"), ("CP-SAT", "omnimalloc")
PACKED, REFUTED, UNKNOWN, FAILED = "packed", "refuted", "unknown", "failed"
_AGAIN = 4                                                              # times that omnimalloc is asked for one answer at most
_FIRST = 60                                                             # instances that everybody is asked before the rest
_EVALUATIONS = 1 << 40                                                  # the clock ends a run
_WORKER = """
import json, sys, time
import omnimalloc as om
from omnimalloc.allocators.supermalloc import SupermallocAllocator
om.set_max_threads(1)
for line in sys.stdin:
    rows, timeout = json.loads(line)
    wall, begun = time.perf_counter(), time.process_time()
    allocs = tuple(om.Allocation(id=i, size=s, start=a, end=z) for i, (a, z, s) in enumerate(rows))
    found = SupermallocAllocator(timeout=timeout, num_threads=1).solve(allocs)
    cpu, wall = time.process_time() - begun, time.perf_counter() - wall
    at = {a.id: a.offset for a in found.allocations}
    print(json.dumps({"offsets": [at[i] for i in range(len(rows))], "peak": found.peak, "proved": found.proved_optimal, "cpu": cpu, "wall": wall}),
          flush=True)
"""


class CpuBudget(Budget):
    """A budget of CPU seconds of this process, all threads: other work on the machine does not count."""

    def restart(self) -> None:
        super().restart()
        self._cpu = time.process_time()

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - (time.process_time() - self._cpu))


# ---- instances

def _hub(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A model of the transformers library from its configuration: the published depth, narrow, without weights of anybody's."""
    import torch
    import transformers as hub

    ids, image = torch.zeros(4, 48, dtype=torch.long), torch.zeros(2, 3, 64, 64)
    narrow: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256}
    if name == "bert-base":
        return hub.BertForSequenceClassification(hub.BertConfig(vocab_size=512, num_hidden_layers=12, **narrow)), (ids,)
    if name == "gpt2-small":
        return hub.GPT2LMHeadModel(hub.GPT2Config(vocab_size=512, n_embd=64, n_layer=12, n_head=4, use_cache=False)), (ids,)
    if name == "llama-16":
        config = hub.LlamaConfig(vocab_size=512, num_hidden_layers=16, num_key_value_heads=2, use_cache=False, **narrow)
        return hub.LlamaForCausalLM(config), (ids,)
    if name == "vit-base":
        return hub.ViTForImageClassification(hub.ViTConfig(image_size=64, patch_size=8, num_hidden_layers=12, **narrow)), (image,)
    if name == "resnet-50":
        return hub.ResNetForImageClassification(hub.ResNetConfig(embedding_size=16, hidden_sizes=[64, 128, 256, 512])), (image,)
    return hub.ConvNextForImageClassification(hub.ConvNextConfig(hidden_sizes=[24, 48, 96, 192], depths=[3, 3, 9, 3])), (image,)


HUB = ("bert-base", "gpt2-small", "llama-16", "vit-base", "resnet-50", "convnext-tiny")


def sources() -> dict[str, Callable[[], Graph]]:
    """name → how its graph is captured: real models, as they answer and as they train."""
    import branchy_models
    import training_models

    from fourfold.frontends.capture import capture

    def of(make: Callable[[str], tuple[Any, tuple[Any, ...]]], name: str, train: bool) -> Callable[[], Graph]:
        def captured() -> Graph:
            module, inputs = make(name)
            return capture(module.train(train), inputs, train=train).graph

        return captured

    rooms = (*((training_models.made, name) for name in training_models.MODELS), *((branchy_models.made, name) for name in branchy_models.MODELS),
             *((_hub, name) for name in HUB))
    return {f"{name}{', training' * train}": of(make, name, train) for train in (False, True) for make, name in rooms}


def graphs(folder: Path) -> dict[str, Graph]:
    """The captured graphs that have between FEWEST and MOST buffers; kept in `folder`, where what could not be captured is noted."""
    found: dict[str, Graph] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, captured in sources().items():
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.npz"
        if path.with_suffix(".refused").exists():
            continue
        if not path.exists():
            try:
                captured().save(path)
            except (FourfoldError, RuntimeError, ImportError) as error:
                path.with_suffix(".refused").write_text(str(error))
                print(f"{name} is left out: {str(error).splitlines()[0]}", flush=True)
                continue
        graph = Graph.load(path)
        if FEWEST <= len(of_graph(graph)) <= MOST:
            found[name] = graph
    return found


def shuffled(graph: Graph, dice: np.random.Generator) -> np.ndarray:
    """A random order of a graph's nodes that keeps every node behind what it reads; i4[N]. Depth first three times in four: what a scheduler with
    one eye on memory makes, and at random else."""
    n = len(graph)
    maker = graph.producer[graph.in_val]
    reader = np.repeat(np.arange(n), np.diff(graph.in_ptr))
    keep = maker >= 0
    users: list[list[int]] = [[] for _ in range(n)]
    waiting = np.zeros(n, np.int64)
    for a, b in {(int(a), int(b)) for a, b in zip(maker[keep], reader[keep], strict=True)}:
        users[a].append(b)
        waiting[b] += 1
    deep, ready, order = dice.random() < 0.75, np.flatnonzero(waiting == 0).tolist(), list[int]()
    while ready:
        at = len(ready) - 1 if deep and dice.random() < 0.9 else int(dice.integers(len(ready)))
        node = ready.pop(at)
        order.append(node)
        for user in users[node]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    return np.array(order, np.int32)


def instance(number: int, known: dict[str, Graph]) -> tuple[str, Allocate]:
    """(kind, problem) of a number: even ones are captured, odd ones scattered and carved in turns, all else drawn by the number."""
    dice = np.random.default_rng(77_000 + number)
    if number % 2 == 0:
        names = sorted(known)
        turn, place = divmod(number // 2, len(names))
        name = names[int(np.random.default_rng(turn).permutation(len(names))[place])]
        graph = known[name]
        order = None if dice.random() < 0.25 else shuffled(graph, dice)
        found = of_graph(graph, order, alignment=int(dice.choice([64, 512])))
        plain = Buffers(found.ids, found.lower, found.upper, found.size)
        spare = float(dice.choice([1.0, 1.0, 1.005, 1.02]))
        return f"captured: {name}", Allocate(plain.limited(int(Allocate(plain).bound() * spare)))
    count, load = int(np.exp(dice.uniform(np.log(FEWEST), np.log(MOST)))), float(dice.choice([0.9, 0.925, 0.95, 0.975, 1.0]))
    lower, upper, size, capacity = (carved if number % 4 == 1 else scattered)(number, count, load)
    buffers = Buffers(tuple(map(str, range(len(size)))), lower, upper, size, banks=np.array([capacity]))
    return f"{'carved' if number % 4 == 1 else 'scattered'} at {load:.1%}", Allocate(buffers)


# ---- solvers

def _checked(problem: Allocate, offsets: np.ndarray | None, who: str) -> str:
    """The state of an answer that claims to be a packing. Ends the program where the validator finds something in it."""
    if offsets is None or problem.cost(offsets) > (problem.capacity or 0):
        return UNKNOWN
    if wrong := problem.violations(offsets):
        raise SystemExit(f"{who} gave a packing that is none: {wrong[0]}")
    return PACKED


def ours(name: str, problem: Allocate, seconds: float) -> dict[str, Any]:
    """One of our packers, warm, within so many CPU seconds of all its threads."""
    cpu, state = time.process_time(), UNKNOWN
    try:
        state = _checked(problem, solve(problem, technique(f"allocate/{name}")(), CpuBudget(seconds, _EVALUATIONS), 0).answer, name)
    except Infeasible as none:
        state = REFUTED if "No packing exists" in str(none) else UNKNOWN
    return {"state": state, "cpu": time.process_time() - cpu}


def plain(problem: Allocate, seconds: float) -> dict[str, Any]:
    """CP-SAT's own search on rectangles that do not overlap and a cumulative constraint, one worker; no packing of ours before it."""
    parts, cpu = problem.buffers.parts(), time.process_time()
    free = np.concatenate([[0], np.cumsum(parts.extent)[:-1]])          # no hint: only the capacity limits offsets
    budget = CpuBudget(seconds, _EVALUATIONS)
    budget.restart()
    with StopFlag(budget) as stop:
        found, least = exact.search(problem, free, budget, stop, 0)
    state = _checked(problem, None if found is None else parts.offsets(found), "CP-SAT")
    refuted = found is None and least is not None and least * parts.unit > (problem.capacity or 0)
    return {"state": REFUTED if refuted else state, "cpu": time.process_time() - cpu}


class Omni:
    """A process that has omnimalloc 1.0.0, asked one instance after another: its branch and bound behind its greedy portfolio (`supermalloc`), one
    thread. It is told no capacity, so it minimises. Its clock is the wall's: it gets longer where other work took processor time from it."""

    def __init__(self, python: Path) -> None:
        self.python, self.share = python, 1.0
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, problem: Allocate, seconds: float) -> dict[str, Any]:
        """One answer; where other work left it less processor time than it is due, it is asked again, for longer."""
        for _ in range(_AGAIN):
            found = self._ask(problem, seconds)
            if found["state"] != UNKNOWN or found["cpu"] >= 0.9 * seconds:
                break
        return found

    def _ask(self, problem: Allocate, seconds: float) -> dict[str, Any]:
        if self._process is None:
            self._process = subprocess.Popen([str(self.python), "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        parts, timeout = problem.buffers.parts(), seconds / self.share
        rows = np.stack([parts.lower, parts.upper, parts.size], 1).tolist()
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Timer(6 * timeout + 30, self._process.kill)
        late.start()
        try:
            self._process.stdin.write(json.dumps([rows, timeout]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            late.cancel()
        if not line:
            self.__exit__()
            return {"state": FAILED, "cpu": seconds}
        found = json.loads(line)
        if found["wall"] > 1:
            self.share = min(1.0, max(0.01, 0.9 * found["cpu"] / found["wall"]))
        units = np.zeros(len(parts.extent), np.int64)
        units[parts.owner] = found["offsets"]                           # all instances are plain: a rectangle for each offset
        state = _checked(problem, parts.offsets(units), "omnimalloc")
        if state == UNKNOWN and found["proved"]:
            state = REFUTED
        return {"state": state, "cpu": found["cpu"]}


# ---- the part

def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everybody on a few, then ours on the first `instances`, then the peers on the first `peers` of them, until `minutes` are over."""
    known, began = graphs(options.work / "graphs"), time.monotonic()
    journal = Journal(options.work / "generated", {"code": _code(), "seconds": options.seconds})
    lower, upper, size, capacity = perfect(0, 150)
    for name in OURS:                                                   # once before: compiling
        ours(name, Allocate(Buffers(tuple(map(str, range(len(size)))), lower, upper, size, banks=np.array([capacity]))), 60.0)
    kinds: dict[int, tuple[str, int]] = {}
    rows: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in (*OURS, *PEERS)}

    def over() -> bool:
        return options.minutes is not None and time.monotonic() - began > 60 * options.minutes

    with Omni(options.omni) if options.omni else Omni(Path("python")) as omni:
        asked: dict[str, Callable[[Allocate], dict[str, Any]]] = {name: lambda problem, name=name: ours(name, problem, options.seconds)
                                                                  for name in OURS}
        asked["CP-SAT"] = lambda problem: plain(problem, options.seconds)
        if options.omni:
            asked["omnimalloc"] = lambda problem: omni.ask(problem, options.seconds)
        peers, most = [name for name in PEERS if name in asked], min(options.peers, options.instances)
        for group, count in (([*OURS, *peers], min(_FIRST, most)), (OURS, options.instances), (peers, most)):
            for number in range(count):
                if over():
                    break
                kind, problem = instance(number, known)
                kinds[number] = kind, len(problem.buffers)
                for name in group:
                    rows[name][number] = journal.once(f"{number}/{name}", lambda: asked[name](problem))     # noqa: B023 — it is called at once
                if number % 50 == 49:
                    print(number + 1, {name: sum(one["state"] in (PACKED, REFUTED) for one in rows[name].values()) for name in group}, flush=True)
    journal.close()
    _agree(rows)
    return {"kinds": [kinds[i][0] for i in sorted(kinds)], "buffers": [kinds[i][1] for i in sorted(kinds)], "seconds": options.seconds,
            "solvers": {name: {"state": [mine[i]["state"] for i in sorted(mine)], "cpu": [round(mine[i]["cpu"], 4) for i in sorted(mine)]}
                        for name, mine in rows.items() if mine}}


def _agree(rows: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Nobody may pack what another has refuted."""
    for number in {i for mine in rows.values() for i in mine}:
        said = {name: mine[number]["state"] for name, mine in rows.items() if number in mine}
        if {PACKED, REFUTED} <= set(said.values()):
            raise SystemExit(f"instance {number}: {said}")


def _code() -> str:
    """The version of what is measured: packers and generators."""
    home = Path(__file__).parent.parent
    return subprocess.run(["git", "rev-parse", "HEAD:fourfold/decisions/allocate", "HEAD:fourfold/zoo/packings.py"], cwd=home, capture_output=True,
                          text=True, check=True).stdout
