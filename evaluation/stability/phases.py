"""Reference phases by composition and by chemical system: the table under a hull.

The systems of the table are the nodes of a tree, which the elements of a system lead down to in ascending order. So the
phases of all subsystems of many systems are found together, one element after the other, and only subsystems that the
table has are visited.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.compositions.amounts import COLUMNS, amounts, symbols

ROOT = 0  # of the tree: the node of no elements, where no branch leads


class Phases:
    """The phase of lowest energy of each composition, in ascending order of energy.

    formulas (R): as they were given, one phase each. shares (R, 119): of the atoms, by atomic number. energies (R,):
    formation energies in eV/atom. elements: the atomic numbers that have a reference energy; given phases of others are
    left out. names (119 + R): of the elements and, behind them, of the phases.
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
        self.names = [*symbols(range(COLUMNS)), *self.formulas]
        self._index = {key: row for row, key in enumerate(lowest)}
        self._branches, nodes = _tree(self.shares)
        self._rows = nodes.argsort(kind="stable")
        self._counts = np.bincount(nodes, minlength=len(self._branches))
        self._starts = self._counts.cumsum() - self._counts

    def __len__(self) -> int:
        return len(self.formulas)

    def find(self, shares: NDArray[np.float64]) -> int | None:
        """The row of the phase of a composition (119,), None where there is none."""
        return self._index.get(shares.tobytes())

    def within(self, systems: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of G systems, (G, m) atomic numbers ascending: all phases made of no other elements than those of a system.

        Returned are number of the system (P,) and row of the phase (P,), ascending.
        """
        which, node = np.arange(len(systems)), np.full(len(systems), ROOT)
        for column in systems.T:
            further = self._branches[node, column[which]]
            on = np.flatnonzero(further)
            which, node = np.concatenate((which, which[on])), np.concatenate((node, further[on]))
        counts = self._counts[node]
        first = self._starts[node] - (counts.cumsum() - counts)
        rows = self._rows[np.arange(counts.sum()) + first.repeat(counts)]
        both = which.repeat(counts) * len(self) + rows
        both.sort()
        return both // max(len(self), 1), both % max(len(self), 1)


def composition_shares(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the atoms (B, 119) from their amounts; zero without atoms."""
    return table / np.maximum(table.sum(1, keepdims=True), np.finfo(float).tiny)


def _tree(shares: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The node (K, 119) that an element leads to from a node, ROOT where none is, and the node (R,) of each row."""
    branches: dict[tuple[int, int], int] = {}
    nodes = [ROOT] * len(shares)
    for row, z in zip(*(axis.tolist() for axis in np.nonzero(shares)), strict=True):
        nodes[row] = branches.setdefault((nodes[row], z), len(branches) + 1)
    table = np.full((len(branches) + 1, COLUMNS), ROOT, dtype=np.int32)
    for (node, z), further in branches.items():
        table[node, z] = further
    return table, np.array(nodes, dtype=np.int64)
