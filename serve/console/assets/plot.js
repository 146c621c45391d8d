// Draws the curves of a page: each figure has its numbers in a table, which stays for those who do not see the drawing.
"use strict";
(() => {
  // What a name of the style sheet is in the scheme that the reader has.
  const colour = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  };
  const drawn = new Map();

  const numbers = (table) => {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    const rows = [...table.tBodies[0].rows];
    const columns = heads.map((_, place) =>
      rows.map((row) => {
        const cell = row.cells[place];
        const value = Number.parseFloat(cell.dataset.value ?? cell.textContent);
        return Number.isFinite(value) ? value : null;
      }),
    );
    return [heads, columns];
  };

  const draw = (figure) => {
    const table = figure.querySelector("table");
    const target = figure.querySelector(".plot");
    if (!table || !target || typeof uPlot === "undefined") return;
    const [heads, columns] = numbers(table);
    if (columns[0].length < 2) return;
    const strokes = ["--blue", "--red", "--green"].map(colour);
    const axis = { stroke: colour("--ink"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
    const isTime = figure.dataset.x === "time";
    const width = Math.max(280, figure.clientWidth);
    const plot = new uPlot(
      {
        width,
        height: 240,
        scales: { x: { time: isTime } },
        axes: [{ ...axis, label: isTime ? undefined : heads[0] }, { ...axis, size: 60 }],
        series: [
          { label: heads[0] },
          ...heads.slice(1).map((label, place) => ({
            label,
            stroke: strokes[place % strokes.length],
            width: 2,
            spanGaps: true,
            points: { show: columns[0].length < 60 },
          })),
        ],
      },
      columns,
      target,
    );
    drawn.set(figure, plot);
  };

  const drawAll = () => {
    for (const [figure, plot] of drawn) {
      if (!figure.isConnected) {
        plot.destroy();
        drawn.delete(figure);
      }
    }
    for (const figure of document.querySelectorAll("figure[data-x]")) {
      if (!drawn.has(figure)) draw(figure);
    }
  };

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of drawn.values()) plot.destroy();
    drawn.clear();
    drawAll();
  });
  window.addEventListener("resize", () => {
    for (const [figure, plot] of drawn) plot.setSize({ width: Math.max(280, figure.clientWidth), height: 240 });
  });
  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("htmx:afterSettle", drawAll);
})();
