"""Molecules that are given as controls, read from RDKit, ASE or files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from generative.control_cells import Given, only

ALLOWED = "an RDKit molecule with a conformer, ASE atoms without a cell, or a file that holds one molecule"


def read_molecule(value: Any, argument: str) -> Given | None:
    """The atoms of a molecule in the order they are in; hydrogens that are only implied are left behind."""
    if value is None or isinstance(value, Given):
        return value
    from chem.convert_molecules import from_ase, mol_arrays

    molecule = _from_file(value, argument) if isinstance(value, (str, Path)) else value
    try:
        if hasattr(molecule, "GetConformers"):
            numbers, positions = mol_arrays(molecule)
        elif hasattr(molecule, "get_atomic_numbers") and len(molecule):
            batch = from_ase([molecule])
            numbers, positions = batch["atomic_numbers"].numpy(), batch["pos"].numpy()
        else:
            raise ValueError(f"allowed: {ALLOWED}")
        if not np.isfinite(positions).all():
            raise ValueError("a coordinate is not a finite number")
    except ValueError as error:
        shown = " ".join(str(value).split())[:80]
        raise ValueError(f"{argument} = {shown!r}, {error}") from None
    return Given(numbers, positions, np.zeros((0, 3)))


def _from_file(path: str | Path, argument: str) -> Any:
    from chem.molecule_files import read_molecules

    return only(read_molecules(path), path, argument).molecule
