// The page: what of the data is shown where.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const single = runs.length === 1;
const page = document.getElementById("page");
const MOST_CHARTS = 80;
runs.forEach((run, i) => {
  run.index = i;
  run.color = `var(--c${i % 8})`;
  run.dash = ["none", "7 4", "2 4", "9 3 2 3"][Math.floor(i / 8) % 4];
});

const KNOWN = {
  "train/loss": ["Training loss", "nats per token", fixed(3)],
  "val/loss": ["Validation loss", "nats per token", fixed(3)],
  "val/bpb": ["Bits per byte", "validation", fixed(3)],
  "val/ppl": ["Perplexity", "per token, validation", number],
  "train/learning_rate": ["Learning rate", "", number],
  "train/grad_norm": ["Gradient norm", "before clipping", number],
  "train/tokens_per_sec": ["Throughput", "tokens per second", count],
  "train/step_time_ms": ["Time per step", "", (ms) => duration(ms / 1000)],
  "train/mfu": ["Utilisation", "of the chip's dense bf16 rate", percent],
  "train/data_wait": ["Waiting for data", "share of the time", percent],
  "train/peak_memory": ["Peak memory", "", bytes],
  "train/ranks": ["Ranks", "", number],
  "train/rank_slowest_ms": ["Slowest rank", "its own time per step", (ms) => duration(ms / 1000)],
  "train/rank_fastest_ms": ["Fastest rank", "its own time per step", (ms) => duration(ms / 1000)],
  "train/rank_wait": ["Waiting for other ranks", "share of the time", percent],
  "train/rank_bytes": ["Sent per step", "by all ranks", bytes],
  "train/epoch": ["Epochs", "of the data", number],
};
/** Titles of what telemetry tells of each matrix. */
const TELEMETRY = {
  "ternary/zeros": "Codes that are zero", "ternary/scale": "Scale of the codes", "ternary/flips": "Codes that changed",
  "ternary/dead_rows": "Dead rows", "ternary/grad_norm": "Norm of the gradient", "act/rms": "Size of the inputs",
  "act/absmax_over_rms": "Outliers of the inputs", "act/saturation": "Saturated inputs",
};
const PLAIN = new Set(["val/loss", "val/bpb", "val/ppl", "train/learning_rate", "train/grad_norm"]);
const isQuality = (key) => /^(val|eval)\//.test(key);
const STEADY = new Set(["train/learning_rate", "train/epoch", "train/peak_memory", "train/ranks"]);
const SECTIONS = [
  ["Quality", isQuality],
  ["Optimisation", (k) => ["train/learning_rate", "train/grad_norm"].includes(k)],
  ["Speed and memory", (k) => ["train/tokens_per_sec", "train/step_time_ms", "train/mfu", "train/data_wait", "train/peak_memory"].includes(k)],
  ["More of training", (k) => k.startsWith("train/")],
  ["Other metrics", (k) => !Object.hasOwn(KNOWN, k)],
];

/** Title, unit and format of a key; eval/NAME/loss is shown as val/loss is. */
function known(key) {
  const [, set, what] = key.match(/^eval\/([^/]+)\/(.+)$/) || [];
  const [title, unit, format] = KNOWN[set ? `val/${what}` : key] || [key, "", number];
  return set && title !== key ? [`${title}, ${set}`, unit.replace(/(, )?validation/, ""), format] : [title, unit, format];
}

const has = (run, key) => Object.hasOwn(run.series, key);
const series = (run, key) => (has(run, key) ? run.series[key] : null);
const lastOf = (run, key) => (has(run, key) ? run.series[key].last : NaN);
const sameVocabulary = (some) => some.every((run) => run.vocabulary === some[0].vocabulary);
const fact = (run, key) => (run.facts.find(([k]) => k === key) || [])[1];

/** The mean of the last fiftieth of a curve. */
function settledValue(run, key) {
  if (!has(run, key)) return NaN;
  const end = run.series[key].mean.slice(-Math.max(1, Math.floor(run.series[key].mean.length / 50)));
  return end.reduce((a, b) => a + b, 0) / end.length;
}

