// The operators' page. It polls /admin/v1/overview every two seconds and renders the answer. Text from the
// server is inserted as text nodes only, never as markup.
"use strict";

const KEY = "realign-admin-key";
const EVERY_MS = 2000;
const CONFIRM_MS = 5000;
const EXAM_MS = 5000;
const STAGES = ["triage", "exam", "gather", "impact", "train", "gate", "publish", "swap"];
const LOSSES = ["total", "invert", "punish", "kl", "sft"];

const $ = (id) => document.getElementById(id);
const drawn = new Map();
let confirming = null;
let timer = null;
let exam = null;
let examAt = 0;
let examError = "";
let sitting = null;
let activations = [];

// ---- elements

function make(tag, attributes, ...children) {
  const svg = ["svg", "path", "rect", "line", "text", "g", "title", "circle"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "onclick") element.addEventListener("click", value);
    else if (name === "width%") element.style.width = `${value}%`;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/// Renders a section again only if its data has changed, so that focus and selection are kept.
function draw(id, data, build) {
  const state = JSON.stringify(data);
  if (drawn.get(id) === state) return;
  drawn.set(id, state);
  $(id).replaceChildren(...[build(data)].flat(Infinity).filter((x) => x));
}

// ---- figures

const short = (id) => (id ? String(id).slice(0, 12) : "–");
const percent = (x, digits = 0) => (Number.isFinite(x) ? `${(x * 100).toFixed(digits)} %` : "–");
const number = (x) => (Number.isFinite(x) ? x.toLocaleString("en") : "–");

function seconds(s) {
  if (!Number.isFinite(s)) return "–";
  if (s < 0.0005) return "0 ms";
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min${s % 60 >= 1 ? ` ${Math.floor(s % 60)} s` : ""}`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d`;
}

function clock(unix, withDate) {
  if (!unix) return "–";
  const date = new Date(unix * 1000);
  const time = date.toTimeString().slice(0, 5);
  return withDate ? `${date.getFullYear()}-${String(date.getMonth() + 1).padStart(2, "0")}-${String(date.getDate()).padStart(2, "0")} ${time}` : time;
}

/// The database stores whole seconds.
const lasted = (s) => (s < 1 ? "under 1 s" : seconds(s));
const upFor = (s) => (s < 60 ? "less than a minute" : seconds(Math.floor(s / 60) * 60));

// ---- charts: viewBox units are pixels at the chart's natural width

const W = 540;
const LEFT = 44;

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `value`.
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((f) => f * power).find((n) => n >= value * 0.9999);
}

