"""From controls to the molecules a model starts from, and what was given back into what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chem.molecules import MoleculeBatch
from chem.statistics import Statistics
from generative.controls import Controls
from generative.generator import Denoiser
from generative.template_base import Templates
from generative.templates import CrystalTemplates


class MoleculeTemplates(Templates[MoleculeBatch]):
    """Templates of molecules.

    A molecule is drawn modulo translation. What is drawn around fixed atoms, or from a start structure, is returned in
    the frame of the input: fixed atoms where they were, in every digit, and without them the mean position of the
    start structure is that of the sample. What is drawn from noise alone has its mean position at the origin. In the
    loop the mean position of the fixed atoms, or of the start structure, is the origin.
    """

    noun, coords = "molecule", "pos"

    def __init__(self, controls: Controls, denoiser: Denoiser, statistics: Statistics, seed: int):
        for name in ("lattice", "volume"):
            if getattr(controls, name) is not None:
                raise ValueError(f"this model makes molecules, which have no cell: {controls.show(name)} is not for it")
        if controls.z != 1:
            raise ValueError(f"this model makes molecules, allowed: z = 1, got z = {controls.z}")
        super().__init__(controls, denoiser, statistics, seed)

    def template(self, counts: Sequence[int]) -> MoleculeBatch:
        """The template of samples with these atom counts, float64."""
        pos = self._known_coords()
        return self._with_given(MoleculeBatch(counts), None if pos is None else pos - self._origin)

    def restore(self, batch: MoleculeBatch) -> MoleculeBatch:
        """Samples on the CPU in float64, in the frame of what was given, which is there in every digit."""
        batch = batch.to("cpu").to(torch.float64)
        pos = batch["pos"] if self.controls.fixed is not None else batch.rows("pos").center(batch["pos"])
        return self._with_fixed(batch.replace(pos=pos + self._origin))

    @property
    def _origin(self) -> Tensor:
        """Where the origin of the loop is in the frame of what was given (3,)."""
        pos = self._known_coords()
        return torch.zeros(3).double() if pos is None else pos[: self.num_fixed or None].mean(0)


def makes_molecules(denoiser: Denoiser) -> bool:
    """Whether a model makes molecules; else it makes crystals."""
    return "pos" in denoiser.processes


def templates_for(
    controls: Controls, denoiser: Denoiser, statistics: Statistics, seed: int
) -> CrystalTemplates | MoleculeTemplates:
    """Templates of what a model makes; ValueError naming the argument where it is not for this model."""
    kind = MoleculeTemplates if makes_molecules(denoiser) else CrystalTemplates
    return kind(controls, denoiser, statistics, seed)
