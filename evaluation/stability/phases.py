"""Reference phases by composition and by chemical system: the table under a hull."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.compositions.amounts import COLUMNS, amounts

MANY_ELEMENTS = 10  # above it the systems of the table are looked through, not the subsets of the elements


class Phases:
    """The phase of lowest energy of each composition, in ascending order of energy.

    formulas (R): as they were given, one phase each. shares (R, 119): of the atoms, by atomic number. energies (R,):
    formation energies in eV/atom. elements: the atomic numbers that have a reference energy; given phases of others are
    left out.
    """

    def __init__(self, formulas: Sequence[str], energies: NDArray[np.float64], elements: Sequence[int] | None = None):
        table = amounts(formulas).numpy()
        known = np.flatnonzero(table.any(0)) if elements is None else np.unique(np.asarray(elements, dtype=np.int64))
        usable = np.flatnonzero(~table[:, np.setdiff1d(np.arange(COLUMNS), known)].any(1))
        shares = composition_shares(table)
        lowest: dict[bytes, int] = {}
        for i in usable[np.argsort(energies[usable], kind="stable")].tolist():
            lowest.setdefault(shares[i].tobytes(), i)
        kept = list(lowest.values())
        self.elements = frozenset(known.tolist())
        self.formulas, self.shares, self.energies = [formulas[i] for i in kept], shares[kept], energies[kept]
        self._index = {key: row for row, key in enumerate(lowest)}
        self._systems: dict[int, list[int]] = {}
        for row, system in enumerate(systems(self.shares)):
            self._systems.setdefault(system, []).append(row)

    def __len__(self) -> int:
        return len(self.formulas)

    def find(self, shares: NDArray[np.float64]) -> int | None:
        """The row of the phase of a composition (119,), None where there is none."""
        return self._index.get(shares.tobytes())

    def within(self, system: int) -> NDArray[np.int64]:
        """The rows of all phases made of no other elements than those of a system."""
        found: list[int] = []
        if system.bit_count() > MANY_ELEMENTS:
            for other, rows in self._systems.items():
                if not other & ~system:
                    found += rows
        else:
            subset = system
            while subset:
                found += self._systems.get(subset, ())
                subset = (subset - 1) & system
        return np.array(found, dtype=np.int64)


def composition_shares(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the atoms (B, 119) from their amounts; zero without atoms."""
    return table / np.maximum(table.sum(1, keepdims=True), np.finfo(float).tiny)


def systems(shares: NDArray[np.float64]) -> list[int]:
    """The chemical system of each composition: its elements as the bits of one number."""
    found = [0] * len(shares)
    for row, z in zip(*(axis.tolist() for axis in np.nonzero(shares)), strict=True):
        found[row] |= 1 << z
    return found
