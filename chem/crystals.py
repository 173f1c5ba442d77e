"""Batches of crystals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from chem.ragged import Level, RaggedBatch


class CrystalBatch(RaggedBatch):
    """Ragged, immutable batch of B crystals with M atoms in all.

    atomic_numbers: (M,) int64 in 1..118. frac_coords: (M, 3), in [0, 1) when it holds data. lattice: (B, 3, 3) in
    ångström, *rows* are the lattice vectors, Cartesian = frac_coords @ lattice. types: (M, K) float, a network's
    continuous stand-in for the elements; cell: (B, 6), one for the lattice (chem.cell_vectors). Any of them may be
    absent (a template carries only what is given).
    Properties and other columns are attached by level: `batch.attach("structure", band_gap=...)`.
    """

    LEVELS: ClassVar[Mapping[str, Level]] = {
        "atomic_numbers": "atom",
        "frac_coords": "atom",
        "types": "atom",
        "lattice": "structure",
        "cell": "structure",
    }

    @property
    def pos(self) -> Tensor:
        """Cartesian coordinates (M, 3) in ångström."""
        return (self["frac_coords"].unsqueeze(1) @ self["lattice"][self["batch"]]).squeeze(1)
