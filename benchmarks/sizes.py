"""Batches with the sizes of MP-20 and of QM9, made up otherwise: timings depend on the sizes alone."""

from __future__ import annotations

import torch

from chem.crystals import CrystalBatch
from chem.molecules import MoleculeBatch
from chem.ragged import RaggedBatch

# share of the MP-20 training crystals with N = 1..20 atoms
MP20_SIZES = (
    0.0021742, 0.0210790, 0.0198261, 0.1527123, 0.0471330, 0.0846477, 0.0210790, 0.0780881, 0.0343455, 0.0972877,
    0.0133034, 0.0966981, 0.0215581, 0.0652270, 0.0143724, 0.0670327, 0.0097287, 0.0531766, 0.0105764, 0.0899543,
)  # fmt: skip

# molecules of QM9's training split with N = 3..29 atoms
QM9_SIZES = (
    1, 4, 5, 9, 16, 49, 124, 362, 807, 1689, 3060, 5136, 7796, 10644, 13025, 13364, 13832, 9482, 9970, 3393, 4848, 539,
    1506, 48, 266, 0, 25,
)  # fmt: skip


def mp20_like(crystals: int, seed: int = 0) -> CrystalBatch:
    """Random triclinic crystals in float32, their sizes drawn from the MP-20 histogram."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.multinomial(torch.tensor(MP20_SIZES), crystals, replacement=True, generator=g) + 1
    atoms = int(counts.sum())
    return CrystalBatch(
        counts,
        frac_coords=torch.rand(atoms, 3, generator=g),
        lattice=5 * torch.eye(3) + torch.randn(crystals, 3, 3, generator=g),
        atomic_numbers=torch.randint(1, 101, (atoms,), generator=g),
    )


def qm9_like(molecules: int, seed: int = 0) -> MoleculeBatch:
    """Random molecules in float32 with one number per atom in `types`, their sizes drawn from the QM9 histogram."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.multinomial(torch.tensor(QM9_SIZES).float(), molecules, replacement=True, generator=g) + 3
    atoms = int(counts.sum())
    return MoleculeBatch(
        counts, pos=torch.randn(atoms, 3, generator=g), types=torch.rand(atoms, 1, generator=g) * 2 - 1
    )


def describe(batch: RaggedBatch) -> str:
    """Atoms V, ordered pairs E and unordered pairs P of a batch."""
    counts = batch["num_atoms"]
    atoms, edges = int(counts.sum()), int(counts.square().sum())
    what = "molecules" if isinstance(batch, MoleculeBatch) else "crystals"
    return f"{batch.num_structures} {what}, V {atoms}, E {edges}, P {(edges - atoms) // 2}"
