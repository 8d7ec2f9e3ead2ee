"""One Chromium for all page tests; skipped, and listed as skipped, where none is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # tests/invented.py

from browser import PROGRAM, Browser  # noqa: E402


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no chromium on this machine")
    with Browser() as running:
        yield running