/** Tokens per second of training over the whole run. */
const speedOf = (run) => (run.seconds > 0 ? run.tokens / run.seconds : NaN);
const flopsOf = (run) => run.tokens * run.flops_per_token || NaN;
const devicesOf = (run) => Math.max(1, lastOf(run, "train/ranks") || 1);
const costOf = (run) => (data.price > 0 ? (data.price * devicesOf(run) * run.seconds) / 3600 : NaN);

function heading(text, small) {
  return el("h2", {}, text, small ? el("small", {}, small) : null);
}

/** Adds a section unless it is empty. */
function section(title, small, ...nodes) {
  const inside = nodes.flat().filter(Boolean);
  if (inside.length) page.append(el("section", {}, heading(title, small), ...inside));
}

function runName(run) {
  return el("span", { title: run.path }, el("i", { class: "dot", style: { "--of": run.color } }), run.name);
}

// ---- the head

/** Which run is the best at its end, as far as they compare. */
function verdict() {
  const judged = runs.filter((run) => has(run, "val/loss"));
  if (judged.length < 2) return "";
  const least = (key) => judged.reduce((a, b) => (lastOf(b, key) < lastOf(a, key) ? b : a));
  if (sameVocabulary(judged)) return ` The lowest validation loss at the end, ${lastOf(least("val/loss"), "val/loss").toFixed(4)}, is that of ${least("val/loss").name}.`;
  const others = " They have different vocabularies, so their losses per token do not compare";
  if (!judged.every((run) => has(run, "val/bpb"))) return others + ".";
  return `${others}; the fewest bits per byte of validation text at the end, ${lastOf(least("val/bpb"), "val/bpb").toFixed(4)}, are those of ${least("val/bpb").name}.`;
}

function lead() {
  if (single) {
    const run = runs[0], parts = [];
    const parameters = Number(fact(run, "parameters"));
    parts.push(parameters > 0 ? `${count(parameters, true)} parameters` : "A model");
    if (run.tokens > 0) parts.push(`trained on ${count(run.tokens, true)} tokens`);
    if (run.seconds > 0) parts.push(`in ${duration(run.seconds)}`);
    if (fact(run, "device")) parts.push(`on ${fact(run, "device")}${fact(run, "compute") ? " in " + fact(run, "compute") : ""}`);
    const open = run.steps_planned > run.steps ? ` Step ${run.steps.toLocaleString("en")} of ${run.steps_planned.toLocaleString("en")}.` : "";
    return parts.join(" ") + "." + open;
  }
  const tokens = runs.reduce((sum, run) => sum + run.tokens, 0), seconds = runs.reduce((sum, run) => sum + run.seconds, 0);
  return `${runs.length} runs, ${count(tokens, true)} tokens and ${duration(seconds)} of training in all.${verdict()}`;
}

function writeHead() {
  const joined = runs.map((r) => r.name).join(" · ");
  const title = data.title || (single ? runs[0].name : joined.length < 50 ? joined : `${runs.length} runs compared`);
  document.getElementById("head").append(
    el("div", { class: "word" }, el("b", {}, "mmfree"), el("span", {}, "training report"), el("span", {}, data.made)),
    el("h1", {}, title), el("p", { class: "lead" }, lead()));
}

function tile(name, value, unit, more) {
  return el("div", { class: "tile" }, el("div", { class: "name" }, name), el("div", { class: "value" }, value, unit ? el("small", {}, unit) : null),
    el("div", { class: "more" }, more || "\u00a0"));
}

