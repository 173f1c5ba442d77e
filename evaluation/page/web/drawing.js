"use strict";
// A structure in a viewer of 3Dmol.js: atoms, bonds, the cell, and a view that it fills.

const SPHERE = 0.45, METAL = 0.6, STICK = 0.11; // of covalent radii: atoms, those of an alloy; ångström: bonds
const LEAST = 2.4; // ångström: radius that fills a picture, so that small molecules look small
const NEAR = 0.04, MOST_MOVED = 60; // of a cell: from its faces; atoms of a crystal whose origin is chosen
const REACH = 1.15; // of the sum of two covalent radii: nearer atoms are bonded

function cartesian(cell, [u, v, w]) {
  return [0, 1, 2].map((k) => u * cell[k] + v * cell[3 + k] + w * cell[6 + k]);
}

// Fractional coordinates from the origin, among its own and the atoms, that puts most atoms on faces, edges and corners:
// a generated crystal may lie anywhere in its cell, and is recognised when it lies as in a textbook.
function placed(points) {
  const from = (origin) => points.map((point) => point.map((x, k) => {
    const inside = (x - origin[k] + 1) % 1;
    return inside > 1 - NEAR ? inside - 1 : inside;
  }));
  const images = (moved) => moved.reduce((sum, point) => sum + 2 ** point.filter((x) => x < NEAR).length, 0);
  let best = from([0, 0, 0]);
  for (const origin of points.length > MOST_MOVED ? [] : points) {
    const moved = from(origin);
    if (images(moved) > images(best)) best = moved;
  }
  return best;
}

// Atoms of a structure with Cartesian coordinates; those on a face of the cells that are shown are there twice.
function atomsOf(structure, repeat) {
  const points = triples(structure.x);
  if (!structure.cell) return points.map((point, i) => ({ z: structure.z[i], point }));
  const atoms = [];
  placed(points).forEach((point, i) => {
    const along = point.map((x) => Array.from({ length: repeat + (x < NEAR ? 1 : 0) }, (_, k) => x + k));
    for (const u of along[0]) for (const v of along[1]) for (const w of along[2]) {
      atoms.push({ z: structure.z[i], point: cartesian(structure.cell, [u, v, w]) });
    }
  });
  return atoms;
}

// Pairs of atoms that are bonded, by distance and a grid of boxes; metals of a crystal are not bonded to each other.
function bondsOf(atoms, crystal) {
  const side = 2 * REACH * Math.max(...atoms.map(({ z }) => radiusOf(z))), boxes = new Map(), pairs = [];
  const steps = [-1, 0, 1];
  const bonded = (a, b) => {
    if (crystal && isMetal(a.z) && isMetal(b.z)) return false;
    const distance = Math.hypot(...a.point.map((x, k) => x - b.point[k]));
    return distance > 0.1 && distance < REACH * (radiusOf(a.z) + radiusOf(b.z));
  };
  atoms.forEach((atom, i) => {
    const at = atom.point.map((x) => Math.floor(x / side));
    for (const a of steps) for (const b of steps) for (const c of steps) {
      for (const j of boxes.get(`${at[0] + a},${at[1] + b},${at[2] + c}`) ?? []) if (bonded(atom, atoms[j])) pairs.push([j, i, 1]);
    }
    const key = at.join(",");
    if (!boxes.has(key)) boxes.set(key, []);
    boxes.get(key).push(i);
  });
  return pairs;
}

function draw(viewer, structure, repeat = 1) {
  viewer.removeAllModels();
  viewer.removeAllShapes();
  const crystal = Boolean(structure.cell), atoms = atomsOf(structure, repeat);
  const specs = atoms.map(({ z, point }) => ({ elem: symbolOf(z), x: point[0], y: point[1], z: point[2], bonds: [], bondOrder: [] }));
  for (const [i, j, kind] of structure.bonds ? triples(structure.bonds) : bondsOf(atoms, crystal)) {
    for (const [from, to] of [[i, j], [j, i]]) {
      specs[from].bonds.push(to);
      specs[from].bondOrder.push(Math.floor(kind)); // an aromatic bond is drawn as a single one
    }
  }
  const model = viewer.addModel();
  model.addAtoms(specs);
  const sphere = crystal && structure.z.every(isMetal) ? METAL : SPHERE;
  for (const z of new Set(structure.z)) {
    const [symbol, radius, color] = DATA.elements[z];
    model.setStyle({ elem: symbol }, { sphere: { radius: radius * sphere, color }, stick: { radius: STICK, color } });
  }
  const corners = crystal ? cornersOf(structure.cell, repeat) : [];
  const middle = centreOf(crystal ? corners : atoms.map(({ point }) => point));
  const from = (point) => Math.hypot(...point.map((x, k) => x - middle[k]));
  const reach = Math.max(LEAST, ...corners.map(from), ...atoms.map(({ z, point }) => from(point) + sphere * radiusOf(z)));
  if (crystal) drawCell(viewer, corners, reach);
  viewer.zoomTo();
  viewer.setView([...middle.map((x) => -x), viewer.getView()[3], ...structure.view]);
  fit(viewer, middle, reach);
  viewer.render();
}

// Zoom so that a sphere of that radius fills the view, however the structure is turned.
function fit(viewer, middle, reach) {
  const canvas = viewer.getCanvas(), end = middle.map((x, k) => x + (k === 0 ? 1 : 0));
  const [a, b, c] = [middle, end, middle].map(([x, y, z], i) => viewer.modelToScreen({ x, y: i === 2 ? y + 1 : y, z }));
  const d = viewer.modelToScreen({ x: middle[0], y: middle[1], z: middle[2] + 1 });
  const perAngstrom = Math.hypot(...[b, c, d].flatMap((p) => [p.x - a.x, p.y - a.y])) / Math.SQRT2;
  viewer.zoom((0.48 * Math.min(canvas.clientWidth, canvas.clientHeight)) / (perAngstrom * reach));
}

function centreOf(points) {
  return [0, 1, 2].map((k) => points.reduce((sum, point) => sum + point[k], 0) / points.length);
}

function cornersOf(cell, repeat) {
  return Array.from({ length: 8 }, (_, i) => cartesian(cell, [i & 1, (i >> 1) & 1, i >> 2].map((x) => x * repeat)));
}

function drawCell(viewer, corners, reach) {
  const color = getComputedStyle(document.body).getPropertyValue("--edge").trim();
  const vector = ([x, y, z]) => ({ x, y, z });
  corners.forEach((corner, i) => {
    for (const bit of [1, 2, 4]) {
      if (!(i & bit)) viewer.addCylinder({ start: vector(corner), end: vector(corners[i | bit]), radius: 0.006 * reach, color });
    }
  });
}

function makeViewer(box) {
  try {
    return $3Dmol.createViewer(box, { backgroundAlpha: 0, antialias: true, disableFog: true, orthographic: true });
  } catch {
    return null; // no WebGL: the cards say so
  }
}
