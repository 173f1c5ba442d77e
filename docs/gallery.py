"""The picture of the README: the first samples of three formulas, none picked, none relaxed.

    python -m docs.gallery --out docs/gallery.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib

import atomsmith
from chem.sample_folder import CIF_SYMPREC
from docs.demo import MODEL, WANTED, textbook

matplotlib.use("Agg")


def conventional(structure):
    """The conventional cell of the symmetry found and its space group; the sample itself and "?" where none is."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    try:
        found = SpacegroupAnalyzer(structure, symprec=CIF_SYMPREC)
        return found.get_conventional_standard_structure(), found.get_space_group_symbol()
    except Exception:  # the symmetry finder refuses some cells: then the picture shows what was sampled
        return structure, "?"


def main(arguments: Sequence[str] | None = None) -> None:
    import matplotlib.pyplot as plt

    from evaluation.pictures import plot_structure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/gallery.png"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--steps", type=int, default=None)
    args = parser.parse_args(arguments)
    loaded = atomsmith.load(args.model)
    figure, axes = plt.subplots(len(WANTED), 4, figsize=(8.4, 6.6))
    for row, (formula, z, _) in zip(axes, WANTED, strict=True):
        made = atomsmith.sample(loaded, len(row), formula=formula, z=z, steps=args.steps)
        report = atomsmith.evaluate(made, [textbook(formula)], "diffcsp-csp", k=len(row), processes=0)
        for ax, structure, judged in zip(row, made, report.rows, strict=True):
            verdict = "no match" if judged["rms"] is None else "match"
            cell, group = conventional(structure)
            plot_structure(cell, ax, f"{formula} {group}, {verdict}")
    figure.tight_layout()
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
