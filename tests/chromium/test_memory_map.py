"""The memory map as a browser sees it: it fits a phone, it draws what it says, it names what is pointed at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import Browser

import fourfold
from fourfold.decisions.allocate.instance import Buffers
from fourfold.report.allocate import write

pytestmark = pytest.mark.chromium


def page(tmp_path: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    lower = np.arange(count) // 4
    b = Buffers(tuple(f"<buffer {i}>" for i in range(count)), lower, lower + 3, rng.integers(1000, 99_000, count),
                modules=tuple(f"block.{i % 3}" for i in range(count)))
    return write(fourfold.allocate(b, solver="greedy", capacity="2MiB", evaluations=2), tmp_path / "map.html")


@pytest.mark.parametrize("count", [60, 5200])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_names_what_is_pointed_at(browser: Browser, tmp_path: Path, width: int, count: int) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    file = page(tmp_path, count)
    browser.open(file, width, 844, phone=width < 500)
    assert browser.complaints == [] and browser.requests == [file.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('svg.map rect').length") == (count if count <= 5000 else 0)
    told = browser.run("""(() => { const m = document.querySelector('svg.map rect') || document.getElementById('map'), b = m.getBoundingClientRect();
        const spot = { bubbles: true, clientX: b.left + b.width / 2, clientY: b.bottom - Math.min(4, b.height / 2) };
        m.dispatchEvent(new MouseEvent('click', spot)); return document.getElementById('what').textContent; })()""")
    assert told.startswith("<buffer ")
