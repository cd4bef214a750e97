// A statistic of many matrices as an image: a row for each matrix, time to the right, colour for the value.

const heatmaps = [];

class Heatmap {
  /** `rows`: {key, label} of one run. */
  constructor(run, rows) {
    this.run = run;
    this.rows = rows;
    this.canvas = el("canvas", { role: "img" });
    this.low = el("span", {}), this.high = el("span", {});
    const height = Math.max(6, Math.min(22, 560 / rows.length));
    this.canvas.style.height = height * rows.length + "px";
    const every = height >= 11 ? 1 : Math.ceil(12 / height), line = Math.min(16, height * every);
    const labels = rows.map((row, i) => el("span", { title: row.label }, i % every === 0 ? row.label : ""));
    const names = el("div", { class: "rows", style: { "grid-auto-rows": height + "px", "line-height": line + "px", "font-size": Math.min(11.5, line - 1.5) + "px" } }, labels);
    this.box = el("div", { class: "heat" }, names, this.canvas, el("div", { class: "scale" }, this.low, el("i", {}), this.high));
    this.canvas.addEventListener("pointermove", (e) => this.point(e));
    this.canvas.addEventListener("pointerleave", () => leave());
    heatmaps.push(this);
  }

  draw() {
    const columns = Math.max(...this.rows.map((row) => this.run.series[row.key].mean.length));
    const values = this.rows.map((row) => this.run.series[row.key].mean);
    const sorted = values.flat().sort((a, b) => a - b);
    const low = quantile(sorted, 0.005), high = quantile(sorted, 0.995);
    this.low.textContent = number(low), this.high.textContent = number(high);
    const stops = [0, 1, 2, 3].map((i) => colour("--heat" + i));
    this.canvas.width = columns, this.canvas.height = this.rows.length;
    const context = this.canvas.getContext("2d"), image = context.createImageData(columns, this.rows.length);
    values.forEach((line, r) => {
      for (let c = 0; c < columns; c++) {
        const v = line[Math.min(line.length - 1, Math.floor((c * line.length) / columns))];
        const t = 3 * (high > low ? Math.min(1, Math.max(0, (v - low) / (high - low))) : 0.5), k = Math.min(2, Math.floor(t));
        for (let p = 0; p < 3; p++) image.data[4 * (r * columns + c) + p] = stops[k][p] + (stops[k + 1][p] - stops[k][p]) * (t - k);
        image.data[4 * (r * columns + c) + 3] = 255;
      }
    });
    context.putImageData(image, 0, 0);
  }

  point(event) {
    const place = this.canvas.getBoundingClientRect();
    const r = Math.min(this.rows.length - 1, Math.max(0, Math.floor(((event.clientY - place.top) / place.height) * this.rows.length)));
    const row = this.rows[r], series = this.run.series[row.key], grid = this.run.grids[series.grid];
    const i = Math.min(series.mean.length - 1, Math.max(0, Math.floor(((event.clientX - place.left) / place.width) * series.mean.length)));
    const tip = document.getElementById("tip");
    tip.replaceChildren(el("b", {}, row.label), el("div", {}, el("span", {}, "step " + grid.step[i].toLocaleString("en")), el("em", {}, number(series.mean[i]))));
    tip.hidden = false;
    tip.style.left = Math.min(innerWidth - tip.offsetWidth - 4, event.clientX + 16) + "px";
    tip.style.top = Math.min(innerHeight - tip.offsetHeight - 4, event.clientY + 16) + "px";
  }
}

/** [r, g, b] of a colour of the style sheet. */
function colour(variable) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(variable).trim();
  return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16) || 0);
}
