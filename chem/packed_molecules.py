"""Molecules in flat arrays, as they lie in the cache and in prepared folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chem.molecules import MoleculeBatch

BONDS = ("num_bonds", "bond_atoms", "bond_order")


@dataclass(frozen=True)
class PackedMolecules:
    """B molecules with M atoms, and E bonds where they are known, in flat arrays, and what could not be read.

    atomic_numbers (M,) uint8, num_atoms (B,) int32, pos (M, 3) ångström; charges (M,) int8 or None; num_bonds (B,)
    int32, bond_atoms (E, 2) int16 within the molecule and bond_order (E,) float32, all three or none; properties:
    name -> (B,) float64, NaN where missing; failures: (id, reason) of the rest of the source.
    """

    KIND: ClassVar[str] = "molecules"
    ARRAYS: ClassVar[tuple[str, ...]] = ("atomic_numbers", "num_atoms", "pos", "charges", *BONDS)

    atomic_numbers: NDArray[np.uint8]
    num_atoms: NDArray[np.int32]
    pos: NDArray[np.float64]
    ids: list[str]
    failures: list[tuple[str, str]] = field(default_factory=list)
    properties: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    charges: NDArray[np.int8] | None = None
    num_bonds: NDArray[np.int32] | None = None
    bond_atoms: NDArray[np.int16] | None = None
    bond_order: NDArray[np.float32] | None = None

    def batch(self) -> MoleculeBatch:
        """A float64 batch with the properties attached; a name the batch itself uses gets a trailing underscore."""
        import torch

        from chem.molecules import MoleculeBatch
        from chem.packing import attach_properties

        def tensor(array: NDArray, dtype: type) -> torch.Tensor:
            return torch.from_numpy(array.astype(dtype))

        batch = MoleculeBatch(
            tensor(self.num_atoms, np.int64),
            atomic_numbers=tensor(self.atomic_numbers, np.int64),
            pos=tensor(self.pos, np.float64),
        )
        if self.charges is not None:
            batch = batch.replace(charges=tensor(self.charges, np.int64))
        if self.num_bonds is not None and self.bond_atoms is not None and self.bond_order is not None:
            bonds = tensor(self.bond_atoms, np.int64), tensor(self.bond_order, np.float64)
            batch = batch.with_bonds(tensor(self.num_bonds, np.int64), *bonds)
        return attach_properties(batch, self.properties)


def pack_batch(
    batch: MoleculeBatch,
    ids: Sequence[str],
    properties: Mapping[str, NDArray[np.float64]],
    failures: Sequence[tuple[str, str]] = (),
) -> PackedMolecules:
    """A batch of molecules in flat arrays, with ids, property columns (B,) and failures."""
    arrays = {
        name: batch[name].cpu().numpy().astype(dtype)
        for name, dtype in (("charges", np.int8), ("num_bonds", np.int32), ("bond_atoms", np.int16))
        if name in batch
    }
    if "bond_order" in batch:
        arrays["bond_order"] = batch["bond_order"].cpu().numpy().astype(np.float32)
    return PackedMolecules(
        atomic_numbers=batch["atomic_numbers"].cpu().numpy().astype(np.uint8),
        num_atoms=batch["num_atoms"].cpu().numpy().astype(np.int32),
        pos=batch["pos"].cpu().double().numpy(),
        ids=list(ids),
        failures=list(failures),
        properties={name: np.asarray(values, dtype=np.float64) for name, values in properties.items()},
        **arrays,
    )
