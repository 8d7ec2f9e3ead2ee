"""docs/plan.png: the page of a plan for BERT's base size on four devices, as a browser shows it. Needs transformers, Pillow and Chromium.

    python docs/picture.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "chromium"))

SHOW = """const all = (what) => [...document.querySelectorAll(what)], graph = document.querySelector('.scrolls');
all('section').forEach(s => { s.hidden = !['h-time', 'h-graph'].includes(s.getAttribute('aria-labelledby')); s.style.marginTop = '26px'; });
all('.strips .tools, .strips .detail, .strips + .scroll, .picture .detail').forEach(e => { e.hidden = true; });
document.querySelector('header.top').style.paddingTop = '18px'; graph.style.maxHeight = '760px';
graph.scrollTop = all('#graph > .box > .rows > .r').sort((a, b) => b.offsetHeight - a.offsetHeight)[0].offsetTop - 60;"""


def main() -> None:
    import torch
    from browser import Browser
    from PIL import Image
    from transformers import BertConfig, BertModel

    import fourfold
    from fourfold.report import graph

    torch.manual_seed(0)
    plan = fourfold.plan(BertModel(BertConfig()).eval(), dims={"batch": 16, "length": 128}, machine="p100x4", objective="throughput", budget="60s",
                         evaluations=20_000)
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page, shot = Path(folder) / "plan.html", Path(folder) / "plan.png"
        page.write_text(graph.page(plan), encoding="utf-8")
        browser.open(page, 1100, 900)
        while not browser.run("'ready' in document.documentElement.dataset"):
            time.sleep(0.05)
        browser.run(SHOW)
        time.sleep(0.5)
        browser.screenshot(shot)
        height = int(browser.run("document.querySelector('#graph').getBoundingClientRect().bottom + scrollY")) + 20
        image = Image.open(shot).convert("RGB")
        image.crop((0, 0, image.width, min(height, image.height))).quantize(128).save(HERE / "plan.png", optimize=True)
    print(f"docs/plan.png: {(HERE / 'plan.png').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
