"""From controls to the crystals a model starts from, and what was given back into what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chem.crystals import CrystalBatch
from chem.lattice import niggli
from chem.periodic import wrap
from chem.statistics import Statistics
from generative.control_cells import scale_to_volume
from generative.controls import Controls
from generative.generator import Denoiser
from generative.process import Fixed
from generative.template_base import Templates


class CrystalTemplates(Templates[CrystalBatch]):
    """Templates of crystals.

    Lattices that are given enter the loop in the model's precision and leave `restore` in float64, and so do fixed
    sites. A cell that the model's representation cannot hold is Niggli-reduced for the loop, and `restore` goes back.
    """

    noun, coords = "cell", "frac_coords"

    def __init__(self, controls: Controls, denoiser: Denoiser, statistics: Statistics, seed: int):
        super().__init__(controls, denoiser, statistics, seed)
        self._lattice = self._kept_lattice(denoiser)
        self._turn = self._reduction(denoiser)

    def _kept_lattice(self, denoiser: Denoiser) -> Tensor | None:
        """The lattice (3, 3) that is kept."""
        c, needs = self.controls, {"frac_coords": "init", "types": "init"}
        frozen = {f for f, p in denoiser.processes.items() if isinstance(p, Fixed)} - {"atomic_numbers"}
        for field in sorted(frozen):
            needed = needs.get(field, "lattice")
            if c.init is None and (needed == "init" or c.lattice is None):
                raise ValueError(f"this model does not generate the field {field}: {needed} is required")
        lattice = c.lattice
        if c.init is not None and lattice is None and frozen - needs.keys():
            lattice = c.init.lattice
        return None if lattice is None else torch.tensor(lattice)

    def _reduction(self, denoiser: Denoiser) -> Tensor | None:
        """The integers T with T @ lattice a cell that the model can hold; None where the lattice is one already."""
        init = self.controls.init
        lattice = self._lattice if init is None or self._lattice is not None else torch.from_numpy(init.lattice)
        if lattice is None or _holds(denoiser, lattice):
            return None
        reduced, turn = niggli(lattice)
        if not _holds(denoiser, reduced):
            name = "init" if self._lattice is None else "lattice"
            raise ValueError(f"{name}: the model cannot hold this cell, nor its Niggli cell; allowed: see its card")
        return turn.double()

    def template(self, counts: Sequence[int]) -> CrystalBatch:
        """The template of samples with these atom counts, float64."""
        frac, init = self._known_coords(), self.controls.init
        batch = self._with_given(CrystalBatch(counts), frac)
        if self._lattice is not None:
            kept = torch.ones(len(counts), dtype=torch.bool)
            batch = batch.replace(lattice=self._lattice.expand(len(counts), 3, 3), lattice_given=kept)
        elif init is not None:
            batch = batch.replace(lattice=torch.from_numpy(init.lattice).expand(len(counts), 3, 3))
        if self._turn is not None:
            batch = batch.replace(lattice=self._turn @ batch["lattice"])
            if frac is not None:
                batch = batch.replace(frac_coords=batch["frac_coords"] @ torch.linalg.inv(self._turn))
        return batch

    def restore(self, batch: CrystalBatch) -> CrystalBatch:
        """Samples on the CPU in float64, with what was given in every digit and the cell at the volume asked for."""
        batch, target = batch.to("cpu").to(torch.float64), self.controls.volume
        if self._turn is not None:
            back = torch.linalg.inv(self._turn).round()
            batch = batch.replace(frac_coords=wrap(batch["frac_coords"] @ self._turn), lattice=back @ batch["lattice"])
        batch = self._with_fixed(batch)
        if self._lattice is not None:
            batch = batch.replace(lattice=self._lattice.expand(len(batch), 3, 3))
        if target is not None:
            batch = batch.replace(lattice=scale_to_volume(batch["lattice"], target))
        return batch


def _holds(denoiser: Denoiser, lattice: Tensor) -> bool:
    """Whether a model's representation can hold a lattice (3, 3)."""
    try:
        denoiser.encode(CrystalBatch([1], lattice=lattice.unsqueeze(0)))
    except ValueError:
        return False
    return True
