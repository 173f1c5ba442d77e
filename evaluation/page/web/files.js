"use strict";
// Structures as files: CIF of crystals; XYZ, and SDF where bonds are known, of molecules.

const FORMATS = {
  cif: { fits: (structure) => Boolean(structure.cell), text: cif },
  sdf: { fits: (structure) => !structure.cell && Boolean(structure.bonds), text: sdf },
  xyz: { fits: (structure) => !structure.cell, text: xyz },
};

function download(rows, format) {
  const one = rows.length === 1;
  const text = rows.map((row) => FORMATS[format].text(DATA.structures[row], one ? nameOf(row) : `${nameOf(row)}_${row + 1}`)).join("");
  const name = one ? word(nameOf(rows[0])) : "structures";
  const link = make("a", { href: URL.createObjectURL(new Blob([text])), download: `${name}.${format}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function word(name) {
  return name.replace(/[^\w.-]+/g, "_").slice(-70);
}

function cif({ z, x, cell }, name) {
  const [a, b, c] = triples(cell), length = (v) => Math.hypot(...v);
  const angle = (u, v) => (Math.acos(u.reduce((sum, ui, i) => sum + ui * v[i], 0) / length(u) / length(v)) * 180) / Math.PI;
  const sizes = [a, b, c].map((v, i) => `_cell_length_${"abc"[i]} ${length(v).toFixed(6)}`);
  const angles = [[b, c], [a, c], [a, b]].map(([u, v], i) => `_cell_angle_${["alpha", "beta", "gamma"][i]} ${angle(u, v).toFixed(6)}`);
  const counts = {};
  const sites = triples(x).map((point, i) => {
    const symbol = symbolOf(z[i]);
    counts[symbol] = (counts[symbol] ?? 0) + 1;
    return [symbol, symbol + counts[symbol], ...point.map((u) => u.toFixed(5)), 1].join(" ");
  });
  const head = ["_symmetry_space_group_name_H-M 'P 1'", "_symmetry_Int_Tables_number 1", ...sizes, ...angles];
  const keys = ["type_symbol", "label", "fract_x", "fract_y", "fract_z", "occupancy"].map((key) => `_atom_site_${key}`);
  return [`data_${word(name)}`, ...head, "loop_", "_symmetry_equiv_pos_as_xyz", "'x, y, z'", "loop_", ...keys, ...sites, ""].join("\n");
}

function xyz({ z, x }, name) {
  const lines = triples(x).map((point, i) => [symbolOf(z[i]), ...point.map((u) => u.toFixed(4))].join(" "));
  return [z.length, oneLine(name), ...lines, ""].join("\n");
}

function sdf({ z, x, bonds, charges }, name) {
  const count = (n) => String(n).padStart(3);
  const pairs = triples(bonds);
  const atoms = triples(x).map((point, i) => `${point.map((u) => u.toFixed(4).padStart(10)).join("")} ${symbolOf(z[i]).padEnd(3)} 0  0  0  0  0  0  0  0  0  0  0  0`);
  const lines = pairs.map(([i, j, kind]) => `${count(i + 1)}${count(j + 1)}${count(kind === 1.5 ? 4 : kind)}  0`);
  const charged = (charges ?? []).flatMap((charge, i) => (charge ? [`M  CHG  1 ${count(i + 1)} ${count(charge)}`] : []));
  const head = [oneLine(name), "  atomsmith", "", `${count(z.length)}${count(pairs.length)}  0  0  0  0  0  0  0  0999 V2000`];
  return [...head, ...atoms, ...lines, ...charged, "M  END", "$$$$", ""].join("\n");
}

$("download-all").addEventListener("click", () => {
  const rows = order.filter(drawable);
  const format = Object.keys(FORMATS).find((one) => rows.every((row) => FORMATS[one].fits(DATA.structures[row])));
  download(rows, format);
});
