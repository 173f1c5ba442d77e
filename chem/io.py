"""Reading and writing crystal structures: CIF, POSCAR, extxyz, JSON lines, csv and parquet with a `cif` column.

Molecules (SDF, xyz, extxyz, JSON lines) have `chem.molecule_files`.

for record in read("folder"): ...
with Writer("out.extxyz") as out: out.write(structure, id="first", properties={"energy": -3.2})
"""

from chem.reading import FORMATS, Record, format_of, known_formats, read
from chem.writing import Writer, write

__all__ = ["FORMATS", "Record", "Writer", "format_of", "known_formats", "read", "write"]
