"""Batches of molecules, their centres of mass and what makes a batch sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from chem.ragged import Level, RaggedBatch

BOND_ORDERS = (1.0, 1.5, 2.0, 3.0)  # 1.5 is aromatic


class MoleculeBatch(RaggedBatch):
    """Ragged, immutable batch of B molecules with M atoms and, where bonds are known, E bonds in all.

    atomic_numbers: (M,) int64 in 1..118. pos: (M, 3) Cartesian ångström. charges: (M,) int64 formal charges.
    types: (M, K) float, a network's continuous stand-in for the elements. bond_atoms: (E, 2) int64, the two atoms of a
    bond, counted from 0 *within their molecule*. bond_order: (E,) float, 1, 2, 3, or 1.5 for an aromatic bond, so that
    the orders at an atom add up to its valence; an integer type would turn aromatic bonds into single ones. Any of
    them may be absent; bonds need the argument `num_bonds` (B,).
    """

    LEVELS: ClassVar[Mapping[str, Level]] = {
        "atomic_numbers": "atom",
        "pos": "atom",
        "charges": "atom",
        "types": "atom",
        "bond_atoms": "bond",
        "bond_order": "bond",
    }

    @property
    def bond_index(self) -> Tensor:
        """(2, E) rows of the two atoms of every bond in the fields of the whole batch."""
        return (self["bond_atoms"] + self["ptr"][self["bond_batch"]].unsqueeze(-1)).T

    def with_bonds(
        self, num_bonds: Tensor | Sequence[int], bond_atoms: Tensor, bond_order: Tensor, **fields: Tensor
    ) -> MoleculeBatch:
        """A copy with these bonds instead of its own, and other fields changed or added; shapes as above."""
        kept = {k: v for k, v in self.fields.items() if self.levels[k] != "bond"}
        extra = {k: level for k, level in self._extra.items() if level != "bond"}
        bonds = {"bond_atoms": bond_atoms, "bond_order": bond_order}
        return MoleculeBatch(self["num_atoms"], extra, num_bonds, **kept, **bonds, **fields)

    def without_bonds(self) -> MoleculeBatch:
        """A copy that knows of no bonds."""
        kept = {k: v for k, v in self.fields.items() if self.levels[k] != "bond"}
        return MoleculeBatch(self["num_atoms"], {k: v for k, v in self._extra.items() if v != "bond"}, **kept)


def centered(batch: MoleculeBatch) -> MoleculeBatch:
    """Every molecule moved so that the mean of its positions (all atoms weigh the same) is the origin."""
    return batch.replace(pos=batch.rows("pos").center(batch["pos"]))


def offset(batch: MoleculeBatch) -> Tensor:
    """Length (B,) of the mean position of each molecule, ångström; zero after `centered`."""
    return torch.linalg.vector_norm(batch.rows("pos").mean(batch["pos"]), dim=-1)


def check(batch: MoleculeBatch) -> MoleculeBatch:
    """The batch itself; ValueError naming the first molecule that is not sound, the field, the value and the bounds.

    Elements are 1..118, positions finite; a bond joins two different atoms of its molecule, once, by a known order.
    """
    atoms, structure = batch.fields, batch["batch"]
    if "atomic_numbers" in atoms:
        z = batch["atomic_numbers"]
        _refuse((z < 1) | (z > 118), structure, "atomic_numbers", z, "1..118")
    if "pos" in atoms:
        _refuse(~batch["pos"].isfinite().all(-1), structure, "pos", batch["pos"], "finite numbers")
    if "bond_atoms" in atoms:
        pairs, of = batch["bond_atoms"], batch["bond_batch"]
        size = batch["num_atoms"][of].unsqueeze(-1)
        _refuse(((pairs < 0) | (pairs >= size)).any(-1), of, "bond_atoms", pairs, "atoms of the molecule, from 0")
        _refuse(pairs[:, 0] == pairs[:, 1], of, "bond_atoms", pairs, "two different atoms")
        low, high = batch.bond_index.sort(dim=0).values
        _, which, times = (low * len(structure) + high).unique(return_inverse=True, return_counts=True)
        _refuse(times[which] > 1, of, "bond_atoms", pairs, "each pair once")
    if "bond_order" in atoms:
        order = batch["bond_order"]
        known = torch.isin(order, order.new_tensor(BOND_ORDERS))
        _refuse(~known, batch["bond_batch"], "bond_order", order, ", ".join(f"{o:g}" for o in BOND_ORDERS))
    return batch


def _refuse(bad: Tensor, structure: Tensor, name: str, values: Tensor, allowed: str) -> None:
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"molecule {int(structure[row])}: {name} = {values[row].tolist()}, allowed: {allowed}")