function tiles(run) {
  const made = [], val = series(run, "val/loss");
  if (val) made.push(tile("Validation loss", val.last.toFixed(4), "", val.least < val.last ? `lowest ${val.least.toFixed(4)} at ${count(val.least_step)}` : "the lowest so far"));
  if (has(run, "val/bpb")) made.push(tile("Bits per byte", lastOf(run, "val/bpb").toFixed(4), "", `perplexity ${number(lastOf(run, "val/ppl"))}`));
  if (has(run, "train/loss")) made.push(tile("Training loss", settledValue(run, "train/loss").toFixed(3), "", "over the last fiftieth"));
  if (run.tokens > 0) made.push(tile("Tokens", count(run.tokens, true), "", has(run, "train/epoch") ? `${number(lastOf(run, "train/epoch"))} epochs` : `${count(run.steps)} steps`));
  if (run.seconds > 0) made.push(tile("Training time", duration(run.seconds), "", moment(run.first_time).slice(0, 10)));
  if (speedOf(run) > 0) made.push(tile("Throughput", count(speedOf(run)), "tok/s", has(run, "train/mfu") ? `utilisation ${percent(settledValue(run, "train/mfu"))}` : "over the whole run"));
  if (flopsOf(run) > 0) made.push(tile("Compute", count(flopsOf(run)), "FLOP", `${count(run.flops_per_token)} per token`));
  if (has(run, "train/peak_memory")) made.push(tile("Peak memory", bytes(run.series["train/peak_memory"].greatest), "", ""));
  if (costOf(run) >= 0) made.push(tile("Cost", costOf(run).toFixed(2), "", `${devicesOf(run)} × ${number(data.price)} an hour`));
  return el("div", { class: "tiles" }, made);
}

/** [title, value of a run, how it is written, -1: less is better, 1: more is, 0: neither] */
function columns() {
  const perToken = sameVocabulary(runs) ? -1 : 0;
  return [
    ["Parameters", (r) => Number(fact(r, "parameters")), (v) => count(v, true), 0],
    ["Steps", (r) => r.steps, (v) => v.toLocaleString("en"), 0],
    ["Tokens", (r) => r.tokens || NaN, (v) => count(v, true), 0],
    ["Vocabulary", (r) => (perToken ? NaN : r.vocabulary), (v) => (v === 0 ? "of the first run" : `other vocabulary${v > 1 ? " " + v : ""}`), 0],
    ["Validation loss", (r) => lastOf(r, "val/loss"), fixed(4), perToken],
    ["Lowest", (r) => (has(r, "val/loss") ? r.series["val/loss"].least : NaN), fixed(4), perToken],
    ["Bits per byte", (r) => lastOf(r, "val/bpb"), fixed(4), -1],
    ["Training loss", (r) => settledValue(r, "train/loss"), fixed(3), perToken],
    ["Tokens/s", speedOf, count, 1],
    ["Time", (r) => r.seconds || NaN, duration, 0],
    ["FLOP", flopsOf, count, 0],
    ["Peak memory", (r) => (has(r, "train/peak_memory") ? r.series["train/peak_memory"].greatest : NaN), bytes, 0],
    ["Cost", costOf, (v) => v.toFixed(2), 0],
  ].filter(([, value]) => runs.some((run) => Number.isFinite(value(run))));
}

function comparison() {
  const shown = columns();
  const best = shown.map(([, value, , better]) => (better ? Math.max(...runs.map((r) => better * value(r)).filter(Number.isFinite)) : NaN));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "Run"), shown.map(([title]) => el("th", {}, title)))),
    el("tbody", {}, runs.map((run) => el("tr", {}, el("th", {}, runName(run)), shown.map(([, value, show, better], i) => {
      const v = value(run);
      return el("td", { class: better && better * v === best[i] && "best" }, Number.isFinite(v) ? show(v) : "–");
    }))))));
}

// ---- the bar

function pressed(button, on) {
  button.setAttribute("aria-pressed", on ? "true" : "false");
}

function toggle(text, title, isOn, change) {
  const button = el("button", { title, onclick: () => { change(); pressed(button, isOn()); redraw(); } }, text);
  pressed(button, isOn());
  return button;
}

