"""Periodic geometry: the flat torus of fractional coordinates, exact minimum images, neighbour lists.

Lattices are rows, Cartesian = fractional @ lattice, ångström. Distances are exact on any cell: the cell is first
reduced, which changes no distance, and the images that can win are bounded by the heights of the reduced cell
(the reciprocals of reciprocal lengths), so skewed, flat and needle-like cells need no wider search than a cubic one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.images import SLACK, nearest_images, reduce_cells, rows_times, safe_norm, shortest_vector, wide

CANDIDATES = 2_000_000  # pair images examined at once by neighbour_list, which bounds its memory


def wrap(frac: Tensor) -> Tensor:
    """Fractional coordinates, any shape, into [0, 1); tiny negative numbers become 0, never 1."""
    wrapped = frac - torch.floor(frac)
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)


def torus_log(x: Tensor, y: Tensor) -> Tensor:
    """Shortest way from x to y on the unit torus, per component in (-1/2, 1/2] (FlowMM, section on coordinates)."""
    delta = y - x
    return delta - torch.ceil(delta - 0.5)


def torus_exp(x: Tensor, v: Tensor) -> Tensor:
    """The point reached from x by the displacement v, in [0, 1)."""
    return wrap(x + v)


def minimum_image_distances(frac_a: Tensor, frac_b: Tensor, lattice: Tensor) -> Tensor:
    """Exact distances (...) in ångström between points (..., 3) and (..., 3) in cells (..., 3, 3); all broadcast.

    Every pair of two sets is `minimum_image_distances(a[:, None], b[None], lattice)`. Differentiable; the gradient at
    distance zero is zero. Raises ValueError for a cell without volume.
    """
    for name, value, tail in (("frac_a", frac_a, 1), ("frac_b", frac_b, 1), ("lattice", lattice, 2)):
        if value.dim() < tail or set(value.shape[-tail:]) != {3}:
            raise ValueError(f"{name} must have shape (..., {'3, ' * (tail - 1)}3), got {tuple(value.shape)}")
    delta = wide(frac_b) - wide(frac_a)
    cells = lattice.reshape(-1, 3, 3)
    which = torch.arange(len(cells), device=lattice.device).reshape(lattice.shape[:-2])
    shape = torch.broadcast_shapes(delta.shape[:-1], which.shape)
    delta, which = delta.expand(*shape, 3).reshape(-1, 3), which.expand(shape).reshape(-1)
    image = nearest_images(delta, which, reduce_cells(cells))
    return safe_norm(rows_times(delta + image, wide(cells)[which])).to(frac_a.dtype).reshape(shape)


def pair_distances(batch: CrystalBatch) -> tuple[Tensor, Tensor]:
    """Every unordered pair of different atoms of one structure, (2, P), and its exact distances (P,) in ångström."""
    pairs = _all_pairs(batch)
    pairs = pairs[:, pairs[0] < pairs[1]]
    frac, which = wide(batch["frac_coords"]), batch["batch"][pairs[0]]
    delta = frac[pairs[1]] - frac[pairs[0]]
    image = nearest_images(delta, which, reduce_cells(batch["lattice"]))
    vectors = rows_times(delta + image, wide(batch["lattice"])[which])
    return pairs, safe_norm(vectors).to(batch["frac_coords"].dtype)


def min_distance(batch: CrystalBatch) -> Tensor:
    """Smallest distance (B,) in ångström between two atoms of each structure, an atom's own images included.

    Infinite for a structure without atoms. Raises ValueError for a cell without volume.
    """
    pairs, distances = pair_distances(batch)
    cell = reduce_cells(batch["lattice"])
    own = shortest_vector(cell).to(distances.dtype)
    own = torch.where(batch["num_atoms"] > 0, own, torch.full_like(own, torch.inf))
    return own.scatter_reduce(0, batch["batch"][pairs[0]], distances, "amin")


def neighbour_list(batch: CrystalBatch, cutoff: float) -> tuple[Tensor, Tensor]:
    """All neighbours within `cutoff` ångström (inclusive), an atom's own images included, itself excluded.

    Returns edge_index (2, E) of i and j over the whole batch, sorted by i, then j, and shift (E, 3) int64 such that
    the displacement from i to j is (frac_coords[j] + shift - frac_coords[i]) @ lattice. Both directions are listed.
    Raises ValueError for a cutoff that is not positive and finite and for a cell without volume.
    """
    if not 0 < cutoff < float("inf"):
        raise ValueError(f"cutoff must be a positive number of ångström, got {cutoff}")
    cell, pairs = reduce_cells(batch["lattice"]), _all_pairs(batch)
    with torch.no_grad():
        frac, which = wide(batch["frac_coords"]), batch["batch"][pairs[0]]
        delta = rows_times(frac[pairs[1]] - frac[pairs[0]], cell.inverse[which])
        reach = cutoff * torch.linalg.vector_norm(torch.linalg.inv(cell.rows), dim=-2)[which] + SLACK
        low = torch.ceil(-reach - delta).long()
        size = (torch.floor(reach - delta).long() - low + 1).clamp(min=0)
        count = size.double().prod(-1) if size.device.type != "mps" else size.float().prod(-1)
        if bool((count > 10 * CANDIDATES).any()):
            worst = int(which[count.argmax()])
            raise ValueError(f"cutoff {cutoff} reaches {count.max():.0e} images of one atom in structure {worst}")
        ends = torch.cumsum(size.prod(-1), 0)
        edges, shifts, start = [], [], 0
        while start < len(ends):
            done = ends[start - 1] if start else ends.new_zeros(())
            stop = max(start + 1, int(torch.searchsorted(ends, done + CANDIDATES, right=True)))
            chunk = slice(start, stop)
            row, image = _boxes(low[chunk], size[chunk])
            row = row + start
            vectors = rows_times(delta[row] + image, cell.rows[which[row]])
            same = (pairs[0][row] == pairs[1][row]) & (image == 0).all(-1)
            keep = (torch.linalg.vector_norm(vectors, dim=-1) <= cutoff) & ~same
            row, image = row[keep], image[keep]
            edges.append(pairs[:, row])
            # back from the reduced cell: n' a' = n' T a
            shifts.append(rows_times(image.to(cell.steps), cell.steps[which[row]]).round().long())
            start = stop
        if not edges:
            return pairs.new_zeros(2, 0), pairs.new_zeros(0, 3)
        return torch.cat(edges, 1), torch.cat(shifts)


def _all_pairs(batch: CrystalBatch) -> Tensor:
    """All ordered pairs (2, P) of atoms of one structure, an atom with itself included, sorted."""
    counts, index = batch["num_atoms"], batch["batch"]
    partners = counts[index]
    first = torch.repeat_interleave(torch.arange(len(index), device=index.device), partners)
    offset = torch.arange(len(first), device=index.device)
    offset = offset - torch.repeat_interleave(torch.cumsum(partners, 0) - partners, partners)
    return torch.stack([first, batch["ptr"][index[first]] + offset])


def _boxes(low: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Every integer point (E, 3) of boxes with lowest corner (P, 3) and size (P, 3), and the box (E,) it is in."""
    counts = size.prod(-1)
    row = torch.repeat_interleave(torch.arange(len(low), device=low.device), counts)
    k = torch.arange(len(row), device=low.device) - (torch.cumsum(counts, 0) - counts)[row]
    y, z = size[row, 1], size[row, 2]
    return row, low[row] + torch.stack([k // (y * z), k // z % y, k % z], -1)
