"use strict";
// What the pages can do more where scripts run: times in the reader's zone, copying, previews in
// place, and figures that renew themselves. Everything works without it, by links and forms.

const say = (words) => {
  document.getElementById("said").textContent = words;
};

// --- Times: the server writes UTC, the browser knows the zone ----------------------------------

const twoDigits = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const clock = new Intl.DateTimeFormat(undefined, { ...twoDigits, second: "2-digit" });
const short = new Intl.DateTimeFormat(undefined, twoDigits);
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const zone =
  new Intl.DateTimeFormat(undefined, { timeZoneName: "short" }).formatToParts(new Date()).find((part) => part.type === "timeZoneName").value;

// One way to write a moment: the time of today, else the day with it.
function moment(at, format = clock, dated = false) {
  const today = at.toDateString() === new Date().toDateString();
  if (dated) return `${day.format(at)}, ${format.format(at)}`;
  return today ? format.format(at) : `${day.format(at)}, ${short.format(at)}`;
}

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    const format = "minute" in time.dataset ? short : clock;
    if (!isNaN(at)) time.textContent = moment(at, format, "dated" in time.dataset);
  }
  for (const label of root.querySelectorAll("[data-at]")) {
    label.textContent = short.format(new Date(Number(label.dataset.at) * 1000));
  }
  for (const label of root.querySelectorAll("[data-day]")) {
    label.textContent = day.format(new Date(Number(label.dataset.day) * 1000));
  }
  for (const named of root.querySelectorAll(".zone")) named.textContent = `Times are ${zone}.`;
}

// --- Plots: what all series say at one moment, by mouse, touch and keyboard ---------------------

const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });

function showTip(canvas, place) {
  const columns = canvas.querySelectorAll(".column");
  if (!columns.length) return;
  place = Math.max(0, Math.min(columns.length - 1, place));
  const column = columns[place];
  canvas.querySelectorAll(".column.on").forEach((one) => one.classList.remove("on"));
  column.classList.add("on");
  canvas.dataset.place = place;
  const lines = column.dataset.said.split("\n").map((line) => line.split("\t"));
  const at = new Date(Number(column.dataset.moment) * 1000);
  const heading = Object.assign(document.createElement("strong"), { textContent: moment(at, short) });
  const rows = lines.map(([look, name, value]) => {
    const row = document.createElement("span");
    const key = canvas.closest("figure").querySelector(`.legend .${look}`)?.parentElement.cloneNode(true);
    const figure = Object.assign(document.createElement("b"), { textContent: value });
    row.append(key || "", `${name} `, figure);
    return row;
  });
  tip.replaceChildren(heading, ...rows);
  document.body.append(tip);
  tip.hidden = false;
  const box = column.getBoundingClientRect();
  const isRoomRight = box.right + tip.offsetWidth + 12 <= innerWidth;
  const left = isRoomRight ? box.right + 8 : Math.max(4, box.left - tip.offsetWidth - 8);
  tip.style.left = `${left + scrollX}px`;
  tip.style.top = `${box.top + scrollY}px`;
  return `${heading.textContent}: ${lines.map(([, name, value]) => `${name} ${value}`.trim()).join(", ")}`;
}

function hideTip() {
  tip.hidden = true;
  document.querySelectorAll(".column.on").forEach((one) => one.classList.remove("on"));
}

function placeOf(canvas, x) {
  const box = canvas.getBoundingClientRect();
  return Math.floor(((x - box.left) / box.width) * canvas.querySelectorAll(".column").length);
}

document.addEventListener("pointermove", (event) => {
  const canvas = event.target.closest("[data-plot]");
  if (canvas) showTip(canvas, placeOf(canvas, event.clientX));
  else if (event.pointerType === "mouse" && !document.activeElement.closest("[data-plot]")) hideTip();
});
document.addEventListener("pointerdown", (event) => {
  const canvas = event.target.closest("[data-plot]");
  if (canvas) showTip(canvas, placeOf(canvas, event.clientX));
  else hideTip();
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches("[data-plot]") && event.target.matches(":focus-visible")) {
    say(showTip(event.target, Infinity));
  }
});
document.addEventListener("focusout", (event) => {
  if (event.target.matches("[data-plot]")) hideTip();
});
document.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
  if (event.key === "Escape") hideTip();
  if (!event.target.matches("[data-plot]") || !(event.key in steps)) return;
  event.preventDefault();
  say(showTip(event.target, Number(event.target.dataset.place || 0) + steps[event.key]));
});

// --- Renewing in place: only what differs is touched, so focus, selection and scroll stay -------

function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh.cloneNode(true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // Whether a reader has opened something, or may copy it, is for the page to say.
    if (!fresh.hasAttribute(name) && name !== "open" && name !== "data-place") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && name !== "hidden") old.setAttribute(name, value);
  }
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((child, place) => {
    if (before[place]) morph(before[place], child);
    else old.append(child.cloneNode(true));
  });
  before.slice(after.length).forEach((child) => child.remove());
}

