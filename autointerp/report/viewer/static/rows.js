// The features table: only the rows in sight are in the page; the server sorts, filters and searches.
const CHUNK = 100; // rows that are fetched at a time
const BEYOND = 8; // rows above and below what is in sight
const TALLEST = 12_000_000; // pixels; browsers end an element a little later

export function startRows() {
  const table = document.getElementById("rows");
  if (table) new Rows(table).start();
}

class Rows {
  constructor(table) {
    this.table = table;
    this.body = table.tBodies[0];
    this.form = document.getElementById("query");
    this.count = document.getElementById("count");
    this.wrong = document.getElementById("wrong");
    this.chunks = new Map(); // number -> rows, or null while they are fetched
    this.shown = new Map(); // row number -> tr
    this.hidden = new Set(); // columns that have no room
    this.total = 0;
    this.asked = 0; // grows with each query, so that late answers are told
  }

  start() {
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.changed(); });
    this.form.addEventListener("input", (event) => this.soon(event.target.type === "search" || event.target.name === "where" ? 180 : 0));
    this.table.tHead.addEventListener("click", (event) => this.sortBy(event.target.closest("button")));
    document.querySelector(".columns").addEventListener("click", (event) => this.insert(event.target.closest("button")));
    this.body.addEventListener("click", (event) => this.open(event));
    addEventListener("scroll", () => this.scrolled(), { passive: true });
    addEventListener("resize", () => { this.layOut(); this.draw(); });
    addEventListener("keydown", (event) => this.step(event));
    addEventListener("popstate", () => { this.fromAddress(); this.load(true); });
    addEventListener("grown", () => this.load(true, true));
    history.scrollRestoration = "manual";
    this.load(true);
  }

  get words() {
    return new URLSearchParams([...new FormData(this.form)].map(([name, text]) => [name, text.trim()]).filter(([, text]) => text));
  }

  fromAddress() {
    const words = new URLSearchParams(location.search);
    for (const field of this.form.elements) {
      if (field.type === "checkbox") field.checked = words.get(field.name) === "1";
      else if (field.name) field.value = words.get(field.name) ?? "";
    }
  }

  soon(delay) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.changed(), delay);
  }

  changed() {
    clearTimeout(this.timer);
    const search = this.words.toString();
    if (search === location.search.slice(1)) return;
    history.replaceState({ y: 0 }, "", search ? `?${search}` : location.pathname);
    scrollTo(0, Math.min(scrollY, this.top));
    this.load();
  }

  sortBy(button) {
    if (!button) return;
    const field = this.form.elements.sort, { column } = button.dataset;
    const first = this.table.dataset.scorers !== "0" ? this.table.tHead.querySelectorAll("button")[2].dataset.column : "feature";
    const now = field.value || first;
    const next = now === column ? `-${column}` : column;
    if (![...field.options].some((option) => option.value === next)) field.add(new Option(next.replace(/^-/, "") + (next.startsWith("-") ? ", reversed" : ""), next));
    field.value = next;
    history.pushState({ y: 0 }, "", location.href); // Back undoes a sort
    this.changed();
  }

  insert(button) {
    if (!button) return;
    const field = this.form.elements.where;
    if (button.dataset.where) field.value = field.value.trim() ? `(${field.value.trim()}) and ${button.dataset.where}` : button.dataset.where;
    else field.value = `${field.value.trim() ? `${field.value.trim()} and ` : ""}${/^[A-Za-z_]\w*$/.test(button.dataset.name) ? button.dataset.name : `\`${button.dataset.name}\``} `;
    field.focus();
    if (button.dataset.where) this.changed();
  }

  open(event) {
    const row = event.target.closest("tr");
    if (!row || event.target.closest("a") || String(getSelection())) return;
    row.querySelector("a")?.click();
  }

  // --- what is fetched

  async load(restore = false, quiet = false) {
    const asked = ++this.asked;
    this.chunks.clear();
    this.mark();
    if (!quiet) this.table.setAttribute("aria-busy", "true");
    const y = restore ? (quiet ? scrollY : history.state?.y ?? 0) : null;
    const start = y ? this.numberAt(y) : 0;
    const answer = await this.fetch(Math.floor(start / CHUNK), asked);
    if (!answer || asked !== this.asked) return;
    this.body.replaceChildren();
    this.shown.clear();
    this.setTotal(answer);
    if (y !== null && y !== scrollY) scrollTo(0, y);
    this.draw();
    this.table.removeAttribute("aria-busy");
    if (answer.scanned < 1) setTimeout(() => asked === this.asked && this.searchOn(asked), 30);
  }

  async searchOn(asked) {
    this.chunks.clear();
    const answer = await this.fetch(Math.floor(this.first / CHUNK), asked);
    if (!answer || asked !== this.asked) return;
    for (const row of this.shown.values()) row.remove();
    this.shown.clear();
    this.setTotal(answer);
    this.draw();
    if (answer.scanned < 1) setTimeout(() => asked === this.asked && this.searchOn(asked), 30);
  }

  async fetch(number, asked) {
    this.chunks.set(number, null);
    const words = this.words;
    words.set("start", number * CHUNK);
    words.set("count", CHUNK);
    let answer;
    try {
      const response = await fetch(`${this.table.dataset.rows}?${words}`, { headers: { accept: "application/json" } });
      answer = await response.json();
      if (answer.error) throw new Error(answer.error);
    } catch (error) {
      if (asked === this.asked) this.say(error.message);
      return null;
    }
    if (asked !== this.asked) return null;
    this.say("");
    const template = document.createElement("template");
    template.innerHTML = `<table><tbody>${answer.rows}</tbody></table>`;
    this.chunks.set(number, [...template.content.querySelectorAll("tr")]);
    while (this.chunks.size > 12) this.chunks.delete(this.chunks.keys().next().value);
    return answer;
  }

  say(problem) {
    this.wrong.hidden = !problem;
    this.wrong.textContent = problem;
    this.form.elements.where.setAttribute("aria-invalid", String(Boolean(problem)));
  }

  setTotal({ total, of, scanned }) {
    this.total = total;
    const all = total === of ? `${of.toLocaleString("en")} features` : `${total.toLocaleString("en")} of ${of.toLocaleString("en")} features`;
    this.count.textContent = scanned < 1 ? `${all}, ${Math.floor(100 * scanned)} % of the contexts searched` : all;
    this.table.setAttribute("aria-rowcount", total + 1);
    this.layOut();
    this.body.style.height = `${Math.min(total * this.height, TALLEST)}px`;
  }

  extra() {
    return [...this.chunks.values()].some((rows) => rows?.[0]?.querySelector(".extra"));
  }

  // Where not all columns have room, controls go first, then what is counted, then the last scorers.
  layOut() {
    const scorers = Number(this.table.dataset.scorers);
    const widths = ["84px", "minmax(220px, 1fr)", ...Array(scorers).fill(["150px", "74px"]).flat(), "86px", "84px", "118px", "80px"];
    if (this.extra()) widths.push("96px");
    const end = 2 + 2 * scorers, goes = [];
    for (let i = scorers - 1; i >= 0; i -= 1) goes.push(3 + 2 * i);
    goes.push(end, end + 1, end + 2);
    for (let i = scorers - 1; i > 0; i -= 1) goes.push(2 + 2 * i);
    let room = this.table.clientWidth - widths.reduce((sum, width) => sum + (parseFloat(width) || 220), 0);
    this.hidden = new Set();
    while (room < 0 && goes.length && innerWidth > 820) {
      const column = goes.shift();
      this.hidden.add(column);
      room += parseFloat(widths[column]);
    }
    this.table.style.setProperty("--columns", widths.filter((_, column) => !this.hidden.has(column)).join(" "));
    for (const row of [this.table.tHead.rows[0], ...this.shown.values()]) this.hide(row);
  }

  hide(row) {
    [...row.cells].forEach((cell, column) => { cell.hidden = this.hidden.has(column); });
  }

  // --- what is in sight

  get height() { return parseFloat(getComputedStyle(this.table).getPropertyValue("--row")); }
  get top() { return this.body.getBoundingClientRect().top + scrollY - this.table.tHead.offsetHeight; }
  get scale() { return Math.max(1, (this.total * this.height) / TALLEST); } // rows go by faster where not all fit
  get first() { return this.numberAt(scrollY); }
  numberAt(y) { return Math.max(0, Math.floor(((y - this.top) * this.scale) / this.height)); }

  scrolled() {
    this.draw();
    clearTimeout(this.keeping);
    this.keeping = setTimeout(() => history.replaceState({ ...history.state, y: scrollY }, ""), 200);
  }

  draw() {
    const { height, scale, first } = this;
    const many = Math.ceil(innerHeight / height);
    const from = Math.max(0, first - BEYOND), to = Math.min(this.total, first + many + BEYOND);
    for (const [number, row] of this.shown) {
      if ((number < from || number >= to) && !row.contains(document.activeElement)) { row.remove(); this.shown.delete(number); }
    }
    const anchor = (first * height) / scale - first * height;
    for (let number = from; number < to; number += 1) {
      let row = this.shown.get(number);
      if (!row) {
        const chunk = this.chunks.get(Math.floor(number / CHUNK));
        if (!chunk) { this.need(Math.floor(number / CHUNK)); continue; }
        row = chunk[number % CHUNK];
        if (!row) continue;
        this.named(row, number);
        this.shown.set(number, row);
        this.body.insertBefore(row, this.after(number));
      }
      row.style.top = `${number * height + (scale > 1 ? anchor : 0)}px`;
    }
  }

  after(number) {
    for (let next = number + 1; next < number + 3 * BEYOND; next += 1) if (this.shown.get(next)?.isConnected) return this.shown.get(next);
    return null;
  }

  named(row, number) {
    row.setAttribute("role", "row");
    row.setAttribute("aria-rowindex", number + 2);
    row.dataset.number = number;
    for (const cell of row.cells) cell.setAttribute("role", "cell");
    this.hide(row);
  }

  async need(number) {
    if (this.chunks.has(number)) return;
    const { asked } = this;
    if (await this.fetch(number, asked)) this.draw();
    else if (asked === this.asked) this.chunks.delete(number);
  }

  mark() {
    const sort = this.form.elements.sort.value;
    const heads = [...this.table.tHead.querySelectorAll("button")];
    const column = sort.replace(/^-/, "") || (this.table.dataset.scorers !== "0" ? heads[2].dataset.column : "feature");
    for (const head of heads) {
      const cell = head.closest("th");
      cell.setAttribute("role", "columnheader");
      if (head.dataset.column !== column) { cell.removeAttribute("aria-sort"); continue; }
      const up = ("up" in head.dataset) !== sort.startsWith("-");
      cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    }
  }

  step(event) {
    const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (!by || event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const now = document.activeElement.closest?.("#rows tbody tr");
    const number = now ? Number(now.dataset.number) + by : this.first;
    const row = this.shown.get(number);
    if (!row) return;
    event.preventDefault();
    row.querySelector("a").focus({ preventScroll: true });
    const box = row.getBoundingClientRect(), ceiling = this.table.tHead.getBoundingClientRect().bottom;
    if (box.top < ceiling) scrollBy(0, box.top - ceiling);
    else if (box.bottom > innerHeight) scrollBy(0, box.bottom - innerHeight);
  }
}
