"use strict";
(() => {
  const what = document.getElementById("what");
  const tell = text => { what.hidden = false; what.textContent = text; };
  const svg = document.querySelector("svg.map");
  if (svg) {
    const named = event => { const title = event.target.tagName === "rect" && event.target.querySelector("title"); if (title) tell(title.textContent); };
    svg.addEventListener("pointermove", named);
    svg.addEventListener("click", named);
    return;
  }
  const canvas = document.getElementById("map"), d = JSON.parse(document.getElementById("data").textContent);
  if (!canvas || !d.owner) return;
  const draw = () => {
    const box = canvas.getBoundingClientRect(), ratio = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.max(1, box.width * ratio); canvas.height = Math.max(1, box.height * ratio);
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colours = [...Array(8).keys()].map(i => style.getPropertyValue("--d" + i).trim());
    const x = canvas.width / d.sections, y = canvas.height / 65535;
    for (let c = 0; c < 8; c++) {
      pen.fillStyle = colours[c];
      for (let i = 0; i < d.owner.length; i++) {
        if (d.colour[d.owner[i]] !== c) continue;
        const w = (d.upper[i] - d.lower[i]) * x, h = d.high[i] * y;
        pen.fillRect(d.lower[i] * x, canvas.height - (d.at[i] + d.high[i]) * y, Math.max(w - (w > 3 ? .5 : 0), .3), Math.max(h - (h > 3 ? .5 : 0), .3));
      }
    }
    for (const [kind, at] of d.marks) {
      pen.strokeStyle = style.getPropertyValue(kind === "limit" ? "--red" : "--ink").trim();
      pen.lineWidth = 2; pen.setLineDash(kind === "limit" ? [7, 5] : [2, 4]);
      pen.beginPath(); pen.moveTo(0, canvas.height - at * y); pen.lineTo(canvas.width, canvas.height - at * y); pen.stroke();
    }
  };
  const named = event => {
    const box = canvas.getBoundingClientRect(), t = (event.clientX - box.left) / box.width * d.sections, a = (1 - (event.clientY - box.top) / box.height) * 65535;
    for (let i = 0; i < d.owner.length; i++)
      if (d.lower[i] <= t && t < d.upper[i] && d.at[i] <= a && a < d.at[i] + d.high[i]) {
        tell(`${d.names[d.owner[i]]}: ${d.size[i].toLocaleString("en")} bytes at about ${Math.round(d.at[i] / 65535 * d.top).toLocaleString("en")}`);
        return;
      }
  };
  canvas.addEventListener("pointermove", named);
  canvas.addEventListener("click", named);
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
})();
