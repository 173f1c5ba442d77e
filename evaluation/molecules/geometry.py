"""Bond lengths, angles, torsions and the like of whole batches of molecules, each with its kind and its molecule.

Torsions are |phi|, 0 to 180 degrees, so that a molecule and its mirror image count alike; those with an angle above 170
degrees are left out, because phi means nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from evaluation.molecules.stability import all_pairs, with_later

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.molecules import MoleculeBatch

LINEAR = 170.0  # degrees


@dataclass(frozen=True)
class Values:
    """V values, all (V,): what was measured, of which kind (any integers), in which of B molecules."""

    values: NDArray[np.float64]
    kinds: NDArray[np.int64]
    molecules: NDArray[np.int64]


def sizes(batch: MoleculeBatch) -> Values:
    """Number of atoms of each molecule."""
    n = len(batch)
    return Values(batch["num_atoms"].cpu().numpy().astype(np.float64), np.zeros(n, np.int64), np.arange(n))


def elements(batch: MoleculeBatch) -> Values:
    """Atomic number of each atom."""
    z = batch["atomic_numbers"].cpu().numpy()
    return Values(z.astype(np.float64), np.zeros(len(z), np.int64), batch["batch"].cpu().numpy())


def distances(batch: MoleculeBatch) -> Values:
    """Distance in ångström of every pair of atoms of a molecule."""
    pos, index = batch["pos"].cpu().double(), batch["batch"].cpu()
    found = [(torch.linalg.vector_norm(pos[a] - pos[b], dim=-1), index[a]) for a, b in all_pairs(batch)]
    if not found:
        return Values(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    values = torch.cat([d for d, _ in found]).numpy()
    return Values(values, np.zeros(len(values), np.int64), torch.cat([i for _, i in found]).numpy())


def bond_lengths(batch: MoleculeBatch, pairs: Tensor, orders: Tensor) -> Values:
    """Length in ångström of bonds (2, P) with orders (P,); kinds: the two elements and the order."""
    pos, index = batch["pos"].cpu().double(), batch["batch"].cpu()
    length = torch.linalg.vector_norm(pos[pairs[0]] - pos[pairs[1]], dim=-1)
    return Values(length.numpy(), _kind(batch, pairs, orders).numpy(), index[pairs[0]].numpy())


def angles(batch: MoleculeBatch, pairs: Tensor) -> Values:
    """Angle in degrees of every two bonds at an atom; kinds: the element of that atom."""
    pos, index, z = batch["pos"].cpu().double(), batch["batch"].cpu(), batch["atomic_numbers"].cpu()
    centre, other, start, degree = _neighbours(pairs, len(z))
    ends = (start + degree)[centre]
    a, b = with_later(ends - torch.arange(len(centre)) - 1)
    middle = centre[a]
    found = _angle(pos[other[a]] - pos[middle], pos[other[b]] - pos[middle])
    return Values(found.numpy(), z[middle].numpy(), index[middle].numpy())


def torsions(batch: MoleculeBatch, pairs: Tensor, orders: Tensor) -> Values:
    """|phi| in degrees of all chains of four bonded atoms; kinds: elements and order of the bond in the middle."""
    pos, index = batch["pos"].cpu().double(), batch["batch"].cpu()
    _, other, start, degree = _neighbours(pairs, len(pos))
    j, k = pairs
    many = degree[j] * degree[k]
    bond = torch.repeat_interleave(torch.arange(len(many)), many)
    turn = torch.arange(len(bond)) - (torch.cumsum(many, 0) - many)[bond]
    j, k, kinds = j[bond], k[bond], _kind(batch, pairs, orders)[bond]
    i = other[start[j] + turn.div(degree[k], rounding_mode="floor")]
    last = other[start[k] + turn % degree[k]]
    chain = (i != k) & (last != j) & (i != last)
    i, j, k, last, kinds = (x[chain] for x in (i, j, k, last, kinds))
    u, v, w = pos[i] - pos[j], pos[k] - pos[j], pos[last] - pos[k]
    bent = (_angle(u, v) < LINEAR) & (_angle(w, -v) < LINEAR)
    u, v, w, kinds, where = u[bent], v[bent], w[bent], kinds[bent], index[j[bent]]
    phi = _angle(torch.linalg.cross(u, v), torch.linalg.cross(w, v))
    return Values(phi.numpy(), kinds.numpy(), where.numpy())


def _neighbours(pairs: Tensor, atoms: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions of every bond, sorted by the first atom: it and the other; where each atom's begin, how many."""
    both = torch.cat((pairs, pairs.flip(0)), 1)
    both = both[:, torch.argsort(both[0], stable=True)]
    degree = torch.bincount(both[0], minlength=atoms)
    return both[0], both[1], torch.cumsum(degree, 0) - degree, degree


def _kind(batch: MoleculeBatch, pairs: Tensor, orders: Tensor) -> Tensor:
    z = batch["atomic_numbers"].cpu()[pairs].sort(0).values
    return (z[0] * 119 + z[1]) * 8 + (orders * 2).long()


def _angle(u: Tensor, v: Tensor) -> Tensor:
    """Degrees (V,) between vectors (V, 3), exact near 0 and 180."""
    sine, cosine = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1), (u * v).sum(-1)
    return torch.rad2deg(torch.atan2(sine, cosine))
