"""How far crystals were from where they relaxed to: MatterGen's RMSD to relaxed, and the rate of those that match.

Both crystals are refined to their space group, made primitive and LLL-reduced, then aligned by pymatgen's matcher with
wide tolerances and without rescaling. The RMS displacement in units of (V/N)^(1/3), V/N that of the mean cell, becomes
ångström; a pair that cannot be aligned counts as 0.5 (V/N)^(1/3), never as missing (methods: MatterGen, evaluation).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.matching.pairs import matcher
from evaluation.protocols import Tolerances
from evaluation.workers import Failed, limited_map

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from chem.crystals import CrystalBatch

RMSD = Tolerances(0.5, 0.5, 10.0, scale=False, attempt_supercell=True)
SECONDS = 60.0


@dataclass(frozen=True)
class RelaxedMatch:
    """rmsd (B,) in ångström, matched (B,) bool, and reasons (B): why one did not match, empty where it did."""

    rmsd: NDArray[np.float64]
    matched: NDArray[np.bool_]
    reasons: list[str]


def match_relaxed(
    made: CrystalBatch,
    relaxed: CrystalBatch,
    tolerances: Tolerances = RMSD,
    seconds: float = SECONDS,
    processes: int | None = None,
) -> RelaxedMatch:
    """RMSD of every crystal to its relaxed self, crystal i of `made` against crystal i of `relaxed`.

    seconds, processes: of evaluation.workers.limited_map. Leave out crystals that failed: they have no relaxed self.
    Raises ValueError where the two batches differ in length.
    """
    from chem.convert import to_structures

    if len(made) != len(relaxed):
        raise ValueError(f"relaxed = {len(relaxed)} crystals, allowed: {len(made)}, one for each of made")
    pairs = [(a, b, tolerances) for a, b in zip(to_structures(made), to_structures(relaxed), strict=True)]
    rmsd, reasons = np.empty(len(pairs)), []
    for i, found in enumerate(limited_map(_displacement, pairs, seconds, processes, _start)):
        length, value = _length(*pairs[i][:2]), found if isinstance(found, float) else None
        rmsd[i] = length * (tolerances.stol if value is None else value)
        reasons.append(found.reason if isinstance(found, Failed) else "" if value is not None else "no alignment")
    return RelaxedMatch(rmsd, np.array([not reason for reason in reasons], dtype=bool), reasons)


def _start() -> None:
    import pymatgen.analysis.structure_matcher
    import pymatgen.symmetry.analyzer  # noqa: F401


def _displacement(task: tuple[Structure, Structure, Tolerances]) -> float | None:
    """RMS displacement of a pair in units of (V/N)^(1/3), or None."""
    with warnings.catch_warnings():  # spglib and pymatgen announce what no user can change
        warnings.simplefilter("ignore")
        found = matcher(task[2]).get_rms_dist(_reduced(task[0]), _reduced(task[1]))
    return None if found is None else float(found[0])


def _reduced(structure: Structure) -> Structure:
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    refined = SpacegroupAnalyzer(structure).get_refined_structure()
    return refined.get_primitive_structure().get_reduced_structure(reduction_algo="LLL")


def _length(a: Structure, b: Structure) -> float:
    """(V/N)^(1/3) in ångström of the cell with the mean lengths and angles of two."""
    from pymatgen.core import Lattice

    mean = Lattice.from_parameters(*(np.array(a.lattice.parameters) + np.array(b.lattice.parameters)) / 2)
    return float((mean.volume / len(a)) ** (1 / 3))
