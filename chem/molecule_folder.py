"""A folder of molecules that grows: a record, an SDF file, an extxyz file, one manifest.

The record (JSON lines, every digit) decides: a sample exists when its line is whole, and what a crash left out of the
other files is written again from it. SDF carries bonds, charges and 4 decimals. A molecule that SDF cannot hold with
its bonds is written there without them, so that entry i is sample i, and the manifest names it with the reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.molecule_files import MoleculeWriter
from chem.molecule_text import get_properties, mol_from_dict, set_properties
from chem.record_folder import FRAMES, RECORD, RecordFolder
from chem.structure_text import one_line

if TYPE_CHECKING:
    from rdkit.Chem import Mol

SDF = "samples.sdf"


class MoleculeFolder(RecordFolder):
    """Molecules sampled by one request, in order: RDKit molecules with a conformer, provenance set as properties."""

    def __init__(self, path: str | Path, request: dict[str, Any]):
        super().__init__(path, request)
        self._record, self._sdf, self._frames = (
            MoleculeWriter(self.path / name, mode="a") for name in (RECORD, SDF, FRAMES)
        )
        self._complete()

    @property
    def count(self) -> int:
        """Samples in the folder."""
        return self._record.count

    def append(self, samples: Sequence[Mol]) -> None:
        """Add the next samples; each is whole or absent."""
        for mol in samples:
            self._record.write(mol)
            self._write_sdf(mol)
            self._frames.write(mol)

    def samples(self, n: int) -> list[Mol]:
        """The first n samples, read back from the record."""
        out: list[Mol] = []
        with open(self.path / RECORD) as file:
            for line in itertools.islice(file, n):
                row = json.loads(line)
                mol = mol_from_dict(row["molecule"])
                set_properties(mol, row.get("properties") or {})
                out.append(mol)
        return out

    def close(self) -> None:
        """End the output."""
        for writer in (self._record, self._sdf, self._frames):
            writer.close()

    def _write_sdf(self, mol: Mol) -> None:
        try:
            self._sdf.write(mol)
        except (ValueError, RuntimeError) as error:
            from chem.convert_molecules import build_mol

            numbers, charges = zip(*((a.GetAtomicNum(), a.GetFormalCharge()) for a in mol.GetAtoms()), strict=True)
            bare = build_mol(np.array(numbers), mol.GetConformer().GetPositions(), np.array(charges))
            set_properties(bare, get_properties(mol))
            self.note(without_bonds={**self.manifest.get("without_bonds", {}), str(self._sdf.count): one_line(error)})
            self._sdf.write(bare)

    def _complete(self) -> None:
        """Write entries and frames that a crash kept from following the record."""
        if self._sdf.count < self.count or self._frames.count < self.count:
            molecules = self.samples(self.count)
            for mol in molecules[self._sdf.count :]:
                self._write_sdf(mol)
            for mol in molecules[self._frames.count :]:
                self._frames.write(mol)
