"""The time that a run may take: killed runs' shares are taken off, and no stage gets less than nothing."""

from __future__ import annotations

from pathlib import Path

from fourfold.jobs.optimize.deadline import ENDS, Deadline, spent_before
from fourfold.journal import Journal


def test_what_killed_runs_spent_is_taken_off() -> None:
    events = [
        {"key": "rows", "at": 5.0, "seconds": 2.0},  # before any beginning: by its own seconds
        {"event": "started", "at": 100.0},
        {"key": "a", "at": 101.0, "seconds": 9.0},
        {"event": "resumed", "at": 500.0},  # the idle time between two runs counts for neither
        {"key": "b", "at": 503.0, "seconds": 4.0},
    ]
    assert spent_before(events) == 2.0 + 10.0 + 7.0
    deadline = Deadline(60.0, spent_before(events))
    assert 40.0 < deadline.left() <= 41.0


def test_a_new_journal_has_spent_nothing_and_steps_side_by_side_count_once(tmp_path: Path) -> None:
    with Journal(tmp_path, "x") as journal:
        assert spent_before(journal.events()) == 0.0
    beside = [{"event": "started", "at": 0.0}, {"key": "a", "at": 1.0, "seconds": 8.0}, {"key": "b", "at": 1.0, "seconds": 8.0}]
    assert spent_before(beside) == 9.0


def test_stages_end_in_their_order_and_never_below_zero() -> None:
    deadline = Deadline(100.0, 95.0)
    left = [deadline.until(stage) for stage in ENDS]
    assert left == sorted(left) and left[0] == 0.0 and 0.0 < left[-1] <= 5.0
