"""Bonds and angles of a batch of crystals as flat tensors, with a topology that is reused between the steps.

A *pair* is an undirected bond: one row for i -> j and j -> i. `candidates` lists the pairs within the cutoff plus a
skin, once; as long as atoms and cell have moved less than the skin allows, `bond_graph` only measures these rows again
and keeps the ones inside the cutoffs, so that every graph is exactly that of its coordinates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.images import rows_times
from chem.periodic import neighbour_list


class Candidates(NamedTuple):
    """Pairs (2, P), shift (P, 3) and structure (P,) of all pairs within `reach` ångström of the batch they came from.

    The displacement of a pair is (frac_coords[j] + shift - frac_coords[i]) @ lattice. num_atoms, frac_coords, inverse:
    of that batch, inverse (B, 3, 3) being that of the lattice.
    """

    pairs: Tensor
    shift: Tensor
    structure: Tensor
    reach: float
    num_atoms: Tensor
    frac_coords: Tensor
    inverse: Tensor


class BondGraph(NamedTuple):
    """P pairs, the first S of which are bonds, and T angles between two bonds of an atom.

    pairs (2, P); vectors (P, 3) in ångström from i to j; structure (P,). short: S. centre (T,): the atom of each angle;
    first, second (T,): its two bonds, each angle listed in both orders; sign (T,): 1 where both bonds lead away from
    the centre or both towards it, else -1.
    """

    pairs: Tensor
    vectors: Tensor
    structure: Tensor
    short: int
    centre: Tensor
    first: Tensor
    second: Tensor
    sign: Tensor


def candidates(batch: CrystalBatch, reach: float) -> Candidates:
    """All pairs within `reach` ångström, each once; raises ValueError for a cell without volume."""
    edges, shift = neighbour_list(batch, reach)
    i, j = edges
    sign = torch.zeros_like(i)
    for k in (2, 1, 0):  # an atom and its own image: the first component of the shift that is not zero decides
        sign = torch.where(shift[:, k] != 0, shift[:, k].sign(), sign)
    once = (i < j) | ((i == j) & (sign > 0))
    pairs, shift = edges[:, once], shift[once]
    frac, lattice = batch["frac_coords"].double(), batch["lattice"].double()
    return Candidates(
        pairs, shift.double(), batch["batch"][pairs[0]], reach, batch["num_atoms"], frac, torch.linalg.inv(lattice)
    )


def still_complete(known: Candidates, batch: CrystalBatch, cutoff: float) -> bool:
    """Whether the candidates are sure to hold every pair of the batch within `cutoff` ångström.

    With D the deformation of the cell since and u the largest displacement of an atom against it, a pair at distance
    r now was at most |D^-1| (r + 2 u) apart.
    """
    if known.num_atoms is not batch["num_atoms"] and not torch.equal(known.num_atoms, batch["num_atoms"]):
        return False
    lattice = batch["lattice"].double()
    moved = rows_times(batch["frac_coords"].double() - known.frac_coords, lattice[batch["batch"]])
    furthest = torch.zeros(len(batch), dtype=moved.dtype, device=moved.device)
    furthest.scatter_reduce_(0, batch["batch"], torch.linalg.vector_norm(moved, dim=-1), "amax")
    stretch = torch.linalg.matrix_norm(torch.linalg.inv(known.inverse @ lattice), ord=2)
    return bool((stretch * (cutoff + 2 * furthest) <= known.reach).all())


def bond_graph(known: Candidates, batch: CrystalBatch, cutoff: float, bond_cutoff: float) -> BondGraph:
    """The candidates within `cutoff` ångström, bonds up to `bond_cutoff` first, and the angles between bonds."""
    (i, j), frac = known.pairs, batch["frac_coords"].double()
    vectors = rows_times(frac[j] + known.shift - frac[i], batch["lattice"].double()[known.structure])
    length = torch.linalg.vector_norm(vectors, dim=-1)
    bonds = (length <= bond_cutoff).nonzero().squeeze(1)
    others = ((length > bond_cutoff) & (length <= cutoff)).nonzero().squeeze(1)
    rows = torch.cat([bonds, others])
    pairs = known.pairs[:, rows]
    angles = _angles(pairs[:, : len(bonds)], len(frac))
    return BondGraph(pairs, vectors[rows], known.structure[rows], len(bonds), *angles)


def _angles(bonds: Tensor, atoms: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, two bonds and relative sign of every ordered pair of different bond ends at one atom."""
    ends = bonds.flatten()
    order = torch.argsort(ends, stable=True)
    degree = torch.bincount(ends, minlength=atoms)
    start = torch.cumsum(degree, 0) - degree
    centre = ends[order]
    partners = degree[centre]
    first = torch.repeat_interleave(torch.arange(len(order), device=bonds.device), partners)
    offset = torch.arange(len(first), device=bonds.device)
    offset = offset - torch.repeat_interleave(torch.cumsum(partners, 0) - partners, partners)
    second = start[centre[first]] + offset
    different = first != second
    first, second = first[different], second[different]
    row, side = order % bonds.shape[1], order // bonds.shape[1]
    return centre[first], row[first], row[second], 1 - 2 * (side[first] != side[second]).long()
