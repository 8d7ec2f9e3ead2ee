"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const R = data.sites.length, T = data.hours, MISSING = 65535, HOUR = 3600e3 * data.step, START = Date.parse(data.start);
  const unpack = ({ scale, low, base64 }) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)), view = new DataView(bytes.buffer), out = new Float32Array(R * T);
    for (let i = 0; i < out.length; i++) { const n = view.getUint16(2 * i, true); out[i] = n === MISSING ? NaN : low + n * scale; }
    return out;
  };
  const grams = unpack(data.intensity), kw = unpack(data.kw), count = unpack(data.count);
  const most = (values) => values.reduce((a, b) => (b > a ? b : a), 0);
  const top = most(grams) || 1, full = most(kw) || 1;
  const canvas = document.getElementById("strips"), pen = canvas.getContext("2d"), detail = document.getElementById("detail"), label = document.getElementById("span");
  const pad = (n) => String(n).padStart(2, "0");
  const when = (t, hours = true) => { const d = new Date(START + t * HOUR); return `${d.getUTCFullYear()}-${pad(d.getUTCMonth() + 1)}-${pad(d.getUTCDate())}` + (hours ? ` ${pad(d.getUTCHours())}:00` : ""); };
  const nice = (value, digits = 3) => (value == null || isNaN(value) ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(digits)));
  let from = 0, span = T, width = 0, height = 0, strip = 0, gap = 0;

  const draw = () => {
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const ratio = devicePixelRatio || 1;
    width = canvas.clientWidth; strip = R > 12 ? 34 : width < 500 ? 50 : 58; gap = 20; height = R * (strip + gap) + 22;
    canvas.style.height = `${height}px`; canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0); pen.clearRect(0, 0, width, height); pen.font = `12.5px ${style.getPropertyValue("--text")}`;
    const left = 34, room = width - left, columns = Math.max(1, Math.min(Math.floor(room), span)), wide = room / columns;
    for (let r = 0; r < R; r++) {
      const y0 = r * (strip + gap) + gap - 3, y1 = y0 + strip, at = (g) => y1 - (g / top) * (strip - 3);
      pen.fillStyle = colour("wash"); pen.fillRect(left, y0, room, strip);
      const means = new Float64Array(columns), highs = new Float64Array(columns).fill(NaN), lows = new Float64Array(columns).fill(NaN), loads = new Float64Array(columns);
      for (let c = 0; c < columns; c++) {
        const a = from + Math.floor((c * span) / columns), b = Math.max(a + 1, from + Math.floor(((c + 1) * span) / columns));
        let sum = 0, n = 0, load = 0;
        for (let t = a; t < b; t++) {
          const g = grams[r * T + t]; load += kw[r * T + t];
          if (!isNaN(g)) { sum += g; n++; if (!(highs[c] >= g)) highs[c] = g; if (!(lows[c] <= g)) lows[c] = g; }
        }
        means[c] = n ? sum / n : NaN; loads[c] = load / (b - a);
      }
      const busiest = loads.reduce((a, b) => Math.max(a, b), 0);
      for (let c = 0; c < columns; c++) if (loads[c] > 0) {
        pen.globalAlpha = 0.25 + 0.7 * Math.sqrt(loads[c] / Math.max(busiest, full / 50)); pen.fillStyle = colour("kept");
        pen.fillRect(left + c * wide, y0, Math.max(wide, 1) + 0.3, strip);
      }
      pen.globalAlpha = 0.28; pen.fillStyle = colour("ink");
      for (let c = 0; c < columns; c++) if (highs[c] > lows[c]) pen.fillRect(left + c * wide, at(highs[c]), Math.max(wide, 1), Math.max(at(lows[c]) - at(highs[c]), 1));
      pen.globalAlpha = 1; pen.strokeStyle = colour("ink"); pen.lineWidth = 1.4; pen.beginPath();
      let on = false;
      for (let c = 0; c < columns; c++) {
        if (isNaN(means[c])) { on = false; continue; }
        const x = left + (c + 0.5) * wide; on ? pen.lineTo(x, at(means[c])) : pen.moveTo(x, at(means[c])); on = true;
      }
      pen.stroke();
      pen.fillStyle = colour("ink"); pen.textAlign = "left"; pen.font = `600 13px ${style.getPropertyValue("--text")}`; pen.fillText(data.sites[r], left, y0 - 5);
      pen.font = `12px ${style.getPropertyValue("--text")}`; pen.fillStyle = colour("soft"); pen.textAlign = "right"; pen.fillText(nice(top, 2), left - 5, y0 + 10); pen.fillText("0", left - 5, y1);
    }
    pen.fillStyle = colour("soft"); pen.textAlign = "center";
    const marks = Math.max(2, Math.floor(room / 110)), days = span * data.step > 72;
    for (let m = 0; m <= marks; m++) {
      const t = from + (m * span) / marks, x = left + (m * room) / marks;
      pen.textAlign = m === 0 ? "left" : m === marks ? "right" : "center";
      pen.fillText(days ? when(Math.min(t, T - 1), false) : when(Math.round(Math.min(t, T - 1))).slice(5), x, height - 4);
    }
    label.textContent = span >= T ? "" : `${when(from)} to ${when(from + span)} UTC`;
    document.querySelectorAll("[data-span]").forEach((b) => { const asked = +b.dataset.span / data.step; b.setAttribute("aria-pressed", asked === 0 ? span >= T : Math.round(asked) === span); b.disabled = asked >= T; });
    document.querySelectorAll("[data-move]").forEach((b) => { b.disabled = span >= T || (b.dataset.move < 0 ? from <= 0 : from + span >= T); });
  };
  const show = (start, length) => { span = Math.max(1, Math.min(T, Math.round(length))); from = Math.max(0, Math.min(T - span, Math.round(start))); draw(); };
  const hourAt = (event) => { const box = canvas.getBoundingClientRect(), x = event.clientX - box.left - 34; return Math.max(0, Math.min(T - 1, Math.floor(from + (x / (width - 34)) * span))); };
  const tell = (event) => {
    const box = canvas.getBoundingClientRect(), r = Math.floor((event.clientY - box.top) / (strip + gap)), t = hourAt(event);
    if (r < 0 || r >= R) return;
    const i = r * T + t, jobs = Math.round(count[i]);
    detail.replaceChildren(Object.assign(document.createElement("b"), { textContent: data.sites[r] }), ` ${when(t)} UTC${data.step > 1 ? ` (mean of ${data.step} hours)` : ""} · ${nice(grams[i])} g/kWh · ${nice(kw[i])} kW in ${jobs} job${jobs === 1 ? "" : "s"}`);
  };
  let dragged = null;
  canvas.addEventListener("pointerdown", (event) => { dragged = { x: event.clientX, from }; tell(event); });
  canvas.addEventListener("pointermove", (event) => { if (dragged && event.buttons && span < T) show(dragged.from - ((event.clientX - dragged.x) / (width - 34)) * span, span); tell(event); });
  addEventListener("pointerup", () => { dragged = null; });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && Math.abs(event.deltaX) <= Math.abs(event.deltaY) && !event.shiftKey) return;
    event.preventDefault();
    const t = hourAt(event), next = Math.max(Math.min(24 / data.step, T), span * (event.deltaY > 0 ? 1.25 : 0.8));
    event.ctrlKey ? show(t - ((t - from) / span) * next, next) : show(from + (Math.sign(event.deltaX || event.deltaY) * span) / 10, span);
  }, { passive: false });
  document.querySelectorAll("[data-span]").forEach((b) => b.addEventListener("click", () => { const asked = +b.dataset.span / data.step || T; show(from + (span - asked) / 2, asked); }));
  document.querySelectorAll("[data-move]").forEach((b) => b.addEventListener("click", () => show(from + b.dataset.move * span, span)));
  new ResizeObserver(draw).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();

  const jobs = data.jobs, total = jobs.name.length, PAGE = 50;
  const heads = [["name", "Job"], ["where", "Runs at"], ["first", "From, UTC"], ["last", "Last hour"], ["hours", "Hours"], ["wait", "Waits, h"], ["kw", "kW"], ["kwh", "kWh"], ["kg", "kg CO2e"], ["base", "At home, at once"]]
    .filter(([key]) => jobs[key].some((value) => value !== null));
  const text = { where: (v) => v.map((r) => data.sites[r]).join(", ") || "–", first: (v) => (v === null ? "–" : when(v / data.step)), last: (v) => (v === null ? "–" : when(v / data.step)), name: String };
  const cell = (key, i) => (text[key] ? text[key](jobs[key][i]) : nice(jobs[key][i], 4));
  let order = [...Array(total).keys()], found = order, page = 0, sorted = null;
  const body = document.querySelector("#jobs tbody"), head = document.querySelector("#jobs thead tr");
  const list = () => {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.max(0, Math.min(page, pages - 1));
    body.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((i) => {
      const row = document.createElement("tr");
      heads.forEach(([key]) => { const td = document.createElement("td"); td.textContent = cell(key, i); if (!["name", "where", "first", "last"].includes(key)) td.className = "num"; row.append(td); });
      return row;
    }));
    document.getElementById("page").textContent = found.length ? `${(page * PAGE + 1).toLocaleString("en")} to ${Math.min((page + 1) * PAGE, found.length).toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "none";
    document.getElementById("before").disabled = page === 0; document.getElementById("after").disabled = page >= pages - 1;
  };
  const search = () => { const words = document.getElementById("find").value.trim().toLowerCase(); found = words ? order.filter((i) => `${jobs.name[i]} ${cell("where", i)}`.toLowerCase().includes(words)) : order; page = 0; list(); };
  heads.forEach(([key, title]) => {
    const th = document.createElement("th"), button = Object.assign(document.createElement("button"), { type: "button", textContent: title });
    if (!["name", "where", "first", "last"].includes(key)) th.className = "num";
    th.append(button); head.append(th);
    button.addEventListener("click", () => {
      const up = sorted !== key; sorted = up ? key : null;
      head.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort")); th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (i) => (key === "where" ? cell(key, i) : jobs[key][i]);
      order.sort((a, b) => { const [x, y] = [value(a), value(b)]; return x === null || y === null ? (x === null) - (y === null) : typeof x === "number" ? (up ? x - y : y - x) : (up ? 1 : -1) * String(x).localeCompare(String(y), "en", { numeric: true }); });
      search();
    });
  });
  document.getElementById("find").addEventListener("input", search);
  document.getElementById("before").addEventListener("click", () => { page--; list(); });
  document.getElementById("after").addEventListener("click", () => { page++; list(); });
  list();
  document.querySelectorAll("table.sortable").forEach((table) => table.querySelectorAll("thead th").forEach((th, column) => {
    const button = document.createElement("button"); button.type = "button"; button.append(...th.childNodes); th.append(button);
    button.addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") !== "ascending"; table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort")); th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => { const td = row.cells[column]; return td.dataset.v ?? td.textContent.trim(); };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => { const [x, y] = [key(a), key(b)]; const c = x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : (x === "") - (y === "") || x.localeCompare(y); return up ? c : -c; }));
    });
  }));
})();
