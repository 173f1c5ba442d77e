"""Which crystals match, and how well: the decisions of pymatgen's StructureMatcher, for many pairs at once.

Crystals come as reduced cells (matching.reduction), made once for each. Cells with different numbers of sites or
atoms of an element never match, nor do lattices that no map relates; what is left is aligned in every way that the
tolerances allow. As in pymatgen the trial translations lay a site of the rarest element on its first site in the second
crystal; of equally rare elements it is the one whose first site comes first, so that results depend on the order of
the sites, and on that of the two crystals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evaluation.matching.alignment import Kind, candidate_values
from evaluation.matching.frames import Frames
from evaluation.matching.lattice_maps import Maps, box, lattice_maps, to_one_volume
from evaluation.matching.reduction import Arrays
from evaluation.protocols import Tolerances

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 2048  # pairs whose lattices are searched together
POINTS = 1_000_000  # lattice points searched together
LARGE_SITES, LARGE_BOX = 32, 20_000  # sites, and lattice points to search, beyond which a pair is left to pymatgen
PERFECT, SAME = 1e-5, 1e-7  # pymatgen stops at its first candidate below PERFECT, whichever that is


class Cells:
    """Reduced cells as tensors on a device, ready to be matched.

    Sites are sorted by (number of atoms of their element, element), otherwise in the given order. composition (N,):
    equal where cells hold the same atoms. kind (N,): index into kinds. anchor (N,): the reference site.
    """

    def __init__(self, cells: Sequence[Arrays], device: str | torch.device = "cpu"):
        compositions: dict[tuple[tuple[int, int], ...], int] = {}
        kinds: dict[Kind, int] = {}
        order, composition, kind, anchor, start = [], [], [], [], 0
        for numbers, _, _ in cells:
            elements, first, inverse, counts = np.unique(
                numbers, return_index=True, return_inverse=True, return_counts=True
            )
            rarest = first[counts == counts.min()].min() if len(numbers) else 0
            sites = np.lexsort((numbers, counts[inverse]))
            order.append(sites + start)
            start += len(numbers)
            anchor.append(int((sites == rarest).argmax()) if len(numbers) else 0)
            key = tuple(zip(elements.tolist(), counts.tolist(), strict=True))
            composition.append(compositions.setdefault(key, len(compositions)))
            kind.append(kinds.setdefault(Kind(tuple(sorted(counts.tolist()))), len(kinds)))
        sorted_sites = np.concatenate([np.zeros(0, np.int64), *order])
        frac = np.concatenate([np.zeros((0, 3)), *(cell.frac for cell in cells)])[sorted_sites]
        self.kinds, self.compositions, self.device = list(kinds), list(compositions), torch.device(device)
        self.composition, self.kind = np.array(composition, np.int64), np.array(kind, np.int64)
        self.start = torch.tensor(np.cumsum([0] + [len(c.numbers) for c in cells])[:-1], device=device)
        self.anchor = torch.tensor(anchor, dtype=torch.long, device=device)
        self.frac = torch.from_numpy(frac).to(device)
        self.lattice = torch.from_numpy(np.array([c.lattice for c in cells]).reshape(-1, 3, 3)).to(device)

    def __len__(self) -> int:
        return len(self.composition)

    def sites(self, index: Tensor, count: int) -> Tensor:
        """Fractional coordinates (P, count, 3) of cells that have `count` sites."""
        return self.frac[self.start[index].unsqueeze(-1) + torch.arange(count, device=self.device)]


def best_values(cells: Cells, pairs: NDArray[np.int64], tolerances: Tolerances, largest: bool = False) -> NDArray:
    """For each (i, j) of pairs (P, 2) how well cell i matches cell j: float64 (P,), infinite where it does not.

    The value is pymatgen's get_rms_dist(i, j)[0]; with `largest` only whether it is finite means anything, and that
    is what fit(i, j) says. NaN where pymatgen has to be asked: for a pair that is too large, for supercells, where
    several alignments are so good that pymatgen takes the first that it sees, and where rounding decides for it.
    """
    best = np.full(len(pairs), np.inf)
    if tolerances.attempt_supercell:
        return np.full(len(pairs), np.nan)
    large = np.array([kind.sites > LARGE_SITES for kind in cells.kinds] or [False])[cells.kind]
    same = cells.composition[pairs[:, 0]] == cells.composition[pairs[:, 1]]
    best[same & large[pairs[:, 0]]] = np.nan
    rows = np.flatnonzero(same & ~large[pairs[:, 0]])
    rows = rows[np.argsort(cells.kind[pairs[rows, 0]], kind="stable")]
    for at in range(0, len(rows), CHUNK):
        some = rows[at : at + CHUNK]
        best[some] = _chunk(cells, torch.from_numpy(pairs[some]).to(cells.device), tolerances, largest).cpu().numpy()
    return best


def _chunk(cells: Cells, pairs: Tensor, tolerances: Tolerances, largest: bool) -> Tensor:
    """best_values of a few pairs (P, 2) of equal composition, sorted by kind."""
    made, true = cells.lattice[pairs[:, 0]], cells.lattice[pairs[:, 1]]
    if tolerances.scale:
        made, true = to_one_volume(made, true)
    best = torch.full_like(made[:, 0, 0], torch.inf)
    points = (2 * box(made, true, tolerances.ltol) + 1).prod(-1)
    unclear = points > LARGE_BOX
    parts = (~unclear).nonzero().squeeze(-1)
    worst = torch.zeros_like(best)  # of the values below PERFECT
    doubt = torch.full_like(best, torch.inf)  # the least value that a choice among equals could have given
    # an equal number of pairs in each part bounds the memory, as none of them has more than LARGE_BOX points
    for part in parts.tensor_split(1 + int(points[parts].sum()) // POINTS):
        maps = lattice_maps(made[part], true[part], tolerances)
        maps = replace(maps, pair=part[maps.pair])
        if largest:  # a pair is settled by its first match: the most similar cells make one most often
            closest = _closest(maps, true)
            _align(cells, pairs, maps[closest], tolerances.stol, largest, best, worst, doubt)
            maps = maps[~closest & (best[maps.pair] >= tolerances.stol)]
        _align(cells, pairs, maps, tolerances.stol, largest, best, worst, doubt)
    best[best >= tolerances.stol] = torch.inf
    if largest:  # a pair that matches for certain is settled
        unclear |= (doubt < tolerances.stol) & torch.isinf(best)
    else:
        unclear |= (worst - best > SAME) | (doubt < tolerances.stol) & (doubt <= best)
    return best.masked_fill(unclear, torch.nan)


def _closest(maps: Maps, true: Tensor) -> Tensor:
    """Which maps (K,) give the cell most similar to that of the pair's second crystal, one for each pair."""
    off = (maps.mean @ maps.mean.mT - true[maps.pair] @ true[maps.pair].mT).abs().sum((-1, -2))
    order = off.argsort()
    order = order[maps.pair[order].argsort(stable=True)]
    pair = maps.pair[order]
    first = torch.ones_like(pair, dtype=torch.bool)
    first[1:] = pair[1:] != pair[:-1]
    return torch.zeros_like(first).index_fill(0, order[first], True)


