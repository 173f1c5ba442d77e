"use strict";
// Cards that are drawn when they come into sight, the viewer under the mouse, and one structure large.

const BATCH = 48; // cards that are added at a time
const TURN = 0.7; // degrees that a structure turns when the mouse moves by a pixel

const studio = make("div", { style: "position:absolute;left:-9999px;top:0;width:240px;height:186px" });
const live = make("div", { id: "live" });
let photographer = null, actor = null, onStage = null;
const waiting = new Set(); // cards in sight that have no picture yet
const inSight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) waiting.add(target);
    else waiting.delete(target);
  }
  requestAnimationFrame(takePictures);
}, { rootMargin: "200px" });

function takePictures() {
  const until = performance.now() + 12; // leave the rest of the frame to the browser
  for (const picture of waiting) {
    waiting.delete(picture);
    inSight.unobserve(picture);
    takePicture(picture);
    if (performance.now() > until) break;
  }
  if (waiting.size) requestAnimationFrame(takePictures);
}

const pictures = new Map(); // row -> URL of its picture

function takePicture(picture) {
  const row = +picture.dataset.row;
  if (pictures.has(row)) return showPicture(picture, pictures.get(row));
  photographer ??= makeViewer(studio);
  if (!photographer) return void (picture.textContent = "no WebGL in this browser");
  draw(photographer, DATA.structures[row]);
  photographer.getCanvas().toBlob((blob) => {
    pictures.set(row, URL.createObjectURL(blob));
    showPicture(picture, pictures.get(row));
  });
}

function showPicture(picture, src) {
  picture.prepend(make("img", { src, alt: "" }));
}

function enterLive(picture) {
  if ($("detail").open || !photographer) return;
  leaveLive();
  onStage = picture;
  picture.append(live);
  actor ??= makeViewer(live);
  actor.resize();
  draw(actor, DATA.structures[+picture.dataset.row]);
  picture.classList.add("live");
}

function turn({ movementX, movementY }) {
  const angle = (pixels) => TURN * Math.max(-20, Math.min(20, pixels)); // the mouse may come from far away
  actor.rotate(angle(movementX), "vy");
  actor.rotate(angle(movementY), "vx");
}

function leaveLive() {
  onStage?.classList.remove("live");
  onStage = null;
  live.remove();
}

function card(row) {
  const structure = DATA.structures[row];
  const picture = make("div", { className: "picture" });
  picture.dataset.row = row;
  const facts = columns.filter((column) => column.card || column.name === $("sort").value);
  const flags = columns.filter((column) => column.kind === "flag" && valueOf(row, column.name) !== null);
  const node = make("article", { className: "card", tabIndex: 0, ariaLabel: `${titleOf(row)}, ${nameOf(row)}` }, picture,
    make("div", { className: "words" }, make("h3", {}, ...subscripts(titleOf(row))),
      make("p", { className: "id", title: subtitleOf(row) }, subtitleOf(row)),
      make("dl", {}, ...facts.map(({ name, label }) => make("div", {}, make("dt", {}, label), make("dd", {}, shown(valueOf(row, name)))))),
      make("div", { className: "flags" }, ...flags.map(({ name, label }) => make("span", { className: valueOf(row, name) ? "yes" : "no" }, label)))));
  node.dataset.row = row;
  if (drawable(row)) {
    inSight.observe(picture);
    picture.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && enterLive(picture));
    picture.addEventListener("pointerleave", leaveLive);
    picture.addEventListener("pointermove", (event) => onStage === picture && !event.buttons && turn(event));
    picture.addEventListener("wheel", (event) => event.stopPropagation(), { capture: true, passive: true }); // the page scrolls
  } else picture.textContent = structure;
  let pressed = null;
  node.addEventListener("pointerdown", (event) => (pressed = [event.clientX, event.clientY]), { capture: true });
  node.addEventListener("click", (event) => {
    const turned = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) > 4;
    if (!turned) openDetail(row);
  }, { capture: true });
  node.addEventListener("keydown", (event) => event.key === "Enter" && openDetail(row));
  return node;
}

function subscripts(formula) {
  return formula.split(/(?<=[A-Za-z)])(\d+)/).map((part, i) => (i % 2 ? make("sub", {}, part) : part));
}

function addCards() {
  const from = $("cards").childElementCount;
  $("cards").append(...order.slice(from, from + BATCH).map(card));
}

new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && addCards(), { rootMargin: "600px" }).observe($("more"));

// ---- one structure large

let large = null, current = 0;

function openDetail(row) {
  current = row;
  leaveLive();
  if (!$("detail").open) $("detail").showModal();
  $("detail-title").replaceChildren(...subscripts(titleOf(row)));
  $("detail-rows").replaceChildren(...columns.map(({ name, label }) => make("tr", {}, make("th", {}, label), make("td", {}, shown(valueOf(row, name))))));
  const at = order.indexOf(row);
  $("previous").disabled = at <= 0;
  $("next").disabled = at >= order.length - 1;
  const formats = drawable(row) ? Object.keys(FORMATS).filter((format) => FORMATS[format].fits(DATA.structures[row])) : [];
  $("downloads").replaceChildren(...formats.map((format) => {
    const button = make("button", { type: "button" }, format.toUpperCase());
    button.title = `download as ${format}`;
    button.addEventListener("click", () => download([row], format));
    return button;
  }));
  drawLarge();
}

function drawLarge() {
  const structure = DATA.structures[current];
  $("stage").hidden = $("atom-legend").hidden = !drawable(current);
  $("repeat-label").hidden = !structure.cell;
  if (!drawable(current)) return;
  large ??= makeViewer($("stage"));
  large?.resize();
  if (large) draw(large, structure, $("repeat").checked ? 2 : 1);
  $("atom-legend").replaceChildren(...[...new Set(structure.z)].map((z) => make("span", {}, make("i", { style: `background:${DATA.elements[z][2]}` }), symbolOf(z))));
}

function step(by) {
  const next = order[order.indexOf(current) + by];
  if (next !== undefined) openDetail(next);
}

$("close").addEventListener("click", () => $("detail").close());
$("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close());
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("repeat").addEventListener("change", drawLarge);
$("detail").addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") step(1);
  if (event.key === "ArrowLeft") step(-1);
});

document.body.append(studio);
buildToolbar();
refresh();
