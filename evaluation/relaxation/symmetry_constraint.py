"""Relaxation inside a space group: the operations of a crystal, and forces and stresses made to obey them.

An operation maps a fractional row f to f W^T + t and atom i to images[o, i]. Found once, with spglib, on the crystal as
it was given; atoms and metric are averaged over the group first, so that the operations hold to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from evaluation.relaxation.potentials import Prediction


class Operations(NamedTuple):
    """Rotations W (O, 3, 3) in fractional coordinates and the atom (O, N) that takes each atom's place."""

    rotations: Tensor
    images: Tensor


class Averages(NamedTuple):
    """The operations of a batch as pairs (operation, atom): each atom i receives from `source` by `rotation`.

    structure (K,) and rotations (K, 3, 3) of all operations; target, source, operation (Q,) of all pairs; share (B,):
    one over the number of operations of each crystal.
    """

    structure: Tensor
    rotations: Tensor
    target: Tensor
    source: Tensor
    operation: Tensor
    share: Tensor


def symmetrise(crystal: CrystalBatch, symprec: float) -> tuple[CrystalBatch, Operations]:
    """A crystal (a batch of one) moved into its space group, found within `symprec` ångström, and the operations.

    A crystal whose search fails has the identity alone.
    """
    from spglib import get_symmetry

    lattice, frac = crystal["lattice"][0], crystal["frac_coords"]
    numbers = crystal["atomic_numbers"]
    cell = (lattice.cpu().numpy(), frac.cpu().numpy(), numbers.cpu().numpy())
    try:
        with warnings.catch_warnings():  # spglib announces a change of its error handling, on every call
            warnings.simplefilter("ignore", DeprecationWarning)
            found = get_symmetry(cell, symprec=symprec)
    except Exception:  # in some versions it raises where in others it returns nothing
        found = None
    if found is None:
        eye = torch.eye(3, dtype=lattice.dtype, device=lattice.device).unsqueeze(0)
        return crystal, Operations(eye, torch.arange(len(frac), device=frac.device).unsqueeze(0))
    w, t = (torch.as_tensor(found[key]).to(lattice) for key in ("rotations", "translations"))
    moved = frac @ w.mT + t.unsqueeze(1)  # (O, N, 3)
    gap = moved.unsqueeze(2) - frac
    distance = torch.linalg.vector_norm((gap - gap.round()) @ lattice, dim=-1)
    images = distance.masked_fill(numbers.unsqueeze(1) != numbers, torch.inf).argmin(-1)
    back = (frac[images] - t.unsqueeze(1)) @ torch.linalg.inv(w).mT - frac
    frac = frac + (back - back.round()).mean(0)
    metric = (w.mT @ (lattice @ lattice.mT) @ w).mean(0)
    inverse = torch.linalg.inv(lattice)
    values, vectors = torch.linalg.eigh(inverse @ metric @ inverse.mT)
    stretch = vectors @ torch.diag(values.sqrt()) @ vectors.mT  # symmetric, so that the cell does not turn
    return crystal.replace(frac_coords=frac, lattice=(lattice @ stretch).unsqueeze(0)), Operations(w, images)


def averages(batch: CrystalBatch, operations: Sequence[Operations]) -> Averages:
    """The operations of the crystals of a batch, one entry each, laid out flat."""
    counts = torch.tensor([len(o.rotations) for o in operations])
    first = (torch.cumsum(counts, 0) - counts).tolist()
    start = batch["ptr"].tolist()
    source = [o.images.flatten() + start[b] for b, o in enumerate(operations)]
    target = [(torch.arange(o.images.shape[1]) + start[b]).repeat(len(o.images)) for b, o in enumerate(operations)]
    number = [
        torch.arange(first[b], first[b] + len(o.images)).repeat_interleave(o.images.shape[1])
        for b, o in enumerate(operations)
    ]
    device = batch["lattice"].device
    return Averages(
        torch.repeat_interleave(torch.arange(len(operations)), counts).to(device),
        torch.cat([o.rotations for o in operations]),
        torch.cat(target).to(device),
        torch.cat(source).to(device),
        torch.cat(number).to(device),
        1 / counts.to(batch["lattice"]),
    )


def constrain(batch: CrystalBatch, prediction: Prediction, group: Averages) -> Prediction:
    """Forces and stresses averaged over the operations of each crystal."""
    lattice = batch["lattice"][group.structure]
    turn = torch.linalg.inv(lattice) @ group.rotations.mT @ lattice  # of Cartesian rows, orthogonal
    share = group.share[group.structure]
    stress = (turn @ prediction.stress[group.structure] @ turn.mT) * share.reshape(-1, 1, 1)
    forces = (prediction.forces[group.source].unsqueeze(1) @ turn.mT[group.operation]).squeeze(1)
    forces = forces * share[group.operation].unsqueeze(1)
    return Prediction(
        prediction.energies,
        torch.zeros_like(prediction.forces).index_add(0, group.target, forces),
        torch.zeros_like(prediction.stress).index_add(0, group.structure, stress),
    )
