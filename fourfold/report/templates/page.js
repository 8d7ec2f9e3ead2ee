"use strict";
(() => {
  const told = JSON.parse(document.getElementById("told").textContent);
  const detail = document.getElementById("detail");
  const show = (index) => {
    const item = told[index];
    if (!item) return;
    detail.replaceChildren();
    item.forEach((text, i) => {
      const part = document.createElement(i === 0 ? "b" : "span");
      part.textContent = text;
      detail.append(part, i === item.length - 1 ? "" : i === 0 ? " " : " · ");
    });
    document.querySelectorAll(".plot .picked").forEach((point) => point.classList.remove("picked"));
    document.querySelectorAll(`.plot [data-c="${index}"]`).forEach((point) => point.classList.add("picked"));
  };
  document.querySelectorAll(".plot [data-c]").forEach((point) => {
    for (const kind of ["pointerenter", "focus", "click"]) point.addEventListener(kind, () => show(point.dataset.c));
  });
  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => { const cell = row.cells[column]; return cell.dataset.v ?? cell.textContent.trim(); };
        const order = (a, b) => { const [x, y] = [key(a), key(b)]; return x !== "" && y !== "" && !isNaN(x) && !isNaN(y) ? x - y : (x === "") - (y === "") || x.localeCompare(y); };
        const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
        table.tBodies[0].append(...rows);
      });
    });
  });
  document.querySelectorAll("button.copy").forEach((button) => {
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling.textContent;
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(button.previousElementSibling); button.textContent = "Selected"; }
    });
  });
  // ---- tables in a narrow window: a cell knows its head's words, and the style makes cards of rows
  document.querySelectorAll(".scroll table").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    [...table.tBodies[0].rows].forEach((row) => [...row.cells].forEach((cell, i) => { cell.dataset.l = heads[i] || ""; }));
    table.classList.add("cards");
  });
})();
