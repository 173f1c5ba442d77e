"""Potentials whose minima, forces and stresses are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.images import rows_times
from chem.lattice import volume
from chem.periodic import neighbour_list
from evaluation.relaxation.potentials import ALL_ELEMENTS, Prediction

FCC_PRIMITIVE = torch.tensor([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=torch.float64) / 2


@dataclass
class LennardJones:
    """Lennard-Jones pairs, energy and force shifted to zero at the cutoff; counts the crystals of every call."""

    epsilon: float = 0.2  # eV
    sigma: float = 2.5  # ångström
    cutoff: float | None = 5.5  # ångström
    name: str = "lennard-jones"
    version: str = "1"
    correction: str = "none"
    elements: frozenset[int] = ALL_ELEMENTS
    calls: list[int] = field(default_factory=list)

    def __call__(self, batch: CrystalBatch) -> Prediction:
        assert self.cutoff is not None
        self.calls.append(len(batch))
        (i, j), shift = neighbour_list(batch, self.cutoff)
        frac, lattice, index = batch["frac_coords"], batch["lattice"], batch["batch"]
        vectors = rows_times(frac[j] + shift - frac[i], lattice[index[i]])
        r = torch.linalg.vector_norm(vectors, dim=-1)
        edge, slope_there = self.pair(torch.tensor([self.cutoff], dtype=r.dtype))
        energy, slope = self.pair(r)
        energy, slope = energy - edge - (r - self.cutoff) * slope_there, slope - slope_there
        energies = torch.zeros(len(batch), dtype=r.dtype).index_add(0, index[i], energy / 2)
        pull = (slope / r).unsqueeze(1) * vectors  # of j on i
        forces = torch.zeros_like(frac).index_add(0, i, pull)
        virial = pull.unsqueeze(2) * vectors.unsqueeze(1) / 2
        stress = torch.zeros_like(lattice).index_add(0, index[i], virial) / volume(lattice).reshape(-1, 1, 1)
        return Prediction(energies, forces, stress)

    def pair(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and its slope at distance r, before the shift."""
        six = (self.sigma / r) ** 6
        return 4 * self.epsilon * (six * six - six), 24 * self.epsilon * (six - 2 * six * six) / r


@dataclass
class Spoiled(LennardJones):
    """Lennard-Jones, but the crystals that hold helium, neon and argon find a hole of a kind each."""

    def __call__(self, batch: CrystalBatch) -> Prediction:
        energies, forces, stress = super().__call__(batch)
        held = torch.zeros(len(batch), 119, dtype=torch.bool)
        held[batch["batch"], batch["atomic_numbers"]] = True
        energies = torch.where(held[:, 2], torch.nan, energies)
        forces = torch.where(held[:, 2][batch["batch"]].unsqueeze(1), torch.nan, forces)
        burst = -torch.eye(3, dtype=stress.dtype)  # eV/Å^3: pushes the cell outwards
        stress = torch.where(held[:, 10].reshape(-1, 1, 1), burst, stress)
        steps = float(len(self.calls) - 1)
        return Prediction(energies - 100 * steps * batch["num_atoms"] * held[:, 18], forces, stress)


def strained(batch: CrystalBatch, sigma: float = 0.1, strain: float = 0.03, seed: int = 0) -> CrystalBatch:
    """Atoms displaced by sigma ångström and cells by a few per cent, at random; float64."""
    generator = torch.Generator().manual_seed(seed)
    batch = batch.to(torch.float64)
    lattice, frac = batch["lattice"], batch["frac_coords"]
    kick = sigma * torch.randn(frac.shape, generator=generator, dtype=torch.float64)
    e = strain * torch.randn(lattice.shape, generator=generator, dtype=torch.float64)
    moved = frac + rows_times(kick, torch.linalg.inv(lattice)[batch["batch"]])
    return batch.replace(frac_coords=moved % 1, lattice=lattice @ (torch.eye(3, dtype=torch.float64) + (e + e.mT) / 2))


def clusters(counts: list[int], spacing: float = 2.9, seed: int = 0) -> CrystalBatch:
    """Triclinic crystals of random elements, `counts` atoms each, near close packing of the toy."""
    generator = torch.Generator().manual_seed(seed)
    lattices, fracs = [], []
    for n in counts:
        # a supercell of the primitive fcc cell along one axis, sheared by lattice vectors: skewed, the same crystal
        cell = FCC_PRIMITIVE * spacing * 2**0.5
        shear = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, n]], dtype=torch.float64)
        lattices.append(shear @ cell)
        sites = torch.arange(n, dtype=torch.float64).unsqueeze(1) * torch.tensor([0.0, 0, 1], dtype=torch.float64)
        fracs.append((sites @ torch.linalg.inv(shear)) % 1)
    numbers = torch.randint(20, 60, (sum(counts),), generator=generator)
    batch = CrystalBatch(counts, atomic_numbers=numbers, frac_coords=torch.cat(fracs), lattice=torch.stack(lattices))
    return strained(batch, 0.05, 0.02, seed)
