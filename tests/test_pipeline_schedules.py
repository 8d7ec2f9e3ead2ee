"""Pipeline schedules played: the formula where stages are equal, memory of each, interleaving's smaller bubble, and orders that are possible."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.cost.pipeline import play
from fourfold.errors import InputError


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (1, 5), (4, 4), (4, 16), (8, 3)])
def test_equal_stages_take_the_formula_of_alpa(stages: int, microbatches: int) -> None:
    """Σ t + (B − 1)·max t, for GPipe and 1F1B alike; what each keeps is another matter."""
    for schedule in ("gpipe", "1f1b"):
        done = play([1.0] * stages, [2.0] * stages, microbatches, schedule)
        assert done.seconds == pytest.approx(3.0 * (stages + microbatches - 1))
        expected = [microbatches if schedule == "gpipe" else min(microbatches, stages - s) for s in range(stages)]
        assert done.kept.tolist() == expected
        assert done.bubble == pytest.approx((stages - 1) / (stages + microbatches - 1))


def test_interleaving_shrinks_the_bubble_by_the_number_of_chunks_and_keeps_more() -> None:
    """Narayanan et al. 2021: the bubble is (p − 1) / (v·m) of the ideal time."""
    devices, microbatches = 4, 8
    plain = play([1.0] * devices, [2.0] * devices, microbatches, "1f1b", active=[1.0] * devices)
    ideal = 3.0 * microbatches
    for chunks in (2, 4):
        count = devices * chunks
        done = play([1.0 / chunks] * count, [2.0 / chunks] * count, microbatches, "interleaved", chunks=chunks, active=[1.0 / chunks] * count)
        assert done.seconds / ideal - 1 == pytest.approx((devices - 1) / (chunks * microbatches))
        assert done.bytes[0] > plain.bytes[0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0, 1)), min_size=1, max_size=6), st.integers(1, 9),
       st.sampled_from(["gpipe", "1f1b"]))
def test_no_pass_begins_before_what_it_waits_for_and_devices_do_one_thing_at_a_time(times: list[tuple[float, float, float]], microbatches: int,
                                                                                schedule: str) -> None:
    forward, backward, send = ([one[i] for one in times] for i in range(3))
    done = play(forward, backward, microbatches, schedule, send=send[:-1])
    ends = {(p.stage, p.microbatch, p.backward): p for p in done.passes}
    assert len(ends) == 2 * len(times) * microbatches
    for (stage, m, back), one in ends.items():
        if back and stage + 1 < len(times):
            assert one.start >= ends[stage + 1, m, True].end + send[stage] - 1e-9
        if not back and stage:
            assert one.start >= ends[stage - 1, m, False].end + send[stage - 1] - 1e-9
        if back:
            assert one.start >= ends[stage, m, False].end - 1e-9
    for device in range(len(times)):
        own = sorted((p.start, p.end) for p in done.passes if p.device == device)
        assert all(a[1] <= b[0] + 1e-9 for a, b in zip(own, own[1:], strict=False))
    assert done.seconds >= max((f + b) * microbatches for f, b, _ in times) - 1e-9


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(InputError, match="no pipeline schedule"):
        play([1.0], [1.0], 1, "spiral")
    with pytest.raises(InputError, match="groups of 2"):
        play([1.0] * 4, [1.0] * 4, 3, "interleaved", chunks=2)
    with pytest.raises(InputError, match="no pipeline of 1f1b"):
        play([1.0] * 4, [1.0] * 3, 3)
