"use strict";
// What the setup page can do more where scripts run: it renders the message while it is written,
// fills typed secrets into what is copied, keeps a draft, and turns green as calls arrive.
// It uses `morph`, `offer` and `say` of script.js.

const trial = document.getElementById("trial");
const editor = document.getElementById("source");
const about = document.getElementById("about");
const asideNote = document.getElementById("aside");
// A tab's own store: what is in it is gone when the tab is closed, and is sent to nobody.
const kept = {
  get: (name) => sessionStorage.getItem(`setup.${name}`),
  set: (name, value) => sessionStorage.setItem(`setup.${name}`, value),
  drop: (name) => sessionStorage.removeItem(`setup.${name}`),
};

// --- Secrets: typed once, kept in this tab, filled into what is copied ----------------------------

// What people type in place of a secret: the key's name, a word of the page, a placeholder.
function isNoSecret(typed, name) {
  return /[\s<>…{}]|^(YOUR-.*|webhook|content|trigger|bridge|secret|password)$/i.test(typed) || typed === name;
}

function fill(scope) {
  const typed = kept.get(`secret.${scope}`) || "";
  const isWrong = isNoSecret(typed, document.querySelector(`[data-secret="${scope}"]`).dataset.name);
  document.querySelector(`[data-doubt="${scope}"]`).hidden = !isWrong;
  document.querySelector(`[data-forget="${scope}"]`).disabled = !typed;
  const secret = isWrong ? "" : typed;
  const placeholder = `YOUR-${scope.toUpperCase()}-SECRET`;
  for (const place of document.querySelectorAll(`[data-fill="${scope}"]`)) {
    place.textContent = place.dataset.pattern.replaceAll(placeholder, () => secret || placeholder);
    place.classList.toggle("filled", Boolean(secret));
  }
}

for (const input of document.querySelectorAll("[data-secret]")) {
  const scope = input.dataset.secret;
  input.closest(".secret").hidden = false;
  input.value = kept.get(`secret.${scope}`) || "";
  fill(scope);
  input.addEventListener("input", () => {
    // People paste the whole header, or NAME:SECRET as it was handed to them.
    kept.set(`secret.${scope}`, input.value.trim().replace(/^(Bearer\s+|[^\s:]+:)/, ""));
    fill(scope);
  });
}
for (const button of document.querySelectorAll("[data-forget]")) {
  button.addEventListener("click", () => {
    const scope = button.dataset.forget;
    kept.drop(`secret.${scope}`);
    document.querySelector(`[data-secret="${scope}"]`).value = "";
    fill(scope);
    say("Forgotten");
  });
}

// --- The draft: a reload or another snippet loses nothing ------------------------------------------

const samples = [...document.querySelectorAll(".sample")];
const codeOf = (sample) => sample.querySelector("pre").textContent;
const isSnippet = (text) => samples.some((sample) => codeOf(sample).trim() === text.trim());

// Through the browser's own editing, so that Ctrl+Z takes it back.
function type(text) {
  editor.focus({ preventScroll: true });
  if (document.execCommand("insertText", false, text)) return;
  editor.setRangeText(text, editor.selectionStart, editor.selectionEnd, "end");
  editor.dispatchEvent(new Event("input", { bubbles: true }));
}

function replaceAll(text) {
  editor.select();
  type(text);
  editor.setSelectionRange(0, 0);
  editor.scrollTop = 0;
}

function showAside() {
  asideNote.hidden = !kept.get("aside");
  trial.elements.aside.value = kept.get("aside") || "";
}