async function fetchPage(path, options) {
  // By the origin: a page that was opened by an address with a key in it may not fetch otherwise.
  const answer = await fetch(new URL(path, location.origin), { cache: "no-store", ...options });
  const type = answer.headers.get("Content-Type") || "";
  if (!type.startsWith("text/html")) throw new Error(`HTTP ${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  localise(page);
  return page;
}

function renew() {
  const live = () => document.querySelectorAll("[data-live]");
  const every = () => {
    const times = [...live()].map((part) => Number(part.dataset.every)).filter(Boolean);
    return times.length ? Math.min(...times) * 1000 : 0;
  };
  const lost = document.getElementById("lost");
  const fresh = document.getElementById("fresh");
  let timer = 0;
  let since = null;
  let seen = new Date();

  async function look() {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const page = await fetchPage(location.pathname + location.search, {
        signal: AbortSignal.timeout(10000),
      });
      for (const part of live()) {
        const found = page.getElementById(part.id);
        if (found) morph(part, found);
      }
      offer(document);
      seen = new Date();
      since = null;
      lost.hidden = true;
      lost.textContent = "";
      document.body.classList.remove("old");
      fresh.textContent = `As of ${clock.format(seen)}`;
    } catch (error) {
      if (!since) {
        since = seen;
        lost.hidden = false;
        lost.textContent =
          `The bridge cannot be reached (${error.name === "TypeError" ? "no connection" : error.message}). ` +
          `What you see is from ${clock.format(since)}; this page keeps trying.`;
        document.body.classList.add("old");
      }
    }
    const next = every() || (since ? 5000 : 0);
    if (next) timer = setTimeout(look, next);
  }

  if (!every()) return;
  fresh.textContent = `As of ${clock.format(seen)}`;
  timer = setTimeout(look, every());
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
}

// --- Copying -----------------------------------------------------------------------------------

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const text = source.value === undefined ? source.textContent : source.value;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // On plain HTTP, or without leave, there is no clipboard: select it, and try the old way.
    if (source.select) {
      source.select();
    } else {
      getSelection().selectAllChildren(source);
    }
    done = document.execCommand("copy");
  }
  const [missing] = text.match(/YOUR-[A-Z]+-SECRET/) || [];
  const note = document.createElement("p");
  note.className = "hint";
  note.textContent = missing ? `${done ? "Copied. " : ""}Replace ${missing} by the secret.` : "";
  if (missing) button.parentElement.append(note);
  button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  say(note.textContent || (done ? "Copied to the clipboard" : "Selected. Press Control and C to copy"));
  setTimeout(() => {
    button.textContent = "Copy";
    note.remove();
  }, 2500);
}

async function copyId(button) {
  const text = button.dataset.value;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.classList.add("copied");
  say("Copied to the clipboard");
  setTimeout(() => button.classList.remove("copied"), 1500);
}

function offer(root) {
  for (const button of root.querySelectorAll("[data-copy][hidden]")) button.hidden = false;
}

// --- Forms answered in place -------------------------------------------------------------------

let submitted = null;

async function submit(form) {
  if (submitted) submitted.abort();
  const mine = (submitted = new AbortController());
  const target = document.getElementById(form.dataset.partial);
  const query = new URLSearchParams(new FormData(form));
  target.setAttribute("aria-busy", "true");
  try {
    const page = await fetchPage(`/setup?${query}`, { signal: mine.signal });
    morph(target, page.getElementById(target.id));
    history.replaceState(null, "", `?${query}#planner`);
    offer(target);
  } catch (error) {
    if (error.name === "AbortError") return;
    say("The bridge cannot be reached");
    const lost = document.getElementById("lost");
    lost.hidden = false;
    lost.textContent = `The bridge cannot be reached (${error.message}). Nothing was done.`;
  } finally {
    if (submitted === mine) target.removeAttribute("aria-busy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
  const id = event.target.closest(".short");
  if (id) copyId(id);
});
document.addEventListener("submit", (event) => {
  if (!event.target.dataset.partial) return;
  event.preventDefault();
  submit(event.target);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});

// --- Finding an operation by its words ---------------------------------------------------------

const find = document.getElementById("find");
if (find) {
  const clear = document.getElementById("clear");
  find.closest("[role=search]").hidden = false;
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/);
    let number = 0;
    for (const section of document.querySelectorAll("[data-findable]")) {
      const uses = [...section.querySelectorAll(".use")];
      for (const use of uses) {
        const text = use.textContent.toLowerCase();
        use.hidden = !words.every((word) => text.includes(word));
      }
      const shown = uses.filter((use) => !use.hidden).length;
      section.hidden = !shown;
      number += shown;
    }
    document.getElementById("found").textContent = find.value.trim() ? (number ? `${number} found` : "Nothing matches") : "";
    clear.hidden = Boolean(number);
  });
  clear.addEventListener("click", () => {
    find.value = "";
    find.dispatchEvent(new Event("input"));
    find.focus();
  });
}

// --- The bridge's state, in the head of the pages that are about something else -----------------

const STATES = { ok: ["good", "✓ Healthy"], degraded: ["warn", "! Degraded"], down: ["bad", "✕ Down"] };

async function showState(place) {
  try {
    const answer = await fetch(new URL("/health", location.origin), { cache: "no-store" });
    const [look, words] = STATES[(await answer.json()).status];
    place.className = `dot ${look}`;
    place.textContent = words;
    place.hidden = false;
  } catch {
    place.hidden = true;
  }
}

const state = document.getElementById("state");
if (state) {
  showState(state);
  setInterval(() => document.hidden || showState(state), 30000);
}

localise(document);
offer(document);
renew();
