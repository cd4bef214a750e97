// Curves. A chart draws some lines, each the values of one key of one run, over the axis that `view` names.

const view = { axis: "step", logx: false, logy: false, smooth: 0.3, hidden: new Set(), range: null };
const charts = [];

function redraw() {
  for (const chart of charts) chart.draw();
}

/** Calls of(first, last + 1) for each place with up to `radius` neighbours on either side. Where a curve begins it is
    steep: there as many on both sides; where it ends it is noisy. */
function windows(length, radius, of) {
  return Array.from({ length }, (_, i) => of(i - Math.min(radius, i), i + Math.min(radius, i, length - 1 - i) + 1));
}

/** Medians over windows, which no outlier moves, and then means, which make them smooth. */
function smoothed(values, radius) {
  if (radius < 1) return values;
  const medians = windows(values.length, radius, (a, b) => quantile(values.slice(a, b).sort((x, y) => x - y), 0.5));
  const sums = [0];
  for (const v of medians) sums.push(sums[sums.length - 1] + v);
  return windows(values.length, Math.ceil(radius / 2), (a, b) => (sums[b] - sums[a]) / (b - a));
}

function quantile(sorted, q) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(q * (sorted.length - 1))))];
}

/** Where a line's points are on the axis; null if its run does not know. */
function positions(line) {
  const series = line.run.series[line.key];
  return AXES[view.axis].of(line.run.grids[series.grid], line.run);
}

/** The positions that all charts show. */
function shownRange() {
  if (view.range) return view.range;
  let from = Infinity, to = -Infinity;
  for (const chart of charts)
    for (const line of chart.visible()) {
      const x = positions(line);
      if (!x) continue;
      for (const v of [x[0], x[x.length - 1]]) if (v > 0 || !view.logx) from = Math.min(from, v), to = Math.max(to, v);
      if (view.logx) { const first = x.find((v) => v > 0); if (first) from = Math.min(from, first); }
    }
  return from < to ? [from, to] : [0, to > 0 ? to : 1];
}

/** A tick with as many digits as tell it from its neighbours. */
function plainTick(value, all) {
  const step = all.length > 1 ? Math.min(...all.slice(1).map((v, i) => v - all[i])) : Math.abs(value);
  if (!(step > 0) || Math.abs(value) >= 1e5 || step < 1e-5) return number(value);
  return value.toFixed(Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / Math.pow(10, Math.floor(Math.log10(step) + 1e-9)) % 1 > 0.01 ? 1 : 0))));
}

let clips = 0;

class Chart {
  /** `lines`: {run, key, color, label, dots, steady}; steady ones are not smoothed. `options`: height, format, whole. */
  constructor(lines, options) {
    this.lines = lines;
    this.options = options;
    this.box = el("div", {});
    this.format = options.format || number;
    this.clip = "clip" + clips++;
    charts.push(this);
    this.box.addEventListener("pointermove", (e) => this.point(e));
    this.box.addEventListener("pointerleave", () => leave());
    this.box.addEventListener("pointerdown", (e) => this.press(e));
    this.box.addEventListener("pointerup", (e) => this.release(e));
    this.box.addEventListener("dblclick", () => { view.range = null; zoomed(); });
    new ResizeObserver(() => { if (this.box.clientWidth && this.box.clientWidth !== this.width) requestAnimationFrame(() => this.draw()); }).observe(this.box);
  }

  visible() {
    return this.lines.filter((line) => !view.hidden.has(line.run.index));
  }

  /** What is drawn of each line: positions, values, smoothed values and, if values were left out, their bounds. */
  prepare() {
    return this.visible().map((line) => {
      const series = line.run.series[line.key], x = positions(line);
      if (!x) return null;
      const radius = line.steady || line.dots ? 0 : Math.floor(series.mean.length * view.smooth * view.smooth * 0.12);
      return { line, x, raw: series.mean, y: smoothed(series.mean, radius), lo: series.lo, hi: series.hi, radius };
    }).filter((drawn) => drawn);
  }

