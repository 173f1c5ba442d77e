"""The files of QM9, one reader a layout; see `chem.qm9` for what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chem.packed_molecules import PackedMolecules, pack_batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROPERTY_UNITS: dict[str, str] = {
    "A": "GHz",
    "B": "GHz",
    "C": "GHz",
    "mu": "D",
    "alpha": "bohr^3",
    "homo": "hartree",
    "lumo": "hartree",
    "gap": "hartree",
    "r2": "bohr^2",
    "zpve": "hartree",
    "u0": "hartree",
    "u298": "hartree",
    "h298": "hartree",
    "g298": "hartree",
    "cv": "cal/mol/K",
    "u0_atom": "kcal/mol",
    "u298_atom": "kcal/mol",
    "h298_atom": "kcal/mol",
    "g298_atom": "kcal/mol",
}
# energies of the free atoms H, C, N, O, F in hartree, of the original publication (atomref.txt)
ATOMS = (1, 6, 7, 8, 9)
ATOM_ENERGIES: dict[str, tuple[float, ...]] = {
    "u0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u298": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h298": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g298": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
KCAL = 627.509474  # kcal/mol in a hartree
XYZ_COLUMNS = ["A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv"]
NPZ_NAMES = {"U0": "u0", "U": "u298", "H": "h298", "G": "g298", "Cv": "cv"}


def _flat(
    counts: NDArray, numbers: NDArray, positions: NDArray, index: NDArray, columns: Mapping[str, NDArray]
) -> PackedMolecules:
    """Flat arrays with property columns; atomisation energies are added where they are not there."""
    properties = {name: np.asarray(columns[name], dtype=np.float64) for name in PROPERTY_UNITS if name in columns}
    return PackedMolecules(
        atomic_numbers=numbers.astype(np.uint8),
        num_atoms=counts.astype(np.int32),
        pos=positions.astype(np.float64).reshape(-1, 3),
        ids=[f"gdb_{i}" for i in index.tolist()],
        properties=properties | atomisation(counts, numbers, properties),
    )


def atomisation(counts: NDArray, numbers: NDArray, columns: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Atomisation energies (B,) in kcal/mol from totals in hartree, where only these are there."""
    of = np.repeat(np.arange(len(counts)), counts)
    out = {}
    for name, energies in ATOM_ENERGIES.items():
        if name in columns and f"{name}_atom" not in columns:
            table = np.full(256, np.nan)
            table[list(ATOMS)] = energies
            free = np.bincount(of, weights=table[numbers.astype(np.int64)], minlength=len(counts))
            out[f"{name}_atom"] = (columns[name] - free) * KCAL
    return out


def from_parquet(path: Path) -> PackedMolecules:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path).combine_chunks()
    needed = ("qm9_index", "atomic_numbers", "positions")
    if missing := [name for name in needed if name not in table.column_names]:
        raise ValueError(f"{path} has no column '{missing[0]}'; it has {', '.join(table.column_names)}")
    lists = table["atomic_numbers"].combine_chunks()
    numbers, positions = (table[name].combine_chunks().flatten().to_numpy() for name in needed[1:])
    if len(positions) != 3 * len(numbers):
        raise ValueError(f"{path}: {len(numbers)} atoms, but {len(positions)} coordinates")
    columns = {n: table[n].to_numpy().astype(np.float64) for n in PROPERTY_UNITS if n in table.column_names}
    return _flat(np.asarray(lists.value_lengths()), numbers, positions, table["qm9_index"].to_numpy(), columns)


def from_npz(path: Path) -> PackedMolecules:
    with np.load(path, allow_pickle=False) as file:
        arrays = {NPZ_NAMES.get(name, name): file[name] for name in file.files}
    needed = ("num_atoms", "charges", "positions", "index")
    if missing := [name for name in needed if name not in arrays]:
        raise ValueError(f"{path} has no array '{missing[0]}'; it has {', '.join(sorted(arrays))}")
    real = np.arange(arrays["charges"].shape[1]) < arrays["num_atoms"][:, None]  # the rest is padding
    numbers, positions = arrays["charges"][real], arrays["positions"][real]
    return _flat(arrays["num_atoms"], numbers, positions, arrays["index"], arrays)


