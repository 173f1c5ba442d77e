"""Structural validity: are the atoms of a generated crystal far enough apart, in a cell that is one.

`cdvae` is the rule of CDVAE and of every table since: the smallest distance between two different atoms is at least
0.5 Å and the volume at least 0.1 Å^3. An atom's own images are NOT looked at: one atom in a cell with a vector of
0.3 Å passes.

`strict` also looks at the images, scales distances by covalent radii (Cordero 2008) and bounds the cell, after
LeMat-GenBench: d_ij >= (0.7 Å + r_i + r_j) / 2, volume > 1 Å^3, vectors of 1 to 100 Å, 0.01 to 25 g/cm^3 and 1e-5 to
0.5 atoms per Å^3.

A structure that cannot be judged (NaN, no volume, no atoms, more than MOST_ATOMS, a needle of a cell) is invalid, with
the reason, and never stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from chem.crystals import CrystalBatch

RULES = ("cdvae", "strict")
MIN_DISTANCE, MIN_VOLUME = 0.5, 0.1  # ångström, cubic ångström (CDVAE)
MOST_ATOMS = 2000  # of a cell: whatever is measured looks at pairs of atoms, or at more
SLENDER = 300  # longest by shortest vector of a reduced cell: neighbours in a needle are sought among its images
LONGEST = 1e6  # ångström; longer vectors are taken for a diverged sample, before squares overflow
PAIRS_AT_ONCE = 300_000  # bounds the memory: about 100 bytes a pair
DALTON = 1.66053906660  # g/cm^3 of one dalton in one cubic ångström


@dataclass(frozen=True)
class Validity:
    """What a rule says of B crystals: valid (B,) bool, and reasons (B), one line each, empty where valid."""

    valid: NDArray[np.bool_]
    reasons: list[str]


def joint_validity(
    batch: CrystalBatch, structural: NDArray[np.bool_], composition: NDArray[np.bool_], fingerprints: bool
) -> NDArray[np.bool_]:
    """What the field calls `valid` (B,): both validities and, since CDVAE, that both fingerprints can be made."""
    valid = structural & composition
    if fingerprints and valid.any():
        from evaluation.descriptors.described import fingerprint_clause

        rows = np.flatnonzero(valid)
        valid[rows] = fingerprint_clause(batch[rows.tolist()])
    return valid


def structural_validity(
    batch: CrystalBatch, rule: str = "cdvae", device: torch.device | str | None = None
) -> Validity:
    """Judge every crystal of a batch by `cdvae` or `strict`; the first rule that a crystal breaks is its reason.

    device: of the distances, default that of the batch. Raises ValueError for another rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule = '{rule}', allowed: {', '.join(RULES)}")
    reasons = unusable(batch)
    sound = np.array([i for i, reason in enumerate(reasons) if not reason], dtype=np.int64)
    for rows in _chunks(batch, sound):
        part = batch[rows.tolist()].to(device if device is not None else batch["lattice"].device)
        for i, reason in zip(rows, _cdvae(part) if rule == "cdvae" else _strict(part), strict=True):
            reasons[i] = reason
    return Validity(np.array([not reason for reason in reasons], dtype=bool), reasons)


def densities(batch: CrystalBatch) -> NDArray[np.float64]:
    """Mass density (B,) of each crystal in g/cm^3; infinite without volume, NaN for an unknown element."""
    import torch

    from chem.lattice import volume

    z = batch["atomic_numbers"].cpu()
    masses = torch.from_numpy(_masses())[torch.where((z >= 1) & (z <= 118), z, 0)]
    total = torch.zeros(len(batch), dtype=torch.float64).index_add(0, batch["batch"].cpu(), masses)
    return (DALTON * total / volume(batch["lattice"].cpu().double())).numpy()


def unusable(batch: CrystalBatch) -> list[str]:
    """Why each crystal cannot be measured, empty where it can."""
    import torch

    from chem.lattice import volume

    lattice, frac, z = batch["lattice"].cpu().double(), batch["frac_coords"].cpu(), batch["atomic_numbers"].cpu()
    index = batch["batch"].cpu()

    def some(bad: Tensor) -> NDArray[np.bool_]:
        return (torch.zeros(len(batch)).index_add(0, index, bad.float()) > 0).numpy()

    longest = torch.linalg.vector_norm(lattice, dim=-1).amax(-1)
    space = volume(lattice)
    bulk = torch.linalg.det(lattice / longest.clamp(min=1e-30).reshape(-1, 1, 1)).abs()
    # the same test as chem.images, so that no cell passes here and stops the batch there
    flat = ~(bulk > 1e-12) | ~(space >= MIN_VOLUME)
    found = [
        (~torch.isfinite(lattice).flatten(1).all(1).numpy(), "a lattice vector is not a finite number"),
        (some(~torch.isfinite(frac).all(-1)), "a coordinate is not a finite number"),
        (some((z < 1) | (z > 118)), "an atomic number is not in 1..118"),
        ((batch["num_atoms"] == 0).cpu().numpy(), "no atoms"),
        ((batch["num_atoms"] > MOST_ATOMS).cpu().numpy(), f"more than {MOST_ATOMS} atoms"),
        ((longest > LONGEST).numpy(), f"a lattice vector is longer than {LONGEST:.0e} Å"),
        (flat.numpy(), f"volume below {MIN_VOLUME} Å^3, or a flat cell"),
        (_slender(lattice, ~flat & (bulk < 1 / SLENDER)).numpy(), f"a cell over {SLENDER} times as long as wide"),
    ]
    reasons = [""] * len(batch)
    for bad, reason in reversed(found):
        for i in np.flatnonzero(bad):
            reasons[i] = reason
    return reasons


