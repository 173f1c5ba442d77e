"""What `chem.prepare` does differently for molecules: which are refused, and how the rest is packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chem.packed_molecules import PackedMolecules, pack_batch
from chem.structure_text import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rdkit.Chem import Mol

    from chem.convert_molecules import Bonds
    from chem.molecule_files import MoleculeRecord

Row = tuple["NDArray", "NDArray", "NDArray", "Bonds"]  # numbers, positions, charges, bonds


def fault(mol: Mol) -> str | None:
    """Why a molecule with bonds is not one to train on: fragments, impossible valences, radicals, missing hydrogens.

    A molecule without any hydrogen atom may lack them all: data sets of heavy atoms are made so. Without bonds there
    is nothing to judge by.
    """
    from rdkit import Chem, rdBase

    if not mol.GetNumBonds():
        return None
    fragments = len(Chem.GetMolFrags(mol))
    if fragments > 1:
        return f"{fragments} fragments, one molecule is allowed"
    checked = Chem.Mol(mol)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(checked)
        except ValueError as error:
            return f"RDKit does not accept it: {one_line(error)}"
    hydrogens = any(atom.GetAtomicNum() == 1 for atom in checked.GetAtoms())
    for atom in checked.GetAtoms():
        if atom.GetNumRadicalElectrons():
            return f"radical: atom {atom.GetIdx()} ({atom.GetSymbol()})"
        if hydrogens and atom.GetTotalNumHs():
            missing = f"{atom.GetTotalNumHs()} hydrogen atoms"
            return f"atom {atom.GetIdx()} ({atom.GetSymbol()}) lacks {missing}: a radical, or they were left out"
    return None


def molecule_rows(path: Path) -> Iterator[tuple[MoleculeRecord, Row | None]]:
    """Every record of a file or folder with its arrays; one that is refused has the reason as its error."""
    from chem.convert_molecules import mol_arrays, mol_bonds
    from chem.molecule_files import read_molecules

    for record in read_molecules(path):
        mol = record.molecule
        if mol is None:
            yield record, None
            continue
        try:
            reason = fault(mol)
            charges = np.array([atom.GetFormalCharge() for atom in mol.GetAtoms()], dtype=np.int64)
            row = (*mol_arrays(mol), charges, mol_bonds(mol))
        except ValueError as error:
            reason = one_line(error)
        yield (record, row) if reason is None else (replace(record, molecule=None, error=reason), None)


def assemble_molecules(
    rows: Sequence[Row], ids: Sequence[str], properties: Mapping[str, NDArray], failures: Sequence[tuple[str, str]]
) -> PackedMolecules:
    """Rows in flat arrays; bonds and charges are kept if every molecule of several atoms has bonds."""
    from chem.convert_molecules import batch_from_arrays

    numbers, positions = [row[0] for row in rows], [row[1] for row in rows]
    charges, bonds = [row[2] for row in rows], [row[3] for row in rows]
    known = all(len(order) or len(z) == 1 for z, (_, order) in zip(numbers, bonds, strict=True))
    known = known and any(len(order) for _, order in bonds)
    charged = known or any(charge.any() for charge in charges)
    batch = batch_from_arrays(numbers, positions, charges if charged else None, bonds if known else None)
    return pack_batch(batch, ids, properties, failures)
