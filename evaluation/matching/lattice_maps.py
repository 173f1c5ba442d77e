"""Which cells of one lattice resemble a given cell: the first half of matching two crystals, for many pairs at once.

A map is an integer matrix M with |det M| = 1 such that the rows of M @ made have the lengths of the rows of `true`
within a factor 1 + ltol and its angles within angle_tol. M and -M give the same cell, so that only the half with a
positive leading entry is listed. Lattices are rows, (B, 3, 3), ångström, float64. The rules are those of pymatgen's
StructureMatcher and Lattice.find_all_mappings, the LLL reduction that of its Lattice; the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chem.lattice import from_parameters, volume
from evaluation.protocols import Tolerances

EDGE = 1e-8  # widens the search box, so that rounding cannot lose a lattice point


@dataclass(frozen=True)
class Maps:
    """K maps, sorted by pair: pair (K,) they belong to, matrix (K, 3, 3) integers as floats, mean (K, 3, 3) the cell
    with the mean lengths and angles of both (which close a cell where those of both do), steps (K, 3, 3) integers such
    that steps @ mean is LLL-reduced.
    """

    pair: Tensor
    matrix: Tensor
    mean: Tensor
    steps: Tensor

    def __getitem__(self, rows: Tensor) -> Maps:
        return Maps(self.pair[rows], self.matrix[rows], self.mean[rows], self.steps[rows])


def to_one_volume(made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Both lattices (B, 3, 3) at the geometric mean of their volumes."""
    ratio = (volume(true) / volume(made)).pow(1 / 6).reshape(-1, 1, 1)
    return made * ratio, true / ratio


def box(made: Tensor, true: Tensor, ltol: float) -> Tensor:
    """Largest coefficients (B, 3) of vectors of the lattice `made` that are as long as a row of `true` can allow."""
    reach = true.norm(dim=-1).amax(-1, keepdim=True) * (1 + ltol)
    return torch.floor(reach * torch.linalg.inv(made).norm(dim=-2) + EDGE).long()


def lattice_maps(made: Tensor, true: Tensor, tolerances: Tolerances) -> Maps:
    """All maps of each pair of lattices (B, 3, 3)."""
    lengths, angles = true.norm(dim=-1), angles_of(true)
    pair, points = _points(box(made, true, tolerances.ltol))
    vectors = (points.unsqueeze(1) @ made[pair]).squeeze(1)
    size = vectors.norm(dim=-1)
    ratio = size.unsqueeze(-1) / lengths[pair]
    near = (ratio < 1 + tolerances.ltol) & (ratio > 1 / (1 + tolerances.ltol))
    a, b, c = (near[:, axis].nonzero().squeeze(-1) for axis in range(3))
    a = a[_leading(points[a]) > 0]

    def fits(left: Tensor, right: Tensor, axis: int) -> Tensor:
        cosine = (vectors[left] * vectors[right]).sum(-1) / size[left] / size[right]
        angle = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
        return (angle - angles[pair[left], axis]).abs() <= tolerances.angle_tol

    count = len(made)
    left, right = _join(pair[a], pair[b], count)
    keep = fits(a[left], b[right], 2)
    a, b = a[left[keep]], b[right[keep]]
    left, right = _join(pair[a], pair[c], count)
    keep = fits(a[left], c[right], 1)
    left, right = left[keep], right[keep]
    keep = fits(b[left], c[right], 0)
    a, b, c = a[left[keep]], b[left[keep]], c[right[keep]]
    matrix = torch.stack([points[a], points[b], points[c]], 1)
    unit = torch.linalg.det(matrix).abs().round() == 1
    matrix, owner = matrix[unit], pair[a[unit]]
    mean = mean_cell(matrix @ made[owner], true[owner])
    return Maps(owner, matrix, mean, lll_steps(mean))


