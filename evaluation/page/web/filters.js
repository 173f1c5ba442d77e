"use strict";
// Which rows the gallery shows, and in which order.

const filters = new Map(); // column name -> does a value pass
const chosen = new Set(); // elements that a structure must hold
let order = [];

function refresh() {
  const search = $("search").value.trim().toLowerCase();
  const key = $("sort").value, sign = $("direction").textContent === "▲" ? 1 : -1;
  order = DATA.rows.map((_, row) => row).filter((row) => passes(row, search));
  if (key) {
    order.sort((i, j) => {
      const a = valueOf(i, key), b = valueOf(j, key);
      if (a === null || b === null) return (a === null) - (b === null); // what has no value comes last either way
      return sign * compare(a, b) || i - j;
    });
  } else if (sign < 0) order.reverse();
  $("count").textContent = `${order.length.toLocaleString("en")} of ${DATA.rows.length.toLocaleString("en")}`;
  $("empty").hidden = order.length > 0;
  $("download-all").disabled = !order.some(drawable);
  showChips();
  leaveLive();
  $("cards").replaceChildren();
  addCards();
}

function passes(row, search) {
  for (const [name, test] of filters) if (!test(valueOf(row, name))) return false;
  if (chosen.size) {
    const there = String(valueOf(row, "elements") ?? "").split("-");
    for (const symbol of chosen) if (!there.includes(symbol)) return false;
  }
  return !search || DATA.rows[row].some((value) => value !== null && String(value).toLowerCase().includes(search));
}

function setFilter(name, test) {
  if (test) filters.set(name, test);
  else filters.delete(name);
  refresh();
}

function control(column) {
  const name = { "aria-label": column.label };
  if (column.kind === "number") {
    const values = DATA.rows.map((row) => row[column.index]).filter((value) => value !== null);
    const low = values.reduce((a, b) => Math.min(a, b), Infinity), high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const ends = [low, high].map((end, i) =>
      make("input", { type: "number", step: "any", placeholder: shown(values.length ? end : null), "aria-label": `${column.label}, ${i ? "most" : "least"}` }));
    const update = () => {
      const [from, to] = ends.map((end) => end.value);
      const test = (v) => v !== null && (from === "" || v >= +from) && (to === "" || v <= +to);
      setFilter(column.name, from === "" && to === "" ? null : test);
    };
    for (const end of ends) end.addEventListener("input", update);
    return make("div", { className: "pair" }, ...ends);
  }
  if (column.kind === "text") {
    const input = make("input", { type: "search", placeholder: "contains", ...name });
    input.addEventListener("input", () => {
      const part = input.value.toLowerCase();
      setFilter(column.name, part ? (v) => v !== null && v.toLowerCase().includes(part) : null);
    });
    return input;
  }
  const choices = column.kind === "flag" ? [true, false] : column.choices;
  const select = make("select", name, make("option", { value: "" }, "any"), make("option", { value: "none" }, "without a value"),
    ...choices.map((choice, i) => make("option", { value: String(i) }, shown(choice))));
  select.addEventListener("change", () => {
    const wanted = select.value === "none" ? null : choices[+select.value];
    setFilter(column.name, select.value === "" ? null : (v) => v === wanted);
  });
  return select;
}

function buildToolbar() {
  $("filters").replaceChildren(...columns.map((column) => make("label", {}, column.label, control(column))));
  $("sort").replaceChildren(make("option", { value: "" }, "order of the files"),
    ...columns.map((column) => make("option", { value: column.name }, column.label)));
  $("search").addEventListener("input", refresh);
  $("sort").addEventListener("change", refresh);
  $("direction").addEventListener("click", () => {
    $("direction").textContent = $("direction").textContent === "▲" ? "▼" : "▲";
    refresh();
  });
  $("toggle-filters").addEventListener("click", () => {
    $("filters").hidden = !$("filters").hidden;
    $("toggle-filters").setAttribute("aria-expanded", String(!$("filters").hidden));
  });
  $("reset").addEventListener("click", () => {
    filters.clear();
    chosen.clear();
    $("search").value = $("sort").value = "";
    $("direction").textContent = "▲";
    for (const field of $("filters").querySelectorAll("input, select")) field.value = "";
    refresh();
  });
  $("element-filter")?.addEventListener("click", (event) => {
    const symbol = event.target.closest(".element:not(.none)")?.dataset.element;
    if (symbol) toggleElement(symbol);
  });
}

function toggleElement(symbol) {
  if (!chosen.delete(symbol)) chosen.add(symbol);
  refresh();
}

function showChips() {
  $("chips").replaceChildren(...[...chosen].map((symbol) => {
    const chip = make("button", { type: "button", title: "remove this filter" }, `contains ${symbol} ✕`);
    chip.addEventListener("click", () => toggleElement(symbol));
    return chip;
  }));
  for (const element of document.querySelectorAll("#element-filter .element")) {
    element.classList.toggle("chosen", chosen.has(element.dataset.element));
  }
}
