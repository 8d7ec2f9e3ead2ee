"""HALP: what it learns, what it follows, and that it forgets; on traces whose answer is known and on an open one."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from fourfold.decisions.cache._halp import FEATURES, LearnedCache, _learn, _score, fresh
from fourfold.decisions.cache._replay import replayed
from fourfold.decisions.cache._state import LIRS, LRU, S3FIFO
from fourfold.decisions.cache._synthetic import synthetic
from fourfold.decisions.cache.halp import Halp
from fourfold.decisions.cache.instance import RequestTrace
from fourfold.decisions.cache.problem import Cache
from fourfold.problem import Budget
from fourfold.runtime.cache import ResponseCache

OPEN = Path(__file__).parent.parent.parent / "shared" / "data" / "cache" / "cloudPhysicsIO.oracleGeneral.bin.xz"


def missed(trace: RequestTrace, capacity: int, seed: int = 0) -> float:
    problem = Cache(trace, capacity)
    answer = Halp().solve(problem, Budget(evaluations=10**9), seed)
    assert not problem.violations(answer.answer)
    return problem.cost(answer.answer)


def test_a_step_of_learning_lowers_the_loss_as_its_gradient_says() -> None:
    rng = np.random.default_rng(0)
    h = fresh(4, 1, 1024, 1000, seed=1)
    won, lost = (rng.normal(size=FEATURES).astype(np.float32) for _ in range(2))

    def loss() -> float:
        return float(np.log1p(np.exp(_score(h, lost, h.hidden[1]) - _score(h, won, h.hidden[0]))))

    before = [loss()]
    for _ in range(50):
        _learn(h, won, lost)
        before.append(loss())
    assert before[-1] < 0.3 * before[0] and before[1] < before[0]


def test_the_network_alone_learns_to_let_scanned_objects_go() -> None:
    """A loop of objects that come back amid objects that never do: of eight candidates the network learns to let these go, recency does not."""
    rng = np.random.default_rng(0)
    keys, fresh_ones = np.arange(60_000) % 200, 10**6 + np.arange(60_000)
    ids = np.where(rng.random(60_000) < 0.7, fresh_ones, keys)
    trace = RequestTrace.of(ids)
    cache = LearnedCache(350, trace.objects, 1.0, 0, arms=((LRU, 8),))
    outcome, when, who = np.zeros(len(trace), np.uint8), np.zeros(len(trace), np.int32), np.zeros(len(trace), np.int32)
    cache.replay(trace.ids, trace.sizes, outcome, when, who)
    mine = float((outcome[20_000:] != 1).mean())
    problem = Cache(trace, 350)
    recency = problem.cost(replayed(LRU, trace, 350)) / len(trace)
    assert mine < 0.85 * recency


@pytest.mark.parametrize("seed", range(4))
def test_never_much_worse_than_the_better_of_two_rules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = synthetic(60_000, 4_000, zipf=float(rng.uniform(0.6, 1.1)), once=float(rng.uniform(0, 0.4)), churn=float(rng.uniform(0, 0.2)),
                      scans=float(rng.uniform(0, 0.2)), loops=float(rng.uniform(0, 0.2)), seed=seed)
    capacity = trace.footprint // 20
    problem = Cache(trace, capacity)
    best = min(problem.cost(replayed(kind, trace, capacity)) for kind in (LRU, S3FIFO))
    assert missed(trace, capacity, seed) <= 1.005 * best


def test_in_pieces_it_is_what_it_is_whole_and_seeds_decide() -> None:
    trace = synthetic(8_000, 500, once=0.3, seed=2)
    found = []
    for piece in (8_000, 37, 8_000):
        cache, out = LearnedCache(60, trace.objects, 1.0, 5), []
        for at in range(0, len(trace), piece):
            ids, sizes = trace.ids[at:at + piece], trace.sizes[at:at + piece]
            outcome, when, who = np.zeros(len(ids), np.uint8), np.zeros(len(ids), np.int32), np.zeros(len(ids), np.int32)
            left = cache.replay(ids, sizes, outcome, when, who)
            out += [*outcome.tolist(), *who[:left].tolist()] if piece == 8_000 else outcome.tolist()
        found.append(out[: len(trace)])
    assert found[0] == found[1] == found[2]


def test_a_response_cache_keeps_to_its_bytes_under_it() -> None:
    kept = ResponseCache(200_000, "halp", seed=1)
    rng = np.random.default_rng(1)
    hits = 0
    for key in (rng.zipf(1.3, 4_000) % 3_000).tolist():
        name = f"key {key}".encode()
        if kept.get(name) is None:
            kept.put(name, b"x" * int(50 + key % 500), 1.0)
        else:
            hits += 1
    assert hits > 1_000


@pytest.mark.skipif(not OPEN.exists(), reason="the open traces are not beside the project")
def test_an_open_trace_at_a_tenth_is_nine_per_cent_below_lru() -> None:
    with lzma.open(OPEN) as file:
        raw = np.frombuffer(file.read(), np.dtype([("t", "<u4"), ("id", "<u8"), ("s", "<u4"), ("n", "<i8")]))
    trace = RequestTrace.of(raw["id"], raw["s"])
    capacity = trace.footprint // 10
    problem = Cache(trace, capacity)
    lru, s3fifo, lirs = (problem.cost(replayed(kind, trace, capacity)) for kind in (LRU, S3FIFO, LIRS))
    mine = missed(trace, capacity)
    assert mine <= 0.91 * lru and mine < s3fifo and mine <= 1.005 * lirs
