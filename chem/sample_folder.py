"""A folder of samples that grows: a record, an extxyz file, one CIF a sample, one manifest.

The record (JSON lines, every digit) decides: a sample exists when its line is whole, and what a crash left out of the
other files is written again from it. CIF files carry the symmetry found at `CIF_SYMPREC`, for looking at; record and
frames carry the sample as it was drawn. A sample that a format cannot hold, such as a cell without volume, stays in
the record, and the manifest names it with the reason.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.io import Writer
from chem.output import PART
from chem.record_folder import FRAMES, RECORD, RecordFolder
from chem.structure_text import one_line, structure_from_dict

if TYPE_CHECKING:
    from pymatgen.core import Structure

CIF_SYMPREC = 0.1
CIFS = "cif"


class SampleFolder(RecordFolder):
    """Crystals sampled by one request, in order: pymatgen structures, provenance in their properties."""

    def __init__(self, path: str | Path, request: dict[str, Any]):
        super().__init__(path, request, cif_symprec=CIF_SYMPREC)
        self._record = Writer(self.path / RECORD, mode="a")
        self._frames = Writer(self.path / FRAMES, mode="a")
        self._complete()

    @property
    def count(self) -> int:
        """Samples in the folder."""
        return self._record.count

    def append(self, samples: Sequence[Structure]) -> None:
        """Add the next samples; each is whole or absent."""
        for structure in samples:
            self._record.write(structure)
            self._frames.write(structure)
            self._write_cif(self.count - 1, structure)

    def samples(self, n: int) -> list[Structure]:
        """The first n samples, read back from the record."""
        out: list[Structure] = []
        with open(self.path / RECORD) as file:
            for line in itertools.islice(file, n):
                row = json.loads(line)
                structure = structure_from_dict(row["structure"])
                structure.properties = dict(row["properties"])
                out.append(structure)
        return out

    def close(self) -> None:
        """End the output."""
        self._record.close()
        self._frames.close()

    def _write_cif(self, index: int, structure: Structure) -> None:
        name = f"{index:06d}_{structure.composition.reduced_formula}.cif"
        part = self.path / CIFS / f".{name}{PART}"
        try:
            with Writer(part, "cif", symprec=CIF_SYMPREC, mode="w") as writer:
                writer.write(structure)
            os.replace(part, self.path / CIFS / name)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            self.note(without_cif={**self.manifest.get("without_cif", {}), str(index): one_line(error)})
        finally:
            part.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Write frames and CIFs that a crash kept from following the record."""
        folder = self.path / CIFS
        folder.mkdir(exist_ok=True)
        have = {p.name[:6] for p in folder.glob("[0-9]*.cif")} | {
            f"{int(i):06d}" for i in self.manifest.get("without_cif", {})
        }
        missing = [i for i in range(self.count) if f"{i:06d}" not in have]
        if missing or self._frames.count < self.count:
            structures = self.samples(self.count)
            for structure in structures[self._frames.count :]:
                self._frames.write(structure)
            for i in missing:
                self._write_cif(i, structures[i])
