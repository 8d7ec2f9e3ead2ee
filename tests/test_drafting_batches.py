"""Prompts that share their beginning, and rows that join and leave: what is answered stays what each prompt is answered alone."""

from __future__ import annotations

import numpy as np
import pytest
from decoded import TableDecoding
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.errors import Declined, InputError
from fourfold.runtime.drafting.continuous import ORDERS, RowBatching, answer_all
from fourfold.runtime.drafting.prefix import PrefixCache, shared
from fourfold.runtime.drafting.speculative import generate
from fourfold.runtime.generate import Sampling


def alone(model: TableDecoding, prompt: np.ndarray, new: int, stop: set[int]) -> list[int]:
    return generate(model, {"input_ids": prompt[None]}, new, stop=stop).tokens[0].tolist()


@given(st.integers(0, 500), st.sampled_from(ORDERS), st.integers(1, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_every_prompt_is_answered_as_alone(seed: int, order: str, size: int, data: st.DataObject) -> None:
    random, vocabulary = np.random.default_rng(seed), 5
    prompts = [random.integers(0, vocabulary, random.integers(2, 12)) for _ in range(random.integers(1, 12))]
    most = [int(count) for count in random.integers(1, 15, len(prompts))]
    found = answer_all(TableDecoding(vocabulary, 0), prompts, most, RowBatching(size, order, data.draw(st.integers(1, size))), stop={4})
    expected = [alone(TableDecoding(vocabulary, 0), prompt, count, {4}) for prompt, count in zip(prompts, most, strict=True)]
    assert [row.tolist() for row in found.tokens] == expected
    assert found.row_steps - found.idle == sum(len(row) - 1 for row in expected)


def test_joining_rows_take_fewer_steps_than_batches_as_they_come() -> None:
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 6, int(size)) for size in random.integers(2, 40, 24)]
    most = [int(count) for count in random.choice([2, 30], 24)]
    came, byleng, joined = (answer_all(TableDecoding(6, 1), prompts, most, RowBatching(4, order, 1)) for order in ORDERS)
    assert joined.steps < came.steps and joined.idle == byleng.idle == 0 < came.idle
    assert byleng.padding < came.padding and joined.joins > 0
    assert [row.tolist() for row in came.tokens] == [row.tolist() for row in joined.tokens] == [row.tolist() for row in byleng.tokens]


def test_what_is_drawn_for_a_prompt_does_not_hang_on_its_neighbours() -> None:
    prompts = [np.array([1, 2, 3]), np.array([3, 1]), np.array([0, 0, 4, 1])]
    sampled = [answer_all(TableDecoding(5, 0), prompts, 9, RowBatching(size, order, 1), sampling=Sampling(1.0, seed=3)).tokens
               for size, order in ((3, "arrival"), (1, "length"), (2, "continuous"))]
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(*sampled, strict=True))


def test_batches_that_cannot_be() -> None:
    with pytest.raises(InputError, match="No batch"):
        RowBatching(2, "continuous", 3)
    with pytest.raises(InputError, match="empty"):
        answer_all(TableDecoding(5, 0), [np.array([], np.int64)], 3)


@given(st.integers(0, 10_000), st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_a_kept_beginning_changes_no_answer_and_no_limit_is_passed(seed: int, limit: int) -> None:
    random, model = np.random.default_rng(seed), TableDecoding(6, 2)
    starts = [random.integers(0, 6, int(size)) for size in random.integers(2, 30, 3)]
    cache = PrefixCache(model, limit, least=4)
    asked = 0
    for _ in range(14):
        prompt = np.concatenate([starts[random.integers(3)], random.integers(0, 6, int(random.integers(0, 8)))])
        asked += len(prompt)
        state, logits = cache.start({"input_ids": prompt[None]}, len(prompt) + 3)
        expected, plain = model.start({"input_ids": prompt[None]}, len(prompt) + 3)
        assert (logits == plain).all() and state.seen == expected.seen and (state.mask == expected.mask).all()
        token = np.array([[int(logits.argmax())]])
        assert (model.step(state, token) == model.step(expected, token)).all()
        nodes = cache._nodes()
        assert cache.held == sum(node.bytes for node in nodes) <= limit
        assert all((node.state is not None) == (node.bytes > 0) for node in nodes)
    assert cache.read + cache.saved == asked


def test_a_long_beginning_is_read_once_from_the_third_prompt_on() -> None:
    """The first comes, the second shows what is shared, and from then on only the rest is read."""
    model, cache = TableDecoding(6, 2), PrefixCache(TableDecoding(6, 2), 10**6)
    start = np.random.default_rng(0).integers(0, 6, 50)
    for last in range(5):
        cache.start({"input_ids": np.append(start, last)[None]}, 60)
    assert cache.hits == 3 and cache.read == 2 * 51 + 3 and cache.saved == 3 * 50 and model.steps == 0
    cache.close()
    assert cache.held == 0 and len(cache._nodes()) == 1


def test_the_oldest_goes_first() -> None:
    start, other = np.arange(40) % 5, np.arange(40) % 3
    size = 8 * 40
    cache = PrefixCache(TableDecoding(6, 2), size)                      # room for one
    for text in (start, start, other, other):
        cache.start({"input_ids": text[None]}, 50)
    kept = [node for node in cache._nodes() if node.state is not None]
    assert len(kept) == 1 and kept[0].depth == 40 and cache.held == size
    cache.start({"input_ids": other[None]}, 50)
    assert cache.hits == 1 and shared(start, other) == 3


def test_what_cannot_share_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="one prompt"):
        PrefixCache(TableDecoding(6, 2), 100).start({"input_ids": np.zeros((2, 4), np.int64)}, 9)
    with pytest.raises(InputError, match="prefix cache"):
        PrefixCache(TableDecoding(6, 2), -1)

    class Closed(TableDecoding):
        def copied(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            raise Declined("the engine keeps what it remembers to itself")

    cache, prompt = PrefixCache(Closed(6, 2), 10**6), np.ones((1, 20), np.int64)
    cache.start({"input_ids": prompt}, 30)
    with pytest.raises(Declined, match="itself"):
        cache.start({"input_ids": prompt}, 30)
