"""What a campaign draws and relaxes in tests: prototypes, moved a little, now and then broken."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from chem import datasets
from chem.crystals import CrystalBatch
from chem.ragged import concatenate

KINDS = 6  # sample i is a copy of prototype i % KINDS


def prototypes() -> CrystalBatch:
    """Triclinic cells of KINDS different crystals: the same lattice points in another basis."""
    batch = datasets.load("prototypes", "val").batch
    batch = batch[torch.nonzero(batch["num_atoms"] <= 6).flatten()[:KINDS].tolist()]
    turn = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.float64)
    frac = batch["frac_coords"] @ torch.linalg.inv(turn)
    return batch.replace(frac_coords=frac - frac.floor(), lattice=turn @ batch["lattice"])


@dataclass(frozen=True)
class Toys:
    """Draws copies of the prototypes; every `broken`-th has two atoms in one place, the next one no volume."""

    broken: int = 9

    def __call__(self):
        return self.draw

    def draw(self, start: int, stop: int) -> CrystalBatch:
        kinds = prototypes().without("formation_energy")
        return concatenate([self.one(kinds[i % KINDS], i) for i in range(start, stop)])

    def one(self, crystal: CrystalBatch, i: int) -> CrystalBatch:
        shift = torch.from_numpy(np.random.default_rng(i).normal(0, 0.0005, (len(crystal["batch"]), 3)))
        frac = (crystal["frac_coords"] + shift) % 1.0
        if i % self.broken == self.broken - 1:
            frac = frac[:1].expand_as(frac).clone()
        crystal = crystal.replace(frac_coords=frac)
        return crystal.replace(lattice=crystal["lattice"] * 0) if i and i % self.broken == 0 else crystal


@dataclass(frozen=True)
class Merge:
    """Relaxation by 1 % of the cell to -1 eV an atom; the first crystal of each call fails."""

    def __call__(self):
        return self.relax

    def relax(self, batch: CrystalBatch) -> SimpleNamespace:
        failed = torch.zeros(len(batch), dtype=torch.bool)
        failed[0] = True
        return SimpleNamespace(
            batch=batch.replace(lattice=batch["lattice"] * 1.01),
            energies=torch.where(failed, torch.nan, -batch["num_atoms"].double()),
            failed=failed,
            converged=~failed,
            steps=torch.ones(len(batch), dtype=torch.int64),
            reasons=["it flew apart", *[""] * (len(batch) - 1)],
        )


@dataclass(frozen=True)
class Weigh:
    """Energy above a hull of -2 eV/atom."""

    def __call__(self):
        return self.weigh

    def weigh(self, batch: CrystalBatch, energies) -> SimpleNamespace:
        above = np.asarray(energies) / batch["num_atoms"].numpy() + 2 - 0.1 * np.arange(len(batch))
        return SimpleNamespace(e_above_hull=above)