  yRange(all, from, to) {
    const values = [], firm = [], lows = [], highs = [];
    // A loss falls so much at first that nothing else would be seen. Few points are all shown.
    if (this.options.whole && !view.range && !view.logx && all.some(({ x }) => x.length > 8)) from += 0.04 * (to - from);
    for (const { x, raw, y, lo, hi, radius } of all)
      for (let i = 0; i < x.length; i++) {
        if (x[i] < from || x[i] > to) continue;
        (radius > 0 || this.options.whole ? firm : values).push(y[i]);
        if (radius > 0) values.push(raw[i]);
        if (lo && hi) lows.push(lo[i]), highs.push(hi[i]);
      }
    values.sort((a, b) => a - b);
    firm.sort((a, b) => a - b);
    // Outliers do not decide what is seen of the others.
    const bounds = [];
    if (values.length) {
      const a = quantile(values, 0.01), b = quantile(values, 0.99), room = 0.6 * (b - a);
      bounds.push(Math.max(values[0], a - room), Math.min(values[values.length - 1], b + room));
    }
    if (firm.length) bounds.push(firm[0], firm[firm.length - 1]);
    if (lows.length) bounds.push(quantile(lows.sort((a, b) => a - b), 0.1), quantile(highs.sort((a, b) => a - b), 0.9));
    let low = Math.min(...bounds), high = Math.max(...bounds);
    if (high - low < 2e-6 * Math.max(Math.abs(low), Math.abs(high))) low = high;  // the digits of the data end there
    if (!(low <= high)) return [0, 1];
    const log = view.logy && low > 0;
    if (low === high) return log ? [low / 1.5, high * 1.5] : [low - Math.abs(low) * 0.1 - 1e-12, high + Math.abs(high) * 0.1 + 1e-12];
    const pad = 0.05;
    if (log) return [low / Math.pow(high / low, pad), high * Math.pow(high / low, pad)];
    const zero = low >= 0 && low < 0.25 * high && !this.options.whole;
    return [zero ? 0 : low - pad * (high - low), high + pad * (high - low)];
  }

