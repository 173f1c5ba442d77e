"""Which periodic image is nearest: reduced cells and a search that is complete and short on every cell.

Cells are rows, (B, 3, 3); the numbers of images follow from the Gram-Schmidt heights of the reduced cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SLACK = 1e-9  # widens image bounds, so that rounding cannot lose an image; the distances themselves are exact


class Cell(NamedTuple):
    """Reduced cells: rows = steps @ lattice with integer steps; all floating point, (B, 3, 3)."""

    rows: Tensor
    steps: Tensor
    inverse: Tensor  # of steps: fractional coordinates in the reduced cell are f @ inverse


def wide(x: Tensor) -> Tensor:
    """float64 where the device has it: distances in a strongly skewed cell are differences of large numbers."""
    return x if x.device.type == "mps" else x.double()


def rows_times(x: Tensor, matrices: Tensor) -> Tensor:
    """Row vectors (P, 3) times matrices (P, 3, 3); on a CPU several times faster than a batched product."""
    return x[:, :1] * matrices[:, 0] + x[:, 1:2] * matrices[:, 1] + x[:, 2:] * matrices[:, 2]


def safe_norm(vectors: Tensor) -> Tensor:
    """Length of the rows, with gradient zero (not NaN) at zero."""
    square = (vectors * vectors).sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, torch.ones_like(square)).sqrt(), square)


@torch.no_grad()
def reduce_cells(lattice: Tensor) -> Cell:
    """Minkowski-like reduction of cells (B, 3, 3) by greedy integer steps, all cells at once; keeps every lattice."""
    rows = wide(lattice.detach()).clone()
    scale = torch.linalg.vector_norm(rows, dim=-1).amax(-1).clamp(min=1e-30) if len(rows) else rows.new_ones(0)
    bad = ~(torch.linalg.det(rows / scale.reshape(-1, 1, 1)).abs() > 1e-12)
    if bool(bad.any()):
        raise ValueError(f"lattice {int(bad.nonzero()[0])} (of {len(rows)}) must be finite and have a volume")
    steps = torch.eye(3, dtype=rows.dtype, device=rows.device).expand_as(rows).clone()
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=rows.dtype, device=rows.device)
    for _ in range(100):
        before = rows
        order = torch.linalg.vector_norm(rows, dim=-1).argsort(dim=-1, stable=True).unsqueeze(-1).expand_as(rows)
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
    return Cell(steps @ wide(lattice.detach()), steps, torch.linalg.inv(steps).round())


def _subtract(rows: Tensor, steps: Tensor, k: int, n_a: Tensor, n_b: Tensor) -> tuple[Tensor, Tensor]:
    """Row k minus n_a times row 0 minus n_b times row 1, where shorter, in the cells and in their integer steps."""
    factor = torch.zeros_like(rows)
    factor[:, k, 0], factor[:, k, 1] = n_a.squeeze(-1), n_b.squeeze(-1)
    old, new = (torch.linalg.vector_norm(r[:, k], dim=-1) for r in (rows, rows - factor @ rows))
    # equal lengths (a face-centred cell has many) would otherwise take turns for ever
    factor = factor * (new < old * (1 - 1e-12)).reshape(-1, 1, 1)
    return rows - factor @ rows, steps - factor @ steps


class Frame(NamedTuple):
    """Gram-Schmidt heights g1, g2, g3 (B,) of reduced cells and the slants mu21, mu31, mu32 (B,)."""

    g1: Tensor
    g2: Tensor
    g3: Tensor
    mu21: Tensor
    mu31: Tensor
    mu32: Tensor


def _frame(cell: Cell) -> Frame:
    a, b, c = cell.rows.unbind(-2)
    mu21, mu31 = (a * b).sum(-1) / (a * a).sum(-1), (a * c).sum(-1) / (a * a).sum(-1)
    b_star = b - mu21.unsqueeze(-1) * a
    mu32 = (b_star * c).sum(-1) / (b_star * b_star).sum(-1)
    c_star = c - mu31.unsqueeze(-1) * a - mu32.unsqueeze(-1) * b_star
    g1, g2, g3 = (torch.linalg.vector_norm(v, dim=-1) for v in (a, b_star, c_star))
    return Frame(g1, g2, g3, mu21, mu31, mu32)


@torch.no_grad()
def nearest_images(delta: Tensor, which: Tensor, cell: Cell) -> Tensor:
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
    x = rows_times(delta.detach(), cell.inverse[which])
    base = x - torch.ceil(x - 0.5)
    mu21, mu31, rows = f.mu21[which], f.mu31[which], cell.rows[which]
    n2_max, n3_max = (int(torch.floor(most.max() + 0.5 + SLACK)) for most in (most2, most3))
    best, shortest = base.clone(), torch.full_like(mu21, torch.inf)
    for n3 in range(-n3_max, n3_max + 1):
        for n2 in range(-n2_max, n2_max + 1):
            x2, x3 = base[:, 1] + n2, base[:, 2] + n3
            x1 = base[:, 0] - torch.round(base[:, 0] + mu21 * x2 + mu31 * x3)
            trial = torch.stack([x1, x2, x3], -1)
            square = rows_times(trial, rows).square().sum(-1)
            better = square < shortest
            shortest = torch.where(better, square, shortest)
            best = torch.where(better.unsqueeze(-1), trial, best)
    return rows_times((best - x).round(), cell.steps[which])


def shortest_vector(cell: Cell) -> Tensor:
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
                shortest = torch.minimum(shortest, torch.linalg.vector_norm(rows_times(n, cell.rows), dim=-1))
    return shortest