function writeBar() {
  const known = Object.keys(AXES).filter((name) => runs.some((run) => run.grids.some((grid) => (AXES[name].of(grid, run) || []).some((v) => v > 0))));
  const buttons = known.map((name) => el("button", { onclick: () => setAxis(name) }, AXES[name].name));
  const setAxis = (name) => {
    view.axis = name, view.range = null;
    buttons.forEach((button, i) => pressed(button, known[i] === name));
    zoomed();
  };
  if (!known.includes(view.axis)) view.axis = "step";
  const smooth = el("input", { type: "range", min: 0, max: 100, value: view.smooth * 100, "aria-label": "smoothing", oninput: () => { view.smooth = smooth.value / 100; redraw(); } });
  const chips = single ? null : el("span", { class: "chips" }, runs.map((run) => {
    const chip = el("button", { title: run.path, onclick: () => {
      if (view.hidden.has(run.index)) view.hidden.delete(run.index); else view.hidden.add(run.index);
      pressed(chip, !view.hidden.has(run.index));
      redraw();
    } }, el("i", { class: "dot", style: { "--of": run.color } }), el("span", {}, run.name));
    pressed(chip, true);
    return chip;
  }));
  document.getElementById("bar").append(
    el("span", { class: "choice", role: "group", "aria-label": "axis" }, buttons),
    el("span", { class: "choice" }, toggle("log x", "logarithmic axis", () => view.logx, () => { view.logx = !view.logx; }),
      toggle("log y", "logarithmic values", () => view.logy, () => { view.logy = !view.logy; })),
    el("label", {}, "smooth", smooth), el("button", { id: "zoom", hidden: true, onclick: () => { view.range = null; zoomed(); } }, "whole range"),
    el("button", { class: "right", title: "light or dark", onclick: () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark") }, "◐"), chips || "");
  setAxis(view.axis);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  for (const heatmap of heatmaps) heatmap.draw();
}

// ---- the curves

function linesOf(key) {
  return runs.filter((run) => has(run, key)).map((run) => ({
    run, key, color: run.color, dash: run.dash, steady: STEADY.has(key) || isQuality(key), label: single ? (KNOWN[key] || [key])[0] : run.name,
  }));
}

function card(title, tag, unit, lines, options, legend) {
  const chart = new Chart(lines, Object.assign({ title }, options));
  const now = single && lines.length === 1 ? el("span", { class: "now" }, chart.format(lines[0].run.series[lines[0].key].last)) : null;
  return el("div", { class: options.wide ? "card wide" : "card" }, el("h3", {}, title, unit ? el("small", {}, unit) : null, now || el("small", { class: "mono" }, tag === title ? "" : tag)),
    legend ? el("div", { class: "key" }, legend) : null, chart.box);
}

function keyChart(key) {
  const [title, unit, format] = known(key);
  return card(title, key, unit, linesOf(key), { format, whole: isQuality(key), plain: PLAIN.has(key) || !Object.hasOwn(KNOWN, key) });
}

/** Training and validation loss together. */
function lossChart() {
  const train = linesOf("train/loss"), val = linesOf("val/loss");
  if (!train.length && !val.length) return null;
  train.forEach((line) => { line.label = single ? "training" : line.run.name; });
  val.forEach((line) => {
    line.dots = true;
    line.label = single ? "validation" : line.run.name + ", validation";
    if (single) line.color = "var(--c1)";
  });
  const of = (line, dots) => el("span", {}, el("i", { class: dots ? "dots" : "", style: single ? { "--of": line.color } : {} }), dots ? "validation" : "training");
  const legend = [train.length && of(train[0], false), val.length && of(val[0], true)].filter(Boolean);
  return el("div", { class: "cards" }, card("Loss", "", "nats per token", [...train, ...val],
    { format: fixed(3), plain: true, height: Math.max(240, Math.min(440, innerHeight * 0.48)), wide: true, whole: true }, legend));
}

function allKeys() {
  const keys = new Set();
  for (const run of runs) for (const key of Object.keys(run.series)) keys.add(key);
  return [...keys];
}

const natural = (a, b) => a.localeCompare(b, "en", { numeric: true });
const isTelemetry = (key) => /^(ternary|act)\//.test(key);

/** Telemetry by statistic: keys are PREFIX/MATRIX/STATISTIC or PREFIX/STATISTIC/MATRIX; statistics are fewer. */
function telemetry(keys) {
  const groups = new Map();
  for (const prefix of new Set(keys.map((k) => k.split("/")[0]))) {
    const own = keys.filter((k) => k.split("/")[0] === prefix).map((key) => ({ key, parts: key.split("/").slice(1) }));
    const firsts = new Set(own.map((k) => k.parts[0])), lasts = new Set(own.map((k) => k.parts[k.parts.length - 1]));
    const statFirst = firsts.size < lasts.size;
    for (const { key, parts } of own) {
      const stat = `${prefix}/${statFirst ? parts[0] : parts[parts.length - 1]}`;
      const label = parts.length === 1 ? parts[0] : (statFirst ? parts.slice(1) : parts.slice(0, -1)).join("/");
      if (!groups.has(stat)) groups.set(stat, []);
      groups.get(stat).push({ key, label });
    }
  }
  const cards = [];
  for (const [stat, rows] of groups) {
    rows.sort((a, b) => natural(a.label, b.label));
    if (rows.length < 3) {
      for (const row of rows) cards.push(keyChart(row.key));
      continue;
    }
    for (const run of runs.slice(0, 6)) {
      const own = rows.filter((row) => has(run, row.key)).slice(0, 400);
      if (!own.length) continue;
      const map = new Heatmap(run, own);
      cards.push(el("div", { class: "card" }, el("h3", {}, Object.hasOwn(TELEMETRY, stat) ? TELEMETRY[stat] : stat,
        el("small", { class: "mono", title: `${own.length} rows` }, Object.hasOwn(TELEMETRY, stat) ? stat : ""), single ? null : el("span", { class: "now" }, runName(run))), map.box));
    }
  }
  return cards;
}

function writeCurves() {
  const loss = lossChart();
  if (loss) page.append(loss);
  const keys = allKeys().filter((k) => k !== "train/loss" && k !== "train/tokens" && k !== "train/epoch" && !(single && k === "val/loss"));
  let drawn = 0, left = 0;
  const taken = new Set(keys.filter(isTelemetry));
  for (const [title, takes] of SECTIONS) {
    // A single value of what the summary tells makes no curve.
    const told = (k) => Object.hasOwn(KNOWN, k) && runs.every((run) => !has(run, k) || run.series[k].count === 1);
    const own = keys.filter((k) => !taken.has(k) && takes(k) && !told(k));
    own.forEach((k) => taken.add(k));
    if (title === "Quality" || title === "Other metrics") own.sort((a, b) => b.startsWith("val/") - a.startsWith("val/") || natural(a, b));
    const fits = own.slice(0, Math.max(0, MOST_CHARTS - drawn));
    drawn += fits.length, left += own.length - fits.length;
    section(title, "", fits.length && el("div", { class: "cards" }, fits.map(keyChart)));
  }
  const cards = telemetry(keys.filter(isTelemetry));
  section("Inside the model", "each row a matrix, training to the right", cards.length && el("div", { class: "cards" }, cards));
  if (left) page.append(el("p", { class: "note" }, `${left} more keys are in metrics.jsonl; no curves are drawn of them.`));
}

// ---- tables and texts

function differences() {
  if (!data.differences.length) return null;
  return el("div", { class: "scroll texts" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "Key"), runs.map((run) => el("th", {}, runName(run))))),
    el("tbody", {}, data.differences.map(([key, ...values]) => el("tr", {}, el("th", { class: "mono" }, key),
      values.map((v, i) => el("td", { class: "mono" + (i > 0 && v === values[0] ? " same" : "") }, v === "" ? "–" : v)))))));
}

