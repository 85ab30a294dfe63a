"use strict";
// What the pages can do more where scripts run: times in the reader's zone, copying, previews in
// place, and figures that renew themselves. Everything works without it, by links and forms.

const say = (words) => {
  document.getElementById("said").textContent = words;
};

// --- Times: the server writes UTC, the browser knows the zone ----------------------------------

const twoDigits = { hour: "2-digit", minute: "2-digit" };
const clock = new Intl.DateTimeFormat(undefined, { ...twoDigits, second: "2-digit" });
const short = new Intl.DateTimeFormat(undefined, twoDigits);
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (isNaN(at)) continue;
    const today = at.toDateString() === new Date().toDateString();
    time.textContent = today ? clock.format(at) : `${day.format(at)}, ${short.format(at)}`;
  }
  for (const label of root.querySelectorAll("[data-at]")) {
    const at = short.format(new Date(Number(label.dataset.at) * 1000));
    label.textContent = at + (label.dataset.rest || "");
  }
}

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
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
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
    const range = document.createRange();
    range.selectNodeContents(source);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  say(done ? "Copied to the clipboard" : "Selected. Press Control and C to copy");
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2500);
}

function offer(root) {
  for (const button of root.querySelectorAll("[data-copy][hidden]")) button.hidden = false;
}

// --- Forms answered in place -------------------------------------------------------------------

async function submit(form, button) {
  const target = document.getElementById(form.dataset.partial);
  const data = new FormData(form);
  if (button && button.name) data.append(button.name, button.value);
  const query = new URLSearchParams(data);
  const main = form.querySelector("[data-main]");
  target.setAttribute("aria-busy", "true");
  if (main) main.textContent = "Rendering…";
  try {
    const page =
      form.method === "get"
        ? await fetchPage(`/setup?${query}`, {})
        : await fetchPage("/setup", { method: "POST", body: query });
    const found = page.getElementById(target.id);
    morph(target, found);
    const area = form.querySelector("textarea");
    if (area && data.has("load")) area.value = found.querySelector("textarea").value;
    if (form.method === "get") history.replaceState(null, "", `?${query}#${form.id || "planner"}`);
    offer(target);
  } catch (error) {
    say("The bridge cannot be reached");
    const lost = document.getElementById("lost");
    lost.hidden = false;
    lost.textContent = `The bridge cannot be reached (${error.message}). Nothing was done.`;
  } finally {
    target.removeAttribute("aria-busy");
    if (main) main.textContent = "Render";
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});
document.addEventListener("submit", (event) => {
  if (!event.target.dataset.partial) return;
  event.preventDefault();
  submit(event.target, event.submitter);
});
document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-load]")) return;
  submit(event.target.form, event.target.form.querySelector("[data-loader]"));
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});

localise(document);
offer(document);
renew();
