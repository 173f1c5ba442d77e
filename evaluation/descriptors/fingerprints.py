"""Structure fingerprints: the 61 columns of CrystalNN with order parameters, averaged over the atoms of a crystal.

They are matminer's CrystalNNFingerprint with the preset "ops" and CDVAE's mean over sites, which the coverage of the
field is measured with: for each number of bonds n up to 24 the weight of n (coordination.py), and up to 12 that
weight times each order parameter of the first n bonds (motifs.py). A crystal without a fingerprint keeps its
row, of NaN, and the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.progress import counting
from evaluation.validity import unusable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.crystals import CrystalBatch

MOST_BONDS = 24
ATOMS_AT_ONCE, PAIRS_AT_ONCE = 2000, 2_000_000
UNKNOWN_RADIUS = "an element without covalent radius"


@dataclass(frozen=True)
class Fingerprints:
    """values: (B, D) float64, NaN for a crystal without. reasons: (B), why there is none, empty where there is."""

    values: NDArray[np.float64]
    reasons: list[str]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which crystals (B,) have a fingerprint."""
        return np.array([not reason for reason in self.reasons], dtype=bool)


def structure_names() -> list[str]:
    """The columns in order, such as "octahedral CN_6"; "wt" is the weight of that number of bonds."""
    from evaluation.descriptors.motifs import MOTIFS

    names = {n: ["wt", *MOTIFS.get(n, {})] for n in range(1, MOST_BONDS + 1)}
    return [f"{name} CN_{n}" for n, motifs in names.items() for name in motifs]


def structure_fingerprints(batch: CrystalBatch, device: torch.device | str | None = None) -> Fingerprints:
    """Mean fingerprint (B, 61) of the atoms of each crystal.

    device: default that of the batch; of all but the convex hulls of the Voronoi cells, which the CPU finds.
    """
    from evaluation.descriptors.coordination import coordination, elements_without_radius
    from evaluation.descriptors.voronoi import voronoi_faces

    reasons = unusable(batch)
    sizes = batch["num_atoms"].cpu().numpy()
    unknown = np.isin(batch["atomic_numbers"].cpu().numpy(), list(elements_without_radius()))
    for i in np.unique(batch["batch"].cpu().numpy()[unknown]):
        reasons[i] = reasons[i] or UNKNOWN_RADIUS
    values = np.full((len(batch), len(structure_names())), np.nan)
    usable = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.int64)
    with counting("fingerprints", len(usable)) as tick:
        for rows in _chunks(usable, sizes):
            part = batch[rows.tolist()]
            faces, failed = voronoi_faces(part, device)
            part = part.to(faces.vector.device)
            sites = _site_values(*coordination(part, faces))
            values[rows] = part.rows("atomic_numbers").mean(sites).cpu().numpy()
            for i, reason in failed.items():
                reasons[rows[i]] = reason
                values[rows[i]] = np.nan
            tick(len(rows), len(failed))
    return Fingerprints(values, reasons)


def _chunks(rows: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows, cut where their atoms add up to ATOMS_AT_ONCE or their pairs to PAIRS_AT_ONCE."""
    if len(rows):
        counts = sizes[rows].astype(np.int64)
        atoms, pairs = np.cumsum(counts) // ATOMS_AT_ONCE, np.cumsum(counts**2) // PAIRS_AT_ONCE
        yield from np.split(rows, np.flatnonzero(np.diff(atoms) | np.diff(pairs)) + 1)


def _site_values(vectors: Tensor, shares: Tensor) -> Tensor:
    """Columns (M, 61) of atoms with vectors (M, K, 3) to their neighbours and weights (M, K) of each number of them."""
    import torch

    from evaluation.descriptors.motifs import MOTIFS, order_parameters

    unit = torch.nn.functional.normalize(vectors, dim=-1)
    columns = []
    for n in range(1, MOST_BONDS + 1):
        weight = shares[:, n - 1] if n <= shares.shape[1] else shares.new_zeros(len(shares))
        columns.append(weight.unsqueeze(-1))
        if n in MOTIFS:
            some = weight != 0
            found = weight.new_zeros(len(weight), len(MOTIFS[n]))
            if bool(some.any()):
                found[some] = order_parameters(unit[some, :n])
            columns.append(weight.unsqueeze(-1) * found)
    return torch.cat(columns, -1)
