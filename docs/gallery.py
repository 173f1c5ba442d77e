"""The picture of the README: the first samples of three formulas, none picked, none relaxed.

    python -m docs.gallery --out docs/gallery.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

import atomsmith
from chem.sample_folder import CIF_SYMPREC
from docs.demo import MODEL, WANTED, score, textbook

matplotlib.use("Agg")


def conventional(structure):
    """The conventional cell of the symmetry found, or the sample itself where none is."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    try:
        return SpacegroupAnalyzer(structure, symprec=CIF_SYMPREC).get_conventional_standard_structure()
    except Exception:  # the symmetry finder refuses some cells: then the picture shows what was sampled
        return structure


def main() -> None:
    import matplotlib.pyplot as plt

    from evaluation.pictures import plot_structure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/gallery.png"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--steps", type=int, default=None)
    args = parser.parse_args()
    loaded = atomsmith.load(args.model)
    figure, axes = plt.subplots(len(WANTED), 4, figsize=(8.4, 6.6))
    for row, (formula, z, _, _) in zip(axes, WANTED, strict=True):
        made = atomsmith.sample(loaded, 4, formula=formula, z=z, steps=args.steps)
        for ax, structure, judged in zip(row, made, score(made, textbook(formula)), strict=True):
            verdict = "match" if judged["matches"] else "no match"
            plot_structure(conventional(structure), ax, f"{formula} {judged['space group']}, {verdict}")
    figure.tight_layout()
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
