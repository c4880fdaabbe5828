"use strict";
// What each plot looks like: plots.KIND(cells, data, state) gives [traces, layout] for Plotly.
const plots = (() => {
  const SYMBOLS = "circle square diamond triangle-up star cross x hexagon pentagon triangle-down".split(" ");
  const DASHES = "solid dash dot dashdot longdash longdashdot".split(" ");
  // A sheet is narrower than the window, and no resize tells the plots.
  const printing = () => document.documentElement.dataset.print !== undefined;
  const compact = () => window.innerWidth < 760;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const faint = (name, alpha) => {
    const parts = [1, 3, 5].map((start) => parseInt(colour(name).slice(start, start + 2), 16));
    return `rgba(${parts.join()},${alpha})`;
  };
  // Plotly reads a little markup in texts: names are shown as they are.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const unit = (cells) => {
    const most = Math.max(0, ...cells.map((c) => c.p50_ns.value));
    return most >= 1e9 ? ["s", 1e9] : most >= 1e6 ? ["ms", 1e6] : most >= 1e3 ? ["µs", 1e3] : ["ns", 1];
  };
  const bytes = (most) => (most >= 2 ** 20 ? ["MiB", 2 ** 20] : most >= 2 ** 10 ? ["KiB", 2 ** 10] : ["B", 1]);

  /* ---------- layout ---------- */
  const axis = (title, more) => ({
    title: { text: title, font: { size: 12 }, standoff: 10 },
    gridcolor: colour("line"),
    zerolinecolor: colour("line"),
    linecolor: colour("line"),
    tickfont: { size: 12 },
    automargin: true,
    fixedrange: compact(),
    ...more,
  });
  const categories = (cells, key) =>
    axis("", {
      type: "category",
      categoryorder: "array",
      categoryarray: cells.map((c) => c[key]),
      range: [cells.length - 0.4, -0.6],
      tickvals: cells.map((c) => c[key]),
      ticktext: cells.map((c) => plain(shorten(compact() && key === "label" ? c.short_label : c[key]))),
      showgrid: false,
      title: { text: "" },
    });
  const shorten = (label) => {
    const most = compact() ? 22 : 44;
    return label.length > most ? `${label.slice(0, most - 1)}…` : label;
  };
  const layout = (height, more) => ({
    height,
    width: printing() ? 680 : undefined,
    autosize: !printing(),
    margin: { l: 8, r: 12, t: 8, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("soft") },
    hoverlabel: {
      bgcolor: colour("card"),
      bordercolor: colour("line"),
      align: "left",
      font: { color: colour("ink"), size: 13 },
    },
    hovermode: "closest",
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("neutral"), activecolor: colour("ink") },
    dragmode: compact() ? false : "zoom",
    ...more,
  });
  // Plotly's default tool bar has a button that uploads the chart to its maker: nothing of the kind here.
  const config = () => ({
    displayModeBar: compact() ? false : "hover",
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    showTips: false,
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"], ["toImage"]],
    toImageButtonOptions: { format: "svg", filename: document.title },
  });
  const room = () => (compact() ? 1.55 : 1.25); // for the figure beside a bar
  const rows = (count) => 74 + count * 27;
  const title = (cell) => `<b>${plain(cell.label)}</b><br>${plain(cell.runtime)}`;
  const p50 = (cell) => `p50 ${cell.p50_ns.text}${cell.p50_ns.spread ? ` (${cell.p50_ns.spread})` : ""}`;
  const hover = { hovertemplate: "%{text}<extra></extra>" };
  const formats = (cells) => [...new Set(cells.map((c) => c.format))];

  /* ---------- plots: cells and state to [traces, layout] ---------- */
  function latency(cells, data, state) {
    const timed = cells.filter((c) => c.timed).sort((a, b) => a.p50_ns.value - b.p50_ns.value);
    const [name, scale] = unit(timed);
    const x = axis(
      `latency of one inference, ${name}`,
      state.log ? { type: "log", dtick: "D2" } : { rangemode: "tozero" },
    );
    if (state.curve) return curve(timed, data, scale, x);
    const traces = formats(timed).flatMap((format) => {
      const of = timed.filter((c) => c.format === format);
      const dots = of.flatMap((c) => c.blocks.map((b) => [c, b]));
      const q = (i) => of.map((c) => c.box[i] / scale);
      return [
        {
          type: "box",
          orientation: "h",
          y: of.map((c) => c.label),
          lowerfence: q(0),
          q1: q(1),
          median: q(2),
          q3: q(3),
          upperfence: q(4),
          line: { color: colour(format), width: 1.5 },
          fillcolor: "rgba(0,0,0,0)",
          width: 0.62,
          hoverinfo: "skip",
        },
        {
          type: "scatter",
          mode: "markers",
          x: dots.map(([, b]) => b.median_ns / scale),
          y: dots.map(([c]) => c.label),
          marker: { color: colour(format), size: 7, opacity: 0.75, line: { width: 1, color: colour("card") } },
          text: dots.map(
            ([c, b]) =>
              `${title(c)}<br>block ${b.index}: median ${b.text}, ${b.count} inferences<br>all blocks: ${p50(c)}`,
          ),
          ...hover,
        },
      ];
    });
    return [traces, layout(rows(timed.length), { xaxis: x, yaxis: categories(timed, "label"), boxmode: "overlay" })];
  }
  function curve(timed, data, scale, x) {
    const share = Array.from({ length: data.curve_points }, (_, k) => ((k + 1) / (data.curve_points + 1)) * 100);
    const traces = timed.map((c) => ({
      type: "scatter",
      mode: "lines",
      x: c.curve.map((v) => v / scale),
      y: share,
      line: { color: colour(c.format), width: 2, dash: DASHES[data.recipes.indexOf(c.recipe) % DASHES.length] },
      name: plain(c.label),
      text: share.map((s) => `${title(c)}<br>${s.toFixed(1)} % of ${c.count} inferences are at least as fast`),
      ...hover,
    }));
    const y = axis("inferences at least as fast, %", { range: [0, 100] });
    return [traces, layout(compact() ? 420 : 460, { xaxis: x, yaxis: y, showlegend: true, legend: legend() })];
  }
  const legend = () => ({
    orientation: "h",
    x: 0,
    xanchor: "left",
    y: -0.2,
    yanchor: "top",
    font: { size: 12 },
    itemclick: "toggle",
  });

  function pareto(cells, data) {
    const shown = cells.filter((c) => c.timed && c.score.value !== null);
    const [name, scale] = unit(shown);
    const factor = data.share ? 100 : 1;
    const slowest = Math.max(...shown.map((c) => c.p50_ns.value));
    const several = new Set(shown.map((c) => c.threads)).size > 1;
    const fewest = Math.min(...shown.map((c) => c.threads));
    const symbol = (c) =>
      SYMBOLS[data.recipes.indexOf(c.recipe) % SYMBOLS.length] + (several && c.threads > fewest ? "-open" : "");
    const away = (c, key, by, sign) => (c[key][sign] === null ? 0 : Math.abs(c[key][sign] - c[key].value) * by);
    const scored = (c) => `${plain(data.score)} ${c.score.text}${c.score.spread ? ` (${c.score.spread})` : ""}`;
    const traces = [...new Set(shown.map((c) => c.threads))].map((threads) => {
      const front = shown
        .filter((c) => c.front && c.threads === threads)
        .sort((a, b) => a.p50_ns.value - b.p50_ns.value);
      return {
        type: "scatter",
        mode: "lines",
        x: front.map((c) => c.p50_ns.value / scale),
        y: front.map((c) => c.score.value * factor),
        line: { shape: "hv", color: colour("neutral"), width: 1.5, dash: threads > fewest ? "dot" : "solid" },
        hoverinfo: "skip",
        showlegend: false,
      };
    });
    traces.push(
      ...formats(shown).map((format) => {
        const of = shown.filter((c) => c.format === format);
        const bar = (key, by) => ({
          type: "data",
          symmetric: false,
          array: of.map((c) => away(c, key, by, "high")),
          arrayminus: of.map((c) => away(c, key, by, "low")),
          color: faint(format, 0.45),
          thickness: 1.2,
          width: 3,
        });
        return {
          type: "scatter",
          mode: compact() ? "markers" : "markers+text",
          showlegend: false,
          x: of.map((c) => c.p50_ns.value / scale),
          y: of.map((c) => c.score.value * factor),
          error_x: bar("p50_ns", 1 / scale),
          error_y: bar("score", factor),
          marker: {
            color: colour(format),
            symbol: of.map(symbol),
            size: 12,
            line: {
              width: 1.5,
              color: of.map((c) => (symbol(c).endsWith("open") ? colour(format) : colour("card"))),
            },
          },
          text: of.map((c) => (c.front && !several ? `  ${plain(shorten(c.file_label))}  ` : "")),
          textfont: { size: 12, color: colour("ink") },
          cliponaxis: false,
          // No cell lies up and to the left of one on the front: there is room for its name.
          textposition: of.map((c) => (c.p50_ns.value > 0.3 * slowest ? "top left" : "top right")),
          hovertext: of.map((c) => [title(c), p50(c), scored(c), c.front ? "on the Pareto front" : ""].join("<br>")),
          hovertemplate: "%{hovertext}<extra></extra>",
        };
      }),
    );
    const key = (label, marker) => ({
      type: "scatter",
      mode: "markers",
      x: [null],
      y: [null],
      name: plain(label),
      marker: { size: 10, ...marker },
      hoverinfo: "skip",
    });
    for (const format of formats(shown)) {
      const line = { width: 4, color: colour(format) };
      traces.push(key(shown.find((c) => c.format === format).suffix, { symbol: "line-ew", line }));
    }
    for (const recipe of data.recipes.filter((r) => shown.some((c) => c.recipe === r))) {
      const symbol = SYMBOLS[data.recipes.indexOf(recipe) % SYMBOLS.length];
      traces.push(key(recipe, { color: colour("soft"), symbol }));
    }
    if (several)
      traces.push(
        key(`open: more than ${fewest} thread${fewest === 1 ? "" : "s"}`, {
          color: colour("soft"),
          symbol: "circle-open",
        }),
      );
    const y = axis(plain(data.score || "score") + (data.share ? ", %" : ""), {});
    return [
      traces,
      layout(compact() ? 420 : 440, {
        xaxis: axis(`p50 latency, ${name}`, { rangemode: "tozero" }),
        yaxis: y,
        showlegend: true,
        legend: { ...legend(), itemclick: false, itemdoubleclick: false },
      }),
    ];
  }

  function size(cells) {
    const files = [
      ...new Map(cells.filter((c) => c.timed && c.file_bytes.value !== null).map((c) => [c.file_label, c])).values(),
    ].sort((a, b) => a.file_bytes.value - b.file_bytes.value);
    const [name, scale] = bytes(Math.max(0, ...files.map((c) => c.file_bytes.value)));
    const traces = formats(files).flatMap((format) => {
      const of = files.filter((c) => c.format === format);
      const text = of.map(
        (c) => `<b>${plain(c.file_label)}</b><br>${c.file_bytes.text}, ${c.gzip_bytes.text} after gzip -9`,
      );
      return [
        {
          type: "bar",
          orientation: "h",
          y: of.map((c) => c.file_label),
          x: of.map((c) => c.file_bytes.value / scale),
          width: 0.58,
          marker: { color: colour(format), opacity: 0.85 },
          hovertext: text,
          text: of.map((c) => c.file_bytes.text),
          textposition: "outside",
          cliponaxis: false,
          textfont: { size: 12 },
          hovertemplate: "%{hovertext}<extra></extra>",
        },
        {
          type: "scatter",
          mode: "markers",
          y: of.map((c) => c.file_label),
          x: of.map((c) => (c.gzip_bytes.value === null ? null : c.gzip_bytes.value / scale)),
          marker: { symbol: "line-ns", size: 13, line: { width: 2.5, color: colour("ink") } },
          hoverinfo: "skip",
        },
      ];
    });
    const most = Math.max(0, ...files.map((c) => c.file_bytes.value)) / scale;
    return [
      traces,
      layout(rows(files.length), {
        xaxis: axis(name, { range: [0, most * room()] }),
        yaxis: categories(files, "file_label"),
        barmode: "overlay",
      }),
    ];
  }

  function memory(cells) {
    const sensed = cells
      .filter((c) => c.peak_bytes.value !== null)
      .sort((a, b) => a.model_memory_bytes.value - b.model_memory_bytes.value);
    const [name, scale] = bytes(Math.max(0, ...sensed.map((c) => c.peak_bytes.value)));
    const text = (c) =>
      `${title(c)}<br>peak ${c.peak_bytes.text} (${c.peak_bytes.spread})<br>runtime ${c.baseline_bytes.text}, model ${c.model_memory_bytes.text} (${c.model_memory_bytes.spread})`;
    const bars = (of, key, fill, more) => ({
      type: "bar",
      orientation: "h",
      y: of.map((c) => c.label),
      x: of.map((c) => c[key].value / scale),
      width: 0.58,
      marker: { color: fill },
      hovertext: of.map(text),
      hovertemplate: "%{hovertext}<extra></extra>",
      ...more,
    });
    const traces = [bars(sensed, "baseline_bytes", colour("neutral"), { opacity: 0.7 })];
    traces.push(
      ...formats(sensed).map((format) => {
        const of = sensed.filter((c) => c.format === format);
        const away = (c, end) => Math.abs(c.peak_bytes[end] - c.peak_bytes.value) / scale;
        return bars(of, "model_memory_bytes", colour(format), {
          base: of.map((c) => c.baseline_bytes.value / scale),
          error_x: {
            type: "data",
            symmetric: false,
            array: of.map((c) => away(c, "high")),
            arrayminus: of.map((c) => away(c, "low")),
            color: colour("ink"),
            thickness: 1,
            width: 3,
          },
          text: of.map((c) => `  ${c.model_memory_bytes.text}`),
          textposition: "outside",
          cliponaxis: false,
          textfont: { size: 12 },
        });
      }),
    );
    const most = Math.max(0, ...sensed.map((c) => c.peak_bytes.high)) / scale;
    return [
      traces,
      layout(rows(sensed.length), {
        xaxis: axis(name, { range: [0, most * room()] }),
        yaxis: categories(sensed, "label"),
        barmode: "overlay",
      }),
    ];
  }

  function drift(cells, data) {
    const timed = cells.filter((c) => c.timed && c.blocks.length);
    const traces = timed.map((c) => ({
      type: "scatter",
      mode: "lines+markers",
      x: c.blocks.map((b) => b.started_utc),
      y: c.blocks.map((b) => b.shift_percent),
      line: { color: colour(c.format), width: 1 },
      opacity: 0.55,
      marker: { size: 6, symbol: SYMBOLS[data.recipes.indexOf(c.recipe) % SYMBOLS.length] },
      text: c.blocks.map(
        (b) => `${title(c)}<br>block ${b.index}: ${b.text}, ${b.shift_percent.toFixed(1)} % from the cell's median`,
      ),
      ...hover,
    }));
    traces.push({
      type: "scatter",
      mode: "lines",
      x: data.rounds.map((r) => r.started_utc),
      y: data.rounds.map((r) => r.shift_percent),
      line: { color: colour("ink"), width: 3 },
      text: data.rounds.map(
        (r) => `<b>round ${r.index}</b><br>median of ${r.cells} cells: ${r.shift_percent.toFixed(1)} %`,
      ),
      ...hover,
    });
    return [
      traces,
      layout(compact() ? 300 : 320, {
        xaxis: axis("time, UTC", { type: "date" }),
        yaxis: axis("from the cell's own median, %", { zeroline: true, zerolinecolor: colour("neutral") }),
      }),
    ];
  }
  return { config, kinds: { latency, pareto, size, memory, drift } };
})();
