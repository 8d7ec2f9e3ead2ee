"""Pages fit whatever fonts a machine has: letters far wider or narrower than here, and nothing but DejaVu."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import planned
import pytest
from browser import PROGRAM, Browser
from invented import plan, report

from fourfold.decisions.schedule.heft import Heft
from fourfold.jobs.levers import with_levers
from fourfold.report import graph, html, place

pytestmark = pytest.mark.chromium
DEJAVU = Path("/usr/share/fonts/truetype/dejavu")
OUTSIDE = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .scrolls, svg') && e.getClientRects().length
             && e.getBoundingClientRect().right > WIDTH + 1).map(e => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`)"""
WIDE = "(s => { s.textContent = '* { letter-spacing: SPACEem !important }'; document.head.append(s) })(document.createElement('style'))"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    solved = planned.solved(planned.problem("moe", 300), Heft(), sentences=("One sentence, not short, as they are. " * 4,))
    drawn = folder / "plan.html"
    drawn.write_text(graph.page(solved), encoding="utf-8")
    return [
        html.write(report(), folder / "won.html"), html.write(report(False), folder / "missed.html"),
        html.write(with_levers(report(), site="PL", to_site="FR", hall="1.58:1.10"), folder / "levers.html"),
        place.write(plan(jobs=120), folder / "map.html"), drawn,
    ]  # fmt: skip


def overflowing(browser: Browser, page: Path, width: int, space: float = 0.0) -> tuple[int, list[str]]:
    """How many pixels the page is wider than its window, and what sticks out of it."""
    browser.open(page, width, 800, phone=width < 500)
    browser.run(WIDE.replace("SPACE", str(space)))
    return browser.run("document.documentElement.scrollWidth") - width, browser.run(OUTSIDE.replace("WIDTH", str(width)))


@pytest.mark.parametrize("width", [1280, 700, 390, 320])
@pytest.mark.parametrize("space", [-0.05, 0.12, 0.25])
def test_wider_and_narrower_letters_do_not_widen_a_page(browser: Browser, pages: list[Path], width: int, space: float) -> None:
    assert {page.name: found for page in pages if (found := overflowing(browser, page, width, space)) != (0, [])} == {}


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser that knows no font but DejaVu."""
    if PROGRAM is None:
        pytest.skip("no Chromium on this machine")
    if not DEJAVU.is_dir():
        pytest.skip(f"no DejaVu fonts in {DEJAVU}")
    folder = tmp_path_factory.mktemp("fonts")
    file = folder / "fonts.conf"
    file.write_text(f'<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n<fontconfig><dir>{DEJAVU}</dir>'
                    f"<cachedir>{folder / 'cache'}</cachedir></fontconfig>\n")
    with Browser({"FONTCONFIG_FILE": str(file)}) as running:
        yield running


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_pages_fit_with_dejavu_alone(poor: Browser, pages: list[Path], width: int) -> None:
    assert {page.name: found for page in pages if (found := overflowing(poor, page, width)) != (0, [])} == {}
