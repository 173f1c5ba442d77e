"""Reduced cells, as pymatgen's StructureMatcher makes them: Niggli, then primitive within 0.25 Å.

Which cell is primitive depends on details of pymatgen's search, so pymatgen does it; only where it provably finds
nothing is it not asked. The order of the sites is kept, as the matcher's answer depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from evaluation.progress import counting
from evaluation.workers import Failed, limited_map

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from chem.crystals import CrystalBatch

TOLERANCE = 0.25  # Å, of pymatgen's search for a smaller cell
AT_ONCE = 1_000_000  # triples of atoms that are compared at once
TOGETHER = 32  # crystals that a process reduces in one go


class Arrays(NamedTuple):
    """One crystal: numbers (n,), frac (n, 3), lattice (3, 3) in ångström."""

    numbers: NDArray[np.int64]
    frac: NDArray[np.float64]
    lattice: NDArray[np.float64]


def reduced_cells(
    crystals: Sequence[Arrays], primitive: bool, seconds: float, processes: int | None = None
) -> list[Arrays | Failed]:
    """The reduced cell of each crystal, or why there is none; see `limited_map` for seconds, of each, and processes."""
    groups = [list(crystals[at : at + TOGETHER]) for at in range(0, len(crystals), TOGETHER)]
    cells: list[Arrays | Failed] = []
    tasks = ((group, primitive) for group in groups)
    with counting("reducing cells", len(crystals)) as tick:
        for group, found in zip(groups, limited_map(_reduce, tasks, seconds, processes, start), strict=True):
            cells += [found] * len(group) if isinstance(found, Failed) else found
            tick(len(group), 0)
    again = [n for n, cell in enumerate(cells) if isinstance(cell, Failed)]
    if again:  # one crystal fails its whole group
        tasks = (([crystals[n]], primitive) for n in again)
        for n, alone in zip(again, limited_map(_reduce, tasks, seconds, processes, start), strict=True):
            cells[n] = alone if isinstance(alone, Failed) else alone[0]
    return cells


def start() -> None:
    """What a new process imports before its first item, so that the import does not count against that item."""
    import pymatgen.analysis.structure_matcher  # noqa: F401


def _reduce(task: tuple[list[Arrays], bool]) -> list[Arrays]:
    crystals, primitive = task
    return [reduced(crystal, primitive) for crystal in crystals]


def arrays_of_batch(batch: CrystalBatch) -> list[Arrays]:
    """The crystals of a batch, one by one."""
    cuts = batch["ptr"][1:-1].tolist()
    if not len(batch):
        return []
    numbers = np.split(batch["atomic_numbers"].cpu().numpy(), cuts)
    frac = np.split(batch["frac_coords"].detach().cpu().double().numpy(), cuts)
    lattice = batch["lattice"].detach().cpu().double().numpy()
    return [Arrays(*one) for one in zip(numbers, frac, lattice, strict=True)]


def structure(arrays: Arrays) -> Structure:
    """The pymatgen Structure."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(arrays.lattice), arrays.numbers.tolist(), arrays.frac)


def reduced(arrays: Arrays, primitive: bool = True) -> Arrays:
    """The reduced cell of a crystal. Raises what pymatgen raises for a lattice that cannot be reduced."""
    found = structure(arrays).get_reduced_structure("niggli")
    if primitive and not surely_primitive(arrays_of(found)):
        found = found.get_primitive_structure()
    return arrays_of(found)


def arrays_of(found: Structure) -> Arrays:
    """Plain arrays of a pymatgen Structure."""
    numbers = np.array(found.atomic_numbers, dtype=np.int64)
    return Arrays(numbers, np.array(found.frac_coords), np.array(found.lattice.matrix))


def surely_primitive(arrays: Arrays) -> bool:
    """Whether pymatgen's search for a smaller cell is bound to find none.

    A cell of m primitive cells holds every element a multiple of m times. The search starts from the shifts between
    sites of a rarest element that take every site to within twice the tolerance of a like one; whichever rarest
    element it takes, such a shift is one of ours within four times the tolerance. Translations of a smaller cell differ
    from zero by at least 1 / m of an axis; where that is within the tolerance, the search is left to pymatgen.
    """
    numbers, frac, lattice = arrays
    groups = [frac[numbers == element] for element in np.unique(numbers)]
    most = int(np.gcd.reduce([len(group) for group in groups]))
    if most == 1:
        return True
    tolerance = TOLERANCE / np.linalg.norm(lattice, axis=1)
    if tolerance.max() * most >= 1:
        return False
    rarest = min(groups, key=len)
    shifts = rarest[1:] - rarest[0]
    for group in sorted(groups, key=len):
        step = max(AT_ONCE // (len(shifts) * len(group)), 1)  # sites, all of them at once in a cell of some dozens
        for first in range(0, len(group), step):
            gap = group[first : first + step, None, None] + shifts[:, None] - group  # (site, shift, image, 3)
            near = (np.abs(gap - np.round(gap)) <= 4 * tolerance).all(-1)
            shifts = shifts[near.any(-1).all(0)]
            if not len(shifts):
                return True
    return False