/// Grid lines with labels for values from `low` to `high`; returns the scale.
function axis(parts, { low, high, height, label }) {
  const y = (value) => height - ((value - low) / (high - low || 1)) * height;
  for (const share of [0, 0.5, 1]) {
    const value = low + (high - low) * share;
    parts.push(make("line", { class: "grid", x1: LEFT, x2: W, y1: y(value), y2: y(value) }));
    parts.push(make("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, label(value)));
  }
  return y;
}

function figure(parts, height, title) {
  return make("svg", { viewBox: `0 -8 ${W} ${height + 30}`, role: "img", "aria-label": title }, parts);
}

function path(points, x, y, kind) {
  const shown = points.filter(([, v]) => Number.isFinite(v));
  if (shown.length === 1) {
    const [[at, v]] = shown;
    return make("path", { class: `line s-${kind}`, d: `M${x(at) - 3} ${y(v)}h6` });
  }
  const d = shown.map(([at, v], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  return make("path", { class: `line s-${kind}`, d });
}

function legend(kinds, names = {}) {
  return make("div", { class: "legend keys" }, kinds.map((kind) =>
    make("span", {}, make("i", { class: `c-${kind}`, style: null }), " ", names[kind] || kind)));
}

function lossChart(losses) {
  const parts = [];
  const height = 130;
  const kinds = LOSSES.filter((k) => losses.some((p) => Math.abs(p[k] || 0) > 1e-9));
  const values = losses.flatMap((p) => kinds.map((k) => p[k])).filter(Number.isFinite);
  const top = nice(Math.max(...values, 1e-6));
  const bottom = Math.min(0, ...values);
  const low = bottom < 0 ? -nice(-bottom) : 0;
  // Every round counts its steps from 1: they are drawn one after the other.
  const rounds = [];
  for (const point of losses) {
    const round = rounds[rounds.length - 1];
    if (round && point.step > round.step) Object.assign(round, point);
    else rounds.push({ ...point, before: round ? round.before + round.steps : 0 });
    point.at = rounds[rounds.length - 1].before + point.step;
  }
  const { before, steps: ofLast } = rounds[rounds.length - 1];
  const end = before + ofLast;
  const y = axis(parts, { low, high: top, height, label: (v) => String(Number(v.toPrecision(2))) });
  const x = (at) => LEFT + ((at - 1) / Math.max(1, end - 1)) * (W - LEFT);
  for (const round of rounds.slice(1)) {
    const from = x(round.before + 0.5);
    parts.push(make("line", { class: "grid", x1: from, x2: from, y1: 0, y2: height }));
  }
  for (const kind of [...kinds].reverse()) {
    parts.push(path(losses.map((p) => [p.at, p[kind]]), x, y, kind));
  }
  parts.push(make("text", { x: LEFT, y: height + 18 }, "step 1"));
  parts.push(make("text", { x: W, y: height + 18, "text-anchor": "end" }, `step ${end}${rounds.length > 1 ? `, ${rounds.length} rounds` : ""}`));
  return [figure(parts, height, "Loss by training step"), legend(kinds)];
}

/// Stacked bars over time: one stack of `kinds` per minute.
function bars(bins, kinds, { from, to, height, label, title }) {
  const parts = [];
  const sum = (bin) => kinds.reduce((total, kind) => total + bin[kind], 0);
  const high = nice(Math.max(1, ...bins.map(sum)));
  const y = axis(parts, { low: 0, high, height, label });
  const x = (at) => LEFT + ((at - from) / (to - from)) * (W - LEFT);
  const wide = Math.max(1.5, x(from + 60) - x(from) - 1.5);
  for (const bin of bins) {
    let base = 0;
    const said = kinds.map((kind) => `${bin[kind]} ${kind}`).join(", ");
    const pile = make("g", {}, make("title", {}, `${clock(bin.at)}: ${said}`));
    for (const kind of kinds) {
      if (!bin[kind]) continue;
      const top = base + bin[kind];
      pile.append(make("rect", { class: `f-${kind}`, x: x(bin.at), width: wide, rx: 1, y: y(top), height: y(base) - y(top) }));
      base = top;
    }
    parts.push(pile);
  }
  times(parts, from, to, height);
  return figure(parts, height, title);
}

function times(parts, from, to, height) {
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const x = LEFT + share * (W - LEFT);
    parts.push(make("text", { x, y: height + 18, "text-anchor": anchor }, clock(from + (to - from) * share)));
  }
}

const BAR = 160;

/// A share as a bar, its 95 % interval as a whisker and a bound as a mark, on a scale from 0 to `top`.
function bar(share, { kind = "muted", bound, top = 1 }) {
  const x = (value) => (Math.max(0, Math.min(top, value)) / top) * BAR;
  const [low, high] = [x(share.low), x(share.high)];
  return make("svg", { class: "bar", viewBox: `-2 0 ${BAR + 4} 16`, "aria-hidden": "true" },
    make("rect", { class: "f-track", width: BAR, y: 3, height: 10, rx: 2 }),
    make("rect", { class: `f-${kind}`, width: x(share.ratio), y: 3, height: 10, rx: 2 }),
    make("path", { class: "whisker", d: `M${low} 5v6M${low} 8H${high}M${high} 5v6` }),
    Number.isFinite(bound) ? make("path", { class: "bound", d: `M${x(bound)} 0v16` }) : null);
}

/// A share as a bar and in figures.
function measured(share, options = {}) {
  if (!share || !share.of) return make("span", { class: "muted" }, "none asked");
  const interval = `${(share.low * 100).toFixed(0)} to ${percent(share.high)}`;
  return make("div", { class: "measured" }, bar(share, options),
    make("div", {}, make("b", {}, percent(share.ratio, 1)),
      make("span", { class: "muted" }, ` (${interval}), ${number(share.count)} of ${number(share.of)}`)));
}

/// The server's slots, aggregated by minute.
function minutes(slots) {
  const bins = new Map();
  for (const slot of slots) {
    const at = slot.at - (slot.at % 60);
    const bin = bins.get(at) || { at, requests: 0, errors: 0, complies: 0, violates: 0 };
    for (const kind of ["requests", "errors", "complies", "violates"]) bin[kind] += slot[kind];
    bins.set(at, bin);
  }
  return [...bins.values()];
}

// ---- sections

const row = (name, value) => make("div", { class: "row" }, make("span", { class: "muted" }, name), make("b", {}, value));

function tile(label, value, note, kind, title) {
  return make("div", { class: "tile", title: title || null },
    make("div", { class: "label" }, label),
    make("div", { class: `value ${kind || ""}` }, value),
    note ? make("div", { class: "note" }, note) : null);
}

const STATES = {
  aligned: ["ok", "no enforced rule is missed"],
  misaligned: ["bad", "rules are missed"],
  realigning: ["busy", "a realignment is running"],
  unknown: ["warn", "not measured yet"],
};

/// What the exam says about what serves: the first reason, and all of them as the tile's title.
function alignment({ state, reasons }) {
  const [kind, usual] = STATES[state] || ["warn", ""];
  const more = reasons.length > 1 ? `, and ${reasons.length - 1} more` : "";
  return tile("Alignment", state, (reasons[0] || usual) + more, kind, reasons.join("\n"));
}

function serving({ serving: s, engine, policies, generations }) {
  const base = (generations.generations || []).some((g) => g.base && g.id === s.generation);
  const count = (policies.policies || []).length;
  return [
    tile("Generation", short(s.generation), base ? "the base model" : "an adapter of the base model", "mono"),
    tile("Policy set", short(policies.revision), `${count} ${count === 1 ? "policy" : "policies"}`, "mono"),
    alignment(s.alignment),
    tile("Running", number(engine.running), `${number(engine.waiting)} waiting`),
    tile("KV cache", percent(engine.kv_cache_usage), "held by running sequences"),
  ];
}

function steps(r) {
  const times = new Map(((r.timeline || {}).stages || []).map((s) => [s.stage, s.took_seconds]));
  const at = STAGES.indexOf(r.stage);
  const over = r.status !== "running";
  const well = ["succeeded", "no_conflict"].includes(r.status);
  const entered = (stage) => !r.timeline || times.has(stage);
  return make("ol", { class: "steps" }, STAGES.map((stage, i) => {
    const passed = over ? i < at || well : i < at;
    const skipped = passed && !entered(stage);
    const state = passed ? (skipped ? "" : "done") : i > at ? "" : over ? "failed" : "now";
    const took = times.get(stage);
    const said = skipped ? "not needed" : Number.isFinite(took) ? seconds(took) : state === "now" ? percent(r.stage_progress) : "";
    return make("li", { class: state, "aria-current": state === "now" ? "step" : null }, make("b", {}, stage), said || "\u00a0");
  }));
}

function triage(t) {
  if (!t) return make("p", { class: "muted" }, "No pair judged yet.");
  const kinds = ["invert", "punish", "retain"];
  const all = kinds.reduce((sum, k) => sum + t[k], 0) || 1;
  const means = { invert: "preference turned around", punish: "both violate", retain: "left as it is" };
  return [
    make("div", { class: "stack", role: "img", "aria-label": "Pairs by category" },
      kinds.filter((k) => t[k]).map((k) => make("span", { class: `c-${k}`, "width%": (t[k] / all) * 100, title: `${k}: ${t[k]}` }))),
    make("div", { class: "legend" }, kinds.map((k) => make("div", {},
      make("i", { class: `c-${k}` }), make("span", {}, k, make("span", { class: "muted" }, ` ${means[k]}`)),
      make("span", { class: "n" }, number(t[k]))))),
    gathered(t.gathered),
    skipped(t.skipped),
  ];
}

/// What the server made itself for rules that have few pairs.
function gathered(report) {
  if (!report || !report.rules.length) return null;
  const sum = (kind) => report.rules.reduce((total, rule) => total + rule[kind], 0);
  return make("div", { class: "skipped" }, make("h3", {}, "Gathered by the server"),
    row("Prompts asked", number(sum("prompts"))), row("Pairs to invert", number(sum("invert"))), row("Pairs to punish", number(sum("punish"))),
    make("details", {}, make("summary", {}, "By rule"), make("ul", { class: "plain" }, report.rules.map((rule) =>
      make("li", {}, make("code", {}, `${rule.policy}:${rule.rule}`),
        make("span", { class: "muted" }, `  ${number(rule.prompts)} prompts, ${number(rule.invert)} + ${number(rule.punish)} pairs${rule.why ? `; ${rule.why}` : ""}`))))));
}

/// What of the preference data is not used, and why.
function skipped(left) {
  if (!left || !(left.lines + left.duplicates + left.pairs)) return null;
  const counts = [["Lines that are no pairs", left.lines], ["Duplicates", left.duplicates], ["Pairs too long or empty", left.pairs]];
  const shown = left.shown || [];
  return make("div", { class: "skipped" }, make("h3", {}, "Not used"),
    counts.filter(([, count]) => count).map(([name, count]) => row(name, number(count))),
    shown.length ? make("details", {}, make("summary", {}, "The first of them, with the reasons"),
      make("ul", { class: "plain" }, shown.map((item) =>
        make("li", {}, make("code", {}, item.what), make("span", { class: "muted" }, `  ${item.reason}`))))) : null);
}

function gate(g) {
  if (!g || !g.measured) return make("p", { class: "muted" }, "Not measured.");
  const m = g.measured;
  const passed = (g.verdict || {}).verdict === "promote";
  const meter = (value, kind) => make("div", { class: `meter ${kind}` }, make("span", { "width%": Math.max(0, Math.min(1, value)) * 100 }));
  const bound = (value, text) => (Number.isFinite(value) ? ` of at most ${text(value)}` : "");
  const bounds = g.bounds || {};
  return make("div", { class: "gate" },
    row("Compliance before", percent(m.agreement_before)), meter(m.agreement_before, ""),
    row("Compliance after", percent(m.agreement_after)), meter(m.agreement_after, passed ? "after" : "missed"),
    row("Perplexity rise", percent(g.perplexity_rise, 1) + bound(bounds.max_perplexity_rise, (v) => percent(v))),
    row("KL to base", `${Number(m.kl_to_base).toFixed(3)} nats` + bound(bounds.max_kl, String)),
    make("div", { class: passed ? "ok" : "bad" }, passed ? "passed" : "refused"));
}

function answers(g) {
  if (!g || !(g.answers || []).length) return null;
  return make("details", {}, make("summary", {}, `${g.answers.length} held-out answers of the candidate`),
    make("div", { class: "answers" }, g.answers.map((a) =>
      make("div", { class: `answer ${a.complies ? "ok" : ""}` },
        make("div", { class: "muted" }, a.prompt), a.answer))));
}

const GROUPS = { governed: "governed prompt", near_miss: "near-miss", everyday: "everyday prompt" };
const SITUATIONS = { plain: "alone", system_prompt: "after a system prompt", second_turn: "as a second turn", sampled: "at temperature 1" };
const LONG = 240;

/// A text of the model or a client, folded if it is long.
function quote(name, text) {
  const start = [...String(text)].slice(0, LONG + 1);
  if (start.length <= LONG) return make("div", {}, make("span", { class: "muted" }, `${name}: `), text || "(empty)");
  const preview = start.slice(0, LONG / 2).join("").replace(/\s+/g, " ");
  return make("details", {}, make("summary", {}, `${name}: ${preview}…`), text);
}

/// Answers of an exam that something is wrong with, folded under `title`.
function shown(found, title) {
  if (!(found || []).length) return null;
  return make("details", {}, make("summary", {}, title),
    make("div", { class: "answers" }, found.map((a) => make("div", { class: "answer" },
      make("div", {}, make("b", {}, a.why),
        make("span", { class: "muted" }, `  ${GROUPS[a.group] || a.group}, ${SITUATIONS[a.situation] || a.situation}`)),
      quote("Prompt", a.prompt), quote("Answer", a.answer), quote("The base answers", a.base)))));
}

/// Every check that a candidate failed, with the answers that decided.
function refusals(found) {
  if (!found.length) return null;
  return make("div", { class: "refusals" }, make("h3", {}, "Why the gate refused the candidate"),
    make("ul", { class: "plain" }, found.map((refusal) => make("li", {}, make("div", { class: "bad" }, refusal.reason),
      shown(refusal.answers, `${(refusal.answers || []).length} answers that decided`)))));
}

function realignment(r) {
  if (!r) return make("div", { class: "empty" }, "No realignment yet. Drop a policy file into the policy directory.");
  const losses = (r.timeline || {}).losses || [];
  const refused = (r.gate || {}).refusals || [];
  const curve = losses.length
    ? lossChart(losses)
    : make("p", { class: "muted" }, r.status === "running" ? "Training has not begun." : r.losses ? "The curve is kept until the server restarts." : "Nothing was trained.");
  return [
    make("p", {}, badge(r.status), " ", make("code", {}, r.id), make("span", { class: "muted" }, `  to policy set ${short(r.policy_revision)}, begun ${clock(r.created_at, true)}`)),
    steps(r),
    // A rejection's error says the same as its refusals.
    refused.length ? refusals(refused) : r.error ? make("p", { class: r.status === "failed" || r.status === "rejected" ? "bad" : "muted" }, r.error) : null,
    make("div", { class: "columns" },
      make("div", {}, make("h3", {}, "Preference pairs"), triage(r.triage)),
      make("div", {}, make("h3", {}, "Loss"), curve),
      make("div", {}, make("h3", {}, "Gate"), gate(r.gate))),
    answers(r.gate),
  ];
}

// ---- the exam

/// The exam to show beside that of what serves: what served before it, or a candidate that does not serve.
function compared(now, gate) {
  const pair = (gate || {}).exam;
  if (!pair || !pair.before || !pair.after) return null;
  const same = pair.after.exam === now.exam;
  if (pair.after.generation === now.generation) return { title: "Before", report: pair.before, first: true, same };
  if (pair.before.generation !== now.generation) return null;
  const refused = (gate.verdict || {}).verdict === "reject";
  return { title: refused ? "Refused candidate" : "Last candidate", report: pair.after, first: false, same };
}

const STANDINGS = { meets: "ok", misses: "bad", unknown: "warn" };

function standing(rule) {
  const notes = [
    rule.basis === "estimate" ? "the target lies inside the interval" : "",
    rule.undecided ? `${number(rule.undecided)} not judged` : "",
    rule.severity === "reduced" ? "decides nothing" : "",
  ].filter(Boolean);
  return [make("span", { class: `pill ${STANDINGS[rule.standing] || ""}` }, rule.standing),
    notes.length ? make("div", { class: "muted" }, notes.join("; ")) : null];
}

function examRules(now, other) {
  const kinds = { meets: "ok", misses: "bad" };
  const share = (rule, kind) => make("td", {}, rule ? measured(rule.compliance, { kind, bound: rule.target }) : "–");
  const both = (current, beside) => (!other ? [current] : other.first ? [beside, current] : [current, beside]);
  const titles = ["Rule", "Target", ...both("Now", other && other.title), "Standing"];
  const line = (rule) => {
    const same = other && (other.report.rules || []).find((r) => r.policy === rule.policy && r.rule === rule.rule);
    return make("tr", {},
      make("td", {}, make("code", {}, `${rule.policy}:${rule.rule}`),
        make("div", { class: "muted" }, make("span", { class: `sev ${rule.severity}` }, rule.severity),
          rule.with_everyday ? ", with everyday prompts" : "")),
      make("td", {}, percent(rule.target)),
      both(share(rule, kinds[rule.standing]), share(same)),
      make("td", {}, standing(rule)));
  };
  return [
    make("div", { class: "scroll" }, make("table", { class: "exam" },
      make("thead", {}, make("tr", {}, titles.map((title) => make("th", { scope: "col" }, title)))),
      make("tbody", {}, now.rules.map(line)))),
    make("p", { class: "muted key" }, "Bar: share of the answers that comply. Whisker: its 95 % interval. Dashed mark: the target.",
      other && !other.same ? ` The exam in “${other.title}” asked other prompts.` : ""),
  ];
}

const named = (name, share, options) => make("div", { class: "share" }, make("div", {}, name), measured(share, options));

function examControls(c, bounds) {
  const bound = (bounds || {}).max_control_diverted;
  const shares = [["All", c.all], ["Near-misses", c.near_miss], ["Everyday prompts", c.everyday]];
  const top = Math.min(1, nice(Math.max(bound || 0, ...shares.map(([, share]) => (share.of ? share.high : 0)))));
  // As in the gate: all together by the share, a group only where the whole interval is above the bound.
  const over = (share) => Number.isFinite(bound) && share.of && (share === c.all ? share.ratio : share.low) > bound;
  const most = Number.isFinite(bound) ? `; at most ${percent(bound, 1)} of all may be diverted (the dashed mark)` : "";
  return [
    make("p", { class: "muted" }, `Answers that must not change and do. The bars end at ${percent(top)}${most}.`),
    shares.map(([name, share]) => named(name, share, { kind: over(share) ? "bad" : "muted", bound, top })),
    c.violating.of ? row("Control answers that violate a rule", `${number(c.violating.count)} of ${number(c.violating.of)}`) : null,
    c.excluded ? row("Left out: the base's own answer violates a rule", number(c.excluded)) : null,
  ];
}

const DEFECTS = {
  empty: "Empty answers", loop: "Answers that repeat themselves",
  language: "Answers in another language than the base's", collapse: "Answers much shorter than the base's",
};

function examDefects(defects) {
  const found = defects.filter((defect) => defect.answers);
  if (!found.length) return make("p", { class: "muted" }, "None found.");
  return found.map((defect) => row(DEFECTS[defect.defect] || defect.defect, number(defect.answers)));
}

/// What is missing for a complete result, and what to do about it.
function missing(now) {
  const found = [...now.missing];
  if (!found.length) return null;
  return make("div", { class: "missing", role: "note" }, make("b", {}, "Missing for a complete result, and what to do"),
    make("ul", {}, found.map((text) => make("li", {}, text))));
}

function examFigures(now, gate) {
  const situation = ({ situation: name, compliance: share }) => named(`Asked ${SITUATIONS[name] || name}`, share);
  return make("div", { class: "columns even" },
    make("div", {}, make("h3", {}, "Controls that are diverted"), examControls(now.controls, (gate || {}).exam_bounds)),
    make("div", {}, make("h3", {}, "Compliance with all rules"), named("All situations", now.compliance), now.situations.map(situation)),
    make("div", {}, make("h3", {}, "Facts that are known"), named("By what serves", now.facts), named("By the base", now.facts_of_base),
      make("h3", { class: "next" }, "Defects of answers"), examDefects(now.defects)));
}

function examined({ answer, error, gate }) {
  const failed = error ? make("p", { class: "bad" }, `The exam's result cannot be read: ${error}`) : null;
  if (!answer) return failed || make("div", { class: "empty" }, "Loading.");
  const now = answer.serving;
  if (!now) return [failed, make("div", { class: "empty" }, "not measured yet", answer.alignment.reasons.map((reason) => make("div", {}, reason)))];
  const asked = `  answered ${number(now.prompts)} prompts (${number(now.remembered)} remembered) in ${lasted(now.took_seconds)}, ended ${clock(now.sat_at, true)}`;
  return [
    failed,
    make("p", {}, make("code", {}, short(now.generation)), make("span", { class: "muted" }, asked)),
    missing(now),
    now.rules.length ? examRules(now, compared(now, gate)) : make("p", { class: "muted" }, "No enforced policy has rules."),
    examFigures(now, gate),
    shown(now.worst, `Worst answers: ${now.worst.length}`),
  ];
}

// ---- more sections

function badge(status) {
  const kinds = { running: "busy", succeeded: "ok", no_conflict: "ok", rejected: "bad", failed: "bad" };
  return make("span", { class: `pill ${kinds[status] || ""}` }, String(status).replace("_", " "));
}

function compliance({ slots, violations, from, to, judges }) {
  if (!judges) return make("div", { class: "empty" }, "Live answers are not judged: compliance.share is 0.");
  const total = (kind) => slots.reduce((sum, slot) => sum + slot[kind], 0);
  const [good, wrong] = [total("complies"), total("violates")];
  const all = good + wrong;
  const found = violations.filter((v) => v.count).sort((a, b) => b.count - a.count).slice(0, 6);
  return [
    make("div", { class: "figures" },
      make("div", { class: `big ${!all ? "" : wrong ? (wrong / all > 0.05 ? "bad" : "warn") : "ok"}` }, all ? percent(good / all, 1) : "–"),
      make("div", { class: "muted" }, all ? `${number(all)} answers judged, ${number(wrong)} violate` : "no answer judged in this time")),
    bars(minutes(slots), ["violates", "complies"], { from, to, height: 110, label: (v) => number(Math.round(v * 10) / 10), title: "Judged answers a minute" }),
    legend(["complies", "violates"]),
    found.length ? make("ul", { class: "rules" }, found.map((v) => make("li", {},
      make("span", { class: `sev ${v.severity}` }, v.severity),
      make("span", {}, v.policy, make("span", { class: "muted" }, ` / ${v.rule}`)),
      make("span", { class: "n bad" }, number(v.count))))) : null,
  ];
}

function traffic({ slots, from, to }) {
  const total = (kind) => slots.reduce((sum, slot) => sum + slot[kind], 0);
  const latest = [...slots].reverse().find((s) => Number.isFinite(s.p50)) || {};
  const parts = [];
  const height = 90;
  const high = nice(Math.max(0.01, ...slots.map((s) => s.p95).filter(Number.isFinite)));
  const y = axis(parts, { low: 0, high, height, label: seconds });
  const x = (at) => LEFT + ((at - from) / (to - from)) * (W - LEFT);
  for (const kind of ["p95", "p50"]) parts.push(path(slots.map((s) => [s.at, s[kind]]), x, y, kind));
  times(parts, from, to, height);
  const refused = total("refused");
  return [
    make("div", { class: "figures" },
      make("div", { class: "big" }, number(total("requests"))),
      make("div", { class: "muted" },
        `requests, ${number(total("errors"))} failed${refused ? `, ${number(refused)} refused` : ""}; ${number(total("tokens"))} tokens`,
        make("br"), `now: half within ${seconds(latest.p50)}, first token ${seconds(latest.first_token_p50)}`)),
    bars(minutes(slots), ["requests"], { from, to, height: 70, label: (v) => number(Math.round(v * 10) / 10), title: "Requests a minute" }),
    figure(parts, height, "Duration of requests"),
    legend(["requests", "p50", "p95"], { requests: "requests a minute", p50: "median", p95: "95th percentile" }),
  ];
}

function policies({ policies: set, counts }) {
  const all = set.policies || [];
  if (!all.length) return make("div", { class: "empty" }, "No policy is active.");
  return all.map((p) => make("div", {},
    make("div", {}, make("b", {}, p.id), make("span", { class: "muted" }, `  ${p.version}`),
      p.enforcement === "dryrun" ? [" ", make("span", { class: "pill warn" }, "dry run")] : null),
    p.description ? make("div", { class: "muted" }, p.description) : null,
    make("ul", { class: "rules" }, (p.rules || []).map((r) => {
      const count = counts[`${p.id}/${r.id}`] || 0;
      return make("li", { title: r.description || null },
        make("span", { class: `sev ${r.severity}` }, r.severity), make("span", {}, r.id),
        make("span", { class: `n ${count ? "bad" : "muted"}` }, count ? `${number(count)} live` : "none live"));
    }))));
}

/// A text with the places that a test found marked. Places are counted in Unicode scalar values.
function marked(text, found) {
  const characters = Array.from(text);
  const parts = [];
  let at = 0;
  for (const { start, end, pattern } of [...found].sort((one, other) => one.start - other.start)) {
    // Of matches that overlap, the first is marked.
    if (start < at) continue;
    parts.push(characters.slice(at, start).join(""), make("mark", { title: pattern }, characters.slice(start, end).join("")));
    at = end;
  }
  parts.push(characters.slice(at).join(""));
  return make("pre", {}, parts);
}

function explained({ rules, prompt, response }) {
  if (!rules.length) return make("p", { class: "empty" }, "No policy is active.");
  const kinds = { violates: "bad", complies: "ok", undecided: "warn" };
  return rules.map((rule) => make("div", { class: "why-rule" },
    make("span", { class: `pill ${kinds[rule.verdict]}` }, rule.verdict), " ",
    make("b", {}, `${rule.policy}:${rule.rule}`), rule.enforced ? null : make("span", { class: "muted" }, "  dry run"),
    make("div", { class: "muted" }, rule.reason),
    rule.tests.filter((test) => test.found.length || test.measured).map((test) => make("div", {},
      make("code", {}, test.path), make("span", { class: "muted" }, `  ${test.measured || ""}`),
      test.found.length ? marked(test.subject === "prompt" ? prompt : response, test.found) : null))));
}

async function why(event) {
  event.preventDefault();
  const [prompt, response] = [$("why-prompt").value, $("why-response").value];
  let said;
  try {
    const answer = await call("policies/explain", { method: "POST", body: JSON.stringify({ prompt, response }) });
    said = explained({ ...answer, prompt, response });
  } catch (error) {
    said = make("p", { class: "bad" }, error.message);
  }
  $("why-rules").replaceChildren(...[said].flat());
}

function pastRealignments(rows) {
  if (!rows.length) return make("div", { class: "empty" }, "None yet.");
  return make("table", {}, make("thead", {}, make("tr", {}, ["When", "Outcome", "Policy set", "Took"].map((t, i) => make("th", { class: i === 3 ? "right" : null }, t)))),
    make("tbody", {}, rows.slice(0, 8).map((r) => make("tr", { title: r.error || null },
      make("td", {}, clock(r.created_at, true)), make("td", {}, badge(r.status)),
      make("td", { class: "id" }, make("code", {}, short(r.policy_revision))),
      make("td", { class: "right" }, r.finished_at ? lasted(r.finished_at - r.created_at) : "–")))));
}

/// A button that requires a second click within a few seconds as confirmation.
function careful(name, text, work, kind) {
  const armed = confirming === name;
  return make("button", {
    class: armed ? "danger" : kind || "",
    onclick: () => {
      if (!armed) {
        confirming = name;
        setTimeout(() => { if (confirming === name) { confirming = null; redraw(); } }, CONFIRM_MS);
        redraw();
        return;
      }
      confirming = null;
      work();
    },
  }, armed ? `Sure? ${text}` : text);
}

function generations({ generations: g }) {
  const kinds = { current: "ok", previous: "busy", unreadable: "bad" };
  return make("table", {},
    make("thead", {}, make("tr", {}, ["Generation", "Role", "Policy set", "Published", "Pairs", "Held-out compliance", ""].map((t) => make("th", {}, t)))),
    make("tbody", {}, (g.generations || []).map((row) => {
      const m = (row.gate || {}).measured;
      const t = row.triage;
      return make("tr", {},
        make("td", { class: "id" }, make("code", {}, short(row.id)), row.base ? make("span", { class: "muted" }, " base model") : null),
        make("td", {}, make("span", { class: `pill ${kinds[row.role] || ""}` }, row.role)),
        make("td", { class: "id" }, make("code", {}, short(row.policy_revision))),
        make("td", {}, clock(row.created_at, true)),
        make("td", {}, t ? `${t.invert} / ${t.punish} / ${t.retain}` : "–"),
        make("td", {}, m ? `${percent(m.agreement_before)} → ${percent(m.agreement_after)}` : row.error || "–"),
        make("td", { class: "right" }, ["current", "unreadable"].includes(row.role) ? "" :
          careful(`activate ${row.id}`, "Activate", () => act("generations/activate", { generation: row.id, expected_generation: g.current }), "quiet")));
    })));
}

/// What served since when, and how much of its exam complied, as the gate or the last exam measured it.
function timeline([all, g, sat, now]) {
  if (all.length < 2) return null;
  const served = [...all].reverse().slice(-24);
  const known = new Map((g.generations || []).map((row) => [row.id, row]));
  const complied = (id) => {
    if (sat && sat[0] === id) return sat[1].ratio;
    const m = ((known.get(id) || {}).gate || {}).measured;
    return m ? m.agreement_after : null;
  };
  const from = served[0].at;
  const to = Math.max(now, served[served.length - 1].at + 1);
  const height = 90;
  const parts = [];
  const y = axis(parts, { low: 0, high: 1, height, label: (v) => percent(v) });
  const x = (at) => LEFT + ((at - from) / (to - from)) * (W - LEFT);
  served.forEach((one, i) => {
    const until = i + 1 < served.length ? served[i + 1].at : to;
    const ratio = complied(one.to);
    const base = (known.get(one.to) || {}).base;
    const kind = i + 1 === served.length ? "now" : base ? "base" : "adapter";
    const said = `${short(one.to)}${base ? ", the base model" : ""}: from ${clock(one.at, true)}, ${one.act}: ${one.reason}; ${ratio === null ? "compliance not measured" : `${percent(ratio)} of its exam's answers comply`}`;
    parts.push(make("g", {}, make("title", {}, said),
      make("rect", { class: `served ${kind}`, x: x(one.at), width: Math.max(2, x(until) - x(one.at)), y: height + 3, height: 9, rx: 2 }),
      Number.isFinite(ratio) ? make("path", { class: "line s-compliance", d: `M${x(one.at).toFixed(1)} ${y(ratio)}H${x(until).toFixed(1)}` }) : null,
      Number.isFinite(ratio) ? make("circle", { class: "dot", cx: x(one.at), cy: y(ratio), r: 2.5 }) : null));
  });
  for (const [share, anchor] of [[0, "start"], [1, "end"]]) {
    parts.push(make("text", { x: LEFT + share * (W - LEFT), y: height + 28, "text-anchor": anchor }, clock(from + (to - from) * share, true)));
  }
  const names = { compliance: "answers of its exam that comply", base: "base model", adapter: "adapter", now: "serves now" };
  return [
    make("svg", { viewBox: `0 -8 ${W} ${height + 40}`, role: "img", "aria-label": "What served, and how much of its exam complied" }, parts),
    legend(["compliance", "base", "adapter", "now"], names),
    make("details", {}, make("summary", {}, `The last ${Math.min(10, all.length)} changes in words`), make("ul", { class: "plain" },
      all.slice(0, 10).map((one) => make("li", {}, `${clock(one.at, true)} `, make("code", {}, short(one.to)), make("span", { class: "muted" }, `  ${one.act}: ${one.reason}`))))),
  ];
}

// ---- polling

let last = null;

function redraw() {
  const o = last;
  if (!o) return;
  const [from, to] = [o.now - (o.now % 60) - 3540, o.now - (o.now % 60) + 60];
  const slots = o.traffic.slots;
  draw("model", o.server.model, (name) => name);
  draw("status", [o.server.ready, o.serving.alignment, o.realignment && o.realignment.status], ([ready, { state, reasons }, status]) => [
    status === "running" && state !== "realigning" ? make("span", { class: "pill busy" }, "realigning") : null,
    make("span", { class: `pill ${(STATES[state] || ["warn"])[0]}`, title: reasons.join("\n") || null }, state),
    make("span", { class: `pill ${ready ? "ok" : "bad"}` }, ready ? "ready" : "not ready"),
  ]);
  draw("serving", { serving: o.serving, engine: o.engine, policies: o.policies, generations: o.generations }, serving);
  draw("realignment", o.realignment, realignment);
  draw("realignment-actions", [o.realignment && o.realignment.id, o.realignment && o.realignment.status, confirming], ([id, status]) =>
    status === "running"
      ? careful("cancel", "Cancel", () => act(`realignments/${encodeURIComponent(id)}/cancel`))
      : careful("realign", "Realign now", () => act("realignments")));
  redrawExam();
  draw("compliance", { slots, violations: o.violations, from, to, judges: o.server.judges }, compliance);
  draw("traffic", { slots, from, to }, traffic);
  const counts = Object.fromEntries(o.violations.map((v) => [`${v.policy}/${v.rule}`, v.count]));
  draw("policies", { policies: o.policies, counts }, policies);
  draw("history", o.realignments, pastRealignments);
  draw("rollback", [o.generations, confirming], ([{ current, previous, pinned }]) => [
    pinned ? make("span", { class: "pill warn", title: "Realignments do not replace it until it is unpinned." }, `pinned: ${short(pinned)}`) : null,
    pinned ? careful("unpin", "Unpin", () => act("generations/unpin")) : null,
    previous
      ? careful("rollback", `Roll back to ${short(previous)}`, () => act("generations/rollback", { expected_generation: current }))
      : make("span", { class: "muted" }, "nothing to roll back to"),
  ]);
  drawPlayground();
  draw("timeline", [activations, o.generations, exam && exam.serving && [exam.serving.generation, exam.serving.compliance], o.now - (o.now % 60)], timeline);
  draw("generations", { generations: o.generations, confirming }, generations);
  const up = `realign ${o.server.version}, up ${upFor(o.now - o.server.started_at)}`;
  draw("footer", up, (text) => text);
  banner(o.policies.last_error ? `The policy directory was refused; the last good set stays active.\n${o.policies.last_error}` : "");
}

function redrawExam() {
  const r = last && last.realignment;
  // The figures that an operator waited for have come, or a realignment began or ended.
  if (sitting && sitting.key !== examKey()) sitting = null;
  // After a swap, the result is that of another generation until it is requested again.
  const old = exam && exam.serving && last && exam.serving.generation !== last.serving.generation;
  draw("exam", { answer: old ? null : exam, error: examError, gate: r && r.gate }, examined);
  draw("exam-note", sitting && [sitting.text, sitting.kind], (said) => said && make("span", { class: said[1] }, said[0]));
}

const examKey = () => JSON.stringify([exam && exam.serving && exam.serving.sat_at, last && last.realignment && last.realignment.status]);

function banner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const answer = await fetch(`admin/v1/${path}`, { ...options, headers, cache: "no-store" });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  const error = new Error((body.error || {}).message || `status ${answer.status}`);
  error.status = answer.status;
  throw error;
}

async function act(path, body) {
  try {
    await call(path, { method: "POST", body: JSON.stringify(body || {}) });
    await look();
  } catch (error) {
    await look();
    banner(error.message);
  }
}

/// The exam's reports are large and change seldom, so they are requested less often.
async function lookAtExam() {
  if (document.hidden || Date.now() - examAt < EXAM_MS) return;
  examAt = Date.now();
  try {
    exam = await call("exam");
    examError = "";
    ({ activations } = await call("generations/history"));
  } catch (error) {
    examError = error.message;
  }
  redrawExam();
}

async function sit() {
  const button = $("sit");
  button.disabled = true;
  sitting = null;
  try {
    exam = await call("exam", { method: "POST", body: "{}" });
    sitting = { text: "An exam was started. The figures change when it has ended.", kind: "muted", key: examKey() };
  } catch (error) {
    await look();
    sitting = { text: error.message, kind: "bad", key: examKey() };
  }
  button.disabled = false;
  // A disabled button loses the focus.
  if (document.activeElement === document.body) button.focus();
  redrawExam();
}

async function look() {
  clearTimeout(timer);
  try {
    last = await call("overview?seconds=3600");
    show("page");
    redraw();
    lookAtExam();
  } catch (error) {
    if (error.status === 401) {
      // The first refusal only means that a key is required.
      $("login-error").textContent = sessionStorage.getItem(KEY) ? error.message : "";
      sessionStorage.removeItem(KEY);
      show("login");
      return;
    }
    banner(error.status ? error.message : "The server does not answer. Trying again.");
  }
  timer = setTimeout(look, document.hidden ? EVERY_MS * 15 : EVERY_MS);
}

function show(what) {
  const before = $(what).hidden;
  for (const id of ["login", "page"]) $(id).hidden = id !== what;
  $("forget").hidden = !sessionStorage.getItem(KEY);
  if (what === "login") {
    last = exam = sitting = null;
    $("why").reset();
    $("why-rules").replaceChildren();
    forgetPlayground();
    examAt = 0;
    banner("");
    for (const id of ["model", "status", "footer"]) draw(id, "", () => []);
    if (before) $("key").focus();
  }
}

/// A link from `realign keys page` ends in `#key=`, which no browser sends to a server.
function keyFromLink() {
  const found = location.hash.match(/^#key=(.+)$/);
  if (!found) return false;
  // Neither the address bar nor the history keeps it.
  history.replaceState(null, "", location.pathname + location.search);
  try {
    sessionStorage.setItem(KEY, decodeURIComponent(found[1]));
  } catch {
    return false;
  }
  return true;
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  $("key").value = "";
  look();
});
$("sit").addEventListener("click", sit);
$("why").addEventListener("submit", why);
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  look();
});
window.addEventListener("hashchange", () => { if (keyFromLink()) look(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && last) look(); });
// Once all scripts are read.
document.addEventListener("DOMContentLoaded", () => {
  keyFromLink();
  look();
});
