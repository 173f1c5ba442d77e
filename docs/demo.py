"""The demo: crystals from a shipped model, scored, written to files, and a page to look at.

    python docs/demo.py --out demo
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import atomsmith
from chem.io import write

if TYPE_CHECKING:
    from pymatgen.core import Structure

MODEL = "flowmm-mp20-csp"
# textbook structures that the samples are compared with: formula, its units in a cell, name
WANTED = [("NaCl", 1, "rock salt"), ("SrTiO3", 1, "perovskite"), ("TiO2", 2, "rutile")]


def textbook(formula: str) -> Structure:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--n", type=int, default=8, help="samples of each formula")
    parser.add_argument("--steps", type=int, default=None, help="predictor steps (default: the model's)")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    torch.set_num_threads(1)  # cells this small gain nothing from a second thread, and lose all if it must wait
    started = time.perf_counter()
    loaded = atomsmith.load(args.model)
    steps = args.steps or loaded.model.steps
    made: list[Structure] = []
    known: list[Structure] = []
    for formula, z, name in WANTED:
        samples = atomsmith.sample(loaded, args.n, formula=formula, z=z, steps=steps, out=args.out / formula)
        crystal, target = textbook(formula), f"{formula}, {name}"
        write([crystal], args.out / f"{formula}_known.cif", mode="w")
        crystal.properties = {"id": target}
        for i, sample in enumerate(samples):
            sample.properties |= {"id": f"{formula}-{i}", "target": target}
        made, known = [*made, *samples], [*known, crystal]
    report = atomsmith.evaluate(made, known, "diffcsp-csp", args.out, k=args.n, processes=0)
    for crystal in known:
        target = crystal.properties["id"]
        hits = sum(row["rms"] is not None for row in report.rows if row["target"] == target)
        print(f"{hits} of {args.n} samples match {target}")
    print(f"{len(made)} samples of {steps} steps by {loaded.name} in {time.perf_counter() - started:.0f} s")
    print(f"files in {args.out}, page to look at: {args.out / 'report.html'}")


if __name__ == "__main__":
    main()
