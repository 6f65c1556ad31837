// The playground: one prompt, answers of several generations side by side, judged by the active policies.
// Text from the server is inserted as text nodes only, never as markup. page.js is loaded before.
"use strict";

/// Answers that are longer are compared with the base's by their first words only.
const COMPARED_WORDS = 600;
const ROLES = ["base", "previous", "current", "candidate"];

/// The columns of the last question, in order, and what stops them.
let asked = null;

/// The generations that can answer, each once, with all its roles.
function whoAnswers() {
  if (!last) return [];
  const { current, previous, generations: all } = last.generations;
  const base = (all || []).find((one) => one.base);
  const ids = { base: base && base.id, previous, current, candidate: last.candidate };
  const found = new Map();
  for (const role of ROLES) {
    if (!ids[role]) continue;
    const one = found.get(ids[role]) || { id: ids[role], roles: [] };
    one.roles.push(role);
    found.set(ids[role], one);
  }
  return [...found.values()];
}

/// The check boxes keep what an operator unchecked, by role.
const unchecked = new Set();

function drawPlayground() {
  draw("play-who", whoAnswers(), (all) => all.map(({ id, roles }) => {
    const box = make("input", { type: "checkbox", name: "who", value: id, checked: !roles.every((role) => unchecked.has(role)) });
    box.addEventListener("change", () => roles.forEach((role) => (box.checked ? unchecked.delete(role) : unchecked.add(role))));
    return make("label", { class: "choice" }, box, ` ${roles.join(", ")} `, make("code", {}, short(id)));
  }));
  draw("play-policies", last ? (last.policies.policies || []).map((p) => [p.id, p.rules.map((rule) => rule.id)]) : [], (all) => {
    const rules = all.flatMap(([policy, ids]) => ids.map((id) => make("option", { value: JSON.stringify([policy, id]) }, `${policy} / ${id}`)));
    return rules.length ? rules : make("option", { value: "" }, "no policy is active");
  });
}

// ---- asking

/// The `data:` lines of a stream of events.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function answerOf(column, question, signal) {
  const answer = await fetch("admin/v1/playground", {
    method: "POST", signal, cache: "no-store",
    headers: { authorization: `Bearer ${sessionStorage.getItem(KEY)}`, "content-type": "application/json" },
    body: JSON.stringify({ ...question, generation: column.id, stream: true }),
  });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error((said.error || {}).message || `status ${answer.status}`);
  }
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    const choice = (event.choices || [])[0];
    if (!choice) continue;
    const delta = choice.delta || {};
    column.thought += delta.reasoning_content || delta.reasoning || "";
    column.text += delta.content || "";
    if (choice.finish_reason) column.ended = choice.finish_reason;
    column.said.replaceChildren(column.text || (column.thought ? "(thinking)" : ""));
  }
}

async function run(column, question, controller) {
  const began = performance.now();
  try {
    await answerOf(column, question, controller.signal);
    column.took = (performance.now() - began) / 1000;
    const judged = await call("policies/explain", { method: "POST", body: JSON.stringify({ prompt: question.prompt, response: column.text }) });
    column.rules = judged.rules;
  } catch (error) {
    column.error = controller.signal.aborted ? "stopped" : error.message;
  }
  if (asked.controller === controller) finish(column);
}

async function ask(event) {
  event.preventDefault();
  if (asked) asked.controller.abort();
  const controller = new AbortController();
  const chosen = [...document.querySelectorAll("#play-who input:checked")].map((box) => box.value);
  const columns = whoAnswers().filter(({ id }) => chosen.includes(id)).map(({ id, roles }) => ({
    id, roles, text: "", thought: "", ended: null, rules: null, error: "",
    said: make("div", { class: "said", tabindex: 0, role: "region", "aria-label": `Answer of ${roles.join(", ")}` }),
    verdicts: make("div", { class: "verdicts" }),
  }));
  if (!columns.length) {
    $("play-note").textContent = "Choose at least one generation.";
    return;
  }
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const question = {
    prompt: $("play-prompt").value, system: $("play-system").value || null,
    max_tokens: number("play-tokens"), temperature: number("play-temperature"), seed: number("play-seed"),
  };
  asked = { controller, columns, prompt: question.prompt };
  $("play-answers").replaceChildren(...columns.map((column) => make("section", { class: "column", "aria-busy": "true" },
    make("h3", {}, column.roles.map((role) => [make("span", { class: `pill ${role === "current" ? "ok" : role === "candidate" ? "busy" : ""}` }, role), " "]),
      make("code", {}, short(column.id))),
    column.said, column.verdicts)));
  $("play-save").hidden = true;
  $("play-stop").hidden = false;
  $("play-note").textContent = "Answering…";
  await Promise.all(columns.map((column) => run(column, question, controller)));
  if (asked.controller !== controller) return;
  $("play-stop").hidden = true;
  const violating = columns.filter((column) => violated(column).length).length;
  const failed = columns.filter((column) => column.error).length;
  $("play-note").textContent = `${columns.length} answered; ${violating} violate${violating === 1 ? "s" : ""} a rule${failed ? `; ${failed} did not finish` : ""}.`;
  offerToSave();
}

