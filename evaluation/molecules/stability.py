"""Stability of molecules: does every atom have a valence that its element may have; whole batches at a time.

`lookup` finds bonds as EDM does: a pair of elements has a bond of order 1 where its distance is below the length of a
single bond plus a margin, of order 2 where it is also below that of a double bond, 3 of a triple bond. An element pair
without an entry has no bond (EDM's code for QM9 stops there, its successors do the same as here). Charges, aromaticity
and connectivity are not considered, and benzene is unstable: its bonds are all too long for a double bond.

An atom is stable when its valence is allowed, a molecule when all its atoms are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from evaluation.molecules.tables import AROMATIC, CHARGES, HIGHEST, corrected_valences, edm_valences, thresholds

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.molecules import MoleculeBatch

PAIRS_AT_ONCE = 100_000  # distances of one chunk stay in the cache of a core
MARGINS = (10.0, 5.0, 3.0)  # pm


@dataclass(frozen=True)
class Stability:
    """What a rule says of B molecules: stable atoms (B,) int64, and stable (B,) bool, all atoms of at least one."""

    atoms: NDArray[np.int64]
    stable: NDArray[np.bool_]


def lookup(batch: MoleculeBatch, margins: tuple[float, float, float] = MARGINS) -> tuple[Tensor, Tensor]:
    """Rows (2, P) of the atoms of every bond by EDM's tables, the smaller first, and its order (P,) int64, 1 to 3.

    An atom without finite coordinates has no bonds. Float64 whatever the batch.
    """
    limits = torch.from_numpy(thresholds(margins))
    z, pos = batch["atomic_numbers"].cpu(), batch["pos"].cpu().double()
    x, y, w = (pos[:, i].contiguous() for i in range(3))
    longest = _longest(limits[0], z)
    limits = limits.flatten(1)
    pairs, orders = [], []
    for a, b in all_pairs(batch):
        # the order of the operations is that of the double loop, so that no distance differs in its last digit
        dx, dy, dz = x[a] - x[b], y[a] - y[b], w[a] - w[b]
        square = dx * dx + dy * dy + dz * dz
        near = (square < longest).nonzero().squeeze(1)
        a, b, distance = a[near], b[near], square[near].sqrt() * 100
        kind = z[a] * 119 + z[b]
        below = [distance < limit[kind] for limit in limits]
        order = below[0].long() + (below[0] & below[1]) + (below[0] & below[1] & below[2])
        bonded = order.nonzero().squeeze(1)
        pairs.append(torch.stack((a[bonded], b[bonded])))
        orders.append(order[bonded])
    if not pairs:
        return torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return torch.cat(pairs, 1), torch.cat(orders)


def _longest(single: Tensor, z: Tensor) -> float:
    """Square in ångström of a distance beyond which no pair of the elements that are present has a bond."""
    present = z.unique()
    longest = float(single[present][:, present].max()) if len(present) else 0.0
    return (max(longest, 0.0) / 100) ** 2 * (1 + 1e-9)


def edm_stability(batch: MoleculeBatch, pairs: Tensor, orders: Tensor) -> Stability:
    """EDM's rule for bonds as rows (2, P) and whole orders (P,)."""
    valence = _sum(len(batch["batch"]), pairs, orders.long())
    allowed = torch.from_numpy(edm_valences())
    return _of_molecules(batch, allowed[batch["atomic_numbers"].cpu(), valence.clamp(max=HIGHEST)])


def corrected_stability(batch: MoleculeBatch, pairs: Tensor, orders: Tensor, charges: Tensor) -> Stability:
    """The corrected rule for bonds as rows (2, P), orders (P,) with 1.5 for aromatic, and formal charges (M,).

    An atom whose charge the table does not have is unstable.
    """
    atoms = len(batch["batch"])
    ring = orders == 1.5
    aromatic = _sum(atoms, pairs, ring.long())
    others = _sum(atoms, pairs, torch.where(ring, torch.zeros_like(orders), orders).round().long())
    allowed = torch.from_numpy(corrected_valences())
    known = (charges.abs() < CHARGES) & (aromatic < AROMATIC)
    state = charges.clamp(1 - CHARGES, CHARGES - 1) + CHARGES - 1
    fits = allowed[batch["atomic_numbers"].cpu(), state, aromatic.clamp(max=AROMATIC - 1), others.clamp(max=HIGHEST)]
    return _of_molecules(batch, known & fits)


def all_pairs(batch: MoleculeBatch) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the two atoms of all pairs within a molecule, by chunks of molecules: atom i with those after it."""
    counts, ptr = batch["num_atoms"].cpu(), batch["ptr"].cpu()
    partners = torch.repeat_interleave(ptr[1:], counts) - torch.arange(int(ptr[-1])) - 1
    cuts = (torch.cumsum(counts * (counts - 1) // 2, 0) // PAIRS_AT_ONCE).diff().nonzero().squeeze(1) + 1
    ends = [0, *ptr[cuts].tolist(), int(ptr[-1])]
    for first, last in zip(ends, ends[1:], strict=False):
        a, b = with_later(partners[first:last])
        yield a + first, b + first


def with_later(later: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of a row with each of the `later` (R,) rows that follow it directly."""
    a = torch.repeat_interleave(torch.arange(len(later)), later)
    start = torch.cumsum(later, 0) - later
    return a, a + 1 + torch.arange(len(a)) - start[a]


def _sum(atoms: int, pairs: Tensor, values: Tensor) -> Tensor:
    """Sum (M,) over the bonds of each atom."""
    total = torch.zeros(atoms, dtype=torch.long)
    return total.index_add(0, pairs[0], values).index_add(0, pairs[1], values)


def _of_molecules(batch: MoleculeBatch, stable: Tensor) -> Stability:
    counts = batch["num_atoms"].cpu()
    good = torch.zeros(len(batch), dtype=torch.long).index_add(0, batch["batch"].cpu(), stable.long())
    return Stability(good.numpy(), ((good == counts) & (counts > 0)).numpy())
