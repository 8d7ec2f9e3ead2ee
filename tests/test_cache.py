"""The question cache: the validator beside a plain dictionary, a bound under Belady, and published rows of an open trace."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from fourfold.decisions.cache._lirs import lirs_sound
from fourfold.decisions.cache._replay import replayed
from fourfold.decisions.cache._state import BELADY, FIFO, GDSF, LFU, LIRS, LRU, S3FIFO, SIEVE, TWOQ, new
from fourfold.decisions.cache.instance import Evictions, RequestTrace
from fourfold.decisions.cache.problem import Cache
from fourfold.decisions.cache.validate import misses
from fourfold.errors import InputError

OPEN = Path(__file__).parent.parent.parent / "shared" / "data" / "cache" / "cloudPhysicsIO.oracleGeneral.bin.xz"


@pytest.mark.parametrize("seed", range(5))
def test_lru_is_what_a_dictionary_does(seed: int) -> None:
    problem = Cache.sample(seed)
    inside: dict[int, int] = {}
    missed = []
    for o, size in zip(problem.trace.ids.tolist(), problem.trace.sizes.tolist(), strict=True):
        missed.append(o not in inside)
        if o in inside:
            inside[o] = inside.pop(o)
        elif size <= problem.capacity:
            while sum(inside.values()) + size > problem.capacity:
                del inside[next(iter(inside))]
            inside[o] = size
    found, broken = misses(problem.trace, problem.capacity, replayed(LRU, problem.trace, problem.capacity))
    assert not broken and found.tolist() == missed


def test_the_validator_refuses_what_cannot_happen() -> None:
    problem = Cache(RequestTrace.of(np.array([1, 2, 1, 3])), 2)
    none = np.zeros(4, bool)

    def said(when: list[int], who: list[int]) -> str:
        return " ".join(problem.violations(Evictions(none, np.array(when, np.int32), np.array(who, np.int32))))

    assert said([3], [1]) == "" and "more than its 2 bytes" in said([], []) and "not in the cache" in said([3], [2])
    assert "nothing enters" in said([2], [1]) and "out of order" in said([3, 1], [1, 0])
    assert problem.cost(Evictions(none, np.array([3], np.int32), np.array([1], np.int32))) == 3


def test_no_policy_is_below_the_bound_and_belady_is_best_where_sizes_are_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        problem = Cache(RequestTrace.of(rng.zipf(1.2, 800) % 90), int(rng.integers(2, 40)))
        costs = {kind: problem.cost(replayed(kind, problem.trace, problem.capacity)) for kind in range(12)}
        assert problem.bound() <= costs[BELADY] == min(costs.values())


def test_what_is_no_trace_is_refused_in_two_lines() -> None:
    for keys, sizes in ((np.array([], int), None), (np.array([1, 2]), np.array([3, 0])), (np.array([1, 2]), np.array([3]))):
        with pytest.raises(InputError) as error:
            RequestTrace.of(keys, sizes)
        assert len(str(error.value).splitlines()) == 2
    assert lirs_sound(new(LIRS, 5, 3))


@pytest.mark.skipif(not OPEN.exists(), reason="the open traces are not beside the project")
def test_rows_of_the_open_trace_are_those_of_libcachesim() -> None:
    """Object and byte miss at a tenth of the footprint, libcachesim 0.3.5 on the same file, to four digits; Belady's within .0002."""
    with lzma.open(OPEN) as file:
        raw = np.frombuffer(file.read(), np.dtype([("t", "<u4"), ("id", "<u8"), ("s", "<u4"), ("n", "<i8")]))
    trace = RequestTrace.of(raw["id"], raw["s"])
    rows = {LRU: (.8097, .9518), FIFO: (.8075, .9509), S3FIFO: (.7542, .8770), SIEVE: (.7903, .9296), LFU: (.7903, .9296), TWOQ: (.7695, .9017),
            GDSF: (.7582, .9509), BELADY: (.6513, .7320)}
    for kind, (objects, bytes_) in rows.items():
        capacity = trace.footprint // 10
        missed, broken = misses(trace, capacity, replayed(kind, trace, capacity))
        assert not broken
        near = 2e-4 if kind == BELADY else 5.1e-5
        assert abs(missed.mean() - objects) < near and abs(trace.sizes[missed].sum() / trace.bytes - bytes_) < near, kind
