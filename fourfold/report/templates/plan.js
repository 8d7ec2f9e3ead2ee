"use strict";
(async () => {
  const element = (id) => document.getElementById(id), SVG = "http://www.w3.org/2000/svg";
  const bytes = Uint8Array.from(atob(element("data").textContent.trim()), (c) => c.charCodeAt(0));
  const D = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  const make = (tag, attributes = {}, ...inner) => { const one = document.createElement(tag); for (const [k, v] of Object.entries(attributes)) one.setAttribute(k, v); one.append(...inner); return one; };
  const draw = (tag, attributes) => { const one = document.createElementNS(SVG, tag); for (const [k, v] of Object.entries(attributes)) one.setAttribute(k, v); return one; };
  const few = (value) => (value >= 100 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));
  const scaled = (value, units) => { for (const [size, unit] of units) if (Math.abs(value) >= size) return `${few(value / size)} ${unit}`; return `${few(value)} ${units[units.length - 1][1]}`; };
  const span = (ns) => scaled(ns, [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]]), size = (b) => scaled(b, [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
  const work = (f) => scaled(f, [[1e12, "TFLOP"], [1e9, "GFLOP"], [1e6, "MFLOP"], [1e3, "kFLOP"], [1, "FLOP"]]), many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
  const path = (i) => { const names = []; for (let at = i; at > 0; at = D.parent[at]) names.unshift(D.name[at]); return names.slice(0, -1).join(" › "); };

  // ---- boxes
  const graph = element("graph"), what = element("what"), flow = new Set(D.flow);
  const told = (i) => [D.kind[i] === "o" ? "" : many(D.ops[i], "op"), D.ns[i] ? span(D.ns[i]) : "", D.device[i] >= 0 && D.ns[i] ? D.devices[D.device[i]] : ""].filter(Boolean).join(" · ");
  const colours = (i) => {
    const shares = D.shares[i];
    if (!shares) return `var(--d${D.device[i] % 8})`;
    let at = 0;
    return `linear-gradient(90deg,${shares.map((s, d) => (s ? `var(--d${d % 8}) ${at * 100}% ${(at += s) * 100}%` : "")).filter(Boolean).join(",")})`;
  };
  const box = (i) => {
    const inside = D.rows[i], head = make(inside ? "button" : "span", inside ? { type: "button", class: "h", "aria-expanded": "false" } : { class: "h", tabindex: "0" });
    head.append(make("span", { class: "n" }, D.name[i]), make("small", {}, told(i)));
    const one = make("div", { class: `box ${D.kind[i]}${D.device[i] >= 0 ? " on" : ""}`, "data-i": i, title: D.title[i], style: `${D.device[i] >= 0 ? `--c:var(--d${D.device[i] % 8});` : ""}--g:${colours(i)}` });
    one.append(head, make("i", { class: "bar" }));
    return one;
  };
  const children = []; D.parent.forEach((p, i) => { if (p >= 0) (children[p] ||= []).push(i); });
  const number = (one) => +one.dataset.i, boxOf = new Map(), learn = (root) => root.querySelectorAll(".box").forEach((one) => boxOf.set(number(one), one));
  const toggle = (one) => {
    const i = number(one), opened = one.classList.toggle("open");
    one.querySelector(":scope > .h").setAttribute("aria-expanded", opened);
    const old = one.querySelector(":scope > .rows");
    if (old) { old.querySelectorAll(".box").forEach((inner) => boxOf.delete(number(inner))); old.remove(); }
    if (opened) {
      const rows = make("div", { class: `rows${flow.has(i) ? " flow" : ""}` });
      for (const row of D.rows[i]) rows.append(make("div", { class: "r" }, ...row.map((spot) => box(children[i][spot]))));
      one.append(rows); learn(one);
    }
    wires();
  };
  const wires = () => {
    graph.querySelectorAll("svg.wires").forEach((one) => one.remove());
    graph.querySelectorAll(".box.open > .rows").forEach((rows) => wire(rows, number(rows.parentElement)));
  };
  const wire = (rows, i) => {
    const edges = D.edges[i], frame = rows.getBoundingClientRect(), svg = draw("svg", { class: "wires" }), labels = draw("svg", { class: "wires" });
    if (!edges) return;
    const at = (spot) => { const b = boxOf.get(children[i][spot])?.getBoundingClientRect(); return b && { l: b.left - frame.left, r: b.right - frame.left, t: b.top - frame.top, b: b.bottom - frame.top, x: (b.left + b.right) / 2 - frame.left, y: (b.top + b.bottom) / 2 - frame.top }; };
    const layer = []; D.rows[i].forEach((row, r) => row.forEach((spot) => { layer[spot] = r; }));
    let crossing = 0; for (let e = 3; e < edges.length; e += 4) crossing += edges[e] > 0;
    for (let e = 0; e < edges.length; e += 4) {
      const [from, to, moved, cross] = edges.slice(e, e + 4), a = at(from), b = at(to);
      if (!a || !b) continue;
      const wide = Math.max(1, Math.min(5, 1 + Math.log10(Math.max(moved, 1e4) / 1e4) * 0.9)), next = layer[to] === layer[from] + 1;
      let d, x, y, tip;
      if (b.l >= a.r && b.t < a.b && a.t < b.b) {                         // side by side
        const y0 = a.y, y1 = b.y, m = Math.max((b.l - a.r) / 2, 6);
        d = `M${a.r},${y0}C${a.r + m},${y0} ${b.l - m},${y1} ${b.l},${y1}`; [x, y] = [(a.r + b.l) / 2, (y0 + y1) / 2 - 4]; tip = `M${b.l},${y1}l-6,-3.5v7z`;
      } else if (b.t >= a.b - 1 && (next || Math.abs(a.x - b.x) > 40)) {  // below
        const m = Math.max((b.t - a.b) / 2, 8), x0 = Math.max(a.l + 8, Math.min(a.r - 8, a.x + (b.x - a.x) * 0.1)), x1 = Math.max(b.l + 8, Math.min(b.r - 8, b.x + (a.x - b.x) * 0.1));
        d = `M${x0},${a.b}C${x0},${a.b + m} ${x1},${b.t - m} ${x1},${b.t}`; [x, y] = [(x0 + x1) / 2, (a.b + b.t) / 2 + 3]; tip = `M${x1},${b.t}l-3.5,-6h7z`;
      } else {                                                           // past what lies between, or back
        const out = Math.min(Math.max(a.r, b.r) + 14 + Math.min(Math.abs(b.y - a.y) / 40, 10), frame.width + 8);
        d = `M${a.r},${a.y}C${out},${a.y} ${out},${b.y} ${b.r},${b.y}`; [x, y] = [(Math.max(a.r, b.r) + 3 * out) / 4, (a.y + b.y) / 2]; tip = `M${b.r},${b.y}l6,-3.5v7z`;
      }
      const name = cross ? "cross" : "";
      svg.append(draw("path", { d, class: name, "stroke-width": wide, "data-ends": `${children[i][from]} ${children[i][to]}` }), draw("path", { d: tip, class: `tip ${name}` }));
      if (cross && crossing <= 24) { const text = draw("text", { x, y }); text.textContent = size(cross); labels.append(text); }
    }
    rows.prepend(svg); rows.append(labels);
  };
  const tell = (one) => {
    const i = number(one), known = D.shape[i] >= 0 ? D.shapes[D.shape[i]] : "", shares = D.shares[i], where = path(i);
    const on = shares ? shares.map((s, d) => (s ? `${D.devices[d]} ${Math.round(s * 100)} %` : "")).filter(Boolean).join(", ") : D.devices[D.device[i]];
    const inGroup = D.parent[i] >= 0 && D.kind[D.parent[i]] === "g";
    const facts = [D.title[i] !== D.name[i] ? D.title[i] : "", where ? `in ${where}` : "", on, D.ns[i] ? span(D.ns[i]) : inGroup ? `one of ${many(D.ops[D.parent[i]], "op")} that run as one in ${span(D.ns[D.parent[i]])}` : "",
      D.kind[i] === "o" ? known : many(D.ops[i], "op") + (D.kind[i] === "m" ? `, ${many(D.groups[i], "fused group")}` : ""), D.flops[i] ? work(D.flops[i]) : "", D.bytes[i] ? `${size(D.bytes[i])} read and written` : ""];
    const edges = D.edges[D.parent[i]] || [], spot = (children[D.parent[i]] || []).indexOf(i);
    let read = 0, gave = 0; for (let e = 0; e < edges.length; e += 4) { if (edges[e + 1] === spot) read += edges[e + 2]; if (edges[e] === spot) gave += edges[e + 2]; }
    if (read) facts.push(`reads ${size(read)} from its neighbours`); if (gave) facts.push(`hands them ${size(gave)}`);
    what.replaceChildren(make("b", {}, D.name[i] || D.graph), ` ${facts.filter(Boolean).join(" · ")}`);
    graph.querySelectorAll(".picked").forEach((other) => other.classList.remove("picked"));
    one.classList.add("picked");
    graph.querySelectorAll(".wires path[data-ends]").forEach((p) => p.classList.toggle("near", p.dataset.ends.split(" ").includes(String(i))));
  };
  const near = (event) => { const one = event.target.closest?.(".box"); return one && number(one) > 0 ? one : null; };
  learn(graph); boxOf.set(0, graph.firstElementChild);
  graph.addEventListener("click", (event) => { const head = event.target.closest("button.h"); if (head) toggle(head.parentElement); const one = near(event); if (one) tell(one); });
  graph.addEventListener("pointerover", (event) => { const one = near(event); if (one && event.pointerType !== "touch") tell(one); });
  graph.addEventListener("focusin", (event) => { const one = near(event); if (one) tell(one); });
  what.hidden = false; document.querySelectorAll(".legend .edges").forEach((one) => { one.hidden = false; });
  new ResizeObserver(wires).observe(graph.firstElementChild); wires();

  // ---- strips
  const lanes = [...document.querySelectorAll(".lane[data-strip], .lane[data-curve]")].map((lane) => ({ lane, pen: lane.appendChild(make("canvas")).getContext("2d") }));
  const axis = element("axis"), label = element("span"), said = element("when");
  let from = 0, length = D.whole || 1;
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const first = (values, t) => { let a = 0, b = values.length; while (a < b) { const m = (a + b) >> 1; if (values[m] <= t) a = m + 1; else b = m; } return Math.max(a - 1, 0); };
  const paint = ({ lane, pen }) => {
    const wide = lane.clientWidth, high = lane.clientHeight, ratio = devicePixelRatio || 1, canvas = pen.canvas, x = (t) => ((t - from) / length) * wide;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) { canvas.width = Math.round(wide * ratio); canvas.height = Math.round(high * ratio); }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0); pen.clearRect(0, 0, wide, high);
    if (lane.dataset.curve) {
      const { at, held, end, top, limit } = D.curves[+lane.dataset.curve], y = (b) => high - (b / top) * (high - 2);
      pen.beginPath(); pen.moveTo(-2, high);
      for (let n = first(at, from); n < at.length && at[n] <= from + length; n++) { pen.lineTo(Math.max(x(at[n]), -2), y(held[n])); pen.lineTo(n + 1 < at.length ? Math.min(x(at[n + 1]), wide + 2) : Math.min(x(end), wide + 2), y(held[n])); }
      pen.lineTo(Math.min(x(end), wide + 2), high); pen.closePath(); pen.globalAlpha = 0.3; pen.fillStyle = colour(`d${lane.dataset.curve % 8}`); pen.fill(); pen.globalAlpha = 1; pen.strokeStyle = pen.fillStyle; pen.lineWidth = 1; pen.stroke();
      if (limit <= top) { pen.strokeStyle = colour("red"); pen.setLineDash([5, 4]); pen.lineWidth = 1.5; pen.beginPath(); pen.moveTo(0, y(limit)); pen.lineTo(wide, y(limit)); pen.stroke(); pen.setLineDash([]); }
      return;
    }
    const { start, finish, device, kind } = D.strips[+lane.dataset.strip];
    pen.fillStyle = device < 0 ? colour("soft") : colour(`d${device % 8}`);
    let last = -1, spent = 0;
    for (let n = Math.max(first(start, from) - (kind === "link" ? 8 : 1), 0); n < start.length && start[n] < from + length; n++) {
      const a = x(start[n]), b = x(finish[n]);
      if (b < 0) continue;
      if (b - a >= 1.5) { pen.globalAlpha = kind === "measured" ? 0.5 + 0.16 * (n % 2) : n % 2 ? 0.72 : 1; pen.fillRect(a, 0, Math.max(b - a - (b - a > 4 ? 0.7 : 0), 1), high); continue; }
      const pixel = Math.floor(a);
      if (pixel !== last) { if (last >= 0) { pen.globalAlpha = Math.min(0.95, Math.max(0.2, spent)); pen.fillRect(last, 0, 1, high); } last = pixel; spent = 0; }
      spent += b - a;
    }
    if (last >= 0) { pen.globalAlpha = Math.min(0.95, Math.max(0.2, spent)); pen.fillRect(last, 0, 1, high); }
    pen.globalAlpha = 1;
  };
  const show = (start, wide) => {
    length = Math.max(Math.min(wide, D.whole), Math.min(1000, D.whole) || 1); from = Math.max(0, Math.min(D.whole - length, start));
    lanes.forEach(paint);
    axis.replaceChildren(...[from, from + length / 2, from + length].map((t) => make("span", {}, t ? span(t) : "0")));
    label.textContent = length < D.whole ? `${span(length)} of ${span(D.whole)}` : "";
    document.querySelectorAll("[data-move]").forEach((b) => { b.disabled = length >= D.whole || (b.dataset.move < 0 ? from <= 0 : from + length >= D.whole); });
  };
  lanes.forEach(({ lane }) => lane.classList.add("drawn"));
  document.querySelectorAll("[data-zoom]").forEach((b) => b.addEventListener("click", () => (+b.dataset.zoom ? show(from + length / 2 - length / 2 / b.dataset.zoom, length / b.dataset.zoom) : show(0, D.whole))));
  document.querySelectorAll("[data-move]").forEach((b) => b.addEventListener("click", () => show(from + b.dataset.move * length * 0.5, length)));
  const timeAt = (lane, event) => { const b = lane.getBoundingClientRect(); return from + ((event.clientX - b.left) / b.width) * length; };
  const tellTime = (lane, event) => {
    const t = timeAt(lane, event);
    if (lane.dataset.curve) {
      const c = D.curves[+lane.dataset.curve];
      said.replaceChildren(make("b", {}, D.devices[+lane.dataset.curve]), ` holds ${size(c.held[first(c.at, t)])} at ${span(t)}; at most ${size(c.peak)}, may hold ${size(c.limit)}`);
      return;
    }
    const s = D.strips[+lane.dataset.strip], slack = length / lane.clientWidth;
    let n = first(s.start, t); if (n + 1 < s.start.length && s.start[n + 1] - t < slack && t > s.finish[n]) n++;
    if (!s.start.length || t > s.finish[n] + slack || t < s.start[n] - slack) { said.replaceChildren(make("b", {}, s.title), ` ${s.kind === "link" ? "carries nothing" : "waits"} at ${span(t)}`); return; }
    const when = `${s.start[n] ? span(s.start[n]) : "0"} to ${span(s.finish[n])} (${span(s.finish[n] - s.start[n])})`, id = s.what[n];
    if (s.kind === "link") { const i = D.task[D.sent.from[id]]; said.replaceChildren(make("b", {}, size(D.sent.bytes[id])), ` to ${D.devices[D.sent.to[id]]} · made by ${D.name[i]}${path(i) ? `, in ${path(i)}` : ""} · ${when}`); return; }
    const i = D.task[id];
    said.replaceChildren(make("b", {}, D.name[i]), ` ${path(i) ? `in ${path(i)} · ` : ""}${s.kind === "measured" ? "measured · " : ""}${when} · ${many(D.ops[i], "op")}${D.flops[i] ? ` · ${work(D.flops[i])}` : ""} · ${size(D.bytes[i])}`);
    if (boxOf.has(i)) { graph.querySelectorAll(".picked").forEach((other) => other.classList.remove("picked")); boxOf.get(i).classList.add("picked"); }
  };
  let dragged = null;
  lanes.forEach(({ lane }) => {
    lane.addEventListener("pointerdown", (event) => { dragged = { x: event.clientX, from }; tellTime(lane, event); });
    lane.addEventListener("pointermove", (event) => { if (dragged && event.buttons && length < D.whole) show(dragged.from - ((event.clientX - dragged.x) / lane.clientWidth) * length, length); tellTime(lane, event); });
    lane.addEventListener("wheel", (event) => { if (!event.ctrlKey && !event.shiftKey) return; event.preventDefault(); const t = timeAt(lane, event), by = event.deltaY < 0 ? 0.8 : 1.25; show(t - (t - from) * by, length * by); }, { passive: false });
  });
  addEventListener("pointerup", () => { dragged = null; });
  document.querySelector(".strips .tools").hidden = false; said.hidden = false;
  new ResizeObserver(() => show(from, length)).observe(axis);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(from, length));
  document.documentElement.dataset.ready = "";
})();