def _slender(lattice: Tensor, suspect: Tensor) -> Tensor:
    """Which of the suspect cells (B,) are slender in their reduced form; no other cell can be."""
    import torch

    from chem.images import reduce_cells

    lengths = torch.linalg.vector_norm(reduce_cells(lattice[suspect]).rows, dim=-1)
    found = torch.zeros_like(suspect)
    found[suspect] = lengths.amax(-1) > SLENDER * lengths.amin(-1)
    return found


def _chunks(batch: CrystalBatch, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows, cut where the pairs of their atoms add up to PAIRS_AT_ONCE."""
    if len(rows):
        counts = batch["num_atoms"].cpu().numpy()[rows].astype(np.int64)
        cuts = np.flatnonzero(np.diff(np.cumsum(counts**2) // PAIRS_AT_ONCE)) + 1
        yield from np.split(rows, cuts)


def _cdvae(batch: CrystalBatch) -> list[str]:
    import torch

    from chem.periodic import pair_distances

    pairs, distances = pair_distances(batch.to(torch.float64))
    nearest = distances.new_full((len(batch),), torch.inf)
    nearest = nearest.scatter_reduce(0, batch["batch"][pairs[0]], distances, "amin")
    return ["" if d >= MIN_DISTANCE else f"two atoms at {d:.3f} Å, below {MIN_DISTANCE} Å" for d in nearest.tolist()]


def _strict(batch: CrystalBatch) -> list[str]:
    import torch

    from chem.images import reduce_cells, shortest_vector
    from chem.lattice import volume
    from chem.periodic import pair_distances

    batch = batch.to(torch.float64)
    radius = torch.from_numpy(_radii()).to(batch["lattice"])[batch["atomic_numbers"]]
    pairs, distances = pair_distances(batch)
    slack = distances - (0.7 + radius[pairs[0]] + radius[pairs[1]]) / 2
    near = slack.new_full((len(batch),), torch.inf)
    near = near.scatter_reduce(0, batch["batch"][pairs[0]], slack, "amin")
    largest = radius.new_zeros(len(batch)).scatter_reduce(0, batch["batch"], radius, "amax")
    image = shortest_vector(reduce_cells(batch["lattice"])) - (0.7 + 2 * largest) / 2
    lengths = torch.linalg.vector_norm(batch["lattice"], dim=-1)
    space = volume(batch["lattice"])
    atoms, mass = batch["num_atoms"] / space, torch.from_numpy(densities(batch)).to(space)
    found = [
        (~(near >= 0), "two atoms closer than (0.7 Å + their covalent radii) / 2"),
        (~(image >= 0), "an atom closer to its own image than 0.35 Å + its covalent radius"),
        (~(space > 1), "volume not above 1 Å^3"),
        (~((lengths >= 1) & (lengths <= 100)).all(-1), "a lattice vector outside 1 to 100 Å"),
        (~((mass >= 0.01) & (mass <= 25)), "density outside 0.01 to 25 g/cm^3"),
        (~((atoms >= 1e-5) & (atoms <= 0.5)), "fewer than 1e-5 or more than 0.5 atoms per Å^3"),
    ]
    reasons = [""] * len(batch)
    for bad, reason in reversed(found):
        for i in bad.nonzero().flatten().tolist():
            reasons[i] = reason
    return reasons


@cache
def _radii() -> NDArray[np.float64]:
    """Covalent radius (119,) in ångström by atomic number."""
    from ase.data import covalent_radii

    return np.array(covalent_radii[:119], dtype=np.float64)


@cache
def _masses() -> NDArray[np.float64]:
    """Atomic mass (119,) in dalton by atomic number."""
    from ase.data import atomic_masses

    return np.array([np.nan, *atomic_masses[1:119]], dtype=np.float64)
