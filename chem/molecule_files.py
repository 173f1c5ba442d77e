"""Reading and writing molecules: SDF, xyz, extxyz and JSON lines, one record at a time.

for record in read_molecules("folder"): ...
with MoleculeWriter("out.sdf") as out: out.write(mol, id="first", properties={"gap": 0.25})
"""

from chem.molecule_reading import MOLECULE_FORMATS, MoleculeRecord, kind_of, read_molecules
from chem.molecule_writing import MoleculeWriter, write_molecules

__all__ = ["MOLECULE_FORMATS", "MoleculeRecord", "MoleculeWriter", "kind_of", "read_molecules", "write_molecules"]
