"use strict";
// The data of the page and what every part of its scripts uses. All text enters the page through textContent.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const symbolOf = (z) => DATA.elements[z][0], radiusOf = (z) => DATA.elements[z][1], isMetal = (z) => DATA.elements[z][3];
const drawable = (row) => typeof DATA.structures[row] === "object";

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const columns = DATA.columns.map((column, index) => ({ ...column, index, label: column.name.replaceAll("_", " ") }));
const named = Object.fromEntries(columns.map((column) => [column.name, column]));
const valueOf = (row, name) => (named[name] ? DATA.rows[row][named[name].index] : null);
const nameOf = (row) => String(valueOf(row, "id") ?? valueOf(row, "target") ?? `row ${row + 1}`);
const titleOf = (row) => String(valueOf(row, "formula") ?? valueOf(row, "target_formula") ?? nameOf(row));

function subtitleOf(row) {
  const id = valueOf(row, "id"), target = valueOf(row, "target");
  return target === null ? nameOf(row) : `${id ?? "nothing"} for ${target}`;
}

function shown(value) {
  if (value === null) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" && !Number.isInteger(value) ? String(+value.toPrecision(4)) : String(value);
}

function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
  return a - b;
}

function triples(flat) {
  return Array.from({ length: flat.length / 3 }, (_, i) => flat.slice(3 * i, 3 * i + 3));
}

function oneLine(text) {
  return text.replace(/\s+/g, " ");
}