function mark(sample) {
  for (const one of samples) {
    one.toggleAttribute("data-chosen", one === sample);
    const button = one.querySelector("button");
    if (one === sample) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const words = about.ownerDocument.createElement("strong");
  words.textContent = `${sample.querySelector("h4").textContent}.`;
  const where = document.createElement("span");
  where.className = "dim";
  where.textContent = sample.dataset.where && `Where it goes in Braze: ${sample.dataset.where}`;
  about.replaceChildren(words, ` ${sample.dataset.about} `, where);
  trial.elements.snippet.value = sample.dataset.name;
}

// Example values of what the snippet shows; what was typed stays.
function giveExamples(sample) {
  for (const [name, examples] of Object.entries(JSON.parse(sample.dataset.examples))) {
    const field = trial.elements[name];
    try {
      const typed = JSON.parse(field.value.trim() || "{}");
      if (!Array.isArray(typed) && Object(typed) === typed) field.value = JSON.stringify({ ...examples, ...typed }, null, 1);
    } catch {
      // Half-written: a person is at work there.
    }
    field.closest("details").open = true;
  }
}

function load(name) {
  const sample = samples.find((one) => one.dataset.name === name);
  const own = editor.value;
  giveExamples(sample);
  if (own.trim() && !isSnippet(own)) kept.set("aside", own);
  showAside();
  mark(sample);
  replaceAll(codeOf(sample));
  say(asideNote.hidden ? "Snippet loaded" : "Snippet loaded. Your own text was put aside");
}

function bringBack() {
  const own = kept.get("aside");
  kept.drop("aside");
  showAside();
  if (own) replaceAll(own);
}

function keep() {
  if (isSnippet(editor.value)) kept.drop("draft");
  else kept.set("draft", editor.value);
  kept.set("customer", trial.elements.customer.value);
}

// --- Rendering while somebody types ----------------------------------------------------------------

const PAUSE = 300; // ms without a key before the message is rendered
const outcome = document.getElementById("outcome");
let typing = 0;
let asked = null;

function schedule() {
  kept.set("worked", "1");
  keep();
  clearTimeout(typing);
  typing = setTimeout(render, PAUSE);
}

async function render() {
  clearTimeout(typing);
  if (asked) asked.abort();
  const mine = (asked = new AbortController());
  const form = new URLSearchParams(new FormData(trial));
  form.set("part", "outcome");
  outcome.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(new URL("/setup", location.origin), {
      method: "POST",
      body: form,
      signal: mine.signal,
    });
    if (!(answer.headers.get("Content-Type") || "").startsWith("text/html")) {
      throw new Error(`HTTP ${answer.status}`);
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    show(page);
  } catch (error) {
    if (error.name === "AbortError") return;
    document.getElementById("summary").textContent =
      `Not rendered: ${error.name === "TypeError" ? "the bridge cannot be reached" : error.message}. Your text is kept in this tab.`;
    delete document.getElementById("result").dataset.rendered;
    delete document.getElementById("result").dataset.aborted;
    markRendered();
  } finally {
    if (asked === mine) outcome.removeAttribute("aria-busy");
  }
}

function lose(words) {
  const lost = document.getElementById("lost");
  lost.hidden = !words;
  lost.textContent = words;
}

function show(page) {
  const framed = document.getElementById("frames");
  const coming = page.getElementById("frames");
  // The frame in view stays until the next message is there.
  if (framed && coming) coming.replaceWith(framed.cloneNode(true));
  morph(document.getElementById("result"), page.getElementById("result"));
  const fields = document.getElementById("fields");
  const fresh = page.getElementById("fields");
  // While a tag is being written, or if a call fails, the customer's last fields stay.
  const keepsLast = fields.querySelector(".tree") && fresh.dataset.customer === fields.dataset.customer;
  if (fresh.querySelector(".tree") || !keepsLast) morph(fields, fresh);
  if (page.getElementById("asked")) ask(page.getElementById("asked"));
  document.getElementById("no-customer").hidden = Boolean(trial.elements.customer.value.trim());
  offer(outcome);
  frameMessage();
  chooseView();
  markCustomer();
  markRendered();
}

// --- Inputs for what the message uses ----------------------------------------------------------

const askedFor = document.getElementById("asked");

// Inputs appear and go with the message; what was typed into one comes back with it.
function ask(fresh) {
  const list = askedFor.querySelector(".inputs");
  const present = new Map([...list.children].map((label) => [label.dataset.input, label]));
  const wanted = [...fresh.querySelectorAll("[data-input]")];
  let isRestored = false;
  for (const label of wanted) {
    const name = label.dataset.input;
    if (present.has(name)) continue;
    const added = document.importNode(label, true);
    const typed = kept.get(name);
    if (typed) {
      added.querySelector("input, textarea").value = typed;
      isRestored = true;
    }
    list.append(added);
  }
  const names = new Set(wanted.map((label) => label.dataset.input));
  for (const [name, label] of present) if (!names.has(name)) label.remove();
  askedFor.hidden = !wanted.length;
  if (isRestored) schedule();
}

askedFor.addEventListener("input", (event) => {
  kept.set(event.target.name, event.target.value);
  schedule();
});

// --- The message in its frame ----------------------------------------------------------------------

const MOST = 200000; // characters that the service takes in one field
let frames = 0;

function frameMessage() {
  const form = document.getElementById("show");
  if (!form) return;
  form.hidden = true;
  const message = form.elements.message.value;
  const holder = document.getElementById("frames");
  if (holder.shown === message || message.length > MOST) return;
  holder.shown = message;
  for (const late of holder.querySelectorAll("[data-coming]")) late.remove();
  const old = holder.querySelector("iframe");
  // A new frame for every message: a form that is sent into an old one makes an entry in the
  // browser's history, and its page is white until the answer is there.
  const next = document.createElement("iframe");
  next.setAttribute("sandbox", "");
  next.title = "The message as an e-mail";
  next.name = `shown-${(frames += 1)}`;
  next.dataset.coming = "";
  holder.append(next);
  form.target = next.name;
  next.addEventListener("load", () => {
    delete next.dataset.coming;
    if (old && old !== next) old.remove();
  });
  form.submit();
}

const view = document.getElementById("view");
view.addEventListener("change", () => kept.set("view", view.querySelector(":checked").value));

// A webhook's body is no e-mail, an e-mail no source.
function chooseView() {
  const views = document.querySelector(".views");
  const now = view.querySelector(":checked").value;
  const wanted = views && views.dataset.kind === "source" ? "source" : kept.get("view") || "email";
  if (now !== wanted) view.querySelector(`[value="${wanted}"]`).checked = true;
}

// --- Fields, customers, places of faults -----------------------------------------------------------

let touched = false;
editor.addEventListener("focus", () => {
  touched = true;
});

// The outermost tag or output around a place in the text, if there is one.
function markupAt(at) {
  const open = [];
  let around = null;
  for (const { 0: mark, index } of editor.value.matchAll(/\$\{[^}]*\}|\{\{|\}\}|\{%|%\}/g)) {
    if (mark === "{{" || mark === "{%") open.push({ mark, start: index });
    const from = open.findLastIndex((one) => one.mark === { "}}": "{{", "%}": "{%" }[mark]);
    if (from < 0) continue;
    if (open[from].start < at && at < index + 2) around = { start: open[from].start, end: index + 2 };
    open.length = from;
  }
  const last = open.findLast((one) => one.start < at);
  // A tag that is still being written has no end.
  const isWritten = last && !/[{}%]{2}/.test(editor.value.slice(last.start + 2, at));
  return around || (isWritten ? { start: last.start, end: at } : null);
}