def _align(
    cells: Cells,
    pairs: Tensor,
    maps: Maps,
    stol: float,
    largest: bool,
    best: Tensor,
    worst: Tensor,
    doubt: Tensor,
) -> None:
    """Lower best (P,) to the least certain value of the maps and doubt (P,) to the least doubtful one.

    Also raise worst (P,) to the largest value below PERFECT.
    """
    sites = torch.tensor([kind.sites for kind in cells.kinds], device=pairs.device)
    kinds = torch.from_numpy(cells.kind).to(pairs.device)[pairs[:, 0]]
    frames = Frames.of(maps, sites[kinds[maps.pair]], stol)
    for k in kinds[frames.pair].unique().tolist():
        of_kind = frames[kinds[frames.pair] == k]
        mine, local = of_kind.pair.unique(return_inverse=True)
        kind, of_kind = cells.kinds[k], replace(of_kind, pair=local)
        made, true = (cells.sites(pairs[mine, side], kind.sites) for side in (0, 1))
        for pair, value, least in candidate_values(kind, made, true, cells.anchor[pairs[mine, 1]], of_kind, largest):
            doubt.scatter_reduce_(0, mine[pair], least, "amin")
            certain = torch.where(torch.isinf(least), value, torch.inf)
            best.scatter_reduce_(0, mine[pair], certain, "amin")
            worst.scatter_reduce_(0, mine[pair], torch.where(value < PERFECT, value, 0.0), "amax")
