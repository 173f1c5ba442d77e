"""The end of a campaign: everything that is left in order, and the first of it in files that other programs open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.output import write_atomically
from evaluation.campaigns.duplicates import SYMPREC
from evaluation.campaigns.structure_tables import STRUCTURE, to_batch
from evaluation.runs.chunks import to_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    from pymatgen.core import Structure


def ranking(unique: Path, target: Path) -> pa.Table:
    """The rows of a file made by campaigns.duplicates.keep, best first, with their `rank` from 1; written to `target`.

    By energy above the hull, lowest first and unknown last, then by copies, most first, then by row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(unique)
    keys = [table["row"].to_numpy(), -table["copies"].to_numpy()]
    if "e_above_hull" in table.column_names:
        keys.append(table["e_above_hull"].to_numpy())  # null becomes NaN, which comes last
    table = table.take(pa.array(np.lexsort(keys)))
    table = table.add_column(0, "rank", pa.array(range(1, table.num_rows + 1), pa.int64()))
    write_atomically(target, to_parquet(table))
    return table


def export(table: pa.Table, folder: Path, top: int) -> int:
    """The first `top` rows as CIF files, with the symmetry found, as extxyz and as an ASE database; how many.

    A folder of that name is replaced when the new one is whole.
    """
    from chem.io import Writer

    made = structures(table.slice(0, top))
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    with Writer(part / "shortlist.extxyz") as frames, Writer(part / "cif", "cif", SYMPREC) as cifs:
        for structure in made:
            name = f"{structure.properties['rank']}_{structure.reduced_formula}"
            frames.write(structure, name)
            cifs.write(structure, name)
    _database(part / "shortlist.db", made)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return len(made)


def structures(table: pa.Table) -> list[Structure]:
    """The crystals of a ranking, with its other columns among their properties."""
    from chem.convert import to_structures

    rows: list[dict[str, Any]] = table.drop_columns(list(STRUCTURE)).to_pylist()
    made = to_structures(to_batch(table)) if rows else []
    for structure, row in zip(made, rows, strict=True):
        structure.properties = {name: value for name, value in row.items() if value is not None}
    return made


def _database(path: Path, made: list[Structure]) -> None:
    """An ASE database in one transaction: a commit for each row takes 20 ms."""
    from ase.db import connect
    from pymatgen.io.ase import AseAtomsAdaptor

    with connect(path) as database:
        for structure in made:
            atoms = AseAtomsAdaptor.get_atoms(structure)
            said = {k: v for k, v in structure.properties.items() if k not in ("energy", "formula", "volume")}
            database.write(atoms, key_value_pairs=said, data={"properties": structure.properties})
