"""Distances between crystals without tolerances: PDD and AMD (Widdowson and Kurlin), from their definitions.

The pointwise distance distribution PDD_k of a crystal has one row per atom of its cell, with equal weights: the
distances to the 1st to k-th nearest neighbour. AMD_k is the mean of the rows. Neither depends on the choice of the
cell, nor do they know elements or chirality. AMDs are compared by the largest difference of a column; PDDs by the earth
mover's distance between their rows under that ground distance. Everything is in ångström.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.crystals import CrystalBatch

NEIGHBOURS = 100
START, GROWTH = 1.15, 1.3  # of the radius of a ball that holds k atoms on average; and of a ball that held fewer
NEIGHBOURS_AT_ONCE = 30_000  # few enough to stay in the cache


def pdd(batch: CrystalBatch, k: int = NEIGHBOURS, device: torch.device | str | None = None) -> Tensor:
    """Distances (M, k) in ångström of every atom to its k nearest neighbours, ascending; its own images count.

    device: default that of the batch. Needs crystals that can be measured, see evaluation.validity.unusable. Raises
    ValueError for k below 1.
    """
    import torch

    from chem.lattice import volume

    if k < 1:
        raise ValueError(f"k = {k}, allowed: at least 1")
    batch = batch.to(torch.float64).to(device if device is not None else batch["lattice"].device)
    atoms = batch["num_atoms"].double()
    radius = START * ((k + 1) * volume(batch["lattice"]) / atoms.clamp(min=1) * 3 / (4 * np.pi)) ** (1 / 3)
    found = batch["lattice"].new_full((len(batch["batch"]), k), torch.nan)
    todo = torch.argsort(radius)[(atoms > 0)[torch.argsort(radius)]]
    while len(todo):
        again = []
        size = torch.cumsum(atoms[todo] * k * START**3, 0) // NEIGHBOURS_AT_ONCE
        # all of a group look as far as its largest radius, which for much smaller ones would be far too far
        cut = (size.diff() > 0) | (radius[todo].log2().floor().diff() > 0)
        for rows in torch.tensor_split(todo, (cut.nonzero()[:, 0] + 1).cpu()):
            nearest, short = _nearest(batch[rows], k, float(radius[rows].max()))
            where = torch.isin(batch["batch"], rows).nonzero()[:, 0]
            # batch[rows] has the crystals in the order of rows, the batch in its own
            order = torch.argsort(torch.repeat_interleave(rows, batch["num_atoms"][rows]), stable=True)
            found[where] = nearest[order]
            again.append(rows[short])
        todo = torch.cat(again)
        radius[todo] *= GROWTH
        todo = todo[torch.argsort(radius[todo])]
    return found


def amd(batch: CrystalBatch, k: int = NEIGHBOURS, device: torch.device | str | None = None) -> Tensor:
    """Average minimum distances (B, k) in ångström; zero for a crystal without atoms. See `pdd`."""
    rows = pdd(batch, k, device)
    return batch.to(rows.device).rows("frac_coords").mean(rows)


def amd_distances(a: Tensor, b: Tensor) -> Tensor:
    """Largest difference (A, B) in ångström of a column between each of AMDs (A, k) and each of (B, k)."""
    import torch

    return torch.cdist(a, b, p=torch.inf)


def pdd_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Earth mover's distance in ångström between two PDDs (N, k) and (M, k), rows of equal weight."""
    from math import lcm

    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise ValueError(f"a has shape {a.shape}, b {b.shape}; allowed: rows of the same number of distances")
    # rows of equal weight, repeated up to a common number: an optimal plan moves them whole (Birkhoff)
    rows = lcm(len(a), len(b))
    cost = cdist(a, b, "chebyshev").repeat(rows // len(a), 0).repeat(rows // len(b), 1)
    return float(cost[linear_sum_assignment(cost)].mean())


def _nearest(batch: CrystalBatch, k: int, radius: float) -> tuple[Tensor, Tensor]:
    """The k smallest distances (M, k) of each atom, and which crystals (B,) have an atom with fewer in reach."""
    import torch

    from chem.images import rows_times
    from chem.periodic import neighbour_list

    (i, j), shift = neighbour_list(batch, radius)
    frac, index = batch["frac_coords"], batch["batch"]
    distance = rows_times(frac[j] + shift - frac[i], batch["lattice"][index[i]]).norm(dim=-1)
    counts = torch.bincount(i, minlength=len(frac))
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(i[order], stable=True)]
    place = torch.arange(len(i), device=i.device) - (torch.cumsum(counts, 0) - counts)[i]
    kept = order[place < k]
    nearest = distance.new_full((len(frac), k), torch.inf)
    nearest[i[kept], place[place < k]] = distance[kept]
    few = torch.zeros(len(batch), device=i.device).index_add(0, index, (counts < k).float()) > 0
    return nearest, few
