"""Crystals to and from pymatgen and ASE; the only place, with `chem.io`, where their objects enter and leave.

All three store lattice vectors as rows, so nothing is transposed. Coordinates are wrapped into [0, 1) on the way in,
lattices keep their orientation, and oxidation states, magnetic moments and other decorations are left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from chem.crystals import CrystalBatch


def wrap(frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fractional coordinates (..., 3) moved into [0, 1); 1.0 reached by rounding becomes 0."""
    wrapped = frac_coords - np.floor(frac_coords)
    return np.where(wrapped >= 1.0, 0.0, wrapped)


def site_arrays(structure: Structure, name: str = "structure") -> tuple[NDArray, NDArray]:
    """atomic_numbers (N,) int64 and wrapped frac_coords (N, 3) float64 of one pymatgen structure.

    Raises ValueError, naming the structure and the site, for partial occupancy, vacancies and dummy species.
    """
    from pymatgen.core import DummySpecies

    numbers = np.empty(len(structure), dtype=np.int64)
    for i, site in enumerate(structure):
        if not site.is_ordered:
            raise ValueError(f"{name}: site {i} ({site.species_string}) is disordered; only full sites are allowed")
        if isinstance(site.specie, DummySpecies):
            raise ValueError(f"{name}: site {i} ({site.species_string}) is not a chemical element")
        numbers[i] = site.specie.Z
    return numbers, wrap(np.asarray(structure.frac_coords, dtype=np.float64).reshape(-1, 3))


def batch_from_arrays(
    numbers: Sequence[NDArray], frac_coords: Sequence[NDArray], lattices: Sequence[NDArray]
) -> CrystalBatch:
    """A float64 batch of B crystals from lists of (N,), (N, 3) and (3, 3) arrays."""
    import torch

    from chem.crystals import CrystalBatch

    count = len(numbers)
    flat = np.concatenate([np.zeros(0, np.int64), *numbers])
    frac = np.concatenate([np.zeros((0, 3)), *frac_coords])
    return CrystalBatch(
        [len(n) for n in numbers],
        atomic_numbers=torch.from_numpy(flat.astype(np.int64)),
        frac_coords=torch.from_numpy(frac.astype(np.float64)),
        lattice=torch.from_numpy(np.array(lattices, dtype=np.float64).reshape(count, 3, 3)),
    )


def from_structures(structures: Sequence[Structure]) -> CrystalBatch:
    """pymatgen structures as one float64 batch, in order; properties are left behind.

    Raises ValueError naming the index of the structure and the site for disordered sites and dummy species.
    """
    arrays = [site_arrays(s, f"structure {i} ({s.reduced_formula})") for i, s in enumerate(structures)]
    lattices = [s.lattice.matrix for s in structures]
    return batch_from_arrays([n for n, _ in arrays], [f for _, f in arrays], lattices)


def to_structures(batch: CrystalBatch) -> list[Structure]:
    """Every crystal of a batch as a pymatgen structure, in order; attached properties are left behind."""
    from pymatgen.core import Lattice, Structure

    return [Structure(Lattice(lattice), numbers.tolist(), frac) for numbers, frac, lattice in _split(batch)]


def from_ase(atoms: Sequence[Atoms]) -> CrystalBatch:
    """ASE atoms as one float64 batch, in order.

    Raises ValueError naming the index of one that is not periodic in three directions or has no volume.
    """
    numbers, frac_coords, lattices = [], [], []
    for i, one in enumerate(atoms):
        cell = np.array(one.cell)
        if not all(one.pbc) or abs(np.linalg.det(cell)) < 1e-8:
            raise ValueError(
                f"atoms {i} ({one.get_chemical_formula()}): pbc {one.pbc}; a cell periodic in 3D is needed"
            )
        if not all(1 <= z <= 118 for z in one.numbers):
            raise ValueError(f"atoms {i} ({one.get_chemical_formula()}): atomic numbers must be 1..118")
        numbers.append(one.numbers)
        frac_coords.append(wrap(np.linalg.solve(cell.T, one.positions.T).T))
        lattices.append(cell)
    return batch_from_arrays(numbers, frac_coords, lattices)


def to_ase(batch: CrystalBatch) -> list[Atoms]:
    """Every crystal of a batch as periodic ASE atoms, in order; attached properties are left behind."""
    from ase import Atoms

    return [Atoms(numbers=n, scaled_positions=f, cell=lattice, pbc=True) for n, f, lattice in _split(batch)]


def _split(batch: CrystalBatch) -> list[tuple[NDArray, NDArray, NDArray]]:
    for name in ("atomic_numbers", "frac_coords", "lattice"):
        if name not in batch.fields:
            raise ValueError(f"the batch lacks the field '{name}'; it has {', '.join(batch.fields) or 'none'}")
    cuts = batch["ptr"][1:-1].tolist()
    numbers = np.split(batch["atomic_numbers"].cpu().numpy(), cuts)
    frac = np.split(batch["frac_coords"].detach().cpu().double().numpy(), cuts)
    lattice = batch["lattice"].detach().cpu().double().numpy()
    return list(zip(numbers, frac, lattice, strict=False)) if len(lattice) else []