function evaluations() {
  const rows = runs.flatMap((run) => run.evaluations.map((e) => ({ run, e })));
  if (!rows.length) return null;
  const names = ["loss", "ppl", "bpb", "tokens"].filter((n) => rows.some(({ e }) => n in e.numbers));
  const tasks = [...new Set(rows.flatMap(({ e }) => Object.keys(e.numbers)))].filter((k) => /^tasks\/[^/]+\/(acc|acc_norm|perplexity|exact_match)$/.test(k)).slice(0, 24);
  const titles = { loss: "Loss", ppl: "Perplexity", bpb: "Bits per byte", tokens: "Tokens" };
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", {}, "Evaluation"), names.map((n) => el("th", {}, titles[n])), tasks.map((t) => el("th", {}, t.split("/").slice(1).join(" "))))),
    el("tbody", {}, rows.map(({ run, e }) => el("tr", {}, el("th", {}, single ? null : runName(run), single ? e.file : " · " + e.file),
      names.map((n) => el("td", {}, n in e.numbers ? (n === "tokens" ? count(e.numbers[n]) : n === "ppl" ? number(e.numbers[n]) : fixed(4)(e.numbers[n])) : "–")),
      tasks.map((t) => el("td", {}, t in e.numbers ? fixed(4)(e.numbers[t]) : "–")))))));
}