def from_archive(place: Path) -> PackedMolecules:
    """All molecules of gdb9.sdf or of the xyz archive; those that cannot be read are failures."""
    from chem.convert_molecules import batch_from_arrays

    sdf = place.suffix == ".sdf"
    rows: list[tuple[str, tuple[Any, ...], dict[str, float]]] = []
    failures: list[tuple[str, str]] = []
    for name, content in _sdf_rows(place) if sdf else _xyz_rows(place):
        if isinstance(content, str):
            failures.append((name, content))
        else:
            rows.append((name, content[:-1], content[-1]))
    rows.sort(key=lambda row: int(row[0][4:]))
    numbers, positions, charges, bonds = ([row[1][k] for row in rows] for k in range(4))
    batch = batch_from_arrays(numbers, positions, charges if sdf else None, bonds if sdf else None)
    names = [n for n in PROPERTY_UNITS if any(n in row[2] for row in rows)]
    columns = {n: np.array([row[2].get(n, np.nan) for row in rows], dtype=np.float64) for n in names}
    counts, flat = batch["num_atoms"].numpy(), batch["atomic_numbers"].numpy()
    return pack_batch(batch, [row[0] for row in rows], columns | atomisation(counts, flat, columns), failures)


def _sdf_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Id and (numbers, positions, charges, bonds, properties), or the reason of a failure."""
    import pandas as pd

    from chem.convert_molecules import mol_arrays, mol_bonds
    from chem.molecule_files import read_molecules

    table = path.with_name(path.name + ".csv")
    columns: dict[str, dict[str, float]] = {}
    if table.is_file():
        frame = pd.read_csv(table, index_col="mol_id")
        kept = [name for name in PROPERTY_UNITS if name in frame]
        values = frame[kept].to_numpy(dtype=np.float64)
        columns = {str(i): dict(zip(kept, row, strict=True)) for i, row in zip(frame.index, values, strict=True)}
    for record in read_molecules(path):
        name = record.id if record.id and re.fullmatch(r"gdb_\d+", record.id) else f"gdb_{record.index + 1}"
        if record.molecule is None:
            yield name, record.error
            continue
        charges = np.array([atom.GetFormalCharge() for atom in record.molecule.GetAtoms()])
        yield name, (*mol_arrays(record.molecule), charges, mol_bonds(record.molecule), columns.get(name, {}))


def _xyz_rows(place: Path) -> Iterator[tuple[str, Any]]:
    for name, text in _xyz_texts(place):
        try:
            yield f"gdb_{int(re.findall(r'[0-9]+', Path(name).stem)[-1])}", _parse_xyz(text)
        except (ValueError, IndexError, KeyError) as error:
            yield f"gdb_{int(re.findall(r'[0-9]+', Path(name).stem)[-1])}", f"{type(error).__name__}: {error}"


def _xyz_texts(place: Path) -> Iterator[tuple[str, str]]:
    if place.is_dir():
        for path in sorted(place.glob("dsgdb9nsd_*.xyz")):
            yield path.name, path.read_text()
        return
    import tarfile

    with tarfile.open(place) as archive:
        for member in archive:
            file = archive.extractfile(member) if re.search(r"dsgdb9nsd_\d+\.xyz$", member.name) else None
            if file is not None:
                yield member.name, file.read().decode()


def _parse_xyz(text: str) -> tuple[Any, ...]:
    """One file of the original: count, `gdb I` and 15 properties, atoms with a partial charge, frequencies, names."""
    from ase.data import atomic_numbers

    lines = text.replace("*^", "e").splitlines()
    count, words = int(lines[0]), lines[1].split()
    if words[0] != "gdb" or len(words) != 2 + len(XYZ_COLUMNS):
        raise ValueError(f"line 2 must be 'gdb', a number and {len(XYZ_COLUMNS)} properties, got {lines[1][:60]!r}")
    atoms = [line.split() for line in lines[2 : 2 + count]]
    numbers = np.array([atomic_numbers[row[0]] for row in atoms])
    positions = np.array([[float(x) for x in row[1:4]] for row in atoms]).reshape(count, 3)
    properties = dict(zip(XYZ_COLUMNS, map(float, words[2:]), strict=True))
    return numbers, positions, None, None, properties