// ---- showing

const violated = (column) => (column.rules || []).filter((rule) => rule.verdict === "violates");

/// What decided: the places that the tests of a violated rule found, or those of an exception that excuses.
function deciding(column) {
  return (column.rules || []).flatMap((rule) => rule.tests
    .filter((test) => test.subject === "response" && test.holds && !test.path.includes(".not")
      && test.path.startsWith(rule.verdict === "violates" ? "violates" : "exceptions"))
    .flatMap((test) => test.found.map((place) => ({ ...place, rule: `${rule.policy}:${rule.rule}`, bad: rule.verdict === "violates" }))));
}

/// For each word of `text` whether `base` lacks it in this order: a longest common subsequence.
function differing(text, base) {
  const words = (t) => t.match(/\s+|[^\s]+/g) || [];
  const [here, there] = [words(text).slice(0, COMPARED_WORDS), words(base).slice(0, COMPARED_WORDS)];
  const lengths = Array.from({ length: here.length + 1 }, () => new Uint16Array(there.length + 1));
  for (let i = here.length - 1; i >= 0; i--) {
    for (let j = there.length - 1; j >= 0; j--) {
      lengths[i][j] = here[i] === there[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const found = [];
  let [i, j, at] = [0, 0, 0];
  while (i < here.length) {
    const size = [...here[i]].length;
    if (j < there.length && here[i] === there[j]) {
      i += 1; j += 1;
    } else if (j < there.length && lengths[i][j + 1] >= lengths[i + 1][j]) {
      j += 1;
      continue;
    } else {
      if (here[i].trim()) found.push([at, at + size]);
      i += 1;
    }
    at += size;
  }
  return found;
}

/// The text with deciding places and differences marked. Places are counted in Unicode scalar values.
function annotated(text, places, differences) {
  const characters = Array.from(text);
  const place = new Array(characters.length).fill(null);
  const differs = new Array(characters.length).fill(false);
  for (const one of places) for (let at = one.start; at < one.end; at++) place[at] = place[at] || one;
  for (const [start, end] of differences) for (let at = start; at < end; at++) differs[at] = true;
  const parts = [];
  for (let at = 0; at < characters.length;) {
    let end = at + 1;
    while (end < characters.length && place[end] === place[at] && differs[end] === differs[at]) end += 1;
    const piece = characters.slice(at, end).join("");
    const inner = differs[at] ? make("ins", {}, piece) : piece;
    parts.push(place[at] ? make("mark", { class: place[at].bad ? "" : "excused", title: `${place[at].rule}: ${place[at].pattern}` }, inner) : inner);
    at = end;
  }
  return parts;
}

function finish(column) {
  const base = asked.columns.find((one) => one.roles.includes("base"));
  if (column === base) asked.columns.filter((one) => one !== base && one.rules).forEach(shownAnswer);
  shownAnswer(column);
  const rules = column.rules || [];
  const wrong = violated(column);
  const open = rules.filter((rule) => rule.verdict === "undecided");
  const kind = column.error ? "bad" : wrong.length ? "bad" : open.length ? "warn" : "ok";
  const verdict = column.error ? "did not finish" : wrong.length ? "violates" : open.length ? "undecided" : rules.length ? "complies" : "no policy";
  column.verdicts.replaceChildren(
    make("div", {}, make("span", { class: `pill ${kind}` }, verdict),
      make("span", { class: "muted" }, Number.isFinite(column.took) ? `  ${seconds(column.took)}` : "", column.ended === "length" ? ", cut at its length" : "")),
    column.error ? make("p", { class: "bad" }, column.error) : "",
    ...[...wrong, ...open].map((rule) => make("div", { class: "why-rule" }, make("b", {}, `${rule.policy}:${rule.rule}`),
      rule.enforced ? "" : make("span", { class: "muted" }, "  dry run"), make("div", { class: "muted" }, rule.reason))));
  column.said.parentElement.setAttribute("aria-busy", "false");
}

function shownAnswer(column) {
  const base = asked.columns.find((one) => one.roles.includes("base"));
  const compare = base && base !== column && base.rules;
  const differences = compare ? differing(column.text, base.text) : [];
  column.said.replaceChildren(...(column.text ? annotated(column.text, deciding(column), differences) : [make("span", { class: "muted" }, "(empty)")]));
  if (compare && !differences.length && column.text === base.text) column.said.append(make("div", { class: "muted same" }, "The same as the base's."));
}

// ---- taking a prompt into a policy

function offerToSave() {
  const done = asked.columns.filter((column) => column.rules);
  $("play-save").hidden = !done.length || !last || !last.policies.policies.length;
  $("play-from").replaceChildren(...done.map((column, at) => make("option", { value: at }, column.roles.join(", "))));
  $("play-extended").replaceChildren();
  saveKind();
}

function saveKind() {
  const example = $("play-as").value.startsWith("example");
  for (const label of document.querySelectorAll("#play-save .of-example")) label.hidden = !example;
}

async function extend(event) {
  event.preventDefault();
  const [add, verdict] = $("play-as").value.split(" ");
  const [policy, rule] = JSON.parse($("play-policies").value);
  const column = asked.columns.filter((one) => one.rules)[Number($("play-from").value)];
  const body = { policy, add, prompt: asked.prompt };
  if (add === "example") Object.assign(body, { rule, verdict, response: column.text });
  let shown;
  try {
    const extended = await call("policies/extend", { method: "POST", body: JSON.stringify(body) });
    const said = column.rules.find((one) => one.policy === policy && one.rule === rule);
    const against = add === "example" && said && said.verdict !== verdict;
    shown = extendedPolicy(extended, { add, against: against ? said.verdict : null, verdict, prompt: asked.prompt });
  } catch (error) {
    shown = make("p", { class: "bad" }, error.message);
  }
  $("play-extended").replaceChildren(...[shown].flat().filter((part) => part));
}

function extendedPolicy({ file, line, text, reason }, { add, against, verdict }) {
  const copied = make("span", { class: "muted", role: "status" });
  const copy = (what) => () => navigator.clipboard.writeText(what)
    .then(() => { copied.textContent = "Copied."; }, () => { copied.textContent = "The browser does not allow it: select the text and copy it."; });
  return [
    against ? make("p", { class: "warn" }, `The rule says “${against}” about this answer and the example “${verdict}”: the policy does not activate until you change the rule. That is what the example is for.`) : null,
    make("p", { class: "muted" }, `The line for ${{ example: "the rule's examples", prompt: "the policy's prompts", control: "the policy's controls" }[add]} in ${file}:`),
    make("pre", { class: "line", tabindex: 0 }, line),
    reason ? make("p", { class: "warn" }, reason) : null,
    make("div", { class: "buttons" },
      text ? make("button", { type: "button", class: "primary", onclick: () => download(file, text) }, `Download ${file}`) : null,
      make("button", { type: "button", onclick: copy(line) }, "Copy the line"), copied),
    text ? make("p", { class: "muted" }, "Put the file in place of the one in the policy directory: the server tests it and realigns, or says what is wrong.") : null,
  ];
}

function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/yaml" })), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function forgetPlayground() {
  if (asked) asked.controller.abort();
  asked = null;
  $("play").reset();
  $("play-answers").replaceChildren();
  $("play-extended").replaceChildren();
  $("play-save").hidden = true;
  $("play-note").textContent = "";
}

$("play").addEventListener("submit", ask);
$("play-stop").addEventListener("click", () => asked && asked.controller.abort());
$("play-as").addEventListener("change", saveKind);
$("play-save").addEventListener("submit", extend);
// Enter asks, as in a chat; a line break is Shift and Enter.
$("play-prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("play").requestSubmit();
});