function alarms() {
  return runs.flatMap((run) => run.alarms.map((a) => el("div", { class: "sample" },
    el("div", { class: "step" }, single ? null : runName(run), `${single ? "" : " · "}step ${a.step.toLocaleString("en")}`), el("p", {}, a.text))));
}

function samples() {
  return runs.flatMap((run) => run.samples.map((s) => el("div", { class: "sample" },
    el("div", { class: "step" }, single ? null : runName(run), `${single ? "" : " · "}step ${s.step.toLocaleString("en")}`),
    el("p", {}, el("b", {}, s.prompt), s.text))));
}

const FACTS = { device: "Device", compute: "Activations in", backward: "Backward products in", threads: "Threads", parameters: "Parameters", train_tokens: "Tokens of data",
  train_data: "Fingerprint of the data", tokenizer: "Fingerprint of the tokenizer", started: "Last start", from_step: "It went on from step", mmfree: "Version of mmfree", init_from: "Started with the weights of" };

function factText(key, value) {
  if (value === undefined) return "–";
  return ["parameters", "train_tokens"].includes(key) && Number(value) > 0 ? `${count(Number(value), true)} (${Number(value).toLocaleString("en")})` : value;
}

function facts() {
  const keys = [...new Set(runs.flatMap((run) => run.facts.map(([k]) => k)))];
  keys.sort((a, b) => (Object.keys(FACTS).indexOf(a) + 100) % 100 - (Object.keys(FACTS).indexOf(b) + 100) % 100);
  const name = (key) => (Object.hasOwn(FACTS, key) ? FACTS[key] : key);
  const rows = [...keys.map((key) => [name(key), (run) => factText(key, fact(run, key))]),
    ["First line written", (run) => moment(run.first_time)], ["Last line written", (run) => moment(run.last_time)], ["Folder", (run) => run.path]];
  if (single) return el("div", { class: "sample" }, el("dl", {}, rows.flatMap(([title, value]) => [el("dt", {}, title), el("dd", {}, value(runs[0]))])));
  return el("div", { class: "scroll texts" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, ""), runs.map((run) => el("th", {}, runName(run))))),
    el("tbody", {}, rows.map(([title, value]) => el("tr", {}, el("th", {}, title), runs.map((run) => el("td", {}, value(run))))))));
}

function configurations() {
  return runs.filter((run) => run.config).map((run) => el("details", {}, el("summary", {}, single ? "The whole configuration" : `The whole configuration of ${run.name}`), el("pre", {}, run.config)));
}

// ---- all of it

function applyHash() {
  for (const word of location.hash.slice(1).split(",")) {
    if (Object.hasOwn(AXES, word)) view.axis = word;
    if (word === "logx" || word === "logy") view[word] = true;
    if (word === "dark" || word === "light") document.documentElement.dataset.theme = word;
  }
}

document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
applyHash();
writeHead();
document.getElementById("summary").append(single ? tiles(runs[0]) : comparison());
section("Alarms", "what looks wrong inside the model", alarms());
writeCurves();
section("What differs in the configurations", "", differences());
section("Evaluations", "by mmfree eval", evaluations());
section("What it writes", "samples during training", samples());
section("Machine and data", "", facts(), configurations());
section("Notes", "", runs.flatMap((run) => run.notes.map((note) => el("p", { class: "note" }, note))));
document.getElementById("foot").append(`Made by mmfree ${data.version} on ${data.made}. Bands show the least and the greatest value, lines the mean, where a run has more lines than a curve has points. Drag over a curve to enlarge a part, double-click for the whole.`);
writeBar();
for (const heatmap of heatmaps) heatmap.draw();
let themeOnScreen = null;
function paper(on) {
  view.paper = on;
  if (on) themeOnScreen = document.documentElement.dataset.theme;
  theme(on ? "light" : themeOnScreen);
  redraw();
}
addEventListener("beforeprint", () => paper(true));
addEventListener("afterprint", () => paper(false));
