"use strict";
// What the page does: it draws, filters, sorts and prints.
(() => {
  const TEXTS = new Set(["recipe", "format", "status"]);

  /* ---------- one model on one device ---------- */
  function bind(section) {
    const data = JSON.parse(section.querySelector(".plot-data").textContent);
    const form = section.querySelector(".controls"),
      body = section.querySelector("table.cells tbody");
    const boxes = data.cells.filter((c) => c.timed).map((c) => c.box);
    const state = {
      curve: false,
      log: boxes.length > 0 && Math.max(...boxes.map((b) => b[4])) > 8 * Math.min(...boxes.map((b) => b[0])),
    };
    const visible = () => new Set([...body.rows].filter((r) => !r.hidden).map((r) => r.dataset.cell));
    function draw(only) {
      const ids = visible(),
        cells = data.cells.filter((c) => ids.has(c.id));
      for (const node of section.querySelectorAll("[data-plot]")) {
        if (only && node.dataset.plot !== only) continue;
        const [traces, shape] = plots.kinds[node.dataset.plot](cells, data, state);
        if (!traces.some((t) => t.x && t.x.some((v) => v !== null))) {
          Plotly.purge(node);
          node.textContent = "Nothing to draw.";
          continue;
        }
        if (!node.classList.contains("js-plotly-plot")) node.textContent = "";
        Plotly.react(node, traces, shape, plots.config());
      }
    }
    function filter() {
      const words = form.querySelector("[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
      const off = (name) =>
        new Set([...form.querySelectorAll(`[name=${name}]:not(:checked)`)].map((box) => box.value));
      const formatsOff = off("format"),
        threadsOff = off("threads");
      for (const row of body.rows) {
        const text = `${row.textContent} ${row.dataset.status}`.toLowerCase();
        row.hidden =
          formatsOff.has(row.dataset.format) ||
          threadsOff.has(row.dataset.threads) ||
          !words.every((w) => text.includes(w));
      }
      form.querySelector("output").textContent = `${visible().size} of ${body.rows.length} cells`;
      draw();
    }
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    switches(section.querySelector("[data-plot=latency]"), state, () => draw("latency"));
    sortable(section.querySelector("table.cells"));
    return draw;
  }

  function switches(node, state, redraw) {
    if (!node) return;
    const box = document.createElement("div");
    box.className = "views";
    for (const [key, names] of [
      ["curve", ["Boxes", "Curves"]],
      ["log", ["Linear", "Log"]],
    ]) {
      const group = box.appendChild(document.createElement("div"));
      group.setAttribute("role", "group");
      names.forEach((name, on) => {
        const button = group.appendChild(document.createElement("button"));
        button.type = "button";
        button.textContent = name;
        const mark = () => button.setAttribute("aria-pressed", String(state[key] === Boolean(on)));
        button.addEventListener("click", () => {
          state[key] = Boolean(on);
          box.dispatchEvent(new Event("change"));
          redraw();
        });
        box.addEventListener("change", mark);
        mark();
      });
    }
    node.before(box);
  }

  /* ---------- table ---------- */
  function sortable(table) {
    const value = (row, name) => {
      const cell = row.querySelector(`[data-metric="${name}"][data-value]`);
      return cell === null ? null : TEXTS.has(name) ? cell.dataset.value : Number(cell.dataset.value);
    };
    for (const header of table.querySelectorAll("th[data-sort]")) {
      header.querySelector("button").addEventListener("click", () => {
        const name = header.dataset.sort,
          down = header.getAttribute("aria-sort") === "ascending";
        for (const other of table.querySelectorAll("th[data-sort]")) other.setAttribute("aria-sort", "none");
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = (a, b) =>
          (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) * (down ? -1 : 1);
        const lines = [...table.tBodies[0].rows].map((row) => [row, value(row, name)]);
        // What was not measured is last whichever way the rest is sorted.
        lines.sort(([, a], [, b]) => (a === null || b === null ? (a === null) - (b === null) : order(a, b)));
        table.tBodies[0].append(...lines.map(([row]) => row));
      });
    }
  }

  const draws = [...document.querySelectorAll("section.model")].map(bind);
  const redraw = () => draws.forEach((draw) => draw());
  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("(max-width: 759px)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    for (const node of document.querySelectorAll("details")) node.open = true;
    document.documentElement.dataset.print = ""; // dark ink on white, whatever the screen has
    redraw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.print;
    redraw();
    for (const node of document.querySelectorAll(".js-plotly-plot")) Plotly.Plots.resize(node);
  });
  document.documentElement.dataset.ready = "true";
})();
