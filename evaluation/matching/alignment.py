"""Aligning two crystals on a common cell: the second half of matching, for many pairs of one kind at once.

A candidate is a map of the cells (matching.lattice_maps), its sign, and a site of the rarest element that is laid on
the reference site. Candidates that leave a site without a partner within the fractional tolerance are dropped; sites
of the others are assigned to each other at the least sum of squared distances, the mean displacement is taken off, and
what remains, in units of (V / n)^(1/3), is the value: its root mean square or its largest length. The rules are those
of pymatgen's StructureMatcher; the code is our own.

Two images of a site may be equally near, or two assignments equally good, and which of them is taken decides what the
mean displacement takes off. In pymatgen rounding decides, so such candidates are told with the least value they can
have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from evaluation.matching.frames import Frames, nearest, several, steps

ENTRIES = 60_000  # distances between sites examined at once: few enough to stay in the cache
TIE = 1e-6  # Å^2; squared lengths that are nearer to each other than this are equal
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
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pair, value and doubt of the candidates, each (C,), some at a time; a value is infinite where there is no match.

    doubt: the least value that another choice among equals can give, infinite where nothing is to choose. made, true:
    fractional coordinates (P, n, 3). anchor: (P,) the reference site of `true`, the first of a rarest element. frames:
    of these pairs. largest: the largest displacement, else rms.
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
            yield pair[which], *_values(kind, gap[which, sign, site], some[which], largest)


def _each_row(near: Tensor, kind: Kind) -> Tensor:
    """Whether every row has a near entry; near (..., E), result (...)."""
    found = [near[..., at].unflatten(-1, (n, n)).any(-1).all(-1) for at, n in kind.blocks()]
    return torch.stack(found).all(0)


def _values(kind: Kind, gap: Tensor, frames: Frames, largest: bool) -> tuple[Tensor, Tensor]:
    """Values and doubts (C,) of candidates with the fractional gaps (C, E, 3), one frame each."""
    gap = gap @ frames.to_cell
    gap = gap - gap.round()
    allowed = (gap.abs() <= frames.reduced.unsqueeze(1)).all(-1)
    vectors = gap @ frames.cell
    square, shift = nearest(vectors, frames.cell, frames.useful)
    square = square.masked_fill(~allowed, torch.inf)
    taken, tied = [], torch.zeros(len(gap), dtype=torch.bool, device=gap.device)
    for at, count in kind.blocks():
        best, equal = _assign(square[:, at].unflatten(-1, (count, count)))
        tied |= equal
        taken.append(at.start + count * torch.arange(count, device=best.device) + best)
    picked = torch.cat(taken, -1)
    exists = torch.isfinite(square.gather(1, picked)).all(-1)
    index = picked.unsqueeze(-1).expand(-1, -1, 3)
    vectors = vectors.gather(1, index)
    if shift is not None:
        vectors = vectors + steps(frames.cell)[shift.gather(1, picked)] @ frames.cell
    left = (vectors - vectors.mean(1, keepdim=True)).square().sum(-1)
    value = frames.norm * (left.amax(-1) if largest else left.mean(-1)).sqrt()
    tied |= (several(vectors, frames.cell, frames.useful) < TIE).any(-1)
    length = vectors.norm(dim=-1)  # the same whatever is taken, and a mean is no longer than the mean of lengths
    least = frames.norm * (length.square().mean(-1) - length.mean(-1).square()).clamp(min=0).sqrt()
    return value.masked_fill(~exists, torch.inf), least.masked_fill(~(exists & tied), torch.inf)


def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of the costs (C, n, n) the column (C, n) at the least sum; anything where all are infinite.

    Also whether another assignment is as good (C,), which is found out for up to ENUMERATED sites.
    """
    count = cost.shape[-1]
    clear_cut = torch.zeros_like(cost[:, 0, 0], dtype=torch.bool)
    if count == 1:
        return torch.zeros_like(cost[..., 0], dtype=torch.long), clear_cut
    if count <= ENUMERATED:
        orders = _orders(count).to(cost.device)
        total = torch.as_tensor(sum(cost[:, k, orders[:, k]] for k in range(count)))
        two = total.topk(2, largest=False)
        return orders[two.indices[:, 0]], two.values[:, 1] - two.values[:, 0] < TIE
    best = cost.argmin(-1)
    open_ = (torch.nn.functional.one_hot(best, count).sum(1) != 1).any(-1).nonzero().squeeze(-1)
    if len(open_):
        best[open_] = _solve(cost[open_])
    return best, clear_cut


@cache
def _orders(count: int) -> Tensor:
    return torch.tensor(list(permutations(range(count))))


def _solve(cost: Tensor) -> Tensor:
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    finite = cost.masked_fill(torch.isinf(cost), 1e20).cpu().numpy()
    return torch.from_numpy(np.stack([linear_sum_assignment(one)[1] for one in finite])).to(cost.device)
