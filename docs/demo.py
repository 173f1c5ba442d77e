"""The demo: crystals and molecules from shipped models, scored, written to files, and pages to look at.

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

MODEL, MOLECULES = "flowmm-mp20-csp", "geobfn-qm9"
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
    parser.add_argument("--n", type=int, default=8, help="samples of each formula; four times as many molecules")
    parser.add_argument("--steps", type=int, default=None, help="of the crystals (default: the model's)")
    parser.add_argument("--model", default=MODEL)
    args = parser.parse_args()
    torch.set_num_threads(1)  # cells this small gain nothing from a second thread, and lose all if it must wait
    crystals(args.model, args.n, args.steps, args.out)
    molecules(4 * args.n, args.out)


def crystals(model: str, n: int, steps: int | None, out: Path) -> None:
    """n samples of each formula, beside the crystal of the textbook."""
    started = time.perf_counter()
    loaded = atomsmith.load(model)
    steps = steps or loaded.model.steps
    made: list[Structure] = []
    known: list[Structure] = []
    for formula, z, name in WANTED:
        samples = atomsmith.sample(loaded, n, formula=formula, z=z, steps=steps, out=out / formula)
        crystal, target = textbook(formula), f"{formula}, {name}"
        write([crystal], out / f"{formula}_known.cif", mode="w")
        crystal.properties = {"id": target}
        for i, sample in enumerate(samples):
            sample.properties |= {"id": f"{formula}-{i}", "target": target}
        made, known = [*made, *samples], [*known, crystal]
    report = atomsmith.evaluate(made, known, "diffcsp-csp", out, k=n, processes=0)
    for crystal in known:
        target = crystal.properties["id"]
        hits = sum(row["rms"] is not None for row in report.rows if row["target"] == target)
        print(f"{hits} of {n} samples match {target}")
    print(f"{len(made)} samples of {steps} steps by {loaded.name} in {time.perf_counter() - started:.0f} s")
    print(f"files in {out}, page to look at: {out / 'report.html'}")


def molecules(n: int, out: Path) -> None:
    """n molecules of sizes as in QM9, with the bonds that RDKit perceives."""
    started = time.perf_counter()
    made = atomsmith.sample(MOLECULES, n, out=out / "molecules")
    report = atomsmith.evaluate(made, protocol="edm-qm9", out=out / "molecules-report", processes=0)
    atoms, whole, valid = (report[name] for name in ("atom_stability", "molecule_stability", "validity"))
    found = f"{atoms.value:.1%} of atoms and {whole.hits} molecules stable, {valid.hits} valid"
    print(f"{n} molecules by {MOLECULES} in {time.perf_counter() - started:.0f} s: {found}")
    print(f"files in {out / 'molecules'}, page to look at: {out / 'molecules-report' / 'report.html'}")


if __name__ == "__main__":
    main()
