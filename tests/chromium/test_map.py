"""The page of a plan as a browser sees it: it fits, it draws, it zooms, it sorts and finds jobs. Numbers are invented."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import Browser
from invented import plan, report

from fourfold.jobs.levers import with_levers
from fourfold.report import html, place

pytestmark = pytest.mark.chromium
WIDTHS = [(1280, 900), (390, 844), (320, 700)]
OUTSIDE = """[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll, svg') && e.getClientRects().length
             && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Path:
    browser.complaints.clear()
    browser.requests.clear()
    return place.write(plan(jobs=120), tmp_path / "map.html")


@pytest.mark.parametrize("width, height", WIDTHS)
@pytest.mark.parametrize("dark", [True, False])
def test_it_renders_without_complaint_or_sideways_scroll(browser: Browser, page: Path, width: int, height: int, dark: bool) -> None:
    browser.open(page, width, height, dark, phone=width < 500)
    assert browser.complaints == [] and browser.requests == [page.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width and browser.run(OUTSIDE) == []


def test_the_chosen_hours_are_painted_and_the_others_are_not(browser: Browser, page: Path) -> None:
    document = plan(jobs=1)
    document["schedule"][0].update(site=0, hours=list(range(100, 140)))
    place.write(document, page)
    browser.open(page, 1280, 900)
    at = """(hour, row) => { const c = document.getElementById('strips'), w = c.clientWidth, x = 34 + (hour + .5) / 240 * (w - 34), y = row * 78 + 22;
            return [...c.getContext('2d').getImageData(Math.round(x), y, 1, 1).data].slice(0, 3) }"""
    painted, plain, elsewhere = (browser.run(f"({at})({hour}, {row})") for hour, row in ((120, 0), (50, 0), (120, 1)))
    assert plain == elsewhere and painted != plain and painted[1] > painted[0] + 20, "green where it runs"


def test_a_day_can_be_looked_at_and_moved(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    browser.run("document.querySelector('[data-span=\"24\"]').click()")
    first = browser.run("document.getElementById('span').textContent")
    browser.run("document.querySelector('[data-move=\"1\"]').click()")
    second = browser.run("document.getElementById('span').textContent")
    assert first != second and "2022-05-" in first and first.split(" to ")[1].removesuffix(" UTC") == second.split(" to ")[0]
    browser.run("document.querySelector('[data-span=\"0\"]').click()")
    assert browser.run("document.getElementById('span').textContent") == ""
    assert browser.run("document.querySelector('[data-span=\"720\"]').disabled") is True, "the plan is shorter than a month"


def test_an_hour_tells_its_figures(browser: Browser, page: Path) -> None:
    browser.open(page, 390, 844, phone=True)
    browser.run("""(() => { const c = document.getElementById('strips'), b = c.getBoundingClientRect();
        c.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + b.width / 2, clientY: b.top + 90})) })()""")
    told = browser.run("document.getElementById('detail').innerText")
    assert told.startswith("Wind 2022-05-0") and "g/kWh" in told and "kW in" in told


def test_jobs_are_paged_sorted_and_found(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 900)
    rows = "document.querySelectorAll('#jobs tbody tr').length"
    assert browser.run(rows) == 50 and browser.run("document.getElementById('page').textContent") == "1 to 50 of 120"
    browser.run("document.getElementById('after').click(); document.getElementById('after').click()")
    assert browser.run(rows) == 20 and browser.run("document.getElementById('after').disabled") is True
    browser.run("[...document.querySelectorAll('#jobs th button')].find(b => b.textContent === 'kWh').click()")
    heads = browser.run("[...document.querySelectorAll('#jobs th')].map(h => h.textContent)")
    spent = browser.run(f"[...document.querySelectorAll('#jobs tbody tr')].map(r => +r.cells[{heads.index('kWh')}].textContent)")
    assert spent == sorted(spent) and len(spent) == 50
    browser.run("(f => { f.value = 'job-0007'; f.dispatchEvent(new Event('input')) })(document.getElementById('find'))")
    assert browser.run(rows) == 1 and "job-0007" in browser.run("document.querySelector('#jobs tbody').innerText")


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("kind", ["plan", "levers"])
def test_text_stands_out_from_its_ground(browser: Browser, page: Path, dark: bool, kind: str) -> None:
    """WCAG 2.2, 1.4.3: contrast of at least 4.5 for body text."""
    if kind == "levers":
        html.write(with_levers(report(), site="PL", to_site="FR", hall="1.58:1.10"), page)
    browser.open(page, 1280, 900, dark)
    script = (Path(__file__).parent / "contrast.js").read_text()
    assert browser.run(f"{script}(4.5)") == []


@pytest.mark.parametrize("width, height", WIDTHS)
def test_the_waterfall_fits_and_each_bar_begins_where_the_last_one_ended(browser: Browser, page: Path, width: int, height: int) -> None:
    html.write(with_levers(report(), site="PL", to_site="FR", hall="1.58:1.10"), page)
    browser.open(page, width, height, phone=width < 500)
    assert browser.complaints == [] and browser.run("document.documentElement.scrollWidth") <= width and browser.run(OUTSIDE) == []
    ends = browser.run("[...document.querySelectorAll('.water .lane > i')].map(i => i.getBoundingClientRect()).map(b => [b.left, b.right])")
    assert len(ends) == 5
    for before, after in zip(ends[:3], ends[1:4], strict=True):
        assert abs(before[1] - after[0]) < 1.5
    assert abs(ends[4][0] - ends[0][0]) < 1.5 and abs(ends[4][1] - ends[3][1]) < 1.5