def angles_of(lattice: Tensor) -> Tensor:
    """Angles (B, 3) in degrees, from the cosine as pymatgen takes them."""
    lengths = lattice.norm(dim=-1)
    first, second = [1, 0, 0], [2, 2, 1]
    cosine = (lattice[:, first] * lattice[:, second]).sum(-1) / (lengths[:, first] * lengths[:, second])
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def mean_cell(one: Tensor, other: Tensor) -> Tensor:
    """The cell (B, 3, 3) with the mean lengths and the mean angles of two."""
    lengths = (one.norm(dim=-1) + other.norm(dim=-1)) / 2
    return from_parameters(lengths, (angles_of(one) + angles_of(other)) / 2)


def lll_steps(lattice: Tensor) -> Tensor:
    """Integers (B, 3, 3), as floats, such that steps @ lattice is LLL-reduced with delta = 0.75."""
    rows, steps = lattice.clone(), torch.eye(3).to(lattice).expand_as(lattice).clone()
    level = torch.ones(len(lattice), dtype=torch.long, device=lattice.device)
    while len(active := (level < 3).nonzero().squeeze(-1)):
        for k in (1, 2):
            at = active[level[active] == k]
            if len(at):
                rows[at], steps[at], level[at] = _lll_step(rows[at], steps[at], k)
    return steps


def _lll_step(rows: Tensor, steps: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shorten row k by the rows before it, then go on to k + 1, or exchange it with row k - 1 and go back."""
    mu, square = _gram_schmidt(rows)
    for i in range(k - 1, -1, -1):
        whole = mu[:, k, i].round().reshape(-1, 1)
        rows[:, k], steps[:, k] = rows[:, k] - whole * rows[:, i], steps[:, k] - whole * steps[:, i]
        mu[:, k] = mu[:, k] - whole * mu[:, i]
    swap = square[:, k] < (0.75 - mu[:, k, k - 1] ** 2) * square[:, k - 1]
    order = torch.arange(3, device=rows.device).repeat(len(rows), 1)
    order[swap, k - 1], order[swap, k] = k, k - 1
    order = order.unsqueeze(-1).expand_as(rows)
    level = torch.where(swap, max(k - 1, 1), k + 1)
    return rows.gather(1, order), steps.gather(1, order), level


def _gram_schmidt(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (B, 3, 3), unit lower triangular, and the squared heights (B, 3)."""
    mu = torch.eye(3).to(rows).expand_as(rows).clone()
    heights = rows.clone()
    for k in (1, 2):
        for i in range(k):
            mu[:, k, i] = (rows[:, k] * heights[:, i]).sum(-1) / heights[:, i].square().sum(-1)
        heights[:, k] = rows[:, k] - (mu[:, k, :k].unsqueeze(1) @ heights[:, :k]).squeeze(1)
    return mu, heights.square().sum(-1)


def _points(most: Tensor) -> tuple[Tensor, Tensor]:
    """Every integer point (Q, 3), as floats, of the boxes -most..most (B, 3), and which box (Q,) it belongs to."""
    side = 2 * most + 1
    count = side.prod(-1)
    which = torch.arange(len(most), device=most.device).repeat_interleave(count)
    rank = torch.arange(len(which), device=most.device) - (count.cumsum(0) - count)[which]
    n = side[which]
    point = torch.stack([rank // (n[:, 1] * n[:, 2]), rank // n[:, 2] % n[:, 1], rank % n[:, 2]], -1)
    return which, (point - most[which]).double()


def _leading(points: Tensor) -> Tensor:
    """Sign (Q,) of the first entry that is not zero."""
    return (points.sign() * points.new_tensor([4.0, 2.0, 1.0])).sum(-1).sign()


def _join(left: Tensor, right: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions in both sorted lists of keys 0..count - 1 of every two equal keys, sorted by the first."""
    many = torch.bincount(right, minlength=count)
    start = many.cumsum(0) - many
    first = torch.arange(len(left), device=left.device).repeat_interleave(many[left])
    size = many[left]
    offset = torch.arange(len(first), device=left.device) - (size.cumsum(0) - size)[first]
    return first, start[left[first]] + offset
