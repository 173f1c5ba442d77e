"""Distributions of crystals against a reference, and their diversity, after LeMat-GenBench (arXiv 2512.04562).

Only crystals that can be measured have properties; the denominators say how many those are. Density and number of
elements of valid crystals, the numbers of every table since CDVAE, are in evaluation.distributions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from evaluation.descriptors.described import Described
from evaluation.descriptors.symmetry import SYSTEMS, crystal_systems
from evaluation.divergence import diversity, element_shares, jensen_shannon, mmd, shares, wasserstein
from evaluation.protocols import Choices
from evaluation.report import Number
from evaluation.validity import densities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.crystals import CrystalBatch

BIN = 1.0  # Å^3 per atom, of the diversity of sizes


def volumes(batch: CrystalBatch) -> NDArray[np.float64]:
    """Volume (B,) of each cell in cubic ångström."""
    from chem.lattice import volume

    return volume(batch["lattice"].double()).cpu().numpy()


def cell_sizes(batch: CrystalBatch) -> NDArray[np.float64]:
    """Number of atoms (B,) of each cell."""
    return batch["num_atoms"].cpu().numpy().astype(np.float64)


def volumes_per_atom(batch: CrystalBatch) -> NDArray[np.float64]:
    """Volume (B,) per atom in cubic ångström."""
    return volumes(batch) / cell_sizes(batch)


def _parameter(which: int, column: int) -> Callable[[CrystalBatch], NDArray[np.float64]]:
    """Length (which = 0) or angle (1) number `column` of the cells."""

    def measure(batch: CrystalBatch) -> NDArray[np.float64]:
        from chem.lattice import parameters

        return parameters(batch["lattice"].double())[which][:, column].cpu().numpy()

    return measure


PROPERTIES: dict[str, tuple[Callable[[CrystalBatch], NDArray[np.float64]], str]] = {
    "volume_per_atom": (volumes_per_atom, "Å^3"),
    "num_atoms": (cell_sizes, "atoms"),
    **{name: (_parameter(0, i), "Å, cells as given") for i, name in enumerate(("a", "b", "c"))},
    **{name: (_parameter(1, i), "degrees, cells as given") for i, name in enumerate(("alpha", "beta", "gamma"))},
}


def compare(ours: Described, reference: Described, protocol: Choices, seed: int, symprec: float = 0.1) -> list[Number]:
    """Wasserstein distances of PROPERTIES, Jensen-Shannon divergences of categories, MMD of volume and density."""
    a, b = ours.measurable, reference.measurable
    of = f"{len(a)} of {len(ours)} structures, against {len(b)} of the reference"
    numbers = [
        wasserstein(f"wasserstein_{name}", measure(a), measure(b), of, protocol, seed, unit)
        for name, (measure, unit) in PROPERTIES.items()
    ]
    ours_by, theirs_by = (_categories(side, symprec) for side in (ours, reference))
    for name, rows in ours_by.items():
        known = rows[rows.sum(1) > 0]
        of_known = f"{len(known)} of {len(ours)} structures, against {len(b)} of the reference"
        theirs = theirs_by[name][theirs_by[name].sum(1) > 0]
        numbers.append(jensen_shannon(f"jsd_{name}", known, theirs, of_known, protocol, seed))
    for name, quantity, unit in (("volume", volumes, "Å^3"), ("density", densities, "g/cm^3")):
        numbers.append(mmd(f"mmd_{name}", quantity(a), quantity(b), of, protocol, seed, unit))
    return numbers


def variety(ours: Described, protocol: Choices, seed: int, symprec: float = 0.1) -> list[Number]:
    """Effective numbers of elements, space groups, crystal systems, cell sizes and volumes per atom."""
    atoms = cell_sizes(ours.measurable).astype(np.int64)
    size = np.floor(volumes_per_atom(ours.measurable) / BIN).astype(np.int64)
    tables = {
        **_categories(ours, symprec),
        "num_atoms": shares(atoms.tolist(), np.unique(atoms).tolist()),
        "volume_per_atom": shares(size.tolist(), np.unique(size).tolist()),
    }
    notes = {"volume_per_atom": f"bins of {BIN:g} Å^3", "elements": "every crystal weighs the same"}
    numbers = []
    for name, rows in tables.items():
        known = rows[rows.sum(1) > 0]
        of = f"{len(known)} of {len(ours)} structures"
        numbers.append(diversity(f"diversity_{name}", known, of, protocol, seed, notes.get(name, "")))
    return numbers


def _categories(side: Described, symprec: float) -> dict[str, NDArray[np.float64]]:
    """Shares of elements, and of space group and crystal system at a tolerance; rows of zeros where unknown."""
    groups = side.symmetry(symprec).space_groups
    return {
        "elements": element_shares(side.amounts),
        f"space_group@{symprec:g}": shares(groups.tolist(), range(1, 231)),
        f"crystal_system@{symprec:g}": shares(crystal_systems(groups).tolist(), [*SYSTEMS, "cubic"]),
    }
