"""Aligning two crystals on a common cell: the second half of matching, for many pairs of one kind at once.

A candidate is a map of the cells (matching.lattice_maps), its sign, and a site of the rarest element that is laid on
the reference site. Candidates that leave a site without a partner within the fractional tolerance are dropped; sites
of the others are assigned to each other at the least sum of squared distances, the mean displacement is taken off, and
what remains, in units of (V / n)^(1/3), is the value: its root mean square or its largest length. The rules are those
of pymatgen's StructureMatcher; the code is our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from evaluation.matching.frames import Frames, nearest, steps

ENTRIES = 60_000  # distances between sites examined at once: few enough to stay in the cache
ENUMERATED = 4  # elements with up to so many sites are assigned by trying every permutation


@dataclass(frozen=True)
class Kind:
    """How many sites each element has, rarest first, in both crystals; sites are sorted in that order."""

    counts: tuple[int, ...]

    @property
    def sites(self) -> int:
        """Number of sites of a cell."""
        return sum(self.counts)

    def blocks(self) -> Iterator[tuple[slice, int]]:
        """Where the entries of each element stand, and how many sites it has."""
        start = 0
        for count in self.counts:
            yield slice(start, start + count * count), count
            start += count * count

    def entries(self) -> tuple[Tensor, Tensor]:
        """Sites (E,) of the true and the made crystal, of every pair of like sites: element by element, row by row."""
        rows, columns, first = [], [], 0
        for count in self.counts:
            grid = torch.arange(first, first + count)
            rows.append(grid.repeat_interleave(count))
            columns.append(grid.repeat(count))
            first += count
        return torch.cat(rows), torch.cat(columns)


def candidate_values(
    kind: Kind, made: Tensor, true: Tensor, anchor: Tensor, frames: Frames, largest: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair (C,) and value (C,) of the candidates, some at a time; a value is infinite where no assignment exists.

    made, true: fractional coordinates (P, n, 3). anchor: (P,) the reference site of `true`, the first of a rarest
    element. frames: of these pairs. largest: the largest displacement, else rms.
    """
    row, column = (index.to(made.device) for index in kind.entries())
    rarest = anchor.unsqueeze(-1) + torch.arange(kind.counts[0], device=anchor.device)
    step = max(ENTRIES // (2 * kind.counts[0] * len(row)), 1)
    for rows in torch.arange(len(frames.pair), device=made.device).split(step):
        some = frames[rows]
        pair = some.pair
        moved = made[pair] @ some.inverse
        moved = torch.stack([moved, -moved], 1)
        moved = moved - moved.floor()
        fixed = true[pair].unsqueeze(1)
        onto = moved.gather(2, rarest[pair].reshape(-1, 1, kind.counts[0], 1).expand(-1, 2, -1, 3))
        shift = onto - true[pair, anchor[pair]].reshape(-1, 1, 1, 3)
        gap = (fixed[:, :, row] - moved[:, :, column]).unsqueeze(2) + shift.unsqueeze(-2)  # (map, sign, site, entry, 3)
        near = ((gap - gap.round()).abs() <= some.tolerance.reshape(-1, 1, 1, 1, 3)).all(-1)
        which, sign, site = _each_row(near, kind).nonzero(as_tuple=True)
        if len(which):
            yield pair[which], _values(kind, gap[which, sign, site], some[which], largest)


def _each_row(near: Tensor, kind: Kind) -> Tensor:
    """Whether every row has a near entry; near (..., E), result (...)."""
    found = [near[..., at].unflatten(-1, (n, n)).any(-1).all(-1) for at, n in kind.blocks()]
    return torch.stack(found).all(0)


def _values(kind: Kind, gap: Tensor, frames: Frames, largest: bool) -> Tensor:
    """Values (C,) of candidates with the fractional gaps (C, E, 3), one frame each."""
    gap = gap @ frames.to_cell
    gap = gap - gap.round()
    allowed = (gap.abs() <= frames.reduced.unsqueeze(1)).all(-1)
    vectors = gap @ frames.cell
    square, shift = nearest(vectors, frames.cell, frames.useful)
    square = square.masked_fill(~allowed, torch.inf)
    taken = []
    for at, count in kind.blocks():
        best = _assign(square[:, at].unflatten(-1, (count, count)))
        taken.append(at.start + count * torch.arange(count, device=best.device) + best)
    picked = torch.cat(taken, -1)
    exists = torch.isfinite(square.gather(1, picked)).all(-1)
    index = picked.unsqueeze(-1).expand(-1, -1, 3)
    vectors = vectors.gather(1, index)
    if shift is not None:
        vectors = vectors + steps(frames.cell)[shift.gather(1, picked)] @ frames.cell
    left = (vectors - vectors.mean(1, keepdim=True)).square().sum(-1)
    value = frames.norm * (left.amax(-1) if largest else left.mean(-1)).sqrt()
    return value.masked_fill(~exists, torch.inf)


def _assign(cost: Tensor) -> Tensor:
    """For each row of the costs (C, n, n) the column (C, n) at the least sum; anything where all are infinite."""
    count = cost.shape[-1]
    if count == 1:
        return torch.zeros_like(cost[..., 0], dtype=torch.long)
    if count <= ENUMERATED:
        orders = _orders(count).to(cost.device)
        total = sum(cost[:, k, orders[:, k]] for k in range(count))
        return orders[torch.as_tensor(total).argmin(-1)]
    best = cost.argmin(-1)
    clear = (torch.nn.functional.one_hot(best, count).sum(1) == 1).all(-1)
    open_ = (~clear & torch.isfinite(cost).any(-1).all(-1) & torch.isfinite(cost).any(-2).all(-1)).nonzero().squeeze(-1)
    if len(open_):
        best[open_] = _solve(cost[open_])
    return best


@cache
def _orders(count: int) -> Tensor:
    return torch.tensor(list(permutations(range(count))))


def _solve(cost: Tensor) -> Tensor:
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    finite = cost.masked_fill(torch.isinf(cost), 1e20).cpu().numpy()
    return torch.from_numpy(np.stack([linear_sum_assignment(one)[1] for one in finite])).to(cost.device)
