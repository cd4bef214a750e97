"use strict";
// Numbers as people read them, and elements. No text of the data ever becomes HTML: it is set as text.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const UNITS = [[1e24, "Y"], [1e21, "Z"], [1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

/** Three significant digits with a prefix: 1.23M. */
function count(v, large) {
  if (!Number.isFinite(v)) return "–";
  for (const [size, name] of UNITS)
    if (Math.abs(v) >= size * 0.9995) return trimmed(v / size, 3) + (large && name === "G" ? "B" : name);
  return trimmed(v, 3);
}

/** `digits` significant digits without zeros at the end. */
function trimmed(v, digits) {
  const text = v.toPrecision(digits);
  if (text.includes("e")) return text.replace(/\.?0+e/, "e").replace("e+", "e");
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

function number(v) {
  if (!Number.isFinite(v)) return "–";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e5) return count(v);
  if (size < 1e-3) return trimmed(v, 3);
  return size >= 1000 ? String(Math.round(v)) : trimmed(v, 4);
}

/** Always four digits behind the point where a loss wants them. */
const fixed = (digits) => (v) => (Number.isFinite(v) ? (Math.abs(v) < 1e5 ? v.toFixed(digits) : number(v)) : "–");
/** A share as at most three digits. */
const percent = (v) => (!Number.isFinite(v) ? "–" : v > 0 && v < 1e-4 ? "< 0.01 %" : trimmed(100 * v, 3) + " %");

function duration(s) {
  if (!Number.isFinite(s)) return "–";
  const two = (a, x, b, y) => `${a}${x} ${String(b).padStart(2, "0")}${y}`;
  if (s < 1) return s === 0 ? "0" : trimmed(s * 1000, 3) + " ms";
  if (s < 59.95) return trimmed(s, 3) + " s";
  const r = Math.round(s);
  if (r < 3600) return two(Math.floor(r / 60), "m", r % 60, "s");
  if (r < 86400) return two(Math.floor(r / 3600), "h", Math.floor(r / 60) % 60, "m");
  return two(Math.floor(r / 86400), "d", Math.floor(r / 3600) % 24, "h");
}

function bytes(v) {
  if (!Number.isFinite(v)) return "–";
  for (const [size, name] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]])
    if (v >= size) return trimmed(v / size, 3) + " " + name;
  return trimmed(v, 3) + " B";
}

function moment(seconds) {
  return seconds > 0 && seconds < 1e11 ? new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC" : "–";
}

/** The axes that all curves can be drawn over. */
const AXES = {
  step: { name: "Steps", of: (grid) => grid.step, show: count, whole: true },
  tokens: { name: "Tokens", of: (grid) => grid.tokens, show: (v) => count(v, true) },
  flops: {
    name: "Compute", unit: "FLOP",
    of: (grid, run) => (run.flops_per_token > 0 ? grid.tokens.map((t) => t * run.flops_per_token) : null), show: count,
  },
  seconds: { name: "Time", of: (grid) => grid.seconds, show: duration, time: true },
};

/** Round numbers that divide [from, to] into about `parts`. */
function ticks(from, to, parts, axis) {
  const span = to - from;
  if (!(span > 0)) return [from];
  let step = Math.pow(10, Math.floor(Math.log10(span / parts)));
  const factor = [1, 2, 5, 10].find((f) => span / (step * f) <= parts);
  step *= factor || 10;
  if (axis && axis.time) {
    const nice = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800];
    step = nice.find((n) => span / n <= parts) || Math.ceil(span / parts / 86400) * 86400;
    if (span < 5) step = Math.pow(10, Math.floor(Math.log10(span / parts))) * 5;
  }
  if (axis && axis.whole) step = Math.max(1, step);
  const made = [];
  for (let i = Math.ceil(from / step - 1e-9); i * step <= to + span * 1e-9 && made.length < 40; i++) made.push(i * step);
  return made;
}

/** Ticks of a logarithmic axis. */
function logTicks(from, to, parts) {
  const decades = Math.log10(to / from);
  const factors = decades > parts ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8];
  const made = [];
  const skip = Math.max(1, Math.ceil(decades / parts));
  for (let d = Math.floor(Math.log10(from)); d <= Math.log10(to) && made.length < 60; d++)
    if (d % skip === 0) for (const f of factors) made.push(f * Math.pow(10, d));
  const inside = made.filter((t) => t >= from * 0.9999 && t <= to * 1.0001);
  return inside.length > 1 ? inside : ticks(from, to, parts);
}
