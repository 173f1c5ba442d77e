"""The demo: crystals from a shipped model, scored, written to files, and a page to look at.

    python docs/demo.py --out demo
"""

from __future__ import annotations

import argparse
import html
import time
from pathlib import Path

import torch

import atomsmith
from chem.convert import from_structures
from chem.io import write
from chem.periodic import min_distance
from chem.sample_folder import CIF_SYMPREC

MODEL = "diffcsp-mp20-csp"
# textbook structures that the samples are compared with, (formula, z, space group, name)
WANTED = [("NaCl", 1, 225, "rock salt"), ("SrTiO3", 1, 221, "perovskite"), ("TiO2", 2, 136, "rutile")]


def textbook(formula: str):
    """The known crystal, from its space group and measured lattice constants (ångström)."""
    from pymatgen.core import Lattice, Structure

    if formula == "NaCl":
        cell = Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    elif formula == "SrTiO3":
        sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
        cell = Structure.from_spacegroup(221, Lattice.cubic(3.905), ["Sr", "Ti", "O"], sites)
    else:
        lattice = Lattice.tetragonal(4.594, 2.959)
        cell = Structure.from_spacegroup(136, lattice, ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]])
    return cell.get_primitive_structure()


def score(structures, known) -> list[dict]:
    """Space group, smallest distance, density and match with the known crystal, for each sample."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    distances = min_distance(from_structures(structures)).tolist()
    rows = []
    for structure, distance in zip(structures, distances, strict=True):
        rms = matcher.get_rms_dist(structure, known)
        try:
            group = structure.get_space_group_info(symprec=CIF_SYMPREC)[0]
        except Exception as error:  # the symmetry finder refuses some cells; the row says so
            group = f"none ({type(error).__name__})"
        rows.append(
            {
                "space group": group,
                "min distance (Å)": round(distance, 2),
                "density (g/cm3)": round(float(structure.density), 2),
                "matches": rms is not None,
                "rms": None if rms is None else round(float(rms[0]), 3),
            }
        )
    return rows


def picture(structures, rows, title: str, path: Path) -> None:
    """All samples of one formula side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from evaluation.pictures import plot_structure

    figure, axes = plt.subplots(1, len(structures), figsize=(2.1 * len(structures), 2.4))
    for ax, structure, row in zip(axes, structures, rows, strict=True):
        plot_structure(structure, ax, f"{row['space group']}{', match' if row['matches'] else ''}")
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(sections: list[tuple[str, str, list[dict]]], summary: str) -> str:
    """One self-contained page of pictures and tables."""
    parts = [f"<h1>atomsmith</h1><p>{html.escape(summary)}</p>"]
    for title, image, rows in sections:
        head = "".join(f"<th>{html.escape(k)}</th>" for k in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{html.escape(str(v))}</td>" for v in r.values()) + "</tr>" for r in rows)
        parts.append(f"<h2>{html.escape(title)}</h2><img src='{image}' alt='{html.escape(title)}'>")
        parts.append(f"<table><tr>{head}</tr>{body}</table>")
    style = "body{font-family:sans-serif;margin:2em;max-width:70em} td,th{padding:.2em .8em;text-align:left}"
    style += " img{width:100%}"
    return f"<!doctype html><meta charset='utf-8'><title>atomsmith</title><style>{style}</style>{''.join(parts)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--n", type=int, default=8, help="samples of each formula")
    parser.add_argument("--steps", type=int, default=None, help="predictor steps (default: the model's)")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    torch.set_num_threads(1)  # cells this small gain nothing from a second thread, and lose all if it must wait
    started, sections, matched = time.perf_counter(), [], 0
    loaded = atomsmith.load(args.model)
    steps = args.steps or loaded.model.steps
    for formula, z, _, name in WANTED:
        folder = args.out / formula
        made = atomsmith.sample(loaded, args.n, formula=formula, z=z, steps=steps, out=folder)
        known = textbook(formula)
        rows = score(made, known)
        hits = sum(row["matches"] for row in rows)
        matched += hits
        title = f"{formula}: {hits} of {args.n} match {name}"
        print(title)
        picture(made, rows, title, args.out / f"{formula}.png")
        write([known], args.out / f"{formula}_known.cif", mode="w")
        sections.append((title, f"{formula}.png", rows))
    total = args.n * len(WANTED)
    seconds = time.perf_counter() - started
    summary = f"{total} samples of {steps} steps by {loaded.name}: {matched} match the textbook, {seconds:.0f} s"
    (args.out / "index.html").write_text(page(sections, summary))
    print(summary)
    print(f"files in {args.out}, page to look at: {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
