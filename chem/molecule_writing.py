"""Writing molecules, one at a time, in any of the formats that `chem.molecule_reading` knows.

A file grows by one whole record at a time, so an interrupted run keeps what it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from chem.finding import format_of
from chem.molecule_reading import MOLECULE_FORMATS, MoleculeRecord
from chem.molecule_text import get_properties, mol_to_dict, mol_to_frame, mol_to_sdf, mol_to_xyz
from chem.sinks import Mode, Sink, make_sink
from chem.structure_text import one_line, plain

if TYPE_CHECKING:
    from rdkit.Chem import Mol


class MoleculeWriter:
    """Context manager that writes RDKit molecules with a conformer to `path` as they come.

    `format` defaults to the one of the suffix. mode "x" refuses a path that holds data already, "a" appends to it (a
    torn last record is cut off first), "w" replaces a file. `count` is the number of records at `path`, those found
    there included.
    """

    def __init__(self, path: str | Path, format: str | None = None, mode: Mode = "x"):
        self.path = Path(path)
        self.format = format_of(self.path, format, MOLECULE_FORMATS)
        if mode not in ("x", "a", "w"):
            raise ValueError(f"mode must be 'x', 'a' or 'w', got {mode!r}")
        if self.path.suffix.lower() == ".mol" and mode == "a":
            raise ValueError(f"{self.path} holds one molecule; name an .sdf file to append to")
        self._sink: Sink = make_sink(self.path, self.format, mode, folder=False)

    @property
    def count(self) -> int:
        """Number of records at the path."""
        return self._sink.count

    def write(self, mol: Mol, id: str | None = None, properties: dict[str, Any] | None = None) -> None:
        """Write one molecule; `properties` are added to those set on it, `id` names it.

        Raises ValueError for a molecule without atoms or conformer, properties that are not plain data and after
        `close`.
        """
        if not mol.GetNumAtoms() or not mol.GetNumConformers():
            raise ValueError(f"molecule {self.count} has {mol.GetNumAtoms()} atoms and no coordinates to write")
        data = plain({**get_properties(mol), **(properties or {})})
        inner = data.pop("id", None)
        name = id if id is not None else inner
        try:
            json.dumps(data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"properties of molecule {self.count} are not plain data: {one_line(error)}") from error
        self._sink.add(self._encode(mol, None if name is None else str(name), data), name)

    def _encode(self, mol: Mol, name: str | None, properties: dict[str, Any]) -> str:
        if self.format == "sdf":
            return mol_to_sdf(mol, name, properties)
        if self.format == "xyz":
            return mol_to_xyz(mol, name)
        if self.format == "extxyz":
            return mol_to_frame(mol, name, properties)
        meta = {**({} if name is None else {"id": name}), **({"properties": properties} if properties else {})}
        return json.dumps({**meta, "molecule": mol_to_dict(mol)}) + "\n"

    def close(self) -> None:
        """End the output. A second call does nothing."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def write_molecules(
    items: Iterable[MoleculeRecord | Mol], path: str | Path, format: str | None = None, mode: Mode = "x"
) -> int:
    """Write records or RDKit molecules to `path` and return how many; see MoleculeWriter.

    Raises ValueError for a record without a molecule, naming its source and error.
    """
    with MoleculeWriter(path, format, mode) as writer:
        for n, item in enumerate(items):
            if not isinstance(item, MoleculeRecord):
                writer.write(item)
            elif item.molecule is None:
                raise ValueError(f"record {n} ({item.source}, {item.index}) has no molecule: {item.error}")
            else:
                writer.write(item.molecule, item.id, item.properties)
        return writer.count
