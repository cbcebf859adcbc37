"use strict";
// Sorts and filters the table, and opens a feature's details below its row. It runs before the details are parsed, which
// stand after it and are most of the page.
const body = document.querySelector("#table tbody");
const rows = [...body.querySelectorAll("tr[id]")];
const heads = [...document.querySelectorAll("#table th button")];
const search = document.getElementById("search");
const status = document.getElementById("status");
const label = document.getElementById("label");
const count = document.getElementById("count");

const detailOf = (row) => row.classList.contains("open") ? row.nextElementSibling : null;

function open(row) {
  const template = document.getElementById("t" + row.id.slice(1));
  if (!template || detailOf(row)) return;
  const detail = document.createElement("tr");
  const cell = detail.insertCell();
  cell.colSpan = row.cells.length;
  cell.append(template.content.cloneNode(true));
  row.after(detail);
  row.classList.add("open");
}

function close(row) {
  detailOf(row)?.remove();
  row.classList.remove("open");
}

function value(row, column, kind) {
  const cell = row.cells[column];
  if (kind === "t") return cell.textContent.trim().toLowerCase() || null;
  return cell.dataset.v === "" ? null : Number(cell.dataset.v);
}

function sort(column, kind, up) {
  heads.forEach((head, i) => i === column
    ? head.parentElement.setAttribute("aria-sort", up ? "ascending" : "descending")
    : head.parentElement.removeAttribute("aria-sort"));
  const keyed = rows.map((row) => [value(row, column, kind), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // nothing comes last, either way
    return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
  });
  for (const [, row] of keyed) {
    const detail = detailOf(row);
    body.append(row);
    if (detail) body.append(detail);
  }
}

// A feature's windows in one text, read from its details when someone first searches.
const texts = new Map();
function contexts(row) {
  if (!texts.has(row)) {
    const template = document.getElementById("t" + row.id.slice(1));
    if (!template && document.readyState === "loading") return ""; // not there yet: filtered again when it is
    texts.set(row, [...template?.content.querySelectorAll(".win .text") ?? []].map((text) => text.textContent).join("\n").toLowerCase());
  }
  return texts.get(row);
}

function filter() {
  const words = search.value.trim().toLowerCase();
  let shown = 0;
  for (const row of rows) {
    const fits = (!status.value || row.dataset.status === status.value)
      && (!label || !label.value || row.dataset.label === label.value)
      && (!words || row.id.slice(1) === words || row.cells[1].textContent.toLowerCase().includes(words)
        || contexts(row).includes(words));
    row.hidden = !fits;
    const detail = detailOf(row);
    if (detail) detail.hidden = !fits;
    shown += fits;
  }
  count.textContent = shown === rows.length ? `${shown} features` : `${shown} of ${rows.length} features`;
}

function follow() {
  const row = rows.find((candidate) => "#" + candidate.id === location.hash);
  if (!row) return;
  if (row.hidden) {
    document.getElementById("filters").reset();
    filter();
  }
  open(row);
  row.scrollIntoView({ block: "start" });
}

heads.forEach((head, column) => head.addEventListener("click", () => {
  const now = head.parentElement.getAttribute("aria-sort");
  const up = now ? now === "descending" : "up" in head.dataset;
  sort(column, head.dataset.kind, up);
}));
body.addEventListener("click", (event) => {
  const row = event.target.closest("tr[id]");
  if (!row || String(getSelection())) return;
  const anchor = event.target.closest("a");
  if (anchor && !anchor.closest("tr[id]")) return;
  event.preventDefault();
  if (detailOf(row)) {
    close(row);
  } else {
    open(row);
    history.replaceState(null, "", "#" + row.id);
  }
});
for (const control of [search, status, label]) control?.addEventListener("input", filter);
document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", follow);
filter();
addEventListener("DOMContentLoaded", () => {
  if (search.value) filter();
  follow();
});
