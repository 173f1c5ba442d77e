"""Potentials: crystals in, energies, forces and stresses out; what judges the stability of a sample.

Energies are totals in eV, forces are in eV/Å. Stresses are in eV/Å^3 with the sign of ASE: a row-vector cell under the
strain e is lattice @ (1 + e), and the stress is dE/de divided by the volume, positive where the cell wants to shrink.

An energy means nothing without its scale, so a potential names its `correction`:

    "none"      raw energies of the functional it was fitted to; entries still need the corrections of the reference
    "MP2020"    already on the scale of the Materials Project's 2020 corrections: nothing may be added
    "r2SCAN"    raw r2SCAN energies, never to be compared with a PBE reference
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from chem.convert import to_ase
from chem.crystals import CrystalBatch

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

ALL_ELEMENTS = frozenset(range(1, 119))


class Prediction(NamedTuple):
    """energies (B,) in eV, forces (M, 3) in eV/Å, stress (B, 3, 3) in eV/Å^3; float64, without gradients."""

    energies: Tensor
    forces: Tensor
    stress: Tensor


class Potential(Protocol):
    """Whatever predicts energies, forces and stresses of a batch.

    name, version: for the label of a protocol. correction: see the module. elements: the atomic numbers it knows.
    cutoff: the distance in ångström beyond which two atoms do not see each other, None where there is none.
    The coordinates of a batch need not be wrapped: atoms that crossed a cell boundary may keep counting.
    """

    name: str
    version: str
    correction: str
    elements: frozenset[int]
    cutoff: float | None

    def __call__(self, batch: CrystalBatch) -> Prediction:
        """Energies, forces and stresses of every crystal."""
        ...


def label(potential: Potential) -> str:
    """Name and version, as a protocol prints them: "chgnet 0.3.0"."""
    return f"{potential.name} {potential.version}"


class AsePotential:
    """Any calculator of ASE as a potential, one crystal at a time: the slow path.

    A crystal on which the calculator raises gets NaN, with a warning. Raises ValueError for a calculator that computes
    no stress.
    """

    def __init__(
        self,
        calculator: Calculator,
        name: str,
        version: str,
        *,
        correction: str = "none",
        elements: frozenset[int] = ALL_ELEMENTS,
        cutoff: float | None = None,
    ):
        missing = {"energy", "forces", "stress"} - set(calculator.implemented_properties)
        if missing:
            raise ValueError(f"calculator = {type(calculator).__name__}, allowed: one that computes {missing.pop()}")
        self.calculator, self.name, self.version = calculator, name, version
        self.correction, self.elements, self.cutoff = correction, elements, cutoff

    def __call__(self, batch: CrystalBatch) -> Prediction:
        """Energies, forces and stresses of every crystal, through ASE."""
        found = [self._one(i, atoms) for i, atoms in enumerate(to_ase(batch))]
        empty = Prediction(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3, 3))
        tensors = (torch.cat(parts) for parts in zip(empty, *found, strict=True))
        return Prediction(*(x.to(batch["lattice"].device, torch.float64) for x in tensors))

    def _one(self, number: int, atoms: Atoms) -> Prediction:
        atoms.calc = self.calculator
        try:
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            stress = atoms.get_stress(voigt=False)
        except Exception as error:
            warnings.warn(f"crystal {number}: {self.name}: {type(error).__name__}: {error}", stacklevel=3)
            energy, forces, stress = np.nan, np.full((len(atoms), 3), np.nan), np.full((3, 3), np.nan)
        values = (np.array([energy]), forces, stress[None])
        return Prediction(*(torch.from_numpy(np.array(x, dtype=np.float64)) for x in values))
