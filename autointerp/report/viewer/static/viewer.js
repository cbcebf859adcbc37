// What every page does: parts that are fetched later, how far the run is, keys, forms. Markup comes escaped from the
// server; what a person types goes there and is never put into the page from here.
import { startRows } from "./rows.js";
import { startLabel } from "./label.js";
import { startTry } from "./try.js";

const home = document.body.dataset.home;

async function fillParts() {
  const parts = [...document.querySelectorAll("[data-part]")];
  await Promise.all(parts.map(async (part) => {
    part.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(part.dataset.part, { headers: { accept: "application/json" } });
      if (!answer.ok) throw new Error((await answer.json()).error);
      part.innerHTML = await answer.text();
    } catch (error) {
      part.textContent = `not read: ${error.message}`;
    }
    part.removeAttribute("aria-busy");
  }));
}

let mark = null;

async function lookAtRun() {
  const live = document.getElementById("live");
  let pause = 20_000;
  try {
    const { line, mark: now } = await (await fetch(`${home}/standing`)).json();
    live.hidden = line === null;
    if (live.textContent !== (line ?? "")) live.textContent = line ?? "";
    if (mark !== null && now !== mark) dispatchEvent(new CustomEvent("grown"));
    mark = now;
    if (line !== null) pause = 4_000;
  } catch {
    live.hidden = false;
    live.textContent = "the viewer does not answer: start it again with autointerp view";
  }
  setTimeout(() => (document.hidden ? addEventListener("visibilitychange", lookAtRun, { once: true }) : lookAtRun()), pause);
}

// A page that holds nothing that someone typed is read again when the run's tables have grown.
addEventListener("grown", async () => {
  if (!["overview", "compare"].includes(document.body.dataset.page)) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const open = [...document.querySelectorAll("main details[open]")].length;
  document.querySelector("main").replaceChildren(...page.querySelector("main").childNodes);
  if (open) document.querySelectorAll("main details").forEach((each) => { each.open = true; });
  fillParts();
});

const typing = (target) => target.closest("input, textarea, select, [contenteditable]");
let leader = 0;

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const help = document.getElementById("help");
  if (help.open) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.timeStamp - leader < 1200) {
    leader = 0;
    const link = document.querySelector(`nav a[data-key="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); link.click(); return; }
  }
  const click = (id) => document.getElementById(id)?.click();
  const actions = {
    "?": () => help.showModal(),
    "/": () => { const field = document.getElementById("search"); if (field) field.focus(); else location.href = `${home}/features`; },
    g: () => { leader = event.timeStamp; },
    n: () => click("next"),
    p: () => click("previous"),
    u: () => click("up"),
    l: () => document.querySelector("#label input")?.focus(),
  };
  if (actions[event.key]) {
    event.preventDefault();
    actions[event.key]();
  }
}

addEventListener("keydown", onKey);
document.getElementById("keys").addEventListener("click", () => document.getElementById("help").showModal());
document.querySelector("main").addEventListener("change", (event) => {
  const form = event.target.closest("form[data-submit-on-change]");
  if (!form) return;
  const words = new URLSearchParams([...new FormData(form)].filter(([, text]) => text));
  location.search = words.toString();
});

fillParts();
startRows();
startLabel();
startTry();
setTimeout(lookAtRun, 1_000);
