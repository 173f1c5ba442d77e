"""Reading and writing crystal structures: CIF, POSCAR, extxyz, JSON lines, csv and parquet with a `cif` column.

Read, not written: zip archives of these, and the .pt files of structures that CDVAE, DiffCSP and their heirs leave.

Molecules (SDF, xyz, extxyz, JSON lines) have `chem.molecule_files`.

for record in read("folder"): ...
with Writer("out.extxyz") as out: out.write(structure, id="first", properties={"energy": -3.2})
"""

from chem.finding import FORMATS, format_of, known_formats
from chem.reading import Record, read
from chem.writing import Writer, write

__all__ = ["FORMATS", "Record", "Writer", "format_of", "known_formats", "read", "write"]
