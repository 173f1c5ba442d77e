"""Periodic geometry: the flat torus of fractional coordinates, exact minimum images, neighbour lists.

Lattices are rows, Cartesian = fractional @ lattice, ångström. Distances are exact on any cell: the cell is first
reduced, which changes no distance, and the images that can win are bounded by the heights of the reduced cell
(the reciprocals of reciprocal lengths), so skewed, flat and needle-like cells need no wider search than a cubic one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chem.crystals import CrystalBatch

CANDIDATES = 2_000_000  # pair images examined at once by neighbour_list, which bounds its memory
SLACK = 1e-9  # widens image bounds, so that rounding cannot lose an image; the distances themselves are exact


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
    delta = _wide(frac_b) - _wide(frac_a)
    cells = lattice.reshape(-1, 3, 3)
    which = torch.arange(len(cells), device=lattice.device).reshape(lattice.shape[:-2])
    shape = torch.broadcast_shapes(delta.shape[:-1], which.shape)
    delta, which = delta.expand(*shape, 3).reshape(-1, 3), which.expand(shape).reshape(-1)
    image = _nearest_images(delta, which, _reduce(cells))
    return _norm(((delta + image).unsqueeze(1) @ _wide(cells)[which]).squeeze(1)).to(frac_a.dtype).reshape(shape)


def pair_distances(batch: CrystalBatch) -> tuple[Tensor, Tensor]:
    """Every unordered pair of different atoms of one structure, (2, P), and its exact distances (P,) in ångström."""
    pairs = _all_pairs(batch)
    pairs = pairs[:, pairs[0] < pairs[1]]
    frac, which = _wide(batch["frac_coords"]), batch["batch"][pairs[0]]
    delta = frac[pairs[1]] - frac[pairs[0]]
    image = _nearest_images(delta, which, _reduce(batch["lattice"]))
    vectors = (delta + image).unsqueeze(1) @ _wide(batch["lattice"])[which]
    return pairs, _norm(vectors.squeeze(1)).to(batch["frac_coords"].dtype)


def min_distance(batch: CrystalBatch) -> Tensor:
    """Smallest distance (B,) in ångström between two atoms of each structure, an atom's own images included.

    Infinite for a structure without atoms. Raises ValueError for a cell without volume.
    """
    pairs, distances = pair_distances(batch)
    cell = _reduce(batch["lattice"])
    own = _shortest_vector(cell).to(distances.dtype)
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
    cell, pairs = _reduce(batch["lattice"]), _all_pairs(batch)
    with torch.no_grad():
        frac, which = _wide(batch["frac_coords"]), batch["batch"][pairs[0]]
        delta = ((frac[pairs[1]] - frac[pairs[0]]).unsqueeze(1) @ cell.inverse[which]).squeeze(1)
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
            vectors = ((delta[row] + image).unsqueeze(1) @ cell.rows[which[row]]).squeeze(1)
            same = (pairs[0][row] == pairs[1][row]) & (image == 0).all(-1)
            keep = (torch.linalg.vector_norm(vectors, dim=-1) <= cutoff) & ~same
            row, image = row[keep], image[keep]
            edges.append(pairs[:, row])
            # back from the reduced cell: n' a' = n' T a
            shifts.append((image.unsqueeze(1).to(cell.steps) @ cell.steps[which[row]]).squeeze(1).round().long())
            start = stop
        if not edges:
            return pairs.new_zeros(2, 0), pairs.new_zeros(0, 3)
        return torch.cat(edges, 1), torch.cat(shifts)


class _Cell(NamedTuple):
    """Reduced cells: rows = steps @ lattice with integer steps; all floating point, (B, 3, 3)."""

    rows: Tensor
    steps: Tensor
    inverse: Tensor  # of steps: fractional coordinates in the reduced cell are f @ inverse


def _wide(x: Tensor) -> Tensor:
    """float64 where the device has it: distances in a strongly skewed cell are differences of large numbers."""
    return x if x.device.type == "mps" else x.double()


def _norm(vectors: Tensor) -> Tensor:
    """Length of the rows, with gradient zero (not NaN) at zero."""
    square = (vectors * vectors).sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, torch.ones_like(square)).sqrt(), square)


@torch.no_grad()
def _reduce(lattice: Tensor) -> _Cell:
    """Minkowski-like reduction of cells (B, 3, 3) by greedy integer steps, all cells at once; keeps every lattice."""
    rows = _wide(lattice.detach()).clone()
    scale = torch.linalg.vector_norm(rows, dim=-1).amax(-1).clamp(min=1e-30) if len(rows) else rows.new_ones(0)
    bad = ~(torch.linalg.det(rows / scale.reshape(-1, 1, 1)).abs() > 1e-12)
    if bool(bad.any()):
        raise ValueError(f"lattice {int(bad.nonzero()[0])} (of {len(rows)}) must be finite and have a volume")
    steps = torch.eye(3, dtype=rows.dtype, device=rows.device).expand_as(rows).clone()
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=rows.dtype, device=rows.device)
    for _ in range(100):
        before = rows
        order = torch.linalg.vector_norm(rows, dim=-1).argsort(-1).unsqueeze(-1).expand_as(rows)
        rows, steps = rows.gather(1, order), steps.gather(1, order)
        a, b = rows[:, 0], rows[:, 1]
        n = torch.round((a * b).sum(-1, keepdim=True) / (a * a).sum(-1, keepdim=True))
        rows, steps = _subtract(rows, steps, 1, n, n * 0)
        # the point of the plane lattice of a, b nearest to c is a corner of the mesh that holds c's projection
        plane = rows[:, :2]
        at = torch.linalg.solve(plane @ plane.mT, (plane @ rows[:, 2].unsqueeze(-1)).squeeze(-1))
        mesh = torch.floor(at).unsqueeze(1) + corners
        best = torch.linalg.vector_norm(rows[:, 2:] - mesh @ plane, dim=-1).argmin(-1)
        pick = mesh[torch.arange(len(rows), device=rows.device), best]
        rows, steps = _subtract(rows, steps, 2, pick[:, :1], pick[:, 1:])
        if torch.equal(rows, before):
            break
    # rebuilt from the integers, so that rounding of the greedy steps does not stay
    return _Cell(steps @ _wide(lattice.detach()), steps, torch.linalg.inv(steps).round())


def _subtract(rows: Tensor, steps: Tensor, k: int, n_a: Tensor, n_b: Tensor) -> tuple[Tensor, Tensor]:
    """Row k minus n_a times row 0 minus n_b times row 1, in the cells and in their integer coordinates."""
    factor = torch.zeros_like(rows)
    factor[:, k, 0], factor[:, k, 1] = n_a.squeeze(-1), n_b.squeeze(-1)
    return rows - factor @ rows, steps - factor @ steps


class _Frame(NamedTuple):
    """Gram-Schmidt heights g1, g2, g3 (B,) of reduced cells and the slants mu21, mu31, mu32 (B,)."""

    g1: Tensor
    g2: Tensor
    g3: Tensor
    mu21: Tensor
    mu31: Tensor
    mu32: Tensor


def _frame(cell: _Cell) -> _Frame:
    a, b, c = cell.rows.unbind(-2)
    mu21, mu31 = (a * b).sum(-1) / (a * a).sum(-1), (a * c).sum(-1) / (a * a).sum(-1)
    b_star = b - mu21.unsqueeze(-1) * a
    mu32 = (b_star * c).sum(-1) / (b_star * b_star).sum(-1)
    c_star = c - mu31.unsqueeze(-1) * a - mu32.unsqueeze(-1) * b_star
    g1, g2, g3 = (torch.linalg.vector_norm(v, dim=-1) for v in (a, b_star, c_star))
    return _Frame(g1, g2, g3, mu21, mu31, mu32)


@torch.no_grad()
def _nearest_images(delta: Tensor, which: Tensor, cell: _Cell) -> Tensor:
    """Integer shifts (P, 3), in the original cell, that make the displacements delta (P, 3) in cells `which` shortest.

    Write x = delta + n in the reduced cell. Rounding one component after the other gives some image no longer than
    half the root of g1^2 + g2^2 + g3^2, so |x3| g3 is at most that; given x3 the same argument in the plane bounds x2,
    and given both the best n1 is a rounding. Hence a handful of (n2, n3) is a complete search.
    """
    if not len(delta):
        return torch.zeros_like(delta)
    f = _frame(cell)
    most3 = torch.sqrt(f.g1**2 + f.g2**2 + f.g3**2) / (2 * f.g3)
    most2 = torch.sqrt(f.g1**2 + f.g2**2) / (2 * f.g2) + f.mu32.abs() * most3
    x = (delta.detach().unsqueeze(1) @ cell.inverse[which]).squeeze(1)
    base = torus_log(torch.zeros_like(x), x)
    mu21, mu31 = f.mu21[which], f.mu31[which]
    n2_max, n3_max = (int(torch.floor(most.max() + 0.5 + SLACK)) for most in (most2, most3))
    best, shortest = base.clone(), torch.full_like(mu21, torch.inf)
    for n3 in range(-n3_max, n3_max + 1):
        for n2 in range(-n2_max, n2_max + 1):
            x2, x3 = base[:, 1] + n2, base[:, 2] + n3
            x1 = base[:, 0] - torch.round(base[:, 0] + mu21 * x2 + mu31 * x3)
            trial = torch.stack([x1, x2, x3], -1)
            square = (trial.unsqueeze(1) @ cell.rows[which]).squeeze(1).square().sum(-1)
            better = square < shortest
            shortest = torch.where(better, square, shortest)
            best = torch.where(better.unsqueeze(-1), trial, best)
    return ((best - x).round().unsqueeze(1) @ cell.steps[which]).squeeze(1)


def _shortest_vector(cell: _Cell) -> Tensor:
    """Length (B,) of the shortest non-zero lattice vector, by the same search around the origin."""
    if not len(cell.rows):
        return cell.rows.new_zeros(0)
    f = _frame(cell)
    most3 = f.g1 / f.g3
    n3_max = int(torch.floor(most3.max() + SLACK))
    n2_max = int(torch.floor((f.g1 / f.g2 + f.mu32.abs() * most3).max() + SLACK))
    shortest = f.g1
    for n3 in range(n3_max + 1):
        for n2 in range(-n2_max, n2_max + 1):
            if n2 or n3:
                n1 = -torch.round(f.mu21 * n2 + f.mu31 * n3)
                n = torch.stack([n1, torch.full_like(n1, n2), torch.full_like(n1, n3)], -1)
                shortest = torch.minimum(shortest, torch.linalg.vector_norm(n.unsqueeze(1) @ cell.rows, dim=-1)[:, 0])
    return shortest


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