// Whether a field's bare path is what belongs at a place in markup: in a tag behind its name, or in
// an empty output. The address and the options of a call take none.
function takesPath(markup, at) {
  const before = editor.value.slice(markup.start, at);
  const after = editor.value.slice(at, markup.end);
  return /^\{%-?\s*(?!connected_content)\w+\s/.test(before) || (/^\{\{-?\s*$/.test(before) && /^\s*-?\}\}$/.test(after));
}

// A field of a list's item by the variable of the loop around the place: `offer.title`.
function inLoop(text, at) {
  const loops = [];
  for (const found of editor.value.slice(0, at).matchAll(/\{%-?\s*(?:for\s+([\w-]+)\s+in\s+[{\s]*([\w.[\]'"]+)[^%]*|(endfor)\s*-?)%\}/g)) {
    if (found[3]) loops.pop();
    else loops.push({ item: found[1], list: found[2] });
  }
  return loops.reduce((changed, { item, list }) => {
    const single = list.endsWith(".offers") ? [`${list.slice(0, -6)}first`, `${list.slice(0, -6)}next_to_expire`] : [];
    const prefixes = [`${list}[0]`, `${list}[1]`, `${list}[2]`, ...single];
    return prefixes.reduce((one, prefix) => one.replaceAll(`${prefix}.`, `${item}.`), changed);
  }, text);
}

// A push message shows HTML codes as they are, and JSON has escapes of its own.
function escapeOfMessage() {
  const views = document.querySelector(".views");
  if (views && views.dataset.kind === "source") return " | json_escape";
  return view.querySelector(":checked").value === "push" ? "" : " | escape";
}

function insert(text, path) {
  const { selectionStart, selectionEnd, value } = editor;
  const around = markupAt(selectionEnd) || markupAt(selectionStart);
  const isPath = touched && around && takesPath(around, selectionStart) && takesPath(around, selectionEnd);
  if (!touched) editor.setSelectionRange(value.length, value.length);
  else if (around && !isPath) editor.setSelectionRange(around.end, around.end);
  const start = editor.selectionStart;
  const fitting = inLoop(isPath ? path : text.replace(" | escape", escapeOfMessage()), start);
  const gap = fitting.indexOf("…");
  // Nothing is left there that a customer could get: the cursor stands where the author writes.
  type(fitting.replaceAll("…", ""));
  if (gap >= 0) editor.setSelectionRange(start + gap, start + gap);
  say(gap >= 0 ? "Inserted. Type the text for the place of the cursor" : "Inserted");
}

function insertFirst(text) {
  editor.setSelectionRange(0, 0);
  type(text);
}

function goTo(line, column) {
  const lines = editor.value.split("\n");
  const at = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0) + column - 1;
  editor.focus();
  editor.setSelectionRange(at, Math.min(at + 1, editor.value.length));
}

function markCustomer() {
  const typed = trial.elements.customer.value.trim();
  for (const one of document.querySelectorAll(".person")) {
    if (one.value.slice(one.value.indexOf(":") + 1) === typed) one.setAttribute("aria-current", "true");
    else one.removeAttribute("aria-current");
  }
}

document.addEventListener("click", (event) => {
  const on = (selector) => event.target.closest(selector);
  const found = on("[data-insert], [data-insert-first], [data-line], [data-snippet]");
  if (!found) return;
  if (found.dataset.insert) insert(found.dataset.insert, found.dataset.path);
  else if (found.dataset.insertFirst) insertFirst(found.dataset.insertFirst);
  else if (found.dataset.line) goTo(Number(found.dataset.line), Number(found.dataset.column));
  else {
    event.preventDefault();
    load(found.dataset.snippet);
    location.hash = "message";
  }
});

trial.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button && button.name === "load") {
    if (button.value === "aside") bringBack();
    else load(button.value);
  } else if (button && button.name === "pick") {
    trial.elements.customer.value = button.value.slice(button.value.indexOf(":") + 1);
    keep();
  }
  kept.set("worked", "1");
  render();
});
editor.addEventListener("input", schedule);
for (const field of trial.elements) {
  if (field === editor || askedFor.contains(field) || !field.matches("input:not([type=hidden]), select, textarea")) continue;
  // A half-typed ID would ask SessionM for a customer that does not exist.
  field.addEventListener(field.name === "customer" ? "change" : "input", schedule);
}

const kinds = document.querySelector(".choose");
kinds.querySelector("[data-kind-button]").hidden = true;
kinds.addEventListener("change", () => kinds.requestSubmit());

// --- Steps that turn green by themselves -----------------------------------------------------------

const EVERY = 2000; // ms
const plain = (text) => JSON.stringify(JSON.parse(text));
let known = plain(document.querySelector(".steps").dataset.known);
let watch = 0;

// The preview that the page makes by itself is not yet a person's work.
function markRendered() {
  const step = document.querySelector('#steps a[href="#message"]');
  const became = document.getElementById("result").dataset;
  const done = kept.get("worked") && "rendered" in became;
  step.parentElement.className = done ? "done" : "open";
  step.querySelector(".badge").textContent = done ? "✓" : "4";
  const failed = "aborted" in became ? "aborted: nothing would be sent" : "not rendered";
  const words = done ? "rendered" : kept.get("worked") ? failed : "not tried yet";
  step.querySelector(".what .dim").textContent = words;
}

async function look() {
  clearTimeout(watch);
  if (document.hidden) return;
  try {
    const signal = AbortSignal.timeout(10000);
    const answer = await fetch(new URL("/setup/progress", location.origin), { signal });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const now = plain(await answer.text());
    if (now !== known) await turn(JSON.parse(now), JSON.parse(known));
    known = now;
    if (!document.body.classList.contains("old")) lose("");
  } catch (error) {
    lose(`The bridge cannot be reached (${error.name === "TypeError" ? "no connection" : error.message}). This page keeps trying.`);
  }
  watch = setTimeout(look, EVERY);
}

async function turn(now, before) {
  const page = await fetchPage("/setup?part=progress", {});
  for (const id of ["steps", "webhook-state", "credential-state", "arrived", "message-state"]) {
    const part = document.getElementById(id);
    if (part) morph(part, page.getElementById(id));
  }
  markRendered();
  if (now.send && (!before.send || now.send.id !== before.send.id)) {
    say(now.send.state === "rejected" ? "A send arrived and was rejected" : "A send has arrived");
  } else if (now.steps.credential && !before.steps.credential) {
    say("The first Connected Content call has arrived");
  } else if (now.message && (!before.message || now.message.id !== before.message.id)) {
    say(now.message.state === "rejected" ? "A message arrived and was rejected" : "A message has arrived");
  }
}

// --- Begin -----------------------------------------------------------------------------------------

// A page that was answered to a form shows what was sent; a fresh one goes on where the tab was.
const draft = kept.get("draft");
if (!location.search.includes("snippet=") && draft !== null && isSnippet(editor.value)) editor.value = draft;
else if (draft !== null && draft !== editor.value) kept.set("aside", draft);
if (kept.get("customer")) trial.elements.customer.value = kept.get("customer");
if (asideNote.hidden) showAside();
else kept.set("aside", trial.elements.aside.value);
chooseView();
markRendered();
markCustomer();
if (document.getElementById("show")) frameMessage();
else render();
look();
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(watch) : look()));
