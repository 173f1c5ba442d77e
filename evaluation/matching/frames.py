"""The cell on which two crystals are compared, and nearest images in it.

Two crystals meet on the mean of their cells. Fractional gaps have tolerances there, in the mean cell and in its
LLL-reduced form; beyond them sites are no partners. As gaps are small, few neighbouring cells can hold a nearer image.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from chem.lattice import volume
from evaluation.matching.lattice_maps import Maps


@dataclass(frozen=True)
class Frames:
    """The cells on which two crystals are compared, one for each of K maps.

    pair (K,). inverse (K, 3, 3): of the map. cell (K, 3, 3): LLL-reduced mean cell, and to_cell (K, 3, 3), which takes
    fractional coordinates of the mean cell to it. norm (K,): (n / V)^(1/3). tolerance, reduced (K, 3): fractional, in
    the mean and in the reduced cell. useful (K, 13): which neighbouring cells may hold the nearest image.
    """

    pair: Tensor
    inverse: Tensor
    cell: Tensor
    to_cell: Tensor
    norm: Tensor
    tolerance: Tensor
    reduced: Tensor
    useful: Tensor

    @classmethod
    def of(cls, maps: Maps, sites: Tensor, stol: float) -> Frames:
        """Frames of the maps of cells with so many sites (K,); those that need the same neighbouring cells together."""
        cell = maps.steps @ maps.mean
        norm = (sites / volume(maps.mean)).pow(1 / 3)
        scale = (2 * stol / norm).unsqueeze(-1)
        tolerance, reduced = (scale * torch.linalg.inv(rows).norm(dim=-2) for rows in (maps.mean, cell))
        useful = _useful(cell, reduced)
        inverse, to_cell = (torch.linalg.inv(matrix).round() for matrix in (maps.matrix, maps.steps))
        frames = cls(maps.pair, inverse, cell, to_cell, norm, tolerance, reduced, useful)
        return frames[_pattern(useful).argsort()]

    def __getitem__(self, rows: Tensor) -> Frames:
        return Frames(*(getattr(self, field.name)[rows] for field in fields(self)))


def nearest(vectors: Tensor, cell: Tensor, useful: Tensor) -> tuple[Tensor, Tensor | None]:
    """Squared length (C, E) of the shortest image of each vector (C, E, 3), and which of `steps` makes it (C, E).

    None in place of the latter where no step is useful.
    """
    square = vectors.square().sum(-1)
    asked = useful.any(0).nonzero().squeeze(-1)
    if not len(asked):
        return square, None
    images = steps(cell)[asked] @ cell
    along = vectors @ images.mT
    least, which = (images.square().sum(-1).unsqueeze(1) - 2 * along.abs()).min(-1)
    forth = along.gather(-1, which.unsqueeze(-1)).squeeze(-1) < 0
    step = torch.where(forth, asked[which], asked[which] + 13)
    return square + least.clamp(max=0), torch.where(least < 0, step, 26)


def several(vectors: Tensor, cell: Tensor, useful: Tensor) -> Tensor:
    """By how much (C, E) the next image of each shortest vector (C, E, 3) is longer, in squared length."""
    asked = useful.any(0).nonzero().squeeze(-1)
    if not len(asked):
        return torch.full_like(vectors[..., 0], torch.inf)
    images = steps(cell)[asked] @ cell
    return (images.square().sum(-1).unsqueeze(1) - 2 * (vectors @ images.mT).abs()).amin(-1)


def steps(like: Tensor) -> Tensor:
    """Integer steps (27, 3) to the neighbours of a cell, as floats: thirteen, their opposites, and none."""
    return _STEPS.to(like)


_AXIS = torch.arange(-1, 2)
_HALF = torch.cartesian_prod(_AXIS, _AXIS, _AXIS)[14:]
_STEPS = torch.cat([_HALF, -_HALF, torch.zeros_like(_HALF[:1])])


def _useful(cell: Tensor, tolerance: Tensor) -> Tensor:
    """Which of the 13 pairs of opposite steps (C, 13) can shorten a vector whose coordinates are within a tolerance.

    The step s shortens x where |2 x . s| > |s|^2; x is a sum of cell vectors times at most the tolerance, or 1/2.
    """
    images = steps(cell)[:13] @ cell
    most = 2 * ((images @ cell.mT).abs() * tolerance.clamp(max=0.5).unsqueeze(1)).sum(-1)
    return most > images.square().sum(-1) * (1 - 1e-12)


def _pattern(useful: Tensor) -> Tensor:
    """A number (C,) for each set of useful steps, larger sets last."""
    bits = 2 ** torch.arange(13, device=useful.device)
    return useful.sum(-1) * 2**13 + (useful * bits).sum(-1)