  draw() {
    // Paper is not measured before it is printed on; the picture is scaled to it.
    this.width = view.paper ? (this.options.wide ? 760 : 380) : this.box.clientWidth;
    if (!this.width) return;
    const all = this.prepare(), height = view.paper ? (this.options.wide ? 270 : 170) : this.options.height || 190;
    const axis = AXES[view.axis];
    const [from, to] = shownRange();
    const [low, high] = this.yRange(all, from, to);
    const logy = view.logy && low > 0, logx = view.logx && from > 0;
    const marks = logy ? logTicks(low, high, height / 46) : ticks(low, high, height / 42);
    const labels = marks.map((m) => (this.options.plain ? plainTick(m, marks) : this.format(m)));
    const left = Math.max(26, ...labels.map((l) => l.length * 6.6 + 8)), right = this.width - 6, top = 8, bottom = height - 24;
    const scale = (a, b, p, q, log) => (log ? (v) => p + (Math.log(v / a) / Math.log(b / a)) * (q - p) : (v) => p + ((v - a) / (b - a)) * (q - p));
    this.sx = scale(from, to, left, right, logx);
    this.sy = scale(low, high, bottom, top, logy);
    this.back = (px) => (logx ? from * Math.pow(to / from, (px - left) / (right - left)) : from + ((px - left) / (right - left)) * (to - from));
    this.left = left, this.right = right, this.top = top, this.bottom = bottom, this.drawn = all;

    const root = svg("svg", { viewBox: `0 0 ${this.width} ${height}`, role: "img", "aria-label": this.options.title || "" });
    root.append(svg("clipPath", { id: this.clip }, svg("rect", { x: left - 2, y: top - 3, width: Math.max(0, right - left + 7), height: bottom - top + 6 })));
    marks.forEach((m, i) => {
      const y = this.sy(m);
      root.append(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      root.append(svg("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, labels[i]));
    });
    const across = logx ? logTicks(from, to, (right - left) / 90) : ticks(from, to, (right - left) / 90, axis);
    for (const m of across) {
      const x = this.sx(m), text = axis.show(m), half = text.length * 3.2;
      if (x < left - 1 || x > right + 1) continue;
      root.append(svg("text", { x: Math.min(x, right - half), y: height - 6, "text-anchor": "middle" }, text));
    }
    root.append(svg("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }));
    const inside = svg("g", { "clip-path": `url(#${this.clip})` });
    for (const drawn of all) this.drawLine(inside, drawn);
    this.cross = svg("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
    this.pick = svg("rect", { class: "pick", y: top, height: bottom - top, visibility: "hidden" });
    root.append(inside, this.pick, this.cross);
    this.box.replaceChildren(root);
  }

  drawLine(group, { line, x, raw, y, lo, hi, radius }) {
    const path = (values) => {
      let text = "", pen = false;
      for (let i = 0; i < x.length; i++) {
        const px = this.sx(x[i]), py = this.sy(values[i]);
        if (!Number.isFinite(px) || !Number.isFinite(py)) { pen = false; continue; }
        text += (pen ? "L" : "M") + px.toFixed(1) + " " + Math.min(1e5, Math.max(-1e5, py)).toFixed(1);
        pen = true;
      }
      return text;
    };
    const style = `stroke:${line.color}`;
    if (lo && hi) {
      const points = [];
      for (let i = 0; i < x.length; i++) points.push([this.sx(x[i]), this.sy(hi[i])]);
      for (let i = x.length - 1; i >= 0; i--) points.push([this.sx(x[i]), this.sy(lo[i])]);
      const text = points.filter((p) => p.every(Number.isFinite)).map((p) => p.map((v) => Math.min(1e5, Math.max(-1e5, v)).toFixed(1)).join(" "));
      group.append(svg("path", { class: "band", style: `fill:${line.color}`, d: text.length ? "M" + text.join("L") + "Z" : "" }));
    }
    if (radius > 0) group.append(svg("path", { class: "raw", style, d: path(raw) }));
    const few = x.length <= 60;
    const dash = line.dots ? (few ? "1 6" : "6 4") : line.dash || "none";
    if (x.length > 1) group.append(svg("path", { class: "curve", style: `${style};stroke-dasharray:${dash}`, d: path(y) }));
    if ((line.dots && few) || x.length === 1) {
      const r = Math.min(3.8, Math.max(1.5, (0.22 * (this.right - this.left)) / x.length));
      for (let i = 0; i < x.length; i++) {
        const cx = this.sx(x[i]), cy = this.sy(y[i]);
        if (Number.isFinite(cx) && Number.isFinite(cy)) group.append(svg("circle", { class: "point", cx, cy, r, style: `fill:${line.color}` }));
      }
    }
  }

  offset(event) {
    const place = this.box.getBoundingClientRect();
    return Math.min(this.right, Math.max(this.left, event.clientX - place.left));
  }

  point(event) {
    if (!this.sx) return;
    const px = this.offset(event), at = this.back(px);
    for (const chart of charts) chart.showCross(at);
    if (this.from !== undefined) {
      this.pick.setAttribute("x", Math.min(px, this.from));
      this.pick.setAttribute("width", Math.abs(px - this.from));
      this.pick.setAttribute("visibility", "visible");
    }
    const axis = AXES[view.axis];
    const rows = this.drawn.map(({ line, x, y }) => ({ line, value: y[nearest(x, at)], end: x[x.length - 1] }))
      .filter(({ end }) => at <= end * 1.02 || this.drawn.length === 1).slice(0, 16);
    const tip = document.getElementById("tip");
    tip.replaceChildren(el("b", {}, axis.time ? duration(at) : `${axis.whole ? Math.round(at).toLocaleString("en") : axis.show(at)} ${axis.unit || axis.name.toLowerCase()}`),
      ...rows.map(({ line, value }) => el("div", {}, el("i", { class: "dot", style: { "--of": line.color } }), el("span", {}, line.label), el("em", {}, this.format(value)))));
    tip.hidden = false;
    const wide = tip.offsetWidth, high = tip.offsetHeight;
    tip.style.left = (event.clientX + 18 + wide > innerWidth ? Math.max(4, event.clientX - wide - 14) : event.clientX + 18) + "px";
    tip.style.top = Math.max(4, Math.min(innerHeight - high - 4, event.clientY - high / 2)) + "px";
  }

  showCross(at) {
    if (!this.sx) return;
    const x = this.sx(at);
    const shown = x >= this.left && x <= this.right;
    this.cross.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) this.cross.setAttribute("x1", x), this.cross.setAttribute("x2", x);
  }

  press(event) {
    if (event.button === 0 && event.pointerType === "mouse" && this.sx) this.from = this.offset(event);
  }

  release(event) {
    const from = this.from, to = this.sx ? this.offset(event) : 0;
    this.from = undefined;
    if (from === undefined) return;
    if (Math.abs(to - from) > 8) view.range = [this.back(Math.min(from, to)), this.back(Math.max(from, to))], zoomed();
    else this.pick.setAttribute("visibility", "hidden");
  }
}

function nearest(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? low - 1 : low;
}

function leave() {
  document.getElementById("tip").hidden = true;
  for (const chart of charts) {
    chart.from = undefined;
    if (chart.cross) chart.cross.setAttribute("visibility", "hidden"), chart.pick.setAttribute("visibility", "hidden");
  }
}

function zoomed() {
  const button = document.getElementById("zoom");
  if (button) button.hidden = !view.range;
  redraw();
}
