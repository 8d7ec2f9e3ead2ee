"""The page of a plan as a browser sees it: it fits, boxes open and close with their wires, strips zoom and tell; with scripts off it can be read."""

from __future__ import annotations

import time
from pathlib import Path

import planned
import pytest
from browser import Browser

from fourfold.decisions.schedule.heft import Heft
from fourfold.report import graph

pytestmark = pytest.mark.chromium
WIDTHS = [(1280, 900), (390, 844), (320, 700)]
OUTSIDE = """[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('.scroll, .scrolls, svg') && e.getClientRects().length
             && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.html"
    table = tuple({"solver": name, "title": f"Technique {name}", "cost": cost, "seconds": 0.2, "evaluations": 40, "gap": 0.1, "note": ""}
                  for name, cost in (("heft", 0.01), ("exact", None)))
    asked = planned.problem("moe", 700)
    plan = planned.solved(asked, Heft(), table=table, sentences=("One sentence, not short, as they are. " * 4,))
    path.write_text(graph.page(plan), encoding="utf-8")
    return path


def ready(browser: Browser, page: Path, width: int, height: int, dark: bool = False) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page, width, height, dark, phone=width < 500)
    for _ in range(100):
        if browser.run("'ready' in document.documentElement.dataset"):
            return
        time.sleep(0.05)
    raise AssertionError(f"the script did not finish: {browser.complaints}")


@pytest.mark.parametrize("width, height", WIDTHS)
@pytest.mark.parametrize("dark", [True, False])
def test_it_renders_without_complaint_or_sideways_scroll(browser: Browser, page: Path, width: int, height: int, dark: bool) -> None:
    ready(browser, page, width, height, dark)
    assert browser.complaints == [] and browser.requests == [page.resolve().as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width and browser.run(OUTSIDE) == []


def test_boxes_open_and_close_with_their_wires(browser: Browser, page: Path) -> None:
    ready(browser, page, 1280, 900)
    shut = "[...document.querySelectorAll('#graph .box.m:not(.open) > button.h')]"
    boxes = "document.querySelectorAll('#graph .box').length"
    before, closed = browser.run(boxes), browser.run(f"{shut}.length")
    if not closed:                                                      # all are open: close one first
        browser.run("document.querySelectorAll('#graph .box.m.open > button.h')[1].click()")
        before, closed = browser.run(boxes), browser.run(f"{shut}.length")
    browser.run(f"(window.chosen = {shut}[0]).click()")
    inside = browser.run("document.querySelectorAll(`[data-i=\"${chosen.parentElement.dataset.i}\"] > .rows > .r > .box`).length")
    assert inside > 0 and browser.run(boxes) == before + inside and browser.run("chosen.getAttribute('aria-expanded')") == "true"
    assert browser.run("chosen.parentElement.querySelectorAll('.wires path').length") > 0
    browser.run("chosen.click()")
    assert browser.run(boxes) == before and browser.run("chosen.getAttribute('aria-expanded')") == "false"
    assert browser.run("document.getElementById('what').innerText").count("·") >= 2
    browser.run("document.querySelector('#graph .box.g > button.h').click()")
    assert browser.run("document.querySelectorAll('#graph .box.g.open .box.o').length") > 1 and browser.complaints == []


def test_wires_begin_and_end_at_boxes(browser: Browser, page: Path) -> None:
    ready(browser, page, 1280, 900)
    off = browser.run("""[...document.querySelectorAll('#graph .wires path[data-ends]')].filter(p => {
        const m = p.ownerSVGElement.getScreenCTM(), l = p.getTotalLength();
        return p.dataset.ends.split(' ').some((i, k) => {
            const b = document.querySelector(`[data-i="${i}"]`).getBoundingClientRect(), q = p.getPointAtLength(k * l).matrixTransform(m);
            return q.x < b.left - 3 || q.x > b.right + 3 || q.y < b.top - 3 || q.y > b.bottom + 3;
        });
    }).length""")
    assert off == 0 and browser.run("document.querySelectorAll('#graph .wires path[data-ends]').length") > 20


def test_strips_zoom_and_tell(browser: Browser, page: Path) -> None:
    ready(browser, page, 1280, 900)
    assert browser.run("document.getElementById('span').textContent") == ""
    browser.run("document.querySelector('[data-zoom=\"2\"]').click()")
    zoomed = browser.run("document.getElementById('span').textContent")
    assert " of " in zoomed and browser.run("document.querySelector('[data-move=\"1\"]').disabled") is False
    browser.run("document.querySelector('[data-zoom=\"0\"]').click()")
    assert browser.run("document.getElementById('span').textContent") == ""
    point = """(selector, share) => { const c = document.querySelector(selector), b = c.getBoundingClientRect();
               c.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + share * b.width, clientY: b.top + 3, bubbles: true}));
               return document.getElementById('when').innerText }"""
    assert " to " in browser.run(f"({point})('.lane[data-strip=\"0\"]', .9)") or "waits" in browser.run("document.getElementById('when').innerText")
    assert "may hold" in browser.run(f"({point})('.lane[data-curve=\"0\"]', .5)")
    painted = browser.run("""(() => { const c = document.querySelector('.lane[data-strip="0"] canvas');
        const d = c.getContext('2d').getImageData(0, 3, c.width, 1).data;
        let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / c.width })()""")
    assert painted > 0.3


@pytest.mark.parametrize("dark", [True, False])
def test_text_stands_out_from_its_ground(browser: Browser, page: Path, dark: bool) -> None:
    """WCAG 2.2, 1.4.3: contrast of at least 4.5 for body text."""
    ready(browser, page, 1280, 900, dark)
    script = (Path(__file__).parent / "contrast.js").read_text()
    assert browser.run(f"{script}(4.5)") == []


def test_it_can_be_read_with_scripts_off(browser: Browser, page: Path) -> None:
    browser.complaints.clear()
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page, 1280, 900)
        root = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]

        def count(selector: str) -> int:
            return len(browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"])

        assert count("#graph .box") > 20 and count(".strip rect") > 20 and count(".strip path") == 4 and count(".tools[hidden]") == 1
        assert browser.complaints == []
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
