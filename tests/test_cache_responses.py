"""The response cache: exact keys, one computation a key, bounded in bytes whatever the policy, errors told and not kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from fourfold.errors import InputError
from fourfold.registry import names
from fourfold.runtime.cache import PER_ENTRY, ResponseCache, exact_key

LIVE = [name for name in names("cache") if name != "belady"]


@pytest.mark.parametrize("policy", LIVE)
def test_whatever_the_policy_it_holds_what_it_says_within_its_bytes(policy: str) -> None:
    """Beside a dictionary that keeps everything: an answer is the last one put, or None; bytes are those of what is inside."""
    rng = np.random.default_rng(3)
    capacity = 40 * (PER_ENTRY + 40)
    cache, everything = ResponseCache(capacity, policy), dict[bytes, bytes]()
    for step in range(6000):
        key = f"{rng.zipf(1.3) % 400}".encode() if step % 3 else f"once {step}".encode()
        found = cache.get(key)
        assert found is None or found == everything[key]
        if found is None or step % 50 == 0:
            value = bytes(int(rng.integers(1, 90))) + key
            everything[key] = value
            assert cache.put(key, value, float(rng.random()))
            assert cache.get(key) == value
        if step % 97 == 0:
            cache.discard(key)
            assert cache.get(key) is None
        assert cache.counts.held <= capacity
    inside = [key for key in everything if cache.get(key) is not None]
    assert len(inside) == len(cache) and cache.counts.held == sum(len(k) + len(everything[k]) + PER_ENTRY for k in inside)
    assert cache.counts.hits > 1000 and cache.counts.left > 1000
    assert not cache.put(b"large", bytes(capacity)) and cache.get(b"large") is None
    cache.clear()
    assert len(cache) == 0 and cache.counts.held == 0


def test_what_left_is_forgotten_in_the_end() -> None:
    cache = ResponseCache(20 * (PER_ENTRY + 20), "s3fifo")
    for step in range(20_000):
        cache.put(b"%d" % step, b"x" * 8)
    assert len(cache._keys) < 2000                                      # bounded, though 20,000 keys came


def test_threads_that_ask_at_once_share_one_computation() -> None:
    cache, calls, go = ResponseCache(1 << 20), [], threading.Event()

    def compute() -> bytes:
        calls.append(1)
        go.wait(10)
        return b"answer"

    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(cache.answer(b"k", compute, cost=2.0))) for _ in range(8)]
    for one in threads:
        one.start()
    while cache.counts.joined < 7:
        pass
    go.set()
    for one in threads:
        one.join(10)
    assert got == [b"answer"] * 8 and len(calls) == 1
    assert cache.answer(b"k", compute) == b"answer" and cache.counts.saved == 2.0


def test_an_error_is_raised_in_all_and_not_kept() -> None:
    cache, tries = ResponseCache(1 << 20), iter(range(9))

    def fails() -> bytes:
        if next(tries) == 0:
            raise OSError("no model")
        return b"now"

    with pytest.raises(OSError, match="no model"):
        cache.answer(b"k", fails)
    assert cache.answer(b"k", fails) == b"now"


def test_tasks_share_and_a_cancelled_one_hands_the_work_on() -> None:
    async def all_of_it() -> None:
        cache, started = ResponseCache(1 << 20), []

        async def compute() -> bytes:
            started.append(1)
            await asyncio.sleep(0.05 if len(started) > 1 else 30)
            return b"answer"

        first = asyncio.create_task(cache.answer_async(b"k", compute))
        await asyncio.sleep(0)
        others = [asyncio.create_task(cache.answer_async(b"k", compute)) for _ in range(5)]
        await asyncio.sleep(0.01)
        others[0].cancel()                                              # who only waits may go too
        first.cancel()
        assert await asyncio.gather(*others[1:]) == [b"answer"] * 4
        assert len(started) == 2

    asyncio.run(all_of_it())


def test_entries_end_after_their_time() -> None:
    now = iter(float(t) for t in (0, 5, 11, 12))

    def clock(times: Iterator[float] = now) -> float:
        return next(times)

    cache = ResponseCache(1 << 20, ttl=10.0, clock=clock)
    cache.put(b"k", b"v")
    assert cache.get(b"k") == b"v" and cache.get(b"k") is None and len(cache) == 0


def test_keys_are_exact_and_parts_do_not_run_together() -> None:
    assert exact_key("enable 2FA") != exact_key("disable 2FA")
    assert len({exact_key("ab", "c"), exact_key("a", "bc"), exact_key("abc"), exact_key(b"abc"), exact_key("1"), exact_key(1), exact_key(1.0)}) == 7
    assert exact_key("m", 7, "row") == exact_key("m", 7, "row")


@pytest.mark.parametrize("bytes, policy, said", [(-1, "lru", "bytes"), (10, "belady", "every request to come"), (10, "lruu", "lru")])
def test_what_cannot_be_is_refused_in_two_lines(bytes: int, policy: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        ResponseCache(bytes, policy)
    assert len(str(error.value).splitlines()) == 2
