"""The page as a browser sees it: nothing complains or overflows, everything is there, it works by pointer and by key. Numbers are invented."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from browser import Browser
from invented import report

from fourfold.report import html

pytestmark = pytest.mark.chromium

PROMISED = [
    "98.1 % of the accuracy for 6.2 % of the energy.",
    "Quality against energy",
    "What stays, layer by layer",
    "block removed",
    "bag of words",
    "Together",
    "16.1×",
    "All 40 candidates",
    "fourfold optimize teacher/",
    "Modelled",
]
WIDTHS = [(1280, 900), (390, 844), (320, 700)]


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Path:
    browser.complaints.clear()
    browser.requests.clear()
    return html.write(report(), tmp_path / "report.html")


@pytest.mark.parametrize("width, height", WIDTHS)
@pytest.mark.parametrize("feasible", [True, False])
@pytest.mark.parametrize("dark", [True, False])
def test_it_renders_without_complaint_or_sideways_scroll(browser: Browser, page: Path, width: int, height: int, feasible: bool, dark: bool) -> None:
    html.write(report(feasible), page)
    browser.open(page, width, height, dark, phone=width < 500)
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()], "the page asked for something outside itself"
    assert browser.run("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll, svg') && e.getClientRects().length
                 && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""
    assert browser.run(outside) == []


def test_tables_are_read_without_dragging_in_a_phones_window(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 844, phone=True)
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"
    assert browser.run(wide) == []
    assert browser.run("document.querySelectorAll('table.cards td[data-l=Quality]').length") == 40
    browser.open(page, 1280, 900)
    assert browser.run("getComputedStyle(document.querySelector('table.cards tr')).display") == "table-row"


@pytest.mark.parametrize("width, height", WIDTHS)
def test_what_was_promised_can_be_read(browser: Browser, page: Path, width: int, height: int) -> None:
    browser.open(page, width, height)
    text = browser.run("document.body.innerText")
    for part in PROMISED:
        assert part in text.replace("\u00a0", " "), part
    drawn = browser.run("[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 0).length")
    assert drawn == 1, "exactly one of the four pictures is shown at a time"
    small = browser.run("""[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().width > 0)
                           .map(t => t.getBoundingClientRect().height).filter(h => h < 10).length""")
    assert small == 0, "text in the picture is too small to read"


def test_a_large_screenshot_is_not_blank(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, 1280, 900)
    data = browser.screenshot(tmp_path / "page.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert width == 1280 and height > 2000 and len(data) > 100_000


def test_the_axis_can_be_switched(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    shown = "[...document.querySelectorAll('svg')].find(s => s.getBoundingClientRect().width > 0).textContent.includes('log scale')"
    assert browser.run(shown) is True
    browser.run("document.getElementById('linear').click()")
    assert browser.run(shown) is False


@pytest.mark.parametrize("event", ["click", "focus", "pointerenter"])
def test_a_candidate_tells_its_details(browser: Browser, page: Path, event: str) -> None:
    browser.open(page, 390, 844, phone=True)
    browser.run(f"document.querySelector('.narrow .log svg [data-c=\"5\"]').dispatchEvent(new Event('{event}'))")
    assert "c005" in browser.run("document.getElementById('detail').innerText") and browser.run("document.querySelectorAll('.picked').length") == 4


def test_the_candidates_can_be_sorted(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    column = "[...document.querySelectorAll('table.sortable')].at(-1)"
    browser.run(f"{column}.querySelectorAll('th button')[4].click()")
    energies = browser.run(f"[...{column}.tBodies[0].rows].map(r => +r.cells[4].dataset.v)")
    assert energies == sorted(energies) and len(energies) == 40


def test_it_can_be_read_without_sight(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    assert browser.run("document.documentElement.lang") == "en" and browser.run("document.querySelectorAll('h1').length") == 1
    assert browser.run("[...document.querySelectorAll('section')].every(s => document.getElementById(s.getAttribute('aria-labelledby')))")
    assert browser.run("[...document.querySelectorAll('svg .point')].every(p => p.getAttribute('aria-label'))")
    assert browser.run("[...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.getAttribute('aria-label'))")


@pytest.mark.parametrize("dark", [True, False])
def test_text_stands_out_from_its_ground(browser: Browser, page: Path, dark: bool) -> None:
    """WCAG 2.2, 1.4.3: contrast of at least 4.5 for body text."""
    browser.open(page, 1280, 900, dark)
    script = (Path(__file__).parent / "contrast.js").read_text()
    assert browser.run(f"{script}(4.5)") == []
    assert len(browser.run(f"{script}(21.1)")) > 50, "the check itself sees the texts"
